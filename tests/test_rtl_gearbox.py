"""Simulator test of the gearbox: packed values come out in helpings of any size."""

import random

import pytest
from amaranth import Module, Signal
from maskwork.gen.config import Config
from maskwork.rtl.gearbox import Gearbox

from .contract import simulate


@pytest.mark.parametrize("fields", [
    {}, {"stream_words": 2}, {"stream_words": 4, "a_width": 4}, {"a_width": 18, "b_width": 4},
    {"a_width": 5, "b_width": 18}, {"fetch_width": 8, "pes_per_lane": 1, "stream_words": 4},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("is_b", [0, 1])
@pytest.mark.parametrize("paused", [True, False], ids=["hold", "row"])
def test_gearbox(fields, is_b, paused):
    """Rows of values packed to beats come out value by value, in helpings of any size; padding stays behind. A row
    begins in a pause, or as the last beat of the one before is taken.
    """
    config = Config(**fields)
    dut = Gearbox(config)
    first, follows = Signal(), Signal()
    width = config.b_width if is_b else config.a_width
    rng = random.Random(is_b)
    per_word, words = 32 // width, config.stream_words
    rows = [[rng.getrandbits(width) for _ in range(rng.choice([1, 2, 7, 16, 40]))] for _ in range(20)]
    beats = []
    for row in rows:
        groups = [row[at : at + per_word] for at in range(0, len(row), per_word)]
        packed = [sum(v << width * n for n, v in enumerate(group)) for group in groups] + [0] * (-len(groups) % words)
        packed = [word | rng.getrandbits(32) << per_word * width & 0xFFFFFFFF for word in packed]  # spare bits: rubbish
        groups = [packed[at : at + words] for at in range(0, len(packed), words)]
        beats.append([sum(word << 32 * n for n, word in enumerate(group)) for group in groups])

    async def feed(ctx):
        ctx.set(dut.is_b, is_b)
        if not paused:
            ctx.set(dut.announce, len(rows[0]))
            ctx.set(first, 1)
            await ctx.tick()
            ctx.set(first, 0)
        for row, some, after in zip(rows, beats, [*rows[1:], []], strict=True):
            if paused:
                ctx.set(dut.hold, 1)
                await ctx.tick()
                ctx.set(dut.hold, 0)
                ctx.set(dut.announce, len(row))
                ctx.set(dut.beat_valid, rng.getrandbits(1))
                _, _, wants = await ctx.tick().sample(dut.want)
                assert not wants
                ctx.set(dut.announce, 0)
            for beat in some:
                want = False
                while not want:
                    valid = rng.random() < 0.7
                    ctx.set(dut.beat_valid, valid)
                    ctx.set(dut.beat, beat if valid else rng.getrandbits(32))
                    ctx.set(follows, not paused and beat is some[-1])
                    ctx.set(dut.announce, len(after) if beat is some[-1] else rng.choice([0, 5]))
                    _, _, wants, more = await ctx.tick().sample(dut.want, dut.more)
                    want = wants and valid
                assert more == (beat is not some[-1])
            ctx.set(dut.beat_valid, 0)

    async def take(ctx):
        expected, needed = [v for row in rows for v in row], 0
        while expected:
            count = ctx.get(dut.count)
            seen = min(count, dut.most)
            assert [ctx.get(dut.values[n]) for n in range(seen)] == expected[:seen]
            assert ctx.get(dut.given) == (needed <= count)
            expected = expected[needed if needed <= count else 0 :]
            needed = rng.randint(0, dut.most)
            ctx.set(dut.need, needed)
            await ctx.tick()
        ctx.set(dut.need, 0)
        await ctx.tick()
        assert ctx.get(dut.count) == 0 and not ctx.get(dut.more)

    m = Module()
    m.submodules.dut = dut
    m.d.comb += dut.row.eq(first | (follows & dut.want & dut.beat_valid))
    simulate(m, feed, take, watched=False)
