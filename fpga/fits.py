"""Designs that are too large for a device, from what nextpnr says of them."""

from __future__ import annotations

import re

CELLS = {
    "ecp5": {"luts": ("TRELLIS_COMB",), "ffs": ("TRELLIS_FF",), "brams": ("DP16KD",), "dsps": ("MULT18X18D",)},
    "ice40": {"luts": ("ICESTORM_LC",), "brams": ("ICESTORM_RAM",), "dsps": ("ICESTORM_DSP",)},
    "gowin": {"luts": ("LUT4", "ALU"), "ffs": ("DFF",), "brams": ("BSRAM",), "dsps": ("MULT18X18", "MULT9X9")},
}
"""nextpnr's cells by what the report calls them."""

NAMES = {
    "TRELLIS_COMB": "LUTs", "TRELLIS_FF": "flip-flops", "DP16KD": "block RAMs", "MULT18X18D": "multipliers",
    "ICESTORM_LC": "logic cells", "ICESTORM_RAM": "block RAMs", "ICESTORM_DSP": "multipliers",
    "ICESTORM_SPRAM": "SPRAMs", "LUT4": "LUTs", "DFF": "flip-flops", "BSRAM": "block RAMs", "ALU": "carry cells",
    "MULT18X18": "multipliers", "MULT9X9": "multipliers", "RAM16SDP4": "LUT RAMs", "TRELLIS_RAMW": "LUT RAMs",
}  # fmt: skip

_REDUCE = {
    "block RAMs": "k_depth, a_depth, fifo_depth, psum_rows, lanes or slots",
    "multipliers": "lanes or pes_per_lane",
    "SPRAMs": "a_depth",
}
REDUCE_LOGIC = "lanes, pes_per_lane, slots or queue_depth, or set counters=false or post=false"

_USED = re.compile(r"^Info:\s+(\w+):\s+(\d+)/\s*(\d+)\s+\d+%", re.MULTILINE)


def does_not_fit(name: str, family: str, log: str, reduce: str | None = None) -> str | None:
    """What nextpnr's log says of cells that the device does not have, as one line.

    Args:
        name: of the board or design.
        family: "ecp5", "ice40" or "gowin".
        log: nextpnr's.
        reduce: what helps; None names fields of the accelerator's configuration.

    Returns:
        By how much it does not fit and what to reduce; None if it failed for another reason.
    """
    used = {cell: (int(count), int(available)) for cell, count, available in _USED.findall(log)}
    over = {cell: counts for cell, counts in used.items() if counts[0] > counts[1]}
    crowded = "utilisation limit" in log or "check constraints and utilisation" in log
    if not over and not crowded:
        return None
    if over:
        kinds = {NAMES.get(cell) or cell for cell in over}
        parts = [f"{n} of {available} {NAMES.get(cell) or cell}" for cell, (n, available) in over.items()]
        needs = f"needs {', '.join(parts)}"
    else:
        cell = CELLS[family]["luts"][0]
        count, available = used.get(cell, (0, 0))
        needs = f"no legal placement for {count} of {available} {NAMES[cell]}, which is too full"
        kinds = {"logic"}
    advice = [_REDUCE[kind] for kind in sorted(kinds) if kind in _REDUCE]
    if kinds - _REDUCE.keys():
        advice.append(REDUCE_LOGIC)
    return f"{name}: the design does not fit: {needs}; reduce {reduce or '; '.join(advice)}"
