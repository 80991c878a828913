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
from maskwork.rtl.values import Pack, Unpack, token_layout, words_signature

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
                "o": Out(words_signature()),
                "end": Out(LoadEnd),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        config = self._config
        return ("VectorUnit", config.a_width, config.stream_words, config.lut_ram)

    def elaborate(self, platform):
        m = Module()
        config, command = self._config, self.command
        layout = data.StructLayout({"value": config.a_width, "last": 1, "missing": 1})
        queue = Queue(layout, DEPTH, LATENCY + 2, block=not config.lut_ram)
        submodule(m, "queue", queue, platform)
        submodule(m, "unpack", unpack := Unpack(config, command.window.shape()), platform)
        submodule(m, "pack", pack := Pack(config), platform)
        wiring.connect(m, wiring.flipped(self.i), unpack.i)
        wiring.connect(m, queue.o, pack.i)
        wiring.connect(m, pack.o, wiring.flipped(self.o))
        token, odd = unpack.token, Signal()
        m.d.comb += [
            unpack.start.eq(self.start),
            unpack.ended.eq(self.ended),
            unpack.length.eq(command.window),
            unpack.count.eq(command.count),
            unpack.payload.eq(1),
            unpack.room.eq(queue.space),
            self.end.eq(unpack.end),
        ]
        with m.If(token.valid):
            m.d.sync += odd.eq(~odd & ~token.closes)
        with m.If(self.start):
            m.d.sync += odd.eq(0)
        result, flags = self._compute(m, unpack.value, Mux(odd, command.mult1, command.mult0), token, platform)
        m.d.comb += [
            queue.i.valid.eq(flags.valid),
            queue.i.payload.eq(Cat(result, flags.last, flags.missing)),
        ]
        return m

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
        tokens = [token, *(Signal(token_layout(), name=f"token_{n + 1}") for n in range(LATENCY))]
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


def _flags() -> data.StructLayout:
    """What goes along with an output."""
    return data.StructLayout({"valid": 1, "last": 1, "missing": 1})
