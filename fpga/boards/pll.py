"""PLLs: settings for a wanted clock, searched for, and the cell that has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction

from maskwork.gen.errors import MaskworkValueError

MEGA = 1_000_000


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a family's PLL can do, in MHz: (lowest, highest), both included.

    ECP5: FPGA-DS-02012, sysCLOCK PLL timing. iCE40 UltraPlus: FPGA-DS-02008, sysCLOCK PLL timing. GW1N(R)-9, C6/I5:
    DS117, PLL switching characteristics.
    """

    pfd: tuple[int, int]
    vco: tuple[int, int]
    output: tuple[int, int]


LIMITS = {
    "ecp5": Limits(pfd=(10, 400), vco=(400, 800), output=(4, 400)),
    "ice40": Limits(pfd=(10, 133), vco=(533, 1066), output=(16, 275)),
    "gowin": Limits(pfd=(3, 400), vco=(400, 1200), output=(4, 600)),
}

GOWIN_ODIV = (2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128)


@dataclasses.dataclass(frozen=True)
class Pll:
    """Settings of a PLL; ``divider`` 0 stands for no PLL: the input is the clock.

    Attributes:
        family: "ecp5", "ice40" or "gowin".
        input_hz: clock of the board.
        reference: divides the input; the phase detector (PFD) works at the result.
        feedback: VCO cycles for each cycle of the phase detector.
        divider: divides the VCO's clock.
    """

    family: str
    input_hz: int
    reference: int = 1
    feedback: int = 1
    divider: int = 0

    @property
    def pfd_hz(self) -> Fraction:
        """Clock of the phase detector."""
        return Fraction(self.input_hz, self.reference)

    @property
    def vco_hz(self) -> Fraction:
        """Clock of the oscillator."""
        return self.pfd_hz * self.feedback

    @property
    def output_hz(self) -> Fraction:
        """The clock made."""
        return self.vco_hz / self.divider if self.divider else Fraction(self.input_hz)

    def verilog(self) -> str:
        """Statements that make the wires ``clk`` and ``locked`` from the input ``clk_in``."""
        return _VERILOG[self.family](self) if self.divider else _THROUGH


def best(family: str, input_hz: int, wanted_hz: int) -> Pll:
    """The settings that come nearest to a clock without exceeding it.

    Of those that make the same clock, the one with the fastest phase detector (least jitter), then the one whose VCO is
    nearest to the middle of its range. The input itself, without a PLL, is taken where it is no worse.

    Raises:
        MaskworkValueError: if the clock is out of range.
    """
    limits = LIMITS[family]
    middle = MEGA * sum(limits.vco) // 2
    through = Pll(family, input_hz)
    found = [through] if input_hz <= wanted_hz else []
    found += _SEARCH[family](input_hz, wanted_hz)
    lowest, highest = clocks(family, input_hz)
    if not found or wanted_hz > highest:
        raise MaskworkValueError(
            f"a clock of {wanted_hz / MEGA:g} MHz cannot be made from {input_hz / MEGA:g} MHz; "
            f"{lowest / MEGA:g} to {highest / MEGA:g} MHz are possible"
        )
    return max(found, key=lambda pll: (pll.output_hz, not pll.divider, pll.pfd_hz, -abs(pll.vco_hz - middle)))


def clocks(family: str, input_hz: int) -> tuple[int, int]:
    """The lowest and the highest clock that can be made of an input, in Hz."""
    output = LIMITS[family].output
    return min(input_hz, output[0] * MEGA), output[1] * MEGA


def all_settings(family: str, input_hz: int) -> Iterator[Pll]:
    """Every setting that the family's limits allow."""
    return _SEARCH[family](input_hz, None)


def _within(value: Fraction, limits: tuple[int, int]) -> bool:
    return limits[0] * MEGA <= value <= limits[1] * MEGA


def _settings(
    family: str, input_hz: int, references: range, feedbacks: range, dividers: tuple[int, ...] | range, most: int | None
) -> Iterator[Pll]:
    """Settings within the limits; if ``most`` is given, for each clock of the VCO the fastest that is not above it."""
    limits = LIMITS[family]
    for reference in references:
        if not _within(Fraction(input_hz, reference), limits.pfd):
            continue
        for feedback in feedbacks:
            if not _within(Fraction(input_hz * feedback, reference), limits.vco):
                continue
            first = 1 if most is None else -(-input_hz * feedback // (reference * most))
            for divider in dividers:
                if divider < first:
                    continue
                pll = Pll(family, input_hz, reference, feedback, divider)
                if _within(pll.output_hz, limits.output) and (most is None or pll.output_hz <= most):
                    yield pll
                    if most is not None:
                        break


def _ecp5_settings(input_hz: int, most: int | None) -> Iterator[Pll]:
    # output CLKOP, divided by `feedback`, is fed back; CLKOS is the clock
    return _settings("ecp5", input_hz, range(1, 129), range(1, 129), range(1, 129), most)


def _ice40_settings(input_hz: int, most: int | None) -> Iterator[Pll]:
    return _settings("ice40", input_hz, range(1, 17), range(1, 129), tuple(1 << q for q in range(1, 7)), most)


def _gowin_settings(input_hz: int, most: int | None) -> Iterator[Pll]:
    # the output is fed back: the VCO makes a whole multiple of the divider
    for divider in GOWIN_ODIV:
        yield from _settings(
            "gowin", input_hz, range(1, 65), range(divider, 64 * divider + 1, divider), (divider,), most
        )


def _ecp5_verilog(pll: Pll) -> str:
    parameters = {
        "PLLRST_ENA": '"DISABLED"', "INTFB_WAKE": '"DISABLED"', "STDBY_ENABLE": '"DISABLED"',
        "DPHASE_SOURCE": '"DISABLED"', "OUTDIVIDER_MUXA": '"DIVA"', "OUTDIVIDER_MUXB": '"DIVB"',
        "OUTDIVIDER_MUXC": '"DIVC"', "OUTDIVIDER_MUXD": '"DIVD"', "CLKI_DIV": pll.reference, "FEEDBK_PATH": '"CLKOP"',
        "CLKFB_DIV": 1, "CLKOP_ENABLE": '"ENABLED"', "CLKOP_DIV": pll.feedback, "CLKOP_CPHASE": pll.feedback - 1,
        "CLKOP_FPHASE": 0, "CLKOS_ENABLE": '"ENABLED"', "CLKOS_DIV": pll.divider, "CLKOS_CPHASE": pll.divider - 1,
        "CLKOS_FPHASE": 0,
    }  # fmt: skip
    inputs = {name: "1'b0" for name in ("RST", "STDBY", "PHASESEL0", "PHASESEL1", "PHASEDIR", "PHASESTEP", "ENCLKOP")}
    ports = {"CLKI": "clk_in", "CLKFB": "feedback", "CLKOP": "feedback", "CLKOS": "clk", "LOCK": "locked", **inputs}
    attributes = '(* ICP_CURRENT="12", LPF_RESISTOR="8", MFG_ENABLE_FILTEROPAMP="1", MFG_GMCREF_SEL="2" *)'
    return f"  wire clk, locked, feedback;\n  {attributes}\n" + _instance("EHXPLLL", parameters, ports)


def _ice40_verilog(pll: Pll) -> str:
    pfd = pll.pfd_hz / MEGA
    filter_range = next((n for n, above in enumerate((17, 26, 44, 66, 101), 1) if pfd < above), 6)
    parameters = {
        "FEEDBACK_PATH": '"SIMPLE"', "DIVR": f"4'd{pll.reference - 1}", "DIVF": f"7'd{pll.feedback - 1}",
        "DIVQ": f"3'd{pll.divider.bit_length() - 1}", "FILTER_RANGE": f"3'd{filter_range}",
        "PLLOUT_SELECT": '"GENCLK"',
    }  # fmt: skip
    ports = {"PACKAGEPIN": "clk_in", "PLLOUTGLOBAL": "clk", "LOCK": "locked", "RESETB": "1'b1", "BYPASS": "1'b0"}
    return "  wire clk, locked;\n" + _instance("SB_PLL40_PAD", parameters, ports)


def _gowin_verilog(pll: Pll) -> str:
    parameters = {
        "FCLKIN": f'"{pll.input_hz / MEGA:g}"', "DEVICE": '"GW1NR-9C"', "IDIV_SEL": pll.reference - 1,
        "FBDIV_SEL": pll.feedback // pll.divider - 1, "ODIV_SEL": pll.divider, "DYN_IDIV_SEL": '"false"',
        "DYN_FBDIV_SEL": '"false"', "DYN_ODIV_SEL": '"false"', "DYN_DA_EN": '"false"', "PSDA_SEL": '"0000"',
        "DUTYDA_SEL": '"1000"', "CLKOUT_FT_DIR": "1'b1", "CLKOUTP_FT_DIR": "1'b1", "CLKOUT_DLY_STEP": 0,
        "CLKOUTP_DLY_STEP": 0, "CLKFB_SEL": '"internal"', "CLKOUT_BYPASS": '"false"', "CLKOUTP_BYPASS": '"false"',
        "CLKOUTD_BYPASS": '"false"', "DYN_SDIV_SEL": 2, "CLKOUTD_SRC": '"CLKOUT"', "CLKOUTD3_SRC": '"CLKOUT"',
    }  # fmt: skip
    widths = {"FBDSEL": 6, "IDSEL": 6, "ODSEL": 6, "PSDA": 4, "DUTYDA": 4, "FDLY": 4}
    ports = {"CLKIN": "clk_in", "CLKOUT": "clk", "LOCK": "locked", "CLKFB": "1'b0", "RESET": "1'b0", "RESET_P": "1'b0"}
    ports |= {name: f"{width}'b0" for name, width in widths.items()}
    return "  wire clk, locked;\n" + _instance("rPLL", parameters, ports)


def _instance(cell: str, parameters: Mapping[str, str | int], ports: Mapping[str, str]) -> str:
    values = ", ".join(f".{name}({value})" for name, value in parameters.items())
    connections = ", ".join(f".{name}({value})" for name, value in ports.items())
    return f"  {cell} #({values})\n    pll ({connections});\n"


_THROUGH = "  wire clk = clk_in;\n  wire locked = 1'b1;\n"

_SEARCH: dict[str, Callable[[int, int | None], Iterator[Pll]]] = {
    "ecp5": _ecp5_settings,
    "ice40": _ice40_settings,
    "gowin": _gowin_settings,
}

_VERILOG: dict[str, Callable[[Pll], str]] = {
    "ecp5": _ecp5_verilog,
    "ice40": _ice40_verilog,
    "gowin": _gowin_verilog,
}
