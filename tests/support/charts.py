"""Charts as SVG text, readable on light and on dark pages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

STYLE = """<style>
text { font: 12px sans-serif; fill: #24292f } .small { font-size: 11px; fill: #57606a } .title { font-weight: bold }
.axis { stroke: #8c959f } .good { fill: #2da44e } .bad { fill: #cf222e } .plain { fill: #6e7781 }
.mark { stroke: #0969da; stroke-width: 2 } .line0 { stroke: #2da44e } .line1 { stroke: #cf222e }
.line2 { stroke: #0969da } .line { fill: none; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .small { fill: #9198a1 } .axis { stroke: #656c76 } .mark { stroke: #58a6ff }
.good { fill: #3fb950 } .bad { fill: #f85149 } .line0 { stroke: #3fb950 } .line1 { stroke: #f85149 }
.line2 { stroke: #58a6ff } }
</style>"""
WIDTH, LABELS, RIGHT, ROW = 900, 350, 190, 22


@dataclass(frozen=True)
class Bar:
    """One bar: its length in units of the axis, the text behind it, and where the goal is."""

    what: str
    value: float
    label: str
    mark: float | None = None
    good: bool | None = None


@dataclass(frozen=True)
class Series:
    """One line of a chart: points by x, in order."""

    name: str
    points: Sequence[tuple[float, float]]


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _svg(height: float, title: str, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title>", STYLE, _text(8, 18, title, "title"), *parts, "</svg>\n"])


def bar_chart(title: str, bars: Sequence[Bar], most: float) -> str:
    """Return horizontal bars on an axis from 0 to ``most``; a longer one is cut, and its label has its length."""
    scale = (WIDTH - LABELS - RIGHT) / most
    bottom = 34 + ROW * len(bars)
    parts = [_line(LABELS + tick * scale, 30, LABELS + tick * scale, bottom, "axis") for tick in (0.0, 1.0)]
    parts += [_text(LABELS + tick * scale, bottom + 14, f"{tick:g}x", "small", "middle") for tick in (0.0, 1.0, most)]
    for number, bar in enumerate(bars):
        y = 34 + ROW * number
        length = min(bar.value, most) * scale
        kind = {True: "good", False: "bad", None: "plain"}[bar.good]
        parts.append(_text(LABELS - 6, y + 13, bar.what, "", "end"))
        parts.append(f'<rect x="{LABELS}" y="{y + 2}" width="{length:.1f}" height="{ROW - 6}" class="{kind}"/>')
        if bar.mark is not None:
            x = LABELS + min(bar.mark, most) * scale
            parts.append(_line(x, y, x, y + ROW - 2, "mark"))
        parts.append(_text(WIDTH - RIGHT + 6, y + 13, bar.label, "small"))
    return _svg(bottom + 22, title, parts)


def line_chart(title: str, series: Sequence[Series], *, x: str, y: str, height: float = 320) -> str:
    """Return lines with a logarithmic y axis from 1 on; smaller values lie on the axis."""
    left, top, right, bottom = 70.0, 50.0, WIDTH - 20.0, height - 40.0
    last = max(point[0] for line in series for point in line.points)
    decades = max(1, math.ceil(math.log10(max(point[1] for line in series for point in line.points))))
    parts = [_line(left, bottom, right, bottom, "axis"), _line(left, top, left, bottom, "axis")]
    for decade in range(decades + 1):
        at = bottom - (bottom - top) * decade / decades
        parts += [_line(left - 4, at, left, at, "axis"), _text(left - 8, at + 4, f"{10**decade:,}", "small", "end")]
    for tick in range(6):
        at = left + (right - left) * tick / 5
        parts += [_line(at, bottom, at, bottom + 4, "axis"), _text(at, bottom + 16, f"{last * tick / 5:.0f}", "small")]
    parts += [_text((left + right) / 2, height - 6, x, "small", "middle"), _text(8, 36, y, "small")]
    for number, line in enumerate(series):
        points = " ".join(
            f"{left + (right - left) * at / last:.1f},"
            f"{bottom - (bottom - top) * math.log10(max(value, 1.0)) / decades:.1f}"
            for at, value in line.points
        )
        parts.append(f'<polyline class="line line{number}" points="{points}"/>')
        legend = 260.0 + 200 * number
        parts += [_line(legend, 32, legend + 20, 32, f"line line{number}"), _text(legend + 26, 36, line.name, "small")]
    return _svg(height, title, parts)
