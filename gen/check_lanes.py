"""Rules about the lanes that a LOAD_B names, and those that a RUN finds loaded (see :mod:`maskwork.gen.check`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from maskwork.gen.config import Config
from numpy.typing import NDArray


def is_apart(config: Config, lanes: int) -> bool:
    """Whether a LOAD_B for these lanes, a bit each, fills lanes that share their weights (``weight_lanes``) with rows
    of their own: it names one of such lanes without the other.
    """
    return config.weight_lanes > 1 and any(
        (lanes >> first & 1) != (lanes >> first + 1 & 1) for first in range(0, config.lanes_per_cluster, 2)
    )


def check_lanes(config: Config, f: Mapping[str, int]) -> str | None:
    """What is wrong with a LOAD_B's rows for the lanes it names."""
    end, lanes = f["k"] + f["rows"], f["lanes"]
    if end > config.k_depth:
        return f"k + rows must be at most k_depth = {config.k_depth}, not {end}"
    if not is_apart(config, lanes):
        return None
    if any(lanes >> first & 3 == 3 for first in range(0, config.lanes_per_cluster, 2)):
        return f"lanes must be whole pairs that share weights, or at most one lane of each pair, not {lanes:#x}"
    if end > config.apart.k_depth:
        return (f"k + rows must be at most k_depth / 2 = {config.apart.k_depth} for single lanes of a pair that shares "
                f"weights, not {end}")  # fmt: skip
    return None


def covered_rows(config: Config, written: Sequence[tuple[int, int, int]], share: bool) -> NDArray[np.bool_]:
    """Rows of B that a RUN, shared or not, finds in each lane, (lanes, rows): with ``weight_lanes`` lanes that share
    their weights find rows of their own if it is shared, rows loaded for both of them if not.

    Args:
        config: the accelerator.
        written: LOAD_Bs in their order: lanes, first row, end.
        share: of the RUN.
    """
    lanes, half = config.lanes_per_cluster, config.apart.k_depth
    held = np.zeros((lanes, config.k_depth), np.int8)  # 1: a row loaded for all lanes of the memory; 2: for one
    for mask, start, end in written:
        apart = is_apart(config, mask)
        for lane in range(lanes):
            offset = half * (lane % config.weight_lanes) if apart else 0
            if mask >> lane & 1:
                first = lane - lane % config.weight_lanes
                held[first : first + config.weight_lanes, start + offset : end + offset] = 1 + apart
    if config.weight_lanes == 1 or not share:
        return held == 1
    return np.stack([held[lane, half * (lane % 2) :][:half] == 2 for lane in range(lanes)])


def check_kind(config: Config, written: Sequence[tuple[int, int, int]], share: bool) -> str | None:
    """What is wrong with a RUN, shared or not, whose k changes from row to row, so that nobody knows which rows of B it
    meets: with ``weight_lanes`` all of them must be loaded as it needs them.
    """
    if config.weight_lanes > 1 and any(is_apart(config, lanes) != share for lanes, _, _ in written):
        return ("share must be 1 where lanes that share weights were loaded one by one, and 0 where they were not, not "
                f"{int(share)}")  # fmt: skip
    return None
