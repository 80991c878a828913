"""Target ``serial:PORT``: a board behind a serial port, with the interface of every other device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from maskwork.fpga.link.host import Host
from maskwork.fpga.link.identity import Identity, parse_identity
from maskwork.fpga.link.line import LinkStatistics, NoAnswer
from maskwork.fpga.link.port import BAUDS, SerialTransport
from maskwork.gen.config import Config
from maskwork.gen.errors import BoardError, DeviceError, MaskworkValueError
from maskwork.gen.execute import command_words
from maskwork.gen.isa import REPLIES, Op, Reply
from maskwork.sim_tb.run import RunLimits, RunResult, beats_of, limits_for
from numpy.typing import ArrayLike

_EMPTY_ANSWER_BITS = 140
"""Bits of the shortest answer, two flags and three words: so long lies at least between two answers."""

PROBE_SECONDS = 0.6
"""How long a board is waited for at each rate."""


def open_board(port: str, baud: int | None = None, seconds: float | None = None) -> tuple[SerialTransport, Identity]:
    """Open a port and find the board's rate and identity.

    Args:
        port: device file or port name.
        baud: bits a second; None tries :data:`maskwork.fpga.link.port.BAUDS`.
        seconds: to wait for an answer at each rate.

    Raises:
        MaskworkValueError: if there is no such port.
        BoardError: if it may not be opened, or no board answers.
    """
    # a pseudo-terminal has no rate; what simulates behind it may be slow
    bauds = (baud,) if baud is not None else (BAUDS[0],) if port.startswith("/dev/pts/") else BAUDS
    seconds = seconds or (PROBE_SECONDS if len(bauds) > 1 else 3.0)
    for rate in bauds:
        transport = SerialTransport(port, rate)
        try:
            identity = Host(transport, name=f"serial:{port}").read_identity(seconds)
            return transport, parse_identity(identity)
        except NoAnswer:
            transport.close()
        except BaseException:
            transport.close()
            raise
    tried = ", ".join(map(str, bauds))
    raise NoAnswer(
        f"serial:{port}: no answer at {tried} baud: not a maskwork board, not configured ('maskwork flash'), or "
        f"built for another rate (serial:{port}@BAUD)"
    )


class SerialDevice:
    """A board behind a serial port.

    Args:
        port: device file or port name.
        config: the configuration that programs are made for; None takes the board's.
        baud: bits a second; None looks for it.
        patience: seconds in which no word moves after which a run is given up.

    Members:
        config: the configuration.
        identity: what the board says about itself.
        last_run: words of the last :meth:`execute`; ``cycles`` is 0, for nobody counts them from outside: the
            accelerator's own counters do.
        link: statistics of the link.

    Raises:
        MaskworkValueError: if there is no such port.
        BoardError: if it may not be opened, no board answers, or the board holds another configuration.
        DeviceError: if the accelerator on it does not answer.
    """

    def __init__(self, port: str, config: Config | None = None, *, baud: int | None = None, patience: float = 20.0):
        self._name = f"serial:{port}"
        self.last_run: RunResult | None = None
        self._transport, self.identity = open_board(port, baud)
        try:
            own = self.identity.config
            self.config = config or own
            self._check(own.hash, f"{own.name!r}")
            self._host = Host(self._transport, name=self._name, patience=patience)
            self.reset()
            bits = self.identity.clock_hz / self.identity.baud
            self._quiet = max(2, math.ceil(RunLimits().idle_limit / (bits * _EMPTY_ANSWER_BITS)))
            self._identify()
        except BaseException:
            self._transport.close()
            raise

    @property
    def link(self) -> LinkStatistics:
        """Statistics of the link since the device was opened."""
        return self._host.statistics

    def _check(self, board_hash: int, board_config: str) -> None:
        if board_hash != self.config.hash:
            raise BoardError(
                f"{self._name}: the board ({self.identity.board}) holds configuration {board_config} "
                f"({board_hash:#010x}), the program is for {self.config.name!r} ({self.config.hash:#010x}): choose "
                "the board's configuration (--preset, --config, --set), or build and flash the other one"
            )

    def _identify(self) -> None:
        """Ask the accelerator itself."""
        words, _ = self.execute(*command_words(self.config, Op.IDENTIFY))
        if not len(words) or int(words[0]) & 0xFF != Reply.IDENTITY:
            raise DeviceError(f"{self._name}: the accelerator did not answer IDENTIFY")
        self._check(REPLIES[Reply.IDENTITY].decode(words.tolist())["config"], "of another build")

    def execute(self, words: ArrayLike, last: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`maskwork.sim_tb.device.Device.execute`.

        Packets that end with SYNC or ABORT (and commands that are answered at once) take no longer than they must;
        after others the board is asked until nothing has moved for 20,000 of its cycles or more.
        """
        beat = self.config.stream_words
        data, ends = beats_of(words, last, beat)
        packets: list[int] = ((np.flatnonzero(ends) + 1) * beat).tolist()
        # where nothing is on its way, answers end the run as if a SYNC were before them
        before, before_last = command_words(self.config, Op.SYNC)
        before, before_last = (before, before_last) if self._settled else (before[:0], before_last[:0])
        limits = limits_for(np.concatenate([before, data.reshape(-1)]), np.concatenate([before_last, ends]), beat)
        count = limits.stop_count - self._settled
        done = _stop(limits, count) if count > 0 else None
        self._settled = False
        replies, reply_ends = self._host.exchange(data.astype("<u4").tobytes(), packets, done, self._quiet)
        result = np.frombuffer(replies, "<u4").astype(np.uint32)
        result = result[: len(result) // beat * beat]
        reply_last = np.zeros(len(result) // beat, np.bool_)
        reply_last[np.array(reply_ends, np.int64) // beat - 1] = True
        self._settled = done is not None
        self.last_run = RunResult(result, reply_last, 0, len(ends), len(reply_last), 0, 0)
        return result, reply_last

    def reset(self) -> None:
        """Reset the accelerator."""
        self._host.reset()
        self._settled = True

    def close(self) -> None:
        """Give the port back."""
        self._transport.close()

    def __enter__(self) -> SerialDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _stop(limits: RunLimits, count: int) -> Callable[[bytes, bool], bool]:
    """Tells, from the words of one answer after the other, when ``count`` replies that count have come."""
    at_start, counts, left = True, False, count

    def done(words: bytes, end: bool) -> bool:
        nonlocal at_start, counts, left
        if at_start:
            kind = words[0]
            counts = kind in limits.stop_kinds or (kind == Reply.ERROR and words[2] in limits.stop_opcodes)
        at_start = end
        left -= end and counts
        return left <= 0 and at_start

    return done


def open_serial(rest: str, config: Config | None, **options: Any) -> SerialDevice:
    """Open target ``serial:PORT`` or ``serial:PORT@BAUD`` (entry point of group ``maskwork.targets``).

    Args:
        rest: what follows ``serial:``.
        config: the configuration; None takes the board's.
        **options: of :class:`SerialDevice`.

    Raises:
        MaskworkValueError: if no port is named, or an option is unknown.
        BoardError: as :class:`SerialDevice`.
    """
    port, at, baud = rest.rpartition("@") if "@" in rest else (rest, "", "")
    if not port or (at and not baud.isdecimal()):
        raise MaskworkValueError(f"target 'serial:{rest}': serial:PORT or serial:PORT@BAUD is expected")
    for option in options:
        if option not in ("baud", "patience"):
            raise MaskworkValueError(f"option {option} is none of target 'serial:PORT'; it has: baud, patience")
    return SerialDevice(port, config, **({"baud": int(baud)} if at else {}) | options)
