"""Post-processing: ``clamp(round((acc + bias) * mult / 2^shift), low, high)``, exactly.

Rounding is to the nearest and half to even (IEEE 754's roundTiesToEven, on integers), or at random. Sums of 33 bits
times 24 bits stay within int64; wider ones are computed in Python's integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from maskwork.gen.config import POST_MAX_SHIFT, POST_MAX_SUM, POST_MULT_WIDTH
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from numpy.typing import ArrayLike, NDArray

Int64Array = NDArray[np.int64]

NOISE_BITS = 16
"""Bits of a random number, and bits below the point that it meets."""


def requantise(
    acc: ArrayLike,
    bias: ArrayLike,
    mult: ArrayLike,
    shift: ArrayLike,
    low: int,
    high: int,
    mask: ArrayLike | None = None,
    noise: ArrayLike | None = None,
) -> Int64Array:
    """Bias, scale, round and clamp accumulators, column by column.

    Args:
        acc: accumulators, signed 48 bits, shape (..., N); columns are the last axis.
        bias: added first, signed 32 bits, shape (N,) or one number.
        mult: multiplier, unsigned 24 bits, shape (N,) or one number.
        shift: right shift, 0 to 47, shape (N,) or one number.
        low: smallest result.
        high: largest result, at least ``low``.
        mask: outputs wanted, boolean, acc's shape; the others get no bias and are exactly 0.
        noise: None to round half to even; or the random numbers u of stochastic rounding (see
            :func:`~maskwork.sim_tb.golden.noise.noise`), 0 to 65535, acc's shape: with x the scaled sum, cut off
            (towards minus infinity) 16 bits below the point, results are floor(x + u / 2^16).

    Returns:
        int64, acc's shape.

    Raises:
        MaskworkTypeError: if an argument is not of integers, or the mask not boolean.
        MaskworkValueError: if a value is out of range or a shape does not match; the message says what is accepted.
    """
    sums = _checked(acc, "acc", -(1 << (POST_MAX_SUM - 1)), (1 << (POST_MAX_SUM - 1)) - 1)
    columns = sums.shape[-1:]
    biases = _per_column(bias, "bias", -(1 << 31), (1 << 31) - 1, columns)
    mults = _per_column(mult, "mult", 0, (1 << POST_MULT_WIDTH) - 1, columns)
    shifts = _per_column(shift, "shift", 0, POST_MAX_SHIFT, columns)
    if low > high:
        raise MaskworkValueError(f"low must be at most high ({high}), not {low}")
    numbers = None
    if noise is not None:
        numbers = _checked(noise, "noise", 0, (1 << NOISE_BITS) - 1)
        if numbers.shape != sums.shape:
            raise MaskworkValueError(f"noise must have shape {sums.shape}, not {numbers.shape}")
    result = requantise_unchecked(sums, biases, mults, shifts, low, high, numbers)
    if mask is not None:
        wanted = np.asarray(mask)
        if wanted.dtype.kind != "b":
            raise MaskworkTypeError(f"mask must be a boolean array, not {wanted.dtype}")
        if wanted.shape != sums.shape:
            raise MaskworkValueError(f"mask must have shape {sums.shape}, not {wanted.shape}")
        result = np.where(wanted, result, 0)
    return result


def requantise_unchecked(
    acc: Int64Array,
    bias: Int64Array | np.int64,
    mult: Int64Array | np.int64,
    shift: Int64Array | np.int64,
    low: int,
    high: int,
    noise: Int64Array | None = None,
) -> Int64Array:
    """:func:`requantise` of int64 arrays that broadcast, for shifts up to 62."""
    total: NDArray[Any] = np.asarray(acc + bias)
    factor: NDArray[Any] = np.asarray(mult)
    shifts: NDArray[Any] = np.asarray(shift)
    if total.size and max(abs(int(total.min())), abs(int(total.max()))) * int(factor.max()) >> 62:
        total, factor, shifts = (array.astype(object) for array in (total, factor, shifts))
    product = total * factor
    quotient = product >> shifts
    remainder = product - (quotient << shifts)  # from 0 to 2^shift - 1
    if noise is None:
        half = np.ones_like(shifts) << shifts >> 1
        up = (shifts > 0) & ((remainder > half) | ((remainder == half) & (quotient & 1 == 1)))
    else:
        cut, missing = np.maximum(shifts - NOISE_BITS, 0), np.maximum(NOISE_BITS - shifts, 0)
        up = (remainder >> cut << missing) + noise >> NOISE_BITS
    return np.minimum(np.maximum(quotient + up, low), high).astype(np.int64)


def _checked(value: ArrayLike, name: str, low: int, high: int) -> Int64Array:
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise MaskworkTypeError(f"{name} must be integers, not {array.dtype}")
    if array.size and not (low <= int(array.min()) and int(array.max()) <= high):
        wrong = int(array.min()) if int(array.min()) < low else int(array.max())
        raise MaskworkValueError(f"{name} must be from {low} to {high}, not {wrong}")
    return array.astype(np.int64)


def _per_column(value: ArrayLike, name: str, low: int, high: int, columns: tuple[int, ...]) -> Int64Array:
    array = _checked(value, name, low, high)
    if array.shape not in ((), columns):
        raise MaskworkValueError(f"{name} must be one number or have shape {columns}, not {array.shape}")
    return array
