"""Simulator tests of the small parts: buffers, iterators, queues of commands, collectors and counters."""

import gc
import random

import pytest
from amaranth.hdl import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator
from maskwork.gen.config import Config, preset
from maskwork.rtl.arbiter import round_robin
from maskwork.rtl.bit_iterator import BitIterator
from maskwork.rtl.collector import Collector, WordPacker
from maskwork.rtl.counters import Counters
from maskwork.rtl.queue import Queue
from maskwork.rtl.run_fifo import RUN_WORDS, RunFifo
from maskwork.rtl.slot_counter import SlotCounter
from maskwork.rtl.stream import SkidBuffer

from .contract import ContractError, simulate, sink, source, ticks

PACES = [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.4, 0.4)]
"""Idle share of the source, stall share of the sink."""

unused = pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
"""For constructors that raise: what they began to build is never elaborated."""


def through(dut, items, count, *, idle=0.0, stall=0.0, seed=0):
    """Sends items through ``i`` and ``o``: what came out, and the cycles in which items went in and came out."""
    got, sent, cycles = [], [], []
    simulate(
        dut,
        source(dut.i, items, idle=idle, seed=seed, sent=sent),
        sink(dut.o, count, got, stall=stall, seed=seed + 1, cycles=cycles),
    )
    return got, sent, cycles


# ---------------------------------------------------------------------- the contract's checker itself


class Breaker(wiring.Component):
    """Breaks the contract: takes back ``valid``, or changes the payload, while nobody is ready."""

    def __init__(self, fault: str):
        self._fault = fault
        super().__init__({"i": In(stream.Signature(8)), "o": Out(stream.Signature(8))})

    def elaborate(self, platform):
        m = Module()
        count = Signal(4)
        m.d.sync += count.eq(count + 1)
        m.d.comb += [
            self.o.valid.eq(count[2] if self._fault == "valid" else 1),
            self.o.payload.eq(count[2:] if self._fault == "payload" else 5),
        ]
        return m


@pytest.mark.parametrize(("fault", "message"), [("valid", "valid fell"), ("payload", "payload changed"), ("", None)])
def test_contract_checker(fault, message):
    async def wait(ctx):
        await ticks(ctx, 20)

    if message:
        with pytest.raises(ContractError, match=rf"Breaker\.o: .*{message}"):
            simulate(Breaker(fault), wait)
    else:
        simulate(Breaker(fault), wait)


def test_bench_has_a_limit():
    dut = SkidBuffer(8)
    with pytest.raises(TimeoutError, match="within 50 cycles"):
        simulate(dut, sink(dut.o, 1, []), cycles=50)


# ---------------------------------------------------------------------- buffers


BUFFERS = {
    "skid": (lambda: SkidBuffer(16), 1),
    "queue": (lambda: Queue(16, 8, margin=2), 1),
}


@pytest.mark.parametrize("name", BUFFERS)
@pytest.mark.parametrize("pace", PACES)
def test_buffers_keep_order(name, pace):
    items = [random.Random(1).getrandbits(16) for _ in range(200)]
    got, _, _ = through(BUFFERS[name][0](), items, len(items), idle=pace[0], stall=pace[1])
    assert got == items


@pytest.mark.parametrize("name", BUFFERS)
def test_buffers_latency_and_throughput(name):
    build, latency = BUFFERS[name]
    _, sent, cycles = through(build(), range(100), 100)
    assert sent == list(range(100))
    assert cycles == list(range(latency, 100 + latency))


def test_queue_fills_up():
    """``i.ready`` falls only when every entry is taken; ``level`` counts them; ``space`` is a cycle behind."""
    dut = Queue(16, 8, margin=3)

    async def bench(ctx):
        ctx.set(dut.i.valid, 1)
        for level in range(8):
            assert ctx.get(dut.i.ready) and ctx.get(dut.level) == level
            assert ctx.get(dut.space) == (max(0, level - 1) <= 8 - 3)
            await ctx.tick()
        assert not ctx.get(dut.i.ready) and ctx.get(dut.level) == 8

    simulate(dut, bench, watched=False)


@unused
@pytest.mark.parametrize(("depth", "margin", "message"), [
    (3, 1, "depth must be a power of two of 2 or more, not 3"),
    (1, 1, "depth must be a power of two of 2 or more, not 1"),
    (4, 5, r"margin must be from 1 to depth \(4\), not 5"),
    (4, 0, r"margin must be from 1 to depth \(4\), not 0"),
])  # fmt: skip
def test_queue_arguments(depth, margin, message):
    with pytest.raises(ValueError, match=message):
        Queue(8, depth, margin=margin)
    gc.collect()


# ---------------------------------------------------------------------- iterators


def indices(width, masks):
    for mask, meta in masks:
        positions = [n for n in range(width) if mask >> n & 1]
        for n in positions:
            yield {"index": n, "last": int(n == positions[-1]), "meta": meta}


def random_masks(width, count, rng):
    for _ in range(count):
        density = rng.choice([0, 0.05, 0.3, 0.8, 1])
        yield sum(1 << n for n in range(width) if rng.random() < density), rng.getrandbits(5)


@pytest.mark.parametrize("width", [4, 8, 12, 32])
@pytest.mark.parametrize("pace", PACES)
def test_bit_iterator(width, pace):
    masks = list(random_masks(width, 60, random.Random(width)))
    expected = list(indices(width, masks))
    items = [{"mask": mask, "meta": meta} for mask, meta in masks]
    got, _, _ = through(BitIterator(width, 5), items, len(expected), idle=pace[0], stall=pace[1])
    assert got == expected


@pytest.mark.parametrize("width", [4, 16, 32])
def test_bit_iterator_never_pauses(width):
    """Latency 2; then an index a cycle, whatever the masks, so long as they are not empty."""
    rng = random.Random(2)
    masks = [(rng.choice([1, 1 << (width - 1), rng.getrandbits(width) or 1]), 0) for _ in range(60)]
    count = sum(mask.bit_count() for mask, _ in masks)
    _, sent, cycles = through(BitIterator(width, 5), [{"mask": mask, "meta": 0} for mask, _ in masks], count)
    assert sent[0] == 0 and cycles == list(range(2, count + 2))


@unused
@pytest.mark.parametrize("width", [0, 2, 6, 36])
def test_bit_iterator_width(width):
    with pytest.raises(ValueError, match=f"width must be a multiple of 4 from 4 to 32, not {width}"):
        BitIterator(width, 1)
    gc.collect()


@pytest.mark.parametrize("pace", PACES)
def test_slot_counter(pace):
    rng = random.Random(3)
    items = [{"last": rng.randrange(8), "meta": rng.getrandbits(4)} for _ in range(50)]
    expected = [
        {"index": n, "last": int(n == item["last"]), "meta": item["meta"]}
        for item in items
        for n in range(item["last"] + 1)
    ]
    got, _, cycles = through(SlotCounter(8, 4), items, len(expected), idle=pace[0], stall=pace[1])
    assert got == expected
    if pace == (0, 0):
        assert cycles == list(range(1, len(expected) + 1))


# ---------------------------------------------------------------------- RUN words


def test_run_fifo():
    """Only committed commands come out, whole and in order; ``space`` keeps ``run_depth`` commands from overflowing."""
    dut = RunFifo(preset("small"))
    rng = random.Random(5)
    commands = [[rng.getrandbits(32) for _ in range(RUN_WORDS)] for _ in range(24)]
    fates = [rng.random() < 0.7 for _ in commands]
    expected = [word for command, kept in zip(commands, fates, strict=True) if kept for word in command]
    got, waiting = [], []

    async def send(ctx):
        for command, kept in zip(commands, fates, strict=True):
            words = command if kept else command[: rng.randrange(RUN_WORDS + 1)]
            while not ctx.get(dut.space):
                waiting.append(1)
                await ctx.tick()
            ctx.set(dut.we, 1)
            for word in words:
                ctx.set(dut.word, word)
                await ctx.tick()
            ctx.set(dut.we, 0)
            await ticks(ctx, rng.randrange(3))
            ctx.set(dut.commit if kept else dut.cancel, 1)
            await ctx.tick()
            ctx.set(dut.commit if kept else dut.cancel, 0)
            await ticks(ctx, 3)

    simulate(dut, send, sink(dut.o, len(expected), got, stall=0.5))
    assert got == expected
    assert waiting


def test_run_fifo_holds_its_depth():
    config = preset("tiny")
    dut = RunFifo(config)

    async def bench(ctx):
        await ctx.tick()
        for _ in range(config.run_depth):
            assert ctx.get(dut.space)
            ctx.set(dut.we, 1)
            await ticks(ctx, RUN_WORDS)
            ctx.set(dut.we, 0)
            ctx.set(dut.commit, 1)
            await ctx.tick()
            ctx.set(dut.commit, 0)
            await ticks(ctx, 2)

    simulate(dut, bench)


def test_run_fifo_pace():
    """A committed command leaves at a word a cycle."""
    dut = RunFifo(preset("small"))
    got, cycles = [], []

    async def send(ctx):
        ctx.set(dut.we, 1)
        for word in range(2 * RUN_WORDS):
            ctx.set(dut.word, word)
            await ctx.tick()
        ctx.set(dut.we, 0)
        ctx.set(dut.commit, 1)
        await ctx.tick()
        ctx.set(dut.commit, 0)

    simulate(dut, send, sink(dut.o, 2 * RUN_WORDS, got, cycles=cycles))
    assert got == list(range(2 * RUN_WORDS))
    assert cycles == list(range(cycles[0], cycles[0] + 2 * RUN_WORDS))


# ---------------------------------------------------------------------- collectors


@pytest.mark.parametrize("words", [1, 2, 4])
@pytest.mark.parametrize("pace", PACES)
def test_word_packer(words, pace):
    config = Config(stream_words=words)
    rng = random.Random(words)
    items, expected = [], []
    for length in [1, 2, 3, 4, 5, 8, 9] * 3:
        packet = [rng.getrandbits(32) for _ in range(length)]
        items += [{"word": word, "last": int(n == length - 1)} for n, word in enumerate(packet)]
        for at in range(0, length, words):
            beat = sum(word << 32 * n for n, word in enumerate(packet[at : at + words]))
            expected.append({"data": beat, "last": int(at + words >= length)})
    got, _, _ = through(WordPacker(config), items, len(expected), idle=pace[0], stall=pace[1])
    assert got == expected


@pytest.mark.parametrize("sources", [1, 2, 5])
@pytest.mark.parametrize("pace", PACES)
def test_collector(sources, pace):
    """Packets stay whole and keep their source's order; no source waits for more than one packet of each other."""
    dut = Collector(Config(), sources)
    rng = random.Random(sources)
    packets = [[(n << 24 | p << 8, rng.randint(1, 5)) for p in range(12)] for n in range(sources)]
    beats = [
        [{"data": tag + k, "last": int(k == length - 1)} for tag, length in some for k in range(length)]
        for some in packets
    ]
    got = []
    simulate(
        dut,
        *(source(getattr(dut, f"i{n}"), beats[n], idle=pace[0], seed=n) for n in range(sources)),
        sink(dut.o, sum(map(len, beats)), got, stall=pace[1]),
    )
    assert [[beat for beat in got if beat["data"] >> 24 == n] for n in range(sources)] == beats
    owner = None
    turns = []
    for beat in got:
        number = beat["data"] >> 24
        if owner is None:
            turns.append(number)
        assert owner in (None, number)
        owner = None if beat["last"] else number
    if pace[0] == 0:
        assert turns[: 12 * sources] == list(range(sources)) * 12


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 9, 33])
def test_round_robin(count, late):
    """Whoever has its turn next, by the rule that whoever was granted last comes last; with ``granted`` too, if nobody
    is granted right behind another.
    """
    m, rng = Module(), random.Random(count)
    requests, grant, choice, granted = Signal(count), Signal(), Signal(count), Signal(count)
    m.d.comb += choice.eq(round_robin(m, requests, grant, "turn", *([granted] if late else [])))
    with m.If(grant):
        m.d.sync += granted.eq(choice)

    async def bench(ctx):
        turn, taken = 0, False
        for _ in range(2000):
            wanted = rng.getrandbits(count) if rng.random() < 0.9 else 0
            taken = rng.random() < 0.6 and not (late and taken)
            ctx.set(requests, wanted)
            ctx.set(grant, taken)
            order = [(turn + n) % count for n in range(count)]
            first = next((n for n in order if wanted >> n & 1), None)
            if taken or not late:
                assert ctx.get(choice) == (0 if first is None else 1 << first)
            if taken and first is not None:
                turn = (first + 1) % count
            await ctx.tick()

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


# ---------------------------------------------------------------------- counters


def test_counters():
    """Sums at random rates, ``enable`` and ``clear``; complete 2 * number cycles after ``enable`` fell."""
    widths = (1, 4, 7, 3, 1)
    dut = Counters(widths)
    rng = random.Random(6)

    async def bench(ctx):
        for _ in range(4):
            ctx.set(dut.clear, 1)
            ctx.set(dut.enable, 1)
            ctx.set(dut.increments, rng.getrandbits(sum(widths)))
            await ctx.tick()
            ctx.set(dut.clear, 0)
            sums = [0] * len(widths)
            most = rng.random() < 0.3
            for _ in range(rng.choice([3, 50, 300])):
                gains = [(1 << w) - 1 if most else rng.getrandbits(w) for w in widths]
                enable = rng.random() < 0.8
                ctx.set(dut.enable, enable)
                at = 0
                bits = 0
                for gain, width in zip(gains, widths, strict=True):
                    bits |= gain << at
                    at += width
                ctx.set(dut.increments, bits)
                sums = [s + g * enable for s, g in zip(sums, gains, strict=True)]
                await ctx.tick()
            ctx.set(dut.enable, 0)
            await ticks(ctx, 2 * len(widths) + 4)
            values = []
            for n in range(len(widths)):
                ctx.set(dut.address, n)
                await ticks(ctx, 4)
                values.append(ctx.get(dut.value))
            assert values == sums

    simulate(dut, bench)
