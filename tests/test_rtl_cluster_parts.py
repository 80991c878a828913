"""Simulator tests of a cluster's parts: bank book-keeping, buffers, copier, fetch, and the check of commands."""

import random

import pytest
from maskwork.gen.config import CHUNK, Config, preset
from maskwork.rtl.a_buffer import ABuffer
from maskwork.rtl.banks import BUFFERS, Banks
from maskwork.rtl.c_buffer import CBuffer
from maskwork.rtl.copier import Copier
from maskwork.rtl.fetch import segment_layout
from maskwork.rtl.layouts import WordKind, chunk_layout, record_layout, record_width, word_width

from .contract import plain, simulate, source, ticks


def pack_word(layout, **fields):
    """Bits of a struct."""
    return sum((value & (1 << layout[name].width) - 1) << layout[name].offset for name, value in fields.items())


def unpack_word(layout, word):
    """Fields of a struct's bits."""
    return {name: word >> field.offset & (1 << field.width) - 1 for name, field in layout}


# ---------------------------------------------------------------------- banks


def test_banks():
    """Against counters: what is loaded, fresh, and still needed by RUNs, under random events."""
    config = preset("small")
    dut = Banks(config)
    rng = random.Random(1)
    state = {name: {(b, bank): 0 for b in BUFFERS for bank in range(2)} for name in ("loaded", "fresh", "runs")}

    async def bench(ctx):
        waiting = []
        for _ in range(3000):
            begins, completes = {}, {}
            for b in BUFFERS:
                event = rng.choice([0, 0, 0, 1, 2])
                begins[b], completes[b] = ((event == n) << rng.getrandbits(1) for n in (1, 2))
            run = {name: rng.getrandbits(1) for name in ("a", "b", "c", "use_c")}
            valid = len(waiting) < config.run_depth and rng.random() < 0.3
            taken = bool(waiting) and rng.random() < 0.3
            lanes, post = rng.getrandbits(2), rng.getrandbits(1)
            first = waiting.pop(0) if taken else run
            ctx.set(dut.begins, begins)
            ctx.set(dut.completes, completes)
            ctx.set(dut.run, {**run, "valid": valid})
            ctx.set(dut.taken, {**first, "valid": taken})
            ctx.set(dut.lanes, lanes)
            ctx.set(dut.post, post)
            busy = plain(ctx.get(dut.busy))
            for bank in range(2):
                needs = {b: state["runs"][b, bank] > 0 for b in "abc"}
                needs["b"] |= bool(lanes >> bank & 1)
                needs["p"] = needs["b"] or bool(post)
                assert {b: busy[b] >> bank & 1 for b in BUFFERS} == needs
            await ctx.tick()
            uses = [(b, run[b]) for b in "abc" if valid and (b != "c" or run["use_c"])]
            for key in uses:
                state["runs"][key] += 1
                state["fresh"][key] = 0
            for b in "abc":
                state["runs"][b, first[b]] -= taken and (b != "c" or first["use_c"])
            if valid:
                waiting.append(run)
            for b, bank in state["loaded"]:
                if begins[b] >> bank & 1:
                    state["loaded"][b, bank] = state["fresh"][b, bank] = 0
                elif completes[b] >> bank & 1:
                    state["loaded"][b, bank] = state["fresh"][b, bank] = 1
            for name in ("loaded", "fresh"):
                flags = plain(ctx.get(getattr(dut, name)))
                assert flags == {b: state[name][b, 0] | state[name][b, 1] << 1 for b in BUFFERS}

    simulate(dut, bench)


# ---------------------------------------------------------------------- buffers


@pytest.mark.parametrize(("depth", "segments"), [(64, 64), (64, 16), (256, 16)])
def test_a_buffer(depth, segments):
    """Appended segments and their directory, both banks, until words or segments no longer fit."""
    config = Config(a_depth=depth, a_segments=segments)
    dut = ABuffer(config)
    rng = random.Random(depth + segments)
    banks = [[], []]

    async def write(ctx, **fields):
        ctx.set(dut.write, fields)
        await ctx.tick()
        ctx.set(dut.write, {"bank": fields["bank"]})

    async def bench(ctx):
        ctx.set(dut.selected, 1)
        full_seen = 0
        for _ in range(40):
            bank, append = rng.getrandbits(1), rng.random() < 0.7
            before = list(banks[bank]) if append else []
            new = [
                [rng.getrandbits(record_width(config)) for _ in range(rng.choice([0, 1, 5, 12]))]
                for _ in range(rng.randint(1, 4))
            ]
            fits = sum(map(len, before + new)) <= depth and len(before + new) <= segments
            await write(ctx, start=1, append=append, bank=bank)
            for words in new:
                with_last = rng.getrandbits(1) and bool(words)
                for number, word in enumerate(words):
                    ends = with_last and number == len(words) - 1
                    await write(ctx, we=1, word=word, end=ends, append=append, bank=bank)
                if not with_last:
                    await write(ctx, end=1, append=append, bank=bank)
            assert ctx.get(dut.full) == (not fits)
            if not fits:  # the sequencer lets a program begin such a bank anew only
                full_seen += 1
                await write(ctx, start=1, bank=bank)
                before = new = []
            await ctx.tick()
            banks[bank] = before + new
            for n in range(2):
                assert ctx.get(dut.segments[n]) == len(banks[n])
                for number, words in enumerate(banks[n]):
                    ctx.set(dut.directory_address, number | n * segments)
                    await ticks(ctx, 2)
                    entry = plain(ctx.get(dut.directory))
                    assert entry["words"] == len(words)
                    for at, word in enumerate(words[:3]):
                        ctx.set(dut.address, (entry["start"] + at) | n * depth)
                        await ticks(ctx, 2)
                        assert ctx.get(dut.word) == word
        assert full_seen

    simulate(dut, bench, cycles=100_000)


@pytest.mark.parametrize("columns", [64, 128])
def test_c_buffer(columns):
    config = Config(c_rows=16, pes_per_lane=4, slots=columns // 4)
    dut = CBuffer(config)
    depth = config.c_rows * config.mask_words
    rng = random.Random(columns)
    banks = [[], []]

    async def bench(ctx):
        fulls = []
        for _ in range(30):
            bank, append = rng.getrandbits(1), rng.random() < 0.7
            words = [rng.getrandbits(32) for _ in range(config.mask_words * rng.choice([1, 3, 9]))]
            selected = rng.random() < 0.8
            ctx.set(dut.selected, selected)
            for fields in [{"start": 1}] + [{"we": 1, "word": word} for word in words]:
                ctx.set(dut.write, {"bank": bank, "append": append, **fields})
                await ctx.tick()
            ctx.set(dut.write, {})
            if not selected:
                continue
            after = (banks[bank] if append else []) + words
            fulls.append(len(after) > depth)
            assert ctx.get(dut.full) == fulls[-1]
            banks[bank] = after[:depth]
            for n in range(2):
                for at, word in enumerate(banks[n]):
                    ctx.set(dut.address, at | n * depth)
                    await ticks(ctx, 2)
                    assert ctx.get(dut.word) == word
        assert any(fulls) and not all(fulls)

    simulate(dut, bench)


# ---------------------------------------------------------------------- copier


@pytest.mark.parametrize("fields", [{}, {"fetch_width": 8, "a_width": 4}, {"skip": "b", "rows_in_flight": 4}], ids=str)
@pytest.mark.parametrize("pauses", [0.0, 0.5])
def test_copier(fields, pauses):
    """Raw words as they are, segments word by word with k in their heads; one a cycle if all lanes have space."""
    config = Config(a_depth=512, a_segments=16, **fields)
    dut = Copier(config)
    rng = random.Random(3)
    lanes, rings = config.lanes_per_cluster, config.rows_in_flight
    memory = [0] * 2 * config.a_depth
    items, expected, free = [], [], 0
    for _ in range(60):
        target = {"lanes": rng.randint(1, (1 << lanes) - 1), "ring": rng.randrange(rings)}
        if rng.random() < 0.5:
            word = rng.getrandbits(word_width(config))
            items.append({**target, "raw": 1, "body": word})
            expected.append((target, word))
            continue
        start, k = free, rng.randrange(config.k_depth)
        at = start
        for number in sorted(rng.sample(range(config.k_depth // CHUNK), rng.randint(1, 4))):
            values = rng.randint(1, CHUNK // config.fetch_width)
            more = (values - 1) * config.fetch_width
            head = {"bitmap": rng.getrandbits(CHUNK), "more": more}
            memory[at] = pack_word(record_layout(config), **head, number=number)
            moved = (k + number * CHUNK) % config.k_depth
            expected.append((target, pack_word(chunk_layout(config), **head, k=moved, kind=WordKind.CHUNK.value)))
            for n in range(values):
                memory[at + 1 + n] = rng.getrandbits(record_width(config))
                expected.append((target, memory[at + 1 + n]))
            at += 1 + values
        free = at
        body = pack_word(segment_layout(config), start=start, words=at - start, k=k)
        items.append({**target, "raw": 0, "body": body})
    got, cycles = [], []

    async def buffer(ctx):
        """The activation buffer: 2 cycles."""
        register = 0
        while True:
            _, _, address = await ctx.tick().sample(dut.address)
            ctx.set(dut.word, register)
            register = memory[address]

    async def take(ctx):
        cycle = 0
        spaces = []
        while len(got) < len(expected):
            space = sum((rng.random() >= pauses) << n for n in range(lanes * rings))
            ctx.set(dut.space, space)
            spaces.append(space)
            _, _, out = await ctx.tick().sample(dut.o)
            out = plain(out)
            if out["lanes"]:
                got.append(({"lanes": out["lanes"], "ring": out["ring"]}, out["word"]))
                cycles.append(cycle)
                before = spaces[-4]  # 3 registers from the choice to the word
                assert all(before >> n * rings + out["ring"] & 1 for n in range(lanes) if out["lanes"] >> n & 1)
            cycle += 1
        await ticks(ctx, 2)
        assert not ctx.get(dut.busy)

    simulate(dut, source(dut.i, items), take, background=[buffer])
    assert got == expected
    if not pauses:
        assert cycles == list(range(cycles[0], cycles[0] + len(cycles)))
