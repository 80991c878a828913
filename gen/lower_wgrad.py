"""Lowering of a convolution's weight gradient to a program, as an implicit matrix product.

C[(ky, kx, ci), co] is the sum over positions p = (n, oy, ox) of X[n, sy*oy + dy*ky - top, sx*ox + dx*kx - left, ci]
times G[p, co]: the input, by channel, streams; the output gradient is resident; K runs over positions. See
:mod:`~maskwork.gen.lower_wgrad_tiles` for how they lie in the banks, :mod:`~maskwork.gen.lower_wgrad_plans` for the
choice of tiles.

With stride 1 it is a weight gradient of exchanged operands as well: with q = p + d*k - pad it is the sum over pixels q
of G[q + d*(last - k) - (d*last - pad), co] times X[q, ci], where last is the kernel's size minus 1. So the sparser one
of the two can be streamed (:func:`exchanged_pads`). With larger strides it is not of this form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.deal import as_work, deal, deal_evenly
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.gen.lower_conv import conv_output_shape, parse_pads, parse_pair
from maskwork.gen.lower_costs import Density, densities
from maskwork.gen.lower_matmul import add_operands, keep_indices
from maskwork.gen.lower_post import Post
from maskwork.gen.lower_schedule import Indices, Part, Scheduler, split, split_n, split_shared
from maskwork.gen.lower_spread import spread_loads
from maskwork.gen.lower_wgrad_plans import MODES, Plan, Problem, expected_cycles, groups
from maskwork.gen.lower_wgrad_tiles import Layer, Phase, PositionTile, TapsPart, empty_tile, phases, position_tiles
from maskwork.gen.program import Program
from numpy.typing import NDArray

Pads = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class _Own:
    """Numbers of channels (rows of C for each tap) or of columns, and the expected work of all, if they differ."""

    numbers: Indices
    work: NDArray[np.float64] | None


def _emit(scheduler: Scheduler, problem: Problem, y: Phase, x: Phase, plan: Plan, channels: _Own,
          columns: _Own) -> None:  # fmt: skip
    """Emit the rows of C of two phases."""
    config, layer = problem.config, problem.layer
    # a step takes as long as its slowest cluster, and hides the loads of the next: best are parts that are all alike
    pieces = deal_evenly(split(channels.numbers, -(-len(channels.numbers) // plan.channels)), channels.work)
    tiles: list[PositionTile] = []
    if y.outputs and x.outputs:
        tiles = list(position_tiles(config if plan.share == "no" else config.apart, layer, y, x, plan.cut))
    parts: list[Part] = [
        TapsPart(layer, y.part(first, plan.down), x, piece)
        for first in range(0, len(y.taps), plan.down)
        for piece in pieces
    ]
    blocks = [parts[i : i + config.clusters] for i in range(0, len(parts), config.clusters)]
    if plan.share == "cluster":
        n_tiles = split_shared(config, columns.numbers, config.lanes_per_cluster)
    else:
        n_tiles = split_n(config, columns.numbers)
    n_tiles = [[deal(config, own, columns.work) for own in deal_evenly(tile, columns.work)] for tile in n_tiles]
    scheduler.run(blocks, tiles or [empty_tile(layer)], n_tiles, plan.m_outer, plan.share)


def _schedule(scheduler: Scheduler, problem: Problem, channels: _Own, columns: _Own, tune: bool) -> None:
    """Emit all rows of C; ``tune``: with the fastest of the best plans, if there is a choice for all rows together."""
    program = scheduler.program
    runs = [(y, own, plans) for y in problem.ys for x in problem.xs for own, plans in groups(problem, y, x)]
    for y, x, plans in runs:

        def schedule(plan: Plan, y: Phase = y, x: Phase = x) -> None:
            _emit(scheduler, problem, y, x, plan, channels, columns)
            program.commands = spread_loads(program.commands)

        best = plans[0]
        if tune and len(runs) == 1 and len(plans) > 1:
            from maskwork.gen.tune import fastest

            best = fastest(scheduler, schedule, plans, problem.density, few_chains=True)
        _emit(scheduler, problem, y, x, best, channels, columns)
    program.commands = spread_loads(program.commands)


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


@dataclass(frozen=True)
class _Geometry:
    """Checked parameters: the input's shape and (kh, kw, Cin, Cout), the output's shape, and one value an axis."""

    shape: tuple[int, ...]
    weights: tuple[int, int, int, int]
    output: tuple[int, int, int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: Pads

    @classmethod
    def of(
        cls, shape: Sequence[int], grad_shape: Sequence[int], kernel: Any, stride: Any, padding: Any, dilation: Any
    ) -> _Geometry:
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
        strides, dilations = parse_pair(stride, "stride", 1), parse_pair(dilation, "dilation", 1)
        return cls(tuple(int(v) for v in shape), weights, output, strides, dilations, parse_pads(padding))

    def problem(self, config: Config, channels: int, columns: int, use_c: bool, density: Any, trust: bool,
                mode: str) -> Problem:  # fmt: skip
        """What to plan for so many channels and columns."""
        if mode not in MODES:
            raise MaskworkValueError(f'mode must be "auto", "rows" or "cluster", not {mode!r}')
        images, height, width, inputs = self.shape
        layer = Layer(images, inputs, height, width, self.weights[:2], self.output[1:3])
        ys, xs = (
            phases(self.shape[1 + i], self.weights[i], self.stride[i], self.pads[i][0], self.dilation[i],
                   self.output[1 + i])
            for i in (0, 1)
        )  # fmt: skip
        expected = _density(density)
        return Problem(config, layer, tuple(ys), tuple(xs), channels, columns, use_c, expected, trust, mode)


def exchanged_pads(kernel: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> Pads | None:
    """Padding with which the gradient is lowered with its operands exchanged.

    The program is that of ``lower_weight_grad(config, grad_shape, shape, kernel, 1, exchanged_pads(...), dilation)``:
    operand "a" is the output gradient by channel, (N, Cout, OH, OW), "b" the input (N, H, W, Cin); "c" (and "c_mask")
    are (kh, kw, Cout, Cin) with taps in reverse: ``c[::-1, ::-1].transpose(0, 1, 3, 2)`` is (kh, kw, Cin, Cout).
    Requantisation is then by input channel. Exchanging twice gives the first again.

    Args:
        kernel: the layer's, as :func:`lower_weight_grad` has it; so are the others.
        stride: the layer's.
        padding: the layer's.
        dilation: the layer's.

    Returns:
        ((top, bottom), (left, right)); None where the stride is not 1 or the padding is larger than the
        kernel's reach, dilation * (taps - 1): then there is no such program.

    Raises:
        MaskworkValueError: for parameters that fit no convolution.
    """
    taps, strides = parse_pair(kernel, "kernel", 1), parse_pair(stride, "stride", 1)
    dilations, pads = parse_pair(dilation, "dilation", 1), parse_pads(padding)
    reach = [d * (t - 1) for d, t in zip(dilations, taps, strict=True)]
    top, bottom, left, right = (r - pad for r, own in zip(reach, pads, strict=True) for pad in own)
    if strides != (1, 1) or min(top, bottom, left, right) < 0:
        return None
    return (top, bottom), (left, right)


def weight_grad_cycles(
    config: Config,
    shape: Sequence[int],
    grad_shape: Sequence[int],
    kernel: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    *,
    use_c: bool = False,
    density: Any = (0.5, 0.5),
    trust: bool = False,
    mode: str = "auto",
) -> float:
    """Cycles that :func:`lower_weight_grad` expects of its program for the same arguments, without making it.

    Raises:
        MaskworkTypeError, MaskworkValueError: for shapes or parameters that fit no convolution.
        ProgramError: if the configuration cannot run it.
    """
    geometry = _Geometry.of(shape, grad_shape, kernel, stride, padding, dilation)
    return expected_cycles(geometry.problem(config, *geometry.weights[2:], use_c, density, trust, mode))


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
    tune: bool = False,
    row_work: Any = None,
    column_work: Any = None,
) -> Program:
    """Lower a convolution's weight gradient to a program.

    Operands: "a", the layer's input **by channel**, (N, Cin, H, W) (an image row is a segment: whoever binds changes
    the layout, see :func:`by_channel`); "b", the output gradient (N, OH, OW, Cout); "c_mask" with ``use_c``. Output
    "c", (kh, kw, Cin, Cout). Pixels off the image are neither loaded nor multiplied. With the output gradient streamed
    instead: see :func:`exchanged_pads`; :func:`weight_grad_cycles` says which is expected to be faster.

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
        trust: activation banks are filled as that density of a lets one expect, else so that any would fit.
        mode: "auto", "rows" or "cluster".
        tune: try the most promising tilings on the cycle model, with random masks, and take the fastest (strides
            with several phases excepted).
        row_work: expected work of each input channel (Cin,): channels are dealt to blocks and clusters by it.
        column_work: expected work of each output channel (Cout,): channels are dealt to lanes and PEs by it.

    Raises:
        MaskworkTypeError, MaskworkValueError: for shapes or parameters that fit no convolution.
        ProgramError: if the configuration cannot run it; says what to raise.
    """
    geometry = _Geometry.of(shape, grad_shape, kernel, stride, padding, dilation)
    the_post = Post.of(post, config)
    images, height, width, inputs = geometry.shape
    channels = keep_indices(m_keep, inputs, "m_keep")
    columns = keep_indices(n_keep, geometry.weights[3], "n_keep")
    rows = _Own(channels, as_work(row_work, inputs, "row_work"))
    own = _Own(columns, as_work(column_work, geometry.weights[3]))
    problem = geometry.problem(config, len(channels), len(columns), use_c, density, trust, mode)
    program = Program(config)
    add_operands(program, (images, inputs, height, width), geometry.output, geometry.weights, use_c, the_post)
    window = {"kernel": list(geometry.weights[:2]), "stride": list(geometry.stride),
              "dilation": list(geometry.dilation), "pad": [pad[0] for pad in geometry.pads],
              "outputs": list(geometry.output[1:3])}  # fmt: skip
    program.products.append({"a": "a", "b": "b", "window": window})
    scheduler = Scheduler(program, the_post, use_c)
    scheduler.begin()
    if len(channels) and len(columns):
        _schedule(scheduler, problem, rows, own, tune)
    scheduler.end()
    return program
