"""The link's hardware in the simulator: UART, every kind of frame, corner cases."""

import gc
import random

import pytest
from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import Out
from maskwork.fpga.link.endpoint import Endpoint, Link
from maskwork.fpga.link.identity import identity_words, parse_identity
from maskwork.fpga.link.uart import Rate, UartReceiver, UartTransmitter
from maskwork.gen.config import Config, preset
from maskwork.gen.errors import DeviceError, MaskworkValueError

from .contract import simulate, sink, source, ticks
from .link_bench import DATA, FLAG, READ_ID, RESET, Bench, content, escaped, frame

IDENTITY = bytes(random.Random(5).randbytes(4 * 70))

unused = pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")


def words_of(count, seed=0):
    rng = random.Random(seed)
    return [rng.choice([0x7E7E7E7E, 0x7D5D7E5E, rng.getrandbits(32), 0]) for _ in range(count)]


def bench(host, *, stream_words=1, slow=0, cycles=200_000):
    made = Bench(Endpoint(stream_words, IDENTITY), slow=slow)
    made.run(host, cycles=cycles)
    return made


# ---------------------------------------------------------------------- UART


class Loop(wiring.Component):
    """A transmitter wired to a receiver of a slightly different rate."""

    def __init__(self, sends: Rate, takes: Rate):
        self.sender, self.taker = UartTransmitter(sends), UartReceiver(takes)
        super().__init__({"line": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.sender, m.submodules.taker = self.sender, self.taker
        m.d.comb += [self.line.eq(self.sender.tx), self.taker.rx.eq(self.line)]
        return m


@pytest.mark.parametrize(("cycles", "skew"), [
    (4, 0), (4.17, 0), (5, 0), (8.333, 0), (8.333, 0.02), (8.333, -0.02), (16.5, 0.03), (16.5, -0.03),
])  # fmt: skip
def test_uart_loop(cycles, skew):
    data = [0x00, 0xFF, 0x55, 0xAA, 0x7E, 0x01, 0x80, *random.Random(1).randbytes(40)]
    clock = 12_000_000
    dut = Loop(Rate.find(clock, clock / cycles * (1 + skew)), Rate.find(clock, clock / cycles))
    got, took = [], []
    simulate(dut, source(dut.sender.i, data, sent=took), sink(dut.taker.o, len(data), got), watched=False)
    assert got == [{"data": byte, "error": 0} for byte in data]
    # back to back: ten bits a byte
    assert abs((took[-1] - took[0]) / (len(data) - 1) / 10 - cycles / (1 + skew)) < 0.006 * cycles


def test_uart_framing_error_and_glitch():
    """A byte without stop bit is flagged; the line must be high before the next; a short low is no start."""
    dut = UartReceiver(Rate.find(1_000_000, 100_000))
    got = []

    async def line(ctx):
        async def level(value, cycles):
            ctx.set(dut.rx, value)
            await ticks(ctx, cycles)

        async def byte(value):
            await level(0, 10)
            for n in range(8):
                await level(value >> n & 1, 10)

        await level(1, 20)
        await level(0, 3)  # a glitch
        await level(1, 40)
        await byte(0x5A)
        await level(0, 200)  # no stop bit, and a break
        await level(1, 15)
        await byte(0xC3)
        await level(1, 10)

    simulate(dut, line, sink(dut.o, 2, got), watched=False)
    assert got == [{"data": 0x5A, "error": 1}, {"data": 0xC3, "error": 0}]


def test_rate():
    for clock, baud in [(12e6, 3e6), (12e6, 115_200), (25e6, 3e6), (48e6, 1e6), (100e6, 9600), (11.3e6, 2.8e6)]:
        rate = Rate.find(clock, baud)
        assert abs(clock * rate.step / rate.modulus / baud - 1) < 0.005
    assert Rate.find(12e6, 3e6) == Rate(1, 4)
    for clock, baud in [(12e6, 3_000_001), (12e6, 0), (12e6, -1)]:
        with pytest.raises(MaskworkValueError, match="baud must be more than 0 and at most a quarter of the clock"):
            Rate.find(clock, baud)
    with pytest.raises(MaskworkValueError, match=r"baud must be at least 6\.0 with a clock of 1e"):
        Rate.find(100e6, 5)


# ---------------------------------------------------------------------- frames


def test_data_to_the_accelerator():
    """Words arrive with `last` of the frame's end; escapes of every byte, CRC included; FLAGs shared or not."""
    words = words_of(130)

    async def host(b):
        await b.send(frame(seq=0, words=words[:64], end=1))
        await b.send(escaped(content(seq=64, words=words[64:70])) + FLAG)  # shares the FLAG before
        await b.send(FLAG * 3 + escaped(content(seq=70, words=words[70:], end=1)) + FLAG)
        got = await b.get(130)
        await b.wait(1000)
        b.answers.clear()
        assert got == [(word, int(n in (63, 129))) for n, word in enumerate(words)]
        answer = await b.ask(seq=130)
        assert (answer.ack, answer.free, answer.dropped, answer.version, answer.kind) == (130, 256, 0, 1, DATA)
        # CRCs that hold FLAG and ESC bytes
        seq = 130
        for word in range(3000):
            data = content(seq=seq, words=[word])
            if {0x7E, 0x7D} & set(data[-4:]):
                await b.send(FLAG + escaped(data) + FLAG)
                assert await b.get(1) == [(word, 0)]
                seq += 1
                if seq == 150:
                    break
        assert seq == 150
        assert (await b.ask(seq=5)).dropped == 0

    bench(host)


def test_wrong_sequence_number_is_answered_not_taken():
    async def host(b):
        assert (await b.ask(seq=0, words=[1, 2])).ack == 2
        assert (await b.ask(seq=0, words=[1, 2])).ack == 2  # a duplicate
        assert (await b.ask(seq=3, words=[4])).ack == 2  # one is missing
        assert (await b.ask(seq=2 + 256, words=[4])).ack == 2  # the same address, another number
        assert (await b.ask(seq=2, words=[3])).ack == 3
        assert await b.get(4, timeout=50) == [(1, 0), (2, 0), (3, 0)]

    bench(host)


def damaged():
    data = content(seq=0, words=[1, 0x7E7D7E7D])
    yield "crc", escaped(data[:-1] + bytes([data[-1] ^ 1]))
    yield "short", escaped(data)[:-1]
    yield "long", escaped(data) + b"\0"
    yield "half", escaped(data[:6])
    yield "no CRC", escaped(data[:-4])
    yield "n too small", escaped(content(seq=0, words=[1, 2], n=1))
    yield "n too large", escaped(content(seq=0, words=[1, 2], n=3))
    yield "ESC at the end", escaped(data) + b"\x7d"
    yield "kind 3", escaped(content(kind=3))
    yield "noise", b"\x55"
    yield "whole word more", escaped(data + b"\0\0\0\0")
    yield "longer than n", escaped(content(seq=0, words=words_of(70), n=55))


@pytest.mark.parametrize(("name", "data"), list(damaged()))
def test_damaged_frames_are_dropped(name, data):
    async def host(b):
        await b.ask(kind=RESET, seq=1)
        await b.send(FLAG + data + FLAG)
        await b.silent()
        answer = await b.ask(seq=0, words=[7], end=1)
        assert (answer.ack, answer.dropped) == (1, 1)
        assert await b.get(2, timeout=50) == [(7, 1)]
        assert (await b.ask(kind=RESET, seq=2)).dropped == 0

    bench(host)


def test_byte_without_stop_bit_drops_its_frame():
    async def host(b):
        data = frame(seq=0, words=[1])
        await b.send(data, error_at=6)
        await b.silent()
        # a FLAG without stop bit is none
        await b.send(data, error_at=len(data) - 1)
        await b.silent()
        await b.send(FLAG)
        await b.silent()
        assert (await b.ask(seq=0, words=[1])).dropped == 2

    bench(host)


@pytest.mark.slow
def test_receive_buffer_full():
    """What does not fit is answered but not taken; what was not read is never overwritten."""
    words = words_of(300)

    async def host(b):
        assert (await b.ask(seq=0, words=words[:200])).free >= 54
        await b.send(frame(seq=200, words=words_of(255, seed=3)))
        answer = await b.answer()
        assert (answer.ack, answer.dropped) == (200, 0)
        room = answer.free
        assert (await b.ask(seq=200, words=[9] * (room + 1))).ack == 200
        answer = await b.ask(seq=200, words=words[200 : 200 + room])
        assert (answer.ack, answer.free) == (200 + room, 0)
        assert (await b.ask(seq=200 + room, words=[9])).ack == 200 + room
        assert 200 + room == 257  # one waits outside
        assert await b.get(300, timeout=400) == [(word, 0) for word in words[: 200 + room]]
        assert (await b.ask(seq=200 + room, words=words[:255], end=1)).ack == 455 + room
        assert await b.get(300, timeout=400) == [(word, int(n == 254)) for n, word in enumerate(words[:255])]

    bench(host)


def test_data_from_the_accelerator():
    """Up to the end of a packet or 64 words; `again`; acknowledgements out of range."""
    words = words_of(256)

    async def host(b):
        await b.put(words[:150], last={2, 99})
        answer = await b.ask()
        assert (answer.words, answer.seq, answer.end, answer.again) == (words[:3], 0, 1, 0)
        answer = await b.ask(ack=3)
        assert (answer.words, answer.seq, answer.end) == (words[3:67], 3, 0)
        answer = await b.ask(ack=3)
        assert (answer.words, answer.seq, answer.end) == (words[67:100], 67, 1)
        for ack in (2, 151, 1000, 3 + 512):  # forgotten, not sent yet, far off
            answer = await b.ask(ack=ack, again=1)
            assert answer.seq == (100 if ack == 2 else 150)
        answer = await b.ask(ack=67, again=1)
        assert (answer.words, answer.seq, answer.end) == (words[67:100], 67, 1)
        answer = await b.ask(ack=80)
        assert (answer.words, answer.seq, answer.end) == (words[100:150], 100, 0)
        assert (await b.ask(ack=80)).words == []
        # the buffer holds 256 words from 80 on
        await b.put(words[150:] + words[:80])
        assert b._ctx.get(b.dut.i.ready) == 0
        assert (await b.ask(ack=81)).words == words[150:214]
        assert b._ctx.get(b.dut.i.ready) == 1
        assert (await b.ask(ack=81, again=1)).seq == 81

    bench(host)


@pytest.mark.slow
def test_numbers_wrap():
    """More than 1024 words in both directions."""

    async def host(b):
        for n in range(0, 1140, 60):
            words = words_of(60, seed=n)
            await b.put(words, last={59})
            answer = await b.ask(seq=n % 1024, ack=n % 1024, words=words, end=1)
            assert (answer.seq, answer.words, answer.end) == (n % 1024, words, 1)
            assert answer.ack == (n + 60) % 1024
            assert await b.get(60) == [(word, int(k == 59)) for k, word in enumerate(words)]

    bench(host, cycles=400_000)


def test_read_id():
    """The identity from any offset; words on their way are not changed by it, only sent again."""
    words = [int.from_bytes(IDENTITY[n : n + 4], "little") for n in range(0, len(IDENTITY), 4)]

    async def host(b):
        await b.put([1, 2, 3])
        assert (await b.ask()).words == [1, 2, 3]
        for offset in (0, 10, 64, 69):
            answer = await b.ask(kind=READ_ID, seq=offset)
            assert (answer.kind, answer.seq, answer.words) == (READ_ID, offset, words[offset : offset + 64])
        assert len((await b.ask(kind=READ_ID, seq=200)).words) == 1
        await b.put([4])
        answer = await b.ask(ack=2)  # what was not confirmed is sent again, and nothing can be confirmed before
        assert (answer.seq, answer.words) == (0, [1, 2, 3, 4])
        assert (await b.ask(ack=2)).words == []
        assert (await b.ask(ack=2, again=1)).words == [3, 4]

    bench(host)


def test_reset_empties_both_buffers():
    async def host(b):
        await b.put(words_of(100))
        await b.ask(seq=0, ack=0, words=words_of(30), end=1)
        await b.ask(seq=30, ack=5)
        answer = await b.ask(kind=RESET, seq=777)
        assert (answer.kind, answer.seq, answer.ack, answer.words, answer.free) == (RESET, 777, 0, [], 256)
        assert b.resets == 1
        assert await b.get(1, timeout=50) == []
        answer = await b.ask(ack=0, seq=0, words=[5], end=1)
        assert (answer.ack, answer.seq, answer.words) == (1, 0, [])
        assert await b.get(1) == [(5, 1)]
        await b.put([8], last={0})
        answer = await b.ask(seq=1)
        assert (answer.seq, answer.words, answer.end) == (0, [8], 1)

    bench(host)


@pytest.mark.parametrize("after", [1, 5, 12, 100, 284, 292])
def test_reset_while_sending(after):
    """The frame on its way is ended at once with a FLAG, whole or of no use; then comes the answer."""

    async def host(b):
        await b.put(words_of(64, seed=after))
        await b.send(frame())
        while len(b.raw) < after:
            await b.wait(1)
        await b.send(frame(kind=RESET, seq=9))
        sent = len(b.raw)
        answers = [await b.answer()]
        if answers[0].kind == DATA:
            answers.append(await b.answer())
        assert (answers[-1].kind, answers[-1].seq, answers[-1].ack) == (RESET, 9, 0)
        assert len(b.raw) - sent < 12 + 12
        await b.silent()
        assert (await b.ask()).words == []

    bench(host, slow=30)


@pytest.mark.slow
def test_frames_while_sending():
    """Of several frames that come during an answer the last is answered; `again` of an earlier one counts."""

    async def host(b):
        words = words_of(80)
        await b.put(words)
        await b.send(frame())
        while len(b.raw) < 30:
            await b.wait(1)
        await b.send(frame(seq=0, words=[1, 2], again=1))
        await b.send(frame(seq=2, words=[3]))
        assert not b.answers
        answer = await b.answer(20_000)
        assert (answer.words, answer.ack) == (words[:64], 3)
        answer = await b.answer(20_000)
        assert (answer.seq, answer.words) == (0, words[:64])
        await b.send(frame(seq=3))
        await b.send(frame(kind=READ_ID, seq=69))
        got = [await b.answer(20_000), await b.answer(20_000)]
        assert [a.kind for a in got] == [DATA, READ_ID]
        await b.silent()

    bench(host, slow=30)


@pytest.mark.parametrize("stream_words", [2, 4])
def test_beats_of_several_words(stream_words):
    words = words_of(60)
    beats = [sum(words[n + k] << 32 * k for k in range(stream_words)) for n in range(0, 60, stream_words)]

    async def host(b):
        await b.ask(seq=0, words=words[:59])
        await b.ask(seq=59, words=words[59:], end=1)
        assert await b.get(len(beats)) == [(value, int(n == len(beats) - 1)) for n, value in enumerate(beats)]
        await b.send(frame(seq=60, words=[6], end=1))  # less than a beat
        assert await b.get(1) == [(6, 1)]
        await b.put(beats, last={len(beats) - 1})
        answer = await b.ask(seq=61)
        assert (answer.words, answer.end) == (words, 1)
        await b.ask(seq=61, words=[9])
        await b.ask(kind=RESET, seq=3)
        await b.ask(seq=0, words=words[:stream_words])
        assert await b.get(1) == [(beats[0], 0)]

    bench(host, stream_words=stream_words)


# ---------------------------------------------------------------------- identity


@unused
def test_identity():
    config = preset("icebreaker")
    data = identity_words(config, "icebreaker", 12e6, 3e6)
    assert len(data) % 4 == 0
    identity = parse_identity(data + b"\0\0\0\0")
    assert (identity.config, identity.board, identity.clock_hz, identity.baud) == (
        config, "icebreaker", 12_000_000, 3_000_000
    )  # fmt: skip
    for broken in (b"", data[:8], b"\0\0\0\0" + data, data[:4] + b"y" + data[5:], b"\xff" * 20):
        with pytest.raises(DeviceError):
            parse_identity(broken)
    with pytest.raises(MaskworkValueError, match="must be short enough for an identity of 1024 bytes"):
        name = "a" + random.Random(2).randbytes(1100).hex()
        identity_words(Config(name=name), "virtual", 12e6, 1e6)
    for wrong in (b"", b"123", bytes(1028)):
        with pytest.raises(MaskworkValueError, match="identity must be of whole words, 1024 bytes at most"):
            Link(1, 12e6, 3e6, wrong)
    gc.collect()
