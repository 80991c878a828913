"""Geometry of weight gradients: which pixels and positions a K tile joins, and where they lie in the banks.

A segment is some columns of one image row of one channel. A K tile is rows of output positions, ``width`` columns
each; in the weight bank, consecutive rows are ``pitch`` apart and what lies between them is empty rows. Kernel column
kx meets the same segment as its neighbour, with k lower by the distance of their pixels: elements that have no
position in the tile fall on empty rows (k counts modulo the bank). Kernel rows meet the same segments as well, one
or more image rows further down. Where the stride leaves pixels out, taps are sorted by the phase of the pixels they
meet: within a phase, position o meets pixel o + offset, whatever the stride.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

import numpy as np
from maskwork.gen import pack
from maskwork.gen.config import Config
from maskwork.gen.lower_schedule import Indices, KTile, Part, deltas, split, wrap16


@dataclass(frozen=True)
class Phase:
    """Some taps of one axis that meet pixels stride * j + start: output o meets j = o + first + step * i with the
    i-th of them.

    Members:
        taps: the kernel's taps.
        first, step: offsets.
        start, stride: where pixel j of the phase is in the image.
        pixels: pixels of the phase in the image; 0 if there is none.
        outputs: outputs that meet a pixel, or lie between such.
    """

    taps: range
    first: int
    step: int
    start: int
    stride: int
    pixels: int
    outputs: range

    @property
    def reach(self) -> int:
        """Distance of the pixels that one output meets."""
        return (len(self.taps) - 1) * self.step

    def part(self, begin: int, count: int) -> Phase:
        """Some of the taps."""
        return _phase(
            self.taps[begin : begin + count], self.first + begin * self.step, self.step, self.start, self.stride,
            self.pixels, self.outputs,
        )  # fmt: skip

    def window(self, outputs: range) -> tuple[int, int]:
        """First pixel and end of what these outputs meet with any tap: one pixel at least, in the image."""
        low = min(max(outputs.start + self.first, 0), self.pixels - 1)
        high = outputs.stop - 1 + self.first + self.reach + 1
        return low, min(max(high, low + 1), self.pixels)


def _phase(taps: range, first: int, step: int, start: int, stride: int, pixels: int, outputs: range) -> Phase:
    low = max(outputs.start, -(first + (len(taps) - 1) * step))
    high = min(outputs.stop, pixels - first)
    return Phase(taps, first, step, start, stride, pixels, range(low, max(low, high) if pixels else low))


def phases(size: int, taps: int, stride: int, pad: int, dilation: int, outputs: int) -> list[Phase]:
    """The phases of an axis of ``size`` pixels; every tap is in one of them."""
    groups: dict[int, list[int]] = {}
    for tap in range(taps):
        groups.setdefault((tap * dilation - pad) % stride, []).append(tap)
    result = []
    for start, own in groups.items():
        gap = own[1] - own[0] if len(own) > 1 else 1
        first = (own[0] * dilation - pad) // stride
        pixels = len(range(start, size, stride))
        result.append(_phase(range(own[0], own[-1] + 1, gap), first, gap * dilation // stride if len(own) > 1 else 0,
                             start, stride, pixels, range(outputs)))  # fmt: skip
    return result


@dataclass(frozen=True)
class Layer:
    """Sizes of a layer: images, input (channels, height, width) and output (rows, columns)."""

    images: int
    channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    outputs: tuple[int, int]


@dataclass(frozen=True)
class Columns:
    """Output columns of K tiles, with the input columns low..high-1 of a phase that a segment holds.

    Members:
        lead: empty rows that elements need before the tile's first row of positions.
        tail: empty rows that they need behind the last.
    """

    outputs: range
    low: int
    high: int
    lead: int
    tail: int

    @classmethod
    def of(cls, x: Phase, outputs: range) -> Columns:
        """For a phase that has pixels."""
        low, high = x.window(outputs)
        before = outputs.start + x.first + x.reach - low
        behind = high - x.first - outputs.stop
        return cls(outputs, low, high, max(0, before), max(0, behind))

    @property
    def length(self) -> int:
        """Elements of a segment."""
        return self.high - self.low

    @property
    def pitch(self) -> int:
        """Distance in k of rows of positions."""
        return len(self.outputs) + max(self.lead, self.tail)


@dataclass(frozen=True)
class Strip:
    """What one loading of A serves: images, output rows and output columns."""

    images: range
    rows: range
    columns: Columns


@dataclass(frozen=True)
class PositionTile(KTile):
    """Positions: the rows ``tile_rows`` of ``tile_images``, in columns of the strip.

    Member ``present`` is False for the tile of a product that has none: nothing is multiplied.
    """

    strip: Strip = field(default_factory=lambda: EMPTY)
    tile_images: range = range(1)
    tile_rows: range = range(1)
    present: bool = True

    @property
    def a_key(self) -> Hashable:
        """The strip."""
        return self.strip

    @property
    def tap_count(self) -> int:
        """Segments that a row of C reads."""
        return len(self.tile_images) * len(self.tile_rows)


EMPTY = Strip(range(1), range(1), Columns(range(1), 0, 1, 0, 0))


def empty_tile(layer: Layer) -> PositionTile:
    """A tile without positions."""
    nothing = np.array([layer.images * layer.outputs[0] * layer.outputs[1]], dtype=np.int64)
    return PositionTile(np.zeros(1, dtype=np.int64), nothing, present=False)


def position_tile(layer: Layer, x: Phase, strip: Strip, images: range, rows: range, k_depth: int) -> PositionTile:
    """The K tile of some rows of positions of a strip."""
    columns = strip.columns
    empty = layer.images * layer.outputs[0] * layer.outputs[1]
    image, row, column = np.ix_(np.array(images), np.array(rows), np.array(columns.outputs))
    positions = (image * layer.outputs[0] + row) * layer.outputs[1] + column
    table = np.full((len(images) * len(rows), columns.pitch), empty, dtype=np.int64)
    table[:, : len(columns.outputs)] = positions.reshape(len(table), -1)
    used = table.size - columns.pitch + len(columns.outputs)
    lead, tail = np.full(columns.lead, empty), np.full(columns.tail, empty)
    b_rows = np.concatenate([lead, table.reshape(-1)[:used], tail])[:k_depth]
    pixels = np.arange(columns.low, columns.high, dtype=np.int64) * x.stride + x.start
    return PositionTile(pixels, b_rows, strip=strip, tile_images=images, tile_rows=rows)


class TapsPart(Part):
    """Rows of C: the kernel columns of a phase inside some of its kernel rows inside some channels. So rows that follow
    each other, which lanes get in one round, have about equal work: they are mostly taps of one channel.
    """

    def __init__(self, layer: Layer, y: Phase, x: Phase, channels: Indices) -> None:
        self._layer, self._y, self._x, self._channels = layer, y, x, channels
        inputs, rows, columns = np.ix_(channels, np.array(y.taps), np.array(x.taps))
        self.rows = ((rows * layer.kernel[1] + columns) * layer.channels + inputs).reshape(-1)
        self._segments: dict[tuple[range, range], pack.Ranges] = {}

    def segments(self, tile: KTile) -> pack.Ranges:
        """Image rows to load: rows inside channels inside images."""
        assert isinstance(tile, PositionTile)
        if not tile.present:
            return [[0, 1, 1]]
        key = tile.strip.images, tile.strip.rows
        if key not in self._segments:
            low, high = self._y.window(tile.strip.rows)
            rows = np.arange(low, high) * self._y.stride + self._y.start
            image, channel, row = np.ix_(np.array(key[0]), self._channels, rows)
            index = (image * self._layer.channels + channel) * self._layer.height + row
            self._segments[key] = pack.to_ranges(index.reshape(-1))
        return self._segments[key]

    def run_fields(self, tile: KTile) -> dict[str, int]:
        """Rows as in :attr:`rows`. Taps: rows of positions inside images; y counts from the strip's first image row,
        so that it keeps taps on what is loaded.
        """
        assert isinstance(tile, PositionTile)
        channels, across, down = len(self._channels), len(self._x.taps), len(self._y.taps)
        counts = {"m0": across - 1, "m1": down - 1}
        if not tile.present:
            return counts
        x, y, columns = self._x, self._y, tile.strip.columns
        low, high = y.window(tile.strip.rows)
        height, rows = high - low, len(tile.tile_rows)
        row = tile.tile_rows.start + y.first - low
        image = tile.tile_images.start - tile.strip.images.start
        assert down * across * channels == len(self.rows)
        return {
            **counts,
            "t0": rows - 1,
            "t1": len(tile.tile_images) - 1,
            "x_limit": 1,
            "y_limit": height,
            "seg": wrap16(image * channels * height + row),
            "k": wrap16(columns.lead + columns.low - x.first - columns.outputs.start),
            "y": wrap16(row),
            **deltas(
                m2=(height - y.reach, x.reach, 0, -y.reach),
                m1=(y.step, x.reach, 0, y.step),
                m0=(0, -x.step, 0, 0),
                t1=(channels * height - (rows - 1), columns.pitch, 0, 1 - rows),
                t0=(1, columns.pitch, 0, 1),
            ),
        }


@dataclass(frozen=True)
class Cut:
    """How positions are cut: ``columns`` a tile, ``rows`` a tile (and ``images``, if they hold all rows), and the
    ``tiles`` of a strip.
    """

    columns: tuple[Columns, ...]
    rows: int
    images: int
    tiles: int


def ranges(total: range, size: int) -> list[range]:
    """``total`` in nearly equal pieces of at most ``size``."""
    pieces = split(np.arange(total.start, total.stop, dtype=np.int64), -(-len(total) // size))
    return [range(int(p[0]), int(p[-1]) + 1) for p in pieces]


def position_tiles(config: Config, layer: Layer, y: Phase, x: Phase, cut: Cut) -> Iterator[PositionTile]:
    """The K tiles of a phase, strip by strip."""
    whole = cut.rows >= len(y.outputs)
    for images in ranges(range(layer.images), cut.images * cut.tiles if whole else 1):
        for rows in [y.outputs] if whole else _strips(y.outputs, cut):
            for columns in cut.columns:
                strip = Strip(images, rows, columns)
                for own in ranges(images, cut.images):
                    for piece in ranges(rows, cut.rows):
                        yield position_tile(layer, x, strip, own, piece, config.k_depth)


def _strips(outputs: range, cut: Cut) -> list[range]:
    """Rows of output in strips of nearly as many tiles, which are nearly as large."""
    edges = [piece.start for piece in ranges(outputs, cut.rows)] + [outputs.stop]
    groups = ranges(range(len(edges) - 1), cut.tiles)
    return [range(edges[g.start], edges[g.stop]) for g in groups]
