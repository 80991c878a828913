"""The demonstration's network: its layers, their exact integer arithmetic, its images and its file.

Tensors are NHWC. Hidden activations are uint8 with zero point 0, so a zero stays a zero. A
requantised layer computes, per output channel and in exact integer arithmetic::

    q = clamp(round_half_even((acc + bias) * mult / 2**shift), lo, hi)

The last layer (``fc2``) has no requantisation: its int32 ``acc + bias`` are the logits. Its weights
therefore share one scale over all output channels, so that the logits compare with one another.

Importing this module needs only NumPy; `load_images` also needs scikit-learn.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

IntArray: TypeAlias = NDArray[np.int64]
ScalarT = TypeVar("ScalarT", bound=np.generic)

NETWORK_FILE = Path(__file__).resolve().parent / "data" / "digits_cnn.npz"

ACTIVATION_MAX = 255
MULT_BITS = 24
SHIFT_MAX = 47


@dataclass(frozen=True)
class LayerSpec:
    """One layer of the network.

    ``in_shape`` and ``out_shape`` leave out the batch: ``(h, w, c)`` for ``conv`` and ``(n,)`` for
    ``fc``. An ``fc`` layer has stride 1, padding 0 and dilation 1. ``lo`` and ``hi`` are the clamp
    bounds of the requantised output, or None for a layer with raw int32 outputs.
    """

    name: str
    kind: Literal["conv", "fc"]
    stride: int
    padding: int
    dilation: int
    relu: bool
    lo: int | None
    hi: int | None
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]


def _conv(name: str, in_shape: tuple[int, int, int], out_shape: tuple[int, int, int], stride: int) -> LayerSpec:
    return LayerSpec(name, "conv", stride, 1, 1, True, 0, ACTIVATION_MAX, in_shape, out_shape)


KERNEL = 3
NETWORK: tuple[LayerSpec, ...] = (
    _conv("conv1", (8, 8, 1), (8, 8, 16), stride=1),
    _conv("conv2", (8, 8, 16), (4, 4, 32), stride=2),
    _conv("conv3", (4, 4, 32), (4, 4, 32), stride=1),
    LayerSpec("fc1", "fc", 1, 0, 1, True, 0, ACTIVATION_MAX, (512,), (64,)),
    LayerSpec("fc2", "fc", 1, 0, 1, False, None, None, (64,), (10,)),
)


@dataclass(frozen=True)
class QuantLayer:
    """Integer parameters of one layer.

    Attributes:
        spec: the layer's shape and clamp bounds.
        weight: int8 ``(kh, kw, cin, cout)`` for ``conv``, ``(in, out)`` for ``fc``; -127..127.
        bias: int32 ``(cout,)``, added to the accumulator.
        mult: uint32 ``(cout,)`` below 2**24, or None for raw int32 outputs.
        shift: uint8 ``(cout,)`` in 0..47, or None for raw int32 outputs.
    """

    spec: LayerSpec
    weight: NDArray[np.int8]
    bias: NDArray[np.int32]
    mult: NDArray[np.uint32] | None
    shift: NDArray[np.uint8] | None


# Images


def load_images() -> tuple[NDArray[np.uint8], IntArray]:
    """Return the digits as uint8 ``(1797, 8, 8, 1)`` pixels 0..16 and int64 ``(1797,)`` labels."""
    from sklearn.datasets import load_digits

    pixels, labels = cast("tuple[NDArray[np.float64], IntArray]", load_digits(return_X_y=True))
    return pixels.reshape(-1, 8, 8, 1).astype(np.uint8), labels.astype(np.int64)


# Arithmetic


def im2col(x: NDArray[ScalarT], kernel: tuple[int, int], spec: LayerSpec) -> NDArray[ScalarT]:
    """Gather convolution windows, zero-padded.

    Args:
        x: ``(n, h, w, c)``, any dtype.
        kernel: ``(kh, kw)``.
        spec: gives the stride, padding, dilation and output shape.

    Returns:
        ``(n * oh * ow, kh * kw * c)`` of the same dtype, columns in (kh, kw, c) order.
    """
    n, _, _, c = x.shape
    oh, ow, _ = spec.out_shape
    p = spec.padding
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    cols = np.empty((n, oh, ow, *kernel, c), dtype=x.dtype)
    for i, j in np.ndindex(*kernel):
        cols[:, :, :, i, j, :] = padded[:, taps(i, oh, spec), taps(j, ow, spec), :]
    return cols.reshape(n * oh * ow, -1)


def taps(position: int, count: int, spec: LayerSpec) -> slice:
    """Return the padded input rows (or columns) which one row (or column) of the kernel meets.

    Args:
        position: the kernel's row or column, from 0.
        count: rows or columns of the output.
        spec: gives the stride and dilation.

    Returns:
        A slice of ``count`` padded input rows or columns, in order.
    """
    start = position * spec.dilation
    return slice(start, start + (count - 1) * spec.stride + 1, spec.stride)


def left_matrix(x: NDArray[ScalarT], spec: LayerSpec) -> NDArray[ScalarT]:
    """Return the left matrix of the layer's product: windows for conv, flat (H, W, C) rows for fc.

    Args:
        x: the layer's input, ``(n, h, w, c)`` for ``conv``, ``(n, ...)`` for ``fc``; any dtype.
        spec: the layer.

    Returns:
        ``(n * oh * ow, 9 * c)`` for ``conv`` (as `im2col`), ``(n, in)`` for ``fc``; of the same dtype.
    """
    return im2col(x, (KERNEL, KERNEL), spec) if spec.kind == "conv" else x.reshape(len(x), -1)


def requantise(
    total: IntArray, mult: NDArray[np.uint32], shift: NDArray[np.uint8], lo: int, hi: int
) -> NDArray[np.uint8]:
    """Scale accumulators to uint8: ``clamp(round_half_even(total * mult / 2**shift), lo, hi)``.

    Exact: a 33-bit total by a 24-bit multiplier fits int64.

    Args:
        total: int64 ``(..., cout)``, accumulator plus bias, magnitude at most 2**32.
        mult: uint32 ``(cout,)`` below 2**24.
        shift: uint8 ``(cout,)`` in 0..47.
        lo: lowest result, at least 0.
        hi: highest result, at most 255.
    """
    product = total * mult.astype(np.int64)
    places = shift.astype(np.int64)
    unit = np.int64(1) << places
    floor = product >> places
    twice = 2 * (product - floor * unit)
    up = (twice > unit) | ((twice == unit) & (floor & 1 == 1))
    return np.clip(floor + up, lo, hi).astype(np.uint8)


def fixed_point(ratio: float) -> tuple[int, int]:
    """Return ``(mult, shift)`` with ``mult / 2**shift`` nearest to ``ratio``.

    ``mult`` lies in [2**23, 2**24) unless the shift is held at an end of 0..47.

    Raises:
        ValueError: if ``ratio`` is not positive, or rounds to 0, or needs 2**24 or more.
    """
    if ratio <= 0:
        raise ValueError(f"ratio {ratio} is not positive")
    shift = MULT_BITS - math.frexp(ratio)[1]
    if round(math.ldexp(ratio, shift)) >> MULT_BITS:
        shift -= 1
    shift = min(max(shift, 0), SHIFT_MAX)
    mult = round(math.ldexp(ratio, shift))
    if not 0 < mult < 1 << MULT_BITS:
        raise ValueError(f"ratio {ratio} is out of the range of a {MULT_BITS}-bit multiplier and shift 0..{SHIFT_MAX}")
    return mult, shift


def integer_forward(layers: Sequence[QuantLayer], images: NDArray[np.uint8]) -> list[NDArray[np.integer[Any]]]:
    """Run the integer network.

    Args:
        layers: the layers in order.
        images: uint8 ``(n, 8, 8, 1)`` pixels 0..16.

    Returns:
        Every layer's output ``(n, *out_shape)``: uint8 where requantised, int32 logits at the end.
    """
    outputs: list[NDArray[np.integer[Any]]] = []
    x: NDArray[np.integer[Any]] = images
    for layer in layers:
        rows = left_matrix(x, layer.spec).astype(np.int64)
        weight = layer.weight.astype(np.int64)
        total: IntArray = rows @ weight.reshape(-1, weight.shape[-1]) + layer.bias
        if layer.mult is None or layer.shift is None or layer.spec.lo is None or layer.spec.hi is None:
            x = total.astype(np.int32)
        else:
            x = requantise(total, layer.mult, layer.shift, layer.spec.lo, layer.spec.hi)
        x = x.reshape(len(images), *layer.spec.out_shape)
        outputs.append(x)
    return outputs


# File


def save_network(
    path: Path, layers: Sequence[QuantLayer], test_indices: NDArray[np.int32], accuracy: Mapping[str, Any]
) -> None:
    """Write the network as a compressed ``.npz`` without pickles.

    Keys: per layer ``<name>_weight``, ``<name>_bias`` and (where requantised) ``<name>_mult`` and
    ``<name>_shift``, with the dtypes of `QuantLayer`; ``test_indices`` int32 ``(n,)``; ``layers`` and
    ``accuracy``, JSON in 0-d unicode arrays (a list of `LayerSpec` fields, and an object of figures).
    """
    arrays: dict[str, Any] = {}
    for layer in layers:
        name = layer.spec.name
        arrays[f"{name}_weight"] = layer.weight
        arrays[f"{name}_bias"] = layer.bias
        if layer.mult is not None and layer.shift is not None:
            arrays[f"{name}_mult"] = layer.mult
            arrays[f"{name}_shift"] = layer.shift
    arrays["layers"] = np.array(json.dumps([asdict(layer.spec) for layer in layers]))
    arrays["test_indices"] = test_indices
    arrays["accuracy"] = np.array(json.dumps(accuracy))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_network(path: Path = NETWORK_FILE) -> tuple[list[QuantLayer], NDArray[np.int32], dict[str, Any]]:
    """Read a file of `save_network`: the layers, int32 ``(n,)`` test indices and the accuracy figures."""
    with np.load(path, allow_pickle=False) as file:
        layers: list[QuantLayer] = []
        for fields in json.loads(str(file["layers"])):
            fields["in_shape"] = tuple(fields["in_shape"])
            fields["out_shape"] = tuple(fields["out_shape"])
            spec = LayerSpec(**fields)
            has_mult = f"{spec.name}_mult" in file.files
            layers.append(
                QuantLayer(
                    spec,
                    file[f"{spec.name}_weight"],
                    file[f"{spec.name}_bias"],
                    file[f"{spec.name}_mult"] if has_mult else None,
                    file[f"{spec.name}_shift"] if has_mult else None,
                )
            )
        return layers, file["test_indices"], json.loads(str(file["accuracy"]))
