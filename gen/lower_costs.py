"""Expected cycles of a program's parts: what lowerings compare their ways to cut a product by.

The paces are those of the hardware (docs/architecture.md); the cycle model tells how a program really runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from maskwork.gen import pack
from maskwork.gen.config import CHUNK, Config

Density = tuple[float, float, float]
"""Expected densities of A, B and C's mask."""

ASSUMED: Density = (0.5, 0.5, 1.0)
"""Densities where nobody says more; programs are right for any."""

LOAD_OVERHEAD = 18
"""Cycles of a LOAD beside its payload: header, check, and the way of its last words."""

RUN_OVERHEAD = 24
"""Cycles of a RUN in the sequencer."""

ROW_OVERHEAD = 14
"""Cycles of a lane's front for the words around a row's elements."""

LATER_ROW_OVERHEAD = 7
"""The same for a K tile that is not a row's first, with sums in the PEs."""

ROW_GAP = 1.6
"""Cycles of a PE between its last product of a row and the first one of the next."""

DRAIN_OVERHEAD = 8
"""Cycles of a drain beside its columns."""

POST_OVERHEAD = 10
"""Cycles of a row in post-processing beside its columns."""

SKEW = 1.2
"""Standard deviations that the slowest of the lanes lies behind their mean, as far as weight banks do not hide it."""


def densities(density: tuple[float, ...] | None) -> Density:
    """Densities (a, b) or (a, b, c), or None, as three."""
    given = ASSUMED if density is None else (*density, 1.0)[:3]
    low = 1e-4  # an empty operand still has its bitmaps
    return max(low, given[0]), max(low, given[1]), max(low, given[2])


def at_least(number: int, chance: float, least: float) -> float:
    """How many of ``number`` there are on average, each with that chance, if fewer than ``least`` count as that."""
    mean, deviation = number * chance, math.sqrt(number * chance * (1 - chance))
    if deviation == 0:
        return max(mean, least)
    z = (mean - least) / deviation
    below = 0.5 * math.erfc(z / math.sqrt(2))
    return least * below + mean * (1 - below) + deviation * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


@dataclass(frozen=True)
class Costs:
    """Cycles of small things.

    Members:
        config: the accelerator.
        columns: columns of an N tile.
        density: of A, B and C's mask.
        use_c: rows have C masks.
    """

    config: Config
    columns: int
    density: Density = ASSUMED
    use_c: bool = False

    @property
    def slots(self) -> int:
        """Slots of a PE that hold columns."""
        return -(-self.columns // self.config.pes_per_lane)

    def chunk_words(self, length: float) -> float:
        """Words of a segment in the activation buffer."""
        a = self.density[0]
        chunks = max(1.0, math.ceil(length / CHUNK))
        size = length / chunks
        values = a * size
        filled = 1 - (1 - a) ** size
        last = 0.5 * filled * (1 - 1 / self.config.fetch_width) if a < 1 else 0.0  # words that are not full
        return chunks * (filled + math.ceil(values / self.config.fetch_width - 1e-9) if a == 1 else
                         filled + values / self.config.fetch_width + last)  # fmt: skip

    def bank_segments(self, length: int, trust: bool) -> int:
        """Segments of that length that an activation bank holds: with every element present, or if A's expected density
        may be trusted (what does not fit all the same is refused when operands are bound).
        """
        config = self.config
        words = float(pack.segment_words(length, config.fetch_width))
        if trust:
            words = min(words, 1.12 * self.chunk_words(length) + 0.5)
        return min(config.a_segments, int(config.a_depth // words))

    def segment(self, length: float) -> float:
        """Loading one segment."""
        config = self.config
        sw = config.stream_words
        beats = pack.bitmap_words(math.ceil(length), sw) / sw
        beats += math.ceil(self.density[0] * length / (32 // config.a_width * sw))
        return max(beats, self.chunk_words(length)) + 1

    def b_row(self, density: float | None = None) -> float:
        """Loading one row of B."""
        config, b = self.config, self.density[1] if density is None else density
        sw, masks = config.stream_words, "b" in config.skip
        beats = math.ceil(b * self.columns / (32 // config.b_width * sw)) * (1 - (1 - b) ** self.columns)
        # dense rows have no bitmaps, whose values are counted in a cycle of their own
        beats += pack.bitmap_words(self.columns, sw) / sw + 1 if b < 1 else 0
        chance = 1 - (1 - b) ** (config.pes_per_lane * config.load_slots)
        least = (2 if config.slots // config.load_slots < 3 else 3) if masks else 1
        return max(beats, at_least(-(-self.slots // config.load_slots), chance, least) + 0.1)

    def c_row(self) -> float:
        """Loading one row of C's mask."""
        return 1 << (self.config.mask_words - 1).bit_length()

    def row(
        self, k: float, segments: float, elements: float | None = None, final: bool = True
    ) -> tuple[float, float, float]:
        """One row of C for one K tile: cycles of its lane, of the cluster to feed it, and of the cluster to take its
        results.

        Args:
            k: positions of the K tile that the row meets.
            segments: taps.
            elements: elements of those taps, if some meet no position.
            final: the row is drained.
        """
        config = self.config
        a, b, c = self.density
        elements = k if elements is None else elements
        tokens = a * elements
        chunks = segments * max(1, math.ceil(elements / segments / CHUNK))
        products = a * k * b * c * self.slots
        if b < 1 or c < 1:
            # the PEs of a lane differ; their queues even out what changes from token to token, not a row's own mask
            spread = math.sqrt((1 - b) / (b * max(1.0, tokens) * self.slots) + (1 - c) / (c * self.slots) / 2)
            products *= 1 + 0.9 * spread
        sums = c * self.columns
        drains = final or not config.psum_in_pe
        steals = sums / config.pes_per_lane if drains else 0.0
        chunk_words = segments * self.chunk_words(elements / segments)
        post = sums + POST_OVERHEAD if final else 0.0
        if config.psum_in_pe:  # drained later, from where the sums are; later K tiles come without masks
            lane = max(products + steals + ROW_GAP, tokens + 1.5 * chunks + LATER_ROW_OVERHEAD)
            return lane, max(2 + chunk_words, 3 + segments, 2 + config.mask_words), post
        drain = sums + DRAIN_OVERHEAD if drains else 0.0
        lane = max(products + steals + ROW_GAP, tokens + 1.5 * chunks + ROW_OVERHEAD, drain)
        return lane, max(3 + config.mask_words + chunk_words, 4 + config.mask_words + segments), post

    def step(
        self, rows: float, k: float, segments: float, elements: float | None = None, final: bool = True,
        shared: bool = False, busiest: float | None = None,
    ) -> float:  # fmt: skip
        """One K tile for so many rows of C of a cluster; shared rows take all of its lanes. ``busiest``: rows of the
        lane that has most to do, where that is known.
        """
        lanes = self.config.lanes_per_cluster
        if not rows:  # every position of a block may be masked out
            return 40
        lane, feed, post = self.row(k, segments, elements, final)
        each = busiest or (rows if shared else -(-rows // lanes))
        cluster = max(feed, post * lanes if shared else post)
        a, _, c = self.density
        # rows differ in length; no lane gets further ahead than its weight banks let it
        spread = math.sqrt((1 - a) / (a * k) + (1 - c) / (c * self.columns)) / math.sqrt(each)
        return max(rows * cluster, each * lane * (1 + (0 if shared else SKEW) * spread)) + 40


def paced(k_tiles: int, each: float, last: float, load: float, loads: float) -> float:
    """Cycles of all K tiles of a block and N tile. While one is computed only the next one's rows of B are loaded (and
    some of A), so short steps wait for them.

    Args:
        k_tiles: steps.
        each: computing a step.
        last: computing the last one.
        load: what a step has to wait for if its rows of B are in no bank.
        loads: for how many steps they are not, on average.
    """
    short = min(loads, k_tiles - 1)
    return short * max(each, load) + (k_tiles - 1 - short) * each + max(last, (loads - short) * load)


def total(load: float, compute: float, out: float, first: float, last: float, waits: float = 0.0) -> float:
    """Expected cycles of a product, from those of all its loads, its compute and its results, which overlap, of what is
    loaded before the first step, of the last step, and those that compute waits for loads. A tenth of all is for what
    does not overlap after all.
    """
    return max(load, compute + waits, out) + 0.1 * (max(load - waits, 0.0) + compute + out) + first + last
