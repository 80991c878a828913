"""Models, inputs and options that cannot be used: one line each, and nothing left behind."""

import numpy as np
import onnx
import pytest
from maskwork.gen import cli_common
from maskwork.gen.cli import cli

from .network_models import Builder


def run(*args):
    return cli_common.run_command(cli, [str(arg) for arg in args])


def simple(opset=19, dtype="uint8"):
    build = Builder(5, opset=opset)
    x = build.input((2, 16), dtype)
    return build, build.finish(build.matmul(x, "qlinear"))


def broken(tmp_path, kind):
    model = simple()[1]
    path = tmp_path / "model.onnx"
    if kind == "missing":
        return tmp_path / "no.onnx"
    if kind == "text":
        path.write_text("not a model at all")
        return path
    if kind == "cut":
        path.write_bytes(model.SerializeToString()[:200])
        return path
    if kind == "operator":
        model.graph.node[0].op_type = "Einsum"
    elif kind == "domain":
        model.graph.node[0].domain = "com.example"
    elif kind == "opset":
        model.opset_import[0].version = 11
    elif kind == "dynamic":
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    elif kind == "float":
        x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 3])
        w = onnx.numpy_helper.from_array(np.ones((3, 4), np.float32), "w")
        node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
        y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 4])
        graph = onnx.helper.make_graph([node], "float", [x], [y], [w])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=10)
    elif kind == "shape":
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 17
    elif kind == "external":
        onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
        (tmp_path / "weights.bin").unlink()
        return path
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no.onnx: cannot be read (no such file)"),
        ("text", "not an ONNX model"),
        ("cut", "not an ONNX model, or a damaged one"),
        ("operator", "node 'n_qlinearmatmul9': operator Einsum is not supported; accepted are Abs, Add, "),
        ("domain", "operator com.example.QLinearMatMul is not supported"),
        ("opset", "opset 11 is not supported; 13 or later is accepted"),
        ("dynamic", "input 'x1' has the dynamic shape [N, 16]; fix it, such as with --shape x1="),
        ("float", "no node can run on the accelerator, the first product 'product' because"),
        ("shape", "not a valid model"),
        ("external", "external data"),
    ],
)
def test_bad_models(tmp_path, capsys, kind, message):
    np.savez(tmp_path / "x.npz", x1=np.zeros((2, 16), np.uint8))
    path = broken(tmp_path, kind)
    before = sorted(tmp_path.iterdir())
    for command in (("run", path, "--input", tmp_path / "x.npz", "--target", "golden", "-o", tmp_path / "y.npz"),
                    ("compile", path, "-o", tmp_path / "out")):  # fmt: skip
        assert run(*command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error, error
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input 'x1' is missing: uint8 of shape [2, 16] is expected"),
        ({"y": np.zeros((2, 16), np.uint8)}, "there is no input 'y'; inputs: x1"),
        ({"x1": np.zeros((2, 16), np.int8)}, "input 'x1' must be uint8, not int8"),
        ({"x1": np.zeros((2, 15), np.uint8)}, "input 'x1' must have shape [2, 16], not [2, 15]"),
        ({"x1": np.array([object()])}, "Python objects"),
    ],
)
def test_bad_inputs(tmp_path, capsys, inputs, message):
    onnx.save(simple()[1], tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", **inputs)
    assert run("run", tmp_path / "m.onnx", "--input", tmp_path / "x.npz", "--target", "golden") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error, error


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--shape", "x1"), "--shape x1: NAME=SIZE,SIZE,... is expected"),
        (("--shape", "x1=2,0"), "--shape x1=2,0: NAME=SIZE"),
        (("--shape", "q=2,16"), "there is no input 'q'; inputs: x1"),
        (("--shape", "x1=2,17"), "input 'x1' has shape [2, 16], which [2, 17] does not fit"),
        (("--set", "a_width=8"), "needs a_width = 9, not 8"),
        (("--target", "nowhere"), "unknown target 'nowhere'"),
    ],
)
def test_bad_options(tmp_path, capsys, args, message):
    onnx.save(simple()[1], tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x1=np.zeros((2, 16), np.uint8))
    assert run("run", tmp_path / "m.onnx", "--input", tmp_path / "x.npz", *args) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error, error
