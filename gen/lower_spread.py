"""Loads of A in pieces between earlier steps: a bank that serves many steps is filled while the ones before run.

A scheduler puts a load right before the RUN that needs it, where only one step's compute hides it. Where several
steps use the other bank meanwhile, the load is cut into pieces (the first begins the bank anew, the others append),
one after each of those steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from maskwork.gen import pack

Command = dict[str, Any]


def slice_ranges(ranges: pack.Ranges, start: int, stop: int) -> pack.Ranges:
    """Entries start..stop-1 of a compact index list."""
    result: pack.Ranges = []
    at = 0
    for first, count, step in ranges:
        low, high = max(start - at, 0), min(stop - at, count)
        if low < high:
            result.append([first + low * step, high - low, step])
        at += count
    return result


def spread_loads(commands: Sequence[Command]) -> list[Command]:
    """The commands of a program with its loads of A spread over the steps before.

    The first piece follows the RUNs of the step after the one that used the bank last: it never waits longer than
    the loads of B there do. Results and their order stay the same.
    """
    used: dict[tuple[int, int], int] = {}  # (cluster, bank) -> number of the last group of RUNs
    ends: list[int] = []  # of groups of RUNs that follow each other: where the last one is
    after: dict[int, list[Command]] = {}
    removed: set[int] = set()
    for index, command in enumerate(commands):
        clusters = [c for c in range(32) if command.get("clusters", 0) >> c & 1]
        if command["op"] == "RUN":
            if not ends or ends[-1] != index - 1:
                ends.append(index)
            ends[-1] = index
            used.update({(c, command.get("a_bank", 0)): len(ends) - 1 for c in clusters})
        elif command["op"] == "LOAD_A" and not command.get("append"):
            last = max(used.get((c, command.get("bank", 0)), -1) for c in clusters)
            slots = ends[last + 1 :]
            if slots:
                removed.add(index)
                for slot, piece in zip(slots, _pieces(command, len(slots)), strict=False):
                    after.setdefault(slot, []).append(piece)
    result = []
    for index, command in enumerate(commands):
        if index not in removed:
            result.append(command)
        result += after.get(index, [])
    return result


def _pieces(command: Command, count: int) -> list[Command]:
    """A LOAD_A as at most ``count`` of them."""
    segments, data = command["segments"], command["data"]
    count = min(count, segments)
    edges = [segments * i // count for i in range(count + 1)]
    pieces = []
    for number, (start, stop) in enumerate(pairwise(edges)):
        rows = slice_ranges(data["rows"], start, stop)
        piece = {**command, "segments": stop - start, "data": {**data, "rows": rows}}
        pieces.append({**piece, "append": 1} if number else piece)
    return pieces
