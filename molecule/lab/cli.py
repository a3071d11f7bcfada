"""What a person (or a Makefile, or molecule's create and destroy) types."""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from lab import cgroups, lab, machine, network, runtime, steps
from lab.errors import LabError
from lab.hosts import Site, read_site
from lab.settings import REPOSITORY, Paths, Scenario, load_scenario
from lab.steps import say, step


def main(arguments: list[str] | None = None) -> int:
    """Parse and carry out; what a user can mend becomes one line and status 1."""
    options = _parser().parse_args(arguments)
    # A root that came by plain `su` has no sbin on its path.
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    # Ctrl-C and a polite kill unwind alike, so that a step says that it was cut off.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return int(options.action(options))
    except LabError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    except (OSError, subprocess.SubprocessError) as error:
        print(f"ERROR: {error}; repeat, or `make down` first", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; `make up` goes on from here, `make down` cleans up", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lab", description="The documented site on one machine.")
    parser.add_argument("--name", default=os.environ.get("T2V_LAB") or "site", help="lab's name")
    parser.add_argument("--scenario", default="site", help="folder under molecule/")
    parser.add_argument("--inventory", type=Path, default=REPOSITORY / "inventory")
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def add(name: str, action: object, text: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text)
        sub.set_defaults(action=action)
        return sub

    up = add("up", _up, "create the machines and run site.yml on them")
    up.add_argument("--runtime", help="docker (where nothing is said) or kubernetes")
    up.add_argument("--bundle", help="directory of what the cluster is made of (docs/bundle.md)")
    up.add_argument("extra", nargs="*", metavar="-- OPTION", help="options for ansible-playbook")
    add("create", _create, "create the machines only")
    add("down", _down, "remove every trace of the lab, the image cache aside")
    add("status", _status, "say how each machine stands")
    ssh = add("ssh", _ssh, "open a shell on a machine, or run a command there")
    ssh.add_argument("host")
    ssh.add_argument("command", nargs=argparse.REMAINDER)
    power = add("power", _power, "pull a machine's plug, or put it back")
    power.add_argument("state", choices=("off", "on"))
    power.add_argument("host")
    inner = add("run", _run, "run a command of this machine in the lab's network")
    inner.add_argument("command", nargs=argparse.REMAINDER)
    playbook = add("playbook", _playbook, "run ansible-playbook on the lab")
    playbook.add_argument("command", nargs=argparse.REMAINDER)
    return parser


def _read(options: argparse.Namespace) -> tuple[Paths, Scenario, Site]:
    scenario = load_scenario(options.scenario)
    return Paths(options.name), scenario, read_site(options.inventory, scenario)


def _create(options: argparse.Namespace) -> int:
    paths = Paths(options.name)
    with lab.locked(paths):
        paths, scenario, site = _read(options)
        lab.create(paths, scenario, site)
        lab.ansible_variables(paths, scenario, site)
    return 0


def _up(options: argparse.Namespace) -> int:
    started = time.monotonic()
    paths = Paths(options.name)
    with lab.locked(paths):
        paths, scenario, site = _read(options)
        chosen = runtime.choose(paths, options.runtime or None, options.bundle or None)
        lab.create(paths, scenario, site)
        runtime.keep(paths, chosen)
        playbook = lab.ansible_playbook(paths, scenario, site, options.inventory)
        # What stands in for hardware that the machines have not.
        for prepare in runtime.files(scenario, chosen, "prepare.yml"):
            _watch(paths, [*playbook, str(prepare)])
        command = [*playbook, "site.yml", *options.extra]
        say("==> site.yml -i inventory/")
        results = _watch(paths, command)
    if not results and not any(one.startswith(_PARTIAL) for one in options.extra):
        raise LabError("site.yml ended without a video; run it again and read its last play")
    steps.summary(time.monotonic() - started)
    say("")
    for line in results:
        say(_hint(line))
    return 0


# Options of ansible-playbook with which nobody expects a video.
_PARTIAL = ("--check", "-C", "--tags", "-t", "--skip-tags", "--list", "--syntax-check", "--limit")
_PLAY = re.compile(r"^PLAY \[(.*)\]")
# What the role verify says: the video, what is in it, and where it asked for it.
_RESULT = re.compile(r"(Video generated at /\S+\.mp4|ffprobe: [^\"']*|Asked: http\S+ at \S+)")


def _hint(line: str) -> str:
    """For who reads the end alone: where verify asked becomes where to ask for another."""
    if asked := re.match(r"Asked: (\S+) at ", line):
        return f"Ask for another: make ssh HOST=ansible, then curl '{asked[1]}'"
    return line


def _watch(paths: Paths, command: list[str]) -> list[str]:
    """Run the playbook, pass its output on, time its plays; its results are the lines kept.

    Raises LabError when it fails.
    """
    play, since = "", time.monotonic()
    results: list[str] = []
    process = lab.start_tracked(paths, command, output=subprocess.PIPE)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            if found := _PLAY.match(line) or re.match(r"^(PLAY RECAP)", line):
                if play:
                    steps.record(f"site.yml: {play}", time.monotonic() - since)
                play, since = found.group(1), time.monotonic()
            if shown := _RESULT.search(line):
                results.append(shown.group(1))
        status = process.wait()
    finally:
        cgroups.kill(paths.name, "run")
    if status != 0:
        raise LabError(
            f"site.yml failed (status {status}): the task above says why; after mending it, "
            "`make up` goes on from here"
        )
    return results


def _playbook(options: argparse.Namespace) -> int:
    paths, scenario, site = _read(options)
    _require(paths)
    command = [
        *lab.ansible_playbook(paths, scenario, site, options.inventory),
        *_plain(options.command),
    ]
    with lab.locked(paths):
        try:
            return lab.start_tracked(paths, command).wait()
        finally:
            cgroups.kill(paths.name, "run")


def _down(options: argparse.Namespace) -> int:
    paths = Paths(options.name)
    with lab.locked(paths), step(f"Lab '{paths.name}' removed"):
        lab.destroy(paths)
    return 0


def _status(options: argparse.Namespace) -> int:
    paths, _, site = _read(options)
    if not network.exists(paths):
        say(f"lab '{paths.name}' is down; `make up` builds it")
        return 1
    for host, power, ssh in lab.status(paths, site):
        say(f"{host.name:<12} {host.address:<15} {host.kind:<9} power {power:<4} ssh {ssh}")
    return 0


def _ssh(options: argparse.Namespace) -> int:
    paths, _, site = _read(options)
    _require(paths)
    address = site.host(options.host).address
    return subprocess.call([*machine.ssh_command(paths, address), *_plain(options.command)])


def _power(options: argparse.Namespace) -> int:
    paths, _, site = _read(options)
    _require(paths)
    host = site.host(options.host)
    if options.state == "off":
        machine.pull_plug(paths, host.name)
    else:
        machine.power_on(paths, host.name)
        machine.wait_for_ssh(paths, [host], 580)
    return 0


def _run(options: argparse.Namespace) -> int:
    paths = Paths(options.name)
    _require(paths)
    return _inside(paths, _plain(options.command))


def _inside(paths: Paths, command: list[str]) -> int:
    return subprocess.call(
        network.inside(paths, command), cwd=REPOSITORY, env=dict(lab.environment(paths))
    )


def _plain(command: list[str]) -> list[str]:
    return command[1:] if command[:1] == ["--"] else command


def _require(paths: Paths) -> None:
    if not network.exists(paths):
        raise LabError(f"lab '{paths.name}' is down; `make up` builds it")
