"""Charts of results as SVG of a few kilobytes, readable on light and on dark pages.

Written by hand rather than by a plotting library: the same input gives the same file, a diff of it
can be read, and nothing has to be installed. A chart brings its own background, whose colours
follow the reader's preference (``prefers-color-scheme``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

__all__ = ["Bar", "bars", "lines"]

_WIDTH: Final = 760
_STYLE: Final = """\
<style>
svg{--page:#fff;--ink:#24292f;--soft:#57606a;--rule:#d0d7de;--ours:#d9480f;--peer:#8c959f;\
--s0:#d9480f;--s1:#1971c2;--s2:#2b8a3e;--s3:#862e9c;--s4:#b08800;--s5:#0b7285;--s6:#a61e4d;\
--s7:#57606a}
@media (prefers-color-scheme:dark){svg{--page:#0d1117;--ink:#e6edf3;--soft:#9da7b3;--rule:#30363d;\
--ours:#ff8c42;--peer:#6e7681;--s0:#ff8c42;--s1:#74c0fc;--s2:#69db7c;--s3:#da77f2;--s4:#ffd43b;\
--s5:#66d9e8;--s6:#faa2c1;--s7:#9da7b3}}
text{font:12px system-ui,sans-serif;fill:var(--ink)}
.t{font-size:14px;font-weight:600}.g{font-weight:600}.n{fill:var(--soft)}.e{text-anchor:end}\
.m{text-anchor:middle}
line{stroke:var(--rule)}.one{stroke:var(--soft);stroke-dasharray:3 3}polyline{fill:none;\
stroke-width:1.6}
</style>
"""
#: Colours of curves, in their order; more curves than colours begin again.
_COLOURS: Final = 8


@dataclass(frozen=True)
class Bar:
    """A value with what is written behind it; ``ours`` is coloured."""

    name: str
    value: float
    label: str
    ours: bool = False


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{style}>{escape(text)}</text>'


def _save(path: Path, height: float, parts: Sequence[str]) -> None:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:g}">'
    page = f'<rect width="{_WIDTH}" height="{height:g}" rx="6" style="fill:var(--page)"/>'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join((head + "\n" + _STYLE + page, *parts, "</svg>")) + "\n")


def bars(
    path: Path,
    title: str,
    note: str,
    groups: Mapping[str, Sequence[Bar]],
    *,
    one: bool = False,
) -> None:
    """Horizontal bars, a heading for each group; all on one scale that begins at 0.

    ``one`` marks the value 1: the bars are multiples. What is more than four times the median is
    cut off, and its label says what it is.
    """
    left, right, row = 210, 150, 18
    values = sorted(bar.value for group in groups.values() for bar in group)
    usual = values[len(values) // 2] if values else 1.0
    top = max(min(values[-1] if values else 1.0, 4 * usual), 1.0 if one else 0.0) or 1.0
    scale = (_WIDTH - left - right) / top
    parts = [_text(16, 26, title, "t"), _text(16, 44, note, "n")]
    y = 58.0
    for name, group in groups.items():
        y += 22
        parts.append(_text(16, y, name, "g"))
        y += 6
        end = y + row * len(group)
        if one:
            x = f"{left + scale:.1f}"
            parts.append(f'<line class="one" x1="{x}" x2="{x}" y1="{y:g}" y2="{end:g}"/>')
        for bar in group:
            length = min(bar.value, top) * scale
            colour = "ours" if bar.ours else "peer"
            parts.append(_text(left - 8, y + 12.5, bar.name, "e"))
            parts.append(
                f'<rect x="{left}" y="{y + 3:g}" width="{length:.1f}" height="{row - 6}" '
                f'style="fill:var(--{colour})"/>'
            )
            more = " »" if bar.value > top else ""
            parts.append(_text(left + length + 6, y + 12.5, bar.label + more))
            y += row
    _save(path, y + 14, parts)


def _ticks(high: float) -> list[float]:
    """Round numbers from 0 on, four to seven."""
    step = 10.0 ** math.floor(math.log10(high / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if high / (step * factor) <= 6)
    return [step * number for number in range(math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    return [10.0**power for power in range(first, last + 1)]


def _thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most about so many, the last among them."""
    step = max(1, len(points) // most)
    return [*points[:-1:step], points[-1]]


def lines(
    path: Path,
    title: str,
    across: str,
    up: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    log: bool = False,
) -> None:
    """A curve for each name: (x, y) points, ``across`` and ``up`` name the axes, which begin at 0.

    ``log``: the x axis is logarithmic, from its least value (above 0) on.
    """
    drawn = {name: _thinned(points, 300) for name, points in series.items() if points}
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points]
    legend = 22 * math.ceil(len(drawn) / 2)
    left, right, over, height = 64, 36, 70 + legend, 240
    low_x, high_x, high_y = min(xs) if log else 0.0, max(xs), max(ys) * 1.06 or 1.0
    if high_x == low_x:
        high_x = low_x + 1

    def at(x: float, y: float) -> tuple[float, float]:
        if log:
            share = math.log(x / low_x) / math.log(high_x / low_x)
        else:
            share = x / high_x
        return left + share * (_WIDTH - left - right), over + height - y / high_y * height

    parts = [_text(16, 26, title, "t"), _text(16, over - 10, up, "n")]
    for tick in _ticks(high_y):
        _, y = at(high_x, tick)
        parts.append(f'<line x1="{left}" x2="{_WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 8, round(y + 4, 1), f"{tick:,.6g}", "n e"))
    for tick in _decades(low_x, high_x) if log else _ticks(high_x):
        x, _ = at(tick, high_y)
        parts.append(_text(round(x, 1), over + height + 18, f"{tick:,.9g}", "n m"))
    parts.append(_text(_WIDTH - right, over + height + 36, across, "n e"))
    for number, (name, points) in enumerate(drawn.items()):
        colour = f"var(--s{number % _COLOURS})"
        column, line = number % 2, number // 2
        x, y = 16 + column * (_WIDTH - 32) / 2, 40 + 22 * line
        parts.append(f'<rect x="{x:g}" y="{y}" width="14" height="10" style="fill:{colour}"/>')
        parts.append(_text(x + 20, y + 10, name))
        spots = [at(*point) for point in points]
        if len(spots) > 1:
            path_points = " ".join(f"{a:.1f},{b:.1f}" for a, b in spots)
            parts.append(f'<polyline points="{path_points}" style="stroke:{colour}"/>')
        if len(spots) < 20:
            parts += [
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" style="fill:{colour}"/>' for a, b in spots
            ]
    _save(path, over + height + 48, parts)
