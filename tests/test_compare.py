"""The comparison of sparse and dense arrays: its arithmetic, its cache, its command."""

import dataclasses
import itertools
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from maskwork.fpga.dense.compare import CURVE_MACS, CURVE_PRODUCT, break_even, crossing, mask_ports, speeds, twice
from maskwork.fpga.dense.compare_plot import plot
from maskwork.fpga.dense.config import DenseConfig
from maskwork.fpga.dense.cycles import product_cycles
from maskwork.fpga.dense.layers import layer_cycles, layer_products
from maskwork.fpga.dense.records import Cache, read_record, record
from maskwork.fpga.ecp5_netlist import register_outputs, trim_carries
from maskwork.gen import cli_common
from maskwork.gen.bench import Bench
from maskwork.gen.bench_curves import _SHAPE, _WEIGHTS
from maskwork.gen.cli_compare import compare
from maskwork.gen.config import preset
from maskwork.gen.errors import MaskworkError, MaskworkValueError
from maskwork.gen.workload import COLUMNS, PASSES, Layer
from maskwork.gen.works import ConvWork

LAYER = Layer(network="net", layer="conv", batch=2, in_channels=6, out_channels=8, in_height=7, in_width=9,
              kernel_height=3, kernel_width=2, stride=2, padding=1, groups=2)  # fmt: skip


def routed(pes, clock, luts, config, brams=10, dsps=20):
    return {
        "config": config, "pes": pes, "fmax_mhz": clock, "device": "LFE5U-85F, speed grade 6", "seed": 1,
        "used": {"TRELLIS_COMB": (luts, 83640), "TRELLIS_FF": (luts, 83640), "DP16KD": (brams, 208),
                 "MULT18X18D": (dsps, 156)},
    }  # fmt: skip


def dense(rows=4, columns=5, clock=100.0, luts=1000, dsps=None):
    config = {"rows": rows, "columns": columns, "dsps": dsps, "width": 9, "acc_width": 32}
    return record(routed(rows * columns, clock, luts, config), "dense" if dsps is None else "dense-soft")


def sparse(pes=10, clock=50.0, luts=4000):
    return record(routed(pes, clock, luts, preset("small").to_dict()), "sparse")


# ---------------------------------------------------------------------- layers on the dense array


def reference(layer):
    """Products of one group that exist (none on padding), by enumeration; the same for every pass."""
    ys = range(layer.out_height), range(layer.kernel_height)
    count = np.zeros((layer.in_height, layer.in_width), dtype=int)
    for oy, ky in itertools.product(*ys):
        for ox, kx in itertools.product(range(layer.out_width), range(layer.kernel_width)):
            y = oy * layer.stride + ky * layer.dilation - layer.padding
            x = ox * layer.stride + kx * layer.dilation - layer.padding
            if 0 <= y < layer.in_height and 0 <= x < layer.in_width:
                count[y, x] += 1
    return int(count.sum()) * layer.batch * (layer.in_channels // layer.groups) * (layer.out_channels // layer.groups)


@pytest.mark.parametrize("which", PASSES)
def test_products_cover_the_layer(which):
    """Every product that exists is in one of the matrix products, and few others (padding)."""
    own = sum(m * k * n for m, k, n in layer_products(LAYER, which))
    exists = reference(LAYER)
    assert exists <= own <= 1.5 * exists


def test_sizes_of_products():
    assert layer_products(LAYER, "forward") == [(2 * 4 * 5, 3 * 2 * 3, 4)]
    assert layer_products(LAYER, "weight_grad") == [(3 * 2 * 3, 2 * 4 * 5, 4)]
    sizes = layer_products(LAYER, "input_grad")
    assert sum(m for m, _, _ in sizes) == 2 * 7 * 9  # every pixel of the input once
    assert sum(k for _, k, _ in sizes) == 3 * 2 * 4  # every tap in one phase
    with pytest.raises(MaskworkValueError, match="pass must be one of forward"):
        layer_products(LAYER, "backward")


def test_cycles_of_a_layer():
    config = DenseConfig(rows=4, columns=5)
    assert layer_cycles(config, LAYER, "forward") == 2 * product_cycles(4, 5, 40, 18, 4)
    for which in PASSES:  # never faster than all PEs busy
        assert layer_cycles(config, LAYER, which) * config.pes >= reference(LAYER) * LAYER.groups


# ---------------------------------------------------------------------- arithmetic


def test_speeds():
    small, big = sparse(), dense()
    entries = [{"network": "net", "layer": "conv", "pass": which, "cycles": 1000, "macs_dense": 50_000}
               for which in ("forward", "weight_grad")]  # fmt: skip
    result = speeds(small, [big], entries, [LAYER])
    assert result["macs_dense"] == 100_000
    own = result["arrays"]["sparse"]
    assert own["cycles"] == 2000 and own["seconds"] == pytest.approx(2000 / 50e6)
    assert own["products_per_s"] == pytest.approx(100_000 * 50e6 / 2000) and own["utilization"] == 5.0
    config = DenseConfig(rows=4, columns=5)
    cycles = layer_cycles(config, LAYER, "forward") + layer_cycles(config, LAYER, "weight_grad")
    assert result["arrays"]["dense"]["cycles"] == cycles
    speedup = result["speedup"]["dense"]
    assert speedup["real"] == pytest.approx((cycles / 100e6) / (2000 / 50e6))
    assert speedup["perfect"] == pytest.approx((100_000 / 20 / 100e6) / (2000 / 50e6))
    assert speedup["real_per_lut"] == pytest.approx(speedup["real"] / 4)


def test_twice_as_many_multipliers():
    one = dense(rows=12, columns=13)
    two = twice(one)
    assert two["hypothetical"] and two["pes"] == 312 and two["luts"]["used"] == 2000
    assert DenseConfig(**two["config"]).pes == 312
    assert two["peak_products_per_s"] == 2 * one["peak_products_per_s"] == 312 * 100e6


@pytest.mark.parametrize(("points", "expected"), [
    ([(0.01, 10), (0.1, 1), (1, 0.1)], (0.1, None)),
    ([(0.01, 100), (1, 0.01)], (0.1, None)),
    ([(0.04, 4), (0.16, 0.25)], (0.08, None)),
    ([(0.1, 0.9), (1, 0.1)], (None, "loses")),
    ([(0.1, 9), (1, 1)], (None, "wins")),
])  # fmt: skip
def test_crossing(points, expected):
    result = crossing([{"combined": x, "speedup": y} for x, y in points])
    even, always = expected
    assert result["always"] == always
    assert result["break_even"] == (None if even is None else pytest.approx(even))


def curves(utilization=0.5):
    """Of an array that reaches the same utilisation at every density."""
    points = [{"masks": masks, "density": d, "utilization": utilization,
               "speedup_vs_dense": utilization / d ** len(masks)}
              for masks in ("a", "ab") for d in (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)]  # fmt: skip
    return {"layer": "a layer", "points": points}


def test_break_even_of_a_constant_utilisation():
    """Then it lies where sparse PEs x clock x utilisation / density = dense PEs x clock x utilisation."""
    small, big = sparse(), dense()
    result = break_even(small, [big], curves())
    cycles = product_cycles(4, 5, *CURVE_PRODUCT)
    expected = 10 * 50 * 0.5 / (CURVE_MACS / cycles * 100)
    assert [curve["masks"] for curve in result["curves"]] == ["a", "ab"]
    for curve in result["curves"]:
        assert curve["break_even"] == pytest.approx(expected, rel=1e-6)
        assert curve["points"][0]["combined"] == pytest.approx(0.05 ** len(curve["masks"]))


def test_layer_of_the_curves():
    work = ConvWork(_SHAPE, _WEIGHTS, None, None, None, 1, ((1, 1), (1, 1)))
    assert work.macs()[0] == CURVE_MACS
    (sizes,) = layer_products(Layer(network="n", layer="l", batch=1, in_channels=64, out_channels=64, in_height=28,
                                    in_width=28, kernel_height=3, kernel_width=3, padding=1), "forward")  # fmt: skip
    assert sizes == CURVE_PRODUCT


def test_mask_ports():
    costs = [{"skip": "a", **sparse(luts=1000)}, {"skip": "abc", **sparse(luts=2000, clock=40)}]
    ablation = [{"skip": "a", "networks": [{"network": "net", "cycles": 900}]},
                {"skip": "abc", "networks": [{"network": "net", "cycles": 300}]}]  # fmt: skip
    first, last = mask_ports(costs, ablation)
    assert first["luts_per_pe"] == 100 and last["luts_per_pe"] == 200
    assert first["networks"] == [{"network": "net", "cycles": 900, "gain": 1.0, "net": 1.0}]
    (own,) = last["networks"]
    assert own["gain"] == 3.0 and own["net"] == pytest.approx(3.0 * 0.8 / 2)


def test_plot():
    text = plot(break_even(sparse(), [dense(), twice(dense())], curves()), {"dense": "20 PEs < 30"})
    root = ElementTree.fromstring(text)
    lines = root.findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 4 and "20 PEs &lt; 30" in text and "NaN" not in text
    assert not [attribute for element in root.iter() for attribute in element.attrib if "href" in attribute]


# ---------------------------------------------------------------------- carries


def test_only_carries_that_cannot_matter_are_cut():
    def cell(table, cin, cout, d0="1"):
        wires = {"D0": [d0], "CIN": [cin], "COUT": [cout], "S0": [90 + cout]}
        return {"type": "CCU2C", "parameters": {"INIT0": table}, "connections": wires}

    passes, makes = format(0x6AAA, "016b"), format(0x000F, "016b")
    cells = {"first": cell(makes, "0", 2), "second": cell(passes, 2, 3), "add": cell(passes, "0", 4),
             "open": cell(makes, "0", 5, d0="0")}  # fmt: skip
    netlist = {"modules": {"top": {"cells": cells, "ports": {"o": {"bits": [4]}}}}}
    assert trim_carries(netlist) == 3
    assert cells["first"]["connections"]["CIN"] == ["x"] and cells["first"]["connections"]["COUT"] == [2]
    assert cells["second"]["connections"]["CIN"] == [2] and cells["second"]["connections"]["COUT"] == ["x"]
    assert cells["add"]["connections"]["CIN"] == ["0"] and cells["add"]["connections"]["COUT"] == [4]
    assert cells["open"]["connections"]["CIN"] == ["0"]


def ram_and_registers(**change):
    """A block RAM with two outputs in use, and a register behind each."""
    ram = {
        "type": "DP16KD",
        "parameters": {"REGMODE_A": "NOREG", "REGMODE_B": "NOREG"},
        "connections": {"CLKB": [2], "CEB": ["1"], "ADB0": [3], "DOB0": [10], "DOB1": [11], "DOB2": [12]},
        "port_directions": {"CLKB": "input", "CEB": "input", "ADB0": "input",
                            "DOB0": "output", "DOB1": "output", "DOB2": "output"},
    }
    cells = {"ram": ram}
    for n in range(2):
        parameters = {"CEMUX": "1 ", "CLKMUX": "CLK", "REGSET": "RESET"}
        wires = {"CLK": [2], "DI": [10 + n], "LSR": ["0"], "Q": [20 + n]}
        if n:
            parameters |= change.get("parameters", {})
            wires |= change.get("wires", {})
        directions = {port: "output" if port == "Q" else "input" for port in wires}
        cells[f"ff{n}"] = {"type": "TRELLIS_FF", "parameters": parameters, "connections": wires,
                           "port_directions": directions}  # fmt: skip
    outs = {"direction": "output", "bits": [20, 21, *change.get("bits", [])]}
    return {"modules": {"top": {"cells": cells, "ports": {"o": outs}}}}


def test_registers_behind_block_ram_are_its_own():
    netlist = ram_and_registers()
    assert register_outputs(netlist) == 2
    (ram,) = netlist["modules"]["top"]["cells"].values()
    assert ram["parameters"] == {"REGMODE_A": "OUTREG", "REGMODE_B": "OUTREG"}
    assert ram["connections"]["DOB0"] == [20] and ram["connections"]["DOB1"] == [21]
    assert ram["connections"]["OCEA"] == ram["connections"]["OCEB"] == ["1"]
    assert register_outputs(netlist) == 0


@pytest.mark.parametrize("change", [
    {"parameters": {"CEMUX": "CE"}}, {"parameters": {"CLKMUX": "INV"}}, {"parameters": {"REGSET": "SET"}},
    {"wires": {"LSR": [4]}}, {"wires": {"CLK": [5]}}, {"wires": {"DI": [13]}, "bits": [11]}, {"bits": [11]},
])  # fmt: skip
def test_other_registers_stay(change):
    """With an enable, a reset, another clock, an output without register, or one that goes elsewhere too."""
    netlist = ram_and_registers(**change)
    before = json.dumps(netlist)
    assert register_outputs(netlist) == 0 and json.dumps(netlist) == before


# ---------------------------------------------------------------------- records and cache


def test_records():
    one = sparse()
    assert one["pes"] == 10 and one["peak_products_per_s"] == 5e8
    assert one["luts"] == {"used": 4000, "available": 83640} and one["dsps"]["used"] == 20
    cells = {"luts": 83640, "ffs": 83640, "brams": 208, "dsps": 156}
    built = {"pes": 48, "fmax_mhz": 81.5, "config": preset("small").to_dict()}
    built |= {key: {"used": 7, "available": most, "percent": 1} for key, most in cells.items()}
    assert record(built, "sparse")["brams"] == {"used": 7, "available": 208}


@pytest.mark.parametrize(("change", "message"), [
    ({"pes": None}, "not a routed array"),
    ({"fmax_mhz": 0}, "must be positive"),
    ({"used": {"TRELLIS_COMB": (9, 24288)}}, "not of an LFE5U-85F"),
    ({"used": {"TRELLIS_COMB": 9}}, "not a routed array"),
])  # fmt: skip
def test_bad_records(change, message):
    with pytest.raises(MaskworkValueError, match=f"^r.json: .*{message}") as caught:
        record({**routed(4, 100, 500, {}), **change}, "sparse", "r.json")
    assert "\n" not in str(caught.value)


def test_a_list_of_records_gives_the_fastest(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps([routed(4, 100, 500, {}), routed(6, 90, 500, {}), routed(5, 100, 500, {})]))
    assert read_record(str(path), "sparse")["pes"] == 6
    for text in ("[]", "[3]", "3"):
        path.write_text(text)
        with pytest.raises(MaskworkValueError, match="a routed array, or a list of them, is expected"):
            read_record(str(path), "sparse")


def test_cache(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"answer": (1, 2)}

    cache = Cache(str(tmp_path / "new"))
    assert cache.get("step", {"n": 1}, make) == cache.get("step", {"n": 1}, make) == {"answer": [1, 2]}
    assert len(made) == 1
    cache.get("step", {"n": 2}, make)
    assert len(made) == 2 and len(list((tmp_path / "new").iterdir())) == 2
    for path in (tmp_path / "new").iterdir():
        path.write_text(path.read_text()[:20])
    assert cache.get("step", {"n": 1}, make) == {"answer": [1, 2]} and len(made) == 3
    only = Cache(str(tmp_path / "new"), only=True)
    assert only.get("step", {"n": 1}, make) == {"answer": [1, 2]}
    with pytest.raises(MaskworkError, match=r"^step is not in .*: run without --no-route$"):
        only.get("step", {"n": 3}, make)
    assert len(made) == 3


# ---------------------------------------------------------------------- the command


@pytest.fixture
def workload(tmp_path):
    layer = {name: getattr(LAYER, name) for name in COLUMNS}
    layer |= {"passes": "forward+input_grad", "density_input": 0.4, "density_weight": 0.5}
    path = tmp_path / "net.csv"
    path.write_text(",".join(COLUMNS) + "\n" + ",".join(str(layer[name]) for name in COLUMNS) + "\n")
    return path


@pytest.mark.slow
def test_command(workload, tmp_path, monkeypatch, capsys):
    """From results of place and route, the whole result; a second time from the cache alone."""
    one = {"rows": 4, "columns": 5, "dsps": None, "width": 9, "acc_width": 32}
    (tmp_path / "sparse.json").write_text(json.dumps(routed(16, 90.0, 9000, preset("small").to_dict())))
    (tmp_path / "one.json").write_text(json.dumps(routed(20, 120.0, 900, one)))
    (tmp_path / "soft.json").write_text(json.dumps(routed(30, 110.0, 3900, {**one, "columns": 8, "dsps": 9})))
    monkeypatch.setattr("maskwork.gen.bench_curves.DENSITIES", (0.1, 1.0))
    arguments = [str(workload), "--sparse", str(tmp_path / "sparse.json"), "--cache", str(tmp_path / "cache"),
                 "--dense", str(tmp_path / "one.json"), "--dense", str(tmp_path / "soft.json")]  # fmt: skip
    files = ["--write", str(tmp_path / "c.json"), "--svg", str(tmp_path / "c.svg")]
    assert cli_common.run_command(compare, [*arguments, *files]) == 0
    result = json.loads((tmp_path / "c.json").read_text())
    assert result["format"] == "maskwork-compare" and result["version"] == 1
    assert [array["name"] for array in result["arrays"]] == ["sparse", "dense", "dense-soft", "dense-9x9"]
    (network,) = result["networks"]
    assert network["network"] == "net" and [p["pass"] for p in network["passes"]] == ["forward", "input_grad"]
    assert len(network["layers"]) == 2 and network["speedup"].keys() == {"dense", "dense-soft", "dense-9x9"}
    total = sum(own["arrays"]["sparse"]["cycles"] for own in network["layers"])
    assert total == network["arrays"]["sparse"]["cycles"] > 0
    assert {c["masks"] for c in result["break_even"]["curves"]} == {"a", "ab", "ac", "abc"}
    assert ElementTree.parse(tmp_path / "c.svg").getroot().tag.endswith("svg")
    shown = capsys.readouterr().out
    assert "dense-soft" in shown and "sparse wins below" in shown
    assert cli_common.run_command(compare, [*arguments, "--no-route", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result
    assert cli_common.run_command(compare, [*arguments, "--no-route", "--skips", "a,abc"]) == 2
    assert "run without --no-route" in capsys.readouterr().err
    # a pass that is requantised (here its parameters cost more than is saved) alone takes other cycles
    assert cli_common.run_command(compare, [*arguments, "--requantise", "input_grad", "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert (result["requantise"], other["requantise"]) == ([], ["input_grad"])
    before, after = ([p["arrays"] for p in one["networks"][0]["passes"]] for one in (result, other))
    assert after[0] == before[0] and after[1]["dense"] == before[1]["dense"]
    bench = Bench(workload, preset("small"), passes=["input_grad"], requantise=["input_grad"]).run()
    assert after[1]["sparse"]["cycles"] == bench["layers"][0]["cycles"] != before[1]["sparse"]["cycles"]


@pytest.mark.slow
def test_arrays_are_routed_for_clocks_of_their_own(workload, tmp_path, monkeypatch):
    """The clock after "@", else that of --freq; the fastest of a kind counts."""
    (tmp_path / "sparse.json").write_text(json.dumps(routed(16, 90.0, 9000, preset("small").to_dict())))
    monkeypatch.setattr("maskwork.gen.bench_curves.DENSITIES", (0.1, 1.0))
    aims = []

    def made(config, folder, freq, seeds, progress):
        aims.append((config.rows, config.columns, config.dsps, freq))
        return routed(config.pes, float(freq), 900, dataclasses.asdict(config))

    monkeypatch.setattr("maskwork.fpga.dense.steps.routed_dense", made)
    shapes = ["--dense", "3x4", "--dense", "3x4:5@80", "--dense", "2x4@310"]
    files = ["--sparse", str(tmp_path / "sparse.json"), "--write", str(tmp_path / "c.json")]
    assert cli_common.run_command(compare, [str(workload), *shapes, *files, "--freq", "140"]) == 0
    assert aims == [(3, 4, None, 140), (3, 4, 5, 80), (2, 4, None, 310)]
    arrays = json.loads((tmp_path / "c.json").read_text())["arrays"]
    found = [(array["name"], array["pes"], array["fmax_mhz"]) for array in arrays[1:]]
    assert found == [("dense", 8, 310.0), ("dense-soft", 12, 80.0), ("dense-9x9", 16, 310.0)]


@pytest.mark.parametrize(("arguments", "message"), [
    (["--device", "ecp5-25f"], "--device: unknown device 'ecp5-25f'; devices: ecp5-85f"),
    (["--dense", "12by13"], "--dense 12by13: RxC[:DSPS][@MHZ] or a .json file is expected, such as 18x32:156@80"),
    (["--dense", "1x13"], "rows must be an integer from 2 to 128, not 1"),
    (["--dense", "13x13"], ("dense array of 13 x 13 PEs: does not fit: needs 169 of 156 multipliers; fewer rows or "
                            "columns, or R x C:DSPS with fewer DSP blocks")),
    (["--dense", "9x99:0"], "dense array of 9 x 99 PEs: does not fit: needs 306 of 208 block RAMs; fewer columns"),
    (["--dense", "3x4@0"], "--dense 3x4@0: MHZ must be an integer from 1 to 1000, not 0"),
    (["--dense", "3x4:13"], "dsps must be an integer from 0 to 12 (the PEs), not 13"),
    (["--skips", "a,d"], "--skips a,d: 'd' is not made of the letters a, b and c, each once"),
    (["--requantise", "forward,"], "--requantise forward,: names with commas between are expected"),
    (["--requantise", "back"], "requantise: unknown pass 'back'; passes: forward, input_grad, weight_grad"),
    (["--no-route"], "--no-route needs --cache DIR, where the results are"),
    (["--sparse", "none.json"], "none.json: cannot be read (No such file or directory); a JSON file is expected"),
    (["--dense", "none.json"], "none.json: cannot be read (No such file or directory); a JSON file is expected"),
])  # fmt: skip
def test_bad_input(workload, arguments, message, capsys):
    assert cli_common.run_command(compare, [str(workload), *arguments]) == 2
    assert capsys.readouterr().err == f"maskwork: error: {message}\n"


def test_sparse_results_are_no_dense_ones(workload, tmp_path, capsys):
    path = tmp_path / "sparse.json"
    path.write_text(json.dumps(routed(16, 90.0, 9000, preset("small").to_dict())))
    assert cli_common.run_command(compare, [str(workload), "--sparse", str(path), "--dense", str(path)]) == 2
    assert "the file is of a sparse array; one of a dense array is expected" in capsys.readouterr().err


def test_help():
    text = CliRunner().invoke(compare, ["--help"]).output
    assert "maskwork compare" in text and "--no-route" in text
