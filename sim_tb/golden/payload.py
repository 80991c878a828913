"""Reads what follows a command's header: bitmaps, packed values and words, each row padded to a beat."""

from __future__ import annotations

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.isa import Fault
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Words = NDArray[np.uint32]


class RefusedError(Exception):
    """A packet that is answered with an error word."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.name)
        self.fault = fault


def require(condition: bool, fault: Fault) -> None:
    """Refuse the packet with that fault unless the condition holds."""
    if not condition:
        raise RefusedError(fault)


class Payload:
    """Reads a payload; what is missing shows in :meth:`check_complete`, so that other faults can come first."""

    def __init__(self, config: Config, words: Words) -> None:
        self._beat = config.stream_words
        self._words = words
        self._at = 0
        self._short = False

    def _beats(self, words: int) -> int:
        """That many words, in whole beats."""
        return -(-words // self._beat) * self._beat

    def check_complete(self, fits: bool = True) -> None:
        """Refuse a payload that was too short, does not fit its buffer, or is not used up, in this order."""
        require(not self._short, Fault.SHORT_PACKET)
        require(fits, Fault.BUFFER_FULL)
        require(self._at == len(self._words), Fault.LONG_PACKET)

    def take(self, words: int) -> Words:
        """The next words, padded to a beat in the stream."""
        require(self._at + self._beats(words) <= len(self._words), Fault.SHORT_PACKET)
        begin = self._at
        self._at += self._beats(words)
        return self._words[begin : begin + words]

    def _uniform(self, rows: int, words: int) -> Words:
        """Rows of so many words, padded to a beat each; as many as there are."""
        size = self._beats(words)
        available = min(rows, (len(self._words) - self._at) // size)
        self._short |= available < rows
        begin = self._at
        self._at += available * size
        return self._words[begin : self._at].reshape(available, size)[:, :words]

    def bitmaps(self, rows: int, bits: int) -> BoolArray:
        """Bitmaps that follow each other, shape (rows, bits)."""
        return _bits(self._uniform(rows, -(-bits // 32)))[:, :bits]

    def rows(self, rows: int, length: int, width: int, dense: int) -> tuple[Int64Array, BoolArray]:
        """Values (0 where absent) and presence of the rows that are complete, shape (up to rows, length)."""
        per_word = max(1, 32 // width)
        if dense:
            values = _fields(self._uniform(rows, -(-length // per_word)), width)[:, :length]
            return values, np.ones(values.shape, np.bool_)
        rest = self._words[self._at :]
        bits, fields = _bits(rest.reshape(-1, 1)), _fields(rest.reshape(-1, 1), width)
        bitmap_words, at = self._beats(-(-length // 32)), 0
        masks: list[BoolArray] = []
        packed: list[Int64Array] = []
        for _ in range(rows):
            values_at = at + bitmap_words
            mask = bits[at:values_at].reshape(-1)[:length]
            count = int(np.count_nonzero(mask))
            end = values_at + self._beats(-(-count // per_word))
            if end > len(rest):
                self._short = True
                break
            masks.append(mask)
            packed.append(fields[values_at:end].reshape(-1)[:count])
            at = end
        self._at += at
        present = np.stack(masks) if masks else np.zeros((0, length), np.bool_)
        values = np.zeros(present.shape, np.int64)
        values[present] = np.concatenate(packed) if packed else 0
        return values, present


def _bits(words: Words) -> BoolArray:
    """Bits of words, least significant first: (rows, n) to (rows, 32*n)."""
    flat = np.unpackbits(np.ascontiguousarray(words, "<u4").view(np.uint8), axis=1, bitorder="little")
    return flat.astype(np.bool_)


def _fields(words: Words, width: int) -> Int64Array:
    """Signed fields of ``width`` bits in words: (rows, n) to (rows, n * fields per word)."""
    per_word = max(1, 32 // width)
    fields = words.astype(np.int64)[:, :, None] >> (width * np.arange(per_word)) & ((1 << width) - 1)
    sign = 1 << (width - 1)
    return ((fields ^ sign) - sign).reshape(len(words), words.shape[1] * per_word)


def packed_values(words: Words, width: int) -> Int64Array:
    """All packed values of ``width`` bits, signed, of the words, one after the other."""
    return _fields(words.reshape(1, -1), width).reshape(-1)


def packed_words(values: Int64Array, width: int) -> Words:
    """Words of packed values: as many fields of ``width`` bits as fit in each."""
    per_word = max(1, 32 // width)
    fields = np.zeros(-(-len(values) // per_word) * per_word, np.int64)
    fields[: len(values)] = values & ((1 << width) - 1)
    return (fields.reshape(-1, per_word) << (width * np.arange(per_word))).sum(axis=1).astype(np.uint32)
