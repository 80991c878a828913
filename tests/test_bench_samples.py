"""Samples against the whole, on the cycle model: the whole's cycles lie within the interval that is stated."""

import maskwork as mw
import pytest
from maskwork.gen.workload import Layer

# of VGG16 (shared/workloads); parts of it are most unlike the whole
CONV12 = Layer(
    network="vgg16", layer="conv12", batch=1, in_channels=512, out_channels=512, in_height=14, in_width=14,
    kernel_height=3, kernel_width=3, padding=1,
    density_input=0.195, density_output_grad=0.04, density_input_mask=0.195,
)  # fmt: skip


@pytest.mark.slow  # whole layers
@pytest.mark.parametrize("which", ["input_grad", "weight_grad"])
def test_the_whole_lies_within_the_interval(which):
    whole, part = (mw.bench([CONV12], "sim-64", passes=[which], sample=limit) for limit in (0, 1_000_000))
    (entry,) = part["layers"]
    low, high = entry["sample"]["cycles_95"]
    assert part["cycles_95"] == [low, high]
    assert 0 < low <= whole["cycles"] <= high < 1.2 * whole["cycles"]
    assert entry["macs_effectual"] == whole["macs_effectual"] and entry["sample"]["share"] < 0.6
