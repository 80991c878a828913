"""Channel norms of the mask unit: for each column the sum of magnitudes and the number of values that are not 0."""

from itertools import pairwise

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.rtl.layouts import NO_CHECK

COUNT_WIDTH = 16
"""Bits of a column's count: that of its rows."""

LATENCY = 3
"""Cycles from a value to its sum's way into the memory: the column must not come again before them, nor be read out."""


class Norms(wiring.Component):
    """Sums in block RAM, a value a cycle, then a column after the other read out.

    Args:
        config: a_width, norm_channels.

    Members:
        start: the first column of the first row comes next: it forgets what was.
        step, closes: a value comes; it is its row's last. The same column comes ``LATENCY`` + 1 cycles later, or after
            more.
        magnitude: that value's, two cycles later.
        next: go on to the next column that is read out, beginning with column 0 behind a row's last value.
        upper, word: the column's word, the second with ``upper``; two cycles after it was gone to, until ``next``.
        final: it is the last that the first row had.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "step": In(1),
                "closes": In(1),
                "magnitude": In(config.a_width),
                "next": In(1),
                "upper": In(1),
                "word": Out(32),
                "final": Out(1),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Norms", self._config.a_width, self._config.norm_channels)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        sum_width = config.a_width + COUNT_WIDTH
        column = Signal(range(config.norm_channels))
        reached = Signal.like(column)
        first = Signal()
        m.submodules.memory = ram = memory.Memory(
            shape=sum_width + COUNT_WIDTH, depth=config.norm_channels, init=[], attrs=NO_CHECK
        )
        read, write = ram.read_port(), ram.write_port()
        held = Signal(sum_width + COUNT_WIDTH, reset_less=True)
        columns = [column, *(Signal.like(column, name=f"column_{n + 1}", reset_less=True) for n in range(LATENCY))]
        steps, was_first = Signal(LATENCY), Signal(reset_less=True)
        new = Signal.like(held, reset_less=True)
        total, count = held[:sum_width], held[sum_width:]
        m.d.comb += [
            read.addr.eq(column),
            write.addr.eq(columns[LATENCY]),
            write.en.eq(steps[-1]),
            write.data.eq(new),
            self.word.eq(Mux(self.upper, Cat(held[sum_width:], held[:sum_width][32:]), held[:sum_width])),
            self.final.eq(column == reached),
        ]
        m.d.sync += [
            held.eq(read.data),
            *(later.eq(sooner) for sooner, later in pairwise(columns)),
            steps.eq(Cat(self.step, steps)),
            was_first.eq(first & self.step),
            new.eq(Cat((total + self.magnitude)[:sum_width], (count + self.magnitude.any())[:COUNT_WIDTH])),
        ]
        with m.If(was_first):
            m.d.sync += held.eq(0)
        with m.If(self.step & first):
            m.d.sync += reached.eq(column)
        with m.If(self.step | self.next):
            m.d.sync += column.eq(column + 1)
        with m.If(self.start | (self.step & self.closes)):
            m.d.sync += [column.eq(0), first.eq(self.start)]
        return m
