"""Loader of streamed operands: segments become chunk records."""

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import Out
from maskwork.gen.config import CHUNK, Config
from maskwork.rtl.gearbox import Gearbox, sum_bits
from maskwork.rtl.layouts import a_write_layout, clog2, record_layout
from maskwork.rtl.load_common import beats_for, bitmap_members


class LoadA(wiring.Component):
    """For each segment: bitmap beats (unless dense), then for each chunk that is not empty its head and value words.

    A cycle for every word, once its values are there; empty chunks are passed, one a cycle, while words are written. A
    segment ends with its last word, or, if empty chunks follow that were not all passed by then, in a cycle of its own.
    Bitmap beats are taken meanwhile and wait in a queue.

    Members:
        write: to the activation buffers.
        others: see :func:`~maskwork.rtl.load_common.part_members` and
            :func:`~maskwork.rtl.load_common.bitmap_members`.
    """

    def __init__(self, config: Config, gearbox: Gearbox):
        self._config = config
        super().__init__({**bitmap_members(config, gearbox), "write": Out(a_write_layout(config))})

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("LoadA", self._config.hash)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        load = self.load
        beat_chunks = config.beat_bits // CHUNK
        beats = max(2, -(-config.k_depth // config.beat_bits))
        m.submodules.bitmaps = bitmaps = memory.Memory(shape=config.beat_bits, depth=beats, init=[])
        bitmap_write, bitmap_read = bitmaps.write_port(), bitmaps.read_port(domain="comb")
        come, segments = Signal.like(load.count), Signal.like(load.count)  # bitmaps, written segments to come
        beat_number = Signal(range(beats))
        written, read = Signal(range(2 * beats)), Signal(range(2 * beats))  # beats, modulo twice the queue's
        waits, space = Signal(), Signal()
        chunk = Signal(range(max(2, config.k_depth // CHUNK)))  # the chunk that is looked at
        last_chunk = Signal.like(chunk)
        at_last = Signal()
        following = Signal(CHUNK)
        tail = Signal(CHUNK)
        # the chunk that comes next: not empty, or its segment's last
        held, is_last = Signal(), Signal()
        vacant = Signal()  # it has no values
        bits = Signal(CHUNK)
        at = Signal.like(chunk)
        more = Signal(range(CHUNK))  # values of the chunk before that are not written, after the first
        ends = Signal()  # with that chunk, its segment
        word_bits = (config.fetch_width - 1).bit_length()
        last_word = Signal()
        need = Signal.like(self.need)  # in this cycle
        fewer, first_more = Signal.like(more), Signal.like(more)  # after a word; when the chunk begins
        ahead = config.hop_stages > 0  # where time is short, a chunk's values are counted before its register

        def step_of(more):
            """Values of the next word, of so many and one: a function of four bits."""
            return Mux(more[word_bits:] == 0, more[:word_bits] + 1, config.fetch_width)

        taken = Signal()
        m.d.sync += [
            last_chunk.eq((load.length - 1)[clog2(CHUNK) :]),
            # as many ones as the last chunk has elements (a table: comparators cost more)
            tail.eq(Const((1 << CHUNK) - 1, CHUNK) >> (-load.length)[:4]),
        ]
        m.d.comb += [
            waits.eq(written != read),
            space.eq(written ^ read != beats),
            bitmap_write.addr.eq(written[:-1]),
            bitmap_write.data.eq(self.beat),
            bitmap_read.addr.eq(read[:-1]),
            at_last.eq(chunk == last_chunk),
            following.eq(
                Mux(
                    load.dense,
                    Mux(at_last, tail, ~0),
                    bitmap_read.data.word_select(chunk[: clog2(beat_chunks)], CHUNK),
                )
            ),
            last_word.eq(more[word_bits:] == 0),
            fewer.eq(Cat(more[:word_bits], more[word_bits:] - 1)),
            *([] if ahead else [first_more.eq(sum_bits(bits) - 1)]),
            self.write.bank.eq(load.bank),
            self.write.append.eq(load.append),
            self.need.eq(need),
        ]
        m.d.sync += need.eq(self.need)
        with m.If(~held | taken):
            m.d.sync += [
                bits.eq(following),
                *([first_more.eq(sum_bits(following) - 1)] if ahead else []),
                vacant.eq(~following.any()),
                at.eq(chunk),
                is_last.eq(at_last),
                held.eq(waits & (following.any() | at_last)),
            ]
            with m.If(waits):
                m.d.sync += chunk.eq(Mux(at_last, 0, chunk + 1))
                with m.If(at_last | chunk[: clog2(beat_chunks)].all()):
                    m.d.sync += read.eq(read + 1)
        head = Signal(record_layout(config))
        m.d.comb += [
            head.bitmap.eq(bits),
            head.more.eq(first_more),
            head.number.eq(at),
        ]
        values = Cat(self.values[n][: config.a_width] for n in range(config.fetch_width))

        # bitmaps; a dense segment's are made up, at the same pace
        put, begun = Signal(), Signal()
        m.d.comb += [
            self.inside.eq(begun & ~load.dense),
            self.want.eq(~load.dense & put),
            bitmap_write.en.eq(put & (load.dense | self.beat_valid)),
        ]
        with m.If(bitmap_write.en):
            m.d.sync += [written.eq(written + 1), beat_number.eq(beat_number + 1), begun.eq(1)]
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [come.eq(load.count - 1), beat_number.eq(0), begun.eq(0)]
                with m.If(self.start):
                    m.next = "BITMAP"
            with m.State("BITMAP"):
                m.d.comb += [
                    put.eq(space & (begun | Mux(load.dense, self.room, self.free))),
                    # the same as `put`, but for the way from `free`
                    self.announce.eq(load.dense & space & self.room & ~begun),
                ]
                with m.If(bitmap_write.en & (beat_number == beats_for(config, load.length))):
                    m.d.sync += [beat_number.eq(0), begun.eq(0), come.eq(come - 1)]
                    with m.If(come == 0):
                        m.next = "IDLE"

        segment_ends = Signal()
        m.d.comb += [self.write.end.eq(segment_ends), self.done.eq(segment_ends & (segments == 0))]
        with m.If(segment_ends):
            m.d.sync += segments.eq(segments - 1)
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [segments.eq(load.count - 1), chunk.eq(0), written.eq(0), read.eq(0), held.eq(0)]
                with m.If(self.start):
                    m.d.comb += self.write.start.eq(1)
                    m.next = "HEAD"
            with m.State("HEAD"):
                m.d.comb += [
                    taken.eq(1),
                    self.write.word.eq(head.as_value()),
                    self.empty.eq(~held & ~waits & ~begun),
                ]
                m.d.comb += self.need.eq(0)
                m.d.sync += [more.eq(first_more), ends.eq(is_last)]
                with m.If(held & ~vacant):
                    m.d.comb += [self.write.we.eq(1), self.need.eq(step_of(first_more))]
                    m.next = "VALUES"
                with m.Elif(held):
                    m.d.comb += segment_ends.eq(1)
                    with m.If(segments == 0):
                        m.next = "IDLE"
            with m.State("VALUES"):
                m.d.comb += self.write.word.eq(values)
                with m.If(self.given):
                    m.d.comb += [self.write.we.eq(1), self.need.eq(step_of(fewer))]
                    m.d.sync += more.eq(fewer)
                    with m.If(last_word):
                        # the segment ends with them, or with a last chunk without values, if that waits already
                        m.d.comb += [
                            taken.eq(~ends & held & vacant),
                            segment_ends.eq(ends | (held & vacant)),
                            self.need.eq(0),
                        ]
                        m.next = "HEAD"
                        with m.If((segments == 0) & segment_ends):
                            m.next = "IDLE"
        return m
