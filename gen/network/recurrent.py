"""LSTM: the products of its gates on the array, step by step; gate functions and cell state on the host."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkError
from maskwork.gen.lower import lower_matmul
from maskwork.gen.network.fuse import Refused, covered, quantised_input
from maskwork.gen.network.fuse_products import less_zero, real
from maskwork.gen.network.graph import Graph, Node
from maskwork.gen.network.products import ASSUMED_DENSITY
from maskwork.gen.network.quant import Quantised, can_multiply, dequantised
from maskwork.gen.network.steps import Run, Step, Tensors
from maskwork.gen.program import Program
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]

STATE_MAX = 127
"""The state travels as int8: tanh times a sigmoid is within 1, so that 1 / 127 is its scale."""


@dataclass(kw_only=True)
class Lstm(Step):
    """An LSTM layer of one or two directions.

    The inputs of all steps are one product (T * N, I) . (I, 4H); the state of each step is another, (N, H) . (H, 4H).

    Attributes:
        x: the input, ONNX (T, N, I), or (N, T, I) with ``batch_first``.
        kernel, recurrent: int64 (D, I, 4H) and (D, H, 4H), q - zero_point.
        x_unit, h_unit: value of a sum of 1, (4H,), of the state's product at a state scale of 1.
        bias: (D, 4H).
        reverse: whether each direction runs backwards.
        initial: names of initial state and cell, "" for zeros.
        sizes: T, N, I, H.
    """

    x: Quantised
    kernel: Int64Array
    recurrent: Int64Array
    x_unit: Float64Array
    h_unit: Float64Array
    bias: Float64Array
    reverse: tuple[bool, ...]
    initial: tuple[str, str]
    sizes: tuple[int, int, int, int]
    batch_first: bool
    results: tuple[str, ...]
    _programs: list[Program] = field(default_factory=list, init=False)

    @property
    def programs(self) -> list[Program]:
        """Of the inputs, and of the state: the same for both directions."""
        return self._programs

    @property
    def weights(self) -> dict[str, NDArray[Any]]:
        """Kernels of both products by direction."""
        return {f"{name}{d}": values[d] for name, values in (("kernel", self.kernel), ("recurrent", self.recurrent))
                for d in range(len(self.reverse))}  # fmt: skip

    def lower(self, config: Config, density: float | None = None) -> None:
        """Make the programs.

        Raises:
            MaskworkError: naming the node, if the configuration cannot run it.
        """
        t, n, i, h = self.sizes
        self._programs.clear()
        try:
            for rows, inner, weights, a in ((t * n, i, self.kernel, density or ASSUMED_DENSITY),
                                            (n, h, self.recurrent, 1.0)):  # fmt: skip
                b = max(float(np.mean(weights != 0)), 1e-4)
                self._programs.append(lower_matmul(config, rows, inner, 4 * h, density=(a, b, 1.0)))
        except MaskworkError as error:
            raise type(error)(f"node {self.name!r}: {error}") from None

    def run(self, values: Tensors, run: Run) -> Tensors:
        """Products on the array, the rest on the host in float64."""
        t, n, i, h = self.sizes
        x = values[self.x.name].astype(np.int64) - int(self.x.zero_point)
        x = np.swapaxes(x, 0, 1) if self.batch_first else x
        starts = [self._start(values, name) for name in self.initial]
        sequences, states, cells = [], [], []
        for d, backwards in enumerate(self.reverse):
            order = x[::-1] if backwards else x
            a = np.ascontiguousarray(order).reshape(t * n, i)
            given = self._product(run, 0, a, self.kernel[d]) * self.x_unit + self.bias[d]
            state, cell = starts[0][d], starts[1][d]
            made = []
            for step in given.reshape(t, n, 4 * h):
                state, cell = self._cell(run, step, state, cell, self.recurrent[d])
                made.append(state)
            sequences.append(np.stack(made[::-1] if backwards else made))
            states.append(state)
            cells.append(cell)
        outputs = [np.stack(sequences, axis=1), np.stack(states), np.stack(cells)]
        if self.batch_first:
            outputs = [outputs[0].transpose(2, 0, 1, 3), *(value.swapaxes(0, 1) for value in outputs[1:])]
        return {name: value.astype(np.float32) for name, value in zip(self.results, outputs, strict=False) if name}

    def _start(self, values: Tensors, name: str) -> Float64Array:
        _, n, _, h = self.sizes
        if not name:
            return np.zeros((len(self.reverse), n, h))
        value = values[name].astype(np.float64)
        return value.swapaxes(0, 1) if self.batch_first else value

    def _product(self, run: Run, number: int, a: Int64Array, b: Int64Array) -> Float64Array:
        from maskwork.sim_tb.golden import macs

        return run.execute(self, self._programs[number], {"a": a, "b": b}, macs(a, b)).astype(np.float64)

    def _cell(
        self, run: Run, given: Float64Array, state: Float64Array, cell: Float64Array, recurrent: Int64Array
    ) -> tuple[Float64Array, Float64Array]:
        """One step: ONNX's gates are input, output, forget, cell."""
        scale = max(1.0, float(np.abs(state).max(initial=0.0))) / STATE_MAX  # an initial state may be beyond 1
        gates = given
        integers = np.rint(state / scale).astype(np.int64)
        if integers.any():
            gates = given + self._product(run, 1, integers, recurrent) * (self.h_unit * scale)
        i, o, f, c = np.split(gates, 4, axis=1)
        cell = _sigmoid(f) * cell + _sigmoid(i) * np.tanh(c)
        return _sigmoid(o) * np.tanh(cell), cell


def _sigmoid(x: Float64Array) -> Float64Array:
    return 0.5 * (1 + np.tanh(0.5 * x))


def lstm(graph: Graph, node: Node, config: Config) -> list[Step]:
    """LSTM whose input and weights come from DequantizeLinear."""
    x = quantised_input(graph, node, 0)
    attributes = node.attributes
    for name, allowed in (("clip", None), ("input_forget", 0), ("activation_alpha", None), ("activation_beta", None)):
        if attributes.get(name, allowed) != allowed:
            raise Refused(f"its attribute {name} is not supported on the accelerator")
    names = [name.lower() for name in attributes.get("activations", [])]
    if any(name != ("sigmoid", "tanh", "tanh")[n % 3] for n, name in enumerate(names)):
        raise Refused("its activations are not Sigmoid, Tanh, Tanh")
    if node.input(4) or node.input(7):
        raise Refused("it has sequence lengths or peepholes")
    parts = []
    for index in (1, 2):
        w = dequantised(graph, node.inputs[index])
        values = graph.constant(w.name) if w is not None else None
        if w is None or values is None or not can_multiply(w) or w.axis not in (None, 1):
            raise Refused("its weights are not constant int8 or uint8 behind DequantizeLinear, with scales per row")
        parts.append((w, np.ascontiguousarray(less_zero(w, values).swapaxes(1, 2))))
    (w, kernel), (r, recurrent) = parts
    directions, h = recurrent.shape[:2]
    bias = real(graph, node.input(3)) if node.input(3) else np.zeros((directions, 8 * h))
    if bias is None:
        raise Refused("its bias is not constant")
    shape = graph.shapes[x.name]
    batch_first = bool(attributes.get("layout", 0))
    t, n = (shape[1], shape[0]) if batch_first else shape[:2]
    direction = attributes.get("direction", "forward")
    columns = (4 * h,)
    initial = (node.input(5), node.input(6))
    known = {name for name in initial if name and name not in graph.constants}
    return [Lstm(
        name=node.name, nodes=covered(node), operation="LSTM", inputs=(x.name, *sorted(known)),
        outputs=tuple(name for name in node.outputs if name), x=x, kernel=kernel, recurrent=recurrent,
        x_unit=np.broadcast_to(x.scale * w.scale, columns), h_unit=np.broadcast_to(r.scale, columns),
        bias=bias[:, : 4 * h] + bias[:, 4 * h :],
        reverse={"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction],
        initial=initial, sizes=(t, n, shape[2], h), batch_first=batch_first, results=node.outputs,
    )]  # fmt: skip
