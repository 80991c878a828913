"""The user's own masks and layers of the benchmark: which are read, and which files and values are refused."""

import os
import struct
import zipfile

import maskwork as mw
import numpy as np
import pytest
from maskwork.gen import cli_common
from maskwork.gen.bench import Bench
from maskwork.gen.bench_masks import load_masks
from maskwork.gen.cli import cli
from maskwork.gen.cli_network import load_tensors
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.gen.workload import COLUMNS, Layer, parse_workload

GOOD = dict(network="n", layer="l", batch=1, in_channels=4, out_channels=4, in_height=5, in_width=5, kernel_height=3,
            kernel_width=3)  # fmt: skip
ROWS = ("n,l,1,4,4,4,4,1,1,1,0,1,1,0.5,1,1,1,1,none,forward", "m,l,1,8,4,4,4,1,1,1,0,1,1,0.5,1,1,1,1,none,forward")


@pytest.fixture
def workload(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.csv").write_text("\n".join([",".join(COLUMNS), *ROWS]))
    return tmp_path / "w.csv"


def test_the_longer_name_wins_whatever_the_shapes(workload):
    layers = parse_workload(workload.read_text())
    four, eight = np.ones((1, 4, 4, 4)), np.zeros((1, 4, 4, 8))
    np.savez("both.npz", **{"l.input": four, "m/l.input": eight})
    own = load_masks(["both.npz"], layers)
    assert own["n/l"]["input"].all() and not own["m/l"]["input"].any()
    # a layer that does not run needs no mask of its shape
    np.savez("one.npz", **{"l.input": four})
    assert Bench("w.csv", mw.preset("tiny"), layers=["n/l"], masks_from=["one.npz"]).source.own.keys() == {"n/l"}
    with pytest.raises(MaskworkValueError, match=r"must have shape \(1, 4, 4, 8\), not .*, for layer m/l$"):
        load_masks(["one.npz"], layers)


def test_masks_that_nothing_reads_are_told(workload, capsys):
    np.savez("m.npz", **{"n/l.input": np.ones((1, 4, 4, 4)), "n/l.output_grad": np.ones((1, 4, 4, 4))})
    assert cli_common.run_command(cli, ["bench", "w.csv", "--preset", "tiny", "--masks-from", "m.npz", "--json"]) == 0
    assert capsys.readouterr().err == "maskwork: warning: --masks-from: no pass that runs reads n/l.output_grad\n"
    np.savez("none.npz")
    assert cli_common.run_command(cli, ["bench", "w.csv", "--masks-from", "none.npz"]) == 2
    assert "none.npz: has no arrays; one or more, with keys LAYER.TENSOR, are expected" in capsys.readouterr().err


def flags(path, bits, compression=None):
    """Changes the general flags (and the way of compression) of a zip file's members, in both places that have them."""
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.find(mark)
        while start >= 0:
            struct.pack_into("<H", data, start + at, bits)
            if compression is not None:
                struct.pack_into("<H", data, start + at + 2, compression)
            start = data.find(mark, start + 4)
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["header", "encrypted", "compression"])
def test_broken_archives(tmp_path, kind):
    path = tmp_path / "b.npz"
    np.savez(path, **{"l.input": np.ones((1, 4, 4, 4))})
    if kind == "header":
        array = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1,6,6,4 ".ljust(118)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("l.input.npy", array)
    else:
        flags(path, *((1,) if kind == "encrypted" else (0, 97)))
    with pytest.raises(MaskworkValueError, match=r"b.npz, key 'l.input': cannot be read; a whole array"):
        load_masks([str(path)], [Layer(**GOOD)])
    with pytest.raises(MaskworkValueError, match=r"b.npz: a truncated or broken .npz file"):
        load_tensors(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 0}, "groups: must be an integer from 1 to 65536, not 0"),
        ({"stride": 1.5}, "stride: must be an integer from 1 to 65536, not 1.5"),
        ({"batch": True}, "batch: must be an integer from 1 to 65536, not True"),
        ({"density_input": float("nan")}, "density_input: must be a density from 0 to 1, not nan"),
        ({"density_weight": "0.5"}, "density_weight: must be a density from 0 to 1, not '0.5'"),
        ({"layer": "a\nb"}, "layer: must be a name of printable characters without '/', not 'a\\nb'"),
        ({"output_mask": "rows"}, "output_mask: must be one of element, position, none, not 'rows'"),
        ({"passes": ()}, "passes: must be a tuple of some of forward, input_grad, weight_grad, not ()"),
    ],
)
def test_values_of_a_layer(change, message):
    with pytest.raises(MaskworkValueError) as error:
        Layer(**{**GOOD, **change})
    assert str(error.value) == message
    Layer(**{**GOOD, "batch": np.int64(2), "density_input": np.float32(0.5)})


def test_one_text_is_no_list():
    for options in ({"layers": "l"}, {"skips": "abc"}, {"masks_from": "f.npz"}):
        (name,) = options
        with pytest.raises(MaskworkTypeError, match=f"^{name} must be a list of texts, not one string"):
            mw.bench([Layer(**GOOD)], "tiny", **options)
    with pytest.raises(MaskworkTypeError, match="workload must be a CSV file's name, or layers of"):
        mw.bench(None)


def test_inputs_are_not_overwritten(workload, capsys):
    before = workload.read_bytes()
    os.symlink("w.csv", "link.csv")
    for option in ("--report", "--html"):
        assert cli_common.run_command(cli, ["bench", "w.csv", option, "link.csv"]) == 2
        assert f"{option} link.csv: it is an input; another file is expected" in capsys.readouterr().err
    assert workload.read_bytes() == before


def test_names_are_shown_as_they_are(workload, capsys):
    workload.write_text(workload.read_text().replace("n,l,", "n,c[bold]x:smile:,"))
    assert cli_common.run_command(cli, ["bench", "w.csv", "--preset", "tiny"]) == 0
    assert "n/c[bold]x:smile:" in capsys.readouterr().out
