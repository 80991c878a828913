"""Chains of RUNs: K tiles whose sums stay in the PEs' accumulators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from maskwork.gen.config import Config


class Chains:
    """Follows the chains of RUNs of every cluster, from one with ``first`` to one with ``final``.

    With ``psum_in_pe`` a chain's sums lie where the next rows are summed up: it has to end, for all its rows, before
    another RUN begins. The rows' numbers and masks are those of the chain's first RUN, which its others have to repeat.
    The hardware does not check this.
    """

    KEPT = ("rows", "share", "columns", "row", "use_c", "c_bank", "c_row")
    """Fields that a chain's RUNs have in common (those of the C masks, if they are used)."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._open: dict[int, dict[str, int]] = {}  # by cluster: what the chain's RUNs have in common
        self._masks_lost: set[int] = set()  # clusters whose chain's C masks were overwritten

    def run(self, f: Mapping[str, int], clusters: Iterable[int]) -> str | None:
        """Follow a legal RUN; answer what is wrong with it."""
        if not self._config.psum_in_pe:
            return None
        message = None
        for cluster in clusters:
            names = self.KEPT if f["use_c"] else self.KEPT[:5]
            kept = {name: f[name] for name in names}
            before = self._open.pop(cluster, None)
            if before is not None and f["first"]:
                message = f"a final RUN must end the K tiles of cluster {cluster} before one with first (psum_in_pe)"
            elif before is not None and before != kept:
                name = next(n for n in self.KEPT if before.get(n) != kept.get(n))
                message = (
                    f"{name} must be that of the K tiles before, {before.get(name, 0)} (psum_in_pe), not "
                    f"{kept.get(name, 0)}"
                )
            elif before is not None and cluster in self._masks_lost:
                message = f"the C masks of K tiles must stay loaded to the last one (psum_in_pe), in cluster {cluster}"
            self._masks_lost.discard(cluster)
            if not f["final"]:
                self._open[cluster] = kept
        return message

    def load_c(self, bank: int, clusters: Iterable[int]) -> None:
        """Follow a legal LOAD_C."""
        for cluster in clusters:
            kept = self._open.get(cluster, {})
            if kept.get("use_c") and kept["c_bank"] == bank:
                self._masks_lost.add(cluster)
