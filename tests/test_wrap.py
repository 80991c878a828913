"""Bus wrappers: emission, register tables, and cocotb benches with published bus models."""

import re
import shutil
from pathlib import Path

import pytest
from amaranth.hdl import Const
from maskwork.fpga.wrap import BUSES, registers, wrapped
from maskwork.gen.config import preset
from maskwork.gen.errors import MaskworkValueError
from maskwork.gen.generate import emit

TINY = preset("tiny")
ICARUS = [pytest.mark.icarus, pytest.mark.skipif(not shutil.which("iverilog"), reason="iverilog is not installed")]
DOCS = Path(__file__).parents[1] / "docs" / "integration.md"


def run(config, bus, simulator, **parameters):
    run_bench = pytest.importorskip("maskwork.sim_tb.benches.runner").run_bench
    bench = "axi" if bus == "axi" else "wishbone"
    pytest.importorskip(f"cocotbext.{bench}")
    values = {"config": config.to_dict(), "queue_words": 64, "programs": 1, "resets": 2, **parameters}
    component = wrapped(config, bus)
    module = f"maskwork.fpga.wrap.bench_{bench}"
    return run_bench(component, "wrapped", module, simulator, verilog=simulator == "icarus", parameters=values)


# ---------------------------------------------------------------------- on the bus


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bus", "words", "simulator"),
    [
        pytest.param("axi", 2, "icarus", marks=ICARUS),
        pytest.param("wishbone", 1, "icarus", marks=ICARUS),
        pytest.param("wishbone-pipelined", 2, "icarus", marks=ICARUS),
    ],
)
def test_on_the_bus(bus, words, simulator):
    """Registers; programs against the golden model; reset in mid-program."""
    assert run(TINY.replace(stream_words=words), bus, simulator) == 3


# ---------------------------------------------------------------------- the emitted netlist


def ports(text, name):
    module = text[text.index(f"module {name}(") :]
    module = module[: module.index("endmodule")]
    return {
        port: (direction, int(high or 0) + 1)
        for direction, high, port in re.findall(r"^  (input|output) (?:\[(\d+):0\] )?(\w+);", module, re.MULTILINE)
    }


@pytest.mark.parametrize("bus", BUSES[1:])
def test_netlist_has_the_documented_ports(bus):
    """Flat names, all of them there although some are not used, each described."""
    component = wrapped(TINY, bus)
    text, _ = emit(component, "wrapped")
    clocks = set() if bus == "axi" else {"clk", "rst"}
    got = ports(text, "wrapped")
    assert set(got) - clocks == {path[0] for path, _, _ in component.signature.flatten(component)}
    docs = getattr(component, "port_docs", {})
    assert all(docs[name] for name in set(got) - clocks)
    page = DOCS.read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in got)
    if bus == "axi":
        assert not {"clk", "rst"} & set(got)
        assert got["s_axis_tdata"] == ("input", 32) and got["m_axis_tkeep"] == ("output", 4)
        assert got["s_axil_awaddr"] == ("input", registers.ADDRESS_BITS)


@pytest.mark.slow
def test_hierarchy_keys_tell_wrappers_apart():
    """Also checks, by converting every instance, that equal keys mean equal hardware."""
    one, _ = emit(wrapped(TINY, "wishbone"), "wrapped", verify=True)
    two, _ = emit(wrapped(TINY, "wishbone-pipelined"), "wrapped", verify=True)
    assert "wb_stall" in two and "wb_stall" not in one


def test_unknown_bus():
    with pytest.raises(MaskworkValueError, match=r"bus must be one of stream, axi, wishbone, .*, not 'pci'"):
        wrapped(TINY, "pci")


# ---------------------------------------------------------------------- the table


@pytest.mark.parametrize("bus", registers.TABLES)
def test_table(bus):
    """Offsets rise, fields neither overlap nor leave their register, and every register fits the address."""
    table = registers.TABLES[bus]
    offsets = [register.offset for register in table]
    assert offsets == sorted(set(offsets)) and not any(offset % 4 for offset in offsets)
    assert offsets[-1] < 1 << registers.ADDRESS_BITS
    for register in table:
        at = 0
        for field in register.fields:
            assert field.low >= at and field.width > 0 and field.doc, (register.name, field.name)
            at = field.low + field.width
        assert at <= 32 and register.access in ("ro", "wo", "rw")
    listed = registers.register_list(bus)
    assert [entry["name"] for entry in listed] == [register.name for register in table]
    assert listed[4]["fields"][1] == {
        "name": "in_reset", "low": 1, "width": 1, "doc": "the accelerator is held in reset"
    }  # fmt: skip


@pytest.mark.parametrize("bus", registers.TABLES)
def test_docs_have_the_table(bus):
    assert registers.register_table(bus) in DOCS.read_text(encoding="utf-8")


def test_assemble():
    values = {"space": 5, "words": Const(3, 7), "last": 1, "refused": 0, "missing": 1}
    assert Const.cast(registers.assemble(registers.LEVELS, values)).value == 5 | 3 << 12 | 1 << 24 | 1 << 31
    with pytest.raises(KeyError, match="missing"):
        registers.assemble(registers.LEVELS, {"space": 5, "words": 3, "last": 1, "refused": 0})
    with pytest.raises(ValueError, match="LEVELS: values for"):
        registers.assemble(registers.LEVELS, values | {"more": 1})
