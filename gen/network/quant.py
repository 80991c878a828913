"""Quantised tensors of a graph: who is an integer with scale and zero point, and how results are requantised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from maskwork.gen.config import POST_MAX_SHIFT, POST_MULT_WIDTH
from maskwork.gen.network.graph import Graph, Node
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]

OPERANDS = ("uint8", "int8")
"""Types of activations and weights on the array."""


@dataclass(frozen=True)
class Quantised:
    """An integer tensor that stands for (q - zero_point) * scale.

    Attributes:
        name: of the integers.
        dtype: their type.
        scale: float64, () or (C,).
        zero_point: int64, () or (C,).
        axis: of C, where there is one.
        zero_name: tensor that holds the zero point, where only a run knows it; ``zero_point`` is 0 then.
    """

    name: str
    dtype: np.dtype[Any]
    scale: Float64Array
    zero_point: Int64Array
    axis: int | None = None
    zero_name: str = ""

    @property
    def per_tensor(self) -> bool:
        """One scale and zero point for all elements."""
        return self.axis is None

    @property
    def limits(self) -> tuple[int, int]:
        """Lowest and highest q - zero_point (per tensor)."""
        info = np.iinfo(self.dtype)
        if self.zero_name:
            return info.min - info.max, info.max - info.min
        return info.min - int(self.zero_point), info.max - int(self.zero_point)

    def less_zero(self, values: Mapping[str, NDArray[Any]]) -> Int64Array:
        """The tensor's q - zero_point, from all tensors by name (per tensor)."""
        zero = int(values[self.zero_name].reshape(())) if self.zero_name else int(self.zero_point)
        return values[self.name].astype(np.int64) - zero

    @property
    def names(self) -> tuple[str, ...]:
        """Tensors that it takes."""
        return (self.name, self.zero_name) if self.zero_name else (self.name,)

    def same_grid(self, other: Quantised) -> bool:
        """Whether integers of both mean the same numbers."""
        return (self.dtype == other.dtype and self.per_tensor and other.per_tensor and self.scale == other.scale
                and self.zero_point == other.zero_point)  # fmt: skip


def _parameters(
    graph: Graph, name: str, dtype: np.dtype[Any], scale_name: str, zero_name: str, axis: int, rank: int
) -> Quantised | None:
    scale = graph.constant(scale_name)
    zero = graph.constant(zero_name) if zero_name else np.zeros(np.shape(scale) if scale is not None else (), np.int64)
    if scale is None or zero is None or dtype.kind not in "iu":
        return None
    scale, zero = np.asarray(scale, dtype=np.float64), np.asarray(zero).astype(np.int64)
    if scale.size == 1:
        return Quantised(name, dtype, scale.reshape(()), zero.reshape(-1)[:1].reshape(()))
    if scale.ndim != 1 or zero.size not in (1, scale.size) or not rank:
        return None
    return Quantised(name, dtype, scale, np.broadcast_to(zero.reshape(-1), scale.shape), axis % rank)


def dequantised(graph: Graph, name: str) -> Quantised | None:
    """What a float tensor is made of, if DequantizeLinear makes it, with known scale and zero point."""
    node = graph.producers.get(name)
    if node is None or node.op != "DequantizeLinear" or node.attributes.get("block_size"):
        return None
    source = node.inputs[0]
    if source not in graph.dtypes:
        return None
    return _parameters(graph, source, graph.dtypes[source], node.input(1), node.input(2),
                       int(node.attributes.get("axis", 1)), len(graph.shapes.get(source, ())))  # fmt: skip


def quantiser(graph: Graph, node: Node) -> Quantised | None:
    """What QuantizeLinear makes, with known scale and zero point."""
    output = node.outputs[0]
    if node.attributes.get("block_size") or output not in graph.dtypes:
        return None
    return _parameters(graph, output, graph.dtypes[output], node.input(1), node.input(2),
                       int(node.attributes.get("axis", 1)), len(graph.shapes.get(output, ())))  # fmt: skip


def given(graph: Graph, name: str, scale: str, zero: str, dtype: np.dtype[Any] | None = None,
          axis: int = 0) -> Quantised | None:  # fmt: skip
    """A tensor of an operator in the QLinear form, whose scale and zero point are inputs of their own."""
    found = dtype or graph.dtypes.get(name)
    return _parameters(graph, name, found, scale, zero, axis, 1) if found is not None else None


def can_multiply(tensor: Quantised | None) -> bool:
    """Whether the array takes the tensor as an operand."""
    return tensor is not None and tensor.dtype.name in OPERANDS


@dataclass(frozen=True)
class Tail:
    """The way from a float result to integers again.

    Attributes:
        target: the integers.
        low, high: bounds of q - zero_point, of the type and of Relu and Clip on the way.
        nodes: Relu, Clip, BatchNormalization and QuantizeLinear, in order.
        norm: BatchNormalization on the way, in front of everything else.
    """

    target: Quantised
    low: int
    high: int
    nodes: tuple[Node, ...]
    norm: Node | None = None


def tail(graph: Graph, name: str, norm: bool = False, first: Node | None = None) -> Tail | None:
    """Follow a float tensor to its QuantizeLinear, through Relu, Clip (and BatchNormalization, if ``norm``).

    Args:
        graph: the graph.
        name: the tensor.
        norm: whether BatchNormalization may come first.
        first: the way's first node, which need not be the only one that takes the tensor.

    Returns:
        None if anybody else sees what is on the way, or anything else is on it.
    """
    low, high = -math.inf, math.inf
    nodes: list[Node] = []
    normalised: Node | None = None
    while True:
        node = first if first is not None and not nodes else graph.only_consumer(name)
        if node is None or node.inputs[0] != name or not all(o in ("", node.outputs[0]) for o in node.outputs):
            return None
        nodes.append(node)
        name = node.outputs[0]
        if node.op == "QuantizeLinear":
            target = quantiser(graph, node)
            if target is None or not target.per_tensor or target.dtype.name not in OPERANDS:
                return None
            bounds = [_quantised(value, target) for value in (low, high)]
            least, most = target.limits
            return Tail(target, max(least, min(bounds[0], most)), min(most, max(bounds[1], least)), tuple(nodes),
                        normalised)  # fmt: skip
        if node.op == "Relu":
            low, high = max(low, 0.0), max(high, 0.0)
        elif node.op == "Clip":
            ends = clip_ends(graph, node)
            if ends is None:
                return None
            low, high = min(max(low, ends[0]), ends[1]), min(max(high, ends[0]), ends[1])
        elif node.op == "BatchNormalization" and norm and len(nodes) == 1:
            if any(graph.constant(other) is None for other in node.inputs[1:5]):
                return None
            normalised = node
        else:
            return None


def clip_ends(graph: Graph, node: Node) -> tuple[float, float] | None:
    """Bounds of a Clip; None if they are not known."""
    ends = [-math.inf, math.inf]
    for index in (1, 2):
        if node.input(index):
            value = graph.constant(node.input(index))
            if value is None:
                return None
            ends[index - 1] = float(np.asarray(value).reshape(()))
    return ends[0], ends[1]


def _quantised(value: float, target: Quantised) -> int:
    if math.isinf(value):
        return target.limits[0 if value < 0 else 1]
    return int(np.clip(np.rint(value / float(target.scale)), *target.limits))


def fixed_point(ratio: Float64Array) -> tuple[Int64Array, Int64Array] | None:
    """Multipliers and shifts with mult / 2**shift nearest to the ratios, 24 bits long where the shift allows it.

    Args:
        ratio: float64 (C,), not negative.

    Returns:
        mult and shift, int64 (C,); None if a ratio is too large for them.
    """
    ratio = np.asarray(ratio, dtype=np.float64)
    if not np.isfinite(ratio).all() or (ratio < 0).any():
        return None
    shift = np.clip(POST_MULT_WIDTH - np.frexp(ratio)[1], 0, POST_MAX_SHIFT).astype(np.int64)
    full = np.rint(np.ldexp(ratio, shift)) >= 1 << POST_MULT_WIDTH
    shift = np.where(full & (shift > 0), shift - 1, shift)
    mult = np.rint(np.ldexp(ratio, shift)).astype(np.int64)
    return None if (mult >= 1 << POST_MULT_WIDTH).any() else (mult, shift)


def common_point(ratios: tuple[float, ...]) -> tuple[tuple[int, ...], int] | None:
    """The same with one shift for all: that of the largest."""
    found = fixed_point(np.array([max(ratios)]))
    if found is None:
        return None
    shift = int(found[1][0])
    return tuple(int(np.rint(np.ldexp(ratio, shift))) for ratio in ratios), shift
