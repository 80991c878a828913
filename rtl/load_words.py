"""Loaders of C masks and of post-processing parameters: plain 32-bit words."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import Out
from maskwork.gen.config import POST_MULT_WIDTH, Config
from maskwork.rtl.layouts import c_write_layout, clog2
from maskwork.rtl.load_common import part_members
from maskwork.rtl.post import limits_signature, parameter_signature


class LoadC(wiring.Component):
    """A row's mask words, one a cycle; rows of fewer columns are filled with zero words.

    Members:
        write: to the C-mask buffers.
        others: see :func:`~maskwork.rtl.load_common.part_members`.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__({**part_members(config), "write": Out(c_write_layout(config))})

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("LoadC", self._config.hash)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        load = self.load
        rows = Signal.like(load.count)
        words = 1 << (config.mask_words - 1).bit_length()
        word = Signal(range(max(2, words)))
        last_word = Signal(range(max(2, words)))
        lane = word[: (config.stream_words - 1).bit_length()]
        exists = Signal()
        m.d.comb += [
            last_word.eq((load.length - 1)[: (config.tile_columns - 1).bit_length()] >> 5),
            exists.eq(word <= last_word),
            self.write.bank.eq(load.bank),
            self.write.append.eq(load.append),
            self.write.word.eq(Mux(exists, self.beat.word_select(lane, 32), 0)),
        ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [rows.eq(load.count - 1), word.eq(0)]
                with m.If(self.start):
                    m.d.comb += self.write.start.eq(1)
                    m.next = "WORDS"
            with m.State("WORDS"):
                m.d.comb += self.want.eq(exists & ((word == last_word) | (lane == config.stream_words - 1)))
                with m.If(self.beat_valid | ~exists):
                    m.d.comb += self.write.we.eq(1)
                    m.d.sync += word.eq(word + 1)
                    with m.If(word == words - 1):
                        m.d.sync += [word.eq(0), rows.eq(rows - 1)]
                        with m.If(rows == 0):
                            m.d.comb += self.done.eq(1)
                            m.next = "IDLE"
        return m


class LoadP(wiring.Component):
    """Two words a column, then a cycle for each lane of the cluster that takes them.

    Members:
        write, limits: to post-processing.
        others: see :func:`~maskwork.rtl.load_common.part_members`.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(
            {
                **part_members(config),
                "write": Out(parameter_signature(config)),
                "limits": Out(limits_signature(config)),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("LoadP", self._config.hash)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        load = self.load
        column = Signal(range(config.tile_columns))
        lane = Signal(clog2(config.lanes_per_cluster))
        word = Signal(range(max(2, config.stream_words)))
        bias, scale = Signal(32), Signal(32)
        here = self.beat.word_select(word[: (config.stream_words - 1).bit_length()], 32)
        beat_ends = Signal()
        last_column = Signal()
        m.d.comb += [
            last_column.eq(column == (load.length - 1)[: len(column)]),
            beat_ends.eq(word == config.stream_words - 1),
            self.write.bank.eq(load.bank),
            self.write.lane.eq(lane),
            self.write.column.eq(column),
            self.write.bias.eq(bias),
            self.write.mult.eq(scale[:POST_MULT_WIDTH]),
            self.write.shift.eq(scale[POST_MULT_WIDTH:]),
            self.limits.bank.eq(load.bank),
            self.limits.low.eq(load.low),
            self.limits.high.eq(load.high),
        ]
        if config.stochastic:
            m.d.comb += self.limits.seed.eq(load.seed)
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [column.eq(0), word.eq(0), lane.eq(0)]
                with m.If(self.start):
                    m.d.comb += self.limits.valid.eq(1)
                    m.next = "BIAS"
            with m.State("BIAS"):
                m.d.comb += self.want.eq(beat_ends)
                with m.If(self.beat_valid):
                    m.d.sync += [bias.eq(here), word.eq(Mux(beat_ends, 0, word + 1))]
                    m.next = "SCALE"
            with m.State("SCALE"):
                m.d.comb += self.want.eq(beat_ends | last_column)
                with m.If(self.beat_valid):
                    m.d.sync += [scale.eq(here), word.eq(Mux(beat_ends, 0, word + 1))]
                    m.next = "LANES"
            with m.State("LANES"):
                m.d.comb += self.write.valid.eq(load.lanes.bit_select(lane, 1))
                m.d.sync += lane.eq(lane + 1)
                with m.If(lane == config.lanes_per_cluster - 1):
                    m.d.sync += [lane.eq(0), column.eq(column + 1)]
                    m.next = "BIAS"
                    with m.If(last_column):
                        m.d.comb += self.done.eq(1)
                        m.next = "IDLE"
        return m
