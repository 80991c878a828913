"""Lowering of masks, pruning, dropout, norms and projections to a program of MASK commands."""

from __future__ import annotations

from typing import Any

from maskwork.gen.check_masks import MAKERS, level_limits, longest_row
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError, ProgramError
from maskwork.gen.isa import COMMANDS, ISA_VERSION, KIND_BLOCKS, SEEDED, MaskKind, Op, mask_has_payload
from maskwork.gen.lfsr import leap
from maskwork.gen.program import Program

MAX_ROWS = COMMANDS[Op.MASK].field("rows").limits[1]
"""Most rows of one MASK."""

MAX_VALUES = 1 << 20
"""Values of one MASK above which another begins."""


def lower_mask(
    config: Config,
    kind: MaskKind | str,
    rows: int,
    length: int,
    *,
    level: int = 0,
    seed: int = 1,
    slot: int = 0,
    store: bool = False,
    values: bool = True,
) -> Program:
    """A program that makes, stores or replays a mask of (rows, length) values, or makes their norms or projections.

    Operand "a": (rows, length), integers of ``a_width`` bits, signed; DROPOUT and REPLAY with ``values`` False have
    none. Output "c": values (rows, length) int32, 0 where they are not kept; with ``values`` False the mask, 0 and 1
    (rows, length) int32; NORMS: (length, 2) int64, of each column the sum of magnitudes and the number of values that
    are not 0; PROJECT: (rows, project_sums) int32. Output "stats", but for NORMS and PROJECT: int64 (3,), sum of the
    operand's magnitudes (without operand 0), number kept, the operand's values that are not 0.

    A value is kept, and counted as kept, if its output is not 0. More than :data:`MAX_ROWS` rows, or about
    :data:`MAX_VALUES` values, take several commands; the random numbers of PRUNE go on from one to the next.

    Args:
        config: a configuration whose ``generators`` name the block that the kind needs.
        kind: a :class:`~maskwork.gen.isa.MaskKind`, or its name in small letters. What each does: docs/isa.md.
        rows: 1 or more.
        length: values of a row, 1 to 65535; for NORMS at most ``norm_channels``, for PROJECT 16384.
        level: GREATER: values above it are kept. MAGNITUDE, PRUNE: threshold, 1 or more. DROPOUT: 65536 times the
            probability to keep, 1 to 65535.
        seed: of PRUNE, DROPOUT and PROJECT: 1 to 2**32 - 1.
        slot: where the mask is stored, or replayed from: 0 to mask_slots - 1.
        store: store the mask (GREATER, MAGNITUDE, PRUNE, DROPOUT), at most ``mask_depth`` words: a row takes a word
            for each 32 values, or part of 32.
        values: the reply has values, else the mask. NORMS and PROJECT need True.

    Raises:
        MaskworkTypeError, MaskworkValueError: for an argument that MASK does not have.
        ProgramError: if the configuration has not the block.
    """
    number = _kind(kind)
    stores = store or number == MaskKind.REPLAY
    for block in (KIND_BLOCKS[number], *(("store",) if stores else ())):
        if block not in config.blocks:
            raise ProgramError(f"configuration {config.name!r} has no block {block!r} in its generators "
                               f"({config.generators or 'none'}); {number.name} needs it")  # fmt: skip
    limits = {
        "rows": (1, 1 << 40),
        "length": (1, longest_row(config, number)),
        "level": level_limits(config, number) or COMMANDS[Op.MASK].field("level").limits,
        "seed": (int(number in SEEDED), (1 << 32) - 1),
        "slot": (0, config.mask_slots - 1),
    }
    given: dict[str, Any] = {"rows": rows, "length": length, "level": level, "seed": seed, "slot": slot}
    for name, value in given.items():
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise MaskworkTypeError(f"{name} must be an integer, not {value!r}")
        low, high = limits[name]
        if not low <= value <= high:
            raise MaskworkValueError(f"{name} must be from {low} to {high} for {number.name}, not {value}")
    rows, length, level, seed, slot = (int(value) for value in given.values())
    if store and number not in MAKERS:
        raise MaskworkValueError(f"store must be False for {number.name}, which makes no mask")
    if not values and number in (MaskKind.NORMS, MaskKind.PROJECT):
        raise MaskworkValueError(f"values must be True for {number.name}")
    if stores and (words := rows * -(-length // 32)) > config.mask_depth:
        raise MaskworkValueError(
            f"a mask of {rows} rows of {length} takes {words} words; a slot has mask_depth = {config.mask_depth}"
        )
    fields = {"kind": int(number), "values": int(values), "store": int(store), "slot": slot, "length": length,
              "level": level}  # fmt: skip
    program = Program(config)
    _declare(program, number, rows, length, values)
    program.commands.append({"op": "BEGIN", "version": ISA_VERSION, "config": config.hash})
    step = min(MAX_ROWS, max(1, MAX_VALUES // length))
    for packet, first in enumerate(range(0, rows, step)):
        count, tag = min(step, rows - first), packet % 256
        start = leap(seed, first * length) if number == MaskKind.PRUNE else seed
        command: dict[str, Any] = {"op": "MASK", "tag": tag, **fields, "rows": count, "seed": start}
        entry: dict[str, Any] = {"tag": tag, "output": "c", "rows": [[first, count, 1]]}
        if "a" in program.operands:
            command["data"] = {"operand": "a", "rows": entry["rows"], "columns": [[0, length, 1]]}
        if number == MaskKind.NORMS:
            entry["rows"] = [[0, length, 1]]
        if "stats" in program.outputs:
            entry["stats"] = "stats"
        program.commands.append(command)
        program.masks.append(entry)
    program.commands.append({"op": "SYNC"})
    return program


def _kind(kind: MaskKind | str) -> MaskKind:
    names = {k.name.lower(): k for k in MaskKind}
    if isinstance(kind, str) and kind in names:
        return names[kind]
    if not isinstance(kind, (str, bool)) and kind in names.values():
        return MaskKind(kind)
    raise MaskworkValueError(f"kind must be one of {', '.join(names)}, not {kind!r}")


def _declare(program: Program, kind: MaskKind, rows: int, length: int, values: bool) -> None:
    if mask_has_payload(kind, values):
        program.operands["a"] = {"shape": [rows, length], "dtype": "int", "role": "a"}
    if kind == MaskKind.NORMS:
        program.outputs["c"] = {"shape": [length, 2], "dtype": "int64"}
    elif kind == MaskKind.PROJECT:
        program.outputs["c"] = {"shape": [rows, program.config.project_sums], "dtype": "int32"}
    else:
        program.outputs["c"] = {"shape": [rows, length], "dtype": "int32"}
        program.outputs["stats"] = {"shape": [3], "dtype": "int64"}
