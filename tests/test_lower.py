"""Lowering: products and convolutions of any shape on the golden model, against NumPy."""

import numpy as np
import pytest
from maskwork.gen.config import preset
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.gen.lower import Post, conv_output_shape, lower_conv, lower_matmul
from maskwork.gen.mask import Mask
from maskwork.gen.program import Program

from .programs import golden, parameters, sparse

PRESETS = ("tiny", "small", "dense-small", "ulx3s-85f", "sim-64")
CRAMPED = {"a_segments": 16, "a_depth": 64, "psum_rows": 2, "c_rows": 16}


def cramped(config, **changes):
    return config.replace(**CRAMPED, k_depth=16 * config.weight_lanes, **changes)



def requantised(sums, bias, mult, shift, low, high):
    x = (sums.astype(np.int64) + bias) * mult
    q, half = x >> shift, 1 << (shift - 1)
    rest = x - (q << shift)
    return np.clip(q + ((rest > half) | ((rest == half) & (q & 1 == 1))), low, high)


# ---------------------------------------------------------------------- products


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("use_c", [False, True])
def test_matmul_shapes(name, use_c):
    rng = np.random.default_rng(5)
    for m, k, n in ((31, 32, 31), (1, 1, 1), (1, 300, 200), (70, 300, 130), (3, 65, 17)):
        a, b, wanted = sparse(rng, (m, k)), sparse(rng, (k, n)), rng.random((m, n)) < 0.5
        program = lower_matmul(preset(name), m, k, n, use_c=use_c)
        c = golden(program, {"a": a, "b": b, **({"c_mask": wanted} if use_c else {})})
        assert c.dtype == np.int32
        assert (c == (a.astype(int) @ b.astype(int)) * (wanted if use_c else 1)).all()


@pytest.mark.parametrize("seed", range(60))
def test_matmul_random(seed):
    rng = np.random.default_rng(seed)
    config = preset(PRESETS[seed % 5])
    if seed % 3 == 0:
        config = cramped(config, acc_width=40, post=False)
    m, k, n = int(rng.integers(1, 100 if seed % 2 else 5)), int(rng.integers(1, 150)), int(rng.integers(1, 200))
    keep = [rng.random(v) < 0.7 if rng.random() < 0.3 else np.ones(v, dtype=bool) for v in (m, k, n)]
    keep[1][0] = True
    use_c = bool(rng.random() < 0.3)
    post = Post(-60, 100) if config.post and rng.random() < 0.4 else None
    program = lower_matmul(config, m, k, n, use_c=use_c, m_keep=keep[0], k_keep=keep[1], n_keep=keep[2], post=post)
    program = Program.from_json(program.to_json())
    a, b, a_mask, wanted = sparse(rng, (m, k)), sparse(rng, (k, n)), rng.random((m, k)) < 0.7, rng.random((m, n)) < 0.6
    operands = {"a": a, "b": b, **(parameters(rng, n) if post else {})}
    expected = (a * a_mask * keep[1]).astype(int) @ b.astype(int)
    if post:
        expected = requantised(expected, operands["bias"], operands["mult"], operands["shift"], -60, 100)
    expected = expected * keep[0][:, None] * keep[2] * (wanted if use_c else 1)
    masks = {"a": Mask.element(a_mask), **({"c_mask": wanted} if use_c else {})}
    assert (golden(program, operands, masks, dense=bool(seed % 4 == 1)) == expected).all()


@pytest.mark.parametrize("name", ["small", "ulx3s-85f", "sim-64"])
@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize("mode", ["share", "cluster"])
def test_matmul_share(name, tight, mode):
    rng = np.random.default_rng(8)
    config = cramped(preset(name)) if tight else preset(name)
    for m, k, n in ((1, 20, 16), (3, 100, 37), (5, 70, 1500 if name == "small" else 1100), (39, 50, 90)):
        program = lower_matmul(config, m, k, n, mode=mode, post=Post(-50, 50))
        assert all(c["share"] for c in program.commands if c["op"] == "RUN")
        a, b, p = sparse(rng, (m, k)), sparse(rng, (k, n)), parameters(rng, n)
        expected = requantised(a.astype(int) @ b.astype(int), p["bias"], p["mult"], p["shift"], -50, 50)
        assert (golden(program, {"a": a, "b": b, **p}) == expected).all()


def test_removed_rows_are_not_loaded():
    full, half = (
        lower_matmul(preset("small"), 64, 64, 64, m_keep=np.arange(64) % f == 0, k_keep=np.arange(64) % f == 0)
        for f in (1, 2)
    )
    load = [c for c in half.commands if c["op"] == "LOAD_A"]
    assert {c["length"] for c in load} == {32} and sum(c["segments"] for c in load) == 32
    assert sum(c["segments"] for c in full.commands if c["op"] == "LOAD_A") == 64
    assert (golden(lower_matmul(preset("tiny"), 2, 2, 2, m_keep=[]),
                   {"a": np.ones((2, 2), int), "b": np.ones((2, 2), int)}) == 0).all()  # fmt: skip


# ---------------------------------------------------------------------- convolutions


def convolution(a, w, stride, padding, dilation):
    a = np.pad(a.astype(int), ((0, 0), *padding, (0, 0)))
    n, oh, ow, cout = conv_output_shape(a.shape, w.shape, stride, 0, dilation)
    out = np.zeros((n, oh, ow, cout), dtype=int)
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            y, x = i * dilation[0], j * dilation[1]
            part = a[:, y : y + (oh - 1) * stride[0] + 1 : stride[0], x : x + (ow - 1) * stride[1] + 1 : stride[1]]
            out += part @ w[i, j].astype(int)
    return out


@pytest.mark.parametrize("seed", range(80))
def test_conv_random(seed):
    rng = np.random.default_rng(1000 + seed)
    config = preset(PRESETS[seed % 5])
    if seed % 3 == 0:
        config = cramped(config)

    def pair(low, high):
        return tuple(int(v) for v in rng.integers(low, high, 2))

    shape = (int(rng.integers(1, 4)), *pair(1, 13), int(rng.integers(1, 41)))
    weights = (*pair(1, 5), shape[3], int(rng.integers(1, 41)))
    stride, padding = pair(1, 4), (pair(0, 4), pair(0, 4))
    dilation = tuple(1 if (weights[i] - 1) * 3 >= shape[1 + i] else int(rng.integers(1, 4)) for i in (0, 1))
    if any(dilation[i] * (weights[i] - 1) >= shape[1 + i] + sum(padding[i]) for i in (0, 1)):
        pytest.skip("kernel larger than the input")
    keep, kept = rng.random(shape[3]) < 0.8, rng.random(weights[3]) < 0.8
    keep[0] = kept[0] = True
    use_c, post = bool(rng.random() < 0.5), {"low": -60, "high": 100} if rng.random() < 0.4 else None
    program = lower_conv(config, shape, weights, stride, padding, dilation, use_c=use_c, post=post, k_keep=keep,
                         n_keep=kept)  # fmt: skip
    a, w = sparse(rng, shape), sparse(rng, weights)
    operands = {"a": a, "b": w, **(parameters(rng, weights[3]) if post else {})}
    expected = convolution(a * keep, w, stride, padding, dilation)
    if post:
        expected = requantised(expected, operands["bias"], operands["mult"], operands["shift"], -60, 100)
    expected = expected * kept
    if use_c:
        operands["c_mask"] = rng.random(expected.shape) < 0.5
        expected = expected * operands["c_mask"]
    assert (golden(program, operands) == expected).all()


def test_padding_is_not_loaded():
    program = lower_conv(preset("small"), (1, 8, 8, 16), (3, 3, 16, 8), 1, 1)
    for command in program.commands:
        if command["op"] == "LOAD_A":
            assert command["segments"] <= 64
    strided = lower_conv(preset("small"), (1, 8, 8, 16), (1, 1, 16, 8), 2)
    assert sum(c["segments"] for c in strided.commands if c["op"] == "LOAD_A") == 16


# ---------------------------------------------------------------------- errors


def test_lowering_errors():
    config = preset("small")
    for make, message in (
        (lambda: lower_matmul(config, 0, 1, 1), "m must be a positive integer, not 0"),
        (lambda: lower_matmul(config, 2, 2, 2, k_keep=[True]), r"k_keep must have shape \(2,\)"),
        (lambda: lower_matmul(config, 2, 2, 2, n_keep=[1, 0]), "n_keep must be rising indices from 0 to 1"),
        (lambda: lower_matmul(config, 2, 2, 2, post=Post(5, 4)), "low <= high must lie in"),
        (lambda: lower_matmul(config, 2, 2, 2, mode="x"), 'mode must be "auto"'),
        (lambda: lower_matmul(config, 2, 2, 2, mode="share"), 'mode "share" needs'),
        (lambda: lower_matmul(config, 2, 2, 9, mode="cluster", use_c=True), "more than one lane a cluster and"),
        (lambda: lower_matmul(preset("small").replace(post=False), 2, 2, 2, post=Post(0, 1)), "post = true"),
        (lambda: lower_conv(config, (1, 4, 4, 3), (3, 3, 2, 1)), r"input's 3 channels \(cin\), not 2"),
        (lambda: lower_conv(config, (1, 2, 4, 3), (3, 3, 3, 1)), "kernel's height 3 .* must fit"),
        (lambda: lower_conv(config, (1, 4, 4, 3), (3, 3, 3, 1), 0), "stride must be an integer of at least 1"),
        (lambda: lower_conv(config, (4, 4, 3), (3, 3, 3, 1)), "four positive sizes"),
    ):
        with pytest.raises(MaskworkValueError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)
    with pytest.raises(MaskworkTypeError, match="post must have low and high"):
        lower_matmul(config, 2, 2, 2, post={"lo": 1})
