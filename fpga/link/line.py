"""What the host's end of the link stands on: a line that carries bytes, statistics, time limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from maskwork.gen.errors import BoardError


class Transport(Protocol):
    """Bytes to and from a board."""

    def write(self, data: bytes) -> None:
        """Send all of them."""
        ...

    def read(self, timeout: float) -> bytes:
        """What has come, at least one byte unless none comes within ``timeout`` seconds."""
        ...

    def time(self) -> float:
        """Seconds, from any beginning."""
        ...


@dataclass
class LinkStatistics:
    """What the link did since it was opened.

    Members:
        frames: frames sent, repeated ones included.
        polls: of those, frames without words.
        words_sent: words that the board acknowledged.
        words_repeated: words that were sent again.
        words_received: words received, each counted once.
        answers: answers received.
        answers_dropped: frames from the board with a wrong CRC or length.
        board_dropped: frames that the board says it dropped.
        gaps: times that answers were missing, and asked for again.
        go_backs: times that words were sent again.
        bytes_out: bytes written.
        bytes_in: bytes read.
    """

    frames: int = 0
    polls: int = 0
    words_sent: int = 0
    words_repeated: int = 0
    words_received: int = 0
    answers: int = 0
    answers_dropped: int = 0
    board_dropped: int = 0
    gaps: int = 0
    go_backs: int = 0
    bytes_out: int = 0
    bytes_in: int = 0


class NoAnswer(BoardError):
    """Nothing came back from the board."""


class Timer:
    """A time limit that follows from what was measured: twice the recent maximum, more after every expiry."""

    def __init__(self, first: float, least: float, most: float, most_backoff: int = 16):
        self._estimate: float | None = None
        self._first, self._least, self._most, self._most_backoff = first, least, most, most_backoff
        self._backoff = 1

    @property
    def limit(self) -> float:
        """Seconds."""
        base = self._first if self._estimate is None else max(self._least, 2 * self._estimate)
        return min(self._most, base * self._backoff)

    def measured(self, seconds: float) -> None:
        """What was waited for came after so long."""
        if not seconds:  # it came together with another
            return
        if self._backoff > 1:  # it may be the answer to something older: nothing is learnt
            self._backoff //= 2
            return
        old = self._estimate
        self._estimate = seconds if old is None else max(seconds, 0.95 * old)

    def expired(self) -> None:
        """It did not come in time."""
        self._backoff = min(2 * self._backoff, self._most_backoff)
