"""One PE of the dense array: a weight that stays, activations from the left, sums from above."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from maskwork.fpga.dense.carry import add
from maskwork.fpga.dense.config import LATE, DenseConfig
from maskwork.fpga.dense.product import SoftProduct
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.multiplier import Multiplier

LATENCY = 5
"""Cycles from an activation at ``a`` to the sum with its product at ``sum_out``."""


class DensePE(wiring.Component):
    """``sum_out`` = ``sum`` + ``a`` * weight; the sum joins four cycles after the activation.

    Members:
        a, swap: an activation; with it, from now on, the weight is the one loaded last. To the next column a cycle
            later.
        weight, load: a weight from the row above, taken if both ``load`` and ``loading``. The next row may take it
            a cycle later, ``loading`` is the whole column's: so ``rows`` weights shift in, the last row's first.
        sum: of the rows above.
    """

    def __init__(self, config: DenseConfig, row: int, dsp: bool):
        self._config, self._first, self._dsp = config, row == 0, dsp
        self._widths = config.psum_width(max(1, row)), config.psum_width(row + 1)
        operand = signed(config.width)
        super().__init__(
            {
                "a": In(operand), "swap": In(1), "a_out": Out(operand), "swap_out": Out(1),
                "weight": In(operand), "load": In(1), "loading": In(1), "weight_out": Out(operand), "load_out": Out(1),
                "sum": In(signed(self._widths[0])), "sum_out": Out(signed(self._widths[1])),
            }
        )  # fmt: skip

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("DensePE", self._config.width, self._widths, self._first, self._dsp)

    def elaborate(self, platform):
        """Build registers and multiplier."""
        m = Module()
        width = self._config.width
        active = Signal(signed(width), reset_less=True)
        takes = self.load & self.loading
        a, weight, total = (
            Signal.like(port, name=name, reset_less=True)
            for port, name in ((self.a, "a_register"), (self.weight, "weight_register"), (self.sum_out, "sum_register"))
        )
        m.d.sync += [a.eq(self.a), self.swap_out.eq(self.swap), self.load_out.eq(takes)]
        m.d.comb += [self.a_out.eq(a), self.weight_out.eq(weight), self.sum_out.eq(total)]
        with m.If(takes):
            m.d.sync += weight.eq(self.weight)
        if self._dsp:
            submodule(m, "multiplier", multiplier := Multiplier(width, width), platform)
            product = Signal.like(multiplier.product, reset_less=True)
            m.d.comb += [multiplier.a.eq(self.a_out), multiplier.b.eq(active)]
            m.d.sync += product.eq(multiplier.product)
            with m.If(self.swap):
                m.d.sync += active.eq(self.weight_out)
        else:
            submodule(m, "product", soft := SoftProduct(width), platform)
            m.d.comb += [soft.a.eq(self.a_out), soft.b.eq(active)]
            product = soft.product
            swap = self.swap
            for late in range(LATE + 1):
                own = slice(late * width // 3, (late + 1) * width // 3)
                with m.If(swap):
                    m.d.sync += active[own].eq(self.weight_out[own])
                swap, previous = Signal(name=f"swap{late}", reset_less=True), swap
                m.d.sync += swap.eq(previous)
        if not self._first:
            product = add(m, platform, "total", self._widths[1], self.sum, product)
        m.d.sync += total.eq(product)
        return m
