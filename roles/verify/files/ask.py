"""Ask the site as its users do, from the controller, for the table of the role verify.

JSON in (where and what to ask), JSON out: rows, and what was made. Nothing beside Python's own
library; whatever goes wrong is a row.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OK, FAILED, SKIPPED = "ok", "FAILED", "skipped"
WATCHDOG = "Watchdog"  # says that alerts come through
SECONDS = 15.0  # for everything but a video
WATCHDOG_SECONDS = 75.0  # until a Prometheus that has just started has sent it
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True)
class Row:
    """One line of the table. ``look``: where to look when it is FAILED."""

    check: str
    result: str
    seen: str
    look: str = ""
    where: str = "controller"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: bytes
    headers: http.client.HTTPMessage

    @property
    def text(self) -> str:
        """The body's beginning, in one line."""
        return " ".join(self.body[:300].decode(errors="replace").split())


@dataclass
class Made:
    """The video that was made, for those who look at it elsewhere."""

    path: str = ""
    sha256: str = ""
    lines: list[str] = field(default_factory=list)


class NoAnswerError(Exception):
    """Nobody answered; the message says why."""


def ask(
    url: str,
    host: str = "",
    token: str = "",
    *,
    seconds: float = SECONDS,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request. Raises NoAnswerError."""  # fmt: skip
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=seconds)
    sent = {"Host": host or parts.netloc, "User-Agent": "sanchuang.t2v verify", **(headers or {})}
    if token:
        sent["Authorization"] = f"Bearer {token}"
    try:
        connection.request(method, urllib.parse.urlunsplit(("", "", *parts[2:4], "")), headers=sent)
        response = connection.getresponse()
        return Answer(response.status, response.read(), response.headers)
    except http.client.RemoteDisconnected as error:
        raise NoAnswerError("closed without an answer") from error
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswerError(f"{error}" or type(error).__name__) from error
    finally:
        connection.close()


class Entrance:
    """The site as its users reach it: by an edge, a cluster's ingress, or the port of a node."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        """``wanted``: what the role passes on."""
        self._wanted = wanted
        self.made = Made()

    def _ask(self, path: str, host: str = "", **more: Any) -> Answer:
        wanted = self._wanted
        return ask(wanted["url"] + path, host or wanted["host"], wanted["token"], **more)

    def healthy(self) -> Row:
        """The entrance itself, and one server behind it."""
        said = []
        for path in dict.fromkeys((self._wanted["health"], "/healthz", "/ready")):
            answer = self._ask(path)
            if answer.status != 200:
                seen = f"{path} says {answer.status}: {answer.text}"
                return Row("edge answers", FAILED, seen, self._wanted["logs"])
            said.append(path)
        return Row("edge answers", OK, f"{', '.join(said)} say 200")

    def stranger(self) -> Row:
        """Another host name is not served."""
        check = "edge other host name"
        if self._wanted["front"] == "port":
            return Row(check, SKIPPED, "a node's port knows no names")
        try:
            answer = self._ask("/healthz", "stranger.invalid")
        except NoAnswerError as error:
            # What is away altogether is not a refusal: `healthy` has said so.
            self._ask("/healthz")
            return Row(check, OK, f"stranger.invalid: {error}")
        if answer.status == 404 and self._wanted["front"] != "edge":
            return Row(check, OK, "stranger.invalid: 404")
        return Row(
            check, FAILED, f"stranger.invalid is served: {answer.status}", self._wanted["logs"]
        )

    def headers(self) -> Row:
        """An answer says which server gave it and under which id it is logged, and no version."""
        check = "edge headers"
        answer = self._ask("/healthz")
        missing = [
            name for name in ("X-T2V-Instance", "X-Request-Id") if name not in answer.headers
        ]
        if missing:
            seen = f"/healthz comes without {' and '.join(missing)}"
            return Row(check, FAILED, seen, self._wanted["logs"])
        server = answer.headers.get("Server", "")
        if self._wanted["front"] == "edge" and re.search(r"\d", server):
            return Row(
                check, FAILED, f"tells its version: Server: {server}", "server_tokens of nginx"
            )
        return Row(check, OK, f"X-T2V-Instance, X-Request-Id, Server: {server or 'none'}")

    def limits(self) -> Row:
        """A body above the limit is refused before it is sent; a missing prompt as documented."""
        check = "edge limits"
        limit = re.fullmatch(r"(\d+)([kmg]?)", self._wanted["max_body"].lower())
        if not limit:
            return Row(check, FAILED, f"'{self._wanted['max_body']}' is no size", "t2v_max_body")
        too_large = int(limit[1]) * _UNITS[limit[2]] + 1
        headers = {"Content-Length": str(too_large), "Content-Type": "application/json"}
        answer = self._ask("/v1/videos", method="POST", headers=headers)
        if answer.status != 413:
            seen = f"a body of {too_large} bytes gets {answer.status} and not 413"
            return Row(check, FAILED, seen, "t2v_max_body, and " + self._wanted["logs"])
        answer = self._ask("/generate")
        if (answer.status, answer.body) != (400, b"missing prompt\n"):
            seen = f"no prompt gets {answer.status} '{answer.text}' and not 400 'missing prompt'"
            return Row(check, FAILED, seen, self._wanted["logs"])
        return Row(check, OK, f"over {self._wanted['max_body']}: 413; no prompt: 400")

    def video(self) -> Row:
        """The documented sentence."""
        wanted, check = self._wanted, "video made"
        path = f"/generate?prompt={urllib.parse.quote(wanted['prompt'])}"
        answer = self._ask(path, seconds=float(wanted["seconds"]))
        name = re.escape(wanted["videos_dir"]) + r"/[A-Za-z0-9._-]+\.mp4"
        found = re.fullmatch(
            rf"Video generated at ({name})\n", answer.body.decode(errors="replace")
        )
        if answer.status != 200 or not found:
            seen = f"/generate answers {answer.status} and '{answer.text}' instead of a video"
            return Row(check, FAILED, seen, f"{wanted['logs']}, and the servers' logs")
        self.made.path = found[1]
        self.made.lines.append(found[0].strip())
        by = answer.headers.get("X-T2V-Instance", "somebody")
        return Row(check, OK, f"{Path(found[1]).name} by {by}")

    def content(self) -> Row:
        """The video as a client downloads it, looked into by ffprobe."""
        wanted, check = self._wanted, "video probed"
        if not self.made.path:
            return Row(check, SKIPPED, "no video was made")
        answer = self._ask(f"/v1/videos/{Path(self.made.path).stem}/content", seconds=300.0)
        if answer.status != 200:
            seen = f"the download of {self.made.path} gets {answer.status}: {answer.text}"
            return Row(check, FAILED, seen, "the servers' logs")
        self.made.sha256 = hashlib.sha256(answer.body).hexdigest()
        with tempfile.NamedTemporaryFile(suffix=".t2v-verify.mp4") as file:
            file.write(answer.body)
            file.flush()
            try:
                done = subprocess.run(
                    [
                        *(wanted["ffprobe"], "-v", "error", "-select_streams", "v:0"),
                        *("-count_frames", "-show_entries"),
                        "stream=codec_name,width,height,nb_read_frames,avg_frame_rate",
                        *("-of", "json", file.name),
                    ],
                    capture_output=True,
                    text=True,
                    timeout=300,
                )
            except OSError as error:
                advice = "install ffmpeg on the controller, or set verify_ffprobe to its path"
                return Row(check, FAILED, f"'{wanted['ffprobe']}' does not run: {error}", advice)
        streams = json.loads(done.stdout or "{}").get("streams", [])
        if done.returncode != 0 or not streams:
            seen = f"ffprobe finds no video in it: {done.stderr.strip()[-200:]}"
            return Row(check, FAILED, seen, "the servers' logs")
        stream = streams[0]
        frames = int(stream.get("nb_read_frames", 0))
        found = {
            "codec": stream["codec_name"],
            "width": stream["width"],
            "height": stream["height"],
            "frames": frames,
        }
        self.made.lines.append(
            f"ffprobe: codec={found['codec']} size={found['width']}x{found['height']} "
            f"frames={frames} rate={stream.get('avg_frame_rate', '?')}"
        )
        wrong = [
            f"{name} is {found[name]} and not {value if value != '0' else 'above 0'}"
            for name, value in ((name, str(value)) for name, value in wanted["expected"].items())
            if str(found[name]) != value and (value != "0" or not found[name])
        ]
        if wrong:
            advice = "T2V_WIDTH and its kind in t2v_server_env, and verify_width and its kind"
            return Row(check, FAILED, "; ".join(wrong), advice)
        return Row(
            check, OK, f"{found['codec']} {found['width']}x{found['height']}, {frames} frames"
        )


def alerts(wanted: dict[str, Any], patience: float = WATCHDOG_SECONDS) -> Row:
    """No alert is active that nobody expects; silenced and inhibited ones are not.

    Of a Prometheus that has just started none has come yet: ``patience`` seconds are granted.
    """
    check, url = "alerts", wanted["alertmanager"]
    if not url:
        return Row(check, SKIPPED, "t2v_monitoring is false")
    if not wanted["alerts"]:
        return Row(check, SKIPPED, "not asked: verify_alerts is false, as in site.yml")
    deadline = time.monotonic() + patience
    while True:
        answer = ask(f"{url}/api/v2/alerts?active=true&silenced=false&inhibited=false")
        if answer.status != 200:
            advice = "`journalctl -u alertmanager` on its host"
            return Row(check, FAILED, f"Alertmanager says {answer.status}", advice)
        found = [one["labels"] for one in json.loads(answer.body)]
        come = WATCHDOG in {one["alertname"] for one in found}
        if come or time.monotonic() >= deadline:
            break
        time.sleep(2)
    if not come:
        seen = f"{WATCHDOG}, which is always active, has not come from Prometheus"
        return Row(check, FAILED, seen, f"{url}, and the alerting of Prometheus")
    expected = re.compile("|".join(wanted["expected_alerts"]) or r"(?!)")
    active = sorted(
        {
            " of ".join(filter(None, (one["alertname"], one.get("instance", ""))))
            for one in found
            if one["alertname"] != WATCHDOG and not expected.fullmatch(one["alertname"])
        }
    )
    if active:
        return Row(check, FAILED, f"active: {', '.join(active)}", f"docs/runbooks.md, and {url}")
    return Row(check, OK, f"none is active but {WATCHDOG}, which always is")


def grafana(wanted: dict[str, Any]) -> Row:
    """Grafana and its database."""
    check, url = "Grafana", wanted["grafana"]
    if not url:
        return Row(check, SKIPPED, "t2v_grafana is false")
    answer = ask(f"{url}/api/health")
    try:
        database = json.loads(answer.body).get("database", "")
    except (ValueError, AttributeError):
        database = ""
    if answer.status != 200 or database != "ok":
        advice = "`journalctl -u grafana-server` on its host"
        return Row(check, FAILED, f"/api/health says {answer.status}: {answer.text}", advice)
    return Row(check, OK, "its database is ok")


def looked(check: str, look: Callable[[], Row], advice: str) -> Row:
    """A row, whatever happens."""
    try:
        return look()
    except NoAnswerError as error:
        return Row(check, FAILED, f"no answer: {error}", advice)
    except Exception as error:
        return Row(check, FAILED, f"asking failed: {type(error).__name__}: {error}", advice)


def report(wanted: dict[str, Any]) -> dict[str, Any]:
    """Everything."""
    entrance, logs = Entrance(wanted), wanted["logs"]
    rows = [
        looked("edge answers", entrance.healthy, logs),
        looked("edge other host name", entrance.stranger, logs),
        looked("edge headers", entrance.headers, logs),
        looked("edge limits", entrance.limits, logs),
        looked("video made", entrance.video, logs),
        looked("video probed", entrance.content, logs),
        looked("alerts", lambda: alerts(wanted), "`journalctl -u alertmanager` on its host"),
        looked("Grafana", lambda: grafana(wanted), "`journalctl -u grafana-server` on its host"),
    ]
    return {"rows": [asdict(row) for row in rows], "made": asdict(entrance.made)}


if __name__ == "__main__":
    print(json.dumps(report(json.load(sys.stdin))))
