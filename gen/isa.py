"""The instruction set: every packet of both streams, in one place.

Encoder, decoder, the hardware's field offsets and the table in docs/isa.md are all made from the tables below. Words
have 32 bits; a field never crosses a word. A packet begins with its header words, padded to whole beats of
``stream_words`` words; a payload follows on a beat boundary. ``last`` marks a packet's final beat.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ISA_VERSION = 4
"""Version of the instruction set; BEGIN refuses a program made for another."""


class Op(enum.IntEnum):
    """Command opcodes, bits 7:0 of a packet's first word."""

    BEGIN = 0x01
    IDENTIFY = 0x02
    ECHO = 0x03
    SYNC = 0x04
    ABORT = 0x05
    READ_COUNTERS = 0x06
    LOAD_A = 0x10
    LOAD_B = 0x11
    LOAD_C = 0x12
    LOAD_P = 0x13
    RUN = 0x20
    VECTOR = 0x30
    MASK = 0x31


class Reply(enum.IntEnum):
    """Kinds of reply packets, bits 7:0 of their first word."""

    IDENTITY = 0x82
    ECHOED = 0x83
    SYNCED = 0x84
    ABORTED = 0x85
    COUNTERS = 0x86
    RESULT = 0x90
    VECTOR = 0x91
    MASK = 0x92
    ERROR = 0xEE


class VectorKind(enum.IntEnum):
    """What VECTOR makes of the products of a window."""

    SUM = 0
    MAX = 1


MAX_WINDOW = 1 << 14
"""Most values of a window of VECTOR."""


class MaskKind(enum.IntEnum):
    """What MASK does with its values."""

    GREATER = 0
    MAGNITUDE = 1
    PRUNE = 2
    DROPOUT = 3
    REPLAY = 4
    NORMS = 5
    PROJECT = 6


KIND_BLOCKS: dict[MaskKind, str] = {
    MaskKind.GREATER: "threshold",
    MaskKind.MAGNITUDE: "threshold",
    MaskKind.PRUNE: "prune",
    MaskKind.DROPOUT: "dropout",
    MaskKind.REPLAY: "store",
    MaskKind.NORMS: "norms",
    MaskKind.PROJECT: "project",
}
"""The block of the mask unit (:data:`maskwork.gen.config.GENERATORS`) that each kind of MASK needs."""

SEEDED = frozenset({MaskKind.PRUNE, MaskKind.DROPOUT, MaskKind.PROJECT})
"""Kinds of MASK that draw random numbers: their seed must not be 0."""

MAX_PROJECT = 1 << 14
"""Longest row of a MASK of kind PROJECT."""

RANDOM_BITS = 16
"""Bits of the random number that PRUNE and DROPOUT draw for a value."""


class Fault(enum.IntEnum):
    """Codes of ERROR replies."""

    UNKNOWN_OPCODE = 1
    SHORT_PACKET = 2
    LONG_PACKET = 3
    BAD_FIELD = 4
    BANK_IN_USE = 5
    BANK_EMPTY = 6
    NOT_BEGUN = 7
    WRONG_CONFIG = 8
    WRONG_VERSION = 9
    BUFFER_FULL = 10
    MASK_EMPTY = 11


FAULT_DOCS: dict[Fault, str] = {
    Fault.UNKNOWN_OPCODE: "no such command, or VECTOR or MASK without its unit; the packet was dropped to its end",
    Fault.SHORT_PACKET: "the packet ended before its header or its data were complete; a bank it was loading is empty",
    Fault.LONG_PACKET: "the packet went on after its data were complete; it was dropped, and a bank it was loading is "
    "empty",
    Fault.BAD_FIELD: "a field lies outside what the configuration has (buffers, lanes, clusters, columns)",
    Fault.BANK_IN_USE: "the bank holds data that no RUN has used yet",
    Fault.BANK_EMPTY: "RUN names a bank that was not loaded, or a load appends to one that is not fresh",
    Fault.NOT_BEGUN: "no program was begun (BEGIN), or the last BEGIN was refused",
    Fault.WRONG_CONFIG: "the program was made for another configuration (hash)",
    Fault.WRONG_VERSION: "the program was made for another version of the instruction set",
    Fault.BUFFER_FULL: "the data do not fit the bank (words or segments of A, rows of C masks), or the mask its slot; "
    "bank or slot is empty",
    Fault.MASK_EMPTY: "no mask of the length and rows that a REPLAY names is in its slot",
}

COUNTERS = (
    "multiply",
    "lookup",
    "fetch",
    "imbalance",
    "drain",
    "load",
    "dispatch",
    "idle",
    "cycles",
    "words_in",
    "words_out",
    "compute_cycles",
)
"""Counters of a COUNTERS reply, two words each (low 32 bits, then high 16): first the PE-cycles by reason, in the
order in which reasons are charged, then the others. words_in and words_out count beats."""


@dataclass(frozen=True)
class Field:
    """One field of a header word: ``width`` bits from bit ``lsb`` of word ``word``."""

    name: str
    word: int
    lsb: int
    width: int
    signed: bool = False
    doc: str = ""

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest value."""
        if self.signed:
            return -(1 << (self.width - 1)), (1 << (self.width - 1)) - 1
        return 0, (1 << self.width) - 1


@dataclass(frozen=True)
class Packet:
    """A packet's header: its length in words before padding to a beat, fields, and what follows."""

    code: int
    name: str
    words: int
    fields: tuple[Field, ...]
    payload: str = ""
    doc: str = ""

    def field(self, name: str) -> Field:
        """The field of that name."""
        for f in self.fields:
            if f.name == name:
                return f
        raise KeyError(f"{self.name} has no field {name}")

    def encode(self, values: Mapping[str, int]) -> list[int]:
        """Header words, not padded.

        Raises:
            ValueError: for an unknown field or a value out of the field's range.
        """
        words = [0] * self.words
        words[0] = self.code
        known = {f.name: f for f in self.fields}
        for name, value in values.items():
            if name not in known:
                raise ValueError(f"{self.name} has no field {name!r}; fields: {', '.join(known)}")
            f = known[name]
            low, high = f.limits
            if not low <= value <= high:
                raise ValueError(f"{self.name}.{name} must be from {low} to {high}, not {value}")
            words[f.word] |= (value & ((1 << f.width) - 1)) << f.lsb
        return words

    def decode(self, words: list[int]) -> dict[str, int]:
        """Field values of a header.

        Raises:
            ValueError: if there are fewer words than the header has.
        """
        if len(words) < self.words:
            raise ValueError(f"{self.name} has a header of {self.words} words, not {len(words)}")
        result = {}
        for f in self.fields:
            value = (words[f.word] >> f.lsb) & ((1 << f.width) - 1)
            if f.signed and value >> (f.width - 1):
                value -= 1 << f.width
            result[f.name] = value
        return result

    def beats(self, stream_words: int) -> int:
        """Beats of the header on streams of that width."""
        return -(-self.words // stream_words)


def _pair(word: int, low: str, high: str, docs: tuple[str, str], signed: bool = False) -> tuple[Field, Field]:
    return Field(low, word, 0, 16, signed, docs[0]), Field(high, word, 16, 16, signed, docs[1])


_BANK = Field("bank", 0, 8, 1, doc="bank to load")
_APPEND = Field("append", 0, 9, 1, doc="1: add to a bank that was loaded and not yet run; 0: begin the bank anew")
_DENSE = Field("dense", 0, 10, 1, doc="1: no bitmaps travel, every element is present")
_CLUSTERS = Field("clusters", 1, 0, 32, doc="clusters that take the data, a bit each")

LEVELS = ("m2", "m1", "m0", "t1", "t0")
"""Loop levels of RUN: three over rows of C (m2 outermost), two over the taps of a row (t1 outside t0)."""

_LEVEL_DOC = {
    "m2": "added to the row state when m1 and m0 wrap",
    "m1": "added to the row state when m0 wraps",
    "m0": "added to the row state from one row to the next",
    "t1": "added to the tap state when t0 wraps",
    "t0": "added to the tap state from one tap to the next",
}


def _run_fields() -> tuple[Field, ...]:
    fields = [
        Field("a_bank", 0, 8, 1, doc="activation bank"),
        Field("b_bank", 0, 9, 1, doc="weight bank, and the bank of post-processing parameters"),
        Field("c_bank", 0, 10, 1, doc="C-mask bank"),
        Field("use_c", 0, 11, 1, doc="1: rows have C masks; 0: every one of `columns` is wanted"),
        Field("share", 0, 12, 1, doc="0: a row goes to one lane; 1: to every lane of the cluster, which hold "
              "different columns"),
        Field("first", 0, 13, 1, doc="first K tile: partial sums start at 0"),
        Field("final", 0, 14, 1, doc="final K tile: results leave; else partial sums stay in the lane"),
        Field("post", 0, 15, 1, doc="1: post-process; 0: raw sums leave"),
        Field("tag", 0, 16, 8, doc="returned in every result packet of this RUN"),
        Field("columns", 0, 24, 8, doc="columns of the N tile, minus one"),
        Field("clusters", 1, 0, 32, doc="clusters that run, a bit each"),
        *_pair(2, "rows", "row_words", ("rows of C", "upper bound of the lane-FIFO words that one row takes")),
        *_pair(3, "m0", "m1", ("count of loop m0, minus one", "count of loop m1, minus one")),
        *_pair(4, "t0", "t1", ("count of tap loop t0, minus one", "count of tap loop t1, minus one")),
        *_pair(5, "x_limit", "y_limit", ("a tap exists where 0 <= x < x_limit", "and 0 <= y < y_limit")),
        *_pair(6, "seg", "k", ("row state at the first row: segment", "row state: k of the segment's element 0"),
               True),
        *_pair(7, "x", "y", ("row state: x", "row state: y"), True),
    ]  # fmt: skip
    for index, level in enumerate(LEVELS):
        for word, names in ((8 + 2 * index, ("seg", "k")), (9 + 2 * index, ("x", "y"))):
            docs = tuple(f"{n}: {_LEVEL_DOC[level]}" for n in names)
            fields += _pair(word, f"{level}_{names[0]}", f"{level}_{names[1]}", (docs[0], docs[1]), True)
    docs = ("row number of the first row, in result packets", "its row in the C-mask bank")
    fields += _pair(18, "row", "c_row", docs)
    return tuple(fields)


COMMANDS: dict[Op, Packet] = {
    Op.BEGIN: Packet(Op.BEGIN, "BEGIN", 3, (
        Field("version", 1, 0, 16, doc="instruction-set version the program was made for"),
        Field("config", 2, 0, 32, doc="configuration hash the program was made for"),
    ), doc="waits until the array is idle, empties every bank, clears and starts the counters; a refused BEGIN "
           "leaves only IDENTIFY, ECHO, SYNC, ABORT, READ_COUNTERS and BEGIN available"),
    Op.IDENTIFY: Packet(Op.IDENTIFY, "IDENTIFY", 1, (), doc="answers IDENTITY"),
    Op.ECHO: Packet(Op.ECHO, "ECHO", 2, (Field("token", 1, 0, 32, doc="any word"),), doc="answers ECHOED at once"),
    Op.SYNC: Packet(Op.SYNC, "SYNC", 1, (Field("tag", 0, 8, 24, doc="any number"),),
                    doc="waits for every RUN before it, then answers SYNCED and stops the counters"),
    Op.ABORT: Packet(Op.ABORT, "ABORT", 1, (), doc="drops every row not yet dispatched, lets rows in flight finish "
                     "(their results leave), empties every bank and answers ABORTED"),
    Op.READ_COUNTERS: Packet(Op.READ_COUNTERS, "READ_COUNTERS", 1, (),
                             doc="answers COUNTERS, with zeros where the configuration has no `counters`"),
    Op.LOAD_A: Packet(Op.LOAD_A, "LOAD_A", 3, (
        _BANK, _APPEND, _DENSE, _CLUSTERS,
        *_pair(2, "segments", "length", ("segments in the packet", "elements (values of k) in each segment")),
    ), payload="for each segment: a bitmap of `length` bits padded to a beat (left out when dense), then its packed "
               "values of a_width bits, padded to a beat",
       doc="loads streamed operands; scatter: one cluster, broadcast: several"),
    Op.LOAD_B: Packet(Op.LOAD_B, "LOAD_B", 4, (
        _BANK, _APPEND, _DENSE, _CLUSTERS,
        *_pair(2, "rows", "k", ("rows of B in the packet", "k of the first")),
        *_pair(3, "lanes", "columns", ("lanes of each cluster that take the data, a bit each", "columns of each row")),
    ), payload="for each row: a bitmap of `columns` bits padded to a beat (left out when dense), then its packed "
               "values of b_width bits, padded to a beat",
       doc="loads resident operands; broadcast: all lanes, scatter: some"),
    Op.LOAD_C: Packet(Op.LOAD_C, "LOAD_C", 3, (
        _BANK, _APPEND, _CLUSTERS,
        *_pair(2, "rows", "columns", ("rows of C masks in the packet", "columns of each row")),
    ), payload="for each row: a bitmap of `columns` bits padded to a beat",
       doc="loads C masks, appended from row 0 of the bank"),
    Op.LOAD_P: Packet(Op.LOAD_P, "LOAD_P", 5, (
        _BANK,
        Field("stochastic", 0, 9, 1, doc="1: results are rounded at random; 0: to the nearest, half to even"),
        _CLUSTERS,
        *_pair(2, "lanes", "columns", ("lanes of each cluster whose parameters these are, a bit each", "columns")),
        *_pair(3, "low", "high", ("clamp: smallest result", "clamp: largest result"), True),
        Field("seed", 4, 0, 32, doc="of the random numbers, not 0; without `stochastic` ignored, and sent as 0"),
    ), payload="for each column two words: bias (signed 32 bits), then mult (bits 23:0) and shift (bits 29:24); the "
               "whole padded to a beat",
       doc="loads post-processing parameters, kept with the weight bank"),
    Op.RUN: Packet(Op.RUN, "RUN", 19, _run_fields(),
                   doc="computes rows of C from the banks named; later packets are taken meanwhile"),
    Op.VECTOR: Packet(Op.VECTOR, "VECTOR", 5, (
        Field("tag", 0, 8, 8, doc="returned in the reply"),
        Field("shift", 0, 16, 6, doc="right shift, 0 to 47"),
        Field("kind", 0, 24, 4, doc="0: sum, 1: maximum"),
        *_pair(1, "window", "count", (f"values of an output, 1 to {MAX_WINDOW}", "outputs, 1 or more")),
        Field("mult0", 2, 0, 24, doc="multiplier of values 0, 2, 4, ... of a window"),
        Field("mult1", 3, 0, 24, doc="multiplier of values 1, 3, 5, ..."),
        *_pair(4, "low", "high", ("clamp: smallest result", "clamp: largest result"), True),
    ), payload="`count` x `window` packed values of a_width bits, the windows one after the other without gaps; the "
               "whole padded to a beat",
       doc="pools or adds, where the configuration has the `vector` unit; answers one VECTOR reply while the data "
           "come, and the next command waits until that has left; RUNs go on meanwhile"),
    Op.MASK: Packet(Op.MASK, "MASK", 4, (
        Field("tag", 0, 8, 8, doc="returned in the reply"),
        Field("kind", 0, 16, 3, doc=", ".join(f"{int(k)}: {k.name}" for k in MaskKind)),
        Field("values", 0, 19, 1, doc="1: the reply has values, 0: bitmaps; 1 for NORMS and PROJECT"),
        Field("store", 0, 20, 1, doc="1: the mask is stored in the slot (kinds 0 to 3)"),
        Field("slot", 0, 24, 4, doc="slot to store in, or that REPLAY reads; always below `mask_slots`"),
        *_pair(1, "length", "rows", (f"values of a row: at most `norm_channels` (NORMS), {MAX_PROJECT} (PROJECT)",
                                     "rows; both 1 or more")),
        Field("level", 2, 0, 18, True, doc="GREATER: any value of a_width bits; MAGNITUDE, PRUNE: 1 to "
              "2**(a_width - 1) - 1; DROPOUT: 1 to 65535"),
        Field("seed", 3, 0, 32, doc="first state of the random sequence: not 0 for PRUNE, DROPOUT and PROJECT"),
    ), payload="`rows` x `length` packed values of a_width bits, the rows one after the other without gaps; the whole "
               "padded to a beat. DROPOUT and REPLAY with `values` = 0 have none",
       doc="makes a mask, stores it or replays one, or makes norms or random projections, where the configuration has "
           "the mask unit and the block of that kind (`generators`); answers one MASK reply while the data come, and "
           "the next command waits until that has left; RUNs go on meanwhile. Masks stay stored until ABORT"),
}  # fmt: skip


def commands_of(config: Any) -> dict[Op, Packet]:
    """The commands that the hardware of a configuration has (a Config): VECTOR and MASK need their units."""
    absent = {*(() if config.vector else (Op.VECTOR,)), *(() if config.blocks else (Op.MASK,))}
    return {op: packet for op, packet in COMMANDS.items() if op not in absent}


def mask_has_payload(kind: int, values: int) -> bool:
    """Whether a MASK of that kind, and field ``values``, has a payload."""
    return bool(values) or kind not in (MaskKind.DROPOUT, MaskKind.REPLAY)


REPLIES: dict[Reply, Packet] = {
    Reply.IDENTITY: Packet(Reply.IDENTITY, "IDENTITY", 4, (
        Field("version", 0, 16, 16, doc="instruction-set version"),
        Field("config", 1, 0, 32, doc="configuration hash"),
        *_pair(2, "lanes", "pes_per_lane", ("lanes", "PEs per lane")),
        *_pair(3, "slots", "stream_words", ("slots", "words per beat")),
    )),
    Reply.ECHOED: Packet(Reply.ECHOED, "ECHOED", 2, (Field("token", 1, 0, 32, doc="the word sent"),)),
    Reply.SYNCED: Packet(Reply.SYNCED, "SYNCED", 1, (Field("tag", 0, 8, 24, doc="the number sent"),)),
    Reply.ABORTED: Packet(Reply.ABORTED, "ABORTED", 1, ()),
    Reply.COUNTERS: Packet(Reply.COUNTERS, "COUNTERS", 1, (), payload="two words for each counter: low 32 bits, "
                           "high 16 bits; padded to a beat"),
    Reply.RESULT: Packet(Reply.RESULT, "RESULT", 2, (
        Field("tag", 0, 8, 8, doc="tag of the RUN"),
        Field("lane", 0, 16, 8, doc="lane that made the row (its column tile when the row was shared)"),
        Field("post", 0, 24, 1, doc="1: values of a_width bits; 0: raw sums of acc_width bits"),
        *_pair(1, "row", "values", ("row number", "nonzero values in the packet")),
    ), payload="bitmap of the tile's nonzero results (tile_columns bits), right behind the header and padded to a beat "
               "with it; then the packed values (raw sums: one word each, two when acc_width > 32), padded to a beat"),
    Reply.VECTOR: Packet(Reply.VECTOR, "VECTOR", 1, (
        Field("tag", 0, 8, 8, doc="tag of the command"),
        Field("count", 0, 16, 16, doc="outputs that the command asked for"),
    ), payload="packed outputs of a_width bits, zeros included; the whole padded to a beat. After a command whose data "
               "end too early: the outputs whose windows are complete, then one that is 0; an ERROR follows"),
    Reply.MASK: Packet(Reply.MASK, "MASK", 2, (
        Field("tag", 0, 8, 8, doc="tag of the command"),
        Field("values", 0, 16, 1, doc="that of the command"),
        *_pair(1, "length", "rows", ("that of the command", "that of the command")),
    ), payload="what was asked for, then (kinds 0 to 4) the statistics, each padded to a beat: see "
               "[what MASK answers](#what-mask-answers)"),
    Reply.ERROR: Packet(Reply.ERROR, "ERROR", 1, (
        Field("fault", 0, 8, 8, doc="what was wrong"),
        Field("opcode", 0, 16, 8, doc="opcode of the packet at fault"),
    )),
}  # fmt: skip
