"""Processing element: mask lookup, queue, bit iterator, weights, multiplier and accumulators of ``slots`` columns."""

from amaranth import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config
from maskwork.rtl.accumulators import Accumulators
from maskwork.rtl.bit_iterator import BitIterator
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.hop import Hop
from maskwork.rtl.layouts import NO_CHECK
from maskwork.rtl.multiplier import Multiplier
from maskwork.rtl.queue import Queue
from maskwork.rtl.shared_weights import weight_address_width, weights_layout
from maskwork.rtl.slot_counter import SlotCounter

LOOKUP_LATENCY = 3
"""Cycles from a token at the lane's register to its mask at the PE's queue."""

QUEUE_MARGIN = LOOKUP_LATENCY + 2
"""Tokens that may still arrive after the queue's space flag was computed: those in lookup, one that the flag's own
register hides, and the one being decided on."""

MULTIPLY_LATENCY = 4
"""Cycles from a slot's issue to its sum in the accumulator's write port."""

DRAIN_READ_LATENCY = 1 + MULTIPLY_LATENCY + 1
"""Cycles from a drain command to the drained value at ``sum``."""


def context_width(config: Config) -> int:
    """Bits of a context number."""
    return (config.rows_in_flight - 1).bit_length()


def upper_width(config: Config) -> int:
    """Bits of the number of an accumulators' row above its context, which is the rest of it."""
    return (config.sum_rows - 1).bit_length() - context_width(config)


def token_layout(config: Config) -> data.StructLayout:
    """One nonzero of A on its way to the PEs of a lane; ``end`` marks the end of a row instead. It is added to the
    accumulators' row ``context``, ``upper``.
    """
    return data.StructLayout(
        {
            "k": config.k_width + 1,  # the top bit is the weight bank
            "a": signed(config.a_width),
            "context": context_width(config),
            "upper": upper_width(config),
            "end": 1,
        }
    )


def weight_write_layout(config: Config) -> data.StructLayout:
    """Write to one PE's weights (``we``: of each of ``load_slots`` slots) or number of slots (``columns_we``; appended
    loads only make it ``columns_grow``).
    """
    members = {
        "we": config.load_slots,
        "k": config.k_width + 1,
        "slot": range(config.slots // config.load_slots),
        "value": data.ArrayLayout(signed(config.b_width), config.load_slots),
    }
    if not set("bc") & set(config.skip):
        members |= {"columns_we": 1, "columns_grow": 1, "last_slot": range(config.slots)}
    return data.StructLayout(members)


def sum_layout(config: Config) -> data.StructLayout:
    """Number of an accumulator: slot, and above it the row, whose low bits are its context."""
    return data.StructLayout(
        {"slot": range(config.slots), "context": context_width(config), "upper": upper_width(config)}
    )


def drain_layout(config: Config) -> data.StructLayout:
    """Read, and thereby clear, of one accumulator."""
    return data.StructLayout({**sum_layout(config).members, "valid": 1})


def column_mask_layout(config: Config) -> data.StructLayout:
    """Write to part of a C mask: bits of ``32 / pes_per_lane`` slots a word. Rows are those of the accumulators."""
    return data.StructLayout(
        {
            "we": 1,
            "context": context_width(config),
            "upper": upper_width(config),
            "word": range(max(2, config.mask_words)),
            "mask": min(config.slots, 32 // config.pes_per_lane),
        }
    )


def early_layout(config: Config) -> data.StructLayout:
    """What of a token is needed before its masks are there."""
    return data.StructLayout({"context": context_width(config), "upper": upper_width(config), "end": 1})


class PE(wiring.Component):
    """One multiplier with its C masks, weights and accumulators.

    A token's k is looked up LOOKUP_LATENCY cycles before the token arrives; wanted slots (B mask AND C mask) are
    queued, iterated one a cycle, and added to the row's accumulator MULTIPLY_LATENCY cycles after their issue.
    A drain takes the place of an issue and goes the same way: it finds every sum that was issued before it.

    Members:
        ahead, early: row and end of a token, 2 cycles and a cycle before it is at ``token``.
        mask: slots of its k that are present, together with ``ahead`` and a cycle later in a register of the PE's own.
        token: that token.
        token_valid: it exists.
        column_mask: C mask of a row that starts.
        write: weights from the loader, written ``hop_stages`` cycles later.
        weight_address, weights: with ``weight_lanes`` above 1 the weights are outside
            (:mod:`~maskwork.rtl.shared_weights`): an address, and a cycle later the word that is there.
        drain: accumulator to read and clear.
        sum: drained value DRAIN_READ_LATENCY cycles later, else 0.
        done: per context, the end of the row has been issued.
        done_clear: clears ``done``.
        space: the queue takes what may be under way and one more token.
        working: a token waits or is iterated.
        multiply: a multiplication was issued.
        stolen: a multiplication was not issued, for a drain took its place.
    """

    def __init__(self, config: Config):
        self._config = config
        contexts = config.rows_in_flight
        members = {
            "ahead": In(early_layout(config)),
            "early": In(early_layout(config)),
            "token": In(token_layout(config)),
            "token_valid": In(1),
            "write": In(weight_write_layout(config)),
            "drain": In(drain_layout(config)),
            "sum": Out(signed(config.acc_width)),
            "done": Out(contexts),
            "done_clear": In(contexts),
            "space": Out(1),
            "working": Out(1),
            "multiply": Out(1),
            "stolen": Out(1),
        }
        if config.weight_lanes > 1:
            members["weight_address"] = Out(weight_address_width(config))
            members["weights"] = In(weights_layout(config))
        if "b" in config.skip:
            members["mask"] = In(config.slots)
        if "c" in config.skip:
            members["column_mask"] = In(column_mask_layout(config))
        super().__init__(members)

    def hierarchy_key(self):
        """Identity of the emitted module."""
        return ("PE", self._config.hash)

    def elaborate(self, platform):
        m = Module()
        config = self._config
        # a register of its own: the iterator and the queue wait for a drain in the cycle in which it comes
        drain = Signal(drain_layout(config))
        m.d.sync += drain.eq(self.drain)
        wanted = self._lookup(m)
        counting = wanted is None
        queue_shape = data.StructLayout({"mask": 0 if wanted is None else config.slots, "token": token_layout(config)})
        in_block_ram = not config.lut_ram
        submodule(m, "queue", queue := Queue(queue_shape, config.queue_depth, QUEUE_MARGIN, in_block_ram), platform)
        if counting:
            submodule(m, "iterator", iterator := SlotCounter(config.slots, token_layout(config)), platform)
            last_slots = Array([Signal(range(config.slots), name=f"last_slot{bank}") for bank in range(2)])
            last_slot = last_slots[self.write.k[-1]]
            with m.If(self.write.columns_we & ~(self.write.columns_grow & (self.write.last_slot < last_slot))):
                m.d.sync += last_slot.eq(self.write.last_slot)
            head = queue.o.payload.token
            m.d.comb += [
                queue.i.valid.eq(self.token_valid),
                iterator.i.payload.last.eq(Mux(head.end, 0, last_slots[head.k[-1]])),
            ]
        else:
            submodule(m, "iterator", iterator := BitIterator(config.slots, token_layout(config)), platform)
            m.d.comb += [
                queue.i.valid.eq(self.token_valid & wanted.any()),
                queue.i.payload.mask.eq(wanted),
                iterator.i.payload.mask.eq(queue.o.payload.mask),
            ]
        m.d.comb += [
            queue.i.payload.token.eq(self.token),
            iterator.i.valid.eq(queue.o.valid),
            queue.o.ready.eq(iterator.i.ready),
            iterator.i.payload.meta.eq(queue.o.payload.token),
            iterator.o.ready.eq(~drain.valid),
            self.space.eq(queue.space),
            self.working.eq((queue.level.any() if in_block_ram else queue.o.valid) | iterator.busy),
            self.multiply.eq(iterator.o.valid & iterator.o.ready & ~iterator.o.payload.meta.end),
            self.stolen.eq(iterator.o.valid & drain.valid),
        ]
        self._multiply_accumulate(m, iterator.o, drain, platform)
        return m

    def _lookup(self, m: Module) -> Value | None:
        """Wanted slots of the token that is now at ``token``; None if no mask says anything."""
        config = self._config
        wanted = None
        if "b" in config.skip:
            looked_up = Signal(config.slots, reset_less=True)
            m.d.sync += looked_up.eq(self.mask)
            wanted = looked_up
        if "c" in config.skip:
            column = self._column_mask_memory(m) if config.psum_in_pe else self._column_mask_registers(m)
            wanted = column if wanted is None else wanted & column
        if wanted is None:
            return None
        result = Signal(config.slots, name="wanted", reset_less=True)
        with m.If(self.early.end):
            m.d.sync += result.eq(1)  # an end is issued once
        with m.Else():
            m.d.sync += result.eq(wanted)
        return result

    def _column_mask_registers(self, m: Module) -> Value:
        """C mask of the row that ``early`` names: every context has one."""
        config, given = self._config, self.column_mask
        bits = len(given.mask)
        column_masks = []
        for context in range(config.rows_in_flight):
            register = Signal(config.slots, name=f"column_mask{context}")
            for word in range(config.slots // bits):
                with m.If(given.we & (given.context == context) & (given.word == word)):
                    m.d.sync += register.word_select(word, bits).eq(given.mask)
            column_masks.append(register)
        return Array(column_masks)[self.early.context]

    def _column_mask_memory(self, m: Module) -> Value:
        """The same, for every row whose sums are kept: its later K tiles come without a mask."""
        config, given = self._config, self.column_mask
        bits = len(given.mask)
        parts = []
        for word in range(config.slots // bits):
            attrs = {**NO_CHECK, "ram_style": "distributed"} if config.lut_ram else NO_CHECK
            m.submodules[f"column_masks{word}"] = masks = memory.Memory(
                shape=bits, depth=config.psum_rows, init=[], attrs=attrs
            )
            write, read = masks.write_port(), masks.read_port()
            m.d.comb += [
                write.addr.eq(Cat(given.context, given.upper)),
                write.data.eq(given.mask),
                write.en.eq(given.we & (given.word == word)),
                read.addr.eq(Cat(self.ahead.context, self.ahead.upper)),
            ]
            parts.append(read.data)
        return Cat(*parts)

    def _multiply_accumulate(self, m: Module, issue, drain, platform) -> None:
        config = self._config
        meta = issue.payload.meta
        # a group of slots is a word: loads write several slots in a cycle, and one of them is read
        group_bits = config.load_slots.bit_length() - 1
        read_address = Cat(issue.payload.index[group_bits:], meta.k)
        if config.weight_lanes > 1:
            m.d.comb += self.weight_address.eq(read_address)
            word = self.weights
        else:
            m.submodules.weights = weights = memory.Memory(
                shape=weights_layout(config), depth=1 << weight_address_width(config), init=[], attrs=NO_CHECK
            )
            write, read = weights.write_port(granularity=1), weights.read_port()
            given = self.write
            if config.hop_stages:
                submodule(m, "load_hop", hop := Hop(weight_write_layout(config), config.hop_stages), platform)
                m.d.comb += hop.i.eq(self.write)
                given = hop.o
            m.d.comb += [
                write.addr.eq(Cat(given.slot, given.k)),
                write.data.eq(given.value),
                write.en.eq(given.we),
                read.addr.eq(read_address),
            ]
            word = read.data
        place = Signal(group_bits)
        m.d.sync += place.eq(issue.payload.index[:group_bits])
        weight = word[place] if group_bits else word[0]
        # stage 1: block RAM; stage 2: its register; stage 3: the multiplier's operand registers; stage 4: product
        # registered, accumulate. A drain's bubble multiplies by 0, for its sum leaves through the adder
        submodule(m, "multiplier", multiplier := Multiplier(config.a_width, config.b_width), platform)
        a1, a2 = (Signal(signed(config.a_width), name=f"a{stage}", reset_less=True) for stage in (1, 2))
        b2 = Signal(signed(config.b_width), reset_less=True)
        with m.If(drain.valid):
            m.d.sync += a1.eq(0)
        with m.Else():
            m.d.sync += a1.eq(meta.a)
        m.d.sync += [a2.eq(a1), b2.eq(weight)]
        m.d.comb += [multiplier.a.eq(a2), multiplier.b.eq(b2)]

        drains = drain.valid
        issued = issue.valid & ~drains
        m.d.sync += self.done.eq((self.done & ~self.done_clear) | Mux(issued & meta.end, 1 << meta.context, 0))
        address = Mux(
            drains,
            Cat(drain.slot, drain.context, drain.upper),
            Cat(issue.payload.index, meta.context, meta.upper),
        )
        adds = issued & ~meta.end
        submodule(m, "accumulators", accumulators := Accumulators(config), platform)
        for stage in range(MULTIPLY_LATENCY - accumulators.lead):
            after = (
                Signal(len(address), name=f"address{stage}"),
                Signal(name=f"adds{stage}"),
                Signal(name=f"drains{stage}"),
            )
            m.d.sync += [b.eq(a) for a, b in zip((address, adds, drains), after, strict=True)]
            address, adds, drains = after
        m.d.comb += [
            accumulators.address.eq(address),
            accumulators.adds.eq(adds),
            accumulators.drains.eq(drains),
            accumulators.product.eq(multiplier.product),
            self.sum.eq(accumulators.sum),
        ]
