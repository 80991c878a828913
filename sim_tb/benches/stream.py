"""Valid/ready streams in cocotb: a source and a sink that pause at random, and a checker of the stream contract.

Everything here drives at the falling edge of ``clk`` and samples when all signals have settled afterwards: what is
sampled is what the next rising edge sees, in every simulator. Contract: once ``valid``, a stream keeps ``valid`` and
its payload until the transfer; neither is ever undefined.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable
from typing import Any

import cocotb
from amaranth.hdl import Const, Value
from amaranth.lib import data
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, ReadOnly, RisingEdge
from maskwork.gen.config import Config

PARAMETERS = "MASKWORK_BENCH"
"""Environment variable that holds a bench's parameters (JSON)."""


class ContractError(AssertionError):
    """A stream took back, changed or left undefined what it had offered."""


def parameters() -> dict[str, Any]:
    """What the runner gave the bench."""
    return json.loads(os.environ.get(PARAMETERS, "{}"))


def configuration() -> Config:
    """The configuration that the bench's netlist was made from."""
    return Config.from_dict(parameters()["config"])


def share_of(count: int) -> int:
    """``count`` rows or so, or the share of them that the parameter ``share`` says: at least 1."""
    return max(1, round(count * parameters().get("share", 1.0)))


def packed(layout: data.Layout, **fields: Any) -> int:
    """Bits of a structure; fields that are not named are 0. Negative numbers wrap to their field."""
    result = 0
    for name, value in fields.items():
        part = layout[name]
        bits = value if isinstance(value, int) else Const.cast(Value.cast(value)).value
        result |= (bits & ((1 << part.width) - 1)) << part.offset
    return result


def unpacked(layout: data.Layout, bits: int) -> dict[str, int]:
    """Fields of a structure, as plain (where the field is signed, negative) integers."""
    fields = {}
    for name, part in layout:
        value = bits >> part.offset & ((1 << part.width) - 1)
        if getattr(part.shape, "signed", False) and value >> (part.width - 1):
            value -= 1 << part.width
        fields[str(name)] = value
    return fields


async def start(dut: Any, **inputs: int) -> None:
    """Start the clock (10 ns), set the inputs named, and reset. Returns after a falling edge."""
    cocotb.start_soon(Clock(dut.clk, 10, unit="ns").start())
    for name, value in inputs.items():
        getattr(dut, name).value = value
    dut.rst.value = 1
    for _ in range(3):
        await FallingEdge(dut.clk)
    dut.rst.value = 0


class Port:
    """Handles of a stream's signals: ``NAME__payload``, ``NAME__valid`` and ``NAME__ready`` of a component."""

    def __init__(self, dut: Any, name: str) -> None:
        self.name = name
        self.clk = dut.clk
        parts = ("payload", "valid", "ready")
        self.payload, self.valid, self.ready = (getattr(dut, f"{name}__{part}") for part in parts)


class Source:
    """Sends payloads in order; before each it pauses with probability ``idle``, cycle by cycle.

    Args:
        port: the component's input stream.
        payloads: integers.
        idle: probability of a pause.
        seed: of the random numbers.
    """

    def __init__(self, port: Port, payloads: Iterable[int], idle: float = 0.0, seed: Any = 0) -> None:
        self.port, self.idle = port, idle
        self._payloads = iter(payloads)
        self._random = random.Random(f"source {seed}")
        port.valid.value = 0
        port.payload.value = 0

    async def run(self) -> None:
        """Send them all; returns when the last was taken."""
        port = self.port
        for payload in self._payloads:
            await FallingEdge(port.clk)
            while self._random.random() < self.idle:
                port.valid.value = 0
                await FallingEdge(port.clk)
            port.valid.value = 1
            port.payload.value = payload
            await ReadOnly()
            while not port.ready.value:
                await FallingEdge(port.clk)
                await ReadOnly()
            await RisingEdge(port.clk)
        await FallingEdge(port.clk)
        port.valid.value = 0


class Sink:
    """Takes payloads; ``ready`` is low with probability ``stall`` in every cycle.

    Args:
        port: the component's output stream.
        stall: probability of back-pressure.
        seed: of the random numbers.

    Members:
        got: payloads taken so far, integers.
    """

    def __init__(self, port: Port, stall: float = 0.0, seed: Any = 0) -> None:
        self.port, self.stall = port, stall
        self.got: list[int] = []
        self._random = random.Random(f"sink {seed}")
        port.ready.value = 0

    async def run(self) -> None:
        """Take payloads for ever."""
        port = self.port
        while True:
            await FallingEdge(port.clk)
            ready = self._random.random() >= self.stall
            port.ready.value = int(ready)
            await ReadOnly()
            if ready and port.valid.value:
                self.got.append(int(port.payload.value))


async def check_contract(port: Port) -> None:
    """Watch a stream for ever.

    Raises:
        ContractError: naming the stream and what it did.
    """
    offered: int | None = None
    while True:
        await FallingEdge(port.clk)
        await ReadOnly()
        if not (port.valid.value.is_resolvable and port.ready.value.is_resolvable):
            raise ContractError(f"{port.name}: valid or ready is undefined")
        if not port.valid.value:
            if offered is not None:
                raise ContractError(f"{port.name}: valid fell before the transfer of {offered:#x}")
            continue
        if not port.payload.value.is_resolvable:
            raise ContractError(f"{port.name}: the payload is undefined: {port.payload.value}")
        payload = int(port.payload.value)
        if offered is not None and payload != offered:
            change = f"from {offered:#x} to {payload:#x}"
            raise ContractError(f"{port.name}: the payload changed {change} before the transfer")
        offered = None if port.ready.value else payload
