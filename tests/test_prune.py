"""Pruning and quantising weights alone: which of them stay, and bad input."""

import maskwork as mw
import numpy as np
import pytest
from maskwork.gen.network import prune
from maskwork.gen.network.quantise import quantise_weights


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
    assert prune.magnitude(np.array([0, 5, 3], dtype=np.uint8), 0.34).tolist() == [0, 5, 0]
    many = np.random.default_rng(1).integers(-3, 4, 5000)
    kept = sorted(range(5000), key=lambda i: (-abs(many[i]), i))[:1000]
    assert np.array_equal(prune.magnitude(many, 0.2), np.where(np.isin(np.arange(5000), kept), many, 0))


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
