"""``maskwork train-demo`` with few images, its page and replay, and the measuring command."""

import json
import xml.dom.minidom as minidom

import numpy as np
import pytest
from click.testing import CliRunner
from maskwork.gen import cli_common as common
from maskwork.gen.cli import cli
from maskwork.gen.config import preset
from maskwork.gen.errors import DeviceError, MaskworkError
from maskwork.gen.train import demo, demo_measure
from maskwork.gen.train.products import GoldenProducts, Products

FEW = ["--epochs", "1", "--images", "24"]


def command(*args):
    return CliRunner().invoke(cli, ["train-demo", *args], catch_exceptions=False)


def test_one_epoch(tmp_path):
    """Report, page and table of 24 images; the cycle model's step changes nothing."""
    done = command(*FEW, "--replay", "none", "--report", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html"))
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    (epoch,) = report["epochs"]
    assert len(epoch["layers"]) == 14 and all(layer["cycles"] > 0 for layer in epoch["layers"])
    assert 0 < epoch["macs_saved"] < 1 and report["train_images"] == 24 and report["replay"] is None
    assert "conv3" in done.output and "24 images" in done.output
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    plots = html.split("<svg")[1:]
    assert len(plots) == 9 and "http" not in html
    for plot in plots:
        minidom.parseString("<svg" + plot[: plot.index("</svg>") + 6])

    done = command(*FEW, "--replay", "none", "--target", "golden", "--json", "--preset", "small")
    golden = json.loads(done.output)["epochs"][0]
    for key in ("loss", "test_accuracy", "macs_saved", "levels"):
        assert golden[key] == epoch[key], key
    assert "cycles" not in golden["layers"][0]


def test_digits_are_learnt():
    """200 images, 16 bits, pruned: far better than chance after two epochs."""
    training = demo.Training.start(demo.Options(16, 2, images=200))
    products = GoldenProducts(preset("small-int16"))
    for _ in range(2):
        training.epoch(products, products)
    assert training.epochs[-1]["test_accuracy"] > 0.3


@pytest.mark.slow
def test_replay_on_rtl():
    options = demo.Options(images=32, epochs=1)
    training = demo.Training.start(options)
    products = GoldenProducts(preset("small-train"))
    training.epoch(products, products)
    found = demo.replay_step(preset("small-train"), training, images=1)
    assert found["products"] == 14 and found["cycles"] > 0 and found["pruned_on"] == "rtl"


@pytest.mark.parametrize("what", ["value", "counter"])
def test_replay_sees_differences(monkeypatch, what):
    training = demo.Training.start(demo.Options(images=8, epochs=1))
    real = Products.run

    def run(self, layer, which, tensors, wanted=None):
        result = real(self, layer, which, tensors, wanted)
        if self.target == "cycle" and isinstance(self, demo.Compared) and which == "input_grad":
            if what == "value":
                result[(0,) * 4] += 1
            else:
                self.reports[-1]["cycles"] += 1
        return result

    monkeypatch.setattr(Products, "run", run)
    with pytest.raises(DeviceError, match="fc2, input_grad: " + ("element" if what == "value" else "cycles")):
        demo.replay_step(preset("small"), training, "cycle", images=1)


def test_measure():
    found = demo_measure.measure(list(demo_measure.NUMERICS), (0.0, 0.9), [1], 1, images=40)
    rows = {(row["numerics"], row["prune"]): row for row in found["rows"]}
    assert len(rows) == 6
    for name in demo_measure.NUMERICS:
        assert 0 < rows[name, 0.0]["macs_saved"] < rows[name, 0.9]["macs_saved"] < 1


def test_float_products_are_the_golden_models():
    """Small integers as floats: sums are exact."""
    rng = np.random.default_rng(1)
    config = preset("small")
    network = demo.digits_network(1)
    golden, floats = GoldenProducts(config), demo_measure.FloatProducts(config)
    for layer in network.shapes(2):
        tensors = {"input": rng.integers(-9, 9, layer.input_shape), "weight": rng.integers(-9, 9, layer.weight_shape),
                   "output_grad": rng.integers(-9, 9, layer.output_shape)}  # fmt: skip
        for which, names in demo_measure.OPERANDS.items():
            own = {name: tensors[name] for name in names[:2]}
            wanted = rng.random(demo_measure.result_shape(layer, which)) < 0.5
            np.testing.assert_array_equal(floats.run(layer, which, own, wanted), golden.run(layer, which, own, wanted))


@pytest.mark.parametrize(
    "args",
    [
        ["--bits", "9"], ["--bits", "16", "--preset", "small"], ["--epochs", "0"], ["--prune", "1"],
        ["--rounding", "up"], ["--target", "rtl"], ["--replay", "cycle"], ["--seed", "-1"], ["--images", "0"],
        ["--report", "/nowhere/r.json"],
    ],
)  # fmt: skip
def test_bad_input(args, capsys):
    assert common.run_command(cli, ["train-demo", *args]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("maskwork: error: ")


def test_unknown_numerics():
    with pytest.raises(MaskworkError, match="float32, int8, int16"):
        demo_measure.measure(["int4"], [0.0], [1], 1)
