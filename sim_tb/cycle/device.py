"""Target ``cycle``: outputs of the golden model, cycles and counters of the cycle model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.errors import DeviceError, MaskworkValueError
from maskwork.gen.isa import COUNTERS, REPLIES, Fault, Op, Reply
from maskwork.gen.program import Program, bind
from maskwork.gen.results import fault_message
from maskwork.sim_tb.cycle.engine import result_bitmaps, simulate
from maskwork.sim_tb.device import GoldenDevice
from maskwork.sim_tb.run import RunResult, beats_of
from numpy.typing import ArrayLike, NDArray

_OUTSIDE = frozenset({Op.IDENTIFY, Op.ECHO, Op.SYNC, Op.READ_COUNTERS})
"""Commands that need no program around them."""

_WHOLE = "target cycle needs whole programs, BEGIN to SYNC, in one execution"


class CycleDevice:
    """The golden model's replies, with the counters that the hardware would answer.

    A program must come whole, BEGIN to SYNC, in one :meth:`execute`; what needs no program (IDENTIFY, ECHO, SYNC,
    READ_COUNTERS) may also come before it, behind it or alone. READ_COUNTERS answers the counters of the program before
    it, as they stood at its first SYNC; it must not come before that. ABORT is not modelled. Both streams are always
    ready.

    Args:
        config: the accelerator's configuration.

    Members:
        counters: the last program's counters by name, words in beats, as the hardware has them; None before the first.

    Raises:
        MaskworkError: if there is no C++ compiler.
    """

    def __init__(self, config: Config):
        self.config = config
        self.last_run: RunResult | None = None
        self.counters: dict[str, int] | None = None
        self._golden = GoldenDevice(config)

    def execute(self, words: ArrayLike, last: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`maskwork.sim_tb.device.Device.execute`; results come in the golden model's order.

        Cycles are in ``last_run`` afterwards (``in_waits`` and ``out_waits`` are not known, and 0).

        Raises:
            MaskworkValueError: for a stream that the model does not have, or broken framing.
            BankOverflow: if activations do not fit their bank.
            DeviceError: for another command that the accelerator would answer with an error.
        """
        data, ends = beats_of(words, last, self.config.stream_words)
        if not len(ends):
            self.last_run = RunResult(np.zeros(0, np.uint32), np.zeros(0, np.bool_), 0, 0, 0, 0, 0)
            return self.last_run.words, self.last_run.last
        parts = self._parts(data, ends)
        self.last_run = None
        replies = [self._part(data[part].reshape(-1), ends[part] != 0, part.start > 0) for part in parts]
        flat = np.concatenate([each[0] for each in replies])
        flat_last = np.concatenate([each[1] for each in replies])
        cycles = replies[0][2]
        if len(parts) > 1:
            bitmaps = result_bitmaps(self.config, flat, flat_last)
            cycles = simulate(self.config, data.reshape(-1), ends, bitmaps)["total_cycles"]
        self.last_run = RunResult(flat, flat_last, cycles, len(ends), len(flat_last), 0, 0)
        return flat, flat_last

    def _parts(self, data: NDArray[np.uint32], ends: NDArray[np.uint8]) -> list[slice]:
        """Beats of each program, and of what comes before the first."""
        if not ends[-1]:
            raise MaskworkValueError("the last beat must end a packet")
        starts = np.flatnonzero(np.concatenate([[True], ends[:-1] != 0]))
        opcodes = (data[starts, 0] & 0xFF).tolist()
        inside, synced, before = False, True, None
        for op in opcodes:
            if op == Op.ABORT:
                raise MaskworkValueError("target cycle cannot model ABORT")
            if not inside and op in Op.__members__.values() and op not in _OUTSIDE and op != Op.BEGIN:
                raise MaskworkValueError(f"{_WHOLE}; {Op(op).name} comes before BEGIN")
            if op == Op.BEGIN and not synced:
                break
            if op == Op.BEGIN and before == Op.SYNC:
                # the SYNCED that is still leaving counts among the next program's words_out
                raise MaskworkValueError("target cycle needs a command, such as READ_COUNTERS, between SYNC and BEGIN")
            if op == Op.READ_COUNTERS and not synced and self.config.counters:
                raise MaskworkValueError("target cycle answers READ_COUNTERS after the program's SYNC only")
            inside |= op == Op.BEGIN
            synced = (synced and op != Op.BEGIN) or op == Op.SYNC
            before = op
        if not synced:
            raise MaskworkValueError(f"{_WHOLE}; SYNC is missing")
        edges = starts[np.array(opcodes) == Op.BEGIN].tolist()
        edges = [*([0] if not edges or edges[0] else []), *edges, len(ends)]
        return [slice(low, high) for low, high in itertools.pairwise(edges)]

    def _part(
        self, words: NDArray[np.uint32], last: NDArray[np.bool_], behind: bool
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Replies and cycles of one program, or of what comes before the first; ``behind``: another part."""
        begins = int(words[0]) & 0xFF == Op.BEGIN
        if begins:
            self.counters = None
        replies, reply_last = self._golden.execute(words, last)
        starts = np.flatnonzero(np.concatenate([[True], reply_last[:-1]])) * self.config.stream_words
        kinds = replies[starts] & 0xFF if len(replies) else starts
        for word in replies[starts[kinds == Reply.ERROR]].tolist():
            fault = REPLIES[Reply.ERROR].decode([word])
            if fault["fault"] == Fault.BUFFER_FULL and fault["opcode"] == Op.LOAD_A:
                simulate(self.config, words, last)  # says which limit
            raise DeviceError(f"target cycle models legal programs only: {fault_message(word)}")
        counters = simulate(self.config, words, last, result_bitmaps(self.config, replies, reply_last))
        if begins:
            self.counters = {name: counters[name] for name in COUNTERS}
            # the last beat of the reply before BEGIN leaves while the program's beats are counted already
            self.counters["words_out"] += behind
        if self.config.counters:
            head = REPLIES[Reply.COUNTERS].beats(self.config.stream_words) * self.config.stream_words
            values = [(self.counters or {}).get(name, 0) for name in COUNTERS]
            answer = [half for value in values for half in (value & 0xFFFFFFFF, value >> 32 & 0xFFFF)]
            for start in starts[kinds == Reply.COUNTERS]:
                replies[start + head : start + head + len(answer)] = answer
        return replies, reply_last, counters["total_cycles"]

    def close(self) -> None:
        """Nothing is held."""


def simulate_program(
    program: Program,
    operands: Mapping[str, Any] | None = None,
    masks: Mapping[str, Any] | None = None,
    dense: bool = False,
) -> dict[str, int]:
    """The hardware's counters for a program, without a device: with operands, or with masks alone.

    Args:
        program: what to run.
        operands: as for :func:`maskwork.gen.program.bind`: then the golden model says which results are 0, and the
            counters are exactly the hardware's. None or empty: masks alone, which stand for operands that are not 0
            wherever the mask is set. Every result that a product was added to then counts as one that is not 0,
            before and after post-processing: counters are those of operands whose sums never cancel.
        masks: name -> bool array or :class:`~maskwork.gen.mask.Mask` of the operand's shape; everything is present
            where there is none.
        dense: zeros are not skipped; given masks are.

    Returns:
        Counters by name (:data:`maskwork.gen.isa.COUNTERS`: PE-cycles by reason, cycles, beats of both streams), and
        ``total_cycles``, from the first beat to the last reply.

    Raises:
        MaskworkTypeError, MaskworkValueError: for operands or masks that do not fit.
        DeviceError: for a program that the accelerator would answer with an error.
        BankOverflow: for operands that are denser than the program was made for.
    """
    config = program.config
    if operands:
        bound = bind(program, operands, masks, dense)
        device = CycleDevice(config)
        device.execute(bound.words, bound.last)
        assert device.counters is not None and device.last_run is not None  # execute() has set both
        return {**device.counters, "total_cycles": device.last_run.cycles}
    ones = {
        name: np.full(spec["shape"], int(spec["role"] not in ("bias", "shift")), dtype=np.int8)
        for name, spec in program.operands.items()
        if spec["role"] != "c_mask"
    }
    bound = bind(program, ones, masks, dense, check_sums=False)
    return simulate(config, bound.words, bound.last)
