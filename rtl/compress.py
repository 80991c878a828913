"""Zero detection, packing and packet building: from the values of finished rows to RESULT packets."""

from typing import TYPE_CHECKING, Any

from amaranth import *
from amaranth.lib import data, enum, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.gen.isa import REPLIES, Reply
from maskwork.rtl.layouts import NO_CHECK
from maskwork.rtl.requantise import register
from maskwork.rtl.stream import beat_layout

__all__ = ["Compress", "CompressWord", "PostKind", "RowHeader", "header_beats"]

_GROUP = 8
"""Columns of the bitmap that share a clock enable."""


class PostKind(enum.IntEnum, shape=2):
    """What a word on the way to and through post-processing is."""

    START = 0
    VALUE = 1
    END = 2
    NONE = 3


RowHeader = data.StructLayout({"row": 16, "tag": 8, "lane": 8})
"""The ``value`` of a START word."""


def CompressWord(config: Config) -> data.StructLayout:
    """Input word of :class:`Compress`.

    ``value`` is a :data:`RowHeader` on START; on VALUE a raw sum, or a post-processed result in the low ``a_width``
    bits. ``post`` is valid on START and VALUE.
    """
    return data.StructLayout(
        {
            "kind": PostKind,
            "post": 1,
            "column": range(config.tile_columns),
            "value": signed(max(RowHeader.size, config.acc_width)),
        }
    )


def header_beats(config: Config) -> int:
    """Beats of a RESULT packet's header and bitmap, which follows the header's last word."""
    return -(-(REPLIES[Reply.RESULT].words + config.mask_words) // config.stream_words)


class Compress(wiring.Component):
    """Drops zeros, packs the other values of each row and emits a RESULT packet (see :mod:`maskwork.gen.isa`).

    Takes a word in every cycle. Latency: the first beat is offered ``header_beats`` + 5 cycles after END. A row's beats
    lie in one memory in the order in which they leave, so that packets leave without a gap: values are written behind
    a space that header and bitmap fill once the row has ended.

    Parameters
    ----------
    config
        The configuration.
    slack
        Words that may still arrive after ``room`` fell.

    Members
    -------
    i : In(CompressWord(config))
        A word in every cycle, NONE if there is none. START, VALUEs of rising column, END; at least ``gap`` NONEs
        follow an END and ``value_gap`` a VALUE without ``post``.
    room : Out(1)
        There is memory for what ``slack`` more words need.
    o : Out(stream of beats)
        Packets. The combinational path from ``o.ready`` ends in clock enables.
    empty : Out(1)
        No word is held and nothing is offered, words taken in the last two cycles aside.

    Attributes
    ----------
    header_beats : beats of header and bitmap.
    gap, value_gap : see ``i``.
    depth : beats of the memory, enough for two rows without a zero.
    """

    if TYPE_CHECKING:
        i: Any
        room: Signal
        o: Any
        empty: Signal

    def __init__(self, config: Config, slack: int = 4):
        self._config, self._slack = config, slack
        beat = config.beat_bits
        self._wide = config.acc_width > 32
        self._split = self._wide and config.stream_words == 1
        """A raw sum takes two beats."""
        self.header_beats = header_beats(config)
        self.gap = max(1, self.header_beats - 1)
        self.value_gap = 1 if self._split else 0
        # bit 31 of every word is bit 30: one bit less in memory, where 33 would take another block RAM
        self._extends = not config.post and beat == 32 and config.acc_width < 32 and config.tile_columns < 31
        row = self.header_beats + -(-config.tile_columns * (64 if self._wide else 32) // beat)
        margin = slack + self.header_beats + 6
        self.depth = 1 << (2 * row + margin - 1).bit_length()
        self._limit = self.depth - margin
        super().__init__(
            {
                "i": In(CompressWord(config)),
                "room": Out(1),
                "o": Out(stream.Signature(beat_layout(config))),
                "empty": Out(1),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Compress", self._config.hash, self._slack)

    def elaborate(self, platform):
        """Build packer, header chain, memory and emitter."""
        m = Module()
        config = self._config

        # zero detection
        value = register(signed(64 if self._wide else 32))
        column = register(range(config.tile_columns))
        post = register()
        start, take, end = Signal(), Signal(), Signal()
        low, high = self.i.value[: config.a_width], self.i.value[config.a_width :]
        m.d.sync += [
            value.eq(self.i.value),
            column.eq(self.i.column),
            post.eq(self.i.post if config.post else 0),
            start.eq(self.i.kind == PostKind.START),
            take.eq((self.i.kind == PostKind.VALUE) & (low.any() | (~self.i.post & high.any()))),
            end.eq(self.i.kind == PostKind.END),
        ]

        beat, held, flush = self._pack(m, start, take, post, value)
        head, heading = self._head(m, start, take, end, post, value, column)
        return self._store(m, start, end, beat, held, flush, head, heading)

    def _pack(self, m, start, take, post, value):
        """Beat of packed values: its bits, whether it holds any, and whether it must be written now."""
        config = self._config
        width, words = config.a_width, config.stream_words
        group = 64 if self._wide and not self._split else 32
        unit = 32 if config.post else group
        fields = config.values_per_word(width) if config.post else 1
        beat = register(config.beat_bits)
        held, flush, second = Signal(), Signal(), Signal()
        # one-hot position of the next value: in words (or what a raw sum takes, where there are no others), and within
        # a word
        in_beat = Signal(words * 32 // unit, init=1)
        in_word = Signal(fields, init=1)
        first = Signal()
        m.d.comb += [
            first.eq(in_beat[0] & (~post | in_word[0])),
            flush.eq((take & held & first) | second),
        ]
        word_is_done = ~post | in_word[-1]
        with m.If(take):
            m.d.sync += held.eq(1)
            with m.If(post):
                m.d.sync += in_word.eq(in_word.rotate_left(1))
            with m.If(word_is_done):
                m.d.sync += in_beat.eq(in_beat.rotate_left(1))
            if group != unit:
                with m.If(~post):
                    m.d.sync += in_beat.eq(in_beat.rotate_left(group // unit))
        with m.If(start):
            m.d.sync += [held.eq(0), in_beat.eq(1), in_word.eq(1)]

        if self._split:
            other = register(32)
            m.d.sync += second.eq(take & ~post if config.post else take)
            with m.If(take):
                m.d.sync += other.eq(value[32:])
            if not config.post:
                with m.If(take):
                    m.d.sync += beat.eq(value[:32])
                with m.If(second):
                    m.d.sync += beat.eq(other)
                return beat, held, flush

        for index in range(len(in_beat)):
            base = index * unit
            before = index % (group // unit)  # of a raw sum's words
            for number in range(fields + 1):
                # the last field is what no packed value uses
                begin = number * width if config.post else number * unit
                stop = min(begin + width, unit) if number < fields and config.post else unit
                if begin >= stop:
                    continue
                raw = value[before * unit :][begin:stop]
                packed = value[: stop - begin] if number < fields else C(0, stop - begin)
                enable = in_beat[index] & (~post | in_word[number]) if number < fields else in_beat[index]
                if before:
                    enable = Mux(post, enable, in_beat[index - before])
                with m.If(take & enable):
                    m.d.sync += beat[base + begin : base + stop].eq(Mux(post, packed, raw) if number or before else raw)
                with m.Elif(take & first):
                    m.d.sync += beat[base + begin : base + stop].eq(0)
        if self._split:
            with m.If(second):
                m.d.sync += beat.eq(other)
        return beat, held, flush

    def _head(self, m, start, take, end, post, value, column):
        """Header and bitmap, which shift down a beat at a time while ``heading`` counts their beats."""
        config = self._config
        bits, packet = config.beat_bits, REPLIES[Reply.RESULT]
        head = register(self.header_beats * bits)
        meta, bitmap = head[: 32 * packet.words], head[32 * packet.words :]
        heading = Signal(range(self.header_beats + 1))
        shifting = Signal()
        m.d.comb += shifting.eq(heading != 0)
        with m.If(end):
            m.d.sync += heading.eq(self.header_beats)
        with m.Elif(shifting):
            m.d.sync += heading.eq(heading - 1)

        def place(name):
            field = packet.field(name)
            return slice(32 * field.word + field.lsb, 32 * field.word + field.lsb + field.width)

        fields = data.View(RowHeader, value[: RowHeader.size])
        count = meta[place("values")][: config.tile_columns.bit_length()]
        if self.header_beats > 1:
            with m.If(shifting):
                m.d.sync += meta.eq(head[bits:])
        with m.If(take):
            m.d.sync += count.eq(count + 1)
        with m.If(start):
            m.d.sync += [
                meta.eq(packet.code),
                meta[place("tag")].eq(fields.tag),
                meta[place("lane")].eq(fields.lane),
                meta[place("post")].eq(post),
                meta[place("row")].eq(fields.row),
            ]

        size = min(_GROUP, config.tile_columns)
        low_bits = size.bit_length() - 1
        for group in range(config.tile_columns // size):
            part = bitmap[group * size : (group + 1) * size]
            later = bitmap[group * size + bits :][:size]
            chosen = take & (column[low_bits:] == group)
            marked = part | (1 << column[:low_bits])[:size]
            if len(later):
                with m.If(shifting | chosen):
                    m.d.sync += part.eq(Mux(shifting, later, marked))
            else:
                with m.If(chosen):
                    m.d.sync += part.eq(marked)
        with m.If(start):
            m.d.sync += bitmap.eq(0)
        return head, heading

    def _store(self, m, start, end, beat, held, flush, head, heading):
        """Memory between packer and stream."""
        config = self._config
        bits = config.beat_bits
        m.submodules.memory = ram = memory.Memory(
            shape=bits + (not self._extends), depth=self.depth, init=[], attrs=NO_CHECK
        )
        write, read = ram.write_port(), ram.read_port()

        def stored(word):
            return Cat(word[: bits - 1], word[bits]) if self._extends else word

        def restored(word):
            return Cat(word[: bits - 1], word[bits - 2], word[bits - 1]) if self._extends else word

        begin = Signal(range(self.depth))  # where the row's header goes next
        after = Signal(range(self.depth))  # where its next values go
        done = Signal(range(self.depth))  # end of the rows that may leave
        tail = Signal(range(self.depth))  # next beat to leave
        last_head, writes = Signal(), Signal()
        m.d.comb += [
            last_head.eq(heading == 1),
            writes.eq(flush | (end & held)),
            write.en.eq(writes | heading.any()),
            write.addr.eq(Mux(heading.any(), begin, after)),
            write.data.eq(stored(Mux(heading.any(), Cat(head[:bits], last_head & ~held), Cat(beat, end)))),
        ]
        with m.If(start):
            m.d.sync += [begin.eq(after), after.eq(after + self.header_beats)]
        with m.Else():
            m.d.sync += [begin.eq(begin + heading.any()), after.eq(after + writes)]
        with m.If(last_head):
            m.d.sync += done.eq(after)

        level = Signal(range(self.depth))
        m.d.sync += level.eq(after - tail)
        m.d.comb += self.room.eq(level < self._limit)

        # emitter: the memory's output register, then a register of the fabric
        moves, fetched = Signal(), Signal()
        leaving = register(bits + 1)
        m.d.comb += [
            moves.eq(~self.o.valid | self.o.ready),
            read.addr.eq(tail),
            read.en.eq(moves),
            Value.cast(self.o.payload).eq(leaving),
            self.empty.eq((after == tail) & ~fetched & ~self.o.valid),
        ]
        with m.If(moves):
            m.d.sync += [
                tail.eq(tail + (tail != done)),
                fetched.eq(tail != done),
                self.o.valid.eq(fetched),
                leaving.eq(restored(read.data)),
            ]
        return m
