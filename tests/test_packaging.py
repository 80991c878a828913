"""The package: what the wheel holds, what may import what, lint and types."""

import ast
import functools
import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {"maskwork": "gen/_root", **{f"maskwork.{name}": name for name in ("rtl", "gen", "sim_tb", "fpga")}}
SOURCES = sorted(file for folder in ("rtl", "gen", "sim_tb", "fpga", "tests") for file in (ROOT / folder).rglob("*.py"))

MAX_LINES = 400


def name(file):
    return file.relative_to(ROOT).as_posix()


@functools.cache
def modules():
    """Module name -> file, for every module under the four folders."""
    found = {}
    for package, folder in FOLDERS.items():
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            if parts[0] == "_root":
                continue
            found[".".join([package, *parts]).removesuffix(".__init__")] = file
    return found


# ---------------------------------------------------------------------- the wheel


def test_every_package_is_listed():
    packages = {module for module, file in modules().items() if file.name == "__init__.py"}
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(packages)
    assert PROJECT["tool"]["setuptools"]["package-dir"] == FOLDERS
    for module, file in modules().items():
        assert file.name == "__init__.py" or module.rpartition(".")[0] in packages, f"{name(file)} lies in no package"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The unpacked wheel, and its file names."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    skipped = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist")
    shutil.copytree(ROOT, source, ignore=skipped)  # setuptools leaves its build folder beside the sources
    try:
        isolated = int(metadata.version("setuptools").split(".")[0]) < 77
    except metadata.PackageNotFoundError:
        isolated = True
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(source)]
    done = subprocess.run(
        command if isolated else [*command, "--no-build-isolation"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("maskwork-*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "unpacked")
        return folder / "unpacked", set(archive.namelist())


@pytest.mark.slow
def test_wheel_holds_everything(wheel):
    _, names = wheel
    expected = {"maskwork/py.typed", "maskwork/gen/data/digits_cnn.onnx"}
    for package, folder in FOLDERS.items():
        prefix = package.replace(".", "/")
        for file in (ROOT / folder).rglob("*"):
            path = file.relative_to(ROOT / folder)
            if file.is_file() and "__pycache__" not in path.parts and path.parts[0] != "_root":
                expected.add(f"{prefix}/{path.as_posix()}")
    assert {"maskwork/sim_tb/harness.cpp", "maskwork/sim_tb/bench.v", "maskwork/gen/cli.py"} <= expected
    packaged = {entry for entry in names if entry.startswith("maskwork/")}
    assert packaged == expected
    assert any(entry.endswith("licenses/LICENSE") for entry in names)
    assert any(entry.endswith("entry_points.txt") for entry in names)


@pytest.mark.slow
def test_wheel_works_without_the_sources(wheel, tmp_path):
    """Every module of the unpacked wheel imports, its data are found, and a product comes out right."""
    unpacked, _ = wheel
    script = f"""
import importlib, sys
sys.path.insert(0, {str(unpacked)!r})
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", str(f)).lower()]
import numpy as np
import maskwork as mw
assert mw.__file__.startswith({str(unpacked)!r}), mw.__file__
for module in {sorted(modules())!r}:
    assert importlib.import_module(module).__file__.startswith({str(unpacked)!r}), module
from maskwork.gen.demo_net import load_network
assert len(load_network()[0]) == 5
a = np.arange(-6, 6).reshape(3, 4)
assert np.array_equal(mw.matmul(a, a.T, config="tiny").c, a @ a.T)
assert mw.generate("tiny").manifest["modules"] > 10
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version_and_console_script():
    import maskwork

    assert PROJECT["project"]["version"] == maskwork.__version__ == metadata.version("maskwork")
    assert PROJECT["project"]["scripts"] == {"maskwork": "maskwork.gen.cli:main"}
    assert maskwork.__all__ == sorted(maskwork.__all__)
    for public in maskwork.__all__:
        assert getattr(maskwork, public).__doc__, public


def test_license():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


# ---------------------------------------------------------------------- imports


def imports(file):
    """Modules of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name(file)}: import maskwork.*, not relative"
            module = node.module or ""
            known = modules()
            if module in known:
                children = [f"{module}.{alias.name}" for alias in node.names]
                yield from (child if child in known else module for child in children)
            else:
                yield module


STANDARD = set(sys.stdlib_module_names)
FOUNDATIONS = ("maskwork.gen.config", "maskwork.gen.isa", "maskwork.gen.noise")
"""What hardware, models and compiler all stand on."""


@pytest.mark.parametrize("file", sorted((ROOT / "rtl").glob("*.py")), ids=lambda file: file.name)
def test_hardware_stands_on_amaranth_and_the_configuration(file):
    for module in imports(file):
        top = module.split(".")[0]
        if top == "maskwork":
            assert module in FOUNDATIONS or module.startswith("maskwork.rtl"), module
        else:
            assert top == "amaranth" or top in STANDARD, module
    # it makes components' annotations strings, and a data.Struct 0 bits wide
    assert "from __future__ import annotations" not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("module", [*FOUNDATIONS, "maskwork.gen.errors", "maskwork.gen.presets"])
def test_foundations_import_nothing_else(module):
    allowed = ("maskwork.gen.errors", "maskwork.gen.presets")  # presets are plain values
    for imported in imports(modules()[module]):
        assert imported in allowed or imported.split(".")[0] in STANDARD, imported


def test_golden_model_is_independent_of_compiler_and_hardware():
    allowed = {*FOUNDATIONS, "maskwork.gen.errors"}
    for file in (ROOT / "sim_tb" / "golden").glob("*.py"):
        for module in imports(file):
            if module.startswith("maskwork"):
                assert module in allowed or module.startswith("maskwork.sim_tb.golden"), f"{name(file)}: {module}"


def test_modules_are_imported_by_their_installed_names():
    for file in modules().values():
        tops = {module.split(".")[0] for module in imports(file)}
        assert not tops & {"rtl", "gen", "sim_tb", "fpga"}, name(file)


# ---------------------------------------------------------------------- size, lint, types


def test_files_are_short():
    for file in SOURCES:
        lines = len(file.read_text(encoding="utf-8").splitlines())
        assert lines <= MAX_LINES, f"{name(file)} has {lines} lines, more than {MAX_LINES}"


def test_ruff():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", "."],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_pyright(wheel):
    """The wheel, since the mapping of folders to packages is invisible to type checkers in an editable install."""
    unpacked, _ = wheel
    settings = {
        "include": ["maskwork"],
        "pythonVersion": "3.11",
        "typeCheckingMode": "basic",
        # members of a component come from the signature that its constructor computes: no type checker sees them
        "executionEnvironments": [
            {"root": "maskwork/rtl", "extraPaths": ["."], "reportAttributeAccessIssue": False},
            {"root": "maskwork/fpga", "extraPaths": ["."], "reportAttributeAccessIssue": False},
            {"root": "."},
        ],
    }
    (unpacked / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"],
        cwd=unpacked, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    report = json.loads(done.stdout)
    errors = [
        f"{Path(d['file']).relative_to(unpacked)}:{d['range']['start']['line'] + 1}: {d['message']}"
        for d in report["generalDiagnostics"]
        if d["severity"] == "error"
    ]
    assert not errors, "\n".join(errors)
    assert report["summary"]["filesAnalyzed"] > 50
