"""Masks of a workload's layers: drawn from its densities, or the user's own.

Every tensor has a seed of its own (of seed, network, layer and tensor), so a layer gets the same masks whichever
other layers run.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from maskwork.gen.errors import UNREADABLE, MaskworkError, MaskworkValueError
from maskwork.gen.mask import BoolArray
from maskwork.gen.workload import Layer
from numpy.typing import NDArray

KINDS = ("bernoulli", "correlated")
"""How random masks are drawn: every element on its own, or as described at :func:`correlated`."""

TENSORS = ("input", "weight", "output_mask", "output_grad", "input_mask")
"""The masks of a layer; also the keys of mask files."""

CONCENTRATION = 8.0
"""Of the Beta distribution of channel densities: mean m spreads with a deviation of sqrt(m (1 - m) / 9), .15 at .3."""

BLUR = 1.0
"""Standard deviation, in pixels, of the blur that makes neighbouring activations alike."""


@dataclass(frozen=True)
class LayerMasks:
    """Masks of one layer; None where everything is present.

    Members:
        input: activations, (N, H, W, Cin).
        weight: (kh, kw, Cin / groups, Cout).
        output_mask: results wanted in the forward pass, (N, OH, OW, Cout).
        output_grad: gradient of the output, (N, OH, OW, Cout).
        input_mask: results wanted in the input gradient, (N, H, W, Cin).
    """

    input: BoolArray | None = None
    weight: BoolArray | None = None
    output_mask: BoolArray | None = None
    output_grad: BoolArray | None = None
    input_mask: BoolArray | None = None


def tensor_shape(layer: Layer, tensor: str) -> tuple[int, int, int, int]:
    """Shape of a mask of :data:`TENSORS`."""
    if tensor == "weight":
        return layer.weight_shape
    return layer.output_shape if tensor.startswith("output") else layer.input_shape


@dataclass
class MaskSource:
    """Where the masks of a workload's layers come from.

    Members:
        layers: the whole workload, which says what is pooled and how large the images are.
        kind: one of :data:`KINDS`.
        seed: of everything that is drawn.
        own: the user's masks: ``network/layer`` -> tensor -> mask.
    """

    layers: Sequence[Layer]
    kind: str = "bernoulli"
    seed: int = 1
    own: Mapping[str, Mapping[str, BoolArray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise MaskworkValueError(f"masks: must be one of {', '.join(KINDS)}, not {self.kind!r}")

    def of(self, layer: Layer, tensors: Iterable[str] = TENSORS) -> LayerMasks:
        """The masks of a layer's tensors; those not asked for are left out."""
        return LayerMasks(**{tensor: self.mask(layer, tensor) for tensor in set(tensors)})

    def mask(self, layer: Layer, tensor: str) -> BoolArray | None:
        """One mask of a layer: the user's, or drawn. None where everything is present."""
        given = self.own.get(layer.name, {}).get(tensor)
        if given is not None:
            return None if given.all() else given
        density = getattr(layer, "density_output" if tensor == "output_mask" else f"density_{tensor}")
        if density >= 1:
            return None
        shape = tensor_shape(layer, tensor)
        rng = self._rng(layer.network, layer.layer, tensor)
        if tensor == "output_mask" and layer.output_mask == "position":
            return self._positions(layer, density)
        if self.kind == "bernoulli":
            return rng.random(shape, dtype=np.float32) < density
        if tensor == "weight":
            return rng.random(shape, dtype=np.float32) < channel_densities(rng, density, shape[3])
        if tensor == "output_grad" and self.pooled(layer) and 4 * density <= 1:
            return _one_a_window(rng, shape, density)
        return correlated(rng, shape, density)

    def pooled(self, layer: Layer) -> bool:
        """Whether a 2x2 pooling follows: the next layer of the network sees half the rows and columns."""
        network = [x for x in self.layers if x.network == layer.network]
        place = [x.layer for x in network].index(layer.layer) + 1
        if place >= len(network):
            return False
        following = network[place].in_height, network[place].in_width
        return following == (layer.out_height // 2, layer.out_width // 2) and layer.out_height > 1

    def _rng(self, *names: str) -> np.random.Generator:
        keys = [zlib.crc32(name.encode()) for name in names]
        return np.random.default_rng(np.random.SeedSequence([self.seed, *keys]))

    def _positions(self, layer: Layer, density: float) -> BoolArray:
        """Semi-structured masks (Grimaldi et al., 2023): one score of the network's image size, averaged to the
        output's size; the lowest positions go, in all channels and images.

        As many are kept as the density says, to the nearest. The paper drops floor(s * OH * OW), which leaves .918 of
        7 x 7 positions where s is .1; a workload's density of .9 is meant as it stands.
        """
        first = next(x for x in self.layers if x.network == layer.network)
        score = self._rng(layer.network, "positions").random((first.in_height, first.in_width))
        n, height, width, channels = layer.output_shape
        pooled = _averages(_averages(score, height).T, width).T
        dropped = height * width - math.floor(density * height * width + 0.5)
        keep = np.ones(height * width, dtype=np.bool_)
        keep[np.argsort(pooled.reshape(-1), kind="stable")[:dropped]] = False
        return np.ascontiguousarray(np.broadcast_to(keep.reshape(1, height, width, 1), (n, height, width, channels)))


def _averages(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Rows averaged (or repeated) to ``size`` rows."""
    edges = [(i * len(values) // size, -(-(i + 1) * len(values) // size)) for i in range(size)]
    return np.stack([values[a:b].mean(axis=0) for a, b in edges])


def channel_densities(rng: np.random.Generator, mean: float, channels: int) -> NDArray[np.float64]:
    """Densities of channels, Beta-distributed around ``mean`` with :data:`CONCENTRATION`, scaled so that their mean
    is ``mean`` and none exceeds 1.
    """
    if not 0 < mean < 1:
        return np.full(channels, mean)
    values = np.maximum(rng.beta(mean * CONCENTRATION, (1 - mean) * CONCENTRATION, channels), 1e-9)
    for _ in range(20):
        values = np.minimum(values * (mean / values.mean()), 1.0)
    return values


def correlated(rng: np.random.Generator, shape: Sequence[int], density: float) -> BoolArray:
    """A mask (N, H, W, C) like that of a ReLU: channels differ in density, neighbours are alike.

    Channel densities are those of :func:`channel_densities`. In each image a channel keeps the positions where a
    Gaussian field, blurred by :data:`BLUR` pixels, is highest: as many as its density says, rounded at random.
    """
    n, height, width, channels = shape
    densities = channel_densities(rng, density, channels)
    mask = np.zeros((n, height, width, channels), dtype=np.bool_)
    across = np.exp(-2 * (np.pi * BLUR * np.fft.rfftfreq(width)) ** 2)
    down = np.exp(-2 * (np.pi * BLUR * np.fft.fftfreq(height)) ** 2)
    for image in range(n):
        noise = rng.standard_normal((channels, height, width), dtype=np.float32)
        if height * width > 1:
            noise = np.fft.irfft2(np.fft.rfft2(noise) * np.outer(down, across), s=(height, width))
        flat = noise.reshape(channels, height * width)
        kept = np.floor(densities * flat.shape[1] + rng.random(channels)).astype(np.int64)
        order = np.sort(flat, axis=1)
        threshold = np.take_along_axis(
            order, np.maximum(flat.shape[1] - kept, 0).clip(max=flat.shape[1] - 1)[:, None], 1
        )
        chosen = (flat >= threshold) & (kept > 0)[:, None]
        mask[image] = chosen.reshape(channels, height, width).transpose(1, 2, 0)
    return mask


def _one_a_window(rng: np.random.Generator, shape: Sequence[int], density: float) -> BoolArray:
    """Gradients behind a 2x2 max pool: at most one in each window, by channel density, at a random place of it.

    Rows and columns that no whole window covers get none, so a window is hit a little more often there.
    """
    n, height, width, channels = shape
    rows, columns = height // 2, width // 2
    scale = height * width / (4 * rows * columns) if rows and columns else 1.0
    windows = correlated(rng, (n, rows, columns, channels), min(1.0, 4 * density * scale))
    place = rng.integers(0, 4, windows.shape, dtype=np.uint8)
    mask = np.zeros((n, height, width, channels), dtype=np.bool_)
    for y in (0, 1):
        for x in (0, 1):
            mask[:, y : 2 * rows : 2, x : 2 * columns : 2] = windows & (place == 2 * y + x)
    return mask


# ---------------------------------------------------------------------- the user's own


def load_masks(
    paths: Iterable[str], layers: Sequence[Layer], running: Sequence[Layer] | None = None, names: set[str] | None = None
) -> dict[str, dict[str, BoolArray]]:
    """Masks from ``.npz`` files, for :class:`MaskSource`.

    Keys are ``LAYER.tensor`` (every network's layer of that name) or ``NETWORK/LAYER.tensor``, with the tensors of
    :data:`TENSORS`; arrays are masks (bool) or the tensors themselves (numbers; nonzero is present), in the shapes of
    :class:`LayerMasks`. A 1x1 image may leave out its rows and columns.

    Args:
        paths: the files.
        layers: that keys may name.
        running: those whose masks are wanted, of the shapes that they have; None for all.
        names: gets ``network/layer.tensor`` of every mask that the files have.

    Raises:
        MaskworkValueError: one line naming file, key, and the shape or keys expected.
    """
    given: dict[tuple[str, str], tuple[str, str, BoolArray]] = {}
    for path in paths:
        arrays = _read_npz(path)
        # names with a network last: they win over those without
        for key in sorted(arrays, key=lambda key: "/" in key):
            name, _, tensor = key.rpartition(".")
            found = [x for x in layers if name in (x.layer, x.name)]
            if tensor not in TENSORS or not found:
                theirs = list(dict.fromkeys(x.layer for x in layers))
                known = ", ".join(theirs[:20]) + (", ..." if len(theirs) > 20 else "")
                raise MaskworkValueError(
                    f"{path}, key {key!r}: must be LAYER.TENSOR or NETWORK/LAYER.TENSOR, with a tensor of "
                    f"{', '.join(TENSORS)} and a layer of {known}"
                )
            for layer in found:
                before = given.get((layer.name, tensor))
                if before is not None and before[0] != path:
                    raise MaskworkValueError(f"{path}, key {key!r}: already in {before[0]}; one mask is expected")
                given[layer.name, tensor] = path, key, arrays[key]
    if names is not None:
        names.update(f"{layer}.{tensor}" for layer, tensor in given)
    own: dict[str, dict[str, BoolArray]] = {}
    for layer in layers if running is None else running:
        for tensor in TENSORS:
            if (layer.name, tensor) in given:
                path, key, array = given[layer.name, tensor]
                own.setdefault(layer.name, {})[tensor] = _fit(array, layer, tensor, f"{path}, key {key!r}")
    return own


def _fit(array: BoolArray, layer: Layer, tensor: str, where: str) -> BoolArray:
    shape = tensor_shape(layer, tensor)
    flat = (shape[0], shape[3]) if shape[1:3] == (1, 1) else shape[2:] if shape[:2] == (1, 1) else shape
    if array.shape not in (shape, flat):
        raise MaskworkValueError(f"{where}: must have shape {shape}, not {array.shape}, for layer {layer.name}")
    return array.reshape(shape)


def _read_npz(path: str) -> dict[str, BoolArray]:
    import zipfile

    try:
        if not zipfile.is_zipfile(path):
            with open(path, "rb"):
                raise MaskworkValueError(f"{path}: not a NumPy archive (.npz), which is expected")
        result: dict[str, BoolArray] = {}
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                try:
                    array = archive[key]
                except UNREADABLE:
                    raise MaskworkValueError(
                        f"{path}, key {key!r}: cannot be read; a whole array of bool or numbers is expected"
                    ) from None
                if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
                    kind = getattr(array, "dtype", type(array).__name__)
                    raise MaskworkValueError(f"{path}, key {key!r}: must be an array of bool or numbers, not {kind}")
                result[key] = array != 0
        if not result:
            raise MaskworkValueError(f"{path}: has no arrays; one or more, with keys LAYER.TENSOR, are expected")
        return result
    except MaskworkError:
        raise
    except OSError as error:
        raise MaskworkValueError(
            f"{path}: cannot be read ({error.strerror or error}); a .npz file is expected"
        ) from None
    except UNREADABLE:
        raise MaskworkValueError(f"{path}: a broken .npz file; a whole one is expected") from None
