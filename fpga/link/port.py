"""Serial ports: opening them, bytes in and out, and what can go wrong, in one line each."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from typing import Any

import serial
from maskwork.gen.errors import BoardError, MaskworkValueError
from serial.tools import list_ports

BAUDS = (3_000_000, 2_000_000, 1_000_000, 921_600, 460_800, 115_200)
"""Rates at which a board is looked for."""


def usb_ports() -> dict[str, str]:
    """Serial ports of USB devices: device file and description."""
    return {port.device: port.description or "" for port in list_ports.comports() if port.vid is not None}


class SerialTransport:
    """A serial port as :class:`maskwork.fpga.link.line.Transport`.

    Args:
        port: device file or port name.
        baud: bits a second.

    Raises:
        MaskworkValueError: if there is no such port, it is no serial port, or the rate is impossible.
        BoardError: if it may not be opened, or another program uses it.
    """

    def __init__(self, port: str, baud: int):
        self.port, self.baud = port, baud
        try:
            # exclusive: two programs on one port would take each other's answers
            self._serial = serial.Serial(port, baud, timeout=0, write_timeout=10, exclusive=True)
        except (OSError, ValueError) as error:  # SerialException is an OSError
            raise _open_error(port, baud, error) from None
        with contextlib.suppress(OSError, ValueError, AttributeError, NotImplementedError):
            # FTDI's adapters keep short answers for 16 ms otherwise; few other ports know this
            self._serial.set_low_latency_mode(True)
        self._file = self._serial.fileno() if os.name == "posix" else None

    def write(self, data: bytes) -> None:
        """Send all of them."""
        try:
            self._serial.write(data)
        except OSError as error:
            raise self._gone(error) from None

    def read(self, timeout: float) -> bytes:
        """What has come, at least one byte unless none comes within ``timeout`` seconds."""
        try:
            if self._file is not None:
                if not select.select([self._file], [], [], timeout)[0]:
                    return b""
                data = os.read(self._file, 65536)
                if not data:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                return data
            end = time.monotonic() + timeout
            while not (data := self._serial.read(65536)) and time.monotonic() < end:
                time.sleep(0.0005)
            return data
        except (OSError, ValueError) as error:
            raise self._gone(error) from None

    def time(self) -> float:
        """Seconds, from any beginning."""
        return time.monotonic()

    def close(self) -> None:
        """Give the port back."""
        with contextlib.suppress(OSError):  # it may be gone already
            self._serial.close()

    def _gone(self, error: Any) -> BoardError:
        reason = getattr(error, "strerror", None) or error
        return BoardError(f"serial:{self.port}: the port is gone ({reason}): was the board unplugged?")


def _open_error(port: str, baud: int, error: Exception) -> Exception:
    name = f"serial:{port}"
    number, text = getattr(error, "errno", None), str(error)
    if isinstance(error, ValueError) or "Invalid baud" in text:
        return MaskworkValueError(f"{name}: the port does not do {baud} baud")
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO) or "FileNotFoundError" in text:
        ports = ", ".join(usb_ports()) or "none (is the board plugged in?)"
        return MaskworkValueError(f"{name}: no such port; ports: {ports}")
    if number in (errno.EACCES, errno.EPERM) or "PermissionError" in text:
        return BoardError(
            f"{name}: no permission; on Linux join the port's group ('sudo usermod -aG dialout $USER', then log in "
            "anew) or install a udev rule for the board"
        )
    if number in (errno.EBUSY, errno.EAGAIN) or "exclusively lock" in text:
        return BoardError(f"{name}: in use by another program")
    if number in (errno.ENOTTY, errno.EISDIR, errno.EINVAL) or "configure port" in text:
        return MaskworkValueError(f"{name}: not a serial port")
    return BoardError(f"{name}: cannot be opened ({getattr(error, 'strerror', None) or error})")
