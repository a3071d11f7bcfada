"""A client of ``t2v.sanchuang.ai`` that needs no name resolution."""

import http.client
import re
import urllib.parse
from dataclasses import dataclass

_ANSWER = re.compile(r"Video generated at (/shared/videos/[\w.-]+\.mp4)\n")


@dataclass(frozen=True)
class Answer:
    """One answer: status code, body, and the worker that gave it (empty: none did)."""

    status: int
    body: str
    worker: str

    @property
    def path(self) -> str:
        """The video's path. Raises AssertionError where the body is not the documented one."""
        found = _ANSWER.fullmatch(self.body)
        assert found, f"status {self.status}, body {self.body!r}"
        return found.group(1)


@dataclass(frozen=True)
class Edge:
    """The site's entrance: its address, and the name that users ask for."""

    address: str
    name: str

    def get(self, path: str, timeout: float = 120.0) -> Answer:
        connection = http.client.HTTPConnection(self.address, timeout=timeout)
        try:
            connection.request("GET", path, headers={"Host": self.name})
            response = connection.getresponse()
            body = response.read().decode()
            return Answer(response.status, body, response.headers.get("X-T2V-Instance", ""))
        finally:
            connection.close()

    def generate(self, prompt: str, timeout: float = 120.0) -> Answer:
        return self.get(f"/generate?prompt={urllib.parse.quote(prompt)}", timeout)
