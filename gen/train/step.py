"""One training step: integer products of all three passes on a target, everything else on the host.

Forward, y = x w + b and ReLU; loss: mean cross-entropy of softmax. Backward, each layer's output gradient times the
ReLU's mask, rounded to integers and pruned, gives the weights' gradient and the input's, of which only what the ReLU
before lets through is computed. Zeros of activations, weights and gradients are the masks of the products' operands.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.gen.train.network import SGD, Adam, Conv, FloatArray, Linear, Network, Parameters
from maskwork.gen.train.numerics import Quantised, check_bits, check_rounding, generator, quantise
from maskwork.gen.train.pruning import Pruner
from numpy.typing import NDArray

if TYPE_CHECKING:
    from maskwork.gen.train.products import Products
    from maskwork.gen.workload import Layer

__all__ = ["SGD", "Adam", "Conv", "Linear", "Network", "Pruner", "StepResult", "evaluate", "quantise", "step"]


@dataclass(frozen=True)
class Tape:
    """What the forward pass of a layer leaves for its backward pass.

    Members:
        layer: shapes.
        x: the input's integers, (N, H, W, Cin).
        w: the weights', (kh, kw, Cin / groups, Cout).
        relu: bool (N, OH, OW, Cout), what ReLU lets through; None where there is no ReLU.
    """

    layer: Layer
    x: Quantised
    w: Quantised
    relu: NDArray[np.bool_] | None


@dataclass(frozen=True)
class StepResult:
    """What a step found.

    Members:
        loss: mean cross-entropy, before the update.
        accuracy: share of right answers, before the update.
        gradients: float32 by parameter.
        reports: of every product, in order (:attr:`~maskwork.gen.train.products.Products.reports`).
        output_grads: integers of each layer's output gradient as multiplied, (N, OH, OW, Cout).
        levels: pruning thresholds in units of those, by layer.
        tape: of the layers.
    """

    loss: float
    accuracy: float
    gradients: Parameters
    reports: list[dict[str, Any]]
    output_grads: dict[str, Quantised] = field(repr=False)
    levels: dict[str, float]
    tape: list[Tape] = field(repr=False)


def step(
    network: Network,
    images: Any,
    labels: Any,
    products: Products,
    *,
    bits: int | None = 8,
    rounding: str = "stochastic",
    pruner: Pruner | None = None,
    optimiser: SGD | Adam | None = None,
    rng: np.random.Generator | int = 1,
) -> StepResult:
    """One training step.

    Args:
        network: its parameters change, if there is an optimiser.
        images: real numbers (N, H, W, C).
        labels: integers (N,), from 0 to the last layer's outputs - 1.
        products: of the target.
        bits: of operands, 8 or 16; None leaves floats, which only products that take floats can multiply.
        rounding: of output gradients, "stochastic" or "nearest"; activations and weights go to the nearest.
        pruner: of the output gradients of all layers but the last; None prunes nothing.
        optimiser: None only computes.
        rng: random numbers of stochastic rounding, or their seed.

    Raises:
        MaskworkTypeError, MaskworkValueError: for images, labels or options that do not fit.
        ProgramError: if the configuration cannot run a product.
        DeviceError: if the device fails.
    """
    _check(network, products, bits)
    check_rounding(rounding)
    random, start = generator(rng), len(products.reports)
    x, y = _data(network, images, labels)
    logits, tape = forward(network, x, products, bits)
    loss, gradient = cross_entropy(logits, y)
    gradients: Parameters = {}
    output_grads, levels = {}, {}
    for index in reversed(range(len(tape))):
        saved = tape[index]
        name, relu = saved.layer.layer, saved.relu
        gradient = _expect(gradient, saved)
        g = gradient if relu is None else gradient * relu
        grad = _round(g, bits, rounding, random, f"{name}: output gradient")
        if pruner is not None and index < len(tape) - 1:
            pruned = pruner.prune(name, grad, None if relu is None else int(np.count_nonzero(relu)), _device(products))
            grad, levels[name] = pruned.gradient, pruned.level
        output_grads[name] = grad
        wanted = network.masks.get(f"{name}.weight")
        own = {"input": saved.x.values, "output_grad": grad.values}
        total = products.run(saved.layer, "weight_grad", own, wanted)
        gradients[f"{name}.weight"] = _real(total, saved.x.exponent + grad.exponent)
        gradients[f"{name}.bias"] = _real(grad.values.sum(axis=(0, 1, 2)), grad.exponent)
        if index:
            before = tape[index - 1].relu
            wanted = None if before is None else before.reshape(saved.layer.input_shape)
            own = {"output_grad": grad.values, "weight": saved.w.values}
            gradient = _real(products.run(saved.layer, "input_grad", own, wanted), grad.exponent + saved.w.exponent)
    if optimiser is not None:
        optimiser.update(network.parameters, gradients)
        network.apply_masks()
    accuracy = float(np.mean(logits.argmax(axis=1) == y))
    return StepResult(loss, accuracy, gradients, products.reports[start:], output_grads, levels, tape)


def forward(
    network: Network, images: FloatArray, products: Products, bits: int | None
) -> tuple[FloatArray, list[Tape]]:
    """Logits (N, outputs), and what the backward pass needs."""
    tape: list[Tape] = []
    x = images
    for spec, layer in zip(network.layers, network.shapes(len(images)), strict=True):
        x_int = _round(x.reshape(layer.input_shape), bits, "nearest", None, f"{spec.name}: input")
        w_int = _round(network.parameters[f"{spec.name}.weight"], bits, "nearest", None, f"{spec.name}: weights")
        total = products.run(layer, "forward", {"input": x_int.values, "weight": w_int.values})
        x = _real(total, x_int.exponent + w_int.exponent) + network.parameters[f"{spec.name}.bias"]
        relu = x > 0 if spec.relu else None
        x = x if relu is None else x * relu
        tape.append(Tape(layer, x_int, w_int, relu))
    return x.reshape(len(images), -1), tape


def evaluate(network: Network, images: Any, labels: Any, products: Products, bits: int | None = 8) -> float:
    """Share of right answers of the forward pass alone; arguments as for :func:`step`."""
    _check(network, products, bits)
    x, y = _data(network, images, labels)
    logits, _ = forward(network, x, products, bits)
    return float(np.mean(logits.argmax(axis=1) == y))


def cross_entropy(logits: FloatArray, labels: NDArray[np.int64]) -> tuple[float, FloatArray]:
    """Mean cross-entropy of softmax, and its gradient, (N, outputs)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = float(np.mean(np.log(total[:, 0]) - shifted[rows, labels]))
    gradient = np.exp(shifted) / total
    gradient[rows, labels] -= 1
    return loss, gradient / np.float32(len(labels))


def _real(values: NDArray[Any], exponent: int) -> FloatArray:
    return np.ldexp(values.astype(np.float64), exponent).astype(np.float32)


def _round(x: FloatArray, bits: int | None, rounding: str, rng: np.random.Generator | None, name: str) -> Quantised:
    return Quantised(x, 0) if bits is None else quantise(x, bits, rounding, rng, name)


def _device(products: Products) -> Any:
    """Where the pruner may run: formulas alone have no device that is worth a program."""
    from maskwork.gen.train.products import GoldenProducts

    return None if isinstance(products, GoldenProducts) else getattr(products, "device", None)


def _expect(gradient: FloatArray, saved: Tape) -> FloatArray:
    if gradient.size != np.prod(saved.layer.output_shape):
        raise MaskworkValueError(
            f"{saved.layer.layer}: output gradient must have shape {saved.layer.output_shape}, as the forward pass's "
            f"output, not {gradient.shape}"
        )
    return gradient.reshape(saved.layer.output_shape)


def _check(network: Network, products: Products, bits: int | None) -> None:
    if not isinstance(network, Network):
        raise MaskworkTypeError(f"network must be a Network, not {type(network).__name__}")
    if bits is not None:
        check_bits(products.config, bits)


def _data(network: Network, images: Any, labels: Any) -> tuple[FloatArray, NDArray[np.int64]]:
    x, y = np.asarray(images), np.asarray(labels)
    if x.dtype.kind not in "iuf" or y.dtype.kind not in "iu":
        raise MaskworkTypeError(f"images must be real numbers and labels integers, not {x.dtype} and {y.dtype}")
    if x.ndim != 4 or x.shape[1:] != network.input_shape or not len(x):
        raise MaskworkValueError(f"images must have shape (N, {', '.join(map(str, network.input_shape))}), N 1 or "
                                 f"more, not {x.shape}")  # fmt: skip
    outputs = int(np.prod(network.shapes(1)[-1].output_shape))
    if y.shape != (len(x),) or y.min() < 0 or y.max() >= outputs:
        raise MaskworkValueError(f"labels must be {len(x)} integers from 0 to {outputs - 1}, one an image; their shape "
                                 f"is {y.shape}" + (f", from {y.min()} to {y.max()}" if y.size else ""))  # fmt: skip
    return x.astype(np.float32), y.astype(np.int64)


def clone(network: Network) -> Network:
    """A copy with parameters of its own."""
    return copy.deepcopy(network)
