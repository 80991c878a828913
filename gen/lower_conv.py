"""Lowering of a convolution to a program, as an implicit matrix product: im2col is addresses, never data.

A segment is one pixel's channels; a block is a rectangle of output positions, loaded as the rectangle of input pixels
they meet. Where stride and dilation leave pixels out, an axis is thinned first: position i = step * j + phase, and
everything below counts in j. Taps off the image are skipped by RUN's x and y limits: padding is never loaded.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from maskwork.gen import pack
from maskwork.gen.config import CHUNK, Config
from maskwork.gen.errors import MaskworkValueError, ProgramError
from maskwork.gen.lower_costs import LOAD_OVERHEAD, RUN_OVERHEAD, Costs, Density, densities, total
from maskwork.gen.lower_matmul import add_operands, keep_indices, schedule_matmul
from maskwork.gen.lower_schedule import (
    Indices,
    KTile,
    Part,
    Post,
    Scheduler,
    deltas,
    k_limit,
    result_words,
    split,
    split_n,
    traffic,
    wrap16,
)
from maskwork.gen.lower_spread import spread_loads
from maskwork.gen.program import Program


@dataclass(frozen=True)
class Axis:
    """One spatial axis, thinned to the pixels that the kernel can meet. All but ``outputs`` count thinned pixels."""

    outputs: int
    pixels: int
    taps: int
    stride: int
    dilation: int
    pad: int
    step: int
    phase: int

    @classmethod
    def of(cls, size: int, taps: int, stride: int, pads: tuple[int, int], dilation: int) -> Axis:
        """From the sizes in pixels of the image."""
        outputs = (size + sum(pads) - dilation * (taps - 1) - 1) // stride + 1
        step = stride if taps == 1 else math.gcd(stride, dilation)
        phase = -pads[0] % step
        if phase >= size:
            step, phase = 1, 0
        pad = (pads[0] + phase) // step
        dilation = dilation // step if taps > 1 else 1
        return cls(outputs, -(-(size - phase) // step), taps, stride // step, dilation, pad, step, phase)

    def window(self, first: int, count: int, tap0: int, tap1: int) -> tuple[int, int]:
        """First pixel and end of what ``count`` outputs meet with taps tap0..tap1-1: one pixel at least, on the
        image.
        """
        low = first * self.stride + tap0 * self.dilation - self.pad
        high = (first + count - 1) * self.stride + (tap1 - 1) * self.dilation - self.pad + 1
        low = min(max(low, 0), self.pixels - 1)
        return low, min(max(high, low + 1), self.pixels)

    def reach(self, count: int, taps: int) -> int:
        """Most pixels that ``count`` outputs meet with so many taps side by side."""
        return min(self.pixels, (count - 1) * self.stride + (taps - 1) * self.dilation + 1)


@dataclass(frozen=True)
class Geometry:
    """Images, thinned axes and channels of a convolution."""

    images: int
    y: Axis
    x: Axis
    height: int
    width: int
    channels: int


class ConvPart(Part):
    """A rectangle of output positions of some images."""

    def __init__(self, geometry: Geometry, images: range, ys: range, xs: range) -> None:
        g = self._g = geometry
        self._images, self._ys, self._xs = images, ys, xs
        image, y, x = np.ix_(np.array(images), np.array(ys), np.array(xs))
        self.rows = ((image * g.y.outputs + y) * g.x.outputs + x).reshape(-1)
        self._segments: dict[tuple[int, int, int, int], pack.Ranges] = {}

    def _windows(self, halo: tuple[int, int, int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        r0, r1, c0, c1 = halo
        return (
            self._g.y.window(self._ys.start, len(self._ys), r0, r1),
            self._g.x.window(self._xs.start, len(self._xs), c0, c1),
        )

    def segments(self, tile: KTile) -> pack.Ranges:
        """Pixels to load, image by image and row by row."""
        if tile.halo not in self._segments:
            g = self._g
            (y0, y1), (x0, x1) = self._windows(tile.halo)
            ys = np.arange(y0, y1) * g.y.step + g.y.phase
            xs = np.arange(x0, x1) * g.x.step + g.x.phase
            image, y, x = np.ix_(np.array(self._images), ys, xs)
            self._segments[tile.halo] = pack.to_ranges(((image * g.height + y) * g.width + x).reshape(-1))
        return self._segments[tile.halo]

    def run_fields(self, tile: KTile) -> dict[str, int]:
        """Rows: x inside y inside images. Taps: kernel columns inside kernel rows. x and y count from the first
        pixel loaded.
        """
        g = self._g
        (y0, y1), (x0, x1) = self._windows(tile.halo)
        height, width = y1 - y0, x1 - x0
        r0, r1, c0, c1 = tile.taps
        y = self._ys.start * g.y.stride + r0 * g.y.dilation - g.y.pad - y0
        x = self._xs.start * g.x.stride + c0 * g.x.dilation - g.x.pad - x0
        length = len(tile.columns)
        across, down = (len(self._xs) - 1) * g.x.stride, (len(self._ys) - 1) * g.y.stride
        back = (c1 - c0 - 1) * g.x.dilation
        return {
            "m0": len(self._xs) - 1,
            "m1": len(self._ys) - 1,
            "t0": c1 - c0 - 1,
            "t1": r1 - r0 - 1,
            "x_limit": width,
            "y_limit": height,
            "seg": wrap16(y * width + x),
            "k": 0,
            "x": wrap16(x),
            "y": wrap16(y),
            **deltas(
                m2=(height * width - down * width - across, 0, -across, -down),
                m1=(g.y.stride * width - across, 0, -across, g.y.stride),
                m0=(g.x.stride, 0, g.x.stride, 0),
                t1=(g.y.dilation * width - back, length, -back, g.y.dilation),
                t0=(g.x.dilation, length, g.x.dilation, 0),
            ),
        }


def parse_pair(value: Any, name: str, least: int) -> tuple[int, int]:
    """A parameter given as an integer, or two (rows, columns), of at least ``least``.

    Raises:
        MaskworkValueError: for anything else.
    """
    values = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(values) != 2 or not all(isinstance(v, int | np.integer) and v >= least for v in values):
        raise MaskworkValueError(
            f"{name} must be an integer of at least {least}, or two (rows, columns), not {value!r}"
        )
    return int(values[0]), int(values[1])


def parse_pads(value: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding as ((top, bottom), (left, right)), from that, (rows, columns) or an integer.

    Raises:
        MaskworkValueError: for anything else.
    """
    if isinstance(value, Sequence) and any(isinstance(v, Sequence) for v in value):
        if len(value) != 2:
            raise MaskworkValueError(f"padding must be ((top, bottom), (left, right)), not {value!r}")
        return parse_pair(value[0], "padding", 0), parse_pair(value[1], "padding", 0)
    y, x = parse_pair(value, "padding", 0)
    return (y, y), (x, x)


def conv_output_shape(
    shape: Sequence[int], weights: Sequence[int], stride: Any = 1, padding: Any = 0, dilation: Any = 1
) -> tuple[int, int, int, int]:
    """Shape (N, OH, OW, cout) of a convolution of NHWC ``shape`` with weights (kh, kw, cin, cout).

    Raises:
        MaskworkValueError: for shapes or parameters that fit no convolution.
    """
    if len(shape) != 4 or min(shape) < 1:
        raise MaskworkValueError(f"input shape must be four positive sizes (N, H, W, C), not {tuple(shape)}")
    if len(weights) != 4 or min(weights) < 1:
        raise MaskworkValueError(f"weight shape must be four positive sizes (kh, kw, cin, cout), not {tuple(weights)}")
    if shape[3] != weights[2]:
        raise MaskworkValueError(f"weights must have the input's {shape[3]} channels (cin), not {weights[2]}")
    strides, dilations, pads = parse_pair(stride, "stride", 1), parse_pair(dilation, "dilation", 1), parse_pads(padding)
    sizes = []
    for axis, name in enumerate(("height", "width")):
        room = shape[1 + axis] + sum(pads[axis]) - dilations[axis] * (weights[axis] - 1) - 1
        if room < 0:
            raise MaskworkValueError(
                f"the kernel's {name} {weights[axis]} (dilation {dilations[axis]}) must fit the padded input's, "
                f"{shape[1 + axis] + sum(pads[axis])}"
            )
        sizes.append(room // strides[axis] + 1)
    return int(shape[0]), sizes[0], sizes[1], int(weights[3])


# ---------------------------------------------------------------------- choice of tiles


@dataclass(frozen=True)
class _Cut:
    """How K is cut: taps of a tile (rows, columns), channel tiles, and whether pixels are loaded for all taps."""

    taps: tuple[int, int]
    channels: int
    whole: bool


@dataclass(frozen=True)
class _Plan:
    cost: float
    cut: _Cut
    images: int
    ys: int
    xs: int
    m_outer: bool


def _sizes(total: int) -> list[int]:
    """Sizes that cut ``total`` evenly, largest first."""
    return sorted({-(-total // pieces) for pieces in range(1, total + 1)}, reverse=True)


def _cuts(config: Config, geometry: Geometry, channels: int) -> Iterator[_Cut]:
    kh, kw = geometry.y.taps, geometry.x.taps
    for rows, columns in [*((r, kw) for r in _sizes(kh)), *((1, c) for c in _sizes(kw)[1:])]:
        limit = k_limit(config, rows * columns)
        if limit < 1:
            continue
        least = -(-channels // limit)
        for pieces in sorted({min(channels, least * f) for f in (1, 2, 4)}):
            size = -(-channels // pieces)
            rounded = -(-size // CHUNK) * CHUNK
            size = min(rounded, channels) if min(rounded, channels) <= limit else size
            for whole in (True, False) if rows * columns < kh * kw else (True,):
                yield _Cut((rows, columns), size, whole)


def _best(
    config: Config, g: Geometry, channels: int, n: int, use_c: bool, density: Density, trust: bool
) -> _Plan | None:
    """The tiling with the fewest expected cycles (see :func:`lower_conv`)."""
    best: _Plan | None = None
    tiles = -(-n // config.tile_columns)
    costs = Costs(config, -(-n // tiles), density, use_c)
    # taps off the image cost nothing
    inside = _inside(g.y) * _inside(g.x)
    for cut in _cuts(config, g, channels):
        kh, kw = (g.y.taps, g.x.taps) if cut.whole else cut.taps
        groups = -(-g.y.taps // cut.taps[0]) * -(-g.x.taps // cut.taps[1])
        pieces = -(-channels // cut.channels)
        k_tiles = groups * pieces
        na = pieces * (1 if cut.whole else groups)
        pixels = costs.bank_segments(cut.channels, trust)
        cap = min(32767, config.c_rows if use_c else 32767)
        if k_tiles > 1:
            cap = min(cap, config.psum_rows * config.lanes_per_cluster)
        b_load = g.y.taps * g.x.taps * channels * tiles * costs.b_row() + LOAD_OVERHEAD * k_tiles * tiles
        segment = costs.segment(channels / pieces)
        taps = g.y.taps * g.x.taps / groups * inside
        k = taps * channels / pieces
        outputs = g.images * g.y.outputs * g.x.outputs
        out = result_words(config, outputs * tiles, outputs * n * density[2]) / config.stream_words
        for ys, xs in itertools.product(_sizes(g.y.outputs), _sizes(g.x.outputs)):
            load1 = g.y.reach(ys, kh) * g.x.reach(xs, kw)
            if ys * xs > cap or load1 > pixels:
                continue
            whole_image = ys == g.y.outputs and xs == g.x.outputs
            most = max(1, min(cap // (ys * xs), pixels // load1)) if whole_image else 1
            for images in {1, min(g.images, most), max(1, min(most, g.images // config.clusters))}:
                parts = -(-g.images // images) * -(-g.y.outputs // ys) * -(-g.x.outputs // xs)
                blocks = -(-parts // config.clusters)
                # parts at the edges are smaller, and images shorter than the window
                filled = outputs / (parts * ys * xs * images)
                a_load = pieces and parts * na * (load1 * images * filled * segment + LOAD_OVERHEAD)
                steps = blocks * tiles * k_tiles
                rows = ys * xs * images
                last = costs.step(rows, k, taps)
                compute = blocks * tiles * ((k_tiles - 1) * costs.step(rows, k, taps, final=False) + last)
                first = a_load / (blocks * na) + b_load / (tiles * k_tiles)
                c_load = outputs * tiles * costs.c_row() if use_c else 0.0
                # a C mask row for each part, and RUNs for those whose fields differ
                runs = RUN_OVERHEAD * min(parts, config.clusters, 3) * steps
                for m_outer in (True, False):
                    load = traffic(a_load, b_load, blocks, na, k_tiles, tiles, m_outer) + c_load + runs
                    cost = total(load, compute, out, first, last)
                    if best is None or cost < best.cost:
                        best = _Plan(cost, cut, images, ys, xs, m_outer)
    return best


def _inside(axis: Axis) -> float:
    """The share of an axis' taps that meet the image."""
    met = sum(
        0 <= o * axis.stride + t * axis.dilation - axis.pad < axis.pixels
        for o in range(axis.outputs)
        for t in range(axis.taps)
    )
    return max(met, 1) / (axis.outputs * axis.taps)


def _k_tiles(g: Geometry, cut: _Cut, channels: Indices) -> list[KTile]:
    """K tiles: channels outermost, so that tap groups use the same pixels."""
    tiles = []
    for start in range(0, len(channels), cut.channels):
        own = channels[start : start + cut.channels]
        for r0 in range(0, g.y.taps, cut.taps[0]):
            for c0 in range(0, g.x.taps, cut.taps[1]):
                taps = (r0, min(r0 + cut.taps[0], g.y.taps), c0, min(c0 + cut.taps[1], g.x.taps))
                rows, columns = np.ix_(np.arange(taps[0], taps[1]), np.arange(taps[2], taps[3]))
                first = (rows * g.x.taps + columns).reshape(-1, 1) * g.channels
                halo = (0, g.y.taps, 0, g.x.taps) if cut.whole else taps
                tiles.append(KTile(own, (first + own).reshape(-1), taps, halo))
    return tiles


def _blocks(config: Config, g: Geometry, plan: _Plan) -> list[list[Part]]:
    def pieces(total: int, size: int) -> list[range]:
        parts = split(np.arange(total, dtype=np.int64), -(-total // size))
        return [range(int(p[0]), int(p[-1]) + 1) for p in parts]

    parts = [
        ConvPart(g, images, ys, xs)
        for images in pieces(g.images, plan.images)
        for ys in pieces(g.y.outputs, plan.ys)
        for xs in pieces(g.x.outputs, plan.xs)
    ]
    return [list(parts[i : i + config.clusters]) for i in range(0, len(parts), config.clusters)]


def lower_conv(
    config: Config,
    shape: Sequence[int],
    weights: Sequence[int],
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    *,
    use_c: bool = False,
    post: Any = None,
    k_keep: Any = None,
    n_keep: Any = None,
    density: tuple[float, ...] | None = None,
    trust: bool = False,
) -> Program:
    """Lower a convolution to a program with operands "a" (NHWC) and "b" (kh, kw, cin, cout) and output "c" (NHWC).

    The tiling (taps and channels of a K tile, rectangle of a block, loop order) is the one with the fewest cycles
    by :func:`~maskwork.gen.lower_costs.total`. Buffers are sized for
    dense data unless ``trust`` says otherwise.

    Args:
        config: the accelerator.
        shape: input, (N, H, W, C).
        weights: (kh, kw, cin, cout), cin = C.
        stride: integer, or (rows, columns).
        padding: zeros around the input: integer, (rows, columns) or ((top, bottom), (left, right)).
        dilation: integer, or (rows, columns).
        use_c: there is an operand "c_mask" of the output's shape.
        post: None, or requantisation (:class:`Post`, or a mapping with low and high).
        k_keep: vector mask over input channels: removed ones are not loaded.
        n_keep: vector mask over output channels: removed ones read as 0.
        density: expected densities of a, b and c_mask, for the choice of tiles.
        trust: activation banks are filled as that density of a lets one expect, else so that any would fit.

    Raises:
        MaskworkTypeError, MaskworkValueError: for shapes or parameters that fit no convolution.
        ProgramError: if the configuration cannot run it; says what to raise.
    """
    output = conv_output_shape(shape, weights, stride, padding, dilation)
    strides, dilations, pads = parse_pair(stride, "stride", 1), parse_pair(dilation, "dilation", 1), parse_pads(padding)
    the_post = Post.of(post, config)
    expected = densities(density)
    channels = keep_indices(k_keep, int(shape[3]), "k_keep")
    columns = keep_indices(n_keep, output[3], "n_keep")
    program = Program(config)
    add_operands(program, shape, weights, output, use_c, the_post)
    program.products.append({"a": "a", "b": "b"})
    scheduler = Scheduler(program, the_post, use_c)
    scheduler.begin()
    if not len(channels) and the_post is not None:
        raise ProgramError("k_keep must keep one channel or more with post-processing, not none")
    if len(channels) and len(columns):
        if tuple(weights[:2]) == (1, 1) and strides == (1, 1) and pads == ((0, 0), (0, 0)):
            rows = np.arange(math.prod(output[:3]), dtype=np.int64)
            schedule_matmul(scheduler, rows, channels, columns, "auto", density=expected)
        else:
            y, x = (Axis.of(int(shape[1 + i]), int(weights[i]), strides[i], pads[i], dilations[i]) for i in (0, 1))
            g = Geometry(int(shape[0]), y, x, int(shape[1]), int(shape[2]), int(shape[3]))
            plan = _best(config, g, len(channels), len(columns), use_c, expected, trust)
            if plan is None:
                raise ProgramError("one output position does not fit: raise a_segments, a_depth or fifo_depth")
            tiles = _k_tiles(g, plan.cut, channels)
            scheduler.run(_blocks(config, g, plan), tiles, split_n(config, columns), plan.m_outer)
            program.commands = spread_loads(program.commands)
    scheduler.end()
    return program
