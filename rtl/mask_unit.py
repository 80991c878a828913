"""Mask unit: makes, stores and replays masks, and what decides them, one value a cycle."""

from itertools import pairwise

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.gen.isa import COMMANDS, RANDOM_BITS, MaskKind, Op
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.lfsr import Lfsr
from maskwork.rtl.load_common import LoadEnd
from maskwork.rtl.mask_common import PackBits, Statistics, element_layout
from maskwork.rtl.mask_dropout import Dropout
from maskwork.rtl.mask_norms import LATENCY as NORMS_LATENCY
from maskwork.rtl.mask_norms import Norms
from maskwork.rtl.mask_project import Project
from maskwork.rtl.mask_prune import Pruner
from maskwork.rtl.mask_reply import MaskReply
from maskwork.rtl.mask_store import MaskStore
from maskwork.rtl.mask_threshold import Threshold
from maskwork.rtl.queue import Queue
from maskwork.rtl.requantise import register
from maskwork.rtl.stream import beat_layout
from maskwork.rtl.values import Pack, Unpack, words_signature

LATENCY = 4
"""Cycles from a value to its element at the queue."""

DEPTH = 16
"""Elements that the queue holds."""

ELEMENTWISE = frozenset({"threshold", "prune", "dropout", "store"})
"""Blocks whose kinds answer an element for every value."""

RANDOM = frozenset({"prune", "dropout", "project"})
"""Blocks that draw random numbers."""


def mask_layout(config: Config) -> data.StructLayout:
    """A MASK's fields, checked by the sequencer."""
    return data.StructLayout(
        {
            "kind": MaskKind,
            "values": 1,
            "store": 1,
            "slot": range(config.mask_slots),
            "length": 16,
            "rows": 16,
            "level": signed(18),
            "seed": 32,
        }
    )


def mask_fields(config: Config, header: list[Signal]) -> Value:
    """The fields, as :func:`mask_layout` has them, from a command's header words."""
    parts = []
    for name, shape in mask_layout(config).members.items():
        f = COMMANDS[Op.MASK].field(name)
        parts.append(header[f.word][f.lsb : f.lsb + f.width][: Shape.cast(shape).width])
    return Cat(parts)


class MaskUnit(wiring.Component):
    """Takes the payload of one MASK packet after the other and answers the reply's words behind its header.

    A value enters the pipeline every cycle while there is room for its element; nothing in the pipeline stalls. Rows
    of NORMS with fewer than four values wait for their sums, those of PROJECT for theirs to leave. A payload that ends
    too early is one of one more value, which is 0, and ends with it.

    Args:
        config: ``generators`` names the blocks that are built.

    Members:
        i: beats of the payload. ``i.ready`` depends on registers only.
        command, start: the packet's fields, stable six cycles before ``start`` until the reply has left, and its start
            (with ``ended``, the header was all).
        lacking: the slot holds no mask of the shape in ``command``; six cycles after that became stable.
        clear: slots become empty.
        o: words of the reply; with the last one ``end`` says how the payload ended, and ``overflowed`` that the mask
            was too big for its slot. After LONG, the rest of the packet is still at ``i``.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(beat_layout(config))),
                "command": In(mask_layout(config)),
                "start": In(1),
                "ended": In(1),
                "lacking": Out(1),
                "clear": In(1),
                "o": Out(words_signature()),
                "end": Out(LoadEnd),
                "overflowed": Out(1),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        c = self._config
        sizes = c.mask_slots, c.mask_depth, c.norm_channels, c.project_sums
        return ("MaskUnit", c.generators, *sizes, c.a_width, c.stream_words, c.lut_ram)

    def elaborate(self, platform):
        m = Module()
        config, command, blocks = self._config, self.command, self._config.blocks
        # in registers, for what they decide is late enough
        is_kind = {kind: register(name=kind.name.lower()) for kind in MaskKind}
        payload = register(name="payload")
        m.d.sync += [
            *(signal.eq(command.kind == kind) for kind, signal in is_kind.items()),
            payload.eq(command.values | ~((command.kind == MaskKind.DROPOUT) | (command.kind == MaskKind.REPLAY))),
        ]
        norms, project = is_kind[MaskKind.NORMS], is_kind[MaskKind.PROJECT]
        submodule(m, "unpack", unpack := Unpack(config), platform)
        submodule(m, "reply", reply := MaskReply(config), platform)
        wiring.connect(m, wiring.flipped(self.i), unpack.i)
        wiring.connect(m, reply.o, wiring.flipped(self.o))
        space, paused, element = Signal(init=1), Signal(), Signal()
        token = unpack.token
        m.d.comb += [
            unpack.start.eq(self.start),
            unpack.ended.eq(self.ended),
            unpack.length.eq(command.length),
            unpack.count.eq(command.rows),
            unpack.payload.eq(payload),
            unpack.room.eq(space & ~paused),
            self.end.eq(unpack.end),
            element.eq(token.valid | token.missing),
        ]
        # what goes along with a value, and the value: number n is of n cycles before
        flags = [Signal(_flags(), name=f"flags{n}") for n in range(LATENCY + 1)]
        m.d.comb += flags[0].eq(Cat(element, token.closes, token.closes & token.last))
        values = [unpack.value, *(register(signed(config.a_width), name=f"value{n}") for n in (1, 2, 3))]
        magnitudes = [unpack.value, *(register(config.a_width, name=f"magnitude{n}") for n in (1, 2))]
        m.d.sync += [
            *(later.eq(sooner) for sooner, later in [*pairwise(flags), *pairwise(values)]),
            magnitudes[1].eq(Mux(unpack.value[-1], -unpack.value, unpack.value)),
            magnitudes[2].eq(magnitudes[1]),
        ]
        number, load = Signal(32), Signal()  # the random sequence; it begins anew
        if blocks & RANDOM:
            submodule(m, "lfsr", lfsr := Lfsr(), platform)
            m.d.comb += [
                load.eq(self.start | (token.closes & ~is_kind[MaskKind.PRUNE])),
                lfsr.seed.eq(command.seed),
                lfsr.load.eq(load),
                lfsr.step.eq(element),
                number.eq(lfsr.state),
            ]
        if blocks & ELEMENTWISE:
            self._elements(m, platform, reply, is_kind, payload, flags, values, magnitudes, number, space)
        if "norms" in blocks:
            submodule(m, "norms", sums := Norms(config), platform)
            short = Signal()  # a row is over before its first sum is in the memory
            m.d.sync += short.eq(command.length <= NORMS_LATENCY)
            with m.If(token.closes & norms & short):
                m.d.sync += paused.eq(1)
            with m.If(flags[NORMS_LATENCY].closes & norms):
                m.d.sync += paused.eq(0)
            m.d.comb += [
                sums.start.eq(self.start),
                sums.step.eq(element & norms),
                sums.closes.eq(token.closes),
                sums.magnitude.eq(magnitudes[2]),
                sums.next.eq(reply.next),
                reply.columns.eq(flags[NORMS_LATENCY].last & norms),
                sums.upper.eq(reply.upper),
                reply.norm.eq(sums.word),
                reply.final.eq(sums.final),
            ]
        if "project" in blocks:
            submodule(m, "project", rows := Project(config), platform)
            clear = Signal()
            m.d.sync += clear.eq(reply.left | self.start)
            with m.If(token.closes & project):
                m.d.sync += paused.eq(1)
            with m.If(reply.left):
                m.d.sync += paused.eq(0)
            m.d.comb += [
                rows.state.eq(number),
                rows.seed.eq(command.seed),
                rows.load.eq(load),
                rows.step.eq(element),
                rows.value.eq(values[1]),
                rows.clear.eq(clear),
                rows.index.eq(reply.index),
                reply.row_ends.eq(flags[2].closes & project),
                reply.last.eq(flags[2].last),
                reply.sum.eq(rows.sum),
            ]
        return m

    def _elements(self, m, platform, reply, is_kind, payload, flags, values, magnitudes, number, space):
        """From values to words: which elements are kept, and what they become."""
        config, command, blocks = self._config, self.command, self._config.blocks
        width = config.a_width
        queue = Queue(element_layout(width), DEPTH, LATENCY + 2, block=not config.lut_ram)
        submodule(m, "queue", queue, platform)
        submodule(m, "pack", pack := Pack(config), platform)
        submodule(m, "bits", bits := PackBits(), platform)
        submodule(m, "statistics", statistics := Statistics(width), platform)
        zero = register(name="zero")  # value 3 is, where there is a payload
        keep = Signal()  # of value 3
        chosen, instead = Signal(), Signal(signed(width))
        m.d.sync += zero.eq((magnitudes[2] == 0) & payload)
        if blocks & {"threshold", "prune"}:
            submodule(m, "threshold", threshold := Threshold(width), platform)
            over = register(name="over")
            m.d.comb += [
                threshold.value.eq(values[1]),
                threshold.magnitude.eq(magnitudes[1]),
                threshold.level.eq(command.level),
                threshold.by_magnitude.eq(~is_kind[MaskKind.GREATER]),
                keep.eq(over),
            ]
            m.d.sync += over.eq(threshold.over)
        if "prune" in blocks:
            submodule(m, "pruner", pruner := Pruner(width), platform)
            m.d.comb += [
                pruner.number.eq(number[:RANDOM_BITS]),
                pruner.magnitude.eq(magnitudes[2]),
                pruner.negative.eq(values[2][-1]),
                pruner.level.eq(command.level),
                chosen.eq(pruner.chosen & is_kind[MaskKind.PRUNE]),
                instead.eq(pruner.instead),
            ]
        if "dropout" in blocks:
            submodule(m, "dropout", dropout := Dropout(), platform)
            kept = [register(name=f"kept{n}") for n in (2, 3)]
            m.d.comb += [dropout.number.eq(number[:RANDOM_BITS]), dropout.level.eq(command.level)]
            m.d.sync += [kept[0].eq(dropout.keep), kept[1].eq(kept[0])]
            with m.If(is_kind[MaskKind.DROPOUT]):
                m.d.comb += keep.eq(kept[1])
        if "store" in blocks:
            submodule(m, "store", store := MaskStore(config), platform)
            m.d.comb += [
                store.slot.eq(command.slot),
                store.length.eq(command.length),
                store.rows.eq(command.rows),
                store.start.eq(self.start),
                store.store.eq(command.store),
                store.done.eq(reply.done),
                store.good.eq(self.end == LoadEnd.GOOD),
                store.clear.eq(self.clear),
                store.word.eq(bits.o.payload.word),
                store.write.eq(bits.fresh & command.store),
                store.step.eq(flags[0].valid & is_kind[MaskKind.REPLAY]),
                store.closes.eq(flags[0].closes),
                self.lacking.eq(store.lacking),
                self.overflowed.eq(store.overflowed),
            ]
            with m.If(is_kind[MaskKind.REPLAY]):
                m.d.comb += keep.eq(store.bit)
        result, bit = register(width, name="result"), register(name="bit")
        m.d.sync += [
            result.eq(Mux(keep, values[3], Mux(chosen, instead, 0))),
            bit.eq((keep & ~zero) | chosen),
        ]
        done = flags[LATENCY]
        elementwise = ~is_kind[MaskKind.NORMS] & ~is_kind[MaskKind.PROJECT]
        o = queue.o.payload
        m.d.comb += [
            space.eq(queue.space),
            queue.i.valid.eq(done.valid & elementwise),
            queue.i.payload.eq(Cat(result, bit, done.closes, done.last)),
            statistics.clear.eq(self.start),
            statistics.valid.eq(flags[1].valid),
            statistics.magnitude.eq(magnitudes[1]),
            statistics.kept.eq(bit & done.valid),
            statistics.index.eq(reply.index),
            reply.statistics.eq(statistics.word),
            bits.start.eq(self.start),
            pack.i.payload.eq(Cat(o.value, o.last)),
            bits.i.payload.eq(Cat(o.bit, o.closes, o.last)),
            queue.o.ready.eq(Mux(command.values, pack.i.ready, bits.i.ready)),
            pack.i.valid.eq(queue.o.valid & command.values),
            # beside values bitmaps are made to be stored, or for nothing; they never wait then
            bits.i.valid.eq(queue.o.valid & (~command.values | pack.i.ready)),
            pack.o.ready.eq(reply.packed.ready & command.values),
            bits.o.ready.eq(reply.packed.ready | command.values),
            reply.packed.valid.eq(Mux(command.values, pack.o.valid, bits.o.valid)),
            reply.packed.payload.eq(Mux(command.values, pack.o.payload, bits.o.payload)),
        ]


def _flags() -> data.StructLayout:
    """What goes along with a value: it is there, its row ends with it, all does."""
    return data.StructLayout({"valid": 1, "closes": 1, "last": 1})
