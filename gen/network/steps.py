"""Steps of a compiled network: what each takes and makes, where it runs, and running it."""

from __future__ import annotations

import abc
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from maskwork.gen.config import Config
from maskwork.gen.execute import execute
from maskwork.gen.network.graph import Node
from maskwork.gen.network.host import run_node
from maskwork.gen.program import Program
from maskwork.gen.report import make_report
from numpy.typing import NDArray

if TYPE_CHECKING:
    from maskwork.sim_tb.device import Device

Tensors = dict[str, NDArray[Any]]


@dataclass
class Run:
    """One run of a network on a device.

    Attributes:
        device: where programs run.
        target: its name in reports.
        opset: of the model.
        reports: of every program that ran, in order.
    """

    device: Device
    target: str
    opset: int
    reports: list[dict[str, Any]] = field(default_factory=list)

    def execute(
        self, step: Step, program: Program, operands: Mapping[str, Any], macs: Mapping[str, int] | None = None
    ) -> NDArray[Any]:
        """Run a program, keep its report, and return output "c"."""
        start = time.perf_counter()
        done = execute(self.device, program, operands)
        report = make_report(
            self.target, self.device.config, macs or {"macs_dense": 0, "macs_effectual": 0}, words_in=done.words_in,
            words_out=done.words_out, seconds=time.perf_counter() - start, counters=done.counters,
        )  # fmt: skip
        head: dict[str, Any] = {"layer": step.name, "pass": "forward", "operation": step.operation}
        shown = {name: np.asarray(operands[name]) for name in ("a", "b") if name in operands}
        head["shapes"] = {name: list(value.shape) for name, value in (shown | {"c": done.outputs["c"]}).items()}
        if "b" in shown:
            head["densities"] = {name: float(np.mean(value != 0)) for name, value in shown.items()} | {"c": 1.0}
        self.reports.append(head | report)
        return done.outputs["c"]


@dataclass(kw_only=True)
class Step(abc.ABC):
    """A step.

    Attributes:
        name: of the node that it is about.
        nodes: all nodes that it does, by name.
        operation: what it does, in a word.
        inputs, outputs: names of tensors.
        where: "accelerator" or "host".
        reason: why it is on the host.
    """

    name: str
    nodes: tuple[str, ...]
    operation: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    where: str = "accelerator"
    reason: str = ""

    @abc.abstractmethod
    def run(self, values: Tensors, run: Run) -> Tensors:
        """Compute the outputs from the tensors known so far."""

    def lower(self, config: Config, density: float | None = None) -> None:
        """Make the step's programs.

        Args:
            config: the accelerator.
            density: expected part of nonzeros in the streamed operand; None for an unknown one.
        """
        return None

    @property
    def programs(self) -> list[Program]:
        """Programs of the accelerator, after :meth:`lower`."""
        return []

    @property
    def weights(self) -> dict[str, NDArray[Any]]:
        """Operands of the programs that do not depend on the network's inputs."""
        return {}


@dataclass(kw_only=True)
class HostNode(Step):
    """A node that runs on the host as it is."""

    node: Node
    where: str = "host"

    @classmethod
    def of(cls, node: Node, reason: str) -> HostNode:
        """For one node."""
        return cls(
            name=node.name, nodes=(node.name,), operation=node.op, inputs=tuple(n for n in node.inputs if n),
            outputs=tuple(n for n in node.outputs if n), node=node, reason=reason,
        )  # fmt: skip

    def run(self, values: Tensors, run: Run) -> Tensors:
        """By ONNX's reference implementation."""
        return run_node(self.node, values, run.opset)


@dataclass(kw_only=True)
class HostMove(Step):
    """A node that moves values about and runs on integers: they stay what they are.

    Attributes:
        node: with the names of integer tensors.
        constants: further inputs of it.
    """

    node: Node
    constants: Tensors
    where: str = "host"
    reason: str = "moves values about"

    @classmethod
    def of(cls, node: Node, rename: Mapping[str, str], constants: Tensors, nodes: tuple[str, ...]) -> HostMove:
        """A node with other names of its tensors.

        Args:
            node: the node.
            rename: new names by old ones.
            constants: inputs that nobody else makes, by new name.
            nodes: names of all nodes that this does.
        """
        proto = onnx.NodeProto()
        proto.CopyFrom(node.proto)
        inputs = tuple(rename.get(name, name) for name in node.inputs)
        outputs = tuple(rename.get(name, name) for name in node.outputs)
        del proto.input[:], proto.output[:]
        proto.input.extend(inputs)
        proto.output.extend(outputs)
        moved = Node(node.name, node.op, inputs, outputs, node.attributes, proto)
        return cls(
            name=node.name, nodes=nodes, operation=node.op, inputs=tuple(n for n in inputs if n and n not in constants),
            outputs=tuple(n for n in outputs if n), node=moved, constants=constants,
        )  # fmt: skip

    def run(self, values: Tensors, run: Run) -> Tensors:
        """By ONNX's reference implementation, on integers."""
        return run_node(self.node, values | self.constants, run.opset)


@dataclass(frozen=True, kw_only=True)
class Requantise:
    """Sums become integers of a type: clamp(round_half_even((sum + bias) * mult / 2**shift), low, high) + zero.

    mult and shift are int64 (C,); low and high bound q - zero.
    """

    mult: NDArray[np.int64]
    shift: NDArray[np.int64]
    low: int
    high: int
    zero: int
    dtype: np.dtype[Any]

    def finish(self, values: NDArray[Any]) -> NDArray[Any]:
        """What the accelerator gives, q - zero, as q."""
        return (values + self.zero).astype(self.dtype)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sums become floats on the host: sum * scale + bias, both float64 (C,)."""

    scale: NDArray[np.float64]
    bias: NDArray[np.float64]

    def finish(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sums (..., C) as float32."""
        return (values * self.scale + self.bias).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Raw:
    """Sums stay int32."""

    def finish(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sums as int32."""
        return values.astype(np.int32)


Finish = Requantise | Scale | Raw
