"""What programs must keep to that leave the sums of K tiles in the PEs."""

import pytest
from maskwork.gen.check import Legality, check_program
from maskwork.gen.config import preset
from maskwork.gen.isa import ISA_VERSION, Op
from maskwork.gen.lower import lower_matmul
from maskwork.gen.memories import memory_bits

IN_LANE = preset("tiny")
IN_PE = IN_LANE.replace(psum_in_pe=True)
FIRST, LATER, LAST = {"first": 1}, {}, {"final": 1}
MASKED = {"use_c": 1, "c_bank": 1}
RUNS = {
    "one": [FIRST | LAST],
    "tiles": [FIRST, LATER, LAST, FIRST | LAST | {"rows": 7, "share": 1}],
    "masked": [FIRST | MASKED, LAST | MASKED],
    "not ended": [FIRST, FIRST | LAST],
    "fewer rows": [FIRST, LAST | {"rows": 3}],
    "shared later": [FIRST, LAST | {"share": 1}],
    "other columns": [FIRST, LAST | {"columns": 2}],
    "other numbers": [FIRST, LAST | {"row": 9}],
    "masks later": [FIRST, LAST | MASKED],
    "other masks": [FIRST | MASKED, LAST | MASKED | {"c_row": 1}],
    "masks gone": [FIRST | MASKED, "LOAD_C", LAST | MASKED],
}
WRONG = {
    "not ended": "a final RUN must end the K tiles of cluster 0",
    "fewer rows": "rows must be that of the K tiles before, 4 (psum_in_pe), not 3",
    "shared later": "share must be that of the K tiles before, 0 (psum_in_pe), not 1",
    "other columns": "columns must be that of the K tiles before, 3 (psum_in_pe), not 2",
    "other numbers": "row must be that of the K tiles before, 0 (psum_in_pe), not 9",
    "masks later": "use_c must be that of the K tiles before, 0 (psum_in_pe), not 1",
    "other masks": "c_row must be that of the K tiles before, 0 (psum_in_pe), not 1",
    "masks gone": "the C masks of K tiles must stay loaded to the last one (psum_in_pe), in cluster 0",
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
    masks = {"clusters": 1, "bank": 1, "rows": 8, "columns": 4}
    assert legality.step(Op.LOAD_C, masks) is None
    messages = []
    for fields in RUNS[name]:
        if fields == "LOAD_C":
            assert legality.step(Op.LOAD_C, masks) is None
            continue
        no = {"first": 0, "final": 0, "share": 0, "row": 0, "use_c": 0, "c_bank": 0, "c_row": 0}
        run = {"clusters": 1, "rows": 4, "columns": 3, **no, **fields}
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
    rows, width = IN_PE.psum_rows // IN_PE.rows_in_flight, IN_PE.acc_width
    assert after["accumulators"] == rows * before["accumulators"] * width // (width + 1)  # no flag beside each sum
