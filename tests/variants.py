"""Small configurations that between them have every option that shapes the hardware; tests share their simulators."""

from maskwork.gen.config import GENERATORS, Config, preset

TWO = Config(name="two", lanes=4, lanes_per_cluster=2, pes_per_lane=2, slots=8, queue_depth=8, k_depth=32, a_depth=256,
             a_segments=64, c_rows=32, psum_rows=8, fifo_depth=64, run_depth=2)  # fmt: skip
ALL = ",".join(GENERATORS)
CONFIGS = {
    "abc-1-2": TWO.replace(vector=True, generators=ALL),
    "abc-2-4": TWO.replace(stream_words=2, rows_in_flight=4, fifo_depth=128, stochastic=True),
    "abc-4-2": TWO.replace(
        stream_words=4, fetch_width=2, slots=32, vector=True, generators=ALL, mask_slots=2, mask_depth=16
    ),
    "none-1-2": TWO.replace(skip=""),
    "a-2-4": TWO.replace(
        skip="a", stream_words=2, rows_in_flight=4, fifo_depth=128, a_width=17, vector=True, generators="norms,dropout"
    ),
    "b-4-2": TWO.replace(skip="b", stream_words=4, a_width=16, b_width=16, acc_width=48, stochastic=True),
    "c-1-4": TWO.replace(skip="c", rows_in_flight=4, fifo_depth=128),
    "ab-2-2": TWO.replace(skip="ab", stream_words=2, generators="threshold,store", mask_slots=1),
    "ac-4-4": TWO.replace(
        skip="ac", stream_words=4, rows_in_flight=4, fifo_depth=128, acc_width=40, post=False, vector=True
    ),
    "bc-1-2": TWO.replace(
        skip="bc", a_width=5, b_width=14, vector=True, generators="prune,dropout,project", project_sums=4
    ),
    "block RAM": TWO.replace(lut_ram=False, slots=32, vector=True, generators=ALL, norm_channels=16, project_sums=16),
    "icebreaker": preset("icebreaker").replace(counters=True),
    "K in PEs, abc": TWO.replace(psum_in_pe=True),  # sums in LUT RAM
    "K in PEs, a": TWO.replace(psum_in_pe=True, skip="a", rows_in_flight=4, fifo_depth=128, psum_rows=16),
    "K in PEs, none": TWO.replace(
        psum_in_pe=True, skip="", stream_words=4, load_slots=4, psum_rows=16, vector=True, stochastic=True
    ),
    "K in PEs, icebreaker": preset("icebreaker").replace(counters=True, psum_in_pe=True),
    "shared weights": TWO.replace(weight_lanes=2, psum_in_pe=True, load_slots=2, stream_words=2),
    "shared weights, none": TWO.replace(weight_lanes=2, lanes=8, lanes_per_cluster=4, skip="", fifo_depth=64),
    "shared weights, b": TWO.replace(weight_lanes=2, skip="b", lut_ram=False, rows_in_flight=4, fifo_depth=128),
    "hops 1": TWO.replace(hop_stages=1, psum_in_pe=True, run_depth=4, vector=True, generators=ALL),
    "hops 2": TWO.replace(hop_stages=2, weight_lanes=2, load_slots=4, stream_words=4, b_width=8, stochastic=True),
}
