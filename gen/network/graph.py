"""ONNX files as a graph of nodes with known shapes: reading, checking, and folding what is constant."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from maskwork.gen.errors import MaskworkError, MaskworkTypeError, MaskworkValueError
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference

MIN_OPSET = 13

PRODUCTS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that become products on the array, the last four between DequantizeLinear and QuantizeLinear."""

QUANTISERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
SHAPES = ("Reshape", "Flatten", "Transpose", "Concat", "Pad", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split",
          "Gather", "Expand", "Shape", "Constant", "ConstantOfShape", "Cast", "Dropout", "Range")  # fmt: skip
VECTOR = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Add", "Relu", "Clip")
FLOAT = ("BatchNormalization", "Softmax", "LogSoftmax", "Sigmoid", "Tanh", "Mul", "Sub", "Div", "Sqrt", "Exp", "Log",
         "ReduceMean", "ReduceSum", "ReduceMax", "ArgMax", "LeakyRelu", "HardSigmoid", "HardSwish", "Erf", "Pow",
         "LayerNormalization", "Where", "Equal", "Greater", "Less", "Neg", "Abs", "Max", "Min", "Floor", "Round",
         "Sum", "Gelu")  # fmt: skip
SUPPORTED = frozenset((*PRODUCTS, *QUANTISERS, *SHAPES, *VECTOR, *FLOAT, "LSTM"))
"""Operators that a model may have; those that are no product, pooling, addition or LSTM run on the host."""

QUIET_ON_HOST = frozenset((*QUANTISERS, *SHAPES))
"""Operators that `--strict` allows on the host."""

_DOMAINS = ("", "ai.onnx")
_FOLD_LIMIT = 1 << 24  # elements: nothing bigger is computed while a file is read


@dataclass(frozen=True)
class Node:
    """One node of the graph.

    Attributes:
        name: the file's, or one made of operator and number.
        op: operator.
        inputs, outputs: names of tensors, "" for an optional one that is left out.
        attributes: as Python values and arrays.
        proto: the node itself, for the host.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    proto: onnx.NodeProto

    def input(self, index: int) -> str:
        """Name of an input, "" if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""


@dataclass
class Graph:
    """A checked model.

    Attributes:
        name: the file's stem, or the graph's own name.
        nodes: in an order in which they can run, without those that were folded.
        constants: known tensors by name.
        inputs: shape and dtype by name.
        outputs: names.
        shapes: every tensor's shape, where it is known.
        dtypes: every tensor's NumPy dtype, where it is known.
        opset: of the default domain.
    """

    name: str
    nodes: list[Node]
    constants: dict[str, NDArray[Any]]
    inputs: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
    outputs: list[str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype[Any]]
    opset: int
    producers: dict[str, Node] = field(init=False)
    consumers: dict[str, list[Node]] = field(init=False)

    def __post_init__(self) -> None:
        self.producers = {name: node for node in self.nodes for name in node.outputs if name}
        self.consumers = {}
        for node in self.nodes:
            for name in node.inputs:
                if name:
                    self.consumers.setdefault(name, []).append(node)

    def only_consumer(self, name: str) -> Node | None:
        """The node that alone takes a tensor, which nobody else sees; None if there is no such node."""
        users = self.consumers.get(name, [])
        return users[0] if len(users) == 1 and name not in self.outputs else None

    def constant(self, name: str) -> NDArray[Any] | None:
        """A tensor's value, if it is known."""
        return self.constants.get(name)


def load(model: str | os.PathLike[str] | onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> Graph:
    """Read and check a model.

    Args:
        model: file name, or the model itself.
        shapes: shapes of inputs, in place of the file's; for models with dynamic shapes.

    Raises:
        MaskworkError: for a file that cannot be read, an operator, opset or type that is not supported, or a shape
            that is not known.
    """
    where, proto = read_model(model)
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    opset = max((opsets.get(domain, 0) for domain in _DOMAINS), default=0)
    if opset < MIN_OPSET:
        raise MaskworkValueError(f"{where}: opset {opset} is not supported; {MIN_OPSET} or later is accepted")
    check_operators(where, proto)
    fix_shapes(where, proto, shapes or {})
    try:
        onnx.checker.check_model(proto)
        proto = shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
        raise MaskworkValueError(f"{where}: not a valid model: {first_line(error)}") from None
    graph = _as_graph(Path(where).stem if isinstance(model, str | os.PathLike) else proto.graph.name or "model", proto,
                      opset)  # fmt: skip
    for name, (shape, dtype) in graph.inputs.items():
        if min(shape, default=1) < 1:
            raise MaskworkValueError(f"{where}: input {name!r} must have positive sizes, not {list(shape)}")
        if dtype.kind not in "iufb":
            raise MaskworkTypeError(f"{where}: input {name!r} has type {dtype}; integers and floats are accepted")
    return graph


def read_model(model: str | os.PathLike[str] | onnx.ModelProto) -> tuple[str, onnx.ModelProto]:
    """What messages call a model, and a copy of it.

    Raises:
        MaskworkError: for a file that cannot be read.
    """
    if isinstance(model, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy.graph.name or "model", copy
    path = Path(model)
    if not path.is_file():
        raise MaskworkError(f"{path}: cannot be read (no such file); an ONNX model is expected")
    try:
        proto = onnx.load(path)
    except FileNotFoundError as error:
        raise MaskworkError(f"{path}: its external data is missing: {first_line(error)}") from None
    except onnx.checker.ValidationError as error:
        raise MaskworkError(f"{path}: its external data cannot be read: {first_line(error)}") from None
    except OSError as error:
        raise MaskworkError(f"{path}: cannot be read ({error.strerror or error}); an ONNX model is expected") from None
    except Exception as error:  # protobuf's own kinds differ between its implementations
        raise MaskworkError(f"{path}: not an ONNX model, or a damaged one ({first_line(error)})") from None
    if not proto.graph.node or not proto.opset_import:
        raise MaskworkError(f"{path}: not an ONNX model, or one without nodes")
    return str(path), proto


def first_line(error: Exception) -> str:
    """What an error of another library says, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def node_name(proto: onnx.NodeProto, number: int) -> str:
    """A node's name, or one made of its operator and its place."""
    return proto.name or f"{proto.op_type}_{number}"


def check_operators(where: str, proto: onnx.ModelProto) -> None:
    """Check that all operators are supported.

    Raises:
        MaskworkValueError: if one is not; names its node.
    """
    within = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    for number, node in enumerate(proto.graph.node):
        domain = f"{node.domain}." if node.domain not in _DOMAINS else ""
        name = node_name(node, number)
        if domain or node.op_type not in SUPPORTED:
            raise MaskworkValueError(
                f"{where}: node {name!r}: operator {domain}{node.op_type} is not supported; accepted are "
                f"{', '.join(sorted(SUPPORTED))}"
            )
        if any(attribute.type in within for attribute in node.attribute):
            raise MaskworkValueError(f"{where}: node {name!r}: graphs within nodes are not supported")


def fix_shapes(where: str, proto: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], dynamic: bool = False) -> None:
    """Give inputs their shapes, in the model itself.

    Args:
        where: the model in messages.
        proto: the model.
        shapes: by input name.
        dynamic: other inputs may stay dynamic.

    Raises:
        MaskworkTypeError, MaskworkValueError: for an input that is unknown, no tensor, of another shape, or dynamic.
    """
    known = {tensor.name for tensor in proto.graph.initializer}
    inputs = {value.name: value for value in proto.graph.input if value.name not in known}
    for name, shape in shapes.items():
        if name not in inputs:
            raise MaskworkValueError(f"{where}: there is no input {name!r}; inputs: {', '.join(inputs)}")
        dims = inputs[name].type.tensor_type.shape.dim
        if len(dims) != len(shape) or any(d.HasField("dim_value") and d.dim_value != size
                                          for d, size in zip(dims, shape, strict=False)):  # fmt: skip
            raise MaskworkValueError(
                f"{where}: input {name!r} has shape {text_shape(inputs[name])}, which {list(shape)} does not fit"
            )
        for dim, size in zip(dims, shape, strict=True):
            dim.dim_value = int(size)
    if shapes:
        del proto.graph.value_info[:]
        for value in proto.graph.output:
            for dim in value.type.tensor_type.shape.dim:
                dim.Clear()  # inferred again
    for name, value in inputs.items():
        if not value.type.HasField("tensor_type"):
            raise MaskworkTypeError(f"{where}: input {name!r} is no tensor; tensors are accepted")
        tensor = value.type.tensor_type
        if not dynamic and (not tensor.HasField("shape") or
                            any(not dim.HasField("dim_value") for dim in tensor.shape.dim)):  # fmt: skip
            raise MaskworkValueError(
                f"{where}: input {name!r} has the dynamic shape {text_shape(value)}; fix it, such as with --shape "
                f"{name}=1,3,224,224 (shapes= in Python)"
            )


def text_shape(value: onnx.ValueInfoProto) -> str:
    """An input's shape as messages show it."""
    dims = value.type.tensor_type.shape.dim
    return "[" + ", ".join(str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in dims) + "]"


def _as_graph(name: str, proto: onnx.ModelProto, opset: int) -> Graph:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    shapes = {key: value.shape for key, value in constants.items()}
    dtypes = {key: value.dtype for key, value in constants.items()}
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
        if tensor.elem_type:
            dtypes[value.name] = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    inputs = {value.name: (shapes[value.name], dtypes[value.name])
              for value in proto.graph.input if value.name not in constants}  # fmt: skip
    nodes: list[Node] = []
    taken: set[str] = set()
    for number, node in enumerate(proto.graph.node):
        attributes = {attribute.name: _attribute(attribute) for attribute in node.attribute}
        own = node_name(node, number)
        while own in taken:
            own += f"_{number}"
        taken.add(own)
        nodes.append(Node(own, node.op_type, tuple(node.input), tuple(node.output), attributes, node))
    outputs = [value.name for value in proto.graph.output]
    return _fold(Graph(name, nodes, constants, inputs, outputs, shapes, dtypes, opset))


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [text.decode("utf-8", "replace") for text in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _fold(graph: Graph) -> Graph:
    """Compute what depends on constants alone: shapes, and quantised weights. Their DequantizeLinear stays."""
    from maskwork.gen.network.host import run_node

    nodes = []
    for node in graph.nodes:
        present = [name for name in node.inputs if name]
        known = all(name in graph.constants for name in present)
        if node.op == "Shape" and node.inputs[0] in graph.shapes:
            known = True
        size = sum(int(np.prod(graph.shapes.get(name, (_FOLD_LIMIT,)))) for name in (*present, *node.outputs) if name)
        if not known or node.op == "DequantizeLinear" or size > _FOLD_LIMIT:
            nodes.append(node)
            continue
        values = {name: graph.constants.get(name) for name in present}
        if node.op == "Shape":
            values = {node.inputs[0]: np.broadcast_to(np.zeros((), graph.dtypes[node.inputs[0]]),
                                                      graph.shapes[node.inputs[0]])}  # fmt: skip
        graph.constants |= run_node(node, values, graph.opset)
    return replace(graph, nodes=nodes)
