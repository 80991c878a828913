"""Whether the sums of a product, at its operands' actual values, fit the accumulators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from maskwork.gen.errors import MaskworkValueError
from numpy.typing import NDArray


def check_overflow(acc_width: int, a: NDArray[Any], b: NDArray[Any], what: str = "product") -> None:
    """Refuse a product whose final sums could leave the accumulator: for each column n, the sum over k of
    max_m |a[m, k]| * |b[k, n]| must fit ``acc_width`` bits, signed.

    Args:
        acc_width: bits of an accumulator.
        a: (M, C) integers, masked elements 0.
        b: (taps * C, N) integers, masked elements 0; taps is 1 for a matrix product.
        what: name of the product in the message.

    Raises:
        MaskworkValueError: naming the bound and the limit.
    """
    if not a.size or not b.size:
        return
    taps = b.shape[0] // a.shape[1]
    largest = np.maximum(np.abs(a.max(axis=0).astype(np.int64)), np.abs(a.min(axis=0).astype(np.int64)))
    bound = np.tile(largest.astype(np.float64), taps) @ np.abs(b.astype(np.float64))  # exact below 2**53
    worst = int(bound.max())
    limit = (1 << (acc_width - 1)) - 1
    if worst > limit:
        column = int(bound.argmax())
        raise MaskworkValueError(
            f"{what}: results could reach {worst} in column {column}; at most {limit} fits acc_width = {acc_width}: "
            "raise acc_width or scale the operands down"
        )


def window_maxima(a: NDArray[Any], window: Mapping[str, Any]) -> NDArray[np.int64]:
    """The largest |a| that each output position of a convolution meets, in any channel and tap: shape (1, N*OH*OW).
    With it :func:`check_overflow` bounds weight gradients.

    Args:
        a: (N, C, H, W) integers, masked elements 0.
        window: {"kernel", "stride", "dilation": (rows, columns), "pad": (top, left), "outputs": (OH, OW)}.
    """
    images, _, *sizes = a.shape
    largest = np.maximum(a.max(axis=1), -a.min(axis=1)).astype(np.int64)
    result = np.zeros((images, *window["outputs"]), dtype=np.int64)
    for tap in np.ndindex(*window["kernel"]):
        ours, theirs = [slice(None)], [slice(None)]
        for axis in (0, 1):
            stride, first = window["stride"][axis], tap[axis] * window["dilation"][axis] - window["pad"][axis]
            low = max(0, -(first // stride))
            high = min(window["outputs"][axis], (sizes[axis] - 1 - first) // stride + 1)
            ours.append(slice(low, max(low, high)))
            start = low * stride + first
            theirs.append(slice(start, start + (high - low - 1) * stride + 1, stride) if high > low else slice(0, 0))
        np.maximum(result[tuple(ours)], largest[tuple(theirs)], out=result[tuple(ours)])
    return result.reshape(1, -1)
