"""Reports and pages: made again from what they are made from, and compared byte by byte, then row by row."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from noscratch import params
from noscratch.audit.case import UNREADABLE, Case, Entry, Finding
from noscratch.audit.history import repetition
from noscratch.results import collect, parquet_table, publish
from noscratch.results.claims import ClaimError
from noscratch.results.judged import KEYS, judge_all
from noscratch.store import RECORD

REPORTS = Path("reports")
COLLECT = "Run `noscratch repro`; if the record is right, this was changed."
SHOWN = 10  # rows that are named where more differ
RUNS = ("pretrain", "finetune")


def check(case: Case) -> Iterator[Finding]:
    """Results from records, verdicts from results and claims, pages from all; and that no run is missing."""
    results = case.root / REPORTS / "results.parquet"
    if not case.built and not results.is_file():
        return  # a clone in which nothing was built or pulled: the committed records are all there is
    yield from _complete(case)
    yield from _blocked(case)
    yield from _seeds(case)
    yield from _left_out(case)
    yield from _results(case)
    yield from _verdicts(case)
    yield from _pages(case)


# ---------------------------------------------------------------- no run missing


def _complete(case: Case) -> Iterator[Finding]:
    """The views hold the present plan, every job of it, and the results have a row for every run."""
    planned = case.plans.of_tier(case.plans.tier)
    view = {entry.address: entry for entry in case.in_place("raw", "prepared", "runs")}
    missing = [job for job in planned if job.address not in view]
    foreign = sorted(view.keys() - {job.address for job in planned})
    shown = {entry.path for entry in view.values()}
    gone = [job for job in missing if not any(path.endswith(f"/{job.view}") for path in shown)]
    for job in gone[:SHOWN]:
        yield Finding(
            f"data/*/{job.view}", "complete", f"job {job.address} is planned and not there", "`noscratch repro`"
        )
    if len(gone) > SHOWN:
        yield Finding("data", "complete", f"{len(gone)} planned jobs are not there", "`noscratch repro`")
    if moved := len(missing) - len(gone):
        got = f"{moved} of {len(planned)} results are of other settings, code or data than the present plan's"
        yield Finding("data", "plan", got, "Commit or take back what changed since, or `noscratch repro`.")
    for address in foreign[:SHOWN] if not missing else ():
        yield Finding(
            view[address].path, "plan", "the present plan does not name it", "`noscratch view raw prepared runs`"
        )
    rows = _rows(case)
    wanted = {_name(job.cell, job.kind) for job in planned if job.cell and job.kind in RUNS}
    wanted |= {_name(entry.record["cell"], entry.kind) for entry in case.in_place("published") if entry.kind in RUNS}
    for name in sorted(wanted - rows.keys()):
        yield Finding("reports/results.parquet", "complete", f"{'/'.join(map(str, name))} has no row", COLLECT)
    for name in sorted(rows.keys() - wanted):
        got = f"{'/'.join(map(str, name))} is neither planned nor published"
        yield Finding("reports/results.parquet", "complete", got, COLLECT)


def _blocked(case: Case) -> Iterator[Finding]:
    """Only a source that cannot be had blocks, and only what is made from it."""
    blocked = {e.address for e in case.in_place("raw", "prepared", "runs") if e.record["state"] == "blocked"}
    for entry in case.in_place("prepared", "runs"):
        job = case.plans.jobs.get(entry.address)
        if entry.address in blocked and not (job and blocked & set(job.needs.values())):
            got = f"it is blocked ({entry.record['reason']}), and nothing that it needs is"
            yield Finding(entry.at(RECORD), "complete", got, "Run the job; show what became of it.")


def _name(cell: Mapping[str, Any], kind: str) -> tuple[Any, ...]:
    return (*(cell[name] for name in collect.CELL), kind)


def _rows(case: Case) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """The rows of results.parquet by cell and phase; none where it cannot be read (which is found elsewhere)."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    try:
        for row in pq.read_table(case.root / REPORTS / "results.parquet").to_pylist():
            found[tuple(row[name] for name in (*collect.CELL, "phase"))].append(row)
    except UNREADABLE:
        return {}
    return found


def _seeds(case: Case) -> Iterator[Finding]:
    """Seeds are 0 to n-1, in every tier; no two seeds of a cell are one run."""
    for tier, seeds in case.plans.seeds.items():
        if list(seeds) != list(range(len(seeds))):
            got = f"tier {tier} has the seeds {', '.join(map(str, seeds))}: chosen, or one left out"
            yield Finding("params.yaml", "seeds", got, f"Plan seeds 0 to {len(seeds) - 1}.")
    for name in ("curves.csv", "weights.safetensors"):  # predictions of weak models may agree by chance
        groups: dict[tuple[Any, ...], dict[str, Entry]] = defaultdict(dict)
        for entry in case.runs:
            artifact = entry.record["artifacts"].get(name)
            if entry.done and artifact is not None:
                group = (*entry.cell[:-1], entry.kind, entry.folder.name)
                twin = groups[group].setdefault(artifact["sha256"], entry)
                if twin.cell != entry.cell:
                    got = f"it is that of {twin.path}: one run under two seeds"
                    yield Finding(entry.at(name), "seeds", got, "Remove the copy and run its own seed.")


def _left_out(case: Case) -> Iterator[Finding]:
    """A finished run in the store that differs from planned ones in its seed alone was made and left out."""

    planned: dict[tuple[str, str, str | None], set[int]] = defaultdict(set)
    for job in case.plans.jobs.values():
        if job.kind in RUNS and job.cell:
            planned[job.kind, repetition(job.settings, job.code), job.needs.get("prepared")].add(job.cell["seed"])
    for entry in case.in_place("store"):
        record = entry.record
        if entry.kind not in RUNS or record["cell"] is None:
            continue
        alike = (entry.kind, repetition(record["settings"], record["code"]), record["needs"].get("prepared"))
        if planned[alike] and record["cell"]["seed"] not in planned[alike]:
            got = f"{record['state']} with seed {record['cell']['seed']}; planned are {sorted(planned[alike])} only"
            yield Finding(entry.path, "seeds", got, "Plan that seed too, or remove the run with `noscratch gc`.")


# ---------------------------------------------------------------- made again


def _results(case: Case) -> Iterator[Finding]:
    folders = [
        case.data / "runs" / job.view
        for job in case.plans.of_tier(case.plans.tier)
        if job.kind in RUNS and (case.data / "runs" / job.view / RECORD).is_file()
    ]
    try:
        made = collect.tables(folders, case.root / REPORTS / collect.PUBLISHED, case.plans.jobs.keys())
    except UNREADABLE as error:
        yield Finding("reports/results.parquet", "results", f"the records give none: {error}", "Mend what it names.")
        return
    for name, content in made.items():
        path = case.root / REPORTS / name
        if not path.is_file():
            yield Finding(f"reports/{name}", "results", "it is missing", COLLECT)
        elif path.read_bytes() != content:
            yield from (
                Finding(f"reports/{name}", "results", got, COLLECT)
                for got in _differences(name, path.read_bytes(), content, collect.KEY)
            )


def _verdicts(case: Case) -> Iterator[Finding]:
    """Everything that is judged, made again in a folder of its own from the same results, records and claims."""
    jobs = [job for job in case.plans.jobs.values() if job.kind == "finetune" and job.cell]
    planned = {(job.cell["task"], job.cell["backbone"], job.cell["protocol"]) for job in jobs if job.cell}
    with tempfile.TemporaryDirectory(prefix="noscratch-audit-") as folder:
        again = Path(folder)
        for name in ("claims", params.FILE):
            (again / name).symlink_to(case.root.resolve() / name)
        (again / REPORTS).mkdir()
        for path in (case.root / REPORTS).iterdir():
            if path.name not in KEYS:
                (again / REPORTS / path.name).symlink_to(path.resolve())
        try:
            judge_all(again, planned)
        except ClaimError as error:
            for line in str(error).splitlines():
                yield Finding("claims", "claims", line, "Take the change back, or raise the claim's version.")
            return
        except UNREADABLE as error:
            name = f"reports/{next(iter(KEYS))}"
            yield Finding(name, "verdicts", f"results and claims give none: {error}", "Mend what it names.")
            return
        for name, key in KEYS.items():
            path, content = case.root / REPORTS / name, (again / REPORTS / name).read_bytes()
            if not path.is_file():
                yield Finding(f"reports/{name}", "verdicts", "it is missing", COLLECT)
            elif path.read_bytes() != content:
                for got in _differences(name, path.read_bytes(), content, key):
                    yield Finding(f"reports/{name}", "verdicts", got, COLLECT)


def _pages(case: Case) -> Iterator[Finding]:
    folder = case.root / publish.GENERATED
    if not folder.is_dir():
        return
    try:
        made = publish.contents(case.root)
    except UNREADABLE as error:
        yield Finding(case.relative(folder), "pages", f"the reports give none: {error}", "Mend what it names.")
        return
    present = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    for name in sorted(made.keys() | present.keys()):
        place = case.relative(folder / name)
        if name not in present:
            yield Finding(place, "pages", "it is missing", "Run `noscratch publish`.")
        elif name not in made:
            yield Finding(place, "pages", "nothing makes it", "Run `noscratch publish`.")
        elif present[name].read_bytes() != made[name]:
            yield Finding(place, "pages", "it is not what the reports give", "Run `noscratch publish`.")


def _differences(name: str, got: bytes, wanted: bytes, key: Sequence[str]) -> Iterable[str]:
    """Which rows of a report differ, in words; its bytes alone where its rows agree."""
    try:
        mine, theirs = _keyed(name, wanted, key), _keyed(name, got, key)
    except UNREADABLE as error:
        return [f"it cannot be read ({type(error).__name__}: {error})"]
    words = []
    for place in sorted(mine.keys() | theirs.keys()):
        if mine.get(place) != theirs.get(place):
            words.append(f"{place}: {_first_difference(mine.get(place), theirs.get(place))}")
    more = [f"and {len(words) - SHOWN} more rows"] if len(words) > SHOWN else []
    return [*words[:SHOWN], *more] or ["its bytes are not those that its rows have"]


def _keyed(name: str, content: bytes, key: Sequence[str]) -> dict[str, Any]:
    if name.endswith(".json"):
        return dict(_leaves(json.loads(content)))
    if name.endswith(".csv"):
        return {" ".join(row): n for row, n in Counter(map(tuple, csv.reader(io.StringIO(content.decode())))).items()}
    rows = parquet_table(content).to_pylist()
    return {" ".join(str(row[column]) for column in key): row for row in rows}


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{place}.{name}" if place else str(name))
    else:
        yield place, value


def _first_difference(wanted: Any, got: Any) -> str:
    if wanted is None or got is None:
        return "it is missing" if got is None else "nothing gives it"
    if isinstance(wanted, dict) and isinstance(got, dict):
        column = next(name for name in wanted if wanted[name] != got.get(name))
        return f"{column} is {got.get(column)!r}, the records give {wanted[column]!r}"
    return f"it is {got!r}, the records give {wanted!r}"
