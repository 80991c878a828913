"""Workload files: what they mean, and one line for every fault."""

import dataclasses

import numpy as np
import pytest
from maskwork.gen.bench_masks import (
    BLUR,
    CONCENTRATION,
    KINDS,
    TENSORS,
    MaskSource,
    channel_densities,
    correlated,
    load_masks,
    tensor_shape,
)
from maskwork.gen.errors import MaskworkValueError
from maskwork.gen.workload import COLUMNS, PASSES, Layer, choose_layers, parse_workload, read_workload

ROW = {
    "network": "net", "layer": "conv1", "batch": "2", "in_channels": "8", "out_channels": "12", "in_height": "16",
    "in_width": "10", "kernel_height": "3", "kernel_width": "3", "stride": "1", "padding": "1", "dilation": "1",
    "groups": "1", "density_input": "0.5", "density_weight": "0.25", "density_output": "0.75",
    "density_output_grad": "0.2", "density_input_mask": "0.4", "output_mask": "element",
    "passes": "forward+input_grad+weight_grad",
}  # fmt: skip


def text(*rows, columns=COLUMNS):
    lines = [",".join(columns)]
    lines += [",".join({**ROW, **row}.get(name, "") for name in columns) for row in rows]
    return "\n".join(lines) + "\n"


def test_a_row():
    (layer,) = parse_workload(text({}))
    assert layer.name == "net/conv1" and layer.passes == PASSES and layer.density_weight == 0.25
    assert layer.input_shape == (2, 16, 10, 8) and layer.weight_shape == (3, 3, 8, 12)
    assert layer.output_shape == (2, 16, 10, 12)
    with pytest.raises(dataclasses.FrozenInstanceError):
        layer.batch = 1
    (layer,) = parse_workload(text({"stride": "3", "dilation": "2", "padding": "0", "groups": "4"}))
    assert layer.output_shape == (2, 4, 2, 12) and layer.weight_shape == (3, 3, 2, 12)
    assert layer.with_batch(5).input_shape[0] == 5


def test_columns_in_any_order_notes_and_empty_rows_are_fine(tmp_path):
    columns = [*reversed(COLUMNS), "notes"]
    lines = text({}, {"layer": "conv2"}, columns=columns).splitlines()
    path = tmp_path / "w.csv"
    path.write_text("\r\n".join([lines[0], "", lines[1], ",,,", lines[2]]), encoding="utf-8-sig", newline="")
    layers = read_workload(path)
    assert [layer.layer for layer in layers] == ["conv1", "conv2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": "0"}, "column batch: must be an integer from 1 to 65536, not '0'"),
        ({"in_height": "two"}, "column in_height: must be an integer from 1 to 65536, not 'two'"),
        ({"stride": ""}, "column stride: must be an integer from 1"),
        ({"padding": "--1"}, "column padding: must be an integer from 0 to 65536, not '--1'"),
        ({"layer": "a\x1bb"}, "column layer: must be a name of printable characters"),
        ({"padding": "-1"}, "column padding: must be an integer from 0"),
        ({"in_width": "9" * 30}, "column in_width: must be an integer"),
        ({"kernel_width": "1.5"}, "column kernel_width: must be an integer"),
        ({"density_input": "1.01"}, "column density_input: must be a density from 0 to 1, not '1.01'"),
        ({"density_weight": "-0.1"}, "column density_weight: must be a density"),
        ({"density_output_grad": "nan"}, "column density_output_grad: must be a density"),
        ({"density_output": "half"}, "column density_output: must be a density"),
        ({"output_mask": "rows"}, "column output_mask: must be one of element, position, none, not 'rows'"),
        ({"output_mask": "none"}, "column density_output: must be 1 where output_mask is none, not 0.75"),
        ({"passes": "forward+sideways"}, "column passes: must be some of forward, input_grad, weight_grad"),
        ({"passes": ""}, "column passes: must be some of"),
        ({"layer": ""}, "column layer: must be a name"),
        ({"network": "a/b"}, "column network: must be a name of printable characters without '/'"),
        (
            {"kernel_height": "19"},
            r"column kernel_height: must fit the padded input's 18 \(with dilation 1\), not reach",
        ),
        ({"dilation": "6"}, r"column kernel_width: must fit the padded input's 12 \(with dilation 6\), not reach 13"),
        ({"groups": "3"}, r"column groups: must divide in_channels \(8\), which 3 does not"),
        ({"groups": "8"}, r"column groups: must divide out_channels \(12\), which 8 does not"),
        ({"batch": "60000", "in_height": "60000"}, "column batch: the input tensor .* must have at most"),
    ],
)
def test_bad_cells(change, message):
    with pytest.raises(MaskworkValueError, match=f"^w.csv, row 3, {message}") as error:
        parse_workload(text({"layer": "first"}, change), "w.csv")
    assert "\n" not in str(error.value)


def test_bad_files(tmp_path):
    path = tmp_path / "w.csv"

    def message(content):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(MaskworkValueError) as error:
            read_workload(path)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
        return str(error.value)[len(str(path)) :]

    assert message("").startswith(": empty; a row of column names is expected: network, layer")
    assert message("\n\n").startswith(": empty")
    assert message(text()).startswith(": has no layers")
    assert message(b"\xff\xfe\x00").startswith(": not a CSV file: byte 0 is no UTF-8 text")
    assert message(b"network,layer\x00\n\x00").startswith(", row 1: ")
    assert message('network,"lay').startswith(", row 1: not CSV")
    missing = [name for name in COLUMNS if name != "stride"]
    assert message(text({}, columns=missing)).startswith(", row 1: column stride missing; columns: network")
    assert message("a,b\n1,2\n").startswith(", row 1: columns network, layer")
    assert message(text({}, columns=[*COLUMNS, "stride"])).startswith(", row 1: column stride must be there once")
    assert message(text({}) + "net,conv2,1\n").startswith(", row 3: must have 20 cells, as many as row 1, not 3")
    assert message(text({}, {})).startswith(", row 3, column layer: must differ from row 2's in network 'net'")
    with pytest.raises(MaskworkValueError, match=r"none.csv: cannot be read \(.*\); a CSV file is expected"):
        read_workload(tmp_path / "none.csv")
    with pytest.raises(MaskworkValueError, match="cannot be read"):
        read_workload(tmp_path)


def test_choice_of_layers():
    layers = parse_workload(text({}, {"layer": "fc"}, {"network": "other"}))
    assert [x.name for x in choose_layers(layers, ["conv*"])] == ["net/conv1", "other/conv1"]
    assert [x.name for x in choose_layers(layers, ["other/*", "fc"])] == ["net/fc", "other/conv1"]
    with pytest.raises(MaskworkValueError, match="'conv9' matches none; layers: net/conv1, net/fc, other/conv1"):
        choose_layers(layers, ["conv9"])


# ---------------------------------------------------------------------- masks


def layers(**changes):
    row = {k: str(v) for k, v in changes.items()}
    return parse_workload(text(row, {**row, "layer": "conv2", "in_height": "8", "in_width": "5"}))


@pytest.mark.parametrize("kind", KINDS)
def test_densities_and_seeds(kind):
    own = layers(in_channels=64, out_channels=48, batch=1)
    source = MaskSource(own, kind, 3)
    for layer in own:
        masks = source.of(layer)
        for tensor in TENSORS:
            mask, shape = getattr(masks, tensor), tensor_shape(layer, tensor)
            density = getattr(layer, "density_output" if tensor == "output_mask" else f"density_{tensor}")
            assert mask.shape == shape and mask.dtype == np.bool_
            assert abs(mask.mean() - density) < 0.03, tensor
    alone = MaskSource(own[1:], kind, 3)
    assert np.array_equal(alone.mask(own[1], "weight"), source.mask(own[1], "weight"))
    assert not np.array_equal(source.mask(own[1], "input"), MaskSource(own, kind, 4).mask(own[1], "input"))
    assert not np.array_equal(source.mask(own[0], "input"), source.mask(own[0], "input_mask"))
    assert source.of(own[0], ["weight"]).input is None


def test_dense_tensors_have_no_mask():
    (layer, _) = layers(density_input="1", density_weight="1.0", density_output="1")
    masks = MaskSource([layer]).of(layer)
    assert masks.input is masks.weight is masks.output_mask is None
    empty = dataclasses.replace(layer, density_input=0.0)
    for kind in KINDS:
        assert not MaskSource([empty], kind).mask(empty, "input").any()


def test_correlated_masks():
    rng = np.random.default_rng(1)
    densities = channel_densities(rng, 0.3, 4000)
    assert abs(densities.mean() - 0.3) < 1e-6 and densities.max() <= 1
    assert abs(densities.std() - (0.3 * 0.7 / (CONCENTRATION + 1)) ** 0.5) < 0.01
    mask = correlated(rng, (2, 32, 32, 64), 0.3)
    assert mask.mean(axis=(0, 1, 2)).std() > 0.1 and BLUR > 0
    both = (mask[:, 1:] & mask[:, :-1]).mean() / mask.mean()
    assert both > 0.5  # a neighbour of a kept position is more often kept than not
    assert correlated(rng, (50, 1, 1, 40), 0.3).mean() == pytest.approx(0.3, abs=0.05)


def test_one_gradient_a_pooling_window():
    own = layers(in_channels=16, out_channels=64, density_output_grad="0.1")
    source = MaskSource(own, "correlated")
    assert source.pooled(own[0]) and not source.pooled(own[1])
    grad = source.mask(own[0], "output_grad")
    windows = grad.reshape(2, 8, 2, 5, 2, 64).sum(axis=(2, 4))
    assert windows.max() == 1 and abs(grad.mean() - 0.1) < 0.01


def test_position_masks():
    own = layers(output_mask="position", density_output="0.9")
    source = MaskSource(own)
    for layer in own:
        mask = source.mask(layer, "output_mask")
        positions = mask[0, :, :, 0]
        assert (mask == positions[None, :, :, None]).all()
        assert positions.sum() == int(0.9 * positions.size + 0.5)  # as many as the density says, to the nearest


def test_masks_of_the_users(tmp_path):
    own = [*layers(), *parse_workload(text({"network": "other"}))]
    rng = np.random.default_rng(5)
    x = rng.integers(-1, 2, (2, 16, 10, 8)).astype(np.float32)
    mine, theirs = rng.random((3, 3, 8, 12)) < 0.5, np.ones((3, 3, 8, 12), np.int8)
    path = str(tmp_path / "m.npz")
    np.savez(path, **{"conv1.input": x, "other/conv1.weight": theirs, "conv1.weight": mine})
    source = MaskSource(own, own=load_masks([path], own))
    assert np.array_equal(source.mask(own[0], "input"), x != 0)
    assert np.array_equal(source.mask(own[2], "input"), x != 0)
    assert np.array_equal(source.mask(own[0], "weight"), mine)
    assert source.mask(own[2], "weight") is None  # everything is present
    assert source.mask(own[1], "input").shape == own[1].input_shape  # drawn


def test_flat_masks_of_fully_connected_layers(tmp_path):
    (layer,) = parse_workload(text({"in_height": "1", "in_width": "1", "kernel_height": "1", "kernel_width": "1",
                                    "padding": "0"}))  # fmt: skip
    path = str(tmp_path / "m.npz")
    np.savez(path, **{"conv1.input": np.eye(2, 8), "conv1.weight": np.eye(8, 12)})
    own = load_masks([path], [layer])["net/conv1"]
    assert own["input"].shape == (2, 1, 1, 8) and own["weight"].shape == (1, 1, 8, 12)


def test_bad_mask_files(tmp_path):
    own = layers()

    def message(**arrays):
        path = tmp_path / "m.npz"
        np.savez(path, **arrays)
        with pytest.raises(MaskworkValueError) as error:
            load_masks([str(path)], own)
        assert str(error.value).startswith(f"{path}, key ") and "\n" not in str(error.value)
        return str(error.value)[len(f"{path}, key ") :]

    good = np.ones((2, 16, 10, 8), bool)
    expected = "'conv1.input': must have shape (2, 16, 10, 8), not (1, 16, 10, 8), for layer net/conv1"
    assert message(**{"conv1.input": good[:1]}) == expected
    for key in ("conv9.input", "conv1.bias", "conv1", "weight"):
        line = message(**{key: good})
        assert line.startswith(f"'{key}': must be LAYER.TENSOR") and "output_grad" in line and "conv2" in line
    assert "must be an array of bool or numbers, not <U1" in message(**{"conv1.input": np.array(["a"])})
    objects = np.array([{}], dtype=object)
    assert "cannot be read" in message(**{"conv1.input": objects})
    first, second = str(tmp_path / "1.npz"), str(tmp_path / "2.npz")
    for path in (first, second):
        np.savez(path, **{"conv1.input": good})
    with pytest.raises(MaskworkValueError, match=r"2.npz, key 'conv1.input': already in .*1.npz"):
        load_masks([first, second], own)
    broken = tmp_path / "broken.npz"
    broken.write_bytes((tmp_path / "1.npz").read_bytes()[:200])
    with pytest.raises(MaskworkValueError, match=r"broken.npz: not a NumPy archive \(.npz\), which is expected"):
        load_masks([str(broken)], own)
    damaged = bytearray((tmp_path / "1.npz").read_bytes())
    damaged[120:140] = b"\xff" * 20
    broken.write_bytes(damaged)
    with pytest.raises(MaskworkValueError, match=r"broken.npz"):
        load_masks([str(broken)], own)
    with pytest.raises(MaskworkValueError, match=r"none.npz: cannot be read \(.*\); a .npz file is expected"):
        load_masks([str(tmp_path / "none.npz")], own)
    with pytest.raises(MaskworkValueError, match="masks: must be one of bernoulli, correlated, not 'uniform'"):
        MaskSource(own, "uniform")


def test_a_layer_checks_itself():
    with pytest.raises(MaskworkValueError, match=r"^groups: must divide"):
        Layer(network="n", layer="l", batch=1, in_channels=4, out_channels=6, in_height=4, in_width=4,
              kernel_height=1, kernel_width=1, groups=4)  # fmt: skip
