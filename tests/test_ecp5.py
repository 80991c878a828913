"""What is put in the place of generic modules for ECP5."""

import importlib.util
import json
import re

import pytest
from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from maskwork.fpga.ecp5 import with_dsp_registers
from maskwork.fpga.synthesis import recipe, synthesise_text
from maskwork.gen.config import preset
from maskwork.gen.generate import emit
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.multiplier import Multiplier
from maskwork.rtl.pe import PE


class Pair(wiring.Component):
    """Two multipliers, which are instances of one module."""

    def __init__(self, a_width, b_width):
        self._widths = a_width, b_width
        super().__init__({"a": In(a_width), "b": In(b_width), "o": Out(2 * (a_width + b_width))})

    def elaborate(self, platform):
        m = Module()
        first, second = (submodule(m, name, Multiplier(*self._widths), platform) for name in ("first", "second"))
        m.d.comb += [multiplier.a.eq(self.a) for multiplier in (first, second)]
        m.d.comb += [first.b.eq(self.b), second.b.eq(1), self.o.eq(Cat(first.product, second.product))]
        return m


def modules(text):
    """Name -> (ports, body) of every module."""
    found = re.findall(r"^module (\S+)\((.*?)\);$(.*?)^endmodule$", text, re.MULTILINE | re.DOTALL)
    return {name: (ports, body) for name, ports, body in found}


@pytest.mark.parametrize("verilog", [False, True])
@pytest.mark.parametrize(("a_width", "b_width"), [(9, 9), (4, 18), (18, 18)])
def test_multipliers_become_blocks(a_width, b_width, verilog):
    text, _ = emit(Pair(a_width, b_width), "pair", verilog=verilog)
    replaced = with_dsp_registers(text)
    before, after = modules(text), modules(replaced)
    assert list(before) == list(after) == ["pair", "pair_multiplier"]
    assert after["pair"] == before["pair"] and after["pair"][1].count("pair_multiplier") == 2
    (ports, body), (old_ports, _) = after["pair_multiplier"], before["pair_multiplier"]
    assert ports == old_ports
    assert body.count("MULT18X18D") == 1 and "always" not in body and "*" not in body
    widths = {"a": a_width, "b": b_width, "product": a_width + b_width}
    for port, width in widths.items():
        direction = "output" if port == "product" else "input"
        assert f"{direction} [{width - 1}:0] {port};" in body
    connected = dict(re.findall(r"\.(\w+)\((\S+?)\)[,)]", body))
    for port, width in (("a", a_width), ("b", b_width)):  # the block's inputs have 18 bits: the sign goes on
        expected = [f"{port}[{min(bit, width - 1)}]" for bit in range(18)]
        assert [connected[f"{port.upper()}{bit}"] for bit in range(18)] == expected
    assert [connected[f"P{bit}"] for bit in range(widths["product"])] == [
        f"product[{bit}]" for bit in range(widths["product"])
    ]
    assert f"P{widths['product']}" not in connected
    assert connected["CLK0"] == "clk" and connected["CE0"] == "1'b1"
    for register in ("INPUTA", "INPUTB", "OUTPUT"):  # three registers: two cycles, as the generic module takes
        assert f'.REG_{register}_CLK("CLK0")' in body


def test_nothing_else_changes():
    text, _ = emit(PE(preset("tiny")), "pe")
    replaced = with_dsp_registers(text)
    assert replaced != text
    before, after = modules(text), modules(replaced)
    assert list(before) == list(after)
    assert [name for name in before if before[name] != after[name]] == ["pe_multiplier"]
    without = text.replace("pe_multiplier", "pe_other")
    assert with_dsp_registers(without) == without


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("pyosys"), reason="pyosys is not installed")
def test_a_pe_synthesises_to_one_block(tmp_path):
    from maskwork.fpga.synthesis import synthesise

    cost = synthesise(PE(preset("tiny")), "pe", tmp_path)
    assert cost.dsps == cost.cells["MULT18X18D"] == 1
    assert cost.luts > 0 and cost.ffs > 0 and cost.brams > 0


@pytest.mark.slow
def test_few_control_sets(tmp_path):
    """For a board, an enable or reset that hardly any flip-flop shares is logic; one that many share is not."""
    pytest.importorskip("pyosys")
    text = """module top(input clk, input few, input many, input [7:0] d, output reg [1:0] p, output reg [7:0] q);
      always @(posedge clk) begin if (few) p <= d[1:0]; if (many) q <= d; end
    endmodule"""
    enabled = {}
    for commands in ("ecp5", "ecp5 board"):
        folder = tmp_path / commands
        folder.mkdir()
        assert synthesise_text(text, "top", folder, commands=commands).ffs == 10
        cells = json.loads((folder / "top.json").read_text())["modules"]["top"]["cells"].values()
        enabled[commands] = sum(cell["type"] == "TRELLIS_FF" and cell["parameters"]["CEMUX"] == "CE" for cell in cells)
    assert enabled == {"ecp5": 10, "ecp5 board": 8} and recipe("ecp5") == "ecp5 board" and recipe("ice40") == "ice40"
