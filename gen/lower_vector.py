"""Lowering of pooling and residual addition, gathered to windows, to a program of VECTOR commands."""

from __future__ import annotations

from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError, ProgramError
from maskwork.gen.isa import COMMANDS, ISA_VERSION, MAX_WINDOW, Op, VectorKind
from maskwork.gen.program import Program

MAX_COUNT = COMMANDS[Op.VECTOR].field("count").limits[1]
"""Most outputs of one VECTOR."""


def lower_vector(
    config: Config,
    count: int,
    window: int,
    kind: int | str,
    mult0: int,
    mult1: int,
    shift: int,
    low: int,
    high: int,
) -> Program:
    """A program that makes one output of every window:

        output[j] = clamp(round_half_even(s / 2**shift), low, high), s the sum (or the maximum) over i of
        a[j, i] * (mult0 if i % 2 == 0 else mult1)

    Operand "a" has shape (count, window), integers of ``a_width`` bits, signed; output "c" has shape (count,), int32.
    Max pooling: kind "max", mult0 = mult1 = 1, shift 0. Average pooling: kind "sum", mult0 = mult1. Residual addition:
    kind "sum", window 2.

    Args:
        config: a configuration with ``vector``.
        count: outputs; more than :data:`MAX_COUNT` take several commands.
        window: values of an output, 1 to 16384.
        kind: "sum" or "max", or a :class:`~maskwork.gen.isa.VectorKind`.
        mult0: multiplier of values 0, 2, ... of a window, unsigned 24 bits.
        mult1: multiplier of values 1, 3, ...
        shift: right shift, 0 to 47.
        low: smallest output, signed 16 bits (brought into the range of ``a_width`` bits).
        high: largest output; when it is below ``low``, every output is ``high``.

    Raises:
        MaskworkTypeError, MaskworkValueError: for an argument that VECTOR does not have.
        ProgramError: if the configuration has no vector unit.
    """
    if not config.vector:
        raise ProgramError(f"configuration {config.name!r} has no vector unit (vector = true)")
    names = {k.name.lower(): int(k) for k in VectorKind}
    number = names.get(kind, -1) if isinstance(kind, str) else kind
    if number not in names.values():
        raise MaskworkValueError(f"kind must be one of {', '.join(names)}, not {kind!r}")
    fields = {"window": window, "kind": int(number), "mult0": mult0, "mult1": mult1, "shift": shift, "low": low,
              "high": high}  # fmt: skip
    for name, value in {"count": count, **fields}.items():
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise MaskworkTypeError(f"{name} must be an integer, not {value!r}")
        smallest, largest = COMMANDS[Op.VECTOR].field(name).limits
        if name in ("count", "window"):
            smallest, largest = 1, MAX_WINDOW if name == "window" else 1 << 40
        if name == "shift":
            largest = 47
        if not smallest <= value <= largest:
            raise MaskworkValueError(f"{name} must be from {smallest} to {largest}, not {value}")
    fields = {name: int(value) for name, value in fields.items()}
    program = Program(config)
    program.operands["a"] = {"shape": [int(count), int(window)], "dtype": "int", "role": "a"}
    program.outputs["c"] = {"shape": [int(count)], "dtype": "int32"}
    program.commands.append({"op": "BEGIN", "version": ISA_VERSION, "config": config.hash})
    for packet, first in enumerate(range(0, int(count), MAX_COUNT)):
        outputs = min(MAX_COUNT, int(count) - first)
        rows = [[first, outputs, 1]]
        data = {"operand": "a", "rows": rows, "columns": [[0, int(window), 1]]}
        tag = packet % 256
        program.commands.append({"op": "VECTOR", "tag": tag, "count": outputs, **fields, "data": data})
        program.vectors.append({"tag": tag, "output": "c", "elements": rows})
    program.commands.append({"op": "SYNC"})
    return program
