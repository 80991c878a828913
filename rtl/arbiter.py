"""Round-robin choice among a few, of few levels of logic: requests may come from far away."""

from amaranth import *

MOST = 8
"""Requests for which the choice is made for every turn: its size grows with their square."""


def round_robin(m: Module, requests: Value, grant: Value, name: str, granted: Value | None = None) -> Value:
    """The one of ``requests`` whose turn is next, or nothing; combinational.

    Whoever was granted last comes last. For each of the possible turns the choice is a function of the requests alone;
    the turn then picks one. By arithmetic (``x & -x``, for more than ``MOST``) a request passes a LUT for each that
    comes before it.

    Args:
        m: the module.
        requests: a bit each.
        grant: the choice is taken in this cycle, if there is one.
        name: of the register of the turn.
        granted: register of whom was granted, if ``grant`` is low in the cycle after a choice was taken: then the turn
            follows it, and nothing of that is behind the requests.

    Returns:
        One bit of the requests, or 0.
    """
    count = len(requests)
    choice = Signal(count, name=f"{name}_choice")
    if count == 1:
        m.d.comb += choice.eq(requests)
        return choice
    turn = Signal(range(count), name=name)
    if count > MOST:
        fair = (requests >> turn) << turn
        candidates = Mux(fair.any(), fair, requests)
        m.d.comb += choice.eq(candidates & (~candidates + 1))
    else:
        m.d.comb += choice.eq(Array([_first(requests, first) for first in range(count)])[turn])
    # without requests nothing is chosen, and the turn stays: no need to ask, but between two it makes less logic
    taken = grant & (requests.any() if count == 2 else 1) if granted is None else Const(1)
    with m.If(taken):
        for n in range(count):
            with m.If((choice if granted is None else granted)[n]):
                m.d.sync += turn.eq((n + 1) % count)
    return choice


def _first(requests: Value, first: int) -> Value:
    """The first of the requests, counted from one of them and round."""
    one: list[Value] = [Const(0)] * len(requests)
    before: Value = Const(0)
    for n in (*range(first, len(requests)), *range(first)):
        one[n] = requests[n] & ~before
        before = before | requests[n]
    return Cat(one)
