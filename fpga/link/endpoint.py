"""The board's end of the link (docs/link.md): from bytes, or from a line, to the accelerator's two streams."""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from maskwork.fpga.link.beats import BeatGatherer, BeatSplitter, beat_shape
from maskwork.fpga.link.receiver import FrameReceiver
from maskwork.fpga.link.transmitter import FrameTransmitter, checked_identity
from maskwork.fpga.link.uart import BYTE, Rate, UartReceiver, UartTransmitter
from maskwork.rtl.hierarchy import submodule


class Endpoint(wiring.Component):
    """Bytes from and to the host, beats to and from the accelerator.

    Args:
        stream_words: words of a beat.
        identity: what READ_ID reads, of whole words.

    Members:
        bytes_in: bytes with their ``error``; one taken every 9 cycles.
        bytes_out: bytes; one offered every 10 cycles at best.
        o: beats to the accelerator. Its ``valid`` falls at RESET without a transfer: what takes it is reset, too.
        i: beats from the accelerator.
        reset: 9 cycles after a RESET frame.

    Raises:
        MaskworkValueError: for an identity of another length.
    """

    def __init__(self, stream_words: int, identity: bytes):
        self._stream_words = stream_words
        self._identity = checked_identity(identity)
        beat = stream.Signature(beat_shape(stream_words))
        super().__init__(
            {
                "bytes_in": In(stream.Signature(BYTE)),
                "bytes_out": Out(stream.Signature(8)),
                "o": Out(beat),
                "i": In(beat),
                "reset": Out(1),
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Endpoint", self._stream_words, self._identity)

    def elaborate(self, platform):
        m = Module()
        submodule(m, "receiver", receiver := FrameReceiver(), platform)
        submodule(m, "transmitter", transmitter := FrameTransmitter(self._identity), platform)
        wiring.connect(m, wiring.flipped(self.bytes_in), receiver.i)
        wiring.connect(m, transmitter.o, wiring.flipped(self.bytes_out))
        for name in ("control", "done", "begins", "reset", "expected", "free", "dropped"):
            m.d.comb += getattr(transmitter, name).eq(getattr(receiver, name))
        m.d.comb += self.reset.eq(receiver.reset)
        if self._stream_words == 1:
            wiring.connect(m, receiver.o, wiring.flipped(self.o))
            wiring.connect(m, wiring.flipped(self.i), transmitter.i)
            return m
        reset = Signal()
        m.d.comb += reset.eq(receiver.reset | ResetSignal())
        submodule(m, "gatherer", gatherer := BeatGatherer(self._stream_words), platform, reset)
        submodule(m, "splitter", splitter := BeatSplitter(self._stream_words), platform, reset)
        wiring.connect(m, receiver.o, gatherer.i)
        wiring.connect(m, gatherer.o, wiring.flipped(self.o))
        wiring.connect(m, wiring.flipped(self.i), splitter.i)
        wiring.connect(m, splitter.o, transmitter.i)
        return m


class Link(wiring.Component):
    """A UART with an :class:`Endpoint` behind it.

    Args:
        stream_words: words of a beat.
        clock_hz: frequency of the clock, Hz.
        baud: bits a second; at most a quarter of ``clock_hz``.
        identity: what READ_ID reads, of whole words.

    Members:
        rx, tx: the line, idle high.
        o, i, reset: see :class:`Endpoint`.

    Raises:
        MaskworkValueError: for a rate that cannot be made within 0.5 %, or an identity of another length.
    """

    def __init__(self, stream_words: int, clock_hz: float, baud: float, identity: bytes):
        self._rate = Rate.find(clock_hz, baud)
        self._stream_words = stream_words
        self._identity = checked_identity(identity)
        beat = stream.Signature(beat_shape(stream_words))
        line = {"rx": In(1, init=1), "tx": Out(1, init=1)}  # pyright: ignore[reportCallIssue]
        super().__init__({**line, "o": Out(beat), "i": In(beat), "reset": Out(1)})

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Link", self._rate, self._stream_words, self._identity)

    def elaborate(self, platform):
        m = Module()
        submodule(m, "uart_receiver", receiver := UartReceiver(self._rate), platform)
        submodule(m, "uart_transmitter", transmitter := UartTransmitter(self._rate), platform)
        submodule(m, "endpoint", endpoint := Endpoint(self._stream_words, self._identity), platform)
        wiring.connect(m, receiver.o, endpoint.bytes_in)
        wiring.connect(m, endpoint.bytes_out, transmitter.i)
        wiring.connect(m, endpoint.o, wiring.flipped(self.o))
        wiring.connect(m, wiring.flipped(self.i), endpoint.i)
        m.d.comb += [receiver.rx.eq(self.rx), self.tx.eq(transmitter.tx), self.reset.eq(endpoint.reset)]
        return m
