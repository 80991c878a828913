"""Attributes and forms that the random models do not have, against onnxruntime or the mathematics."""

import numpy as np
import pytest
from maskwork.gen.config import preset
from maskwork.gen.network.compile import compile_model
from maskwork.gen.network.reference import deviations
from maskwork.sim_tb.device import open_device
from onnx import numpy_helper

from .network_models import Builder

UINT8 = (np.float32(1 / 32), np.array(7, np.uint8))
OTHER = (np.float32(0.05), np.array(3, np.uint8))


def run_both(model, inputs):
    """The compiled model's outputs and onnxruntime's."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    compiled = compile_model(model, "small")
    assert sum(step.where == "accelerator" for step in compiled.steps) >= 1, compiled.placement
    outputs = compiled.run(inputs).outputs
    return [
        (outputs[name], value) for name, value in zip(compiled.graph.outputs, session.run(None, inputs), strict=True)
    ]


def close(model, inputs):
    for got, expected in run_both(model, inputs):
        assert got.shape == expected.shape and got.dtype == expected.dtype
        far = np.abs(got.astype(np.int64) - expected)
        assert far.max() <= 1 and np.count_nonzero(far) <= far.size / 50


def image(seed, shape=(1, 3, 7, 6)):
    build = Builder(seed, opset=19)
    x = build.input(shape, "uint8")
    build.grids[x] = UINT8
    return build, x


@pytest.mark.parametrize(
    ("op", "shape", "result", "attributes"),
    [
        ("MaxPool", (1, 3, 7, 6), (1, 3, 4, 3), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
        ("MaxPool", (1, 3, 7, 6), (1, 3, 3, 4), {"kernel_shape": [3, 2], "dilations": [2, 2]}),
        ("MaxPool", (1, 3, 7, 6), (1, 3, 4, 3),
         {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ("AveragePool", (1, 3, 7, 6), (1, 3, 4, 3), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
        ("AveragePool", (1, 3, 7, 6), (1, 3, 4, 3),
         {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1, "ceil_mode": 1}),
        ("AveragePool", (1, 3, 9), (1, 3, 4), {"kernel_shape": [3], "strides": [2]}),
        ("GlobalMaxPool", (1, 3, 7, 6), (1, 3, 1, 1), {}),
    ],
)  # fmt: skip
def test_pooling(op, shape, result, attributes):
    build, x = image(1, shape)
    y = build.quantise(build.node(op, [build.dequantise(x)], result, **attributes), OTHER)
    close(build.finish(y), build.feed())


@pytest.mark.parametrize(
    ("attributes", "sizes"),
    [
        ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (14, 12)),
        ({"auto_pad": "SAME_LOWER", "strides": [2, 2]}, (14, 12)),
        ({"output_shape": [15, 13], "strides": [2, 2]}, (15, 13)),
        ({"strides": [3, 2], "pads": [0, 2, 3, 1], "output_padding": [2, 0], "dilations": [2, 1]}, (22, 10)),
    ],
)  # fmt: skip
def test_transposed_convolution(attributes, sizes):
    build, x = image(2)
    w, ws, wz = build.weights((3, 4, 3, 3), None, 4)
    real = build.node("DequantizeLinear", [w, ws, wz], (3, 4, 3, 3))
    y = build.node("ConvTranspose", [build.dequantise(x), real], (1, 4, *sizes), kernel_shape=[3, 3], **attributes)
    close(build.finish(build.quantise(y, OTHER)), build.feed())


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_padding(mode):
    build, x = image(3)
    pads = build.constant(np.array([0, 0, 1, 2, 0, 0, 2, 1], np.int64))
    y = build.node("Pad", [build.dequantise(x), pads], (1, 3, 10, 9), mode=mode)
    y = build.quantise(y, build.grids[x])
    w, ws, wz = build.weights((2, 3, 1, 1), 0, 2)
    z = build.node("QLinearConv", [y, *build.parameters(UINT8), w, ws, wz, *build.parameters(OTHER)], (1, 2, 10, 9))
    close(build.finish(z), build.feed())


@pytest.mark.parametrize("turned", [False, True])
def test_gemm_of_a_turned_operand(turned):
    build = Builder(4, opset=19)
    x = build.input((9, 5) if turned else (5, 9), "uint8")
    w, ws, wz = build.weights((9, 4), None, 4)
    real = build.node("DequantizeLinear", [w, ws, wz], (9, 4))
    bias = build.constant(np.float32(0.25))
    y = build.node("Gemm", [build.dequantise(x), real, bias], (5, 4), transA=int(turned), alpha=0.5, beta=2.0)
    close(build.finish(build.quantise(y, OTHER)), build.feed())


@pytest.mark.parametrize(
    ("left", "right", "result"),
    [((5, 8), (8, 6), (5, 6)), ((2, 3, 5, 8), (2, 3, 8, 6), (2, 3, 5, 6)), ((2, 3, 5, 8), (3, 8, 6), (2, 3, 5, 6))],
)
def test_products_of_two_computed_operands(left, right, result):
    build = Builder(5, opset=19)
    a, b = build.input(left, "uint8"), build.input(right, "int8")
    y = build.node("MatMul", [build.dequantise(a), build.dequantise(b)], result)
    close(build.finish(build.quantise(y, (np.float32(0.2), np.array(100, np.uint8)))), build.feed())


def test_a_constant_stack_of_matrices():
    build = Builder(6, opset=19)
    x = build.input((3, 5, 8), "uint8")
    # of 7 bits: for stacks, onnxruntime saturates sums of two larger products on processors without VNNI all the same
    w = build.constant(build.rng.integers(-64, 64, (3, 8, 6)).astype(np.int8))
    ws, wz = build.constant(np.float32(0.02)), build.constant(np.int8(3))
    inputs = [x, *build.parameters(build.grids[x]), w, ws, wz, *build.parameters(OTHER)]
    close(build.finish(build.node("QLinearMatMul", inputs, (3, 5, 6))), build.feed())


def test_a_product_whose_result_stays_float():
    """Sums of the array, scaled on the host: exact but for float32."""
    build, x = image(7)
    w, ws, wz = build.weights((4, 3, 3, 3), 0, 4)
    real = build.node("DequantizeLinear", [w, ws, wz], (4, 3, 3, 3), axis=0)
    bias = build.constant(np.float32([0.1, -2, 3, 0]))
    model = build.finish(build.node("Conv", [build.dequantise(x), real, bias], (1, 4, 5, 4)))
    inputs = build.feed()
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert values[bias].shape == (4,)
    compiled = compile_model(model, preset("small").replace(post=False))
    with open_device("golden", compiled.config) as device:
        (entry,) = deviations(compiled, inputs, device)
    assert entry["operation"] == "Conv" and entry["largest"] < 1e-6
