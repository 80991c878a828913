"""Simulator tests of a PE's accumulators: every addition counts once, however close the last one to that sum was."""

import random

import pytest
from maskwork.gen.config import preset
from maskwork.rtl.accumulators import Accumulators

from .contract import simulate

CONFIGS = {
    "2 rows": {"rows_in_flight": 2, "acc_width": 40, "post": False},  # one LUT RAM
    "4 rows": {"rows_in_flight": 4, "fifo_depth": 128},  # two
    "K tiles": {"psum_in_pe": True, "psum_rows": 8},  # four, at most
    "more rows of K tiles": {"psum_in_pe": True},  # block RAM
    "32 slots": {"rows_in_flight": 4, "fifo_depth": 128, "slots": 32, "psum_rows": 4, "acc_width": 18},  # eight
}


def config_of(name, lut_ram):
    return preset("tiny").replace(**CONFIGS[name], lut_ram=lut_ram)


def wrap(value, width):
    return (value + (1 << width - 1)) % (1 << width) - (1 << width - 1)


def patterns(rng, sums):
    """Operations, cycle by cycle: None, or (sum, drain)."""
    for distance in (1, 2, 3):  # additions to a sum, so many cycles apart, others or nothing between them
        some = rng.sample(range(sums), distance)
        yield from ((some[n % distance], False) for n in range(20 * distance))
        yield from ((some[0], False) if n % distance == 0 else None for n in range(20 * distance))
    for distance in (2, 3, 4):  # an addition, a drain of its sum as close as allowed, the next addition as close
        some = rng.sample(range(sums), distance)
        yield from ((some[n % distance], n // distance % 2 == 1) for n in range(20 * distance))
    few = rng.sample(range(sums), 3)
    for _ in range(1500):
        where = rng.choice(few) if rng.random() < 0.8 else rng.randrange(sums)
        yield rng.choice([None, (where, False), (where, False), (where, False), (where, True)])
    yield from ((where, True) for where in range(sums))


@pytest.mark.parametrize("lut_ram", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_accumulators(name, lut_ram):
    config = config_of(name, lut_ram)
    dut = Accumulators(config)
    product_after, sum_after = dut.lead, dut.lead + 1
    rng = random.Random(1)
    low = -(1 << (config.a_width + config.b_width - 2))
    extremes = [low, -low, -1, 0, 1]  # -low is the product of the two most negative operands
    held = [0] * (config.sum_rows * config.slots)
    products, drained = {}, {}
    counts = {"add": 0, "drain": 0}

    async def bench(ctx):
        last = None
        operations = list(patterns(rng, len(held)))
        for cycle, operation in enumerate([*operations, *[None] * sum_after]):
            # neither the operation before nor the one after a drain may be on its sum
            if operation and last and operation[0] == last[0] and (operation[1] or last[1]):
                operation = None
            where, drains = operation or (rng.randrange(len(held)), False)
            product = rng.choice([*extremes, rng.randint(low, -low)])
            products[cycle + product_after] = 0 if drains else product
            if operation and drains:
                drained[cycle + sum_after] = held[where]
                held[where] = 0
            elif operation:
                held[where] = wrap(held[where] + product, config.acc_width)
            counts["drain" if drains else "add"] += operation is not None
            ctx.set(dut.address, where)
            ctx.set(dut.adds, operation is not None and not drains)
            ctx.set(dut.drains, drains)
            ctx.set(dut.product, products.get(cycle, 0))
            assert ctx.get(dut.sum) == drained.get(cycle, 0), f"cycle {cycle}"
            last = operation
            await ctx.tick()

    simulate(dut, bench)
    assert not any(held) and counts["add"] > 700 and counts["drain"] > 200
