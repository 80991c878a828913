"""The named configurations, as values of :class:`~maskwork.gen.config.Config` with a line about each."""

from typing import Any

PRESETS: list[tuple[dict[str, Any], str]] = []
"""In the order in which they are listed."""


_UP5K: dict[str, Any] = {
    "lanes": 1, "lanes_per_cluster": 1, "slots": 4, "queue_depth": 8, "acc_width": 24, "k_depth": 64, "a_depth": 256,
    "a_segments": 16, "c_rows": 16, "run_depth": 2, "fetch_width": 2, "a_width": 8, "b_width": 8, "lut_ram": False,
    "a_spram": True, "post": False, "counters": False,
}  # fmt: skip
"""What fits an iCE40UP5K, which has no LUT RAM, beside the number of PEs and what follows from that."""


def _preset(doc: str, /, **values: Any) -> None:
    PRESETS.append((values, doc))


_preset(
    "2 PEs, for tests and for reading the Verilog",
    name="tiny", lanes=1, lanes_per_cluster=1, pes_per_lane=2, slots=8, queue_depth=8, k_depth=32, a_depth=256,
    a_segments=64, c_rows=32, psum_rows=16, fifo_depth=64, run_depth=2,
)  # fmt: skip
_preset(
    "16 PEs in one cluster: simulation, first experiments",
    name="small", vector=True,
)  # fmt: skip
_preset(
    "small with every block of the mask unit: masks made, kept and replayed while training",
    name="small-train", vector=True, generators="threshold,prune,dropout,norms,project,store",
)  # fmt: skip
_preset(
    "small without any skipping: the dense baseline",
    name="dense-small", skip="", vector=True,
)  # fmt: skip
_preset(
    "48 PEs for a ULX3S: 192 of 208 block RAMs, 62 of 156 multipliers, 46 k of 84 k LUTs of an ECP5-85F, with its link",
    name="ulx3s-85f", lanes=12, k_depth=128, a_depth=2048, a_segments=256, psum_rows=32, psum_in_pe=True,
    weight_lanes=2, vector=True, hop_stages=1,
)  # fmt: skip
_preset(
    "2 PEs for an iCE40UP5K: raw sums only, no counters",
    name="icebreaker", pes_per_lane=2, psum_rows=16, fifo_depth=64, **_UP5K,
)  # fmt: skip
_preset(
    "64 PEs with 128-bit streams, partial sums in the PEs, under 400 KB of buffers, for studies in simulation",
    name="sim-64", lanes=16, stream_words=4, k_depth=128, a_depth=1024, fifo_depth=256, psum_rows=32,
    psum_in_pe=True, load_slots=4, weight_lanes=2, vector=True,
)  # fmt: skip
_preset(
    "16 PEs for boards with an ECP5-25F or -12F",
    name="ecp5-25f", lanes=4, k_depth=64, a_depth=1024, a_segments=256, vector=True,
)  # fmt: skip
_preset(
    "1 PE for an iCEBreaker, whose FPGA then has room for the link to the host",
    name="icebreaker-link", pes_per_lane=1, psum_rows=8, fifo_depth=128, **_UP5K,
)  # fmt: skip
_preset(
    "2 PEs for a Tang Nano 9K (GW1NR-9C): 8-bit operands, no counters",
    name="tang-nano-9k", lanes=1, lanes_per_cluster=1, pes_per_lane=2, slots=8, queue_depth=8, k_depth=64,
    a_depth=512, a_segments=64, c_rows=64, psum_rows=16, fifo_depth=128, run_depth=2, fetch_width=2, a_width=8,
    b_width=8, acc_width=24, lut_ram=False, counters=False,
)  # fmt: skip
_preset(
    "small with 16-bit operands, 48-bit sums and stochastic rounding, for training",
    name="small-int16", a_width=16, b_width=16, acc_width=48, vector=True, stochastic=True,
)  # fmt: skip
_preset(
    "sim-64 with 16-bit operands, 48-bit sums and stochastic rounding, with shorter K tiles and half the partial sums",
    name="sim-64-int16", lanes=16, stream_words=4, a_width=16, b_width=16, acc_width=48, k_depth=64, a_depth=1024,
    fifo_depth=256, psum_rows=16, psum_in_pe=True, load_slots=4, weight_lanes=2, vector=True, stochastic=True,
)  # fmt: skip
