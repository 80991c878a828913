"""Loader of resident operands: rows become masks and slots of weights."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.rtl.bit_iterator import BitIterator
from maskwork.rtl.gearbox import Gearbox, sum_bits
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.layouts import b_write_layout
from maskwork.rtl.load_common import beats_for, part_members


class LoadB(wiring.Component):
    """For each row: bitmap beats (unless dense), a cycle for the masks, then one for each slot in which any PE has a
    value (in all slots if B's masks do not skip), once the values are there.

    Members:
        hold: the values of the beat at the input (or of the whole dense row) are announced.
        count, values, take: the gearbox.
        write: to the lanes.
        others: see :func:`~maskwork.rtl.load_common.part_members`.
    """

    def __init__(self, config: Config, gearbox: Gearbox):
        self._config = config
        super().__init__(
            {
                **part_members(config),
                "hold": Out(1),
                "count": In(gearbox.count.shape()),
                "values": In(gearbox.values.shape()),
                "take": Out(gearbox.take.shape()),
                "write": Out(b_write_layout(config)),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("LoadB", self._config.hash)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        load = self.load
        pes, columns = config.pes_per_lane, config.tile_columns
        beats = max(1, -(-columns // config.beat_bits))
        submodule(m, "slots", slots := BitIterator(config.slots, 1), platform)
        rows = Signal.like(load.count)
        k = Signal(config.k_width)
        beat_number = Signal(range(max(2, beats)))
        mask = Signal(columns)
        dense_mask = Signal(columns)
        m.d.sync += dense_mask.eq(Const((1 << columns) - 1, columns) >> (-load.length)[: (columns - 1).bit_length()])
        m.d.comb += [
            self.write.lanes.eq(load.lanes),
            self.write.k.eq(Cat(k, load.bank)),
            # without masks, what a row leaves out is a weight of 0, and has to be written
            slots.i.payload.mask.eq(
                Cat(mask.word_select(slot, pes).any() | ("b" not in config.skip) for slot in range(config.slots))
            ),
        ]
        if "b" in config.skip:
            m.d.comb += self.write.mask.eq(mask)

        # one slot's columns wait in a register until the gearbox has their values
        pending = Signal()
        slot = Signal(range(config.slots))
        bits = Signal(pes)
        needs = Signal(range(pes + 1))
        given = Signal()
        chosen = Signal(pes)
        m.d.comb += [
            chosen.eq(mask.word_select(slots.o.payload.index, pes)),
            given.eq(pending & (self.count >= needs)),
            slots.o.ready.eq(~pending | given),
        ]
        with m.If(slots.o.ready):
            m.d.sync += [
                pending.eq(slots.o.valid),
                slot.eq(slots.o.payload.index),
                bits.eq(chosen),
                needs.eq(sum_bits(chosen)),
            ]
        for pe in range(pes):
            before = sum_bits(bits[:pe]) if pe else Const(0, 1)
            value = Array([self.values[n][: config.b_width] for n in range(pe + 1)])[before]
            m.d.comb += self.write.values[pe].eq(Mux(bits[pe], value, 0))
        with m.If(given):
            m.d.comb += [
                self.take.eq(needs),
                self.write.enable.eq(bits if "b" in config.skip else ~0),
            ]
        m.d.comb += self.write.slot.eq(slot)

        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [rows.eq(load.count - 1), k.eq(load.k), beat_number.eq(0)]
                with m.If(self.start):
                    m.next = "ROW"
            with m.State("ROW"):
                m.d.comb += self.hold.eq(1)
                with m.If(load.dense):
                    m.d.sync += mask.eq(dense_mask)
                    m.next = "MASK"
                with m.Else():
                    m.d.comb += self.want.eq(1)
                    with m.If(self.beat_valid):
                        m.d.sync += beat_number.eq(beat_number + 1)
                        with m.Switch(beat_number):
                            for n in range(beats):
                                part = mask[n * config.beat_bits :][: config.beat_bits]
                                with m.Case(n):
                                    m.d.sync += part.eq(self.beat)
                        with m.If(beat_number == beats_for(config, load.length)):
                            m.d.sync += beat_number.eq(0)
                            m.next = "MASK"
            with m.State("MASK"):
                m.d.comb += slots.i.valid.eq(1)
                if "b" in config.skip:
                    m.d.comb += self.write.mask_we.eq(1)
                if not set("bc") & set(config.skip):
                    m.d.comb += [
                        self.write.columns_we.eq(1),
                        self.write.columns_grow.eq(load.append),
                        self.write.slot.eq((load.length - 1)[: len(load.length)] >> (pes - 1).bit_length()),
                    ]
                m.next = "SLOTS"
            with m.State("SLOTS"):
                with m.If(~slots.busy & (~pending | given)):
                    m.d.sync += [rows.eq(rows - 1), k.eq(k + 1), mask.eq(0)]
                    m.next = "ROW"
                    with m.If(rows == 0):
                        m.d.comb += self.done.eq(1)
                        m.next = "IDLE"
        return m
