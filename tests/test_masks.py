"""MASK: golden model against formulas of its own, and the functions of gen/generators.py."""

import math

import numpy as np
import pytest
from maskwork.gen import generators, lfsr
from maskwork.gen import lower_mask as lowering
from maskwork.gen.config import preset
from maskwork.gen.errors import DeviceError
from maskwork.gen.execute import execute
from maskwork.gen.isa import MaskKind, Op
from maskwork.gen.lower import lower_mask, lower_matmul
from maskwork.sim_tb.device import GoldenDevice
from maskwork.sim_tb.golden import masks
from maskwork.sim_tb.packets import Machine

TRAIN = preset("small-train")
CONFIGS = {
    "1 word": TRAIN,
    "4 words": TRAIN.replace(stream_words=4, project_sums=4),
    "1 value a word": TRAIN.replace(a_width=18, vector=False, project_sums=16),
    "8 values a word": TRAIN.replace(a_width=4, stream_words=2),
}
G = MaskKind


def values(rng, config, shape):
    return rng.integers(-(1 << (config.a_width - 1)), 1 << (config.a_width - 1), shape)


# ---------------------------------------------------------------------- random sequence


def plain_states(seed, count):
    """Bit by bit, as the sequence is defined."""
    b = [seed >> i & 1 for i in range(32)]
    while len(b) < 24 * count + 32:
        b.append(b[-25] ^ b[-26] ^ b[-30] ^ b[-32])
    return [sum(bit << i for i, bit in enumerate(b[24 * n : 24 * n + 32])) for n in range(count)]


@pytest.mark.parametrize("seed", [1, 0x80000000, 0xFFFFFFFF, 0x12345678])
def test_sequence(seed):
    expected = plain_states(seed, 700)
    assert masks.states(seed, 700).tolist() == expected
    assert masks.numbers(seed, 700).tolist() == [state & 0xFFFF for state in expected]
    assert [lfsr.leap(seed, n) for n in (0, 1, 2, 699)] == [expected[n] for n in (0, 1, 2, 699)]
    assert masks.states(lfsr.leap(seed, 300), 400).tolist() == expected[300:]
    far = masks.states(seed, 1 << 18)
    assert all(lfsr.leap(seed, n) == far[n] for n in (65535, 200_001))


def test_numbers_are_even_and_independent():
    """Means of bits, and of products of the numbers of values up to 64 apart, within 5 standard deviations."""
    u = masks.numbers(0x5EED, 1 << 18)
    ones = np.unpackbits(u.astype("<u2").view(np.uint8)).reshape(-1, 16).mean(axis=0)
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / 512
    v = (u - 32767.5) / (65536 / math.sqrt(12))
    for lag in range(1, 65):
        assert abs((v[lag:] * v[:-lag]).mean()) < 5 / 512


def test_polynomial_is_primitive():
    """The order of the state's map is 2^32 - 1: it returns after so many bits, and after no quotient by a prime."""
    identity, period = lfsr.bits_later(0), (1 << 32) - 1
    assert math.prod(primes := (3, 5, 17, 257, 65537)) == period
    assert lfsr.bits_later(period) == identity
    assert all(lfsr.bits_later(period // prime) != identity for prime in primes)
    assert math.gcd(lfsr.ADVANCE, period) == 3  # values repeat after (2^32 - 1) / 3 of them


# ---------------------------------------------------------------------- kinds


def expected_bits(kind, x, level, seed, stored):
    """Outputs of a (rows, length) array by plain loops."""
    rows, length = x.shape
    u = [state & 0xFFFF for state in plain_states(seed, rows * length if kind == G.PRUNE else length)]
    out = np.zeros_like(x)
    for r in range(rows):
        for j in range(length):
            v = int(x[r, j])
            if kind == G.GREATER:
                out[r, j] = v if v > level else 0
            elif kind == G.MAGNITUDE:
                out[r, j] = v if abs(v) >= level else 0
            elif kind == G.DROPOUT:
                out[r, j] = v if u[j] < level else 0
            elif kind == G.REPLAY:
                out[r, j] = v if stored[r, j] else 0
            elif abs(v) >= level:
                out[r, j] = v
            elif level * u[r * length + j] < abs(v) * 65536:
                out[r, j] = level if v > 0 else -level
    return out


def levels(kind, config):
    largest = (1 << (config.a_width - 1)) - 1
    return {G.GREATER: (0, -1, largest // 3, -largest - 1, largest), G.DROPOUT: (1, 20000, 65535),
            G.REPLAY: (0,)}.get(kind, (1, largest // 2, largest))  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_masks_against_loops(name):
    config, rng = CONFIGS[name], np.random.default_rng(1)
    device = GoldenDevice(config)
    for kind in (G.GREATER, G.MAGNITUDE, G.PRUNE, G.DROPOUT, G.REPLAY):
        for rows, length in ((1, 1), (3, 33), (2, 64), (5, 7)):
            for level in levels(kind, config):
                x, seed = values(rng, config, (rows, length)), int(rng.integers(1, 1 << 32))
                x[rng.random(x.shape) < 0.2] = 0
                stored = rng.random(x.shape) < 0.5
                if kind == G.REPLAY:
                    execute(device, lower_mask(config, "greater", rows, length, store=True, slot=3), {"a": stored * 1})
                options = {"level": level, "seed": seed, "slot": 3 * (kind == G.REPLAY)}
                done, bits = (execute(device, lower_mask(config, kind, rows, length, **options, values=v),
                                      {"a": x} if v or kind not in (G.DROPOUT, G.REPLAY) else {}).outputs
                              for v in (True, False))  # fmt: skip
                out = expected_bits(kind, x, level, seed, stored)
                assert np.array_equal(done["c"], out)
                statistics = [np.abs(x).sum(), np.count_nonzero(out), np.count_nonzero(x)]
                assert done["stats"].tolist() == statistics
                if kind in (G.DROPOUT, G.REPLAY):
                    ones = np.ones_like(x)
                    kept = stored if kind == G.REPLAY else expected_bits(kind, ones, level, seed, stored) != 0
                    assert np.array_equal(bits["c"], kept) and bits["stats"].tolist() == [0, kept.sum(), 0]
                else:
                    assert np.array_equal(bits["c"], out != 0) and bits["stats"].tolist() == statistics


@pytest.mark.parametrize("name", CONFIGS)
def test_norms_and_projections(name):
    config, rng = CONFIGS[name], np.random.default_rng(2)
    device = GoldenDevice(config)
    for rows, length in ((1, 1), (40, 3), (3, 256), (2, 33)):
        x, seed = values(rng, config, (rows, length)), int(rng.integers(1, 1 << 32))
        sums, counts = generators.channel_norms(device, x)
        assert sums.tolist() == [sum(abs(v) for v in column) for column in x.T.tolist()]
        assert counts.tolist() == [sum(v != 0 for v in column) for column in x.T.tolist()]
        got = generators.project(device, x, seed)
        assert got.shape == (rows, config.project_sums) and got.dtype == np.int32
        for t in range(config.project_sums):
            turned = (seed << 8 * (t // 4) | seed >> (32 - 8 * (t // 4))) & 0xFFFFFFFF
            symbols = [state >> 6 * (t % 4) & 63 for state in plain_states(turned, length)]
            signs = [1 if s < 11 else -1 if s < 22 else 0 for s in symbols]
            assert got[:, t].tolist() == [sum(r * v for r, v in zip(signs, row, strict=True)) for row in x.tolist()]


def test_extremes():
    """The widest sums: 48 bits of a column, 32 bits of a projection."""
    config = TRAIN.replace(a_width=18)
    device, low = GoldenDevice(config), -(1 << 17)
    x = np.full((40_000, 2), low)
    assert generators.channel_norms(device, x)[0].tolist() == [40_000 << 17] * 2
    assert generators.threshold(device, x, low).magnitudes == 80_000 << 17
    signs = masks.projection(16384, 8, 3)
    assert np.array_equal(generators.project(device, (low + 1) * signs[:1], 3)[0], (low + 1) * signs @ signs[0])


def test_projections_keep_distances():
    """Entries are +-1 with probability 11/64 each; the mean square of sums is 11/32 of the row's."""
    signs = masks.projection(16384, 16, 77)
    for sign in (-1, 1):
        assert abs((signs == sign).mean() - 11 / 64) < 4 * math.sqrt(11 / 64 * 53 / 64 / signs.size)
    correlation = signs @ signs.T / 16384 - np.diag((signs**2).mean(axis=1))
    assert np.abs(correlation).max() < 5 * 22 / 64 / math.sqrt(16384)


# ---------------------------------------------------------------------- pruning


@pytest.mark.parametrize(("width", "sigma"), [(9, 60), (16, 6000)])
@pytest.mark.parametrize(
    ("sparsity", "density"), [(0.5, 0.741), (0.7, 0.620), (0.8, 0.549), (0.9, 0.460), (0.99, 0.309)]
)
def test_pruning_of_normal_values(width, sigma, sparsity, density):
    """SparseTrain's densities, and the mean is kept.

    The pruned sum less the sum is a sum of independent errors of known variance: 4.5 standard deviations are passed
    by chance once in 150 000. With 2^18 values the test finds, with a power of 99.9 % (7.6 standard deviations), a
    bias of 0.3 % of sigma at sparsity 0.5, of 1.6 % at 0.99, and for the values of either sign a probability of
    keeping that is wrong by 0.013.
    """
    config, rng = TRAIN.replace(a_width=width), np.random.default_rng(int(100 * sparsity) + width)
    largest = (1 << (width - 1)) - 1
    x = np.clip(np.rint(rng.normal(0, sigma, (512, 512))), -largest, largest).astype(np.int64)
    level = generators.prune_level(int(np.abs(x).sum()), x.size, sparsity)
    done = generators.prune(GoldenDevice(config), x, level, 4242)
    assert abs(done.kept / x.size - density) < 0.01
    size = np.minimum(np.abs(x), level)
    for chosen in (np.ones_like(x, bool), x > 0, x < 0):
        deviation = math.sqrt(float((size * (level - size))[chosen].sum()))
        assert abs(int((done.values - x)[chosen].sum())) < 4.5 * deviation
        assert (4.5 + 3.1) * deviation < (0.016 if chosen.all() else 0.023) * sigma * chosen.sum()


def test_a_biased_pruner_is_noticed(monkeypatch):
    """One that keeps small values with a probability that is 0.013 too large."""

    def biased(x, level, seed):
        size, u = np.abs(x), masks.numbers(seed, x.size).reshape(x.shape)
        kept = level * u < (size << 16) + int(0.013 * 65536 * level)
        return np.where(size >= level, x, np.where(kept, np.sign(x) * level, 0))

    monkeypatch.setattr(masks, "prune", biased)
    with pytest.raises(AssertionError):
        test_pruning_of_normal_values(9, 60, 0.5, 0.741)


def test_pruning_goes_on_from_command_to_command(monkeypatch):
    rng = np.random.default_rng(5)
    x = rng.integers(-99, 100, (50, 40))
    monkeypatch.setattr(lowering, "MAX_VALUES", 300)
    program = lower_mask(TRAIN, "prune", 50, 40, level=80, seed=11)
    assert len(program.masks) == 8 and program.commands[2]["seed"] == lfsr.leap(11, 280)
    done = execute(GoldenDevice(TRAIN), program, {"a": x}).outputs
    assert np.array_equal(done["c"], masks.prune(x, 80, 11))
    assert done["stats"].tolist() == [np.abs(x).sum(), np.count_nonzero(done["c"]), np.count_nonzero(x)]
    dropped = generators.dropout(GoldenDevice(TRAIN), x, 0.5, 9)
    assert np.array_equal(dropped.mask, (x != 0) & masks.dropout(40, 1 << 15, 9))
    sums, counts = generators.channel_norms(GoldenDevice(TRAIN), x)
    assert np.array_equal(sums, np.abs(x).sum(axis=0)) and np.array_equal(counts, np.count_nonzero(x, axis=0))
    assert np.array_equal(generators.project(GoldenDevice(TRAIN), x, 7), masks.project(x, 8, 7))


def test_more_rows_than_a_command_takes():
    x = np.arange(65_537)[:, None] % 256 - 128
    assert len(lower_mask(TRAIN, "greater", *x.shape).masks) == 2
    done = generators.threshold(GoldenDevice(TRAIN), x, 3, values=False)
    assert np.array_equal(done.mask, x > 3) and done.values is None and done.magnitudes == np.abs(x).sum()


# ---------------------------------------------------------------------- slots


def test_slots_outlive_programs():
    rng, device = np.random.default_rng(6), GoldenDevice(TRAIN)
    x, gradients = rng.integers(-256, 256, (2, 4, 3, 30))
    forward = generators.threshold(device, x, 0, slot=0)
    dropped = generators.dropout_mask(device, (6, 40), 0.7, 99, slot=3)
    pruned = generators.prune(device, x, 200, 5, values=False, slot=1)
    assert np.array_equal(forward.values, np.maximum(x, 0)) and forward.kept == (x > 0).sum()
    for _ in range(2):
        assert np.array_equal(generators.replay(device, 0, gradients).values, np.where(x > 0, gradients, 0))
        assert np.array_equal(generators.replay(device, 1, shape=x.shape).mask, pruned.mask)
        assert np.array_equal(generators.replay(device, 3, shape=(6, 40)).mask, dropped.mask)
        execute(device, lower_matmul(TRAIN, 3, 3, 3), {"a": np.eye(3, dtype=int), "b": np.eye(3, dtype=int)})
    generators.threshold(device, x, 50, magnitude=True, slot=0)
    assert np.array_equal(generators.replay(device, 0, gradients).values, np.where(np.abs(x) >= 50, gradients, 0))
    for slot, shape in ((2, x.shape), (0, (12, 29)), (3, (40, 6))):
        with pytest.raises(DeviceError, match="command MASK with MASK_EMPTY: no mask of the length and rows"):
            generators.replay(device, slot, shape=shape)
    machine = Machine(TRAIN, device)
    assert len(machine.send(machine.command(Op.ABORT))) == 1
    with pytest.raises(DeviceError, match="MASK_EMPTY"):
        generators.replay(device, 0, shape=x.shape)


def test_same_dropout_mask_with_and_without_values():
    device, ones = GoldenDevice(TRAIN), np.ones((4, 3000), int)
    made, applied = generators.dropout_mask(device, (4, 3000), 0.3, 8), generators.dropout(device, ones, 0.3, 8)
    assert np.array_equal(made.mask, applied.mask) and (made.mask == made.mask[0]).all()
    assert abs(made.mask[0].mean() - 0.3) < 4 * math.sqrt(0.21 / 3000)
