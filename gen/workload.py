"""Workloads: the layers of networks with their shapes and densities, read from CSV (docs/bench.md)."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from maskwork.gen.errors import MaskworkValueError

PASSES = ("forward", "input_grad", "weight_grad")
"""The passes of training, in the order in which they are reported."""

OUTPUT_MASKS = ("element", "position", "none")
"""Kinds of output mask: by element, by position (all channels of it), or no mask at all."""

LARGEST_SIZE = 65536
LARGEST_TENSOR = 1 << 28
"""Limits on one size and on the elements of one tensor, so that a slip is an error and not a machine out of memory."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer: a convolution of NHWC activations, or a fully connected layer as a 1x1 convolution of 1x1 images.

    Densities are fractions of elements that are present. ``density_output_grad`` is that of A in the input gradient
    and of B in the weight gradient; ``density_input_mask`` of C in the input gradient; ``density_weight`` also of C
    in the weight gradient.

    Raises:
        MaskworkValueError: for a kernel that does not fit, groups that do not divide the channels, or huge tensors.
            The message starts with the field.
    """

    network: str
    layer: str
    batch: int
    in_channels: int
    out_channels: int
    in_height: int
    in_width: int
    kernel_height: int
    kernel_width: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    density_input: float = 1.0
    density_weight: float = 1.0
    density_output: float = 1.0
    density_output_grad: float = 1.0
    density_input_mask: float = 1.0
    output_mask: str = "element"
    passes: tuple[str, ...] = PASSES

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise MaskworkValueError(
                    f"groups: must divide {name} ({getattr(self, name)}), which {self.groups} does not"
                )
        for axis in ("height", "width"):
            kernel, size = getattr(self, f"kernel_{axis}"), getattr(self, f"in_{axis}")
            reach, room = self.dilation * (kernel - 1) + 1, size + 2 * self.padding
            if reach > room:
                raise MaskworkValueError(
                    f"kernel_{axis}: must fit the padded input's {room} (with dilation {self.dilation}), "
                    f"not reach {reach}"
                )
        if self.output_mask == "none" and self.density_output < 1:
            raise MaskworkValueError(
                f"density_output: must be 1 where output_mask is none, not {self.density_output:g}"
            )
        for name, shape in (("input", self.input_shape), ("weight", self.weight_shape), ("output", self.output_shape)):
            elements = 1
            for size in shape:
                elements *= size
            if elements > LARGEST_TENSOR:
                raise MaskworkValueError(
                    f"batch: the {name} tensor {shape} must have at most {LARGEST_TENSOR} elements, not {elements}"
                )

    def _check_types(self) -> None:
        for name in ("network", "layer"):
            _check_name(name, getattr(self, name))
        for name, least in _LEAST.items():
            value = getattr(self, name)
            # NumPy's integers, which would overflow, become Python's
            number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
            if number is None or not least <= number <= LARGEST_SIZE:
                raise MaskworkValueError(f"{name}: must be an integer from {least} to {LARGEST_SIZE}, not {value!r}")
            object.__setattr__(self, name, number)
        for name in _DENSITIES:
            value = getattr(self, name)
            number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else -1.0
            if not 0 <= number <= 1:  # also refuses NaN
                raise MaskworkValueError(f"{name}: must be a density from 0 to 1, not {value!r}")
            object.__setattr__(self, name, number)
        if self.output_mask not in OUTPUT_MASKS:
            raise MaskworkValueError(f"output_mask: must be one of {', '.join(OUTPUT_MASKS)}, not {self.output_mask!r}")
        own = self.passes if isinstance(self.passes, tuple) else ()
        if not own or any(which not in PASSES for which in own) or len(set(own)) < len(own):
            raise MaskworkValueError(f"passes: must be a tuple of some of {', '.join(PASSES)}, not {self.passes!r}")

    @property
    def name(self) -> str:
        """``network/layer``."""
        return f"{self.network}/{self.layer}"

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        reach = self.dilation * (self.kernel_height - 1)
        return (self.in_height + 2 * self.padding - reach - 1) // self.stride + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        reach = self.dilation * (self.kernel_width - 1)
        return (self.in_width + 2 * self.padding - reach - 1) // self.stride + 1

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, Cin)."""
        return self.batch, self.in_height, self.in_width, self.in_channels

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(kh, kw, Cin / groups, Cout)."""
        return self.kernel_height, self.kernel_width, self.in_channels // self.groups, self.out_channels

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """(N, OH, OW, Cout)."""
        return self.batch, self.out_height, self.out_width, self.out_channels

    @property
    def macs(self) -> int:
        """Products of a pass, those with padding included."""
        outputs = self.batch * self.out_height * self.out_width * self.out_channels
        return outputs * self.kernel_height * self.kernel_width * (self.in_channels // self.groups)

    def with_batch(self, batch: int) -> Layer:
        """The same layer on another number of images.

        Raises:
            MaskworkValueError: if the tensors become too large.
        """
        try:
            return dataclasses.replace(self, batch=batch)
        except MaskworkValueError as error:
            raise MaskworkValueError(f"{self.name}: {error}") from None


# ---------------------------------------------------------------------- cells


def _check_name(column: str, value: object) -> None:
    if not isinstance(value, str) or not value or "/" in value or not value.isprintable():
        raise MaskworkValueError(f"{column}: must be a name of printable characters without '/', not {value!r}")


def _integer(least: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        number = int(value) if value.isascii() and value.removeprefix("-").isdigit() and len(value) < 19 else None
        if number is None or not least <= number <= LARGEST_SIZE:
            raise MaskworkValueError(f"must be an integer from {least} to {LARGEST_SIZE}, not {value!r}")
        return number

    return read


def _density(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:  # also refuses NaN
        raise MaskworkValueError(f"must be a density from 0 to 1, not {value!r}")
    return number


def _output_mask(value: str) -> str:
    if value not in OUTPUT_MASKS:
        raise MaskworkValueError(f"must be one of {', '.join(OUTPUT_MASKS)}, not {value!r}")
    return value


def _passes(value: str) -> tuple[str, ...]:
    names = [part.strip() for part in value.split("+")]
    for name in names:
        if name not in PASSES:
            raise MaskworkValueError(f"must be some of {', '.join(PASSES)} with '+' between, not {name!r}")
    return tuple(name for name in PASSES if name in names)


_LEAST = {
    **dict.fromkeys(("batch", "in_channels", "out_channels", "in_height", "in_width", "kernel_height", "kernel_width",
                     "stride"), 1), "padding": 0, "dilation": 1, "groups": 1,
}  # fmt: skip
"""Least values of the columns that hold integers."""

_DENSITIES = ("density_input", "density_weight", "density_output", "density_output_grad", "density_input_mask")

_READERS: dict[str, Callable[[str], Any]] = {
    "network": str, "layer": str, **{name: _integer(least) for name, least in _LEAST.items()},
    **dict.fromkeys(_DENSITIES, _density), "output_mask": _output_mask, "passes": _passes,
}  # fmt: skip

COLUMNS = tuple(_READERS)
"""Columns of a workload file; all are needed, others are ignored."""


# ---------------------------------------------------------------------- files


def read_workload(path: str | os.PathLike[str]) -> list[Layer]:
    """The layers of a CSV file whose first row names the columns (:data:`COLUMNS`, in any order).

    Columns of other names are ignored, so that a file may carry notes; empty rows are skipped.

    Raises:
        MaskworkValueError: one line naming file, row (the line of the file, from 1) and column, and what would be
            accepted.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise MaskworkValueError(f"{path}: cannot be read ({error.strerror}); a CSV file is expected") from None
    except UnicodeDecodeError as error:
        raise MaskworkValueError(f"{path}: not a CSV file: byte {error.start} is no UTF-8 text") from None
    return parse_workload(text, str(path))


def parse_workload(text: str, where: str = "workload") -> list[Layer]:
    """The same from the file's text; ``where`` is what messages call it."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    layers: list[Layer] = []
    seen: dict[str, int] = {}
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if header is None:
                header = _header(cells, f"{where}, row {reader.line_num}")
                continue
            layer = _row(header, cells, f"{where}, row {reader.line_num}")
            if layer.name in seen:
                raise MaskworkValueError(
                    f"{where}, row {reader.line_num}, column layer: must differ from row {seen[layer.name]}'s in "
                    f"network {layer.network!r}, not be {layer.layer!r} again"
                )
            seen[layer.name] = reader.line_num
            layers.append(layer)
    except csv.Error as error:
        raise MaskworkValueError(f"{where}, row {reader.line_num}: not CSV ({error})") from None
    if header is None:
        raise MaskworkValueError(f"{where}: empty; a row of column names is expected: {', '.join(COLUMNS)}")
    if not layers:
        raise MaskworkValueError(f"{where}: has no layers; one row or more is expected after the column names")
    return layers


def _header(cells: list[str], where: str) -> list[str]:
    missing = [name for name in COLUMNS if name not in cells]
    if missing:
        raise MaskworkValueError(
            f"{where}: column{'s' * (len(missing) > 1)} {', '.join(missing)} missing; columns: {', '.join(COLUMNS)}"
        )
    for name in COLUMNS:
        if cells.count(name) > 1:
            raise MaskworkValueError(f"{where}: column {name} must be there once, not {cells.count(name)} times")
    return cells


def _row(header: list[str], cells: list[str], where: str) -> Layer:
    if len(cells) != len(header):
        raise MaskworkValueError(f"{where}: must have {len(header)} cells, as many as row 1, not {len(cells)}")
    values: dict[str, Any] = {}
    for name, value in zip(header, cells, strict=True):
        if name in _READERS:
            try:
                values[name] = _READERS[name](value)
            except MaskworkValueError as error:
                raise MaskworkValueError(f"{where}, column {name}: {error}") from None
    try:
        return Layer(**values)
    except MaskworkValueError as error:
        raise MaskworkValueError(f"{where}, column {error}") from None


# ---------------------------------------------------------------------- choices


def choose_layers(layers: Iterable[Layer], patterns: Iterable[str] | None) -> list[Layer]:
    """Layers whose name, or ``network/layer``, one of the patterns matches (``*`` and ``?`` as in a shell).

    Raises:
        MaskworkValueError: if a pattern matches none; the message lists the layers.
    """
    from fnmatch import fnmatchcase

    layers = list(layers)
    if patterns is None:
        return layers
    chosen: set[str] = set()
    for pattern in patterns:
        found = [x.name for x in layers if fnmatchcase(x.layer, pattern) or fnmatchcase(x.name, pattern)]
        if not found:
            raise MaskworkValueError(f"layers: {pattern!r} matches none; layers: {', '.join(x.name for x in layers)}")
        chosen.update(found)
    return [x for x in layers if x.name in chosen]
