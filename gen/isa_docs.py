"""docs/isa.md, made from the tables of :mod:`maskwork.gen.isa`: ``python -m maskwork.gen.isa_docs [--check]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from maskwork.gen.isa import COMMANDS, COUNTERS, FAULT_DOCS, ISA_VERSION, LEVELS, REPLIES, Packet

DEFAULT_OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "isa.md"

_HEAD = f"""<!-- Made by `python -m maskwork.gen.isa_docs` from gen/isa.py; edit that instead. -->

# Instruction set, version {ISA_VERSION}

Encoder, decoder, hardware and this page come from one place, `gen/isa.py`. Words have 32 bits and a beat is
`stream_words` of them, word 0 in bits 31:0. A packet is its header words, padded with zeros to whole beats, then its
payload, which begins on a beat; `last` marks its final beat. Bits 7:0 of the first word hold the opcode, or the kind
of a reply. A field never crosses a word; bits that belong to no field are sent as 0.

[Contracts](contracts.md) says what order of packets is legal, [formats](formats.md) how payloads are packed.
"""

_RUN_MEANING = """### What RUN computes

For every selected cluster, over its own banks, with 16-bit state that wraps:

```
S = (seg, k, x, y)                                    # row state
for r in 0 .. rows - 1:
    wanted = columns 0 .. columns, AND C mask row c_row + r if use_c
    T = S                                             # tap state
    for i1 in 0 .. t1:
        for i0 in 0 .. t0:
            if 0 <= T.x < x_limit and 0 <= T.y < y_limit and 0 <= T.seg < segments loaded:
                for every present element e of segment T.seg, with value a:
                    for every wanted column c whose B[(T.k + e) mod k_depth, c] is present:
                        acc[c] += a * B[(T.k + e) mod k_depth, c]
            T += t0 deltas, or t1 deltas after the last i0
    S += m0 deltas; when m0 has counted to its end: m1 deltas instead; when m1 has too: m2 deltas instead
```

Counts are stored minus one. Deltas are *wrap deltas*: the delta of an outer loop already takes back the steps of the
loop inside it. A row without wanted columns fetches nothing and still answers its empty bitmap. `acc` starts at 0 with
`first`, else at what the same row of the RUN before left; it leaves with `final`, else it stays in the lane.

With `weight_lanes` = 2, lanes 2 i and 2 i + 1 share a memory of `k_depth` rows of B. A LOAD_B for both fills it for
both, for RUNs that are not shared. A LOAD_B that names one of them fills that lane's half (`k` + `rows` at most
`k_depth` / 2; it names at most one lane of every pair), for shared RUNs, in which k counts modulo `k_depth` / 2.
"""

_VECTOR_MEANING = """### What VECTOR computes

```
for j in 0 .. count - 1:
    for i in 0 .. window - 1:
        p[i] = v[j * window + i] * (mult0 if i is even else mult1)
    s = sum of all p[i] (kind 0), or their maximum (kind 1)
    output[j] = min(max(round_half_even(s / 2**shift), low), high)
```

`low` and `high` are first brought into the range of `a_width` bits, as those of LOAD_P are. Nothing overflows.
"""

_MASK_MEANING = """### What MASK computes

x is a row's value of a column j, u its random number of 16 bits:

| kind | output |
|---|---|
| GREATER | x if x > level, else 0 |
| MAGNITUDE | x if abs(x) >= level, else 0 |
| PRUNE | x if abs(x) >= level; else sign(x) * level if level * u < abs(x) * 2**16; else 0 |
| DROPOUT | x if u < level, else 0; u is that of the column, the same in every row |
| REPLAY | x if the mask in the slot keeps it, else 0 |
| NORMS | for every column, over the rows: sum of abs(x) and number of values that are not 0 |
| PROJECT | for every row and t = 0 .. `project_sums` - 1: sum over j of r[t, j] * x, with r of +1, -1 and 0 |

The mask of kinds 0 to 3 keeps what has an output that is not 0; without payload, a column with u < level. `store`
keeps it in the slot, each row in words of its own, at most `mask_depth` words. A slot is empty from the start of the
command that stores there until it has ended without an ERROR. Slots outlive BEGIN and SYNC; reset and ABORT empty
them.

Random numbers come from a sequence of bits, b[n + 32] = b[n + 7] ^ b[n + 6] ^ b[n + 2] ^ b[n]. A state s is 32 bits
of it, bit i of s is b[n + i], and `seed` is the first state; from one value to the next n grows by 24. u is s[15:0].
PRUNE goes on with the sequence through all values of the command, DROPOUT and PROJECT begin again with every row.
PROJECT has a sequence for every four sums: that of sums 4 q to 4 q + 3 begins with `seed` rotated left by 8 q bits.
Of sum t, bits s[6 (t mod 4) + 5 : 6 (t mod 4)] decide: below 11 r is +1, below 22 it is -1, else 0.

### What MASK answers

Behind the header, padded to a beat, comes one of these, padded to a beat:

* kinds 0 to 4, `values` = 1: the outputs, zeros included, packed without gaps between rows;
* kinds 0 to 4, `values` = 0: the mask, a bitmap for each row, padded to a word;
* NORMS: for each column two words: bits 31:0 of the sum; then the count in bits 15:0 and bits 47:32 of the sum above;
* PROJECT: for each row `project_sums` words, signed.

Kinds 0 to 4 then have statistics, four words padded to a beat: bits 31:0, then 47:32 of the sum of abs(x), how many
are kept, and how many x are not 0; of the payload, so that without one only the second count is not 0. Sums wrap.

After data that end too early the reply is that of a command that ended with one value more, a 0, in the row that it
belongs to: one more output, or a last bitmap that ends with its word; of NORMS the columns up to it, if it is in the
first row; of PROJECT the sums of its row as far as they got. The 0 does not count in the statistics. ERROR follows,
and the slot is empty if the mask was to be stored.
"""

_FAULTS = """## Faults

Codes of ERROR replies. The packet at fault is dropped to its last beat; the accelerator stays usable.

| code | fault | meaning |
|---:|---|---|"""

_COUNTERS = """
## Counters

Order of the counters in a COUNTERS reply, 48 bits each: the low 32 in one word, the high 16 in the next. The first
eight are PE-cycles by reason (see [architecture](architecture.md#counters)); `words_in` and `words_out` count beats.

| index | counter |
|---:|---|"""


def _bits(lsb: int, width: int) -> str:
    return str(lsb) if width == 1 else f"{lsb + width - 1}:{lsb}"


def _packet(packet: Packet) -> list[str]:
    words = f"{packet.words} word{'s' if packet.words > 1 else ''}"
    lines = [f"### {packet.name} (`{packet.code:#04x}`)", ""]
    if packet.doc:
        lines += [f"{packet.doc[0].upper()}{packet.doc[1:]}.", ""]
    lines += [f"Header: {words}."]
    if packet.payload:
        lines += [f"Payload: {packet.payload}."]
    lines += [""]
    if packet.fields:
        lines += ["| word | bits | field | signed | meaning |", "|---:|---:|---|---|---|"]
        for field in sorted(packet.fields, key=lambda f: (f.word, f.lsb)):
            signed = "yes" if field.signed else ""
            bits = _bits(field.lsb, field.width)
            lines.append(f"| {field.word} | {bits} | `{field.name}` | {signed} | {field.doc} |")
        lines += [""]
    return lines


def isa_markdown() -> str:
    """The page's text."""
    lines = [_HEAD, "## Commands", "", "| opcode | command | header words | payload |", "|---|---|---:|---|"]
    for op, packet in COMMANDS.items():
        lines.append(f"| `{op:#04x}` | {packet.name} | {packet.words} | {'yes' if packet.payload else ''} |")
    lines.append("")
    for packet in COMMANDS.values():
        lines += _packet(packet)
    lines += [f"Loop levels of RUN, outermost first: {', '.join(f'`{level}`' for level in LEVELS)}.", "", _RUN_MEANING]
    lines += [_VECTOR_MEANING, _MASK_MEANING]
    lines += ["## Replies", ""]
    for packet in REPLIES.values():
        lines += _packet(packet)
    lines += [_FAULTS]
    lines += [f"| {int(fault)} | {fault.name} | {text} |" for fault, text in FAULT_DOCS.items()]
    lines += [_COUNTERS]
    lines += [f"| {index} | `{name}` |" for index, name in enumerate(COUNTERS)]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, or compare it with ``--check``; 0 if it is as it should be."""
    parser = argparse.ArgumentParser(prog="python -m maskwork.gen.isa_docs", description="Write docs/isa.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if the file differs")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="the file (default: docs/isa.md)")
    options = parser.parse_args(argv)
    output: Path = options.output
    text = isa_markdown()
    try:
        if not options.check:
            output.write_text(text, encoding="utf-8")
        elif output.read_text(encoding="utf-8") != text:
            print(f"{output}: differs from gen/isa.py; run python -m maskwork.gen.isa_docs", file=sys.stderr)
            return 1
    except OSError as error:
        print(f"{output}: {error.strerror}; run this in a checkout of the repository", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
