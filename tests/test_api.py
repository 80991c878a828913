"""``import maskwork as mw``: products with masks of every kind, devices, netlists."""

from importlib import metadata

import maskwork as mw
import numpy as np
import pytest
from maskwork.gen.isa import COMMANDS, Op, Reply
from maskwork.sim_tb import tools
from maskwork.sim_tb.golden import masked_matmul

M, K, N = 11, 18, 9


@pytest.fixture
def operands():
    rng = np.random.default_rng(3)
    a = rng.integers(-256, 256, (M, K)) * (rng.random((M, K)) < 0.6)
    b = rng.integers(-256, 256, (K, N)) * (rng.random((K, N)) < 0.6)
    return a, b, rng


def masks_of(rng):
    m, k, n = (rng.random(size) < 0.5 for size in (M, K, N))
    vector, element = mw.Mask.vector, mw.Mask.element
    bits = rng.random((M, N)) < 0.5
    return {
        "none": {},
        "array": {"c_mask": bits},
        "absent": {"a_mask": mw.Mask.absent(), "c_mask": mw.Mask.absent()},
        "vectors": {"a_mask": vector("m", m) & vector("k", k), "b_mask": vector("n", n)},
        "c vectors": {"c_mask": vector("m", m) & vector("n", n)},
        "c both": {"c_mask": vector("m", m) & element(bits)},
        "c blocks": {"c_mask": mw.Mask.blocks((M, N), [(0, 0, 5, 9), (6, 3, 4, 4)])},
        "no k": {"b_mask": vector("k", np.zeros(K, dtype=bool))},
        "no row": {"c_mask": vector("m", np.zeros(M, dtype=bool))},
    }


def check_masks(operands, names, dense, **options):
    a, b, rng = operands
    shapes = {"a_mask": ((M, K), "mk"), "b_mask": ((K, N), "kn"), "c_mask": ((M, N), "mn")}
    for name, given in masks_of(rng).items():
        if name not in names:
            continue
        result = mw.matmul(a, b, **given, config="tiny", dense=dense, **options)
        arrays = {key: mask.to_array(*shapes[key]) if isinstance(mask, mw.Mask) else mask
                  for key, mask in given.items()}  # fmt: skip
        assert np.array_equal(result.c, masked_matmul(a, b, **arrays)), name
        assert result.c.dtype == np.int32 and result.report["target"] == options["target"]
        assert ("bound" in result.report) == (result.report["macs_effectual"] > 0)


@pytest.mark.parametrize("dense", [False, True])
def test_masks_of_every_kind(operands, dense):
    check_masks(operands, masks_of(np.random.default_rng(0)), dense, target="golden")


@pytest.mark.icarus
@pytest.mark.skipif(not tools.have_icarus(), reason="Icarus Verilog is not on PATH")
def test_masks_on_the_rtl(operands):
    check_masks(operands, ("vectors", "c both", "no k"), False, target="rtl", simulator="icarus")


def test_vector_masks_skip_the_load(operands):
    a, b, _ = operands
    keep = np.arange(K) % 3 == 0
    whole, vector, element = (
        mw.matmul(a, b, a_mask=mask, dense=True).report["words_in"]
        for mask in (None, mw.Mask.vector("k", keep), np.broadcast_to(keep, (M, K)))
    )
    assert vector < whole and vector < element


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"a": np.ones((2, 3))}, TypeError, r"a: must be an array of integers .*, not float64"),
        ({"a": [[1, 2], [3, 4]]}, ValueError, r"b: must have 2 rows, the columns of a, not shape \(3, 4\)"),
        ({"a": [[400, 0, 0]]}, ValueError, r"a: must lie in -256\.\.255"),
        ({"a": [1, 2, 3]}, ValueError, r"a: must be a matrix"),
        ({"a_mask": np.ones((2, 2), dtype=bool)}, ValueError, r"a_mask: mask must have shape \(2, 3\), not \(2, 2\)"),
        ({"b_mask": np.ones((3, 4))}, TypeError, r"b_mask: mask must be an array of bool"),
        ({"c_mask": mw.Mask.vector("k", [1, 0, 1])}, ValueError, r"c_mask: vector mask over k does not fit"),
        ({"c_mask": mw.Mask.vector("m", [1, 0, 1])}, ValueError, r"c_mask: vector mask over m has length 3; 2"),
        ({"config": "big"}, ValueError, r"unknown preset 'big'"),
        ({"config": 5}, TypeError, r"config must be a Config or a preset's name, not int"),
        ({"target": "port:COM1"}, ValueError, r"unknown target 'port:COM1'; targets: golden, cycle, rtl, serial:PORT"),
        ({"target": "cycle", "trace": "w.vcd"}, ValueError, r"trace needs target 'rtl', not 'cycle'"),
        ({"target": "cycle", "simulator": "icarus"}, ValueError, r"simulator needs target 'rtl', not 'cycle'"),
        ({"target": "rtl", "simulator": "vcs"}, ValueError, r"unknown simulator 'vcs'"),
    ],
)
def test_errors(change, error, message):
    arguments = {"a": np.ones((2, 3), dtype=int), "b": np.ones((3, 4), dtype=int)} | change
    with pytest.raises(error, match=message) as caught:
        mw.matmul(arguments.pop("a"), arguments.pop("b"), **arguments)
    assert isinstance(caught.value, mw.MaskworkError)


def test_overflow_is_refused():
    config = mw.Config(acc_width=20, post=False)
    a, b = np.full((1, 40), 255), np.full((40, 1), 255)
    with pytest.raises(mw.MaskworkValueError, match="at most 524287 fits acc_width = 20"):
        mw.matmul(a, b, config=config)
    assert mw.matmul(a, b, a_mask=mw.Mask.vector("k", np.arange(40) < 8), config=config).c == 8 * 255 * 255


def test_devices():
    with mw.open("golden", "tiny") as device:
        words = np.array(COMMANDS[Op.ECHO].encode({"token": 77}), dtype=np.uint32)
        replies, last = device.execute(words, [False, True])
        assert list(replies) == [Reply.ECHOED, 77] and list(last) == [False, True]
    with pytest.raises(mw.MaskworkValueError, match="targets: golden, cycle, rtl"), mw.open("port:COM1"):
        pass


def test_netlists(tmp_path):
    result = mw.generate("tiny", tmp_path)
    assert [path.name for path in result.paths] == ["tiny.sv", "tiny.json"]
    assert mw.generate(mw.preset("tiny"), verilog=True).text.startswith("// maskwork tiny")
    assert "small" in mw.presets() and mw.__version__ == metadata.version("maskwork")
