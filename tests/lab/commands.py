"""What a user types at a lab: ``make …`` and ``python -m lab …``, with the lab's name."""

import os
import signal
import subprocess

from lab.settings import REPOSITORY

# What a shell starts in the background ignores Ctrl-C, and so would the programs started here.
signal.signal(signal.SIGINT, signal.default_int_handler)


class Commands:
    """The commands for one lab. ``environment`` is that of ``make``; a test may add to it."""

    def __init__(self, name: str, scenario: str = "site", make_seconds: int = 1500) -> None:
        self.name = name
        self._scenario = scenario
        self._make_seconds = make_seconds
        # BUNDLE is for the one that asks for it by an argument.
        self.environment = {**os.environ, "T2V_LAB": name}
        self.environment.pop("BUNDLE", None)

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``make``, whatever comes of it, and print the end of what it says."""
        done = subprocess.run(
            ["make", "--no-print-directory", *arguments],
            cwd=REPOSITORY,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=self._make_seconds,
        )
        print(done.stdout[-6000:], done.stderr[-3000:], sep="\n")
        return done

    def lab(self, *arguments: str) -> str:
        """What ``python -m lab`` prints. Fails where it fails."""
        done = subprocess.run(
            [
                *(".venv/bin/python", "-m", "lab", "--name", self.name),
                *("--scenario", self._scenario, *arguments),
            ],
            cwd=REPOSITORY,
            env={**self.environment, "PYTHONPATH": "molecule"},
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
