"""Loader: dense rows, whose values are counted in advance, follow each other without a pause; ends of segments."""

import numpy as np
import pytest
from maskwork.gen.config import CHUNK
from maskwork.gen.pack import bank_words, pack_rows
from maskwork.rtl.load_common import Load, LoadEnd

from .test_rtl_loader import START_AND_END, a_fields, beats_of, bench, load, random_matrix, segments_of, to_beats


@pytest.mark.parametrize("kind", [Load.A, Load.B])
@pytest.mark.parametrize("idle", [0.0, 0.3])
def test_dense_rows_follow_at_once(kind, idle):
    """A dense row costs its beats and no pause, and what beats hold beyond its values is dropped, stalls or not."""

    async def body(ctx, dut, config, rng):
        width = config.a_width if kind == Load.A else config.b_width
        most = config.fetch_width if kind == Load.A else config.pes_per_lane * config.load_slots
        for columns in (config.tile_columns, config.tile_columns - 1, config.tile_columns * 3 // 4, 5):
            rows = 40
            values, _ = random_matrix(rng, rows, columns, width)
            mask = np.ones(values.shape, dtype=bool)
            words = pack_rows(values, None, width, config.stream_words)
            fields = a_fields(0, 0, 1, rows, columns) | {"kind": kind, "lanes": 1}
            writes = await load(ctx, dut, fields, to_beats(words, config), rng, idle=idle)
            assert writes.end == LoadEnd.GOOD
            own = bank_words(mask[:1], most) if kind == Load.A else max(3, -(-columns // most))
            each = max(own, beats_of(mask[:1], True, width, config)[0])
            assert rows * each <= writes.cycles
            if not idle:
                assert writes.cycles <= rows * each + START_AND_END
            if kind == Load.A:
                for row, (elements, _) in enumerate(segments_of(writes.a, config)):
                    assert [elements[n] for n in range(columns)] == values[row].tolist()
                continue
            kept = {}
            for write in writes.b:
                for n in range(most):
                    if write["enable"] >> n & 1:
                        kept[write["k"], write["slot"] * most + n] = write["values"][n]
            assert kept == {(row, n): values[row, n] for row in range(rows) for n in range(columns)}

    bench("wide words", body)


def test_a_segment_ends_with_its_last_word():
    """Empty chunks at a segment's end cost nothing if they were passed while words were written, else a cycle."""

    async def body(ctx, dut, config, rng):
        rows, length = 40, 4 * CHUNK
        values, mask = random_matrix(rng, rows, length, config.a_width)
        for filled, own in ((range(CHUNK), 1 + CHUNK // config.fetch_width), (range(2), 4)):
            mask[:] = [n in filled for n in range(length)]
            words = to_beats(pack_rows(values, mask, config.a_width, config.stream_words), config)
            writes = await load(ctx, dut, a_fields(0, 0, 0, rows, length), words, rng)
            assert writes.end == LoadEnd.GOOD
            assert rows * own <= writes.cycles <= rows * own + START_AND_END
            ends = [write["we"] for write in writes.a if write["end"]]
            assert len(ends) == rows and all(ends) == (len(filled) == CHUNK)

    bench("wide words", body)
