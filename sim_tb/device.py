"""Everything that executes command words, behind one interface: golden model, cycle model, simulated netlist."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkValueError
from maskwork.sim_tb.cache import Cache
from maskwork.sim_tb.run import RunLimits, RunResult, TraceWindow, limits_for
from numpy.typing import ArrayLike

TARGETS = ("golden", "cycle", "rtl")
"""What :func:`open_device` opens by itself."""

TARGET_GROUP = "maskwork.targets"
"""Entry points of further targets, ``KIND:REST``."""

SIMULATORS = ("verilator", "icarus")
"""Simulators of target ``rtl``."""


@runtime_checkable
class Device(Protocol):
    """An accelerator of some kind. Its state lasts from one call to the next."""

    @property
    def config(self) -> Config:
        """The configuration that it was made from."""
        ...

    @property
    def last_run(self) -> RunResult | None:
        """Cycles and beats of the last :meth:`execute`; ``None`` where there are none to count."""
        ...

    def execute(self, words: ArrayLike, last: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Send whole packets and collect the replies.

        Args:
            words: uint32, ``(beats * stream_words,)``.
            last: bool, ``(beats,)``: the beat ends a packet.

        Returns:
            The replies in the same form; packets of results come in any order.

        Raises:
            MaskworkError: if the device does not answer as it should.
        """
        ...

    def close(self) -> None:
        """End it."""
        ...


class GoldenDevice:
    """The golden model. It counts no cycles, and answers results in order.

    Args:
        config: the accelerator's configuration.
    """

    def __init__(self, config: Config):
        from maskwork.sim_tb.golden.interpreter import Interpreter

        self.config = config
        self.last_run: RunResult | None = None
        self._interpreter = Interpreter(config)

    def execute(self, words: ArrayLike, last: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`Device.execute`."""
        packets = self._interpreter.execute(np.asarray(words).reshape(-1), np.asarray(last, dtype=bool))
        replies = np.concatenate([np.zeros(0, np.uint32), *packets]).astype(np.uint32)
        beats = np.array([len(packet) // self.config.stream_words for packet in packets], dtype=np.int64)
        reply_last = np.zeros(int(beats.sum()), dtype=bool)
        reply_last[np.cumsum(beats) - 1] = True
        return replies, reply_last

    def close(self) -> None:
        """Nothing is held."""


class RtlDevice:
    """The generated netlist in a simulator.

    Args:
        config: the accelerator's configuration.
        simulator: ``"verilator"`` or ``"icarus"``.
        verilog: simulate the Verilog-2005 netlist instead of the SystemVerilog one; by default that which suits the
            simulator: Icarus runs Verilog-2005 several times faster.
        in_stall: probability that a cycle brings no new command beat.
        out_stall: probability that a cycle takes no reply beat.
        seed: of both; every :meth:`execute` takes the next.
        trace: file for waveforms (VCD).
        trace_window: what they show; by default everything.
        limits: when a run is given up.
        cache: where built simulators are kept.

    Raises:
        MaskworkError: if the simulator is missing or cannot be built.
    """

    def __init__(
        self,
        config: Config,
        *,
        simulator: str = "verilator",
        verilog: bool | None = None,
        in_stall: float = 0.0,
        out_stall: float = 0.0,
        seed: int = 0,
        trace: str | os.PathLike[str] | None = None,
        trace_window: TraceWindow | None = None,
        limits: RunLimits | None = None,
        cache: Cache | None = None,
    ):
        from maskwork.sim_tb.icarus import IcarusModel
        from maskwork.sim_tb.run import cached_netlist
        from maskwork.sim_tb.verilator import VerilatedModel

        if simulator not in SIMULATORS:
            raise MaskworkValueError(f"unknown simulator {simulator!r}; simulators: {', '.join(SIMULATORS)}")
        self.config = config
        self.last_run: RunResult | None = None
        self._stalls = (in_stall, out_stall)
        self._seed = seed
        self._limits = limits or RunLimits()
        verilog = simulator == "icarus" if verilog is None else verilog
        text, name = cached_netlist(config, verilog=verilog, cache=cache)
        self.model: VerilatedModel | IcarusModel
        if simulator == "verilator":
            self.model = VerilatedModel(
                text, name, config.stream_words, trace=trace, trace_window=trace_window, cache=cache
            )
        else:
            self.model = IcarusModel(
                text, name, config.stream_words, verilog=verilog, trace=trace, trace_window=trace_window, cache=cache
            )

    def execute(self, words: ArrayLike, last: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`Device.execute`; cycles and beats are in ``last_run`` afterwards.

        Packets that end with SYNC or ABORT (and commands that are answered at once) take no longer than they must;
        after others the simulation runs on until nothing has moved for ``limits.idle_limit`` cycles.
        """
        limits = limits_for(words, last, self.config.stream_words, self._limits)
        in_stall, out_stall = self._stalls
        result = self.model.run(words, last, in_stall=in_stall, out_stall=out_stall, seed=self._seed, limits=limits)
        self._seed += 1
        self.last_run = result
        return result.words, result.last

    def reset(self) -> None:
        """Reset the accelerator, as its ``rst`` does."""
        self.model.reset()

    def close(self) -> None:
        """End the simulation."""
        self.model.close()


def target_names() -> tuple[str, ...]:
    """:data:`TARGETS`, and the kinds that other packages bring (``serial:PORT``)."""
    return (*TARGETS, *(f"{entry.name}:PORT" for entry in entry_points(group=TARGET_GROUP)))


def is_target(target: str) -> bool:
    """Whether :func:`open_device` knows this target, or its kind (what comes before the colon)."""
    kind, colon, _ = target.partition(":")
    return target in TARGETS or bool(colon and entry_points(group=TARGET_GROUP, name=kind))


@contextmanager
def open_device(target: str, config: Config, **options: Any) -> Iterator[Any]:
    """Open a target and close it afterwards.

    Args:
        target: one of :data:`TARGETS`, or ``KIND:REST`` with a kind that an entry point of group
            :data:`TARGET_GROUP` brings: a function of ``REST``, the configuration and the options.
        config: the accelerator's configuration.
        **options: of :class:`RtlDevice`, or of that function; other targets take none.

    Yields:
        A :class:`Device`.

    Raises:
        MaskworkValueError: for an unknown target, or options that it does not have; the message lists what there is.
        MaskworkError: if the device cannot be opened.
    """
    if not is_target(target):
        raise MaskworkValueError(f"unknown target {target!r}; targets: {', '.join(target_names())}")
    kind, colon, rest = target.partition(":")
    if options and target != "rtl" and not colon:
        raise MaskworkValueError(f"option {next(iter(options))} needs target 'rtl', not {target!r}")
    device: Device
    if colon:
        (entry, *_) = entry_points(group=TARGET_GROUP, name=kind)
        device = entry.load()(rest, config, **options)
    elif target == "golden":
        device = GoldenDevice(config)
    elif target == "cycle":
        from maskwork.sim_tb.cycle import CycleDevice

        device = CycleDevice(config)
    else:
        device = RtlDevice(config, **options)
    try:
        yield device
    finally:
        device.close()
