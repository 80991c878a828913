"""The mask unit's arithmetic: which values are kept, norms of columns and random projections of rows, exactly.

Random numbers come from the sequence of bits b[n + 32] = b[n + 7] ^ b[n + 6] ^ b[n + 2] ^ b[n]. A state is 32 bits of
it, the first in bit 0; from one value to the next the state moves by 24 bits of the sequence.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


def sequence(seed: int, count: int) -> NDArray[np.uint8]:
    """The first bits of the sequence whose first 32 are those of ``seed``, shape (count,), 0 and 1.

    Squaring the recurrence's polynomial doubles its distances: long pieces follow from what there is at once.
    """
    bits = np.zeros(max(count, 32), np.uint8)
    bits[:32] = seed >> np.arange(32) & 1
    known, scale = 32, 1
    while known < count:
        if 64 * scale <= known:
            scale *= 2
        at = np.arange(known, min(known + 25 * scale, count)) - 32 * scale
        bits[at + 32 * scale] = bits[at + 7 * scale] ^ bits[at + 6 * scale] ^ bits[at + 2 * scale] ^ bits[at]
        known = int(at[-1]) + 32 * scale + 1
    return bits[:count]


def states(seed: int, count: int) -> Int64Array:
    """States of ``count`` values, the first of which has the seed, int64 (count,)."""
    packed = np.packbits(sequence(seed, 24 * count + 8), bitorder="little").astype(np.int64)
    low = packed[:-1].reshape(count, 3)  # 24 bits are 3 bytes
    return low[:, 0] | low[:, 1] << 8 | low[:, 2] << 16 | packed[3::3] << 24


def numbers(seed: int, count: int) -> Int64Array:
    """The random number of each value, 0 to 65535, int64 (count,)."""
    return states(seed, count) & 0xFFFF


def greater(values: Int64Array, level: int) -> BoolArray:
    """Where a value is greater than ``level``."""
    return values > level


def magnitude(values: Int64Array, level: int) -> BoolArray:
    """Where a value's magnitude is at least ``level``."""
    return np.abs(values) >= level


def prune(values: Int64Array, level: int, seed: int) -> Int64Array:
    """Stochastic pruning (SparseTrain): a value of magnitude ``level`` or more stays; a smaller one becomes +-``level``
    with probability |value| / level, else 0, so that the expected value is the value.

    Args:
        values: within 18 bits, signed, any shape; the sequence goes through them in order.
        level: 1 or more.
        seed: first state, not 0.

    Returns:
        int64, of the shape of ``values``.
    """
    size = np.abs(values)
    u = numbers(seed, values.size).reshape(values.shape)
    raised = np.where(level * u < size << 16, np.sign(values) * level, 0)
    return np.where(size >= level, values, raised)


def dropout(length: int, level: int, seed: int) -> BoolArray:
    """Which elements of a row are kept, each with probability level / 65536; shape (length,)."""
    return numbers(seed, length) < level


def norms(values: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Of every column of a matrix: sum of magnitudes, and number of values that are not 0."""
    return np.abs(values).sum(axis=0), np.count_nonzero(values, axis=0).astype(np.int64)


def projection(length: int, sums: int, seed: int) -> Int64Array:
    """The ternary matrix of random projections: +1 and -1 with probability 11/64 each, int64 (sums, length).

    Four rows share the states of a sequence; that of rows 4 q to 4 q + 3 starts at the seed turned left by 8 q bits.
    """
    rows = []
    for q in range(sums // 4):
        turned = (seed << 8 * q | seed >> (32 - 8 * q)) & 0xFFFFFFFF
        s = states(turned, length)
        for t in range(4):
            symbol = s >> 6 * t & 63
            rows.append(np.where(symbol < 11, 1, np.where(symbol < 22, -1, 0)))
    return np.array(rows, np.int64)


def project(values: Int64Array, sums: int, seed: int) -> Int64Array:
    """Random projections of every row of a matrix (rows, length): int64 (rows, sums)."""
    return values @ projection(values.shape[1], sums, seed).T
