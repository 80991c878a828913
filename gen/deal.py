"""Columns dealt to PEs by their expected work, so that the PEs of a lane have about equally much to do."""

from __future__ import annotations

from typing import Any

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkValueError
from maskwork.gen.lower_schedule import Indices
from numpy.typing import NDArray

UNEVEN = 0.05
"""Spread of the columns' work (standard deviation over mean) from which dealing pays."""


def as_work(work: Any, columns: int) -> NDArray[np.float64] | None:
    """Expected work of each column, relative to the others; None if there is nothing to deal by.

    Raises:
        MaskworkValueError: if there is not one number of 0 or more for each column.
    """
    if work is None:
        return None
    values = np.asarray(work, dtype=np.float64)
    if values.shape != (columns,) or not (np.isfinite(values) & (values >= 0)).all():
        raise MaskworkValueError(f"column_work must be {columns} numbers of 0 or more, not {work!r}")
    return values if values.std() > UNEVEN * values.mean() else None


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
