"""The three passes of random layers against float64 NumPy, on golden, cycle and RTL."""

import numpy as np
import pytest
from maskwork.gen.config import preset
from maskwork.gen.errors import MaskworkError, ProgramError
from maskwork.gen.passes import OPERANDS
from maskwork.gen.train.products import GoldenProducts, Products, conv_layer, linear_layer, result_shape
from maskwork.gen.workload import PASSES
from maskwork.sim_tb.device import open_device

CONFIG = preset("small")


def random_layer(rng, kind):
    """A layer with random attributes: "any", "depthwise", "linear" or "strided" (a stride of 2 or 3)."""
    if kind == "linear":
        return linear_layer("fc", *(int(v) for v in rng.integers(1, (9, 90, 60))))
    while True:
        groups = int(rng.choice([1, 1, 2, 4]))
        inner, columns = (int(v) for v in rng.integers(1, 7, 2))
        if kind == "depthwise":
            groups, inner, columns = int(rng.integers(2, 12)), 1, int(rng.integers(1, 3))
        kernel = tuple(int(v) for v in rng.integers(1, 5, 2))
        sizes = tuple(int(v) for v in rng.integers(1, 11, 2))
        stride = int(rng.integers(2, 4)) if kind == "strided" else int(rng.choice([1, 1, 2, 3]))
        padding, dilation = int(rng.integers(0, 4)), int(rng.integers(1, 4))
        try:
            return conv_layer("conv", (int(rng.integers(1, 4)), *sizes, groups * inner),
                              (*kernel, inner, groups * columns), stride, padding, dilation, groups)  # fmt: skip
        except MaskworkError:
            continue  # the kernel does not fit


def random_tensors(rng, layer, extreme=False):
    def tensor(shape, density):
        values = rng.choice([-256, 255], shape) if extreme else rng.integers(-256, 256, shape)
        return np.where(rng.random(shape) < density, values, 0)

    a, b, c = (float(rng.choice([0.0, 0.1, 0.5, 1.0], p=[0.04, 0.3, 0.5, 0.16])) for _ in range(3))
    return {"input": tensor(layer.input_shape, a), "weight": tensor(layer.weight_shape, b),
            "output_grad": tensor(layer.output_shape, c)}  # fmt: skip


def reference(layer, which, tensors):
    """The pass in float64 (exact: all sums stay below 2**53), by the index of the padded pixel that each tap meets."""
    x, w, g = (np.asarray(tensors[name], dtype=np.float64) for name in ("input", "weight", "output_grad"))
    pad, groups = layer.padding, layer.groups
    height, width = layer.in_height + 2 * pad, layer.in_width + 2 * pad
    rows = np.arange(layer.out_height)[:, None] * layer.stride + np.arange(layer.kernel_height) * layer.dilation
    cols = np.arange(layer.out_width)[:, None] * layer.stride + np.arange(layer.kernel_width) * layer.dilation
    pixel = rows[:, None, :, None] * width + cols[None, :, None, :]  # (OH, OW, kh, kw)
    n, inner, columns = layer.batch, layer.in_channels // groups, layer.out_channels // groups
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))).reshape(n, height * width, groups, inner)
    w = w.reshape(*layer.weight_shape[:3], groups, columns)
    g = g.reshape(*layer.output_shape[:3], groups, columns)
    if which == "forward":
        return np.einsum("noprsgi,rsigj->nopgj", padded[:, pixel], w).reshape(layer.output_shape)
    if which == "weight_grad":
        return np.einsum("noprsgi,nopgj->rsigj", padded[:, pixel], g).reshape(layer.weight_shape)
    result = np.zeros_like(padded)
    np.add.at(result, (slice(None), pixel), np.einsum("nopgj,rsigj->noprsgi", g, w))
    result = result.reshape(n, height, width, -1)
    return result[:, pad : height - pad, pad : width - pad]


def run(products, layer, which, tensors, wanted):
    own = {name: tensors[name] for name in OPERANDS[which][:2]}
    return products.run(layer, which, own, wanted)


def check(products, rng, kind, which, extreme=False):
    """One random layer: exact, masked results 0, and what was computed."""
    layer = random_layer(rng, kind)
    tensors = random_tensors(rng, layer, extreme)
    wanted = None if rng.random() < 0.25 else rng.random(result_shape(layer, which)) < rng.choice([0.0, 0.3, 0.8])
    result = run(products, layer, which, tensors, wanted)
    expected = reference(layer, which, tensors)
    if wanted is not None:
        expected = np.where(wanted, expected, 0)
    np.testing.assert_array_equal(result, expected)
    return layer, tensors, wanted, products.reports[-1]


@pytest.fixture(scope="module")
def golden():
    with open_device("golden", CONFIG) as device:
        yield Products(device, "golden")


@pytest.mark.parametrize("kind", ["any", "strided", "depthwise", "linear"])
@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("extreme", [False, True])
def test_random_layers_on_golden(golden, kind, which, extreme):
    """13 or 14 layers of each kind and pass, with values of both kinds: 324 in all; and the formulas alone."""
    rng = np.random.default_rng([len(kind), PASSES.index(which), extreme])
    formulas = GoldenProducts(CONFIG)
    for _ in range(14 if extreme else 13):
        layer, tensors, wanted, report = check(golden, rng, kind, which, extreme)
        np.testing.assert_array_equal(
            run(formulas, layer, which, tensors, wanted), run(golden, layer, which, tensors, wanted)
        )
        keys = ("macs_dense", "macs_effectual")
        assert [formulas.reports[-1][key] for key in keys] == [report[key] for key in keys]


@pytest.mark.slow
@pytest.mark.parametrize("which", PASSES)
def test_random_layers_on_rtl(which):
    """22 layers a pass, 66 in all: results exact, every counter the cycle model's, no multiply but the effectual."""
    rng = np.random.default_rng(PASSES.index(which))
    with open_device("rtl", CONFIG) as device, open_device("cycle", CONFIG) as model:
        rtl, cycle = Products(device, "rtl"), Products(model, "cycle")
        for number in range(22):
            kind = ("any", "strided", "depthwise", "linear")[number % 4]
            layer, tensors, wanted, report = check(rtl, rng, kind, which, extreme=number % 5 == 4)
            run(cycle, layer, which, tensors, wanted)
            for key in ("cycles", "compute_cycles", "pe_cycles", "words_in", "words_out"):
                assert cycle.reports[-1].get(key) == report.get(key), (layer, key)
            if "pe_cycles" in report:  # not where no tap meets a pixel
                # make_report has checked that the hardware's multiplies are effectual + ineffectual
                assert report["pe_cycles"]["effectual"] == report["macs_effectual"]
                assert report["pe_cycles"]["ineffectual"] == 0


def test_what_the_mask_of_results_removes_is_not_computed():
    rng = np.random.default_rng(5)
    layer = conv_layer("conv", (2, 9, 9, 12), (3, 3, 12, 20), 2, 1)
    tensors = random_tensors(rng, layer)
    for which in PASSES:
        wanted = rng.random(result_shape(layer, which)) < 0.2
        with open_device("cycle", CONFIG) as device:
            products = Products(device, "cycle")
            result = run(products, layer, which, tensors, wanted)
            nothing = run(products, layer, which, tensors, np.zeros_like(wanted))
            run(products, layer, which, tensors, None)
        assert not result[~wanted].any() and not nothing.any()
        some, none, every = (report["pe_cycles"]["effectual"] for report in products.reports)
        assert none == 0 and 0 < some < 0.3 * every


def test_inserted_zeros_of_strides_are_not_streamed():
    """The input gradient of stride 3 multiplies what the forward pass does, and streams no more than the gradient's
    four phases or so.
    """
    layer = conv_layer("conv", (1, 12, 12, 8), (3, 3, 8, 16), 3, 1)
    rng = np.random.default_rng(6)
    tensors = {"input": np.ones(layer.input_shape, int), "weight": rng.integers(1, 9, layer.weight_shape),
               "output_grad": rng.integers(1, 9, layer.output_shape)}  # fmt: skip
    with open_device("cycle", CONFIG) as device:
        products = Products(device, "cycle")
        for which in ("forward", "input_grad", "weight_grad"):
            run(products, layer, which, tensors, None)
    assert len({report["macs_effectual"] for report in products.reports}) == 1
    assert all(report["bound"] == 1 for report in products.reports)


def test_pixels_that_no_tap_meets(golden):
    layer = conv_layer("conv", (1, 7, 7, 3), (1, 1, 3, 5), 3)
    tensors = random_tensors(np.random.default_rng(1), layer)
    result = run(golden, layer, "input_grad", tensors, None)
    np.testing.assert_array_equal(result, reference(layer, "input_grad", tensors))
    assert not result[:, 1::3].any() and not result[:, :, 2::3].any()


def test_groups_of_weight_gradients_run_as_one_product():
    layer = conv_layer("conv", (2, 8, 8, 32), (3, 3, 1, 32), 1, 1, 1, 32)
    tensors = random_tensors(np.random.default_rng(2), layer)
    with open_device("cycle", CONFIG) as device:
        products = Products(device, "cycle")
        run(products, layer, "weight_grad", tensors, None)
    assert products.reports[-1]["products"] == 1


@pytest.mark.parametrize("make", [GoldenProducts, lambda config: Products(golden_device(config), "golden")])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"which": "backward"}, "pass must be one of forward, input_grad, weight_grad, not 'backward'"),
        ({"weight": None}, "conv, input_grad: tensor 'weight' is missing; shape (3, 3, 2, 4) is expected"),
        ({"output_grad": np.zeros((1, 5, 5, 3), int)}, "output_grad must have shape (1, 5, 5, 4), not (1, 5, 5, 3)"),
        ({"weight": np.zeros((3, 3, 2, 4))}, "conv, input_grad: weight must be an array of integers, not float64"),
        ({"wanted": np.ones((1, 5, 5, 3), bool)}, "mask of the results must have shape (1, 5, 5, 2), not (1, 5, 5, 3)"),
        ({"output_grad": np.full((1, 5, 5, 4), 256)}, "-256..255, not 256..256"),
    ],
)  # fmt: skip
def test_bad_input(make, change, message):
    layer = conv_layer("conv", (1, 5, 5, 2), (3, 3, 2, 4), 1, 1)
    tensors = {"weight": np.ones((3, 3, 2, 4), int), "output_grad": np.ones((1, 5, 5, 4), int)}
    change = dict(change)
    which, wanted = change.pop("which", "input_grad"), change.pop("wanted", None)
    tensors = {name: value for name, value in (tensors | change).items() if value is not None}
    with pytest.raises(MaskworkError) as error:
        make(CONFIG).run(layer, which, tensors, wanted)
    assert message in str(error.value) and "\n" not in str(error.value)


def golden_device(config):
    from maskwork.sim_tb.device import GoldenDevice

    return GoldenDevice(config)


def test_sums_beyond_the_accumulators_are_refused():
    layer = linear_layer("fc", 1, 64, 1)
    config = CONFIG.replace(acc_width=18, post=False)
    tensors = {"input": np.full((1, 1, 1, 64), 255), "weight": np.full((1, 1, 64, 1), 255)}
    for products in (GoldenProducts(config), Products(golden_device(config), "golden")):
        with pytest.raises(MaskworkError, match="fc, forward: "):
            products.run(layer, "forward", tensors)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1, 4, 4, 3), (3, 3, 2, 4)), r"weights must have shape \(kh, kw, 3 / 1, outputs\)"),
        (((1, 2, 2, 3), (3, 3, 3, 4)), "kernel_height: must fit the padded input"),
        (((1, 4, 4, 4), (3, 3, 2, 3), 1, 0, 1, 2), "groups: must divide out_channels"),
    ],
)
def test_bad_layers(arguments, message):
    with pytest.raises(MaskworkError, match=message):
        conv_layer("conv", *arguments)


def test_a_configuration_too_small_is_named():
    config = preset("tiny")
    layer = conv_layer("conv", (1, 1, 600, 1), (1, 500, 1, 1))
    tensors = random_tensors(np.random.default_rng(0), layer)
    with pytest.raises(ProgramError, match="conv, weight_grad: "):
        run(Products(golden_device(config), "golden"), layer, "weight_grad", tensors, None)
