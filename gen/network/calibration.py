"""Samples for calibration as a model's inputs, and running models on them with onnxruntime."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import onnx
from maskwork.gen.errors import MaskworkError, MaskworkTypeError, MaskworkValueError
from maskwork.gen.network.graph import first_line, text_shape
from numpy.typing import NDArray
from onnx import helper

Feed = dict[str, NDArray[Any]]
Samples = Mapping[str, Any] | Iterable[Mapping[str, Any]]

_QUIET, _USUAL = 3, 2
"""onnxruntime's severities: errors, and warnings, with which it starts."""


def runtime() -> Any:
    """The module onnxruntime, with its quantisation.

    Raises:
        MaskworkError: if it is not installed.
    """
    try:
        found = importlib.import_module("onnxruntime")
        importlib.import_module("onnxruntime.quantization")
    except ImportError as error:
        raise MaskworkError(
            f"quantising needs onnxruntime ({first_line(error)}); install it with pip install 'maskwork[onnx]'"
        ) from None
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Keep onnxruntime's advice, and that of the libraries it uses, to itself."""
    onnxruntime = runtime()
    root, disabled = logging.getLogger(), logging.root.manager.disable
    handlers = list(root.handlers)
    logging.disable(logging.CRITICAL)
    onnxruntime.set_default_logger_severity(_QUIET)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        onnxruntime.set_default_logger_severity(_USUAL)
        logging.disable(disabled)
        for handler in set(root.handlers) - set(handlers):  # logging.warning() makes one where there is none
            root.removeHandler(handler)


# ---------------------------------------------------------------------- samples


def feeds(where: str, model: onnx.ModelProto, samples: Samples) -> list[Feed]:
    """Samples as inputs of the model, one run each.

    Args:
        where: the model in messages.
        model: the model; its batch axis may be dynamic.
        samples: arrays by input name, or an iterable of whole inputs by name. Arrays have the samples along their
            first axis: in the place of the input's own first axis (its batch, if that is dynamic every sample runs
            alone), or in front of all its axes.

    Raises:
        MaskworkTypeError, MaskworkValueError: for an input that is missing, unknown, empty, of another shape or type,
            or not finite.
    """
    known = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in known}
    if isinstance(samples, Mapping):
        return _from_arrays(where, inputs, cast("Mapping[str, Any]", samples))
    if isinstance(samples, str | bytes | np.ndarray) or not isinstance(samples, Iterable):
        raise MaskworkTypeError("samples must be a dict of arrays or an iterable of dicts, by input name, not "
                                f"{type(samples).__name__}")  # fmt: skip
    found = []
    for number, sample in enumerate(samples):
        if not isinstance(sample, Mapping):
            raise MaskworkTypeError(f"sample {number} must be a dict of arrays by input name, not "
                                    f"{type(sample).__name__}")  # fmt: skip
        _check_names(where, inputs, sample)
        found.append({name: _fitting(f"sample {number}: input {name!r}", value, sample[name])
                      for name, value in inputs.items()})  # fmt: skip
    if not found:
        raise MaskworkValueError("there are no samples; calibration needs at least one")
    return found


def _check_names(where: str, inputs: Mapping[str, onnx.ValueInfoProto], given: Mapping[str, Any]) -> None:
    for name in given:
        if name not in inputs:
            raise MaskworkValueError(f"samples: {where} has no input {name!r}; inputs: {', '.join(inputs)}")
    for name, value in inputs.items():
        if name not in given:
            raise MaskworkValueError(f"samples: input {name!r} is missing; its shape is {text_shape(value)}")


def _from_arrays(
    where: str, inputs: Mapping[str, onnx.ValueInfoProto], samples: Mapping[str, Any]
) -> list[Feed]:  # fmt: skip
    _check_names(where, inputs, samples)
    columns: dict[str, list[NDArray[Any]]] = {}
    for name, value in inputs.items():
        array, sizes = np.asarray(samples[name]), _sizes(value)
        what = f"samples: input {name!r}"
        if array.ndim == len(sizes) + 1:
            parts = list(array)
        elif array.ndim == len(sizes) and sizes:
            each = sizes[0] or 1
            if len(array) % each:
                raise MaskworkValueError(f"{what} has shape {text_shape(value)}: {len(array)} samples are no multiple "
                                         f"of {each}")  # fmt: skip
            parts = [array[at : at + each] for at in range(0, len(array), each)]
        else:
            raise MaskworkValueError(f"{what} must have shape {text_shape(value)}, with samples along the first axis "
                                     f"or an axis in front, not {list(array.shape)}")  # fmt: skip
        if not parts:
            raise MaskworkValueError(f"{what}: there are no samples; calibration needs at least one")
        columns[name] = [_fitting(what, value, part) for part in parts]
    counts = {name: len(parts) for name, parts in columns.items()}
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{count} of {name!r}" for name, count in counts.items())
        raise MaskworkValueError(f"samples: every input needs as many as the others, not {text}")
    return [dict(zip(columns, parts, strict=True)) for parts in zip(*columns.values(), strict=True)]


def _sizes(value: onnx.ValueInfoProto) -> list[int | None]:
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]


def _fitting(what: str, value: onnx.ValueInfoProto, given: Any) -> NDArray[Any]:
    """A whole input, in the model's type."""
    array, sizes = np.asarray(given), _sizes(value)
    wanted = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    if len(sizes) != array.ndim or any(s not in (None, n) for s, n in zip(sizes, array.shape, strict=True)):
        raise MaskworkValueError(f"{what} must have shape {text_shape(value)}, not {list(array.shape)}")
    if 0 in array.shape:
        raise MaskworkValueError(f"{what} has shape {list(array.shape)}; positive sizes are expected")
    if array.dtype.kind not in "iufb" or not np.can_cast(array.dtype, wanted, "same_kind"):
        raise MaskworkTypeError(f"{what} must be {wanted}, not {array.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise MaskworkValueError(f"{what} must be finite; there are infinities or NaNs in it")
    return np.ascontiguousarray(array, dtype=wanted)


def reader(samples: Sequence[Feed]) -> Any:
    """The samples as onnxruntime's CalibrationDataReader."""
    base = importlib.import_module("onnxruntime.quantization").CalibrationDataReader

    class Reader(base):
        """Hands over one sample after the other."""

        def __init__(self) -> None:
            self._left = iter(samples)

        def get_next(self) -> Feed | None:
            """The next sample, None behind the last."""
            return next(self._left, None)

    return Reader()


# ---------------------------------------------------------------------- running


def outputs(where: str, model: onnx.ModelProto, names: Sequence[str], samples: Iterable[Feed]) -> Iterator[Feed]:
    """Tensors of a model for every sample, computed node by node as the file says: no fusion, no 16-bit sums.

    Args:
        where: the model in messages.
        model: the model.
        names: tensors, outputs or not.
        samples: inputs.

    Raises:
        MaskworkValueError: if onnxruntime cannot run it.
    """
    onnxruntime = runtime()
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    there = {value.name for value in opened.graph.output}
    opened.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names if n not in there)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(opened.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for sample in samples:
            yield dict(zip(names, session.run(list(names), sample), strict=True))
    except MaskworkError:
        raise
    except Exception as error:  # its exceptions have no common base but this
        raise MaskworkValueError(f"{where}: onnxruntime cannot run it: {first_line(error)}") from None
