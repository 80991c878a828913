"""The demonstration: a pruned integer CNN on handwritten digits, layer by layer on the generated hardware."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from maskwork.gen.cli_common import new_table
from maskwork.gen.config import Config
from maskwork.gen.demo_net import NETWORK_FILE, integer_forward, load_images, load_network
from maskwork.gen.errors import DeviceError, MaskworkValueError
from maskwork.gen.generate import Generated, check_folder, generate, write_files
from maskwork.gen.report import REASONS, link_line
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rich.console import Console

Tell = Callable[[str], None]


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration found.

    Members:
        report: totals, ``layers``, and of the network ``images``, ``correct`` and ``accuracy``.
        outputs: each layer's output by name, (images, ...), as the target gave it.
        generated: the netlist.
        figures: accuracies recorded when the network was trained, on all held-back images.
    """

    report: dict[str, Any]
    outputs: dict[str, NDArray[Any]]
    generated: Generated
    figures: dict[str, Any]


def steps() -> int:
    """Steps of :func:`run` that its caller is told about."""
    return 2 + len(load_network()[0])


def _compare(name: str, reference: str, got: NDArray[Any], expected: NDArray[Any]) -> None:
    wrong = np.argwhere(got != expected)
    if len(wrong):
        first = tuple(int(i) for i in wrong[0])
        raise DeviceError(
            f"{name}: {len(wrong)} of {got.size} outputs differ from the {reference}; the first, {first}, is "
            f"{got[first]}, not {expected[first]}"
        )


def run(
    config: Config,
    images: int = 20,
    target: str = "rtl",
    output_dir: str | os.PathLike[str] | None = None,
    step: Tell = lambda _: None,
    **options: Any,
) -> DemoResult:
    """Run the demonstration.

    Args:
        config: the accelerator.
        images: held-back test images to run.
        target: "rtl", "cycle" or "golden".
        output_dir: directory for netlist, manifest, programs and ``outputs.npz``; None keeps nothing.
        step: told when a step ends and what comes next.
        **options: of the device (see :func:`maskwork.sim_tb.device.open_device`).

    Raises:
        MaskworkValueError: for a number of images that there is not, or a configuration without post-processing.
        DeviceError: if an output differs from the golden model's, or from the network's integer reference.
    """
    from maskwork.gen.network.compile import compile_model
    from maskwork.gen.network.steps import Run, Step, Tensors
    from maskwork.sim_tb.device import GoldenDevice, open_device

    start = time.perf_counter()
    layers, test_indices, figures = load_network()
    if not 1 <= images <= len(test_indices):
        raise MaskworkValueError(f"--images must be from 1 to {len(test_indices)}, the held-back ones, not {images}")
    if output_dir is not None:
        check_folder(output_dir)
    names = [layer.spec.name for layer in layers]
    # a configuration that cannot run it is refused before anything is built
    compiled = compile_model(NETWORK_FILE, config, shapes={"image": (images, 1, *layers[0].spec.in_shape[:2])})
    for own in compiled.steps:
        if own.name in names and own.where == "host":
            raise MaskworkValueError(f"{own.name}: the configuration cannot run it: {own.reason}")
    pixels, labels = load_images()
    chosen = test_indices[:images]
    reference = dict(zip(names, integer_forward(layers, pixels[chosen]), strict=True))
    step(f"building {target}")
    outputs: dict[str, NDArray[Any]] = {}
    golden = Run(GoldenDevice(config), "golden", compiled.graph.opset)

    def watch(own: Step, before: Tensors, made: Tensors) -> None:
        name = own.name.removesuffix("_add")  # fc2 leaves raw sums: the host adds the bias
        if own.where == "accelerator":
            step(name)
            for tensor, expected in own.run(before, golden).items():
                _compare(name, "golden model", made[tensor], expected)
        if name in names:
            (outputs[name],) = made.values()

    inputs = {"image": np.ascontiguousarray(pixels[chosen].transpose(0, 3, 1, 2))}
    with open_device(target, config, **options) as device:
        done = compiled.run_on(device, inputs, target, watch)
    for name, expected in reference.items():
        expected = expected.transpose(0, 3, 1, 2) if expected.ndim == 4 else expected
        _compare(name, "network's integer reference", outputs[name], expected)
    with tempfile.TemporaryDirectory(prefix="maskwork-") as folder:
        generated = generate(config, output_dir or folder)
    step("done")
    if output_dir is not None:
        own = {f"{own.name}.mwp": own.programs[0].to_json() for own in compiled.steps if own.programs}
        write_files(output_dir, own)
        _write_outputs(Path(output_dir) / "outputs.npz", outputs)
    report = {**done.report, "seconds": time.perf_counter() - start}
    correct = int((done.outputs["logits"].argmax(axis=1) == labels[chosen]).sum())
    report |= {"images": images, "correct": correct, "accuracy": correct / images}
    return DemoResult(report, outputs, generated, figures)


def _write_outputs(path: Path, outputs: dict[str, NDArray[Any]]) -> None:
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **outputs)  # type: ignore[arg-type]
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ---------------------------------------------------------------------- tables


def show(result: DemoResult, console: Console) -> None:
    """Print layers, totals and accuracy."""
    report, manifest = result.report, result.generated.manifest
    config, target, layers = report["config"], report["target"], report["layers"]
    console.print(
        f"{manifest['file']}: {manifest['modules']} modules, {manifest['bytes']:,} bytes; {config['name']}: "
        f"{report['pes']} PEs, stream_words = {config['stream_words']}, skip = {config['skip'] or 'none'}"
    )
    console.print(f"{report['images']} images of handwritten digits on target {target}; densities of the three masks:")
    shapes = new_table("layer", "A, input", "B, weights", "C, output", "A", "B", "C")
    for layer in layers:
        sizes = ("x".join(map(str, layer["shapes"][key])) for key in "abc")
        shapes.add_row(layer["layer"], *sizes, *(f"{layer['densities'][key]:.2f}" for key in "abc"))
    console.print(shapes)
    timed = "cycles" in report
    costs = new_table("layer", "products", "effectual", *(("cycles", "utilisation", "x dense array") if timed else ()))
    for layer in [*layers, report]:
        row = [f"{layer['macs_dense']:,}", f"{layer['macs_effectual']:,}"]
        if timed:
            row += [f"{layer['cycles']:,}", f"{layer['utilization']:.3f}", f"{layer['speedup_vs_dense']:.2f}"]
        costs.add_row(layer.get("layer", "total"), *row)
    console.print(costs)
    if "link" in report:
        console.print(link_line(report))
    if timed:
        reasons = new_table("PE-cycles, %", *(layer["layer"] for layer in layers), "total")
        for name in REASONS:
            shares = (100 * part["pe_cycles"][name] / (part["cycles"] * report["pes"]) for part in [*layers, report])
            reasons.add_row(name, *(f"{share:.1f}" for share in shares))
        console.print(reasons)
        console.print(
            f"x dense array: speed-up over {report['pes']} multipliers that never stall and skip nothing; its bound "
            f"for these masks is {report['bound']:.2f}. No output is masked out here: C is 1."
        )
    if target not in ("golden", "cycle"):  # their outputs are the golden model's
        console.print("Outputs equal the golden model's bit for bit (fc2 leaves raw sums: the host adds the bias).")
    console.print(
        f"Accuracy: {report['correct']} of {report['images']} images ({report['accuracy']:.1%}); "
        f"{result.figures['integer_accuracy']:.1%} on all {result.figures['test_images']} held-back images in NumPy."
    )
    console.print(f"{report['seconds']:.1f} s")
