"""Choice among tilings by simulation: the beginnings of their programs run on the cycle model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any, TypeVar

import numpy as np
from maskwork.gen.errors import BankOverflow
from maskwork.gen.lower_costs import Density
from maskwork.gen.lower_schedule import Scheduler
from maskwork.gen.program import Program, bind
from numpy.typing import NDArray

P = TypeVar("P")

SURE = 1.05
"""Cycles of the first plan against another's at least, for that to be taken by a trial of one or two long chains."""

SAMPLE = 12_000_000
"""Products of a trial, about: whole chains of K tiles, two at least."""

WHOLE = 200_000_000
"""Products of a program, below which the best plans are run to their end if they are close; where wanted positions are
known always, for parts are then of different sizes, and none stands for the others."""

FINALISTS = 3
"""Such plans."""

CLOSE = 1.05
"""Cycles of close plans against the best one's, at most, by trials of their beginnings."""

LONGEST = 60_000_000
"""Products of a trial, at most, about, where chains are long: one has to do, or a part of it."""


def chains_of(program: Program) -> list[tuple[int, int]]:
    """Of each chain of K tiles, the number of commands up to its end, and its work: what the cluster with most rows
    has to do, for a chain takes as long as that.
    """
    found: list[tuple[int, int]] = []
    by_clusters: dict[int, int] = {}
    final = False
    for index, command in enumerate([*program.commands, {"op": "SYNC"}]):
        was_final, final = final, command["op"] == "RUN" and bool(command.get("final"))
        if was_final and not final:
            busy = range(max(by_clusters).bit_length())
            found.append((index, max(sum(own for mask, own in by_clusters.items() if mask >> n & 1) for n in busy)))
            by_clusters = {}
        if command["op"] == "RUN":
            rows, columns, mask = (int(command.get(*pair)) for pair in (("rows", 0), ("columns", 0), ("clusters", 1)))
            by_clusters[mask] = by_clusters.get(mask, 0) + rows * (columns + 1)
    return found


def beginning(program: Program, chains: int) -> tuple[Program, float]:
    """A program's commands up to the end of so many chains of K tiles, and their share of the work of all."""
    every = chains_of(program)
    commands, ends = program.commands, every[min(chains, len(every)) - 1][0]
    kept = [*commands[:ends], {"op": "SYNC"}] if commands[ends - 1]["op"] != "SYNC" else commands
    if chains >= len(every):
        kept = commands if commands[-1]["op"] == "SYNC" else [*commands, {"op": "SYNC"}]
    share = sum(work for _, work in every[:chains]) / max(1, sum(work for _, work in every))
    return Program(program.config, program.operands, kept, [], program.outputs, program.products), share


def _shortened(program: Program, share: float) -> tuple[Program, float]:
    """About this share of a program's RUNs, and the exact one."""
    runs = [index for index, command in enumerate(program.commands) if command["op"] == "RUN"]
    number = max(1, round(share * len(runs)))
    kept = [*program.commands[: runs[number - 1] + 1], {"op": "SYNC"}]
    short = Program(program.config, program.operands, kept, [], program.outputs, program.products)
    return short, number / len(runs)


def trial(
    program: Program,
    values: Mapping[str, NDArray[Any]],
    products: float,
    most: float = inf,
    sample: float | None = None,
) -> float | None:
    """Cycles that a program seems to take, from its beginning: its other chains should take as long for their work.
    None where the operands do not fit the banks.

    Args:
        program: the whole program.
        values: its operands.
        products: effectual products of the whole program, about.
        most: products of the trial, at most, about: one chain has to do, or a part of it, if two have more.
        sample: products of the trial, about, if not :data:`SAMPLE`.
    """
    from maskwork.sim_tb.cycle import simulate

    chains = len(chains_of(program))
    wanted = SAMPLE if sample is None else sample
    number = max(2, round(min(1.0, wanted / products) * chains))
    if number * products > most * chains:
        number = max(1, int(most * chains / products))
    tried, share = beginning(program, number)
    if share * products > most:
        tried, kept = _shortened(tried, most / (share * products))
        share *= kept
    try:
        bound = bind(tried, values, check_sums=False)
        counters = simulate(program.config, bound.words, bound.last)
    except BankOverflow:
        return None
    return counters["cycles"] / share


def _c_mask(
    spec: Mapping[str, Any], density: float, positions: NDArray[np.bool_] | None, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """A random C mask of that density: of whole positions, and among ``positions``, if that is known."""
    shape = tuple(spec["shape"])
    whole = (*shape[:-1], 1) if spec.get("whole") else shape
    among = np.ones(shape[:-1], dtype=np.bool_) if positions is None else positions
    drawn = rng.random(whole, dtype=np.float32) * float(among.mean()) < density
    return np.broadcast_to(drawn & among[..., None], shape)


def fastest(
    scheduler: Scheduler, schedule: Callable[[P], None], plans: Sequence[P], density: Density, few_chains: bool = False,
    positions: NDArray[np.bool_] | None = None, sample: float | None = None,
) -> P:  # fmt: skip
    """The plan that seems to take the fewest cycles.

    Args:
        scheduler: of the program, which has its operands, and BEGIN only.
        schedule: emits a plan's commands.
        plans: the most promising first; the first is taken where nothing else can be simulated.
        density: of A, B and C, for random masks.
        few_chains: chains are few and long. Trials may end within one, which is less exact, so the first plan stays
            unless another one is better by :data:`SURE`.
        positions: where results are wanted, (N, OH, OW), if that is known.
        sample: products of each trial, about, if not :data:`SAMPLE`.
    """
    program = scheduler.program
    before, results, finals = list(program.commands), list(program.results), scheduler.finals
    rng = np.random.default_rng(1)
    share = dict(zip(("a", "b", "c_mask"), density, strict=True))
    values = {
        name: (rng.random(spec["shape"], dtype=np.float32) < share.get(spec["role"], 1.0)).astype(np.int64)
        for name, spec in program.operands.items()
    }
    if "c_mask" in values and (positions is not None or program.operands["c_mask"].get("whole")):
        values["c_mask"] = _c_mask(program.operands["c_mask"], density[2], positions, rng).astype(np.int64)
    inner = float(np.prod([float(size) for size in program.operands["b"]["shape"]]))
    rows = float(np.prod([float(size) for size in program.outputs["c"]["shape"][:-1]]))
    products = inner * rows * density[0] * density[1] * density[2]

    def ranked(plans: Sequence[P], most: float, sample: float | None, sure: float) -> list[tuple[float, P]]:
        found = []
        for plan in plans:
            schedule(plan)
            cycles = trial(program, values, products, most, sample)
            program.commands, program.results, scheduler.finals = list(before), list(results), finals
            if cycles is not None:
                found.append((cycles * (sure if plan is not plans[0] else 1.0), plan))
        return sorted(found, key=lambda one: one[0])

    best = ranked(plans, LONGEST if few_chains else inf, sample, SURE if few_chains else 1.0)
    if (SAMPLE if sample is None else sample) < products < WHOLE:
        near = inf if positions is not None else CLOSE
        close = [plan for cycles, plan in best if cycles <= near * best[0][0]][:FINALISTS]
        if len(close) > 1:
            best = ranked(close, inf, inf, 1.0) or best
    return best[0][1] if best else plans[0]
