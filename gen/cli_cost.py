"""Commands that say what the hardware costs: netlist sizes, synthesis, place and route."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from maskwork.gen import cli_common as common
from maskwork.gen.config import Config, preset


def _study() -> Config:
    from maskwork.fpga.cost import STUDY

    return STUDY


@click.command(
    short_help="LUTs of a PE and a lane by configuration; clock of an array after routing.",
    epilog=common.examples(
        "maskwork cost",
        "maskwork cost --route",
        "maskwork cost --budget --preset ulx3s-85f",
    ),
)
@common.config_options(_study)
@click.option("--route", is_flag=True, help="Place and route the array of lanes instead (minutes).")
@click.option("--whole", is_flag=True, help="With --route: the whole accelerator, not its lanes alone.")
@click.option("--budget", is_flag=True, help="Count the whole accelerator's cells instead, by parts.")
@click.option("--freq", type=int, default=120, show_default=True, help="Clock that routing aims for, MHz.")
@click.option("--seeds", type=click.IntRange(1, 100), default=1, show_default=True, metavar="N",
              help="Seeds of the placer to try, from 1; the best one counts.")  # fmt: skip
@click.option("--write", metavar="FILE", type=click.Path(path_type=Path), help="Write the result as JSON as well.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cost(
    config: Config, route: bool, whole: bool, budget: bool, freq: int, seeds: int, write: Path | None, as_json: bool
) -> None:  # fmt: skip
    """Synthesise for ECP5 and count cells; LUTs are TRELLIS_COMB cells (LUTs, carries and LUT RAM).

    Without CONFIG on `cost-study`: 16 PEs, four lanes of four, as in preset ulx3s-85f. Needs the extra `synth`.
    """
    from maskwork.fpga import cost as study

    result: Any
    with common.OutputFiles() as files:
        path = files.reserve(write, "--write") if write is not None else None
        steps = 1 + seeds if route else 2 if budget else 2 * len(study.SKIPS) * len(study.ROWS_IN_FLIGHT)
        with common.progress("synthesis", steps) as step:
            if route:
                result = study.routed(config, whole, freq=freq, seeds=seeds, progress=step)
            elif budget:
                result = study.budget(config, step)
            else:
                result = study.cost_table(config, progress=step)
        if path is not None:
            common.write_json(path, result)
            files.commit()
    if as_json:
        common.print_json(result)
    elif route:
        click.echo(
            f"{result['what']} of {result['pes']} PEs on {result['device']}: {result['fmax_mhz']} MHz after routing, "
            f"{result['luts_per_pe']} LUTs a PE (lanes without post-processing)"
        )
        by_seed = ", ".join(f"{seed}: {clock}" for seed, clock in result["fmax_by_seed"].items())
        click.echo(f"  MHz by seed of the placer: {by_seed}")
        for cell, (used, available) in result["used"].items():
            click.echo(f"  {cell}: {used} of {available}")
    elif budget:
        _show_budget(result)
    else:
        _show_table(result)


def _show_table(rows: list[dict[str, Any]]) -> None:
    table = common.new_table("skip", "rows in flight", "PE: LUTs", "FFs", "BRAMs", "lane: LUTs", "FFs", "BRAMs",
                             "DSPs", "lane LUTs a PE")  # fmt: skip
    for row in rows:
        pe, lane = row["pe"], row["lane"]
        cells = (row["rows_in_flight"], pe["luts"], pe["ffs"], pe["brams"], lane["luts"], lane["ffs"], lane["brams"],
                 lane["dsps"], row["lane_per_pe"])  # fmt: skip
        table.add_row(row["skip"] or "none", *map(str, cells))
    common.console().print(table)
    if shared := rows[0].get("shared_weights"):
        click.echo(f"and the weights, which lanes share (weight_lanes): {shared['luts']} LUTs, {shared['ffs']} FFs and "
                   f"{shared['brams']} BRAMs for so many lanes")  # fmt: skip


def _show_budget(result: dict[str, Any]) -> None:
    table = common.new_table("part", "LUTs", "FFs", "BRAMs", "DSPs")
    for name, cells in result["parts"].items():
        table.add_row(name, *(str(cells[key]) for key in ("luts", "ffs", "brams", "dsps")))
    table.add_row(f"of {result['device']}", *(str(result["available"][k]) for k in ("luts", "ffs", "brams", "dsps")))
    common.console().print(table)


@click.command(
    short_help="Size of the generated netlist by number of PEs.",
    epilog=common.examples("maskwork sizes"),
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def sizes(as_json: bool) -> None:
    """Modules and bytes of the SystemVerilog of 16, 64 and 256 PEs, and the seconds to generate it."""
    import time

    from maskwork.gen.generate import generate

    rows = []
    base = preset("ulx3s-85f")
    for lanes in (4, 16, 64):
        config = base.replace(lanes=lanes, name=f"lanes-{lanes}")
        start = time.monotonic()
        made = generate(config)
        rows.append({"pes": config.pes, "modules": made.manifest["modules"], "bytes": len(made.text.encode()),
                     "seconds": round(time.monotonic() - start, 2)})  # fmt: skip
    if as_json:
        common.print_json(rows)
        return
    table = common.new_table("PEs", "modules", "bytes", "seconds")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    common.console().print(table)
