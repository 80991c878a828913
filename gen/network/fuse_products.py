"""Convolutions and matrix products of a graph as steps on the array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.network.fuse import Refused, covered, quantised_input
from maskwork.gen.network.graph import Graph, Node
from maskwork.gen.network.products import Convolution, MatrixProduct
from maskwork.gen.network.quant import Quantised, Tail, can_multiply, dequantised, fixed_point, given, tail
from maskwork.gen.network.steps import Finish, Raw, Requantise, Scale, Step
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]

_INT32 = 1 << 31

NO_POST = "the configuration has no post-processing; post = true is needed"


# ---------------------------------------------------------------------- geometry


def spatial(graph: Graph, node: Node, taps: Sequence[int]) -> dict[str, Any]:
    """Stride, dilation and padding of a convolution or pooling, by axis; ``auto_pad`` is worked out.

    Raises:
        Refused: for more than two axes.
    """
    attributes = node.attributes
    axes = len(taps)
    if axes not in (1, 2):
        raise Refused(f"it has {axes} spatial axes; 1 or 2 run on the accelerator")
    stride = tuple(attributes.get("strides", [1] * axes))
    dilation = tuple(attributes.get("dilations", [1] * axes))
    pads = list(attributes.get("pads", [0] * 2 * axes))
    auto = attributes.get("auto_pad", "NOTSET")
    padding = [(pads[i], pads[axes + i]) for i in range(axes)]
    if auto == "VALID":
        padding = [(0, 0)] * axes
    elif auto != "NOTSET":
        sizes = graph.shapes[node.inputs[0]][2:]
        for i in range(axes):
            reach = (taps[i] - 1) * dilation[i] + 1
            total = max(0, (-(-sizes[i] // stride[i]) - 1) * stride[i] + reach - sizes[i])
            less, more = total // 2, total - total // 2
            padding[i] = (less, more) if auto == "SAME_UPPER" else (more, less)
    return {"stride": stride, "dilation": dilation, "padding": tuple(padding)}


def _square(values: Sequence[Any], fill: Any) -> tuple[Any, Any]:
    """Two axes from one or two."""
    return (values[0], values[1]) if len(values) == 2 else (fill, values[0])


def _kernel(weights: Int64Array) -> Int64Array:
    """(kh, kw, cin, cout) from ONNX's (cout, cin, [kh,] kw)."""
    full = weights[:, :, None, :] if weights.ndim == 3 else weights
    return np.ascontiguousarray(full.transpose(2, 3, 1, 0))


def less_zero(tensor: Quantised, values: NDArray[Any]) -> Int64Array:
    """Q - zero_point of a constant."""
    zero = tensor.zero_point
    if tensor.axis is not None:
        shape = [1] * values.ndim
        shape[tensor.axis] = -1
        zero = zero.reshape(shape)
    return values.astype(np.int64) - zero


# ---------------------------------------------------------------------- parameters


def real(graph: Graph, name: str) -> Float64Array | None:
    """A constant's value as numbers, whether it is float or quantised."""
    value = graph.constant(name)
    if value is not None:
        return value.astype(np.float64)
    found = dequantised(graph, name)
    value = graph.constant(found.name) if found is not None else None
    if found is None or value is None:
        return None
    shape = [1] * value.ndim
    if found.axis is not None:
        shape[found.axis] = -1
    return less_zero(found, value) * found.scale.reshape(shape if found.axis is not None else ())


def normalisation(graph: Graph, node: Node) -> tuple[Float64Array, Float64Array]:
    """Factor and offset of a BatchNormalization's channels: y = x * factor + offset."""
    gamma, beta, mean, variance = (graph.constants[name].astype(np.float64) for name in node.inputs[1:5])
    factor = gamma / np.sqrt(variance + float(node.attributes.get("epsilon", 1e-5)))
    return factor, beta - mean * factor


def integers(bias: Float64Array | None, unit: Float64Array) -> Int64Array | None:
    """A bias in units of the sums.

    Raises:
        Refused: if it is beyond 32 bits.
    """
    if bias is None:
        return None
    result = np.rint(bias / unit)
    if not (np.abs(result) < _INT32).all():
        raise Refused("its bias does not fit 32 bits in units of its products")
    return result.astype(np.int64)


def finish(
    graph: Graph, node: Node, config: Config, unit: Float64Array, bias: Float64Array | None, weights: Int64Array,
    norm: bool = True,
) -> tuple[Finish, Int64Array | None, Int64Array, Tail | None, str]:  # fmt: skip
    """What becomes of a float operator's sums: requantised behind the array if everything between is known.

    Args:
        graph: the graph.
        node: the operator.
        config: the accelerator.
        unit: value of a sum of 1, (C,), positive.
        bias: as numbers, (C,), or None.
        weights: int64 (..., C).
        norm: a normalisation behind it has these channels.

    Returns:
        finish, the bias in units of the sums, the weights (with the signs of a normalisation), the way to the
        integers if it was taken, and the name of the result.

    Raises:
        Refused: if the bias does not fit.
    """
    end = tail(graph, node.outputs[0], norm=norm) if config.post else None
    if end is not None:
        own_unit, own_bias, own_weights = unit, bias, weights
        if end.norm is not None:
            factor, offset = normalisation(graph, end.norm)
            own_bias = (bias if bias is not None else 0.0) * factor + offset
            own_weights = weights * np.sign(factor).astype(np.int64)
            # a channel that the factor removes keeps its offset, in units that hold it
            own_unit = np.where(factor == 0, end.target.scale / 256, unit * np.abs(factor))
        found = fixed_point(own_unit / float(end.target.scale))
        if found is not None:
            requantise = Requantise(
                mult=found[0], shift=found[1], low=end.low, high=end.high, zero=int(end.target.zero_point),
                dtype=end.target.dtype,
            )  # fmt: skip
            return requantise, integers(own_bias, own_unit), own_weights, end, end.target.name
    return Scale(scale=unit, bias=np.zeros_like(unit) if bias is None else bias), None, weights, None, node.outputs[0]


def _channels(values: Any, count: int) -> Float64Array:
    return np.broadcast_to(np.asarray(values, dtype=np.float64).reshape(-1), (count,)).copy()


# ---------------------------------------------------------------------- convolutions


def conv(graph: Graph, node: Node, config: Config) -> list[Step]:
    """Conv and ConvTranspose between DequantizeLinear and QuantizeLinear (or float results)."""
    x = quantised_input(graph, node, 0)
    w = dequantised(graph, node.inputs[1])
    values = graph.constant(w.name) if w is not None else None
    if w is None or values is None or not can_multiply(w):
        raise Refused("its weights are not constant int8 or uint8 behind DequantizeLinear")
    transposed = node.op == "ConvTranspose"
    groups = int(node.attributes.get("group", 1))
    if w.axis not in (None, 1 if transposed else 0):
        raise Refused("its weights have a scale for each input channel")
    if transposed and w.axis is not None and groups > 1:
        raise Refused("its weights have scales for each channel of a group")
    weights = less_zero(w, values)
    if transposed:  # (cin, cout / groups, ...) of every group becomes (cout, cin / groups, ...), taps reversed
        cin, each = weights.shape[:2]
        split = weights.reshape(groups, cin // groups, each, *weights.shape[2:])
        weights = np.swapaxes(split, 1, 2).reshape(groups * each, cin // groups, *weights.shape[2:])
        weights = np.flip(weights, axis=tuple(range(2, weights.ndim)))
    bias = real(graph, node.input(2)) if node.input(2) else None
    if node.input(2) and bias is None:
        raise Refused("its bias is not constant")
    cout = weights.shape[0]
    unit = _channels(x.scale * w.scale, cout)
    ending, whole, kernel, end, output = finish(graph, node, config, unit, bias, _kernel(weights))
    return [_convolution(graph, node, x, kernel, groups, ending, whole, output, covered(node, end))]


def _convolution(
    graph: Graph, node: Node, x: Quantised, kernel: Int64Array, groups: int, ending: Finish, bias: Int64Array | None,
    output: str, nodes: tuple[str, ...],
) -> Convolution:  # fmt: skip
    shape = graph.shapes[node.inputs[0]] if node.op != "QLinearConv" else graph.shapes[x.name]
    axes = len(shape) - 2
    taps = kernel.shape[:2] if axes == 2 else kernel.shape[1:2]
    how = spatial(graph, node, taps)
    insert = (1,) * axes
    if node.op == "ConvTranspose":
        insert, how = how["stride"], _transposed(graph, node, how, taps)
    n, c, *sizes = shape
    return Convolution(
        name=node.name, nodes=nodes, operation=node.op, inputs=x.names, outputs=(output,), x=x, bias=bias,
        finish=ending, kernel=kernel, groups=groups, stride=_square(how["stride"], 1),
        dilation=_square(how["dilation"], 1), padding=_square(how["padding"], (0, 0)), insert=_square(insert, 1),
        flat=axes == 1, x_shape=(n, *_square(sizes, 1), c),
    )  # fmt: skip


def _transposed(graph: Graph, node: Node, how: dict[str, Any], taps: Sequence[int]) -> dict[str, Any]:
    """The convolution over inserted zeros that a transposed one is."""
    sizes, outputs = graph.shapes[node.inputs[0]][2:], graph.shapes[node.outputs[0]][2:]
    padding = []
    extra = node.attributes.get("output_padding", [0] * len(taps))
    auto = node.attributes.get("auto_pad", "NOTSET")
    for i, count in enumerate(taps):
        reach = (count - 1) * how["dilation"][i] + 1
        before = how["padding"][i][0]
        if auto in ("SAME_UPPER", "SAME_LOWER") or "output_shape" in node.attributes:
            total = how["stride"][i] * (sizes[i] - 1) + extra[i] + reach - outputs[i]
            before = total // 2 if auto == "SAME_UPPER" else total - total // 2
        first = reach - 1 - before
        spread = (sizes[i] - 1) * how["stride"][i] + 1
        padding.append((first, outputs[i] + reach - 1 - spread - first))
    return {"stride": (1,) * len(taps), "dilation": how["dilation"], "padding": tuple(padding)}


def qlinear_conv(graph: Graph, node: Node, config: Config) -> list[Step]:
    """QLinearConv."""
    x = given(graph, node.inputs[0], node.inputs[1], node.inputs[2])
    w = given(graph, node.inputs[3], node.inputs[4], node.inputs[5])
    values = graph.constant(node.inputs[3])
    y = given(graph, node.outputs[0], node.inputs[6], node.inputs[7])
    if x is None or w is None or y is None or values is None or not x.per_tensor or not y.per_tensor:
        raise Refused("its weights, scales or zero points are not constant, or its activations' are per channel")
    if not all(map(can_multiply, (x, w, y))):
        raise Refused("its types are not int8 or uint8")
    bias = graph.constant(node.input(8)) if node.input(8) else None
    if node.input(8) and bias is None:
        raise Refused("its bias is not constant")
    cout = values.shape[0]
    w = replace(w, axis=None if w.axis is None else 0)
    ending = _requantised(config, _channels(x.scale * w.scale / y.scale, cout), y)
    kernel = _kernel(less_zero(w, values))
    whole = None if bias is None else bias.astype(np.int64)
    groups = int(node.attributes.get("group", 1))
    return [_convolution(graph, node, x, kernel, groups, ending, whole, node.outputs[0], covered(node))]


def _requantised(config: Config, ratio: Float64Array, y: Quantised) -> Requantise:
    found = fixed_point(ratio)
    if found is None or not config.post:
        raise Refused(
            "its scales are too far apart"
            if found is None
            else "the configuration has no post-processing; post = true is needed"
        )
    low, high = y.limits
    return Requantise(mult=found[0], shift=found[1], low=low, high=high, zero=int(y.zero_point), dtype=y.dtype)


def _zero(graph: Graph, name: str, zero: str, axis: int | None = None) -> Quantised:
    """A tensor of an integer operator: a zero point, perhaps one that DynamicQuantizeLinear finds, and no scale."""
    dtype = graph.dtypes.get(name)
    value = graph.constant(zero) if zero else np.zeros((), dtype=np.int64)
    if dtype is None:
        raise Refused("the type of an operand is not known")
    if value is None:
        if int(np.prod(graph.shapes.get(zero, (2,)))) != 1:
            raise Refused("its zero points are computed, for each row")
        tensor = Quantised(name, dtype, np.ones(()), np.zeros((), dtype=np.int64), zero_name=zero)
    else:
        value = np.asarray(value).astype(np.int64).reshape(-1)
        if len(value) > 1 and axis is None:
            raise Refused("its activations have zero points for each row")
        one = len(value) == 1
        tensor = Quantised(name, dtype, np.ones(()), value.reshape(()) if one else value, None if one else axis)
    if not can_multiply(tensor):
        raise Refused("its types are not int8 or uint8")
    return tensor


def conv_integer(graph: Graph, node: Node, config: Config) -> list[Step]:
    """ConvInteger: sums as they are."""
    x, w = _zero(graph, node.inputs[0], node.input(2)), _zero(graph, node.inputs[1], node.input(3), 0)
    values = graph.constant(node.inputs[1])
    if values is None or w.zero_name:
        raise Refused("its weights are not constant")
    kernel = _kernel(less_zero(w, values))
    groups = int(node.attributes.get("group", 1))
    return [_convolution(graph, node, x, kernel, groups, Raw(), None, node.outputs[0], covered(node))]


# ---------------------------------------------------------------------- matrix products


def _product(
    node: Node, x: Quantised, b: Int64Array | Quantised, shapes: tuple[tuple[int, ...], tuple[int, ...]],
    ending: Finish, bias: Int64Array | None, output: str, nodes: tuple[str, ...], y_shape: tuple[int, ...],
    swap_x: bool = False, swap_b: bool = False,
) -> MatrixProduct:  # fmt: skip
    inputs = x.names if isinstance(b, np.ndarray) else (*x.names, *b.names)
    return MatrixProduct(
        name=node.name, nodes=nodes, operation=node.op, inputs=inputs, outputs=(output,), x=x, bias=bias,
        finish=ending, b=b, x_shape=shapes[0], b_shape=shapes[1], y_shape=y_shape, swap_x=swap_x, swap_b=swap_b,
    )  # fmt: skip


def _right(graph: Graph, w: Quantised) -> tuple[Int64Array | Quantised, tuple[int, ...]]:
    """The right operand: its values if they are known and one matrix, and its shape."""
    shape = graph.shapes[w.name]
    values = graph.constant(w.name) if not w.zero_name else None
    if values is not None and int(np.prod(shape[:-2], dtype=np.int64)) == 1:
        matrix = less_zero(w, values).reshape(shape[-2:])
        return matrix, tuple(shape[-2:])
    if not w.per_tensor:
        raise Refused("its second operand is computed, or a stack of matrices, and quantised per channel")
    return w, tuple(shape)


def _two_axes(*shapes: tuple[int, ...]) -> None:
    if any(len(shape) < 2 for shape in shapes):
        raise Refused("an operand is a vector")


def matmul(graph: Graph, node: Node, config: Config) -> list[Step]:
    """MatMul and Gemm between DequantizeLinear and QuantizeLinear (or float results)."""
    x = quantised_input(graph, node, 0)
    w = dequantised(graph, node.inputs[1])
    if not can_multiply(w) or w is None:
        raise Refused("its second operand is not int8 or uint8 behind DequantizeLinear")
    alpha, beta = float(node.attributes.get("alpha", 1.0)), float(node.attributes.get("beta", 1.0))
    swap_x, swap_b = bool(node.attributes.get("transA", 0)), bool(node.attributes.get("transB", 0))
    if alpha <= 0:
        raise Refused("alpha is not positive")
    x_shape = graph.shapes[x.name]
    b, b_shape = _right(graph, w)
    _two_axes(x_shape, b_shape)
    if w.axis is not None and w.axis - (len(graph.shapes[w.name]) - 2) != (0 if swap_b else 1):
        raise Refused("its weights have a scale for each row")
    if isinstance(b, np.ndarray) and swap_b:
        b, b_shape, swap_b = np.ascontiguousarray(b.T), b_shape[::-1], False
    columns = b_shape[-2] if swap_b else b_shape[-1]
    unit = _channels(alpha * x.scale * w.scale, columns)
    bias = real(graph, node.input(2)) if node.input(2) else None
    if node.input(2) and (bias is None or (bias.size > 1 and bias.size != columns) or
                          (bias.ndim == 2 and bias.shape[0] > 1)):  # fmt: skip
        raise Refused("its third operand is not constant, or no row")
    bias = None if bias is None else _channels(beta * bias, columns)
    known = b if isinstance(b, np.ndarray) else np.zeros((0, columns), dtype=np.int64)
    norm = isinstance(b, np.ndarray) and len(graph.shapes[node.outputs[0]]) == 2
    ending, whole, signed, end, output = finish(graph, node, config, unit, bias, known, norm)
    right = signed if isinstance(b, np.ndarray) else b
    return [_product(node, x, right, (x_shape, b_shape), ending, whole, output, covered(node, end),
                     graph.shapes[node.outputs[0]], swap_x=swap_x, swap_b=swap_b)]  # fmt: skip


def qlinear_matmul(graph: Graph, node: Node, config: Config) -> list[Step]:
    """QLinearMatMul."""
    x = given(graph, node.inputs[0], node.inputs[1], node.inputs[2])
    w = given(graph, node.inputs[3], node.inputs[4], node.inputs[5])
    y = given(graph, node.outputs[0], node.inputs[6], node.inputs[7])
    if x is None or w is None or y is None or not x.per_tensor or not y.per_tensor:
        raise Refused("its scales or zero points are not constant, or those of its activations are for each row")
    if not all(map(can_multiply, (x, w, y))):
        raise Refused("its types are not int8 or uint8")
    x_shape, rank = graph.shapes[x.name], len(graph.shapes[w.name])
    b, b_shape = _right(graph, replace(w, axis=None if w.axis is None else rank - 1))
    _two_axes(x_shape, b_shape)
    ending = _requantised(config, _channels(x.scale * w.scale / y.scale, b_shape[-1]), y)
    y_shape = graph.shapes[node.outputs[0]]
    return [_product(node, x, b, (x_shape, b_shape), ending, None, node.outputs[0], covered(node), y_shape)]


def matmul_integer(graph: Graph, node: Node, config: Config) -> list[Step]:
    """MatMulInteger: sums as they are."""
    x = _zero(graph, node.inputs[0], node.input(2))
    w = _zero(graph, node.inputs[1], node.input(3), len(graph.shapes[node.inputs[1]]) - 1)
    x_shape = graph.shapes[x.name]
    b, b_shape = _right(graph, w)
    _two_axes(x_shape, b_shape)
    y_shape = graph.shapes[node.outputs[0]]
    return [_product(node, x, b, (x_shape, b_shape), Raw(), None, node.outputs[0], covered(node), y_shape)]
