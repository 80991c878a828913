"""The accelerator as a Wishbone B4 device: word queues and registers."""

from typing import Any, ClassVar

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.fpga.wrap.axi import store
from maskwork.fpga.wrap.core import Core, common_values
from maskwork.fpga.wrap.registers import ADDRESS_BITS, LEVELS, READ, TABLES, WRITE, WRITE_LAST, assemble, register_list
from maskwork.gen.config import Config
from maskwork.rtl.accelerator import latencies
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.queue import Queue

QUEUE_WORDS = 64
"""Words that each queue holds by default."""

WORD = data.StructLayout({"data": 32, "last": 1})


class WishboneAccelerator(wiring.Component):
    """Accelerator for Wishbone systems: 32-bit data, word addresses, any access answered after one cycle.

    Nothing stalls the bus: software looks at LEVELS and moves no more words than fit. A word written to a full queue
    is lost and sets ``refused``; a read from an empty one returns 0 and sets ``missing``. A queue takes or gives a word
    every 2 cycles (classic) or every cycle (pipelined).

    Args:
        config: the accelerator's configuration.
        pipelined: pipelined cycles instead of classic ones; ``wb_stall``, always 0, is added.
        queue_words: words that each of the two queues holds, a power of two up to 2048.
    """

    registers: ClassVar[list[dict[str, Any]]] = register_list("wishbone")
    port_docs: ClassVar[dict[str, str]] = {
        "wb_cyc": "a bus cycle",
        "wb_stb": "an access",
        "wb_we": "it is a write",
        "wb_adr": "word address: the byte address divided by 4",
        "wb_sel": "byte lanes of a write",
        "wb_dat_w": "data to write",
        "wb_dat_r": "data read, with wb_ack",
        "wb_ack": "the access is done, a cycle after it was seen",
        "wb_stall": "always 0",
    }

    def __init__(self, config: Config, *, pipelined: bool = False, queue_words: int = QUEUE_WORDS):
        self.config = config
        self.latencies = {**latencies(config), "wb_ack": 1}
        self.pipelined = pipelined
        self.queue_words = queue_words
        ports = {
            "wb_cyc": In(1),
            "wb_stb": In(1),
            "wb_we": In(1),
            "wb_adr": In(ADDRESS_BITS - 2),
            "wb_sel": In(4),
            "wb_dat_w": In(32),
            "wb_dat_r": Out(32),
            "wb_ack": Out(1),
        }
        super().__init__({**ports, "wb_stall": Out(1)} if pipelined else ports)

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("WishboneAccelerator", self.config.hash, self.pipelined, self.queue_words)

    def elaborate(self, platform):
        m = Module()
        block = not self.config.lut_ram
        submodule(m, "core", core := Core(self.config), platform)
        submodule(m, "commands", commands := Queue(WORD, self.queue_words, block=block), platform, core.in_reset)
        submodule(m, "replies", replies := Queue(WORD, self.queue_words, block=block), platform, core.in_reset)
        submodule(m, "gather", gather := Gather(self.config.stream_words), platform, core.in_reset)
        submodule(m, "spread", spread := Spread(self.config.stream_words), platform, core.in_reset)
        wiring.connect(m, commands.o, gather.i)
        wiring.connect(m, gather.o, core.i)
        m.d.comb += [
            spread.i.payload.eq(core.o.payload),
            spread.i.valid.eq(core.o.valid),
            # reset also throws away what has left the accelerator
            core.o.ready.eq(spread.i.ready | core.in_reset),
        ]
        wiring.connect(m, spread.o, replies.i)
        access, write, read = Signal(), Signal(), Signal()
        m.d.comb += [
            access.eq(self.wb_cyc & self.wb_stb & (1 if self.pipelined else ~self.wb_ack)),
            write.eq(access & self.wb_we),
            read.eq(access & ~self.wb_we),
        ]
        m.d.sync += self.wb_ack.eq(access)

        def here(register):
            return self.wb_adr == register.offset >> 2

        scratch, control, refused, missing = Signal(32), Signal(), Signal(), Signal()
        m.d.comb += [
            core.reset.eq(control),
            commands.i.payload.data.eq(self.wb_dat_w),
            commands.i.payload.last.eq(here(WRITE_LAST)),
            commands.i.valid.eq(write & (here(WRITE) | here(WRITE_LAST)) & self.wb_sel.all()),
            replies.o.ready.eq(read & here(READ)),
        ]
        values = common_values(core, scratch)
        values |= {
            "READ": {"value": Mux(replies.o.valid, replies.o.payload.data, 0)},
            "LEVELS": {
                "space": (self.queue_words - commands.level)[: len(commands.level)],
                "words": replies.level,
                "last": replies.o.valid & replies.o.payload.last,
                "refused": refused,
                "missing": missing,
            },
        }
        with m.If(access):
            m.d.sync += self.wb_dat_r.eq(0)
            with m.Switch(self.wb_adr):
                for register in TABLES["wishbone"]:
                    if register.access != "wo":
                        with m.Case(register.offset >> 2):
                            m.d.sync += self.wb_dat_r.eq(assemble(register, values[register.name]))
        with m.If(write):
            store(m, self.wb_adr, self.wb_dat_w, self.wb_sel, control, scratch)
            with m.If(here(LEVELS) & self.wb_sel[3]):
                clear = self.wb_dat_w
                m.d.sync += [
                    refused.eq(refused & ~clear[LEVELS.bits("refused")]),
                    missing.eq(missing & ~clear[LEVELS.bits("missing")]),
                ]
            with m.If((here(WRITE) | here(WRITE_LAST)) & ~(commands.i.ready & self.wb_sel.all())):
                m.d.sync += refused.eq(1)
        with m.If(replies.o.ready & ~replies.o.valid):
            m.d.sync += missing.eq(1)
        with m.If(core.in_reset):
            m.d.sync += [refused.eq(0), missing.eq(0)]
        return m


class Gather(wiring.Component):
    """Beats from words: a packet's last beat is filled up with zeros. No latency.

    Members:
        i: words.
        o: beats of ``words`` words.
    """

    def __init__(self, words: int):
        self._words = words
        beat = data.StructLayout({"data": 32 * words, "last": 1})
        super().__init__({"i": In(stream.Signature(WORD)), "o": Out(stream.Signature(beat))})

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Gather", self._words)

    def elaborate(self, platform):
        m = Module()
        held = Signal(32 * (self._words - 1))
        at = Signal(range(self._words))
        word = self.i.payload.data
        full = (at == self._words - 1) | self.i.payload.last
        placed = Signal(32 * self._words)
        m.d.comb += [
            placed.eq(Cat(held, Const(0, 32))),
            self.o.payload.data.eq(placed),
            self.o.payload.last.eq(self.i.payload.last),
            self.o.valid.eq(self.i.valid & full),
            self.i.ready.eq(self.o.ready | ~full),
        ]
        for n in range(self._words):
            with m.If(at == n):
                m.d.comb += self.o.payload.data[32 * n :][:32].eq(word)
        with m.If(self.i.valid & self.i.ready):
            with m.If(full):
                m.d.sync += [at.eq(0), held.eq(0)]
            with m.Else():
                m.d.sync += [at.eq(at + 1), held.eq(self.o.payload.data)]
        return m


class Spread(wiring.Component):
    """Words from beats. No latency.

    Members:
        i: beats of ``words`` words.
        o: words; the last one of a packet's last beat ends the packet.
    """

    def __init__(self, words: int):
        self._words = words
        beat = data.StructLayout({"data": 32 * words, "last": 1})
        super().__init__({"i": In(stream.Signature(beat)), "o": Out(stream.Signature(WORD))})

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Spread", self._words)

    def elaborate(self, platform):
        m = Module()
        at = Signal(range(self._words))
        end = at == self._words - 1
        m.d.comb += [
            self.o.payload.data.eq(self.i.payload.data.word_select(at, 32)),
            self.o.payload.last.eq(self.i.payload.last & end),
            self.o.valid.eq(self.i.valid),
            self.i.ready.eq(self.o.ready & end),
        ]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += at.eq(Mux(end, 0, at + 1))
        return m
