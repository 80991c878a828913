"""The cycle model against the RTL: every counter of random programs, of the demonstration's layers, and of products."""

import random
import shutil
from collections import Counter
from functools import cache
from pathlib import Path

import maskwork as mw
import numpy as np
import pytest
from maskwork.gen import demo
from maskwork.gen.config import Config, preset
from maskwork.gen.errors import BankOverflow, DeviceError, MaskworkValueError
from maskwork.gen.execute import execute_bound, read_counters
from maskwork.gen.isa import COUNTERS, ISA_VERSION, Op, Reply
from maskwork.gen.lower import lower_matmul
from maskwork.gen.program import bind
from maskwork.sim_tb.cycle import CycleDevice, engine, simulate, simulate_program
from maskwork.sim_tb.device import RtlDevice
from maskwork.sim_tb.golden import macs
from maskwork.sim_tb.packets import Packets, decode, joined
from maskwork.sim_tb.random_programs import RandomProgram

from .variants import ALL, TWO
from .variants import CONFIGS as VARIANTS

SMALL, TINY = preset("small"), preset("tiny")
IN_TURN = TWO.replace(dispatch="turns", lanes_per_cluster=4)
WIDE = TWO.replace(skip="ac", load_slots=4, stream_words=8)
NINETY_SIX = Config.from_toml(Path(__file__).parents[1] / "docs/boards/ulx3s-85f-96.toml").replace(counters=True)
CONFIGS: dict[str, tuple[Config, int]] = {
    "tiny": (TINY, 13),
    "small": (SMALL, 9),
    "small-train": (preset("small-train"), 6),
    "dense-small": (preset("dense-small"), 8),
    "ulx3s-85f": (preset("ulx3s-85f"), 4),
    "96 PEs": (NINETY_SIX, 3),
    "sim-64": (preset("sim-64"), 4),
    "ecp5-25f": (preset("ecp5-25f"), 12),
    "icebreaker-link": (preset("icebreaker-link").replace(counters=True), 6),
    "tang-nano-9k": (preset("tang-nano-9k").replace(counters=True), 6),
    "small-int16": (preset("small-int16"), 6),
    "sim-64-int16": (preset("sim-64-int16"), 3),
    **{name: (config, 12 if name == "b-4-2" else 10) for name, config in VARIANTS.items()},
    "ac, 8 words": (WIDE, 8),
    "8 clusters, 4 words": (  # results of many clusters wait for the stream; a result's head is one beat
        TWO.replace(lanes=16, stream_words=4, weight_lanes=2, load_slots=2, psum_in_pe=True), 10
    ),
    "rows in turn": (IN_TURN, 8),
    "rows in turn, serial fetch": (TWO.replace(dispatch="turns", lut_ram=False, slots=32), 8),
    "one row in flight": (TWO.replace(rows_in_flight=1, weight_lanes=2), 8),
    "one row in flight, K in PEs": (
        TWO.replace(rows_in_flight=1, dispatch="turns", psum_in_pe=True, stream_words=2, lanes_per_cluster=4), 8
    ),
    "small buffers": (
        TINY.replace(
            lanes=2, lanes_per_cluster=2, queue_depth=64, fifo_depth=64, slots=32, skip="bc", fetch_width=8, run_depth=8
        ),
        10,
    ),
}
"""Configurations, and random programs of each."""


@cache
def rtl(config):
    return RtlDevice(config)


def compiled(config, runs, seed):
    program = RandomProgram(config, random.Random(seed), runs)
    return program, *joined(config, program.packets)


def replies(config, shared, words, last):
    """Reply packets without counters, sorted; a row that is not shared may come from any lane of its cluster."""
    result = []
    for packet in np.split(words, (np.flatnonzero(last) + 1)[:-1] * config.stream_words):
        packet = packet.tolist()
        if packet[0] & 0xFF == Reply.RESULT and not shared[packet[0] >> 8 & 0xFF]:
            lane = packet[0] >> 16 & 0xFF
            packet[0] += (lane // config.lanes_per_cluster - lane) << 16
        if packet[0] & 0xFF != Reply.COUNTERS:
            result.append(packet)
    return sorted(result)


def counters_of(config, words, last):
    packets = np.split(words, (np.flatnonzero(last) + 1)[:-1] * config.stream_words)
    found = [decode(config, packet) for packet in packets if packet[0] & 0xFF == Reply.COUNTERS]
    return [{name: reply[name] for name in COUNTERS} for reply in found]


def check(config, device, words, last, what):
    """Equal counters and cycles; returns the replies of device and RTL."""
    expected, got = rtl(config).execute(words, last), device.execute(words, last)
    assert counters_of(config, *got) == counters_of(config, *expected), what
    assert device.last_run.cycles == rtl(config).last_run.cycles, what
    return got, expected


# ---------------------------------------------------------------------- against the RTL


def test_there_are_352_programs():
    assert sum(number for _, number in CONFIGS.values()) == 352
    assert {config.name for config, _ in CONFIGS.values()} >= set(mw.presets())


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_random_programs(name):
    """Every counter, the cycles from first beat to last, and every reply."""
    config, number = CONFIGS[name]
    device, charged = CycleDevice(config), Counter()
    for seed in range(number):
        program, words, last = compiled(config, 4 if number >= 10 else 3, f"{name} {seed}")
        got, expected = check(config, device, words, last, (name, seed))
        assert replies(config, program.shared, *got) == replies(config, program.shared, *expected), (name, seed)
        charged.update(device.counters)
        reasons = sum(device.counters[reason] for reason in COUNTERS[:8])
        assert reasons == device.counters["cycles"] * config.pes
    # the programs reach every reason, but PEs that skip nothing, and two with block-RAM queues, hardly get out of step
    uneven = config.lut_ram and set(config.skip) & {*"bc"}
    reached = [reason for reason in COUNTERS[:8] if reason != "imbalance" or uneven]
    assert all(charged[reason] for reason in reached), charged


@pytest.mark.slow
@pytest.mark.parametrize("k", [20, 80])
def test_rows_go_to_lanes_in_turn(k):
    """With as many rows as fit, of one K tile and of three, whatever their lengths."""
    rng, lanes, rows = np.random.default_rng(3), IN_TURN.lanes, 4 * IN_TURN.psum_rows
    a = rng.integers(1, 9, (rows, k)) * (rng.random((rows, k)) < rng.random((rows, 1)))
    b = np.ones((k, 16), np.int64)
    went = {}
    for dispatch in ("turns", "free"):
        config = IN_TURN.replace(dispatch=dispatch)
        program = lower_matmul(config, rows, k, 16, mode="rows")
        bound = bind(program, {"a": a, "b": b})
        words, last = RtlDevice(config).execute(bound.words, bound.last)
        packets = [decode(config, p) for p in np.split(words, np.flatnonzero(last) + 1) if p.size]
        results = [p for p in packets if p["reply"] == Reply.RESULT]
        went[dispatch] = [p["lane"] for p in sorted(results, key=lambda p: (p["tag"], p["row"]))]
        assert len(results) == rows
    assert went["turns"] == [n % lanes for n in range(rows)] != went["free"]


@pytest.mark.slow
def test_several_programs_in_one_stream():
    """Counters after each, asked for now or later; other commands before, between and behind."""
    device, make = CycleDevice(TINY), Packets(TINY)
    rtl(TINY).reset()
    first, second, third, fourth = (RandomProgram(TINY, random.Random(seed)).packets for seed in range(40, 44))
    echo, identify, sync, ask = map(make.command, (Op.ECHO, Op.IDENTIFY, Op.SYNC, Op.READ_COUNTERS))
    streams = [[ask], [echo], [sync, ask], first, [ask], [identify, echo], first[:-1], [echo, ask, sync], [ask],
               [echo, *second, echo, ask], [ask], [*second, *third, echo, *fourth],
               [ask, *first], [sync], [ask, ask]]  # fmt: skip
    for number, stream in enumerate(streams):
        got, expected = check(TINY, device, *joined(TINY, stream), number)
        assert got[1].size == expected[1].size
    assert [array.size for array in device.execute([], [])] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL, preset("dense-small"), preset("ulx3s-85f")], ids=lambda c: c.name)
def test_every_layer_of_the_demonstration(config):
    """The same report, but for target and seconds: cycles, PE-cycles by reason, words of both streams."""
    images = 20 if config is SMALL else 4
    reports = []
    for target in ("cycle", "rtl"):
        result = demo.run(config, images, target)
        reports.append([{key: value for key, value in layer.items() if key != "seconds"}
                        for layer in result.report["layers"]])  # fmt: skip
        assert result.report["target"] == target and "pe_cycles" in result.report
    assert [layer["layer"] for layer in reports[0]] == ["conv1", "conv2", "conv3", "fc1", "fc2"]
    assert reports[0] == reports[1]


@pytest.mark.slow
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("config", [TINY, WIDE], ids=["tiny", "ac"])
def test_products(config, dense):
    rng = np.random.default_rng(5)
    for m, k, n in ((1, 1, 1), (40, 100, 30), (7, 300, 3), (90, 20, 70)):
        a = rng.integers(-128, 128, (m, k)) * (rng.random((m, k)) < 0.4)
        b = rng.integers(-128, 128, (k, n)) * (rng.random((k, n)) < 0.3)
        masks = {"a_mask": rng.random((m, k)) < 0.7, "c_mask": rng.random((m, n)) < 0.5}
        for given in ({}, masks):
            results = [mw.matmul(a, b, **given, dense=dense, config=config, target=t) for t in ("cycle", "rtl")]
            assert np.array_equal(results[0].c, results[1].c)
            reports = [{k: v for k, v in result.report.items() if k not in ("seconds", "target")} for result in results]
            assert reports[0] == reports[1] and reports[0]["cycles"]


# ---------------------------------------------------------------------- the comparison can fail


def total_of(config, programs):
    return [simulate(config, words, last) for _, words, last in programs]


@pytest.mark.slow
@pytest.mark.parametrize("file, old", [
    ("pe.hpp", "constexpr int LOOKUP_LATENCY = "),
    ("post.hpp", "constexpr int POST_LATENCY = "),
    ("model.hpp", "constexpr int CHECKED = "),
    ("vector.hpp", "constexpr int VECTOR_LATENCY = "),
    ("masks.hpp", "constexpr int MASK_LATENCY = "),
])  # fmt: skip
def test_a_changed_latency_is_noticed(monkeypatch, tmp_path, file, old):
    """A cycle more in one place, and counters of the random programs are others."""
    config = TINY.replace(vector=True, generators=ALL)
    programs = [compiled(config, 4, f"tiny {seed}") for seed in range(3)]
    expected = total_of(config, programs)
    copy = tmp_path / "cycle"
    shutil.copytree(engine._SOURCES, copy, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    head, tail = (copy / file).read_text().split(old)
    value, rest = tail.split(";", 1)
    (copy / file).write_text(f"{head}{old}{int(value) + 1};{rest}")
    monkeypatch.setattr(engine, "_SOURCES", copy)
    engine._library.cache_clear()
    try:
        assert total_of(config, programs) != expected
    finally:
        monkeypatch.undo()
        engine._library.cache_clear()
    assert total_of(config, programs) == expected


def test_a_dropped_packet_is_noticed():
    programs = (compiled(TINY, 4, f"tiny {seed}") for seed in range(60))
    program, words, last = next(program for program in programs if not program[0].synced)
    expected = simulate(TINY, words, last)
    runs = [n for n, packet in enumerate(program.packets) if packet[0] & 0xFF == Op.RUN]
    shorter = [packet for n, packet in enumerate(program.packets) if n != runs[-1]]
    got = simulate(TINY, *joined(TINY, shorter))
    assert got["words_in"] < expected["words_in"] and got["cycles"] != expected["cycles"]


# ---------------------------------------------------------------------- the device


def test_it_is_deterministic():
    for seed in range(5):
        _, words, last = compiled(TINY, 4, seed)
        runs = []
        for device in (CycleDevice(TINY), CycleDevice(TINY)):
            for _ in range(2):
                got = device.execute(words, last)
                runs.append((got[0].tobytes(), got[1].tobytes(), device.counters, device.last_run.cycles))
        assert all(run == runs[0] for run in runs)


def product(config=TINY, m=20, k=50, n=30, use_c=False, density=0.4):
    rng = np.random.default_rng(2)
    a = rng.integers(1, 100, (m, k)) * (rng.random((m, k)) < density)
    b = rng.integers(1, 100, (k, n)) * (rng.random((k, n)) < density)
    return lower_matmul(config, m, k, n, use_c=use_c), {"a": a, "b": b}


def test_counters_of_a_later_execution():
    program, operands = product()
    bound = bind(program, operands)
    with mw.open("cycle", "tiny") as device:
        assert not any(read_counters(device).values())
        done = execute_bound(device, program, bound)
        assert np.array_equal(done.outputs["c"], operands["a"] @ operands["b"])
        assert done.counters == read_counters(device) == device.counters
        assert done.counters["multiply"] == macs(operands["a"], operands["b"])["macs_effectual"]
        make = Packets(TINY)
        device.execute(*joined(TINY, [make.command(Op.ECHO, token=5), make.command(Op.SYNC)]))
        assert done.counters == read_counters(device)
        simulated = simulate_program(program, operands)
        assert simulated.pop("total_cycles") >= simulated["cycles"] and simulated == done.counters


def test_masks_alone():
    """Operands that never cancel have the counters of their masks; zeros of sums change only what leaves."""
    program, operands = product(use_c=True)
    rng = np.random.default_rng(3)
    masks = {"a": operands["a"] != 0, "b": operands["b"] != 0, "c_mask": rng.random((20, 30)) < 0.5}
    exact = simulate_program(program, operands, {"c_mask": masks["c_mask"]})
    assert simulate_program(program, masks=masks) == exact
    assert exact["multiply"] == macs(operands["a"], operands["b"], c_mask=masks["c_mask"])["macs_effectual"]
    full = simulate_program(program)
    assert full["multiply"] == 20 * 50 * 30 and full["cycles"] > exact["cycles"]
    signs = np.repeat([1, -1], 25)
    cancelled = {"a": np.ones((20, 50), int), "b": np.tile(signs[:, None], 30)}
    assert not (cancelled["a"] @ cancelled["b"]).any()
    assert simulate_program(program, cancelled)["words_out"] < full["words_out"]
    with pytest.raises(MaskworkValueError, match="unknown operand 'z'"):
        simulate_program(program, masks={"z": masks["a"]})


def test_configurations_without_counters():
    config = TINY.replace(counters=False)
    program, operands = product(config)
    with mw.open("cycle", config) as device:
        done = execute_bound(device, program, bind(program, operands))
        assert done.counters is None and not any(read_counters(device).values())
        assert device.last_run.cycles
    assert "cycles" not in mw.matmul(operands["a"], operands["b"], config=config, target="cycle").report


def commands(*ops):
    make = Packets(TINY)
    return [make.begin_packet() if op == Op.BEGIN else make.command(op) for op in ops]


A_LOAD = Packets(TINY).load_a(np.ones((2, 8), int))
SHORT = Packets(TINY).load_a(np.ones((2, 8), int))[:-1]


@pytest.mark.parametrize("packets, error, message", [
    ([A_LOAD], MaskworkValueError, "whole programs, BEGIN to SYNC, in one execution; LOAD_A comes before BEGIN"),
    (commands(Op.BEGIN, Op.ECHO), MaskworkValueError, "SYNC is missing"),
    (commands(Op.BEGIN, Op.BEGIN, Op.SYNC), MaskworkValueError, "SYNC is missing"),
    (commands(Op.BEGIN, Op.SYNC, Op.BEGIN, Op.SYNC), MaskworkValueError, "between SYNC and BEGIN"),
    (commands(Op.BEGIN, Op.READ_COUNTERS, Op.SYNC), MaskworkValueError, "READ_COUNTERS after the program's SYNC only"),
    (commands(Op.BEGIN, Op.ABORT, Op.SYNC), MaskworkValueError, "cannot model ABORT"),
    (commands(Op.ABORT), MaskworkValueError, "cannot model ABORT"),
    ([*commands(Op.BEGIN), SHORT, *commands(Op.SYNC)], DeviceError, "only: .* LOAD_A with SHORT_PACKET"),
    ([*commands(Op.BEGIN), [0x7F], *commands(Op.SYNC)], DeviceError, "legal programs only: .* UNKNOWN_OPCODE"),
    ([*commands(Op.BEGIN, Op.RUN, Op.SYNC)], DeviceError, "legal programs only: .* RUN with BAD_FIELD"),
    ([[Op.BEGIN, ISA_VERSION, 5], *commands(Op.SYNC)], DeviceError, "legal programs only: .* BEGIN with WRONG_CONFIG"),
])  # fmt: skip
def test_illegal_streams(packets, error, message):
    device = CycleDevice(TINY)
    with pytest.raises(error, match=message) as caught:
        device.execute(*joined(TINY, packets))
    assert "\n" not in str(caught.value)
    program, operands = product()
    bound = bind(program, operands)
    done = execute_bound(device, program, bound)  # the next program is none the worse
    assert done.counters == execute_bound(CycleDevice(TINY), program, bound).counters
    words, last = joined(TINY, commands(Op.BEGIN, Op.SYNC))
    with pytest.raises(MaskworkValueError, match="the last beat must end a packet"):
        device.execute(words[:-1], last[:-1] & False)


@pytest.mark.parametrize("packets, message", [
    ([*commands(Op.BEGIN), [0x7F]], "unknown opcode"),
    ([*commands(Op.BEGIN), [Op.RUN, 1]], "shorter than its header"),
    (commands(Op.BEGIN, Op.ABORT), "ABORT"),
])  # fmt: skip
def test_words_that_are_no_program(packets, message):
    with pytest.raises(MaskworkValueError, match=message):
        simulate(TINY, *joined(TINY, packets))
    with pytest.raises(MaskworkValueError, match="did not end within 100 cycles"):
        simulate(TINY, *compiled(TINY, 4, 1)[1:], max_cycles=100)


def test_banks_that_are_too_small():
    make = Packets(TINY)
    for size, limit in (((30, 32), "a_depth = 256"), ((40, 2), "a_segments = 64")):
        loads = [make.load_a(np.ones(size, int), append=part) for part in range(2)]
        words, last = joined(TINY, [make.begin_packet(), *loads, make.command(Op.SYNC)])
        for run in (CycleDevice(TINY).execute, lambda *stream: simulate(TINY, *stream)):
            with pytest.raises(BankOverflow, match=f"do not fit an activation bank: at most {limit} are held"):
                run(words, last)
