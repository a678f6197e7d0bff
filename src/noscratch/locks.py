"""One run at a time in a checkout: a lock that dies with its holder, however it dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from noscratch.errors import NoscratchError

# Set for the children of a holder (dvc, snakemake): they work under its lock.
HELD = "NOSCRATCH_LOCK_HELD"


@contextmanager
def only_run(data: Path) -> Iterator[None]:
    """Hold the checkout's lock; raises NoscratchError at once when a living process has it."""
    if HELD in os.environ:
        yield
        return
    data.mkdir(parents=True, exist_ok=True)
    lock = os.open(data / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 32).decode().strip()
            raise NoscratchError(
                f"One run at a time works in a checkout; process {holder or 'unknown'} is at it. Wait for it or "
                f"stop it, then run the same command again."
            ) from None
        os.truncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        os.environ[HELD] = str(os.getpid())
        try:
            yield
        finally:
            del os.environ[HELD]
    finally:
        os.close(lock)
