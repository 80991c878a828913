"""Choice among tilings by simulation: the beginnings of their programs run on the cycle model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from maskwork.gen.errors import BankOverflow
from maskwork.gen.lower_costs import Density
from maskwork.gen.lower_schedule import Scheduler
from maskwork.gen.program import Program, bind
from numpy.typing import NDArray

P = TypeVar("P")

SAMPLE = 12_000_000
"""Products of a trial, about: whole chains of K tiles, two at least."""

LONGEST = 100_000_000
"""Products of a trial, at most, about: it ends within a chain if need be."""


def beginning(program: Program, chains: int) -> tuple[Program, int]:
    """A program's commands up to the end of so many chains of K tiles, and how many chains it has in all."""
    commands, number, ends = program.commands, 0, len(program.commands)
    is_final = [command["op"] == "RUN" and bool(command.get("final")) for command in commands]
    for index, final in enumerate(is_final):
        if final and not is_final[index - 1]:
            number += 1
        if not final and is_final[index - 1] and number == chains:
            ends = min(ends, index)
    kept = [*commands[:ends], {"op": "SYNC"}] if commands[ends - 1]["op"] != "SYNC" else commands
    return Program(program.config, program.operands, kept, [], program.outputs, program.products), number


def _shortened(program: Program, share: float) -> Program:
    """About this share of a program's steps."""
    runs = [index for index, command in enumerate(program.commands) if command["op"] == "RUN"]
    end = runs[max(1, round(share * len(runs))) - 1] + 1
    kept = [*program.commands[:end], {"op": "SYNC"}]
    return Program(program.config, program.operands, kept, [], program.outputs, program.products)


def pace(program: Program, values: Mapping[str, NDArray[Any]], products: float) -> float:
    """Products that the beginning of a program computes in a cycle; 0 where the operands do not fit the banks.

    Args:
        program: the whole program.
        values: its operands.
        products: effectual products of the whole program, about.
    """
    from maskwork.sim_tb.cycle import simulate

    chains = beginning(program, 1)[1]
    number = max(2, round(SAMPLE * chains / products))
    tried, _ = beginning(program, number)
    size = products * min(1.0, number / max(1, chains))
    if size > LONGEST:
        tried = _shortened(tried, LONGEST / size)
    try:
        bound = bind(tried, values, check_sums=False)
    except BankOverflow:
        return 0.0
    counters = simulate(program.config, bound.words, bound.last)
    return counters["multiply"] / counters["cycles"]


def fastest(scheduler: Scheduler, schedule: Callable[[P], None], plans: Sequence[P], density: Density) -> P:
    """The plan that computes most products in a cycle.

    Args:
        scheduler: of the program, which has its operands, and BEGIN only.
        schedule: emits a plan's commands.
        plans: the most promising first; the first is taken where nothing else can be simulated.
        density: of A, B and C, for random masks.
    """
    program = scheduler.program
    before, results, finals = list(program.commands), list(program.results), scheduler.finals
    rng = np.random.default_rng(1)
    share = dict(zip(("a", "b", "c_mask"), density, strict=True))
    values = {
        name: (rng.random(spec["shape"], dtype=np.float32) < share.get(spec["role"], 1.0)).astype(np.int64)
        for name, spec in program.operands.items()
    }
    inner = float(np.prod([float(size) for size in program.operands["b"]["shape"]]))
    positions = float(np.prod([float(size) for size in program.outputs["c"]["shape"][:-1]]))
    products = inner * positions * density[0] * density[1] * density[2]
    best, best_pace = plans[0], 0.0
    for plan in plans:
        schedule(plan)
        own = pace(program, values, products)
        program.commands, program.results, scheduler.finals = list(before), list(results), finals
        if own > best_pace:
            best, best_pace = plan, own
    return best
