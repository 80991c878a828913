"""What a board says of itself (docs/link.md, READ_ID)."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import Any

from maskwork.gen.config import Config
from maskwork.gen.errors import BoardError, ConfigError, MaskworkValueError

MAX_BYTES = 1024
"""Of an identity, its first word included."""


@dataclass(frozen=True)
class Identity:
    """A board's design.

    Attributes:
        maskwork: version that built it.
        board: the board's name, as ``maskwork build --board`` takes it.
        config: the accelerator's configuration.
        clock_hz: its clock, Hz.
        baud: of the link, bits a second.
    """

    maskwork: str
    board: str
    config: Config
    clock_hz: int
    baud: int


def identity_words(config: Config, board: str, clock_hz: float, baud: float) -> bytes:
    """The identity as a board holds it: a word with its length, then compressed JSON, padded to whole words.

    Raises:
        MaskworkValueError: if it is longer than 256 words (a very long name, say).
    """
    from maskwork import __version__

    defaults = Config().to_dict()
    changes = {key: value for key, value in config.to_dict().items() if value != defaults[key]}
    document: dict[str, Any] = {
        "maskwork": __version__,
        "board": board,
        "config": changes,
        "clock_hz": round(clock_hz),
        "baud": round(baud),
    }
    blob = zlib.compress(json.dumps(document, separators=(",", ":")).encode(), 9)
    data = len(blob).to_bytes(4, "little") + blob + bytes(-len(blob) % 4)
    if len(data) > MAX_BYTES:
        raise MaskworkValueError(
            f"name and board must be short enough for an identity of {MAX_BYTES} bytes, not {len(data)}"
        )
    return data


def parse_identity(data: bytes) -> Identity:
    """The opposite of :func:`identity_words`; bytes behind the identity are ignored.

    Raises:
        BoardError: if it is no identity, or of a configuration that this version does not know.
    """
    length = int.from_bytes(data[:4], "little")
    if not 0 < length <= min(len(data), MAX_BYTES) - 4:
        raise BoardError(f"the board's identity claims {length} bytes; 1 to {max(0, len(data) - 4)} were expected")
    try:
        document = json.loads(zlib.decompress(data[4 : 4 + length]))
        values = {key: document[key] for key in ("maskwork", "board", "config", "clock_hz", "baud")}
        values["config"] = Config.from_dict(values["config"], where="the board's configuration")
    except ConfigError as error:
        raise BoardError(f"{error}; a board built with this version of maskwork is expected") from None
    except (zlib.error, ValueError, KeyError, TypeError, AttributeError):
        raise BoardError("the board's identity cannot be read; compressed JSON (docs/link.md) was expected") from None
    return Identity(**values)
