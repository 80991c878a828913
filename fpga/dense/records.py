"""Routed arrays as the comparison keeps them, and a cache of what takes minutes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maskwork.gen.errors import MaskworkError, MaskworkValueError
from maskwork.gen.generate import write_files

CELLS = {"luts": "TRELLIS_COMB", "ffs": "TRELLIS_FF", "brams": "DP16KD", "dsps": "MULT18X18D"}
"""What is compared, and nextpnr's name for it."""

ECP5_85F = {"luts": 83640, "ffs": 83640, "brams": 208, "dsps": 156}


class Cache:
    """Results of steps, one file each, found again by everything that they depend on.

    Args:
        folder: where files are; made when the first is written. None keeps nothing.
        only: make nothing: what is missing is an error.
    """

    def __init__(self, folder: str | None, only: bool = False):
        self._folder, self._only = Path(folder) if folder else None, only

    def get(self, step: str, key: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """The step's result, made if it is not there.

        Raises:
            MaskworkError: if it is not there, and nothing is to be made.
        """
        text = json.dumps(key, sort_keys=True)
        name = f"{step}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        if self._folder and (self._folder / name).is_file():
            try:
                return json.loads((self._folder / name).read_text(encoding="utf-8"))["result"]
            except (ValueError, KeyError, TypeError):
                pass  # half a file: made again
        if self._only:
            raise MaskworkError(f"{step} is not in {self._folder or 'a cache'} ({name}): run without --no-route")
        result = json.loads(json.dumps(make()))  # as it will be read
        if self._folder:
            write_files(self._folder, {name: json.dumps({"key": json.loads(text), "result": result}, indent=1) + "\n"})
        return result


def record(routed: Mapping[str, Any], name: str, where: str = "result") -> dict[str, Any]:
    """An array from what :func:`maskwork.fpga.cost.routed`, `routed_dense` or ``maskwork build`` reports.

    Args:
        routed: that report.
        name: what the array is called.
        where: file, for messages.

    Returns:
        name, pes, fmax_mhz, ``peak_products_per_s``, luts, ffs, brams, dsps (``used``, ``available``), config, and
        device, seed, tool where they are known.

    Raises:
        MaskworkValueError: naming what is missing.
    """
    try:
        pes, clock, config = int(routed["pes"]), float(routed["fmax_mhz"]), dict(routed["config"])
        cells = {}
        for key, cell in CELLS.items():
            value = routed["used"].get(cell, (0, ECP5_85F[key])) if "used" in routed else routed[key]
            used, available = (value["used"], value["available"]) if isinstance(value, Mapping) else value
            cells[key] = {"used": int(used), "available": int(available)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        missing = f"{error.args[0]!r} missing" if isinstance(error, KeyError) else str(error)
        raise MaskworkValueError(
            f"{where}: not a routed array ({missing}); the JSON of `maskwork cost --route --whole --write` or of "
            "`maskwork build` is expected"
        ) from None
    if pes < 1 or not clock > 0 or not cells["luts"]["used"] > 0:
        raise MaskworkValueError(f"{where}: pes, fmax_mhz and luts must be positive")
    if any(own["available"] != ECP5_85F[key] for key, own in cells.items()):
        raise MaskworkValueError(f"{where}: not of an LFE5U-85F, on which arrays are compared")
    result = {"name": name, "pes": pes, "fmax_mhz": clock, "peak_products_per_s": pes * clock * 1e6, **cells}
    return result | {"config": config} | {key: routed[key] for key in ("device", "seed", "tool") if key in routed}


def read_record(path: str, name: str) -> dict[str, Any]:
    """The same from a JSON file; of a list the one with most products a second.

    Raises:
        MaskworkValueError: if the file cannot be read, or is something else.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise MaskworkValueError(f"{path}: cannot be read ({error.strerror}); a JSON file is expected") from None
    except ValueError:
        raise MaskworkValueError(f"{path}: not a JSON file, which is expected") from None
    several = found if isinstance(found, list) else [found]
    if not several or not all(isinstance(one, dict) for one in several):
        raise MaskworkValueError(f"{path}: a routed array, or a list of them, is expected")
    return max((record(one, name, path) for one in several), key=lambda one: one["peak_products_per_s"])
