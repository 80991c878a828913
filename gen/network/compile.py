"""Compiling a network: steps from nodes, programs from steps, and running them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.gen.matmul import as_config
from maskwork.gen.network import fuse, fuse_pool, fuse_products, recurrent
from maskwork.gen.network.fuse import Refused, Rule
from maskwork.gen.network.graph import PRODUCTS, QUANTISERS, QUIET_ON_HOST, SHAPES, Graph, load
from maskwork.gen.network.steps import HostNode, Run, Step, Tensors
from maskwork.gen.report import link_report, total_report

if TYPE_CHECKING:
    from maskwork.sim_tb.device import Device

Watch = Callable[[Step, Tensors, Tensors], None]

RULES: dict[str, Rule] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), fuse_products.conv),
    **dict.fromkeys(("MatMul", "Gemm"), fuse_products.matmul),
    "QLinearConv": fuse_products.qlinear_conv,
    "QLinearMatMul": fuse_products.qlinear_matmul,
    "ConvInteger": fuse_products.conv_integer,
    "MatMulInteger": fuse_products.matmul_integer,
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), fuse_pool.pool),
    "Add": fuse.addition,
    **dict.fromkeys(("Relu", "Clip", "QuantizeLinear"), fuse.clamp),
    **dict.fromkeys(fuse.MOVES, fuse.move),
    "LSTM": recurrent.lstm,
    "Concat": fuse.concat,
    "Pad": fuse.pad,
}
"""What makes steps of an operator, where it can."""


@dataclass(frozen=True)
class Outcome:
    """What a run of a network gave.

    Attributes:
        outputs: the network's outputs by name.
        report: what it cost, as in docs/formats.md, with ``layers``; ``{}`` if nothing ran on the accelerator.
        values: every tensor that was computed, by name.
    """

    outputs: Tensors
    report: dict[str, Any]
    values: Tensors


@dataclass
class Compiled:
    """A network made ready for one configuration.

    Attributes:
        graph: the model.
        config: the accelerator.
        steps: in order.
    """

    graph: Graph
    config: Config
    steps: list[Step]
    seconds: float = field(default=0.0)

    @property
    def inputs(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and dtype of each input by name."""
        return self.graph.inputs

    @property
    def placement(self) -> list[dict[str, str]]:
        """Where each step runs: ``step``, ``operation``, ``where`` and, for the host, ``reason``."""
        return [{"step": step.name, "operation": step.operation, "where": step.where,
                 **({"reason": step.reason} if step.reason else {})} for step in self.steps]  # fmt: skip

    def check_inputs(self, inputs: Mapping[str, Any]) -> Tensors:
        """Inputs as arrays.

        Raises:
            MaskworkTypeError, MaskworkValueError: for one that is missing, unknown, or of another shape or type.
        """
        known = self.graph.inputs
        for name in inputs:
            if name not in known:
                raise MaskworkValueError(f"there is no input {name!r}; inputs: {', '.join(known)}")
        values: Tensors = {}
        for name, (shape, dtype) in known.items():
            if name not in inputs:
                raise MaskworkValueError(f"input {name!r} is missing: {dtype} of shape {list(shape)} is expected")
            value = np.asarray(inputs[name])
            if value.dtype != dtype:
                raise MaskworkTypeError(f"input {name!r} must be {dtype}, not {value.dtype}")
            if value.shape != shape:
                raise MaskworkValueError(f"input {name!r} must have shape {list(shape)}, not {list(value.shape)}")
            values[name] = value
        return values

    def run(self, inputs: Mapping[str, Any], target: str = "golden", **options: Any) -> Outcome:
        """Run the network.

        Args:
            inputs: arrays by input name.
            target: "golden", "cycle", "rtl" or "serial:PORT".
            **options: of the device, as for :func:`maskwork.open`.

        Raises:
            MaskworkTypeError, MaskworkValueError: for inputs that do not fit.
            DeviceError: if the device fails.
        """
        from maskwork.sim_tb.device import open_device

        values = self.check_inputs(inputs)
        with open_device(target, self.config, **options) as device:
            return self.run_on(device, values, target)

    def run_on(
        self,
        device: Device,
        inputs: Tensors,
        target: str,
        watch: Callable[[Step, Tensors, Tensors], None] | None = None,
    ) -> Outcome:
        """Run the network on a device that is open.

        Args:
            device: the device.
            inputs: checked inputs.
            target: the device's name in the report.
            watch: told every step with all tensors known before it and those that it made.
        """
        start = time.perf_counter()
        values = {**self.graph.constants, **inputs}
        run = Run(device, target, self.graph.opset)
        computed: Tensors = {}
        for step in self.steps:
            made = step.run(values, run)
            if watch is not None:
                watch(step, values, made)
            values |= made
            computed |= made
        report = total_report(run.reports, time.perf_counter() - start) if run.reports else {}
        report |= link_report(device)
        return Outcome({name: values[name] for name in self.graph.outputs}, report, computed)


def compile_model(
    model: str | os.PathLike[str] | onnx.ModelProto,
    config: Config | str | None = None,
    *,
    strict: bool = False,
    shapes: Mapping[str, Sequence[int]] | None = None,
    densities: Mapping[str, float] | None = None,
) -> Compiled:
    """Compile a quantised ONNX model.

    Args:
        model: file name, or the model.
        config: the accelerator: a configuration, a preset's name, or None for "small".
        strict: refuse a model of which the host has to compute more than quantisation and shapes.
        shapes: shapes of inputs that the file leaves open.
        densities: expected part of nonzeros (q - zero_point) of tensors by name, for the choice of tiles.

    Raises:
        MaskworkError: for a model that cannot be read or run; names the node.
    """
    start = time.perf_counter()
    chosen = as_config(config)
    graph = load(model, shapes)
    steps = _steps(graph, chosen)
    products = {node.name for node in graph.nodes if node.op in PRODUCTS or node.op == "LSTM"}
    done = {name for step in steps if step.where == "accelerator" for name in step.nodes}
    if not done and products:
        first = next(step for step in steps if step.name in products)
        raise MaskworkValueError(
            f"{graph.name}: no node can run on the accelerator, the first product {first.name!r} because "
            f"{first.reason}; a quantised model is needed (QLinear, Integer or QDQ form; see `maskwork quantise`)"
        )
    loud = [step for step in steps if step.where == "host" and step.operation not in QUIET_ON_HOST]
    if strict and loud:
        names = ", ".join(f"{step.name!r} ({step.operation}: {step.reason})" for step in loud[:5])
        raise MaskworkValueError(f"{graph.name}: strict: these run on the host: {names}")
    for step in steps:
        step.lower(chosen, (densities or {}).get(step.inputs[0]) if step.inputs else None)
    return Compiled(graph, chosen, steps, time.perf_counter() - start)


def _steps(graph: Graph, config: Config) -> list[Step]:
    """Steps of all nodes whose results somebody needs."""
    made: dict[str, tuple[int, list[Step]]] = {}  # by the node that is fused
    taken: set[str] = set()
    reasons: dict[str, str] = {}
    place = {node.name: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        rule = RULES.get(node.op)
        if node.name in taken or rule is None:
            continue
        try:
            steps = rule(graph, node, config)
        except Refused as refusal:
            reasons[node.name] = str(refusal)
            continue
        nodes = {name for step in steps for name in step.nodes}
        taken |= nodes
        made[node.name] = max(place[name] for name in nodes), steps
    order: list[tuple[int, Step]] = [(at, step) for at, steps in made.values() for step in steps]
    for node in graph.nodes:
        if node.name not in taken:
            order.append((place[node.name], HostNode.of(node, _reason(node.op, reasons.get(node.name)))))
    order.sort(key=lambda entry: entry[0])
    return _needed(graph, [step for _, step in order])


def _reason(operator: str, refusal: str | None) -> str:
    """Why a node is on the host."""
    if operator in SHAPES:
        return "moves values about"
    if operator in QUANTISERS:
        return "between floats and integers"
    return refusal or "a float operator"


def _needed(graph: Graph, steps: list[Step]) -> list[Step]:
    """Steps without those whose results nobody takes, such as DequantizeLinear in front of a product."""
    wanted = set(graph.outputs)
    kept = []
    for step in reversed(steps):
        if wanted & set(step.outputs):
            kept.append(step)
            wanted |= set(step.inputs)
    return kept[::-1]
