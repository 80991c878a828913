"""Builds, loads and calls the compiled cycle model (model.cpp and the headers beside it)."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.errors import BankOverflow, MaskworkValueError
from maskwork.gen.isa import COMMANDS, COUNTERS, REPLIES, Op, Reply, commands_of
from maskwork.sim_tb.cache import Cache, content_key
from maskwork.sim_tb.run import beats_of
from maskwork.sim_tb.tools import find_compiler, run_tool
from numpy.typing import ArrayLike, NDArray

_SOURCES = Path(__file__).parent
# vectorised loops over a lane's few PEs are slower than plain ones
_FLAGS = ("-std=c++20", "-O2", "-fno-tree-vectorize", "-march=native", "-fPIC", "-shared", "-fvisibility=hidden",
          "-fno-math-errno")  # fmt: skip
MAX_CYCLES = 1 << 40
"""Cycles after which a program is given up."""

_CONFIG = (
    "lanes", "lanes_per_cluster", "pes_per_lane", "slots", "rows_in_flight", "queue_depth", "a_width", "b_width",
    "acc_width", "stream_words", "skip_a", "skip_b", "skip_c", "fetch_width", "k_depth", "a_depth", "a_segments",
    "c_rows", "psum_rows", "fifo_depth", "run_depth", "lut_ram", "post", "counters", "psum_in_pe",
    "load_slots", "project_sums", "weight_lanes", "hop_stages", "in_turn",
)  # fmt: skip
_REASONS = ("fetch", "imbalance", "drain", "load", "dispatch", "idle")
_RESULT = ("multiply", "lookup", "cycles", "words_in", "words_out", "compute_cycles", "total_cycles", "beats_in",
           "beats_out", "tokens")  # fmt: skip


class _Field(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("word", "lsb", "width", "signed")]


_RUN_ORDER = (
    "a_bank", "b_bank", "c_bank", "use_c", "share", "first", "final", "post", "tag", "columns", "clusters", "rows",
    "row_words", "m0", "m1", "t0", "t1", "x_limit", "y_limit", "seg", "k", "x", "y",
    *(f"{level}_{name}" for level in ("m2", "m1", "m0", "t1", "t0") for name in ("seg", "k", "x", "y")),
    "row", "c_row",
)  # fmt: skip


class _Config(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in _CONFIG),
        ("run_words", ctypes.c_int32),
        ("header_words", ctypes.c_int32 * 256),
        ("run", _Field * len(_RUN_ORDER)),
    ]


class _Result(ctypes.Structure):
    _fields_ = [("reasons", ctypes.c_int64 * len(_REASONS)), *((name, ctypes.c_int64) for name in _RESULT)]


@lru_cache
def _library(cache: Cache | None = None) -> ctypes.CDLL:
    compiler = find_compiler()
    sources = {path.name: path.read_bytes() for path in sorted(_SOURCES.glob("*.[ch]pp"))}
    # the machine is part of the key: the code is made for its instruction set
    machine = run_tool([compiler, "-march=native", "-Q", "--help=target"], _SOURCES)
    version = run_tool([compiler, "--version"], _SOURCES)
    key = content_key("cycle", compiler, version, machine, *_FLAGS, *sources.values())

    def build(folder: Path) -> None:
        for name, text in sources.items():
            (folder / name).write_bytes(text)
        run_tool([compiler, *_FLAGS, "model.cpp", "-o", "model.so"], folder)

    library = ctypes.CDLL(str((cache or Cache()).entry(key, build) / "model.so"))
    pointer = ctypes.c_void_p
    library.mw_cycle_run.argtypes = [pointer, pointer, pointer, ctypes.c_int64, pointer, ctypes.c_int64, pointer]
    library.mw_cycle_run.restype = ctypes.c_int
    library.mw_cycle_message.restype = ctypes.c_char_p
    return library


@lru_cache
def _c_config(config: Config) -> _Config:
    values = {name: int(getattr(config, name)) for name in _CONFIG if hasattr(config, name)}
    values |= {f"skip_{letter}": int(letter in config.skip) for letter in "abc"}
    values["in_turn"] = int(config.dispatch == "turns")
    result = _Config(**values)
    run = COMMANDS[Op.RUN]
    result.run_words = run.words
    for op, packet in commands_of(config).items():
        result.header_words[op] = packet.words
    for index, name in enumerate(_RUN_ORDER):
        f = run.field(name)
        result.run[index] = _Field(f.word, f.lsb, f.width, f.signed)
    return result


def simulate(
    config: Config,
    words: ArrayLike,
    last: ArrayLike,
    nonzero: NDArray[np.uint32] | None = None,
    max_cycles: int = MAX_CYCLES,
) -> dict[str, int]:
    """Cycles and stall breakdown of a legal program, from its words alone.

    Args:
        config: the accelerator.
        words: uint32 command words, ``(beats * stream_words,)``: BEGIN to SYNC.
        last: bool ``(beats,)``: the beat ends a packet.
        nonzero: uint32 ``(results, mask_words)``: bitmap of every result row, in the order in which the golden model
            answers them. None: every result is not 0 that any product of two factors that are not 0 was added to (the
            case of masks alone; sums that happen to cancel are then counted as sent).
        max_cycles: when to give up.

    Returns:
        The hardware's counters by name (:data:`maskwork.gen.isa.COUNTERS`; words_in and words_out in beats), as they
        stand at the first SYNC, and ``total_cycles``, from the first beat to the last reply of everything.

    Raises:
        MaskworkValueError: for words that are no legal program.
        BankOverflow: if activations do not fit their bank.
        MaskworkError: if there is no C++ compiler.
    """
    data, ends = beats_of(words, last, config.stream_words)
    result = _Result()
    bitmaps = None if nonzero is None else np.ascontiguousarray(nonzero, dtype=np.uint32)
    status = _library().mw_cycle_run(
        ctypes.byref(_c_config(config)), data.ctypes.data, ends.ctypes.data, len(ends),
        None if bitmaps is None else bitmaps.ctypes.data, max_cycles, ctypes.byref(result),
    )  # fmt: skip
    message = _library().mw_cycle_message().decode()
    if status == 2:
        raise BankOverflow(f"the segments of A do not fit an activation bank: at most {message} = "
                           f"{getattr(config, message)} are held")  # fmt: skip
    if status:
        raise MaskworkValueError(message)
    counters = {name: int(getattr(result, name)) for name in _RESULT}
    counters |= {name: int(result.reasons[n]) for n, name in enumerate(_REASONS)}
    return {**{name: counters[name] for name in COUNTERS}, "total_cycles": counters["total_cycles"]}


def result_bitmaps(config: Config, words: NDArray[np.uint32], last: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Bitmaps of the RESULT packets of a reply stream: uint32 ``(results, mask_words)``."""
    beat = config.stream_words
    starts = np.concatenate([[0], (np.flatnonzero(last) + 1)[:-1]]).astype(np.int64) * beat
    starts = starts[(words[starts] & 0xFF) == Reply.RESULT] if len(words) else starts[:0]
    offset = REPLIES[Reply.RESULT].words
    return words[starts[:, None] + offset + np.arange(config.mask_words)]
