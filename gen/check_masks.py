"""Rules of MASK: its fields, the masks that are stored, its data and where its outputs go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from maskwork.gen import pack
from maskwork.gen.check_vector import payload
from maskwork.gen.config import Config
from maskwork.gen.errors import ProgramError
from maskwork.gen.isa import (
    COMMANDS,
    KIND_BLOCKS,
    MAX_PROJECT,
    RANDOM_BITS,
    SEEDED,
    Fault,
    MaskKind,
    Op,
    mask_has_payload,
)

if TYPE_CHECKING:
    from maskwork.gen.program import Program

MAKERS = frozenset({MaskKind.GREATER, MaskKind.MAGNITUDE, MaskKind.PRUNE, MaskKind.DROPOUT})
"""Kinds whose mask can be stored."""


def level_limits(config: Config, kind: MaskKind) -> tuple[int, int] | None:
    """Smallest and largest level of a kind; None where it has none."""
    largest = (1 << (config.a_width - 1)) - 1
    return {
        MaskKind.GREATER: (-largest - 1, largest),
        MaskKind.MAGNITUDE: (1, largest),
        MaskKind.PRUNE: (1, largest),
        MaskKind.DROPOUT: (1, (1 << RANDOM_BITS) - 1),
    }.get(kind)


def longest_row(config: Config, kind: MaskKind) -> int:
    """Most values of a row."""
    most = COMMANDS[Op.MASK].field("length").limits[1]
    return {MaskKind.NORMS: config.norm_channels, MaskKind.PROJECT: MAX_PROJECT}.get(kind, most)


def mask_fields(config: Config, f: Mapping[str, int]) -> str | None:
    """What is wrong with a MASK's fields, or None."""
    for field in COMMANDS[Op.MASK].fields:
        low, high = field.limits
        if not low <= f[field.name] <= high:
            return f"{field.name} must be from {low} to {high}, not {f[field.name]}"
    if f["kind"] not in MaskKind.__members__.values():
        return f"kind must be one of {', '.join(f'{k.value} ({k.name})' for k in MaskKind)}, not {f['kind']}"
    kind = MaskKind(f["kind"])
    limits, longest = level_limits(config, kind), longest_row(config, kind)
    if KIND_BLOCKS[kind] not in config.blocks:
        return f"{kind.name} needs a configuration with {KIND_BLOCKS[kind]} among its generators"
    if not 1 <= f["length"] <= longest:
        return f"length must be from 1 to {longest} for {kind.name}, not {f['length']}"
    if f["rows"] < 1:
        return f"rows must be 1 or more, not {f['rows']}"
    if limits and not limits[0] <= f["level"] <= limits[1]:
        return f"level must be from {limits[0]} to {limits[1]} for {kind.name}, not {f['level']}"
    if kind in SEEDED and not f["seed"]:
        return f"seed must be from 1 to 2**32 - 1 for {kind.name}, not 0"
    if f["slot"] >= config.mask_slots:
        return f"slot must be below mask_slots = {config.mask_slots}, not {f['slot']}"
    if f["store"] and ("store" not in config.blocks or kind not in MAKERS):
        lacks = "store among the configuration's generators" if kind in MAKERS else "a kind that makes masks"
        return f"store must be 0 without {lacks}, not 1"
    if kind in (MaskKind.NORMS, MaskKind.PROJECT) and not f["values"]:
        return f"values must be 1 for {kind.name}, not 0"
    return None


class Slots:
    """Follows which masks are stored, as far as a stream tells: earlier programs may have stored others."""

    def __init__(self, config: Config) -> None:
        self._depth = config.mask_depth
        self._known: dict[int, tuple[int, int] | None] = {}
        self._all = range(config.mask_slots)

    def clear(self) -> None:
        """ABORT: all are empty."""
        self._known = dict.fromkeys(self._all)

    def step(self, f: Mapping[str, int]) -> tuple[Fault, str] | None:
        """What is wrong with a MASK, whose fields are right, or None; follows what it stores."""
        slot, shape = f["slot"], (f["rows"], f["length"])
        if f["kind"] == MaskKind.REPLAY and self._known.get(slot, shape) != shape:
            return Fault.MASK_EMPTY, f"no mask of {shape[0]} rows of {shape[1]} is in slot {slot}"
        if f["store"]:
            words = shape[0] * -(-shape[1] // 32)
            self._known[slot] = shape if words <= self._depth else None
            if words > self._depth:
                return Fault.BUFFER_FULL, f"a mask takes at most mask_depth = {self._depth} words, not {words}"
        return None


def mask_data(program: Program, fields: Mapping[str, int], data: Any) -> str | None:
    """What is wrong with a MASK's operand reference, or None."""
    if not mask_has_payload(fields["kind"], fields["values"]):
        return None if data is None else "data must be left out: DROPOUT and REPLAY with values = 0 have none"
    return payload(program, fields, data, "rows", "length")


def check_masks(program: Program, commands: list[Mapping[str, int]]) -> None:
    """Check that ``program.masks`` belong to the MASK commands, in order.

    Raises:
        ProgramError: naming the entry and the rule.
    """
    if len(commands) != len(program.masks):
        raise ProgramError(f"masks: {len(commands)} entries are expected, one for each MASK, not {len(program.masks)}")
    for number, (command, entry) in enumerate(zip(commands, program.masks, strict=True)):
        where, kind = f"masks entry {number}", MaskKind(command["kind"])
        if entry.get("tag") != command.get("tag", 0):
            raise ProgramError(f"{where}: tag must be that of its MASK, {command.get('tag', 0)}")
        width = {MaskKind.NORMS: 2, MaskKind.PROJECT: program.config.project_sums}.get(kind, command["length"])
        rows = command["length" if kind == MaskKind.NORMS else "rows"]
        names = ("output",) if kind in (MaskKind.NORMS, MaskKind.PROJECT) else ("output", "stats")
        for name in names:
            if entry.get(name, "") not in program.outputs:
                raise ProgramError(f"{where}: unknown {name} {entry.get(name)!r}; "
                                   f"outputs: {', '.join(program.outputs)}")  # fmt: skip
        shape = program.outputs[entry["output"]]["shape"]
        size = int(np.prod(shape[:-1], dtype=np.int64))
        if shape[-1] != width:
            raise ProgramError(f"{where}: the output's rows must have {width} elements, not {shape[-1]}")
        given: Any = entry.get("rows")
        if not pack.inside(given, size) or pack.count_ranges(given) != rows:
            raise ProgramError(f"{where}: rows must be {rows} rows of an output with {size}")
        if "stats" in names and program.outputs[entry["stats"]]["shape"] != [3]:
            raise ProgramError(f"{where}: stats must name an output of shape [3]")
