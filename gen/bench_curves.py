"""Utilisation against density: one layer's shape with random masks on A, on A and B, on A and C, and on all three."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import numpy as np
from maskwork.gen.ablate import ablated
from maskwork.gen.bench_jobs import run_all
from maskwork.gen.bench_sample import measure
from maskwork.gen.config import Config
from maskwork.gen.program import Program
from maskwork.gen.report import make_report
from maskwork.gen.works import ConvWork

DENSITIES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
CURVES = ("a", "ab", "ac", "abc")
"""Operands that are masked in each curve, all with the same density."""

STEPS = len(CURVES)

_SHAPE, _WEIGHTS = (1, 28, 28, 64), (3, 3, 64, 64)


def density_curves(
    config: Config, seed: int = 1, step: Callable[[str], None] = lambda text: None, jobs: int = 1
) -> dict[str, Any]:
    """Utilisation by density of a 3x3 convolution of 28x28x64 with 64 outputs, Bernoulli masks. Tiles are chosen by
    expected cycles alone: trials of 48 products would take longer than they.

    Args:
        config: the accelerator.
        seed: of the masks.
        step: told each curve that is done.
        jobs: processes at most.

    Returns:
        ``layer`` (what was measured) and ``points``: operands masked, density of each, utilisation, speed-up.
    """
    curves = run_all(
        partial(_curve, config, seed, DENSITIES), len(CURVES), jobs, lambda n: step(f"densities of {CURVES[n]} done")
    )
    points = [point for curve in curves for point in curve]
    return {"layer": "3x3 convolution, 28x28, 64 -> 64 channels, Bernoulli masks", "points": points}


def _curve(config: Config, seed: int, densities: Sequence[float], number: int) -> list[dict[str, Any]]:
    curve, points = CURVES[number], []
    programs: dict[Hashable, tuple[int, Program]] = {}
    for density in densities:
        rng = np.random.default_rng([seed, number, round(density * 1000)])
        shapes = {"a": _SHAPE, "b": _WEIGHTS, "c": (*_SHAPE[:3], _WEIGHTS[3])}
        masks = {name: rng.random(shapes[name]) < density if name in curve and density < 1 else None for name in shapes}
        work = ConvWork(_SHAPE, _WEIGHTS, masks["a"], masks["b"], masks["c"], 1, ((1, 1), (1, 1)))
        done = measure(config, ablated([work], frozenset({"trials"})), 0, [seed], programs)
        macs = {"macs_dense": done.macs_dense, "macs_effectual": done.macs_effectual}
        report = make_report("cycle", config, macs, words_in=0, words_out=0, seconds=0.0, counters=done.counters)
        points.append({"masks": curve, "density": density, "utilization": report["utilization"],
                       "speedup_vs_dense": report["speedup_vs_dense"]})  # fmt: skip
    return points
