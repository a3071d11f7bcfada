"""What of a host's files must be the same in two labs, and what may differ for a reason."""

from pathlib import Path

import pytest

from host_files import differences, exception, read
from lab import machine
from lab.settings import Paths


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """A lab of two machines over one base image."""
    monkeypatch.setenv("T2V_LAB_STATE", str(tmp_path / "state"))
    paths = Paths("files")
    image = tmp_path / "image"
    (image / "rootfs/etc").mkdir(parents=True)
    (image / "rootfs/etc/motd").write_text("hello")

    class Described:
        image = str(tmp_path / "image")

    for host in ("a", "b"):
        upper = paths.machine(host) / "upper"
        (upper / "etc/nginx").mkdir(parents=True)
        (upper / "etc/nginx/nginx.conf").write_text("listen 80;")
        (upper / "var/log").mkdir(parents=True)
        (upper / "var/log/syslog").write_text(host)
    monkeypatch.setattr(machine, "load", lambda *_: Described())
    return paths


def both(paths: Paths) -> list[tuple[str, str, str, str]]:
    return differences({"x": read(paths, "a")}, {"x": read(paths, "b")})


def test_logs_may_differ_and_a_file_copied_up_unchanged_is_no_difference(paths: Paths) -> None:
    copied = paths.machine("b") / "upper/etc/motd"
    copied.write_text("hello")
    assert both(paths) == []


def test_content_mode_and_absence_are_differences(paths: Paths) -> None:
    first, second = (paths.machine(host) / "upper/etc" for host in "ab")
    (second / "nginx/nginx.conf").write_text("listen 81;")
    assert [path for _, path, _, _ in both(paths)] == ["/etc/nginx/nginx.conf"]
    (second / "nginx/nginx.conf").write_text("listen 80;")
    (second / "nginx/nginx.conf").chmod(0o600)
    assert [path for _, path, _, _ in both(paths)] == ["/etc/nginx/nginx.conf"]
    (second / "nginx/nginx.conf").chmod(0o644)
    (second / "left").write_text("")
    (first / "missing").symlink_to("nowhere")
    assert [(path, bool(was), bool(now)) for _, path, was, now in both(paths)] == [
        ("/etc/left", False, True),
        ("/etc/missing", True, False),
    ]


def test_of_a_secret_the_mode_must_agree_and_the_content_need_not(paths: Paths) -> None:
    for host, secret in (("a", "one"), ("b", "two")):
        path = paths.machine(host) / "upper/etc/redis/redis.conf"
        path.parent.mkdir()
        path.write_text(secret)
        path.chmod(0o640)
    assert both(paths) == []
    path.chmod(0o644)
    assert [path for _, path, _, _ in both(paths)] == ["/etc/redis/redis.conf"]


def test_dpkg_may_have_noted_the_same_packages_in_another_order(paths: Paths) -> None:
    for host, text in (("a", "Package: x\n\nPackage: y\n"), ("b", "Package: y\n\nPackage: x\n")):
        path = paths.machine(host) / "upper/var/lib/dpkg/status"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert both(paths) == []


def test_what_roles_write_is_no_exception() -> None:
    for path in ("/etc/nginx/nginx.conf", "/etc/nftables.conf", "/etc/docker/daemon.json"):
        assert exception(path) is None
