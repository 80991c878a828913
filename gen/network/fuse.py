"""Which nodes become which steps: integer operators, and float ones between DequantizeLinear and QuantizeLinear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.network.elementwise import Addition, Rescale
from maskwork.gen.network.graph import Graph, Node
from maskwork.gen.network.quant import Quantised, Tail, can_multiply, common_point, dequantised, tail
from maskwork.gen.network.steps import HostMove, Step

MOVES = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice", "Expand", "Gather")
"""Operators that move values about, and have one tensor of values."""


class Refused(Exception):
    """Why a node stays on the host."""


Rule = Callable[[Graph, Node, Config], list[Step]]


def covered(*groups: Any) -> tuple[str, ...]:
    """Names of nodes, from nodes, tails and None."""
    names: list[str] = []
    for group in groups:
        nodes = group.nodes if isinstance(group, Tail) else (group,) if isinstance(group, Node) else ()
        names += [node.name for node in nodes]
    return tuple(dict.fromkeys(names))


def quantised_input(graph: Graph, node: Node, index: int) -> Quantised:
    """An input that DequantizeLinear makes of int8 or uint8, per tensor.

    Raises:
        Refused: if it is none.
    """
    found = dequantised(graph, node.input(index))
    if found is None:
        raise Refused(f"input {node.input(index)!r} does not come from DequantizeLinear with known parameters")
    if not can_multiply(found) or not found.per_tensor:
        raise Refused(f"input {node.input(index)!r} is {found.dtype}, or quantised per channel; int8 or uint8 per "
                      "tensor runs on the accelerator")  # fmt: skip
    return found


def needs_vector(config: Config) -> None:
    """Refuse a configuration without the vector unit.

    Raises:
        Refused: if it has none.
    """
    if not config.vector:
        raise Refused("the configuration has no vector unit (vector = false)")


def must_tail(graph: Graph, node: Node) -> Tail:
    """The way of a node's output to integers.

    Raises:
        Refused: if there is none.
    """
    found = tail(graph, node.outputs[0])
    if found is None:
        raise Refused("its result is not quantised right away (through Relu and Clip at most)")
    return found


def points(ratios: tuple[float, ...]) -> tuple[tuple[int, ...], int]:
    """Multipliers and a shift for ratios of scales.

    Raises:
        Refused: if they are too large.
    """
    found = common_point(ratios)
    if found is None:
        raise Refused(f"the ratio of scales, {max(ratios):g}, is beyond a multiplier of 24 bits")
    return found


def addition(graph: Graph, node: Node, config: Config) -> list[Step]:
    """Add of two quantised tensors."""
    needs_vector(config)
    terms = quantised_input(graph, node, 0), quantised_input(graph, node, 1)
    end = must_tail(graph, node)
    mults, shift = points(tuple(float(term.scale / end.target.scale) for term in terms))
    constants = {term.name: graph.constants[term.name] for term in terms if term.name in graph.constants}
    return [Addition(
        name=node.name, nodes=covered(node, end), operation="Add",
        inputs=tuple(term.name for term in terms if term.name not in constants), outputs=(end.target.name,),
        target=end.target, low=end.low, high=end.high, kind="sum", terms=terms,
        shape=graph.shapes[node.outputs[0]], mults=(mults[0], mults[1]), shift=shift, constants=constants,
    )]  # fmt: skip


def rescale(x: Quantised, target: Quantised, shape: tuple[int, ...], name: str, nodes: tuple[str, ...],
            bounds: tuple[int, int] | None = None, operation: str = "Rescale") -> Rescale:  # fmt: skip
    """A step that puts a tensor on another grid.

    Raises:
        Refused: if the scales are too far apart.
    """
    (mult,), shift = points((float(x.scale / target.scale),))
    low, high = bounds or target.limits
    return Rescale(
        name=name, nodes=nodes, operation=operation, inputs=(x.name,), outputs=(target.name,), target=target, low=low,
        high=high, kind="sum", x=x, shape=shape, mult=mult, shift=shift,
    )  # fmt: skip


def clamp(graph: Graph, node: Node, config: Config) -> list[Step]:
    """Relu and Clip on their own, and QuantizeLinear right behind DequantizeLinear: another grid, other bounds."""
    needs_vector(config)
    x = quantised_input(graph, node, 0)
    end = tail(graph, node.inputs[0], first=node)
    if end is None:
        raise Refused("its result is not quantised right away (through Relu and Clip at most)")
    shape = graph.shapes[node.inputs[0]]
    return [rescale(x, end.target, shape, node.name, covered(end), (end.low, end.high), node.op)]


def move(graph: Graph, node: Node, config: Config) -> list[Step]:
    """An operator that moves values, on integers; before it, a change of scale if there is one."""
    x = quantised_input(graph, node, 0)
    end = must_tail(graph, node)
    parameters = {name: graph.constants[name] for name in node.inputs[1:] if name and name in graph.constants}
    if len(parameters) < sum(1 for name in node.inputs[1:] if name):
        raise Refused("its parameters are not constant")
    if x.name in graph.constants:
        parameters[x.name] = graph.constants[x.name]
    before, source = _on_grid(graph, config, x, end, node, 0)
    rename = {node.inputs[0]: source, node.outputs[0]: end.target.name}
    return [*before, HostMove.of(node, rename, parameters, covered(node, end))]


def _on_grid(graph: Graph, config: Config, x: Quantised, end: Tail, node: Node, number: int) -> tuple[list[Step], str]:
    """Steps that put an input of a move on the grid of its result, and the name of what they make."""
    if x.same_grid(end.target) and (end.low, end.high) == end.target.limits:
        return [], x.name
    needs_vector(config)
    if x.name in graph.constants:
        raise Refused("a constant input has a scale of its own")
    name = f"{end.target.name}/{number}"
    target = Quantised(name, end.target.dtype, end.target.scale, end.target.zero_point)
    shape = graph.shapes[x.name]
    step = rescale(x, target, shape, f"{node.name}/{number}", (), (end.low, end.high))
    return [step], name


def concat(graph: Graph, node: Node, config: Config) -> list[Step]:
    """Concat on integers, each input on the grid of the result."""
    end = must_tail(graph, node)
    steps: list[Step] = []
    rename, constants = {node.outputs[0]: end.target.name}, {}
    for number, name in enumerate(dict.fromkeys(node.inputs)):
        x = quantised_input(graph, node, node.inputs.index(name))
        before, rename[name] = _on_grid(graph, config, x, end, node, number)
        steps += before
        if x.name in graph.constants:
            constants[x.name] = graph.constants[x.name]
    return [*steps, HostMove.of(node, rename, constants, covered(node, end))]


def pad(graph: Graph, node: Node, config: Config) -> list[Step]:
    """Pad on integers: the padding is quantised."""
    x = quantised_input(graph, node, 0)
    end = must_tail(graph, node)
    if node.attributes.get("mode", "constant") != "constant" and node.input(2):
        raise Refused("a constant value for a mode that takes none")
    parameters: dict[str, Any] = {}
    for index in (1, 3):
        if node.input(index):
            value = graph.constant(node.input(index))
            if value is None:
                raise Refused("its parameters are not constant")
            parameters[node.input(index)] = value
    value = graph.constant(node.input(2)) if node.input(2) else np.zeros((), dtype=np.float32)
    if value is None:
        raise Refused("its value is not constant")
    if (end.low, end.high) != end.target.limits:
        raise Refused("its result is clamped")
    before, source = _on_grid(graph, config, x, end, node, 0)
    target = end.target
    number = np.rint(float(np.asarray(value).reshape(())) / float(target.scale)) + int(target.zero_point)
    info = np.iinfo(target.dtype)
    inputs = list(node.inputs) + [""] * (4 - len(node.inputs))
    inputs[2] = f"{node.name}/value"
    while not inputs[-1]:
        inputs.pop()
    parameters[inputs[2]] = np.array(np.clip(number, info.min, info.max), dtype=target.dtype)
    filled = Node(node.name, node.op, tuple(inputs), node.outputs, node.attributes, node.proto)
    rename = {node.inputs[0]: source, node.outputs[0]: target.name}
    return [*before, HostMove.of(filled, rename, parameters, covered(node, end))]
