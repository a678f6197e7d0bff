"""Cells carried to a bare host and back: `pack` here, `work` there, `adopt` (`noscratch import`) here.

A pack is one tar: the package's source, params.yaml, the store's entries that the chosen jobs need, and pack.json with
the addresses and the sha256 of every file. The other host needs Python, torch, numpy, pyarrow and what is light, but
no git, DVC or Snakemake. Results come back as one tar cut into parts below PART bytes, listed in results.json.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from noscratch import code, params
from noscratch.errors import NoscratchError
from noscratch.plan import Job, Plan, canonical_json
from noscratch.sources.unpack import Limits, members
from noscratch.store import PROVENANCE, RECORD, SUMS, Store, as_json, read_record, sha256_of, verify

PACK, RESULTS = "pack.json", "results.json"
PART = 15 << 20
"""Bytes of one part of the results."""

EXIT_AGAIN = 75
RATIO = 10_000  # token arrays of padded or repeated text compress well; a pack is the user's own file


class TransferError(NoscratchError):
    """A pack or a bundle of results that is not what it should be."""


def chosen(plan: Plan, select: Iterable[str]) -> list[Job]:
    """The training jobs whose cell has every name of one of the selections, with the pretraining that they need.

    A selection is words joined by commas: "text,s4d" is every run of S4D on Text. Raises TransferError for one that
    selects nothing.
    """
    found: dict[str, Job] = {}
    for selection in select:
        words = set(selection.split(","))
        hits = [
            job
            for job in plan.of("tuning", "pretrain", "finetune")
            if job.cell and words <= {*_words(job), job.address, job.kind}
        ]
        if not hits:
            raise TransferError(
                "A selection names a task, backbone, protocol, kind, seed<k> or address of the plan, joined by commas; "
                f"no run of tier {plan.params.run.tier} has {selection!r}. See `noscratch plan`."
            )
        for hit in hits:
            found |= {job.address: job for job in plan.with_needs(hit) if job.cell}
    return [job for job in plan.jobs.values() if job.address in found]


def _words(job: Job) -> tuple[str, ...]:
    assert job.cell is not None
    return job.cell.task, job.cell.backbone, job.cell.protocol, f"seed{job.cell.seed}"


def pack(store: Store, plan: Plan, jobs: Iterable[Job], out: Path) -> list[Job]:
    """Write the pack of the jobs that are not done yet to `out`; returns them.

    Raises TransferError when one needs prepared data that is not in the store, or when nothing is left to do.
    """
    todo = [job for job in jobs if not store.has(job)]
    if not todo:
        raise TransferError("A pack carries runs that are not done; every selected one is. Select others.")
    here = {job.address for job in todo}
    outside = dict.fromkeys(address for job in todo for address in job.needs.values() if address not in here)
    needed = [plan[address] for address in outside]
    absent = [job for job in needed if not store.has(job)]
    if absent:
        lines = "\n".join(f"  noscratch run {job.address}    # {job.kind} {job.label}" for job in absent)
        raise TransferError(f"Runs are packed with the data that they read, which is not here yet. First:\n{lines}")
    files: dict[str, Path] = {params.FILE: store.root / params.FILE}
    for path in sorted(code.PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            files[f"src/noscratch/{path.relative_to(code.PACKAGE).as_posix()}"] = path
    for job in sorted(needed, key=lambda job: job.name):
        for path in sorted(store.path(job).rglob("*")):
            if path.is_file():
                files[f"data/store/{path.relative_to(store.folder).as_posix()}"] = path
    manifest = {"addresses": [job.address for job in todo], "files": {n: sha256_of(p) for n, p in files.items()}}
    temporary = out.with_name(f".tmp-{out.name}")
    try:
        with temporary.open("wb") as stream, tarfile.open(fileobj=stream, mode="w") as archive:
            _add(archive, PACK, as_json(manifest))
            for name, path in files.items():
                _add(archive, name, path)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return todo


def work(file: Path, stop_after: float | None = None) -> tuple[list[str], list[Path], int]:
    """Do the jobs of a pack beside it, in `<file>.work`, and write what is finished to `<file>.results`.

    Returns the names of the finished jobs, the logs of those that ended in an error, and the exit code: 0; 75 when
    `stop_after` seconds are over (the same call goes on); 1 after an error.
    """
    started = time.monotonic()
    file = file.resolve()
    folder = file.with_name(file.name + ".work")
    addresses = _unpacked(file, folder)
    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
    status, failed = 0, []
    for address in addresses:
        command = [sys.executable, "-m", "noscratch", "run", address]
        if stop_after is not None:
            left = stop_after - (time.monotonic() - started)
            if left <= 0:
                status = EXIT_AGAIN
                break
            command += ["--stop-after", f"{left:.1f}"]
        (folder / "logs").mkdir(exist_ok=True)
        with (folder / "logs" / f"{address}.log").open("a", encoding="utf-8") as log:
            ended = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False).returncode
        if ended == EXIT_AGAIN:
            status = EXIT_AGAIN
            break
        if ended:
            failed.append(folder / "logs" / f"{address}.log")
    packed = {name.split("/")[2] for name in _manifest(folder)["files"] if name.startswith("data/store/")}
    done = sorted(
        path.parent for path in (folder / "data/store").glob(f"[0-9a-f]*/{RECORD}") if path.parent.name not in packed
    )
    _write_results(done, file.with_name(file.name + ".results"))
    return [path.name for path in done], failed, status or int(bool(failed))


def _manifest(folder: Path) -> Mapping[str, Mapping[str, str]]:
    return dict(json.loads((folder / PACK).read_text(encoding="utf-8")))


def _unpacked(file: Path, folder: Path) -> list[str]:
    """Unpack to `folder` unless it holds this pack already; returns the addresses."""
    if not file.is_file():
        raise TransferError(f"{file}: no such pack. Make one with `noscratch pack`.")
    whole = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            whole.update(chunk)
    mark = folder / ".unpacked"
    if mark.is_file() and mark.read_text() == whole.hexdigest():
        return list(_manifest(folder)["addresses"])
    if folder.exists():
        raise TransferError(f"{folder} holds another pack's work. Take its results, then delete it.")
    temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{folder.name}-", dir=folder.parent))
    try:
        _extract(file, temporary)
        manifest = _checked(temporary, PACK)
        (temporary / ".unpacked").write_text(whole.hexdigest())
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return list(manifest["addresses"])


def _extract(file: Path, folder: Path) -> None:
    """Write the members of one of our own tars below a new folder; names are plain relative paths (see `members`)."""
    for entry in members(file, Limits(bytes=1 << 40, ratio=RATIO)):
        target = folder / entry.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            shutil.copyfileobj(entry.stream, out)


def _checked(folder: Path, name: str) -> Mapping[str, Mapping[str, str]]:
    """The manifest `name` of an unpacked folder, after every file was compared with it."""
    try:
        manifest = dict(json.loads((folder / name).read_text(encoding="utf-8")))
        listed = {path: str(digest) for path, digest in manifest["files"].items()}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise TransferError(f"{name} lists what a transfer holds; it is missing or broken ({error!r}).") from None
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {name}
    for path in sorted(found | listed.keys()):
        if path not in listed or path not in found or sha256_of(folder / path) != listed[path]:
            raise TransferError(
                f"A transfer holds the files of its {name} and no other; {path} differs. Copy it again."
            )
    return manifest


def _write_results(done: Iterable[Path], out: Path) -> None:
    """One tar of the finished jobs, cut into parts, with a list of both; the earlier results are replaced whole."""
    temporary = out.with_name(f".tmp-{out.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    files = {f"{p.parent.name}/{p.name}": p for folder in done for p in sorted(folder.iterdir())}
    parts = _Parts(temporary)
    with tarfile.open(fileobj=parts, mode="w|") as archive:
        _add(archive, RESULTS, as_json({"files": {name: sha256_of(path) for name, path in files.items()}}))
        for name, path in files.items():
            _add(archive, name, path)
    parts.close()
    (temporary / RESULTS).write_bytes(as_json({"files": {p.name: sha256_of(p) for p in sorted(temporary.iterdir())}}))
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)


class _Parts(io.RawIOBase):
    """A stream written as files of at most PART bytes: results.000, results.001 ..."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number, self._left = folder, 0, 0
        self._file: BinaryIO | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        size = len(view)
        while view:
            if self._left == 0:
                if self._file is not None:
                    self._file.close()
                self._file = (self._folder / f"results.{self._number:03d}").open("wb")
                self._number, self._left = self._number + 1, PART
            assert self._file is not None
            self._file.write(view[: self._left])
            written = min(self._left, len(view))
            self._left -= written
            view = view[written:]
        return size

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def _add(archive: tarfile.TarFile, name: str, content: bytes | Path) -> None:
    """One member without owner and time, so that a pack of the same files has the same bytes."""
    member = tarfile.TarInfo(name)
    member.mode = 0o644
    if isinstance(content, bytes):
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
        return
    member.size = content.stat().st_size
    with content.open("rb") as stream:
        archive.addfile(member, stream)


# What comes back


def adopt(store: Store, plans: Iterable[Plan], folder: Path) -> list[str]:
    """Bring the runs in `folder` into the store: results of `work`, or folders of runs; returns the new names.

    All are checked before the first is adopted: the address is one of a tier's present plan, and name, settings, code
    and needs are that job's; every artifact has the digest of its record; the inputs are those that lie here, or come
    along. Raises TransferError naming the folder and the rule. A run that is here already with the same record is
    passed over; one with another record is refused, since a result is never overwritten.
    """
    if not folder.is_dir():
        raise TransferError(f"{folder}: runs are imported from a folder; there is none. Name it, or unpack it first.")
    known = {address: job for plan in plans for address, job in plan.jobs.items()}
    with tempfile.TemporaryDirectory(prefix=".tmp-import-", dir=_made(store.data)) as scratch:
        runs = {run.name: run for run in _runs(folder, Path(scratch))}
        if not runs:
            raise TransferError(f"{folder} holds no run: no {RESULTS} and no folder with a {RECORD}. Name another.")
        records = {name: read_record(run) for name, run in runs.items()}
        came = {str(record.get("address")): sha256_of(runs[name] / RECORD) for name, record in records.items()}
        jobs = {name: _same_job(records[name], runs[name], known, store, came) for name in runs}
        new = [name for name, job in jobs.items() if not store.has(job)]
        for name in new:
            with store.building(jobs[name]) as place:
                for path in sorted({*runs[name].iterdir()} - {runs[name] / SUMS}):
                    shutil.copyfile(path, place / path.name)
    return [jobs[name].name for name in new]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _runs(folder: Path, scratch: Path) -> Iterator[Path]:
    """Folders of runs in `folder`, joined and unpacked first where it is the result of `work`."""
    if not (folder / RESULTS).is_file():
        yield from sorted(path.parent for path in folder.rglob(RECORD))
        return
    parts = _checked(folder, RESULTS)["files"]
    joined = scratch / "joined.tar"
    with joined.open("wb") as out:
        for name in sorted(parts):
            with (folder / name).open("rb") as part:
                shutil.copyfileobj(part, out)
    unpacked = scratch / "runs"
    unpacked.mkdir()
    _extract(joined, unpacked)
    _checked(unpacked, RESULTS)
    yield from sorted(path.parent for path in unpacked.glob(f"*/{RECORD}"))


def _same_job(
    record: Mapping[str, object], run: Path, known: Mapping[str, Job], store: Store, came: Mapping[str, str]
) -> Job:
    """The plan's job that a record is of; TransferError where anything differs."""

    def refuse(rule: str, got: object, then: str) -> TransferError:
        return TransferError(f"{run.name}: {rule}; got {got}. {then}")

    job = known.get(str(record.get("address")))
    if job is None or job.cell is None:
        raise refuse(
            "an imported run has the address of a training job of some tier's present plan",
            record.get("address"),
            "Check out the code and settings that it was made with, or leave it out.",
        )
    again = "It was made with other settings or code than its address says: leave it out."
    stated = {"kind": job.kind, "name": job.name, "settings": job.settings, "code": job.code, "needs": job.needs}
    for field, expected in stated.items():
        if canonical_json(record.get(field)) != canonical_json(expected):
            raise refuse(f"its {field} is that of job {job.address}", record.get(field), again)
    if record.get("state") not in ("done", "failed", "diverged"):
        raise refuse("its state is done, failed or diverged", record.get("state"), "Leave it out.")
    artifacts = record.get("artifacts")
    if not isinstance(artifacts, dict):
        raise refuse("its record lists its artifacts", artifacts, "Leave it out.")
    verify(run, {"artifacts": artifacts})
    extra = {path.name for path in run.iterdir()} - {RECORD, PROVENANCE, SUMS, *artifacts}
    if extra:
        raise refuse("its folder holds what its record lists", ", ".join(sorted(extra)), "Remove the others.")
    inputs = record.get("inputs")
    for role, address in job.needs.items():
        need = known[address]
        ours = sha256_of(store.path(need) / RECORD) if store.has(need) else came.get(address)
        if not isinstance(inputs, dict) or ours is None or inputs.get(role) != ours:
            raise refuse(
                f"it started from the {role} that lies here ({need.name})",
                inputs.get(role) if isinstance(inputs, dict) else inputs,
                f"Run `noscratch run {address}` here or import that first; if both differ, their data differ.",
            )
    if store.has(job) and sha256_of(store.path(job) / RECORD) != sha256_of(run / RECORD):
        raise refuse(
            "a result is never overwritten", "another result of the same address", "Keep it outside the store."
        )
    return job
