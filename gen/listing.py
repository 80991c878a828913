"""Readable listings of programs and of bound streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from maskwork.gen import pack
from maskwork.gen.config import Config
from maskwork.gen.isa import COMMANDS, ISA_VERSION, Op
from maskwork.gen.program import Program
from numpy.typing import NDArray


def _text_ranges(ranges: pack.Ranges) -> str:
    parts = []
    for start, count, step in ranges[:3]:
        end = start + step * (count - 1)
        parts.append(str(start) if count == 1 else f"{start}..{end}" + (f"/{step}" if step != 1 else ""))
    return ",".join(parts) + (f",+{len(ranges) - 3} more" if len(ranges) > 3 else "")


def _line(op: Op, fields: Mapping[str, int], data: Mapping[str, Any] | None = None) -> str:
    parts = []
    for f in COMMANDS[op].fields:
        value = fields.get(f.name, 0)
        if value == 0 and f.name not in ("bank", "a_bank", "b_bank", "tag", "k", "kind"):
            continue
        text = f"{value:#x}" if f.name in ("clusters", "lanes", "config", "token", "seed") else str(value)
        parts.append(f"{f.name}={text}")
    if data:
        if "operand" in data:
            parts.append(f"<- {data['operand']}[{_text_ranges(data['rows'])}; {_text_ranges(data['columns'])}]")
        else:
            parts.append(f"<- {data['bias']}, {data['mult']}, {data['shift']}[{_text_ranges(data['columns'])}]")
    return f"{op.name:<13} {' '.join(parts)}".rstrip()


def disassemble(program: Program) -> str:
    """A readable listing of a program: fields that are 0 are left out (banks, tags, kinds and k excepted)."""
    name, number = program.config.name, program.config.hash
    lines = [f"; maskwork program, instruction set {ISA_VERSION}, configuration {name} ({number:#010x})"]
    for name, spec in program.operands.items():
        lines.append(f"; operand {name}: {spec['role']} {tuple(spec['shape'])}")
    for name, spec in program.outputs.items():
        lines.append(f"; output {name}: {spec['dtype']} {tuple(spec['shape'])}")
    for number, command in enumerate(program.commands):
        lines.append(f"{number:5d}  {_line(Op[command['op']], command, command.get('data'))}")
    return "\n".join(lines) + "\n"


def disassemble_words(config: Config, words: NDArray[np.uint32], last: NDArray[np.bool_]) -> str:
    """A readable listing of a bound stream, a packet a line, with the number of its data words.

    Raises:
        ProgramError: if the stream is not whole packets, or a packet cannot be decoded.
    """
    lines = []
    for number, packet in enumerate(pack.split_packets(words, last, config.stream_words)):
        op, fields, payload = pack.decode_packet(config, packet)
        data = f" ; {len(payload)} words" if len(payload) else ""
        lines.append(f"{number:5d}  {_line(op, fields)}{data}")
    return "\n".join(lines) + "\n"
