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
        level, by_magnitude: a command's, stable two cycles before its first value; level is 1 or more by magnitude.
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
        limit = Signal(signed(self._width), reset_less=True)
        m.d.comb += subject.eq(Mux(self.by_magnitude, self.magnitude, self.value))
        m.d.sync += [limit.eq(self.level - self.by_magnitude), self.over.eq(subject > limit)]
        return m
