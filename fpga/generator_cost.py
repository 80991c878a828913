"""What the mask unit costs on an ECP5: each block alone, the unit with one block and with all, and the accelerator."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from amaranth.lib import wiring
from maskwork.fpga.cost import clocked
from maskwork.fpga.synthesis import route, scratch, synthesise
from maskwork.gen.config import GENERATORS, Config, preset
from maskwork.gen.errors import MaskworkError
from maskwork.rtl.accelerator import Accelerator
from maskwork.rtl.array_harness import Harness
from maskwork.rtl.mask_dropout import Dropout
from maskwork.rtl.mask_norms import Norms
from maskwork.rtl.mask_project import Project
from maskwork.rtl.mask_prune import Pruner
from maskwork.rtl.mask_store import MaskStore
from maskwork.rtl.mask_threshold import Threshold
from maskwork.rtl.mask_unit import MaskUnit

ALL = ",".join(GENERATORS)

Progress = Callable[[str], None]


def block(config: Config, name: str) -> wiring.Component:
    """A block of the mask unit by its name in ``generators``, without what the unit adds to it."""
    made: dict[str, Callable[[], wiring.Component]] = {
        "threshold": lambda: Threshold(config.a_width),
        "prune": lambda: Pruner(config.a_width),
        "dropout": Dropout,
        "norms": lambda: Norms(config),
        "project": lambda: Project(config),
        "store": lambda: MaskStore(config),
    }
    return made[name]()


def generator_table(
    config: Config, whole: bool = True, folder: str | None = None, progress: Progress = lambda _: None
) -> list[dict[str, Any]]:
    """Synthesise the blocks, the unit and the accelerator.

    Args:
        config: the accelerator, whatever its ``generators``.
        whole: the accelerator too, which takes a minute each without and with the unit.
        folder: keep the builds there.
        progress: told each build's name.

    Returns:
        One dict a design: ``what``, luts, ffs, brams, dsps.
    """
    designs: list[tuple[str, Callable[[], wiring.Component]]] = []
    for name in GENERATORS:
        designs.append((f"block {name}", lambda name=name: block(config, name)))
    for names in (*GENERATORS, ALL):
        title = "all blocks" if names == ALL else f"{names} only"
        designs.append((f"unit, {title}", lambda names=names: MaskUnit(config.replace(generators=names))))
    if whole:
        for title, names in (("no mask unit", ""), ("all blocks", ALL)):
            designs.append((f"accelerator, {title}", lambda names=names: Accelerator(config.replace(generators=names))))
    table = []
    with scratch(folder) as build:
        for number, (what, design) in enumerate(designs):
            progress(what)
            cost = synthesise(design(), f"design{number}", Path(build))
            table.append({"what": what, **{key: getattr(cost, key) for key in ("luts", "ffs", "brams", "dsps")}})
    return table


def routed_unit(config: Config, seeds: int, progress: Progress = lambda _: None) -> dict[str, float]:
    """Clock of the unit with all blocks, MHz, alone between registers on an LFE5U-85F of speed grade 6: by seed."""
    clocks = {}
    with scratch() as build:
        progress("synthesis of the unit between registers")
        synthesise(Harness({"unit": MaskUnit(config.replace(generators=ALL))}), "unit", Path(build))
        for seed in range(1, seeds + 1):
            progress(f"place and route, seed {seed}")
            clocks[str(seed)] = route(Path(build), "unit", clocked(Path(build)), seed=seed).fmax_mhz
    return clocks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: a table for docs/cost.md."""
    parser = argparse.ArgumentParser(prog="python -m maskwork.fpga.generator_cost", description=__doc__)
    parser.add_argument("--preset", default="small", help="the accelerator (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a configuration key")
    parser.add_argument("--units", action="store_true", help="blocks and units only, not the accelerator")
    parser.add_argument("--seeds", type=int, default=0, metavar="N", help="route the unit with N seeds of the placer")
    parser.add_argument("--write", metavar="FILE", type=Path, help="write the result as JSON as well")
    options = parser.parse_args(arguments)
    say: Progress = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    try:
        config = preset(options.preset).with_settings(options.set)
        table = generator_table(config, not options.units, progress=say)
        clocks = routed_unit(config, options.seeds, say) if options.seeds > 0 else {}
    except MaskworkError as error:
        print(error, file=sys.stderr)
        return 2
    print("| what | LUTs | FFs | block RAMs | multipliers |\n|---|---:|---:|---:|---:|")
    for row in table:
        print(f"| {row['what']} | {row['luts']:,} | {row['ffs']:,} | {row['brams']} | {row['dsps']} |")
    for seed, clock in clocks.items():
        print(f"unit routed alone, seed {seed}: {clock} MHz")
    if options.write:
        result = {"config": config.to_dict(), "table": table, "fmax_by_seed": clocks}
        options.write.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
