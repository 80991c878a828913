"""Ways to run a weight gradient, and what they are expected to cost (see :mod:`~maskwork.gen.lower_wgrad`)."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from maskwork.gen import pack
from maskwork.gen.config import Config
from maskwork.gen.errors import ProgramError
from maskwork.gen.lower_costs import LOAD_OVERHEAD, RUN_OVERHEAD, Costs, Density, paced, total
from maskwork.gen.lower_schedule import result_words, traffic
from maskwork.gen.lower_wgrad_tiles import Columns, Cut, Layer, Phase, ranges

MODES = ("auto", "rows", "cluster")
"""Rows of C are dealt to lanes, or to the clusters' lanes together, which hold different columns; or what is faster."""

_TRIES = 5
"""Sizes of each kind that the search looks at."""

_MOST_PLANS = 6
"""Plans that are worth a simulation."""

_FEW_ROWS = 4
"""Rows a lane, below which the last of them leave many lanes without one."""

_NEAR = 1.3
"""Expected cycles of such plans, at most, of the best one's."""


@dataclass(frozen=True)
class Problem:
    """What plans depend on.

    Members:
        config: the accelerator.
        layer: sizes.
        ys, xs: phases of both axes.
        channels, columns: rows of C for each tap, and columns of C.
        use_c: there are C masks.
        density: expected, of A, B and C's mask.
        trust: banks are filled as the density of A lets one expect.
        mode: one of :data:`MODES`.
    """

    config: Config
    layer: Layer
    ys: tuple[Phase, ...]
    xs: tuple[Phase, ...]
    channels: int
    columns: int
    use_c: bool
    density: Density
    trust: bool
    mode: str


@dataclass(frozen=True)
class Plan:
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


def _shares(problem: Problem) -> list[str]:
    """Values of ``share`` that the product may have."""
    config, n, mode = problem.config, problem.columns, problem.mode
    possible = not problem.use_c and config.lanes_per_cluster > 1 and n >= config.lanes_per_cluster
    if mode == "cluster":
        return ["cluster"] if possible else []
    # one N tile for all lanes: to share rows pays where there are too few of them for so many lanes
    taps = sum(len(y.taps) for y in problem.ys) * sum(len(x.taps) for x in problem.xs)
    pays = n > config.tile_columns or problem.channels * taps < _FEW_ROWS * config.lanes
    return ["no", "cluster"] if mode == "auto" and possible and pays else ["no"]


def _plans(problem: Problem, y: Phase, x: Phase, share: str) -> Iterator[Plan]:
    config, layer, channels, n = problem.config, problem.layer, problem.channels, problem.columns
    use_c = problem.use_c
    lanes = config.lanes_per_cluster if share == "cluster" else 1
    tiles_n = -(-n // (lanes * config.tile_columns))
    costs = Costs(config, -(-n // (lanes * tiles_n)), problem.density, use_c)
    across = len(x.taps)
    for cut in _cuts(config if share == "no" else config.apart, layer, y, x):
        length = max(c.length for c in cut.columns)
        segments = costs.bank_segments(length, problem.trust)
        whole = cut.rows >= len(y.outputs)
        column_units = -(-layer.images // cut.images) if whole else -(-len(y.outputs) // cut.rows)
        k_tiles = column_units * len(cut.columns) * (1 if whole else layer.images)
        cap = min(config.c_rows if use_c else 32767, 32767)
        if k_tiles > 1:
            cap = min(cap, config.psum_rows * config.lanes_per_cluster // lanes)
        # blocks that take half of the slots are drained while the next block is summed up in the others
        caps = [cap, cap // 2] if k_tiles > 1 and config.psum_in_pe else [cap]
        for down in _sizes(len(y.taps), min(len(y.taps), cap // across)):
            low = min(y.pixels, cut.rows + (down - 1) * y.step) * cut.images
            limits = [min(channels, most // (across * down), segments // low) for most in caps]
            for size in sorted({size for limit in limits for size in _sizes(channels, limit)}):
                for tiles in sorted({min(column_units, t) for t in (1, 2, 4, 8, 16, column_units)}):
                    rows = min(y.pixels, cut.rows * (1 if whole else tiles) + (down - 1) * y.step)
                    strip = rows * cut.images * (tiles if whole else 1) * size
                    if strip <= segments:
                        one = Cut(cut.columns, cut.rows, cut.images, tiles)
                        units = column_units * (1 if whole else layer.images)
                        yield from _priced(costs, (len(y.taps), across, down), one, channels, size, units, strip, n,
                                           share)  # fmt: skip


def _priced(costs: Costs, taps: tuple[int, int, int], cut: Cut, channels: int, size: int, units: int,
            strip: int, n: int, share: str) -> Iterator[Plan]:  # fmt: skip
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
        step_load = b_load + a_loads / steps + runs
        loads = b_loads / b_load / groups
        half = config.psum_rows * config.lanes_per_cluster // lanes // 2
        if config.psum_in_pe and k_tiles > 1 and rows <= half:  # results drain while the next block is summed up
            compute = groups * max(paced(k_tiles, each, each, step_load, loads), last)
            waits = 0.0
        else:
            compute = groups * ((k_tiles - 1) * each + last)
            waits = groups * paced(k_tiles, each, last, step_load, loads) - compute
        cost = total(load, compute, out, first, last, waits)
        yield Plan(cost, cut, down, size, m_outer, share)


def _near(plans: Iterator[Plan]) -> tuple[Plan, ...]:
    """The best plan, and those not much worse, one for each size of a block and of a K tile."""
    best: dict[tuple[object, ...], Plan] = {}
    for plan in plans:
        cut = plan.cut
        key = plan.share, plan.down * plan.channels, len(cut.columns), cut.rows * cut.images
        if key not in best or plan.cost < best[key].cost:
            best[key] = plan
    ranked = sorted(best.values(), key=lambda plan: plan.cost)[:_MOST_PLANS]
    return tuple(plan for plan in ranked if plan.cost <= _NEAR * ranked[0].cost)


@functools.lru_cache(maxsize=64)
def groups(problem: Problem, y: Phase, x: Phase) -> tuple[tuple[Phase, tuple[Plan, ...]], ...]:
    """Groups of the kernel columns of ``x`` that are run together; for each the best plan, and those not much worse.

    Raises:
        ProgramError: if there is no plan.
    """
    config, shares = problem.config, _shares(problem)
    if not shares:
        raise ProgramError(
            'mode "cluster" needs no C mask, more than one lane a cluster and as many columns as these '
            f'({config.lanes_per_cluster}); use mode "rows"'
        )
    best: tuple[tuple[Phase, tuple[Plan, ...]], ...] = ()
    best_cost = math.inf
    for across in _sizes(len(x.taps), len(x.taps)):
        found: list[tuple[Phase, tuple[Plan, ...]]] = []
        for first in range(0, len(x.taps), across):
            own = x.part(first, across)
            if y.outputs and own.outputs:
                plans = _near(itertools.chain.from_iterable(_plans(problem, y, own, share) for share in shares))
            else:
                cap = min(config.c_rows if problem.use_c else 32767, 32767) // across
                size = min(problem.channels, cap)
                plans = (Plan(0.0, Cut((), 1, 1, 1), 1, size, True, shares[0]),) if cap else ()
            if plans:
                found.append((own, plans))
        cost = sum(plans[0].cost for _, plans in found)
        if len(found) == -(-len(x.taps) // across) and cost < best_cost:
            best, best_cost = tuple(found), cost
    if not best:
        raise ProgramError("one output position does not fit: raise k_depth, a_segments, a_depth or fifo_depth")
    return best


def expected_cycles(problem: Problem) -> float:
    """Cycles of the best plans of all phases.

    Raises:
        ProgramError: if there is no plan.
    """
    pairs = itertools.product(problem.ys, problem.xs)
    return sum(plans[0].cost for y, x in pairs for _, plans in groups(problem, y, x))
