"""A multiplier of LUTs and carry chains for a weight that stays: what adds PEs when the DSP blocks are used up."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from maskwork.fpga.dense.carry import add


class SoftProduct(wiring.Component):
    """``product`` is ``a * b`` of three cycles before, for signed operands.

    A row of an adder for each bit of ``b``; its AND is in the carry cells' lookup tables, so that a row costs no more
    than the adder. A third of the rows, then a register. The second third of ``b``'s bits is taken one cycle after
    ``a``, the last third two cycles after: ``b`` is kept by whoever holds it, not delayed here.

    Simulated as behaviour; converted to Verilog as CCU2C cells of ECP5.
    """

    def __init__(self, width: int):
        self._width = width
        super().__init__({"a": In(signed(width)), "b": In(signed(width)), "product": Out(signed(2 * width))})

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("SoftProduct", self._width)

    def elaborate(self, platform):
        """Build the rows."""
        m = Module()
        third = self._width // 3
        a, sums, low = self.a, Signal(signed(self._width + 1)), []
        for bit in range(self._width):
            name, last = f"row{bit}", bit == self._width - 1
            if bit == 0:
                row = Signal(signed(self._width + 1), name=name)
                m.d.comb += row.eq(Mux(self.b[0], a, 0))
            else:
                row = add(m, platform, name, self._width + 1, sums >> 1, a, self.b[bit], subtract=last)
            if (bit + 1) % third == 0:
                stage = bit // third
                kept = Signal.like(row, name=f"sum{stage}", reset_less=True)
                later = Signal(len(Cat(low)), name=f"low{stage}", reset_less=True)
                delayed = Signal.like(self.a, name=f"a{stage}", reset_less=True)
                m.d.sync += [kept.eq(row), later.eq(Cat(low)), delayed.eq(a)]
                sums, low, a = kept, [later], delayed
            else:
                sums = row
            low = [*low, sums[0]]
        m.d.comb += self.product.eq(Cat(*low[:-1], sums).as_signed())
        return m
