"""The command line and the Python interface: the same numbers everywhere, and one line for every bad input."""

import json
import os
import re
import subprocess
import sys

import maskwork as mw
import numpy as np
import pytest
from maskwork.gen import cli_common
from maskwork.gen.cli import cli
from maskwork.gen.generate import generate
from maskwork.gen.matmul import Product
from maskwork.gen.measure import longest_first, resident_program
from maskwork.gen.memories import memory_bits
from maskwork.gen.report import REASONS, pe_cycles
from maskwork.sim_tb import tools
from maskwork.sim_tb.golden import macs, masked_matmul

needs_icarus = pytest.mark.skipif(not tools.have_icarus(), reason="Icarus Verilog is not on PATH")
icarus = pytest.param("icarus", marks=[pytest.mark.icarus, needs_icarus])
both = pytest.mark.parametrize("simulator", [pytest.param("verilator", marks=pytest.mark.slow), icarus])

KEYS = {"target", "config", "pes", "macs_dense", "macs_effectual", "words_in", "words_out", "seconds", "bound"}
TIMED = {"cycles", "compute_cycles", "pe_cycles", "utilization", "speedup_vs_dense"}


def random_operand(rng, shape, density, low=-128, high=128):
    return rng.integers(low, high, shape) * (rng.random(shape) < density)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A directory with operands and masks, and with files that are none."""
    rng = np.random.default_rng(7)
    a, b = random_operand(rng, (9, 20), 0.5).astype(np.int8), random_operand(rng, (20, 13), 0.5, 0, 256)
    arrays = {
        "a": a, "b": b.astype(np.uint8), "ma": rng.random((9, 20)) < 0.7, "mb": rng.random((20, 13)) < 0.7,
        "mc": rng.random((9, 13)) < 0.5, "ints": (rng.random((9, 13)) < 0.5).astype(np.int32),
        "float": a.astype(np.float32), "wide": np.full((9, 20), 300, np.int16), "vector": np.ones(20, np.int8),
        "empty": np.zeros((0, 20), np.int8), "twos": np.full((9, 13), 2), "long": np.full((1, 9000), 255, np.int16),
        "column": np.full((9000, 1), 255, np.int16), "numbers": np.ones((9, 20)),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "archive.npz", a=a)
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:200])
    (tmp_path / "header.npy").write_bytes(whole[:20])
    (tmp_path / "huge.npy").write_bytes(whole[:10] + whole[10:].replace(b"(9, 20)", b"(9999999, 2000000)"))
    (tmp_path / "garbage.npy").write_bytes(bytes(range(256)))
    (tmp_path / "pickle.npy").write_bytes(b"\x80\x04N.")
    (tmp_path / "zero.toml").write_text('preset = "tiny"\nlanes = 0\n')
    (tmp_path / "key.toml").write_text("lane = 4\n")
    (tmp_path / "broken.toml").write_text("lanes = = 4\n")
    (tmp_path / "good.toml").write_text('preset = "tiny"\nname = "mine"\nacc_width = 40\npost = false\n')
    (tmp_path / "program.mwp").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args):
    return cli_common.run_command(cli, [str(arg) for arg in args])


def load(*names):
    return [np.load(f"{name}.npy") for name in names]


# ---------------------------------------------------------------------- matmul


@both
def test_targets_agree(folder, simulator, capsys):
    common = ("matmul", "--a", "a.npy", "--b", "b.npy", "--preset", "tiny")
    masks = ("--a-mask", "ma.npy", "--b-mask", "mb.npy", "--c-mask", "mc.npy")
    a, b, ma, mb, mc = load("a", "b", "ma", "mb", "mc")
    all_masks = {"a_mask": ma, "b_mask": mb, "c_mask": mc}
    for number, (options, given) in enumerate([((), {}), (masks, all_masks), ((*masks, "--dense"), all_masks)]):
        dense = "--dense" in options
        expected, counts = masked_matmul(a, b, **given), macs(a, b, **given, dense=dense)
        for target, more in (("golden", ()), ("cycle", ()), ("rtl", ("--simulator", simulator))):
            paths = f"{target}{number}.npy", f"{target}{number}.json"
            outputs = ("-o", paths[0], "--report", paths[1], "--json")
            assert run(*common, *options, "--target", target, *more, *outputs) == 0
            c, report = np.load(paths[0]), json.loads((folder / paths[1]).read_text())
            assert c.dtype == np.int32 and np.array_equal(c, expected)
            assert report == json.loads(capsys.readouterr().out)
            assert {key: report[key] for key in counts} == counts
            assert set(report) == (KEYS if target == "golden" else KEYS | TIMED)
        modelled = json.loads((folder / f"cycle{number}.json").read_text())
        assert {**modelled, "target": "rtl", "seconds": report["seconds"]} == report
        total = report["cycles"] * report["pes"]
        assert list(report["pe_cycles"]) == list(REASONS) and sum(report["pe_cycles"].values()) == total
        assert report["pe_cycles"]["ineffectual"] == 0
        assert report["pe_cycles"]["effectual"] == counts["macs_effectual"]
        assert report["utilization"] == counts["macs_effectual"] / total <= 1
        assert report["speedup_vs_dense"] == counts["macs_dense"] / report["pes"] / report["cycles"]
        assert report["compute_cycles"] < report["cycles"]


@pytest.mark.icarus
@needs_icarus
@pytest.mark.parametrize("skip", ["", "a", "bc"])
def test_masks_that_cannot_skip_cost_multiplies(folder, skip):
    a, b, mc = load("a", "b", "mc")
    config = mw.preset("tiny").replace(skip=skip)
    result = mw.matmul(a, b, c_mask=mc, config=config, target="rtl", simulator="icarus")
    assert np.array_equal(result.c, masked_matmul(a, b, c_mask=mc))
    report = result.report
    assert report["pe_cycles"]["ineffectual"] > 0 and report["pe_cycles"]["effectual"] == report["macs_effectual"]
    assert sum(report["pe_cycles"].values()) == report["cycles"] * report["pes"]


def test_int64_results_from_a_toml_configuration(folder, capsys):
    assert run("matmul", "--a", "long.npy", "--b", "column.npy", "--config", "good.toml", "--target", "golden",
               "-o", "c.npy") == 0  # fmt: skip
    c = np.load("c.npy")
    assert c.dtype == np.int64 and c == 9000 * 255 * 255
    assert "C (1, 1) int64 on target golden, mine (2 PEs)" in capsys.readouterr().out


def test_program_file_and_its_listing(folder, capsys):
    assert run("matmul", "--a", "a.npy", "--b", "b.npy", "--c-mask", "ints.npy", "--target", "golden",
               "--program", "p.mwp") == 0  # fmt: skip
    capsys.readouterr()
    assert run("disasm", "p.mwp") == 0
    listing = capsys.readouterr().out
    assert "LOAD_A" in listing and "RUN" in listing and "; operand c_mask: c_mask (9, 13)" in listing


@pytest.mark.icarus
@needs_icarus
def test_waveforms(folder):
    assert run("matmul", "--a", "a.npy", "--b", "b.npy", "--preset", "tiny", "--simulator", "icarus", "--trace",
               "w.vcd") == 0  # fmt: skip
    text = (folder / "w.vcd").read_text()
    assert "$enddefinitions" in text and "o__payload" in text


# ---------------------------------------------------------------------- bad input

AB = ("--a", "a.npy", "--b", "b.npy")
BAD = {
    "missing": (("--a", "none.npy", "--b", "b.npy"), r"none\.npy: cannot be read \(No such file"),
    "folder": (("--a", ".", "--b", "b.npy"), r"\.: cannot be read"),
    "cut": (("--a", "cut.npy", "--b", "b.npy"), r"cut\.npy: a truncated or broken \.npy"),
    "header": (("--a", "header.npy", "--b", "b.npy"), r"header\.npy: a truncated or broken"),
    "huge": (("--a", "huge.npy", "--b", "b.npy"), r"huge\.npy: a truncated or broken"),
    "garbage": (("--a", "garbage.npy", "--b", "b.npy"), r"garbage\.npy: not a NumPy array file"),
    "pickle": (("--a", "a.npy", "--b", "pickle.npy"), r"pickle\.npy: not a NumPy array file"),
    "objects": (("--a", "a.npy", "--b", "objects.npy"), r"objects\.npy: holds Python objects"),
    "archive": (("--a", "archive.npz", "--b", "b.npy"), r"archive\.npz: not a NumPy array file"),
    "float": (("--a", "float.npy", "--b", "b.npy"), r"float\.npy: must be an array of integers .*, not float32"),
    "range": (("--a", "wide.npy", "--b", "b.npy"), r"wide\.npy: must lie in -256\.\.255 \(9 bits, signed\), not 300"),
    "narrow": ((*AB, "--set", "b_width=8"), r"b\.npy: must lie in -128\.\.127"),
    "axes": (("--a", "vector.npy", "--b", "b.npy"), r"vector\.npy: must be a matrix .* not of shape \(20,\)"),
    "empty": (("--a", "empty.npy", "--b", "b.npy"), r"empty\.npy: must be a matrix .* not of shape \(0, 20\)"),
    "inner": (("--a", "a.npy", "--b", "a.npy"), r"a\.npy: must have 20 rows, .* not shape \(9, 20\)"),
    "a mask": ((*AB, "--a-mask", "mb.npy"), r"mb\.npy: mask must have shape \(9, 20\), not \(20, 13\)"),
    "vector mask": ((*AB, "--a-mask", "vector.npy"), r"vector\.npy: mask must have shape \(9, 20\)"),
    "c mask": ((*AB, "--c-mask", "ma.npy"), r"ma\.npy: mask must have shape \(9, 13\)"),
    "mask dtype": ((*AB, "--a-mask", "numbers.npy"), r"numbers\.npy: mask must be an array of bool .* not float64"),
    "mask values": ((*AB, "--c-mask", "twos.npy"), r"twos\.npy: mask must hold only 0 and 1"),
    "overflow": (("--a", "long.npy", "--b", "column.npy", "--set", "acc_width=24"), r"at most 8388607 fits acc_width"),
    "preset": ((*AB, "--preset", "huge"), r"unknown preset 'huge'; presets: tiny, small"),
    "key": ((*AB, "--set", "lane=4"), r"unknown key 'lane'; known keys: name, lanes"),
    "value": ((*AB, "--set", "lanes=many"), r"lanes must be an integer"),
    "equals": ((*AB, "--set", "lanes"), r"key=value is expected"),
    "lanes": ((*AB, "--set", "lanes=0"), r"lanes must be an integer from 1 to 256, not 0"),
    "slots": ((*AB, "--set", "slots=12"), r"slots must be a power of two"),
    "toml value": ((*AB, "--config", "zero.toml"), r"zero\.toml: lanes must be"),
    "toml key": ((*AB, "--config", "key.toml"), r"key\.toml: unknown key 'lane'"),
    "toml": ((*AB, "--config", "broken.toml"), r"broken\.toml: not a TOML file"),
    "no toml": ((*AB, "--config", "none.toml"), r"none\.toml: cannot be read"),
    "two": ((*AB, "--config", "good.toml", "--preset", "tiny"), r"exclude each other"),
    "cycle trace": ((*AB, "--target", "cycle", "--trace", "w.vcd"), r"--trace needs --target rtl, not cycle"),
    "cycle sim": ((*AB, "--target", "cycle", "--simulator", "icarus"), r"--simulator needs --target rtl, not cycle"),
    "serial": ((*AB, "--target", "serial:/dev/x"), r"/dev/x: no such port"),
    "target": ((*AB, "--target", "fpga"), r"unknown target 'fpga'; targets: golden, cycle, rtl"),
    "simulator": ((*AB, "--simulator", "x"), r"unknown simulator 'x'; simulators: verilator, icarus"),
    "trace": ((*AB, "--target", "golden", "--trace", "w.vcd"), r"--trace needs --target rtl"),
    "tile": ((*AB, "--trace", "w.vcd", "--trace-tile", "5"), r"--trace-tile must be .* not 5: the program has \d RUN"),
    "tile -1": ((*AB, "--trace", "w.vcd", "--trace-tile", "-1"), r"--trace-tile must be from 0 to \d, not -1"),
    "tile of nothing": ((*AB, "--trace-tile", "0"), r"--trace-tile needs --trace"),
    "golden tile": ((*AB, "--target", "golden", "--trace-tile", "0"), r"--trace-tile needs --trace"),
    "fst": ((*AB, "--trace", "w.fst"), r"ends with \.vcd is expected"),
    "no folder": ((*AB, "-o", "none/c.npy"), r"-o none/c\.npy: cannot be written"),
    "to folder": ((*AB, "-o", "."), r"-o \.: cannot be written \(it is a directory\)"),
    "same": ((*AB, "-o", "x", "--report", "x"), r"--report x: already the name of another output"),
    "option": (("--a", "a.npy"), r"Missing option '--b'"),
    "board": ((*AB, "--board", "ulx3s"), r"No such option"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_matmul(folder, capsys, case):
    args, message = BAD[case]
    before = sorted(os.listdir())
    outputs = () if "-o" in args else ("-o", "c.npy", "--report", "r.json", "--program", "out.mwp")
    target = () if "--target" in args or "--trace" in args or "--simulator" in args else ("--target", "golden")
    assert run("matmul", *args, *outputs, *target) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and re.fullmatch(r"maskwork: error: [^\n]*\n", captured.err)
    assert re.search(message, captured.err)
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    "args, message",
    [
        (("generate", "-o", "a.npy"), r"a\.npy: cannot be written"),
        (("generate",), r"Missing option '-o'"),
        (("generate", "-o", "out", "--preset", "x"), r"unknown preset 'x'"),
        (("generate", "-o", "out", "--set", "name=9"), r"name must start with a letter"),
        (("disasm", "none.mwp"), r"none\.mwp: cannot be read"),
        (("disasm", "a.npy"), r"a\.npy: not a program file"),
        (("disasm", "program.mwp"), r"program\.mwp: not a program file"),
        (("speed", "--cycles", "3"), r"--cycles must be from 1000"),
        (("speed", "--runs", "0"), r"--runs must be from 1 to 1000"),
        (("speed", "--target", "golden"), r"--target must be rtl or cycle to measure speed, not 'golden'"),
        (("utilization", "--skips", "x"), r"skip must hold"),
        (("utilization", "--skips", "abc", "--rows", "64", "--inner", "1040"), r"k \+ rows must be at most k_depth"),
        (("utilization", "--skips", "abc", "--rows", "500"), r"the rows of A take 22500 words of a bank; at most"),
        (("build", "--board", "ulx3s", "-o", "x"), r"--board: unknown board 'ulx3s'; boards: ulx3s-85f, "),
        (("built",), r"No such command 'built'"),
        ((), r"Missing command"),
    ],
)
def test_bad_commands(folder, capsys, args, message):
    before = sorted(os.listdir())
    assert run(*args) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and re.fullmatch(r"maskwork: error: [^\n]*\n", captured.err)
    assert re.search(message, captured.err) and sorted(os.listdir()) == before


def test_nothing_is_left_when_an_output_fails(folder, capsys, monkeypatch):
    def fail(path, values):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(cli_common, "write_json", fail)
    before = sorted(os.listdir())
    args = ("matmul", *AB, "--target", "golden", "-o", "c.npy", "--report", "r.json")
    assert run(*args) == 2 and "No space left" in capsys.readouterr().err
    assert sorted(os.listdir()) == before

    def interrupt(self, target, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Product, "run", interrupt)
    assert run(*args) == 130 and sorted(os.listdir()) == before


def test_outputs_that_are_no_files(folder):
    (folder / "link.npy").symlink_to("real.npy")
    assert run("matmul", *AB, "--target", "golden", "-o", "link.npy", "--report", os.devnull) == 0
    assert (folder / "link.npy").is_symlink() and np.array_equal(*load("link", "real"))
    assert not os.path.isfile(os.devnull)


def test_help_is_quick_and_shows_examples(capsys):
    for name in cli.commands:
        assert run(name, "--help") == 0
        assert re.search(rf"Examples:\n( .*\n)* +maskwork {name}\b", capsys.readouterr().out)
    check = (
        "import sys; from maskwork.gen import cli, cli_common as c; c.run_command(cli.cli, ['--help']);"
        "sys.exit(bool({'amaranth', 'rich', 'sklearn', 'maskwork.sim_tb'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", check], capture_output=True).returncode == 0


# ---------------------------------------------------------------------- presets, generate, measurements


def test_presets(capsys):
    assert run("presets") == 0
    table = capsys.readouterr().out
    assert all(name in table for name in mw.presets())
    assert run("presets", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert {entry["name"]: entry["pes"] for entry in listed} == {n: c.pes for n, c in mw.presets().items()}
    assert all(entry["memory_bytes"] == -(-sum(entry["memory_bits"].values()) // 8) for entry in listed)


@pytest.mark.parametrize(
    "changes", [{}, {"skip": "a", "rows_in_flight": 4, "fifo_depth": 128}, {"post": False, "acc_width": 40}]
)
def test_memories_are_those_of_the_netlist(changes):
    config = mw.preset("tiny").replace(**changes)
    text = generate(config).text
    names = ("pe", "weight_masks", "accumulators", "drain", "lane_fifo", "c_buffer", "a_buffer", "post_process")
    found = {"tiny_" + name: 0 for name in names}
    for module in re.split(r"^module ", text, flags=re.MULTILINE)[1:]:
        name = module.split("(")[0].strip()
        for width, memory, depth in re.findall(r"^  reg \[(\d+):0\] \\?(\S+) +\[(\d+):0\];", module, re.MULTILINE):
            if name in found and memory != "headers":
                found[name] += (int(width) + 1) * (int(depth) + 1)
    bits = memory_bits(config)
    assert config.pes * found["tiny_pe"] == bits["weights"]
    assert config.lanes * found["tiny_weight_masks"] == bits["weight_masks"]
    assert config.pes * found["tiny_accumulators"] == bits["accumulators"]
    assert found["tiny_drain"] == bits["partial_sums"] and found["tiny_lane_fifo"] == bits["lane_fifos"]
    assert found["tiny_c_buffer"] == bits["c_masks"] and found["tiny_post_process"] == bits["parameters"]
    assert found["tiny_a_buffer"] == bits["activations"] + bits["segments"]


def test_generate(tmp_path, capsys):
    assert run("generate", "--preset", "tiny", "-o", tmp_path / "x") == 0
    assert sorted(os.listdir(tmp_path / "x")) == ["tiny.json", "tiny.sv"]
    manifest = json.loads((tmp_path / "x" / "tiny.json").read_text())
    out = capsys.readouterr().out
    assert manifest["sha256"] in out and f"{manifest['modules']} modules, {manifest['bytes']} bytes" in out
    assert run("generate", "--preset", "tiny", "-o", tmp_path / "x", "--verilog", "--json") == 0
    assert json.loads(capsys.readouterr().out)["language"] == "Verilog-2005"


@pytest.mark.slow
def test_speed_and_utilization(capsys):
    assert run("speed", "--preset", "tiny", "--cycles", "20000", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["cycles"] > 5000 and result["cycles_per_second"] == result["cycles"] / result["seconds"]
    assert result["seconds"] == min(result["seconds_of_runs"]) and len(result["seconds_of_runs"]) == 5
    assert run("speed", "--preset", "tiny", "--cycles", "20000", "--runs", "3", "--target", "cycle", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["ratios"]) == 3 == len(result["rtl"]["seconds_of_runs"])
    assert len(result["cycle"]["seconds_of_runs"]) == 3
    assert result["rtl"]["cycles"] == result["cycle"]["cycles"]
    assert result["cycle"]["macs_per_second"] == result["cycle"]["macs_effectual"] / result["cycle"]["seconds"]
    assert result["ratio"] == result["cycle"]["cycles_per_second"] / result["rtl"]["cycles_per_second"] > 1
    assert run("speed", "--preset", "tiny", "--cycles", "20000", "--target", "cycle") == 0
    assert re.search(r"tiny \(2 PEs\) on the cycle model: .*\n  [\d.]+ times as fast", capsys.readouterr().out)
    shape = ("--rows", "24", "--inner", "32", "--columns", "32")
    assert run("utilization", "--preset", "tiny", "--skips", "abc", *shape, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert len(rows) == 5 and rows[0]["utilization"]["abc"] > 0.8
    assert all(0 < row["utilization"]["abc"] <= 1 for row in rows)
    assert run("utilization", "--preset", "tiny", "--skips", "abc", "--longest-first", *shape) == 0
    assert "densities of A, B and C" in capsys.readouterr().out


@pytest.mark.parametrize(("rows", "clusters"), [(256, 4), (7, 3), (5, 1), (2, 4)])
def test_longest_first(rows, clusters):
    """Every row once; blocks that begin with their longest row and differ by less than one row's work."""
    work = np.random.default_rng(rows).integers(0, 1000, rows)
    order = longest_first(work, clusters)
    assert sorted(order) == list(range(rows))
    if rows % clusters == 0:
        blocks = work[order].reshape(clusters, -1)
        assert (np.diff(blocks, axis=1) <= 0).all() and np.ptp(blocks.sum(axis=1)) <= work.max()


def test_a_resident_program_loads_before_it_runs():
    program = resident_program(mw.preset("sim-64").replace(k_depth=128), (64, 100, 128), True)
    order = [command["op"].split("_")[0] for command in program.commands]
    assert order == sorted(order, key=["BEGIN", "LOAD", "RUN", "SYNC"].index) and order.count("RUN") == 2


def test_counters_that_contradict_the_masks():
    config = mw.preset("tiny")
    counters = dict.fromkeys(REASONS[2:], 0) | {"multiply": 10, "idle": 10, "cycles": 10}
    assert pe_cycles(config, counters, 10)["ineffectual"] == 0
    for effectual in (9, 11):
        with pytest.raises(mw.DeviceError, match="10 multiplies"):
            pe_cycles(config, counters, effectual)
    with pytest.raises(mw.DeviceError, match="sum to 21"):
        pe_cycles(config, counters | {"drain": 1}, 10)
