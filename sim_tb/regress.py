"""Random masked products on the simulated netlist against NumPy: ``python -m maskwork.sim_tb.regress --help``.

Sizes, kinds of masks, operands and back-pressure are drawn at random; every combination of mask kinds comes up in
turn. Expected results are computed here from the masks' definition, with ``numpy.matmul`` alone.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from maskwork.gen.config import Config, preset, presets
from maskwork.gen.errors import MaskworkError, MaskworkValueError
from maskwork.gen.isa import COUNTERS, Op
from maskwork.gen.lower_matmul import lower_matmul
from maskwork.gen.mask import Mask
from maskwork.gen.program import bind
from maskwork.gen.results import ResultAssembler
from maskwork.sim_tb.device import RtlDevice
from maskwork.sim_tb.packets import Packets
from maskwork.sim_tb.run import limits_for
from numpy.typing import NDArray

REASONS = COUNTERS[:8]
"""Counters that together account for every PE-cycle."""

KINDS = {
    "a": ("absent", "element", "vector m", "vector k", "blocks"),
    "b": ("absent", "element", "vector k", "vector n", "blocks"),
    "c": ("absent", "element", "vector m", "vector n", "blocks"),
}
"""Kinds of masks of each operand."""

COMBINATIONS = tuple(itertools.product(*KINDS.values()))
"""Every combination of them."""

_EDGES = ((31, 32, 31), (1, 1, 1), (70, 70, 70), (1, 70, 1), (70, 1, 70), (16, 16, 16), (17, 33, 65), (3, 64, 64))
"""Sizes (m, k, n) that come first."""

Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Product:
    """One masked product: C<c_mask> = A<a_mask> . B<b_mask>.

    Members:
        a, b: int64 (m, k) and (k, n), within the configuration's operand widths.
        masks: operand "a", "b", "c" -> mask.
        dense: zeros are operands like others; only the given masks are obeyed.
        in_stall, out_stall: probability of back-pressure on the two streams.
    """

    a: Int64Array
    b: Int64Array
    masks: dict[str, Mask]
    dense: bool
    in_stall: float
    out_stall: float

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shape of each operand."""
        return {"a": self.a.shape, "b": self.b.shape, "c": (self.a.shape[0], self.b.shape[1])}

    def mask(self, operand: str) -> BoolArray:
        """An operand's given mask, as an array."""
        return self.masks[operand].to_array(self.shapes[operand], {"a": "mk", "b": "kn", "c": "mn"}[operand])

    def expected(self) -> Int64Array:
        """The result."""
        return np.where(self.mask("c"), (self.a * self.mask("a")) @ (self.b * self.mask("b")), 0)

    def macs(self) -> int:
        """Effectual multiplies: both factors in their effective masks, and the result wanted."""
        a, b = (self.mask(name) & (self.dense | (array != 0)) for name, array in (("a", self.a), ("b", self.b)))
        return int((a.astype(np.int64) @ b.astype(np.int64))[self.mask("c")].sum())

    def __str__(self) -> str:
        kinds = ", ".join(f"{name}: {' & '.join(mask.kinds) or 'absent'}" for name, mask in self.masks.items())
        (m, k), n = self.a.shape, self.b.shape[1]
        zeros = "dense" if self.dense else "sparse"
        return f"{m} x {k} x {n}, {kinds}, {zeros}, stalls {self.in_stall} and {self.out_stall}"


def _density(rng: np.random.Generator) -> float:
    """A density; empty and full are common."""
    return float(rng.choice([0.0, 1.0, rng.random(), 0.5 * rng.random()], p=[0.08, 0.12, 0.5, 0.3]))


def _bits(rng: np.random.Generator, shape: tuple[int, ...]) -> BoolArray:
    """Random bits; at times, whole rows and columns of them are clear."""
    bits = rng.random(shape) < _density(rng)
    if rng.random() < 0.3:
        for axis, size in enumerate(shape):
            clear = rng.random(size) < 0.3
            bits &= ~(clear if axis == len(shape) - 1 else clear[:, None])
    return bits


def _values(rng: np.random.Generator, shape: tuple[int, int], width: int) -> Int64Array:
    """Operands: uniform, small, or nothing but the extremes; sparse at random, with empty rows."""
    low, high = -(1 << (width - 1)), (1 << (width - 1)) - 1
    kind = rng.integers(4)
    if kind == 0:
        values = rng.choice([low, high], shape)
    elif kind == 1:
        values = rng.integers(-2, 3, shape)
    else:
        values = rng.integers(low, high + 1, shape)
    return np.where(_bits(rng, shape), values, 0).astype(np.int64)


def _mask(rng: np.random.Generator, kind: str, shape: tuple[int, int], axes: str) -> Mask:
    rows, columns = shape
    if kind == "absent":
        return Mask.absent()
    if kind == "element":
        return Mask.element(_bits(rng, shape))
    if kind == "blocks":
        blocks = []
        for _ in range(rng.integers(0, 5)):
            r, c = int(rng.integers(rows)), int(rng.integers(columns))
            blocks.append((r, c, int(rng.integers(1, rows - r + 1)), int(rng.integers(1, columns - c + 1))))
        return Mask.blocks(shape, blocks)
    axis = kind[-1]
    return Mask.vector(axis, _bits(rng, (shape[axes.index(axis)],)))


def random_products(config: Config, count: int, seed: int = 0, largest: int = 70) -> Iterator[Product]:
    """Random products; equal arguments give equal products.

    Args:
        config: gives the operands' widths.
        count: number of products.
        seed: of the random numbers.
        largest: sizes are from 1 to this.
    """
    rng = np.random.default_rng(seed)
    for number in range(count):
        m, k, n = (int(v) for v in rng.integers(1, largest + 1, 3))
        if number < len(_EDGES):
            m, k, n = (min(v, largest) for v in _EDGES[number])
        shapes = {"a": (m, k), "b": (k, n), "c": (m, n)}
        masks = {}
        for (name, kinds), kind in zip(KINDS.items(), COMBINATIONS[number % len(COMBINATIONS)], strict=True):
            axes = {"a": "mk", "b": "kn", "c": "mn"}[name]
            masks[name] = _mask(rng, kind, shapes[name], axes)
            if kind != "absent" and rng.random() < 0.25:  # kinds combine
                masks[name] &= _mask(rng, str(rng.choice(kinds[1:])), shapes[name], axes)
        a, b = _values(rng, (m, k), config.a_width), _values(rng, (k, n), config.b_width)
        stalls = rng.choice([0.0, 0.2, 0.6, 0.9], 2, p=[0.4, 0.3, 0.2, 0.1])
        yield Product(a, b, masks, bool(rng.random() < 0.25), float(stalls[0]), float(stalls[1]))


@dataclass
class Summary:
    """What :func:`run_products` has seen.

    Members:
        products, combinations: number of products, and the combinations of mask kinds among them.
        cycles: of all, from COUNTERS.
        pe_cycles: by reason, of all.
        best: highest utilisation of a product.
        seconds: wall clock.
    """

    config: Config
    products: int = 0
    combinations: set[tuple[str, ...]] = field(default_factory=set)
    cycles: int = 0
    pe_cycles: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    best: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        total = max(1, self.cycles * self.config.pes)
        shares = ", ".join(f"{name} {value / total:.1%}" for name, value in self.pe_cycles.items())
        return (
            f"{self.config.name}: {self.products} products ({len(self.combinations)} combinations of mask kinds) equal "
            f"NumPy exactly in {self.cycles} cycles, {self.seconds:.1f} s\n"
            f"  reasons add up to cycles x {self.config.pes} PEs in each; highest utilisation {self.best:.3f}\n"
            f"  PE-cycles: {shares}"
        )


def run_products(
    config: Config,
    count: int,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
    device: RtlDevice | None = None,
) -> Summary:
    """Run random products on one simulated accelerator, one after the other, and check everything.

    Args:
        config: the accelerator's configuration.
        count: number of products.
        seed: of the products and of the back-pressure.
        progress: called after each product with the number of products done.
        device: the simulation; one of its own on Verilator by default.

    Raises:
        AssertionError: naming the first product whose result or counters are wrong.
        MaskworkError: if the simulation fails.
    """
    if not config.counters:
        raise MaskworkValueError("counters must be true for products that are checked with them, not false")
    summary = Summary(config)
    begin = time.perf_counter()
    own = RtlDevice(config) if device is None else device
    try:
        for number, product in enumerate(random_products(config, count, seed)):
            _run_product(own, product, seed + number, summary)
            if progress:
                progress(number + 1)
    finally:
        if device is None:
            own.close()
    summary.seconds = time.perf_counter() - begin
    return summary


def _run_product(device: RtlDevice, product: Product, seed: int, summary: Summary) -> None:
    config = device.config
    (m, k), n = product.a.shape, product.b.shape[1]
    keeps = {
        axis: np.logical_and.reduce([product.masks[name].axis_keep(axis, size) for name in names])
        for axis, size, names in (("m", m, "c"), ("k", k, "ab"), ("n", n, "c"))
    }
    # what a vector mask of A or B removes from C is zero there
    keeps["m"] &= product.masks["a"].axis_keep("m", m)
    keeps["n"] &= product.masks["b"].axis_keep("n", n)
    use_c = not product.masks["c"].is_absent
    m_keep, k_keep, n_keep = (None if keep.all() else keep for keep in keeps.values())
    program = lower_matmul(config, m, k, n, use_c=use_c, m_keep=m_keep, k_keep=k_keep, n_keep=n_keep)
    masks = {name: product.masks[name] for name in "ab"} | ({"c_mask": product.masks["c"]} if use_c else {})
    bound = bind(program, {"a": product.a, "b": product.b}, masks, dense=product.dense)
    counters = Packets(config).command(Op.READ_COUNTERS)
    words = np.concatenate([bound.words, np.array(counters, np.uint32)])
    last = np.concatenate([bound.last, np.arange(1, len(counters) // config.stream_words + 1) * config.stream_words
                           == len(counters)])  # fmt: skip
    run = device.model.run(
        words, last, in_stall=product.in_stall, out_stall=product.out_stall, seed=seed,
        limits=limits_for(words, last, config.stream_words),
    )  # fmt: skip
    assembler = ResultAssembler(program)
    assembler.feed(run.words, run.last)
    result = assembler.outputs()["c"]
    what = f"product {summary.products} ({product})"
    wrong = np.argwhere(result != product.expected())
    assert not len(wrong), f"{what}: {len(wrong)} results differ from NumPy's, the first at {wrong[0].tolist()}"
    _check_counters(config, assembler.counters, product, what, summary)


def _check_counters(
    config: Config, counters: dict[str, int] | None, product: Product, what: str, summary: Summary
) -> None:
    assert counters is not None, f"{what}: no counters came"
    reasons = {name: counters[name] for name in REASONS}
    total = counters["cycles"] * config.pes
    assert sum(reasons.values()) == total, f"{what}: reasons add up to {sum(reasons.values())}, not {total}: {reasons}"
    utilization = counters["multiply"] / total
    assert utilization <= 1, f"{what}: utilisation {utilization}"
    if config.skip == "abc":
        assert counters["multiply"] == product.macs(), (
            f"{what}: {counters['multiply']} multiplies, not {product.macs()}"
        )
    else:
        assert counters["multiply"] >= product.macs(), f"{what}: fewer multiplies than {product.macs()}"
    summary.products += 1
    summary.combinations.add(COMBINATIONS[(summary.products - 1) % len(COMBINATIONS)])
    summary.cycles += counters["cycles"]
    summary.best = max(summary.best, utilization)
    for name, value in reasons.items():
        summary.pe_cycles[name] += value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m maskwork.sim_tb.regress",
        description="Random masked products on the simulated netlist (Verilator), compared with NumPy.",
        epilog="example: python -m maskwork.sim_tb.regress --products 1000 --preset small --set stream_words=2",
    )
    parser.add_argument("--products", type=int, default=1000, help="number of products (default: %(default)s)")
    parser.add_argument("--preset", default="small", help=f"one of {', '.join(presets())} (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a configuration key")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        config = preset(options.preset).with_settings(options.set)
        progress = _progress(options.products) if sys.stderr.isatty() else None
        summary = run_products(config, options.products, options.seed, progress)
    except MaskworkError as error:
        print(error, file=sys.stderr)
        return 2
    except AssertionError as error:
        print(error, file=sys.stderr)
        return 1
    print(summary)
    return 0


def _progress(total: int) -> Callable[[int], None]:
    def show(done: int) -> None:
        end = "\n" if done == total else ""
        print(f"\r{done} of {total} products", end=end, file=sys.stderr, flush=True)

    return show


if __name__ == "__main__":
    sys.exit(main())
