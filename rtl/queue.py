"""First-in first-out queue in LUT RAM (or block RAM), with an early warning for producers that cannot stop at once."""

from amaranth import *
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.rtl.layouts import NO_CHECK


def stepped(count: Value, up: Value) -> Value:
    """``count`` plus or minus 1, in fewer LUTs than two adders take: a bit changes if all below it would carry."""
    carry: Value = Const(1)
    bits = []
    for bit in count:
        bits.append(bit ^ carry)
        carry = carry & ~(bit ^ up)
    return Cat(bits)


class Queue(wiring.Component):
    """Queue of ``depth`` entries (a power of two) with asynchronous read: an entry is at ``o`` the cycle after it came.

    Latency 1 cycle (2 in block RAM), one transfer in and one out a cycle.

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
            self._in_block_ram(m, payload)
            return m
        m.submodules.memory = ram = memory.Memory(shape=len(payload), depth=self._depth, init=[])
        write = ram.write_port()
        read = ram.read_port(domain="comb")
        push = Signal()
        pop = Signal()
        waits = Signal()  # level != 0
        m.d.comb += [
            self.i.ready.eq(~self.level[-1]),
            self.o.valid.eq(waits),
            push.eq(self.i.valid & self.i.ready),
            pop.eq(waits & self.o.ready),
            write.data.eq(payload),
            write.en.eq(push),
            Value.cast(self.o.payload).eq(read.data),
        ]
        # `pop` comes late: it enables registers, and what they take does not depend on it
        m.d.sync += self.space.eq(self.level <= self._depth - self._margin)
        with m.If(push):
            m.d.sync += write.addr.eq(write.addr + 1)
        with m.If(pop):
            m.d.sync += read.addr.eq(read.addr + 1)
        with m.If(push ^ pop):
            m.d.sync += [
                self.level.eq(stepped(self.level, push)),
                waits.eq(push | (self.level != 1)),
            ]
        return m

    def _in_block_ram(self, m: Module, payload: Value) -> None:
        m.submodules.memory = ram = memory.Memory(shape=len(payload), depth=self._depth, init=[], attrs=NO_CHECK)
        write, read = ram.write_port(), ram.read_port()
        push, pop = Signal(), Signal()
        oldest = Signal(range(self._depth))
        m.d.comb += [
            self.i.ready.eq(~self.level[-1]),
            push.eq(self.i.valid & self.i.ready),
            pop.eq(self.o.valid & self.o.ready),
            write.data.eq(payload),
            write.en.eq(push),
            # the memory's output is the entry at `oldest`: it stays while nobody takes it
            read.addr.eq(oldest + pop),
            Value.cast(self.o.payload).eq(read.data),
        ]
        m.d.sync += [
            write.addr.eq(write.addr + push),
            oldest.eq(read.addr),
            self.level.eq(self.level + push - pop),
            self.o.valid.eq(self.level > pop),
            self.space.eq(self.level <= self._depth - self._margin),
        ]
