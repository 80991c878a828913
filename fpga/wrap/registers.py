"""Registers of the bus wrappers: one table for the hardware, the manifest and the documentation."""

from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, Const, Value

MAGIC = 0x4B53414D
"""Register ID: the bytes "MASK"."""

MAP_VERSION = 1
"""Version of this register map."""

ADDRESS_BITS = 7
"""Bits of a byte address; addresses beyond wrap around."""


@dataclass(frozen=True)
class Bits:
    """A field of a register: ``width`` bits from bit ``low`` on."""

    name: str
    low: int
    width: int
    doc: str


@dataclass(frozen=True)
class Register:
    """A 32-bit register.

    Members:
        name: upper case.
        offset: bytes, a multiple of 4.
        access: "ro", "wo" or "rw". Writes to what is not writable are answered and change nothing; what is not
            readable reads as 0.
        fields: lowest first; bits in none of them are 0.
        doc: what it is.
    """

    name: str
    offset: int
    access: str
    fields: tuple[Bits, ...]
    doc: str

    def bits(self, name: str) -> slice:
        """Bits of a field, as an index of a 32-bit value."""
        field = next(field for field in self.fields if field.name == name)
        return slice(field.low, field.low + field.width)


def _whole(name: str, offset: int, access: str, doc: str) -> Register:
    return Register(name, offset, access, (Bits("value", 0, 32, doc),), doc)


ID = _whole("ID", 0x00, "ro", f"`0x{MAGIC:08X}`: the bytes `MASK`")
VERSION = Register(
    "VERSION", 0x04, "ro",
    (
        Bits("map", 0, 8, f"version of this register map: {MAP_VERSION}"),
        Bits("isa", 8, 8, "version of the instruction set"),
    ),
    "versions",
)  # fmt: skip
CONFIG = _whole("CONFIG", 0x08, "ro", "hash of the configuration: programs must be made for it")
SIZE = Register(
    "SIZE", 0x0C, "ro",
    (
        Bits("pes", 0, 16, "PEs"),
        Bits("stream_words", 16, 8, "32-bit words of a beat of the accelerator's streams"),
    ),
    "size of the array",
)  # fmt: skip
STATUS = Register(
    "STATUS", 0x10, "ro",
    (
        Bits("idle", 0, 1, "every load and RUN that was taken is followed by a SYNC or ABORT that was answered"),
        Bits("in_reset", 1, 1, "the accelerator is held in reset"),
        Bits("in_packet", 2, 1, "a command packet was begun and has not ended"),
        Bits("out_packet", 3, 1, "a reply packet was begun and has not ended"),
        Bits("in_waits", 4, 1, "a command beat is offered to the accelerator, which does not take it now"),
        Bits("out_waits", 5, 1, "a reply beat is offered and not taken now"),
    ),
    "what the two streams are doing now",
)  # fmt: skip
CONTROL = Register(
    "CONTROL", 0x14, "rw",
    (Bits("reset", 0, 1, "1 holds the accelerator in reset, for at least 8 cycles; commands are thrown away"),),
    "control",
)  # fmt: skip
PACKETS_IN = _whole("PACKETS_IN", 0x18, "ro", "command packets that the accelerator took since reset, modulo 2**32")
PACKETS_OUT = _whole("PACKETS_OUT", 0x1C, "ro", "reply packets that left since reset, modulo 2**32")
SCRATCH = _whole("SCRATCH", 0x20, "rw", "any value, to test the bus with; 0 at first")

COMMON = (ID, VERSION, CONFIG, SIZE, STATUS, CONTROL, PACKETS_IN, PACKETS_OUT, SCRATCH)

WRITE = _whole("WRITE", 0x40, "wo", "adds a word to the command queue")
WRITE_LAST = _whole("WRITE_LAST", 0x44, "wo", "the same; the word ends its packet")
READ = _whole("READ", 0x48, "ro", "takes the oldest word from the reply queue; 0 if there is none")
LEVELS = Register(
    "LEVELS", 0x4C, "rw",
    (
        Bits("space", 0, 12, "words that the command queue has room for"),
        Bits("words", 12, 12, "words in the reply queue"),
        Bits("last", 24, 1, "the oldest of them ends its packet"),
        Bits("refused", 30, 1, "a command word was lost, for the queue was full or a byte lane was not selected: "
                               "stays 1 until 1 is written here, or reset"),
        Bits("missing", 31, 1, "READ found no word: stays 1 until 1 is written here, or reset"),
    ),
    "state of the queues",
)  # fmt: skip

TABLES: dict[str, tuple[Register, ...]] = {"axi": COMMON, "wishbone": (*COMMON, WRITE, WRITE_LAST, READ, LEVELS)}
"""Registers by bus, in order of their offsets."""


def assemble(register: Register, values: dict[str, Value | int]) -> Value:
    """A register's 32 bits from its fields' values.

    Raises:
        KeyError: for a field that has no value.
        ValueError: for values that belong to no field.
    """
    parts: list[Value] = []
    at = 0
    for field in register.fields:
        value = values[field.name]
        parts += [Const(0, field.low - at), (Const(value) if isinstance(value, int) else value)[: field.width]]
        short = field.width - len(parts[-1])
        parts.append(Const(0, short))
        at = field.low + field.width
    if len(values) != len(register.fields):
        raise ValueError(f"{register.name}: values for {sorted(values)}, which are not its fields")
    return Cat(*parts, Const(0, 32 - at))


def register_list(bus: str) -> list[dict[str, Any]]:
    """The table of a bus as plain values, for a manifest.

    Args:
        bus: "axi" or "wishbone".
    """
    return [
        {
            "name": register.name,
            "offset": register.offset,
            "access": register.access,
            "doc": register.doc,
            "fields": [{"name": f.name, "low": f.low, "width": f.width, "doc": f.doc} for f in register.fields],
        }
        for register in TABLES[bus]
    ]


def register_table(bus: str) -> str:
    """The table of a bus in Markdown, as in docs/integration.md."""
    lines = ["| offset | register | access | bits | field | meaning |", "|---:|---|---|---:|---|---|"]
    for register in TABLES[bus]:
        for n, field in enumerate(register.fields):
            head = f"`0x{register.offset:02X}` | {register.name} | {register.access}" if n == 0 else " | | "
            bits = f"{field.low + field.width - 1}:{field.low}" if field.width > 1 else str(field.low)
            name = f"`{field.name}`" if field.name != "value" else ""
            lines.append(f"| {head} | {bits} | {name} | {field.doc} |")
    return "\n".join(lines) + "\n"
