"""Caches of built simulators that start empty."""

from pathlib import Path

from maskwork.sim_tb.cache import Cache


def empty_cache(root: Path) -> Cache:
    """A cache without models; Verilator's own library, which takes longest, is that of the cache that all share."""
    entries = root / "entries"
    entries.mkdir(parents=True)
    for shared in (Cache().root / "entries").glob("*/verilated.o"):
        (entries / shared.parent.name).symlink_to(shared.parent)
    return Cache(root)
