"""What became of each layer of a model that was quantised, and how far its results are from the float model's."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from maskwork.gen.network import calibration
from maskwork.gen.network.calibration import Feed
from maskwork.gen.network.prepare import PRODUCTS
from numpy.typing import NDArray
from onnx import numpy_helper


@dataclass
class Layer:
    """A product of the model.

    Attributes:
        name: of its node.
        operation: operator.
        weights: number of them, of all that are constant; 0 where none are.
        kept: nonzero ones after pruning.
        nonzero: of those, the ones that are not 0 as int8 either: what the accelerator multiplies.
        quantised: whether its inputs come from DequantizeLinear.
    """

    name: str
    operation: str
    weights: int
    kept: int
    nonzero: int
    quantised: bool

    @property
    def density(self) -> float:
        """Part of the weights that is nonzero in the result; 1 where none are constant."""
        return self.nonzero / self.weights if self.weights else 1.0


@dataclass
class Quantisation:
    """A quantised model, and what became of each layer.

    Attributes:
        model: the result, in QDQ form.
        layers: its products, in order.
        prepared: the float model, normalisations folded; tensors have their names in ``model``.
        pruned: the same with its weights pruned.
        feeds: the samples as inputs.
    """

    model: onnx.ModelProto
    layers: list[Layer]
    prepared: onnx.ModelProto
    pruned: onnx.ModelProto
    feeds: list[Feed]

    def deviations(self) -> dict[str, dict[str, float]]:
        """How far layers and outputs are from the float model's, on the samples; onnxruntime runs the models.

        Returns:
            By layer and by output: ``largest``, the float model's largest magnitude; ``deviation``, the largest
            difference between the quantised model and it; ``pruning``, between the pruned float model and it;
            ``quantising``, between the quantised and the pruned float model. A layer is compared behind its Relu or
            Clip where quantisation took that in.
        """
        there = {name for node in self.prepared.graph.node for name in node.output}
        compared: dict[str, tuple[str, str]] = {}
        for layer in self.layers:
            found = _ending(self.model, layer.name)
            if found is not None and found[0] in there:
                compared[layer.name] = found
        compared |= {value.name: (value.name, value.name) for value in self.prepared.graph.output}
        plain = list(dict.fromkeys(name for name, _ in compared.values()))
        final = list(dict.fromkeys(name for _, name in compared.values()))
        result = {name: {"largest": 0.0, "deviation": 0.0, "pruning": 0.0, "quantising": 0.0} for name in compared}
        runs = (calibration.outputs(self.model.graph.name, model, names, self.feeds)
                for model, names in ((self.prepared, plain), (self.pruned, plain), (self.model, final)))  # fmt: skip
        for given, pruned, quantised in zip(*runs, strict=True):
            for name, (float_name, own_name) in compared.items():
                entry, wanted = result[name], given[float_name].astype(np.float64)
                entry["largest"] = max(entry["largest"], _most(wanted))
                less, own = pruned[float_name].astype(np.float64), quantised[own_name].astype(np.float64)
                entry["deviation"] = max(entry["deviation"], _most(own - wanted))
                entry["pruning"] = max(entry["pruning"], _most(less - wanted))
                entry["quantising"] = max(entry["quantising"], _most(own - less))
        return result


def weights_of(node: onnx.NodeProto, tensors: Collection[str]) -> str:
    """A product's constant operand, "" if it has none."""
    return next((name for name in (node.input[1], node.input[0]) if name in tensors), "")


def layers_of(pruned: onnx.ModelProto, result: onnx.ModelProto) -> list[Layer]:
    """The products of a pruned float model, with what they are in the quantised one."""
    floats = {tensor.name: tensor for tensor in pruned.graph.initializer}
    integers = {tensor.name: tensor for tensor in result.graph.initializer}
    makers = {name: node for node in result.graph.node for name in node.output}
    own = {node.name: node for node in result.graph.node}
    layers = []
    for node in pruned.graph.node:
        if node.op_type not in PRODUCTS or node.name not in own:
            continue
        name, kept, nonzero, size = weights_of(node, floats), 0, 0, 0
        operands = [makers.get(operand) for operand in own[node.name].input[:2]]
        if name:
            values = numpy_helper.to_array(floats[name])
            kept, size = int(np.count_nonzero(values)), values.size
            source = operands[1 if name == node.input[1] else 0]
            nonzero = kept
            if source is not None and source.input[0] in integers:
                nonzero = int(np.count_nonzero(numpy_helper.to_array(integers[source.input[0]])))
        done = all(maker is not None and maker.op_type == "DequantizeLinear" for maker in operands)
        layers.append(Layer(node.name, node.op_type, size, kept, nonzero, done))
    return layers


def _ending(model: onnx.ModelProto, name: str) -> tuple[str, str] | None:
    """A layer's result: the float model's tensor, and the quantised one's, behind DequantizeLinear if there is one."""
    suffix = "_QuantizeLinear_Input"
    node = next((node for node in model.graph.node if node.name == name), None)
    if node is None:
        return None
    result = node.output[0]
    for op in ("QuantizeLinear", "DequantizeLinear"):
        after = next((n for n in model.graph.node if n.op_type == op and n.input[0] == result), None)
        if after is None:
            return node.output[0], node.output[0]
        result = after.output[0]
    return node.output[0].removesuffix(suffix), result


def _most(values: NDArray[Any]) -> float:
    return float(np.abs(values).max(initial=0.0))
