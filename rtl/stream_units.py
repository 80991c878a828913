"""Stream units, behind one port of the sequencer: one command's payload in, the words of its reply out."""

from amaranth import *
from maskwork.gen.config import Config
from maskwork.gen.isa import Op
from maskwork.rtl.hierarchy import submodule
from maskwork.rtl.mask_unit import MaskUnit, mask_fields
from maskwork.rtl.sequencer import Sequencer
from maskwork.rtl.vector import VectorUnit, vector_fields

_SELECT = 0
"""Bit of the opcode that tells MASK from VECTOR."""


def add_stream_units(m: Module, platform, config: Config, sequencer: Sequencer):
    """Adds the vector unit and the mask unit, those that the configuration has, and connects them to the sequencer.

    No latency: the command's opcode selects.
    """
    assert Op.MASK ^ Op.VECTOR == 1 << _SELECT
    header = [sequencer.unit_header[n] for n in range(len(sequencer.unit_header))]
    both = config.vector and bool(config.blocks)
    is_mask = header[0][_SELECT]
    if config.vector:
        submodule(m, "vector", vector := VectorUnit(config), platform)
        m.d.comb += vector.command.eq(vector_fields(header))
        _connect(m, sequencer, vector, ~is_mask if both else Const(1))
    if config.blocks:
        submodule(m, "mask", mask := MaskUnit(config), platform)
        m.d.comb += [
            mask.command.eq(mask_fields(config, header)),
            mask.clear.eq(sequencer.abort),
            sequencer.unit_lacking.eq(mask.lacking),
            sequencer.unit_overflowed.eq(mask.overflowed & is_mask),
        ]
        _connect(m, sequencer, mask, is_mask if both else Const(1))


def _connect(m, sequencer, unit, selected):
    m.d.comb += [
        unit.start.eq(sequencer.unit_start & selected),
        unit.ended.eq(sequencer.unit_ended),
        unit.i.valid.eq(sequencer.unit_i.valid & selected),
        unit.i.payload.eq(sequencer.unit_i.payload),
        unit.o.ready.eq(sequencer.unit_o.ready & selected),
    ]
    with m.If(selected):
        m.d.comb += [
            sequencer.unit_i.ready.eq(unit.i.ready),
            sequencer.unit_o.valid.eq(unit.o.valid),
            sequencer.unit_o.payload.eq(unit.o.payload),
            sequencer.unit_end.eq(unit.end),
        ]
