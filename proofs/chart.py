"""A chart of counts over time, as SVG and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["steps"]

_WIDTH, _HEIGHT = 760, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 50, 50
_COLOURS = ("#c0392b", "#1f7a4d", "#2457a6", "#8a6d00")


def _nice(value: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 1.0
    while power * 10 < value:
        power *= 10
    while power > value and power > 1e-9:
        power /= 10
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= value)


def steps(title: str, unit: str, lines: Sequence[tuple[str, Sequence[float]]]) -> str:
    """How often it had happened by when: ``lines`` are names and moments, seconds from the start.

    ``unit`` names what is counted.
    """
    span = _nice(max((max(moments, default=0.1) for _, moments in lines), default=0.1))
    most = _nice(max(max((len(moments) for _, moments in lines), default=1), 1))
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(seconds: float) -> float:
        return round(_LEFT + wide * min(seconds / span, 1.0), 1)

    def y(count: float) -> float:
        return round(_TOP + high * (1 - count / most), 1)

    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
            f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">'
        ),
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="24" font-size="16">{escape(title)}</text>',
    ]
    for number in range(5):
        count, seconds = most * number / 4, span * number / 4
        parts += [
            (
                f'<line x1="{_LEFT}" y1="{y(count)}" x2="{_WIDTH - _RIGHT}" y2="{y(count)}" '
                'stroke="#ddd"/>'
            ),
            f'<text x="{_LEFT - 8}" y="{y(count) + 4}" text-anchor="end">{count:,.0f}</text>',
            (
                f'<text x="{x(seconds)}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">'
                f"{seconds:g} s</text>"
            ),
        ]
    parts.append(
        f'<text x="14" y="{_TOP + high / 2}" transform="rotate(-90 14 {_TOP + high / 2})" '
        f'text-anchor="middle">{escape(unit)}</text>'
    )
    for index, (name, moments) in enumerate(lines):
        colour = _COLOURS[index % len(_COLOURS)]
        ordered = sorted(moments)
        keep = max(1, len(ordered) // 400)
        points = [(0.0, 0), *((at, n + 1) for n, at in enumerate(ordered) if n % keep == 0)]
        points.append((span, len(ordered)))
        path = f"M{x(0)},{y(0)}" + "".join(f"H{x(at)}V{y(count)}" for at, count in points)
        parts += [
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>',
            (
                f'<text x="{_WIDTH - _RIGHT - 8}" y="{_TOP + 16 + 18 * index}" text-anchor="end" '
                f'fill="{colour}" font-weight="bold">{escape(name)}: {len(ordered):,}</text>'
            ),
        ]
    return "\n".join([*parts, "</svg>", ""])
