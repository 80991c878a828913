"""Random numbers of stochastic rounding: a function of the seed, the row and the column, whatever the order."""

from __future__ import annotations

import numpy as np
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.gen.noise import NOISE_KEY, NOISE_STEPS
from numpy.typing import ArrayLike, NDArray

Int64Array = NDArray[np.int64]

_HALF, _WORD = (1 << 16) - 1, (1 << 32) - 1


def noise(seed: int, rows: ArrayLike, columns: ArrayLike) -> Int64Array:
    """The numbers u of :func:`~maskwork.sim_tb.golden.requantise.requantise`.

    Args:
        seed: that of LOAD_P, 1 to 2**32 - 1.
        rows: row numbers of result packets (their low 16 bits count), any shape.
        columns: columns within the N tile, 0 to 255; broadcasts with ``rows``.

    Returns:
        int64, 0 to 65535, the shape that rows and columns broadcast to.

    Raises:
        MaskworkTypeError: if an argument is not of integers.
        MaskworkValueError: if the seed or a column is out of range.
    """
    for name, value in (("seed", seed), ("rows", rows), ("columns", columns)):
        if np.asarray(value).dtype.kind not in "iu":
            raise MaskworkTypeError(f"{name} must be integers, not {np.asarray(value).dtype}")
    if not 0 < int(seed) <= _WORD:
        raise MaskworkValueError(f"seed must be from 1 to {_WORD}, not {seed}")
    row, column = np.asarray(rows, np.int64) & _HALF, np.asarray(columns, np.int64)
    most = (1 << len(NOISE_STEPS)) - 1
    if column.size and not 0 <= int(column.min()) <= int(column.max()) <= most:
        raise MaskworkValueError(f"columns must be from 0 to {most}, not {column.min()} to {column.max()}")
    state = row_state(int(seed), row)
    for bit, (shift, turn) in enumerate(NOISE_STEPS):
        state = np.where(column >> bit & 1, _rotate(state ^ (state << shift & _WORD), turn, 32), state)
    return state >> 16


def row_state(seed: int, rows: Int64Array) -> Int64Array:
    """What the numbers of rows 0 to 65535 begin with: 32 bits, not 0, the shape of ``rows``."""
    left, right = np.full_like(rows, seed >> 16), np.full_like(rows, seed & _HALF)
    for number in range(12):
        key = rows if number % 4 == 0 else NOISE_KEY
        left, right = right ^ (left & _rotate(left, 5, 16)) ^ _rotate(left, 1, 16) ^ key, left
    return np.maximum(left << 16 | right, 1)


def _rotate(values: Int64Array, turn: int, width: int) -> Int64Array:
    """``values`` of ``width`` bits, rotated to the left."""
    return (values << turn | values >> (width - turn)) & ((1 << width) - 1)
