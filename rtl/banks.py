"""Book-keeping of a cluster's banks: what is loaded, what no RUN has used yet, what pending RUNs still need."""

from functools import reduce
from operator import or_

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config

BUFFERS = ("a", "b", "c", "p")


def bank_flags() -> data.StructLayout:
    """A flag for each bank of each buffer; ``p`` (parameters) has the banks of ``b``."""
    return data.StructLayout(dict.fromkeys(BUFFERS, 2))


def named_state(m: Module, check, fresh, busy, loaded) -> tuple[Value, Value, Value, Value]:
    """What the registered states of the selected clusters say, two cycles later, about the banks that a command names.

    Args:
        m: the sequencer.
        check: its :class:`~maskwork.rtl.command_check.CommandCheck`.
        fresh: flags of each cluster: loaded, but no RUN has used it.
        busy: flags of each cluster: a RUN still needs it.
        loaded: flags of each cluster: holds data.

    Returns:
        Of the bank that a load fills: some cluster's is fresh; some is not; some is busy. Of those that a RUN reads:
        some is not loaded.
    """
    own = [Signal(4, name=f"cluster{n}_state") for n in range(len(check.clusters))]
    for n, state in enumerate(own):
        bank = check.bank.as_value()
        needed = check.needed.as_value()
        m.d.sync += state.eq(
            Cat(
                (fresh[n].as_value() & bank).any(),
                (~fresh[n].as_value() & bank).any(),
                (busy[n].as_value() & bank).any(),
                (~loaded[n].as_value() & needed).any(),
            )
            & check.clusters[n].replicate(4)
        )
    result = Signal(4)
    m.d.sync += result.eq(reduce(or_, own))
    return result[0], result[1], result[2], result[3]


class Banks(wiring.Component):
    """State of every bank of one cluster.

    Members:
        loaded, fresh: holds data; holds data that no RUN has used.
        busy: a RUN that was accepted still needs it (``lanes``: rows in lanes still need the weights;
            ``post``: post-processing still reads parameters).
        begins, completes: per buffer and bank, a load starts (the bank is then not loaded), or has ended well.
        run, run_*: a RUN was accepted.
        taken, taken_*: a RUN was dispatched: its C masks are free, and its activations once they are copied.
        copying: per activation bank, segments are still to be read.
    """

    def __init__(self, config: Config):
        self._config = config
        run = {"valid": 1, "a": 1, "b": 1, "c": 1, "use_c": 1}
        super().__init__(
            {
                "loaded": Out(bank_flags()),
                "fresh": Out(bank_flags()),
                "busy": Out(bank_flags()),
                "begins": In(bank_flags()),
                "completes": In(bank_flags()),
                "run": In(data.StructLayout(run)),
                "taken": In(data.StructLayout(run)),
                "copying": In(2),
                "lanes": In(2),
                "post": In(1),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Banks", self._config.hash)

    def elaborate(self, platform):
        m = Module()
        waiting = {}
        for name in "abc":
            for bank in range(2):
                count = Signal(range(2 * self._config.run_depth + 1), name=f"runs_{name}{bank}")
                uses = self.run.valid & (self.run[name] == bank)
                leaves = self.taken.valid & (self.taken[name] == bank)
                if name == "c":
                    uses, leaves = uses & self.run.use_c, leaves & self.taken.use_c
                m.d.sync += count.eq(count + uses - leaves)
                waiting[name, bank] = count != 0
                with m.If(uses):
                    m.d.sync += self.fresh[name][bank].eq(0)
        for name in BUFFERS:
            for bank in range(2):
                with m.If(self.begins[name][bank]):
                    m.d.sync += [self.loaded[name][bank].eq(0), self.fresh[name][bank].eq(0)]
                with m.Elif(self.completes[name][bank]):
                    m.d.sync += [self.loaded[name][bank].eq(1), self.fresh[name][bank].eq(1)]
        for bank in range(2):
            weights = waiting["b", bank] | self.lanes[bank]
            m.d.comb += [
                self.busy.a[bank].eq(waiting["a", bank] | self.copying[bank]),
                self.busy.b[bank].eq(weights),
                self.busy.c[bank].eq(waiting["c", bank]),
                self.busy.p[bank].eq(weights | self.post),
            ]
        return m
