"""Executes a program's words as the hardware does, packet by packet, and answers the reply packets.

Written from the instruction set (:mod:`maskwork.gen.isa`) and the rules of the stream, with one order where the
hardware's is free: every RUN completes before the next packet is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from maskwork.gen.config import CHUNK, POST_MAX_SHIFT, Config
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.gen.isa import (
    COMMANDS,
    COUNTERS,
    ISA_VERSION,
    MAX_WINDOW,
    REPLIES,
    Fault,
    Op,
    Reply,
    VectorKind,
    commands_of,
)
from maskwork.sim_tb.golden.mask_command import MaskCommand
from maskwork.sim_tb.golden.payload import Payload, RefusedError, packed_values, packed_words, require
from maskwork.sim_tb.golden.rows import ABank, BBank, CBank, Cluster, Parameters, fold, run_cluster
from maskwork.sim_tb.golden.vector import vector
from numpy.typing import ArrayLike, NDArray

BoolArray = NDArray[np.bool_]
Words = NDArray[np.uint32]
Fields = dict[str, int]

_NEEDS_BEGIN = frozenset({Op.LOAD_A, Op.LOAD_B, Op.LOAD_C, Op.LOAD_P, Op.RUN, Op.VECTOR, Op.MASK})


class Interpreter:
    """The golden accelerator: words in, reply packets out. State persists from one call to the next.

    Where the hardware is free, the interpreter does this: rows leave in order (of a RUN on several clusters, cluster
    by cluster; of a shared row, lane by lane); a row that is not shared names the first lane of its cluster; ABORT
    finds every earlier RUN completed; counters are zero except ``multiply``, the multiplies of present elements for
    wanted columns from BEGIN to SYNC. With ``skip`` = "abc" the hardware's ``multiply`` is the same number; a
    letter left out may make the hardware count multiplies that its masks could not skip.

    Args:
        config: the accelerator's configuration.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._begun = False
        self._counting = False
        self._multiplies = 0
        self._clusters = [Cluster() for _ in range(config.clusters)]
        self._masks = MaskCommand(config)

    def execute(self, words: ArrayLike, ends: Sequence[int] | Sequence[bool] | NDArray[np.generic]) -> list[Words]:
        """Execute whole packets.

        Args:
            words: the command stream, uint32, one-dimensional, whole beats of ``stream_words`` words.
            ends: where packets end: either an integer for each packet, the offset in words behind its last one, or
                a boolean for each beat, the stream's ``last``.

        Returns:
            The reply packets in order, each a uint32 array of whole beats.

        Raises:
            MaskworkTypeError: if ``words`` are not of integers.
            MaskworkValueError: if a word is out of range, or ``ends`` does not divide the words into packets of
                whole beats.
        """
        stream = self._checked_words(words)
        replies: list[Words] = []
        begin = 0
        for end in self._checked_ends(ends, len(stream)):
            replies += self._packet(stream[begin:end])
            begin = end
        return replies

    # ------------------------------------------------------------------ framing

    @staticmethod
    def _checked_words(words: ArrayLike) -> Words:
        array = np.asarray(words)
        if array.ndim != 1:
            raise MaskworkValueError(f"words must have one dimension, not shape {array.shape}")
        if array.dtype.kind not in "iu" and array.size:
            raise MaskworkTypeError(f"words must be an array of uint32, not {array.dtype}")
        if array.size and not 0 <= int(array.min()) <= int(array.max()) < 1 << 32:
            raise MaskworkValueError("words must be from 0 to 2**32 - 1")
        return array.astype(np.uint32)

    def _checked_ends(self, ends: Sequence[int] | Sequence[bool] | NDArray[np.generic], length: int) -> list[int]:
        beat = self.config.stream_words
        array = np.asarray(ends)
        if array.dtype == np.bool_:
            if array.shape != (-(-length // beat),):
                raise MaskworkValueError(f"ends must have a `last` for each of {-(-length // beat)} beats")
            array = (np.flatnonzero(array) + 1) * beat
        offsets = [int(v) for v in array.tolist()]
        if any(e % beat for e in offsets) or [0, *offsets] != sorted({0, *offsets}) or [0, *offsets][-1] != length:
            raise MaskworkValueError(
                f"ends must rise to the number of words ({length}) in whole beats of {beat} words, not {offsets[:9]}"
            )
        return offsets

    def _packet(self, words: Words) -> list[Words]:
        code = int(words[0]) & 0xFF
        try:
            return self._command(code, words)
        except RefusedError as refused:
            return [self._reply(Reply.ERROR, fault=refused.fault, opcode=code)]

    def _command(self, code: int, words: Words) -> list[Words]:
        try:
            op = Op(code)
        except ValueError:
            raise RefusedError(Fault.UNKNOWN_OPCODE) from None
        require(op in commands_of(self.config), Fault.UNKNOWN_OPCODE)
        if op == Op.BEGIN:  # by its first word, whatever becomes of the packet
            self._counting, self._multiplies = True, 0
        layout = COMMANDS[op]
        header = layout.beats(self.config.stream_words) * self.config.stream_words
        require(len(words) >= header, Fault.SHORT_PACKET)
        require(bool(layout.payload) or len(words) == header, Fault.LONG_PACKET)
        fields = layout.decode(words[: layout.words].tolist())
        require(self._begun or op not in _NEEDS_BEGIN, Fault.NOT_BEGUN)
        payload = words[header:]
        match op:
            case Op.BEGIN:
                self._begin(fields)
            case Op.IDENTIFY:
                return [self._identity()]
            case Op.ECHO:
                return [self._reply(Reply.ECHOED, token=fields["token"])]
            case Op.SYNC:
                self._counting = False
                return [self._reply(Reply.SYNCED, tag=fields["tag"])]
            case Op.ABORT:
                self._empty()
                self._masks.clear()
                return [self._reply(Reply.ABORTED)]
            case Op.READ_COUNTERS:
                return [self._counters()]
            case Op.LOAD_A:
                self._load_a(fields, payload)
            case Op.LOAD_B:
                self._load_b(fields, payload)
            case Op.LOAD_C:
                self._load_c(fields, payload)
            case Op.LOAD_P:
                self._load_p(fields, payload)
            case Op.RUN:
                return self._run(fields)
            case Op.VECTOR:
                return self._vector(fields, payload)
            case Op.MASK:
                reply, fault = self._masks.execute(fields, payload)
                return [reply, *self._behind(fault, op)]
        return []

    # ------------------------------------------------------------------ replies and state

    def _padded(self, words: list[int]) -> list[int]:
        return words + [0] * (-len(words) % self.config.stream_words)

    def _reply(self, reply: Reply, **values: int) -> Words:
        return np.array(self._padded(REPLIES[reply].encode(values)), np.uint32)

    def _identity(self) -> Words:
        c = self.config
        return self._reply(
            Reply.IDENTITY, version=ISA_VERSION, config=c.hash, lanes=c.lanes, pes_per_lane=c.pes_per_lane,
            slots=c.slots, stream_words=c.stream_words,
        )  # fmt: skip

    def _counters(self) -> Words:
        words = []
        for name in COUNTERS:
            value = self._multiplies if name == "multiply" and self.config.counters else 0
            words += [value & 0xFFFFFFFF, value >> 32 & 0xFFFF]
        return np.array(self._padded(REPLIES[Reply.COUNTERS].encode({})) + self._padded(words), np.uint32)

    def _empty(self) -> None:
        self._clusters = [Cluster() for _ in range(self.config.clusters)]

    def _begin(self, fields: Fields) -> None:
        self._begun = False
        require(fields["version"] == ISA_VERSION, Fault.WRONG_VERSION)
        require(fields["config"] == self.config.hash, Fault.WRONG_CONFIG)
        self._begun = True
        self._empty()

    # ------------------------------------------------------------------ loads

    def _selected(self, fields: Fields) -> list[Cluster]:
        mask = fields["clusters"]
        require(0 < mask < 1 << self.config.clusters, Fault.BAD_FIELD)
        return [cluster for index, cluster in enumerate(self._clusters) if mask >> index & 1]

    def _check_lanes_and_columns(self, fields: Fields) -> None:
        require(0 < fields["lanes"] < 1 << self.config.lanes_per_cluster, Fault.BAD_FIELD)
        require(1 <= fields["columns"] <= self.config.tile_columns, Fault.BAD_FIELD)

    @staticmethod
    def _check_banks(banks: Sequence[ABank | BBank | CBank], append: int) -> None:
        if append:
            require(all(bank.fresh for bank in banks), Fault.BANK_EMPTY)
        else:
            require(not any(bank.fresh for bank in banks), Fault.BANK_IN_USE)

    def _load_a(self, fields: Fields, payload: Words) -> None:
        config = self.config
        banks = [cluster.a[fields["bank"]] for cluster in self._selected(fields)]
        require(1 <= fields["segments"] <= config.a_segments, Fault.BAD_FIELD)
        require(1 <= fields["length"] <= config.k_depth, Fault.BAD_FIELD)
        require(bool(fields["dense"]) or "a" in config.skip, Fault.BAD_FIELD)
        self._check_banks(banks, fields["append"])
        # a bank that is begun anew holds nothing yet
        before = max(bank.segments if fields["append"] else 0 for bank in banks)
        stored = max(bank.words if fields["append"] else 0 for bank in banks)
        try:
            source = Payload(config, payload)
            values, present = source.rows(fields["segments"], fields["length"], config.a_width, fields["dense"])
            words = self._buffer_words(present)
            fits = stored + words <= config.a_depth and before + fields["segments"] <= config.a_segments
            source.check_complete(fits)
        except RefusedError:
            for bank in banks:
                bank.empty()
            raise
        folded = fold(values, config.k_depth), fold(present.astype(np.int64), config.k_depth)
        for bank in banks:
            if not fields["append"]:
                bank.clear()
            bank.append(*folded, words)
            bank.loaded = bank.fresh = True

    def _buffer_words(self, present: BoolArray) -> int:
        """Words that segments take in the activation buffer: a chunk with elements takes a head and its values."""
        rows, length = present.shape
        chunks = np.zeros((rows, -(-length // CHUNK) * CHUNK), np.bool_)
        chunks[:, :length] = present
        counts = chunks.reshape(-1, CHUNK).sum(axis=1)
        return int(np.where(counts > 0, 1 + -(-counts // self.config.fetch_width), 0).sum())

    def _load_b(self, fields: Fields, payload: Words) -> None:
        config = self.config
        banks = [cluster.b[fields["bank"]] for cluster in self._selected(fields)]
        rows, k = fields["rows"], fields["k"]
        require(rows >= 1 and k + rows <= config.k_depth, Fault.BAD_FIELD)
        alone = self._check_pairs(fields["lanes"], k + rows)
        self._check_lanes_and_columns(fields)
        require(bool(fields["dense"]) or "b" in config.skip, Fault.BAD_FIELD)
        self._check_banks(banks, fields["append"])
        try:
            source = Payload(config, payload)
            values, present = source.rows(rows, fields["columns"], config.b_width, fields["dense"])
            source.check_complete()
        except RefusedError:
            for bank in banks:
                bank.empty()
            raise
        for bank in banks:
            if not fields["append"]:
                bank.clear()
            for lane in (i for i in range(config.lanes_per_cluster) if fields["lanes"] >> i & 1):
                if lane not in bank.lanes:
                    shape = (config.k_depth, config.tile_columns)
                    bank.lanes[lane] = np.zeros(shape), np.zeros(shape)
                first = k + (lane % 2 * config.k_depth // 2 if alone else 0)
                for array, data in zip(bank.lanes[lane], (values, present), strict=True):
                    array[first : first + rows] = 0
                    array[first : first + rows, : fields["columns"]] = data
            bank.loaded = bank.fresh = True

    def _check_pairs(self, lanes: int, end: int) -> bool:
        """Lanes that share weights are loaded together, or alone (the answer), each with its half of the rows."""
        config = self.config
        pairs = [lanes >> first & 3 for first in range(0, config.lanes_per_cluster, 2)]
        alone = config.weight_lanes > 1 and (1 in pairs or 2 in pairs)
        require(not alone or (3 not in pairs and end <= config.k_depth // 2), Fault.BAD_FIELD)
        return alone

    def _load_c(self, fields: Fields, payload: Words) -> None:
        config = self.config
        banks = [cluster.c[fields["bank"]] for cluster in self._selected(fields)]
        require(1 <= fields["rows"] <= config.c_rows, Fault.BAD_FIELD)
        require(1 <= fields["columns"] <= config.tile_columns, Fault.BAD_FIELD)
        self._check_banks(banks, fields["append"])
        before = max(sum(map(len, bank.rows)) if fields["append"] else 0 for bank in banks)
        try:
            source = Payload(config, payload)
            bits = source.bitmaps(fields["rows"], fields["columns"])
            source.check_complete(before + fields["rows"] <= config.c_rows)
        except RefusedError:
            for bank in banks:
                bank.empty()
            raise
        masks = np.zeros((fields["rows"], config.tile_columns), np.bool_)
        masks[:, : fields["columns"]] = bits
        for bank in banks:
            if not fields["append"]:
                bank.clear()
            bank.rows.append(masks)
            bank.loaded = bank.fresh = True

    def _load_p(self, fields: Fields, payload: Words) -> None:
        clusters, bank, columns = self._selected(fields), fields["bank"], fields["columns"]
        smallest, largest = -(1 << (self.config.a_width - 1)), (1 << (self.config.a_width - 1)) - 1
        low, high = (min(max(fields[name], smallest), largest) for name in ("low", "high"))
        self._check_lanes_and_columns(fields)
        require(self.config.post, Fault.BAD_FIELD)
        stochastic = bool(fields["stochastic"])
        require(not stochastic or (self.config.stochastic and fields["seed"] != 0), Fault.BAD_FIELD)
        try:
            source = Payload(self.config, payload)
            words = source.take(2 * columns).astype(np.int64).reshape(columns, 2)
            source.check_complete()
        except RefusedError:
            for cluster in clusters:
                cluster.p_loaded[bank] = False
            raise
        fresh = np.zeros((3, self.config.tile_columns), np.int64)
        fresh[0, :columns] = words[:, 0].astype(np.uint32).view(np.int32)
        fresh[1, :columns] = words[:, 1] & 0xFFFFFF
        fresh[2, :columns] = np.minimum(words[:, 1] >> 24 & 0x3F, 62)
        for cluster in clusters:
            for lane in (i for i in range(self.config.lanes_per_cluster) if fields["lanes"] >> i & 1):
                bias, mult, shift = fresh
                cluster.p[bank][lane] = Parameters(bias, mult, shift, fields["seed"] if stochastic else 0)
            cluster.limits[bank] = low, high
            cluster.p_loaded[bank] = True

    # ------------------------------------------------------------------ RUN

    def _run(self, fields: Fields) -> list[Words]:
        config = self.config
        clusters = self._selected(fields)
        require(fields["rows"] >= 1 and fields["columns"] < config.tile_columns, Fault.BAD_FIELD)
        if not (fields["first"] and fields["final"]):
            kept = config.psum_rows * (1 if fields["share"] else config.lanes_per_cluster)
            require(fields["rows"] <= kept, Fault.BAD_FIELD)
        require(config.post or not fields["post"], Fault.BAD_FIELD)
        for cluster in clusters:
            banks = [cluster.a[fields["a_bank"]], cluster.b[fields["b_bank"]]]
            banks += [cluster.c[fields["c_bank"]]] if fields["use_c"] else []
            require(all(bank.loaded for bank in banks), Fault.BANK_EMPTY)
            require(cluster.p_loaded[fields["b_bank"]] or not fields["post"], Fault.BANK_EMPTY)
        replies: list[Words] = []
        for index, cluster in enumerate(self._clusters):
            if not fields["clusters"] >> index & 1:
                continue
            cluster.a[fields["a_bank"]].fresh = cluster.b[fields["b_bank"]].fresh = False
            if fields["use_c"]:
                cluster.c[fields["c_bank"]].fresh = False
            packets, multiplies = run_cluster(config, cluster, index, fields, self._counting)
            replies += packets
            self._multiplies = (self._multiplies + multiplies) & ((1 << 48) - 1)
        return replies

    # ------------------------------------------------------------------ VECTOR

    def _vector(self, fields: Fields, payload: Words) -> list[Words]:
        """The VECTOR reply, and an ERROR behind it where the data are too short or too long."""
        config = self.config
        window, count = fields["window"], fields["count"]
        require(1 <= window <= MAX_WINDOW and count >= 1, Fault.BAD_FIELD)
        require(fields["kind"] in VectorKind.__members__.values(), Fault.BAD_FIELD)
        require(fields["shift"] <= POST_MAX_SHIFT, Fault.BAD_FIELD)
        values = packed_values(payload, config.a_width)
        complete = min(count, len(values) // window)
        windows = values[: complete * window].reshape(complete, window)
        smallest, largest = -(1 << (config.a_width - 1)), (1 << (config.a_width - 1)) - 1
        low, high = (min(max(fields[name], smallest), largest) for name in ("low", "high"))
        kind, mult0, mult1, shift = (fields[name] for name in ("kind", "mult0", "mult1", "shift"))
        outputs = vector(windows, kind, mult0, mult1, shift, low, high)
        used = -(-count * window // (32 // config.a_width * config.stream_words)) * config.stream_words
        fault = None
        if len(payload) < used:
            fault = Fault.SHORT_PACKET
            outputs = np.append(outputs, 0)  # in the place of the one that is not complete
        elif len(payload) > used:
            fault = Fault.LONG_PACKET
        header = self._padded(REPLIES[Reply.VECTOR].encode({"tag": fields["tag"], "count": count}))
        reply = np.array(header + self._padded(packed_words(outputs, config.a_width).tolist()), np.uint32)
        return [reply, *self._behind(fault, Op.VECTOR)]

    def _behind(self, fault: Fault | None, op: Op) -> list[Words]:
        """The ERROR behind a reply, if there is a fault."""
        return [] if fault is None else [self._reply(Reply.ERROR, fault=fault, opcode=op)]
