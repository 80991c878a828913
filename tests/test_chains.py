"""What programs must keep to that leave the sums of K tiles in the PEs."""

import pytest
from maskwork.gen.check import Legality, check_program
from maskwork.gen.config import preset
from maskwork.gen.isa import ISA_VERSION, Op
from maskwork.gen.lower import lower_matmul
from maskwork.gen.memories import memory_bits

IN_LANE = preset("tiny")
IN_PE = IN_LANE.replace(psum_in_pe=True)
RUNS = {
    "one": [(1, 1, 4, 0)],
    "tiles": [(1, 0, 4, 0), (0, 0, 4, 0), (0, 1, 4, 0), (1, 1, 7, 1)],
    "not ended": [(1, 0, 4, 0), (1, 1, 4, 0)],
    "fewer rows": [(1, 0, 4, 0), (0, 1, 3, 0)],
    "shared later": [(1, 0, 4, 0), (0, 1, 4, 1)],
}
WRONG = {
    "not ended": "a final RUN must end the K tiles of cluster 0",
    "fewer rows": "rows and share must be those of the K tiles before, 4 and 0 ",
    "shared later": "not 4 and 1",
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("config", [IN_LANE, IN_PE], ids=["in lane", "in PEs"])
def test_chains(name, config):
    legality = Legality(config)
    assert legality.step(Op.BEGIN, {"version": ISA_VERSION, "config": config.hash}) is None
    load = {"clusters": 1, "dense": 1, "bank": 0}
    for op, fields in ((Op.LOAD_A, {"segments": 8, "length": 4}),
                       (Op.LOAD_B, {"rows": config.k_depth, "columns": 4, "lanes": 1})):  # fmt: skip
        assert legality.step(op, load | fields) is None
    messages = []
    for first, final, rows, share in RUNS[name]:
        run = {"clusters": 1, "first": first, "final": final, "rows": rows, "share": share, "columns": 3}
        assert legality.step(Op.RUN, run) is None
        messages.append(legality.unchecked(run))
    if config.psum_in_pe and name in WRONG:
        assert WRONG[name] in messages.pop()
    assert not any(messages)


def test_compiled_programs_keep_to_it():
    for mode in ("rows", "auto"):
        check_program(lower_matmul(IN_PE, 50, 100, 40, mode=mode))


def test_memories():
    """The lanes' memories go, the accumulators grow."""
    before, after = memory_bits(IN_LANE), memory_bits(IN_PE)
    assert before["partial_sums"] and not after["partial_sums"]
    rows = IN_PE.psum_rows // IN_PE.rows_in_flight
    assert after["accumulators"] == rows * before["accumulators"]
