"""Tables of docs/study.md that take seconds to make again."""

import re
from pathlib import Path

import maskwork as mw
import pytest
from maskwork.gen.workload import Layer

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.slow  # 22 products on the cycle model
def test_groups_depthwise_and_vectors():
    """Cycles, utilisation, speed-up and bound of every line, as `maskwork bench docs/kinds.csv` gives them."""
    text = (DOCS / "study.md").read_text(encoding="utf-8").partition("## Groups, depthwise")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| (\w+) \| (forward|input_grad|weight_grad) \| ([\d,.| ]+) \| [a-z]", text, re.MULTILINE)
    found = [
        (e["layer"], e["pass"],
         f"{e['cycles']:,} | {e['utilization']:.3f} | {e['speedup_vs_dense']:.2f} | {e['bound']:.2f}")
        for e in mw.bench(DOCS / "kinds.csv", "sim-64")["layers"]
    ]  # fmt: skip
    assert found == lines and len(lines) == 22


@pytest.mark.slow  # a whole layer
def test_conv10():
    """The line of 64 PEs of "More and fewer PEs": a change that costs cycles shows here."""
    layer = Layer(
        network="vgg16", layer="conv10", batch=1, in_channels=512, out_channels=512, in_height=14, in_width=14,
        kernel_height=3, kernel_width=3, padding=1, density_input=0.149, density_output_grad=0.186,
        density_input_mask=0.149,
    )  # fmt: skip
    report = mw.bench([layer], "sim-64", passes=["forward"], sample=0)
    text = (DOCS / "study.md").read_text(encoding="utf-8")
    assert f"| 64 |  | {report['cycles']:,} | {report['utilization']:.3f} | " in text
