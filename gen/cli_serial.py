"""Commands about boards behind serial ports: finding them, and a virtual one."""

from __future__ import annotations

import signal
import time
from typing import Any

import click
from maskwork.gen import cli_common as common
from maskwork.gen.config import Config
from maskwork.gen.errors import BoardError, MaskworkValueError

DEMO_A_WIDTH = 9
"""Bits of A that the demonstration needs: its images are unsigned bytes."""

_COLUMNS = ("board", "config", "hash", "PEs", "clock, MHz", "baud", "version")


@click.command(
    short_help="Find boards and read back what they hold.",
    epilog=common.examples(
        "maskwork devices",
        "maskwork devices --port /dev/pts/3 --json",
    ),
)
@click.option("--port", "ports", metavar="P", multiple=True, help="Ask this port too; repeatable.")
@click.option("--baud", type=click.IntRange(min=1), metavar="N", help="Ask at this rate only.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def devices(ports: tuple[str, ...], baud: int | None, as_json: bool) -> None:
    """Find boards on USB serial ports, and read their identity and configuration back.

    A port that --port names and that has no board is an error; of others that is said on standard
    error. Asking does not disturb a board that is idle. Run on one with `--target serial:PORT`.
    """
    from maskwork.fpga.link.find import find_boards
    from maskwork.fpga.link.port import usb_ports

    with common.progress("asking", len({*ports, *usb_ports()})) as step:
        found = find_boards(ports, baud, step)
    errors = {one["port"]: one["error"] for one in found if "error" in one}
    if as_json:
        common.print_json(found)
    else:
        _show_boards(found)
    for port, error in errors.items():
        if port not in ports:
            click.echo(error, err=True)
    if wanted := [port for port in ports if port in errors]:
        raise BoardError("; ".join(errors[port] for port in wanted))


def _show_boards(found: list[dict[str, Any]]) -> None:
    boards = [one for one in found if "error" not in one]
    if boards:
        table = common.new_table("port", *_COLUMNS)
        for one in boards:
            table.add_row(
                one["port"], one["board"], one["config"], f"{one['config_hash']:#010x}", str(one["pes"]),
                f"{one['clock_hz'] / 1e6:g}", str(one["baud"]), one["maskwork"],
            )  # fmt: skip
        common.console().print(table)
    else:
        asked = f"{len(found)} ports asked" if found else "no USB serial port is there"
        click.echo(f"No board found ({asked}). A virtual one: maskwork serve --board virtual")


@click.command(
    short_help="A virtual board behind a pseudo-terminal.",
    epilog=common.examples(
        "maskwork serve --board virtual",
        "maskwork serve --board virtual --preset tiny --faults 0.0005 --seed 7",
    ),
)
@common.config_options()
@click.option("--board", metavar="B", default="virtual", show_default=True, help="virtual is the only one.")
@click.option("--baud-cycles", metavar="N", type=int, default=4, show_default=True, help="Clock cycles of a bit.")
@click.option("--faults", metavar="RATE", type=float, default=0.0, help="Rate a byte of each kind of fault.")
@click.option("--drop", metavar="R", type=float, help="Rate of lost bytes, instead of --faults.")
@click.option("--flip", metavar="R", type=float, help="The same of bytes with a wrong bit.")
@click.option("--duplicate", metavar="R", type=float, help="The same of bytes that come twice.")
@click.option("--truncate", metavar="R", type=float, help="The same of frames cut short.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the faults.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the port, and the statistics at the end.")
def serve(
    config: Config, board: str, baud_cycles: int, faults: float, seed: int, as_json: bool, **kinds: float | None
) -> None:
    """Simulate the complete design of a board, its UART included, behind a pseudo-terminal, until interrupted.

    Prints the device file: use it as `--target serial:FILE`. Faults damage the bytes of both directions, and are
    counted at the end.
    """
    from maskwork.fpga.link.faults import FaultRates
    from maskwork.fpga.link.virtual import VirtualBoard
    if board != "virtual":
        raise MaskworkValueError(f"--board: only 'virtual' can be served, not {board!r}; flash others")
    rates = FaultRates(**{name: faults if rate is None else rate for name, rate in kinds.items()})
    with common.progress(f"building {config.name}", 1):
        server = VirtualBoard(config, baud_cycles=baud_cycles, faults=rates, seed=seed)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with server as port:
            if as_json:
                common.print_json({"port": port, "config": config.name, "pes": config.pes})
            else:
                click.echo(f"virtual board with {config.name} ({config.pes} PEs) on {port}; Ctrl-C ends it")
                if (named := _named(config)) is not None and config.a_width >= DEMO_A_WIDTH:
                    click.echo(f"  maskwork demo{named} --target serial:{port}")
            while server.running:
                time.sleep(0.1)
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, previous)
    _show_statistics(server, as_json)


def _named(config: Config) -> str | None:
    """The option that names this configuration; None if it is no preset."""
    from maskwork.gen.config import presets

    name = next((name for name, known in presets().items() if known.hash == config.hash), None)
    return None if name is None else "" if name == common.DEFAULT_PRESET else f" --preset {name}"


def _show_statistics(server: Any, as_json: bool) -> None:
    lines = {"to the board": server.to_board, "from the board": server.from_board}
    if as_json:
        common.print_json({name: {"bytes": line.bytes, **line.counts} for name, line in lines.items()})
        return
    for name, line in lines.items():
        faults = ", ".join(f"{count} {kind}" for kind, count in line.counts.items())
        click.echo(f"{name}: {line.bytes} bytes; faults: {faults}")
