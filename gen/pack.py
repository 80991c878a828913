"""Packing of bitmaps and values into 32-bit stream words, and the sizes they take in the buffers.

Wire format (docs/formats.md): a row is its bitmap (bit 0 = lowest index; padded to a beat of ``stream_words`` words),
then the values of the set bits in rising order, floor(32 / width) signed fields a word, padded to a beat. A dense row
has no bitmap and all its values. All functions work on many rows at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from maskwork.gen.config import CHUNK, Config
from maskwork.gen.errors import ProgramError
from maskwork.gen.isa import COMMANDS, Op, mask_has_payload
from numpy.typing import NDArray

Words = NDArray[np.uint32]
BoolArray = NDArray[np.bool_]


def pad_words(words: int, stream_words: int) -> int:
    """Words after padding to whole beats."""
    return -(-words // stream_words) * stream_words


def bitmap_words(bits: int, stream_words: int) -> int:
    """Words of a bitmap, padded to a beat."""
    return pad_words(-(-bits // 32), stream_words)


def value_words(values: int, width: int, stream_words: int) -> int:
    """Words of so many packed values, padded to a beat."""
    return pad_words(-(-values // (32 // width)), stream_words)


def pack_bitmaps(mask: BoolArray, stream_words: int) -> Words:
    """Bitmaps of the rows of a (rows, bits) bool array: uint32 (rows, words), padded to beats."""
    rows, bits = mask.shape
    packed = np.packbits(mask, axis=1, bitorder="little")
    words = bitmap_words(bits, stream_words)
    padded = np.zeros((rows, 4 * words), dtype=np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.view("<u4").astype(np.uint32, copy=False)


def unpack_bitmaps(words: Words, bits: int) -> BoolArray:
    """The first ``bits`` bits of each row of a uint32 (rows, words) array: bool (rows, bits)."""
    octets = np.ascontiguousarray(words, dtype="<u4").view(np.uint8)
    return np.unpackbits(octets, axis=1, count=bits, bitorder="little").astype(np.bool_)


def sign_extend(values: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """The low ``width`` bits of int64 values, as signed numbers."""
    shift = np.int64(64 - width)
    return (values << shift) >> shift


def unpack_values(words: Words, count: int, width: int) -> NDArray[np.int64]:
    """The first ``count`` packed values of each row of a uint32 (rows, words) array: int64 (rows, count)."""
    per_word = 32 // width
    index = np.arange(count)
    fields = words[:, index // per_word].astype(np.int64) >> (index % per_word * width)
    return sign_extend(fields, width)


def pack_rows(values: NDArray, mask: BoolArray | None, width: int, stream_words: int) -> Words:
    """Stream words of the rows of a matrix.

    Args:
        values: (rows, length) integers that fit ``width`` bits, signed.
        mask: (rows, length) bool, which elements are present; None for dense rows.
        width: bits of a value.
        stream_words: words of a beat.

    Returns:
        uint32 words of all rows, one after the other.
    """
    rows, length = values.shape
    per_word = 32 // width
    fields = values.astype(np.int64) & ((1 << width) - 1)
    if mask is None:
        words = value_words(length, width, stream_words)
        padded = np.zeros((rows, words * per_word), dtype=np.int64)
        padded[:, :length] = fields
        shifted = padded.reshape(rows, words, per_word) << (np.arange(per_word) * width)
        return shifted.sum(axis=2).astype(np.uint32).reshape(-1)
    bitmaps = pack_bitmaps(mask, stream_words)
    head = bitmaps.shape[1]
    counts = mask.sum(axis=1)
    sizes = head + (counts + per_word * stream_words - 1) // (per_word * stream_words) * stream_words
    ends = np.cumsum(sizes)
    starts = ends - sizes
    total = int(ends[-1]) if rows else 0
    row = np.repeat(np.arange(rows), counts)
    rank = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    index = starts[row] + head + rank // per_word
    shifted = fields[mask] << (rank % per_word * width)
    words = np.bincount(index, weights=shifted, minlength=total).astype(np.uint32)  # sums < 2**32: exact
    words[starts[:, None] + np.arange(head)] = bitmaps
    return words


def unpack_rows(
    words: Words, rows: int, length: int, width: int, stream_words: int, dense: bool = False
) -> tuple[NDArray[np.int64], BoolArray, int]:
    """Undo :func:`pack_rows`.

    Returns:
        values int64 (rows, length), zero where absent; the bool mask; and the words used.

    Raises:
        ValueError: if there are too few words.
    """
    if dense:
        size = value_words(length, width, stream_words)
        if len(words) < rows * size:
            raise ValueError("too few words for the rows")
        values = unpack_values(words[: rows * size].reshape(rows, size), length, width)
        return values, np.ones((rows, length), dtype=np.bool_), rows * size
    head = bitmap_words(length, stream_words)
    per_word = 32 // width
    keep = (1 << length) - 1
    raw = np.ascontiguousarray(words, dtype="<u4").tobytes()
    starts = np.zeros(rows, dtype=np.int64)
    position = 0
    for index in range(rows):
        starts[index] = position
        if position + head > len(words):
            raise ValueError("too few words for the rows")
        bits = int.from_bytes(raw[4 * position : 4 * (position + head)], "little") & keep
        position += head + pad_words(-(-bits.bit_count() // per_word), stream_words)
    if position > len(words):
        raise ValueError("too few words for the rows")
    mask = unpack_bitmaps(words[starts[:, None] + np.arange(head)], length)
    counts = mask.sum(axis=1)
    row = np.repeat(np.arange(rows), counts)
    rank = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    fields = words[starts[row] + head + rank // per_word].astype(np.int64) >> (rank % per_word * width)
    values = np.zeros((rows, length), dtype=np.int64)
    values[mask] = sign_extend(fields, width)
    return values, mask, position


# ---------------------------------------------------------------------- sizes in the buffers


def segment_words(length: int, fetch_width: int) -> int:
    """Activation-bank words of a segment of that length with every element present (the worst case)."""
    full, rest = divmod(length, CHUNK)
    return full * (1 + -(-CHUNK // fetch_width)) + (1 + -(-rest // fetch_width) if rest else 0)


def bank_words(mask: BoolArray, fetch_width: int) -> int:
    """Activation-bank words of the segments of a (segments, length) mask: a head word and the value words of each
    chunk of 16 elements that is not empty.
    """
    rows, length = mask.shape
    chunks = -(-length // CHUNK)
    padded = np.zeros((rows, chunks * CHUNK), dtype=np.bool_)
    padded[:, :length] = mask
    counts = padded.reshape(-1, CHUNK).sum(axis=1)
    return int(((counts > 0) + -(-counts // fetch_width)).sum())


def row_words(config: Config, length: int, taps: int) -> int:
    """Most lane-FIFO words that a row of C takes: its start words, its C mask and the chunks of ``taps`` segments
    of ``length`` elements. Field ``row_words`` of RUN.
    """
    return 3 + config.mask_words + taps * segment_words(length, config.fetch_width)


# ---------------------------------------------------------------------- index lists

Ranges = list[list[int]]
"""Index lists as program files keep them: [[start, count, step], ...]."""


def to_ranges(indices: NDArray[np.integer] | range) -> Ranges:
    """Compact form of a list of indices, order kept."""
    if isinstance(indices, range):
        return [[indices.start, len(indices), indices.step]] if len(indices) else []
    index = np.asarray(indices, dtype=np.int64)
    if not len(index):
        return []
    if len(index) == 1:
        return [[int(index[0]), 1, 1]]
    step = np.diff(index)
    change = np.append(np.flatnonzero(step[1:] != step[:-1]), len(step) - 1)  # last step of each run of equal steps
    ends = change[np.searchsorted(change, np.arange(len(step)))]
    result: Ranges = []
    at = 0
    while at < len(index):
        if at == len(index) - 1:
            result.append([int(index[at]), 1, 1])
            break
        count = int(ends[at]) - at + 2
        if count == 2 and step[at] != 1:
            count = 1
        result.append([int(index[at]), count, int(step[at]) if count > 1 else 1])
        at += count
    return result


def expand_ranges(ranges: Ranges) -> NDArray[np.int64]:
    """The indices of a compact list."""
    if not ranges:
        return np.zeros(0, dtype=np.int64)
    return np.concatenate([start + step * np.arange(count, dtype=np.int64) for start, count, step in ranges])


def count_ranges(ranges: Ranges) -> int:
    """Number of indices of a compact list."""
    return sum(count for _, count, _ in ranges)


def index_of(rows: Ranges, columns: Ranges) -> Any:
    """An index of a matrix: slices where there is one range of each, else arrays."""
    if len(rows) == len(columns) == 1 and rows[0][2] > 0 and columns[0][2] > 0:
        return tuple(slice(start, start + count * step, step) for (start, count, step) in (rows[0], columns[0]))
    return np.ix_(expand_ranges(rows), expand_ranges(columns))


def select_rows(
    values: NDArray, mask: BoolArray | None, rows: Ranges, columns: Ranges, masked: bool
) -> tuple[NDArray, BoolArray | None]:
    """Rows and columns of a matrix and of its mask (None: every element exists). Row len(values) is an empty row:
    zeros, and if ``masked`` the result has a mask that says so.
    """
    height = len(values)
    if all(max(start, start + step * (count - 1)) < height for start, count, step in rows):
        index = index_of(rows, columns)
        return values[index], None if mask is None else mask[index]
    chosen = expand_ranges(rows)
    exists = chosen[:, None] < height
    index = np.ix_(np.minimum(chosen, height - 1), expand_ranges(columns))
    selected = np.where(exists, values[index], 0)
    if masked:
        mask = np.broadcast_to(exists, selected.shape) & (True if mask is None else mask[index])
    return selected, mask


def inside(ranges: Any, limit: int) -> bool:
    """Whether something is a list of ranges (start, count, step) of indices from 0 to below ``limit``."""
    return isinstance(ranges, list) and all(
        isinstance(r, list)
        and len(r) == 3
        and all(type(v) is int for v in r)
        and r[1] > 0
        and min(r[0], r[0] + r[2] * (r[1] - 1)) >= 0
        and max(r[0], r[0] + r[2] * (r[1] - 1)) < limit
        for r in ranges
    )


# ---------------------------------------------------------------------- packets


def split_packets(words: Words, last: BoolArray, stream_words: int) -> list[Words]:
    """The packets of a stream: uint32 words, and one ``last`` flag a beat.

    Raises:
        ProgramError: if the stream is not whole packets.
    """
    ends = (np.flatnonzero(last) + 1) * stream_words
    if len(words) != len(last) * stream_words or (len(words) and (not len(ends) or ends[-1] != len(words))):
        raise ProgramError(f"a stream must be whole packets of beats of {stream_words} words, last on the final beat")
    return np.split(words, ends[:-1]) if len(ends) else []


def decode_packet(config: Config, packet: Words) -> tuple[Op, dict[str, int], Words]:
    """Opcode, fields and payload words of a command packet.

    Raises:
        ProgramError: for an unknown opcode or an incomplete header.
    """
    code = int(packet[0]) & 0xFF
    if code not in Op.__members__.values():
        raise ProgramError(f"unknown opcode {code:#04x}; known: {', '.join(f'{o.value:#04x} {o.name}' for o in Op)}")
    op = Op(code)
    layout = COMMANDS[op]
    try:
        fields = layout.decode([int(w) for w in packet[: layout.words]])
    except ValueError as error:
        raise ProgramError(str(error)) from None
    return op, fields, packet[layout.beats(config.stream_words) * config.stream_words :]


def payload_words(config: Config, op: Op, fields: Mapping[str, int], payload: Words) -> tuple[int, int]:
    """Words that a packet's payload must have, and the activation-bank words it takes (0 but for LOAD_A).

    Raises:
        ValueError: if the payload is too short to tell.
    """
    sw = config.stream_words
    if op == Op.LOAD_C:
        return fields["rows"] * bitmap_words(fields["columns"], sw), 0
    if op == Op.LOAD_P:
        return pad_words(2 * fields["columns"], sw), 0
    if op == Op.VECTOR:
        return value_words(fields["count"] * fields["window"], config.a_width, sw), 0
    if op == Op.MASK and mask_has_payload(fields["kind"], fields["values"]):
        return value_words(fields["rows"] * fields["length"], config.a_width, sw), 0
    if op not in (Op.LOAD_A, Op.LOAD_B):
        return 0, 0
    is_a = op == Op.LOAD_A
    rows, length = (fields["segments"], fields["length"]) if is_a else (fields["rows"], fields["columns"])
    width = config.a_width if is_a else config.b_width
    if fields["dense"]:
        stored = rows * segment_words(length, config.fetch_width) if is_a else 0
        return rows * value_words(length, width, sw), stored
    _, mask, used = unpack_rows(payload, rows, length, width, sw)
    return used, bank_words(mask, config.fetch_width) if is_a else 0
