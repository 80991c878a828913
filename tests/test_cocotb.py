"""cocotb regressions: PE, lane, streams and the whole accelerator on both simulators, with random back-pressure."""

import shutil

import pytest
from maskwork.gen.config import preset
from maskwork.gen.errors import MaskworkError
from maskwork.rtl.accelerator import Accelerator
from maskwork.rtl.lane import Lane
from maskwork.rtl.pe import PE
from maskwork.rtl.queue import Queue
from maskwork.rtl.stream import SkidBuffer

run_bench = pytest.importorskip("maskwork.sim_tb.benches.runner").run_bench
BENCHES = "maskwork.sim_tb.benches"
CONFIGS = {
    "tiny": {},
    "dense": {"skip": ""},
    "a": {"skip": "a"},
    "ab": {"skip": "ab"},
    "ac": {"skip": "ac"},
    "4 rows": {"rows_in_flight": 4, "fifo_depth": 128},
    "block RAM": {"lut_ram": False},
    "K in PEs": {"psum_in_pe": True},
}
STREAMS = {
    "skid buffer": (lambda: SkidBuffer(16), {"latency": 1, "holds": 2}),
    "queue": (lambda: Queue(16, 8, 3), {"latency": 1, "holds": 8}),
    "queue in block RAM": (lambda: Queue(16, 8, 3, block=True), {"latency": 2, "holds": 8}),
}
ICARUS = [pytest.mark.icarus, pytest.mark.skipif(not shutil.which("iverilog"), reason="iverilog is not installed")]
icarus = pytest.param("icarus", marks=ICARUS)
both = pytest.mark.parametrize("simulator", ["verilator", icarus])


def cases(on_verilator, quick):
    """Simulators with configurations: all on Icarus, where nothing has to be compiled; ``quick`` ones are not slow."""
    slow = {name: [] if name in quick else [pytest.mark.slow] for name in CONFIGS}
    return [
        *(pytest.param("verilator", name, marks=pytest.mark.slow) for name in on_verilator),
        *(pytest.param("icarus", name, marks=[*ICARUS, *slow[name]]) for name in CONFIGS),
    ]


def run(component, name, bench, simulator, **parameters):
    # Icarus is far faster on the plain Verilog netlist
    return run_bench(
        component, name, f"{BENCHES}.{bench}", simulator, verilog=simulator == "icarus", parameters=parameters
    )


def of(name):
    """A configuration, and how much of a bench it has to do: all if it is the plain one."""
    config = preset("tiny").replace(**CONFIGS[name])
    return config, {"config": config.to_dict(), "share": 1.0 if name == "tiny" else 0.2}


@pytest.mark.parametrize(("simulator", "name"), cases(["tiny"], ["tiny", "dense", "4 rows"]))
def test_pe(simulator, name):
    config, values = of(name)
    assert run(PE(config), "dut", "bench_pe", simulator, **values) == 4


@pytest.mark.parametrize(("simulator", "name"), cases(["tiny"], ["tiny"]))
def test_lane(simulator, name):
    config, values = of(name)
    assert run(Lane(config), "dut", "bench_lane", simulator, **values) == 4


@pytest.mark.slow
@both
def test_accelerator(simulator):
    config = preset("tiny")
    values = {"config": config.to_dict(), "programs": 2, "products": 2}
    assert run(Accelerator(config), "accelerator", "bench_accelerator", simulator, **values) >= 2


@pytest.mark.parametrize(
    ("simulator", "name"),
    [pytest.param("verilator", "skid buffer", marks=pytest.mark.slow)]
    + [pytest.param("icarus", name, marks=ICARUS) for name in STREAMS],
)
def test_streams(simulator, name):
    make, values = STREAMS[name]
    assert run(make(), "dut", "bench_stream", simulator, **values) == 3


@pytest.mark.icarus
@pytest.mark.skipif(not shutil.which("iverilog"), reason="iverilog is not installed")
def test_a_bench_can_fail():
    """The runner reports what a bench found wrong."""
    with pytest.raises(MaskworkError, match="bench_stream on icarus: 2 of 3 tests failed"):
        run(SkidBuffer(16), "dut", "bench_stream", "icarus", latency=0, holds=3)
