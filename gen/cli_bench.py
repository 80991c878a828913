"""The command that measures workloads: ``maskwork bench``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
from maskwork.gen import cli_common as common
from maskwork.gen.bench_sample import SAMPLE
from maskwork.gen.config import Config


@click.command(
    short_help="Cycles, utilisation and speed-up of a workload's layers.",
    epilog=common.examples(
        "maskwork bench WORKLOAD.csv",
        "maskwork bench WORKLOAD.csv --preset sim-64 --masks correlated --html R.html",
        "maskwork bench WORKLOAD.csv --passes forward --layers 'conv*' --skips ,a,ab,abc,ac --json",
        "maskwork bench WORKLOAD.csv --batch 16 --sample 100000000 --masks-from F.npz --report R.json",
    ),
)
@common.config_options()
@click.argument("workload", metavar="WORKLOAD.csv")
@click.option("--passes", metavar="LIST", help="Of forward,input_grad,weight_grad; those that a layer has by default.")
@click.option("--batch", metavar="N", type=click.IntRange(min=1), help="Images, instead of the file's.")
@click.option("--masks", metavar="KIND", default="bernoulli", show_default=True,
              help="bernoulli, or correlated: channels differ in density, neighbours are alike.")  # fmt: skip
@click.option("--masks-from", metavar="F.npz", multiple=True,
              help="Masks or tensors of your own, keys LAYER.TENSOR; repeatable.")  # fmt: skip
@click.option("--seed", metavar="N", type=click.IntRange(min=0), default=1, show_default=True,
              help="Of masks and samples.")  # fmt: skip
@click.option("--layers", metavar="LIST", help="Layers to run: names or patterns such as 'conv*', with commas.")
@click.option("--skips", metavar="LIST",
              help="Compare these values of skip, with commas: ,a,ab,abc,ac (empty: skip nothing).")  # fmt: skip
@click.option("--sample", metavar="N", type=click.IntRange(min=0), default=SAMPLE, show_default=True,
              help="Simulate a sample of about N effectual multiplies of a pass that has more; 0: never.")  # fmt: skip
@click.option("--requantise", metavar="LIST", help="Passes whose results leave as 8 bits; none by default.")
@click.option("--without", metavar="LIST", help="Leave these out: of dealing,multicast,operand,trials (docs/study.md).")
@click.option("--jobs", metavar="N", type=click.IntRange(min=1),
              help="Processes at most; by default as many as processors, one for small workloads.")  # fmt: skip
@click.option("--curves", is_flag=True, help="Measure utilisation against density too (--html does).")
@click.option("--report", metavar="R.json", help="Write the report.")
@click.option("--html", metavar="R.html", help="Write a page with plots, complete in one file.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def bench(
    config: Config, workload: str, passes: str | None, batch: int | None, masks: str, masks_from: tuple[str, ...],
    seed: int, layers: str | None, skips: str | None, sample: int, requantise: str | None, without: str | None,
    jobs: int | None, curves: bool, report: str | None, html: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Cycles, utilisation and speed-up of a workload's layers, on the exact cycle model.

    For each layer and pass: speed-up over a perfect dense array of as many multipliers, the bound that the masks set,
    the fraction of it reached, and where the other PE-cycles went. Masks are drawn from the file's densities.
    """
    from maskwork.gen.bench import Bench

    with common.OutputFiles([workload, *masks_from]) as files:
        outputs = (("--report", report), ("--html", html))
        paths = {option: files.reserve(path, option) for option, path in outputs if path is not None}
        the_bench = Bench(
            workload, config, passes=common.names(passes, "--passes"), batch=batch, masks=masks, masks_from=masks_from,
            seed=seed, layers=common.names(layers, "--layers"), skips=_skips(skips), sample=sample,
            requantise=common.names(requantise, "--requantise") or (),
            without=common.names(without, "--without") or (), curves=curves or html is not None, jobs=jobs,
        )  # fmt: skip
        for unread in the_bench.unread:
            click.echo(f"maskwork: warning: --masks-from: no pass that runs reads {unread}", err=True)
        with common.progress("simulating", the_bench.steps) as step:
            result = the_bench.run(step)
        if report is not None:
            common.write_json(paths["--report"], result)
        if html is not None:
            from maskwork.gen.bench_html import page

            paths["--html"].write_text(page(result), encoding="utf-8")
        files.commit()
    if as_json:
        common.print_json(result)
    else:
        _show(result)
        for option, path in outputs:
            if path is not None:
                click.echo(f"{option} {path}")


def _skips(text: str | None) -> list[str] | None:
    if text is None:
        return None
    return ["" if part.strip() == "none" else part.strip() for part in text.split(",")]


# ---------------------------------------------------------------------- tables

_HEADINGS = ("pass", "cycles", "utilisation", "x dense", "bound", "of bound", "words in", "words out")


def _figure(values: Mapping[str, Any], key: str, form: str) -> str:
    return format(values[key], form) if key in values else "-"


def _cells(values: Mapping[str, Any]) -> list[str]:
    cycles = f"{values['cycles']:,}"
    interval = values.get("cycles_95") or values.get("sample", {}).get("cycles_95")
    if interval:
        cycles += f" -{values['cycles'] - interval[0]:,} +{interval[1] - values['cycles']:,}"
    return [
        cycles,
        _figure(values, "utilization", ".3f"), _figure(values, "speedup_vs_dense", ".2f"),
        _figure(values, "bound", ".2f"), _figure(values, "bound_fraction", ".1%"),
        f"{values['words_in']:,}", f"{values['words_out']:,}", losses(values),
    ]  # fmt: skip


def losses(values: Mapping[str, Any], most: int = 3) -> str:
    """The largest reasons for PE-cycles that were not effectual, with their shares."""
    reasons = {name: count for name, count in values["pe_cycles"].items() if name != "effectual" and count}
    total = sum(values["pe_cycles"].values())
    largest = sorted(reasons, key=lambda name: -reasons[name])[:most]
    return ", ".join(f"{name} {reasons[name] / total:.1%}" for name in largest)


def _total_rows(name: str, values: Mapping[str, Any]) -> list[list[str]]:
    rows = [[name, which["pass"], *_cells(which)] for which in values["passes"]]
    return rows if len(rows) == 1 else [*rows, [name, "all", *_cells(values)]]


def _show(result: dict[str, Any]) -> None:
    from rich.markup import escape

    table = common.new_table("layer", *_HEADINGS)
    table.add_column("most PE-cycles lost to", no_wrap=True)
    several = len(result["networks"]) > 1
    for entry in result["layers"]:
        name = f"{entry['network']}/{entry['layer']}" if several else entry["layer"]
        table.add_row(escape(name), entry["pass"], *_cells(entry))
    table.add_section()
    for network in result["networks"]:
        for row in _total_rows(escape(network["network"]), network):
            table.add_row(*row)
    if several:
        for row in _total_rows("total", result):
            table.add_row(*row)
    common.console().print(table)
    config = result["config"]
    without = f", without {', '.join(result['without'])}" if result["without"] else ""
    click.echo(f"{config['name']}, {result['pes']} PEs, skip {config['skip'] or 'none'}, {result['masks']} masks, "
               f"seed {result['seed']}{without}")  # fmt: skip
    if "layout_words" in result:
        click.echo(f"with the layout of weight gradients' streamed operands changed while the array waits "
                   f"({result['layout_words']:,} words): {result['speedup_with_layout']:.2f} x dense")  # fmt: skip
    if "sampled" in result:
        _show_samples(result)
    if "ablation" in result:
        _show_ablation(result["ablation"])


def _show_samples(result: Mapping[str, Any]) -> None:
    click.echo(
        "Sampled, with 95 % confidence intervals of the cycles, less what parts at most load and wait for alone:"
    )
    for entry in result["layers"]:
        if "sample" in entry:
            sample = entry["sample"]
            low, high = sample["cycles_95"]
            name = f"{entry['network']}/{entry['layer']} {entry['pass']}"
            click.echo(
                f"  {name}: {sample['simulated']} of {sample['parts']} parts "
                f"({sample['share']:.1%} of the effectual multiplies), {low:,} to {high:,} cycles"
            )


def _show_ablation(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.markup import escape

    networks = [network["network"] for network in rows[0]["networks"]]
    table = common.new_table("network", "pass", *(f"skip {row['skip'] or 'none'}" for row in rows))
    for i, network in enumerate(networks):
        lines = [("all", [row["networks"][i] for row in rows])]
        passes = [which["pass"] for which in rows[0]["networks"][i]["passes"]]
        if len(passes) > 1:
            lines[:0] = [(name, [row["networks"][i]["passes"][j] for row in rows]) for j, name in enumerate(passes)]
        for name, values in lines:
            table.add_row(escape(network), name, *(_figure(value, "speedup_vs_dense", ".2f") for value in values))
    click.echo("Speed-up over the perfect dense array by skip:")
    common.console().print(table)
