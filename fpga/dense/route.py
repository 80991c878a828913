"""The dense array after place and route on an ECP5-85F, speed grade 6."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maskwork.fpga.boards.boards import ECP5_85F
from maskwork.fpga.cost import clocked
from maskwork.fpga.dense.array import DenseArray
from maskwork.fpga.dense.config import DenseConfig
from maskwork.fpga.synthesis import route, scratch, synthesise
from maskwork.gen.errors import MaskworkValueError

DEVICE = "LFE5U-85F, speed grade 6"


def check_size(config: DenseConfig) -> None:
    """Refuse an array that needs more multipliers or block RAMs than the device has.

    Raises:
        MaskworkValueError: then.
    """
    needs = {"multipliers": (config.multipliers, "dsps"), "block RAMs": (config.brams, "brams")}
    for what, (count, key) in needs.items():
        if count > ECP5_85F[key]:
            fewer = "fewer rows or columns, or R x C:DSPS with fewer DSP blocks" if key == "dsps" else "fewer columns"
            raise MaskworkValueError(
                f"dense array of {config.rows} x {config.columns} PEs: does not fit: needs {count} of "
                f"{ECP5_85F[key]} {what}; {fewer}"
            )


def routed_dense(
    config: DenseConfig,
    folder: str | None = None,
    freq: int = 150,
    seeds: int = 1,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Place and route the dense array with its memories.

    Args:
        config: the array.
        folder: keep the build there.
        freq: clock that nextpnr aims for, MHz.
        seeds: how many seeds of the placer to try, from 1; the one with the highest clock counts.
        progress: told each step's name.

    Returns:
        As :func:`maskwork.fpga.cost.routed`: config, pes, device, fmax_mhz, fmax_by_seed, used, tool; ``pe_luts`` are
        those of the PEs, ``luts_per_pe`` that divided by them.

    Raises:
        MaskworkError: if a tool is missing, or the array does not fit.
    """
    check_size(config)
    name = f"{config.rows} x {config.columns} PEs"
    with scratch(folder) as build:
        progress(f"synthesis of {name}")
        synthesise(DenseArray(config), "dense", Path(build))
        tried = {}
        for seed in range(1, seeds + 1):
            progress(f"place and route of {name}, seed {seed}")
            tried[seed] = route(
                Path(build), "dense", clocked(Path(build)), freq=freq, seed=seed, prefixes=(r"pe\d+_\d+\.",),
                reduce="rows or columns",
            )  # fmt: skip
    best = max(tried, key=lambda seed: tried[seed].fmax_mhz)
    result = tried[best]
    pe_luts = next(iter(result.luts_by_prefix.values()))
    return {
        "config": dataclasses.asdict(config),
        "what": "dense array",
        "pes": config.pes,
        "device": DEVICE,
        "fmax_mhz": result.fmax_mhz,
        "aimed_mhz": freq,
        "seed": best,
        "fmax_by_seed": {str(seed): one.fmax_mhz for seed, one in tried.items()},
        "pe_luts": pe_luts,
        "luts_per_pe": round(pe_luts / config.pes, 1),
        "used": {cell: list(counts) for cell, counts in result.used.items()},
        "tool": result.tool,
    }
