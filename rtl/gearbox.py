"""Gearbox: packed values of stream beats in, any number of values a cycle out."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config


def sum_bits(bits: Value) -> Value:
    """Number of set bits, as a balanced tree."""
    terms = list(bits)
    while len(terms) > 1:
        terms = [terms[n] + terms[n + 1] if n + 1 < len(terms) else terms[n] for n in range(0, len(terms), 2)]
    return terms[0]


class Gearbox(wiring.Component):
    """Queue of the values that bitmaps announced; beats go in whole, up to ``most`` values come out in a cycle.

    Members:
        beat, beat_valid: the beat at the input; ``is_b``: it holds values of ``b_width``, not ``a_width``, bits.
        announce: values to expect in addition; what a beat holds beyond the last of them is padding.
        hold: the beat at the input is not for the gearbox.
        want: the beat is taken if it is valid.
        values: the oldest ``most`` values.
        count: values held.
        take: how many of them leave (at most ``count``).
        clear: forget everything.
    """

    def __init__(self, config: Config):
        self._config = config
        self.most = max(config.fetch_width, config.pes_per_lane)
        self.width = max(config.a_width, config.b_width)
        widths = {config.a_width, config.b_width}
        self.per_beat = max(config.values_per_word(w) for w in widths) * config.stream_words
        self._slots = self.most + self.per_beat
        super().__init__(
            {
                "beat": In(config.beat_bits),
                "is_b": In(1),
                "beat_valid": In(1),
                "announce": In(range(max(config.k_depth, config.tile_columns, config.beat_bits) + 1)),
                "hold": In(1),
                "want": Out(1),
                "values": Out(data.ArrayLayout(self.width, self.most)),
                "count": Out(range(self._slots + 1)),
                "take": In(range(self.most + 1)),
                "clear": In(1),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Gearbox", self._config.hash)

    def _unpacked(self, width: int) -> list[Value]:
        config = self._config
        fields = []
        for word in range(config.stream_words):
            for n in range(config.values_per_word(width)):
                fields.append(self.beat[32 * word + n * width :][: min(width, self.width)])
        return fields

    def elaborate(self, platform):
        m = Module()
        config = self._config
        slots = [Signal(self.width, name=f"slot{n}") for n in range(self._slots)]
        of_a, of_b = self._unpacked(config.a_width), self._unpacked(config.b_width)
        incoming = []
        for n in range(self.per_beat):
            a = of_a[n] if n < len(of_a) else Const(0, self.width)
            b = of_b[n] if n < len(of_b) else Const(0, self.width)
            incoming.append(a if config.a_width == config.b_width else Mux(self.is_b, b, a))
        base = Signal(range(self._slots + 1))
        left = Signal(17)
        following = Signal(17)
        some_left = Signal()  # left != 0
        whole = Mux(
            self.is_b,
            config.values_per_word(config.b_width) * config.stream_words,
            config.values_per_word(config.a_width) * config.stream_words,
        )
        fresh = Signal(range(self.per_beat + 1))
        put = Signal()
        m.d.comb += [
            self.want.eq(some_left & (self.count <= self.most) & ~self.hold),
            put.eq(self.want & self.beat_valid),
            fresh.eq(Mux(put, Mux(left > whole, whole, left), 0)),
            base.eq(self.count - self.take),
            *(self.values[n].eq(slots[n]) for n in range(self.most)),
        ]
        zero = Const(0, self.width)
        for n, slot in enumerate(slots):
            moved = Array([slots[n + t] if n + t < len(slots) else zero for t in range(self.most + 1)])[self.take]
            # the beat's first value goes to slot `base`, which is at most `most`
            placed = Array([incoming[n - at] if 0 <= n - at < len(incoming) else zero for at in range(self.most + 1)])
            m.d.sync += slot.eq(Mux(base <= n, placed[base[: max(1, self.most.bit_length())]], moved))
        with m.If(self.clear):
            m.d.sync += [self.count.eq(0), left.eq(0), some_left.eq(0)]
        with m.Else():
            m.d.comb += following.eq(left + self.announce - fresh)
            m.d.sync += [self.count.eq(base + fresh), left.eq(following), some_left.eq(following != 0)]
        return m
