"""Chains of RUNs: K tiles whose sums stay in the PEs' accumulators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from maskwork.gen.config import Config


class Chains:
    """Follows the chains of RUNs of every cluster, from one with ``first`` to one with ``final``.

    With ``psum_in_pe`` a chain's sums lie where the next rows are summed up: it has to end, for all its rows, before
    another RUN begins. The hardware does not check this.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._open: dict[int, tuple[int, int]] = {}  # by cluster: rows and share of the chain's RUNs

    def run(self, f: Mapping[str, int], clusters: Iterable[int]) -> str | None:
        """Follow a legal RUN; answer what is wrong with it."""
        if not self._config.psum_in_pe:
            return None
        message = None
        for cluster in clusters:
            rows, share = self._open.pop(cluster, (0, 0))
            if rows and f["first"]:
                message = f"a final RUN must end the K tiles of cluster {cluster} before one with first (psum_in_pe)"
            elif rows and (rows, share) != (f["rows"], f["share"]):
                message = (
                    f"rows and share must be those of the K tiles before, {rows} and {share} (psum_in_pe), "
                    f"not {f['rows']} and {f['share']}"
                )
            if not f["final"]:
                self._open[cluster] = (f["rows"], f["share"])
        return message
