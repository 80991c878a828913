"""Parts of convolutions whose wanted positions are known, and the order of their rows."""

import itertools

import numpy as np
import pytest
from maskwork.gen.bench_sample import run_program
from maskwork.gen.check import check_program
from maskwork.gen.config import preset
from maskwork.gen.conv_axis import Axis, Geometry
from maskwork.gen.conv_parts import PLAIN, Limits, Order, best_order, busiest, even_parts
from maskwork.gen.errors import MaskworkValueError
from maskwork.gen.execute import execute
from maskwork.gen.lower_conv import ConvPart, lower_conv
from maskwork.gen.lower_schedule import KTile
from maskwork.gen.works import ConvWork, operands
from maskwork.sim_tb.device import open_device
from maskwork.sim_tb.golden import conv2d

SIM = preset("sim-64")


def geometry(height, width, stride=1, images=1):
    y, x = (Axis.of(size, 3, stride, (1, 1), 1) for size in (height, width))
    return Geometry(images, y, x, height, width, 8)


def limits(**changes):
    return Limits(**{"rows": 128, "pixels": 200, "taps": (3, 3), "lanes": 4, "slots": 32, "extra": 0.1, "least": 0.0,
                     **changes})  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_parts_cover_every_position_once_and_fit(seed):
    rng = np.random.default_rng(seed)
    g = geometry(*(int(v) for v in rng.integers(1, 40, 2)), stride=int(rng.integers(1, 3)))
    kept = rng.random((g.y.outputs, g.x.outputs)) < rng.random()
    limit = limits(rows=int(rng.integers(1, 140)), pixels=int(rng.integers(9, 200)))
    covered = np.zeros(kept.shape, dtype=np.int64)
    ways = even_parts(g, kept, limit)
    for ys, xs in itertools.chain(*ways):
        covered[ys.start : ys.stop, xs.start : xs.stop] += 1
        assert len(ys) * len(xs) <= limit.rows
        assert g.y.reach(len(ys), 3) * g.x.reach(len(xs), 3) <= limit.pixels
    assert ways and (covered == len(ways)).all()


def test_no_parts_where_no_position_fits():
    assert not even_parts(geometry(9, 9), np.ones((9, 9), bool), limits(pixels=8))


def test_parts_waste_less_than_equal_ones():
    """Positions of the fullest lane, over all parts: equal parts lose 3 % to lanes that have a position too few."""
    g = geometry(28, 28)
    kept = np.random.default_rng(1).random((28, 28)) < 0.9
    equal = [(range(y, y + 7), range(x, x + 14)) for y, x in itertools.product(range(0, 28, 7), range(0, 28, 14))]

    def turns(parts):
        return sum(-(-int(kept[y.start : y.stop, x.start : x.stop].sum()) // 4) for y, x in parts)

    ideal = kept.sum() / 4
    assert turns(even_parts(g, kept, limits())[0]) <= 1.005 * ideal < 1.01 * ideal <= turns(equal)


def test_parts_leave_slots_for_unwanted_rows():
    """Unwanted rows take slots of partial sums as well; full parts would leave some lane fewer wanted rows."""
    kept = np.random.default_rng(1).random((28, 28)) < 0.7
    parts = even_parts(geometry(28, 28), kept, limits())[0]
    assert max(len(ys) * len(xs) for ys, xs in parts) < 128


def test_order_evens_out_the_edges():
    """Of a part of 4 columns at the left edge, every fourth position row by row meets 6 of 9 taps, always in the same
    lane; in other orders, such as column by column, every lane has as many of them.
    """
    g, kept = geometry(26, 28), np.ones((1, 26, 28), dtype=bool)
    part = range(1, 25), range(0, 4)
    assert best_order(g, part, kept, 4) != PLAIN
    assert busiest(g, part, kept, 4) == pytest.approx((24 * 3 + 24 * 2 / 3) / 4)
    assert best_order(g, (range(1, 25), range(1, 5)), kept, 4) == PLAIN  # nothing to even out


@pytest.mark.parametrize("order", [Order(*v) for v in itertools.product((False, True), repeat=3)])
@pytest.mark.parametrize("stride", [1, 2])
def test_rows_come_in_the_order(order, stride):
    """The deltas of RUN walk the pixels of the rows that are listed, image by image."""
    g = geometry(9, 11, stride, images=2)
    part = ConvPart(g, range(2), range(1, 4), range(2, 5), order)
    tile = KTile(np.arange(8), np.arange(72), (0, 3, 0, 3), (0, 3, 0, 3))
    fields = part.run_fields(tile)
    (y0, y1), (x0, x1) = g.y.window(1, 3, 0, 3), g.x.window(2, 3, 0, 3)
    seg, x, y, m0, m1 = (fields[name] for name in ("seg", "x", "y", "m0", "m1"))
    at, count = {"seg": seg, "x": x, "y": y}, [0, 0]
    walked = []
    for _ in part.rows:
        pixel = at["y"] * (x1 - x0) + at["x"]
        image, rest = divmod(at["seg"] - pixel, (y1 - y0) * (x1 - x0))
        assert rest == 0
        walked.append((image, at["y"] + y0, at["x"] + x0))
        level = "m0" if count[0] < m0 else "m1" if count[1] < m1 else "m2"
        count = [count[0] + 1, count[1]] if level == "m0" else [0, count[1] + 1] if level == "m1" else [0, 0]
        at = {name: at[name] + (fields[f"{level}_{name}"] + 0x8000) % 0x10000 - 0x8000 for name in at}
    rows = [(image * g.y.outputs + (y + 1) // stride) * g.x.outputs + (x + 1) // stride for image, y, x in walked]
    assert rows == part.rows.tolist()
    assert len(set(rows)) == 18


@pytest.mark.parametrize("seed", range(6))
def test_programs_are_right_whatever_was_known(seed):
    """Known positions choose tiles only: other masks give right results as well."""
    rng = np.random.default_rng(seed)
    shape, columns = (2, int(rng.integers(5, 15)), int(rng.integers(5, 15)), 16), 64
    a, b = rng.integers(-9, 10, shape), rng.integers(-9, 10, (3, 3, 16, columns))
    expected = conv2d(a, b, padding=1)
    program = lower_conv(SIM, shape, b.shape, padding=1, use_c=True, positions=rng.random(expected.shape[:3]) < 0.7)
    check_program(program)
    wanted = rng.random(expected.shape) < 0.5
    with open_device("golden", SIM) as device:
        results = execute(device, program, {"a": a, "b": b, "c_mask": wanted}).outputs["c"]
    assert np.array_equal(results, np.where(wanted, expected, 0))


def test_positions_of_another_shape_are_refused():
    with pytest.raises(MaskworkValueError, match="positions"):
        lower_conv(SIM, (1, 8, 8, 16), (3, 3, 16, 64), padding=1, use_c=True, positions=np.ones((1, 8, 7), bool))


@pytest.mark.parametrize(("size", "channels", "columns", "least"), [(28, 32, 64, 0.94), (7, 64, 256, 0.93)])
def test_layers_of_masked_positions_are_busy(size, channels, columns, least):
    """Without parts cut by the mask, or lanes that share rows, these take 5 to 15 % more cycles."""
    kept = np.random.default_rng(3).random((1, size, size, 1)) < 0.7
    c = np.broadcast_to(kept, (1, size, size, columns))
    work = ConvWork((1, size, size, channels), (3, 3, channels, columns), c=c, pads=((1, 1), (1, 1)))
    program = work.lower(SIM, tune=True)
    counters = run_program(program, operands(work, program))
    assert work.macs()[1] / counters["cycles"] / SIM.pes >= least
