"""What the parts of the loader share: a LOAD packet's fields, and how a part is offered beats."""

from amaranth import *
from amaranth.lib import data, enum
from amaranth.lib.wiring import In, Out
from maskwork.gen.config import Config


class Load(enum.Enum, shape=2):
    """Which buffer a LOAD packet fills."""

    A = 0
    B = 1
    C = 2
    P = 3


class LoadEnd(enum.Enum, shape=2):
    """How a load ended."""

    GOOD = 0
    SHORT = 1
    LONG = 2


def load_layout(config: Config) -> data.StructLayout:
    """A LOAD packet's fields, checked by the sequencer."""
    return data.StructLayout(
        {
            "kind": Load,
            "bank": 1,
            "append": 1,
            "dense": 1,
            "count": range(max(config.a_segments, config.k_depth, config.c_rows) + 1),  # segments, rows
            "length": range(max(config.k_depth, config.tile_columns) + 1),  # elements of a segment, columns
            "k": config.k_width,
            "lanes": config.lanes_per_cluster,
            "low": signed(16),
            "high": signed(16),
            **({"seed": 32} if config.stochastic else {}),  # 0: to the nearest
        }
    )


def beats_for(config: Config, bits: Value) -> Value:
    """Beats that a bitmap of so many bits takes, minus one."""
    return (bits - 1)[: len(bits)] >> (config.beat_bits - 1).bit_length()


def part_members(config: Config):
    """Ports of every part of the loader: the packet, beats by ``want`` (taken when also valid), start and done."""
    return {
        "load": In(load_layout(config)),
        "start": In(1),
        "beat": In(config.beat_bits),
        "beat_valid": In(1),
        "want": Out(1),
        "done": Out(1),
    }


def bitmap_members(config: Config, gearbox):
    """Further ports of the parts whose rows are bitmaps and values.

    ``free``: the values of the row before are all in the gearbox, or leave for it now: the next row's first beat may
    be taken. ``inside``: the beats to come belong to a bitmap that was begun. ``room``: a dense row may be announced,
    though the values of the one before are still coming. ``announce``: it is. ``empty``: what was announced was used.
    ``given``, ``values``: the gearbox; ``need``: of it, in the next cycle.
    """
    return {
        **part_members(config),
        "free": In(1),
        "inside": Out(1),
        "room": In(1),
        "announce": Out(1),
        "empty": Out(1),
        "given": In(1),
        "values": In(gearbox.values.shape()),
        "need": Out(gearbox.need.shape()),
    }
