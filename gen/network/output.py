"""What the commands make of a compiled network: files, predicted cycles, and how far results are from the reference."""

from __future__ import annotations

import os
import re
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from maskwork.gen.errors import MaskworkError
from maskwork.gen.listing import disassemble
from maskwork.gen.network.compile import Compiled, Outcome
from maskwork.gen.network.reference import deviations, difference, reference_values
from maskwork.gen.network.steps import Tensors
from maskwork.gen.pack import count_ranges
from maskwork.gen.program import Program
from numpy.typing import NDArray


def random_inputs(compiled: Compiled, seed: int = 1) -> Tensors:
    """Random inputs: integers over their whole range, floats normal.

    Args:
        compiled: the network.
        seed: of the generator.
    """
    rng = np.random.default_rng(seed)
    values: dict[str, NDArray[Any]] = {}
    for name, (shape, dtype) in compiled.inputs.items():
        if dtype.kind == "f":
            values[name] = rng.standard_normal(shape).astype(dtype)
        elif dtype.kind == "b":
            values[name] = rng.random(shape) < 0.5
        else:
            low, high = max(np.iinfo(dtype).min, -(1 << 31)), min(np.iinfo(dtype).max, (1 << 31) - 1)
            values[name] = rng.integers(low, high + 1, shape).astype(dtype)
    return values


def predict(compiled: Compiled, inputs: Tensors) -> dict[str, Any]:
    """The report of a run on the cycle model, with ``placement``, ``compile_seconds`` and ``peak_memory_bytes``."""
    done = compiled.run(inputs, "cycle")
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        **done.report,
        "placement": compiled.placement,
        "compile_seconds": compiled.seconds,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }


def check_deviations(compiled: Compiled, inputs: Tensors, done: Outcome) -> dict[str, Any]:
    """Deviations from ONNX's reference: ``steps`` one by one on the golden model, and ``network``, end to end.

    Args:
        compiled: the network.
        inputs: its inputs.
        done: a run of it.
    """
    from maskwork.sim_tb.device import open_device

    known = reference_values(compiled, inputs)
    with open_device("golden", compiled.config) as device:
        steps = deviations(compiled, inputs, device, known=known)
    ends = {name: difference(value, known[name]) for name, value in done.outputs.items()}
    return {"steps": steps, "network": ends}


# ---------------------------------------------------------------------- files


def _file_name(number: int, name: str) -> str:
    return f"{number:02d}_{re.sub(r'[^A-Za-z0-9_.-]+', '_', name).strip('_')}"


def programs(compiled: Compiled) -> list[tuple[str, Program]]:
    """Programs of a network with names for their files."""
    found = []
    for number, step in enumerate(compiled.steps):
        own = step.programs
        for index, program in enumerate(own):
            found.append((_file_name(number, step.name) + (f".{index}" if len(own) > 1 else ""), program))
    return found


def memory_map(compiled: Compiled) -> dict[str, Any]:
    """Where a host keeps activations, and how full the accelerator's buffers get.

    Returns:
        ``bytes``: of the arena that holds all tensors between steps. ``tensors``: by name ``offset``, ``bytes``,
        ``first`` and ``last``, the steps between which it is there. ``steps``: by program, loads of each buffer:
        ``loads``, ``largest`` in rows of its operand, and ``capacity``.
    """
    graph = compiled.graph
    lives: dict[str, list[int]] = {name: [-1, -1] for name in graph.inputs}
    for number, step in enumerate(compiled.steps):
        for name in step.outputs:
            lives[name] = [number, number]
        for name in step.inputs:
            if name in lives:
                lives[name][1] = number
    for name in graph.outputs:
        if name in lives:
            lives[name][1] = len(compiled.steps)
    tensors: dict[str, dict[str, int]] = {}
    for name, (first, last) in sorted(lives.items(), key=lambda entry: entry[1]):
        if name not in graph.shapes or name not in graph.dtypes:
            continue
        size = int(np.prod(graph.shapes[name], dtype=np.int64)) * graph.dtypes[name].itemsize
        taken = sorted((other["offset"], other["offset"] + other["bytes"]) for other in tensors.values()
                       if other["first"] <= last and first <= other["last"])  # fmt: skip
        offset = 0
        for start, stop in taken:
            if offset + size <= start:
                break
            offset = max(offset, -(-stop // 4) * 4)
        tensors[name] = {"offset": offset, "bytes": size, "first": first, "last": last}
    total = max((entry["offset"] + entry["bytes"] for entry in tensors.values()), default=0)
    steps = {name: _loads(program) for name, program in programs(compiled)}
    return {"bytes": total, "tensors": tensors, "steps": steps}


def _loads(program: Program) -> dict[str, dict[str, int]]:
    config = program.config
    buffers = {"LOAD_A": ("activations", config.a_segments), "LOAD_B": ("weights", config.k_depth),
               "LOAD_C": ("c_masks", config.c_rows)}  # fmt: skip
    found: dict[str, dict[str, int]] = {}
    for command in program.commands:
        if command["op"] in buffers:
            name, capacity = buffers[command["op"]]
            entry = found.setdefault(name, {"loads": 0, "largest": 0, "capacity": capacity})
            entry["loads"] += 1
            entry["largest"] = max(entry["largest"], count_ranges(command["data"]["rows"]))
    return found


def write(compiled: Compiled, report: dict[str, Any], folder: str | os.PathLike[str]) -> list[Path]:
    """Write programs, weights, listing, memory map and report; each file appears whole or not at all.

    Args:
        compiled: the network.
        report: of :func:`predict`.
        folder: made if missing.

    Raises:
        MaskworkError: if it cannot be written.
    """
    import json

    target = Path(folder)
    weights = {f"{_file_name(number, step.name)}/{operand}": _smallest(values)
               for number, step in enumerate(compiled.steps) for operand, values in step.weights.items()}  # fmt: skip
    listing = []
    for name, program in programs(compiled):
        listing.append(f"; {name}\n{disassemble(program)}")
    texts = {f"{name}.mwp": program.to_json() for name, program in programs(compiled)}
    texts["listing.txt"] = "\n".join(listing)
    texts["memory.json"] = json.dumps(memory_map(compiled), indent=2) + "\n"
    texts["report.json"] = json.dumps(report, indent=2) + "\n"
    paths = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".maskwork-") as scratch:
            for name, text in texts.items():
                Path(scratch, name).write_text(text, encoding="utf-8")
            with open(Path(scratch, "weights.npz"), "wb") as file:
                np.savez_compressed(file, **weights)  # pyright: ignore[reportArgumentType]
            for name in (*texts, "weights.npz"):
                os.replace(Path(scratch, name), target / name)
                paths.append(target / name)
    except OSError as error:
        raise MaskworkError(f"-o {folder}: cannot be written ({error.strerror}); a directory is expected") from None
    return paths


def _smallest(values: NDArray[Any]) -> NDArray[Any]:
    """The same integers in the smallest type that holds them."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    for dtype in (np.int8, np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return values.astype(dtype)
    return values
