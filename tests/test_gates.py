"""Gate-level check: an accelerator synthesised for iCE40 passes the regression; one with a wrong LUT does not."""

import dataclasses
import re
import shutil

import pytest
from maskwork.fpga import gates
from maskwork.gen.config import preset
from maskwork.gen.errors import MaskworkError, MaskworkValueError
from maskwork.sim_tb.run import SimulationError

SMALLEST = preset("icebreaker").replace(
    name="gates", counters=True, pes_per_lane=1, k_depth=16, a_depth=64, a_segments=16, c_rows=16, psum_rows=4,
    fifo_depth=64,
)  # fmt: skip
"""One PE with every kind of cell, block RAM and DSP included."""

SIMULATOR = "icarus" if shutil.which("iverilog") else "verilator"
"""Icarus is built at once and knows undefined values; Verilator takes a minute to build."""


@pytest.fixture(scope="module")
def netlist():
    pytest.importorskip("pyosys")
    return gates.gate_netlist(SMALLEST)


@pytest.mark.slow
def test_gates_pass_the_regression(netlist):
    assert netlist.cells["SB_MAC16"] == SMALLEST.pes
    assert netlist.cells["SB_RAM40_4K"] > 0 and netlist.cells["SB_LUT4"] > 1000
    device = gates.GateDevice(SMALLEST, netlist, SIMULATOR)
    try:
        summary = gates.run_programs(device, 2, seed=1, runs=1)
    finally:
        device.close()
    assert summary.programs == 2 and summary.packets > 10 and summary.cycles > 1000


@pytest.mark.slow
def test_a_wrong_lut_is_found(netlist):
    """One LUT in the drain, inverted."""
    table = re.compile(r"SB_LUT4 #\(\s*\.LUT_INIT\(16'h([0-9a-f]{4})\)\s*\) \\cluster0\.lane0\.drain\S* ")
    found = table.search(netlist.text)
    assert found, "no LUT of the drain"
    start, end = found.span(1)
    wrong = f"{int(found[1], 16) ^ 0xFFFF:04x}"
    altered = dataclasses.replace(netlist, text=netlist.text[:start] + wrong + netlist.text[end:])
    device = gates.GateDevice(SMALLEST, altered, SIMULATOR)
    try:
        with pytest.raises((AssertionError, SimulationError)):
            gates.run_programs(device, 5, seed=1, runs=1)
    finally:
        device.close()


def test_errors(capsys):
    with pytest.raises(MaskworkValueError, match="family must be one of ice40, not 'ecp6'"):
        gates.gate_netlist(SMALLEST, "ecp6")
    unused = gates.GateNetlist("", "gates", {}, 0.0)
    with pytest.raises(MaskworkError, match="unknown simulator 'vcs'; simulators: verilator, icarus"):
        gates.GateDevice(SMALLEST, unused, "vcs")
    assert gates.main(["--preset", "huge"]) == 2
    assert "presets: tiny" in capsys.readouterr().err
