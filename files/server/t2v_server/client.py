"""The little of a client that ``t2v-server generate --server`` needs."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_TIMEOUT_SECONDS = 60.0
_PATIENCE_SECONDS = 300.0
_PAUSE_SECONDS = 1.0
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")


class ServerError(Exception):
    """What the server, or the way to it, said; one sentence."""


@dataclass(frozen=True)
class RemoteJob:
    id: str
    status: str
    progress: int
    stage: str
    seed: int
    error: str
    num_bytes: int


class Client:
    """Requests to one server; those that may be sent twice are, while it is away or full."""

    def __init__(self, url: str, token: str) -> None:
        """Ask nothing yet.

        Raises:
            ServerError: the URL is none, or the token cannot be one.
        """
        if not url.startswith(("http://", "https://")):
            raise ServerError(f"{url} is not an http:// or https:// URL")
        if token and not _TOKEN.fullmatch(token):
            raise ServerError("the token holds characters that no token has: is it the right file?")
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._answered = False  # a server that never did is a wrong URL, not one that is away

    def create(self, parameters: dict[str, str]) -> RemoteJob:
        body = urllib.parse.urlencode(parameters).encode()
        return self._job("POST", "/v1/videos", body, {"Idempotency-Key": uuid.uuid4().hex})

    def get(self, job_id: str) -> RemoteJob:
        return self._job("GET", f"/v1/videos/{job_id}")

    def cancel(self, job_id: str) -> RemoteJob:
        return self._job("POST", f"/v1/videos/{job_id}/cancel", b"")

    def download(self, job_id: str, path: Path) -> None:
        """Write the video to ``path``, all of it or an error."""
        expected = self.get(job_id).num_bytes
        with self._open("GET", f"/v1/videos/{job_id}/content") as answer, path.open("wb") as out:
            try:
                shutil.copyfileobj(answer, out)
            except (OSError, http.client.HTTPException) as error:
                raise ServerError(f"the download broke off: {error}") from error
            received = out.tell()
        if received != expected:
            raise ServerError(f"the download broke off after {received} of {expected} bytes")

    def _job(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> RemoteJob:
        with self._open(method, path, body, headers) as answer:
            try:
                return _remote_job(json.load(answer))
            except (ValueError, KeyError, TypeError, http.client.HTTPException, OSError) as error:
                raise ServerError(f"{self._url} is not such a server: {error}") from error

    def _open(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        request = urllib.request.Request(
            self._url + path, body, {**self._headers, **(headers or {})}, method=method
        )
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                answer = self._opener.open(request, timeout=_TIMEOUT_SECONDS)
                assert isinstance(answer, http.client.HTTPResponse)
                self._answered = True
                return answer
            except urllib.error.HTTPError as error:
                with error:
                    pause = error.headers.get("Retry-After", "")
                    sentence = _sentence(error)
                if pause.isdigit() and time.monotonic() + int(pause) < deadline:
                    time.sleep(int(pause))
                    continue
                raise ServerError(sentence) from error
            except (OSError, http.client.HTTPException) as error:
                self._answered = self._answered and time.monotonic() < deadline
                if not self._answered:
                    reason = getattr(error, "reason", error)
                    raise ServerError(f"{self._url} does not answer: {reason}") from error
                time.sleep(_PAUSE_SECONDS)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A token is for one server, and a redirect might name another."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str,
        headers: http.client.HTTPMessage, newurl: str,
    ) -> None:  # fmt: skip
        raise ServerError(f"the server redirects to {newurl}: use that URL")


def _remote_job(data: dict[str, Any]) -> RemoteJob:
    stage, error = data.get("stage") or {}, data.get("error") or {}
    return RemoteJob(
        id=data["id"],
        status=data["status"],
        progress=data["progress"],
        stage=f"{stage['name']} {stage['done']}/{stage['total']}" if stage else data["status"],
        seed=data["seed"],
        error=f"{error.get('message', '')} ({error.get('code', '')})",
        num_bytes=data["num_bytes"] or 0,
    )


def _sentence(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {error.code} {error.reason}"
