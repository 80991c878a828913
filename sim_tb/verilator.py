"""The generated netlist as a shared library made by Verilator."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkError
from maskwork.gen.isa import Reply
from maskwork.sim_tb.cache import Cache, content_key
from maskwork.sim_tb.run import (
    RunLimits,
    RunResult,
    Status,
    TraceWindow,
    beats_of,
    cached_netlist,
    check_trace,
    finish,
    stall_seeds,
    stall_threshold,
)
from maskwork.sim_tb.tools import Verilator, find_verilator, run_tool
from numpy.typing import ArrayLike

_HARNESS = Path(__file__).with_name("harness.cpp")
_VERILATE = (
    "--cc", "-O3", "--x-assign", "fast", "--x-initial", "fast", "--assert", "-Wno-fatal", "-Wno-lint", "-Wno-style",
    "--no-timing", "--output-split", "100000", "--output-split-cfuncs", "2000", "--prefix", "Vmodel", "--top-module",
)  # fmt: skip
# -fno-gnu-unique and -Bsymbolic: several models in one process must not share each other's symbols
_COMPILE = (
    "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-w", "-DVERILATOR=1", "-DVM_COVERAGE=0",
    "-DVM_SC=0", "-DVM_TIMING=0", "-DVM_TRACE_FST=0", "-DVM_TRACE_SAIF=0", "-DVL_TIME_CONTEXT", "-DVL_USER_FINISH",
    "-DVL_USER_STOP", "-DVL_USER_FATAL",
)  # fmt: skip
# -O2 makes models 5 % faster and takes half as long again to compile
_HOT = "-O1"
_COLD = "-O0"
_LINK = ("-shared", "-Wl,-Bsymbolic", "-Wl,--exclude-libs,ALL", "-pthread")
_JOBS = 2
_CHUNK = 2_000_000
"""Cycles between two looks at the keyboard."""


class _Options(ctypes.Structure):
    _fields_ = [
        ("idle_limit", ctypes.c_uint64),
        ("stuck_limit", ctypes.c_uint64),
        ("stop_count", ctypes.c_uint64),
        ("in_threshold", ctypes.c_uint32),
        ("out_threshold", ctypes.c_uint32),
        ("in_seed", ctypes.c_uint32),
        ("out_seed", ctypes.c_uint32),
        ("stop_kinds", ctypes.c_uint8 * 32),
        ("stop_opcodes", ctypes.c_uint8 * 32),
    ]


class _Stats(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in ("cycle", "first_in", "last_out", "beats_in", "beats_out", "in_waits", "out_waits")
    ]


class _Window(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("first_in", "last_out", "after")]


def build(
    text: str,
    name: str,
    stream_words: int,
    *,
    trace: bool = False,
    cache: Cache | None = None,
    harness: Path = _HARNESS,
) -> Path:
    """Build the shared library of a netlist, or find it in the cache.

    Args:
        text: SystemVerilog or Verilog-2005; the top module has ports ``clk``, ``rst`` and those that the harness
            drives: the two streams, with the accelerator's own harness.
        name: the top module's name.
        stream_words: 32-bit words of a beat.
        trace: able to write waveforms (slower).
        cache: where built libraries are kept.
        harness: C++ source that drives the model, ``Vmodel``.

    Returns:
        Path of the library.

    Raises:
        MaskworkError: if there is no Verilator or C++ compiler, or one of them fails.
    """
    verilator = find_verilator()
    cache = cache or Cache()
    flags = (*_COMPILE, f"-DVM_TRACE={int(trace)}", f"-DVM_TRACE_VCD={int(trace)}", *(("-DMW_TRACE",) if trace else ()))
    tools = (verilator.version, verilator.compiler, str(verilator.root))
    driver = harness.read_bytes()
    key = content_key(
        "verilator 3", *tools, *_VERILATE, *flags, _HOT, _COLD, *_LINK, str(stream_words), name, driver, text
    )

    runtime_key = content_key("verilated 2", *tools, *flags)
    runtime = cache.entry(runtime_key, lambda folder: _build_runtime(folder, verilator, flags, trace))

    def build_model(folder: Path) -> None:
        _build_model(folder, verilator, flags, runtime, text, name, stream_words, trace, harness)

    return cache.entry(key, build_model) / "model.so"


def _build_runtime(folder: Path, verilator: Verilator, flags: tuple[str, ...], trace: bool) -> None:
    """Compile Verilator's own library, and its headers: the same for every model, so it is an entry of its own."""
    names = ["verilated", "verilated_threads", *(["verilated_vcd_c"] if trace else [])]
    commands = [
        [verilator.compiler, *flags, _HOT, *_includes(verilator), "-c",
         str(verilator.root / "include" / f"{name}.cpp"), "-o", f"{name}.o"]
        for name in names
    ]  # fmt: skip
    for level in (_HOT, _COLD):
        header = _headers(folder, level)
        header.parent.mkdir()
        header.write_text('#include "verilated.h"\n', encoding="utf-8")
        commands.append([verilator.compiler, *flags, level, *_includes(verilator), "-x", "c++-header", str(header),
                         "-o", f"{header}.gch"])  # fmt: skip
    _run_all(commands, folder)


def _headers(runtime: Path, level: str) -> Path:
    """A header that stands for Verilator's, with what the compiler made of it beside it."""
    return runtime / f"headers{level}" / "headers.h"


def _build_model(
    folder: Path,
    verilator: Verilator,
    flags: tuple[str, ...],
    runtime: Path,
    text: str,
    name: str,
    stream_words: int,
    trace: bool,
    harness: Path,
) -> None:
    (folder / "model.sv").write_text(text, encoding="utf-8")
    work = folder / "work"
    options = [*_VERILATE, name, *(["--trace-vcd"] if trace else [])]
    run_tool([verilator.command, *options, "--Mdir", "work", "model.sv"], folder, verilator.environment)
    shutil.copy(harness, work / "harness.cpp")
    units = _units(work)
    commands = [
        [verilator.compiler, *flags, f"-DMW_STREAM_WORDS={stream_words}", f"-DMW_ERROR={int(Reply.ERROR)}", level,
         "-include", str(_headers(runtime, level)), "-I.", *_includes(verilator), "-c", f"{unit}.cpp",
         "-o", f"{unit}.o"]
        for unit, level in units.items()
    ]  # fmt: skip
    _run_all(commands, work)
    objects = [*(f"{unit}.o" for unit in units), *map(str, sorted(runtime.glob("*.o")))]
    run_tool([verilator.compiler, *_LINK, *objects, "-o", "../model.so"], work)
    shutil.rmtree(work)


def _units(work: Path) -> dict[str, str]:
    """Put Verilator's sources into a few files, for its headers take longer to read than most of them.

    Returns:
        Names of those files, without suffix, and how far to optimise each.
    """
    sources = sorted(work.glob("*.cpp"), key=lambda path: -path.stat().st_size)
    units: dict[str, list[Path]] = {"cold": [path for path in sources if "__Slow" in path.name]}
    hot: list[list[Path]] = [[] for _ in range(_JOBS)]
    for path in sources:
        if "__Slow" not in path.name:
            min(hot, key=lambda unit: sum(own.stat().st_size for own in unit)).append(path)
    units |= {f"hot{n}": unit for n, unit in enumerate(hot) if unit}
    for name, own in units.items():
        (work / f"{name}.cpp").write_text("".join(f'#include "{path.name}"\n' for path in own), encoding="utf-8")
    return {name: _COLD if name == "cold" else _HOT for name in units}


def _includes(verilator: Verilator) -> list[str]:
    include = verilator.root / "include"
    return [f"-I{include}", f"-I{include / 'vltstd'}"]


def _run_all(commands: list[list[str]], folder: Path) -> None:
    with ThreadPoolExecutor(_JOBS) as pool:
        list(pool.map(lambda command: run_tool(command, folder), commands))


class VerilatedModel:
    """A running simulation; its state lasts from one :meth:`run` to the next.

    Args:
        netlist: a configuration, or the netlist's text.
        name: the top module's name; not needed with a configuration.
        stream_words: 32-bit words of a beat; not needed with a configuration.
        trace: file for waveforms (VCD).
        trace_window: what they show; by default everything.
        cache: where built simulators are kept.

    Raises:
        MaskworkError: if the simulator cannot be built.
    """

    def __init__(
        self,
        netlist: Config | str,
        name: str = "",
        stream_words: int = 1,
        *,
        trace: str | os.PathLike[str] | None = None,
        trace_window: TraceWindow | None = None,
        cache: Cache | None = None,
    ):
        if isinstance(netlist, Config):
            stream_words = netlist.stream_words
            netlist, name = cached_netlist(netlist, cache=cache)
        self._handle: int | None = None
        check_trace(trace)
        self.stream_words = stream_words
        library = build(netlist, name, stream_words, trace=trace is not None, cache=cache)
        self._library = _load(library)
        shown = None
        if trace_window is not None:
            shown = _Window(trace_window.first_in, trace_window.last_out, trace_window.after)
        self._handle = self._library.mw_create(
            os.fsencode(trace) if trace is not None else None, None if shown is None else ctypes.byref(shown)
        )
        if not self._handle:
            raise MaskworkError(f"{library}: the simulator did not start")
        self.reset()

    def reset(self, cycles: int = 2) -> None:
        """Hold ``rst`` for some cycles; both streams forget what was offered."""
        self._library.mw_reset(self._open(), cycles)

    def run(
        self,
        words: ArrayLike,
        last: ArrayLike,
        *,
        in_stall: float = 0.0,
        out_stall: float = 0.0,
        seed: int = 0,
        limits: RunLimits | None = None,
    ) -> RunResult:
        """Send packets and collect the replies.

        Args:
            words: uint32, ``(beats * stream_words,)`` or ``(beats, stream_words)``.
            last: bool, ``(beats,)``: the beat ends a packet.
            in_stall: probability that a cycle brings no new beat.
            out_stall: probability that ``o.ready`` is low in a cycle.
            seed: of both.
            limits: when the run ends.

        Returns:
            The replies and the cycles they took.

        Raises:
            SimulationError: a subclass says what: time-out, a stuck stream, a broken stream contract.
        """
        handle = self._open()
        limits = limits or RunLimits()
        data, ends = beats_of(words, last, self.stream_words)
        in_seed, out_seed = stall_seeds(seed)
        options = _Options(
            limits.idle_limit, limits.stuck_limit, limits.stop_count, stall_threshold(in_stall, "in_stall"),
            stall_threshold(out_stall, "out_stall"), in_seed, out_seed, _bitmap(limits.stop_kinds),
            _bitmap(limits.stop_opcodes),
        )  # fmt: skip
        self._library.mw_start(handle, data.ctypes.data, ends.ctypes.data, len(ends), ctypes.byref(options))
        status, pieces = self._collect(handle, limits.max_cycles)
        stats = _Stats()
        self._library.mw_stats(handle, ctypes.byref(stats))
        message = self._library.mw_message(handle).decode(errors="replace")
        replies = np.concatenate([piece for piece, _ in pieces]).reshape(-1)
        reply_ends = np.concatenate([piece for _, piece in pieces]).astype(bool)
        cycles = stats.last_out - stats.first_in + 1 if stats.beats_out and stats.beats_in else 0
        result = RunResult(
            words=replies, last=reply_ends, cycles=cycles, beats_in=stats.beats_in, beats_out=stats.beats_out,
            in_waits=stats.in_waits, out_waits=stats.out_waits,
        )  # fmt: skip
        return finish(status, message, result, len(ends), limits)

    def _collect(self, handle: int, max_cycles: int) -> tuple[Status, list[tuple[np.ndarray, np.ndarray]]]:
        pieces: list[tuple[np.ndarray, np.ndarray]] = []
        capacity = 1 << 14
        written = ctypes.c_uint64()
        stats = _Stats()
        self._library.mw_stats(handle, ctypes.byref(stats))
        end = stats.cycle + max_cycles
        while True:
            buffer = np.empty((capacity, self.stream_words), np.uint32)
            ends = np.empty(capacity, np.uint8)
            status = Status.BUDGET
            used = 0
            while status is Status.BUDGET and stats.cycle < end:
                status = Status(
                    self._library.mw_run(
                        handle, buffer[used:].ctypes.data, ends[used:].ctypes.data, capacity - used,
                        ctypes.byref(written), min(_CHUNK, end - stats.cycle),
                    )
                )  # fmt: skip
                used += written.value
                self._library.mw_stats(handle, ctypes.byref(stats))
            pieces.append((buffer[:used], ends[:used]))
            if status is not Status.OUTPUT_FULL:
                return status, pieces
            capacity = min(2 * capacity, 1 << 20)

    def close(self) -> None:
        """End the simulation (and write the rest of the waveforms)."""
        if getattr(self, "_handle", None):
            self._library.mw_destroy(self._handle)
            self._handle = None

    def _open(self) -> int:
        if not self._handle:
            raise MaskworkError("the simulation was closed")
        return self._handle

    def __enter__(self) -> VerilatedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _bitmap(bits: Iterable[int]) -> ctypes.Array[ctypes.c_uint8]:
    return (ctypes.c_uint8 * 32)(*sum(1 << bit for bit in bits).to_bytes(32, "little"))


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    pointer, integer, wide = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64
    for name, result, arguments in (
        ("mw_create", pointer, [ctypes.c_char_p, pointer]),
        ("mw_destroy", None, [pointer]),
        ("mw_reset", integer, [pointer, integer]),
        ("mw_start", None, [pointer, pointer, pointer, wide, pointer]),
        ("mw_run", integer, [pointer, pointer, pointer, wide, pointer, wide]),
        ("mw_stats", None, [pointer, pointer]),
        ("mw_message", ctypes.c_char_p, [pointer]),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library
