"""Integers for training: a power of two as each tensor's scale, rounding to nearest or stochastic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from numpy.typing import NDArray

ROUNDINGS = ("nearest", "stochastic")

_LEAST = -1000
"""Least exponent: a tensor of yet smaller values becomes zeros."""


@dataclass(frozen=True)
class Quantised:
    """values * 2**exponent.

    Members:
        values: int64.
        exponent: of the scale.
    """

    values: NDArray[Any]
    exponent: int

    @property
    def scale(self) -> float:
        """What a 1 is worth."""
        return math.ldexp(1.0, self.exponent)

    @property
    def real(self) -> NDArray[np.float64]:
        """The numbers that the integers stand for."""
        return np.ldexp(self.values.astype(np.float64), self.exponent)


def check_bits(config: Config, bits: Any) -> None:
    """Refuse operands that a configuration cannot multiply.

    Raises:
        MaskworkValueError: for bits other than 8 and 16, or more than ``a_width`` or ``b_width``.
    """
    if isinstance(bits, bool) or bits not in (8, 16):
        raise MaskworkValueError(f"bits must be 8 or 16, not {bits!r}")
    if bits > min(config.a_width, config.b_width):
        raise MaskworkValueError(
            f"{bits}-bit training needs a_width and b_width of {bits} or more (preset small-int16 has 16), not "
            f"{config.a_width} and {config.b_width} as {config.name!r} has"
        )


def quantise(
    x: Any, bits: int, rounding: str = "nearest", rng: np.random.Generator | int | None = None, name: str = "tensor"
) -> Quantised:
    """Round to signed integers within +-(2**(bits - 1) - 1), with the least power of two as scale that holds them all.

    Args:
        x: real numbers, any shape.
        bits: 8 or 16.
        rounding: "nearest" (ties to even), or "stochastic": up with the probability of the fraction, so that the
            expected value is the value.
        rng: random numbers of stochastic rounding, or their seed.
        name: what messages call the tensor.

    Raises:
        MaskworkTypeError: if ``x`` does not hold real numbers.
        MaskworkValueError: for values that are not finite, or bits, a rounding or seed that cannot be used.
    """
    if isinstance(bits, bool) or bits not in (8, 16):
        raise MaskworkValueError(f"bits must be 8 or 16, not {bits!r}")
    check_rounding(rounding)
    array = np.asarray(x)
    if array.dtype.kind not in "iuf":
        raise MaskworkTypeError(f"{name} must hold real numbers, not {array.dtype}")
    if not np.isfinite(array).all():
        raise MaskworkValueError(f"{name} must be finite, but holds infinities or NaN; a lower learning rate may help")
    array, limit = array.astype(np.float64), (1 << (bits - 1)) - 1
    exponent = least_exponent(float(np.abs(array).max(initial=0.0)), limit)
    scaled = np.ldexp(array, -exponent)
    if rounding == "nearest":
        return Quantised(np.rint(scaled).astype(np.int64), exponent)
    if rng is None:
        raise MaskworkValueError("stochastic rounding needs rng: a numpy.random.Generator or a seed")
    # nothing leaves the range: a value within it lies between two integers within it
    return Quantised(np.floor(scaled + generator(rng).random(scaled.shape)).astype(np.int64), exponent)


def check_rounding(rounding: Any) -> None:
    """Refuse a rounding that does not exist."""
    if rounding not in ROUNDINGS:
        raise MaskworkValueError(f"rounding must be {' or '.join(ROUNDINGS)}, not {rounding!r}")


def generator(rng: np.random.Generator | int) -> np.random.Generator:
    """Random numbers from a seed, or as they are.

    Raises:
        MaskworkValueError: for a seed that is not an integer of 0 or more.
    """
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, bool) or not isinstance(rng, (int, np.integer)) or rng < 0:
        raise MaskworkValueError(f"a seed must be an integer of 0 or more, not {rng!r}")
    return np.random.default_rng(int(rng))


def least_exponent(largest: float, limit: int) -> int:
    """The least power of two, as its exponent, with which ``limit`` reaches ``largest``; 0 for zero."""
    if not largest:
        return 0
    # the quotient may be rounded: compare exactly
    exponent = max(_LEAST, math.frexp(largest / limit)[1] - 1)
    while math.ldexp(limit, exponent) < largest:
        exponent += 1
    return exponent
