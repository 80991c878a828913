"""Tiles of a convolution: its thinned axes, and the ways to cut it that the buffers allow, by expected cycles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from maskwork.gen.config import CHUNK, Config
from maskwork.gen.lower_costs import LOAD_OVERHEAD, RUN_OVERHEAD, Costs, Density, total
from maskwork.gen.lower_schedule import k_limit, result_words, traffic

MOST_PLANS = 8
"""Plans that are worth a simulation."""

NEAR = 1.2
"""Expected cycles of such plans, at most, of the best one's."""


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



@dataclass(frozen=True)
class Cut:
    """How K is cut: taps of a tile (rows, columns), channel tiles, and whether pixels are loaded for all taps."""

    taps: tuple[int, int]
    channels: int
    whole: bool


@dataclass(frozen=True)
class Plan:
    """A way to cut a convolution: expected cycles, cut of K, images, rows and columns of a part, the loop order,
    and whether clusters hold different columns (and get the same rows) or the same columns.
    """

    cost: float
    cut: Cut
    images: int
    ys: int
    xs: int
    m_outer: bool
    by_columns: bool = False


def _sizes(total: int) -> list[int]:
    """Sizes that cut ``total`` evenly, largest first."""
    return sorted({-(-total // pieces) for pieces in range(1, total + 1)}, reverse=True)


def _cuts(config: Config, geometry: Geometry, channels: int) -> Iterator[Cut]:
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
                yield Cut((rows, columns), size, whole)


def _add_plans(
    found: dict[tuple[Cut, int, bool], Plan], config: Config, g: Geometry, channels: int, n: int, use_c: bool,
    density: Density, trust: bool, by_columns: bool,
) -> None:  # fmt: skip
    """The best plan for each cut and size of a part."""
    spread = min(config.clusters, -(-n // config.tile_columns)) if by_columns else 1
    clusters = 1 if by_columns else config.clusters
    tiles = -(-n // (config.tile_columns * spread))
    costs = Costs(config, -(-n // (tiles * spread)), density, use_c)
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
        b_load = (g.y.taps * g.x.taps * channels * costs.b_row() + LOAD_OVERHEAD * k_tiles) * tiles * spread
        segment = costs.segment(channels / pieces)
        taps = g.y.taps * g.x.taps / groups * inside
        k = taps * channels / pieces
        outputs = g.images * g.y.outputs * g.x.outputs
        out = result_words(config, outputs * tiles * spread, outputs * n * density[2]) / config.stream_words
        for ys, xs in itertools.product(_sizes(g.y.outputs), _sizes(g.x.outputs)):
            load1 = g.y.reach(ys, kh) * g.x.reach(xs, kw)
            if ys * xs > cap or load1 > pixels:
                continue
            whole_image = ys == g.y.outputs and xs == g.x.outputs
            most = max(1, min(cap // (ys * xs), pixels // load1)) if whole_image else 1
            for images in {1, min(g.images, most), max(1, min(most, g.images // clusters))}:
                parts = -(-g.images // images) * -(-g.y.outputs // ys) * -(-g.x.outputs // xs)
                blocks = -(-parts // clusters)
                # parts at the edges are smaller, and images shorter than the window
                filled = outputs / (parts * ys * xs * images)
                a_load = pieces and parts * na * (load1 * images * filled * segment + LOAD_OVERHEAD)
                steps = blocks * tiles * k_tiles
                rows = ys * xs * images
                last = costs.step(rows, k, taps)
                compute = blocks * tiles * ((k_tiles - 1) * costs.step(rows, k, taps, final=False) + last)
                first = a_load / (blocks * na) + b_load / (tiles * k_tiles)
                c_load = outputs * tiles * spread * costs.c_row() if use_c else 0.0
                # a C mask row for each part, and RUNs for those whose fields differ
                runs = RUN_OVERHEAD * min(parts, clusters, 3) * steps
                for m_outer in (True, False):
                    load = traffic(a_load, b_load, blocks, na, k_tiles, tiles, m_outer) + c_load + runs
                    cost = total(load, compute, out, first, last)
                    plan = Plan(cost, cut, images, ys, xs, m_outer, by_columns)
                    key = cut, rows, by_columns
                    if key not in found or cost < found[key].cost:
                        found[key] = plan


def plans(
    config: Config, g: Geometry, channels: int, n: int, use_c: bool, density: Density, trust: bool
) -> list[Plan]:
    """The ways to cut a convolution, the one with the fewest expected cycles first; those not much worse follow.

    Args:
        config: the accelerator.
        g: the geometry.
        channels: input channels.
        n: output channels.
        use_c: there is a C mask.
        density: of A, B and C.
        trust: see :meth:`~maskwork.gen.lower_costs.Costs.bank_segments`.
    """
    found: dict[tuple[Cut, int, bool], Plan] = {}
    for by_columns in (False, True):
        if not by_columns or (n > config.tile_columns and config.clusters > 1):
            _add_plans(found, config, g, channels, n, use_c, density, trust, by_columns)
    ranked = sorted(found.values(), key=lambda plan: plan.cost)
    return [plan for plan in ranked[:MOST_PLANS] if plan.cost <= NEAR * ranked[0].cost]


def _inside(axis: Axis) -> float:
    """The share of an axis' taps that meet the image."""
    met = sum(
        0 <= o * axis.stride + t * axis.dilation - axis.pad < axis.pixels
        for o in range(axis.outputs)
        for t in range(axis.taps)
    )
    return max(met, 1) / (axis.outputs * axis.taps)


