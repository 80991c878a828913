"""Cluster: lanes that share an activation buffer, a fetch unit and a post-processing unit."""

from functools import reduce
from operator import or_

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.rtl.a_buffer import ABuffer
from maskwork.rtl.arbiter import round_robin
from maskwork.rtl.banks import Banks, bank_flags
from maskwork.rtl.c_buffer import CBuffer
from maskwork.rtl.compress import header_beats
from maskwork.rtl.copier import COPY_LATENCY, Copier
from maskwork.rtl.drain import DRAIN_GAP, DRAIN_LATENCY
from maskwork.rtl.fetch import Fetch, item_layout, segment_layout
from maskwork.rtl.fetch_serial import SerialFetch
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.hop import lane_stages, late_reset, near_side
from maskwork.rtl.lane import Lane
from maskwork.rtl.layouts import a_write_layout, b_write_layout, c_write_layout, counts_layout, ring_words
from maskwork.rtl.post import PostProcess, RowWord, limits_signature, parameter_signature, unfold
from maskwork.rtl.queue import Queue
from maskwork.rtl.run_fifo import RunFifo
from maskwork.rtl.shared_weights import SharedWeights
from maskwork.rtl.stream import beat_layout

LOW_WATER = 24
"""Words left in a lane's ring when it asks for its next row: early enough to hide the way there, late enough that rows
go to the lane that is free first.
"""


class Cluster(wiring.Component):
    """Runs RUN commands over its own banks.

    All inputs from the loader and the sequencer are taken as they come (they are registered on the way, with
    ``hop_stages`` so many times more, as is what goes back to them: see :mod:`~maskwork.rtl.hop`).

    Members:
        number: number of the cluster.
        a_write, b_write, c_write, p, limits: loads; the ``*_selected`` inputs say that this cluster takes part.
        run_word, run_we, run_commit, run_cancel, run_space: RUN commands.
        run: banks of the RUN that is committed.
        begins, completes: see :class:`~maskwork.rtl.banks.Banks`.
        abort: drop what was not dispatched.
        loaded, fresh, busy, full: state of the banks, registered.
        idle: no RUN is pending, nothing is inside.
        o: RESULT packets.
        loading: a load is in progress (for the counters).
        counts: PEs by what they did.
        token, finished: a nonzero entered a lane, a row left one (for compute_cycles).
        hop_reset: with ``hop_stages``, the reset once more, from a register of its own: for the registers on the way,
            which are far from the rest.
    """

    def __init__(self, config: Config):
        self._config = config
        pes = config.lanes_per_cluster * config.pes_per_lane
        super().__init__(
            {
                "number": In(8),
                "a_write": In(a_write_layout(config)),
                "a_selected": In(1),
                "b_write": In(b_write_layout(config)),
                "b_selected": In(1),
                "c_write": In(c_write_layout(config)),
                "c_selected": In(1),
                "p": In(parameter_signature(config)),
                "limits": In(limits_signature(config)),
                "run_word": In(32),
                "run_we": In(1),
                "run_commit": In(1),
                "run_cancel": In(1),
                "run_space": Out(1),
                "run": In(data.StructLayout({"valid": 1, "a": 1, "b": 1, "c": 1, "use_c": 1})),
                "begins": In(bank_flags()),
                "completes": In(bank_flags()),
                "abort": In(1),
                "loaded": Out(bank_flags()),
                "fresh": Out(bank_flags()),
                "busy": Out(bank_flags()),
                "full": Out(1),
                "idle": Out(1),
                "o": Out(stream.Signature(beat_layout(config))),
                "loading": In(1),
                "counts": Out(counts_layout(pes), init={"idle": pes}),  # pyright: ignore[reportCallIssue]
                "token": Out(1),
                "finished": Out(1),
                **({"hop_reset": In(1)} if config.hop_stages else {}),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Cluster", self._config.hash)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        plain = ("a_write", "b_write", "c_write", "p", "limits", "run_word")
        hop_reset = self.hop_reset if config.hop_stages else None
        near = near_side(m, self, config.hop_stages, platform, ("number", "hop_reset"), plain, hop_reset)
        lanes = [
            submodule(m, f"lane{n}", Lane(config), platform, late_reset(m, f"lane{n}", lane_stages(config), platform))
            for n in range(config.lanes_per_cluster)
        ]
        submodule(m, "a_buffer", a_buffer := ABuffer(config), platform)
        submodule(m, "c_buffer", c_buffer := CBuffer(config), platform)
        submodule(m, "run_fifo", run_fifo := RunFifo(config), platform)
        submodule(m, "fetch", fetch := (Fetch if config.lut_ram else SerialFetch)(config), platform)
        submodule(m, "items", items := Queue(item_layout(config), 16, 6, not config.lut_ram), platform)
        submodule(m, "copier", copier := Copier(config), platform)
        submodule(m, "banks", banks := Banks(config), platform)

        a_write = Signal(a_write_layout(config), reset_less=True)
        a_selected = Signal()
        c_write = Signal(c_write_layout(config), reset_less=True)
        c_selected = Signal()
        m.d.sync += [
            a_write.eq(near.a_write),
            a_selected.eq(near.a_selected),
            c_write.eq(near.c_write),
            c_selected.eq(near.c_selected),
        ]
        m.d.comb += [
            a_buffer.write.eq(a_write),
            a_buffer.selected.eq(a_selected),
            c_buffer.write.eq(c_write),
            c_buffer.selected.eq(c_selected),
            run_fifo.word.eq(near.run_word),
            run_fifo.we.eq(near.run_we),
            run_fifo.commit.eq(near.run_commit),
            run_fifo.cancel.eq(near.run_cancel),
            near.run_space.eq(run_fifo.space),
            fetch.abort.eq(near.abort),
            fetch.segments.eq(a_buffer.segments),
            a_buffer.directory_address.eq(fetch.directory_address),
            fetch.directory.eq(a_buffer.directory),
            c_buffer.address.eq(fetch.mask_address),
            fetch.mask.eq(c_buffer.word),
            items.i.valid.eq(fetch.o.valid),
            items.i.payload.eq(fetch.o.item),
            fetch.space.eq(items.space),
            a_buffer.address.eq(copier.address),
            copier.word.eq(a_buffer.word),
        ]
        wiring.connect(m, run_fifo.o, fetch.run)
        wiring.connect(m, items.o, copier.i)
        self._feed_lanes(m, near, lanes, fetch, copier, platform)
        post_busy, post_idle = self._post_process(m, near, lanes, platform)

        segment_bank = data.View(segment_layout(config), fetch.o.item.body[: segment_layout(config).size]).start[-1]
        loads = Signal(bank_flags())  # bank of the load in progress, or of the last
        with m.If(near.begins.as_value().any()):
            m.d.sync += loads.eq(near.begins)
        weights = [Signal(name=f"weights{bank}") for bank in range(2)]
        m.d.comb += [
            *(weights[bank].eq(Cat(lane.banks[bank] for lane in lanes).any()) for bank in range(2)),
            *(copier.coming[bank].eq(fetch.o.valid & ~fetch.o.item.raw & (segment_bank == bank)) for bank in range(2)),
            banks.copying.eq(copier.copying),
            banks.lanes.eq(Cat(weights)),
            banks.post.eq(post_busy),
            banks.begins.eq(near.begins),
            banks.completes.eq(near.completes),
            banks.run.eq(near.run),
            banks.taken.valid.eq(fetch.taken),
            banks.taken.a.eq(fetch.taken_a),
            banks.taken.b.eq(fetch.taken_b),
            banks.taken.c.eq(fetch.taken_c),
            banks.taken.use_c.eq(fetch.taken_use_c),
        ]
        m.d.sync += [
            near.loaded.eq(banks.loaded),
            near.fresh.eq(banks.fresh),
            near.busy.eq(banks.busy),
            # a buffer that was full stays so until it is loaded again: only the load in progress counts
            near.full.eq((a_buffer.full & loads.a.any()) | (c_buffer.full & loads.c.any())),
            near.idle.eq(
                ~fetch.active & ~items.o.valid & ~copier.busy & ~Cat(weights).any() & post_idle & ~banks.busy.a.any()
            ),
        ]
        self._count(m, near, lanes)
        return m

    def _share_weights(self, m, lanes, write, selected, platform):
        """Memories for neighbouring lanes together."""
        config = self._config
        for first in range(0, len(lanes), config.weight_lanes):
            group = lanes[first : first + config.weight_lanes]
            submodule(m, f"weights{first}", weights := SharedWeights(config), platform)
            chosen = write.lanes[first : first + len(group)] & selected.replicate(len(group))
            m.d.comb += [weights.write.eq(write), weights.selected.eq(chosen)]
            for number, lane in enumerate(group):
                m.d.comb += [
                    lane.apart.eq(~chosen.all()),
                    weights.address[number].eq(lane.weight_address),
                    lane.weights.eq(weights.words[number]),
                ]

    def _feed_lanes(self, m, near, lanes, fetch, copier, platform):
        config = self._config
        b_write = Signal(b_write_layout(config), reset_less=True)
        b_selected = Signal()
        m.d.sync += [b_write.eq(near.b_write), b_selected.eq(near.b_selected)]
        if config.weight_lanes > 1:
            self._share_weights(m, lanes, b_write, b_selected, platform)
        # a ring wants a row once it runs low, if the whole row fits; the rings are looked at one after the other
        rings, words = config.rows_in_flight, ring_words(config)
        count = len(lanes) * rings
        # what is written until a ring is looked at again, and what is under way
        margin = count + COPY_LATENCY + 4 + 2 * lane_stages(config)
        usable = words - margin
        fits, low = Signal(range(words + 1)), Signal(range(words + 1))
        m.d.sync += [
            fits.eq(Mux(fetch.row_words >= usable, 0, usable - fetch.row_words)),
            low.eq(Mux(fits > LOW_WATER, LOW_WATER, fits)),
        ]
        turn, turn1, turn2 = (Signal(range(max(2, count)), name=f"turn{n}") for n in range(3))
        level = Signal(range(2 * words))
        # every lane tells the level of the ring that has its turn in one of them, a register and the hops later
        ring_bits = (rings - 1).bit_length()
        ahead = 2 * lane_stages(config)
        m.d.sync += [
            turn.eq(Mux(turn == count - 1, 0, turn + 1)),
            turn1.eq(turn),
            turn2.eq(turn1),
            level.eq(Array([lane.level for lane in lanes])[turn1 >> ring_bits]),
        ]
        room, space = Signal(count), Signal(count, init=-1)
        scrubs = Cat(lane.scrubs for lane in lanes).any()
        for number in range(count):
            with m.If(turn2 == number):
                # accumulators are not ready while lanes scrub them, which follows each reset
                m.d.sync += [room[number].eq((level <= low) & ~scrubs), space[number].eq(level <= usable)]
        # a ring that was given a row has one pending; for some cycles it does not know
        given: Value = Cat(lane.pending for lane in lanes)
        recent: Value = fetch.coming
        for stage in range(2 * lane_stages(config)):
            before, recent = recent, Signal(count, name=f"given{stage}")
            m.d.sync += recent.eq(before)
            given |= recent
        m.d.comb += [
            fetch.room.eq(room & ~given),
            copier.space.eq(space),
        ]
        running = Signal()  # rows are anywhere in the cluster, or still to come
        m.d.sync += running.eq(fetch.active | Cat(lane.working for lane in lanes).any())
        for number, lane in enumerate(lanes):
            m.d.comb += [
                lane.scan.eq((turn + ahead)[:ring_bits]),
                lane.valid.eq(copier.o.lanes[number]),
                lane.ring.eq(copier.o.ring),
                lane.word.eq(copier.o.word),
                lane.coming.eq(fetch.coming[number * rings : (number + 1) * rings]),
                lane.coming_bank.eq(fetch.coming_bank),
                lane.write.eq(b_write),
                lane.selected.eq(b_selected & b_write.lanes[number]),
                lane.lane.eq(near.number * len(lanes) + number),
                lane.loading.eq(near.loading),
                lane.running.eq(running),
            ]

    def _post_process(self, m, near, lanes, platform):
        """One lane at a time sends a row to the post-processing unit."""
        config = self._config
        # a lane's pace suits the compressor: no queue where nothing is computed of the sums and no other lane follows
        direct = not config.post and len(lanes) == 1 and config.acc_width <= 32 and header_beats(config) <= DRAIN_GAP
        # a word may be chosen in the lane while `space` is on its way
        slack = DRAIN_LATENCY + 6 + 2 * lane_stages(config)
        # nothing comes here for many cycles after a reset, which has far to go to all of a cluster
        reset = late_reset(m, "results", config.hop_stages, platform)
        submodule(m, "post", post := PostProcess(config, slack if direct else None), platform, reset)
        word_shape = RowWord(config)
        word, out = Signal(word_shape, reset_less=True), Signal(word_shape)
        valid = Signal()
        if direct:
            waits, space = Const(0, 1), post.space
            m.d.comb += [post.i.valid.eq(valid), out.eq(word)]
        else:
            rows = Queue(word_shape, 16 << lane_stages(config), slack, not config.lut_ram)
            submodule(m, "rows", rows, platform, reset)
            waits, space = rows.o.valid, rows.space
            m.d.comb += [
                rows.i.valid.eq(valid),
                rows.i.payload.eq(word),
                post.i.valid.eq(rows.o.valid),
                out.eq(rows.o.payload),
                rows.o.ready.eq(post.i.ready),
            ]
        m.d.comb += unfold(post.i.payload, out, near.number[: 8 - (len(lanes) - 1).bit_length()])
        wiring.connect(m, near.p, post.p)
        wiring.connect(m, near.limits, post.limits)
        wiring.connect(m, post.o, near.o)
        requests = Cat(lane.request for lane in lanes)
        granted, free = Signal(len(lanes)), Signal()
        m.d.comb += free.eq((granted & requests) == 0)
        # a lane goes on asking for many cycles after it was granted
        choice = round_robin(m, requests, free, "turn", granted)
        with m.If(free):
            m.d.sync += granted.eq(choice)
        m.d.sync += valid.eq(Cat(lane.o.valid for lane in lanes).any())
        # the next lane may have the grant already, but no two give a word at once; without one a lane gives zeros
        m.d.sync += word.as_value().eq(reduce(or_, (lane.o.word.as_value() for lane in lanes)))
        for number, lane in enumerate(lanes):
            m.d.comb += [lane.grant.eq(granted[number]), lane.space.eq(space)]
        draining = Cat(lane.draining for lane in lanes).any()
        return waits | valid | post.busy | draining, post.idle & ~waits & ~valid & ~draining

    def _count(self, m, near, lanes):
        for name in near.counts.shape().members:
            m.d.sync += near.counts[name].eq(reduce(lambda x, y: x + y, (lane.counts[name] for lane in lanes)))
        m.d.sync += [
            near.token.eq(Cat(lane.token for lane in lanes).any()),
            near.finished.eq(Cat(lane.row_finished for lane in lanes).any()),
        ]
