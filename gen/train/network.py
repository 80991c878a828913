"""A sequential network in training: its layers' shapes, and float32 parameters on the host."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.gen.train.numerics import generator
from numpy.typing import NDArray

if TYPE_CHECKING:
    from maskwork.gen.workload import Layer

FloatArray = NDArray[np.float32]
Parameters = dict[str, FloatArray]
"""By name: ``LAYER.weight`` and ``LAYER.bias``."""


@dataclass(frozen=True)
class Conv:
    """A convolution, and ReLU unless that is turned off.

    Members:
        name: for parameters, reports and messages.
        channels: of the output.
        kernel: of both axes.
        stride: the same.
        padding: zeros on all four sides.
        dilation: of both axes.
        groups: divides the channels of input and output.
        relu: ReLU follows.
    """

    name: str
    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    dilation: int = 1
    groups: int = 1
    relu: bool = True


@dataclass(frozen=True)
class Linear:
    """A fully connected layer, of all pixels and channels of its input (in the order H, W, C)."""

    name: str
    outputs: int
    relu: bool = True


class Network:
    """Layers, one after the other.

    Weights are (kh, kw, inputs / groups, outputs), those of a fully connected layer (1, 1, inputs, outputs); normally
    distributed at first with variance 2 / (sum's length) (He et al., "Delving deep into rectifiers", 2015), biases 0.

    Args:
        input_shape: (H, W, C).
        layers: :class:`Conv` and :class:`Linear`, of different names.
        seed: of the weights.

    Attributes:
        parameters: float32 by name.
        masks: bool by name, of weights that are pruned: False stays 0. :meth:`prune` sets them.

    Raises:
        MaskworkTypeError, MaskworkValueError: for layers that do not fit; the message names the layer.
    """

    def __init__(self, input_shape: Sequence[int], layers: Sequence[Conv | Linear], seed: int = 1) -> None:
        if len(input_shape) != 3 or min(input_shape) < 1:
            raise MaskworkValueError(f"input_shape must be (H, W, C), each 1 or more, not {tuple(input_shape)}")
        for layer in layers:
            if not isinstance(layer, (Conv, Linear)):
                raise MaskworkTypeError(f"layers must be Conv or Linear, not {type(layer).__name__}")
        if not layers or len({layer.name for layer in layers}) < len(layers):
            raise MaskworkValueError("layers must be one or more, of different names")
        self.input_shape = tuple(int(size) for size in input_shape)
        self.layers = tuple(layers)
        rng = generator(seed)
        self.parameters: Parameters = {}
        self.masks: dict[str, NDArray[np.bool_]] = {}
        for spec, layer in zip(self.layers, self.shapes(1), strict=True):
            std = math.sqrt(2 / math.prod(layer.weight_shape[:3]))
            weight = rng.standard_normal(layer.weight_shape) * std
            self.parameters[f"{spec.name}.weight"] = weight.astype(np.float32)
            self.parameters[f"{spec.name}.bias"] = np.zeros(layer.out_channels, dtype=np.float32)

    def shapes(self, batch: int) -> list[Layer]:
        """Every layer's shapes, for :meth:`maskwork.gen.train.products.Products.run`."""
        from maskwork.gen.train.products import conv_layer, linear_layer

        found, shape = [], self.input_shape
        for spec in self.layers:
            if isinstance(spec, Linear):
                layer = linear_layer(spec.name, batch, math.prod(shape), spec.outputs)
            else:
                weight = (spec.kernel, spec.kernel, shape[2] // max(1, spec.groups), spec.channels)
                images = (batch, shape[0], shape[1], shape[2])
                layer = conv_layer(spec.name, images, weight, spec.stride, spec.padding, spec.dilation, spec.groups)
            found.append(layer)
            shape = layer.output_shape[1:]
        return found

    def prune(self, keep: Mapping[str, float]) -> None:
        """Prune weights by magnitude, for good: masks of each layer's largest.

        Args:
            keep: share of weights that stay, above 0 and up to 1, by layer.

        Raises:
            MaskworkValueError: for an unknown layer or another share.
        """
        names = [layer.name for layer in self.layers]
        for name, share in keep.items():
            if name not in names or not 0 < share <= 1:
                raise MaskworkValueError(
                    f"keep must give shares above 0 and up to 1 of layers {', '.join(names)}, not {name!r}: {share!r}"
                )
        for name, share in keep.items():
            weight = self.parameters[f"{name}.weight"]
            order = np.argsort(-np.abs(weight), axis=None, kind="stable")
            mask = np.zeros(weight.size, dtype=np.bool_)
            mask[order[: max(1, round(share * weight.size))]] = True
            self.masks[f"{name}.weight"] = mask.reshape(weight.shape)
        self.apply_masks()

    def apply_masks(self) -> None:
        """Make pruned weights 0 again."""
        for key, mask in self.masks.items():
            self.parameters[key] *= mask


class SGD:
    """Stochastic gradient descent with momentum.

    Args:
        rate: learning rate; may be changed between steps.
        momentum: 0 or more, below 1.
    """

    def __init__(self, rate: float = 0.05, momentum: float = 0.9) -> None:
        self.rate, self.momentum = _rate(rate), _share("momentum", momentum)
        self._speed: dict[str, Any] = {}

    def update(self, parameters: Parameters, gradients: Mapping[str, FloatArray]) -> None:
        """Move parameters in place by one step."""
        for key, gradient in gradients.items():
            speed = self._speed.setdefault(key, np.zeros_like(parameters[key]))
            speed *= self.momentum
            speed += gradient
            parameters[key] -= self.rate * speed


class Adam:
    """Adam (Kingma and Ba, 2015).

    Args:
        rate: learning rate; may be changed between steps.
        beta1: of the gradients' mean.
        beta2: of their squares' mean.
        decay: share of the rate by which weights (not biases) shrink each step.
    """

    def __init__(self, rate: float = 2e-3, beta1: float = 0.9, beta2: float = 0.999, decay: float = 1e-4) -> None:
        self.rate, self.decay = _rate(rate), _share("decay", decay)
        self.beta1, self.beta2 = _share("beta1", beta1), _share("beta2", beta2)
        self._means: dict[str, tuple[Any, Any]] = {}
        self._steps = 0

    def update(self, parameters: Parameters, gradients: Mapping[str, FloatArray]) -> None:
        """Move parameters in place by one step."""
        self._steps += 1
        scale = self.rate * math.sqrt(1 - self.beta2**self._steps) / (1 - self.beta1**self._steps)
        for key, gradient in gradients.items():
            value = parameters[key]
            first, second = self._means.setdefault(key, (np.zeros_like(value), np.zeros_like(value)))
            first += (1 - self.beta1) * (gradient - first)
            second += (1 - self.beta2) * (gradient * gradient - second)
            value -= scale * first / (np.sqrt(second) + 1e-8)
            if key.endswith(".weight"):
                value *= 1 - self.rate * self.decay


def _rate(rate: float) -> float:
    if not rate > 0 or not math.isfinite(rate):
        raise MaskworkValueError(f"rate must be above 0, not {rate!r}")
    return float(rate)


def _share(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise MaskworkValueError(f"{name} must be 0 or more and below 1, not {value!r}")
    return float(value)
