"""The random numbers of the mask unit: a linear feedback shift register that moves on by 24 bits a value."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

TAPS = (7, 6, 2, 0)
"""Over GF(2), b[n + 32] is the sum of b[n + t]: x^32 + x^7 + x^6 + x^2 + 1 is primitive."""

STEP = 24
"""Bits of the sequence that a value takes; each of the next state's bits is then a sum of four bits of this one."""


def advanced(state: Value) -> Value:
    """The state (32 bits, bit i is b[n + i]) ``STEP`` bits later."""
    bits = list(state)
    for n in range(STEP):
        new = bits[n + TAPS[0]]
        for tap in TAPS[1:]:
            new = new ^ bits[n + tap]
        bits.append(new)
    return Cat(bits[STEP:])


class Lfsr(wiring.Component):
    """A state that moves on by ``STEP`` bits, or takes a seed.

    Members:
        seed, load: the state becomes ``seed``.
        step: else it moves on.
        state: the present one (a register).
    """

    def __init__(self):
        super().__init__({"seed": In(32), "load": In(1), "step": In(1), "state": Out(32)})

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Lfsr",)

    def elaborate(self, platform):
        m = Module()
        state = Signal(32, reset_less=True)
        m.d.comb += self.state.eq(state)
        with m.If(self.load | self.step):
            m.d.sync += state.eq(Mux(self.load, self.seed, advanced(state)))
        return m
