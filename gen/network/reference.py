"""How far a compiled network is from ONNX's reference implementation: layer by layer, on the reference's own inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from maskwork.gen.network.compile import Compiled
from maskwork.gen.network.graph import Graph
from maskwork.gen.network.host import run_node
from maskwork.gen.network.steps import Run, Tensors

if TYPE_CHECKING:
    from maskwork.sim_tb.device import Device


def reference_values(compiled: Compiled, inputs: Tensors) -> Tensors:
    """Every tensor of a network, by ONNX's reference implementation.

    Args:
        compiled: the network.
        inputs: its inputs by name.
    """
    graph = compiled.graph
    values = {**graph.constants, **inputs}
    for node in graph.nodes:
        values |= run_node(node, values, graph.opset)
    return values


NEAR = 1e-4
"""How near to a half a quotient of float32 is called a tie: its own rounding decides what becomes of it."""


def deviations(
    compiled: Compiled, inputs: Tensors, device: Device, target: str = "golden", known: Tensors | None = None
) -> list[dict[str, Any]]:
    """Run each step on the reference's inputs and compare what it makes with the reference's outputs.

    Args:
        compiled: the network.
        inputs: its inputs by name.
        device: where it runs.
        target: the device's name.
        known: what :func:`reference_values` gives, if it is there already.

    Returns:
        For every step on the accelerator whose result the model names: ``step``, ``operation``, ``elements``,
        ``different``, ``ties`` (those of the different ones that lie halfway between two integers, as near as the
        reference's float32 can tell) and ``largest``, the largest difference: in units of integers, or relative to
        the largest element of floats.
    """
    known = reference_values(compiled, inputs) if known is None else known
    values = dict(known)
    run = Run(device, target, compiled.graph.opset)
    found = []
    for step in compiled.steps:
        made = step.run(values, run)
        values |= {name: value for name, value in made.items() if name not in known}
        for name, value in made.items():
            if step.where != "accelerator" or name not in known:
                continue
            ties = int(np.count_nonzero((value != known[name]) & _ties(compiled.graph, name, known)))
            found.append({"step": step.name, "operation": step.operation} | difference(value, known[name])
                         | {"ties": ties})  # fmt: skip
    return found


def _ties(graph: Graph, name: str, known: Tensors) -> Any:
    """Elements of a quantised tensor whose number lies halfway between two integers."""
    node = graph.producers.get(name)
    if node is None or node.op != "QuantizeLinear":
        return False
    quotient = known[node.inputs[0]].astype(np.float64) / known[node.inputs[1]].astype(np.float64)
    return np.abs(quotient - np.floor(quotient) - 0.5) < NEAR


def difference(value: Any, expected: Any) -> dict[str, Any]:
    """Elements, how many differ, and the largest difference.

    Raises:
        ValueError: if shapes or types differ.
    """
    value, expected = np.asarray(value), np.asarray(expected)
    if value.shape != expected.shape or value.dtype != expected.dtype:
        raise ValueError(f"{value.dtype} {value.shape} instead of {expected.dtype} {expected.shape}")
    if value.dtype.kind == "f":
        far = np.abs(value.astype(np.float64) - expected)
        scale = float(np.abs(expected).max(initial=0.0)) or 1.0
        return {"elements": value.size, "different": int((far > 1e-5 * scale).sum()),
                "largest": float(far.max(initial=0.0)) / scale}  # fmt: skip
    far = np.abs(value.astype(np.int64) - expected.astype(np.int64))
    return {"elements": value.size, "different": int(np.count_nonzero(far)), "largest": int(far.max(initial=0))}
