"""Netlists: each distinct component once, the same bytes every time, files that are whole or absent."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from amaranth.hdl import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config, presets
from maskwork.gen.errors import MaskworkError, MaskworkValueError
from maskwork.gen.generate import emit, generate, module_name, write_files
from maskwork.gen.isa import COUNTERS, ISA_VERSION
from maskwork.rtl.hierarchy import Hierarchy, elaborate_all, module_count, submodule

BEAT = data.StructLayout({"data": 32, "last": 1})


class Inverter(wiring.Component):
    """Combinational: its module has no clock."""

    def __init__(self, width):
        self.width = width
        super().__init__({"x": In(width), "y": Out(width)})

    def hierarchy_key(self):
        return (self.width,)

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.y.eq(~self.x)
        return m


class Table(wiring.Component):
    """Memory with initial values and an asynchronous read port."""

    def __init__(self, init):
        self.init = tuple(init)
        super().__init__({"addr": In(range(len(init))), "data": Out(8)})

    def hierarchy_key(self):
        return (self.init,)

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = table = memory.Memory(shape=8, depth=len(self.init), init=self.init)
        read = table.read_port(domain="comb")
        write = table.write_port()
        m.d.comb += [read.addr.eq(self.addr), self.data.eq(read.data), write.data.eq(self.addr)]
        return m


class Stage(wiring.Component):
    """Clocked, with struct payloads and components of its own."""

    def __init__(self, offset=0):
        self.offset = offset
        super().__init__({"i": In(stream.Signature(BEAT)), "o": Out(stream.Signature(BEAT))})
        self.spare = Inverter(3)  # made in the constructor: must not count as forgotten when the stage is a repetition

    def hierarchy_key(self):
        return (self.offset,)

    def elaborate(self, platform):
        m = Module()
        submodule(m, "spare", self.spare, platform)
        inverter = submodule(m, "inverter", Inverter(32), platform)
        table = submodule(m, "table", Table([(7 * i + self.offset) & 0xFF for i in range(16)]), platform)
        m.d.comb += [inverter.x.eq(self.i.payload.data), table.addr.eq(self.i.payload.data)]
        m.d.comb += self.i.ready.eq(self.o.ready | ~self.o.valid)
        with m.If(self.i.ready):
            m.d.sync += self.o.valid.eq(self.i.valid)
            m.d.sync += self.o.payload.last.eq(self.i.payload.last)
            m.d.sync += self.o.payload.data.eq(inverter.y ^ (table.data << 16))
        return m


class Chain(wiring.Component):
    """Stages in a row."""

    latencies = {"beat": 4}  # noqa: RUF012

    def __init__(self, offsets=(0, 0, 0, 0), stage=Stage):
        self.offsets = offsets
        self.stage = stage
        super().__init__({"i": In(stream.Signature(BEAT)), "o": Out(stream.Signature(BEAT))})

    def elaborate(self, platform):
        m = Module()
        source = wiring.flipped(self.i)
        for index, offset in enumerate(self.offsets):
            stage = submodule(m, f"stage{index}", self.stage(offset), platform)
            wiring.connect(m, source, stage.i)
            source = stage.o
        wiring.connect(m, source, wiring.flipped(self.o))
        return m


class UnkeyedStage(Stage):
    """Says nothing about its identity."""

    hierarchy_key = None


class LyingStage(Stage):
    """Says that all are the same."""

    def hierarchy_key(self):
        return ()


def modules(text):
    return re.findall(r"^module (\S+?)\(", text, re.MULTILINE)


@pytest.mark.parametrize("verilog", [False, True])
def test_each_component_is_emitted_once(verilog):
    text, count = emit(Chain(), "chain", verilog=verilog)
    # Inverter(3) and Inverter(32) are two modules, so are the tables of different offsets
    assert sorted(modules(text)) == ["chain", "chain_inverter", "chain_inverter_2", "chain_stage", "chain_table"]
    assert count == 5
    assert len(re.findall(r"^  chain_stage stage\d \($", text, re.MULTILINE)) == 4


def test_different_keys_are_different_modules():
    text, _ = emit(Chain((0, 1, 0, 1)), "chain", verify=True)
    assert {"chain_stage", "chain_stage_2", "chain_table", "chain_table_2"} <= set(modules(text))


def test_components_without_a_key_are_merged_by_their_text():
    text, _ = emit(Chain((0, 1, 0, 1), UnkeyedStage), "chain")
    assert [name for name in modules(text) if "stage" in name] == ["chain_unkeyed_stage", "chain_unkeyed_stage_2"]


def test_verification_catches_a_key_that_leaves_something_out():
    with pytest.raises(RuntimeError, match=r"not the same hardware .*LyingStage"):
        elaborate_all(Chain((0, 1), LyingStage), "chain", verify=True)


def test_a_combinational_component_has_no_clock():
    text, _ = emit(Chain(), "chain")
    inverter = text[text.index("module chain_inverter(") :].partition("endmodule")[0]
    assert "clk" not in inverter
    stage = text[text.index("module chain_stage(") :].partition("endmodule")[0]
    assert stage.count(".clk(clk)") == 1  # the table's
    assert ".x(i__payload[31:0])" in stage


def test_plain_submodules_have_legal_names():
    class Parent(Chain):
        def elaborate(self, platform):
            m = super().elaborate(platform)
            inner = Module()
            inner.d.sync += Signal(name="toggle").eq(self.i.valid)
            m.submodules.inner = inner
            return m

    text, _ = emit(Parent(), "chain")
    assert "chain__inner" in modules(text)
    assert not [name for name in modules(text) if not re.fullmatch(r"\w+", name)]


def test_hierarchy_ignores_elaboratables_without_ports():
    m = Module()
    table = memory.Memory(shape=8, depth=4, init=[])
    assert submodule(m, "table", table, Hierarchy("top")) is table
    Fragment.get(m, None)


def test_initial_values_survive_and_zeros_become_a_loop():
    init = [0] * 64
    init[3], init[40] = 0x5A, 0xA5
    text, _ = emit(Table(init), "table")
    assert "[3] = 8'h5a;" in text
    assert "[40] = 8'ha5;" in text
    assert "for (index = 4; index <= 39; index = index + 1)" in text
    assert "[20] = " not in text


def test_generate_is_byte_identical(tmp_path):
    config = Config(name="chain-x")
    first = generate(config, tmp_path / "a", top=Chain())
    second = generate(config, tmp_path / "b", top=Chain())
    assert first.text == second.text
    for name in ("chain-x.sv", "chain-x.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert not re.search(r"\bsrc\b|\.py\b", first.text)
    assert str(Path.home()) not in first.text


@pytest.mark.slow
def test_generate_is_byte_identical_in_another_process():
    code = (
        "import importlib.util, sys, hashlib\n"
        "spec = importlib.util.spec_from_file_location('designs', sys.argv[1])\n"
        "designs = importlib.util.module_from_spec(spec); spec.loader.exec_module(designs)\n"
        "text = designs.emit(designs.Chain(), 'chain')[0]\n"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code, __file__],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert hashes == {hashlib.sha256(emit(Chain(), "chain")[0].encode()).hexdigest() + "\n"}


@pytest.mark.parametrize("verilog", [False, True])
def test_manifest_describes_the_netlist(tmp_path, verilog):
    config = Config(name="chain-x", lanes=8)
    generated = generate(config, tmp_path, verilog=verilog, top=Chain())
    netlist, manifest_path = generated.paths
    assert netlist.name == ("chain-x.v" if verilog else "chain-x.sv")
    manifest = json.loads(manifest_path.read_text())
    assert manifest == generated.manifest
    assert manifest["sha256"] == generated.sha256 == hashlib.sha256(netlist.read_bytes()).hexdigest()
    assert manifest["bytes"] == netlist.stat().st_size
    assert manifest["modules"] == len(modules(netlist.read_text())) == 5
    assert manifest["top"] == generated.name == "chain_x"
    assert Config.from_dict(manifest["config"]) == config
    assert manifest["config_hash"] == config.hash
    assert manifest["isa_version"] == ISA_VERSION
    assert manifest["counters"] == list(COUNTERS)
    assert manifest["latencies"] == {"beat": 4}
    ports = {port["name"]: (port["width"], port["direction"]) for port in manifest["ports"]}
    assert ports == {
        "clk": (1, "input"),
        "rst": (1, "input"),
        "i__payload": (33, "input"),
        "i__valid": (1, "input"),
        "i__ready": (1, "output"),
        "o__payload": (33, "output"),
        "o__valid": (1, "output"),
        "o__ready": (1, "input"),
    }
    assert all(port["doc"] for port in manifest["ports"])
    header = re.search(r"^module chain_x\((.*)\);", netlist.read_text(), re.MULTILINE)
    assert header is not None
    assert set(header[1].split(", ")) == set(ports)


@pytest.mark.parametrize("name", ["wire", "always_ff", "small", "clk", "o__valid"])
def test_names_that_verilog_cannot_take(name):
    assert module_name(Config(name=name)) == f"{name}_top"


def test_names_outside_ascii():
    with pytest.raises(MaskworkValueError, match="name must hold only ASCII letters"):
        module_name(Config(name="naïve"))


def test_preset_names_are_module_names():
    assert {module_name(config) for config in presets().values()} >= {"tiny", "small_top", "dense_small", "sim_64"}


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MaskworkError) as caught:
        write_files(tmp_path / "file", {"a.sv": ""})
    assert str(tmp_path / "file") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_partial_output_is_left(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(MaskworkError, match=r"a\.json is a directory"):
        write_files(tmp_path, {"a.sv": "text", "a.json": "text"})
    with pytest.raises(UnicodeEncodeError):
        write_files(tmp_path, {"b.sv": "text", "b.json": "\ud800"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json"]


def test_files_are_replaced_whole(tmp_path):
    for text in ("first", "second"):
        (path,) = write_files(tmp_path / "new" / "folder", {"a.sv": text})
        assert path.read_text() == text
    assert [path.name for path in path.parent.iterdir()] == ["a.sv"]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"lanes": 4, "lanes_per_cluster": 2, "stream_words": 2}])
def test_accelerator_components_have_honest_keys(changes):
    accelerator = pytest.importorskip("maskwork.rtl.accelerator")
    config = presets()["tiny"].replace(**changes)
    text = elaborate_all(accelerator.Accelerator(config), "tiny", verify=True)
    assert text == elaborate_all(accelerator.Accelerator(config), "tiny")
    assert module_count(text) < 60
