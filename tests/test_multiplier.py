"""Simulator test of the multiplier: signed products, two cycles after their operands."""

import itertools
import random

import pytest
from maskwork.rtl.multiplier import Multiplier

from .contract import simulate


@pytest.mark.parametrize(("a_width", "b_width"), [(9, 9), (4, 18), (18, 18), (2, 2)])
def test_multiplier(a_width, b_width):
    dut = Multiplier(a_width, b_width)
    rng = random.Random(1)
    limits = [1 << (width - 1) for width in (a_width, b_width)]
    extremes = [[-limit, -1, 0, 1, limit - 1] for limit in limits]
    pairs = [*itertools.product(*extremes), *([rng.randrange(-n, n) for n in limits] for _ in range(200))]
    products = [0, 0, *(a * b for a, b in pairs)]

    async def bench(ctx):
        for (a, b), product in zip([*pairs, (0, 0), (0, 0)], products, strict=True):
            ctx.set(dut.a, a)
            ctx.set(dut.b, b)
            assert ctx.get(dut.product) == product
            await ctx.tick()

    simulate(dut, bench)
