"""What preparing or loading a model adds to a process: run as a program, prints JSON.

usage: measure_memory.py prepare|load|stock SOURCE [OUTPUT] [PROFILE]

``anonymous``: the most that the process had to itself at one time, over what it had with all its
imports done; looked at every millisecond. ``resident``: the same with mapped files, as the kernel
counted it.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

STATUS = Path("/proc/self/status")


def kilobytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def peaks(work: Callable[[], object]) -> dict[str, float]:
    """Bytes that ``work`` adds at most, and its seconds."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before, resident_before = kilobytes("RssAnon"), kilobytes("VmRSS")
    most, done = before, threading.Event()

    def look() -> None:
        nonlocal most
        while not done.wait(0.001):
            most = max(most, kilobytes("RssAnon"))

    thread = threading.Thread(target=look)
    thread.start()
    started = time.monotonic()
    kept = work()
    seconds = time.monotonic() - started
    done.set()
    thread.join()
    most = max(most, kilobytes("RssAnon"))
    del kept
    return {
        "anonymous": (most - before) * 1024,
        "resident": (kilobytes("VmHWM") - resident_before) * 1024,
        "seconds": round(seconds, 2),
    }


def main(what: str, source: str, output: str = "", profile: str = "tiny") -> None:
    import torch
    from diffusers import WanPipeline
    from t2v_server.checkpoint.wanted import Wanted
    from t2v_server.engine.checkpoint import Checkpoint
    from t2v_server.engine.networks import CLASSES, DTYPES
    from t2v_server.engine.prepare import prepare
    from t2v_server.engine.tiny import build_tiny_pipeline
    from t2v_server.profiles import PROFILES

    torch.set_num_threads(1)
    build_tiny_pipeline()  # what the first use of the libraries costs
    chosen = PROFILES[profile]
    # What diffusers alone has no weights for, it loads in what the profile computes in.
    kept = {name: getattr(chosen.precisions, name) for name in CLASSES}
    dtypes = {
        name: DTYPES[chosen.precisions.compute if one.quantised else one]
        for name, one in kept.items()
    }
    work: dict[str, Callable[[], object]] = {
        "prepare": lambda: prepare(Wanted(source, chosen, Path(output))),
        "load": lambda: Checkpoint.open(Path(source)).pipeline("cpu"),
        "stock": lambda: WanPipeline.from_pretrained(source, dtype=dtypes),
    }
    print(json.dumps(peaks(work[what])))


if __name__ == "__main__":
    main(*sys.argv[1:])
