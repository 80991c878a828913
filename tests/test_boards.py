"""Boards: clocks, pins, and the components that cells belong to."""

import re
from fractions import Fraction

import pytest
from maskwork.fpga.boards import top
from maskwork.fpga.boards.boards import BOARDS, find_board
from maskwork.fpga.boards.names import Components, count, critical_path
from maskwork.fpga.boards.pll import LIMITS, MEGA, Pll, all_settings, best
from maskwork.gen.config import preset
from maskwork.gen.errors import MaskworkValueError
from maskwork.gen.generate import emit

from .board_designs import Echo, needs_boards

# ---------------------------------------------------------------------- PLL


@pytest.mark.parametrize("family", LIMITS)
@pytest.mark.parametrize("input_mhz", [12, 25, 27, 48, 100])
def test_settings_respect_the_limits(family, input_mhz):
    limits, found = LIMITS[family], 0
    for number, pll in enumerate(all_settings(family, input_mhz * MEGA)):
        if number % 31:
            continue
        found += 1
        assert pll.pfd_hz == Fraction(input_mhz * MEGA, pll.reference)
        assert pll.output_hz == pll.pfd_hz * pll.feedback / pll.divider
        for value, (low, high) in ((pll.pfd_hz, limits.pfd), (pll.vco_hz, limits.vco), (pll.output_hz, limits.output)):
            assert low * MEGA <= value <= high * MEGA
    assert found > 2


@pytest.mark.parametrize(
    ("family", "input_mhz", "wanted", "made"),
    [
        ("ecp5", 25, 60, 60), ("ecp5", 25, 87.6, 87.5), ("ecp5", 48, 100, 99), ("ecp5", 100, 85, 85),
        ("ecp5", 25, 25, 25), ("ice40", 12, 16.2, 16.125), ("ice40", 12, 24, 24), ("ice40", 12, 15, 12),
        ("gowin", 27, 27, 27),
        ("gowin", 27, 40.5, 40.5), ("gowin", 27, 50, 49.5),
    ],
)  # fmt: skip
def test_nearest_clock_below(family, input_mhz, wanted, made):
    pll = best(family, input_mhz * MEGA, round(wanted * MEGA))
    assert pll.output_hz <= wanted * MEGA
    assert pll.output_hz >= made * MEGA  # at least as near as this one
    assert (pll.divider == 0) == (pll.output_hz == input_mhz * MEGA)
    better = [one for one in all_settings(family, input_mhz * MEGA) if pll.output_hz < one.output_hz <= wanted * MEGA]
    assert not better


def test_clock_out_of_range():
    with pytest.raises(MaskworkValueError, match="5 MHz cannot be made from 12 MHz; 12 to 275 MHz are possible"):
        best("ice40", 12 * MEGA, 5 * MEGA)
    with pytest.raises(MaskworkValueError, match="500 MHz cannot be made from 25 MHz"):
        best("ecp5", 25 * MEGA, 500 * MEGA)


def test_parameters_of_the_cells():
    """What the cells' documentation makes of the parameters is the clock that was asked for."""
    text = Pll("ecp5", 25 * MEGA, 2, 48, 7).verilog()
    value = {name: int(number) for name, number in re.findall(r"\.(CLK\w+_DIV)\((\d+)\)", text)}
    assert 25 / value["CLKI_DIV"] * value["CLKFB_DIV"] * value["CLKOP_DIV"] / value["CLKOS_DIV"] == 12.5 * 48 / 7
    text = Pll("ice40", 12 * MEGA, 1, 86, 64).verilog()
    value = {name: int(number) for name, number in re.findall(r"\.(DIV\w|FILTER_RANGE)\(\d'd(\d+)\)", text)}
    assert 12 * (value["DIVF"] + 1) / ((value["DIVR"] + 1) * 2 ** value["DIVQ"]) == 16.125
    assert value["FILTER_RANGE"] == 1
    text = Pll("gowin", 27 * MEGA, 2, 48, 16).verilog()
    value = {name: int(number) for name, number in re.findall(r"\.(\w+_SEL)\((\d+)\)", text)}
    assert 27 * (value["FBDIV_SEL"] + 1) / (value["IDIV_SEL"] + 1) == 40.5
    assert value["ODIV_SEL"] * 40.5 == 648


# ---------------------------------------------------------------------- boards


@needs_boards
@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_board(board):
    pins = {pin.port: pin for pin in board.pins()}
    assert {"clk_in", "uart_rx", "uart_tx"} <= pins.keys()
    assert len({pin.site for pin in pins.values()}) == len(pins)
    text = top.constraints(board, list(pins.values()), board.clock_mhz)
    aims = [float(mhz) for mhz in re.findall(r'FREQUENCY NET "clk" (\S+) MHZ;', text)]
    assert aims == ([pytest.approx(1.13 * board.clock_mhz, rel=1e-3)] if board.family == "ecp5" else [])
    if board.family == "ecp5":
        closer = top.constraints(board, list(pins.values()), 80, 2)
        assert 'FREQUENCY NET "clk" 81.6 MHZ;' in closer and closer.count("\n") == text.count("\n")
    for pin in pins.values():
        assert re.search(rf'"?\b{pin.port}\b"?( SITE)? "?{pin.site}\b', text), pin
    pll = best(board.family, pins["clk_in"].clock_hz, round(board.clock_mhz * MEGA))
    assert pll.output_hz == round(board.clock_mhz * MEGA)
    config = preset(board.preset)
    assert config.pes <= board.totals["dsps"]
    assert board.totals.keys() == {"luts", "ffs", "brams", "dsps"}
    from maskwork.fpga.link.uart import Rate

    assert Rate.find(float(pll.output_hz), board.baud)


@needs_boards
def test_pins_of_the_uart():
    """From the boards' own documentation, not from the table."""
    expected = {
        "ulx3s-85f": ("M1", "L4"), "orangecrab-25f": ("N17", "M18"), "icebreaker": ("6", "9"),
        "colorlight-i5": ("H18", "J17"), "ecpix5-85f": ("R26", "R24"), "tang-nano-9k": ("18", "17"),
    }  # fmt: skip
    for name, sites in expected.items():
        pins = {pin.port: pin.site for pin in BOARDS[name].pins()}
        assert (pins["uart_rx"], pins["uart_tx"]) == sites


def test_unknown_board():
    with pytest.raises(MaskworkValueError, match="unknown board 'ulx4s'; boards: ulx3s-85f, "):
        find_board("ulx4s")


# ---------------------------------------------------------------------- names


def test_instances_are_read_from_the_text():
    text, _ = emit(Echo(None, 1, 2, "b"), top.SYSTEM)
    text += top.verilog([], Pll("ice40", 12 * MEGA))
    assert Components.of(text, top.TOP).paths == {"system", "system.link", "system.cluster0"}


COMPONENTS = Components(
    frozenset(
        {"system", "system.link", "system.link.endpoint", "system.accelerator", "system.accelerator.loader",
         "system.accelerator.cluster0", "system.accelerator.cluster0.post$12", "system.accelerator.cluster0.lane1",
         "system.accelerator.cluster0.lane1.pe2", "system.accelerator.cluster0.lane1.pe2.queue"}
    )
)  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "component", "kind"),
    [
        ("system.accelerator.cluster0.lane1.pe2.queue.x_LUT4_Z", "cluster0.lane1.pe2.queue", "cluster.lane.pe"),
        ("system.accelerator.cluster0.lane1.fifo_TRELLIS_FF", "cluster0.lane1", "cluster.lane"),
        ("system.accelerator.cluster0.post$12.y_SB_LUT4_O", "cluster0.post", "cluster.post"),
        ("system.link.endpoint.a.b$c", "link.endpoint", "link"),
        ("system.accelerator.busy", "accelerator", "accelerator"),
        ("system.shown", "system", "system"),
        ("lock_SB_DFF_Q", "top", "top"),
    ],
)
def test_component_of_a_cell(cell, component, kind):
    assert COMPONENTS.component(cell) == component
    assert COMPONENTS.kind(cell) == kind


def step(kind, delay, cell):
    return {"type": kind, "delay": delay, "from": {"cell": "x"}, "to": {"cell": cell, "port": "A"}}


PATHS = [
    {"from": "posedge clk", "to": "<async>", "path": [step("routing", 99.0, "tx")]},
    {"from": "posedge clk", "to": "posedge clk", "path": [step("clk-to-q", 1.0, "system.link.a")]},
    {"from": "posedge clk", "to": "posedge clk", "path": [
        step("clk-to-q", 0.5, "system.accelerator.loader.r"),
        step("routing", 1.5, "system.accelerator.cluster0.lane1.pe2.n"),
        step("logic", 0.25, "system.accelerator.cluster0.lane1.pe2.n"),
        step("routing", 2.0, "system.accelerator.cluster0.lane1.q"),
        step("setup", 0.25, "system.accelerator.cluster0.lane1.q"),
    ]},
]  # fmt: skip


def test_critical_path_by_component():
    found = critical_path(COMPONENTS, PATHS)
    assert found is not None
    assert found["steps"] == [
        {"component": "loader", "delay_ns": 0.5},
        {"component": "cluster0.lane1.pe2", "delay_ns": 1.75},
        {"component": "cluster0.lane1", "delay_ns": 2.25},
    ]
    assert (found["delay_ns"], found["logic_ns"], found["routing_ns"]) == (4.5, 1.0, 3.5)
    assert found["text"] == (
        "4.50 ns (1.00 logic, 3.50 wires): loader 0.50 ns -> cluster0.lane1.pe2 1.75 ns -> cluster0.lane1 2.25 ns"
    )
    assert critical_path(COMPONENTS, PATHS[:1]) is None
    assert count(COMPONENTS, ["system.link.x", "system.accelerator.cluster0.q", "system.link.y"]) == {
        "link": 2, "cluster": 1,
    }  # fmt: skip
