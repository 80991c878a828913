"""Fetch: walks the rows and taps of a RUN, picks a lane for every row, and lists what the lane is to be sent."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.gen.isa import COMMANDS, Op
from maskwork.rtl.lane_choice import choose_lane
from maskwork.rtl.layouts import WordKind, clog2, directory_layout, segment_words, start_layout, word_width
from maskwork.rtl.pe import context_width

RUN = COMMANDS[Op.RUN]

ALWAYS_USED = frozenset({"row_words", "first", "final", "share", "use_c", "a_bank", "b_bank", "c_bank"})
"""Fields of RUN that something depends on also while there is none; the others need no reset, which has far to go."""


def segment_layout(config: Config) -> data.StructLayout:
    """A segment to send: first word of the activation buffer (bank on top), number of words, k of element 0."""
    return data.StructLayout(
        {"start": clog2(config.a_depth) + 1, "words": segment_words(config).bit_length(), "k": config.k_width}
    )


def item_layout(config: Config) -> data.StructLayout:
    """One item for the copier: a word to send as it is (``raw``), or a segment."""
    width = max(word_width(config), segment_layout(config).size)
    return data.StructLayout(
        {"lanes": config.lanes_per_cluster, "ring": context_width(config), "raw": 1, "body": width}
    )


def fetch_members(config: Config):
    """Ports of a fetch unit (:class:`Fetch`, :class:`~maskwork.rtl.fetch_serial.SerialFetch`)."""
    rings = config.lanes_per_cluster * config.rows_in_flight
    return {
        "run": In(stream.Signature(32)),
        "abort": In(1),
        "segments": In(data.ArrayLayout(range(config.a_segments + 1), 2)),
        "directory_address": Out(clog2(config.a_segments) + 1),
        "directory": In(directory_layout(config)),
        "mask_address": Out(clog2(2 * config.c_rows * config.mask_words)),
        "mask": In(32),
        "o": Out(data.StructLayout({"valid": 1, "item": item_layout(config)})),
        "space": In(1),
        "room": In(rings),
        "row_words": Out(16),
        "coming": Out(rings),
        "coming_bank": Out(1),
        "active": Out(1),
        "taken": Out(1),
        "taken_a": Out(1),
        "taken_b": Out(1),
        "taken_c": Out(1),
        "taken_use_c": Out(1),
    }


class Fetch(wiring.Component):
    """Turns RUN descriptors into the words and segments of rows, each row for the lane that is free.

    A row without wanted columns has no segments. Taps outside the limits, and segments that are not loaded, are left
    out at a cycle each. One tap a cycle, and 4 cycles and one for each mask word per row: while a row's words are sent,
    the next row's lane is chosen, and its masks are read. With ``psum_in_pe`` later K tiles are sent without row and
    mask words, in 3 cycles and one for each tap. Their masks, which tell rows that want nothing, are read all the same:
    at least 4 cycles, and ``mask_words`` + 2.

    Members:
        run: words of RUN commands.
        abort: drop what was not dispatched yet.
        segments: loaded segments, per activation bank.
        directory_address, directory: the segment directory, data 2 cycles later.
        mask_address, mask: the C-mask memory, data 2 cycles later.
        o: items; at most 4 more follow once ``space`` is low.
        room: per ring of each lane (rings side by side), it has room for a row of ``row_words`` and wants one;
            looked at CHOICE_CYCLES before a row is given away.
        row_words: room that a row of this RUN needs.
        coming, coming_bank: per ring of each lane, a row was given to it.
        active: a RUN is being dispatched.
        taken: one cycle: the RUN (banks in ``taken_*``) has been dispatched completely.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(fetch_members(config))

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Fetch", self._config.hash)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        lanes, words = config.lanes_per_cluster, config.mask_words
        run = {}
        word_number = Signal(range(RUN.words))
        for f in RUN.fields:
            shape = signed(f.width) if f.signed else f.width
            run[f.name] = Signal(shape, name=f"run_{f.name}", reset_less=f.name not in ALWAYS_USED)
        # fields that are only checked, never used here, synthesise to nothing
        row_seg, row_k, row_x, row_y = (run[n] for n in ("seg", "k", "x", "y"))
        tap_seg, tap_k = Signal(signed(16), reset_less=True), Signal(config.k_width, reset_less=True)
        tap_x, tap_y = Signal(signed(16), reset_less=True), Signal(signed(16), reset_less=True)
        m0, m1, t0, t1 = (Signal(16, name=n, reset_less=True) for n in ("m0", "m1", "t0_left", "t1_left"))
        index = Signal(16)  # of the row that is given away next
        number = Signal(16, reset_less=True)  # of the row that was
        # the ends of loops come from registers: additions hang on them. Rows take many cycles, taps may take one each
        m0_ends, m1_ends, rows_end, t0_ends, t1_ends = (
            Signal(name=n, reset_less=True) for n in ("m0_ends", "m1_ends", "rows_end", "t0_ends", "t1_ends")
        )
        m.d.sync += [
            m0_ends.eq(m0 == run["m0"]),
            m1_ends.eq(m1 == run["m1"]),
            rows_end.eq(index == run["rows"]),
        ]
        loops = [t0.eq(run["t0"]), t0_ends.eq(run["t0"] == 0)], [t1.eq(run["t1"]), t1_ends.eq(run["t1"] == 0)]
        column_mask = [Signal(32, name=f"mask{n}", reset_less=True) for n in range(words)]
        mask_step = Signal(range(words + 3), init=words + 2)
        mask_pointer = Signal(len(self.mask_address) - 1, reset_less=True)
        m.d.comb += [
            self.row_words.eq(run["row_words"]),
            self.coming_bank.eq(run["b_bank"]),
            self.taken_a.eq(run["a_bank"]),
            self.taken_b.eq(run["b_bank"]),
            self.taken_c.eq(run["c_bank"]),
            self.taken_use_c.eq(run["use_c"]),
            self.mask_address.eq(Cat(mask_pointer, run["c_bank"])),
        ]
        run_begins = Signal()
        sent, wanted = Signal(), Signal()
        lane, ring, slot, found = choose_lane(m, config, self, run, index, run_begins, sent, wanted)
        chosen = Signal(lanes + context_width(config), reset_less=True)  # lanes, then ring
        chosen_slot = Signal(8, reset_less=True)

        # items pass two registers, so that a segment's directory entry is there when it leaves
        push, raw, inside = Signal(), Signal(), Signal()
        body = Signal(word_width(config))
        push1, push2 = Signal(), Signal()
        raw1, raw2 = Signal(reset_less=True), Signal(reset_less=True)
        body1, body2 = (Signal.like(body, name=f"body{n}", reset_less=True) for n in (1, 2))
        k1, k2 = (Signal.like(tap_k, name=f"k{n}") for n in (1, 2))
        chosen1, chosen2 = (Signal.like(chosen, name=f"chosen{n}") for n in (1, 2))
        segment = Signal(segment_layout(config))
        segments = Signal(range(config.a_segments + 1), reset_less=True)  # of the RUN's bank
        entry = Signal(self.directory.shape())
        m.d.comb += [
            self.directory_address.eq(Cat(tap_seg[: clog2(config.a_segments)], run["a_bank"])),
            inside.eq(
                (tap_x >= 0) & (tap_x < run["x_limit"].as_unsigned())
                & (tap_y >= 0) & (tap_y < run["y_limit"].as_unsigned())
                & (tap_seg >= 0) & (tap_seg < segments)
            ),
            entry.eq(self.directory),
            segment.start.eq(Cat(entry.start, run["a_bank"])),
            segment.words.eq(entry.words),
            segment.k.eq(k2),
            self.o.valid.eq(push2 & (raw2 | (entry.words != 0))),
            self.o.item.raw.eq(raw2),
            Cat(self.o.item.lanes, self.o.item.ring).eq(chosen2),
            self.o.item.body.eq(Mux(raw2, body2, segment.as_value())),
        ]  # fmt: skip
        # a bank is complete long before a RUN that reads it takes its first tap
        m.d.sync += segments.eq(Array(self.segments)[run["a_bank"]])
        m.d.sync += [
            push1.eq(push & (raw | inside)), raw1.eq(raw), body1.eq(body), k1.eq(tap_k), chosen1.eq(chosen),
            push2.eq(push1), raw2.eq(raw1), body2.eq(body1), k2.eq(k1), chosen2.eq(chosen1),
        ]  # fmt: skip

        start = Signal(start_layout(config))
        end = Signal(start_layout(config))
        m.d.comb += [
            start.tag.eq(run["tag"]),
            start.slot.eq(chosen_slot),
            start.bank.eq(run["b_bank"]),
            start.first.eq(run["first"]),
            start.final.eq(run["final"]),
            start.post.eq(run["post"]),
            start.share.eq(run["share"]),
            start.kind.eq(WordKind.START),
            end.kind.eq(WordKind.END),
        ]
        limits = [columns_below(run["columns"], word) for word in range(words)]
        header = Signal(range(words + 1))
        step_row = self._adders(m, (row_seg, row_k, row_x, row_y), run, ("m0", "m1", "m2"))
        step_tap = self._adders(m, (tap_seg, tap_k, tap_x, tap_y), run, ("t0", "t1"))
        m.d.comb += wanted.eq(Cat(column_mask).any())
        # rows that are sent without their number and masks, which the lane has
        known = Signal()
        if config.psum_in_pe:
            m.d.comb += known.eq(~run["first"])

        # a row's masks are read once those of the row before were sent, and are there before they are needed: while its
        # first words are sent at the latest. Of known rows it only matters whether any column is wanted, one cycle
        # after they were given away: the next row's may be read from then on
        read_masks = Signal()
        with m.If(read_masks):
            m.d.sync += mask_step.eq(0)
        with m.Elif(mask_step != words + 2):
            m.d.sync += mask_step.eq(mask_step + 1)
        with m.If(mask_step < words):
            m.d.sync += mask_pointer.eq(mask_pointer + 1)
        for word in range(words):
            with m.If(mask_step == word + 2):
                m.d.sync += column_mask[word].eq((self.mask | ~run["use_c"].replicate(32)) & limits[word])

        begin_taps = [
            tap_seg.eq(row_seg), tap_k.eq(row_k), tap_x.eq(row_x), tap_y.eq(row_y), *loops[0], *loops[1],
        ]  # fmt: skip
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += [self.run.ready.eq(1), self.active.eq(self.run.valid | (word_number != 0))]
                with m.If(self.run.valid):
                    for f in RUN.fields:
                        with m.If(word_number == f.word):
                            m.d.sync += run[f.name].eq(self.run.payload[f.lsb : f.lsb + f.width])
                    m.d.sync += word_number.eq(word_number + 1)
                    with m.If(word_number == RUN.words - 1):
                        m.d.comb += run_begins.eq(1)
                        m.d.sync += [word_number.eq(0), index.eq(0), m0.eq(0), m1.eq(0)]
                        m.next = "RUN"
            with m.State("RUN"):
                m.d.comb += self.active.eq(1)
                m.d.comb += read_masks.eq(1)
                m.d.sync += mask_pointer.eq(run["c_row"] << (words - 1).bit_length())
                m.next = "CHOOSE"
            with m.State("CHOOSE"):
                m.d.comb += self.active.eq(1)
                m.d.sync += [
                    header.eq(0), chosen.eq(Cat(lane, ring)), chosen_slot.eq(slot),
                    number.eq(run["row"] + index),
                ]  # fmt: skip
                with m.If(self.abort):
                    m.next = "TAKEN"
                with m.Elif(found & self.space & (~known | (mask_step > words))):
                    m.d.comb += read_masks.eq(known)
                    for n in range(lanes * config.rows_in_flight):
                        ring_is = ring == n % config.rows_in_flight
                        m.d.comb += self.coming[n].eq(lane[n // config.rows_in_flight] & ring_is)
                    m.d.sync += index.eq(index + 1)
                    m.next = "START"
            with m.State("START"):
                m.d.comb += [self.active.eq(1), push.eq(1), raw.eq(1), body.eq(start.as_value())]
                m.d.sync += begin_taps
                m.next = "HEADER"
                with m.If(known):
                    m.next = "TAPS"
                    with m.If(~wanted):
                        m.next = "END"
            with m.State("HEADER"):
                m.d.comb += [self.active.eq(1), raw.eq(1)]
                with m.Switch(header):
                    with m.Case(0):
                        m.d.comb += body.eq(number)
                    for word in range(words):
                        with m.Case(word + 1):
                            m.d.comb += body.eq(column_mask[word])
                with m.If(self.space):
                    m.d.comb += push.eq(1)
                    m.d.sync += header.eq(header + 1)
                    with m.If(header == words):
                        m.d.comb += [read_masks.eq(1), sent.eq(1)]
                        m.next = "TAPS"
                        with m.If(~wanted):
                            m.next = "END"
            with m.State("TAPS"):
                m.d.comb += self.active.eq(1)
                with m.If(self.space):
                    m.d.comb += push.eq(1)
                    with m.If(~t0_ends):
                        m.d.sync += [t0.eq(t0 - 1), t0_ends.eq(t0 == 1)]
                        step_tap("t0")
                    with m.Else():
                        m.d.sync += [*loops[0], t1.eq(t1 - 1), t1_ends.eq(t1 == 1)]
                        step_tap("t1")
                        with m.If(t1_ends):
                            m.next = "END"
            with m.State("END"):
                m.d.comb += [self.active.eq(1), raw.eq(1), body.eq(end.as_value())]
                with m.If(self.space):
                    m.d.comb += push.eq(1)
                    with m.If(~m0_ends):
                        m.d.sync += m0.eq(m0 + 1)
                        step_row("m0")
                    with m.Elif(~m1_ends):
                        m.d.sync += [m0.eq(0), m1.eq(m1 + 1)]
                        step_row("m1")
                    with m.Else():
                        m.d.sync += [m0.eq(0), m1.eq(0)]
                        step_row("m2")
                    m.next = "CHOOSE"
                    with m.If(rows_end):
                        m.next = "TAKEN"
            with m.State("TAKEN"):
                m.d.comb += [self.active.eq(1), self.taken.eq(1)]
                m.next = "IDLE"
        return m

    def _adders(self, m, state, run, levels):
        """One adder for each part of a loop state; ``step(level)`` gives the statements that advance the state."""
        level = Signal(range(max(2, len(levels))))
        names = ("seg", "k", "x", "y")
        sums = []
        for register, name in zip(state, names, strict=True):
            delta = Signal(register.shape(), name=f"{register.name}_step")
            m.d.comb += delta.eq(Array([run[f"{n}_{name}"] for n in levels])[level])
            sums.append((register + delta)[: len(register)])

        def step(name):
            m.d.comb += level.eq(levels.index(name))
            m.d.sync += [register.eq(total) for register, total in zip(state, sums, strict=True)]

        return step


def columns_below(columns: Value, word: int) -> Value:
    """The 32 bits of mask word ``word`` that belong to columns 0 to ``columns`` (as a table: comparators cost more)."""
    ones = Const((1 << 32) - 1, 32)
    return Mux(columns[5:] == word, ones >> ~columns[:5], Mux(columns[5:] > word, ones, 0))
