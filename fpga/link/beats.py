"""Between words and beats of several words."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.fpga.link.receiver import WORD


def beat_shape(words: int) -> data.StructLayout:
    """Payload of a stream that moves so many words at once (:func:`maskwork.rtl.stream.beat_layout`)."""
    return data.StructLayout({"data": 32 * words, "last": 1})


class BeatGatherer(wiring.Component):
    """Words to beats; a word with ``last`` completes its beat, with zeros behind it.

    A beat takes a cycle more than its words.

    Args:
        words: words of a beat, 2 or more.
    """

    def __init__(self, words: int):
        self._words = words
        super().__init__({"i": In(stream.Signature(WORD)), "o": Out(stream.Signature(beat_shape(words)))})

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("BeatGatherer", self._words)

    def elaborate(self, platform):
        m = Module()
        index = Signal(range(self._words))
        m.d.comb += self.i.ready.eq(~self.o.valid)
        with m.If(self.o.ready & self.o.valid):
            m.d.sync += [self.o.valid.eq(0), self.o.payload.data.eq(0)]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [
                self.o.payload.data.word_select(index, 32).eq(self.i.payload.data),
                self.o.payload.last.eq(self.i.payload.last),
                index.eq(index + 1),
            ]
            with m.If(self.i.payload.last | (index == self._words - 1)):
                m.d.sync += [index.eq(0), self.o.valid.eq(1)]
        return m


class BeatSplitter(wiring.Component):
    """Beats to words; ``last`` goes with a beat's last word. A beat takes a cycle more than its words.

    Args:
        words: words of a beat, 2 or more.
    """

    def __init__(self, words: int):
        self._words = words
        super().__init__({"i": In(stream.Signature(beat_shape(words))), "o": Out(stream.Signature(WORD))})

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("BeatSplitter", self._words)

    def elaborate(self, platform):
        m = Module()
        index = Signal(range(self._words))
        held, last = Signal(32 * self._words), Signal()
        final = index == self._words - 1
        m.d.comb += [
            self.i.ready.eq(~self.o.valid),
            self.o.payload.data.eq(held[:32]),
            self.o.payload.last.eq(last & final),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [held.eq(self.i.payload.data), last.eq(self.i.payload.last), self.o.valid.eq(1), index.eq(0)]
        with m.Elif(self.o.ready):
            m.d.sync += [held.eq(held[32:]), index.eq(index + 1)]
            with m.If(final):
                m.d.sync += self.o.valid.eq(0)
        return m
