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
        announce: values to expect in addition; what a beat holds beyond the last of them is padding. Only
            with ``row``, or in the cycle after ``hold``.
        hold: no beat is taken in the next cycle, and what is announced in it counts.
        row: a row of ``announce`` values begins, behind the beats that were taken and the one that is; all that were
            announced before are in these. Without ``hold``: rows whose values are counted in advance do not pause.
        want: the beat is taken if it is valid.
        more: of the values to expect, some come after this beat.
        values: the oldest ``most`` values.
        count: values held.
        need: how many of them leave in the next cycle (at most ``most``), if so many are there then: with ``given``.
        clear: forget everything.
    """

    def __init__(self, config: Config):
        self._config = config
        self.most = max(config.fetch_width, config.pes_per_lane * config.load_slots)
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
                "row": In(1),
                "want": Out(1, init=1),  # pyright: ignore[reportCallIssue]
                "more": Out(1),
                "values": Out(data.ArrayLayout(self.width, self.most)),
                "count": Out(range(self._slots + 1)),
                "need": In(range(self.most + 1)),
                "given": Out(1),
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
        left = Signal.like(self.announce)
        following = Signal.like(left)
        whole = Mux(
            self.is_b,
            config.values_per_word(config.b_width) * config.stream_words,
            config.values_per_word(config.a_width) * config.stream_words,
        )
        fresh = Signal(range(self.per_beat + 1))
        put = Signal()
        need = Signal.like(self.need)  # in this cycle
        # what stays, if what is needed leaves; below 0, nothing leaves. From a register, like `want`: much hangs on it
        rest = Signal(signed(len(self.count) + 1))
        stays, hold = Signal.like(rest), Signal()  # in the next cycle, in this one
        held = Signal.like(self.count)  # in the next cycle
        m.d.comb += [
            self.given.eq(rest >= 0),
            put.eq(self.want & self.beat_valid),
            fresh.eq(Mux(put, Mux(self.more, whole, left), 0)),
            base.eq(Mux(self.given, rest, self.count)),
            held.eq(base + fresh),
            stays.eq(Mux(self.clear, 0, held) - self.need),
            *(self.values[n].eq(slots[n]) for n in range(self.most)),
        ]
        zero = Const(0, self.width)
        for n, slot in enumerate(slots):
            # chosen before it is known whether there are as many
            left_over = Array([slots[n + t] if n + t < len(slots) else zero for t in range(self.most + 1)])[need]
            moved = Mux(self.given, left_over, slot)
            # the beat's first value goes to slot `base`, which is at most `most`
            placed = Array([incoming[n - at] if 0 <= n - at < len(incoming) else zero for at in range(self.most + 1)])
            m.d.sync += slot.eq(Mux(base <= n, placed[base[: max(1, self.most.bit_length())]], moved))
        m.d.sync += [
            self.count.eq(held),
            need.eq(self.need),
            rest.eq(stays),
            hold.eq(self.hold),
            # there is room for a beat if only `most` values stay; if there are more, what is needed leaves for certain
            self.want.eq((stays <= self.most) & ~self.hold),
        ]
        with m.If(hold):
            m.d.comb += following.eq(left + self.announce)
            m.d.sync += [left.eq(following), self.more.eq(following > whole)]
        with m.Elif(put):
            m.d.sync += [left.eq(Mux(self.more, left - whole, 0)), self.more.eq(left > 2 * whole)]
        with m.If(self.row):
            m.d.sync += [left.eq(self.announce), self.more.eq(self.announce > whole)]
        with m.If(self.clear):
            m.d.sync += [self.count.eq(0), left.eq(0), self.more.eq(0)]
        return m
