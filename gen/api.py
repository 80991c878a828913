"""The Python interface, as ``import maskwork as mw`` shows it."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from maskwork.gen.config import Config
from maskwork.gen.matmul import Result, as_config, matmul

if TYPE_CHECKING:
    from maskwork.gen.generate import Generated
    from maskwork.sim_tb.device import GoldenDevice, RtlDevice

__all__ = ["Result", "generate", "matmul", "open"]


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
) -> AbstractContextManager[GoldenDevice | RtlDevice]:
    """Open a device that executes command words; use it in a ``with`` statement.

    Args:
        target: "golden" (NumPy model) or "rtl" (the generated netlist, simulated).
        config: a configuration, a preset's name, or None for "small".
        **options: of target "rtl": ``simulator`` ("verilator" or "icarus"), ``trace`` (file for waveforms, VCD),
            ``in_stall`` and ``out_stall`` (probabilities of back-pressure), ``seed``.

    Returns:
        Context manager of a :class:`~maskwork.sim_tb.device.Device`: ``execute(words, last)`` takes uint32
        ``(beats * stream_words,)`` and bool ``(beats,)`` and returns the replies in the same form.

    Raises:
        MaskworkValueError: for an unknown target; the message lists those there are.
        MaskworkError: if the device cannot be opened, such as a missing simulator.
    """
    from maskwork.sim_tb.device import open_device

    return open_device(target, as_config(config), **options)
