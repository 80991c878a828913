"""From a configuration to a board's bitstream and its report."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amaranth.lib import wiring
from maskwork.fpga import floorplan
from maskwork.fpga.boards import top
from maskwork.fpga.boards.boards import Board, Pin
from maskwork.fpga.boards.names import Components, count, critical_path
from maskwork.fpga.boards.pll import MEGA, best, clocks
from maskwork.fpga.boards.tools import (
    PLACERS,
    Tools,
    bitstream,
    check_placer,
    check_places,
    nextpnr_options,
    nextpnr_settings,
    pack_options,
    place_and_route,
)
from maskwork.fpga.fits import CELLS
from maskwork.fpga.synthesis import COMMANDS, recipe, synthesise_text, with_settings
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkError
from maskwork.gen.generate import emit
from maskwork.sim_tb.cache import Cache, content_key

AUTO_PASSES = 3
"""Most builds for `--clock auto`."""

AUTO_SHARE = 0.98
"""Of the clock that one of them reached, what the next one is for: another placement seldom reaches as much again."""

_RESULT = "board bitstream 3"
"""Part of the cache's keys: to be changed with what is kept of a routed design."""

Design = Callable[[Config, int, int, str], wiring.Component]
"""Makes what the board holds from configuration, clock and baud rate in Hz, and the board's name."""


@dataclasses.dataclass(frozen=True)
class Built:
    """A bitstream and its report (docs: report of `maskwork build`)."""

    bitstream: bytes
    report: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Pass:
    clock_hz: int
    baud: int
    best: dict[str, Any]
    fmax_by_seed: dict[str, float]
    bitstream: bytes
    seconds: dict[str, float]
    cached: bool

    @property
    def met(self) -> bool:
        """Whether the clock is reached."""
        return self.best["fmax_mhz"] * MEGA >= self.clock_hz


def system(config: Config, clock_hz: int, baud: int, board: str) -> wiring.Component:
    """The accelerator and its link."""
    from maskwork.fpga.system import System

    return System(config, clock_hz, baud, board)


def build(
    board: Board,
    config: Config,
    *,
    clock_mhz: float | None = None,
    auto: bool = False,
    baud: int | None = None,
    seed: int | None = None,
    seeds: int = 1,
    placer: str = PLACERS[0],
    margin: float | None = None,
    allow_timing_failure: bool = False,
    design: Design = system,
    cache: Cache | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Built:
    """Build a bitstream.

    Args:
        board: the board.
        config: the accelerator.
        clock_mhz: clock, the board's by default; the PLL makes the nearest one that is not above it.
        auto: take it for a first aim, and then go on with the clock that the routed design reaches, nearly. The
            UART's divider and the identity depend on the clock, so that this routes twice, or three times. The
            fastest of these designs that reaches its clock is taken.
        baud: of the UART.
        seed: first seed of the placer, the board's by default.
        seeds: how many seeds; the one with the highest clock counts.
        placer: nextpnr's, one of ``PLACERS``.
        margin: percent by which nextpnr aims above the clock (ECP5 only), ``top.MARGIN`` by default.
        allow_timing_failure: do not fail when the clock is not reached.
        design: what goes onto the board.
        cache: of what was built before.
        progress: told each step.

    Raises:
        MaskworkError: if a tool is missing or fails, the design does not fit or the clock is not reached.
        MaskworkValueError: for a placer or margin that the board's family does not have.
    """
    start = time.monotonic()
    tools = Tools.find(board.family)
    pins = board.pins()
    first = board.seed if seed is None else seed
    check_placer(board, placer)
    top.check_margin(board, margin)
    aim = top.MARGIN if margin is None else margin
    rate = baud or board.baud
    run = _Run(board, config, tools, pins, rate, first, seeds, placer, aim, design, cache or Cache(), progress)
    mhz = clock_mhz or board.clock_mhz
    done = _fastest(run, mhz) if auto else run.at(mhz)
    met = done.met
    if not met and not allow_timing_failure:
        raise MaskworkError(
            f"{board.name}: timing is not met: {done.clock_hz / MEGA:g} MHz asked for, {done.best['fmax_mhz']:g} MHz "
            f"reached after routing; build with --clock {int(done.best['fmax_mhz'] * 0.95)}"
            f"{'' if auto else ' or --clock auto'}, try --seeds 4, or pass --allow-timing-failure"
        )
    return Built(done.bitstream, _report(board, config, tools, done, met, round(time.monotonic() - start, 1)))


def _fastest(run: _Run, mhz: float) -> _Pass:
    """The fastest design that reaches its clock, from one for ``mhz`` on; if none does, the last one."""
    found: _Pass | None = None
    done = run.at(mhz)
    for _ in range(AUTO_PASSES - 1):
        if done.met and (found is None or done.clock_hz > found.clock_hz):
            found = done
        mhz = run.possible(done.best["fmax_mhz"] * AUTO_SHARE)
        if found is not None and mhz * MEGA * AUTO_SHARE < found.clock_hz:
            return found
        done = run.at(mhz)
    return done if found is None or (done.met and done.clock_hz > found.clock_hz) else found


@dataclasses.dataclass(frozen=True)
class _Run:
    board: Board
    config: Config
    tools: Tools
    pins: list[Pin]
    baud: int
    seed: int
    seeds: int
    placer: str
    margin: float
    design: Design
    cache: Cache
    progress: Callable[[str], None]

    def possible(self, mhz: float) -> float:
        """A clock, or the nearest to it that there can be."""
        lowest, highest = clocks(self.board.family, self.pins[0].clock_hz)
        return min(max(mhz, lowest / MEGA), highest / MEGA)

    def at(self, mhz: float) -> _Pass:
        """Build for a clock."""
        board = self.board
        pll = best(board.family, self.pins[0].clock_hz, round(mhz * MEGA))
        clock_hz = round(pll.output_hz)
        what = f"{board.name} at {clock_hz / MEGA:g} MHz"
        self.progress(f"emitting {what}")
        text, _ = emit(self.design(self.config, clock_hz, self.baud, board.name), top.SYSTEM)
        text += top.verilog(self.pins, pll)
        constraints = top.constraints(board, self.pins, clock_hz / MEGA, self.margin)
        commands = recipe(board.family, self.config.lut_ram)
        key = content_key("board netlist 2", text, COMMANDS[commands], self.tools.yosys.version)
        self.progress(f"synthesising {what}")
        built = False

        def synthesis(folder: Path) -> None:
            nonlocal built
            built = True
            start = time.monotonic()
            cost = synthesise_text(text, top.TOP, folder, board.family, commands)
            _write(folder / "cost.json", {**dataclasses.asdict(cost), "seconds": round(time.monotonic() - start, 1)})

        netlist = self.cache.entry(key, synthesis)
        check_places(board, netlist / f"{top.TOP}.json")
        cost = _read(netlist / "cost.json")
        tried: dict[int, dict[str, Any]] = {}
        images: dict[int, bytes] = {}
        for seed in range(self.seed, self.seed + self.seeds):
            self.progress(f"placing and routing {what}, seed {seed}")
            options = nextpnr_options(board, clock_hz / MEGA, seed, self.placer)
            tools = [self.tools.nextpnr.version, self.tools.pack.version]
            made = [constraints, Path(floorplan.__file__).read_text(encoding="utf-8"), *options, *pack_options(board)]
            settings = nextpnr_settings(board, self.placer)
            made += [f"{name}={value}" for name, value in settings.items()]
            routed_key = content_key(_RESULT, key, *made, *tools)

            def route(folder: Path, options: list[str] = options, settings: dict[str, str] = settings) -> None:
                nonlocal built
                built = True
                self._route(folder, netlist, constraints, text, options, settings)

            entry = self.cache.entry(routed_key, route)
            tried[seed] = _read(entry / "result.json")
            images[seed] = (entry / board.bitstream).read_bytes()
        first = max(tried, key=lambda seed: tried[seed]["fmax_mhz"])
        seconds = {"synthesis": cost["seconds"], "place_and_route": sum(one["seconds"] for one in tried.values())}
        used = {"ffs": cost["ffs"], **tried[first]["used"]}
        chosen = {**tried[first], "used": used, "seed": first}
        fmax = {str(seed): one["fmax_mhz"] for seed, one in tried.items()}
        return _Pass(clock_hz, self.baud, chosen, fmax, images[first], seconds, not built)

    def _route(
        self, folder: Path, netlist: Path, constraints: str, text: str, options: list[str], settings: dict[str, str]
    ) -> None:
        board = self.board
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="maskwork-") as scratch:  # big files that nobody needs afterwards
            build = Path(scratch)
            # a copy: WebAssembly tools see nothing outside their folder, not even through a link
            shutil.copyfile(netlist / f"{top.TOP}.json", build / f"{top.TOP}.json")
            floorplan.apply(build / f"{top.TOP}.json", board.nextpnr)
            if settings:
                with_settings(build / f"{top.TOP}.json", settings)
            (build / top.CONSTRAINT_FILE[board.family]).write_text(constraints, encoding="utf-8")
            timing = place_and_route(self.tools, board, build, options)
            image = bitstream(self.tools, board, build)
            modules = _read(build / "routed.json")["modules"]
            log = (build / "nextpnr.log").read_text(encoding="utf-8", errors="replace")
        names = CELLS[board.family]
        cells = next(iter(modules.values()))["cells"]
        components = Components.of(text, top.TOP)
        luts = [name for name, cell in cells.items() if cell["type"] in names["luts"]]
        utilization = {cell: value["used"] for cell, value in timing["utilization"].items()}
        used = {what: sum(utilization.get(cell, 0) for cell in kinds) for what, kinds in names.items()}
        by_component = count(components, luts)
        if used["luts"] > len(luts):  # nextpnr's own, without a name in the netlist it writes
            by_component["nextpnr"] = used["luts"] - len(luts)
        result = {
            "fmax_mhz": round(min(clock["achieved"] for clock in timing["fmax"].values()), 2),
            "used": used,
            "cells": {cell: value for cell, value in timing["utilization"].items() if value["used"]},
            "critical_path": critical_path(components, timing["critical_paths"]),
            "luts_by_component": by_component,
            "seconds": round(time.monotonic() - start, 1),
        }
        (folder / board.bitstream).write_bytes(image)
        (folder / "nextpnr.log").write_text(log, encoding="utf-8")
        _write(folder / "result.json", result)


def _report(board: Board, config: Config, tools: Tools, done: _Pass, met: bool, seconds: float) -> dict[str, Any]:
    result = done.best
    totals = {}
    for key, total in board.totals.items():
        used = result["used"][key]
        totals[key] = {"used": used, "available": total, "percent": round(100 * used / total, 1)}
    return {
        "board": board.name,
        "device": board.device,
        "bitstream": board.bitstream,
        "config": config.to_dict(),
        "config_hash": config.hash,
        "pes": config.pes,
        "clock_mhz": round(done.clock_hz / MEGA, 4),
        "clock_hz": done.clock_hz,
        "fmax_mhz": result["fmax_mhz"],
        "timing_met": met,
        "baud": done.baud,
        **totals,
        "cells": result["cells"],
        "luts_by_component": result["luts_by_component"],
        "critical_path": result["critical_path"],
        "seed": result["seed"],
        "fmax_by_seed": done.fmax_by_seed,
        "tools": tools.versions,
        "seconds": seconds,
        "tool_seconds": done.seconds,
        "cached": done.cached,
    }


def _write(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
