"""Parts alone, between registers: what is placed and routed to measure them without what is around them."""

from collections.abc import Mapping

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.lane import Lane
from maskwork.rtl.shared_weights import SharedWeights


class Harness(wiring.Component):
    """Components whose inputs come from a shift register, and whose outputs end in another.

    Every input and output of a component is a register's, as in the accelerator, and nothing is left out by synthesis.

    Args:
        parts: the components, by name.

    Members:
        i: serial in.
        o: serial out.
        shift: the output register shifts instead of gathering.
    """

    def __init__(self, parts: Mapping[str, wiring.Component]):
        self._parts = parts
        super().__init__({"i": In(1), "shift": In(1), "o": Out(1)})

    def elaborate(self, platform):
        """Build the components and both registers."""
        m = Module()
        previous: Value = self.i
        gathered = []
        for part, component in self._parts.items():
            submodule(m, part, component, platform)
            for path, member, port in component.signature.flatten(component):
                value = Value.cast(port)
                name = f"{part}_{'_'.join(map(str, path))}"
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


class ArrayHarness(Harness):
    """All lanes of a configuration, and the weights that they share: the latter's ports end in registers as well."""

    def __init__(self, config: Config):
        self._config = config
        parts: dict[str, wiring.Component] = {f"lane{number}": Lane(config) for number in range(config.lanes)}
        if config.weight_lanes > 1:
            parts |= {f"weights{n}": SharedWeights(config) for n in range(0, config.lanes, config.weight_lanes)}
        super().__init__(parts)

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("ArrayHarness", self._config.hash)
