"""One masked product on any target."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from maskwork.gen import check
from maskwork.gen.config import Config, preset
from maskwork.gen.errors import MaskworkError, MaskworkTypeError, MaskworkValueError
from maskwork.gen.execute import execute_bound
from maskwork.gen.lower_matmul import lower_matmul
from maskwork.gen.mask import BoolArray, Mask, as_bool
from maskwork.gen.program import Program, bind
from maskwork.gen.report import link_report, make_report
from maskwork.gen.tile import tile_window
from numpy.typing import NDArray

DEFAULT_PRESET = "small"
"""The configuration where none is named."""

_AXES = {"a_mask": "mk", "b_mask": "kn", "c_mask": "mn"}


@dataclass(frozen=True)
class Result:
    """A masked product.

    Members:
        c: (M, N), int32 where acc_width <= 32, else int64; what the mask of C removed is 0.
        report: what it cost, as in docs/formats.md.
        program: the program that ran.
    """

    c: NDArray[Any]
    report: dict[str, Any]
    program: Program


def as_config(config: Config | str | None) -> Config:
    """A configuration, from itself, a preset's name or None (the default preset).

    Raises:
        MaskworkTypeError: for anything else.
        ConfigError: if there is no such preset.
    """
    if isinstance(config, Config):
        return config
    if config is None or isinstance(config, str):
        return preset(config or DEFAULT_PRESET)
    raise MaskworkTypeError(f"config must be a Config or a preset's name, not {type(config).__name__}")


def as_operand(values: Any, name: str, width: int) -> NDArray[Any]:
    """A matrix of integers that fit ``width`` bits, signed.

    Raises:
        MaskworkTypeError, MaskworkValueError: naming the operand.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise MaskworkTypeError(f"{name}: must be an array of integers (int8, uint8, int16), not {array.dtype}")
    if array.ndim != 2 or not array.size:
        raise MaskworkValueError(f"{name}: must be a matrix with two axes of 1 or more, not of shape {array.shape}")
    try:
        check.check_range(name, array, width)
    except MaskworkValueError as error:
        raise MaskworkValueError(str(error).replace(f"operand {name!r}", f"{name}:", 1)) from None
    return array


def as_mask(values: Any, name: str, shape: tuple[int, int], axes: str) -> tuple[Mask, BoolArray]:
    """A mask as object and as bool array of ``shape``.

    Raises:
        MaskworkTypeError, MaskworkValueError: naming the mask.
    """
    try:
        mask = values if isinstance(values, Mask) else Mask.element(as_bool(values))
        if not isinstance(values, Mask) and np.shape(values) != shape:
            raise MaskworkValueError(f"mask must have shape {shape}, not {np.shape(values)}")
        return mask, mask.to_array(shape, axes)
    except MaskworkError as error:
        raise type(error)(f"{name}: {error}") from None


@dataclass(frozen=True)
class Product:
    """Checked operands of one masked product, and the program for them."""

    program: Program
    operands: dict[str, NDArray[Any]]
    masks: dict[str, Mask]
    arrays: dict[str, BoolArray]
    dense: bool

    @classmethod
    def of(
        cls,
        config: Config,
        a: Any,
        b: Any,
        masks: Mapping[str, Any],
        dense: bool = False,
        names: Mapping[str, str] | None = None,
    ) -> Product:
        """Check operands and lower their product.

        Args:
            config: the accelerator.
            a: integers (M, K).
            b: integers (K, N).
            masks: "a_mask", "b_mask" and "c_mask", as arrays or :class:`Mask`; any may be missing or None.
            dense: zeros of the operands are not skipped.
            names: what messages call the operands and masks.

        Raises:
            MaskworkTypeError, MaskworkValueError: for operands or masks that do not fit.
            ProgramError: if the configuration cannot run it.
        """
        called = {name: name for name in ("a", "b", *_AXES)} | dict(names or {})
        a = as_operand(a, called["a"], config.a_width)
        b = as_operand(b, called["b"], config.b_width)
        if a.shape[1] != b.shape[0]:
            raise MaskworkValueError(
                f"{called['b']}: must have {a.shape[1]} rows, the columns of {called['a']}, not shape {b.shape}"
            )
        (m, k), n = a.shape, b.shape[1]
        shapes = {"a_mask": (m, k), "b_mask": (k, n), "c_mask": (m, n)}
        given, arrays = {}, {}
        for name, axes in _AXES.items():
            if masks.get(name) is not None:
                given[name], arrays[name] = as_mask(masks[name], called[name], shapes[name], axes)
        keep = {
            axis: np.logical_and.reduce(
                [np.ones(size, dtype=np.bool_), *(mask.axis_keep(axis, size) for name, mask in given.items()
                                                  if axis in _AXES[name])]
            )
            for axis, size in (("m", m), ("k", k), ("n", n))
        }  # fmt: skip
        # vector masks of C are kept rows and columns of the product: no bitmap has to travel for them
        use_c = "c_mask" in given and not all(kind.startswith("vector") for kind in given["c_mask"].kinds)
        program = lower_matmul(config, m, k, n, use_c=use_c, m_keep=keep["m"], k_keep=keep["k"], n_keep=keep["n"])
        bound = {"a": "a_mask", "b": "b_mask"} | ({"c_mask": "c_mask"} if use_c else {})
        bind_masks = {operand: given[name] for operand, name in bound.items() if name in given}
        return cls(program, {"a": a, "b": b}, bind_masks, arrays, dense)

    def run(self, target: str, **options: Any) -> Result:
        """Run it on a target, opened for this product alone.

        Args:
            target: as for :func:`maskwork.sim_tb.device.open_device`.
            **options: the same; ``trace_tile`` (number of a RUN) instead of ``trace_window``.

        Raises:
            MaskworkValueError: for a product that could overflow, an unknown target, or a RUN that is not there.
            DeviceError: if the device fails.
        """
        from maskwork.sim_tb.device import open_device
        from maskwork.sim_tb.golden import macs

        start = time.perf_counter()
        bound = bind(self.program, self.operands, self.masks, self.dense)
        tile = options.pop("trace_tile", None)
        if tile is not None:
            options["trace_window"] = tile_window(self.program, bound, tile, **options)
        with open_device(target, self.program.config, **options) as device:
            done = execute_bound(device, self.program, bound)
            link = link_report(device)
        report = make_report(
            target, self.program.config, macs(self.operands["a"], self.operands["b"], **self.arrays, dense=self.dense),
            words_in=done.words_in, words_out=done.words_out, seconds=time.perf_counter() - start,
            counters=done.counters,
        ) | link  # fmt: skip
        return Result(done.outputs["c"], report, self.program)


def matmul(
    a: Any,
    b: Any,
    *,
    a_mask: Any = None,
    b_mask: Any = None,
    c_mask: Any = None,
    config: Config | str | None = None,
    target: str = "golden",
    dense: bool = False,
    simulator: str = "verilator",
    trace: str | os.PathLike[str] | None = None,
    trace_tile: int | None = None,
) -> Result:
    """Masked product C<Mc> = A<Ma> . B<Mb> on a target: the same numbers on every one.

    The effective mask of A and of B is the given mask AND the operand's nonzeros; of C it is the given mask. Rows and
    columns that vector masks (:meth:`maskwork.gen.mask.Mask.vector`) remove are not even loaded.

    Args:
        a: integers, shape (M, K), within a_width bits signed (9 bits by default: int8 and uint8 both fit).
        b: integers, shape (K, N), within b_width bits signed.
        a_mask: which elements exist: :class:`~maskwork.gen.mask.Mask`, or an array of bool (or 0 and 1), (M, K).
        b_mask: the same for b, (K, N).
        c_mask: which results are wanted, (M, N); the others are exactly 0.
        config: the accelerator: a configuration, a preset's name, or None for "small".
        target: "golden" (NumPy model), "cycle" (its results, with the netlist's exact cycles) or "rtl" (the generated
            netlist, simulated).
        dense: zeros are not skipped; given masks are.
        simulator: of target "rtl": "verilator" or "icarus".
        trace: of target "rtl": file for waveforms (VCD).
        trace_tile: with ``trace``: waveforms of one tile only, the program's RUN of this number, from 0.

    Returns:
        C, int32 (M, N) where acc_width <= 32, else int64; the report, with cycles on targets "cycle" and "rtl"; the
        program.

    Raises:
        MaskworkTypeError: for an operand that is no array of integers, a mask that is none of bool.
        MaskworkValueError: for shapes that do not match, values out of range, a product that could overflow the
            accumulators, an unknown target, a tile that the program does not have.
        ProgramError: if the configuration cannot run it.
        DeviceError: if the device fails.
    """
    masks = {"a_mask": a_mask, "b_mask": b_mask, "c_mask": c_mask}
    product = Product.of(as_config(config), a, b, masks, dense)
    if trace_tile is not None and (trace is None or target != "rtl"):
        raise MaskworkValueError('trace_tile needs trace, and target "rtl"')
    if target == "cycle" and (trace is not None or simulator != "verilator"):
        raise MaskworkValueError(f"{'simulator' if trace is None else 'trace'} needs target 'rtl', not 'cycle'")
    options = {"simulator": simulator, "trace": trace, "trace_tile": trace_tile} if target == "rtl" else {}
    return product.run(target, **options)
