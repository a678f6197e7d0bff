"""Who works here: locks that die with their holder, however it dies, and the processes that a process has started."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from noscratch.errors import NoscratchError

# Set for the children of a holder (dvc, snakemake): they work under its lock.
HELD = "NOSCRATCH_LOCK_HELD"


@contextmanager
def hold(path: Path, rule: str) -> Iterator[None]:
    """Hold the lock file `path`; raises NoscratchError at once, with `rule`, when a living process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 200).decode().strip()
            os.close(lock)
            raise NoscratchError(
                f"{rule}; process {holder or 'unknown'} is at it. Wait for it or stop it, then run the same command "
                "again."
            ) from None
        if is_at(lock, path):
            break
        os.close(lock)  # its last holder has removed it meanwhile
    try:
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def is_at(descriptor: int, path: Path) -> bool:
    """Is the open file still the one of this name?"""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def only_run(data: Path) -> Iterator[None]:
    """Hold the checkout's lock; raises NoscratchError at once when a living process has it."""
    if HELD in os.environ:
        yield
        return
    with hold(data / ".lock", "One run at a time works in a checkout"):
        os.environ[HELD] = str(os.getpid())
        try:
            yield
        finally:
            del os.environ[HELD]


def descendants(pid: int) -> list[int]:
    """The children of a process, their children and so on."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = list(children.get(pid, []))
    for child in found:  # grows as it goes
        found += children.get(child, [])
    return found
