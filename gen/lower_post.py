"""Requantisation of a compiled program, and the seeds of its stochastic rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError


@dataclass(frozen=True)
class Post:
    """Requantisation of a program's results: clamp(round((sum + bias) * mult / 2**shift), low, high).

    bias, mult and shift are operands of shape (N,), bound under these names. Rounds half to even, or at random with a
    seed (1 to 2**32 - 1): every result then has a random number of its own (see :func:`tile_seed`).
    """

    low: int
    high: int
    bias: str = "bias"
    mult: str = "mult"
    shift: str = "shift"
    seed: int | None = None

    @classmethod
    def of(cls, value: Any, config: Config) -> Post | None:
        """From None, a Post, or a mapping with keys low and high (and optionally the names).

        Raises:
            MaskworkTypeError, MaskworkValueError: for anything else, limits that a_width cannot hold, or a seed that
                is none.
        """
        if value is None:
            return None
        if not isinstance(value, Post):
            try:
                value = cls(**dict(value))
            except (TypeError, ValueError):
                raise MaskworkTypeError(
                    f"post must have low and high (and may have bias, mult, shift and seed), not {value!r}"
                ) from None
        if not config.post:
            raise MaskworkValueError("post needs a configuration with post = true, not false")
        limit = 1 << (config.a_width - 1)
        if not -limit <= value.low <= value.high < limit:
            raise MaskworkValueError(
                f"post: low <= high must lie in {-limit}..{limit - 1} (a_width bits, signed), not "
                f"{value.low}..{value.high}"
            )
        if value.seed is not None:
            if isinstance(value.seed, bool) or not hasattr(value.seed, "__index__"):
                raise MaskworkTypeError(f"post: seed must be an integer or None, not {value.seed!r}")
            if not 0 < value.seed < 1 << 32:
                raise MaskworkValueError(f"post: seed must be from 1 to {(1 << 32) - 1}, not {value.seed}")
            if not config.stochastic:
                raise MaskworkValueError("post: seed needs a configuration with stochastic = true, not false")
        return value


def tile_seed(seed: int, number: int) -> int:
    """Seed of a program's LOAD_P: the final mix of MurmurHash3 (32 bits) of seed + (number + 1) * 0x9E3779B9; never 0.

    Equal parameters of the same N tile (and of the same lane and cluster, where these hold columns of their own) for
    rows 65536 * e and on (e = 0, 1, ...) share a ``number``; numbers are given in the order in which they are needed.
    """
    value = (seed + (number + 1) * 0x9E3779B9) & 0xFFFFFFFF
    value = (value ^ value >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    value = (value ^ value >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return value ^ value >> 16 or 1
