"""Weights of neighbouring lanes in one memory: as many rows again in the same block RAM."""

from amaranth import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.hop import Hop
from maskwork.rtl.layouts import NO_CHECK, b_write_layout


def weight_address_width(config: Config) -> int:
    """Bits of the address of a word of weights: group of ``load_slots`` slots, k, bank."""
    return (config.slots // config.load_slots - 1).bit_length() + config.k_width + 1


def weights_layout(config: Config) -> data.ArrayLayout:
    """A word of weights: ``load_slots`` neighbouring slots."""
    return data.ArrayLayout(signed(config.b_width), config.load_slots)


class SharedWeights(wiring.Component):
    """The weights of two lanes. For each bank and PE a memory with two ports: each lane reads at its own, and loads
    write at the first lane's, which nobody needs meanwhile: a bank that is loaded is not read.

    A load for both lanes writes row k of both; one for a single lane writes its own half: row k of the second lane
    lies at k + k_depth / 2 (the expander reads there, :mod:`~maskwork.rtl.expander`).

    Members:
        write, selected: weights, and which of the lanes take them; registered here, ``hop_stages`` times more.
        address: of each lane and PE.
        words: a cycle later, what is there.
    """

    def __init__(self, config: Config):
        self._config = config
        lanes, pes = config.weight_lanes, config.pes_per_lane
        super().__init__(
            {
                "write": In(b_write_layout(config)),
                "selected": In(lanes),
                "address": In(data.ArrayLayout(data.ArrayLayout(weight_address_width(config), pes), lanes)),
                "words": Out(data.ArrayLayout(data.ArrayLayout(weights_layout(config), pes), lanes)),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("SharedWeights", self._config.hash)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        write, selected = Signal(b_write_layout(config)), Signal(config.weight_lanes)
        came = Cat(self.write, self.selected)
        if config.hop_stages:
            submodule(m, "load_hop", hop := Hop(len(came), config.hop_stages), platform)
            m.d.comb += hop.i.eq(came)
            came = hop.o
        m.d.sync += Cat(write, selected).eq(came)
        k = own_rows(write.k, ~selected.all(), selected[1])
        pes, width = config.pes_per_lane, weight_address_width(config) - 1
        for pe in range(pes):
            banks = []
            for bank in range(2):
                m.submodules[f"pe{pe}_bank{bank}"] = weights = memory.Memory(
                    shape=weights_layout(config), depth=1 << width, init=[], attrs=NO_CHECK
                )
                port = weights.write_port(granularity=1)
                enable = write.enable[pe::pes] & (selected.any() & (k[-1] == bank)).replicate(config.load_slots)
                # one address for reading and writing: synthesis then takes one port for both
                first = Signal(width, name=f"address_pe{pe}_bank{bank}")
                m.d.comb += [
                    first.eq(Mux(enable.any(), Cat(write.slot, k[:-1]), self.address[0][pe][:width])),
                    port.en.eq(enable),
                    port.addr.eq(first),
                    *(port.data[n].eq(write.values[n * pes + pe]) for n in range(config.load_slots)),
                ]
                reads = []
                for lane in range(config.weight_lanes):
                    read = weights.read_port()
                    m.d.comb += read.addr.eq(self.address[lane][pe][:width] if lane else first)
                    reads.append(read.data)
                banks.append(reads)
            for lane in range(config.weight_lanes):
                which = Signal(name=f"bank_of_lane{lane}_pe{pe}")
                m.d.sync += which.eq(self.address[lane][pe][-1])
                m.d.comb += self.words[lane][pe].eq(Mux(which, banks[1][lane].as_value(), banks[0][lane].as_value()))
        return m


def own_rows(k: Value, apart: Value, second: Value) -> Value:
    """``k`` (its top bit the bank), or where lanes hold different rows that of one's own: in the first or ``second``
    half.
    """
    return Cat(k[:-2], Mux(apart, second, k[-2]), k[-1])
