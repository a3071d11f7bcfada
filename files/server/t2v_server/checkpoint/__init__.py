"""Prepared checkpoints: what lies in such a directory, and where it comes from. Knows no torch."""
