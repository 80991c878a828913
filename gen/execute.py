"""Running a bound program on a device: words in, whole arrays and hardware counters out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.errors import DeviceError
from maskwork.gen.isa import COMMANDS, Op, Reply
from maskwork.gen.program import Bound, Program, bind
from maskwork.gen.results import ResultAssembler, parse_counters
from numpy.typing import NDArray

if TYPE_CHECKING:
    from maskwork.sim_tb.device import Device


@dataclass(frozen=True)
class Execution:
    """What one run of a program gave.

    Members:
        outputs: name -> int32 (or int64) array.
        counters: the hardware counters (:data:`maskwork.gen.isa.COUNTERS`); None where there are none.
        words_in: 32-bit words of the command stream, whole beats.
        words_out: the same of the reply stream.
    """

    outputs: dict[str, NDArray[Any]]
    counters: dict[str, int] | None
    words_in: int
    words_out: int


def execute(
    device: Device,
    program: Program,
    operands: Mapping[str, Any],
    masks: Mapping[str, Any] | None = None,
    dense: bool = False,
) -> Execution:
    """Bind operands to a program and run it.

    Args:
        device: an open device of the program's configuration.
        program: what to run.
        operands: as for :func:`maskwork.gen.program.bind`.
        masks: the same.
        dense: the same.

    Raises:
        MaskworkTypeError, MaskworkValueError: for operands or masks that do not fit.
        DeviceError: if the device answers with an error, or not completely.
    """
    return execute_bound(device, program, bind(program, operands, masks, dense))


def execute_bound(device: Device, program: Program, bound: Bound) -> Execution:
    """Run a program whose operands are bound.

    Raises:
        DeviceError: if the device answers with an error, or not completely.
    """
    words, last = device.execute(bound.words, bound.last)
    assembler = ResultAssembler(program)
    assembler.feed(words, last)
    if not assembler.synced:
        raise DeviceError("the accelerator did not answer SYNC")
    outputs = assembler.outputs()
    counted = device.last_run is not None and program.config.counters
    counters = read_counters(device) if counted else None
    if counters is not None:
        beat = program.config.stream_words
        return Execution(outputs, counters, counters["words_in"] * beat, counters["words_out"] * beat)
    return Execution(outputs, None, len(bound.words), len(words))


def command_words(config: Config, op: Op, **fields: int) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """Words and ``last`` flags of a command that has no payload."""
    header = COMMANDS[op].encode(fields)
    words = np.array(header + [0] * (-len(header) % config.stream_words), dtype=np.uint32)
    last = np.zeros(len(words) // config.stream_words, dtype=np.bool_)
    last[-1] = True
    return words, last


def read_counters(device: Device) -> dict[str, int]:
    """The hardware counters, by name; they stand still since the last SYNC.

    Raises:
        DeviceError: if the device does not answer with counters.
    """
    config = device.config
    words, _ = device.execute(*command_words(config, Op.READ_COUNTERS))
    if not len(words) or int(words[0]) & 0xFF != Reply.COUNTERS:
        raise DeviceError("the accelerator did not answer READ_COUNTERS")
    return parse_counters(words, config.stream_words)
