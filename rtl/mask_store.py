"""Mask store of the mask unit: masks in block RAM, to be replayed."""

from itertools import pairwise

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.rtl.layouts import NO_CHECK


class MaskStore(wiring.Component):
    """``mask_slots`` masks of ``mask_depth`` words at most, each with its shape; a row begins on a new word.

    Args:
        config: mask_slots, mask_depth.

    Members:
        slot, length, rows: a command's, stable six cycles before ``start`` and until ``done``.
        lacking: the slot holds no mask of that shape; a register, six cycles after those became stable.
        start, store: a command begins; its mask goes to the slot, which is empty from now on.
        done, good: it has ended, two cycles after its last word or more; the slot then holds the mask if that was good.
        clear: every slot becomes empty.
        word, write: the mask's next word.
        overflowed: there were more words than a slot has; until the next command.
        step, closes: an element is replayed; it is its row's last.
        bit: its bit, three cycles later.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(
            {
                "slot": In(range(config.mask_slots)),
                "length": In(16),
                "rows": In(16),
                "lacking": Out(1),
                "start": In(1),
                "store": In(1),
                "done": In(1),
                "good": In(1),
                "clear": In(1),
                "word": In(32),
                "write": In(1),
                "overflowed": Out(1),
                "step": In(1),
                "closes": In(1),
                "bit": Out(1),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("MaskStore", self._config.mask_slots, self._config.mask_depth)

    def elaborate(self, platform):
        m = Module()
        slots, depth = self._config.mask_slots, self._config.mask_depth
        filled = Signal(slots)
        chosen = Signal(slots)
        running = Signal()
        at = Signal(range(2 * depth))  # word of the mask; from `depth` on there is no room
        bit = Signal(5)
        # behind the masks' words lie their shapes
        m.submodules.memory = ram = memory.Memory(shape=32, depth=slots * depth + slots, init=[], attrs=NO_CHECK)
        read, write = ram.read_port(), ram.write_port()
        held = Signal(32, reset_less=True)
        shape = Cat(self.length, self.rows)
        address = Mux(running, Cat(at[:-1], self.slot), slots * depth + self.slot)
        m.d.comb += [
            chosen.eq(1 << self.slot),
            read.addr.eq(address),
            write.addr.eq(address),
            write.en.eq(self.write | (self.start & self.store)),
            write.data.eq(Mux(running, self.word, shape)),
        ]
        bits = [bit, *(Signal.like(bit, name=f"bit_{n + 1}", reset_less=True) for n in range(2))]
        m.d.sync += [
            held.eq(read.data),
            self.lacking.eq(((filled & chosen) == 0) | (held != shape)),
            *(later.eq(sooner) for sooner, later in pairwise(bits)),
            self.bit.eq(held.bit_select(bits[2], 1)),
        ]
        with m.If(self.step):
            m.d.sync += bit.eq(Mux(self.closes, 0, bit + 1))
        with m.If(self.write | (self.step & (self.closes | bit.all()))):
            m.d.sync += at.eq(at + 1)
        with m.If(self.write & at[-1]):
            m.d.sync += self.overflowed.eq(1)
        with m.If(self.start):
            m.d.sync += [running.eq(1), at.eq(0), bit.eq(0), self.overflowed.eq(0)]
        with m.If(self.done):
            m.d.sync += running.eq(0)
        with m.If(self.start & self.store):
            m.d.sync += filled.eq(filled & ~chosen)
        with m.If(self.done & self.store & self.good & ~self.overflowed):
            m.d.sync += filled.eq(filled | chosen)
        with m.If(self.clear):
            m.d.sync += filled.eq(0)
        return m
