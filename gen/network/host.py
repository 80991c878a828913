"""Nodes that run on the host: ONNX's own reference implementation, node by node; onnxruntime where that cannot."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import onnx
from maskwork.gen.errors import MaskworkValueError
from maskwork.gen.network.graph import Node
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

_FROM = {"QuantizeLinear": 19, "DequantizeLinear": 19, "BatchNormalization": 14}
"""First opset of operators that the reference implements (or, for the last, implements as inference); earlier ones
mean the same."""

_SECOND = ("MaxPool", "ConvTranspose")
"""Operators that the reference (1.23) computes wrongly in places: it pads integers with 0 and mixes up the axes of
unequal padding in the first, and groups in the second. onnxruntime goes first there, if it is installed."""


def run_node(node: Node, values: Mapping[str, Any], opset: int) -> dict[str, NDArray[Any]]:
    """Run one node.

    Args:
        node: the node.
        values: its inputs by name, as arrays.
        opset: of the model.

    Returns:
        Its outputs by name.

    Raises:
        MaskworkValueError: if neither implementation can run it.
    """
    names = list(dict.fromkeys(name for name in node.inputs if name))
    inputs = {name: values[name] for name in names}
    given = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
             for name, value in inputs.items()]  # fmt: skip
    wanted = [helper.make_empty_tensor_value_info(name) for name in node.outputs if name]
    graph = helper.make_graph([node.proto], "host", given, wanted)
    opsets = [helper.make_opsetid("", max(opset, _FROM.get(node.op, 0)))]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    results: Any = _by_onnxruntime(model, inputs) if node.op in _SECOND else None
    try:
        results = results or ReferenceEvaluator(model).run(None, inputs)
    except Exception as error:  # it raises what its NumPy code happens to raise
        results = _by_onnxruntime(model, inputs)
        if results is None:
            raise MaskworkValueError(f"node {node.name!r} ({node.op}) cannot run on the host: {error}") from error
    return {value.name: result for value, result in zip(wanted, results, strict=True)}


def _by_onnxruntime(model: onnx.ModelProto, inputs: Mapping[str, Any]) -> list[NDArray[Any]] | None:
    """Outputs of a model; None if onnxruntime is not installed or cannot run it."""
    if not importlib.util.find_spec("onnxruntime"):
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results: Any = session.run(None, dict(inputs))
        return list(results)
    except Exception:  # its exceptions have no common base but this
        return None
