"""Frames from the host: bytes are checked, words buffered until their frame is known to be good."""

from amaranth import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.fpga.link.crc import SerialCrc
from maskwork.fpga.link.uart import BYTE
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.layouts import NO_CHECK

FLAG = 0x7E
ESCAPE = 0x7D
TOGGLE = 0x20
"""What an escaped byte is XORed with."""

WORD = data.StructLayout({"data": 32, "last": 1})
"""A word of either stream, and whether it ends its packet."""

CONTROL = data.StructLayout({"seq": 10, "ack": 10, "n": 8, "end": 1, "again": 1, "kind": 2})
"""The control word (docs/link.md)."""

DATA, RESET, READ_ID = range(3)

DEPTH = 256
"""Words in either buffer."""


class FrameReceiver(wiring.Component):
    """Bytes in, words of good frames out.

    A byte takes 9 cycles, for its CRC. Words are written as they come, behind those that were accepted, and accepted
    when the frame's end shows that it is good, its ``seq`` is the expected one and all had room.

    Members:
        i: bytes.
        o: words of DATA frames; their ``valid`` falls at RESET.
        control: control word of the frame that comes or came; its lowest byte changes with ``begins``.
        done: a good frame ended in this cycle.
        begins: the first byte of a control word is in ``control`` from the next cycle on.
        reset: 9 cycles from the cycle after a RESET frame's ``done``, and one after the domain's reset.
        expected: number of the next word.
        free: words for which the buffer has room.
        dropped: frames dropped since RESET, modulo 256.
    """

    def __init__(self):
        super().__init__(
            {
                "i": In(stream.Signature(BYTE)),
                "o": Out(stream.Signature(WORD)),
                "control": Out(CONTROL),
                "done": Out(1),
                "begins": Out(1),
                "reset": Out(1, init=1),  # pyright: ignore[reportCallIssue]
                "expected": Out(10),
                "free": Out(9),
                "dropped": Out(8),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("FrameReceiver",)

    def elaborate(self, platform):
        m = Module()
        submodule(m, "crc", crc := SerialCrc(), platform)

        # the domain's reset sets `reset`, and that resets what has to be: less logic than a reset for every register
        def register(name, shape=1):
            return Signal(shape, name=name, reset_less=True)

        # ---- bytes: escapes, and eight turns of a register for the CRC
        byte, turn, busy = register("byte", 8), register("turn", 3), register("busy")
        content = register("content")  # the byte belongs to a frame; else it is a FLAG or an ESCAPE
        escaped, bad = register("escaped"), register("bad")
        turned = Cat(byte[1:], byte[0])
        took = self.i.valid & self.i.ready
        flag = (self.i.payload.data == FLAG) & ~self.i.payload.error
        escape = self.i.payload.data == ESCAPE
        stored = busy & (turn == 7) & content  # in this cycle, `turned` is the byte
        m.d.comb += self.i.ready.eq(~busy)
        m.d.sync += byte.eq(turned)
        with m.If(took):
            m.d.sync += [
                byte.eq(self.i.payload.data ^ Mux(escaped, TOGGLE, 0)),
                busy.eq(1),
                content.eq(~flag & ~escape),
                escaped.eq(escape),
            ]
        with m.If(busy):
            m.d.sync += turn.eq(turn + 1)
            with m.If(turn == 7):
                m.d.sync += busy.eq(0)
        # ---- the frame: control word, `n` words, CRC word, nothing more
        position = register("position", 2)
        body, ended, overflow = register("body"), register("ended"), register("overflow")
        index = register("index", 8)
        control, expected = register("control_word", 32), register("expected_number", 10)
        oldest = register("oldest", 9)  # number of the oldest word that was not taken
        address = Signal(10)
        data_word = body & (index != self.control.n)
        full = overflow | ((address[:8] == oldest[:8]) & (address[8] != oldest[8]))
        m.d.comb += [
            self.expected.eq(expected),
            self.control.eq(control),
            address.eq(expected + index),
            self.begins.eq(stored & ~body & ~ended & (position == 0)),
            crc.clear.eq(took & flag),
            crc.enable.eq(busy & content),
            crc.bit.eq(byte[0]),
            crc.out.eq(body & ~data_word),
        ]
        with m.If(stored):
            m.d.sync += position.eq(position + 1)
            m.d.sync += overflow.eq(overflow | (data_word & full))
            with m.If(~body & ~ended):
                m.d.sync += control.word_select(position, 8).eq(turned)
                m.d.sync += body.eq(position == 3)
            with m.If(body & (position == 3)):
                m.d.sync += [index.eq(index + data_word), body.eq(data_word), ended.eq(~data_word)]
        # a byte too many, one without stop bit, or a CRC of other bits than those left in the register
        wrong_bit = crc.enable & crc.out & (byte[0] == crc.value[0])
        with m.If((stored & ended) | (took & self.i.payload.error) | wrong_bit):
            m.d.sync += bad.eq(1)
        good = ended & ~bad & ~escaped & (self.control.kind != 3)
        accepted = (self.control.kind == DATA) & (self.control.seq == expected) & ~overflow
        dropped = register("dropped_frames", 8)
        m.d.comb += [self.done.eq(took & flag & good), self.dropped.eq(dropped)]
        with m.If(took & flag):
            m.d.sync += [position.eq(0), body.eq(0), ended.eq(0), index.eq(0), overflow.eq(0), bad.eq(0)]
            with m.If(good & accepted):
                m.d.sync += expected.eq(address)
            with m.If(~good & (body | ended | bad | escaped | (position != 0))):
                m.d.sync += dropped.eq(dropped + 1)
        # ---- the buffer: each byte beside a bit of which one is `last`
        m.submodules.buffer = buffer = memory.Memory(shape=36, depth=DEPTH, init=[], attrs=NO_CHECK)
        write, read = buffer.write_port(granularity=9), buffer.read_port()
        last = self.control.end & (index + 1 == self.control.n)
        valid = register("valid")
        empty = oldest == expected[:9]
        m.d.comb += [
            write.addr.eq(address),
            write.data.eq(Cat(turned, last).replicate(4)),
            write.en.eq((stored & data_word & ~full).replicate(4) & (1 << position)),
            self.free.eq(oldest + DEPTH - expected),
            read.addr.eq(oldest),
            read.en.eq(~empty & (~valid | self.o.ready)),
            self.o.valid.eq(valid),
            self.o.payload.data.eq(Cat(read.data[9 * n : 9 * n + 8] for n in range(4))),
            self.o.payload.last.eq(read.data[35]),
        ]
        with m.If(self.o.ready):
            m.d.sync += valid.eq(0)
        with m.If(read.en):
            m.d.sync += [valid.eq(1), oldest.eq(oldest + 1)]
        # ---- RESET
        with m.If(self.done & (self.control.kind == RESET)):
            m.d.sync += self.reset.eq(1)
        with m.Elif(~busy):
            m.d.sync += self.reset.eq(0)
        with m.If(self.reset):
            m.d.sync += [expected.eq(0), oldest.eq(0), valid.eq(0), dropped.eq(0)]
        return m
