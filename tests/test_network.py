"""Quantised networks: every step against ONNX's reference, on every target."""

import collections
import json

import numpy as np
import onnx
import pytest
from maskwork.gen import cli_common
from maskwork.gen.cli import cli
from maskwork.gen.config import preset
from maskwork.gen.demo_net import NETWORK_FILE, load_images, load_network
from maskwork.gen.errors import MaskworkError
from maskwork.gen.lower import lower_matmul
from maskwork.gen.network import zoo
from maskwork.gen.network.compile import RULES, compile_model
from maskwork.gen.network.reference import deviations, difference
from maskwork.sim_tb.device import open_device

from .network_models import Builder, dynamic_model, lstm_model, random_model

MODELS, ON_RTL = 220, 40

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")  # the reference's


def run(*args):
    return cli_common.run_command(cli, [str(arg) for arg in args])


@pytest.mark.slow
def test_random_models():
    """Operators without a rescale exact; with one within one unit, and exact but for ties that float32 decides."""
    elements, different, ties = (collections.Counter() for _ in range(3))
    config = preset("small")
    with open_device("golden", config) as device:
        for seed in range(MODELS):
            model, inputs = random_model(seed)
            compiled = compile_model(model, config)
            for entry in deviations(compiled, inputs, device):
                name = entry["operation"]
                elements[name] += entry["elements"]
                different[name] += entry["different"]
                ties[name] += entry["ties"]
                assert entry["largest"] <= (0 if name.endswith("Integer") else 1), (seed, entry)
    assert set(elements) >= {"Add", "AveragePool", "Conv", "ConvInteger", "ConvTranspose", "Gemm", "GlobalAveragePool",
                             "MatMul", "MatMulInteger", "MaxPool", "QLinearConv", "QLinearMatMul", "Relu"}  # fmt: skip
    assert min(elements.values()) > 100
    for name in elements:
        assert different[name] - ties[name] <= elements[name] / 1000, (name, different[name], ties[name])
    # a mean of two integers on the grid it came from is a tie half of the time
    assert sum(ties.values()) <= sum(elements.values()) / 200


@pytest.mark.slow
def test_random_models_against_onnxruntime():
    """Whole models, end to end, against the second reference: where it runs them, and but for ties."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # without it, some processors saturate sums of uint8 x int8 products at 16 bits
    options.add_session_config_entry("session.x64quantprecision", "1")
    config, elements, different, ran = preset("small"), 0, 0, 0
    with open_device("golden", config) as device:
        for seed in range(MODELS):
            model, inputs = random_model(seed)
            compiled = compile_model(model, config)
            try:
                session = onnxruntime.InferenceSession(model.SerializeToString(), options,
                                                       providers=["CPUExecutionProvider"])  # fmt: skip
            except Exception as error:
                # operators of some types are not implemented there; moving a MaxPool past its QuantizeLinear goes wrong
                assert "NOT_IMPLEMENTED" in str(error) or "TypeInferenceError" in str(error), (seed, error)
                continue
            expected = session.run(None, inputs)
            got = compiled.run_on(device, inputs, "golden").outputs
            found = [difference(got[name], value) for name, value in zip(compiled.graph.outputs, expected, strict=True)]
            elements += sum(entry["elements"] for entry in found)
            different += sum(entry["different"] for entry in found)
            ran += 1
    assert ran >= 120 and different <= elements / 50, (ran, elements, different)


@pytest.mark.slow
def test_random_models_on_the_rtl():
    """The same outputs as the golden model, tensor by tensor, and the cycle model's cycles."""
    config, host = preset("small"), 0
    with open_device("rtl", config) as rtl, open_device("cycle", config) as cycle:
        for seed in range(1000, 1000 + ON_RTL):
            model, inputs = random_model(seed)
            compiled = compile_model(model, config)
            values = compiled.check_inputs(inputs)
            got, expected = (compiled.run_on(device, values, "x") for device in (rtl, cycle))
            assert got.values.keys() == expected.values.keys()
            for name, value in expected.values.items():
                assert value.dtype == got.values[name].dtype and np.array_equal(value, got.values[name]), (seed, name)
            host += not expected.report
            for one, other in zip(got.report.get("layers", ()), expected.report.get("layers", ()), strict=True):
                assert {k: v for k, v in one.items() if k != "seconds"} == {
                    k: v for k, v in other.items() if k != "seconds"
                }, (seed, one["layer"])
    assert host < ON_RTL / 10


@pytest.mark.slow
def test_the_demo_network_costs_what_was_predicted(tmp_path, capsys):
    images = load_images()[0][load_network()[1][:3]]
    np.savez(tmp_path / "x.npz", image=np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    shape = ("--shape", "image=3,1,8,8", "--input", tmp_path / "x.npz")
    assert run("compile", NETWORK_FILE, *shape, "-o", tmp_path / "out", "--json") == 0
    predicted = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == predicted
    assert run("run", NETWORK_FILE, *shape, "--target", "rtl", "-o", tmp_path / "y.npz", "--json") == 0
    got = json.loads(capsys.readouterr().out)
    assert [layer["layer"] for layer in got["layers"]] == ["conv1", "conv2", "conv3", "fc1", "fc2"]
    for one, other in zip(got["layers"], predicted["layers"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert got["cycles"] == predicted["cycles"] > 10000
    for layer in got["layers"]:
        assert sum(layer["pe_cycles"].values()) == layer["cycles"] * got["pes"]
    logits = np.load(tmp_path / "y.npz")["logits"]
    assert logits.dtype == np.int32 and logits.shape == (3, 10)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"listing.txt", "memory.json", "weights.npz", "report.json", "00_conv1.mwp", "04_fc1.mwp"} <= files
    assert run("disasm", tmp_path / "out" / "00_conv1.mwp") == 0
    weights = np.load(tmp_path / "out" / "weights.npz")
    assert np.array_equal(weights["00_conv1/b"], load_network()[0][0].weight)


def test_memory_map(tmp_path):
    from maskwork.gen.network.output import memory_map

    compiled = compile_model(zoo.resnet18(32, classes=10), "small")
    found = memory_map(compiled)
    tensors = list(found["tensors"].items())
    for number, (name, one) in enumerate(tensors):
        assert one["offset"] + one["bytes"] <= found["bytes"]
        for other_name, other in tensors[number + 1 :]:
            together = one["first"] <= other["last"] and other["first"] <= one["last"]
            apart = one["offset"] + one["bytes"] <= other["offset"] or other["offset"] + other["bytes"] <= one["offset"]
            assert apart or not together, (name, other_name)
    # the first stage: its input, the result of the first convolution and that of the second
    assert 3 * 64 * 8 * 8 <= found["bytes"] < 2 * (3 * 32 * 32 + 64 * 16 * 16)
    for entry in found["steps"].values():
        assert all(0 < own["largest"] <= own["capacity"] and own["loads"] > 0 for own in entry.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_networks_of_the_literature(name):
    """Small images: all layers on the accelerator, each within one unit of the reference."""
    model = zoo.NETWORKS[name](32, classes=10)
    compiled = compile_model(model, "ulx3s-85f", strict=True)
    with open_device("golden", compiled.config) as device:
        found = deviations(compiled, zoo.random_images(model), device)
    assert len(found) >= 30
    assert all(entry["largest"] <= 1 for entry in found)
    integers = [entry for entry in found if entry["operation"] != "Gemm"]
    off = sum(entry["different"] - entry["ties"] for entry in integers)
    assert off <= sum(entry["elements"] for entry in integers) / 1000
    products = sum(step.where == "accelerator" for step in compiled.steps)
    assert products == len(found)


def larger_than_buffers():
    """Weights and activations of one convolution beyond every buffer of preset tiny with small banks."""
    build = Builder(7, opset=19)
    x = build.input((1, 40, 12, 12), "uint8")
    w, ws, wz = build.weights((48, 40, 3, 3), 0, 48)
    grid = build.grid(span=4)
    y = build.node("QLinearConv", [x, *build.parameters(build.grids[x]), w, ws, wz, *build.parameters(grid)],
                   (1, 48, 12, 12), kernel_shape=[3, 3], pads=[1, 1, 1, 1])  # fmt: skip
    return build.finish(y), build.feed()


@pytest.mark.slow
def test_a_layer_larger_than_every_buffer():
    config = preset("tiny").replace(k_depth=32, a_depth=64, a_segments=16, c_rows=16, psum_rows=2)
    model, inputs = larger_than_buffers()
    compiled = compile_model(model, config)
    operands = compiled.steps[0].weights["b"]
    assert np.prod(operands.shape[:3]) > 2 * config.k_depth and operands.shape[3] > config.tile_columns
    assert 12 * 12 > 2 * config.a_segments * config.clusters and 40 * 144 > 2 * config.a_depth * config.fetch_width
    with open_device("golden", config) as device:
        (entry,) = deviations(compiled, inputs, device)
    assert entry["largest"] <= 1 and entry["different"] <= entry["elements"] / 1000
    expected = compiled.run(inputs, "golden")
    got = compiled.run(inputs, "rtl")
    (name,) = compiled.graph.outputs
    assert np.array_equal(expected.outputs[name], got.outputs[name])


# ---------------------------------------------------------------------- placement


def test_what_runs_where(tmp_path, capsys):
    """A softmax stays on the host, is named, and is refused by --strict."""
    build = Builder(3, opset=19)
    x = build.input((2, 16), "uint8")
    y = build.dequantise(build.matmul(x, "qlinear"))
    model = build.finish(build.node("Softmax", [y], build.shapes[y], axis=1))
    compiled = compile_model(model, "small")
    hosts = [entry for entry in compiled.placement if entry["where"] == "host"]
    assert [entry["operation"] for entry in hosts] == ["DequantizeLinear", "Softmax"]
    with pytest.raises(MaskworkError, match=r"strict: these run on the host: 'n_softmax\d+' \(Softmax: "):
        compile_model(model, "small", strict=True)
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", **build.feed())
    files = (tmp_path / "m.onnx", "--input", tmp_path / "x.npz", "--target", "golden")
    assert run("run", *files, "--check") == 0
    assert "host: n_softmax" in capsys.readouterr().out
    assert run("run", *files, "--strict") == 2


def test_without_a_vector_unit_pooling_is_the_hosts():
    model = zoo.resnet18(32, classes=10)
    config = preset("small").replace(vector=False)
    compiled = compile_model(model, config)
    hosts = {entry["operation"] for entry in compiled.placement if entry["where"] == "host"}
    assert {"Add", "MaxPool", "GlobalAveragePool"} <= hosts
    inputs = zoo.random_images(model)
    plain, other = compile_model(model, "small").run(inputs), compiled.run(inputs)
    far = np.abs(plain.outputs["logits"] - other.outputs["logits"]).max()
    assert far <= 0.1 * np.abs(plain.outputs["logits"]).max()


def test_every_rule_is_of_a_supported_operator():
    from maskwork.gen.network.graph import SUPPORTED

    assert set(RULES) <= SUPPORTED


@pytest.mark.parametrize("convolution", [False, True])
def test_dynamic_quantisation(convolution):
    """Zero points that only a run knows: sums are exact for inputs of other ranges with one program."""
    model, inputs = dynamic_model(4, convolution)
    compiled = compile_model(model, "small")
    assert [step.name for step in compiled.steps if step.where == "accelerator"] == ["product"]
    zeros = set()
    with open_device("golden", compiled.config) as device:
        for shift in (0.0, -3.0, 9.0):
            (entry,) = deviations(compiled, {"x": inputs["x"] + np.float32(shift)}, device)
            assert entry["different"] == 0
            zeros.add(int(compiled.run({"x": inputs["x"] + np.float32(shift)}).values["zero"]))
    assert len(zeros) == 3


# ---------------------------------------------------------------------- LSTM


@pytest.mark.parametrize(
    "how",
    [{}, {"batch": 3, "direction": "reverse"}, {"batch": 2, "direction": "bidirectional", "start": False},
     {"batch": 2, "layout": 1, "bias": False}, {"steps": 1, "inputs": 40, "hidden": 33}],
)  # fmt: skip
def test_lstm_against_the_float_reference(how):
    """The products are exact; the state is rounded to 8 bits on its way into them."""
    model, inputs = lstm_model(11, **how)
    compiled = compile_model(model, "small", strict=True)
    (step,) = compiled.steps
    assert step.operation == "LSTM" and step.where == "accelerator"
    with open_device("golden", compiled.config) as device:
        found = deviations(compiled, inputs, device)
    assert len(found) == 3
    assert all(0 < entry["largest"] < 0.01 for entry in found), found


@pytest.mark.slow
def test_lstm_on_the_rtl():
    """Eight steps: bit for bit what the golden model gives."""
    model, inputs = lstm_model(12, batch=2)
    compiled = compile_model(model, "small")
    expected, got = compiled.run(inputs, "cycle"), compiled.run(inputs, "rtl")
    assert len(got.report["layers"]) == 1 + 8  # all inputs in one product, and each state
    for name, value in expected.outputs.items():
        assert np.array_equal(value, got.outputs[name])
    assert [layer["cycles"] for layer in got.report["layers"]] == [
        layer["cycles"] for layer in expected.report["layers"]
    ]


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [({"clip": 3.0}, "clip"), ({"input_forget": 1}, "input_forget"),
     ({"activations": ["Sigmoid", "Relu", "Tanh"]}, "activations are not Sigmoid, Tanh, Tanh")],
)  # fmt: skip
def test_lstms_that_stay_on_the_host(attributes, reason):
    model, _ = lstm_model(13)
    model.graph.node[-1].attribute.extend(onnx.helper.make_attribute(name, v) for name, v in attributes.items())
    with pytest.raises(
        MaskworkError, match=f"no node can run on the accelerator, the first product 'lstm' because.*{reason}"
    ):
        compile_model(model, "small")


# ---------------------------------------------------------------------- operands


def wide_product(rows, density):
    """A product of integers with sparse weights."""
    build = Builder(9, opset=19)
    x = build.input((rows, 96), "int8")
    build.grids[x] = (np.float32(0.01), np.array(0, np.int8))
    w, _, wz = build.weights((96, 64), None, 64, density)
    y = build.node("MatMulInteger", [x, w, build.constant(build.grids[x][1]), wz], (rows, 64))
    return build.finish(y), build.feed()


def test_very_sparse_weights_are_streamed():
    """Where fewer cycles are expected of it, and fewer they are."""
    model, inputs = wide_product(64, 0.03)
    compiled = compile_model(model, "sim-64", densities={"x1": 1.0})
    (step,) = compiled.steps
    assert step.exchanged and step.program.operands["a"]["shape"] == [64, 96]
    inputs = {"x1": np.where(inputs["x1"] == 0, 1, inputs["x1"]).astype(np.int8)}
    with open_device("golden", compiled.config) as device:
        (entry,) = deviations(compiled, inputs, device)
    assert entry["different"] == 0
    fast = compiled.run(inputs, "cycle")
    kept = step.program
    plain = lower_matmul(compiled.config, 64, 96, 64, density=(1.0, 0.03, 1.0))
    step.exchanged, step.program = False, plain
    slow = compiled.run(inputs, "cycle")
    assert kept is not plain and fast.report["cycles"] < slow.report["cycles"]
    assert all(np.array_equal(value, slow.outputs[name]) for name, value in fast.outputs.items())
    assert fast.report["macs_effectual"] == slow.report["macs_effectual"]


def test_dense_weights_stay():
    (step,) = compile_model(wide_product(64, 1.0)[0], "sim-64").steps
    assert not step.exchanged
