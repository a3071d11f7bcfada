"""Run the tests, stage by stage, saying what each is, how long it took and what failed in it.

``make test`` runs everything but the slow, wide rest, which ``--all`` adds. Stages that
build machines need root; without it they are left out, and the last lines say so.
"""

import argparse
import functools
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PYTHON = ".venv/bin/python"
SERVER_PYTHON = ".venv-server/bin/python"


# Programs that the tests use for real, and the Debian packages that have them.
PROGRAMS = {
    "redis-server": "redis-server",
    "chromium": "chromium",
    "ab": "apache2-utils",
    "mkfs.ext4": "e2fsprogs",
    "fsfreeze": "util-linux",
    "nmap": "nmap",
    "ssh-audit": "ssh-audit",
    "promtool": "prometheus",
    "prometheus-node-exporter": "prometheus-node-exporter",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "prometheus-redis-exporter": "prometheus-redis-exporter",
    "prometheus-nginx-exporter": "prometheus-nginx-exporter",
    "docker-registry": "docker-registry",
    "nginx": "nginx-light",
    "sshpass": "sshpass",
}


PASSED = "passed"
# Not a clean pass: the tests that failed at first are printed, for somebody to mend them.
PASSED_AGAIN = "passed, second try"
BEGAN = time.monotonic()
# Seconds; a second try must end within CI's limit.
NO_SECOND_TRY_AFTER = 45 * 60
# A stage that takes longer hangs.
STAGE_SECONDS = 3600
# How many stages run beside each other.
LANES = 2
# Scenarios with a stage of their own, or none.
APART = {"site", "kinds"}
# In `make test`: what fits into CI's hour; the others are in --all.
DAILY = {"firewall", "hardening", "registry", "prometheus", "grafana"}


@dataclass(frozen=True)
class Stage:
    """One command of the run; ``root``: it builds machines; ``slow``: only with --all.

    ``settings`` are added to its environment. ``alone``: it compares this machine before and
    after; the others run two at a time, and their output comes when each has ended.
    """

    title: str
    command: tuple[str, ...]
    root: bool = False
    slow: bool = False
    alone: bool = False
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """What is this stage's own: two that run at a time clash in one home of Ansible."""
        # A short name: ssh's sockets lie below, and their paths have a limit of 108 bytes.
        name = Path([part for part in self.command if part[:1] != "-"][-1]).stem
        return {"ANSIBLE_HOME": str(REPOSITORY / ".ansible" / name), **dict(self.settings)}


def pytest(python: str, *arguments: str) -> tuple[str, ...]:
    """A run of pytest that remembers its failures apart from the others."""
    cache = arguments[0].removesuffix(".py")
    return (python, "-m", "pytest", "-o", f"cache_dir=.pytest_cache/{cache}", *arguments)


def roles() -> tuple[Stage, ...]:
    """``molecule test`` of every role's scenario."""
    found = sorted(path.parent.name for path in REPOSITORY.glob("molecule/*/molecule.yml"))
    return tuple(
        Stage(
            f"molecule test -s {name}",
            (".venv/bin/molecule", "test", "-s", name),
            root=True,
            slow=name not in DAILY,
        )
        for name in found
        if name not in APART
    )


# The longest first: the last one then does not run on by itself.
STAGES = (
    Stage(
        "molecule test -s site: check, converge, idempotence, verify",
        (".venv/bin/molecule", "test", "-s", "site"),
        root=True,
    ),
    Stage("the server on loopback", pytest(SERVER_PYTHON, "tests/server")),
    *roles(),
    Stage("inventory, roles and lab, without machines", pytest(PYTHON, "tests/unit")),
    Stage("rules, alerts and dashboards, a real Prometheus", pytest(PYTHON, "tests/monitoring")),
    Stage(
        "the deployment's manifests, without a cluster",
        pytest(PYTHON, "tests/deploy", "--ignore=tests/deploy/test_checkov.py"),
    ),
    Stage(
        "the cluster's configuration and its bundle, without a cluster",
        pytest(PYTHON, "tests/kubernetes"),
    ),
    Stage(
        "checkov over the deployment's manifests",
        pytest(PYTHON, "tests/deploy/test_checkov.py"),
        slow=True,
    ),
    Stage("make up and make down", pytest(PYTHON, "tests/lab/test_make_up.py"), True, alone=True),
    # With BUNDLE=<directory>; without one it says that it is skipped.
    Stage(
        "make up with a cluster",
        pytest(PYTHON, "tests/lab/test_make_up_kubernetes.py"),
        root=True,
        slow=True,
        alone=True,
    ),
    Stage(
        "100 faults into the server with each store",
        pytest(SERVER_PYTHON, "tests/server/test_faults.py"),
        root=True,
        slow=True,
        alone=True,
        settings=(("T2V_FAULT_ROUNDS", "100"),),
    ),
    Stage(
        "the site on the newest ansible-core",
        pytest(PYTHON, "tests/lab/test_newest_core.py"),
        root=True,
        slow=True,
        alone=True,
    ),
    Stage(
        "machines of every kind: vm with NFS, Python 2.7",
        pytest(PYTHON, "tests/lab/test_kinds.py"),
        root=True,
        slow=True,
        alone=True,
    ),
)


def install_programs() -> None:
    """Install what is missing, as root on Debian; others are told what will be skipped."""
    missing = sorted(package for name, package in PROGRAMS.items() if shutil.which(name) is None)
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"==> Not installed, their tests are skipped: {', '.join(missing)}", flush=True)
        return
    print(f"==> Installing {', '.join(missing)}", flush=True)
    quiet = ["apt-get", "-qq", "-y", "-o", "Acquire::Retries=3"]
    # RUNLEVEL=1: Debian's packages then start no service, and the tests run their own.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["update"], ["install", "--no-install-recommends", *missing]):
        subprocess.run(
            [*quiet, *command], env=environment, stdout=subprocess.DEVNULL, check=True, timeout=900
        )


# What pytest, Ansible and molecule print where something failed.
FAILURE = re.compile(r"^(FAILED|ERROR) \S+::|^fatal: \[|^failed: \[|^ERROR!|^CRITICAL |^E  ")
MOST_FAILURES = 12


@dataclass(frozen=True)
class Result:
    """How a stage ended, after how many seconds, with the lines that say what failed."""

    title: str
    word: str
    seconds: float = 0.0
    failures: tuple[str, ...] = ()


def run(stage: Stage, environment: dict[str, str], slow: bool) -> Result:
    """Run one stage, and what failed in it once more: a test that passes then is named too."""
    if stage.slow and not slow:
        return Result(stage.title, "left out: make test-all")
    if stage.root and os.geteuid() != 0:
        return Result(stage.title, "SKIPPED: needs root")
    print(f"\n==> {stage.title}", flush=True)
    first = attempt(stage, stage.command, environment)
    if first.word == PASSED or time.monotonic() - BEGAN > NO_SECOND_TRY_AFTER:
        return first
    print(f"\n==> {stage.title}: once more", flush=True)
    second = attempt(stage, again(stage.command), environment)
    word = PASSED_AGAIN if second.word == PASSED else second.word
    return Result(
        stage.title, word, first.seconds + second.seconds, first.failures + second.failures
    )


def again(command: tuple[str, ...]) -> tuple[str, ...]:
    """The command for a second try: of pytest only what failed."""
    if "pytest" in command:
        return (*command, "--last-failed", "--last-failed-no-failures=all")
    return command


def attempt(stage: Stage, command: tuple[str, ...], environment: dict[str, str]) -> Result:
    """Run it; what it prints is passed on, at once or, beside another one, when it has ended."""
    started = time.monotonic()
    lines = []
    with subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment | stage.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        watchdog = threading.Timer(STAGE_SECONDS, process.kill)
        watchdog.start()
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if stage.alone:
                print(line, end="", flush=True)
        status = process.wait()
        watchdog.cancel()
    seconds = time.monotonic() - started
    if not stage.alone:
        print(f"\n==> {stage.title}: its output\n{''.join(lines)}", flush=True)
    if status == 0:
        return Result(stage.title, PASSED, seconds)
    said = [line.rstrip()[:400] for line in lines if FAILURE.match(line)]
    if not said:
        said = [line.rstrip()[:400] for line in lines[-MOST_FAILURES:]]
    return Result(stage.title, f"FAILED (status {status})", seconds, tuple(said[-MOST_FAILURES:]))


def main() -> int:
    """Run the stages; the exit status is 0 when all that could run passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="the slow stages too")
    options = parser.parse_args()
    # What a shell starts in the background ignores Ctrl-C, and so would make up in its tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # molecule looks for ansible's programs on the path, as in an activated environment.
    environment = {**os.environ, "PATH": f"{REPOSITORY}/.venv/bin:{os.environ['PATH']}"}
    if not sys.stdout.isatty():
        # pytest cuts what it says of a failed test at this width.
        environment |= {"COLUMNS": "300", "NO_COLOR": "1", "PY_COLORS": "0", "ANSIBLE_NOCOLOR": "1"}
    if options.all:
        environment["T2V_TEST_ALL"] = "1"  # for what is slow in a stage that is not
    install_programs()
    results: list[Result] = []
    for alone, stages in itertools.groupby(STAGES, key=lambda stage: stage.alone):
        with ThreadPoolExecutor(1 if alone else LANES) as pool:
            run_one = functools.partial(run, environment=environment, slow=options.all)
            results += pool.map(run_one, stages)
    print("\nStages:")
    for result in results:
        print(f"  {result.word:<24} {result.seconds:7.1f} s  {result.title}")
    # Last, as a log that was cut short shows its end.
    for result in results:
        if result.failures:
            print(f"\nWhat failed in: {result.title}", *result.failures, sep="\n  ")
    counts = [
        sum(result.word.startswith(kind) for result in results)
        for kind in (PASSED, "FAILED", "SKIPPED")
    ]
    print("stages: {} passed, {} failed, {} skipped".format(*counts), flush=True)
    # In CI a stage that could not run is not a pass.
    return 1 if counts[1] or (counts[2] and os.environ.get("CI")) else 0


if __name__ == "__main__":
    sys.exit(main())
