"""System: an accelerator behind its link to the host. Boards add clock and pins."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from maskwork.fpga.link.endpoint import Link
from maskwork.fpga.link.identity import identity_words
from maskwork.fpga.link.uart import Rate
from maskwork.gen.config import Config
from maskwork.rtl.accelerator import Accelerator
from maskwork.rtl.hierarchy import submodule

ACTIVITY_BITS = 18
"""``activity`` stays high for 2**18 cycles after the last low bit: long enough to be seen."""


class System(wiring.Component):
    """The accelerator with a UART: what a board holds, and what the virtual board simulates.

    Args:
        config: the accelerator's configuration.
        clock_hz: frequency of the clock, Hz.
        baud: bits a second, at most a quarter of ``clock_hz``.
        board: the board's name, for the identity.

    Members:
        rx, tx: the line to the host, idle high; ``rx`` may be asynchronous.
        activity: high while the board answers, and for a while after it; for a light.

    Raises:
        MaskworkValueError: for a rate that cannot be made within 0.5 %, or a name too long for the identity.
    """

    def __init__(self, config: Config, clock_hz: float, baud: float, board: str = "virtual"):
        self.config = config
        self.clock_hz = clock_hz
        self.baud = baud
        self.identity = identity_words(config, board, clock_hz, baud)
        Rate.find(clock_hz, baud)
        line = {"rx": In(1, init=1), "tx": Out(1, init=1)}  # pyright: ignore[reportCallIssue]
        super().__init__({**line, "activity": Out(1)})

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("System", self.config.hash, self.clock_hz, self.baud, self.identity)

    def elaborate(self, platform):
        m = Module()
        link = Link(self.config.stream_words, self.clock_hz, self.baud, self.identity)
        # a register, for it goes almost everywhere. While it is late the link, still in reset itself, neither sends nor
        # takes anything
        reset = Signal(init=1)
        m.d.sync += reset.eq(link.reset)
        submodule(m, "link", link, platform)
        submodule(m, "accelerator", accelerator := Accelerator(self.config), platform, reset)
        wiring.connect(m, link.o, accelerator.i)
        wiring.connect(m, accelerator.o, link.i)
        m.d.comb += [
            link.rx.eq(self.rx),
            self.tx.eq(link.tx),
        ]
        # stretched: a counter that runs until it overflows, started by every low bit
        shown = Signal(ACTIVITY_BITS + 1)
        m.d.comb += self.activity.eq(shown[-1])
        with m.If(~link.tx):
            m.d.sync += shown.eq(1 << ACTIVITY_BITS)
        with m.Elif(self.activity):
            m.d.sync += shown.eq(shown + 1)
        return m
