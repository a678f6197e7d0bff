"""Cells carried to a bare host and back: `pack` here, `work` there, `adopt` (`noscratch import`) here.

A pack is one tar: the package's source, params.yaml, the store's entries that the chosen jobs need, and pack.json with
the addresses and the sha256 of every file. The other host needs Python, torch, numpy, pyarrow and what is light, but
no git, DVC or Snakemake. Results come back as one tar cut into parts below PART bytes, listed in results.json.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from noscratch import code, params
from noscratch.atomic import remove_left, temporary_in
from noscratch.errors import NoscratchError
from noscratch.plan import Job, Plan
from noscratch.schema import Address, Sha, Strict, parse
from noscratch.sources.unpack import Limits, members
from noscratch.store import (
    RECORD,
    SUMS,
    Store,
    as_json,
    difference_from,
    full_disk_explained,
    read_record,
    read_strictly,
    sha256_of,
)

PACK, RESULTS = "pack.json", "results.json"
PART = 15 << 20
"""Bytes of one part of the results."""

EXIT_AGAIN = 75
RATIO = 10_000  # token arrays of padded or repeated text compress well; a pack is the user's own file


class TransferError(NoscratchError):
    """A pack or a bundle of results that is not what it should be."""


class _Files(Strict):
    """results.json: the digest of every other file."""

    files: dict[str, Sha]


class _Pack(_Files):
    """pack.json: the jobs too."""

    addresses: list[Address]


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

    Raises TransferError when one needs prepared data that is not in the store, when nothing is left to do, or when
    `out` is no file to write.
    """
    if not out.parent.is_dir() or out.is_dir():
        raise TransferError(f"A pack is written to a file in a folder that is there; {out} is not. Name another.")
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
    remove_left(out.parent, out.name)
    temporary = temporary_in(out.parent, out.name)
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
    `stop_after` seconds are over or SIGTERM or SIGUSR1 has come (the same call goes on); 1 after an error.
    """
    started = time.monotonic()
    file = file.resolve()
    folder = file.with_name(file.name + ".work")
    pack = _unpacked(file, folder)
    path = os.pathsep.join(filter(None, [str(folder / "src"), os.environ.get("PYTHONPATH")]))
    status, failed = 0, []
    with _told_to_stop() as run:
        for address in pack["addresses"]:
            command = [sys.executable, "-m", "noscratch", "run", address]
            if stop_after is not None:
                left = stop_after - (time.monotonic() - started)
                if left <= 0:
                    status = EXIT_AGAIN
                    break
                command += ["--stop-after", f"{left:.1f}"]
            (folder / "logs").mkdir(exist_ok=True)
            with (folder / "logs" / f"{address}.log").open("a", encoding="utf-8") as log:
                ended = run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, stdout=log, stderr=log)
            if ended == EXIT_AGAIN:
                status = EXIT_AGAIN
                break
            if ended:
                failed.append(folder / "logs" / f"{address}.log")
    packed = {name.split("/")[2] for name in pack["files"] if name.startswith("data/store/")}
    done = sorted(
        path.parent for path in (folder / "data/store").glob(f"[0-9a-f]*/{RECORD}") if path.parent.name not in packed
    )
    _write_results(done, file.with_name(file.name + ".results"))
    return [path.name for path in done], failed, status or int(bool(failed))


@contextmanager
def _told_to_stop() -> Iterator[Callable[..., int]]:
    """Yields what runs a command to its end and returns its exit code: EXIT_AGAIN once SIGTERM or SIGUSR1 has come.

    They come to this process alone and are passed on: a training saves a checkpoint first.
    """
    children: list[subprocess.Popen[bytes]] = []
    told: list[int] = []

    def pass_on(number: int, _: object) -> None:
        told.append(number)
        for child in children:
            child.send_signal(number)

    def run(command: list[str], **options: Any) -> int:
        if told:
            return EXIT_AGAIN
        child = subprocess.Popen(command, **options)
        children.append(child)
        if told:  # between the two lines above
            child.send_signal(told[-1])
        try:
            code = child.wait()
        except BaseException:  # Ctrl-C has reached it too; should it have come to us alone, it saves and ends
            child.terminate()
            child.wait()
            raise
        finally:
            children.clear()
        return EXIT_AGAIN if told and code else code

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield run
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _unpacked(file: Path, folder: Path) -> dict[str, Any]:
    """Unpack to `folder` unless it holds this pack already; returns its pack.json."""
    if not file.is_file():
        raise TransferError(f"{file}: no such pack. Make one with `noscratch pack`.")
    mark, whole = folder / ".unpacked", sha256_of(file)
    if mark.is_file() and mark.read_text() == whole:
        return _read(folder, PACK)
    if folder.exists():
        raise TransferError(f"{folder} holds another pack's work. Take its results, then delete it.")
    remove_left(folder.parent, folder.name)
    temporary = temporary_in(folder.parent, folder.name)
    temporary.mkdir()
    try:
        with full_disk_explained(f"Unpacking {file.name}"):
            _extract(file, temporary)
            manifest = _checked(temporary, PACK)
            (temporary / ".unpacked").write_text(whole)
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _extract(file: Path, folder: Path) -> None:
    """Write the members of one of our own tars below a new folder; names are plain relative paths (see `members`)."""
    for entry in members(file, Limits(bytes=1 << 40, ratio=RATIO)):
        target = folder / entry.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            shutil.copyfileobj(entry.stream, out)


def _read(folder: Path, name: str) -> dict[str, Any]:
    """The manifest `name` of a folder, in the one spelling that we write."""
    try:
        content = (folder / name).read_bytes()
        manifest = parse(_Pack if name == PACK else _Files, content)
        if as_json(manifest) != content:
            raise ValueError("another spelling of the same JSON")
    except (OSError, ValueError) as error:
        raise TransferError(
            f"{name} lists what a transfer holds; here it is missing or broken ({error}). Copy it again."
        ) from None
    return manifest


def _checked(folder: Path, name: str) -> dict[str, Any]:
    """The manifest `name` of an unpacked folder, after every file was compared with it."""
    manifest = _read(folder, name)
    listed = manifest["files"]
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {name}
    for path in sorted(found | listed.keys()):
        if path not in listed or path not in found or sha256_of(folder / path) != listed[path]:
            raise TransferError(
                f"A transfer holds the files of its {name} and no other; {path} differs. Copy it again."
            )
    return manifest


def _write_results(done: Iterable[Path], out: Path) -> None:
    """One tar of the finished jobs, cut into parts, with a list of both; the earlier results are replaced whole."""
    remove_left(out.parent, out.name)
    temporary = temporary_in(out.parent, out.name)
    temporary.mkdir()
    try:
        with full_disk_explained(f"Writing {out.name}"):
            files = {f"{p.parent.name}/{p.name}": p for folder in done for p in sorted(folder.iterdir())}
            with _Parts(temporary) as parts, tarfile.open(fileobj=parts, mode="w|") as archive:
                _add(archive, RESULTS, as_json({"files": {name: sha256_of(path) for name, path in files.items()}}))
                for name, path in files.items():
                    _add(archive, name, path)
            listed = {part.name: sha256_of(part) for part in sorted(temporary.iterdir())}
            (temporary / RESULTS).write_bytes(as_json({"files": listed}))
            shutil.rmtree(out, ignore_errors=True)
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    """Bring the runs in `folder` into the store: results of `work`, or entries of a store; returns the new names.

    All are copied and checked before the first is adopted. Its record is of a job of a tier's present plan, in every
    field that a plan knows; its inputs are those that lie here, or come along; it passes every check of the audit that
    needs no more than itself and the prepared data: form, digests, selection, and each score again from its
    predictions. Raises TransferError naming the run and the rule. One that is here already with the same record is
    passed over; one with another record is refused, since a result is never overwritten.
    """
    from noscratch.audit import arrival  # these bring libraries that `work` does without
    from noscratch.audit.case import RULES

    if not folder.is_dir():
        raise TransferError(f"{folder}: runs are imported from a folder; there is none. Name it, or unpack it first.")
    known = {address: job for plan in plans for address, job in plan.jobs.items()}
    scratch = temporary_in(store.data, "import")
    try:
        with full_disk_explained("Importing runs"):
            scratch.mkdir(parents=True)
            runs = _runs(folder, scratch)
            if not runs:
                raise TransferError(f"{folder} holds no run: no {RESULTS} and no folder with a {RECORD}. Name another.")
            jobs = {run: _job_of(run, known) for run in runs}
            arrived = _each_once(jobs, scratch / "arrived")
            came = {job.address: sha256_of(place / RECORD) for place, job in arrived.items()}
            for place, job in arrived.items():
                _same_inputs(place, job, known, store, came)
            prepared = {store.path(known[job.needs["prepared"]]): None for job in arrived.values()}
            for finding in arrival.check(store.root, list(arrived), list(prepared)):
                place = Path(finding.path).relative_to(scratch.relative_to(store.root) / "arrived")
                raise TransferError(f"{place}: {RULES[finding.rule]}; got: {finding.got}. {arrival.AGAIN}")
            new = [(place, job) for place, job in arrived.items() if not store.has(job)]
            for place, job in new:
                with store.building(job) as made:
                    for path in place.iterdir():
                        if path.name != SUMS:
                            path.rename(made / path.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return [job.name for _, job in new]


def _runs(folder: Path, scratch: Path) -> list[Path]:
    """Folders of runs in `folder`, joined and unpacked first where it is the result of `work`."""
    if not (folder / RESULTS).is_file():
        return sorted(path.parent for path in folder.rglob(RECORD))
    parts = _checked(folder, RESULTS)["files"]
    joined = scratch / "joined.tar"
    with joined.open("wb") as out:
        for name in sorted(parts):
            with (folder / name).open("rb") as part:
                shutil.copyfileobj(part, out)
    unpacked = scratch / "unpacked"
    unpacked.mkdir()
    _extract(joined, unpacked)
    joined.unlink()
    _checked(unpacked, RESULTS)
    return sorted(path.parent for path in unpacked.glob(f"*/{RECORD}"))


def _refusal(run: Path, rule: str, got: object, then: str) -> TransferError:
    return TransferError(f"{run.name}: {rule}; got {got}. {then}")


def _job_of(run: Path, known: Mapping[str, Job]) -> Job:
    """The plan's job that a record is of; TransferError where a field that the plan knows differs."""
    record = read_strictly(run)
    job = known.get(record["address"])
    if job is None or job.cell is None:
        raise _refusal(
            run,
            "an imported run has the address of a training job of some tier's present plan",
            record["address"],
            "Check out the code and settings that it was made with, or leave it out.",
        )
    if (field := difference_from(job, record)) is not None:
        again = "It was made with other settings or code than its address says: leave it out."
        raise _refusal(run, f"its {field} is that of job {job.address}", record[field], again)
    if record["state"] == "blocked":
        raise _refusal(run, "its state is done, failed or diverged", record["state"], "Leave it out.")
    return job


def _each_once(jobs: Mapping[Path, Job], arrived: Path) -> dict[Path, Job]:
    """Copies of the runs, below `arrived` under the names of their jobs: nobody else writes there."""
    found: dict[Path, Job] = {}
    for run, job in jobs.items():
        place = arrived / job.name
        if place in found:
            if sha256_of(place / RECORD) != sha256_of(run / RECORD):
                raise _refusal(run, "one address has one result", "two in this folder", "Leave one out.")
            continue
        place.mkdir(parents=True)
        for path in run.iterdir():
            if not path.is_file():
                raise _refusal(run, "its folder holds what its record lists", path.name, "Remove the others.")
            shutil.copyfile(path, place / path.name)
        found[place] = job
    return found


def _same_inputs(run: Path, job: Job, known: Mapping[str, Job], store: Store, came: Mapping[str, str]) -> None:
    """TransferError unless a run started from what lies here or comes along, and no other result of it lies here."""
    inputs = read_record(run)["inputs"]
    for role, address in job.needs.items():
        need = known[address]
        ours = sha256_of(store.path(need) / RECORD) if store.has(need) else came.get(address)
        if ours is None or inputs.get(role) != ours:
            raise _refusal(
                run,
                f"it started from the {role} that lies here ({need.name})",
                inputs.get(role),
                f"Run `noscratch run {address}` here or import that first; if both differ, their data differ.",
            )
    if inputs.keys() != job.needs.keys():
        raise _refusal(run, f"it read what it needs ({', '.join(job.needs)})", ", ".join(inputs), "Leave it out.")
    if store.has(job) and sha256_of(store.path(job) / RECORD) != sha256_of(run / RECORD):
        raise _refusal(
            run, "a result is never overwritten", "another result of the same address", "Keep it outside the store."
        )
