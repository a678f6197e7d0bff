"""History: what git remembers of the evidence, against those who would have it otherwise.

Published runs name the commit that they were made at; its own code must have planned them. What was committed once is
only ever added to: one address has one result, and a verdict's line stays.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from noscratch.audit.case import UNREADABLE, Case, Entry, Finding
from noscratch.audit.git import GitError, git
from noscratch.audit.planned import Plans, plans_at
from noscratch.plan import canonical_json
from noscratch.results.history import NONE
from noscratch.results.published import RECORDS
from noscratch.store import PROVENANCE, RECORD

VERDICTS = "reports/verdicts.jsonl"
ABOUT = ("commit", "dirty", "device", "host", "libraries", "platform", "processor", "python", "seconds", "started")
LATEST = timedelta(days=1)  # how far the clock of another machine may be ahead
RESTORE = "Take back the committed file; publish another result beside it."


def check(case: Case) -> Iterator[Finding]:
    """What git can be asked about published runs, measurements, verdicts and claims."""
    published = case.in_place("published")
    commits = _Commits(case.root)
    for entry in [*published, *case.in_place("bench")]:
        if entry.kind != "count":
            yield from _provenance(commits, entry)
    yield from _planned(case, commits, published)
    yield from _only_added(case)
    yield from _verdict_lines(case)


# ---------------------------------------------------------------- where a published run is from


class _Commits:
    """What git says of the commits that provenance names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._plans: dict[tuple[str, str], Plans | str] = {}
        self._seeds: dict[int, dict[str, set[int]]] = {}

    @cached_property
    def ancestors(self) -> Mapping[str, datetime]:
        """Every commit that the present one contains, with its time; empty without git."""
        try:
            lines = git(self.root, "log", "--format=%H %cI", "HEAD").decode().splitlines()
        except GitError:
            return {}
        return {commit: datetime.fromisoformat(time) for commit, _, time in (line.partition(" ") for line in lines)}

    def plans(self, commit: str, tier: str) -> Plans | str:
        """What a commit planned, or why that cannot be told."""
        if (commit, tier) not in self._plans:
            try:
                self._plans[commit, tier] = plans_at(self.root, commit, [tier])
            except UNREADABLE as error:
                self._plans[commit, tier] = str(error)
        return self._plans[commit, tier]

    def seeds(self, made_at: Plans) -> Mapping[str, set[int]]:
        """The planned seeds of every fine-tuning by what its repetitions have in common."""
        if id(made_at) not in self._seeds:
            found: dict[str, set[int]] = defaultdict(set)
            for job in made_at.jobs.values():
                if job.kind == "finetune" and job.cell is not None:
                    found[repetition(job.settings, job.code)].add(job.cell["seed"])
            self._seeds[id(made_at)] = found
        return self._seeds[id(made_at)]


def _about(entry: Entry) -> dict[str, Any]:
    """A run's provenance; empty where it cannot be read."""
    try:
        found = json.loads((entry.folder / PROVENANCE).read_bytes())
    except UNREADABLE:
        return {}
    return found if isinstance(found, dict) else {}


def _provenance(commits: _Commits, entry: Entry) -> Iterator[Finding]:
    place, about = entry.at(PROVENANCE), _about(entry)
    again = "Publish the run with the provenance that its job wrote."
    if lacking := [name for name in ABOUT if name not in about]:
        yield Finding(place, "provenance", f"it lacks {', '.join(lacking)}", again)
        return
    commit = about["commit"]
    if commit not in commits.ancestors:
        yield Finding(place, "provenance", f"commit {commit} is not in the history of this checkout", again)
    if about["dirty"]:
        yield Finding(place, "provenance", "it was made by code that was not committed", "Commit, and make it again.")
    try:
        started = datetime.fromisoformat(about["started"])
        if started > datetime.now(UTC) + LATEST:
            yield Finding(place, "provenance", f"it starts at {started}, which is yet to come", again)
        if commit in commits.ancestors and started < commits.ancestors[commit] - LATEST:
            yield Finding(place, "provenance", f"it starts at {started}, before its commit was made", again)
        if not about["seconds"] > 0:
            yield Finding(place, "provenance", f"it took {about['seconds']} seconds", again)
    except (TypeError, ValueError) as error:
        yield Finding(place, "provenance", f"its time cannot be read: {error}", again)


# ---------------------------------------------------------------- planned, and all of it


@dataclass(frozen=True)
class _Group:
    """Published seeds of one cell and setting, and the seeds that were planned with them."""

    cell: tuple[str, str, str, str]
    published: set[int]
    planned: set[int]
    path: str


def _planned(case: Case, commits: _Commits, published: list[Entry]) -> Iterator[Finding]:
    """Each published run is in the present plan or in that of its commit; no seed of its group is left out."""
    groups: dict[str, _Group] = {}
    for entry in published:
        made_at = case.plans
        if entry.address not in made_at.jobs:
            commit = str(_about(entry).get("commit"))
            found = commits.plans(commit, entry.cell[0])
            if isinstance(found, str):
                got = f"what commit {commit[:12]} planned cannot be told: {found}"
                yield Finding(entry.at(RECORD), "planned", got, "Fetch the whole history (`git fetch --unshallow`).")
                continue
            made_at = found
        job = made_at.jobs.get(entry.address)
        if job is None or job.cell != entry.record["cell"] or job.kind != entry.kind:
            commit = str(_about(entry).get("commit"))[:12]
            got = f"neither the plan of its commit {commit} nor the present one has {entry.address}"
            yield Finding(entry.at(RECORD), "planned", got, "Publish only what a committed plan named.")
            continue
        if entry.kind == "finetune":
            setting = repetition(job.settings, job.code)
            planned = commits.seeds(made_at)[setting]
            group = groups.setdefault(setting, _Group(entry.cell[:-1], set(), planned, entry.path))
            group.published.add(entry.cell[-1])
    settled = _settled(case.root)
    for group in groups.values():
        lacking = sorted(group.planned - group.published)
        holes = [seed for seed in lacking if seed < max(group.published)]
        name = "/".join(group.cell)
        if holes:
            got = f"of {name} the seeds {sorted(group.published)} are published, {holes} are left out"
            yield Finding(group.path, "complete", got, "Publish those runs too, whatever became of them.")
        elif lacking and "/".join(group.cell[1:]) in settled:
            got = f"a settled verdict uses {name}, whose planned seeds {lacking} are not published"
            yield Finding(group.path, "complete", got, "Run and publish those seeds too.")


def repetition(settings: Mapping[str, Any], code: str) -> str:
    """What two runs that repeat each other have in common: all settings but the seed, and the code."""
    return canonical_json([{name: value for name, value in settings.items() if name != "seed"}, code])


def _settled(root: Path) -> set[str]:
    """The cells (task/backbone/protocol) that supported and contradicted claims use."""
    try:
        rows = pq.read_table(root / "reports" / "verdicts.parquet").to_pylist()
    except UNREADABLE:
        return set()
    used = [json.loads(row["cells"]) for row in rows if row["verdict"] in ("supported", "contradicted")]
    return {cell for cells in used for cell in cells}


# ---------------------------------------------------------------- only added to


@dataclass(frozen=True)
class _Change:
    """One file in one commit: its blobs before and after ("0..." where there is none)."""

    commit: str
    before: str
    after: str
    path: str


def _changes(root: Path, *paths: str) -> list[_Change]:
    """What every commit, the oldest first, changed below the paths; no changes without git."""
    arguments = ("log", "--reverse", "--format=%x01%H", "--raw", "--no-renames", "--no-abbrev", "-m", "--first-parent")
    try:
        text = git(root, *arguments, "--", *paths).decode()
    except GitError:
        return []
    found = []
    for block in text.split("\x01")[1:]:
        commit, *lines = block.splitlines()
        for line in filter(None, lines):
            about, _, path = line.partition("\t")
            _, _, before, after, _ = about.split(" ")
            found.append(_Change(commit, before, after, path))
    return found


def _only_added(case: Case) -> Iterator[Finding]:
    """One address has one result for good: no committed record gives way to another of its address, no file of a
    record changes without it, and what was published stays until another result takes its place.

    A measurement may be made again once the code that measures has changed, which is in no address.
    """
    changes = _changes(case.root, RECORDS.as_posix())
    records = {(c.commit, str(Path(c.path).parent)) for c in changes if c.path.endswith(f"/{RECORD}")}
    versions: dict[str, list[tuple[str, _Change]]] = defaultdict(list)  # path -> (address, change), the oldest first
    for change in changes:
        folder, name = str(Path(change.path).parent), Path(change.path).name
        if set(change.after) == {"0"}:
            if name == RECORD and not (case.root / change.path).is_file():
                got = f"it was published and removed by commit {change.commit[:12]}"
                yield Finding(change.path, "history", got, RESTORE)
        elif name == RECORD:
            try:
                address = json.loads(git(case.root, "cat-file", "blob", change.after))["address"]
            except UNREADABLE:
                continue  # what is committed now is checked elsewhere; what was once broken is gone
            versions[change.path].append((address, change))
        elif set(change.before) != {"0"} and (change.commit, folder) not in records:
            got = f"commit {change.commit[:12]} changed it and not its record"
            yield Finding(change.path, "history", got, RESTORE)
    for path, found in versions.items():
        address, now = found[-1]
        first = next(change for known, change in found if known == address)
        if first.after != now.after and not _measured_otherwise(case.root, first, now):
            got = f"{address} had another result from commit {first.commit[:12]} until {now.commit[:12]}"
            yield Finding(path, "history", got, RESTORE)


def _measured_otherwise(root: Path, first: _Change, now: _Change) -> bool:
    """Are both versions measurements, by different code below bench/ at the commits that they name?"""
    try:
        told = [json.loads(git(root, "cat-file", "blob", change.after)) for change in (first, now)]
        folder = str(Path(now.path).parent)
        commits = [
            json.loads(git(root, "show", f"{change.commit}:{folder}/{PROVENANCE}"))["commit"] for change in (first, now)
        ]
        trees = [git(root, "rev-parse", "--verify", "--quiet", f"{commit}:bench") for commit in commits]
    except UNREADABLE:
        return False
    return all(each["kind"] == "bench" for each in told) and trees[0] != trees[1]


def _verdict_lines(case: Case) -> Iterator[Finding]:
    """Lines of the verdicts' history are only appended. (That claims are what they were then is judged again.)"""
    before = b""
    for change in _changes(case.root, VERDICTS):
        after = b"" if set(change.after) == {"0"} else git(case.root, "cat-file", "blob", change.after)
        if not after.startswith(before):
            got = f"commit {change.commit[:12]} changed or removed earlier lines"
            yield Finding(VERDICTS, "history", got, "Take back the former lines; append what is new.")
        before = after
    now = (case.root / VERDICTS).read_bytes() if (case.root / VERDICTS).is_file() else b""
    if not now.startswith(before):
        yield Finding(VERDICTS, "history", "committed lines are changed or missing", "`git checkout` it.")
        return
    last = {line["claim"]: line["verdict"] for line in map(json.loads, now.splitlines())}
    for claim, verdict in _headlines(case.root):
        known = last.get(claim, NONE[0])
        if verdict != known and not {verdict, known} <= set(NONE):
            got = f"its last line on {claim} is {known}, its verdict {verdict}"
            yield Finding(VERDICTS, "history", got, "`noscratch commit` adds the line.")


def _headlines(root: Path) -> list[tuple[str, str]]:
    """(claim, verdict) of verdicts.parquet; none where it cannot be read, which is found elsewhere."""
    try:
        rows = pq.read_table(root / "reports" / "verdicts.parquet").to_pylist()
        return [(row["claim"], row["verdict"]) for row in rows if row["level"] == "headline"]
    except UNREADABLE:
        return []
