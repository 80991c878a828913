"""Words and buses inside a cluster, shared by the components on both of their ends."""

from typing import Any

from amaranth import *
from amaranth.lib import data, enum
from maskwork.gen.config import CHUNK, Config

NO_CHECK: dict[str, Any] = {"no_rw_check": 1}
"""Memory attribute: no address is read while it is written, so synthesis needs no collision logic."""


class WordKind(enum.Enum, shape=2):
    """Kinds of head words in a lane's FIFO; value words follow a CHUNK, row and mask words a START."""

    CHUNK = 0
    START = 1
    END = 2


def clog2(count: int) -> int:
    """Bits of an index below ``count``, at least 1."""
    return max(1, (count - 1).bit_length())


def chunk_layout(config: Config) -> data.StructLayout:
    """Head of a chunk in a lane's FIFO: its bitmap, its elements after the first (``more``), and k of its element 0."""
    return data.StructLayout({"bitmap": CHUNK, "more": clog2(CHUNK), "k": config.k_width, "kind": WordKind})


def record_layout(config: Config) -> data.StructLayout:
    """Head of a chunk in the activation buffer; ``number`` is the chunk's in its segment."""
    return data.StructLayout({"bitmap": CHUNK, "more": clog2(CHUNK), "number": clog2(config.k_depth // CHUNK)})


def record_width(config: Config) -> int:
    """Bits of an activation-buffer word: a chunk's head or its values."""
    return max(record_layout(config).size, config.fetch_width * config.a_width)


def segment_words(config: Config) -> int:
    """Most words that a segment takes in the activation buffer."""
    return min(config.a_depth, config.k_depth // CHUNK * (1 + CHUNK // config.fetch_width))


def directory_layout(config: Config) -> data.StructLayout:
    """A segment in the activation buffer's directory: its first word and number of words."""
    return data.StructLayout({"start": clog2(config.a_depth), "words": segment_words(config).bit_length()})


def word_width(config: Config) -> int:
    """Bits of a lane-FIFO word: what is in the activation buffer, a START word or a word of the C mask."""
    return max(chunk_layout(config).size, record_width(config), mask_width(config))


def mask_width(config: Config) -> int:
    """Bits that are used of each 32-bit word of a row's C mask."""
    return min(32, config.tile_columns)


def ring_words(config: Config) -> int:
    """Words in the ring of one context of a lane."""
    return config.fifo_depth // config.rows_in_flight


def ring_pointers(config: Config) -> data.ArrayLayout:
    """A pointer for each ring of a lane, modulo twice its words."""
    return data.ArrayLayout(range(2 * ring_words(config)), config.rows_in_flight)


def start_layout(config: Config) -> data.StructLayout:
    """First word of a row; then come a word with the row number and the words of its C mask. ``share`` says to lanes
    with shared weights (``weight_lanes``) that theirs are rows of their own.
    """
    share = 1 if config.weight_lanes > 1 else 0
    pad = chunk_layout(config).size - 2 - row_meta_layout(config).size - share
    return data.StructLayout({**row_meta_layout(config).members, "share": share, "pad": pad, "kind": WordKind})


def row_meta_layout(config: Config) -> data.StructLayout:
    """What a lane remembers of a row's START word: its low bits. ``slot`` is that of the partial sums."""
    return data.StructLayout({"tag": 8, "slot": clog2(config.psum_rows), "bank": 1, "first": 1, "final": 1, "post": 1})


def b_write_layout(config: Config) -> data.StructLayout:
    """Weight bus from the loader to the lanes: ``load_slots`` slots of every PE of a lane, or a row's masks.

    ``lanes`` selects lanes of the cluster. ``slot`` is the number of the first / load_slots; ``values`` and
    ``enable`` hold an entry for each of the columns, in their order: all PEs' first slot, then their second, ...
    """
    columns = config.pes_per_lane * config.load_slots
    members = {
        "lanes": config.lanes_per_cluster,
        "k": config.k_width + 1,
        "slot": range(config.slots // config.load_slots),
        "enable": columns,
        "values": data.ArrayLayout(signed(config.b_width), columns),
    }
    if "b" in config.skip:
        members |= {"mask_we": 1, "mask": config.tile_columns}
    if not set("bc") & set(config.skip):
        members |= {"columns_we": 1, "columns_grow": 1, "last_slot": range(config.slots)}
    return data.StructLayout(members)


def a_write_layout(config: Config) -> data.StructLayout:
    """Activation bus from the loader to the clusters: buffer words, and with or after the last the end of a segment."""
    return data.StructLayout({"bank": 1, "start": 1, "append": 1, "we": 1, "end": 1, "word": record_width(config)})


def c_write_layout(config: Config) -> data.StructLayout:
    """C-mask bus from the loader to the clusters: words in order."""
    return data.StructLayout({"bank": 1, "start": 1, "append": 1, "we": 1, "word": mask_width(config)})


def counts_layout(pes: int) -> data.StructLayout:
    """PEs by what they did in one cycle, in the order in which reasons are charged."""
    width = pes.bit_length()
    reasons = ("multiply", "lookup", "fetch", "imbalance", "drain", "load", "dispatch", "idle")
    return data.StructLayout(dict.fromkeys(reasons, width))
