"""Programs of MASK: files, listings, legality, replies; bad input of everything that makes them."""

import numpy as np
import pytest
from maskwork.gen import generators
from maskwork.gen.check import check_bound, check_program
from maskwork.gen.config import GENERATORS, Config, preset, presets
from maskwork.gen.errors import (
    ConfigError,
    DeviceError,
    MaskworkError,
    MaskworkTypeError,
    MaskworkValueError,
    ProgramError,
)
from maskwork.gen.execute import execute_bound
from maskwork.gen.isa import Fault, MaskKind, Op
from maskwork.gen.listing import disassemble, disassemble_words
from maskwork.gen.lower import lower_mask, lower_matmul
from maskwork.gen.program import Program, bind
from maskwork.gen.results import ResultAssembler
from maskwork.sim_tb.device import GoldenDevice, open_device
from maskwork.sim_tb.packets import Machine, faults

from .variants import CONFIGS

TRAIN, WIDE = preset("small-train"), preset("small-train").replace(a_width=18, stream_words=4)
G = MaskKind


@pytest.mark.parametrize("config", [TRAIN, WIDE], ids=["1 word", "4 words"])
def test_programs_survive_a_file(config, tmp_path):
    for kind in MaskKind:
        program = lower_mask(config, kind, 7, 10, level=1)
        program.save(tmp_path / "p.mwp")
        assert Program.load(tmp_path / "p.mwp", config) == program
        bound = bind(program, {"a": np.arange(-35, 35).reshape(7, 10)})
        check_bound(config, bound.words, bound.last)
        if kind != G.REPLAY:
            execute_bound(GoldenDevice(config), program, bound)


def train(device):
    """Every function once, masks of one for the next."""
    rng = np.random.default_rng(8)
    x, g = rng.integers(-200, 200, (2, 3, 4, 20))
    forward = generators.threshold(device, x, 0, slot=0)
    back = generators.replay(device, 0, g)
    pruned = generators.prune(device, back.values, generators.prune_level(back.magnitudes, g.size, 0.9), 7, slot=1)
    dropped = generators.dropout(device, pruned.values, 0.7, 9)
    alone = generators.dropout_mask(device, (12, 20), 0.7, 9, slot=2)
    masks = [forward, back, pruned, dropped, alone, *(generators.replay(device, n, shape=(12, 20)) for n in (0, 1, 2))]
    parts = [part for m in masks for part in (m.mask, m.values, m.magnitudes, m.kept, m.nonzeros)]
    return [*parts, *generators.channel_norms(device, x), generators.project(device, g, 5)]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["rtl", "cycle"])
def test_functions_on_every_target(target):
    config = CONFIGS["abc-1-2"]
    with open_device("golden", config) as golden, open_device(target, config) as device:
        for ours, expected in zip(train(device), train(golden), strict=True):
            assert np.array_equal(ours, expected)


def test_listings():
    program = lower_mask(TRAIN, "prune", 5, 20, level=9, seed=0xABC, slot=2, store=True)
    line = "MASK          tag=0 kind=2 values=1 store=1 slot=2 length=20 rows=5 level=9 seed=0xabc"
    assert f"{line} <- a[0..4; 0..19]" in disassemble(program)
    bound = bind(program, {"a": np.ones((5, 20), int)})
    assert f"{line} ; 34 words" in disassemble_words(TRAIN, bound.words, bound.last)


# ---------------------------------------------------------------------- errors


def test_configurations():
    assert {name for name, config in presets().items() if config.blocks} == {"small-train"}
    assert TRAIN.blocks == set(GENERATORS) and not Config().blocks
    assert Config(generators="store, prune").generators == "prune,store"
    for wrong in ("prune,prune", "relu", ",", "prune;store"):
        with pytest.raises(ConfigError, match=r"generators must be names of threshold, .*, each at most once, not"):
            Config(generators=wrong)
    for key, wrong in (("mask_slots", 3), ("mask_slots", 32), ("mask_depth", 8), ("norm_channels", 8192),
                       ("project_sums", 2), ("project_sums", 32)):  # fmt: skip
        with pytest.raises(ConfigError, match=f"{key} must be a power of two from"):
            Config(**{key: wrong})


def test_without_the_unit():
    small = preset("small")
    machine = Machine(small)
    assert faults(machine.send(machine.mask(G.GREATER, [[1]]))) == [(Fault.UNKNOWN_OPCODE, 0x31)]
    with pytest.raises(ProgramError, match=r"has no block 'prune' in its generators \(none\); PRUNE needs it"):
        generators.prune(GoldenDevice(small), [1], 1, 1)
    with pytest.raises(ProgramError, match="has no block 'store'"):
        lower_mask(small.replace(generators="threshold"), "greater", 1, 1, store=True)
    program = lower_mask(TRAIN, "greater", 1, 1)
    program.config = small
    program.commands[0]["config"] = small.hash
    with pytest.raises(ProgramError, match=r"MASK needs a configuration with generators \(UNKNOWN_OPCODE\)"):
        check_program(program)


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"kind": "relu"}, MaskworkValueError, "one of greater, magnitude, prune, dropout, replay, norms, project, not"),
    ({"kind": 7}, MaskworkValueError, "kind must be one of"),
    ({"rows": 0}, MaskworkValueError, "rows must be from 1 to"),
    ({"length": 65536}, MaskworkValueError, "length must be from 1 to 65535 for PRUNE, not 65536"),
    ({"kind": "norms", "length": 257}, MaskworkValueError, "length must be from 1 to 256 for NORMS, not 257"),
    ({"kind": "project", "length": 16385}, MaskworkValueError, "length must be from 1 to 16384 for PROJECT"),
    ({"level": 0}, MaskworkValueError, "level must be from 1 to 255 for PRUNE, not 0"),
    ({"kind": "greater", "level": -257}, MaskworkValueError, "level must be from -256 to 255 for GREATER"),
    ({"kind": "dropout", "level": 65536}, MaskworkValueError, "level must be from 1 to 65535 for DROPOUT"),
    ({"level": 1.5}, MaskworkTypeError, "level must be an integer, not 1.5"),
    ({"seed": 0}, MaskworkValueError, "seed must be from 1 to 4294967295 for PRUNE, not 0"),
    ({"slot": 4}, MaskworkValueError, "slot must be from 0 to 3 for PRUNE, not 4"),
    ({"store": True, "rows": 33, "length": 33}, MaskworkValueError, "takes 66 words; a slot has mask_depth = 64"),
    ({"kind": "norms", "store": True}, MaskworkValueError, "store must be False for NORMS"),
    ({"kind": "replay", "store": True}, MaskworkValueError, "store must be False for REPLAY"),
    ({"kind": "project", "values": False}, MaskworkValueError, "values must be True for PROJECT"),
])  # fmt: skip
def test_errors_of_lowering(change, error, message):
    good = {"kind": "prune", "rows": 3, "length": 2, "level": 1}
    lower_mask(TRAIN, **good)
    if change.get("kind") in ("norms", "project", "replay"):
        good["level"] = 0
    with pytest.raises(error, match=message):
        lower_mask(TRAIN, **(good | change))


@pytest.mark.parametrize(("change", "message"), [
    (lambda p: p.masks.pop(), "masks: 1 entries are expected, one for each MASK, not 0"),
    (lambda p: p.masks[0].update(tag=9), "masks entry 0: tag must be that of its MASK, 0"),
    (lambda p: p.masks[0].update(output="d"), "masks entry 0: unknown output 'd'; outputs: c, stats"),
    (lambda p: p.masks[0].pop("stats"), "masks entry 0: unknown stats None"),
    (lambda p: p.masks[0].update(stats="c"), "stats must name an output of shape"),
    (lambda p: p.masks[0].update(output="stats"), "the output's rows must have 2 elements, not 3"),
    (lambda p: p.masks[0].update(rows=[[0, 4, 1]]), "rows must be 3 rows of an output with 3"),
    (lambda p: p.commands[1].update(kind=7), r"command 1 \(MASK\): kind must be one of 0 \(GREATER\), .*, not 7"),
    (lambda p: p.commands[1].update(length=0), "length must be from 1 to 65535 for PRUNE, not 0"),
    (lambda p: p.commands[1].update(rows=0), "rows must be 1 or more, not 0"),
    (lambda p: p.commands[1].update(level=0), r"level must be from 1 to 255 for PRUNE, not 0 \(BAD_FIELD\)"),
    (lambda p: p.commands[1].update(seed=0), "seed must be from 1 to .* for PRUNE, not 0"),
    (lambda p: p.commands[1].update(slot=4), "slot must be below mask_slots = 4, not 4"),
    (lambda p: p.commands[1].update(kind=4, store=1), "store must be 0 without a kind that makes masks, not 1"),
    (lambda p: p.commands[1].update(kind=5, values=0), "values must be 1 for NORMS, not 0"),
    (lambda p: p.commands[1].update(tag=1 << 8), "tag must be from 0 to 255"),
    (lambda p: p.commands[1].update(kind=3, values=0), "data must be left out"),
    (lambda p: p.commands[1].pop("data"), "data must name an operand with its rows and columns"),
    (lambda p: p.commands[1]["data"].update(operand="b"), "data.operand must name an operand of role 'a', not 'b'"),
    (lambda p: p.commands[1]["data"].update(rows=[[0, 2, 1]]), "data.rows must be 3 rows of operand 'a', which has 3"),
    (lambda p: p.commands[1]["data"].update(columns=[[1, 2, 1]]), "data.columns must be 2 columns of operand 'a'"),
])  # fmt: skip
def test_errors_of_programs(change, message):
    program = lower_mask(TRAIN, "prune", 3, 2, level=5)
    check_program(program)
    change(program)
    with pytest.raises(ProgramError, match=message):
        check_program(program)


def test_stored_masks_are_followed():
    """What a stream stores is known within it; what came before it is not."""
    make = Machine(TRAIN)
    store, wrong = (make.mask(G.GREATER, np.ones(shape, int), store=1) for shape in ((3, 4), (65, 1)))
    replay, other = (make.mask(G.REPLAY, rows=rows, length=4) for rows in (3, 2))
    for packets, message in (
        ([replay, store, replay, make.begin_packet(), replay], None),
        ([store, other], r"packet 2 \(MASK\): no mask of 2 rows of 4 is in slot 0 \(MASK_EMPTY\)"),
        ([make.command(Op.ABORT), make.begin_packet(), replay], "MASK_EMPTY"),
        ([wrong], r"a mask takes at most mask_depth = 64 words, not 65 \(BUFFER_FULL\)"),
    ):
        packets = [make.begin_packet(), *packets]
        words = np.array([word for packet in packets for word in packet], np.uint32)
        last = np.zeros(len(words), bool)
        last[np.cumsum([len(packet) for packet in packets]) - 1] = True
        if message:
            with pytest.raises(ProgramError, match=message):
                check_bound(TRAIN, words, last)
        else:
            check_bound(TRAIN, words, last)


def test_errors_of_replies():
    program = lower_mask(TRAIN, "greater", 7, 2)
    bound = bind(program, {"a": np.ones((7, 2), int)})
    words, last = GoldenDevice(TRAIN).execute(bound.words, bound.last)
    for other, message in (
        (lower_mask(TRAIN, "greater", 8, 2), "does not belong to the program: tag 0 with 7 rows of 2 instead of tag 0"),
        (lower_matmul(TRAIN, 1, 1, 1), "there are more MASK replies than the program's 0"),
    ):
        with pytest.raises(DeviceError, match=message):
            ResultAssembler(other).feed(words, last)
    cut = np.delete(words, 4), np.delete(last, 4)
    with pytest.raises(DeviceError, match=r"a MASK reply with 7 rows of 2 must have 11 words, not 10 \(its command"):
        ResultAssembler(program).feed(*cut)
    assembler = ResultAssembler(program)
    assert not assembler.complete
    with pytest.raises(DeviceError, match="1 of 1 MASK replies are missing"):
        assembler.outputs()


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda d: generators.threshold(d, [[1.5]], 0), MaskworkTypeError, "x must be an array of integers, not float64"),
    (lambda d: generators.threshold(d, [[256]], 0), MaskworkValueError, r"x must lie in -256..255 \(9 bits, signed\)"),
    (lambda d: generators.threshold(d, [], 0), MaskworkValueError, r"x must have one axis or more, and elements, not"),
    (lambda d: generators.threshold(d, [1], 0, magnitude=True), MaskworkValueError, "level must be from 1 to 255"),
    (lambda d: generators.threshold(d, [1], 0, slot=4), MaskworkValueError, "slot must be from 0 to 3"),
    (lambda d: generators.threshold(d, np.ones((65, 1), int), 0, slot=0), MaskworkValueError, "has mask_depth = 64"),
    (lambda d: generators.prune(d, [1], 0, 1), MaskworkValueError, "level must be from 1 to 255 for PRUNE, not 0"),
    (lambda d: generators.prune(d, [1], 1, 1 << 32), MaskworkValueError, "seed must be from 1"),
    (lambda d: generators.prune_level(1, 0, 0.5), MaskworkValueError, "count 1 or more, not 1 and 0"),
    (lambda d: generators.prune_level(1, 1, 1), MaskworkValueError, "sparsity must be above 0 and below 1, not 1"),
    (lambda d: generators.prune_level(1.5, 1, 0.5), MaskworkTypeError, "magnitudes must be an integer, not 1.5"),
    (lambda d: generators.dropout_mask(d, (0, 3), 0.5, 1), MaskworkValueError, "shape must be a sequence of one size"),
    (lambda d: generators.dropout_mask(d, 5, 0.5, 1), MaskworkValueError, "shape must be a sequence"),
    (lambda d: generators.dropout_mask(d, ("a",), 0.5, 1), MaskworkTypeError, "axis of shape must be an integer"),
    (lambda d: generators.dropout_mask(d, (3,), 1.0, 1), MaskworkValueError, "keep must be above 0 and below 1, not 1"),
    (lambda d: generators.dropout_mask(d, (3,), "x", 1), MaskworkTypeError, "keep must be a number, not 'x'"),
    (lambda d: generators.dropout(d, [1], 1e-9, 1), MaskworkValueError, "keep must be from 1/65536 to 65535/65536"),
    (lambda d: generators.dropout(d, [1], 0.5, 0), MaskworkValueError, "seed must be from 1"),
    (lambda d: generators.replay(d, 0), MaskworkValueError, "either x or shape must be given"),
    (lambda d: generators.replay(d, 4, [1]), MaskworkValueError, "slot must be from 0 to 3 for REPLAY, not 4"),
    (lambda d: generators.channel_norms(d, np.ones((1, 257), int)), MaskworkValueError, "length must be from 1 to 256"),
    (lambda d: generators.project(d, [1], 0), MaskworkValueError, "seed must be from 1"),
    (lambda d: generators.project(d, np.ones(16385, int), 1), MaskworkValueError, "length must be from 1 to 16384"),
])  # fmt: skip
def test_bad_input_of_generators(call, error, message):
    class Never:
        config = TRAIN

        def execute(self, *_):
            raise AssertionError("nothing may be sent")

    with pytest.raises(error, match=message) as caught:
        call(Never())
    assert isinstance(caught.value, MaskworkError) and "\n" not in str(caught.value)
