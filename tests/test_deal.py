"""Columns dealt to PEs by their work: results stay the same, and PEs have equally much to do."""

import numpy as np
import pytest
from maskwork.gen.config import preset
from maskwork.gen.deal import as_work, deal
from maskwork.gen.errors import MaskworkValueError
from maskwork.gen.execute import execute
from maskwork.gen.lower_conv import lower_conv
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


@pytest.mark.parametrize("bad", [[1, 2], [1, -1, 1, 1], [1, np.nan, 1, 1], "abcd"])
def test_bad_work(bad):
    with pytest.raises((MaskworkValueError, ValueError)):
        as_work(bad, 4)


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
