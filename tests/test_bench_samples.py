"""Samples against the whole, on the cycle model: the whole's cycles lie within the interval that is stated."""

import dataclasses

import maskwork as mw
import numpy as np
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


def test_sums_that_parts_drain_each():
    """A weight gradient's parts add to the same sums, which the whole drains once."""
    # conv2 of VGG8 at 80 % sparsity (shared/workloads)
    layer = Layer(
        network="vgg8", layer="conv2", batch=1, in_channels=128, out_channels=256, in_height=16, in_width=16,
        kernel_height=3, kernel_width=3, padding=1,
        density_input=0.2, density_output=0.2, density_output_grad=0.2, density_input_mask=0.2,
    )  # fmt: skip
    whole, part = (mw.bench([layer], passes=["weight_grad"], sample=limit) for limit in (0, 1_000_000))
    low, high = part["cycles_95"]
    assert part["layers"][0]["sample"]["parts"] > 4 and low <= whole["cycles"] <= high


IMAGES = Layer(
    network="n", layer="c", batch=16, in_channels=16, out_channels=16, in_height=16, in_width=16,
    kernel_height=3, kernel_width=3, padding=1,
)  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_most_images_are_empty(tmp_path, seed):
    """Whichever parts are drawn, nothing is scaled up to more than all PEs can do."""
    present = np.zeros((16, 16, 16, 16), dtype=bool)
    present[2:4] = True
    np.savez(tmp_path / "m.npz", **{"c.input": present, "c.output_mask": present})
    report = mw.bench([IMAGES], "tiny", passes=["forward"], masks_from=[tmp_path / "m.npz"], sample=700_000, seed=seed)
    (entry,) = report["layers"]
    low, high = entry["sample"]["cycles_95"]
    assert entry["sample"]["simulated"] < entry["sample"]["parts"] and low <= entry["cycles"] <= high
    assert 0 < entry["utilization"] <= 1 and min(entry["pe_cycles"].values()) >= 0
    assert sum(entry["pe_cycles"].values()) == entry["cycles"] * report["pes"]


@pytest.mark.parametrize("config", ["sim-64", "ulx3s-85f"])
def test_no_output_is_wanted(config):
    layer = dataclasses.replace(IMAGES, batch=2, density_output=0.0, in_channels=64, in_height=28, in_width=28)
    (entry,) = mw.bench([layer], config, passes=["forward"])["layers"]
    assert entry["macs_effectual"] == 0 < entry["cycles"] and entry["utilization"] == 0
