"""Programs: their files, legality, disassembly, and the results that replies give."""

import copy
import json
import time

import numpy as np
import pytest
from maskwork.gen import pack
from maskwork.gen.check import Legality, check_bound, check_program
from maskwork.gen.config import Config, preset
from maskwork.gen.errors import DeviceError, ProgramError
from maskwork.gen.isa import COMMANDS, COUNTERS, ISA_VERSION, REPLIES, Fault, Op, Reply
from maskwork.gen.listing import disassemble, disassemble_words
from maskwork.gen.lower import lower_matmul
from maskwork.gen.program import Program, bind
from maskwork.gen.results import ResultAssembler

from .programs import golden, parameters, sparse

# ---------------------------------------------------------------------- files


def small_program():
    return lower_matmul(preset("tiny"), 5, 40, 20, use_c=True, post={"low": -8, "high": 7})


def test_program_survives_a_file(tmp_path):
    program = small_program()
    path = tmp_path / "p.mwp"
    program.save(path)
    assert Program.load(path, preset("tiny")) == program
    assert [p.name for p in tmp_path.iterdir()] == ["p.mwp"]
    assert program.commands[0]["op"] == "BEGIN" and program.commands[-1]["op"] == "SYNC"
    with pytest.raises(ProgramError, match=r"p\.mwp: made for configuration 'tiny'"):
        Program.load(path, preset("small"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(format="x"), '"format" must be "maskwork-program"'),
        (lambda v: v.update(version=99), "version must be 1, not 99"),
        (lambda v: v.update(isa=7), f"isa must be {ISA_VERSION}, not 7"),
        (lambda v: v.pop("outputs"), "'outputs' is missing"),
        (lambda v: v.update(config_hash=1), "config_hash must be"),
        (lambda v: v["config"].update(lanes=0), "lanes must be"),
        (lambda v: v["config"].update(colour=1), "unknown key 'colour'"),
        (lambda v: v.update(commands={}), "commands must be a list"),
        (lambda v: v["operands"]["a"].update(shape=[0]), "operand 'a': shape"),
        (lambda v: v["operands"]["a"].update(role="q"), "role must be one of a, b"),
        (lambda v: v["outputs"]["c"].update(dtype="float"), "dtype must be int32 or int64"),
        (lambda v: v["results"][0].pop("parts"), "each entry needs"),
    ],
)
def test_program_file_errors(tmp_path, change, message):
    values = json.loads(small_program().to_json())
    change(values)
    path = tmp_path / "bad.mwp"
    path.write_text(json.dumps(values))
    with pytest.raises(ProgramError, match=message) as caught:
        Program.load(path)
    assert "bad.mwp" in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_no_programs(tmp_path):
    with pytest.raises(ProgramError, match=r"none\.mwp: cannot be read \(No such file"):
        Program.load(tmp_path / "none.mwp")
    (tmp_path / "text.mwp").write_text("hello")
    with pytest.raises(ProgramError, match=r"text\.mwp: not a program file \(JSON\)"):
        Program.load(tmp_path / "text.mwp")
    (tmp_path / "bytes.mwp").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProgramError, match="not text"):
        Program.load(tmp_path / "bytes.mwp")
    with pytest.raises(ProgramError, match="cannot be written"):
        small_program().save(tmp_path / "no" / "p.mwp")


# ---------------------------------------------------------------------- legality


def first(program, op):
    return next(c for c in program.commands if c["op"] == op)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.commands.pop(0), "must start with BEGIN"),
        (lambda p: p.commands.pop(), "must end with SYNC"),
        (lambda p: p.commands[0].update(config=1), "WRONG_CONFIG"),
        (lambda p: p.commands[0].update(version=ISA_VERSION + 1), "WRONG_VERSION"),
        (lambda p: p.commands[1].update(op="JUMP"), r"command 1 \(JUMP\): unknown command"),
        (lambda p: p.commands[1].update(colour=1), "unknown field 'colour'"),
        (lambda p: p.commands[1].update(bank="x"), "bank must be an integer"),
        (lambda p: p.commands[1].update(bank=2), "bank must be from 0 to 1, not 2 .BAD_FIELD"),
        (lambda p: p.commands.remove(first(p, "LOAD_A")), "BANK_EMPTY"),
        (lambda p: p.commands.remove(first(p, "LOAD_P")), "parameters of bank . were not loaded .BANK_EMPTY"),
        (lambda p: p.commands.insert(1, dict(first(p, "LOAD_B"))), "BANK_IN_USE"),
        (lambda p: first(p, "LOAD_B").update(append=1), "BANK_EMPTY"),
        (lambda p: first(p, "LOAD_B").update(k=30), "k . rows must be at most k_depth = 32"),
        (lambda p: first(p, "LOAD_A").update(segments=65), "at most a_segments = 64"),
        (lambda p: first(p, "LOAD_A").update(segments=4), "rows must be 4 rows of operand 'a'"),
        (lambda p: first(p, "LOAD_A")["data"].update(operand="b"), "must name an operand of role 'a', not 'b'"),
        (lambda p: first(p, "LOAD_A")["data"].update(columns=[[30, 24, 1]]), "data.columns"),
        (lambda p: first(p, "RUN").update(rows=17), "rows of a RUN with partial sums must be at most 16"),
        (lambda p: first(p, "RUN").update(rows=0), "rows must be 1 or more"),
        (lambda p: first(p, "RUN").update(clusters=2), "clusters must name some of the 1 clusters"),
        (lambda p: first(p, "RUN").update(columns=16), r"columns \+ 1 must be at most 16"),
        (lambda p: first(p, "RUN").update(row_words=65), "row_words must be from 1 to fifo_depth = 64"),
        (lambda p: first(p, "RUN").update(t0=1, t0_k=16), "k = [0-9]+ of B was not loaded"),
        (lambda p: first(p, "RUN").update(c_row=1), "rows of C masks loaded"),
        (lambda p: p.results.pop(), "results: 2 entries are expected"),
        (lambda p: p.results[0].update(tag=9), "tag and row must be those of its RUN"),
        (lambda p: p.results[0].update(output="d"), "unknown output 'd'"),
        (lambda p: p.results[0]["parts"][0].update(rows=[[3, 5, 1]]), "rows must be 5 rows of an output with 5"),
    ],
)
def test_check_program_rejects(change, message):
    program = small_program()
    check_program(program)
    program = copy.deepcopy(program)
    change(program)
    with pytest.raises(ProgramError, match=message):
        check_program(program)


def test_legality_names_faults_as_the_hardware_does():
    config = preset("ulx3s-85f").replace(post=False)
    legality = Legality(config)
    load = {"clusters": 1, "segments": 200, "length": 16}
    assert legality.step(Op.LOAD_A, load) is not None and legality.step(Op.ECHO, {}) is None
    assert legality.step(Op.BEGIN, {"version": ISA_VERSION, "config": config.hash}) is None
    faults = [
        (Op.LOAD_A, load, None),
        (Op.LOAD_A, load, Fault.BANK_IN_USE),
        (Op.LOAD_A, {**load, "append": 1}, Fault.BUFFER_FULL),  # 400 segments
        (Op.LOAD_A, {**load, "append": 1, "segments": 6}, None),
        (Op.LOAD_A, {**load, "bank": 1, "append": 1}, Fault.BANK_EMPTY),
        (Op.LOAD_A, {**load, "clusters": 16}, Fault.BAD_FIELD),
        (Op.RUN, {"clusters": 1, "rows": 1, "first": 1, "final": 1}, Fault.BANK_EMPTY),
        (Op.RUN, {"clusters": 1, "rows": 1, "first": 1, "final": 1, "post": 1}, Fault.BAD_FIELD),
        (Op.LOAD_B, {"clusters": 1, "rows": 1, "lanes": 15, "columns": 65}, Fault.BAD_FIELD),
        (Op.LOAD_B, {"clusters": 1, "rows": 1, "lanes": 15, "columns": 64}, None),
        (Op.RUN, {"clusters": 1, "rows": 1, "first": 1, "final": 1}, None),
        (Op.LOAD_A, load, None),
        (Op.BEGIN, {"version": ISA_VERSION, "config": 0}, Fault.WRONG_CONFIG),
        (Op.LOAD_A, load, Fault.NOT_BEGUN),
    ]
    for op, fields, fault in faults:
        violation = legality.step(op, fields)
        assert (violation and violation[0]) == fault, (op, fields, violation)
    legality.step(Op.BEGIN, {"version": ISA_VERSION, "config": config.hash})
    violation = legality.step(Op.LOAD_A, load, a_words=config.a_depth + 1)
    assert violation is not None and violation[0] == Fault.BUFFER_FULL
    assert legality.step(Op.LOAD_A, load) is None


def test_check_bound_sees_the_data():
    rng = np.random.default_rng(3)
    program = lower_matmul(preset("tiny"), 5, 40, 20)
    bound = bind(program, {"a": sparse(rng, (5, 40)), "b": sparse(rng, (40, 20))})
    check_bound(program.config, bound.words, bound.last)
    last = bound.last.copy()
    last[-1] = False
    with pytest.raises(ProgramError, match="whole packets"):
        check_bound(program.config, bound.words, last)
    packets = list(bound.packets())
    load = next(i for i, c in enumerate(program.commands) if c["op"] == "LOAD_A")

    def stream(changed):
        sizes = np.cumsum([len(p) for p in changed])
        flags = np.zeros(int(sizes[-1]), dtype=bool)
        flags[sizes - 1] = True
        return np.concatenate(changed), flags

    for changed, message in (
        (packets[load][:-1], r"LOAD_A\): the data are incomplete, .* \(SHORT_PACKET\)"),
        (np.append(packets[load], np.uint32(0)), r"\(LONG_PACKET\)"),
        (packets[load][:2], "header of 3 words"),
        (np.array([0x77], dtype=np.uint32), "unknown opcode 0x77"),
    ):
        with pytest.raises(ProgramError, match=message):
            check_bound(program.config, *stream([*packets[:load], changed, *packets[load + 1 :]]))
    tight = preset("tiny").replace(a_depth=64, k_depth=32)
    begin = np.array(COMMANDS[Op.BEGIN].encode({"version": ISA_VERSION, "config": tight.hash}), dtype=np.uint32)
    head = COMMANDS[Op.LOAD_A].encode({"clusters": 1, "segments": 8, "length": 32})
    values = np.ones((8, 32), dtype=np.int64)
    full = np.concatenate([np.array(head, dtype=np.uint32), pack.pack_rows(values, values > 0, 9, 1)])
    with pytest.raises(ProgramError, match="take 80 words; at most a_depth = 64"):
        check_bound(tight, *stream([begin, full]))


# ---------------------------------------------------------------------- disassembly


def test_disassembly():
    program = small_program()
    text = disassemble(program)
    assert "; operand a: a (5, 40)" in text and len(text.splitlines()) == len(program.commands) + 7 + 1
    assert "LOAD_A" in text and "<- a[0..4; 0..15]" in text and "first=1" in text
    rng = np.random.default_rng(2)
    operands = {"a": sparse(rng, (5, 40)), "b": sparse(rng, (40, 20)), **parameters(rng, 20)}
    bound = bind(program, operands)
    lines = disassemble_words(program.config, bound.words, bound.last).splitlines()
    assert [line.split()[1] for line in lines] == [c["op"] for c in program.commands]
    assert "words" in lines[1]


# ---------------------------------------------------------------------- results


def result_packet(config, tag, row, lane, values, sums=True):
    values = np.asarray(values)
    present = values != 0
    head = REPLIES[Reply.RESULT].encode({"tag": tag, "row": row, "lane": lane, "values": int(present.sum())})
    bits = np.zeros((1, config.tile_columns), dtype=bool)
    bits[0, : len(values)] = present
    raw = values[present].astype(np.int32).view(np.uint32)
    return np.concatenate([np.array(head, dtype=np.uint32), pack.pack_bitmaps(bits, 1)[0], raw])


def test_results_in_any_order_and_tags_that_wrap():
    config = preset("small").replace(a_segments=16, fifo_depth=64)
    rows = 9 * 256
    program = lower_matmul(config, rows, 4, 3)
    runs = program.results
    assert len(runs) > 100
    rng = np.random.default_rng(0)
    expected = rng.integers(-5, 6, (rows, 3))
    packets = []
    for run in runs:
        (part,) = run["parts"]
        index = pack.expand_ranges(part["rows"])
        for row in rng.permutation(len(index)):
            lane = int(rng.integers(4))
            packets.append(result_packet(config, run["tag"], int(row), lane, expected[index[row]]))
    assembler = ResultAssembler(program)
    words = np.concatenate(packets)
    last = np.zeros(len(words), dtype=bool)
    last[np.cumsum([len(p) for p in packets]) - 1] = True
    assembler.feed(words[:1001], last[:1001])
    assert not assembler.complete
    with pytest.raises(DeviceError, match="result rows are missing; the first is row"):
        assembler.outputs()
    assembler.feed(words[1001:], last[1001:])
    assert assembler.complete and (assembler.outputs()["c"] == expected).all()


def test_many_results_are_fast():
    config = Config(a_segments=16384, a_depth=65536)
    program = lower_matmul(config, 30_000, 4, 64)
    rng = np.random.default_rng(0)
    expected = sparse(rng, (30_000, 64), 0.5).astype(int)
    row = [result_packet(config, run["tag"], i, 0, expected[r])
           for run in program.results for i, r in enumerate(pack.expand_ranges(run["parts"][0]["rows"]))]  # fmt: skip
    assembler = ResultAssembler(program)
    begin = time.perf_counter()
    assembler.feed_packets(row)
    assert time.perf_counter() - begin < 5
    assert (assembler.outputs()["c"] == expected).all()


def test_replies_that_are_wrong():
    config = preset("tiny")
    program = lower_matmul(config, 3, 4, 2)
    good = result_packet(config, 0, 0, 0, [1, 2])
    error = REPLIES[Reply.ERROR].encode({"fault": Fault.BANK_EMPTY, "opcode": Op.RUN})
    for packets, message in (
        ([np.array(error)], "command RUN with BANK_EMPTY: RUN names a bank that was not loaded"),
        ([np.array([0xFE])], "unknown reply 0xfe"),
        ([good, good], "came twice: row 0"),
        ([result_packet(config, 1, 0, 0, [1])], "tag 1, which no RUN"),
        ([result_packet(config, 0, 3, 0, [1])], "does not belong to the program: tag 0, row 3, lane 0"),
        ([result_packet(config, 0, 0, 5, [1])], "names lane 5; the configuration has 1"),
        ([result_packet(config, 0, 0, 0, [1, 2, 3])], "columns that its RUN does not have"),
        ([good[:-1]], "with 2 values must have 5 words, not 4"),
        ([good[:1]], "ended within its header"),
        ([good + np.array([0, 0, 1, 0, 0], dtype=np.uint32)], "another number of bits"),
        ([good, result_packet(config, 0, 1, 0, [1]), result_packet(config, 0, 2, 0, [1]), good], "more results"),
    ):
        with pytest.raises(DeviceError, match=message):
            ResultAssembler(program).feed_packets(packets)


def test_counters_and_wide_sums():
    program = lower_matmul(preset("tiny"), 1, 4, 2)
    values = [v for i in range(len(COUNTERS)) for v in (i, i)]
    assembler = ResultAssembler(program)
    assembler.feed_packets([np.array([Reply.COUNTERS, *values]), np.array([Reply.SYNCED | 5 << 8])])
    assert assembler.counters == {name: i | i << 32 for i, name in enumerate(COUNTERS)} and assembler.synced == [5]
    config = preset("small").replace(acc_width=48, post=False, a_width=18, b_width=18, stream_words=2)
    a, b = np.full((3, 64), -131072), np.full((64, 5), 131071)
    b[:, 1] = 0
    c = golden(lower_matmul(config, 3, 64, 5), {"a": a, "b": b})
    assert c.dtype == np.int64 and (c == a @ b).all()
