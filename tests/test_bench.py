"""The benchmark: what it runs, what it counts, what it reports. Cycles come from a stand-in of the cycle model."""

import itertools
import json
import re
import xml.etree.ElementTree as ElementTree

import maskwork as mw
import numpy as np
import pytest
from maskwork.gen import bench_curves, bench_sample, cli_common, pack
from maskwork.gen.bench import Bench
from maskwork.gen.bench_html import page
from maskwork.gen.bench_masks import TENSORS, LayerMasks, tensor_shape
from maskwork.gen.cli import cli
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.gen.execute import execute_bound
from maskwork.gen.isa import COUNTERS
from maskwork.gen.passes import OPERANDS, merged_groups, works
from maskwork.gen.program import bind
from maskwork.gen.report import REASONS
from maskwork.gen.workload import COLUMNS, PASSES, Layer
from maskwork.gen.works import operands
from maskwork.sim_tb.golden import conv2d_macs

HEAD = ",".join(COLUMNS)
ROWS = (
    "net,conv1,1,3,8,12,12,3,3,1,1,1,1,1,1,1,0.4,1,element,forward+weight_grad",
    "net,conv2,1,8,16,6,6,3,3,2,1,1,2,0.5,0.6,0.7,0.3,0.5,element,forward+input_grad+weight_grad",
    "other,fc,2,40,24,1,1,1,1,1,0,1,1,0.5,0.3,1,1,1,none,forward",
)

KEYS = {"target", "config", "pes", "macs_dense", "macs_effectual", "cycles", "compute_cycles", "utilization",
        "speedup_vs_dense", "bound", "bound_fraction", "pe_cycles", "words_in", "words_out", "seconds", "layers",
        "networks", "passes", "workload", "masks", "masks_from", "seed", "sample_limit", "requantise",
        "without"}  # fmt: skip
LAYOUT = {"layout_words", "speedup_with_layout"}


@pytest.fixture
def model(monkeypatch):
    """A stand-in of the cycle model: 100 cycles a program, and utilisation .8. Gives the programs that ran."""
    ran = []

    def run(program, values):
        bind(program, values, check_sums=False)
        dense, effectual = ran[-1].macs()
        multiplies = effectual if program.config.skip == "abc" else dense
        cycles = int(multiplies / program.config.pes / 0.8) + 100
        counters = dict.fromkeys(COUNTERS, 0) | {"multiply": multiplies, "cycles": cycles, "compute_cycles": cycles - 9}
        rest = cycles * program.config.pes - multiplies
        counters |= {"load": rest // 3, "drain": rest - rest // 3, "words_in": 10, "words_out": 5, "total_cycles": 0}
        return counters

    def operands(work, program):
        ran.append(work)
        return original(work, program)

    original = bench_sample.operands
    monkeypatch.setattr(bench_curves, "DENSITIES", (0.2, 1.0))
    monkeypatch.setattr(bench_sample, "TUNED", float("inf"))  # trials would run it too
    monkeypatch.setattr("maskwork.gen.bench.processors", lambda: 1)  # other processes would run the real one
    monkeypatch.setattr(bench_sample, "operands", operands)
    monkeypatch.setattr(bench_sample, "run_program", run)
    return ran


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "w.csv").write_text("\n".join([HEAD, *ROWS]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args):
    return cli_common.run_command(cli, [str(arg) for arg in args])


def random_layers(number):
    """Layers of every kind, with masks on every tensor."""
    rng = np.random.default_rng(11)
    while number:
        groups = int(rng.choice([1, 1, 2, 4]))
        sizes = [int(v) for v in rng.integers(1, 12, 2)]
        try:
            layer = Layer(
                network="n", layer="l", batch=int(rng.integers(1, 4)), in_channels=groups * int(rng.integers(1, 6)),
                out_channels=groups * int(rng.integers(1, 6)), in_height=sizes[0], in_width=sizes[1],
                kernel_height=int(rng.integers(1, 6)), kernel_width=int(rng.integers(1, 6)),
                stride=int(rng.integers(1, 5)), padding=int(rng.integers(0, 7)), dilation=int(rng.integers(1, 4)),
                groups=groups,
            )  # fmt: skip
        except MaskworkValueError:
            continue
        number -= 1
        yield layer, LayerMasks(**{tensor: rng.random(tensor_shape(layer, tensor)) < 0.5 for tensor in TENSORS})


# ---------------------------------------------------------------------- passes


def by_group(layer, masks):
    inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    for g in range(layer.groups):
        i, o = slice(g * inputs, (g + 1) * inputs), slice(g * outputs, (g + 1) * outputs)
        yield masks.input[..., i], masks.weight[..., o], masks.output_mask[..., o], masks.output_grad[..., o], i, o


def test_products_of_all_passes():
    """The same triples of pixel, weight and output position in all three passes, by the golden model's count."""
    config = mw.preset("small")
    fine = Config(lanes=1, lanes_per_cluster=1, pes_per_lane=1, slots=4, psum_rows=2)  # cuts even these layers
    for layer, masks in random_layers(60):
        parameters = layer.stride, layer.padding, layer.dilation
        expected = dict.fromkeys(PASSES, (0, 0))
        for x, w, wanted, grad, i, _ in by_group(layer, masks):
            of = {"forward": (x, wanted), "weight_grad": (x, grad), "input_grad": (masks.input_mask[..., i], grad)}
            for which, (pixels, outputs) in of.items():
                macs = conv2d_macs(pixels.astype(int), w.astype(int), *parameters, c_mask=outputs)
                before = expected[which]
                expected[which] = before[0] + macs["macs_dense"], before[1] + macs["macs_effectual"]
        for which in PASSES:
            own = works(config, layer, which, masks)
            parts = [own, *([part for work in own for part in work.cut(fine, n)] for n in (3, 50))]
            for some in parts:
                got = [work.macs() for work in some]
                assert tuple(map(sum, zip(*got, strict=True))) == expected[which] if got else expected[which] == (0, 0)


def test_products_with_some_masks():
    config = mw.preset("small")
    for (layer, masks), missing in zip(random_layers(16), itertools.cycle(TENSORS), strict=False):
        some = LayerMasks(**{t: None if t == missing else getattr(masks, t) for t in TENSORS})
        full = LayerMasks(**{t: np.ones(tensor_shape(layer, t), bool) if t == missing else getattr(masks, t)
                             for t in TENSORS})  # fmt: skip
        for which in PASSES:
            counts = [[work.macs() for work in works(config, layer, which, m)] for m in (some, full)]
            assert counts[0] == counts[1]


def lower_pass(config, layer, which, masks):
    """Programs of one pass of a layer, each with its operands made from the masks alone."""
    for work in works(config, layer, which, masks):
        program = work.lower(config)
        yield program, operands(work, program)


def test_programs_give_the_passes_numbers():
    config = mw.preset("small")
    for layer, masks in random_layers(25):
        s, p, d = layer.stride, layer.padding, layer.dilation
        grads = np.zeros(layer.input_shape, int)
        steps = [range(n) for n in (layer.out_height, layer.out_width, layer.kernel_height, layer.kernel_width)]
        for oy, ox, ky, kx in itertools.product(*steps):
            y, x = oy * s + ky * d - p, ox * s + kx * d - p
            if 0 <= y < layer.in_height and 0 <= x < layer.in_width:
                for _, w, _, grad, i, _ in by_group(layer, masks):
                    grads[:, y, x, i] += grad[:, oy, ox].astype(int) @ w[ky, kx].astype(int).T
        grads *= masks.input_mask
        with mw.open("golden", config) as device:
            outputs = [
                execute_bound(device, program, bind(program, operands, check_sums=False)).outputs["c"]
                for program, operands in lower_pass(config, layer, "input_grad", masks)
            ]
        got = np.concatenate([o.reshape(-1) for o in outputs]) if outputs else np.zeros(0, int)
        assert sorted(got[got > 0]) == sorted(grads[grads > 0])


def test_weight_gradient_program():
    pytest.importorskip("maskwork.gen.lower_wgrad")
    config = mw.preset("small")
    for layer, masks in random_layers(8):
        with mw.open("golden", config) as device:
            total = sum(
                int(execute_bound(device, program, bind(program, operands, check_sums=False)).outputs["c"].sum())
                for program, operands in lower_pass(config, layer, "weight_grad", masks)
            )
        assert total == sum(work.macs()[1] for work in works(config, layer, "weight_grad", masks))


def test_small_groups_are_merged():
    layer = Layer(network="n", layer="l", batch=1, in_channels=32, out_channels=32, in_height=5, in_width=5,
                  kernel_height=3, kernel_width=3, padding=1, groups=32)  # fmt: skip
    config = mw.preset("small")
    merged = merged_groups(config, layer, 1, 1)
    assert 1 < merged <= config.tile_columns and 9 * merged <= config.k_depth
    own = works(config, layer, "forward", LayerMasks())
    assert len(own) == -(-32 // merged)
    assert sum(work.macs()[0] for work in own) == sum(work.macs()[1] for work in own) == 32 * (5 * 5 * 9 - 4 * 15 + 4)
    assert len(works(config.replace(skip="ac"), layer, "forward", LayerMasks())) == 32


def test_unknown_pass():
    (layer, masks), = random_layers(1)  # fmt: skip
    with pytest.raises(MaskworkValueError, match="pass must be one of forward, input_grad, weight_grad, not 'back'"):
        works(mw.preset("small"), layer, "back", masks)


# ---------------------------------------------------------------------- reports


def test_price_of_the_layout():
    """The words of a weight gradient's streamed operand are those that its loads would take, were each loaded once."""
    rng = np.random.default_rng(3)
    config = mw.preset("small")
    layer = Layer(network="n", layer="l", batch=2, in_channels=5, out_channels=4, in_height=6, in_width=40,
                  kernel_height=3, kernel_width=3, padding=1)  # fmt: skip
    mask = rng.random(layer.input_shape) < 0.3
    (work,) = works(config, layer, "weight_grad", LayerMasks(input=mask, output_grad=np.ones(layer.output_shape, bool)))
    rows = np.moveaxis(mask, 3, 1).reshape(-1, 40)
    packed = pack.pack_rows(rows.astype(int), rows, config.a_width, config.stream_words)
    assert not work.exchanged and work.layout_words(config) == len(packed)
    report = Bench([layer], config, passes=["weight_grad"], masks="bernoulli").run()
    assert report["layout_words"] == report["layers"][0]["layout_words"] > 0
    waited = report["cycles"] + report["layout_words"]
    assert report["speedup_with_layout"] == pytest.approx(report["macs_dense"] / report["pes"] / waited, rel=1e-6)
    assert "layout_words" not in Bench([layer], config, passes=["forward"]).run()


def check_sums(entry, pes):
    assert list(entry["pe_cycles"]) == list(REASONS)
    assert sum(entry["pe_cycles"].values()) == entry["cycles"] * pes
    assert entry["pe_cycles"]["effectual"] == entry["macs_effectual"]
    assert 0 < entry["utilization"] <= 1 and entry["utilization"] == pytest.approx(entry["bound_fraction"])
    assert entry["speedup_vs_dense"] == entry["macs_dense"] / pes / entry["cycles"]


def test_report(folder, model, capsys):
    assert run("bench", "w.csv", "--report", "r.json", "--html", "r.html", "--json", "--skips", ",a,ab,abc,ac") == 0
    report = json.loads((folder / "r.json").read_text())
    assert report == json.loads(capsys.readouterr().out)
    assert set(report) == KEYS | LAYOUT | {"ablation", "curves"} and report["target"] == "cycle"
    names = [(e["network"], e["layer"], e["pass"]) for e in report["layers"]]
    assert names == [
        ("net", "conv1", "forward"),
        ("net", "conv1", "weight_grad"),
        ("net", "conv2", "forward"),
        ("net", "conv2", "input_grad"),
        ("net", "conv2", "weight_grad"),
        ("other", "fc", "forward"),
    ]
    nested = [report, *report["passes"], *report["networks"], *(p for n in report["networks"] for p in n["passes"])]
    for entry in [*report["layers"], *nested, *report["ablation"]]:
        check_sums(entry, report["pes"])
    assert [n["network"] for n in report["networks"]] == ["net", "other"]
    assert (
        report["cycles"] == sum(e["cycles"] for e in report["layers"]) == sum(n["cycles"] for n in report["networks"])
    )
    assert [row["skip"] for row in report["ablation"]] == ["", "a", "ab", "abc", "ac"]
    same = report["ablation"][3]
    assert same["cycles"] == report["cycles"] < report["ablation"][0]["cycles"]
    by_name = {name: e for name, e in zip(names, report["layers"], strict=True)}
    conv = by_name["net", "conv2", "input_grad"]
    assert conv["programs"] == 4 and abs(conv["density"]["a"] - 0.3) < 0.1
    assert conv["macs_dense"] == by_name["net", "conv2", "forward"]["macs_dense"]
    assert {point["masks"] for point in report["curves"]["points"]} == {"a", "ab", "ac", "abc"}


def test_page(folder, model):
    html = page(mw.bench("w.csv", "small", curves=True, skips=["", "abc"]))
    assert "http" not in html.replace("http-equiv", "") and "<script" not in html and "prefers-color-scheme" in html
    plots = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(plots) == 4 + 4 + 2
    identities = []
    for plot in plots:
        root = ElementTree.fromstring(plot)
        title, text = root[0], root[1]
        assert root.get("role") == "img" and title.tag == "title" and title.text and text.tag == "desc" and text.text
        assert root.get("aria-labelledby") == f"{title.get('id')} {text.get('id')}"
        identities.append(title.get("id"))
    assert len(set(identities)) == len(plots)
    for name in ("conv1", "conv2", "fc"):
        assert name in html
    used = set(re.findall(r"var\(--(\w+)\)", html))
    light, dark = (set(re.findall(r"--(\w+):", block)) for block in re.findall(r":root\{(.*?)\}", html))
    assert used <= light == dark


def test_table(folder, model, capsys):
    assert run("bench", "w.csv", "--preset", "tiny", "--layers", "net/conv2", "--passes", "forward") == 0
    out = capsys.readouterr().out
    assert re.search(r"conv2 +forward +[\d,]+ +0\.\d{3} +", out) and "tiny, 2 PEs, skip abc, bernoulli" in out
    assert "conv1" not in out and "fc" not in out
    assert run("bench", "w.csv", "--skips", "none,abc") == 0
    out = capsys.readouterr().out
    assert re.search(r"net/conv1 +forward", out) and re.search(r"total +all", out) and "skip none" in out


def test_options(folder, model):
    report = mw.bench("w.csv", batch=3, passes=["forward"], layers=["fc"], seed=4, masks="correlated")
    (entry,) = report["layers"]
    assert entry["macs_dense"] == 3 * 40 * 24 and report["masks"] == "correlated" and report["seed"] == 4
    again = mw.bench("w.csv", batch=3, passes=["forward"], seed=4, masks="correlated")
    assert again["layers"][-1]["macs_effectual"] == entry["macs_effectual"]
    np.savez("m.npz", **{"fc.input": np.eye(2, 40), "fc.weight": np.ones((40, 24))})
    report = mw.bench("w.csv", layers=["fc"], masks_from=["m.npz"])
    assert report["macs_effectual"] == 2 * 24 and report["masks_from"] == ["m.npz"]
    layer = Layer(network="n", layer="l", batch=1, in_channels=4, out_channels=4, in_height=4, in_width=4,
                  kernel_height=1, kernel_width=1, density_input=0.0)  # fmt: skip
    report = mw.bench([layer], passes=["forward"])
    assert report["utilization"] == 0 and "bound" not in report and report["workload"] is None


def test_requantised_results(folder, model):
    mw.bench("w.csv", requantise=["forward"], passes=["forward", "input_grad"])
    assert {work.post for work in model} == {True, False}
    with pytest.raises(MaskworkValueError, match="requantise needs a configuration with post = true"):
        mw.bench("w.csv", mw.preset("small").replace(post=False), requantise=["forward"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "small"])
def test_on_the_cycle_model(folder, name):
    """Its multiplies are the products counted here, or the report would not come about."""
    report = mw.bench("w.csv", name, skips=["", "abc"], requantise=["weight_grad"])
    for entry in [*report["layers"], *report["ablation"]]:
        check_sums(entry, report["pes"])
    assert all(entry["pe_cycles"]["ineffectual"] == 0 for entry in report["layers"])
    assert report["ablation"][0]["pe_cycles"]["ineffectual"] > 0
    assert report["cycles"] < report["ablation"][0]["cycles"]


# ---------------------------------------------------------------------- samples


def test_samples_are_stated(folder, model, capsys):
    whole = mw.bench("w.csv", "tiny")
    assert run("bench", "w.csv", "--preset", "tiny", "--sample", "1000", "--report", "s.json", "--html", "s.html") == 0
    out = capsys.readouterr().out
    report = json.loads((folder / "s.json").read_text())
    assert "Sampled, with 95 % confidence intervals" in out and re.search(r"\d -[\d,]+ \+[\d,]+ ", out)
    assert "Sampled" in (folder / "s.html").read_text()
    assert report["sampled"] and report["sample_limit"] == 1000
    low, high = report["cycles_95"]
    assert low <= report["cycles"] <= high
    for entry, exact in zip(report["layers"], whole["layers"], strict=True):
        check_sums(entry, report["pes"])
        for key in ("macs_dense", "macs_effectual", "bound"):
            assert entry[key] == exact[key]
        if "sample" in entry:
            sample = entry["sample"]
            assert bench_sample.LEAST_PARTS <= sample["simulated"] < sample["parts"] and 0 < sample["share"] < 1
            assert sample["cycles_95"][0] <= entry["cycles"] <= sample["cycles_95"][1]
            assert sample["cycles_95"][0] <= exact["cycles"] <= sample["cycles_95"][1]
        else:
            assert entry["cycles"] == exact["cycles"]
    assert "sampled" not in whole and "sampled" not in mw.bench("w.csv", "tiny", sample=0)
    assert mw.bench("w.csv", "tiny", sample=1000)["cycles"] == report["cycles"]
    assert mw.bench("w.csv", "tiny", sample=1000, seed=2)["cycles"] != report["cycles"]


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("none.csv",), "none.csv: cannot be read"),
        (("w.csv", "--passes", "forward,sideways"), "passes: unknown pass 'sideways'; passes: forward, input_grad"),
        (("w.csv", "--passes", "forward,"), "--passes forward,: names with commas"),
        (("w.csv", "--layers", "fc", "--passes", "input_grad"), "passes: no layer chosen has input_grad; theirs"),
        (("w.csv", "--layers", "conv7"), "layers: 'conv7' matches none; layers: net/conv1"),
        (("w.csv", "--masks", "uniform"), "masks: must be one of bernoulli, correlated, not 'uniform'"),
        (("w.csv", "--masks-from", "none.npz"), "none.npz: cannot be read"),
        (("w.csv", "--masks-from", "bad.npz"), "bad.npz, key 'fc.input': must have shape (2, 1, 1, 40), not (3, 40)"),
        (("w.csv", "--batch", "0"), "Invalid value for '--batch'"),
        (("w.csv", "--batch", "60000000"), "net/conv1: batch: must be an integer from 1 to 65536, not 60000000"),
        (("w.csv", "--skips", "abd"), 'skip must hold each of the letters "a", "b" and "c"'),
        (("w.csv", "--requantise", "forward", "--set", "post=false"), "requantise needs a configuration with post"),
        (("w.csv", "--without", "deal"), "without must be of dealing, multicast, operand, trials, not 'deal'"),
        (("w.csv", "--html", "no/r.html"), "--html no/r.html: cannot be written"),
        (("bad.csv",), "bad.csv, row 2, column density_input: must be a density from 0 to 1, not '2'"),
    ],
)
def test_bad_input(folder, model, capsys, options, message):
    np.savez("bad.npz", **{"fc.input": np.ones((3, 40))})
    (folder / "bad.csv").write_text(f"{HEAD}\n{ROWS[0].replace(',1,1,1,0.4', ',2,1,1,0.4')}\n")
    before = sorted(folder.iterdir())
    assert run("bench", *options, "--report", "r.json") == 2
    out, err = capsys.readouterr()
    assert err.startswith("maskwork: error: ") and message in err and err.count("\n") == 1 and not out
    assert sorted(folder.iterdir()) == before


def test_bad_arguments(folder):
    with pytest.raises(MaskworkTypeError, match="passes must be a list of passes, not one string 'forward'"):
        Bench("w.csv", mw.preset("small"), passes="forward")
    with pytest.raises(MaskworkTypeError, match="workload must be a CSV file's name, or layers"):
        mw.bench([1])
    for wrong in (-1, None, 1.0):
        with pytest.raises(MaskworkValueError, match=f"seed must be an integer of at least 0, not {wrong}"):
            mw.bench("w.csv", seed=wrong)
    for name, wrong in (("layers", 3), ("skips", 0)):
        with pytest.raises(MaskworkTypeError, match=f"{name} must be a list of texts, not .* in it"):
            mw.bench("w.csv", **{name: ["a", wrong]})


def test_every_operand_of_a_pass_is_a_tensor():
    assert set(OPERANDS) == set(PASSES) and {t for own in OPERANDS.values() for t in own} == set(TENSORS)
