"""Simulator tests of the command check: every field of every command, against the configuration."""

import pytest
from maskwork.gen.check_masks import mask_fields
from maskwork.gen.config import GENERATORS, Config
from maskwork.gen.isa import COMMANDS, MaskKind, Op
from maskwork.rtl.command_check import CommandCheck
from maskwork.rtl.load_common import Load

from .contract import plain, simulate, ticks

CHECKED = Config(lanes=6, lanes_per_cluster=2, k_depth=64, psum_rows=4)
"""3 clusters, 2 lanes each, 64 columns, 512 segments, 128 C rows."""

GOOD = {
    Op.LOAD_A: {"dense": 1, "clusters": 1, "segments": 1, "length": 1},
    Op.LOAD_B: {"dense": 1, "clusters": 5, "rows": 1, "k": 0, "lanes": 1, "columns": 1},
    Op.LOAD_C: {"clusters": 7, "rows": 1, "columns": 1},
    Op.LOAD_P: {"clusters": 4, "lanes": 2, "columns": 1, "low": -128, "high": 127},
    Op.RUN: {"clusters": 1, "first": 1, "final": 1, "rows": 1},
}

FIELDS = [
    *((op, {"clusters": 0}, True) for op in GOOD),
    *((op, {"clusters": 8}, True) for op in GOOD),
    *((op, {"clusters": 1 << 31 | 1}, True) for op in GOOD),
    *((op, {"clusters": 7}, False) for op in GOOD),
    (Op.LOAD_A, {"segments": 0}, True),
    (Op.LOAD_A, {"segments": 512}, False),
    (Op.LOAD_A, {"segments": 513}, True),
    (Op.LOAD_A, {"segments": 65535}, True),
    (Op.LOAD_A, {"length": 0}, True),
    (Op.LOAD_A, {"length": 64, "dense": 0, "append": 1, "bank": 1}, False),
    (Op.LOAD_A, {"length": 65}, True),
    (Op.LOAD_B, {"rows": 0}, True),
    (Op.LOAD_B, {"rows": 64, "dense": 0, "append": 1, "bank": 1}, False),
    (Op.LOAD_B, {"rows": 65}, True),
    (Op.LOAD_B, {"rows": 1, "k": 63}, False),
    (Op.LOAD_B, {"rows": 1, "k": 64}, True),
    (Op.LOAD_B, {"rows": 2, "k": 65535}, True),
    (Op.LOAD_B, {"rows": 33, "k": 32}, True),
    (Op.LOAD_B, {"columns": 0}, True),
    (Op.LOAD_B, {"columns": 64}, False),
    (Op.LOAD_B, {"columns": 65}, True),
    (Op.LOAD_B, {"lanes": 0}, True),
    (Op.LOAD_B, {"lanes": 3}, False),
    (Op.LOAD_B, {"lanes": 4}, True),
    (Op.LOAD_C, {"rows": 0}, True),
    (Op.LOAD_C, {"rows": 128, "append": 1, "bank": 1}, False),
    (Op.LOAD_C, {"rows": 129}, True),
    (Op.LOAD_C, {"columns": 0}, True),
    (Op.LOAD_C, {"columns": 64}, False),
    (Op.LOAD_C, {"columns": 65}, True),
    (Op.LOAD_P, {"lanes": 0}, True),
    (Op.LOAD_P, {"lanes": 3, "bank": 1}, False),
    (Op.LOAD_P, {"lanes": 5}, True),
    (Op.LOAD_P, {"columns": 0}, True),
    (Op.LOAD_P, {"columns": 64}, False),
    (Op.LOAD_P, {"columns": 65}, True),
    (Op.RUN, {"rows": 0}, True),
    (Op.RUN, {"rows": 65535, "a_bank": 1, "b_bank": 1, "post": 1}, False),
    (Op.RUN, {"columns": 63, "use_c": 1, "c_bank": 1}, False),
    (Op.RUN, {"columns": 64}, True),
    (Op.RUN, {"rows": 8, "final": 0}, False),
    (Op.RUN, {"rows": 9, "final": 0}, True),
    (Op.RUN, {"rows": 9, "first": 0}, True),
    (Op.RUN, {"rows": 4, "first": 0, "share": 1}, False),
    (Op.RUN, {"rows": 5, "first": 0, "share": 1}, True),
    (Op.RUN, {"rows": 5, "share": 1}, False),
]

PAIRS = Config(lanes=8, k_depth=64, weight_lanes=2)
"""2 clusters of 4 lanes, which share weights in pairs: 32 rows for a single one."""

PAIR_FIELDS = [
    *(({"lanes": lanes, "rows": 64}, False) for lanes in (3, 12, 15)),
    *(({"lanes": lanes, "rows": 16, "k": 16}, False) for lanes in (1, 2, 4, 5, 6, 8, 9, 10)),
    *(({"lanes": lanes, "rows": 17, "k": 16}, True) for lanes in (1, 2, 4, 5, 6, 8, 9, 10)),
    *(({"lanes": lanes}, True) for lanes in (7, 11, 13, 14)),
]


def checked(config, cases):
    """Outputs of the check for (op, fields) in turn, each 2 cycles after its header."""
    dut = CommandCheck(config)
    results = []

    async def bench(ctx):
        for op, fields in cases:
            for n, word in enumerate(COMMANDS[op].encode(fields)[: len(dut.header)]):
                ctx.set(dut.header[n], word)
            await ticks(ctx, 2)
            outputs = [name for name in dut.signature.members if name != "header"]
            results.append({name: plain(ctx.get(getattr(dut, name))) for name in outputs})

    simulate(dut, bench)
    return results


def test_command_check():
    cases = [(op, GOOD[op] | change) for op, change, _ in FIELDS]
    for (op, fields), (_, _, bad), got in zip(cases, FIELDS, checked(CHECKED, cases), strict=True):
        where = f"{op.name} {fields}"
        assert got["bad"] == bad, where
        bank = fields.get("bank", 0)
        if op == Op.RUN:
            needed = {"a": 1 << fields.get("a_bank", 0), "b": 1 << fields.get("b_bank", 0)}
            needed["c"] = fields.get("use_c", 0) << fields.get("c_bank", 0)
            needed["p"] = fields.get("post", 0) << fields.get("b_bank", 0)
            assert (got["is_run"], got["is_load"], got["needed"]) == (1, 0, needed), where
            assert got["bank"] == dict.fromkeys("abcp", 0)
            continue
        name = op.name[-1].lower()
        assert (got["is_run"], got["is_load"]) == (0, 1), where
        assert got["bank"] == dict.fromkeys("abcp", 0) | {name: 1 << bank}, where
        assert got["has_fresh"] == (op != Op.LOAD_P) and got["append"] == fields.get("append", 0), where
        if bad:
            continue
        load = got["load"]
        count, length = {"a": ("segments", "length"), "p": ("", "columns")}.get(name, ("rows", "columns"))
        assert load["kind"] == Load[name.upper()] and load["bank"] == bank, where
        assert (load["count"], load["length"]) == (fields.get(count, 1), fields[length]), where
        assert got["clusters"] == fields["clusters"], where
        for extra in {"a": ("dense",), "b": ("dense", "k", "lanes"), "c": (), "p": ("lanes", "low", "high")}[name]:
            assert load[extra] == fields[extra], where


@pytest.mark.parametrize(("fields", "op", "change", "bad"), [
    ({"skip": "bc"}, Op.LOAD_A, {"dense": 0}, True),
    ({"skip": "bc"}, Op.LOAD_A, {}, False),
    ({"skip": "ac"}, Op.LOAD_B, {"dense": 0}, True),
    ({"skip": "ac"}, Op.LOAD_B, {}, False),
    ({"post": False}, Op.LOAD_P, {}, True),
    ({}, Op.LOAD_P, {"stochastic": 1, "seed": 1}, True),
    ({}, Op.LOAD_P, {"seed": 1}, False),
    ({"stochastic": True}, Op.LOAD_P, {"stochastic": 1, "seed": 1 << 31}, False),
    ({"stochastic": True}, Op.LOAD_P, {"stochastic": 1}, True),
    ({"stochastic": True}, Op.LOAD_P, {}, False),
    ({"stochastic": True}, Op.LOAD_P, {"seed": 5}, False),
    ({"post": False}, Op.RUN, {"post": 1}, True),
    ({"post": False}, Op.RUN, {}, False),
    ({"lanes": 64, "lanes_per_cluster": 2}, Op.RUN, {"clusters": 0xFFFFFFFF}, False),
    ({"pes_per_lane": 16, "slots": 16}, Op.RUN, {"columns": 255}, False),
])  # fmt: skip
def test_command_check_of_other_configurations(fields, op, change, bad):
    defaults = {"lanes": 6, "lanes_per_cluster": 2}
    (got,) = checked(Config(**(defaults | fields)), [(op, GOOD[op] | change)])
    assert got["bad"] == bad
    if not bad and "stochastic" in fields:
        assert got["load"]["seed"] == (change["seed"] if change.get("stochastic") else 0)


def test_command_check_of_the_other_commands():
    cases = [(op, {}) for op in Op if op not in GOOD]
    for got in checked(CHECKED, cases):
        assert not got["bad"] and not got["is_load"] and not got["is_run"]


@pytest.mark.parametrize("config", [
    Config(generators=",".join(GENERATORS)),
    Config(generators="prune,norms,store", a_width=18, mask_slots=16, norm_channels=16),
    Config(generators="threshold,dropout,project", a_width=4, mask_slots=1, vector=True),
], ids=["all", "18 bits", "4 bits"])  # fmt: skip
def test_command_check_of_masks(config):
    """Every kind at the limits of its fields, against the rules that programs are checked by."""
    largest = (1 << (config.a_width - 1)) - 1
    levels = {0, 1, -1, largest, largest + 1, -largest - 1, -largest - 2, 65535, 65536, (1 << 17) - 1, -(1 << 17)}
    limits = COMMANDS[Op.MASK].field("level").limits
    changes = [
        *({"level": level} for level in levels if limits[0] <= level <= limits[1]),
        *({"length": length} for length in (0, 2, 16, 17, 256, 257, 1 << 14, (1 << 14) + 1, 65535)),
        *({"slot": slot} for slot in (1, 3, 4, 15)),
        {"rows": 0}, {"rows": 65535}, {"seed": 0}, {"seed": 1 << 31}, {"values": 0}, {"store": 1}, {"tag": 255},
    ]  # fmt: skip
    good = {"rows": 1, "length": 1, "level": 1, "seed": 1, "values": 1}
    cases = [(Op.MASK, good | change | {"kind": kind}) for kind in range(8) for change in changes]
    wrong = set()
    for (op, fields), got in zip(cases, checked(config, cases), strict=True):
        message = mask_fields(config, {f.name: fields.get(f.name, 0) for f in COMMANDS[op].fields})
        assert got["bad"] == (message is not None), (fields, message)
        assert (got["is_stream"], got["is_load"], got["is_run"]) == (1, 0, 0)
        assert got["is_replay"] == (fields["kind"] == MaskKind.REPLAY)
        wrong.add(got["bad"])
    assert wrong == {0, 1}


def test_lanes_that_share_weights():
    cases = [(Op.LOAD_B, GOOD[Op.LOAD_B] | {"clusters": 3} | change) for change, _ in PAIR_FIELDS]
    for (_, fields), (_, bad), got in zip(cases, PAIR_FIELDS, checked(PAIRS, cases), strict=True):
        assert got["bad"] == bad, fields
