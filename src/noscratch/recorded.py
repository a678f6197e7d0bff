"""What DVC recorded last, in short: so that recording the same again costs a look, and the next `dvc diff` no wait.

`dvc status` looks at every file once for each stage that names it, and has work to do for every folder: six seconds for
5,000 cells, too long for each `snakemake all` with nothing to do. Here it is asked only whether anything moved at all,
by what DVC itself goes by (inode, size, time of change). What moved, and whether that matters, is DVC's to say.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from noscratch.yaml_reader import read

NOTE = Path("data", ".recorded")
PIPELINE, LOCK = "dvc.yaml", "dvc.lock"
SETTINGS = ("params.yaml", PIPELINE, LOCK, ".dvcignore", ".dvc/config", ".dvc/config.local")
OBJECTS = Path(".dvc", "cache", "files", "md5")  # an object that comes or goes changes the time of its folder


def is_recorded(root: Path) -> bool:
    """Is everything that the stages name as it was at the last note?"""
    note = root / NOTE
    return note.is_file() and note.read_text(encoding="utf-8") == _state(root, None)


def note_recorded(root: Path, asked: int) -> None:
    """Note that DVC found, or made, its record that of the files as they were at `asked` (ns since the epoch).

    A file that changed since may have done so behind its back: then nothing is noted.
    """
    state = _state(root, asked)
    if state is not None:
        (root / NOTE).write_text(state, encoding="utf-8")


def _state(root: Path, since: int | None) -> str | None:
    """Digest over all that DVC looks at; None when a file other than its lock changed after `since`."""
    total = hashlib.sha256()
    for path in _paths(root):
        found = os.stat(path)
        if since is not None and found.st_mtime_ns > since and path != f"{root}/{LOCK}":
            return None
        total.update(f"{path}\0{found.st_ino} {found.st_size} {found.st_mtime_ns}\n".encode())
    for folder in sorted((root / OBJECTS).glob("*")):
        total.update(f"{folder.name} {folder.stat().st_mtime_ns}\n".encode())
    return total.hexdigest()


def _paths(root: Path) -> Iterator[str]:
    """Every file that a stage names or that lies below what it names, and the settings."""
    stages: dict[str, dict[str, Any]] = read(root / PIPELINE).data["stages"]
    lists = (stage.get(key, ()) for stage in stages.values() for key in ("deps", "outs", "metrics", "plots"))
    named = {name for each in lists for one in each for name in ([one] if isinstance(one, str) else one)}
    for name in sorted(named | set(SETTINGS)):
        path = f"{root}/{name}"
        yield from filter(os.path.isfile, [path])
        for place, folders, names in os.walk(path):
            folders[:] = sorted(folder for folder in folders if folder != "__pycache__")  # as .dvcignore has it
            yield from filter(os.path.isfile, (os.path.join(place, each) for each in sorted(names)))


def index(root: Path) -> None:
    """Have DVC list what each recorded folder holds: it keeps the list, which `dvc diff` makes at its first look.

    It takes DVC much memory: call it in a process of its own, `python -m noscratch.recorded` in the checkout.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    # Without a list, for whatever reason, `dvc diff` takes longer and is as right.
    with suppress(DvcException, OSError, sqlite3.Error), Repo(str(root)) as repo:
        data = repo.index.data["repo"]
        data.onerror = lambda *_: None
        for out in repo.index.outs:
            if out.use_cache:
                next(iter(data.ls(out.index_key[1])), None)


if __name__ == "__main__":
    index(Path.cwd())
