"""What the array costs on an ECP5: one PE and one lane by configuration, and an array after routing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maskwork.fpga.synthesis import route, scratch, synthesise
from maskwork.gen.config import Config
from maskwork.rtl.accelerator import Accelerator
from maskwork.rtl.array_harness import ArrayHarness
from maskwork.rtl.cluster import Cluster
from maskwork.rtl.lane import Lane
from maskwork.rtl.pe import PE
from maskwork.rtl.shared_weights import SharedWeights

SKIPS = ("", "a", "ab", "ac", "abc")
ROWS_IN_FLIGHT = (2, 4)

STUDY = Config(name="cost-study", k_depth=64)
"""The lane of preset ulx3s-85f in one cluster of four: 16 PEs."""

ECP5_85F_6 = ["--85k", "--package", "CABGA381", "--speed", "6"]

CLOCK_PIN = 'LOCATE COMP "clk" SITE "G2";\n'
"""A pin from which the clock network can be reached, in package CABGA381."""

Progress = Callable[[str], None]


def cost_table(config: Config = STUDY, folder: str | None = None, progress: Progress = lambda _: None) -> list[dict]:
    """Synthesise a PE and a lane for every choice of skipping and of rows in flight.

    Args:
        config: everything else.
        folder: keep the builds there.
        progress: told each build's name.

    Returns:
        One dict a configuration: skip, rows_in_flight, and for "pe" and "lane" luts, ffs, brams, dsps; ``lane_per_pe``
        is the lane's LUTs divided by its PEs. With ``weight_lanes`` above 1 neither has its weights: these are
        "shared_weights", of so many lanes.
    """
    table = []
    with scratch(folder) as build:
        for rows in ROWS_IN_FLIGHT:
            for skip in SKIPS:
                chosen = config.replace(skip=skip, rows_in_flight=rows)
                row: dict[str, Any] = {"skip": skip, "rows_in_flight": rows}
                parts: dict[str, Any] = {"pe": PE(chosen), "lane": Lane(chosen)}
                if config.weight_lanes > 1:
                    parts["shared_weights"] = SharedWeights(chosen)
                for name, component in parts.items():
                    progress(f'{name}, skip "{skip}", {rows} rows in flight')
                    cost = dataclasses.asdict(synthesise(component, f"{name}_{skip}_{rows}", Path(build)))
                    row[name] = {key: cost[key] for key in ("luts", "ffs", "brams", "dsps")}
                row["lane_per_pe"] = round(row["lane"]["luts"] / config.pes_per_lane, 1)
                table.append(row)
    return table


def routed(
    config: Config = STUDY,
    whole: bool = False,
    folder: str | None = None,
    freq: int = 120,
    seeds: int = 1,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Place and route on an ECP5-85F, speed grade 6: the array (all lanes, between registers) or the accelerator.

    Args:
        config: the accelerator.
        whole: the whole accelerator, with its loader, fetch and post-processing units.
        folder: keep the build there.
        freq: clock that nextpnr aims for, MHz.
        seeds: how many seeds of the placer to try, from 1; the one with the highest clock counts.
        progress: told each step's name.

    Returns:
        fmax_mhz after routing, that of every seed in ``fmax_by_seed``, cells used, ``lane_luts`` of all lanes together
        (their post-processing is not in them) and ``luts_per_pe``: that divided by the PEs.
    """
    with scratch(folder) as build:
        name = "accelerator" if whole else "array"
        progress(f"synthesis of {config.name}")
        synthesise(Accelerator(config) if whole else ArrayHarness(config), name, Path(build))
        lanes = r"(cluster\d+\.)?(lane|weights)\d+\."
        tried = {}
        for seed in range(1, seeds + 1):
            progress(f"place and route of {config.name}, seed {seed}")
            tried[seed] = route(Path(build), name, clocked(Path(build)), freq=freq, seed=seed, prefixes=(lanes,))
        best = max(tried, key=lambda seed: tried[seed].fmax_mhz)
        result = tried[best]
    return {
        "config": config.to_dict(),
        "what": "accelerator" if whole else "array",
        "pes": config.pes,
        "device": "LFE5U-85F, speed grade 6",
        "fmax_mhz": result.fmax_mhz,
        "aimed_mhz": freq,
        "seed": best,
        "fmax_by_seed": {str(seed): one.fmax_mhz for seed, one in tried.items()},
        "lane_luts": result.luts_by_prefix[lanes],
        "luts_per_pe": round(result.luts_by_prefix[lanes] / config.pes, 1),
        "used": result.used,
        "tool": result.tool,
    }


def clocked(folder: Path) -> list[str]:
    """Options of nextpnr for an LFE5U-85F with its clock on a pin made for it; writes a file into ``folder``."""
    (folder / "clock.lpf").write_text(CLOCK_PIN, encoding="utf-8")
    return [*ECP5_85F_6, "--lpf", "clock.lpf"]


def budget(config: Config, progress: Progress = lambda _: None, folder: str | None = None) -> dict[str, Any]:
    """Cells of the whole accelerator: one cluster is synthesised, and the accelerator with one cluster around it.

    Args:
        config: the accelerator.
        progress: told each step's name.
        folder: keep the builds there.

    Returns:
        ``parts``: for a cluster, for what is there once, and in total luts, ffs, brams, dsps; ``available`` on an
        ECP5-85F.
    """
    single = config.replace(lanes=config.lanes_per_cluster)
    with scratch(folder) as build:
        progress("one cluster")
        cluster = synthesise(Cluster(config), "cluster", Path(build))
        progress("accelerator with one cluster")
        whole = synthesise(Accelerator(single), "accelerator", Path(build))
    keys = ("luts", "ffs", "brams", "dsps")
    one = {key: getattr(cluster, key) for key in keys}
    once = {key: max(0, getattr(whole, key) - one[key]) for key in keys}
    total = {key: config.clusters * one[key] + once[key] for key in keys}
    return {
        "config": config.to_dict(),
        "device": "LFE5U-85F",
        "parts": {"one cluster": one, "there once": once, f"{config.clusters} clusters in all": total},
        "available": {"luts": 83640, "ffs": 83640, "brams": 208, "dsps": 156},
    }
