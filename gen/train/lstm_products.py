"""The integer products of an LSTM layer's training step on a device, with structured dropout, exact and counted.

Dropout drops the same units for the whole batch and draws them anew every time step (Sarma et al., "Structured Dropout
for Faster LSTM Training", 2021). Of a step's products z_t = (m_t * x_t) W + (r_t * h_{t-1}) U, with m_t and r_t vectors
of bools:

    project       x W for all t        the contraction index skips where m_t is False
    recur         h_{t-1} U            the same with r_t
    recur_grad    dz_t U^T             columns of the result skip
    project_grad  dz W^T for all t     the same
    weight_grad   x^T dz, h^T dz       one product over all t and the batch; rows of A skip where units were dropped

``project`` and ``project_grad`` know all masks beforehand. They run either step by step, with vector masks (dropped
rows or columns of W are not even loaded), or as one product over all t with element masks, which loads W once or
twice: that is taken unless the steps are expected to take clearly fewer cycles.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from maskwork.gen.check import check_range
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.gen.execute import Execution, execute
from maskwork.gen.lower_matmul import expected_cycles, lower_matmul
from maskwork.gen.mask import BoolArray, as_bool
from maskwork.gen.program import Program
from maskwork.gen.report import make_report
from numpy.typing import NDArray

if TYPE_CHECKING:
    from maskwork.sim_tb.device import Device

IntArray = NDArray[Any]
Int64Array = NDArray[np.int64]

PASS_OF = {
    "project": "forward", "recur": "forward", "recur_grad": "input_grad", "project_grad": "input_grad",
    "weight_grad": "weight_grad",
}  # fmt: skip
"""The pass that each product belongs to."""

STEPS_PAY = 0.95
"""Expected cycles of running step by step against those of one product, at most, for that to be done: every step loads
the weights of its kept units again."""

UNEVEN = 1.8
"""How much longer the fullest PE of a lane takes than their mean where C masks want some columns only, in standard
deviations of a PE's columns; measured at 650 units, half of them kept, on preset sim-64: 1.30 times as long."""


def expect_shape(name: str, array: Any, shape: tuple[int, ...], why: str) -> NDArray[Any]:
    """An array that has this shape.

    Raises:
        MaskworkValueError: naming the array, the shape and why it is expected.
    """
    array = np.asarray(array)
    if array.shape != shape:
        raise MaskworkValueError(f"{name} must have shape {shape} ({why}), not {array.shape}")
    return array


def as_keep(keep: Any, shape: tuple[int, ...], name: str = "keep") -> BoolArray:
    """A mask of kept units, bools or 0 and 1.

    Raises:
        MaskworkTypeError, MaskworkValueError: for another dtype or shape.
    """
    return expect_shape(name, as_bool(keep, name), shape, "a bool for each unit and step")


class LstmProducts:
    """The products of LSTM layers on one device.

    All arrays are integers within a_width and b_width bits, signed: each may become the operand that streams. T steps,
    N sequences of a batch, I inputs, H units, G = 4 H gates.

    Args:
        device: an open device.
        by_step: whether ``project`` and ``project_grad`` run step by step where they have masks; None lets expected
            cycles decide.

    Members:
        reports: one of each product that ran, in order: docs/formats.md's keys of a layer, and ``product``, ``pass``
            and ``by_step``. No cycles on targets that count none.
    """

    def __init__(self, device: Device, by_step: bool | None = None) -> None:
        self.device = device
        self.by_step = by_step
        self.reports: list[dict[str, Any]] = []

    @property
    def config(self) -> Config:
        """The device's configuration."""
        return self.device.config

    # ------------------------------------------------------------------ forward

    def project(self, x: IntArray, w: IntArray, keep: Any = None) -> Int64Array:
        """The input's share of the gates at all steps.

        Args:
            x: (T, N, I).
            w: (I, G).
            keep: units of x kept at each step, (T, I); None keeps all.

        Returns:
            (T, N, G).

        Raises:
            MaskworkTypeError, MaskworkValueError: for operands or masks that do not fit.
            ProgramError: if the configuration cannot run it.
            DeviceError: if the device fails.
        """
        x = self._cube("x", x)
        steps, batch, inputs = x.shape
        w = self._matrix("w", w, 0, inputs, "the units of x")
        if keep is None:
            return self._apart(self._multiply("project", self._together(x), w), steps)
        keep = as_keep(keep, (steps, inputs))
        if self._prefers_steps(
            expected_cycles(self.config, steps * batch, inputs, w.shape[1], (self._skipped("a", keep), 1.0)),
            [(batch, kept, w.shape[1]) for kept in _counts(keep)],
        ):
            return np.stack([self._multiply("project", x[t], w, k=keep[t], by_step=True) for t in range(steps)])
        return self._apart(self._multiply("project", self._together(np.where(keep[:, None], x, 0)), w), steps)

    def recur(self, h: IntArray, u: IntArray, keep: Any = None) -> Int64Array:
        """The state's share of the gates of one step, (N, G), of h (N, H) and u (H, G).

        Args:
            h: the state of the step before.
            u: the recurrent weights.
            keep: units of h kept at this step, (H,); None keeps all.

        Raises:
            As :meth:`project`.
        """
        h = self._plane("h", h)
        u = self._matrix("u", u, 0, h.shape[1], "the units of h")
        return self._multiply("recur", h, u, k=None if keep is None else as_keep(keep, (h.shape[1],)), by_step=True)

    # ------------------------------------------------------------------ backward through time

    def recur_grad(self, dz: IntArray, u: IntArray, keep: Any = None) -> Int64Array:
        """The gradient that one step sends to the state before it, (N, H); exactly 0 where units were dropped.

        Args:
            dz: gradient of the step's gates, (N, G).
            u: (H, G).
            keep: as it was in :meth:`recur`.

        Raises:
            As :meth:`project`.
        """
        dz = self._plane("dz", dz)
        u = self._matrix("u", u, 1, dz.shape[1], "the gates of dz")
        keep = None if keep is None else as_keep(keep, (u.shape[0],))
        return self._multiply("recur_grad", dz, np.asarray(u).T, n=keep, by_step=True)

    def project_grad(self, dz: IntArray, w: IntArray, keep: Any = None) -> Int64Array:
        """The input's gradient at all steps, (T, N, I); exactly 0 where units were dropped.

        Args:
            dz: gradient of all gates, (T, N, G).
            w: (I, G).
            keep: as it was in :meth:`project`.

        Raises:
            As :meth:`project`.
        """
        dz = self._cube("dz", dz)
        steps, batch, gates = dz.shape
        w = self._matrix("w", w, 1, gates, "the gates of dz").T
        if keep is None:
            return self._apart(self._multiply("project_grad", self._together(dz), w), steps)
        inputs = w.shape[1]
        keep = as_keep(keep, (steps, inputs))
        share = self._skipped("c", keep)
        uneven = 1 + UNEVEN * np.sqrt((1 - share) / (share * self.config.slots) / 2)
        if self._prefers_steps(
            expected_cycles(self.config, steps * batch, gates, inputs, (1.0, 1.0)) * share * uneven,
            [(batch, gates, kept) for kept in _counts(keep)],
        ):
            return np.stack([self._multiply("project_grad", dz[t], w, n=keep[t], by_step=True) for t in range(steps)])
        wanted = self._together(np.broadcast_to(keep[:, None], (steps, batch, inputs)))
        return self._apart(self._multiply("project_grad", self._together(dz), w, c_mask=wanted), steps)

    def weight_grad(self, x: IntArray, dz: IntArray, keep: Any = None) -> Int64Array:
        """The gradient of W (or of U, with the states before each step as x), (I, G): the sum over all steps and
        sequences. Rows of units that no step kept are exactly 0.

        Args:
            x: (T, N, I).
            dz: (T, N, G).
            keep: as it was in the forward pass, (T, I); None keeps all.

        Raises:
            As :meth:`project`.
        """
        x, dz = self._cube("x", x), self._cube("dz", dz)
        expect_shape("dz", dz, (*x.shape[:2], dz.shape[2]), "the steps and sequences of x")
        ever = None
        if keep is not None:
            keep = as_keep(keep, (x.shape[0], x.shape[2]))
            x, ever = np.where(keep[:, None], x, 0), keep.any(axis=0)
        return self._multiply("weight_grad", self._together(x).T, self._together(dz), m=ever)

    # ------------------------------------------------------------------ one product

    def _multiply(
        self, product: str, a: IntArray, b: IntArray, *, m: BoolArray | None = None, k: BoolArray | None = None,
        n: BoolArray | None = None, c_mask: BoolArray | None = None, by_step: bool = False,
    ) -> Int64Array:  # fmt: skip
        """The product a . b with vector masks, its operands exchanged where fewer cycles are expected."""
        shape = (a.shape[0], b.shape[1])
        rows, inner, columns = (
            np.arange(size) if keep is None else np.flatnonzero(keep)
            for keep, size in ((m, shape[0]), (k, a.shape[1]), (n, shape[1]))
        )
        if not (len(rows) and len(inner) and len(columns)):
            return np.zeros(shape, dtype=np.int64)
        kept_a, kept_b = a[np.ix_(rows, inner)], b[np.ix_(inner, columns)]
        density = (self._filled("a", kept_a), self._filled("b", kept_b))
        exchanged = c_mask is None and self._expected(
            len(columns), len(inner), len(rows), (self._filled("a", kept_b), self._filled("b", kept_a))
        ) < self._expected(len(rows), len(inner), len(columns), density)
        if exchanged:
            a, b, m, n, rows, columns = b.T, a.T, n, m, columns, rows
            density = (self._filled("a", kept_b), self._filled("b", kept_a))
        operands = {"a": a, "b": b} | ({} if c_mask is None else {"c_mask": c_mask})
        wanted = 1.0 if c_mask is None else max(1e-4, float(c_mask.mean()))
        program = lower_matmul(
            self.config, a.shape[0], a.shape[1], b.shape[1], use_c=c_mask is not None, m_keep=m, k_keep=k, n_keep=n,
            density=(*density, wanted),
        )  # fmt: skip
        macs = {
            "macs_dense": a.shape[0] * a.shape[1] * b.shape[1],
            "macs_effectual": _effectual(kept_a, kept_b, c_mask),
        }
        done = self._run(program, operands, (len(rows), len(inner), len(columns)))
        report = make_report(
            type(self.device).__name__, self.config, macs, words_in=done.words_in, words_out=done.words_out,
            seconds=0.0, counters=done.counters,
        )  # fmt: skip
        names = {"product": product, "pass": PASS_OF[product], "by_step": by_step, "exchanged": exchanged}
        self.reports.append({**names, **{key: v for key, v in report.items() if key not in ("target", "config")}})
        result = done.outputs["c"].astype(np.int64)
        return result.T if exchanged else result

    def _run(self, program: Program, operands: dict[str, NDArray[Any]], kept: tuple[int, int, int]) -> Execution:
        """Run a program; ``kept``: rows, contraction indices and columns that vector masks leave."""
        return execute(self.device, program, operands)

    # ------------------------------------------------------------------ choices and checks

    def _expected(self, m: int, k: int, n: int, density: tuple[float, float]) -> float:
        return expected_cycles(self.config, m, k, n, density)

    def _filled(self, role: str, operand: IntArray) -> float:
        """Share of an operand that takes multiplies."""
        return max(1e-4, np.count_nonzero(operand) / operand.size) if role in self.config.skip else 1.0

    def _skipped(self, role: str, keep: BoolArray) -> float:
        """Share of the multiplies that an element mask leaves."""
        return max(1e-4, float(keep.mean())) if role in self.config.skip else 1.0

    def _prefers_steps(self, whole: float, steps: list[tuple[int, int, int]]) -> bool:
        if self.by_step is not None:
            return self.by_step
        sizes = Counter(size for size in steps if all(size))
        return sum(self._expected(*size, (1.0, 1.0)) * n for size, n in sizes.items()) < STEPS_PAY * whole

    @staticmethod
    def _together(cube: NDArray[Any]) -> NDArray[Any]:
        """Sequences one after the other, (N * T, units): all steps' masks then meet in every K tile and cluster."""
        return cube.swapaxes(0, 1).reshape(-1, cube.shape[2])

    @staticmethod
    def _apart(rows: Int64Array, steps: int) -> Int64Array:
        return rows.reshape(-1, steps, rows.shape[1]).swapaxes(0, 1)

    def _cube(self, name: str, array: Any) -> NDArray[Any]:
        return self._operand(name, array, ("step", "sequence", "unit"))

    def _plane(self, name: str, array: Any) -> NDArray[Any]:
        return self._operand(name, array, ("sequence", "unit"))

    def _matrix(self, name: str, array: Any, axis: int, size: int, why: str) -> NDArray[Any]:
        array = self._operand(name, array, ("row", "column"))
        if array.shape[axis] != size:
            kind = ("rows", "columns")[axis]
            raise MaskworkValueError(f"{name} must have {size} {kind}, {why}, not shape {array.shape}")
        return array

    def _operand(self, name: str, array: Any, axes: tuple[str, ...]) -> NDArray[Any]:
        array = np.asarray(array)
        if array.dtype.kind not in "iu":
            raise MaskworkTypeError(f"{name} must be an array of integers, not {array.dtype}")
        if array.ndim != len(axes) or not array.size:
            raise MaskworkValueError(f"{name} must have axes ({', '.join(axes)}) of 1 or more, not {array.shape}")
        check_range(name, array, min(self.config.a_width, self.config.b_width))
        return array


def _counts(keep: BoolArray) -> list[int]:
    return np.count_nonzero(keep, axis=1).tolist()


def _effectual(a: IntArray, b: IntArray, c_mask: BoolArray | None) -> int:
    from maskwork.sim_tb.golden import macs

    return macs(a, b, c_mask=c_mask)["macs_effectual"]
