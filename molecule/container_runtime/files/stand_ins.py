#!/usr/bin/env python3
"""Stand-ins for what these machines cannot download, made anew for each lab.

``make``: Docker's package repository (https://docs.docker.com/engine/install/debian/): the
packages docker-ce, docker-ce-cli and containerd.io of the pinned version and of a later one,
around Debian's own engine, signed with a throw-away key; and
the archive of cri-dockerd as its releases have it, around the script beside this one.
``serve``: both over HTTP on port 8000, and on port 5003 a registry's greeting over TLS with
the certificate of a CA that nobody trusts.
"""

import hashlib
import http.server
import json
import os
import re
import ssl
import subprocess
import sys
import tarfile
import threading
from email.utils import formatdate
from pathlib import Path

TOP = Path("/srv/stand-ins")
SUITE = TOP / "docker/linux/debian/dists/bookworm"
POOL = SUITE / "pool/stable/amd64"
PINNED = {"docker-ce": "5:24.0.2-1~debian.12~bookworm", "containerd.io": "1.6.21-1"}
LATER = {"docker-ce": "5:24.0.9-1~debian.12~bookworm", "containerd.io": "1.6.33-1"}
RELEASE = "cri-dockerd-0.3.11.amd64.tgz"


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def package(name: str, version: str, needs: str, *, engine: bool = False) -> str:
    """Build one package, with ``engine`` around Debian's Docker; its paragraph in the list."""
    root = TOP / "build" / f"{name}-{version}"
    if engine:
        # Docker's own has dockerd in /usr/bin, Debian's in /usr/sbin.
        subprocess.run(["apt-get", "--quiet", "download", "docker.io"], cwd="/opt", check=True)
        [debian] = Path("/opt").glob("docker.io_*.deb")
        root.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg-deb", "--raw-extract", debian, root], check=True)
        (root / "usr/bin/dockerd").symlink_to("/usr/sbin/dockerd")
        fields = (root / "DEBIAN/control").read_text()
        found = re.search(r"^Depends: (.*)$", fields, re.MULTILINE)
        assert found
        needs += ", " + found[1]
    (root / "DEBIAN").mkdir(parents=True, exist_ok=True)
    control = (
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: lab <lab@invalid>\n"
        f"Depends: {needs}\nDescription: STAND-IN for Docker's {name}, around Debian's\n"
    )
    (root / "DEBIAN/control").write_text(control)
    file = POOL / f"{name}_{version.split(':')[-1]}_amd64.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", root, file], check=True
    )
    size = file.stat().st_size
    where = file.relative_to(TOP / "docker/linux/debian")
    return f"{control}Filename: {where}\nSize: {size}\nSHA256: {sha256(file)}\n"


def make() -> None:
    """Build everything; artifacts.json last, as the sign that all is there."""
    binary = SUITE / "stable/binary-amd64"
    for place in (POOL, binary, TOP / "gnupg", TOP / "github"):
        place.mkdir(parents=True, exist_ok=True)
    (TOP / "gnupg").chmod(0o700)
    listed = [
        paragraph
        for versions in (PINNED, LATER)
        for paragraph in (
            package("containerd.io", versions["containerd.io"], "containerd, runc"),
            package("docker-ce-cli", versions["docker-ce"], "libc6"),
            package(
                "docker-ce",
                versions["docker-ce"],
                "containerd.io, docker-ce-cli",
                engine=versions is PINNED,
            ),
        )
    ]
    packages = binary / "Packages"
    packages.write_text("\n".join(listed))
    release = SUITE / "Release"
    release.write_text(
        "Origin: STAND-IN\nLabel: STAND-IN\nSuite: bookworm\nCodename: bookworm\n"
        f"Date: {formatdate(usegmt=True)}\nArchitectures: amd64\nComponents: stable\nSHA256:\n"
        f" {sha256(packages)} {packages.stat().st_size} {packages.relative_to(SUITE)}\n"
    )
    gpg = ["gpg", "--homedir", TOP / "gnupg", "--batch", "--yes", "--quiet"]
    name = "Throw-away key of a lab <lab@invalid>"
    subprocess.run(
        [*gpg, "--passphrase", "", "--quick-gen-key", name, "rsa2048", "sign", "1d"], check=True
    )
    subprocess.run([*gpg, "--clearsign", "--output", SUITE / "InRelease", release], check=True)
    key = TOP / "docker/linux/debian/gpg"
    subprocess.run([*gpg, "--armor", "--export", "--output", key], check=True)
    archive = TOP / "github/Mirantis/cri-dockerd/releases/download/v0.3.11" / RELEASE
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(Path(__file__).with_name("cri-dockerd"), "cri-dockerd/cri-dockerd")
    table = {
        "docker_apt_key": {
            "version": "stand-in",
            "mirror": "docker",
            "path": "linux/debian/gpg",
            "sha256": sha256(key),
        },
        "cri_dockerd": {
            "version": "stand-in",
            "mirror": "github",
            "path": str(archive.relative_to(TOP / "github")),
            "sha256": sha256(archive),
        },
    }
    partial = TOP / "artifacts.json.part"
    partial.write_text(json.dumps(table))
    partial.replace(TOP / "artifacts.json")


class Greeting(http.server.BaseHTTPRequestHandler):
    """A registry that lets everybody in and has nothing."""

    def do_GET(self) -> None:
        """Answer as a registry to /v2/, and with 404 to the rest."""
        self.send_response(200 if self.path == "/v2/" else 404)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        """The same without a body, which there is not."""
        self.do_GET()


def serve() -> None:
    """Serve the files, and the stranger's registry, until stopped."""
    os.chdir(TOP)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("/opt/registry.crt", "/opt/registry.key")
    stranger = http.server.ThreadingHTTPServer(("", 5003), Greeting)
    stranger.socket = context.wrap_socket(stranger.socket, server_side=True)
    threading.Thread(target=stranger.serve_forever, daemon=True).start()
    files = http.server.SimpleHTTPRequestHandler
    http.server.ThreadingHTTPServer(("", 8000), files).serve_forever()


if __name__ == "__main__":
    {"make": make, "serve": serve}[sys.argv[1]]()
