"""Command ``maskwork train-demo``."""

from __future__ import annotations

import click
from maskwork.gen import cli_common as common
from maskwork.gen.config import Config, preset


def _default() -> Config:
    """Operands as wide as --bits asks for, and a mask unit where there is a preset with one."""
    bits = click.get_current_context().params.get("bits")
    return preset("small-int16" if bits == 16 else "small-train")


@click.command(
    "train-demo",
    short_help="Train a network with integer products and pruned gradients.",
    epilog=common.examples(
        "maskwork train-demo",
        "maskwork train-demo --bits 16 --epochs 5 --replay none",
        "maskwork train-demo --preset sim-64 --prune 0 --report R.json --html R.html",
    ),
)
@common.config_options(_default)
@click.option("--bits", metavar="N", type=int, default=8, show_default=True,
              help="Of operands, 8 or 16; without CONFIG on preset small-train or small-int16.")  # fmt: skip
@click.option("--epochs", metavar="N", type=int, default=10, show_default=True, help="Passes over the images.")
@click.option("--seed", metavar="N", type=int, default=1, show_default=True,
              help="Of weights, order of images, rounding and pruning.")  # fmt: skip
@click.option("--prune", "sparsity", metavar="P", type=float, default=0.9, show_default=True,
              help="Share of normally distributed gradients below the threshold; 0 prunes nothing.")  # fmt: skip
@click.option("--rounding", metavar="NAME", default="stochastic", show_default=True,
              help="Of gradients: stochastic or nearest.")  # fmt: skip
@click.option("--images", metavar="N", type=int, help="Train with N images only.")
@click.option("--target", metavar="T", default="cycle", show_default=True,
              help="Where the last step of each epoch runs: cycle, which predicts its cycles, or golden.")  # fmt: skip
@click.option("--replay", metavar="T", default="rtl", show_default=True,
              help="Where one more step runs at the end, every product compared: rtl (Verilator) or none.")  # fmt: skip
@click.option("--report", metavar="R.json", help="Write the report.")
@click.option("--html", metavar="R.html", help="Write the report as a page with plots.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def train_demo(
    config: Config, bits: int, epochs: int, seed: int, sparsity: float, rounding: str, images: int | None, target: str,
    replay: str, report: str | None, html: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Train a CNN for handwritten digits from random weights: integer products, gradients pruned.

    Forward, input gradient and weight gradient are the accelerator's products; loss, float32 weights and Adam are the
    host's. Gradients are pruned as in SparseTrain: expected values stay. Products that a zero saves are counted, and
    on target cycle the cycles of every layer and pass as training goes on.
    """
    from maskwork.gen.train import demo

    options = demo.Options(bits, epochs, seed, sparsity, rounding, images)
    with common.OutputFiles() as files:
        outputs = (("--report", report), ("--html", html))
        paths = {option: files.reserve(path, option) for option, path in outputs if path is not None}
        with common.progress("training", demo.steps(options)) as step:
            result = demo.run(config, options, target, replay, step)
        if "--report" in paths:
            common.write_json(paths["--report"], result)
        if "--html" in paths:
            from maskwork.gen.train.demo_html import page

            paths["--html"].write_text(page(result), encoding="utf-8")
        files.commit()
    if as_json:
        common.print_json(result)
    else:
        demo.show(result, common.console())
