"""The golden interpreter: framing, faults and the rules of the banks, packet by packet."""

import numpy as np
import pytest
from maskwork.gen.config import CHUNK, Config
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.gen.isa import ISA_VERSION, Fault, Op, Reply, commands_of
from maskwork.sim_tb.golden import Interpreter
from maskwork.sim_tb.packets import Machine, faults, padded, result_matrix

SMALL = Config(lanes=4, lanes_per_cluster=2, pes_per_lane=2, slots=8, k_depth=32, a_depth=256, a_segments=64,
               c_rows=16, psum_rows=4)  # fmt: skip
WIDE = SMALL.replace(stream_words=4)


def test_state_persists_between_calls_and_last_marks_beats():
    machine = Machine(WIDE)
    packet = machine.load_a([[1, 2]])
    last = [False] * (len(packet) // 4 - 1) + [True]
    assert machine.device._interpreter.execute(packet, last) == []
    packet = machine.load_b([[1], [1]])
    assert machine.device._interpreter.execute(packet, [len(packet)]) == []
    assert result_matrix(machine.send(machine.run(1, 1)), 1).tolist() == [[3]]
    assert machine.device._interpreter.execute([], []) == []


def test_execute_errors():
    golden = Interpreter(WIDE)
    with pytest.raises(MaskworkValueError, match="one dimension"):
        golden.execute(np.zeros((2, 4), np.uint32), [8])
    with pytest.raises(MaskworkTypeError, match="uint32"):
        golden.execute(np.zeros(4), [4])
    with pytest.raises(MaskworkValueError, match="0 to 2"):
        golden.execute([-1, 0, 0, 0], [4])
    for ends in ([3], [8], [2, 4], [], [4, 4], [0, 4]):
        with pytest.raises(MaskworkValueError, match=r"number of words \(4\)"):
            golden.execute(np.zeros(4, np.uint32), ends)
    for last in ([True, True], [False]):
        with pytest.raises(MaskworkValueError, match="ends must"):
            golden.execute(np.zeros(4, np.uint32), last)


def test_begin_refusals():
    machine = Machine(SMALL, begin=False)
    load = machine.load_a([[1]])
    begin = [Op.BEGIN, ISA_VERSION + 1, SMALL.hash ^ 1]
    assert faults(machine.send(load, machine.run(1, 1))) == [(Fault.NOT_BEGUN, 0x10), (Fault.NOT_BEGUN, 0x20)]
    assert faults(machine.send(begin)) == [(Fault.WRONG_VERSION, 1)]
    assert faults(machine.send([Op.BEGIN, ISA_VERSION, SMALL.hash ^ 1])) == [(Fault.WRONG_CONFIG, 1)]
    assert machine.begin() == []
    assert machine.send(load) == []
    # refused again: the program is over
    assert faults(machine.send(begin, machine.run(1, 1))) == [(Fault.WRONG_VERSION, 1), (Fault.NOT_BEGUN, 0x20)]
    assert len(machine.send(machine.command(Op.IDENTIFY))) == 1
    assert machine.begin() == [] and machine.send(load) == []


@pytest.mark.parametrize("config", [SMALL, WIDE], ids=["1 word", "4 words"])
def test_lengths_of_packets(config):
    machine, beat = Machine(config), config.stream_words
    for op, packet in ((0, [0] * beat), (0x77, [0x77] * beat * 3)):
        assert faults(machine.send(packet)) == [(Fault.UNKNOWN_OPCODE, op)]
    for op, layout in commands_of(config).items():
        whole = padded(layout.encode({}), beat)
        if len(whole) > beat:
            assert faults(machine.send(whole[:-beat])) == [(Fault.SHORT_PACKET, op)]
        if not layout.payload:
            assert faults(machine.send(whole + [0] * beat)) == [(Fault.LONG_PACKET, op)]
    # data too short or too long: the bank is empty, even one that held something
    a, b, run = machine.load_a([[1, 2, 0, 3, 4]]), machine.load_b([[1], [1]]), machine.run(1, 1)
    for bad, fault in ((a[:-beat], Fault.SHORT_PACKET), (a + [0] * beat, Fault.LONG_PACKET)):
        assert faults(machine.send(bad, b, run)) == [(fault, 0x10), (Fault.BANK_EMPTY, 0x20)]
        appended = machine.load_a([[1]], append=1)
        assert machine.send(a) == []
        broken = appended[:-beat] if fault == Fault.SHORT_PACKET else [*appended, *[0] * beat]
        assert faults(machine.send(broken, run)) == [(fault, 0x10), (Fault.BANK_EMPTY, 0x20)]
        machine.begin()
    p = machine.load_p([0], [1], [0], 0, 1)
    for op, packet in ((0x11, b), (0x12, machine.load_c([[1]])), (0x13, p)):
        for dense in (False, True):
            packet = machine.load_b([[1], [1]], dense=True) if dense and op == 0x11 else packet
            bad = packet[:-beat], packet + [0] * beat
            assert faults(machine.send(*bad)) == [(Fault.SHORT_PACKET, op), (Fault.LONG_PACKET, op)]
    machine.send(a, b, p[:-beat])
    assert faults(machine.send(machine.run(1, 1, post=1))) == [(Fault.BANK_EMPTY, 0x20)]
    assert len(machine.send(run)) == 1
    empty = machine.command(Op.LOAD_A, clusters=1, segments=1, length=1)
    assert faults(machine.send(empty)) == [(Fault.SHORT_PACKET, 0x10)]


@pytest.mark.parametrize(
    ("load", "fields"),
    [("load_a", f) for f in ({"clusters": 0}, {"clusters": 4}, {"segments": 0}, {"length": 0}, {"segments": 65})]
    + [("load_b", f) for f in ({"clusters": 5}, {"rows": 0}, {"k": 31}, {"lanes": 0}, {"lanes": 4}, {"columns": 0})]
    + [("load_b", {"columns": 17}), ("load_b", {"k": 65535})]
    + [("load_c", f) for f in ({"clusters": 0}, {"rows": 0}, {"rows": 17}, {"columns": 0}, {"columns": 17})]
    + [("load_p", f) for f in ({"clusters": 8}, {"lanes": 0}, {"lanes": 8}, {"columns": 0}, {"columns": 17})],
)
def test_bad_fields_of_loads(load, fields):
    machine = Machine(SMALL)
    good = {"load_a": [[[1], [2]]], "load_b": [[[1], [2]]], "load_c": [[[1], [1]]], "load_p": [[1], [1], [1], 0, 1]}
    packet = getattr(machine, load)(*good[load], **fields)
    assert faults(machine.send(packet)) == [(Fault.BAD_FIELD, packet[0] & 0xFF)]
    assert machine.send(getattr(machine, load)(*good[load])) == []


def test_bad_fields_that_the_configuration_makes():
    machine = Machine(SMALL.replace(skip="c", post=False))
    packets = machine.load_a([[1]], dense=False), machine.load_b([[1]], dense=False)
    assert faults(machine.send(*packets)) == [(Fault.BAD_FIELD, 0x10), (Fault.BAD_FIELD, 0x11)]
    assert faults(machine.send(machine.load_p([1], [1], [1], 0, 1))) == [(Fault.BAD_FIELD, 0x13)]
    assert machine.send(machine.load_a([[1]]), machine.load_b([[1]])) == []
    assert faults(machine.send(machine.run(1, 1, post=1))) == [(Fault.BAD_FIELD, 0x20)]
    assert len(machine.send(machine.run(1, 1))) == 1


def test_bad_fields_of_run():
    machine = Machine(SMALL)
    assert machine.send(machine.load_a([[1]]), machine.load_b([[1]])) == []
    bad = [
        machine.run(0, 1, m0=0), machine.run(1, 17), machine.run(1, 1, clusters=0), machine.run(1, 1, clusters=4),
        machine.run(9, 1, final=0), machine.run(9, 1, first=0), machine.run(5, 1, final=0, share=1),
    ]  # fmt: skip
    assert faults(machine.send(*bad)) == [(Fault.BAD_FIELD, 0x20)] * len(bad)
    assert machine.send(machine.run(8, 1, final=0), machine.run(4, 1, final=0, share=1)) == []
    assert len(machine.send(machine.run(9, 1), machine.run(5, 1, share=1))) == 9 + 10


def test_fresh_rule():
    machine = Machine(SMALL)
    a, b, c, data = machine.load_a([[1]]), machine.load_b([[1]]), machine.load_c([[1]]), [[1]]
    for code, load in ((0x10, machine.load_a), (0x11, machine.load_b), (0x12, machine.load_c)):
        assert faults(machine.send(load(data, append=1))) == [(Fault.BANK_EMPTY, code)]
        assert faults(machine.send(load(data), load(data))) == [(Fault.BANK_IN_USE, code)]
        # in one cluster is enough; the other bank and the other cluster are free
        assert faults(machine.send(load(data, clusters=3))) == [(Fault.BANK_IN_USE, code)]
        assert faults(machine.send(load(data, clusters=3, append=1))) == [(Fault.BANK_EMPTY, code)]
        assert machine.send(load(data, bank=1), load(data, clusters=2), load(data, append=1)) == []
    # the C bank is not used by this RUN, and stays fresh
    assert len(machine.send(machine.run(1, 1))) == 1
    assert faults(machine.send(machine.load_a([[1]], append=1))) == [(Fault.BANK_EMPTY, 0x10)]
    assert faults(machine.send(machine.load_b([[1]], append=1))) == [(Fault.BANK_EMPTY, 0x11)]
    assert faults(machine.send(c)) == [(Fault.BANK_IN_USE, 0x12)]
    # a used bank still runs, until it is loaded again
    assert len(machine.send(machine.run(1, 1, use_c=1), c, a, b, machine.run(1, 1, use_c=1))) == 2


def test_run_needs_loaded_banks():
    machine = Machine(SMALL)
    run, empty = machine.run, [(Fault.BANK_EMPTY, 0x20)]
    assert faults(machine.send(machine.load_a([[1]]), run(1, 1))) == empty
    assert machine.send(machine.load_b([[1]])) == []
    for fields in ({"a_bank": 1}, {"b_bank": 1}, {"use_c": 1}, {"post": 1}, {"clusters": 3}):
        assert faults(machine.send(run(1, 1, **fields))) == empty
    assert machine.send(machine.load_p([5], [1], [0], 0, 9), machine.load_p([6], [1], [0], 0, 9)) == []
    assert result_matrix(machine.send(run(1, 1, post=1)), 1).tolist() == [[7]]
    replies = machine.send(machine.command(Op.ABORT), run(1, 1))
    assert replies[0] == {"reply": Reply.ABORTED} and faults(replies[1:]) == empty
    machine.send(machine.load_a([[1]]), machine.load_b([[1]]))
    assert faults(machine.send(run(1, 1, post=1))) == empty
    machine.begin()
    assert faults(machine.send(run(1, 1))) == empty


def test_buffers_fill_up():
    config = SMALL.replace(a_depth=64, fetch_width=4)
    machine = Machine(config)
    # a full chunk takes 1 + 16/4 = 5 words, a chunk with one element 2, an empty one none
    full, one, none = np.ones((1, CHUNK), int), np.eye(1, CHUNK, dtype=int), np.zeros((1, CHUNK), int)
    fits = np.concatenate([full] * 12 + [one] * 2 + [none] * 40)
    assert machine.send(machine.load_a(fits)) == []
    assert machine.send(machine.load_a(none, append=1)) == []
    assert faults(machine.send(machine.load_a(one, append=1))) == [(Fault.BUFFER_FULL, 0x10)]
    assert faults(machine.send(machine.load_a(one, append=1))) == [(Fault.BANK_EMPTY, 0x10)]
    assert faults(machine.send(machine.load_a(np.concatenate([fits, one])))) == [(Fault.BUFFER_FULL, 0x10)]
    # a ragged last chunk: 3 elements take 2 words, 5 take 3
    dense = machine.load_a(np.ones((32, 3), int), dense=True), machine.load_a(np.ones((22, 5), int), dense=True, bank=1)
    assert faults(machine.send(*dense)) == [(Fault.BUFFER_FULL, 0x10)]
    # segments and rows of masks beyond the banks
    machine.begin()
    packets = machine.load_a([[0]] * 64), machine.load_a([[0]], append=1)
    assert faults(machine.send(*packets)) == [(Fault.BUFFER_FULL, 0x10)]
    packets = machine.load_c([[1]] * 16), machine.load_c([[1]], append=1)
    assert faults(machine.send(*packets)) == [(Fault.BUFFER_FULL, 0x12)]
    # the bank is empty then; and one packet alone that asks for more than there is cannot be right
    assert faults(machine.send(machine.load_a([[0]], append=1))) == [(Fault.BANK_EMPTY, 0x10)]
    assert machine.send(machine.load_a([[0]] * 64), machine.load_c([[1]] * 16)) == []
    assert faults(machine.send(machine.load_c([[1]] * 17, bank=1))) == [(Fault.BAD_FIELD, 0x12)]


def test_begin_clears_the_counters_even_when_it_is_refused():
    machine = Machine(SMALL)
    machine.send(machine.load_a([[1, 2]]), machine.load_b([[1], [1]]), machine.run(1, 1), machine.command(Op.SYNC))
    assert machine.multiplies() == 2
    for wrong in ([Op.BEGIN, 99, SMALL.hash], [Op.BEGIN], [*machine.begin_packet(), 0]):
        machine.begin()
        machine.send(machine.load_a([[1, 2]]), machine.load_b([[1], [1]]), machine.run(1, 1))
        assert machine.multiplies() == 2
        assert len(machine.send(wrong)) == 1
        assert machine.multiplies() == 0


def test_order_of_the_checks_of_a_load():
    machine = Machine(SMALL)
    # too short and too much; too much and too long
    words = machine.load_a(np.ones((64, 20), int))
    assert faults(machine.send(words[:-1])) == [(Fault.SHORT_PACKET, 0x10)]
    assert faults(machine.send([*words, 0])) == [(Fault.BUFFER_FULL, 0x10)]
    assert faults(machine.send(machine.load_a([[1] * 33]))) == [(Fault.BAD_FIELD, 0x10)]
