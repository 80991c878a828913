"""The vector unit on the simulated netlist and on the cycle model: extremes, back-pressure, company, broken packets."""

import random
from functools import cache

import numpy as np
import pytest
from maskwork.gen.config import preset
from maskwork.gen.execute import execute
from maskwork.gen.isa import COUNTERS, MAX_WINDOW, Fault, Op, Reply, VectorKind
from maskwork.gen.lower import lower_vector
from maskwork.rtl.vector import VectorUnit
from maskwork.sim_tb.cycle import CycleDevice, simulate_program
from maskwork.sim_tb.device import GoldenDevice, RtlDevice
from maskwork.sim_tb.golden import vector
from maskwork.sim_tb.packets import Machine, Packets, decode, faults, joined
from maskwork.sim_tb.random_programs import RandomProgram

from .contract import simulate, sink, source
from .test_cycle import counters_of
from .test_vector import exact, random_fields, values
from .variants import CONFIGS, TWO

RTL = {name: CONFIGS[name] for name in ("abc-1-2", "abc-4-2", "a-2-4", "bc-1-2", "block RAM")}
"""1 and 4 words a beat; 1, 3 and 6 values a word; queues in LUT RAM and in block RAM."""
every_config = pytest.mark.parametrize("name", RTL)
WINDOWS = (1, 2, 9, 49)
MOST = (1 << 24) - 1


@cache
def rtl(name):
    return RtlDevice(RTL[name])


def extremes(config):
    """Windows of extreme values, and fields that bring extreme, tied and clamped results."""
    low, high = -(1 << (config.a_width - 1)), (1 << (config.a_width - 1)) - 1
    rng = np.random.default_rng(5)
    open_ = {"low": -32768, "high": 32767}
    for kind in VectorKind:
        for window in WINDOWS:
            for value in (low, high, -1, 0, 1):
                yield np.full((4, window), value), {"kind": kind, "mult0": MOST, "mult1": MOST, "shift": 0, **open_}
                yield np.full((4, window), value), {"kind": kind, "mult0": MOST, "mult1": MOST, "shift": 47, **open_}
            mixed = rng.choice([low, high], (23, window))
            for shift in (0, 20, 24, 30, 47):
                yield mixed, {"kind": kind, "mult0": MOST, "mult1": 1, "shift": shift, "low": max(low, -32768),
                              "high": min(high, 32767)}  # fmt: skip
            ties = np.arange(-40, 41).reshape(-1, 1) % (high + 1) * np.eye(1, window, dtype=int)
            yield ties, {"kind": kind, "mult0": 1, "mult1": 0, "shift": 1, **open_}
            yield ties, {"kind": kind, "mult0": 3, "mult1": 5, "shift": 2, **open_}
            yield ties, {"kind": kind, "mult0": 1, "mult1": 1, "shift": 0, "low": -2, "high": 3}
            yield ties, {"kind": kind, "mult0": 1, "mult1": 1, "shift": 0, "low": 3, "high": -2}
            yield ties, {"kind": kind, "mult0": 1, "mult1": 1, "shift": 0, "low": 30000, "high": 31000}


@pytest.mark.slow
@every_config
def test_extremes(name):
    config = RTL[name]
    cases = list(extremes(config))
    replies = Machine(config, rtl(name)).send(*(Packets(config).vector(v, **f) for v, f in cases))
    assert len(replies) == len(cases)
    for reply, (windows, f) in zip(replies, cases, strict=True):
        arguments = (f[key] for key in ("kind", "mult0", "mult1", "shift", "low", "high"))
        assert reply["outputs"] == exact(config, windows, *arguments), (windows.shape, f)


@pytest.mark.slow
@pytest.mark.parametrize("stalls", [(0.0, 0.0), (0.5, 0.5), (0.0, 0.9), (0.9, 0.0)])
@every_config
def test_back_pressure(name, stalls):
    config, rng = RTL[name], np.random.default_rng(6)
    make = Packets(config)
    packets = [make.begin_packet()]
    for window in WINDOWS:
        for count in (1, 2, 3, 5, 6, 7, 31, 100):
            packets.append(make.vector(values(rng, config, (count, window)), tag=window, **random_fields(rng)))
    words, last = joined(config, [*packets, make.command(Op.SYNC)])
    result = rtl(name).model.run(words, last, in_stall=stalls[0], out_stall=stalls[1], seed=7)
    golden, golden_last = GoldenDevice(config).execute(words, last)
    assert np.array_equal(result.words, golden) and np.array_equal(result.last, golden_last)


@pytest.mark.slow
@every_config
def test_the_longest_window(name):
    config = RTL[name]
    windows = np.full((2, MAX_WINDOW), -(1 << (config.a_width - 1)))
    fields = {"kind": 0, "mult0": MOST, "mult1": MOST, "shift": 47, "low": -32768, "high": 32767}
    reply, longer = Machine(config, rtl(name)).send(
        Packets(config).vector(windows, **fields), Packets(config).vector(windows[:1], **(fields | {"shift": 0}))
    )
    assert reply["outputs"] == exact(config, windows, *fields.values())
    assert longer["outputs"] == exact(config, windows[:1], *(fields | {"shift": 0}).values())


@pytest.mark.slow
@every_config
def test_broken_packets(name):
    """Whatever a packet lacks or has too much, the replies are the golden model's, word for word."""
    config = RTL[name]
    make, chance, rng = Packets(config), random.Random(8), np.random.default_rng(8)
    packets, beat = [make.begin_packet()], config.stream_words
    for _ in range(150):
        window, count = chance.choice((1, 2, 3, 9)), chance.randint(1, 20)
        packet = make.vector(values(rng, config, (count, window)), **random_fields(rng))
        size = chance.randint(1, len(packet) // beat + 3) * beat
        packets.append((packet + [chance.getrandbits(32) for _ in range(3 * beat)])[:size])
    words, last = joined(config, [*packets, make.command(Op.SYNC)])
    golden, golden_last = GoldenDevice(config).execute(words, last)
    for stalls in ((0.0, 0.0), (0.4, 0.4)):
        result = rtl(name).model.run(words, last, in_stall=stalls[0], out_stall=stalls[1], seed=9)
        assert np.array_equal(result.words, golden) and np.array_equal(result.last, golden_last)
    starts = np.flatnonzero(np.concatenate([[True], golden_last[:-1]])) * beat
    errors = [word >> 8 & 0xFF for word in golden[starts].tolist() if word & 0xFF == Reply.ERROR]
    assert {Fault.SHORT_PACKET, Fault.LONG_PACKET} == set(errors) and len(errors) > 50


@pytest.mark.slow
@every_config
def test_counters_follow_at_once(name):
    """READ_COUNTERS right behind VECTOR, and VECTORs behind SYNC, disturb nothing."""
    config = RTL[name]
    make, rng = Packets(config), np.random.default_rng(10)
    packet = make.vector(values(rng, config, (20, 3)), **random_fields(rng))
    program = [make.begin_packet(), packet, make.command(Op.SYNC), packet, make.command(Op.READ_COUNTERS)]
    words, last = joined(config, program)
    device = CycleDevice(config)
    ours, modelled = rtl(name).execute(words, last), device.execute(words, last)
    assert counters_of(config, *ours) == counters_of(config, *modelled)
    assert rtl(name).last_run.cycles == device.last_run.cycles


@pytest.mark.slow
@every_config
def test_while_runs_are_in_flight(name):
    """VECTORs between RUNs: rows of results are not lost, the order of VECTOR replies is that of the commands."""
    config = RTL[name]
    make, rng = Packets(config), np.random.default_rng(11)
    columns = config.tile_columns
    limit = 1 << (config.a_width - 1)
    a, b = rng.integers(-limit, limit, (12, config.k_depth)), rng.integers(-200, 200, (config.k_depth, columns))
    packets, vectors = [make.begin_packet()], []
    loads = {"clusters": (1 << config.clusters) - 1}
    for n in range(4):
        packets += [make.load_a(a, bank=n & 1, **loads), make.load_b(b, bank=n & 1, **loads)]
        packets.append(make.run(12, columns, a_bank=n & 1, b_bank=n & 1, tag=n, row_words=200, **loads))
        for _ in range(2):
            vectors.append(make.vector(values(rng, config, (30, 3)), tag=len(vectors), **random_fields(rng)))
            packets.append(vectors[-1])
    packets += [make.command(Op.SYNC), make.command(Op.READ_COUNTERS)]
    words, last = joined(config, packets)
    golden = [decode(config, p) for p in split(config, *GoldenDevice(config).execute(words, last))]
    for stall in (0.0, 0.7):
        result = rtl(name).model.run(words, last, out_stall=stall, seed=12)
        ours = [decode(config, p) for p in split(config, result.words, result.last)]
        assert len(ours) == len(golden)
        for mine, theirs in zip(of_kind(ours, Reply.VECTOR), of_kind(golden, Reply.VECTOR), strict=True):
            assert mine == theirs
        rows = [sorted((r["tag"], r["row"], r["columns"].tolist()) for r in of_kind(replies, Reply.RESULT))
                for replies in (ours, golden)]  # fmt: skip
        assert rows[0] == rows[1]
        counters = ours[-1]
        assert sum(counters[reason] for reason in COUNTERS[:8]) == counters["cycles"] * config.pes
        # products were made while values were pooled: rows of the RUNs before came between VECTOR replies
        kinds = [r["reply"] for r in ours]
        assert Reply.RESULT in kinds[kinds.index(Reply.VECTOR) :]


def of_kind(replies, kind):
    return [reply for reply in replies if reply["reply"] == kind]


def split(config, words, last):
    return np.split(words, (np.flatnonzero(last) + 1) * config.stream_words)[:-1]


@pytest.mark.slow
@every_config
def test_programs_on_all_targets(name):
    config, rng = RTL[name], np.random.default_rng(13)
    for count, window in ((1, 1), (50, 2), (33, 9)):
        fields = random_fields(rng) | {"low": -8, "high": 9}
        program = lower_vector(config, count, window, **fields)
        a = values(rng, config, (count, window))
        done = [execute(d, program, {"a": a}) for d in (GoldenDevice(config), CycleDevice(config), rtl(name))]
        assert all(np.array_equal(each.outputs["c"], vector(a, **fields)) for each in done)
        assert done[1].counters == done[2].counters
        simulated = simulate_program(program, {"a": a})
        assert {key: simulated[key] for key in COUNTERS} == done[2].counters
        assert simulate_program(program) == simulated  # values do not matter


@pytest.mark.slow
def test_without_the_unit():
    device = RtlDevice(preset("tiny"))
    machine = Machine(preset("tiny"), device)
    assert faults(machine.send(machine.vector(np.ones((50, 2), int)))) == [(Fault.UNKNOWN_OPCODE, Op.VECTOR)]
    (reply,) = machine.send(machine.command(Op.ECHO, token=5))
    assert reply["token"] == 5


def test_pace():
    """A value a cycle: what a VECTOR costs beyond its values does not grow with them."""
    for window in (1, 2, 9):
        cycles = []
        for count in (36, 900):
            program = lower_vector(preset("small"), count, window, "sum", 1, 1, 0, -256, 255)
            cycles.append(simulate_program(program)["cycles"] - count * window)
        assert cycles[0] == cycles[1] < 100


def test_random_programs_have_vectors():
    counts = [RandomProgram(TWO.replace(vector=True), random.Random(seed)).vectors for seed in range(20)]
    assert sum(counts) > 40
    assert not RandomProgram(TWO, random.Random(1)).vectors


# ---------------------------------------------------------------------- the unit alone


@pytest.mark.parametrize(("idle", "stall"), [(0.0, 0.0), (0.0, 0.9), (0.7, 0.0), (0.4, 0.4)])
@pytest.mark.parametrize("words", [1, 4])
def test_streams_keep_their_contract(words, idle, stall):
    config = TWO.replace(vector=True, stream_words=words)
    dut, rng = VectorUnit(config), np.random.default_rng(14)
    windows = values(rng, config, (40, 3))
    packet = Packets(config).vector(windows)[-(-5 // words) * words :]
    beats = [sum(word << 32 * n for n, word in enumerate(packet[at : at + words]))
             for at in range(0, len(packet), words)]  # fmt: skip
    items = [{"data": beat, "last": at == len(beats) - 1} for at, beat in enumerate(beats)]
    got: list[dict[str, int]] = []

    async def begin(ctx):
        ctx.set(dut.command, {"window": 3, "count": 40, "mult0": 1, "mult1": 1, "shift": 2, "low": -100, "high": 90})
        await ctx.tick().repeat(2)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)

    simulate(dut, begin, source(dut.i, items, idle=idle, seed=1), sink(dut.o, 14, got, stall=stall, seed=2))
    expected = exact(config, windows, 0, 1, 1, 2, -100, 90)
    fields = [word["word"] >> 9 * n & 511 for word in got for n in range(3)][:40]
    assert [value - (value >> 8 << 9) for value in fields] == expected
    assert [word["last"] for word in got] == [0] * 13 + [1]
