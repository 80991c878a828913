"""Unbounded proofs of the components that unpack and pack values: the loader's gearbox, the results' packer."""

import pytest
from amaranth.hdl import *
from maskwork.gen.config import Config
from maskwork.gen.isa import Reply
from maskwork.rtl.compress import Compress, PostKind, RowHeader
from maskwork.rtl.gearbox import Gearbox

from .proofs import Proof, fails, holds, needs_sby, variant

pytestmark = [needs_sby, pytest.mark.slow]


def gearbox(config: Config, component=Gearbox):
    """One marked value of a beat comes out after exactly those before it; padding never does."""
    p = Proof()
    m = p.m
    m.submodules.dut = dut = component(config)
    p.free_inputs(dut)
    put = dut.want & dut.beat_valid
    due, held = Signal(17), Signal(8)  # values announced that no beat brought; values held
    fields = {}
    for is_b, width in enumerate((config.a_width, config.b_width)):
        each = range(32 // width)
        fields[is_b] = [dut.beat[32 * word + width * n :][:width] for word in range(config.stream_words) for n in each]
    whole = Mux(dut.is_b, len(fields[1]), len(fields[0]))
    fresh = Signal(8)
    m.d.comb += fresh.eq(Mux(put, Mux(due > whole, whole, due), 0))
    need, hold = Signal.like(dut.need), Signal()  # in this cycle: the ports are of the next
    m.d.sync += [need.eq(dut.need), hold.eq(dut.hold)]
    take = Signal.like(need)
    m.d.comb += take.eq(Mux(held >= need, need, 0))
    p.assume(dut.need <= dut.most)
    kind = Signal()  # of the values: it changes with `clear`
    p.assume(dut.is_b == kind)
    p.assume(due + dut.announce < 1 << len(dut.announce))
    p.assume(hold | dut.row | (dut.announce == 0))
    p.assume(~dut.row | (~hold & (due == fresh)))  # a row begins behind all that were announced
    m.d.sync += [due.eq(due + dut.announce - fresh), held.eq(held + fresh - take)]

    marking, at = p.free(1, "marking"), p.free(range(max(map(len, fields.values()))), "at")
    marked, ahead, word = Signal(), Signal(8), Signal(dut.width)
    field = [Array(fields[n])[at] for n in range(2)]
    with m.If(~marked & marking & (at < fresh)):
        m.d.sync += [marked.eq(1), ahead.eq(held - take + at), word.eq(Mux(dut.is_b, field[1], field[0]))]
    with m.Elif(marked):
        m.d.sync += [marked.eq(ahead >= take), ahead.eq(ahead - take)]
    with m.If(dut.clear):
        m.d.sync += [due.eq(0), held.eq(0), marked.eq(0), kind.eq(p.free(1, "next_kind"))]
    p.claim(dut.count == held)
    p.claim(~marked | (ahead < held))
    p.claim(~marked | (ahead >= dut.most) | (Array(dut.values)[ahead[: dut.most.bit_length()]] == word))
    p.claim(dut.given == (held >= need))
    p.claim(dut.more == (due > whole))
    p.claim(~dut.want | ~hold)
    p.claim(dut.want | hold | (held - take > dut.most))  # never waits while there is room
    p.cover(marked & (ahead < take) & (ahead == dut.most - 1))
    p.cover(held == dut.most + len(fields[0]))
    p.cover(dut.row & put & (due > 1))
    return p


GEARBOX_CONFIGS = {
    "equal": Config(pes_per_lane=2, fetch_width=2, a_width=10, b_width=10),
    "a wider": Config(pes_per_lane=2, fetch_width=2, a_width=16, b_width=10),
    "b wider": Config(pes_per_lane=1, fetch_width=2, a_width=8, b_width=18),
}


@pytest.mark.parametrize("name", GEARBOX_CONFIGS)
def test_gearbox(tmp_path, name):
    holds(gearbox(GEARBOX_CONFIGS[name]), tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(stays <= self.most)", "(stays <= self.most + 1)"),
        ("Mux(self.clear, 0, held) - self.need", "held - self.need"),
        ("Mux(self.more, whole, left)", "whole"),
        ("Mux(base <= n, placed", "Mux(base < n, placed"),
        ("Mux(self.given, rest, self.count)", "rest"),
        ("Mux(self.given, left_over, slot)", "left_over"),
        ("given.eq(rest >= 0)", "given.eq(rest >= -1)"),
        ("following > whole", "following >= whole"),
        ("left > 2 * whole", "left >= 2 * whole"),
        ("self.announce > whole", "self.announce >= whole"),
    ],
)
def test_gearbox_mutants(tmp_path, old, new):
    fails(gearbox(GEARBOX_CONFIGS["a wider"], variant(Gearbox, old, new)), tmp_path)


def packer(config: Config, component=Compress):
    """Every row's header, bitmap and packed values, on their way to the memory, against the row that came in."""

    class Front(component):
        def _store(self, m, start, end, beat, held, flush, front, heading):
            m.d.comb += [
                writes.eq(flush | (end & held)),
                values.eq(beat),
                heads.eq(heading),
                head.eq(front[: config.beat_bits]),
            ]
            return m

    p = Proof()
    m = p.m
    columns = config.tile_columns
    writes, values, head = Signal(), Signal(config.beat_bits), Signal(config.beat_bits)
    m.submodules.dut = dut = Front(config)
    heads = Signal(range(dut.header_beats + 1))
    p.free_inputs(dut)

    # what the input promises
    word = dut.i
    in_row, pause = Signal(), Signal(range(dut.gap + 2))
    least, row_post = Signal(range(columns + 1)), Signal()
    starts, comes, ends = (word.kind == kind for kind in (PostKind.START, PostKind.VALUE, PostKind.END))
    m.d.sync += pause.eq(Mux(pause == 0, 0, pause - 1))
    with m.If(starts):
        m.d.sync += [in_row.eq(1), least.eq(0), row_post.eq(word.post)]
    with m.If(comes):
        m.d.sync += [least.eq(word.column + 1), pause.eq(Mux(row_post, 0, dut.value_gap))]
    with m.If(ends):
        m.d.sync += [in_row.eq(0), pause.eq(dut.gap)]
    p.assume((word.kind == PostKind.NONE) | (pause == 0))
    p.assume(Mux(in_row, ~starts, ~comes & ~ends))
    p.assume(~comes | ((word.column >= least) & (word.post == row_post)))
    p.assume(~(starts | comes) | ~word.post | config.post)
    p.assume(~comes | word.post | (word.value == word.value[: config.acc_width].as_signed()))

    # the row, a cycle later
    start, come, end = (p.past(event) for event in (starts, comes, ends))
    column, value, post = p.past(word.column), Signal(64), Signal()
    m.d.comb += [post.eq(p.past(word.post & config.post)), value.eq(p.past(word.value).as_signed())]
    take = Signal()
    m.d.comb += take.eq(come & Mux(post, value[: config.a_width].any(), value.any()))
    kept = [Signal(64, name=f"kept{n}") for n in range(columns)]
    count, bitmap, header, is_post = Signal(range(columns + 1)), Signal(columns), Signal(RowHeader), Signal()
    written = Signal(range(2 * columns + 1))
    m.d.sync += written.eq(written + writes)
    with m.If(start):
        m.d.sync += [count.eq(0), bitmap.eq(0), written.eq(0), header.eq(value), is_post.eq(post)]
        m.d.sync += [register.eq(0) for register in kept]
    with m.If(take):
        m.d.sync += [Array(kept)[count].eq(value), count.eq(count + 1), bitmap.eq(bitmap | (1 << column)[:columns])]

    def beats(width):
        """All values packed, beat by beat; and the beats that n values take."""
        group, bits = 32 if width <= 32 else 64, config.beat_bits
        fields = group // width
        words = [Cat(v[:width] for v in kept[n : n + fields]) for n in range(0, columns, fields)]
        every = Cat(Cat(word, C(0, group))[:group] for word in words)
        taken = [-(-(n // fields * group + n % fields * width) // bits) for n in range(columns + 1)]
        return Array(Cat(every[n:], C(0, bits))[:bits] for n in range(0, len(every), bits)), Array(taken)

    packed, packed_beats = beats(config.a_width)
    raw, raw_beats = beats(32 if config.acc_width <= 32 else 64)
    p.claim(~writes | (values == Mux(is_post, packed[written], raw[written])))
    p.claim(~end | (written + writes == Mux(is_post, packed_beats[count], raw_beats[count])))

    # header and bitmap, a beat a cycle right after the row's end
    opening = Cat(C(Reply.RESULT, 8), header.tag, header.lane, is_post, C(0, 7), header.row, count)
    sections = [Cat(opening, C(0, 64))[:64], bitmap, C(0, config.beat_bits)]
    heading = Cat(sections)
    p.claim(p.past(end) == (heads == dut.header_beats))
    p.claim(~p.past(heads != 0) | (heads == p.past(heads) - 1))
    for n in range(dut.header_beats):
        p.claim((heads != dut.header_beats - n) | (head == heading[n * config.beat_bits :][: config.beat_bits]))
    p.cover(end & (count == columns) & ~is_post)
    p.cover(end & (count == columns - 1) & (written != 0) & bitmap[-1])
    if config.post:
        p.cover(end & (count == columns) & is_post)
    return p


PACKER_CONFIGS = {
    "post, 1 word": Config(lanes=1, lanes_per_cluster=1, pes_per_lane=1, slots=4, a_width=13, b_width=4, acc_width=17),
    "post, 2 words": Config(
        lanes=1, lanes_per_cluster=1, pes_per_lane=1, slots=4, a_width=9, b_width=4, acc_width=16, stream_words=2
    ),
    "post, 4 words": Config(
        lanes=1, lanes_per_cluster=1, pes_per_lane=1, slots=8, a_width=9, b_width=4, acc_width=16, stream_words=4
    ),
    "64 bits, 1 word": Config(
        lanes=1, lanes_per_cluster=1, pes_per_lane=1, slots=4, a_width=4, b_width=4, acc_width=34, post=False
    ),
    "post, 33 bits, 2 words": Config(
        lanes=1, lanes_per_cluster=1, pes_per_lane=1, slots=4, a_width=9, b_width=4, acc_width=33, stream_words=2
    ),
}


@pytest.mark.parametrize("name", PACKER_CONFIGS)
def test_packer(tmp_path, name):
    holds(packer(PACKER_CONFIGS[name]), tmp_path, depth=24)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("low.any() | (~self.i.post & high.any())", "low.any() | high.any()"),
        ("flush.eq((take & held & first) | second)", "flush.eq((take & first) | second)"),
        ("m.d.sync += [held.eq(0), in_beat.eq(1), in_word.eq(1)]", "m.d.sync += [held.eq(0), in_beat.eq(1)]"),
        ("with m.Elif(take & first):", "with m.Elif(take & start):"),
        ("m.d.sync += bitmap.eq(0)", "m.d.sync += bitmap.eq(bitmap)"),
        ("m.d.sync += heading.eq(self.header_beats)", "m.d.sync += heading.eq(self.header_beats - 1)"),
    ],
)
def test_packer_mutants(tmp_path, old, new):
    fails(packer(PACKER_CONFIGS["post, 1 word"], variant(Compress, old, new)), tmp_path)
