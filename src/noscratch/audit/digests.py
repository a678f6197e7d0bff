"""Digests of many files at once: threads (hashlib lets go of the interpreter), every inode read once per algorithm."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK = 1 << 20  # bytes read at a time; large enough that threads seldom wait for the interpreter


class Digests:
    """A cache of digests. Hard links (store, view, DVC's cache) share an inode and are read once."""

    def __init__(self, threads: int | None = None) -> None:
        """`threads` is how many files are read at once; one per processor unless stated."""
        self.threads = threads or os.cpu_count() or 1
        self.bytes_read, self.seconds = 0, 0.0
        self._known: dict[tuple[str, int, int], str] = {}

    def of(self, paths: Iterable[Path], algorithm: str = "sha256") -> dict[Path, str]:
        """The hexadecimal digest of each file; `algorithm` is one of hashlib's names."""
        wanted = list(dict.fromkeys(paths))
        stats = {path: path.stat() for path in wanted}
        inodes = {path: (algorithm, stat.st_dev, stat.st_ino) for path, stat in stats.items()}
        first = {inode: path for path, inode in reversed(inodes.items()) if inode not in self._known}
        # The largest first, so that no thread begins a long file when the others are through.
        order = sorted(first.items(), key=lambda item: -stats[item[1]].st_size)
        started = time.perf_counter()
        with ThreadPoolExecutor(self.threads) as pool:
            for (inode, path), digest in zip(
                order, pool.map(lambda item: _digest(item[1], algorithm), order), strict=True
            ):
                self._known[inode] = digest
                self.bytes_read += stats[path].st_size
        self.seconds += time.perf_counter() - started
        return {path: self._known[inode] for path, inode in inodes.items()}

    def one(self, path: Path, algorithm: str = "sha256") -> str:
        """The digest of one file."""
        return self.of([path], algorithm)[path]


def _digest(path: Path, algorithm: str) -> str:
    # DVC's md5 and git's sha1 name files here; nothing is trusted because of them alone.
    total = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb", buffering=0) as file:
        if algorithm == "sha1":  # git hashes a blob behind a header
            total.update(f"blob {os.fstat(file.fileno()).st_size}\0".encode())
        buffer = memoryview(bytearray(BLOCK))
        while count := file.readinto(buffer):
            total.update(buffer[:count])
    return total.hexdigest()
