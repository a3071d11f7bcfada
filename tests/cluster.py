"""A lab's cluster in the hands of a test: kubectl on the controller, and patience."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab import network
from lab.settings import Paths


class Kubectl:
    """The bundle's kubectl on the controller, which is in the site's network.

    ``namespace`` is the one that its calls are about, unless they name another.
    """

    def __init__(self, paths: Paths, bundle: str, namespace: str = "default") -> None:
        self.program = Path(bundle, "bin/kubectl")
        self.kubeconfig = paths.state / "controller/kubeconfig"
        self._paths = paths
        self._namespace = namespace

    def __call__(
        self, *arguments: str, stdin: str = "", check: bool = True, seconds: float = 120
    ) -> str:
        """What it prints; with ``check=False`` also what it complains of, without failing."""
        options = (f"--kubeconfig={self.kubeconfig}", f"--namespace={self._namespace}")
        done = subprocess.run(
            network.inside(self._paths, [str(self.program), *options, *arguments]),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout if check else done.stdout + done.stderr

    def get(self, *arguments: str) -> Any:
        """What ``kubectl get`` finds: one object, or a list of them under ``items``."""
        return json.loads(self("get", *arguments, "-o", "json"))

    def items(self, *arguments: str) -> list[dict[str, Any]]:
        """The objects of a list."""
        found: list[dict[str, Any]] = self.get(*arguments)["items"]
        return found


def wait(what: Callable[[], bool], seconds: float = 240) -> bool:
    """Ask until it is so, or for so long; a cluster that cannot answer yet is asked again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if what():
                return True
        except (AssertionError, subprocess.SubprocessError, json.JSONDecodeError, KeyError):
            pass
        time.sleep(1)
    return False
