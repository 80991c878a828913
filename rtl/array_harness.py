"""The lanes alone, between registers: what is placed and routed to measure the array without what is around it."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.lane import Lane


class ArrayHarness(wiring.Component):
    """All lanes of a configuration; their inputs come from a shift register, their outputs end in another.

    Every input and output of a lane is a register's, as in the accelerator, and nothing is left out by synthesis.

    Members:
        i: serial in.
        o: serial out.
        shift: the output register shifts instead of gathering.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__({"i": In(1), "shift": In(1), "o": Out(1)})

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("ArrayHarness", self._config.hash)

    def elaborate(self, platform):
        """Build the lanes and both registers."""
        m = Module()
        previous: Value = self.i
        gathered = []
        for number in range(self._config.lanes):
            submodule(m, f"lane{number}", lane := Lane(self._config), platform)
            for path, member, port in lane.signature.flatten(lane):
                value = Value.cast(port)
                name = f"lane{number}_{'_'.join(map(str, path))}"
                if member.flow == In:
                    register = Signal(len(value), name=name)
                    m.d.sync += register.eq(Cat(previous, register)[: len(value)])
                    m.d.comb += value.eq(register)
                    previous = register[-1]
                else:
                    gathered.append(value)
        outputs = Cat(gathered)
        register = Signal(len(outputs))
        m.d.sync += register.eq(Mux(self.shift, Cat(previous, register[:-1]), outputs ^ register))
        m.d.comb += self.o.eq(register[-1])
        return m
