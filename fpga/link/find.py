"""Finding boards on serial ports."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from maskwork.fpga.link.driver import open_board
from maskwork.fpga.link.port import usb_ports
from maskwork.gen.errors import MaskworkError


def probe(port: str, baud: int | None = None) -> dict[str, Any]:
    """What a port says about itself; a board is not disturbed by the question.

    Args:
        port: device file or port name.
        baud: bits a second; None looks for the rate.

    Returns:
        ``port``, and of a board ``board``, ``config`` (its name), ``config_hash``, ``pes``, ``clock_hz``, ``baud``,
        ``maskwork`` (the version that built it) and ``settings`` (the whole configuration); else ``error``.
    """
    try:
        transport, identity = open_board(port, baud)
    except MaskworkError as error:
        return {"port": port, "error": str(error)}
    transport.close()
    return {
        "port": port, "board": identity.board, "config": identity.config.name, "config_hash": identity.config.hash,
        "pes": identity.config.pes, "clock_hz": identity.clock_hz, "baud": identity.baud,
        "maskwork": identity.maskwork, "settings": identity.config.to_dict(),
    }  # fmt: skip


def find_boards(
    ports: Iterable[str] = (), baud: int | None = None, step: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Ask the USB serial ports, and those that are named.

    Args:
        ports: further ports, such as virtual boards.
        baud: bits a second; None looks for the rate.
        step: told each port when it has been asked.

    Returns:
        For each port what :func:`probe` returns.
    """
    names = list(dict.fromkeys([*ports, *usb_ports()]))
    found = []
    for port in names:
        found.append(probe(port, baud))
        step(port)
    return found
