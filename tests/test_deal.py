"""Rows and columns dealt by their work: results stay the same, and clusters, lanes and PEs have equally much to do."""

import numpy as np
import pytest
from maskwork.gen.config import preset
from maskwork.gen.deal import as_work, deal, deal_evenly
from maskwork.gen.errors import MaskworkValueError
from maskwork.gen.execute import execute
from maskwork.gen.lower_conv import lower_conv
from maskwork.gen.lower_wgrad import by_channel, lower_weight_grad
from maskwork.gen.program import bind
from maskwork.sim_tb.cycle import simulate
from maskwork.sim_tb.device import open_device
from maskwork.sim_tb.golden import conv2d

SMALL = preset("small")


def test_heavy_columns_go_to_different_pes():
    work = np.arange(64.0)
    order = deal(SMALL, np.arange(64), work)
    assert sorted(order.tolist()) == list(range(64))
    loads = [work[order[pe::4]].sum() for pe in range(4)]
    assert max(loads) == min(loads), loads


def test_nothing_to_deal_by():
    assert as_work(None, 8) is None
    assert as_work(np.full(8, 0.5), 8) is None
    tile = np.array([3, 1, 2])
    assert deal(SMALL, tile, None) is tile


@pytest.mark.parametrize("bad", [[1, 2], [1, -1, 1, 1], [1, np.nan, 1, 1], [[1], 2, 3, 4], "abcd"])
def test_bad_work(bad):
    with pytest.raises(MaskworkValueError, match=r"^row_work must be 4 numbers of 0 or more, not .*$"):
        as_work(bad, 4, "row_work")


def test_pieces_of_equal_work():
    rng = np.random.default_rng(1)
    work = rng.random(60)
    pieces = np.split(rng.permutation(60)[:59], [15, 30, 45])
    got = deal_evenly(pieces, work)
    assert [len(piece) for piece in got] == [15, 15, 15, 14]
    assert sorted(np.concatenate(got)) == sorted(np.concatenate(pieces))
    loads = [work[piece].sum() for piece in got]
    assert max(loads) - min(loads) < 0.1 < max(work[p].sum() for p in pieces) - min(work[p].sum() for p in pieces)
    assert all((np.diff(work[piece]) <= 0).all() for piece in got)
    (alone,) = deal_evenly([np.array([3, 1, 2])], np.array([0, 1, 2, 3.0]))
    assert alone.tolist() == [3, 2, 1]
    assert all(a is b for a, b in zip(deal_evenly(pieces, None), pieces, strict=True))


@pytest.mark.parametrize("columns", [7, 64, 90])
def test_results_stay_in_place(columns):
    rng = np.random.default_rng(columns)
    work = rng.random(columns)
    a = rng.integers(-9, 10, (1, 6, 7, 5)) * (rng.random((1, 6, 7, 5)) < 0.5)
    b = rng.integers(-9, 10, (3, 3, 5, columns)) * (rng.random((3, 3, 5, columns)) < work)
    c = rng.random((1, 6, 7, columns)) < 0.6
    program = lower_conv(SMALL, a.shape, b.shape, 1, 1, 1, use_c=True, column_work=work)
    with open_device("golden", SMALL) as device:
        got = execute(device, program, {"a": a, "b": b, "c_mask": c}).outputs["c"]
    assert np.array_equal(got, np.where(c, conv2d(a, b, padding=1), 0))


def test_dealing_saves_cycles_where_columns_differ():
    rng = np.random.default_rng(0)
    work = np.where(np.arange(64) % 4 == 0, 0.9, 0.1)  # as they come, one PE would have nearly all of it
    shape, weights = (1, 12, 12, 64), (3, 3, 64, 64)
    values = {"a": rng.random(shape) < 0.5, "b": np.ones(weights), "c_mask": rng.random((1, 12, 12, 64)) < work}
    cycles = []
    for given in (None, work):
        program = lower_conv(SMALL, shape, weights, 1, 1, 1, use_c=True, column_work=given)
        bound = bind(program, {name: value.astype(np.int64) for name, value in values.items()}, check_sums=False)
        cycles.append(simulate(SMALL, bound.words, bound.last)["cycles"])
    assert cycles[1] < 0.6 * cycles[0], cycles


@pytest.mark.parametrize("mode", ["rows", "cluster"])
def test_dealing_saves_cycles_of_weight_gradients(mode):
    rng = np.random.default_rng(1)
    config, shape, grad = preset("sim-64"), (1, 28, 28, 32), (1, 28, 28, 128)
    number = np.arange(128)
    rows = np.where(number[:32] % 16 < 4, 0.9, 0.1)  # as they come, nearly all of a block's for one cluster
    columns = np.where(number % 4 == 0 if mode == "rows" else number < 32, 0.9, 0.1)  # for one PE, or one lane
    values = {"a": by_channel(rng.random(shape) < rows), "b": rng.random(grad) < columns}
    cycles = []
    for work in ({}, {"row_work": rows}, {"row_work": rows, "column_work": columns}):
        program = lower_weight_grad(config, shape, grad, 3, 1, 1, density=(0.3, 0.3), mode=mode, **work)
        bound = bind(program, {name: value.astype(np.int64) for name, value in values.items()}, check_sums=False)
        cycles.append(simulate(config, bound.words, bound.last)["cycles"])
    assert cycles[1] < 0.9 * cycles[0] and cycles[2] < 0.7 * cycles[1], cycles
