"""Loader of streamed operands: segments become chunk records."""

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import CHUNK, Config
from maskwork.rtl.gearbox import Gearbox, sum_bits
from maskwork.rtl.layouts import a_write_layout, clog2, record_layout
from maskwork.rtl.load_common import beats_for, part_members


class LoadA(wiring.Component):
    """For each segment: bitmap beats (unless dense), then for each chunk that is not empty its head and value words.

    A cycle for every chunk's head (or for passing an empty chunk), one for each value word once its values are there.

    Members:
        hold: the values of the beat at the input (or of the whole dense segment) are announced.
        count, values, take: the gearbox.
        write: to the activation buffers.
        others: see :func:`~maskwork.rtl.load_common.part_members`.
    """

    def __init__(self, config: Config, gearbox: Gearbox):
        self._config = config
        super().__init__(
            {
                **part_members(config),
                "hold": Out(1),
                "count": In(gearbox.count.shape()),
                "values": In(gearbox.values.shape()),
                "take": Out(gearbox.take.shape()),
                "write": Out(a_write_layout(config)),
            }
        )

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
        segments = Signal.like(load.count)
        beat_number = Signal(range(beats))
        chunk = Signal(range(max(2, config.k_depth // CHUNK)))  # the chunk that comes next
        last_chunk = Signal.like(chunk)
        bits = Signal(CHUNK)  # the chunk at hand
        elements = Signal(range(CHUNK + 1))
        at = Signal.like(chunk)
        is_last = Signal()
        word_left = Signal(range(CHUNK + 1))  # values of the chunk that are not written
        step = Signal(range(config.fetch_width + 1))
        following = Signal(CHUNK)
        tail = Signal(CHUNK)
        m.d.sync += [
            last_chunk.eq((load.length - 1)[clog2(CHUNK) :]),
            # as many ones as the last chunk has elements (a table: comparators cost more)
            tail.eq(Const((1 << CHUNK) - 1, CHUNK) >> (-load.length)[:4]),
        ]
        m.d.comb += [
            bitmap_write.addr.eq(beat_number),
            bitmap_write.data.eq(self.beat),
            bitmap_read.addr.eq(chunk[clog2(beat_chunks) :]),
            following.eq(
                Mux(
                    load.dense,
                    Mux(chunk == last_chunk, tail, ~0),
                    bitmap_read.data.word_select(chunk[: clog2(beat_chunks)], CHUNK),
                )
            ),
            elements.eq(sum_bits(bits)),
            step.eq(Mux(word_left > config.fetch_width, config.fetch_width, word_left)),
            self.write.bank.eq(load.bank),
            self.write.append.eq(load.append),
        ]
        head = Signal(record_layout(config))
        m.d.comb += [
            head.bitmap.eq(bits),
            head.more.eq(elements - 1),
            head.number.eq(at),
        ]
        values = Cat(self.values[n][: config.a_width] for n in range(config.fetch_width))
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [segments.eq(load.count - 1), beat_number.eq(0)]
                with m.If(self.start):
                    m.d.comb += self.write.start.eq(1)
                    m.next = "SEGMENT"
            with m.State("SEGMENT"):
                m.d.sync += chunk.eq(0)
                m.d.comb += self.hold.eq(1)
                with m.If(load.dense):
                    m.next = "FIRST"
                with m.Else():
                    m.d.comb += self.want.eq(1)
                    with m.If(self.beat_valid):
                        m.d.comb += bitmap_write.en.eq(1)
                        m.d.sync += beat_number.eq(beat_number + 1)
                        with m.If(beat_number == beats_for(config, load.length)):
                            m.d.sync += beat_number.eq(0)
                            m.next = "FIRST"
            with m.State("FIRST"):
                m.d.sync += [bits.eq(following), at.eq(0), chunk.eq(1), is_last.eq(last_chunk == 0)]
                m.next = "HEAD"
            with m.State("HEAD"):
                m.d.comb += [self.write.we.eq(bits.any()), self.write.word.eq(head.as_value())]
                # the next chunk's bits wait in their register while this chunk's values are written
                m.d.sync += [
                    word_left.eq(elements),
                    bits.eq(following),
                    at.eq(chunk),
                    chunk.eq(chunk + 1),
                    is_last.eq(chunk == last_chunk),
                ]
                with m.If(bits.any()):
                    m.next = "VALUES"
                    with m.If(is_last):
                        m.next = "LAST_VALUES"
                with m.Elif(is_last):
                    m.next = "END"
            for name, after in (("VALUES", "HEAD"), ("LAST_VALUES", "END")):
                with m.State(name):
                    m.d.comb += self.write.word.eq(values)
                    with m.If(self.count >= step):
                        m.d.comb += [self.write.we.eq(1), self.take.eq(step)]
                        m.d.sync += word_left.eq(word_left - step)
                        with m.If(word_left <= config.fetch_width):
                            m.next = after
            with m.State("END"):
                m.d.comb += self.write.end.eq(1)
                m.d.sync += segments.eq(segments - 1)
                m.next = "SEGMENT"
                with m.If(segments == 0):
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
        return m
