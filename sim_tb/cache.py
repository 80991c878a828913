"""Built simulators on disk, found by the content that they were built from."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from maskwork.gen.errors import MaskworkError

_ABANDONED = 6 * 3600.0
"""Seconds after which a build that never ended is taken for dead."""


def default_root() -> Path:
    """``MASKWORK_CACHE``, else ``maskwork`` in ``XDG_CACHE_HOME``, else in ``~/.cache``."""
    if own := os.environ.get("MASKWORK_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maskwork"


def content_key(*parts: str | bytes) -> str:
    """Key of an entry: a hash of everything that shapes it (texts, flags, versions of tools)."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode() if isinstance(part, str) else part
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()[:40]


class Cache:
    """Directory of built entries, safe for many processes at once and bounded in size.

    An entry is a directory that a builder filled; it appears whole or not at all, and never changes afterwards. The
    entries that were used longest ago are deleted when there are too many.

    Args:
        root: the directory, :func:`default_root` by default; made when needed.
        max_entries: entries that are kept.
        max_bytes: bytes that are kept.
        grace: entries used in the last ``grace`` seconds are kept anyhow, since someone may be about to open them.
    """

    def __init__(
        self, root: Path | None = None, *, max_entries: int = 200, max_bytes: int = 1 << 30, grace: float = 600.0
    ):
        self.root = Path(root) if root is not None else default_root()
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.grace = grace

    def entry(self, key: str, build: Callable[[Path], None]) -> Path:
        """The entry of that key, built first if it is not there.

        Args:
            key: from :func:`content_key`.
            build: fills the directory it is given; whoever asks for the same key meanwhile waits for it. It must not
                ask for another entry itself.

        Returns:
            Directory of the entry.

        Raises:
            MaskworkError: if the cache cannot be written, and whatever ``build`` raises (nothing is stored then).
        """
        target = self.root / "entries" / key
        if self._touch(target):
            return target
        try:
            with self._lock(key):
                if self._touch(target):
                    return target
                temporary = Path(tempfile.mkdtemp(prefix=f"{key[:12]}-", dir=self._folder("building")))
                try:
                    build(temporary)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(temporary, target)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            raise MaskworkError(
                f"{self.root}: cannot be used as a cache ({error.strerror or error}); "
                "set MASKWORK_CACHE to a writable directory"
            ) from None
        self.prune()
        return target

    def prune(self) -> int:
        """Delete what was used longest ago, down to the bounds, and what dead builders left.

        Returns:
            Number of entries deleted.
        """
        now = time.time()
        for left in self._children("building"):
            if now - _modified(left) > _ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
        entries = sorted(((_modified(path), path) for path in self._children("entries")), reverse=True)
        deleted = 0
        count = size = 0
        for modified, path in entries:
            count += 1
            size += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            if (count > self.max_entries or size > self.max_bytes) and now - modified > self.grace:
                shutil.rmtree(path, ignore_errors=True)
                deleted += 1
        return deleted

    def _touch(self, path: Path) -> bool:
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        except OSError:
            return path.is_dir()  # a cache that this user can only read is still of use
        return True

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _children(self, name: str) -> list[Path]:
        try:
            return list((self.root / name).iterdir())
        except OSError:
            return []

    @contextlib.contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        # one of 65,536 files, never deleted: keys that share one wait for each other, which does no harm, but a
        # board's bitstream takes half an hour (of 256 files two builds did share one)
        with open(self._folder("locks") / key[:4], "a", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
