"""The three passes of a layer as products on the array: what is streamed, what is resident, what is wanted.

forward      a convolution: A = input, B = weights, C = output mask
input_grad   a convolution of the output gradient with the rotated, transposed weights: A = output gradient,
             B = weights, C = input mask. With stride s one convolution of stride 1 for each of the s * s phases of the
             input's pixels, with the taps that meet them: no inserted zero is ever streamed.
weight_grad  the correlation of the input with the output gradient: A = input, B = output gradient, C = weight mask.
             With stride 1 A and B are exchanged where that is expected to take fewer cycles.

Groups are products of their own; small ones are merged (:func:`merged_groups`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from maskwork.gen.bench_masks import LayerMasks
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkValueError
from maskwork.gen.workload import PASSES, Layer
from maskwork.gen.works import ConvWork, select
from maskwork.gen.works_wgrad import WeightGradWork
from numpy.typing import NDArray


def merged_groups(config: Config, layer: Layer, inner: int, columns: int) -> int:
    """Groups that run as one product with block-diagonal weights.

    The array skips the zeros between the blocks, so merging costs no multiplies and saves a program's start, loads
    and drains for each group merged. Only whole groups within one N tile and one K tile are merged, and only where
    masks of B skip.

    Args:
        config: the accelerator.
        layer: the layer.
        inner: streamed channels of a group.
        columns: columns of B of a group.
    """
    if "b" not in config.skip or layer.groups == 1:
        return 1
    taps = layer.kernel_height * layer.kernel_width
    most = min(layer.groups, config.tile_columns // columns, config.k_depth // (taps * inner))
    return max(1, most)


def _group_slices(layer: Layer, merged: int) -> Iterator[tuple[int, slice, slice]]:
    """(groups, input channels, output channels) of each product."""
    inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    for first in range(0, layer.groups, merged):
        end = min(first + merged, layer.groups)
        yield end - first, slice(first * inputs, end * inputs), slice(first * outputs, end * outputs)


def _size(own: slice) -> int:
    return own.stop - own.start


def _block_diagonal(layer: Layer, weights: NDArray[Any] | None, groups: int, outputs: slice) -> NDArray[Any] | None:
    """Some groups' weights (or their mask), (kh, kw, their inputs, their outputs): block-diagonal if they are
    several.
    """
    if groups == 1:
        return select(weights, outputs)
    kh, kw, inner, _ = layer.weight_shape
    columns = _size(outputs) // groups
    dtype = np.bool_ if weights is None else weights.dtype
    result = np.zeros((kh, kw, groups * inner, groups * columns), dtype=dtype)
    for g in range(groups):
        own = slice(outputs.start + g * columns, outputs.start + (g + 1) * columns)
        block = True if weights is None else weights[..., own]
        result[:, :, g * inner : (g + 1) * inner, g * columns : (g + 1) * columns] = block
    return result


def _put(target: NDArray[Any], values: NDArray[Any], index: Any) -> None:
    target[index] = values


Cut = Callable[[Any], Any]
"""Takes its part of a tensor or of a mask; None, which is no mask, stays None."""


@dataclass(frozen=True)
class Piece:
    """One product of a pass.

    Members:
        a, b, c: cut the operands, and the results wanted, from the tensors of :data:`OPERANDS`.
        place: puts its results (its second argument) into the pass's result (its first).
        make: the product (:class:`~maskwork.gen.works.Work`) for masks of A, B and C; requantised or not.
    """

    a: Cut
    b: Cut
    c: Cut
    place: Callable[[NDArray[Any], NDArray[Any]], None]
    make: Callable[[Any, Any, Any, bool], Any]


def _forward(config: Config, layer: Layer) -> Iterator[Piece]:
    kh, kw, inner, _ = layer.weight_shape
    pad, dilation = (layer.padding, layer.padding), (layer.dilation, layer.dilation)
    merged = merged_groups(config, layer, inner, layer.out_channels // layer.groups)
    for groups, inputs, outputs in _group_slices(layer, merged):

        def make(a: Any, b: Any, c: Any, post: bool, groups: int = groups, inputs: slice = inputs,
                 outputs: slice = outputs) -> ConvWork:  # fmt: skip
            return ConvWork(
                (*layer.input_shape[:3], _size(inputs)), (kh, kw, _size(inputs), _size(outputs)), a, b, c,
                layer.stride, (pad, pad), dilation, groups, post,
            )  # fmt: skip

        yield Piece(
            a=partial(select, own=inputs), b=partial(_block_diagonal, layer, groups=groups, outputs=outputs),
            c=partial(select, own=outputs), place=partial(_put, index=(..., outputs)), make=make,
        )  # fmt: skip


OPERANDS = {
    "forward": ("input", "weight", "output_mask"),
    "input_grad": ("output_grad", "weight", "input_mask"),
    "weight_grad": ("input", "output_grad", "weight"),
}
"""The tensors whose masks are A, B and C of each pass."""


@dataclass(frozen=True)
class Phase:
    """The pixels stride * j + phase of one axis: the convolution of the output gradient that gives their gradient."""

    pixels: slice
    taps: list[int]
    rows: slice
    pads: tuple[int, int]
    dilation: int


def phases(size: int, outputs: int, taps: int, stride: int, padding: int, dilation: int) -> list[Phase]:
    """The phases of one axis that meet any tap; pixels of the others have no gradient.

    Pixel y = stride * j + phase meets output (y + padding - tap * dilation) / stride where that is whole: output
    j + (phase + padding - tap * dilation) / stride. Taps are listed with rising outputs, which is falling taps.
    """
    found = []
    for phase in range(min(stride, size)):
        own = [tap for tap in reversed(range(taps)) if (phase + padding - tap * dilation) % stride == 0]
        number = len(range(phase, size, stride))
        if not own:
            continue
        offsets = [(phase + padding - tap * dilation) // stride for tap in own]
        low, high = offsets[0], number - 1 + offsets[-1]
        rows = slice(max(0, low), min(outputs - 1, high) + 1)
        if rows.start < rows.stop:
            step = offsets[1] - offsets[0] if len(own) > 1 else 1
            pads = (max(0, -low), max(0, high - outputs + 1))
            found.append(Phase(slice(phase, size, stride), own, rows, pads, step))
    return found


def _input_grad(config: Config, layer: Layer) -> Iterator[Piece]:
    parameters = layer.stride, layer.padding, layer.dilation
    ys = phases(layer.in_height, layer.out_height, layer.kernel_height, *parameters)
    xs = phases(layer.in_width, layer.out_width, layer.kernel_width, *parameters)
    merged = merged_groups(config, layer, layer.out_channels // layer.groups, layer.in_channels // layer.groups)
    for groups, inputs, outputs in _group_slices(layer, merged):
        for y, x in itertools.product(ys, xs):
            yield _phase_piece(layer, groups, inputs, outputs, y, x)


def _phase_piece(layer: Layer, groups: int, inputs: slice, outputs: slice, y: Phase, x: Phase) -> Piece:
    """The gradient of the input's pixels of two phases."""

    def weights(values: Any) -> Any:
        own = _block_diagonal(layer, values, groups, outputs)
        return None if own is None else own[np.ix_(y.taps, x.taps)].transpose(0, 1, 3, 2)

    def pixels(values: Any) -> Any:
        return None if values is None else values[:, y.pixels, x.pixels, inputs]

    def make(a: Any, b: Any, c: Any, post: bool) -> ConvWork:
        return ConvWork(
            (layer.batch, _size(y.rows), _size(x.rows), _size(outputs)),
            (len(y.taps), len(x.taps), _size(outputs), _size(inputs)), a, b, c, 1, (y.pads, x.pads),
            (y.dilation, x.dilation), groups, post,
        )  # fmt: skip

    return Piece(
        a=lambda values: None if values is None else values[:, y.rows, x.rows, outputs], b=weights, c=pixels,
        place=partial(_put, index=(slice(None), y.pixels, x.pixels, inputs)), make=make,
    )  # fmt: skip


def _weight_grad(config: Config, layer: Layer) -> Iterator[Piece]:
    kh, kw, inner, _ = layer.weight_shape
    columns = layer.out_channels // layer.groups
    # several groups as one product: the mask of C leaves only the blocks on its diagonal
    merged = min(layer.groups, max(1, config.tile_columns // columns)) if "c" in config.skip else 1
    for groups, inputs, outputs in _group_slices(layer, merged):

        def make(a: Any, b: Any, c: Any, post: bool, groups: int = groups, inputs: slice = inputs,
                 outputs: slice = outputs) -> Any:  # fmt: skip
            work = WeightGradWork(
                (*layer.input_shape[:3], _size(inputs)), (*layer.output_shape[:3], _size(outputs)), (kh, kw), a, b, c,
                layer.stride, layer.padding, layer.dilation, post, groups=groups,
            )  # fmt: skip
            return work.ways(config)[0]

        def place(target: NDArray[Any], values: NDArray[Any], groups: int = groups, outputs: slice = outputs) -> None:
            for g in range(groups):
                own = slice(outputs.start + g * columns, outputs.start + (g + 1) * columns)
                target[..., own] = values[:, :, g * inner : (g + 1) * inner, g * columns : (g + 1) * columns]

        yield Piece(
            a=partial(select, own=inputs), b=partial(select, own=outputs),
            c=partial(_block_diagonal, layer, groups=groups, outputs=outputs), place=place, make=make,
        )  # fmt: skip


_MAKERS: dict[str, Callable[[Config, Layer], Iterator[Piece]]] = {
    "forward": _forward, "input_grad": _input_grad, "weight_grad": _weight_grad,
}  # fmt: skip


def pieces(config: Config, layer: Layer, which: str) -> list[Piece]:
    """The products of one pass of a layer, which run one after the other; together they give its whole result, but
    for pixels of the input gradient that no tap meets, which are 0.

    Args:
        config: the accelerator; says only which groups are merged, and which weight gradients have their operands
            exchanged.
        layer: shapes.
        which: "forward", "input_grad" or "weight_grad".

    Raises:
        MaskworkValueError: for an unknown pass.
    """
    if which not in _MAKERS:
        raise MaskworkValueError(f"pass must be one of {', '.join(PASSES)}, not {which!r}")
    return list(_MAKERS[which](config, layer))


def works(config: Config, layer: Layer, which: str, masks: LayerMasks, *, post: bool = False) -> list[Any]:
    """The products (:class:`~maskwork.gen.works.Work`) of one pass of a layer, for its masks.

    Args:
        config: the accelerator.
        layer: shapes.
        which: "forward", "input_grad" or "weight_grad".
        masks: of the layer's tensors.
        post: results are requantised to 8 bits.

    Raises:
        MaskworkValueError: for an unknown pass.
    """
    found = pieces(config, layer, which)
    a, b, c = (getattr(masks, tensor) for tensor in OPERANDS[which])
    return [piece.make(piece.a(a), piece.b(b), piece.c(c), post) for piece in found]
