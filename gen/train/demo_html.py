"""The training demonstration's report as one HTML page with plots over the epochs: nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from maskwork.gen.bench_html import PASS_NAMES, STYLE, color_key, document, plots, theme
from maskwork.gen.bench_svg import LEFT, RIGHT, TOP, axis, circle, num, picture, ticks
from maskwork.gen.workload import PASSES

_COLORS = ("forward", "input_grad", "weight_grad", "abc", "drain", "imbalance", "load", "dispatch")
"""CSS variables of lines, in turn."""

Line = tuple[str, str, Sequence[float | None]]
"""CSS variable, name, value of each epoch."""


def lines(title: str, entries: Sequence[Line], form: str, top: float | None = None) -> str:
    """Lines over the epochs, from 1; values that are None are left out.

    Args:
        title: what is shown, for screen readers.
        entries: the lines.
        form: of the axis' numbers.
        top: of the axis; by default the largest value.
    """
    width, height = 340.0, 170.0
    known = [value for _, _, values in entries for value in values if value is not None]
    scale = ticks(top if top is not None else max(known, default=0.0))
    count = max((len(values) for _, _, values in entries), default=1)
    body = axis(scale, width, height, form)
    every = -(-count // 10)
    for i in range(0, count, every):
        x = LEFT + width * (i + 0.5) / count
        body.append(f'<text class="tick middle" x="{num(x)}" y="{num(TOP + height + 16)}">{i + 1}</text>')
    body.append(f'<text class="tick middle" x="{num(LEFT + width / 2)}" y="{num(TOP + height + 34)}">epoch</text>')
    for color, name, values in entries:
        points = [(LEFT + width * (i + 0.5) / count, TOP + height * (1 - value / scale[-1]), i, value)
                  for i, value in enumerate(values) if value is not None]  # fmt: skip
        path = " ".join(f"{num(x)},{num(y)}" for x, y, _, _ in points)
        body.append(f'<polyline class="line" points="{path}" style="stroke:var(--{color})"/>')
        body += [circle(x, y, 3, color, f"{name}, epoch {i + 1}: {format(value, form)}") for x, y, i, value in points]
    text = "; ".join(
        f"{name}: {', '.join('-' if value is None else format(value, form) for value in values)}"
        for _, name, values in entries
    )
    return picture(LEFT + width + RIGHT, TOP + height + 42, title, text, body)


def page(report: Mapping[str, Any]) -> str:
    """The page for a report of :func:`maskwork.gen.train.demo.run`."""
    title = f"maskwork train-demo: {report['config']['name']}"
    sections = [f"<h1>{escape(title)}</h1>", f"<p>{escape(_subtitle(report))}</p>", _cards(report), _training(report),
                _densities(report), _cycles(report), _table(report), _replay(report)]  # fmt: skip
    return document(title, theme() + STYLE, sections)


def _subtitle(report: Mapping[str, Any]) -> str:
    pruned = f"gradients pruned at p = {report['prune']:g}" if report["prune"] else "gradients not pruned"
    return (
        f"{report['train_images']} images of handwritten digits, batches of {report['batch']}; {report['bits']}-bit "
        f"operands, {report['rounding']} rounding of gradients, {pruned}, seed {report['seed']}; {report['pes']} PEs"
    )


def _cards(report: Mapping[str, Any]) -> str:
    figures = [(f"{report['test_accuracy']:.2%}", f"of {report['test_images']} test images right"),
               (f"{report['macs_saved']:.1%}", "of all multiplies saved")]  # fmt: skip
    last = report["epochs"][-1]["layers"]
    if "cycles" in last[0]:
        cycles = sum(layer["cycles"] for layer in last)
        dense = sum(layer["macs_dense"] for layer in last) / report["pes"]
        figures.append(
            (f"{dense / cycles:.2f} x", f"the perfect dense array's speed: the last step, {cycles:,} cycles")
        )
    cards = "".join(f'<div class="card"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in figures)
    return f'<div class="cards">{cards}</div>'


def _panel(title: str, entries: Sequence[Line], form: str, top: float | None = None) -> tuple[str, str]:
    legend = color_key([(color, name) for color, name, _ in entries]) if len(entries) > 1 else ""
    return title, lines(title, entries, form, top) + legend


def _training(report: Mapping[str, Any]) -> str:
    epochs = report["epochs"]
    shares: list[Line] = [
        (which, PASS_NAMES[which],
         [1 - e["passes"]["macs_effectual"][which] / e["passes"]["macs_dense"][which] for e in epochs])
        for which in PASSES
    ]  # fmt: skip
    panels = [
        _panel("Test accuracy", [("forward", "test accuracy", [e["test_accuracy"] for e in epochs])], ".0%", 1.0),
        _panel("Loss", [("input_grad", "loss", [e["loss"] for e in epochs])], "g"),
        _panel("Multiplies saved", shares, ".0%", 1.0),
    ]
    return (
        "<h2>Training</h2><p>Multiplies saved are those with a factor of zero or a result that nobody wants, of all "
        "steps of an epoch.</p>" + plots(panels)
    )


def _by_layer(report: Mapping[str, Any], which: str, value: Callable[[Mapping[str, Any]], Any]) -> list[Line]:
    """A line a layer of a figure of one pass, in the order of the network."""
    names = [layer["layer"] for layer in report["epochs"][0]["layers"] if layer["pass"] == "forward"]
    found: list[Line] = []
    for number, name in enumerate(names):
        values = [
            next((value(layer) for layer in epoch["layers"] if (layer["layer"], layer["pass"]) == (name, which)), None)
            for epoch in report["epochs"]
        ]
        if any(v is not None for v in values):
            found.append((_COLORS[number % len(_COLORS)], name, values))
    return found


def _densities(report: Mapping[str, Any]) -> str:
    panels = [
        _panel("Input", _by_layer(report, "forward", lambda layer: layer["densities"]["a"]), ".0%", 1.0),
        _panel("Output gradient", _by_layer(report, "weight_grad", lambda layer: layer["densities"]["b"]), ".0%", 1.0),
        _panel("Input gradient that is wanted",
               _by_layer(report, "input_grad", lambda layer: layer["densities"]["c"]), ".0%", 1.0),
    ]  # fmt: skip
    return "<h2>Densities</h2><p>Of each layer in the last step of each epoch.</p>" + plots(panels)


def _cycles(report: Mapping[str, Any]) -> str:
    if "cycles" not in report["epochs"][0]["layers"][0]:
        return ""
    panels = [_panel(PASS_NAMES[which], _by_layer(report, which, lambda layer: layer["speedup_vs_dense"]), "g")
              for which in PASSES]  # fmt: skip
    return (
        "<h2>Speed</h2><p>Of each layer in the last step of each epoch, over a perfect dense array of as many "
        "multipliers that never stalls, whose speed is 1; loads and drains included.</p>" + plots(panels)
    )


def _table(report: Mapping[str, Any]) -> str:
    rows = []
    first, last = report["epochs"][0]["layers"], report["epochs"][-1]["layers"]
    for old, new in zip(first, last, strict=True):
        cells = [f"{layer['densities'][name]:.2f}" for name in "abc" for layer in (old, new)]
        cells += [f"{layer['macs_effectual'] / max(1, layer['macs_dense']):.1%}" for layer in (old, new)]
        cells += [f"{layer['cycles']:,}" if "cycles" in layer else "-" for layer in (old, new)]
        body = "".join(f"<td>{cell}</td>" for cell in cells)
        name = PASS_NAMES[new["pass"]]
        rows.append(f'<tr><td>{escape(new["layer"])}</td><td class="name">{name}</td>{body}</tr>')
    heads = "".join(f"<th>{name}, first</th><th>last</th>" for name in ("A", "B", "C", "multiplies", "cycles"))
    return (
        "<h2>First and last epoch</h2><p>Densities of the operands A and B and of the wanted results C, share of "
        'multiplies that are left, and cycles.</p><div class="panel"><table><tr><th>layer</th>'
        f'<th class="name">pass</th>{heads}</tr>{"".join(rows)}</table></div>'
    )


def _replay(report: Mapping[str, Any]) -> str:
    replay = report["replay"]
    if replay is None:
        return ""
    return (
        f"<p>A step of {replay['images']} images was replayed on {escape(replay['target'])}: {replay['products']} "
        f"products, {replay['values']:,} results equal to the golden model's bit for bit, counters to the cycle "
        f"model's; {replay['cycles']:,} cycles.</p>"
    )
