"""Cycles, utilisation and speed-up of a workload's layers on the cycle model (docs/bench.md)."""

from __future__ import annotations

import dataclasses
import math
import os
import time
import zlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from maskwork.gen.ablate import ablated, parse_without
from maskwork.gen.bench_jobs import processors, run_all
from maskwork.gen.bench_masks import KINDS, LayerMasks, MaskSource, load_masks
from maskwork.gen.bench_sample import SAMPLE, Measured, measure
from maskwork.gen.config import Config
from maskwork.gen.errors import MaskworkTypeError, MaskworkValueError
from maskwork.gen.passes import OPERANDS, works
from maskwork.gen.program import Program
from maskwork.gen.report import make_report, summary, total_report
from maskwork.gen.workload import PASSES, Layer, choose_layers, read_workload

PARALLEL = 1_000_000_000
"""Products of a workload, skipped or not, from which processes of its own are worth their start (a second each)."""


class Bench:
    """A checked benchmark, ready to run.

    Args:
        workload: a CSV file's name, or layers.
        config: the accelerator.
        passes: passes to run, of those that a layer has; None for all.
        batch: images instead of the workload's.
        masks: "bernoulli" or "correlated".
        masks_from: ``.npz`` files of masks or tensors, which go before drawn ones.
        seed: of masks and samples.
        layers: names or patterns of the layers to run; None for all.
        skips: values of skip to compare; None compares none.
        sample: effectual multiplies of one pass of a layer above which a sample of about so many is simulated and
            scaled; 0 never samples.
        requantise: passes whose results are requantised to 8 bits before they leave.
        curves: measure utilisation against density as well.
        without: what to leave out, names of :data:`~maskwork.gen.ablate.ABLATIONS`.
        jobs: processes at most; None takes as many as there are processors for a workload that is worth it. The
            report does not depend on it, but for its seconds.

    Raises:
        MaskworkError: for a file, layer, pass, mask or skip that cannot be used; one line.
    """

    def __init__(
        self,
        workload: str | os.PathLike[str] | Sequence[Layer],
        config: Config,
        *,
        passes: Iterable[str] | None = None,
        batch: int | None = None,
        masks: str = KINDS[0],
        masks_from: Iterable[str | os.PathLike[str]] = (),
        seed: int = 1,
        layers: Iterable[str] | None = None,
        skips: Iterable[str] | None = None,
        sample: int = SAMPLE,
        requantise: Iterable[str] = (),
        without: Iterable[str] = (),
        curves: bool = False,
        jobs: int | None = 1,
    ) -> None:
        limits = (("batch", batch, 1), ("seed", seed, 0), ("sample", sample, 0), ("jobs", jobs, 1))
        for name, value, least in limits:
            none = value is None and name in ("batch", "jobs")
            if not none and (type(value) is not int or value < least):
                raise MaskworkValueError(f"{name} must be an integer of at least {least}, not {value!r}")
        self.config, self.seed, self.sample, self.curves = config, seed, sample, curves
        files, chosen_layers = _texts("masks_from", masks_from) or [], _texts("layers", layers)
        own_skips = _texts("skips", skips)
        self.passes = _passes("passes", PASSES if passes is None else passes)
        self.requantise = _passes("requantise", requantise)
        self.without = parse_without(without)
        if self.requantise and not config.post:
            raise MaskworkValueError("requantise needs a configuration with post = true, not false")
        every, self.workload = _layers(workload)
        chosen = choose_layers(every, chosen_layers)
        if batch is not None:  # of those that run: others may be too large for so many
            chosen = [layer.with_batch(batch) for layer in chosen]
        self.tasks = [(layer, tuple(p for p in self.passes if p in layer.passes)) for layer in chosen]
        self.tasks = [(layer, own) for layer, own in self.tasks if own]
        if not self.tasks:
            raise MaskworkValueError(
                f"passes: no layer chosen has {' or '.join(self.passes)}; theirs are "
                f"{', '.join(p for p in PASSES if any(p in layer.passes for layer in chosen))}"
            )
        self.masks = masks
        self.source = MaskSource(every, masks, seed)
        self.files = [os.fspath(path) for path in files]
        self._given: set[str] = set()
        self.source.own = load_masks(self.files, every, [layer for layer, _ in self.tasks], self._given)
        self.skips = None if own_skips is None else list(dict.fromkeys("".join(sorted(s)) for s in own_skips))
        self.configs = [config] + [
            config.replace(skip=skip) for skip in self.skips or () if skip != config.skip
        ]  # fmt: skip
        self._parts = self._split()
        self.jobs = jobs if jobs is not None else processors() if self._macs() > PARALLEL else 1
        self.jobs_of_curves = processors() if jobs is None else jobs  # they are always worth it

    @property
    def unread(self) -> list[str]:
        """The user's masks that no pass reads: ``network/layer.tensor``."""
        read = {f"{layer.name}.{tensor}" for layer, own in self.tasks for which in own for tensor in OPERANDS[which]}
        return sorted(self._given - read)

    @property
    def steps(self) -> int:
        """Steps that :meth:`run` reports."""
        from maskwork.gen.bench_curves import STEPS

        return len(self.configs) * sum(len(own) for _, own in self.tasks) + (STEPS if self.curves else 0)

    def run(self, step: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
        """Simulate everything.

        Args:
            step: called at the end of each step with what was done.

        Returns:
            The report (docs/bench.md).

        Raises:
            ProgramError: if the configuration cannot run a layer.
            DeviceError: if counters contradict the masks.
        """
        start = time.perf_counter()
        entries = self._entries(step)
        report = total_report(entries[0], 0.0)
        layers = report.pop("layers")
        report.update(_totals(entries[0]))
        report.update(workload=self.workload, masks=self.masks, masks_from=self.files, seed=self.seed,
                      sample_limit=self.sample, requantise=list(self.requantise),
                      without=sorted(self.without))  # fmt: skip
        if self.skips is not None:
            report["ablation"] = self._ablation(entries)
        if self.curves:
            from maskwork.gen.bench_curves import density_curves

            report["curves"] = density_curves(self.config, self.seed, step, self.jobs_of_curves)
        report["seconds"] = time.perf_counter() - start
        report["layers"] = layers
        return report

    def _split(self) -> list[tuple[int, str, list[int]]]:
        """Parts that do not depend on each other: a configuration, a pass, and layers of ``tasks``.

        Layers of equal sizes that follow each other have one part, as they share programs, whose tiles the first one
        chooses. The longest parts come first.
        """
        runs: list[list[int]] = []
        for n, (layer, _) in enumerate(self.tasks):
            if not n or _sizes(layer) != _sizes(self.tasks[n - 1][0]):
                runs.append([])
            runs[-1].append(n)
        parts = [
            (config, which, own)
            for run in runs
            for which in PASSES
            for config in range(len(self.configs))
            if (own := [n for n in run if which in self.tasks[n][1]])
        ]
        return sorted(parts, key=lambda part: -sum(self.tasks[n][0].macs for n in part[2]))

    def _macs(self) -> int:
        return sum(layer.macs * len(own) for layer, own in self.tasks) * len(self.configs)

    def _entries(self, step: Callable[[str], None]) -> list[list[dict[str, Any]]]:
        """Of each configuration, what each layer and pass gave."""

        def ended(part: int) -> None:
            _, which, own = self._parts[part]
            for n in own:
                step(f"{self.tasks[n][0].name} {which} done")

        found: dict[tuple[int, int, str], dict[str, Any]] = {}
        for (config, which, own), results in zip(
            self._parts, run_all(self._part, len(self._parts), self.jobs, ended), strict=True
        ):
            found.update({(config, n, which): result for n, result in zip(own, results, strict=True)})
        return [
            [found[config, n, which] for n, (_, passes) in enumerate(self.tasks) for which in passes]
            for config in range(len(self.configs))
        ]

    def _part(self, number: int) -> list[dict[str, Any]]:
        index, which, own = self._parts[number]
        entries, programs = [], {}
        for n in own:
            layer = self.tasks[n][0]
            masks = self.source.of(layer, OPERANDS[which])
            entries.append(self._entry(self.configs[index], layer, which, masks, programs))
        return entries

    def _entry(
        self, config: Config, layer: Layer, which: str, masks: LayerMasks,
        programs: dict[Hashable, tuple[int, Program]],
    ) -> dict[str, Any]:  # fmt: skip
        start = time.perf_counter()
        products = ablated(works(config, layer, which, masks, post=which in self.requantise), self.without)
        keys = [self.seed, zlib.crc32(layer.name.encode()), PASSES.index(which)]
        # programs of works that are unlike the last layer's would take up memory
        own = {work.key for work in products}
        for key in set(programs) - own:
            del programs[key]
        try:
            done = measure(config, products, self.sample, keys, programs)
        except MaskworkValueError as error:
            raise type(error)(f"{layer.name}, {which}: {error}") from None
        entry: dict[str, Any] = {"network": layer.network, "layer": layer.layer, "pass": which}
        entry.update(_layer_report(config, done, time.perf_counter() - start))
        entry["programs"] = done.programs
        entry["density"] = {
            operand: 1.0 if (mask := getattr(masks, tensor)) is None else float(mask.mean())
            for operand, tensor in zip("abc", OPERANDS[which], strict=True)
        }
        if which == "weight_grad":
            entry["layout_words"] = sum(work.layout_words(config) for work in products)
        if done.sample is not None:
            entry["sample"] = done.sample
        return entry

    def _ablation(self, entries: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        by_skip = {config.skip: own for config, own in zip(self.configs, entries, strict=True)}
        return [{"skip": skip, **_totals(by_skip[skip])} for skip in self.skips or ()]


def _sizes(layer: Layer) -> tuple[Any, ...]:
    """What programs depend on besides densities."""
    return tuple(value for value in dataclasses.astuple(layer) if type(value) is int)


def _texts(name: str, texts: Iterable[Any] | None) -> list[Any] | None:
    if isinstance(texts, str | os.PathLike):
        raise MaskworkTypeError(f"{name} must be a list of texts, not one string {os.fspath(texts)!r}")
    found = None if texts is None else list(texts)
    for text in found or ():
        if not isinstance(text, str if name != "masks_from" else str | os.PathLike):
            raise MaskworkTypeError(f"{name} must be a list of texts, not {text!r} in it")
    return found


def _passes(name: str, passes: Iterable[str]) -> tuple[str, ...]:
    if isinstance(passes, str):
        raise MaskworkTypeError(f"{name} must be a list of passes, not one string {passes!r}")
    found = list(passes)
    for which in found:
        if which not in PASSES:
            raise MaskworkValueError(f"{name}: unknown pass {which!r}; passes: {', '.join(PASSES)}")
    return tuple(which for which in PASSES if which in found)


def _layers(workload: str | os.PathLike[str] | Sequence[Layer]) -> tuple[list[Layer], str | None]:
    if isinstance(workload, str | os.PathLike):
        return read_workload(workload), os.fspath(workload)
    layers = list(workload) if isinstance(workload, Iterable) else []
    if not layers or not all(isinstance(layer, Layer) for layer in layers):
        raise MaskworkTypeError("workload must be a CSV file's name, or layers of maskwork.gen.workload.Layer")
    if len({layer.name for layer in layers}) < len(layers):
        raise MaskworkValueError("workload: every layer of a network must have a name of its own")
    return layers, None


def _layer_report(config: Config, done: Measured, seconds: float) -> dict[str, Any]:
    macs = {"macs_dense": done.macs_dense, "macs_effectual": done.macs_effectual}
    beat = config.stream_words
    report = make_report(
        "cycle", config, macs, words_in=done.counters["words_in"] * beat, words_out=done.counters["words_out"] * beat,
        seconds=seconds, counters=done.counters,
    )  # fmt: skip
    return _with_fraction(report)


def _with_fraction(report: dict[str, Any]) -> dict[str, Any]:
    """Add the fraction of the bound reached, which is the utilisation: both divide effectual products by PE-cycles."""
    if report.get("macs_effectual") and "utilization" in report:
        report["bound_fraction"] = report["speedup_vs_dense"] / report["bound"]
    return report


def _sum(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums of some entries; where some are samples, with the 95 % interval of the cycles (they are independent)."""
    result = _with_fraction(summary(entries))
    words = sum(e.get("layout_words", 0) for e in entries)
    if words and result.get("cycles"):
        # as if the array waited while the streamed operand of every weight gradient passes once, by the stream's width
        beats = words // entries[0]["config"]["stream_words"]
        result["layout_words"] = words
        result["speedup_with_layout"] = result["speedup_vs_dense"] * result["cycles"] / (result["cycles"] + beats)
    sampled = [entry for entry in entries if "sample" in entry]
    if sampled:
        above = [e["sample"]["cycles_95"][1] - e["cycles"] for e in sampled]
        below = [e["cycles"] - e["sample"]["cycles_95"][0] for e in sampled]
        # chance evens out; what parts load and wait for by themselves does not
        half = sum(value**2 for value in above) ** 0.5
        apart = sum(max(0, low - high) for low, high in zip(below, above, strict=True))
        result["sampled"] = [f"{e['network']}/{e['layer']} {e['pass']}" for e in sampled]
        result["cycles_95"] = [
            max(0, math.floor(result["cycles"] - half - apart)), math.ceil(result["cycles"] + half)
        ]  # fmt: skip
    return result


def _by_pass(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    found = [(which, [e for e in entries if e["pass"] == which]) for which in PASSES]
    return [{"pass": which, **_sum(own)} for which, own in found if own]


def _totals(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Totals of all entries, by pass, and by network and its passes."""
    networks = []
    for network in dict.fromkeys(e["network"] for e in entries):
        own = [e for e in entries if e["network"] == network]
        networks.append({"network": network, **_sum(own), "passes": _by_pass(own)})
    return {**_sum(entries), "passes": _by_pass(entries), "networks": networks}
