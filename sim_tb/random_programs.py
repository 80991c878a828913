"""Random legal command sequences: loads and RUNs that no compiler would make, but that the instruction set allows."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.isa import LEVELS, Op
from maskwork.gen.pack import bank_words, row_words
from maskwork.sim_tb.packets import Packet, Packets
from maskwork.sim_tb.random_masks import RandomMasks
from numpy.typing import NDArray

Fields = dict[str, int]
NAMES = ("seg", "k", "x", "y")


def conv_fields(
    size: tuple[int, int], kernel: tuple[int, int], channels: int, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Fields:
    """RUN fields of a convolution: a segment is a pixel, x and y its place, m0 along a row, m1 down the image."""
    (height, width), (kh, kw), d = size, kernel, dilation
    out_h, out_w = ((s + 2 * padding - d * (k - 1) - 1) // stride + 1 for s, k in zip(size, kernel, strict=True))
    return {
        "rows": out_h * out_w, "m0": out_w - 1, "m1": out_h - 1, "t0": kw - 1, "t1": kh - 1,
        "x": -padding, "y": -padding, "seg": -padding * width - padding, "x_limit": width, "y_limit": height,
        "m0_x": stride, "m0_seg": stride,
        "m1_x": -stride * (out_w - 1), "m1_y": stride, "m1_seg": stride * width - stride * (out_w - 1),
        "t0_x": d, "t0_seg": d, "t0_k": channels,
        "t1_x": -d * (kw - 1), "t1_y": d, "t1_seg": d * width - d * (kw - 1), "t1_k": channels,
    }  # fmt: skip


@dataclass
class _Bank:
    """What a bank of one cluster holds: ``size`` is segments or mask rows, ``width`` the longest segment or columns."""

    loaded: bool = False
    fresh: bool = False
    size: int = 0
    words: int = 0
    width: int = 0
    uniform: bool = True


@dataclass
class _Cluster:
    a: list[_Bank] = field(default_factory=lambda: [_Bank(), _Bank()])
    b: list[_Bank] = field(default_factory=lambda: [_Bank(), _Bank()])
    c: list[_Bank] = field(default_factory=lambda: [_Bank(), _Bank()])
    p: list[_Bank] = field(default_factory=lambda: [_Bank(), _Bank()])


class RandomProgram:
    """A legal program, made by chance.

    Every row of B that is loaded is loaded whole (all k), because rows never written hold unspecified data.

    Args:
        config: the accelerator's configuration.
        chance: source of every choice; contents of arrays come from a generator that it seeds.
        runs: chains of RUNs (K tiles) to make.
        faults: MASK commands are at times such that ERRORs answer them: not legal then, but what the rest of the
            program answers stays the same.

    Members:
        packets: the commands: BEGIN first; SYNC and READ_COUNTERS last.
        shared: tag -> the RUN with that tag was shared. Every RUN has a tag of its own.
        results: RESULT packets that will come.
        vectors: VECTOR replies that will come; none without a vector unit.
        masks: MASK commands, each answered by a reply; with ``faults`` by a reply, an ERROR or both.
        synced: there is a SYNC before the last, so that counters stopped early.
    """

    def __init__(self, config: Config, chance: random.Random, runs: int = 4, faults: bool = False) -> None:
        self.config = config
        self.shared: dict[int, bool] = {}
        self.results = 0
        self.vectors = self.masks = 0
        self.synced = False
        self._chance = chance
        self._numbers = np.random.default_rng(chance.getrandbits(32))
        self._make = Packets(config)
        self._masks = RandomMasks(config, chance, self._numbers, faults)
        self._clusters = [_Cluster() for _ in range(config.clusters)]
        self.packets: list[Packet] = [self._make.begin_packet()]
        for _ in range(runs):
            self._chain()
            self._aside()
        self.packets += [self._make.command(Op.SYNC, tag=chance.getrandbits(24)),
                         self._make.command(Op.READ_COUNTERS)]  # fmt: skip

    # ------------------------------------------------------------------ choices

    def _likely(self, probability: float) -> bool:
        return self._chance.random() < probability

    def _upto(self, low: int, high: int) -> int:
        return self._chance.randint(low, max(low, high))

    def _some(self, items: Sequence[int]) -> list[int]:
        """A random nonempty part."""
        if self._likely(0.5):
            return list(items)
        return sorted(self._chance.sample(items, self._upto(1, len(items))))

    def _matrix(self, shape: tuple[int, int], width: int) -> NDArray[np.int64]:
        low, high = -(1 << (width - 1)), (1 << (width - 1)) - 1
        style = self._chance.choice(("uniform", "extreme", "small"))
        if style == "extreme":
            values = self._numbers.choice([low, high], shape)
        else:
            values = self._numbers.integers(*((low, high + 1) if style == "uniform" else (-1, 2)), shape)
        return values.astype(np.int64)

    def _bits(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        density = self._chance.choice((0.0, 0.1, 0.3, 0.5, 0.8, 1.0))
        bits = self._numbers.random(shape) < density
        if self._likely(0.3):
            bits &= self._numbers.random((shape[0], 1)) < 0.6
        return bits

    # ------------------------------------------------------------------ loads

    def _targets(self, clusters: Sequence[int], state: Callable[[int], _Bank]) -> list[list[int]]:
        """Groups of clusters that get the same packets: those whose bank has to be loaded."""
        needy = [c for c in clusters if not state(c).fresh and not (state(c).loaded and self._likely(0.3))]
        if not needy:
            return []
        if self._likely(0.2):  # also load some that will not run now
            needy = sorted({*needy, *(c for c in range(self.config.clusters) if not state(c).fresh)})
        return [needy] if self._likely(0.6) else [[c] for c in needy]

    @staticmethod
    def _mask(clusters: Sequence[int]) -> int:
        return sum(1 << c for c in clusters)

    def _load_a(self, clusters: Sequence[int], bank: int) -> None:
        config = self.config
        for group in self._targets(clusters, lambda c: self._clusters[c].a[bank]):
            size = words = width = 0
            for part in range(self._upto(1, 3)):
                length = self._upto(1, config.k_depth)
                segments = self._upto(1, min(24, config.a_segments - size))
                present = self._bits((segments, length))
                dense = "a" not in config.skip or self._likely(0.15)
                stored = bank_words(np.ones_like(present) if dense else present, config.fetch_width)
                if words + stored > config.a_depth or size + segments > config.a_segments:
                    segments, length, dense = 1, 1, "a" not in config.skip
                    present, stored = np.ones((1, 1), np.bool_), 2
                    if words + stored > config.a_depth or size + segments > config.a_segments:
                        break
                values = self._matrix((segments, length), config.a_width)
                self.packets.append(self._make.load_a(
                    values if not dense else np.where(present, values, 0), dense, present, bank=bank,
                    append=int(part > 0), clusters=self._mask(group),
                ))  # fmt: skip
                size, words, width = size + segments, words + stored, max(width, length)
            for c in group:
                self._clusters[c].a[bank] = _Bank(True, True, size, words, width)

    def _load_b(self, clusters: Sequence[int], bank: int, share: bool) -> None:
        config = self.config
        every, pairs = (1 << config.lanes_per_cluster) - 1, config.weight_lanes > 1
        for c in clusters:
            # weights that differ between lanes are no use to a row that goes to any lane
            state = self._clusters[c].b[bank]
            if not share and not state.uniform and state.fresh:
                self.packets.append(self._b_packet(bank, every, 0, config.k_depth, 1, [c]))
                self._clusters[c].b[bank] = _Bank(True, True, 0, 0, 0)
            elif pairs and share and state.uniform and state.fresh:  # lanes that share weights want rows of their own
                for lane in range(config.lanes_per_cluster):
                    self.packets.append(self._b_packet(bank, 1 << lane, 0, config.apart.k_depth, 1, [c]))
                state.uniform = False
            elif share is state.uniform and (pairs or not share):
                state.loaded = False
        for group in self._targets(clusters, lambda c: self._clusters[c].b[bank]):
            by_lane = share and (pairs or self._likely(0.7))
            depth = (config.apart if by_lane else config).k_depth
            masks = [1 << lane for lane in range(config.lanes_per_cluster)] if by_lane else [every]
            append = 0
            for lanes in masks:
                edges = [0, depth]
                if self._likely(0.4):
                    edges.insert(1, self._upto(1, depth - 1))
                pieces = list(itertools.pairwise(edges))
                self._chance.shuffle(pieces)
                for low, high in pieces:
                    self.packets.append(self._b_packet(bank, lanes, low, high - low, append, group))
                    append = 1
            if self._likely(0.2):  # overwrite a few rows
                low = self._upto(0, depth - 1)
                lanes = masks[-1] if pairs else every
                self.packets.append(self._b_packet(bank, lanes, low, self._upto(1, depth - low), 1, group))
            for c in group:
                self._clusters[c].b[bank] = _Bank(True, True, uniform=not by_lane)

    def _b_packet(self, bank: int, lanes: int, k: int, rows: int, append: int, group: Sequence[int]) -> Packet:
        config = self.config
        columns = config.tile_columns if self._likely(0.5) else self._upto(1, config.tile_columns)
        present = self._bits((rows, columns))
        dense = "b" not in config.skip or self._likely(0.15)
        values = self._matrix((rows, columns), config.b_width)
        return self._make.load_b(
            values if not dense else np.where(present, values, 0), dense, present, bank=bank, append=append,
            clusters=self._mask(group), lanes=lanes, k=k,
        )  # fmt: skip

    def _load_c(self, clusters: Sequence[int], bank: int, rows: int) -> None:
        config = self.config
        for c in clusters:
            state = self._clusters[c].c[bank]
            if state.size < rows and state.fresh:  # too few: a fresh bank can only grow
                self.packets.append(self._c_packet(bank, rows - state.size, 1, [c]))
                state.size = rows
            elif state.size < rows:
                state.loaded = False
        for group in self._targets(clusters, lambda c: self._clusters[c].c[bank]):
            total = self._upto(rows, config.c_rows)
            first = self._upto(1, total)
            self.packets.append(self._c_packet(bank, first, 0, group))
            if first < total:
                self.packets.append(self._c_packet(bank, total - first, 1, group))
            for c in group:
                self._clusters[c].c[bank] = _Bank(True, True, total)

    def _c_packet(self, bank: int, rows: int, append: int, group: Sequence[int]) -> Packet:
        columns = self.config.tile_columns if self._likely(0.6) else self._upto(1, self.config.tile_columns)
        return self._make.load_c(self._bits((rows, columns)), bank=bank, append=append, clusters=self._mask(group))

    def _load_p(self, clusters: Sequence[int], bank: int, columns: int, share: bool) -> None:
        config = self.config
        if all(
            s.loaded and s.width >= columns and (share or s.uniform)
            for s in (self._clusters[c].p[bank] for c in clusters)
        ) and self._likely(0.5):
            return
        by_lane = share and self._likely(0.5)
        every = range(config.lanes_per_cluster)
        for lanes in [1 << lane for lane in every] if by_lane else [self._mask(every)]:
            bias = self._numbers.integers(-(1 << 31), 1 << 31, columns) >> self._numbers.integers(0, 31, columns)
            mult = self._numbers.integers(0, 1 << 24, columns) >> self._numbers.integers(0, 24, columns)
            shift = self._numbers.integers(0, 48, columns)
            low, high = sorted(self._chance.sample(range(-300, 301), 2))
            if self._likely(0.1):
                low, high = self._chance.choice(((-32768, 32767), (high, low), (1000, 2000)))
            rounding: Fields = {}
            if config.stochastic and self._likely(0.7):
                rounding = {"stochastic": 1, "seed": self._upto(1, (1 << 32) - 1)}
            self.packets.append(self._make.load_p(
                bias, mult, shift, low, high, bank=bank, lanes=lanes, clusters=self._mask(clusters), **rounding
            ))  # fmt: skip
        for c in clusters:
            self._clusters[c].p[bank] = _Bank(True, width=columns, uniform=not by_lane)

    # ------------------------------------------------------------------ runs

    def _descriptor(self, most: int) -> Fields:
        """RUN fields of rows and taps, for at most ``most`` rows."""
        draw = self._upto
        style = self._chance.choice(("matrix", "conv", "random", "random", "wild"))
        if style == "conv":
            kernel = draw(1, 3), draw(1, 3)
            stride, padding, dilation = draw(1, 2), draw(0, 2), draw(1, 2)
            size = tuple(draw(max(1, dilation * (k - 1) + 1 - 2 * padding), 6) for k in kernel)
            fields = conv_fields((size[0], size[1]), kernel, draw(1, 8), stride, padding, dilation)
            if fields["rows"] <= most:
                return fields
        rows = draw(1, min(most, 12))
        if style in ("matrix", "conv"):
            return {"rows": rows, "m0": rows - 1, "seg": draw(0, 8), "m0_seg": draw(-1, 2), "k": draw(0, 31),
                    "x_limit": 1, "y_limit": 1}  # fmt: skip
        wild = style == "wild"
        fields = {"rows": rows, "x_limit": 65535 if wild else draw(0, 7), "y_limit": 65535 if wild else draw(1, 7)}
        fields |= {name: draw(0, 3) for name in ("m0", "m1", "t0", "t1")}
        for prefix in ("", *(f"{level}_" for level in LEVELS)):
            for name in NAMES:
                if wild and self._likely(0.3):
                    fields[prefix + name] = draw(-32768, 32767)
                else:
                    fields[prefix + name] = draw(-2, 5)
        return fields

    def _chain(self) -> None:
        config = self.config
        tiles = self._chance.choice((1, 1, 2, 3))
        share, use_c = self._likely(0.35), self._likely(0.6)
        post = config.post and self._likely(0.5)
        clusters = self._some(range(config.clusters))
        columns = config.tile_columns if self._likely(0.6) else self._upto(1, config.tile_columns)
        most = 24 if tiles == 1 else config.psum_rows * (1 if share else config.lanes_per_cluster)
        most = min(most, config.c_rows) if use_c else most
        shape = self._descriptor(most)
        rows = shape.pop("rows")
        c_row = self._upto(0, config.c_rows - rows) if use_c else 0
        c_bank = self._upto(0, 1)
        if use_c:
            self._load_c(clusters, c_bank, c_row + rows)
        row = 0
        for tile in range(tiles):
            a_bank, b_bank = self._upto(0, 1), self._upto(0, 1)
            final = tile == tiles - 1
            loads: list[Callable[[], Any]] = [
                lambda bank=a_bank: self._load_a(clusters, bank),
                lambda bank=b_bank: self._load_b(clusters, bank, share),
            ]
            if final and post:
                loads.append(lambda bank=b_bank: self._load_p(clusters, bank, columns, share))
            self._chance.shuffle(loads)
            for load in loads:
                load()
                self._stream()
            if tile:
                kept = rows
                shape = self._descriptor(kept)
                shape.pop("rows")
            taps = (shape.get("t0", 0) + 1) * (shape.get("t1", 0) + 1)
            longest = max(self._clusters[c].a[a_bank].width for c in clusters)
            tag = len(self.shared)
            self.shared[tag] = share
            if not (tile and config.psum_in_pe):  # a row whose sums stay keeps its number
                row = self._chance.choice((0, 0, 100, 65530))
            self.packets.append(self._make.run(
                rows, columns, **{
                    "m0_seg": 0, "m0": 0, **shape, "a_bank": a_bank, "b_bank": b_bank, "c_bank": c_bank,
                    "use_c": int(use_c), "share": int(share), "first": int(tile == 0), "final": int(final),
                    "post": int(final and post), "tag": tag, "clusters": self._mask(clusters),
                    "row": row, "c_row": c_row,
                    "row_words": min(65535, row_words(config, longest, taps)),
                },
            ))  # fmt: skip
            self._stream()
            for c in clusters:
                for bank in [self._clusters[c].a[a_bank], self._clusters[c].b[b_bank]] + (
                    [self._clusters[c].c[c_bank]] if use_c else []
                ):
                    bank.fresh = False
            if final:
                self.results += rows * len(clusters) * (config.lanes_per_cluster if share else 1)

    def _stream(self) -> None:
        """At times, VECTOR and MASK: behind a load, or while RUNs are in flight."""
        self._vector()
        while self.config.blocks - {"store"} and self._likely(0.25):
            self.packets.append(self._masks.packet())
            self.masks += 1

    def _vector(self) -> None:
        if not self.config.vector or not self._likely(0.2):
            return
        window = self._chance.choice((1, 1, 2, 3, 4, 9, 49, self._upto(1, 300)))
        windows = self._matrix((self._upto(1, max(1, 400 // window)), window), self.config.a_width)
        low, high = sorted(self._chance.sample(range(-300, 301), 2))
        if self._likely(0.1):
            low, high = self._chance.choice(((-32768, 32767), (high, low), (1000, 2000)))
        mults = (self._chance.getrandbits(24) >> self._upto(0, 24) for _ in range(2))
        mult0, mult1 = mults if self._likely(0.8) else (1, 1)
        self.packets.append(self._make.vector(
            windows, tag=self._upto(0, 255), kind=self._upto(0, 1), mult0=mult0, mult1=mult1,
            shift=self._chance.choice((0, 47, self._upto(0, 47))), low=low, high=high,
        ))  # fmt: skip
        self.vectors += 1

    def _aside(self) -> None:
        """At times, a command that computes nothing."""
        what = self._chance.choice((None, None, None, None, Op.ECHO, Op.IDENTIFY, Op.SYNC))
        if what == Op.ECHO:
            self.packets.append(self._make.command(Op.ECHO, token=self._chance.getrandbits(32)))
        elif what is not None:
            self.packets.append(self._make.command(what))
            self.synced |= what == Op.SYNC
