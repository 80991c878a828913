"""The sparse and the dense array on the same device: speed on workloads, by LUT, and where they break even."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from maskwork.fpga.dense.config import DenseConfig
from maskwork.fpga.dense.cycles import product_cycles
from maskwork.fpga.dense.layers import layer_cycles
from maskwork.gen.workload import Layer

FORMAT, VERSION = "maskwork-compare", 1

Array = Mapping[str, Any]


def twice(dense: Array) -> dict[str, Any]:
    """The dense array as it would be if its DSP blocks were split into two 9 x 9 multipliers each.

    ECP5 can do that (MULT9X9D) but nextpnr cannot use it, so this array is not routed: twice the columns and twice the
    LUTs at the same clock.
    """
    config = {**dense["config"], "columns": 2 * dense["config"]["columns"]}
    luts = {**dense["luts"], "used": 2 * dense["luts"]["used"]}
    pes, rate = 2 * dense["pes"], 2 * dense["peak_products_per_s"]
    return {**dense, "name": "dense-9x9", "pes": pes, "peak_products_per_s": rate, "luts": luts, "config": config,
            "hypothetical": True}  # fmt: skip


def shape(dense: Array) -> DenseConfig:
    """Its configuration."""
    return DenseConfig(**dense["config"])


def speeds(sparse: Array, denses: Sequence[Array], entries: Sequence[Mapping[str, Any]], layers: Sequence[Layer]
           ) -> dict[str, Any]:  # fmt: skip
    """Products a second of all arrays on some layers and passes, and speed-ups of the sparse one.

    Args:
        sparse: record of the sparse array.
        denses: of the dense ones.
        entries: of a bench report: network, layer, pass, cycles, macs_dense.
        layers: the workload's.

    Returns:
        ``macs_dense``; for each array in ``arrays`` cycles, seconds, products_per_s and ``utilization`` (dense
        products / (cycles x PEs); above 1 where skipping wins); for each dense one in ``speedup``: ``real`` against
        its own cycles, ``perfect`` against the same PEs never idle, ``real_per_lut``: by LUTs used.
    """
    by_name = {layer.name: layer for layer in layers}
    macs = sum(entry["macs_dense"] for entry in entries)
    cycles = {sparse["name"]: sum(entry["cycles"] for entry in entries)}
    for dense in denses:
        config = shape(dense)
        cycles[dense["name"]] = sum(
            layer_cycles(config, by_name[f"{entry['network']}/{entry['layer']}"], entry["pass"]) for entry in entries
        )
    arrays = {}
    for array in (sparse, *denses):
        own = cycles[array["name"]]
        seconds = own / (array["fmax_mhz"] * 1e6)
        arrays[array["name"]] = {"cycles": own, "seconds": seconds, "products_per_s": macs / seconds,
                                 "utilization": macs / (own * array["pes"])}  # fmt: skip
    rate = arrays[sparse["name"]]["products_per_s"]
    speedup = {}
    for dense in denses:
        real = rate / arrays[dense["name"]]["products_per_s"]
        speedup[dense["name"]] = {
            "real": real,
            "perfect": rate / dense["peak_products_per_s"],
            "real_per_lut": real * dense["luts"]["used"] / sparse["luts"]["used"],
        }
    return {"macs_dense": macs, "arrays": arrays, "speedup": speedup}


def workload_speeds(sparse: Array, denses: Sequence[Array], report: Mapping[str, Any], layers: Sequence[Layer]
                    ) -> list[dict[str, Any]]:  # fmt: skip
    """:func:`speeds` of each network of a bench report, with the same by ``passes`` and by ``layers``."""
    found = []
    for network in dict.fromkeys(entry["network"] for entry in report["layers"]):
        own = [entry for entry in report["layers"] if entry["network"] == network]
        passes = [
            {"pass": which, **speeds(sparse, denses, [e for e in own if e["pass"] == which], layers)}
            for which in dict.fromkeys(entry["pass"] for entry in own)
        ]
        each = [{"layer": e["layer"], "pass": e["pass"], **speeds(sparse, denses, [e], layers)} for e in own]
        sampled = any("sample" in entry for entry in own)
        found.append({"network": network, "sampled": sampled, **speeds(sparse, denses, own, layers), "passes": passes,
                      "layers": each})  # fmt: skip
    return found


CURVE_PRODUCT = (784, 576, 64)
"""Sizes of the layer of :mod:`maskwork.gen.bench_curves`: 28 x 28 pixels, 9 taps of 64 channels, 64 outputs."""

CURVE_MACS = (3 * 28 - 2) ** 2 * 64 * 64
"""Its products without those on padding, which reports do not count and the dense array does all the same."""


def break_even(sparse: Array, denses: Sequence[Array], curves: Mapping[str, Any]) -> dict[str, Any]:
    """Speed of the sparse array over each dense one by combined density, and the density where both are equal.

    Args:
        sparse: record of the sparse array.
        denses: of the dense ones.
        curves: ``curves`` of a bench report on the sparse array's configuration.

    Returns:
        ``layer``; ``curves``: for each dense array and operands masked (``masks``) the ``points`` (density of each
        operand, ``combined``: the product of all, ``speedup``) and ``break_even``: the combined density below which the
        sparse array wins, by interpolation between logarithms; None if it wins or loses everywhere (``always``:
        "wins" or "loses").
    """
    found = []
    for dense in denses:
        config = shape(dense)
        cycles = product_cycles(config.rows, config.columns, *CURVE_PRODUCT)
        rate = CURVE_MACS / cycles * dense["fmax_mhz"]
        for masks in dict.fromkeys(point["masks"] for point in curves["points"]):
            points = []
            for point in sorted((p for p in curves["points"] if p["masks"] == masks), key=lambda p: p["density"]):
                own = point["speedup_vs_dense"] * sparse["pes"] * sparse["fmax_mhz"]
                points.append({"density": point["density"], "combined": point["density"] ** len(masks),
                               "utilization": point["utilization"], "speedup": own / rate})  # fmt: skip
            found.append({"dense": dense["name"], "masks": masks, "points": points, **crossing(points)})
    return {"layer": curves["layer"], "curves": found}


def crossing(points: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Where the speed-up falls to 1 as the combined density grows; points are in that order."""
    for before, after in itertools.pairwise(points):
        if before["speedup"] >= 1 > after["speedup"]:
            x, y = (math.log(p["combined"]) for p in (before, after))
            share = math.log(before["speedup"]) / math.log(before["speedup"] / after["speedup"])
            return {"break_even": math.exp(x + (y - x) * share), "always": None}
    return {"break_even": None, "always": "wins" if points[-1]["speedup"] >= 1 else "loses"}


def mask_ports(costs: Sequence[Mapping[str, Any]], ablation: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each mask port costs, in a small routed array, and earns on workloads.

    Args:
        costs: for each value of skip, the first being the one that others are compared with: ``skip`` and the
            record of its array.
        ablation: of a bench report, with the same values.

    Returns:
        For each: skip, luts_per_pe, brams, fmax_mhz, and by network ``cycles``, ``gain`` (cycles of the first / its
        own) and ``net`` (gain x ratio of clocks / ratio of LUTs a PE).
    """
    rows, base = [], costs[0]
    totals = {own["skip"]: {network["network"]: network["cycles"] for network in own["networks"]} for own in ablation}
    for cost in costs:
        luts, clock = (cost["luts"]["used"] / cost["pes"], cost["fmax_mhz"])
        ratio = clock / base["fmax_mhz"] / (luts / (base["luts"]["used"] / base["pes"]))
        networks = []
        for network, cycles in totals.get(cost["skip"], {}).items():
            gain = totals[base["skip"]][network] / cycles
            networks.append({"network": network, "cycles": cycles, "gain": gain, "net": gain * ratio})
        rows.append({"skip": cost["skip"], "pes": cost["pes"], "luts_per_pe": luts, "brams": cost["brams"]["used"],
                     "fmax_mhz": clock, "networks": networks})  # fmt: skip
    return rows
