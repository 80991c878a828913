"""What two PEs would save on an ECP5 if they shared one queue that each reads with a pointer of its own.

The weights' masks are looked up once for a lane already, so what two PEs can still share is the queue. LUT RAM has one
read port: a second pointer takes a second copy of the token. (What it does to a lane's throughput:
:mod:`maskwork.gen.lane_trials`.)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from amaranth import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.fpga.synthesis import scratch, synthesise
from maskwork.gen.config import Config, preset
from maskwork.rtl.pe import QUEUE_MARGIN, token_layout
from maskwork.rtl.queue import Queue, stepped


class PairQueue(wiring.Component):
    """:class:`~maskwork.rtl.queue.Queue` for two PEs: one way in, and two ways out at their own pace.

    Args:
        config: the accelerator.

    Members:
        i: token with a mask for each PE.
        o0, o1: the token with the PE's own mask; an entry is free when both have taken it.
        space: at least QUEUE_MARGIN entries were free in the cycle before.
    """

    def __init__(self, config: Config):
        self._config = config
        masks = data.ArrayLayout(config.slots, 2)
        out = data.StructLayout({"mask": config.slots, "token": token_layout(config)})
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"mask": masks, "token": token_layout(config)}))),
                "o0": Out(stream.Signature(out)),
                "o1": Out(stream.Signature(out)),
                "space": Out(1),
            }
        )

    def elaborate(self, platform):
        """Build the queue: a memory for each pointer, and the level of the slower one."""
        m = Module()
        depth = self._config.queue_depth
        levels = [Signal(range(depth + 1), name=f"level{n}") for n in range(2)]
        push = Signal()
        write_at = Signal(range(depth))
        m.d.comb += [
            self.i.ready.eq(~(levels[0][-1] | levels[1][-1])),
            push.eq(self.i.valid & self.i.ready),
        ]
        with m.If(push):
            m.d.sync += write_at.eq(write_at + 1)
        most = depth - QUEUE_MARGIN
        m.d.sync += self.space.eq((levels[0] <= most) & (levels[1] <= most))
        for n, (o, level) in enumerate(zip((self.o0, self.o1), levels, strict=True)):
            m.submodules[f"memory{n}"] = ram = memory.Memory(shape=o.payload.shape(), depth=depth, init=[])
            write, read = ram.write_port(), ram.read_port(domain="comb")
            waits, pop = Signal(name=f"waits{n}"), Signal(name=f"pop{n}")
            m.d.comb += [
                o.valid.eq(waits),
                pop.eq(waits & o.ready),
                write.addr.eq(write_at),
                write.en.eq(push),
                write.data.token.eq(self.i.payload.token),
                write.data.mask.eq(self.i.payload.mask[n]),
                o.payload.eq(read.data),
            ]
            with m.If(pop):
                m.d.sync += read.addr.eq(read.addr + 1)
            with m.If(push ^ pop):
                m.d.sync += [level.eq(stepped(level, push)), waits.eq(push | (level != 1))]
        return m


def pair_cost(config: Config) -> dict[str, dict[str, int]]:
    """LUTs and flip-flops of two PEs' queues: each its own, shared, and each its own of twice the depth."""
    shape = data.StructLayout({"mask": config.slots, "token": token_layout(config)})
    costs: dict[str, dict[str, int]] = {}
    with scratch() as build:
        own = synthesise(Queue(shape, config.queue_depth, QUEUE_MARGIN), "own", Path(build))
        shared = synthesise(PairQueue(config), "shared", Path(build))
        long = synthesise(Queue(shape, 2 * config.queue_depth, QUEUE_MARGIN), "long", Path(build))
    costs["two queues"] = {"luts": 2 * own.luts, "ffs": 2 * own.ffs}
    costs["one for both"] = {"luts": shared.luts, "ffs": shared.ffs}
    costs["two of twice the depth"] = {"luts": 2 * long.luts, "ffs": 2 * long.ffs}
    return costs


def main() -> None:
    """``python -m maskwork.fpga.pair_cost``."""
    parser = argparse.ArgumentParser(prog="python -m maskwork.fpga.pair_cost", description=__doc__)
    parser.add_argument("--preset", default="ulx3s-85f", help="configuration of the PEs")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args()
    costs = pair_cost(preset(options.preset))
    if options.json:
        print(json.dumps(costs))
        return
    for name, cost in costs.items():
        print(f"{name:24}{cost['luts']:6} LUTs{cost['ffs']:6} flip-flops")


if __name__ == "__main__":
    main()
