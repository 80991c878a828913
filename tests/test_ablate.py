"""Benchmarks that leave out what the compiler does to keep the PEs busy: programs change in that, results do not."""

import json

import maskwork as mw
import numpy as np
import pytest
from maskwork.gen import cli_common, tune
from maskwork.gen.ablate import ABLATIONS, ablated, parse_without
from maskwork.gen.bench_masks import LayerMasks
from maskwork.gen.cli import cli
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.gen.execute import execute_bound
from maskwork.gen.passes import works
from maskwork.gen.program import bind
from maskwork.gen.workload import COLUMNS, PASSES, Layer
from maskwork.gen.works import operands

TWO_CLUSTERS = mw.preset("small").replace(name="two", lanes=8, weight_lanes=2)
LAYER = Layer(network="n", layer="l", batch=2, in_channels=24, out_channels=40, in_height=9, in_width=7,
              kernel_height=3, kernel_width=3, padding=1)  # fmt: skip


@pytest.fixture(scope="module")
def masks():
    """Masks whose channels differ in density; the output gradient is much sparser than the input."""
    rng = np.random.default_rng(5)

    def drawn(shape, density):
        return rng.random(shape) < np.minimum(1, density * rng.gamma(2, 0.5, shape[-1]))

    return LayerMasks(input=drawn(LAYER.input_shape, 0.7), weight=drawn(LAYER.weight_shape, 0.6),
                      output_mask=drawn(LAYER.output_shape, 0.5), output_grad=drawn(LAYER.output_shape, 0.1),
                      input_mask=drawn(LAYER.input_shape, 0.5))  # fmt: skip


def loads(program, op="LOAD_"):
    return [c for c in program.commands if c["op"].startswith(op)]


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("name", ABLATIONS)
def test_programs_without_something(masks, name, which):
    """The same number of products and clusters; only what is left out is gone."""
    (plain,) = works(TWO_CLUSTERS, LAYER, which, masks)
    (other,) = ablated([plain], [name])
    assert other.key != plain.key and other.macs() == plain.macs()
    program = other.lower(TWO_CLUSTERS)
    bound = bind(program, operands(other, program), check_sums=False)
    with mw.open("golden", TWO_CLUSTERS) as device:
        found = execute_bound(device, program, bound).outputs["c"]
    assert found.sum() == plain.macs()[1]
    full = {int(c["clusters"]) for c in loads(program)}
    natural = all(np.all(np.diff(np.concatenate([np.arange(*_range(r)) for r in c["data"]["columns"]])) > 0)
                  for c in loads(program, "LOAD_B"))  # fmt: skip
    assert natural == (name == "dealing")
    assert full == {1, 2} if name == "multicast" else 3 in full
    if which == "weight_grad":
        ways = other.ways(TWO_CLUSTERS)
        exchanged = {way.work.exchanged for way in ways}
        assert exchanged == {False} if name == "operand" else True in exchanged


def _range(compact):
    first, count, step = compact
    return first, first + count * step, step


def test_without_trials(masks, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("a trial")

    for which in PASSES:
        monkeypatch.undo()
        (plain,) = works(TWO_CLUSTERS, LAYER, which, masks)
        (other,) = ablated([plain], ["trials"])
        assert other.lower(TWO_CLUSTERS, tune=True).commands == plain.lower(TWO_CLUSTERS, tune=False).commands
        monkeypatch.setattr(tune, "trial", never)
        other.lower(TWO_CLUSTERS, tune=True)
        with pytest.raises(AssertionError, match="a trial"):
            plain.lower(TWO_CLUSTERS, tune=True)


def test_names():
    assert parse_without([]) == frozenset() and parse_without(ABLATIONS) == set(ABLATIONS)
    with pytest.raises(MaskworkTypeError, match="without must be a list of names, not one string 'trials'"):
        parse_without("trials")
    with pytest.raises(MaskworkValueError, match="without must be of dealing, multicast, operand, trials, not 'deal'"):
        parse_without(["operand", "deal"])


def test_nothing_left_out(masks):
    plain = works(TWO_CLUSTERS, LAYER, "forward", masks)
    assert ablated(plain, []) == plain


def test_parts_and_ways_stay_without(masks):
    few_sums = TWO_CLUSTERS.replace(psum_rows=2)  # so that parts may be small
    for which in PASSES:
        (plain,) = works(few_sums, LAYER, which, masks)
        (other,) = ablated([plain], ABLATIONS)
        parts = other.cut(few_sums, 4)
        assert sum(part.macs()[1] for part in parts) == plain.macs()[1] and len(parts) > 1
        assert all(part.without == set(ABLATIONS) and not part.work.dealt for part in parts)


@pytest.mark.slow
def test_benchmark(tmp_path, monkeypatch, capsys):
    """On the cycle model, whose multiplies are checked against the masks' products."""
    monkeypatch.chdir(tmp_path)
    row = "n,l,2,24,40,9,7,3,3,1,1,1,1,0.7,0.6,1,1,1,none,forward+input_grad+weight_grad".split(",")
    (tmp_path / "w.csv").write_text(f"{','.join(COLUMNS)}\n{','.join(row)}\n")
    command = ("bench", "w.csv", "--preset", "sim-64", "--masks", "correlated")

    def cycles(*options):
        assert cli_common.run_command(cli, [*command, *options, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        return report["without"], report["cycles"], report["words_in"], report["macs_effectual"]

    plain = cycles()
    assert plain[0] == []
    alone = cycles("--without", "multicast")
    assert alone[0] == ["multicast"] and alone[3] == plain[3] and alone[2] > 1.2 * plain[2] and alone[1] > plain[1]
    assert set(cycles("--without", ",".join(ABLATIONS), "--set", "dispatch=turns")[0]) == set(ABLATIONS)
    assert cli_common.run_command(cli, [*command, "--without", "operand,trials"]) == 0
    assert "seed 1, without operand, trials" in capsys.readouterr().out
