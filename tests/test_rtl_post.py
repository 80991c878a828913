"""Post-processing unit: packets against exact integer mathematics, under back-pressure on both sides."""

import itertools
import random
from fractions import Fraction

import pytest
from amaranth.sim import Simulator
from maskwork.gen.config import Config, preset
from maskwork.gen.isa import REPLIES, Reply
from maskwork.rtl.post import PostKind, PostProcess
from maskwork.rtl.requantise import Requantise

TIMEOUT = 60_000  # cycles


def config_of(**fields):
    return Config(**({"lanes": 4, "pes_per_lane": 2, "slots": 8} | fields))


def bounds(width):
    return -(1 << (width - 1)), (1 << (width - 1)) - 1


def requantised(acc, bias, mult, shift, low, high):
    """The architecture's formula in exact arithmetic (Python rounds fractions half to even)."""
    return min(max(round(Fraction((acc + bias) * mult, 1 << shift)), low), high)


# ---------------------------------------------------------------------- stimulus


class Row:
    def __init__(self, values, *, post, bank=0, lane=0, row=0, tag=0):
        self.values, self.post, self.bank, self.lane, self.row, self.tag = values, post, bank, lane, row, tag

    def words(self):
        """Payloads of the input stream; what is not valid holds rubbish."""
        junk = {"lane": 0x5A, "row": 0xDEAD, "tag": 0xA5, "post": 1 - self.post, "bank": 1 - self.bank}
        head = {"lane": self.lane, "row": self.row, "tag": self.tag, "post": self.post, "bank": self.bank}
        yield {"kind": PostKind.START, "column": 1, "value": -1, **head}
        for column, value in self.values.items():
            yield {"kind": PostKind.VALUE, "column": column, "value": value, **junk}
        yield {"kind": PostKind.END, "column": 2, "value": 77, **junk}

    def packet(self, config, parameters, limits):
        """Beats (whole numbers) of the expected RESULT packet."""
        results = {}
        for column, value in self.values.items():
            if self.post:
                key = (self.bank, self.lane % config.lanes_per_cluster, column)
                value = requantised(value, *parameters[key], *limits[self.bank])
            if value:
                results[column] = value
        header = {"tag": self.tag, "lane": self.lane, "post": self.post, "row": self.row, "values": len(results)}
        bitmap = sum(1 << column for column in results)
        words = [bitmap >> 32 * n & 0xFFFFFFFF for n in range(config.mask_words)]
        beats = to_beats([*REPLIES[Reply.RESULT].encode(header), *words], config.stream_words)
        return beats + to_beats(pack(list(results.values()), self.post, config), config.stream_words)


def pack(values, post, config):
    if post:
        fields = [value & ((1 << config.a_width) - 1) for value in values]
        return packed(fields, 32 // config.a_width, config.a_width)
    return [value >> n & 0xFFFFFFFF for value in values for n in range(0, config.acc_width, 32)]


def to_beats(words, stream_words):
    return packed(words + [0] * (-len(words) % stream_words), stream_words, 32)


def packed(fields, count, width):
    groups = [fields[n : n + count] for n in range(0, len(fields), count)]
    return [sum(field << width * n for n, field in enumerate(group)) for group in groups]


def random_parameters(config, rng):
    """Bias, mult and shift of every bank, lane and column: extremes, ties, and the useful range between."""
    low, high = bounds(32)
    return {
        place: (
            rng.choice([0, 1, -1, low, high, rng.randint(low, high), rng.randint(-1000, 1000)]),
            rng.choice([0, 1, 3, (1 << 24) - 1, 1 << 23, rng.getrandbits(24), rng.getrandbits(24)]),
            rng.choice([0, 1, 2, 47, 46, *(rng.randint(0, 47) for _ in range(4))]),
        )
        for place in itertools.product(range(2), range(config.lanes_per_cluster), range(config.tile_columns))
    }


def random_value(config, rng):
    low, high = bounds(config.acc_width)
    return rng.choice([0, 0, 1, -1, low, high, low + 1, rng.randint(-300, 300), rng.randint(low, high)])


def random_row(config, rng, *, post, density=None, bank=None):
    density = rng.choice([0, 0.1, 0.5, 1]) if density is None else density
    bank = rng.getrandbits(1) if bank is None else bank
    values = {n: random_value(config, rng) for n in range(config.tile_columns) if rng.random() < density}
    place = {"lane": rng.randrange(config.lanes), "row": rng.getrandbits(16), "tag": rng.getrandbits(8)}
    return Row(values, post=post, bank=bank, **place)


# ---------------------------------------------------------------------- benches


def set_all(ctx, signals, values):
    for signal, value in zip(signals, values, strict=True):
        ctx.set(signal, value)


class Bench:
    """A PostProcess with a driver, a receiver that checks the stream contract, and cycle stamps."""

    def __init__(self, config, rows, *, parameters=None, limits=None, idle=0.0, stall=0.0, seed=0):
        self.config, self.rows, self.parameters, self.limits = config, rows, parameters or {}, limits or {}
        self.idle, self.stall, self.rng = idle, stall, random.Random(seed)
        self.dut = PostProcess(config)
        self.packets, self.taken = [], []  # taken: cycle of every word
        self.started = self.cycle = 0  # started: rows
        self.released = True  # the receiver may take beats

    async def load(self, ctx):
        p, limits = self.dut.p, self.dut.limits
        for bank, values in self.limits.items():
            set_all(ctx, (limits.valid, limits.bank, limits.low, limits.high), (1, bank, *values))
            await ctx.tick()
        ctx.set(limits.valid, 0)
        for place, values in self.parameters.items():
            set_all(ctx, (p.valid, p.bank, p.lane, p.column, p.bias, p.mult, p.shift), (1, *place, *values))
            await ctx.tick()
        ctx.set(p.valid, 0)

    async def send(self, ctx, rows):
        i = self.dut.i
        for row in rows:
            for word in row.words():
                while self.rng.random() < self.idle:
                    await ctx.tick()
                ctx.set(i.payload, word)
                ctx.set(i.valid, 1)
                ready = False
                while not ready:
                    _, _, ready = await ctx.tick().sample(i.ready)
                self.taken.append(self.cycle)
                self.started += word["kind"] == PostKind.START
                ctx.set(i.valid, 0)

    async def receive(self, ctx):
        """Take beats with random stalls; check that valid and payload stay until the transfer, and idle."""
        dut, packet, offered, started = self.dut, [], None, 0
        sampled = (dut.o.valid, dut.o.ready, dut.o.payload, dut.idle, dut.busy)
        async for _, _, valid, ready, payload, idle, busy in ctx.tick().sample(*sampled):
            self.cycle += 1
            assert self.cycle < TIMEOUT, f"{len(self.packets)} of {len(self.rows)} packets in time"
            if offered is not None:
                assert valid and (payload.data, payload.last) == offered, "valid or payload changed before the transfer"
            offered = (payload.data, payload.last) if valid and not ready else None
            assert not (idle and (valid or busy or len(self.packets) < started)), "idle, but something is inside"
            started = self.started
            if valid and ready:
                packet.append(payload.data)
                if payload.last:
                    self.packets.append(packet)
                    packet = []
            ctx.set(dut.o.ready, self.released and self.rng.random() >= self.stall)

    def run(self, stimulus=None, *others):
        """Simulate until every packet has come; then the unit must be idle."""

        async def main(ctx):
            if stimulus:
                await stimulus(ctx)
            else:
                await self.load(ctx)
                await self.send(ctx, self.rows)
            while len(self.packets) < len(self.rows):
                await ctx.tick()
            await ctx.tick().repeat(2)
            assert ctx.get(self.dut.idle) and not ctx.get(self.dut.busy)

        sim = Simulator(self.dut)
        sim.add_clock(1e-6)
        for bench in (main, *others, self.receive):
            sim.add_testbench(bench, background=bench == self.receive)
        sim.run()
        return self

    def check(self):
        for number, (row, packet) in enumerate(zip(self.rows, self.packets, strict=True)):
            expected = row.packet(self.config, self.parameters, self.limits)
            assert packet == expected, f"row {number}: {list(map(hex, packet))}, not {list(map(hex, expected))}"


CONFIGS = {
    "9 bits, 1 word": config_of(),
    "4 bits, 1 word, 24-bit sums": config_of(a_width=4, acc_width=24, lanes=8, lanes_per_cluster=2),
    "9 bits, 2 words": config_of(stream_words=2, pes_per_lane=4),
    "4 bits, 4 words": config_of(stream_words=4, a_width=4, lanes=1, lanes_per_cluster=1),
    "18 bits, 1 word": config_of(a_width=18, pes_per_lane=1, slots=4),
    "18 bits, 4 words": config_of(a_width=18, stream_words=4, lanes=256, lanes_per_cluster=8),
    "8 bits, 16-bit sums": config_of(a_width=8, b_width=8, acc_width=16, pes_per_lane=1),
}
for _words in (1, 2, 4):
    CONFIGS[f"48-bit sums, {_words} words"] = config_of(a_width=16, b_width=16, acc_width=48, stream_words=_words)
for _bits, _words in ((48, 1), (48, 2), (64, 4), (33, 1), (32, 1), (20, 2)):
    CONFIGS[f"raw, {_bits} bits, {_words} words"] = config_of(post=False, acc_width=_bits, stream_words=_words)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("idle", "stall"), [(0, 0), (0.3, 0.6)])
def test_random_rows(name, idle, stall):
    """Rows of every kind, raw and post mixed, with and without pauses."""
    config, rng = CONFIGS[name], random.Random(f"{name}{idle}")
    limits = {0: bounds(min(16, config.a_width)), 1: tuple(sorted((rng.randint(-7, 7), rng.randint(-7, 7))))}
    parameters = random_parameters(config, rng)
    if not config.post:
        limits = parameters = {}
    densities = [None] * 20 + [1, 1, 1, 0, 0, 0]
    rows = [random_row(config, rng, post=int(config.post and rng.random() < 0.6), density=d) for d in densities]
    Bench(config, rows, parameters=parameters, limits=limits, idle=idle, stall=stall, seed=name).run().check()


@pytest.mark.parametrize("words", [1, 8])
def test_widest_tile(words):
    """256 columns: a bitmap of eight words, 256 values counted."""
    config = config_of(pes_per_lane=16, slots=16, stream_words=words, post=False, acc_width=32)
    rng = random.Random(3)
    full = Row({n: n - 300 for n in range(256)}, post=0, row=0xFFFF, tag=0xFF, lane=3)
    rows = [full, random_row(config, rng, post=0, density=0.1), Row({255: 1}, post=0), Row({0: -1}, post=0), full]
    Bench(config, rows).run().check()


def test_empty_rows():
    """Rows without values, and rows whose values are all zero, are a header and a zero bitmap."""
    rows = [Row({}, post=post, row=n) for n, post in enumerate((0, 1, 1, 0))]
    rows += [Row(dict.fromkeys(range(16), 0), post=0, row=9)]
    for some in (rows, rows[:1]):
        bench = Bench(config_of(), some).run()
        bench.check()
        assert all(len(packet) == 3 and packet[2] == 0 for packet in bench.packets)


def test_rows_wait_for_the_receiver():
    """While nobody reads, two rows without a zero are taken, then the input waits; nothing is lost."""
    config = config_of()
    rows = [Row({column: 1000 + column for column in range(16)}, post=0, row=n) for n in range(12)]
    bench = Bench(config, rows)
    bench.released = False

    async def patience(ctx):
        while bench.cycle < 600:
            await ctx.tick()
        assert 2 * 18 <= len(bench.taken) < len(rows) * 18
        bench.released = True

    bench.run(None, patience).check()


@pytest.mark.parametrize(("words", "wide", "seed"), [(1, 0, 1), (1, 1, 2), (2, 0, 3), (4, 1, 4)])
def test_result_memory_never_overflows(words, wide, seed):
    """Long and short rows meet a receiver that sleeps long and wakes briefly."""
    config, rng = config_of(stream_words=words, post=not wide, acc_width=48 if wide else 32), random.Random(seed)
    densities = [density for _ in range(25) for density in [rng.choice((0, 0.05, 1))] * rng.randint(1, 12)]
    rows = [random_row(config, rng, post=0, density=density) for density in densities]
    bench = Bench(config, rows)

    async def sleepy(ctx):
        while len(bench.packets) < len(rows):
            bench.released = not bench.released
            await ctx.tick().repeat(rng.randint(1, 60) if bench.released else rng.randint(20, 200))

    bench.run(None, sleepy).check()


@pytest.mark.parametrize(
    ("words", "post", "cycles", "fields"),
    [(words, post, 1, {}) for words in (1, 2, 4) for post in (0, 1)]
    + [(1, 0, 2, {"post": False, "acc_width": 48}), (1, 0, 2, {"acc_width": 48}), (1, 1, 1, {"acc_width": 48})],
)
def test_throughput(words, post, cycles, fields):
    """Rows without a zero: a value a cycle (two if a sum takes two beats), and a few cycles between rows."""
    config = preset("small").replace(stream_words=words, **fields)
    columns = config.tile_columns
    parameters = {(0, 0, column): (1, 1, 0) for column in range(columns)}
    rows = [Row({column: 1 + column for column in range(columns)}, post=post, row=n) for n in range(4)]
    bench = Bench(config, rows, parameters=parameters, limits={0: (-256, 255)}).run()
    bench.check()
    first, fourth = bench.taken[0], bench.taken[3 * (columns + 2)]
    gap = max(1, -(-(REPLIES[Reply.RESULT].words + config.mask_words) // words) - 1)
    assert (fourth - first) / 3 == cycles * columns + 2 + gap


def test_parameters_may_change_when_not_busy():
    """Parameters and limits of a bank are rewritten in the first cycle without busy; the row before is not harmed."""
    config = config_of()
    rows = [Row({column: 10 * column for column in range(16)}, post=1, lane=2, row=n) for n in range(4)]
    bench = Bench(config, rows, stall=0.5)
    columns = range(16)
    settings = [({(0, 2, c): (n, n + 1, n) for c in columns}, {0: (50 * n - 200, 200 - 50 * n)}) for n in range(4)]

    async def stimulus(ctx):
        for row, (bench.parameters, bench.limits) in zip(rows, settings, strict=True):
            await bench.load(ctx)
            await bench.send(ctx, [row])
            while ctx.get(bench.dut.busy):
                await ctx.tick()

    bench.run(stimulus)
    assert bench.packets == [row.packet(config, *setting) for row, setting in zip(rows, settings, strict=True)]


def test_loading_one_bank_while_the_other_works():
    """Writes of bank 1 leave rows of bank 0 alone, and the other way round."""
    config, rng = config_of(), random.Random(5)
    parameters = random_parameters(config, rng)
    limits = {0: (-256, 255), 1: (-3, 100)}
    rows = [random_row(config, rng, post=1, density=1, bank=n // 4) for n in range(8)]
    bench = Bench(config, rows, parameters=parameters, limits=limits)
    banks = [{key: value for key, value in parameters.items() if key[0] == bank} for bank in range(2)]

    async def other_bank(ctx):
        while len(bench.taken) < 3:
            await ctx.tick()
        bench.parameters, bench.limits = banks[1], {1: limits[1]}
        await bench.load(ctx)
        bench.parameters, bench.limits = parameters, limits

    async def stimulus(ctx):
        bench.parameters, bench.limits = banks[0], {0: limits[0]}
        await bench.load(ctx)
        await bench.send(ctx, rows[:4])
        while bench.parameters is not parameters:
            await ctx.tick()
        await bench.send(ctx, rows[4:])

    bench.run(stimulus, other_bank).check()


def test_limits_saturate_to_the_operand_width():
    """Limits that a_width bits cannot hold act as the nearest that they can; low > high gives high."""
    config = config_of()
    values = dict(enumerate((-(1 << 31), -257, -256, -1, 1, 255, 256, (1 << 31) - 1)))
    parameters = {(bank, 0, column): (0, 1, 0) for bank in range(2) for column in range(16)}
    rows = [Row(values, post=1)]
    for given, effective in (((-32768, 32767), (-256, 255)), ((300, 400), (255, 255)), ((9, -400), (-256, -256))):
        bench = Bench(config, rows, parameters=parameters, limits={0: given}).run()
        assert bench.packets == [rows[0].packet(config, parameters, {0: effective})]


# ---------------------------------------------------------------------- arithmetic alone


def arithmetic_cases(config, rng):
    """Operands of the pipeline: extremes in every combination, ties of both signs, results near the limits."""
    low, high = bounds(config.acc_width)
    wide = result_low, result_high = bounds(min(16, config.a_width))
    extremes = ((low, high, 0, -1), (*bounds(32), 0), (0, 1, (1 << 24) - 1), (0, 1, 15, 16, 31, 32, 47))
    yield from ((*operands, *wide) for operands in itertools.product(*extremes))
    for shift in range(1, 48):
        for _ in range(6):
            # (2 n + 1) * 2**(shift - 1) / 2**shift lies half-way
            odd = 2 * rng.randint(-40, 40) + 1
            power = max(0, min(shift - 1, config.acc_width - 9))
            mult = min(1 << (shift - 1 - power), 1 << 23)
            for near in (0, rng.choice((-1, 1))):
                yield (odd << power) + near, 0, mult, shift, *wide
    for _ in range(1500):
        shift, mult = rng.randint(0, 47), max(1, rng.getrandbits(rng.randint(1, 24)))
        target = rng.choice((result_low, result_high, 0, rng.randint(result_low, result_high)))
        total = (target << shift) // mult + rng.randint(-2, 2)
        acc = min(max(total - rng.choice((0, 1000)), low), high)
        bias = min(max(total - acc, bounds(32)[0]), bounds(32)[1])
        limits = wide if rng.getrandbits(1) else tuple(sorted((rng.randint(*wide), rng.randint(*wide))))
        yield acc, bias, mult, shift, *limits


@pytest.mark.parametrize("fields", [{}, {"a_width": 4, "acc_width": 24}, {"a_width": 18}, {"acc_width": 48}])
def test_arithmetic(fields):
    """The pipeline alone, new operands in every cycle."""
    config = config_of(**fields)
    cases = list(arithmetic_cases(config, random.Random(11)))
    random.Random(12).shuffle(cases)
    dut, results = Requantise(config), []

    async def main(ctx):
        for cycle in range(len(cases) + dut.latency):
            acc, bias, mult, shift, *_ = cases[min(cycle, len(cases) - 1)]
            low, high = cases[max(0, min(cycle - dut.limits_delay, len(cases) - 1))][4:]
            operands = (dut.value, dut.bias, dut.mult, dut.shift, dut.low, dut.high)
            set_all(ctx, operands, (acc, bias, mult, shift, low, high))
            await ctx.tick()
            results.append(ctx.get(dut.result))

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(main)
    sim.run()
    for case, result in zip(cases, results[dut.latency - 1 : -1], strict=True):
        assert result == requantised(*case), case
