"""Registers on long wires: delays, reset values, what stays separate in synthesis, and what they cost in cycles."""

import random

import numpy as np
import pytest
from amaranth import Module, ResetInserter, Signal
from amaranth.sim import Simulator
from maskwork.fpga.synthesis import COMMANDS, KEPT
from maskwork.gen.config import Config, preset
from maskwork.gen.generate import emit
from maskwork.gen.lower import lower_matmul
from maskwork.rtl.accelerator import Accelerator
from maskwork.rtl.hop import Hop, lane_stages
from maskwork.sim_tb.cycle import simulate_program


def simulate(dut, body):
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(body)
    simulator.run()


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_a_hop_delays(stages):
    dut, rng, seen = Hop(12, stages), random.Random(stages), []
    given = [rng.getrandbits(12) for _ in range(40)]

    async def body(ctx):
        for value in given:
            ctx.set(dut.i, value)
            seen.append(ctx.get(dut.o))
            await ctx.tick()

    simulate(dut, body)
    assert seen == [0] * stages + given[:-stages]


def test_a_hop_passes_a_reset_on():
    m, reset, seen = Module(), Signal(), []
    m.submodules.hop = ResetInserter(reset)(hop := Hop(1, 1, init=1))

    async def body(ctx):
        for value in (1, 1, 0, 0, 1, 0, 0):
            ctx.set(reset, value)
            seen.append(ctx.get(hop.o))
            await ctx.tick()

    simulate(m, body)
    assert seen == [1, 1, 1, 0, 0, 1, 0]


def test_a_hop_of_data_is_not_reset():
    m, reset, seen = Module(), Signal(), []
    m.submodules.hop = ResetInserter(reset)(hop := Hop(4, 2, reset_less=True))

    async def body(ctx):
        for value in range(8):
            ctx.set(reset, value in (3, 4))
            ctx.set(hop.i, value)
            seen.append(ctx.get(hop.o))
            await ctx.tick()

    simulate(m, body)
    assert seen == [0, 0, 0, 1, 2, 3, 4, 5]


def test_a_hop_clears():
    """Words that are not valid are 0 behind the hop."""
    m, rng, seen = Module(), random.Random(3), []
    m.submodules.hop = hop = Hop(4, 2, reset_less=True, clears=True)
    given = [(rng.getrandbits(4), rng.getrandbits(1)) for _ in range(40)]

    async def body(ctx):
        for value, clear in given:
            ctx.set(hop.i, value)
            ctx.set(hop.clear, clear)
            seen.append(ctx.get(hop.o))
            await ctx.tick()

    simulate(m, body)
    assert seen == [0, 0] + [0 if clear else value for value, clear in given[:-2]]


def test_lanes_are_one_register_away_at_most():
    assert [lane_stages(Config(hop_stages=n)) for n in range(3)] == [0, 1, 1]


def test_synthesis_keeps_them():
    """Every Hop is a module of its own in the text that Yosys gets, under a name that it is told to keep."""
    text, _ = emit(Accelerator(preset("small").replace(hop_stages=2)), "top")
    names = {line.split()[1].partition("(")[0] for line in text.splitlines() if line.startswith("module ")}
    hops = {name for name in names if "_hop" in name}
    assert "top_hop" in hops and len(hops) > 4
    assert all(name.removeprefix("top_hop").strip("_").isdecimal() for name in hops - {"top_hop"})
    assert all(int(name.rpartition("_")[2]) < 100 for name in hops - {"top_hop"})  # the patterns take two digits
    assert all("*_hop *_hop_? *_hop_??" in kept for kept in KEPT[:-1]) and "{kept}" in COMMANDS["ecp5"]
    assert "_hop" not in emit(Accelerator(preset("small")), "top")[0]


def test_they_cost_few_cycles():
    """Commands take longer; but more drained words may wait, which can win more than that."""
    rng = np.random.default_rng(2)
    masks = {"a": rng.random((64, 200)) < 0.4, "b": rng.random((200, 64)) < 0.4}
    cycles = []
    for stages in range(3):
        config = preset("small").replace(hop_stages=stages)
        cycles.append(simulate_program(lower_matmul(config, 64, 200, 64), masks=masks)["cycles"])
    assert len(set(cycles)) == 3 and all(abs(each / cycles[0] - 1) < 0.02 for each in cycles)
