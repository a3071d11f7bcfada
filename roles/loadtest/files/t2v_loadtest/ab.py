"""``ab``, as in the article, and what it said."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from t2v_loadtest.settings import Settings


@dataclass
class AbResult:
    """One run. ``points``: seconds since 1970 at which a request began, seconds that it took."""

    command: str
    status: int
    began: float = 0.0
    ended: float = 0.0
    complete: int = 0
    failed: int = 0
    other: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    percentiles: dict[str, float] = field(default_factory=dict)
    points: list[tuple[float, float]] = field(default_factory=list)
    said: str = ""
    # How many different files its jobs have, as the API lists them; None: it could not be asked.
    files: int | None = None


def command(settings: Settings, table: Path) -> list[str]:
    """As the article has it, at the entrance's address and under its name.

    ``-s``: ab gives up after 30 s by itself. ``-r``: a connection that breaks is counted, and does
    not end the run.
    """
    url = f"{settings.url}/generate?prompt={urllib.parse.quote(settings.prompt)}"
    login = ["-H", f"Authorization: Bearer {settings.token}"] if settings.token else []
    return [
        *(settings.ab_program, "-r", "-q", "-n", str(settings.ab_requests)),
        *("-c", str(min(settings.ab_clients, settings.ab_requests))),
        *("-s", str(settings.ab_timeout), "-g", str(table)),
        *("-H", f"Host: {settings.host}", *login, url),
    ]


def parse(said: str, result: AbResult) -> AbResult:
    """Fill in what ``ab`` printed."""

    def number(pattern: str) -> float:
        found = re.search(pattern, said)
        return float(found[1]) if found else 0.0

    result.complete = int(number(r"Complete requests:\s+(\d+)"))
    result.failed = int(number(r"Failed requests:\s+(\d+)"))
    result.other = int(number(r"Non-2xx responses:\s+(\d+)"))
    result.seconds = number(r"Time taken for tests:\s+([\d.]+)")
    result.rate = number(r"Requests per second:\s+([\d.]+)")
    result.percentiles = {
        share: int(milliseconds) / 1000
        for share, milliseconds in re.findall(r"(?m)^\s+(\d+%)\s+(\d+)", said)
    }
    result.said = said
    return result


def read_points(table: str) -> list[tuple[float, float]]:
    """Of the file that ``-g`` writes: start (whole seconds) and duration (milliseconds)."""
    points = []
    for line in table.splitlines()[1:]:
        cells = line.split("\t")
        if len(cells) >= 5:
            points.append((float(cells[1]), int(cells[4]) / 1000))
    return sorted(points)


def shown(arguments: list[str], token: str) -> str:
    """The command for a reader, without the token and the file."""
    words = [word.replace(token, "…") if token else word for word in arguments]
    at = words.index("-g")
    del words[at : at + 2]
    return " ".join(f"'{word}'" if re.search(r"[ ?&%]", word) else word for word in words)


def run(settings: Settings) -> AbResult:
    """Run it, however long it takes."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "requests.tsv")
        arguments = command(settings, table)
        began = time.time()
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        result = AbResult(shown(arguments, settings.token), done.returncode, began, time.time())
        parse(done.stdout, result)
        if done.returncode != 0:
            result.said += done.stderr
        if table.exists():
            result.points = read_points(table.read_text())
    try:
        result.files = len(files_since(settings, began))
    except (OSError, ValueError, KeyError) as error:
        result.said += f"\nThe API did not list the videos: {error}"
    return result


def files_since(settings: Settings, began: float) -> set[str]:
    """Names of the videos that were asked for since then, with this prompt: the newest first."""
    found: set[str] = set()
    query = {"limit": "100", "order": "desc"}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        url = f"{settings.url}/v1/videos?{urllib.parse.urlencode(query)}"
        headers = {"Host": settings.host}
        if settings.token:
            headers["Authorization"] = f"Bearer {settings.token}"
        with opener.open(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            page = json.load(answer)
        recent = [one for one in page["data"] if one["created_at"] >= int(began)]
        found |= {
            one["file_name"]
            for one in recent
            if one["prompt"] == settings.prompt and one["file_name"]
        }
        if not page["has_more"] or len(recent) < len(page["data"]):
            return found
        query["after"] = page["last_id"]
