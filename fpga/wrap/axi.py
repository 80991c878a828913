"""The accelerator with AXI4-Stream data and AXI4-Lite registers."""

from typing import Any, ClassVar

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from maskwork.fpga.wrap.core import Core, common_values
from maskwork.fpga.wrap.registers import ADDRESS_BITS, CONTROL, SCRATCH, TABLES, assemble, register_list
from maskwork.gen.config import Config
from maskwork.rtl.accelerator import latencies
from maskwork.rtl.hierarchy import submodule

_PROT = "not used"


class AxiAccelerator(wiring.Component):
    """Accelerator for AXI systems, with flat port names that packaging tools recognise.

    ``s_axis`` takes command packets and ``m_axis`` gives replies: ``stream_words`` 32-bit words a beat, the first in
    the low bits; ``tlast`` ends a packet. A beat is always whole: ``m_axis_tkeep`` is all ones and ``s_axis_tkeep`` is
    not looked at. ``s_axil`` holds the registers (``docs/integration.md``); reads and writes are independent, each
    takes 2 cycles at best, and every one is answered OKAY.

    Args:
        config: the accelerator's configuration.
    """

    registers: ClassVar[list[dict[str, Any]]] = register_list("axi")
    clock_ports: ClassVar[tuple[str, ...]] = ("aclk", "aresetn")
    """The clock domain's own ports: the component has no ``clk`` and ``rst``."""

    port_docs: ClassVar[dict[str, str]] = {
        "aclk": "clock; every register takes its rising edge",
        "aresetn": "synchronous reset, active low; not needed after configuration or power-up",
        "s_axis_tdata": "command beat, first word in the low bits",
        "s_axis_tkeep": "accepted, not looked at: beats are whole",
        "s_axis_tlast": "the beat ends its command packet",
        "s_axis_tvalid": "a command beat is offered",
        "s_axis_tready": "it is taken",
        "m_axis_tdata": "reply beat, first word in the low bits",
        "m_axis_tkeep": "all ones",
        "m_axis_tlast": "the beat ends its reply packet",
        "m_axis_tvalid": "a reply beat is offered, and stays until it is taken",
        "m_axis_tready": "it is taken",
        "s_axil_awaddr": "byte address of a write; bits 1:0 are not looked at",
        "s_axil_awprot": _PROT,
        "s_axil_awvalid": "write address is offered",
        "s_axil_awready": "it is taken",
        "s_axil_wdata": "data to write",
        "s_axil_wstrb": "bytes to write",
        "s_axil_wvalid": "write data are offered",
        "s_axil_wready": "they are taken",
        "s_axil_bresp": "always OKAY (0)",
        "s_axil_bvalid": "write response is offered",
        "s_axil_bready": "it is taken",
        "s_axil_araddr": "byte address of a read; bits 1:0 are not looked at",
        "s_axil_arprot": _PROT,
        "s_axil_arvalid": "read address is offered",
        "s_axil_arready": "it is taken",
        "s_axil_rdata": "data read",
        "s_axil_rresp": "always OKAY (0)",
        "s_axil_rvalid": "read data are offered",
        "s_axil_rready": "they are taken",
    }

    def __init__(self, config: Config):
        self.config = config
        self.latencies = {**latencies(config), "axis_reply": 1, "axil_read": 1, "axil_write": 2}
        bits = config.beat_bits
        super().__init__(
            {
                "aclk": In(1),
                "aresetn": In(1),
                "s_axis_tdata": In(bits),
                "s_axis_tkeep": In(bits // 8),
                "s_axis_tlast": In(1),
                "s_axis_tvalid": In(1),
                "s_axis_tready": Out(1),
                "m_axis_tdata": Out(bits),
                "m_axis_tkeep": Out(bits // 8),
                "m_axis_tlast": Out(1),
                "m_axis_tvalid": Out(1),
                "m_axis_tready": In(1),
                "s_axil_awaddr": In(ADDRESS_BITS),
                "s_axil_awprot": In(3),
                "s_axil_awvalid": In(1),
                "s_axil_awready": Out(1),
                "s_axil_wdata": In(32),
                "s_axil_wstrb": In(4),
                "s_axil_wvalid": In(1),
                "s_axil_wready": Out(1),
                "s_axil_bresp": Out(2),
                "s_axil_bvalid": Out(1),
                "s_axil_bready": In(1),
                "s_axil_araddr": In(ADDRESS_BITS),
                "s_axil_arprot": In(3),
                "s_axil_arvalid": In(1),
                "s_axil_arready": Out(1),
                "s_axil_rdata": Out(32),
                "s_axil_rresp": Out(2),
                "s_axil_rvalid": Out(1),
                "s_axil_rready": In(1),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("AxiAccelerator", self.config.hash)

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = sync = ClockDomain()
        m.d.comb += [sync.clk.eq(self.aclk), sync.rst.eq(~self.aresetn)]
        submodule(m, "core", core := Core(self.config), platform)
        m.d.comb += [
            core.i.payload.data.eq(self.s_axis_tdata),
            core.i.payload.last.eq(self.s_axis_tlast),
            core.i.valid.eq(self.s_axis_tvalid),
            self.s_axis_tready.eq(core.i.ready),
            self.m_axis_tdata.eq(core.o.payload.data),
            self.m_axis_tkeep.eq(~0),
            self.m_axis_tlast.eq(core.o.payload.last),
            self.m_axis_tvalid.eq(core.o.valid),
            core.o.ready.eq(self.m_axis_tready),
        ]
        scratch = Signal(32)
        control = Signal()
        m.d.comb += core.reset.eq(control)
        self._read(m, common_values(core, scratch))
        self._write(m, control, scratch)
        return m

    def _read(self, m, values):
        value = Signal(32)
        with m.Switch(self.s_axil_araddr[2:]):
            for register in TABLES["axi"]:
                with m.Case(register.offset >> 2):
                    m.d.comb += value.eq(assemble(register, values[register.name]))
        m.d.comb += self.s_axil_arready.eq(~self.s_axil_rvalid)
        with m.If(self.s_axil_arvalid & self.s_axil_arready):
            m.d.sync += [self.s_axil_rvalid.eq(1), self.s_axil_rdata.eq(value)]
        with m.Elif(self.s_axil_rready):
            m.d.sync += self.s_axil_rvalid.eq(0)

    def _write(self, m, control, scratch):
        # address and data come in any order
        have_address, have_data = Signal(), Signal()
        address, data, lanes = Signal(ADDRESS_BITS - 2), Signal(32), Signal(4)
        m.d.comb += [self.s_axil_awready.eq(~have_address), self.s_axil_wready.eq(~have_data)]
        with m.If(self.s_axil_awvalid & self.s_axil_awready):
            m.d.sync += [have_address.eq(1), address.eq(self.s_axil_awaddr[2:])]
        with m.If(self.s_axil_wvalid & self.s_axil_wready):
            m.d.sync += [have_data.eq(1), data.eq(self.s_axil_wdata), lanes.eq(self.s_axil_wstrb)]
        with m.If(self.s_axil_bready):
            m.d.sync += self.s_axil_bvalid.eq(0)
        with m.If(have_address & have_data & ~self.s_axil_bvalid):
            m.d.sync += [have_address.eq(0), have_data.eq(0), self.s_axil_bvalid.eq(1)]
            store(m, address, data, lanes, control, scratch)


def store(m, address, data, lanes, control, scratch):
    """Write CONTROL and SCRATCH of any bus, in a context in which a write takes place; ``address`` counts words."""
    with m.If((address == CONTROL.offset >> 2) & lanes[0]):
        m.d.sync += control.eq(data[CONTROL.bits("reset")])
    with m.If(address == SCRATCH.offset >> 2):
        for lane in range(4):
            with m.If(lanes[lane]):
                m.d.sync += scratch[8 * lane :][:8].eq(data[8 * lane :][:8])
