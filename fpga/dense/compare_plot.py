"""The comparison's plot: speed of the sparse array over the dense ones by combined density, one SVG file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

COLORS = {"a": "#2a6fbb", "ab": "#c2571a", "ac": "#2f8f4e", "abc": "#8a4fb0"}
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 380.0, 260.0, 62.0, 34.0, 84.0
_X = (0.001, 1.0)
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#222}.tick{fill:#555;font-size:11px}.title{font-weight:600}"
    ".grid{stroke:#ddd}.even{stroke:#222;stroke-dasharray:4 3}.line{fill:none;stroke-width:2}"
    "@media(prefers-color-scheme:dark){svg{background:#16181c}text{fill:#eee}.tick{fill:#aaa}.grid{stroke:#333}"
    ".even{stroke:#eee}}"
)


def _share(value: float, ends: Sequence[float]) -> float:
    """Place of a value between the ends of a logarithmic axis, 0 to 1."""
    return math.log(value / ends[0]) / math.log(ends[1] / ends[0])


def _decades(ends: Sequence[float]) -> list[float]:
    return [10.0**e for e in range(round(math.log10(ends[0])), round(math.log10(ends[1])) + 1)]


def plot(result: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """A panel for each dense array, a line for each choice of masked operands, both axes logarithmic.

    Args:
        result: of :func:`maskwork.fpga.dense.compare.break_even`.
        titles: of the panels, by the dense array's name.
    """
    values = [point["speedup"] for curve in result["curves"] for point in curve["points"]]
    y_ends = 10.0 ** math.floor(math.log10(min(values))), 10.0 ** math.ceil(math.log10(max(values) * 1.0001))
    panels = dict.fromkeys(curve["dense"] for curve in result["curves"])
    body = [part for number, dense in enumerate(panels) for part in _panel(result, dense, titles, number, y_ends)]
    width = len(panels) * (_WIDTH + _GAP) + 20
    height = _TOP + _HEIGHT + 66
    names = list(dict.fromkeys(curve["masks"] for curve in result["curves"]))
    for i, masks in enumerate(names):
        x, y = _LEFT + i * 130, height - 12
        line = f'<line x1="{x:.1f}" x2="{x + 22:.1f}" y1="{y - 4:.1f}" y2="{y - 4:.1f}" class="line" '
        body += [line + f'stroke="{COLORS[masks]}"/>', f'<text x="{x + 28:.1f}" y="{y:.1f}">masks on {masks}</text>']
    text = "; ".join(
        f"{c['dense']}, masks on {c['masks']}: "
        + (f"even at {c['break_even']:.3f}" if c["break_even"] else f"always {c['always']}")
        for c in result["curves"]
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}"><title>Sparse over dense on the same device</title>'
        f"<desc>{escape(text)}</desc><style>{_STYLE}</style>{''.join(body)}</svg>\n"
    )


def _panel(result: Mapping[str, Any], dense: str, titles: Mapping[str, str], number: int, y_ends: Sequence[float]
           ) -> list[str]:  # fmt: skip
    left = _LEFT + number * (_WIDTH + _GAP)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + _WIDTH * max(0.0, _share(x, _X)), _TOP + _HEIGHT * (1 - _share(y, y_ends))

    marks = [f'<text class="title" x="{left:.1f}" y="18">{escape(titles.get(dense, dense))}</text>']
    for value in _decades(y_ends):
        y = place(1, value)[1]
        line = "even" if value == 1 else "grid"
        marks.append(f'<line class="{line}" x1="{left:.1f}" x2="{left + _WIDTH:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(f'<text class="tick" text-anchor="end" x="{left - 6:.1f}" y="{y + 4:.1f}">{value:g} x</text>')
    for value in _decades(_X):
        x = place(value, y_ends[0])[0]
        marks.append(f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{_TOP + _HEIGHT + 17:.1f}">'
                     f"{value:g}</text>")  # fmt: skip
    marks.append(f'<text class="tick" text-anchor="middle" x="{left + _WIDTH / 2:.1f}" y="{_TOP + _HEIGHT + 35:.1f}">'
                 "combined density</text>")  # fmt: skip
    for curve in (c for c in result["curves"] if c["dense"] == dense):
        shown = [p for p in curve["points"] if p["combined"] >= _X[0]]
        path = " ".join("{:.1f},{:.1f}".format(*place(p["combined"], p["speedup"])) for p in shown)
        marks.append(f'<polyline class="line" points="{path}" stroke="{COLORS[curve["masks"]]}"/>')
        for p in shown:
            x, y = place(p["combined"], p["speedup"])
            tip = f"masks on {curve['masks']}, density {p['density']:g} each: {p['speedup']:.2f} x"
            marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLORS[curve["masks"]]}">'
                         f"<title>{tip}</title></circle>")  # fmt: skip
        if curve["break_even"] and curve["break_even"] >= _X[0]:
            x, y = place(curve["break_even"], 1)
            marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="none" stroke="{COLORS[curve["masks"]]}" '
                         f'stroke-width="2"><title>even at {curve["break_even"]:.3f}</title></circle>')  # fmt: skip
    return marks
