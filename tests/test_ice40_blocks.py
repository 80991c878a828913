"""What is put in the place of generic modules for iCE40, and activations in single-port RAM."""

import importlib.util
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from maskwork.fpga.ice40 import with_dsp_registers
from maskwork.fpga.synthesis import synthesise
from maskwork.gen.config import preset
from maskwork.gen.generate import emit
from maskwork.gen.matmul import Product
from maskwork.rtl.a_buffer import ABuffer
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.multiplier import Multiplier
from maskwork.sim_tb.tools import have_icarus


def test_activations_in_single_port_ram():
    """Bank memories of one port: same results and cycles as the model, which knows nothing of them."""
    if not have_icarus():
        pytest.skip("Icarus Verilog is missing")
    rng = np.random.default_rng(5)
    config = preset("tiny").replace(a_spram=True, name="spram")
    a = rng.integers(-90, 90, (40, 50)) * (rng.random((40, 50)) < 0.5)  # several loads of A: both banks, and appends
    b = rng.integers(-90, 90, (50, 20)) * (rng.random((50, 20)) < 0.5)
    rtl = Product.of(config, a, b, {}).run("rtl", simulator="icarus")
    model = Product.of(config, a, b, {}).run("cycle")
    assert (rtl.c == a @ b).all()
    assert rtl.report["cycles"] == model.report["cycles"]


@pytest.mark.skipif(not importlib.util.find_spec("pyosys"), reason="pyosys is missing")
def test_banks_become_spram(tmp_path):
    config = preset("icebreaker")
    one = synthesise(ABuffer(config), "one", tmp_path, "ice40")
    two = synthesise(ABuffer(config.replace(a_spram=False)), "two", tmp_path, "ice40")
    assert config.a_spram and one.cells["SB_SPRAM256KA"] == 4
    assert one.brams < two.brams


@pytest.mark.skipif(not importlib.util.find_spec("pyosys"), reason="pyosys is missing")
def test_multiplier_takes_the_blocks_registers(tmp_path):
    cost = synthesise(Multiplier(8, 8), "unit_multiplier", tmp_path, "ice40")
    assert cost.dsps == 1 and cost.luts == cost.ffs == 0


class Sum(wiring.Component):
    """A multiplier whose product is added up, as a PE does."""

    a: In(signed(8))
    b: In(signed(8))
    total: Out(signed(24))

    def hierarchy_key(self):
        return ("Sum",)

    def elaborate(self, platform):
        m = Module()
        submodule(m, "multiplier", multiplier := Multiplier(8, 8), platform)
        m.d.comb += [multiplier.a.eq(self.a), multiplier.b.eq(self.b)]
        m.d.sync += self.total.eq(self.total + multiplier.product)
        return m


@pytest.mark.skipif(not importlib.util.find_spec("pyosys"), reason="pyosys is missing")
def test_synthesis_leaves_the_block_as_it_is(tmp_path):
    """Yosys' own pass for multipliers would move the adder into it, and forget its registers."""
    synthesise(Sum(), "sum", tmp_path, "ice40")
    cells = json.loads((tmp_path / "sum.json").read_text())["modules"]["sum"]["cells"]
    (block,) = (cell for cell in cells.values() if cell["type"] == "SB_MAC16")
    ones = {name for name, value in block["parameters"].items() if int(value, 2) == 1}
    assert ones == {"A_REG", "B_REG", "A_SIGNED", "B_SIGNED", "PIPELINE_16x16_MULT_REG2"}
    assert block["connections"]["CE"] == ["1"]


@pytest.mark.parametrize(("a_width", "b_width"), [(8, 8), (16, 16), (4, 12)])
def test_multiplier_block(a_width, b_width, tmp_path):
    """The block, as Yosys models it, gives the product two cycles later, as the generic module does."""
    if not have_icarus():
        pytest.skip("Icarus Verilog is missing")
    pyosys = pytest.importorskip("pyosys")
    cells = next(Path(pyosys.__file__).parent.rglob("ice40/cells_sim.v"))
    text, _ = emit(Multiplier(a_width, b_width), "unit_multiplier")
    text = with_dsp_registers(text)
    assert "SB_MAC16" in text
    bench = f"""
module bench;
  reg clk = 0;
  reg signed [{a_width - 1}:0] a, a1, a2;
  reg signed [{b_width - 1}:0] b, b1, b2;
  wire signed [{a_width + b_width - 1}:0] product;
  integer n, wrong = 0;
  unit_multiplier dut (.a(a), .b(b), .clk(clk), .rst(1'b0), .product(product));
  initial begin
    for (n = 0; n < 300; n = n + 1) begin
      a2 = a1; b2 = b1; a1 = a; b1 = b;
      a = $random; b = $random;
      #1;
      if (n > 3 && product !== a2 * b2) wrong = wrong + 1;
      clk = 1; #1 clk = 0; #1;
    end
    $display("wrong %0d", wrong);
  end
endmodule
"""
    (tmp_path / "all.sv").write_text(text + bench)
    command = ["iverilog", "-g2012", "-s", "bench", "-o", "run", "-DNO_ICE40_DEFAULT_ASSIGNMENTS", str(cells), "all.sv"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert subprocess.run(["vvp", "run"], cwd=tmp_path, capture_output=True, text=True).stdout == "wrong 0\n"
