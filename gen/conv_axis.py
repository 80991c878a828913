"""Geometry of a convolution: its spatial axes, thinned to the pixels that the kernel can meet."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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

    def met(self) -> NDArray[np.float64]:
        """The share of the taps that meet the image, for each output."""
        first = np.arange(self.outputs)[:, None] * self.stride - self.pad
        pixels = first + np.arange(self.taps) * self.dilation
        return ((pixels >= 0) & (pixels < self.pixels)).mean(axis=1)

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
