"""The three passes of a convolution, exactly, from their definitions.

With y[n, o, p, j] = sum over taps (r, s) and inputs i of x[n, o', p', i] * w[r, s, i, j], where o' = o*stride +
r*dilation - padding and p' alike, the gradients are sums over the same triples: that of x over (r, s, j), that of w
over (n, o, p).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from maskwork.gen.errors import MaskworkValueError
from maskwork.sim_tb.golden.product import Int64Array, Pair, _Convolution, _exact_dot, _mask, _operand
from numpy.typing import ArrayLike

Which = Literal["forward", "input_grad", "weight_grad"]


def conv2d_pass(
    which: Which,
    a: ArrayLike,
    b: ArrayLike,
    shape: tuple[int, int, int, int],
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    c_mask: ArrayLike | None = None,
) -> Int64Array:
    """One pass of a convolution in groups, exact.

    Args:
        which: "forward" (a = input, b = weights), "input_grad" (a = output gradient, b = weights) or "weight_grad"
            (a = input, b = output gradient).
        a: integers: input (N, H, W, Cin) or output gradient (N, OH, OW, Cout).
        b: integers: weights (KH, KW, Cin / groups, Cout) or output gradient.
        shape: of the tensor that is neither a, nor b, nor the output gradient's: of the output in the forward pass
            (checked), of the input in its gradient, of the weights in theirs. It is the result's.
        stride: one number or (h, w).
        padding: the same.
        dilation: the same.
        groups: divides Cin and Cout.
        c_mask: results wanted, of the result's shape; the others are exactly 0.

    Returns:
        int64 of ``shape``.

    Raises:
        MaskworkTypeError: if an operand is not an integer array, or a mask not boolean.
        MaskworkValueError: if shapes do not match, or a sum could leave 64 bits.
    """
    left, right = _operand(a, "a", 4), _operand(b, "b", 4)
    x_shape = {"forward": left.shape, "input_grad": shape, "weight_grad": left.shape}[which]
    w_shape = {"forward": right.shape, "input_grad": right.shape, "weight_grad": shape}[which]
    if x_shape[3] != w_shape[2] * groups or w_shape[3] % groups:
        raise MaskworkValueError(
            f"weights must have shape (KH, KW, {x_shape[3]} / {groups}, a multiple of {groups}), not {w_shape}"
        )
    inner, columns = w_shape[2], w_shape[3] // groups
    empty = np.zeros((1, 1, 1, 1), np.int64)
    conv = _Convolution(np.broadcast_to(empty, (*x_shape[:3], inner)), np.broadcast_to(empty, (*w_shape[:3], columns)),
                        stride, padding, dilation)  # fmt: skip
    y_shape = (*conv.shape[:3], w_shape[3])
    grad = {"forward": shape, "input_grad": left.shape, "weight_grad": right.shape}[which]
    if tuple(grad) != y_shape:
        raise MaskworkValueError(f"output must have shape {y_shape}, not {tuple(grad)}")
    result = np.zeros(shape, np.int64)
    for g in range(groups):
        ins, outs = slice(g * inner, (g + 1) * inner), slice(g * columns, (g + 1) * columns)
        for tap in conv.taps():
            if not (len(tap.oh) and len(tap.ow)):
                continue
            outputs = (slice(None), tap.oh[:, None], tap.ow[None, :], outs)
            inputs = (slice(None), tap.ih[:, None], tap.iw[None, :], ins)
            if which == "forward":
                pixels = left[inputs]
                result[outputs] += _dot(pixels, right[tap.i, tap.j, :, outs])
            elif which == "input_grad":
                result[inputs] += _dot(left[outputs], right[tap.i, tap.j, :, outs].T)
            else:
                x, y = left[inputs].reshape(-1, inner), right[outputs].reshape(-1, columns)
                result[tap.i, tap.j, :, outs] = _exact_dot(np.ascontiguousarray(x.T), y)
    if c_mask is not None:
        result[~_mask(c_mask, "c_mask", result.shape)] = 0
    return result


def _dot(pixels: Int64Array, matrix: Int64Array) -> Int64Array:
    """A matrix product along the last axis."""
    return _exact_dot(pixels.reshape(-1, pixels.shape[-1]), matrix).reshape(*pixels.shape[:-1], matrix.shape[1])
