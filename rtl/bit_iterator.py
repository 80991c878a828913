"""Bit iterator: the positions of a mask's set bits, one a cycle, nibble by nibble."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out


def lowest(bits: Value) -> Value:
    """Index of the lowest set bit of at most 8 bits (0 if there is none)."""
    index: Value = Const(0, max(1, (len(bits) - 1).bit_length()))
    for position in reversed(range(len(bits))):
        index = Mux(bits[position], position, index)
    return index[: max(1, (len(bits) - 1).bit_length())]


def single(bits: Value) -> Value:
    """At most one bit is set."""
    return (bits & (bits - 1)[: len(bits)]) == 0


class BitIterator(wiring.Component):
    """Emits the index of every set bit of each mask, in rising order, exactly once.

    Latency 2 cycles from mask to its first index; then one index a cycle, without a bubble between masks. An empty
    mask emits nothing, at the cost of a cycle. The next-nibble choice and the next-bit choice are in different pipeline
    stages, so that no path goes through both.

    Args:
        width: bits of the mask, a multiple of 4.
        meta: shape that travels with each mask.

    Members:
        i: stream of ``mask`` and ``meta``.
        o: stream of ``index``, ``last`` (the mask's highest set bit) and ``meta``.
        busy: something is inside.
    """

    def __init__(self, width: int, meta):
        if width < 4 or width % 4 or width > 32:
            raise ValueError(f"width must be a multiple of 4 from 4 to 32, not {width}")
        self._width, self._meta = width, meta
        self.i_layout = data.StructLayout({"mask": width, "meta": meta})
        self.o_layout = data.StructLayout({"index": (width - 1).bit_length(), "last": 1, "meta": meta})
        super().__init__(
            {"i": In(stream.Signature(self.i_layout)), "o": Out(stream.Signature(self.o_layout)), "busy": Out(1)}
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("BitIterator", self._width, repr(self._meta))

    def elaborate(self, platform):
        m = Module()
        nibbles = self._width // 4
        meta_bits = len(Value.cast(self.i.payload.meta))
        # outer stage: a mask and the flags of its nibbles that still wait; inner stage: one nibble. Whether a stage
        # holds anything comes from a register: the queue's readiness hangs on it
        mask = Signal(self._width, reset_less=True)
        flags = Signal(nibbles, reset_less=True)
        outer_meta = Signal(meta_bits, reset_less=True)
        outer_valid, outer_last = Signal(), Signal()
        bits = Signal(4, reset_less=True)
        nibble = Signal(max(1, (nibbles - 1).bit_length()), reset_less=True)
        final = Signal(reset_less=True)
        inner_meta = Signal(meta_bits, reset_less=True)
        inner_valid, inner_last = Signal(), Signal()

        inner_free, outer_free = Signal(), Signal()
        chosen = Signal.like(nibble, reset_less=False)
        m.d.comb += [
            inner_last.eq(single(bits)),
            outer_last.eq(single(flags)),
            inner_free.eq(~inner_valid | (inner_last & self.o.ready)),
            chosen.eq(lowest(flags)),
            outer_free.eq(~outer_valid | (outer_last & inner_free)),
            self.i.ready.eq(outer_free),
            self.o.valid.eq(inner_valid),
            self.o.payload.index.eq(Cat(lowest(bits), nibble if nibbles > 1 else Const(0, 0))),
            self.o.payload.last.eq(final & inner_last),
            Value.cast(self.o.payload.meta).eq(inner_meta),
            self.busy.eq((outer_valid & flags.any()) | inner_valid),
        ]
        with m.If(inner_free):
            m.d.sync += [
                bits.eq(mask.word_select(chosen, 4)),
                inner_valid.eq(outer_valid & flags.any()),
                nibble.eq(chosen),
                final.eq(outer_last),
                inner_meta.eq(outer_meta),
                flags.eq(flags & (flags - 1)[:nibbles]),
            ]
        with m.Elif(self.o.ready):
            m.d.sync += bits.eq(bits & (bits - 1)[:4])
        with m.If(outer_free):
            given = self.i.payload.mask
            given_flags = Cat(given.word_select(n, 4).any() for n in range(nibbles))
            m.d.sync += [
                mask.eq(given),
                flags.eq(given_flags),
                outer_valid.eq(self.i.valid),
                outer_meta.eq(Value.cast(self.i.payload.meta)),
            ]
        return m
