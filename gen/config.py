"""The accelerator's configuration: one frozen record, its presets, and the values derived from it.

This module and :mod:`maskwork.gen.isa` import nothing else of the package (but errors, and presets' plain values):
hardware, models, compiler and boards all stand on them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from maskwork.gen.errors import ConfigError
from maskwork.gen.presets import PRESETS

CHUNK = 16
"""Elements of the streamed operand whose bitmap travels in one record (see docs/formats.md)."""

POST_MULT_WIDTH = 24
"""Bits of the unsigned requantisation multiplier."""

POST_MAX_SHIFT = 47
"""Largest right shift of the requantisation."""

POST_MAX_SUM = 48
"""Most bits of an accumulator with post-processing."""

DISPATCH = ("free", "turns")
"""Values of the key ``dispatch``."""

GENERATORS = ("threshold", "prune", "dropout", "norms", "project", "store")
"""Blocks of the mask unit, as the key ``generators`` names them."""

_SINCE = {"dispatch": "free"}
"""Keys that came after the first configurations that are in use, and the values that these have."""


def _doc(text: str, default: Any) -> Any:
    return field(default=default, metadata={"doc": text})


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that shapes the generated hardware.

    A cluster is a group of lanes with one activation buffer, one fetch unit and one post-processing unit; a lane
    is a row of PEs that work on the same rows of C; a PE owns ``slots`` columns of the N tile. Depths are per bank;
    every loadable buffer has two banks, so that loads hide behind compute.

    Raises:
        ConfigError: if a field, or a combination of fields, cannot be built.
    """

    name: str = _doc("module name of the generated accelerator, and the presets' name", "maskwork")
    lanes: int = _doc("lanes in all clusters together", 4)
    lanes_per_cluster: int = _doc("lanes that share an activation buffer, fetch and post-processing unit", 4)
    pes_per_lane: int = _doc("processing elements (multipliers) in a lane", 4)
    slots: int = _doc("columns of C that one PE accumulates", 16)
    rows_in_flight: int = _doc("contexts of a lane: rows of C with accumulators of their own", 2)
    queue_depth: int = _doc("tokens that wait in front of a PE's bit iterator", 16)
    a_width: int = _doc("bits of a streamed operand, signed", 9)
    b_width: int = _doc("bits of a resident operand, signed", 9)
    acc_width: int = _doc("bits of an accumulator, signed", 32)
    stream_words: int = _doc("32-bit words that each stream moves in a cycle", 1)
    skip: str = _doc('operands whose masks skip cycles, letters of "abc"; "" is the dense array', "abc")
    fetch_width: int = _doc("streamed operands in one word of the activation buffer and of a lane's FIFO", 4)
    k_depth: int = _doc("rows of B (values of k) in one weight bank", 256)
    a_depth: int = _doc("words in one activation bank of a cluster", 2048)
    a_segments: int = _doc("segments (matrix rows, or pixels of a convolution) in one activation bank", 512)
    c_rows: int = _doc("rows of C masks in one bank of a cluster", 128)
    psum_rows: int = _doc("rows of partial sums that a lane keeps while K runs as tiles", 8)
    psum_in_pe: bool = _doc("partial sums stay in the PEs' accumulators, which then hold psum_rows rows", False)
    fifo_depth: int = _doc("words in a lane's input FIFO", 512)
    run_depth: int = _doc("RUN commands that wait in a cluster", 8)
    load_slots: int = _doc("slots of a PE's weights that a load writes in one cycle", 1)
    weight_lanes: int = _doc("neighbouring lanes that share a memory of weights, each reading at a port of its own", 1)
    hop_stages: int = _doc("registers more on the wires to and from each cluster, and to each PE's weights", 0)
    dispatch: str = _doc(
        'who gets the next row of a RUN: "free", any lane of the cluster with room; "turns", one lane after the other',
        "free",
    )
    lut_ram: bool = _doc("the device has LUT RAM; without it, small memories and fetch's state go to block RAM", True)
    a_spram: bool = _doc("activation banks are single-port memories, of an iCE40 UltraPlus' big single-port RAM", False)
    post: bool = _doc("post-processing (bias, requantisation, clamp) is built; without it results are raw sums", True)
    counters: bool = _doc("performance counters are built; without them READ_COUNTERS answers zeros", True)
    vector: bool = _doc("the vector unit is built: pooling and residual addition, command VECTOR", False)
    generators: str = _doc(
        "blocks of the mask unit (command MASK): names of threshold, prune, dropout, norms, project and store, with "
        "commas between them; empty: no unit",
        "",
    )
    mask_slots: int = _doc("masks that the mask unit's block store keeps", 4)
    mask_depth: int = _doc("32-bit words of one mask there", 64)
    norm_channels: int = _doc("columns of which the mask unit's block norms makes norms at once", 256)
    project_sums: int = _doc("random projections that the mask unit's block project makes of a row", 8)
    stochastic: bool = _doc("post-processing can also round at random (LOAD_P's flag stochastic)", False)

    # ------------------------------------------------------------------ checks

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            expected = {"str": str, "int": int, "bool": bool}[str(f.type)]
            if type(value) is not expected:
                raise ConfigError(f"{f.name} must be of type {expected.__name__}, not {value!r}")
        if not self.name or not self.name.replace("_", "").replace("-", "").isalnum() or not self.name[0].isalpha():
            raise ConfigError(f"name must start with a letter and hold letters, digits, '-' and '_', not {self.name!r}")
        if sorted(set(self.skip)) != sorted(self.skip) or not set(self.skip) <= set("abc"):
            raise ConfigError(f'skip must hold each of the letters "a", "b" and "c" at most once, not {self.skip!r}')
        object.__setattr__(self, "skip", "".join(sorted(self.skip)))
        self._in_range("lanes", 1, 256)
        self._power_of_two("lanes_per_cluster", 1, 8)
        if self.lanes % self.lanes_per_cluster:
            raise ConfigError(
                f"lanes must be a multiple of lanes_per_cluster ({self.lanes_per_cluster}), not {self.lanes}"
            )
        if self.clusters > 32:
            raise ConfigError(
                f"lanes / lanes_per_cluster must be at most 32 clusters, not {self.lanes} / {self.lanes_per_cluster}"
            )
        self._power_of_two("pes_per_lane", 1, 16)
        self._power_of_two("slots", 4, 32)
        self._power_of_two("rows_in_flight", 1, 4)
        self._power_of_two("queue_depth", 8, 64)
        self._in_range("a_width", 4, 18)
        self._in_range("b_width", 4, 18)
        self._in_range("acc_width", 16, 64)
        if self.acc_width < self.a_width + self.b_width:
            raise ConfigError(
                f"acc_width must hold one product, a_width + b_width = {self.a_width + self.b_width} bits or more, "
                f"not {self.acc_width}"
            )
        if self.post and self.acc_width > POST_MAX_SUM:
            raise ConfigError(
                f"acc_width must be at most {POST_MAX_SUM} with post-processing (post = true), not {self.acc_width}"
            )
        if self.stochastic and not self.post:
            raise ConfigError("stochastic must be false without post-processing (post = false), not true")
        self._power_of_two("stream_words", 1, 8)
        self._power_of_two("fetch_width", 2, 8)
        for name, low, high in (("k_depth", 16, 8192), ("a_depth", 64, 65536), ("a_segments", 16, 16384),
                                ("c_rows", 16, 16384), ("psum_rows", 1, 256), ("fifo_depth", 32, 4096),
                                ("run_depth", 2, 32), ("load_slots", 1, 8), ("weight_lanes", 1, 2)):  # fmt: skip
            self._power_of_two(name, low, high)
        if 2 * self.load_slots > self.slots or self.load_slots * self.pes_per_lane > 32:
            raise ConfigError(
                f"load_slots must be at most slots / 2 = {self.slots // 2} and 32 / pes_per_lane = "
                f"{32 // self.pes_per_lane}, not {self.load_slots}"
            )
        if self.lanes_per_cluster < self.weight_lanes or self.k_depth < 16 * self.weight_lanes:
            raise ConfigError(
                f"weight_lanes must be 1 with lanes_per_cluster = 1 or k_depth = 16, not {self.weight_lanes}"
            )
        if self.psum_rows < self.rows_in_flight:
            raise ConfigError(
                f"psum_rows must be at least rows_in_flight ({self.rows_in_flight}: each has rows of its own), "
                f"not {self.psum_rows}"
            )
        ring, least = self.fifo_depth // self.rows_in_flight, 2 * (self.lanes_per_cluster * self.rows_in_flight + 8)
        if ring < least:
            raise ConfigError(
                f"fifo_depth must be at least rows_in_flight * {least} = {self.rows_in_flight * least} (a ring of "
                f"words for every row in flight), not {self.fifo_depth}"
            )
        self._in_range("hop_stages", 0, 2)
        if self.dispatch not in DISPATCH:
            raise ConfigError(f"dispatch must be {' or '.join(DISPATCH)}, not {self.dispatch!r}")
        self._check_generators()
        if self.tile_columns > 256:
            raise ConfigError(
                f"pes_per_lane * slots (the columns of an N tile) must be at most 256, not {self.tile_columns}"
            )

    def _check_generators(self) -> None:
        names = [name.strip() for name in self.generators.split(",") if self.generators]
        if not set(names) <= set(GENERATORS) or len(set(names)) < len(names):
            raise ConfigError(
                f"generators must be names of {', '.join(GENERATORS)}, separated by commas, each at most once, not "
                f"{self.generators!r}"
            )
        object.__setattr__(self, "generators", ",".join(name for name in GENERATORS if name in names))
        for name, low, high in (("mask_slots", 1, 16), ("mask_depth", 16, 4096), ("norm_channels", 16, 4096),
                                ("project_sums", 4, 16)):  # fmt: skip
            self._power_of_two(name, low, high)

    def _in_range(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not low <= value <= high:
            raise ConfigError(f"{name} must be an integer from {low} to {high}, not {value}")

    def _power_of_two(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not low <= value <= high or value & (value - 1):
            raise ConfigError(f"{name} must be a power of two from {low} to {high}, not {value}")

    # ------------------------------------------------------------------ derived values

    @property
    def clusters(self) -> int:
        """Number of clusters."""
        return self.lanes // self.lanes_per_cluster

    @property
    def pes(self) -> int:
        """Processing elements, and so multipliers, of the whole array."""
        return self.lanes * self.pes_per_lane

    @property
    def tile_columns(self) -> int:
        """Columns of C that one lane accumulates: the N tile. Column c belongs to PE c % pes_per_lane, slot
        c // pes_per_lane.
        """
        return self.pes_per_lane * self.slots

    @property
    def mask_words(self) -> int:
        """32-bit words of one row's C mask, or of one k's bitmap of B (before padding to a beat)."""
        return -(-self.tile_columns // 32)

    @property
    def blocks(self) -> frozenset[str]:
        """Blocks of the mask unit that are built, names of :data:`GENERATORS`; none without the unit."""
        return frozenset(self.generators.split(",")) & frozenset(GENERATORS)

    @property
    def sum_rows(self) -> int:
        """Rows of sums that a PE's accumulators hold."""
        return self.psum_rows if self.psum_in_pe else self.rows_in_flight

    @property
    def k_width(self) -> int:
        """Bits of a k index within a weight bank."""
        return (self.k_depth - 1).bit_length()

    @cached_property
    def apart(self) -> Config:
        """What lanes that hold different columns have: with ``weight_lanes`` each only its share of the rows of B."""
        return self.replace(k_depth=self.k_depth // 2, weight_lanes=1) if self.weight_lanes > 1 else self

    @property
    def beat_bits(self) -> int:
        """Bits that a stream moves in a cycle."""
        return 32 * self.stream_words

    def values_per_word(self, width: int) -> int:
        """Packed values of ``width`` bits in one 32-bit word (one for wider ones, which take more than a word)."""
        return max(1, 32 // width)

    @cached_property
    def hash(self) -> int:
        """32-bit hash of everything but the name: a program runs only on the configuration it was made for. A key of
        :data:`_SINCE` counts only where it is not what it was before it was a key: older programs and designs stay.
        """
        fields = {k: v for k, v in self.to_dict().items() if k != "name" and (k, v) not in _SINCE.items()}
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")

    # ------------------------------------------------------------------ conversion

    def to_dict(self) -> dict[str, Any]:
        """All fields, as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "configuration") -> Config:
        """Build from plain values; unknown keys are errors.

        Raises:
            ConfigError: naming ``where`` and the key.
        """
        known = cls.field_docs()
        for key in values:
            if key not in known:
                raise ConfigError(f"{where}: unknown key {key!r}; known keys: {', '.join(known)}")
        try:
            return cls(**dict(values))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    @classmethod
    def field_docs(cls) -> dict[str, str]:
        """Each field's one-line description, in order."""
        return {f.name: f.metadata["doc"] for f in dataclasses.fields(cls)}

    def replace(self, **changes: Any) -> Config:
        """A copy with some fields changed (checked again)."""
        return Config.from_dict({**self.to_dict(), **changes})

    @classmethod
    def from_toml(cls, path: str | Path) -> Config:
        """Read a TOML file: an optional ``preset`` key to start from, and any fields.

        Raises:
            ConfigError: if the file is missing, is not TOML, or holds a key or value that cannot be built.
        """
        path = Path(path)
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror}); a TOML file is expected") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not a TOML file: {error}") from None
        base = preset(values.pop("preset")).to_dict() if "preset" in values else {}
        return cls.from_dict({**base, **values}, where=str(path))

    def with_settings(self, settings: Iterable[str]) -> Config:
        """Apply ``key=value`` strings, as the command line's ``--set`` gives them.

        Raises:
            ConfigError: for a string without ``=``, an unknown key or a value of the wrong type.
        """
        changes: dict[str, Any] = {}
        types = {f.name: str(f.type) for f in dataclasses.fields(self)}
        for text in settings:
            key, equals, value = text.partition("=")
            key, value = key.strip(), value.strip().strip('"')
            if not equals:
                raise ConfigError(f"--set {text}: key=value is expected, such as --set lanes=8")
            if key not in types:
                raise ConfigError(f"--set {text}: unknown key {key!r}; known keys: {', '.join(types)}")
            if types[key] == "int":
                try:
                    changes[key] = int(value, 0)
                except ValueError:
                    raise ConfigError(f"--set {text}: {key} must be an integer, not {value!r}") from None
            elif types[key] == "bool":
                if value.lower() not in ("true", "false", "0", "1"):
                    raise ConfigError(f"--set {text}: {key} must be true or false, not {value!r}")
                changes[key] = value.lower() in ("true", "1")
            else:
                changes[key] = value
        return Config.from_dict({**self.to_dict(), **changes}, where="--set") if changes else self


_PRESETS = {values["name"]: (Config(**values), doc) for values, doc in PRESETS}


def presets() -> dict[str, Config]:
    """The named configurations, in the order in which they are listed."""
    return {name: config for name, (config, _) in _PRESETS.items()}


def preset_doc(name: str) -> str:
    """One line about a preset."""
    return _PRESETS[name][1]


def preset(name: str) -> Config:
    """A named configuration.

    Raises:
        ConfigError: if there is none of that name; the message lists those there are.
    """
    if not isinstance(name, str) or name not in _PRESETS:
        raise ConfigError(f"unknown preset {name!r}; presets: {', '.join(_PRESETS)}")
    return _PRESETS[name][0]
