"""UART, 8 data bits, no parity, one stop bit; down to 4 clock cycles a bit."""

from dataclasses import dataclass

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out
from maskwork.gen.errors import MaskworkValueError

MIN_CYCLES = 4
"""Clock cycles a bit, at least."""

MAX_ERROR = 0.005
"""Largest relative error of the bit rate."""

MAX_WIDTH = 24
"""Bits of the counter that makes the bit rate, at most."""

BYTE = data.StructLayout({"data": 8, "error": 1})
"""A byte as received; ``error``: its stop bit was missing."""


@dataclass(frozen=True)
class Rate:
    """How the bit rate is made: a counter modulo ``modulus`` that advances by ``step`` a cycle, a bit every wrap."""

    step: int
    modulus: int

    @classmethod
    def find(cls, clock_hz: float, baud: float) -> "Rate":
        """The smallest counter whose rate is right within 0.5 %: of a whole number of cycles, or of 2**n steps.

        Raises:
            MaskworkValueError: if there is none.
        """
        if baud <= 0 or clock_hz < MIN_CYCLES * baud:
            raise MaskworkValueError(
                f"baud must be more than 0 and at most a quarter of the clock ({clock_hz / MIN_CYCLES:g}), not {baud:g}"
            )
        cycles = round(clock_hz / baud)
        found = [cls(1, cycles)] + [cls(round(baud * (1 << w) / clock_hz), 1 << w) for w in range(2, MAX_WIDTH + 1)]
        good = [rate for rate in found if rate.step and abs(rate.error(clock_hz, baud)) < MAX_ERROR]
        good = [rate for rate in good if rate.width <= MAX_WIDTH]
        if not good:
            raise MaskworkValueError(
                f"baud must be at least {clock_hz / (1 << MAX_WIDTH):.1f} with a clock of {clock_hz:g} Hz, not {baud:g}"
            )
        return min(good, key=lambda rate: (rate.width, abs(rate.error(clock_hz, baud))))

    @property
    def width(self) -> int:
        """Bits of the counter."""
        return (self.modulus - 1).bit_length()

    def error(self, clock_hz: float, baud: float) -> float:
        """Relative error of the bit rate."""
        return clock_hz * self.step / self.modulus / baud - 1

    def advance(self, phase: Signal) -> tuple[Value, Value]:
        """The counter's next value, and whether it wraps."""
        if self.modulus & (self.modulus - 1):  # step is 1
            wraps = phase == self.modulus - 1
            return Mux(wraps, 0, phase + 1)[: self.width], wraps
        total = phase + self.step
        return total[: self.width], total[self.width]


class UartReceiver(wiring.Component):
    """Bytes from a line.

    The line passes two flip-flops; bits are sampled in their middle. ``o`` offers a byte from the middle of its
    stop bit until it is taken; a byte that is not taken before the middle of the next start bit is lost.

    Members:
        rx: the line, idle high, asynchronous.
        o: bytes with their ``error``.
    """

    def __init__(self, rate: Rate):
        self._rate = rate
        super().__init__({"rx": In(1, init=1), "o": Out(stream.Signature(BYTE))})  # pyright: ignore[reportCallIssue]

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("UartReceiver", self._rate)

    def elaborate(self, platform):
        m = Module()
        # samples lie up to a cycle behind the counter's wrap, and the start's edge up to a cycle before it was seen
        half = self._rate.modulus // 2 + self._rate.step
        line = Signal(init=1)
        m.submodules.synchronizer = FFSynchronizer(self.rx, line, init=1)
        running = Signal(reset_less=True)
        first = Signal(reset_less=True)  # before and in a start bit; low when idle: no start before the line was high
        # the byte, and a one below it that has arrived at bit 0 before the stop bit is sampled
        shift = Signal(9, reset_less=True)
        error, valid = Signal(reset_less=True), Signal(reset_less=True)
        phase = Signal(self._rate.width, reset_less=True)
        following, wraps = self._rate.advance(phase)
        m.d.comb += [self.o.valid.eq(valid), self.o.payload.data.eq(shift[1:]), self.o.payload.error.eq(error)]
        with m.If(self.o.ready):
            m.d.sync += valid.eq(0)
        with m.If(~running):
            m.d.sync += phase.eq(half)
            with m.If(line):
                m.d.sync += first.eq(1)
            with m.Elif(first):
                m.d.sync += running.eq(1)
        with m.Else():
            m.d.sync += phase.eq(following)
            with m.If(wraps):
                m.d.sync += first.eq(0)
                with m.If(first):
                    m.d.sync += [shift.eq(1 << 8), running.eq(~line), valid.eq(0)]
                with m.Elif(shift[0]):
                    m.d.sync += [running.eq(0), error.eq(~line), valid.eq(1)]
                with m.Else():
                    m.d.sync += shift.eq(Cat(shift[1:], line))
        return m


class UartTransmitter(wiring.Component):
    """Bytes onto a line, back to back if they come so.

    Members:
        i: bytes; taken when their start bit begins.
        tx: the line, idle high, from a register.
    """

    def __init__(self, rate: Rate):
        self._rate = rate
        super().__init__({"i": In(stream.Signature(8)), "tx": Out(1, init=1)})  # pyright: ignore[reportCallIssue]

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("UartTransmitter", self._rate)

    def elaborate(self, platform):
        m = Module()
        shift = Signal(10, init=1, reset_less=True)  # the stop bit is the highest one
        phase = Signal(self._rate.width, reset_less=True)
        following, wraps = self._rate.advance(phase)
        m.d.sync += phase.eq(following)
        stops = shift[1:] == 0
        m.d.comb += [self.tx.eq(shift[0]), self.i.ready.eq(wraps & stops)]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += shift.eq(Cat(C(0, 1), self.i.payload, C(1, 1)))
        with m.Elif(wraps & ~stops):
            m.d.sync += shift.eq(shift[1:])
        return m
