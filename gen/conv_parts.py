"""Parts of a convolution whose wanted positions are known: rectangles of output positions that lanes share evenly.

A row stays in its lane for all K tiles, so a part of 101 wanted positions takes four lanes as long as one of 104. The
rectangles that waste least are found by dynamic programming: bands of output rows, each cut at columns of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from maskwork.gen.conv_axis import Geometry
from numpy.typing import NDArray

Rectangle = tuple[range, range]
"""Rows and columns of output positions."""

BETTER = 0.002
"""How much less work, of the mean, the busiest lane must have in an order of rows for it to go before a plainer one."""

_SPARES = (0.9, 1.6)
"""Slots of partial sums that unwanted rows may take in a lane beyond an even share of them, over the square root of
their number: they come to lanes at random.
"""

_EXTRAS = (0.0, 0.15, 0.4)
"""Positions whose cycles a part may lose for lengths that differ, as dynamic programming is told."""


@dataclass(frozen=True)
class Order:
    """The order of a part's positions.

    Members:
        down: those of a column follow each other, not those of a row.
        up: from the last row to the first.
        left: from the last column to the first.
    """

    down: bool = False
    up: bool = False
    left: bool = False

    @property
    def dy(self) -> int:
        """Step from row to row."""
        return -1 if self.up else 1

    @property
    def dx(self) -> int:
        """Step from column to column."""
        return -1 if self.left else 1


PLAIN = Order()
"""Row by row from the first position on."""


@dataclass(frozen=True)
class Limits:
    """What a part may be, and what it costs.

    Members:
        rows: most positions.
        pixels: most pixels that are loaded for it.
        taps: rows and columns of the taps whose pixels are loaded together.
        lanes: lanes that share its positions.
        slots: slots of partial sums of a lane; 0 if none are kept.
        extra: cycles that a part takes beside its positions, over those of a position.
        least: cycles that a part takes at least, over those of a position.
    """

    rows: int
    pixels: int
    taps: tuple[int, int]
    lanes: int
    slots: int
    extra: float
    least: float


def even_parts(g: Geometry, kept: NDArray[np.bool_], limits: Limits) -> list[tuple[Rectangle, ...]]:
    """Ways to cover an image's output positions with rectangles in few cycles, the best first; none if none fits.

    Dynamic programming counts positions; how the lanes' work differs is known of whole partitions only, so there are
    several to choose from.

    Args:
        g: the geometry.
        kept: wanted positions, (OH, OW).
        limits: of a part.
    """
    return list(_even_parts(g, kept.shape, kept.tobytes(), limits))


@lru_cache(maxsize=256)
def _even_parts(g: Geometry, shape: tuple[int, int], kept: bytes, limits: Limits) -> list[tuple[Rectangle, ...]]:
    wanted = np.frombuffer(kept, dtype=np.bool_).reshape(shape)
    sums, works = _sums(wanted), _sums(wanted * _met(g))
    ways = {_partition(g, sums, works, limits, extra, spare) for extra in _EXTRAS for spare in _SPARES}

    def cycles(parts: tuple[Rectangle, ...]) -> float:
        return sum(max(busiest(g, part, wanted[None], limits.lanes), limits.least) + limits.extra for part in parts)

    return sorted((way for way in ways if way), key=lambda way: (cycles(way), len(way), way[0][0].stop, way[0][1].stop))


def _met(g: Geometry) -> NDArray[np.float64]:
    """The share of the taps that meet the image, for each output position, (OH, OW)."""
    return np.multiply.outer(g.y.met(), g.x.met())


def _partition(
    g: Geometry, sums: NDArray[np.float64], works: NDArray[np.float64], limits: Limits, extra: float, spare: float
) -> tuple[Rectangle, ...]:
    height = sums.shape[0] - 1
    best, cuts = np.full(height + 1, np.inf), [(0, [0])] * (height + 1)
    best[0] = 0.0
    bands = {tall: _band(g, sums, works, tall, limits, (extra, spare)) for tall in range(1, height + 1)}
    for end in range(1, height + 1):
        for tall in range(1, end + 1):
            costs, edges = bands[tall]
            cost = best[end - tall] + costs[end - tall]
            if cost < best[end]:
                best[end], cuts[end] = cost, (tall, edges[end - tall])
    parts: list[Rectangle] = []
    end = height if np.isfinite(best[height]) else 0
    while end:
        tall, edges = cuts[end]
        parts += [(range(end - tall, end), range(a, b)) for b, a in itertools.pairwise(edges)]
        end -= tall
    return tuple(parts[::-1])


def _sums(values: NDArray[np.generic]) -> NDArray[np.float64]:
    """Sums of all rectangles that begin at the first element."""
    return np.pad(np.cumsum(np.cumsum(values, axis=0, dtype=np.float64), axis=1), ((1, 0), (1, 0)))


def _band(
    g: Geometry, sums: NDArray[np.float64], works: NDArray[np.float64], tall: int, limits: Limits,
    margins: tuple[float, float],
) -> tuple[NDArray[np.float64], list[list[int]]]:  # fmt: skip
    """Bands of so many output rows, for each first row: cycles, and the columns at which to cut, the last first."""
    starts, width = sums.shape[0] - tall, sums.shape[1] - 1
    high = g.y.reach(tall, limits.taps[0])
    widths = [wide for wide in range(1, min(width, limits.rows // tall) + 1)
              if high * g.x.reach(wide, limits.taps[1]) <= limits.pixels]  # fmt: skip
    costs = np.full((starts, width + 1), np.inf)
    costs[:, 0] = 0.0
    if not widths:
        return np.full(starts, np.inf), [[] for _ in range(starts)]
    parts = np.full((len(widths), starts, width), np.inf)
    for wide in widths:
        number, work = (
            s[tall:, wide:] - s[:-tall, wide:] - s[tall:, :-wide] + s[:-tall, :-wide] for s in (sums, works)
        )
        parts[wide - 1, :, : width + 1 - wide] = _cycles(number, work, tall * wide, limits, margins)
    taken = np.zeros((starts, width + 1), dtype=np.int64)
    for end in range(1, width + 1):
        own = np.arange(1, min(len(widths), end) + 1)
        ways = parts[own - 1, :, end - own] + costs[:, end - own].T
        taken[:, end] = own[np.argmin(ways, axis=0)]
        costs[:, end] = ways.min(axis=0)
    edges = []
    for row in taken.tolist():
        own_edges = [width]
        while own_edges[-1] > 0 and row[own_edges[-1]]:
            own_edges.append(own_edges[-1] - row[own_edges[-1]])
        edges.append(own_edges)
    return costs[:, width], edges


def _cycles(
    kept: NDArray[np.float64], work: NDArray[np.float64], rows: int, limits: Limits, margins: tuple[float, float]
) -> NDArray[np.float64]:
    """Cycles of parts, over those of a position, from their wanted positions and those positions' work."""
    turns = np.ceil(kept / limits.lanes)
    cycles = np.maximum(turns * work / np.maximum(kept, 1), limits.least) + limits.extra + margins[0]
    if limits.slots and rows > limits.lanes:  # unwanted rows take slots too, of whichever lane they come to
        unwanted = rows - kept
        spare = np.where(unwanted > 0, np.ceil(unwanted / limits.lanes + margins[1] * np.sqrt(unwanted)), 0)
        cycles[turns + spare > limits.slots] = np.inf
    return cycles


def best_order(g: Geometry, part: Rectangle, kept: NDArray[np.bool_], lanes: int) -> Order:
    """The order of a part's positions in which lanes have most nearly equal work: positions at the image's edges meet
    fewer taps than others.

    Args:
        g: the geometry.
        part: output positions.
        kept: wanted positions of its images, (images, OH, OW).
        lanes: lanes that share them.
    """
    return _dealt(g, part, kept, lanes)[1]


def busiest(g: Geometry, part: Rectangle, kept: NDArray[np.bool_], lanes: int) -> float:
    """Work of the busiest lane of a part in that order, in positions that meet all taps."""
    return _dealt(g, part, kept, lanes)[0]


def _dealt(g: Geometry, part: Rectangle, kept: NDArray[np.bool_], lanes: int) -> tuple[float, Order]:
    own = (slice(None), *(slice(axis.start, axis.stop) for axis in part))
    wanted = kept[own]
    works = wanted * _met(g)[own[1:]]
    mean, most = works.sum() / lanes, works.max()
    if lanes == 1 or not most or most == works[wanted].min():
        return float(-(-np.count_nonzero(wanted) // lanes) * most), PLAIN
    best, least = PLAIN, np.inf
    for order in itertools.starmap(Order, itertools.product((False, True), repeat=3)):
        ordered = works[:, :: order.dy, :: order.dx]
        ordered = (ordered.transpose(0, 2, 1) if order.down else ordered).reshape(-1)
        work = _busiest(ordered[ordered > 0].tolist(), lanes)
        if work < least - BETTER * mean:
            best, least = order, work
    return least, best


def _busiest(works: Sequence[float], lanes: int) -> float:
    """Work of the busiest lane if rows are dealt in rounds, in which the lanes that are ready first come first."""
    ready = [0.0] * lanes
    for first in range(0, len(works), lanes):
        ready.sort()
        for lane, work in enumerate(works[first : first + lanes]):
            ready[lane] += work
    return max(ready)
