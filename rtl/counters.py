"""Counters: PE-cycles by reason and the like, kept in memory."""

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from maskwork.rtl.layouts import NO_CHECK

COUNTER_BITS = 48


class Counters(wiring.Component):
    """Sums ``increments[n]`` over all cycles in which ``enable`` is high.

    Each sum gathers in a small register; in turn, one register every other cycle is added to its 48-bit word of a
    memory. After ``enable`` fell, the memory is complete 2 * number of counters + 4 cycles later.

    Args:
        widths: bits of each increment.
        initial: small values of the counters after ``clear``, for what happened before but belongs to what follows.

    Members:
        increments: what each counter gains in this cycle, side by side.
        enable: counting.
        clear: all counters begin anew; wins over ``enable``.
        address, value: reads a counter, 4 cycles later at most; while nothing is counted.
    """

    def __init__(self, widths, initial=None):
        self._widths = tuple(widths)
        self._initial = tuple(initial or [0] * len(self._widths))
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
        return ("Counters", self._widths, self._initial)

    def elaborate(self, platform):
        m = Module()
        number = len(self._widths)
        m.submodules.sums = sums = memory.Memory(shape=COUNTER_BITS, depth=number, init=[], attrs=NO_CHECK)
        read, write = sums.read_port(), sums.write_port()
        # even cycles: the word of counter `turn` is read; odd cycles: it is written with what was gathered
        turn = Signal(range(number))
        odd = Signal()
        # a register holds what came since its last turn
        rounds = (2 * number).bit_length()
        gathered = [Signal(width + rounds, name=f"gathered{n}") for n, width in enumerate(self._widths)]
        valid = Signal(number)  # words that were written since the last clear
        shown = Signal()
        moving = Signal(max(len(register) for register in gathered))
        m.d.comb += [
            read.addr.eq(Mux(self.enable | ~odd, turn, self.address)),
            write.addr.eq(turn),
            write.data.eq(Mux(valid.bit_select(turn, 1), read.data, 0) + moving),
            write.en.eq(odd & ~self.clear),
        ]
        m.d.sync += odd.eq(~odd)
        with m.If(~odd):
            m.d.sync += moving.eq(Array(gathered)[turn])
        with m.Else():
            m.d.sync += [turn.eq(Mux(turn == number - 1, 0, turn + 1)), valid.bit_select(turn, 1).eq(1)]
        offset = 0
        for n, (register, width) in enumerate(zip(gathered, self._widths, strict=True)):
            gain = Mux(self.enable, self.increments[offset : offset + width], 0)
            m.d.sync += register.eq(Mux((turn == n) & ~odd, 0, register) + gain)
            offset += width
        # the word asked for is read in odd cycles and held
        m.d.sync += shown.eq(odd & ~self.enable)
        with m.If(shown):
            m.d.sync += self.value.eq(Mux(valid.bit_select(self.address, 1), read.data, 0))
        with m.If(self.clear):
            m.d.sync += [valid.eq(0), odd.eq(0), *(r.eq(n) for r, n in zip(gathered, self._initial, strict=True))]
        return m
