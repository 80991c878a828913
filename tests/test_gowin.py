"""Places for LUTs on Gowin devices, which nothing else counts before nextpnr looks for them."""

import json

import pytest
from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from maskwork.fpga.boards.boards import BOARDS
from maskwork.fpga.boards.tools import check_places
from maskwork.fpga.gowin import Places, places
from maskwork.fpga.synthesis import recipe, synthesise
from maskwork.gen.errors import MaskworkError
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.queue import Queue


def cell(kind, outputs, **ports):
    """A cell whose ports have one bit each; those in ``outputs`` give theirs."""
    return {
        "type": kind,
        "connections": {port: [bit] for port, bit in ports.items()},
        "port_directions": {port: "output" if port in outputs else "input" for port in ports},
    }


def lut(output, *inputs):
    return cell(f"LUT{len(inputs)}", ["F"], F=output, **dict(zip(["I0", "I1", "I2", "I3"], inputs, strict=False)))


def ff(data, output):
    return cell("DFFRE", ["Q"], D=data, Q=output, CLK=2, CE="1", RESET=3)


def carry(carry_in, carry_out, total):
    return cell("ALU", ["SUM", "COUT"], I0=4, I1=5, I3="0", CIN=carry_in, COUT=carry_out, SUM=total)


def design(*cells):
    return {f"c{n}": one for n, one in enumerate(cells)}


def test_flip_flops():
    """One that its own LUT feeds needs no place; a second one of the same LUT does, and one that a flip-flop feeds."""
    assert places(design(lut(10, 4), ff(10, 20))) == Places(1, 0, 0, 0)
    assert places(design(lut(10, 4), ff(10, 20), ff(10, 21))) == Places(1, 0, 0, 1)
    assert places(design(lut(10, 4, 5, 6, 7), ff(10, 20), ff(20, 21), ff("0", 22))) == Places(1, 0, 0, 2)
    assert places(design(carry("0", 30, 10), ff(10, 20))) == Places(0, 2, 0, 0)
    assert places(design(carry("0", 30, 10), ff(30, 20))) == Places(0, 4, 0, 1)  # the carry comes out of a third cell


def test_carry_chains():
    """A cell before each chain, one behind it if its carry is read, and one more if the length is odd."""
    three = [carry("0", 30, 10), carry(30, 31, 11), carry(31, 32, 12)]
    assert places(design(*three)).carries == 4
    assert places(design(*three, lut(13, 32))).carries == 6  # five cells
    assert places(design(*three[::-1], lut(13, 31))).carries == 4  # read on the way, which costs nothing here
    assert places(design(*three, carry("0", 40, 14))).carries == 4 + 2  # two chains from the same constant
    assert places({}).total == 0


def test_lut_rams():
    ram = cell("RAM16SDP4", ["DO"], DI=4, DO=10, CLK=2)
    assert places(design(ram, ram, ff(10, 20))) == Places(0, 0, 16, 1)
    assert places(design(ram, ram, ff(10, 20), lut(11, 10))).total == 18


def test_too_many(tmp_path):
    board = BOARDS["tang-nano-9k"]
    path = tmp_path / "board_top.json"

    def write(luts, rams=0):
        cells = design(*(lut(n + 10, 4) for n in range(luts)), *(cell("RAM16SDP4", [], DI=4) for _ in range(rams)))
        path.write_text(json.dumps({"modules": {"board_top": {"cells": cells}}}))

    write(8640)
    check_places(board, path)
    write(8641)
    with pytest.raises(MaskworkError) as caught:
        check_places(board, path)
    assert str(caught.value) == (
        "tang-nano-9k: the design does not fit: needs 8641 of 8640 places for LUTs (8641 LUTs, 0 carry cells, 0 of LUT "
        "RAMs, 0 flip-flops that no LUT of their own feeds); reduce lanes, pes_per_lane, slots or queue_depth, or set "
        "counters=false or post=false"
    )
    check_places(BOARDS["ulx3s-12f"], path)  # nextpnr tells of the others
    write(8633, 1)
    with pytest.raises(MaskworkError, match=r"8 of LUT RAMs, .* post=false, or lut_ram=false$"):
        check_places(board, path)


class Memories(wiring.Component):
    """A queue in block RAM, as without LUT RAM, and a small memory that is none."""

    i: In(8)
    o: Out(16)

    def elaborate(self, platform):
        m = Module()
        submodule(m, "rows", rows := Queue(8, 16, block=True), platform)
        m.submodules.table = table = memory.Memory(shape=8, depth=32, init=[])
        write, read = table.write_port(), table.read_port()
        address = Signal(5)
        m.d.sync += address.eq(address + 1)
        m.d.comb += [
            write.en.eq(self.i[0]), write.addr.eq(address), write.data.eq(self.i), read.addr.eq(self.i),
            rows.i.payload.eq(self.i), rows.i.valid.eq(1), rows.o.ready.eq(self.i[1]),
            self.o.eq(Cat(read.data, rows.o.payload)),
        ]  # fmt: skip
        return m


@pytest.mark.slow
def test_what_goes_to_lut_ram(tmp_path):
    """With ``lut_ram=False`` the queues alone; with it whatever Yosys thinks small."""
    pytest.importorskip("pyosys")
    used = {}
    for lut_ram in (True, False):
        cost = synthesise(Memories(), "memories", tmp_path, "gowin", recipe("gowin", lut_ram))
        used[lut_ram] = cost.cells.get("RAM16SDP4", 0), cost.brams
    assert used == {True: (6, 0), False: (2, 1)}
