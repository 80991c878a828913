"""Gate-level check: the synthesised netlist on the FPGA vendor's cell models passes the accelerator's regression.

``python -m maskwork.fpga.gates --help``. The netlist is the one that place and route gets.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from maskwork.fpga.synthesis import find_yosys, recipe, synthesise
from maskwork.gen.config import Config, preset, presets
from maskwork.gen.errors import MaskworkError, MaskworkValueError
from maskwork.gen.generate import module_name
from maskwork.gen.isa import COUNTERS, Reply
from maskwork.rtl.accelerator import Accelerator
from maskwork.sim_tb.cache import Cache, content_key
from maskwork.sim_tb.cycle import CycleDevice
from maskwork.sim_tb.device import SIMULATORS, RtlDevice
from maskwork.sim_tb.golden import Interpreter
from maskwork.sim_tb.icarus import IcarusModel
from maskwork.sim_tb.packets import decode, joined
from maskwork.sim_tb.random_programs import RandomProgram
from maskwork.sim_tb.regress import run_products
from maskwork.sim_tb.run import RunLimits, RunResult, SimulationError, cached_netlist, limits_for
from maskwork.sim_tb.verilator import VerilatedModel

FAMILIES = ("ice40",)
"""FPGA families whose cells have complete simulation models in Yosys."""

_MODELS = {"ice40": ("ice40/cells_sim.v", "`define NO_ICE40_DEFAULT_ASSIGNMENTS\n")}
"""File of a family's cell models, and what goes before it: Icarus 11 does not know default values of ports."""
_CELL = re.compile(r"^  (SB_\w+) ", re.MULTILINE)
_STALLS = (0.0, 0.3, 0.8)
_LIMITS = RunLimits(max_cycles=10_000_000, stuck_limit=20_000)


@dataclass(frozen=True)
class GateNetlist:
    """A synthesised accelerator.

    Members:
        text: Verilog: cell models, then the netlist.
        name: top module.
        cells: number of cells by type.
        seconds: synthesis took so long; 0 if it was known.
    """

    text: str
    name: str
    cells: dict[str, int]
    seconds: float


def gate_netlist(config: Config, family: str = "ice40", cache: Cache | None = None) -> GateNetlist:
    """Synthesise an accelerator and write its cells as Verilog, or find that in the cache.

    Args:
        config: its configuration.
        family: one of :data:`FAMILIES`.
        cache: where netlists are kept.

    Raises:
        MaskworkError: if Yosys is missing or fails.
    """
    if family not in FAMILIES:
        raise MaskworkValueError(f"family must be one of {', '.join(FAMILIES)}, not {family!r}")
    file, head = _MODELS[family]
    models = head + (_yosys_share() / file).read_text(encoding="utf-8")
    rtl, name = cached_netlist(config, cache=cache)
    begin = time.perf_counter()
    built = False

    def build(folder: Path) -> None:
        nonlocal built
        built = True
        with tempfile.TemporaryDirectory(prefix="maskwork-") as scratch:
            synthesise(Accelerator(config), name, Path(scratch), family, recipe(family))  # as for a board
            _yosys(f"read_json {name}.json\nwrite_verilog -noattr {name}.v\n", Path(scratch))
            shutil.copy(Path(scratch) / f"{name}.v", folder / "netlist.v")

    # what prepares the netlist for Yosys lies beside this file
    synthesis = "".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py")))
    key = content_key("gates", family, find_yosys().version, synthesis, rtl)
    text = ((cache or Cache()).entry(key, build) / "netlist.v").read_text(encoding="utf-8")
    cells: dict[str, int] = {}
    for cell in _CELL.findall(text):
        cells[cell] = cells.get(cell, 0) + 1
    return GateNetlist(f"{models}\n{text}", name, cells, time.perf_counter() - begin if built else 0.0)


class GateDevice(RtlDevice):
    """A synthesised netlist in a simulator.

    Args:
        config: the accelerator's configuration.
        netlist: from :func:`gate_netlist`.
        simulator: ``"verilator"`` (a minute or more to build, then thousands of cycles a second) or ``"icarus"``
            (seconds, then hundreds; undefined values show).
        cache: where built simulators are kept.

    Raises:
        MaskworkError: if the simulator is missing or cannot be built.
    """

    def __init__(self, config: Config, netlist: GateNetlist, simulator: str = "verilator", cache: Cache | None = None):
        if simulator not in SIMULATORS:
            raise MaskworkValueError(f"unknown simulator {simulator!r}; simulators: {', '.join(SIMULATORS)}")
        self.config = config
        self.last_run: RunResult | None = None
        self._stalls = (0.0, 0.0)
        self._seed = 0
        self._limits = _LIMITS
        if simulator == "verilator":
            self.model = VerilatedModel(netlist.text, netlist.name, config.stream_words, cache=cache)
        else:
            self.model = IcarusModel(netlist.text, netlist.name, config.stream_words, cache=cache)

    def run(self, words: Any, last: Any, in_stall: float, out_stall: float, seed: int) -> RunResult:
        """Execute packets with back-pressure."""
        limits = limits_for(words, last, self.config.stream_words, self._limits)
        return self.model.run(words, last, in_stall=in_stall, out_stall=out_stall, seed=seed, limits=limits)


@dataclass
class GateSummary:
    """What :func:`run_programs` has checked.

    Members:
        programs, packets: programs and reply packets that were compared.
        cycles: of all runs.
        seconds: of the simulation and its check.
    """

    programs: int = 0
    packets: int = 0
    cycles: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.programs} random programs: {self.packets} reply packets equal the golden model's, counters and "
            f"cycles the cycle model's, in {self.cycles} cycles, {self.seconds:.1f} s"
        )


def run_programs(
    device: GateDevice, count: int, seed: int = 0, runs: int = 2, progress: Callable[[int], Any] | None = None
) -> GateSummary:
    """Run random programs, each with random back-pressure and once more without.

    Replies must be those of the golden model; without back-pressure, every counter and the number of cycles must
    be the cycle model's too.

    Args:
        device: the netlist.
        count: programs.
        seed: of the programs and the back-pressure.
        runs: chains of RUNs in each.
        progress: called after each program with their number.

    Raises:
        AssertionError: naming the first program whose replies, counters or cycles are wrong.
        SimulationError: if the netlist gets stuck or breaks the stream contract.
    """
    config = device.config
    summary = GateSummary()
    begin = time.perf_counter()
    cycle_model = CycleDevice(config)
    chance = random.Random(f"gates {seed}")
    for number in range(count):
        program = RandomProgram(config, chance, runs)
        words, last = joined(config, program.packets)
        golden = _comparable(config, Interpreter(config).execute(words, last), program.shared)
        stalls = chance.choice(_STALLS), chance.choice(_STALLS)
        for what, run in (
            (f"with stalls {stalls}", device.run(words, last, *stalls, seed + number)),
            ("without stalls", device.run(words, last, 0.0, 0.0, 0)),
        ):
            where = f"program {number} of seed {seed}, {what}"
            replies = _packets(config, run.words, run.last)
            assert _comparable(config, replies, program.shared) == golden, f"{where}: wrong replies"
            if config.counters:
                for reply in _counters(config, replies):
                    total = sum(reply[name] for name in COUNTERS[:8])
                    assert total == reply["cycles"] * config.pes, f"{where}: the counters do not add up: {reply}"
            summary.packets += len(replies)
            summary.cycles += run.cycles
        expected = _packets(config, *cycle_model.execute(words, last))
        assert _counters(config, replies) == _counters(config, expected), f"{where}: not the cycle model's counters"
        assert cycle_model.last_run is not None
        modelled = cycle_model.last_run.cycles
        assert run.cycles == modelled, f"{where}: {run.cycles} cycles, where the cycle model has {modelled}"
        summary.programs += 1
        if progress:
            progress(number + 1)
    summary.seconds = time.perf_counter() - begin
    return summary


def _packets(config: Config, words: np.ndarray, last: np.ndarray) -> list[np.ndarray]:
    pieces = np.split(words, (np.flatnonzero(last) + 1) * config.stream_words)
    assert not len(pieces[-1]), "the replies end within a packet"
    return pieces[:-1]


def _comparable(config: Config, packets: Sequence[np.ndarray], shared: dict[int, bool]) -> list[tuple[int, ...]]:
    """Packets without counters, sorted; a row that is not shared may come from any lane of its cluster."""
    result = []
    for packet in packets:
        words = packet.tolist()
        if words[0] & 0xFF == Reply.COUNTERS:
            continue
        if words[0] & 0xFF == Reply.RESULT and not shared.get(words[0] >> 8 & 0xFF, True):
            lane = words[0] >> 16 & 0xFF
            words[0] += (lane // config.lanes_per_cluster - lane) << 16
        result.append(tuple(words))
    return sorted(result)


def _counters(config: Config, packets: Sequence[np.ndarray]) -> list[dict[str, int]]:
    found = [decode(config, packet) for packet in packets if int(packet[0]) & 0xFF == Reply.COUNTERS]
    return [{name: reply[name] for name in COUNTERS} for reply in found]


def _yosys(script: str, folder: Path) -> None:
    (folder / "script.ys").write_text(script, encoding="utf-8")
    done = subprocess.run([*find_yosys().command, "script.ys"], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise MaskworkError(f"Yosys failed: {(done.stderr or done.stdout).strip()[-400:]}")


def _yosys_share() -> Path:
    """Folder of the cell models of the Yosys that synthesises."""
    native = shutil.which("yosys")
    if native:
        share = Path(native).resolve().parent.parent / "share" / "yosys"
    else:
        found = importlib.util.find_spec("pyosys")
        if found is None or found.origin is None:
            raise MaskworkError("Yosys is missing: pip install 'maskwork[synth]' brings it")
        share = Path(found.origin).parent / "share"
    if not share.is_dir():
        raise MaskworkError(f"{share}: Yosys's cell models are not there; pip install 'maskwork[synth]' brings both")
    return share


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m maskwork.fpga.gates",
        description="The regression on the synthesised netlist, with Yosys's models of the FPGA's cells.",
        epilog="example: python -m maskwork.fpga.gates --preset tiny --programs 20",
    )
    parser.add_argument("--preset", default="tiny", help=f"one of {', '.join(presets())} (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a configuration key")
    parser.add_argument("--family", default="ice40", choices=FAMILIES, help="FPGA family (default: %(default)s)")
    parser.add_argument("--programs", type=int, default=20, help="random programs (default: %(default)s)")
    parser.add_argument("--products", type=int, default=2, help="random products (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: %(default)s)")
    parser.add_argument("--simulator", default="verilator", choices=SIMULATORS, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        config = preset(options.preset).with_settings(options.set)
        return regress(config, options.family, options.programs, options.products, options.seed, options.simulator)
    except MaskworkError as error:
        print(error, file=sys.stderr)
        return 2


def regress(
    config: Config,
    family: str = "ice40",
    programs: int = 20,
    products: int = 2,
    seed: int = 0,
    simulator: str = "verilator",
) -> int:
    """Synthesise, simulate, compare, and print what was found.

    Products need a configuration with counters; without them only programs are run.

    Returns:
        Exit status: 0, or 1 if something was wrong.

    Raises:
        MaskworkError: if a tool is missing or fails.
    """
    netlist = gate_netlist(config, family)
    cells = ", ".join(f"{count} {cell}" for cell, count in sorted(netlist.cells.items()))
    took = f"{netlist.seconds:.0f} s" if netlist.seconds else "cached"
    print(f"{module_name(config)} on {family}: {cells} (synthesis: {took})", flush=True)
    begin = time.perf_counter()
    device = GateDevice(config, netlist, simulator)
    print(f"{simulator} built in {time.perf_counter() - begin:.0f} s", flush=True)
    try:
        print(run_programs(device, programs, seed), flush=True)
        if config.counters and products:
            print(run_products(config, products, seed, device=device))
    except (AssertionError, SimulationError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        device.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
