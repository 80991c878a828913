"""Measurements on the simulated hardware: simulation speed, and how busy the PEs are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from maskwork.gen import pack
from maskwork.gen.check import check_program
from maskwork.gen.cli_common import new_table
from maskwork.gen.config import Config, preset
from maskwork.gen.errors import DeviceError, MaskworkValueError, ProgramError
from maskwork.gen.execute import command_words, execute
from maskwork.gen.isa import Op
from maskwork.gen.lower_matmul import add_operands, lower_matmul, matrix_blocks
from maskwork.gen.lower_schedule import KTile, Scheduler, split_n
from maskwork.gen.program import Bound, Program, bind
from maskwork.gen.report import make_report
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rich.console import Console

STUDY = preset("sim-64").replace(
    name="utilization-study", k_depth=1024, a_depth=16384, a_segments=128, c_rows=128, fifo_depth=1024
)
"""sim-64 with buffers in which K = 576 is one K tile and 256 rows of A stay for all N tiles."""

DENSITIES: tuple[tuple[float, float, float], ...] = (
    (1.0, 1.0, 1.0),
    (0.4, 1.0, 1.0),
    (0.4, 0.3, 1.0),
    (0.2, 1.0, 0.45),
    (0.4, 0.2, 1.0),
)
"""Densities of A, B and C in the rows of the utilisation table."""


def random_operand(rng: np.random.Generator, shape: tuple[int, int], density: float, width: int) -> NDArray[np.int64]:
    """Random integers of ``width`` bits, signed, of which a random ``density`` are not zero."""
    low, high = -(1 << (width - 1)), (1 << (width - 1)) - 1
    values = rng.integers(low, high, shape)
    values += values >= 0  # no zeros
    return np.where(rng.random(shape) < density, values, 0)


def _expect(got: NDArray[Any], expected: NDArray[Any], what: str) -> None:
    if not np.array_equal(got, expected):
        raise DeviceError(f"{what}: {int((got != expected).sum())} results differ from the golden model")


# ---------------------------------------------------------------------- simulation speed


def simulation_speed(
    config: Config, cycles: int, simulator: str = "verilator", target: str = "rtl", runs: int = 5
) -> dict[str, Any]:
    """Cycles and effectual multiplies per second of the simulated netlist, in one long masked product.

    A machine that does something else makes a run slower, never faster: the fastest run counts, here and there.

    Args:
        config: the accelerator.
        cycles: about how many to simulate.
        simulator: "verilator" or "icarus".
        target: "rtl", or "cycle": the cycle model too, which must give the same cycles. Its result then has "rtl" and
            "cycle", each with its own figures, and of the model's speed to the netlist's "ratio", of the fastest runs,
            and "ratios", of the netlist's runs and the fastest of the model's three right behind each.
        runs: how often to simulate all of it; "seconds_of_runs" has them all.

    Raises:
        MaskworkValueError: for a number of cycles or runs, or a target, that is none.
        DeviceError: if a result is not NumPy's, or the model's cycles are not the netlist's.
        MaskworkError: if the simulator is missing or fails.
    """
    from maskwork.sim_tb.device import RtlDevice
    from maskwork.sim_tb.golden import macs, masked_matmul

    if not 1000 <= cycles <= 1_000_000_000:
        raise MaskworkValueError(f"--cycles must be from 1000 to 1000000000, not {cycles}")
    if not 1 <= runs <= 1000:
        raise MaskworkValueError(f"--runs must be from 1 to 1000, not {runs}")
    if target not in ("rtl", "cycle"):
        raise MaskworkValueError(f"--target must be rtl or cycle to measure speed, not {target!r}")
    inner, columns, densities = 256, config.tile_columns, (0.4, 0.3)
    products = cycles * config.pes * 0.7
    rows = int(min(max(1, products / (inner * columns * densities[0] * densities[1])), 1 << 18))
    rng = np.random.default_rng(1)
    # eight bits or fewer, so that no accumulator is too narrow
    a = random_operand(rng, (rows, inner), densities[0], min(config.a_width, 8))
    b = random_operand(rng, (inner, columns), densities[1], min(config.b_width, 4))
    program = lower_matmul(config, rows, inner, columns)
    bound = bind(program, {"a": a, "b": b})
    effectual = macs(a, b)["macs_effectual"]
    model = _Model(bound) if target == "cycle" else None
    start = time.perf_counter()
    device = RtlDevice(config, simulator=simulator)
    times: list[float] = []
    try:
        built = time.perf_counter()
        for _ in range(runs):
            begun = time.perf_counter()
            words, last = device.execute(bound.words, bound.last)
            times.append(time.perf_counter() - begun)
            done = device.last_run
            assert done is not None  # an RtlDevice has one after each run
            _expect(execute_again(program, words, last), masked_matmul(a, b), "speed")
            if model is not None:
                model.run(done.cycles)
    finally:
        device.close()
    head = {"preset": config.name, "pes": config.pes}
    rtl = {"simulator": simulator, **_rates(done.cycles, effectual, times), "build_seconds": built - start}
    if model is None:
        return {**head, **rtl}
    cycle = {**_rates(done.cycles, effectual, model.times), "golden_seconds": model.golden}
    return {
        **head, "rtl": rtl, "cycle": cycle, "ratio": cycle["cycles_per_second"] / rtl["cycles_per_second"],
        "ratios": [ours / its for ours, its in zip(times, model.times, strict=True)],
    }  # fmt: skip


def _rates(cycles: int, effectual: int, times: list[float]) -> dict[str, Any]:
    seconds = min(times)
    return {
        "cycles": cycles, "macs_effectual": effectual, "seconds": seconds, "cycles_per_second": cycles / seconds,
        "macs_per_second": effectual / seconds, "seconds_of_runs": times,
    }  # fmt: skip


class _Model:
    """The cycle model, timed: ``times`` has the best of three runs each, ``golden`` the seconds that its outputs take,
    of the golden model.
    """

    def __init__(self, bound: Bound):
        from maskwork.sim_tb.cycle import simulate
        from maskwork.sim_tb.cycle.engine import result_bitmaps
        from maskwork.sim_tb.device import GoldenDevice

        config = bound.config
        start = time.perf_counter()
        bitmaps = result_bitmaps(config, *GoldenDevice(config).execute(bound.words, bound.last))
        self.golden = time.perf_counter() - start
        simulate(config, *command_words(config, Op.ECHO))  # builds or loads it
        self._simulate = lambda: simulate(config, bound.words, bound.last, bitmaps)
        self.times: list[float] = []

    def run(self, cycles: int) -> None:
        """Three runs, the fastest of which is noted. Raises DeviceError unless they count ``cycles``."""
        times = []
        for _ in range(3):
            start = time.perf_counter()
            counted = self._simulate()["total_cycles"]
            times.append(time.perf_counter() - start)
            if counted != cycles:
                raise DeviceError(f"speed: the cycle model counts {counted} cycles, the netlist {cycles}")
        self.times.append(min(times))


def execute_again(program: Program, words: NDArray[np.uint32], last: NDArray[np.bool_]) -> NDArray[Any]:
    """Output "c" from reply words that are at hand."""
    from maskwork.gen.results import ResultAssembler

    assembler = ResultAssembler(program)
    assembler.feed(words, last)
    return assembler.outputs()["c"]


# ---------------------------------------------------------------------- utilisation


def resident_program(config: Config, shape: tuple[int, int, int], use_c: bool) -> Program:
    """A matrix product whose operands are all loaded before its first RUN.

    Args:
        config: the accelerator: its buffers must hold all rows of A, and two N tiles.
        shape: (M, K, N).
        use_c: there is a C mask.

    Raises:
        ProgramError: if the buffers are too small; says which.
    """
    m, k, n = shape
    words = -(-m // config.clusters) * pack.segment_words(k, config.fetch_width)
    if words > config.a_depth:
        raise ProgramError(f"the rows of A take {words} words of a bank; at most a_depth = {config.a_depth} fit")
    program = Program(config)
    add_operands(program, (m, k), (k, n), (m, n), use_c, None)
    program.products.append({"a": "a", "b": "b"})
    scheduler = Scheduler(program, None, use_c)
    scheduler.begin()
    rows, inner = np.arange(m, dtype=np.int64), np.arange(k, dtype=np.int64)
    columns = split_n(config, np.arange(n, dtype=np.int64))
    scheduler.run(matrix_blocks(config, rows, rows, 1), [KTile(inner, inner)], columns)
    scheduler.end()
    program.commands.sort(key=lambda command: ("BEGIN", "LOAD", "RUN", "SYNC").index(command["op"].split("_")[0]))
    check_program(program)
    return program


def longest_first(work: np.ndarray, clusters: int) -> np.ndarray:
    """Order of rows in which every cluster's block begins with its longest rows, and all blocks have about equal work.

    Args:
        work: (rows,), products of each row.
        clusters: blocks that the rows are cut into.

    Returns:
        (rows,) int64: numbers of the rows, dealt to the clusters to and fro.
    """
    ranks = np.argsort(-np.asarray(work), kind="stable")
    place = np.arange(len(ranks))
    rounds, turn = place // clusters, place % clusters
    owner = np.where(rounds % 2, clusters - 1 - turn, turn)
    return ranks[np.argsort(owner, kind="stable")]


def utilization_table(
    config: Config,
    skips: Sequence[str],
    shape: tuple[int, int, int],
    seed: int,
    step: Callable[[str], None],
    longest: bool = False,
    target: str = "rtl",
) -> dict[str, Any]:
    """Utilisation of the compute phase: effectual products / (compute_cycles * PEs), by densities and skip letters.

    Args:
        config: the accelerator; its ``skip`` is replaced.
        skips: values of ``skip``.
        shape: (M, K, N).
        seed: of operands and masks.
        step: told about progress.
        longest: rows of A and C are put in the order of :func:`longest_first`.
        target: "rtl", or "cycle", which gives the same.

    Raises:
        MaskworkError: if the configuration cannot hold the product, or the simulator fails.
    """
    from maskwork.sim_tb.device import open_device
    from maskwork.sim_tb.golden import macs, masked_matmul

    if not config.counters:
        raise MaskworkValueError("counters must be true to measure utilisation, not false")
    if min(shape) < 1:
        raise MaskworkValueError(f"--rows, --inner and --columns must be 1 or more, not {shape}")
    m, k, n = shape
    cases = []
    for index, (da, db, dc) in enumerate(DENSITIES):
        rng = np.random.default_rng([seed, index])
        a = random_operand(rng, (m, k), da, config.a_width)
        b = random_operand(rng, (k, n), db, config.b_width)
        c_mask = rng.random((m, n)) < dc if dc < 1 else None
        if longest:
            work = (a != 0).astype(np.int64) @ (b != 0)
            order = longest_first((work if c_mask is None else work * c_mask).sum(axis=1), config.clusters)
            a, c_mask = a[order], c_mask if c_mask is None else c_mask[order]
        cases.append((a, b, c_mask, masked_matmul(a, b, c_mask=c_mask), macs(a, b, c_mask=c_mask)))
    rows: list[dict[str, Any]] = [
        {"density_a": da, "density_b": db, "density_c": dc, "utilization": {}, "compute_cycles": {}, "pe_cycles": {}}
        for da, db, dc in DENSITIES
    ]
    for skip in skips:
        own = config.replace(skip=skip)
        programs = {use_c: resident_program(own, shape, use_c) for use_c in (False, True)}
        with open_device(target, own) as device:
            for row, (a, b, c_mask, expected, counts) in zip(rows, cases, strict=True):
                program = programs[c_mask is not None]
                operands = {"a": a, "b": b} | ({} if c_mask is None else {"c_mask": c_mask})
                done = execute(device, program, operands)
                _expect(done.outputs["c"], expected, f"skip {own.skip or 'none'}")
                report = make_report(
                    target, own, counts, words_in=done.words_in, words_out=done.words_out, seconds=0.0,
                    counters=done.counters,
                )  # fmt: skip
                name = own.skip or "none"
                row["macs_effectual"] = counts["macs_effectual"]
                row["compute_cycles"][name] = report["compute_cycles"]
                row["pe_cycles"][name] = report["pe_cycles"]
                row["utilization"][name] = counts["macs_effectual"] / (report["compute_cycles"] * own.pes)
                step(f"skip {name}")
    return {"config": config.to_dict(), "pes": config.pes, "rows": m, "inner": k, "columns": n, "seed": seed,
            "longest_first": longest, "target": target,
            "skips": [config.replace(skip=skip).skip or "none" for skip in skips], "results": rows}  # fmt: skip


def show_utilization(result: dict[str, Any], console: Console) -> None:
    """Print the table."""
    console.print(
        f"Utilisation of the compute phase, {result['pes']} PEs ({result['config']['name']}), M = {result['rows']}, "
        f"K = {result['inner']}, N = {result['columns']}:\ndensities of A, B and C, and a column for each skip"
    )
    table = new_table("A", "B", "C", *result["skips"])
    for row in result["results"]:
        densities = (f"{row[f'density_{name}']:g}" for name in "abc")
        table.add_row(*densities, *(f"{row['utilization'][skip]:.3f}" for skip in result["skips"]))
    console.print(table)
