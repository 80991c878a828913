"""Executes MASK: the rules of its fields, the masks that are stored, and the words of its reply."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.isa import KIND_BLOCKS, MAX_PROJECT, REPLIES, SEEDED, Fault, MaskKind, Reply
from maskwork.sim_tb.golden import masks
from maskwork.sim_tb.golden.payload import Words, packed_values, packed_words, require
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Fields = dict[str, int]


@dataclass
class _Data:
    """What came: ``values`` (rows that were begun, length), of which the first ``count`` came."""

    values: Int64Array
    count: int
    fault: Fault | None


class MaskCommand:
    """Executes one MASK after the other.

    Args:
        config: a configuration with a mask unit.

    Members:
        slots: the masks that are stored, bool (rows, length), or None.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.slots: list[BoolArray | None] = [None] * config.mask_slots

    def clear(self) -> None:
        """Forget every mask."""
        self.slots = [None] * self.config.mask_slots

    def execute(self, fields: Fields, payload: Words) -> tuple[Words, Fault | None]:
        """The reply, and the fault of the ERROR behind it.

        Of data that end too early, what they have is answered, and one value more, which is 0: as if the command had
        ended with it.

        Raises:
            RefusedError: for a command that is not begun: BAD_FIELD, or MASK_EMPTY.
        """
        self._check(fields)
        kind, rows, length, slot = MaskKind(fields["kind"]), fields["rows"], fields["length"], fields["slot"]
        stored = self.slots[slot]
        if kind == MaskKind.REPLAY:
            require(stored is not None and stored.shape == (rows, length), Fault.MASK_EMPTY)
        header = {name: fields[name] for name in ("tag", "values", "length", "rows")}
        words = self._padded(REPLIES[Reply.MASK].encode(header))
        if not fields["values"] and kind in (MaskKind.DROPOUT, MaskKind.REPLAY):
            bits = stored if kind == MaskKind.REPLAY else np.broadcast_to(self._dropped(fields), (rows, length))
            assert bits is not None  # a REPLAY without its mask was refused
            data = _Data(np.zeros((0, length), np.int64), 0, Fault.LONG_PACKET if len(payload) else None)
            answer = _bitmap_words(bits)
        else:
            data = self._data(fields, payload)
            if kind in (MaskKind.NORMS, MaskKind.PROJECT):
                answer = self._norms(data) if kind == MaskKind.NORMS else self._projections(data, fields["seed"])
                return np.array(words + self._padded(answer), np.uint32), data.fault
            outputs = self._outputs(kind, fields, data.values, stored)
            bits = outputs != 0
            if fields["values"]:
                asked = min(data.count + 1, rows * length)
                answer = packed_words(outputs.reshape(-1)[:asked], self.config.a_width).tolist()
            else:
                answer = _bitmap_words(bits)
                if data.fault == Fault.SHORT_PACKET:  # the last row ends with the value that is missing
                    answer = answer[: data.count // length * -(-length // 32) + data.count % length // 32 + 1]
        words += self._padded(answer) + self._padded(self._statistics(data, bits))
        fault = self._store(slot, bits, data.fault) if fields["store"] else data.fault
        return np.array(words, np.uint32), fault

    # ------------------------------------------------------------------ rules

    def _check(self, fields: Fields) -> None:
        config, level = self.config, fields["level"]
        largest = (1 << (config.a_width - 1)) - 1
        require(fields["kind"] in MaskKind.__members__.values(), Fault.BAD_FIELD)
        kind = MaskKind(fields["kind"])
        require(KIND_BLOCKS[kind] in config.blocks, Fault.BAD_FIELD)
        require(fields["length"] >= 1 and fields["rows"] >= 1, Fault.BAD_FIELD)
        require(fields["slot"] < config.mask_slots, Fault.BAD_FIELD)
        require(fields["seed"] != 0 or kind not in SEEDED, Fault.BAD_FIELD)
        limits = {
            MaskKind.GREATER: (-largest - 1, largest),
            MaskKind.MAGNITUDE: (1, largest),
            MaskKind.PRUNE: (1, largest),
            MaskKind.DROPOUT: (1, 65535),
        }
        if kind in limits:
            require(limits[kind][0] <= level <= limits[kind][1], Fault.BAD_FIELD)
        require(not fields["store"] or ("store" in config.blocks and kind in limits), Fault.BAD_FIELD)
        longest = {MaskKind.NORMS: config.norm_channels, MaskKind.PROJECT: MAX_PROJECT}
        if kind in longest:
            require(bool(fields["values"]) and fields["length"] <= longest[kind], Fault.BAD_FIELD)

    # ------------------------------------------------------------------ data

    def _padded(self, words: list[int]) -> list[int]:
        return words + [0] * (-len(words) % self.config.stream_words)

    def _data(self, fields: Fields, payload: Words) -> _Data:
        config, length = self.config, fields["length"]
        total = fields["rows"] * length
        came = packed_values(payload, config.a_width)[:total]
        per_beat = max(1, 32 // config.a_width) * config.stream_words
        fault = None
        if len(came) < total:
            fault = Fault.SHORT_PACKET
        elif len(payload) > -(-total // per_beat) * config.stream_words:
            fault = Fault.LONG_PACKET
        begun = -(-min(len(came) + 1, total) // length)
        values = np.zeros(begun * length, np.int64)
        values[: len(came)] = came
        return _Data(values.reshape(begun, length), len(came), fault)

    @staticmethod
    def _dropped(fields: Fields) -> BoolArray:
        return masks.dropout(fields["length"], fields["level"], fields["seed"])

    def _outputs(self, kind: MaskKind, fields: Fields, values: Int64Array, stored: BoolArray | None) -> Int64Array:
        level = fields["level"]
        match kind:
            case MaskKind.GREATER:
                return np.where(masks.greater(values, level), values, 0)
            case MaskKind.MAGNITUDE:
                return np.where(masks.magnitude(values, level), values, 0)
            case MaskKind.PRUNE:
                return masks.prune(values, level, fields["seed"])
            case MaskKind.DROPOUT:
                return np.where(self._dropped(fields), values, 0)
        assert stored is not None  # a REPLAY without its mask was refused
        return np.where(stored[: len(values)], values, 0)

    def _store(self, slot: int, bits: BoolArray, fault: Fault | None) -> Fault | None:
        words = bits.shape[0] * -(-bits.shape[1] // 32)
        self.slots[slot] = None
        if fault != Fault.SHORT_PACKET and words > self.config.mask_depth:
            return Fault.BUFFER_FULL
        if fault is None:
            self.slots[slot] = bits.copy()
        return fault

    # ------------------------------------------------------------------ answers

    @staticmethod
    def _statistics(data: _Data, bits: BoolArray) -> list[int]:
        total, kept, nonzeros = (int(n) for n in (np.abs(data.values).sum(), bits.sum(), np.count_nonzero(data.values)))
        return [total & 0xFFFFFFFF, total >> 32 & 0xFFFF, kept, nonzeros]

    @staticmethod
    def _norms(data: _Data) -> list[int]:
        sums, counts = masks.norms(data.values)
        words: list[int] = []
        for total, count in zip(sums.tolist(), counts.tolist(), strict=True):
            words += [total & 0xFFFFFFFF, count | (total >> 32 & 0xFFFF) << 16]
        return words[: 2 * (data.count + 1)]

    def _projections(self, data: _Data, seed: int) -> list[int]:
        sums = masks.project(data.values, self.config.project_sums, seed)
        return (sums.reshape(-1) & 0xFFFFFFFF).tolist()


def _bitmap_words(bits: BoolArray) -> list[int]:
    """Bitmaps of rows, each padded to a word."""
    padded = np.zeros((bits.shape[0], -(-bits.shape[1] // 32) * 32), np.bool_)
    padded[:, : bits.shape[1]] = bits
    return np.packbits(padded, axis=1, bitorder="little").view("<u4").reshape(-1).tolist()
