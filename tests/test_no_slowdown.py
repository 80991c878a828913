"""What skipping costs where there is nothing to skip: dense operands on the array with masks and on the one without."""

import pytest
from maskwork.gen.config import preset
from maskwork.gen.program import bind
from maskwork.gen.works import ConvWork, operands
from maskwork.gen.works_wgrad import WeightGradWork
from maskwork.sim_tb.cycle import simulate

MOST = 1.03
"""Cycles of the array that skips, by those of the array that does not."""

PAD = ((1, 1), (1, 1))
WORKS = {
    "convolution": ConvWork((1, 14, 14, 128), (3, 3, 128, 128), pads=PAD),
    "small images": ConvWork((1, 7, 7, 256), (3, 3, 256, 256), pads=PAD),
    "1 x 1": ConvWork((1, 14, 14, 256), (1, 1, 256, 64)),
    "few channels": ConvWork((1, 28, 28, 3), (3, 3, 3, 64), pads=PAD),
    "bound by loads": ConvWork((1, 1, 1, 2048), (1, 1, 2048, 512)),
    "requantised": ConvWork((1, 14, 14, 64), (3, 3, 64, 64), pads=PAD, post=True),
    "weight gradient": WeightGradWork((1, 14, 14, 64), (1, 14, 14, 64), (3, 3), padding=1),
}


@pytest.mark.parametrize("name", ["sim-64", "ulx3s-85f", "small"])
@pytest.mark.parametrize("work", WORKS)
def test_dense_operands(name, work):
    cycles = {}
    for skip in ("abc", ""):
        config = preset(name).replace(skip=skip)
        program = WORKS[work].lower(config)
        bound = bind(program, operands(WORKS[work], program), check_sums=False)
        counters = simulate(config, bound.words, bound.last)
        dense, _ = WORKS[work].macs()
        assert counters["multiply"] >= dense, "a product was left out"
        cycles[skip] = counters["cycles"]
    assert cycles["abc"] <= MOST * cycles[""], cycles
