"""A lane alone: rows of words into its rings, K tiles whose sums stay, random grants and pauses of post-processing.

The lane's only back-pressure is that of post-processing (``grant``, ``space``); words and weights come at random times.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cocotb
import numpy as np
from amaranth.hdl import signed
from amaranth.lib import data
from cocotb.triggers import FallingEdge, ReadOnly
from maskwork.gen.config import CHUNK, Config
from maskwork.rtl.drain import DRAIN_LATENCY
from maskwork.rtl.hop import lane_stages
from maskwork.rtl.layouts import WordKind, b_write_layout, chunk_layout, counts_layout, ring_words, start_layout
from maskwork.rtl.post import PostKind, RowWord
from maskwork.sim_tb.benches.stream import configuration, packed, share_of, start, unpacked

LANE = 5


@dataclass
class Row:
    """One row, or one K tile of it: its words, and the result if this is the final tile."""

    words: list[int]
    bank: int
    number: int
    final: bool
    expected: dict[int, int] = field(default_factory=dict)
    post: int = 0
    tag: int = 0


class Bench:
    """Weights of the lane and the rows that go through it.

    Members:
        b: int64 (2 * k_depth, columns), the weights of both banks.
        due: multiplications, tokens and rows that the rows made so far stand for.
        seen: those that the lane reported.
    """

    def __init__(self, dut: Any, seed: str) -> None:
        self.dut, self.config = dut, configuration()
        config = self.config
        self.chance = random.Random(f"{seed} {cocotb.RANDOM_SEED}")
        self.numbers = np.random.default_rng(self.chance.getrandbits(32))
        self.b = np.zeros((2 * config.k_depth, config.tile_columns), np.int64)
        self.due = {"multiply": 0, "token": 0, "row": 0}
        self.seen = dict(self.due)

    async def open(self) -> None:
        """Reset, and write the weights."""
        dut, config = self.dut, self.config
        await start(
            dut, valid=0, ring=0, word=0, scan=0, coming=0, coming_bank=0, write=0, selected=0, grant=0, space=0,
            lane=LANE, loading=0, running=0,
        )  # fmt: skip
        for bank in range(2):
            await self.write(bank, 0.0)
        for _ in range(4 * config.slots * config.rows_in_flight):
            await FallingEdge(dut.clk)
        cocotb.start_soon(self._count())

    async def write(self, bank: int, pause: float) -> None:
        """Fill a bank with new weights; between words it pauses, or words go to another lane."""
        config, dut = self.config, self.dut
        layout, pes = b_write_layout(config), config.pes_per_lane
        limit = 1 << (config.b_width - 1)
        shape = config.k_depth, config.tile_columns
        new = self.numbers.integers(-limit, limit, shape) * (self.numbers.random(shape) < 0.5)
        self.b[bank * config.k_depth :][: config.k_depth] = new
        for k, row in enumerate(new, bank * config.k_depth):
            bits = sum(1 << int(n) for n in np.flatnonzero(row))
            for slot in range(config.slots):
                packed_values = _joined(row[slot * pes : (slot + 1) * pes].tolist(), config.b_width)
                fields = {"k": k, "slot": slot, "enable": (1 << pes) - 1, "values": packed_values}
                if "b" in config.skip:
                    fields |= {"mask_we": int(slot == 0), "mask": bits}
                if not set("bc") & set(config.skip):
                    fields |= {"columns_we": int(slot == config.slots - 1), "last_slot": config.slots - 1}
                dut.selected.value = 0
                while self.chance.random() < pause:
                    dut.write.value = self.chance.getrandbits(layout.size)
                    await FallingEdge(dut.clk)
                dut.write.value = packed(layout, **fields)
                dut.selected.value = 1
                await FallingEdge(dut.clk)
        dut.selected.value = 0

    async def _count(self) -> None:
        """Add up what the lane reports; every PE must be charged to one reason in every cycle."""
        config, dut = self.config, self.dut
        layout = counts_layout(config.pes_per_lane)
        busy = [True] * 3
        while True:
            await FallingEdge(dut.clk)
            await ReadOnly()
            counts = unpacked(layout, int(dut.counts.value))
            assert sum(counts.values()) == config.pes_per_lane, f"PEs are charged {counts}"
            # counts are 3 cycles old: a product needs its weights, so that their bank is taken
            busy.append(bool(dut.banks.value))
            assert busy.pop(0) or not counts["multiply"], "a product of a row that counts as finished"
            self.seen["multiply"] += counts["multiply"]
            self.seen["token"] += int(dut.token.value)
            self.seen["row"] += int(dut.row_finished.value)

    def rows(self, count: int, banks: Sequence[int] = (0, 1)) -> list[list[Row]]:
        """Rows for every ring: whole ones, and blocks of rows that K divides into tiles; with the weights of now."""
        config = self.config
        own_slots = config.psum_rows // config.rows_in_flight
        rings: list[list[Row]] = [[] for _ in range(config.rows_in_flight)]
        number = 0
        while number < count:
            for ring, rows in enumerate(rings):
                tiles, block = self.chance.choice(((1, 1), (2, own_slots), (3, 1)))
                density = self.numbers.choice([0.0, 0.3, 1.0], (block, 1))
                wanted = self.numbers.random((block, config.tile_columns)) < density
                sums = np.zeros((block, config.tile_columns), np.int64)
                for tile in range(tiles):
                    for n in range(block):
                        flags = {"first": int(tile == 0), "final": int(tile == tiles - 1)}
                        fields = flags | {"slot": ring + n * config.rows_in_flight, "bank": self.chance.choice(banks)}
                        rows.append(self._row(number + n, wanted[n], sums[n], fields))
                number += block
        return rings

    def _row(self, number: int, wanted: np.ndarray, sums: np.ndarray, fields: dict[str, int]) -> Row:
        config, chance = self.config, self.chance
        bank, tag, post = fields["bank"], chance.randrange(256), chance.randrange(2)
        fields |= {"tag": tag, "post": post}
        head = packed(start_layout(config), kind=WordKind.START.value, **fields)
        bits = sum(1 << int(n) for n in np.flatnonzero(wanted))
        words = [head]
        if fields["first"] or not config.psum_in_pe:  # the lane has those of rows whose sums stay
            words += [number, *(bits >> 32 * n & 0xFFFFFFFF for n in range(config.mask_words))]
        limit = 1 << (config.a_width - 1)
        visited = wanted | ("c" not in config.skip)
        self.due["row"] += 1
        for _ in range(chance.randint(0, 4) if wanted.any() else 0):
            k = chance.randrange(config.k_depth)
            present = np.arange(CHUNK) < chance.randint(1, CHUNK)
            if "a" in config.skip:
                present = self.numbers.permutation(present)
            values = self.numbers.integers(-limit, limit, int(present.sum()))
            for element, value in zip(np.flatnonzero(present), values, strict=True):
                weights = self.b[bank * config.k_depth + (k + int(element)) % config.k_depth]
                sums += value * weights
                self.due["multiply"] += int((visited & ((weights != 0) | ("b" not in config.skip))).sum())
                self.due["token"] += 1
            words += _chunk(config, k, present, values.tolist())
        words.append(packed(start_layout(config), kind=WordKind.END.value))
        row = Row(words, bank, number, bool(fields["final"]), post=post, tag=tag)
        width = config.acc_width
        wrapped = ((sums + (1 << (width - 1))) & ((1 << width) - 1)) - (1 << (width - 1))
        row.expected = {int(column): int(wrapped[column]) for column in np.flatnonzero(wanted)}
        return row


def _chunk(config: Config, k: int, present: np.ndarray, values: list[int]) -> list[int]:
    bits = sum(1 << int(n) for n in np.flatnonzero(present)) if "a" in config.skip else len(values) - 1
    head = packed(chunk_layout(config), kind=WordKind.CHUNK.value, bitmap=bits, more=len(values) - 1, k=k)
    groups = [values[n : n + config.fetch_width] for n in range(0, len(values), config.fetch_width)]
    return [head, *(_joined(group, config.a_width) for group in groups)]


def _joined(values: list[int], width: int) -> int:
    """Values side by side."""
    return sum((value & ((1 << width) - 1)) << width * n for n, value in enumerate(values))


async def feed(bench: Bench, rings: list[list[Row]], pause: float) -> None:
    """Announce rows and write their words, ring by ring at random, no ring fuller than it is."""
    dut, chance, config = bench.dut, bench.chance, bench.config
    words = ring_words(config)
    # the level that the lane tells is of some cycles ago, and of the ring that was asked for then
    age = 2 * lane_stages(config) + 1
    asked, recent = [0] * age, [-1] * (age + 2)
    writing: list[list[int]] = [[] for _ in rings]
    left = [list(rows) for rows in rings]
    while any(left) or any(writing):
        await FallingEdge(dut.clk)
        dut.valid.value = 0
        dut.coming.value = 0
        told, level = asked.pop(0), int(dut.level.value)
        asked.append(chance.randrange(len(rings)))
        dut.scan.value = asked[-1]
        recent = [*recent[1:], -1]
        pending = int(dut.pending.value)
        if chance.random() < pause:
            continue
        ring = chance.choice([n for n in range(len(rings)) if left[n] or writing[n]])
        if not writing[ring]:
            if not pending >> ring & 1:
                row = left[ring].pop(0)
                writing[ring] = list(row.words)
                dut.coming.value = 1 << ring
                dut.coming_bank.value = row.bank
            continue
        if ring == told and level + recent.count(ring) < words:
            recent[-1] = ring
            dut.valid.value = 1
            dut.ring.value = ring
            dut.word.value = writing[ring].pop(0)
    await FallingEdge(dut.clk)
    dut.valid.value = 0
    dut.coming.value = 0


async def collect(bench: Bench, rings: list[list[Row]], stall: float) -> None:
    """Grant post-processing and take every row's words, which must be those expected."""
    dut, chance, config = bench.dut, bench.chance, bench.config
    layout = RowWord(config)
    lane_bits = (config.lanes_per_cluster - 1).bit_length()
    header = data.StructLayout({"row": 16, "tag": 8, "post": 1, "bank": 1, "lane": lane_bits})
    result = data.StructLayout({"value": signed(config.acc_width), "column": range(config.tile_columns)})
    expected = {row.number: row for rows in rings for row in rows if row.final}
    open_row: Row | None = None
    column, since, quiet = -1, 0, 0
    granted = False
    # a row's first word goes the way of its sums: so many cycles ago, the row was allowed to begin
    allowed = [False] * DRAIN_LATENCY
    while expected:
        await FallingEdge(dut.clk)
        request = bool(dut.request.value)
        granted = request and (granted or chance.random() >= stall)
        space = chance.random() >= stall
        dut.grant.value = int(granted)
        dut.space.value = int(space)
        allowed.append(granted and space)
        began = allowed.pop(0)
        await ReadOnly()
        since = 0 if space else since + int(dut.o.value[0])
        assert since <= DRAIN_LATENCY + 1, "words came although there was no space"
        quiet += 1
        assert quiet < 20_000, f"the lane is stuck; {len(expected)} rows are missing"
        bits = int(dut.o.value)
        if not bits & 1:
            continue
        quiet = 0
        word = unpacked(layout, bits >> 1)
        kind = PostKind(word["kind"])
        if kind == PostKind.START:
            assert began, "a row began without a grant"
            assert open_row is None, "a row began within a row"
            found = unpacked(header, word["body"] & ((1 << header.size) - 1))
            open_row = expected[found.pop("row")]
            lane = LANE & ((1 << lane_bits) - 1)
            assert found == {"lane": lane, "tag": open_row.tag, "post": open_row.post, "bank": open_row.bank}
            column = -1
        else:
            assert open_row is not None, f"{kind.name} outside a row"
            if kind == PostKind.VALUE:
                given = unpacked(result, word["body"] & ((1 << result.size) - 1))
                assert given["column"] > column, "columns must rise"
                column = given["column"]
                assert given["value"] == open_row.expected.pop(column), f"row {open_row.number}, column {column}"
            else:
                assert not open_row.expected, f"row {open_row.number} lacks columns {list(open_row.expected)}"
                del expected[open_row.number]
                open_row = None


async def play(bench: Bench, rings: list[list[Row]], pause: float, stall: float) -> None:
    """Rows through the lane, to the last of them."""
    dut = bench.dut
    task = cocotb.start_soon(feed(bench, rings, pause))
    await collect(bench, rings, stall)
    await task
    for _ in range(4):
        await FallingEdge(dut.clk)
    assert not dut.working.value and not dut.request.value
    assert dut.written.value == dut.taken.value
    # a row that is drained and one whose sums stay may end in the same cycle; `working` says that all have left
    merged = bench.due["row"] - bench.seen["row"] if bench.config.psum_in_pe else 0
    assert 0 <= merged <= bench.due["row"] // 10, f"{merged} of {bench.due['row']} rows were not reported"
    bench.seen["row"] += merged
    assert bench.seen == bench.due, f"the lane reported {bench.seen}, not {bench.due}"


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def rows_at_full_speed(dut: Any) -> None:
    """Words as fast as the rings take them, post-processing always ready."""
    bench = Bench(dut, "fast")
    await bench.open()
    await play(bench, bench.rows(share_of(40)), 0.0, 0.0)


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def rows_with_pauses(dut: Any) -> None:
    """Words come now and then, grants are late, and space runs out."""
    bench = Bench(dut, "pauses")
    await bench.open()
    await play(bench, bench.rows(share_of(24)), 0.6, 0.3)


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def rows_that_wait_for_post_processing(dut: Any) -> None:
    """Post-processing is mostly busy."""
    bench = Bench(dut, "late")
    await bench.open()
    await play(bench, bench.rows(share_of(16)), 0.0, 0.9)


@cocotb.test(timeout_time=5, timeout_unit="ms")
async def weights_that_change(dut: Any) -> None:
    """While rows of one bank are computed, the other bank is written; then the other way round."""
    bench = Bench(dut, "weights")
    await bench.open()
    for bank in (0, 1):
        rings = bench.rows(share_of(8), banks=[bank])
        task = cocotb.start_soon(bench.write(1 - bank, 0.3))
        await play(bench, rings, 0.2, 0.2)
        await task
