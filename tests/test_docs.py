"""The documentation: its code runs, its commands exist, its tables are those of the code."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from maskwork.gen import isa_docs
from maskwork.gen.cli import cli
from maskwork.gen.config import Config, preset, preset_doc, presets
from maskwork.gen.errors import ConfigError
from maskwork.gen.isa import COUNTERS
from maskwork.gen.pack import row_words
from maskwork.gen.report import REASONS
from maskwork.sim_tb.golden import Interpreter

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
ids = [page.name for page in PAGES]

_BLOCK = re.compile(
    r"^(?:<!-- (?P<note>[\w :]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass
class Block:
    """A fenced block, with the comment right before it."""

    language: str
    text: str
    note: str


def blocks(page):
    return [Block(m["language"], m["text"], m["note"] or "") for m in _BLOCK.finditer(page.read_text(encoding="utf-8"))]


def environment(folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "PATH": path, "COLUMNS": "100"}


def run_page(some, folder, capsys, monkeypatch):
    """Run bash and python blocks in order; a block without a language is what the last one printed ("..." skips)."""
    monkeypatch.chdir(folder)
    names = {}
    printed = ""
    for block in some:
        if block.note == "not run":
            continue
        if block.language == "python":
            exec(compile(block.text, "block", "exec"), names)
            printed = capsys.readouterr().out
        elif block.language == "bash":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.text], cwd=folder, env=environment(folder), text=True,
                capture_output=True, check=False, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, f"{block.text}\n{done.stderr}"
            printed = done.stdout
        elif not block.language:
            head, gap, tail = block.text.partition("...\n")
            if gap:
                assert printed.startswith(head) and printed.endswith(tail)
            else:
                assert printed == block.text
    return names


# ---------------------------------------------------------------------- code that runs


@pytest.mark.slow
def test_readme_examples(tmp_path, capsys, monkeypatch):
    some = [block for block in blocks(ROOT / "README.md") if block.note == "run"]
    assert [block.language for block in some] == ["bash", "bash", "python"]
    run_page(some, tmp_path, capsys, monkeypatch)


@pytest.mark.parametrize("name", ["numerics", "cycle", "generators", "training", "boards"])
def test_examples(tmp_path, capsys, monkeypatch, name):
    some = [block for block in blocks(DOCS / f"{name}.md") if block.note == f"test: {name}"]
    assert some
    run_page(some, tmp_path, capsys, monkeypatch)


def test_worked_example_of_the_formats():
    config = preset("tiny")
    texts = {block.note: block.text for block in blocks(DOCS / "formats.md")}

    def packets(text):
        return [[config.hash if w == "CONFIG" else int(w, 16) for w in line.split()] for line in text.splitlines()]

    commands = packets(texts["test: commands"])
    words = np.array([word for packet in commands for word in packet], dtype=np.uint32)
    replies = Interpreter(config).execute(words, [int(n) for n in np.cumsum([len(packet) for packet in commands])])
    assert [reply.tolist() for reply in replies] == packets(texts["test: replies"])
    assert commands[3][2] >> 16 == row_words(config, 5, 1)
    product = np.array([[0, -2, 0, 7, 100]]) @ [[1, 0, 0], [0, 3, 0], [0, 0, 0], [-1, 0, 2], [0, 0, -256]]
    assert product.astype(np.uint32).tolist()[0] == packets(texts["test: replies"])[0][3:]


# ---------------------------------------------------------------------- commands


def test_two_commands_of_one_line():
    lines = {block.note: block.text.splitlines() for block in blocks(ROOT / "README.md")}
    (main_job,), (tests,) = lines["main job"], lines["tests"]
    assert main_job.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert main_job.endswith(" && .venv/bin/maskwork demo")
    assert tests.startswith("python3 -m venv .venv && .venv/bin/pip install ") and "-m pytest" in tests


def test_ci_runs_the_test_command_of_the_readme():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert "<!-- tests -->" in text and "pytest" not in text
    awk = re.search(r"awk '(.*?)' README\.md", text, re.DOTALL)
    assert awk
    found = subprocess.run(["awk", awk[1], "README.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert found == next(block.text for block in blocks(ROOT / "README.md") if block.note == "tests")


def commands_of(page):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = [line for block in blocks(page) if block.language == "bash" for line in block.text.splitlines()]
    indented = re.findall(r"^    (maskwork .*)$", text, re.MULTILINE)
    inline = re.findall(r"`(maskwork [^`\n]*)`", text)
    for line in [*fenced, *indented, *inline]:
        for part in line.split("&&"):
            words = shlex.split(part)
            if words and words[0].split("/")[-1] == "maskwork" and len(words) > 1:
                yield words[1:]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_exist(page):
    for words in commands_of(page):
        assert words[0] in cli.commands, f"maskwork {' '.join(words)}"
        known = {option for parameter in cli.commands[words[0]].params for option in parameter.opts} | {"--help"}
        for word in words[1:]:
            assert not word.startswith("-") or word in known, f"maskwork {' '.join(words)}: no {word}"


def test_every_command_is_documented():
    documented = {words[0] for page in PAGES for words in commands_of(page)}
    assert documented >= set(cli.commands)


# ---------------------------------------------------------------------- tables


def test_instruction_set_is_generated(capsys, tmp_path):
    assert isa_docs.main(["--check"]) == 0
    other = tmp_path / "isa.md"
    assert isa_docs.main(["--check", "--output", str(other)]) == 2
    other.write_text("old")
    assert isa_docs.main(["--check", "--output", str(other)]) == 1
    assert isa_docs.main(["--output", str(other)]) == 0
    assert other.read_text(encoding="utf-8") == isa_docs.isa_markdown()


def rows_of(page, heading):
    """Cells of the first table after a heading, without backquotes."""
    text = page.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1]
    lines = [line for line in text.split("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_configuration_keys():
    default = Config()
    rows = rows_of(DOCS / "configuration.md", "Keys")
    assert [(row[0], row[3]) for row in rows] == list(Config.field_docs().items())
    for key, shown, accepts, _ in rows:
        value = getattr(default, key)
        assert shown == (str(value).lower() if isinstance(value, bool) else str(value))
        limits = re.fullmatch(r"(power of two, )?(\d+) to (\d+)", accepts)
        if limits:
            low, high = int(limits[2]), int(limits[3])
            for wrong in (low - 1, high + 1, *((3 * high // 4,) if limits[1] else ())):
                with pytest.raises(ConfigError, match=rf"{key} must be .* from {low} to {high}, not {wrong}"):
                    default.replace(**{key: wrong})


def test_hashes_stay():
    """Programs and bitstreams made before a key was added are still for the same configuration."""
    config = presets()["tiny"]
    assert config.hash == 2831662460 == config.replace(name="other").hash  # as before there was `dispatch`
    assert config.replace(dispatch="turns").hash != config.hash != config.replace(slots=4).hash
    with pytest.raises(ConfigError, match="dispatch must be free or turns, not 'striped'"):
        config.replace(dispatch="striped")


def test_tables_of_presets():
    table = rows_of(DOCS / "configuration.md", "Presets")
    assert table == [
        [name, str(c.pes), str(c.lanes), str(c.pes_per_lane), str(c.slots), str(c.stream_words), c.skip or "none",
         preset_doc(name)] for name, c in presets().items()
    ]  # fmt: skip
    table = [row[:5] for row in rows_of(ROOT / "README.md", "Presets")]
    assert table == [
        [name, str(c.pes), f"{c.lanes} x {c.pes_per_lane} x {c.slots}", str(c.stream_words), c.skip or "none"]
        for name, c in presets().items()
    ]


def test_reasons_are_explained_in_their_order():
    reasons = [row[0] for row in rows_of(DOCS / "architecture.md", "Counters")]
    assert reasons == list(COUNTERS[:8])
    assert list(REASONS[2:]) == reasons[1:]


# ---------------------------------------------------------------------- the pages themselves


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_no_placeholder_is_left(page):
    assert not re.findall(r"@@\w*@@", page.read_text(encoding="utf-8"))


def test_components_are_described():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    helpers = {"__init__", "layouts", "load_common"}
    for file in (ROOT / "rtl").glob("*.py"):
        assert file.stem in helpers or f"{file.stem}.py" in text, file.name


def test_files_that_the_documents_name_exist():
    for page in PAGES:
        for name in re.findall(r"`((?:rtl|gen|sim_tb|fpga|tests|docs)/[\w./*]+)`", page.read_text(encoding="utf-8")):
            assert list(ROOT.glob(name)), f"{page.name}: {name}"
