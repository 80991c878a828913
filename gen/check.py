"""One legality checker for programs, streams and operands, used by the host and the golden model.

:class:`Legality` follows the state of the banks packet by packet, in the order in which the hardware checks; the
``check_*`` functions turn what it finds into errors of one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from maskwork.gen import pack
from maskwork.gen.chains import Chains
from maskwork.gen.check_lanes import check_kind, check_lanes, covered_rows
from maskwork.gen.check_masks import Slots, check_masks, mask_data, mask_fields
from maskwork.gen.check_vector import check_vectors, vector_data, vector_fields
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError, ProgramError
from maskwork.gen.isa import COMMANDS, ISA_VERSION, Fault, Op, commands_of
from numpy.typing import NDArray

if TYPE_CHECKING:
    from maskwork.gen.program import Program

Violation = tuple[Fault, str]
"""A fault and one line about it."""


class _Bank:
    """One bank of one cluster: what the rules need to know about it."""

    __slots__ = ("filled", "fresh", "loaded", "words", "written")

    def __init__(self) -> None:
        self.loaded = self.fresh = False
        self.filled = 0  # segments (A) or rows (C) held
        self.words = 0  # storage words held (A), where known
        self.written: list[tuple[int, int, int]] = []  # lanes, first k, end k (B)


class Legality:
    """Follows a command stream and names the first rule that each packet breaks.

    A packet that breaks a rule changes nothing, except that a load that overflows its bank empties it.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.begun = False
        self._slots = Slots(config)
        self._reset()

    def _reset(self) -> None:
        self._banks = {(c, b, i): _Bank() for c in range(self.config.clusters) for b in "ABC" for i in (0, 1)}
        self._parameters = [[False, False] for _ in range(self.config.clusters)]
        self._chains = Chains(self.config)
        self._broken: str | None = None

    def step(self, op: Op, fields: Mapping[str, int], a_words: int | None = None) -> Violation | None:
        """Check one packet and follow its effect.

        Args:
            op: the command.
            fields: its fields; absent ones are 0.
            a_words: storage words of a LOAD_A's segments, where the data are known.

        Returns:
            None, or the fault the hardware answers and why.
        """
        if op in (Op.BEGIN, Op.ABORT):
            self._reset()
        if op == Op.BEGIN:
            self.begun = False
            if fields.get("version", 0) != ISA_VERSION:
                return Fault.WRONG_VERSION, f"version must be {ISA_VERSION}, not {fields.get('version', 0)}"
            if fields.get("config", 0) != self.config.hash:
                return Fault.WRONG_CONFIG, f"config must be {self.config.hash:#010x}, not {fields.get('config', 0):#x}"
            self.begun = True
            return None
        if op == Op.ABORT:
            self._slots.clear()
        if op < Op.LOAD_A:
            return None
        if op not in commands_of(self.config):
            key = "vector = true" if op == Op.VECTOR else "generators"
            return Fault.UNKNOWN_OPCODE, f"{op.name} needs a configuration with {key}"
        if not self.begun:
            return Fault.NOT_BEGUN, "BEGIN must come first"
        f = {field.name: fields.get(field.name, 0) for field in COMMANDS[op].fields}
        streams = {Op.VECTOR: vector_fields, Op.MASK: lambda f: mask_fields(self.config, f)}
        message = streams[op](f) if op in streams else self._fields(op, f)
        if message:
            return Fault.BAD_FIELD, message
        if op in streams:
            return self._slots.step(f) if op == Op.MASK else None
        clusters = [c for c in range(self.config.clusters) if f["clusters"] >> c & 1]
        if op == Op.RUN:
            return self._run(f, clusters)
        if op == Op.LOAD_P:
            for c in clusters:
                self._parameters[c][f["bank"]] = True
            return None
        return self._load(op, f, clusters, a_words)

    # ------------------------------------------------------------------ rules

    def _fields(self, op: Op, f: Mapping[str, int]) -> str | None:
        config = self.config
        for field in COMMANDS[op].fields:
            low, high = field.limits
            if not low <= f[field.name] <= high:
                return f"{field.name} must be from {low} to {high}, not {f[field.name]}"
        if not 0 < f["clusters"] < 1 << config.clusters:
            return f"clusters must name some of the {config.clusters} clusters, a bit each, not {f['clusters']:#x}"
        for name in ("segments", "length", "rows"):
            if name in f and f[name] < 1:
                return f"{name} must be 1 or more, not {f[name]}"
        if op != Op.RUN and "columns" in f and not 1 <= f["columns"] <= config.tile_columns:
            return f"columns must be from 1 to {config.tile_columns} (the N tile), not {f['columns']}"
        if "lanes" in f and not 0 < f["lanes"] < 1 << config.lanes_per_cluster:
            return f"lanes must name some of {config.lanes_per_cluster} lanes, a bit each, not {f['lanes']:#x}"
        if op == Op.LOAD_P and f["stochastic"]:
            if not config.stochastic:
                return "stochastic must be 0 on a configuration with stochastic = false"
            if not f["seed"]:
                return f"seed must be from 1 to {(1 << 32) - 1} with stochastic, not 0"
        if op == Op.LOAD_A and not f["dense"] and "a" not in config.skip:
            return 'dense must be 1 without "a" in skip'
        if op == Op.LOAD_A and f["length"] > config.k_depth:
            return f"length must be at most k_depth = {config.k_depth}, not {f['length']}"
        if op == Op.LOAD_A and f["segments"] > config.a_segments:
            return f"segments must be at most a_segments = {config.a_segments}, not {f['segments']}"
        if op == Op.LOAD_B:
            if not f["dense"] and "b" not in config.skip:
                return 'dense must be 1 without "b" in skip'
            if message := check_lanes(config, f):
                return message
        if op == Op.LOAD_C and f["rows"] > config.c_rows:
            return f"rows must be at most c_rows = {config.c_rows}, not {f['rows']}"
        return self._run_fields(f) if op == Op.RUN else None

    def _run_fields(self, f: Mapping[str, int]) -> str | None:
        config = self.config
        if f["columns"] + 1 > config.tile_columns:
            return f"columns + 1 must be at most {config.tile_columns} (the N tile), not {f['columns'] + 1}"
        if not (f["first"] and f["final"]):
            limit = config.psum_rows * (1 if f["share"] else config.lanes_per_cluster)
            if f["rows"] > limit:
                return f"rows of a RUN with partial sums must be at most {limit} (psum_rows), not {f['rows']}"
        if f["post"] and not config.post:
            return "post must be 0 on a configuration with post = false"
        return None

    def _load(self, op: Op, f: Mapping[str, int], clusters: list[int], a_words: int | None) -> Violation | None:
        config = self.config
        buffer = op.name[-1]
        banks = [self._banks[c, buffer, f["bank"]] for c in clusters]
        for cluster, bank in zip(clusters, banks, strict=True):
            where = f"bank {f['bank']} of buffer {buffer} in cluster {cluster}"
            if not f["append"] and bank.fresh:
                return Fault.BANK_IN_USE, f"{where} holds data that no RUN has used yet"
            if f["append"] and not bank.fresh:
                return Fault.BANK_EMPTY, f"{where} holds nothing to append to"
        amount = f["segments"] if op == Op.LOAD_A else f["rows"]
        if op == Op.LOAD_C:
            self._chains.load_c(f["bank"], clusters)
        limit = {"A": config.a_segments, "C": config.c_rows}.get(buffer)  # rows of B have places of their own
        for bank in banks:
            filled = amount + (bank.filled if f["append"] else 0)
            if limit is not None and filled > limit:
                name = "segments must be at most a_segments" if buffer == "A" else "rows must be at most c_rows"
                return (Fault.BUFFER_FULL if f["append"] else Fault.BAD_FIELD), f"{name} = {limit}, not {filled}"
        for bank in banks:
            if not f["append"]:
                bank.filled, bank.words, bank.written = 0, 0, []
            bank.filled += amount
            bank.words += a_words or 0
            bank.loaded = bank.fresh = True
            if buffer == "B":
                bank.written.append((f["lanes"], f["k"], f["k"] + f["rows"]))
        full = [bank for bank in banks if bank.words > config.a_depth]
        if buffer == "A" and full:
            words = max(bank.words for bank in full)
            for bank in banks:
                bank.loaded = bank.fresh = False
            return Fault.BUFFER_FULL, f"the segments take {words} words; at most a_depth = {config.a_depth} fit"
        return None

    def _run(self, f: Mapping[str, int], clusters: list[int]) -> Violation | None:
        used = [("A", f["a_bank"]), ("B", f["b_bank"])] + ([("C", f["c_bank"])] if f["use_c"] else [])
        for cluster in clusters:
            for buffer, bank in used:
                if not self._banks[cluster, buffer, bank].loaded:
                    return Fault.BANK_EMPTY, f"bank {bank} of buffer {buffer} in cluster {cluster} was not loaded"
            if f["post"] and not self._parameters[cluster][f["b_bank"]]:
                return Fault.BANK_EMPTY, f"post-processing parameters of bank {f['b_bank']} were not loaded"
        for cluster in clusters:
            for buffer, bank in used:
                self._banks[cluster, buffer, bank].fresh = False
        self._broken = self._chains.run(f, clusters)
        return None

    def unchecked(self, f: Mapping[str, int]) -> str | None:
        """Whether the last RUN, found legal, refers to rows of C masks, or (where its row state keeps k) to rows of B,
        that no load wrote, or breaks a chain. The hardware does not check this: the results would be unspecified.
        """
        if self._broken:
            return self._broken
        config = self.config
        g = {field.name: f.get(field.name, 0) for field in COMMANDS[Op.RUN].fields}
        for cluster in range(config.clusters):
            if not g["clusters"] >> cluster & 1:
                continue
            filled = self._banks[cluster, "C", g["c_bank"]].filled
            if g["use_c"] and g["c_row"] + g["rows"] > filled:
                return f"c_row + rows must be at most the {filled} rows of C masks loaded, not {g['c_row'] + g['rows']}"
            written = self._banks[cluster, "B", g["b_bank"]].written
            if g["m0_k"] or g["m1_k"] or g["m2_k"]:
                if message := check_kind(config, written, bool(g["share"])):
                    return message
                continue
            covered = covered_rows(config, written, bool(g["share"]))
            t1, t0 = np.meshgrid(np.arange(g["t1"] + 1), np.arange(g["t0"] + 1), indexing="ij")
            k = (g["k"] + t0 * g["t0_k"] + t1 * (g["t1_k"] + g["t0"] * g["t0_k"])) % covered.shape[1]
            if not covered[:, k].all():
                return f"k = {int(k.reshape(-1)[~covered[:, k.reshape(-1)].all(axis=0)][0])} of B was not loaded"
        return None


# ---------------------------------------------------------------------- programs and streams


def check_program(program: Program) -> None:
    """Check everything about a program that does not depend on its operands' values.

    Raises:
        ProgramError: naming the command and the rule.
    """
    config = program.config
    if not program.commands or program.commands[0].get("op") != "BEGIN":
        raise ProgramError("program must start with BEGIN")
    if program.commands[-1].get("op") != "SYNC":
        raise ProgramError("program must end with SYNC")
    legality = Legality(config)
    finals: list[dict[str, int]] = []
    vectors: list[Mapping[str, int]] = []
    masks: list[Mapping[str, int]] = []
    for number, command in enumerate(program.commands):
        where = f"command {number} ({command.get('op')})"
        try:
            op = Op[command["op"]]
        except KeyError:
            raise ProgramError(f"{where}: unknown command; known: {', '.join(o.name for o in Op)}") from None
        fields = {key: value for key, value in command.items() if key not in ("op", "data")}
        known = {f.name for f in COMMANDS[op].fields}
        for key, value in fields.items():
            if key not in known:
                raise ProgramError(f"{where}: unknown field {key!r}; fields: {', '.join(sorted(known))}")
            if type(value) is not int:
                raise ProgramError(f"{where}: {key} must be an integer, not {value!r}")
        if op in (Op.LOAD_A, Op.LOAD_B):
            fields["dense"] = 1  # binding decides: always legal
        violation = legality.step(op, fields)
        message = f"{violation[1]} ({violation[0].name})" if violation else None
        if message is None and op == Op.RUN:
            message = legality.unchecked(fields)
            words = fields.get("row_words", 0)
            if message is None and not 1 <= words <= config.fifo_depth:
                message = f"row_words must be from 1 to fifo_depth = {config.fifo_depth}, not {words}"
            if fields.get("final"):
                finals.append(fields)
        elif message is None and op == Op.VECTOR:
            message = vector_data(program, fields, command.get("data"))
            vectors.append(fields)
        elif message is None and op == Op.MASK:
            masks.append({field.name: fields.get(field.name, 0) for field in COMMANDS[op].fields})
            message = mask_data(program, masks[-1], command.get("data"))
        elif message is None and op in (Op.LOAD_A, Op.LOAD_B, Op.LOAD_C, Op.LOAD_P):
            message = _data(program, op, fields, command.get("data"))
        if message:
            raise ProgramError(f"{where}: {message}")
    try:
        _results(program, finals)
    except (KeyError, TypeError, AttributeError):
        raise ProgramError("results: each entry needs tag, row, output and parts (lanes, rows, columns)") from None
    check_vectors(program, vectors)
    check_masks(program, masks)


def _matrix_shape(shape: list[int]) -> tuple[int, int]:
    return int(np.prod(shape[:-1], dtype=np.int64)), int(shape[-1])


def _data(program: Program, op: Op, fields: Mapping[str, int], data: Any) -> str | None:
    """What is wrong with a load's operand reference."""
    if not isinstance(data, dict):
        return "data must name an operand with its rows and columns"
    wanted = {Op.LOAD_A: "a", Op.LOAD_B: "b", Op.LOAD_C: "c_mask"}
    names = {"operand": wanted[op]} if op in wanted else {"bias": "bias", "mult": "mult", "shift": "shift"}
    columns = fields["length"] if op == Op.LOAD_A else fields["columns"]
    rows = fields["segments"] if op == Op.LOAD_A else fields.get("rows", 0)
    for key, role in names.items():
        operand = program.operands.get(data.get(key, ""))
        if operand is None or operand.get("role") != role:
            return f"data.{key} must name an operand of role {role!r}, not {data.get(key)!r}"
        height, width = _matrix_shape(operand["shape"])
        if not pack.inside(data.get("columns"), width) or pack.count_ranges(data["columns"]) != columns:
            return f"data.columns must be {columns} columns of operand {data[key]!r}, which has {width}"
        end = height + (op == Op.LOAD_B)  # row ``height`` of B is the empty row
        if op in wanted and (not pack.inside(data.get("rows"), end) or pack.count_ranges(data["rows"]) != rows):
            return f"data.rows must be {rows} rows of operand {data[key]!r}, which has {height}"
    return None


def _results(program: Program, finals: list[dict[str, int]]) -> None:
    """Check that the results belong to the final RUNs, in order."""
    if len(finals) != len(program.results):
        raise ProgramError(f"results: {len(finals)} entries are expected, one for each final RUN, not "
                           f"{len(program.results)}")  # fmt: skip
    for number, (run, entry) in enumerate(zip(finals, program.results, strict=True)):
        where = f"results entry {number}"
        if entry.get("tag") != run.get("tag", 0) or entry.get("row") != run.get("row", 0):
            raise ProgramError(f"{where}: tag and row must be those of its RUN, {run.get('tag', 0)} and "
                               f"{run.get('row', 0)}")  # fmt: skip
        output = program.outputs.get(entry.get("output", ""))
        if output is None:
            raise ProgramError(f"{where}: unknown output {entry.get('output')!r}; "
                               f"outputs: {', '.join(program.outputs)}")  # fmt: skip
        height, width = _matrix_shape(output["shape"])
        for part in entry["parts"]:
            if not pack.inside(part["rows"], height) or pack.count_ranges(part["rows"]) != run["rows"]:
                raise ProgramError(f"{where}: rows must be {run['rows']} rows of an output with {height}")
            most = run.get("columns", 0) + 1
            if not pack.inside(part["columns"], width) or pack.count_ranges(part["columns"]) > most:
                raise ProgramError(f"{where}: columns must be at most {most} of {width}")


def check_bound(config: Config, words: NDArray[np.uint32], last: NDArray[np.bool_]) -> None:
    """Check a bound stream, packet by packet: every rule of the hardware, data included (activation-bank capacity,
    packet lengths).

    Args:
        config: the configuration the words are for.
        words: uint32, whole beats.
        last: bool, one for each beat.

    Raises:
        ProgramError: naming the packet, the fault and the rule.
    """
    legality = Legality(config)
    for number, packet in enumerate(pack.split_packets(words, last, config.stream_words)):
        try:
            op, fields, payload = pack.decode_packet(config, packet)
        except ProgramError as error:
            raise ProgramError(f"packet {number}: {error}") from None
        stored, violation = 0, None
        try:
            expected, stored = pack.payload_words(config, op, fields, payload)
        except ValueError:
            expected = len(payload) + 1
        if len(payload) < expected:
            violation = Fault.SHORT_PACKET, f"the data are incomplete, {len(payload)} words"
        elif len(payload) > expected:
            violation = Fault.LONG_PACKET, f"the data must have {expected} words, not {len(payload)}"
        violation = legality.step(op, fields, stored) or violation
        if violation is None and op == Op.RUN:
            message = legality.unchecked(fields)
            if message:
                raise ProgramError(f"packet {number} (RUN): {message}")
        if violation:
            raise ProgramError(f"packet {number} ({op.name}): {violation[1]} ({violation[0].name})")


# ---------------------------------------------------------------------- operands


def check_range(name: str, array: NDArray[Any], width: int) -> None:
    """Check that an operand has integers that fit ``width`` bits, signed.

    Raises:
        MaskworkTypeError: for another dtype.
        MaskworkValueError: for a value out of range.
    """
    if array.dtype.kind not in "iu":
        raise MaskworkTypeError(f"operand {name!r} must be an array of integers, not {array.dtype}")
    if not array.size:
        return
    low, high = int(array.min()), int(array.max())
    if low < -(1 << (width - 1)) or high >= 1 << (width - 1):
        raise MaskworkValueError(
            f"operand {name!r} must lie in {-(1 << (width - 1))}..{(1 << (width - 1)) - 1} ({width} bits, signed), "
            f"not {low}..{high}"
        )
