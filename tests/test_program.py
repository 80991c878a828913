import copy
import json
import time

import numpy as np
import pytest
from maskwork.gen import pack
from maskwork.gen.check import Legality, check_bound, check_program
from maskwork.gen.config import Config, preset
from maskwork.gen.errors import DeviceError, MaskworkTypeError, MaskworkValueError, ProgramError
from maskwork.gen.isa import COMMANDS, COUNTERS, REPLIES, Fault, Op, Reply
from maskwork.gen.lower import Post, conv_output_shape, lower_conv, lower_matmul
from maskwork.gen.mask import Mask
from maskwork.gen.overflow import check_overflow
from maskwork.gen.program import Program, bind, disassemble, disassemble_words
from maskwork.gen.results import ResultAssembler

PRESETS = ("tiny", "small", "dense-small", "ulx3s-85f", "sim-64")
CRAMPED = {"k_depth": 16, "a_segments": 16, "a_depth": 64, "psum_rows": 2, "c_rows": 16}


def sparse(rng, shape, density=0.4, high=100):
    return (rng.integers(-high, high, shape) * (rng.random(shape) < density)).astype(np.int16)


def golden(program, operands, masks=None, dense=False):
    """Output of a program on the golden interpreter, every check on the way."""
    interpreter = pytest.importorskip("maskwork.sim_tb.golden.interpreter")
    check_program(program)
    bound = bind(program, operands, masks, dense)
    check_bound(program.config, bound.words, bound.last)
    assembler = ResultAssembler(program)
    assembler.feed_packets(interpreter.Interpreter(program.config).execute(bound.words, bound.last))
    assert assembler.synced == [0]
    return assembler.outputs()["c"]


def requantised(sums, bias, mult, shift, low, high):
    x = (sums.astype(np.int64) + bias) * mult
    q, half = x >> shift, 1 << (shift - 1)
    rest = x - (q << shift)
    return np.clip(q + ((rest > half) | ((rest == half) & (q & 1 == 1))), low, high)


def parameters(rng, n):
    return {"bias": rng.integers(-1000, 1000, n), "mult": rng.integers(1, 1 << 20, n), "shift": rng.integers(10, 30, n)}


# ---------------------------------------------------------------------- masks


def test_mask_kinds_combine():
    bits = np.array([[1, 1, 0], [0, 1, 1]], dtype=bool)
    mask = Mask.element(bits) & Mask.vector("m", [True, False]) & Mask.blocks((2, 3), [(0, 0, 2, 1), (0, 2, 1, 1)])
    assert mask.kinds == ("element", "vector m", "blocks")
    assert mask.to_array((2, 3)).tolist() == [[True, False, False], [False, False, False]]
    assert mask.density((2, 3)) == pytest.approx(1 / 6)
    assert Mask.absent().to_array((2, 2)).all() and Mask.absent().is_absent
    assert (mask.axis_keep("m", 2) == [True, False]).all() and mask.axis_keep("k", 5).all()
    assert not Mask.blocks((2, 2), []).to_array((2, 2)).any()
    assert Mask.element(np.ones((2, 2, 3))[..., 0].astype(int)).to_array((2, 2)).all()


def test_mask_vector_over_k_lies_on_either_side():
    mask = Mask.vector("k", [1, 0])
    assert mask.to_array((3, 2)).tolist() == [[True, False]] * 3
    assert mask.to_array((2, 3)).tolist() == [[True] * 3, [False] * 3]
    assert mask.to_array((2, 2), "kn").tolist() == [[True, True], [False, False]]
    with pytest.raises(MaskworkValueError, match='give axes "mk" or "kn"'):
        mask.to_array((2, 2))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Mask.element(np.ones((2, 2))), MaskworkTypeError, "array of bool"),
        (lambda: Mask.element([[2, 0]]), MaskworkValueError, "only 0 and 1, not 0 to 2"),
        (lambda: Mask.vector("z", [True]), MaskworkValueError, 'must be "m", "k" or "n", not \'z\''),
        (lambda: Mask.vector("m", [[True]]), MaskworkValueError, "one axis"),
        (lambda: Mask.blocks((2, 2), [(1, 1, 2, 1)]), MaskworkValueError, r"must lie within .* \(2, 2\)"),
        (lambda: Mask.blocks((2, 2), [(1, 1)]), MaskworkTypeError, "four integers"),
        (lambda: Mask.element([[True]]).to_array((2, 2)), MaskworkValueError, r"shape \(2, 2\) is expected"),
        (lambda: Mask.vector("m", [True]).to_array((2, 2)), MaskworkValueError, "length 1; 2 is expected"),
        (lambda: Mask.blocks((1, 2), []).to_array((2, 2)), MaskworkValueError, r"\(2, 2\) is expected"),
        (lambda: Mask.vector("n", [True]).to_array((1, 1), "mk"), MaskworkValueError, "m or k is expected"),
        (lambda: Mask.vector("n", [True]).axis_keep("n", 2), MaskworkValueError, "2 is expected"),
    ],
)
def test_mask_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ---------------------------------------------------------------------- packing


@pytest.mark.parametrize("width", [4, 7, 9, 16, 18])
@pytest.mark.parametrize("stream_words", [1, 2, 8])
def test_rows_survive_packing(width, stream_words):
    rng = np.random.default_rng(width)
    for rows, length, density in ((1, 1, 1.0), (7, 33, 0.3), (5, 64, 0.0), (20, 100, 0.9)):
        values = rng.integers(-(1 << (width - 1)), 1 << (width - 1), (rows, length))
        mask = rng.random((rows, length)) < density
        words = pack.pack_rows(values, mask, width, stream_words)
        got, got_mask, used = pack.unpack_rows(words, rows, length, width, stream_words)
        assert used == len(words) and used % stream_words == 0 and words.dtype == np.uint32
        assert (got == np.where(mask, values, 0)).all() and (got_mask == mask).all()
        words = pack.pack_rows(values, None, width, stream_words)
        got, _, used = pack.unpack_rows(words, rows, length, width, stream_words, dense=True)
        assert used == len(words) and (got == values).all()
        with pytest.raises(ValueError, match="too few"):
            pack.unpack_rows(words[:-1], rows, length, width, stream_words, dense=True)


def test_wire_format_by_hand():
    values = np.array([[0, -1, 0, 5, 7, 9]])
    words = pack.pack_rows(values, values != 0, 9, 1)
    assert words.tolist() == [0b111010, 0x1FF | 5 << 9 | 7 << 18, 9]
    assert pack.pack_rows(values, values != 0, 9, 2).tolist() == [0b111010, 0, 0x1FF | 5 << 9 | 7 << 18, 9]
    assert pack.pack_rows(values * 0, values > 99, 9, 2).tolist() == [0, 0]
    assert pack.pack_bitmaps(np.ones((2, 33), dtype=bool), 1).tolist() == [[0xFFFFFFFF, 1]] * 2


def test_packing_is_fast():
    values = sparse(np.random.default_rng(0), (512, 576))
    begin = time.perf_counter()
    pack.pack_rows(values, values != 0, 9, 1)
    assert time.perf_counter() - begin < 0.5  # about 0.01 s when nothing else runs


def test_storage_words():
    assert pack.segment_words(16, 4) == 5 and pack.segment_words(17, 4) == 7 and pack.segment_words(35, 2) == 21
    mask = np.zeros((2, 40), dtype=bool)
    mask[0, [0, 1, 2, 3, 4, 33]] = True
    assert pack.bank_words(mask, 4) == 3 + 2
    assert pack.bank_words(np.ones((3, 35), dtype=bool), 2) == 3 * 21


def test_ranges():
    rng = np.random.default_rng(1)
    for index in (np.arange(0), np.array([7]), np.arange(5, 50, 3), np.array([9, 5, 1, 2, 3, 40, 41, 50]),
                  np.flatnonzero(rng.random(200) < 0.5), rng.permutation(30)):  # fmt: skip
        ranges = pack.to_ranges(index)
        assert (pack.expand_ranges(ranges) == index).all() and pack.count_ranges(ranges) == len(index)
    assert pack.to_ranges(np.r_[0:10, 100:110]) == [[0, 10, 1], [100, 10, 1]]


# ---------------------------------------------------------------------- program files


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
        (lambda v: v.update(isa=7), "isa must be 1, not 7"),
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
        (lambda p: p.commands[0].update(version=2), "WRONG_VERSION"),
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
    assert legality.step(Op.BEGIN, {"version": 1, "config": config.hash}) is None
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
        (Op.BEGIN, {"version": 1, "config": 0}, Fault.WRONG_CONFIG),
        (Op.LOAD_A, load, Fault.NOT_BEGUN),
    ]
    for op, fields, fault in faults:
        violation = legality.step(op, fields)
        assert (violation and violation[0]) == fault, (op, fields, violation)
    legality.step(Op.BEGIN, {"version": 1, "config": config.hash})
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
    begin = np.array(COMMANDS[Op.BEGIN].encode({"version": 1, "config": tight.hash}), dtype=np.uint32)
    head = COMMANDS[Op.LOAD_A].encode({"clusters": 1, "segments": 8, "length": 32})
    values = np.ones((8, 32), dtype=np.int64)
    full = np.concatenate([np.array(head, dtype=np.uint32), pack.pack_rows(values, values > 0, 9, 1)])
    with pytest.raises(ProgramError, match="take 80 words; at most a_depth = 64"):
        check_bound(tight, *stream([begin, full]))


def test_overflow_and_range_are_refused():
    a, b = np.full((3, 4), -128), np.array([[127]] * 4)
    check_overflow(18, a, b)
    with pytest.raises(MaskworkValueError, match="could reach 65024 in column 0; at most 32767"):
        check_overflow(16, a, b)
    program = lower_matmul(preset("icebreaker").replace(acc_width=18, a_width=9, b_width=9), 3, 40, 4)
    with pytest.raises(MaskworkValueError, match="raise acc_width"):
        bind(program, {"a": np.full((3, 40), 255), "b": np.full((40, 4), 255)})
    bind(program, {"a": np.full((3, 40), 255), "b": np.full((40, 4), 255)}, {"a": Mask.vector("m", [False] * 3)})


def test_bind_errors():
    program = lower_matmul(preset("tiny"), 2, 3, 4)
    a, b = np.ones((2, 3), dtype=int), np.ones((3, 4), dtype=int)
    for operands, masks, error, message in (
        ({"a": a}, {}, MaskworkValueError, r"operand 'b' is missing; shape \(3, 4\)"),
        ({"a": a, "b": b, "x": b}, {}, MaskworkValueError, "unknown operand 'x'; operands: a, b"),
        ({"a": a.T, "b": b}, {}, MaskworkValueError, r"operand 'a' has shape \(3, 2\); \(2, 3\) is expected"),
        ({"a": a * 1.0, "b": b}, {}, MaskworkTypeError, "operand 'a' must be an array of integers, not float64"),
        ({"a": a * 256, "b": b}, {}, MaskworkValueError, r"operand 'a' must lie in -256\.\.255"),
        ({"a": a, "b": b}, {"a": a[0] > 0}, MaskworkValueError, r"mask of operand 'a' has shape \(3,\)"),
        ({"a": a, "b": b}, {"a": a * 1.0}, MaskworkTypeError, "mask of operand 'a' must be an array of bool"),
    ):
        with pytest.raises(error, match=message):
            bind(program, operands, masks)


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


# ---------------------------------------------------------------------- lowering, on the golden model


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("use_c", [False, True])
def test_matmul_shapes(name, use_c):
    rng = np.random.default_rng(5)
    for m, k, n in ((31, 32, 31), (1, 1, 1), (1, 300, 200), (70, 300, 130), (3, 65, 17)):
        a, b, wanted = sparse(rng, (m, k)), sparse(rng, (k, n)), rng.random((m, n)) < 0.5
        program = lower_matmul(preset(name), m, k, n, use_c=use_c)
        c = golden(program, {"a": a, "b": b, **({"c_mask": wanted} if use_c else {})})
        assert c.dtype == np.int32
        assert (c == (a.astype(int) @ b.astype(int)) * (wanted if use_c else 1)).all()


@pytest.mark.parametrize("seed", range(60))
def test_matmul_random(seed):
    rng = np.random.default_rng(seed)
    config = preset(PRESETS[seed % 5])
    if seed % 3 == 0:
        config = config.replace(**CRAMPED, acc_width=40, post=False)
    m, k, n = int(rng.integers(1, 100 if seed % 2 else 5)), int(rng.integers(1, 150)), int(rng.integers(1, 200))
    keep = [rng.random(v) < 0.7 if rng.random() < 0.3 else np.ones(v, dtype=bool) for v in (m, k, n)]
    keep[1][0] = True
    use_c = bool(rng.random() < 0.3)
    post = Post(-60, 100) if config.post and rng.random() < 0.4 else None
    program = lower_matmul(config, m, k, n, use_c=use_c, m_keep=keep[0], k_keep=keep[1], n_keep=keep[2], post=post)
    program = Program.from_json(program.to_json())
    a, b, a_mask, wanted = sparse(rng, (m, k)), sparse(rng, (k, n)), rng.random((m, k)) < 0.7, rng.random((m, n)) < 0.6
    operands = {"a": a, "b": b, **(parameters(rng, n) if post else {})}
    expected = (a * a_mask * keep[1]).astype(int) @ b.astype(int)
    if post:
        expected = requantised(expected, operands["bias"], operands["mult"], operands["shift"], -60, 100)
    expected = expected * keep[0][:, None] * keep[2] * (wanted if use_c else 1)
    masks = {"a": Mask.element(a_mask), **({"c_mask": wanted} if use_c else {})}
    assert (golden(program, operands, masks, dense=bool(seed % 4 == 1)) == expected).all()


@pytest.mark.parametrize("name", ["small", "ulx3s-85f"])
@pytest.mark.parametrize("cramped", [False, True])
@pytest.mark.parametrize("mode", ["share", "cluster"])
def test_matmul_share(name, cramped, mode):
    rng = np.random.default_rng(8)
    config = preset(name).replace(**(CRAMPED if cramped else {}))
    for m, k, n in ((1, 20, 16), (3, 100, 37), (5, 70, 1500 if name == "small" else 1100), (39, 50, 90)):
        program = lower_matmul(config, m, k, n, mode=mode, post=Post(-50, 50))
        assert all(c["share"] for c in program.commands if c["op"] == "RUN")
        a, b, p = sparse(rng, (m, k)), sparse(rng, (k, n)), parameters(rng, n)
        expected = requantised(a.astype(int) @ b.astype(int), p["bias"], p["mult"], p["shift"], -50, 50)
        assert (golden(program, {"a": a, "b": b, **p}) == expected).all()


def test_removed_rows_are_not_loaded():
    full, half = (
        lower_matmul(preset("small"), 64, 64, 64, m_keep=np.arange(64) % f == 0, k_keep=np.arange(64) % f == 0)
        for f in (1, 2)
    )
    load = [c for c in half.commands if c["op"] == "LOAD_A"]
    assert {c["length"] for c in load} == {32} and sum(c["segments"] for c in load) == 32
    assert sum(c["segments"] for c in full.commands if c["op"] == "LOAD_A") == 64
    assert (golden(lower_matmul(preset("tiny"), 2, 2, 2, m_keep=[]),
                   {"a": np.ones((2, 2), int), "b": np.ones((2, 2), int)}) == 0).all()  # fmt: skip


def convolution(a, w, stride, padding, dilation):
    a = np.pad(a.astype(int), ((0, 0), *padding, (0, 0)))
    n, oh, ow, cout = conv_output_shape(a.shape, w.shape, stride, 0, dilation)
    out = np.zeros((n, oh, ow, cout), dtype=int)
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            y, x = i * dilation[0], j * dilation[1]
            part = a[:, y : y + (oh - 1) * stride[0] + 1 : stride[0], x : x + (ow - 1) * stride[1] + 1 : stride[1]]
            out += part @ w[i, j].astype(int)
    return out


@pytest.mark.parametrize("seed", range(80))
def test_conv_random(seed):
    rng = np.random.default_rng(1000 + seed)
    config = preset(PRESETS[seed % 5])
    if seed % 3 == 0:
        config = config.replace(**CRAMPED)

    def pair(low, high):
        return tuple(int(v) for v in rng.integers(low, high, 2))

    shape = (int(rng.integers(1, 4)), *pair(1, 13), int(rng.integers(1, 41)))
    weights = (*pair(1, 5), shape[3], int(rng.integers(1, 41)))
    stride, padding = pair(1, 4), (pair(0, 4), pair(0, 4))
    dilation = tuple(1 if (weights[i] - 1) * 3 >= shape[1 + i] else int(rng.integers(1, 4)) for i in (0, 1))
    if any(dilation[i] * (weights[i] - 1) >= shape[1 + i] + sum(padding[i]) for i in (0, 1)):
        pytest.skip("kernel larger than the input")
    keep, kept = rng.random(shape[3]) < 0.8, rng.random(weights[3]) < 0.8
    keep[0] = kept[0] = True
    use_c, post = bool(rng.random() < 0.5), {"low": -60, "high": 100} if rng.random() < 0.4 else None
    program = lower_conv(config, shape, weights, stride, padding, dilation, use_c=use_c, post=post, k_keep=keep,
                         n_keep=kept)  # fmt: skip
    a, w = sparse(rng, shape), sparse(rng, weights)
    operands = {"a": a, "b": w, **(parameters(rng, weights[3]) if post else {})}
    expected = convolution(a * keep, w, stride, padding, dilation)
    if post:
        expected = requantised(expected, operands["bias"], operands["mult"], operands["shift"], -60, 100)
    expected = expected * kept
    if use_c:
        operands["c_mask"] = rng.random(expected.shape) < 0.5
        expected = expected * operands["c_mask"]
    assert (golden(program, operands) == expected).all()


def test_padding_is_not_loaded():
    program = lower_conv(preset("small"), (1, 8, 8, 16), (3, 3, 16, 8), 1, 1)
    for command in program.commands:
        if command["op"] == "LOAD_A":
            assert command["segments"] <= 64
    strided = lower_conv(preset("small"), (1, 8, 8, 16), (1, 1, 16, 8), 2)
    assert sum(c["segments"] for c in strided.commands if c["op"] == "LOAD_A") == 16


def test_lowering_errors():
    config = preset("small")
    for make, message in (
        (lambda: lower_matmul(config, 0, 1, 1), "m must be a positive integer, not 0"),
        (lambda: lower_matmul(config, 2, 2, 2, k_keep=[True]), r"k_keep must have shape \(2,\)"),
        (lambda: lower_matmul(config, 2, 2, 2, n_keep=[1, 0]), "n_keep must be rising indices from 0 to 1"),
        (lambda: lower_matmul(config, 2, 2, 2, post=Post(5, 4)), "low <= high must lie in"),
        (lambda: lower_matmul(config, 2, 2, 2, mode="x"), 'mode must be "auto"'),
        (lambda: lower_matmul(config, 2, 2, 2, mode="share"), 'mode "share" needs'),
        (lambda: lower_matmul(config, 2, 2, 9, mode="cluster", use_c=True), "more than one lane a cluster and"),
        (lambda: lower_matmul(preset("small").replace(post=False), 2, 2, 2, post=Post(0, 1)), "post = true"),
        (lambda: lower_conv(config, (1, 4, 4, 3), (3, 3, 2, 1)), r"input's 3 channels \(cin\), not 2"),
        (lambda: lower_conv(config, (1, 2, 4, 3), (3, 3, 3, 1)), "kernel's height 3 .* must fit"),
        (lambda: lower_conv(config, (1, 4, 4, 3), (3, 3, 3, 1), 0), "stride must be an integer of at least 1"),
        (lambda: lower_conv(config, (4, 4, 3), (3, 3, 3, 1)), "four positive sizes"),
    ):
        with pytest.raises(MaskworkValueError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)
    with pytest.raises(MaskworkTypeError, match="post must have low and high"):
        lower_matmul(config, 2, 2, 2, post={"lo": 1})


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
