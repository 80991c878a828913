"""The link under faults, and the whole system over its UART."""

import gc
import random

import pytest
from maskwork.fpga.link.endpoint import Endpoint
from maskwork.fpga.link.identity import parse_identity
from maskwork.fpga.system import System
from maskwork.gen.config import preset
from maskwork.gen.errors import MaskworkValueError
from maskwork.gen.generate import emit
from maskwork.gen.isa import COMMANDS, REPLIES, Op, Reply

from .contract import simulate, ticks
from .link_bench import DATA, READ_ID, RESET, Bench, Decoder, frame

# ---------------------------------------------------------------------- faults


class Faults:
    """Drops, flips, doubles and truncates, each with a small probability a byte."""

    def __init__(self, seed: int, chance: float):
        self._rng = random.Random(seed)
        self._chance = chance
        self._lost = 0
        self.count = 0

    def __call__(self, byte: int) -> list[int]:
        if self._lost:
            self._lost -= 1
            return []
        if self._rng.random() >= self._chance:
            return [byte]
        self.count += 1
        kind = self._rng.randrange(4)
        if kind == 0:
            return []
        if kind == 1:
            return [byte ^ 1 << self._rng.randrange(8)]
        if kind == 2:
            return [byte, byte]
        self._lost = self._rng.randrange(1, 40)
        return []


def transfer(words, last, *, chance, seed, echo=0.2):
    """Sends words through an endpoint that echoes them, one frame after the other; what came back, and the bench."""
    rng = random.Random(seed)
    there, back = Faults(seed, chance), Faults(seed + 1, chance)
    made = Bench(Endpoint(1, bytes(4)), echo=echo, seed=seed)
    made.damage = back
    got = []

    async def host(b):
        async def exchange(**fields):
            data = b"".join(bytes(there(byte)) for byte in frame(**fields))
            b.answers.clear()
            if rng.random() < chance:
                data += bytes(rng.randbytes(3))  # noise between frames
            await b.send(data)
            return await b.answer(1000 + 60 * len(fields.get("words", [])))

        while not (answer := await exchange(kind=RESET, seq=321)) or answer.kind != RESET:
            pass
        sent = expected = again = 0
        while len(got) < len(words):
            stop = min([n + 1 for n in last if n >= sent] + [len(words), sent + rng.randrange(1, 50)])
            part = words[sent:stop] if sent - len(got) < 150 else []
            answer = await exchange(
                seq=sent % 1024, ack=expected % 1024, words=part, again=again,
                end=int(bool(part) and sent + len(part) - 1 in last),
            )  # fmt: skip
            if answer is None or answer.kind != DATA:
                again = 1
                continue
            sent += (answer.ack - sent) % 1024 if (answer.ack - sent) % 1024 <= len(part) else 0
            skip = (expected - answer.seq) % 1024
            again = int(skip > 512)
            if skip <= len(answer.words):
                new = answer.words[skip:]
                got.extend((word, int(answer.end and n == len(new) - 1)) for n, word in enumerate(new))
                expected += len(new)

    made.run(host, cycles=1_000_000)
    return got, made, there.count + back.count


@pytest.mark.slow
@pytest.mark.parametrize(("count", "chance", "seed"), [(200, 0.0, 1), (100, 0.012, 2)])
def test_nothing_is_lost_or_doubled(count, chance, seed):
    rng = random.Random(seed)
    words = [n << 16 | rng.getrandbits(16) for n in range(count)]
    last = {n for n in range(count) if rng.random() < 0.03}
    got, bench, faults = transfer(words, last, chance=chance, seed=seed)
    assert got == [(word, int(n in last)) for n, word in enumerate(words)]
    assert bench.decoder.bad == 0 or chance
    assert faults > 10 or not chance


# ---------------------------------------------------------------------- system


def over_uart(dut, cycles_per_bit, exchanges, timeout=20_000):
    """Frames sent over the line one by one, each after the answer to the one before: the answers."""
    decoder, answers = Decoder(), []

    async def send(ctx):
        for number, data in enumerate(exchanges):
            for byte in data:
                for bit in (0, *(byte >> n & 1 for n in range(8)), 1):
                    ctx.set(dut.rx, bit)
                    await ticks(ctx, cycles_per_bit)
            while len(answers) <= number:
                await ctx.tick()

    async def take(ctx):
        while True:
            await ctx.tick()
            if ctx.get(dut.tx):
                continue
            await ticks(ctx, cycles_per_bit + cycles_per_bit // 2)
            byte = 0
            for n in range(8):
                byte |= ctx.get(dut.tx) << n
                await ticks(ctx, cycles_per_bit)
            assert ctx.get(dut.tx)
            answer = decoder.feed(byte)
            if answer:
                answers.append(answer)

    simulate(dut, send, watched=False, cycles=timeout, background=[take])
    assert decoder.bad == 0
    return answers


@pytest.mark.slow
def test_system_answers_over_its_uart():
    config = preset("tiny")
    identify = COMMANDS[Op.IDENTIFY].encode({})
    echo = COMMANDS[Op.ECHO].encode({"token": 0x7E7D1234})
    dut = System(config, 12e6, 3e6, "virtual")
    offset = len(dut.identity) // 4 - 3
    size = REPLIES[Reply.IDENTITY].words
    answers = over_uart(
        dut,
        4,
        [
            frame(kind=READ_ID, seq=offset),
            frame(seq=0, words=identify, end=1),
            frame(seq=1),
            frame(kind=RESET, seq=6),
            frame(seq=0, words=echo, end=1),
            frame(seq=2),
        ],
    )
    assert [a.kind for a in answers] == [READ_ID, DATA, DATA, RESET, DATA, DATA]
    assert b"".join(word.to_bytes(4, "little") for word in answers[0].words) == dut.identity[4 * offset :]
    assert parse_identity(dut.identity).config == config
    came = answers[1].words + answers[2].words
    assert len(came) == size and REPLIES[Reply.IDENTITY].decode(came)["config"] == config.hash
    came = answers[4].words + answers[5].words
    assert REPLIES[Reply.ECHOED].decode(came)["token"] == 0x7E7D1234
    assert answers[4].seq == 0 and answers[-1].ack == 2


def test_system_is_emitted():
    text, modules = emit(System(preset("tiny"), 25e6, 1e6), "board", verify=True)
    assert modules > 20
    head = text[text.index("module board(") :].split(";")[0]
    assert {"rx", "tx", "activity", "clk", "rst"} == set(head.split("(")[1].rstrip(")").replace(",", " ").split())


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
def test_system_arguments():
    with pytest.raises(MaskworkValueError, match="baud must be more than 0 and at most a quarter of the clock"):
        System(preset("tiny"), 10e6, 3e6)
    gc.collect()
