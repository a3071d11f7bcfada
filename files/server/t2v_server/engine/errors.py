"""How the engine fails."""


class GenerationError(Exception):
    """One generation failed; the next may succeed."""


class OutOfMemory(GenerationError):
    """The device, or the host, had too little memory for this generation."""


class EngineLostError(Exception):
    """The device or its context is broken: nothing more will succeed in this process."""


class EncodingError(Exception):
    """The frames could not be encoded."""


class Stopped(Exception):
    """The generation was asked to stop, and did."""
