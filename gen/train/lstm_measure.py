"""Cycles of one training step of an LSTM with structured dropout, on the cycle model, beside bounds and publication.

The network is that of word-level language models: layers with as many inputs as units, sequences cut after some steps
(no gradient goes to the state that is carried over from the batch before, which is not 0). Its products only: gate
functions are the host's. Operands are 1 wherever a mask does not make them 0, so every product is as long as it can
be. All products of all steps are simulated, those with the same sizes and as many kept units once: vector masks say
which rows the host sends, so that such programs differ in data only.

    python -m maskwork.gen.train.lstm_measure --write docs/lstm.json
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from maskwork.gen import cli_common as common
from maskwork.gen.config import Config, preset
from maskwork.gen.errors import MaskworkValueError
from maskwork.gen.execute import Execution
from maskwork.gen.program import Program, bind
from maskwork.gen.report import REASONS, summary
from maskwork.gen.train.lstm import Dropout
from maskwork.gen.train.lstm_products import PASS_OF, LstmProducts
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rich.console import Console

CASES = ("650:0.5", "1500:0.65")
"""Units and dropout rates of the medium and the large model (Zaremba et al., "Recurrent Neural Network
Regularization", 2014)."""

VARIANTS = ("none", "non-recurrent", "recurrent")
"""What is dropped: nothing; units of each layer's input; those and units of the state."""

PUBLISHED = (1.23, 1.64)
"""Speed-ups of training that Sarma et al. report, on GPUs."""


def ideal(variant: str, rate: float) -> float:
    """Products with all units over products with those that dropout keeps, on average."""
    return {"none": 1.0, "non-recurrent": 2 / (2 - rate), "recurrent": 1 / (1 - rate)}[variant]


class CountedProducts(LstmProducts):
    """Counts cycles without results: operands are 1 or 0.

    Args:
        config: the accelerator.
        by_step: as for :class:`LstmProducts`.
        known: counters by what tells products apart, to be used and added to.
    """

    def __init__(
        self, config: Config, by_step: bool | None = None, known: dict[Hashable, Execution] | None = None
    ) -> None:
        from maskwork.sim_tb.cycle import CycleDevice

        super().__init__(CycleDevice(config), by_step)
        self.known = {} if known is None else known

    def _run(self, program: Program, operands: dict[str, NDArray[Any]], kept: tuple[int, int, int]) -> Execution:
        from maskwork.sim_tb.cycle import simulate

        key: Hashable = (kept, tuple((name, value.shape, _digest(value)) for name, value in operands.items()))
        if key not in self.known:
            bound = bind(program, operands, check_sums=False)
            counters = simulate(self.config, bound.words, bound.last)
            beat = self.config.stream_words
            outputs = {"c": np.zeros(program.outputs["c"]["shape"], dtype=np.int8)}
            self.known[key] = Execution(outputs, counters, counters["words_in"] * beat, counters["words_out"] * beat)
        return self.known[key]


def _digest(values: NDArray[Any]) -> str | None:
    """What tells an operand's zeros apart; None if it has none."""
    return None if values.all() else hashlib.sha256(np.packbits(values != 0).tobytes()).hexdigest()


class Step:
    """One training step of a network.

    Args:
        config: the accelerator.
        units: H, of every layer and of the input.
        rate: probability that a unit is dropped.
        batch: sequences.
        steps: time steps.
        layers: LSTM layers.
        seed: of the masks.
    """

    def __init__(self, config: Config, units: int, rate: float, batch: int, steps: int, layers: int, seed: int) -> None:
        self.config, self.units, self.batch, self.steps = config, units, batch, steps
        rng = np.random.default_rng([seed, units])
        self.dropouts = [Dropout.draw(rng, steps, units, units, rate, rate) for _ in range(layers)]
        self.known: dict[Hashable, Execution] = {}

    def run(self, variant: str, done: Callable[[str], None]) -> list[dict[str, Any]]:
        """Reports of all products, with their ``layer``."""
        reports = []
        for number, drawn in enumerate(self.dropouts):
            products = CountedProducts(self.config, known=self.known)
            self._layer(products, drawn.x if variant != "none" else None, drawn.h if variant == "recurrent" else None,
                        lambda text, n=number: done(f"dropout {variant}, layer {n + 1}: {text}"))  # fmt: skip
            reports += [{"layer": number + 1, **report} for report in products.reports]
        return reports

    def _layer(self, products: LstmProducts, mx: Any, mh: Any, done: Callable[[str], None]) -> None:
        x, dz, w = self._operands()
        keep = [None] * self.steps if mh is None else mh
        products.project(x, w, mx)
        done("state")
        for t in range(self.steps):
            products.recur(x[t], w, keep[t])
        done("state's gradient")
        for t in range(1, self.steps):
            products.recur_grad(dz[t], w, keep[t])
        done("input's gradient")
        products.project_grad(dz, w, mx)
        done("weight gradients")
        products.weight_grad(x, dz, mx)
        products.weight_grad(x, dz, mh)
        done("next")

    def ways(self) -> dict[str, dict[str, int]]:
        """Cycles of the first layer's inputs and their gradients, step by step and as one product."""
        x, dz, w = self._operands()
        found: dict[str, dict[str, int]] = {"project": {}, "project_grad": {}}
        for name, by_step in (("by_step", True), ("whole", False)):
            products = CountedProducts(self.config, by_step, self.known)
            products.project(x, w, self.dropouts[0].x)
            products.project_grad(dz, w, self.dropouts[0].x)
            for product, row in found.items():
                row[name] = sum(r["cycles"] for r in products.reports if r["product"] == product)
        return found

    def _operands(self) -> tuple[NDArray[np.int8], ...]:
        shapes = ((self.steps, self.batch, self.units), (self.steps, self.batch, 4 * self.units),
                  (self.units, 4 * self.units))  # fmt: skip
        x, dz, w = (np.ones(shape, dtype=np.int8) for shape in shapes)
        return x, dz, w


def _sums(reports: Iterable[dict[str, Any]], base: dict[str, Any] | None) -> dict[str, Any]:
    """Counts of some products together, and their speed-up over the same without dropout."""
    result = summary(list(reports))
    result["speedup_vs_none"] = base["cycles"] / result["cycles"] if base else 1.0
    return result


def measure(
    config: Config, units: int, rate: float, batch: int, steps: int, layers: int, seed: int,
    done: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """All variants of one network.

    Args:
        config: the accelerator; it needs counters.
        units: as for :class:`Step`, and so on.
        rate: the same.
        batch: the same.
        steps: the same.
        layers: the same.
        seed: the same.
        done: told what comes next.

    Returns:
        ``units``, ``rate``, ``kept`` (share of the units drawn, of inputs and states), ``ways`` (cycles of the two ways
        to run the first layer's inputs) and ``variants``: docs/formats.md's keys of a report for the whole, for each
        pass (``passes``) and product (``products``), with ``speedup_vs_none`` and, of the whole, ``ideal``.

    Raises:
        MaskworkValueError: for sizes that are none, or a configuration without counters.
        ProgramError: if the configuration cannot run a product.
    """
    if not config.counters:
        raise MaskworkValueError("counters must be true to measure cycles, not false")
    step = Step(config, units, rate, batch, steps, layers, seed)
    base: dict[Any, dict[str, Any]] = {}
    variants = []
    for variant in VARIANTS:
        reports = step.run(variant, done)
        parts: dict[str, dict[str, dict[str, Any]]] = {"passes": {}, "products": {}}
        for kind, key, names in (("passes", "pass", dict.fromkeys(PASS_OF.values())), ("products", "product", PASS_OF)):
            for name in names:
                own = [report for report in reports if report[key] == name]
                if own:  # one time step has no gradient of the state
                    parts[kind][name] = _sums(own, base.get((kind, name)))
                    if kind == "products":
                        parts[kind][name]["by_step"] = all(report["by_step"] for report in own)
        whole = _sums(reports, base.get("whole"))
        if variant == "none":
            base = {(kind, name): row for kind, rows in parts.items() for name, row in rows.items()} | {"whole": whole}
        variants.append({"dropout": variant, "ideal": ideal(variant, rate), **whole, **parts})
    kept = [float(np.mean([getattr(drawn, name) for drawn in step.dropouts])) for name in ("x", "h")]
    ways = step.ways()
    done(f"{units} units done")
    return {"units": units, "rate": rate, "kept": dict(zip(("x", "h"), kept, strict=True)), "ways": ways,
            "variants": variants}  # fmt: skip


def _cases(texts: Iterable[str]) -> list[tuple[int, float]]:
    cases = []
    for text in texts:
        units, _, rate = text.partition(":")
        try:
            case = int(units), float(rate)
        except ValueError:
            case = 0, 0.0
        if case[0] < 1 or not 0 < case[1] < 1:
            raise MaskworkValueError(f"--units {text}: UNITS:RATE is expected, the rate between 0 and 1: 650:0.5")
        cases.append(case)
    return cases


def _show(result: dict[str, Any], console: Console) -> None:
    low, high = PUBLISHED
    console.print(
        f"One training step, {result['layers']} LSTM layers, batch {result['batch']}, {result['steps']} time steps, "
        f"{result['pes']} PEs ({result['config']['name']}); published: {low} to {high} x"
    )
    for case in result["cases"]:
        table = common.new_table(
            f"{case['units']} units, p = {case['rate']:g}", "M cycles", "over a perfect dense array",
            "over no dropout", "bound", "utilisation", "M words in", "most lost to",
        )  # fmt: skip
        for variant in case["variants"]:
            rows = [(f"dropout: {variant['dropout']}", variant, f"{variant['bound']:.2f} ({variant['ideal']:.2f})")]
            rows += [(f"  {name}", row, f"{row['bound']:.2f}") for name, row in variant["passes"].items()]
            for name, row, bound in rows:
                lost = max(REASONS[1:], key=row["pe_cycles"].__getitem__)
                share = row["pe_cycles"][lost] / (row["cycles"] * result["pes"])
                table.add_row(name, f"{row['cycles'] / 1e6:.2f}", f"{row['speedup_vs_dense']:.2f}",
                              f"{row['speedup_vs_none']:.2f}", bound, f"{row['utilization']:.3f}",
                              f"{row['words_in'] / 1e6:.1f}", f"{lost} {100 * share:.1f} %")  # fmt: skip
        console.print(table)
        taken = case["variants"][-1]["products"]
        for name, ways in case["ways"].items():
            console.print(f"{name} with masks, first layer: {ways['by_step'] / 1e6:.2f} M cycles step by step, "
                          f"{ways['whole'] / 1e6:.2f} M as one product; taken: "
                          f"{'step by step' if taken[name]['by_step'] else 'one product'}")  # fmt: skip
    console.print("Bound: products in all over products of kept units, as drawn (on average, over all time steps)")


@click.command(epilog=common.examples(
    "python -m maskwork.gen.train.lstm_measure --write docs/lstm.json",
    "python -m maskwork.gen.train.lstm_measure --units 200:0.5 --batch 20 --set stream_words=1",
))  # fmt: skip
@common.config_options(lambda: preset("sim-64"))
@click.option("--units", metavar="UNITS:RATE", multiple=True, default=CASES, show_default=True,
              help="Units of each layer, and the dropout rate; repeatable.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1, 1024), default=20, show_default=True, metavar="N", help="Sequences.")
@click.option("--steps", type=click.IntRange(1, 1024), default=35, show_default=True, metavar="T", help="Time steps.")
@click.option("--layers", type=click.IntRange(1, 16), default=2, show_default=True, metavar="N", help="LSTM layers.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, metavar="N", help="Seed of the masks.")
@click.option("--write", metavar="FILE", help="Write the result as JSON as well.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    config: Config, units: tuple[str, ...], batch: int, steps: int, layers: int, seed: int, write: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Cycles of one training step of an LSTM with and without structured dropout, on the cycle model."""
    cases = _cases(units)
    with common.OutputFiles() as outputs:
        path = outputs.reserve(write, "--write") if write else None
        with common.progress("inputs", len(cases) * (len(VARIANTS) * layers * 5 + 1)) as done:
            found = [measure(config, *case, batch, steps, layers, seed, done) for case in cases]
        result = {
            "format": "maskwork-train-lstm", "version": 1, "config": config.to_dict(), "pes": config.pes,
            "batch": batch, "steps": steps, "layers": layers, "seed": seed, "published": list(PUBLISHED),
            "simulated": "every product of every time step; those of equal sizes and numbers of kept units once",
            "cases": found,
        }  # fmt: skip
        if path:
            common.write_json(path, result)
            outputs.commit()
    if as_json:
        common.print_json(result)
    else:
        _show(result, common.console())


if __name__ == "__main__":
    sys.exit(common.run_command(command))
