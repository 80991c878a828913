"""The vector unit: pooling and residual addition with requantisation, exactly.

Products have up to 18 + 24 bits and a window up to 2^14 of them: int64 holds every sum.
"""

from __future__ import annotations

import numpy as np
from maskwork.gen.isa import VectorKind
from maskwork.sim_tb.golden.requantise import requantise_unchecked
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]


def vector(values: Int64Array, kind: int, mult0: int, mult1: int, shift: int, low: int, high: int) -> Int64Array:
    """``min(max(round_half_even(s / 2^shift), low), high)`` of every window, with s the sum or the maximum of its
    products ``values[:, i] * (mult0 if i % 2 == 0 else mult1)``.

    Args:
        values: (outputs, window), int64 within 18 bits, signed; a window has 1 to 16384 values.
        kind: a :class:`~maskwork.gen.isa.VectorKind`.
        mult0: multiplier of values 0, 2, ... of a window, unsigned 24 bits.
        mult1: multiplier of values 1, 3, ...
        shift: right shift, 0 to 47.
        low: smallest result.
        high: largest result; when it is below ``low``, every result is ``high``.

    Returns:
        int64, (outputs,).
    """
    products = values * np.where(np.arange(values.shape[1]) % 2 == 0, np.int64(mult0), np.int64(mult1))
    sums = products.max(axis=1) if kind == VectorKind.MAX else products.sum(axis=1)
    return requantise_unchecked(sums, np.int64(0), np.int64(1), np.int64(shift), low, high)
