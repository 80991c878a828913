"""Accelerator: the two-stream top of the generated hardware."""

from functools import reduce

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.gen.isa import COUNTERS, Reply
from maskwork.rtl.cluster import Cluster
from maskwork.rtl.collector import Collector, WordPacker
from maskwork.rtl.copier import COPY_LATENCY
from maskwork.rtl.counters import Counters
from maskwork.rtl.drain import DRAIN_LATENCY
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.hop import late_reset
from maskwork.rtl.loader import Loader
from maskwork.rtl.mask_unit import LATENCY as MASK_LATENCY
from maskwork.rtl.pe import LOOKUP_LATENCY, MULTIPLY_LATENCY
from maskwork.rtl.post import post_latency
from maskwork.rtl.sequencer import Sequencer
from maskwork.rtl.stream import SkidBuffer, beat_layout
from maskwork.rtl.stream_units import add_stream_units
from maskwork.rtl.vector import LATENCY as VECTOR_LATENCY

REASONS = COUNTERS[:8]
"""Counters of PE-cycles; the others follow."""

EARLY_CYCLES = 2
"""What the counters miss between BEGIN's first word and their start, less what they count after SYNCED has left."""


def latencies(config: Config) -> dict[str, int]:
    """Cycles that parts of a configuration's hardware take, for manifests."""
    return {
        "copy": COPY_LATENCY,
        "lookup": LOOKUP_LATENCY,
        "multiply": MULTIPLY_LATENCY,
        "drain": DRAIN_LATENCY,
        "post": post_latency(config),
        "vector": VECTOR_LATENCY,
        "mask": MASK_LATENCY,
    }


class Accelerator(wiring.Component):
    """Commands and data in, results and replies out (see :mod:`maskwork.gen.isa`).

    Both streams are registered in both directions.

    Members:
        i: command packets, beats of ``stream_words`` words with ``last``.
        o: reply packets.
    """

    def __init__(self, config: Config):
        self.config = config
        self.latencies = latencies(config)
        signature = stream.Signature(beat_layout(config))
        super().__init__({"i": In(signature), "o": Out(signature)})

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Accelerator", self.config.hash)

    def elaborate(self, platform):
        m = Module()
        config = self.config
        submodule(m, "input", entry := SkidBuffer(beat_layout(config)), platform)
        submodule(m, "output", leave := SkidBuffer(beat_layout(config)), platform)
        submodule(m, "sequencer", sequencer := Sequencer(config), platform)
        submodule(m, "loader", loader := Loader(config), platform)
        submodule(m, "packer", packer := WordPacker(config), platform)
        # every program finds the array as reset leaves it, so that its cycles depend on nothing that ran before; from a
        # register, for this reset goes almost everywhere
        array_reset = Signal(init=1)
        m.d.sync += array_reset.eq(sequencer.clear)
        # from a register as well: many LUTs decide on it, and no cycle counts
        abort = Signal()
        m.d.sync += abort.eq(sequencer.abort)
        submodule(m, "collector", collector := Collector(config, config.clusters + 1), platform, array_reset)
        clusters = []
        for n in range(config.clusters):
            reset = late_reset(m, f"cluster{n}", config.hop_stages, platform, array_reset)
            clusters.append(cluster := submodule(m, f"cluster{n}", Cluster(config), platform, reset))
            if config.hop_stages:
                hop_reset = late_reset(m, f"cluster{n}_hops", config.hop_stages, platform, array_reset)
                m.d.comb += cluster.hop_reset.eq(hop_reset)
        wiring.connect(m, wiring.flipped(self.i), entry.i)
        wiring.connect(m, entry.o, sequencer.i)
        wiring.connect(m, sequencer.o, packer.i)
        wiring.connect(m, packer.o, collector.i0)
        wiring.connect(m, collector.o, leave.i)
        wiring.connect(m, leave.o, wiring.flipped(self.o))
        wiring.connect(m, sequencer.payload, loader.i)
        load = sequencer.load
        if config.hop_stages:
            # the loader is a long wire away; a load's fields are there more than a cycle before its start
            load = Signal.like(load, reset_less=True)
            m.d.sync += load.eq(sequencer.load)
        m.d.comb += [
            loader.load.eq(load),
            loader.start.eq(sequencer.load_start),
            loader.ended.eq(sequencer.load_ended),
            sequencer.load_done.eq(loader.done),
            sequencer.load_end.eq(loader.end),
        ]
        add_stream_units(m, platform, config, sequencer)
        for number, cluster in enumerate(clusters):
            selected = sequencer.selected[number]
            wiring.connect(m, cluster.o, getattr(collector, f"i{number + 1}"))
            for name in ("p", "limits"):
                source, target = getattr(loader, name), getattr(cluster, name)
                for member in target.signature.members:
                    m.d.comb += getattr(target, member).eq(getattr(source, member))
                m.d.comb += target.valid.eq(source.valid & selected)
            m.d.comb += [
                cluster.number.eq(number),
                cluster.a_write.eq(loader.a),
                cluster.a_selected.eq(selected),
                cluster.b_write.eq(loader.b),
                cluster.b_selected.eq(selected),
                cluster.c_write.eq(loader.c),
                cluster.c_selected.eq(selected),
                cluster.run_word.eq(sequencer.run_word),
                cluster.run_we.eq(sequencer.run_we),
                cluster.run_commit.eq(sequencer.run_commit & selected),
                cluster.run_cancel.eq(sequencer.run_cancel | (sequencer.run_commit & ~selected)),
                cluster.run.eq(Cat(sequencer.run_commit & selected, sequencer.run)),
                cluster.begins.eq(sequencer.begins.as_value() & selected.replicate(8)),
                cluster.completes.eq(sequencer.completes.as_value() & selected.replicate(8)),
                cluster.abort.eq(abort),
                cluster.loading.eq(sequencer.loading),
                sequencer.run_space[number].eq(cluster.run_space),
                sequencer.loaded[number].eq(cluster.loaded),
                sequencer.fresh[number].eq(cluster.fresh),
                sequencer.busy[number].eq(cluster.busy),
                sequencer.full[number].eq(cluster.full),
                sequencer.idle[number].eq(cluster.idle),
            ]
        if config.counters:
            self._count(m, platform, sequencer, clusters, entry.o.valid & entry.o.ready)
        else:
            m.d.comb += sequencer.stop_counting.eq(1)
        return m

    def _count(self, m, platform, sequencer, clusters, taken):
        config = self.config
        pe_bits = config.pes.bit_length()
        sums = {n: Signal(pe_bits, name=f"pes_{n}", init=config.pes if n == "idle" else 0) for n in REASONS}
        for name, total in sums.items():
            m.d.sync += total.eq(reduce(lambda x, y: x + y, (cluster.counts[name] for cluster in clusters)))
        word_in, word_out = Signal(), Signal()
        token, finished = Signal(), Signal()
        since = Signal(32)  # cycles since the last row left, or since the first nonzero entered
        started = Signal()
        m.d.sync += [
            word_in.eq(taken),
            word_out.eq(self.o.valid & self.o.ready),
            token.eq(Cat(cluster.token for cluster in clusters).any()),
            finished.eq(Cat(cluster.finished for cluster in clusters).any()),
            since.eq(Mux(finished, 0, since + 1)),
        ]
        with m.If(~started):
            m.d.sync += since.eq(1)
        with m.If(sequencer.count_clear):
            m.d.sync += started.eq(0)
        with m.Elif(token):
            m.d.sync += started.eq(1)
        computed = Mux(finished & started, since + 1, 0)[:32]
        widths = [*(len(total) for total in sums.values()), 1, 1, 1, 32]
        # cycles in which BEGIN's first word was already inside, when nothing else was; a beat of one word was taken
        initial = {"idle": EARLY_CYCLES * config.pes, "cycles": EARLY_CYCLES, "words_in": int(config.stream_words == 1)}
        start = [initial.get(name, 0) for name in COUNTERS]
        submodule(m, "counters", counters := Counters(widths, start), platform)
        # both a cycle later, for what the sequencer decides late enables many additions
        m.d.sync += [
            counters.increments.eq(Cat(*sums.values(), Const(1, 1), word_in, word_out, computed)),
            # they may still run for another program: that must not count in the cycle after it ended
            counters.enable.eq(sequencer.counting & ~sequencer.reading & ~sequencer.count_clear),
        ]
        m.d.comb += [
            counters.clear.eq(sequencer.count_clear),
            counters.address.eq(sequencer.counter_address),
            sequencer.counter_value.eq(counters.value),
        ]
        # the reply that ends a program is a packet of one beat; its own cycle still counts
        first_beat, synced = Signal(init=1), Signal()
        leaves = self.o.valid & self.o.ready
        with m.If(leaves):
            m.d.sync += first_beat.eq(self.o.payload.last)
        m.d.sync += synced.eq(leaves & first_beat & (self.o.payload.data[:8] == Reply.SYNCED))
        m.d.comb += sequencer.stop_counting.eq(synced)
