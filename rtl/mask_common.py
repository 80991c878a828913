"""What every kind of MASK that keeps or drops elements shares: bitmaps as words, and statistics."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.rtl.requantise import choose
from maskwork.rtl.values import words_signature

STATISTICS = 4
"""Words of the statistics behind a reply."""


def element_layout(width: int) -> data.StructLayout:
    """An element of the reply: its value, whether it is kept, and whether its row or all ends with it."""
    return data.StructLayout({"value": width, "bit": 1, "closes": 1, "last": 1})


class PackBits(wiring.Component):
    """Bits to words, each row's padded to a word. Latency 1 cycle, one bit a cycle.

    Members:
        start: the next bit is a row's first.
        i: bits; with ``closes`` a row ends.
        o: words.
        fresh: the word at ``o`` is new, whether it leaves or not.
    """

    def __init__(self):
        bit = data.StructLayout({"bit": 1, "closes": 1, "last": 1})
        super().__init__({"start": In(1), "i": In(stream.Signature(bit)), "o": Out(words_signature()), "fresh": Out(1)})

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("PackBits",)

    def elaborate(self, platform):
        m = Module()
        i = self.i.payload
        word = Signal(32, reset_less=True)
        at = Signal(32, init=1, reset_less=True)  # the bit that comes, one-hot
        full, last = Signal(), Signal()
        takes, ends = Signal(), Signal()
        m.d.comb += [
            self.i.ready.eq(~full | self.o.ready),
            takes.eq(self.i.valid & self.i.ready),
            ends.eq(at[-1] | i.closes),
            self.o.valid.eq(full),
            self.o.payload.word.eq(word),
            self.o.payload.last.eq(last),
        ]
        m.d.sync += self.fresh.eq(takes & ends)
        with m.If(takes):
            m.d.sync += [
                full.eq(ends),
                last.eq(i.last),
                word.eq((word & ~at[0].replicate(32)) | (at & i.bit.replicate(32))),
                at.eq(at << 1),
            ]
        with m.Elif(self.o.ready):
            m.d.sync += full.eq(0)
        with m.If((takes & ends) | self.start):
            m.d.sync += at.eq(1)
        return m


class Statistics(wiring.Component):
    """Sum of magnitudes (48 bits), number of kept elements and of values that are not 0 (32 bits each).

    Members:
        clear: all become 0.
        valid, magnitude: a value.
        kept: an element is kept (of any cycle).
        index, word: word of the statistics, as the reply has them.
    """

    def __init__(self, width: int):
        self._width = width
        super().__init__(
            {
                "clear": In(1),
                "valid": In(1),
                "magnitude": In(width),
                "kept": In(1),
                "index": In(range(STATISTICS)),
                "word": Out(32),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Statistics", self._width)

    def elaborate(self, platform):
        m = Module()
        total = Signal(min(48, 32 + self._width))  # of fewer than 2**32 values
        kept, nonzeros = Signal(32), Signal(32)
        with m.If(self.valid):
            m.d.sync += total.eq(total + self.magnitude)
        with m.If(self.valid & self.magnitude.any()):
            m.d.sync += nonzeros.eq(nonzeros + 1)
        with m.If(self.kept):
            m.d.sync += kept.eq(kept + 1)
        with m.If(self.clear):
            m.d.sync += [total.eq(0), kept.eq(0), nonzeros.eq(0)]
        m.d.comb += self.word.eq(choose([total[:32], total[32:], kept, nonzeros], self.index))
        return m
