"""Loader of resident operands: rows become masks and slots of weights."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import Out
from maskwork.gen.config import Config
from maskwork.rtl.bit_iterator import lowest, single
from maskwork.rtl.gearbox import Gearbox, sum_bits
from maskwork.rtl.layouts import b_write_layout
from maskwork.rtl.load_common import beats_for, bitmap_members

COUNTED_AHEAD = 4
"""Values of a cycle from which on their number is reckoned a cycle early: with fewer it is as quickly known."""


class LoadB(wiring.Component):
    """For each row: bitmap beats (unless dense), a cycle for each slot in which any PE has a value (for all slots if
    B's masks do not skip; at least one), once the values are there. The masks are written with the first.

    While a row's slots are written, the next row's bitmap is taken. Dense rows are announced while the values of the
    row before are still coming, so that these come without a pause. A row's masks stay where they are until they were
    written: at least 3 cycles. Where a row has two slots only, they go along with its first one, and it is 2 cycles.

    Members:
        write: to the lanes.
        others: see :func:`~maskwork.rtl.load_common.part_members` and
            :func:`~maskwork.rtl.load_common.bitmap_members`.
    """

    def __init__(self, config: Config, gearbox: Gearbox):
        self._config = config
        super().__init__({**bitmap_members(config, gearbox), "write": Out(b_write_layout(config))})

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("LoadB", self._config.hash)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        load = self.load
        # what a cycle writes: some slots of all PEs, called a slot below, for it is like one of so many more PEs
        pes, columns = config.pes_per_lane * config.load_slots, config.tile_columns
        beats = max(1, -(-columns // config.beat_bits))
        ahead = pes >= COUNTED_AHEAD
        masks, slots = "b" in config.skip, config.slots // config.load_slots
        some = min(4, slots)  # of a row's slots are chosen from at a time
        nibbles = slots // some
        along = masks and slots < 3
        rows = Signal.like(load.count)
        beat_number = Signal(range(max(2, beats)))
        dense_mask = Signal(columns)
        m.d.sync += dense_mask.eq(Const((1 << columns) - 1, columns) >> (-load.length)[: (columns - 1).bit_length()])

        # three stages: the row that comes; the row whose slots are chosen, four of them at a time (`flags`: those that
        # still wait) or the two there are; four slots of which one after the other leaves
        taken, full = Signal(columns), Signal()
        mask, outer = Signal(columns, reset_less=True), Signal()
        flags = Signal(nibbles, reset_less=True)
        first, unwritten = Signal(reset_less=True), Signal()  # of the row's fours; its masks were not written
        four, inner = Signal(some * pes, reset_less=True), Signal()
        bits = Signal(some, reset_less=True)
        nibble = Signal(range(max(2, nibbles)), reset_less=True)
        inner_first = Signal(reset_less=True)
        # and the slot whose columns wait until the gearbox has their values
        pending, begins = Signal(), Signal()
        slot = Signal(range(slots))
        enable = Signal(pes)
        # for each PE: enabled PEs before it. From a register: what picks its value is behind it
        before = [Signal(range(pe + 1), name=f"before{pe}", reset_less=True) for pe in range(pes)]
        need = Signal(range(pes + 1))  # in this cycle
        # values of each of the four slots
        sums = [Signal(range(pes + 1), name=f"sum{n}", reset_less=True) for n in range(some)]
        k = Signal(config.k_width)

        outer_free, inner_free, pending_free, given = Signal(), Signal(), Signal(), Signal()
        which, place = Signal(range(max(2, nibbles))), Signal(range(some))
        fours, chosen = Signal(some * pes), Signal(pes)
        m.d.comb += [
            self.need.eq(Mux(~pending_free, need, Mux(inner, Array(sums)[place] if ahead else sum_bits(chosen), 0))),
            given.eq(pending & self.given),
            pending_free.eq(~pending | given),
            inner_free.eq(~inner | (single(bits) & pending_free)),
            outer_free.eq((~outer | (single(flags) & inner_free)) & (~unwritten | (given & begins))),
            which.eq(lowest(flags) if nibbles > 1 else 0),
            fours.eq(mask.word_select(which, some * pes)),
            place.eq(lowest(bits)),
            chosen.eq(four.word_select(place, pes)),
        ]
        m.d.sync += need.eq(self.need)
        with m.If(outer_free):
            m.d.sync += [
                mask.eq(taken),
                flags.eq(Cat(taken.word_select(n, some * pes).any() | (not masks) for n in range(nibbles))),
                first.eq(1),
                outer.eq(full),
            ]
        with m.Elif(inner_free & outer):
            m.d.sync += [flags.eq(flags & (flags - 1)[:nibbles]), first.eq(0), outer.eq(~single(flags))]
        written_mask = mask
        if along:
            first_mask = Signal(columns, reset_less=True)
            written_mask = Signal(columns, reset_less=True)
            with m.If(inner_free):
                m.d.sync += first_mask.eq(mask)
            with m.If(pending_free & inner_first):
                m.d.sync += written_mask.eq(first_mask)
        elif masks:
            with m.If(given & begins):
                m.d.sync += unwritten.eq(0)
            with m.If(outer_free):
                m.d.sync += unwritten.eq(full)
        with m.If(inner_free):
            m.d.sync += [
                four.eq(fours),
                *(sums[n].eq(sum_bits(fours.word_select(n, pes))) for n in range(some * ahead)),
                # without masks, what a row leaves out is a weight of 0, and has to be written
                bits.eq(Cat(fours.word_select(n, pes).any() | (not masks) for n in range(some))),
                nibble.eq(which),
                inner_first.eq(first),
                inner.eq(outer),
            ]
        with m.Elif(pending_free):
            m.d.sync += [bits.eq(bits & (bits - 1)[:some]), inner_first.eq(0)]
        with m.If(pending_free):
            m.d.sync += [
                pending.eq(inner),
                begins.eq(inner_first),
                slot.eq(Cat(place, nibble)),
                enable.eq(chosen),
                *(before[pe].eq(sum_bits(chosen[:pe])) for pe in range(1, pes)),
                k.eq(k + (inner & inner_first)),
            ]

        m.d.comb += [
            self.write.lanes.eq(load.lanes),
            self.write.k.eq(Cat(k, load.bank)),
            self.write.slot.eq(slot),
        ]
        for pe in range(pes):
            value = Array([self.values[n][: config.b_width] for n in range(pe + 1)])[before[pe]]
            m.d.comb += self.write.values[pe].eq(Mux(enable[pe], value, 0))
        if masks:
            m.d.comb += self.write.mask.eq(written_mask)
        last_column = (load.length - 1)[: len(load.length)]
        with m.If(given):
            m.d.comb += self.write.enable.eq(enable if masks else ~0)
            if masks:
                m.d.comb += self.write.mask_we.eq(begins)
            if not set("bc") & set(config.skip):
                # all slots are written: that of the last column is one of them
                m.d.comb += [
                    self.write.columns_we.eq(slot == (last_column >> (pes - 1).bit_length())),
                    self.write.last_slot.eq(last_column >> (config.pes_per_lane - 1).bit_length()),
                    self.write.columns_grow.eq(load.append),
                ]

        with m.If(outer_free):
            m.d.sync += full.eq(0)
        goes_on = Signal()  # nothing is in the way of the bitmap's beat at the input
        inactive = Signal()
        m.d.comb += [
            goes_on.eq(self.inside | (self.free & ~full)),
            inactive.eq(~full & ~outer & ~inner & ~pending),
        ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [
                    rows.eq(load.count - 1),
                    k.eq(load.k - 1),
                    taken.eq(0),
                    beat_number.eq(0),
                    self.inside.eq(0),
                ]
                with m.If(self.start):
                    m.next = "ROW"
            with m.State("ROW"):
                ends = Signal()
                m.d.comb += self.empty.eq(inactive & ~self.inside)
                with m.If(self.room & ~full & load.dense):
                    m.d.comb += [self.announce.eq(1), ends.eq(1)]
                    m.d.sync += taken.eq(dense_mask)
                with m.If(goes_on & ~load.dense):
                    m.d.comb += [
                        self.want.eq(1),
                        ends.eq(self.beat_valid & (beat_number == beats_for(config, load.length))),
                    ]
                    with m.If(self.beat_valid):
                        m.d.sync += [beat_number.eq(beat_number + 1), self.inside.eq(1)]
                        with m.Switch(beat_number):
                            for n in range(beats):
                                part = taken[n * config.beat_bits :][: config.beat_bits]
                                with m.Case(n):
                                    m.d.sync += part.eq(self.beat)
                with m.If(ends):
                    m.d.sync += [full.eq(1), rows.eq(rows - 1), beat_number.eq(0), self.inside.eq(0)]
                    with m.If(rows == 0):
                        m.next = "END"
            with m.State("END"):
                with m.If(~full & ~outer & ~inner & pending_free):
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
        return m
