"""Places for the block RAMs and multipliers of a large array on ECP5, before nextpnr's placer starts.

A board's design has a handful of pins. Where nothing else is fixed, the analytic placer's first solution is one heap
around them, which it takes many slow iterations to spread. Blocks fixed where their lanes shall be are anchors. A
multiplier that the placer moves to a free block only after the logic around it has settled can end up half a device
away, and takes the wires of its PE with it; so multipliers are fixed beside the block RAMs of their PEs.

Rows of block RAMs are not evenly spaced. PEs, which bring most of the logic, are dealt to rows by the area around each,
and other block RAMs fill what is left.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_CLUSTER = re.compile(r"cluster(\d+)\.")
_LANE = re.compile(r"\.(lane|weights)(\d+)(?:\$\d+)?\.")
"""A lane's, or what it shares with its neighbour (``weight_lanes``). Amaranth numbers names that come twice: ``$5``."""

_PE = re.compile(r"\.pe(\d+)[._]")
_POST = re.compile(r"\.post(?:\$\d+)?\.")

FULL = 0.5
"""Least part of a device's block RAMs in use for a floorplan to pay: smaller designs find their place themselves."""

Place = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Device:
    """Where a device has its block RAMs and multipliers: groups of four, in rows.

    Attributes:
        groups: first column of each group; its block RAMs are two columns apart.
        rows: rows of the device that have block RAMs.
        multipliers: rows of the device that have multipliers.
        height: rows of the device.
    """

    groups: tuple[int, ...]
    rows: tuple[int, ...]
    multipliers: tuple[int, ...]
    height: int

    @property
    def columns(self) -> list[int]:
        """Column of each block RAM of a row."""
        return [first + 2 * n for first in self.groups for n in range(4)]

    @property
    def middle(self) -> Place:
        """Column and row amid the block RAMs."""
        return self.columns[len(self.columns) // 2], (self.rows[0] + self.rows[-1]) / 2

    @property
    def areas(self) -> list[float]:
        """Rows of the device that are nearest to each row of block RAMs."""
        edges = [0.0, *((a + b) / 2 for a, b in itertools.pairwise(self.rows)), float(self.height)]
        return [b - a for a, b in itertools.pairwise(edges)]

    @property
    def multiplier_sites(self) -> list[tuple[int, int]]:
        """Column and row of each multiplier."""
        return [(first + n, row) for row in self.multipliers for first in self.groups for n in (0, 1, 4, 5)]

    def bel(self, column: int, row: int) -> str:
        """Return nextpnr's name of the block RAM there."""
        return f"X{column}/Y{row}/EBR{self.columns.index(column) % 4}"

    def multiplier_bel(self, column: int, row: int) -> str:
        """Return nextpnr's name of the multiplier there."""
        return f"X{column}/Y{row}/MULT18_{column - max(first for first in self.groups if first <= column)}"


DEVICES = {
    "--12k": Device((4, 13, 22, 33, 42, 51, 60), (25, 37), (13,), 50),
    "--25k": Device((4, 13, 22, 33, 42, 51, 60), (25, 37), (13,), 50),
    "--45k": Device((4, 13, 22, 31, 42, 51, 60, 69, 78), (10, 34, 58), (22, 46), 71),
    "--85k": Device((4, 13, 22, 31, 40, 49, 58, 69, 78, 87, 96, 105, 114), (22, 46, 70, 82), (10, 34, 58), 95),
}
"""By nextpnr's option for the device."""


@dataclasses.dataclass(frozen=True)
class _Block:
    """A block RAM or multiplier of a cluster, by what its name says.

    Attributes:
        name: of the cell.
        lane: its lane, -1 if it is the cluster's.
        shared: whether the next lane uses it, too.
        pe: its PE, -1 if it is the lane's.
        post: of the post-processing.
    """

    name: str
    lane: int
    shared: bool
    pe: int
    post: bool

    @staticmethod
    def of(name: str) -> _Block:
        lane, pe = _LANE.search(name), _PE.search(name)
        shared = lane is not None and lane[1] == "weights"
        number = int(pe[1]) if lane and pe else -1
        return _Block(name, int(lane[2]) if lane else -1, shared, number, _POST.search(name) is not None)


def place_blocks(netlist: dict[str, Any], device: Device) -> int:
    """Fix block RAMs and multipliers of an array's clusters: each cluster a vertical strip, its lanes one after the
    other in it.

    Args:
        netlist: Yosys' JSON of a flattened design; cells of the top get attributes ``BEL``.
        device: where its blocks are.

    Returns:
        How many were fixed: none if the design has too few block RAMs (``FULL``), too many, or no clusters.
    """
    tops = [module for module in netlist["modules"].values() if int(module["attributes"].get("top", "0"), 2)]
    cells = tops[0]["cells"]
    rams: dict[int, list[_Block]] = collections.defaultdict(list)
    multipliers: dict[int, list[_Block]] = collections.defaultdict(list)
    for name in sorted(cells):
        kinds = {"DP16KD": rams, "MULT18X18D": multipliers}
        if (kind := kinds.get(cells[name]["type"])) is not None:
            kind[_cluster_of(name)].append(_Block.of(name))
    lone = [ram.name for ram in rams.pop(-1, [])]
    multipliers.pop(-1, None)
    sizes = [len(rams[cluster]) for cluster in sorted(rams)]
    available = len(device.columns) * len(device.rows)
    if not FULL * available <= sum(sizes) <= available:
        return 0
    areas = collections.Counter(_cluster_of(name) for name in cells)
    others = areas.pop(-1, 0)
    strips = _strips(sizes, [areas[cluster] for cluster in sorted(rams)], others, device)
    if strips is None:
        return 0
    wanted: dict[str, Place] = {}
    sites: dict[str, tuple[int, int]] = {}
    for cluster, columns in zip(sorted(rams), strips, strict=True):
        found = _places(rams[cluster], columns, device)
        sites |= found
        wanted |= _wanted(multipliers[cluster], rams[cluster], found)
    # what is in no cluster, the link to the host above all, is drawn into the middle, where it is near all of them, and
    # is near each other
    free = {(x, y) for y in device.rows for x in device.columns} - set(sites.values())
    lone = lone[: len(free)]
    for n, name in enumerate(lone):
        amid = _mean([sites[other] for other in lone[:n]]) or device.middle
        sites[name] = min(free, key=lambda site: (_distance(site, amid), site))
        free.remove(sites[name])
    fixed = {name: device.bel(*site) for name, site in sites.items()}
    if len(wanted) <= len(device.multiplier_sites):
        near = assign(wanted, device.multiplier_sites)
        fixed |= {name: device.multiplier_bel(*site) for name, site in near.items()}
    for name, bel in fixed.items():
        cells[name].setdefault("attributes", {})["BEL"] = bel
    return len(fixed)


def _strips(sizes: list[int], areas: list[int], others: int, device: Device) -> list[list[int]] | None:
    """Columns for each cluster, in proportion to its logic; ``None`` if one's block RAMs do not fit into its own.

    What is in no cluster finds its place in the middle, which is near all of them: the middle cluster's strip is wider
    for it, or there are columns between the two in the middle.

    Args:
        sizes: block RAMs of each cluster.
        areas: logic of each cluster.
        others: logic in no cluster.
        device: where its blocks are.
    """
    columns, rows, middle = device.columns, len(device.rows), len(sizes) // 2
    least = [-(-size // rows) for size in sizes]
    weights = list(areas)
    if len(sizes) % 2:
        weights[middle] += others
    else:
        least.insert(middle, 0)
        weights.insert(middle, others)
    if sum(least) > len(columns):
        return None
    widths = list(least)
    for _ in range(len(columns) - sum(least)):
        widths[max(range(len(widths)), key=lambda n: weights[n] / (widths[n] + 0.5))] += 1
    ends = list(itertools.accumulate(widths))
    strips = [columns[end - width : end] for width, end in zip(widths, ends, strict=True)]
    if len(sizes) % 2 == 0:
        del strips[middle]
    return strips


def _places(rams: list[_Block], columns: list[int], device: Device) -> dict[str, tuple[int, int]]:
    """A cluster's block RAMs by column and row of its strip: one of each PE in order along it, others of a PE beside
    it, then what else a lane has, and what lanes share in between.
    """
    first: dict[tuple[int, int], str] = {}
    for ram in sorted(rams, key=lambda ram: (ram.shared, ram.name)):  # of its own, rather than one that is shared
        if ram.pe >= 0:
            first.setdefault((ram.lane, ram.pe), ram.name)
    found: dict[str, tuple[int, int]] = {}
    pairs = {ram.lane for ram in rams if ram.shared}
    # lanes that share weights side by side, PE by PE
    order = [first[lane, pe] for lane, pe in sorted(first, key=lambda at: (at[0] - (at[0] - 1 in pairs), at[1], at[0]))]
    for n, (row, count) in enumerate(zip(device.rows, _deal(len(order), len(columns), device.areas), strict=True)):
        along = columns if n % 2 == 0 else columns[::-1]
        for m in range(count):
            found[order.pop(0)] = along[m * len(columns) // count], row
    free = [(x, y) for y in device.rows for x in columns if (x, y) not in found.values()]
    middle = columns[len(columns) // 2], device.rows[0] + (device.rows[-1] - device.rows[0]) // 2

    def beside(ram: _Block) -> Place:
        lanes = range(ram.lane, ram.lane + 1 + ram.shared)
        own = [found[name] for (lane, pe), name in first.items() if lane in lanes and ram.pe in (-1, pe)]
        return _mean(own) or middle

    # what has one place to be comes first; what all share is near anyhow
    for ram in sorted(rams, key=lambda ram: (ram.lane < 0, ram.pe < 0, ram.shared, ram.lane, ram.name)):
        if ram.name not in found:
            at = beside(ram)
            found[ram.name] = min(free, key=lambda site: (_distance(site, at), site))
            free.remove(found[ram.name])
    return found


def _wanted(multipliers: list[_Block], rams: list[_Block], found: Mapping[str, tuple[int, int]]) -> dict[str, Place]:
    """Where a cluster's multipliers should be: amid their PE's block RAMs, or those of the post-processing."""
    wanted = {}
    for one in multipliers:
        if one.pe >= 0:
            own = [ram for ram in rams if ram.pe == one.pe and ram.lane <= one.lane <= ram.lane + ram.shared]
        else:
            own = [ram for ram in rams if ram.post and one.post]
        if place := _mean([found[ram.name] for ram in own]):
            wanted[one.name] = place
    return wanted


def assign(wanted: Mapping[str, Place], sites: list[tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Sites near the wanted places: nearest first, then moved and exchanged as long as the sum of distances falls.

    Args:
        wanted: column and row by name; no more than there are sites.
        sites: columns and rows.
    """
    at: dict[str, tuple[int, int]] = {}
    free = set(sites)
    for name in wanted:
        at[name] = min(free, key=lambda site: (_distance(site, wanted[name]), site))
        free.remove(at[name])
    better = True
    while better:
        better = False
        for a, b in itertools.combinations(wanted, 2):
            now = _distance(at[a], wanted[a]) + _distance(at[b], wanted[b])
            if _distance(at[b], wanted[a]) + _distance(at[a], wanted[b]) < now - 1e-9:
                at[a], at[b] = at[b], at[a]
                better = True
        for name in wanted:
            site = min(free, key=lambda site: (_distance(site, wanted[name]), site), default=at[name])
            if _distance(site, wanted[name]) < _distance(at[name], wanted[name]) - 1e-9:
                free.remove(site)
                free.add(at[name])
                at[name] = site
                better = True
    return at


def _cluster_of(name: str) -> int:
    found = _CLUSTER.search(name)
    return int(found[1]) if found else -1


def _mean(places: list[tuple[int, int]]) -> Place | None:
    return (sum(x for x, _ in places) / len(places), sum(y for _, y in places) / len(places)) if places else None


def _distance(a: Place, b: Place) -> float:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


def _deal(count: int, most: int, areas: list[float]) -> list[int]:
    """So many block RAMs to rows that take ``most`` each, in proportion to areas as far as that goes."""
    dealt = [0] * len(areas)
    for _ in range(count):
        n = min((n for n in range(len(areas)) if dealt[n] < most), key=lambda n: (dealt[n] + 0.5) / areas[n])
        dealt[n] += 1
    return dealt


def apply(path: Path, options: Iterable[str]) -> int:
    """Change a netlist for nextpnr by :func:`place_blocks`, if the device is an ECP5.

    Args:
        path: Yosys' JSON.
        options: nextpnr's; one of ``DEVICES``, or nothing is done.

    Returns:
        How many blocks were fixed.
    """
    devices = [DEVICES[option] for option in options if option in DEVICES]
    if not devices:
        return 0
    netlist = json.loads(path.read_text(encoding="utf-8"))
    fixed = place_blocks(netlist, devices[0])
    if fixed:
        path.write_text(json.dumps(netlist), encoding="utf-8")
    return fixed
