"""What one RUN computes in one cluster: its banks, the walk over rows and taps, and the result packets.

Segments are kept folded modulo ``k_depth``: elements e and e + k_depth of a segment meet the same row of B, so their
values (and their presence, for counting) add up. Products go through float64, exactly: operands of 18 bits and
segments of up to 65535 elements give sums below 2^51.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.isa import REPLIES, Reply
from maskwork.sim_tb.golden.noise import noise
from maskwork.sim_tb.golden.payload import packed_words
from maskwork.sim_tb.golden.requantise import requantise_unchecked
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Words = NDArray[np.uint32]

_BLOCK_ROWS = 1024
_BLOCK_ELEMENTS = 1 << 22
"""Elements that the taps of a block read at most (or those of one tap): bounds the memory of a RUN."""


@dataclass
class Bank:
    """State that every loadable bank has: ``loaded``, and ``fresh`` (loaded, and no RUN has used it since)."""

    loaded: bool = False
    fresh: bool = False

    def clear(self) -> None:
        """Forget the contents."""

    def empty(self) -> None:
        """Forget contents and state."""
        self.loaded = self.fresh = False
        self.clear()


@dataclass
class ABank(Bank):
    """Activations: segments, and the ``words`` of the buffer that they take."""

    segments: int = 0
    words: int = 0
    _values: list[Float64Array] = field(default_factory=list)
    _present: list[Float64Array] = field(default_factory=list)

    def clear(self) -> None:
        """Forget the segments."""
        self.segments = self.words = 0
        self._values, self._present = [], []

    def append(self, values: Float64Array, present: Float64Array, words: int) -> None:
        """Add segments, a folded row each; both arrays have shape (segments, width)."""
        self._values.append(values)
        self._present.append(present)
        self.segments += len(values)
        self.words += words

    def arrays(self) -> tuple[Float64Array, Float64Array]:
        """Values and presence of all segments, shape (segments, width of the widest)."""
        self._values, self._present = [_stack(self._values)], [_stack(self._present)]
        return self._values[0], self._present[0]


@dataclass
class BBank(Bank):
    """Weights: by lane, values and presence, shape (k_depth, tile_columns) each. Lanes never written hold nothing. Of
    two lanes that share weights (``weight_lanes``) the second's own rows lie in its second half.
    """

    lanes: dict[int, tuple[Float64Array, Float64Array]] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget every lane's rows."""
        self.lanes = {}


@dataclass
class CBank(Bank):
    """C masks, shape (rows, tile_columns)."""

    rows: list[BoolArray] = field(default_factory=list)

    def clear(self) -> None:
        """Forget the rows."""
        self.rows = []


class Parameters(NamedTuple):
    """Post-processing of a lane: bias, mult and shift by column of the tile; the seed of its rounding, 0: nearest."""

    bias: Int64Array | np.int64
    mult: Int64Array | np.int64
    shift: Int64Array | np.int64
    seed: int = 0


_NO_PARAMETERS = Parameters(np.int64(0), np.int64(0), np.int64(0))
"""Of lanes that LOAD_P never named."""


@dataclass
class Cluster:
    """Buffers of one cluster, two banks each, and its lanes' partial sums, shape (lanes or 1, rows, tile_columns).

    Post-processing parameters are a lane's; the clamp limits are the bank's, whatever the lane.
    """

    a: tuple[ABank, ABank] = field(default_factory=lambda: (ABank(), ABank()))
    b: tuple[BBank, BBank] = field(default_factory=lambda: (BBank(), BBank()))
    c: tuple[CBank, CBank] = field(default_factory=lambda: (CBank(), CBank()))
    p: tuple[dict[int, Parameters], dict[int, Parameters]] = field(default_factory=lambda: ({}, {}))
    limits: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0), (0, 0)])
    p_loaded: list[bool] = field(default_factory=lambda: [False, False])
    psum: Int64Array | None = None


def fold(values: Int64Array, k_depth: int) -> Float64Array:
    """Sum elements of a row whose indices agree modulo ``k_depth``: (rows, length) to (rows, at most k_depth)."""
    rows, length = values.shape
    if length > k_depth:
        padded = np.zeros((rows, -(-length // k_depth) * k_depth), np.int64)
        padded[:, :length] = values
        values = padded.reshape(rows, -1, k_depth).sum(axis=1)
    return values.astype(np.float64)


def run_cluster(
    config: Config, cluster: Cluster, index: int, run: Mapping[str, int], counting: bool
) -> tuple[list[Words], int]:
    """Execute a RUN that was found legal in cluster ``index``.

    Returns:
        Its RESULT packets (rows in order; of a shared row, lanes in order), none unless ``final``, and the multiplies
        of present elements for wanted columns (0 if not ``counting``).
    """
    shared = bool(run["share"])
    lanes = range(config.lanes_per_cluster if shared else 1)
    wanted = _wanted(config, cluster, run)
    sums = np.zeros((len(lanes), run["rows"], config.tile_columns), np.int64)
    if not run["first"] and cluster.psum is not None:
        before = cluster.psum[: len(lanes), : run["rows"]]
        sums[: before.shape[0], : before.shape[1]] += before
    multiplies = 0
    bank = cluster.a[run["a_bank"]]
    activations = bank.arrays()
    # of lanes that share weights, each has a half of the rows where they differ
    halves = config.weight_lanes if shared else 1
    depth = config.k_depth // halves
    for taps in _taps(run, depth, activations[0].shape, np.flatnonzero(wanted.any(axis=1))):
        for lane in lanes:
            weights = cluster.b[run["b_bank"]].lanes.get(lane)
            if weights is not None:
                first = lane % halves * depth
                own = weights[0][first : first + depth], weights[1][first : first + depth]
                multiplies += _accumulate(sums[lane], wanted, activations, own, taps, counting)
    if not run["final"]:
        cluster.psum = sums
        return [], multiplies
    packets = []
    for lane in lanes:
        parameters = cluster.p[run["b_bank"]].get(lane, _NO_PARAMETERS) if run["post"] else None
        finished = _finish(config, sums[lane], parameters, cluster.limits[run["b_bank"]], run["row"])
        values = np.where(wanted, finished, 0)
        packets.append(_result_packets(config, values, run, index * config.lanes_per_cluster + lane))
    return [packet for row in zip(*packets, strict=True) for packet in row], multiplies


def _stack(blocks: list[Float64Array]) -> Float64Array:
    if len(blocks) == 1:
        return blocks[0]
    result = np.zeros((sum(len(b) for b in blocks), max((b.shape[1] for b in blocks), default=0)))
    at = 0
    for block in blocks:
        result[at : at + len(block), : block.shape[1]] = block
        at += len(block)
    return result


def _wanted(config: Config, cluster: Cluster, run: Mapping[str, int]) -> BoolArray:
    """Columns wanted of each row, shape (rows, tile_columns); rows of C masks that were never loaded want nothing."""
    wanted = np.zeros((run["rows"], config.tile_columns), np.bool_)
    wanted[:, : run["columns"] + 1] = True
    if run["use_c"]:
        blocks = cluster.c[run["c_bank"]].rows
        mask = np.concatenate(blocks)[run["c_row"] : run["c_row"] + run["rows"]]
        wanted[: len(mask)] &= mask
        wanted[len(mask) :] = False
    return wanted


class _Taps(NamedTuple):
    """Taps that exist: of each, the row it belongs to, its segment, and the k of the segment's element 0."""

    rows: Int64Array
    segments: Int64Array
    ks: Int64Array


def _taps(run: Mapping[str, int], k_depth: int, bank_shape: tuple[int, ...], rows: Int64Array) -> Iterator[_Taps]:
    """Taps of some rows that exist in a bank of shape (segments, width), in blocks; in a block, rows rise.

    The loop levels are counters that carry into the next: a level takes a step once the ones below it wrap, in place
    of theirs.
    """
    segments, width = bank_shape
    m0, m1, t0 = run["m0"] + 1, run["m1"] + 1, run["t0"] + 1
    taps = t0 * (run["t1"] + 1)
    for row_at in range(0, len(rows), _BLOCK_ROWS):
        r = rows[row_at : row_at + _BLOCK_ROWS]
        steps_m1, steps_m2 = r // m0, r // (m0 * m1)
        block = max(1, _BLOCK_ELEMENTS // (width * len(r)))
        for tap_at in range(0, taps, block):
            t = np.arange(tap_at, min(taps, tap_at + block))
            steps_t1 = t // t0
            state = {}
            for name in ("seg", "k", "x", "y"):
                row = (
                    (r - steps_m1) * run[f"m0_{name}"]
                    + (steps_m1 - steps_m2) * run[f"m1_{name}"]
                    + steps_m2 * run[f"m2_{name}"]
                )
                tap = (t - steps_t1) * run[f"t0_{name}"] + steps_t1 * run[f"t1_{name}"]
                state[name] = _wrap(run[name] + row[:, None] + tap[None, :], 16)
            x, y, seg = state["x"], state["y"], state["seg"]
            exists = (x >= 0) & (x < run["x_limit"]) & (y >= 0) & (y < run["y_limit"]) & (seg >= 0) & (seg < segments)
            if exists.any():
                row_index = np.broadcast_to(r[:, None], exists.shape)[exists]
                yield _Taps(row_index, seg[exists], state["k"][exists] & (k_depth - 1))


def _accumulate(
    sums: Int64Array,
    wanted: BoolArray,
    activations: tuple[Float64Array, Float64Array],
    weights: tuple[Float64Array, Float64Array],
    taps: _Taps,
    counting: bool,
) -> int:
    """Add the taps to ``sums`` (rows, columns), those of one k in one product; answers the multiplies."""
    values, present = activations
    k_depth = len(weights[0])
    order = np.argsort(taps.ks, kind="stable")
    rows, segments, ks = taps.rows[order], taps.segments[order], taps.ks[order]
    bounds = [0, *(np.flatnonzero(np.diff(ks)) + 1).tolist(), len(ks)]
    multiplies = 0
    for begin, end in pairwise(bounds):
        index = (ks[begin] + np.arange(values.shape[1])) & (k_depth - 1)
        row, segment = rows[begin:end], segments[begin:end]
        starts = np.concatenate(([0], np.flatnonzero(np.diff(row)) + 1))
        product = (values[segment] @ weights[0][index]).astype(np.int64)
        sums[row[starts]] += np.add.reduceat(product, starts, axis=0)
        if counting:
            multiplies += int((present[segment] @ weights[1][index])[wanted[row]].sum())
    return multiplies


def _finish(
    config: Config, sums: Int64Array, parameters: Parameters | None, limits: tuple[int, int], row: int
) -> Int64Array:
    """Raw sums wrapped to the accumulator, or post-processed results; ``row`` is the first one's number."""
    sums = _wrap(sums, config.acc_width)
    if parameters is None:
        return sums
    bias, mult, shift, seed = parameters
    rows, columns = sums.shape
    numbers = noise(seed, row + np.arange(rows)[:, None], np.arange(columns)) if seed else None
    return requantise_unchecked(sums, bias, mult, shift, *limits, numbers)


def _wrap(values: Int64Array, width: int) -> Int64Array:
    spare = 64 - width
    return (values << spare) >> spare


def _result_packets(config: Config, values: Int64Array, run: Mapping[str, int], lane: int) -> list[Words]:
    """A RESULT packet for each row of ``values`` (rows, tile_columns)."""
    beat = config.stream_words
    kept = values != 0
    counts = kept.sum(axis=1).tolist()
    bits = np.zeros((len(values), 32 * config.mask_words), np.bool_)
    bits[:, : config.tile_columns] = kept
    bitmaps = np.packbits(bits, axis=1, bitorder="little").view("<u4")
    header = REPLIES[Reply.RESULT]
    payload = -(-(header.words + config.mask_words) // beat) * beat
    packets = []
    for r, count in enumerate(counts):
        row = values[r][kept[r]]
        packed = packed_words(row, config.a_width) if run["post"] else _raw(row, config.acc_width)
        packet = np.zeros(payload + -(-len(packed) // beat) * beat, np.uint32)
        packet[: header.words] = header.encode(
            {"tag": run["tag"], "lane": lane, "post": run["post"], "row": (run["row"] + r) & 0xFFFF, "values": count}
        )
        packet[header.words : header.words + config.mask_words] = bitmaps[r]
        packet[payload : payload + len(packed)] = packed
        packets.append(packet)
    return packets


def _raw(values: Int64Array, acc_width: int) -> Words:
    words = np.ascontiguousarray(values).astype("<i8").view("<u4").astype(np.uint32)
    return words if acc_width > 32 else words[::2]
