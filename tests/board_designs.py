"""A small design with the ports of a system, for tests of boards."""

import importlib.util

import pytest
from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from maskwork.rtl.hierarchy import submodule

needs_boards = pytest.mark.skipif(not importlib.util.find_spec("amaranth_boards"), reason="amaranth-boards is missing")


class Leaf(wiring.Component):
    i: In(8)
    o: Out(8)

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.o.eq(self.o + self.i)
        return m


class Echo(wiring.Component):
    """Something small with a system's ports."""

    def __init__(self, config, clock_hz, baud, board):
        self.what = (clock_hz, baud, board)
        super().__init__({"rx": In(1), "tx": Out(1), "activity": Out(1)})

    def elaborate(self, platform):
        m = Module()
        submodule(m, "link", first := Leaf(), platform)
        submodule(m, "cluster0", second := Leaf(), platform)
        m.d.comb += [
            first.i.eq(Cat(self.rx, Const(self.what[0] & 127, 7))),
            second.i.eq(first.o),
            self.tx.eq(second.o[7]),
        ]
        m.d.sync += self.activity.eq(self.rx)
        return m
