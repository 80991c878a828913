"""The golden model's arithmetic against independent formulations."""

from fractions import Fraction

import numpy as np
import pytest
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.sim_tb.golden import conv2d, conv2d_macs, macs, masked_matmul, requantise

# ---------------------------------------------------------------------- product


def sparse(rng, shape, density=0.5, bits=9):
    high = 1 << (bits - 1)
    return rng.integers(-high, high, shape) * (rng.random(shape) < density)


def test_masked_matmul_by_hand():
    a = np.array([[1, 0, 2], [0, 3, -1]], np.int8)
    b = np.array([[4, 5], [6, 0], [7, -8]], np.int8)
    assert masked_matmul(a, b).tolist() == [[18, -11], [11, 8]]
    a_mask = [[True, True, False], [True, True, True]]
    assert masked_matmul(a, b, a_mask=a_mask).tolist() == [[4, 5], [11, 8]]
    c_mask = [[1, 0], [0, 1]]
    assert masked_matmul(a, b, c_mask=c_mask, dense=True).tolist() == [[18, 0], [0, 8]]
    # row 0: k=0 meets two b, k=2 two; row 1: k=1 meets one, k=2 two
    assert macs(a, b) == {"macs_dense": 12, "macs_effectual": 7}
    assert macs(a, b, c_mask=c_mask) == {"macs_dense": 12, "macs_effectual": 2 + 1}
    assert macs(a, b, dense=True)["macs_effectual"] == 12
    assert macs(a, b, a_mask=a_mask, dense=True)["macs_effectual"] == 10


@pytest.mark.parametrize("seed", range(12))
def test_masked_matmul_random(seed):
    rng = np.random.default_rng(seed)
    m, k, n = rng.integers(1, 9, 3)
    a, b = sparse(rng, (m, k)), sparse(rng, (k, n))
    ma, mb, mc = (rng.random(s) < 0.6 for s in ((m, k), (k, n), (m, n)))
    expected = np.einsum("mk,mk,kn,kn,mn->mn", a, ma, b, mb, mc)
    assert np.array_equal(masked_matmul(a, b, ma, mb, mc), expected)
    for dense in (False, True):
        ea, eb = ma & ((a != 0) | dense), mb & ((b != 0) | dense)
        count = sum(ea[i, t] and eb[t, j] and mc[i, j] for i in range(m) for t in range(k) for j in range(n))
        assert macs(a, b, ma, mb, mc, dense) == {"macs_dense": m * k * n, "macs_effectual": count}
        assert np.array_equal(masked_matmul(a, b, ma, mb, mc, dense), expected)


def test_masked_matmul_is_exact_beyond_float():
    a = np.array([[(1 << 40) + 1, 1]])
    b = np.array([[(1 << 20) + 1], [1]])
    assert int(masked_matmul(a, b)[0, 0]) == ((1 << 40) + 1) * ((1 << 20) + 1) + 1
    with pytest.raises(MaskworkValueError, match="below 2\\*\\*63"):
        masked_matmul(a, b << 4)
    assert masked_matmul(np.zeros((2, 0), int), np.zeros((0, 3), int)).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_product_errors():
    a, b = np.ones((2, 3), int), np.ones((3, 4), int)
    with pytest.raises(MaskworkTypeError, match="a must be an integer array, not float64"):
        masked_matmul(a * 1.0, b)
    with pytest.raises(MaskworkValueError, match="b must have 3 rows"):
        masked_matmul(a, a)
    with pytest.raises(MaskworkValueError, match=r"c_mask must have shape \(2, 4\), not \(4, 2\)"):
        masked_matmul(a, b, c_mask=np.ones((4, 2), bool))
    with pytest.raises(MaskworkTypeError, match="a_mask must be a boolean"):
        macs(a, b, a_mask=a * 2)
    with pytest.raises(MaskworkValueError, match="2 dimensions"):
        masked_matmul(a[0], b)
    with pytest.raises(MaskworkValueError, match="stride must be an integer of at least 1"):
        conv2d(np.ones((1, 3, 3, 1), int), np.ones((1, 1, 1, 1), int), stride=0)
    with pytest.raises(MaskworkValueError, match="fit the padded x"):
        conv2d(np.ones((1, 3, 3, 1), int), np.ones((4, 1, 1, 1), int))
    with pytest.raises(MaskworkValueError, match=r"w must have shape \(KH, KW, 1, Cout\)"):
        conv2d(np.ones((1, 3, 3, 1), int), np.ones((1, 1, 2, 1), int))


def naive_conv(x, w, stride, padding, dilation, shape, ex, ew, mc):
    result, dense, effectual = np.zeros(shape, np.int64), 0, 0
    for n, oh, ow, o in np.ndindex(*shape):
        for i, j, c in np.ndindex(*w.shape[:3]):
            h = oh * stride[0] + i * dilation[0] - padding[0]
            v = ow * stride[1] + j * dilation[1] - padding[1]
            if 0 <= h < x.shape[1] and 0 <= v < x.shape[2]:
                dense += 1
                if mc[n, oh, ow, o] and ex[n, h, v, c] and ew[i, j, c, o]:
                    effectual += 1
                    result[n, oh, ow, o] += int(x[n, h, v, c]) * int(w[i, j, c, o])
    return result, {"macs_dense": dense, "macs_effectual": effectual}


@pytest.mark.parametrize(
    ("stride", "padding", "dilation"),
    [(1, 0, 1), (1, 1, 1), (2, 1, 1), ((2, 1), (0, 2), (1, 2)), (1, (3, 4), 2), (3, 2, (2, 1))],
)
def test_conv2d(stride, padding, dilation):
    rng = np.random.default_rng(5)
    x, w = sparse(rng, (2, 5, 6, 3)), sparse(rng, (3, 2, 3, 4))
    shape = conv2d(x, w, stride, padding, dilation).shape
    masks = rng.random(x.shape) < 0.7, rng.random(w.shape) < 0.7, rng.random(shape) < 0.7
    pairs = [(v, v) if isinstance(v, int) else v for v in (stride, padding, dilation)]
    ex, ew = masks[0] & (x != 0), masks[1] & (w != 0)
    result, count = naive_conv(x, w, *pairs, shape, ex, ew, masks[2])
    assert np.array_equal(conv2d(x, w, stride, padding, dilation, *masks), result)
    assert conv2d_macs(x, w, stride, padding, dilation, *masks) == count
    _, count = naive_conv(x, w, *pairs, shape, masks[0], masks[1], masks[2])
    assert conv2d_macs(x, w, stride, padding, dilation, *masks, dense=True) == count


def test_conv2d_of_one_tap_is_a_product():
    rng = np.random.default_rng(6)
    x, w = sparse(rng, (1, 4, 5, 7)), sparse(rng, (1, 1, 7, 3))
    assert np.array_equal(conv2d(x, w).reshape(20, 3), masked_matmul(x.reshape(20, 7), w[0, 0]))
    assert conv2d_macs(x, w) == macs(x.reshape(20, 7), w[0, 0])
    assert conv2d(x, w).shape == (1, 4, 5, 3)


# ---------------------------------------------------------------------- requantisation


def test_requantise_by_hand():
    # halves go to the even neighbour, on both sides of zero
    acc = np.array([-5, -3, -1, 1, 3, 5, 7])
    assert requantise(acc, 0, 1, 1, -128, 127).tolist() == [-2, -2, 0, 0, 2, 2, 4]
    assert requantise(acc, 1, 3, 0, -4, 20).tolist() == [-4, -4, 0, 6, 12, 18, 20]
    assert requantise(np.array([[7, 7]]), 100, 1, 0, 0, 255, np.array([[True, False]])).tolist() == [[107, 0]]


def test_requantise_random():
    rng = np.random.default_rng(0)
    for _ in range(20):
        acc = rng.integers(-(1 << 31), 1 << 31, (6, 5)) >> rng.integers(0, 31, (6, 5))
        bias = rng.integers(-(1 << 31), 1 << 31, 5) >> rng.integers(0, 31, 5)
        mult, shift = rng.integers(0, 1 << 24, 5) >> rng.integers(0, 24, 5), rng.integers(0, 48, 5)
        low, high = sorted(rng.integers(-(1 << 15), 1 << 15, 2).tolist())
        result = requantise(acc, bias, mult, shift, low, high)
        for (r, c), value in np.ndenumerate(acc):
            exact = Fraction((int(value) + int(bias[c])) * int(mult[c]), 1 << int(shift[c]))
            assert result[r, c] == min(max(round(exact), low), high)


def test_requantise_extremes():
    for acc in (-(1 << 31), (1 << 31) - 1):
        for shift in (0, 47):
            exact = round(Fraction(acc * 2 * ((1 << 24) - 1), 1 << shift))
            assert requantise(np.array([acc]), acc, (1 << 24) - 1, shift, -(1 << 60), 1 << 60).tolist() == [exact]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mult": 1 << 24}, "mult must be from 0 to 16777215, not 16777216"),
        ({"mult": -1}, "mult must be from 0 to 16777215, not -1"),
        ({"shift": [1, 48]}, "shift must be from 0 to 47, not 48"),
        ({"bias": 1 << 31}, "bias must be from -2147483648 to 2147483647, not 2147483648"),
        ({"acc": [[1 << 47, 0]]}, "acc must be from -140737488355328 to 140737488355327, not 140737488355328"),
        ({"bias": [1, 2, 3]}, r"bias must be one number or have shape \(2,\), not \(3,\)"),
        ({"low": 5}, r"low must be at most high \(4\), not 5"),
        ({"mask": np.ones(2, bool)}, r"mask must have shape \(1, 2\)"),
    ],
)
def test_requantise_errors(change, message):
    values = {"acc": [[1, 2]], "bias": 0, "mult": 1, "shift": 0, "low": 0, "high": 4, **change}
    with pytest.raises(MaskworkValueError, match=message):
        requantise(**values)
    with pytest.raises(MaskworkTypeError, match="acc must be integers, not float64"):
        requantise([1.5], 0, 1, 0, 0, 4)
