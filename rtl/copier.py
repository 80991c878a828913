"""Copier: sends the words and segments that fetch lists from the activation buffer to the lanes."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import CHUNK, Config
from maskwork.rtl.fetch import item_layout, segment_layout
from maskwork.rtl.layouts import WordKind, chunk_layout, clog2, record_layout, record_width, word_width
from maskwork.rtl.pe import context_width

COPY_LATENCY = 4
"""Cycles from an item, or a word's address, to the word at the lanes: the words that may follow a lane's `space`."""


class Copier(wiring.Component):
    """One word a cycle; chunk heads get their k on the way.

    Members:
        i: items.
        address, word: the activation buffer, its data 2 cycles later.
        o: the word, registered; ``lanes`` says which lanes take it, ``ring`` into which ring.
        space: per ring of each lane (rings side by side), it takes what may be under way and one more word.
        busy: words are under way.
        coming: per activation bank, one cycle: an item with a segment of it was queued for the copier.
        copying: per activation bank, such segments are not yet read completely.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(item_layout(config))),
                "address": Out(clog2(config.a_depth) + 1),
                "word": In(record_width(config)),
                "o": Out(
                    data.StructLayout(
                        {
                            "lanes": config.lanes_per_cluster,
                            "ring": context_width(config),
                            "word": word_width(config),
                        }
                    )
                ),
                "space": In(config.lanes_per_cluster * config.rows_in_flight),
                "busy": Out(1),
                "coming": In(2),
                "copying": Out(2),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Copier", self._config.hash)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        width = word_width(config)
        item = self.i.payload
        segment = data.View(segment_layout(config), item.body[: segment_layout(config).size])

        # the item in progress; a segment's address and number of words left move on
        held = Signal()
        current = Signal(item_layout(config), reset_less=True)
        address = Signal(clog2(config.a_depth) + 1, reset_less=True)
        left = Signal.like(segment.words, reset_less=True)
        k = Signal(config.k_width, reset_less=True)
        fires, ends = Signal(), Signal()
        count = config.rows_in_flight
        rings = [Cat(self.space[n::count]) for n in range(count)]  # by ring, then lane
        m.d.comb += [
            fires.eq(held & ((~current.lanes) | Array(rings)[current.ring]).all()),
            ends.eq(current.raw | (left == 1)),
            self.i.ready.eq(~held | (fires & ends)),
            self.address.eq(address),
        ]
        with m.If(self.i.ready):
            m.d.sync += [
                held.eq(self.i.valid),
                current.eq(item),
                address.eq(segment.start),
                left.eq(segment.words),
                k.eq(segment.k),
            ]
        with m.Elif(fires):
            m.d.sync += [address.eq(address + 1), left.eq(left - 1)]

        # two stages beside the memory and its register, a third for the word that goes out
        stages = []
        lanes = Mux(fires, current.lanes, 0)
        raw, body, ring = current.raw, current.body[:width], current.ring
        for stage in range(2):
            after = (
                Signal(config.lanes_per_cluster, name=f"lanes{stage}"),
                Signal(name=f"raw{stage}", reset_less=True),
                Signal(width, name=f"body{stage}", reset_less=True),
                Signal(config.k_width, name=f"k{stage}", reset_less=True),
                Signal(context_width(config), name=f"ring{stage}", reset_less=True),
            )
            m.d.sync += [b.eq(a) for a, b in zip((lanes, raw, body, k, ring), after, strict=True)]
            lanes, raw, body, k, ring = after
            stages.append(lanes)
        values_left = Signal(range(CHUNK // config.fetch_width + 1))
        head, given = Signal(chunk_layout(config)), Signal(record_layout(config))
        m.d.comb += [
            given.eq(self.word[: record_layout(config).size]),
            head.bitmap.eq(given.bitmap),
            head.more.eq(given.more),
            head.k.eq((k + given.number * CHUNK)[: config.k_width]),
            head.kind.eq(WordKind.CHUNK),
        ]
        m.d.sync += [self.o.lanes.eq(lanes), self.o.ring.eq(ring)]
        with m.If(raw):
            m.d.sync += self.o.word.eq(body)
        with m.Elif(values_left == 0):
            m.d.sync += self.o.word.eq(head.as_value())
            with m.If(lanes.any()):
                m.d.sync += values_left.eq((given.more >> (config.fetch_width - 1).bit_length()) + 1)
        with m.Else():
            m.d.sync += self.o.word.eq(self.word)
            with m.If(lanes.any()):
                m.d.sync += values_left.eq(values_left - 1)
        for bank in range(2):
            segments = Signal(range(32), name=f"segments{bank}")  # the queue's 16, and a few on both sides of it
            leaves = fires & ends & ~current.raw & (address[-1] == bank)
            m.d.sync += segments.eq(segments + self.coming[bank] - leaves)
            m.d.comb += self.copying[bank].eq(segments != 0)
        m.d.comb += self.busy.eq(held | Cat(stages).any() | self.o.lanes.any())
        return m
