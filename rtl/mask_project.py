"""Ternary random projection of the mask unit: sums of a row's values with signs from shift registers, no multiplier."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.gen.isa import MAX_PROJECT
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.lfsr import Lfsr
from maskwork.rtl.requantise import choose

SYMBOLS = 4
"""Signs that are taken from one shift register for every value."""

SYMBOL_WIDTH = 6

PLUS, SIGNED = 11, 22
"""Symbols below PLUS add the value, others below SIGNED subtract it."""


def below(value: Value, limit: int) -> Value:
    """``value < limit`` in gates: for so few bits they are less than a carry chain."""
    result: Value = Const(0)
    for n, bit in enumerate(value):
        result = (~bit | result) if limit >> n & 1 else (~bit & result)
    return result


class Project(wiring.Component):
    """``project_sums`` sums of a row.

    Args:
        config: a_width, project_sums.

    Members:
        state: of shift register 0, which is the unit's; the others are in here and move with it.
        seed, load: shift register q begins at ``seed`` rotated left by 8 * q.
        step: a value comes.
        value: that value, a cycle later.
        clear: the sums become 0; not in the cycle after a value came.
        index, sum: a sum, two cycles after the row's last value.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(
            {
                "state": In(32),
                "seed": In(32),
                "load": In(1),
                "step": In(1),
                "value": In(signed(config.a_width)),
                "clear": In(1),
                "index": In(range(config.project_sums)),
                "sum": Out(signed(32)),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Project", self._config.a_width, self._config.project_sums)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        states = [self.state]
        for q in range(1, config.project_sums // SYMBOLS):
            submodule(m, f"lfsr{q}", lfsr := Lfsr(), platform)
            m.d.comb += [
                lfsr.seed.eq(self.seed.rotate_left(8 * q)),
                lfsr.load.eq(self.load),
                lfsr.step.eq(self.step),
            ]
            states.append(lfsr.state)
        width = min(32, config.a_width + MAX_PROJECT.bit_length())
        sums = [Signal(signed(width), name=f"sum{t}", reset_less=True) for t in range(config.project_sums)]
        for t, total in enumerate(sums):
            symbol = states[t // SYMBOLS][SYMBOL_WIDTH * (t % SYMBOLS) :][:SYMBOL_WIDTH]
            adds, minus = Signal(name=f"adds{t}"), Signal(name=f"minus{t}")
            m.d.sync += [adds.eq(self.step & below(symbol, SIGNED)), minus.eq(~below(symbol[:-1], PLUS))]
            # plus the value, or plus its complement and 1: the lowest bit is only there to carry
            addend = Cat(minus, self.value.as_unsigned() ^ minus.replicate(config.a_width)).as_signed()
            with m.If(adds):
                m.d.sync += total.eq((Cat(minus, total).as_signed() + addend)[1:])
            with m.If(self.clear):
                m.d.sync += total.eq(0)
        m.d.comb += self.sum.eq(choose([*sums], self.index))
        return m
