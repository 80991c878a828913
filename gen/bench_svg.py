"""Plots as inline SVG. Colours are CSS variables of the page, so that they follow its light or dark theme.

Written by hand rather than with a plotting library: bars and lines need little, and this way the pages follow the
reader's theme, every mark has a tooltip, and the default installation stays small.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from html import escape

TOP, LEFT, RIGHT = 12, 44, 18


def num(value: float) -> str:
    """A coordinate, two digits behind the point at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def ticks(top: float, most: int = 5) -> list[float]:
    """Round tick values from 0 to at least ``top``."""
    if top <= 0:
        return [0.0, 1.0]
    rough = top / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * 0.999)
    return [round(step * i, 10) for i in range(math.ceil(top / step - 1e-9) + 1)]


def picture(width: float, height: float, title: str, text: str, body: Sequence[str]) -> str:
    """An SVG of that size; title and text are for screen readers."""
    name = f"plot{zlib.crc32(title.encode())}"
    return (
        f'<svg class="plot" role="img" aria-labelledby="{name}t {name}d" viewBox="0 0 {num(width)} {num(height)}" '
        f'width="{num(width)}" height="{num(height)}"><title id="{name}t">{escape(title)}</title>'
        f'<desc id="{name}d">{escape(text)}</desc>{"".join(body)}</svg>'
    )


def axis(values: Sequence[float], width: float, height: float, form: str) -> list[str]:
    """Horizontal grid lines with their numbers; the last value is the top."""
    marks = []
    for value in values:
        y = TOP + height * (1 - value / values[-1])
        marks.append(f'<line class="grid" x1="{LEFT}" x2="{num(LEFT + width)}" y1="{num(y)}" y2="{num(y)}"/>')
        marks.append(f'<text class="tick end" x="{LEFT - 6}" y="{num(y + 3.5)}">{format(value, form)}</text>')
    return marks


def _labels(names: Sequence[str], pitch: float, height: float) -> tuple[list[str], float]:
    """Slanted names under columns, and the room that they need."""
    shown = [name if len(name) <= 14 else name[:13] + "…" for name in names]
    y = TOP + height + 12
    marks = []
    for i, name in enumerate(shown):
        x = LEFT + (i + 0.5) * pitch + 4
        marks.append(
            f'<text class="tick end" transform="translate({num(x)} {num(y)}) rotate(-50)">{escape(name)}</text>'
        )
    return marks, 18 + 5.2 * max(map(len, shown))


def _rect(x: float, y: float, width: float, height: float, color: str, tip: str) -> str:
    return (
        f'<rect x="{num(x)}" y="{num(y)}" width="{num(width)}" height="{num(max(0.0, height))}" '
        f'style="fill:var(--{color})"><title>{escape(tip)}</title></rect>'
    )


def _pitch(columns: int) -> float:
    return min(46.0, max(20.0, 900.0 / max(1, columns)))


def bound_bars(
    title: str, names: Sequence[str], values: Sequence[float], bounds: Sequence[float | None], color: str
) -> str:
    """Columns, each with a mark at its bound.

    Args:
        title: what is shown, for screen readers.
        names: of the columns.
        values: heights.
        bounds: heights of the marks; None has none.
        color: CSS variable.
    """
    pitch, height = _pitch(len(names)), 180.0
    scale = ticks(max([*values, *(b for b in bounds if b is not None), 0.0]))
    width = max(pitch * len(names), 60.0)
    body = axis(scale, width, height, "g")
    for i, (name, value, bound) in enumerate(zip(names, values, bounds, strict=True)):
        x, tall = LEFT + (i + 0.18) * pitch, height * value / scale[-1]
        limit = "" if bound is None else f", bound {bound:.2f}, {value / bound:.1%} of it"
        tip = f"{name}: {value:.2f} x{limit}"
        body.append(_rect(x, TOP + height - tall, 0.64 * pitch, tall, color, tip))
        if bound is not None:
            y = TOP + height * (1 - bound / scale[-1])
            body.append(
                f'<line class="bound" x1="{num(x - 0.1 * pitch)}" x2="{num(x + 0.74 * pitch)}" y1="{num(y)}" '
                f'y2="{num(y)}"><title>{escape(tip)}</title></line>'
            )
    labels, room = _labels(names, pitch, height)
    text = "; ".join(f"{name} {value:.2f}" for name, value in zip(names, values, strict=True))
    return picture(LEFT + width + RIGHT, TOP + height + room, title, text, body + labels)


def stacked_bars(title: str, names: Sequence[str], shares: Sequence[Mapping[str, float]]) -> str:
    """Columns of shares that sum to 1, in the order of each mapping; its keys name the CSS variables."""
    pitch, height = _pitch(len(names)), 150.0
    width = max(pitch * len(names), 60.0)
    body = axis([0, 0.25, 0.5, 0.75, 1.0], width, height, ".0%")
    for i, (name, own) in enumerate(zip(names, shares, strict=True)):
        y = TOP + height
        for reason, share in own.items():
            y -= height * share
            if share > 0:
                tip = f"{name}: {reason} {share:.1%}"
                body.append(_rect(LEFT + (i + 0.14) * pitch, y, 0.72 * pitch, height * share, reason, tip))
    labels, room = _labels(names, pitch, height)
    text = "; ".join(
        f"{name}: {', '.join(f'{reason} {share:.0%}' for reason, share in own.items() if share >= 0.005)}"
        for name, own in zip(names, shares, strict=True)
    )
    return picture(LEFT + width + RIGHT, TOP + height + room, title, text, body + labels)


def plane(
    title: str,
    across: str,
    lines: Sequence[tuple[str, str, Sequence[tuple[float, float]]]] = (),
    points: Sequence[tuple[str, str, float, float]] = (),
) -> str:
    """Lines and points in the unit square, shares on both axes.

    Args:
        title: what is shown, for screen readers.
        across: what the horizontal axis is.
        lines: (CSS variable, name, points (x, y)).
        points: (CSS variable, tooltip, x, y).
    """
    width, height = 420.0, 240.0

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + width * x, TOP + height * (1 - y)

    body = axis([0, 0.2, 0.4, 0.6, 0.8, 1.0], width, height, ".0%")
    below = [(value, 16, f"{value:.0%}") for value in (0, 0.2, 0.4, 0.6, 0.8, 1.0)] + [(0.5, 34, escape(across))]
    for value, drop, text in below:
        x = place(value, 0)[0]
        body.append(f'<text class="tick middle" x="{num(x)}" y="{num(TOP + height + drop)}">{text}</text>')
    for color, name, values in lines:
        path = " ".join(f"{num(x)},{num(y)}" for x, y in (place(*value) for value in values))
        body.append(f'<polyline class="line" points="{path}" style="stroke:var(--{color})"/>')
        for x, y in values:
            px, py = place(x, y)
            tip = f"{name}, density {x:.0%}: utilisation {y:.1%}"
            body.append(circle(px, py, 3, color, tip))
    for color, tip, x, y in points:
        body.append(circle(*place(x, y), 4, color, tip))
    text = "; ".join(f"{name}: {', '.join(f'{x:.2f} {y:.3f}' for x, y in values)}" for _, name, values in lines)
    text = text or "; ".join(tip for _, tip, _, _ in points)
    return picture(LEFT + width + RIGHT, TOP + height + 42, title, text, body)


def circle(x: float, y: float, radius: float, color: str, tip: str) -> str:
    """A mark with a tooltip; color is a CSS variable."""
    return (
        f'<circle cx="{num(x)}" cy="{num(y)}" r="{num(radius)}" style="fill:var(--{color})">'
        f"<title>{escape(tip)}</title></circle>"
    )
