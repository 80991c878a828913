"""Compiled programs that round at random: every result has a number of its own, and is the formula's."""

import itertools
import re

import maskwork as mw
import numpy as np
import pytest
from maskwork.gen.check import check_program
from maskwork.gen.config import Config, preset
from maskwork.gen.errors import ConfigError, MaskworkTypeError, MaskworkValueError, ProgramError
from maskwork.gen.lower import lower_conv, lower_matmul
from maskwork.gen.lower_post import tile_seed
from maskwork.gen.lower_wgrad import lower_weight_grad
from maskwork.gen.pack import expand_ranges
from maskwork.gen.program import Program, bind
from maskwork.gen.results import ResultAssembler
from maskwork.sim_tb.device import GoldenDevice
from maskwork.sim_tb.golden import conv2d, noise, requantise

WIDE = Config(lanes=4, lanes_per_cluster=2, pes_per_lane=2, slots=4, k_depth=32, a_depth=256, a_segments=64, c_rows=32,
              fifo_depth=128, stochastic=True)  # fmt: skip


def numbers(program: Program):
    """Random numbers of the output's elements, from the program's commands; and (seed, row, column) of each."""
    config = program.config
    per, height = config.lanes_per_cluster, int(np.prod(program.outputs["c"]["shape"][:-1]))
    u = np.full((height, program.outputs["c"]["shape"][-1]), -1)
    seeds, keys, entries = {}, set(), iter(program.results)
    for command in program.commands:
        f = {field: command.get(field, 0) for field in ("bank", "b_bank", "clusters", "lanes", "seed", "row", "final")}
        clusters = [c for c in range(config.clusters) if f["clusters"] >> c & 1]
        if command["op"] == "LOAD_P":
            assert command["stochastic"] == 1
            for c, lane in itertools.product(clusters, range(per)):
                if f["lanes"] >> lane & 1:
                    seeds[c, lane, f["bank"]] = f["seed"]
        if command["op"] != "RUN" or not f["final"]:
            continue
        for part in next(entries)["parts"]:
            first, _ = part["lanes"]
            rows, columns = expand_ranges(part["rows"]), expand_ranges(part["columns"])
            seed = seeds[first // per, first % per, f["b_bank"]]
            numbered = f["row"] + np.arange(len(rows))
            u[np.ix_(rows, columns)] = noise(seed, numbered[:, None], np.arange(len(columns)))
            keys |= {(seed, int(row) % 65536, c) for row in numbered for c in range(len(columns))}
    assert u.min() >= 0
    return u, keys


def check_lowered(program, operands, sums, masks=None, limits=(-100, 120)):
    """The golden model's output is the formula's; every element has a number of its own."""
    check_program(program)
    n = sums.shape[-1]
    chance = np.random.default_rng(n)
    p = {"bias": chance.integers(-99, 99, n), "mult": np.ones(n, int), "shift": np.full(n, 5)}
    bound = bind(program, operands | p, masks)
    assembler = ResultAssembler(program)
    assembler.feed(*GoldenDevice(program.config).execute(bound.words, bound.last))
    u, keys = numbers(program)
    assert len(keys) == u.size
    expected = requantise(sums.reshape(u.shape), p["bias"], 1, 5, *limits, noise=u)
    wanted = (masks or {}).get("c_mask")
    expected = expected if wanted is None else np.where(wanted.reshape(u.shape), expected, 0)
    assert np.array_equal(assembler.outputs()["c"].reshape(u.shape), expected)


@pytest.mark.parametrize("fields", [{}, {"psum_in_pe": True}, {"stream_words": 4}])
@pytest.mark.parametrize("mode", ["rows", "cluster", "share"])
def test_matmul(mode, fields):
    chance = np.random.default_rng(3)
    a, b = chance.integers(-9, 9, (50, 70)), chance.integers(-9, 9, (70, 37))
    post = {"low": -100, "high": 120, "seed": 4}
    program = lower_matmul(WIDE.replace(**fields), 50, 70, 37, post=post, mode=mode)
    check_lowered(program, {"a": a, "b": b}, a @ b)
    if mode == "rows":
        mask = chance.random((50, 37)) < 0.4
        program = lower_matmul(WIDE.replace(**fields), 50, 70, 37, use_c=True, post=post, mode=mode)
        check_lowered(program, {"a": a, "b": b}, a @ b, {"c_mask": mask})


@pytest.mark.parametrize("groups", [1, 2])
def test_conv(groups):
    chance = np.random.default_rng(4)
    x, w = chance.integers(-9, 9, (2, 9, 11, 8)), chance.integers(-9, 9, (3, 3, 8, 20))
    group = np.arange(8)[:, None] * groups // 8 == np.arange(20) * groups // 20
    program = lower_conv(WIDE, x.shape, w.shape, 1, 1, groups=groups, post={"low": -100, "high": 120, "seed": 77})
    check_lowered(program, {"a": x, "b": w * group}, conv2d(x, w * group, 1, 1))


def test_weight_grad():
    chance = np.random.default_rng(6)
    x, g = chance.integers(-9, 9, (1, 7, 8, 5)), chance.integers(-9, 9, (1, 7, 8, 19))
    post = {"low": -100, "high": 120, "seed": 9}
    program = lower_weight_grad(WIDE, x.shape, g.shape, 3, padding=1, post=post)
    sums = np.zeros((3, 3, 5, 19), int)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for r, c in np.ndindex(3, 3):
        sums[r, c] = np.einsum("nhwi,nhwo->io", padded[:, r : r + 7, c : c + 8], g)
    check_lowered(program, {"a": x.transpose(0, 3, 1, 2), "b": g}, sums)


def test_more_rows_than_row_numbers():
    """Rows beyond 65535 get other seeds, and no RUN counts across the border."""
    config = preset("small").replace(stochastic=True)
    program = lower_matmul(config, 66_000, 2, 5, post={"low": 0, "high": 9, "seed": 1}, mode="rows")
    finals = [c for c in program.commands if c["op"] == "RUN" and c.get("final")]
    assert max(c.get("row", 0) + c["rows"] for c in finals) <= 65536 < sum(c["rows"] for c in finals)
    loads = [c for c in program.commands if c["op"] == "LOAD_P"]
    assert len({c["seed"] for c in loads}) == 2
    _, keys = numbers(program)
    assert len(keys) == 66_000 * 5


def test_programs_without_a_seed_round_to_the_nearest():
    config = preset("small").replace(stochastic=True)
    program = lower_matmul(config, 9, 9, 9, post={"low": 0, "high": 9})
    assert not any("seed" in c or "stochastic" in c or c.get("row") for c in program.commands)


@pytest.mark.parametrize(("post", "error", "message"), [
    ({"seed": 0}, MaskworkValueError, "post: seed must be from 1 to 4294967295, not 0"),
    ({"seed": 1 << 32}, MaskworkValueError, "post: seed must be from 1 to 4294967295, not 4294967296"),
    ({"seed": 1.5}, MaskworkTypeError, "post: seed must be an integer or None, not 1.5"),
    ({"seed": True}, MaskworkTypeError, "post: seed must be an integer or None, not True"),
    ({"sed": 1}, MaskworkTypeError, r"post must have low and high \(and may have bias, mult, shift and seed\)"),
])  # fmt: skip
def test_bad_posts(post, error, message):
    with pytest.raises(error, match=message):
        lower_matmul(WIDE, 4, 4, 4, post={"low": 0, "high": 4, **post})


def test_bad_configurations_and_programs():
    plain = mw.preset("small")
    with pytest.raises(MaskworkValueError, match="seed needs a configuration with stochastic = true, not false"):
        lower_matmul(plain, 4, 4, 4, post={"low": 0, "high": 4, "seed": 1})
    with pytest.raises(
        ConfigError, match=r"stochastic must be false without post-processing \(post = false\), not true"
    ):
        plain.replace(post=False, stochastic=True)
    with pytest.raises(ConfigError, match="acc_width must be at most 48 with post-processing"):
        plain.replace(acc_width=49)
    program = lower_matmul(WIDE, 4, 4, 4, post={"low": 0, "high": 4, "seed": 1})
    load = next(c for c in program.commands if c["op"] == "LOAD_P")
    del load["seed"]
    with pytest.raises(ProgramError, match=re.escape("seed must be from 1 to 4294967295 with stochastic, not 0")):
        check_program(program)
    other = lower_matmul(plain, 4, 4, 4, post={"low": 0, "high": 4})
    next(c for c in other.commands if c["op"] == "LOAD_P").update(stochastic=1, seed=1)
    with pytest.raises(ProgramError, match="stochastic must be 0 on a configuration with stochastic = false"):
        check_program(other)


def test_seeds_of_tiles():
    seeds = {tile_seed(user, n) for user in (1, 2, 0xFFFFFFFF) for n in range(5000)}
    assert len(seeds) > 14990 and min(seeds) > 0 and max(seeds) < 1 << 32
    assert [tile_seed(1, n) for n in (0, 1)] == [2527132011, 314344336]  # changes only with the definition
