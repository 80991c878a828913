"""Sequencer: takes command packets, checks them, starts loads and runs, and answers."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.gen.isa import COMMANDS, COUNTERS, ISA_VERSION, REPLIES, Fault, Op, Reply, commands_of
from maskwork.rtl.banks import bank_flags, named_state
from maskwork.rtl.command_check import CommandCheck
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.load_common import LoadEnd, load_layout
from maskwork.rtl.reply_words import reply_words
from maskwork.rtl.stream import beat_layout

HEADER_WORDS = 4
"""Header words kept (with ``vector`` or ``stochastic`` one more); RUN's others go straight to the clusters."""

SETTLE = 7
"""Cycles until counters stand still, a counter that was asked for is at hand, or a stream unit knows its header."""

CHECKED = 2
"""Cycles from a header's last word, in its register, to what is known of the command: the command check's registers, or
the clusters' state and then all of theirs. What the command before changed, which takes 4 cycles, shows by then: there
is a header between, whose word 1 (all that is looked at of the banks' clusters) has been there for a cycle at least:
LOADs have three words or more. RUN's last words are not looked at. With ``hop_stages`` that way is longer, twice."""

FILLED = 3
"""Cycles from a load's end until the last of its writes, if it did not fit, shows in ``full``; the same applies."""


class Sequencer(wiring.Component):
    """One packet after the other; a packet that is at fault is answered with ERROR and dropped to its last beat.

    Never waits for anything but RUNs that were accepted (they end by themselves while replies are taken).

    Members:
        i: command packets.
        o: replies, one word a cycle, ``last`` with a packet's last word.
        payload, load, load_start, load_ended, load_done, load_end: to and from the loader; the stream during a load.
        unit_start, unit_ended, unit_i, unit_o, unit_end: the same of the stream units, for the command in unit_header.
        unit_overflowed: with unit_end: a mask did not fit its slot. unit_lacking: the slot lacks the mask of a REPLAY.
        selected: clusters that the load in progress, or a RUN, is for.
        run_word, run_we, run_commit, run_cancel, run_space: RUN words to the clusters.
        run: banks of the RUN that is committed.
        begins, completes: events of banks, for ``selected``.
        clear, abort: to all clusters.
        loaded, fresh, busy, full, idle: of each cluster.
        loading: a load is in progress.
        reading: counters are being read, and must stand still.
        counting, count_clear, counter_address, counter_value: the counters. ``stop_counting``: SYNCED has left.
    """

    def __init__(self, config: Config):
        self._config = config
        clusters = config.clusters
        flags = data.ArrayLayout(bank_flags(), clusters)
        super().__init__(
            {
                "i": In(stream.Signature(beat_layout(config))),
                "o": Out(stream.Signature(data.StructLayout({"word": 32, "last": 1}))),
                "payload": Out(stream.Signature(beat_layout(config))),
                "load": Out(load_layout(config)),
                "load_start": Out(1),
                "load_ended": Out(1),
                "load_done": In(1),
                "load_end": In(LoadEnd),
                "unit_header": Out(data.ArrayLayout(32, HEADER_WORDS + config.vector)),
                "unit_start": Out(1),
                "unit_ended": Out(1),
                "unit_i": Out(stream.Signature(beat_layout(config))),
                "unit_o": In(stream.Signature(data.StructLayout({"word": 32, "last": 1}))),
                "unit_end": In(LoadEnd),
                "unit_overflowed": In(1),
                "unit_lacking": In(1),
                "selected": Out(clusters),
                "run_word": Out(32),
                "run_we": Out(1),
                "run_commit": Out(1),
                "run_cancel": Out(1),
                "run_space": In(clusters),
                "run": Out(data.StructLayout({"a": 1, "b": 1, "c": 1, "use_c": 1})),
                "begins": Out(bank_flags()),
                "completes": Out(bank_flags()),
                "clear": Out(1),
                "abort": Out(1),
                "loaded": In(flags),
                "fresh": In(flags),
                "busy": In(flags),
                "full": In(clusters),
                "idle": In(clusters),
                "loading": Out(1),
                "counting": Out(1),
                "reading": Out(1),
                "count_clear": Out(1),
                "stop_counting": In(1),
                "counter_address": Out(range(len(COUNTERS))),
                "counter_value": In(48),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Sequencer", self._config.hash)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        words = config.stream_words
        commands, run = commands_of(config), COMMANDS[Op.RUN]
        streams = [kind for kind in (Reply.VECTOR, Reply.MASK) if Op[kind.name] in commands]  # of the stream units
        header_words = HEADER_WORDS + (config.vector or config.stochastic)
        header = [Signal(32, name=f"header{n}") for n in range(header_words)]
        submodule(m, "check", check := CommandCheck(config), platform)
        m.d.comb += [check.header[n].eq(header[n]) for n in range(len(check.header))]
        m.d.comb += [target.eq(word) for target, word in zip(self.unit_header, header, strict=False)]
        m.d.comb += [self.load.eq(check.load), self.selected.eq(check.clusters), self.run.eq(check.run)]

        beat = self.i.payload
        position = Signal(range(max(2, words)))  # of the word in its beat
        number = Signal(range(header_words + 1))  # of the word in the header, as far as words are kept
        left = Signal(range(run.words + 1))  # header words that are still in their beats
        next_ends, header_ends = Signal(), Signal()  # the next of them is the header's last; the one at hand is
        takes_word = Signal()  # the next header word goes to its register, the beat's last with it out of the stream
        ended = Signal()  # the packet's last beat was taken
        is_run, known = Signal(), Signal()
        word = Signal(32)
        length = Signal(range(run.words + 1))
        m.d.comb += [length.eq(0), self.run_word.eq(word)]
        m.d.comb += [self.payload.payload.eq(beat), self.unit_i.payload.eq(beat)]
        beat_ends = Signal()
        m.d.comb += beat_ends.eq((position == words - 1) | next_ends)
        with m.If(takes_word):
            m.d.sync += [
                word.eq(beat.data.word_select(position[: (words - 1).bit_length()], 32)),
                left.eq(left - 1),
                header_ends.eq(next_ends),
                next_ends.eq(left == 2),
                position.eq(Mux(beat_ends, 0, position + 1)),
                ended.eq(beat_ends & beat.last),
            ]
        with m.Switch(word[:8]):
            for code, packet in commands.items():
                with m.Case(code):
                    m.d.comb += length.eq(packet.words)

        begun = Signal()
        end = Signal(LoadEnd)
        fault = Signal(8)
        settle = Signal(range(SETTLE + 1))
        settled, checked = Signal(), Signal()
        way = 2 * config.hop_stages  # to the clusters and back
        reply = Signal(8)
        reply_word = Signal(range(2 * len(COUNTERS) + words))
        all_idle, run_space = Signal(), Signal()
        # a stream unit answers; it will, behind the header of its reply; that ends
        streaming, opens, opened = Signal(), Signal(), Signal()
        for kind in streams:
            with m.If(reply == kind):
                m.d.comb += opened.eq(opens & (reply_word == REPLIES[kind].beats(words) * words - 1))
        overflowed = Signal()  # the mask that it stored did not fit
        m.d.comb += [
            settled.eq(settle == SETTLE),
            checked.eq(is_run | settled | ((settle >= CHECKED + way) & ~check.is_stream)),
            self.unit_ended.eq(ended),
        ]
        m.d.sync += [settle.eq(0), all_idle.eq(self.idle.all()), run_space.eq(self.run_space.all())]
        stopping = Signal()  # SYNCED was answered and has not left
        # a SYNCED of the program before may still be leaving when a new one has begun to count
        with m.If(self.stop_counting & stopping):
            m.d.sync += [self.counting.eq(0), stopping.eq(0)]
        fresh, stale, busy, unloaded = named_state(m, check, self.fresh, self.busy, self.loaded)
        full = Signal()
        m.d.sync += full.eq((self.full & self.selected).any())

        def wrong(code: Fault):
            m.d.sync += [fault.eq(code), settle.eq(0)]
            m.next = "DROP"

        def answer(kind: Reply):
            m.d.sync += [reply.eq(kind), reply_word.eq(0), opens.eq(kind in streams)]
            m.next = "REPLY"

        def start_load():
            m.d.comb += [self.load_start.eq(1), self.load_ended.eq(ended), self.begins.eq(check.bank)]
            m.next = "LOAD"

        def wait():
            m.d.sync += settle.eq(Mux(settled, settle, settle + 1))

        with m.FSM():
            # a word is looked at in a cycle after it was there, for the sake of the clock; its beat is taken before
            with m.State("HEADER"):
                m.d.comb += [takes_word.eq(self.i.valid), self.i.ready.eq(beat_ends)]
                with m.If(self.i.valid):
                    m.next = "WORD"
                    with m.If(number == 0):
                        m.next = "OPCODE"
            with m.State("OPCODE"):
                m.d.sync += [
                    left.eq(length - 1),
                    next_ends.eq(length == 2),
                    header_ends.eq(length == 1),
                    known.eq(length != 0),
                    is_run.eq(word[:8] == Op.RUN),
                ]
                m.d.comb += self.count_clear.eq(word[:8] == Op.BEGIN)
                with m.If(self.count_clear):
                    m.d.sync += [self.counting.eq(1), stopping.eq(0)]
                m.next = "WORD"
            with m.State("WORD"):
                takes, goes_on = Signal(), Signal()
                m.d.comb += [
                    takes.eq(~is_run | run_space),
                    goes_on.eq(takes & known & ~header_ends & ~ended),
                    takes_word.eq(goes_on & self.i.valid),
                    self.i.ready.eq(goes_on & beat_ends),
                    self.run_we.eq(takes & is_run),
                ]
                if words > 1:
                    # only now it is known that the first word's beat has no other
                    with m.If(header_ends & (number == 0) | ~known):
                        m.d.comb += self.i.ready.eq(1)
                        m.d.sync += [position.eq(0), ended.eq(beat.last)]
                with m.If(takes):
                    for n in range(header_words):
                        with m.If(number == n):
                            m.d.sync += header[n].eq(word)
                    with m.If(number != header_words):
                        m.d.sync += number.eq(number + 1)
                    with m.If(~self.i.valid):
                        m.next = "HEADER"
                    with m.If(~known):
                        wrong(Fault.UNKNOWN_OPCODE)
                    with m.Elif(header_ends):
                        m.next = "CHECK"
                    with m.Elif(ended):
                        wrong(Fault.SHORT_PACKET)
            with m.State("CHECK"):
                m.d.sync += number.eq(0)
                wait()
                with m.If(checked):
                    with m.If(~check.is_load & ~check.is_stream & ~ended):
                        wrong(Fault.LONG_PACKET)
                    with m.Elif((check.is_load | check.is_run | check.is_stream) & ~begun):
                        wrong(Fault.NOT_BEGUN)
                    with m.Elif(check.bad):
                        wrong(Fault.BAD_FIELD)
                    with m.Elif(check.is_load):
                        with m.If(check.append & stale):
                            wrong(Fault.BANK_EMPTY)
                        with m.Elif(check.has_fresh & ~check.append & fresh):
                            wrong(Fault.BANK_IN_USE)
                        with m.Elif(~busy):
                            if config.hop_stages:
                                m.next = "START"
                            else:
                                start_load()
                    with m.Else():
                        with m.Switch(header[0][:8]):
                            with m.Case(Op.RUN):
                                with m.If(unloaded):
                                    wrong(Fault.BANK_EMPTY)
                                with m.Else():
                                    m.d.comb += self.run_commit.eq(1)
                                    m.next = "HEADER"
                            with m.Case(Op.BEGIN):
                                m.d.sync += begun.eq(0)
                                with m.If(header[1][:16] != ISA_VERSION):
                                    wrong(Fault.WRONG_VERSION)
                                with m.Elif(header[2] != config.hash):
                                    wrong(Fault.WRONG_CONFIG)
                                with m.Elif(all_idle):
                                    m.d.comb += self.clear.eq(1)
                                    m.d.sync += begun.eq(1)
                                    m.next = "HEADER"
                            with m.Case(Op.SYNC):
                                with m.If(all_idle):
                                    m.d.sync += stopping.eq(1)
                                    answer(Reply.SYNCED)
                            with m.Case(Op.ABORT):
                                m.d.comb += self.abort.eq(1)
                                with m.If(all_idle):
                                    m.d.comb += self.clear.eq(1)
                                    answer(Reply.ABORTED)
                            with m.Case(Op.ECHO):
                                answer(Reply.ECHOED)
                            with m.Case(Op.READ_COUNTERS):
                                m.next = "COUNTERS"
                            if config.vector:
                                with m.Case(Op.VECTOR):
                                    m.d.comb += self.unit_start.eq(1)
                                    answer(Reply.VECTOR)
                            if config.blocks:
                                with m.Case(Op.MASK):
                                    with m.If(check.is_replay & self.unit_lacking):
                                        wrong(Fault.MASK_EMPTY)
                                    with m.Else():
                                        m.d.comb += self.unit_start.eq(1)
                                        answer(Reply.MASK)
                            with m.Default():
                                answer(Reply.IDENTITY)
            if config.hop_stages:
                # the loader is a long wire away
                with m.State("START"):
                    start_load()
            with m.State("LOAD"):
                m.d.comb += [self.payload.valid.eq(self.i.valid), self.i.ready.eq(self.payload.ready)]
                m.d.comb += self.loading.eq(1)
                with m.If(self.load_done):
                    m.d.sync += [end.eq(self.load_end), ended.eq(self.load_end != LoadEnd.LONG)]
                    m.next = "LOADED"
            with m.State("LOADED"):
                m.d.comb += self.loading.eq(1)
                wait()
                with m.If(settle == FILLED + way):
                    # what a short packet lacks was made up: it may have filled the buffer, or not
                    with m.If(end == LoadEnd.SHORT):
                        wrong(Fault.SHORT_PACKET)
                    with m.Elif(full):
                        wrong(Fault.BUFFER_FULL)
                    with m.Elif(end == LoadEnd.LONG):
                        wrong(Fault.LONG_PACKET)
                    with m.Else():
                        m.d.comb += self.completes.eq(check.bank)
                        m.next = "HEADER"
            with m.State("DROP"):
                m.d.comb += self.run_cancel.eq(1)
                m.d.sync += [number.eq(0), position.eq(0), next_ends.eq(0)]
                with m.If(ended):
                    answer(Reply.ERROR)
                with m.Else():
                    m.d.comb += self.i.ready.eq(1)
                    with m.If(self.i.valid):
                        m.d.sync += ended.eq(beat.last)
            with m.State("COUNTERS"):
                # let the sums that are still gathered reach their words
                m.d.comb += self.reading.eq(~stopping)
                with m.If(~stopping):
                    wait()
                with m.If(settled):
                    m.d.sync += reply_word.eq(reply_word + 1)
                    with m.If(reply_word == 2 * len(COUNTERS)):
                        m.d.sync += settle.eq(0)
                        answer(Reply.COUNTERS)
            with m.State("REPLY"):
                # a counter is at hand some cycles after it was asked for
                m.d.comb += self.o.valid.eq((reply != Reply.COUNTERS) | settled)
                m.d.comb += self.reading.eq(reply == Reply.COUNTERS)
                wait()
                with m.If(self.o.valid & self.o.ready):
                    m.d.sync += settle.eq(0)
                    m.d.sync += reply_word.eq(reply_word + 1)
                    with m.If(self.o.payload.last | opened):
                        m.d.sync += reply_word.eq(0)
                        m.next = "HEADER"
                        if streams:
                            with m.If(opens):
                                m.next = "STREAM"
            if streams:
                with m.State("STREAM"):
                    m.d.comb += [
                        streaming.eq(1),
                        self.unit_i.valid.eq(self.i.valid),
                        self.i.ready.eq(self.unit_i.ready),
                        self.o.valid.eq(self.unit_o.valid),
                        self.unit_o.ready.eq(self.o.ready),
                    ]
                    m.d.sync += [
                        end.eq(self.unit_end),
                        ended.eq(self.unit_end != LoadEnd.LONG),
                        overflowed.eq(self.unit_overflowed),
                    ]
                    with m.If(self.o.valid & self.o.ready & self.unit_o.payload.last):
                        m.next = "STREAMED"
                with m.State("STREAMED"):
                    m.next = "HEADER"
                    with m.If(end == LoadEnd.SHORT):
                        wrong(Fault.SHORT_PACKET)
                    with m.Elif(overflowed):
                        wrong(Fault.BUFFER_FULL)
                    with m.Elif(end == LoadEnd.LONG):
                        wrong(Fault.LONG_PACKET)
        reply_words(m, config, self, reply, reply_word, header, fault)
        with m.If(streaming):
            m.d.comb += self.o.payload.eq(self.unit_o.payload)
        return m
