"""Networks of well-known shapes with random quantised weights, as ONNX files in QDQ form: to compile and to measure.

ResNet-18: He et al., Deep Residual Learning for Image Recognition (arXiv:1512.03385), table 1. MobileNetV2: Sandler et
al., MobileNetV2: Inverted Residuals and Linear Bottlenecks (arXiv:1801.04381), table 2.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 19

_SPREAD = 0.25
"""Part of the largest value that a layer's results are about as large as (standard deviation): few of them clamp."""


class _Network:
    """A chain of layers; every tensor between them is uint8 behind Relu, else int8."""

    def __init__(self, name: str, density: float, seed: int) -> None:
        self._name, self._density = name, density
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self.channels: dict[str, int] = {}
        self._scales: dict[str, float] = {}

    def input(self, shape: Sequence[int]) -> str:
        self._inputs.append(helper.make_tensor_value_info("image", TensorProto.UINT8, shape))
        self.channels["image"] = shape[1]
        return self._dequantise("image", 1 / 64, np.uint8(128))

    def _constant(self, name: str, value: Any) -> str:
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _node(self, op: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op, list(inputs), [f"{name}_y"], name=name, **attributes))
        return f"{name}_y"

    def _dequantise(self, name: str, scale: float, zero: Any) -> str:
        scales = self._constant(f"{name}_scale", np.float32(scale)), self._constant(f"{name}_zero", zero)
        result = self._node("DequantizeLinear", f"{name}_dq", (name, *scales))
        self._scales[result] = scale
        return result

    def _quantise(self, name: str, value: str, relu: bool) -> str:
        scale, zero = (6 / 255, np.uint8(0)) if relu else (6 / 127, np.int8(0))
        scales = self._constant(f"{name}_out_scale", np.float32(scale)), self._constant(f"{name}_out_zero", zero)
        quantised = self._node("QuantizeLinear", f"{name}_q", (value, *scales))
        return self._dequantise(quantised, scale, zero)

    def _weights(self, name: str, x: str, shape: Sequence[int], fan: int) -> tuple[str, str]:
        """Weights, a scale for each output channel, and biases in units of their products."""
        values = self._rng.normal(0, 40, shape)
        values = np.where(self._rng.random(shape) < self._density, values, 0)
        values = np.clip(np.rint(values), -127, 127).astype(np.int8)
        scale = _SPREAD * 3 / (40 * math.sqrt(fan * self._density))
        scales = np.full(shape[0], scale, dtype=np.float32) * self._rng.uniform(0.8, 1.25, shape[0]).astype(np.float32)
        names = self._constant(f"{name}_w_scale", scales), self._constant(f"{name}_w_zero", np.zeros(shape[0], np.int8))
        weights = self._constant(f"{name}_w", values)
        unit = (np.float32(self._scales[x]) * scales).astype(np.float32)
        bias = np.rint(self._rng.normal(0, 0.1, shape[0]) / unit).astype(np.int32)
        units = self._constant(f"{name}_b_scale", unit), self._constant(f"{name}_b_zero", np.zeros_like(bias))
        biases = self._constant(f"{name}_b", bias)
        return (self._node("DequantizeLinear", f"{name}_w_dq", (weights, *names), axis=0),
                self._node("DequantizeLinear", f"{name}_b_dq", (biases, *units), axis=0))  # fmt: skip

    def conv(self, name: str, x: str, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1,
             relu: float | None = math.inf) -> str:  # fmt: skip
        """A convolution with bias; relu is its upper end, None for none."""
        cin = self.channels[x]
        weights = self._weights(name, x, (cout, cin // groups, kernel, kernel), cin // groups * kernel * kernel)
        value = self._node("Conv", name, (x, *weights), kernel_shape=[kernel] * 2, strides=[stride] * 2,
                           pads=[kernel // 2] * 4, group=groups)  # fmt: skip
        return self._through(name, value, cout, relu)

    def _through(self, name: str, value: str, channels: int, relu: float | None) -> str:
        if relu == math.inf:
            value = self._node("Relu", f"{name}_relu", (value,))
        elif relu is not None:
            ends = self._constant(f"{name}_low", np.float32(0)), self._constant(f"{name}_high", np.float32(relu))
            value = self._node("Clip", f"{name}_clip", (value, *ends))
        result = self._quantise(name, value, relu is not None)
        self.channels[result] = channels
        return result

    def add(self, name: str, a: str, b: str, relu: bool) -> str:
        return self._through(name, self._node("Add", name, (a, b)), self.channels[a], math.inf if relu else None)

    def pool(self, name: str, op: str, x: str, **attributes: Any) -> str:
        result = self._quantise(name, self._node(op, name, (x,), **attributes), True)
        self.channels[result] = self.channels[x]
        return result

    def classify(self, name: str, x: str, classes: int) -> None:
        flat = self._quantise("flatten", self._node("Flatten", "flatten", (x,)), True)
        weights = self._weights(name, flat, (classes, self.channels[x]), self.channels[x])
        self._node("Gemm", name, (flat, *weights), transB=1)
        self._nodes[-1].output[0] = "logits"

    def model(self, classes: int) -> onnx.ModelProto:
        batch = self._inputs[0].type.tensor_type.shape.dim[0].dim_value
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (batch, classes))]
        graph = helper.make_graph(self._nodes, self._name, self._inputs, outputs, self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        onnx.checker.check_model(model)
        return model


def resnet18(size: int = 224, density: float = 0.3, seed: int = 1, classes: int = 1000,
             batch: int = 1) -> onnx.ModelProto:  # fmt: skip
    """ResNet-18 for images of ``size`` x ``size``.

    Args:
        size: of the images.
        density: of the weights.
        seed: of weights and scales.
        classes: outputs.
        batch: images.
    """
    net = _Network("resnet18", density, seed)
    x = net.input((batch, 3, size, size))
    net.channels[x] = 3
    x = net.conv("conv1", x, 64, 7, 2)
    x = net.pool("maxpool", "MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for stage, channels in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            stride = 2 if stage > 1 and not block else 1
            name = f"layer{stage}.{block}"
            y = net.conv(f"{name}.conv1", x, channels, 3, stride)
            y = net.conv(f"{name}.conv2", y, channels, 3, relu=None)
            short = x if stride == 1 else net.conv(f"{name}.downsample", x, channels, 1, stride, relu=None)
            x = net.add(f"{name}.add", y, short, relu=True)
    x = net.pool("avgpool", "GlobalAveragePool", x)
    net.classify("fc", x, classes)
    return net.model(classes)


_MOBILE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(size: int = 224, density: float = 0.3, seed: int = 1, classes: int = 1000,
                 batch: int = 1) -> onnx.ModelProto:  # fmt: skip
    """MobileNetV2, width 1, for images of ``size`` x ``size``; arguments as for :func:`resnet18`."""
    net = _Network("mobilenet_v2", density, seed)
    x = net.input((batch, 3, size, size))
    net.channels[x] = 3
    x = net.conv("conv0", x, 32, 3, 2, relu=6.0)
    number = 0
    for expansion, channels, repeats, first in _MOBILE:
        for repeat in range(repeats):
            number += 1
            name, cin, stride = f"block{number}", net.channels[x], first if not repeat else 1
            y = net.conv(f"{name}.expand", x, cin * expansion, 1, relu=6.0) if expansion > 1 else x
            y = net.conv(f"{name}.depthwise", y, cin * expansion, 3, stride, groups=cin * expansion, relu=6.0)
            y = net.conv(f"{name}.project", y, channels, 1, relu=None)
            x = net.add(f"{name}.add", y, x, relu=False) if stride == 1 and cin == channels else y
    x = net.conv("conv_last", x, 1280, 1, relu=6.0)
    x = net.pool("avgpool", "GlobalAveragePool", x)
    net.classify("classifier", x, classes)
    return net.model(classes)


NETWORKS: dict[str, Callable[..., onnx.ModelProto]] = {"resnet18": resnet18, "mobilenet_v2": mobilenet_v2}


def random_images(model: onnx.ModelProto, seed: int = 1) -> dict[str, NDArray[Any]]:
    """Random inputs of one of these networks: uint8 around the zero point."""
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    values = np.random.default_rng(seed).normal(128, 50, shape)
    return {model.graph.input[0].name: np.clip(np.rint(values), 0, 255).astype(np.uint8)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a network and an input for it."""
    parser = argparse.ArgumentParser(prog="python -m maskwork.gen.network.zoo", description=__doc__)
    parser.add_argument("network", choices=sorted(NETWORKS))
    parser.add_argument("-o", "--output", required=True, metavar="MODEL.onnx")
    parser.add_argument("--input", metavar="X.npz", help="write random inputs as well")
    parser.add_argument("--size", type=int, default=224, help="of the images (default: %(default)s)")
    parser.add_argument("--density", type=float, default=0.3, help="of the weights (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    model = NETWORKS[options.network](options.size, options.density, options.seed)
    Path(options.output).write_bytes(model.SerializeToString())
    if options.input:
        np.savez_compressed(options.input, **random_images(model, options.seed))  # type: ignore[arg-type]
    return 0


if __name__ == "__main__":
    sys.exit(main())
