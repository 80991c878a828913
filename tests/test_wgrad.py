"""Weight gradients: programs, their values on the golden model and the RTL, and what they load."""

import numpy as np
import pytest
from maskwork.gen import pack
from maskwork.gen.check import check_bound, check_program
from maskwork.gen.config import preset
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError, ProgramError
from maskwork.gen.execute import execute, read_counters
from maskwork.gen.lower import Post, by_channel, conv_output_shape, lower_matmul, lower_weight_grad
from maskwork.gen.lower_spread import slice_ranges, spread_loads
from maskwork.gen.lower_wgrad_tiles import Columns, Cut, Layer, TapsPart, phases, position_tiles
from maskwork.gen.overflow import window_maxima
from maskwork.gen.program import Program, bind
from maskwork.sim_tb.device import open_device
from maskwork.sim_tb.golden.requantise import requantise_unchecked

from .variants import CONFIGS as VARIANTS

SMALL = preset("small")
CONFIGS = (
    preset("tiny"),
    SMALL,
    preset("ulx3s-85f"),
    SMALL.replace(lanes=4, lanes_per_cluster=2, k_depth=64, a_depth=512, a_segments=64, c_rows=32, psum_rows=4,
                  fifo_depth=128, stream_words=2),
    preset("sim-64"),
    preset("icebreaker"),
    preset("dense-small"),
    preset("tiny").replace(skip="ac", k_depth=16, a_depth=64, a_segments=16, psum_rows=2, c_rows=16),
)  # fmt: skip


def gradient(x, g, kernel, stride, padding, dilation):
    """Weight gradient of NHWC x and output gradient g, (kh, kw, Cin, Cout)."""
    x = np.pad(x.astype(np.int64), ((0, 0), *padding, (0, 0)))
    out = np.zeros((*kernel, x.shape[3], g.shape[3]), np.int64)
    spans = [(n - 1) * s + 1 for n, s in zip(g.shape[1:3], stride, strict=True)]
    for tap in np.ndindex(*kernel):
        first = [t * d for t, d in zip(tap, dilation, strict=True)]
        rows, columns = (slice(f, f + n, s) for f, n, s in zip(first, spans, stride, strict=True))
        out[tap] = np.tensordot(x[:, rows, columns], g.astype(np.int64), axes=((0, 1, 2), (0, 1, 2)))
    return out


def random_layer(rng, large):
    """Input shape, output shape, kernel, stride, padding and dilation."""
    while True:
        kernel, stride, dilation = (tuple(int(v) for v in rng.integers(1, high, 2)) for high in (6, 4, 4))
        padding = [[int(v) for v in rng.integers(0, 4, 2)] for _ in range(2)]
        if rng.random() < 0.4:
            stride = dilation = (1, 1)
            padding = [[k // 2, k // 2] for k in kernel]
        height, width = (int(v) for v in rng.integers(1, 18 if large else 10, 2))
        shape = (int(rng.integers(1, 4)), height, width, int(rng.integers(1, 30 if large else 9)))
        columns = int(rng.integers(1, 90 if large else 20))
        if all(dilation[i] * (kernel[i] - 1) < shape[1 + i] + sum(padding[i]) for i in (0, 1)):
            output = conv_output_shape(shape, (*kernel, shape[3], columns), stride, padding, dilation)
            return shape, output, kernel, stride, padding, dilation


def random_work(seed, rows, columns):
    """For half of the layers, row_work, column_work or both."""
    rng = np.random.default_rng([seed, 1])
    given = {"row_work": rng.random(rows), "column_work": rng.integers(0, 3, columns)}
    return {name: work for name, work in given.items() if rng.random() < 0.3}


def run_random(device, seed, large, mode="auto"):
    """Runs a random layer with random masks; checks the program, the values and (golden) the multiplies."""
    rng, config = np.random.default_rng(seed), device.config
    shape, output, *geometry = random_layer(rng, large)
    weights = (*geometry[0], shape[3], output[3])
    use_c, post = rng.random() < 0.4 and mode != "cluster", config.post and rng.random() < 0.3
    keep, kept = (rng.random(n) < 0.8 if rng.random() < 0.2 else np.ones(n, bool) for n in (shape[3], output[3]))
    if kept.sum() < config.lanes_per_cluster:
        mode = "rows"
    program = lower_weight_grad(config, shape, output, *geometry, use_c=use_c, post=Post(-99, 90) if post else None,
                                m_keep=keep, n_keep=kept, density=rng.random(2), mode=mode,
                                **random_work(seed, shape[3], output[3]))  # fmt: skip
    check_program(program)
    if mode != "auto":
        assert all(c.get("share", 0) == (mode == "cluster") for c in loads(program, "RUN"))
    x, g = (rng.integers(-limit, limit, s) * (rng.random(s) < rng.random())
            for s, limit in ((shape, 1 << config.a_width - 2), (output, 1 << config.b_width - 3)))  # fmt: skip
    own = [rng.random(s) < (0.5 if rng.random() < 0.3 else 1) for s in (shape, output)]
    wanted = np.ones(weights, bool)
    operands = {"a": by_channel(x), "b": g}
    if use_c:
        wanted = operands["c_mask"] = rng.random(weights) < rng.random()
    if post:
        bounds = {"bias": (-999, 999), "mult": (0, 1 << 24), "shift": (20, 35)}
        operands.update({name: rng.integers(*bound, output[3]) for name, bound in bounds.items()})
    dense = rng.random() < 0.15
    masks = {"a": by_channel(own[0]), "b": own[1]}
    bound = bind(program, operands, masks, dense)
    check_bound(config, bound.words, bound.last)
    got = execute(device, program, operands, masks, dense).outputs["c"]
    wanted = wanted & keep[:, None] & kept
    x, g = x * own[0], g * own[1]
    expected = gradient(x, g, *geometry)
    if post:
        expected = requantise_unchecked(expected, operands["bias"], operands["mult"], operands["shift"], -99, 90)
    assert np.array_equal(got, np.where(wanted, expected, 0))
    if config.skip == "abc" and config.counters and device.last_run is None:
        present = own if dense else (x != 0, g != 0)
        assert read_counters(device)["multiply"] == (gradient(*present, *geometry) * wanted).sum()


@pytest.mark.parametrize("which", range(len(CONFIGS)))
def test_golden(which):
    config = CONFIGS[which]
    with open_device("golden", config) as device:
        for seed in range(20 if which else 60):
            run_random(device, 100 * which + seed, config.lanes > 2)


@pytest.mark.parametrize("psum_in_pe", [False, True])
@pytest.mark.parametrize("which", [1, 2, 3, 4])
def test_golden_cluster(which, psum_in_pe):
    with open_device("golden", CONFIGS[which].replace(psum_in_pe=psum_in_pe)) as device:
        for seed in range(12):
            run_random(device, 3000 + 100 * which + seed, True, "cluster")


@pytest.mark.parametrize(("which", "mode"), [(1, "auto"), (3, "cluster"), (4, "auto"), (4, "cluster")])
def test_cycle(which, mode):
    with open_device("cycle", CONFIGS[which]) as device:
        for seed in range(4):
            run_random(device, 7000 + 100 * which + seed, True, mode)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1, 3])
def test_rtl(which):
    with open_device("rtl", CONFIGS[which]) as device:
        for seed in range(10):
            run_random(device, 5000 + 100 * which + seed, False)


@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIGS[3], VARIANTS["K in PEs, abc"]], ids=["sums in clusters", "sums in PEs"])
def test_rtl_cluster(config):
    with open_device("rtl", config) as device:
        for seed in range(8):
            run_random(device, 6000 + seed, False, "cluster")


def test_rows_are_shared_within_clusters():
    """The clusters have rows of their own, lanes columns of their own; not with C masks, which lanes cannot share."""
    layer = preset("sim-64"), (1, 14, 14, 128), (1, 14, 14, 256), 3, 1, 1
    for mode, share in (("rows", 0), ("cluster", 1)):
        program = lower_weight_grad(*layer, density=(0.2, 0.04), trust=True, mode=mode)
        assert {c.get("share", 0) for c in loads(program, "RUN")} == {share}
    assert {c["lanes"] for c in loads(program, "LOAD_B")} == {1, 2, 4, 8}
    assert {c["clusters"] for c in loads(program, "LOAD_A")} == {1, 2, 4, 8}
    assert all(c["columns"] == 64 for c in loads(program, "LOAD_B"))
    assert 15 in {c["clusters"] for c in loads(program, "LOAD_B")}  # all clusters hold the same columns
    masked = lower_weight_grad(*layer, density=(0.2, 0.04), trust=True, use_c=True)
    assert not any(c.get("share") for c in loads(masked, "RUN"))


def values(program, x, g, **operands):
    with open_device("golden", program.config) as device:
        return execute(device, program, {"a": by_channel(x), "b": g, **operands}).outputs["c"]


def loads(program, op, clusters=None):
    return [c for c in program.commands if c["op"] == op and clusters in (None, c["clusters"])]


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding", "dilation"),
    [
        ((1, 1, 1, 3), (3, 3), 1, 1, 1),  # taps that meet no pixel
        ((2, 2, 2, 2), (2, 2), 3, 3, 2),
        ((1, 1, 2, 1), (1, 1), 3, 5, 1),  # outputs that meet no pixel
        ((1, 1, 1, 2), (1, 1), 2, (1, 1), 1),  # neither: a gradient of zeros
        ((1, 40, 40, 1), (2, 2), 1, 0, 39),  # taps farther apart than a bank is deep
        ((1, 3, 300, 2), (1, 5), 1, (0, 2), 1),  # rows longer than a bank is deep
        ((5, 2, 3, 4), (2, 3), 1, 1, 1),  # several images in a K tile
        ((1, 6, 5, 40), (5, 5), 1, 2, 1),  # more taps than rows of partial sums
    ],
)
@pytest.mark.parametrize("post", [None, Post(-50, 50)])
def test_corners(shape, kernel, stride, padding, dilation, post):
    rng = np.random.default_rng(3)
    for config in (preset("tiny"), CONFIGS[3]):
        output = conv_output_shape(shape, (*kernel, shape[3], 5), stride, padding, dilation)
        program = lower_weight_grad(config, shape, output, kernel, stride, padding, dilation, post=post)
        check_program(program)
        x, g = rng.integers(-9, 10, shape), rng.integers(-9, 10, output)
        parameters = {"bias": np.arange(5) - 2, "mult": np.full(5, 3 << 18), "shift": np.full(5, 20)}
        both = padding if isinstance(padding, tuple) else (padding, padding)
        expected = gradient(x, g, kernel, (stride,) * 2, [(p, p) for p in both], (dilation,) * 2)
        if post:
            expected = requantise_unchecked(expected, *parameters.values(), -50, 50)
        assert np.array_equal(values(program, x, g, **(parameters if post else {})), expected)


def test_one_load_serves_all_taps():
    """3x3, stride 1: nine rows of C share the pixels of a strip; off-image ones are never loaded."""
    layer = Layer(1, 24, 16, 16, (3, 3), (16, 16))
    y, x = phases(16, 3, 1, 1, 1, 16)[0], phases(16, 3, 1, 1, 1, 16)[0]
    part = TapsPart(layer, y, x, np.arange(24))
    assert len(part.rows) == 9 * 24
    for tiles in (1, 2):
        cut = Cut((Columns.of(x, x.outputs),), 8, 1, tiles)
        made = list(position_tiles(SMALL, layer, y, x, cut))
        assert len({tile.a_key for tile in made}) == 2 // tiles
        for tile in made:
            assert len(tile.columns) == 16
            assert pack.count_ranges(part.segments(tile)) == 24 * (9 if tiles == 1 else 16)
            # 8 rows of 16 positions, an empty row behind each and one in front
            assert len(tile.b_rows) == 8 * 17 + 1 and (tile.b_rows == 256).sum() == 9


def test_strips_overlap_by_the_halo():
    """A strip of A serves several K tiles; its load is spread over the steps before."""
    program = lower_weight_grad(preset("sim-64"), (1, 56, 56, 12), (1, 56, 56, 64), 3, 1, 1, density=(0.5, 0.1))
    first = loads(program, "LOAD_A", 1)
    elements = sum(c["segments"] * c["length"] for c in first)
    assert elements < 1.3 * 56 * 56 * 12 / 4
    assert len(first) > len([c for c in first if not c.get("append")]) > 1
    x, g = np.ones((1, 56, 56, 12), int), np.ones((1, 56, 56, 64), int)
    assert values(program, x, g)[:, 0, 0, 0].tolist() == [55 * 55, 56 * 55, 55 * 55]


def test_removed_channels_are_not_loaded():
    keep = np.arange(8) % 2 == 0
    full = lower_weight_grad(SMALL, (1, 8, 8, 8), (1, 8, 8, 8), 3, 1, 1)
    half = lower_weight_grad(SMALL, (1, 8, 8, 8), (1, 8, 8, 8), 3, 1, 1, m_keep=keep, n_keep=keep)
    amounts = [sum(c["segments"] for c in loads(p, "LOAD_A")) for p in (full, half)]
    assert amounts == [64, 32] and {c["columns"] for c in loads(half, "LOAD_B")} == {4}
    none = lower_weight_grad(SMALL, (1, 8, 8, 8), (1, 8, 8, 8), 3, 1, 1, m_keep=[])
    assert not values(none, np.ones((1, 8, 8, 8), int), np.ones((1, 8, 8, 8), int)).any()


def test_phases():
    """Every tap is in one phase, and there meets the pixel that the convolution's definition says."""
    for size, taps, stride, pad, dilation in np.ndindex(9, 5, 4, 4, 4):
        args = size + 1, taps + 1, stride + 1, pad, dilation + 1
        outputs = (args[0] + 2 * pad - args[4] * taps - 1) // args[2] + 1
        if outputs < 1:
            continue
        met = {}
        for phase in phases(*args, outputs):
            for i, tap in enumerate(phase.taps):
                for o in phase.outputs:
                    j = o + phase.first + i * phase.step
                    if 0 <= j < phase.pixels:
                        met[tap, o] = phase.stride * j + phase.start
            assert len(phase.part(0, 1).taps) == 1
        pixel = {(t, o): o * args[2] + t * args[4] - pad for t in range(args[1]) for o in range(outputs)}
        assert met == {key: x for key, x in pixel.items() if 0 <= x < args[0]}
        assert sorted(t for p in phases(*args, outputs) for t in p.taps) == list(range(args[1]))


def test_overflow_is_bounded_by_windows():
    rng = np.random.default_rng(5)
    x = rng.integers(-200, 201, (2, 3, 5, 6))
    window = {"kernel": [2, 3], "stride": [2, 1], "dilation": [1, 2], "pad": [1, 2], "outputs": [3, 6]}
    expected = np.zeros((2, 3, 6), int)
    for n, oy, ox, ky, kx in np.ndindex(2, 3, 6, 2, 3):
        iy, ix = 2 * oy + ky - 1, ox + 2 * kx - 2
        if 0 <= iy < 5 and 0 <= ix < 6:
            expected[n, oy, ox] = max(expected[n, oy, ox], np.abs(x[n, :, iy, ix]).max())
    assert (window_maxima(x, window) == expected.reshape(1, -1)).all()
    config = SMALL.replace(acc_width=20)
    program = lower_weight_grad(config, (1, 6, 6, 1), (1, 6, 6, 1), 1)
    ones = np.ones((1, 6, 6, 1), int)
    bind(program, {"a": by_channel(ones * 100), "b": ones * 145})
    with pytest.raises(MaskworkValueError, match="results could reach 525600 in column 0"):
        bind(program, {"a": by_channel(ones * 100), "b": ones * 146})


def test_empty_rows_of_b():
    program = lower_matmul(SMALL, 2, 3, 4)
    load = loads(program, "LOAD_B")[0]
    a, b = np.arange(1, 7).reshape(2, 3), np.arange(12).reshape(3, 4)
    load["data"]["rows"] = [[3, 1, 1], [1, 2, 1]]
    program = Program.from_json(program.to_json())
    check_program(program)
    for dense in (False, True):
        with open_device("golden", SMALL) as device:
            result = execute(device, program, {"a": a, "b": b}, dense=dense)
        assert (result.outputs["c"] == a[:, 1:] @ b[1:]).all()
        assert read_counters(device)["multiply"] == 2 * (4 + 4)
    for op, row in (("LOAD_B", 4), ("LOAD_A", 2)):
        program = lower_matmul(SMALL, 2, 3, 4)
        loads(program, op)[0]["data"]["rows"] = [[row, loads(program, op)[0].get("segments", 3), 0]]
        with pytest.raises(ProgramError, match=r"data\.rows must be"):
            check_program(program)


def test_spread_loads():
    ranges = [[0, 3, 1], [10, 2, 5], [7, 4, 0]]
    index = pack.expand_ranges(ranges)
    for start in range(9):
        for stop in range(start, 10):
            assert pack.expand_ranges(slice_ranges(ranges, start, stop)).tolist() == index[start:stop].tolist()
    commands = [{"op": "BEGIN"}]
    for bank in (0, 1, 0):
        data = {"operand": "a", "rows": [[0, 5, 1]], "columns": [[0, 1, 1]]}
        commands.append({"op": "LOAD_A", "clusters": 1, "bank": bank, "segments": 5, "length": 1, "data": data})
        for _ in range(3):
            commands += [{"op": "LOAD_B", "clusters": 1}, {"op": "RUN", "clusters": 1, "a_bank": bank}]
    names = " ".join(c["op"][-3:] + str(c["segments"] if "segments" in c else "") for c in spread_loads(commands))
    # bank 1 was never used: its pieces follow each RUN; bank 0 was, up to the third
    assert names.replace("D_", "") == ("GIN A5 B RUN A1 B RUN A2 B RUN A2 B RUN A1 B RUN A2 B RUN A2 B RUN B RUN B RUN")
    assert [c.get("append", 0) for c in spread_loads(commands) if "segments" in c] == [0, 0, 1, 1, 0, 1, 1]


def test_errors():
    good = {"config": SMALL, "shape": (1, 8, 8, 4), "grad_shape": (1, 8, 8, 4), "kernel": 3, "padding": 1}
    for changes, error, message in (
        (
            {"grad_shape": (1, 8, 7, 4)},
            MaskworkValueError,
            r"gradient shape must be .*\(1, 8, 8, 4\), not \(1, 8, 7, 4\)",
        ),
        ({"grad_shape": (8, 4)}, MaskworkValueError, "shapes must be"),
        ({"kernel": 0}, MaskworkValueError, "kernel must be"),
        ({"kernel": 12}, MaskworkValueError, "must fit the padded input"),
        ({"density": 0.5}, MaskworkTypeError, "density must be two numbers"),
        ({"density": (0.5, 2)}, MaskworkValueError, "density must be two numbers from 0 to 1"),
        ({"m_keep": [9]}, MaskworkValueError, "m_keep"),
        ({"post": 3}, MaskworkTypeError, "post must have low and high"),
        ({"mode": "share"}, MaskworkValueError, 'mode must be "auto", "rows" or "cluster", not \'share\''),
        ({"row_work": [1, 2, 3]}, MaskworkValueError, r"row_work must be 4 numbers of 0 or more, not \[1, 2, 3\]"),
        ({"row_work": [1, 2, 3, "x"]}, MaskworkValueError, "row_work must be 4 numbers"),
        ({"column_work": [1, 2, 3, -4]}, MaskworkValueError, "column_work must be 4 numbers"),
        ({"mode": "cluster", "use_c": True}, ProgramError, 'mode "cluster" needs no C mask'),
        ({"mode": "cluster", "n_keep": [0, 1, 2]}, ProgramError, r"as many columns as these \(4\)"),
    ):
        with pytest.raises(error, match=message):
            lower_weight_grad(**{**good, **changes})
    assert by_channel(np.zeros((1, 2, 3, 4))).shape == (1, 4, 2, 3)
