"""Integers, pruning and single steps of training, against formulas in float64."""

import math

import maskwork as mw
import numpy as np
import pytest
from maskwork.gen.config import preset
from maskwork.gen.errors import MaskworkError, MaskworkTypeError, MaskworkValueError
from maskwork.gen.train.demo import Compared
from maskwork.gen.train.demo_measure import FloatProducts
from maskwork.gen.train.network import SGD, Adam, Conv, Linear, Network
from maskwork.gen.train.numerics import Quantised, check_bits, quantise
from maskwork.gen.train.products import GoldenProducts, Products
from maskwork.gen.train.pruning import Pruner, prune_values, threshold
from maskwork.gen.train.step import clone, evaluate, step
from maskwork.sim_tb.device import open_device

DENSITY = {0.5: 0.741, 0.7: 0.620, 0.8: 0.549, 0.9: 0.460, 0.99: 0.309}
"""Share that pruning leaves of normally distributed values, by p."""

LAYERS = (Conv("conv", 5, stride=2), Conv("second", 6, kernel=2, padding=0), Linear("fc", 4, relu=False))


def small_case(seed=1, images=3):
    rng = np.random.default_rng(seed)
    network = Network((6, 5, 2), LAYERS, seed)
    return network, rng.random((images, 6, 5, 2)), rng.integers(0, 4, images)


# ---------------------------------------------------------------------- integers


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_scale_is_the_least_power_of_two(bits, rounding):
    limit = (1 << (bits - 1)) - 1
    rng = np.random.default_rng(bits)
    for _ in range(200):
        x = rng.standard_normal(20) * 10.0 ** rng.uniform(-9, 9)
        q = quantise(x, bits, rounding, rng)
        assert np.abs(q.values).max() <= limit < np.abs(x).max() * 2.0 ** (1 - q.exponent)
        assert np.abs(q.real - x).max() <= 2.0**q.exponent * (0.5 if rounding == "nearest" else 1)
    for exponent in (-20, 0, 7):  # the largest value exactly at the bound, and just above
        edge = math.ldexp(limit, exponent)
        assert quantise([edge, 0], bits, rounding, rng).exponent == exponent
        assert quantise([np.nextafter(edge, np.inf)], bits, rounding, rng).exponent == exponent + 1
    assert quantise([0.0, 0.0], bits, rounding, rng).values.tolist() == [0, 0]


def test_stochastic_rounding_is_unbiased():
    """400,000 roundings of each value: a bias of 0.004 of a step, five standard errors at most, would be seen."""
    n = 400_000
    for fraction in (0.03, 0.25, 0.5, 0.9):
        x = np.append(np.full(n, 5 + fraction), 127.0)
        mean = quantise(x, 8, "stochastic", 7).values[:-1].mean()
        assert abs(mean - 5 - fraction) < 5 * math.sqrt(fraction * (1 - fraction) / n) < 0.0041
    same = [quantise(x, 8, "stochastic", 7).values for _ in range(2)]
    np.testing.assert_array_equal(*same)


# ---------------------------------------------------------------------- pruning


@pytest.mark.parametrize("p", DENSITY)
def test_pruned_densities_and_expectation(p):
    n = 200_000
    g = quantise(np.random.default_rng(3).standard_normal(n) * 1e-3, 16)
    pruner = Pruner(p, seed=5)
    first = pruner.prune("layer", g)
    assert first.level == 0
    np.testing.assert_array_equal(first.gradient.values, g.values)
    second = pruner.prune("layer", g)
    kept = second.gradient.values
    assert np.count_nonzero(kept) / n == pytest.approx(DENSITY[p], abs=0.005)
    large = np.abs(g.values) >= second.level
    np.testing.assert_array_equal(kept[large], g.values[large])
    assert set(np.abs(kept[~large])) <= {0, second.level}
    assert ((kept == 0) | (np.sign(kept) == np.sign(g.values))).all()
    # what pruning adds has mean 0: each value's variance is |g| (level - |g|)
    size = np.abs(g.values[~large]).astype(float)
    error = (kept - g.values)[~large].sum()
    assert abs(error) < 4 * math.sqrt((size * (second.level - size)).sum())


def test_prediction_is_the_mean_of_the_last_four():
    pruner = Pruner(0.8)
    taus = []
    for scale in (1, 2, 3, 4, 5, 6):
        g = Quantised(np.array([scale, -scale, 0, 0]), -3)
        pruner.prune("x", g, count=2)
        taus.append(threshold(scale / 8, 0.8))
        assert pruner.predicted("x") == pytest.approx(np.mean(taus[-4:]))
    assert pruner.predicted("y") is None
    assert threshold(1.0, 0.9) == pytest.approx(2.062, abs=5e-4)


def test_pruning_on_a_device_is_the_same():
    rng = np.random.default_rng(2)
    values = rng.integers(-100, 101, (3, 4, 5, 7))
    with open_device("golden", preset("small-train")) as device, open_device("golden", preset("small")) as without:
        for level, seed in ((1, 1), (40, 2**32 - 1), (127, 12345)):
            expected = prune_values(values, level, seed)
            np.testing.assert_array_equal(prune_values(values, level, seed, device), expected)
            np.testing.assert_array_equal(prune_values(values, level, seed, without), expected)


# ---------------------------------------------------------------------- steps


def convolve(x, w, stride, padding):
    """One convolution in float64, pixel by pixel, and its gradients as functions of the output's."""
    pad = np.pad(x, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
    kh, kw = w.shape[:2]
    oh, ow = (pad.shape[1] - kh) // stride + 1, (pad.shape[2] - kw) // stride + 1
    spots = [(r, c, slice(r * stride, r * stride + kh), slice(c * stride, c * stride + kw))
             for r in range(oh) for c in range(ow)]  # fmt: skip
    y = np.zeros((len(x), oh, ow, w.shape[3]))
    for r, c, rows, columns in spots:
        y[:, r, c] = np.tensordot(pad[:, rows, columns], w, 3)

    def back(g):
        dx, dw = np.zeros_like(pad), np.zeros(w.shape)
        for r, c, rows, columns in spots:
            dw += np.einsum("nhwi,nj->hwij", pad[:, rows, columns], g[:, r, c])
            dx[:, rows, columns] += np.einsum("nj,hwij->nhwi", g[:, r, c], w)
        inside = (slice(None), slice(padding, pad.shape[1] - padding), slice(padding, pad.shape[2] - padding))
        return dx[inside], dw

    return y, back


def test_gradients_are_the_formulas_of_the_same_operands():
    """Every layer's output and both gradients in float64 from the step's own integers, and the loss by softmax."""
    network, images, labels = small_case()
    network.prune({"second": 0.5})
    pruner, products = Pruner(0.7), GoldenProducts(preset("small"))
    for _ in range(2):  # the second step prunes
        result = step(network, images, labels, products, pruner=pruner, rng=4)
    assert set(result.levels) == {"conv", "second"} and all(result.levels.values())
    upstream = None
    for index in reversed(range(3)):
        spec, saved = network.layers[index], result.tape[index]
        stride, padding = (spec.stride, spec.padding) if isinstance(spec, Conv) else (1, 0)
        y, back = convolve(saved.x.real, saved.w.real, stride, padding)
        y += network.parameters[f"{spec.name}.bias"]
        if index == 2:
            logits = y.reshape(3, 4)
            share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            assert result.loss == pytest.approx(-np.log(share[range(3), labels]).mean(), rel=1e-5)
            upstream = ((share - np.eye(4)[labels]) / 3).reshape(y.shape)
        else:
            upstream = upstream.reshape(y.shape) * (y > 0)
        grad = result.output_grads[spec.name]
        if index == 2:  # rounded by less than a step, never pruned
            assert np.abs(grad.real - upstream).max() < 2.0**grad.exponent * 1.001
        else:  # only what the ReLU lets through; not pruned by more than the threshold, and a step of rounding
            assert (grad.values[upstream == 0] == 0).all()
            assert np.abs(grad.real - upstream).max() < 2.0**grad.exponent * (result.levels[spec.name] + 1.001)
        upstream, weight = back(grad.real)
        mask = network.masks.get(f"{spec.name}.weight", np.True_)
        np.testing.assert_allclose(result.gradients[f"{spec.name}.weight"], weight * mask, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(result.gradients[f"{spec.name}.bias"], grad.real.sum((0, 1, 2)), rtol=1e-6)
    passes = [(report["layer"], report["pass"]) for report in result.reports]
    assert len(passes) == 8 and ("conv", "input_grad") not in passes


def test_float_products_give_the_loss_derivative():
    """Central differences of the loss for a few parameters of every layer, so small that no ReLU changes sides."""
    network, images, labels = small_case(2)
    products = FloatProducts(preset("small"))

    def loss():
        return step(network, images, labels, products, bits=None).loss

    gradients = step(network, images, labels, products, bits=None).gradients
    rng = np.random.default_rng(1)
    for key, value in network.parameters.items():
        for i in rng.integers(0, value.size, 4):
            at, old, sides = np.unravel_index(i, value.shape), value.flat[i], []
            for change in (1e-3, -1e-3):
                value[at] = old + change
                sides.append(loss())
            value[at] = old
            assert (sides[0] - sides[1]) / 2e-3 == pytest.approx(gradients[key][at], abs=3e-3), key


def one_step(products, network, images, labels):
    pruner = Pruner(0.6)
    network = clone(network)
    for _ in range(2):
        result = step(network, images, labels, products, pruner=pruner, optimiser=SGD(0.1), rng=9)
    return network, result


def test_golden_and_cycle_agree():
    case = small_case(3)
    expected, result = one_step(GoldenProducts(preset("small")), *case)
    with open_device("cycle", preset("small-train")) as device:
        found, own = one_step(Products(device, "cycle"), *case)
    for key, value in expected.parameters.items():
        np.testing.assert_array_equal(found.parameters[key], value)
    for a, b in zip(result.reports, own.reports, strict=True):
        assert [a[k] for k in ("densities", "macs_dense", "macs_effectual")] == [
            b[k] for k in ("densities", "macs_dense", "macs_effectual")
        ]
        assert b["cycles"] > 0


@pytest.mark.slow
def test_rtl_agrees():
    """Compared raises if a product or counter differs; gradients are pruned by the hardware's mask unit."""
    case = small_case(3)
    expected, _ = one_step(GoldenProducts(preset("small")), *case)
    with open_device("rtl", preset("small-train")) as device:
        products = Compared(device, "rtl")
        found, result = one_step(products, *case)
    for key, value in expected.parameters.items():
        np.testing.assert_array_equal(found.parameters[key], value)
    assert products.values > 0 and all(report["cycles"] for report in result.reports)


@pytest.mark.parametrize("optimiser", [SGD(0.2), Adam(0.02)])
def test_steps_learn(optimiser):
    network, images, labels = small_case(4, images=8)
    products = GoldenProducts(preset("small"))
    losses = [step(network, images, labels, products, optimiser=optimiser, rng=i).loss for i in range(60)]
    assert losses[-1] < 0.3 * losses[0] and evaluate(network, images, labels, products) == 1.0


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": np.zeros((3, 5, 5, 2))}, "images must have shape"),
        ({"images": np.full((3, 6, 5, 2), np.nan)}, "finite"),
        ({"images": np.full((3, 6, 5, 2), "a")}, "real numbers"),
        ({"labels": np.array([0, 1])}, "labels must be 3"),
        ({"labels": np.array([0, 1, 4])}, "from 0 to 3"),
        ({"labels": np.array([0.0, 1, 2])}, "integers"),
        ({"bits": 16}, "a_width"),
        ({"bits": 9}, "8 or 16"),
        ({"rounding": "up"}, "nearest or stochastic"),
        ({"rng": -1}, "seed"),
        ({"network": None}, "Network"),
    ],
)
def test_bad_steps(change, words):
    network, images, labels = small_case()
    given = {"network": network, "images": images, "labels": labels, "products": GoldenProducts(preset("small"))}
    with pytest.raises(MaskworkError, match=words) as caught:
        mw.train.step(**(given | change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: Pruner(0), MaskworkValueError),
        (lambda: Pruner(1.0), MaskworkValueError),
        (lambda: Pruner("a"), MaskworkTypeError),
        (lambda: Pruner(0.5, history=0), MaskworkValueError),
        (lambda: quantise([1.0], 8, "stochastic"), MaskworkValueError),
        (lambda: quantise([1j], 8), MaskworkTypeError),
        (lambda: check_bits(preset("icebreaker"), 16), MaskworkValueError),
        (lambda: Network((6, 5), LAYERS), MaskworkValueError),
        (lambda: Network((6, 5, 2), []), MaskworkValueError),
        (lambda: Network((6, 5, 2), [Linear("a", 2), Linear("a", 2)]), MaskworkValueError),
        (lambda: Network((2, 2, 1), [Conv("a", 2, kernel=9)]), MaskworkValueError),
        (lambda: Network((2, 2, 1), ["a"]), MaskworkError),
        (lambda: Network((6, 5, 2), LAYERS).prune({"fc": 0}), MaskworkValueError),
        (lambda: Network((6, 5, 2), LAYERS).prune({"other": 0.5}), MaskworkValueError),
        (lambda: SGD(0), MaskworkValueError),
        (lambda: Adam(beta1=1), MaskworkValueError),
    ],
)
def test_bad_arguments(make, kind):
    with pytest.raises(kind):
        make()
