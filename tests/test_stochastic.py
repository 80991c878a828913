"""Stochastic rounding, and 48-bit sums: numbers, golden model and hardware against plain integers."""

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from maskwork.gen.config import preset
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.gen.isa import COUNTERS, Fault, Op, Reply
from maskwork.gen.lower_post import tile_seed
from maskwork.sim_tb.cycle import CycleDevice
from maskwork.sim_tb.device import GoldenDevice, RtlDevice
from maskwork.sim_tb.golden import noise, requantise
from maskwork.sim_tb.packets import Machine, Packets, decode, faults, joined
from maskwork.sim_tb.random_programs import RandomProgram

from .test_rtl_post import Bench, Row, bounds, config_of, random_parameters, random_row, requantised, set_all

TINY = preset("tiny").replace(lanes=2, lanes_per_cluster=2, a_width=16, b_width=16, acc_width=48, stochastic=True)


def number_of(seed, row, column):
    """The random number, bit by bit from the definition in docs/numerics.md."""
    steps = ((8, 20), (9, 8), (13, 5), (11, 3), (15, 1), (10, 1), (14, 1), (8, 1))

    def turned(bits, by):  # to the left; bit 0 comes first
        return bits[-by:] + bits[:-by]

    def listed(value, width):
        return [value >> n & 1 for n in range(width)]

    right, left = listed(seed & 0xFFFF, 16), listed(seed >> 16, 16)
    for n in range(12):
        key = listed(row & 0xFFFF if n in (0, 4, 8) else 0x9E37, 16)
        five, one = turned(left, 5), turned(left, 1)
        right, left = left, [r ^ (a & b) ^ c ^ k for r, a, b, c, k in zip(right, left, five, one, key, strict=True)]
    state = right + left
    if not any(state):
        state[0] = 1
    for bit, (shift, by) in enumerate(steps):
        if column >> bit & 1:
            shifted = [0] * shift + state[:-shift]
            state = turned([a ^ b for a, b in zip(state, shifted, strict=True)], by)
    return sum(bit << n for n, bit in enumerate(state[16:]))


def rounded(acc, bias, mult, shift, low, high, u):
    """The formula in exact arithmetic."""
    cut = Fraction(math.floor(Fraction((acc + bias) * mult, 1 << shift) * 65536), 65536)
    return min(max(math.floor(cut + Fraction(u, 65536)), low), high)


# ---------------------------------------------------------------------- the numbers


def test_numbers_are_the_documented_ones():
    chance = random.Random(1)
    for seed in (1, 0xFFFFFFFF, 0x10000, *(chance.getrandbits(32) for _ in range(20))):
        rows = [0, 1, 65535, chance.randrange(65536)]
        columns = [0, 1, 2, 63, 255, chance.randrange(256)]
        expected = [[number_of(seed, row, column) for column in columns] for row in rows]
        assert noise(seed, np.array(rows)[:, None], columns).tolist() == expected
    assert noise(7, 65536 + 3, 5) == noise(7, 3, 5)
    assert noise(7, 3, 5) == 34461  # changes only with the definition


def test_numbers_of_columns_are_independent_within_a_row():
    """Bits are sums of bits of the row's state. The upper 8 of any two columns are linearly independent: the pair takes
    every value equally often over all states.
    """
    states = np.left_shift(np.uint64(1), np.arange(32, dtype=np.uint64)).astype(np.int64)
    bits = np.zeros((256, 32), np.int64)  # [column]: the numbers of the 32 states that have one bit
    for n, state in enumerate(states.tolist()):
        bits[:, n] = _steps(state, np.arange(256)) >> 16
    upper = [[sum(int(bits[c, n] >> b & 1) << n for n in range(32)) for b in range(8, 16)] for c in range(256)]
    spans = []
    for rows in upper:
        span = np.zeros(1, np.int64)
        for row in rows:
            span = np.concatenate([span, span ^ row])
        assert len(np.unique(span)) == 256
        spans.append(span[1:])
    # two spaces of 8 dimensions have nothing but 0 in common: 256 x 255 different sums
    assert len(np.unique(np.concatenate(spans))) == 256 * 255


def _steps(state, columns):
    from maskwork.gen.noise import NOISE_STEPS

    states = np.full(len(columns), state, np.int64)
    for bit, (shift, by) in enumerate(NOISE_STEPS):
        stepped = (states ^ states << shift) & 0xFFFFFFFF
        states = np.where(columns >> bit & 1, (stepped << by | stepped >> (32 - by)) & 0xFFFFFFFF, states)
    return states


SEEDS = [tile_seed(2024, n) for n in range(16)]


def table(columns=64, rows=1024):
    """2^20 numbers: seeds of neighbouring N tiles, rows, columns."""
    return np.stack([noise(seed, np.arange(rows)[:, None], np.arange(columns)) for seed in SEEDS])


def test_mean_is_preserved():
    """Of 2^20 values the mean error lies within 4 standard deviations (below 0.002) of -1/2^17, the truncation's. A
    bias of 0.004 would be found in all but 1 of 10000 cases.
    """
    chance = np.random.default_rng(5)
    u = table()
    acc = chance.integers(-(1 << 30), 1 << 30, u.shape)
    for mult, shift in ((1, 23), (12345, 37), (3, 1), (1, 16)):
        x = acc * mult / 2.0**shift
        error = requantise(acc, 0, mult, shift, -(1 << 40), 1 << 40, noise=u) - x
        assert -1 < error.min() and error.max() < 1
        assert abs(error.mean() + (0 if shift <= 16 else 2.0**-17)) < 4 * error.std() / 1024
    for part in (0.05, 0.5, 0.9):  # the same value everywhere
        acc = np.full(u.shape, int(part * (1 << 20)))
        up = requantise(acc, 0, 1, 20, -9, 9, noise=u)
        assert abs(up.mean() - part) < 4 * math.sqrt(part * (1 - part)) / 1024
        for axis in range(3):  # of any seed, row or column
            of_axis = up.mean(axis=tuple({0, 1, 2} - {axis}))
            deviation = math.sqrt(part * (1 - part) * len(of_axis)) / 1024
            assert abs(of_axis - part).max() < 5 * deviation


def test_neighbours_are_uncorrelated():
    """Numbers and decisions of neighbours in row, column, and N tile, 2^20 of each: correlations stay below 4 / 2^10 =
    0.0039. One of 0.0065 would be found in 99.6 % of all cases.
    """
    u = table()
    decisions = [u / 65536 - 0.5, *((u + int(part * 65536) >> 16) - part for part in (0.1, 0.5, 0.8))]
    for values, axis, step in itertools.product(decisions, range(3), (1, 2, 3, 4, 8)):
        here = np.take(values, range(values.shape[axis] - step), axis)
        there = np.take(values, range(step, values.shape[axis]), axis)
        correlation = (here * there).mean() / values.var()
        assert abs(correlation) < 4 / math.sqrt(here.size), (axis, step)


# ---------------------------------------------------------------------- golden model


@pytest.mark.parametrize("bits", [32, 48])
def test_requantise(bits):
    chance = np.random.default_rng(bits)
    low, high = bounds(bits)
    for _ in range(12):
        acc = chance.integers(low, high + 1, (6, 5)) >> chance.integers(0, bits - 1, (6, 5))
        acc[0, :4] = low, high, 0, -1
        bias = chance.integers(-(1 << 31), 1 << 31, 5) >> chance.integers(0, 31, 5)
        mult, shift = chance.integers(0, 1 << 24, 5) >> chance.integers(0, 24, 5), chance.integers(0, 48, 5)
        mult[0] = (1 << 24) - 1
        limits = sorted(chance.integers(-(1 << 15), 1 << 15, 2).tolist())
        u = chance.integers(0, 1 << 16, acc.shape)
        u[0] = 0, 65535, 0, 65535, 1
        nearest = requantise(acc, bias, mult, shift, *limits)
        at_random = requantise(acc, bias, mult, shift, *limits, noise=u)
        for (r, c), value in np.ndenumerate(acc):
            operands = int(value), int(bias[c]), int(mult[c]), int(shift[c])
            assert nearest[r, c] == requantised(*operands, *limits)
            assert at_random[r, c] == rounded(*operands, *limits, int(u[r, c]))


def test_numbers_that_are_none():
    with pytest.raises(MaskworkValueError, match="noise must be from 0 to 65535, not 65536"):
        requantise([1], 0, 1, 0, 0, 4, noise=[65536])
    with pytest.raises(MaskworkValueError, match=r"noise must have shape \(2,\), not \(1,\)"):
        requantise([1, 2], 0, 1, 0, 0, 4, noise=[5])
    for seed in (0, 1 << 32):
        with pytest.raises(MaskworkValueError, match=f"seed must be from 1 to 4294967295, not {seed}"):
            noise(seed, 0, 0)
    with pytest.raises(MaskworkValueError, match="columns must be from 0 to 255, not 256 to 256"):
        noise(1, 0, 256)
    with pytest.raises(MaskworkTypeError, match="rows must be integers, not float64"):
        noise(1, 0.5, 0)


# ---------------------------------------------------------------------- post-processing unit


class RandomBench(Bench):
    """Some lanes and banks have a seed."""

    def __init__(self, config, rows, seeds, **others):
        super().__init__(config, rows, **others)
        self.seeds = seeds

    async def load(self, ctx):
        everything = self.parameters
        for place, seed in self.seeds.items():
            self.parameters = {key: value for key, value in everything.items() if key[:2] == place}
            set_all(ctx, (self.dut.limits.seed,), (seed,))
            await super().load(ctx)
        self.parameters = everything

    def check(self):
        for row, packet in zip(self.rows, self.packets, strict=True):
            place = row.bank, row.lane % self.config.lanes_per_cluster
            results = dict(row.values)
            if row.post and self.seeds[place]:
                for column, value in row.values.items():
                    u = number_of(self.seeds[place], row.row, column)
                    results[column] = rounded(value, *self.parameters[(*place, column)], *self.limits[row.bank], u)
                expected = Row(results, post=1, bank=row.bank, lane=row.lane, row=row.row, tag=row.tag)
                plain = {key: (0, 1, 0) for key in self.parameters}
                assert packet == expected.packet(self.config, plain, self.limits)
            else:
                assert packet == row.packet(self.config, self.parameters, self.limits)


@pytest.mark.parametrize("fields", [
    {}, {"stream_words": 8, "lanes_per_cluster": 2, "acc_width": 48, "a_width": 16},
    {"pes_per_lane": 8, "slots": 32, "a_width": 5, "lanes_per_cluster": 1}, {"acc_width": 36, "a_width": 18},
])  # fmt: skip
def test_rows_in_any_order(fields):
    """Rows rounded at random, to the nearest, and raw ones, as near to each other as can be."""
    config, chance = config_of(stochastic=True, **fields), random.Random(str(fields))
    limits = {0: bounds(min(16, config.a_width)), 1: (-5, 7)}
    parameters = random_parameters(config, chance)
    places = sorted({key[:2] for key in parameters})
    seeds = {place: chance.choice((0, 1, chance.getrandbits(32), chance.getrandbits(32))) for place in places}
    rows = []
    for n in range(40):
        row = random_row(config, chance, post=int(n % 5 != 0), density=chance.choice((0.04, 0.04, 0.3, 1)))
        if len(row.values) > 30:
            row.values = dict(itertools.islice(row.values.items(), 30))
        rows.append(row)
    rows += rows[:5]  # the same rows once more
    bench = RandomBench(config, rows, seeds, parameters=parameters, limits=limits, idle=0)
    bench.run().check()
    assert bench.packets[-5:] == bench.packets[:5]


# ---------------------------------------------------------------------- whole accelerator


@pytest.fixture(scope="module")
def device():
    return RtlDevice(TINY)


def replies_of(config, words, last, shared):
    """Results in order of their rows; a row that is not shared may come from any lane."""
    packets = []
    for packet in np.split(words, (np.flatnonzero(last) + 1)[:-1] * config.stream_words):
        head = packet.tolist()
        if head[0] & 0xFF == Reply.RESULT and not shared[head[0] >> 8 & 0xFF]:
            head[0] &= 0xFF00FFFF
        if head[0] & 0xFF != Reply.COUNTERS:
            packets.append(head)
    return sorted(packets)


@pytest.mark.slow
def test_random_programs(device):
    """RTL, golden and cycle model: the same replies, and the same counters."""
    cycle, used = CycleDevice(TINY), 0
    for seed in range(8):
        program = RandomProgram(TINY, random.Random(f"at random {seed}"))
        words, last = joined(TINY, program.packets)
        used += sum(packet[0] & 0xFF == Op.LOAD_P and bool(packet[0] >> 9 & 1) for packet in program.packets)
        results = [d.execute(words, last) for d in (GoldenDevice(TINY), device, cycle)]
        golden, rtl, model = (replies_of(TINY, *result, program.shared) for result in results)
        assert rtl == golden == model
        counters = [decode(TINY, result[0][-len(COUNTERS) * 2 - 1 :]) for result in results[1:]]
        assert counters[0] == counters[1]
    assert used > 5


@pytest.mark.slow
def test_extremes_of_16_bits(device):
    """The largest products that K allows: sums of 39 bits, packed operands, raw and requantised."""
    make = Machine(TINY, device)
    device.reset()
    low, high = -(1 << 15), (1 << 15) - 1
    k = TINY.k_depth
    a = np.array([[low] * k, [high] * k, [low, high] * (k // 2), [1] * k])
    b = np.array([[low, high, 1, -1]] * k)
    exact = a @ b
    parameters = [0, -(1 << 31), (1 << 31) - 1, 5], [1, (1 << 24) - 1, 1 << 23, 3], [24, 47, 47, 0]
    for target in (make, Machine(TINY)):
        target.begin()
        raw = target.send(make.load_a(a), make.load_b(b), make.run(4, 4))
        assert [r["columns"][:4].tolist() for r in sorted(raw, key=lambda r: r["row"])] == exact.tolist()
        for bank, rounding in ((0, {}), (1, {"stochastic": 1, "seed": 99})):
            load = make.load_p(*parameters, low, high, bank=bank, **rounding)
            sent = target.send(load, make.load_b(b, bank=bank), make.run(4, 4, b_bank=bank, post=1, row=65534))
            for reply in sent:
                row = (reply["row"] - 65534) % 65536
                for column in range(4):
                    operands = int(exact[row, column]), *(int(p[column]) for p in parameters)
                    u = number_of(99, reply["row"], column)
                    expected = rounded(*operands, low, high, u) if bank else requantised(*operands, low, high)
                    assert reply["columns"][column] == expected


@pytest.mark.slow
def test_bad_loads(device):
    plain = TINY.replace(stochastic=False)
    make = Packets(TINY)
    p = [[1], [1], [0], -9, 9]
    for target in (device, GoldenDevice(TINY)):
        machine = Machine(TINY, target)
        assert faults(machine.send(make.load_p(*p, stochastic=1))) == [(Fault.BAD_FIELD, Op.LOAD_P)]
        assert machine.send(make.load_p(*p, stochastic=1, seed=5), make.load_p(*p), make.load_p(*p, seed=5)) == []
        device.reset()
    machine = Machine(plain)
    assert faults(machine.send(Packets(plain).load_p(*p, stochastic=1, seed=5))) == [(Fault.BAD_FIELD, Op.LOAD_P)]
    assert machine.send(Packets(plain).load_p(*p, seed=5)) == []
