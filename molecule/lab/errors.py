"""The one exception that a user of the lab sees."""


class LabError(Exception):
    """Something the user can mend; the text is one sentence: what, where, what to do."""
