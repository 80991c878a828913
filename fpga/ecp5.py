"""ECP5 blocks that Yosys does not infer by itself: the multiplier with its own registers (MULT18X18D)."""

from __future__ import annotations

import re

_MODULE = re.compile(r"^module (\w+_multiplier(?:_\d+)?)\((.*?)\);$(.*?)^endmodule$", re.MULTILINE | re.DOTALL)
_PORT = re.compile(r"^\s*(?:input|output)\s+(?:signed )?\[(\d+):0\]\s+(a|b|product);", re.MULTILINE)


def with_dsp_registers(verilog: str) -> str:
    """Put a MULT18X18D in the place of every multiplier module (:mod:`maskwork.rtl.multiplier`) of a design.

    Operand and product registers are then the block's own: fewer flip-flops, and no path through the multiplier that
    also has to cross the fabric.

    Args:
        verilog: the design's text.

    Returns:
        The text with those modules' bodies replaced; operands are at most 18 bits wide.
    """
    return _MODULE.sub(_replace, verilog)


def _replace(found: re.Match[str]) -> str:
    name, ports, body = found.groups()
    widths = {port: int(high) + 1 for high, port in _PORT.findall(body)}
    lines = [f"module {name}({ports});", "  input clk, rst;"]
    for port, width in widths.items():
        lines.append(f"  {'output' if port == 'product' else 'input'} [{width - 1}:0] {port};")
    connections = [".CLK0(clk)", ".CE0(1'b1)", ".RST0(1'b0)", ".SIGNEDA(1'b1)", ".SIGNEDB(1'b1)"]
    connections += [".SOURCEA(1'b0)", ".SOURCEB(1'b0)"]
    for port in "ab":
        connections += [f".{port.upper()}{n}({port}[{min(n, widths[port] - 1)}])" for n in range(18)]
    connections += [f".P{n}(product[{n}])" for n in range(widths["product"])]
    registers = ("INPUTA", "INPUTB", "OUTPUT")
    parameters = [f'.REG_{register}_CLK("CLK0")' for register in registers]
    parameters += ['.SOURCEB_MODE("B_SHIFT")', '.RESETMODE("SYNC")', '.GSR("DISABLED")']
    lines += [f"  MULT18X18D #({', '.join(parameters)}) block ({', '.join(connections)});", "endmodule"]
    return "\n".join(lines)
