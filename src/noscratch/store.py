"""The content store and the views.

data/store/<address>-<kind>-<label>/ holds one finished job: its artifacts, record.json (the same bytes on every run),
provenance.json (what differs each time) and SHA256SUMS over them all. A job is built under a temporary name and
published by one rename: what stands under its final name is complete. Entries are read-only, and nothing ever
overwrites one.

data/{raw,prepared,runs} are views: real folders of hard links, under readable names, of exactly what the present plan
names. DVC versions the views and may remove or restore them; the store loses nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from noscratch.atomic import PREFIX, is_left, put, temporary_in
from noscratch.errors import NoscratchError
from noscratch.plan import VIEWS, Job, Plan, canonical_json
from noscratch.schema import Record, parse, stated

RECORD = "record.json"
PROVENANCE = "provenance.json"
SUMS = "SHA256SUMS"


def sha256_of(path: Path) -> str:
    """sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_json(value: object) -> bytes:
    """JSON with sorted keys and a final newline."""
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a finished job; NoscratchError when it is not what was written."""
    path = folder / RECORD
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise NoscratchError(
            f"{path}: a record is the JSON that its job wrote; this file is damaged ({error}). Remove its folder and "
            "run the same command: the job runs again."
        ) from error


def read_strictly(folder: Path) -> dict[str, Any]:
    """A record from elsewhere: NoscratchError unless it has the form, and the spelling, that every record has."""
    path = folder / RECORD
    try:
        content = path.read_bytes()
        record = parse(Record, content)
        if as_json(record) != content:
            raise ValueError("another spelling of the same JSON")
    except ValueError as error:
        raise NoscratchError(
            f"{path}: a record is what its job wrote; this one is not: {error}. Remove its folder and take it from "
            "where it came once more."
        ) from None
    return record


def difference_from(job: Job, record: Mapping[str, Any]) -> str | None:
    """The first field of a record that is not what the plan says of its job, or None."""
    return next((f for f, v in stated(job).items() if canonical_json(record[f]) != canonical_json(v)), None)


def read_provenance(folder: Path) -> dict[str, Any]:
    """What differed when the job ran; empty where that was not here (a result taken over from a view)."""
    try:
        found: dict[str, Any] = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found


def target(job: Job) -> str:
    """The one file that Snakemake knows of a job: its record, which comes with the rename of the whole result."""
    return f"data/store/{job.name}/{RECORD}"


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
            "free some space (`noscratch gc` removes what no tier names) and run the same command again."
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
        """Is the job's result complete?"""
        return (self.path(job) / RECORD).is_file()

    @contextmanager
    def building(self, job: Job) -> Iterator[Path]:
        """An empty folder to build a job's result in; published on a clean exit, removed on any other.

        When another process published the same address meanwhile, its result stands and this one is dropped.
        """
        temporary = temporary_in(self.folder, job.name)
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
            put(temporary, final)
        _sync_folder(self.folder)

    def leftovers(self) -> list[Path]:
        """What killed processes left: their temporary files and folders, and final folders without a record.

        Whether a process of another host is alive cannot be seen here: what it left is found there.
        """
        # data/ itself, and its folders: store, passports
        found = [p for pattern in ("", "*/") for p in self.data.glob(f"{pattern}{PREFIX}*") if is_left(p.name)]
        found += [path for path in self.folder.glob("[0-9a-f]*") if path.is_dir() and not (path / RECORD).is_file()]
        return sorted(found)

    def unnamed(self, plans: Iterable[Plan]) -> list[Path]:
        """Finished results, and checkpoints of unfinished ones, that no plan names."""
        named = {job.name for plan in plans for job in plan.jobs.values()}
        found = [path for path in self.folder.glob("[0-9a-f]*") if (path / RECORD).is_file()]
        found += (self.data / "checkpoints").glob("[0-9a-f]*")
        return sorted(path for path in found if path.name not in named)


def _seal(folder: Path) -> None:
    """List the files' digests, and make them read-only and durable: hard links share them with views and DVC's cache.

    The list is in the form of `sha256sum --check`. A record has hashed its artifacts already.
    """
    listed = read_record(folder)["artifacts"] if (folder / RECORD).is_file() else {}
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    digests = {name: listed[name]["sha256"] if name in listed else sha256_of(folder / name) for name in names}
    (folder / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()), encoding="utf-8")
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


def _files(folder: Path) -> list[str]:
    """The names of all files below a folder, sorted; in a fifth of the time of `rglob`, for views of thousands."""
    start = len(os.fspath(folder)) + 1
    paths = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    return sorted(path[start:] for path in paths if os.path.isfile(path))


def _shown(folder: Path) -> list[str]:
    """The files of a result that a view shows: all but what differs each time."""
    return [name for name in _files(folder) if name not in (PROVENANCE, SUMS)]


def expected(store: Store, plan: Plan, view: str, blocked: Mapping[str, bytes]) -> dict[str, Path | bytes]:
    """What a view must hold: path below the view -> file in the store, or the record of a blocked job.

    `blocked` maps the address of each job that cannot run to its record; every other job must be complete.
    """
    files: dict[str, Path | bytes] = {}
    for job in plan.in_view(view):
        folder = store.path(job)
        if store.has(job):
            for name in _shown(folder):
                files[f"{job.view}/{name}"] = folder / name
        elif job.address in blocked:
            files[f"{job.view}/{RECORD}"] = blocked[job.address]
        else:
            raise NoscratchError(
                f"View {view} shows complete results only; {job.name} is not there. Run `snakemake --cores all {view}`."
            )
    return files


def _same(place: Path, content: Path | bytes) -> bool:
    """Does the file hold this content: the same inode, or the same bytes?"""
    if isinstance(content, bytes):
        return place.read_bytes() == content
    if place.samefile(content):
        return True
    return place.stat().st_size == content.stat().st_size and sha256_of(place) == sha256_of(content)


def difference(target: Path, files: Mapping[str, Path | bytes]) -> str | None:
    """The first way in which a view's folder is not what it must be, or None."""
    if not target.is_dir():
        return f"data/{target.name} is not there"
    present = set(_files(target))
    for name in sorted(present | files.keys()):
        if name not in files:
            return f"data/{target.name} holds {name}, which the plan does not name"
        if name not in present:
            return f"data/{target.name} lacks {name}"
        if not _same(target / name, files[name]):
            return f"data/{target.name}/{name} is not the plan's"
    return None


def make_view(store: Store, view: str, files: Mapping[str, Path | bytes]) -> bool:
    """Make data/<view> hold exactly `files`; returns whether anything changed.

    The old view stands until the new one is whole.
    """
    target = store.data / view
    if difference(target, files) is None:
        return False
    temporary = temporary_in(store.data, f"view-{view}")
    try:
        with full_disk_explained(f"View {view}"):
            temporary.mkdir(parents=True)
            for name, content in files.items():
                place = temporary / name
                place.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    place.write_bytes(content)
                    place.chmod(0o444)
                else:
                    link_or_copy(content, place)
            put(temporary, target)
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
            record = read_strictly(folder)
            if record["address"] != job.address or record["state"] == "blocked":
                continue
            if (field := difference_from(job, record)) is not None:
                raise NoscratchError(
                    f"{folder}: a record of address {job.address} states what the plan does; its {field} is another. "
                    f"Remove the folder, then `dvc checkout data/{view}`."
                )
            verify(folder, record)
            with store.building(job) as place:
                for name in _shown(folder):
                    target = place / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    link_or_copy(folder / name, target)
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
