"""Multiplier: operands and product in registers, so that a DSP block's own registers can take their place."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out


class Multiplier(wiring.Component):
    """``product`` is ``a * b`` of two cycles before. No enable, no reset: that is what a DSP block's registers offer
    without further logic. A module of its own, so that synthesis can put a device's block in its place.

    Args:
        a_width, b_width: bits of the signed operands.
    """

    def __init__(self, a_width: int, b_width: int):
        self._widths = a_width, b_width
        super().__init__(
            {"a": In(signed(a_width)), "b": In(signed(b_width)), "product": Out(signed(a_width + b_width))}
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Multiplier", *self._widths)

    def elaborate(self, platform):
        m = Module()
        a = Signal.like(self.a, name="a_register", reset_less=True)
        b = Signal.like(self.b, name="b_register", reset_less=True)
        product = Signal.like(self.product, name="product_register", reset_less=True)
        m.d.sync += [a.eq(self.a), b.eq(self.b), product.eq(a * b)]
        m.d.comb += self.product.eq(product)
        return m
