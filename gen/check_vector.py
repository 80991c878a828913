"""Rules of VECTOR: its fields, its data and where its outputs go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from maskwork.gen import pack
from maskwork.gen.config import POST_MAX_SHIFT
from maskwork.gen.errors import ProgramError
from maskwork.gen.isa import COMMANDS, MAX_WINDOW, Op, VectorKind

if TYPE_CHECKING:
    from maskwork.gen.program import Program


def vector_fields(f: Mapping[str, int]) -> str | None:
    """What is wrong with a VECTOR's fields, or None."""
    for field in COMMANDS[Op.VECTOR].fields:
        low, high = field.limits
        if not low <= f[field.name] <= high:
            return f"{field.name} must be from {low} to {high}, not {f[field.name]}"
    if not 1 <= f["window"] <= MAX_WINDOW:
        return f"window must be from 1 to {MAX_WINDOW}, not {f['window']}"
    if f["count"] < 1:
        return f"count must be 1 or more, not {f['count']}"
    if f["kind"] not in VectorKind.__members__.values():
        return f"kind must be one of {', '.join(f'{k.value} ({k.name})' for k in VectorKind)}, not {f['kind']}"
    if f["shift"] > POST_MAX_SHIFT:
        return f"shift must be at most {POST_MAX_SHIFT}, not {f['shift']}"
    return None


def payload(program: Program, fields: Mapping[str, int], data: Any, rows: str, columns: str) -> str | None:
    """What is wrong with the operand reference of a stream unit's command, or None; ``rows`` and ``columns`` name the
    fields that say how many of each there are.
    """
    if not isinstance(data, dict):
        return "data must name an operand with its rows and columns"
    operand = program.operands.get(data.get("operand", ""))
    if operand is None or operand.get("role") != "a":
        return f"data.operand must name an operand of role 'a', not {data.get('operand')!r}"
    shape = operand["shape"]
    sizes = {"rows": (int(np.prod(shape[:-1], dtype=np.int64)), rows), "columns": (int(shape[-1]), columns)}
    for key, (size, name) in sizes.items():
        if not pack.inside(data.get(key), size) or pack.count_ranges(data[key]) != fields[name]:
            return f"data.{key} must be {fields[name]} {key} of operand {data['operand']!r}, which has {size}"
    return None


def vector_data(program: Program, fields: Mapping[str, int], data: Any) -> str | None:
    """What is wrong with a VECTOR's operand reference, or None."""
    return payload(program, fields, data, "count", "window")


def check_vectors(program: Program, commands: list[Mapping[str, int]]) -> None:
    """Check that ``program.vectors`` belong to the VECTOR commands, in order.

    Raises:
        ProgramError: naming the entry and the rule.
    """
    if len(commands) != len(program.vectors):
        raise ProgramError(f"vectors: {len(commands)} entries are expected, one for each VECTOR, not "
                           f"{len(program.vectors)}")  # fmt: skip
    for number, (command, entry) in enumerate(zip(commands, program.vectors, strict=True)):
        where = f"vectors entry {number}"
        if entry.get("tag") != command.get("tag", 0):
            raise ProgramError(f"{where}: tag must be that of its VECTOR, {command.get('tag', 0)}")
        output = program.outputs.get(entry.get("output", ""))
        if output is None:
            raise ProgramError(f"{where}: unknown output {entry.get('output')!r}; "
                               f"outputs: {', '.join(program.outputs)}")  # fmt: skip
        size = int(np.prod(output["shape"], dtype=np.int64))
        elements: Any = entry.get("elements")
        if not pack.inside(elements, size) or pack.count_ranges(elements) != command["count"]:
            raise ProgramError(f"{where}: elements must be {command['count']} elements of an output with {size}")
