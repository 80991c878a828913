"""Stochastic pruning of gradients with predicted thresholds (SparseTrain: Dai et al., "SparseTrain: exploiting dataflow
sparsity for efficient convolutional neural networks training", 2020), on integers.

With sigma = sqrt(pi / 2) mean |g|, a batch's threshold is tau = Phi^-1((1 + p) / 2) sigma. That of the next batch is
predicted as the mean of the last few, so that one pass over the gradients prunes them and gives their statistics.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.gen.train.numerics import Quantised
from numpy.typing import NDArray

if TYPE_CHECKING:
    from maskwork.sim_tb.device import Device

HISTORY = 4
"""Thresholds that a prediction is the mean of."""


def threshold(mean_magnitude: float, sparsity: float) -> float:
    """Where a share ``sparsity`` of normally distributed values lies below, in the unit of ``mean_magnitude``."""
    return NormalDist().inv_cdf((1 + sparsity) / 2) * math.sqrt(math.pi / 2) * mean_magnitude


@dataclass(frozen=True)
class Pruned:
    """What pruning left.

    Members:
        gradient: the same scale, fewer values that are not 0.
        level: threshold in units of the integers; 0 where nothing was pruned.
        seed: of the random numbers.
    """

    gradient: Quantised
    level: float
    seed: int


class Pruner:
    """Prunes gradients of the layers of a network, each with a threshold that its former batches predict.

    The first batch of a layer, which has none before it, is not pruned.

    Args:
        sparsity: p, above 0 and below 1: the share of a normal distribution that lies below the threshold. Fewer become
            0: of 0.5, 0.7, 0.8, 0.9 and 0.99, a share of 0.741, 0.620, 0.549, 0.460 and 0.309 stays.
        seed: of the seeds of each tensor's random numbers.
        history: thresholds that a prediction is the mean of.

    Raises:
        MaskworkTypeError, MaskworkValueError: for a sparsity, seed or history that cannot be used.
    """

    def __init__(self, sparsity: float = 0.9, seed: int = 1, history: int = HISTORY) -> None:
        if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float, np.number)):
            raise MaskworkTypeError(f"sparsity must be a number, not {sparsity!r}")
        if not 0 < sparsity < 1:
            raise MaskworkValueError(f"sparsity must be above 0 and below 1, not {sparsity}")
        for name, value, least in (("seed", seed, 0), ("history", history, 1)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise MaskworkValueError(f"{name} must be an integer of {least} or more, not {value!r}")
        self.sparsity, self.history = float(sparsity), int(history)
        self._seeds = np.random.default_rng(int(seed))
        self._past: dict[str, deque[float]] = {}

    def predicted(self, layer: str) -> float | None:
        """The threshold for a layer's next batch, as a real number; None before its first."""
        past = self._past.get(layer)
        return sum(past) / len(past) if past else None

    def prune(self, layer: str, gradient: Quantised, count: int | None = None, device: Device | None = None) -> Pruned:
        """Prune a layer's gradient, and remember its statistics.

        Args:
            layer: its name.
            gradient: int64 values of any shape.
            count: number of values that are not 0 for certain, of which the magnitudes' mean is taken: those that a
                ReLU lets through. All by default.
            device: prunes on this device if its configuration's ``generators`` name "prune"; the same numbers.

        Raises:
            DeviceError: if the device fails.
        """
        values = gradient.values
        tau, seed = self.predicted(layer), int(self._seeds.integers(1, 1 << 32))
        magnitudes = float(np.abs(values).sum())
        mean = math.ldexp(magnitudes / max(1, values.size if count is None else count), gradient.exponent)
        self._past.setdefault(layer, deque(maxlen=self.history)).append(threshold(mean, self.sparsity))
        level = math.ldexp(tau or 0.0, -gradient.exponent)
        if values.dtype.kind == "f":
            return Pruned(Quantised(_prune_float(values, level, seed), gradient.exponent), level, seed)
        # a level above all magnitudes is as good as the next power of two less 1, and must fit an operand
        whole = min(round(level), (1 << max(1, int(np.abs(values).max(initial=0)).bit_length())) - 1)
        if whole < 1 or not values.size:
            return Pruned(gradient, 0, seed)
        return Pruned(Quantised(prune_values(values, whole, seed, device), gradient.exponent), whole, seed)


def prune_values(values: NDArray[np.int64], level: int, seed: int, device: Device | None = None) -> NDArray[np.int64]:
    """The rule: |g| >= level stays; else sign(g) * level with probability |g| / level (level * u < |g| * 2**16 for a
    random u of 16 bits), or 0.

    Args:
        values: int64, any shape.
        level: 1 or more.
        seed: 1 to 2**32 - 1, of the sequence of the hardware's pruner: each value in order has the next number.
        device: as for :meth:`Pruner.prune`.
    """
    if device is not None and "prune" in device.config.generators.split(","):
        from maskwork.gen.generators import prune

        kept = prune(device, values, level, seed).values
        return np.asarray(kept, dtype=np.int64).reshape(values.shape)
    from maskwork.sim_tb.golden.masks import prune as golden_prune

    return golden_prune(values, level, seed)


def _prune_float(values: NDArray[Any], level: float, seed: int) -> NDArray[Any]:
    """The same of floats, for comparison."""
    size = np.abs(values)
    raised = np.where(np.random.default_rng(seed).random(values.shape) * level < size, np.sign(values) * level, 0)
    return np.where(size >= level, values, raised).astype(values.dtype)
