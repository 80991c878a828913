"""Accumulators of a PE: a memory that is read, added to and written, one sum a cycle, without hazards."""

from functools import reduce
from operator import or_

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.rtl.layouts import NO_CHECK

LUT_RAM_DEPTH = 16
"""Words of the LUT RAM of ECP5 and Gowin: each such bank has registers of its own behind it, which an OR joins."""


class Accumulators(wiring.Component):
    """Adds products to ``rows_in_flight * slots`` sums, or reads and clears one of them (a drain).

    The loop takes two cycles, read and add; a sum that is added to twice in a row comes from the adder's own register,
    which is known a cycle before: what the adder adds up is then an OR of registers, all but one of them 0.
    A bit beside each sum says that it holds something: a drain clears that. A drain and an
    addition to the same sum may not follow each other directly.

    Members:
        address: of a sum, context above slot.
        adds, drains: what to do with it; not both.
        product: 2 cycles after ``adds``; 0 if 2 cycles after ``drains``.
        sum: 3 cycles after ``drains`` what the accumulator held, else 0.
    """

    def __init__(self, config: Config):
        self._config = config
        depth = config.rows_in_flight * config.slots
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
        return ("Accumulators", config.rows_in_flight, config.slots, config.acc_width, config.a_width, config.b_width,
                config.lut_ram)  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        width = self._config.acc_width
        # first stage: read; second: add and write
        reads = Signal.like(self.address)
        address = Signal.like(self.address)
        adds_next, drains_next, adds, drains = Signal(), Signal(), Signal(), Signal()
        reread = Signal()  # the sum that is read is being written: it comes from the adder instead
        total = Signal(signed(width))
        last = Signal(signed(width), reset_less=True)
        m.d.sync += [
            reads.eq(self.address),
            adds_next.eq(self.adds),
            drains_next.eq(self.drains),
            address.eq(reads),
            adds.eq(adds_next),
            drains.eq(drains_next),
            reread.eq(self.adds & adds_next & (self.address == reads)),
        ]
        with m.If(reread):
            m.d.sync += last.eq(total)
        with m.Else():
            m.d.sync += last.eq(0)
        current = self._memory(m, reads, reread, address, Cat(total, adds), adds | drains)
        m.d.comb += total.eq((current | last).as_signed() + self.product)
        drained = Signal(signed(width), reset_less=True)
        m.d.comb += self.sum.eq(drained)
        # a drained sum comes out of the adder too, for its product is 0: no second OR over the banks
        with m.If(drains):
            m.d.sync += drained.eq(total)
        with m.Else():
            m.d.sync += drained.eq(0)
        return m

    def _memory(self, m: Module, reads, reread, write_address, write_data, write_enable) -> Value:
        """Read ``reads``; a cycle later: the sum there, 0 if there is none or if ``reread``."""
        depth = self._config.rows_in_flight * self._config.slots
        if not self._config.lut_ram:
            m.submodules.sums = ram = memory.Memory(shape=len(write_data), depth=depth, init=[], attrs=NO_CHECK)
            write, read = ram.write_port(), ram.read_port()
            m.d.comb += [
                read.addr.eq(reads),
                write.addr.eq(write_address),
                write.data.eq(write_data),
                write.en.eq(write_enable),
            ]
            again = Signal()
            m.d.sync += again.eq(reread)
            return Mux(read.data[-1] & ~again, read.data[:-1], 0)
        read_from = []
        banks = -(-depth // LUT_RAM_DEPTH)
        low = min(depth, LUT_RAM_DEPTH).bit_length() - 1
        for bank in range(banks):
            ram = memory.Memory(shape=len(write_data), depth=min(depth, LUT_RAM_DEPTH), init=[])
            m.submodules[f"sums{bank}"] = ram
            write, read = ram.write_port(), ram.read_port(domain="comb")
            held = Signal(self._config.acc_width, name=f"held{bank}", reset_less=True)
            m.d.comb += [
                read.addr.eq(reads[:low]),
                write.addr.eq(write_address[:low]),
                write.data.eq(write_data),
                write.en.eq(write_enable & (write_address[low:] == bank)),
            ]
            with m.If(read.data[-1] & ~reread & (reads[low:] == bank)):
                m.d.sync += held.eq(read.data[:-1])
            with m.Else():
                m.d.sync += held.eq(0)
            read_from.append(held)
        return reduce(or_, read_from)
