"""LSTM layers in training: products of the three passes with structured dropout, against NumPy and calculus."""

import json

import numpy as np
import pytest
from maskwork.gen.cli_common import run_command
from maskwork.gen.config import preset
from maskwork.gen.errors import MaskworkError, MaskworkTypeError, MaskworkValueError
from maskwork.gen.train.lstm import Dropout, Weights, backward, forward, quantise
from maskwork.gen.train.lstm_measure import CountedProducts, command, measure
from maskwork.gen.train.lstm_products import LstmProducts
from maskwork.sim_tb.device import open_device

TINY, SMALL = preset("tiny"), preset("small")
FINE = SMALL.replace(name="fine", a_width=18, b_width=18, acc_width=64, post=False, vector=False, skip="abc")


class Case:
    """Integer operands and masks of a small LSTM, and its products by float64 NumPy, exact below 2**53."""

    def __init__(self, seed, largest=9):
        rng = np.random.default_rng(seed)
        self.steps, self.batch, inputs, units = (int(v) for v in rng.integers(1, (6, 6, largest, largest)))
        gates = 4 * units

        def integers(*shape):
            return rng.integers(-128, 128, shape)

        self.x, self.h = integers(self.steps, self.batch, inputs), integers(self.steps, self.batch, units)
        self.w, self.u = integers(inputs, gates), integers(units, gates)
        self.dz = integers(self.steps, self.batch, gates)
        self.mx, self.mh = (rng.random((self.steps, size)) >= p for size, p in ((inputs, 0.5), (units, 0.65)))

    def expected(self):
        dx, dh = (self.dz.astype(np.float64) @ m.T for m in (self.w, self.u))
        x, h = self.x * self.mx[:, None], self.h * self.mh[:, None]
        return {
            "project": x.astype(np.float64) @ self.w,
            "recur": h.astype(np.float64) @ self.u,
            "project_grad": dx * self.mx[:, None],
            "recur_grad": dh * self.mh[:, None],
            "dw": np.einsum("tni,tng->ig", x.astype(np.float64), self.dz),
            "du": np.einsum("tni,tng->ig", h.astype(np.float64), self.dz),
        }

    def run(self, device, by_step=None):
        products = LstmProducts(device, by_step)
        steps = range(self.steps)
        results = {
            "project": products.project(self.x, self.w, self.mx),
            "recur": np.stack([products.recur(self.h[t], self.u, self.mh[t]) for t in steps]),
            "project_grad": products.project_grad(self.dz, self.w, self.mx),
            "recur_grad": np.stack([products.recur_grad(self.dz[t], self.u, self.mh[t]) for t in steps]),
            "dw": products.weight_grad(self.x, self.dz, self.mx),
            "du": products.weight_grad(self.h, self.dz, self.mh),
        }
        return results, products.reports

    def check(self, results):
        for name, expected in self.expected().items():
            np.testing.assert_array_equal(results[name], expected, err_msg=name)
        for name, mask in (("project_grad", self.mx), ("recur_grad", self.mh)):
            assert not results[name].swapaxes(0, 1)[:, ~mask].any()
        assert not results["dw"][~self.mx.any(axis=0)].any()
        assert not results["du"][~self.mh.any(axis=0)].any()


@pytest.mark.parametrize("config", [TINY, SMALL, preset("sim-64")], ids=lambda c: c.name)
def test_products_of_random_lstms_are_exact(config):
    with open_device("golden", config) as device:
        for seed in range(7):
            case = Case(100 * config.pes + seed, 24)
            for by_step in (True, False):
                case.check(case.run(device, by_step)[0])


@pytest.mark.parametrize("skip", ["", "a", "c"])
def test_products_without_all_mask_ports_are_exact(skip):
    with open_device("golden", SMALL.replace(skip=skip)) as device:
        case = Case(3, 24)
        case.check(case.run(device)[0])


@pytest.mark.parametrize("config", [TINY, SMALL], ids=lambda c: c.name)
def test_rtl_counts_what_the_cycle_model_counts(config):
    for seed in range(2):
        case = Case(1000 + config.pes + seed, 12)
        for by_step in (True, False):
            reports = {}
            for target in ("cycle", "rtl"):
                with open_device(target, config) as device:
                    results, reports[target] = case.run(device, by_step)
                case.check(results)
            for cycle, rtl in zip(reports["cycle"], reports["rtl"], strict=True):
                # make_report() has checked that no other product took a multiply: skip is abc
                assert rtl["pe_cycles"]["ineffectual"] == 0
                assert rtl["pe_cycles"]["effectual"] == rtl["macs_effectual"]
                assert rtl == cycle | {"seconds": 0.0}
    assert sum(report["macs_effectual"] for report in reports["rtl"]) > 0


def test_effectual_products_are_those_of_kept_units():
    ones = np.ones((4, 5, 6), np.int8)
    w, dz = np.ones((6, 24), np.int8), np.ones((4, 5, 24), np.int8)
    keep = np.random.default_rng(1).random((4, 6)) < 0.5
    with open_device("golden", SMALL) as device:
        for by_step in (True, False):
            products = LstmProducts(device, by_step)
            products.project(ones, w, keep)
            products.project_grad(dz, w, keep)
            products.weight_grad(ones, dz, keep)
            found = {}
            for report in products.reports:
                for key in ("macs_dense", "macs_effectual"):
                    found[report["pass"], key] = found.get((report["pass"], key), 0) + report[key]
            for which in ("forward", "input_grad", "weight_grad"):
                assert found[which, "macs_dense"] == 4 * 5 * 6 * 24
                assert found[which, "macs_effectual"] == keep.sum() * 5 * 24


def words(product, config=SMALL, by_step=None):
    with open_device("cycle", config) as device:
        products = LstmProducts(device, by_step)
        product(products)
    return sum(report["words_in"] for report in products.reports)


def test_dropped_units_are_not_loaded():
    rng = np.random.default_rng(2)
    steps, batch, units = 3, 4, 64
    h, u = rng.integers(1, 127, (batch, units)), rng.integers(1, 127, (units, 4 * units))
    x, dz = rng.integers(1, 127, (steps, batch, units)), rng.integers(1, 127, (steps, batch, 4 * units))
    keep = np.tile(np.arange(units) % 4 == 0, (steps, 1))
    for by_step in (True, False):
        for least, product in (
            (0.35, lambda p, keep: p.recur(h, u, None if keep is None else keep[0])),
            (0.4, lambda p, keep: p.recur_grad(dz[0], u, None if keep is None else keep[0])),
        ):
            dense, masked = (words(lambda p, k=k, f=product: f(p, k), by_step=by_step) for k in (None, keep))
            assert masked < least * dense
    # the weights of W stay for all steps where one product has all steps: then only x shrinks
    assert words(lambda p: p.project(x, u, keep), by_step=True) < words(lambda p: p.recur(h, u)) * steps * 0.35
    whole = words(lambda p: p.weight_grad(x, dz))
    assert words(lambda p: p.weight_grad(x, dz, keep)) < whole - 3 * steps * batch  # rows of x that no step kept
    sparse = np.eye(steps, dtype=bool)[:, np.arange(units) % steps]
    assert words(lambda p: p.weight_grad(x, dz, sparse)) < whole  # units that one step of three kept


def test_cycles_depend_on_how_many_units_are_kept_not_on_which():
    ones = np.ones((4, 30), np.int8)
    u = np.ones((30, 120), np.int8)
    rng = np.random.default_rng(3)
    with open_device("cycle", SMALL) as device:
        products = LstmProducts(device)
        for _ in range(4):
            keep = rng.permutation(30) < 13
            products.recur(ones, u, keep)
            products.recur_grad(np.ones((4, 120), np.int8), u, keep)
    for kind in ("recur", "recur_grad"):
        found = [(r["cycles"], r["words_in"], r["pe_cycles"]) for r in products.reports if r["product"] == kind]
        assert len(found) == 4
        assert all(each == found[0] for each in found)


# ---------------------------------------------------------------------- whole layers


def layer(rng, steps=4, batch=3, inputs=5, units=6):
    weights = Weights(
        rng.normal(0, 0.5, (inputs, 4 * units)), rng.normal(0, 0.5, (units, 4 * units)), rng.normal(0, 0.5, 4 * units)
    )
    return weights, rng.normal(0, 1, (steps, batch, inputs))


def states(w, u, b, x, dropout, initial=None):
    """The textbook's formula in the dtype of its arguments; complex ones give derivatives."""
    h, c = np.zeros((2, x.shape[1], u.shape[0])) if initial is None else initial
    result = []
    for t in range(len(x)):
        mx = 1 if dropout.x is None else dropout.x[t] / (1 - dropout.x_rate)
        mh = 1 if dropout.h is None else dropout.h[t] / (1 - dropout.h_rate)
        i, f, g, o = np.split((x[t] * mx) @ w + (h * mh) @ u + b, 4, axis=1)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        result.append(h)
    return np.stack(result)


def derivatives(weights, x, dropout, dh, initial):
    """Gradients of sum(dh * states), by complex steps: as exact as float64."""
    values = {"w": weights.w, "u": weights.u, "b": weights.b, "x": x}
    result = {}
    for name, value in values.items():
        result[name] = np.zeros(value.shape)
        for index in np.ndindex(value.shape):
            moved = value.astype(np.complex128)
            moved[index] += 1e-30j
            result[name][index] = (dh * states(**values | {name: moved}, dropout=dropout, initial=initial)).sum().imag
    return {name: value / 1e-30 for name, value in result.items()}


@pytest.mark.parametrize("given", [False, True], ids=["from zeros", "initial state"])
@pytest.mark.parametrize("rates", [(0.0, 0.0), (0.5, 0.0), (0.4, 0.6)])
def test_gradients_of_a_layer_are_its_derivatives(rates, given):
    rng = np.random.default_rng(5)
    weights, x = layer(rng)
    steps, batch, inputs = x.shape
    dropout = Dropout.draw(rng, steps, inputs, weights.units, *rates)
    initial = (rng.normal(0, 1.5, (batch, weights.units)), rng.normal(0, 1, (batch, weights.units))) if given else None
    dh = rng.normal(0, 1, (steps, batch, weights.units))
    with open_device("golden", FINE) as device:
        h, tape = forward(device, weights, x, dropout, initial=initial, bits=18)
        found = backward(device, tape, dh)
    np.testing.assert_allclose(h, states(weights.w, weights.u, weights.b, x, dropout, initial), atol=1e-4)
    expected = derivatives(weights, x, dropout, dh, initial)
    for name, got in (("w", found.weights.w), ("u", found.weights.u), ("b", found.weights.b), ("x", found.x)):
        np.testing.assert_allclose(got, expected[name], atol=2e-4 * np.abs(expected[name]).max(), err_msg=name)
    if dropout.x is not None:
        assert not found.x.swapaxes(0, 1)[:, ~dropout.x].any()
        assert not found.weights.w[~dropout.x.any(axis=0)].any()


def test_int8_gradients_point_the_same_way_on_every_target():
    rng = np.random.default_rng(6)
    weights, x = layer(rng, steps=3, batch=4, inputs=8, units=8)
    dropout = Dropout.draw(rng, 3, 8, 8, 0.5, 0.5)
    dh = rng.normal(0, 1, (3, 4, 8))
    results = {}
    for target in ("golden", "cycle", "rtl"):
        with open_device(target, SMALL) as device:
            products = LstmProducts(device)
            h, tape = forward(products, weights, x, dropout)
            found = backward(products, tape, dh)
            results[target] = (h, found.weights.w, found.weights.u, found.weights.b, found.x)
        assert {report["pass"] for report in products.reports} == {"forward", "input_grad", "weight_grad"}
        assert all(("cycles" in report) == (target != "golden") for report in products.reports)
    for target in ("cycle", "rtl"):
        for one, other in zip(results["golden"], results[target], strict=True):
            np.testing.assert_array_equal(one, other)
    expected = derivatives(weights, x, dropout, dh, None)
    for name, got in zip("wubx", results["golden"][1:], strict=True):
        want = expected[name]
        assert (got * want).sum() > 0.995 * np.linalg.norm(got) * np.linalg.norm(want), name


def test_quantise_takes_the_least_power_of_two():
    for top, exponent in ((127.0, 0), (127.5, 1), (63.5, -1), (1.0, -6), (0.0, 0)):
        q = quantise([top, -top / 3], 8)
        assert q.exponent == exponent
        assert np.abs(q.values).max() <= 127
        np.testing.assert_allclose(q.values * q.scale, [top, -top / 3], atol=q.scale / 2)


# ---------------------------------------------------------------------- edges and bad input


def test_steps_that_keep_nothing():
    case = Case(7, 12)
    case.mx[:], case.mh[:] = False, False
    with open_device("golden", SMALL) as device:
        results, reports = case.run(device)
    case.check(results)
    assert not any(value.any() for value in results.values())
    assert not reports


def bad(match, call, kind=MaskworkValueError):
    with pytest.raises(kind, match=match) as caught:
        call()
    assert isinstance(caught.value, MaskworkError)
    assert "\n" not in str(caught.value)


def test_bad_input_of_products():
    with open_device("golden", SMALL) as device:
        p = LstmProducts(device)
        x, w, dz = np.ones((3, 2, 5), int), np.ones((5, 16), int), np.ones((3, 2, 16), int)
        bad(r"x must have axes \(step, sequence, unit\)", lambda: p.project(x[0], w))
        bad("w must have 5 rows, the units of x, not shape", lambda: p.project(x, w[:4]))
        bad(r"keep must have shape \(3, 5\)", lambda: p.project(x, w, np.ones((2, 5), bool)))
        bad("keep must be an array of bool", lambda: p.project(x, w, np.ones((3, 5))), MaskworkTypeError)
        bad(r"h must have axes \(sequence, unit\)", lambda: p.recur(x, w))
        bad("u must have 5 rows, the units of h", lambda: p.recur(x[0], w[:3]))
        bad(r"keep must have shape \(5,\)", lambda: p.recur(x[0], w, np.ones(4, bool)))
        bad("u must have 16 columns, the gates of dz", lambda: p.recur_grad(dz[0], w[:, :8]))
        bad("w must have 16 columns, the gates of dz", lambda: p.project_grad(dz, w[:, :8]))
        bad(r"dz must have shape \(3, 2, 16\)", lambda: p.weight_grad(x, dz[:2]))
        bad("operand 'h'", lambda: p.recur(x[0] * 1000, w))
        bad("u must be an array of integers", lambda: p.recur(x[0], w * 1.0), MaskworkTypeError)
        assert not p.reports


def test_bad_input_of_layers():
    rng = np.random.default_rng(8)
    weights, x = layer(rng)
    with open_device("golden", SMALL) as device:
        h, tape = forward(device, weights, x)
        bad(r"dh must have shape \(4, 3, 6\) \(the states of the forward pass\), not \(3, 3, 6\)",
            lambda: backward(device, tape, h[1:]))  # fmt: skip
        bad("tape must be what forward", lambda: backward(device, h, h), MaskworkTypeError)
        bad("dh must be finite", lambda: backward(device, tape, h * np.nan))
        bad(r"w must have shape \(4, 24\)", lambda: forward(device, weights, x[:, :, :4]))
        bad(r"x must have axes", lambda: forward(device, weights, x[0]))
        bad("bits must be an integer from 2 to 9", lambda: forward(device, weights, x, bits=16))
        for name, mask in (("x", np.ones((4, 6), bool)), ("h", np.ones((3, 6), bool))):
            drop = Dropout(**{name: mask})
            bad(rf"dropout.{name} must have shape \(4, ", lambda drop=drop: forward(device, weights, x, drop))
        bad("initial state must have shape", lambda: forward(device, weights, x, initial=(h[0][:2], h[0])))
        bad("h_rate must be a probability", lambda: Dropout(h_rate=1.0))


# ---------------------------------------------------------------------- the measurement


def test_counts_without_results_are_those_of_the_cycle_model():
    rng = np.random.default_rng(9)
    x, dz, w = (np.ones(shape, np.int8) for shape in ((5, 6, 20), (5, 6, 80), (20, 80)))
    masks = [rng.random((5, 20)) < 0.5 for _ in range(2)]
    reports = []
    with open_device("cycle", SMALL) as device:
        for by_step in (True, False):
            for products in (LstmProducts(device, by_step), CountedProducts(SMALL, by_step)):
                for keep in (None, *masks):
                    products.project(x, w, keep)
                    products.project_grad(dz, w, keep)
                    products.weight_grad(x, dz, keep)
                reports.append([{k: v for k, v in report.items() if k != "target"} for report in products.reports])
    assert reports[0] == reports[1]
    assert reports[2] == reports[3]


def test_measurement_adds_up():
    found = measure(SMALL, 40, 0.5, 4, 6, 2, 1, lambda _: None)
    none, inputs, both = found["variants"]
    assert [v["ideal"] for v in found["variants"]] == pytest.approx([1, 4 / 3, 2])
    dense = 2 * 4 * 40 * 160 * (6 + 6 + 5 + 6 + 6 + 6)  # the first step's state gets no gradient
    kept = found["kept"]
    for variant, share in ((none, 1), (inputs, (1 + kept["x"]) / 2), (both, (kept["x"] + kept["h"]) / 2)):
        assert variant["macs_dense"] == dense
        assert variant["bound"] == pytest.approx(1 / share, rel=0.03)
        assert variant["speedup_vs_dense"] <= variant["bound"]
        assert variant["speedup_vs_none"] == pytest.approx(none["cycles"] / variant["cycles"])
        assert sum(variant["pe_cycles"].values()) == variant["cycles"] * SMALL.pes
        for kind in ("passes", "products"):
            for key in ("cycles", "macs_dense", "macs_effectual", "words_in"):
                assert sum(part[key] for part in variant[kind].values()) == variant[key]
    assert none["cycles"] > inputs["cycles"] > both["cycles"]
    for name in ("recur", "recur_grad"):  # others may load weights at each step, or more bitmaps than so few values pay
        assert none["products"][name]["words_in"] > both["products"][name]["words_in"]


def test_measurement_command(tmp_path, capsys):
    path = tmp_path / "lstm.json"
    small = ["--preset", "tiny", "--units", "8:0.5", "--steps", "2", "--batch", "2", "--write", str(path)]
    assert run_command(command, small) == 0
    assert "8 units, p = 0.5" in capsys.readouterr().out
    assert json.loads(path.read_text())["cases"][0]["units"] == 8
    assert run_command(command, [*small, "--units", "8:1.5"]) == 2
    assert "UNITS:RATE is expected" in capsys.readouterr().err
