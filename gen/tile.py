"""Which part of a simulation is one tile: for waveforms of one RUN of a program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from maskwork.gen import pack
from maskwork.gen.errors import DeviceError, MaskworkValueError
from maskwork.gen.isa import Reply
from maskwork.gen.program import Bound, Program
from numpy.typing import NDArray

if TYPE_CHECKING:
    from maskwork.sim_tb.run import TraceWindow


def run_commands(program: Program) -> list[int]:
    """Indices of a program's RUNs among its commands."""
    return [index for index, command in enumerate(program.commands) if command["op"] == "RUN"]


def check_tile(program: Program, tile: int, name: str = "trace_tile") -> None:
    """Whether the program has such a RUN.

    Args:
        program: what will run.
        tile: number of the RUN, from 0.
        name: what the message calls it.

    Raises:
        MaskworkValueError: saying how many there are.
    """
    count = len(run_commands(program))
    if not count:
        raise MaskworkValueError(f"{name} must be the number of a RUN: the program has none")
    if not 0 <= tile < count:
        runs = "1 RUN" if count == 1 else f"{count} RUNs"
        raise MaskworkValueError(f"{name} must be from 0 to {count - 1}, not {tile}: the program has {runs}")


def tile_window(program: Program, bound: Bound, tile: int, **options: Any) -> TraceWindow:
    """From the first word of a RUN to its last result, found by a run without waveforms.

    Runs with equal options are equal to the cycle, so the window is the same in the next one. A RUN that leaves its
    sums for other RUNs to finish has no results: its window goes on to those of the one that finishes them.

    Args:
        program: what will run.
        bound: with its operands.
        tile: number of the RUN, from 0.
        **options: of :class:`maskwork.sim_tb.device.RtlDevice`.

    Raises:
        MaskworkValueError: if the program has no such RUN.
        DeviceError: if the device fails.
    """
    from maskwork.sim_tb.device import open_device
    from maskwork.sim_tb.run import TraceWindow

    check_tile(program, tile)
    never = TraceWindow(len(bound.last), 0)  # the same simulator as for the waveforms, which show nothing
    with open_device("rtl", program.config, **options, trace_window=never) as device:
        words, last = device.execute(bound.words, bound.last)
    first_in = int(bound.starts[run_commands(program)[tile]]) // program.config.stream_words
    return TraceWindow(first_in, _last_result(program, _finishing(program, tile), words, last))


def _finishing(program: Program, tile: int) -> int:
    """Which of the program's results a RUN's sums end in."""
    runs = [program.commands[index] for index in run_commands(program)]
    run = runs[tile]
    for later in range(tile, len(runs)):
        other = runs[later]
        same_tile = other.get("tag", 0) == run.get("tag", 0) and other["clusters"] & run["clusters"]
        if other.get("final") and same_tile:
            return sum(bool(before.get("final")) for before in runs[:later])
    raise MaskworkValueError(f"no RUN finishes the sums of RUN {tile}")


def _last_result(program: Program, number: int, words: NDArray[np.uint32], last: NDArray[np.bool_]) -> int:
    """Beat that ends the last packet of a result; results with equal tags are complete one after the other."""
    beat = program.config.stream_words
    ends = np.flatnonzero(last)
    heads = words[np.concatenate([[0], ends[:-1] + 1]) * beat]
    tag = program.results[number]["tag"]
    ours = ends[(heads & 0xFF == Reply.RESULT) & (heads >> 8 & 0xFF == tag)]
    rows = sum(
        pack.count_ranges(part["rows"])
        for result in program.results[: number + 1]
        for part in result["parts"]
        if result["tag"] == tag
    )
    if len(ours) < rows:
        raise DeviceError(f"results are missing: {len(ours)} came with tag {tag}, {rows} are expected")
    return int(ours[rows - 1])
