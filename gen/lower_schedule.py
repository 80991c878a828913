"""The part that all lowerings share: tiles of a product in, commands and results out.

A product is cut into blocks of rows (a part for each cluster), K tiles and N tiles. Every step computes one (block,
K tile, N tile); what a step needs and no bank holds is loaded into the bank not used last, so loads of the next step
overlap the compute of this one, and tiles that stay useful stay loaded. Inner loops go back and forth, which saves
the loads at their turns.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from maskwork.gen import pack
from maskwork.gen.config import CHUNK, Config
from maskwork.gen.isa import ISA_VERSION, LEVELS, REPLIES, Reply
from maskwork.gen.lower_post import Post, tile_seed
from maskwork.gen.program import Program
from numpy.typing import NDArray

Indices = NDArray[np.int64]

SHARES = ("no", "columns", "cluster", "all")
"""Who gets a row: one lane; one lane of every cluster, and clusters hold different columns; all lanes of one cluster,
which hold different columns (the same in every cluster); all lanes of all clusters, which hold different columns."""


@dataclass(frozen=True)
class KTile:
    """Some of the sum: columns of A's view, and the rows of B's view they meet, tap by tap.

    taps and halo are (first row, end row, first column, end column) of kernel taps: those of this tile, and those
    whose pixels are loaded with it.
    """

    columns: Indices
    b_rows: Indices
    taps: tuple[int, int, int, int] = (0, 1, 0, 1)
    halo: tuple[int, int, int, int] = (0, 1, 0, 1)

    @property
    def a_key(self) -> Hashable:
        """What tells apart the segments that K tiles of one block need."""
        return int(self.columns[0]), self.halo

    @property
    def tap_count(self) -> int:
        """Taps of this tile."""
        r0, r1, c0, c1 = self.taps
        return (r1 - r0) * (c1 - c0)


class Part(abc.ABC):
    """A cluster's share of a block of rows."""

    rows: Indices
    """Rows of the output, in the order of computation."""

    @abc.abstractmethod
    def segments(self, tile: KTile) -> pack.Ranges:
        """Rows of A's view to load."""

    @abc.abstractmethod
    def run_fields(self, tile: KTile) -> dict[str, int]:
        """Fields of RUN: loop counts, limits, row state and deltas."""


class _Banks:
    """What the two banks of a buffer hold, by cluster."""

    def __init__(self) -> None:
        self.held: tuple[dict[int, Hashable], dict[int, Hashable]] = ({}, {})
        self.recent = 1

    def place(self, keys: dict[int, Hashable]) -> tuple[int, list[int]]:
        """The bank to use for these contents, and the clusters that have to be loaded."""
        for bank in (self.recent, 1 - self.recent):
            if all(self.held[bank].get(c) == key for c, key in keys.items()):
                self.recent = bank
                return bank, []
        self.recent = bank = 1 - self.recent
        missing = [c for c, key in keys.items() if self.held[bank].get(c) != key]
        self.held[bank].update(keys)
        return bank, missing


@dataclass
class Scheduler:
    """Emits the commands of one product into a program."""

    program: Program
    post: Post | None = None
    use_c: bool = False
    whole: bool = False
    """C's mask wants all columns of a row or none."""
    finals: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}  # of seeds
        self._runs = 0
        self._forget()

    def _forget(self) -> None:
        self._banks = {"A": _Banks(), "B": _Banks(), "C": _Banks()}
        self._parameters: tuple[dict[int, Hashable], dict[int, Hashable]] = ({}, {})
        self._starts: dict[tuple[int, int], int] = {}
        self._ranges: dict[int, pack.Ranges] = {}

    def begin(self) -> None:
        """Emit BEGIN."""
        config = self.program.config
        self._emit("BEGIN", version=ISA_VERSION, config=config.hash)

    def end(self) -> None:
        """Emit SYNC."""
        self._emit("SYNC")

    def _emit(self, op: str, data: dict[str, Any] | None = None, **fields: int) -> None:
        command: dict[str, Any] = {"op": op, **{k: v for k, v in fields.items() if v}}
        if data is not None:
            command["data"] = data
        self.program.commands.append(command)

    def _compact(self, indices: Indices) -> pack.Ranges:
        """Ranges of an index array that lives as long as the scheduler's tiles do."""
        if id(indices) not in self._ranges:
            self._ranges[id(indices)] = pack.to_ranges(indices)
        return self._ranges[id(indices)]

    def run(
        self,
        blocks: Sequence[Sequence[Part]],
        k_tiles: Sequence[KTile],
        n_tiles: Sequence[Sequence[Indices]],
        m_outer: bool = True,
        share: str | bool = "no",
    ) -> None:
        """Emit all steps.

        Args:
            blocks: for each block, the parts of clusters 0, 1, ... (with share "all" and "columns": the same part for
                each).
            k_tiles: the K tiles.
            n_tiles: for each N tile its columns; with share "columns" those of each cluster, with "cluster" those of
                each lane of a cluster, with "all" those of each lane of the clusters used.
            m_outer: blocks are the outer loop (A stays), else N tiles (B stays).
            share: one of :data:`SHARES`; False is "no", True is "all". Rows that
                lanes of a cluster share have C masks only if those are ``whole``.
        """
        share = share if isinstance(share, str) else "all" if share else "no"
        assert share in SHARES
        assert share in ("no", "columns") or self.whole or not self.use_c
        self._forget()
        self._runs += 1
        if self.post is not None and self.post.seed is not None:
            self._number_rows(blocks, share)
        outer, inner = (len(blocks), len(n_tiles)) if m_outer else (len(n_tiles), len(blocks))
        backwards = False
        for o in range(outer):
            for i in range(inner) if o % 2 == 0 else reversed(range(inner)):
                b, n = (o, i) if m_outer else (i, o)
                order = range(len(k_tiles))
                for step, k in enumerate(reversed(order) if backwards else order):
                    flags = {"first": int(step == 0), "final": int(step == len(k_tiles) - 1)}
                    self._step((b, blocks[b]), (k, k_tiles[k]), (n, n_tiles[n]), share, flags)
                backwards = not backwards

    def _number_rows(self, blocks: Sequence[Sequence[Part]], share: str) -> None:
        """Give every row a number of its own: its low 16 bits are RUN's row, the others go into the seed."""
        row = 0
        for b, parts in enumerate(blocks):
            for c, part in enumerate(parts):
                own = c == 0 or share in ("no", "cluster")
                if own and row % 65536 + len(part.rows) > 65536:
                    row += -row % 65536
                self._starts[b, c] = row if own else self._starts[b, 0]
                row += len(part.rows) if own else 0

    def _step(
        self,
        block: tuple[int, Sequence[Part]],
        k_tile: tuple[int, KTile],
        n_tile: tuple[int, Sequence[Indices]],
        share: str,
        flags: dict[str, int],
    ) -> None:
        config = self.program.config
        (b, parts), (k, tile), (n, columns) = block, k_tile, n_tile
        clusters = range(min(len(parts), len(columns)) if share == "columns" else len(parts))
        b_bank, missing = self._banks["B"].place(dict.fromkeys(clusters, (n, k)))
        self._load_b(b_bank, missing, tile, columns, share)
        c_bank = 0
        if self.use_c:
            c_bank, missing = self._banks["C"].place(dict.fromkeys(clusters, (b, n)))
            for c in missing:
                own = columns[c] if share == "columns" else max(columns, key=len)
                data = {"operand": "c_mask", "rows": self._compact(parts[c].rows), "columns": self._compact(own)}
                self._emit("LOAD_C", data, bank=c_bank, clusters=1 << c, rows=len(parts[c].rows), columns=len(own))
        if self.post and flags["final"]:
            for high in sorted({self._starts.get((b, c), 0) >> 16 for c in clusters}):
                missing = [c for c in clusters if self._starts.get((b, c), 0) >> 16 == high
                           and self._parameters[b_bank].get(c) != (n, high)]  # fmt: skip
                self._load_p(b_bank, missing, (n, high), columns, share)
        a_bank, missing = self._banks["A"].place(dict.fromkeys(clusters, (b, tile.a_key)))
        together = share in ("all", "columns") and missing
        for mask, c in [(sum(1 << c for c in missing), 0)] if together else [(1 << c, c) for c in missing]:
            rows = parts[c].segments(tile)
            data = {"operand": "a", "rows": rows, "columns": self._compact(tile.columns)}
            self._emit("LOAD_A", data, bank=a_bank, clusters=mask, segments=pack.count_ranges(rows),
                       length=len(tile.columns))  # fmt: skip
        groups: dict[tuple[tuple[str, int], ...], list[int]] = {}
        for c in clusters:
            fields = {"rows": len(parts[c].rows), **parts[c].run_fields(tile)}
            if flags["final"] or config.psum_in_pe:
                fields["row"] = self._starts.get((b, c), 0) & 0xFFFF
            groups.setdefault(tuple(fields.items()), []).append(c)
        for items, members in groups.items():
            mask = sum(1 << c for c in members)
            self._emit("RUN", None, a_bank=a_bank, b_bank=b_bank, c_bank=c_bank, use_c=int(self.use_c),
                       share=int(share in ("cluster", "all")), **flags,
                       post=int(self.post is not None and bool(flags["final"])),
                       tag=self.finals % 256, columns=max(map(len, columns)) - 1, clusters=mask,
                       row_words=pack.row_words(config, len(tile.columns), tile.tap_count), **dict(items))  # fmt: skip
            if flags["final"]:
                self._result(parts, members, columns, share, dict(items)["row"])

    def _lanes(self, columns: Sequence[Indices], clusters: Sequence[int], share: str) -> list[tuple[int, int, Indices]]:
        """(cluster mask, lane mask, columns) of the loads of one B tile or its parameters."""
        config = self.program.config
        per = config.lanes_per_cluster
        if share == "all":
            return [(1 << c, 1 << lane, columns[c * per + lane]) for c in clusters for lane in range(per)]
        if not clusters:
            return []
        if share == "columns":
            return [(1 << c, (1 << per) - 1, columns[c]) for c in clusters]
        mask = sum(1 << c for c in clusters)
        if share == "cluster":
            return [(mask, 1 << lane, columns[lane]) for lane in range(per)]
        return [(mask, (1 << per) - 1, columns[0])]

    def _load_b(self, bank: int, clusters: list[int], tile: KTile, columns: Sequence[Indices], share: str) -> None:
        for mask, lanes, own in self._lanes(columns, clusters, share):
            data = {"operand": "b", "rows": self._compact(tile.b_rows), "columns": self._compact(own)}
            self._emit("LOAD_B", data, bank=bank, append=int(share in ("cluster", "all") and lanes > 1), clusters=mask,
                       rows=len(tile.b_rows), lanes=lanes, columns=len(own))  # fmt: skip

    def _load_p(self, bank: int, clusters: list[int], key: Hashable, columns: Sequence[Indices], share: str) -> None:
        post = self.post
        assert post is not None
        for mask, lanes, own in self._lanes(columns, clusters, share):
            data = {"bias": post.bias, "mult": post.mult, "shift": post.shift, "columns": self._compact(own)}
            seed = 0
            if post.seed is not None:
                holder = self._runs, key, lanes, mask if share in ("all", "columns") else 0
                seed = tile_seed(int(post.seed), self._numbers.setdefault(holder, len(self._numbers)))
            self._emit("LOAD_P", data, bank=bank, clusters=mask, lanes=lanes, columns=len(own), low=post.low,
                       high=post.high, stochastic=int(seed != 0), seed=seed)  # fmt: skip
        self._parameters[bank].update(dict.fromkeys(clusters, key))

    def _result(
        self, parts: Sequence[Part], members: list[int], columns: Sequence[Indices], share: str, row: int
    ) -> None:
        per = self.program.config.lanes_per_cluster
        entries = []
        for c in members:
            rows = self._compact(parts[c].rows)
            if share in ("no", "columns"):
                own = columns[c if share == "columns" else 0]
                entries.append({"lanes": [c * per, per], "rows": rows, "columns": self._compact(own)})
                continue
            for lane in range(per):
                own = columns[c * per + lane if share == "all" else lane]
                entries.append({"lanes": [c * per + lane, 1], "rows": rows, "columns": self._compact(own)})
        self.program.results.append({"tag": self.finals % 256, "row": row, "output": "c", "parts": entries})
        self.finals += 1


# ---------------------------------------------------------------------- sizes


def wrap16(value: int) -> int:
    """A value as the 16-bit two's complement number that the row state keeps."""
    return ((value + 0x8000) & 0xFFFF) - 0x8000


def deltas(**levels: tuple[int, int, int, int]) -> dict[str, int]:
    """RUN fields of the (seg, k, x, y) deltas of loop levels."""
    fields = {}
    for level, values in levels.items():
        assert level in LEVELS
        for name, value in zip(("seg", "k", "x", "y"), values, strict=True):
            fields[f"{level}_{name}"] = wrap16(value)
    return fields


def split(indices: Indices, pieces: int, unit: int = 1) -> list[Indices]:
    """``indices`` in at most ``pieces`` pieces of nearly equal size, all but the last multiples of ``unit``."""
    units = -(-len(indices) // unit)
    edges = [min(len(indices), units * i // pieces * unit) for i in range(pieces + 1)]
    return [indices[a:b] for a, b in itertools.pairwise(edges) if b > a]


def split_n(config: Config, columns: Indices) -> list[list[Indices]]:
    """N tiles whose columns all lanes hold, in whole columns of PEs."""
    return [[c] for c in split(columns, -(-len(columns) // config.tile_columns), config.pes_per_lane)]


def split_shared(config: Config, columns: Indices, lanes: int) -> list[list[Indices]]:
    """N tiles of so many lanes (at most as many as columns) with columns of their own, whole columns of PEs if there
    are enough.
    """
    pes = config.pes_per_lane
    unit = lanes * pes if len(columns) >= lanes * pes else 1  # a tile's last columns would cost a slot of every PE
    tiles = split(columns, -(-len(columns) // (lanes * config.tile_columns)), unit)
    return [split(tile, lanes, pes if len(tile) >= lanes * pes else 1) for tile in tiles]


def traffic(a_words: float, b_words: float, blocks: int, na: int, nk: int, nn: int, m_outer: bool) -> float:
    """Words loaded by :meth:`Scheduler.run`: A and B once, times how often their tiles have left the two banks.

    Args:
        a_words: words of all of A's tiles, once.
        b_words: words of all of B's tiles, once.
        blocks: blocks of rows.
        na: A tiles of a block (not more than ``nk``).
        nk: K tiles.
        nn: N tiles.
        m_outer: the loop order.
    """
    if m_outer:
        a_times = 1.0 if na <= 2 else (na + (nn - 1) * (na - 2)) / na
        b_times = 1.0 if nn * nk <= 2 else (blocks * nn * nk - 2 * (blocks - 1)) / (nn * nk)
    else:
        a_times = 1.0 if blocks * na <= 2 else (blocks * na * nn - 2 * (nn - 1)) / (blocks * na)
        b_times = 1.0 if nk <= 2 else (nk + (blocks - 1) * (nk - 2)) / nk
    return a_words * a_times + b_words * b_times


def result_words(config: Config, packets: float, values: float) -> float:
    """Words of so many result packets with so many nonzero values altogether."""
    sw = config.stream_words
    head = pack.pad_words(REPLIES[Reply.RESULT].words + config.mask_words, sw)
    return packets * (head + (sw - 1) / 2) + values * (2 if config.acc_width > 32 else 1)


def k_limit(config: Config, taps: int = 1) -> int:
    """Longest segment, in elements, with which a tile of ``taps`` taps fits a weight bank, an activation bank and a
    lane's FIFO; 0 if there is none.
    """
    length = min(config.k_depth // taps, 65535)
    while length > 0 and (
        pack.segment_words(length, config.fetch_width) > config.a_depth
        or pack.row_words(config, length, taps) > config.fifo_depth
    ):
        length = (length - 1) // CHUNK * CHUNK if length > CHUNK else length - 1
    return length
