"""The content store and the views.

data/store/<address>-<kind>-<label>/ holds one finished job: its artifacts, record.json (the same bytes on every run)
and provenance.json (what differs each time). A job is built under a temporary name and published by one rename: what
stands under its final name is complete. Entries are read-only, and nothing ever overwrites one.

data/{raw,prepared,runs} are views: real folders of hard links, under readable names, of exactly what the present plan
names. DVC versions the views and may remove or restore them; the store loses nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from noscratch.errors import NoscratchError
from noscratch.plan import VIEWS, Job, Plan

RECORD = "record.json"
PROVENANCE = "provenance.json"
# A blocked result is published for the jobs that wait on it, shown in the views, and dropped from the store: it is
# tried again.
BLOCKED = "blocked"


def sha256_of(path: Path) -> str:
    """sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write JSON with sorted keys and a final newline."""
    path.write_text(
        json.dumps(value, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a finished job."""
    return json.loads((folder / RECORD).read_text(encoding="utf-8"))


@contextmanager
def full_disk_explained(what: str) -> Iterator[None]:
    """Turn a full disk into the one error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoscratchError(
            f"{what} needs disk space and there is none left ({error.strerror}). Nothing half-written was kept: "
            f"free some space "
            "(`noscratch gc` removes what no plan names) and run the same command again."
        ) from error


class Store:
    """The finished jobs of a checkout."""

    def __init__(self, root: Path) -> None:
        """The store of the checkout at `root`; nothing is created yet."""
        self.root = root
        self.data = root / "data"
        self.folder = self.data / "store"

    def path(self, job: Job) -> Path:
        """Where a job's result lives once it is complete."""
        return self.folder / job.name

    def has(self, job: Job) -> bool:
        """Is the job's result complete (blocked counts)?"""
        return (self.path(job) / RECORD).is_file()

    @contextmanager
    def building(self, job: Job) -> Iterator[Path]:
        """An empty folder to build a job's result in; published on a clean exit, removed on any other.

        When another process published the same address meanwhile, its result stands and this one is dropped.
        """
        temporary = self.folder / f".tmp-{job.name}-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            with full_disk_explained(f"Job {job.name}"):
                yield temporary
                _seal(temporary)
                self._publish(temporary, self.path(job))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _publish(self, temporary: Path, final: Path) -> None:
        try:
            os.rename(temporary, final)  # onto nothing, or onto the empty folder that Snakemake makes beforehand
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if (final / RECORD).is_file():
                return
            # Only a log or a foreign file can stand there: a record comes with the rename of a whole folder.
            aside = self.folder / f".tmp-aside-{final.name}-{os.getpid()}"
            os.rename(final, aside)
            os.rename(temporary, final)
            shutil.rmtree(aside)
        _sync_folder(self.folder)

    def drop_blocked(self) -> list[str]:
        """Remove blocked results, so that they are tried again; returns their names."""
        dropped = []
        for sign in sorted(self.folder.glob(f"[0-9a-f]*/{BLOCKED}")):
            aside = self.folder / f".tmp-drop-{sign.parent.name}-{os.getpid()}"
            os.rename(sign.parent, aside)
            shutil.rmtree(aside)
            dropped.append(sign.parent.name)
        return dropped

    def leftovers(self) -> list[Path]:
        """What killed jobs left: temporary folders of dead processes, and final folders without a record."""
        found = [path for path in self.folder.glob(".tmp-*") if not _alive(path.name.rpartition("-")[2])]
        found += [path for path in self.folder.glob("[0-9a-f]*") if path.is_dir() and not (path / RECORD).is_file()]
        return sorted(found)

    def unnamed(self, plan: Plan) -> list[Path]:
        """Finished results that the plan does not name."""
        named = {job.name for job in plan.jobs.values()}
        return sorted(
            path for path in self.folder.glob("[0-9a-f]*") if (path / RECORD).is_file() and path.name not in named
        )


def _alive(pid: str) -> bool:
    return pid.isdigit() and Path(f"/proc/{pid}").exists()


def _seal(folder: Path) -> None:
    """Make the files read-only and durable: hard links share them with views and DVC's cache."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.chmod(0o444)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _shown(folder: Path) -> list[Path]:
    """The files of a result that a view shows: all but what differs each time."""
    return sorted(
        p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).as_posix() not in (PROVENANCE, BLOCKED)
    )


def expected(store: Store, plan: Plan, view: str) -> dict[str, Path]:
    """What a view must hold: path below the view -> file in the store. Every job of the view must be complete."""
    files = {}
    for job in plan.in_view(view):
        folder = store.path(job)
        if not store.has(job):
            raise NoscratchError(
                f"View {view} shows complete results only; {job.name} is not there. Run `snakemake --cores all {view}`."
            )
        for path in _shown(folder):
            files[f"{job.view}/{path.relative_to(folder).as_posix()}"] = path
    return files


def same_file(a: Path, b: Path) -> bool:
    """The same inode, or the same bytes."""
    if a.samefile(b):
        return True
    return a.stat().st_size == b.stat().st_size and sha256_of(a) == sha256_of(b)


def _holds(view: Path, files: Mapping[str, Path]) -> bool:
    present = {p.relative_to(view).as_posix(): p for p in view.rglob("*") if p.is_file()}
    return present.keys() == files.keys() and all(same_file(present[name], files[name]) for name in files)


def make_view(store: Store, plan: Plan, view: str) -> bool:
    """Make data/<view> show exactly the plan; returns whether anything changed. The old view stands until the new one
    is whole."""
    target = store.data / view
    files = expected(store, plan, view)
    if target.is_dir() and _holds(target, files):
        return False
    temporary = store.data / f".tmp-view-{view}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with full_disk_explained(f"View {view}"):
            temporary.mkdir(parents=True)
            for name, source in files.items():
                place = temporary / name
                place.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(source, place)
            if target.exists():
                aside = store.data / f".tmp-aside-{view}-{os.getpid()}"
                os.rename(target, aside)
                os.rename(temporary, target)
                shutil.rmtree(aside)
            else:
                os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def link_or_copy(source: Path, place: Path) -> None:
    """A hard link, or a read-only copy where the file system has none."""
    try:
        os.link(source, place)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        shutil.copyfile(source, place)
        place.chmod(0o444)


def view_differs(store: Store, plan: Plan, view: str) -> str | None:
    """Why a view is not that of the plan, or None. Blocked results, which the store drops, are judged by their record
    alone."""
    target = store.data / view
    if not target.is_dir():
        return f"data/{view} is not there"
    present = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()}
    for job in plan.in_view(view):
        folder = target / job.view
        if not (folder / RECORD).is_file():
            return f"data/{view} lacks {job.view}"
        record = read_record(folder)
        if record["address"] != job.address:
            return f"data/{view}/{job.view} is {record['address']}, the plan's is {job.address}"
        if store.has(job):
            shown = {f"{job.view}/{p.relative_to(store.path(job)).as_posix()}": p for p in _shown(store.path(job))}
            for name, path in shown.items():
                if name not in present or not same_file(target / name, path):
                    return f"data/{view}/{name} differs from the store"
            present -= shown.keys()
        elif record["state"] == "blocked":
            present -= {f"{job.view}/{RECORD}"}
        else:
            return f"data/{view}/{job.view} is not in the store; `noscratch sync` adopts it"
    if present:
        return f"data/{view} holds {min(present)}, which the plan does not name"
    return None


def sync(store: Store, plan: Plan) -> list[str]:
    """Adopt into the store what the views hold and the plan names (after `dvc pull` in a fresh clone); returns the
    names.

    Every artifact is hashed against its record first; a folder that fails is refused with NoscratchError.
    """
    adopted = []
    for view in VIEWS:
        for job in plan.in_view(view):
            folder = store.data / view / job.view
            if store.has(job) or not (folder / RECORD).is_file():
                continue
            record = read_record(folder)
            if record["address"] != job.address or record["state"] == "blocked":
                continue
            verify(folder, record)
            with store.building(job) as place:
                for path in _shown(folder):
                    target = place / path.relative_to(folder)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    link_or_copy(path, target)
            adopted.append(job.name)
    return adopted


def verify(folder: Path, record: Mapping[str, Any]) -> None:
    """Check every artifact of a result against its record; raises NoscratchError naming the first that differs."""
    for name, artifact in record["artifacts"].items():
        path = folder / name
        if not path.is_file():
            raise NoscratchError(
                f"{folder.name}: every artifact that a record lists is there; {name} is missing. Remove the "
                f"folder and run the job again."
            )
        got = sha256_of(path)
        if got != artifact["sha256"]:
            raise NoscratchError(
                f"{folder.name}/{name}: bytes must match their record; expected sha256 {artifact['sha256']}, got "
                f"{got}. "
                "Remove the folder and run the job again."
            )
