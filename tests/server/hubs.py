"""Stand-ins for model hubs on loopback, as far as a download needs them.

``Hub`` answers as the Hugging Face Hub's documented HTTP API does, ``Scope`` as ModelScope's own
client (modelscope/hub/api.py, file_download.py) expects. Neither hub was asked.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"


class _Hub(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, handler: type[http.server.BaseHTTPRequestHandler], model: Path) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.model = model
        self.commit = COMMIT
        self.token: str | None = None
        self.asked = list[tuple[str, str, str | None]]()  # method, path, range
        self.break_after: int | None = None  # bytes of an answer, once a file
        self.lie_about: str | None = None
        self.broken = set[str]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self) -> list[Path]:
        return sorted(path for path in self.model.rglob("*") if path.is_file())

    def sha256(self, path: str) -> str:
        content = (self.model / path).read_bytes()
        return hashlib.sha256(content + b"!" * (path == self.lie_about)).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: _Hub

    def setup(self) -> None:
        super().setup()
        assert isinstance(self.server, _Hub)
        self.hub = self.server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.asked.append((self.command, self.path, self.headers["Range"]))
        if self.hub.token and self.headers["Authorization"] != f"Bearer {self.hub.token}":
            self.say(401, {"error": "Invalid username or password."})
            return
        self.answer()

    def answer(self) -> None:
        raise NotImplementedError

    def say(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def send_file(self, path: str) -> None:
        content = (self.hub.model / path).read_bytes()
        begin, status = 0, 200
        if wanted := self.headers["Range"]:
            begin, status = int(wanted.removeprefix("bytes=").partition("-")[0]), 206
        part = content[begin:]
        self.send_response(status)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{self.hub.sha256(path)}"')
        self.send_header("X-Repo-Commit", self.hub.commit)
        self.send_header("X-Linked-Etag", f'"{self.hub.sha256(path)}"')
        self.send_header("X-Linked-Size", str(len(content)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command != "GET":
            return
        at = self.hub.break_after
        if at is not None and len(part) > at and path not in self.hub.broken:
            self.hub.broken.add(path)
            self.wfile.write(part[:at])
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(part)


class _HuggingFaceHandler(_Handler):
    def answer(self) -> None:
        path = urllib.parse.urlsplit(self.path).path
        if path.startswith(f"/api/models/{NAME}"):
            siblings = []
            for file in self.hub.files():
                name = str(file.relative_to(self.hub.model))
                one: dict[str, object] = {"rfilename": name, "size": file.stat().st_size}
                if name.endswith(".safetensors"):
                    one["lfs"] = {
                        "sha256": self.hub.sha256(name), "size": file.stat().st_size,
                        "pointerSize": 134,
                    }  # fmt: skip
                siblings.append(one)
            self.say(200, {"id": NAME, "sha": self.hub.commit, "siblings": siblings})
        elif path.startswith(f"/{NAME}/resolve/{self.hub.commit}/"):
            self.send_file(path.removeprefix(f"/{NAME}/resolve/{self.hub.commit}/"))
        else:
            self.say(404, {"error": "Repository not found"})


class _ModelScopeHandler(_Handler):
    def answer(self) -> None:
        split = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(split.query))
        if split.path == f"/api/v1/models/{NAME}/repo/files":
            files = [
                {
                    "Path": str(file.relative_to(self.hub.model)), "Name": file.name,
                    "Type": "blob", "Size": file.stat().st_size, "Revision": self.hub.commit,
                    "Sha256": self.hub.sha256(str(file.relative_to(self.hub.model))),
                }
                for file in self.hub.files()
            ]  # fmt: skip
            self.say(200, {"Code": 200, "Data": {"Files": files}})
        elif split.path == f"/api/v1/models/{NAME}/repo" and query["Revision"] == self.hub.commit:
            self.send_file(query["FilePath"])
        else:
            self.say(404, {"Code": 10010205001, "Message": "not found"})


@contextmanager
def hub(kind: str, model: Path) -> Iterator[_Hub]:
    """A hub of ``kind`` that has ``model`` as NAME."""
    handler = _HuggingFaceHandler if kind == "huggingface" else _ModelScopeHandler
    with _Hub(handler, model) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
