"""How the engine fails."""


class GenerationError(Exception):
    """One generation failed; the next may succeed."""


class EngineLostError(Exception):
    """The device or its context is broken: nothing more will succeed in this process."""


class EncodingError(Exception):
    """The frames could not be encoded."""
