"""The random sequence of the mask unit: a linear feedback shift register whose state moves 24 bits for every value.

Bits b of the sequence obey b[n + 32] = b[n + 7] ^ b[n + 6] ^ b[n + 2] ^ b[n], of the primitive polynomial
x^32 + x^7 + x^6 + x^2 + 1: the period is 2^32 - 1. Bit i of a state is b[n + i].
"""

from __future__ import annotations

from maskwork.gen.errors import MaskworkValueError

WIDTH = 32
"""Bits of a state."""

TAPS = (7, 6, 2, 0)
"""Bits of a state whose sum is the next bit of the sequence."""

ADVANCE = 24
"""Bits by which a state moves from one value to the next."""

Matrix = list[int]
"""A linear map of states over GF(2): the image of each single bit."""


def step(state: int) -> int:
    """The state one bit of the sequence later."""
    return state >> 1 | (sum(state >> tap for tap in TAPS) & 1) << (WIDTH - 1)


def apply(matrix: Matrix, state: int) -> int:
    """The image of a state."""
    result = 0
    for bit, column in enumerate(matrix):
        result ^= column if state >> bit & 1 else 0
    return result


def bits_later(bits: int) -> Matrix:
    """The map from a state to the one that many bits of the sequence later, by repeated squaring."""
    result, power = [1 << bit for bit in range(WIDTH)], [step(1 << bit) for bit in range(WIDTH)]
    while bits:
        if bits & 1:
            result = [apply(power, column) for column in result]
        power = [apply(power, column) for column in power]
        bits >>= 1
    return result


def leap(seed: int, values: int) -> int:
    """The state that value number ``values`` uses, when value 0 uses ``seed``.

    Raises:
        MaskworkValueError: for a seed that is not from 1 to 2**32 - 1, or a negative number of values.
    """
    if not 0 < seed < 1 << WIDTH:
        raise MaskworkValueError(f"seed must be from 1 to 2**32 - 1, not {seed}")
    if values < 0:
        raise MaskworkValueError(f"values must be 0 or more, not {values}")
    return apply(bits_later(ADVANCE * values), seed)
