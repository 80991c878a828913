"""The Python interface, as ``import maskwork as mw`` shows it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from maskwork.gen.config import Config
from maskwork.gen.matmul import Result, as_config, matmul

if TYPE_CHECKING:
    import onnx
    from maskwork.gen.generate import Generated
    from maskwork.gen.network.calibration import Samples
    from maskwork.gen.network.compile import Compiled, Outcome
    from maskwork.gen.workload import Layer
    from maskwork.sim_tb.device import Device

__all__ = ["Result", "bench", "compile", "generate", "matmul", "open", "quantise", "run"]


def bench(
    workload: str | os.PathLike[str] | Sequence[Layer],
    config: Config | str | None = None,
    *,
    passes: Iterable[str] | None = None,
    batch: int | None = None,
    masks: str = "bernoulli",
    masks_from: Iterable[str | os.PathLike[str]] = (),
    seed: int = 1,
    layers: Iterable[str] | None = None,
    skips: Iterable[str] | None = None,
    sample: int = 4_000_000_000,
    requantise: Iterable[str] = (),
    without: Iterable[str] = (),
    curves: bool = False,
    jobs: int = 1,
) -> dict[str, Any]:
    """Cycles, utilisation and speed-up of a workload's layers, on the cycle model.

    Args:
        workload: a CSV file's name, or layers (:class:`maskwork.gen.workload.Layer`).
        config: a configuration, a preset's name, or None for "small".
        passes: of "forward", "input_grad" and "weight_grad"; None runs those that each layer has.
        batch: images, instead of the workload's.
        masks: "bernoulli" (every element on its own) or "correlated".
        masks_from: ``.npz`` files of masks (bool) or tensors (nonzero is present), keys ``LAYER.input`` and so on:
            activations (N, H, W, C), weights (kh, kw, cin / groups, cout).
        seed: of masks and samples.
        layers: names or patterns ("conv*", "network/layer"); None runs all.
        skips: values of ``skip`` to compare; None compares none.
        sample: effectual multiplies of one pass of a layer above which a seeded sample of about so many is simulated
            and scaled, with a 95 % confidence interval; 0 never samples.
        requantise: passes whose results are requantised to 8 bits before they leave.
        without: what to leave out, to see what it brings: of "dealing", "multicast", "operand" and "trials".
        curves: measure utilisation against density as well.
        jobs: processes at most.

    Returns:
        The report, as in docs/bench.md.

    Raises:
        MaskworkError: for a file, layer, pass or mask that cannot be used, or a layer that the configuration cannot
            run.
    """
    from maskwork.gen.bench import Bench

    return Bench(
        workload, as_config(config), passes=passes, batch=batch, masks=masks, masks_from=masks_from, seed=seed,
        layers=layers, skips=skips, sample=sample, requantise=requantise, without=without, curves=curves,
        jobs=jobs,
    ).run()  # fmt: skip


def compile(
    model: str | os.PathLike[str] | onnx.ModelProto,
    config: Config | str | None = None,
    *,
    strict: bool = False,
    shapes: Mapping[str, Sequence[int]] | None = None,
    densities: Mapping[str, float] | None = None,
) -> Compiled:
    """Compile a quantised ONNX model (QLinear, Integer or QDQ form) for a configuration.

    Args:
        model: file name, or the model itself.
        config: a configuration, a preset's name, or None for "small".
        strict: refuse a model of which the host has to compute more than quantisation and shapes.
        shapes: shapes of inputs that the file leaves open, by input name.
        densities: expected part of nonzeros (q - zero_point) of integer tensors by name, for the choice of tiles.

    Returns:
        The network: ``run(inputs, target=...)`` runs it, ``placement`` tells what runs where.

    Raises:
        MaskworkError: for a model that cannot be read or run; names the node.
    """
    from maskwork.gen.network.compile import compile_model

    return compile_model(model, config, strict=strict, shapes=shapes, densities=densities)


def run(
    model: str | os.PathLike[str] | onnx.ModelProto,
    inputs: Mapping[str, Any],
    config: Config | str | None = None,
    *,
    target: str = "golden",
    strict: bool = False,
    **options: Any,
) -> Outcome:
    """Compile a quantised ONNX model and run it.

    Args:
        model: as for :func:`compile`.
        inputs: arrays by the inputs' ONNX names, of the model's dtypes and shapes.
        config: as for :func:`compile`.
        target: as for :func:`open`.
        strict: as for :func:`compile`.
        **options: as for :func:`open`.

    Returns:
        ``outputs`` by ONNX name, ``report`` as in docs/formats.md, and ``values``: every tensor on the way.

    Raises:
        MaskworkError: for a model or inputs that cannot be used.
        DeviceError: if the device fails.
    """
    return compile(model, config, strict=strict).run(inputs, target, **options)


def quantise(
    model: str | os.PathLike[str] | onnx.ModelProto,
    samples: Samples,
    *,
    density: float | None = None,
    n_of_m: tuple[int, int] | None = None,
    per_channel: bool = True,
    skip: Collection[str] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
    activations: str = "uint8",
) -> onnx.ModelProto:
    """Prune and quantise a float ONNX model for :func:`compile`: int8 weights, activations by their ranges on samples.

    Needs onnxruntime (the extra ``onnx``). Weights become int8, symmetric: pruned ones are 0.

    Args:
        model: file name, or the model itself: float32, with Conv, ConvTranspose, Gemm or MatMul.
        samples: for calibration: arrays by input name with the samples along the first axis (in place of the batch,
            or in front of the input's own axes), or an iterable of whole inputs by name.
        density: part of each layer's weights that stays, the largest by magnitude; None keeps all.
        n_of_m: (n, m): of every m weights along the input channels the n largest stay.
        per_channel: weights have a scale for each output channel; else one a tensor.
        skip: names of nodes whose weights are not pruned.
        shapes: shapes of inputs that the file leaves open, by input name; what is not given stays open.
        activations: "uint8" or "int8".

    Returns:
        The model in QDQ form.

    Raises:
        MaskworkError: for a model, samples or options that cannot be used, or if onnxruntime is missing.
    """
    from maskwork.gen.network.quantise import quantise as quantise_model

    return quantise_model(
        model, samples, density=density, n_of_m=n_of_m, per_channel=per_channel, skip=skip, shapes=shapes,
        activations=activations,
    )  # fmt: skip


def generate(
    config: Config | str | None = None, output_dir: str | os.PathLike[str] | None = None, *, verilog: bool = False
) -> Generated:
    """Generate the accelerator: synthesizable SystemVerilog, and a manifest that describes it.

    Args:
        config: a configuration, a preset's name, or None for "small".
        output_dir: directory for ``NAME.sv`` (or ``NAME.v``) and ``NAME.json``, made if missing; None writes nothing.
        verilog: plain Verilog-2005 instead.

    Returns:
        Text, manifest, top module's name and the paths written; equal configurations give equal bytes.

    Raises:
        MaskworkError: if the configuration cannot be built or the directory cannot be written.
    """
    from maskwork.gen.generate import generate as generate_netlist

    return generate_netlist(as_config(config), output_dir, verilog=verilog)


def open(
    target: str, config: Config | str | None = None, **options: Any
) -> AbstractContextManager[Device]:
    """Open a device that executes command words; use it in a ``with`` statement.

    Args:
        target: "golden" (NumPy model), "cycle" (its results, with the netlist's exact cycles), "rtl" (the generated
            netlist, simulated) or "serial:PORT" (a board on that port).
        config: a configuration, a preset's name, or None for "small"; a board must hold it.
        **options: of target "rtl": ``simulator`` ("verilator" or "icarus"), ``trace`` (file for waveforms, VCD),
            ``in_stall`` and ``out_stall`` (probabilities of back-pressure), ``seed``. Others take none.

    Returns:
        Context manager of a :class:`~maskwork.sim_tb.device.Device`: ``execute(words, last)`` takes uint32
        ``(beats * stream_words,)`` and bool ``(beats,)`` and returns the replies in the same form.

    Raises:
        MaskworkValueError: for an unknown target; the message lists those there are.
        MaskworkError: if the device cannot be opened, such as a missing simulator.
    """
    from maskwork.sim_tb.device import open_device

    return open_device(target, as_config(config), **options)
