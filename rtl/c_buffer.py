"""C-mask buffer of a cluster: two banks of row masks."""

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.rtl.layouts import NO_CHECK, c_write_layout, clog2, mask_width


class CBuffer(wiring.Component):
    """Rows of ``mask_words`` words (a power of two), appended by the loader, read by address in 2 cycles.

    Members:
        write, selected: from the loader.
        full: the packet being loaded did not fit; until the next packet starts.
        address, word: read port; the bank is the address's top bit.
    """

    def __init__(self, config: Config):
        self._config = config
        self._depth = config.c_rows << (config.mask_words - 1).bit_length()
        self._width = mask_width(config)
        super().__init__(
            {
                "write": In(c_write_layout(config)),
                "selected": In(1),
                "full": Out(1),
                "address": In(clog2(2 * self._depth)),
                "word": Out(self._width),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("CBuffer", self._depth, self._width)

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = masks = memory.Memory(shape=self._width, depth=2 * self._depth, init=[], attrs=NO_CHECK)
        write, read = masks.write_port(), masks.read_port()
        filled = Array([Signal(range(self._depth + 1), name=f"filled{bank}") for bank in range(2)])
        bank = self.write.bank
        used = Signal(range(self._depth + 1))
        m.d.comb += [
            used.eq(filled[bank]),
            write.addr.eq(Cat(used[:-1], bank)),
            write.data.eq(self.write.word),
            write.en.eq(self.selected & self.write.we & ~used[-1]),
            read.addr.eq(self.address),
        ]
        m.d.sync += self.word.eq(read.data)
        with m.If(self.selected & self.write.start):
            m.d.sync += self.full.eq(0)
            with m.If(~self.write.append):
                m.d.sync += filled[bank].eq(0)
        with m.Elif(self.selected & self.write.we):
            m.d.sync += filled[bank].eq(Mux(used[-1], used, used + 1))
            with m.If(used[-1]):
                m.d.sync += self.full.eq(1)
        return m
