"""Loader: random packets of every kind, cut short and too long, against the operands they were packed from."""

import random

import numpy as np
import pytest
from maskwork.gen.config import CHUNK, Config
from maskwork.gen.pack import bank_words, bitmap_words, pack_bitmaps, pack_rows, value_words
from maskwork.rtl.load_common import Load, LoadEnd
from maskwork.rtl.loader import Loader

from .contract import plain, simulate, ticks

CONFIGS = {
    "small": {},
    "dense": {"skip": ""},
    "only a": {"skip": "a", "stream_words": 2},
    "only b": {"skip": "b", "a_width": 4, "b_width": 18},
    "only c": {"skip": "c", "a_width": 18, "b_width": 4, "load_slots": 8},
    "2 words": {"stream_words": 2, "a_width": 18, "b_width": 18, "acc_width": 40, "post": False},
    "4 words": {"stream_words": 4, "a_width": 4, "b_width": 4, "fetch_width": 8, "slots": 32, "pes_per_lane": 8},
    "8 words": {"stream_words": 8, "pes_per_lane": 1, "slots": 4, "fetch_width": 2, "b_width": 5},
    "wide words": {"stream_words": 4, "a_width": 9, "b_width": 9, "load_slots": 4},
    "half a row": {"stream_words": 8, "load_slots": 8, "b_width": 8},
    "wide tile": {"pes_per_lane": 16, "slots": 16, "stream_words": 2},
}


def config_of(name):
    return Config(**({"k_depth": 256} | CONFIGS[name]))


class Writes:
    """What a load wrote: samples of every bus in every cycle in which it was in use."""

    def __init__(self):
        self.a, self.b, self.c, self.p, self.limits = [], [], [], [], []
        self.end = None
        self.cycles = 0
        self.taken = 0


async def load(ctx, dut, fields, beats, rng, *, idle=0.0, ended=False):
    """Starts a load, offers its beats (``last`` with the last) until it is done, and returns what was written."""
    writes = Writes()
    for name, value in fields.items():
        ctx.set(dut.load[name], value)
    ctx.set(dut.i.valid, 0)
    ctx.set(dut.start, 1)
    ctx.set(dut.ended, ended)
    done = False
    after = 0  # writes leave registered: the last one comes with `done`
    buses = (dut.a, dut.b, dut.c)
    while not done or after < 2:
        has = writes.taken < len(beats)
        if has and not ctx.get(dut.i.valid) and rng.random() >= idle:
            ctx.set(dut.i.valid, 1)
            ctx.set(dut.i.payload.data, beats[writes.taken])
            ctx.set(dut.i.payload.last, writes.taken == len(beats) - 1)
        if not has:
            ctx.set(dut.i.payload.data, rng.getrandbits(32))
        signals = [dut.i.valid, dut.i.ready, dut.done, dut.end, *buses, dut.p.valid, dut.limits.valid]
        for port in (dut.p, dut.limits):
            signals += [getattr(port, name) for name in port.signature.members]
        _, _, valid, ready, is_done, end, a, b, c, p_valid, limits_valid, *rest = await ctx.tick().sample(*signals)
        ctx.set(dut.start, 0)
        writes.cycles += 1
        if valid and ready:
            writes.taken += 1
            ctx.set(dut.i.valid, 0)
        a, b, c = plain(a), plain(b), plain(c)
        if a["start"] | a["we"] | a["end"]:
            writes.a.append(a)
        if b["enable"] | b.get("mask_we", 0) | b.get("columns_we", 0):
            writes.b.append(b)
        if c["start"] | c["we"]:
            writes.c.append(c)
        names = [*dut.p.signature.members, *dut.limits.signature.members]
        port = dict(zip(names[:7], rest[:7], strict=True))
        if p_valid:
            writes.p.append(port)
        if limits_valid:
            writes.limits.append(dict(zip(names[7:], rest[7:], strict=True)))
        after += done
        if is_done:
            assert not done
            done, writes.end = True, LoadEnd(end)
            assert not ctx.get(dut.busy)
    ctx.set(dut.i.valid, 0)
    return writes


def to_beats(words, config):
    sw = config.stream_words
    assert len(words) % sw == 0
    return [sum(int(w) << 32 * n for n, w in enumerate(words[at : at + sw])) for at in range(0, len(words), sw)]


def random_matrix(rng, rows, columns, width):
    """Values with their extremes, and a mask of another density in every row (and 16 elements)."""
    low, high = -(1 << (width - 1)), (1 << (width - 1)) - 1
    values = [[rng.choice([low, high, rng.randint(low, high)]) for _ in range(columns)] for _ in range(rows)]
    mask = []
    for _ in range(rows):
        densities = [rng.choice([0, 0, 0.1, 0.5, 1]) for _ in range(-(-columns // CHUNK))]
        mask.append([rng.random() < densities[n // CHUNK] for n in range(columns)])
    return np.array(values, dtype=np.int64), np.array(mask, dtype=bool)


def bench(name, body, *, seed=0, watched=True):
    """Runs ``body(ctx, dut, config, rng)``."""
    config = config_of(name)
    dut = Loader(config)
    rng = random.Random(seed)

    async def process(ctx):
        await body(ctx, dut, config, rng)

    simulate(dut, process, cycles=60_000, watched=watched)


# ---------------------------------------------------------------------- A


def a_fields(bank, append, dense, segments, length):
    fields = {"kind": Load.A, "bank": bank, "append": append, "dense": dense, "count": segments, "length": length}
    return fields | {"k": 0, "lanes": 0}


def segments_of(writes, config):
    """The segments that words of the activation bus stand for: element -> value, and the words of each."""
    assert writes[0]["start"] and not any(w["start"] for w in writes[1:])
    segments, elements, words = [], {}, 0
    waiting, places = 0, []
    for write in writes[1:]:
        word = write["word"]
        words += write["we"]
        if write["we"] and waiting:
            n = min(config.fetch_width, len(places))
            for at in range(n):
                value = word >> at * config.a_width & (1 << config.a_width) - 1
                elements[places[at]] = value - (value >> (config.a_width - 1) << config.a_width)
            places = places[n:]
            waiting -= 1
        elif write["we"]:
            bits, rest = word & 0xFFFF, word >> 16
            more, head = rest & 0xF, rest >> 4 & (config.k_depth - 1)
            places = [head * CHUNK + n for n in range(CHUNK) if bits >> n & 1]
            waiting = -(-len(places) // config.fetch_width)
            assert rest >> 4 + config.k_width & 3 == 0 and more == len(places) - 1
        if write["end"]:
            assert not waiting
            segments.append((elements, words))
            elements, words = {}, 0
    return segments


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("idle", [0.0, 0.5])
def test_load_a(name, idle):
    async def body(ctx, dut, config, rng):
        for length in [1, 15, 16, 17, 40, 100, 256]:
            count, bank, append = rng.randint(1, 3), rng.getrandbits(1), rng.getrandbits(1)
            values, mask = random_matrix(rng, count, length, config.a_width)
            dense = "a" not in config.skip or rng.random() < 0.3
            words = pack_rows(values, None if dense else mask, config.a_width, config.stream_words)
            fields = a_fields(bank, append, dense, count, length)
            writes = await load(ctx, dut, fields, to_beats(words, config), rng, idle=idle)
            assert writes.end == LoadEnd.GOOD
            assert {(w["bank"], w["append"]) for w in writes.a} == {(bank, append)}
            assert not writes.b and not writes.c and not writes.p
            if dense:
                mask = np.ones_like(mask)
            for n, (elements, size) in enumerate(segments_of(writes.a, config)):
                assert elements == {int(e): int(values[n, e]) for e in np.flatnonzero(mask[n])}
                assert size == bank_words(mask[n : n + 1], config.fetch_width)

    bench(name, body)


START_AND_END = 10
"""Cycles of a load of no rows: until the first write, and from the last to ``done``."""


def beats_of(mask, dense, width, config):
    """Beats of each row."""
    bitmap = 0 if dense else bitmap_words(mask.shape[1], config.stream_words)
    return [(bitmap + value_words(int(row.sum()), width, config.stream_words)) // config.stream_words for row in mask]


@pytest.mark.parametrize("name", ["small", "4 words"])
@pytest.mark.parametrize(("density", "dense"), [(0, 0), (0.1, 0), (0.5, 0), (1, 0), (1, 1)])
def test_load_a_pace(name, density, dense):
    """A cycle for each word, and one for a segment that ends in empty chunks, or for each beat and one, whichever are
    more.
    """

    async def body(ctx, dut, config, rng):
        rows, length = 12, 256
        values, mask = random_matrix(rng, rows, length, config.a_width)
        mask[:] = np.random.default_rng(1).random(mask.shape) < density
        words = pack_rows(values, None if dense else mask, config.a_width, config.stream_words)
        writes = await load(ctx, dut, a_fields(0, 0, dense, rows, length), to_beats(words, config), rng)
        own = [bank_words(row, config.fetch_width) for row in mask.reshape(rows, 1, length)]
        if density == 0:
            own = [length // CHUNK] * rows  # passing empty chunks
        each = [max(w, b) for w, b in zip(own, beats_of(mask, dense, config.a_width, config), strict=True)]
        # the gearbox is small: a row in which beats and words come at changing rates takes a few more
        mixed = 0.16 if density else 0
        assert sum(own) <= writes.cycles <= (1 + mixed) * sum(each) + rows + START_AND_END

    bench(name, body)


@pytest.mark.parametrize("name", ["small", "4 words"])
def test_bits_beyond_the_length(name):
    """Set bits that belong to no element do not hang a load, nor disturb the next one."""

    async def body(ctx, dut, config, rng):
        for kind in (Load.A, Load.B) * 4:
            rows, columns = rng.randint(1, 6), rng.choice([1, 3, 17])
            values, mask = random_matrix(rng, rows, columns, 4)
            width = config.a_width if kind == Load.A else config.b_width
            good = pack_rows(values, mask, width, config.stream_words)
            fields = a_fields(0, 0, 0, rows, columns) | {"kind": kind, "lanes": 1}
            beats = to_beats(good, config)
            rubbish = [beat | (1 << config.beat_bits) - (1 << columns) for beat in beats]
            rubbish += [rng.getrandbits(config.beat_bits) for _ in range(rows * config.beat_bits)]
            await load(ctx, dut, fields, rubbish, rng, idle=0.2)
            after = await load(ctx, dut, fields, beats, rng, idle=0.2)
            assert after.end == LoadEnd.GOOD and after.taken == len(beats)
            await ticks(ctx, 2)

    bench(name, body, watched=False)


# ---------------------------------------------------------------------- B


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("idle", [0.0, 0.5])
def test_load_b(name, idle):
    async def body(ctx, dut, config, rng):
        n, pes = config.tile_columns, config.pes_per_lane * config.load_slots
        for columns in [1, max(1, n // 3), n - 1, n]:
            count, bank, k = rng.randint(1, 4), rng.getrandbits(1), rng.randrange(config.k_depth - 4)
            lanes = rng.randint(1, (1 << config.lanes_per_cluster) - 1)
            values, mask = random_matrix(rng, count, columns, config.b_width)
            dense = "b" not in config.skip or rng.random() < 0.3
            words = pack_rows(values, None if dense else mask, config.b_width, config.stream_words)
            fields = a_fields(bank, 0, dense, count, columns) | {"kind": Load.B, "k": k, "lanes": lanes}
            writes = await load(ctx, dut, fields, to_beats(words, config), rng, idle=idle)
            assert writes.end == LoadEnd.GOOD
            assert not writes.a and not writes.c and not writes.p
            if dense:
                mask = np.ones_like(mask)
            kept, masks = {}, {}
            for write in writes.b:
                assert write["lanes"] == lanes
                row = write["k"] & config.k_depth - 1
                assert write["k"] >> config.k_width == bank
                if write.get("mask_we"):
                    masks[row] = write["mask"]
                if write.get("columns_we"):
                    assert write["slot"] == (columns - 1) // pes
                    masks[row] = None
                for pe in range(pes):
                    if write["enable"] >> pe & 1:
                        kept[row, write["slot"] * pes + pe] = write["values"][pe]
            for row in range(count):
                expected = {(k + row, int(c)): int(values[row, c]) for c in np.flatnonzero(mask[row])}
                got = {place: value for place, value in kept.items() if place[0] == k + row}
                if "b" in config.skip:
                    assert got == expected
                    assert masks[k + row] == sum(1 << int(c) for c in np.flatnonzero(mask[row]))
                else:
                    assert {place: got[place] for place in expected} == expected
                    assert not any(value for place, value in got.items() if place not in expected)
            if "b" not in config.skip and "c" not in config.skip:
                assert set(masks) == set(range(k, k + count))
            assert {place[0] for place in kept} <= set(range(k, k + count))

    bench(name, body)


@pytest.mark.parametrize("name", ["small", "4 words", "wide tile", "half a row"])
@pytest.mark.parametrize(("density", "dense"), [(0, 0), (0.05, 0), (0.2, 0), (0.5, 0), (1, 0), (1, 1)])
def test_load_b_pace(name, density, dense):
    """A cycle for each slot with a value, or each beat if more, and one unless dense; at least 3, of two slots 2."""

    async def body(ctx, dut, config, rng):
        rows, columns = 24, config.tile_columns
        values, mask = random_matrix(rng, rows, columns, config.b_width)
        mask[:] = np.random.default_rng(1).random(mask.shape) < density
        words = pack_rows(values, None if dense else mask, config.b_width, config.stream_words)
        fields = a_fields(0, 0, dense, rows, columns) | {"kind": Load.B, "lanes": 1}
        writes = await load(ctx, dut, fields, to_beats(words, config), rng)
        of_row = config.slots // config.load_slots
        slots = [int(row.any(1).sum()) for row in (mask | bool(dense)).reshape(rows, of_row, -1)]
        beats = beats_of(mask, dense, config.b_width, config)
        least = 3 if of_row > 2 else 2
        each = [max(max(s, b) + (not dense), least) for s, b in zip(slots, beats, strict=True)]
        mixed = 0.05 if 0 < density < 1 else 0  # the gearbox is small
        assert max(sum(slots), sum(beats)) <= writes.cycles <= (1 + mixed) * sum(each) + START_AND_END

    bench(name, body)


# ---------------------------------------------------------------------- C and parameters


@pytest.mark.parametrize("name", CONFIGS)
def test_load_c(name):
    async def body(ctx, dut, config, rng):
        n = config.tile_columns
        size = 1 << (config.mask_words - 1).bit_length()
        for columns in sorted({1, n // 2, n - 1, n}):
            count, bank, append = rng.randint(1, 5), rng.getrandbits(1), rng.getrandbits(1)
            _, mask = random_matrix(rng, count, columns, 4)
            words = pack_bitmaps(mask, config.stream_words)
            fields = a_fields(bank, append, 0, count, columns) | {"kind": Load.C}
            writes = await load(ctx, dut, fields, to_beats(words.reshape(-1), config), rng, idle=0.3)
            assert writes.end == LoadEnd.GOOD and not writes.a and not writes.b
            assert {(w["bank"], w["append"]) for w in writes.c} == {(bank, append)}
            assert [w["start"] for w in writes.c] == [1] + [0] * count * size
            expected = [int(row[at]) if at < len(row) else 0 for row in pack_bitmaps(mask, 1) for at in range(size)]
            assert [w["word"] for w in writes.c[1:]] == expected

    bench(name, body)


@pytest.mark.parametrize("name", ["small", "2 words", "4 words", "8 words", "only a"])
def test_load_p(name):
    async def body(ctx, dut, config, rng):
        if not config.post:
            return
        for columns in [1, 2, 3, config.tile_columns]:
            bank, lanes = rng.getrandbits(1), rng.randint(1, (1 << config.lanes_per_cluster) - 1)
            low, high = rng.randint(-(1 << 15), 0), rng.randint(0, (1 << 15) - 1)
            rows = [
                (rng.choice([-(1 << 31), (1 << 31) - 1, rng.randint(-99, 99)]), rng.getrandbits(24), rng.randrange(48))
                for _ in range(columns)
            ]
            words = [word for bias, mult, shift in rows for word in (bias & 0xFFFFFFFF, mult | shift << 24)]
            words += [0] * (-len(words) % config.stream_words)
            fields = a_fields(bank, 0, 0, 1, columns) | {"kind": Load.P, "lanes": lanes, "low": low, "high": high}
            writes = await load(ctx, dut, fields, to_beats(words, config), rng, idle=0.3)
            assert writes.end == LoadEnd.GOOD
            assert writes.limits == [{"valid": 1, "bank": bank, "low": low, "high": high}]
            expected = [
                {"valid": 1, "bank": bank, "lane": n, "column": c, "bias": bias, "mult": mult, "shift": shift}
                for c, (bias, mult, shift) in enumerate(rows)
                for n in range(config.lanes_per_cluster)
                if lanes >> n & 1
            ]
            assert writes.p == expected

    bench(name, body)


# ---------------------------------------------------------------------- packets that are too short or too long


@pytest.mark.parametrize("name", ["small", "4 words", "dense"])
def test_wrong_lengths(name):
    """Whatever is cut off or added, the load ends, says so, and the next one is not disturbed."""

    async def body(ctx, dut, config, rng):
        for kind in (Load.A, Load.B, Load.C, Load.P) * 3:
            count, columns = rng.randint(1, 3), rng.randint(1, config.tile_columns)
            values, mask = random_matrix(rng, count, columns, 4)
            width = {Load.A: config.a_width, Load.B: config.b_width}.get(kind, 0)
            dense = int(config.skip == "" or rng.random() < 0.3)
            if kind in (Load.A, Load.B):
                words = pack_rows(values, None if dense else mask, width, config.stream_words)
            elif kind == Load.C:
                words = pack_bitmaps(mask, config.stream_words).reshape(-1)
            else:
                count = 1
                words = np.zeros(2 * columns + (-2 * columns) % config.stream_words, dtype=np.uint32)
            beats = to_beats(words, config)
            fields = a_fields(0, 0, dense, count, columns) | {"kind": kind, "lanes": 1}
            cut = rng.randint(0, len(beats) - 1)
            short = await load(ctx, dut, fields, beats[:cut], rng, idle=0.2, ended=not cut)
            assert short.end == LoadEnd.SHORT and short.taken == cut
            extra = [rng.getrandbits(32) for _ in range(rng.randint(1, 3))]
            long = await load(ctx, dut, fields, beats + extra, rng, idle=0.2)
            assert long.end == LoadEnd.LONG and long.taken == len(beats)
            good = await load(ctx, dut, fields, beats, rng, idle=0.2)
            assert good.end == LoadEnd.GOOD and good.taken == len(beats)
            for write in (*good.b, *long.b):
                if not write.get("mask_we", 1):
                    write["mask"] = 0
            assert (good.b, good.p) == (long.b, long.p)
            assert [w["word"] for w in good.c if w["we"]] == [w["word"] for w in long.c if w["we"]]
            if kind == Load.A:
                assert segments_of(good.a, config) == segments_of(long.a, config)
            await ticks(ctx, 2)

    bench(name, body, seed=3, watched=False)  # what is left of a long packet is taken from the loader's stream
