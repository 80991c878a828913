"""PyTorch layers on the accelerator against torch's own, and what they record."""

import copy
import csv
import importlib.util
import sys

import numpy as np
import pytest
from maskwork.gen.bench_masks import load_masks, tensor_shape
from maskwork.gen.config import preset
from maskwork.gen.errors import DeviceError, MaskworkError, MaskworkTypeError, MaskworkValueError
from maskwork.gen.train.accelerator import Accelerator
from maskwork.gen.workload import read_workload

from .test_docs import DOCS, blocks, run_page


def test_without_torch_the_import_says_what_to_install(monkeypatch):
    import maskwork.gen.train as package

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "maskwork.gen.train.torch", raising=False)
    monkeypatch.setattr(package, "torch", None, raising=False)
    for name in ("Accelerator", "Conv2d", "convert"):
        with pytest.raises(MaskworkError, match=r"^PyTorch is missing: pip install 'maskwork\[torch\]' brings it$"):
            exec(f"from maskwork.gen.train.torch import {name}", {})
    assert importlib.import_module("maskwork.gen.train.torch").__file__
    del sys.modules["maskwork.gen.train.torch"]


# ---------------------------------------------------------------------- layers against torch's


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors are small: more threads only wait for each other."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(1)


needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


def random_conv(rng, kind):
    groups, inner, columns = int(rng.choice([1, 1, 2, 3])), *(int(v) for v in rng.integers(1, 5, 2))
    if kind == "depthwise":
        groups, inner, columns = int(rng.integers(2, 7)), 1, int(rng.integers(1, 3))
    kernel = tuple(int(v) for v in rng.integers(1, 4, 2))
    stride, padding, dilation = (int(rng.integers(low, high)) for low, high in ((1, 4), (0, 3), (1, 3)))
    size = tuple(int(v) for v in rng.integers(5, 10, 2))  # holds any of these kernels
    arguments = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return (groups * inner, groups * columns, kernel), arguments, (int(rng.integers(1, 4)), groups * inner, *size)


def integers(rng, shape):
    import torch

    return torch.tensor(rng.integers(-127, 128, tuple(shape)) * (rng.random(tuple(shape)) < 0.6), dtype=torch.float64)


def both_ways(layer, x, gradient, bias):
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(gradient)
    return y.detach(), x.grad, layer.weight.grad, layer.bias.grad if bias else None


@needs_torch
@pytest.mark.parametrize("target", ["golden", "cycle", "rtl"])
@pytest.mark.parametrize("kind", ["any", "depthwise", "linear"])
def test_integers_give_torchs_float64_exactly(target, kind):
    import torch
    from maskwork.gen.train import torch as mt

    rng = np.random.default_rng(len(target) + 10 * len(kind))
    with Accelerator(target) as accelerator:
        for _ in range(12 if target == "golden" else 3):
            bias = bool(rng.integers(2))
            if kind == "linear":
                sizes = tuple(int(v) for v in rng.integers(1, 30, 2))
                shape = (*(int(v) for v in rng.integers(1, 5, rng.integers(3))), sizes[0])
                own = mt.Linear(*sizes, bias=bias, accelerator=accelerator, dtype=torch.float64)
                theirs = torch.nn.Linear(*sizes, bias=bias, dtype=torch.float64)
            else:
                sizes, arguments, shape = random_conv(rng, kind)
                arguments |= {"bias": bias, "dtype": torch.float64}
                own = mt.Conv2d(*sizes, **arguments, accelerator=accelerator)
                theirs = torch.nn.Conv2d(*sizes, **arguments)
            with torch.no_grad():
                for parameter in theirs.parameters():
                    parameter.copy_(integers(rng, parameter.shape))
            own.load_state_dict(theirs.state_dict())
            x = integers(rng, shape)
            gradient = integers(rng, theirs(x).shape)
            for found, expected in zip(both_ways(own, x, gradient, bias), both_ways(theirs, x, gradient, bias),
                                       strict=True):  # fmt: skip
                assert found is expected is None or torch.equal(found, expected)
            assert [r["pass"] for r in accelerator.reports[-3:]] == ["forward", "input_grad", "weight_grad"]


@needs_torch
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_paddings_with_names_and_single_images(padding):
    import torch
    from maskwork.gen.train import torch as mt

    with Accelerator() as accelerator:
        own = mt.Conv2d(2, 3, 3, padding=padding, dilation=2, accelerator=accelerator)
        own.weight.data = own.weight.data.mul(64).round()
        theirs = torch.nn.Conv2d(2, 3, 3, padding=padding, dilation=2)
        theirs.load_state_dict(own.state_dict())
        x = torch.arange(98.0).reshape(2, 7, 7) - 49
        torch.testing.assert_close(own(x), theirs(x), atol=1e-3, rtol=1e-5)


@needs_torch
def test_masks_of_gradients():
    """Results that a mask drops are 0 and the others torch's."""
    import torch
    from maskwork.gen.train import torch as mt

    rng = np.random.default_rng(3)
    with Accelerator() as accelerator:
        own = mt.Conv2d(3, 4, 3, padding=1, accelerator=accelerator, input_mask=True, weight_mask=True)
        theirs = torch.nn.Conv2d(3, 4, 3, padding=1).double()
        with torch.no_grad():
            theirs.weight.copy_(integers(rng, theirs.weight.shape))
        own.double().load_state_dict(theirs.state_dict())
        x, gradient = integers(rng, (2, 3, 6, 6)), integers(rng, (2, 4, 6, 6))
        _, dx, dw, _ = both_ways(own, x, gradient, True)
        _, all_dx, all_dw, _ = both_ways(theirs, x, gradient, True)
        assert torch.equal(dx, all_dx * (x != 0)) and torch.equal(dw, all_dw * (theirs.weight != 0))
        _, input_grad, weight_grad = accelerator.reports
        assert input_grad["densities"]["c"] == pytest.approx(float((x != 0).double().mean()))
        assert weight_grad["densities"]["c"] == pytest.approx(float((own.weight != 0).double().mean()))
        assert input_grad["macs_effectual"] < input_grad["macs_dense"] // 3


# ---------------------------------------------------------------------- a user's model


def digits(number):
    import torch
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images[:number, None] / 16, dtype=torch.float32), torch.tensor(data.target[:number])


def network():
    import torch
    from torch import nn

    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip


def train(model, steps, number, rate=0.02):
    import torch

    images, labels = digits(number)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@needs_torch
@pytest.mark.parametrize(("bits", "rounding"), [(8, {"output_grad": "stochastic"}), (8, "nearest"), (16, "nearest")])
def test_a_training_loop_learns_digits(bits, rounding):
    from maskwork.gen.train import torch as mt

    floats = train(network(), 30, 100)
    with Accelerator(bits=bits, rounding=rounding) as accelerator:
        losses = train(mt.convert(network(), accelerator), 30, 100)
    assert losses[0] == pytest.approx(floats[0], abs=0.05) and losses[-1] < 0.5 * losses[0]
    assert losses[-1] == pytest.approx(floats[-1], abs=0.3 if bits == 8 else 0.02)
    assert len(accelerator.reports) == 30 * 8  # the first layer's input has no gradient


@needs_torch
def test_targets_agree_on_a_step():
    import torch
    from maskwork.gen.train import torch as mt

    found = {}
    for target in ("golden", "cycle", "rtl"):
        with Accelerator(target, rounding={"output_grad": "stochastic"}) as accelerator:
            model = mt.convert(network(), accelerator)
            found[target] = train(model, 1, 2), [p.grad for p in model.parameters()], accelerator.reports
    for target in ("cycle", "rtl"):
        assert found[target][0] == found["golden"][0]
        assert all(torch.equal(a, b) for a, b in zip(found[target][1], found["golden"][1], strict=True))
        for own, golden in zip(found[target][2], found["golden"][2], strict=True):
            assert all(own[key] == golden[key] for key in ("layer", "pass", "densities", "macs_effectual"))
            assert own["cycles"] > 0


@needs_torch
def test_convert_sees_relus_and_pruned_weights():
    from maskwork.gen.train import torch as mt
    from torch.nn.utils import prune

    model = network()
    prune.l1_unstructured(model[3], "weight", amount=0.5)
    before = {name: id(p) for name, p in model.named_parameters()}
    with Accelerator() as accelerator:
        assert mt.convert(model, accelerator, prefix="net.") is model
        assert {name: id(p) for name, p in model.named_parameters()} == before
        assert [type(model[n]).__module__ for n in (0, 3, 6)] == ["maskwork.gen.train.torch"] * 3
        assert [model[n].label for n in (0, 3, 6)] == ["net.0", "net.3", "net.6"]
        assert [model[n].use_input_mask for n in (0, 3, 6)] == [False, True, True]
        assert [model[n].use_weight_mask for n in (0, 3, 6)] == [False, True, False]
        train(model, 1, 8)
        assert not model[3].weight_orig.grad[model[3].weight_mask == 0].any()
        assert copy.deepcopy(model[0]).accelerator is accelerator
        other = mt.convert(network(), accelerator, skip=("3",))
        assert type(other[3]).__module__ == "torch.nn.modules.conv" and other[6].label == "6"
        shared = network()
        shared.append(shared[6])
        assert not mt.convert(shared, accelerator, prefix="shared.")[6].use_input_mask


@needs_torch
@pytest.mark.parametrize("between", ["MaxPool2d", "AvgPool2d", "Dropout", "Identity"])
def test_the_masks_that_convert_finds_change_no_gradient(between):
    import torch
    from maskwork.gen.train import torch as mt
    from torch import nn

    arguments = {"MaxPool2d": (3, 2), "AvgPool2d": (2,), "Dropout": (0.5,), "Identity": ()}[between]
    found = []
    for masks in (True, False):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), nn.ReLU(inplace=True), getattr(nn, between)(*arguments),
                              nn.Conv2d(6, 4, 2), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(10))  # fmt: skip
        with Accelerator() as accelerator:
            model(digits(1)[0])
            mt.convert(model, accelerator)
            assert model[3].use_input_mask and model[6].use_input_mask
            model[3].use_input_mask = model[6].use_input_mask = masks
            torch.manual_seed(3)
            train(model, 1, 12)
        found.append([p.grad for p in model.parameters()])
        dropped = [r["densities"]["c"] < 1 for r in accelerator.reports if r["pass"] == "input_grad"]
        assert dropped == [masks, masks]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@needs_torch
def test_recorded_masks_and_workload_are_what_bench_reads(tmp_path):
    from maskwork.gen.train import torch as mt

    images, _ = digits(4)
    with Accelerator(record=False, record_masks=True) as accelerator:
        model = mt.convert(network(), accelerator)
        train(model, 2, 4)
        model(images[:1])  # nobody goes back through this: it does not replace the loop's masks
        accelerator.write_masks(tmp_path / "masks.npz")
        accelerator.write_workload(tmp_path / "net.csv", "digits")
        assert not accelerator.reports
        mt.convert(network(), accelerator, prefix="other.")(images)
        accelerator.write_workload(tmp_path / "both.csv")
    assert [x.passes for x in read_workload(tmp_path / "both.csv")][3:] == [("forward",)] * 3
    layers = read_workload(tmp_path / "net.csv")
    assert [x.name for x in layers] == ["digits/0", "digits/3", "digits/6"]
    assert [x.batch for x in layers] == [4, 4, 4] and [x.stride for x in layers] == [1, 2, 1]
    assert layers[0].passes == ("forward", "weight_grad") and "input_grad" in layers[1].passes
    masks = load_masks([str(tmp_path / "masks.npz")], layers)
    assert set(masks["digits/0"]) == {"input", "weight", "output_grad"}
    assert set(masks["digits/3"]) == {"input", "weight", "output_grad", "input_mask"}
    for layer in layers:
        for tensor, mask in masks[layer.name].items():
            assert mask.shape == tensor_shape(layer, tensor)
            assert getattr(layer, f"density_{tensor}") == pytest.approx(mask.mean(), abs=1e-5)
    images_mask = (images.numpy() != 0).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(masks["digits/0"]["input"], images_mask)
    with open(tmp_path / "net.csv", newline="") as file:
        assert {row["output_mask"] for row in csv.DictReader(file)} == {"none"}


# ---------------------------------------------------------------------- bad input


@needs_torch
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": (1, 2)}, r"^conv1: stride must be the same on all sides, not \(1, 2\)$"),
        ({"padding": (0, 1)}, r"^conv1: padding must be the same on all sides, not \(0, 1\)$"),
        ({"dilation": (2, 1)}, r"^conv1: dilation must be the same"),
        ({"kernel_size": 2, "padding": "same"}, r"^conv1: padding must be the same on all sides, not 'same'$"),
        ({"padding": 1, "padding_mode": "reflect"}, r"^conv1: padding_mode must be 'zeros', not 'reflect'$"),
        ({"name": "a/b"}, r"a layer's name must be text without '/', not 'a/b'"),
    ],
)
def test_layers_that_the_array_does_not_have(arguments, message):
    from maskwork.gen.train import torch as mt

    with pytest.raises(MaskworkValueError, match=message):
        mt.Conv2d(1, 2, **({"kernel_size": 3} | arguments), accelerator=Accelerator())


@needs_torch
def test_bad_input_and_models(tmp_path):
    import torch
    from maskwork.gen.train import torch as mt

    accelerator = Accelerator()
    conv, linear = mt.Conv2d(2, 3, 3, accelerator=accelerator), mt.Linear(4, 2, accelerator=accelerator)
    with pytest.raises(DeviceError, match=r"conv1: the accelerator is closed"):
        conv(torch.ones(1, 2, 4, 4))
    with accelerator:
        for layer, x, message in (
            (conv, torch.ones(1, 3, 4, 4), r"conv1: input must have shape \(N, 2, H, W\) .* not \(1, 3, 4, 4\)"),
            (conv, torch.ones(0, 2, 4, 4), r"conv1: input must have shape"),
            (conv, torch.ones(1, 2, 2, 2), r"conv1: kernel_height: must fit the padded input's 2"),
            (conv, torch.full((1, 2, 4, 4), torch.nan), r"conv1: input must be finite"),
            (conv, torch.ones(1, 2, 4, 4, dtype=torch.int32), r"conv1: input must be a tensor of floats"),
            (linear, torch.ones(3, 5), r"linear1: input must have shape \(..., 4\) .* not \(3, 5\)"),
            (linear, torch.tensor(1.0), r"linear1: input must have shape"),
        ):
            with pytest.raises(MaskworkError, match=message):
                layer(x)
        with pytest.raises(MaskworkError, match="open already"), accelerator:
            pass
        x = torch.ones(1, 4, requires_grad=True)
        with pytest.raises(MaskworkError, match="linear1: has no second derivatives"):
            torch.autograd.grad(linear(x).sum(), x, create_graph=True)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Conv2d(2, 2, 3, stride=(1, 2)))
    with pytest.raises(MaskworkValueError, match=r"^1: stride must be the same"):
        mt.convert(model, accelerator)
    assert type(model[0]) is torch.nn.Conv2d
    for bad, message in (
        (torch.nn.ReLU(), "has no torch.nn.Conv2d or torch.nn.Linear"), (3, "a torch module and an Accelerator")
    ):  # fmt: skip
        with pytest.raises(MaskworkError, match=message):
            mt.convert(bad, accelerator)
    with pytest.raises(MaskworkValueError, match="skip must hold names of the model's modules, not \\('2',\\)"):
        mt.convert(model, accelerator, skip=("2",))
    with pytest.raises(MaskworkTypeError, match="accelerator must be an Accelerator, not str"):
        mt.Linear(1, 2, accelerator="golden")
    with pytest.raises(MaskworkTypeError, match="cannot be pickled; save the model's state_dict"):
        torch.save(conv, "/dev/null")
    for write in (Accelerator().write_masks, Accelerator().write_workload):
        with pytest.raises(MaskworkValueError, match="a step of training"):
            write(tmp_path / "nothing")
    with pytest.raises(MaskworkValueError, match="a network's name must be text without '/', not 'a/b'"):
        accelerator.write_workload(tmp_path / "net.csv", "a/b")
    with pytest.raises(MaskworkValueError, match=r"nowhere/net.csv: cannot be written \(No such file"):
        accelerator.write_workload(tmp_path / "nowhere" / "net.csv")


@needs_torch
@pytest.mark.parametrize("target", ["golden", "cycle"])
def test_sums_that_leave_the_accumulators(target):
    import torch
    from maskwork.gen.train import torch as mt

    config = preset("small").replace(name="narrow", acc_width=18, post=False)
    with Accelerator(target, config) as accelerator:
        linear = mt.Linear(20, 1, accelerator=accelerator)
        linear.weight.data.fill_(127.0)
        with pytest.raises(MaskworkValueError, match=r"linear1, forward: .* 322580 .* 18"):
            linear(torch.full((1, 20), 127.0))


@needs_torch
def test_the_page_runs(tmp_path, capsys, monkeypatch):
    run_page(blocks(DOCS / "torch.md"), tmp_path, capsys, monkeypatch)
