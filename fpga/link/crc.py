"""CRC-32 (IEEE 802.3), a bit a cycle."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

POLYNOMIAL = 0xEDB88320
"""Bit-reversed, as for least significant bits first."""


class SerialCrc(wiring.Component):
    """The register behind ``zlib.crc32``: bits enter least significant first, and the CRC is ``~value``.

    Latency 1 cycle. A bit a cycle is enough behind a UART, and costs little more than the register,
    which only ``clear`` resets.

    Members:
        clear: begin anew; wins over ``enable``.
        enable: take a bit.
        out: with ``enable``, shift the register out instead, lowest bit first.
        bit: the bit.
        value: the register.
    """

    def __init__(self):
        super().__init__({"clear": In(1), "enable": In(1), "out": In(1), "bit": In(1), "value": Out(32)})

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("SerialCrc",)

    def elaborate(self, platform):
        m = Module()
        value = Signal(32, reset_less=True)
        feedback = (self.bit ^ value[0]) & ~self.out
        m.d.comb += self.value.eq(value)
        with m.If(self.enable):
            m.d.sync += value.eq(value[1:] ^ (feedback.replicate(32) & POLYNOMIAL))
        with m.If(self.clear):
            m.d.sync += value.eq(~0)
        return m
