"""Counters: PE-cycles by reason and the like, kept in LUT RAM."""

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

COUNTER_BITS = 48


class Counters(wiring.Component):
    """Sums ``increments[n]`` over all cycles in which ``enable`` is high.

    Each sum gathers in a small register; in turn, one register a cycle is added to its 48-bit word of a LUT RAM. After
    ``enable`` fell, the RAM is complete 2 * number of counters cycles later.

    Args:
        widths: bits of each increment.

    Members:
        increments: what each counter gains in this cycle, side by side.
        enable: counting.
        clear: all counters become 0; wins over ``enable``.
        address, value: reads a counter in the same cycle.
    """

    def __init__(self, widths):
        self._widths = tuple(widths)
        super().__init__(
            {
                "increments": In(sum(self._widths)),
                "enable": In(1),
                "clear": In(1),
                "address": In(range(len(self._widths))),
                "value": Out(COUNTER_BITS),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Counters", self._widths)

    def elaborate(self, platform):
        m = Module()
        number = len(self._widths)
        m.submodules.sums = sums = memory.Memory(shape=COUNTER_BITS, depth=number, init=[])
        write = sums.write_port()
        own, shown = sums.read_port(domain="comb"), sums.read_port(domain="comb")
        turn = Signal(range(number))
        # a register holds what came since its last turn
        gathered = [Signal(width + number.bit_length(), name=f"gathered{n}") for n, width in enumerate(self._widths)]
        valid = Signal(number)  # words that were written since the last clear
        moving = Signal(max(len(register) for register in gathered))
        moving_turn = Signal.like(turn)
        moves = Signal()
        m.d.comb += [
            own.addr.eq(moving_turn),
            write.addr.eq(moving_turn),
            write.data.eq(Mux(valid.bit_select(moving_turn, 1), own.data, 0) + moving),
            write.en.eq(moves & ~self.clear),
            shown.addr.eq(self.address),
            self.value.eq(Mux(valid.bit_select(self.address, 1), shown.data, 0)),
        ]
        m.d.sync += [
            turn.eq(Mux(turn == number - 1, 0, turn + 1)),
            moving.eq(Array(gathered)[turn]),
            moving_turn.eq(turn),
            moves.eq(~self.clear),
        ]
        with m.If(moves):
            m.d.sync += valid.bit_select(moving_turn, 1).eq(1)
        offset = 0
        for n, (register, width) in enumerate(zip(gathered, self._widths, strict=True)):
            gain = Mux(self.enable, self.increments[offset : offset + width], 0)
            m.d.sync += register.eq(Mux(turn == n, 0, register) + gain)
            offset += width
        with m.If(self.clear):
            m.d.sync += [valid.eq(0), *(register.eq(0) for register in gathered)]
        return m
