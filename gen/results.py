"""From reply words back to arrays: whole results or an error, whatever the order of rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from maskwork.gen import pack
from maskwork.gen.errors import DeviceError
from maskwork.gen.isa import COUNTERS, FAULT_DOCS, REPLIES, Fault, MaskKind, Op, Reply
from maskwork.gen.mask_replies import mask_reply
from maskwork.gen.program import Program
from numpy.typing import NDArray

_RESULT = REPLIES[Reply.RESULT]
_NOBODYS = -2
"""Column that a shared RUN computes for its widest lane, but that this lane has not: post-processing may fill it."""


def fault_message(word: int) -> str:
    """One line about an ERROR reply's word."""
    fields = REPLIES[Reply.ERROR].decode([word])
    fault, opcode = fields["fault"], fields["opcode"]
    command = Op(opcode).name if opcode in Op.__members__.values() else f"{opcode:#04x}"
    if fault not in Fault.__members__.values():
        return f"the accelerator answered command {command} with unknown fault {fault}"
    return f"the accelerator answered command {command} with {Fault(fault).name}: {FAULT_DOCS[Fault(fault)]}"


def parse_counters(words: NDArray[np.uint32], stream_words: int) -> dict[str, int]:
    """Counters of a COUNTERS packet (header included): name -> 48-bit count.

    Raises:
        DeviceError: if the packet is too short.
    """
    head = REPLIES[Reply.COUNTERS].beats(stream_words) * stream_words
    if len(words) < head + 2 * len(COUNTERS):
        raise DeviceError(f"a COUNTERS reply must have {head + 2 * len(COUNTERS)} words, not {len(words)}")
    values = [int(w) for w in words[head : head + 2 * len(COUNTERS)]]
    return {name: values[2 * i] | (values[2 * i + 1] & 0xFFFF) << 32 for i, name in enumerate(COUNTERS)}


class ResultAssembler:
    """Collects the reply stream of one run of a program.

    Members:
        synced: tags of the SYNCED replies so far.
        counters: the last COUNTERS reply, or None.
        packets: packets of results (RESULT, VECTOR, MASK) so far.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.config = program.config
        self.synced: list[int] = []
        self.counters: dict[str, int] | None = None
        self.packets = 0
        self._rest = np.zeros(0, dtype=np.uint32)
        self._build()

    def _build(self) -> None:
        """Tables: parts of all runs one after the other, each with its output rows (flat) and columns."""
        config, runs = self.config, self.program.results
        names = list(self.program.outputs)
        self._arrays = {
            name: np.zeros((int(np.prod(spec["shape"][:-1], dtype=np.int64)), spec["shape"][-1]), dtype=np.int64)
            for name, spec in self.program.outputs.items()
        }
        self._part_of = np.full((len(runs), config.lanes), -1, dtype=np.int64)
        self._row0 = np.array([run["row"] for run in runs], dtype=np.int64)
        self._by_tag: dict[int, NDArray[np.int64]] = {}
        self._size = np.zeros(len(runs), dtype=np.int64)
        rows, columns, outputs = [], [], []
        self._part_run: list[int] = []
        for number, run in enumerate(runs):
            widest = max(pack.count_ranges(part["columns"]) for part in run["parts"])
            for part in run["parts"]:
                first, count = part["lanes"]
                self._part_of[number, first : first + count] = len(rows)
                rows.append(pack.expand_ranges(part["rows"]))
                wanted = np.full(config.tile_columns, -1, dtype=np.int64)
                own = pack.expand_ranges(part["columns"])
                wanted[:widest] = _NOBODYS
                wanted[: len(own)] = own
                columns.append(wanted)
                outputs.append(names.index(run["output"]))
                self._part_run.append(number)
                self._size[number] += len(rows[-1])
        self._names = names
        self._output = np.array(outputs, dtype=np.int64)
        self._columns = np.array(columns, dtype=np.int64).reshape(-1, config.tile_columns)
        self._rows_of = np.array([len(r) for r in rows], dtype=np.int64)
        self._offset = np.cumsum(self._rows_of) - self._rows_of
        self._rows = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
        self._seen = np.zeros(len(self._rows), dtype=np.bool_)
        self._vectors_seen = self._masks_seen = 0
        self._mask_commands = [command for command in self.program.commands if command["op"] == Op.MASK.name]
        tags = np.array([run["tag"] for run in runs], dtype=np.int64)
        for tag in np.unique(tags):
            self._by_tag[int(tag)] = np.flatnonzero(tags == tag)
        self._ends = {tag: np.cumsum(self._size[index]) for tag, index in self._by_tag.items()}
        self._taken = dict.fromkeys(self._by_tag, 0)

    # ------------------------------------------------------------------ input

    def feed(self, words: NDArray[np.uint32], last: NDArray[np.bool_]) -> None:
        """Take reply words: whole beats, and a ``last`` flag for each; packets may go on in the next call.

        Raises:
            DeviceError: for an ERROR reply, or a packet that does not belong to the program.
        """
        sw = self.config.stream_words
        words = np.asarray(words, dtype=np.uint32)
        flags = np.asarray(last, dtype=np.bool_)
        if len(words) != len(flags) * sw:
            raise DeviceError(f"reply words must be whole beats of {sw} words with a last flag each, not {len(words)}")
        carried = len(self._rest)
        words = np.concatenate([self._rest, words])
        ends = (np.flatnonzero(flags) + 1) * sw + carried
        self._rest = words[ends[-1] if len(ends) else 0 :]
        self._take(words, np.concatenate([[0], ends]).astype(np.int64))

    def feed_packets(self, packets: Iterable[NDArray[np.uint32]]) -> None:
        """Take whole reply packets, as arrays of words.

        Raises:
            DeviceError: as :meth:`feed`.
        """
        arrays = [np.asarray(p, dtype=np.uint32) for p in packets]
        if arrays:
            starts = np.concatenate([[0], np.cumsum([len(a) for a in arrays])]).astype(np.int64)
            self._take(np.concatenate(arrays), starts)

    def _take(self, words: NDArray[np.uint32], edges: NDArray[np.int64]) -> None:
        starts, sizes = edges[:-1], np.diff(edges)
        if not len(starts):
            return
        kinds = words[starts] & 0xFF
        is_result = kinds == Reply.RESULT
        for start, size in zip(starts[~is_result], sizes[~is_result], strict=True):
            self._other(words[start : start + size])
        starts, sizes = starts[is_result], sizes[is_result]
        if len(starts):
            self._results(words, starts, sizes)

    def _other(self, packet: NDArray[np.uint32]) -> None:
        kind = int(packet[0]) & 0xFF
        if kind == Reply.ERROR:
            raise DeviceError(fault_message(int(packet[0])))
        if kind not in Reply.__members__.values():
            raise DeviceError(f"the accelerator sent an unknown reply {kind:#04x}")
        if kind == Reply.SYNCED:
            self.synced.append(REPLIES[Reply.SYNCED].decode([int(packet[0])])["tag"])
        elif kind == Reply.VECTOR:
            self._vector(packet)
        elif kind == Reply.MASK:
            self._mask(packet)
        elif kind == Reply.COUNTERS:
            self.counters = parse_counters(packet, self.config.stream_words)

    def _vector(self, packet: NDArray[np.uint32]) -> None:
        """Store the outputs of the next VECTOR: their replies come in its program's order."""
        config, layout = self.config, REPLIES[Reply.VECTOR]
        reply = layout.decode([int(packet[0])])
        if self._vectors_seen == len(self.program.vectors):
            raise DeviceError(f"there are more VECTOR replies than the program's {self._vectors_seen}")
        entry = self.program.vectors[self._vectors_seen]
        elements = pack.expand_ranges(entry["elements"])
        if (reply["tag"], reply["count"]) != (entry["tag"], len(elements)):
            raise DeviceError(
                f"a VECTOR reply does not belong to the program: tag {reply['tag']} with {reply['count']} outputs "
                f"instead of tag {entry['tag']} with {len(elements)}"
            )
        head = layout.beats(config.stream_words) * config.stream_words
        expected = head + pack.value_words(len(elements), config.a_width, config.stream_words)
        if len(packet) != expected:
            raise DeviceError(
                f"a VECTOR reply with {len(elements)} outputs must have {expected} words, not {len(packet)}"
                + (" (its command was cut short)" if len(packet) < expected else "")
            )
        values = pack.unpack_values(packet[None, head:], len(elements), config.a_width)[0]
        self._arrays[entry["output"]].reshape(-1)[elements] = values
        self._vectors_seen += 1
        self.packets += 1

    def _mask(self, packet: NDArray[np.uint32]) -> None:
        """Store what the next MASK made: the replies come in its program's order."""
        masks = self.program.masks
        if self._masks_seen == len(masks):
            raise DeviceError(f"there are more MASK replies than the program's {len(masks)}")
        entry, command = masks[self._masks_seen], self._mask_commands[self._masks_seen]
        values, stats = mask_reply(self.config, command, packet)
        rows = pack.expand_ranges(entry["rows"])
        output = self._arrays[entry["output"]]
        output[rows] = values + (output[rows] if command["kind"] == MaskKind.NORMS else 0)
        if stats is not None:
            self._arrays[entry["stats"]][0] += stats
        self._masks_seen += 1
        self.packets += 1

    def _results(self, words: NDArray[np.uint32], starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
        config = self.config
        if sizes.min() < 2:
            raise DeviceError("a RESULT reply ended within its header")
        tags = (words[starts] >> 8 & 0xFF).astype(np.int64)
        lanes = (words[starts] >> 16 & 0xFF).astype(np.int64)
        posts = (words[starts] >> 24 & 1).astype(np.bool_)
        rows = (words[starts + 1] & 0xFFFF).astype(np.int64)
        counts = (words[starts + 1] >> 16).astype(np.int64)
        runs = self._runs(tags)
        if lanes.max() >= config.lanes:
            raise DeviceError(f"a result names lane {lanes.max()}; the configuration has {config.lanes}")
        parts = self._part_of[runs, lanes]
        rows -= self._row0[runs]
        bad = (parts < 0) | (rows < 0) | (rows >= self._rows_of[parts])
        if bad.any():
            at = int(bad.argmax())
            raise DeviceError(
                f"a result does not belong to the program: tag {tags[at]}, row {rows[at] + self._row0[runs[at]]}, "
                f"lane {lanes[at]}"
            )
        flat = self._offset[parts] + rows
        unique, amounts = np.unique(flat, return_counts=True)
        twice = unique[(amounts > 1) | self._seen[unique]]
        if len(twice):
            raise DeviceError(f"a result came twice: row {self._rows[twice[0]]} of its output")
        self._seen[flat] = True
        self.packets += len(starts)
        out_rows = self._rows[flat]
        for key in np.unique(counts * 2 + posts):
            count, post = int(key) >> 1, bool(key & 1)
            chosen = np.flatnonzero((counts == count) & (posts == post))
            self._group(words, starts[chosen], sizes[chosen], parts[chosen], out_rows[chosen], count, post)

    def _runs(self, tags: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which run each packet belongs to: of those with its tag, the oldest that is not complete."""
        runs = np.zeros(len(tags), dtype=np.int64)
        for tag in np.unique(tags):
            index = self._by_tag.get(int(tag))
            chosen = np.flatnonzero(tags == tag)
            taken = self._taken.get(int(tag), 0)
            if index is None:
                raise DeviceError(f"a result has tag {tag}, which no RUN of the program has")
            ends = self._ends[int(tag)]
            if taken + len(chosen) > ends[-1]:
                raise DeviceError(f"there are more results with tag {tag} than the program's {ends[-1]}")
            runs[chosen] = index[np.searchsorted(ends, taken + np.arange(len(chosen)), side="right")]
            self._taken[int(tag)] = taken + len(chosen)
        return runs

    def _group(
        self,
        words: NDArray[np.uint32],
        starts: NDArray[np.int64],
        sizes: NDArray[np.int64],
        parts: NDArray[np.int64],
        rows: NDArray[np.int64],
        count: int,
        post: bool,
    ) -> None:
        """Store packets that have the same number of values."""
        config = self.config
        sw, columns = config.stream_words, config.tile_columns
        bits = slice(_RESULT.words, _RESULT.words + config.mask_words)
        head = pack.pad_words(bits.stop, sw)
        if post:
            payload = pack.value_words(count, config.a_width, sw)
        else:
            payload = pack.pad_words(count * (2 if config.acc_width > 32 else 1), sw)
        expected = head + payload
        if (sizes != expected).any():
            wrong = int(sizes[(sizes != expected).argmax()])
            raise DeviceError(f"a RESULT reply with {count} values must have {expected} words, not {wrong}")
        table = words[starts[:, None] + np.arange(expected)]
        bitmap = pack.unpack_bitmaps(table[:, bits], columns)
        if (bitmap.sum(axis=1) != count).any():
            raise DeviceError(f"a RESULT reply with {count} values has another number of bits in its bitmap")
        if not count:
            return
        raw = table[:, head:]
        if post:
            values = pack.unpack_values(raw, count, config.a_width)
        elif config.acc_width > 32:
            wide = raw[:, : 2 * count].astype(np.uint64)
            values = (wide[:, 0::2] | wide[:, 1::2] << np.uint64(32)).astype(np.int64)
        else:
            values = np.ascontiguousarray(raw[:, :count]).view(np.int32).astype(np.int64)
        packet, column = np.nonzero(bitmap)
        target = self._columns[parts[packet], column]
        if (target == -1).any():
            raise DeviceError("a result has values in columns that its RUN does not have")
        values = values.reshape(-1)
        if (target == _NOBODYS).any():
            exists = target >= 0
            packet, target, values = packet[exists], target[exists], values[exists]
        outputs = self._output[parts[packet]]
        for number, name in enumerate(self._names):
            chosen = outputs == number
            if chosen.all():
                self._arrays[name][rows[packet], target] = values
            elif chosen.any():
                self._arrays[name][rows[packet][chosen], target[chosen]] = values[chosen]

    # ------------------------------------------------------------------ output

    @property
    def complete(self) -> bool:
        """Whether every result has come."""
        streams = self._vectors_seen == len(self.program.vectors) and self._masks_seen == len(self.program.masks)
        return bool(self._seen.all()) and streams

    def outputs(self) -> dict[str, NDArray[Any]]:
        """Output arrays by name (int32, or int64 where acc_width > 32); what was masked out is 0.

        Raises:
            DeviceError: if results are missing.
        """
        for name, seen, entries in (("VECTOR", self._vectors_seen, self.program.vectors),
                                    ("MASK", self._masks_seen, self.program.masks)):  # fmt: skip
            if seen < len(entries):
                raise DeviceError(f"{len(entries) - seen} of {len(entries)} {name} replies are missing")
        if not self.complete:
            missing = np.flatnonzero(~self._seen)
            part = int(np.searchsorted(self._offset, missing[0], side="right")) - 1
            raise DeviceError(
                f"{len(missing)} of {len(self._seen)} result rows are missing; the first is row "
                f"{self._rows[missing[0]]} of output {self._names[self._output[part]]!r} "
                f"(RUN {self._part_run[part]} of the final ones)"
            )
        return {
            name: self._arrays[name].reshape(spec["shape"]).astype(spec["dtype"])
            for name, spec in self.program.outputs.items()
        }
