"""The masked sparse matrix product and the convolution, exactly, from their definitions.

In the notation of GraphBLAS (Davis, "Algorithm 1000: SuiteSparse:GraphBLAS", ACM TOMS 2019)::

    C<Mc> = A<Ma> . B<Mb>        C[m,n] = sum over k of A[m,k]*B[k,n], only where Mc[m,n]

The effective mask of A and B is the given mask AND the operand's nonzeros; of C it is the given mask alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from numpy.typing import ArrayLike, NDArray

Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Pair = int | tuple[int, int]


def masked_matmul(
    a: ArrayLike,
    b: ArrayLike,
    a_mask: ArrayLike | None = None,
    b_mask: ArrayLike | None = None,
    c_mask: ArrayLike | None = None,
    dense: bool = False,
) -> Int64Array:
    """Masked product ``C<Mc> = A<Ma> . B<Mb>``, exact.

    Args:
        a: integers, shape (M, K).
        b: integers, shape (K, N).
        a_mask: booleans (or 0 and 1), shape (M, K); absent: all.
        b_mask: the same for b, shape (K, N).
        c_mask: outputs wanted, shape (M, N); the others are exactly 0.
        dense: ignore the operands' own zeros. It changes which products count, never a result.

    Returns:
        C, int64, shape (M, N).

    Raises:
        MaskworkTypeError: if an operand is not an integer array, or a mask not boolean.
        MaskworkValueError: if shapes do not match, or a sum could leave 64 bits.
    """
    left, right = _operand(a, "a", 2), _operand(b, "b", 2)
    _check_inner(left, right)
    left = np.where(_effective(left, a_mask, "a_mask", dense), left, 0)
    right = np.where(_effective(right, b_mask, "b_mask", dense), right, 0)
    product = _exact_dot(left, right)
    if c_mask is not None:
        product[~_mask(c_mask, "c_mask", product.shape)] = 0
    return product


def macs(
    a: ArrayLike,
    b: ArrayLike,
    a_mask: ArrayLike | None = None,
    b_mask: ArrayLike | None = None,
    c_mask: ArrayLike | None = None,
    dense: bool = False,
) -> dict[str, int]:
    """Products of :func:`masked_matmul` (same arguments and errors).

    Returns:
        ``macs_dense`` = M*K*N, and ``macs_effectual``: triples (m, k, n) whose two factors are in their effective
        masks and whose result is wanted.
    """
    left, right = _operand(a, "a", 2), _operand(b, "b", 2)
    _check_inner(left, right)
    ea, eb = _effective(left, a_mask, "a_mask", dense), _effective(right, b_mask, "b_mask", dense)
    shape = (left.shape[0], right.shape[1])
    wanted = None if c_mask is None else _mask(c_mask, "c_mask", shape)
    return {"macs_dense": left.shape[0] * left.shape[1] * shape[1], "macs_effectual": _count(ea, eb, wanted)}


def conv2d(
    x: ArrayLike,
    w: ArrayLike,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    a_mask: ArrayLike | None = None,
    b_mask: ArrayLike | None = None,
    c_mask: ArrayLike | None = None,
    dense: bool = False,
) -> Int64Array:
    """Masked convolution (cross-correlation, as networks use the word), exact.

    Args:
        x: integers, shape (N, H, W, Cin).
        w: integers, shape (KH, KW, Cin, Cout).
        stride: positions from one output to the next, one number or (h, w), at least 1.
        padding: zero positions added on both sides, one number or (h, w), at least 0.
        dilation: positions from one tap to the next, one number or (h, w), at least 1.
        a_mask: mask of x, of its shape; absent: all.
        b_mask: mask of w, of its shape.
        c_mask: outputs wanted, of the result's shape; the others are exactly 0.
        dense: ignore the operands' own zeros (changes only :func:`conv2d_macs`).

    Returns:
        int64, shape (N, OH, OW, Cout), OH = (H + 2*padding - dilation*(KH-1) - 1) // stride + 1, OW alike.

    Raises:
        MaskworkTypeError: if an operand is not an integer array, or a mask not boolean.
        MaskworkValueError: if shapes do not match, the output is empty, or a sum could leave 64 bits.
    """
    conv = _Convolution(x, w, stride, padding, dilation)
    image = np.where(_effective(conv.x, a_mask, "a_mask", dense), conv.x, 0)
    kernel = np.where(_effective(conv.w, b_mask, "b_mask", dense), conv.w, 0)
    _check_bound(image, kernel, kernel.shape[0] * kernel.shape[1] * kernel.shape[2])
    result = np.zeros(conv.shape, np.int64)
    for tap in conv.taps():
        pixels = image[:, tap.ih][:, :, tap.iw]
        part = _exact_dot(pixels.reshape(-1, pixels.shape[3]), kernel[tap.i, tap.j])
        result[:, tap.oh[:, None], tap.ow[None, :]] += part.reshape(*pixels.shape[:3], part.shape[-1])
    if c_mask is not None:
        result[~_mask(c_mask, "c_mask", conv.shape)] = 0
    return result


def conv2d_macs(
    x: ArrayLike,
    w: ArrayLike,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    a_mask: ArrayLike | None = None,
    b_mask: ArrayLike | None = None,
    c_mask: ArrayLike | None = None,
    dense: bool = False,
) -> dict[str, int]:
    """Products of :func:`conv2d` (same arguments and errors).

    Returns:
        ``macs_dense``: products whose two factors exist (taps that fall on padding do not), and ``macs_effectual``:
        of those, both factors in their effective masks and the result wanted.
    """
    conv = _Convolution(x, w, stride, padding, dilation)
    ea, eb = _effective(conv.x, a_mask, "a_mask", dense), _effective(conv.w, b_mask, "b_mask", dense)
    wanted = None if c_mask is None else _mask(c_mask, "c_mask", conv.shape)
    total = effectual = 0
    for tap in conv.taps():
        pixels = ea[:, tap.ih][:, :, tap.iw]
        outputs = None if wanted is None else wanted[:, tap.oh][:, :, tap.ow].reshape(-1, conv.shape[3])
        total += pixels.size * conv.shape[3]
        effectual += _count(pixels.reshape(-1, pixels.shape[3]), eb[tap.i, tap.j], outputs)
    return {"macs_dense": total, "macs_effectual": effectual}


class _Tap(NamedTuple):
    """A kernel position, the output rows and columns whose tap exists, and the input rows and columns it reads."""

    i: int
    j: int
    oh: Int64Array
    ow: Int64Array
    ih: Int64Array
    iw: Int64Array


class _Convolution:
    """Checked operands and geometry of a convolution."""

    def __init__(self, x: ArrayLike, w: ArrayLike, stride: Pair, padding: Pair, dilation: Pair) -> None:
        self.x, self.w = _operand(x, "x", 4), _operand(w, "w", 4)
        if self.x.shape[3] != self.w.shape[2]:
            raise MaskworkValueError(
                f"w must have shape (KH, KW, {self.x.shape[3]}, Cout) for x of shape {self.x.shape}, not {self.w.shape}"
            )
        self.stride = _pair(stride, "stride", 1)
        self.padding = _pair(padding, "padding", 0)
        self.dilation = _pair(dilation, "dilation", 1)
        size = [
            (self.x.shape[1 + d] + 2 * self.padding[d] - self.dilation[d] * (self.w.shape[d] - 1) - 1) // self.stride[d]
            + 1
            for d in range(2)
        ]
        if min(size) < 1 or 0 in self.w.shape[:2]:
            raise MaskworkValueError(
                f"w of shape {self.w.shape} must have at least one tap and fit the padded x of shape {self.x.shape}"
            )
        self.shape = (self.x.shape[0], size[0], size[1], self.w.shape[3])

    def _axis(self, d: int, index: int) -> tuple[Int64Array, Int64Array]:
        out = np.arange(self.shape[1 + d])
        position = out * self.stride[d] + index * self.dilation[d] - self.padding[d]
        exists = (position >= 0) & (position < self.x.shape[1 + d])
        return out[exists], position[exists]

    def taps(self) -> Iterator[_Tap]:
        """Every kernel position with the outputs where it falls inside x."""
        for i in range(self.w.shape[0]):
            oh, ih = self._axis(0, i)
            for j in range(self.w.shape[1]):
                ow, iw = self._axis(1, j)
                yield _Tap(i, j, oh, ow, ih, iw)


def _operand(value: ArrayLike, name: str, ndim: int) -> Int64Array:
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise MaskworkTypeError(f"{name} must be an integer array, not {array.dtype}")
    if array.ndim != ndim:
        raise MaskworkValueError(f"{name} must have {ndim} dimensions, not shape {array.shape}")
    if array.dtype == np.uint64 and array.size and int(array.max()) >= 1 << 63:
        raise MaskworkValueError(f"{name} must hold values below 2**63, not {int(array.max())}")
    return array.astype(np.int64)


def _mask(value: ArrayLike, name: str, shape: tuple[int, ...]) -> BoolArray:
    array = np.asarray(value)
    if array.dtype.kind not in "biu" or (array.dtype.kind != "b" and bool(np.any((array != 0) & (array != 1)))):
        raise MaskworkTypeError(f"{name} must be a boolean array (or integers 0 and 1), not {array.dtype}")
    if array.shape != shape:
        raise MaskworkValueError(f"{name} must have shape {shape}, not {array.shape}")
    return array.astype(np.bool_)


def _effective(operand: Int64Array, mask: ArrayLike | None, name: str, dense: bool) -> BoolArray:
    present = np.ones(operand.shape, np.bool_) if dense else operand != 0
    return present if mask is None else present & _mask(mask, name, operand.shape)


def _check_inner(a: Int64Array, b: Int64Array) -> None:
    if a.shape[1] != b.shape[0]:
        raise MaskworkValueError(f"b must have {a.shape[1]} rows for a of shape {a.shape}, not shape {b.shape}")


def _largest(array: Int64Array) -> int:
    return max(abs(int(array.min())), abs(int(array.max()))) if array.size else 0


def _check_bound(a: Int64Array, b: Int64Array, terms: int) -> int:
    bound = _largest(a) * _largest(b) * terms
    if bound >= 1 << 63:
        raise MaskworkValueError(
            f"sums must stay below 2**63: {terms} products of up to {_largest(a)} * {_largest(b)} could exceed it"
        )
    return bound


def _exact_dot(a: Int64Array, b: Int64Array) -> Int64Array:
    """Integer product; through the floating-point one, which is exact below 2**53 and much faster, where it fits."""
    if _check_bound(a, b, a.shape[1]) < 1 << 53:
        return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)
    return a @ b


def _count(a: BoolArray, b: BoolArray, wanted: BoolArray | None) -> int:
    """Triples (m, k, n) with a[m,k] and b[k,n], and wanted[m,n] if given."""
    if wanted is None:
        return int(a.sum(axis=0, dtype=np.int64) @ b.sum(axis=1, dtype=np.int64))
    return int((a.astype(np.float64) @ b.astype(np.float64))[wanted].sum())


def _pair(value: Pair, name: str, low: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, (int, np.integer)) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, (int, np.integer)) and v >= low for v in pair):
        raise MaskworkValueError(f"{name} must be an integer of at least {low} or a pair (h, w), not {value!r}")
    return int(pair[0]), int(pair[1])
