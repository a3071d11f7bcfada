"""What the server's processes have in common: how they start to log and how they end."""

from __future__ import annotations

import ctypes
import os
import signal

PARENT_VARIABLE = "T2V_PARENT_PID"  # set by the supervisor, for its children alone

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent ends, however that ends.

    Raises:
        SystemExit: the parent, process ``parent``, has ended already.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if parent is not None and os.getppid() != parent:
        raise SystemExit("the parent process has ended")
