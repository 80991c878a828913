"""The mask unit: alone against formulas, and as part of the accelerator against the golden and the cycle model."""

import random
from functools import cache

import numpy as np
import pytest
from maskwork.gen.config import GENERATORS, preset
from maskwork.gen.isa import KIND_BLOCKS, Fault, MaskKind, Op, Reply, mask_has_payload
from maskwork.rtl.load_common import LoadEnd
from maskwork.sim_tb.cycle import CycleDevice
from maskwork.sim_tb.device import GoldenDevice, RtlDevice
from maskwork.sim_tb.packets import Packets, joined

from .mask_bench import Reference, check_unit, command, packed, run_unit
from .test_cycle import counters_of
from .variants import CONFIGS

TRAIN = preset("small-train")
UNITS = {
    "1 word": TRAIN.replace(mask_depth=16, norm_channels=64),
    "4 words": TRAIN.replace(stream_words=4, a_width=5, project_sums=4, mask_slots=1, lut_ram=False),
    "1 value a word": TRAIN.replace(stream_words=2, a_width=18, project_sums=16, mask_slots=16),
}
"""Units of 9, 5 and 18 bits a value."""

SHAPES = ((1, 1), (1, 6), (2, 4), (3, 3), (4, 2), (5, 3), (31, 2), (33, 2), (64, 1))
"""Lengths and rows."""

RTL = {name: CONFIGS[name] for name in ("abc-1-2", "abc-4-2", "a-2-4", "ab-2-2", "bc-1-2", "block RAM")}
every_config = pytest.mark.parametrize("name", RTL)


@cache
def rtl(name):
    return RtlDevice(RTL[name])


def payload(config, rng, count):
    """Words of that many values, extreme ones often among them, whole beats."""
    low, high = -(1 << (config.a_width - 1)), (1 << (config.a_width - 1)) - 1
    values = [rng.choice((low, high, -high, 0, 1, -1, rng.randint(low, high), rng.randint(-8, 8)))
              for _ in range(count)]  # fmt: skip
    words = packed(values, config.a_width)
    return words + [0] * (-len(words) % config.stream_words)


def level_of(kind, config, rng):
    high = (1 << (config.a_width - 1)) - 1
    return {
        MaskKind.GREATER: rng.choice((-high - 1, -1, 0, high // 3, high)),
        MaskKind.MAGNITUDE: rng.choice((1, high // 2, high)),
        MaskKind.PRUNE: rng.choice((1, high // 2, high)),
        MaskKind.DROPOUT: rng.choice((1, 20_000, 65_535)),
    }.get(kind, 0)


def fields(kind, config, rng):
    seed = rng.choice((1, 1 << 31, 0xFFFFFFFF, rng.randint(1, (1 << 32) - 1)))
    return {"level": level_of(kind, config, rng), "seed": seed, "slot": rng.randrange(config.mask_slots)}


def with_payload(config, rng, c):
    return c, payload(config, rng, c["length"] * c["rows"]) if mask_has_payload(c["kind"], c["values"]) else []


def every_kind(config, rng):
    """Commands of all kinds and shapes; what is stored is replayed at times, and what is not there asked for."""
    stored = []
    for length, rows in SHAPES:
        for kind in MaskKind:
            for values in (1,) if kind in (MaskKind.NORMS, MaskKind.PROJECT) else (0, 1):
                c = command(kind, length, rows, values=values, **fields(kind, config, rng))
                if kind < MaskKind.REPLAY and rng.random() < 0.6:
                    c["store"] = 1
                    stored.append(c)
                if kind == MaskKind.REPLAY and stored and rng.random() < 0.8:
                    of = rng.choice(stored[-3:])
                    c |= {"length": of["length"], "rows": of["rows"], "slot": of["slot"]}
                yield with_payload(config, rng, c)


# ---------------------------------------------------------------------- the unit alone


@pytest.mark.parametrize(
    ("name", "idle", "stall"), [("1 word", 0, 0), ("1 word", 0.3, 0.3), ("4 words", 0.3, 0.3), ("1 value a word", 0, 0)]
)
def test_every_kind(name, idle, stall):
    rng = random.Random(name)
    check_unit(UNITS[name], list(every_kind(UNITS[name], rng)), idle=idle, stall=stall)


@pytest.mark.parametrize(("idle", "stall"), [(0.0, 0.9), (0.9, 0.0)])
def test_back_pressure(idle, stall):
    config, rng = UNITS["1 word"], random.Random(2)
    commands = [with_payload(config, rng, command(kind, 40, 2, values=v, **fields(kind, config, rng)))
                for kind, v in ((0, 0), (2, 1), (3, 0), (5, 1), (6, 1))]  # fmt: skip
    check_unit(config, commands, idle=idle, stall=stall)


@pytest.mark.parametrize("name", UNITS)
def test_payloads_too_short_and_too_long(name):
    """What is there is answered, and nothing of it stored."""
    config, rng, beat = UNITS[name], random.Random(3), UNITS[name].stream_words
    commands = []
    for kind in MaskKind:
        for length, rows in ((7, 5), (1, 9), (3, 4), (40, 1)):
            values = int(kind >= MaskKind.NORMS or rng.random() < 0.5)
            c = command(kind, length, rows, values=values, **fields(kind, config, rng))
            words = with_payload(config, rng, c)[1]
            if kind < MaskKind.REPLAY:
                commands.append((c | {"store": 1}, words))
            if kind == MaskKind.REPLAY:
                keep = command(MaskKind.GREATER, length, rows, store=1, values=0, slot=c["slot"])
                commands.append(with_payload(config, rng, keep))
            size = rng.choice((0, 1, len(words) // beat - 1, len(words) // beat + rng.randint(1, 3))) * beat
            commands.append((c | {"store": int(kind < MaskKind.REPLAY)}, (words + [rng.getrandbits(32)] * 99)[:size]))
            if kind < MaskKind.REPLAY:
                commands.append((command(MaskKind.REPLAY, length, rows, slot=c["slot"], values=0), []))
    check_unit(config, commands, idle=0.1, stall=0.1)
    reference = Reference(config)
    ends = [reference.reply(c, words)[1] for c, words in commands
            if c["kind"] != MaskKind.REPLAY or not reference.lacking(c)]  # fmt: skip
    assert {ends.count(end) > 5 for end in LoadEnd} == {True}


def test_slots():
    """Masks stay until another one takes their slot, none goes into it for want of room, or all are cleared."""
    config, rng = UNITS["1 word"], random.Random(4)
    masks = [command(MaskKind.DROPOUT, 33 + n, 2 + n, level=30_000, seed=n + 1, slot=n, store=1) for n in range(4)]
    replays = [c | {"kind": MaskKind.REPLAY, "store": 0, "values": 0} for c in masks]
    too_big = masks[1] | {"length": 100, "rows": 5}  # 20 words
    commands = [*masks, *replays, too_big, *replays, masks[1], masks[2] | {"slot": 3}, *replays]
    commands = [with_payload(config, rng, c) for c in commands]
    commands += [(None, []), *(with_payload(config, rng, c) for c in replays)]
    check_unit(config, commands)
    answers = run_unit(config, commands)
    assert [answer is None for answer in answers].count(True) == 1 + 1 + 4
    assert [answer[2] for answer in answers if answer].count(True) == 1


@pytest.mark.parametrize("block", GENERATORS)
def test_blocks_alone(block):
    """Each is built and works without the others (but for the masks that a replay needs)."""
    blocks = "threshold,store" if block == "store" else block
    config, rng = TRAIN.replace(generators=blocks), random.Random(block)
    kinds = [kind for kind in MaskKind if KIND_BLOCKS[kind] in config.blocks]
    commands = []
    for kind in kinds:
        c = command(kind, 35, 2, **fields(kind, config, rng) | {"slot": 0})
        if block == "store" and kind < MaskKind.REPLAY:
            c["store"] = 1
        commands.append(with_payload(config, rng, c))
    check_unit(config, commands, stall=0.2)


# ---------------------------------------------------------------------- in the accelerator


def programs(config, seed):
    """Legal programs of every kind, one to three MASKs each."""
    make, rng, numbers = Packets(config), random.Random(seed), np.random.default_rng(seed)
    limit = 1 << (config.a_width - 1)
    kinds = [kind for kind in MaskKind if KIND_BLOCKS[kind] in config.blocks]
    for length, rows in ((1, 9), (2, 5), (3, 3), (4, 4), (16, 3), (33, 4), (64, 2), (95, 1)):
        packets = [make.begin_packet()]
        for kind in rng.sample(kinds, min(3, len(kinds))):
            values = int(kind >= MaskKind.NORMS or rng.random() < 0.5)
            size = (rows, min(length, config.norm_channels)) if kind == MaskKind.NORMS else (rows, length)
            options = fields(kind, config, rng)
            matrix = numbers.integers(-limit, limit, size)
            if kind == MaskKind.REPLAY and KIND_BLOCKS[MaskKind.GREATER] not in config.blocks:
                continue
            if kind == MaskKind.REPLAY:
                packets.append(make.mask(MaskKind.GREATER, matrix, store=1, slot=options["slot"], values=values))
            given = matrix if mask_has_payload(kind, values) else None
            packets.append(make.mask(kind, given, rows=size[0], length=size[1], values=values, **options))
        yield joined(config, [*packets, make.command(Op.SYNC), make.command(Op.READ_COUNTERS)])


@pytest.mark.slow
@every_config
def test_programs_to_the_cycle(name):
    config, device = RTL[name], CycleDevice(RTL[name])
    for words, last in programs(config, 5):
        ours, modelled = rtl(name).execute(words, last), device.execute(words, last)
        assert np.array_equal(ours[0], modelled[0]) and np.array_equal(ours[1], modelled[1])
        assert counters_of(config, *ours) == counters_of(config, *modelled)
        assert rtl(name).last_run.cycles == device.last_run.cycles


@pytest.mark.slow
@every_config
def test_slots_from_program_to_program(name):
    """What one program stored, the next replays; ABORT between them empties the slots."""
    config = RTL[name]
    if not {"threshold", "store"} <= config.blocks:
        pytest.skip("nothing to replay")
    make, devices = Packets(config), (rtl(name), CycleDevice(config), GoldenDevice(config))
    x = np.random.default_rng(6).integers(-9, 9, (5, 40))
    stored = make.mask(MaskKind.GREATER, x, store=1, values=0)
    replayed = make.mask(MaskKind.REPLAY, x)
    for packet in (stored, replayed, replayed):
        answers = [d.execute(*joined(config, [make.begin_packet(), packet, make.command(Op.SYNC)])) for d in devices]
        assert all(np.array_equal(answer[0], answers[0][0]) for answer in answers)
        assert devices[0].last_run.cycles == devices[1].last_run.cycles
    words, last = joined(config, [make.command(Op.ABORT), make.begin_packet(), replayed, make.command(Op.SYNC)])
    answers = [d.execute(words, last) for d in (devices[0], devices[2])]
    assert np.array_equal(answers[0][0], answers[1][0])
    assert Reply.ERROR | Fault.MASK_EMPTY << 8 | Op.MASK << 16 in answers[0][0].tolist()


@pytest.mark.slow
@every_config
def test_broken_packets(name):
    """Whatever a packet lacks or has too much, the replies are the golden model's, word for word."""
    config, rng, numbers = RTL[name], random.Random(8), np.random.default_rng(8)
    make, beat, limit = Packets(config), config.stream_words, 1 << (config.a_width - 1)
    packets = [make.begin_packet()]
    for _ in range(120):
        kind = rng.choice([kind for kind in MaskKind if KIND_BLOCKS[kind] in config.blocks])
        values, stores = int(kind >= MaskKind.NORMS or rng.random() < 0.5), kind < MaskKind.REPLAY
        shape = rng.randint(1, 5), rng.randint(1, 40) if kind != MaskKind.NORMS else rng.randint(1, 16)
        matrix = numbers.integers(-limit, limit, shape) if mask_has_payload(kind, values) else None
        packet = make.mask(kind, matrix, rows=shape[0], length=shape[1], values=values,
                           store=int(stores and "store" in config.blocks), **fields(kind, config, rng))  # fmt: skip
        size = rng.randint(1, len(packet) // beat + 3) * beat
        packets.append((packet + [rng.getrandbits(32) for _ in range(3 * beat)])[:size])
    words, last = joined(config, [*packets, make.command(Op.SYNC)])
    golden, golden_last = GoldenDevice(config).execute(words, last)
    for stall in (0.0, 0.4):
        result = rtl(name).model.run(words, last, in_stall=stall, out_stall=stall, seed=9)
        assert np.array_equal(result.words, golden) and np.array_equal(result.last, golden_last)
    starts = np.flatnonzero(np.concatenate([[True], golden_last[:-1]])) * beat
    errors = [word >> 8 & 0xFF for word in golden[starts].tolist() if word & 0xFF == Reply.ERROR]
    assert {Fault.SHORT_PACKET, Fault.LONG_PACKET} <= set(errors) and len(errors) > 50


def test_pace():
    """A value a cycle; a row of PROJECT waits for its sums to leave, a short one of NORMS for the memory."""
    make, device = Packets(TRAIN), CycleDevice(TRAIN)
    wide, narrow = np.ones((12, 32), int), np.ones((12, 1), int)
    cases = (
        (0, 0, wide, 32),
        (1, 1, wide, 32),
        (2, 1, wide, 32),
        (5, 1, wide, 32),
        (5, 1, narrow, 4),
        (6, 1, wide, 48),
    )
    for kind, values, matrix, expected in cases:
        cycles = []
        for rows in (2, 12):
            packet = make.mask(MaskKind(kind), matrix[:rows], values=values, level=1)
            device.execute(*joined(TRAIN, [make.begin_packet(), packet, make.command(Op.SYNC)]))
            cycles.append(device.last_run.cycles)
        assert (cycles[1] - cycles[0]) / 10 == pytest.approx(expected, abs=0.5), MaskKind(kind)
