"""The dense array with its memories: what is compared with the sparse accelerator on the same device."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.fpga.dense.config import BLOCK, DEPTH, DenseConfig
from maskwork.fpga.dense.cycles import CONTROL_DELAY
from maskwork.fpga.dense.memories import CONTROL, READ, AccumulatorColumn, Feeder, write_layout
from maskwork.fpga.dense.pe import DensePE
from maskwork.rtl.hierarchy import submodule

TILE = data.StructLayout(
    {"rows": range(1, BLOCK + 1), "activations": range(DEPTH), "weights": range(DEPTH), "bank": 1, "first": 1,
     "last": 1}
)  # fmt: skip
"""One K tile of one block of the result.

rows: of activations; activations, weights: where theirs begin in the memories of all rows and all columns, the
weights with the last row's; bank: of the sums; first, last: of the block's K tiles.
"""


class DenseArray(wiring.Component):
    """Weight-stationary systolic array: result[m, n] = sum over k of activation[m, k] * weight[k, n].

    A tile takes as many cycles as it has rows of activations, but ``rows`` of the array + 2 at least: the next tile's
    weights are loaded meanwhile (:func:`maskwork.fpga.dense.cycles.array_cycles` has the exact number).

    Members:
        i: tiles. Those of one bank follow each other; its results are ready when ``done`` has been high for the last
            of them, and stay until the bank's next last tile.
        write: a word for an operand memory each cycle; written at most ``rows`` (or ``columns``) + 2 cycles later.
        done: a block's last sums are written at the end of this cycle.
        read, address: read one row of results; five cycles later the first column's is at ``o``, then one a cycle.
        o: results.
    """

    def __init__(self, config: DenseConfig):
        self._config = config
        super().__init__(
            {"i": In(stream.Signature(TILE)), "write": In(write_layout(config)), "done": Out(1),
             "read": In(1), "address": In(range(2 * BLOCK)), "o": Out(signed(config.acc_width))}
        )  # fmt: skip

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("DenseArray", self._config)

    def elaborate(self, platform):
        """Connect PEs, feeders and accumulators."""
        m = Module()
        activations, weights, control = self._sequence(m)
        rows, columns = range(self._config.rows), range(self._config.columns)
        feed = [self._feeders(m, platform, "row", rows, activations),
                self._feeders(m, platform, "column", columns, weights)]  # fmt: skip
        pes = {}
        for r in rows:
            for c in columns:
                pe = pes[r, c] = DensePE(self._config, r, self._config.has_dsp(r, c))
                submodule(m, f"pe{r}_{c}", pe, platform)
                left = (pes[r, c - 1].a_out, pes[r, c - 1].swap_out) if c else (feed[0][r].word, feed[0][r].flag)
                above = (pes[r - 1, c].weight_out, pes[r - 1, c].load_out, pes[r - 1, c].sum_out) if r else \
                    (feed[1][c].word, feed[1][c].flag, 0)  # fmt: skip
                m.d.comb += [pe.a.eq(left[0]), pe.swap.eq(left[1]), pe.loading.eq(feed[1][c].flag)]
                m.d.comb += [pe.weight.eq(above[0]), pe.load.eq(above[1]), pe.sum.eq(above[2])]
        self._accumulators(m, platform, control, [pes[rows[-1], c].sum_out for c in columns])
        return m

    def _feeders(self, m, platform, name: str, indices: range, read):
        """The memories of all rows, or of all columns: a chain."""
        write, found = self.write, []
        for index in indices:
            feeder = Feeder(self._config, name == "column", index)
            submodule(m, f"{name}{index}", feeder, platform)
            m.d.comb += [feeder.read.eq(read), feeder.write.eq(write)]
            read, write = feeder.read_out, feeder.write_out
            found.append(feeder)
        return found

    def _sequence(self, m):
        """Take tiles: addresses of the first row's activations and the first column's weights, and what sum follows."""
        flags = "loading", "load_end", "loaded", "settle", "running", "end", "single", "begin"
        loading, load_end, loaded, settle, running, end, single, begin = (Signal(name=name) for name in flags)
        next_tile, tile = Signal(TILE), Signal(TILE)
        load_left, left = Signal(range(self._config.rows)), Signal(range(BLOCK))
        a_address, w_address, row = Signal(range(DEPTH)), Signal(range(DEPTH)), Signal(range(BLOCK))
        take, start = self.i.valid & self.i.ready, (load_end | loaded) & (~running | end)
        m.d.comb += self.i.ready.eq(~(loading | loaded | settle))
        m.d.sync += [settle.eq(start), begin.eq(start), loaded.eq((load_end | loaded) & ~start)]
        m.d.sync += [w_address.eq(w_address + 1), load_left.eq(load_left - 1), load_end.eq(loading & (load_left == 1))]
        m.d.sync += [a_address.eq(a_address + 1), row.eq(row + 1), left.eq(left - 1), end.eq(running & (left == 1))]
        with m.If(load_end):
            m.d.sync += loading.eq(0)
        with m.If(take):
            m.d.sync += [loading.eq(1), load_left.eq(self._config.rows - 1), w_address.eq(self.i.payload.weights)]
            m.d.sync += [next_tile.eq(self.i.payload), single.eq(self.i.payload.rows == 1)]
        with m.If(end):
            m.d.sync += running.eq(0)
        with m.If(start):
            m.d.sync += [running.eq(1), tile.eq(next_tile), left.eq(next_tile.rows - 1), row.eq(0), end.eq(single)]
            m.d.sync += a_address.eq(next_tile.activations)
        activations, weights, control = Signal(READ), Signal(READ), Signal(CONTROL)
        m.d.comb += [activations.address.eq(a_address), activations.flag.eq(begin)]
        m.d.comb += [weights.address.eq(w_address), weights.flag.eq(loading)]
        m.d.comb += [control.valid.eq(running), control.row.eq(Cat(row, tile.bank))]
        m.d.comb += [control.first.eq(tile.first), control.last.eq(tile.last)]
        m.d.comb += control.end.eq(tile.last & end)
        return activations, weights, control

    def _accumulators(self, m, platform, control, sums):
        """The columns' sums, each column a cycle after the one before, and the way out of their results."""
        delay = CONTROL_DELAY + self._config.rows
        for n in range(delay):
            following = Signal(CONTROL, name=f"control{n}")
            m.d.sync += following.eq(control)
            control = following
        address, gather = Signal.like(self.address), [Signal(name=f"gather{n}") for n in range(4)]
        m.d.sync += address.eq(self.address)
        m.d.sync += Cat(gather).eq(Cat(self.read, *gather))
        chain = [Signal(signed(self._config.acc_width), name=f"out{c}", reset_less=True) for c in range(len(sums) + 1)]
        for c, total in enumerate(sums):
            column = AccumulatorColumn(self._config)
            submodule(m, f"sums{c}", column, platform)
            m.d.comb += [column.control.eq(control), column.sum.eq(total), column.address.eq(address)]
            m.d.sync += chain[c].eq(Mux(gather[3], column.result, chain[c + 1]))
            control = column.control_out
        m.d.comb += self.o.eq(chain[0])
        written = Signal(CONTROL), Signal(CONTROL)
        m.d.sync += [written[0].eq(control), written[1].eq(written[0])]
        m.d.comb += self.done.eq(written[1].valid & written[1].end)
