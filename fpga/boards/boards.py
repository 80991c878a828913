"""The boards: device, clock, pins, programmer and what they are built with by default."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from maskwork.gen.errors import MaskworkError, MaskworkValueError

MISSING = "{} is missing: pip install 'maskwork[boards]' brings it"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Board:
    """A board.

    Attributes:
        name: as ``--board`` takes it.
        title: what it is called.
        device, package, speed: of the FPGA.
        family: "ecp5", "ice40" or "gowin".
        nextpnr: options that name the device.
        platform: module and class with its pins.
        uart: what the UART's pins are, for the user.
        led: resource that shows activity ("" for none).
        high: resources that are held high.
        programmer: how `maskwork flash` calls openFPGALoader (``--board`` or ``--cable`` and their value).
        preset: configuration by default.
        clock_mhz: clock by default, which that configuration reaches.
        baud: of the UART by default.
        seed: of the placer by default: seeds differ widely on a large design, and this one was seen to reach the clock.
        totals: LUTs (logic cells), FFs, block RAMs and multipliers that the device has.
    """

    name: str
    title: str
    device: str
    package: str
    speed: str
    family: str
    nextpnr: tuple[str, ...]
    platform: str
    uart: str = "its USB port"
    led: str = "led"
    high: tuple[str, ...] = ()
    programmer: tuple[str, ...]
    preset: str
    clock_mhz: float
    baud: int = 3_000_000
    seed: int = 1
    totals: dict[str, int]

    @property
    def bitstream(self) -> str:
        """File name of its bitstream."""
        return self.name + {"ecp5": ".bit", "ice40": ".bin", "gowin": ".fs"}[self.family]

    def pins(self) -> list[Pin]:
        """Its pins that the top uses: ``clk_in``, ``uart_rx``, ``uart_tx``, ``led`` and ``high0``...

        Raises:
            MaskworkError: if amaranth-boards, which has most boards' pins, is missing.
        """
        module, _, name = self.platform.partition(":")
        try:
            platform = getattr(importlib.import_module(module), name)()
        except ModuleNotFoundError as error:
            if error.name != "amaranth_boards":
                raise
            raise MaskworkError(MISSING.format("amaranth-boards")) from None
        wanted = {"clk_in": platform.default_clk, "uart_rx": "uart.rx", "uart_tx": "uart.tx"}
        if self.led:
            wanted["led"] = self.led
        wanted |= {f"high{number}": resource for number, resource in enumerate(self.high)}
        return [_pin(platform, port, resource) for port, resource in wanted.items()]


@dataclasses.dataclass(frozen=True)
class Pin:
    """A pin of the top.

    Attributes:
        port: name in the top.
        site: where it is.
        attributes: electrical ones, as the family's constraints spell them.
        invert: it is active low.
        clock_hz: of a clock input, else 0.
    """

    port: str
    site: str
    attributes: dict[str, str]
    invert: bool = False
    clock_hz: int = 0


def _pin(platform: Any, port: str, resource: str) -> Pin:
    name, _, signal = resource.partition(".")
    found = platform.lookup(name, 0)
    attributes = dict(found.attrs)
    part = found
    if signal:
        part = next(one for one in found.ios if one.name == signal)
        attributes |= part.attrs
    pins = part.ios[0]
    (site,) = pins.map_names(platform._conn_pins, found)
    clock = part.clock or found.clock
    texts = {key: str(value) for key, value in attributes.items()}
    return Pin(port, site, texts, pins.invert, round(clock.frequency) if clock else 0)


ECP5_85F = {"luts": 83640, "ffs": 83640, "brams": 208, "dsps": 156}
ECP5_45F = {"luts": 43848, "ffs": 43848, "brams": 108, "dsps": 72}
ECP5_25F = {"luts": 24288, "ffs": 24288, "brams": 56, "dsps": 28}
UP5K = {"luts": 5280, "ffs": 5280, "brams": 30, "dsps": 8}
GW1NR_9C = {"luts": 8640, "ffs": 6480, "brams": 26, "dsps": 20}


def _ulx3s(size: str, preset: str, clock_mhz: float, totals: dict[str, int], seed: int = 1) -> Board:
    return Board(
        name=f"ulx3s-{size.lower()}", title=f"ULX3S {size}", device=f"LFE5U-{size}", package="CABGA381", speed="6",
        family="ecp5", nextpnr=(f"--{size[:-1]}k", "--package", "CABGA381", "--speed", "6"),
        platform=f"amaranth_boards.ulx3s:ULX3S_{size}_Platform", high=("esp32.gpio0",), programmer=("--board", "ulx3s"),
        preset=preset, clock_mhz=clock_mhz, seed=seed, totals=totals,
    )  # fmt: skip


def _orangecrab(size: str, preset: str, clock_mhz: float, totals: dict[str, int]) -> Board:
    return Board(
        name=f"orangecrab-{size.lower()}", title=f"OrangeCrab r0.2 {size}", device=f"LFE5U-{size}", package="CSFBGA285",
        speed="8", family="ecp5", nextpnr=(f"--{size[:-1]}k", "--package", "CSFBGA285", "--speed", "8"),
        platform=f"maskwork.fpga.boards.platforms:OrangeCrab{size}", uart="header pins 0 (RX) and 1 (TX), 3.3 V",
        led="rgb_led.g", programmer=("--board", "orangeCrab"), preset=preset, clock_mhz=clock_mhz, totals=totals,
    )  # fmt: skip


def _ecpix5(size: str, preset: str, clock_mhz: float, totals: dict[str, int]) -> Board:
    return Board(
        name=f"ecpix5-{size.lower()}", title=f"ECPIX-5 {size}", device=f"LFE5UM5G-{size}", package="CABGA554",
        speed="8", family="ecp5", nextpnr=(f"--um5g-{size[:-1]}k", "--package", "CABGA554", "--speed", "8"),
        platform=f"amaranth_boards.ecpix5:ECPIX5{size[:-1]}Platform", led="rgb_led.g",
        programmer=("--board", "ecpix5"), preset=preset, clock_mhz=clock_mhz, totals=totals,
    )  # fmt: skip


BOARDS: dict[str, Board] = {
    board.name: board
    for board in (
        _ulx3s("85F", "ulx3s-85f", 75, ECP5_85F, seed=2),
        _ulx3s("25F", "ecp5-25f", 60, ECP5_25F),
        _ulx3s("12F", "ecp5-25f", 60, ECP5_25F),
        _orangecrab("85F", "ulx3s-85f", 75, ECP5_85F),
        _orangecrab("25F", "ecp5-25f", 90, ECP5_25F),
        Board(
            name="icebreaker", title="iCEBreaker", device="iCE40UP5K", package="SG48", speed="", family="ice40",
            nextpnr=("--up5k", "--package", "sg48"), platform="amaranth_boards.icebreaker:ICEBreakerPlatform",
            led="", programmer=("--board", "ice40_generic"), preset="icebreaker-link", clock_mhz=24,
            totals=UP5K,
        ),
        Board(
            name="colorlight-i5", title="Colorlight i5 on its extension board", device="LFE5U-25F",
            package="CABGA381", speed="6", family="ecp5", nextpnr=("--25k", "--package", "CABGA381", "--speed", "6"),
            platform="maskwork.fpga.boards.platforms:ColorlightI5", programmer=("--board", "colorlight-i5"),
            preset="ecp5-25f", clock_mhz=60, baud=1_000_000, totals=ECP5_25F,
        ),
        _ecpix5("85F", "ulx3s-85f", 60, ECP5_85F),
        _ecpix5("45F", "ecp5-25f", 96, ECP5_45F),
        Board(
            name="tang-nano-9k", title="Tang Nano 9K", device="GW1NR-LV9QN88PC6/I5", package="QN88P", speed="C6/I5",
            family="gowin", nextpnr=("--device", "GW1NR-LV9QN88PC6/I5", "--vopt", "family=GW1N-9C"),
            platform="amaranth_boards.tang_nano_9k:TangNano9kPlatform", programmer=("--board", "tangnano9k"),
            preset="tang-nano-9k", clock_mhz=54, baud=1_000_000, totals=GW1NR_9C,
        ),
    )
}  # fmt: skip


def find_board(name: str) -> Board:
    """A board.

    Raises:
        MaskworkValueError: if there is none of that name; the message lists those there are.
    """
    if name not in BOARDS:
        raise MaskworkValueError(f"--board: unknown board {name!r}; boards: {', '.join(BOARDS)}")
    return BOARDS[name]
