"""Quantising float models: densities, patterns, deviations, where the products run, and bad input."""

import json
import logging
import subprocess
import sys
import tempfile
from collections import Counter

import maskwork as mw
import numpy as np
import onnx
import pytest
from maskwork.gen import cli_common
from maskwork.gen.cli import cli
from maskwork.gen.network.calibration import outputs
from maskwork.gen.network.compile import compile_model
from maskwork.gen.network.quantise import quantise_layers
from onnx import helper, numpy_helper

from .float_models import Floats, cnn, mixture, mlp

pytest.importorskip("onnxruntime")

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


MODELS = {"cnn": (cnn, (3, 8, 8)), "mlp": (mlp, (30,))}
SUMMED = {"cnn": {"first": 1, "second": 1, "third": 1, "fourth": 0}, "mlp": {"first": 0, "second": 0, "third": 1}}
"""Axes of the weights' input channels."""

both = pytest.mark.parametrize("kind", MODELS)


def samples_for(kind, count=24, seed=5):
    return np.random.default_rng(seed).normal(0, 1, (count, *MODELS[kind][1])).astype(np.float32)


def int8_weights(model):
    """The products' weights by node, as they are in a quantised model."""
    makers = {name: node for node in model.graph.node for name in node.output}
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type in PRODUCTS:
            maker = makers[node.input[1]]
            assert maker.op_type == "DequantizeLinear"
            assert not values[maker.input[2]].any()  # the zero point
            found[node.name] = values[maker.input[0]], values[maker.input[1]]
    return found


# ---------------------------------------------------------------------- models


@both
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", ["plain", "density", "n_of_m", "per_tensor", "int8"])
def test_models(kind, seed, how):
    options = {"plain": {}, "density": {"density": 0.3}, "n_of_m": {"n_of_m": (2, 4)},
               "per_tensor": {"per_channel": False, "density": 0.5, "skip": ["first"]},
               "int8": {"activations": "int8", "density": 0.6}}[how]  # fmt: skip
    x = samples_for(kind)
    model = MODELS[kind][0](seed)
    done = quantise_layers(model, {"x": x}, **options)
    assert [layer.name for layer in done.layers] == ["first", "second", "third", "fourth"][: len(done.layers)]
    assert len(done.layers) == (4 if kind == "cnn" else 3)
    weights = int8_weights(done.model)
    floats = {tensor.name: numpy_helper.to_array(tensor) for tensor in done.pruned.graph.initializer}
    for layer in done.layers:
        q, scale = weights[layer.name]
        node = next(node for node in done.pruned.graph.node if node.name == layer.name)
        pruned = floats[node.input[1]]
        assert layer.quantised and layer.weights == q.size and layer.nonzero == np.count_nonzero(q)
        assert q.dtype == np.int8 and not q[pruned == 0].any()
        axis = SUMMED[kind][layer.name]
        density = options.get("density", 1.0) if layer.name not in options.get("skip", ()) else 1.0
        if how != "n_of_m":
            assert layer.kept == int(density * q.size + 0.5)
        else:
            runs = np.moveaxis(q, axis, -1).reshape(-1, q.shape[axis])
            for start in range(0, runs.shape[1], 4):
                assert np.count_nonzero(runs[:, start : start + 4], axis=1).max() <= 2
            assert layer.kept == sum(min(2, q.shape[axis] - s) for s in range(0, q.shape[axis], 4)) * len(runs)
        assert layer.kept - layer.nonzero <= (0.05 if how == "plain" or density == 1 else 0.01) * q.size
        assert scale.size == (1 if how == "per_tensor" else q.shape[1 - axis])
    # products on the accelerator, and no more than quantisation, Flatten and Softmax on the host
    compiled = compile_model(done.model, "small", shapes={"x": (2, *x.shape[1:])})
    where = {entry["step"]: entry["where"] for entry in compiled.placement}
    assert all(where[layer.name] == "accelerator" for layer in done.layers)
    host = Counter(entry["operation"] for entry in compiled.placement if entry["where"] == "host")
    assert set(host) <= {"QuantizeLinear", "DequantizeLinear", "Flatten", "Softmax"}
    kinds = {numpy_helper.to_array(tensor).dtype.name for node in done.model.graph.node if node.op_type ==
             "QuantizeLinear" for tensor in done.model.graph.initializer if tensor.name == node.input[2]}  # fmt: skip
    assert kinds == {options.get("activations", "uint8")}
    # the numbers: of the model that is quantised, and of the result
    found = done.deviations()
    output = done.model.graph.output[0].name
    for given, own in zip(*(outputs("net", m, [output], done.feeds) for m in (model, done.prepared)), strict=True):
        assert np.allclose(given[output], own[output], rtol=1e-4, atol=1e-5)
    assert set(found) == {*(layer.name for layer in done.layers), output}
    for name, entry in found.items():
        assert 0 < entry["quantising"] < (0.08 if kind == "cnn" or name != output else 0.12) * entry["largest"], name
        assert entry["deviation"] <= (entry["quantising"] + entry["pruning"]) * 1.001
        assert (entry["pruning"] > 0.02 * entry["largest"]) == ("density" in options or "n_of_m" in options) or (
            name == "first" and how == "per_tensor" and entry["pruning"] == 0
        )
    # the same on the golden model as in onnxruntime, but for a rounding here and there
    assert done.model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    (wanted,) = (made[output] for made in outputs("net", done.model, [output], [{"x": x[:2]}]))
    got = compiled.run({"x": x[:2]}, "golden").outputs[output]
    assert np.abs(got - wanted).max() <= 0.03 * np.abs(wanted).max()


def test_a_bound_on_deviations_can_fail():
    """Samples that are far too small clamp activations; the deviation shows it."""
    model, x = mlp(1), samples_for("mlp")
    good = quantise_layers(model, {"x": x}).deviations()["first"]
    clamped = quantise_layers(model, {"x": x * 0.1})
    clamped.feeds[:] = [{"x": row[None]} for row in x]
    bad = clamped.deviations()["first"]
    assert bad["largest"] == good["largest"]
    assert bad["quantising"] > 10 * good["quantising"] and bad["quantising"] > 0.3 * bad["largest"]


def test_the_same_bytes_and_nothing_left_behind(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = cnn(2)
    before, handlers = model.SerializeToString(), list(logging.getLogger().handlers)
    first, second = (mw.quantise(model, {"x": samples_for("cnn")}, density=0.4) for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()
    assert model.SerializeToString() == before
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers and logging.getLogger().isEnabledFor(logging.WARNING)
    assert {entry.domain for entry in first.opset_import} == {""} and not first.metadata_props
    onnx.checker.check_model(first, full_check=True)


ADVICE = """
import logging, numpy, onnx, maskwork
maskwork.quantise("advice.onnx", {"x": numpy.ones((3, 1, 30))})
assert not logging.getLogger().handlers
logging.warning("from outside")
"""


def test_advice_stays_unsaid(tmp_path):
    """A bias that is computed is worth a warning to onnxruntime's quantiser."""
    net = Floats(1, [1, 30])
    net.add("Gemm", net.constant(30, 8), net.add("Sigmoid"))
    net.nodes[-1].input[0] = "x"
    net.nodes[-1].input[2] = "t0"
    net.nodes[0].CopyFrom(helper.make_node("ReduceMean", ["x"], ["t0"], name="mean", axes=[1]))
    onnx.save(net.model(), tmp_path / "advice.onnx")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ADVICE], cwd=tmp_path, text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "WARNING:root:from outside\n")


def test_samples_in_every_form():
    x = samples_for("cnn", 8)
    forms = [{"x": x}, {"x": x[:, None]}, [{"x": row[None]} for row in x], ({"x": row[None]} for row in x),
             [{"x": x[:5]}, {"x": x[5:]}], {"x": x.astype(np.float64)}, {"x": x.reshape(2, 4, 3, 8, 8)}]  # fmt: skip
    results = [mw.quantise(cnn(1), form) for form in forms]
    assert len({result.SerializeToString() for result in results}) == 1
    fixed = mw.quantise(cnn(1), {"x": x}, shapes={"x": (4, 3, 8, 8)})
    assert [dim.dim_value for dim in fixed.graph.input[0].type.tensor_type.shape.dim] == [4, 3, 8, 8]
    assert compile_model(fixed, "tiny").inputs["x"][0] == (4, 3, 8, 8)


@pytest.mark.parametrize(("opset", "ir_version"), [(9, 3), (11, 6), (12, 7), (13, 7), (21, 10)])
def test_opsets(opset, ir_version):
    model = cnn(1, batch=1, opset=opset, ir_version=ir_version)
    done = quantise_layers(model, {"x": samples_for("cnn", 4)}, density=0.5)
    assert done.model.opset_import[0].version == max(opset, 13)
    assert [layer.name for layer in done.layers] == ["first", "second", "third", "fourth"]
    where = {entry["step"]: entry["where"] for entry in compile_model(done.model, "small").placement}
    assert all(where[layer.name] == "accelerator" for layer in done.layers)


def test_shapes_that_onnxruntime_quantises_badly():
    """Scales of a grouped ConvTranspose, channels without weights, names and constants that are nodes."""
    net = Floats(4, [1, 4, 5, 5])
    net.add("ConvTranspose", net.constant(4, 3, 3, 3), net.constant(6), name="", strides=[2, 2], group=2)
    net.add("Relu", name="")
    net.add("Conv", net.constant(30, 6, 1, 1), net.constant(30), name="")
    net.add("Sigmoid")
    net.add("Conv", net.constant(8, 15, 1, 1), net.constant(8), name="", group=2)
    model = net.model()
    weights = model.graph.initializer[2]
    model.graph.node.insert(0, helper.make_node("Constant", [], [weights.name], value=weights))
    model.graph.initializer.remove(weights)
    samples = {"x": np.random.default_rng(1).normal(size=(8, 4, 5, 5))}
    done = quantise_layers(model, samples, density=0.1)
    assert len({layer.name for layer in done.layers}) == 3
    first, second, third = int8_weights(done.model).values()
    assert first[1].size == 1 and second[1].size == 30 and third[1].size == 8
    dead = ~second[0].any(axis=(1, 2, 3))
    assert dead.any() and (second[1][dead] == second[1].max()).all() and second[1].max() < 0.1
    where = {entry["step"]: entry["where"] for entry in compile_model(done.model, "small").placement}
    assert all(where[layer.name] == "accelerator" for layer in done.layers)
    for entry in done.deviations().values():
        assert entry["quantising"] < 0.03 * entry["largest"]
    few = quantise_layers(model, samples, n_of_m=(1, 4)).layers  # of 2 in each group, of 6, and of 15
    assert [layer.kept for layer in few] == [2 * 3 * 9, 30 * 2, 8 * 4]


def test_a_mixture_of_everything():
    """Depthwise convolutions, branches, gates and attention: what is no integer operator stays float around them."""
    x = np.random.default_rng(2).normal(size=(24, 3, 12, 12)).astype(np.float32)
    done = quantise_layers(mixture(1), {"x": x}, density=0.6)
    assert len(done.layers) == 13 and all(layer.quantised for layer in done.layers)
    constant = [layer for layer in done.layers if layer.weights]
    assert len(constant) == 11
    assert all(layer.kept == int(0.6 * layer.weights + 0.5) for layer in constant)
    compiled = compile_model(done.model, "small")
    where = {entry["step"]: entry["where"] for entry in compiled.placement}
    assert all(where[layer.name] == "accelerator" for layer in done.layers)
    for entry in done.deviations().values():
        assert entry["quantising"] < 0.07 * entry["largest"]
    name = done.model.graph.output[0].name
    (wanted,) = (made[name] for made in outputs("mixture", done.model, [name], [{"x": x[:1]}]))
    got = compiled.run({"x": x[:1]}, "golden").outputs[name]
    assert np.abs(got - wanted).max() <= 0.03 * np.abs(wanted).max()


# ---------------------------------------------------------------------- bad input


def without_onnxruntime(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({}, r"input 'x' is missing; its shape is \[N, 30\]"),
        ({"y": np.ones((2, 30))}, "net has no input 'y'; inputs: x"),
        ({"x": np.ones((2, 31))}, r"input 'x' must have shape \[N, 30\], not \[1, 31\]"),
        ({"x": np.ones(30)}, r"input 'x' must have shape \[N, 30\], with samples along the first axis .* not \[30\]"),
        ({"x": np.ones((0, 30))}, "there are no samples"),
        ({"x": np.ones((2, 0, 30))}, r"has shape \[0, 30\]; positive sizes are expected"),
        ({"x": np.full((2, 30), np.nan)}, "input 'x' must be finite"),
        ({"x": np.ones((2, 30), dtype=complex)}, "input 'x' must be float32, not complex128"),
        ([], "there are no samples"),
        ([{"x": np.ones(30)}], r"sample 0: input 'x' must have shape \[N, 30\], not \[30\]"),
        ([np.ones((1, 30))], "sample 0 must be a dict of arrays by input name, not ndarray"),
        (np.ones((3, 30)), "samples must be a dict of arrays or an iterable of dicts, by input name, not ndarray"),
    ],
)
def test_bad_samples(samples, message):
    with pytest.raises(mw.MaskworkError, match=message):
        mw.quantise(mlp(1), samples)


def changed(change):
    model = mlp(1)
    change(model)
    return model


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (mlp(1), {"density": 0}, "density must be above 0 and at most 1, not 0"),
        (mlp(1), {"density": 1.01}, "density must be above 0 and at most 1, not 1.01"),
        (mlp(1), {"n_of_m": (5, 4)}, "n must be from 1 to m, not 5 of 4"),
        (mlp(1), {"n_of_m": (2, 4), "density": 0.5}, "density and n_of_m exclude each other"),
        (mlp(1), {"skip": ["nobody"]}, "net: skip: no product is named 'nobody'; products: first, second, third"),
        (mlp(1), {"activations": "int4"}, "activations must be uint8 or int8, not 'int4'"),
        (mlp(1), {"shapes": {"z": (1, 30)}}, "there is no input 'z'; inputs: x"),
        (mlp(1), {"shapes": {"x": (1, 31)}}, r"input 'x' has shape \[N, 30\], which \[1, 31\] does not fit"),
        (mlp(1), {"shapes": {"x": (7, 30)}}, "3 samples are no multiple of 7"),
        ("nowhere.onnx", {}, r"nowhere.onnx: cannot be read \(no such file\)"),
        (changed(lambda m: setattr(m.graph.node[2], "op_type", "Mish")), {}, "net: .*Mish"),
        (changed(lambda m: setattr(m.graph.node[0], "op_type", "Nonsense")), {}, "net: .*Nonsense"),
        (changed(lambda m: m.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((30, 41)), "k0"))), {},
         "net: node 'first': 'k0' is float64; float32 is expected"),
        (changed(lambda m: m.graph.initializer[0].CopyFrom(
            numpy_helper.from_array(np.ones((29, 41), np.float32), "k0"))), {}, "net: onnxruntime cannot run it"),
        (changed(lambda m: m.graph.node.remove(m.graph.node[-1])), {}, "net: onnxruntime cannot run it"),
    ],
)  # fmt: skip
def test_bad_models_and_options(model, options, message, capfd):
    with pytest.raises(mw.MaskworkError, match=message) as raised:
        mw.quantise(model, {"x": np.ones((3, 30))}, **options)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_refused_models():
    x = {"x": samples_for("mlp", 3)}
    quantised = mw.quantise(mlp(1), x)
    with pytest.raises(mw.MaskworkValueError, match=r"net: quantised already \(node .*\); a float model is expected"):
        mw.quantise(quantised, x)
    net = Floats(1, [1, 30])
    net.add("Relu")
    with pytest.raises(mw.MaskworkValueError, match=r"net: nothing to quantise; a model with Conv, .* is expected"):
        mw.quantise(net.model(), x)


def test_without_onnxruntime(monkeypatch):
    without_onnxruntime(monkeypatch)
    with pytest.raises(mw.MaskworkError, match=r"quantising needs onnxruntime .*pip install 'maskwork\[onnx\]'"):
        mw.quantise(mlp(1), {"x": samples_for("mlp", 3)})


# ---------------------------------------------------------------------- the command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(cnn(1), "float.onnx")
    np.savez("x.npz", x=samples_for("cnn", 8))
    np.savez("wrong.npz", z=samples_for("cnn", 8))
    (tmp_path / "text.onnx").write_text("no model")
    return tmp_path


def run(*words):
    return cli_common.run_command(cli, ["quantise", *words])


def test_command(folder, capsys):
    assert run("float.onnx", "--samples", "x.npz", "-o", "q.onnx", "--density", "0.25", "--skip", "fourth") == 0
    shown = capsys.readouterr()
    assert shown.err == "" and "q.onnx: quantised by 8 samples" in shown.out
    rows = {line.split()[0]: line.split() for line in shown.out.splitlines() if line.split()}
    for name in ("first", "second", "third"):
        assert rows[name][4] in ("0.249", "0.250", "0.251")
    assert float(rows["fourth"][4]) > 0.95
    again = ["--samples", "x.npz", "-o", "r.onnx", "--density", "0.25", "--skip", "fourth", "--json"]
    assert run("float.onnx", *again) == 0
    result = json.loads(capsys.readouterr().out)
    assert (folder / "q.onnx").read_bytes() == (folder / "r.onnx").read_bytes()
    layers = {layer["layer"]: layer for layer in result["layers"]}
    assert list(layers) == ["first", "second", "third", "fourth"] and result["samples"] == 8
    weights = int8_weights(onnx.load("q.onnx"))
    for name, layer in layers.items():
        assert layer["nonzero"] == np.count_nonzero(weights[name][0])
        assert layer["density"] == layer["nonzero"] / layer["weights"]
        assert f"{layer['deviation']:.4g}" == rows[name][6]
        assert layer["quantising"] < 0.08 * layer["largest"]
    assert result["density"] == sum(np.count_nonzero(q) for q, _ in weights.values()) / sum(
        q.size for q, _ in weights.values()
    )
    assert list(result["outputs"]) == [onnx.load("q.onnx").graph.output[0].name]
    assert run("float.onnx", "--samples", "x.npz", "-o", "s.onnx", "--n-of-m", "1:4", "--per-tensor", "--shape",
               "x=2,3,8,8", "--activations", "int8") == 0  # fmt: skip
    assert all(scale.size == 1 for _, scale in int8_weights(onnx.load("s.onnx")).values())
    assert compile_model("s.onnx", "tiny").inputs["x"][0] == (2, 3, 8, 8)
    assert {path.name for path in folder.iterdir()} == {"float.onnx", "x.npz", "wrong.npz", "text.onnx", "q.onnx",
                                                        "r.onnx", "s.onnx"}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("missing.onnx --samples x.npz", "missing.onnx: cannot be read"),
        ("text.onnx --samples x.npz", "text.onnx: not an ONNX model"),
        ("float.onnx --samples missing.npz", "missing.npz: cannot be read"),
        ("float.onnx --samples wrong.npz", "float.onnx has no input 'z'; inputs: x"),
        ("float.onnx", "Missing option '--samples'"),
        ("float.onnx --samples x.npz --density 2", "density must be above 0 and at most 1, not 2"),
        ("float.onnx --samples x.npz --n-of-m 2", "--n-of-m 2: N:M is expected, such as --n-of-m 2:4"),
        ("float.onnx --samples x.npz --n-of-m 5:4", "n must be from 1 to m, not 5 of 4"),
        ("float.onnx --samples x.npz --n-of-m 2:4 --density 0.5", "density and n_of_m exclude each other"),
        ("float.onnx --samples x.npz --skip nobody", "skip: no product is named 'nobody'"),
        ("float.onnx --samples x.npz --shape x=", "--shape x=: NAME=SIZE,SIZE,... is expected"),
        ("float.onnx --samples x.npz --shape x=3,3,8,8", "8 samples are no multiple of 3"),
    ],
)
def test_bad_command_lines(folder, capsys, words, message):
    before = {path.name for path in folder.iterdir()}
    assert run(*words.split(), "-o", "q.onnx") == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert shown.err.startswith("maskwork: error: ") and message in shown.err
    assert {path.name for path in folder.iterdir()} == before


def test_output_that_cannot_be_written_and_no_onnxruntime(folder, capsys, monkeypatch):
    assert run("float.onnx", "--samples", "x.npz", "-o", "nowhere/q.onnx") == 2
    assert "nowhere/q.onnx: cannot be written" in capsys.readouterr().err
    without_onnxruntime(monkeypatch)
    assert run("float.onnx", "--samples", "x.npz", "-o", "q.onnx") == 2
    assert "pip install 'maskwork[onnx]'" in capsys.readouterr().err
    assert not (folder / "q.onnx").exists()
