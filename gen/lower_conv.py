"""Lowering of a convolution to a program, as an implicit matrix product: im2col is addresses, never data.

A segment is one pixel's channels; a block is a rectangle of output positions, loaded as the rectangle of input pixels
they meet. Where stride and dilation leave pixels out, an axis is thinned first: position i = step * j + phase, and
everything below counts in j. Taps off the image are skipped by RUN's x and y limits: padding is never loaded.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from maskwork.gen import pack
from maskwork.gen.config import Config
from maskwork.gen.conv_axis import Axis, Geometry
from maskwork.gen.conv_parts import PLAIN, Order, best_order
from maskwork.gen.conv_tiles import Cut, Plan, plans
from maskwork.gen.deal import as_work, deal
from maskwork.gen.errors import MaskworkValueError, ProgramError
from maskwork.gen.lower_costs import Density, densities
from maskwork.gen.lower_matmul import add_operands, keep_indices, schedule_matmul
from maskwork.gen.lower_post import Post
from maskwork.gen.lower_schedule import (
    Indices,
    KTile,
    Part,
    Scheduler,
    deltas,
    split,
    split_n,
    split_shared,
    wrap16,
)
from maskwork.gen.lower_spread import spread_loads
from maskwork.gen.program import Program
from numpy.typing import NDArray


class ConvPart(Part):
    """A rectangle of output positions of some images."""

    def __init__(self, geometry: Geometry, images: range, ys: range, xs: range, order: Order = PLAIN) -> None:
        g = self._g = geometry
        self._images, self._ys, self._xs, self._order = images, ys, xs, order
        image, y, x = np.ix_(np.array(images), np.array(ys)[:: order.dy], np.array(xs)[:: order.dx])
        rows = (image * g.y.outputs + y) * g.x.outputs + x
        self.rows = (rows.transpose(0, 2, 1) if order.down else rows).reshape(-1)
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
        """Rows in the part's order, inside images. Taps: kernel columns inside kernel rows. x and y count from the
        first pixel loaded.
        """
        g, order = self._g, self._order
        (y0, y1), (x0, x1) = self._windows(tile.halo)
        height, width = y1 - y0, x1 - x0
        r0, r1, c0, c1 = tile.taps
        first_y, first_x = self._ys[-1 if order.up else 0], self._xs[-1 if order.left else 0]
        y = first_y * g.y.stride + r0 * g.y.dilation - g.y.pad - y0
        x = first_x * g.x.stride + c0 * g.x.dilation - g.x.pad - x0
        length = len(tile.columns)
        dx, dy = g.x.stride * order.dx, g.y.stride * order.dy
        across, down = (len(self._xs) - 1) * dx, (len(self._ys) - 1) * dy
        back = (c1 - c0 - 1) * g.x.dilation
        inner, outer = (0, dy), (dx, -down)
        if not order.down:
            inner, outer = (dx, 0), (-across, dy)

        def pixels(move: tuple[int, int]) -> tuple[int, int, int, int]:
            return move[1] * width + move[0], 0, *move

        counts = (len(self._xs) - 1, len(self._ys) - 1)
        return {
            "m0": counts[order.down],
            "m1": counts[not order.down],
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
                m1=pixels(outer),
                m0=pixels(inner),
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


def _k_tiles(g: Geometry, cut: Cut, channels: Indices) -> list[KTile]:
    """K tiles: channels outermost, so that tap groups use the same pixels. The smallest comes first, for everything
    waits for its loads.
    """
    tiles = []
    number = -(-len(channels) // cut.channels)
    short = len(channels) - (number - 1) * cut.channels
    edges = list(range(short, len(channels) + 1, cut.channels))
    if number > 1 and 2 * short < cut.channels:  # too short to hide loads and drains behind
        edges[0] = (short + cut.channels + 1) // 2
    for start, end in itertools.pairwise([0, *edges]):
        own = channels[start:end]
        for r0 in range(0, g.y.taps, cut.taps[0]):
            for c0 in range(0, g.x.taps, cut.taps[1]):
                taps = (r0, min(r0 + cut.taps[0], g.y.taps), c0, min(c0 + cut.taps[1], g.x.taps))
                rows, columns = np.ix_(np.arange(taps[0], taps[1]), np.arange(taps[2], taps[3]))
                first = (rows * g.x.taps + columns).reshape(-1, 1) * g.channels
                halo = (0, g.y.taps, 0, g.x.taps) if cut.whole else taps
                tiles.append(KTile(own, (first + own).reshape(-1), taps, halo))
    return tiles


def _blocks(config: Config, g: Geometry, plan: Plan, kept: NDArray[np.bool_] | None) -> list[list[Part]]:
    def pieces(total: int, size: int) -> list[range]:
        parts = split(np.arange(total, dtype=np.int64), -(-total // size))
        return [range(int(p[0]), int(p[-1]) + 1) for p in parts]

    places = [(range(i, i + 1), ys, xs) for i, own in enumerate(plan.parts) for ys, xs in own] or [
        (images, ys, xs)
        for images in pieces(g.images, plan.images)
        for ys in pieces(g.y.outputs, plan.ys)
        for xs in pieces(g.x.outputs, plan.xs)
    ]
    wanted = np.ones((g.images, g.y.outputs, g.x.outputs), dtype=np.bool_) if kept is None else kept
    parts = []
    for images, ys, xs in places:
        order = best_order(g, (ys, xs), wanted[images.start : images.stop], config.lanes_per_cluster)
        parts.append(ConvPart(g, images, ys, xs, order))
    across = config.clusters if plan.share == "no" else 1
    return [list(parts[i : i + across]) for i in range(0, len(parts), across)]


def _check_groups(groups: Any, cin: int, cout: int, tune: bool) -> None:
    if not isinstance(groups, int | np.integer) or groups < 1 or cin % groups or cout % groups:
        raise MaskworkValueError(
            f"groups must divide the input's {cin} and the output's {cout} channels, not {groups!r}"
        )
    if tune and groups > 1:
        raise MaskworkValueError("tune needs a convolution without groups")


def _as_positions(positions: Any, output: tuple[int, int, int], use_c: bool) -> NDArray[np.bool_] | None:
    if positions is None or not use_c:
        return None
    kept = np.asarray(positions)
    if kept.shape != output or kept.dtype != np.bool_:
        raise MaskworkValueError(f"positions must be bool of shape {output}, not {kept.dtype} of {kept.shape}")
    return kept


def _slabs(
    config: Config, cin: int, channels: Indices, columns: Indices, cout: int, groups: int, density: Density
) -> Iterator[tuple[Indices, Indices, Density]]:
    """Products that a convolution consists of: input channels and output channels of whole groups that share an N
    tile, and densities with the zeros between those groups.
    """
    if not len(channels) or not len(columns):
        return
    if groups == 1:
        yield channels, columns, density
        return
    together = max(1, config.tile_columns // (cout // groups))
    for first in range(0, groups, together):
        last = min(first + together, groups)
        own = channels[(channels >= first * (cin // groups)) & (channels < last * (cin // groups))]
        wanted = columns[(columns >= first * (cout // groups)) & (columns < last * (cout // groups))]
        if len(wanted):
            yield own, wanted, (density[0], density[1] / (last - first), density[2])


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
    tune: bool = False,
    column_work: Any = None,
    groups: int = 1,
    positions: Any = None,
    whole: bool = False,
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
        tune: try the most promising tilings on the cycle model, with random masks, and take the fastest.
        column_work: expected work of each output channel (Cout,): channels are dealt to PEs by it.
        groups: output channels in so many groups of equal size that each need only their own share of the input
            channels. Operand "b" keeps its shape, with zeros (which cost nothing but words) between groups; what is
            never needed is not loaded.
        positions: output positions, bool (N, OH, OW), of which "c_mask" wants anything, as far as that is known: parts
            of the image are cut so that lanes have equally many of them. Programs are right for any mask.
        whole: "c_mask" wants all channels of a position or none, which binding checks: lanes with different columns may
            then share rows.

    Raises:
        MaskworkTypeError, MaskworkValueError: for shapes or parameters that fit no convolution.
        ProgramError: if the configuration cannot run it; says what to raise.
    """
    output = conv_output_shape(shape, weights, stride, padding, dilation)
    strides, dilations, pads = parse_pair(stride, "stride", 1), parse_pair(dilation, "dilation", 1), parse_pads(padding)
    the_post = Post.of(post, config)
    expected = densities(density)
    work = as_work(column_work, output[3])
    kept = _as_positions(positions, output[:3], use_c)
    _check_groups(groups, int(shape[3]), output[3], tune)
    channels = keep_indices(k_keep, int(shape[3]), "k_keep")
    columns = keep_indices(n_keep, output[3], "n_keep")
    program = Program(config)
    add_operands(program, shape, weights, output, use_c, the_post)
    program.products.append({"a": "a", "b": "b"})
    scheduler = Scheduler(program, the_post, use_c, whole)
    if use_c and whole:
        program.operands["c_mask"]["whole"] = True
    scheduler.begin()
    if not len(channels) and the_post is not None:
        raise ProgramError("k_keep must keep one channel or more with post-processing, not none")
    y, x = (Axis.of(int(shape[1 + i]), int(weights[i]), strides[i], pads[i], dilations[i]) for i in (0, 1))
    g = Geometry(int(shape[0]), y, x, int(shape[1]), int(shape[2]), int(shape[3]))
    pointwise = tuple(weights[:2]) == (1, 1) and strides == (1, 1) and pads == ((0, 0), (0, 0))

    def schedule(plan: Plan, channels: Indices, columns: Indices) -> None:
        tiles = _k_tiles(g, plan.cut, channels)
        blocks = _blocks(config, g, plan, kept)
        n_tiles = split_n(config, columns)
        if plan.share == "columns":
            across = config.clusters
            pieces = split(columns, -(-len(n_tiles) // across) * across, config.pes_per_lane)
            n_tiles = [pieces[i : i + across] for i in range(0, len(pieces), across)]
        elif plan.share == "all":
            n_tiles = split_shared(config, columns, config.lanes)
        if plan.share != "no":
            blocks = [[block[0]] * config.clusters for block in blocks]
        n_tiles = [[deal(config, own, work) for own in tile] for tile in n_tiles]
        scheduler.run(blocks, tiles, n_tiles, plan.m_outer, plan.share)

    slabs = _slabs(config, g.channels, channels, columns, output[3], groups, expected)
    for own_channels, own_columns, diluted in slabs:
        if not len(own_channels):
            if the_post is not None:
                raise ProgramError("k_keep must keep one channel of each group or more with post-processing, not none")
            continue
        if pointwise:
            rows = np.arange(math.prod(output[:3]), dtype=np.int64)
            schedule_matmul(scheduler, rows, own_channels, own_columns, "auto", density=diluted)
            continue
        ways = plans(config, g, len(own_channels), len(own_columns), use_c, diluted, trust, kept, whole)
        if not ways:
            raise ProgramError("one output position does not fit: raise a_segments, a_depth or fifo_depth")
        chosen = ways[0]
        if tune and len(ways) > 1:
            from maskwork.gen.tune import WHOLE, fastest

            def attempt(plan: Plan, channels: Indices = own_channels, columns: Indices = own_columns) -> None:
                schedule(plan, channels, columns)
                program.commands = spread_loads(program.commands)

            chosen = fastest(scheduler, attempt, ways, expected, positions=kept)
            if chosen.others:
                same = [replace(chosen, parts=parts) for parts in (chosen.parts, *chosen.others)]
                chosen = fastest(scheduler, attempt, same, expected, positions=kept, sample=WHOLE)
        schedule(chosen, own_channels, own_columns)
    if not pointwise:
        program.commands = spread_loads(program.commands)
    scheduler.end()
    return program
