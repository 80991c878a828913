"""The tutorial: every block runs, in order, and its text quotes the figures that the blocks compute."""

import importlib.util
import re
import warnings

import pytest

from .test_docs import DOCS, blocks, run_page

PAGE = DOCS / "tutorial.md"
SECOND = "## A product on the golden model\n"
TORCH = "needs torch"

_FIGURE = re.compile(r"(?<![\w.])\d[\d,.]*\d%?(?!\w)|(?<![\w.])\d%?(?![\w.])")
_NO_FIGURE = ("8-bit", "version 2.9")


def halves():
    """The page's two parts: a network, and single products."""
    first, second = PAGE.read_text(encoding="utf-8").split(SECOND)
    return first, second


def run_part(text, folder, capsys, monkeypatch):
    page = folder / "part.md"
    page.write_text(text, encoding="utf-8")
    have_torch = importlib.util.find_spec("torch") is not None
    some = [block for block in blocks(page) if have_torch or block.note != TORCH]
    with warnings.catch_warnings():
        if have_torch:  # its exporters warn of their own ends
            warnings.simplefilter("ignore")
        return run_page(some, folder, capsys, monkeypatch)


def prose(text):
    """The part about a network without blocks, code, headings and links' targets, in one line."""
    text = re.sub(r"^```.*?^```$", "", text.split("## From a model to cycles\n")[1], flags=re.MULTILINE | re.DOTALL)
    return " ".join(re.sub(r"`[^`]*`|\]\([^)]*\)|^#.*$", "", text, flags=re.MULTILINE).split())


def quoted(names):
    """What the text says, made of what the blocks computed."""
    report, count, whole = names["report"], len(names["test_y"]), names["float_right"]
    multiplying = report["pe_cycles"]["effectual"] / (report["cycles"] * report["pes"])
    fewer = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}[whole - names["trained_right"]]
    gain = names["dense_cycles"] / names["trained_cycles"]
    assert whole == names["dense_right"] == names["half_right"]
    assert report["target"] == "rtl" and report["pes"] == 2 and report["config"]["name"] == "tiny"
    return (
        f"As many as the float model's {whole}:",
        f"only {report['macs_effectual'] / report['macs_dense']:.1%} of the products are effectual",
        f"{multiplying:.1%} of the cycles multiply",
        f"has {names['quarter_right']} of {count} right at a quarter of its weights",
        f"trained on, {names['trained_right']}, {fewer} fewer than the float model",
        f"take {names['trained_cycles']:,} cycles instead of the {names['dense_cycles']:,} of all weights",
        f"{gain:.2f} times as fast",
    )


@pytest.mark.slow
def test_network(tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnxruntime")
    first, _ = halves()
    names = run_part(first, tmp_path, capsys, monkeypatch)
    text = prose(first)
    for claim in quoted(names):
        assert claim in text, claim
        text = text.replace(claim, "")
    for words in _NO_FIGURE:
        text = text.replace(words, "")
    assert not _FIGURE.findall(text)


@pytest.mark.slow
def test_products(tmp_path, capsys, monkeypatch):
    names = run_part(halves()[1], tmp_path, capsys, monkeypatch)
    assert names["report"]["target"] == "rtl"


def test_what_needs_torch_is_marked():
    marked = [block for block in blocks(PAGE) if block.note == TORCH]
    assert len(marked) == 1 and "torch.onnx.export(" in marked[0].text
    assert all("torch" not in block.text for block in blocks(PAGE) if block.note != TORCH)
    compile(marked[0].text, "block", "exec")
