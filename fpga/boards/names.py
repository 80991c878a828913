"""From names of cells in a flattened netlist to the design's own components."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable
from typing import Any

_MODULE = re.compile(r"^module (\S+)\s*\(.*?^endmodule", re.MULTILINE | re.DOTALL)
_INSTANCE = re.compile(r"^  ([A-Za-z]\w*) (\\\S+|[A-Za-z_][\w$]*) +\(", re.MULTILINE)
_NUMBERED = re.compile(r"\$\d+$")

OTHER = "top"
"""What lies in no component: the board's top, and cells that tools added."""


@dataclasses.dataclass(frozen=True)
class Components:
    """The instances of a design, by their flattened names.

    Attributes:
        paths: of every instance below the top, names joined by ".".
    """

    paths: frozenset[str]

    @classmethod
    def of(cls, verilog: str, top: str) -> Components:
        """Read them from the text that Yosys gets."""
        bodies = {found[1]: found[0] for found in _MODULE.finditer(verilog)}
        paths: set[str] = set()

        def visit(module: str, prefix: str) -> None:
            for child, name in _INSTANCE.findall(bodies[module]):
                if child in bodies:
                    path = f"{prefix}{name.removeprefix(chr(92))}"
                    paths.add(path)
                    visit(child, f"{path}.")

        visit(top, "")
        return cls(frozenset(paths))

    def component(self, cell: str) -> str:
        """The component that holds a cell: ``cluster0.lane1.pe2``, :data:`OTHER` for none.

        A LUT's name is that of a signal that it drives or reads, so that a LUT between two components may be counted
        with either, or with what holds them both (``accelerator``).
        """
        parts = cell.split(".")
        for length in range(len(parts), 0, -1):
            path = ".".join(parts[:length])
            if path in self.paths:
                return _short(path)
        return OTHER

    def kind(self, cell: str) -> str:
        """As :meth:`component`, for all of a kind: ``cluster.lane.pe``; to the depth of a PE."""
        parts = [re.sub(r"\d+$", "", part) for part in self.component(cell).split(".")]
        depth = 1 if parts[0] != "cluster" else 3 if parts[1:3] == ["lane", "pe"] else 2
        return ".".join(parts[:depth])


def _short(path: str) -> str:
    parts = [_NUMBERED.sub("", part) for part in path.split(".")]
    while len(parts) > 1 and parts[0] in ("system", "accelerator"):
        parts = parts[1:]
    return ".".join(parts)


def count(components: Components, cells: Iterable[str]) -> dict[str, int]:
    """Cells by kind of component, most first."""
    return dict(collections.Counter(components.kind(cell) for cell in cells).most_common())


def critical_path(components: Components, paths: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The slowest path from register to register of nextpnr's ``critical_paths``, by components.

    Returns:
        ``delay_ns``, ``logic_ns``, ``routing_ns``, ``steps`` (components in order with the delay spent on the way
        through each, wires to it included) and ``text``, one line; ``None`` if there is no such path.
    """
    inner = [path for path in paths if path["path"] and path["from"] == path["to"]]
    if not inner:
        return None
    slowest = max(inner, key=lambda path: sum(step["delay"] for step in path["path"]))["path"]
    logic = sum(step["delay"] for step in slowest if step["type"] != "routing")
    routing = sum(step["delay"] for step in slowest if step["type"] == "routing")
    steps: list[dict[str, Any]] = []
    for step in slowest:
        component = components.component(step["to"]["cell"])
        if not steps or steps[-1]["component"] != component:
            steps.append({"component": component, "delay_ns": 0.0})
        steps[-1]["delay_ns"] += step["delay"]
    for step in steps:
        step["delay_ns"] = round(step["delay_ns"], 2)
    way = " -> ".join(f"{step['component']} {step['delay_ns']:.2f} ns" for step in steps)
    return {
        "delay_ns": round(logic + routing, 2),
        "logic_ns": round(logic, 2),
        "routing_ns": round(routing, 2),
        "steps": steps,
        "text": f"{logic + routing:.2f} ns ({logic:.2f} logic, {routing:.2f} wires): {way}",
    }
