"""The ONNX project's own tests of single operators, run through the compiler: which pass, which are refused and why."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from maskwork.gen.errors import MaskworkError
from maskwork.gen.network.compile import compile_model
from maskwork.gen.network.graph import MIN_OPSET, SUPPORTED
from onnx import numpy_helper

CONSTANT = {
    "QLinearConv": range(1, 9), "QLinearMatMul": range(1, 8), "ConvInteger": range(1, 4), "MatMulInteger": range(1, 4),
    "QuantizeLinear": range(1, 3), "DequantizeLinear": range(1, 3), "DynamicQuantizeLinear": (),
}  # fmt: skip
"""Inputs that these tests feed at run time and that networks have as constants: they are compiled in."""


@dataclass(frozen=True)
class Verdict:
    """What became of a test.

    Attributes:
        name: of the test.
        operator: its node.
        result: "accelerator" or "host" (passed there), "refused" or "wrong".
        why: of a refusal, or how far off.
    """

    name: str
    operator: str
    result: str
    why: str = ""


def cases() -> Iterator[Any]:
    """ONNX's tests of one node each, of operators that the compiler knows."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: Any = collect_testcases()
    for case in sorted(found, key=lambda case: case.name):
        nodes = case.model.graph.node
        if len(nodes) == 1 and nodes[0].op_type in SUPPORTED and nodes[0].domain in ("", "ai.onnx"):
            yield case


def judge(case: Any, config: str = "small") -> Verdict:
    """Compile and run a test on the golden model.

    Args:
        case: one of :func:`cases`.
        config: a preset.
    """
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    operator = model.graph.node[0].op_type
    if model.opset_import[0].version < MIN_OPSET and operator in CONSTANT:
        model.opset_import[0].version = MIN_OPSET  # these have not changed since
    if len(case.data_sets) != 1:
        return Verdict(case.name, operator, "refused", "it has no data, or several sets")
    inputs, expected = case.data_sets[0]
    values = [numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for v in inputs]
    if not all(isinstance(value, np.ndarray | np.generic) for value in values):
        return Verdict(case.name, operator, "refused", "an input is no tensor")
    feed = dict(zip((value.name for value in model.graph.input), map(np.asarray, values), strict=False))
    constant = [model.graph.input[n] for n in CONSTANT.get(operator, ()) if n < len(model.graph.input)]
    for value in constant:
        model.graph.initializer.append(numpy_helper.from_array(feed.pop(value.name), value.name))
        model.graph.input.remove(value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = compile_model(model, config)
            outputs = list(compiled.run(feed).outputs.values())
    except MaskworkError as error:
        return Verdict(case.name, operator, "refused", " ".join(str(error).split()))
    where = "accelerator" if any(step.where == "accelerator" for step in compiled.steps) else "host"
    for output, wanted in zip(outputs, expected, strict=True):
        wanted = numpy_helper.to_array(wanted) if isinstance(wanted, onnx.TensorProto) else np.asarray(wanted)
        if output.shape != wanted.shape or output.dtype != wanted.dtype:
            return Verdict(case.name, operator, "wrong", f"{output.dtype} {output.shape} instead of {wanted.dtype}")
        close = np.array_equal(output, wanted)
        if wanted.dtype.kind not in "iubUSO":  # floats of any kind
            close = np.allclose(output.astype(float), wanted.astype(float), rtol=1e-3, atol=1e-7, equal_nan=True)
        if not close:
            return Verdict(case.name, operator, "wrong", "other values")
    return Verdict(case.name, operator, where)


def table(verdicts: Sequence[Verdict]) -> str:
    """A Markdown page: counts by operator, and every test that is not passed with its reason."""
    order = ("accelerator", "host", "refused", "wrong")
    lines = ["| operator | accelerator | host | refused | wrong |", "|---|---:|---:|---:|---:|"]
    for operator in sorted({verdict.operator for verdict in verdicts}):
        own = [verdict.result for verdict in verdicts if verdict.operator == operator]
        lines.append(f"| {operator} | " + " | ".join(str(own.count(result) or "") for result in order) + " |")
    own = [verdict.result for verdict in verdicts]
    lines.append("| all | " + " | ".join(str(own.count(result)) for result in order) + " |")
    lines += ["", "Passed on the accelerator:", ""]
    lines.append(", ".join(f"`{v.name}`" for v in verdicts if v.result == "accelerator"))
    lines += ["", "Not passed:", "", "| test | result | reason |", "|---|---|---|"]
    lines += [f"| `{v.name}` | {v.result} | {v.why.replace('|', ' ')[:300]} |" for v in verdicts
              if v.result in ("refused", "wrong")]  # fmt: skip
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them all and print, or write, the page's table."""
    parser = argparse.ArgumentParser(prog="python -m maskwork.gen.network.node_tests", description=__doc__)
    parser.add_argument("--write", metavar="FILE.md", help="put the table into a page, after the line <!-- table -->")
    options = parser.parse_args(arguments)
    text = table([judge(case) for case in cases()])
    if options.write:
        page = Path(options.write)
        head = page.read_text(encoding="utf-8").split("<!-- table -->")[0]
        page.write_text(f"{head}<!-- table -->\n\n{text}", encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
