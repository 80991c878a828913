"""The link's protocol written from docs/link.md alone, and benches that speak it to the hardware."""

import random
import zlib
from collections import deque
from dataclasses import dataclass
from typing import Any

from .contract import ContractError, simulate

DATA, RESET, READ_ID = range(3)
FLAG = b"\x7e"


def escaped(content: bytes) -> bytes:
    """Bytes of a frame without its FLAGs."""
    out = bytearray()
    for byte in content:
        out += bytes([0x7D, byte ^ 0x20]) if byte in (0x7D, 0x7E) else bytes([byte])
    return bytes(out)


def content(kind=DATA, seq=0, ack=0, words=(), end=0, again=0, n=None) -> bytes:
    """A frame to the board, without escapes: control word, words, CRC."""
    control = seq | ack << 10 | (len(words) if n is None else n) << 20 | end << 28 | again << 29 | kind << 30
    data = b"".join(word.to_bytes(4, "little") for word in [control, *words])
    return data + zlib.crc32(data).to_bytes(4, "little")


def frame(*args, **fields) -> bytes:
    """A frame to the board with both FLAGs."""
    return FLAG + escaped(content(*args, **fields)) + FLAG


@dataclass
class Answer:
    """A frame from the board."""

    words: list[int]
    seq: int
    ack: int
    end: int
    again: int
    kind: int
    free: int
    dropped: int
    version: int


class Decoder:
    """Bytes from the board to answers; counts frames it could not read."""

    def __init__(self):
        self.bad = 0
        self._bytes = bytearray()

    def feed(self, byte: int) -> Answer | None:
        if byte != FLAG[0]:
            self._bytes.append(byte)
            return None
        taken, self._bytes = bytes(self._bytes), bytearray()
        if not taken:
            return None
        answer = self._read(taken)
        self.bad += answer is None
        return answer

    def _read(self, taken: bytes) -> Answer | None:
        data = bytearray()
        position = 0
        while position < len(taken):
            byte = taken[position]
            if byte == 0x7D:
                position += 1
                if position == len(taken):
                    return None
                byte = taken[position] ^ 0x20
            data.append(byte)
            position += 1
        if len(data) % 4 or len(data) < 12 or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
            return None
        *words, control, status, _ = (int.from_bytes(data[n : n + 4], "little") for n in range(0, len(data), 4))
        if control >> 20 & 255 != len(words):
            return None
        return Answer(words, control & 1023, control >> 10 & 1023, control >> 28 & 1, control >> 29 & 1, control >> 30,
                      status & 0xFFFF, status >> 16 & 255, status >> 24)  # fmt: skip


class Bench:
    """An endpoint with a host at its bytes and an accelerator's place at its beats, one tick after the other.

    Args:
        dut: :class:`~maskwork.fpga.link.endpoint.Endpoint`.
        slow: cycles that the line takes for a byte of the board.
        echo: beats that leave come back, each with this chance a cycle; 0: lists do it.

    Attributes:
        answers: frames that came and were not looked at.
        raw: all bytes that came.
        resets: pulses of ``reset``.
        to_board: bytes to be sent, with ``error``.
        to_link: beats to go in.
        beats: those that came out, as (data, last).
        room: how many more of them are taken.
        damage: what becomes of a byte from the board.
    """

    def __init__(self, dut, *, slow: int = 0, echo: float = 0, seed: int = 0):
        self.dut = dut
        self.decoder = Decoder()
        self.answers: list[Answer] = []
        self.raw = bytearray()
        self.resets = 0
        self.to_board: deque[tuple[int, int]] = deque()
        self.to_link: deque[tuple[int, int]] = deque()
        self.beats: list[tuple[int, int]] = []
        self.room = 0
        self.damage = lambda byte: [byte]
        self._slow, self._echo = slow, echo
        self._rng = random.Random(seed)
        self._ctx: Any = None
        self._byte = self._beat = None  # what is being offered
        self._taking = self._was_reset = False
        self._offered = [None, None]
        self._wait = 0

    def run(self, host, cycles=200_000):
        """Runs the host's coroutine function to its end."""

        async def main(ctx):
            self._ctx = ctx
            await self.wait(2)
            self.resets = 0
            await host(self)

        simulate(self.dut, main, watched=False, cycles=cycles)

    async def step(self):
        """One cycle."""
        ctx, dut = self._ctx, self.dut
        if self._byte is None and self.to_board:
            self._byte = self.to_board.popleft()
            ctx.set(dut.bytes_in.payload, {"data": self._byte[0], "error": self._byte[1]})
            ctx.set(dut.bytes_in.valid, 1)
        if self._beat is None and self.to_link and (not self._echo or self._rng.random() < self._echo):
            self._beat = self.to_link.popleft()
            ctx.set(dut.i.payload, {"data": self._beat[0], "last": self._beat[1]})
            ctx.set(dut.i.valid, 1)
        taking = self._rng.random() < self._echo if self._echo else self.room > 0
        if taking != self._taking:
            self._taking = taking
            ctx.set(dut.o.ready, taking)
        self._wait = max(0, self._wait - 1)
        ctx.set(dut.bytes_out.ready, not self._wait)
        _, _, byte_taken, beat_taken, reset, byte_valid, byte, valid, bits = await ctx.tick().sample(
            dut.bytes_in.ready, dut.i.ready, dut.reset, dut.bytes_out.valid, dut.bytes_out.payload, dut.o.valid,
            dut.o.payload.as_value()
        )  # fmt: skip
        if self._byte is not None and byte_taken:
            self._byte = None
            ctx.set(dut.bytes_in.valid, 0)
        if self._beat is not None and beat_taken:
            self._beat = None
            ctx.set(dut.i.valid, 0)
        for port, (is_valid, value) in enumerate([(byte_valid, byte), (valid, bits)]):
            if self._offered[port] not in (None, value if is_valid else None) and not (port and reset):
                raise ContractError(f"{('bytes_out', 'o')[port]}: {self._offered[port]:#x} was taken back or changed")
        self._offered = [byte if byte_valid and self._wait else None, bits if valid and not taking else None]
        if valid and taking:
            data = bits & (1 << len(dut.o.payload.data)) - 1, bits >> len(dut.o.payload.data)
            self.beats.append(data)
            self.room -= 1
            if self._echo:
                self.to_link.append(data)
        self.resets += reset and not self._was_reset
        self._was_reset = reset
        if byte_valid and not self._wait:
            self._wait = self._slow
            self.raw.append(byte)
            self.answers += [a for a in map(self.decoder.feed, self.damage(byte)) if a]

    async def wait(self, cycles: int):
        for _ in range(cycles):
            await self.step()

    async def send(self, data: bytes, error_at: int | None = None):
        """Bytes to the board, as fast as it takes them."""
        self.to_board.extend((byte, int(number == error_at)) for number, byte in enumerate(data))
        while self.to_board or self._byte is not None:
            await self.step()

    async def answer(self, timeout: int = 6000) -> Any:
        """The next frame from the board, or None."""
        for _ in range(timeout):
            if self.answers:
                return self.answers.pop(0)
            await self.step()
        return None

    async def ask(self, **fields) -> Answer:
        """Sends a frame and returns its answer."""
        await self.send(frame(**fields))
        answer = await self.answer()
        assert answer is not None, fields
        return answer

    async def silent(self, cycles: int = 1500):
        """Checks that no answer comes."""
        await self.wait(cycles)
        assert not self.answers

    async def put(self, words, last=()):
        """Beats into the board's side of the accelerator, until all are taken."""
        self.to_link.extend((word, int(n in last)) for n, word in enumerate(words))
        while self.to_link or self._beat is not None:
            await self.step()

    async def get(self, count: int, timeout: int = 3000) -> list[tuple[int, int]]:
        """Beats that came out on the accelerator's side, as many as came in time."""
        self.room = count
        for _ in range(timeout):
            if not self.room:
                break
            await self.step()
        self.room = 0
        got, self.beats = self.beats, []
        return got
