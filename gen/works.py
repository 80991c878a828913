"""Products on the array: their masks, programs and counts (what :mod:`maskwork.gen.passes` makes of layers)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.deal import UNEVEN
from maskwork.gen.lower_conv import conv_output_shape, lower_conv
from maskwork.gen.mask import BoolArray
from maskwork.gen.program import Program
from numpy.typing import NDArray

Shape4 = tuple[int, int, int, int]
Pads = tuple[tuple[int, int], tuple[int, int]]

MOST_KEPT = 0.98
"""Share of positions with any wanted result from which it does not pay to know which they are."""

POST = {"low": -128, "high": 127}
"""Limits of requantised results."""

LEAST = 0.001
"""Density of masks that have less, to those who choose tiles."""

_EXACT = 1 << 24
"""Counts below this are exact in float32."""


class Work(Protocol):
    """One product on the array. Masks are None where everything is present."""

    @property
    def key(self) -> Hashable:
        """What tells apart programs: works with equal keys share one."""
        ...

    def macs(self) -> tuple[int, int]:
        """Dense and effectual products, as the report counts them."""
        ...

    def lower(self, config: Config, trust: bool = True, tune: bool = False) -> Program:
        """The program; ``trust``: banks are filled as the masks' density lets one expect; ``tune``: its tiles
        are chosen by simulation, where that is possible.
        """
        ...

    def masks(self) -> dict[str, tuple[tuple[int, ...], BoolArray | None]]:
        """Operand -> its shape and mask."""
        ...

    def ways(self, config: Config) -> Sequence[Work]:
        """Works any one of which gives these results, in what seems the order of their cycles. How many they are and
        which is first is the same for equal keys.
        """
        ...

    def cut(self, config: Config, pieces: int) -> list[Any]:
        """At most about so many works that together are this one, for sampling. None is smaller than what the
        accelerator works on at a time, so that they load no more often than this one.
        """
        ...


def operands(work: Work, program: Program) -> dict[str, NDArray[Any]]:
    """Operands of a work's program from its masks alone: 1 where the mask is set, 0 elsewhere."""
    values: dict[str, NDArray[Any]] = {}
    masks = work.masks()
    for name, spec in program.operands.items():
        if name in masks:
            shape, mask = masks[name]
            values[name] = np.ones(shape, dtype=np.int8) if mask is None else mask.astype(np.int8)
        else:  # requantisation: bias and shift 0, factor 1, so that no result becomes 0
            values[name] = np.full(spec["shape"], int(spec["role"] == "mult"), dtype=np.int64)
    return values


def count(a: BoolArray | None, b: BoolArray | None, c: BoolArray | None, sizes: tuple[int, int, int]) -> int:
    """Triples (m, k, n) with a[m, k], b[k, n] and c[m, n]; an absent mask holds everything.

    Args:
        a: (M, K).
        b: (K, N).
        c: (M, N).
        sizes: (M, K, N).
    """
    m, k, n = sizes

    def along(mask: BoolArray | None, axis: int, shape: tuple[int, int]) -> NDArray[np.int64]:
        if mask is None:
            return np.full(shape[1 - axis], shape[axis], dtype=np.int64)
        return np.count_nonzero(mask, axis=axis).astype(np.int64)

    if b is None:
        return int(along(a, 1, (m, k)) @ along(c, 1, (m, n)))
    if c is None:
        return int(along(a, 0, (m, k)) @ along(b, 1, (k, n)))
    if a is None:
        return int(along(b, 0, (k, n)) @ along(c, 0, (m, n)))
    total = 0
    step = max(1, min(_EXACT - 1, (1 << 26) // max(k, n)))
    for start in range(0, m, step):
        both = a[start : start + step].T.astype(np.float32) @ c[start : start + step].astype(np.float32)
        total += int(both[b].sum(dtype=np.float64))
    return total


def axis_taps(
    size: int, outputs: int, taps: int, stride: int, pad: int, dilation: int
) -> list[tuple[slice, slice, int]]:
    """For each tap: the outputs whose tap lies on the image, the pixels it meets, and how many they are."""
    result = []
    for tap in range(taps):
        offset = tap * dilation - pad
        low = max(0, -(offset // stride))
        high = min(outputs - 1, (size - 1 - offset) // stride)
        number = max(0, high - low + 1)
        first = low * stride + offset
        result.append((slice(low, low + number), slice(first, first + number * stride, stride), number))
    return result


def pixel_rows(mask: BoolArray | None, y: slice, x: slice) -> BoolArray | None:
    """Some pixels of an NHWC mask that may be absent, one a row."""
    return None if mask is None else mask[:, y, x].reshape(-1, mask.shape[3])


def select(mask: BoolArray | None, own: slice) -> BoolArray | None:
    """Some of the last axis of a mask that may be absent."""
    return None if mask is None else mask[..., own]


def rows_at_a_time(config: Config) -> int:
    """Rows of the result whose partial sums all lanes keep together: a block of a product with several K tiles."""
    return config.lanes * config.psum_rows


def coarse(*masks: BoolArray | None) -> tuple[float, ...]:
    """Densities, up to 1 % of each too high, so that groups of a layer share programs."""
    values = [1.0 if mask is None else max(LEAST, float(mask.mean())) for mask in masks]
    return tuple(min(1.0, 1.01 ** math.ceil(math.log(value, 1.01) - 1e-9)) for value in values)


def column_work(columns: int, *masks: BoolArray | None) -> tuple[float, ...] | None:
    """Relative work of each column, from masks whose last axis they are; None where it is about the same."""
    work = np.ones(columns)
    for mask in masks:
        if mask is not None:
            work *= mask.reshape(-1, columns).mean(axis=0)
    if not work.mean() or work.std() <= UNEVEN * work.mean():
        return None
    return tuple(np.round(work / work.mean(), 2).tolist())


def ranges(total: int, pieces: int) -> list[slice]:
    """``total`` in pieces of nearly equal size."""
    return [slice(i * total // pieces, (i + 1) * total // pieces) for i in range(pieces)]


@dataclass(frozen=True)
class ConvWork:
    """A convolution.

    Members:
        shape: of A, (N, H, W, K).
        weights: (kh, kw, K, N).
        a: mask of A.
        b: mask of the weights.
        c: results wanted, (N, OH, OW, N).
        stride: of both axes.
        pads: ((top, bottom), (left, right)).
        dilation: of rows and columns.
        groups: groups merged in this product; the mask of the weights is then block-diagonal.
        post: results are requantised.
        dealt: columns are dealt to PEs by their expected work.
    """

    shape: Shape4
    weights: Shape4
    a: BoolArray | None = None
    b: BoolArray | None = None
    c: BoolArray | None = None
    stride: int = 1
    pads: Pads = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    post: bool = False
    dealt: bool = True

    @property
    def output(self) -> Shape4:
        """(N, OH, OW, N)."""
        return conv_output_shape(self.shape, self.weights, self.stride, self.pads, self.dilation)

    @property
    def key(self) -> Hashable:
        """Everything but the masks."""
        return (
            self.shape, self.weights, self.stride, self.pads, self.dilation, self.c is not None, self.post,
            self._density, self._column_work, None if self._positions is None else self._positions.tobytes(),
            self._whole,
        )  # fmt: skip

    @property
    def _density(self) -> tuple[float, ...]:
        """Densities, which the choice of tiles goes by."""
        return coarse(self.a, self.b, self.c)

    @property
    def _column_work(self) -> tuple[float, ...] | None:
        """Expected work of each column, in steps of 2 % of the mean; None where they are not dealt by it."""
        return column_work(self.output[3], self.b, self.c) if self.dealt else None

    @cached_property
    def _whole(self) -> bool:
        """All results of a position are wanted, or none."""
        return self.c is not None and bool((self.c.any(axis=3) == self.c.all(axis=3)).all())

    @cached_property
    def _positions(self) -> BoolArray | None:
        """Positions of which any result is wanted, (N, OH, OW); None if that is about all of them."""
        if self.c is None:
            return None
        kept = np.asarray(self.c.any(axis=3), dtype=np.bool_)
        return None if kept.mean() > MOST_KEPT else kept

    def macs(self) -> tuple[int, int]:
        """Dense and effectual products."""
        images, height, width, channels = self.shape
        _, out_height, out_width, columns = self.output
        (top, _), (left, _) = self.pads
        dense = effectual = 0
        ys = axis_taps(height, out_height, self.weights[0], self.stride, top, self.dilation[0])
        xs = axis_taps(width, out_width, self.weights[1], self.stride, left, self.dilation[1])
        for (i, (oy, iy, h)), (j, (ox, ix, w)) in itertools.product(enumerate(ys), enumerate(xs)):
            if h and w:
                rows = images * h * w
                dense += rows * channels * columns // self.groups
                b = None if self.b is None else self.b[i, j]
                sizes = (rows, channels, columns)
                effectual += count(pixel_rows(self.a, iy, ix), b, pixel_rows(self.c, oy, ox), sizes)
        return dense, effectual

    def lower(self, config: Config, trust: bool = True, tune: bool = False) -> Program:
        """The program; ``trust``: banks are filled as the masks' density lets one expect; ``tune``: its tiles
        are chosen by simulation.

        Raises:
            ProgramError: if the configuration cannot run it.
        """
        # what the hardware does not skip is there, whatever its mask says
        density = tuple(d if name in config.skip else 1.0 for name, d in zip("abc", self._density, strict=True))
        return lower_conv(config, self.shape, self.weights, self.stride, self.pads, self.dilation,
                          use_c=self.c is not None, post=POST if self.post else None, density=density,
                          trust=trust, tune=tune, column_work=self._column_work,
                          positions=self._positions if "c" in config.skip else None, whole=self._whole)  # fmt: skip

    def masks(self) -> dict[str, tuple[tuple[int, ...], BoolArray | None]]:
        """Operand -> its shape and mask."""
        return {"a": (self.shape, self.a), "b": (self.weights, self.b), "c_mask": (self.output, self.c)}

    def ways(self, config: Config) -> list[ConvWork]:
        """This one."""
        return [self]

    def cut(self, config: Config, pieces: int) -> list[ConvWork]:
        """Groups of images, or bands of output rows of one; where there are too few of those, columns as well."""
        images, height, width, columns = self.output
        least = rows_at_a_time(config)
        groups = min(images, pieces, max(1, images * height * width // least))
        bands = min(-(-pieces // groups), height, max(1, height * width // least)) if groups == images else 1
        across = config.tile_columns * (config.lanes if images * height * width < config.lanes else 1)
        blocks = 1 if self.groups > 1 else min(-(-pieces // (groups * bands)), max(1, columns // across))
        result = []
        for group, band, own in itertools.product(ranges(images, groups), ranges(height, bands),
                                                  ranges(columns, blocks)):  # fmt: skip
            part = self._band(group, band)
            if part is not None:
                weights = (*self.weights[:3], own.stop - own.start)
                result.append(replace(part, weights=weights, b=select(part.b, own), c=select(part.c, own)))
        return result

    def _band(self, images: slice, outputs: slice) -> ConvWork | None:
        height = self.shape[1]
        low = outputs.start * self.stride - self.pads[0][0]
        reach = self.dilation[0] * (self.weights[0] - 1) + 1
        high = (outputs.stop - 1) * self.stride - self.pads[0][0] + reach
        top, bottom = max(0, -low), max(0, high - height)
        rows = slice(max(0, low), min(height, high))
        if rows.start >= rows.stop:
            return None  # padding only: no products
        return replace(
            self,
            shape=(images.stop - images.start, rows.stop - rows.start, *self.shape[2:]),
            a=None if self.a is None else self.a[images, rows],
            c=None if self.c is None else self.c[images, outputs],
            pads=((top, bottom), self.pads[1]),
        )
