"""Simulator tests of a lane's parts: its ring of words, the expander behind it, and the drain."""

import random

import pytest
from amaranth.hdl import *
from amaranth.lib import wiring
from maskwork.gen.config import CHUNK, Config
from maskwork.rtl.drain import DRAIN_LATENCY, Drain
from maskwork.rtl.expander import Expander
from maskwork.rtl.lane_fifo import LaneFifo
from maskwork.rtl.layouts import WordKind, chunk_layout, ring_words, start_layout
from maskwork.rtl.pe import DRAIN_READ_LATENCY
from maskwork.rtl.post import PostKind

from .contract import plain, simulate, ticks, watch

CONFIGS = {
    "small": {"fifo_depth": 128},
    "dense": {"fifo_depth": 128, "skip": ""},
    "only b": {"fifo_depth": 128, "skip": "b", "a_width": 18, "fetch_width": 2, "k_depth": 16},
    "4 rings": {"rows_in_flight": 4, "fifo_depth": 256, "fetch_width": 8, "a_width": 4, "slots": 32},
    "64 columns of 16": {"pes_per_lane": 16, "slots": 4, "fifo_depth": 128},
    "256 columns": {"pes_per_lane": 16, "slots": 16, "fifo_depth": 128, "skip": "ab"},
    "4 columns": {"pes_per_lane": 1, "slots": 4, "fifo_depth": 128, "acc_width": 18},
}


def config_of(name):
    return Config(**CONFIGS[name])


# ---------------------------------------------------------------------- the ring of words


class Feeder:
    """Writes lists of words into the rings, in random turns, and never more than a ring holds."""

    def __init__(self, config, ports, lists, rng, idle):
        self.config, self.ports, self.rng, self.idle = config, ports, rng, idle
        self.lists = [list(words) for words in lists]

    async def __call__(self, ctx):
        words, ports = ring_words(self.config), self.ports
        while any(self.lists):
            ring = self.rng.choice([n for n, some in enumerate(self.lists) if some])
            held = (ctx.get(ports.written[ring]) - ctx.get(ports.taken[ring])) % (2 * words)
            assert held <= words
            ctx.set(ports.valid, 0)
            if held < words and self.rng.random() >= self.idle:
                ctx.set(ports.valid, 1)
                ctx.set(ports.ring, ring)
                ctx.set(ports.word, self.lists[ring].pop(0))
            await ctx.tick()
        ctx.set(ports.valid, 0)


@pytest.mark.parametrize("name", ["small", "4 rings"])
@pytest.mark.parametrize("stall", [0.0, 0.5])
def test_lane_fifo(name, stall):
    """Every ring's words come in their order, whenever it has its turn; none that ``go`` holds back."""
    config = config_of(name)
    dut = LaneFifo(config)
    rng = random.Random(1)
    lists = [[rng.getrandbits(30) for _ in range(150)] for _ in range(config.rows_in_flight)]
    got = [[] for _ in lists]

    async def read(ctx):
        left = sum(map(len, lists))
        turn = go = False
        while left:
            valid = ctx.get(dut.o.valid)
            ready = rng.random() >= stall
            ctx.set(dut.o.ready, ready)
            reading = ctx.get(dut.reading)
            ring = rng.randrange(len(lists))
            # never in two cycles in a row, nor to the same ring right after a word may have moved
            turn = not turn and (ring != reading or not go) and (not valid or ready) and rng.random() < 0.25
            go = rng.random() < 0.8
            ctx.set(dut.go, go)
            ctx.set(dut.turn, turn)
            ctx.set(dut.turn_ring, ring)
            if valid and ready:
                got[reading].append(ctx.get(dut.o.payload))
                left -= 1
            await ctx.tick()
            if turn:
                assert ctx.get(dut.reading) == ring
            if (turn or not go) and (ready or not valid):
                assert not ctx.get(dut.o.valid)
        ctx.set(dut.o.ready, 0)
        await ticks(ctx, 5)
        assert not ctx.get(dut.o.valid) and not ctx.get(dut.filled)

    simulate(dut, Feeder(config, dut, lists, rng, 0.3), read)
    assert got == lists


def test_lane_fifo_pace():
    """3 cycles from a word written to an empty ring to ``o``; then one word every other cycle."""
    config = config_of("small")
    dut = LaneFifo(config)
    cycles = []

    async def read(ctx):
        ctx.set(dut.go, 1)
        ctx.set(dut.o.ready, 1)
        for cycle in range(60):
            if ctx.get(dut.o.valid):
                cycles.append(cycle)
            await ctx.tick()

    simulate(dut, Feeder(config, dut, [range(20), []], random.Random(), 0), read)
    assert cycles == list(range(3, 3 + 2 * 20, 2))


# ---------------------------------------------------------------------- expander


class Front(wiring.Component):
    """Rings and expander, as a lane joins them."""

    def __init__(self, config):
        self.config = config
        self.fifo, self.expander = LaneFifo(config), Expander(config)
        super().__init__({})

    def elaborate(self, platform):
        m = Module()
        m.submodules.fifo, m.submodules.expander = fifo, expander = self.fifo, self.expander
        wiring.connect(m, fifo.o, expander.i)
        m.d.comb += [
            *(getattr(fifo, name).eq(getattr(expander, name)) for name in ("go", "turn", "turn_ring")),
            *(getattr(expander, name).eq(getattr(fifo, name)) for name in ("reading", "filled")),
        ]
        return m


def pack_word(layout, **fields):
    word = 0
    for name, value in fields.items():
        word |= (value & (1 << layout[name].width) - 1) << layout[name].offset
    return word


class Row:
    """A random row: its words, its header, and the tokens that it becomes."""

    def __init__(self, config, ring, rng, chunks=None, elements=None):
        bank = rng.getrandbits(1)
        start = pack_word(
            start_layout(config), tag=rng.getrandbits(8), slot=rng.getrandbits(8), bank=bank, first=rng.getrandbits(1),
            final=rng.getrandbits(1), post=rng.getrandbits(1), kind=WordKind.START.value,
        )  # fmt: skip
        self.header = [start & 0xFFFFFFFF, *(rng.getrandbits(32) for _ in range(1 + config.mask_words))]
        self.words = [start, *self.header[1:]]
        self.tokens = []
        low, high = -(1 << (config.a_width - 1)), (1 << (config.a_width - 1)) - 1
        for _ in range(rng.choice([0, 1, 3, 6]) if chunks is None else chunks):
            count = rng.choice([1, 2, 5, CHUNK]) if elements is None else elements
            skips = "a" in config.skip
            places = sorted(rng.sample(range(CHUNK), count)) if skips else list(range(count))
            k = rng.randrange(config.k_depth)
            values = [rng.choice([low, high, rng.randint(low, high)]) for _ in places]
            bitmap = sum(1 << n for n in places) if skips else count - 1
            fields = {"bitmap": bitmap, "more": count - 1, "k": k, "kind": WordKind.CHUNK.value}
            self.words.append(pack_word(chunk_layout(config), **fields))
            for at in range(0, count, config.fetch_width):
                some = [value & (1 << config.a_width) - 1 for value in values[at : at + config.fetch_width]]
                self.words.append(sum(value << n * config.a_width for n, value in enumerate(some)))
            for place, value in zip(places, values, strict=True):
                key = (k + place) % config.k_depth | bank << config.k_width
                self.tokens.append({"k": key, "a": value, "context": ring, "upper": 0, "end": 0})
        self.words.append(pack_word(start_layout(config), kind=WordKind.END.value))


@pytest.mark.parametrize("name", ["small", "dense", "only b", "4 rings", "256 columns"])
@pytest.mark.parametrize(("idle", "stall"), [(0.0, 0.0), (0.6, 0.0), (0.1, 0.6)])
def test_expander(name, idle, stall):
    """Every context's tokens are those of its rows, in order; a row starts only when its context is free."""
    config = config_of(name)
    dut = Front(config)
    rng = random.Random(2)
    rings = config.rows_in_flight
    rows = [[Row(config, ring, rng) for _ in range(12)] for ring in range(rings)]
    todo = [list(some) for some in rows]
    tokens = [[] for _ in rows]
    headers = [[] for _ in rows]
    drains = [None] * rings  # cycles until the row in the context is drained
    out = dut.expander.o

    async def bench(ctx):
        expander = dut.expander
        while any(todo):
            ready = rng.random() >= stall
            ctx.set(out.ready, ready)
            release = sum(1 << n for n in range(rings) if drains[n] == 0)
            ctx.set(expander.release, release)
            if ctx.get(expander.header):
                reading, index = ctx.get(expander.reading), ctx.get(expander.header_index)
                assert index == len(headers[reading])
                if index == 0:
                    assert not ctx.get(expander.busy) >> reading & 1
                headers[reading].append(ctx.get(expander.header_word))
            if ctx.get(out.valid) and ready:
                token = plain(ctx.get(out.payload))
                context = token["context"]
                if token["end"]:
                    row = todo[context][0]
                    assert headers[context] == row.header and tokens[context] == row.tokens
                    assert drains[context] is None
                    drains[context] = rng.choice([0, 1, 5, 40])
                else:
                    tokens[context].append(token)
            for n in range(rings):
                if release >> n & 1:
                    todo[n].pop(0)
                    drains[n], tokens[n], headers[n] = None, [], []
                elif drains[n]:
                    drains[n] -= 1
            await ctx.tick()
        ctx.set(expander.release, 0)
        await ticks(ctx, 5)
        assert not ctx.get(expander.busy) and not ctx.get(expander.in_row) and not ctx.get(out.valid)

    async def watching(ctx):
        await watch(ctx, out, "Expander.o")

    lists = [[word for row in some for word in row.words] for some in rows]
    simulate(dut, Feeder(config, dut.fifo, lists, rng, idle), bench, background=[watching])


@pytest.mark.parametrize(("name", "elements"), [("small", CHUNK), ("dense", CHUNK), ("4 rings", 8), ("only b", 5)])
def test_expander_pace(name, elements):
    """A chunk of n elements takes n + 1 cycles; two for each of its words if that is more."""
    config = config_of(name)
    least = max(elements + 1, 2 + 2 * -(-elements // config.fetch_width))
    dut = Front(config)
    row = Row(config, 0, random.Random(3), chunks=8, elements=elements)
    cycles = []

    async def bench(ctx):
        ctx.set(dut.expander.o.ready, 1)
        cycle = 0
        while len(cycles) < len(row.tokens):
            if ctx.get(dut.expander.o.valid):
                cycles.append(cycle)
            await ctx.tick()
            cycle += 1

    lists = [row.words] + [[]] * (config.rows_in_flight - 1)
    simulate(dut, Feeder(config, dut.fifo, lists, random.Random(4), 0), bench)
    pace = (cycles[-1] - cycles[0] + 2) / 8
    assert least - 0.25 <= pace <= least + 1


# ---------------------------------------------------------------------- drain


def wrap(value, width):
    return (value + (1 << width - 1)) % (1 << width) - (1 << width - 1)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "only b"])
@pytest.mark.parametrize("pauses", [0.0, 0.4])
def test_drain(name, pauses):
    """Rows leave whole, wanted columns in rising order, partial sums of earlier K tiles added; pauses are obeyed."""
    config = config_of(name)
    dut = Drain(config)
    rng = random.Random(5)
    pes, rings, columns, width = config.pes_per_lane, config.rows_in_flight, config.tile_columns, config.acc_width
    sums = {}  # accumulators: (PE, context, slot)
    delayed = [0] * (DRAIN_READ_LATENCY - 1)
    kept = {}  # the model's partial sums: (slot, column)
    expected, got, follow = [], [], []

    async def array(ctx):
        """The PEs: what is drained is cleared, and shows later."""
        while True:
            signals = (dut.drain.context, dut.drain.slot, dut.select)
            _, _, context, slot, select = await ctx.tick().sample(*signals)
            value = 0
            for pe in range(pes):
                if select >> pe & 1:
                    value |= sums.pop((pe, context, slot), 0) & (1 << width) - 1
            delayed.append(value)
            ctx.set(dut.sum, wrap(delayed.pop(0), width))

    async def post(ctx):
        """Post-processing: grants after a while, and now and then has no space."""
        after = 0
        while True:
            space = rng.random() >= pauses
            ctx.set(dut.space, space)
            request = ctx.get(dut.request)
            ctx.set(dut.grant, request and (ctx.get(dut.grant) or rng.random() < 0.5))
            _, _, valid, word = await ctx.tick().sample(dut.o.valid, dut.o.word)
            after = 0 if space else after + valid
            follow.append(after)
            if valid:
                got.append(plain(word))

    async def rows(ctx):
        await ticks(ctx, 2 * rings * config.slots)  # accumulators are scrubbed after reset
        ctx.set(dut.lane, 201)
        for n in range(25):
            context, slot = rng.randrange(rings), rng.randrange(min(4, config.psum_rows))
            first, final = rng.getrandbits(1) | (slot not in {s for s, _ in kept}), rng.getrandbits(1)
            meta = {"tag": rng.getrandbits(8), "slot": slot, "bank": rng.getrandbits(1), "first": first, "final": final}
            meta["post"] = rng.getrandbits(1)
            mask = rng.choice([0, (1 << columns) - 1, rng.getrandbits(columns), 1 << columns - 1])
            start = pack_word(start_layout(config), **meta, kind=WordKind.START.value)
            masks = [mask >> 32 * w & 0xFFFFFFFF for w in range(config.mask_words)]
            ctx.set(dut.context, context)
            for index, word in enumerate([start & 0xFFFFFFFF, n, *masks]):
                ctx.set(dut.header, 1)
                ctx.set(dut.header_index, index)
                ctx.set(dut.header_word, word)
                await ctx.tick()
            ctx.set(dut.header, 0)
            wanted = [c for c in range(columns) if mask >> c & 1]
            totals = {}
            for c in range(columns):
                if c not in wanted and "c" in config.skip:
                    continue  # such a PE sums only what is wanted
                value = rng.choice([0, 1, -1, (1 << width - 1) - 1, -(1 << width - 1)])
                sums[c % pes, context, c // pes] = value
                totals[c] = wrap(value + (0 if first else kept.get((slot, c), 0)), width)
            if not final:
                kept.update({(slot, c): totals[c] if c in wanted else kept.get((slot, c), 0) for c in range(columns)})
            else:
                words = [("START", n)] + [("VALUE", (c, totals[c])) for c in wanted] + [("END", None)]
                expected.append((meta, words))
            ctx.set(dut.done, 1 << context)
            cleared, finished, bank = [], False, None
            while not finished:
                signals = (dut.done_clear, dut.finished, dut.finished_bank)
                _, _, clear, finished, bank = await ctx.tick().sample(*signals)
                if clear:  # once all columns are asked for; sums are still on their way
                    cleared.append(clear)
                    ctx.set(dut.done, 0)
            assert cleared == [1 << context] and bank == meta["bank"]
            assert not sums
        await ticks(ctx, 3)

    simulate(dut, rows, background=[array, post], cycles=40_000)
    words = iter(got)
    for meta, row in expected:
        for kind, content in row:
            word = next(words)
            assert PostKind(word["kind"]).name == kind
            if kind == "START":
                assert (word["row"], word["lane"]) == (content, 201)
                assert all(word[name] == meta[name] for name in ("tag", "post", "bank"))
            elif kind == "VALUE":
                assert (word["column"], word["value"]) == content
    assert next(words, None) is None
    assert max(follow) <= DRAIN_LATENCY + 2
