"""Threshold compare of the mask unit: by value, or by magnitude."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out


class Threshold(wiring.Component):
    """``over`` says, a cycle later, value > level, or magnitude >= level.

    Args:
        width: bits of a value.

    Members:
        value, magnitude: a value (signed) and its magnitude.
        level, by_magnitude: what to compare with, and how.
        over: a register.
    """

    def __init__(self, width: int):
        self._width = width
        super().__init__(
            {
                "value": In(signed(width)),
                "magnitude": In(width),
                "level": In(signed(width)),
                "by_magnitude": In(1),
                "over": Out(1),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Threshold", self._width)

    def elaborate(self, platform):
        m = Module()
        subject = Signal(signed(self._width + 1))
        m.d.comb += subject.eq(Mux(self.by_magnitude, self.magnitude, self.value))
        # another bit below the lowest decides between > and >=
        m.d.sync += self.over.eq(Cat(self.by_magnitude, subject).as_signed() > Cat(Const(0, 1), self.level).as_signed())
        return m
