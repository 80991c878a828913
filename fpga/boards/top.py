"""The top of a board: PLL, reset and pins around the system, and the constraints that place its pins."""

from __future__ import annotations

from maskwork.fpga.boards.boards import Board, Pin
from maskwork.fpga.boards.pll import Pll
from maskwork.gen.errors import MaskworkValueError

TOP = "board_top"
"""Module name of the top."""

SYSTEM = "maskwork_system"
"""Module name of the system in it; its instance is ``system``."""

HIGH = "1'b1"

RESET_CYCLES = 1 << 8
"""Cycles of reset after the PLL has locked; block RAM of the iCE40 needs some time after configuration (3 us)."""


def verilog(pins: list[Pin], pll: Pll) -> str:
    """The top, without the system's own text.

    Args:
        pins: ``clk_in``, ``uart_rx``, ``uart_tx``, and perhaps ``led`` and outputs ``high0``...
        pll: makes the clock.
    """
    inverted = {pin.port for pin in pins if pin.invert}
    outputs = [pin.port for pin in pins if pin.port not in ("clk_in", "uart_rx")]
    sources = {"uart_tx": "tx", "led": "activity"}
    ports = ["input clk_in", "input uart_rx", *(f"output {port}" for port in outputs)]
    assignments = [f"  assign {port} = {'~' if port in inverted else ''}{sources.get(port, HIGH)};" for port in outputs]
    rx = "~uart_rx" if "uart_rx" in inverted else "uart_rx"
    counter = (RESET_CYCLES - 1).bit_length()
    return "\n".join(
        [
            f"module {TOP}({', '.join(ports)});",
            pll.verilog().rstrip(),
            "  reg [1:0] lock = 2'd0;",
            f"  reg [{counter - 1}:0] count = {counter}'d0;",
            "  reg rst = 1'b1;",
            "  always @(posedge clk) begin",
            "    lock <= {lock[0], locked};",
            f"    count <= lock[1] ? count + {counter}'d1 : {counter}'d0;",
            "    rst <= ~lock[1] | (rst & ~&count);",
            "  end",
            "  wire tx, activity;",
            f"  {SYSTEM} system (.clk(clk), .rst(rst), .rx({rx}), .tx(tx), .activity(activity));",
            *assignments,
            "endmodule",
            "",
        ]
    )


MARGIN = 13.0
"""Percent by which nextpnr aims above the PLL's clock on ECP5: what is reached after routing is a little less than what
the placer was content with."""


def constraints(board: Board, pins: list[Pin], mhz: float, margin: float = MARGIN) -> str:
    """Text of the constraint file: LPF for ECP5, PCF for iCE40, CST for Gowin.

    Args:
        board: the board.
        pins: its pins.
        mhz: clock behind the PLL.
        margin: percent by which to aim above it; on ECP5 only.
    """
    text = _CONSTRAINTS[board.family](pins)
    if board.family == "ecp5":
        text += f'FREQUENCY NET "clk" {(1 + margin / 100) * mhz:.4g} MHZ;\n'
    return text


def check_margin(board: Board, margin: float | None) -> None:
    """Refuse a margin on a board whose tools are not given one, and one that is no number.

    Raises:
        MaskworkValueError: then.
    """
    if margin is not None and not -20 <= margin <= 100:
        raise MaskworkValueError(f"--margin must be a number from -20 to 100, not {margin:g}")
    if margin is not None and board.family != "ecp5":
        raise MaskworkValueError(f"--margin is for ECP5 boards, not for {board.name}: leave it out")


def _lpf(pins: list[Pin]) -> str:
    lines = []
    for pin in pins:
        lines.append(f'LOCATE COMP "{pin.port}" SITE "{pin.site}";')
        if pin.attributes:
            attributes = " ".join(f"{key}={value}" for key, value in pin.attributes.items())
            lines.append(f'IOBUF PORT "{pin.port}" {attributes};')
        if pin.clock_hz:
            lines.append(f'FREQUENCY PORT "{pin.port}" {pin.clock_hz / 1e6:g} MHZ;')
    return "\n".join(lines) + "\n"


def _pcf(pins: list[Pin]) -> str:
    lines = []
    for pin in pins:
        pull = " -pullup yes" if pin.attributes.get("PULLUP") == "1" and pin.port == "uart_rx" else ""
        lines.append(f"set_io{pull} {pin.port} {pin.site}")
        if pin.clock_hz:
            lines.append(f"set_frequency {pin.port} {pin.clock_hz / 1e6:g}")
    return "\n".join(lines) + "\n"


def _cst(pins: list[Pin]) -> str:
    lines = []
    for pin in pins:
        lines.append(f'IO_LOC "{pin.port}" {pin.site};')
        attributes = " ".join(f"{key}={value}" for key, value in pin.attributes.items())
        if attributes:
            lines.append(f'IO_PORT "{pin.port}" {attributes};')
    return "\n".join(lines) + "\n"


_CONSTRAINTS = {"ecp5": _lpf, "ice40": _pcf, "gowin": _cst}

CONSTRAINT_FILE = {"ecp5": "top.lpf", "ice40": "top.pcf", "gowin": "top.cst"}
