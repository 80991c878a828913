"""A component that passes a stream on (skid buffer, queue): everything in order, and the stream contract."""

from __future__ import annotations

import random
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles
from maskwork.sim_tb.benches.stream import Port, Sink, Source, check_contract, parameters, start


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def random_pauses(dut: Any) -> None:
    """Payloads through pauses of either side."""
    chance = random.Random(f"pauses {cocotb.RANDOM_SEED}")
    await start(dut, i__valid=0, i__payload=0, o__ready=0)
    sink = Sink(Port(dut, "o"), seed=chance.random())
    cocotb.start_soon(sink.run())
    for name in "io":
        cocotb.start_soon(check_contract(Port(dut, name)))
    width = len(dut.i__payload)
    for idle in (0.0, 0.3, 0.8):
        for sink.stall in (0.0, 0.3, 0.8):
            payloads = [chance.getrandbits(width) for _ in range(100)]
            sink.got.clear()
            await Source(Port(dut, "i"), payloads, idle, chance.random()).run()
            await ClockCycles(dut.clk, 200)
            assert sink.got == payloads


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def pace(dut: Any) -> None:
    """Without pauses one payload comes out in every cycle, after the latency."""
    await start(dut, i__valid=0, i__payload=0, o__ready=0)
    sink = Sink(Port(dut, "o"))
    cocotb.start_soon(sink.run())
    payloads = list(range(1, 51))
    cocotb.start_soon(Source(Port(dut, "i"), payloads).run())
    # a cycle until the source begins, then one for each payload
    await ClockCycles(dut.clk, 1 + len(payloads) + parameters()["latency"])
    assert sink.got == payloads


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def fills_up(dut: Any) -> None:
    """It takes as many payloads as it holds, not one more, and keeps them."""
    await start(dut, i__valid=0, i__payload=0, o__ready=0)
    payloads = list(range(1, 2 * parameters()["holds"] + 2))
    cocotb.start_soon(check_contract(Port(dut, "o")))
    cocotb.start_soon(Source(Port(dut, "i"), payloads).run())
    await ClockCycles(dut.clk, 3 * len(payloads))
    assert not dut.i__ready.value
    assert int(dut.i__payload.value) == payloads[parameters()["holds"]]
    sink = Sink(Port(dut, "o"))
    cocotb.start_soon(sink.run())
    await ClockCycles(dut.clk, 3 * len(payloads))
    assert sink.got == payloads
