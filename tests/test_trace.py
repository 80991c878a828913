"""Waveforms of one tile: from the RUN's first word to its last result, on both simulators."""

import re

import maskwork as mw
import numpy as np
import pytest
from maskwork.gen.errors import MaskworkValueError
from maskwork.gen.isa import Op, Reply
from maskwork.gen.matmul import Product
from maskwork.gen.program import bind
from maskwork.gen.tile import check_tile, run_commands, tile_window
from maskwork.sim_tb import tools
from maskwork.sim_tb.device import open_device
from maskwork.sim_tb.run import RunLimits, TraceWindow

needs_icarus = pytest.mark.skipif(not tools.have_icarus(), reason="Icarus Verilog is not on PATH")
icarus = pytest.param("icarus", marks=[pytest.mark.icarus, needs_icarus])
both = pytest.mark.parametrize("simulator", [pytest.param("verilator", marks=pytest.mark.slow), icarus])
QUICK = RunLimits(idle_limit=500)
PORTS = ("clk", "i__payload", "i__valid", "i__ready", "o__payload", "o__valid", "o__ready")


def cycles(path):
    """Values of the outermost ports before each rising edge of the clock, up to the first unknown."""
    codes, values, changes, found = {}, {}, {}, []
    with open(path, encoding="ascii") as file:
        for line in file:
            if match := re.match(r"\s*\$var \w+ +\d+ (\S+) (\w+)", line):
                if match[2] in PORTS and match[2] not in codes.values():
                    codes[match[1]] = match[2]
            elif line.startswith("#"):
                values |= changes
                changes = {}
            elif line[0] in "01xb":
                bits, code = line[1:].split() if line[0] == "b" else (line[0], line[1:].strip())
                if code in codes and "x" in bits:
                    break
                if code in codes:
                    changes[codes[code]] = int(bits, 2)
                if codes.get(code) == "clk" and bits == "1" and values["clk"] == 0:
                    found.append(dict(values))
    return found


def product(config, seed, k, n):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(-8, 8, (6, k)) * (rng.random((6, k)) < 0.5), rng.integers(-8, 8, (k, n))
    return Product.of(config, a, b, {})


@both
@pytest.mark.parametrize(
    ("k", "n", "tile", "finishing"),
    [(10, 60, 0, 0), (10, 60, 3, 3), (40, 14, 0, 1), (40, 14, 3, 3)],
)
def test_one_tile(simulator, tmp_path, k, n, tile, finishing):
    """The RUN's first word is taken in the first cycle shown; its results, and all that came between, are shown."""
    config = mw.preset("tiny")
    whole = product(config, 1, k, n)
    program, path = whole.program, tmp_path / "w.vcd"
    runs = run_commands(program)
    result = whole.run("rtl", simulator=simulator, trace=path, trace_tile=tile, limits=QUICK)
    assert np.array_equal(result.c, whole.operands["a"] @ whole.operands["b"])

    shown = cycles(path)
    bound = bind(program, whole.operands)
    start = int(bound.starts[runs[tile]])
    taken = [cycle["i__payload"] & 0xFFFFFFFF for cycle in shown if cycle["i__valid"] and cycle["i__ready"]]
    assert shown[0]["i__valid"] and shown[0]["i__ready"] and taken[0] & 0xFF == Op.RUN
    assert taken[: len(bound.words) - start] == bound.words[start : start + len(taken)].tolist()
    assert taken[len(bound.words) - start :] in ([], [Op.READ_COUNTERS])  # it may follow within the cycles after

    after = TraceWindow(0, 0).after
    sent = [c["o__payload"] if c["o__valid"] and c["o__ready"] else None for c in shown]
    end = len(shown) - after - 1
    assert sent[end] is not None and sent[end] >> 32
    with open_device("rtl", config, simulator=simulator) as device:
        words, last = device.execute(bound.words, bound.last)
    ends = np.flatnonzero(last)
    heads = words[np.concatenate([[0], ends[:-1] + 1])]
    finals = [index for index in runs if program.commands[index].get("final")]
    number = finals.index(runs[finishing])
    tag = program.results[number]["tag"]
    ours = [(head & 0xFF == Reply.RESULT) and (head >> 8 & 0xFF == tag) for head in heads]
    first, final = np.flatnonzero(ours)[[0, -1]]
    parts = program.results[number]["parts"]
    assert sum(ours) == sum(count for part in parts for _, count, _ in part["rows"])
    beats = [beat & 0xFFFFFFFF for beat in sent[: end + 1] if beat is not None]
    assert beats == words[ends[final] + 1 - len(beats) : ends[final] + 1].tolist()
    assert len(beats) >= ends[final] - (ends[first - 1] if first else -1)  # all of them


@both
def test_less_than_the_whole(simulator, tmp_path):
    """A tile's waveforms are those of the whole product, cut out."""
    config = mw.preset("tiny")
    some = product(config, 2, 8, 30)
    for name, options in (("whole", {}), ("tile", {"trace_tile": 1})):
        some.run("rtl", simulator=simulator, trace=tmp_path / name, limits=QUICK, **options)
    whole, tile = cycles(tmp_path / "whole"), cycles(tmp_path / "tile")
    assert len(tile) < len(whole) / 2
    assert any(whole[at : at + len(tile)] == tile for at in range(len(whole)) if whole[at] == tile[0])


def test_tiles_that_are_not_there():
    some = product(mw.preset("tiny"), 3, 10, 40)
    count = len(run_commands(some.program))
    assert count > 1
    for tile in (-1, count):
        expected = f"tile must be from 0 to {count - 1}, not {tile}: the program has {count} RUNs"
        with pytest.raises(MaskworkValueError, match=expected):
            check_tile(some.program, tile, "tile")
    with pytest.raises(MaskworkValueError, match=f"from 0 to {count - 1}, not {count + 1}"):
        tile_window(some.program, bind(some.program, some.operands), count + 1)
    with pytest.raises(MaskworkValueError, match="trace_tile needs trace"):
        mw.matmul(some.operands["a"], some.operands["b"], config="tiny", trace_tile=0)
