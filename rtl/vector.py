"""Vector unit: pooling and residual addition with requantisation, one value a cycle."""

from itertools import pairwise

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import POST_MULT_WIDTH, Config
from maskwork.gen.isa import COMMANDS, MAX_WINDOW, Op, VectorKind
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.load_common import LoadEnd
from maskwork.rtl.multiplier import Multiplier
from maskwork.rtl.queue import Queue
from maskwork.rtl.requantise import LIMIT_WIDTH, SHIFT_WIDTH, register, saturate, shift_and_clamp
from maskwork.rtl.stream import beat_layout

SUM_STAGES = 4
"""Cycles from a value to its window's sum: operands, product, product put together, sum."""

LATENCY = SUM_STAGES + 6
"""Cycles from a window's last value to its output at the queue."""

DEPTH = 16
"""Outputs that the queue holds."""

_HALF = POST_MULT_WIDTH // 2


def vector_layout() -> data.StructLayout:
    """A VECTOR's fields, checked by the sequencer; ``largest``: the maximum is wanted, not the sum."""
    return data.StructLayout(
        {
            "window": range(MAX_WINDOW + 1),
            "count": 16,
            "largest": 1,
            "shift": SHIFT_WIDTH,
            "mult0": POST_MULT_WIDTH,
            "mult1": POST_MULT_WIDTH,
            "low": signed(LIMIT_WIDTH),
            "high": signed(LIMIT_WIDTH),
        }
    )


def vector_fields(header: list[Signal]) -> Value:
    """The fields, as :func:`vector_layout` has them, from a command's header words."""
    parts = []
    for name, shape in vector_layout().members.items():
        f = COMMANDS[Op.VECTOR].field("kind" if name == "largest" else name)
        value = header[f.word][f.lsb : f.lsb + f.width]
        parts.append(value == VectorKind.MAX if name == "largest" else value[: Shape.cast(shape).width])
    return Cat(parts)


class VectorUnit(wiring.Component):
    """Takes the payload of one VECTOR packet after the other and answers the reply's words behind its header.

    A value enters the pipeline every cycle while there is room for what it may become; nothing in the pipeline
    stalls. Of a payload that ends too early the windows that are complete are answered, then one output that is 0.

    Members:
        i: beats of the payload. ``i.ready`` depends on registers only.
        command, start: the packet's fields, stable until the reply has left, and its start (with ``ended``, the header
            was all).
        o: words of packed outputs; with the last one ``end`` says how the payload ended. After LONG, the rest of the
            packet is still at ``i``.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(beat_layout(config))),
                "command": In(vector_layout()),
                "start": In(1),
                "ended": In(1),
                "o": Out(stream.Signature(data.StructLayout({"word": 32, "last": 1}))),
                "end": Out(LoadEnd),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        config = self._config
        return ("VectorUnit", config.a_width, config.stream_words, config.lut_ram)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        layout = data.StructLayout({"value": config.a_width, "last": 1, "missing": 1})
        queue = Queue(layout, DEPTH, LATENCY + 2, block=not config.lut_ram)
        submodule(m, "queue", queue, platform)
        value, factor, token = self._unpack(m, queue.space)
        result, flags = self._compute(m, value, factor, token, platform)
        m.d.comb += [
            queue.i.valid.eq(flags.valid),
            queue.i.payload.eq(Cat(result, flags.last, flags.missing)),
        ]
        self._pack(m, queue.o)
        return m

    def _unpack(self, m, room):
        """One value of the payload after the other, its multiplier, and what it is within its window."""
        config, command = self._config, self.command
        words, width, per_word = config.stream_words, config.a_width, config.values_per_word(config.a_width)
        active, short, trailing = Signal(), Signal(), Signal()
        ended = Signal()  # the packet's last beat was taken
        position = Signal(range(max(2, words)))  # of the word in its beat
        word = Signal(per_word * width, reset_less=True)
        held = Signal(range(per_word + 1))  # values in it
        # both count from 2: one ahead, and from 1, so that registers say what is the last
        index, number = Signal.like(command.window), Signal.like(command.count)
        closes, final = Signal(), Signal()  # the window's last value, the last window
        first, odd = Signal(), Signal()
        single = Signal()  # windows of one value; known in time, for the header waits for its check
        issue, lacks = Signal(), Signal()  # a value enters; the first that is missing does
        wants, takes, beat_ends = Signal(), Signal(), Signal()
        token = Signal(_token())
        m.d.comb += [
            beat_ends.eq(position == words - 1),
            lacks.eq(active & (held == 0) & ended & room),
            issue.eq(active & (held != 0) & room),
            wants.eq(active & ~ended & ((held == 0) | ((held == 1) & room & ~(closes & final)))),
            takes.eq(wants & self.i.valid),
            # behind the last value the rest of its beat is taken
            self.i.ready.eq((wants & beat_ends) | (trailing & (position != 0))),
            token.valid.eq(issue),
            token.first.eq(first),
            token.closes.eq((issue & closes) | lacks),
            token.last.eq((closes & final) | lacks),
            token.missing.eq(lacks),
        ]
        m.d.sync += [trailing.eq(issue & closes & final), single.eq(command.window == 1)]
        with m.If(issue):
            m.d.sync += [
                word.eq(word >> width),
                held.eq(held - 1),
                first.eq(closes),
                odd.eq(~odd & ~closes),
                index.eq(index + 1),
                closes.eq(index == command.window),
            ]
            with m.If(closes):
                m.d.sync += [
                    index.eq(2),
                    closes.eq(single),
                    number.eq(number + 1),
                    final.eq(number == command.count),
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
                held.eq(0),
                index.eq(2),
                closes.eq(single),
                number.eq(2),
                final.eq(command.count == 1),
                first.eq(1),
                odd.eq(0),
            ]
        m.d.comb += self.end.eq(Mux(short, LoadEnd.SHORT, Mux(ended, LoadEnd.GOOD, LoadEnd.LONG)))
        return word[:width].as_signed(), Mux(odd, command.mult1, command.mult0), token

    def _compute(self, m, value, factor, token, platform):
        """Outputs, and their flags, LATENCY cycles after their windows' last values."""
        width, command = self._config.a_width, self.command
        halves = [Multiplier(width, _HALF + 1) for _ in range(2)]
        for half, name in zip(halves, ("multiply_low", "multiply_high"), strict=True):
            submodule(m, name, half, platform)
            m.d.comb += half.a.eq(value)
        low, high = halves
        m.d.comb += [low.b.eq(factor[:_HALF]), high.b.eq(factor[_HALF:])]
        product = register(signed(width + POST_MULT_WIDTH), name="product")
        total = register(signed(len(product) + (MAX_WINDOW - 1).bit_length()), name="total")
        m.d.sync += product.eq((high.product << _HALF) + low.product)
        tokens = [token, *(Signal(_token(), name=f"token_{n + 1}") for n in range(LATENCY))]
        for sooner, later in pairwise(tokens):
            m.d.sync += later.eq(sooner)
        arrived = tokens[SUM_STAGES - 1]
        # in a window's maximum the upper bits are only the sign
        larger = (total[: len(product)].as_signed() - product)[-1]
        with m.If(arrived.valid & (arrived.first | ~command.largest | larger)):
            m.d.sync += total.eq(Mux(arrived.first | command.largest, product, total + product))

        # the limits come from the header: registers keep their comparison off the way
        limits = [register(signed(width), name=name) for name in ("low", "high")]
        inverted = register(name="inverted")
        m.d.sync += [
            limits[0].eq(saturate(command.low, width)),
            limits[1].eq(saturate(command.high, width)),
            inverted.eq(limits[0] > limits[1]),
        ]
        result = shift_and_clamp(m, total, command.shift, width, limits[0], limits[1], inverted)
        done = tokens[LATENCY]
        flags = data.View(_flags(), Cat(done.closes, done.last, done.missing))
        return result, flags

    def _pack(self, m, outputs):
        """Outputs to words."""
        width, per_word = self._config.a_width, self._config.values_per_word(self._config.a_width)
        fields = [Signal(width, name=f"field_{n}", reset_less=True) for n in range(per_word)]
        at = Signal(range(max(2, per_word)))
        full, last = Signal(), Signal()
        takes, ends = Signal(), Signal()
        m.d.comb += [
            outputs.ready.eq(~full | self.o.ready),
            takes.eq(outputs.valid & outputs.ready),
            ends.eq((at == per_word - 1) | outputs.payload.last),
            self.o.valid.eq(full),
            self.o.payload.word.eq(Cat(fields)),
            self.o.payload.last.eq(last),
        ]
        with m.If(takes):
            m.d.sync += [full.eq(ends), last.eq(outputs.payload.last), at.eq(Mux(ends, 0, at + 1))]
            for n, field in enumerate(fields):
                with m.If((at == n) | (at == 0)):  # a word's first output clears the others
                    m.d.sync += field.eq(Mux((at == n) & ~outputs.payload.missing, outputs.payload.value, 0))
        with m.Elif(self.o.ready):
            m.d.sync += full.eq(0)


def _token() -> data.StructLayout:
    """What goes along with a value."""
    return data.StructLayout({"valid": 1, "first": 1, "closes": 1, "last": 1, "missing": 1})


def _flags() -> data.StructLayout:
    """What goes along with an output."""
    return data.StructLayout({"valid": 1, "last": 1, "missing": 1})
