"""Pins of boards that amaranth-boards does not have, or not as they are needed here."""

from amaranth.build import Attrs, Clock, Pins, PinsN, Resource
from amaranth.vendor import LatticeECP5Platform
from amaranth_boards.orangecrab_r0_2 import OrangeCrabR0_2_25FPlatform, OrangeCrabR0_2_85FPlatform
from amaranth_boards.resources import LEDResources, UARTResource

_LVCMOS33 = Attrs(IO_TYPE="LVCMOS33")

_HEADER_UART = UARTResource(0, rx="0", tx="1", conn=("io", 0), attrs=Attrs(IO_TYPE="LVCMOS33", PULLMODE="UP"))
"""The OrangeCrab has no UART of its own: header pins 0 and 1, where Feather boards have RX and TX."""


class OrangeCrab25F(OrangeCrabR0_2_25FPlatform):
    """OrangeCrab r0.2 with LFE5U-25F and a UART on its header."""

    resources = [*OrangeCrabR0_2_25FPlatform.resources, _HEADER_UART]  # noqa: RUF012


class OrangeCrab85F(OrangeCrabR0_2_85FPlatform):
    """OrangeCrab r0.2 with LFE5U-85F and a UART on its header."""

    resources = [*OrangeCrabR0_2_85FPlatform.resources, _HEADER_UART]  # noqa: RUF012


class ColorlightI5(LatticeECP5Platform):
    """Colorlight i5 v7.0; the UART is that of the programmer on the extension board (Colorlight-FPGA-Projects)."""

    device = "LFE5U-25F"
    package = "BG381"
    speed = "6"
    default_clk = "clk25"
    resources = [  # noqa: RUF012
        Resource("clk25", 0, Pins("P3", dir="i"), Clock(25e6), _LVCMOS33),
        *LEDResources(pins="U16", invert=True, attrs=_LVCMOS33),
        UARTResource(0, rx="H18", tx="J17", attrs=_LVCMOS33),
        Resource("reset", 0, PinsN("K18", dir="i"), _LVCMOS33),
    ]
    connectors = []  # noqa: RUF012
