"""Train, prune and quantise the small digits CNN used by the demonstrations and tests.

Run as ``python -m maskwork.gen.demo_train``. The script trains a five-layer CNN in NumPy on
scikit-learn's handwritten digits (1797 images of 8x8 integer pixels 0..16), prunes its weights by
magnitude, quantises it to the integers of :mod:`maskwork.gen.demo_net` and writes
``data/digits_cnn.npz`` next to this file.

Everything random comes from one seed, and the linear algebra runs on one thread, so that a rerun on
the same machine with the same library versions writes the same bytes.

Importing this module needs only NumPy; training also needs scikit-learn.
"""

import argparse
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from maskwork.gen.demo_net import (
    KERNEL,
    NETWORK,
    NETWORK_FILE,
    IntArray,
    LayerSpec,
    QuantLayer,
    fixed_point,
    integer_forward,
    left_matrix,
    load_images,
    save_network,
    taps,
)
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float32]
Params: TypeAlias = dict[str, FloatArray]

DEFAULT_SEED = 2024

INPUT_MAX = 16
WEIGHT_MAX = 127

TEST_FRACTION = 0.2
CALIBRATION_PERCENTILE = 99.9
BATCH_SIZE = 32
DENSE_EPOCHS = 40
PRUNE_STEPS = 5
PRUNE_EPOCHS = 5
FINAL_EPOCHS = 30
LEARNING_RATE = 2e-3
FINE_TUNE_RATE = 1e-3
WEIGHT_DECAY = 1e-4
MAX_OFFSET = 0.6
KEEP: Mapping[str, float] = {"conv1": 0.8, "conv2": 0.4, "conv3": 0.4, "fc1": 0.2, "fc2": 0.5}


# Data


def stratified_split(
    labels: IntArray, rng: np.random.Generator, test_fraction: float = TEST_FRACTION
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Split ``range(len(labels))`` class by class; return sorted int32 train and test indices."""
    test: list[NDArray[np.int64]] = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        test.append(members[: round(test_fraction * len(members))])
    is_test = np.zeros(len(labels), dtype=np.bool_)
    is_test[np.concatenate(test)] = True
    return np.flatnonzero(~is_test).astype(np.int32), np.flatnonzero(is_test).astype(np.int32)


def _translate(images: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Move each image by its own random fraction of a pixel, with linear interpolation."""
    for axis in (1, 2):
        offset = rng.uniform(-MAX_OFFSET, MAX_OFFSET, size=(len(images), 1, 1, 1)).astype(np.float32)
        pad = [(0, 0)] * 4
        pad[axis] = (1, 1)
        padded = np.pad(images, pad)
        size = images.shape[axis]
        before = padded[:, :size] if axis == 1 else padded[:, :, :size]
        after = padded[:, 2:] if axis == 1 else padded[:, :, 2:]
        images = images * (1 - np.abs(offset)) + before * np.maximum(offset, 0) + after * np.maximum(-offset, 0)
    return images


# Float network


def _col2im(cols: FloatArray, kernel: tuple[int, int], spec: LayerSpec) -> FloatArray:
    """Add windows back into ``(n, h, w, c)``: the transpose of `im2col`."""
    h, w, c = spec.in_shape
    oh, ow, _ = spec.out_shape
    p = spec.padding
    windows = cols.reshape(-1, oh, ow, *kernel, c)
    padded = np.zeros((len(windows), h + 2 * p, w + 2 * p, c), dtype=cols.dtype)
    for i, j in np.ndindex(*kernel):
        padded[:, taps(i, oh, spec), taps(j, ow, spec), :] += windows[:, :, :, i, j, :]
    return padded[:, p : p + h, p : p + w, :]


def _init_params(rng: np.random.Generator) -> Params:
    params: Params = {}
    for spec in NETWORK:
        window = (KERNEL, KERNEL) if spec.kind == "conv" else ()
        shape = (*window, spec.in_shape[-1], spec.out_shape[-1])
        std = math.sqrt(2 / math.prod(shape[:-1]))
        params[f"{spec.name}_weight"] = (rng.standard_normal(shape) * std).astype(np.float32)
        params[f"{spec.name}_bias"] = np.zeros(shape[-1], dtype=np.float32)
    return params


def float_forward(params: Params, images: FloatArray) -> list[FloatArray]:
    """Run the float network.

    Args:
        params: ``<name>_weight`` and ``<name>_bias`` of every layer, float32.
        images: float32 ``(n, 8, 8, 1)``, pixels scaled to 0..1.

    Returns:
        Every layer's output ``(n, *out_shape)``, float32; the last holds the logits.
    """
    return [output for _, output in _forward(params, images)]


def _forward(params: Params, images: FloatArray) -> list[tuple[FloatArray, FloatArray]]:
    """Return, per layer, the left matrix of its product and its output."""
    trace: list[tuple[FloatArray, FloatArray]] = []
    x = images
    for spec in NETWORK:
        rows = left_matrix(x, spec)
        weight = params[f"{spec.name}_weight"]
        x = rows @ weight.reshape(-1, weight.shape[-1]) + params[f"{spec.name}_bias"]
        if spec.relu:
            x = np.maximum(x, np.float32(0))
        x = x.reshape(len(images), *spec.out_shape)
        trace.append((rows, x))
    return trace


def _gradients(params: Params, images: FloatArray, labels: IntArray) -> Params:
    """Return the gradient of the mean cross-entropy for every parameter."""
    trace = _forward(params, images)
    logits = trace[-1][1]
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    grad = exp / exp.sum(axis=1, keepdims=True)
    grad[np.arange(len(labels)), labels] -= 1
    grad /= len(labels)
    grads: Params = {}
    for index in reversed(range(len(NETWORK))):
        spec = NETWORK[index]
        rows, output = trace[index]
        if spec.relu:
            grad = grad * (output.reshape(grad.shape) > 0)
        flat = grad.reshape(-1, spec.out_shape[-1])
        weight = params[f"{spec.name}_weight"]
        grads[f"{spec.name}_weight"] = (rows.T @ flat).reshape(weight.shape)
        grads[f"{spec.name}_bias"] = flat.sum(axis=0)
        if index:
            back = flat @ weight.reshape(-1, weight.shape[-1]).T
            grad = _col2im(back, (KERNEL, KERNEL), spec) if spec.kind == "conv" else back
            grad = grad.reshape(-1, *NETWORK[index - 1].out_shape)
    return grads


class _Adam:
    """Adam with decoupled weight decay, which holds masked weights at zero."""

    def __init__(self, params: Params) -> None:
        self._first = {key: np.zeros_like(value) for key, value in params.items()}
        self._second = {key: np.zeros_like(value) for key, value in params.items()}
        self._step = 0

    def update(self, params: Params, grads: Params, masks: Params, rate: float) -> None:
        """Move ``params`` in place by one step."""
        beta1, beta2 = 0.9, 0.999
        self._step += 1
        scale = rate * math.sqrt(1 - beta2**self._step) / (1 - beta1**self._step)
        for key, value in params.items():
            first, second, grad = self._first[key], self._second[key], grads[key]
            first += (1 - beta1) * (grad - first)
            second += (1 - beta2) * (grad * grad - second)
            value -= scale * first / (np.sqrt(second) + 1e-8)
            if key.endswith("_weight"):
                value *= 1 - rate * WEIGHT_DECAY
            if key in masks:
                value *= masks[key]


def _rates(peak: float, steps: int) -> Iterator[float]:
    """Yield a learning rate per step, falling along half a cosine to a hundredth of ``peak``."""
    for step in range(steps):
        yield peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(
    params: Params,
    images: FloatArray,
    labels: IntArray,
    *,
    epochs: int,
    rate: float,
    masks: Params,
    rng: np.random.Generator,
) -> None:
    """Train ``params`` in place.

    Args:
        params: as for `float_forward`.
        images: float32 ``(n, 8, 8, 1)`` in 0..1.
        labels: int64 ``(n,)``.
        epochs: passes over the images.
        rate: first (and highest) learning rate.
        masks: 0/1 float32 arrays shaped like the parameters of the same keys; empty for none.
        rng: gives the order of the images and their small random moves.
    """
    optimiser = _Adam(params)
    rates = _rates(rate, epochs * math.ceil(len(images) / BATCH_SIZE))
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for start in range(0, len(images), BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            grads = _gradients(params, _translate(images[batch], rng), labels[batch])
            optimiser.update(params, grads, masks, next(rates))


def magnitude_masks(params: Params, keep: Mapping[str, float]) -> Params:
    """Return 0/1 float32 masks, keyed ``<name>_weight``, which keep each layer's largest weights.

    Exactly ``round(keep[name] * size)`` weights of a layer are kept; of equal ones, the first.
    """
    masks: Params = {}
    for name, fraction in keep.items():
        weight = params[f"{name}_weight"]
        order = np.argsort(-np.abs(weight), axis=None, kind="stable")
        mask = np.zeros(weight.size, dtype=np.float32)
        mask[order[: round(fraction * weight.size)]] = 1
        masks[f"{name}_weight"] = mask.reshape(weight.shape)
    return masks


def prune(params: Params, images: FloatArray, labels: IntArray, rng: np.random.Generator) -> None:
    """Prune ``params`` in place down to `KEEP`, step by step, with masked training after each step."""
    for step in range(1, PRUNE_STEPS + 1):
        progress = 1 - (1 - step / PRUNE_STEPS) ** 3
        masks = magnitude_masks(params, {name: 1 - (1 - keep) * progress for name, keep in KEEP.items()})
        for key, mask in masks.items():
            params[key] *= mask
        epochs = FINAL_EPOCHS if step == PRUNE_STEPS else PRUNE_EPOCHS
        train(params, images, labels, epochs=epochs, rate=FINE_TUNE_RATE, masks=masks, rng=rng)


# Quantisation


def quantise(params: Params, images: FloatArray) -> list[QuantLayer]:
    """Quantise the float network.

    Weights get a scale per output channel (one for the whole layer where outputs stay raw), hidden
    activations a scale per layer from the `CALIBRATION_PERCENTILE` of their values on ``images``.

    Args:
        params: as for `float_forward`.
        images: float32 ``(n, 8, 8, 1)`` calibration images in 0..1.
    """
    layers: list[QuantLayer] = []
    in_scale = 1 / INPUT_MAX
    for spec, activations in zip(NETWORK, float_forward(params, images), strict=True):
        weight = params[f"{spec.name}_weight"].astype(np.float64)
        bias = params[f"{spec.name}_bias"].astype(np.float64)
        channels = weight.shape[-1]
        raw = spec.hi is None
        peak = np.abs(weight).reshape(-1, channels).max(axis=0)
        # A channel without weights still has a bias to scale: give it the layer's widest scale.
        peak = np.where((peak == 0) | raw, peak.max(), peak)
        scale = peak / WEIGHT_MAX
        weight_q = np.rint(weight / scale).astype(np.int8)
        total_scale = in_scale * scale
        bias_q = np.rint(bias / total_scale)
        if np.abs(bias_q).max() >= 2**31:
            raise ValueError(f"a bias of {spec.name} does not fit int32")
        mult = shift = None
        if spec.hi is not None:
            out_scale = float(np.percentile(activations, CALIBRATION_PERCENTILE)) / spec.hi
            pairs = [fixed_point(float(value) / out_scale) for value in total_scale]
            mult = np.array([pair[0] for pair in pairs], dtype=np.uint32)
            shift = np.array([pair[1] for pair in pairs], dtype=np.uint8)
            in_scale = out_scale
        layers.append(QuantLayer(spec, weight_q, bias_q.astype(np.int32), mult, shift))
    return layers


# Script


def _score(logits: NDArray[Any], labels: IntArray) -> float:
    return float(np.mean(np.argmax(logits, axis=1) == labels))


def _density(array: NDArray[Any]) -> float:
    return np.count_nonzero(array) / array.size


def build(seed: int) -> tuple[list[QuantLayer], NDArray[np.int32], dict[str, Any]]:
    """Train, prune and quantise the network from ``seed``.

    Returns:
        The integer layers, the int32 ``(n,)`` test indices, and the figures of the test split: float,
        pruned float and integer accuracy, share of non-zero weights per layer, mean share of
        non-zero values per uint8 tensor (the input and each requantised output).
    """
    rng = np.random.default_rng(seed)
    pixels, labels = load_images()
    scaled = pixels.astype(np.float32) / np.float32(INPUT_MAX)
    train_indices, test_indices = stratified_split(labels, rng)
    train_images, train_labels = scaled[train_indices], labels[train_indices]
    test_images, test_labels = scaled[test_indices], labels[test_indices]

    params = _init_params(rng)
    train(params, train_images, train_labels, epochs=DENSE_EPOCHS, rate=LEARNING_RATE, masks={}, rng=rng)
    float_accuracy = _score(float_forward(params, test_images)[-1], test_labels)
    prune(params, train_images, train_labels, rng)
    pruned_accuracy = _score(float_forward(params, test_images)[-1], test_labels)
    layers = quantise(params, train_images)
    outputs = integer_forward(layers, pixels[test_indices])

    densities = {"input": _density(pixels[test_indices])}
    for layer, output in zip(layers, outputs, strict=True):
        if layer.mult is not None:
            densities[layer.spec.name] = _density(output)
    figures: dict[str, Any] = {
        "float_accuracy": float_accuracy,
        "pruned_float_accuracy": pruned_accuracy,
        "integer_accuracy": _score(outputs[-1], test_labels),
        "test_images": len(test_labels),
        "weight_density": {layer.spec.name: _density(layer.weight) for layer in layers},
        "activation_density": densities,
        "seed": seed,
        "numpy": np.__version__,
    }
    return layers, test_indices, figures


def _report(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line of text per figure."""
    for key, value in figures.items():
        if isinstance(value, dict):
            items = cast("dict[str, float]", value)
            yield f"{key}: " + ", ".join(f"{name} {share:.4f}" for name, share in items.items())
        else:
            yield f"{key}: {value:.4f}" if isinstance(value, float) else f"{key}: {value}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script: build the network, write the file and print the figures."""
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    parser = argparse.ArgumentParser(description="Train, prune and quantise the digits CNN.")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--output", type=Path, default=NETWORK_FILE, help="the ONNX file to write")
    options = parser.parse_args(argv)
    output: Path = options.output
    start = time.monotonic()
    with threadpool_limits(limits=1):
        layers, test_indices, figures = build(options.seed)
    save_network(output, layers, test_indices, figures)
    for line in _report(figures):
        print(line)
    print(f"wrote {output} ({output.stat().st_size} bytes) after {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
