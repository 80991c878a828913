"""Lane FIFO: a ring of words for every context of a lane, all in one block RAM."""

from amaranth import *
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.rtl.layouts import NO_CHECK, ring_pointers, ring_words, word_width
from maskwork.rtl.pe import context_width


class LaneFifo(wiring.Component):
    """Rings of ``fifo_depth / rows_in_flight`` words; one word a cycle in, one every other cycle out.

    The memory's output ends in a register: 3 cycles from a word written to an empty ring to ``o``. Writers keep a ring
    from overflowing by its two pointers (their difference is the number of words).

    Members:
        valid, ring, word: write.
        o: words of the ring that is read, registered.
        go: words may move to ``o``.
        turn: with the transfer of a word, or while ``o`` is not valid: read ring ``turn_ring`` from now on. Not in
            two cycles in a row, and to the ring that is read only when no word moved in the cycle before.
        reading: the ring that is read.
        filled: per ring, words remained that were not at ``o``, a cycle before.
        written, taken: pointers of each ring, modulo twice its size.
    """

    def __init__(self, config: Config):
        self._config = config
        rings = config.rows_in_flight
        super().__init__(
            {
                "valid": In(1),
                "ring": In(context_width(config)),
                "word": In(word_width(config)),
                "o": Out(stream.Signature(word_width(config))),
                "go": In(1),
                "turn": In(1),
                "turn_ring": In(context_width(config)),
                "reading": Out(context_width(config)),
                "filled": Out(rings),
                "written": Out(ring_pointers(config)),
                "taken": Out(ring_pointers(config)),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("LaneFifo", self._config.hash)

    def elaborate(self, platform):
        m = Module()
        width = word_width(self._config)
        bits = (ring_words(self._config) - 1).bit_length()
        m.submodules.memory = ram = memory.Memory(shape=width, depth=self._config.fifo_depth, init=[], attrs=NO_CHECK)
        write, read = ram.write_port(), ram.read_port()
        ring = self.ring
        at, end = Signal(bits + 1), Signal(bits + 1)
        m.d.comb += [
            end.eq(self.written[self.reading]),
            write.addr.eq(Cat(self.written[ring][:bits], ring)),
            write.data.eq(self.word),
            write.en.eq(self.valid),
            read.addr.eq(Cat(at[:bits], self.reading)),
        ]
        # the memory shows the word at `taken`; it moves to the register when that is free, two cycles after the last
        fetched, moved, held = Signal(), Signal(), Signal()
        head = Signal(width, reset_less=True)
        moves = Signal()
        m.d.comb += [
            self.o.valid.eq(held),
            self.o.payload.eq(head),
            moves.eq(fetched & ~moved & (~held | self.o.ready) & self.go & ~self.turn),
        ]
        with m.If(~held | self.o.ready):
            m.d.sync += [head.eq(read.data), held.eq(moves)]
        m.d.sync += [fetched.eq(at != end), moved.eq(moves | self.turn)]
        # `at` is the pointer of the ring that is read; `taken` follows it a cycle later
        with m.If(self.turn):
            m.d.sync += [self.reading.eq(self.turn_ring), at.eq(self.taken[self.turn_ring])]
        with m.Elif(moves):
            m.d.sync += at.eq(at + 1)
        for n in range(len(self.filled)):
            with m.If(self.valid & (ring == n)):
                m.d.sync += self.written[n].eq(self.written[n] + 1)
            with m.If(self.reading == n):
                m.d.sync += self.taken[n].eq(at)
            m.d.sync += self.filled[n].eq(self.written[n] != self.taken[n])
        return m
