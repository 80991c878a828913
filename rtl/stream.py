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
        # two registers, written and read in turn: `o.ready` moves a pointer, not a word
        entries = [Signal(width, name=f"entry{n}", reset_less=True) for n in range(2)]
        some, full = Signal(), Signal()  # one entry is held, or both: what others wait for is a register, no sum
        write_at, read_at = Signal(), Signal()
        payload = Value.cast(self.i.payload)
        m.d.comb += [
            Value.cast(self.o.payload).eq(Mux(read_at, entries[1], entries[0])),
            self.o.valid.eq(some),
            self.i.ready.eq(~full),
        ]
        push, pop = self.i.valid & self.i.ready, self.o.valid & self.o.ready
        m.d.sync += [
            some.eq(full | push | (some & ~pop)),
            full.eq((full | (some & push)) & ~pop),
            write_at.eq(write_at ^ push),
            read_at.eq(read_at ^ pop),
        ]
        for n, entry in enumerate(entries):
            with m.If(push & (write_at == n)):
                m.d.sync += entry.eq(payload)
        return m
