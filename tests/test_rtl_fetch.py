"""Simulator tests of fetch, against a loop-nest model."""

import random

import pytest
from maskwork.gen.config import Config, preset
from maskwork.gen.isa import COMMANDS, LEVELS, Op
from maskwork.rtl.fetch import Fetch, segment_layout
from maskwork.rtl.fetch_serial import SerialFetch
from maskwork.rtl.lane_choice import CHOICE_CYCLES
from maskwork.rtl.layouts import WordKind, segment_words, start_layout

from .contract import plain, simulate, source, ticks

CONFIGS = {
    "small": {},
    "tiny": preset("tiny").to_dict(),
    "4 rings": {"rows_in_flight": 4, "lanes_per_cluster": 2, "lanes": 2, "k_depth": 64, "skip": "b"},
    "256 columns": {"pes_per_lane": 16, "slots": 16, "lanes": 8, "lanes_per_cluster": 8, "fifo_depth": 1024},
}


def unpack_word(layout, word):
    """Fields of a struct's bits."""
    return {name: word >> field.offset & (1 << field.width) - 1 for name, field in layout}


def wrap(value):
    return (value + 0x8000) % 0x10000 - 0x8000


class Cluster:
    """What fetch reads: the segment directories and C masks of both banks, at random."""

    def __init__(self, config, rng):
        self.config = config
        self.segments = [rng.randint(1, 12) for _ in range(2)]
        self.directory = [
            {"start": rng.randrange(config.a_depth), "words": rng.choice([0, 1, 7, segment_words(config)])}
            for _ in range(2 * config.a_segments)
        ]
        words = 2 * config.c_rows << (config.mask_words - 1).bit_length()
        self.masks = [rng.choice([0, 0, 0xFFFFFFFF, rng.getrandbits(32)]) for _ in range(words)]

    def rows(self, run):
        """For each row of a RUN: its C mask, and its segments' bodies."""
        config = self.config
        columns = (2 << run["columns"]) - 1
        state = {n: run[n] for n in ("seg", "k", "x", "y")}
        m0 = m1 = 0
        for index in range(run["rows"]):
            mask = columns
            if run["use_c"]:
                at = (run["c_row"] + index << (config.mask_words - 1).bit_length()) % (len(self.masks) // 2)
                at += run["c_bank"] * len(self.masks) // 2
                words = self.masks[at : at + config.mask_words]
                mask &= sum(word << 32 * n for n, word in enumerate(words))
            bodies = []
            tap = dict(state)
            for _ in range(run["t1"] + 1 if mask else 0):
                for t0 in range(run["t0"] + 1):
                    inside = 0 <= tap["x"] < run["x_limit"] and 0 <= tap["y"] < run["y_limit"]
                    if inside and 0 <= tap["seg"] < self.segments[run["a_bank"]]:
                        entry = self.directory[tap["seg"] + run["a_bank"] * config.a_segments]
                        if entry["words"]:
                            start = entry["start"] | run["a_bank"] * config.a_depth
                            k = tap["k"] % config.k_depth
                            bodies.append({"start": start, "words": entry["words"], "k": k})
                    level = "t0" if t0 < run["t0"] else "t1"
                    tap = {n: wrap(tap[n] + run[f"{level}_{n}"]) for n in tap}
            yield mask, bodies
            if m0 < run["m0"]:
                m0, level = m0 + 1, "m0"
            elif m1 < run["m1"]:
                m0, m1, level = 0, m1 + 1, "m1"
            else:
                m0, m1, level = 0, 0, "m2"
            state = {n: wrap(state[n] + run[f"{level}_{n}"]) for n in state}


def random_run(config, rng, cluster, kind):
    """Fields of a RUN: ``kind`` is "whole", "first", "middle" or "final" of a row's K tiles."""
    run = {f.name: rng.getrandbits(f.width) for f in COMMANDS[Op.RUN].fields if f.width == 1}
    run |= {f"{level}_{n}": rng.choice([-2, -1, 0, 0, 1, 1, 3]) for level in LEVELS for n in ("seg", "k", "x", "y")}
    run |= {"first": int(kind in ("whole", "first")), "final": int(kind in ("whole", "final"))}
    run |= {"tag": rng.getrandbits(8), "columns": rng.randrange(config.tile_columns), "clusters": 1}
    run |= {"rows": rng.randint(1, 12), "row_words": rng.getrandbits(16)}
    run |= {"m0": rng.randrange(4), "m1": rng.randrange(3)}
    run |= {"t0": rng.randrange(4), "t1": rng.randrange(4), "x_limit": rng.choice([2, 5, 65535])}
    run |= {"y_limit": rng.choice([3, 65535]), "seg": rng.randrange(-1, 8), "k": rng.randint(-(1 << 15), (1 << 15) - 1)}
    run |= {"x": rng.randrange(-1, 3), "y": rng.choice([-1, 0, 0, 32767]), "row": rng.getrandbits(16)}
    return run | {"c_row": rng.randrange(config.c_rows - 12), "share": int(kind == "whole" and rng.random() < 0.3)}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("unit", "pauses"), [(Fetch, 0.0), (Fetch, 0.4), (SerialFetch, 0.4)])
def test_fetch(unit, name, pauses):
    """Every row's words and segments in order, on a lane and ring with room; K tiles of a row stay in one place."""
    config = Config(**CONFIGS[name])
    dut = unit(config)
    rng = random.Random(7)
    cluster = Cluster(config, rng)
    lanes, rings = config.lanes_per_cluster, config.rows_in_flight
    runs, rows, share = [], 0, 0
    for kind in ["whole", "first", "final", "whole", "first", "middle", "middle", "final", "whole"]:
        run = random_run(config, rng, cluster, kind)
        if kind == "first":
            share = rng.getrandbits(1)
            rows = min(12, config.psum_rows * (1 if share else lanes))
        if kind != "whole":  # a row's later K tiles must be the same rows
            run |= {"rows": rows, "share": share}
        runs.append(run)
    items, comings, taken, follow = [], [], [], []

    async def memories(ctx):
        """The directory and the masks answer after 2 cycles."""
        later = [None, None]
        while True:
            _, _, entry, mask = await ctx.tick().sample(dut.directory_address, dut.mask_address)
            if later[0] is not None:
                ctx.set(dut.directory, cluster.directory[later[0]])
                ctx.set(dut.mask, cluster.masks[later[1]])
            later = [entry, mask]

    async def queue(ctx):
        """The copier's queue and the lanes' rings."""
        after = 0
        rooms = [0] * (CHOICE_CYCLES + 1)
        for n in range(2):
            ctx.set(dut.segments[n], cluster.segments[n])
        while True:
            space = rng.random() >= pauses
            ctx.set(dut.space, space)
            room = sum((rng.random() >= pauses) << n for n in range(lanes * rings))
            rooms = [*rooms[1:], room]
            ctx.set(dut.room, room)
            signals = (dut.o.valid, dut.o.item, dut.coming, dut.taken, dut.taken_a, dut.coming_bank)
            _, _, valid, item, coming, ends, bank, b_bank = await ctx.tick().sample(*signals)
            after = 0 if space else after + valid
            follow.append(after)
            if valid:
                items.append(plain(item))
            if coming:
                # as it was when the choice began (shared rows: a cycle later)
                assert any(coming & room == coming for room in rooms[:2])
                comings.append((coming, b_bank))
            if ends:
                taken.append(bank)

    async def wait(ctx):
        while len(taken) < len(runs):
            await ctx.tick()
        await ticks(ctx, 4)
        assert not ctx.get(dut.active)

    words = [word for run in runs for word in COMMANDS[Op.RUN].encode(run)]
    simulate(dut, source(dut.run, words, idle=pauses), wait, background=[memories, queue])
    assert taken == [run["a_bank"] for run in runs]
    assert max(follow) <= 4

    stream = iter(items)
    places = {}
    for run in runs:
        used = set()
        for index, (mask, bodies) in enumerate(cluster.rows(run)):
            first = next(stream)
            start = unpack_word(start_layout(config), first["body"])
            place = (first["lanes"], first["ring"], start["slot"])
            target = {"lanes": first["lanes"], "ring": first["ring"]}
            bits = sum(1 << n * rings + first["ring"] for n in range(lanes) if first["lanes"] >> n & 1)
            assert comings.pop(0) == (bits, run["b_bank"])
            assert first["raw"] and start["kind"] == WordKind.START.value
            assert all(start[n] == run[n] for n in ("tag", "first", "final", "post")) and start["bank"] == run["b_bank"]
            if run["share"]:
                assert first["lanes"] == (1 << lanes) - 1
            else:
                assert first["lanes"].bit_count() == 1
            if not run["first"]:
                assert place == places[index]
            if not run["final"]:
                assert place not in used and start["slot"] < config.psum_rows
                used.add(place)
                places[index] = place
            assert next(stream) == {**target, "raw": 1, "body": run["row"] + index & 0xFFFF}
            for n in range(config.mask_words):
                assert next(stream) == {**target, "raw": 1, "body": mask >> 32 * n & 0xFFFFFFFF}
            for body in bodies:
                item = next(stream)
                assert {n: item[n] for n in target} == target and not item["raw"]
                assert unpack_word(segment_layout(config), item["body"]) == body
            end = next(stream)
            assert {n: end[n] for n in target} == target and end["raw"]
            assert unpack_word(start_layout(config), end["body"])["kind"] == WordKind.END.value
    assert next(stream, None) is None and not comings


@pytest.mark.parametrize("unit", [Fetch, SerialFetch])
def test_fetch_abort(unit):
    """Rows that were not dispatched are dropped; the row in progress is completed, and the RUN counts as taken."""
    config = preset("small")
    dut = unit(config)
    run = {f.name: 0 for f in COMMANDS[Op.RUN].fields} | {"rows": 500, "t0": 30, "first": 1, "final": 1, "clusters": 1}
    items = []

    async def bench(ctx):
        ctx.set(dut.space, 1)
        ctx.set(dut.room, -1)
        sent, cycle = 0, 0
        words = COMMANDS[Op.RUN].encode(run)
        ended = 0
        while not ended:
            ctx.set(dut.run.valid, sent < len(words))
            ctx.set(dut.run.payload, words[min(sent, len(words) - 1)])
            ctx.set(dut.abort, cycle > 300)
            signals = (dut.run.ready, dut.run.valid, dut.o.valid, dut.o.item, dut.taken)
            _, _, ready, valid, out, item, ended = await ctx.tick().sample(*signals)
            sent += ready and valid
            if out:
                items.append(unpack_word(start_layout(config), plain(item)["body"])["kind"])
            cycle += 1
        # the row in progress has 31 taps
        assert cycle < 300 + (60 if unit is Fetch else 31 * 14 + 20)
        await ctx.tick()
        assert not ctx.get(dut.active)

    simulate(dut, bench)
    assert items.count(WordKind.START.value) == items.count(WordKind.END.value) < 20


def dispatched(unit, config, fields, pending, mask=0xFFFFFFFF):
    """Cycles in which rows were given away, and their rings, of one RUN; a ring that was given a row has no room from
    the next cycle on, for ``pending()`` cycles.
    """
    dut = unit(config)
    run = {f.name: 0 for f in COMMANDS[Op.RUN].fields} | {"clusters": 1, "first": 1, "final": 1} | fields
    run |= {"columns": config.tile_columns - 1, "x_limit": 99, "y_limit": 99}
    given = []

    async def bench(ctx):
        ctx.set(dut.space, 1)
        ctx.set(dut.mask, mask)
        ctx.set(dut.segments[0], 4)
        ctx.set(dut.directory, {"start": 0, "words": 3})
        words, left, cycle, ended = COMMANDS[Op.RUN].encode(run), [0] * len(dut.room), 0, 0
        while not ended:
            room = sum((not n) << at for at, n in enumerate(left))
            ctx.set(dut.room, room)
            ctx.set(dut.run.valid, bool(words))
            ctx.set(dut.run.payload, words[0] if words else 0)
            _, _, ready, coming, ended = await ctx.tick().sample(dut.run.ready, dut.coming, dut.taken)
            assert not coming & ~room
            left = [pending() if coming >> at & 1 else max(0, n - 1) for at, n in enumerate(left)]
            words = words[1:] if words and ready else words
            if coming:
                given.append((cycle, coming))
            cycle += 1

    simulate(dut, bench)
    assert len(given) == run["rows"]
    return given


@pytest.mark.parametrize("name", ["small", "tiny", "256 columns"])
@pytest.mark.parametrize("use_c", [0, 1])
@pytest.mark.parametrize("share", [0, 1])
def test_fetch_pace(name, use_c, share):
    """A row takes 4 cycles, and one for each mask word and tap, if a lane has room; an unwanted one has no taps."""
    config = Config(**CONFIGS[name])
    for taps, mask in ((1, 1), (1, 0), (5, 1)):
        fields = {"rows": 6, "t0": taps - 1, "use_c": use_c, "share": share}
        cycles = [cycle for cycle, _ in dispatched(Fetch, config, fields, lambda: 0, mask)]
        own = 4 + config.mask_words + (taps if mask or not use_c else 0)
        assert cycles == list(range(cycles[0], cycles[0] + 6 * own, own))


@pytest.mark.parametrize("fields", [{}, {"slots": 32}, {"pes_per_lane": 16, "slots": 16}], ids=str)
@pytest.mark.parametrize("share", [0, 1])
def test_known_rows_pace(fields, share):
    """Later K tiles with sums in the PEs: 3 cycles and one for each tap, at least 4 and two more than mask words."""
    config = Config(psum_in_pe=True, **fields)
    for taps, mask in ((1, 1), (2, 1), (1, 0), (9, 1), (9, 0)):
        run = {"rows": 6, "t0": taps - 1, "use_c": 1, "share": share, "first": 0}
        cycles = [cycle for cycle, _ in dispatched(Fetch, config, run, lambda: 0, mask)]
        own = max(3 + (taps if mask else 0), 4, config.mask_words + 2)
        assert cycles == list(range(cycles[0], cycles[0] + 6 * own, own))


def test_known_rows_without_columns():
    """A later K tile of a row has its segments if and only if its own mask, not a neighbour's, wants a column."""
    config, rng = Config(psum_in_pe=True, slots=32), random.Random(5)
    words = config.mask_words
    masks = [rng.choice([0, 0, 1 << 5]) for _ in range(40 * words)]
    run = {f.name: 0 for f in COMMANDS[Op.RUN].fields} | {"clusters": 1, "rows": 40, "use_c": 1, "final": 1}
    run |= {"columns": config.tile_columns - 1, "x_limit": 9, "y_limit": 9}
    dut, segments = Fetch(config), []

    async def bench(ctx):
        ctx.set(dut.segments[0], 4)
        ctx.set(dut.directory, {"start": 0, "words": 3})
        stream, later, ended = COMMANDS[Op.RUN].encode(run), 0, 0
        while ended < 5:
            ctx.set(dut.space, rng.random() < 0.8)
            ctx.set(dut.room, -(rng.random() < 0.8))
            ctx.set(dut.run.valid, bool(stream))
            ctx.set(dut.run.payload, stream[0] if stream else 0)
            signals = (dut.run.ready, dut.mask_address, dut.o.valid, dut.o.item, dut.taken)
            _, _, ready, address, valid, item, taken = await ctx.tick().sample(*signals)
            ctx.set(dut.mask, masks[later % len(masks)])
            later = address
            stream = stream[1:] if stream and ready else stream
            if valid and not item["raw"]:
                segments[-1] += 1
            elif valid and unpack_word(start_layout(config), item["body"])["kind"] == WordKind.START.value:
                segments.append(0)
            ended += bool(taken or ended)

    simulate(dut, bench)
    assert segments == [int(any(masks[words * row : words * (row + 1)])) for row in range(40)]


@pytest.mark.parametrize("unit", [Fetch, SerialFetch])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("share", [0, 1])
def test_no_ring_twice(unit, name, share):
    """The choice is made while a row is sent: never of a ring that has just been given a row."""
    rng = random.Random(3)
    fields = {"rows": 60, "use_c": 1, "share": share}
    dispatched(unit, Config(**CONFIGS[name]), fields, lambda: rng.choice([1, 2, 3, 4, 5, 6, 7, 40]), mask=0)
