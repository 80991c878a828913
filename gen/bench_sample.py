"""Counters of a list of products: all of them simulated, or a stated sample of their parts scaled up.

A sample is a seeded choice without replacement of parts of nearly equal work: images, bands of output rows, blocks of
columns or input channels, groups; none smaller than what the lanes work on at a time. Each part is a program of its
own, which loads, starts and ends by itself, so a sample overstates cycles: the more the smaller the parts are against a
layer's weights. Extrapolating that away from two sizes of parts was tried and understates them, because small parts
get other tiles. Figures are scaled by effectual multiplies, known exactly for every part (a ratio estimate; Cochran,
"Sampling Techniques", 1977, chapter 6); the interval comes from the variance between the parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.errors import BankOverflow
from maskwork.gen.isa import COUNTERS
from maskwork.gen.program import Program, bind
from maskwork.gen.tune import LONGEST, trial
from maskwork.gen.works import Work, operands

SAMPLE = 4_000_000_000
"""Effectual multiplies of one pass of a layer that are simulated before a sample is taken instead."""

TUNED = 2_000_000
"""Effectual multiplies from which a product's tiles are chosen by simulation."""

LEAST_PARTS = 4
AIMED_PARTS = 8
"""Parts of a sample: at least, and about."""

_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Student's t for 95 % at 1, 2, ... degrees of freedom."""

_REASONS = COUNTERS[:8]
_APART = ("drain", "load", "dispatch", "idle")
"""Reasons for which PEs wait where a part begins and ends, and sums leave that the whole adds to; within it as well."""

_OTHERS = ("words_in", "words_out", "compute_cycles")


@dataclass(frozen=True)
class Measured:
    """Counters of all products together.

    Members:
        counters: names of :data:`maskwork.gen.isa.COUNTERS`.
        macs_dense: products whose two factors exist.
        macs_effectual: of those, both factors present and the result wanted.
        programs: programs simulated.
        sample: None, or what was simulated of what, and the interval of the cycles.
    """

    counters: dict[str, int]
    macs_dense: int
    macs_effectual: int
    programs: int
    sample: dict[str, Any] | None


def run_program(program: Program, values: Mapping[str, Any]) -> dict[str, int]:
    """Counters of the cycle model for a program with operands."""
    from maskwork.sim_tb.cycle import simulate

    bound = bind(program, values, check_sums=False)
    return simulate(program.config, bound.words, bound.last)


def _program(config: Config, ways: Sequence[Work], tune: bool) -> tuple[int, Program]:
    """Which way runs, and its program: the first, or with ``tune`` the one that seems fastest by simulation."""
    if not tune or len(ways) == 1:
        return 0, ways[0].lower(config, tune=tune)
    programs = [way.lower(config, tune=True) for way in ways]
    cycles = []
    for way, program in zip(ways, programs, strict=True):
        tried = trial(program, operands(way, program), max(1, way.macs()[1]), LONGEST)
        cycles.append(math.inf if tried is None else tried)
    best = min(range(len(ways)), key=cycles.__getitem__)
    return best, programs[best]


def measure(
    config: Config,
    works: Sequence[Work],
    limit: int,
    seed: Sequence[int],
    programs: dict[Hashable, tuple[int, Program]] | None = None,
) -> Measured:
    """Simulate products one after the other, or a sample of them.

    Args:
        config: the accelerator.
        works: the products.
        limit: effectual multiplies above which a sample of about so many is simulated; 0 never samples.
        seed: of the sample.
        programs: by :attr:`Work.key`, which of :meth:`Work.ways` runs and its program, to be used and added to: for
            several calls with one configuration.

    Raises:
        ProgramError: if the configuration cannot run a product.
    """
    programs = {} if programs is None else programs

    def run(work: Work) -> dict[str, int]:
        ways, key = work.ways(config), work.key
        if key not in programs:
            programs[key] = _program(config, ways, tune=sum(own for _, own in counts) >= TUNED)
        index, program = programs[key]
        work = ways[index]
        try:
            return run_program(program, operands(work, program))
        except BankOverflow:
            # some part of A is denser than all of it lets one expect
            program = work.lower(config, trust=False)
            programs[key] = index, program
            return run_program(program, operands(work, program))

    counts = [work.macs() for work in works]
    dense, effectual = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    if limit and effectual > limit:
        parts = [
            part
            for work, (_, own) in zip(works, counts, strict=True)
            for part in (
                work.cut(config, math.ceil(own * AIMED_PARTS / limit)) if own * AIMED_PARTS > limit else [work]
            )
        ]
        number = max(LEAST_PARTS, round(limit * len(parts) / effectual))
        if number < len(parts):
            return _sampled(config, parts, number, (dense, effectual), seed, run)
    total: dict[str, int] = {name: 0 for name in COUNTERS}
    for work in works:
        counters = run(work)
        for name in COUNTERS:
            total[name] += counters[name]
    return Measured(total, dense, effectual, len(works), None)


def _sampled(
    config: Config,
    parts: Sequence[Work],
    number: int,
    macs: tuple[int, int],
    seed: Sequence[int],
    run: Callable[[Work], dict[str, int]],
) -> Measured:
    rng = np.random.default_rng(np.random.SeedSequence(list(seed)))
    chosen = sorted(rng.choice(len(parts), number, replace=False).tolist())
    dense, total = macs
    if not any(parts[i].macs()[1] for i in chosen):
        # a sample without one effectual product says nothing about their time: half of it is drawn from those with some
        full = rng.permutation([i for i, part in enumerate(parts) if part.macs()[1]])[: number // 2].tolist()
        chosen = sorted([*full, *chosen[: number - len(full)]])
    counted = [run(parts[i]) for i in chosen]
    sizes = np.array([parts[i].macs()[1] for i in chosen], dtype=np.float64)
    scale = total / sizes.sum()
    summed = {name: sum(c[name] for c in counted) for name in COUNTERS}
    cycles = math.ceil(summed["cycles"] * scale)
    counters = _scaled(config, summed, int(sizes.sum()), cycles, total)
    counters.update({name: round(summed[name] * scale) for name in _OTHERS})
    ratio = summed["cycles"] / sizes.sum()
    residual = np.array([c["cycles"] for c in counted]) - ratio * sizes
    variance = (1 - number / len(parts)) / number * (residual**2).sum() / (number - 1)
    t = _T95[number - 2] if number - 2 < len(_T95) else 1.96 + 2.4 / (number - 1)
    half = t * math.sqrt(variance) * total / sizes.mean()
    # every part loads, starts and ends by itself, which the whole does once, or partly: at most so much less
    apart = sum(summed[name] for name in _APART) / config.pes * scale * (1 - 1 / len(parts))
    sample = {
        "parts": len(parts), "simulated": number, "share": float(sizes.sum() / total),
        "cycles_95": [max(0, math.floor(cycles - half - apart)), math.ceil(cycles + half)],
    }  # fmt: skip
    return Measured(counters, dense, total, number, sample)


def _scaled(config: Config, summed: Mapping[str, int], own: int, cycles: int, effectual: int) -> dict[str, int]:
    """Counters for so many cycles and effectual multiplies, with the sample's shares of everything else; the reasons
    still sum to cycles * PEs.
    """
    losses = {name: summed[name] for name in _REASONS}
    losses["multiply"] -= own  # ineffectual ones
    rest = cycles * config.pes - effectual
    weight = sum(losses.values())
    result = {name: rest * value // weight if weight else 0 for name, value in losses.items()}
    largest = max(losses, key=lambda name: losses[name]) if weight else "idle"
    result[largest] += rest - sum(result.values())
    result["multiply"] += effectual
    return {**result, "cycles": cycles}
