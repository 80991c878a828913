"""FIFO of RUN descriptors whose words count only once the whole command was accepted."""

from amaranth import *
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.gen.isa import COMMANDS, Op
from maskwork.rtl.layouts import NO_CHECK, clog2

RUN_WORDS = COMMANDS[Op.RUN].words


class RunFifo(wiring.Component):
    """Holds up to ``run_depth`` RUN commands; a word a cycle in, a word a cycle out.

    Members:
        word, we: the next word of the command that is being received.
        commit, cancel: end of the command: keep its words, or forget them.
        space: a whole command more would fit.
        o: words of committed commands; with ``hop_stages`` from a register, a cycle later.
    """

    def __init__(self, config: Config):
        self._depth = 1 << clog2(config.run_depth * RUN_WORDS)
        self._registered = config.hop_stages > 0
        super().__init__(
            {
                "word": In(32),
                "we": In(1),
                "commit": In(1),
                "cancel": In(1),
                "space": Out(1),
                "o": Out(stream.Signature(32)),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("RunFifo", self._depth, self._registered)

    def elaborate(self, platform):
        m = Module()
        depth = self._depth
        m.submodules.memory = ram = memory.Memory(shape=32, depth=depth, init=[], attrs=NO_CHECK)
        write, read = ram.write_port(), ram.read_port()
        written, committed, taken = (Signal(range(2 * depth), name=n) for n in ("written", "committed", "taken"))
        following = Signal.like(taken)
        # the memory's output is a word, that is taken; with a register behind it the two are not those of `o`
        valid, moves = self.o.valid, self.o.valid & self.o.ready
        if self._registered:
            valid = Signal()
            moves = valid & (~self.o.valid | self.o.ready)
        m.d.comb += [
            write.addr.eq(written),
            write.data.eq(self.word),
            write.en.eq(self.we),
            # the memory's output is the word at `taken`
            read.addr.eq(following),
            following.eq(taken + moves),
        ]
        m.d.sync += self.space.eq((committed - taken)[: len(taken)] <= depth - 2 * RUN_WORDS)
        with m.If(self.cancel):
            m.d.sync += written.eq(committed)
        with m.Elif(self.we):
            m.d.sync += written.eq(written + 1)
        with m.If(self.commit):
            m.d.sync += committed.eq(written)
        if self._registered:
            with m.If(~self.o.valid | self.o.ready):
                m.d.sync += [self.o.valid.eq(valid), self.o.payload.eq(read.data)]
        else:
            m.d.comb += self.o.payload.eq(read.data)
        m.d.sync += [taken.eq(following), valid.eq(committed != following)]
        return m
