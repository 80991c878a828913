"""Collector: packets of several sources onto one stream, whole packets in turn."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.rtl.arbiter import round_robin
from maskwork.rtl.stream import beat_layout


class WordPacker(wiring.Component):
    """Gathers 32-bit words into beats; a packet's last beat is padded with zeros.

    Members:
        i: words with ``last``.
        o: beats.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"word": 32, "last": 1}))),
                "o": Out(stream.Signature(beat_layout(config))),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("WordPacker", self._config.stream_words)

    def elaborate(self, platform):
        m = Module()
        words = self._config.stream_words
        beat = Signal(beat_layout(self._config))
        full = Signal()
        position = Signal(range(max(2, words)))
        m.d.comb += [self.o.valid.eq(full), self.o.payload.eq(beat), self.i.ready.eq(~full)]
        with m.If(full):
            with m.If(self.o.ready):
                m.d.sync += [full.eq(0), beat.eq(0)]
        with m.Elif(self.i.valid):
            m.d.sync += [
                beat.data.word_select(position[: (words - 1).bit_length()], 32).eq(self.i.payload.word),
                position.eq(position + 1),
            ]
            with m.If((position == words - 1) | self.i.payload.last):
                m.d.sync += [full.eq(1), position.eq(0), beat.last.eq(self.i.payload.last)]
        return m


class Collector(wiring.Component):
    """Round-robin arbiter that holds a source until its packet's last beat. Latency: that of a multiplexer.

    Members:
        i0, i1, ...: packets.
        o: packets.
    """

    def __init__(self, config: Config, sources: int):
        self._config, self._sources = config, sources
        signature = stream.Signature(beat_layout(config))
        super().__init__({**{f"i{n}": In(signature) for n in range(sources)}, "o": Out(signature)})

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Collector", self._config.stream_words, self._sources)

    def elaborate(self, platform):
        m = Module()
        sources = [getattr(self, f"i{n}") for n in range(self._sources)]
        count = len(sources)
        granted = Signal(count)
        free = Signal()
        m.d.comb += free.eq(~granted.any() | (self.o.valid & self.o.ready & self.o.payload.last))
        choice = round_robin(m, Cat(source.valid for source in sources) & ~granted, free, "turn")
        with m.If(free):
            m.d.sync += granted.eq(choice)
        payload: Value = Const(0, Value.cast(self.o.payload).shape())
        valid: Value = Const(0, 1)
        for n, source in enumerate(sources):
            gate = granted[n].replicate(len(payload))
            payload = payload | (Value.cast(source.payload) & gate)
            valid = valid | (source.valid & granted[n])
            m.d.comb += source.ready.eq(granted[n] & self.o.ready)
        m.d.comb += [Value.cast(self.o.payload).eq(payload), self.o.valid.eq(valid)]
        return m
