"""Adders in ECP5's carry cells, with an AND at one operand for nothing and no cells for the carry's way in and out."""

from amaranth import *

ADD, SUBTRACT = 0x6AAA, 0x95AA
"""Lookup tables of a carry cell for A + (B & C) and A - (B & C), D = 1: their low four bits, which the cell takes for
the carry where A and the other summand are equal, are A."""

ZERO, ONE = 0x0000, 0x000F
"""Tables that begin a chain: no carry is passed on, and the carry is 0 or 1."""


def add(m, platform, name: str, width: int, x, y, gate=None, subtract: bool = False):
    """Sum x + y, or difference x - y, where ``gate`` is high or absent, else x. Signed; the result has ``width`` bits.

    Behaviour where ``platform`` is None (in the simulator), CCU2C cells otherwise. The first half of the first cell
    makes the carry: what place and route would add to lead a constant there takes a whole cell.
    """
    result = Signal(signed(width), name=name)
    gate = Const(1, 1) if gate is None else gate
    if platform is None:
        term = Mux(gate, y, 0)
        m.d.comb += result.eq(x - term if subtract else x + term)
        return result
    left, right = (Signal(signed(width), name=f"{name}_{side}") for side in ("left", "right"))
    m.d.comb += [left.eq(x), right.eq(y)]
    table = Const(SUBTRACT if subtract else ADD, 16)
    one = Const(1, 1)
    halves = [(Const(ONE if subtract else ZERO, 16), Const(0, 1), Const(0, 1), Const(0, 1), None)]
    halves += [(table, left[n], right[n], gate, result[n]) for n in range(width)]
    if len(halves) % 2:
        halves.append((Const(ZERO, 16), Const(0, 1), Const(0, 1), Const(0, 1), None))
    carry = None
    for cell in range(0, len(halves), 2):
        ports = {}
        for half, (init, a, b, c, out) in enumerate(halves[cell : cell + 2]):
            ports |= {f"p_INIT{half}": init, f"i_A{half}": a, f"i_B{half}": b, f"i_C{half}": c, f"i_D{half}": one}
            ports |= {} if out is None else {f"o_S{half}": out}
        if carry is not None:
            ports["i_CIN"] = carry
        if cell + 2 < len(halves):
            carry = ports["o_COUT"] = Signal(name=f"{name}_carry{cell + 1}")
        m.submodules += Instance("CCU2C", p_INJECT1_0="NO", p_INJECT1_1="NO", **ports)
    return result
