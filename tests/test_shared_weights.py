"""Weights that two lanes keep in one memory (``weight_lanes``): the memory alone, the rules, products of all modes."""

import random

import numpy as np
import pytest
from maskwork.fpga.synthesis import synthesise
from maskwork.gen.check import Legality, check_bound, check_program
from maskwork.gen.check_lanes import covered_rows
from maskwork.gen.config import Config, preset
from maskwork.gen.errors import ConfigError, ProgramError
from maskwork.gen.execute import execute
from maskwork.gen.isa import ISA_VERSION, Op, Reply
from maskwork.gen.lower import lower_matmul
from maskwork.gen.memories import memory_bits
from maskwork.rtl.shared_weights import SharedWeights
from maskwork.sim_tb.device import open_device
from maskwork.sim_tb.packets import Packets, decode, joined

from .contract import plain, simulate, ticks
from .programs import sparse

PAIRS = Config(name="pairs", lanes=4, lanes_per_cluster=2, pes_per_lane=2, slots=8, queue_depth=8, k_depth=32,
               weight_lanes=2, a_depth=256, a_segments=64, c_rows=32, psum_rows=8, fifo_depth=64)  # fmt: skip


def test_memory():
    """Both lanes read at once what was written for both, or for one of them in its half, of either bank."""
    config, rng = PAIRS.replace(load_slots=2), random.Random(5)
    dut = SharedWeights(config)
    words = config.slots // config.load_slots
    expected = np.zeros((2 * config.k_depth, words, config.load_slots, config.pes_per_lane), int)

    async def bench(ctx):
        for write in [True] * 300 + [False] * 300:
            addresses = []
            bank = rng.getrandbits(1)  # the one that is read; the other is written
            for lane in range(2):
                for pe in range(config.pes_per_lane):
                    k, word = rng.randrange(config.k_depth) | bank << config.k_width, rng.randrange(words)
                    ctx.set(dut.address[lane][pe], k * words + word)
                    addresses.append((lane, pe, expected[k, word, :, pe].copy()))
            selected = rng.choice((1, 2, 3)) if write else 0
            ctx.set(dut.selected, selected)
            k = rng.randrange(config.k_depth if selected == 3 else config.k_depth // 2)
            word, columns = rng.randrange(words), config.load_slots * config.pes_per_lane
            values = [rng.randrange(-256, 256) for _ in range(columns)]
            enable = rng.getrandbits(columns)
            ctx.set(dut.write.k, k | (1 - bank) << config.k_width)
            ctx.set(dut.write.slot, word)
            ctx.set(dut.write.enable, enable)
            for n, value in enumerate(values):
                ctx.set(dut.write.values[n], value)
            await ticks(ctx, 1)
            for lane, pe, old in addresses:
                assert plain(ctx.get(dut.words[lane][pe])) == old.tolist()
            ctx.set(dut.selected, 0)
            await ticks(ctx, 1)  # the write's own register
            if selected:
                row = k + (config.k_depth // 2 if selected == 2 else 0) + (1 - bank) * config.k_depth
                for n, value in enumerate(values):
                    if enable >> n & 1:
                        expected[row, word, n // config.pes_per_lane, n % config.pes_per_lane] = value

    simulate(dut, bench)


def test_block_ram(tmp_path):
    """Two lanes with 128 rows each take the blocks of two lanes with 64 of their own."""
    config = preset("ulx3s-85f")
    assert (config.weight_lanes, config.k_depth) == (2, 128)
    assert synthesise(SharedWeights(config), "weights", tmp_path).brams == 2 * config.pes_per_lane
    bits = memory_bits(preset("sim-64"))["weights"]
    assert bits == memory_bits(preset("sim-64").replace(weight_lanes=1, k_depth=64))["weights"]


@pytest.mark.slow  # Yosys fails three times before
def test_wide_words_are_synthesised(tmp_path):
    """Of which Yosys takes elements of arrays for bits of them, unless their names are hidden."""
    config = PAIRS.replace(slots=16, load_slots=8)
    assert synthesise(SharedWeights(config), "weights", tmp_path).brams == 16


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"weight_lanes": 4}, "weight_lanes must be a power of two from 1 to 2, not 4"),
        ({"lanes_per_cluster": 1}, "weight_lanes must be 1 with lanes_per_cluster = 1 or k_depth = 16, not 2"),
        ({"k_depth": 16}, "weight_lanes must be 1 with lanes_per_cluster = 1 or k_depth = 16, not 2"),
    ],
)
def test_configurations(changes, message):
    with pytest.raises(ConfigError, match=message):
        PAIRS.replace(**changes)


def test_covered_rows():
    both = covered_rows(PAIRS, [(3, 0, 20)], False)
    assert both[:, :20].all() and not both[:, 20:].any() and not covered_rows(PAIRS, [(3, 0, 20)], True).any()
    single = [(1, 0, 16), (2, 4, 9)]
    assert covered_rows(PAIRS, single, True).sum(axis=1).tolist() == [16, 5]
    assert not covered_rows(PAIRS, single, False).any()
    # a load for both lanes takes rows of one of them away
    assert covered_rows(PAIRS, [*single, (3, 20, 21)], True).sum(axis=1).tolist() == [16, 4]
    assert covered_rows(PAIRS, [*single, (3, 0, 32)], False).all()


@pytest.mark.parametrize(
    "op, changes, message",
    [
        ("LOAD_B", {"rows": 17, "k": 0}, "k . rows must be at most k_depth / 2 = 16 for single lanes of a pair"),
        ("RUN", {"share": 0}, "k = 0 of B was not loaded"),
    ],
)
def test_rules(op, changes, message):
    program = lower_matmul(PAIRS, 4, 16, 40, mode="cluster")
    check_program(program)
    next(command for command in program.commands if command["op"] == op).update(changes)
    with pytest.raises(ProgramError, match=message):
        check_program(program)


def mixed(config, share):
    """Packets with loads for both lanes and for single ones in one bank, each used where the other left it."""
    make, rng = Packets(config), np.random.default_rng(6)
    a, both, own = (sparse(rng, shape) for shape in ((6, 8), (config.k_depth, 16), (16, 16)))
    half = config.k_depth // 2
    packets = [make.begin_packet(), make.load_a(a), make.load_b(both, lanes=3)]
    if share:  # both lanes' halves, then rows behind the 8 that are used of the first
        packets += [make.load_b(own, lanes=lane, append=1) for lane in (1, 2)]
        packets.append(make.load_b(both[:4], lanes=3, k=half - 4, append=1))
    else:  # only the second lane's half
        packets.append(make.load_b(own, lanes=2, append=1))
    packets.append(make.run(6, 16, row_words=30, share=share, k=0))
    return [*packets, make.command(Op.SYNC, tag=1), make.command(Op.READ_COUNTERS)], a.astype(int) @ (
        own[:8] if share else both[:8]
    ).astype(int)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0, 1])
def test_mixed_loads(share):
    """A load for a single lane lies in its half, in both models as in the netlist."""
    config = PAIRS.replace(lanes=2)
    packets, expected = mixed(config, share)
    words, last = joined(config, packets)
    check_bound(config, words, last)
    replies = {}
    for target in ("golden", "cycle", "rtl"):
        with open_device(target, config) as device:
            out = device.execute(words, last)
        packets = np.split(out[0], (np.flatnonzero(out[1]) + 1)[:-1] * config.stream_words)
        replies[target] = [decode(config, packet) for packet in packets]
        rows = [r for r in replies[target] if r["reply"] == Reply.RESULT]
        assert len(rows) == (12 if share else 6)
        assert all((r["columns"][:16] == expected[r["row"]]).all() for r in rows), target
    counters = [next(r for r in replies[t] if r["reply"] == Reply.COUNTERS) for t in ("cycle", "rtl")]
    assert counters[0] == counters[1]


def test_runs_whose_k_changes_from_row_to_row():
    legality = Legality(PAIRS.replace(lanes=2))
    fields = {"clusters": 1, "columns": 15, "first": 1, "final": 1, "rows": 1, "row_words": 9, "m0_k": 1}
    loads = {"clusters": 1, "segments": 1, "length": 1}, {"clusters": 1, "rows": 32, "lanes": 3, "columns": 16}
    begin = {"version": ISA_VERSION, "config": legality.config.hash}
    for op, changes in zip((Op.BEGIN, Op.LOAD_A, Op.LOAD_B, Op.RUN), (begin, *loads, fields), strict=True):
        assert legality.step(op, changes) is None
    assert legality.unchecked(fields) is None
    assert "share must be 1 where lanes that share weights were" in str(legality.unchecked({**fields, "share": 1}))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["rows", "cluster", "share"])
def test_products(mode):
    """K tiles are as long as the lanes' memory lets them; outputs of golden and RTL, and the cycle model's counters."""
    rng = np.random.default_rng(3)
    for m, k, n in ((9, 70, 50), (3, 33, 64), (1, 130, 37)):
        a, b = sparse(rng, (m, k)), sparse(rng, (k, n))
        program = lower_matmul(PAIRS, m, k, n, mode=mode)
        depth = max(c["rows"] for c in program.commands if c["op"] == "LOAD_B")
        assert depth <= (32 if mode == "rows" else 16)
        done = {}
        for target in ("golden", "cycle", "rtl"):
            with open_device(target, PAIRS) as device:
                done[target] = execute(device, program, {"a": a, "b": b})
            assert (done[target].outputs["c"] == a.astype(int) @ b.astype(int)).all(), target
        assert done["cycle"].counters == done["rtl"].counters
