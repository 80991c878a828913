"""The commands about networks: compile and run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from maskwork.gen import cli_common as common
from maskwork.gen.config import Config
from maskwork.gen.errors import UNREADABLE, MaskworkError, MaskworkTypeError, MaskworkValueError

if TYPE_CHECKING:
    from maskwork.gen.network.compile import Compiled
    from numpy.typing import NDArray


def load_tensors(path: str) -> dict[str, NDArray[Any]]:
    """Arrays of an ``.npz`` file, which are never unpickled.

    Raises:
        MaskworkValueError: if the file is missing, damaged or no ``.npz`` file.
        MaskworkTypeError: for an array of objects.
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise MaskworkValueError(f"{path}: not a .npz file, which is expected")
            return {name: file[name] for name in file.files}
    except MaskworkError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise MaskworkValueError(f"{path}: cannot be read ({reason}); a .npz file is expected") from None
    except UNREADABLE as error:
        if "Object arrays" in str(error):
            raise MaskworkTypeError(f"{path}: holds Python objects; arrays of numbers are expected") from None
        raise MaskworkValueError(f"{path}: a truncated or broken .npz file; a whole one is expected") from None


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes by input name, from values of --shape.

    Raises:
        MaskworkValueError: for another form.
    """
    shapes = {}
    for text in texts:
        name, equals, sizes = text.rpartition("=")
        try:
            shapes[name] = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            equals = ""
        if not equals or not name or min(shapes[name]) < 1:
            raise MaskworkValueError(f"--shape {text}: NAME=SIZE,SIZE,... is expected, such as --shape x=1,3,224,224")
    return shapes


def _network_options(function: Any) -> Any:
    """Decorator: options that say how a model is read."""
    function = click.option("--strict", is_flag=True,
                            help="Refuse a model of which the host has to compute more than quantisation and "
                            "shapes.")(function)  # fmt: skip
    return click.option("--shape", "shapes", metavar="NAME=SIZES", multiple=True,
                        help="Shape of an input that the file leaves open; repeatable.")(function)  # fmt: skip


def _print_placement(compiled: Compiled) -> None:
    host = [entry for entry in compiled.placement if entry["where"] == "host"]
    total = len(compiled.placement)
    click.echo(
        f"{compiled.graph.name}: {total - len(host)} of {total} steps on the accelerator, {len(host)} on the host"
    )
    for entry in host:
        click.echo(f"  host: {entry['step']} ({entry['operation']}): {entry['reason']}")


def _print_layers(report: dict[str, Any]) -> None:
    table = common.new_table(
        "layer", "operation", "cycles", "utilisation", "x dense", "of bound", "words in", "words out"
    )
    for layer in report["layers"]:
        busy = "cycles" in layer and layer["macs_dense"]
        cells = [layer["operation"], str(layer.get("cycles", "")),
                 f"{layer['utilization']:.3f}" if busy else "", f"{layer['speedup_vs_dense']:.2f}" if busy else "",
                 f"{layer['speedup_vs_dense'] / layer['bound']:.2f}" if busy and "bound" in layer else "",
                 str(layer["words_in"]), str(layer["words_out"])]  # fmt: skip
        table.add_row(layer["layer"], *cells)
    table.add_section()
    ratios = (
        [f"{report['utilization']:.3f}", f"{report['speedup_vs_dense']:.2f}"] if "utilization" in report else ["", ""]
    )
    words = str(report["words_in"]), str(report["words_out"])
    table.add_row("total", "", str(report.get("cycles", "")), *ratios, "", *words)
    common.console().print(table)


@click.command(
    "compile",
    short_help="Compile an ONNX model.",
    epilog=common.examples(
        "maskwork compile MODEL.onnx --preset ulx3s-85f -o build",
        "maskwork compile MODEL.onnx --strict --input X.npz -o build --json",
    ),
)
@common.config_options()
@click.argument("model", metavar="MODEL.onnx")
@_network_options
@click.option("--input", "input_file", metavar="X.npz",
              help="Inputs by name that cycles are predicted for; without it, random ones.")  # fmt: skip
@click.option("--seed", type=int, default=1, show_default=True, help="Of the random inputs.")
@click.option("-o", "--output", metavar="DIR", required=True, help="Directory, made if missing.")
@click.option("--json", "as_json", is_flag=True, help="Print the prediction as JSON.")
def compile_command(
    config: Config, model: str, strict: bool, shapes: tuple[str, ...], input_file: str | None, seed: int, output: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Compile a quantised ONNX model: programs, listing, memory map and predicted cycles.

    Writes PROGRAMS (NN_STEP.mwp), weights.npz, listing.txt, memory.json and report.json.
    """
    from maskwork.gen.network.compile import compile_model
    from maskwork.gen.network.output import predict, random_inputs, write

    with common.progress(f"compiling {Path(model).name}", 2) as step:
        compiled = compile_model(model, config, strict=strict, shapes=parse_shapes(shapes))
        step("predicting cycles")
        inputs = load_tensors(input_file) if input_file is not None else random_inputs(compiled, seed)
        report = predict(compiled, inputs)
    paths = write(compiled, report, output)
    if as_json:
        common.print_json(report)
        return
    _print_placement(compiled)
    if report.get("layers"):
        _print_layers(report)
    what = f"the inputs of {input_file}" if input_file else f"random inputs (seed {seed})"
    click.echo(f"cycles are the netlist's for {what}; compiled in {report['compile_seconds']:.1f} s")
    click.echo(f"{output}: {len(paths)} files")


@click.command(
    "run",
    short_help="Compile an ONNX model and run it.",
    epilog=common.examples(
        "maskwork run MODEL.onnx --input X.npz --target cycle -o Y.npz --report R.json",
        "maskwork run MODEL.onnx --input X.npz --target golden --check",
    ),
)
@common.config_options()
@common.target_options
@click.argument("model", metavar="MODEL.onnx")
@_network_options
@click.option("--input", "input_file", metavar="X.npz", required=True, help="Inputs by their ONNX names.")
@click.option("-o", "--output", metavar="Y.npz", help="Write the outputs by their ONNX names.")
@click.option("--report", metavar="R.json", help="Write the report.")
@click.option("--check", is_flag=True,
              help="Compare every step with ONNX's reference implementation, on the reference's inputs.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def run_command(
    config: Config, target: str, simulator: str | None, model: str, strict: bool, shapes: tuple[str, ...],
    input_file: str, output: str | None, report: str | None, check: bool, as_json: bool,
) -> None:  # fmt: skip
    """Compile a quantised ONNX model and run it on a target: the same numbers on every one."""
    import numpy as np
    from maskwork.gen.network.compile import compile_model
    from maskwork.gen.network.output import check_deviations

    options = common.device_options(target, simulator)
    with common.OutputFiles() as files:
        paths = {option: files.reserve(path, option) for option, path in (("-o", output), ("--report", report))
                 if path is not None}  # fmt: skip
        inputs = load_tensors(input_file)
        with common.progress(f"compiling {Path(model).name}", 3 if check else 2) as step:
            compiled = compile_model(model, config, strict=strict, shapes=parse_shapes(shapes))
            step(f"running on {target}")
            done = compiled.run(inputs, target, **{k: v for k, v in options.items() if v is not None})
            result = {**done.report, "placement": compiled.placement}
            if check:
                step("comparing with ONNX's reference")
                result["deviations"] = check_deviations(compiled, inputs, done)
        if "-o" in paths:
            with open(paths["-o"], "wb") as file:
                np.savez_compressed(file, **done.outputs)  # type: ignore[arg-type]
        if "--report" in paths:
            common.write_json(paths["--report"], result)
        files.commit()
    if as_json:
        common.print_json(result)
        return
    _print_placement(compiled)
    if done.report.get("layers"):
        _print_layers(done.report)
    if check:
        _print_deviations(result["deviations"])
    for name, value in done.outputs.items():
        click.echo(f"{name}: {value.dtype} {list(value.shape)}" + (f", in {output}" if output else ""))


def _print_deviations(found: dict[str, Any]) -> None:
    table = common.new_table("step", "operation", "elements", "different", "of them ties", "largest")
    for entry in found["steps"]:
        table.add_row(entry["step"], entry["operation"], *(f"{entry[key]:g}" for key in
                      ("elements", "different", "ties", "largest")))  # fmt: skip
    common.console().print(table)
    for name, entry in found["network"].items():
        click.echo(
            f"{name}: {entry['different']} of {entry['elements']} elements differ, by at most {entry['largest']:g}"
        )
