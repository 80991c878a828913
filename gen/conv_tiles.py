"""Tiles of a convolution: its thinned axes, and the ways to cut it that the buffers allow, by expected cycles."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from maskwork.gen.config import CHUNK, Config
from maskwork.gen.conv_axis import Geometry
from maskwork.gen.conv_parts import Limits, Rectangle, busiest, even_parts
from maskwork.gen.lower_costs import LOAD_OVERHEAD, RUN_OVERHEAD, Costs, Density, total
from maskwork.gen.lower_schedule import SHARES, k_limit, result_words, traffic
from numpy.typing import NDArray

MOST_PLANS = 10
"""Plans that are worth a simulation."""

OF_EACH = 3
"""Such plans of each way to share rows, at least."""

OTHERS = 3
"""Other parts that are tried for the plan that is taken."""

NEAR = 1.2
"""Expected cycles of such plans, at most, of the best one's."""


@dataclass(frozen=True)
class Cut:
    """How K is cut: taps of a tile (rows, columns), channel tiles, and whether pixels are loaded for all taps."""

    taps: tuple[int, int]
    channels: int
    whole: bool


@dataclass(frozen=True)
class Plan:
    """A way to cut a convolution: expected cycles, cut of K, images, rows and columns of a part, the loop order, who
    gets a row ("no", "columns" or "all" of :data:`~maskwork.gen.lower_schedule.SHARES`), the parts of each image
    where they are not all of that size, and other such parts that are about as good.
    """

    cost: float
    cut: Cut
    images: int
    ys: int
    xs: int
    m_outer: bool
    share: str = "no"
    parts: tuple[tuple[Rectangle, ...], ...] = ()
    others: tuple[tuple[tuple[Rectangle, ...], ...], ...] = ()


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


@dataclass(frozen=True)
class _Problem:
    """What plans are made for: see :func:`plans`."""

    config: Config
    g: Geometry
    channels: int
    n: int
    use_c: bool
    density: Density
    trust: bool
    positions: NDArray[np.bool_] | None
    whole: bool

    @cached_property
    def kept(self) -> float:
        """The share of the positions that are wanted."""
        return 1.0 if self.positions is None else max(float(self.positions.mean()), 1e-4)

    @cached_property
    def inside(self) -> float:
        """The share of the taps that meet the image: the others cost nothing."""
        return max(float(self.g.y.met().mean() * self.g.x.met().mean()), 1e-4)

    @property
    def outputs(self) -> int:
        """Output positions of all images."""
        return self.g.images * self.g.y.outputs * self.g.x.outputs


class _Tiling:
    """Expected cycles of plans with one cut of K."""

    def __init__(self, problem: _Problem, cut: Cut, share: str) -> None:
        p, g, config = problem, problem.g, problem.config
        self._p, self._cut, self._share = p, cut, share
        spread = {"no": 1, "columns": config.clusters, "all": config.lanes}[share]
        self._clusters = config.clusters if share == "no" else 1
        self._tiles = -(-p.n // (config.tile_columns * spread))
        a, b, c = p.density
        costs = self._costs = Costs(config, -(-p.n // (self._tiles * spread)), (a, b, min(1.0, c / p.kept)), p.use_c)
        self._loaded = (g.y.taps, g.x.taps) if cut.whole else cut.taps
        groups = -(-g.y.taps // cut.taps[0]) * -(-g.x.taps // cut.taps[1])
        pieces = -(-p.channels // cut.channels)
        self._k_tiles = groups * pieces
        self._na = pieces * (1 if cut.whole else groups)
        self.pixels = costs.bank_segments(cut.channels, p.trust)
        cap = min(32767, config.c_rows if p.use_c else 32767)
        each = 1 if share == "all" else config.lanes_per_cluster
        self.cap = min(cap, config.psum_rows * each) if self._k_tiles > 1 else cap
        self._b_load = (g.y.taps * g.x.taps * p.channels * costs.b_row() + LOAD_OVERHEAD * self._k_tiles) * self._tiles
        self._b_load *= spread
        self._segment = costs.segment(p.channels / pieces)
        self._taps = g.y.taps * g.x.taps / groups * p.inside
        self._k = self._taps * p.channels / pieces
        self._results = self._tiles * spread
        self._out = result_words(config, p.outputs * self._results, p.outputs * p.n * p.density[2])
        self._out /= config.stream_words

    def _plan(
        self, size: tuple[int, int, int], steps: Sequence[tuple[float, float | None]], times: int, loaded: float,
        parts: int, rectangles: Sequence[tuple[tuple[Rectangle, ...], ...]] = (),
    ) -> Plan:  # fmt: skip
        """The better of both loop orders.

        Args:
            size: images, rows and columns of a part.
            steps: wanted positions of a block's parts, and of their busiest lane if that is known.
            times: blocks of each of these kinds.
            loaded: pixels of all parts.
            parts: their number.
            rectangles: the parts and others of :class:`Plan`.
        """
        blocks, p = times * len(steps), self._p
        a_load = self._na * (loaded * self._segment + parts * LOAD_OVERHEAD)
        each = [tuple(self._costs.step(rows, self._k, self._taps, final=final,
                                       shared=self._share == "all", busiest=busiest)
                      for final in (False, True)) for rows, busiest in steps]  # fmt: skip
        compute = self._tiles * times * sum((self._k_tiles - 1) * inner + last for inner, last in each)
        first = a_load / (blocks * self._na) + self._b_load / (self._tiles * self._k_tiles)
        c_load = p.outputs * self._results * self._costs.c_row() if p.use_c else 0.0
        # a C mask row for each part, and RUNs for those whose fields differ
        runs = RUN_OVERHEAD * min(parts, self._clusters, 3) * blocks * self._tiles * self._k_tiles
        found = []
        for m_outer in (True, False):
            load = traffic(a_load, self._b_load, blocks, self._na, self._k_tiles, self._tiles, m_outer) + c_load + runs
            cost = total(load, compute, self._out, first, each[-1][1])
            found.append(
                Plan(
                    cost,
                    self._cut,
                    *size,
                    m_outer,
                    self._share,
                    rectangles[0] if rectangles else (),
                    tuple(rectangles[1:]),
                )
            )
        return min(found, key=lambda plan: plan.cost)

    def uniform(self, ys: int, xs: int) -> Iterator[Plan]:
        """Plans with parts of nearly that size."""
        p, g, clusters = self._p, self._p.g, self._clusters
        load1 = g.y.reach(ys, self._loaded[0]) * g.x.reach(xs, self._loaded[1])
        if ys * xs > self.cap or load1 > self.pixels:
            return
        whole_image = ys == g.y.outputs and xs == g.x.outputs
        most = max(1, min(self.cap // (ys * xs), self.pixels // load1)) if whole_image else 1
        for images in {1, min(g.images, most), max(1, min(most, g.images // clusters))}:
            parts = -(-g.images // images) * -(-g.y.outputs // ys) * -(-g.x.outputs // xs)
            # parts at the edges are smaller, and images shorter than the window
            filled = p.outputs / (parts * ys * xs * images)
            rows = float(ys * xs * images)
            if p.kept < 1:  # as many of them as the cluster with most has on average
                rows = min(rows, rows * p.kept + (clusters > 1) * (rows * p.kept * (1 - p.kept)) ** 0.5)
            loaded = parts * load1 * images * filled
            yield self._plan((images, ys, xs), [(rows, None)], -(-parts // clusters), loaded, parts)

    def even(self) -> Iterator[Plan]:
        """The plan with parts of the sizes that suit the wanted positions."""
        p, g = self._p, self._p.g
        if p.positions is None or p.kept == 1:
            return
        k_tiles, config = self._k_tiles, p.config
        lane = (k_tiles - 1) * self._costs.row(self._k, self._taps, None, False)[0]
        lane = (lane + self._costs.row(self._k, self._taps)[0]) / p.inside
        again = self._b_load / self._tiles if k_tiles * self._tiles > 2 else 0.0
        limits = Limits(self.cap, self.pixels, self._loaded, config.lanes_per_cluster,
                        config.psum_rows if k_tiles > 1 else 0, 40 * k_tiles / lane, again / lane)  # fmt: skip
        ways = [even_parts(g, image, limits) for image in p.positions]
        if not all(ways) or all(len(own[0]) == 1 for own in ways):
            return
        rectangles = [
            tuple(own[min(n, len(own) - 1)] for own in ways) for n in range(min(OTHERS + 1, max(map(len, ways))))
        ]
        every = [(image[None], part) for image, own in zip(p.positions, rectangles[0], strict=True) for part in own]
        lanes = config.lanes_per_cluster
        steps = [(float(image[:, y.start : y.stop, x.start : x.stop].sum()),
                  busiest(g, (y, x), image, lanes) / p.inside) for image, (y, x) in every]  # fmt: skip
        high, wide = self._loaded
        loaded = sum(g.y.reach(len(y), high) * g.x.reach(len(x), wide) for _, (y, x) in every)
        tall, wide = (max(len(part[axis]) for _, part in every) for axis in (0, 1))
        yield self._plan((1, tall, wide), steps, 1, loaded, len(every), rectangles)


def _add_plans(found: dict[tuple[Cut, int, str, bool], Plan], problem: _Problem, share: str) -> None:
    """The best plan for each cut and size of a part; of the best cuts those as well whose parts are of any size."""
    g = problem.g
    tilings: list[tuple[float, _Tiling]] = []
    config = problem.config.apart if share == "all" else problem.config
    for cut in _cuts(config, g, problem.channels):
        tiling, least = _Tiling(problem, cut, share), np.inf
        for ys, xs in itertools.product(_sizes(g.y.outputs), _sizes(g.x.outputs)):
            for plan in tiling.uniform(ys, xs):
                _add_plan(found, plan)
                least = min(least, plan.cost)
        tilings.append((least, tiling))
    if share == "columns":
        for _, tiling in sorted(tilings, key=lambda own: own[0])[:MOST_PLANS]:
            for plan in tiling.even():
                _add_plan(found, plan)


def _add_plan(found: dict[tuple[Cut, int, str, bool], Plan], plan: Plan) -> None:
    key = plan.cut, plan.ys * plan.xs * plan.images, plan.share, bool(plan.parts)
    if key not in found or plan.cost < found[key].cost:
        found[key] = plan


def plans(
    config: Config, g: Geometry, channels: int, n: int, use_c: bool, density: Density, trust: bool,
    positions: NDArray[np.bool_] | None = None, whole: bool = False,
) -> list[Plan]:  # fmt: skip
    """The ways to cut a convolution, the one with the fewest expected cycles first; those not much worse follow.

    Args:
        config: the accelerator.
        g: the geometry.
        channels: input channels.
        n: output channels.
        use_c: there is a C mask.
        density: of A, B and C.
        trust: see :meth:`~maskwork.gen.lower_costs.Costs.bank_segments`.
        positions: output positions of which anything is wanted, (N, OH, OW), if that is known.
        whole: all of such a position is wanted.
    """
    problem = _Problem(config, g, channels, n, use_c, density, trust, positions, whole)
    found: dict[tuple[Cut, int, str, bool], Plan] = {}
    _add_plans(found, problem, "no")
    if n >= config.clusters * config.pes_per_lane > config.pes_per_lane:
        _add_plans(found, problem, "columns")
    if n >= config.lanes * config.pes_per_lane > config.pes_per_lane and (whole or not use_c):
        _add_plans(found, problem, "all")
    ranked = sorted(found.values(), key=lambda plan: plan.cost)
    ranked = [plan for plan in ranked if plan.cost <= NEAR * ranked[0].cost]
    # costs compare cuts better than ways to share rows: the best of each way are tried
    best = {id(plan) for share in SHARES for plan in [p for p in ranked if p.share == share][:OF_EACH]}
    others = [id(plan) for plan in ranked if id(plan) not in best][: MOST_PLANS - len(best)]
    return [plan for plan in ranked if id(plan) in best or id(plan) in others]
