"""What is around the dense array: memories of operands, sums over K tiles, results."""

from amaranth import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from maskwork.fpga.dense.carry import add
from maskwork.fpga.dense.config import BLOCK, DEPTH, DenseConfig
from maskwork.rtl.layouts import NO_CHECK

ACCUMULATE = 3
"""Cycles from ``control`` of an :class:`AccumulatorColumn` to the sum's writing."""

FEED = 2
"""Cycles from an address at a :class:`Feeder` to the operand."""


def write_layout(config: DenseConfig) -> data.StructLayout:
    """A word for one of the operand memories: ``weights`` says of which kind, ``index`` of which row or column."""
    index = range(max(config.rows, config.columns))
    return data.StructLayout(
        {"valid": 1, "weights": 1, "index": index, "address": range(DEPTH), "word": signed(config.width)}
    )


READ = data.StructLayout({"address": range(DEPTH), "flag": 1})
"""An address of an operand memory, and a flag that goes along: swap or load."""

CONTROL = data.StructLayout({"valid": 1, "row": range(2 * BLOCK), "first": 1, "last": 1, "end": 1})
"""Which sum comes out of the array: begun by its K tile, or ended; the end of a block."""


class Feeder(wiring.Component):
    """The memory of one row's activations or of one column's weights.

    Reads and writes go on to the next feeder a cycle later: that skews the operands by themselves.

    Members:
        read, write: as they come.
        read_out, write_out: a cycle later.
        word, flag: two cycles after ``read_out``.
    """

    def __init__(self, config: DenseConfig, weights: bool, index: int):
        self._config, self._weights, self._index = config, weights, index
        write = write_layout(config)
        super().__init__(
            {"read": In(READ), "write": In(write), "read_out": Out(READ), "write_out": Out(write),
             "word": Out(signed(config.width)), "flag": Out(1)}
        )  # fmt: skip

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Feeder", self._config, self._weights, self._index)

    def elaborate(self, platform):
        """Build the memory and the registers."""
        m = Module()
        m.submodules.memory = words = memory.Memory(shape=self._config.width, depth=DEPTH, init=[], attrs=NO_CHECK)
        write, read = words.write_port(), words.read_port()
        flag = Signal()
        wanted = Signal()
        last: Signal = Signal.like(Value.cast(self.write_out.word))
        address = Signal(range(DEPTH))
        m.d.sync += [self.read_out.eq(self.read), self.write_out.eq(self.write)]
        matches = (self.write.weights == int(self._weights)) & (self.write.index == self._index)
        m.d.sync += [wanted.eq(self.write.valid & matches), last.eq(self.write.word), address.eq(self.write.address)]
        m.d.comb += [write.en.eq(wanted), write.addr.eq(address), write.data.eq(last)]
        m.d.comb += read.addr.eq(self.read_out.address)
        word = Signal(signed(self._config.width), name="word_register", reset_less=True)
        m.d.sync += [flag.eq(self.read_out.flag), self.flag.eq(flag), word.eq(read.data)]
        m.d.comb += self.word.eq(word)
        return m


class AccumulatorColumn(wiring.Component):
    """Sums of one column over K tiles, and its results. A sum must not be added to again within three cycles.

    Members:
        control: of the sum that is at ``sum`` two cycles later; goes on a cycle later.
        sum: from the array's last row.
        address: of a result; it is at ``result`` three cycles later.
    """

    def __init__(self, config: DenseConfig):
        self._config = config
        super().__init__(
            {"control": In(CONTROL), "control_out": Out(CONTROL),
             "sum": In(signed(config.psum_width(config.rows))),
             "address": In(range(2 * BLOCK)), "result": Out(signed(config.acc_width))}
        )  # fmt: skip

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("AccumulatorColumn", self._config.rows, self._config.width, self._config.acc_width)

    def elaborate(self, platform):
        """Build both memories and the adder."""
        m = Module()
        width = self._config.acc_width
        m.submodules.sums = sums = memory.Memory(shape=width, depth=2 * BLOCK, init=[], attrs=NO_CHECK)
        m.submodules.results = results = memory.Memory(shape=width, depth=2 * BLOCK, init=[], attrs=NO_CHECK)
        old, new, result, final = sums.read_port(), sums.write_port(), results.read_port(), results.write_port()
        first, second, third = self.control_out, Signal(CONTROL), Signal(CONTROL)
        so_far, total = (Signal(signed(width), name=name, reset_less=True) for name in ("so_far", "total"))
        begins = Signal()
        m.d.sync += [first.eq(self.control), second.eq(first), third.eq(second)]
        m.d.comb += old.addr.eq(self.control.row)
        m.d.sync += [so_far.eq(old.data), begins.eq(first.first)]
        m.d.sync += total.eq(add(m, platform, "added", width, self.sum, so_far, ~begins))
        m.d.comb += [new.addr.eq(third.row), new.data.eq(total), new.en.eq(third.valid)]
        m.d.comb += [final.addr.eq(third.row), final.data.eq(total), final.en.eq(third.valid & third.last)]
        address = Signal.like(self.address)
        register = Signal(signed(width), name="result_register", reset_less=True)
        m.d.sync += [address.eq(self.address), register.eq(result.data)]
        m.d.comb += [result.addr.eq(address), self.result.eq(register)]
        return m
