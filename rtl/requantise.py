"""Requantisation: from accumulator sums to operands of the next layer, one value a cycle."""

from typing import TYPE_CHECKING, Any

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import POST_MULT_WIDTH, Config

__all__ = [
    "BIAS_WIDTH", "LIMIT_WIDTH", "SHIFT_WIDTH", "Requantise", "choose", "register", "saturate", "shift_and_clamp",
]  # fmt: skip

BIAS_WIDTH = 32
"""Bits of a bias, signed."""

SHIFT_WIDTH = 6
"""Bits of a right shift (0 to 47 are architectural; the pipeline computes all 64)."""

LIMIT_WIDTH = 16
"""Bits of a clamp limit as it travels, signed."""

_SPLIT = 16
"""Where both factors are cut: the pieces (16 and 17 by 16 and 8 bits) fit one 18 x 18 multiplier each."""


def register(shape: Any = 1, *, name: str | None = None) -> Signal:
    """A signal for a data path's register: reset leaves it alone."""
    return Signal(shape, name=name, reset_less=True, src_loc_at=1)


def saturate(value: Value, width: int) -> Value:
    """``value`` (signed) as ``width`` signed bits; what does not fit becomes the nearest bound."""
    if width >= len(value):
        return Cat(value, value[-1].replicate(width - len(value))).as_signed()
    top = value[width - 1 :]
    fits = top.all() | ~top.any()
    sign = value[-1]
    return Cat(Mux(fits, value[: width - 1], (~sign).replicate(width - 1)), sign).as_signed()


def choose(options: list[Value], select: Value) -> Value:
    """``options[select]`` as a tree of two-way choices."""
    for bit in select:
        options = [Mux(bit, high, low) for low, high in zip(options[0::2], options[1::2], strict=True)]
    return options[0]


def shift_and_clamp(
    m: Module, value: Value, shift: Value, width: int, lower: Value, upper: Value, inverted: Value
) -> Value:
    """clamp(round_half_even(value / 2**shift), lower, upper) as ``width`` signed bits, 6 cycles after ``value``.

    ``shift`` belongs to the cycle of ``value``; the limits and ``inverted`` (``lower`` > ``upper``: the result is
    ``upper``) to the fourth cycle after it. Shifts by 16, 4 and 1 times two bits; the shifter narrows as it goes,
    keeping one guard bit (bit 0 of each stage), a sticky bit for everything below and one overflow flag for everything
    above.
    """
    number, sticky, overflow = Cat(C(0, 1), value).as_signed(), C(0, 1), C(0, 1)
    sign = value[-1]
    for step in (16, 4, 1):
        kept = register(signed(width + step), name=f"kept_{step}")
        next_sticky = register(name=f"sticky_{step}")
        next_overflow = register(name=f"overflow_{step}")
        next_sign = register(name=f"sign_{step}")
        next_shift = register(max(1, step.bit_length() - 1), name=f"shift_by_{step}")
        select = shift[step.bit_length() - 1 :][:2]
        slices, dropped, excess = [], [], []
        for part in range(4):
            shifted = number >> (part * step)
            slices.append(shifted[: len(kept)] if len(shifted) >= len(kept) else shifted)
            dropped.append(number[: part * step].any() if part else C(0, 1))
            top = shifted[len(kept) - 1 :]
            excess.append(top.any() & ~top.all() if len(top) > 1 else C(0, 1))
        m.d.sync += [
            kept.eq(choose([s.as_signed() for s in slices], select)),
            next_sticky.eq(sticky | choose(dropped, select)),
            next_overflow.eq(overflow | choose(excess, select)),
            next_sign.eq(sign),
            next_shift.eq(shift),
        ]
        number, sticky, overflow, sign, shift = kept, next_sticky, next_overflow, next_sign, next_shift

    # round half to even; number holds width bits above its guard bit
    rounded = register(signed(width + 1))
    round_sign, round_overflow = register(name="round_sign"), register(name="round_overflow")
    m.d.sync += [
        rounded.eq(number[1:].as_signed() + (number[0] & (sticky | number[1]))),
        round_sign.eq(sign),
        round_overflow.eq(overflow),
    ]

    # compare. What overflowed lies beyond the limit of its sign, rounded or not.
    above, below = register(name="above"), register(name="below")
    low, high, inside = (register(signed(width), name=f"choice_{n}") for n in range(3))
    m.d.sync += [
        above.eq(inverted | Mux(round_overflow, ~round_sign, rounded > upper)),
        below.eq(Mux(round_overflow, round_sign, rounded < lower)),
        low.eq(lower),
        high.eq(upper),
        inside.eq(rounded),
    ]

    # clamp
    result = register(signed(width))
    m.d.sync += result.eq(Mux(above, high, Mux(below, low, inside)))
    return result


class Requantise(wiring.Component):
    """clamp(round_half_even((value + bias) * mult / 2**shift), low, high), one value a cycle.

    A free-running pipeline: ``result`` belongs to the operands of ``LATENCY`` cycles before. Products are cut into
    four 18 x 18 multiplications; the shifter narrows as it goes, keeping one guard bit, a sticky bit for everything
    below and one overflow flag for everything above.

    Parameters
    ----------
    config
        ``acc_width`` (at most 32) and ``a_width`` give the widths of ``value`` and ``result``.

    Members
    -------
    value : In(signed(acc_width)), bias : In(signed(32)), mult : In(24), shift : In(6)
        Operands, all of the same cycle.
    low, high : In(signed(a_width)), inverted : In(1)
        Clamp limits of the value given ``LIMITS_DELAY`` cycles before. ``inverted`` says that low > high: the result
        is then always ``high``, as min(max(x, low), high) has it.
    result : Out(signed(a_width))
        ``LATENCY`` cycles after its operands.
    """

    LATENCY = 10
    LIMITS_DELAY = 8

    if TYPE_CHECKING:
        value: Signal
        bias: Signal
        mult: Signal
        shift: Signal
        low: Signal
        high: Signal
        inverted: Signal
        result: Signal

    def __init__(self, config: Config):
        self._config = config
        width = config.a_width
        super().__init__(
            {
                "value": In(signed(config.acc_width)),
                "bias": In(signed(BIAS_WIDTH)),
                "mult": In(POST_MULT_WIDTH),
                "shift": In(SHIFT_WIDTH),
                "low": In(signed(width)),
                "high": In(signed(width)),
                "inverted": In(1),
                "result": Out(signed(width)),
            }
        )

    def elaborate(self, platform):
        """Build the ten stages."""
        m = Module()
        width = self._config.a_width

        # 1: bias
        total = register(signed(max(self._config.acc_width, BIAS_WIDTH) + 1))
        mult = register(POST_MULT_WIDTH)
        m.d.sync += [total.eq(self.value + self.bias), mult.eq(self.mult)]

        # 2: four partial products
        total_low, total_high = total[:_SPLIT], total[_SPLIT:].as_signed()
        mult_low, mult_high = mult[:_SPLIT], mult[_SPLIT:]
        low_low = register(2 * _SPLIT)
        low_high = register(len(total_low) + len(mult_high))
        high_low = register(signed(len(total_high) + len(mult_low)))
        high_high = register(signed(len(total_high) + len(mult_high)))
        m.d.sync += [
            low_low.eq(total_low * mult_low),
            low_high.eq(total_low * mult_high),
            high_low.eq(total_high * mult_low),
            high_high.eq(total_high * mult_high),
        ]

        # 3: the two middle products; the outer two do not overlap
        middle = register(signed(len(high_low) + 1))
        outer = register(signed(len(low_low) + len(high_high)))
        m.d.sync += [middle.eq(low_high + high_low), outer.eq(Cat(low_low, high_high))]

        # 4: the product
        product = register(signed(len(outer)))
        m.d.sync += product.eq(Cat(outer[:_SPLIT], (outer[_SPLIT:].as_signed() + middle)[: len(outer) - _SPLIT]))

        # 5 to 10: shift, round, clamp
        shift = self.shift
        for stage in range(4):
            delayed = register(SHIFT_WIDTH, name=f"shift_{stage + 1}")
            m.d.sync += delayed.eq(shift)
            shift = delayed
        result = shift_and_clamp(m, product, shift, width, self.low, self.high, self.inverted)
        m.d.comb += self.result.eq(result)
        return m
