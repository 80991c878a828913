"""How many of a Gowin device's places for LUTs a netlist needs, which neither Yosys nor nextpnr says.

A flip-flop's input comes from the LUT beside it alone: one that nothing but a LUT of its own feeds shares its place,
any other takes one. A carry cell takes a LUT's place, and chains begin with a cell that brings the carry in, may end
with one that gives it out, and are of even length; a LUT RAM of 16 x 4 bits takes the eight places of a tile. Counted
from what nextpnr 0.11 makes of netlists. nextpnr itself would look for places that are not there.
"""

from __future__ import annotations

import dataclasses
from typing import Any

LUTS = frozenset({"LUT1", "LUT2", "LUT3", "LUT4"})
PLACES_OF_LUT_RAM = 8


@dataclasses.dataclass(frozen=True)
class Places:
    """Places for LUTs that a netlist needs at least.

    Attributes:
        luts: of LUTs.
        carries: of carry cells.
        lut_rams: of LUT RAMs.
        ffs: of flip-flops without a LUT or carry cell of their own.
    """

    luts: int
    carries: int
    lut_rams: int
    ffs: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.luts + self.carries + self.lut_rams + self.ffs


def places(cells: dict[str, dict[str, Any]]) -> Places:
    """Count the places that a netlist needs.

    Args:
        cells: of the flattened design, in Yosys' JSON.
    """
    logic: dict[Any, str] = {}  # by the bit at its output
    for name, cell in cells.items():
        output = "SUM" if cell["type"] == "ALU" else "F" if cell["type"] in LUTS else None
        for bit in cell["connections"].get(output, []):
            logic[bit] = name
    fed: set[str] = set()
    alone = 0
    for cell in cells.values():
        if cell["type"].startswith("DFF"):
            source = logic.get(cell["connections"]["D"][0])
            if source is None or source in fed:
                alone += 1
            else:
                fed.add(source)
    types = [cell["type"] for cell in cells.values()]
    lut_rams = sum(PLACES_OF_LUT_RAM for one in types if one == "RAM16SDP4")
    return Places(sum(one in LUTS for one in types), _carries(cells), lut_rams, alone)


def _carries(cells: dict[str, dict[str, Any]]) -> int:
    carries = [cell["connections"] for cell in cells.values() if cell["type"] == "ALU"]
    given = {carry["COUT"][0] for carry in carries}
    after = {carry["CIN"][0]: carry["COUT"][0] for carry in carries}
    read = {
        bit
        for cell in cells.values()
        for port, bits in cell["connections"].items()
        if cell["port_directions"][port] == "input" and (cell["type"], port) != ("ALU", "CIN")
        for bit in bits
    }
    total = 0
    for carry in carries:
        if carry["CIN"][0] in given:
            continue
        length, last = 2, carry["COUT"][0]  # what brings the carry in, and the first cell
        while last in after:
            length, last = length + 1, after[last]
        length += last in read
        total += length + length % 2
    return total
