"""Random numbers for stochastic rounding: one for every row and column, whatever the order of rows."""

from itertools import pairwise
from typing import TYPE_CHECKING

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.gen.noise import NOISE_KEY, NOISE_STEPS
from maskwork.rtl.layouts import NO_CHECK
from maskwork.rtl.requantise import NOISE_WIDTH, register

__all__ = ["Noise"]

_CYCLES, _ROUNDS = 3, 4
"""Cycles in which a row's state is mixed, and rounds in each: that many levels of LUTs."""


class Noise(wiring.Component):
    """Keeps the seeds, mixes a row's state when the row begins, and answers a number for each of its columns.

    A row's state takes the row's number as the key of every fourth of 12 rounds over two halves of 16 bits. A column
    takes the state through one linear step for each of its bits that is 1: it needs nothing of the columns before, so
    that unwanted ones cost no time. Rows with a column begin ``SPACING`` cycles apart or more, and two cycles or more
    after the column before.

    Parameters
    ----------
    config
        A configuration with ``stochastic``.
    delay
        Cycles from a column to its number: 9 or 10.

    Members
    -------
    write : In(1), address : In(lanes and banks), seed : In(32)
        Stores a seed; 0: to the nearest.
    start : In(1), place : In(lanes and banks), row : In(16)
        A row begins: where its seed is, and its number.
    column : In(tile_columns)
        A column of the row that began in an earlier cycle.
    number : Out(16), random : Out(1)
        ``delay`` cycles after its column: the number, and whether the row is rounded at random.
    """

    SPACING = 1 + _CYCLES

    if TYPE_CHECKING:
        write: Signal
        address: Signal
        seed: Signal
        start: Signal
        place: Signal
        row: Signal
        column: Signal
        number: Signal
        random: Signal

    def __init__(self, config: Config, delay: int):
        self._delay = delay
        self._places, self._columns = 2 * config.lanes_per_cluster, config.tile_columns
        super().__init__(
            {
                "write": In(1),
                "address": In(range(self._places)),
                "seed": In(32),
                "start": In(1),
                "place": In(range(self._places)),
                "row": In(16),
                "column": In(range(self._columns)),
                "number": Out(NOISE_WIDTH),
                "random": Out(1),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Noise", self._places, self._columns, self._delay)

    def elaborate(self, platform):
        """Build seeds, mixer and steps."""
        m = Module()
        m.submodules.seeds = seeds = memory.Memory(shape=32, depth=self._places, init=[], attrs=NO_CHECK)
        read, write = seeds.read_port(), seeds.write_port()
        m.d.comb += [
            write.en.eq(self.write),
            write.addr.eq(self.address),
            write.data.eq(self.seed),
            read.addr.eq(self.place),
        ]

        # a seed is there one cycle after its row began; when its state is ready, no column of the row before is left
        started = [self.start, *(Signal(name=f"started_{n + 1}") for n in range(_CYCLES + 2))]
        m.d.sync += [later.eq(sooner) for sooner, later in pairwise(started)]
        row, mixed, state = register(16), register(32), register(32)
        seeded, random = register(), register()
        with m.If(self.start):
            m.d.sync += row.eq(self.row)
        with m.If(started[1]):
            m.d.sync += [mixed.eq(read.data), seeded.eq(read.data.any())]
        with m.Else():
            m.d.sync += mixed.eq(_mix(mixed, row))
        with m.If(started[-1]):
            m.d.sync += [state.eq(Cat(mixed[0] | ~mixed.any(), mixed[1:])), random.eq(seeded)]

        # the low bits of the column, then the others, a cycle each
        column = self.column
        for number in range(self._delay - 2):
            later = register(len(column), name=f"column_{number + 1}")
            m.d.sync += later.eq(column)
            column = later
        half = min(4, len(column))
        first, last = register(32), register(NOISE_WIDTH)
        upper = register(len(column) - half)
        flags = [register(name=f"random_{n + 1}") for n in range(2)]
        m.d.sync += [
            first.eq(_steps(state, column[:half], 0)),
            upper.eq(column[half:]),
            last.eq(_steps(first, upper, half)[32 - NOISE_WIDTH :]),
            flags[0].eq(random),
            flags[1].eq(flags[0]),
        ]
        m.d.comb += [self.number.eq(last), self.random.eq(flags[1])]
        return m


def _mix(state: Value, row: Value) -> Value:
    """The state after _ROUNDS rounds."""
    left, right = state[16:], state[:16]
    for number in range(_ROUNDS):
        key = Const(NOISE_KEY, 16) if number else row
        left, right = right ^ (left & left.rotate_left(5)) ^ left.rotate_left(1) ^ key, left
    return Cat(right, left)


def _steps(state: Value, bits: Value, first: int) -> Value:
    """The state after the steps of some bits of a column, of which the lowest is bit ``first``."""
    for bit, (shift, turn) in zip(bits, NOISE_STEPS[first:], strict=False):
        stepped = (state ^ (state << shift)[:32]).rotate_left(turn)
        state = Mux(bit, stepped, state)
    return state
