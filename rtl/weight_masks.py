"""Masks of a lane's weights: for every k, which columns of B are present."""

from amaranth import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.hop import Hop
from maskwork.rtl.layouts import NO_CHECK


class WeightMasks(wiring.Component):
    """One memory for all PEs of a lane, which look up the same k in the same cycle: a memory for each would leave most
    of its block RAM empty.

    Members:
        k: row of B, its top bit the weight bank.
        masks: a cycle later, the mask of that row for each PE.
        we, write_k, mask: a row's mask from the loader, in column order (all PEs' first slot, then their second ...),
            written ``hop_stages`` cycles later.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(
            {
                "k": In(config.k_width + 1),
                "masks": Out(data.ArrayLayout(config.slots, config.pes_per_lane)),
                "we": In(1),
                "write_k": In(config.k_width + 1),
                "mask": In(config.tile_columns),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        config = self._config
        return ("WeightMasks", config.slots, config.pes_per_lane, config.k_depth, config.hop_stages)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        pes = config.pes_per_lane
        m.submodules.memory = masks = memory.Memory(
            shape=self.masks.shape().size, depth=2 * config.k_depth, init=[], attrs=NO_CHECK
        )
        write, read = masks.write_port(), masks.read_port()
        mask = Cat(self.mask[slot * pes + pe] for pe in range(pes) for slot in range(config.slots))
        given = Cat(self.write_k, mask, self.we)
        if config.hop_stages:
            # what was on its way when the lane was reset does no harm: masks are loaded before they are read
            submodule(m, "load_hop", hop := Hop(len(given), config.hop_stages, reset_less=True), platform)
            m.d.comb += hop.i.eq(given)
            given = hop.o
        m.d.comb += [
            Cat(write.addr, write.data, write.en).eq(given),
            read.addr.eq(self.k),
            self.masks.eq(read.data),
        ]
        return m
