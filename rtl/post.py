"""Post-processing unit of a cluster: from the sums that lanes drain to RESULT packets."""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from amaranth import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import POST_MULT_WIDTH, Config
from maskwork.rtl.compress import Compress, PostKind
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.layouts import NO_CHECK, clog2
from maskwork.rtl.noise import Noise
from maskwork.rtl.requantise import (
    BIAS_WIDTH,
    LIMIT_WIDTH,
    SHIFT_WIDTH,
    Requantise,
    register,
    requantise_latency,
    saturate,
)
from maskwork.rtl.stream import beat_layout

__all__ = [
    "DelayLine",
    "PostKind",
    "PostProcess",
    "PostWord",
    "RowWord",
    "fold",
    "limits_signature",
    "parameter_signature",
    "post_latency",
]


def PostWord(config: Config) -> data.StructLayout:
    """Word of a finished row: START, VALUEs of rising column, END.

    ``lane`` (of the whole array), ``row``, ``tag``, ``post`` and ``bank`` are valid on START, ``column`` and ``value``
    on VALUE.
    """
    return data.StructLayout(
        {
            "kind": PostKind,
            "lane": 8,
            "column": range(config.tile_columns),
            "value": signed(config.acc_width),
            "row": 16,
            "tag": 8,
            "post": 1,
            "bank": 1,
        }
    )


def RowWord(config: Config) -> data.StructLayout:
    """PostWord on its way to post-processing: ``row``, ``tag``, ``post``, ``bank`` and ``lane`` (within its cluster) of
    a START share bits with ``value`` and ``column`` of a VALUE.
    """
    header = 16 + 8 + 2 + (config.lanes_per_cluster - 1).bit_length()
    body = max(header, config.acc_width + len(Signal(range(config.tile_columns))))
    return data.StructLayout({"kind": PostKind, "body": body})


def fold(config: Config, word: data.View) -> Value:
    """RowWord of a PostWord."""
    lane = word.lane[: (config.lanes_per_cluster - 1).bit_length()]
    header = Cat(word.row, word.tag, word.post, word.bank, lane)
    return Cat(word.kind, Mux(word.kind == PostKind.START, header, Cat(word.value, word.column)))


def unfold(target: data.View, word: data.View, cluster: Value) -> list:
    """Statements that make a RowWord a PostWord, with its lane's number in the whole array."""
    lane_bits = len(target.lane) - len(cluster)
    header = word.body[: 16 + 8 + 2 + lane_bits]
    return [
        target.kind.eq(word.kind),
        Cat(target.value, target.column).eq(word.body),
        Cat(target.row, target.tag, target.post, target.bank).eq(header),
        target.lane.eq(Cat(header[26:], cluster)),
    ]


def parameter_signature(config: Config) -> wiring.Signature:
    """Write of one column's parameters: no handshake, ``valid`` for one cycle. ``lane`` is that within the cluster."""
    return wiring.Signature(
        {
            "valid": Out(1),
            "bank": Out(1),
            "lane": Out(clog2(config.lanes_per_cluster)),
            "column": Out(range(config.tile_columns)),
            "bias": Out(signed(BIAS_WIDTH)),
            "mult": Out(POST_MULT_WIDTH),
            "shift": Out(SHIFT_WIDTH),
        }
    )


def limits_signature(config: Config) -> wiring.Signature:
    """Write of a bank's clamp limits: no handshake, ``valid`` for one cycle.

    ``seed`` (with ``stochastic``; 0: to the nearest) is that of the bank and lane of every parameter written meanwhile.
    """
    return wiring.Signature(
        {
            "valid": Out(1),
            "bank": Out(1),
            "low": Out(signed(LIMIT_WIDTH)),
            "high": Out(signed(LIMIT_WIDTH)),
            **({"seed": Out(32)} if config.stochastic else {}),
        }
    )


def post_latency(config: Config) -> int:
    """Cycles from :class:`PostProcess`'s input to its compressor's."""
    return 2 + requantise_latency(config) if config.post else 0


class DelayLine(wiring.Component):
    """``o`` is ``i`` of ``cycles`` cycles before (2 or more); undefined for the first ``cycles`` cycles.

    A ring in LUT RAM instead of ``cycles`` registers.
    """

    if TYPE_CHECKING:
        i: Signal
        o: Signal

    def __init__(self, width: int, cycles: int):
        self._width, self._cycles = width, cycles
        super().__init__({"i": In(width), "o": Out(width)})

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("DelayLine", self._width, self._cycles)

    def elaborate(self, platform):
        """Build the ring."""
        m = Module()
        m.submodules.memory = ring = memory.Memory(shape=self._width, depth=self._cycles, init=[], attrs=NO_CHECK)
        write, read = ring.write_port(), ring.read_port()
        ahead = Signal(range(self._cycles), init=1)
        m.d.sync += [ahead.eq(Mux(ahead == self._cycles - 1, 0, ahead + 1)), write.addr.eq(ahead)]
        m.d.comb += [write.data.eq(self.i), write.en.eq(1), read.addr.eq(ahead), self.o.eq(read.data)]
        return m


class PostProcess(wiring.Component):
    """Bias, requantisation and clamp (rows with ``post``) or raw sums, then compression into RESULT packets.

    One word a cycle, apart from ``Compress.gap`` cycles after each END (and one after each VALUE that is a raw sum of
    two beats); the first beat of a row is offered post_latency + ``Compress.header_beats`` + 5 cycles after its END.
    Nothing in the pipeline stalls: words are taken only while the result memory has room for all that is on its way.

    Parameters
    ----------
    config
        Without ``post`` there are no parameters and no arithmetic; ``p`` and ``limits`` are then ignored.
    slack
        Words that may still arrive after ``space`` fell, from a source that cannot wait for ``i.ready`` and sees
        ``space`` instead; only without ``post``, where every word can be taken in the cycle in which it comes. At least
        ``Compress.gap`` cycles then follow each END. None: the source waits.

    Members
    -------
    i : In(stream of PostWord(config))
        Rows, one after the other. ``i.ready`` is a register.
    space : Out(1)
        See ``slack``.
    p : In(parameter_signature(config))
        Parameters of a bank, lane and column.
    limits : In(limits_signature(config))
        Clamp limits of a bank, saturated to ``a_width`` bits. low > high makes every result ``high``.
    o : Out(stream of beat_layout(config))
        RESULT packets.
    busy : Out(1)
        A row is open or a word taken from ``i`` may still need its parameters or limits.
    idle : Out(1)
        No row is open, nothing is held, nothing is offered.
    """

    if TYPE_CHECKING:
        i: Any
        space: Signal
        p: Any
        limits: Any
        o: Any
        busy: Signal
        idle: Signal

    def __init__(self, config: Config, slack: int | None = None):
        if slack is not None and config.post:
            raise ValueError("slack must be None for a configuration with post, whose pipeline waits for results")
        self._config, self._slack = config, slack
        super().__init__(
            {
                "i": In(stream.Signature(PostWord(config))),
                "space": Out(1),
                "p": In(parameter_signature(config)),
                "limits": In(limits_signature(config)),
                "o": Out(stream.Signature(beat_layout(config))),
                "busy": Out(1),
                "idle": Out(1),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("PostProcess", self._config.hash, self._slack)

    def elaborate(self, platform):
        """Build intake, parameters, arithmetic beside a delay line, and compressor."""
        m = Module()
        config = self._config
        latency = post_latency(config)
        submodule(m, "compress", compress := Compress(config, slack=self._slack or latency + 2), platform)
        m.d.comb += self.space.eq(compress.room)
        wiring.connect(m, wiring.flipped(self.o), compress.o)
        word, lane_width = self.i.payload, clog2(config.lanes_per_cluster)
        post, bank, lane = register(name="post"), register(name="bank"), register(lane_width, name="lane")
        kind = self._intake(m, compress, latency, post)
        with m.If(kind == PostKind.START):
            m.d.sync += [post.eq(word.post), bank.eq(word.bank), lane.eq(word.lane)]
        row_header = Cat(word.row, word.tag, word.lane)
        value = Signal(compress.i.value.shape())
        m.d.comb += value.eq(Mux(kind == PostKind.START, row_header.as_signed(), word.value))
        row_post = Mux(kind == PostKind.START, word.post, post)

        if not config.post:
            m.d.comb += [
                compress.i.kind.eq(kind),
                compress.i.column.eq(word.column),
                compress.i.value.eq(value),
            ]
            return m

        submodule(m, "delay", delay := DelayLine(1 + len(word.column) + len(value), latency), platform)
        m.d.comb += delay.i.eq(Cat(row_post, word.column, value))
        delayed_post, delayed_column, delayed_value = (
            delay.o[0],
            delay.o[1 : 1 + len(word.column)],
            delay.o[1 + len(word.column) :],
        )
        result = self._arithmetic(m, kind, bank, lane, platform)
        # a result takes the place of a VALUE's low bits, not of a START's
        kinds = [kind, *(Signal(PostKind, init=PostKind.NONE, name=f"kind_{n + 1}") for n in range(latency))]
        m.d.sync += [later.eq(sooner) for sooner, later in pairwise(kinds)]
        delayed_kind = kinds[-1]
        chosen = delayed_post & (delayed_kind == PostKind.VALUE)
        m.d.comb += [
            compress.i.kind.eq(delayed_kind),
            compress.i.post.eq(delayed_post),
            compress.i.column.eq(delayed_column),
            compress.i.value.eq(
                Cat(
                    Mux(chosen, result, delayed_value[: config.a_width].as_signed())[: config.a_width],
                    delayed_value[config.a_width :],
                )
            ),
        ]
        return m

    def _intake(self, m, compress, latency, post):
        """Answer what is taken in this cycle: its kind, or NONE. Drives ``i.ready``, ``busy`` and ``idle``."""
        kind = Signal(PostKind, init=PostKind.NONE)
        with m.If(self.i.valid & self.i.ready):
            m.d.comb += kind.eq(self.i.payload.kind)
        ended = kind == PostKind.END
        if self._slack is not None:
            m.d.comb += self.i.ready.eq(1)
        else:
            pause = Signal(range(compress.gap + 1))
            halt = ended | ((kind == PostKind.VALUE) & ~post) if compress.value_gap else ended
            m.d.sync += self.i.ready.eq(compress.room & ~halt & (pause == 0))
            with m.If(ended):
                m.d.sync += pause.eq(compress.gap - 1)
            with m.Elif(pause != 0):
                m.d.sync += pause.eq(pause - 1)

        row_open, draining = Signal(), Signal(range(latency + 4))
        with m.If(kind == PostKind.START):
            m.d.sync += row_open.eq(1)
        with m.If(ended):
            m.d.sync += [row_open.eq(0), draining.eq(latency + 3)]
        with m.Elif(draining != 0):
            m.d.sync += draining.eq(draining - 1)
        m.d.comb += [
            self.busy.eq(row_open | (draining != 0)),
            self.idle.eq(~self.busy & compress.empty),
        ]
        return kind

    def _arithmetic(self, m, kind, bank, lane, platform):
        """Results, post_latency cycles after their words were taken."""
        config = self._config
        submodule(m, "requantise", requantise := Requantise(config), platform)
        layout = data.StructLayout({"bias": signed(BIAS_WIDTH), "mult": POST_MULT_WIDTH, "shift": SHIFT_WIDTH})
        lane_bits = config.lanes_per_cluster.bit_length() - 1
        m.submodules.parameters = parameters = memory.Memory(
            shape=layout, depth=2 * config.lanes_per_cluster * config.tile_columns, init=[], attrs=NO_CHECK
        )
        read, write = parameters.read_port(), parameters.write_port()
        m.d.comb += [
            write.en.eq(self.p.valid),
            write.addr.eq(Cat(self.p.column, self.p.lane[:lane_bits], self.p.bank)),
            write.data.bias.eq(self.p.bias),
            write.data.mult.eq(self.p.mult),
            write.data.shift.eq(self.p.shift),
            read.addr.eq(Cat(self.i.payload.column, lane[:lane_bits], bank)),
        ]
        # the memory's output register, then one of the fabric
        operands = register(layout.size)
        m.d.sync += operands.eq(Value.cast(read.data))
        m.d.comb += [
            Cat(requantise.bias, requantise.mult, requantise.shift).eq(operands),
            requantise.value.eq(_shift_register(m, self.i.payload.value, 2)),
        ]
        if config.stochastic:
            word = self.i.payload
            submodule(m, "noise", noise := Noise(config, 2 + requantise.noise_delay), platform)
            m.d.comb += [
                noise.write.eq(self.p.valid),
                noise.address.eq(Cat(self.p.lane[:lane_bits], self.p.bank)),
                noise.seed.eq(self.limits.seed),
                noise.start.eq(kind == PostKind.START),
                noise.place.eq(Cat(word.lane[:lane_bits], word.bank)),
                noise.row.eq(word.row),
                noise.column.eq(word.column),
                requantise.noise.eq(noise.number),
                requantise.random.eq(noise.random),
            ]

        # low, high, and whether they are inverted
        chosen = Cat(requantise.low, requantise.high, requantise.inverted)
        written = Cat(
            saturate(self.limits.low, config.a_width),
            saturate(self.limits.high, config.a_width),
            self.limits.low > self.limits.high,
        )
        banks = [register(len(chosen), name=f"limits_{number}") for number in range(2)]
        for number in range(2):
            with m.If(self.limits.valid & (self.limits.bank == number)):
                m.d.sync += banks[number].eq(written)
        limits = register(len(chosen))
        m.d.sync += limits.eq(Mux(_shift_register(m, bank, 1 + requantise.limits_delay), banks[1], banks[0]))
        m.d.comb += chosen.eq(limits)
        return requantise.result


def _shift_register(m: Module, value: Value, cycles: int) -> Value:
    """``value`` of ``cycles`` cycles before."""
    for number in range(cycles):
        stage = register(value.shape(), name=f"stage_{number}")
        m.d.sync += stage.eq(value)
        value = stage
    return value
