"""Random programs on the simulated netlist against the golden model, for every choice of masks that skip."""

import random
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from maskwork.gen.isa import COUNTERS, Op, Reply
from maskwork.gen.lower import conv_output_shape, lower_conv, lower_matmul
from maskwork.gen.program import bind
from maskwork.gen.results import ResultAssembler
from maskwork.sim_tb.device import GoldenDevice, RtlDevice
from maskwork.sim_tb.golden import conv2d, masked_matmul, requantise
from maskwork.sim_tb.packets import Packets, decode, joined
from maskwork.sim_tb.random_programs import RandomProgram
from maskwork.sim_tb.run import limits_for

from .variants import CONFIGS

pytestmark = pytest.mark.slow

every_config = pytest.mark.parametrize("name", CONFIGS)
# no shrinking: every try runs a simulation, and a seed is enough to find the fault
relaxed = settings(max_examples=20, derandomize=True, deadline=None, database=None,
                   phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck))  # fmt: skip
stalls = st.sampled_from([0.0, 0.0, 0.3, 0.8])


@cache
def simulator(name):
    return RtlDevice(CONFIGS[name])


def run(name, words, last, in_stall=0.0, out_stall=0.0, seed=1):
    model, beat = simulator(name).model, CONFIGS[name].stream_words
    return model.run(words, last, in_stall=in_stall, out_stall=out_stall, seed=seed,
                     limits=limits_for(words, last, beat))  # fmt: skip


def split(config, words, last):
    pieces = np.split(words, (np.flatnonzero(last) + 1) * config.stream_words)
    assert len(pieces[-1]) == 0
    return pieces[:-1]


def unordered(config, packets, shared):
    """Packets without counters, sorted; a row that is not shared may come from any lane of its cluster."""
    result = []
    for packet in packets:
        words = packet.tolist()
        if words[0] & 0xFF == Reply.COUNTERS:
            continue
        if words[0] & 0xFF == Reply.RESULT and not shared[words[0] >> 8 & 0xFF]:
            lane = words[0] >> 16 & 0xFF
            words[0] += (lane // config.lanes_per_cluster - lane) << 16
        result.append(words)
    return sorted(result)


def check_counters(config, counters):
    assert sum(counters[name] for name in COUNTERS[:8]) == counters["cycles"] * config.pes
    assert counters["multiply"] <= counters["cycles"] * config.pes


@every_config
@given(chance=st.randoms(use_true_random=False), in_stall=stalls, out_stall=stalls)
@relaxed
def test_random_commands(name, chance, in_stall, out_stall):
    check_random_commands(name, chance, in_stall, out_stall)


def check_random_commands(name, chance, in_stall, out_stall):
    config = CONFIGS[name]
    program = RandomProgram(config, chance, faults=True)
    words, last = joined(config, program.packets)
    golden = split(config, *GoldenDevice(config).execute(words, last))
    ours = run(name, words, last, in_stall, out_stall, chance.getrandbits(30))
    rtl = split(config, ours.words, ours.last)
    assert unordered(config, rtl, program.shared) == unordered(config, golden, program.shared)
    assert sum(int(p[0]) & 0xFF == Reply.RESULT for p in rtl) == program.results
    assert sum(int(p[0]) & 0xFF == Reply.VECTOR for p in rtl) == program.vectors
    counters, expected = (decode(config, packets[-1]) for packets in (rtl, golden))
    check_counters(config, counters)
    if config.skip == "abc" and not program.synced:
        assert counters["multiply"] == expected["multiply"]
        # counting begins when BEGIN is looked at, and the next command may be under way when it ends
        assert abs(counters["words_in"] - len(last)) <= 3


@every_config
def test_many_random_commands(name):
    for seed in range(60):
        chance = random.Random(f"{name} {seed}")
        check_random_commands(name, chance, chance.choice((0.0, 0.2)), chance.choice((0.0, 0.5)))


# ---------------------------------------------------------------------- compiled programs


def operand(rng, shape, width, kind):
    low, high = -(1 << (width - 1)), (1 << (width - 1)) - 1
    values = rng.choice([low, high], shape) if kind == "extreme" else rng.integers(low, high + 1, shape)
    density = {"empty": 0.0, "sparse": 0.15, "half": 0.5}.get(kind, 1.0)
    values = values * (rng.random(shape) < density)
    values.reshape(-1, shape[-1])[rng.random(int(np.prod(shape[:-1]))) < 0.15] = 0
    return values


def mask(rng, shape, kind):
    density = {"empty": 0.0, "half": 0.5, "sparse": 0.1, "full": 1.0}
    return None if kind == "absent" else rng.random(shape) < density[kind]


def compiled(name, program, operands, masks, dense, in_stall, out_stall, seed):
    """Outputs on the netlist, which must be the golden model's; and the counters."""
    config = CONFIGS[name]
    bound = bind(program, operands, masks, dense=dense, check_sums=False)
    words, last = joined(config, [p.tolist() for p in bound.packets()] + [Packets(config).command(Op.READ_COUNTERS)])
    ours, golden = ResultAssembler(program), ResultAssembler(program)
    result = run(name, words, last, in_stall, out_stall, seed)
    ours.feed(result.words, result.last)
    golden.feed(*GoldenDevice(config).execute(words, last))
    assert np.array_equal(ours.outputs()["c"], golden.outputs()["c"])
    check_counters(config, ours.counters)
    if config.skip == "abc":
        assert ours.counters["multiply"] == golden.counters["multiply"]
    return ours.outputs()["c"]


kinds = st.sampled_from(["full", "half", "sparse", "empty", "extreme"])
mask_kinds = st.sampled_from(["absent", "absent", "empty", "half", "sparse", "full"])
seeds = st.integers(0, 2**32 - 1)
flags = st.booleans()


def parameters(rng, columns):
    return {"bias": rng.integers(-(1 << 20), 1 << 20, columns), "mult": rng.integers(0, 1 << 24, columns),
            "shift": rng.integers(20, 48, columns)}  # fmt: skip


def check_output(config, out, sums, wanted, post, p):
    if post:
        expected = requantise(sums, **p, low=post["low"], high=post["high"], mask=wanted)
    else:
        expected = np.where(wanted, sums, 0)
    assert np.array_equal(out, expected)


@every_config
@given(size=st.one_of(st.just((31, 32, 31)), st.tuples(*[st.integers(1, 70)] * 3)), seed=seeds, a_kind=kinds,
       b_kind=kinds, a_mask=mask_kinds, b_mask=mask_kinds, c_mask=mask_kinds, dense=flags, post=flags,
       mode=st.sampled_from(["auto", "rows", "cluster", "share"]), in_stall=stalls, out_stall=stalls)  # fmt: skip
@relaxed
def test_matmul(name, size, seed, a_kind, b_kind, a_mask, b_mask, c_mask, dense, post, mode, in_stall, out_stall):
    config, rng = CONFIGS[name], np.random.default_rng(seed)
    m, k, n = size
    use_c = c_mask != "absent"
    mode = "rows" if use_c or config.lanes_per_cluster == 1 or n < config.lanes_per_cluster else mode
    limits = {"low": -200, "high": 255} if config.a_width > 8 else {"low": -16, "high": 9}
    the_post = limits if post and config.post else None
    program = lower_matmul(config, m, k, n, use_c=use_c, post=the_post, mode=mode)
    operands = {"a": operand(rng, (m, k), config.a_width, a_kind), "b": operand(rng, (k, n), config.b_width, b_kind)}
    masks = {"a": mask(rng, (m, k), a_mask), "b": mask(rng, (k, n), b_mask)}
    wanted = mask(rng, (m, n), c_mask)
    p = parameters(rng, n)
    given_masks = masks | ({"c_mask": wanted} if use_c else {})
    out = compiled(name, program, operands | (p if the_post else {}), given_masks, dense, in_stall, out_stall, seed)
    sums = masked_matmul(operands["a"], operands["b"], masks["a"], masks["b"])
    check_output(config, out, sums, np.ones((m, n), bool) if wanted is None else wanted, the_post, p)


@every_config
@given(image=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 20)),
       kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)), cout=st.integers(1, 40), stride=st.integers(1, 3),
       padding=st.integers(0, 2), dilation=st.integers(1, 2), seed=seeds, a_kind=kinds, b_kind=kinds,
       c_mask=mask_kinds, dense=flags, post=flags, in_stall=stalls, out_stall=stalls)  # fmt: skip
@relaxed
def test_conv(name, image, kernel, cout, stride, padding, dilation, seed, a_kind, b_kind, c_mask, dense, post,
              in_stall, out_stall):  # fmt: skip
    config, rng = CONFIGS[name], np.random.default_rng(seed)
    reach = [dilation * (taps - 1) + 1 - 2 * padding for taps in kernel]
    image = image[0], max(image[1], reach[0]), max(image[2], reach[1]), image[3]
    weights = (*kernel, image[3], cout)
    shape = conv_output_shape(image, weights, stride, padding, dilation)
    use_c = c_mask != "absent"
    limits = {"low": -100, "high": 200} if config.a_width > 8 else {"low": -16, "high": 9}
    the_post = limits if post and config.post else None
    program = lower_conv(config, image, weights, stride, padding, dilation, use_c=use_c, post=the_post)
    operands = {"a": operand(rng, image, config.a_width, a_kind), "b": operand(rng, weights, config.b_width, b_kind)}
    wanted = mask(rng, shape, c_mask)
    p = parameters(rng, cout)
    out = compiled(name, program, operands | (p if the_post else {}), {"c_mask": wanted} if use_c else {}, dense,
                   in_stall, out_stall, seed)  # fmt: skip
    sums = conv2d(operands["a"], operands["b"], stride, padding, dilation)
    check_output(config, out, sums, np.ones(shape, bool) if wanted is None else wanted, the_post, p)
