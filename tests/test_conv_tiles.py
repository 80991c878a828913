"""Plans of convolutions: clusters with different columns, and the choice among plans by simulation."""

from dataclasses import dataclass
from math import inf

import numpy as np
import pytest
from maskwork.gen import lower_conv as module
from maskwork.gen import tune
from maskwork.gen.bench_sample import run_program
from maskwork.gen.check import check_program
from maskwork.gen.config import preset
from maskwork.gen.conv_axis import Axis, Geometry
from maskwork.gen.conv_tiles import MOST_PLANS, NEAR, Cut, plans
from maskwork.gen.errors import MaskworkValueError
from maskwork.gen.execute import execute
from maskwork.gen.isa import ISA_VERSION
from maskwork.gen.lower_conv import lower_conv
from maskwork.gen.program import Program, bind
from maskwork.gen.works import ConvWork, operands
from maskwork.sim_tb.device import open_device
from maskwork.sim_tb.golden import conv2d
from maskwork.sim_tb.golden.requantise import requantise_unchecked

from .variants import CONFIGS as VARIANTS
from .variants import TWO

SMALL = preset("small").replace(lanes=8)
CONFIGS = [
    TWO,
    preset("sim-64"),
    VARIANTS["K in PEs, abc"],
    SMALL.replace(lanes=12, k_depth=32, a_depth=256, a_segments=64, c_rows=32, psum_rows=4, psum_in_pe=True),
    SMALL.replace(skip="a"),
    SMALL.replace(skip=""),
]


def offer(monkeypatch, wanted):
    """Lowerings take the plans that are wanted, however long they take; answers those that were offered."""
    offered = []

    def only(*args):
        monkeypatch.setattr("maskwork.gen.conv_tiles.MOST_PLANS", 1000)
        monkeypatch.setattr("maskwork.gen.conv_tiles.NEAR", np.inf)
        ways = [way for way in plans(*args) if wanted(way)]
        offered.append(ways)
        return ways

    monkeypatch.setattr(module, "plans", only)
    return offered


@pytest.fixture
def by_columns(monkeypatch):
    """Lowerings take plans whose clusters hold different columns; the plans that were offered."""
    return offer(monkeypatch, lambda way: way.share == "columns")


@pytest.fixture
def by_lanes(monkeypatch):
    """The same with lanes that hold different columns."""
    return offer(monkeypatch, lambda way: way.share == "all")


def run(device, seed, whole=False):
    """A random layer of a column for each PE and more, with and without C masks (of ``whole`` positions),
    requantisation and work.
    """
    config, rng = device.config, np.random.default_rng(seed)
    columns = int(rng.integers(config.pes, 5 * config.tile_columns + config.pes))
    shape = (int(rng.integers(1, 3)), *(int(v) for v in rng.integers(3, 9, 2)), int(rng.integers(1, 20)))
    stride, padding = int(rng.integers(1, 3)), int(rng.integers(0, 2))
    use_c, post = bool(rng.integers(2)), {"low": int(rng.integers(-50, 9)), "high": 60} if rng.integers(2) else None
    a = rng.integers(-9, 10, shape) * (rng.random(shape) < 0.5)
    b = rng.integers(-9, 10, (3, 3, shape[3], columns)) * (rng.random((3, 3, shape[3], columns)) < 0.5)
    expected = conv2d(a, b, stride=stride, padding=padding)
    operands = {"a": a, "b": b}
    if post:
        operands["bias"] = rng.integers(-300, 300, columns)
        operands["mult"] = rng.integers(1, 2**12, columns)
        operands["shift"] = rng.integers(10, 16, columns)
        expected = requantise_unchecked(
            expected, operands["bias"], operands["mult"], operands["shift"], post["low"], post["high"]
        )
    if use_c:
        drawn = rng.random(expected.shape[:3]) < 0.6 if whole else rng.random(expected.shape) < 0.6
        operands["c_mask"] = np.broadcast_to(drawn[..., None], expected.shape) if whole else drawn
        expected = np.where(operands["c_mask"], expected, 0)
    work = rng.random(columns) if rng.integers(2) else None
    positions = operands["c_mask"].any(axis=3) if use_c and rng.integers(2) else None
    program = lower_conv(config, shape, b.shape, stride, padding, use_c=use_c, post=post, column_work=work,
                         positions=positions, whole=whole)  # fmt: skip
    check_program(program)
    assert np.array_equal(execute(device, program, operands).outputs["c"], expected)
    return program


def cluster_columns(program):
    """Clusters, and the columns given to them, of the loads of weights of the first K tile."""
    loads = [command for command in program.commands if command["op"] == "LOAD_B"]
    return [(load["clusters"], load["columns"]) for load in loads if load["data"]["rows"] == loads[0]["data"]["rows"]]


@pytest.mark.parametrize("config", range(len(CONFIGS)))
@pytest.mark.parametrize("seed", range(5))
def test_clusters_with_different_columns(by_columns, config, seed):
    with open_device("golden", CONFIGS[config]) as device:
        program = run(device, 10 * seed + config)
    assert by_columns and by_columns[0]
    loads = cluster_columns(program)
    assert len({clusters for clusters, _ in loads}) > 1
    assert all(clusters & (clusters - 1) == 0 for clusters, _ in loads)
    # the same rows go to all clusters that compute, in one load
    masks = {command["clusters"] for command in program.commands if command["op"] == "LOAD_A"}
    assert all(mask & (mask + 1) == 0 for mask in masks) and max(masks) > 1


@pytest.mark.parametrize("config", range(len(CONFIGS)))
@pytest.mark.parametrize("seed", range(5))
def test_lanes_with_different_columns(by_lanes, config, seed):
    with open_device("golden", CONFIGS[config]) as device:
        program = run(device, 10 * seed + config, whole=True)
    assert by_lanes and by_lanes[0]
    runs = [command for command in program.commands if command["op"] == "RUN"]
    assert all(command.get("share") and command["clusters"] == 2 ** CONFIGS[config].clusters - 1 for command in runs)


@pytest.mark.slow
@pytest.mark.parametrize("config", [0, 2])
def test_clusters_with_different_columns_on_the_rtl(by_columns, config):
    with open_device("rtl", CONFIGS[config]) as device:
        for seed in range(4):
            run(device, 100 + seed)


@pytest.mark.slow
@pytest.mark.parametrize("config", [0, 2])
def test_lanes_with_different_columns_on_the_rtl(by_lanes, config):
    with open_device("rtl", CONFIGS[config]) as device:
        for seed in range(4):
            run(device, 100 + seed, whole=True)


def test_rows_with_masks_of_elements_are_not_shared():
    """Lanes with different columns would need masks of their own; masks of whole positions do for all of them."""
    args = preset("sim-64"), geometry(7, 512), 512, 512
    for use_c, whole, shared in ((True, False, False), (True, True, True), (False, False, True)):
        ways = plans(*args, use_c, (1, 1, 1), False, None, whole)
        assert any(way.share == "all" for way in ways) == shared


def test_masks_that_are_not_whole_are_refused():
    config, shape = preset("sim-64"), (1, 4, 4, 8)
    program = lower_conv(config, shape, (3, 3, 8, 64), padding=1, use_c=True, whole=True)
    values = {"a": np.ones(shape, int), "b": np.ones((3, 3, 8, 64), int), "c_mask": np.ones((1, 4, 4, 64), bool)}
    bind(program, values)
    values["c_mask"][0, 1, 1, 5] = False
    with pytest.raises(MaskworkValueError, match="c_mask"):
        bind(program, values)


def geometry(size, channels):
    y, x = (Axis.of(size, 3, 1, (1, 1), 1) for _ in range(2))
    return Geometry(1, y, x, size, size, channels)


def test_plans_come_in_order():
    config = preset("sim-64")
    for columns in (64, 256):
        ways = plans(config, geometry(14, 64), 64, columns, True, (0.5, 0.5, 0.5), False)
        costs = [way.cost for way in ways]
        assert costs == sorted(costs) and costs[-1] <= NEAR * costs[0] and 1 <= len(ways) <= MOST_PLANS
        assert not any(way.share == "all" for way in ways)
    ways = plans(preset("small"), geometry(4, 8), 8, 256, False, (1, 1, 1), False)
    assert not any(way.share == "columns" for way in ways)  # it has one cluster


# ---------------------------------------------------------------------- choice by simulation


def commands(text, **fields):
    """A program of commands: L(oad), r(un), f(inal run), S(YNC)."""
    names = {"L": {"op": "LOAD_A"}, "r": {"op": "RUN"}, "f": {"op": "RUN", "final": 1}, "S": {"op": "SYNC"}}
    names = {name: command | (fields if command["op"] == "RUN" else {}) for name, command in names.items()}
    return Program(preset("small"), commands=[{"op": "BEGIN", "version": ISA_VERSION}, *(names[c] for c in text)])


@pytest.mark.parametrize(("text", "chains", "kept", "share"), [
    ("LrLffLrLfS", 1, "LrLffS", 3 / 5),  # two RUNs end a chain together
    ("LrLffLrLfS", 2, "LrLffLrLfS", 1),
    ("LrLfLf", 1, "LrLfS", 2 / 3),
    ("LrLfLf", 2, "LrLfLfS", 1),  # without an end: one is added
    ("LrLfLfLrf", 5, "LrLfLfLrfS", 1),  # fewer chains than that
])  # fmt: skip
def test_beginning_ends_with_a_chain(text, chains, kept, share):
    program = commands(text, rows=3, columns=7)
    first, part = tune.beginning(program, chains)
    assert part == pytest.approx(share)
    assert first.commands == commands(kept, rows=3, columns=7).commands
    assert program.commands == commands(text, rows=3, columns=7).commands


def test_a_chain_takes_as_long_as_its_busiest_cluster():
    """Of 28 rows in two blocks of four clusters the second may have as much to do as the first."""

    def run(clusters, rows, final=1):
        return {"op": "RUN", "clusters": clusters, "rows": rows, "columns": 15, "final": final}

    load = {"op": "LOAD_B"}
    blocks = [run(0b1111, 4), load, run(0b0001, 4), run(0b0110, 3), load, run(0b1000, 2)]
    program = Program(preset("small"), commands=[load, *blocks])
    assert tune.chains_of(program) == [(2, 64), (5, 64), (7, 32)]
    steps = [run(0b11, 4, 0), load, run(0b11, 4, 0), load, run(0b11, 4)]
    assert tune.chains_of(Program(preset("small"), commands=steps)) == [(5, 192)]
    assert tune.beginning(program, 1)[1] == 0.4


@dataclass
class Way:
    """A stub of a plan: cycles by a trial, None for operands that do not fit, and all of its cycles if they differ."""

    cycles: int | None
    whole: int = 0


class Stub:
    """A scheduler whose program says which plan was scheduled last."""

    def __init__(self):
        self.program = Program(preset("small"))
        self.program.operands = {
            "a": {"shape": [4, 4], "dtype": "int", "role": "a"}, "b": {"shape": [4, 4], "dtype": "int", "role": "b"},
        }  # fmt: skip
        self.program.outputs = {"c": {"shape": [4, 4], "dtype": "int32"}}
        self.program.commands = [{"op": "BEGIN", "version": ISA_VERSION}]
        self.finals, self.tried = 3, []

    def schedule(self, way):
        assert [command["op"] for command in self.program.commands] == ["BEGIN"] and not self.program.results
        self.tried.append(way)
        self.program.commands.append({"op": "RUN", "final": 1})
        self.program.results.append({"tag": 0})
        self.finals += 1


@pytest.mark.parametrize(("ways", "best", "again"), [
    ([Way(50), Way(100), Way(40)], 2, []),
    ([Way(50), Way(50)], 0, [0, 1]),
    ([Way(None), Way(50)], 1, []),
    ([Way(None), Way(None)], 0, []),
    # close ones run to their end, three of them at most
    ([Way(102, 90), Way(100, 100), Way(106, 80)], 0, [1, 0]),
    ([Way(102, 90), Way(100, 100), Way(101, 95), Way(103, 80)], 0, [1, 2, 0]),
])  # fmt: skip
@pytest.mark.parametrize("known", [False, True])
def test_the_fastest_takes_the_fewest_cycles(monkeypatch, ways, best, again, known):
    """Of the stub's programs, which have 16 products and one chain."""
    stub = Stub()
    samples = []

    def trial(program, values, products, most, sample):
        assert set(values) == {"a", "b"} and products == 16 and program.commands[-1]["op"] == "RUN"
        samples.append(sample)
        way = stub.tried[-1]
        return way.cycles if way.cycles is None or sample != inf else way.whole or way.cycles

    monkeypatch.setattr(tune, "trial", trial)
    options = {"sample": 1, "positions": np.ones((1, 2, 2), dtype=np.bool_) if known else None}
    expected = ways[best]
    if known:  # whatever their trials said
        runs = [way for way in sorted(ways, key=lambda way: way.cycles or 0) if way.cycles][:3]
        again = [ways.index(way) for way in runs] if len(runs) > 1 else []
        expected = min(runs, key=lambda way: way.whole or way.cycles) if runs else ways[0]
    assert tune.fastest(stub, stub.schedule, ways, (0.5, 0.5, 1.0), **options) is expected
    assert stub.tried == ways + [ways[i] for i in again]
    assert samples == [1] * len(ways) + [inf] * len(again)
    # as it was, for the plan that is taken
    assert [command["op"] for command in stub.program.commands] == ["BEGIN"]
    assert not stub.program.results and stub.finals == 3
    # nor do short or long programs run twice
    stub.tried.clear()
    monkeypatch.setattr(tune, "SAMPLE", 16)
    tune.fastest(stub, stub.schedule, ways, (0.5, 0.5, 1.0))
    assert stub.tried == ways
    stub.tried.clear()
    monkeypatch.setattr(tune, "WHOLE", 16)
    tune.fastest(stub, stub.schedule, ways, (0.5, 0.5, 1.0), sample=1)
    assert stub.tried == ways


@pytest.mark.parametrize("whole", [False, True])
def test_trials_have_masks_among_the_known_positions(whole):
    rng = np.random.default_rng(1)
    positions = rng.random((1, 20, 20)) < 0.5
    density = positions.mean() * (1 if whole else 0.5)
    mask = tune._c_mask({"shape": [1, 20, 20, 64], "whole": whole}, density, positions, rng)
    assert not mask[~positions].any() and mask.mean() == pytest.approx(density, rel=0.03)
    assert (mask.all(axis=3) == mask.any(axis=3)).all() == whole


@pytest.mark.parametrize(("channels", "size", "pieces"), [
    (30, 14, [8, 8, 14]),  # 2 would be too few to hide loads behind
    (36, 14, [8, 14, 14]),
    (28, 14, [14, 14]),
    (9, 14, [9]),
])  # fmt: skip
def test_the_smallest_k_tile_comes_first(channels, size, pieces):
    tiles = module._k_tiles(geometry(6, channels), Cut((3, 3), size, True), np.arange(channels))
    assert [len(tile.columns) for tile in tiles] == pieces
    assert np.concatenate([tile.columns for tile in tiles]).tolist() == list(range(channels))


def test_tuned_programs_give_the_same_results(monkeypatch):
    config, shape, weights = preset("sim-64"), (1, 10, 10, 32), (3, 3, 32, 80)
    tried, chosen = [], tune.fastest

    def fastest(scheduler, schedule, ways, density, positions):
        tried.extend(ways)
        return chosen(scheduler, schedule, ways, density, positions=positions)

    monkeypatch.setattr(tune, "fastest", fastest)
    rng = np.random.default_rng(5)
    a, b = (rng.integers(-9, 10, size) * (rng.random(size) < 0.4) for size in (shape, weights))
    program = lower_conv(config, shape, weights, 1, 1, density=(0.4, 0.4, 1.0), tune=True)
    with open_device("golden", config) as device:
        assert np.array_equal(execute(device, program, {"a": a, "b": b}).outputs["c"], conv2d(a, b, padding=1))
    assert len(tried) > 1


@pytest.mark.parametrize("skip", ["", "abc"])
def test_tiles_whose_activations_do_not_fit_are_not_taken(skip):
    """The density given is far from that of the operand, or nothing is skipped: trials of too large tiles end early."""
    config = preset("sim-64").replace(skip=skip)
    rng = np.random.default_rng(1)
    work = ConvWork((1, 14, 14, 512), (3, 3, 512, 64), a=rng.random((1, 14, 14, 512)) < 0.15, pads=((1, 1), (1, 1)))
    program = work.lower(config, tune=True)
    counters = run_program(program, operands(work, program))
    assert counters["multiply"] >= work.macs()[1]
    lower_conv(config, work.shape, work.weights, padding=1, density=(0.15, 1.0), trust=True, tune=True)
