"""Lane choice: which lane, ring and partial-sum slot the next row of a RUN goes to."""

from amaranth import *
from amaranth.lib import memory
from maskwork.gen.config import Config
from maskwork.rtl.layouts import NO_CHECK
from maskwork.rtl.pe import context_width

CHOICE_CYCLES = 3
"""Cycles from the state of the rings to the choice that is made from it."""

SETTLED = 3
"""Cycles for which the choice must not be looked at once ``index`` is that of the next row, or a row was given away:
flags of rings, choice of one, and its fields (or the table's word, and its fields).
"""

Choice = tuple[Value, Value, Value, Value]
"""One-hot lane (all lanes when shared), ring, partial-sum slot, and whether there is one."""


def choose_lane(
    m: Module, config: Config, fetch, run, index: Value, next_row: Value, sent: Value, wanted: Value
) -> Choice:
    """Part of a fetch unit: any ring with room, first where a whole lane is free; with ``dispatch = "turns"`` only of
    the lane whose turn it is, row after row. A table notes where a row's first K tile went, and later tiles follow it.
    Shared rows go to all lanes, to the rings in turn.

    Rows stay in their lane for all K tiles. So first K tiles are dealt in rounds, one row to every lane that still has
    partial-sum slots: whatever their lengths, lanes have as many of them. A row without wanted columns is no turn.

    Args:
        m: the fetch unit's module.
        config: the configuration.
        fetch: the fetch unit, for ``room``, ``coming`` and ``taken``.
        run: fields ``share``, ``first`` and ``final`` of the RUN.
        index: number of the row in its RUN, when it is given away; it may change in that cycle.
        next_row: ``index`` changes, or the RUN's fields are complete.
        sent: one cycle: the number and masks of the row that was given away last have been sent.
        wanted: some columns of it are wanted.
    """
    lanes, rings = config.lanes_per_cluster, config.rows_in_flight
    ring_bits = context_width(config)
    slot_width = max(1, (config.psum_rows - 1).bit_length())
    # a ring has partial-sum slots of its own, so that they are used again in the order in which rows drain
    own_slots = config.psum_rows // rings
    used = [Signal(range(own_slots + 1), name=f"used{n}", reset_less=True) for n in range(lanes * rings)]
    # `used` is cleared a cycle after a RUN was taken, and after a reset, from a register: it is in many places
    clears = Signal(init=1)
    m.d.sync += clears.eq(fetch.taken)
    # with sums in the PEs slots are taken in turn, also from RUN to RUN: rows are drained from theirs meanwhile
    next_slot = used
    if config.psum_in_pe:
        next_slot = [Signal(range(max(2, own_slots)), name=f"next_slot{n}") for n in range(lanes * rings)]
        for n in range(lanes * rings):
            with m.If(fetch.coming[n] & run["first"] & ~run["share"]):
                m.d.sync += next_slot[n].eq(next_slot[n] + 1)
    m.submodules.table = table = memory.Memory(
        shape=lanes + ring_bits + slot_width, depth=max(2, lanes * config.psum_rows), init=[], attrs=NO_CHECK
    )
    read, write = table.read_port(), table.write_port()
    keeps = Signal()  # partial sums stay: the lane needs a free slot for them
    m.d.comb += keeps.eq(run["first"] & ~run["final"])
    in_turn = config.dispatch == "turns"
    had = Signal(lanes)  # had a row in this round; with lanes in turn a row without wanted columns is a turn as well
    full = Cat(Cat(used[n * rings + ring] == own_slots for ring in range(rings)).all() for n in range(lanes))
    last = Signal(lanes)  # whom the row that was given away last went to
    # registered, for the choice is not urgent: rings that could take a row, first where the whole lane is free
    able = Signal(lanes * rings)
    lane_free = Signal(lanes * rings)
    common = Signal(rings)  # able in every lane
    for n in range(lanes):
        own = fetch.room[n * rings : (n + 1) * rings] & ~fetch.coming[n * rings : (n + 1) * rings]
        waits = Const(0) if in_turn else had[n]
        has_slot = Cat(~keeps | ((used[n * rings + ring] != own_slots) & ~waits) for ring in range(rings))
        m.d.sync += [
            able[n * rings : (n + 1) * rings].eq(own & has_slot),
            lane_free[n * rings : (n + 1) * rings].eq(Mux(own.all(), own & has_slot, 0)),
        ]
    for ring in range(rings):
        m.d.comb += common[ring].eq(Cat(able[n * rings + ring] for n in range(lanes)).all())
    settled = _settled(m, fetch, next_row)
    allowed = Const(1).replicate(lanes * rings)
    if in_turn:
        allowed = Cat((index[: (lanes - 1).bit_length()] == n).replicate(rings) for n in range(lanes))
    candidates = Mux((lane_free & allowed).any(), lane_free, able) & allowed
    pick = Signal(lanes * rings)
    m.d.sync += pick.eq(candidates & (~candidates + 1)[: lanes * rings])
    kept_lane, kept_ring, kept_slot = Signal(lanes), Signal(ring_bits), Signal(slot_width)
    kept = Cat(kept_slot, kept_ring, kept_lane)
    m.d.sync += kept.eq(read.data)
    # a row that no RUN has begun must not wait for ever: any lane will do
    with m.If(~read.data[-lanes:].any()):
        m.d.sync += kept_lane.eq(1)
    kept_able = Cat(able[n * rings : (n + 1) * rings].bit_select(kept_ring, 1) for n in range(lanes))

    lane, ring, slot, found = Signal(lanes), Signal(ring_bits), Signal(8), Signal()
    able_now = Signal()
    with m.If(run["share"]):
        # later K tiles must follow in the ring of the first
        m.d.sync += [lane.eq(~0), slot.eq(index), ring.eq(index)]
        m.d.sync += able_now.eq(common.bit_select(index[:ring_bits], 1))
    with m.Elif(run["first"]):
        m.d.sync += [lane.eq(Cat(pick[n * rings : (n + 1) * rings].any() for n in range(lanes)))]
        m.d.sync += able_now.eq(pick.any())
        for n in range(lanes * rings):
            with m.If(pick[n]):
                m.d.sync += [ring.eq(n % rings), slot.eq(Cat(Const(n % rings, ring_bits), next_slot[n]))]
    with m.Else():
        m.d.sync += [
            lane.eq(kept_lane),
            ring.eq(kept_ring),
            slot.eq(kept_slot),
            able_now.eq((kept_able & kept_lane).any()),
        ]
    m.d.comb += [
        found.eq(able_now & settled),
        read.addr.eq(index),
        write.addr.eq(index),
        write.data.eq(Cat(slot[:slot_width], ring, lane)),
        write.en.eq(fetch.coming.any() & run["first"] & ~run["share"]),
    ]
    coming = Cat(fetch.coming[n * rings : (n + 1) * rings].any() for n in range(lanes))
    still = had & ~Mux(wanted, 0, last)
    with m.If(clears):
        m.d.sync += [had.eq(0), *(count.eq(0) for count in used)]
    with m.Elif(keeps & ~run["share"]):
        m.d.sync += [used[n].eq(used[n] + fetch.coming[n]) for n in range(lanes * rings)]
        with m.If(coming.any()):
            m.d.sync += [had.eq(had | coming), last.eq(coming)]
        with m.Elif(sent):
            m.d.sync += had.eq(Mux((still | full).all(), 0, still))
    return lane, ring, slot, found


def choose_ring(m: Module, config: Config, fetch, index: Value, next_row: Value) -> Choice:
    """The same for a cluster of one lane, without a table: its rings take the rows in turn."""
    ring_bits = context_width(config)
    lane, ring, slot, found = Signal(1), Signal(ring_bits), Signal(8), Signal()
    able, able_now = Signal(config.rows_in_flight), Signal()
    m.d.sync += [able.eq(fetch.room & ~fetch.coming), able_now.eq(able.bit_select(ring, 1))]
    m.d.comb += [lane.eq(1), ring.eq(index), slot.eq(index), found.eq(able_now & _settled(m, fetch, next_row))]
    return lane, ring, slot, found


def _settled(m: Module, fetch, next_row: Value) -> Value:
    """The choice takes some registers: it belongs to this row once `SETTLED` cycles have passed."""
    wait = Signal(range(SETTLED + 1))
    with m.If(fetch.coming.any() | next_row):
        m.d.sync += wait.eq(0)
    with m.Elif(wait != SETTLED):
        m.d.sync += wait.eq(wait + 1)
    return wait == SETTLED
