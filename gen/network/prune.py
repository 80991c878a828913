"""Pruning weights: which of them stay, by magnitude alone or so many of every few along an axis."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from numpy.typing import NDArray


def magnitude(weights: NDArray[Any], density: float, axis: int | None = None) -> NDArray[Any]:
    """Keep the largest weights by magnitude; the others become 0.

    Args:
        weights: real or integer numbers of any shape.
        density: part of the weights that stays, above 0 and up to 1: the nearest whole number of them, at least one.
        axis: every slice along this axis, such as an output channel, keeps its own largest ones; None compares all.

    Returns:
        A copy, of the same shape and dtype. Of equal magnitudes the first in memory order (C) stay.

    Raises:
        MaskworkTypeError: for weights that are no numbers.
        MaskworkValueError: for a density out of range, an axis that is not there, or weights that are not finite.
    """
    values = _checked(weights)
    check_density(density)
    if not values.size:
        return values
    if axis is None:
        return _keep(values.reshape(1, -1), _share(density, values.size)).reshape(values.shape)
    moved = np.moveaxis(values, _axis(values, axis), 0)
    rows = moved.reshape(len(moved), -1)
    kept = _keep(rows, _share(density, rows.shape[1])).reshape(moved.shape)
    return np.ascontiguousarray(np.moveaxis(kept, 0, axis))


def n_of_m(weights: NDArray[Any], n: int, m: int, axis: int, groups: int = 1) -> NDArray[Any]:
    """Keep the ``n`` largest of every ``m`` consecutive weights along an axis; the others become 0.

    Args:
        weights: real or integer numbers of any shape.
        n: weights that stay of every ``m``, from 1 to ``m``. Fewer are left at the end where ``m`` does not divide
            the axis: ``n`` of those stay, or all of them.
        m: length of a run.
        axis: of the input channels: 1 for Conv's (cout, cin / groups, ...), 0 for MatMul's (k, n).
        groups: parts of the axis in which counting starts anew.

    Returns:
        A copy, of the same shape and dtype. Of equal magnitudes the first stay.

    Raises:
        MaskworkTypeError: for weights that are no numbers.
        MaskworkValueError: for ``n`` or ``m`` out of range, an axis that is not there, groups that do not divide it,
            or weights that are not finite.
    """
    values = _checked(weights)
    check_n_of_m(n, m)
    moved = np.moveaxis(values, _axis(values, axis), -1)
    size = moved.shape[-1]
    if groups < 1 or size % groups:
        raise MaskworkValueError(f"groups must divide the {size} weights along axis {axis}, not {groups}")
    each = size // groups
    parts = moved.reshape(-1, each)
    runs = -(-each // m)
    padded = np.zeros((len(parts), runs * m), dtype=values.dtype)
    padded[:, :each] = parts
    kept = _keep(padded.reshape(-1, m), n).reshape(len(parts), runs * m)[:, :each]
    return np.ascontiguousarray(np.moveaxis(kept.reshape(moved.shape), -1, axis))


def check_density(density: float) -> None:
    """Check the part of weights that stays.

    Raises:
        MaskworkValueError: if it is not above 0 and up to 1.
    """
    if not 0 < density <= 1:
        raise MaskworkValueError(f"density must be above 0 and at most 1, not {density:g}")


def check_n_of_m(n: int, m: int) -> None:
    """Check ``n`` of ``m``.

    Raises:
        MaskworkValueError: if ``n`` is not from 1 to ``m``.
    """
    if not 1 <= n <= m:
        raise MaskworkValueError(f"n of m: n must be from 1 to m, not {n} of {m}")


def _checked(weights: NDArray[Any]) -> NDArray[Any]:
    values = np.array(weights)
    if values.dtype.kind not in "iuf":
        raise MaskworkTypeError(f"weights must be numbers, not {values.dtype}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise MaskworkValueError("weights must be finite; there are infinities or NaNs among them")
    return values


def _axis(values: NDArray[Any], axis: int) -> int:
    if not -values.ndim <= axis < values.ndim:
        raise MaskworkValueError(f"axis {axis} is not one of the {values.ndim} axes of the weights")
    return axis % values.ndim


def _share(density: float, size: int) -> int:
    return min(size, max(1, math.floor(density * size + 0.5)))


def _keep(rows: NDArray[Any], count: int) -> NDArray[Any]:
    """Rows with their ``count`` largest values."""
    order = np.argsort(-np.abs(rows.astype(np.float64)), axis=1, kind="stable")[:, :count]
    mask = np.zeros(rows.shape, dtype=bool)
    np.put_along_axis(mask, order, True, axis=1)
    return np.where(mask, rows, np.zeros((), dtype=rows.dtype))
