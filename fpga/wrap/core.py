"""The accelerator with a reset that software can hold, and with what the wrappers' registers tell about its streams."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.fpga.wrap.registers import COMMON, MAGIC, MAP_VERSION
from maskwork.gen.config import Config
from maskwork.gen.isa import ISA_VERSION, Op, Reply
from maskwork.rtl.accelerator import Accelerator
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.stream import SkidBuffer, beat_layout

RESET_CYCLES = 8
"""Shortest reset, cycles."""

FENCES = (Op.SYNC, Op.ABORT)
HARMLESS = (Op.IDENTIFY, Op.ECHO, Op.READ_COUNTERS)
"""Commands that start no work."""


def _is(opcode: Value, *values: int) -> Value:
    return Cat(opcode == value for value in values).any()


class Core(wiring.Component):
    """Accelerator that can be reset at any time without breaking its streams' contracts.

    While it is in reset, command beats are taken and thrown away, so that whoever sends them comes to an end; a reply
    packet that reset cuts short is closed by a beat of zeros with ``last``, and what was offered stays offered until
    it is taken. Replies leave a cycle later than from the bare accelerator.

    Members:
        i, o: streams of the :class:`~maskwork.rtl.accelerator.Accelerator`.
        reset: holds the accelerator in reset, from the next cycle on and for at least :data:`RESET_CYCLES`.
        in_reset: it is.
        idle, in_packet, out_packet, in_waits, out_waits: as in register STATUS.
        packets_in, packets_out: packets since reset, as in the registers of these names.
    """

    def __init__(self, config: Config):
        self.config = config
        signature = stream.Signature(beat_layout(config))
        flags = ("in_reset", "idle", "in_packet", "out_packet", "in_waits", "out_waits")
        super().__init__(
            {
                "i": In(signature),
                "o": Out(signature),
                "reset": In(1),
                **{name: Out(1) for name in flags},
                "packets_in": Out(32),
                "packets_out": Out(32),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Core", self.config.hash)

    def elaborate(self, platform):
        m = Module()
        hold = Signal(init=1)
        discard = Signal()  # after a reset of the whole design, whoever comes early waits instead
        submodule(m, "accelerator", accelerator := Accelerator(self.config), platform, hold)
        submodule(m, "leave", leave := SkidBuffer(beat_layout(self.config)), platform)
        left = Signal(range(RESET_CYCLES))
        released = Signal()
        with m.If(self.reset):
            m.d.sync += [hold.eq(1), discard.eq(1), left.eq(RESET_CYCLES - 1)]
        with m.Elif(left != 0):
            m.d.sync += left.eq(left - 1)
        with m.Else():
            m.d.sync += [hold.eq(0), discard.eq(0)]
            m.d.comb += released.eq(hold)
        # a packet of which some beats have gone on to `leave`, and that reset has cut short
        begun, closing = Signal(), Signal()
        m.d.comb += [
            self.in_reset.eq(hold),
            accelerator.i.payload.eq(self.i.payload),
            accelerator.i.valid.eq(self.i.valid & ~hold),
            self.i.ready.eq((accelerator.i.ready & ~hold) | discard),
            leave.i.valid.eq(closing | (accelerator.o.valid & ~hold)),
            leave.i.payload.data.eq(Mux(closing, 0, accelerator.o.payload.data)),
            leave.i.payload.last.eq(closing | accelerator.o.payload.last),
            accelerator.o.ready.eq(leave.i.ready & ~closing & ~hold),
        ]
        wiring.connect(m, leave.o, wiring.flipped(self.o))
        with m.If(leave.i.valid & leave.i.ready):
            m.d.sync += [begun.eq(~leave.i.payload.last), closing.eq(0)]
        with m.Elif(hold & begun):
            m.d.sync += closing.eq(1)
        self._watch(m, hold, released)
        return m

    def _watch(self, m, hold, released):
        taken, left = Signal(), Signal()
        m.d.comb += [
            taken.eq(self.i.valid & self.i.ready),
            left.eq(self.o.valid & self.o.ready),
            self.in_waits.eq(self.i.valid & ~self.i.ready),
            self.out_waits.eq(self.o.valid & ~self.o.ready),
        ]
        opcode, kind, about = (self.i.payload.data[:8], self.o.payload.data[:8], self.o.payload.data[16:24])
        fences = Signal(16)  # taken and not answered; the accelerator holds far fewer
        working = Signal()  # something was begun after the last of them
        fence, answer = Signal(), Signal()
        m.d.comb += [
            fence.eq(taken & ~self.in_packet & _is(opcode, *FENCES)),
            answer.eq(
                (left & ~self.out_packet)
                & (_is(kind, Reply.SYNCED, Reply.ABORTED) | ((kind == Reply.ERROR) & _is(about, *FENCES)))
            ),
        ]
        m.d.sync += [fences.eq(fences + fence - answer), self.idle.eq(~working & (fences == 0))]
        with m.If(taken):
            m.d.sync += [
                self.in_packet.eq(~self.i.payload.last),
                self.packets_in.eq(self.packets_in + self.i.payload.last),
            ]
            with m.If(fence):
                m.d.sync += working.eq(0)
            with m.Elif(~self.in_packet & ~_is(opcode, *HARMLESS)):
                m.d.sync += [working.eq(1), self.idle.eq(0)]
        with m.If(left):
            m.d.sync += [
                self.out_packet.eq(~self.o.payload.last),
                self.packets_out.eq(self.packets_out + self.o.payload.last),
            ]
        with m.If(hold):
            # what is thrown away is no packet of the accelerator's, but its end is of interest to whoever waits for it
            m.d.sync += [fences.eq(0), working.eq(0), self.idle.eq(0), self.packets_in.eq(0), self.packets_out.eq(0)]
        with m.If(released):
            m.d.sync += self.in_packet.eq(0)


def common_values(core: Core, scratch: Value) -> dict[str, dict[str, Value | int]]:
    """Values of the registers that all buses have, by register and field."""
    config = core.config
    values: dict[str, dict[str, Value | int]] = {
        "ID": {"value": Const(MAGIC, 32)},
        "VERSION": {"map": Const(MAP_VERSION, 8), "isa": Const(ISA_VERSION, 8)},
        "CONFIG": {"value": Const(config.hash, 32)},
        "SIZE": {"pes": Const(config.pes, 16), "stream_words": Const(config.stream_words, 8)},
        "STATUS": {name: getattr(core, name) for name in ("idle", "in_reset", "in_packet", "out_packet", "in_waits",
                                                          "out_waits")},
        "CONTROL": {"reset": core.reset},
        "PACKETS_IN": {"value": core.packets_in},
        "PACKETS_OUT": {"value": core.packets_out},
        "SCRATCH": {"value": scratch},
    }  # fmt: skip
    assert list(values) == [register.name for register in COMMON]
    return values
