"""Unbounded proofs of the components that carry data: nothing is lost, repeated, reordered or changed, ever.

Every proof comes with cover points (what it assumes leaves room to act) and with mutants that it refutes.
"""

from types import SimpleNamespace

import pytest
from amaranth.hdl import *
from maskwork.rtl.bit_iterator import BitIterator
from maskwork.rtl.lane_fifo import LaneFifo
from maskwork.rtl.queue import Queue
from maskwork.rtl.slot_counter import SlotCounter
from maskwork.rtl.stream import SkidBuffer

from .proofs import Fifo, Proof, fails, holds, needs_sby, variant

pytestmark = [needs_sby, pytest.mark.slow]


# ---------------------------------------------------------------------- buffers


def skid_buffer(component=SkidBuffer):
    p = Proof()
    p.m.submodules.dut = dut = component(3)
    p.free_inputs(dut)
    fifo = Fifo(p, dut.i, dut.o, 2)
    p.claim(dut.o.valid == (fifo.level != 0))
    p.claim(dut.i.ready == (fifo.level != 2))
    return p


def test_skid_buffer(tmp_path):
    holds(skid_buffer(), tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Mux(read_at, entries[1], entries[0])", "entries[0]"),
        ("with m.If(push & (write_at == n)):", "with m.If(self.i.valid & (write_at == n)):"),
        ("read_at.eq(read_at ^ pop)", "read_at.eq(read_at ^ self.o.ready)"),
        ("full | push | (some & ~pop)", "push | (some & ~pop)"),
        ("(full | (some & push)) & ~pop", "(full | push) & ~pop"),
    ],
)
def test_skid_buffer_mutants(tmp_path, old, new):
    fails(skid_buffer(variant(SkidBuffer, old, new)), tmp_path)


def queue(component=Queue):
    p = Proof()
    p.m.submodules.dut = dut = component(2, 4, margin=3)
    p.free_inputs(dut)
    fifo = Fifo(p, dut.i, dut.o, 4)
    p.claim(dut.level == fifo.level)
    p.claim(dut.o.valid == (fifo.level != 0))
    p.claim(dut.i.ready == (fifo.level != 4))
    p.claim(~dut.space | (p.past(fifo.level) <= 4 - 3))
    p.claim(dut.space | (p.past(fifo.level) > 4 - 3))
    return p


def test_queue(tmp_path):
    holds(queue(), tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("_margin)\n        with m.If(push)", "_margin + 1)\n        with m.If(push)"),
        ("with m.If(push):\n            m.d.sync += write", "with m.If(self.i.valid):\n            m.d.sync += write"),
        ("waits.eq(push | (self.level != 1))", "waits.eq(push | (self.level != 2))"),
        ("pop.eq(waits & self.o.ready)", "pop.eq(self.o.ready)"),
        ("ready.eq(~self.level[-1]),\n            self.o.valid.eq(w", "ready.eq(1),\n            self.o.valid.eq(w"),
    ],
)
def test_queue_mutants(tmp_path, old, new):
    fails(queue(variant(Queue, old, new)), tmp_path)


def queue_behind(stages: int, margin: int):
    """A producer that looks at ``space`` only and whose entries take ``stages`` cycles to the queue."""
    p = Proof()
    p.m.submodules.dut = dut = Queue(1, 8, margin=margin)
    sends = Signal()
    p.m.d.comb += [
        sends.eq(dut.space & p.free(1, "wants")),
        dut.o.ready.eq(p.free(1, "ready")),
    ]
    arrives = sends
    for _ in range(stages):
        arrives = p.past(arrives)
    p.m.d.comb += dut.i.valid.eq(arrives)
    p.claim(~dut.i.valid | dut.i.ready)
    p.cover(dut.level == 8)
    return p


@pytest.mark.parametrize("stages", [0, 1, 3])
def test_queue_margin(tmp_path, stages):
    """A producer with ``stages`` registers needs a margin of 2 more: one entry each, one for each register's delay."""
    holds(queue_behind(stages, stages + 2), tmp_path)
    fails(queue_behind(stages, stages + 1), tmp_path)


def lane_fifo(old="", new=""):
    """Two rings of 4 words of 2 bits (less than a configuration may have). One marked word of a ring free to choose."""
    p = Proof()
    m = p.m
    component = variant(LaneFifo, old, new, word_width=lambda config: 2)
    m.submodules.dut = dut = component(SimpleNamespace(rows_in_flight=2, fifo_depth=8, hash=0))
    p.free_inputs(dut)
    most = 4
    held = [Signal(range(2 * most), name=f"held{n}") for n in range(2)]  # words that have not left, also at `o`
    ring = p.constant(1, "marked_ring")
    level = Array(held)[ring]
    pop = dut.o.valid & dut.o.ready
    at_o = [dut.o.valid & (dut.reading == n) for n in range(2)]
    for n in range(2):
        push = dut.valid & (dut.ring == n)
        m.d.sync += held[n].eq(held[n] + push - (pop & (dut.reading == n)))
        # what writers and readers promise
        p.assume(~push | ((dut.written[n] - dut.taken[n])[:3] != most))
        # the pointers' promise: they differ by the words in the memory, but for one that moved just now
        moved = at_o[n] & p.past(~dut.o.valid | pop)
        inside = Signal(range(2 * most), name=f"inside{n}")
        m.d.comb += inside.eq(held[n] - at_o[n] + moved)
        p.claim((dut.written[n] - dut.taken[n])[:3] == inside)
        p.claim(dut.filled[n] == p.past(inside != 0))
    p.assume(~dut.turn | pop | ~dut.o.valid)
    p.assume(~dut.turn | ~p.past(dut.turn))
    p.assume(~dut.turn | (dut.turn_ring != dut.reading) | ~p.past(dut.go))

    marked, ahead, word = Signal(), Signal(range(2 * most)), Signal(len(dut.word))
    marks = Signal()
    m.d.comb += marks.eq(~marked & dut.valid & (dut.ring == ring) & p.free(1, "marking"))
    leaves = pop & (dut.reading == ring)
    with m.If(marks):
        m.d.sync += [marked.eq(1), ahead.eq(level - leaves), word.eq(dut.word)]
    with m.Elif(marked & leaves):
        m.d.sync += [ahead.eq(ahead - 1), marked.eq(ahead != 0)]
    p.claim(~(dut.o.valid & (dut.reading == ring)) | (level != 0))
    p.claim(~(marked & (ahead == 0) & dut.o.valid & (dut.reading == ring)) | (dut.o.payload == word))
    p.claim(p.stable(dut.o))
    # a ring that is read keeps words moving: at most 2 cycles without one at `o`
    waits = Signal(2)
    calm = dut.go & ~dut.turn & dut.filled.bit_select(dut.reading, 1) & ~dut.o.valid
    m.d.sync += waits.eq(Mux(calm, waits + 1, 0))
    p.claim(waits != 3)
    p.cover((held[0] == most + 1) & (held[1] == most))
    p.cover(marked & (ahead == 0) & leaves & (held[0] != 0) & (held[1] != 0))
    return p


def test_lane_fifo(tmp_path):
    holds(lane_fifo(), tmp_path, depth=30)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("& self.go & ~self.turn)", "& self.go)"),
        ("moved.eq(moves | self.turn)", "moved.eq(self.turn)"),
        ("moves.eq(fetched & ~moved & (~held | self.o.ready)", "moves.eq(fetched & ~moved & self.o.ready"),
        ("Cat(self.written[ring][:bits], ring)", "Cat(self.written[ring][:bits], self.reading)"),
    ],
)
def test_lane_fifo_mutants(tmp_path, old, new):
    fails(lane_fifo(old, new), tmp_path)


# ---------------------------------------------------------------------- iterators


def bit_iterator(width: int, component=BitIterator):
    """Against a list of at most two masks that hold the bits still to come: free masks of A, B and C, intersected."""
    p = Proof()
    m = p.m
    m.submodules.dut = dut = component(width, 2)
    a, b, c = (p.free(width, name) for name in "abc")
    meta = p.free(2, "meta")
    m.d.comb += [
        dut.i.valid.eq(p.free(1, "valid")),
        dut.i.payload.mask.eq(a & b & c),
        dut.i.payload.meta.eq(meta),
        dut.o.ready.eq(p.free(1, "ready")),
    ]
    left = [Signal(width, name=f"left{n}") for n in range(2)]
    metas = [Signal(2, name=f"meta{n}") for n in range(2)]
    young = [Signal(name=f"young{n}") for n in range(2)]  # came in the cycle before
    took = dut.i.valid & dut.i.ready & (a & b & c).any()
    gave = dut.o.valid & dut.o.ready
    lowest = left[0] & -left[0]
    rest = (left[0] & ~lowest)[:width]
    # the list after what leaves in this cycle
    after = [Mux(gave, rest, left[0]), left[1]]
    moves = Signal()
    m.d.comb += moves.eq(~after[0].any())
    with m.If(moves):
        m.d.sync += [left[0].eq(left[1]), metas[0].eq(metas[1]), young[0].eq(0), left[1].eq(0)]
    with m.Else():
        m.d.sync += [left[0].eq(after[0]), young[0].eq(0)]
    goes_first = moves & ~left[1].any()
    with m.If(took):
        for n in range(2):
            with m.If(goes_first if n == 0 else ~goes_first):
                m.d.sync += [left[n].eq(a & b & c), metas[n].eq(meta), young[n].eq(1)]
    with m.If(moves & left[1].any()):
        m.d.sync += young[0].eq(0)
    bit = Signal(width)
    m.d.comb += bit.eq(1 << dut.o.payload.index)
    p.claim(~(took & ~goes_first) | moves | ~left[1].any())  # two masks at most are inside
    p.claim(~dut.o.valid | (left[0].any() & (bit == lowest[:width])))
    p.claim(~dut.o.valid | (dut.o.payload.last == ~rest.any()))
    p.claim(~dut.o.valid | (dut.o.payload.meta == metas[0]))
    p.claim(dut.o.valid | ~left[0].any() | young[0])  # latency 2
    offered = p.past(dut.i.valid & (a & b & c).any())
    empty = Signal()  # the mask taken last
    with m.If(dut.i.valid & dut.i.ready):
        m.d.sync += empty.eq(~(a & b & c).any())
    # no bubble while masks are offered, but for one behind an empty mask
    p.claim(dut.o.valid | ~offered | ~p.past(offered) | p.past(empty))
    p.claim(dut.busy == left[0].any())
    p.claim(p.stable(dut.o))
    p.cover(gave & p.past(gave & dut.o.payload.last) & ~p.first)  # from one mask to the next without a bubble
    p.cover(gave & dut.o.payload.last & left[1].any() & (dut.o.payload.index == width - 1))
    p.cover(took & left[0].any() & ~gave)
    return p


@pytest.mark.parametrize("width", [4, 8, 16])
def test_bit_iterator(tmp_path, width):
    holds(bit_iterator(width), tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("final.eq(outer_last)", "final.eq(outer_valid)"),
        ("m.d.sync += bits.eq(bits & (bits - 1)[:4])", "m.d.sync += bits.eq(bits >> 1)"),
        ("inner_valid.eq(outer_valid & flags.any())", "inner_valid.eq(flags.any())"),
        ("inner_free.eq(~inner_valid | (inner_last & self.o.ready))", "inner_free.eq(~inner_valid | self.o.ready)"),
        ("outer_free.eq(~outer_valid | (outer_last & inner_free))", "outer_free.eq(~outer_valid)"),
        ("inner_meta.eq(outer_meta)", "inner_meta.eq(Value.cast(self.i.payload.meta))"),
        ("inner_valid.eq(outer_valid & flags.any())", "inner_valid.eq(outer_valid)"),
        ("for position in reversed(range(len(bits)))", "for position in range(len(bits))"),
    ],
)
def test_bit_iterator_mutants(tmp_path, old, new):
    fails(bit_iterator(8, variant(BitIterator, old, new)), tmp_path)


def slot_counter(component=SlotCounter):
    p = Proof()
    m = p.m
    m.submodules.dut = dut = component(8, 2)
    p.free_inputs(dut)
    due, last, meta, active = Signal(3), Signal(3), Signal(2), Signal()
    took, gave = dut.i.valid & dut.i.ready, dut.o.valid & dut.o.ready
    with m.If(gave):
        m.d.sync += [due.eq(due + 1), active.eq(due != last)]
    with m.If(took):
        m.d.sync += [due.eq(0), last.eq(dut.i.payload.last), meta.eq(dut.i.payload.meta), active.eq(1)]
    p.claim(~took | ~active | (gave & (due == last)))  # one input at a time, the next right behind it
    p.claim(~(gave & (due == last)) | dut.i.ready)
    p.claim(dut.o.valid == active)
    p.claim(dut.busy == active)
    p.claim(~active | (dut.o.payload.index == due))
    p.claim(~active | (dut.o.payload.meta == meta))
    p.claim(~active | (dut.o.payload.last == (due == last)))
    p.claim(p.stable(dut.o))
    p.cover(took & gave & (due == 7))
    return p


def test_slot_counter(tmp_path):
    holds(slot_counter(), tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [("index.eq(0)", "index.eq(index + 1)"), ("~valid | (ends & self.o.ready)", "~valid | ends")],
)
def test_slot_counter_mutants(tmp_path, old, new):
    fails(slot_counter(variant(SlotCounter, old, new)), tmp_path)
