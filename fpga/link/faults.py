"""Faults of a line, injected into a stream of bytes: dropped, flipped, duplicated bytes, and frames cut short."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from maskwork.fpga.link.frames import FLAG
from maskwork.gen.errors import MaskworkValueError


@dataclass(frozen=True)
class FaultRates:
    """Probability, for every byte, that a fault happens at it.

    Members:
        drop: the byte is lost.
        flip: one of its bits is inverted.
        duplicate: it comes twice.
        truncate: it and all up to the next flag are lost.
    """

    drop: float = 0.0
    flip: float = 0.0
    duplicate: float = 0.0
    truncate: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            rate = getattr(self, field.name)
            if not 0.0 <= rate <= 0.1:
                raise MaskworkValueError(f"{field.name}: a fault's rate must be from 0 to 0.1 a byte, not {rate}")

    @classmethod
    def each(cls, rate: float) -> FaultRates:
        """The same rate for every kind."""
        return cls(rate, rate, rate, rate)


class FaultyLine:
    """One direction of a line with faults; the same bytes and seed give the same faults, however they are divided.

    Args:
        rates: how often.
        seed: of the faults.

    Members:
        counts: faults so far, by kind.
        bytes: bytes that entered.
    """

    def __init__(self, rates: FaultRates, seed: int = 0):
        self._names = [field.name for field in fields(rates)]
        self._limits = np.cumsum([getattr(rates, name) for name in self._names])
        self._random = np.random.default_rng(seed)
        self._cutting = False
        self.counts = dict.fromkeys(self._names, 0)
        self.bytes = 0

    def __call__(self, data: bytes) -> bytes:
        """What arrives of these bytes."""
        self.bytes += len(data)
        if not self._limits[-1]:
            return data
        draws = self._random.random(len(data))
        struck = np.flatnonzero(draws < self._limits[-1]).tolist()
        result, begin = b"", 0
        for place in [*struck, len(data)]:
            result += self._pass(data[begin:place])
            begin = place
            if place < len(data) and not self._cutting:
                result += self._damage(data[place : place + 1], float(draws[place]))
                begin = place + 1
        return result

    def _pass(self, data: bytes) -> bytes:
        if self._cutting:
            flag = data.find(FLAG)
            if flag < 0:
                return b""
            self._cutting = False
            return data[flag:]
        return data

    def _damage(self, byte: bytes, draw: float) -> bytes:
        kind = self._names[int(np.searchsorted(self._limits, draw, side="right"))]
        self.counts[kind] += 1
        if kind == "flip":  # which bit follows from the draw, so that no further one is needed
            return bytes([byte[0] ^ 1 << int(draw * 2**40) % 8])
        if kind == "duplicate":
            return byte + byte
        if kind == "truncate":
            self._cutting = True
        return b""
