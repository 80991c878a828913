"""Helpers of simulator benches: the stream contract, and sources and sinks that pause at random.

Contract: once ``valid``, a stream keeps ``valid`` and its payload until the transfer.
"""

import random
from collections.abc import Callable, Iterable
from typing import Any

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.sim import Simulator

CYCLES = 20_000
"""Limit of a simulation, unless it gives its own."""


class ContractError(AssertionError):
    """A stream took back, or changed, what it had offered."""


async def ticks(ctx, cycles: int):
    """Waits so many cycles (``ctx.tick().repeat()`` complains when another process ends the run meanwhile)."""
    for _ in range(cycles):
        await ctx.tick()


async def watch(ctx, stream, name: str = "stream"):
    """Background process: raises ContractError if the stream breaks its contract. Any stream port, either side."""
    offered = None
    payload = Value.cast(stream.payload)
    while True:
        _, _, valid, ready, bits = await ctx.tick().sample(stream.valid, stream.ready, payload)
        if offered is not None and not valid:
            raise ContractError(f"{name}: valid fell before the transfer of {offered:#x}")
        if offered is not None and bits != offered:
            raise ContractError(f"{name}: the payload changed from {offered:#x} to {bits:#x} before the transfer")
        offered = bits if valid and not ready else None


def source(stream, items: Iterable[Any], *, idle: float = 0.0, seed: int = 0, sent: list[int] | None = None):
    """A process that sends the items in order; before each it pauses with probability ``idle``, cycle by cycle.

    ``sent`` gets the cycle of each transfer, counted from the process's start.
    """
    rng = random.Random(seed)

    async def process(ctx):
        cycle = 0
        for item in items:
            while rng.random() < idle:
                await ctx.tick()
                cycle += 1
            ctx.set(stream.payload, item)
            ctx.set(stream.valid, 1)
            ready = False
            while not ready:
                _, _, ready = await ctx.tick().sample(stream.ready)
                cycle += 1
            if sent is not None:
                sent.append(cycle - 1)
            ctx.set(stream.valid, 0)

    return process


def sink(stream, count: int, got: list[Any], *, stall: float = 0.0, seed: int = 0, cycles: list[int] | None = None):
    """A process that takes ``count`` items; ``ready`` is low with probability ``stall`` in every cycle.

    ``got`` gets plain values (integers, dicts of structs, lists of arrays), ``cycles`` the cycle of each transfer.
    """
    rng = random.Random(seed)

    async def process(ctx):
        cycle = 0
        while len(got) < count:
            ctx.set(stream.ready, rng.random() >= stall)
            _, _, valid, ready, payload = await ctx.tick().sample(stream.valid, stream.ready, stream.payload)
            if valid and ready:
                got.append(plain(payload))
                if cycles is not None:
                    cycles.append(cycle)
            cycle += 1
        ctx.set(stream.ready, 0)

    return process


def plain(value: Any) -> Any:
    """A sampled value as integers, dicts and lists."""
    if isinstance(value, data.Const):
        layout = value.shape()
        if isinstance(layout, data.StructLayout):
            return {name: plain(value[name]) for name in layout.members}
        if isinstance(layout, data.ArrayLayout):
            return [plain(value[n]) for n in range(layout.length)]
    return value


def streams(component: wiring.Component) -> dict[str, Any]:
    """The component's stream ports, by name."""
    found = {}
    for name, member in component.signature.members.items():
        if member.is_signature and {"payload", "valid", "ready"} <= set(member.signature.members):
            found[name] = getattr(component, name)
    return found


def simulate(
    dut, *processes: Callable, watched: bool = True, cycles: int = CYCLES, background: Iterable[Callable] = ()
):
    """Runs the processes until all have ended, or one raised; all streams of the component are watched.

    Raises:
        TimeoutError: if they have not ended after so many cycles.
        Exception: what a process raised. (It never passes through the simulator, which would leave the other
            processes half way, to be complained about by the garbage collector.)
    """
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    raised: list[BaseException] = []

    def add(process: Callable, is_background: bool):
        async def guarded(ctx):
            try:
                await process(ctx)
            except Exception as error:
                raised.append(error)

        simulator.add_testbench(guarded, background=is_background)

    for process in processes:
        add(process, False)
    for process in background:
        add(process, True)
    if watched:
        for name, stream in streams(dut).items():
            add(lambda ctx, s=stream, n=name: watch(ctx, s, f"{type(dut).__name__}.{n}"), True)
    steps = 0
    while simulator.advance() and not raised:
        steps += 1
        if steps > 2 * cycles:
            raised.append(TimeoutError(f"the bench did not end within {cycles} cycles"))
    if raised:
        raise raised[0]
