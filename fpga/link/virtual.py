"""A virtual board: the complete design with its UART, simulated by Verilator, behind a pseudo-terminal."""

from __future__ import annotations

import ctypes
import os
import select
import threading
import time
from pathlib import Path
from typing import Protocol

import maskwork.fpga
from maskwork.fpga.link.board_model import BoardModel
from maskwork.fpga.link.faults import FaultRates, FaultyLine
from maskwork.gen.config import Config
from maskwork.gen.errors import DeviceError, MaskworkError, MaskworkValueError
from maskwork.sim_tb.cache import Cache, content_key

BAUD = 3_000_000
"""Of a virtual board, in its own time; its clock follows from the cycles of a bit."""

MIN_BAUD_CYCLES = 4

_SOFTWARE = frozenset({"board_model", "driver", "faults", "find", "frames", "host", "line", "port", "virtual"})
"""Files beside this one that no hardware is made by."""

_HARNESS = Path(__file__).with_name("virtual.cpp")
_LINGER = 1.0
"""Seconds for which simulation goes on after the last byte: the accelerator may still be at work."""


class Engine(Protocol):
    """Whatever answers bytes with bytes."""

    linger: float
    """Seconds for which it wants to run on after the last byte."""

    def step(self, data: bytes) -> tuple[int, bytes]:
        """Run a little.

        Returns:
            How many of the bytes offered were taken, and what was sent.
        """
        ...

    def close(self) -> None:
        """End it."""
        ...


class ModelEngine:
    """A :class:`~maskwork.fpga.link.board_model.BoardModel` as engine."""

    linger = 0.0

    def __init__(self, board: BoardModel):
        self.board = board

    def step(self, data: bytes) -> tuple[int, bytes]:
        """See :meth:`Engine.step`."""
        return len(data), self.board.receive(data)

    def close(self) -> None:
        """Nothing is held."""


class RtlEngine:
    """The design of a board on Verilator.

    Args:
        config: the accelerator's configuration.
        baud_cycles: clock cycles of a bit.
        cache: where netlists and built simulators are kept.

    Members:
        config: the configuration.

    Raises:
        MaskworkValueError: for too few cycles of a bit.
        MaskworkError: if the simulator cannot be built.
    """

    linger = _LINGER

    def __init__(self, config: Config, baud_cycles: int = MIN_BAUD_CYCLES, cache: Cache | None = None):
        from maskwork.sim_tb.verilator import build

        self._handle: int | None = None
        if baud_cycles < MIN_BAUD_CYCLES:
            raise MaskworkValueError(f"baud_cycles must be {MIN_BAUD_CYCLES} or more, not {baud_cycles}")
        self.config = config
        text, name = system_netlist(config, baud_cycles, cache)
        self._library = _load(build(text, name, 1, cache=cache, harness=_HARNESS))
        self._handle = self._library.mw_board_create(baud_cycles)
        if not self._handle:
            raise MaskworkError("the virtual board did not start")
        self._cycles = 500 * baud_cycles  # as long as 50 bytes
        self._buffer = ctypes.create_string_buffer(self._cycles // (9 * baud_cycles) + 2)

    @property
    def cycles(self) -> int:
        """Cycles simulated so far."""
        return self._library.mw_board_cycles(self._handle) if self._handle else 0

    def step(self, data: bytes) -> tuple[int, bytes]:
        """See :meth:`Engine.step`.

        Raises:
            DeviceError: if an assertion in the design failed.
        """
        used, written = ctypes.c_uint64(), ctypes.c_uint64()
        if not self._library.mw_board_run(
            self._handle, data, len(data), ctypes.byref(used), self._buffer, ctypes.byref(written), self._cycles
        ):
            message = self._library.mw_board_message(self._handle).decode(errors="replace")
            raise DeviceError(f"the virtual board's simulation stopped: {message}")
        return used.value, self._buffer.raw[: written.value]

    def close(self) -> None:
        """End the simulation."""
        if self._handle:
            self._library.mw_board_destroy(self._handle)
            self._handle = None


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    pointer, wide = ctypes.c_void_p, ctypes.c_uint64
    for name, result, arguments in (
        ("mw_board_create", pointer, [ctypes.c_int]),
        ("mw_board_destroy", None, [pointer]),
        ("mw_board_run", ctypes.c_int, [pointer, ctypes.c_char_p, wide, pointer, pointer, pointer, wide]),
        ("mw_board_cycles", wide, [pointer]),
        ("mw_board_message", ctypes.c_char_p, [pointer]),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


def system_netlist(config: Config, baud_cycles: int, cache: Cache | None = None) -> tuple[str, str]:
    """The netlist of a virtual board, generated only when it is not known yet.

    Returns:
        Text and top module's name.
    """
    from maskwork.gen.generate import emit
    from maskwork.sim_tb.run import _hardware_key

    name = "virtual_board"
    folder = Path(str(maskwork.fpga.__file__)).parent
    hardware = sorted(path for path in (folder / "link").glob("*.py") if path.stem not in _SOFTWARE)
    key = content_key(
        "virtual", _hardware_key(), str(sorted(config.to_dict().items())), str(baud_cycles),
        *(path.read_bytes() for path in [folder / "system.py", *hardware]),
    )  # fmt: skip

    def build(into: Path) -> None:
        from maskwork.fpga.system import System

        text, _ = emit(System(config, BAUD * baud_cycles, BAUD, "virtual"), name)
        (into / "netlist").write_text(text, encoding="utf-8")

    return ((cache or Cache()).entry(key, build) / "netlist").read_text(encoding="utf-8"), name


class PtyBoard:
    """A board behind a pseudo-terminal, served by a thread: ``with PtyBoard(engine) as port: ...``.

    Args:
        engine: what answers.
        faults: rates of faults in both directions.
        seed: of the faults.

    Members:
        port: the device file's name.
        to_board, from_board: the two directions, with their counts of faults.
    """

    def __init__(self, engine: Engine, faults: FaultRates | None = None, seed: int = 0):
        import tty

        self._engine = engine
        rates = faults or FaultRates()
        self.to_board, self.from_board = FaultyLine(rates, 2 * seed), FaultyLine(rates, 2 * seed + 1)
        self._master, self._slave = os.openpty()  # the slave stays open: hosts come and go
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.port = os.ttyname(self._slave)
        self._wake, self._awaken = os.pipe()
        self._thread = threading.Thread(target=self._run, name="maskwork-board", daemon=True)
        self._ending = False
        self._error: BaseException | None = None

    def __enter__(self) -> str:
        self._thread.start()
        return self.port

    def __exit__(self, kind: object, *_: object) -> None:
        self.close()
        if self._error is not None and kind is None:
            raise self._error

    @property
    def running(self) -> bool:
        """Whether it still answers."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End it: to the host it looks as if the board was unplugged."""
        if not self._ending:
            self._ending = True
            os.write(self._awaken, b"x")
            if self._thread.is_alive():
                self._thread.join()
            os.close(self._wake)
            os.close(self._awaken)
            self._hang_up()
            self._engine.close()

    def _hang_up(self) -> None:
        for file in (self._master, self._slave):
            if file >= 0:
                os.close(file)
        self._master = self._slave = -1

    def _run(self) -> None:
        try:
            self._serve()
        except MaskworkError as error:
            self._error = error
            self._hang_up()

    def _serve(self) -> None:
        coming, going = b"", b""
        last = 0.0
        while not self._ending:
            lively = coming or (not going and time.monotonic() - last < self._engine.linger)
            writers = [self._master] if going else []
            readers = [self._wake, *([self._master] if len(coming) < 4096 else [])]
            readable, writable, _ = select.select(readers, writers, [], 0 if lively and not going else None)
            if self._master in readable:
                coming += self.to_board(os.read(self._master, 4096))
                last = time.monotonic()
            if writable:
                going = going[os.write(self._master, going) :]
            # a host that reads slowly makes the board wait: the line itself loses nothing but by faults
            if not going and (coming or time.monotonic() - last < self._engine.linger):
                used, sent = self._engine.step(coming)
                coming = coming[used:]
                going = self.from_board(sent)
                if sent:
                    last = time.monotonic()


class VirtualBoard(PtyBoard):
    """The complete design simulated behind a pseudo-terminal.

    Args:
        config: the accelerator's configuration.
        baud_cycles: clock cycles of a bit: the fewer, the faster bytes pass; 4 or more.
        faults: rates of faults in both directions.
        seed: of the faults.
        cache: where netlists and built simulators are kept.

    Raises:
        MaskworkError: if the simulator cannot be built.
    """

    def __init__(
        self,
        config: Config,
        *,
        baud_cycles: int = MIN_BAUD_CYCLES,
        faults: FaultRates | None = None,
        seed: int = 0,
        cache: Cache | None = None,
    ):
        self.engine = RtlEngine(config, baud_cycles, cache)
        super().__init__(self.engine, faults, seed)
