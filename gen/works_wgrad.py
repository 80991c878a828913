"""Weight gradients as products on the array, with either operand streamed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable
from dataclasses import dataclass, replace

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.errors import ProgramError
from maskwork.gen.lower_conv import parse_pads
from maskwork.gen.lower_wgrad import exchanged_pads, lower_weight_grad, weight_grad_cycles
from maskwork.gen.mask import BoolArray
from maskwork.gen.program import Program
from maskwork.gen.works import (
    POST,
    Pads,
    Shape4,
    axis_taps,
    coarse,
    column_work,
    count,
    pixel_rows,
    ranges,
    rows_at_a_time,
    select,
)

_NEAR = 1.3
"""Expected cycles of a way that is worth a simulation, at most, of the best one's."""


@dataclass(frozen=True)
class WeightGradWork:
    """The correlation of a layer's input, streamed, with its output gradient; or (:meth:`swapped`) of the output
    gradient, streamed, with the input.

    Members:
        shape: of the input, (N, H, W, Cin).
        grad: of the output gradient, (N, OH, OW, Cout).
        kernel: (kh, kw).
        a: mask of the input.
        b: mask of the output gradient.
        c: gradients wanted, (kh, kw, Cin, Cout).
        stride, dilation: the layer's.
        padding: the layer's: an integer, or ((top, bottom), (left, right)).
        post: results are requantised.
        exchanged: it is the swapped one.
        groups: groups merged in this product; the mask of C is then block-diagonal.
        dealt: channels and columns are dealt by their expected work.

    Swapped, shape, a, grad and b are those of the other operand, results are (kh, kw, Cout, Cin) with taps in reverse.
    """

    shape: Shape4
    grad: Shape4
    kernel: tuple[int, int]
    a: BoolArray | None = None
    b: BoolArray | None = None
    c: BoolArray | None = None
    stride: int = 1
    padding: int | Pads = 0
    dilation: int = 1
    post: bool = False
    exchanged: bool = False
    groups: int = 1
    dealt: bool = True

    @property
    def _density(self) -> tuple[float, ...]:
        """Densities of A and B, which the choice of tiles goes by."""
        return coarse(self.a, self.b)

    def _expected(self, config: Config) -> tuple[float, ...]:
        """The same, but 1 for operands whose zeros are computed."""
        return tuple(d if name in config.skip else 1.0 for name, d in zip("ab", self._density, strict=True))

    @property
    def _row_work(self) -> tuple[float, ...] | None:
        """Expected work of each channel of A, in steps of 1 % of the mean; None where they are not dealt by it."""
        if not self.dealt:
            return None
        wanted = None if self.c is None else self.c.transpose(0, 1, 3, 2)
        return column_work(self.shape[3], self.a, wanted)

    @property
    def _column_work(self) -> tuple[float, ...] | None:
        """The same of each column."""
        return column_work(self.grad[3], self.b, self.c) if self.dealt else None

    @property
    def key(self) -> Hashable:
        """Everything but the masks."""
        return (
            self.shape, self.grad, self.kernel, self.stride, parse_pads(self.padding), self.dilation,
            self.c is not None, self.post, self._density, self._row_work, self._column_work,
        )  # fmt: skip

    def macs(self) -> tuple[int, int]:
        """Dense and effectual products."""
        dense = effectual = 0
        pads = parse_pads(self.padding)
        ys, xs = (
            axis_taps(self.shape[1 + i], self.grad[1 + i], self.kernel[i], self.stride, pads[i][0], self.dilation)
            for i in (0, 1)
        )
        for (i, (oy, iy, h)), (j, (ox, ix, w)) in itertools.product(enumerate(ys), enumerate(xs)):
            if h and w:
                rows, channels, columns = self.shape[0] * h * w, self.shape[3], self.grad[3]
                dense += rows * channels * columns // self.groups
                c = None if self.c is None else self.c[i, j]
                # the same triples as in the forward pass: here c says which pairs of channels are wanted
                effectual += count(pixel_rows(self.a, iy, ix), c, pixel_rows(self.b, oy, ox), (rows, channels, columns))
        return dense, effectual

    def layout_words(self, config: Config) -> int:
        """32-bit words of the streamed operand, once, by channel as it is loaded: what a change of its layout from by
        position writes, and about what it reads. Whoever packs operands does it: no cycle of the array counts it.
        """
        images, height, width, channels = self.shape
        rows, beat = images * height * channels, config.stream_words
        skipped = self.a is not None and "a" in config.skip
        counts = self.a.sum(axis=2).reshape(-1) if self.a is not None and skipped else np.full(rows, width)
        values = -(-counts // config.values_per_word(config.a_width))
        bitmap = -(-width // 32) if skipped else 0
        return int(rows * -(-bitmap // beat) * beat + (-(-values // beat) * beat).sum())

    def swapped(self) -> WeightGradWork | None:
        """The same products with operands exchanged: (kh, kw, Cout, Cin), taps in reverse. Swapped again, it is this
        one. None where strides or padding forbid it (:func:`~maskwork.gen.lower_wgrad.exchanged_pads`).
        """
        pads = exchanged_pads(self.kernel, self.stride, self.padding, self.dilation)
        if pads is None:
            return None
        wanted = None if self.c is None else self.c[::-1, ::-1].transpose(0, 1, 3, 2)
        return replace(self, shape=self.grad, grad=self.shape, a=self.b, b=self.a, c=wanted, padding=pads,
                       exchanged=not self.exchanged)  # fmt: skip

    def cycles(self, config: Config) -> float:
        """Cycles that the lowering expects; infinite if the configuration cannot run it."""
        try:
            return weight_grad_cycles(config, self.shape, self.grad, self.kernel, self.stride, self.padding,
                                      self.dilation, use_c=self.c is not None, density=self._expected(config),
                                      trust=True)  # fmt: skip
        except ProgramError:
            return math.inf

    def ways(self, config: Config) -> list[WeightGradWork]:
        """This one and the swapped one, the one with fewer expected cycles first; without the other if it seems much
        worse, is none, or its operands have other widths.
        """
        other = self.swapped() if config.a_width == config.b_width else None
        if other is None:
            return [self]
        priced = sorted(((self.cycles(config), 0, self), (other.cycles(config), 1, other)), key=lambda way: way[:2])
        return [way for cycles, _, way in priced if cycles <= _NEAR * priced[0][0]]

    def lower(self, config: Config, trust: bool = True, tune: bool = False) -> Program:
        """The program; ``trust``: banks are filled as the masks' density lets one expect; ``tune``: its tiles
        are chosen by simulation.

        Raises:
            ProgramError: if the configuration cannot run it.
        """
        return lower_weight_grad(config, self.shape, self.grad, self.kernel, self.stride, self.padding, self.dilation,
                                 use_c=self.c is not None, post=POST if self.post else None,
                                 density=self._expected(config), trust=trust, tune=tune, row_work=self._row_work,
                                 column_work=self._column_work)  # fmt: skip

    def masks(self) -> dict[str, tuple[tuple[int, ...], BoolArray | None]]:
        """Operand -> its shape and mask."""
        n, height, width, channels = self.shape
        by_channel = None if self.a is None else self.a.transpose(0, 3, 1, 2)  # as lower_weight_grad has it
        output = (*self.kernel, channels, self.grad[3])
        return {"a": ((n, channels, height, width), by_channel), "b": (self.grad, self.b), "c_mask": (output, self.c)}

    def cut(self, config: Config, pieces: int) -> list[WeightGradWork]:
        """Blocks of input channels (rows of the result); where there are too few of those, columns as well."""
        if self.groups > 1:
            return [self]
        channels, columns = self.shape[3], self.grad[3]
        least = -(-rows_at_a_time(config) // (self.kernel[0] * self.kernel[1]))
        rows = min(pieces, max(1, channels // least))
        blocks = min(-(-pieces // rows), max(1, columns // config.tile_columns))
        return [
            replace(
                self, shape=(*self.shape[:3], own.stop - own.start), grad=(*self.grad[:3], out.stop - out.start),
                a=select(self.a, own), b=select(self.b, out), c=None if self.c is None else self.c[:, :, own, out],
            )
            for own, out in itertools.product(ranges(channels, rows), ranges(columns, blocks))
        ]  # fmt: skip
