"""Emission of every distinct component as one Verilog module, however often it is instantiated.

Amaranth writes one module per instance. Here a parent adds its children with :func:`submodule`; when the design is
converted by :func:`elaborate_all`, each distinct child is converted once and its parents hold instances of it. In
Amaranth's simulator (``platform`` is ``None``) the same call adds an ordinary submodule.

Two components are the same module if they are of the same class and their ``hierarchy_key()`` methods return equal
tuples; the tuple must therefore hold everything that shapes the component (its constructor's arguments, say).
Components without that method are converted every time and merged when the text is the same: slower, never wrong.

A component added here lives in its parent's ``sync`` domain, has no clock domain of its own, and must not be wrapped
in a ``DomainRenamer``, ``ResetInserter`` or ``EnableInserter`` (nor must its parent); it may have a reset of its own.
"""

import gc
import re
from collections.abc import Hashable, Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

from amaranth.back import rtlil  # pyright: ignore[reportAttributeAccessIssue]
from amaranth.hdl import ClockSignal, Elaboratable, Instance, Module, ResetInserter, ResetSignal, Value
from amaranth.lib import wiring

__all__ = ["Hierarchy", "Keyed", "elaborate_all", "module_count", "submodule"]

_PENDING = "maskwork__pending__module"
_PORT = re.compile(r"^  wire +width +(\d+) +(?:input|output) +\d+ +(?:signed +)?\\(\S+)$", re.MULTILINE)
_MODULE = re.compile(r"^module (\\\S+)$", re.MULTILINE)
_DOTTED = re.compile(r"^(module|  cell) (\\[^\s.]+\.\S+)", re.MULTILINE)
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

C = TypeVar("C", bound=Elaboratable)


@runtime_checkable
class Keyed(Protocol):
    """A component that says what distinguishes it from others of its class."""

    def hierarchy_key(self) -> tuple[Hashable, ...]:
        """Everything that shapes the component: equal keys mean equal hardware."""
        ...


class _Definition:
    """One emitted module: its Verilog name, its RTLIL, and the ports that really exist."""

    def __init__(self, name: str, text: str, ports: frozenset[str]):
        self.name = name
        self.text = text
        self.ports = ports


class Hierarchy:
    """The distinct components met while a design is elaborated; passed to Amaranth as its platform.

    Args:
        prefix: what every module's name begins with: the name of the top module.
        verify: convert repeated components too, and list those whose hardware differs although their keys do not.

    Attributes:
        conflicts: that list, of class names and keys.
    """

    def __init__(self, prefix: str, *, verify: bool = False):
        self.prefix = prefix
        self.verify = verify
        self.conflicts: list[str] = []
        self._by_key: dict[tuple[Hashable, ...], _Definition] = {}
        self._by_text: dict[tuple[type, str], _Definition] = {}
        self._names: set[str] = {prefix}

    @property
    def definitions(self) -> list[str]:
        """RTLIL texts of the registered components, children before parents."""
        return [definition.text for definition in self._by_text.values()]

    def instance(self, component: wiring.Component, reset: Value | None = None) -> Instance:
        """An instance of the component's module, connected to the component's own port signals (and to ``reset``)."""
        definition = self._define(component)
        ports: dict[str, Any] = {}
        if "clk" in definition.ports:
            ports["i_clk"] = ClockSignal()
        if "rst" in definition.ports:
            ports["i_rst"] = ResetSignal() if reset is None else reset
        for path, member, value in component.signature.flatten(component):
            name = "__".join(map(str, path))
            if name in definition.ports:
                ports[("i_" if member.flow == wiring.In else "o_") + name] = value
        return Instance(definition.name, **ports)

    def _define(self, component: wiring.Component) -> _Definition:
        if not isinstance(component, Keyed):
            return self._convert(component)
        key = (type(component), *component.hierarchy_key())
        known = self._by_key.get(key)
        if known is None:
            known = self._by_key[key] = self._convert(component)
        elif not self.verify:
            _mark_used(component)
        elif self._convert(component) is not known:
            self.conflicts.append(f"{type(component).__name__}{key[1:]!r}")
        return known

    def _convert(self, component: wiring.Component) -> _Definition:
        text = _to_rtlil(component, _PENDING, self)
        text = text.replace("  attribute \\top 1\n", "").replace("attribute \\top 1\n", "")
        identity = (type(component), text)
        if identity not in self._by_text:
            name = self._unique_name(type(component).__name__)
            ports = frozenset(port for width, port in _PORT.findall(_own_module(text)) if int(width))
            self._by_text[identity] = _Definition(name, text.replace(_PENDING, name), ports)
        return self._by_text[identity]

    def _unique_name(self, class_name: str) -> str:
        stem = f"{self.prefix}_{_WORD.sub('_', class_name).lower()}"
        name, number = stem, 1
        while name in self._names:
            number += 1
            name = f"{stem}_{number}"
        self._names.add(name)
        return name


def submodule(m: Module, name: str | None, component: C, platform: object, reset: Value | None = None) -> C:
    """Add ``component`` to ``m``; the parent then uses the component's port signals as ever.

    Args:
        m: the parent's module.
        name: instance name, ``None`` for one that Amaranth makes up.
        component: any elaboratable; only a :class:`~amaranth.lib.wiring.Component` with ports becomes a shared module.
        platform: what the parent's ``elaborate`` was given.
        reset: resets the component in place of the parent's reset; high at least while that is.

    Returns:
        The component.
    """
    added: Any = component
    if isinstance(platform, Hierarchy) and isinstance(component, wiring.Component) and component.signature.members:
        added = platform.instance(component, reset)
    elif reset is not None:
        added = ResetInserter(reset)(component)
    if name is None:
        m.submodules += added  # pyright: ignore[reportOperatorIssue]
    else:
        m.submodules[name] = added
    return component


def elaborate_all(top: wiring.Component, name: str, *, verify: bool = False) -> str:
    """Convert a design to RTLIL with each distinct component once.

    Args:
        top: the design; its ports keep Amaranth's names (paths joined by ``__``), with ``clk`` and ``rst`` added.
        name: the top module's name, and the first part of every other module's.
        verify: check that components with equal keys are equal hardware (slower; for tests).

    Raises:
        RuntimeError: if that check fails.

    Returns:
        RTLIL text: the top module first, then the others, parents before children. The text depends on the design
        alone: no dates, no source locations.
    """
    hierarchy = Hierarchy(name, verify=verify)
    # the millions of objects that Amaranth makes live until the end: looking for dead ones took a quarter of the time
    collects = gc.isenabled()
    gc.disable()
    try:
        text = _to_rtlil(top, name, hierarchy)
    finally:
        if collects:
            gc.enable()
    if hierarchy.conflicts:
        raise RuntimeError(f"not the same hardware for the same hierarchy_key(): {', '.join(hierarchy.conflicts)}")
    return "\n".join([text, *reversed(hierarchy.definitions)])


def module_count(text: str) -> int:
    """Number of modules in RTLIL text."""
    return len(_MODULE.findall(text))


def _to_rtlil(component: wiring.Component, name: str, hierarchy: Hierarchy) -> str:
    text = rtlil.convert(component, name=name, platform=hierarchy, emit_src=False)
    # Amaranth names the modules of plain submodules "parent.child": legal only as an escaped identifier in Verilog
    return _DOTTED.sub(lambda match: f"{match[1]} {match[2].replace('.', '__')}", text)


def _own_module(text: str) -> str:
    """The first module in RTLIL text: the component itself, which comes before its plain submodules."""
    return text[: text.index("\nend\n") + 1]


def _mark_used(component: object) -> None:
    """Tell Amaranth that a component (and those it holds) is not forgotten, although nobody elaborates it."""
    for elaboratable in _elaboratables(component, set()):
        elaboratable._MustUse__used = True  # type: ignore[attr-defined]


def _elaboratables(value: object, seen: set[int]) -> Iterator[Elaboratable]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Elaboratable):
        yield value
        children = list(vars(value).values())
    elif isinstance(value, dict):
        children = list(value.values())
    elif isinstance(value, list | tuple):
        children = list(value)
    else:
        return
    for child in children:
        yield from _elaboratables(child, seen)
