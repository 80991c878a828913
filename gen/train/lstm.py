"""An LSTM layer in training with structured dropout: integer products on a device, gate functions on the host.

    z_t = (m_t * x_t) W / (1 - p) + (r_t * h_{t-1}) U / (1 - q) + b          gates i, f, g, o: four blocks of H columns
    c_t = s(f) c_{t-1} + s(i) tanh(g)        h_t = s(o) tanh(c_t)            s: the logistic function

m_t and r_t drop units for the whole batch, anew every step, and come back unchanged in backward through time (Sarma et
al., "Structured Dropout for Faster LSTM Training", 2021). Every tensor is rounded to integers of ``bits`` bits with a
power of two as its scale; the products of those integers are exact (:mod:`maskwork.gen.train.lstm_products`), and
gates, their derivatives and the factors 1 / (1 - p) are float64 on the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.gen.mask import BoolArray
from maskwork.gen.train.lstm_products import Int64Array, LstmProducts, as_keep, expect_shape
from maskwork.gen.train.numerics import Quantised, least_exponent
from numpy.typing import NDArray

if TYPE_CHECKING:
    from maskwork.sim_tb.device import Device

Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class Weights:
    """Parameters of a layer, or their gradients.

    Members:
        w: of the input, float64 (I, 4 H).
        u: of the state, (H, 4 H).
        b: bias, (4 H,).
    """

    w: Float64Array
    u: Float64Array
    b: Float64Array

    @property
    def units(self) -> int:
        """H."""
        return self.u.shape[0]


@dataclass(frozen=True)
class Dropout:
    """Which units a training step keeps, and what the kept ones are multiplied by.

    Members:
        x: units of the input kept at each step, bool (T, I); None keeps all: no non-recurrent dropout.
        h: units of the state h_{t-1} that step t keeps, bool (T, H); None: no recurrent dropout.
        x_rate: probability that a unit of the input was dropped.
        h_rate: the same of the state.
    """

    x: BoolArray | None = None
    h: BoolArray | None = None
    x_rate: float = 0.0
    h_rate: float = 0.0

    def __post_init__(self) -> None:
        for name, rate in (("x_rate", self.x_rate), ("h_rate", self.h_rate)):
            if not 0 <= rate < 1:
                raise MaskworkValueError(f"{name} must be a probability of 0 or more and less than 1, not {rate!r}")

    @classmethod
    def draw(
        cls, rng: np.random.Generator, steps: int, inputs: int, units: int, x_rate: float = 0.0, h_rate: float = 0.0
    ) -> Dropout:
        """Masks of every step, each unit on its own; none where a rate is 0."""
        x, h = (rng.random((steps, size)) >= rate if rate else None for size, rate in ((inputs, x_rate),
                                                                                       (units, h_rate)))  # fmt: skip
        return cls(x, h, x_rate, h_rate)


def quantise(tensor: Any, bits: int, name: str = "tensor", largest: float | None = None) -> Quantised:
    """Round to signed integers of ``bits`` bits, symmetric, with the least power of two as scale that holds them.

    Args:
        tensor: floats.
        bits: of the integers.
        name: what messages call the tensor.
        largest: the scale's bound where other tensors share it; by default the largest magnitude.

    Raises:
        MaskworkValueError: for values that are not finite.
    """
    array = np.asarray(tensor, dtype=np.float64)
    if not np.isfinite(array).all():
        raise MaskworkValueError(f"{name} must be finite, but holds infinities or NaN")
    limit = (1 << (bits - 1)) - 1
    exponent = least_exponent(float(np.abs(array).max(initial=0.0)) if largest is None else largest, limit)
    return Quantised(np.clip(np.rint(np.ldexp(array, -exponent)), -limit, limit).astype(np.int64), exponent)


@dataclass(frozen=True)
class Tape:
    """What the forward pass leaves for the backward pass, masks included.

    Members:
        dropout: the masks, to be replayed.
        bits: of every integer operand.
        x: the input, (T, N, I).
        h: the states before each step, (T, N, H).
        w, u: the weights.
        gates: s(i), s(f), tanh(g), s(o), float64 (4, T, N, H).
        cells: c_0 to c_T, (T + 1, N, H).
        starts: whether h_0 is given: it may not be 0 then.
    """

    dropout: Dropout
    bits: int
    x: Quantised
    h: Quantised
    w: Quantised
    u: Quantised
    gates: Float64Array
    cells: Float64Array
    starts: bool


@dataclass(frozen=True)
class Gradients:
    """Of the parameters and, for the layer below, of its input, (T, N, I)."""

    weights: Weights
    x: Float64Array


def _products(device: Device | LstmProducts) -> LstmProducts:
    return device if isinstance(device, LstmProducts) else LstmProducts(device)


def _bits(products: LstmProducts, bits: int) -> int:
    most = min(products.config.a_width, products.config.b_width)
    if not isinstance(bits, int) or not 2 <= bits <= most:
        raise MaskworkValueError(f"bits must be an integer from 2 to {most} (a_width and b_width), not {bits!r}")
    return bits


def _checked(weights: Weights, x: Float64Array) -> None:
    if x.ndim != 3 or not x.size:
        raise MaskworkValueError(f"x must have axes (step, sequence, unit) of 1 or more, not {x.shape}")
    gates = 4 * weights.units
    expect_shape("w", weights.w, (x.shape[2], gates), "the inputs of x, four gates of each unit")
    expect_shape("u", weights.u, (weights.units, gates), "four gates of each unit")
    expect_shape("b", weights.b, (gates,), "four gates of each unit")


def forward(
    device: Device | LstmProducts,
    weights: Weights,
    x: Any,
    dropout: Dropout | None = None,
    *,
    initial: tuple[Any, Any] | None = None,
    bits: int = 8,
) -> tuple[Float64Array, Tape]:
    """Run a layer over a sequence.

    Args:
        device: an open device, or :class:`LstmProducts` of one, which then counts what ran.
        weights: the parameters.
        x: float (T, N, I).
        dropout: masks of this training step; None drops nothing.
        initial: state and cell before the first step, (N, H) each; None: zeros, whose product is left out.
        bits: of all integers.

    Returns:
        The states h_1 to h_T, float64 (T, N, H), and what :func:`backward` needs.

    Raises:
        MaskworkTypeError, MaskworkValueError: for shapes or masks that do not fit, values that are not finite, or a
            product that could overflow.
        ProgramError: if the configuration cannot run a product.
        DeviceError: if the device fails.
    """
    products, dropout = _products(device), dropout or Dropout()
    bits = _bits(products, bits)
    x = np.asarray(x, dtype=np.float64)
    _checked(weights, x)
    (steps, batch, inputs), units = x.shape, weights.units
    for name, mask, size in (("dropout.x", dropout.x, inputs), ("dropout.h", dropout.h, units)):
        if mask is not None:
            as_keep(mask, (steps, size), name)
    h, c = np.zeros((2, batch, units)) if initial is None else (
        expect_shape(f"initial {name}", np.asarray(v, dtype=np.float64), (batch, units), "sequences, units")
        for name, v in zip(("state", "cell"), initial, strict=True))  # fmt: skip
    xq, wq, uq = (quantise(v, bits, name) for v, name in ((x, "x"), (weights.w, "w"), (weights.u, "u")))
    # all states share one scale, for the weight gradient sums over them; beyond the first they are within 1
    top = max(1.0, float(np.abs(h).max()))
    given = _scaled(products.project(xq.values, wq.values, dropout.x), xq.scale * wq.scale / (1 - dropout.x_rate))
    states, hs, gates, cells = [], [], np.zeros((4, steps, batch, units)), [c]
    for t in range(steps):
        hq = quantise(h, bits, "initial state" if t == 0 else "h", top)
        states.append(hq.values)
        z = given[t] + weights.b
        if t or initial is not None:
            keep = None if dropout.h is None else np.asarray(dropout.h)[t]
            z += _scaled(products.recur(hq.values, uq.values, keep), hq.scale * uq.scale / (1 - dropout.h_rate))
        i, f, g, o = np.split(z, 4, axis=1)
        gates[:, t] = _logistic(i), _logistic(f), np.tanh(g), _logistic(o)
        c = gates[1, t] * c + gates[0, t] * gates[2, t]
        h = gates[3, t] * np.tanh(c)
        cells.append(c)
        hs.append(h)
    before = Quantised(np.stack(states), least_exponent(top, (1 << (bits - 1)) - 1))
    return np.stack(hs), Tape(dropout, bits, xq, before, wq, uq, gates, np.stack(cells), initial is not None)


def backward(device: Device | LstmProducts, tape: Tape, dh: Any) -> Gradients:
    """Backward through time.

    Args:
        device: as for :func:`forward`; any device that takes the tape's operands.
        tape: of the forward pass.
        dh: gradient of the states that it returned, (T, N, H).

    Returns:
        Gradients of the parameters and of x. The state before the first step gets none: sequences are cut there.

    Raises:
        As :func:`forward`.
    """
    if not isinstance(tape, Tape):
        raise MaskworkTypeError(f"tape must be what forward() returned, not {type(tape).__name__}")
    products = _products(device)
    bits = _bits(products, tape.bits)
    dropout, (steps, _, units) = tape.dropout, tape.gates.shape[1:]
    dh = expect_shape("dh", np.asarray(dh, dtype=np.float64), tape.gates.shape[1:], "the states of the forward pass")
    u_scale = tape.u.scale / (1 - dropout.h_rate)
    carried_h, carried_c = np.zeros_like(dh[0]), np.zeros_like(dh[0])
    dz = np.zeros((*dh.shape[:2], 4 * units))
    for t in reversed(range(steps)):
        i, f, g, o = tape.gates[:, t]
        tanh_c = np.tanh(tape.cells[t + 1])
        own = dh[t] + carried_h
        dc = carried_c + own * o * (1 - tanh_c**2)
        dz[t] = np.concatenate([dc * g * i * (1 - i), dc * tape.cells[t] * f * (1 - f), dc * i * (1 - g**2),
                                own * tanh_c * o * (1 - o)], axis=1)  # fmt: skip
        carried_c = dc * f
        if t:
            step = quantise(dz[t], bits, "dh")
            keep = None if dropout.h is None else np.asarray(dropout.h)[t]
            carried_h = _scaled(products.recur_grad(step.values, tape.u.values, keep), step.scale * u_scale)
    dq = quantise(dz, bits, "dh")
    x_scale = dq.scale / (1 - dropout.x_rate)
    dx = _scaled(products.project_grad(dq.values, tape.w.values, dropout.x), x_scale * tape.w.scale)
    dw = _scaled(products.weight_grad(tape.x.values, dq.values, dropout.x), x_scale * tape.x.scale)
    first = 0 if tape.starts else 1  # a state of zeros has no products
    du = np.zeros((units, 4 * units))
    if steps > first:
        keep = None if dropout.h is None else np.asarray(dropout.h)[first:]
        sums = products.weight_grad(tape.h.values[first:], dq.values[first:], keep)
        du = _scaled(sums, dq.scale * tape.h.scale / (1 - dropout.h_rate))
    return Gradients(Weights(dw, du, dz.sum(axis=(0, 1))), dx)


def _scaled(values: Int64Array, scale: float) -> Float64Array:
    return values.astype(np.float64) * scale


def _logistic(x: Float64Array) -> Float64Array:
    return 0.5 * (1 + np.tanh(0.5 * x))
