"""The accelerator on standard buses: AXI4-Stream with AXI4-Lite, and Wishbone."""

from amaranth.lib import wiring
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkValueError

BUSES = ("stream", "axi", "wishbone", "wishbone-pipelined")
"""What :func:`wrapped` makes: the bare streams, or a bus."""


def wrapped(config: Config, bus: str) -> wiring.Component:
    """The accelerator for a bus, ready for :func:`maskwork.gen.generate.emit`.

    Args:
        config: the accelerator's configuration.
        bus: one of :data:`BUSES`.

    Raises:
        MaskworkValueError: for another bus; the message lists those there are.
    """
    if bus == "stream":
        from maskwork.rtl.accelerator import Accelerator

        return Accelerator(config)
    if bus == "axi":
        from maskwork.fpga.wrap.axi import AxiAccelerator

        return AxiAccelerator(config)
    if bus in ("wishbone", "wishbone-pipelined"):
        from maskwork.fpga.wrap.wishbone import WishboneAccelerator

        return WishboneAccelerator(config, pipelined=bus == "wishbone-pipelined")
    raise MaskworkValueError(f"bus must be one of {', '.join(BUSES)}, not {bus!r}")
