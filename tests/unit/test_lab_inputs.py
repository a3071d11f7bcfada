"""Bad input and bad luck, as a user of the lab meets them: one clear sentence each."""

import multiprocessing
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from lab import cli, lab, network, settings, shell
from lab.errors import LabError
from lab.hosts import read_site
from lab.settings import REPOSITORY, Paths, Scenario, load_scenario

SCENARIO = Scenario(directory=REPOSITORY / "molecule" / "site")


def inventory(tmp_path: Path, hosts: str, **changes: str) -> Path:
    """A copy of the documented site's variables with other hosts."""
    (tmp_path / "group_vars" / "all").mkdir(parents=True)
    for path in (REPOSITORY / "inventory/group_vars/all").iterdir():
        text = path.read_text()
        for key, value in changes.items():
            lines = text.splitlines()
            text = "\n".join(
                f"{key}: {value}" if line.startswith(f"{key}:") else line for line in lines
            )
        (tmp_path / "group_vars" / "all" / path.name).write_text(text)
    (tmp_path / "hosts.yml").write_text(hosts)
    return tmp_path


def refusal(path: Path) -> str:
    with pytest.raises(LabError) as caught:
        read_site(path, SCENARIO)
    return str(caught.value)


def test_the_documented_site_is_read_from_inventory() -> None:
    site = read_site(REPOSITORY / "inventory", SCENARIO)
    assert {host.name: host.address for host in site.hosts} == {
        "master": "192.168.0.20",
        "worker1": "192.168.0.21",
        "worker2": "192.168.0.22",
        "nfs-server": "192.168.0.36",
        "harbor": "192.168.0.34",
        "prometheus": "192.168.0.33",
        "ansible": "192.168.0.30",
    }
    assert (str(site.gateway), str(site.subnet), site.interface) == (
        "192.168.0.2",
        "192.168.0.0/24",
        "ens33",
    )


def test_an_address_given_twice_names_both_hosts(tmp_path: Path) -> None:
    hosts = "all: {hosts: {a: {ansible_host: 192.168.0.9}, b: {ansible_host: 192.168.0.9}}}\n"
    said = refusal(inventory(tmp_path, hosts))
    assert "192.168.0.9 is given twice" in said
    assert "to a and to b" in said


def test_a_host_written_twice_is_not_silently_halved(tmp_path: Path) -> None:
    hosts = (
        "all:\n  hosts:\n    a: {ansible_host: 192.168.0.9}\n    a: {ansible_host: 192.168.0.8}\n"
    )
    said = refusal(inventory(tmp_path, hosts))
    assert "duplicate" in said
    assert " a " in said


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("192.168.0.2", "gateway"),
        ("10.0.0.1", "outside of t2v_subnet 192.168.0.0/24"),
        ("192.168.0.999", "not an IPv4 address"),
    ],
)
def test_an_impossible_address_is_refused(tmp_path: Path, address: str, words: str) -> None:
    said = refusal(inventory(tmp_path, f"all: {{hosts: {{a: {{ansible_host: {address}}}}}}}\n"))
    assert words in said
    assert re.search(r"\ba\b", said)


def test_a_host_of_the_scenario_must_be_in_the_inventory(tmp_path: Path) -> None:
    scenario = Scenario(directory=SCENARIO.directory, kinds={"nowhere": "vm"})
    with pytest.raises(LabError, match=r"lab\.yml names nowhere"):
        read_site(REPOSITORY / "inventory", scenario)


def test_an_unknown_scenario_kind_or_key_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LabError, match="no scenario 'nosuch'"):
        load_scenario("nosuch")
    monkeypatch.setattr(settings, "REPOSITORY", tmp_path)
    (tmp_path / "molecule/x").mkdir(parents=True)
    (tmp_path / "molecule/x/molecule.yml").touch()
    (tmp_path / "molecule/x/lab.yml").write_text("kinds: {worker1: windows}\n")
    with pytest.raises(LabError, match="makes worker1 a 'windows'; set one of debian12"):
        load_scenario("x")
    (tmp_path / "molecule/x/lab.yml").write_text("machines: 3\n")
    with pytest.raises(LabError, match="has 'machines', which the lab does not know"):
        load_scenario("x")


def test_a_name_that_the_kernel_would_cut_is_refused() -> None:
    with pytest.raises(LabError, match="cannot be a lab's name"):
        Paths("Üben")


def test_without_root_nothing_is_begun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("T2V_LAB_CACHE", str(tmp_path / "cache"))
    assert cli.main(["--name", "unit", "up"]) == 1
    assert "run it as root" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_is_said_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("T2V_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lab, "_FREE_GIB", 10**6)
    site = read_site(REPOSITORY / "inventory", SCENARIO)
    with pytest.raises(LabError, match=r"GiB free and the lab needs 1000000; make room, or set"):
        lab.check_space(Paths("unit"), site)


@pytest.mark.skipif(os.geteuid() != 0, reason="the lock is taken by root only")
def test_the_second_of_two_runs_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("T2V_LAB_CACHE", str(tmp_path))
    context = multiprocessing.get_context("fork")
    taken, done = context.Event(), context.Event()

    def first() -> None:
        with lab.locked(Paths("unit")):
            taken.set()
            done.wait(30)

    process = context.Process(target=first)
    process.start()
    try:
        assert taken.wait(30)
        expected = pytest.raises(LabError, match=f"being changed by process {process.pid}")
        with expected, lab.locked(Paths("unit")):
            pass
    finally:
        done.set()
        process.join(30)
    with lab.locked(Paths("unit")):
        pass


def test_an_occupied_link_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2V_LAB_UPLINK", "127.0.0.0/30")
    with pytest.raises(LabError, match=r"=127\.0\.0\.0/30 cannot be used: .*occupied"):
        network._free_link()
    monkeypatch.setenv("T2V_LAB_UPLINK", "100.127.9.0/24")
    with pytest.raises(LabError, match="must be a /30"):
        network._free_link()


def test_a_resolver_that_the_machines_cannot_reach_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = read_site(REPOSITORY / "inventory", SCENARIO)
    monkeypatch.delenv("T2V_LAB_NAMESERVER", raising=False)
    monkeypatch.setattr(Path, "read_text", lambda _: "nameserver 192.168.0.1\nnameserver ::1\n")
    with pytest.raises(LabError, match=r"inside of the site.s own 192\.168\.0\.0/24"):
        network.nameservers(site)
    monkeypatch.setattr(Path, "read_text", lambda _: "nameserver 192.168.0.1\nnameserver 9.9.9.9\n")
    assert network.nameservers(site) == ["9.9.9.9"]
    monkeypatch.setenv("T2V_LAB_NAMESERVER", "10.1.1.1 10.1.1.2")
    assert network.nameservers(site) == ["10.1.1.1", "10.1.1.2"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"t2v_gateway": "router"}, "t2v_subnet or t2v_gateway"),
        ({"t2v_subnet": "192.168.0.5/24"}, "t2v_subnet or t2v_gateway"),
        ({"t2v_gateway": "192.168.9.1"}, "outside of t2v_subnet"),
    ],
)
def test_an_impossible_network_is_refused(
    tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    hosts = "all: {hosts: {a: {ansible_host: 192.168.0.9}}}\n"
    assert words in refusal(inventory(tmp_path, hosts, **changes))


def test_a_name_that_no_machine_can_have_is_refused(tmp_path: Path) -> None:
    hosts = "all: {hosts: {worker_1: {ansible_host: 192.168.0.9}}}\n"
    assert "'worker_1'" in refusal(inventory(tmp_path, hosts))


def test_a_missing_program_is_named() -> None:
    with pytest.raises(LabError, match="lacks the program 'no-such-program'"):
        shell.run(["no-such-program"])
    assert not shell.succeeds(["no-such-program"])


def test_a_mirror_that_is_away_for_a_moment_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    script = f"test -e {tmp_path}/tried || {{ touch {tmp_path}/tried; echo away >&2; exit 100; }}"
    shell.run_with_retries(["sh", "-c", script], "apt-get update")
    with pytest.raises(LabError, match="failed 4 times; is the package mirror reachable"):
        shell.run_with_retries(["sh", "-c", "exit 100"], "apt-get update")


def test_help_of_the_makefile_lists_the_documented_commands() -> None:
    shown = subprocess.run(
        ["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    for command in ("up", "down", "status", "ssh", "serve", "test", "lint"):
        assert f"make {command} " in shown
