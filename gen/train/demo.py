"""The training demonstration: a CNN for handwritten digits, trained with integer products and pruned gradients."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from maskwork.gen import cli_common as common
from maskwork.gen.config import Config
from maskwork.gen.demo_net import KERNEL, NETWORK, load_images
from maskwork.gen.errors import DeviceError, MaskworkTypeError, MaskworkValueError
from maskwork.gen.report import summary
from maskwork.gen.train.numerics import check_bits, check_rounding
from maskwork.gen.train.products import GoldenProducts, Int64Array, Products
from maskwork.gen.train.pruning import Pruner
from maskwork.gen.train.step import Adam, Conv, Linear, Network, clone, evaluate, step
from maskwork.gen.workload import PASSES, Layer

if TYPE_CHECKING:
    from maskwork.sim_tb.device import Device
    from numpy.typing import NDArray
    from rich.console import Console

BATCH = 32
REPLAY_IMAGES = 8
RATE = 2e-3
INPUT_MAX = 16

_COUNTED = ("cycles", "compute_cycles", "pe_cycles", "words_in", "words_out", "macs_dense", "macs_effectual")
_KEPT = ("layer", "pass", "densities", *_COUNTED, "utilization", "speedup_vs_dense", "bound")


@dataclass(frozen=True)
class Digits:
    """Images, float32 (N, 8, 8, 1) in 0..1, and labels."""

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]


@dataclass(frozen=True)
class Options:
    """What is trained, and how.

    Members:
        bits: of operands, 8 or 16; None is float32 (not for :func:`run`).
        epochs: passes over the images.
        seed: of weights, order of images, rounding and pruning.
        sparsity: of :class:`Pruner`; 0 prunes nothing.
        rounding: of output gradients.
        images: training images, at most; None is all.

    Raises:
        MaskworkTypeError, MaskworkValueError: naming the option that cannot be used.
    """

    bits: int | None = 8
    epochs: int = 10
    seed: int = 1
    sparsity: float = 0.9
    rounding: str = "stochastic"
    images: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("seed", 0), ("images", 1)):
            value = getattr(self, name)
            if name == "images" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise MaskworkTypeError(f"{name} must be an integer, not {value!r}")
            if value < least:
                raise MaskworkValueError(f"{name} must be {least} or more, not {value}")
        if not 0 <= self.sparsity < 1:
            raise MaskworkValueError(f"prune must be 0 (nothing) or more and below 1, not {self.sparsity}")
        check_rounding(self.rounding)


@dataclass
class Training:
    """A training in progress: its state, and what its epochs found."""

    options: Options
    digits: Digits
    network: Network
    pruner: Pruner | None
    rng: np.random.Generator
    optimiser: Adam = field(default_factory=lambda: Adam(RATE))
    epochs: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def start(cls, options: Options) -> Training:
        """Images and random weights from the seed."""
        rng = np.random.default_rng(options.seed)
        digits = load_digits(rng, options.images)
        pruner = Pruner(options.sparsity, options.seed) if options.sparsity else None
        return cls(options, digits, digits_network(options.seed), pruner, rng)

    def epoch(self, products: Products, last: Products, done: Callable[[str], None] = lambda text: None) -> None:
        """All images once.

        Args:
            products: for all steps but the last.
            last: for the last step.
            done: called after every step.
        """
        options, digits = self.options, self.digits
        order = self.rng.permutation(len(digits.train_images))
        starts = range(0, len(order), BATCH)
        totals: dict[str, dict[str, int]] = {
            key: {which: 0 for which in PASSES} for key in ("macs_dense", "macs_effectual")
        }
        losses: list[float] = []
        for start in starts:
            self._set_rate(len(self.epochs) + start / len(order))
            chosen = order[start : start + BATCH]
            own = last if start == starts[-1] else products
            own.reports.clear()
            result = step(
                self.network, digits.train_images[chosen], digits.train_labels[chosen], own, bits=options.bits,
                rounding=options.rounding, pruner=self.pruner, optimiser=self.optimiser, rng=self.rng,
            )  # fmt: skip
            losses.append(result.loss)
            for report in result.reports:
                for key, sums in totals.items():
                    sums[report["pass"]] += report[key]
            done(f"epoch {len(self.epochs) + 1} of {options.epochs}, loss {result.loss:.3f}")
        layers = [{key: report[key] for key in _KEPT if key in report} for report in last.reports]
        accuracy = evaluate(self.network, digits.test_images, digits.test_labels, products, options.bits)
        products.reports.clear()
        self.epochs.append({
            "epoch": len(self.epochs) + 1, "loss": float(np.mean(losses)), "test_accuracy": accuracy,
            "macs_saved": saved(totals), "passes": totals, "levels": result.levels, "layers": layers,
        })  # fmt: skip

    def _set_rate(self, epochs: float) -> None:
        """Half a cosine, to a hundredth."""
        self.optimiser.rate = RATE * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * epochs / self.options.epochs)))


def saved(totals: Mapping[str, Mapping[str, int]]) -> float:
    """Share of multiplies that masks saved."""
    return 1 - sum(totals["macs_effectual"].values()) / sum(totals["macs_dense"].values())


def load_digits(rng: np.random.Generator, images: int | None = None) -> Digits:
    """scikit-learn's digits, a fifth of each class for testing."""
    from maskwork.gen.demo_train import stratified_split

    pixels, labels = load_images()
    scaled = pixels.astype(np.float32) / np.float32(INPUT_MAX)
    train, test = stratified_split(labels, rng)
    train = rng.permutation(train)[:images]
    return Digits(scaled[train], labels[train], scaled[test], labels[test])


def digits_network(seed: int) -> Network:
    """The network of :mod:`maskwork.gen.demo_net`, with random weights."""
    layers: list[Conv | Linear] = [
        Conv(spec.name, spec.out_shape[-1], KERNEL, spec.stride, spec.padding, spec.dilation, relu=spec.relu)
        if spec.kind == "conv" else Linear(spec.name, spec.out_shape[0], spec.relu)
        for spec in NETWORK
    ]  # fmt: skip
    return Network(NETWORK[0].in_shape, layers, seed)


class Compared(Products):
    """Runs every product on a device, by the golden formulas and on the cycle model, and compares.

    Results must be the golden model's bit for bit, and counters the cycle model's.

    Args:
        device: open.
        target: its name.
    """

    def __init__(self, device: Device, target: str) -> None:
        from maskwork.sim_tb.device import open_device

        super().__init__(device, target)
        self.golden = GoldenProducts(device.config)
        with open_device("cycle", device.config) as model:
            self.model = Products(model, "cycle")
        self.values = 0

    def run(self, layer: Layer, which: str, tensors: Mapping[str, Any], wanted: Any = None) -> Int64Array:
        """See :meth:`Products.run`.

        Raises:
            DeviceError: also for the first difference.
        """
        result = super().run(layer, which, tensors, wanted)
        for other in (self.golden, self.model):
            expected = other.run(layer, which, tensors, wanted)
            if not np.array_equal(result, expected):
                at = tuple(int(i) for i in np.argwhere(result != expected)[0])
                raise DeviceError(f"{layer.layer}, {which}: element {at} is {result[at]} on {self.target}, but "
                                  f"{expected[at]} on {other.target}")  # fmt: skip
        for key in _COUNTED:
            own, expected = self.reports[-1].get(key), self.model.reports[-1].get(key)
            if own != expected:
                raise DeviceError(f"{layer.layer}, {which}: {key} is {own} on {self.target}, but {expected} on cycle")
        self.values += result.size
        return result


def run(
    config: Config, options: Options, target: str = "cycle", replay: str = "rtl",
    done: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:  # fmt: skip
    """Train, and replay a step.

    Args:
        config: the accelerator.
        options: of the training.
        target: where the last step of each epoch runs: "cycle", which predicts its cycles, or "golden".
        replay: "rtl" (every product of one more step, compared) or "none".
        done: called after each of :func:`steps` steps with what is next.

    Returns:
        The report: docs/formats.md has the keys of ``layers``.

    Raises:
        MaskworkValueError: for options that the configuration cannot run.
        DeviceError: if the replay differs.
    """
    from maskwork.sim_tb.device import open_device

    check_bits(config, options.bits)
    for name, value, accepted in (("target", target, ("golden", "cycle")), ("replay", replay, ("rtl", "none"))):
        if value not in accepted:
            raise MaskworkValueError(f"{name} must be {' or '.join(accepted)}, not {value!r}")
    start = time.perf_counter()
    training, golden = Training.start(options), GoldenProducts(config)
    with open_device("cycle", config) as device:
        last = Products(device, "cycle") if target == "cycle" else GoldenProducts(config)
        for _ in range(options.epochs):
            training.epoch(golden, last, done)
    report: dict[str, Any] = {
        "network": "digits", "config": config.to_dict(), "pes": config.pes, "bits": options.bits,
        "rounding": options.rounding, "prune": options.sparsity, "seed": options.seed, "target": target,
        "train_images": len(training.digits.train_images), "test_images": len(training.digits.test_images),
        "batch": BATCH, "test_accuracy": training.epochs[-1]["test_accuracy"],
        "macs_saved": _mean(training.epochs, "macs_saved"), "epochs": training.epochs,
        "train_seconds": time.perf_counter() - start, "replay": None,
    }  # fmt: skip
    if replay == "rtl":
        done("replaying a step on rtl")
        report["replay"] = replay_step(config, training)
    report["seconds"] = time.perf_counter() - start
    return report


def replay_step(config: Config, training: Training, target: str = "rtl", images: int = REPLAY_IMAGES) -> dict[str, Any]:
    """One more step of a training on a target, every product compared (:class:`Compared`); the training goes on
    unchanged.
    """
    from maskwork.sim_tb.device import open_device

    start, options, digits = time.perf_counter(), training.options, training.digits
    with open_device(target, config) as device:
        products = Compared(device, target)
        result = step(
            clone(training.network), digits.train_images[:images], digits.train_labels[:images], products,
            bits=options.bits, rounding=options.rounding, pruner=training.pruner, rng=options.seed,
        )  # fmt: skip
    entries = [{key: report[key] for key in _KEPT if key in report} for report in result.reports]
    in_hardware = bool(training.pruner) and "prune" in config.generators.split(",")
    return {
        "target": target, "images": min(images, len(digits.train_images)), "products": len(entries),
        "values": products.values, "equal": True, "pruned_on": target if in_hardware else "host",
        **summary(result.reports), "layers": entries, "seconds": time.perf_counter() - start,
    }  # fmt: skip


def steps(options: Options) -> int:
    """Steps of the progress bar, for all images of the digits (1438 of 1797 train)."""
    return options.epochs * math.ceil(min(options.images or 1438, 1438) / BATCH) + 1


def _mean(epochs: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(np.mean([epoch[key] for epoch in epochs]))


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print the report as tables."""
    table = common.new_table("epoch", "loss", "test accuracy", "multiplies saved", "cycles of a step")
    for epoch in report["epochs"]:
        cycles = sum(layer.get("cycles", 0) for layer in epoch["layers"])
        table.add_row(str(epoch["epoch"]), f"{epoch['loss']:.4f}", f"{epoch['test_accuracy']:.2%}",
                      f"{epoch['macs_saved']:.1%}", str(cycles or ""))  # fmt: skip
    console.print(table)
    first, last = report["epochs"][0]["layers"], report["epochs"][-1]["layers"]
    table = common.new_table("layer", "pass", "density A", "B", "C", "multiplies", "cycles", "x dense", "utilisation")
    for old, new in zip(first, last, strict=True):
        pairs = [[f"{layer['densities'][name]:.2f}" for layer in (old, new)] for name in "abc"]
        pairs.append([f"{layer['macs_effectual'] / max(1, layer['macs_dense']):.1%}" for layer in (old, new)])
        pairs += [[format(layer[key], form) if key in layer else "" for layer in (old, new)]
                  for key, form in (("cycles", ""), ("speedup_vs_dense", ".2f"), ("utilization", ".3f"))]  # fmt: skip
        table.add_row(new["layer"], new["pass"], *(" > ".join(pair) if any(pair) else "" for pair in pairs))
    console.print(table)
    console.print("The last step of the first > last epoch. Densities are of the operands and of the results that are "
                  "wanted; multiplies are those of no zero factor, of all.", highlight=False)  # fmt: skip
    pruned = f"gradients pruned at p = {report['prune']:g}" if report["prune"] else "gradients not pruned"
    console.print(
        f"{report['bits']}-bit training of {report['train_images']} images, {pruned}: {report['test_accuracy']:.2%} of "
        f"{report['test_images']} test images right; {report['macs_saved']:.1%} of all multiplies saved "
        f"({report['train_seconds']:.0f} s)", highlight=False,
    )  # fmt: skip
    replay = report["replay"]
    if replay is not None:
        console.print(
            f"replay of a step of {replay['images']} images on {replay['target']}: {replay['products']} products, "
            f"{replay['values']} results equal the golden model's bit for bit, all counters the cycle model's "
            f"({replay['cycles']} cycles); pruned on {replay['pruned_on']} ({replay['seconds']:.0f} s)",
            highlight=False,
        )
