"""An accelerator without counters: the same results, a COUNTERS reply of zeros, reports without cycles."""

import numpy as np
import pytest
from maskwork.gen.config import preset
from maskwork.gen.execute import execute, read_counters
from maskwork.gen.generate import generate
from maskwork.gen.isa import COUNTERS
from maskwork.gen.lower import lower_matmul
from maskwork.gen.matmul import matmul
from maskwork.gen.measure import utilization_table
from maskwork.sim_tb.device import GoldenDevice, RtlDevice
from maskwork.sim_tb.golden import masked_matmul
from maskwork.sim_tb.regress import run_products

CONFIG = preset("tiny").replace(counters=False)
ZEROS = dict.fromkeys(COUNTERS, 0)


@pytest.fixture(scope="module", params=[pytest.param(RtlDevice, marks=pytest.mark.slow), GoldenDevice])
def device(request):
    return request.param(CONFIG)


def test_counters_read_as_zeros(device):
    rng = np.random.default_rng(1)
    a, b = rng.integers(-9, 9, (5, 20)), rng.integers(-9, 9, (20, 7))
    assert read_counters(device) == ZEROS
    for _ in range(2):
        done = execute(device, lower_matmul(CONFIG, 5, 20, 7), {"a": a, "b": b})
        assert np.array_equal(done.outputs["c"], masked_matmul(a, b))
        assert done.counters is None and done.words_in and done.words_out
        assert read_counters(device) == ZEROS


@pytest.mark.slow
def test_reports_have_no_cycles():
    a = np.ones((3, 4), np.int8)
    result = matmul(a, a.T, config=CONFIG, target="rtl")
    assert "cycles" not in result.report and "pe_cycles" not in result.report and result.report["words_in"]


def test_what_needs_counters_says_so():
    with pytest.raises(ValueError, match="counters must be true to measure utilisation, not false"):
        utilization_table(CONFIG, ["abc"], (1, 1, 1), 0, print)
    with pytest.raises(ValueError, match="counters must be true for products that are checked with them, not false"):
        run_products(CONFIG, 1, 0)


def test_the_manifest_lists_none():
    assert generate(CONFIG).manifest["counters"] == []
