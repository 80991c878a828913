"""Float models made ready for quantisation: checked, in a recent opset, normalisations folded, constants computed."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.gen.network.graph import MIN_OPSET, QUANTISERS, first_line, node_name
from onnx import helper, numpy_helper, shape_inference, version_converter

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose weights are pruned and quantised."""

_FUSED = "/MatMulAddFusion"
_IR_VERSION = 8  # of opset 15; from 4 on, initialisers need not be inputs
_DOMAINS = ("", "ai.onnx")


def check(where: str, proto: onnx.ModelProto, skip: Collection[str]) -> None:
    """Refuse what is no float model with products; give every node a name.

    Args:
        where: the model in messages.
        proto: the model, changed.
        skip: names of products.

    Raises:
        MaskworkTypeError, MaskworkValueError: for a quantised model, one without products, one in another type than
            float32, and a name that no product has.
    """
    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    types |= {value.name: value.type.tensor_type.elem_type for value in proto.graph.input}
    _name_nodes(proto)
    products = []
    for node in proto.graph.node:
        if node.op_type in QUANTISERS or node.op_type.startswith("QLinear") or node.op_type.endswith("Integer"):
            raise MaskworkValueError(
                f"{where}: quantised already (node {node.name!r}, {node.op_type}); a float model is expected"
            )
        if node.op_type not in PRODUCTS:
            continue
        products.append(node.name)
        for name in node.input:
            if types.get(name, onnx.TensorProto.FLOAT) != onnx.TensorProto.FLOAT:
                kind = helper.tensor_dtype_to_np_dtype(types[name])
                raise MaskworkTypeError(f"{where}: node {node.name!r}: {name!r} is {kind}; float32 is expected")
    if not products:
        raise MaskworkValueError(f"{where}: nothing to quantise; a model with {', '.join(PRODUCTS)} is expected")
    for name in skip:
        if name not in products:
            raise MaskworkValueError(f"{where}: skip: no product is named {name!r}; products: {', '.join(products)}")


def _name_nodes(proto: onnx.ModelProto) -> None:
    """Give every node a name of its own."""
    taken: set[str] = set()
    for number, node in enumerate(proto.graph.node):
        name = node_name(node, number)
        while name in taken:
            name += f"_{number}"
        node.name = name
        taken.add(name)


def upgraded(where: str, proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model in opset 13 or later; its initialisers are no inputs, and its constants initialisers.

    Raises:
        MaskworkValueError: if it cannot be converted.
    """
    opset = next((entry.version for entry in proto.opset_import if entry.domain in _DOMAINS), 0)
    if opset < MIN_OPSET:
        try:
            proto = version_converter.convert_version(proto, MIN_OPSET)
        except Exception as error:  # its own kinds, from C++
            raise MaskworkValueError(
                f"{where}: opset {opset} cannot be converted to {MIN_OPSET}: {first_line(error)}"
            ) from None
        _name_nodes(proto)
    graph = proto.graph
    constant = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constant]
    del graph.input[:]
    graph.input.extend(inputs)
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        value = next((attribute for attribute in node.attribute if attribute.name == "value"), None)
        if value is not None and node.output[0] not in {output.name for output in graph.output}:
            graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(value.t), node.output[0]))
            graph.node.remove(node)
    proto.ir_version = max(proto.ir_version, _IR_VERSION)
    return proto


def prepared(where: str, proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model as onnxruntime's quantiser wants it; products keep their names.

    BatchNormalization behind Conv and ConvTranspose, a MatMul's Add and constant subgraphs are onnxruntime's to fold.

    Raises:
        MaskworkValueError: if onnxruntime cannot process it.
    """
    _fold_norms(proto)
    process = importlib.import_module("onnxruntime.quantization.shape_inference").quant_pre_process
    names = {node.name for node in proto.graph.node}
    with tempfile.TemporaryDirectory(prefix="maskwork-") as folder:
        given, made = str(Path(folder, "given.onnx")), str(Path(folder, "made.onnx"))
        try:
            onnx.save(proto, given)
            process(given, made, skip_symbolic_shape=True)
            result = onnx.load(made)
        except Exception as error:  # of onnx and onnxruntime
            raise MaskworkValueError(f"{where}: cannot be prepared: {first_line(error)}") from None
    for node in result.graph.node:  # a MatMul that took its Add in is a Gemm with a name made of the MatMul's
        own, found, rest = node.name.partition(_FUSED)
        if found and not rest and own in names:
            node.name = own
    _name_nodes(result)
    return result


# ---------------------------------------------------------------------- normalisations


def _fold_norms(proto: onnx.ModelProto) -> None:
    """Fold BatchNormalization into the Gemm or MatMul of constant weights in front of it."""
    graph = proto.graph
    if not any(node.op_type == "BatchNormalization" for node in graph.node):
        return
    values = shape_inference.infer_shapes(proto).graph.value_info
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values
             if value.type.tensor_type.HasField("shape")}  # fmt: skip
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    makers = {name: node for node in graph.node for name in node.output}
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        product = makers.get(norm.input[0])
        if product is None or product.op_type not in ("Gemm", "MatMul") or norm.input[0] in outputs:
            continue
        users = sum(name == norm.input[0] for node in graph.node for name in node.input)
        plain = users == 1 and ranks.get(norm.input[0]) == 2 and not any(norm.output[1:])
        if plain and product.input[1] in tensors and all(name in tensors for name in norm.input[1:]):
            _fold_norm(graph, product, norm, tensors)


def _fold_norm(
    graph: onnx.GraphProto, product: onnx.NodeProto, norm: onnx.NodeProto, tensors: dict[str, onnx.TensorProto]
) -> None:
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in product.attribute}
    weights = numpy_helper.to_array(tensors[product.input[1]])
    gamma, beta, mean, variance = (numpy_helper.to_array(tensors[n]).astype(np.float64) for n in norm.input[1:])
    epsilon = next((attribute.f for attribute in norm.attribute if attribute.name == "epsilon"), 1e-5)
    factor = gamma / np.sqrt(variance + epsilon)
    bias = np.zeros(1)
    if len(product.input) > 2 and product.input[2]:
        if product.input[2] not in tensors:
            return
        bias = numpy_helper.to_array(tensors[product.input[2]]).astype(np.float64) * attributes.get("beta", 1.0)
        if bias.size not in (1, factor.size) or (bias.ndim == 2 and bias.shape[0] != 1):
            return
    scaled = weights * (factor[:, None] if attributes.get("transB") else factor)
    made = {f"{norm.name}/weights": scaled, f"{norm.name}/bias": bias.reshape(-1) * factor + beta - mean * factor}
    if weights.ndim != 2 or any(name in tensors for name in made):
        return
    for name, value in made.items():
        graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
        tensors[name] = graph.initializer[-1]
    kept = {name: attributes[name] for name in ("alpha", "transA", "transB") if name in attributes}
    product.CopyFrom(helper.make_node("Gemm", [product.input[0], *made], [norm.output[0]], name=product.name, **kept))
    graph.node.remove(norm)
