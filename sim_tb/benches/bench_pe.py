"""One PE alone: random tokens of several contexts, drains among them, and what back-to-back traffic could break."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import FallingEdge, ReadOnly
from maskwork.rtl.pe import (
    DRAIN_READ_LATENCY,
    LOOKUP_LATENCY,
    column_mask_layout,
    drain_layout,
    early_layout,
    token_layout,
    weight_write_layout,
)
from maskwork.sim_tb.benches.stream import configuration, packed, share_of, start

IDLE = {"ahead": 0, "early": 0, "token": 0, "token_valid": 0, "write": 0, "drain": 0, "done_clear": 0}


class Bench:
    """Weights and masks of the PE, and what its accumulators should hold.

    Members:
        weights, present: int64 and bool, (2 * k_depth, slots).
        sums: int64 (contexts, slots), of the tokens sent since a context was drained.
        due, seen: multiplications that were due, and that the PE reported.
        stolen: cycles in which a drain took the place of one.
    """

    def __init__(self, dut: Any, seed: str) -> None:
        self.dut, self.config = dut, configuration()
        config = self.config
        self.chance = random.Random(f"{seed} {cocotb.RANDOM_SEED}")
        numbers = np.random.default_rng(self.chance.getrandbits(32))
        shape = 2 * config.k_depth, config.slots
        limit = 1 << (config.b_width - 1)
        self.weights = np.where(numbers.random(shape) < 0.1, -limit, numbers.integers(-limit, limit, shape))
        self.present = numbers.random(shape) < numbers.choice([0.0, 0.2, 0.5, 1.0], (shape[0], 1))
        if "b" not in config.skip:
            self.weights[~self.present] = 0
            self.present[:] = True
        self.wanted = np.ones((config.rows_in_flight, config.slots), np.bool_)
        self.sums = np.zeros((config.rows_in_flight, config.slots), np.int64)
        self.due = self.seen = self.stolen = 0
        self._drains = False
        self._cycle = 0
        self._tokens: dict[int, dict[str, int]] = {}
        self._drained: dict[int, int] = {}

    async def open(self) -> None:
        """Reset, write weights, and empty the accumulators."""
        config, dut = self.config, self.dut
        idle = IDLE | ({"column_mask": 0} if "c" in config.skip else {})
        await start(dut, **idle)
        layout = weight_write_layout(config)
        for k in range(2 * config.k_depth):
            for slot in range(config.slots):
                fields = {"k": k, "slot": slot, "we": int(self.present[k, slot]), "value": int(self.weights[k, slot])}
                if slot == 0 and not set("bc") & set(config.skip):
                    fields |= {"columns_we": 1, "last_slot": config.slots - 1}
                dut.write.value = packed(layout, **fields)
                await FallingEdge(dut.clk)
        dut.write.value = 0
        for context in range(config.rows_in_flight):
            for slot in range(config.slots):
                dut.drain.value = packed(drain_layout(config), valid=1, context=context, slot=slot)
                await FallingEdge(dut.clk)
        dut.drain.value = 0
        for _ in range(DRAIN_READ_LATENCY):
            await FallingEdge(dut.clk)
        self.seen = 0

    async def begin(self, context: int, wanted: np.ndarray) -> None:
        """A row's C mask."""
        config = self.config
        self.wanted[context] = wanted if "c" in config.skip else True
        if "c" not in config.skip:
            return
        layout = column_mask_layout(config)
        bits = layout["mask"].width
        for word in range(config.slots // bits):
            part = sum(int(bit) << n for n, bit in enumerate(self.wanted[context][word * bits :][:bits]))
            await self.step(column_mask=packed(layout, we=1, context=context, word=word, mask=part))

    async def step(
        self, token: dict[str, int] | None = None, drain: tuple[int, int] | None = None, **inputs: int
    ) -> bool:
        """One cycle. A token goes only if there is space; answers whether it went."""
        dut, config = self.dut, self.config
        # all of these are registers, or made of registers: they do not depend on what is driven below
        sum_ = dut.sum.value.to_signed()
        expected = self._drained.pop(self._cycle, 0)
        assert sum_ == expected, f"cycle {self._cycle}: drained {sum_}, not {expected}"
        goes = token is not None and bool(dut.space.value)
        for name, value in ({"done_clear": 0} | ({"column_mask": 0} if "c" in config.skip else {}) | inputs).items():
            getattr(dut, name).value = value
        if token is not None and goes:
            self._tokens[self._cycle + LOOKUP_LATENCY] = token
            self._add(token)
        for cycles, name in ((1, "early"), (2, "ahead")):
            following = self._tokens.get(self._cycle + cycles, {"context": 0, "end": 0})
            fields = {field: following[field] for field in ("context", "end")}
            getattr(dut, name).value = packed(early_layout(config), **fields)
        if "b" in config.skip:
            looked_up = self._tokens.get(self._cycle + 2)
            present = self.present[looked_up["k"]] if looked_up else []
            dut.mask.value = sum(int(bit) << n for n, bit in enumerate(present))
        arriving = self._tokens.pop(self._cycle, None)
        dut.token_valid.value = int(arriving is not None)
        dut.token.value = packed(token_layout(config), **arriving) if arriving else 0
        fields = {"valid": 1, "context": drain[0], "slot": drain[1]} if drain else {}
        dut.drain.value = packed(drain_layout(config), **fields)
        if drain:
            self._drained[self._cycle + DRAIN_READ_LATENCY] = self._wrapped(int(self.sums[drain]))
            self.sums[drain] = 0
        await ReadOnly()
        self.seen += int(dut.multiply.value)
        # a drain takes a cycle to the register that issues wait for
        self.stolen += int(dut.stolen.value)
        assert self._drains or not dut.stolen.value, "a multiplication gave way to no drain"
        self._drains = drain is not None
        await FallingEdge(dut.clk)
        self._cycle += 1
        return goes

    def _wrapped(self, value: int) -> int:
        width = self.config.acc_width
        return ((value + (1 << (width - 1))) & ((1 << width) - 1)) - (1 << (width - 1))

    def _add(self, token: dict[str, int]) -> None:
        if not token["end"]:
            k, context = token["k"], token["context"]
            hits = self.present[k] & self.wanted[context]
            self.sums[context] += np.where(hits, self.weights[k], 0) * token["a"]
            self.due += int(hits.sum())

    def row(self, context: int, length: int, ks: list[int] | None = None) -> Iterator[dict[str, int]]:
        """Tokens of a row, and its end."""
        limit = 1 << (self.config.a_width - 1)
        for _ in range(length):
            k = self.chance.choice(ks) if ks else self.chance.randrange(2 * self.config.k_depth)
            a = self.chance.choice((-limit, limit - 1, self.chance.randrange(-limit, limit)))
            yield {"k": k, "a": a, "context": context, "end": 0}
        yield {"k": 0, "a": 0, "context": context, "end": 1}

    def done(self, context: int) -> bool:
        """Whether the end of the context's row was issued."""
        return bool(int(self.dut.done.value) >> context & 1)


async def play(bench: Bench, rows: int, length: int, pause: float, ks: list[int] | None = None) -> None:
    """Rows in all contexts side by side; each is drained, slot by slot, as soon as its end was issued."""
    config, chance = bench.config, bench.chance
    contexts = range(config.rows_in_flight)
    streams: dict[int, Iterator[dict[str, int]]] = {}
    waiting: dict[int, dict[str, int]] = {}
    left = rows
    slots: dict[int, list[int]] = {}
    ended: set[int] = set()
    for _ in range(200 * rows * (length + config.slots) + 1000):
        if not (left or streams or waiting or slots or ended):
            break
        for context in contexts:
            if left and context not in streams and context not in ended and context not in slots:
                left -= 1
                numbers = np.random.default_rng(chance.getrandbits(32))
                await bench.begin(context, numbers.random(config.slots) < chance.choice((0.2, 0.7, 1.0)))
                streams[context] = bench.row(context, chance.randint(0, length), ks)
        for context in list(streams):
            if context not in waiting:
                waiting[context] = next(streams[context])
        for context in list(ended):
            if bench.done(context):
                ended.remove(context)
                slots[context] = list(range(config.slots))
        token = chance.choice(list(waiting.values())) if waiting and chance.random() >= pause else None
        drain, clear = None, 0
        if slots and chance.random() >= pause:
            context = chance.choice(list(slots))
            if slots[context]:
                drain = context, slots[context].pop(0)
            else:
                clear = 1 << context
                del slots[context]
        if await bench.step(token, drain, done_clear=clear) and token:
            del waiting[token["context"]]
            if token["end"]:
                del streams[token["context"]]
                ended.add(token["context"])
    assert not (left or streams or waiting or slots or ended), "rows did not come to their end"
    for _ in range(DRAIN_READ_LATENCY + 2):
        await bench.step()
    assert not bench.dut.working.value
    assert bench.seen == bench.due, f"{bench.seen} multiplies were reported, not {bench.due}"


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def random_rows(dut: Any) -> None:
    """Rows with pauses, and without."""
    bench = Bench(dut, "random")
    await bench.open()
    for pause in (0.0, 0.3, 0.7):
        await play(bench, share_of(12), 20, pause)
    assert bench.stolen, "no drain took the place of a multiplication"


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def one_accumulator(dut: Any) -> None:
    """Tokens that all meet the same few weights: every cycle adds to the slot that the last one added to."""
    bench = Bench(dut, "same slot")
    k = bench.config.k_depth + 1
    bench.present[k] = [slot == 2 or "b" not in bench.config.skip for slot in range(bench.config.slots)]
    await bench.open()
    await play(bench, 12, 40, 0.0, [k])


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def short_rows(dut: Any) -> None:
    """Rows of no or one token: a drain follows the last sum as closely as it can, and the next row the drain."""
    bench = Bench(dut, "short")
    bench.present[0] = True
    await bench.open()
    await play(bench, share_of(80), 1, 0.0, [0])


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def drains_between_sums(dut: Any) -> None:
    """Another context's slot is drained in every cycle around the sums of this one."""
    bench = Bench(dut, "between")
    config = bench.config
    bench.present[0] = True
    await bench.open()
    await bench.begin(0, np.ones(config.slots, np.bool_))
    await bench.begin(1, np.ones(config.slots, np.bool_))
    for gap in range(8):
        for context in (0, 1):
            for token in bench.row(context, 3, [0]):
                while not await bench.step(token):
                    pass
        while not bench.done(0):
            await bench.step()
        for slot in range(config.slots):
            for _ in range(gap % 4):
                await bench.step()
            await bench.step(drain=(0, slot))
        await bench.step(done_clear=1)
        while not bench.done(1):
            await bench.step()
        # a sum on its way to the slot that is drained in the next cycle, in the other context too
        for slot in range(config.slots):
            await bench.step(drain=(1, slot))
        await bench.step(done_clear=2)
    for _ in range(DRAIN_READ_LATENCY + 2):
        await bench.step()
