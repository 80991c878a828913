"""Drain: takes finished rows out of a lane's accumulators, through partial sums, to post-processing."""

from amaranth import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.rtl.bit_iterator import BitIterator
from maskwork.rtl.compress import header_beats
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.layouts import NO_CHECK, clog2, row_meta_layout
from maskwork.rtl.pe import DRAIN_READ_LATENCY, context_width, sum_layout, upper_width
from maskwork.rtl.post import PostKind, PostWord
from maskwork.rtl.queue import Queue

DRAIN_LATENCY = 1 + DRAIN_READ_LATENCY + 2
"""Cycles from a column's choice to its total at the partial-sum buffer or at ``o``: a register to the PEs, the PE, the
OR over PEs, the addition."""


DRAIN_GAP = 4
"""Cycles from a lane's END word to its next START, at least."""


class Drain(wiring.Component):
    """Drains contexts whose row has ended, in turns, wanted columns only, in rising order.

    Row headers are kept in LUT RAM (or block RAM), by context. A row whose K tile is not the final one leaves its sums
    in the partial-sum buffer; the final one goes to ``o`` once ``grant`` came, and pauses while ``space`` is low. The
    next row follows while a row's last words are on their way.

    With ``psum_in_pe`` only final K tiles are drained, from the row of the accumulators where their sums are: in the
    order in which they were finished, whatever the contexts do meanwhile. Headers are then kept for each such row, in
    block RAM.

    Members:
        header, header_word, header_index, context, upper: from the expander (``context`` is the ring it reads).
        done: per context, every PE has finished the row.
        done_clear: to the PEs, once all columns are asked for; also the expander's ``release``.
        finish, finish_row: one cycle: the sums of that row of the accumulators are complete (``psum_in_pe``).
        drained: one cycle: all columns of ``row`` are asked for (``psum_in_pe``).
        drain, select: accumulator to read and clear, and in which PEs; registered.
        sum: OR of the PEs' sums, DRAIN_READ_LATENCY cycles after ``drain``.
        o: post-processing words, valid only; up to DRAIN_LATENCY + 2 words follow after ``space`` fell.
        request, grant, space: arbitration of post-processing, held from ``request`` until the row's END word is on its
            way.
        finished: one cycle: a row of weight bank ``finished_bank`` has left.
        active: a row is being drained.
        scrubs: accumulators are being cleared, after a reset.
    """

    def __init__(self, config: Config):
        self._config = config
        contexts = config.rows_in_flight
        self._header_words = 2 + config.mask_words
        super().__init__(
            {
                "header": In(1),
                "header_word": In(32),
                "header_index": In(range(self._header_words)),
                "context": In(context_width(config)),
                "upper": In(upper_width(config)),
                "done": In(contexts),
                "done_clear": Out(contexts),
                "finish": In(1),
                "finish_row": In(context_width(config) + upper_width(config)),
                "drained": Out(1),
                "row": Out(context_width(config) + upper_width(config)),
                "drain": Out(sum_layout(config)),
                "select": Out(config.pes_per_lane),
                "sum": In(signed(config.acc_width)),
                "lane": In(8),
                "o": Out(data.StructLayout({"valid": 1, "word": PostWord(config)})),
                "request": Out(1),
                "grant": In(1),
                "space": In(1),
                "finished": Out(1),
                "finished_bank": Out(1),
                "active": Out(1),
                "scrubs": Out(1, init=1),  # pyright: ignore[reportCallIssue]
            }
        )

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("Drain", self._config.hash)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        pes = config.pes_per_lane
        words = 1 << clog2(self._header_words)
        # the START word's fields, the row number, mask words
        width = max(row_meta_layout(config).size, 16, min(32, config.tile_columns))
        in_lut_ram = config.lut_ram and not config.psum_in_pe
        m.submodules.headers = headers = memory.Memory(
            shape=width, depth=words << len(self.row), init=[], attrs={} if in_lut_ram else NO_CHECK
        )
        index, next_index = Signal(range(words)), Signal(range(words))
        # of the accumulators: its low bits are the context, and all there is without psum_in_pe
        row, next_row = self.row, Signal.like(self.row)
        context = row[: context_width(config)]
        m.d.comb += [next_index.eq(index), next_row.eq(row)]
        m.d.sync += [index.eq(next_index), row.eq(next_row)]
        # LUT RAM shows the word at `row` and `index`; block RAM does too, when asked a cycle before
        write, read = headers.write_port(), headers.read_port(domain="comb" if in_lut_ram else "sync")
        address = Cat(index, row) if in_lut_ram else Cat(next_index, next_row)
        m.d.comb += [
            write.addr.eq(
                Cat(self.header_index, Const(0, clog2(words) - len(self.header_index)), self.context, self.upper)
            ),
            write.data.eq(self.header_word),
            write.en.eq(self.header),
            read.addr.eq(address),
        ]
        mask_width = min(16, config.tile_columns)
        parts = -(-config.tile_columns // mask_width)  # of a row's mask, each its turn in the iterator
        submodule(m, "columns", columns := BitIterator(mask_width, clog2(parts)), platform)
        part = Signal(range(max(2, parts)))
        given = Signal()  # the iterator took the part; what follows from that waits a cycle, for its readiness is late
        halves = part[: 1 if config.tile_columns > mask_width else 0]
        mask_part = read.data.word_select(halves, mask_width)
        column = Signal(range(config.tile_columns))
        m.d.comb += column.eq(Cat(columns.o.payload.index, columns.o.payload.meta))
        # a row's last words are still on their way when the next row begins: there are two of everything
        which = Signal()  # of the row that begins
        metas = Array([Signal(row_meta_layout(config), name=f"meta{n}", reset_less=True) for n in range(2)])
        rows = Array([Signal(16, name=f"row{n}", reset_less=True) for n in range(2)])
        meta = metas[which]
        go = Signal()
        scrub = self.scrubs
        scrubbed = Signal(len(self.drain.as_value()))
        pe_bits = pes.bit_length() - 1
        at = Signal(sum_layout(config))
        m.d.comb += [
            at.slot.eq(column[pe_bits:]),
            Cat(at.context, at.upper).eq(row),
        ]

        stage_valid, stage_starts, stage_ends, stage_which = (
            Signal(DRAIN_LATENCY, name=f"stage_{n}") for n in ("valid", "starts", "ends", "which")
        )
        starting, ending = Signal(), Signal()
        stage_columns = [
            Signal(range(config.tile_columns), name=f"column{n}", reset_less=True) for n in range(DRAIN_LATENCY)
        ]
        total = Signal(signed(config.acc_width), reset_less=True)
        lane_sum = Signal(signed(config.acc_width), reset_less=True)
        m.d.comb += columns.o.ready.eq(go)
        m.d.sync += go.eq(self.space | ~meta.final)
        m.d.sync += [
            self.drain.eq(Mux(scrub, scrubbed, at)),
            *(pe.eq((columns.o.valid & go & (column[:pe_bits] == n)) | scrub) for n, pe in enumerate(self.select)),
        ]
        # PEs without C masks also sum what nobody wants: that is taken out (and so cleared), but not passed on
        wanted = Array([Signal(mask_width if "c" not in config.skip else 0, name=f"wanted{n}") for n in range(parts)])
        is_wanted: Value = Const(1)
        if "c" not in config.skip:
            is_wanted = Cat(*wanted).bit_select(column, 1)
        m.d.sync += [
            stage_valid.eq(Cat(columns.o.valid & go & is_wanted, stage_valid)),
            stage_starts.eq(Cat(starting, stage_starts)),
            stage_ends.eq(Cat(ending, stage_ends)),
            stage_which.eq(Cat(which, stage_which)),
            lane_sum.eq(self.sum),
            *(b.eq(a) for a, b in zip([column, *stage_columns], stage_columns, strict=False)),
        ]
        if config.psum_in_pe:
            m.d.sync += total.eq(lane_sum)
        else:
            self._partial_sums(m, metas, stage_which, stage_valid, stage_columns, lane_sum, total)

        out, left = self.o.word, metas[stage_which[-1]]
        m.d.comb += [
            self.o.valid.eq((stage_valid[-1] | stage_starts[-1] | stage_ends[-1]) & left.final),
            out.kind.eq(Mux(stage_starts[-1], PostKind.START, Mux(stage_ends[-1], PostKind.END, PostKind.VALUE))),
            out.lane.eq(self.lane),
            out.column.eq(stage_columns[-1]),
            out.value.eq(total),
            out.row.eq(rows[stage_which[-1]]),
            out.tag.eq(left.tag),
            out.post.eq(left.post),
            out.bank.eq(left.bank),
            self.finished.eq(stage_ends[-1]),
            self.finished_bank.eq(left.bank),
        ]
        if config.psum_in_pe:
            finished = Queue(len(row), config.psum_rows, 1, not config.lut_ram)
            submodule(m, "finished_rows", finished, platform)
            m.d.comb += [finished.i.valid.eq(self.finish), finished.i.payload.eq(self.finish_row)]
        with m.FSM():
            with m.State("SCRUB"):
                # accumulators may hold sums of a row that a reset interrupted
                m.d.sync += scrubbed.eq(scrubbed + 1)
                with m.If(scrubbed.all()):
                    m.d.sync += scrub.eq(0)
                    m.next = "IDLE"
            if config.psum_in_pe:
                with m.State("IDLE"):
                    m.d.comb += [finished.o.ready.eq(1), next_row.eq(finished.o.payload), next_index.eq(0)]
                    with m.If(finished.o.valid):
                        m.next = "META"
                with m.State("META"):
                    m.d.comb += [self.active.eq(1), next_index.eq(1)]
                    m.d.sync += metas[which].eq(read.data[: row_meta_layout(config).size])
                    m.next = "ROW"
            else:
                with m.State("IDLE"):
                    m.d.sync += metas[which].eq(read.data[: row_meta_layout(config).size])
                    with m.If(self.done.bit_select(context, 1)):
                        m.d.comb += next_index.eq(1)
                        m.next = "ROW"
                    with m.Else():
                        m.d.comb += next_row.eq(row + 1)
            with m.State("ROW"):
                m.d.comb += self.active.eq(1)
                m.d.sync += rows[which].eq(read.data)
                m.d.comb += next_index.eq(2)
                m.next = "REQUEST"
            with m.State("REQUEST"):
                m.d.comb += [self.active.eq(1), self.request.eq(meta.final)]
                with m.If(~meta.final):
                    m.next = "MASK"
                with m.Elif(self.grant & self.space):
                    m.d.comb += starting.eq(1)
                    m.next = "MASK"
            with m.State("MASK"):
                m.d.comb += [
                    self.active.eq(1),
                    self.request.eq(meta.final),
                    columns.i.valid.eq(~given),
                    columns.i.payload.mask.eq(mask_part if "c" in config.skip else ~0),
                    columns.i.payload.meta.eq(part),
                ]
                m.d.sync += given.eq(columns.i.ready & ~given)
                with m.If(given):
                    m.d.comb += next_index.eq(2 + ((part + 1) * mask_width >> 5))
                    m.d.sync += [part.eq(part + 1), wanted[part].eq(mask_part)]
                    with m.If(part == parts - 1):
                        m.next = "COLUMNS"
            with m.State("COLUMNS"):
                # the END word leaves while the next lane is chosen, so that its START comes right behind; not where a
                # result's head takes so long that words would fill the queue behind the lanes, and `space` fall
                holds = columns.busy if header_beats(config) <= 2 else 1
                m.d.comb += [self.active.eq(1), self.request.eq(meta.final & holds)]
                with m.If(~columns.busy):
                    # the context's next row goes the same way through the PEs, behind what was just read
                    m.d.comb += ending.eq(1)
                    m.d.sync += [part.eq(0), which.eq(~which)]
                    if config.psum_in_pe:
                        m.d.comb += self.drained.eq(1)
                        m.next = "IDLE"
                    else:
                        m.d.comb += [self.done_clear.eq(1 << context), next_row.eq(row + 1), next_index.eq(0)]
                        m.next = "NEXT"
            if not config.psum_in_pe:
                with m.State("NEXT"):
                    # the header of the next context is at the read port one cycle later
                    m.next = "IDLE"
        return m

    def _partial_sums(self, m, metas, stage_which, stage_valid, stage_columns, lane_sum, total):
        config = self._config
        m.submodules.partial_sums = sums = memory.Memory(
            shape=signed(config.acc_width), depth=config.psum_rows * config.tile_columns, init=[], attrs=NO_CHECK
        )
        read, write = sums.read_port(), sums.write_port()
        slot_bits = (config.psum_rows - 1).bit_length()
        kept = Signal(signed(config.acc_width), reset_less=True)
        # plain registers become the block RAM's own where it has some: a shorter way, for a LUT a bit before the adder
        plain = config.lut_ram
        first = metas[stage_which[-2 if plain else -3]].first
        m.d.comb += [
            # read two cycles before the addition: memory, then register
            read.addr.eq(Cat(stage_columns[-4], metas[stage_which[-4]].slot[:slot_bits])),
            write.addr.eq(Cat(stage_columns[-1], metas[stage_which[-1]].slot[:slot_bits])),
            write.data.eq(total),
            write.en.eq(stage_valid[-1] & ~metas[stage_which[-1]].final),
        ]
        m.d.sync += [
            kept.eq(read.data if plain else Mux(first, 0, read.data)),
            total.eq(lane_sum + (Mux(first, 0, kept) if plain else kept)),
        ]
