"""Whether an accelerator fits an iCE40UP5K: synthesis, and nextpnr's packing of what comes out."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from maskwork.fpga.synthesis import find_nextpnr, scratch, synthesise
from maskwork.gen.config import Config, preset, presets
from maskwork.gen.errors import MaskworkError
from maskwork.rtl.accelerator import Accelerator

UP5K = ["--up5k", "--package", "sg48"]
"""nextpnr's options for the iCE40UP5K of an iCEBreaker."""

CELLS = {"ICESTORM_LC": "logic cells", "ICESTORM_RAM": "block RAMs", "ICESTORM_DSP": "multipliers"}

_USED = re.compile(r"(ICESTORM_\w+):\s*(\d+)/\s*(\d+)")


def ice40_fit(config: Config, folder: str | None = None) -> dict[str, tuple[int, int]]:
    """Cells that the accelerator takes of an iCE40UP5K, and those it has, by nextpnr's type (keys of ``CELLS``).

    Packed only: the accelerator's streams have more wires than the package has pins.

    Args:
        config: the accelerator.
        folder: keep the build there.

    Raises:
        MaskworkError: if Yosys or nextpnr is missing or fails.
    """
    with scratch(folder) as build:
        synthesise(Accelerator(config), "accelerator", Path(build), family="ice40")
        options = [*UP5K, "--json", "accelerator.json", "--pack-only", "--pcf-allow-unconstrained"]
        done = subprocess.run([*find_nextpnr("ice40").command, *options], cwd=build, capture_output=True, text=True)
    used = {cell: (int(count), int(available)) for cell, count, available in _USED.findall(done.stderr)}
    if done.returncode or not used.keys() >= CELLS.keys():
        raise MaskworkError(f"nextpnr-ice40 failed: {(done.stderr or done.stdout).strip()[-400:]}")
    return {cell: used[cell] for cell in CELLS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: exit status 0 if the accelerator fits."""
    parser = argparse.ArgumentParser(prog="python -m maskwork.fpga.fit", description=__doc__)
    parser.add_argument("--preset", default="icebreaker", help=f"one of {', '.join(presets())} (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a configuration key")
    options = parser.parse_args(arguments)
    try:
        cells = ice40_fit(preset(options.preset).with_settings(options.set))
    except MaskworkError as error:
        print(error, file=sys.stderr)
        return 2
    for cell, (used, available) in cells.items():
        print(f"{CELLS[cell]}: {used} of {available}")
    return 0 if all(used <= available for used, available in cells.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
