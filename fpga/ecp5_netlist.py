"""What Yosys leaves undone for ECP5: registers inside block RAMs, and carry chains without useless ends."""

from __future__ import annotations

import collections
from typing import Any


def trim_carries(netlist: dict[str, Any]) -> int:
    """Cut carry inputs that cannot matter, and carry outputs that go nowhere, so that nextpnr adds no cells for them.

    Args:
        netlist: Yosys' JSON; changed.

    Returns:
        How many connections were cut.
    """
    cut = 0
    for module in netlist["modules"].values():
        cells = module["cells"].values()
        bits = [bit for cell in cells for own in cell["connections"].values() for bit in own]
        bits += [bit for port in module["ports"].values() for bit in port["bits"]]
        uses = collections.Counter(bits)
        for cell in cells:
            if cell["type"] != "CCU2C":
                continue
            wires, table = cell["connections"], cell["parameters"]["INIT0"]
            # with D0 = 1 the upper half of the table says where the carry is passed on: nowhere, if it is zero
            if wires["D0"] == ["1"] and set(table[:8]) == {"0"} and wires.get("CIN") in (["0"], ["1"]):
                wires["CIN"] = ["x"]
                cut += 1
            if not wires.get("COUT") or uses[wires["COUT"][0]] == 1:
                wires["COUT"] = ["x"]  # nextpnr wants the port, and takes this for no net
                cut += 1
    return cut


def register_outputs(netlist: dict[str, Any]) -> int:
    """Put registers behind block RAMs into the block RAMs, whose outputs are 5 ns late without their own.

    Only where all outputs in use go to one register each, of the same clock, without enable or reset.

    Args:
        netlist: Yosys' JSON; changed.

    Returns:
        How many registers went.
    """
    gone = 0
    for module in netlist["modules"].values():
        cells = module["cells"]
        users: dict[Any, list[tuple[str, str]]] = collections.defaultdict(list)
        for name, cell in cells.items():
            for port, bits in cell["connections"].items():
                if cell["port_directions"][port] == "input":
                    for bit in bits:
                        users[bit].append((name, port))
        for port in module["ports"].values():
            if port["direction"] != "input":
                for bit in port["bits"]:
                    users[bit].append(("", ""))
        for ram in [cell for cell in cells.values() if cell["type"] == "DP16KD"]:
            wires, parameters = ram["connections"], ram["parameters"]
            outputs = {port: users[bits[0]] for port, bits in wires.items()
                       if port.startswith("DO") and bits and users[bits[0]]}  # fmt: skip
            registers = {port: cells[own[0][0]] for port, own in outputs.items() if len(own) == 1 and own[0][1] == "DI"}
            modes = {parameters.get(mode, "NOREG") for mode in ("REGMODE_A", "REGMODE_B")}
            if modes != {"NOREG"} or len(registers) < len(outputs):
                continue
            always = wires.get("CEB") == ["1"]  # a memory that is not read in every cycle keeps its register outside
            if not always or not all(_plain(register, wires["CLKB"]) for register in registers.values()):
                continue
            parameters |= {"REGMODE_A": "OUTREG", "REGMODE_B": "OUTREG"}
            for port in ("OCEA", "OCEB"):
                wires[port], ram["port_directions"][port] = ["1"], "input"
            for port, register in registers.items():
                wires[port] = register["connections"]["Q"]
                del cells[outputs[port][0][0]]
                gone += 1
    return gone


def _plain(cell: dict[str, Any], clock: list[Any]) -> bool:
    """Whether a cell is a flip-flop of that clock's rising edge without enable and reset."""
    wires, parameters = cell["connections"], cell["parameters"]
    return (
        cell["type"] == "TRELLIS_FF" and wires["CLK"] == clock and parameters.get("CLKMUX", "CLK") == "CLK"
        and parameters.get("CEMUX", "1").strip() == "1" and wires.get("LSR", ["0"]) == ["0"]
        and parameters.get("REGSET", "RESET") == "RESET"
    )  # fmt: skip
