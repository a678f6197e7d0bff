"""Compare two commits: which cells moved, whether beyond the noise of their seeds, and why.

Scores are read from reports/metrics.json of each commit, which git has. Each commit is asked for its plan by its own
code (planned.py); the jobs behind a cell are then held against each other. What differs in them is the cause:

    settings      of training: a value in params.yaml
    data          of preparing: limits, lengths, sources; or the bytes that the same preparation read
    code          a module that the job reaches, by its syntax tree: comments and layout are no cause
    seeds         more, fewer or other seeds
    environment   by elimination: the same address gave another score, so libraries, device or an edit did it
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from noscratch.audit.git import GitError, commit_of, git
from noscratch.audit.planned import NEEDED, Planned, Plans, plans, tree_of
from noscratch.errors import NoscratchError
from noscratch.record import LIBRARIES
from noscratch.results import statistics
from noscratch.yaml_reader import read

METRICS, VERDICTS = "reports/metrics.json", "reports/verdicts.jsonl"
# Where libraries are pinned: the Makefile has torch's. Early commits have constraints.txt.
PINNED = ("constraints.txt", "requirements.lock", "Makefile")
# Turns scores into the summary; not part of any run's address.
SUMMARY = "noscratch.results.collect"
# How a job of a cell is called in a cause.
PHASES = {"pretrain": "self-pretraining", "finetune": "fine-tuning"}
# What DVC is asked: the words before the two commits, and those behind. `dvc plots diff` makes a page.
BESIDE: tuple[tuple[list[str], list[str]], ...] = (
    (["diff"], ["--json"]),
    (["params", "diff"], []),
    (["metrics", "diff"], ["--md", "--targets", METRICS]),
)
Cell = tuple[str, str, str, str]  # tier, task, backbone, protocol


class Cause(NamedTuple):
    """kind: settings, data, code, seeds or environment; what: in words."""

    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


@dataclass(frozen=True)
class Score:
    """The primary test metric of a cell at one commit, by seed."""

    metric: str
    seeds: Mapping[int, float]

    @property
    def mean(self) -> float:
        return fmean(self.seeds.values())


@dataclass(frozen=True)
class Change:
    """A cell whose score, or whose way there, differs between the commits; None where it has no score."""

    cell: Cell
    before: Score | None
    after: Score | None
    causes: Sequence[Cause]

    @property
    def moved(self) -> bool:
        """Is a score another one?"""
        return self.before != self.after

    @property
    def difference(self) -> tuple[float, float, float] | None:
        """Mean difference and its 95 % interval, paired where the seeds are the same; None below two seeds a side."""
        if self.before is None or self.after is None or self.before.metric != self.after.metric:
            return None
        old, new = ([score.seeds[seed] for seed in sorted(score.seeds)] for score in (self.before, self.after))
        if min(len(old), len(new)) < 2:
            return None
        same = self.before.seeds.keys() == self.after.seeds.keys()
        estimate = statistics.paired(new, old) if same else statistics.welch(new, old)
        return (estimate.value, *statistics.interval(estimate))

    @property
    def noise(self) -> str:
        """ "beyond noise", "within noise", or why that cannot be told."""
        if self.before is None or self.after is None:
            return "new" if self.before is None else "gone"
        if self.before.metric != self.after.metric:
            return "another metric"
        if (found := self.difference) is None:
            return "one seed: unknown"
        _, low, high = found
        return "within noise" if low <= 0 <= high else "beyond noise"


@dataclass(frozen=True)
class Comparison:
    """Two commits: their hashes, every cell that differs, how many do not, and the verdicts that changed."""

    before: str
    after: str
    changes: Sequence[Change]
    unchanged: int
    verdicts: Mapping[str, tuple[str, str]]

    @property
    def moved(self) -> list[Change]:
        """The cells with another score."""
        return [change for change in self.changes if change.moved]

    @property
    def causes(self) -> Counter[Cause]:
        """How many moved cells each cause is behind."""
        return Counter(cause for change in self.moved for cause in change.causes)


class _Commit:
    """What one commit says: scores, plans, pins, locks."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.hash = root, commit_of(root, name)
        self.scores = dict(_scores(json.loads(self.file(METRICS) or "{}")))
        self.pins = {name: version for file in PINNED for name, version in _pins(self.file(file) or "").items()}
        lines = [json.loads(line) for line in (self.file(VERDICTS) or "").splitlines()]
        self.verdicts = {str(line["claim"]): str(line["verdict"]) for line in lines}  # the last one stands
        lock = self.file("dvc.lock")
        stages = _yaml(root, lock)["stages"] if lock else {}
        self.outs = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
        self.plans: Plans | None = None
        self.by_cell: dict[Cell, dict[str, dict[int, Planned]]] = {}

    def file(self, path: str) -> str | None:
        """A file's text at this commit; None where it has none."""
        try:
            return git(self.root, "show", f"{self.hash}:{path}").decode()
        except GitError:
            return None

    def plan(self, tiers: Sequence[str]) -> None:
        """Ask this commit's code for its plans."""
        with tree_of(self.root, self.hash, NEEDED) as tree:
            self.plans = plans(tree, tiers, extra=(SUMMARY,))
        for job in self.plans.jobs.values():
            if job.cell is not None and job.kind in PHASES:
                cell = (job.cell["tier"], job.cell["task"], job.cell["backbone"], job.cell["protocol"])
                self.by_cell.setdefault(cell, {}).setdefault(job.kind, {})[job.cell["seed"]] = job


def compare(root: Path, before: str, after: str) -> Comparison:
    """Hold two commits of the checkout at `root` against each other.

    Raises GitError for a commit that is not there, PlanError for one whose code makes no plan.
    """
    old, new = _Commit(root, before), _Commit(root, after)
    cells = sorted(old.scores.keys() | new.scores.keys())
    tiers = sorted({cell[0] for cell in cells})
    if not cells:
        raise NoscratchError(
            f"Two commits are compared by their {METRICS}; neither {before} nor {after} has a score. Run `noscratch "
            "repro` and commit what it makes."
        )
    for commit in (old, new):
        commit.plan(tiers)
    changes = []
    for cell in cells:
        change = Change(cell, old.scores.get(cell), new.scores.get(cell), [])
        causes = list(dict.fromkeys(_causes(old, new, change)))
        if change.moved or causes:
            changes.append(Change(cell, change.before, change.after, causes))
    verdicts = {
        name: (old.verdicts.get(name, "none"), new.verdicts.get(name, "none"))
        for name in sorted(old.verdicts.keys() | new.verdicts.keys())
        if old.verdicts.get(name) != new.verdicts.get(name)
    }
    return Comparison(old.hash, new.hash, changes, len(cells) - len(changes), verdicts)


# ---------------------------------------------------------------- why


def _causes(old: _Commit, new: _Commit, change: Change) -> Iterator[Cause]:
    jobs = [commit.by_cell.get(change.cell, {}) for commit in (old, new)]
    if not all(jobs):
        if any(jobs):
            yield Cause("settings", "the cell is planned since" if jobs[1] else "the cell is planned no longer")
        return
    seeds = [set(phases["finetune"]) for phases in jobs]
    if seeds[0] != seeds[1]:
        yield Cause("seeds", f"{_listed(seeds[0])} -> {_listed(seeds[1])}")
    # One seed stands for all: their jobs differ in it alone.
    shared = min(seeds[0] & seeds[1], default=None)
    chains = [
        list(_chain(commit, phases["finetune"][min(own) if shared is None else shared]))
        for commit, phases, own in zip((old, new), jobs, seeds, strict=True)
    ]
    found = list(_of_chains(old, new, *chains))
    yield from found
    if found or seeds[0] != seeds[1] or not change.moved:
        return
    if change.before is None or change.after is None:
        yield Cause(
            "data", f"the run has no score at {(old if change.before is None else new).hash[:12]}: see why there"
        )
        return
    yield from _elsewhere(old, new)


def _chain(commit: _Commit, job: Planned) -> Iterator[Planned]:
    """A job and all that it needs."""
    assert commit.plans is not None
    yield job
    for address in job.needs.values():
        yield from _chain(commit, commit.plans.jobs[address])


def _of_chains(old: _Commit, new: _Commit, before: Sequence[Planned], after: Sequence[Planned]) -> Iterator[Cause]:
    """What differs between the jobs behind a cell: settings and data first, then code."""
    ours, theirs = ({_role(job): job for job in chain} for chain in (before, after))
    for role in [*ours, *(role for role in theirs if role not in ours)]:
        one, other = ours.get(role), theirs.get(role)
        if one is None or other is None:
            kind = "data" if role[0] in ("fetch", "prepare") else "settings"
            yield Cause(kind, f"{' '.join(role)} is {'new' if one is None else 'gone'}")
        elif one.address != other.address:
            kind = "data" if one.kind in ("fetch", "prepare") else "settings"
            for name, (was, now) in sorted(_changed(one.settings, other.settings).items()):
                yield Cause(kind, f"{PHASES.get(one.kind, ' '.join(role))}, {name}: {was} -> {now}")
    for role in ours.keys() & theirs.keys():
        one, other = ours[role], theirs[role]
        if one.code != other.code:
            yield from (Cause("code", module) for module in _modules(old, new, one.code, other.code))


def _role(job: Planned) -> tuple[str, str]:
    """What a job is to its cell."""
    return (job.kind, "" if job.cell else job.view)


def _changed(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[str, str]]:
    """Name -> both values, in words, of every setting that differs but the seed."""
    found: dict[str, tuple[str, str]] = {}
    for name in old.keys() | new.keys():
        was, now = old.get(name), new.get(name)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            found |= _changed(was, now, f"{prefix}{name}.")
        elif was != now and (prefix or name != "seed"):
            found[prefix + name] = (_word(old, name), _word(new, name))
    return found


def _word(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name]) if name in settings else "none"


def _modules(old: _Commit, new: _Commit, before: str, after: str) -> list[str]:
    """The modules whose code differs between two digests of a job's code."""
    assert old.plans is not None
    assert new.plans is not None
    ours = {module: old.plans.digests[module] for module in old.plans.closures[before]}
    theirs = {module: new.plans.digests[module] for module in new.plans.closures[after]}
    return sorted(module for module in ours.keys() | theirs.keys() if ours.get(module) != theirs.get(module))


def _elsewhere(old: _Commit, new: _Commit) -> Iterator[Cause]:
    """Why the same addresses gave another score."""
    assert old.plans is not None
    assert new.plans is not None
    ours, theirs = (set(plans.closures.get(SUMMARY, ())) for plans in (old.plans, new.plans))
    code = [m for m in sorted(ours | theirs) if old.plans.digests.get(m) != new.plans.digests.get(m)]
    yield from (Cause("code", module) for module in code)
    pins = [name for name in LIBRARIES if old.pins.get(name) != new.pins.get(name)]
    for name in pins:
        yield Cause("environment", f"{name} {old.pins.get(name, 'none')} -> {new.pins.get(name, 'none')}")
    if code or pins:
        return
    if old.outs.get("data/prepared") != new.outs.get("data/prepared"):
        yield Cause("data", "other bytes were prepared by the same settings and code (data/prepared in dvc.lock)")
        return
    yield Cause("environment", "equal addresses and pins: another device or library, or an edit (`noscratch audit`)")


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(seeds))) or "none"


# ---------------------------------------------------------------- reading


def _scores(summary: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[Cell, Score]]:
    """The cells of metrics.json."""
    if len(place) == 4:
        metric = next(name for name in summary if name not in ("n", "seeds"))
        tier, task, backbone, protocol = place
        seeds = {int(seed): float(value) for seed, value in summary["seeds"].items()}
        yield (tier, task, backbone, protocol), Score(metric, seeds)
        return
    for name, inside in summary.items():
        yield from _scores(inside, (*place, name))


def _pins(text: str) -> dict[str, str]:
    """Library -> version."""
    return dict(re.findall(r"(?:^|\s)([A-Za-z0-9_.-]+)==(\S+)", text))


def _yaml(root: Path, text: str) -> Any:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        return read(Path(file.name)).data


# ---------------------------------------------------------------- in words


def beside(root: Path, before: str, after: str) -> Iterator[tuple[str, str]]:
    """(command, output) of what DVC says of the same two commits."""
    for first, last in BESIDE:
        command = ["dvc", *first, before, after, *last]
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": "0"},  # else `dvc metrics diff` orders its rows anew each time
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout if done.returncode == 0 else done.stderr
        if first == ["diff"] and done.returncode == 0:
            said = grouped(json.loads(said or "{}"))
        yield " ".join(command), said.rstrip()


def grouped(changes: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What `dvc diff --json` says, a line for each cell, folder or report with the number of its files."""
    counts: Counter[tuple[str, str]] = Counter()
    for state, entries in changes.items():
        for entry in entries:
            path = entry["path"] if isinstance(entry["path"], str) else entry["path"]["new"]
            if not path.endswith("/"):
                counts[state, _group(path)] += 1
    return "\n".join(f"{state:9} {count:5} {place}" for (state, place), count in sorted(counts.items()))


def _group(path: str) -> str:
    """data/runs/TIER/TASK/BACKBONE/PROTOCOL, data/VIEW/NAME, a generated folder, or the file itself."""
    parts = path.split("/")
    depth = (
        6 if parts[:2] == ["data", "runs"] else 3 if parts[0] in ("data", "site") else 1 if parts[0] == "public" else 9
    )
    return "/".join(parts[:depth])


def words(change: Change) -> tuple[str, str, str, str]:
    """A change as (before, after, difference, noise)."""
    both = [
        "none" if score is None else f"{score.mean:.4f} (n = {len(score.seeds)})"
        for score in (change.before, change.after)
    ]
    if change.before is None or change.after is None or change.before.metric != change.after.metric:
        return both[0], both[1], "", change.noise
    if (found := change.difference) is not None and all(map(math.isfinite, found)):
        value, low, high = found
        return both[0], both[1], f"{value:+.4f} [{low:+.4f}, {high:+.4f}]", change.noise
    return both[0], both[1], f"{change.after.mean - change.before.mean:+.4f}", change.noise


def page(comparison: Comparison, said: Sequence[tuple[str, str]] = ()) -> str:
    """The comparison as a Markdown page of the site; `said` is what DVC says beside it. Cells name their causes by
    number."""
    title = f"What changed from {comparison.before[:12]} to {comparison.after[:12]}"
    lines = ["---", f"title: {title}", "hide: [navigation, toc]", "---", "", f"# {title}", "", summary(comparison), ""]
    every = dict.fromkeys(comparison.causes | Counter(c for change in comparison.changes for c in change.causes))
    causes = sorted(every, key=lambda cause: -comparison.causes[cause])
    number = {cause: k for k, cause in enumerate(causes, 1)}
    if causes:
        lines += ["## Why", "", "| | Cause | Cells that moved |", "| --- | --- | --- |"]
        lines += [f"| {number[cause]} | {_escaped(str(cause))} | {comparison.causes[cause]} |" for cause in causes]
        lines.append("")
    for title, changes in (
        ("Cells that moved", comparison.moved),
        ("Made by other settings or code, with the same scores", [c for c in comparison.changes if not c.moved]),
    ):
        if changes:
            lines += [f"## {title}", "", "| Cell | Before | After | Difference | Noise | Why |"]
            lines.append("| --- | --- | --- | --- | --- | --- |")
            for change in changes:
                why = ranges(sorted(number[cause] for cause in change.causes))
                lines.append("| " + " | ".join(map(_escaped, ["/".join(change.cell), *words(change), why])) + " |")
            lines.append("")
    if comparison.verdicts:
        lines += ["## Verdicts that changed", "", "| Claim | Was | Is |", "| --- | --- | --- |"]
        lines += [f"| {_escaped(claim)} | {was} | {now} |" for claim, (was, now) in comparison.verdicts.items()]
        lines.append("")
    for command, output in said:
        lines += [f"## {command}", "", "```", output.replace("```", "'''"), "```", ""]
    return "\n".join(lines)


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, neighbours joined: 1-3, 7."""
    found: list[list[int]] = []
    for each in numbers:
        if found and found[-1][-1] == each - 1:
            found[-1].append(each)
        else:
            found.append([each])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in found)


def summary(comparison: Comparison) -> str:
    """One sentence."""
    moved = comparison.moved
    noise = Counter(change.noise for change in moved)
    about = ", ".join(f"{count} {word}" for word, count in noise.most_common())
    same = len(comparison.changes) - len(moved)
    total = len(comparison.changes) + comparison.unchanged
    said = f"{len(moved)} of {total} cells moved" + (f" ({about})." if about else ".")
    return said + (f" {same} were made by other settings or code and kept their scores." if same else "")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
