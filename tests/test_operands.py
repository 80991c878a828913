"""Operands: masks, their packed rows, and what binding refuses."""

import time

import numpy as np
import pytest
from maskwork.gen import pack
from maskwork.gen.config import preset
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.gen.lower import lower_matmul
from maskwork.gen.mask import Mask
from maskwork.gen.overflow import check_overflow
from maskwork.gen.program import bind

from .programs import sparse

# ---------------------------------------------------------------------- masks


def test_mask_kinds_combine():
    bits = np.array([[1, 1, 0], [0, 1, 1]], dtype=bool)
    mask = Mask.element(bits) & Mask.vector("m", [True, False]) & Mask.blocks((2, 3), [(0, 0, 2, 1), (0, 2, 1, 1)])
    assert mask.kinds == ("element", "vector m", "blocks")
    assert mask.to_array((2, 3)).tolist() == [[True, False, False], [False, False, False]]
    assert mask.density((2, 3)) == pytest.approx(1 / 6)
    assert Mask.absent().to_array((2, 2)).all() and Mask.absent().is_absent
    assert (mask.axis_keep("m", 2) == [True, False]).all() and mask.axis_keep("k", 5).all()
    assert not Mask.blocks((2, 2), []).to_array((2, 2)).any()
    assert Mask.element(np.ones((2, 2, 3))[..., 0].astype(int)).to_array((2, 2)).all()


def test_mask_vector_over_k_lies_on_either_side():
    mask = Mask.vector("k", [1, 0])
    assert mask.to_array((3, 2)).tolist() == [[True, False]] * 3
    assert mask.to_array((2, 3)).tolist() == [[True] * 3, [False] * 3]
    assert mask.to_array((2, 2), "kn").tolist() == [[True, True], [False, False]]
    with pytest.raises(MaskworkValueError, match='give axes "mk" or "kn"'):
        mask.to_array((2, 2))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Mask.element(np.ones((2, 2))), MaskworkTypeError, "array of bool"),
        (lambda: Mask.element([[2, 0]]), MaskworkValueError, "only 0 and 1, not 0 to 2"),
        (lambda: Mask.vector("z", [True]), MaskworkValueError, 'must be "m", "k" or "n", not \'z\''),
        (lambda: Mask.vector("m", [[True]]), MaskworkValueError, "one axis"),
        (lambda: Mask.blocks((2, 2), [(1, 1, 2, 1)]), MaskworkValueError, r"must lie within .* \(2, 2\)"),
        (lambda: Mask.blocks((2, 2), [(1, 1)]), MaskworkTypeError, "four integers"),
        (lambda: Mask.element([[True]]).to_array((2, 2)), MaskworkValueError, r"shape \(2, 2\) is expected"),
        (lambda: Mask.vector("m", [True]).to_array((2, 2)), MaskworkValueError, "length 1; 2 is expected"),
        (lambda: Mask.blocks((1, 2), []).to_array((2, 2)), MaskworkValueError, r"\(2, 2\) is expected"),
        (lambda: Mask.vector("n", [True]).to_array((1, 1), "mk"), MaskworkValueError, "m or k is expected"),
        (lambda: Mask.vector("n", [True]).axis_keep("n", 2), MaskworkValueError, "2 is expected"),
    ],
)
def test_mask_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ---------------------------------------------------------------------- packing


@pytest.mark.parametrize("width", [4, 7, 9, 16, 18])
@pytest.mark.parametrize("stream_words", [1, 2, 8])
def test_rows_survive_packing(width, stream_words):
    rng = np.random.default_rng(width)
    for rows, length, density in ((1, 1, 1.0), (7, 33, 0.3), (5, 64, 0.0), (20, 100, 0.9)):
        values = rng.integers(-(1 << (width - 1)), 1 << (width - 1), (rows, length))
        mask = rng.random((rows, length)) < density
        words = pack.pack_rows(values, mask, width, stream_words)
        got, got_mask, used = pack.unpack_rows(words, rows, length, width, stream_words)
        assert used == len(words) and used % stream_words == 0 and words.dtype == np.uint32
        assert (got == np.where(mask, values, 0)).all() and (got_mask == mask).all()
        words = pack.pack_rows(values, None, width, stream_words)
        got, _, used = pack.unpack_rows(words, rows, length, width, stream_words, dense=True)
        assert used == len(words) and (got == values).all()
        with pytest.raises(ValueError, match="too few"):
            pack.unpack_rows(words[:-1], rows, length, width, stream_words, dense=True)


def test_wire_format_by_hand():
    values = np.array([[0, -1, 0, 5, 7, 9]])
    words = pack.pack_rows(values, values != 0, 9, 1)
    assert words.tolist() == [0b111010, 0x1FF | 5 << 9 | 7 << 18, 9]
    assert pack.pack_rows(values, values != 0, 9, 2).tolist() == [0b111010, 0, 0x1FF | 5 << 9 | 7 << 18, 9]
    assert pack.pack_rows(values * 0, values > 99, 9, 2).tolist() == [0, 0]
    assert pack.pack_bitmaps(np.ones((2, 33), dtype=bool), 1).tolist() == [[0xFFFFFFFF, 1]] * 2


def test_packing_is_fast():
    values = sparse(np.random.default_rng(0), (512, 576))
    begin = time.perf_counter()
    pack.pack_rows(values, values != 0, 9, 1)
    assert time.perf_counter() - begin < 0.5  # about 0.01 s when nothing else runs


def test_storage_words():
    assert pack.segment_words(16, 4) == 5 and pack.segment_words(17, 4) == 7 and pack.segment_words(35, 2) == 21
    mask = np.zeros((2, 40), dtype=bool)
    mask[0, [0, 1, 2, 3, 4, 33]] = True
    assert pack.bank_words(mask, 4) == 3 + 2
    assert pack.bank_words(np.ones((3, 35), dtype=bool), 2) == 3 * 21


def test_ranges():
    rng = np.random.default_rng(1)
    for index in (np.arange(0), np.array([7]), np.arange(5, 50, 3), np.array([9, 5, 1, 2, 3, 40, 41, 50]),
                  np.flatnonzero(rng.random(200) < 0.5), rng.permutation(30)):  # fmt: skip
        ranges = pack.to_ranges(index)
        assert (pack.expand_ranges(ranges) == index).all() and pack.count_ranges(ranges) == len(index)
    assert pack.to_ranges(np.r_[0:10, 100:110]) == [[0, 10, 1], [100, 10, 1]]


# ---------------------------------------------------------------------- binding


def test_overflow_and_range_are_refused():
    a, b = np.full((3, 4), -128), np.array([[127]] * 4)
    check_overflow(18, a, b)
    with pytest.raises(MaskworkValueError, match="could reach 65024 in column 0; at most 32767"):
        check_overflow(16, a, b)
    program = lower_matmul(preset("icebreaker").replace(acc_width=18, a_width=9, b_width=9), 3, 40, 4)
    with pytest.raises(MaskworkValueError, match="raise acc_width"):
        bind(program, {"a": np.full((3, 40), 255), "b": np.full((40, 4), 255)})
    bind(program, {"a": np.full((3, 40), 255), "b": np.full((40, 4), 255)}, {"a": Mask.vector("m", [False] * 3)})


def test_bind_errors():
    program = lower_matmul(preset("tiny"), 2, 3, 4)
    a, b = np.ones((2, 3), dtype=int), np.ones((3, 4), dtype=int)
    for operands, masks, error, message in (
        ({"a": a}, {}, MaskworkValueError, r"operand 'b' is missing; shape \(3, 4\)"),
        ({"a": a, "b": b, "x": b}, {}, MaskworkValueError, "unknown operand 'x'; operands: a, b"),
        ({"a": a.T, "b": b}, {}, MaskworkValueError, r"operand 'a' has shape \(3, 2\); \(2, 3\) is expected"),
        ({"a": a * 1.0, "b": b}, {}, MaskworkTypeError, "operand 'a' must be an array of integers, not float64"),
        ({"a": a * 256, "b": b}, {}, MaskworkValueError, r"operand 'a' must lie in -256\.\.255"),
        ({"a": a, "b": b}, {"a": a[0] > 0}, MaskworkValueError, r"mask of operand 'a' has shape \(3,\)"),
        ({"a": a, "b": b}, {"a": a * 1.0}, MaskworkTypeError, "mask of operand 'a' must be an array of bool"),
    ):
        with pytest.raises(error, match=message):
            bind(program, operands, masks)
