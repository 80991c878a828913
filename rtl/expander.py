"""Expander: the front of a lane, from FIFO words to one nonzero (k, a) a cycle."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import CHUNK, Config
from maskwork.rtl.bit_iterator import lowest
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.layouts import WordKind, chunk_layout, start_layout, word_width
from maskwork.rtl.pe import context_width, token_layout, upper_width
from maskwork.rtl.queue import Queue
from maskwork.rtl.shared_weights import own_rows
from maskwork.rtl.stream import SkidBuffer

TURN_CHUNKS = 2
"""Chunks of one row before the next row in flight has its turn: rows that need different PEs fill each other's gaps."""

STAGED = 3
"""Tokens that the queue behind the expander does not show yet: one under way to it, and what its flag's register and
its count hide."""


class Expander(wiring.Component):
    """Walks the words of the rows in flight in turns and emits their nonzeros, then an ``end`` token for each row.

    A row is a START word, a word with its number, its C-mask words, chunks (a head and its value words) and an END
    word. Latency from a value word to its first token is 2 cycles; a chunk of n elements takes n + 1 cycles or more.
    Every context has a ring of words; its next row is started once the last one was drained.

    With ``psum_in_pe`` it is started once the last one has left for the PEs, where its sums stay until they are
    drained: a row whose slot is still to be drained waits. Later K tiles of a row have no row and mask words, only a
    START.

    Members:
        i: stream of words of ring ``reading``.
        reading, filled, go, turn, turn_ring: see :class:`~maskwork.rtl.lane_fifo.LaneFifo`.
        o: stream of tokens, registered.
        header: a START, row or mask word of the row that starts is at ``header_word`` (as the ``header_index``-th). The
            row's sums are in row ``reading``, ``header_upper`` of the accumulators.
        busy: per context, a row is in progress or (without ``psum_in_pe``) drains.
        release: per context, its row has been drained (with ``psum_in_pe``: has left for the PEs).
        owed: per row of the accumulators, it holds results that are still to be drained (``psum_in_pe``).
        final: per context, the row's K tile is its last (``psum_in_pe``).
        second: the lane is the second of two that share their weights (``weight_lanes``): its rows of a shared RUN meet
            the second half of them.
        in_row: a row is between START and END.
        waits: rows wait, but no context is free.
    """

    def __init__(self, config: Config):
        self._config = config
        contexts = config.rows_in_flight
        self.header_words = 2 + config.mask_words
        super().__init__(
            {
                "i": In(stream.Signature(word_width(config))),
                "reading": In(context_width(config)),
                "filled": In(contexts),
                "go": Out(1),
                "turn": Out(1),
                "turn_ring": Out(context_width(config)),
                "o": Out(stream.Signature(token_layout(config))),
                "header": Out(1),
                "header_word": Out(32),
                "header_index": Out(range(self.header_words)),
                "header_upper": Out(upper_width(config)),
                "busy": Out(contexts),
                "release": In(contexts),
                "owed": In(config.psum_rows if config.psum_in_pe else 0),
                "final": Out(contexts if config.psum_in_pe else 0),
                "in_row": Out(1),
                "waits": Out(1),
                **({"second": In(1)} if config.weight_lanes > 1 else {}),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Expander", self._config.hash)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        contexts = config.rows_in_flight
        word = self.i.payload
        head = data.View(chunk_layout(config), word[: chunk_layout(config).size])
        start = data.View(start_layout(config), word[: start_layout(config).size])
        values = [word[n * config.a_width :][: config.a_width] for n in range(config.fetch_width)]
        banks = Array([Signal(name=f"bank{n}") for n in range(contexts)])
        uppers = Array([Signal(upper_width(config), name=f"upper{n}") for n in range(contexts)])
        shares = Array([Signal(len(start.share), name=f"share{n}") for n in range(contexts)])
        rows = Signal(contexts)  # between START and END

        # first stage: index within the chunk, chunk's k and value; second stage: the token
        staged, staged_end, staged_bank = Signal(), Signal(), Signal()
        staged_index = Signal(range(CHUNK), reset_less=True)
        staged_k = Signal(config.k_width, reset_less=True)
        staged_a = Signal(signed(config.a_width), reset_less=True)
        staged_context = Signal(context_width(config))
        staged_upper = Signal(upper_width(config), reset_less=True)
        staged_share = Signal(len(start.share), reset_less=True)
        # whether the PEs have space must not reach the words' way from the FIFO in the same cycle: `room` comes from
        # registers. Without LUT RAM a queue would be too dear
        room, advances = Signal(), Signal()
        tokens = Queue(token_layout(config), 8, STAGED) if config.lut_ram else SkidBuffer(token_layout(config))
        submodule(m, "tokens", tokens, platform)
        if isinstance(tokens, Queue):
            m.d.comb += [room.eq(tokens.space), advances.eq(1)]
        else:
            m.d.comb += [room.eq(~staged | tokens.i.ready), advances.eq(room)]
        wiring.connect(m, tokens.o, wiring.flipped(self.o))
        token = tokens.i.payload
        k = Cat((staged_k + staged_index)[: config.k_width], staged_bank)
        m.d.comb += [
            tokens.i.valid.eq(staged),
            token.k.eq(own_rows(k, staged_share, self.second) if config.weight_lanes > 1 else k),
            token.a.eq(staged_a),
            token.end.eq(staged_end),
            token.context.eq(staged_context),
            token.upper.eq(staged_upper),
        ]

        chunk_k = Signal(config.k_width, reset_less=True)
        bits = Signal(CHUNK if "a" in config.skip else 0)
        index = Signal(range(CHUNK))
        more = Signal(range(CHUNK))
        # from registers, for they decide on the words' way: more == 0; that, or the last value of its word
        last_element, last_of_word = Signal(), Signal()
        if "a" in config.skip:
            index_of, bits_without = lowest_of_chunk(bits)
            m.d.comb += index.eq(index_of)
        value = Signal(range(config.fetch_width))
        load, ends = Signal(), Signal()
        with m.If(advances):
            m.d.sync += [
                staged.eq((load | ends) & room),
                staged_index.eq(index),
                staged_k.eq(chunk_k),
                staged_a.eq(Array(values)[value]),
                staged_end.eq(ends),
                staged_bank.eq(banks[self.reading]),
                staged_context.eq(self.reading),
                staged_upper.eq(uppers[self.reading]),
                staged_share.eq(shares[self.reading]),
            ]

        # a ring has its turn if its row goes on, or if a row waits and its context is free
        open_ = self.filled & (rows | ~self.busy)
        turn_ring = Signal(context_width(config))
        other_open = Signal()
        with m.Switch(self.reading):
            for n in range(contexts):
                with m.Case(n):
                    m.d.comb += turn_ring.eq(n)
                    for step in reversed(range(1, contexts)):
                        other = (n + step) % contexts
                        with m.If(open_[other]):
                            m.d.comb += [turn_ring.eq(other), other_open.eq(1)]
        # that choice is a cycle old, so that it is not on the words' way; it says nothing in the cycle after a turn or
        # after the end of a row
        leaves = Signal()
        others, some = Signal(), Signal()
        m.d.sync += self.turn_ring.eq(turn_ring)
        with m.If(self.turn | leaves):
            m.d.sync += [others.eq(0), some.eq(0)]
        with m.Else():
            m.d.sync += [others.eq(other_open), some.eq(other_open | open_.bit_select(self.reading, 1))]
        turn_left = Signal(range(TURN_CHUNKS))
        header_index = Signal(range(self.header_words))
        started = Signal(contexts)
        m.d.comb += [
            self.go.eq(1),
            self.header_word.eq(word[:32]),
            self.header_index.eq(header_index),
            self.header_upper.eq(uppers[self.reading]),
            self.in_row.eq(rows.any()),
        ]
        # a START whose slot holds results that are not drained has to wait; looked at in the cycle before
        slot_owed = Signal()
        if config.psum_in_pe:
            free = Signal()
            m.d.sync += free.eq(self.i.valid & (head.kind == WordKind.START) & ~self.owed.bit_select(start.slot, 1))
            m.d.comb += slot_owed.eq((head.kind == WordKind.START) & start.first & ~free)
        m.d.sync += self.busy.eq((self.busy | started) & ~self.release)

        with m.FSM():
            with m.State("SELECT"):
                # the word after an END must not leave its ring before its context is free
                m.d.comb += [self.go.eq(0), self.waits.eq(self.filled.any())]
                with m.If(some):
                    m.d.comb += self.turn.eq(1)
                    m.d.sync += turn_left.eq(TURN_CHUNKS - 1)
                    m.next = "HEAD"
            with m.State("HEAD"):
                m.d.comb += [
                    self.i.ready.eq(room & ~slot_owed),
                    self.go.eq(~self.i.valid | (head.kind != WordKind.END)),
                ]
                with m.If(self.i.valid & self.i.ready):
                    with m.Switch(head.kind):
                        with m.Case(WordKind.START):
                            m.d.comb += [
                                self.header.eq(1),
                                self.header_upper.eq(start.slot[context_width(config) :]),
                                started.eq(1 << self.reading),
                            ]
                            m.d.sync += [
                                header_index.eq(1),
                                rows.bit_select(self.reading, 1).eq(1),
                                banks[self.reading].eq(start.bank),
                                uppers[self.reading].eq(start.slot[context_width(config) :]),
                                shares[self.reading].eq(start.share),
                            ]
                            m.next = "HEADER"
                            if config.psum_in_pe:
                                m.d.sync += self.final.bit_select(self.reading, 1).eq(start.final)
                                with m.If(~start.first):
                                    m.d.sync += header_index.eq(0)
                                    m.next = "HEAD"
                        with m.Case(WordKind.END):
                            m.d.comb += [ends.eq(1), leaves.eq(1)]
                            m.d.sync += rows.bit_select(self.reading, 1).eq(0)
                            m.next = "SELECT"
                        with m.Default():
                            m.d.sync += [
                                chunk_k.eq(head.k),
                                bits.eq(head.bitmap),
                                more.eq(head.more),
                                last_element.eq(head.more == 0),
                                last_of_word.eq(head.more == 0),
                            ]
                            if "a" not in config.skip:
                                m.d.sync += index.eq(0)
                            m.next = "VALUES"
                with m.Elif(~self.i.valid & ~self.filled.bit_select(self.reading, 1) & others):
                    m.d.comb += self.turn.eq(1)
            with m.State("HEADER"):
                m.d.comb += [self.i.ready.eq(1), self.header.eq(self.i.valid)]
                with m.If(self.i.valid):
                    m.d.sync += header_index.eq(header_index + 1)
                    with m.If(header_index == self.header_words - 1):
                        m.d.sync += header_index.eq(0)
                        m.next = "HEAD"
            with m.State("VALUES"):
                m.d.comb += [load.eq(self.i.valid), self.i.ready.eq(room & last_of_word)]
                with m.If(self.i.valid & room):
                    m.d.sync += [
                        value.eq(value + 1),
                        more.eq(more - 1),
                        last_element.eq(more == 1),
                        last_of_word.eq((more == 1) | (value == config.fetch_width - 2)),
                    ]
                    if "a" in config.skip:
                        m.d.sync += bits.eq(bits_without)
                    else:
                        m.d.sync += index.eq(index + 1)
                    with m.If(last_element):
                        m.d.sync += [value.eq(0), turn_left.eq(turn_left - 1)]
                        m.next = "HEAD"
                        with m.If((turn_left == 0) & others):
                            m.d.comb += self.turn.eq(1)
        return m


def lowest_of_chunk(bits: Value) -> tuple[Value, Value]:
    """Index of a chunk's lowest set bit, and the chunk without it; nibble first."""
    nibbles = [bits.word_select(n, 4) for n in range(CHUNK // 4)]
    flags = Cat(nibble.any() for nibble in nibbles)
    which = lowest(flags)
    chosen = bits.word_select(which, 4)
    cleared = chosen & (chosen - 1)[:4]
    without = Cat(Mux(which == n, cleared, nibble) for n, nibble in enumerate(nibbles))
    return Cat(lowest(chosen), which), without
