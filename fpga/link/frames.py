"""Frames of the host link: bytes between flags, escapes, CRC, and the fields of control and status words."""

from __future__ import annotations

import enum
import zlib
from dataclasses import dataclass
from struct import Struct

FLAG = b"\x7e"
ESC = b"\x7d"
_FLAG_ESCAPED = b"\x7d\x5e"
_ESC_ESCAPED = b"\x7d\x5d"

LINK_VERSION = 1
MODULUS = 1024
"""Words are numbered modulo this."""

BUFFER_WORDS = 512
"""Most words that a board keeps, or has room for, in each direction."""

ANSWER_WORDS = 64
"""Most words in a frame."""

_WORD = Struct("<I")
_TWO_WORDS = Struct("<II")
_LONGEST = 2 * 4 * (255 + 3)
"""Bytes between two flags, escapes included, that can still be a frame."""


class Kind(enum.IntEnum):
    """What a frame is about."""

    DATA = 0
    RESET = 1
    READ_ID = 2


@dataclass(frozen=True, slots=True)
class Command:
    """A frame to the board.

    Members:
        kind: a :class:`Kind`, or 3, which means nothing.
        seq: number of the first word, modulo 1024 (READ_ID: offset; RESET: any number).
        ack: number of the next word that the host expects.
        words: the words, 4 bytes each, least significant first.
        end: the last of them ends a packet.
        again: the board sends again from ``ack`` on.
    """

    kind: int
    seq: int = 0
    ack: int = 0
    words: bytes = b""
    end: bool = False
    again: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A frame from the board.

    Members:
        kind: of the frame that it answers.
        seq: number of the first word (READ_ID: offset; RESET: as asked).
        ack: number of the next word that the board expects.
        words: the words, 4 bytes each, least significant first.
        end: the last of them ends a packet.
        free: words that the board's receive buffer has room for.
        dropped: frames that the board dropped since RESET, modulo 256.
        version: of the link.
    """

    kind: int
    seq: int
    ack: int
    words: bytes
    end: bool
    free: int
    dropped: int
    version: int = LINK_VERSION


def wrap(body: bytes) -> bytes:
    """Body, its CRC, escapes and flags on both sides."""
    body += _WORD.pack(zlib.crc32(body))
    return FLAG + body.replace(ESC, _ESC_ESCAPED).replace(FLAG, _FLAG_ESCAPED) + FLAG


def encode_command(
    kind: int, seq: int = 0, ack: int = 0, words: bytes = b"", end: bool = False, again: bool = False
) -> bytes:
    """Bytes of a frame to the board; members as in :class:`Command`, numbers are taken modulo 1024."""
    control = seq & 1023 | (ack & 1023) << 10 | len(words) >> 2 << 20 | end << 28 | again << 29 | kind << 30
    return wrap(_WORD.pack(control) + words)


def encode_answer(answer: Answer) -> bytes:
    """Bytes of a frame from the board."""
    control = answer.seq & 1023 | (answer.ack & 1023) << 10 | len(answer.words) >> 2 << 20
    control |= answer.end << 28 | answer.kind << 30
    status = answer.free | (answer.dropped & 255) << 16 | answer.version << 24
    return wrap(answer.words + _TWO_WORDS.pack(control, status))


def parse_command(body: bytes) -> Command | None:
    """A frame to the board from its body (without CRC); None if it is of the wrong length."""
    (control,) = _WORD.unpack_from(body)
    if len(body) != 4 * ((control >> 20 & 255) + 1):
        return None
    return Command(
        control >> 30, control & 1023, control >> 10 & 1023, body[4:], bool(control >> 28 & 1), bool(control >> 29 & 1)
    )


def parse_answer(body: bytes) -> Answer | None:
    """A frame from the board from its body (without CRC); None if it is of the wrong length."""
    if len(body) < 8:
        return None
    control, status = _TWO_WORDS.unpack_from(body, len(body) - 8)
    if len(body) != 4 * ((control >> 20 & 255) + 2):
        return None
    return Answer(
        control >> 30, control & 1023, control >> 10 & 1023, body[:-8], bool(control >> 28 & 1),
        status & 0xFFFF, status >> 16 & 255, status >> 24,
    )  # fmt: skip


class Splitter:
    """Finds the frames in a stream of bytes.

    Members:
        dropped: frames that were not of whole words, or had a wrong CRC.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._rest = b""
        self._lost = True  # what comes before the first flag is no frame

    def feed(self, data: bytes) -> list[bytes]:
        """Bodies, without CRC, of the frames that are complete now."""
        pieces = (self._rest + data).split(FLAG)
        self._rest = pieces.pop()
        bodies = []
        for piece in pieces:
            if self._lost:
                self._lost = False
                self.dropped += bool(piece)
                continue
            if not piece:
                continue
            if escapes := piece.count(ESC):
                if escapes != piece.count(_FLAG_ESCAPED) + piece.count(_ESC_ESCAPED):
                    self.dropped += 1
                    continue
                piece = piece.replace(_FLAG_ESCAPED, FLAG).replace(_ESC_ESCAPED, ESC)
            body = piece[:-4]
            if len(piece) % 4 or not body or zlib.crc32(body) != _WORD.unpack_from(piece, len(body))[0]:
                self.dropped += 1
                continue
            bodies.append(body)
        if len(self._rest) > _LONGEST:
            self._rest, self._lost = b"", True
        return bodies
