"""What the compiler does to keep the PEs busy, left out: to measure what each thing brings (docs/study.md)."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.gen.program import Program
from maskwork.gen.works import ConvWork
from maskwork.gen.works_wgrad import WeightGradWork

ABLATIONS = {
    "dealing": "columns and channels stay in their order, whatever their densities",
    "multicast": "what several clusters need is sent to each of them by itself",
    "operand": "weight gradients always stream the layer's input",
    "trials": "tiles are chosen by expected cycles alone, without trials on the cycle model",
}
"""What can be left out, and what is then done instead."""


def parse_without(names: Iterable[str]) -> frozenset[str]:
    """Names of :data:`ABLATIONS`.

    Raises:
        MaskworkTypeError, MaskworkValueError: for one string instead of several, or other names.
    """
    if isinstance(names, str):
        raise MaskworkTypeError(f"without must be a list of names, not one string {names!r}")
    found = frozenset(names)
    for name in sorted(found - set(ABLATIONS), key=str):
        raise MaskworkValueError(f"without must be of {', '.join(ABLATIONS)}, not {name!r}")
    return found


def unicast(program: Program) -> None:
    """Make every load for several clusters one load for each of them."""
    commands = []
    for command in program.commands:
        clusters = command.get("clusters", 0)
        if command["op"].startswith("LOAD_") and clusters & (clusters - 1):
            commands += [{**command, "clusters": 1 << n} for n in range(clusters.bit_length()) if clusters >> n & 1]
        else:
            commands.append(command)
    program.commands = commands


@dataclass(frozen=True)
class AblatedWork:
    """A work (:class:`~maskwork.gen.works.Work`) whose programs go without some of :data:`ABLATIONS`."""

    work: ConvWork | WeightGradWork
    without: frozenset[str]

    @property
    def key(self) -> Hashable:
        """See :class:`~maskwork.gen.works.Work`, as of the others."""
        return self.work.key, self.without

    def macs(self) -> tuple[int, int]:
        """Dense and effectual products."""
        return self.work.macs()

    def masks(self) -> Any:
        """Operand -> its shape and mask."""
        return self.work.masks()

    def layout_words(self, config: Config) -> int:
        """See :meth:`~maskwork.gen.works_wgrad.WeightGradWork.layout_words`."""
        assert isinstance(self.work, WeightGradWork)
        return self.work.layout_words(config)

    def ways(self, config: Config) -> list[AblatedWork]:
        """The work's ways, or without a choice of operand this one."""
        if "operand" in self.without:
            return [self]
        return [replace(self, work=way) for way in self.work.ways(config)]

    def cut(self, config: Config, pieces: int) -> list[AblatedWork]:
        """The work's parts."""
        return [replace(self, work=part) for part in self.work.cut(config, pieces)]

    def lower(self, config: Config, trust: bool = True, tune: bool = False) -> Program:
        """The program without what is left out."""
        program = self.work.lower(config, trust, tune and "trials" not in self.without)
        if "multicast" in self.without:
            unicast(program)
        return program


def ablated(works: Iterable[Any], without: Collection[str]) -> list[Any]:
    """Works whose programs go without some of :data:`ABLATIONS`; the works themselves if that is nothing."""
    if not without:
        return list(works)
    found = []
    for work in works:
        if "dealing" in without:
            work = replace(work, dealt=False)
        if "operand" in without and isinstance(work, WeightGradWork) and work.exchanged:
            work = work.swapped() or work  # exchanged twice, it is the first again
        found.append(AblatedWork(work, frozenset(without)))
    return found
