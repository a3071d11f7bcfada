"""What a run of a playbook came to, and a word for the reader of a test's output."""

import json
import re
import subprocess

import pytest

# With this, sentences come whole, in one line each.
WHOLE = {"ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}


def changed(done: subprocess.CompletedProcess[str]) -> int:
    """How many tasks of the playbook changed something. Fails where it failed."""
    assert done.returncode == 0, done.stdout
    return sum(int(one) for one in re.findall(r"changed=(\d+)", done.stdout))


def sentences(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the playbook, run with ``WHOLE``, told its reader."""
    return [str(json.loads(one)) for one in re.findall(r'"msg": (".*")', done.stdout)]


def by_task(output: str) -> list[tuple[str, list[str]]]:
    """Heading and what is said under it, the hosts in order: they answer in any."""
    parts = re.split(r"^(?=(?:TASK|PLAY RECAP|RUNNING)\b)", output, flags=re.MULTILINE)[1:]
    found = []
    for part in parts:
        heading, _, rest = part.partition("\n")
        # Times and numbers of jobs differ; a new attempt is told of before the heading or after.
        plain = re.sub(r'"(start|end|delta)": .*|^ +(start|end|delta): .*', "", rest, flags=re.M)
        plain = re.sub("^(ASYNC|FAILED - RETRYING:) .*", "", plain, flags=re.M)
        entries = re.split(r"^(?=\S+: \[)", plain, flags=re.MULTILINE)
        found.append((heading, sorted(entry.strip() for entry in entries if entry.strip())))
    return found


def announce(request: pytest.FixtureRequest, line: str) -> None:
    """Write a line into the output of the tests, whether or not they pass."""
    plugins = request.config.pluginmanager
    reporter, capture = plugins.getplugin("terminalreporter"), plugins.getplugin("capturemanager")
    assert reporter is not None
    assert capture is not None
    with capture.global_and_fixture_disabled():
        reporter.write_line(line)
