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
from maskwork.gen.demo_net import QuantLayer, integer_forward, load_images, load_network
from maskwork.gen.errors import DeviceError, MaskworkValueError
from maskwork.gen.execute import Execution, execute_bound
from maskwork.gen.generate import Generated, generate, write_files
from maskwork.gen.lower import Post, lower_conv, lower_matmul
from maskwork.gen.program import Program, bind
from maskwork.gen.report import REASONS, make_report, total_report
from numpy.typing import NDArray

if TYPE_CHECKING:
    from maskwork.sim_tb.device import Device
    from rich.console import Console

Step = Callable[[str], None]


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


def lower_layer(config: Config, layer: QuantLayer, images: int) -> Program:
    """The program of one layer for a batch of images: operands "a" (N, ...) and "b", output "c".

    A requantised layer has operands "bias", "mult" and "shift" too; a raw one leaves its bias to the host.
    """
    spec = layer.spec
    post = None
    if layer.mult is not None and spec.lo is not None and spec.hi is not None:
        post = Post(spec.lo, spec.hi)
    if spec.kind == "fc":
        return lower_matmul(config, images, spec.in_shape[0], spec.out_shape[0], post=post)
    return lower_conv(
        config, (images, *spec.in_shape), layer.weight.shape, spec.stride, spec.padding, spec.dilation, post=post
    )


def _macs(layer: QuantLayer, x: NDArray[Any]) -> dict[str, int]:
    from maskwork.sim_tb.golden import conv2d_macs, macs

    spec = layer.spec
    if spec.kind == "fc":
        return macs(x, layer.weight)
    return conv2d_macs(x, layer.weight, spec.stride, spec.padding, spec.dilation)


def _compare(name: str, reference: str, got: NDArray[Any], expected: NDArray[Any]) -> None:
    wrong = np.argwhere(got != expected)
    if len(wrong):
        first = tuple(int(i) for i in wrong[0])
        raise DeviceError(
            f"{name}: {len(wrong)} of {got.size} outputs differ from the {reference}; the first, {first}, is "
            f"{got[first]}, not {expected[first]}"
        )


def run_layer(
    device: Device, golden: Device, layer: QuantLayer, x: NDArray[Any], target: str
) -> tuple[NDArray[Any], dict[str, Any], Program]:
    """Run one layer and compare it with the golden model's run of the same words.

    Args:
        device: where it runs.
        golden: the golden model.
        layer: the layer.
        x: integers (N, *in_shape).
        target: the device's name in the report.

    Returns:
        Outputs (N, *out_shape), the layer's report, and the program.

    Raises:
        DeviceError: if an output differs.
    """
    start = time.perf_counter()
    spec, config = layer.spec, device.config
    program = lower_layer(config, layer, len(x))
    operands: dict[str, Any] = {"a": x, "b": layer.weight}
    if "bias" in program.operands:
        operands |= {"bias": layer.bias, "mult": layer.mult, "shift": layer.shift}
    bound = bind(program, operands)
    done: Execution = execute_bound(device, program, bound)
    output = done.outputs["c"]
    _compare(spec.name, "golden model", output, execute_bound(golden, program, bound).outputs["c"])
    if "bias" not in program.operands:
        output = output + layer.bias  # raw sums leave the accelerator; the host adds the bias
    report = make_report(
        target, config, _macs(layer, x), words_in=done.words_in, words_out=done.words_out,
        seconds=time.perf_counter() - start, counters=done.counters,
    )  # fmt: skip
    shapes = {"a": list(x.shape), "b": list(layer.weight.shape), "c": [len(x), *spec.out_shape]}
    densities = {"a": float(np.mean(x != 0)), "b": float(np.mean(layer.weight != 0)), "c": 1.0}
    head = {"layer": spec.name, "pass": "forward", "shapes": shapes, "densities": densities}
    return output.reshape(len(x), *spec.out_shape), head | report, program


def run(
    config: Config,
    images: int = 20,
    target: str = "rtl",
    output_dir: str | os.PathLike[str] | None = None,
    step: Step = lambda _: None,
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
    from maskwork.sim_tb.device import GoldenDevice, open_device

    start = time.perf_counter()
    layers, test_indices, figures = load_network()
    if not 1 <= images <= len(test_indices):
        raise MaskworkValueError(f"--images must be from 1 to {len(test_indices)}, the held-back ones, not {images}")
    for layer in layers:
        lower_layer(config, layer, images)  # a configuration that cannot run it is refused before anything is built
    with tempfile.TemporaryDirectory(prefix="maskwork-") as folder:
        generated = generate(config, output_dir or folder)
    pixels, labels = load_images()
    chosen = test_indices[:images]
    reference = integer_forward(layers, pixels[chosen])
    step(f"building {target}")
    outputs: dict[str, NDArray[Any]] = {}
    reports: list[dict[str, Any]] = []
    programs: dict[str, str] = {}
    x: NDArray[Any] = pixels[chosen]
    golden = GoldenDevice(config)
    with open_device(target, config, **options) as device:
        for layer, expected in zip(layers, reference, strict=True):
            name = layer.spec.name
            step(name)
            x, report, program = run_layer(device, golden, layer, x.reshape(len(x), *layer.spec.in_shape), target)
            _compare(name, "network's integer reference", x, expected)
            outputs[name], programs[f"{name}.mwp"] = x, program.to_json()
            reports.append(report)
    step("done")
    if output_dir is not None:
        write_files(output_dir, programs)
        _write_outputs(Path(output_dir) / "outputs.npz", outputs)
    report = total_report(reports, time.perf_counter() - start)
    correct = int((x.argmax(axis=1) == labels[chosen]).sum())
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
