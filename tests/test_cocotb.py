"""cocotb regressions: the whole accelerator on both simulators, with random back-pressure on both streams."""

import shutil

import pytest
from maskwork.gen.config import preset
from maskwork.rtl.accelerator import Accelerator

run_bench = pytest.importorskip("maskwork.sim_tb.benches.runner").run_bench
BENCH = "maskwork.sim_tb.benches.bench_accelerator"
icarus = pytest.param(
    "icarus",
    marks=[pytest.mark.icarus, pytest.mark.skipif(not shutil.which("iverilog"), reason="iverilog is not installed")],
)


@pytest.mark.slow
@pytest.mark.parametrize("simulator", ["verilator", icarus])
def test_accelerator(simulator):
    config = preset("tiny")
    values = {"config": config.to_dict(), "programs": 2, "products": 2}
    # Icarus is far faster on the plain Verilog netlist
    tests = run_bench(
        Accelerator(config), "accelerator", BENCH, simulator, verilog=simulator == "icarus", parameters=values
    )
    assert tests >= 2
