"""The comparison's steps, each kept in a cache: place and route, benchmarks, and their assembly."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import maskwork.gen
import maskwork.sim_tb.cycle
from amaranth.lib import wiring
from maskwork.fpga.cost import STUDY, routed
from maskwork.fpga.dense.array import DenseArray
from maskwork.fpga.dense.compare import FORMAT, VERSION, break_even, mask_ports, twice, workload_speeds
from maskwork.fpga.dense.config import DenseConfig
from maskwork.fpga.dense.records import Cache, record
from maskwork.fpga.dense.route import DEVICE, routed_dense
from maskwork.gen.bench import Bench
from maskwork.gen.bench_jobs import processors
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkValueError
from maskwork.gen.generate import emit
from maskwork.gen.workload import read_workload
from maskwork.rtl.accelerator import Accelerator
from maskwork.rtl.array_harness import ArrayHarness

Progress = Callable[[str], None]


def netlist_digest(component: wiring.Component, name: str) -> str:
    """Of the emitted text, which is what place and route depend on."""
    return hashlib.sha256(emit(component, name)[0].encode()).hexdigest()


def model_digest() -> str:
    """Of the sources that decide a benchmark's cycles: the lowering and the cycle model."""
    folders = (Path(next(iter(maskwork.gen.__path__))), Path(next(iter(maskwork.sim_tb.cycle.__path__))))
    files = [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix in (".py", ".cpp", ".hpp")]
    digest = hashlib.sha256()
    for path in files:
        if not path.name.startswith(("cli", "demo", "bench_html", "bench_svg")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
    """What to do and how.

    Attributes:
        cache: of results.
        freq: clock that place and route of dense arrays aim for, MHz.
        sparse_freq: of sparse ones; above what a placement allows, the router may rip up late wires without end.
        seeds: of the placer, from 1.
        sample: effectual multiplies of a pass from which a sample is simulated.
        requantise: passes whose results leave the sparse array as 8 bits.
        progress: told each step's name.
    """

    cache: Cache
    freq: int = 150
    sparse_freq: int = 100
    seeds: int = 1
    sample: int = 100_000_000
    requantise: Sequence[str] = ()
    progress: Progress = lambda _: None

    def dense(self, config: DenseConfig, freq: int | None = None) -> dict[str, Any]:
        """Record of a dense array after routing; "dense" where every PE has a DSP block, else "dense-soft".

        Args:
            config: the array.
            freq: clock to aim for, MHz, instead of ``self.freq``. Above what a placement allows, the router may
                rip up late wires without end.
        """
        freq = self.freq if freq is None else freq
        name = "dense" if config.dsps is None or config.dsps == config.pes else "dense-soft"
        key = {"netlist": netlist_digest(DenseArray(config), "dense"), "freq": freq, "seeds": self.seeds}
        self.progress(f"{name}, {config.rows} x {config.columns} PEs")
        made = self.cache.get(name, key, lambda: routed_dense(config, None, freq, self.seeds, self.progress))
        return record(made, name)

    def sparse(self, config: Config, whole: bool = True) -> dict[str, Any]:
        """Record of the accelerator after routing, or of its lanes alone."""
        name = "sparse" if whole else f"lanes-{config.skip or 'none'}"
        top = Accelerator(config) if whole else ArrayHarness(config)
        key = {"netlist": netlist_digest(top, "sparse"), "freq": self.sparse_freq, "seeds": self.seeds}
        self.progress(f"{name}, {config.pes} PEs")
        made = self.cache.get(
            name, key, lambda: routed(config, whole, freq=self.sparse_freq, seeds=self.seeds, progress=self.progress)
        )
        return record(made, name)

    def bench(self, config: Config, workload: str, skips: Sequence[str]) -> dict[str, Any]:
        """Bench report of a workload file."""
        text = Path(workload).read_bytes() if read_workload(workload) else b""
        key = {"config": config.to_dict(), "workload": hashlib.sha256(text).hexdigest(), "skips": list(skips),
               "sample": self.sample, "requantise": list(self.requantise), "model": model_digest()}  # fmt: skip
        self.progress(f"bench of {Path(workload).name}")
        bench = Bench(
            workload, config, skips=skips or None, sample=self.sample, requantise=self.requantise, jobs=None
        )
        return self.cache.get("bench", key, lambda: bench.run(self.progress))

    def curves(self, config: Config) -> dict[str, Any]:
        """Utilisation by density."""
        from maskwork.gen.bench_curves import density_curves

        self.progress("densities")
        key = {"config": config.to_dict(), "model": model_digest()}
        return self.cache.get("curves", key, lambda: density_curves(config, step=self.progress, jobs=processors()))

    def compare(
        self, config: Config, workloads: Sequence[str], shapes: Sequence[tuple[DenseConfig, int | None]],
        skips: Sequence[str] = (), sparse: dict[str, Any] | None = None, denses: Sequence[dict[str, Any]] = (),
    ) -> dict[str, Any]:  # fmt: skip
        """Everything.

        Args:
            config: of the sparse array.
            workloads: CSV files.
            shapes: dense arrays to route, each with the clock to aim for as in :meth:`dense`; of those with the same
                kinds of multiplier the one with most products a second is compared.
            skips: values of skip whose mask ports are weighed; the first is what others are compared with.
            sparse: record of the sparse array, where it has been routed already.
            denses: records of dense arrays that have been.

        Returns:
            The result (docs/compare.md).

        Raises:
            MaskworkValueError: if there is no dense array, or ``sparse`` is of another configuration.
        """
        if sparse is not None and Config.from_dict(sparse["config"]) != config:
            raise MaskworkValueError(f"sparse: routed with another configuration than {config.name}")
        found = [*denses, *(self.dense(*shape) for shape in shapes)]
        if not found:
            raise MaskworkValueError("dense: one shape or routed dense array at least is expected")
        best: dict[str, dict[str, Any]] = {}
        for one in found:
            known = best.get(one["name"])
            if known is None or one["peak_products_per_s"] > known["peak_products_per_s"]:
                best[one["name"]] = one
        chosen = [best[name] for name in ("dense", "dense-soft") if name in best]
        if "dense" in best:
            chosen.append(twice(best["dense"]))
        mine = self.sparse(config) if sparse is None else sparse
        networks, ablation = [], []
        for workload in workloads:
            layers = read_workload(workload)
            report = self.bench(config, workload, skips)
            for network in workload_speeds(mine, chosen, report, layers):
                networks.append({"workload": Path(workload).stem, **network})
            ablation.append(report.get("ablation", []))
        result = {
            "format": FORMAT, "version": VERSION, "device": DEVICE, "arrays": [mine, *chosen], "tried": found,
            "requantise": list(self.requantise),
            "networks": networks, "break_even": break_even(mine, chosen, self.curves(config)),
        }  # fmt: skip
        if skips:
            merged = [
                {"skip": skip, "networks": [n for own in ablation for a in own if a["skip"] == skip
                                            for n in a["networks"]]} for skip in skips
            ]  # fmt: skip
            costs = [{"skip": skip, **self.sparse(STUDY.replace(skip=skip), whole=False)} for skip in skips]
            result["mask_ports"] = mask_ports(costs, merged)
        return result
