"""Blocks of the mask unit in Amaranth's simulator, each alone, bit for bit against its formula."""

import itertools
import random

import pytest
from maskwork.gen.config import preset
from maskwork.rtl.lfsr import Lfsr
from maskwork.rtl.mask_common import PackBits, Statistics
from maskwork.rtl.mask_dropout import Dropout
from maskwork.rtl.mask_norms import LATENCY, Norms
from maskwork.rtl.mask_project import PLUS, SIGNED, Project, below
from maskwork.rtl.mask_prune import Pruner
from maskwork.rtl.mask_store import MaskStore
from maskwork.rtl.mask_threshold import Threshold

from .contract import simulate, sink, source, ticks
from .mask_bench import bitmap, rotated, states

TRAIN = preset("small-train")
SEEDS = (1, 1 << 31, 0xFFFFFFFF, 0x12345678)


def bounds(width):
    return -(1 << (width - 1)), (1 << (width - 1)) - 1


def extremes(width, rng, count):
    low, high = bounds(width)
    return [rng.choice((low, high, -high, 0, 1, -1, rng.randint(low, high))) for _ in range(count)]


async def pulse(ctx, signal):
    ctx.set(signal, 1)
    await ctx.tick()
    ctx.set(signal, 0)


def test_lfsr():
    dut = Lfsr()

    async def process(ctx):
        for seed in SEEDS:
            ctx.set(dut.seed, seed)
            await pulse(ctx, dut.load)
            for expected in itertools.islice(states(seed), 300):
                assert ctx.get(dut.state) == expected
                if expected & 1:  # it stands still without a step
                    await ctx.tick()
                    assert ctx.get(dut.state) == expected
                await pulse(ctx, dut.step)

    simulate(dut, process)


def test_threshold():
    """Every value of 4 bits with every level."""
    dut = Threshold(4)
    low, high = bounds(4)

    async def process(ctx):
        for by_magnitude in (0, 1):
            for level in range(1 if by_magnitude else low, high + 1):
                ctx.set(dut.level, level)
                ctx.set(dut.by_magnitude, by_magnitude)
                for value in range(low, high + 1):
                    ctx.set(dut.value, value)
                    ctx.set(dut.magnitude, abs(value))
                    await ctx.tick()
                    assert ctx.get(dut.over) == (abs(value) >= level if by_magnitude else value > level)

    simulate(dut, process)


@pytest.mark.parametrize("width", [4, 9, 18])
def test_pruner(width):
    """A value a cycle; random numbers at the edge between kept and not, and around it."""
    dut, rng = Pruner(width), random.Random(width)
    largest = bounds(width)[1]

    async def process(ctx):
        for level in {1, 2, largest // 2, largest - 1, largest}:
            ctx.set(dut.level, level)
            await ticks(ctx, 2)
            values = [max(-level, min(level, x)) for x in extremes(width, rng, 60)]
            edges = [(abs(x) << 16) // level + rng.choice((-1, 0, 0, 1)) for x in values]
            numbers = [max(0, min(65535, rng.choice((edge, rng.getrandbits(16))))) for edge in edges]
            for cycle in range(len(values) + 3):
                if cycle < len(values):
                    ctx.set(dut.number, numbers[cycle])
                if 0 <= cycle - 2 < len(values):
                    ctx.set(dut.magnitude, abs(values[cycle - 2]))
                    ctx.set(dut.negative, values[cycle - 2] < 0)
                if cycle >= 3:
                    x, u = values[cycle - 3], numbers[cycle - 3]
                    assert ctx.get(dut.chosen) == (level * u < abs(x) << 16), (level, u, x)
                    assert ctx.get(dut.instead) == (-level if x < 0 else level)
                await ctx.tick()

    simulate(dut, process)


def test_dropout():
    dut = Dropout()
    edges = (0, 1, 2, 255, 256, 32767, 32768, 65534, 65535)

    async def process(ctx):
        for level, number in itertools.product(edges[1:], edges):
            ctx.set(dut.level, level)
            ctx.set(dut.number, number)
            await ctx.tick()
            assert ctx.get(dut.keep) == (number < level)

    simulate(dut, process)


@pytest.mark.parametrize(("width", "length", "rows"), [(9, 1, 9), (9, 3, 5), (4, 4, 20), (18, 64, 3), (18, 5, 1)])
def test_norms(width, length, rows):
    """As many values a cycle as may be, then all columns; twice, so that nothing is left over."""
    dut, rng = Norms(TRAIN.replace(a_width=width, norm_channels=64)), random.Random(length)

    async def process(ctx):
        for _ in range(2):
            columns = [extremes(width, rng, rows) for _ in range(length)]
            if length == 5:
                columns[0] = [0] * rows
            await pulse(ctx, dut.start)
            stream = []
            for row in zip(*columns, strict=True):
                stream += [(x, n == length - 1) for n, x in enumerate(row)]
                stream += [None] * (LATENCY + 1 - length)
            for cycle, item in enumerate([*stream, None, None, None, None]):
                ctx.set(dut.step, item is not None)
                ctx.set(dut.closes, item is not None and item[1])
                before = [*stream, None, None][cycle - 2] if 2 <= cycle < len(stream) + 2 else None
                ctx.set(dut.magnitude, abs(before[0]) if before else 77 & ((1 << width) - 1))
                await ctx.tick()
            for n, column in enumerate(columns):
                await ticks(ctx, 2)
                got = []
                for upper in (0, 1):
                    ctx.set(dut.upper, upper)
                    got.append(ctx.get(dut.word))
                total = sum(map(abs, column))
                assert got == [total & 0xFFFFFFFF, sum(x != 0 for x in column) | total >> 32 << 16]
                assert ctx.get(dut.final) == (n == length - 1)
                await pulse(ctx, dut.next)

    simulate(dut, process)


def test_below():
    """The gates of the symbols are the comparisons that they stand for."""
    dut = Project(TRAIN)  # a simulator for expressions

    async def process(ctx):
        for limit, width in ((PLUS, 5), (SIGNED, 6)):
            gates = below(dut.state[:width], limit)
            for symbol in range(1 << width):
                ctx.set(dut.state, symbol)
                assert ctx.get(gates) == (symbol < limit)

    simulate(dut, process)


@pytest.mark.parametrize(("width", "sums"), [(9, 8), (4, 4), (18, 16)])
def test_project(width, sums):
    dut, rng = Project(TRAIN.replace(a_width=width, project_sums=sums)), random.Random(sums)

    async def process(ctx):
        for seed in SEEDS:
            sequences = [states(rotated(seed, 8 * q)) for q in range(sums // 4)]
            row, totals = extremes(width, rng, 50), [0] * sums
            ctx.set(dut.seed, seed)
            ctx.set(dut.load, 1)
            await pulse(ctx, dut.clear)
            ctx.set(dut.load, 0)
            for x in row:
                now = [next(sequence) for sequence in sequences]
                ctx.set(dut.state, now[0])
                for t in range(sums):
                    symbol = now[t // 4] >> 6 * (t % 4) & 63
                    totals[t] += x if symbol < 11 else -x if symbol < 22 else 0
                await pulse(ctx, dut.step)
                ctx.set(dut.value, x)
                if rng.random() < 0.3:
                    await ticks(ctx, 1)
            await ctx.tick()
            for t in range(sums):
                ctx.set(dut.index, t)
                assert ctx.get(dut.sum) == totals[t]

    simulate(dut, process)


@pytest.mark.parametrize("slots", [1, 4])
def test_store(slots):
    config, rng = TRAIN.replace(mask_slots=slots, mask_depth=16), random.Random(slots)
    dut = MaskStore(config)

    async def begin(ctx, slot, length, rows, store):
        ctx.set(dut.slot, slot)
        ctx.set(dut.length, length)
        ctx.set(dut.rows, rows)
        ctx.set(dut.store, store)
        await ticks(ctx, 6)
        lacking = ctx.get(dut.lacking)
        await pulse(ctx, dut.start)
        return lacking

    async def finish(ctx, good=1):
        await ticks(ctx, 2)
        overflowed = ctx.get(dut.overflowed)
        ctx.set(dut.good, good)
        await pulse(ctx, dut.done)
        return overflowed

    async def store(ctx, slot, masks, good=1):
        await begin(ctx, slot, len(masks[0]), len(masks), 1)
        words = [word for mask in masks for word in bitmap(mask)]
        for word in words:
            ctx.set(dut.word, word)
            await pulse(ctx, dut.write)
            await ticks(ctx, rng.randint(0, 2))
        assert await finish(ctx, good) == (len(words) > 16)

    async def replay(ctx, slot, masks, there=True):
        lacking = await begin(ctx, slot, len(masks[0]), len(masks), 0)
        assert lacking == (not there)
        bits = [(bit, n == len(mask) - 1) for mask in masks for n, bit in enumerate(mask)]
        for cycle in range(len(bits) + 3):
            ctx.set(dut.step, cycle < len(bits))
            ctx.set(dut.closes, cycle < len(bits) and bits[cycle][1])
            if cycle >= 3 and there:
                assert ctx.get(dut.bit) == bits[cycle - 3][0]
            await ctx.tick()
        assert not await finish(ctx)

    async def process(ctx):
        held = {}
        for length, rows in ((1, 16), (33, 8), (32, 16), (100, 4), (5, 1)):
            slot = rng.randrange(slots)
            held[slot] = [[rng.getrandbits(1) for _ in range(length)] for _ in range(rows)]
            await store(ctx, slot, held[slot])
            for there, masks in held.items():
                await replay(ctx, there, masks)
        slot, masks = next(iter(held.items()))
        await replay(ctx, slot, [masks[0][:-1]] if len(masks[0]) > 1 else masks[:-1], there=False)
        await replay(ctx, slot, [*masks, masks[0]], there=False)
        await store(ctx, slot, masks, good=0)
        await replay(ctx, slot, masks, there=False)
        await store(ctx, slot, [[1] * 33] * 9)  # 18 words
        await replay(ctx, slot, [[1] * 33] * 9, there=False)
        await store(ctx, slot, masks)
        await pulse(ctx, dut.clear)
        for slot, masks in held.items():
            await replay(ctx, slot, masks, there=False)

    simulate(dut, process)


@pytest.mark.parametrize(("idle", "stall"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.8), (0.3, 0.3)])
def test_pack_bits(idle, stall):
    dut, rng = PackBits(), random.Random(1)
    rows = [[rng.getrandbits(1) for _ in range(length)] for length in (1, 2, 31, 32, 33, 64, 65, 1)]
    items = [{"bit": bit, "closes": n == len(row) - 1, "last": row is rows[-1] and n == len(row) - 1}
             for row in rows for n, bit in enumerate(row)]  # fmt: skip
    words, got = [word for row in rows for word in bitmap(row)], []
    simulate(dut, source(dut.i, items, idle=idle), sink(dut.o, len(words), got, stall=stall))
    assert [each["word"] for each in got] == words
    assert [each["last"] for each in got] == [0] * (len(words) - 1) + [1]


@pytest.mark.parametrize("width", [4, 18])
def test_statistics(width):
    dut, rng = Statistics(width), random.Random(width)

    async def process(ctx):
        for _ in range(2):
            values, kept, nonzeros = [rng.choice((0, 1, 1 << (width - 1))) for _ in range(100)], 0, 0
            await pulse(ctx, dut.clear)
            total = 0
            for x in values:
                valid, keep = rng.getrandbits(1), rng.getrandbits(1)
                ctx.set(dut.valid, valid)
                ctx.set(dut.magnitude, x)
                ctx.set(dut.kept, keep)
                await ctx.tick()
                total, kept, nonzeros = total + valid * x, kept + keep, nonzeros + (valid and x != 0)
            ctx.set(dut.valid, 0)
            ctx.set(dut.kept, 0)
            for index, expected in enumerate((total & 0xFFFFFFFF, total >> 32, kept, nonzeros)):
                ctx.set(dut.index, index)
                assert ctx.get(dut.word) == expected

    simulate(dut, process)
