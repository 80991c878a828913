"""Requantisation: from accumulator sums to operands of the next layer, one value a cycle."""

from typing import TYPE_CHECKING, Any

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import POST_MULT_WIDTH, Config

__all__ = [
    "BIAS_WIDTH",
    "LIMIT_WIDTH",
    "NOISE_WIDTH",
    "SHIFT_WIDTH",
    "Requantise",
    "choose",
    "register",
    "requantise_latency",
    "saturate",
    "shift_and_clamp",
]

BIAS_WIDTH = 32
"""Bits of a bias, signed."""

SHIFT_WIDTH = 6
"""Bits of a right shift (0 to 47 are architectural; the pipeline computes all 64)."""

LIMIT_WIDTH = 16
"""Bits of a clamp limit as it travels, signed."""

NOISE_WIDTH = 16
"""Bits of a random number, and bits below the point that it meets."""

_SPLIT = 16
"""Where factors are cut: the pieces (16 or, of a sum's top, 17 bits by 16 and 8) fit one 18 x 18 multiplier each."""


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
    m: Module,
    value: Value,
    shift: Value,
    width: int,
    lower: Value,
    upper: Value,
    inverted: Value,
    noise: tuple[Value, Value] | None = None,
) -> Value:
    """clamp(round_half_even(value / 2**shift), lower, upper) as ``width`` signed bits, 6 cycles after ``value``.

    ``shift`` belongs to the cycle of ``value``; the limits and ``inverted`` (``lower`` > ``upper``: the result is
    ``upper``) to the fourth cycle after it; ``noise`` (a random number of NOISE_WIDTH bits, and whether it rounds this
    value) to the third. Shifts by 16, 4 and 1 times two bits; the shifter narrows as it goes, keeping one guard bit
    (with ``noise``, NOISE_WIDTH bits below the point; the low bits of each stage), a sticky bit for everything below
    and one overflow flag for everything above.
    """
    point = 1 if noise is None else NOISE_WIDTH
    number, sticky, overflow = Cat(C(0, point), value).as_signed(), C(0, 1), C(0, 1)
    sign = value[-1]
    for step in (16, 4, 1):
        kept = register(signed(width + step + point - 1), name=f"kept_{step}")
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

    # round; number holds width bits above the point
    rounded = register(signed(width + 1))
    round_sign, round_overflow = register(name="round_sign"), register(name="round_overflow")
    up = sticky | number[point]  # of half-way cases
    if noise is None:
        total = number[1:].as_signed() + (number[0] & up)
    else:
        # to the nearest: half of the last place, less one of the bits below it in a half-way case that stays down
        random, chosen = noise
        total = (number + Mux(chosen, random, Cat((~up).replicate(point - 1), up)))[point:].as_signed()
    m.d.sync += [rounded.eq(total), round_sign.eq(sign), round_overflow.eq(overflow)]

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


def requantise_latency(config: Config) -> int:
    """Cycles from operands to their result."""
    return 10 if config.acc_width <= BIAS_WIDTH else 11


class Requantise(wiring.Component):
    """clamp(round((value + bias) * mult / 2**shift), low, high), one value a cycle.

    Rounds half to even or, where ``random`` is set, to floor(x + noise / 2**16), x cut off 16 bits below the point. A
    free-running pipeline: ``result`` belongs to the operands of ``latency`` cycles before. Products are cut into
    18 x 18 multiplications: four, or six of sums beyond 32 bits.

    Parameters
    ----------
    config
        ``acc_width`` (at most 48) and ``a_width`` give the widths of ``value`` and ``result``; ``stochastic``: there
        are ``noise`` and ``random``.

    Members
    -------
    value : In(signed(acc_width)), bias : In(signed(32)), mult : In(24), shift : In(6)
        Operands, all of the same cycle.
    noise : In(16), random : In(1)
        Of the value given ``noise_delay`` cycles before.
    low, high : In(signed(a_width)), inverted : In(1)
        Clamp limits of the value given ``limits_delay`` cycles before. ``inverted`` says that low > high: the result
        is then always ``high``, as min(max(x, low), high) has it.
    result : Out(signed(a_width))
        ``latency`` cycles after its operands.

    Attributes
    ----------
    latency : 10 cycles; 11 of sums beyond 32 bits.
    noise_delay, limits_delay : see the members.
    """

    if TYPE_CHECKING:
        value: Signal
        bias: Signal
        mult: Signal
        shift: Signal
        noise: Signal
        random: Signal
        low: Signal
        high: Signal
        inverted: Signal
        result: Signal

    def __init__(self, config: Config):
        self._config = config
        width = config.a_width
        self.latency = requantise_latency(config)
        self.noise_delay, self.limits_delay = self.latency - 3, self.latency - 2
        super().__init__(
            {
                "value": In(signed(config.acc_width)),
                "bias": In(signed(BIAS_WIDTH)),
                "mult": In(POST_MULT_WIDTH),
                "shift": In(SHIFT_WIDTH),
                **({"noise": In(NOISE_WIDTH), "random": In(1)} if config.stochastic else {}),
                "low": In(signed(width)),
                "high": In(signed(width)),
                "inverted": In(1),
                "result": Out(signed(width)),
            }
        )

    def elaborate(self, platform):
        """Build the stages."""
        m = Module()
        width = self._config.a_width

        # 1: bias
        total = register(signed(max(self._config.acc_width, BIAS_WIDTH) + 1))
        mult = register(POST_MULT_WIDTH)
        m.d.sync += [total.eq(self.value + self.bias), mult.eq(self.mult)]

        product = self._multiply(m, total, mult)

        # the last six: shift, round, clamp
        shift = self.shift
        for stage in range(self.latency - 6):
            delayed = register(SHIFT_WIDTH, name=f"shift_{stage + 1}")
            m.d.sync += delayed.eq(shift)
            shift = delayed
        noise = (self.noise, self.random) if self._config.stochastic else None
        result = shift_and_clamp(m, product, shift, width, self.low, self.high, self.inverted, noise)
        m.d.comb += self.result.eq(result)
        return m

    @staticmethod
    def _multiply(m, total, mult):
        """Product of a register of 33 bits, 3 cycles after it; or of up to 49 bits, 4 cycles."""
        # 2: partial products
        wide = len(total) > BIAS_WIDTH + 1
        total_low, total_high = total[:_SPLIT], total[_SPLIT : None if not wide else 2 * _SPLIT]
        if not wide:
            total_high = total_high.as_signed()
        mult_low, mult_high = mult[:_SPLIT], mult[_SPLIT:]
        low_low = register(2 * _SPLIT)
        low_high = register(len(total_low) + len(mult_high))
        high_low = register((total_high * mult_low).shape())
        high_high = register((total_high * mult_high).shape())
        m.d.sync += [
            low_low.eq(total_low * mult_low),
            low_high.eq(total_low * mult_high),
            high_low.eq(total_high * mult_low),
            high_high.eq(total_high * mult_high),
        ]

        # 3: the two middle products; the outer two do not overlap
        middle = register((low_high + high_low).shape())
        outer = register(Shape(len(low_low) + len(high_high), signed=not wide))
        m.d.sync += [middle.eq(low_high + high_low), outer.eq(Cat(low_low, high_high))]

        # 4: the product
        product = register(outer.shape())
        upper = outer[_SPLIT:] if wide else outer[_SPLIT:].as_signed()
        m.d.sync += product.eq(Cat(outer[:_SPLIT], (upper + middle)[: len(outer) - _SPLIT]))
        if not wide:
            return product

        # beside them the top of the sum, and 5: the whole
        total_top = total[2 * _SPLIT :].as_signed()
        top_low, top_high = register((total_top * mult_low).shape()), register((total_top * mult_high).shape())
        top = register(signed(len(total_top) + POST_MULT_WIDTH))
        late_top = register(top.shape())
        whole = register(signed(2 * _SPLIT + len(top)))
        m.d.sync += [
            top_low.eq(total_top * mult_low),
            top_high.eq(total_top * mult_high),
            top.eq((top_high << _SPLIT) + top_low),
            late_top.eq(top),
            whole.eq(Cat(product[: 2 * _SPLIT], (late_top + product[2 * _SPLIT :])[: len(top)])),
        ]
        return whole
