"""Dropout of the mask unit: keeps an element by a random number."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.isa import RANDOM_BITS


class Dropout(wiring.Component):
    """``keep`` says, a cycle later, number < level.

    Members:
        number: a random number for the element.
        level: the probability to keep it, times 2**16.
        keep: a register.
    """

    def __init__(self):
        super().__init__({"number": In(RANDOM_BITS), "level": In(RANDOM_BITS), "keep": Out(1)})

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Dropout",)

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.keep.eq(self.number < self.level)
        return m
