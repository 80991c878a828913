"""Convolutions and matrix products as steps on the array."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkError, MaskworkValueError
from maskwork.gen.lower import Post, conv_output_shape, lower_conv, lower_matmul
from maskwork.gen.lower_matmul import expected_cycles
from maskwork.gen.network.quant import Quantised
from maskwork.gen.network.steps import Finish, Requantise, Run, Step, Tensors
from maskwork.gen.program import Program
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]

ASSUMED_DENSITY = 0.5
"""Nonzeros expected in activations of which nothing is known: about what ReLU leaves."""

SURE = 0.9
"""How much fewer cycles must be expected for operands to change places: densities are expectations, too."""


def _width(limit: int, low: int) -> int:
    """Bits of a signed type for low..limit."""
    return max(int(limit).bit_length(), int(-low - 1).bit_length() if low < 0 else 0) + 1


@dataclass(kw_only=True)
class Product(Step):
    """What both kinds of product share.

    Attributes:
        x: the streamed operand.
        bias: int64 (C,), in units of the product; or None.
        finish: what becomes of the sums.
    """

    x: Quantised
    bias: Int64Array | None
    finish: Finish
    program: Program | None = field(default=None, init=False)

    @property
    def programs(self) -> list[Program]:
        """The one program."""
        return [self.program] if self.program is not None else []

    def _post(self) -> Post | None:
        return Post(self.finish.low, self.finish.high) if isinstance(self.finish, Requantise) else None

    def _parameters(self, columns: int) -> dict[str, Any]:
        if not isinstance(self.finish, Requantise):
            return {}
        bias = self.bias if self.bias is not None else np.zeros(columns, dtype=np.int64)
        return {"bias": bias, "mult": self.finish.mult, "shift": self.finish.shift}

    def _finished(self, sums: NDArray[Any]) -> NDArray[Any]:
        if self.bias is not None and not isinstance(self.finish, Requantise):
            sums = sums.astype(np.int64) + self.bias
        return self.finish.finish(sums)

    def _check_widths(self, config: Config, weights: NDArray[Any] | None) -> None:
        low, high = self.x.limits
        if _width(high, low) > config.a_width:
            raise MaskworkValueError(
                f"node {self.name!r}: q - zero_point of {self.x.name!r} is {low}..{high}, which needs a_width = "
                f"{_width(high, low)}, not {config.a_width}"
            )
        if weights is not None and weights.size:
            low, high = int(weights.min()), int(weights.max())
            if _width(high, low) > config.b_width:
                raise MaskworkValueError(
                    f"node {self.name!r}: q - zero_point of its weights is {low}..{high}, which needs b_width = "
                    f"{_width(high, low)}, not {config.b_width}"
                )


@dataclass(kw_only=True)
class Convolution(Product):
    """A convolution of any kind.

    Attributes:
        kernel: int64 (kh, kw, cin / groups, cout), q - zero_point.
        groups: of channels.
        stride, dilation: (rows, columns).
        padding: ((top, bottom), (left, right)); negative ones crop.
        insert: rows and columns from one input pixel to the next, with zeros between: a transposed convolution.
        flat: the tensors are (N, C, W), without height.
        x_shape: (N, H, W, C).
    """

    kernel: Int64Array
    groups: int
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    insert: tuple[int, int] = (1, 1)
    flat: bool = False
    x_shape: tuple[int, int, int, int]

    @property
    def full_kernel(self) -> Int64Array:
        """(kh, kw, cin, cout), with zeros between groups."""
        if self.groups == 1:
            return self.kernel
        kh, kw, cin, cout = self.kernel.shape
        full = np.zeros((kh, kw, self.groups, cin, cout), dtype=np.int64)
        each = cout // self.groups
        for group in range(self.groups):
            own = slice(group * each, (group + 1) * each)
            full[:, :, group, :, own] = self.kernel[:, :, :, own]
        return full.reshape(kh, kw, self.groups * cin, cout)

    def _shape(self) -> tuple[int, int, int, int]:
        """Shape of the streamed operand: zeros inserted and edges cropped."""
        n, h, w, c = self.x_shape
        sizes = [
            (size - 1) * step + 1 + min(0, pads[0]) + min(0, pads[1])
            for size, step, pads in zip((h, w), self.insert, self.padding, strict=True)
        ]
        return n, sizes[0], sizes[1], c

    def _pads(self) -> tuple[tuple[int, int], tuple[int, int]]:
        (top, bottom), (left, right) = self.padding
        return (max(0, top), max(0, bottom)), (max(0, left), max(0, right))

    def lower(self, config: Config, density: float | None = None) -> None:
        """Make the program.

        Raises:
            MaskworkError: naming the node, if the configuration cannot run it.
        """
        kernel = self.full_kernel
        self._check_widths(config, kernel)
        inserted = self.insert[0] * self.insert[1]
        densities = ((density or ASSUMED_DENSITY) / inserted, float(np.mean(self.kernel != 0)), 1.0)
        try:
            self.program = lower_conv(
                config, self._shape(), kernel.shape, self.stride, self._pads(), self.dilation, post=self._post(),
                density=tuple(max(d, 1e-4) for d in densities), groups=self.groups,
                column_work=np.count_nonzero(kernel, axis=(0, 1, 2)),
            )  # fmt: skip
        except MaskworkError as error:
            raise type(error)(f"node {self.name!r}: {error}") from None

    @property
    def weights(self) -> dict[str, NDArray[Any]]:
        """Kernel and parameters."""
        return {"b": self.full_kernel, **self._parameters(self.kernel.shape[3])}

    def operand(self, values: Int64Array) -> Int64Array:
        """The tensor as it is streamed, from its q - zero_point: NHWC, zeros inserted."""
        values = np.moveaxis(values[:, :, None, :] if self.flat else values, 1, 3)
        if self.insert != (1, 1):
            n, h, w, c = values.shape
            spread = np.zeros((n, (h - 1) * self.insert[0] + 1, (w - 1) * self.insert[1] + 1, c), dtype=np.int64)
            spread[:, :: self.insert[0], :: self.insert[1]] = values
            values = spread
        (top, bottom), (left, right) = self.padding
        cut = [slice(max(0, -a), size - max(0, -b))
               for (a, b), size in zip(((top, bottom), (left, right)), values.shape[1:3], strict=True)]  # fmt: skip
        return values[:, cut[0], cut[1]]

    def macs(self, operand: Int64Array) -> dict[str, int]:
        """Products: those of pixels that exist and their effectual part."""
        from maskwork.sim_tb.golden import conv2d_macs

        around = ((0, 0), *self._pads(), (0, 0))
        exists = np.zeros((*operand.shape[:3], 1), dtype=np.int64)
        (top, _), (left, _) = self.padding
        first = [-(-max(0, -edge) // step) * step - max(0, -edge)
                 for edge, step in zip((top, left), self.insert, strict=True)]  # fmt: skip
        exists[:, first[0] :: self.insert[0], first[1] :: self.insert[1]] = 1
        one = np.ones((*self.kernel.shape[:2], 1, 1), dtype=np.int64)
        dense, effectual = (
            conv2d_macs(np.pad(values, around), kernel, self.stride, 0, self.dilation)["macs_effectual"]
            for values, kernel in ((exists, one), (operand, self.full_kernel))
        )
        return {"macs_dense": dense * self.kernel.shape[2] * self.kernel.shape[3], "macs_effectual": effectual}

    def run(self, values: Tensors, run: Run) -> Tensors:
        """On the array; layout changes on the host."""
        assert self.program is not None
        operand = self.operand(self.x.less_zero(values))
        sums = run.execute(self, self.program, {"a": operand, **self.weights}, self.macs(operand))
        result = np.moveaxis(self._finished(sums), 3, 1)
        return {self.outputs[0]: np.ascontiguousarray(result[:, :, 0] if self.flat else result)}

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """(N, OH, OW, cout)."""
        kh, kw, _, cout = self.kernel.shape
        shape = self._shape()
        return conv_output_shape(shape, (kh, kw, shape[3], cout), self.stride, self._pads(), self.dilation)


@dataclass(kw_only=True)
class MatrixProduct(Product):
    """A product of matrices, or of stacks of them.

    Attributes:
        b: int64 (K, N), q - zero_point, if it is known; else the tensor it comes from.
    x_shape, b_shape, y_shape: ONNX shapes; the last two axes are multiplied.
        swap_x, swap_b: the last two axes come transposed.
        exchanged: the known operand is streamed, the other resident: C^T = B^T . A^T, for fewer expected cycles.
    """

    b: Int64Array | Quantised
    x_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    y_shape: tuple[int, ...]
    swap_x: bool = False
    swap_b: bool = False
    exchanged: bool = field(default=False, init=False)

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """Rows, inner and columns of one product: a known B serves a whole stack at once."""
        m, k = self.x_shape[-2:][::-1] if self.swap_x else self.x_shape[-2:]
        n = self.b_shape[-2] if self.swap_b else self.b_shape[-1]
        rows = int(np.prod(self.x_shape[:-2], dtype=np.int64)) * m if self._known else m
        return rows, k, n

    @property
    def _known(self) -> bool:
        return isinstance(self.b, np.ndarray)

    def lower(self, config: Config, density: float | None = None) -> None:
        """Make the program.

        Raises:
            MaskworkError: naming the node, if the configuration cannot run it.
        """
        known = self.b if isinstance(self.b, np.ndarray) else None
        self._check_widths(config, known)
        share = float(np.mean(known != 0)) if known is not None else 1.0
        densities = (density or ASSUMED_DENSITY, max(share, 1e-4), 1.0)
        m, k, n = self._sizes
        turned = (densities[1], densities[0], 1.0)
        try:
            # post-processing has its parameters by column, which would be rows then
            free = known is not None and not isinstance(self.finish, Requantise) and self._fits(config, known)
            self.exchanged = free and (
                expected_cycles(config, n, k, m, turned) < SURE * expected_cycles(config, m, k, n, densities)
            )
            if self.exchanged:
                self.program = lower_matmul(config, n, k, m, density=turned)
            else:
                self.program = lower_matmul(config, m, k, n, post=self._post(), density=densities)
        except MaskworkError as error:
            raise type(error)(f"node {self.name!r}: {error}") from None

    @property
    def weights(self) -> dict[str, NDArray[Any]]:
        """B, if it is known, and parameters."""
        if isinstance(self.b, np.ndarray):
            known = {"a": np.ascontiguousarray(self.b.T)} if self.exchanged else {"b": self.b}
        else:
            known = {}
        return {**known, **self._parameters(self._sizes[2])}

    def _fits(self, config: Config, known: Int64Array) -> bool:
        """Whether the operands may change places."""
        low, high = self.x.limits
        weights = _width(int(known.max(initial=0)), int(known.min(initial=0)))
        return _width(high, low) <= config.b_width and weights <= config.a_width

    def run(self, values: Tensors, run: Run) -> Tensors:
        """On the array."""
        from maskwork.sim_tb.golden import macs

        assert self.program is not None
        x = self.x.less_zero(values)
        x = np.swapaxes(x, -1, -2) if self.swap_x else x
        m, k, n = self._sizes
        if isinstance(self.b, np.ndarray):
            a = x.reshape(m, k)
            if self.exchanged:
                operands = {**self.weights, "b": np.ascontiguousarray(a.T)}
                sums = run.execute(self, self.program, operands, macs(operands["a"], operands["b"])).T
            else:
                sums = run.execute(self, self.program, {"a": a, **self.weights}, macs(a, self.b))
        else:
            b = self.b.less_zero(values)
            b = np.swapaxes(b, -1, -2) if self.swap_b else b
            stack = np.broadcast_shapes(x.shape[:-2], b.shape[:-2])
            lefts = np.broadcast_to(x, (*stack, m, k)).reshape(-1, m, k)
            rights = np.broadcast_to(b, (*stack, k, n)).reshape(-1, k, n)
            sums = np.stack([
                run.execute(self, self.program, {"a": left, "b": right, **self.weights}, macs(left, right))
                for left, right in zip(lefts, rights, strict=True)
            ])  # fmt: skip
        return {self.outputs[0]: self._finished(sums.reshape(self.y_shape))}
