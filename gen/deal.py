"""Rows and columns dealt by their expected work, so that clusters, lanes and PEs have about equally much to do."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkValueError
from maskwork.gen.lower_schedule import Indices
from numpy.typing import NDArray

UNEVEN = 0.05
"""Spread of the work (standard deviation over mean) from which dealing pays."""


def as_work(work: Any, number: int, name: str = "column_work") -> NDArray[np.float64] | None:
    """Expected work of each column (or row), relative to the others; None if there is nothing to deal by.

    Raises:
        MaskworkValueError: if there is not one number of 0 or more for each.
    """
    if work is None:
        return None
    try:
        values = np.asarray(work, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.zeros(0)
    if values.shape != (number,) or not (np.isfinite(values) & (values >= 0)).all():
        raise MaskworkValueError(f"{name} must be {number} numbers of 0 or more, not {work!r}")
    return values if values.std() > UNEVEN * values.mean() else None


def deal_evenly(pieces: Sequence[Indices], work: NDArray[np.float64] | None) -> list[Indices]:
    """What the pieces hold in as many pieces of the same sizes and about equal work, each with the heaviest first.

    Args:
        pieces: numbers of rows or columns.
        work: of all rows or columns, or None: the pieces stay.
    """
    if work is None:
        return list(pieces)
    numbers = np.concatenate(pieces)
    result: list[list[int]] = [[] for _ in pieces]
    lightest = [(0.0, i) for i in range(len(pieces))]
    for number in numbers[np.argsort(-work[numbers], kind="stable")].tolist():
        load, i = heapq.heappop(lightest)
        result[i].append(number)
        if len(result[i]) < len(pieces[i]):
            heapq.heappush(lightest, (load + float(work[number]), i))
    return [np.array(own, dtype=np.int64) for own in result]


def deal(config: Config, tile: Indices, work: NDArray[np.float64] | None) -> Indices:
    """The columns of a lane's N tile in the order in which its PEs get them, the heaviest first, to and fro.

    Args:
        config: the accelerator: column i of a tile belongs to PE i % pes_per_lane.
        tile: numbers of the columns.
        work: of all columns, or None: the order stays.
    """
    if work is None:
        return tile
    pes = config.pes_per_lane
    ranked = tile[np.argsort(-work[tile], kind="stable")]
    rounds = [ranked[i : i + pes] for i in range(0, len(ranked), pes)]
    return np.concatenate([r[::-1] if n % 2 else r for n, r in enumerate(rounds)])
