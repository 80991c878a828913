"""The generated netlist on Icarus Verilog: the same runs as :mod:`maskwork.sim_tb.verilator`, slowly."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import tempfile
import threading
from pathlib import Path

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkError
from maskwork.gen.isa import Reply
from maskwork.sim_tb.cache import Cache, content_key
from maskwork.sim_tb.run import (
    RunLimits,
    RunResult,
    SimulationError,
    Status,
    TraceWindow,
    beats_of,
    cached_netlist,
    check_trace,
    finish,
    stall_seeds,
    stall_threshold,
)
from maskwork.sim_tb.tools import find_icarus, run_tool
from numpy.typing import ArrayLike

_BENCH = Path(__file__).with_name("bench.v")


def build(text: str, name: str, stream_words: int, *, verilog: bool = False, cache: Cache | None = None) -> Path:
    """Compile a netlist and its bench, or find them in the cache.

    Args:
        text: SystemVerilog, or Verilog-2005.
        name: the top module's name.
        stream_words: 32-bit words of a beat.
        verilog: compile as Verilog-2005, nothing newer.
        cache: where built simulators are kept.

    Returns:
        Path of the file for ``vvp``.

    Raises:
        MaskworkError: if there is no Icarus Verilog, or it refuses the netlist.
    """
    icarus = find_icarus()
    bench = _BENCH.read_text(encoding="utf-8")
    generation = "-g2005" if verilog else "-g2012"
    command = [
        icarus.iverilog, generation, "-s", "maskwork_bench", f"-DTOP={name}", f"-DBEAT_BITS={32 * stream_words + 1}",
        f"-DERROR_KIND=8'h{int(Reply.ERROR):02x}", "-o", "model.vvp", "model.sv", "bench.v",
    ]  # fmt: skip

    def compile_model(folder: Path) -> None:
        (folder / "model.sv").write_text(text, encoding="utf-8")
        (folder / "bench.v").write_text(bench, encoding="utf-8")
        run_tool(command, folder)

    key = content_key("icarus", icarus.version, *command, bench, text)
    return (cache or Cache()).entry(key, compile_model) / "model.vvp"


class IcarusModel:
    """A running simulation; its state lasts from one :meth:`run` to the next.

    Args:
        netlist: a configuration, or the netlist's text.
        name: the top module's name; not needed with a configuration.
        stream_words: 32-bit words of a beat; not needed with a configuration.
        verilog: the netlist is, or is generated as, Verilog-2005.
        trace: file for waveforms (VCD).
        trace_window: what they show; by default everything.
        cache: where built simulators are kept.
        time_limit: seconds that one :meth:`run` may take.

    Raises:
        MaskworkError: if the simulator cannot be built.
    """

    def __init__(
        self,
        netlist: Config | str,
        name: str = "",
        stream_words: int = 1,
        *,
        verilog: bool = False,
        trace: str | os.PathLike[str] | None = None,
        trace_window: TraceWindow | None = None,
        cache: Cache | None = None,
        time_limit: float = 3600.0,
    ):
        if isinstance(netlist, Config):
            stream_words = netlist.stream_words
            netlist, name = cached_netlist(netlist, verilog=verilog, cache=cache)
        check_trace(trace)
        self.stream_words = stream_words
        self.time_limit = time_limit
        program = build(netlist, name, stream_words, verilog=verilog, cache=cache)
        self._folder = tempfile.TemporaryDirectory(prefix="maskwork-")
        self._process: subprocess.Popen[str] | None = None
        options = []
        if trace is not None:
            Path(self._folder.name, "trace.vcd").symlink_to(Path(trace).absolute())
            options.append("+trace")
            if trace_window is not None:
                options += [f"+{name}={value}" for name, value in dataclasses.asdict(trace_window).items()]
        self._process = subprocess.Popen(
            [find_icarus().vvp, "-n", str(program), *options], cwd=self._folder.name, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.reset()

    def reset(self, cycles: int = 2) -> None:
        """Hold ``rst`` for some cycles; both streams forget what was offered."""
        self._ask(f"0 {cycles}")

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
        """Send packets and collect the replies: see :meth:`maskwork.sim_tb.verilator.VerilatedModel.run`.

        Equal seeds give equal cycles on both simulators. In addition to what the other checks, X on ``i.ready``,
        ``o.valid`` or ``o.payload`` breaks the contract.
        """
        self._running()
        limits = limits or RunLimits()
        data, ends = beats_of(words, last, self.stream_words)
        folder = Path(self._folder.name)
        (folder / "in.hex").write_text(_to_hex(data, ends), encoding="ascii")
        in_seed, out_seed = stall_seeds(seed)
        values = (
            1, len(ends), limits.max_cycles, limits.idle_limit, limits.stuck_limit, limits.stop_count,
            stall_threshold(in_stall, "in_stall"), stall_threshold(out_stall, "out_stall"), in_seed, out_seed,
        )  # fmt: skip
        bitmaps = (f"{sum(1 << bit for bit in bits):x}" for bits in (limits.stop_kinds, limits.stop_opcodes))
        answer = self._ask(" ".join([*map(str, values), *bitmaps]))
        numbers, _, message = answer.partition(":")
        status, first_in, last_out, beats_in, beats_out, in_waits, out_waits = map(int, numbers.split())
        replies, reply_ends = _from_hex(folder / "out.hex", self.stream_words)
        result = RunResult(
            words=replies, last=reply_ends, cycles=last_out - first_in + 1 if beats_in and beats_out else 0,
            beats_in=beats_in, beats_out=beats_out, in_waits=in_waits, out_waits=out_waits,
        )  # fmt: skip
        return finish(Status(status), message.strip(), result, len(ends), limits)

    def _ask(self, command: str) -> str:
        """Send a command to the bench and return its answer, without the keyword that marks it."""
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(self.time_limit, expire)
        timer.start()
        other: list[str] = []
        try:
            process.stdin.write(command + "\n")
            process.stdin.flush()
            for line in process.stdout:
                if line.startswith("maskwork "):
                    return line[len("maskwork ") :].strip()
                other.append(line.strip())
        except BrokenPipeError:
            pass
        finally:
            timer.cancel()
        reason = (
            f"no answer in {self.time_limit} seconds" if expired.is_set() else next(filter(None, other), "it ended")
        )
        self.close()
        nothing = RunResult(np.zeros(0, np.uint32), np.zeros(0, bool), 0, 0, 0, 0, 0)
        raise SimulationError(f"the simulation stopped: {reason}", nothing)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise MaskworkError("the simulation was closed")
        return self._process

    def close(self) -> None:
        """End the simulation."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # the bench ends at the end of its input
            process.stdout.read()
            process.stdout.close()
            process.wait()
        self._folder.cleanup()

    def __enter__(self) -> IcarusModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None:
            self.close()


def _to_hex(data: np.ndarray, ends: np.ndarray) -> str:
    """One beat a line, most significant word first, ``last`` before it."""
    beats = np.empty((len(ends), 1 + 4 * data.shape[1]), np.uint8)
    beats[:, 0] = ends
    beats[:, 1:] = data[:, ::-1].astype(">u4").view(np.uint8).reshape(len(ends), 4 * data.shape[1])
    text = beats.tobytes().hex()
    step = 2 * beats.shape[1]
    return "\n".join(text[start : start + step] for start in range(0, len(text), step)) + "\n"


def _from_hex(path: Path, stream_words: int) -> tuple[np.ndarray, np.ndarray]:
    digits = 8 * stream_words + 1  # a line has 32 * stream_words + 1 bits
    lines = path.read_text(encoding="ascii").split()
    text = "".join(line.replace("x", "0").replace("z", "0").zfill(digits + 1) for line in lines)
    beats = np.frombuffer(bytes.fromhex(text), np.uint8).reshape(-1, 1 + 4 * stream_words)
    words = beats[:, 1:].copy().view(">u4").astype(np.uint32)[:, ::-1]
    return np.ascontiguousarray(words).reshape(-1), beats[:, 0] != 0
