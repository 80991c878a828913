"""Loader: takes the payload of one LOAD packet after the other and writes the banks."""

from functools import reduce
from operator import or_

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.rtl.gearbox import Gearbox, sum_bits
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.layouts import a_write_layout, b_write_layout, c_write_layout
from maskwork.rtl.load_a import LoadA
from maskwork.rtl.load_b import LoadB
from maskwork.rtl.load_common import Load, LoadEnd, load_layout
from maskwork.rtl.load_words import LoadC, LoadP
from maskwork.rtl.post import limits_signature, parameter_signature
from maskwork.rtl.stream import beat_layout


class Loader(wiring.Component):
    """One part for each buffer; the parts for A and B share the gearbox. Writes leave registered.

    Members:
        i: beats of the payload.
        load, start: the packet's fields (stable while loading), and its start (with ``ended``, the header was all).
        busy: between ``start`` and ``done``.
        done, end: one cycle: the load ended, and how; after LONG, the rest of the packet is still at ``i``.
        a, b, c, p, limits: writes.
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(beat_layout(config))),
                "load": In(load_layout(config)),
                "start": In(1),
                "ended": In(1),
                "busy": Out(1),
                "done": Out(1),
                "end": Out(LoadEnd),
                "a": Out(a_write_layout(config)),
                "b": Out(b_write_layout(config)),
                "c": Out(c_write_layout(config)),
                "p": Out(parameter_signature(config)),
                "limits": Out(limits_signature(config)),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Loader", self._config.hash)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        submodule(m, "gearbox", gearbox := Gearbox(config), platform)
        submodule(m, "load_a", load_a := LoadA(config, gearbox), platform)
        submodule(m, "load_b", load_b := LoadB(config, gearbox), platform)
        submodule(m, "load_c", load_c := LoadC(config), platform)
        parts = {Load.A: load_a, Load.B: load_b, Load.C: load_c}
        if config.post:
            submodule(m, "load_p", load_p := LoadP(config), platform)
            parts[Load.P] = load_p
            for port, write in ((self.p, load_p.write), (self.limits, load_p.limits)):
                for name in port.signature.members:
                    m.d.sync += getattr(port, name).eq(getattr(write, name))

        want, short, part_done = Signal(), Signal(), Signal()
        wants_values = Signal()
        ended = Signal()  # the packet's last beat was taken
        beat_valid = Signal()
        m.d.comb += [
            # a packet that ended too early is completed with whatever is at hand: its bank will not count as loaded
            beat_valid.eq(self.busy & (self.i.valid | ended)),
            want.eq(self.busy & (reduce(or_, (part.want for part in parts.values())) | wants_values)),
            self.i.ready.eq(want & ~ended),
            short.eq(want & ended),
            part_done.eq(reduce(or_, (part.done for part in parts.values()))),
        ]
        for kind, part in parts.items():
            m.d.comb += [
                part.load.eq(self.load),
                part.start.eq(self.start & (self.load.kind == kind)),
                part.beat.eq(self.i.payload.data),
                part.beat_valid.eq(beat_valid),
            ]
        self._unpack(m, gearbox, load_a, load_b, beat_valid, wants_values)
        m.d.sync += [self.a.eq(load_a.write), self.b.eq(load_b.write), self.c.eq(load_c.write)]

        missing = Signal()
        m.d.sync += [self.done.eq(part_done), self.end.eq(LoadEnd.GOOD)]
        with m.If(self.start):
            m.d.sync += [self.busy.eq(1), ended.eq(self.ended), missing.eq(0)]
        with m.Elif(part_done):
            m.d.sync += self.busy.eq(0)
            with m.If(missing | short):
                m.d.sync += self.end.eq(LoadEnd.SHORT)
            with m.Elif(~(ended | (self.i.valid & self.i.ready & self.i.payload.last))):
                m.d.sync += self.end.eq(LoadEnd.LONG)
        with m.Else():
            with m.If(short):
                m.d.sync += missing.eq(1)
            with m.If(self.i.valid & self.i.ready & self.i.payload.last):
                m.d.sync += ended.eq(1)
        return m

    def _unpack(self, m, gearbox, load_a, load_b, beat_valid, wants_values):
        """Bitmaps and values pass one register, where bitmaps are counted and values wait for the gearbox.

        A row's count is there 2 cycles after its bitmap was taken; that there is a first beat of values is known at
        once. Dense rows need no counting: one more is announced while the values of a row are coming, and begins in the
        very cycle in which the last of these leave for the gearbox.
        """
        config = self._config
        beat = Signal(config.beat_bits, reset_less=True)
        staged = Signal()  # it holds values
        counted = Signal()  # it holds a bitmap
        some = Signal()  # values were announced, or will be, that have not left the register
        unused = Signal()  # bits beyond a row's length announced what is in the gearbox: no one takes it
        follows = Signal()  # a dense row was announced whose values are behind those that are coming
        takes_bitmap, another, row = Signal(), Signal(), Signal()
        moves, last = Signal(), Signal()
        m.d.comb += [
            moves.eq(staged & gearbox.want),
            last.eq(moves & ~gearbox.more),
            takes_bitmap.eq((load_a.want | load_b.want) & beat_valid),
            another.eq(follows | load_a.announce | load_b.announce),
            row.eq(another & (~some | last)),
            wants_values.eq(some & (~staged | (moves & (gearbox.more | another))) & ~load_a.inside & ~load_b.inside),
            gearbox.beat.eq(beat),
            gearbox.beat_valid.eq(staged),
            gearbox.is_b.eq(self.load.kind == Load.B),
            unused.eq(load_a.empty | load_b.empty),
            gearbox.need.eq(load_a.need | load_b.need | Mux(unused, gearbox.most, 0)),
            gearbox.row.eq(row),
            gearbox.hold.eq(counted & ~self.start),
            gearbox.clear.eq(self.start),
        ]
        for part in (load_a, load_b):
            m.d.comb += [
                part.free.eq(~some | last),
                part.room.eq(~follows),
                part.given.eq(gearbox.given),
                part.values.eq(gearbox.values),
            ]
        with m.If(~staged | moves):
            m.d.sync += beat.eq(self.i.payload.data)
        m.d.sync += [
            staged.eq((wants_values & beat_valid) | (staged & ~moves)),
            counted.eq(takes_bitmap),
            some.eq((some & ~last) | (takes_bitmap & self.i.payload.data.any()) | row),
            follows.eq(another & ~row),
            gearbox.announce.eq(Mux(self.load.dense, self.load.length, sum_bits(beat))),
        ]
        with m.If(self.start):
            m.d.sync += [staged.eq(0), counted.eq(0), some.eq(0), follows.eq(0)]
