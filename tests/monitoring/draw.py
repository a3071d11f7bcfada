"""Draw docs/dashboards/*.png: each dashboard's JSON with data of the real Prometheus of stack.py.

Not Grafana: a few lines of matplotlib, and every picture says so. In an environment of its own:

    python3 -m venv /tmp/draw && /tmp/draw/bin/pip install matplotlib pyyaml pytest
    /tmp/draw/bin/python tests/monitoring/draw.py --minutes 5
"""

from __future__ import annotations

import argparse
import random
import re
import tempfile
import textwrap
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import matplotlib

from boards import Expression, boards, panels, sent
from promtool import ROOT
from stack import Stack, running

matplotlib.use("Agg")
from matplotlib import pyplot, ticker

BACK, PAPER, INK, FAINT = "#111217", "#181b1f", "#ccccdc", "#6e7078"
COLORS = ["#73bf69", "#5794f2", "#f2cc0c", "#ff780a", "#f2495c", "#b877d9", "#8ab8ff", "#37872d"]
UNIT = {
    "none": "", "short": "", "s": " s", "bytes": "B", "mbytes": " MiB", "Bps": "B/s",
    "ops": " ops/s", "reqps": " req/s", "percent": " %", "percentunit": " %", "celsius": " °C",
    "watt": " W", "hertz": "Hz",
}  # fmt: skip
INCH = 0.42  # one unit of Grafana's grid


def text_of(value: float, unit: str) -> str:
    """A value as a reader wants it."""
    if unit == "percentunit":
        value *= 100
    if unit == "s" and abs(value) >= 7200:
        return f"{value / 86400:.1f} d" if value > 172800 else f"{value / 3600:.1f} h"
    if unit in ("bytes", "Bps", "hertz"):
        step = 1000 if unit == "hertz" else 1024
        for prefix in (" ", " K", " M", " G", " T"):
            if abs(value) < step:
                return f"{value:.3g}{prefix}{UNIT[unit]}"
            value /= step
    return f"{value:.0f}{UNIT[unit]}" if abs(value) >= 1000 else f"{value:.3g}{UNIT[unit]}"


def legend_of(pattern: str, labels: dict[str, str]) -> str:
    """Grafana's {{label}} filled in."""
    if pattern == "__auto":
        return ""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), pattern)


def draw_panel(axes: Any, panel: dict[str, Any], stack: Stack, seconds: float) -> None:
    """One panel: lines, or a number."""
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axes.set_facecolor(PAPER)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(colors=FAINT, labelsize=6, length=0)
    width = panel["gridPos"]["w"] * 5 + 4
    axes.set_title(
        "\n".join(textwrap.wrap(panel["title"], width)), color=INK, fontsize=8, loc="left"
    )
    lines: list[tuple[str, list[float], list[float]]] = []
    for target in panel["targets"]:
        for one in stack.query_range(sent(target["expr"], "20s"), seconds, 5):
            points = [(at, float(value)) for at, value in one["values"] if value != "NaN"]
            if points:
                name = legend_of(target["legendFormat"], one["metric"])
                times = [at - time.time() for at, _ in points]
                lines.append((name, times, [value for _, value in points]))
    if panel["type"] == "stat":
        axes.set_xticks([])
        axes.set_yticks([])
        value = lines[0][2][-1] if lines else 0.0
        value = round(value) if "decimals" in panel["fieldConfig"]["defaults"] else value
        now = text_of(value, unit) if lines else "no data"
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        red = [one for one in steps if lines and lines[0][2][-1] >= (one["value"] or float("-inf"))]
        color = COLORS[4] if red and red[-1]["color"] == "red" else COLORS[0]
        axes.text(0.5, 0.42, now, color=color, fontsize=16, ha="center", va="center")
        return
    axes.grid(color="#2c2f34", linewidth=0.5)
    for color, (name, xs, ys) in zip(COLORS * 9, lines, strict=False):
        axes.plot([x / 60 for x in xs], ys, color=color, linewidth=1.1)
        axes.fill_between([x / 60 for x in xs], ys, color=color, alpha=0.08)
        axes.plot([], [], color=color, label=f"{name}  {text_of(ys[-1], unit)}".strip()[:44])
    axes.set_xlim(-seconds / 60, 0)
    top = panel["fieldConfig"]["defaults"].get("max")
    highest = max((max(ys) for _, _, ys in lines), default=0.0)
    height = top or highest * 1.15 or 1
    axes.set_ylim(-0.02 * height, 1.02 * height)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0f} min")
    axes.yaxis.set_major_formatter(lambda y, _: text_of(y, unit))
    if lines:
        axes.legend(
            loc="upper left", bbox_to_anchor=(-0.02, -0.12), ncols=2, fontsize=5.5, frameon=False,
            labelcolor=INK, handlelength=1, borderpad=0, columnspacing=1,
        )  # fmt: skip


def draw(board: dict[str, Any], stack: Stack, seconds: float, path: Path) -> None:
    """One dashboard."""
    height = max(one["gridPos"]["y"] + one["gridPos"]["h"] for one in board["panels"]) + 3.2
    figure = pyplot.figure(figsize=(24 * INCH, height * INCH), facecolor=BACK)

    def place(x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
        return x / 24, 1 - (y + h + 1) / height, w / 24, h / height

    figure.text(0.01, 1 - 0.6 / height, board["title"], color=INK, fontsize=13, va="center")
    for panel in board["panels"]:
        grid = panel["gridPos"]
        x, y, w, h = grid["x"], grid["y"], grid["w"], grid["h"]
        if panel["type"] == "row":
            at = place(0, y, 24, 1)
            figure.text(0.01, at[1] + at[3] / 2, f"▾ {panel['title']}", color=INK, va="center")
            continue
        low = 0.2 if panel["type"] == "stat" else 1.6  # room for the legend
        axes = figure.add_axes(place(x + 1.0, y + 1.0, w - 1.3, h - 1.0 - low))
        draw_panel(axes, panel, stack, seconds)
    about = [
        Expression(board["uid"], panel["title"], "", target["expr"]).stand_in
        for panel in panels(board)
        for target in panel["targets"]
    ]
    reasons = sorted({reason for reason in about if reason})
    numbers = f"\nStand-in numbers for some panels: {', '.join(reasons)}." if reasons else ""
    figure.text(
        0.01,
        0.5 / height,
        "Drawn from the dashboard's JSON by tests/monitoring/draw.py, not by Grafana. Data: a real "
        f"Prometheus, {datetime.now(timezone.utc):%Y-%m-%d}, one machine, tiny model.{numbers}",
        color=FAINT,
        fontsize=7.5,
    )
    figure.savefig(path, dpi=75, facecolor=BACK)
    pyplot.close(figure)


def main() -> None:
    """Let everything run for some minutes with something to do, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    seconds = parser.parse_args().minutes * 60
    output = ROOT / "docs/dashboards"
    output.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), "5s") as stack:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(random.choice([1, 1, 2, 4])):
                stack.work()
            time.sleep(random.uniform(0.5, 8))
        for board in boards():
            draw(board, stack, seconds, output / f"{board['uid']}.png")


if __name__ == "__main__":
    main()
