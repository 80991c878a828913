"""Slot counter: the bit iterator's stand-in where no mask skips slots."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out


class SlotCounter(wiring.Component):
    """Emits the indices 0 to ``last`` for each input, one a cycle, without a bubble between inputs.

    Latency 1 cycle.

    Members:
        i: stream of ``last`` (highest index) and ``meta``.
        o: stream of ``index``, ``last`` and ``meta``.
        busy: something is inside.
    """

    def __init__(self, width: int, meta):
        self._width, self._meta = width, meta
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"last": range(width), "meta": meta}))),
                "o": Out(stream.Signature(data.StructLayout({"index": range(width), "last": 1, "meta": meta}))),
                "busy": Out(1),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("SlotCounter", self._width, repr(self._meta))

    def elaborate(self, platform):
        m = Module()
        index = Signal(range(self._width))
        last = Signal(range(self._width))
        valid = Signal()
        meta = Signal(len(Value.cast(self.i.payload.meta)))
        ends = Signal()
        m.d.comb += [
            ends.eq(index == last),
            self.o.valid.eq(valid),
            self.o.payload.index.eq(index),
            self.o.payload.last.eq(ends),
            Value.cast(self.o.payload.meta).eq(meta),
            self.i.ready.eq(~valid | (ends & self.o.ready)),
            self.busy.eq(valid),
        ]
        with m.If(self.i.ready):
            m.d.sync += [
                valid.eq(self.i.valid),
                index.eq(0),
                last.eq(self.i.payload.last),
                meta.eq(Value.cast(self.i.payload.meta)),
            ]
        with m.Elif(self.o.ready):
            m.d.sync += index.eq(index + 1)
        return m
