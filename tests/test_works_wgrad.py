"""Weight gradients with either operand streamed: counts, results, and which one is chosen."""

from dataclasses import replace

import numpy as np
import pytest
from maskwork.gen import bench_sample, tune, works_wgrad
from maskwork.gen.bench_masks import LayerMasks
from maskwork.gen.config import preset
from maskwork.gen.errors import MaskworkValueError, ProgramError
from maskwork.gen.execute import execute, execute_bound, read_counters
from maskwork.gen.lower import by_channel, conv_output_shape, lower_weight_grad
from maskwork.gen.lower_wgrad import exchanged_pads, weight_grad_cycles
from maskwork.gen.passes import works
from maskwork.gen.program import bind
from maskwork.gen.workload import Layer
from maskwork.gen.works import operands
from maskwork.gen.works_wgrad import WeightGradWork
from maskwork.sim_tb.device import open_device

SMALL = preset("small")
FINE = preset("tiny").replace(lanes=1, lanes_per_cluster=1, pes_per_lane=1, slots=4, psum_rows=2)  # cuts small layers


def random_work(rng, number=0.5):
    """A work of stride 1 with masks on everything."""
    while True:
        kernel = tuple(int(v) for v in rng.integers(1, 5, 2))
        dilation = int(rng.integers(1, 4))
        pads = tuple(tuple(int(v) for v in rng.integers(0, dilation * (k - 1) + 1, 2)) for k in kernel)
        shape = tuple(int(v) for v in (rng.integers(1, 4), *rng.integers(1, 12, 2), rng.integers(1, 12)))
        columns = int(rng.integers(1, 12))
        try:
            grad = conv_output_shape(shape, (*kernel, shape[3], columns), 1, pads, dilation)
        except MaskworkValueError:
            continue
        a, b, c = (rng.random(size) < number for size in (shape, grad, (*kernel, shape[3], columns)))
        return WeightGradWork(shape, grad, kernel, a, b, c, 1, pads, dilation)


def same(a, b):
    """Whether two works are, masks included."""
    masks = [(one == other).all() for one, other in zip((a.a, a.b, a.c), (b.a, b.b, b.c), strict=True)]
    return all(masks) and a.key == b.key


def back(result):
    """A swapped work's results as (kh, kw, Cin, Cout)."""
    return result[::-1, ::-1].transpose(0, 1, 3, 2)


def layer_work(stride=1, padding=1, densities=(0.3, 0.3), size=16, channels=(16, 16)):
    rng = np.random.default_rng(2)
    out = (size + 2 * padding - 3) // stride + 1
    shape, grad = (1, size, size, channels[0]), (1, out, out, channels[1])
    a, b = (rng.random(s) < d for s, d in zip((shape, grad), densities, strict=True))
    return WeightGradWork(shape, grad, (3, 3), a, b, None, stride, padding)


def test_both_ways_have_the_same_products():
    rng = np.random.default_rng(1)
    for _ in range(60):
        work = random_work(rng)
        other = work.swapped()
        assert other.macs() == work.macs()
        assert same(other.swapped(), work)
        for pieces in (3, 50):
            parts = [part.macs() for part in other.cut(FINE, pieces)]
            assert tuple(map(sum, zip(*parts, strict=True))) == work.macs()


def test_both_ways_give_the_same_results():
    rng = np.random.default_rng(3)
    with open_device("golden", SMALL) as device:
        for _ in range(15):
            work = random_work(rng)
            results = []
            for way in (work, work.swapped()):
                program = way.lower(SMALL)
                bound = bind(program, operands(way, program), check_sums=False)
                results.append(execute_bound(device, program, bound).outputs["c"])
                assert read_counters(device)["multiply"] == work.macs()[1]
            assert np.array_equal(back(results[1]), results[0])


def test_exchanged_operands_give_the_gradient():
    """As users lower it, with values."""
    rng = np.random.default_rng(4)
    shape, kernel, pads, dilation = (2, 9, 7, 5), (3, 2), ((2, 1), (0, 1)), (1, 2)
    grad = conv_output_shape(shape, (*kernel, 5, 6), 1, pads, dilation)
    x, g = (rng.integers(-9, 10, size) * (rng.random(size) < 0.5) for size in (shape, grad))
    with open_device("golden", SMALL) as device:
        direct = lower_weight_grad(SMALL, shape, grad, kernel, 1, pads, dilation)
        expected = execute(device, direct, {"a": by_channel(x), "b": g}).outputs["c"]
        program = lower_weight_grad(
            SMALL, grad, shape, kernel, 1, exchanged_pads(kernel, 1, pads, dilation), dilation
        )  # fmt: skip
        got = execute(device, program, {"a": by_channel(g), "b": x}).outputs["c"]
    assert got.shape == (3, 2, 6, 5) and np.array_equal(back(got), expected)


def test_exchanged_pads():
    assert exchanged_pads((3, 5), 1, ((0, 2), (1, 4)), (1, 2)) == ((2, 0), (7, 4))
    assert exchanged_pads(3, 1, 1) == ((1, 1), (1, 1))
    assert exchanged_pads(1) == ((0, 0), (0, 0))
    assert exchanged_pads(3, 2, 1) is None and exchanged_pads(3, (1, 2), 1) is None
    assert exchanged_pads(3, 1, 3) is None and exchanged_pads(1, 1, ((0, 0), (0, 1))) is None
    with pytest.raises(MaskworkValueError, match="kernel must be"):
        exchanged_pads(0)


@pytest.mark.parametrize(("densities", "swapped"), [((0.5, 0.02), True), ((0.02, 0.5), False)])
def test_the_sparser_operand_is_streamed(densities, swapped):
    config = preset("sim-64")
    work = layer_work(densities=densities, channels=(128, 128), size=28)
    first = work.ways(config)[0]
    assert first.a is (work.b if swapped else work.a) and first.b is (work.a if swapped else work.b)
    assert first.cycles(config) == min(work.cycles(config), work.swapped().cycles(config))
    assert first.swapped().ways(config)[0].key == first.key
    # the passes' works are the better way as well
    layer = Layer(network="n", layer="l", batch=1, in_channels=128, out_channels=128, in_height=28, in_width=28,
                  kernel_height=3, kernel_width=3, padding=1)  # fmt: skip
    masks = LayerMasks(input=work.a, output_grad=work.b, weight=np.random.default_rng(1).random((3, 3, 128, 128)) < 0.5)
    (own,) = works(config, layer, "weight_grad", masks)
    assert np.array_equal(own.a, first.a) and np.array_equal(own.b, first.b)
    wanted = back(own.c) if swapped else own.c
    assert np.array_equal(wanted, masks.weight)


def test_what_is_never_swapped():
    for work in (layer_work(2, 1, (0.5, 0.02)), layer_work(1, 3, (0.5, 0.02))):
        assert work.swapped() is None and work.ways(SMALL) == [work]
    work = layer_work(densities=(0.5, 0.02))
    assert work.swapped() and work.ways(SMALL.replace(b_width=SMALL.a_width - 1)) == [work]  # other numbers


def test_what_the_configuration_cannot_run(monkeypatch):
    cannot = []

    def cycles(config, shape, *_, **options):
        if shape in cannot:
            raise ProgramError("does not fit")
        return 1.0

    monkeypatch.setattr(works_wgrad, "weight_grad_cycles", cycles)
    work = layer_work(size=8, channels=(8, 4))
    assert [way.shape for way in work.ways(SMALL)] == [work.shape, work.grad]
    cannot.append(work.shape)
    assert [way.shape for way in work.ways(SMALL)] == [work.grad] and work.cycles(SMALL) == np.inf
    cannot.append(work.grad)
    assert work.ways(SMALL)[0] is work


def test_work_of_channels_tells_programs_apart():
    even = layer_work()
    work = replace(even, a=np.arange(16) % 4 < even.a + 2, b=even.b & (np.arange(16) > 3))
    assert even.key != work.key != replace(work, a=work.a[..., ::-1]).key
    dense = replace(even, a=None, b=None)
    wanted = np.arange(16)[:, None] * np.ones((3, 3, 1, 16)) > 7  # rows without results are no work
    assert dense.key[-2:] == (None, None)
    assert replace(dense, c=wanted).key[-2:] == ((0.0,) * 8 + (2.0,) * 8, None)


def test_densities_that_the_hardware_does_not_skip_do_not_count():
    work = layer_work(densities=(0.5, 0.02))
    assert work.cycles(SMALL.replace(skip="")) == work.swapped().cycles(SMALL.replace(skip=""))
    assert work.ways(SMALL.replace(skip="a"))[0].shape == work.grad


def test_cycles_are_those_of_the_plans():
    config = preset("sim-64")
    shape, grad = (1, 20, 20, 32), (1, 20, 20, 48)
    sparse, dense = (weight_grad_cycles(config, shape, grad, 3, 1, 1, density=(d, 0.5)) for d in (0.1, 0.9))
    assert 0 < sparse < dense
    with pytest.raises(MaskworkValueError, match="gradient shape must be"):
        weight_grad_cycles(config, shape, (1, 20, 19, 48), 3, 1, 1)
    with pytest.raises(MaskworkValueError, match="mode must be"):
        weight_grad_cycles(config, shape, grad, 3, 1, 1, mode="share")


# ---------------------------------------------------------------------- by simulation


def test_the_faster_way_by_simulation_runs(monkeypatch):
    """Trials decide, and works with equal keys share what they decided."""
    config, work, tried = SMALL, layer_work(size=8), []

    def trial(program, values, products, most):
        tried.append(program)
        assert products == work.macs()[1] and set(values) == {"a", "b"}
        return None if len(tried) == 1 else 1000.0

    def run(program, values):
        assert program is programs[work.key][1] and np.array_equal(values["b"], work.ways(config)[1].b)
        return dict.fromkeys(bench_sample.COUNTERS, 5)

    monkeypatch.setattr(bench_sample, "TUNED", 1)
    monkeypatch.setattr(bench_sample, "trial", trial)
    monkeypatch.setattr(bench_sample, "run_program", run)
    programs = {}
    assert len(work.ways(config)) == 2
    bench_sample.measure(config, [work, work], 0, [1], programs)
    index, program = programs[work.key]
    assert index == 1 and len(tried) == 2 and program is tried[1]


@pytest.mark.parametrize(("most", "chains"), [(float("inf"), 2), (1e9, 2), (400, 1), (100, None)])
def test_a_trial_is_no_longer_than_asked_for(monkeypatch, most, chains):
    """Four chains of three RUNs; 1000 products."""
    runs = [{"op": "RUN", "rows": 2, **last} for last in ({}, {}, {"final": 1})] * 4
    program = tune.Program(SMALL, commands=[{"op": "BEGIN"}, *runs, {"op": "SYNC"}])

    def bind(tried, values, check_sums):
        bound.commands = tried.commands
        return bound

    bound = type("Bound", (), {"words": None, "last": None})
    monkeypatch.setattr(tune, "bind", bind)
    monkeypatch.setattr(tune, "SAMPLE", 10)
    monkeypatch.setattr("maskwork.sim_tb.cycle.simulate", lambda *_: {"cycles": 10})
    got = tune.trial(program, {}, 1000, most)
    number = sum(command["op"] == "RUN" for command in bound.commands)
    assert number == (1 if chains is None else 3 * chains)
    assert bound.commands[-1]["op"] == "SYNC" and got == pytest.approx(10 * 12 / number)


def test_tuned_programs_give_the_same_results(monkeypatch):
    tried, chosen = [], tune.fastest

    def fastest(scheduler, schedule, ways, density, few_chains):
        tried.extend(ways)
        chosen(scheduler, schedule, ways, density, few_chains)
        return ways[-1]

    monkeypatch.setattr(tune, "fastest", fastest)
    config, work = preset("sim-64"), layer_work(channels=(24, 80))
    expected = []
    with open_device("golden", config) as device:
        for tuned in (False, True):
            program = work.lower(config, tune=tuned)
            bound = bind(program, operands(work, program), check_sums=False)
            expected.append(execute_bound(device, program, bound).outputs["c"])
    assert len(tried) > 1 and np.array_equal(*expected)
