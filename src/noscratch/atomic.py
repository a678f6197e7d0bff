"""Files and folders that come into being whole: built under a temporary name that says whose it is, then renamed.

Imports nothing of the package, so that whatever uses it depends on no more code than it did.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
from pathlib import Path

PREFIX = ".tmp-"
ASIDE = "aside-"


def temporary_in(folder: Path, stem: str) -> Path:
    """A name that no other process uses, on this host or on another that shares the disk; it says whose it is."""
    return folder / f"{PREFIX}{stem}-{_host()}.{os.getpid()}.{secrets.token_hex(4)}"


def is_left(name: str) -> bool:
    """Is the maker of a temporary name dead for certain? Of another host's processes that cannot be seen here."""
    host, _, rest = name.rpartition("-")[2].partition(".")
    return name.startswith(PREFIX) and host == _host() and not Path(f"/proc/{rest.partition('.')[0]}").exists()


def remove_left(folder: Path, stem: str) -> None:
    """Remove what killed processes left of `stem` in a folder, and of what `put` set aside for it."""
    stems = f"{PREFIX}{stem}", f"{PREFIX}{ASIDE}{stem}"
    for path in folder.glob(f"{PREFIX}*"):
        if path.name.rpartition("-")[0] in stems and is_left(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def put(folder: Path, target: Path) -> None:
    """Give a finished folder the name `target`, on the same disk; what stood there until now is removed."""
    aside = temporary_in(folder.parent, f"{ASIDE}{target.name}")
    if target.exists():
        os.rename(target, aside)
    os.rename(folder, target)
    shutil.rmtree(aside, ignore_errors=True)


def write(path: Path, content: bytes) -> None:
    """Write a file, its folder too; a failure leaves what stood there and nothing else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_in(path.parent, path.name)
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", platform.node())
