"""Masks that the accelerator makes, keeps and replays: thresholds, stochastic pruning, dropout, norms, projections.

Every function takes a device, which must have the block of the mask unit that it needs (key ``generators``, preset
``small-train``), and raises a :class:`~maskwork.gen.errors.MaskworkError` for bad input before anything is sent:

    with maskwork.open("golden", "small-train") as device:
        active = threshold(device, x, 0, slot=0)        # ReLU, and its mask stays in the accelerator
        masked = replay(device, 0, gradients)           # the backward pass of ReLU

Arrays are of any shape: the last axis is a row of the mask, the others together are its rows. Masks stay in their slots
from call to call, until another is stored there or the device is reset.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from maskwork.gen.check import check_range
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkError, MaskworkTypeError, MaskworkValueError
from maskwork.gen.execute import execute
from maskwork.gen.isa import RANDOM_BITS, MaskKind
from maskwork.gen.lower_mask import lower_mask
from numpy.typing import NDArray

if TYPE_CHECKING:
    from maskwork.sim_tb.device import Device


@dataclass(frozen=True)
class Masked:
    """What a mask left.

    Members:
        mask: bool, of the input's shape: which outputs are not 0 (of a mask made without values: which it keeps).
        values: int32, the same shape: the input (of :func:`prune`, what became of it) where it is kept, else 0; None
            where only the mask was asked for.
        magnitudes: sum of the input's magnitudes.
        kept: number of elements that ``mask`` keeps.
        nonzeros: number of elements of the input that are not 0.
    """

    mask: NDArray[np.bool_]
    values: NDArray[np.int32] | None
    magnitudes: int
    kept: int
    nonzeros: int


def threshold(
    device: Device, x: Any, level: int, *, magnitude: bool = False, values: bool = True, slot: int | None = None
) -> Masked:
    """Keep what lies above a threshold: x > level, or with ``magnitude`` |x| >= level.

    Level 0 is ReLU; by magnitude it is the usual pruning of weights or activations (Han et al., "Learning both
    weights and connections for efficient neural networks", 2015).

    Args:
        device: with block "threshold".
        x: integers within ``a_width`` bits, signed; any shape, a row (the last axis) of at most 65535.
        level: within ``a_width`` bits, signed; by magnitude 1 or more.
        magnitude: compare magnitudes.
        values: values are wanted, not only the mask, which travels in fewer words.
        slot: store the mask there (needs block "store").

    Raises:
        MaskworkError: for an input, level or slot that cannot be used, or a device without the block.
        DeviceError: if the device fails.
    """
    kind = MaskKind.MAGNITUDE if magnitude else MaskKind.GREATER
    return _mask(device, kind, x, level=level, values=values, slot=slot)


def prune_level(magnitudes: int, count: int, sparsity: float) -> int:
    """The threshold for :func:`prune` that would leave 1 - ``sparsity`` of normally distributed values above it.

    From the mean magnitude, as in SparseTrain (Dai et al., "SparseTrain: exploiting dataflow sparsity for efficient
    convolutional neural networks training", 2020): sigma = sqrt(pi / 2) mean |g|, level = Phi^-1((1 + p) / 2) sigma.
    The statistics of one step (``magnitudes`` of :class:`Masked`) may serve for the next.

    Args:
        magnitudes: sum of the values' magnitudes.
        count: number of values, 1 or more.
        sparsity: p, above 0 and below 1.

    Returns:
        The threshold, rounded, 1 or more, in units of the values.

    Raises:
        MaskworkError: for a sum, number or sparsity that cannot be used.
    """
    total, number = _integer("magnitudes", magnitudes), _integer("count", count)
    if total < 0 or number < 1:
        raise MaskworkValueError(f"magnitudes must be 0 or more and count 1 or more, not {magnitudes} and {count}")
    p = _probability("sparsity", sparsity)
    sigma = math.sqrt(math.pi / 2) * total / number
    return max(1, round(NormalDist().inv_cdf((1 + p) / 2) * sigma))


def prune(device: Device, x: Any, level: int, seed: int, *, values: bool = True, slot: int | None = None) -> Masked:
    """Stochastic pruning that keeps the expected value, for gradients (SparseTrain, see :func:`prune_level`).

    Magnitudes of ``level`` or more stay; a smaller one becomes +-``level`` with probability |x| / level, else 0.

    Args:
        device: with block "prune".
        x: integers within ``a_width`` bits, signed; any shape, a row of at most 65535.
        level: threshold, 1 to 2**(a_width - 1) - 1.
        seed: of the random numbers, 1 to 2**32 - 1; each element in order has the next of them.
        values: values are wanted, not only the mask.
        slot: store the mask there (needs block "store").

    Raises:
        MaskworkError: for an input, level, seed or slot that cannot be used, or a device without the block.
        DeviceError: if the device fails.
    """
    return _mask(device, MaskKind.PRUNE, x, level=level, seed=seed, values=values, slot=slot)


def dropout_mask(device: Device, shape: Sequence[int], keep: float, seed: int, *, slot: int | None = None) -> Masked:
    """A dropout mask alone (Srivastava et al., "Dropout", 2014): every row has the same, made from the seed.

    Args:
        device: with block "dropout".
        shape: of the mask; the last axis is a row, at most 65535.
        keep: probability to keep an element, above 0 and below 1, in steps of 1 / 65536.
        seed: of the random numbers, 1 to 2**32 - 1: the same seed gives the same mask again.
        slot: store the mask there (needs block "store").

    Returns:
        The mask, without values; ``magnitudes`` and ``nonzeros`` are 0.

    Raises:
        MaskworkError: for a shape, probability, seed or slot that cannot be used, or a device without the block.
        DeviceError: if the device fails.
    """
    return _mask(device, MaskKind.DROPOUT, None, shape, level=_keep(keep), seed=seed, values=False, slot=slot)


def dropout(device: Device, x: Any, keep: float, seed: int, *, slot: int | None = None) -> Masked:
    """Dropout of values; what is kept is not scaled.

    Args:
        device: with block "dropout".
        x: integers within ``a_width`` bits, signed; any shape, a row of at most 65535. Every row has the same mask.
        keep: probability to keep an element, above 0 and below 1, in steps of 1 / 65536.
        seed: of the random numbers, 1 to 2**32 - 1.
        slot: store there which outputs are not 0 (needs block "store").

    Raises:
        MaskworkError: for an input, probability, seed or slot that cannot be used, or a device without the block.
        DeviceError: if the device fails.
    """
    return _mask(device, MaskKind.DROPOUT, x, level=_keep(keep), seed=seed, slot=slot)


def replay(device: Device, slot: int, x: Any = None, shape: Sequence[int] | None = None) -> Masked:
    """Apply the mask that a slot holds, or read it.

    Args:
        device: with block "store".
        slot: from 0 to mask_slots - 1, where a mask was stored.
        x: integers within ``a_width`` bits, signed, of the stored mask's rows and row length; None reads the mask.
        shape: of the mask, where ``x`` is None.

    Raises:
        MaskworkError: for an input or slot that cannot be used, or a device without the block.
        DeviceError: if no mask of that shape is in the slot, or the device fails.
    """
    if (x is None) == (shape is None):
        raise MaskworkValueError("either x or shape must be given: values to be masked, or the mask's shape")
    return _mask(device, MaskKind.REPLAY, x, shape, values=x is not None, slot=slot)


def channel_norms(device: Device, x: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """L1 norms and numbers of nonzeros of channels, to choose which to remove (Li et al., "Pruning filters for
    efficient ConvNets", 2017).

    Args:
        device: with block "norms".
        x: integers within ``a_width`` bits, signed, shape (..., channels), at most ``norm_channels`` channels.

    Returns:
        Sum of magnitudes and number of values that are not 0, of each channel: int64 (channels,).

    Raises:
        MaskworkError: for an input that cannot be used, or a device without the block.
        DeviceError: if the device fails.
    """
    array = _operand(device.config, x)
    program = lower_mask(device.config, MaskKind.NORMS, *_matrix(array.shape))
    norms = execute(device, program, {"a": array.reshape(_matrix(array.shape))}).outputs["c"]
    return norms[:, 0], norms[:, 1]


def project(device: Device, x: Any, seed: int) -> NDArray[np.int32]:
    """Very sparse random projections: sums of each row's elements, times +1 or -1 with probability 11/64 each, else 0.

    Signs of such sums tell similar rows (Achlioptas, "Database-friendly random projections", 2003; Li, Hastie and
    Church, "Very sparse random projections", 2006).

    Args:
        device: with block "project".
        x: integers within ``a_width`` bits, signed, shape (..., length), length at most 16384.
        seed: of the projections, 1 to 2**32 - 1: equal seeds and lengths have equal projections.

    Returns:
        int32 (..., project_sums).

    Raises:
        MaskworkError: for an input or seed that cannot be used, or a device without the block.
        DeviceError: if the device fails.
    """
    array = _operand(device.config, x)
    program = lower_mask(device.config, MaskKind.PROJECT, *_matrix(array.shape), seed=seed)
    sums = execute(device, program, {"a": array.reshape(_matrix(array.shape))}).outputs["c"]
    return sums.reshape(*array.shape[:-1], -1)


def _mask(
    device: Device, kind: MaskKind, x: Any, shape: Sequence[int] | None = None, *, values: bool = True,
    slot: int | None = None, **fields: int,
) -> Masked:  # fmt: skip
    """One mask, on values ``x`` or alone."""
    config = device.config
    array = None if x is None else _operand(config, x)
    whole = _shape(shape) if array is None else array.shape
    stores = slot is not None and kind != MaskKind.REPLAY
    program = lower_mask(
        config, kind, *_matrix(whole), slot=0 if slot is None else slot, store=stores, values=values, **fields
    )
    operands = {} if array is None else {"a": array.reshape(_matrix(whole))}
    outputs = execute(device, program, operands).outputs
    c = outputs["c"].reshape(whole)
    return Masked(c != 0, c if values else None, *(int(n) for n in outputs["stats"]))


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return math.prod(shape[:-1]), shape[-1]


def _operand(config: Config, x: Any) -> NDArray[Any]:
    array = np.asarray(x)
    if not array.ndim or not array.size:
        raise MaskworkValueError(f"x must have one axis or more, and elements, not shape {array.shape}")
    try:
        check_range("x", array, config.a_width)
    except MaskworkError as error:
        raise type(error)(str(error).replace("operand 'x'", "x", 1)) from None
    return array


def _shape(shape: Sequence[int] | None) -> tuple[int, ...]:
    if isinstance(shape, Sequence) and len(shape) and not isinstance(shape, str):
        sizes = tuple(_integer("every axis of shape", size) for size in shape)
        if min(sizes) >= 1:
            return sizes
    raise MaskworkValueError(f"shape must be a sequence of one size or more, each 1 or more, not {shape!r}")


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise MaskworkTypeError(f"{name} must be an integer, not {value!r}")
    return int(value)


def _probability(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise MaskworkTypeError(f"{name} must be a number, not {value!r}")
    if not 0 < float(value) < 1:
        raise MaskworkValueError(f"{name} must be above 0 and below 1, not {value}")
    return float(value)


def _keep(keep: float) -> int:
    """The level of DROPOUT for a probability."""
    level = round(_probability("keep", keep) * (1 << RANDOM_BITS))
    if not 0 < level < 1 << RANDOM_BITS:
        raise MaskworkValueError(f"keep must be from 1/65536 to 65535/65536, not {keep}")
    return level
