"""Places for the block RAMs of a large array on ECP5, before nextpnr's placer starts.

A board's design has a handful of pins. Where nothing else is fixed, the analytic placer's first solution is one heap
around them, which it takes many slow iterations to spread. Block RAMs fixed where their lanes shall be are anchors.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_CLUSTER = re.compile(r"cluster(\d+)\.")
_LANE = re.compile(r"\.(?:lane|weights)(\d+)\.")
"""A lane's, or those that it shares with its neighbour (``weight_lanes``)."""

_PE = re.compile(r"\.pe(\d+)\.")

FULL = 0.5
"""Least part of a device's block RAMs in use for a floorplan to pay: smaller designs find their place themselves."""


@dataclasses.dataclass(frozen=True)
class Device:
    """Where a device has its block RAMs: groups of four, in rows.

    Attributes:
        groups: first column of each group; its block RAMs are two columns apart.
        rows: rows of the device.
    """

    groups: tuple[int, ...]
    rows: tuple[int, ...]

    @property
    def columns(self) -> list[int]:
        """Column of each block RAM of a row."""
        return [first + 2 * n for first in self.groups for n in range(4)]

    def bel(self, column: int, row: int) -> str:
        """Return nextpnr's name of the block RAM there."""
        return f"X{column}/Y{row}/EBR{self.columns.index(column) % 4}"


DEVICES = {
    "--12k": Device((4, 13, 22, 33, 42, 51, 60), (25, 37)),
    "--25k": Device((4, 13, 22, 33, 42, 51, 60), (25, 37)),
    "--45k": Device((4, 13, 22, 31, 42, 51, 60, 69, 78), (10, 34, 58)),
    "--85k": Device((4, 13, 22, 31, 40, 49, 58, 69, 78, 87, 96, 105, 114), (22, 46, 70, 82)),
}
"""By nextpnr's option for the device."""


def place_rams(netlist: dict[str, Any], device: Device) -> int:
    """Fix the block RAMs of an array's clusters: each cluster a vertical strip, its lanes one after the other in it.

    Args:
        netlist: Yosys' JSON of a flattened design; cells of the top get attributes ``BEL``.
        device: where the block RAMs are.

    Returns:
        How many were fixed: none if the design has too few (``FULL``), too many, or no clusters.
    """
    tops = [module for module in netlist["modules"].values() if int(module["attributes"].get("top", "0"), 2)]
    cells = tops[0]["cells"]
    clusters: dict[int, dict[int, list[str]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for name, cell in cells.items():
        if cell["type"] == "DP16KD" and (cluster := _CLUSTER.search(name)):
            lane = _LANE.search(name)
            clusters[int(cluster[1])][int(lane[1]) if lane else -1].append(name)
    sizes = [sum(map(len, clusters[cluster].values())) for cluster in sorted(clusters)]
    available = len(device.columns) * len(device.rows)
    if not FULL * available <= sum(sizes) <= available:
        return 0
    strips = _strips(sizes, device)
    if strips is None:
        return 0
    for cluster, columns in zip(sorted(clusters), strips, strict=True):
        sites = [(x, y) for n, y in enumerate(device.rows) for x in (columns if n % 2 == 0 else columns[::-1])]
        names = _in_order(clusters[cluster])
        for n, name in enumerate(names):  # spare sites are spread between them
            site = sites[n * (len(sites) - 1) // max(1, len(names) - 1)]
            cells[name].setdefault("attributes", {})["BEL"] = device.bel(*site)
    return sum(sizes)


def _strips(sizes: list[int], device: Device) -> list[list[int]] | None:
    """Columns for each cluster, in proportion to its block RAMs; ``None`` if one does not fit into its own."""
    columns, rows = device.columns, len(device.rows)
    strips, start = [], 0
    for n, size in enumerate(sizes):
        left = sum(sizes[n:])
        width = max(-(-size // rows), size * (len(columns) - start) // left)
        strips.append(columns[start : start + width])
        start += width
        if len(strips[-1]) * rows < size:
            return None
    return strips


def _in_order(lanes: dict[int, list[str]]) -> list[str]:
    """A cluster's block RAMs along its strip: what its lanes share amid the lanes, and a lane's PEs in order."""
    order = sorted(lane for lane in lanes if lane >= 0)
    order.insert((len(order) + 1) // 2, -1)
    names = []
    for lane in order:
        pes = {name: int(pe[1]) for name in lanes.get(lane, []) if (pe := _PE.search(name))}
        middle = max(pes.values(), default=0) / 2
        names += sorted(lanes.get(lane, []), key=lambda name, at=pes, rest=middle: (at.get(name, rest), name))
    return names


def apply(path: Path, options: Iterable[str]) -> int:
    """Change a netlist for nextpnr by :func:`place_rams`, if the device is an ECP5.

    Args:
        path: Yosys' JSON.
        options: nextpnr's; one of ``DEVICES``, or nothing is done.

    Returns:
        How many block RAMs were fixed.
    """
    devices = [DEVICES[option] for option in options if option in DEVICES]
    if not devices:
        return 0
    netlist = json.loads(path.read_text(encoding="utf-8"))
    fixed = place_rams(netlist, devices[0])
    if fixed:
        path.write_text(json.dumps(netlist), encoding="utf-8")
    return fixed
