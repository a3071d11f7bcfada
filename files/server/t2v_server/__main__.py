"""``python -m t2v_server``: the command ``t2v-server``."""

from __future__ import annotations

import sys

from t2v_server.cli import main

if __name__ == "__main__":
    sys.exit(main())
