"""The demonstration's network: its layers, their exact integer arithmetic, its images and its file.

Tensors are NHWC. Hidden activations are uint8 with zero point 0, so a zero stays a zero. A
requantised layer computes, per output channel and in exact integer arithmetic::

    q = clamp(round_half_even((acc + bias) * mult / 2**shift), lo, hi)

The last layer (``fc2``) has no requantisation: its int32 ``acc + bias`` are the logits. Its weights
therefore share one scale over all output channels, so that the logits compare with one another.

Importing this module needs only NumPy; `load_images` also needs scikit-learn, and the file needs onnx.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

IntArray: TypeAlias = NDArray[np.int64]
ScalarT = TypeVar("ScalarT", bound=np.generic)

NETWORK_FILE = Path(__file__).resolve().parent / "data" / "digits_cnn.onnx"

ACTIVATION_MAX = 255
MULT_BITS = 24
SHIFT_MAX = 47
OPSET = 19
"""Of the network's file."""


@dataclass(frozen=True)
class LayerSpec:
    """One layer of the network.

    ``in_shape`` and ``out_shape`` leave out the batch: ``(h, w, c)`` for ``conv`` and ``(n,)`` for
    ``fc``. An ``fc`` layer has stride 1, padding 0 and dilation 1. ``lo`` and ``hi`` are the clamp
    bounds of the requantised output, or None for a layer with raw int32 outputs.
    """

    name: str
    kind: Literal["conv", "fc"]
    stride: int
    padding: int
    dilation: int
    relu: bool
    lo: int | None
    hi: int | None
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]


def _conv(name: str, in_shape: tuple[int, int, int], out_shape: tuple[int, int, int], stride: int) -> LayerSpec:
    return LayerSpec(name, "conv", stride, 1, 1, True, 0, ACTIVATION_MAX, in_shape, out_shape)


KERNEL = 3
NETWORK: tuple[LayerSpec, ...] = (
    _conv("conv1", (8, 8, 1), (8, 8, 16), stride=1),
    _conv("conv2", (8, 8, 16), (4, 4, 32), stride=2),
    _conv("conv3", (4, 4, 32), (4, 4, 32), stride=1),
    LayerSpec("fc1", "fc", 1, 0, 1, True, 0, ACTIVATION_MAX, (512,), (64,)),
    LayerSpec("fc2", "fc", 1, 0, 1, False, None, None, (64,), (10,)),
)


@dataclass(frozen=True)
class QuantLayer:
    """Integer parameters of one layer.

    Attributes:
        spec: the layer's shape and clamp bounds.
        weight: int8 ``(kh, kw, cin, cout)`` for ``conv``, ``(in, out)`` for ``fc``; -127..127.
        bias: int32 ``(cout,)``, added to the accumulator.
        mult: uint32 ``(cout,)`` below 2**24, or None for raw int32 outputs.
        shift: uint8 ``(cout,)`` in 0..47, or None for raw int32 outputs.
    """

    spec: LayerSpec
    weight: NDArray[np.int8]
    bias: NDArray[np.int32]
    mult: NDArray[np.uint32] | None
    shift: NDArray[np.uint8] | None


# Images


def load_images() -> tuple[NDArray[np.uint8], IntArray]:
    """Return the digits as uint8 ``(1797, 8, 8, 1)`` pixels 0..16 and int64 ``(1797,)`` labels."""
    from sklearn.datasets import load_digits

    pixels, labels = cast("tuple[NDArray[np.float64], IntArray]", load_digits(return_X_y=True))
    return pixels.reshape(-1, 8, 8, 1).astype(np.uint8), labels.astype(np.int64)


# Arithmetic


def im2col(x: NDArray[ScalarT], kernel: tuple[int, int], spec: LayerSpec) -> NDArray[ScalarT]:
    """Gather convolution windows, zero-padded.

    Args:
        x: ``(n, h, w, c)``, any dtype.
        kernel: ``(kh, kw)``.
        spec: gives the stride, padding, dilation and output shape.

    Returns:
        ``(n * oh * ow, kh * kw * c)`` of the same dtype, columns in (kh, kw, c) order.
    """
    n, _, _, c = x.shape
    oh, ow, _ = spec.out_shape
    p = spec.padding
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    cols = np.empty((n, oh, ow, *kernel, c), dtype=x.dtype)
    for i, j in np.ndindex(*kernel):
        cols[:, :, :, i, j, :] = padded[:, taps(i, oh, spec), taps(j, ow, spec), :]
    return cols.reshape(n * oh * ow, -1)


def taps(position: int, count: int, spec: LayerSpec) -> slice:
    """Return the padded input rows (or columns) which one row (or column) of the kernel meets.

    Args:
        position: the kernel's row or column, from 0.
        count: rows or columns of the output.
        spec: gives the stride and dilation.

    Returns:
        A slice of ``count`` padded input rows or columns, in order.
    """
    start = position * spec.dilation
    return slice(start, start + (count - 1) * spec.stride + 1, spec.stride)


def left_matrix(x: NDArray[ScalarT], spec: LayerSpec) -> NDArray[ScalarT]:
    """Return the left matrix of the layer's product: windows for conv, flat (H, W, C) rows for fc.

    Args:
        x: the layer's input, ``(n, h, w, c)`` for ``conv``, ``(n, ...)`` for ``fc``; any dtype.
        spec: the layer.

    Returns:
        ``(n * oh * ow, 9 * c)`` for ``conv`` (as `im2col`), ``(n, in)`` for ``fc``; of the same dtype.
    """
    return im2col(x, (KERNEL, KERNEL), spec) if spec.kind == "conv" else x.reshape(len(x), -1)


def requantise(
    total: IntArray, mult: NDArray[np.uint32], shift: NDArray[np.uint8], lo: int, hi: int
) -> NDArray[np.uint8]:
    """Scale accumulators to uint8: ``clamp(round_half_even(total * mult / 2**shift), lo, hi)``.

    Exact: a 33-bit total by a 24-bit multiplier fits int64.

    Args:
        total: int64 ``(..., cout)``, accumulator plus bias, magnitude at most 2**32.
        mult: uint32 ``(cout,)`` below 2**24.
        shift: uint8 ``(cout,)`` in 0..47.
        lo: lowest result, at least 0.
        hi: highest result, at most 255.
    """
    product = total * mult.astype(np.int64)
    places = shift.astype(np.int64)
    unit = np.int64(1) << places
    floor = product >> places
    twice = 2 * (product - floor * unit)
    up = (twice > unit) | ((twice == unit) & (floor & 1 == 1))
    return np.clip(floor + up, lo, hi).astype(np.uint8)


def fixed_point(ratio: float) -> tuple[int, int]:
    """Return ``(mult, shift)`` with ``mult / 2**shift`` nearest to ``ratio``.

    ``mult`` lies in [2**23, 2**24) unless the shift is held at an end of 0..47.

    Raises:
        ValueError: if ``ratio`` is not positive, or rounds to 0, or needs 2**24 or more.
    """
    if ratio <= 0:
        raise ValueError(f"ratio {ratio} is not positive")
    shift = MULT_BITS - math.frexp(ratio)[1]
    if round(math.ldexp(ratio, shift)) >> MULT_BITS:
        shift -= 1
    shift = min(max(shift, 0), SHIFT_MAX)
    mult = round(math.ldexp(ratio, shift))
    if not 0 < mult < 1 << MULT_BITS:
        raise ValueError(f"ratio {ratio} is out of the range of a {MULT_BITS}-bit multiplier and shift 0..{SHIFT_MAX}")
    return mult, shift


def integer_forward(layers: Sequence[QuantLayer], images: NDArray[np.uint8]) -> list[NDArray[np.integer[Any]]]:
    """Run the integer network.

    Args:
        layers: the layers in order.
        images: uint8 ``(n, 8, 8, 1)`` pixels 0..16.

    Returns:
        Every layer's output ``(n, *out_shape)``: uint8 where requantised, int32 logits at the end.
    """
    outputs: list[NDArray[np.integer[Any]]] = []
    x: NDArray[np.integer[Any]] = images
    for layer in layers:
        rows = left_matrix(x, layer.spec).astype(np.int64)
        weight = layer.weight.astype(np.int64)
        total: IntArray = rows @ weight.reshape(-1, weight.shape[-1]) + layer.bias
        if layer.mult is None or layer.shift is None or layer.spec.lo is None or layer.spec.hi is None:
            x = total.astype(np.int32)
        else:
            x = requantise(total, layer.mult, layer.shift, layer.spec.lo, layer.spec.hi)
        x = x.reshape(len(images), *layer.spec.out_shape)
        outputs.append(x)
    return outputs


# File


def to_model(
    layers: Sequence[QuantLayer], test_indices: NDArray[np.int32], accuracy: Mapping[str, Any]
) -> "onnx.ModelProto":
    """The network as an ONNX model with a free batch: input ``image`` uint8 (N, 1, 8, 8), output ``logits`` int32.

    Convolutions are QLinearConv; ``fc1`` is a Gemm in QDQ form, for its bias; ``fc2`` is MatMulInteger and an Add. The
    only scales are those of the weights, ``mult / 2**shift``, which float32 holds exactly. What is left
    (``test_indices`` and the JSON of ``layers`` and ``accuracy``) is in the model's metadata.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(name: str, value: Any) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    one, zero = constant("one", np.float32(1)), constant("zero", np.uint8(0))
    x, flat = "image", False
    for layer in layers:
        name, weight, bias = layer.spec.name, layer.weight, layer.bias
        if layer.spec.kind == "fc" and not flat:
            nodes.append(helper.make_node("Flatten", [x], ["flat"], name="flatten"))
            x, flat = "flat", True
            h, w, c = layers[layers.index(layer) - 1].spec.out_shape
            weight = weight.reshape(h, w, c, -1).transpose(2, 0, 1, 3).reshape(weight.shape)  # ONNX is NCHW
        if layer.mult is None or layer.shift is None:
            names = [x, constant(f"{name}_weight", weight)]
            nodes.append(helper.make_node("MatMulInteger", names, [f"{name}_sums"], name=name))
            names = [f"{name}_sums", constant(f"{name}_bias", bias)]
            nodes.append(helper.make_node("Add", names, ["logits"], name=f"{name}_add"))
            break
        scale = constant(f"{name}_scale", np.ldexp(layer.mult.astype(np.float32), -layer.shift.astype(np.int32)))
        output = f"{name}_out"
        if layer.spec.kind == "conv":
            w_zero = constant(f"{name}_zero", np.zeros(len(bias), dtype=np.int8))
            names = [x, one, zero, constant(f"{name}_weight", weight.transpose(3, 2, 0, 1)), scale, w_zero, one, zero,
                     constant(f"{name}_bias", bias)]  # fmt: skip
            spec = layer.spec
            nodes.append(helper.make_node(
                "QLinearConv", names, [output], name=name, kernel_shape=list(weight.shape[:2]),
                strides=[spec.stride] * 2, dilations=[spec.dilation] * 2, pads=[spec.padding] * 4,
            ))  # fmt: skip
        else:
            parts = []
            for part, value, axis in (("weight", weight, 1), ("bias", bias, 0)):
                names = [constant(f"{name}_{part}", value), scale]
                parts.append(f"{name}_{part}_real")
                nodes.append(helper.make_node("DequantizeLinear", names, [parts[-1]], name=parts[-1], axis=axis))
            nodes += [
                helper.make_node("DequantizeLinear", [x, one, zero], [f"{x}_real"], name=f"{x}_real"),
                helper.make_node("Gemm", [f"{x}_real", *parts], [f"{name}_product"], name=name),
                helper.make_node("Relu", [f"{name}_product"], [f"{name}_relu"], name=f"{name}_relu"),
                helper.make_node("QuantizeLinear", [f"{name}_relu", one, zero], [output], name=output),
            ]
        x = output
    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 1, *layers[0].spec.in_shape[:2]])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.INT32, ["N", layers[-1].spec.out_shape[0]])]
    graph = helper.make_graph(nodes, "digits_cnn", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    helper.set_model_props(model, {
        "layers": json.dumps([asdict(layer.spec) for layer in layers]),
        "test_indices": json.dumps(test_indices.tolist()),
        "accuracy": json.dumps(accuracy),
    })  # fmt: skip
    onnx.checker.check_model(model, full_check=True)
    return model


def save_network(
    path: Path, layers: Sequence[QuantLayer], test_indices: NDArray[np.int32], accuracy: Mapping[str, Any]
) -> None:
    """Write the network's model (:func:`to_model`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_model(layers, test_indices, accuracy).SerializeToString(deterministic=True))


def load_network(path: Path = NETWORK_FILE) -> tuple[list[QuantLayer], NDArray[np.int32], dict[str, Any]]:
    """Read a file of `save_network`: the layers, int32 ``(n,)`` test indices and the accuracy figures."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    metadata = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    layers: list[QuantLayer] = []
    for fields in metadata["layers"]:
        fields["in_shape"] = tuple(fields["in_shape"])
        fields["out_shape"] = tuple(fields["out_shape"])
        spec = LayerSpec(**fields)
        weight = known[f"{spec.name}_weight"]
        if spec.kind == "conv":
            weight = weight.transpose(2, 3, 1, 0)
        elif layers[-1].spec.kind == "conv":
            h, w, c = layers[-1].spec.out_shape
            weight = weight.reshape(c, h, w, -1).transpose(1, 2, 0, 3).reshape(weight.shape)
        points = [fixed_point(float(scale)) for scale in known.get(f"{spec.name}_scale", ())]
        mult = np.array([mult for mult, _ in points], dtype=np.uint32) if points else None
        shift = np.array([shift for _, shift in points], dtype=np.uint8) if points else None
        layers.append(QuantLayer(spec, np.ascontiguousarray(weight), known[f"{spec.name}_bias"], mult, shift))
    return layers, np.array(metadata["test_indices"], dtype=np.int32), metadata["accuracy"]
