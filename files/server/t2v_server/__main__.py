"""``python -m t2v_server``: become gunicorn with this package's configuration."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CONFIGURATION = Path(__file__).with_name("gunicorn.conf.py")


def main() -> None:
    """Replace this process, so that signals reach gunicorn's master directly."""
    gunicorn = [sys.executable, "-m", "gunicorn", "-c", str(CONFIGURATION)]
    os.execv(sys.executable, [*gunicorn, *sys.argv[1:]])


if __name__ == "__main__":
    main()
