"""What Yosys does not find by itself on iCE40 UltraPlus: multipliers' registers (SB_MAC16) and single-port RAM."""

from __future__ import annotations

import re

_INITIAL = re.compile(r"^(  reg \[\d+:0\] spram\d+ \[\d+:0\];\n)  initial begin.*?^  end\n", re.MULTILINE | re.DOTALL)
_MODULE = re.compile(r"^module (\w+_multiplier(?:_\d+)?)\((.*?)\);$(.*?)^endmodule$", re.MULTILINE | re.DOTALL)
_PORT = re.compile(r"^\s*(?:input|output)\s+(?:signed )?\[(\d+):0\]\s+(a|b|product);", re.MULTILINE)

_WIDTH = 16
"""Bits of a block's operands."""


def without_spram_contents(verilog: str) -> str:
    """Leave the contents of memories ``spram0``, ``spram1`` (:mod:`maskwork.rtl.a_buffer`) open at the start.

    SPRAM holds anything after configuration, so that Yosys takes it only for memories that say nothing of theirs.
    """
    return _INITIAL.sub(r"\1", verilog)


def with_dsp_registers(verilog: str) -> str:
    """Put an SB_MAC16 in the place of every multiplier module (:mod:`maskwork.rtl.multiplier`) of a design.

    Operand and product registers are then the block's own, which saves a logic cell for each of their bits. Modules
    with operands of more than 16 bits stay as they are.

    Args:
        verilog: the design's text.

    Returns:
        The text with those modules' bodies replaced.
    """
    return _MODULE.sub(_replace, verilog)


def _replace(found: re.Match[str]) -> str:
    name, ports, body = found.groups()
    widths = {port: int(high) + 1 for high, port in _PORT.findall(body)}
    if max(widths["a"], widths["b"]) > _WIDTH:
        return found[0]
    lines = [f"module {name}({ports});", "  input clk, rst;"]
    for port, width in widths.items():
        lines.append(f"  {'output' if port == 'product' else 'input'} [{width - 1}:0] {port};")
    extended = {}
    for port in "ab":
        sign = f"{port}[{widths[port] - 1}]"
        extended[port] = f"{{{{{_WIDTH - widths[port]}{{{sign}}}}}, {port}}}" if widths[port] < _WIDTH else port
    registers = ("A_REG", "B_REG", "A_SIGNED", "B_SIGNED")
    parameters = [*(f".{register}(1'b1)" for register in registers)]
    # the 16x16 product through its second register
    parameters += [".PIPELINE_16x16_MULT_REG2(1'b1)", ".TOPOUTPUT_SELECT(2'b11)", ".BOTOUTPUT_SELECT(2'b11)"]
    inputs = {"CLK": "clk", "CE": "1'b1", "A": extended["a"], "B": extended["b"], "C": "16'd0", "D": "16'd0"}
    holds = ("AHOLD", "BHOLD", "CHOLD", "DHOLD", "IRSTTOP", "IRSTBOT", "ORSTTOP", "ORSTBOT", "OLOADTOP", "OLOADBOT",
             "ADDSUBTOP", "ADDSUBBOT", "OHOLDTOP", "OHOLDBOT", "CI", "ACCUMCI", "SIGNEXTIN")  # fmt: skip
    inputs |= dict.fromkeys(holds, "1'b0")
    connections = [f".{port}({value})" for port, value in {**inputs, "O": "result"}.items()]
    lines += [
        "  wire [31:0] result;",
        f"  SB_MAC16 #({', '.join(parameters)}) block ({', '.join(connections)});",
        f"  assign product = result[{widths['product'] - 1}:0];",
        "endmodule",
    ]
    return "\n".join(lines)
