"""The board's end of the link in plain Python, for tests and trials without hardware or simulator (docs/link.md)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

import numpy as np
from maskwork.fpga.link.faults import FaultRates, FaultyLine
from maskwork.fpga.link.frames import (
    ANSWER_WORDS,
    BUFFER_WORDS,
    LINK_VERSION,
    Answer,
    Command,
    Kind,
    Splitter,
    encode_answer,
    parse_command,
)
from numpy.typing import ArrayLike


class Executor(Protocol):
    """What executes packets: any :class:`maskwork.sim_tb.device.Device`."""

    def execute(self, words: ArrayLike, last: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Whole packets in, replies out."""
        ...


class BoardModel:
    """A board as its UART shows it.

    Args:
        make: makes an executor; called at the beginning and at every RESET.
        identity: the identity's words, as bytes.
        stream_words: 32-bit words of a beat.
        buffer_words: room of each buffer.
        seed: with one, the accelerator takes and gives words at random times, and answers are merged at random as a
            busy transmitter would; without, everything happens at once.
        version: of the link.

    Members:
        taken: words taken since RESET.
        frames_dropped: frames dropped since RESET.
        resets: RESET frames obeyed.
    """

    def __init__(
        self,
        make: Callable[[], Executor],
        identity: bytes = b"",
        *,
        stream_words: int = 1,
        buffer_words: int = BUFFER_WORDS,
        seed: int | None = None,
        version: int = LINK_VERSION,
    ):
        self._make, self._identity = make, identity
        self._beat, self._room = stream_words, buffer_words
        self._random = random.Random(seed) if seed is not None else None
        self._version = version
        self._splitter = Splitter()
        self.resets = -1
        self._reset()

    def _reset(self) -> None:
        self.resets += 1
        self._executor = self._make()
        self.taken = 0
        self._buffer: list[tuple[bytes, bool]] = []  # frames' words, and whether they end a packet
        self._waiting = 0  # words in it
        self._packet = b""
        self._replies: list[tuple[bytes, bool]] = []  # words, one packet or a part of one
        self._kept = b""  # words that may have to be sent again, from self._first on
        self._kept_ends: list[int] = []
        self._first = self._next = 0
        self._already_dropped = self._splitter.dropped

    @property
    def frames_dropped(self) -> int:
        """Frames dropped since RESET."""
        return self._splitter.dropped - self._already_dropped

    def receive(self, data: bytes) -> bytes:
        """What the board sends when these bytes have come."""
        commands = [command for body in self._splitter.feed(data) if (command := self._parsed(body)) is not None]
        answers = []
        for place, command in enumerate(commands):
            self.accept(command)
            # it may still be sending when the next one comes: then it answers that one
            busy = place + 1 < len(commands) and self._random is not None and self._random.random() < 0.3
            if not busy:
                answers.append(self.answer(command))
        return b"".join(map(encode_answer, answers))

    def _parsed(self, body: bytes) -> Command | None:
        command = parse_command(body)
        self._splitter.dropped += command is None
        return command if command is not None and command.kind <= Kind.READ_ID else None

    def accept(self, command: Command) -> None:
        """Do what a frame asks for."""
        if command.kind == Kind.RESET:
            self._reset()
        if command.kind != Kind.DATA:
            return
        count = len(command.words) // 4
        if command.seq == self.taken & 1023 and count <= self._room - self._waiting:
            if count:
                self._buffer.append((command.words, command.end))
            self._waiting += count
            self.taken += count
        forget = (command.ack - self._first) & 1023
        if forget <= self._next - self._first:
            self._kept = self._kept[4 * forget :]
            self._first += forget
            self._kept_ends = [end for end in self._kept_ends if end > self._first]
            if command.again:
                self._next = self._first

    def answer(self, command: Command) -> Answer:
        """The answer to a frame that was accepted."""
        if command.kind == Kind.RESET:
            return self._reply(command.kind, command.seq, b"", False)
        if command.kind == Kind.READ_ID:
            words = self._identity[4 * command.seq : 4 * (command.seq + ANSWER_WORDS)]
            return self._reply(command.kind, command.seq, words, False)
        self._work()
        begin = self._next
        stop = min(self._first + len(self._kept) // 4, begin + ANSWER_WORDS)
        end = next((end for end in self._kept_ends if begin < end <= stop), None)
        stop = stop if end is None else end
        self._next = stop
        words = self._kept[4 * (begin - self._first) : 4 * (stop - self._first)]
        return self._reply(Kind.DATA, begin, words, end is not None)

    def _reply(self, kind: int, seq: int, words: bytes, end: bool) -> Answer:
        free = self._room - self._waiting
        return Answer(kind, seq & 1023, self.taken & 1023, words, end, free, self.frames_dropped & 255, self._version)

    def _work(self) -> None:
        """Let the accelerator take and give words."""
        while self._buffer and (self._random is None or self._random.random() < 0.7):
            words, end = self._buffer.pop(0)
            self._waiting -= len(words) // 4
            self._packet += words
            if end:
                self._execute(self._packet)
                self._packet = b""
        while self._replies and (self._random is None or self._random.random() < 0.7):
            words, end = self._replies[0]
            count = min(len(words) // 4, self._room - len(self._kept) // 4)
            self._kept += words[: 4 * count]
            if 4 * count < len(words):
                self._replies[0] = (words[4 * count :], end)
                return
            self._kept_ends.append(self._first + len(self._kept) // 4)
            del self._replies[0]

    def _execute(self, packet: bytes) -> None:
        words = np.frombuffer(packet, "<u4")
        last = np.zeros(len(words) // self._beat, bool)
        last[-1] = True
        replies, reply_last = self._executor.execute(words, last)
        data = np.asarray(replies, "<u4").tobytes()
        begin = 0
        for beat in (np.flatnonzero(reply_last) + 1).tolist():
            end = 4 * self._beat * beat
            self._replies.append((data[begin:end], True))
            begin = end


class Loopback:
    """A line in memory between a host and a :class:`BoardModel`, with faults, and with a time of its own.

    Args:
        board: the other end.
        rates: of faults, in both directions.
        seed: of the faults.
        baud: bits a second that time stands for.
        latency: seconds that an answer takes in addition.

    Members:
        to_board: the line to the board, with its count of faults.
        from_board: the line back.
    """

    def __init__(
        self,
        board: BoardModel,
        rates: FaultRates | None = None,
        seed: int = 0,
        *,
        baud: int = 3_000_000,
        latency: float = 0.001,
    ):
        rates = rates or FaultRates()
        self._board = board
        self.to_board, self.from_board = FaultyLine(rates, 2 * seed), FaultyLine(rates, 2 * seed + 1)
        self._seconds = 0.0
        self._byte, self._latency = 10 / baud, latency
        self._coming = b""

    def write(self, data: bytes) -> None:
        """Send all of them."""
        self._seconds += len(data) * self._byte
        self._coming += self.from_board(self._board.receive(self.to_board(data)))

    def read(self, timeout: float) -> bytes:
        """What has come; nothing makes the time pass."""
        if not self._coming:
            self._seconds += timeout
            return b""
        data, self._coming = self._coming, b""
        self._seconds += self._latency + len(data) * self._byte
        return data

    def time(self) -> float:
        """Seconds since the beginning."""
        return self._seconds
