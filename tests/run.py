"""Run the tests, stage by stage, saying what each is and how long it took.

``make test`` runs everything but the slow, wide rest, which ``--all`` adds. Stages that
build machines need root; without it they are left out, and the last lines say so.
"""

import argparse
import functools
import itertools
import os
import shutil
import subprocess
import sys
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


# How many stages that may run beside each other do.
LANES = 2
# Scenarios with a stage of their own, or none.
APART = {"site", "kinds"}
# In `make test`: what fits into CI's hour; the others are in --all.
DAILY = {"firewall", "hardening", "registry", "prometheus", "grafana"}


@dataclass(frozen=True)
class Stage:
    """One command of the run; ``root``: it builds machines; ``slow``: only with --all.

    ``settings`` are added to its environment. ``beside``: it mostly waits for machines, so
    two of these run at a time; their output comes when each has ended.
    """

    title: str
    command: tuple[str, ...]
    root: bool = False
    slow: bool = False
    beside: bool = False
    settings: tuple[tuple[str, str], ...] = ()


def roles() -> tuple[Stage, ...]:
    """``molecule test`` of every role's scenario."""
    found = sorted(path.parent.name for path in REPOSITORY.glob("molecule/*/molecule.yml"))
    return tuple(
        Stage(
            f"molecule test -s {name}",
            (".venv/bin/molecule", "test", "-s", name),
            root=True,
            slow=name not in DAILY,
            beside=True,
            # Molecule installs the collection into Ansible's home: two at a time clash in one.
            settings=(("ANSIBLE_HOME", str(REPOSITORY / ".ansible" / name)),),
        )
        for name in found
        if name not in APART
    )


STAGES = (
    Stage("inventory, roles and lab, without machines", (PYTHON, "-m", "pytest", "tests/unit")),
    Stage(
        "rules, alerts and dashboards, with a real Prometheus",
        (PYTHON, "-m", "pytest", "tests/monitoring"),
    ),
    Stage(
        "the deployment's manifests, without a cluster",
        (PYTHON, "-m", "pytest", "tests/deploy", "--ignore=tests/deploy/test_checkov.py"),
    ),
    Stage(
        "checkov over the deployment's manifests",
        (PYTHON, "-m", "pytest", "tests/deploy/test_checkov.py"),
        slow=True,
    ),
    Stage("the server on loopback", (SERVER_PYTHON, "-m", "pytest", "tests/server")),
    Stage(
        "molecule test -s site: check, converge, idempotence, verify",
        (".venv/bin/molecule", "test", "-s", "site"),
        root=True,
    ),
    *roles(),
    Stage(
        "make up and make down", (PYTHON, "-m", "pytest", "tests/lab/test_make_up.py"), root=True
    ),
    Stage(
        "100 faults into the server with each store",
        (SERVER_PYTHON, "-m", "pytest", "tests/server/test_faults.py"),
        root=True,
        slow=True,
        settings=(("T2V_FAULT_ROUNDS", "100"),),
    ),
    Stage(
        "the site on the newest ansible-core",
        (PYTHON, "-m", "pytest", "tests/lab/test_newest_core.py"),
        root=True,
        slow=True,
    ),
    Stage(
        "machines of every kind: vm with NFS, Python 2.7",
        (PYTHON, "-m", "pytest", "tests/lab/test_kinds.py"),
        root=True,
        slow=True,
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


def run(stage: Stage, environment: dict[str, str], slow: bool) -> tuple[str, str, float]:
    """Run one stage; returns its title, how it ended, and seconds."""
    if stage.slow and not slow:
        return stage.title, "left out: make test-all", 0.0
    if stage.root and os.geteuid() != 0:
        return stage.title, "SKIPPED: needs root", 0.0
    print(f"\n==> {stage.title}", flush=True)
    started = time.monotonic()
    done = subprocess.run(
        stage.command,
        cwd=REPOSITORY,
        env=environment | dict(stage.settings),
        stdout=subprocess.PIPE if stage.beside else None,
        stderr=subprocess.STDOUT if stage.beside else None,
        check=False,
        timeout=3600,
    )
    if stage.beside:
        text = done.stdout.decode(errors="replace")
        print(f"\n==> {stage.title}: its output\n{text}", flush=True)
    word = "passed" if done.returncode == 0 else f"FAILED (status {done.returncode})"
    return stage.title, word, time.monotonic() - started


def main() -> int:
    """Run the stages; the exit status is 0 when all that could run passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="the slow stages too")
    options = parser.parse_args()
    # molecule looks for ansible's programs on the path, as in an activated environment.
    environment = {**os.environ, "PATH": f"{REPOSITORY}/.venv/bin:{os.environ['PATH']}"}
    if not sys.stdout.isatty():
        environment |= {"NO_COLOR": "1", "PY_COLORS": "0", "ANSIBLE_NOCOLOR": "1"}
    install_programs()
    results: list[tuple[str, str, float]] = []
    for together, stages in itertools.groupby(STAGES, key=lambda stage: stage.beside):
        with ThreadPoolExecutor(LANES if together else 1) as pool:
            run_one = functools.partial(run, environment=environment, slow=options.all)
            results += pool.map(run_one, stages)
    print("\nStages:")
    for title, word, seconds in results:
        print(f"  {word:<24} {seconds:7.1f} s  {title}")
    counts = [
        sum(word.startswith(kind) for _, word, _ in results)
        for kind in ("passed", "FAILED", "SKIPPED")
    ]
    print("stages: {} passed, {} failed, {} skipped".format(*counts), flush=True)
    # In CI a stage that could not run is not a pass.
    return 1 if counts[1] or (counts[2] and os.environ.get("CI")) else 0


if __name__ == "__main__":
    sys.exit(main())
