"""Activation buffer of a cluster: two banks of chunk records, with a directory of their segments."""

from amaranth import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.rtl.layouts import NO_CHECK, a_write_layout, clog2, directory_layout, record_width

SPRAM = {**NO_CHECK, "ram_style": "huge"}
"""Memory attributes of a bank with ``a_spram``: Yosys' name for the iCE40's single-port RAM."""


class ABuffer(wiring.Component):
    """Takes segments as the loader makes them, in order; reads by address and by segment number.

    Reads answer 2 cycles after their address (memory, then register). With ``a_spram`` each bank is a memory with one
    port, for reads and writes: a read of the bank that is written in the same cycle answers anything. No RUN reads a
    bank that is being loaded, so that results and cycles are the same.

    Members:
        write, selected: from the loader. An end counts a cycle later, when ``bank`` must still be the same.
        full: the packet being loaded did not fit (words or segments); until the next packet starts.
        segments: complete segments, per bank.
        address, word: records.
        directory_address, directory: first word and number of words of a segment.
    """

    def __init__(self, config: Config):
        self._config = config
        address = clog2(config.a_depth)
        super().__init__(
            {
                "write": In(a_write_layout(config)),
                "selected": In(1),
                "full": Out(1),
                "segments": Out(data.ArrayLayout(range(config.a_segments + 1), 2)),
                "address": In(address + 1),
                "word": Out(record_width(config)),
                "directory_address": In(clog2(config.a_segments) + 1),
                "directory": Out(directory_layout(config)),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("ABuffer", self._config.hash)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.directory = directory = memory.Memory(
            shape=self.directory.shape().size, depth=2 * config.a_segments, init=[], attrs=NO_CHECK
        )
        directory_write, directory_read = directory.write_port(), directory.read_port()
        filled = Array([Signal(range(config.a_depth + 1), name=f"filled{bank}") for bank in range(2)])
        begin = Signal(range(config.a_depth + 1))
        ended = Signal()  # a segment's last word was written a cycle ago
        bank = self.write.bank
        used = Signal(range(config.a_depth + 1))
        count = Signal(range(config.a_segments + 1))
        segments = Array([Signal(range(config.a_segments + 1), name=f"segments{n}") for n in range(2)])
        m.d.comb += [
            used.eq(filled[bank]),
            count.eq(segments[bank]),
            directory_write.addr.eq(Cat(count[: clog2(config.a_segments)], bank)),
            directory_write.data.eq(Cat(begin[: clog2(config.a_depth)], (used - begin)[: len(self.directory.words)])),
            directory_write.en.eq(ended & ~count[-1]),
            directory_read.addr.eq(self.directory_address),
            *(self.segments[n].eq(segments[n]) for n in range(2)),
        ]
        m.d.sync += [self.directory.eq(directory_read.data), ended.eq(self.selected & self.write.end)]
        write_enable = self.write.we & self.selected & ~used[-1]
        self._add_words(m, write_enable, Cat(used[: clog2(config.a_depth)], bank))
        with m.If(self.selected & self.write.start):
            m.d.sync += [self.full.eq(0), begin.eq(used)]
            with m.If(~self.write.append):
                m.d.sync += [filled[bank].eq(0), segments[bank].eq(0), begin.eq(0)]
        with m.Else():
            with m.If(self.selected & self.write.we):
                m.d.sync += filled[bank].eq(Mux(used[-1], used, used + 1))
                with m.If(used[-1]):
                    m.d.sync += self.full.eq(1)
            with m.If(ended):
                m.d.sync += [begin.eq(used), segments[bank].eq(Mux(count[-1], count, count + 1))]
            # told from a register, for it has far to go: the segment that ends now will find no place
            with m.If(self.selected & self.write.end & (count[-1] | (ended & count[:-1].all()))):
                m.d.sync += self.full.eq(1)
        return m

    def _add_words(self, m, write_enable, write_address):
        config = self._config
        if not config.a_spram:
            m.submodules.words = words = memory.Memory(
                shape=record_width(config), depth=2 * config.a_depth, init=[], attrs=NO_CHECK
            )
            write, read = words.write_port(), words.read_port()
            m.d.comb += [
                write.addr.eq(write_address),
                write.data.eq(self.write.word),
                write.en.eq(write_enable),
                read.addr.eq(self.address),
            ]
            m.d.sync += self.word.eq(read.data)
            return
        outputs = []
        for bank in range(2):
            words = memory.Memory(shape=record_width(config), depth=config.a_depth, init=[], attrs=SPRAM)
            m.submodules[f"spram{bank}"] = words
            write, read = words.write_port(), words.read_port()
            address = Signal(len(write.addr), name=f"address{bank}")
            # one port: both addresses are the same, and it reads when it does not write
            m.d.comb += [
                address.eq(Mux(write.en, write_address, self.address)),
                write.addr.eq(address),
                write.data.eq(self.write.word),
                write.en.eq(write_enable & (write_address[-1] == bank)),
                read.addr.eq(address),
                read.en.eq(~write.en),
            ]
            outputs.append(read.data)
        read_bank = Signal()
        m.d.sync += [read_bank.eq(self.address[-1]), self.word.eq(Mux(read_bank, outputs[1], outputs[0]))]
