"""Masks: one object that says which elements of an operand exist (or, for C, are wanted).

The same object drives the hardware (through :func:`maskwork.gen.program.bind`), the golden model and the cycle
model. Notation: C<Mc> = A<Ma> . B<Mb>, with A (m, k), B (k, n) and C (m, n).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]

AXES = ("m", "k", "n")


def as_bool(values: Any, what: str = "mask") -> BoolArray:
    """A bool array from bools, or from integers that are all 0 or 1.

    Raises:
        MaskworkTypeError: for another dtype.
        MaskworkValueError: for integers other than 0 and 1.
    """
    array = np.asarray(values)
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind not in "iu":
        raise MaskworkTypeError(f"{what} must be an array of bool (or of integers 0 and 1), not {array.dtype}")
    if array.size and (array.min() < 0 or array.max() > 1):
        raise MaskworkValueError(f"{what} must hold only 0 and 1, not {int(array.min())} to {int(array.max())}")
    return array.astype(np.bool_)


@dataclass(frozen=True)
class _Element:
    array: BoolArray


@dataclass(frozen=True)
class _Vector:
    axis: str
    array: BoolArray


@dataclass(frozen=True)
class _Blocks:
    shape: tuple[int, int]
    rectangles: tuple[tuple[int, int, int, int], ...]


class Mask:
    """Which elements of an operand are kept. Kinds: absent, element bitmap, vector over an axis, list of blocks.

    Kinds combine with ``&`` (an element is kept if every part keeps it). Arrays of more than two axes are seen as
    matrices: the last axis stays, the others are flattened.
    """

    __slots__ = ("_terms",)

    def __init__(self, terms: Iterable[_Element | _Vector | _Blocks] = ()) -> None:
        self._terms = tuple(terms)

    # ------------------------------------------------------------------ makers

    @classmethod
    def absent(cls) -> Mask:
        """Everything is kept, and no bitmap travels for it."""
        return cls()

    @classmethod
    def element(cls, array: Any) -> Mask:
        """One bit for each element: ``array`` has the operand's shape (bool, or integers 0 and 1).

        Raises:
            MaskworkTypeError, MaskworkValueError: for anything else.
        """
        bits = as_bool(array, "element mask")
        if bits.ndim < 1:
            raise MaskworkValueError("element mask must have one axis or more, not a single value")
        return cls((_Element(bits),))

    @classmethod
    def vector(cls, axis: str, array: Any) -> Mask:
        """One bit for each index of the axis "m", "k" or "n"; removed rows and columns are not even loaded.

        Raises:
            MaskworkTypeError, MaskworkValueError: for another axis, or an array that is no vector of bools.
        """
        if axis not in AXES:
            raise MaskworkValueError(f'axis of a vector mask must be "m", "k" or "n", not {axis!r}')
        bits = as_bool(array, f"vector mask over {axis}")
        if bits.ndim != 1:
            raise MaskworkValueError(f"vector mask over {axis} must have one axis, not shape {bits.shape}")
        return cls((_Vector(axis, bits),))

    @classmethod
    def blocks(cls, shape: Sequence[int], rectangles: Iterable[Sequence[int]]) -> Mask:
        """Kept rectangles ``(row, column, height, width)`` of a matrix of ``shape``; the rest is removed.

        Raises:
            MaskworkTypeError, MaskworkValueError: for a rectangle that does not lie in the matrix.
        """
        try:
            rows, columns = (int(v) for v in shape)
        except (TypeError, ValueError):
            raise MaskworkTypeError(f"shape of a block mask must be two integers, not {shape!r}") from None
        if rows < 0 or columns < 0:
            raise MaskworkValueError(f"shape of a block mask must not be negative, not {(rows, columns)}")
        kept: list[tuple[int, int, int, int]] = []
        for rectangle in rectangles:
            try:
                r, c, h, w = (int(v) for v in rectangle)
            except (TypeError, ValueError):
                raise MaskworkTypeError(
                    f"a block must be four integers (row, column, height, width), not {rectangle!r}"
                ) from None
            if min(r, c) < 0 or min(h, w) < 1 or r + h > rows or c + w > columns:
                raise MaskworkValueError(f"block {(r, c, h, w)} must lie within the mask's shape {(rows, columns)}")
            kept.append((r, c, h, w))
        return cls((_Blocks((rows, columns), tuple(kept)),))

    def __and__(self, other: Mask) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        return Mask(self._terms + other._terms)

    # ------------------------------------------------------------------ what it says

    @property
    def is_absent(self) -> bool:
        """Whether nothing is removed because no mask was given."""
        return not self._terms

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds combined: "element", "vector m" (k, n) and "blocks"; empty when absent."""
        names = []
        for term in self._terms:
            if isinstance(term, _Vector):
                names.append(f"vector {term.axis}")
            else:
                names.append("element" if isinstance(term, _Element) else "blocks")
        return tuple(names)

    def __repr__(self) -> str:
        return f"Mask({' & '.join(self.kinds) or 'absent'})"

    def to_array(self, shape: Sequence[int], axes: str | None = None) -> BoolArray:
        """The mask as bool array of ``shape``.

        Args:
            shape: the operand's shape.
            axes: the two axes of the operand seen as a matrix: "mk", "kn" or "mn". Needed only for a vector over k
                when both sides have its length; m is otherwise the first axis, n the last.

        Raises:
            MaskworkValueError: if a part's shape does not match.
        """
        shape = tuple(int(v) for v in shape)
        if axes is not None and axes not in ("mk", "kn", "mn"):
            raise MaskworkValueError(f'axes of a mask must be "mk", "kn" or "mn", not {axes!r}')
        columns = shape[-1] if shape else 1
        rows = int(np.prod(shape[:-1], dtype=np.int64)) if shape else 1
        result = np.ones((rows, columns), dtype=np.bool_)
        for term in self._terms:
            if isinstance(term, _Element):
                if term.array.shape not in (shape, (rows, columns)):
                    raise MaskworkValueError(
                        f"element mask has shape {term.array.shape}; the operand's shape {shape} is expected"
                    )
                result &= term.array.reshape(rows, columns)
            elif isinstance(term, _Vector):
                along_rows = self._along_rows(term, rows, columns, axes)
                length = rows if along_rows else columns
                if len(term.array) != length:
                    raise MaskworkValueError(
                        f"vector mask over {term.axis} has length {len(term.array)}; {length} is expected for an "
                        f"operand of shape {shape}"
                    )
                result &= term.array[:, None] if along_rows else term.array[None, :]
            else:
                if term.shape != (rows, columns):
                    raise MaskworkValueError(
                        f"block mask has shape {term.shape}; {(rows, columns)} is expected for an operand of "
                        f"shape {shape}"
                    )
                kept = np.zeros((rows, columns), dtype=np.bool_)
                for r, c, h, w in term.rectangles:
                    kept[r : r + h, c : c + w] = True
                result &= kept
        return result.reshape(shape)

    @staticmethod
    def _along_rows(term: _Vector, rows: int, columns: int, axes: str | None) -> bool:
        if axes is not None:
            if term.axis not in axes:
                raise MaskworkValueError(
                    f'vector mask over {term.axis} does not fit an operand with axes "{axes}"; '
                    f"{' or '.join(axes)} is expected"
                )
            return axes[0] == term.axis
        if term.axis != "k":
            return term.axis == "m"
        if rows == columns:
            raise MaskworkValueError('vector mask over k fits both sides of a square operand; give axes "mk" or "kn"')
        return len(term.array) == rows

    def axis_keep(self, axis: str, length: int) -> BoolArray:
        """Which of the ``length`` indices of an axis the vector masks keep (all, if there are none over it).

        Raises:
            MaskworkValueError: for another axis, or if a vector mask has another length.
        """
        if axis not in AXES:
            raise MaskworkValueError(f'axis must be "m", "k" or "n", not {axis!r}')
        keep = np.ones(length, dtype=np.bool_)
        for term in self._terms:
            if isinstance(term, _Vector) and term.axis == axis:
                if len(term.array) != length:
                    raise MaskworkValueError(
                        f"vector mask over {axis} has length {len(term.array)}; {length} is expected"
                    )
                keep &= term.array
        return keep

    def density(self, shape: Sequence[int], axes: str | None = None) -> float:
        """Kept fraction of an operand of ``shape`` (1.0 for an empty one)."""
        array = self.to_array(shape, axes)
        return float(array.mean()) if array.size else 1.0
