"""A benchmark's report as one HTML page with plots: nothing is fetched, and it follows the reader's theme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from maskwork.gen import bench_svg as svg
from maskwork.gen.report import REASONS

PASS_NAMES = {"forward": "Forward", "input_grad": "Input gradient", "weight_grad": "Weight gradient"}

_CURVE_NAMES = {"a": "mask on A", "ab": "masks on A and B", "ac": "masks on A and C", "abc": "masks on A, B and C"}

_LIGHT = {
    "page": "#fbfbfa", "card": "#ffffff", "ink": "#1c1e21", "soft": "#5d636b", "rule": "#dfe2e6",
    "forward": "#2f6fb7", "input_grad": "#c2661b", "weight_grad": "#3d8a4f", "bound": "#1c1e21",
    "effectual": "#2b7a5d", "ineffectual": "#b3432f", "lookup": "#7d5ba6", "fetch": "#4a8fc7", "imbalance": "#d99a2b",
    "drain": "#c9709b", "load": "#8a5a3b", "dispatch": "#6a9a9a", "idle": "#b9bec5",
    "a": "#2f6fb7", "ab": "#c2661b", "ac": "#3d8a4f", "abc": "#7d5ba6",
}  # fmt: skip
_DARK = {
    "page": "#15171a", "card": "#1d2024", "ink": "#e7e9ec", "soft": "#a0a7b0", "rule": "#353a41",
    "forward": "#6aa6e6", "input_grad": "#ec9a55", "weight_grad": "#73c088", "bound": "#f2f4f6",
    "effectual": "#58b894", "ineffectual": "#e2735d", "lookup": "#ad8fd4", "fetch": "#7db7e6", "imbalance": "#ecbc5f",
    "drain": "#e39bbd", "load": "#b98a6a", "dispatch": "#94c1c1", "idle": "#5b626b",
    "a": "#6aa6e6", "ab": "#ec9a55", "ac": "#73c088", "abc": "#ad8fd4",
}  # fmt: skip

STYLE = """
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.5rem 0 .25rem }
h3 { font-size: .95rem; margin: 0 0 .25rem }
p { margin: .25rem 0 .75rem; color: var(--soft); max-width: 60rem }
.cards, .plots { display: flex; flex-wrap: wrap; gap: .9rem; margin-top: 1rem }
.card, .panel { background: var(--card); border: 1px solid var(--rule); border-radius: .6rem; padding: .8rem 1rem }
.panel { max-width: 100%; overflow-x: auto }
.card b { display: block; font-size: 1.7rem; line-height: 1.25; font-variant-numeric: tabular-nums }
.card span { color: var(--soft); font-size: .85rem }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: .6rem 0 0; padding: 0; list-style: none;
  font-size: .85rem; color: var(--soft) }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: .2em; margin-right: .4em }
.legend i.mark { height: 0; border-top: 3px solid var(--bound); border-radius: 0; vertical-align: .2em }
svg.plot { display: block; height: auto; max-width: none }
svg .grid { stroke: var(--rule); stroke-width: 1 }
svg .bound { stroke: var(--bound); stroke-width: 2.5 }
svg .line { fill: none; stroke-width: 2 }
svg text { fill: var(--soft); font-size: 10.5px } svg .end { text-anchor: end } svg .middle { text-anchor: middle }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; white-space: nowrap }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--rule) }
th { color: var(--soft); font-weight: 600 } th:first-child, td:first-child, td.name, th.name { text-align: left }
tr.total td { font-weight: 600 }
"""


def document(title: str, style: str, sections: Sequence[str]) -> str:
    """A page that fetches nothing, of sections of HTML; empty ones are left out."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body></html>\n"
    )


def page(report: Mapping[str, Any]) -> str:
    """The page for a report of :class:`maskwork.gen.bench.Bench`."""
    config = report["config"]
    title = f"maskwork bench: {config['name']}"
    sections = [
        f"<h1>{escape(title)}</h1>", f"<p>{escape(_subtitle(report))}</p>", _cards(report), _samples(report),
        _speedups(report), _reasons(report), _densities(report), _ablation(report), _table(report), _footer(report),
    ]  # fmt: skip
    return document(title, theme() + STYLE, sections)


def theme() -> str:
    """CSS variables of the colours, by the reader's theme."""
    light, dark = ("".join(f"--{name}:{color};" for name, color in own.items()) for own in (_LIGHT, _DARK))
    return f":root{{{light}}}\n@media (prefers-color-scheme: dark){{:root{{{dark}}}}}\n"


def _subtitle(report: Mapping[str, Any]) -> str:
    config = report["config"]
    parts = [
        f"{report['pes']} PEs ({config['lanes']} lanes of {config['pes_per_lane']})",
        f"skip {config['skip'] or 'none'}", f"{config['stream_words']} stream words",
        f"{report['masks']} masks, seed {report['seed']}",
    ]  # fmt: skip
    if report["without"]:
        parts.append(f"without {', '.join(report['without'])}")
    if report["masks_from"]:
        parts.append(f"masks from {', '.join(report['masks_from'])}")
    return "; ".join([*([report["workload"]] if report["workload"] else []), *parts])


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _cards(report: Mapping[str, Any]) -> str:
    figures = [
        (_number(report.get("speedup_vs_dense"), ".2f") + " x", "the perfect dense array's speed"),
        (_number(report.get("bound"), ".2f") + " x", "is the bound of these masks"),
        (_number(report.get("bound_fraction"), ".1%"), "of the bound, which is the utilisation"),
        (f"{report['cycles']:,}", "cycles, loads and drains included"),
    ]
    for which in report["passes"]:
        name = PASS_NAMES[which["pass"]].lower()
        speed, bound = (_number(which.get(key), ".2f") for key in ("speedup_vs_dense", "bound"))
        figures.append((f"{speed} x", f"{name}, of {bound}"))
    cards = "".join(f'<div class="card"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in figures)
    return f'<div class="cards">{cards}</div>'


def _samples(report: Mapping[str, Any]) -> str:
    if "sampled" not in report:
        return ""
    low, high = report["cycles_95"]
    return (
        f"<p><b>Sampled:</b> {escape(', '.join(report['sampled']))}. Cycles in total lie between {low:,} and {high:,} "
        "(95 % confidence, and less what parts at most load and wait for by themselves).</p>"
    )


def _panels(report: Mapping[str, Any]) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    """(title, pass, entries) for each network and pass."""
    several = len(report["networks"]) > 1
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in report["layers"]:
        if entry["cycles"]:
            found.setdefault((entry["network"], entry["pass"]), []).append(entry)
    return [
        (f"{network}, {PASS_NAMES[which].lower()}" if several else PASS_NAMES[which], which, entries)
        for (network, which), entries in found.items()
    ]


def color_key(items: Sequence[tuple[str, str]], extra: str = "") -> str:
    """Which colour is what: CSS variables and names."""
    marks = "".join(f'<li><i style="background:var(--{color})"></i>{escape(name)}</li>' for color, name in items)
    return f'<ul class="legend">{marks}{extra}</ul>'


def plots(panels: Sequence[tuple[str, str]]) -> str:
    """Titles and plots, side by side as far as there is room."""
    body = "".join(f'<div class="panel"><h3>{escape(title)}</h3>{plot}</div>' for title, plot in panels)
    return f'<div class="plots">{body}</div>'


def _speedups(report: Mapping[str, Any]) -> str:
    panels = []
    for title, which, entries in _panels(report):
        names = [entry["layer"] for entry in entries]
        speeds = [entry["speedup_vs_dense"] for entry in entries]
        bounds = [entry.get("bound") for entry in entries]
        panels.append((title, svg.bound_bars(f"Speed-up by layer, {title}", names, speeds, bounds, which)))
    mark = '<li><i class="mark"></i>bound: dense / effectual products</li>'
    return (
        "<h2>Speed-up by layer</h2><p>Over a perfect dense array of as many multipliers that never stalls, whose "
        "speed is 1. Every plot has a scale of its own.</p>"
        + color_key([(p["pass"], PASS_NAMES[p["pass"]]) for p in report["passes"]], mark)
        + plots(panels)
    )


def _shares(entry: Mapping[str, Any]) -> dict[str, float]:
    total = sum(entry["pe_cycles"].values())
    return {reason: entry["pe_cycles"][reason] / total for reason in REASONS}


def _reasons(report: Mapping[str, Any]) -> str:
    panels = [
        (title, svg.stacked_bars(f"Where PE-cycles went, {title}", [e["layer"] for e in entries],
                                 [_shares(e) for e in entries]))
        for title, _, entries in _panels(report)
    ]  # fmt: skip
    seen = [reason for reason in REASONS if report["pe_cycles"][reason]]
    return (
        "<h2>Where PE-cycles went</h2><p>Every cycle of every PE is charged to the first reason that applies; they "
        "sum to cycles &times; PEs.</p>" + color_key([(reason, reason) for reason in seen]) + plots(panels)
    )


def _densities(report: Mapping[str, Any]) -> str:
    points = []
    for _, which, entries in _panels(report):
        for entry in entries:
            if "bound" in entry:
                density, used = 1 / entry["bound"], entry["utilization"]
                name = f"{entry['network']}/{entry['layer']} {which}"
                tip = f"{name}: combined density {density:.1%}, utilisation {used:.1%}"
                points.append((which, tip, density, used))
    panels = [("Layers of this workload", svg.plane("Utilisation of layers by combined density",
                                                    "combined density (1 / bound)", points=points))]  # fmt: skip
    legend = color_key([(p["pass"], PASS_NAMES[p["pass"]]) for p in report["passes"]])
    curves, note = report.get("curves"), ""
    if curves:
        names = list(dict.fromkeys(point["masks"] for point in curves["points"]))
        lines = [
            (name, _CURVE_NAMES[name],
             [(p["density"], p["utilization"]) for p in curves["points"] if p["masks"] == name])
            for name in names
        ]  # fmt: skip
        plot = svg.plane("Utilisation by density of masks", "density of each operand that is masked", lines)
        note = "<p>Tiles of the curves' layer are chosen by expected cycles, without trials.</p>"
        panels.append((curves["layer"], plot + color_key([(name, _CURVE_NAMES[name]) for name in names])))
    return "<h2>Utilisation against density</h2>" + note + legend + plots(panels)


def _ablation(report: Mapping[str, Any]) -> str:
    rows = report.get("ablation")
    if not rows:
        return ""
    head = "".join(f"<th>skip {escape(row['skip'] or 'none')}</th>" for row in rows)
    body = []
    for i, network in enumerate(report["networks"]):
        lines = [(PASS_NAMES[p["pass"]], [row["networks"][i]["passes"][j] for row in rows])
                 for j, p in enumerate(network["passes"])]  # fmt: skip
        lines.append(("all", [row["networks"][i] for row in rows]))
        for name, values in lines:
            cells = "".join(f"<td>{_number(value.get('speedup_vs_dense'), '.2f')}</td>" for value in values)
            body.append(f'<tr><td>{escape(network["network"])}</td><td class="name">{name}</td>{cells}</tr>')
    return (
        "<h2>What each mask port brings</h2><p>Speed-up over the perfect dense array by the operands whose masks "
        f'skip.</p><div class="panel"><table><tr><th>network</th><th class="name">pass</th>{head}</tr>'
        f"{''.join(body)}</table></div>"
    )


def _table(report: Mapping[str, Any]) -> str:
    heads = ("cycles", "utilisation", "x dense", "bound", "of bound", "words in", "words out", *REASONS[1:])
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    rows = [_row(f"{e['network']}/{e['layer']}", e["pass"], e) for e in report["layers"]]
    for network in report["networks"]:
        rows += [_row(network["network"], p["pass"], p, True) for p in network["passes"]]
        rows.append(_row(network["network"], "all", network, True))
    if len(report["networks"]) > 1:
        rows.append(_row("total", "all", report, True))
    return (
        '<h2>Figures</h2><div class="panel"><table><tr><th>layer</th><th class="name">pass</th>'
        f"{head}</tr>{''.join(rows)}</table></div>"
    )


def _row(name: str, which: str, values: Mapping[str, Any], total: bool = False) -> str:
    cells = [
        f"{values['cycles']:,}", _number(values.get("utilization"), ".3f"),
        _number(values.get("speedup_vs_dense"), ".2f"),
        _number(values.get("bound"), ".2f"), _number(values.get("bound_fraction"), ".1%"),
        f"{values['words_in']:,}", f"{values['words_out']:,}",
    ]  # fmt: skip
    if "sample" in values or "sampled" in values:
        cells[0] = "≈ " + cells[0]
    all_cycles = sum(values["pe_cycles"].values())
    cells += [f"{values['pe_cycles'][r] / all_cycles:.1%}" if all_cycles else "-" for r in REASONS[1:]]
    body = "".join(f"<td>{cell}</td>" for cell in cells)
    kind = ' class="total"' if total else ""
    return f'<tr{kind}><td>{escape(name)}</td><td class="name">{escape(which)}</td>{body}</tr>'


def _footer(report: Mapping[str, Any]) -> str:
    return f"<p>Cycle model, {report['seconds']:.1f} s. Keys of the JSON report carry the same figures.</p>"
