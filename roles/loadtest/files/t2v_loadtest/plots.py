"""The report's plots, as SVG in the page itself: text stays text, nothing is fetched."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot, ticker

Points = Sequence[tuple[float, float]]
# Okabe and Ito's colours, which people of every colour vision tell apart; the dashes help too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
INK, FAINT = "#1f2933", "#52606d"
BANDS = {"ab": "#e3ecf5", "mix": "#f6ead7"}

matplotlib.rcParams.update(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "t2v",
        "font.family": "sans-serif",
        "font.sans-serif": ["system-ui", "Segoe UI", "Helvetica", "Arial", "DejaVu Sans"],
        "font.size": 9,
        "axes.edgecolor": "#9aa5b1",
        "axes.labelcolor": FAINT,
        "text.color": INK,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)


def draw(
    name: str,
    says: str,
    unit: str,
    label: str,
    curves: Mapping[str, Points],
    began: float,
    seconds: float,
    bands: Mapping[str, tuple[float, float]],
    dots: bool = False,
    log: bool = False,
    steps: bool = False,
) -> str:
    """One plot over seconds, which ``label`` names.

    ``says``: what it shows, for who cannot see it.
    """
    figure, axes = pyplot.subplots(figsize=(5.6, 2.7), layout="constrained")
    for number, (band, (start, end)) in enumerate(bands.items()):
        axes.axvspan(start - began, end - began, color=BANDS[band], lw=0, zorder=0)
        axes.text(
            (start + end) / 2 - began,
            1.0,
            band,
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=8,
            color=FAINT,
            gid=f"band-{number}",
        )
    top = 0.0
    for number, (curve, points) in enumerate(curves.items()):
        xs, ys = [at - began for at, _ in points], [value for _, value in points]
        top = max([top, *ys])
        colour = COLOURS[number % len(COLOURS)]
        if dots:
            axes.plot(xs, ys, ".", ms=5, alpha=0.5, mew=0, color=colour, label=curve)
        else:
            axes.plot(
                xs,
                ys,
                color=colour,
                ls=DASHES[number % len(DASHES)],
                lw=1.5,
                label=curve,
                drawstyle="steps-post" if steps else "default",
            )
    axes.set_xlim(0, seconds)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_ylim(0, top * 1.08 or 1)
    axes.yaxis.grid(True, color="#e4e7eb", lw=0.7)
    axes.set_axisbelow(True)
    axes.set_ylabel(unit)
    axes.set_xlabel(label)
    if steps:
        axes.yaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    if curves:
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.24),
            ncols=min(4, len(curves)),
            frameon=False,
            fontsize=8,
            handlelength=2.2,
            columnspacing=1.2,
            markerscale=1.6,
        )
    else:
        axes.text(
            0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", color=FAINT
        )
    with io.StringIO() as stream:
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
        return inlined(stream.getvalue(), name, says)


def inlined(svg: str, name: str, says: str) -> str:
    """Without the XML heads, with a title and a description, its ids told apart by its name."""
    key = re.sub(r"\W+", "-", name.lower()).strip("-")
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{key}-\1"', body)
    head, _, rest = body.partition(">")
    head = re.sub(r' (?:width|height)="[^"]*pt"', "", head)
    about = f'role="img" aria-labelledby="{key}-title {key}-says"'
    texts = (
        f'<title id="{key}-title">{escape(name)}</title><desc id="{key}-says">{escape(says)}</desc>'
    )
    return f"{head} {about}>{texts}{rest}"


def summed(curves: Mapping[str, Points], unit: str) -> str:
    """What a plot shows, in words: where each curve begins at most, and where it ends."""
    if not curves:
        return "No data."
    return " ".join(
        f"{label}: between {min(ys):.3g} and {max(ys):.3g} {unit}."
        for label, points in curves.items()
        if (ys := [value for _, value in points])
    )


def series(requests: Sequence[Any], kind: str) -> list[tuple[float, float]]:
    """When a request of this kind ended, and how long it took."""
    return [(one[0], one[2]) for one in requests if one[1] == kind]
