"""Stochastic pruner of the mask unit: what is small becomes plus or minus the level, or 0 (SparseTrain)."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.isa import RANDOM_BITS
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.multiplier import Multiplier


class Pruner(wiring.Component):
    """Chooses the small values that become the level: with probability magnitude / level, from a random number.

    Args:
        width: bits of a value.

    Members:
        number: a random number for a value.
        magnitude, negative: that value's, two cycles later.
        level: 1 or more, stable two cycles before a command's first value.
        chosen: a cycle after ``magnitude``: level * number < magnitude * 2**16.
        instead: with ``chosen``: the level with the value's sign.
    """

    def __init__(self, width: int):
        self._width = width
        super().__init__(
            {
                "number": In(RANDOM_BITS),
                "magnitude": In(width),
                "negative": In(1),
                "level": In(signed(width)),
                "chosen": Out(1),
                "instead": Out(signed(width)),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Pruner", self._width)

    def elaborate(self, platform):
        m = Module()
        submodule(m, "multiply", multiply := Multiplier(self._width, RANDOM_BITS + 1), platform)
        minus = Signal.like(self.level, reset_less=True)
        m.d.comb += [multiply.a.eq(self.level), multiply.b.eq(self.number)]
        m.d.sync += [
            minus.eq(-self.level),
            # both sides without their lowest bits, which are 0 on one of them
            self.chosen.eq(multiply.product[RANDOM_BITS : RANDOM_BITS + self._width] < self.magnitude),
            self.instead.eq(Mux(self.negative, minus, self.level)),
        ]
        return m
