"""Expander: the front of a lane, from FIFO words to one nonzero (k, a) a cycle."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from maskwork.gen.config import CHUNK, Config
from maskwork.rtl.bit_iterator import lowest, single
from maskwork.rtl.layouts import WordKind, chunk_layout, clog2, start_layout, word_width
from maskwork.rtl.pe import context_width, token_layout


class Expander(wiring.Component):
    """Walks the words of rows and emits their nonzeros in order, then an ``end`` token for each row.

    A row is a START word, a word with its number, its C-mask words, chunks (a head and its value words) and an END
    word. Latency from a value word to its first token is 2 cycles; a chunk of n elements takes n + 1 cycles. A START
    waits until the next context is free.

    Members:
        i: stream of words.
        o: stream of tokens, registered.
        header: a START, row or mask word of the row that starts is at ``header_word`` (as the ``header_index``-th).
        context: context of the row in progress or, between rows, of the next.
        busy: per context, a row is in progress or drains.
        release: per context, its row has been drained.
        in_row: between START and END.
        waits: a START waits for its context.
    """

    def __init__(self, config: Config):
        self._config = config
        contexts = config.rows_in_flight
        self.header_words = 2 + config.mask_words
        super().__init__(
            {
                "i": In(stream.Signature(word_width(config))),
                "o": Out(stream.Signature(token_layout(config))),
                "header": Out(1),
                "header_word": Out(32),
                "header_index": Out(range(self.header_words)),
                "context": Out(context_width(config)),
                "busy": Out(contexts),
                "release": In(contexts),
                "in_row": Out(1),
                "waits": Out(1),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Expander", self._config.hash)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        word = self.i.payload
        head = data.View(chunk_layout(config), word[: chunk_layout(config).size])
        start = data.View(start_layout(config), word[: start_layout(config).size])
        values = [word[n * config.a_width :][: config.a_width] for n in range(config.fetch_width)]

        # first stage: index within the chunk, chunk's k and value; second stage: the token
        staged = Signal()
        staged_index = Signal(range(CHUNK))
        staged_k = Signal(config.k_width)
        staged_a = Signal(signed(config.a_width))
        staged_end = Signal()
        token = Signal(token_layout(config))
        token_valid = Signal()
        token_free = Signal()
        staged_free = Signal()
        bank = Signal()
        context = Signal(context_width(config))
        staged_context = Signal(context_width(config))
        m.d.comb += [
            self.o.payload.eq(token),
            self.o.valid.eq(token_valid),
            token_free.eq(~token_valid | self.o.ready),
            staged_free.eq(~staged | token_free),
            self.context.eq(context),
        ]
        with m.If(token_free):
            m.d.sync += [
                token_valid.eq(staged),
                token.k.eq(Cat((staged_k + staged_index)[: config.k_width], bank)),
                token.a.eq(staged_a),
                token.end.eq(staged_end),
                token.context.eq(staged_context),
            ]

        chunk_k = Signal(config.k_width)
        bits = Signal(CHUNK if "a" in config.skip else range(CHUNK))
        index = Signal(range(CHUNK))
        last_element = Signal()
        if "a" in config.skip:
            m.d.comb += [index.eq(lowest_of_chunk(bits)), last_element.eq(single(bits))]
        else:
            m.d.comb += last_element.eq(index == bits)
        value = Signal(range(config.fetch_width))
        load = Signal()
        ends = Signal()
        with m.If(staged_free):
            m.d.sync += [
                staged.eq(load | ends),
                staged_index.eq(index),
                staged_k.eq(chunk_k),
                staged_a.eq(Array(values)[value]),
                staged_end.eq(ends),
                staged_context.eq(context),
            ]

        context_busy = Signal()
        m.d.comb += context_busy.eq(self.busy.bit_select(context, 1))
        header_index = Signal(range(self.header_words))
        m.d.comb += [self.header_word.eq(word[:32]), self.header_index.eq(header_index)]
        started = Signal(config.rows_in_flight)
        m.d.sync += self.busy.eq((self.busy | started) & ~self.release)

        with m.FSM():
            with m.State("HEAD"):
                with m.If(self.i.valid):
                    with m.Switch(head.kind):
                        with m.Case(WordKind.START):
                            m.d.comb += self.waits.eq(context_busy)
                            with m.If(~context_busy):
                                m.d.comb += [
                                    self.i.ready.eq(1),
                                    self.header.eq(1),
                                    started.eq(1 << context),
                                ]
                                m.d.sync += header_index.eq(1)
                                m.next = "HEADER"
                        with m.Case(WordKind.END):
                            m.d.comb += ends.eq(1)
                            with m.If(staged_free):
                                m.d.comb += self.i.ready.eq(1)
                                m.d.sync += [context.eq(context + 1), self.in_row.eq(0)]
                        with m.Default():
                            m.d.comb += self.i.ready.eq(1)
                            m.d.sync += [chunk_k.eq(head.k), bits.eq(head.bitmap)]
                            if "a" not in config.skip:
                                m.d.sync += index.eq(0)
                            m.next = "VALUES"
            with m.State("HEADER"):
                m.d.comb += [self.i.ready.eq(1), self.header.eq(self.i.valid)]
                with m.If(self.i.valid):
                    m.d.sync += header_index.eq(header_index + 1)
                    with m.If(header_index == self.header_words - 1):
                        m.d.sync += [header_index.eq(0), self.in_row.eq(1)]
                        m.next = "HEAD"
            with m.State("VALUES"):
                m.d.comb += load.eq(self.i.valid)
                with m.If(self.i.valid & staged_free):
                    m.d.comb += self.i.ready.eq(last_element | (value == config.fetch_width - 1))
                    m.d.sync += value.eq(value + 1)
                    if "a" in config.skip:
                        m.d.sync += bits.eq(bits & (bits - 1)[:CHUNK])
                    else:
                        m.d.sync += index.eq(index + 1)
                    with m.If(last_element):
                        m.d.sync += value.eq(0)
                        m.next = "HEAD"
        with m.If(started.any()):
            m.d.sync += bank.eq(start.bank)
        return m


def lowest_of_chunk(bits: Value) -> Value:
    """Index of the lowest set bit of a chunk's bitmap, nibble first."""
    flags = Cat(bits.word_select(n, 4).any() for n in range(CHUNK // 4))
    nibble = lowest(flags)
    return Cat(lowest(bits.word_select(nibble, 4)), nibble[: clog2(CHUNK // 4)])
