"""Reply of the mask unit: which words follow which."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.rtl.mask_common import STATISTICS
from maskwork.rtl.requantise import choose
from maskwork.rtl.values import words_signature


class MaskReply(wiring.Component):
    """Packed elements, a beat's rest and statistics; or a row's sums after the other; or the words of all columns.

    Args:
        config: stream_words, project_sums and which blocks there are.

    Members:
        packed: words of elements; statistics follow the last.
        index: of a word of the statistics, or of a sum.
        statistics, sum: that word, in the same cycle.
        row_ends, last: a row's sums stand; it is the last row. left: they are in the reply and may be cleared.
        columns: the sums of all rows are in their memory.
        norm, upper, final, next: of :class:`~maskwork.rtl.mask_norms.Norms`.
        o: words.
        done: the last word was made; it leaves later.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(
            {
                "packed": In(words_signature()),
                "index": Out(range(max(STATISTICS, config.project_sums))),
                "statistics": In(32),
                "sum": In(32),
                "row_ends": In(1),
                "last": In(1),
                "left": Out(1),
                "columns": In(1),
                "norm": In(32),
                "upper": Out(1),
                "final": In(1),
                "next": Out(1),
                "o": Out(words_signature()),
                "done": Out(1),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        config = self._config
        return ("MaskReply", config.stream_words, config.project_sums, config.generators)

    def elaborate(self, platform):
        m = Module()
        words, blocks, most = self._config.stream_words, self._config.blocks, self._config.project_sums
        word, full, last = Signal(32, reset_less=True), Signal(), Signal()
        free, makes = Signal(), Signal()  # a word may be made; it is
        source = Signal(2)  # what the word is made of: known before, so that it is only chosen here
        made = choose([self.packed.payload.word, self.statistics, self.sum, self.norm], source)
        lane = Signal(range(max(2, words)))  # of the word in its beat
        final_row = Signal()
        m.d.comb += [
            free.eq(~full | self.o.ready),
            self.o.valid.eq(full),
            self.o.payload.word.eq(word),
            self.o.payload.last.eq(last),
        ]
        with m.If(free):
            m.d.sync += full.eq(makes)
        with m.If(makes):
            m.d.sync += [word.eq(made), last.eq(self.done), lane.eq(Mux(self.done | (lane == words - 1), 0, lane + 1))]
        with m.If(self.done | self.left):
            m.d.sync += source.eq(0)
        with m.FSM():
            with m.State("PACKED"):
                m.d.comb += [self.packed.ready.eq(free), makes.eq(free & self.packed.valid)]
                m.d.sync += [self.index.eq(0), final_row.eq(self.last)]
                with m.If(makes & self.packed.payload.last):
                    m.d.sync += source.eq(1)
                    m.next = "FILL" if words > 1 else "STATISTICS"
                if "project" in blocks:
                    with m.If(self.row_ends):
                        m.d.sync += source.eq(2)
                        m.next = "SUMS"
                if "norms" in blocks:
                    with m.If(self.columns):
                        m.d.sync += source.eq(3)
                        m.next = "COLUMN"
            if words > 1:
                with m.State("FILL"):
                    with m.If(lane == 0):
                        m.next = "STATISTICS"
                    with m.Elif(free):
                        m.d.comb += makes.eq(1)
                        m.d.sync += word.eq(0)
            with m.State("STATISTICS"):
                m.d.comb += makes.eq(free)
                with m.If(free):
                    m.d.sync += self.index.eq(self.index + 1)
                    with m.If(self.index == STATISTICS - 1):
                        m.d.comb += self.done.eq(1)
                        m.next = "PACKED"
            if "project" in blocks:
                with m.State("SUMS"):
                    m.d.comb += makes.eq(free)
                    with m.If(free):
                        m.d.sync += self.index.eq(self.index + 1)
                        with m.If(self.index == most - 1):
                            m.d.comb += [self.left.eq(1), self.done.eq(final_row)]
                            m.next = "PACKED"
            if "norms" in blocks:
                # two cycles from a column to its words
                with m.State("COLUMN"):
                    m.next = "READ"
                with m.State("READ"):
                    m.next = "LOW"
                with m.State("LOW"):
                    m.d.comb += makes.eq(free)
                    with m.If(free):
                        m.next = "HIGH"
                with m.State("HIGH"):
                    m.d.comb += [makes.eq(free), self.upper.eq(1)]
                    with m.If(free):
                        m.d.comb += [self.next.eq(1), self.done.eq(self.final)]
                        m.next = "COLUMN"
                        with m.If(self.final):
                            m.next = "PACKED"
        return m
