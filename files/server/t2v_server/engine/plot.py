"""A picture of a benchmark: bars in SVG, which needs no library and no font of its own."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

_COLOURS = {
    "encoding_prompt": "#8a6fbf",
    "denoising": "#2f7ebc",
    "decoding": "#4bab78",
    "mux": "#d99a3c",
}
_WIDTH, _LEFT, _BAR, _GAP = 760, 96, 22, 12


def draw(
    title: str,
    seconds: Mapping[str, Mapping[str, float]],
    memory: Mapping[str, tuple[int, int]],
) -> str:
    """Stacked bars of each variant's stages, and of its peaks of host and GPU memory."""
    widest = max((sum(stages.values()) for stages in seconds.values()), default=1.0) or 1.0
    most = max((max(pair) for pair in memory.values()), default=1) or 1
    room = _WIDTH - _LEFT - 120
    parts = list[str]()
    y = 54
    x = _LEFT
    for stage, colour in _COLOURS.items():
        parts.append(f'<rect x="{x}" y="30" width="10" height="10" fill="{colour}"/>')
        parts.append(_label(x + 14, 39, stage.replace("_", " ")))
        x += 130
    for name, stages in seconds.items():
        parts.append(_label(8, y + 15, name))
        x_bar = float(_LEFT)
        for stage, spent in stages.items():
            width = room * spent / widest
            parts.append(_bar(x_bar, y, width, _COLOURS[stage], f"{stage}: {spent:.2f} s"))
            x_bar += width
        parts.append(_label(x_bar + 6, y + 15, f"{sum(stages.values()):.2f} s"))
        y += _BAR + _GAP
    y += 20
    parts.append(_label(8, y, "Peak of memory: host, GPU", bold=True))
    y += 12
    for name, pair in memory.items():
        parts.append(_label(8, y + 15, name))
        for size, colour in zip(pair, ("#7a8794", "#c0564f"), strict=True):
            if not size:
                continue
            width = room * size / most
            parts.append(_bar(_LEFT, y, width, colour, f"{size} bytes"))
            parts.append(_label(_LEFT + width + 6, y + 15, f"{size / (1 << 20):.0f} MiB"))
            y += _BAR + 2
        y += _GAP - 2
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y + 8}" '
        f'viewBox="0 0 {_WIDTH} {y + 8}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{_WIDTH}" height="{y + 8}" fill="white"/>\n'
        f"{_label(8, 20, title, bold=True)}\n{body}\n</svg>\n"
    )


def _bar(x: float, y: float, width: float, colour: str, says: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y}" width="{max(width, 0.5):.1f}" height="{_BAR}" '
        f'fill="{colour}"><title>{escape(says)}</title></rect>'
    )


def _label(x: float, y: float, text: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="#222"{weight}>{escape(text)}</text>'
