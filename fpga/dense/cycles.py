"""Cycles of the dense array: exact for a list of tiles, and of a product cut into tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence

from maskwork.fpga.dense.config import BLOCK, LATE

CONTROL_DELAY = 5
"""Cycles, beyond the array's rows, from an activation's address to the control of its sum."""

TAIL = 8
"""Cycles from the last row's address to its sum's writing in the last column, beyond rows and columns."""


def tile_cycles(rows: int, activations: int) -> int:
    """Cycles of a tile of so many rows of activations that others follow: its own, or its successor's weights'."""
    return max(activations, rows + LATE)


def array_cycles(rows: int, columns: int, tiles: Sequence[int]) -> int:
    """Cycles of tiles that follow each other, from the one in which the first is taken to the one with ``done``.

    Args:
        rows: of the array.
        columns: of the array.
        tiles: rows of activations of each.
    """
    return rows + sum(tile_cycles(rows, m) for m in tiles[:-1]) + tiles[-1] + rows + columns + TAIL


def blocks(m: int) -> list[int]:
    """Rows of the result in blocks of nearly equal size that the sums' memories can hold."""
    number = math.ceil(m / BLOCK)
    return [(i + 1) * m // number - i * m // number for i in range(number)]


def product_cycles(rows: int, columns: int, m: int, k: int, n: int) -> int:
    """Cycles of a product (m, k) x (k, n) with k cut into tiles of ``rows`` and n into tiles of ``columns``.

    The operand that stays is B, or A with everything transposed: whichever takes fewer cycles.
    """
    return min(_one_way(rows, columns, m, k, n), _one_way(rows, columns, n, k, m))


def _one_way(rows: int, columns: int, m: int, k: int, n: int) -> int:
    tiles = math.ceil(k / rows) * math.ceil(n / columns)
    each = blocks(m)
    before = tiles * sum(tile_cycles(rows, size) for size in each) - tile_cycles(rows, each[-1])
    return array_cycles(rows, columns, [each[-1]]) + before
