"""The command quantise: a float ONNX model to a pruned and quantised one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from maskwork.gen import cli_common as common
from maskwork.gen.cli_network import load_tensors, parse_shapes
from maskwork.gen.errors import MaskworkValueError

if TYPE_CHECKING:
    from maskwork.gen.network.layers import Quantisation


def _n_of_m(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found:
        raise MaskworkValueError(f"--n-of-m {text}: N:M is expected, such as --n-of-m 2:4")
    return int(found[1]), int(found[2])


@click.command(
    "quantise",
    short_help="Prune and quantise a float ONNX model.",
    epilog=common.examples(
        "maskwork quantise FLOAT.onnx --samples X.npz -o MODEL.onnx",
        "maskwork quantise FLOAT.onnx --samples X.npz --density 0.3 --skip conv1 -o MODEL.onnx",
        "maskwork quantise FLOAT.onnx --samples X.npz --n-of-m 2:4 --shape x=1,3,32,32 -o MODEL.onnx --json",
    ),
)
@click.argument("model", metavar="FLOAT.onnx")
@click.option("--samples", metavar="X.npz", required=True,
              help="Inputs by their ONNX names, for calibration: samples along the first axis, or an axis of their own "
              "in front.")  # fmt: skip
@click.option("-o", "--output", metavar="MODEL.onnx", required=True, help="Write the quantised model.")
@click.option("--density", metavar="D", type=float, help="Keep this part of each layer's weights, the largest.")
@click.option("--n-of-m", metavar="N:M", help="Keep the N largest of every M weights along the input channels.")
@click.option("--per-tensor", is_flag=True, help="One scale for all weights of a layer, not one an output channel.")
@click.option("--skip", metavar="NODE", multiple=True, help="Do not prune this node's weights; repeatable.")
@click.option("--activations", metavar="TYPE", default="uint8", show_default=True, help="uint8 or int8.")
@click.option("--shape", "shapes", metavar="NAME=SIZES", multiple=True,
              help="Shape of an input that the file leaves open; repeatable.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the layers as JSON.")
def quantise_command(
    model: str, samples: str, output: str, density: float | None, n_of_m: str | None, per_tensor: bool,
    skip: tuple[str, ...], activations: str, shapes: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Prune and quantise a float ONNX model for `maskwork compile` and `maskwork run`.

    Weights become int8 with a scale for each output channel; the ranges of activations are those on the samples.
    Prints each layer's density, and how far it is from the float model on the samples. Needs the extra `onnx`.
    """
    from maskwork.gen.network.quantise import quantise_layers

    with common.OutputFiles() as files:
        path = files.reserve(output)
        pattern, sizes = _n_of_m(n_of_m), parse_shapes(shapes)
        inputs = load_tensors(samples)
        with common.progress(f"quantising {Path(model).name}", 2) as step:
            done = quantise_layers(
                model, inputs, density=density, n_of_m=pattern, per_channel=not per_tensor, skip=skip, shapes=sizes,
                activations=activations,
            )  # fmt: skip
            step("comparing with the float model")
            result = _result(done)
        path.write_bytes(done.model.SerializeToString())
        files.commit()
    if as_json:
        common.print_json(result)
        return
    _print(result)
    click.echo(f"{output}: quantised by {result['samples']} samples, {result['density']:.3f} of the weights nonzero")


def _result(done: Quantisation) -> dict[str, Any]:
    found = done.deviations()
    layers = [{"layer": layer.name, "operation": layer.operation, "weights": layer.weights, "kept": layer.kept,
               "nonzero": layer.nonzero, "density": layer.density, "quantised": layer.quantised,
               **found.get(layer.name, {})} for layer in done.layers]  # fmt: skip
    weights = sum(layer.weights for layer in done.layers)
    density = sum(layer.nonzero for layer in done.layers) / weights if weights else 1.0
    outputs = {value.name: found[value.name] for value in done.model.graph.output}
    return {"samples": len(done.feeds), "density": density, "layers": layers, "outputs": outputs}


def _print(result: dict[str, Any]) -> None:
    table = common.new_table("layer", "operation", "weights", "nonzero", "density", "largest", "deviation",
                             "by pruning", "by int8")  # fmt: skip
    keys = ("largest", "deviation", "pruning", "quantising")
    for layer in result["layers"]:
        cells = [f"{layer[key]:.4g}" if key in layer else "" for key in keys]
        table.add_row(layer["layer"], layer["operation"], str(layer["weights"]), str(layer["nonzero"]),
                      f"{layer['density']:.3f}", *cells)  # fmt: skip
    table.add_section()
    for name, entry in result["outputs"].items():
        table.add_row(name, "output", "", "", "", *(f"{entry[key]:.4g}" for key in keys))
    common.console().print(table)
    for layer in result["layers"]:
        if not layer["quantised"]:
            click.echo(f"{layer['layer']} ({layer['operation']}) stays float: one of its operands is not quantised")
    click.echo("deviation: the largest difference from the float model on the samples; largest: of its own values.")
