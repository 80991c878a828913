"""The demonstration: every layer equals the golden model, and the report adds up."""

import contextlib
import json
import os

import numpy as np
import pytest
from maskwork.gen import cli_common, demo
from maskwork.gen.cli import cli
from maskwork.gen.config import preset
from maskwork.gen.demo_net import integer_forward, load_images, load_network
from maskwork.gen.errors import DeviceError, MaskworkValueError
from maskwork.gen.report import REASONS
from maskwork.sim_tb.device import GoldenDevice

LAYERS = ["conv1", "conv2", "conv3", "fc1", "fc2"]


def run(*args):
    return cli_common.run_command(cli, [str(arg) for arg in args])


def test_on_the_golden_model(tmp_path, capsys):
    folder = tmp_path / "out"
    args = ("demo", "--target", "golden", "--preset", "tiny", "--set", "a_segments=128", "--images", "3")
    assert run(*args, "-o", folder, "--report", tmp_path / "r.json") == 0
    captured = capsys.readouterr()
    assert "Accuracy: 3 of 3 images (100.0%)" in captured.out and not captured.err
    report = json.loads((tmp_path / "r.json").read_text())
    assert "cycles" not in report and report["target"] == "golden" and report["config"]["name"] == "tiny"
    assert [layer["layer"] for layer in report["layers"]] == LAYERS
    files = ["outputs.npz", "tiny.json", "tiny.sv", *(f"{name}.mwp" for name in LAYERS)]
    assert sorted(os.listdir(folder)) == sorted(files)
    layers, test, _ = load_network()
    reference = integer_forward(layers, load_images()[0][test[:3]])
    with np.load(folder / "outputs.npz") as outputs:
        for name, array in zip(LAYERS, reference, strict=True):  # ONNX has channels first
            assert np.array_equal(outputs[name], array.transpose(0, 3, 1, 2) if array.ndim == 4 else array)
    assert run("disasm", folder / "conv2.mwp") == 0
    assert "operand b: b (3, 3, 16, 32)" in capsys.readouterr().out


def test_products_of_the_layers():
    result = demo.run(preset("small"), 2, "golden")
    layers = {layer["layer"]: layer for layer in result.report["layers"]}
    # 3x3, padding 1, on 8x8: 22 * 22 taps fall inside each image
    assert layers["conv1"]["macs_dense"] == 2 * 22 * 22 * 16
    assert layers["fc1"]["macs_dense"] == 2 * 512 * 64
    for layer in layers.values():
        assert layer["pass"] == "forward" and layer["macs_effectual"] < layer["macs_dense"]
        assert set(layer["densities"]) == {"a", "b", "c"} and layer["densities"]["c"] == 1
    for key in ("macs_dense", "macs_effectual", "words_in", "words_out"):
        assert result.report[key] == sum(layer[key] for layer in layers.values())


@pytest.mark.parametrize(
    "args, message",
    [
        (("--images", "0"), "--images must be from 1 to 359, the held-back ones, not 0"),
        (("--images", "360"), "--images must be from 1 to 359"),
        (("--set", "post=false"), "post = true"),
        (("--target", "serials"), "unknown target 'serials'; targets: golden, cycle, rtl, serial:PORT"),
        (("--set", "a_width=8"), "a_width"),
    ],
)
def test_bad_input(tmp_path, capsys, args, message):
    assert run("demo", *args, "-o", tmp_path / "out", "--report", tmp_path / "r.json") == 2
    captured = capsys.readouterr()
    assert not captured.out and captured.err.count("\n") == 1 and message in captured.err
    assert not os.listdir(tmp_path)


def test_a_directory_that_cannot_be_is_refused_first(tmp_path, capsys):
    """And a run that fails leaves none."""
    (tmp_path / "file").touch()
    args = ("demo", "--preset", "tiny", "--set", "a_segments=128", "--images", "1")
    for bad in ("file", "file/below"):
        assert run(*args, "--target", "golden", "-o", tmp_path / bad) == 2
        assert f"{bad}: cannot be written (Not a directory); a writable" in capsys.readouterr().err
    assert run(*args, "--target", "serial:/dev/none", "-o", tmp_path / "new") == 2
    assert "no such port" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_wrong_output_is_an_error(monkeypatch):
    class Wrong(GoldenDevice):
        def execute(self, words, last):
            replies, ends = super().execute(words, last)
            replies = replies.copy()
            first = int(np.flatnonzero(replies & 0xFF == 0x90)[0])
            replies[first + 4] ^= 1  # header and bitmap have two words each
            return replies, ends

    config = preset("small")
    images = load_images()[0][load_network()[1][:1]]
    layers = load_network()[0]
    with monkeypatch.context() as patch:
        patch.setattr("maskwork.sim_tb.device.open_device", lambda *_: contextlib.nullcontext(Wrong(config)))
        with pytest.raises(
            DeviceError, match=r"conv1: 1 of 1024 outputs differ from the golden model; the first, \(0, "
        ):
            demo.run(config, 1, "golden")
    monkeypatch.setattr(demo, "integer_forward", lambda *_: [x + 1 for x in integer_forward(layers, images)])
    with pytest.raises(DeviceError, match="conv1: 1024 of 1024 outputs differ from the network's integer reference"):
        demo.run(config, 1, "golden")
    with pytest.raises(MaskworkValueError, match="--images"):
        demo.run(config, 400, "golden")


@pytest.mark.slow
def test_on_the_rtl(capsys):
    assert run("demo", "--json") == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert not captured.err  # no progress bar where there is no terminal
    assert report["images"] == 20 and report["correct"] == 20 and report["accuracy"] == 1.0
    assert [layer["layer"] for layer in report["layers"]] == LAYERS
    for part in [*report["layers"], report]:
        assert list(part["pe_cycles"]) == list(REASONS)
        assert sum(part["pe_cycles"].values()) == part["cycles"] * report["pes"]
        assert part["pe_cycles"]["effectual"] == part["macs_effectual"] and part["pe_cycles"]["ineffectual"] == 0
        assert part["utilization"] == part["macs_effectual"] / (part["cycles"] * report["pes"]) <= 1
        assert part["speedup_vs_dense"] <= part["bound"]
    busy = {layer["layer"]: layer["utilization"] for layer in report["layers"]}
    assert busy["conv2"] > 0.6 and busy["conv3"] > 0.6
    assert report["cycles"] == sum(layer["cycles"] for layer in report["layers"])
