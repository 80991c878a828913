"""Packed values of a payload, one a cycle, and values packed into words again: what the stream units share."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.rtl.load_common import LoadEnd
from maskwork.rtl.stream import beat_layout


def token_layout() -> data.StructLayout:
    """What goes along with a value: it is there, the first or the last of its group, of the last group, or made up."""
    return data.StructLayout({"valid": 1, "first": 1, "closes": 1, "last": 1, "missing": 1})


def words_signature():
    """Words of a reply, the last of them marked."""
    return stream.Signature(data.StructLayout({"word": 32, "last": 1}))


class Unpack(wiring.Component):
    """``count`` groups of ``length`` packed values, one value a cycle while there is ``room``.

    Of a payload that ends too early the values that came are given, then ``missing`` in place of the first that did
    not, with ``closes`` and ``last`` (and not ``valid``); ``value`` is then 0.

    Args:
        config: a_width, stream_words.
        length: shape of ``length``.

    Members:
        i: beats of the payload. ``i.ready`` depends on registers only.
        start, ended: a payload begins (with ``ended``, the header was all).
        length, count: of groups and values, 1 or more, stable two cycles before ``start`` and until the end.
        payload: there is one; without, values are 0 and nothing is taken from ``i``.
        room: a value may be given in this cycle.
        value, token: the value.
        end: how the payload ended, once ``token.last`` was given and two cycles have passed. After LONG, the rest of
            the packet is still at ``i``.
    """

    def __init__(self, config: Config, length=16):
        self._config, self._length = config, length
        super().__init__(
            {
                "i": In(stream.Signature(beat_layout(config))),
                "start": In(1),
                "ended": In(1),
                "length": In(length),
                "count": In(16),
                "payload": In(1),
                "room": In(1),
                "value": Out(signed(config.a_width)),
                "token": Out(token_layout()),
                "end": Out(LoadEnd),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Unpack", self._config.a_width, self._config.stream_words, repr(self._length))

    def elaborate(self, platform):
        m = Module()
        config, token = self._config, self.token
        words, width, per_word = config.stream_words, config.a_width, config.values_per_word(config.a_width)
        active, short, trailing = Signal(), Signal(), Signal()
        ended = Signal()  # the packet's last beat was taken
        position = Signal(range(max(2, words)))  # of the word in its beat
        word = Signal(per_word * width, reset_less=True)
        held = Signal(range(per_word + 1))  # values in it
        # both count from 2: one ahead, and from 1, so that registers say what is the last
        index, number = Signal.like(self.length), Signal.like(self.count)
        closes, final = Signal(), Signal()  # the group's last value, the last group
        first = Signal()
        single = Signal()  # groups of one value; known in time, for the header waits for its check
        issue, lacks = Signal(), Signal()  # a value is given; the first that is missing is
        wants, takes, beat_ends = Signal(), Signal(), Signal()
        m.d.comb += [
            beat_ends.eq(position == words - 1),
            lacks.eq(active & self.payload & (held == 0) & ended & self.room),
            issue.eq(active & ((held != 0) | ~self.payload) & self.room),
            wants.eq(active & self.payload & ~ended & ((held == 0) | ((held == 1) & self.room & ~(closes & final)))),
            takes.eq(wants & self.i.valid),
            # behind the last value the rest of its beat is taken
            self.i.ready.eq((wants & beat_ends) | (trailing & (position != 0))),
            token.valid.eq(issue),
            token.first.eq(first),
            token.closes.eq((issue & closes) | lacks),
            token.last.eq((closes & final) | lacks),
            token.missing.eq(lacks),
            self.value.eq(word[:width]),
        ]
        m.d.sync += [trailing.eq(issue & closes & final), single.eq(self.length == 1)]
        with m.If(issue):
            m.d.sync += [
                word.eq(word >> width),
                held.eq(held - 1),
                first.eq(closes),
                index.eq(index + 1),
                closes.eq(index == self.length),
            ]
            with m.If(closes):
                m.d.sync += [
                    index.eq(2),
                    closes.eq(single),
                    number.eq(number + 1),
                    final.eq(number == self.count),
                ]
            with m.If(closes & final):
                m.d.sync += active.eq(0)
        with m.If(lacks):
            m.d.sync += [active.eq(0), short.eq(1)]
        with m.If(takes):
            m.d.sync += [
                word.eq(self.i.payload.data.word_select(position[: (words - 1).bit_length()], 32)),
                held.eq(per_word),
                position.eq(Mux(beat_ends, 0, position + 1)),
            ]
        with m.If((takes & beat_ends) | (trailing & (position != 0))):
            m.d.sync += ended.eq(self.i.payload.last)
        with m.If(self.start):
            m.d.sync += [
                active.eq(1),
                short.eq(0),
                ended.eq(self.ended),
                position.eq(0),
                word.eq(0),
                held.eq(0),
                index.eq(2),
                closes.eq(single),
                number.eq(2),
                final.eq(self.count == 1),
                first.eq(1),
            ]
        m.d.comb += self.end.eq(Mux(short, LoadEnd.SHORT, Mux(ended, LoadEnd.GOOD, LoadEnd.LONG)))
        return m


class Pack(wiring.Component):
    """Values to words, without gaps; the last word is padded with zeros. Latency 1 cycle, one value a cycle.

    Members:
        i: values; one that is ``missing`` is packed as 0.
        o: words.
    """

    def __init__(self, config: Config):
        self._config = config
        value = data.StructLayout({"value": config.a_width, "last": 1, "missing": 1})
        super().__init__({"i": In(stream.Signature(value)), "o": Out(words_signature())})

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Pack", self._config.a_width)

    def elaborate(self, platform):
        m = Module()
        width, per_word = self._config.a_width, self._config.values_per_word(self._config.a_width)
        fields = [Signal(width, name=f"field_{n}", reset_less=True) for n in range(per_word)]
        at = Signal(range(max(2, per_word)))
        full, last = Signal(), Signal()
        takes, ends = Signal(), Signal()
        m.d.comb += [
            self.i.ready.eq(~full | self.o.ready),
            takes.eq(self.i.valid & self.i.ready),
            ends.eq((at == per_word - 1) | self.i.payload.last),
            self.o.valid.eq(full),
            self.o.payload.word.eq(Cat(fields)),
            self.o.payload.last.eq(last),
        ]
        with m.If(takes):
            m.d.sync += [full.eq(ends), last.eq(self.i.payload.last), at.eq(Mux(ends, 0, at + 1))]
            for n, field in enumerate(fields):
                with m.If((at == n) | (at == 0)):  # a word's first value clears the others
                    m.d.sync += field.eq(Mux((at == n) & ~self.i.payload.missing, self.i.payload.value, 0))
        with m.Elif(self.o.ready):
            m.d.sync += full.eq(0)
        return m
