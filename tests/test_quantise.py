"""Pruning and quantising float models: densities, patterns, deviations, where the products run, and bad input."""

import json
import logging
import sys
import tempfile
from collections import Counter

import maskwork as mw
import numpy as np
import onnx
import pytest
from maskwork.gen import cli_common
from maskwork.gen.cli import cli
from maskwork.gen.network import prune
from maskwork.gen.network.calibration import outputs
from maskwork.gen.network.compile import compile_model
from maskwork.gen.network.quantise import quantise_layers, quantise_weights
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("onnxruntime")

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Floats:
    """A float graph that grows at its end."""

    def __init__(self, seed, shape):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants, self.last, self.shape = [], [], "x", shape

    def constant(self, *shape, about=0.0, spread=0.4):
        value = (about + self.rng.normal(0, spread, shape)).astype(np.float32)
        self.constants.append(numpy_helper.from_array(value, f"k{len(self.constants)}"))
        return self.constants[-1].name

    def add(self, op, *inputs, name=None, **attributes):
        """A node behind the last one."""
        output = f"t{len(self.nodes)}"
        name = name if name is not None else f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self.last, *inputs], [output], name=name, **attributes))
        self.last = output
        return output

    def norm(self, channels):
        scale, offset, mean = self.constant(channels, about=1.0), self.constant(channels), self.constant(channels)
        variance = self.constant(channels)
        value = np.abs(numpy_helper.to_array(self.constants[-1])) + 0.5
        self.constants[-1].CopyFrom(numpy_helper.from_array(value, variance))
        return self.add("BatchNormalization", scale, offset, mean, variance)

    def model(self, opset=17, ir_version=8):
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)]
        if ir_version < 4:
            inputs += [helper.make_tensor_value_info(k.name, k.data_type, k.dims) for k in self.constants]
        outputs = [helper.make_tensor_value_info(self.last, TensorProto.FLOAT, None)]
        graph = helper.make_graph(self.nodes, "net", inputs, outputs, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def cnn(seed, batch="N", **kwargs):
    """Conv, BatchNormalization, Relu, Conv, Add, Relu, MaxPool, Flatten, Gemm, Relu, MatMul, Add."""
    net = Floats(seed, [batch, 3, 8, 8])
    channels = int(net.rng.integers(4, 12))
    net.add("Conv", net.constant(channels, 3, 3, 3), net.constant(channels), name="first", pads=[1] * 4)
    net.norm(channels)
    short = net.add("Relu")
    net.add("Conv", net.constant(channels, channels, 3, 3, spread=0.2), name="second", pads=[1] * 4)
    net.add("Add", short)
    net.add("Relu")
    net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    net.add("Flatten")
    net.add("Gemm", net.constant(21, 16 * channels, spread=0.1), net.constant(21), name="third", transB=1)
    net.add("Relu")
    net.add("MatMul", net.constant(21, 10), name="fourth")
    net.add("Add", net.constant(10))
    return net.model(**kwargs)


def mlp(seed, **kwargs):
    """Gemm, BatchNormalization, Relu, MatMul, BatchNormalization, Relu, Gemm, Softmax."""
    net = Floats(seed, ["N", 30])
    net.add("Gemm", net.constant(30, 41), net.constant(1, 41), name="first", beta=0.5)
    net.norm(41)
    net.add("Relu")
    net.add("MatMul", net.constant(41, 26), name="second")
    net.norm(26)
    net.add("Relu")
    net.add("Gemm", net.constant(9, 26), name="third", transB=1, alpha=0.25)
    net.add("Softmax", axis=1)
    return net.model(**kwargs)


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


# ---------------------------------------------------------------------- pruning and weights


@pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_magnitude(density, axis):
    weights = np.random.default_rng(1).normal(size=(6, 7, 3)).astype(np.float32)
    before = weights.copy()
    result = prune.magnitude(weights, density, axis)
    assert result.dtype == weights.dtype and np.array_equal(weights, before)
    slices = [(weights, result)] if axis is None else zip(*(np.moveaxis(v, axis, 0) for v in (weights, result)),
                                                          strict=True)  # fmt: skip
    for given, pruned in slices:
        kept = pruned != 0
        assert np.count_nonzero(kept) == max(1, int(density * given.size + 0.5))
        assert np.array_equal(pruned[kept], given[kept])
        if not kept.all():
            assert np.abs(given[kept]).min() >= np.abs(given[~kept]).max()


def test_of_equal_weights_the_first_stay():
    weights = np.array([[3, -3, 3], [-3, 3, 3]], dtype=np.int8)
    assert prune.magnitude(weights, 0.5).tolist() == [[3, -3, 3], [0, 0, 0]]
    assert prune.magnitude(weights, 0.34, axis=0).tolist() == [[3, 0, 0], [-3, 0, 0]]
    assert prune.n_of_m(weights, 1, 2, axis=1).tolist() == [[3, 0, 3], [-3, 0, 3]]
    lowest = np.array([-128, 127], dtype=np.int8)
    assert prune.magnitude(lowest, 0.5).tolist() == [-128, 0]


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 5), (4, 4), (1, 16)])
@pytest.mark.parametrize("axis", [0, 1, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_n_of_m(n, m, axis, groups):
    weights = np.random.default_rng(2).normal(size=(10, 6, 3, 4)).astype(np.float32)
    result = prune.n_of_m(weights, n, m, axis, groups)
    assert result.shape == weights.shape and result.dtype == weights.dtype
    rows, given = (np.moveaxis(v, axis, -1).reshape(-1, weights.shape[axis] // groups) for v in (result, weights))
    for start in range(0, rows.shape[1], m):
        run, own = rows[:, start : start + m], given[:, start : start + m]
        wanted = -np.sort(-np.abs(own), axis=1)[:, :n]
        assert np.array_equal(-np.sort(-np.abs(run), axis=1)[:, :n], wanted)
        assert (np.count_nonzero(run, axis=1) == min(n, own.shape[1])).all()
        assert np.array_equal(run[run != 0], own[run != 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: prune.magnitude(w, 0), "density must be above 0 and at most 1, not 0"),
        (lambda w: prune.magnitude(w, 1.5), "density must be above 0 and at most 1, not 1.5"),
        (lambda w: prune.magnitude(w, float("nan")), "density must be above 0 and at most 1, not nan"),
        (lambda w: prune.magnitude(w, 0.5, axis=2), "axis 2 is not one of the 2 axes"),
        (lambda w: prune.magnitude(w * np.inf, 0.5), "weights must be finite"),
        (lambda w: prune.magnitude(w.astype(str), 0.5), "weights must be numbers, not <U"),
        (lambda w: prune.n_of_m(w, 5, 4, 0), "n must be from 1 to m, not 5 of 4"),
        (lambda w: prune.n_of_m(w, 0, 4, 0), "n must be from 1 to m, not 0 of 4"),
        (lambda w: prune.n_of_m(w, 2, 4, -3), "axis -3 is not one of the 2 axes"),
        (lambda w: prune.n_of_m(w, 2, 4, 0, groups=2), "groups must divide the 3 weights along axis 0, not 2"),
        (lambda w: quantise_weights(w, 7), "axis 7 is not one of the 2 axes"),
        (lambda w: quantise_weights(w * np.nan, 0), "weights must be finite"),
        (lambda w: quantise_weights(w > 0, 0), "weights must be numbers, not bool"),
    ],
)
def test_bad_weights(call, message):
    with pytest.raises(mw.MaskworkError, match=message):
        call(np.ones((3, 4), dtype=np.float32))


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_quantise_weights(axis):
    w = np.random.default_rng(3).normal(size=(5, 6, 2)).astype(np.float32)
    w[2] = 0
    w[:, 1] = 0
    w[0, 0, 0] = 9.0
    q, scale = quantise_weights(w, axis)
    assert q.dtype == np.int8 and scale.dtype == np.float32 and q.shape == w.shape
    assert scale.shape == (() if axis is None else (w.shape[axis],))
    grid = scale if axis is None else np.expand_dims(scale, [i for i in range(3) if i != axis % 3])
    assert (np.abs(q * grid.astype(np.float64) - w) <= 0.5001 * grid).all()
    assert not q[w == 0].any() and np.abs(q).max() == 127
    assert (scale > 0).all()


def test_quantise_weights_of_nothing():
    q, scale = quantise_weights(np.zeros((2, 3)), 0)
    assert not q.any() and scale.tolist() == [1, 1]
    assert quantise_weights(np.full((1, 2), 1e-60), 0)[0].tolist() == [[0, 0]]


# ---------------------------------------------------------------------- models


@both
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", ["plain", "density", "n_of_m", "per_tensor", "int8"])
def test_models(kind, seed, how):
    options = {"plain": {}, "density": {"density": 0.3}, "n_of_m": {"n_of_m": (2, 4)},
               "per_tensor": {"per_channel": False, "density": 0.5, "skip": ["first"]},
               "int8": {"activations": "int8", "density": 0.6}}[how]  # fmt: skip
    x = samples_for(kind)
    done = quantise_layers(MODELS[kind][0](seed), {"x": x}, **options)
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
    # the numbers
    found = done.deviations()
    output = done.model.graph.output[0].name
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
    assert {entry.domain for entry in first.opset_import} == {""}
    onnx.checker.check_model(first, full_check=True)


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
    paired = quantise_layers(model, samples, n_of_m=(1, 2)).layers
    assert [layer.kept for layer in paired] == [54, 90, 8 * 8]


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
