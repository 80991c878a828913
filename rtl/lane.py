"""Lane: a FIFO of row words, the expander, a row of PEs that share its tokens, and the drain."""

from functools import reduce
from operator import or_

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.rtl.drain import Drain
from maskwork.rtl.expander import Expander
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.hop import lane_stages, late_reset, near_side
from maskwork.rtl.lane_fifo import LaneFifo
from maskwork.rtl.layouts import b_write_layout, counts_layout, ring_words, word_width
from maskwork.rtl.pe import LOOKUP_LATENCY, PE, context_width, token_layout, upper_width
from maskwork.rtl.post import RowWord, fold
from maskwork.rtl.shared_weights import own_rows, weight_address_width, weights_layout
from maskwork.rtl.weight_masks import WeightMasks


class Lane(wiring.Component):
    """Computes whole rows of C for the columns of its PEs.

    Tokens go to all PEs at once: a lane is narrow, and what a skid buffer for every PE would cost buys more queue.

    Members:
        valid, ring, word: words of rows (see :mod:`maskwork.rtl.expander`), for a context's ring.
        written, taken: pointers of the rings (see :class:`~maskwork.rtl.lane_fifo.LaneFifo`).
        pending: per ring, a row was announced and its START has not left the ring.
        coming: per ring, one cycle: a row for weight bank ``coming_bank`` will be written.
        banks: per weight bank, rows are announced, waiting, in progress or draining.
        write: weights; ``lanes`` was already resolved into ``selected``.
        apart: these are not for the neighbour with which the lane shares its weights (``weight_lanes``).
        weight_address, weights: see :class:`~maskwork.rtl.pe.PE`, for each PE.
        o, request, grant, space: to post-processing (see :mod:`maskwork.rtl.drain`); where there are several lanes,
            ``o`` is all 0 while it is not valid.
        lane: number of the lane.
        loading, running: what the rest of the accelerator does, for the counters.
        counts: PEs by what they did 3 cycles ago.
        token: a nonzero entered the PEs.
        row_finished: a row was drained, or its sums are complete and stay.
        draining: rows' sums are complete and still to be drained (``psum_in_pe``).
        working: a row is anywhere in the lane.
        scrubs: accumulators are being cleared, after a reset.
    """

    def __init__(self, config: Config):
        self._config = config
        shared: dict[str, wiring.Member] = {}
        if config.weight_lanes > 1:
            shared["apart"] = In(1)
            shared["weight_address"] = Out(data.ArrayLayout(weight_address_width(config), config.pes_per_lane))
            shared["weights"] = In(data.ArrayLayout(weights_layout(config), config.pes_per_lane))
        super().__init__(
            {
                **shared,
                "valid": In(1),
                "ring": In(context_width(config)),
                "word": In(word_width(config)),
                "scan": In(context_width(config)),
                "level": Out(range(2 * ring_words(config))),
                "pending": Out(config.rows_in_flight),
                "coming": In(config.rows_in_flight),
                "coming_bank": In(1),
                "banks": Out(2),
                "write": In(b_write_layout(config)),
                "selected": In(1),
                "o": Out(data.StructLayout({"valid": 1, "word": RowWord(config)})),
                "request": Out(1),
                "grant": In(1),
                "space": In(1),
                "lane": In(8),
                "loading": In(1),
                "running": In(1),
                "counts": Out(counts_layout(config.pes_per_lane), init={"idle": config.pes_per_lane}),  # pyright: ignore[reportCallIssue]
                "token": Out(1),
                "row_finished": Out(1),
                "draining": Out(1),
                "working": Out(1),
                "scrubs": Out(1),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Lane", self._config.hash)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        # weights have registers of their own in the memories
        direct = ("lane", "write", "selected", "apart", "weight_address", "weights")
        plain = ("ring", "word", "level", "o")
        cleared = "o" if config.lanes_per_cluster > 1 else ""
        near = near_side(m, self, lane_stages(config), platform, direct, plain, cleared=cleared)
        submodule(m, "fifo", fifo := LaneFifo(config), platform)
        submodule(m, "expander", expander := Expander(config), platform)
        submodule(m, "drain", drain := Drain(config), platform)
        # a PE's reset may come a cycle later: the first sum that the drain clears reaches it after that
        pes = [
            submodule(m, f"pe{n}", PE(config), platform, late_reset(m, f"pe{n}", lane_stages(config), platform))
            for n in range(config.pes_per_lane)
        ]
        wiring.connect(m, fifo.o, expander.i)
        written, taken = Signal.like(near.level, name="written"), Signal.like(near.level, name="taken")
        m.d.sync += [written.eq(fifo.written[near.scan]), taken.eq(fifo.taken[near.scan])]
        m.d.comb += [
            fifo.valid.eq(near.valid),
            fifo.ring.eq(near.ring),
            fifo.word.eq(near.word),
            near.level.eq(written - taken),
            fifo.go.eq(expander.go),
            fifo.turn.eq(expander.turn),
            fifo.turn_ring.eq(expander.turn_ring),
            expander.reading.eq(fifo.reading),
            expander.filled.eq(fifo.filled),
        ]

        # tokens: all PEs look up the same k; the rest of the token follows when their masks are there
        fire = Signal()
        blocked = Signal()
        m.d.comb += [
            expander.o.ready.eq(Cat(pe.space for pe in pes).all() & ~blocked),
            fire.eq(expander.o.valid & expander.o.ready),
        ]
        valid, token = fire, expander.o.payload
        in_lookup = [valid]
        ahead = early = token
        for stage in range(LOOKUP_LATENCY):
            valid_after = Signal(name=f"valid{stage + 1}")
            token_after = Signal(token_layout(config), name=f"token{stage + 1}", reset_less=True)
            ahead, early = early, token
            m.d.sync += [valid_after.eq(valid), token_after.eq(token)]
            valid, token = valid_after, token_after
            in_lookup.append(valid)

        # a row's first words go to several places: from registers of their own
        header, header_context = Signal(), Signal(context_width(config), reset_less=True)
        header_upper = Signal(upper_width(config), reset_less=True)
        header_index, header_word = Signal.like(expander.header_index), Signal(32, reset_less=True)
        m.d.sync += [
            header.eq(expander.header),
            header_context.eq(fifo.reading),
            header_upper.eq(expander.header_upper),
            header_index.eq(expander.header_index),
            header_word.eq(expander.header_word),
        ]
        done = reduce(lambda x, y: x & y, (pe.done for pe in pes))
        leaves, kept, retired, retired_bank = self._leave(m, near, expander, drain, fire, blocked, done)
        write = Signal(b_write_layout(config), reset_less=True)
        m.d.sync += write.eq(self.write)
        selected, write_k = Signal(), write.k
        m.d.sync += selected.eq(self.selected)
        if config.weight_lanes > 1:
            apart = Signal()
            m.d.sync += apart.eq(self.apart)
            m.d.comb += expander.second.eq(self.lane[0])
            write_k = own_rows(write.k, apart, self.lane[0])
            for number, pe in enumerate(pes):
                m.d.comb += [self.weight_address[number].eq(pe.weight_address), pe.weights.eq(self.weights[number])]
        if "b" in config.skip:
            submodule(m, "masks", masks := WeightMasks(config), platform)
            m.d.comb += [
                masks.k.eq(expander.o.payload.k),
                masks.we.eq(write.mask_we & selected),
                masks.write_k.eq(write_k),
                masks.mask.eq(write.mask),
                *(pe.mask.eq(masks.masks[number]) for number, pe in enumerate(pes)),
            ]
        for number, pe in enumerate(pes):
            m.d.comb += [
                *(pe.early[name].eq(early[name]) for name in ("context", "upper", "end")),
                *(pe.ahead[name].eq(ahead[name]) for name in ("context", "upper", "end")),
                pe.token.eq(token),
                pe.token_valid.eq(valid),
                pe.write.k.eq(write.k),
                pe.write.slot.eq(write.slot),
                *(pe.write.value[n].eq(write.values[n * len(pes) + number]) for n in range(config.load_slots)),
                pe.write.we.eq(write.enable[number :: len(pes)] & selected.replicate(config.load_slots)),
                *(pe.drain[name].eq(drain.drain[name]) for name in ("slot", "context", "upper")),
                pe.drain.valid.eq(drain.select[number]),
                pe.done_clear.eq(drain.done_clear | retired),
            ]
            if not set("bc") & set(config.skip):
                m.d.comb += [
                    pe.write.columns_we.eq(write.columns_we & selected),
                    pe.write.columns_grow.eq(write.columns_grow),
                    pe.write.last_slot.eq(write.last_slot),
                ]
            if "c" in config.skip:
                slots = range(len(pe.column_mask.mask))
                m.d.comb += [
                    pe.column_mask.we.eq(header & (header_index >= 2)),
                    pe.column_mask.context.eq(header_context),
                    pe.column_mask.upper.eq(header_upper),
                    pe.column_mask.word.eq(header_index - 2),
                    pe.column_mask.mask.eq(Cat(header_word[slot * len(pes) + number] for slot in slots)),
                ]

        m.d.comb += [
            drain.header.eq(header),
            drain.header_word.eq(header_word),
            drain.header_index.eq(header_index),
            drain.context.eq(header_context),
            drain.upper.eq(header_upper),
            drain.done.eq(done & ~kept),
            drain.sum.eq(reduce(or_, (pe.sum for pe in pes))),
            drain.lane.eq(self.lane),
            expander.release.eq(drain.done_clear | leaves),
            near.o.valid.eq(drain.o.valid),
            near.o.word.eq(fold(config, drain.o.word)),
            near.request.eq(drain.request),
            near.scrubs.eq(drain.scrubs),
            drain.grant.eq(near.grant),
            drain.space.eq(near.space),
        ]
        self._rows(m, near, fifo, expander, drain, retired.any(), retired_bank)
        self._count(m, near, expander, drain, pes, in_lookup)
        return m

    def _leave(self, m, near, expander, drain, fire, blocked, done):
        """Rows that leave their sums in the accumulators (all of them, with ``psum_in_pe``): per context, such a row's
        END enters the PEs; it is in some of them; it has left all (and that row's weight bank).

        The context is free for its next row as soon as the END enters, for by then all tokens before it were looked up.
        The next row's END waits until this one has left. A final K tile's row then waits for the drain, in its slot:
        ``owed`` keeps others away from that.
        """
        config = self._config
        contexts = config.rows_in_flight
        leaves, kept, retired = (Signal(contexts, name=name) for name in ("leaves", "kept", "retired"))
        retired_bank = Signal()
        if not config.psum_in_pe:
            return leaves, kept, retired, retired_bank
        token = expander.o.payload
        banks, finals = Signal(contexts), Signal(contexts)
        uppers = Array([Signal(upper_width(config), name=f"upper{n}") for n in range(contexts)])
        slot = Cat(token.context, token.upper)
        final = expander.final.bit_select(token.context, 1)
        owed = Signal(config.psum_rows)
        which = Signal(context_width(config))  # retired: ENDs leave one after the other
        m.d.comb += [
            blocked.eq(token.end & kept.bit_select(token.context, 1)),
            leaves.eq((fire & token.end) << token.context),
            retired.eq(kept & done),
            retired_bank.eq((retired & banks).any()),
            *(
                which[bit].eq(Cat(retired[n] for n in range(contexts) if n >> bit & 1).any())
                for bit in range(len(which))
            ),
            expander.owed.eq(owed),
            drain.finish.eq((retired & finals).any()),
            drain.finish_row.eq(Cat(which, uppers[which])),
        ]
        m.d.sync += kept.eq((kept & ~retired) | leaves)
        for n in range(contexts):
            with m.If(leaves[n]):
                m.d.sync += [banks[n].eq(token.k[-1]), finals[n].eq(final), uppers[n].eq(token.upper)]
        with m.If(drain.drained):
            m.d.sync += owed.bit_select(drain.row, 1).eq(0)
        with m.If(leaves.any() & final):
            m.d.sync += owed.bit_select(slot, 1).eq(1)
        # what the drain has still to do
        rows = Signal(range(config.psum_rows + 1), name="undrained")
        m.d.sync += rows.eq(rows + drain.finish - drain.finished)
        m.d.comb += near.draining.eq(rows != 0)
        return leaves, kept, retired, retired_bank

    def _rows(self, m, near, fifo, expander, drain, retired, retired_bank):
        started = (expander.header & (expander.header_index == 0)) << fifo.reading
        m.d.sync += near.pending.eq((near.pending | near.coming) & ~started)
        m.d.sync += near.row_finished.eq(drain.finished | (retired & ~drain.finish))
        for bank in range(2):
            rows = Signal(4, name=f"rows{bank}")
            coming = near.coming.any() & (near.coming_bank == bank)
            # a row whose sums are complete in the accumulators needs the weights no more
            if self._config.psum_in_pe:
                leaves = retired & (retired_bank == bank)
            else:
                leaves = drain.finished & (drain.finished_bank == bank)
            m.d.sync += rows.eq(rows + coming - leaves)
            m.d.comb += near.banks[bank].eq(rows != 0)
        m.d.comb += near.working.eq(near.banks.any() | near.draining)

    def _count(self, m, near, expander, drain, pes, in_lookup):
        """Charge every PE's cycle to the first reason that applies: conditions, sums, counts, a register each.

        What the PEs and the expander decide late in a cycle goes straight into a register: nothing waits for it.
        """
        each = {name: Signal(len(pes), name=f"pe_{name}") for name in ("multiply", "stolen", "working")}
        for name, signal in each.items():
            m.d.sync += signal.eq(Cat(getattr(pe, name) for pe in pes))
        # `in_lookup` a cycle ago: `valid` is late, and its register is there already
        last = Signal()
        m.d.sync += last.eq(in_lookup[-1])
        looking = Cat(*in_lookup[1:], last).any()
        lookup = ~each["multiply"] & ~each["stolen"] & (each["working"] | looking.replicate(len(pes)))
        stolen = each["stolen"].any()  # by a drain, which reads one PE at a time
        m.d.sync += near.token.eq(in_lookup[0] & ~expander.o.payload.end)

        conditions = {
            "fetch": expander.in_row & ~expander.o.valid,
            "imbalance": expander.o.valid & ~expander.o.ready,
            "drain": expander.waits | expander.busy.any() | drain.active,
            "load": near.loading & ~near.running,
            "dispatch": near.running,
        }
        # out of reset every PE is idle, also in the registers of this pipeline
        rest = {name: Signal(name=name, init=name == "idle") for name in (*conditions, "idle")}
        taken = Const(0, 1)
        for name, condition in conditions.items():
            met = Signal(name=f"{name}_met")
            m.d.sync += [met.eq(condition), rest[name].eq(met & ~taken)]
            taken = taken | met
        others = Signal(range(len(pes) + 1), init=len(pes))
        summed = {name: Signal.like(others, name=f"{name}_pes", init=0) for name in ("multiply", "lookup", "stolen")}
        m.d.sync += [
            rest["idle"].eq(~taken),
            others.eq(len(pes) - sum_bits(each["multiply"] | lookup) - stolen),
            summed["multiply"].eq(sum_bits(each["multiply"])),
            summed["lookup"].eq(sum_bits(lookup)),
            summed["stolen"].eq(stolen),
            near.counts.multiply.eq(summed["multiply"]),
            near.counts.lookup.eq(summed["lookup"]),
        ]
        for name, applies in rest.items():
            stolen_too = summed["stolen"] if name == "drain" else 0
            m.d.sync += near.counts[name].eq(Mux(applies, others, 0) + stolen_too)


def sum_bits(bits: Value) -> Value:
    """Number of set bits."""
    return reduce(lambda x, y: x + y, list(bits))
