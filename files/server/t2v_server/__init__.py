"""Text to video over HTTP: a resident diffusers pipeline behind a queue that forgets nothing."""

__version__ = "0.1.0"
