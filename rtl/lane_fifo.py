"""Word FIFO in block RAM, its output registered twice so that the memory's clock-to-output time ends in a register."""

from amaranth import *
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from maskwork.rtl.layouts import NO_CHECK


class LaneFifo(wiring.Component):
    """FIFO of ``depth`` words (a power of two).

    Latency 4 cycles through an empty FIFO; one word in and one out a cycle.

    Members:
        i: stream in.
        o: stream out, registered.
        level: words held, including those in the output registers.
    """

    def __init__(self, width: int, depth: int):
        self._width, self._depth = width, depth
        super().__init__(
            {"i": In(stream.Signature(width)), "o": Out(stream.Signature(width)), "level": Out(range(depth + 1))}
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("LaneFifo", self._width, self._depth)

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = ram = memory.Memory(shape=self._width, depth=self._depth, init=[], attrs=NO_CHECK)
        write, read = ram.write_port(), ram.read_port()
        push, pop, fetch = Signal(), Signal(), Signal()
        stored = Signal.like(self.level)  # words in the memory that were not yet asked for
        asked = Signal()  # a word is at the memory's output
        # two registers behind the memory: reads are only issued while both can take what is under way
        head, spare = Signal(self._width), Signal(self._width)
        held = Signal(range(3))
        m.d.comb += [
            self.i.ready.eq(~self.level[-1]),
            push.eq(self.i.valid & self.i.ready),
            pop.eq(self.o.valid & self.o.ready),
            self.o.valid.eq(held != 0),
            self.o.payload.eq(head),
            fetch.eq((stored != 0) & ((held + asked < 2) | ((held + asked == 2) & pop))),
            write.data.eq(self.i.payload),
            write.en.eq(push),
        ]
        address = Signal(range(self._depth))
        write_address = Signal(range(self._depth))
        m.d.comb += [read.addr.eq(address), write.addr.eq(write_address)]
        m.d.sync += [
            write_address.eq(write_address + push),
            address.eq(address + fetch),
            asked.eq(fetch),
            stored.eq(stored + push - fetch),
            self.level.eq(self.level + push - pop),
            held.eq(held + asked - pop),
        ]
        with m.If(pop | (held == 0)):
            m.d.sync += head.eq(Mux(held == 2, spare, read.data))
        with m.If((held == 1) & ~pop | (held == 2) & pop):
            m.d.sync += spare.eq(read.data)
        return m
