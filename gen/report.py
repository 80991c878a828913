"""Reports: what a run cost, as one plain dictionary (docs/formats.md lists the keys)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from maskwork.gen.config import Config
from maskwork.gen.errors import DeviceError

REASONS = ("effectual", "ineffectual", "lookup", "fetch", "imbalance", "drain", "load", "dispatch", "idle")
"""What a PE did in a cycle, in the order in which reasons are charged."""

_SUMMED = ("cycles", "compute_cycles", "macs_dense", "macs_effectual", "words_in", "words_out")


def pe_cycles(config: Config, counters: Mapping[str, int], effectual: int) -> dict[str, int]:
    """PE-cycles by reason; they sum to cycles * pes.

    Args:
        config: the accelerator.
        counters: of the hardware, which counts effectual and ineffectual multiplies together.
        effectual: products whose factors are in their effective masks and whose result is wanted.

    Raises:
        DeviceError: if the counters contradict each other, or the masks.
    """
    result = {"effectual": effectual, "ineffectual": counters["multiply"] - effectual}
    result.update({name: counters[name] for name in REASONS[2:]})
    if result["ineffectual"] < 0 or (config.skip == "abc" and result["ineffectual"]):
        raise DeviceError(
            f"the accelerator counted {counters['multiply']} multiplies for {effectual} effectual products"
        )
    if sum(result.values()) != counters["cycles"] * config.pes:
        raise DeviceError(
            f"the counters sum to {sum(result.values())} PE-cycles, not {counters['cycles']} * {config.pes}"
        )
    return result


def _ratios(report: dict[str, Any]) -> dict[str, Any]:
    """Add the figures that follow from others, wherever they have a meaning."""
    cycles, pes, dense, effectual = (report.get(k) for k in ("cycles", "pes", "macs_dense", "macs_effectual"))
    if cycles and pes and dense is not None and effectual is not None:
        report["utilization"] = effectual / (cycles * pes)
        report["speedup_vs_dense"] = dense / pes / cycles
    if dense is not None and effectual:
        report["bound"] = dense / effectual
    return report


def make_report(
    target: str,
    config: Config,
    macs: Mapping[str, int],
    *,
    words_in: int,
    words_out: int,
    seconds: float,
    counters: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The report of one product.

    Args:
        target: where it ran.
        config: the accelerator.
        macs: ``macs_dense`` and ``macs_effectual``, as :func:`maskwork.sim_tb.golden.macs` counts them.
        words_in: 32-bit words of the command stream.
        words_out: 32-bit words of the reply stream.
        seconds: wall clock.
        counters: of the hardware; without them nothing about cycles is reported.

    Raises:
        DeviceError: if the counters contradict each other, or the masks.
    """
    report: dict[str, Any] = {"target": target, "config": config.to_dict(), "pes": config.pes}
    report.update({name: int(macs[name]) for name in ("macs_dense", "macs_effectual")})
    if counters is not None:
        report["cycles"] = counters["cycles"]
        report["compute_cycles"] = counters["compute_cycles"]
        report["pe_cycles"] = pe_cycles(config, counters, report["macs_effectual"])
    report |= {"words_in": words_in, "words_out": words_out, "seconds": seconds}
    return _ratios(report)


def total_report(layers: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, Any]:
    """The report of several products run one after the other, with theirs in ``layers``.

    Args:
        layers: reports of :func:`make_report` of one target and configuration, each with ``layer``, ``pass`` and
            whatever else describes it.
        seconds: wall clock of the whole.
    """
    first = layers[0]
    report: dict[str, Any] = {key: first[key] for key in ("target", "config", "pes")}
    report.update(summary(layers))
    report["seconds"] = seconds
    report["layers"] = [{k: v for k, v in layer.items() if k not in ("config", "target", "pes")} for layer in layers]
    return report


def link_report(device: Any) -> dict[str, Any]:
    """``link``: statistics of the link to a board (:class:`maskwork.fpga.link.line.LinkStatistics`), or nothing."""
    statistics = getattr(device, "link", None)
    return {} if statistics is None else {"link": dataclasses.asdict(statistics)}


def link_line(report: Mapping[str, Any]) -> str:
    """What the link lost and repeated, in words; "" without one."""
    if "link" not in report:
        return ""
    link = report["link"]
    dropped = link["answers_dropped"] + link["board_dropped"]
    return (f"link: {link['words_sent']:,} words sent, {link['words_received']:,} received; {dropped} damaged frames "
            f"noticed, {link['words_repeated']:,} words repeated")  # fmt: skip


def summary(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums over reports of one configuration, and the figures that follow from them.

    Args:
        layers: as for :func:`total_report`.
    """
    result: dict[str, Any] = {}
    for key in _SUMMED:
        if all(key in layer for layer in layers):
            result[key] = sum(layer[key] for layer in layers)
    if all("pe_cycles" in layer for layer in layers):
        result["pe_cycles"] = {name: sum(layer["pe_cycles"][name] for layer in layers) for name in REASONS}
    pes = layers[0]["pes"]
    ratios = _ratios({"pes": pes, **result})
    return {key: value for key, value in ratios.items() if key != "pes"}
