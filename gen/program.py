"""Programs: commands with operand placeholders, their file format, and binding operands to stream words.

A program is made for one configuration (its hash is checked) and runs unchanged on every target. Every operand is
seen as a matrix: the last axis stays, the others are flattened; loads name rows and columns of it by ranges
``[start, count, step]``.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from maskwork.gen import check, overflow, pack
from maskwork.gen.config import POST_MAX_SHIFT, POST_MULT_WIDTH, Config
from maskwork.gen.errors import ConfigError, MaskworkValueError, ProgramError
from maskwork.gen.isa import COMMANDS, ISA_VERSION, Op
from maskwork.gen.mask import Mask, as_bool
from numpy.typing import NDArray

FORMAT = "maskwork-program"
VERSION = 1
_KEYS = ("format", "version", "isa", "config", "config_hash", "operands", "commands", "results", "outputs")
_ROLES = ("a", "b", "c_mask", "bias", "mult", "shift")
_AXES = {"a": "mk", "b": "kn", "c_mask": "mn"}


@dataclass
class Program:
    """A compiled program.

    Members:
        config: the configuration it runs on.
        operands: name -> {"shape", "dtype": "int", "role": a, b, c_mask, bias, mult or shift}. A c_mask that is "whole"
            wants all of its last axis or none at each position.
        commands: {"op", fields..., "data": {"operand", "rows", "columns"}}; LOAD_P's data name bias, mult and shift.
            A LOAD_B may name the row one past its operand's last: an empty row.
        results: one for each final RUN, in order: {"tag", "row", "output", "parts": [{"lanes": [first, count],
            "rows": ranges, "columns": ranges}]}. Result row ``row + i`` of a lane of a part is output row rows[i],
            and comes once from each part.
        outputs: name -> {"shape", "dtype"}.
        vectors: one for each VECTOR, in order: {"tag", "output", "elements": ranges}. Its j-th output is element
            elements[j] of the output, whose axes are all flattened. VECTOR's data are an operand of role a, of which
            ``rows`` are the outputs and ``columns`` their windows' values; elements that a mask removes are sent as 0.
        masks: one for each MASK, in order: {"tag", "output", "rows": ranges, "stats"}. Its rows (of NORMS: its columns)
            are these rows of the output; norms of several MASKs are added up. "stats" is the output (sum of
            magnitudes, kept, nonzeros) to which its statistics are added; NORMS and PROJECT have none. Its data are
            ``rows`` and ``columns`` of an operand of role a.
        products: {"a", "b", "k", "window"}: operands that check_overflow looks at (for matrix products with the k,
            for weight gradients with the window of :func:`~maskwork.gen.overflow.window_maxima`).
    """

    config: Config
    operands: dict[str, dict[str, Any]] = field(default_factory=dict)
    commands: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    products: list[dict[str, Any]] = field(default_factory=list)
    vectors: list[dict[str, Any]] = field(default_factory=list)
    masks: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> str:
        """The program file's text."""
        head = {
            "format": FORMAT,
            "version": VERSION,
            "isa": ISA_VERSION,
            "config": self.config.to_dict(),
            "config_hash": self.config.hash,
            "operands": self.operands,
            "outputs": self.outputs,
            "products": self.products,
            "vectors": self.vectors,
            "masks": self.masks,
        }
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        for key, rows in (("commands", self.commands), ("results", self.results)):
            body = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
            lines.append(f"{json.dumps(key)}: [\n{body}\n]")
        return "{" + ",\n".join(lines) + "}\n"

    @classmethod
    def from_json(cls, text: str, where: str = "program") -> Program:
        """Read a program file's text.

        Raises:
            ProgramError: naming ``where`` and the fault.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ProgramError(f"{where}: not a program file (JSON): {error}") from None
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ProgramError(f'{where}: not a program file: "format" must be "{FORMAT}"')
        for key, wanted in (("version", VERSION), ("isa", ISA_VERSION)):
            if values.get(key) != wanted:
                raise ProgramError(f"{where}: {key} must be {wanted}, not {values.get(key)!r}; compile it again")
        missing = [key for key in _KEYS if key not in values]
        if missing:
            raise ProgramError(f"{where}: {missing[0]!r} is missing; a program has {', '.join(_KEYS)}")
        for key in ("config", "operands", "outputs"):
            if not isinstance(values[key], dict):
                raise ProgramError(f"{where}: {key} must be an object, not {type(values[key]).__name__}")
        for key in ("commands", "results", "vectors", "masks"):
            rows = values.get(key, [])
            if not isinstance(rows, list) or not all(isinstance(v, dict) for v in rows):
                raise ProgramError(f"{where}: {key} must be a list of objects")
        try:
            config = Config.from_dict(values["config"], where=f"{where}: config")
        except ConfigError as error:
            raise ProgramError(str(error)) from None
        if config.hash != values["config_hash"]:
            raise ProgramError(
                f"{where}: config_hash must be {config.hash}, that of its config, not {values['config_hash']!r}"
            )
        program = cls(config, values["operands"], values["commands"], values["results"], values["outputs"],
                      values.get("products", []), values.get("vectors", []), values.get("masks", []))  # fmt: skip
        program._check_names(where)
        return program

    def _check_names(self, where: str) -> None:
        for kind, entries in (("operand", self.operands), ("output", self.outputs)):
            for name, entry in entries.items():
                shape = entry.get("shape") if isinstance(entry, dict) else None
                if not isinstance(shape, list) or not shape or not all(type(v) is int and v > 0 for v in shape):
                    raise ProgramError(f"{where}: {kind} {name!r}: shape must be a list of positive integers, "
                                       f"not {shape!r}")  # fmt: skip
                if kind == "operand" and entry.get("role") not in _ROLES:
                    raise ProgramError(f"{where}: operand {name!r}: role must be one of {', '.join(_ROLES)}, "
                                       f"not {entry.get('role')!r}")  # fmt: skip
                if kind == "output" and entry.get("dtype") not in ("int32", "int64"):
                    raise ProgramError(f"{where}: output {name!r}: dtype must be int32 or int64, "
                                       f"not {entry.get('dtype')!r}")  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write the program file (whole or not at all).

        Raises:
            ProgramError: if the file cannot be written.
        """
        path = Path(path)
        part = None
        try:
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
            ) as file:
                part = file.name
                file.write(self.to_json())
            os.replace(part, path)
        except OSError as error:
            if part:
                Path(part).unlink(missing_ok=True)
            raise ProgramError(f"{path}: cannot be written ({error.strerror})") from None

    @classmethod
    def load(cls, path: str | Path, config: Config | None = None) -> Program:
        """Read and check a program file; with ``config``, also that it was made for that configuration.

        Raises:
            ProgramError: naming the file and the fault.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ProgramError(f"{path}: cannot be read ({error.strerror}); a .mwp file is expected") from None
        except UnicodeDecodeError:
            raise ProgramError(f"{path}: not a program file (.mwp): not text") from None
        program = cls.from_json(text, str(path))
        if config is not None and config.hash != program.config.hash:
            raise ProgramError(
                f"{path}: made for configuration {program.config.name!r} (hash {program.config.hash:#010x}); hash "
                f"{config.hash:#010x} is expected"
            )
        try:
            check.check_program(program)
        except ProgramError as error:
            raise ProgramError(f"{path}: {error}") from None
        return program


@dataclass(frozen=True)
class Bound:
    """A program with operands bound: what every target runs.

    Members:
        words: uint32, all packets, whole beats.
        last: bool, one for each beat.
        starts: int64, first word of each packet, and the end of the last.
        masks: operand name -> effective mask (bool, the operand's shape), or None where every element exists.
    """

    config: Config
    words: NDArray[np.uint32]
    last: NDArray[np.bool_]
    starts: NDArray[np.int64]
    masks: dict[str, NDArray[np.bool_] | None]

    def packets(self) -> Iterator[NDArray[np.uint32]]:
        """The words of each packet, in order; packet i belongs to command i."""
        for start, end in zip(self.starts[:-1], self.starts[1:], strict=True):
            yield self.words[start:end]


def _matrix(array: NDArray[Any]) -> NDArray[Any]:
    return array.reshape(-1, array.shape[-1])


class _Operands:
    """The operands as matrices of int64, with their effective masks."""

    def __init__(self, program: Program, operands: Mapping[str, Any], masks: Mapping[str, Any], dense: bool) -> None:
        self.config = program.config
        for name in [*operands, *masks]:
            if name not in program.operands:
                raise MaskworkValueError(f"unknown operand {name!r}; operands: {', '.join(program.operands)}")
        self.values: dict[str, NDArray[np.int64]] = {}
        self.masks: dict[str, NDArray[np.bool_] | None] = {}
        self.effective: dict[str, NDArray[np.bool_] | None] = {}
        for name, spec in program.operands.items():
            role, shape = spec["role"], tuple(spec["shape"])
            mask = masks.get(name)
            given = None
            if isinstance(mask, Mask):
                given = None if mask.is_absent else mask.to_array(shape, _AXES.get(role))
            elif mask is not None:
                given = as_bool(mask, f"mask of operand {name!r}")
            if role == "c_mask":
                if given is None and name in operands:
                    given = as_bool(operands[name], f"operand {name!r}")
                array: NDArray[Any] = np.zeros(shape, dtype=np.int64) if given is None else given
                given = np.ones(shape, dtype=np.bool_) if given is None else given
                if spec.get("whole") and (_matrix(given).any(axis=1) != _matrix(given).all(axis=1)).any():
                    raise MaskworkValueError(
                        f"operand {name!r} must want all or none of the last axis at each position"
                    )
            elif name not in operands:
                raise MaskworkValueError(f"operand {name!r} is missing; shape {shape} is expected")
            else:
                array = np.asarray(operands[name])
                check.check_range(name, array, self._width(role))
            for kind, got in (("operand", array), ("mask of operand", given)):
                if got is not None and got.shape not in (shape, (int(np.prod(shape[:-1])), shape[-1])):
                    raise MaskworkValueError(f"{kind} {name!r} has shape {got.shape}; {shape} is expected")
            self._add(name, role, array, given, dense)
            matrix_mask = self.masks[name]
            self.effective[name] = None if matrix_mask is None else matrix_mask.reshape(shape)

    def _width(self, role: str) -> int:
        widths = {"a": self.config.a_width, "b": self.config.b_width, "bias": 32}
        return widths.get(role, POST_MULT_WIDTH + 1 if role == "mult" else 7)

    def _add(self, name: str, role: str, array: NDArray[Any], given: NDArray[np.bool_] | None, dense: bool) -> None:
        values = _matrix(array).astype(np.int64)
        mask = None if given is None else _matrix(given)
        if role in ("mult", "shift"):
            limit = (1 << POST_MULT_WIDTH) - 1 if role == "mult" else POST_MAX_SHIFT
            if values.min() < 0 or values.max() > limit:
                raise MaskworkValueError(f"operand {name!r} must lie in 0..{limit}, not {values.min()}..{values.max()}")
        elif role in ("a", "b"):
            if mask is not None:
                values = np.where(mask, values, 0)
            if not dense:
                mask = values != 0  # given AND nonzero
        self.values[name], self.masks[name] = values, mask

    def packed(self, data: Mapping[str, Any], role: str) -> NDArray[np.uint32]:
        """Payload words of LOAD_A or LOAD_B, preceded by a word that is 1 if they are dense."""
        config = self.config
        name = data["operand"]
        width = config.a_width if role == "a" else config.b_width
        mask = self.masks[name] if role in config.skip else None
        values, mask = pack.select_rows(self.values[name], mask, data["rows"], data["columns"], role in config.skip)
        if mask is not None and mask.all():
            mask = None
        words = pack.pack_rows(values, mask, width, config.stream_words)
        return np.concatenate([np.array([mask is None], dtype=np.uint32), words])

    def c_rows(self, data: Mapping[str, Any]) -> NDArray[np.uint32]:
        """Payload words of LOAD_C."""
        mask = self.masks[data["operand"]]
        assert mask is not None  # always an array for this role
        chosen = mask[pack.index_of(data["rows"], data["columns"])]
        return pack.pack_bitmaps(chosen, self.config.stream_words).reshape(-1)

    def stream(self, data: Mapping[str, Any]) -> NDArray[np.uint32]:
        """Payload words of VECTOR or MASK."""
        windows = self.values[data["operand"]][pack.index_of(data["rows"], data["columns"])]
        return pack.pack_rows(windows.reshape(1, -1), None, self.config.a_width, self.config.stream_words)

    def parameters(self, data: Mapping[str, Any]) -> NDArray[np.uint32]:
        """Payload words of LOAD_P."""
        columns = pack.expand_ranges(data["columns"])
        bias, mult, shift = (self.values[data[key]][0, columns] for key in ("bias", "mult", "shift"))
        words = np.zeros(pack.pad_words(2 * len(columns), self.config.stream_words), dtype=np.uint32)
        words[0 : 2 * len(columns) : 2] = bias & 0xFFFFFFFF
        words[1 : 2 * len(columns) : 2] = mult | shift << POST_MULT_WIDTH
        return words


def bind(
    program: Program,
    operands: Mapping[str, Any],
    masks: Mapping[str, Any] | None = None,
    dense: bool = False,
    check_sums: bool = True,
) -> Bound:
    """Bind operands to a program's placeholders.

    Args:
        program: what to run.
        operands: name -> integer array of the operand's shape (or its matrix view). A C mask may stand here or in
            ``masks``; without one everything is wanted.
        masks: name -> bool array or :class:`Mask` of the operand's shape, or None.
        dense: zeros stay in the streams (given masks are still obeyed). By default the effective mask of an operand
            is its given mask AND its nonzeros.
        check_sums: refuse products that could overflow the accumulators.

    Raises:
        MaskworkTypeError, MaskworkValueError: for missing, unknown or unfit operands and masks.
    """
    config = program.config
    sw = config.stream_words
    state = _Operands(program, operands, masks or {}, dense)
    if check_sums:
        for product in program.products:
            a, b = state.values[product["a"]], state.values[product["b"]]
            if product.get("window"):
                a = overflow.window_maxima(a.reshape(program.operands[product["a"]]["shape"]), product["window"])
            elif product.get("k"):
                k = pack.expand_ranges(product["k"])
                a, b = a[:, k], b[k]
            overflow.check_overflow(config.acc_width, a, b, f"product of {product['a']!r} and {product['b']!r}")
    pieces: list[NDArray[np.uint32]] = []
    sizes: list[int] = []
    cache: dict[str, NDArray[np.uint32]] = {}
    for command in program.commands:
        op = Op[command["op"]]
        fields = {key: value for key, value in command.items() if key not in ("op", "data")}
        payload = np.zeros(0, dtype=np.uint32)
        if op in (Op.LOAD_A, Op.LOAD_B, Op.LOAD_C, Op.LOAD_P, Op.VECTOR) or (op == Op.MASK and "data" in command):
            data = command["data"]
            if (key := f"{op.name}{data}") not in cache:
                if op == Op.LOAD_C:
                    cache[key] = state.c_rows(data)
                elif op == Op.LOAD_P:
                    cache[key] = state.parameters(data)
                elif op in (Op.VECTOR, Op.MASK):
                    cache[key] = state.stream(data)
                else:
                    cache[key] = state.packed(data, "a" if op == Op.LOAD_A else "b")
            payload = cache[key]
            if op in (Op.LOAD_A, Op.LOAD_B):
                fields["dense"] = int(payload[0])
                payload = payload[1:]
        words = COMMANDS[op].encode(fields)
        header = np.array(words + [0] * (-len(words) % sw), dtype=np.uint32)
        pieces += (header, payload)
        sizes.append(len(header) + len(payload))
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    last = np.zeros(int(starts[-1]) // sw, dtype=np.bool_)
    last[starts[1:] // sw - 1] = True
    return Bound(config, np.concatenate(pieces), last, starts, state.effective)
