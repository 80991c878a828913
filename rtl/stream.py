"""Stream helpers: the beat of the two external streams, and a skid buffer."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from maskwork.gen.config import Config


def beat_layout(config: Config) -> data.StructLayout:
    """Payload of the external streams: ``data`` (32 * stream_words bits), then ``last`` of the packet."""
    return data.StructLayout({"data": config.beat_bits, "last": 1})


class SkidBuffer(wiring.Component):
    """Two-entry buffer that registers every signal of a stream in both directions.

    Latency 1 cycle, one transfer a cycle. ``i.ready`` is a register, so chains of any length close timing.

    Members:
        i: stream in.
        o: the same stream out.
    """

    def __init__(self, shape):
        self._shape = shape
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("SkidBuffer", repr(self._shape))

    def elaborate(self, platform):
        m = Module()
        width = len(Value.cast(self.i.payload))
        head = Signal(width)
        spare = Signal(width)
        head_valid = Signal()
        spare_valid = Signal()
        payload = Value.cast(self.i.payload)
        m.d.comb += [
            Value.cast(self.o.payload).eq(head),
            self.o.valid.eq(head_valid),
            self.i.ready.eq(~spare_valid),
        ]
        moves = Signal()
        m.d.comb += moves.eq(self.o.ready | ~head_valid)
        with m.If(moves):
            m.d.sync += [
                head.eq(Mux(spare_valid, spare, payload)),
                head_valid.eq(spare_valid | self.i.valid),
                spare_valid.eq(0),
            ]
        with m.Elif(self.i.valid & self.i.ready):
            m.d.sync += spare_valid.eq(1)
        with m.If(self.i.ready):
            m.d.sync += spare.eq(payload)
        return m
