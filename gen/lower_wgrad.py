"""Lowering of a convolution's weight gradient to a program, as an implicit matrix product.

C[(ky, kx, ci), co] is the sum over positions p = (n, oy, ox) of X[n, sy*oy + dy*ky - top, sx*ox + dx*kx - left, ci]
times G[p, co]: the input, by channel, streams; the output gradient is resident; K runs over positions. See
:mod:`~maskwork.gen.lower_wgrad_tiles` for how they lie in the banks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from maskwork.gen import pack
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError, ProgramError
from maskwork.gen.lower_conv import conv_output_shape, parse_pads, parse_pair
from maskwork.gen.lower_costs import LOAD_OVERHEAD, RUN_OVERHEAD, Costs, Density, densities, paced, total
from maskwork.gen.lower_matmul import add_operands, keep_indices
from maskwork.gen.lower_schedule import (
    Indices,
    Part,
    Post,
    Scheduler,
    result_words,
    split,
    split_n,
    split_shared,
    traffic,
)
from maskwork.gen.lower_spread import spread_loads
from maskwork.gen.lower_wgrad_tiles import (
    Columns,
    Cut,
    Layer,
    Phase,
    PositionTile,
    TapsPart,
    empty_tile,
    phases,
    position_tiles,
    ranges,
)
from maskwork.gen.program import Program

MODES = ("auto", "rows", "cluster")
"""Rows of C are dealt to lanes, or to the clusters' lanes together, which hold different columns; or what is faster."""

_TRIES = 5
"""Sizes of each kind that the search looks at."""


@dataclass(frozen=True)
class _Plan:
    """A way to run one pair of phases: positions, kernel rows and channels of a part."""

    cost: float
    cut: Cut
    down: int
    channels: int
    m_outer: bool
    share: str


def _sizes(total: int, most: int, tries: int = _TRIES) -> list[int]:
    """The largest sizes that cut ``total`` evenly in pieces of at most ``most``."""
    if most < 1:
        return []
    least = -(-total // most)
    sizes = dict.fromkeys(-(-total // pieces) for pieces in range(least, total + 1))
    return list(itertools.islice(sizes, tries))


def _cuts(config: Config, layer: Layer, y: Phase, x: Phase) -> Iterator[Cut]:
    """Ways to cut the positions into K tiles (and strips of one tile) that fit the weight bank and the FIFO."""
    tried = 0
    for width in _sizes(len(x.outputs), config.k_depth, len(x.outputs)):
        columns = tuple(Columns.of(x, r) for r in ranges(x.outputs, width))
        pitch, length = (max(getattr(c, name) for c in columns) for name in ("pitch", "length"))
        words = pack.segment_words(length, config.fetch_width)
        most = min(config.k_depth // pitch, (config.fifo_depth - pack.row_words(config, length, 0)) // words,
                   config.a_segments, config.a_depth // words)  # fmt: skip
        if most < 1:
            continue
        tried += 1
        if most >= len(y.outputs):
            for images in _sizes(layer.images, most // len(y.outputs))[:2]:
                yield Cut(columns, len(y.outputs), images, 1)
        for rows in sorted({size for m in (most, most // 2, 1) for size in _sizes(len(y.outputs), m)[:1]}):
            if rows < len(y.outputs):
                yield Cut(columns, rows, 1, 1)
        if tried == _TRIES:
            return


def _shares(config: Config, n: int, use_c: bool, mode: str) -> list[str]:
    """Values of ``share`` that a product of n columns may have."""
    possible = not use_c and config.lanes_per_cluster > 1 and n >= config.lanes_per_cluster
    if mode == "cluster":
        return ["cluster"] if possible else []
    return ["no", "cluster"] if mode == "auto" and possible and n > config.tile_columns else ["no"]


def _plans(config: Config, layer: Layer, y: Phase, x: Phase, channels: int, n: int, use_c: bool,
           density: Density, trust: bool, share: str) -> Iterator[_Plan]:  # fmt: skip
    lanes = config.lanes_per_cluster if share == "cluster" else 1
    tiles_n = -(-n // (lanes * config.tile_columns))
    costs = Costs(config, -(-n // (lanes * tiles_n)), density, use_c)
    across = len(x.taps)
    for cut in _cuts(config, layer, y, x):
        length = max(c.length for c in cut.columns)
        segments = costs.bank_segments(length, trust)
        whole = cut.rows >= len(y.outputs)
        column_units = -(-layer.images // cut.images) if whole else -(-len(y.outputs) // cut.rows)
        k_tiles = column_units * len(cut.columns) * (1 if whole else layer.images)
        cap = min(config.c_rows if use_c else 32767, 32767)
        if k_tiles > 1:
            cap = min(cap, config.psum_rows * config.lanes_per_cluster // lanes)
        for down in _sizes(len(y.taps), min(len(y.taps), cap // across)):
            low = min(y.pixels, cut.rows + (down - 1) * y.step) * cut.images
            for size in _sizes(channels, min(channels, cap // (across * down), segments // low)):
                for tiles in sorted({min(column_units, t) for t in (1, 2, 4, 8, 16, column_units)}):
                    rows = min(y.pixels, cut.rows * (1 if whole else tiles) + (down - 1) * y.step)
                    strip = rows * cut.images * (tiles if whole else 1) * size
                    if strip <= segments:
                        one = Cut(cut.columns, cut.rows, cut.images, tiles)
                        units = column_units * (1 if whole else layer.images)
                        yield from _priced(costs, (len(y.taps), across, down), one, channels, size, units, strip, n,
                                           share)  # fmt: skip


def _priced(costs: Costs, taps: tuple[int, int, int], cut: Cut, channels: int, size: int, units: int,
            strip: int, n: int, share: str) -> Iterator[_Plan]:  # fmt: skip
    """A plan in both loop orders with its estimated cycles."""
    config = costs.config
    all_down, across, down = taps
    parts = -(-channels // size) * -(-all_down // down)
    shared = share == "cluster"
    lanes = config.lanes_per_cluster if shared else 1
    blocks, tiles_n = -(-parts // config.clusters), -(-n // (lanes * config.tile_columns))
    k_tiles, strips = units * len(cut.columns), -(-units // cut.tiles) * len(cut.columns)
    length = sum(c.length for c in cut.columns) / len(cut.columns)
    width = sum(len(c.outputs) for c in cut.columns) / len(cut.columns)
    pads = sum(c.pitch for c in cut.columns) / len(cut.columns) - width
    high = cut.rows * cut.images
    a_load = strip * costs.segment(max(c.length for c in cut.columns)) + LOAD_OVERHEAD
    b_load = lanes * (high * (width * costs.b_row() + pads * costs.b_row(0.0)) + LOAD_OVERHEAD)
    out = result_words(config, parts * size * across * down * tiles_n * lanes, channels * across * all_down * n)
    out /= config.stream_words
    rows, steps = size * across * down, blocks * tiles_n * k_tiles
    each, last = (costs.step(rows, high * width, high, high * length, final, shared) for final in (False, True))
    first = a_load * min(parts, config.clusters) + b_load
    for m_outer in (True, False):
        times = blocks, strips, k_tiles, tiles_n, m_outer
        a_loads = traffic(a_load * strips * parts, 0.0, *times)
        b_loads = traffic(0.0, b_load * k_tiles * tiles_n, *times)
        runs = RUN_OVERHEAD * min(parts, config.clusters, 2)
        load = a_loads + b_loads + runs * steps
        groups = blocks * tiles_n
        compute = groups * ((k_tiles - 1) * each + last)
        step_load = b_load + a_loads / steps + runs
        waits = groups * paced(k_tiles, each, last, step_load, b_loads / b_load / groups) - compute
        cost = total(load, compute, out, first, last, waits)
        yield _Plan(cost, cut, down, size, m_outer, share)


def _groups(config: Config, layer: Layer, y: Phase, x: Phase, channels: int, n: int, use_c: bool,
            density: Density, trust: bool, mode: str) -> list[tuple[Phase, _Plan]]:  # fmt: skip
    """Groups of the kernel columns of ``x`` that are run together, with the best plan for each."""
    shares = _shares(config, n, use_c, mode)
    if not shares:
        raise ProgramError(
            'mode "cluster" needs no C mask, more than one lane a cluster and as many columns as these '
            f'({config.lanes_per_cluster}); use mode "rows"'
        )
    best: list[tuple[Phase, _Plan]] = []
    best_cost = math.inf
    for across in _sizes(len(x.taps), len(x.taps)):
        groups: list[tuple[Phase, _Plan]] = []
        for first in range(0, len(x.taps), across):
            own = x.part(first, across)
            if y.outputs and own.outputs:
                plans = (_plans(config, layer, y, own, channels, n, use_c, density, trust, s) for s in shares)
                plan = min(itertools.chain.from_iterable(plans), key=lambda p: p.cost, default=None)
            else:
                cap = min(config.c_rows if use_c else 32767, 32767) // across
                plan = _Plan(0.0, Cut((), 1, 1, 1), 1, min(channels, cap), True, shares[0]) if cap else None
            if plan is not None:
                groups.append((own, plan))
        cost = sum(plan.cost for _, plan in groups)
        if len(groups) == -(-len(x.taps) // across) and cost < best_cost:
            best, best_cost = groups, cost
    if not best:
        raise ProgramError("one output position does not fit: raise k_depth, a_segments, a_depth or fifo_depth")
    return best


def _schedule(scheduler: Scheduler, layer: Layer, y: Phase, x: Phase, channels: Indices, columns: Indices,
              density: Density, trust: bool, mode: str) -> None:  # fmt: skip
    """Emit the rows of C of two phases."""
    config = scheduler.program.config
    for own, plan in _groups(config, layer, y, x, len(channels), len(columns), scheduler.use_c, density, trust, mode):
        tiles: list[PositionTile] = []
        if y.outputs and own.outputs:
            tiles = list(position_tiles(config, layer, y, own, plan.cut))
        parts: list[Part] = [
            TapsPart(layer, y.part(first, plan.down), own, piece)
            for first in range(0, len(y.taps), plan.down)
            for piece in split(channels, -(-len(channels) // plan.channels))
        ]
        blocks = [parts[i : i + config.clusters] for i in range(0, len(parts), config.clusters)]
        if plan.share == "cluster":
            n_tiles = split_shared(config, columns, config.lanes_per_cluster)
        else:
            n_tiles = split_n(config, columns)
        scheduler.run(blocks, tiles or [empty_tile(layer)], n_tiles, plan.m_outer, plan.share)


def by_channel(values: Any) -> Any:
    """An NHWC array (or mask) as operand "a" of a weight gradient wants it: (N, C, H, W)."""
    return np.ascontiguousarray(np.moveaxis(np.asarray(values), -1, 1))


def _density(value: Any) -> Density:
    try:
        a, b = (float(v) for v in value)
    except (TypeError, ValueError):
        raise MaskworkTypeError(f"density must be two numbers (of a and of b), not {value!r}") from None
    if not (0 <= a <= 1 and 0 <= b <= 1):
        raise MaskworkValueError(f"density must be two numbers from 0 to 1 (of a and of b), not {value!r}")
    return densities((a, b))


def lower_weight_grad(
    config: Config,
    shape: Sequence[int],
    grad_shape: Sequence[int],
    kernel: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    *,
    use_c: bool = False,
    post: Any = None,
    m_keep: Any = None,
    n_keep: Any = None,
    density: Any = (0.5, 0.5),
    trust: bool = False,
    mode: str = "auto",
) -> Program:
    """Lower a convolution's weight gradient to a program.

    Operands: "a", the layer's input **by channel**, (N, Cin, H, W) (an image row is a segment: whoever binds changes
    the layout, see :func:`by_channel`); "b", the output gradient (N, OH, OW, Cout); "c_mask" with ``use_c``. Output
    "c", (kh, kw, Cin, Cout). Pixels off the image are neither loaded nor multiplied.

    The tiling (positions of a K tile and of a strip of A, taps and channels of a block, loop order) is the one with
    the fewest cycles by :func:`~maskwork.gen.lower_costs.total`. Buffers are sized for dense data. Every block
    of rows reads all of B; a block with more than one K tile has at most psum_rows * lanes rows.

    Rows of C are dealt to the lanes, which all hold the same columns (mode "rows"), or to the clusters, whose lanes
    hold different columns (mode "cluster", without C masks): then a word that a cluster feeds serves all of its lanes,
    and blocks with more than one K tile have at most psum_rows * clusters rows. "auto" takes what seems faster.

    Args:
        config: the accelerator.
        shape: the layer's input as :func:`~maskwork.gen.lower_conv.lower_conv` has it, (N, H, W, Cin).
        grad_shape: its output, (N, OH, OW, Cout).
        kernel: integer, or (kh, kw).
        stride: integer, or (rows, columns).
        padding: zeros around the input: integer, (rows, columns) or ((top, bottom), (left, right)).
        dilation: integer, or (rows, columns).
        use_c: there is an operand "c_mask" of C's shape: only these results are wanted.
        post: None, or requantisation (:class:`Post`, or a mapping with low and high).
        m_keep: vector mask over input channels: removed ones are not loaded and read as 0.
        n_keep: vector mask over output channels: removed ones are not loaded and read as 0.
        density: expected densities of a and b, for the choice of tiles.
        mode: "auto", "rows" or "cluster".
        trust: activation banks are filled as that density of a lets one expect, else so that any would fit.

    Raises:
        MaskworkTypeError, MaskworkValueError: for shapes or parameters that fit no convolution.
        ProgramError: if the configuration cannot run it; says what to raise.
    """
    if mode not in MODES:
        raise MaskworkValueError(f'mode must be "auto", "rows" or "cluster", not {mode!r}')
    kh, kw = parse_pair(kernel, "kernel", 1)
    if len(grad_shape) != 4 or len(shape) != 4:
        raise MaskworkValueError(
            f"input and gradient shapes must be (N, H, W, channels), not {tuple(shape)} and {tuple(grad_shape)}"
        )
    weights = (kh, kw, int(shape[3]), int(grad_shape[3]))
    output = conv_output_shape(shape, weights, stride, padding, dilation)
    if output != tuple(grad_shape):
        raise MaskworkValueError(f"gradient shape must be that of the convolution's output, {output}, not "
                                 f"{tuple(grad_shape)}")  # fmt: skip
    strides, dilations, pads = parse_pair(stride, "stride", 1), parse_pair(dilation, "dilation", 1), parse_pads(padding)
    the_post = Post.of(post, config)
    channels = keep_indices(m_keep, weights[2], "m_keep")
    columns = keep_indices(n_keep, weights[3], "n_keep")
    expected = _density(density)
    images, height, width = (int(v) for v in shape[:3])
    program = Program(config)
    add_operands(program, (images, weights[2], height, width), output, weights, use_c, the_post)
    window = {"kernel": [kh, kw], "stride": list(strides), "dilation": list(dilations),
              "pad": [pads[0][0], pads[1][0]], "outputs": list(output[1:3])}  # fmt: skip
    program.products.append({"a": "a", "b": "b", "window": window})
    scheduler = Scheduler(program, the_post, use_c)
    scheduler.begin()
    if len(channels) and len(columns):
        layer = Layer(images, weights[2], height, width, (kh, kw), (output[1], output[2]))
        ys, xs = (phases(int(shape[1 + i]), weights[i], strides[i], pads[i][0], dilations[i], output[1 + i])
                  for i in (0, 1))  # fmt: skip
        for y, x in itertools.product(ys, xs):
            _schedule(scheduler, layer, y, x, channels, columns, expected, trust, mode)
        program.commands = spread_loads(program.commands)
    scheduler.end()
    return program
