"""An open device for a model in training, on which a framework's layers run their products (docs/torch.md).

Tensors are rounded to integers with a power of two as their scale, one scale each; products of the integers are
exact (:mod:`maskwork.gen.train.products`). Knows no framework: arrays are NumPy's.
"""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.errors import DeviceError, MaskworkError, MaskworkTypeError, MaskworkValueError
from maskwork.gen.mask import BoolArray
from maskwork.gen.matmul import as_config
from maskwork.gen.train.numerics import ROUNDINGS, Quantised, check_bits, generator, quantise
from maskwork.gen.train.products import GoldenProducts, Products
from maskwork.gen.workload import COLUMNS, PASSES, Layer

TENSORS = ("input", "weight", "output_grad")
"""The tensors that are quantised."""


class Accelerator:
    """An open device for the layers of a model, and what they ran on it.

    A context manager: the device is open inside ``with``.

    Args:
        target: "golden" (formulas: fast enough to train with), "cycle", "rtl", or ``KIND:REST``.
        config: a configuration, a preset's name, or None: "small", or "small-int16" for 16 bits.
        bits: of the integers, 8 or 16, at most the configuration's a_width and b_width.
        rounding: "nearest" or "stochastic", or one of them for each of :data:`TENSORS`; "nearest" for those not named.
        record: keep the reports of all products.
        record_masks: keep the masks of each layer's latest step, for :meth:`write_masks`.
        seed: of stochastic rounding.
        **options: of the target (:func:`maskwork.sim_tb.device.open_device`).

    Attributes:
        reports: of every pass that ran, in order: ``layer``, ``pass``, ``densities`` (of operands a and b, and c, the
            results wanted) and the keys of docs/formats.md. A plain list: clear it as you like.

    Raises:
        MaskworkTypeError, MaskworkValueError: for arguments that cannot be used.
    """

    def __init__(
        self,
        target: str = "golden",
        config: Config | str | None = None,
        *,
        bits: int = 8,
        rounding: str | Mapping[str, str] = "nearest",
        record: bool = True,
        record_masks: bool = False,
        seed: int = 1,
        **options: Any,
    ) -> None:
        from maskwork.sim_tb.device import is_target, target_names

        if not isinstance(target, str) or not is_target(target):
            raise MaskworkValueError(f"unknown target {target!r}; targets: {', '.join(target_names())}")
        self.config = as_config(config)
        if config is None and bits == 16:
            self.config = as_config("small-int16")
        check_bits(self.config, bits)
        if target == "golden" and options:
            raise MaskworkValueError(f"option {next(iter(options))} needs target 'rtl', not 'golden'")
        self.target, self.bits, self.options = target, int(bits), options
        self.record, self.record_masks = record, record_masks
        self.rounding = _rounding(rounding)
        self.reports: list[dict[str, Any]] = []
        self._random = generator(seed)
        self._products: Products | None = None
        self._stack = ExitStack()
        self._names: set[str] = set()
        self._steps: dict[str, Step] = {}

    def __enter__(self) -> Accelerator:
        from maskwork.sim_tb.device import open_device

        if self._products is not None:
            raise MaskworkError("the accelerator is open already; one with block at a time is expected")
        if self.target == "golden":
            self._products = GoldenProducts(self.config)
        else:
            device = self._stack.enter_context(open_device(self.target, self.config, **self.options))
            self._products = Products(device, self.target)
        return self

    def __exit__(self, *error: object) -> None:
        self._products = None
        self._stack.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Accelerator:
        return self  # a copied model runs on the same device

    def __reduce__(self) -> Any:
        raise MaskworkTypeError("an accelerator cannot be pickled; save the model's state_dict() instead")

    @property
    def device(self) -> Any:
        """The open device; None where formulas do its work, or outside ``with``."""
        return None if self._products is None else self._products.device

    def check_name(self, name: str) -> None:
        """Refuse a layer's name that is taken, or that workload files cannot hold.

        Raises:
            MaskworkValueError: saying so.
        """
        _expect_name(name, "layer")
        if name in self._names:
            raise MaskworkValueError(f"layer {name!r} exists on this accelerator; another name or prefix is expected")

    def claim(self, name: str) -> str:
        """A layer's name, once: reports and masks go by it. Raises as :meth:`check_name`."""
        self.check_name(name)
        self._names.add(name)
        return name

    def free_name(self, kind: str) -> str:
        """The first of kind1, kind2 ... that no layer has."""
        return next(name for n in range(1, len(self._names) + 2) if (name := f"{kind}{n}") not in self._names)

    def run(self, layer: Layer, which: str, tensors: Mapping[str, Quantised], wanted: BoolArray | None) -> Any:
        """One pass on the device: float64 results, scales included."""
        if self._products is None:
            raise DeviceError(f"{layer.layer}: the accelerator is closed; layers run inside `with accelerator:`")
        values = {name: tensor.values for name, tensor in tensors.items()}
        result = self._products.run(layer, which, values, wanted)
        if self.record:
            self.reports += self._products.reports
        self._products.reports.clear()
        return np.ldexp(result.astype(np.float64), sum(tensor.exponent for tensor in tensors.values()))

    def quantise(self, tensor: Any, which: str, name: str) -> Quantised:
        """One of :data:`TENSORS`, rounded as the arguments say (:func:`maskwork.gen.train.numerics.quantise`)."""
        return quantise(tensor, self.bits, self.rounding[which], self._random, f"{name}: {which}")

    # ------------------------------------------------------------------ for maskwork bench

    def write_masks(self, path: str | os.PathLike[str]) -> None:
        """The masks of every layer's latest step, as `maskwork bench --masks-from` reads them.

        Raises:
            MaskworkValueError: if none are recorded, or the file cannot be written.
        """
        masks = {f"{name}.{tensor}": mask for name, step in self._steps.items() for tensor, mask in step.masks.items()}
        if not masks:
            raise MaskworkValueError("no masks are recorded; record_masks=True and a step of training are expected")
        try:
            with Path(path).open("wb") as file:
                np.savez_compressed(file, **masks)  # type: ignore[arg-type]
        except OSError as error:
            raise MaskworkValueError(f"{path}: cannot be written ({error.strerror or error})") from None

    def write_workload(self, path: str | os.PathLike[str], network: str = "torch") -> None:
        """The layers of the latest step with their densities, as `maskwork bench` reads them.

        Raises:
            MaskworkValueError: if nothing ran, for a network's name with '/', or if the file cannot be written.
        """
        if not self._steps:
            raise MaskworkValueError("no layer has run; a step of training is expected")
        _expect_name(network, "network")
        try:
            with Path(path).open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(COLUMNS)
                for step in self._steps.values():
                    row = dataclasses.asdict(step.layer) | {"network": network, "output_mask": "none"}
                    row |= {f"density_{tensor}": f"{density:.6g}" for tensor, density in step.densities.items()}
                    row["passes"] = "+".join(which for which in PASSES if which in step.passes)
                    writer.writerow([row[column] for column in COLUMNS])
        except OSError as error:
            raise MaskworkValueError(f"{path}: cannot be written ({error.strerror or error})") from None

    def latest(self, step: Step) -> None:
        """Make a step its layer's latest, unless it has no gradients and an older one has."""
        old = self._steps.get(step.layer.layer)
        if old is None or len(step.passes) > 1 or len(old.passes) == 1:
            self._steps[step.layer.layer] = step


class Step:
    """What a layer's passes over one batch leave for :mod:`maskwork.gen.bench`."""

    def __init__(self, layer: Layer, keep: bool) -> None:
        self.layer, self.keep = layer, keep
        self.passes: set[str] = set()
        self.densities: dict[str, float] = {}
        self.masks: dict[str, BoolArray] = {}

    def add(self, which: str, **tensors: Any) -> None:
        """A pass that ran, and tensors or masks of it by their names in mask files; None is no mask."""
        self.passes.add(which)
        for tensor, values in tensors.items():
            if values is not None:
                self.densities[tensor] = float(np.count_nonzero(values) / max(1, values.size))
                if self.keep:
                    self.masks[tensor] = values != 0


def _expect_name(name: Any, what: str) -> None:
    if not isinstance(name, str) or not name or name != name.strip() or "/" in name:
        raise MaskworkValueError(f"a {what}'s name must be text without '/', not {name!r}")


def _rounding(rounding: str | Mapping[str, str]) -> dict[str, str]:
    given: dict[str, str] = dict(rounding) if isinstance(rounding, Mapping) else dict.fromkeys(TENSORS, rounding)
    for tensor, name in given.items():
        if tensor not in TENSORS or name not in ROUNDINGS:
            raise MaskworkValueError(
                f"rounding must be {' or '.join(ROUNDINGS)}, or one for each of {', '.join(TENSORS)}, not {rounding!r}"
            )
    return {tensor: given.get(tensor, "nearest") for tensor in TENSORS}
