"""Accuracy of training and multiplies saved: float32, int8 and int16, with gradients pruned and not, several seeds.

Run as ``python -m maskwork.gen.train.demo_measure --write docs/train_demo.json``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
import numpy as np
from maskwork.gen import cli_common as common
from maskwork.gen.config import preset
from maskwork.gen.errors import MaskworkValueError
from maskwork.gen.passes import OPERANDS
from maskwork.gen.train.demo import Options, Training, saved
from maskwork.gen.train.products import GoldenProducts, pass_macs, result_shape
from maskwork.gen.workload import PASSES, Layer
from numpy.typing import NDArray

NUMERICS: Mapping[str, tuple[int | None, str]] = {
    "float32": (None, "small"), "int8": (8, "small"), "int16": (16, "small-int16"),
}  # fmt: skip
"""Bits of operands and the preset whose products are taken."""


class FloatProducts(GoldenProducts):
    """The same passes of float32 tensors, in float32, for layers of one group; counts products alike."""

    def run(self, layer: Layer, which: str, tensors: Mapping[str, Any], wanted: Any = None) -> NDArray[Any]:
        """See :meth:`~maskwork.gen.train.products.Products.run`."""
        a, b = (np.asarray(tensors[name], dtype=np.float32) for name in OPERANDS[which][:2])
        n, oh, ow, _ = layer.output_shape
        pad, reach = layer.padding, layer.stride
        padded = np.zeros((n, layer.in_height + 2 * pad, layer.in_width + 2 * pad, layer.in_channels), np.float32)
        inside = padded[:, pad : pad + layer.in_height, pad : pad + layer.in_width]
        if which != "input_grad":
            inside[:] = a
        result = padded if which == "input_grad" else np.zeros(result_shape(layer, which), np.float32)
        for i, j in np.ndindex(layer.kernel_height, layer.kernel_width):
            y, x = i * layer.dilation, j * layer.dilation
            at = (slice(None), slice(y, y + (oh - 1) * reach + 1, reach), slice(x, x + (ow - 1) * reach + 1, reach))
            if which == "forward":
                result += padded[at] @ b[i, j]
            elif which == "input_grad":
                result[at] += a @ b[i, j].T
            else:
                result[i, j] = np.tensordot(padded[at], b, ((0, 1, 2), (0, 1, 2)))
        result = inside if which == "input_grad" else result
        counts = pass_macs(layer, which, {name: tensors[name] for name in OPERANDS[which][:2]}, wanted)
        densities = {"a": np.count_nonzero(a) / a.size, "b": np.count_nonzero(b) / b.size,
                     "c": 1.0 if wanted is None else float(np.mean(wanted))}  # fmt: skip
        self.reports.append({"layer": layer.layer, "pass": which, "densities": densities, **counts})
        return result if wanted is None else result * wanted


def measure(
    numerics: Sequence[str], sparsities: Sequence[float], seeds: Sequence[int], epochs: int, images: int | None = None,
    done: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:  # fmt: skip
    """Trainings of every combination.

    Args:
        numerics: of :data:`NUMERICS`.
        sparsities: of the pruner; 0 prunes nothing.
        seeds: of each.
        epochs: of each.
        images: training images, at most.
        done: called after each training.
    """
    rows = []
    for name in numerics:
        if name not in NUMERICS:
            raise MaskworkValueError(f"numerics must be of {', '.join(NUMERICS)}, not {name!r}")
        bits, config = NUMERICS[name]
        for sparsity in sparsities:
            runs = []
            for seed in seeds:
                runs.append(_train(Options(bits, epochs, seed, sparsity, images=images), preset(config)))
                done(f"{name}, p = {sparsity:g}, seed {seed}: {runs[-1]['test_accuracy']:.2%}")
            keys = ("test_accuracy", "macs_saved", "macs_saved_last_epoch")
            means = {key: float(np.mean([run[key] for run in runs])) for key in keys}
            rows.append({"numerics": name, "prune": sparsity, **means, "runs": runs})
    return {"network": "digits", "epochs": epochs, "seeds": list(seeds), "rounding": "stochastic", "rows": rows}


def _train(options: Options, config: Any) -> dict[str, Any]:
    start = time.perf_counter()
    training = Training.start(options)
    products = FloatProducts(config) if options.bits is None else GoldenProducts(config)
    for _ in range(options.epochs):
        training.epoch(products, products)
    last = training.epochs[-1]
    passes = {which: 1 - last["passes"]["macs_effectual"][which] / last["passes"]["macs_dense"][which]
              for which in PASSES}  # fmt: skip
    totals = {key: {str(epoch["epoch"]): sum(epoch["passes"][key].values()) for epoch in training.epochs}
              for key in ("macs_dense", "macs_effectual")}  # fmt: skip
    return {
        "seed": options.seed, "test_accuracy": last["test_accuracy"],
        "accuracies": [epoch["test_accuracy"] for epoch in training.epochs], "macs_saved": saved(totals),
        "macs_saved_last_epoch": last["macs_saved"], "passes_saved_last_epoch": passes,
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--epochs", metavar="N", type=int, default=5, show_default=True, help="Of each training.")
@click.option("--seeds", metavar="N", type=int, default=3, show_default=True, help="Seeds 1 to N.")
@click.option("--prune", "sparsity", metavar="P", type=float, default=0.9, show_default=True, help="Beside 0.")
@click.option("--write", metavar="FILE.json", help="Write the figures.")
def main(epochs: int, seeds: int, sparsity: float, write: str | None) -> None:
    """Accuracy and multiplies saved of float32, int8 and int16 training, pruned and not."""
    if seeds < 1:
        raise MaskworkValueError(f"seeds must be 1 or more, not {seeds}")
    with common.OutputFiles() as files:
        path = files.reserve(write, "--write") if write is not None else None
        with common.progress("training", len(NUMERICS) * 2 * seeds) as step:
            found = measure(list(NUMERICS), (0.0, sparsity), range(1, seeds + 1), epochs, done=step)
        if path is not None:
            common.write_json(path, found)
            files.commit()
    table = common.new_table("numerics", "pruned at", "test accuracy", "of seeds", "multiplies saved", "last epoch")
    for row in found["rows"]:
        seen = [run["test_accuracy"] for run in row["runs"]]
        table.add_row(row["numerics"], f"{row['prune']:g}" if row["prune"] else "-", f"{row['test_accuracy']:.2%}",
                      f"{min(seen):.2%} to {max(seen):.2%}", f"{row['macs_saved']:.1%}",
                      f"{row['macs_saved_last_epoch']:.1%}")  # fmt: skip
    common.console().print(table)


if __name__ == "__main__":
    sys.exit(common.run_command(main))
