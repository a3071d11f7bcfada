"""The engine: loading the pipeline, generating frames, encoding them."""
