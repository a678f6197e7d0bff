"""Bytes: every file is what some manifest says it is.

A record states the sha256 of its artifacts; SHA256SUMS that of every file of a store entry; dvc.lock and DVC's cache
the md5 of what DVC versions (records, reports, pages); git the sha1 of what is committed. A damaged file contradicts
at least one of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from noscratch.audit.case import Case, Entry, Finding, extras, files_below
from noscratch.audit.git import GitError, git
from noscratch.plan import VIEWS
from noscratch.results.published import KEPT, RECORDS
from noscratch.store import RECORD, SUMS
from noscratch.yaml_reader import read

AGAIN = "Remove the folder and run the job again, or take the folder back."
RESTORE = "Take the file back (`git checkout`, `dvc checkout`), or make it again with `noscratch repro`."
# Committed evidence: what an uncommitted change would silently rewrite.
COMMITTED = ("claims", "reports/records", "reports/verdicts.jsonl", "src/noscratch/tasks/splits")
CACHE = Path(".dvc/cache/files/md5")
LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def check(case: Case) -> Iterator[Finding]:
    """Hash everything once, then hold it against each manifest."""
    yield from case.broken
    case.digests.of(
        path for entry in case.entries for path in files_below(entry.folder)
    )  # all at once keeps every thread busy
    for entry in case.entries:
        yield from artifacts(case, entry)
    for record in sorted(case.data.glob(f"store/[0-9a-f]*/{RECORD}")):  # also where the record cannot be read
        yield from sums(case, record.parent)
    yield from _strangers(case)
    yield from _twins(case)
    yield from _versioned(case)
    yield from _cached(case)
    yield from _committed(case)


def artifacts(case: Case, entry: Entry) -> Iterator[Finding]:
    """The files beside a record, but those that are always there, are what it lists, no more and no less."""
    listed = entry.record["artifacts"]
    present = {path.relative_to(entry.folder).as_posix(): path for path in files_below(entry.folder)}
    for name in extras(entry.place):
        present.pop(name, None)
    # What is published leaves weights and the like out.
    needed = {name for name in listed if entry.place != "published" or name in KEPT}
    for name in sorted(needed - present.keys()):
        yield Finding(entry.at(name), "bytes", "it is missing", AGAIN)
    for name in sorted(present.keys() - listed.keys()):
        yield Finding(entry.at(name), "bytes", "its record does not list it", AGAIN)
    for name in sorted(present.keys() & listed.keys()):
        size, digest = present[name].stat().st_size, case.digests.one(present[name])
        if digest != listed[name]["sha256"]:
            yield Finding(entry.at(name), "bytes", f"sha256 {digest}, recorded {listed[name]['sha256']}", AGAIN)
        elif size != listed[name]["bytes"]:
            yield Finding(entry.at(name), "bytes", f"{size} bytes, recorded {listed[name]['bytes']}", AGAIN)


def sums(case: Case, folder: Path) -> Iterator[Finding]:
    """SHA256SUMS of a store entry lists its files, as they are, in the one form that the store writes."""
    path = folder / SUMS
    if not path.is_file():
        got = "it is missing: the entry is older than such lists, or was changed"
        yield Finding(case.relative(path), "sums", got, AGAIN)
        return
    content = path.read_bytes()
    lines = [LINE.fullmatch(line) for line in content.decode(errors="replace").split("\n")]
    listed = {line[2]: line[1] for line in lines if line}
    if content != "".join(f"{listed[name]}  {name}\n" for name in sorted(listed)).encode():
        got = "a line that is not `sha256  name`, in the order of names"
        yield Finding(case.relative(path), "sums", got, AGAIN)
    present = {each.relative_to(folder).as_posix(): each for each in files_below(folder) if each != path}
    digests = case.digests.of(present.values())
    for name in sorted(listed.keys() | present.keys()):
        place, of = case.relative(folder / name), case.relative(path)
        if name not in present:
            yield Finding(place, "sums", f"it is missing; {of} lists it", AGAIN)
        elif name not in listed:
            yield Finding(place, "sums", f"{of} does not list it", AGAIN)
        elif (digest := digests[present[name]]) != listed[name]:
            got = f"sha256 {digest}, but {of} lists {listed[name]}: one of the two was changed"
            yield Finding(place, "sums", got, AGAIN)


def _strangers(case: Case) -> Iterator[Finding]:
    """Files of the views and of the published records that lie in no record's folder."""
    homes = {entry.folder for entry in case.entries} | {case.root / finding.path for finding in case.broken}
    for top in [*(case.data / view for view in VIEWS), case.root / RECORDS]:
        for path in files_below(top):
            if path not in homes and not any(parent in homes for parent in path.parents):
                yield Finding(case.relative(path), "bytes", "no record lists it", "Remove it.")


def _twins(case: Case) -> Iterator[Finding]:
    """A view shows what the store holds."""
    store = {entry.record["name"]: entry for entry in case.in_place("store")}
    for entry in case.in_place(*VIEWS):
        twin = store.get(entry.record["name"])
        if twin is not None and twin.sha256 != entry.sha256:
            got = f"it differs from {twin.at(RECORD)}, the same result"
            yield Finding(entry.at(RECORD), "bytes", got, "Find out which was changed; remove it and `noscratch view`.")


# ---------------------------------------------------------------- DVC


def locked(root: Path) -> dict[str, Any]:
    """The stages of dvc.lock; empty where there is none."""
    path = root / "dvc.lock"
    return dict(read(path).data["stages"]) if path.is_file() else {}


def _versioned(case: Case) -> Iterator[Finding]:
    """Every output in dvc.lock that is here has its md5. Of the files that a record vouches for by sha256, DVC's own
    list of the folder is asked only about the record."""
    outs = {out["path"]: out for stage in locked(case.root).values() for out in stage.get("outs", [])}
    for name, out in outs.items():
        place = case.root / name
        if place.is_file():
            if (digest := case.digests.one(place, "md5")) != out["md5"]:
                yield Finding(name, "dvc", f"md5 {digest}, dvc.lock has {out['md5']}", RESTORE)
        elif place.is_dir():
            yield from _folder(case, place, out["md5"])
    if case.built:
        for name in (*(f"data/{view}" for view in VIEWS), "reports/results.parquet", "reports/verdicts.parquet"):
            if name not in outs and (case.root / name).exists():
                yield Finding(name, "dvc", "dvc.lock does not know it", "`noscratch commit` records it.")


def _folder(case: Case, folder: Path, digest: str) -> Iterator[Finding]:
    name = case.relative(folder)
    listing = case.root / CACHE / digest[:2] / digest[2:]
    present = {path.relative_to(folder).as_posix(): path for path in files_below(folder)}
    if not listing.is_file():
        found = case.digests.of(present.values(), "md5")
        got = _folder_md5({inside: found[path] for inside, path in present.items()})
        if got != digest:
            yield Finding(name, "dvc", f"md5 {got}, dvc.lock has {digest}", RESTORE)
        return
    content = listing.read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() + ".dir" != digest:
        yield Finding(case.relative(listing), "dvc", "its content is not that of its name", "Remove it; `dvc fetch`.")
        return
    listed = {each["relpath"]: each["md5"] for each in json.loads(content)}
    for inside in sorted(listed.keys() ^ present.keys()):
        got = "it is missing" if inside in listed else "it is new"
        yield Finding(f"{name}/{inside}", "dvc", f"{got} since dvc.lock was written", RESTORE)
    vouched = {
        entry.folder / artifact
        for entry in case.entries
        if entry.place in VIEWS
        for artifact in entry.record["artifacts"]
    }
    asked = {inside: path for inside, path in present.items() if inside in listed and path not in vouched}
    found = case.digests.of(asked.values(), "md5")
    for inside, path in asked.items():
        if found[path] != listed[inside]:
            yield Finding(f"{name}/{inside}", "dvc", f"md5 {found[path]}, dvc.lock has {listed[inside]}", RESTORE)


def _folder_md5(files: Mapping[str, str]) -> str:
    """DVC's digest of a folder: the md5 of the JSON list of its files, in the order of their paths."""
    entries = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _cached(case: Case) -> Iterator[Finding]:
    """An object of DVC's cache has the md5 that is its name: `dvc checkout` hands it out unread."""
    objects = [path for path in files_below(case.root / CACHE) if len(path.parent.name) == 2]
    # A hard link to a file that its sha256 vouches for needs no second look.
    vouched = {
        (stat.st_dev, stat.st_ino)
        for entry in case.entries
        for name, artifact in entry.record["artifacts"].items()
        if (path := entry.folder / name).is_file() and case.digests.one(path) == artifact["sha256"]
        for stat in [path.stat()]
    }
    asked = [path for path in objects if ((stat := path.stat()).st_dev, stat.st_ino) not in vouched]
    for path, digest in case.digests.of(asked, "md5").items():
        if digest != (path.parent.name + path.name).removesuffix(".dir"):
            yield Finding(case.relative(path), "dvc", f"md5 {digest} is not its name", "Remove it; `dvc fetch`.")


# ---------------------------------------------------------------- git


def _committed(case: Case) -> Iterator[Finding]:
    """Committed evidence is what the last commit has; what is new is no finding."""
    try:
        listed = git(case.root, "ls-tree", "-r", "-z", "--full-tree", "HEAD", "--", *COMMITTED).decode()
    except GitError:
        if (case.root / RECORDS).is_dir():
            yield Finding(RECORDS.as_posix(), "git", "there is no commit here", "Audit a clone of the repository.")
        return
    blobs = {}
    for line in filter(None, listed.split("\0")):
        about, _, name = line.partition("\t")
        blobs[name] = about.split()[2]
    present = {name: case.root / name for name in blobs if (case.root / name).is_file()}
    for name in sorted(blobs.keys() - present.keys()):
        yield Finding(name, "git", "it is committed and missing here", "`git checkout` it.")
    digests = case.digests.of(present.values(), "sha1")
    for name, path in present.items():
        if digests[path] != blobs[name]:
            yield Finding(name, "git", "it differs from the last commit", "`git checkout` it, or commit the change.")
