"""Pooling, addition and change of scale as steps on the vector unit."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkError
from maskwork.gen.network.quant import Quantised
from maskwork.gen.network.steps import Run, Step, Tensors
from maskwork.gen.program import Program
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]


@dataclass(kw_only=True)
class VectorStep(Step):
    """What all of them share: windows of values in, one value each out.

    Attributes:
        target: what is made.
        low, high: bounds of q - zero_point.
        kind: "sum" or "max".
    """

    target: Quantised
    low: int
    high: int
    kind: str
    _programs: list[Program] = field(default_factory=list, init=False)

    @property
    def programs(self) -> list[Program]:
        """A program for each choice of multipliers."""
        return self._programs

    def _lower(self, config: Config, count: int, window: int, mults: tuple[int, int], shift: int) -> None:
        from maskwork.gen.lower import lower_vector

        try:
            program = lower_vector(config, count, window, self.kind, *mults, shift, self.low, self.high)
        except MaskworkError as error:
            raise type(error)(f"node {self.name!r}: {error}") from None
        self._programs.append(program)

    def _finish(self, values: NDArray[np.int64]) -> NDArray[np.generic]:
        return (values + int(self.target.zero_point)).astype(self.target.dtype)


@dataclass(kw_only=True)
class Pool(VectorStep):
    """Max or average pooling.

    Attributes:
        x: the input.
        x_shape, y_shape: ONNX shapes, (N, C, ...).
        kernel, stride, dilation: by axis.
        padding: (before, after) by axis.
        multipliers: (mult, shift) by the number of a window's positions that count; the only one of max pooling is 0.
        count_padding: padded positions count.
    """

    x: Quantised
    x_shape: tuple[int, ...]
    y_shape: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    multipliers: dict[int, tuple[int, int]]
    count_padding: bool = False

    def _at(self, axis: int) -> Int64Array:
        """Pixel of every output position's every tap along an axis, also off the image."""
        outputs, taps = np.arange(self.y_shape[2 + axis]), np.arange(self.kernel[axis])
        return outputs[:, None] * self.stride[axis] - self.padding[axis][0] + taps[None, :] * self.dilation[axis]

    def _taps(self) -> tuple[Int64Array, NDArray[np.bool_]]:
        """Flat pixel of every output position's every tap, and whether it is on the image."""
        sizes = self.x_shape[2:]
        flat = np.zeros((1, 1), dtype=np.int64)
        there = np.ones((1, 1), dtype=np.bool_)
        for axis, size in enumerate(sizes):
            at = self._at(axis)
            inside = (at >= 0) & (at < size)
            clipped = np.clip(at, 0, size - 1)
            flat = (flat[:, None, :, None] * size + clipped[None, :, None, :]).reshape(
                flat.shape[0] * at.shape[0], flat.shape[1] * at.shape[1]
            )
            there = (there[:, None, :, None] & inside[None, :, None, :]).reshape(flat.shape)
        return flat, there

    def counts(self) -> Int64Array:
        """How many positions count for each output position."""
        if not self.count_padding:
            return self._taps()[1].sum(axis=1)
        sizes = self.x_shape[2:]
        count = np.ones(1, dtype=np.int64)
        for axis, size in enumerate(sizes):  # what ceil_mode adds beyond the padding never counts
            at = self._at(axis)
            own = (at < size + self.padding[axis][1]).sum(axis=1)
            count = (count[:, None] * own[None, :]).reshape(-1)
        return count

    def lower(self, config: Config, density: float | None = None) -> None:
        """Make the programs, one for each number of positions that count."""
        self._programs.clear()
        planes = self.x_shape[0] * self.x_shape[1]
        for (mult, shift), positions in self._groups():
            self._lower(config, planes * len(positions), int(np.prod(self.kernel)), (mult, mult), shift)

    def _groups(self) -> list[tuple[tuple[int, int], Int64Array]]:
        """Multiplier and shift with the output positions that they are for."""
        if self.kind == "max":
            return [(self.multipliers[0], np.arange(int(np.prod(self.y_shape[2:]))))]
        counts = self.counts()
        return [(self.multipliers[int(count)], np.flatnonzero(counts == count)) for count in np.unique(counts)]

    def run(self, values: Tensors, run: Run) -> Tensors:
        """On the vector unit; windows are gathered on the host."""
        x = values[self.x.name].astype(np.int64).reshape(*self.x_shape[:2], -1) - int(self.x.zero_point)
        flat, there = self._taps()
        empty = -(1 << (run.device.config.a_width - 1)) if self.kind == "max" else 0
        windows = np.where(there, x[:, :, flat], empty)  # (N, C, positions, taps)
        result = np.zeros(windows.shape[:3], dtype=np.int64)
        for program, (_, positions) in zip(self._programs, self._groups(), strict=True):
            own = windows[:, :, positions].reshape(-1, windows.shape[3])
            result[:, :, positions] = run.execute(self, program, {"a": own}).reshape(*result.shape[:2], -1)
        return {self.outputs[0]: self._finish(result).reshape(self.y_shape)}


@dataclass(kw_only=True)
class Addition(VectorStep):
    """The sum of two tensors of scales of their own.

    Attributes:
        terms: the two.
        shape: of the sum, to which both are broadcast.
        mults, shift: what each is multiplied with.
        constants: values of terms that nobody computes.
    """

    terms: tuple[Quantised, Quantised]
    shape: tuple[int, ...]
    mults: tuple[int, int]
    shift: int
    constants: Tensors

    def lower(self, config: Config, density: float | None = None) -> None:
        """Make the program."""
        self._programs.clear()
        self._lower(config, int(np.prod(self.shape)), 2, self.mults, self.shift)

    def run(self, values: Tensors, run: Run) -> Tensors:
        """On the vector unit."""
        known = values | self.constants
        pair = [np.broadcast_to(known[term.name].astype(np.int64) - int(term.zero_point), self.shape).reshape(-1)
                for term in self.terms]  # fmt: skip
        result = run.execute(self, self._programs[0], {"a": np.stack(pair, axis=1)})
        return {self.outputs[0]: self._finish(result).reshape(self.shape)}


@dataclass(kw_only=True)
class Rescale(VectorStep):
    """A tensor on another grid, with Relu and Clip on the way.

    Attributes:
        x: the input.
        mult, shift: what it is multiplied with.
    """

    x: Quantised
    shape: tuple[int, ...]
    mult: int
    shift: int

    def lower(self, config: Config, density: float | None = None) -> None:
        """Make the program."""
        self._programs.clear()
        self._lower(config, int(np.prod(self.shape)), 1, (self.mult, self.mult), self.shift)

    def run(self, values: Tensors, run: Run) -> Tensors:
        """On the vector unit."""
        x = values[self.x.name].astype(np.int64) - int(self.x.zero_point)
        result = run.execute(self, self._programs[0], {"a": x.reshape(-1, 1)})
        return {self.outputs[0]: self._finish(result).reshape(self.shape)}
