"""From the words of MASK replies to arrays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from maskwork.gen import pack
from maskwork.gen.config import Config
from maskwork.gen.errors import DeviceError
from maskwork.gen.isa import REPLIES, MaskKind, Reply
from numpy.typing import NDArray

STATISTICS = 4
"""Words of the statistics behind values or bitmaps."""


def mask_reply(
    config: Config, command: Mapping[str, int], packet: NDArray[np.uint32]
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """What a MASK answered.

    Args:
        config: the configuration.
        command: the command's fields; absent ones are 0.
        packet: the reply, whole beats.

    Returns:
        Values, or bitmaps as 0 and 1 (rows, length); or norms (length, 2), sum and count; or projections (rows,
        project_sums): int64. Statistics: int64 (3,), sum of magnitudes, kept, nonzeros; None for norms and projections.

    Raises:
        DeviceError: if the reply is not that of the command, or not complete.
    """
    beat, layout = config.stream_words, REPLIES[Reply.MASK]
    rows, length, kind = command["rows"], command["length"], command["kind"]
    head = layout.beats(beat) * beat
    if len(packet) < head:
        raise DeviceError("a MASK reply ended within its header")
    reply = layout.decode(packet[: layout.words].tolist())
    expected = {name: command.get(name, 0) for name in ("tag", "values", "length", "rows")}
    if reply != expected:
        raise DeviceError(
            f"a MASK reply does not belong to the program: tag {reply['tag']} with {reply['rows']} rows of "
            f"{reply['length']} instead of tag {expected['tag']} with {rows} rows of {length}"
        )
    counts = {MaskKind.NORMS: 2 * length, MaskKind.PROJECT: rows * config.project_sums}
    if kind in counts:
        words = pack.pad_words(counts[MaskKind(kind)], beat)
    elif expected["values"]:
        words = pack.value_words(rows * length, config.a_width, beat)
    else:
        words = pack.pad_words(rows * -(-length // 32), beat)
    total = head + words + (0 if kind in counts else pack.pad_words(STATISTICS, beat))
    if len(packet) != total:
        cut = " (its command was cut short)" if len(packet) < total else ""
        raise DeviceError(f"a MASK reply with {rows} rows of {length} must have {total} words, not {len(packet)}{cut}")
    body = packet[head : head + words]
    if kind == MaskKind.NORMS:
        low, high = (body[: 2 * length].astype(np.int64)[part::2] for part in (0, 1))
        return np.stack([low | (high >> 16) << 32, high & 0xFFFF], axis=1), None
    if kind == MaskKind.PROJECT:
        sums = np.ascontiguousarray(body[: counts[MaskKind.PROJECT]]).view(np.int32)
        return sums.astype(np.int64).reshape(rows, config.project_sums), None
    if expected["values"]:
        values = pack.unpack_values(body[None], rows * length, config.a_width).reshape(rows, length)
    else:
        row_words = -(-length // 32)
        values = pack.unpack_bitmaps(body[: rows * row_words].reshape(rows, row_words), length).astype(np.int64)
    low, high, kept, nonzeros = (int(word) for word in packet[head + words : head + words + STATISTICS])
    return values, np.array([low | high << 32, kept, nonzeros], np.int64)
