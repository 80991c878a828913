"""Networks of the literature, compiled: cycles by layer, compile time, memory, and distance from ONNX's reference."""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskwork.gen.config import preset
from maskwork.gen.errors import MaskworkError
from maskwork.gen.network import zoo
from maskwork.gen.network.compile import compile_model
from maskwork.gen.network.reference import deviations, difference, reference_values
from maskwork.sim_tb.device import open_device

_KEYS = ("layer", "operation", "cycles", "utilization", "speedup_vs_dense", "bound", "words_in", "words_out")


def measure(name: str, config_name: str, size: int, density: float, seed: int, compare: bool) -> dict[str, Any]:
    """Compile a network, run it on the cycle model, and compare every step with ONNX's reference.

    Args:
        name: one of :data:`maskwork.gen.network.zoo.NETWORKS`.
        config_name: a preset.
        size: of the images.
        density: of the weights.
        seed: of weights and image.
        compare: run the reference as well.
    """
    model = zoo.NETWORKS[name](size, density, seed)
    inputs = zoo.random_images(model, seed)
    config = preset(config_name)
    compiled = compile_model(model, config)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = compiled.run(inputs, "cycle")
    result: dict[str, Any] = {
        "network": name, "size": size, "density": density, "seed": seed, "preset": config_name, "pes": config.pes,
        "steps": len(compiled.steps), "on_host": [step.name for step in compiled.steps if step.where == "host"],
        "compile_seconds": round(compiled.seconds, 1), "compile_peak_mib": round(peak / 1024),
        **{key: done.report[key] for key in ("cycles", "macs_dense", "macs_effectual", "utilization",
                                             "speedup_vs_dense", "bound", "words_in", "words_out", "pe_cycles")},
        "layers": [{key: layer[key] for key in _KEYS if key in layer} for layer in done.report["layers"]],
    }  # fmt: skip
    if compare:
        known = reference_values(compiled, inputs)
        with open_device("golden", config) as device:
            found = deviations(compiled, inputs, device, known=known)
        integers = [entry for entry in found if isinstance(entry["largest"], int)]
        result["reference"] = {
            "elements": sum(entry["elements"] for entry in integers),
            "different": sum(entry["different"] for entry in integers),
            "ties": sum(entry["ties"] for entry in integers),
            "largest": max(entry["largest"] for entry in integers),
            "logits": difference(done.outputs["logits"], known["logits"]),
        }
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the networks and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m maskwork.gen.network.measure", description=__doc__)
    parser.add_argument("networks", nargs="*", default=sorted(zoo.NETWORKS), help="which (default: all)")
    parser.add_argument("--preset", default="ulx3s-85f")
    parser.add_argument("--size", type=int, default=224, help="of the images (default: %(default)s)")
    parser.add_argument("--density", type=float, default=0.3, help="of the weights (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-reference", action="store_true", help="leave the comparison out")
    parser.add_argument("--write", metavar="FILE.json", help="write the figures")
    options = parser.parse_args(arguments)
    found = []
    for name in options.networks:
        if name not in zoo.NETWORKS:
            print(f"unknown network {name!r}; networks: {', '.join(sorted(zoo.NETWORKS))}", file=sys.stderr)
            return 2
        try:
            found.append(measure(name, options.preset, options.size, options.density, options.seed,
                                 not options.no_reference))  # fmt: skip
        except MaskworkError as error:
            print(error, file=sys.stderr)
            return 2
        one = found[-1]
        fast = f"{one['speedup_vs_dense']:.2f} x dense of {one['bound']:.2f}"
        compiled = f"{one['compile_seconds']} s and {one['compile_peak_mib']} MiB"
        print(f"{name}: {one['cycles']} cycles, {fast}, compiled in {compiled}")
        if "reference" in one:
            print(f"  against ONNX's reference: {one['reference']}")
    if options.write:
        Path(options.write).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
