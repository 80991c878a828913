"""Accumulators of a PE: a memory that is read, added to and written, one sum a cycle, without hazards."""

import itertools
from functools import reduce
from operator import or_

from amaranth import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.rtl.layouts import NO_CHECK

LUT_RAM_DEPTH = 16
"""Words of the LUT RAM of ECP5 and Gowin: each such bank has registers of its own behind it, which an OR joins."""

MOST_IN_LUT_RAM = 64
"""Sums, with those of K tiles among them, from which on block RAM is cheaper."""


def in_lut_ram(config: Config) -> bool:
    """Whether sums are in LUT RAM."""
    return config.lut_ram and not (config.psum_in_pe and config.sum_rows * config.slots > MOST_IN_LUT_RAM)


def registered(config: Config) -> bool:
    """Whether sums are in block RAM with a register behind it."""
    return config.psum_in_pe and not in_lut_ram(config)


def sum_width(config: Config) -> int:
    """Bits of a sum in memory: with a flag, or without."""
    return config.acc_width + (not registered(config))


class Accumulators(wiring.Component):
    """Adds products to ``sum_rows * slots`` sums, or reads and clears one of them (a drain).

    The loop takes two cycles, read and add; a sum that is added to twice in a row comes from the adder's own register,
    which is known a cycle before: what the adder adds up is then an OR of registers, all but one of them 0.
    A bit beside each sum says that it holds something: a drain clears that. A drain and an addition to the same sum may
    not follow each other directly.

    Many sums (``psum_in_pe``) are in block RAM, with a register behind it and so a third cycle. There a drain leaves 0.
    With few sums and no LUT RAM the block RAM's output is added to directly: slower, but with fewer registers.

    Members:
        address: of a sum, row above slot.
        adds, drains: what to do with it; not both.
        product: ``lead`` cycles after ``adds``; 0 if so many after ``drains``.
        sum: ``lead`` + 1 cycles after ``drains`` what the accumulator held, else 0.
    """

    def __init__(self, config: Config):
        self._config = config
        self._depth = depth = config.sum_rows * config.slots
        self._in_lut = in_lut_ram(config)
        self.lead = 3 if registered(config) else 2
        super().__init__(
            {
                "address": In(range(depth)),
                "adds": In(1),
                "drains": In(1),
                "product": In(signed(config.a_width + config.b_width)),
                "sum": Out(signed(config.acc_width)),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        config = self._config
        return ("Accumulators", self._depth, config.acc_width, config.a_width, config.b_width, self._in_lut, self.lead)

    def elaborate(self, platform):
        m = Module()
        stage = data.StructLayout({"address": len(self.address), "adds": 1, "drains": 1})
        given = Signal(stage)
        m.d.comb += [given.address.eq(self.address), given.adds.eq(self.adds), given.drains.eq(self.drains)]
        # last stage: add and write; before it: read, from block RAM in two stages
        stages = [given, *(Signal(stage, name=f"stage{n}") for n in range(self.lead))]
        for before, after in itertools.pairwise(stages):
            m.d.sync += after.eq(before)
        total = Signal(signed(self._config.acc_width))
        m.d.comb += total.eq(self._current(m, stages, total) + self.product)
        drained = Signal(signed(len(total)), reset_less=True)
        m.d.comb += self.sum.eq(drained)
        # a drained sum comes out of the adder too, for its product is 0: no second OR over the banks
        with m.If(stages[-1].drains):
            m.d.sync += drained.eq(total)
        with m.Else():
            m.d.sync += drained.eq(0)
        return m

    def _current(self, m: Module, stages, total) -> Value:
        """What is added to: the sum read, or the adder's own register if it was added to a cycle before."""
        again = Signal()  # added to twice in a row: the sum asked for is the one that is added to next
        reread = Signal()  # a cycle later
        m.d.comb += again.eq(stages[0].adds & stages[1].adds & (stages[0].address == stages[1].address))
        m.d.sync += reread.eq(again)
        if self.lead == 3:
            return self._in_block_ram(m, stages, total, reread)
        last = Signal(signed(len(total)), reset_less=True)
        with m.If(reread):
            m.d.sync += last.eq(total)
        with m.Else():
            m.d.sync += last.eq(0)
        if self._in_lut:
            held = self._in_lut_ram(m, stages[1], stages[2], total, again)
        else:
            held = self._without_register(m, stages[1], stages[2], total, reread)
        return (held | last).as_signed()

    def _in_lut_ram(self, m: Module, reading, adding, total, again) -> Value:
        """The sum that ``reading`` asked for a cycle before; 0 if there is none or if it is being written."""
        depth = self._depth
        low = min(depth, LUT_RAM_DEPTH).bit_length() - 1
        held_in = []
        for bank in range(-(-depth // LUT_RAM_DEPTH)):
            m.submodules[f"sums{bank}"] = sums = memory.Memory(shape=len(total), depth=1 << low, init=[])
            m.submodules[f"flags{bank}"] = flags = memory.Memory(shape=1, depth=1 << low, init=[])
            held = Signal(len(total), name=f"held{bank}", reset_less=True)
            holds = Signal(name=f"holds{bank}")
            sum_write, sum_read = sums.write_port(), sums.read_port(domain="comb")
            flag_write, flag_read = flags.write_port(), flags.read_port(domain="comb")
            m.d.comb += [
                sum_read.addr.eq(reading.address[:low]),
                sum_write.addr.eq(adding.address[:low]),
                sum_write.data.eq(total),
                sum_write.en.eq(adding.adds & (adding.address[low:] == bank)),
                # whether there is a sum is known, and asked for, a cycle before the sum: it resets the registers
                flag_read.addr.eq(self.address[:low]),
                flag_write.addr.eq(reading.address[:low]),
                flag_write.data.eq(reading.adds),
                flag_write.en.eq((reading.adds | reading.drains) & (reading.address[low:] == bank)),
            ]
            m.d.sync += holds.eq(flag_read.data & (self.address[low:] == bank) & ~again)
            with m.If(holds):
                m.d.sync += held.eq(sum_read.data)
            with m.Else():
                m.d.sync += held.eq(0)
            held_in.append(held)
        return reduce(or_, held_in)

    def _block_ram(self, m: Module, reading, adding, left: Value) -> Value:
        """What the memory shows of the sum that ``reading`` asked for; ``left`` is written for ``adding``."""
        width = sum_width(self._config)
        m.submodules.sums = sums = memory.Memory(shape=width, depth=self._depth, init=[], attrs=NO_CHECK)
        write, read = sums.write_port(), sums.read_port()
        m.d.comb += [
            read.addr.eq(reading.address),
            write.addr.eq(adding.address),
            write.data.eq(left),
            write.en.eq(adding.adds | adding.drains),
        ]
        return read.data

    def _without_register(self, m: Module, reading, adding, total, reread) -> Value:
        """The same from block RAM, with the flag beside the sum."""
        rewritten = Signal()
        m.d.sync += rewritten.eq(reread)
        read = self._block_ram(m, reading, adding, Cat(total, adding.adds))
        return Mux(read[-1] & ~rewritten, read[:-1], 0)

    def _in_block_ram(self, m: Module, stages, total, reread) -> Value:
        """What is added to, 0 where no sum is held, with a register behind the memory, which is slow.

        A sum that was written two operations before was read too early: it comes from a register as well.
        """
        given, reading, waiting, adding = stages
        left = Signal(len(total))
        m.d.comb += left.eq(Mux(adding.adds, total, 0))
        read = self._block_ram(m, reading, adding, left)
        again, early, written = Signal(), Signal(), Signal()
        before = Signal(len(total), reset_less=True)  # the sum that was written a cycle before
        held, forwarded = Signal(len(total), reset_less=True), Signal(len(total), reset_less=True)
        uses_held = Signal()
        m.d.sync += [
            again.eq(reread),
            early.eq((waiting.adds | waiting.drains) & (given.address == waiting.address)),
            written.eq(early),
            before.eq(left),
            held.eq(read),
            uses_held.eq(~again & ~written),
            forwarded.eq(Mux(again, total, Mux(written, before, 0))),
        ]
        return (Mux(uses_held, held, 0) | forwarded).as_signed()
