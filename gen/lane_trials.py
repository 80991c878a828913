"""Two other ways to feed the PEs of a lane, tried on a model of one lane before anybody builds them.

Reference: the lane as it is. Every nonzero of a row goes to all PEs' queues in the cycle in which all have space.

* "shared lookup": two PEs share a lookup and a queue, which each of them reads with a pointer of its own; an entry is
  free when both have passed it. An entry without work costs the pointer a cycle, which the PE's buffer of two hides.
* "pull": every PE has a position of its own in the rows; the lane's fetch port serves one PE a cycle with the next
  nonzero of its row. A PE may be as many rows ahead of another as there are rows of accumulators.

The model steps through cycles, with what these ideas are about: queues, a drain of one word a cycle that takes its PE's
issue slot, rows in flight, rows of accumulators. Loads and other lanes are left out. Beside it stands the same product
on the exact cycle model, one lane with buffers that hold everything, as a check of the reference.
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from maskwork.gen.config import Config, preset
from numpy.typing import NDArray

PES, SLOTS, CONTEXTS, TURN = 4, 16, 2, 32
"""PEs of the lane, slots of a PE, rows that stream in turn, and k of a turn."""

MARGIN = 5
"""Entries of a queue that cover what is on its way (``rtl.pe.QUEUE_MARGIN``)."""

CASES: tuple[tuple[float, float, float], ...] = (
    (0.4, 1.0, 1.0),
    (0.4, 0.3, 1.0),
    (0.2, 1.0, 0.45),
    (0.05, 1.0, 0.45),
    (0.4, 1.0, 0.2),
    (0.4, 0.2, 0.45),
)
"""Densities of A, B and C."""

Rows = list[tuple[list[int], list[tuple[int, ...]], tuple[int, ...]]]
"""Of each row the k of its nonzeros, their products in each PE, and the words that each PE drains."""


def make_rows(rng: np.random.Generator, shape: tuple[int, int], densities: tuple[float, float, float]) -> Rows:
    """Random rows of A against one tile of columns.

    Args:
        rng: source of masks.
        shape: (M, K).
        densities: of A, B and C.
    """
    a, b, c = masks(rng, shape, densities)
    made: Rows = []
    tile = b.reshape(shape[1], SLOTS, PES)
    for row in range(shape[0]):
        wanted = c[row].reshape(SLOTS, PES)
        ks = np.flatnonzero(a[row])
        work = (tile[ks] & wanted).sum(axis=1)
        made.append((ks.tolist(), [tuple(token) for token in work.tolist()], tuple(wanted.sum(axis=0).tolist())))
    return made


def masks(
    rng: np.random.Generator, shape: tuple[int, int], densities: tuple[float, float, float]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of A (M, K), B (K, N) and C (M, N), N a lane's columns."""
    rows, inner = shape
    columns = PES * SLOTS
    da, db, dc = densities
    return rng.random((rows, inner)) < da, rng.random((inner, columns)) < db, rng.random((rows, columns)) < dc


@dataclass
class Unit:
    """A PE behind its queue of (products, row that ends or -1)."""

    queue: deque[tuple[int, int]] = field(default_factory=deque)
    left: int = 0
    ends: int = -1
    finished: int = 0  # rows

    def step(self, stolen: bool) -> int:
        """One cycle; 1 if a product was issued."""
        if not self.left and self.ends < 0 and self.queue:
            self.left, self.ends = self.queue.popleft()
        if stolen:
            return 0
        if self.left:
            self.left -= 1
            return 1
        if self.ends >= 0:
            self.ends = -1
            self.finished += 1
        return 0


class Drain:
    """Drains rows in order, a word a cycle; ``whole``: a row when all PEs are through with it, else PE by PE."""

    def __init__(self, rows: Rows, whole: bool):
        self.rows, self.whole = rows, whole
        self.row = self.pe = self.word = 0
        self.drained = [0] * PES  # rows, by PE

    def step(self, units: Sequence[Unit]) -> int:
        """The PE whose issue slot it takes in this cycle, else -1."""
        while self.row < len(self.rows):
            if self.whole and not self.pe and any(unit.finished <= self.row for unit in units):
                return -1
            if units[self.pe].finished <= self.row:
                return -1
            if self.word < self.rows[self.row][2][self.pe]:
                self.word += 1
                return self.pe
            if not self.whole:
                self.drained[self.pe] += 1
            self.word = 0
            self.pe += 1
            if self.pe == PES:
                self.pe = 0
                self.row += 1
                if self.whole:
                    self.drained = [self.row] * PES
        return -1


class Sender:
    """Order in which a lane sends nonzeros to all its PEs: some rows in turn."""

    def __init__(self, rows: Rows, sums: int):
        self.rows, self.sums = rows, sums
        self.next_row = 0
        self.streams: deque[list[int]] = deque()  # row, position

    def token(self, drained: int) -> tuple[tuple[int, ...], int] | None:
        """The token that is next, taken: products of each PE, and the row that ends behind it or -1."""
        while len(self.streams) < CONTEXTS and self.next_row < min(len(self.rows), drained + self.sums):
            self.streams.append([self.next_row, 0])
            self.next_row += 1
        if not self.streams:
            return None
        row, at = stream = self.streams[0]
        ks, work, _ = self.rows[row]
        if at == len(ks):
            self.streams.popleft()
            return (0,) * PES, row
        stream[1] += 1
        if at + 1 < len(ks) and ks[at + 1] // TURN != ks[at] // TURN:
            self.streams.rotate(-1)
        return work[at], -1


def push(rows: Rows, sums: int, depth: int) -> float:
    """Utilisation of the lane as it is.

    Args:
        rows: of A.
        sums: rows of accumulators.
        depth: entries of a PE's queue.
    """
    units = [Unit() for _ in range(PES)]
    drain, sender = Drain(rows, whole=True), Sender(rows, sums)
    cycles = issued = 0
    while drain.row < len(rows):
        cycles += 1
        thief = drain.step(units)
        issued += sum(unit.step(number == thief) for number, unit in enumerate(units))
        if all(len(unit.queue) <= depth - MARGIN for unit in units):
            token = sender.token(drain.row)
            if token:
                for unit, work in zip(units, token[0], strict=True):
                    if work or token[1] >= 0:
                        unit.queue.append((work, token[1]))
    return issued / (cycles * PES)


def shared(rows: Rows, sums: int, depth: int) -> float:
    """Utilisation with a queue for every two PEs. Arguments as of :func:`push`."""
    units = [Unit() for _ in range(PES)]
    queues: list[deque[tuple[tuple[int, ...], int]]] = [deque() for _ in range(PES // 2)]
    pointers = [0] * PES
    drain, sender = Drain(rows, whole=True), Sender(rows, sums)
    cycles = issued = 0
    while drain.row < len(rows):
        cycles += 1
        thief = drain.step(units)
        for number, unit in enumerate(units):
            queue = queues[number // 2]
            if pointers[number] < len(queue) and len(unit.queue) < 2:
                work, row = queue[pointers[number]]
                pointers[number] += 1
                if work[number % 2] or row >= 0:
                    unit.queue.append((work[number % 2], row))
            issued += unit.step(number == thief)
        for pair, queue in enumerate(queues):
            passed = min(pointers[2 * pair : 2 * pair + 2])
            for _ in range(passed):
                queue.popleft()
            pointers[2 * pair] -= passed
            pointers[2 * pair + 1] -= passed
        if all(len(queue) <= depth - MARGIN for queue in queues):
            token = sender.token(drain.row)
            if token:
                for pair, queue in enumerate(queues):
                    work = token[0][2 * pair : 2 * pair + 2]
                    if any(work) or token[1] >= 0:
                        queue.append((work, token[1]))
    return issued / (cycles * PES)


def pull(rows: Rows, sums: int, depth: int) -> float:
    """Utilisation with a position in the rows for every PE. Arguments as of :func:`push`."""
    units = [Unit() for _ in range(PES)]
    places = [[0, 0] for _ in range(PES)]  # row, position
    drain = Drain(rows, whole=False)
    cycles = issued = turn = 0
    while drain.row < len(rows):
        cycles += 1
        thief = drain.step(units)
        issued += sum(unit.step(number == thief) for number, unit in enumerate(units))
        for ahead in range(PES):
            number = (turn + ahead) % PES
            row, at = places[number]
            unit = units[number]
            if row >= min(len(rows), drain.drained[number] + sums) or len(unit.queue) > depth - MARGIN:
                continue
            ks, work, _ = rows[row]
            # the end of a row comes with its last nonzero: the port is the scarce thing here
            last = at + 1 >= len(ks)
            products = work[at][number] if ks else 0
            if products or last:
                unit.queue.append((products, row if last else -1))
            places[number] = [row + 1, 0] if last else [row, at + 1]
            turn = number + 1
            break
    return issued / (cycles * PES)


def exact(shape: tuple[int, int], densities: tuple[float, float, float], seed: Sequence[int], depth: int) -> float:
    """Utilisation of the compute phase of one lane on the exact cycle model, with the masks of :func:`make_rows`."""
    from maskwork.gen.execute import execute
    from maskwork.gen.measure import resident_program
    from maskwork.sim_tb.device import open_device

    rows, inner = shape
    config: Config = preset("sim-64").replace(
        name="lane", lanes=1, lanes_per_cluster=1, weight_lanes=1, k_depth=1024, a_depth=1 << 16, a_segments=1024,
        c_rows=1024, psum_rows=32, queue_depth=depth, fifo_depth=1024,
    )  # fmt: skip
    a, b, c = masks(np.random.default_rng(seed), shape, densities)
    program = resident_program(config, (rows, inner, PES * SLOTS), use_c=True)
    with open_device("cycle", config) as device:
        done = execute(device, program, {"a": a.astype(int), "b": b.astype(int), "c_mask": c})
    products = int(((a.astype(int) @ b.astype(int)) * c).sum())
    assert done.counters is not None  # sim-64 has them
    return products / (done.counters["compute_cycles"] * PES)


def trials(rows: int, inner: int, seed: int, depth: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """Utilisations of all cases.

    Args:
        rows: M of the product.
        inner: its K; N is the lane's columns.
        seed: of the masks.
        depth: entries of a queue.
        progress: told each case.

    Returns:
        One dict a case: ``densities``; ``exact``; and of 32 and of 2 rows of accumulators (their number is the key)
        utilisations "as it is", "shared lookup" and "pull".
    """
    table = []
    for number, densities in enumerate(CASES):
        progress("/".join(f"{density:g}" for density in densities))
        own = [seed, number]
        made = make_rows(np.random.default_rng(own), (rows, inner), densities)
        line: dict[str, Any] = {"densities": densities, "exact": exact((rows, inner), densities, own, depth)}
        for sums in (32, 2):
            line[str(sums)] = {
                "as it is": push(made, sums, depth),
                "shared lookup": shared(made, sums, depth),
                "pull": pull(made, sums, depth),
            }
        table.append(line)
    return table


def main() -> None:
    """``python -m maskwork.gen.lane_trials``."""
    parser = argparse.ArgumentParser(prog="python -m maskwork.gen.lane_trials", description=__doc__)
    parser.add_argument("--rows", type=int, default=192, help="rows of A")
    parser.add_argument("--inner", type=int, default=576, help="K, one K tile")
    parser.add_argument("--depth", type=int, default=16, help="entries of a queue")
    parser.add_argument("--seed", type=int, default=1, help="of the masks")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args()
    table = trials(options.rows, options.inner, options.seed, options.depth, lambda _: None)
    if options.json:
        print(json.dumps(table))
        return
    names = list(table[0]["32"])
    heads = (f"{name}, {sums} rows".rjust(22) for sums in (32, 2) for name in names)
    print("A / B / C".ljust(18), "exact".rjust(6), *heads)
    for line in table:
        values = (f"{line[sums][name]:.3f}".rjust(22) for sums in ("32", "2") for name in names)
        print("/".join(f"{d:g}" for d in line["densities"]).ljust(18), f"{line['exact']:.3f}".rjust(6), *values)


if __name__ == "__main__":
    main()
