"""First-in first-out queue in LUT RAM (or block RAM), with an early warning for producers that cannot stop at once."""

from amaranth import *
from amaranth.lib import memory, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out


class Queue(wiring.Component):
    """Queue of ``depth`` entries (a power of two) with asynchronous read: an entry is at ``o`` the cycle after it came.

    Latency 1 cycle (3 in block RAM), one transfer in and one out a cycle.

    Args:
        shape: payload.
        depth: entries.
        block: keep the entries in block RAM, for devices without LUT RAM.
        margin: ``space`` is high while a producer that sees it may still send ``margin`` entries, the last of them
            before its effect shows in ``space`` (which is a register).

    Members:
        i: stream in; ``i.ready`` is low only when all entries are taken.
        o: stream out.
        space: at least ``margin`` entries were free in the cycle before.
        level: entries held.
    """

    def __init__(self, shape, depth: int, margin: int = 1, block: bool = False):
        if depth < 2 or depth & (depth - 1):
            raise ValueError(f"depth must be a power of two of 2 or more, not {depth}")
        if not 1 <= margin <= depth:
            raise ValueError(f"margin must be from 1 to depth ({depth}), not {margin}")
        self._shape, self._depth, self._margin, self._block = shape, depth, margin, block
        super().__init__(
            {
                "i": In(stream.Signature(shape)),
                "o": Out(stream.Signature(shape)),
                "space": Out(1, init=1),  # pyright: ignore[reportCallIssue]
                "level": Out(range(depth + 1)),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Queue", repr(self._shape), self._depth, self._margin, self._block)

    def elaborate(self, platform):
        m = Module()
        payload = Value.cast(self.i.payload)
        if self._block:
            m.submodules.fifo = fifo = SyncFIFOBuffered(width=len(payload), depth=self._depth)
            m.d.comb += [
                fifo.w_data.eq(payload),
                fifo.w_en.eq(self.i.valid),
                self.i.ready.eq(fifo.w_rdy),
                Value.cast(self.o.payload).eq(fifo.r_data),
                self.o.valid.eq(fifo.r_rdy),
                fifo.r_en.eq(self.o.ready),
                self.level.eq(fifo.level),
            ]
            m.d.sync += self.space.eq(self.level <= self._depth - self._margin)
            return m
        m.submodules.memory = ram = memory.Memory(shape=len(payload), depth=self._depth, init=[])
        write = ram.write_port()
        read = ram.read_port(domain="comb")
        push = Signal()
        pop = Signal()
        following = Signal.like(self.level)
        m.d.comb += [
            self.i.ready.eq(~self.level[-1]),
            self.o.valid.eq(self.level.any()),
            push.eq(self.i.valid & self.i.ready),
            pop.eq(self.o.valid & self.o.ready),
            write.data.eq(payload),
            write.en.eq(push),
            Value.cast(self.o.payload).eq(read.data),
            following.eq(self.level + push - pop),
        ]
        m.d.sync += [
            write.addr.eq(write.addr + push),
            read.addr.eq(read.addr + pop),
            self.level.eq(following),
            self.space.eq(self.level <= self._depth - self._margin),
        ]
        return m
