"""Frames to the host: words wait until the host has them, and travel when it asks."""

from amaranth import *
from amaranth.hdl import ShapeLike
from amaranth.lib import enum, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.fpga.link.crc import SerialCrc
from maskwork.fpga.link.receiver import CONTROL, DATA, DEPTH, ESCAPE, FLAG, RESET, TOGGLE, WORD
from maskwork.gen.errors import MaskworkValueError
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.layouts import NO_CHECK

VERSION = 1
"""Of the link, in the status word."""

MAX_WORDS = 64
"""In one frame."""


class _Part(enum.Enum, shape=2):
    WORDS = 0
    CONTROL = 1
    STATUS = 2
    CRC = 3


def checked_identity(identity: bytes) -> bytes:
    """The identity, if it fits its memory.

    Raises:
        MaskworkValueError: if it does not.
    """
    if not identity or len(identity) % 4 or len(identity) > 4 * DEPTH:
        raise MaskworkValueError(
            f"identity must be of whole words, {4 * DEPTH} bytes at most and not empty, not {len(identity)} bytes"
        )
    return bytes(identity)


class FrameTransmitter(wiring.Component):
    """Words in, frames of bytes out: one for every good frame, or for the last that came meanwhile.

    A byte takes 10 cycles beside the cycles in which it waits. The frame on its way at a RESET ends with a FLAG
    behind its current byte. A RESET or READ_ID that waits for its answer is forgotten when the next frame's first byte
    arrives: that frame is answered instead.

    Args:
        identity: what READ_ID reads, of whole words, 1 to 256 of them.

    Members:
        i: words of the accelerator.
        o: bytes.
        control, done, begins, reset, expected, free, dropped: of :class:`~maskwork.fpga.link.receiver.FrameReceiver`.
    """

    def __init__(self, identity: bytes):
        self._identity = checked_identity(identity)
        super().__init__(
            {
                "i": In(stream.Signature(WORD)),
                "o": Out(stream.Signature(8)),
                "control": In(CONTROL),
                "done": In(1),
                "begins": In(1),
                "reset": In(1),
                "expected": In(10),
                "free": In(9),
                "dropped": In(8),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("FrameTransmitter", self._identity)

    def elaborate(self, platform):
        m = Module()

        # ---- words: sent and not yet confirmed from `oldest` on, to be sent from `fresh` on, free from `head` on.
        # `fresh` stays what it is during a frame; for answers other than DATA it is what `seq` is to be.
        def register(name: str, shape: ShapeLike = 1) -> Signal:
            return Signal(shape, name=name, reset_less=True)

        oldest, fresh, head = register("oldest", 10), register("fresh", 10), register("head", 9)
        index = register("index", range(MAX_WORDS + 1))
        address = Signal(10)
        position = register("position", 2)
        identity = register("identity")
        write = self.i.valid & self.i.ready
        byte_read, last_read = self._memories(m, write, head[:8], Cat(address[:8], identity), position)
        m.d.comb += address.eq(fresh + index)
        # from a register, for the accelerator is a long wire away
        held = (head - oldest)[:9]
        m.d.sync += self.i.ready.eq(~held[8] & ~(held[:8].all() & write))
        with m.If(write):
            m.d.sync += head.eq(head + 1)
        # ---- what is to be answered
        answer_data, answer_other, again = register("answer_data"), register("answer_other"), register("again")
        # not behind `fresh` and not before `oldest`, which are at most 256 apart
        in_range = ~(fresh - self.control.ack)[9] & ~(self.control.ack - oldest)[9]
        with m.If(self.begins):
            m.d.sync += answer_other.eq(0)
        with m.If(self.done):
            with m.If(self.control.kind == DATA):
                m.d.sync += answer_data.eq(1)
                with m.If(in_range & ~again):  # with `again`, `fresh` may be anything
                    m.d.sync += [oldest.eq(self.control.ack), again.eq(self.control.again)]
            with m.Else():
                m.d.sync += answer_other.eq(1)
        # ---- the frame
        active, flag, part = Signal(), register("flag"), Signal(_Part, reset_less=True)
        ended, abort, was_reset = register("ended"), register("abort"), register("was_reset")
        start = ~active & (answer_data | answer_other) & ~self.done
        more = (identity | (head != address[:9])) & ~was_reset & ~ended & ~index[6]
        pace = Signal(4)  # 6: the memory is read, 7: the byte is loaded, 8 to 15: through the CRC, 0: it is offered
        taken = Signal()
        with m.If(pace.any()):
            m.d.sync += pace.eq(pace + 1)
        with m.If(start | taken):
            m.d.sync += pace.eq(6)
        with m.If(start):
            m.d.sync += [
                active.eq(1),
                index.eq(0),
                ended.eq(0),
                part.eq(_Part.WORDS),
                flag.eq(1),
                abort.eq(0),
                identity.eq(answer_other & self.control.kind[1]),
                was_reset.eq(answer_other & self.control.kind[0]),
                answer_other.eq(0),
                again.eq(answer_other),
            ]
            with m.If(answer_other):
                m.d.sync += fresh.eq(self.control.seq)
            with m.Else():
                m.d.sync += answer_data.eq(0)
                with m.If(again):
                    m.d.sync += fresh.eq(oldest)
        # ---- its bytes
        byte, escaped = register("byte", 8), register("escaped")
        # what its next byte needs of a word that may change meanwhile
        rest = register("rest", 4)
        submodule(m, "crc", crc := SerialCrc(), platform)
        control = Cat(fresh, self.expected[:6], rest, index, C(0, 1), ended, C(0, 1), was_reset, identity)
        status = Cat(self.free[:8], rest[0], C(0, 7), self.dropped, C(VERSION, 8))
        source = Signal(8)
        with m.Switch(part):
            with m.Case(_Part.WORDS):
                m.d.comb += source.eq(byte_read)
            with m.Case(_Part.CONTROL):
                m.d.comb += source.eq(control.word_select(position, 8))
            with m.Case(_Part.STATUS):
                m.d.comb += source.eq(status.word_select(position, 8))
            with m.Case(_Part.CRC):
                m.d.comb += source.eq(~crc.value[:8])
        special = ~flag & (byte[2:] == FLAG >> 2) & (byte[0] ^ byte[1])
        escapes = special & ~escaped
        m.d.comb += [
            crc.clear.eq(flag),
            crc.enable.eq(pace[3]),
            crc.bit.eq(byte[0]),
            crc.out.eq(part == _Part.CRC),
            self.o.valid.eq(active & ~pace.any()),
            # of the two bytes that are escaped, and ESCAPE itself, only the lowest bits differ
            self.o.payload.eq(Cat(Mux(escapes, C(ESCAPE, 2), byte[:2]), byte[2:]) ^ Mux(escaped, TOGGLE, 0)),
            taken.eq(self.o.valid & self.o.ready & ~escapes),
        ]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += escaped.eq(escapes)
        with m.If(pace[3]):
            m.d.sync += byte.eq(Cat(byte[1:], byte[0]))
        with m.Elif(pace[0]):
            m.d.sync += byte.eq(Mux(flag, FLAG, source))
            m.d.sync += rest.eq(Mux(part == _Part.CONTROL, self.expected[6:], self.free[8]))
            with m.If((part == _Part.WORDS) & ~flag & (position == 3)):
                m.d.sync += [index.eq(index + 1), ended.eq(last_read)]
        with m.If(taken):
            with m.If(flag):
                m.d.sync += [position.eq(0), flag.eq(0)]
                with m.If(part == _Part.CRC):
                    m.d.sync += active.eq(0)
            with m.Else():
                m.d.sync += position.eq(position + 1)
            with m.If(flag | (position == 3)):
                with m.Switch(part):
                    with m.Case(_Part.WORDS):
                        with m.If(~more):
                            m.d.sync += part.eq(_Part.CONTROL)
                    with m.Case(_Part.CONTROL):
                        m.d.sync += part.eq(_Part.STATUS)
                    with m.Case(_Part.STATUS):
                        m.d.sync += part.eq(_Part.CRC)
                        with m.If(~again):
                            m.d.sync += fresh.eq(address)
                    with m.Case(_Part.CRC):
                        m.d.sync += flag.eq(1)
            with m.If(abort):
                m.d.sync += [part.eq(_Part.CRC), flag.eq(1), abort.eq(0)]
        # ---- RESET
        with m.If(self.done & (self.control.kind == RESET)):
            m.d.sync += abort.eq(1)
        with m.If(self.reset):
            m.d.sync += [oldest.eq(0), head.eq(0), answer_data.eq(0), again.eq(1)]
        return m

    def _memories(self, m, write, head, address, position):
        """The words' memory, whose lower half is written by words and whose upper half is the identity.

        Bytes are read singly: no multiplexer behind a block RAM, which can have ports of different widths. ``last`` of
        every word has a memory of its own; in the upper half it ends a frame at the identity's end, and behind it.
        """
        data = self._identity + bytes(4 * DEPTH - len(self._identity))
        m.submodules.bytes = content = memory.Memory(
            shape=8, depth=8 * DEPTH, init=bytes(4 * DEPTH) + data, attrs=NO_CHECK
        )
        for n in range(4):
            port = content.write_port()
            m.d.comb += [
                port.addr.eq(Cat(C(n, 2), head, C(0, 1))),
                port.data.eq(self.i.payload.data.word_select(n, 8)),
                port.en.eq(write),
            ]
        ends = [0] * DEPTH + [int(n + 1 >= len(self._identity) // 4) for n in range(DEPTH)]
        m.submodules.lasts = lasts = memory.Memory(shape=1, depth=2 * DEPTH, init=ends, attrs=NO_CHECK)
        port, last = lasts.write_port(), lasts.read_port()
        byte = content.read_port()
        m.d.comb += [
            port.addr.eq(Cat(head, C(0, 1))),
            port.data.eq(self.i.payload.last),
            port.en.eq(write),
            last.addr.eq(address),
            byte.addr.eq(Cat(position, address)),
        ]
        return byte.data, last.data
