"""Base images, each built once, kept in the cache under the hash of its recipe.

An image is built beside its place and renamed into it when whole: a killed build leaves
only a ``.part`` that the next one removes.
"""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lab.errors import LabError
from lab.settings import REPOSITORY, Paths
from lab.shell import run, run_with_retries, succeeds
from lab.steps import step

# Another Debian mirror than mmdebstrap's own choice.
MIRROR = os.environ.get("T2V_LAB_MIRROR") or ""
# PyTorch publishes its builds for the CPU here; asked when pip does not find them by itself.
TORCH_INDEX = os.environ.get("T2V_TORCH_INDEX") or "https://download.pytorch.org/whl/cpu"
CONTAINER_BASE = "lab/python-torch:2.13.0"

_MACHINE = [
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "openssh-server",
    "iproute2",
    "sudo",
    "ca-certificates",
]
_KERNEL = ["linux-image-cloud-amd64", "initramfs-tools"]
_PYTHON27 = ["python2.7-minimal", "libpython2.7-stdlib"]
_KEEP_SECONDS = 2 * 24 * 3600
_CONTAINER = ("python3", "python3-pip", "ca-certificates")
_TORCH_LOCK = REPOSITORY / "files/server/requirements-torch-cpu.txt"

# What firmware and a kernel of its own would give a machine, and nspawn does not: writable
# control groups for its container engine, /dev/kmsg for the kubelet, and the settings of the
# kernel that a kubelet writes: private copies, so that this machine's stay as they are.
_HOST_UNIT = """\
[Unit]
Description=Give this machine what a kernel of its own would have given it
DefaultDependencies=no
Before=sysinit.target
ConditionVirtualization=container

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'for m in /sys/fs/cgroup /sys/fs/cgroup/*; do \\
  mountpoint -q "$m" && mount -o remount,bind,rw "$m"; done; \\
  [ -e /dev/kmsg ] || mknod /dev/kmsg c 1 11; \\
  mkdir -p /run/t2v-sysctl; cd /proc/sys; for f in vm/overcommit_memory vm/panic_on_oom \\
  kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do \\
  c=/run/t2v-sysctl/$(echo $$f | tr / .); mountpoint -q $$f || { cat $$f > $$c && mount --bind $$c \
$$f; }; done; true'

[Install]
WantedBy=sysinit.target
"""
_FSTAB = "/dev/vda / ext4 defaults 0 1\n"
_SYSTEM_CONF = "[Manager]\nDefaultTimeoutStopSec=10s\n"


@dataclass(frozen=True)
class Recipe:
    """How a machine's file system is made: Debian suite, packages, and what is special.

    kernel: the kind whose image has the kernel that this one boots; none: it shares the host's.
    """

    suite: str
    packages: tuple[str, ...]
    kernel: str = ""


RECIPES = {
    "debian12": Recipe("bookworm", (*_MACHINE, "python3")),
    "py27": Recipe("bullseye", (*_MACHINE, *_PYTHON27)),
    # Emulated: what a package manager would take minutes to install there is in the image.
    "vm": Recipe("bookworm", (*_MACHINE, *_KERNEL, "nfs-kernel-server", "python3"), kernel="vm"),
    # Debian 11 with the kernel of Debian 12: its own is no longer on the mirrors.
    "py27-vm": Recipe("bullseye", (*_MACHINE, "kmod", "nfs-common", *_PYTHON27), kernel="vm"),
}


def machine_image(paths: Paths, kind: str) -> Path:
    """Directory with ``rootfs/`` (and ``vmlinuz``, ``initrd.img`` of a vm) for this kind."""
    recipe = RECIPES[kind]

    def build(place: Path) -> None:
        place.mkdir()
        rootfs = place / "rootfs"
        _bootstrap(rootfs, recipe.suite, recipe.packages)
        _furnish(rootfs)
        if recipe.kernel == kind:
            _take_kernel(rootfs, place)
        elif recipe.kernel:
            _borrow_kernel(machine_image(paths, recipe.kernel), rootfs, place)

    key = _machine_key(recipe)
    return _cached(paths, kind, key, f"Base image {kind} (Debian {recipe.suite})", build)


def prune(paths: Paths, in_use: set[Path]) -> None:
    """Remove cached images that a newer recipe has replaced and no machine stands on."""
    current = {f"{kind}-{_digest(_machine_key(recipe))}" for kind, recipe in RECIPES.items()}
    current.add(f"container-base-{_digest(_container_key())}.tar")
    # Whole images only: what another lab is building beside them has a longer name.
    mounts = _all_mounts()
    whole = re.compile(rf"({'|'.join([*RECIPES, 'container-base'])})-[0-9a-f]{{12}}(\.tar)?")
    for place in paths.cache.iterdir():
        if not whole.fullmatch(place.name) or place.name in current or place in in_use:
            continue
        # Young ones may be another checkout's; mounted ones a lab's that lies elsewhere.
        if time.time() - place.stat().st_mtime > _KEEP_SECONDS and str(place) not in mounts:
            _remove_tree(place)


def mirror(image: Path) -> tuple[str, int]:
    """Host name and port of the package mirror that machines of this image ask."""
    lines = (image / "rootfs/etc/apt/sources.list").read_text().splitlines()
    url = next(urlsplit(line.split()[1]) for line in lines if line.startswith("deb "))
    return str(url.hostname), url.port or (443 if url.scheme == "https" else 80)


def container_base(paths: Paths) -> Path:
    """A `docker save` archive of CONTAINER_BASE: Debian, Python 3.11 and PyTorch for CPU.

    The lab's stand-in for the public image that ``inventory/`` names.
    """

    def build(place: Path) -> None:
        rootfs = place.with_suffix(".rootfs")
        _remove_tree(rootfs)
        _bootstrap(rootfs, "bookworm", _CONTAINER)
        target = rootfs / "usr/local/lib/python3.11/dist-packages"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
        pip += ["--disable-pip-version-check", "--root-user-action=ignore", "--require-hashes"]
        pip += ["--only-binary=:all:", "--python-version", "3.11"]
        pip += ["--platform", "manylinux_2_28_x86_64", "--target", str(target)]
        pip += ["-r", str(_TORCH_LOCK)]
        if not succeeds(pip):
            # Not where this machine's pip looks by itself; the hash says that it is the same.
            pip += ["--extra-index-url", TORCH_INDEX]
            run_with_retries(pip, "installing PyTorch into the container base image")
        # Behind a proxy that opens TLS, a build inside the lab trusts what this machine trusts.
        shutil.copy(_trusted(), rootfs / "etc/ssl/certs/ca-certificates.crt")
        (rootfs / "etc/pip.conf").write_text(
            "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n" + _pip_index()
        )
        _docker_archive(rootfs, place)
        _remove_tree(rootfs)

    return _cached(
        paths,
        "container-base",
        _container_key(),
        f"Container base image {CONTAINER_BASE}",
        build,
        ".tar",
    )


def _all_mounts() -> str:
    found = []
    for path in Path("/proc").glob("[0-9]*/mounts"):
        with suppress(OSError):  # the process has ended
            found.append(path.read_text())
    return "\n".join(found)


def _machine_key(recipe: Recipe) -> str:
    kernel = RECIPES.get(recipe.kernel)
    return repr((recipe, kernel, MIRROR, _HOST_UNIT, _SYSTEM_CONF))


def _container_key() -> str:
    return repr((_CONTAINER, MIRROR, _TORCH_LOCK.read_text(), _trusted().read_bytes()))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def _cached(
    paths: Paths, name: str, key: str, title: str, build: Callable[[Path], None], suffix: str = ""
) -> Path:
    digest = _digest(key)
    place = paths.cache / f"{name}-{digest}{suffix}"
    if not place.exists():
        paths.cache.mkdir(parents=True, exist_ok=True)
        partial = paths.cache / f"{name}-{digest}.{paths.name}.part"
        _remove_tree(partial)
        with step(f"{title}: built once, then cached"):
            build(partial)
            try:
                partial.rename(place)
            except OSError:
                # Another lab built the same one meanwhile: take that.
                _remove_tree(partial)
    return place


def _bootstrap(rootfs: Path, suite: str, packages: tuple[str, ...]) -> None:
    # In a mount namespace of its own: what it mounts goes with it, also when it is killed.
    command = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={','.join(packages)}",
        suite,
        str(rootfs),
        *([MIRROR] if MIRROR else []),
    ]
    for number in (1, 2, 3):
        _remove_tree(rootfs)
        try:
            run(command)
            return
        except LabError as error:
            if number == 3:
                raise LabError(
                    f"Debian {suite} could not be fetched in 3 attempts ({error}); is its mirror "
                    "reachable (T2V_LAB_MIRROR names another one), is there room?"
                ) from error
            time.sleep(5 * number)


def _furnish(rootfs: Path) -> None:
    units = rootfs / "etc/systemd/system"
    (units / "t2v-host.service").write_text(_HOST_UNIT)
    wanted = units / "sysinit.target.wants"
    wanted.mkdir(exist_ok=True)
    (wanted / "t2v-host.service").symlink_to("../t2v-host.service")
    (rootfs / "etc/systemd/system.conf.d").mkdir(exist_ok=True)
    (rootfs / "etc/systemd/system.conf.d/stop.conf").write_text(_SYSTEM_CONF)
    run(["systemctl", "--quiet", f"--root={rootfs}", "enable", "systemd-networkd", "ssh"])
    # Each machine gets keys and an id of its own.
    for path in (rootfs / "etc/ssh").glob("ssh_host_*"):
        path.unlink()
    (rootfs / "etc/machine-id").write_text("")


def _take_kernel(rootfs: Path, place: Path) -> None:
    (rootfs / "etc/fstab").write_text(_FSTAB)
    for kind, name in (("vmlinuz", "vmlinuz"), ("initrd.img", "initrd.img")):
        versions = sorted((rootfs / "boot").glob(f"{kind}-*"))
        if not versions:
            raise LabError(f"Debian's kernel package left no {kind} in /boot of the vm image")
        shutil.copy(versions[-1], place / name)


def _borrow_kernel(lender: Path, rootfs: Path, place: Path) -> None:
    (rootfs / "etc/fstab").write_text(_FSTAB)
    shutil.copytree(lender / "rootfs/lib/modules", rootfs / "lib/modules", dirs_exist_ok=True)
    for name in ("vmlinuz", "initrd.img"):
        shutil.copy(lender / name, place / name)


def _docker_archive(rootfs: Path, place: Path) -> None:
    """Write ``rootfs`` as one layer in the format of `docker save` (Docker image spec v1.2)."""
    layer = place.with_suffix(".layer")
    run(
        [
            "tar",
            "--create",
            "--file",
            str(layer),
            "--numeric-owner",
            "--sort=name",
            "--exclude=./var/cache/apt/*",
            "--exclude=./var/lib/apt/lists/*",
            "-C",
            str(rootfs),
            ".",
        ]
    )
    digest = hashlib.sha256()
    with layer.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Cmd": ["python3"],
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest.hexdigest()}"]},
            "history": [{"created_by": "sanchuang.t2v lab"}],
        }
    ).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps(
        [{"Config": name, "RepoTags": [CONTAINER_BASE], "Layers": ["layer.tar"]}]
    ).encode()
    with tarfile.open(place, "w") as archive:
        for member, content in ((name, config), ("manifest.json", manifest)):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        archive.add(layer, "layer.tar")
    layer.unlink()


def _trusted() -> Path:
    path = Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")
    if not path.is_file():
        raise LabError(f"{path} does not exist; install ca-certificates")
    return path


def _pip_index() -> str:
    """This machine's own choice of package index, if it made one that a container can reach."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
        check=False,
    )
    url = os.environ.get("PIP_INDEX_URL") or done.stdout.strip()
    return f"index-url = {url}\n" if url.startswith("http") else ""


def _remove_tree(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
