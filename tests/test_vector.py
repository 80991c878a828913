"""The vector unit's command: golden model, programs and their checks."""

from fractions import Fraction

import numpy as np
import pytest
from maskwork.gen.check import check_bound, check_program
from maskwork.gen.config import Config, preset, presets
from maskwork.gen.errors import DeviceError, MaskworkTypeError, MaskworkValueError, ProgramError
from maskwork.gen.execute import execute, execute_bound
from maskwork.gen.isa import MAX_WINDOW, Fault, Op, VectorKind
from maskwork.gen.listing import disassemble, disassemble_words
from maskwork.gen.lower import lower_matmul, lower_vector
from maskwork.gen.program import Program, bind
from maskwork.gen.results import ResultAssembler
from maskwork.sim_tb.device import GoldenDevice
from maskwork.sim_tb.golden import vector
from maskwork.sim_tb.packets import Machine, faults

SMALL = preset("small")
CONFIGS = {
    "1 word": SMALL,
    "4 words": SMALL.replace(stream_words=4),
    "1 value a word": SMALL.replace(a_width=18),
    "8 values a word": SMALL.replace(a_width=4, stream_words=2),
}
SUM, MAX = VectorKind.SUM, VectorKind.MAX


def exact(config, windows, kind, mult0, mult1, shift, low, high):
    """By Python's own arithmetic, whose round() goes half to even."""
    least, most = -(1 << (config.a_width - 1)), (1 << (config.a_width - 1)) - 1
    low, high = (min(max(limit, least), most) for limit in (low, high))
    outputs = []
    for window in np.asarray(windows).tolist():
        products = [value * (mult1 if i % 2 else mult0) for i, value in enumerate(window)]
        s = max(products) if kind == MAX else sum(products)
        outputs.append(min(max(round(Fraction(s, 1 << shift)), low), high))
    return outputs


def values(rng, config, shape):
    return rng.integers(-(1 << (config.a_width - 1)), 1 << (config.a_width - 1), shape)


def random_fields(rng):
    low, high = sorted(rng.integers(-300, 300, 2).tolist())
    return {"kind": int(rng.integers(2)), "mult0": int(rng.integers(1 << 24)), "mult1": int(rng.integers(1 << 24)),
            "shift": int(rng.integers(48)), "low": low, "high": high}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_against_python(name):
    config, rng = CONFIGS[name], np.random.default_rng(1)
    machine = Machine(config)
    for window in (1, 2, 3, 9, 49):
        for _ in range(8):
            fields, windows = random_fields(rng), values(rng, config, (int(rng.integers(1, 30)), window))
            (reply,) = machine.send(machine.vector(windows, tag=7, **fields))
            assert reply["tag"] == 7 and reply["count"] == len(windows)
            assert reply["outputs"] == exact(config, windows, *fields.values())


def test_nothing_overflows():
    config = SMALL.replace(a_width=18)
    for value in (-(1 << 17), (1 << 17) - 1):
        windows = np.full((2, MAX_WINDOW), value)
        most = (1 << 24) - 1
        for shift in (0, 30, 47):
            expected = exact(config, windows[:1], SUM, most, most, shift, -32768, 32767) * 2
            assert vector(windows, SUM, most, most, shift, -32768, 32767).tolist() == expected


def test_ties_go_to_even():
    assert vector(np.array([[1], [3], [5], [-1], [-3], [-5]]), SUM, 1, 1, 1, -9, 9).tolist() == [0, 2, 2, 0, -2, -2]
    assert vector(np.array([[-3, 2], [3, -9]]), MAX, 1, 3, 2, -9, 9).tolist() == [2, 1]


def test_low_above_high():
    assert vector(np.array([[-5], [0], [5]]), SUM, 1, 1, 0, 3, -2).tolist() == [-2] * 3


@pytest.mark.parametrize("name", CONFIGS)
def test_programs(name, tmp_path):
    config, rng = CONFIGS[name], np.random.default_rng(2)
    for count, window in ((1, 1), (5, 2), (17, 9), (65535, 1), (65536, 2)):
        fields = random_fields(rng)
        program = lower_vector(config, count, window, **fields)
        assert sum(command["op"] == "VECTOR" for command in program.commands) == -(-count // 65535)
        program.save(tmp_path / "p.mwp")
        program = Program.load(tmp_path / "p.mwp", config)
        a = values(rng, config, (count, window))
        bound = bind(program, {"a": a})
        check_bound(config, bound.words, bound.last)
        done = execute_bound(GoldenDevice(config), program, bound)
        expected = vector(a, **{**fields, "high": min(fields["high"], (1 << (config.a_width - 1)) - 1),
                                "low": max(fields["low"], -(1 << (config.a_width - 1)))})  # fmt: skip
        if fields["high"] >= -(1 << (config.a_width - 1)) and fields["low"] < 1 << (config.a_width - 1):
            assert np.array_equal(done.outputs["c"], expected)
        assert done.outputs["c"].dtype == np.int32 and done.outputs["c"].shape == (count,)
        again = execute(GoldenDevice(config), lower_vector(config, count, window, **fields), {"a": a}, dense=True)
        assert np.array_equal(again.outputs["c"], done.outputs["c"])


def test_uses():
    """Max pooling, average pooling, addition."""
    rng = np.random.default_rng(3)
    a = rng.integers(-256, 256, (50, 9))

    def run(*arguments, data=a):
        program = lower_vector(SMALL, *data.shape, *arguments)
        return execute(GoldenDevice(SMALL), program, {"a": data}).outputs["c"].tolist()

    assert run("max", 1, 1, 0, -256, 255) == a.max(axis=1).tolist()
    mult = round((1 << 23) / 9)
    assert run("sum", mult, mult, 23, -256, 255) == [round(Fraction(int(s) * mult, 1 << 23)) for s in a.sum(axis=1)]
    pairs = a[:, :2]
    expected = [min(max(round(Fraction(3 * x + 5 * y, 8)), 0), 200) for x, y in pairs.tolist()]
    assert run(0, 3, 5, 3, 0, 200, data=pairs) == expected


def test_masked_values_are_zero():
    program = lower_vector(SMALL, 4, 3, "sum", 1, 1, 0, -256, 255)
    a, mask = np.full((4, 3), 5), np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], bool)
    outputs = execute(GoldenDevice(SMALL), program, {"a": a}, {"a": mask}).outputs["c"]
    assert outputs.tolist() == [10, 0, 15, 5]


def test_listings():
    program = lower_vector(SMALL, 5, 2, "max", 3, 4, 6, -7, 8)
    line = "VECTOR        tag=0 shift=6 kind=1 window=2 count=5 mult0=3 mult1=4 low=-7 high=8"
    assert f"{line} <- a[0..4; 0..1]" in disassemble(program)
    bound = bind(program, {"a": np.ones((5, 2), int)})
    assert f"{line} ; 4 words" in disassemble_words(SMALL, bound.words, bound.last)


# ---------------------------------------------------------------------- errors


def test_presets():
    has = {name for name, config in presets().items() if config.vector}
    assert has == {
        "small", "small-train", "dense-small", "ulx3s-85f", "sim-64", "ecp5-25f", "small-int16", "sim-64-int16",
    }  # fmt: skip
    assert not Config().vector


@pytest.mark.parametrize("config", [SMALL, SMALL.replace(stream_words=4)], ids=["1 word", "4 words"])
def test_faults(config):
    machine, beat = Machine(config, begin=False), config.stream_words
    good = machine.vector(np.arange(30).reshape(10, 3))
    assert faults(machine.send(good)) == [(Fault.NOT_BEGUN, 0x30)]
    machine.begin()
    (whole,) = machine.send(good)
    assert faults(machine.send(good[:beat])) == [(Fault.SHORT_PACKET, 0x30)]
    for change in ({"window": 0}, {"window": MAX_WINDOW + 1}, {"count": 0}, {"kind": 2}, {"kind": 15}, {"shift": 48}):
        wrong = machine.vector(np.zeros((2, 2), int), **change)
        assert faults(machine.send(wrong, wrong[: -(-5 // beat) * beat])) == [(Fault.BAD_FIELD, 0x30)] * 2
    for extra in ([0] * beat, [0] * 9 * beat):
        reply, error = machine.send(good + extra)
        assert reply == whole and faults([error]) == [(Fault.LONG_PACKET, 0x30)]
    for missing in range(beat, 11, beat):
        reply, error = machine.send(good[:-missing])
        complete = max(0, (len(good) - missing - -(-5 // beat) * beat) * 3 // 3)
        assert reply["outputs"][: complete + 1] == [*whole["outputs"][:complete], 0]
        assert len(reply["outputs"]) == min(10, -(-(complete + 1) // (3 * beat)) * 3 * beat)  # whole beats
        assert faults([error]) == [(Fault.SHORT_PACKET, 0x30)]
    assert machine.send(good) == [whole]


def test_without_the_unit():
    config = SMALL.replace(vector=False)
    machine = Machine(config)
    assert faults(machine.send(machine.vector([[1]]))) == [(Fault.UNKNOWN_OPCODE, 0x30)]
    with pytest.raises(ProgramError, match="has no vector unit"):
        lower_vector(config, 1, 1, 0, 1, 1, 0, 0, 1)
    program = lower_vector(SMALL, 1, 1, 0, 1, 1, 0, 0, 1)
    program.config = config
    program.commands[0]["config"] = config.hash
    with pytest.raises(ProgramError, match=r"VECTOR needs a configuration with vector = true \(UNKNOWN_OPCODE\)"):
        check_program(program)


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"count": 0}, MaskworkValueError, "count must be from 1 to"),
    ({"window": MAX_WINDOW + 1}, MaskworkValueError, "window must be from 1 to 16384, not 16385"),
    ({"kind": "mean"}, MaskworkValueError, "kind must be one of sum, max, not 'mean'"),
    ({"kind": 2}, MaskworkValueError, "kind must be one of"),
    ({"mult0": 1 << 24}, MaskworkValueError, "mult0 must be from 0 to 16777215"),
    ({"mult1": -1}, MaskworkValueError, "mult1 must be from 0"),
    ({"shift": 48}, MaskworkValueError, "shift must be from 0 to 47, not 48"),
    ({"low": -32769}, MaskworkValueError, "low must be from -32768"),
    ({"high": 1.5}, MaskworkTypeError, "high must be an integer, not 1.5"),
])  # fmt: skip
def test_errors_of_lowering(change, error, message):
    good = {"count": 3, "window": 2, "kind": "sum", "mult0": 1, "mult1": 1, "shift": 0, "low": 0, "high": 1}
    with pytest.raises(error, match=message):
        lower_vector(SMALL, **(good | change))


@pytest.mark.parametrize(("change", "message"), [
    (lambda p: p.vectors.pop(), "vectors: 1 entries are expected, one for each VECTOR, not 0"),
    (lambda p: p.vectors[0].update(tag=9), "vectors entry 0: tag must be that of its VECTOR, 0"),
    (lambda p: p.vectors[0].update(output="d"), "vectors entry 0: unknown output 'd'; outputs: c"),
    (lambda p: p.vectors[0].update(elements=[[0, 4, 1]]), "elements must be 3 elements of an output with 3"),
    (lambda p: p.commands[1].update(kind=7), r"command 1 \(VECTOR\): kind must be one of 0 \(SUM\), 1 \(MAX\), not 7"),
    (lambda p: p.commands[1].update(window=0), "window must be from 1 to 16384, not 0"),
    (lambda p: p.commands[1].update(shift=50), "shift must be at most 47, not 50"),
    (lambda p: p.commands[1].update(count=1 << 16), "count must be from 0 to 65535"),
    (lambda p: p.commands[1].pop("data"), "data must name an operand with its rows and columns"),
    (lambda p: p.commands[1]["data"].update(operand="b"), "data.operand must name an operand of role 'a', not 'b'"),
    (lambda p: p.commands[1]["data"].update(rows=[[0, 2, 1]]), "data.rows must be 3 rows of operand 'a', which has 3"),
    (lambda p: p.commands[1]["data"].update(columns=[[1, 2, 1]]), "data.columns must be 2 columns of operand 'a'"),
])  # fmt: skip
def test_errors_of_programs(change, message):
    program = lower_vector(SMALL, 3, 2, "sum", 1, 1, 0, -9, 9)
    check_program(program)
    change(program)
    with pytest.raises(ProgramError, match=message):
        check_program(program)


def test_errors_of_streams_and_replies():
    program = lower_vector(SMALL, 7, 2, "sum", 1, 1, 0, -9, 9)
    bound = bind(program, {"a": np.ones((7, 2), int)})
    cut = np.delete(bound.words, bound.starts[2] - 1), np.delete(bound.last, bound.starts[2] - 2)
    with pytest.raises(ProgramError, match=r"packet 1 \(VECTOR\): the data are incomplete, 4 words \(SHORT_PACKET\)"):
        check_bound(SMALL, *cut)
    with pytest.raises(DeviceError, match="a VECTOR reply with 7 outputs must have 4 words, not 3"):
        device = GoldenDevice(SMALL)
        cut = bound.words[: bound.starts[2] - 2], bound.last[: bound.starts[2] - 2].copy()
        cut[1][-1] = True
        ResultAssembler(program).feed(*device.execute(*cut))
    words, last = GoldenDevice(SMALL).execute(bound.words, bound.last)
    for other, message in (
        (lower_vector(SMALL, 8, 2, 0, 1, 1, 0, -9, 9), "does not belong to the program: tag 0 with 7 outputs"),
        (lower_matmul(SMALL, 1, 1, 1), "there are more VECTOR replies than the program's 0"),
    ):
        with pytest.raises(DeviceError, match=message):
            ResultAssembler(other).feed(words, last)
    assembler = ResultAssembler(program)
    assert not assembler.complete
    with pytest.raises(DeviceError, match="1 of 1 VECTOR replies are missing"):
        assembler.outputs()
    assert Op.VECTOR > Op.RUN
