"""Float ONNX models to quantised ones that the compiler takes: pruning, calibration on samples, int8 weights.

Calibration and the placing of QuantizeLinear and DequantizeLinear are onnxruntime's (``onnxruntime.quantization``).
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.gen.network import calibration, prepare, prune
from maskwork.gen.network.calibration import Feed, Samples
from maskwork.gen.network.graph import check_operators, first_line, fix_shapes, read_model
from maskwork.gen.network.layers import Quantisation, layers_of, weights_of
from maskwork.gen.network.prepare import PRODUCTS
from numpy.typing import NDArray
from onnx import numpy_helper

QUANTISED = (*PRODUCTS, "Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Pad",
             "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice")  # fmt: skip
"""Operators between DequantizeLinear and QuantizeLinear in the result; the compiler runs them on integers."""

ACTIVATIONS = ("uint8", "int8")

_WEIGHT_MAX = 127


def quantise_weights(w: NDArray[Any], axis: int | None) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weights as int8, symmetric: w is about q * scale, and 0 stays 0.

    Args:
        w: finite numbers of any shape.
        axis: of the channels that get a scale each, such as Conv's 0; None for one scale.

    Returns:
        q, int8 of the same shape, from -127 to 127, rounded half to even; scale, positive float32 (C,), or () without
        an axis. A channel without nonzeros has the largest scale of the others (1 if there are none).

    Raises:
        MaskworkTypeError: for weights that are no numbers.
        MaskworkValueError: for an axis that is not there, or weights that are not finite.
    """
    values = np.asarray(w)
    if values.dtype.kind not in "iuf":
        raise MaskworkTypeError(f"weights must be numbers, not {values.dtype}")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise MaskworkValueError("weights must be finite; there are infinities or NaNs among them")
    if axis is not None and not -values.ndim <= axis < values.ndim:
        raise MaskworkValueError(f"axis {axis} is not one of the {values.ndim} axes of the weights")
    others = None if axis is None else tuple(i for i in range(values.ndim) if i != axis % values.ndim)
    most = np.abs(values).max(axis=others, initial=0.0, keepdims=True)
    # float32 first: the integers are those of the scale that is kept; one too small for float32 holds only zeros
    scale = (most / _WEIGHT_MAX).astype(np.float32)
    dead = scale == 0
    scale = np.where(dead, scale.max(initial=0.0) or np.float32(1), scale).astype(np.float32)
    q = np.clip(np.rint(values / scale.astype(np.float64)), -_WEIGHT_MAX, _WEIGHT_MAX).astype(np.int8)
    return q, scale.reshape(() if axis is None else -1)


def quantise(
    model: str | os.PathLike[str] | onnx.ModelProto,
    samples: Samples,
    *,
    density: float | None = None,
    n_of_m: tuple[int, int] | None = None,
    per_channel: bool = True,
    skip: Collection[str] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
    activations: str = "uint8",
) -> onnx.ModelProto:
    """The result's model alone; see :func:`quantise_layers`."""
    return quantise_layers(
        model, samples, density=density, n_of_m=n_of_m, per_channel=per_channel, skip=skip, shapes=shapes,
        activations=activations,
    ).model  # fmt: skip


def quantise_layers(
    model: str | os.PathLike[str] | onnx.ModelProto,
    samples: Samples,
    *,
    density: float | None = None,
    n_of_m: tuple[int, int] | None = None,
    per_channel: bool = True,
    skip: Collection[str] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
    activations: str = "uint8",
) -> Quantisation:
    """Prune and quantise a float model: int8 weights, activations by their ranges on samples.

    Operators that the compiler runs on integers get QuantizeLinear and DequantizeLinear around them, others (Softmax
    and the like) stay float. Normalisations behind a convolution or product are folded into it, and constant
    subgraphs computed. A model older than opset 13 is converted to that.

    Args:
        model: file name, or the model: float32, with Conv, ConvTranspose, Gemm or MatMul of constant weights.
        samples: for calibration; see :func:`maskwork.gen.network.calibration.feeds`. Some tens to hundreds, like
            those that the model will see.
        density: of each layer's weights: the largest of them by magnitude stay. None keeps all.
        n_of_m: (n, m): of every m weights that follow each other along the input channels, the n largest stay.
        per_channel: weights have a scale for each output channel; else one a tensor.
        skip: names of nodes whose weights are not pruned.
        shapes: shapes of inputs that the file leaves open; what is not given stays open.
        activations: "uint8" or "int8".

    Raises:
        MaskworkError: for a model that cannot be read or run, is quantised already, or has nothing to quantise; for
            samples that do not fit it; for options out of range; if onnxruntime is missing.
    """
    if density is not None and n_of_m is not None:
        raise MaskworkValueError("density and n_of_m exclude each other: give one of them")
    if density is not None:
        prune.check_density(density)
    if n_of_m is not None:
        prune.check_n_of_m(*n_of_m)
    if activations not in ACTIVATIONS:
        raise MaskworkValueError(f"activations must be {' or '.join(ACTIVATIONS)}, not {activations!r}")
    where, proto = read_model(model)
    fix_shapes(where, proto, shapes or {}, dynamic=True)
    prepare.check(where, proto, skip)
    calibration.runtime()
    inputs = calibration.feeds(where, proto, samples)
    with calibration.quiet():
        proto = prepare.upgraded(where, proto)
        next(calibration.outputs(where, proto, [value.name for value in proto.graph.output], inputs[:1]))
        prepared = prepare.prepared(where, proto)
        check_operators(where, prepared)
        pruned = _pruned(where, prepared, density, n_of_m, skip)
        result = _quantised(where, pruned, inputs, per_channel, activations)
    return Quantisation(result, layers_of(pruned, result), prepared, pruned, inputs)


def _pruned(
    where: str, prepared: onnx.ModelProto, density: float | None, n_of_m: tuple[int, int] | None,
    skip: Collection[str],
) -> onnx.ModelProto:  # fmt: skip
    pruned = onnx.ModelProto()
    pruned.CopyFrom(prepared)
    if density is None and n_of_m is None:
        return pruned
    tensors = {tensor.name: tensor for tensor in pruned.graph.initializer}
    users = [node for node in pruned.graph.node if node.op_type in PRODUCTS]
    for name in set(skip) - {node.name for node in users}:
        raise MaskworkValueError(f"{where}: skip: node {name!r} was merged with others; its weights cannot be spared")
    spared = {weights_of(node, tensors) for node in users if node.name in skip}
    for node in users:
        name = weights_of(node, tensors)
        if not name or name in spared:
            continue
        spared.add(name)
        values = numpy_helper.to_array(tensors[name])
        if density is not None:
            values = prune.magnitude(values, density)
        elif n_of_m is not None:
            values = prune.n_of_m(values, *n_of_m, *_input_channels(node, values, name))
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))
    return pruned


def _input_channels(node: onnx.NodeProto, values: NDArray[Any], name: str) -> tuple[int, int]:
    """Axis of the channels that a product sums over, and groups along it."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Conv":
        return 1, 1
    if node.op_type == "ConvTranspose":
        return 0, attributes.get("group", 1)
    if name == node.input[1]:
        return (values.ndim - 1 if attributes.get("transB") else max(values.ndim - 2, 0)), 1
    return (max(values.ndim - 2, 0) if attributes.get("transA") else values.ndim - 1), 1


# ---------------------------------------------------------------------- the quantised model


def _quantised(
    where: str, pruned: onnx.ModelProto, samples: Sequence[Feed], per_channel: bool, activations: str
) -> onnx.ModelProto:
    ort = importlib.import_module("onnxruntime.quantization")
    with tempfile.TemporaryDirectory(prefix="maskwork-") as folder:
        given, made = str(Path(folder, "given.onnx")), str(Path(folder, "made.onnx"))
        onnx.save(pruned, given)
        try:
            ort.quantize_static(
                given,
                made,
                calibration.reader(samples),
                quant_format=ort.QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
                per_channel=per_channel,
                activation_type=ort.QuantType.QInt8 if activations == "int8" else ort.QuantType.QUInt8,
                weight_type=ort.QuantType.QInt8,
                calibrate_method=ort.CalibrationMethod.MinMax,
                extra_options={"WeightSymmetric": True, "TensorQuantOverrides": _overrides(pruned, per_channel)},
            )
            result = onnx.load(made)
        except Exception as error:  # of onnx and onnxruntime
            raise MaskworkValueError(f"{where}: cannot be quantised: {first_line(error)}") from None
    used = {node.domain for node in result.graph.node} | {""}
    opsets = [entry for entry in result.opset_import if entry.domain in used]
    del result.opset_import[:], result.metadata_props[:]
    result.opset_import.extend(opsets)
    result.producer_name, result.producer_version = "maskwork", ""
    return result


def _overrides(pruned: onnx.ModelProto, per_channel: bool) -> dict[str, list[dict[str, Any]]]:
    """Scales of weights that onnxruntime would choose badly, by tensor.

    One scale for operands whose scales by channel the accelerator cannot use; a channel that lost all its weights
    shares a scale of the others, because 1, which it would get, is that of its bias as well.
    """
    tensors = {tensor.name: tensor for tensor in pruned.graph.initializer}
    found: dict[str, list[dict[str, Any]]] = {}
    for node in pruned.graph.node:
        name = weights_of(node, tensors) if node.op_type in PRODUCTS else ""
        if not name or not per_channel:
            continue
        values = numpy_helper.to_array(tensors[name])
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        axis = 0 if node.op_type == "Conv" or transposed else 1
        if name == node.input[0] or (node.op_type == "ConvTranspose" and groups > 1) or (
            node.op_type == "MatMul" and values.ndim != 2
        ):  # fmt: skip
            found[name] = [{"symmetric": True}]
        elif not values.any(axis=tuple(i for i in range(values.ndim) if i != axis)).all():
            zero = np.array(0, dtype=np.int8)
            found[name] = [{"scale": scale, "zero_point": zero} for scale in quantise_weights(values, axis)[1]]
            found[name][0]["axis"] = axis
    return found
