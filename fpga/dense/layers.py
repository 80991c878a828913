"""What a workload's layers take on the dense array: each pass as products of matrices."""

from __future__ import annotations

import itertools

from maskwork.fpga.dense.config import DenseConfig
from maskwork.fpga.dense.cycles import product_cycles
from maskwork.gen.errors import MaskworkValueError
from maskwork.gen.passes import phases
from maskwork.gen.workload import PASSES, Layer


def layer_products(layer: Layer, which: str) -> list[tuple[int, int, int]]:
    """Sizes (m, k, n) of the products of one group of a pass: (m, k) x (k, n).

    forward: pixels x (taps, input channels) x output channels. input_grad: one for each phase of the input's pixels,
    with the taps that meet them, as the sparse array does it. weight_grad: (taps, input channels) x pixels x output
    channels.

    Raises:
        MaskworkValueError: for an unknown pass.
    """
    taps = layer.kernel_height * layer.kernel_width
    inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    pixels = layer.batch * layer.out_height * layer.out_width
    if which == "forward":
        return [(pixels, taps * inputs, outputs)]
    if which == "weight_grad":
        return [(taps * inputs, pixels, outputs)]
    if which != "input_grad":
        raise MaskworkValueError(f"pass must be one of {', '.join(PASSES)}, not {which!r}")
    parameters = layer.stride, layer.padding, layer.dilation
    ys = phases(layer.in_height, layer.out_height, layer.kernel_height, *parameters)
    xs = phases(layer.in_width, layer.out_width, layer.kernel_width, *parameters)
    found = []
    for y, x in itertools.product(ys, xs):
        rows = len(range(*y.pixels.indices(layer.in_height)))
        columns = len(range(*x.pixels.indices(layer.in_width)))
        found.append((layer.batch * rows * columns, len(y.taps) * len(x.taps) * outputs, inputs))
    return found


def layer_cycles(config: DenseConfig, layer: Layer, which: str) -> int:
    """Cycles of a pass of a layer: its products one after the other, groups too. Operands are in place in time."""
    each = (product_cycles(config.rows, config.columns, *sizes) for sizes in layer_products(layer, which))
    return layer.groups * sum(each)
