"""Serial fetch: the fetch unit in little logic, a RUN's fields and loop state in one block RAM, one adder for all."""

from amaranth import *
from amaranth.lib import memory, wiring
from maskwork.gen.config import Config
from maskwork.gen.isa import LEVELS
from maskwork.rtl.fetch import RUN, columns_below, fetch_members, segment_layout
from maskwork.rtl.lane_choice import choose_lane, choose_ring
from maskwork.rtl.layouts import NO_CHECK, WordKind, clog2, ring_words, start_layout, word_width
from maskwork.rtl.pe import context_width

PARTS = ("seg", "k", "x", "y")
"""Parts of a loop state, in the order in which they are worked on."""


def _at(name: str) -> int:
    """Address of a field's halfword: the RUN's words lie in the memory as they come."""
    f = RUN.field(name)
    return 2 * f.word + (f.lsb >= 16)


CODES = {level: _at(f"{level}_seg") // len(PARTS) for level in LEVELS}
"""Number of each loop level: the address of its deltas without the part's bits."""

LEFT = 40
"""Address, plus a level's number, of what is left of its count."""

TAP_STATE = 56
"""Address of the tap state; the row state lies where the RUN's was."""

WORDS = 64


class SerialFetch(wiring.Component):
    """Does what :class:`~maskwork.rtl.fetch.Fetch` does, with its ports, in single steps: about 13 cycles a tap (17
    for a row's only one) and 40 of its own per row.

    Rows start with a copy of the loop counts. Then every loop is the same: take one from what is left of its count (or
    restore it, and go to the next loop), and add the level's deltas to the parts of the state. A tap's pass over the
    parts also compares them with the limits. A row's first tap reads the row state and writes the tap state.
    Limits and the row number are stored inverted: so that adding them compares, and that they count down too.

    Members: see :class:`~maskwork.rtl.fetch.Fetch`.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(fetch_members(config))

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("SerialFetch", self._config.hash)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        words = config.mask_words
        m.submodules.state = ram = memory.Memory(shape=16, depth=WORDS, init=[], attrs=NO_CHECK)
        write, read = ram.write_port(), ram.read_port()
        # what is needed all the time
        names = ("a_bank", "b_bank", "c_bank", "use_c", "share", "first", "final", "post", "tag")
        run = {name: Signal(RUN.field(name).width, name=f"run_{name}") for name in names}
        columns = Signal(range(config.tile_columns))
        row_words = Signal(range(2 * ring_words(config)))  # more than a ring holds is as good as all ones
        below = Cat(columns, Const(0, RUN.field("columns").width - len(columns)))
        index = Signal(8)
        next_row = Signal()
        column_mask = [Signal(min(32, config.tile_columns), name=f"mask{n}") for n in range(words)]
        mask_step = Signal(range(words + 3))
        mask_pointer = Signal(len(self.mask_address) - 1)
        segment_number, k = Signal(clog2(config.a_segments)), Signal(config.k_width)
        inside = Signal()
        sent, wanted = Signal(), Signal()
        m.d.comb += [
            wanted.eq(Cat(column_mask).any()),
            self.row_words.eq(Cat(row_words, row_words[-1].replicate(16 - len(row_words)))),
            self.coming_bank.eq(run["b_bank"]),
            self.taken_a.eq(run["a_bank"]),
            self.taken_b.eq(run["b_bank"]),
            self.taken_c.eq(run["c_bank"]),
            self.taken_use_c.eq(run["use_c"]),
            self.mask_address.eq(Cat(mask_pointer, run["c_bank"])),
            self.directory_address.eq(Cat(segment_number, run["a_bank"])),
        ]
        if config.lanes_per_cluster == 1:
            lane, ring, slot, found = choose_ring(m, config, self, index, next_row)
        else:
            lane, ring, slot, found = choose_lane(m, config, self, run, index, next_row, sent, wanted)
        chosen = Signal(config.lanes_per_cluster + context_width(config))  # lanes, then ring
        chosen_slot = Signal(8)

        # the adder: what was read a step before, and what is read now
        before, carry_in = Signal(16, init=-1), Signal()
        total = Signal(17)
        nothing = Signal()  # what is read now is 0
        m.d.comb += [
            total.eq(before + read.data + carry_in),
            nothing.eq(read.data == 0),
            write.data.eq(total),
        ]
        m.d.sync += before.eq(-1)

        start, end = Signal(start_layout(config)), Signal(start_layout(config))
        m.d.comb += [
            *(start[name].eq(run[name]) for name in ("tag", "first", "final", "post")),
            start.slot.eq(chosen_slot),
            start.bank.eq(run["b_bank"]),
            start.share.eq(run["share"]),
            start.kind.eq(WordKind.START),
            end.kind.eq(WordKind.END),
        ]
        raw, body = Signal(), Signal(word_width(config))
        segment = Signal(segment_layout(config))
        entry = Signal(self.directory.shape())
        m.d.comb += [
            entry.eq(self.directory),
            segment.start.eq(Cat(entry.start, run["a_bank"])),
            segment.words.eq(entry.words),
            segment.k.eq(k),
            self.o.item.raw.eq(raw),
            Cat(self.o.item.lanes, self.o.item.ring).eq(chosen),
            self.o.item.body.eq(Mux(raw, body, segment.as_value())),
        ]

        step = Signal(range(2 * RUN.words))  # halfword that comes
        header = Signal(range(words + 1))
        level = Signal(range(max(CODES.values()) + 1))
        part = Signal(range(len(PARTS)))
        taps = Signal()  # of the two loop nests: the taps, not the rows
        first_tap, last_tap = Signal(), Signal()
        source = Signal(range(WORDS))
        m.d.comb += source.eq(Mux(taps & ~first_tap, TAP_STATE, _at("seg")))
        deltas = Cat(part, level)
        left = (LEFT + level)[: len(read.addr)]
        count = Signal.like(read.addr)
        with m.Switch(level):
            for name in LEVELS[1:]:
                with m.Case(CODES[name]):
                    m.d.comb += count.eq(_at(name))
        m.d.comb += self.active.eq(1)

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += [self.active.eq(self.run.valid | (step != 0)), write.addr.eq(step)]
                given = self.run.payload.word_select(step[0], 16)
                inverted = Cat(step == _at(name) for name in ("x_limit", "y_limit", "row")).any()
                m.d.comb += write.data.eq(given ^ inverted.replicate(16))
                with m.If(self.run.valid):
                    m.d.comb += [write.en.eq(1), self.run.ready.eq(step[0])]
                    m.d.sync += step.eq(step + 1)
                    self._keep(m, step, run, columns, row_words, mask_pointer)
                    with m.If(step == 2 * RUN.words - 1):
                        m.d.comb += next_row.eq(1)
                        m.d.sync += [step.eq(0), index.eq(0), level.eq(CODES[LEVELS[1]])]
                        m.next = "COPY"
            with m.State("COPY"):
                m.d.comb += read.addr.eq(count)
                m.next = "COPIED"
            with m.State("COPIED"):
                m.d.comb += [carry_in.eq(1), write.addr.eq(left), write.en.eq(1)]
                m.d.sync += level.eq(level + 1)
                m.next = "COPY"
                with m.If(level == CODES[LEVELS[-1]]):
                    m.next = "ROW"
            with m.State("ROW"):
                m.d.sync += mask_step.eq(0)
                for word in range(words):
                    m.d.sync += column_mask[word].eq(columns_below(below, word))
                with m.If(self.abort):
                    m.next = "TAKEN"
                with m.Elif(run["use_c"]):
                    m.next = "MASK"
                with m.Else():
                    m.next = "CHOOSE"
            with m.State("MASK"):
                m.d.sync += mask_step.eq(mask_step + 1)
                with m.If(mask_step < words):
                    m.d.sync += mask_pointer.eq(mask_pointer + 1)
                for word in range(words):
                    with m.If(mask_step == word + 2):
                        m.d.sync += column_mask[word].eq(self.mask & column_mask[word])
                with m.If(mask_step == words + 1):
                    m.next = "CHOOSE"
            with m.State("CHOOSE"):
                m.d.sync += [header.eq(0), chosen.eq(Cat(lane, ring)), chosen_slot.eq(slot)]
                with m.If(self.abort):
                    m.next = "TAKEN"
                with m.Elif(found & self.space):
                    rings = config.rows_in_flight
                    for n in range(len(self.coming)):
                        m.d.comb += self.coming[n].eq(lane[n // rings] & (ring == n % rings))
                    m.next = "START"
            with m.State("START"):
                m.d.comb += [raw.eq(1), body.eq(start.as_value()), self.o.valid.eq(1), read.addr.eq(_at("row"))]
                m.d.sync += [taps.eq(1), first_tap.eq(1), last_tap.eq(0), level.eq(CODES["t0"])]
                m.next = "HEADER"
                if config.psum_in_pe:
                    with m.If(~run["first"]):  # the lane has the number and the masks
                        m.next = "COUNT"
                        with m.If(~wanted):
                            m.next = "END"
            with m.State("HEADER"):
                m.d.comb += [raw.eq(1), read.addr.eq(_at("row")), write.addr.eq(_at("row"))]
                with m.Switch(header):
                    with m.Case(0):
                        m.d.comb += [body.eq(~read.data), write.en.eq(self.space)]
                    for word in range(words):
                        with m.Case(word + 1):
                            m.d.comb += body.eq(column_mask[word])
                with m.If(self.space):
                    m.d.comb += self.o.valid.eq(1)
                    m.d.sync += header.eq(header + 1)
                    with m.If(header == words):
                        m.d.comb += sent.eq(1)
                        m.next = "COUNT"
                        with m.If(~wanted):
                            m.next = "END"
            # a loop's count
            with m.State("COUNT"):
                m.d.comb += read.addr.eq(left)
                m.d.sync += part.eq(0)
                m.next = "COUNTED"
            with m.State("COUNTED"):
                m.d.comb += write.addr.eq(left)
                with m.If(nothing):
                    m.d.comb += read.addr.eq(count)
                    m.next = "RESTORE"
                with m.Else():
                    m.d.comb += [write.en.eq(1), read.addr.eq(source)]
                    m.next = "VALUE"
            with m.State("RESTORE"):
                m.d.comb += [carry_in.eq(1), write.addr.eq(left), write.en.eq(1), read.addr.eq(source)]
                m.d.sync += level.eq(level - 1)
                m.next = "COUNT"
                with m.If(level == CODES["t1"]):
                    m.d.sync += last_tap.eq(1)
                    m.next = "VALUE"
                with m.If(level == CODES["m1"]):
                    m.next = "VALUE"
            # a pass over the parts of the state
            with m.State("VALUE"):
                m.d.sync += before.eq(read.data)
                loaded = Array(self.segments)[run["a_bank"]]
                with m.If(part == 0):
                    m.d.sync += [segment_number.eq(read.data), inside.eq(read.data < loaded)]
                with m.If(part == 1):
                    m.d.sync += k.eq(read.data)
                m.d.comb += read.addr.eq(deltas)
                m.next = "DELTA"
                with m.If(taps & part[1]):
                    m.d.comb += read.addr.eq(Cat(part[0], Const(_at("x_limit") >> 1, len(read.addr) - 1)))
                    m.next = "LIMIT"
            with m.State("LIMIT"):
                m.d.comb += [carry_in.eq(1), read.addr.eq(deltas)]
                m.d.sync += before.eq(before)
                with m.If(before[-1] | total[-1]):
                    m.d.sync += inside.eq(0)
                m.next = "DELTA"
            with m.State("DELTA"):
                m.d.comb += [
                    write.addr.eq(Cat(part, Mux(taps, TAP_STATE, _at("seg"))[2:])),
                    write.en.eq(1),
                    read.addr.eq(Cat((part + 1)[:2], source[2:])),
                ]
                m.d.sync += part.eq(part + 1)
                m.next = "VALUE"
                with m.If(part == len(PARTS) - 1):
                    m.next = "ROW"
                    with m.If(taps):
                        m.next = "SEGMENT"
            with m.State("SEGMENT"):
                with m.If(self.space):
                    m.d.comb += self.o.valid.eq(inside & (entry.words != 0))
                    m.d.sync += [first_tap.eq(0), level.eq(CODES["t0"])]
                    m.next = "COUNT"
                    with m.If(last_tap):
                        m.next = "END"
            with m.State("END"):
                m.d.comb += [raw.eq(1), body.eq(end.as_value()), read.addr.eq(_at("rows"))]
                m.d.sync += [taps.eq(0), level.eq(CODES["m0"])]
                with m.If(self.space):
                    m.d.comb += [self.o.valid.eq(1), next_row.eq(1)]
                    m.d.sync += index.eq(index + 1)
                    m.next = "ROWS"
            with m.State("ROWS"):
                m.d.comb += [write.addr.eq(_at("rows")), write.en.eq(1)]
                m.next = "COUNT"
                with m.If(read.data == 1):
                    m.next = "TAKEN"
            with m.State("TAKEN"):
                m.d.comb += self.taken.eq(1)
                m.next = "IDLE"
        return m

    def _keep(self, m, step, run, columns, row_words, mask_pointer):
        """Fields of the word that comes that have registers of their own."""
        given = self.run.payload

        def value(name):
            f = RUN.field(name)
            return given[f.lsb : f.lsb + f.width]

        with m.If(step == 0):
            m.d.sync += [*(run[name].eq(value(name)) for name in run), columns.eq(value("columns"))]
        with m.If(step == _at("row_words")):
            m.d.sync += row_words.eq(value("row_words") | value("row_words")[len(row_words) :].any().replicate(16))
        with m.If(step == _at("c_row")):
            m.d.sync += mask_pointer.eq(value("c_row") << (self._config.mask_words - 1).bit_length())
