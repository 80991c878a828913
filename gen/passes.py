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
from typing import Any

import numpy as np
from maskwork.gen.bench_masks import LayerMasks
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkValueError
from maskwork.gen.mask import BoolArray
from maskwork.gen.workload import PASSES, Layer
from maskwork.gen.works import ConvWork, select
from maskwork.gen.works_wgrad import WeightGradWork


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


def _weights(layer: Layer, mask: BoolArray | None, groups: int, outputs: slice) -> BoolArray | None:
    """Mask of some groups' weights, (kh, kw, their inputs, their outputs): block-diagonal if they are several."""
    if groups == 1:
        return select(mask, outputs)
    kh, kw, inner, _ = layer.weight_shape
    columns = _size(outputs) // groups
    result = np.zeros((kh, kw, groups * inner, groups * columns), dtype=np.bool_)
    for g in range(groups):
        own = slice(outputs.start + g * columns, outputs.start + (g + 1) * columns)
        block = True if mask is None else mask[..., own]
        result[:, :, g * inner : (g + 1) * inner, g * columns : (g + 1) * columns] = block
    return result


def _forward(config: Config, layer: Layer, masks: LayerMasks, post: bool) -> Iterator[ConvWork]:
    kh, kw, inner, _ = layer.weight_shape
    pad, dilation = (layer.padding, layer.padding), (layer.dilation, layer.dilation)
    merged = merged_groups(config, layer, inner, layer.out_channels // layer.groups)
    for groups, inputs, outputs in _group_slices(layer, merged):
        yield ConvWork(
            (*layer.input_shape[:3], _size(inputs)), (kh, kw, _size(inputs), _size(outputs)),
            select(masks.input, inputs), _weights(layer, masks.weight, groups, outputs),
            select(masks.output_mask, outputs), layer.stride, (pad, pad), dilation, groups, post,
        )  # fmt: skip


OPERANDS = {
    "forward": ("input", "weight", "output_mask"),
    "input_grad": ("output_grad", "weight", "input_mask"),
    "weight_grad": ("input", "output_grad", "weight"),
}
"""The tensors whose masks are A, B and C of each pass."""


@dataclass(frozen=True)
class _Phase:
    """The pixels stride * j + phase of one axis: the convolution of the output gradient that gives their gradient."""

    pixels: slice
    taps: list[int]
    rows: slice
    pads: tuple[int, int]
    dilation: int


def phases(size: int, outputs: int, taps: int, stride: int, padding: int, dilation: int) -> list[_Phase]:
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
            found.append(_Phase(slice(phase, size, stride), own, rows, pads, step))
    return found


def _input_grad(config: Config, layer: Layer, masks: LayerMasks, post: bool) -> Iterator[ConvWork]:
    parameters = layer.stride, layer.padding, layer.dilation
    ys = phases(layer.in_height, layer.out_height, layer.kernel_height, *parameters)
    xs = phases(layer.in_width, layer.out_width, layer.kernel_width, *parameters)
    merged = merged_groups(config, layer, layer.out_channels // layer.groups, layer.in_channels // layer.groups)
    for groups, inputs, outputs in _group_slices(layer, merged):
        weights = _weights(layer, masks.weight, groups, outputs)
        if weights is not None:
            weights = weights.transpose(0, 1, 3, 2)
        grad, wanted = select(masks.output_grad, outputs), select(masks.input_mask, inputs)
        for y, x in itertools.product(ys, xs):
            yield ConvWork(
                (layer.batch, _size(y.rows), _size(x.rows), _size(outputs)),
                (len(y.taps), len(x.taps), _size(outputs), _size(inputs)),
                None if grad is None else grad[:, y.rows, x.rows],
                None if weights is None else weights[np.ix_(y.taps, x.taps)],
                None if wanted is None else wanted[:, y.pixels, x.pixels],
                1, (y.pads, x.pads), (y.dilation, x.dilation), groups, post,
            )  # fmt: skip


def _weight_grad(config: Config, layer: Layer, masks: LayerMasks, post: bool) -> Iterator[WeightGradWork]:
    for _groups, inputs, outputs in _group_slices(layer, 1):
        work = WeightGradWork(
            (*layer.input_shape[:3], _size(inputs)), (*layer.output_shape[:3], _size(outputs)),
            (layer.kernel_height, layer.kernel_width), select(masks.input, inputs),
            select(masks.output_grad, outputs), select(masks.weight, outputs), layer.stride, layer.padding,
            layer.dilation, post,
        )  # fmt: skip
        yield work.ways(config)[0]


_MAKERS: dict[str, Callable[[Config, Layer, LayerMasks, bool], Iterator[Any]]] = {
    "forward": _forward, "input_grad": _input_grad, "weight_grad": _weight_grad,
}  # fmt: skip


def works(config: Config, layer: Layer, which: str, masks: LayerMasks, *, post: bool = False) -> list[Any]:
    """The products (:class:`Work`) of one pass of a layer, which run one after the other.

    Args:
        config: the accelerator; says only which groups are merged, and which weight gradients have their operands
            exchanged.
        layer: shapes.
        which: "forward", "input_grad" or "weight_grad".
        masks: of the layer's tensors.
        post: results are requantised to 8 bits.

    Raises:
        MaskworkValueError: for an unknown pass.
    """
    if which not in _MAKERS:
        raise MaskworkValueError(f"pass must be one of {', '.join(PASSES)}, not {which!r}")
    return list(_MAKERS[which](config, layer, masks, post))
