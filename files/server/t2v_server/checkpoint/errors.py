"""What can be wrong with a checkpoint, or with making one."""


class CheckpointError(ValueError):
    """A checkpoint is damaged, unfinished, foreign, or cannot be made; the message is a sentence.

    It says what is wrong, where, and what to do.
    """
