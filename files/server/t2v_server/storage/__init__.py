"""Where a video lives: its name and how it comes to be there."""
