"""The model of one lane, and what it says of two other ways to feed PEs."""

import json
import subprocess
import sys

import numpy as np
import pytest
from amaranth.sim import Simulator
from maskwork.fpga.pair_cost import PairQueue
from maskwork.gen import lane_trials
from maskwork.gen.config import preset
from maskwork.rtl.pe import QUEUE_MARGIN

SHAPE = (48, 288)


@pytest.mark.parametrize("densities", [(0.4, 0.3, 1.0), (0.2, 1.0, 0.45), (0.4, 1.0, 0.2)])
def test_the_reference_is_the_lane_as_it_is(densities):
    """The trial's model of today's lane agrees with the exact model to 2 points of 100."""
    rows = lane_trials.make_rows(np.random.default_rng([1, 0]), SHAPE, densities)
    model = lane_trials.push(rows, 32, 16)
    assert model == pytest.approx(lane_trials.exact(SHAPE, densities, [1, 0], 16), abs=0.02)
    assert 0.5 < model <= 1


def test_every_way_issues_every_product():
    """A dense product without drains to speak of keeps all PEs busy whichever way they are fed."""
    rows = lane_trials.make_rows(np.random.default_rng(1), SHAPE, (1.0, 1.0, 1.0))
    for way in (lane_trials.push, lane_trials.shared, lane_trials.pull):
        assert 0.97 < way(rows, 32, 16) <= 1


def test_pull_trades_imbalance_for_the_port():
    """PEs with many wanted columns may fall behind the others; nonzeros without work for a PE cost the lane's port."""
    masked = lane_trials.make_rows(np.random.default_rng(2), SHAPE, (0.2, 1.0, 0.45))
    assert lane_trials.pull(masked, 32, 16) > lane_trials.push(masked, 32, 16) + 0.03
    sparse = lane_trials.make_rows(np.random.default_rng(2), SHAPE, (0.4, 0.2, 0.45))
    assert lane_trials.pull(sparse, 32, 16) < 0.6 * lane_trials.push(sparse, 32, 16)


def test_empty_rows_end():
    """Rows without a nonzero, or without a wanted column, end as well."""
    for densities in ((0.0, 1.0, 1.0), (0.5, 1.0, 0.0)):
        rows = lane_trials.make_rows(np.random.default_rng(3), (5, 40), densities)
        for way in (lane_trials.push, lane_trials.shared, lane_trials.pull):
            assert way(rows, 2, 8) == 0


def test_command():
    """The command prints what the function returns."""
    command = [sys.executable, "-m", "maskwork.gen.lane_trials", "--rows", "12", "--inner", "64", "--json"]
    table = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert [tuple(line["densities"]) for line in table] == list(lane_trials.CASES)
    assert table == json.loads(json.dumps(lane_trials.trials(12, 64, 1, 16, lambda _: None)))


def test_pair_queue():
    """Both ways out of the shared queue give every token in order, at their own pace, and `space` leaves its margin."""
    config = preset("small")
    dut = PairQueue(config)
    rng = np.random.default_rng(4)
    count = 400
    sent: list[tuple[int, int, int]] = []
    got: list[list[tuple[int, int]]] = [[], []]

    async def bench(ctx):
        for cycle in range(20 * count):
            # long runs in which one way out, or the way in, waits
            phase = cycle // 60 % 4
            offer = len(sent) < count and (rng.random() < 0.9)
            if offer:
                masks = rng.integers(0, 1 << config.slots, 2).tolist()
                token = (len(sent) & 255, *masks)
                ctx.set(dut.i.payload.token.a, token[0] - 128)
                ctx.set(dut.i.payload.mask[0], token[1])
                ctx.set(dut.i.payload.mask[1], token[2])
            ctx.set(dut.i.valid, offer)
            for n, o in enumerate((dut.o0, dut.o1)):
                ready = rng.random() < (0.1 if phase == n + 1 else 0.9)
                ctx.set(o.ready, ready)
            if offer and ctx.get(dut.i.ready):
                sent.append(token)
            for n, o in enumerate((dut.o0, dut.o1)):
                if ctx.get(o.valid) and ctx.get(o.ready):
                    got[n].append((ctx.get(o.payload.token.a) + 128, ctx.get(o.payload.mask)))
            held = max(len(sent) - len(got[0]), len(sent) - len(got[1]))
            assert held <= config.queue_depth
            await ctx.tick()
            if ctx.get(dut.space):
                assert held <= config.queue_depth - QUEUE_MARGIN + 1
            if len(got[0]) == len(got[1]) == count:
                return
        raise AssertionError("tokens were lost")

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    for n in range(2):
        assert got[n] == [(token[0], token[1 + n]) for token in sent]
