"""Sizes of the buffers that a configuration's hardware has."""

from __future__ import annotations

from maskwork.gen.config import POST_MULT_WIDTH, Config


def memory_bits(config: Config) -> dict[str, int]:
    """Bits of each kind of buffer, both banks and all copies of it together.

    Short queues, counters and header stores are left out.
    """
    from maskwork.rtl.accumulators import sum_width
    from maskwork.rtl.layouts import directory_layout, mask_width, record_width, word_width
    from maskwork.rtl.post import BIAS_WIDTH, SHIFT_WIDTH

    lanes, pes, clusters = config.lanes, config.pes, config.clusters
    rows = 2 * config.k_depth
    mask_words = 1 << (config.mask_words - 1).bit_length()
    parameter = BIAS_WIDTH + POST_MULT_WIDTH + SHIFT_WIDTH
    return {
        "weights": pes * rows * config.slots * config.b_width // config.weight_lanes,
        "weight_masks": pes * rows * config.slots if "b" in config.skip else 0,
        "activations": clusters * 2 * config.a_depth * record_width(config),
        "segments": clusters * 2 * config.a_segments * directory_layout(config).size,
        "c_masks": clusters * 2 * config.c_rows * mask_words * mask_width(config),
        "lane_fifos": lanes * config.fifo_depth * word_width(config),
        "accumulators": pes * config.sum_rows * config.slots * sum_width(config),
        "partial_sums": 0 if config.psum_in_pe else lanes * config.psum_rows * config.tile_columns * config.acc_width,
        "parameters": lanes * 2 * config.tile_columns * parameter if config.post else 0,
    }
