"""The products of a layer's three passes on a target, from integers to integers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from maskwork.gen.bench_masks import tensor_shape
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.gen.execute import execute
from maskwork.gen.mask import BoolArray, as_bool
from maskwork.gen.passes import OPERANDS, Piece, pieces
from maskwork.gen.program import Program
from maskwork.gen.report import make_report, summary
from maskwork.gen.workload import Layer
from maskwork.gen.works import select
from maskwork.gen.works_wgrad import WeightGradWork
from numpy.typing import NDArray

if TYPE_CHECKING:
    from maskwork.sim_tb.device import Device

Int64Array = NDArray[np.int64]

_PROGRAMS = 512
"""Programs that are kept: steps of training repeat the same products."""

RESULT = {"forward": "output", "input_grad": "input", "weight_grad": "weight"}
"""The tensor that a pass gives, or gives the gradient of."""


def result_shape(layer: Layer, which: str) -> tuple[int, int, int, int]:
    """Shape of a pass's result."""
    return tensor_shape(layer, RESULT[which])


class Products:
    """Runs passes of layers on a device.

    Args:
        device: an open device (:func:`maskwork.sim_tb.device.open_device`).
        target: its name in reports.

    Attributes:
        reports: of every pass that ran, in order: ``layer``, ``pass``, ``densities`` and the keys of docs/formats.md.
    """

    def __init__(self, device: Device, target: str) -> None:
        self.device, self.target = device, target
        self.reports: list[dict[str, Any]] = []
        self._programs: dict[Any, Program] = {}

    @property
    def config(self) -> Config:
        """The accelerator's."""
        return self.device.config

    def run(self, layer: Layer, which: str, tensors: Mapping[str, Any], wanted: Any = None) -> Int64Array:
        """One pass of a layer.

        Args:
            layer: its shapes; its densities do not matter.
            which: "forward", "input_grad" or "weight_grad".
            tensors: integers by name, those of :data:`~maskwork.gen.passes.OPERANDS` that the pass multiplies:
                "input" (N, H, W, Cin), "weight" (kh, kw, Cin / groups, Cout), "output_grad" (N, OH, OW, Cout). Their
                zeros are their masks.
            wanted: mask of the results, of the result's shape: the others are exactly 0 and are not computed. None
                for all.

        Returns:
            int64: the output (N, OH, OW, Cout), the input's gradient or the weights' gradient: exact sums.

        Raises:
            MaskworkTypeError, MaskworkValueError: naming the layer, pass and tensor, for shapes, types or values that
                do not fit.
            ProgramError: if the configuration cannot run it.
            DeviceError: if the device fails.
        """
        start = time.perf_counter()
        name, a, b, shape, mask = self._checked(layer, which, tensors, wanted)
        result = np.zeros(shape, dtype=np.int64)
        parts = []
        try:
            for piece in pieces(self.config, layer, which):
                parts.append(self._piece(piece, a, b, mask, result))
        except MaskworkValueError as error:
            raise type(error)(f"{name}: {error}") from None
        if not parts:  # no tap meets a pixel
            parts = [make_report(self.target, self.config, {"macs_dense": 0, "macs_effectual": 0}, words_in=0,
                                 words_out=0, seconds=0.0)]  # fmt: skip
        densities = {"a": _density(a), "b": _density(b), "c": 1.0 if mask is None else float(mask.mean())}
        head = {"layer": layer.layer, "pass": which, "densities": densities, "products": len(parts)}
        seconds = time.perf_counter() - start
        base = {key: parts[0][key] for key in ("target", "config", "pes")}
        self.reports.append(head | base | summary(parts) | {"seconds": seconds})
        return result

    def _checked(self, layer: Layer, which: str, tensors: Mapping[str, Any], wanted: Any) -> tuple[Any, ...]:
        """What messages call it, A, B, the result's shape and the mask of the results."""
        if which not in OPERANDS:
            raise MaskworkValueError(f"pass must be one of {', '.join(OPERANDS)}, not {which!r}")
        name = f"{layer.layer}, {which}"
        operands = []
        for tensor, width in zip(OPERANDS[which], (self.config.a_width, self.config.b_width), strict=False):
            values = _tensor(layer, tensor, tensors, name)
            bound = 1 << (width - 1)
            if values.size and (values.min() < -bound or values.max() >= bound):
                raise MaskworkValueError(
                    f"{name}: {tensor} must lie in {-bound}..{bound - 1}, not {values.min()}..{values.max()}"
                )
            operands.append(values)
        shape = result_shape(layer, which)
        return name, *operands, shape, None if wanted is None else _wanted(wanted, shape, name)

    def _piece(self, piece: Piece, a: Any, b: Any, mask: BoolArray | None, result: Int64Array) -> dict[str, Any]:
        own_a, own_b = piece.a(a), piece.b(b)
        work = piece.make(own_a != 0, own_b != 0, piece.c(mask), False)
        key = work.key  # looks at the masks
        if key not in self._programs:
            if len(self._programs) >= _PROGRAMS:
                del self._programs[next(iter(self._programs))]
            self._programs[key] = work.lower(self.config, trust=False)
        program = self._programs[key]
        exchanged = isinstance(work, WeightGradWork) and work.exchanged
        if exchanged:
            own_a, own_b = own_b, own_a
        if isinstance(work, WeightGradWork):
            own_a = np.ascontiguousarray(np.moveaxis(own_a, -1, 1))
        operands = {"a": own_a, "b": own_b}
        if work.c is not None:
            operands["c_mask"] = work.c
        start = time.perf_counter()
        done = execute(self.device, program, operands)
        dense, effectual = work.macs()
        report = make_report(
            self.target, self.config, {"macs_dense": dense, "macs_effectual": effectual}, words_in=done.words_in,
            words_out=done.words_out, seconds=time.perf_counter() - start, counters=done.counters,
        )  # fmt: skip
        values = done.outputs["c"]
        piece.place(result, values[::-1, ::-1].transpose(0, 1, 3, 2) if exchanged else values)
        return report


class GoldenProducts(Products):
    """The same passes by the golden model's formulas: no program, so fast enough to train with. Reports hold products
    and densities.
    """

    def __init__(self, config: Config) -> None:
        from maskwork.sim_tb.device import GoldenDevice

        super().__init__(GoldenDevice(config), "golden")

    def run(self, layer: Layer, which: str, tensors: Mapping[str, Any], wanted: Any = None) -> Int64Array:
        """See :meth:`Products.run`."""
        from maskwork.sim_tb.golden.gradients import conv2d_pass

        start = time.perf_counter()
        name, a, b, shape, mask = self._checked(layer, which, tensors, wanted)
        result = conv2d_pass(which, a, b, shape, layer.stride, layer.padding, layer.dilation, layer.groups, mask)  # type: ignore[arg-type]
        limit = 1 << (self.config.acc_width - 1)
        if result.size and (result.min() < -limit or result.max() >= limit):
            raise MaskworkValueError(
                f"{name}: a sum of {result.min() if result.min() < -limit else result.max()} does not fit the "
                f"accumulators' {self.config.acc_width} bits"
            )
        densities = {"a": _density(a), "b": _density(b), "c": 1.0 if mask is None else float(mask.mean())}
        counts = pass_macs(layer, which, {OPERANDS[which][0]: a, OPERANDS[which][1]: b}, mask)
        report = make_report("golden", self.config, counts, words_in=0, words_out=0,
                             seconds=time.perf_counter() - start)  # fmt: skip
        self.reports.append({"layer": layer.layer, "pass": which, "densities": densities} | report)
        return result


def pass_macs(layer: Layer, which: str, tensors: Mapping[str, Any], wanted: BoolArray | None = None) -> dict[str, int]:
    """``macs_dense`` and ``macs_effectual`` of a pass: triples that exist, and those whose factors are not 0 and whose
    result is wanted.

    Args:
        layer: its shapes.
        which: the pass.
        tensors: as for :meth:`Products.run`.
        wanted: the same.
    """
    # the triples are the forward pass's; each pass knows the mask of another of its three tensors
    names = {"input": "input", "weight": "weight", "output": "output_grad"}
    own = {names[RESULT[which]]: wanted, **{name: np.asarray(values) != 0 for name, values in tensors.items()}}
    inner, columns = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    dense = effectual = 0
    for g in range(layer.groups):
        ins, outs = slice(g * inner, (g + 1) * inner), slice(g * columns, (g + 1) * columns)
        work = WeightGradWork(
            (*layer.input_shape[:3], inner), (*layer.output_shape[:3], columns),
            (layer.kernel_height, layer.kernel_width), select(own["input"], ins), select(own["output_grad"], outs),
            select(own["weight"], outs), layer.stride, layer.padding, layer.dilation,
        )  # fmt: skip
        part = work.macs()
        dense, effectual = dense + part[0], effectual + part[1]
    return {"macs_dense": dense, "macs_effectual": effectual}


def _tensor(layer: Layer, tensor: str, tensors: Mapping[str, Any], name: str) -> Int64Array:
    if tensor not in tensors:
        raise MaskworkValueError(f"{name}: tensor {tensor!r} is missing; shape {tensor_shape(layer, tensor)} "
                                 f"is expected")  # fmt: skip
    values = np.asarray(tensors[tensor])
    if values.dtype.kind not in "iu":
        raise MaskworkTypeError(f"{name}: {tensor} must be an array of integers, not {values.dtype}")
    if values.shape != tensor_shape(layer, tensor):
        raise MaskworkValueError(f"{name}: {tensor} must have shape {tensor_shape(layer, tensor)}, not {values.shape}")
    return values.astype(np.int64)


def _wanted(wanted: Any, shape: tuple[int, ...], name: str) -> BoolArray:
    mask = as_bool(wanted, f"{name}: mask of the results")
    if mask.shape != shape:
        raise MaskworkValueError(f"{name}: mask of the results must have shape {shape}, not {mask.shape}")
    return mask


def _density(values: NDArray[Any]) -> float:
    return float(np.count_nonzero(values) / max(1, values.size))


def conv_layer(
    name: str,
    input_shape: tuple[int, int, int, int],
    weight_shape: tuple[int, int, int, int],
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Layer:
    """A convolution's shapes, as :meth:`Products.run` wants them.

    Args:
        name: of the layer, for reports and messages.
        input_shape: (N, H, W, Cin).
        weight_shape: (kh, kw, Cin / groups, Cout).
        stride: of both axes.
        padding: zeros on all four sides.
        dilation: of both axes.
        groups: divides Cin and Cout.

    Raises:
        MaskworkValueError: for shapes that do not match or fit.
    """
    n, h, w, cin = (int(v) for v in input_shape)
    kh, kw, inner, cout = (int(v) for v in weight_shape)
    if inner * groups != cin:
        raise MaskworkValueError(
            f"{name}: weights must have shape (kh, kw, {cin} / {groups}, outputs) for {cin} input channels in {groups} "
            f"groups, not {tuple(weight_shape)}"
        )
    try:
        return Layer(
            network="train", layer=name, batch=n, in_channels=cin, out_channels=cout, in_height=h, in_width=w,
            kernel_height=kh, kernel_width=kw, stride=stride, padding=padding, dilation=dilation, groups=groups,
        )  # fmt: skip
    except MaskworkValueError as error:
        raise MaskworkValueError(f"{name}: {error}") from None


def linear_layer(name: str, batch: int, inputs: int, outputs: int) -> Layer:
    """A fully connected layer's shapes: a 1x1 convolution of 1x1 images."""
    return conv_layer(name, (batch, 1, 1, inputs), (1, 1, inputs, outputs))
