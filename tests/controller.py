"""Ansible as the controller runs it, without machines."""

import json
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


def render(role: str, template: str, target: Path, host: str, **variables: object) -> str:
    """The template as Ansible renders it for the host; the role's defaults and vars are loaded."""
    files = [ROOT / "roles" / role / name for name in ("defaults/main.yml", "vars/main.yml")]
    source = ROOT / "roles" / role / "templates" / template
    arguments = {"src": str(source), "dest": str(target)}
    extra = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
        **variables,
    }
    done = ansible(
        "ansible",
        *("-i", "inventory/", host, "-m", "ansible.builtin.template", "-a", json.dumps(arguments)),
        *(word for path in files for word in ("-e", f"@{path}")),
        *("-e", json.dumps(extra)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target.read_text()
