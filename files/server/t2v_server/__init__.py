"""Text-to-video server: one resident diffusers WanPipeline behind a small HTTP service."""
