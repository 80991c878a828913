"""Words of the replies that the sequencer itself makes."""

from amaranth import *
from maskwork.gen.config import Config
from maskwork.gen.isa import COMMANDS, COUNTERS, ISA_VERSION, REPLIES, Op, Reply


def reply_words(m: Module, config: Config, sequencer, reply: Value, index: Value, header, fault: Value):
    """Adds what the word number ``index`` of a reply is (``sequencer.o.payload``), and which counter it needs.

    Of VECTOR's and MASK's replies only the header, padded to a beat; ``last`` never comes there.

    Args:
        m: the sequencer's module.
        config: the configuration.
        sequencer: its ports.
        reply: kind of the reply.
        index: number of the word in it.
        header: words of the command's header.
        fault: code, for ERROR.
    """
    identity = REPLIES[Reply.IDENTITY].encode(
        {
            "version": ISA_VERSION,
            "config": config.hash,
            "lanes": config.lanes,
            "pes_per_lane": config.pes_per_lane,
            "slots": config.slots,
            "stream_words": config.stream_words,
        }
    )
    out = sequencer.o.payload
    words = config.stream_words  # the counters begin on a beat of their own
    m.d.comb += [
        out.word.eq(reply),
        out.last.eq(1),
        sequencer.counter_address.eq((index - words)[: len(sequencer.counter_address) + 1] >> 1),
    ]
    with m.Switch(reply):
        with m.Case(Reply.IDENTITY):
            m.d.comb += [out.word.eq(Array(identity)[index[:2]]), out.last.eq(index == len(identity) - 1)]
        with m.Case(Reply.ECHOED):
            m.d.comb += out.last.eq(index == 1)
            with m.If(index == 1):
                m.d.comb += out.word.eq(header[1])
        with m.Case(Reply.SYNCED):
            m.d.comb += out.word.eq(Cat(reply, header[0][8:]))
        if config.vector:
            with m.Case(Reply.VECTOR):
                m.d.comb += [out.word.eq(0), out.last.eq(0)]
                with m.If(index == 0):
                    m.d.comb += out.word.eq(Cat(reply, header[0][8:16], header[1][16:]))
        if config.blocks:
            with m.Case(Reply.MASK):
                values = header[0][COMMANDS[Op.MASK].field("values").lsb]
                m.d.comb += [out.word.eq(0), out.last.eq(0)]
                with m.If(index == 0):
                    m.d.comb += out.word.eq(Cat(reply, header[0][8:16], values))
                with m.If(index == 1):
                    m.d.comb += out.word.eq(header[1])
        with m.Case(Reply.ERROR):
            m.d.comb += out.word.eq(Cat(reply, fault, header[0][:8]))
        with m.Case(Reply.COUNTERS):
            m.d.comb += out.last.eq(index == 2 * len(COUNTERS) + words - 1)
            with m.If(index != 0):
                m.d.comb += out.word.eq(0)
            with m.If(index >= words):
                low = index[0] == words % 2
                m.d.comb += out.word.eq(Mux(low, sequencer.counter_value[:32], sequencer.counter_value[32:]))
