"""The host's end of the link: words in order over a line that damages bytes (docs/link.md)."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence

from maskwork.fpga.link.frames import (
    ANSWER_WORDS,
    BUFFER_WORDS,
    LINK_VERSION,
    Answer,
    Kind,
    Splitter,
    encode_command,
    parse_answer,
)
from maskwork.fpga.link.line import LinkStatistics, NoAnswer, Timer, Transport
from maskwork.gen.errors import BoardError, DeviceError

_MIN_FRAME = 8
_MOST_POLLS = 8
_SILENCE = 0.03
"""Seconds without a byte after which an answer has ended."""

_LOST_COUNT = 16
"""Answers in a row with impossible numbers after which the board has lost count."""


class Host:
    """Sends words to a board and collects those that it answers.

    Args:
        transport: bytes to and from the board.
        name: of the board in messages.
        answer_timeout: seconds without any valid answer after which the board is given up.
        patience: seconds in which the board answers but no word moves, after which a transfer is given up.
        frame_words: most words in a frame to the board.

    Members:
        statistics: see :class:`~maskwork.fpga.link.line.LinkStatistics`.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        name: str = "the board",
        answer_timeout: float = 5.0,
        patience: float = 20.0,
        frame_words: int = ANSWER_WORDS,
    ):
        self._transport = transport
        self._name = name
        self._answer_timeout, self._patience = answer_timeout, patience
        self._most_words = frame_words
        self.statistics = LinkStatistics()
        self._splitter = Splitter()
        self._restart(0)

    # ------------------------------------------------------------------ questions

    def reset(self) -> None:
        """Reset the accelerator and the counts of both directions.

        Raises:
            NoAnswer: if the board does not answer.
            BoardError: if it speaks another version of the link.
        """
        token = random.randrange(1024)
        answer = self._ask(Kind.RESET, token, self._answer_timeout)
        self._restart(answer.free)

    def read_identity(self, timeout: float | None = None) -> bytes:
        """The identity's words, as bytes.

        Args:
            timeout: seconds to wait for an answer.

        Raises:
            NoAnswer: if the board does not answer.
            BoardError: if it speaks another version of the link, or the identity has an impossible length.
        """
        timeout = self._answer_timeout if timeout is None else timeout
        identity = self._ask(Kind.READ_ID, 0, timeout).words
        length = 4 + int.from_bytes(identity[:4], "little")
        if not 4 < length <= 1024:
            raise BoardError(f"{self._name}: the identity has an impossible length, {length} bytes")
        while len(identity) < length:
            words = self._ask(Kind.READ_ID, len(identity) // 4, timeout).words
            if not words:
                raise BoardError(f"{self._name}: the identity ends after {len(identity)} of {length} bytes")
            identity += words
        return identity[: -(-length // 4) * 4]

    def _ask(self, kind: Kind, seq: int, timeout: float) -> Answer:
        """Send a frame until it is answered."""
        start = self._transport.time()
        timer, silence = Timer(0.2, 0.2, 2.0), _SILENCE
        while True:
            sent = self._transport.time()
            if sent - start >= timeout:
                raise NoAnswer(f"{self._name}: no answer within {timeout:g} s: not a maskwork board, or not configured")
            self._write(encode_command(kind, seq), 1)
            noise = False
            while True:
                left = min(sent + timer.limit, start + timeout) - self._transport.time()
                if left <= 0:
                    timer.expired()
                    break
                before = self.statistics.bytes_in
                for answer in self._read(min(left, silence) if noise else left):
                    if answer.kind == kind and answer.seq == seq:
                        return answer
                if self.statistics.bytes_in > before:
                    noise = True
                elif noise:  # something came and ended, but no answer: it was damaged
                    silence *= 2
                    break

    def _write(self, data: bytes, frames: int) -> None:
        self.statistics.frames += frames
        self.statistics.bytes_out += len(data)
        self._transport.write(data)

    def _read(self, timeout: float) -> list[Answer]:
        data = self._transport.read(timeout)
        self.statistics.bytes_in += len(data)
        bodies = self._splitter.feed(data)
        self.statistics.answers_dropped, answers = self._splitter.dropped, []
        for body in bodies:
            answer = parse_answer(body)
            if answer is None:
                self._splitter.dropped += 1
                continue
            if answer.version != LINK_VERSION:
                raise BoardError(
                    f"{self._name}: version {answer.version} of the link is on the board, {LINK_VERSION} here; "
                    "use the release of maskwork that built the bitstream, or build and flash it anew"
                )
            answers.append(answer)
        self.statistics.answers += len(answers)
        return answers

    # ------------------------------------------------------------------ words

    def _restart(self, room: int) -> None:
        self._capacity = room
        self._acked = self._sent = self._high = self._expected = 0  # words since RESET
        self._limit = room
        self._dropped = 0
        self._frame = self._most_words
        self._window = BUFFER_WORDS  # words on the way at once: fewer on a bad line
        self._clean = 0  # acknowledgements since the last loss
        self._inconsistent = 0
        self._free = room
        self._ack_timer = Timer(0.5, 0.02, 2.0)
        self._poll_timer = Timer(0.1, 0.002, 1.0, 4)

    def exchange(
        self,
        words: bytes,
        ends: Sequence[int],
        done: Callable[[bytes, bool], bool] | None = None,
        quiet: int = 4,
    ) -> tuple[bytes, list[int]]:
        """Send words and collect those that come back.

        Args:
            words: 4 bytes each, least significant first.
            ends: for every packet, the number of words up to its end; ascending.
            done: told the words of every answer, and whether they end a packet; True when no more will come. Without
                it the exchange is over when everything was taken and ``quiet`` answers in a row brought nothing.
            quiet: how many.

        Returns:
            The words that came, and their packets' ends in the same form.

        Raises:
            NoAnswer: if the board does not answer any more.
            DeviceError: if words move no more.
            BoardError: if the board answers no more, or lost count of its words.
        """
        self._words, self._ends = words, ends
        self._base, self._total = self._acked, self._acked + len(words) // 4
        self._pieces: list[bytes] = []
        self._received, self._received_ends = 0, []
        self._done, self._finished = done, False
        self._gap = self._again = False
        self._in_flight = self._wanted = self._empty = self._stale = 0
        start = self._transport.time()
        self._heard = self._moved = self._progress = self._written = start
        while True:
            self._send()
            answers = self._read(self._wait())
            now = self._transport.time()
            for answer in answers:
                self._take(answer, now)
            if self._acked == self._total:
                quiet_now = self._empty >= quiet and self._free == self._capacity
                if self._finished or (done is None and quiet_now and not self._gap):
                    return b"".join(self._pieces), self._received_ends
            if not answers:
                self._check_timers(now)
            if now - self._moved > self._patience:
                raise DeviceError(
                    f"{self._name}: no word has moved for {self._patience:g} s: {self._acked - self._base} of "
                    f"{self._total - self._base} taken, {self._received} received; the accelerator is stuck"
                )

    def _wait(self) -> float:
        """Seconds until something has to be done if nothing comes."""
        now = self._transport.time()
        wait = max(self._heard, self._written) + self._poll_timer.limit - now
        if self._acked < self._sent:
            wait = min(wait, self._progress + self._ack_timer.limit - now)
        return max(wait, 0.0005)

    def _check_timers(self, now: float) -> None:
        if now - self._heard > self._answer_timeout:
            raise NoAnswer(
                f"{self._name}: no answer for {self._answer_timeout:g} s, after {self._acked - self._base} of "
                f"{self._total - self._base} words: is the board still powered and configured?"
            )
        if self._acked < self._sent and now - self._progress >= self._ack_timer.limit:
            self._ack_timer.expired()
            self._go_back()
        elif now - max(self._heard, self._written) >= self._poll_timer.limit:
            self._poll_timer.expired()
            self._in_flight, self._wanted = 0, max(self._wanted, 1)
            self._again = self._gap

    def _go_back(self) -> None:
        self.statistics.go_backs += 1
        self._sent = self._acked
        self._frame = max(_MIN_FRAME, self._frame // 2)
        self._window = max(2 * self._frame, self._window // 2)
        self._clean = 0
        self._progress = self._transport.time()

    # ------------------------------------------------------------------ sending

    def _send(self) -> None:
        """Send words as far as there is room, else polls as far as they are wanted."""
        frames = self._data_frames()
        if self._again or (not frames and (self._wanted or not self._in_flight)):
            polls = min(max(self._wanted, 1), _MOST_POLLS)
            poll = encode_command(Kind.DATA, self._sent, self._expected)
            if self._again:  # once: what it goes back to would only come several times
                frames.append(encode_command(Kind.DATA, self._sent, self._expected, again=True))
                self._stale = self._in_flight  # answers to what was sent before it
                polls -= 1
            frames += [poll] * polls
            self.statistics.polls += polls + self._again
            self._again = False
        self._wanted = 0
        if frames:
            self._in_flight += len(frames)
            self._write(b"".join(frames), len(frames))
            self._written = self._transport.time()

    def _data_frames(self) -> list[bytes]:
        frames: list[bytes] = []
        while self._sent < self._total:
            begin = self._sent - self._base
            packet = bisect_right(self._ends, begin)
            stop = self._ends[packet] if packet < len(self._ends) else self._total - self._base
            want = min(self._frame, stop - begin)
            count = min(want, self._limit - self._sent, self._acked + self._window - self._sent)
            if count <= 0 or (count < want and self._acked < self._sent):
                break  # there will be more room when what was sent is acknowledged
            last = begin + count == stop and packet < len(self._ends)
            words = self._words[4 * begin : 4 * (begin + count)]
            frames.append(encode_command(Kind.DATA, self._sent, self._expected, words, last))
            if self._acked == self._sent:
                self._progress = self._transport.time()
            self.statistics.words_repeated += max(0, min(self._high, self._sent + count) - self._sent)
            self._sent += count
            self._high = max(self._high, self._sent)
        return frames

    # ------------------------------------------------------------------ receiving

    def _take(self, answer: Answer, now: float) -> None:
        if answer.kind != Kind.DATA:
            return
        self._poll_timer.measured(now - max(self._heard, min(self._written, now)))
        self._heard = now
        self._in_flight = max(0, self._in_flight - 1)
        step = (answer.ack - self._acked) & 1023
        if step > self._high - self._acked:
            self._count_inconsistent()
            return
        self._inconsistent = 0
        if step or answer.free != self._free:
            self._moved, self._empty = now, 0
        if step:
            self._acknowledge(step, now)
        self._limit = max(self._limit, self._acked + answer.free)
        self._free = answer.free
        self._capacity = max(self._capacity, answer.free)
        dropped = (answer.dropped - self._dropped) & 255
        if dropped:
            self.statistics.board_dropped += dropped
            self._dropped = answer.dropped
            if self._acked < self._sent:
                self._go_back()
        self._take_words(answer, now)

    def _acknowledge(self, step: int, now: float) -> None:
        self.statistics.words_sent += step
        self._acked += step
        self._sent = max(self._sent, self._acked)
        self._ack_timer.measured(now - self._progress)
        self._progress = now
        self._window = min(BUFFER_WORDS, self._window + self._frame // 4)
        self._clean += 1
        if self._clean >= 16:
            self._frame, self._clean = min(self._most_words, 2 * self._frame), 0

    def _take_words(self, answer: Answer, now: float) -> None:
        ahead = (answer.seq - self._expected) & 1023
        if 0 < ahead <= BUFFER_WORDS:
            self.statistics.gaps += not self._gap
            self._again = not self._gap or self._stale <= 0  # the request itself was lost
            self._gap = True
            self._stale -= 1
            return
        behind = -ahead & 1023
        new = len(answer.words) // 4 - behind
        if not behind or new > 0:
            self._gap = self._again = False
        if new <= 0:
            self._empty += not behind
            return
        words = answer.words[4 * behind :]
        self._empty = 0
        self._moved = now
        self._wanted = min(self._wanted + 2, _MOST_POLLS)  # two: of those that come while it sends, it answers one
        self._expected += new
        self._received += new
        self.statistics.words_received += new
        self._pieces.append(words)
        if answer.end:
            self._received_ends.append(self._received)
        if self._done is not None and self._done(words, answer.end):
            self._finished = True

    def _count_inconsistent(self) -> None:
        self._inconsistent += 1
        if self._inconsistent >= _LOST_COUNT:
            raise BoardError(
                f"{self._name}: the board has lost count of its words, after {self._acked - self._base} of "
                f"{self._total - self._base}: it was reset, configured anew or used by another program meanwhile"
            )
