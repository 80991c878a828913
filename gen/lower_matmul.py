"""Lowering of a matrix product C = A . B to a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from maskwork.gen import pack
from maskwork.gen.config import CHUNK, Config
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError, ProgramError
from maskwork.gen.lower_costs import ASSUMED, LOAD_OVERHEAD, RUN_OVERHEAD, Costs, Density, densities, total
from maskwork.gen.lower_post import Post
from maskwork.gen.lower_schedule import (
    Indices,
    KTile,
    Part,
    Scheduler,
    deltas,
    k_limit,
    result_words,
    split,
    split_n,
    split_shared,
    traffic,
)
from maskwork.gen.program import Program

MODES = {"rows": "no", "cluster": "cluster", "share": "all"}
"""Modes of a matrix product, and what they share (:data:`~maskwork.gen.lower_schedule.SHARES`)."""


class MatrixPart(Part):
    """Rows of a matrix: a segment each."""

    def __init__(self, rows: Indices, a_rows: Indices) -> None:
        self.rows = rows
        self._segments = pack.to_ranges(a_rows)

    def segments(self, tile: KTile) -> pack.Ranges:
        """Rows of A to load: the same for every K tile."""
        return self._segments

    def run_fields(self, tile: KTile) -> dict[str, int]:
        """One segment after the other, one tap each."""
        return {"m0": len(self.rows) - 1, "x_limit": 1, "y_limit": 1, **deltas(m0=(1, 0, 0, 0))}


def keep_indices(keep: Any, length: int, name: str) -> Indices:
    """Kept indices of an axis, from None (all), a bool vector, or rising indices.

    Raises:
        MaskworkTypeError, MaskworkValueError: for anything else.
    """
    if keep is None:
        return np.arange(length, dtype=np.int64)
    array = np.asarray(keep)
    if array.dtype == np.bool_:
        if array.shape != (length,):
            raise MaskworkValueError(f"{name} must have shape ({length},), not {array.shape}")
        return np.flatnonzero(array).astype(np.int64)
    if array.size and array.dtype.kind not in "iu":
        raise MaskworkTypeError(f"{name} must be a vector of bool or of indices, not {array.dtype}")
    index = array.astype(np.int64).reshape(-1)
    if len(index) and (index[0] < 0 or index[-1] >= length or (np.diff(index) <= 0).any()):
        raise MaskworkValueError(f"{name} must be rising indices from 0 to {length - 1}, not {keep!r}")
    return index


def add_operands(
    program: Program, a: Sequence[int], b: Sequence[int], c: Sequence[int], use_c: bool, post: Post | None
) -> None:
    """Declare operands "a", "b" (and "c_mask", bias, mult, shift) and output "c" of these shapes."""

    def spec(shape: Sequence[int], role: str) -> dict[str, Any]:
        return {"shape": [int(v) for v in shape], "dtype": "int", "role": role}

    program.operands.update(a=spec(a, "a"), b=spec(b, "b"))
    if use_c:
        program.operands["c_mask"] = spec(c, "c_mask")
    if post:
        for name, role in ((post.bias, "bias"), (post.mult, "mult"), (post.shift, "shift")):
            program.operands[name] = spec(c[-1:], role)
    dtype = "int32" if program.config.acc_width <= 32 else "int64"
    program.outputs["c"] = {"shape": [int(v) for v in c], "dtype": dtype}


@dataclass
class _Plan:
    cost: float
    blocks: int
    m_outer: bool
    share: str


def _lanes(config: Config, n: int, share: str) -> int:
    """Lanes with columns of their own; 0 if rows cannot be shared like that."""
    per = config.lanes_per_cluster
    if share == "no":
        return 1
    if share == "cluster":
        return per if 1 < per <= n else 0
    return min(config.clusters, n // per) * per if config.lanes > 1 else 0


def _k_pieces(config: Config, inner: Indices, share: str) -> list[Indices]:
    """The K tiles."""
    limit = k_limit(config if share == "no" else config.apart)
    if limit < 1:
        raise ProgramError("one element of A does not fit: raise a_depth, k_depth or fifo_depth")
    return split(inner, -(-len(inner) // limit), CHUNK if limit >= CHUNK else 1)


def _row_cap(config: Config, longest: int, k_tiles: int, use_c: bool, share: str) -> int:
    """Most rows of one block in one cluster."""
    limits = [config.a_segments, config.a_depth // pack.segment_words(longest, config.fetch_width), 32767]
    if use_c:
        limits.append(config.c_rows)
    if k_tiles > 1:
        limits.append(config.psum_rows * (config.lanes_per_cluster if share == "no" else 1))
    return min(limits)


def _plans(config: Config, m: int, k: int, n: int, use_c: bool, density: Density) -> list[_Plan]:
    """Ways to run the product, each with its expected cycles (see :func:`~maskwork.gen.lower_costs.total`).

    Raises:
        ProgramError: if the configuration cannot run it.
    """
    plans = []
    for share in MODES.values():
        pieces = _k_pieces(config, np.arange(k, dtype=np.int64), share)
        k_tiles, longest = len(pieces), max(map(len, pieces))
        each = k / k_tiles
        lanes = _lanes(config, n, share)
        if lanes < 1 or (share != "no" and use_c):
            continue
        across = 1 if share == "all" else min(config.clusters, m)
        tiles = -(-n // (lanes * config.tile_columns))
        columns = -(-n // (lanes * tiles))
        costs = Costs(config, columns, density, use_c)
        b_load = tiles * lanes * (k * costs.b_row() + k_tiles * LOAD_OVERHEAD)
        cap = _row_cap(config, longest, k_tiles, use_c, share)
        least = -(-m // (across * cap))
        for blocks in sorted({min(least * f, m) for f in (1, 2, 4)}):
            rows = -(-m // (blocks * across))
            inner, last = (costs.step(rows, each, 1, None, final, share != "no") for final in (False, True))
            compute = blocks * tiles * ((k_tiles - 1) * inner + last)
            out = result_words(config, m * tiles * lanes, m * n * density[2]) / config.stream_words
            a_load = m * k_tiles * costs.segment(each) + blocks * across * k_tiles * LOAD_OVERHEAD
            c_load = m * tiles * costs.c_row() if use_c else 0.0
            steps = blocks * tiles * k_tiles
            first = a_load / (blocks * k_tiles) + b_load / (tiles * k_tiles)
            for m_outer in (True, False):
                load = traffic(a_load, b_load, blocks, k_tiles, k_tiles, tiles, m_outer) + c_load
                load += RUN_OVERHEAD * steps * min(across, 2)
                plans.append(_Plan(total(load, compute, out, first, last), blocks, m_outer, share))
    return plans


def matrix_blocks(config: Config, rows: Indices, a_rows: Indices, blocks: int) -> list[list[Part]]:
    """Blocks of rows, dealt evenly to the clusters in pieces that stay together."""
    result = []
    order = np.arange(len(rows), dtype=np.int64)
    for block in split(order, blocks):
        pieces = split(block, min(config.clusters, len(block)))
        result.append([MatrixPart(rows[p], a_rows[p]) for p in pieces])
    return result


def expected_cycles(config: Config, m: int, k: int, n: int, density: tuple[float, ...] | None = None) -> float:
    """Cycles that :func:`lower_matmul` expects of a product (m, k) . (k, n), without C mask.

    Args:
        config: the accelerator.
        m: rows of A and C.
        k: columns of A, rows of B.
        n: columns of B and C.
        density: expected densities of a, b and c.

    Raises:
        ProgramError: if the configuration cannot run it.
    """
    return min(plan.cost for plan in _plans(config, m, k, n, False, densities(density)))


def lower_matmul(
    config: Config,
    m: int,
    k: int,
    n: int,
    *,
    use_c: bool = False,
    m_keep: Any = None,
    k_keep: Any = None,
    n_keep: Any = None,
    post: Any = None,
    mode: str = "auto",
    density: tuple[float, ...] | None = None,
) -> Program:
    """Lower C (m, n) = A (m, k) . B (k, n), of any size, to a program with operands "a" and "b" and output "c".

    Rows of A are dealt to the clusters and by them to lanes that all hold the same columns of B (mode "rows"); or they
    are dealt to the clusters, which give each to all of their lanes, with columns of their own (mode "cluster"); or
    every lane of all clusters gets every row and holds columns of its own (mode "share", for few rows). "auto" takes
    the mode, number of row blocks and loop order with the fewest estimated cycles:

        max(load, compute, results) + (load + compute + results) / 10 + first loads + compute of the last step

    with the loads of :func:`~maskwork.gen.lower_schedule.traffic` and the paces of
    :class:`~maskwork.gen.lower_costs.Costs`. C masks always use mode "rows".

    Args:
        config: the accelerator.
        m: rows of A and C.
        k: columns of A, rows of B.
        n: columns of B and C.
        use_c: there is an operand "c_mask" (m, n): only these results are wanted.
        m_keep: vector mask over m (bools, or rising indices): other rows are not loaded and read as 0.
        k_keep: the same over k.
        n_keep: the same over n.
        post: None, or requantisation (:class:`Post`, or a mapping with low and high): operands "bias", "mult" and
            "shift" (n,).
        mode: "auto", "rows", "cluster" or "share".
        density: expected densities of a, b and c_mask, for the choice of tiles only.

    Raises:
        MaskworkTypeError, MaskworkValueError: for a size, vector mask or post that is none.
        ProgramError: if the configuration cannot run it; says what to raise.
    """
    for name, size in (("m", m), ("k", k), ("n", n)):
        if not isinstance(size, int | np.integer) or size < 1:
            raise MaskworkValueError(f"{name} must be a positive integer, not {size!r}")
    if mode not in ("auto", *MODES):
        raise MaskworkValueError(f'mode must be "auto", "rows", "cluster" or "share", not {mode!r}')
    the_post = Post.of(post, config)
    rows, inner, columns = (keep_indices(v, size, name) for v, size, name in
                            ((m_keep, m, "m_keep"), (k_keep, k, "k_keep"), (n_keep, n, "n_keep")))  # fmt: skip
    program = Program(config)
    add_operands(program, (m, k), (k, n), (m, n), use_c, the_post)
    program.products.append({"a": "a", "b": "b", **({"k": pack.to_ranges(inner)} if len(inner) < k else {})})
    scheduler = Scheduler(program, the_post, use_c)
    scheduler.begin()
    if len(rows) and len(columns):
        if len(inner):
            schedule_matmul(scheduler, rows, inner, columns, mode, density=densities(density))
        elif the_post is not None:
            raise ProgramError("k_keep must keep one k or more with post-processing, not none")
    scheduler.end()
    return program


def schedule_matmul(
    scheduler: Scheduler,
    rows: Indices,
    inner: Indices,
    columns: Indices,
    mode: str,
    a_rows: Indices | None = None,
    density: Density = ASSUMED,
) -> None:
    """Emit the product of the rows and columns named; ``a_rows`` are A's where they differ from C's."""
    config = scheduler.program.config
    plans = _plans(config, len(rows), len(inner), len(columns), scheduler.use_c, density)
    plans = [p for p in plans if mode == "auto" or p.share == MODES[mode]]
    if not plans:
        raise ProgramError(
            f'mode "{mode}" needs no C mask, more than one lane{" a cluster" if mode == "cluster" else ""} and as many '
            f'columns as a cluster has lanes ({config.lanes_per_cluster}); use mode "rows"'
        )
    plan = min(plans, key=lambda p: p.cost)
    k_tiles = [KTile(p, p) for p in _k_pieces(config, inner, plan.share)]
    a_rows = rows if a_rows is None else a_rows
    n_tiles = split_n(config, columns)
    if plan.share != "no":
        n_tiles = split_shared(config, columns, _lanes(config, len(columns), plan.share))
    if plan.share == "all":
        order = np.arange(len(rows))
        clusters = len(n_tiles[0]) // config.lanes_per_cluster
        blocks: list[list[Part]] = [[MatrixPart(rows[p], a_rows[p])] * clusters for p in split(order, plan.blocks)]
    else:
        blocks = matrix_blocks(config, rows, a_rows, plan.blocks)
    scheduler.run(blocks, k_tiles, n_tiles, plan.m_outer, plan.share)
