"""Command packets assembled field by field, and replies taken apart: for tests, written without gen/pack.py.

The compiler's packing is tested against this one. Matrices are small here, so plain loops do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.isa import COMMANDS, COUNTERS, ISA_VERSION, REPLIES, Fault, MaskKind, Op, Reply
from maskwork.sim_tb.device import Device, GoldenDevice
from numpy.typing import ArrayLike, NDArray

Packet = list[int]


def padded(words: Sequence[int], beat: int) -> Packet:
    """Words filled up with zeros to whole beats."""
    return list(words) + [0] * (-len(words) % beat)


def bitmap(bits: Sequence[int] | NDArray[Any]) -> Packet:
    """Words of a bitmap, lowest index first."""
    words = [0] * -(-len(bits) // 32)
    for index, bit in enumerate(bits):
        words[index // 32] |= int(bit) << index % 32
    return words


def packed(values: Sequence[int] | NDArray[Any], width: int) -> Packet:
    """Words of signed values of ``width`` bits."""
    per_word = 32 // width
    words = [0] * -(-len(values) // per_word)
    for index, value in enumerate(values):
        words[index // per_word] |= (int(value) & ((1 << width) - 1)) << width * (index % per_word)
    return words


class Packets:
    """Makes the packets of one configuration; fields that are not given get the usual values.

    Args:
        config: the accelerator's configuration.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

    def command(self, op: Op, **fields: int) -> Packet:
        """A packet's header, padded to a beat; fields are 0 by default."""
        return padded(COMMANDS[op].encode(fields), self.config.stream_words)

    def begin_packet(self) -> Packet:
        """BEGIN of a program for this configuration."""
        return self.command(Op.BEGIN, version=ISA_VERSION, config=self.config.hash)

    def _rows(self, matrix: ArrayLike, width: int, dense: bool, present: ArrayLike | None) -> Packet:
        words: Packet = []
        beat = self.config.stream_words
        values = np.atleast_2d(matrix)
        bits = (values != 0) if present is None else np.atleast_2d(present)
        for row, kept in zip(values, np.ones_like(bits) if dense else bits, strict=True):
            words += [] if dense else padded(bitmap(kept), beat)
            words += padded(packed(row[kept.astype(bool)], width), beat)
        return words

    def load_a(self, matrix: Any, dense: bool | None = None, present: Any = None, **fields: int) -> Packet:
        """LOAD_A of a segment for each row of ``matrix``; sparse, zeros (or what ``present`` lacks) are absent."""
        dense = ("a" not in self.config.skip) if dense is None else dense
        values = {"clusters": 1, "segments": len(matrix), "length": np.shape(matrix)[1], "dense": int(dense), **fields}
        return self.command(Op.LOAD_A, **values) + self._rows(matrix, self.config.a_width, dense, present)

    def load_b(self, matrix: Any, dense: bool | None = None, present: Any = None, **fields: int) -> Packet:
        """LOAD_B of the rows of ``matrix``, to all lanes by default."""
        dense = ("b" not in self.config.skip) if dense is None else dense
        values = {"clusters": 1, "rows": len(matrix), "columns": np.shape(matrix)[1], "dense": int(dense)}
        values |= {"lanes": (1 << self.config.lanes_per_cluster) - 1, **fields}
        return self.command(Op.LOAD_B, **values) + self._rows(matrix, self.config.b_width, dense, present)

    def load_c(self, mask: Any, **fields: int) -> Packet:
        """LOAD_C of the rows of a mask."""
        values = {"clusters": 1, "rows": len(mask), "columns": np.shape(mask)[1], **fields}
        data = [word for row in mask for word in padded(bitmap(row), self.config.stream_words)]
        return self.command(Op.LOAD_C, **values) + data

    def load_p(self, bias: Any, mult: Any, shift: Any, low: int, high: int, **fields: int) -> Packet:
        """LOAD_P of parameters by column, to all lanes by default."""
        data: Packet = []
        for b, m, s in zip(bias, mult, shift, strict=True):
            data += [int(b) & 0xFFFFFFFF, int(m) | int(s) << 24]
        values = {"clusters": 1, "columns": len(bias), "low": low, "high": high}
        values |= {"lanes": (1 << self.config.lanes_per_cluster) - 1, **fields}
        return self.command(Op.LOAD_P, **values) + padded(data, self.config.stream_words)

    def run(self, rows: int, columns: int, **fields: int) -> Packet:
        """RUN; by default a product: row r is segment r, one tap, all of K."""
        values = {"rows": rows, "columns": columns - 1, "clusters": 1, "m0": rows - 1, "m0_seg": 1, "x_limit": 1,
                  "y_limit": 1, "first": 1, "final": 1, **fields}  # fmt: skip
        return self.command(Op.RUN, **values)

    def vector(self, windows: Any, **fields: int) -> Packet:
        """VECTOR of the windows, shape (count, window); by default their sums, with multipliers 1."""
        values = np.asarray(windows)
        limits = {"low": -(1 << 15), "high": (1 << 15) - 1}
        header = {"count": len(values), "window": values.shape[1], "mult0": 1, "mult1": 1, **limits, **fields}
        data = packed(values.reshape(-1), self.config.a_width)
        return self.command(Op.VECTOR, **header) + padded(data, self.config.stream_words)

    def mask(self, kind: MaskKind, matrix: Any = None, **fields: int) -> Packet:
        """MASK of the values, shape (rows, length), which the reply shall have too; or without them. The seed is 1."""
        shape = {} if matrix is None else {"rows": len(matrix), "length": np.shape(matrix)[1]}
        header = {"kind": int(kind), "values": int(matrix is not None), "seed": 1, **shape, **fields}
        data = [] if matrix is None else packed(np.asarray(matrix).reshape(-1), self.config.a_width)
        return self.command(Op.MASK, **header) + padded(data, self.config.stream_words)


def joined(config: Config, packets: Sequence[Packet]) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """Words and ``last`` (one a beat) of packets in order."""
    words = np.array([word for packet in packets for word in packet], np.uint32)
    last = np.zeros(len(words) // config.stream_words, np.bool_)
    last[np.cumsum([len(packet) for packet in packets], dtype=np.int64) // config.stream_words - 1] = bool(packets)
    return words, last


def decode(config: Config, words: NDArray[np.uint32]) -> dict[str, Any]:
    """A reply packet: ``reply`` (its kind), its fields, counters by name, and a result's values as ``columns``,
    those of a VECTOR as ``outputs``; of a MASK, whose header does not say what it is of, the words behind the header as
    ``body``.

    Raises:
        AssertionError: if the packet is not exactly what its header announces.
    """
    beat = config.stream_words
    assert words.dtype == np.uint32 and len(words) and len(words) % beat == 0
    data: Packet = words.tolist()
    kind = Reply(data[0] & 0xFF)
    layout = REPLIES[kind]
    reply: dict[str, Any] = {"reply": kind, **layout.decode(data)}
    at = layout.beats(beat) * beat
    if kind == Reply.COUNTERS:
        reply |= {name: data[at + 2 * i] | data[at + 2 * i + 1] << 32 for i, name in enumerate(COUNTERS)}
        at += len(padded([0] * 2 * len(COUNTERS), beat))
    if kind == Reply.RESULT:
        at = layout.words
        kept = [i for i in range(config.tile_columns) if data[at + i // 32] >> i % 32 & 1]
        assert len(kept) == reply["values"]
        at = len(padded([0] * (at + config.mask_words), beat))
        width = config.a_width if reply["post"] else 32 if config.acc_width <= 32 else 64
        per_word = max(1, 32 // width)
        reply["columns"] = np.zeros(config.tile_columns, np.int64)
        for i, column in enumerate(kept):
            if width == 64:
                value = data[at + 2 * i] | data[at + 2 * i + 1] << 32
            else:
                value = data[at + i // per_word] >> width * (i % per_word) & ((1 << width) - 1)
            value -= (value >> (width - 1)) << width
            assert value != 0
            reply["columns"][column] = value
        total = 2 * len(kept) if width == 64 else -(-len(kept) // per_word)
        at += len(padded([0] * total, beat))
    if kind == Reply.VECTOR:  # one that was cut short has fewer
        per_word = 32 // config.a_width
        fields = [word >> config.a_width * n for word in data[at:] for n in range(per_word)]
        fields = [value & ((1 << config.a_width) - 1) for value in fields[: reply["count"]]]
        reply["outputs"] = [value - (value >> (config.a_width - 1) << config.a_width) for value in fields]
        at += len(padded([0] * -(-len(fields) // per_word), beat))
    if kind == Reply.MASK:
        reply["body"] = data[at:]
        at = len(data)
    assert len(data) == at, (kind.name, len(data), at)
    return reply


class Machine(Packets):
    """An accelerator fed with packets; replies come back decoded.

    Args:
        config: its configuration.
        device: what executes the packets; a golden model of its own by default.
        begin: send BEGIN first.
    """

    def __init__(self, config: Config, device: Device | None = None, begin: bool = True) -> None:
        super().__init__(config)
        self.device = device or GoldenDevice(config)
        if begin:
            assert self.begin() == []

    def send(self, *packets: Packet) -> list[dict[str, Any]]:
        """Execute packets; their replies, decoded."""
        words, last = self.device.execute(*joined(self.config, packets))
        ends = np.flatnonzero(last) + 1
        pieces = np.split(words, ends * self.config.stream_words)
        assert len(pieces[-1]) == 0, "the replies end within a packet"
        return [decode(self.config, piece) for piece in pieces[:-1]]

    def begin(self) -> list[dict[str, Any]]:
        """Send BEGIN."""
        return self.send(self.begin_packet())

    def counters(self) -> dict[str, int]:
        """Read the counters."""
        (reply,) = self.send(self.command(Op.READ_COUNTERS))
        return {name: reply[name] for name in COUNTERS}

    def multiplies(self) -> int:
        """Counter ``multiply``."""
        return self.counters()["multiply"]


def result_matrix(replies: Sequence[dict[str, Any]], columns: int) -> NDArray[np.int64]:
    """Values of RESULT replies (and no others) in order of their rows, which must rise; nothing beyond ``columns``."""
    assert all(reply["reply"] == Reply.RESULT for reply in replies)
    assert [reply["row"] for reply in replies] == sorted(reply["row"] for reply in replies)
    assert all(not reply["columns"][columns:].any() for reply in replies)
    return np.array([reply["columns"][:columns] for reply in replies])


def faults(replies: Sequence[dict[str, Any]]) -> list[tuple[Fault, int]]:
    """Fault and opcode of ERROR replies (and no others)."""
    assert all(reply["reply"] == Reply.ERROR for reply in replies)
    return [(Fault(reply["fault"]), reply["opcode"]) for reply in replies]
