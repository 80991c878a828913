"""Tools for bitstreams that only pretend."""

import json
import sys

import pytest
from maskwork.fpga.boards.boards import BOARDS
from maskwork.fpga.boards.build import build
from maskwork.gen.config import preset
from maskwork.sim_tb.cache import Cache

from .board_designs import Echo

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
        asked = float(args[args.index("--freq") + 1])
        # what is reached where it depends on what is asked for: from so many MHz on
        mhz = next((got for least, got in reversed(STATE.get("by_freq", [])) if asked >= least), mhz)
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


def fake_tools(tmp_path, monkeypatch):
    """The only tools on PATH, with an empty cache."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("MASKWORK_CACHE", str(tmp_path / "cache"))
    return Fakes(folder)


def builder(tmp_path):
    """Builds a small design for an iCEBreaker."""
    pytest.importorskip("amaranth_boards")
    cache = Cache(tmp_path / "cache")

    def made(**options):
        return build(BOARDS["icebreaker"], preset("tiny"), design=Echo, cache=cache, **options)

    return made
