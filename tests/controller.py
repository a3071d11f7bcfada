"""Ansible as the controller runs it, without machines."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def ansible(
    command: str, *arguments: str, timeout: int = 120, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run one of Ansible's commands, of the Python that runs the tests, in the repository."""
    beside = Path(sys.executable).with_name(command)
    program = str(beside) if beside.exists() else shutil.which(command)
    assert program, f"{command} is not installed"
    return subprocess.run(
        [program, *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            "ANSIBLE_LOCALHOST_WARNING": "0",
            **settings,
        },
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
