"""Numbers: each one on a page is followed to the bytes that it comes from, and computed again from them.

The contract is results/pages/numbers.py's: a <data> element has an address, exact values and a form of words. Here the
address is walked without the code that wrote it: from the page to a row of results.parquet, from the row to its record,
from the record to files whose sha256 is on disk, from the predictions to the score (scikit-learn, scipy), from scores
to means and intervals (scipy.stats). A number that has no address, or whose way is broken anywhere, is a finding.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

import numpy as np
import pyarrow.parquet as pq
from scipy import stats

from noscratch.audit.case import CURVES, PREDICTIONS, RECORDS, UNREADABLE, Case, Entry, Finding
from noscratch.audit.records import TOLERANCE, read_curve, recomputed
from noscratch.results import cells, claims
from noscratch.results.collect import CELL, COUNTS
from noscratch.results.pages.numbers import FORMS, bare, spoken
from noscratch.results.publish import GENERATED
from noscratch.store import PROVENANCE, RECORD

Value = float | int | None
PUBLIC = Path("public")
MEND = "Run `noscratch publish` and `noscratch site`; where the way is broken, mend what it names first."
DERIVED = 1e-12  # relative; between two ways to add up the same float64 values
# Pages of documents that somebody wrote: their prose is quoted, and its numbers are its author's.
WRITTEN = ("changelog", "log")
STATES = ("failed", "diverged", "blocked", "done")  # from worst to best
DECIMAL = re.compile(r"[-+−\[]?\d[\d,]*\.\d+(?:e[-+]?\d+)?[%×,\]]?")
SHOWN = 20  # findings of one page


class BrokenError(Exception):
    """The way from a number to its bytes ends too early; the message says where."""


class Number(NamedTuple):
    """A <data> element of a page: values as written, full address, form, and what the reader sees."""

    values: list[str]
    address: str
    form: str
    words: str


def check(case: Case) -> Iterator[Finding]:
    """Every number of every page, of the built site where it is there, else of the generated pages."""
    walk = Walk(case)
    for path in pages(case.root):
        found: list[Finding] = []
        text = path.read_text(encoding="utf-8", errors="replace")
        generated, article = GENERATED.name in path.parts, _article(text) if path.suffix == ".html" else text
        for number in numbers_of(article):
            case.numbers += 1
            if problem := walk.problem(number):
                found.append(Finding(case.relative(path), "numbers", problem, MEND))
        if generated and path.stem not in WRITTEN:
            blocks = article if path.suffix == ".html" else _without_front_matter(text)
            for digits in (*bare(blocks), *_linked(blocks)):
                found.append(Finding(case.relative(path), "numbers", f"{digits} has no address", MEND))
        yield from found[:SHOWN]
        if len(found) > SHOWN:
            yield Finding(case.relative(path), "numbers", f"and {len(found) - SHOWN} more", MEND)


def pages(root: Path) -> list[Path]:
    """The pages with numbers: built HTML, or the generated Markdown where nothing is built."""
    built = [root / PUBLIC / "index.html", *sorted((root / PUBLIC / GENERATED.name).rglob("*.html"))]
    if built[0].is_file():
        return built
    return sorted((root / GENERATED).rglob("*.md"))


def _article(text: str) -> str:
    """What MkDocs made of the page itself, without navigation and footer."""
    start, end = text.find("<article"), text.rfind("</article>")
    return text[start:end] if 0 <= start < end else text


def _without_front_matter(text: str) -> str:
    """The HTML of a generated Markdown page; its other lines are headings and front matter, which name things."""
    return "\n".join(line for line in text.split("\n") if line.startswith(("<", " ")))


def _linked(html: str) -> Iterator[str]:
    """Decimal numbers in links without a <data> element: a link's digits are a name, its decimals are a score."""
    for inner in re.findall(r"<a [^>]*>(.*?)</a>", html, re.DOTALL):
        if "<data " not in inner:
            yield from (word for word in _text(inner).split() if DECIMAL.fullmatch(word))


class _Reader(HTMLParser):
    """Collects the <data> elements of a page."""

    VOID = ("br", "img", "input", "link", "meta", "hr", "path", "rect", "circle", "line", "source", "wbr")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Number] = []
        self.stack: list[tuple[str, str]] = []  # element, the base of the addresses in it
        self.open: tuple[list[str], str, str] | None = None
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.VOID:
            return
        given = {name: value or "" for name, value in attrs}
        base = given.get("data-base", self.stack[-1][1] if self.stack else "")
        self.stack.append((tag, base))
        if tag == "data":
            address = given.get("data-cell", "")
            full = base + address.removeprefix("./") if address.startswith("./") else address
            self.open, self.text = (given.get("value", "").split(), full, given.get("data-form", "")), []

    def handle_endtag(self, tag: str) -> None:
        while self.stack:
            if self.stack.pop()[0] == tag:  # what HTML closes by itself is closed with it
                break
        if tag == "data" and self.open is not None:
            self.found.append(Number(*self.open, "".join(self.text)))
            self.open = None

    def handle_data(self, data: str) -> None:
        if self.open is not None:
            self.text.append(data)


def numbers_of(html: str) -> list[Number]:
    """Every <data> element of a page."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.found


class Walk:
    """The way from addresses to bytes in one checkout; whatever was walked once is remembered."""

    def __init__(self, case: Case) -> None:
        """Nothing is read yet."""
        self.case = case
        self._resolved: dict[str, list[Value] | str] = {}
        self._trusted: dict[Path, None] = {}
        self._json: dict[Path, Any] = {}
        self._curves: dict[Path, Any] = {}
        self._tables: dict[Path, list[dict[str, Any]]] = {}

    def problem(self, number: Number) -> str | None:
        """What is wrong with a number; None where its bytes give it to the last digit."""
        name = number.form.partition(":")[0]
        if not number.address:
            return f"{number.words!r} has no address"
        if name not in FORMS:
            return f"{number.address}: no form {number.form!r}"
        try:
            shown = [None if value == "-" else float(value) for value in number.values]
        except ValueError:
            return f"{number.address}: {' '.join(number.values)!r} are no numbers"
        found = self.values(number.address)
        if isinstance(found, str):
            return f"{number.address}: {found}"
        derived = any(mark in number.address for mark in ("/*/", "difference/", "sum/", "*")) or "," in number.address
        if len(found) != len(shown) or not all(_same(a, b, derived) for a, b in zip(shown, found, strict=True)):
            return f"{number.address}: the page has {number.values}, its bytes give {found}"
        # The page's own values, of the type that its bytes have: 128 and 128.0 are other words.
        typed = [int(a) if a is not None and isinstance(b, int) else a for a, b in zip(shown, found, strict=True)]
        try:
            words = _text(str(spoken(number.form, *typed)))
        except UNREADABLE as error:
            return f"{number.address}: {found} cannot be put as {number.form}: {error}"
        return None if words == number.words else f"{number.address}: it reads {number.words!r}, its value {words!r}"

    def values(self, address: str) -> list[Value] | str:
        """The values at an address, or where the way to them breaks."""
        if address not in self._resolved:
            try:
                self._resolved[address] = self._walk(address)
            except BrokenError as error:
                self._resolved[address] = str(error)
            except UNREADABLE as error:
                self._resolved[address] = f"the way breaks: {type(error).__name__} {error}"
        return self._resolved[address]

    def _walk(self, address: str) -> list[Value]:
        path, _, pointer = address.partition("#")
        path, _, query = path.partition("?")
        source, _, rest = path.partition("/")
        parts = [unquote(part) for part in rest.split("/")]
        steps = [unquote(step).replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
        chosen = dict(parse_qsl(query, keep_blank_values=True))
        if source == "results":
            return self._results(parts)
        if source == "difference":
            return self._difference(parts)
        if source == "verdicts":
            return self._verdict(parts)
        if source == "claims":
            return (
                [_as_number(each) for each in _pointed(self._claim(parts[0]), steps)]
                if pointer
                else self._ledger(parts)
            )
        if source == "history":
            lines = (self.case.root / "reports/verdicts.jsonl").read_text(encoding="utf-8").splitlines()
            *steps, last = steps
            line = json.loads(lines[int(parts[0])])
            return [_as_number(each) for name in last.split(",") for each in _pointed(line, [*steps, name])]
        if source == "cells":
            return self._cell(parts)
        if source == "curves":
            return [self._point(parts)]
        if source in ("record", "provenance"):
            return [self._inside(source, "/".join(parts), steps)]
        if source == "sum":
            return [self._sum(parts[0], chosen)]
        if source == "size":
            return [(self.case.root / GENERATED / "/".join(parts)).stat().st_size]
        if source == "bench":
            return self._bench(*parts)
        if source == "count":
            return [sum(_agrees(row, chosen) for row in self._counted(parts[0]))]
        raise BrokenError(f"no source {source!r}")

    # ------------------------------------------------------------ results

    @cached_property
    def _by_cell(self) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
        found: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
        for row in self._table("results"):
            found[tuple(row[name] for name in (*CELL[:-1], "phase"))].append(row)
        return found

    @cached_property
    def _runs(self) -> dict[tuple[str, str], list[Entry]]:
        found: dict[tuple[str, str], list[Entry]] = defaultdict(list)
        for entry in self.case.in_place("runs", "published"):
            if entry.record["cell"] is not None:
                found[entry.address, entry.kind].append(entry)
        return found

    def _results(self, parts: Sequence[str]) -> list[Value]:
        *group, seed, phase, split, metric, column = parts
        rows = self._by_cell[(*group, phase)]
        if seed == "*":
            values = self._scores(rows, split, metric, column)
            return _mean_of(list(values.values()))
        alike = [r for r in rows if str(r["seed"]) == seed and r["split"] == split and r["metric"] == metric]
        if len(alike) != 1:
            raise BrokenError(f"{len(alike)} rows of results.parquet have it")
        return [self._from_bytes(alike[0], column)]

    def _scores(self, rows: Sequence[Mapping[str, Any]], split: str, metric: str, column: str) -> dict[int, float]:
        """Seed -> value of the runs that repeat each other: those of the present plan, else the largest group."""
        groups: dict[tuple[str, str], dict[int, Mapping[str, Any] | None]] = defaultdict(dict)
        for row in rows:
            group = groups[row["code"], row["setting"]]
            wanted = row["split"] == split and row["metric"] == metric and row["value"] is not None
            if wanted or row["seed"] not in group:
                group[row["seed"]] = row if wanted else None
        if not groups:
            raise BrokenError("no row of results.parquet has it")
        taken = groups[max(groups, key=lambda key: (key[0] == "current", len(groups[key]), key))]
        found = {seed: self._from_bytes(row, column) for seed, row in sorted(taken.items()) if row is not None}
        return {seed: float(value) for seed, value in found.items() if value is not None}

    def _from_bytes(self, row: Mapping[str, Any], column: str) -> Value:
        """A row's column, as the record of the run and the files of the record have it."""
        shown = row[column]
        entry = self._entry(row)
        result = entry.record["result"]
        if column == "value":
            stated = result["metrics"][row["split"]][row["metric"]]
            self._recompute(entry, row["split"], row["metric"], stated)
        elif column in COUNTS:
            stated = result["counts"][column]
        elif column == "examples":
            stated = result["examples"][row["split"]]
        elif column == "selected_step":
            stated = result["selection"]["step"]
        else:
            raise BrokenError(f"results.parquet has no number {column!r}")
        if shown != stated:
            raise BrokenError(f"results.parquet has {shown}, {entry.at(RECORD)} has {stated}")
        return _as_number(stated)

    def _entry(self, row: Mapping[str, Any]) -> Entry:
        """The record behind a row, with files that are what it states."""
        cell = tuple(row[name] for name in CELL)
        for entry in self._runs[row["address"], row["phase"]]:
            if entry.cell == cell:
                self._trust(entry)
                return entry
        raise BrokenError(f"no record of {row['address']} lies in data/runs or {RECORDS}")

    def _trust(self, entry: Entry) -> None:
        """Every file of the entry that is there, and those that a score needs, have the sha256 of the record."""
        if entry.folder in self._trusted:
            return
        for name, artifact in entry.record["artifacts"].items():
            path = entry.folder / name
            if not path.is_file():
                if entry.place == "published" and name not in (CURVES, PREDICTIONS):
                    continue  # weights stay where they were made
                raise BrokenError(f"{entry.at(name)} is missing")
            if self.case.digests.one(path) != artifact["sha256"]:
                raise BrokenError(f"{entry.at(name)} has not the sha256 of its record")
        self._trusted[entry.folder] = None

    def _recompute(self, entry: Entry, split: str, metric: str, stated: float) -> None:
        if entry.kind != "finetune" or metric == "loss":
            return  # needs probabilities, which are not kept: the record is the bytes
        found = self.case.predictions(entry)[split]
        again = recomputed(metric, found.target, found.prediction)
        if again is None or not math.isclose(again, stated, rel_tol=0.0, abs_tol=TOLERANCE):
            raise BrokenError(f"{entry.at(RECORD)} has {stated}, its predictions give {again}")

    def _difference(self, parts: Sequence[str]) -> list[Value]:
        tier, task, *names, metric = parts
        sides = [
            self._scores(self._by_cell[tier, task, *names[k : k + 2], "finetune"], "test", metric, "value")
            for k in (0, 2)
        ]
        shared = sorted(sides[0].keys() & sides[1].keys())
        return _mean_of([sides[0][seed] - sides[1][seed] for seed in shared])

    def _sum(self, column: str, chosen: Mapping[str, str]) -> Value:
        """Each run once, whatever number of rows it has."""
        runs = {
            tuple(row[name] for name in (*CELL, "phase")): row for row in self._table("results") if _agrees(row, chosen)
        }
        values = [row[column] if row["value"] is None else self._from_bytes(row, column) for row in runs.values()]
        return math.fsum(value for value in values if value is not None)

    def _cell(self, parts: Sequence[str]) -> list[Value]:
        """A row of cells.parquet; the runs that it sums up have their records and bytes."""
        *key, columns = parts
        rows = [row for row in self._table("cells") if [row[name] for name in cells.KEY] == key]
        if len(rows) != 1:
            raise BrokenError(f"{len(rows)} rows of cells.parquet have it")
        self._walk_cell(key[0], "/".join(key[1:4]))
        return [_as_number(rows[0][column]) for column in columns.split(",")]

    def _table(self, name: str) -> list[dict[str, Any]]:
        """The rows of a report."""
        path = self.case.root / "reports" / f"{name}.parquet"
        if path not in self._tables:
            self._tables[path] = pq.read_table(path).to_pylist()
        return self._tables[path]

    # ------------------------------------------------------------ verdicts and claims

    @cached_property
    def _verdict_rows(self) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
        found: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
        for row in self._table("verdicts"):
            found[row["claim"], row["quantity"], row["tier"]].append(row)
        return found

    def _verdict(self, parts: Sequence[str]) -> list[Value]:
        claim, quantity, tier, columns = parts
        rows = self._verdict_rows[claim, quantity, tier]
        if len(rows) != 1:
            raise BrokenError(f"{len(rows)} rows of verdicts.parquet have it")
        for cell in json.loads(rows[0]["cells"]) if rows[0]["n"] else ():
            self._walk_cell(tier, cell)
        return [_as_number(rows[0][column]) for column in columns.split(",")]

    def _walk_cell(self, tier: str, cell: str) -> None:
        """The runs that a verdict's figures come from have their records and bytes."""
        for row in self._by_cell[tier, *cell.split("/"), "finetune"]:
            if row["value"] is not None:
                self._from_bytes(row, "value")

    @cached_property
    def _papers(self) -> dict[str, Any]:
        return {claim.id: claim for paper in claims.load(self.case.root / "claims") for claim in paper.claims}

    def _claim(self, name: str) -> Any:
        """A claim as its file has it, defaults included."""
        return self._papers[name].model_dump(mode="json")

    def _ledger(self, parts: Sequence[str]) -> list[Value]:
        name, quantity = parts
        found = [each for each in self._papers[name].quantities if each.name == quantity]
        if len(found) != 1:
            raise BrokenError(f"{len(found)} quantities of the claim have that name")
        return [found[0].low, found[0].high]

    # ------------------------------------------------------------ records, curves, measurements

    def _point(self, parts: Sequence[str]) -> Value:
        *group, seed, phase, step, split, metric = parts
        for row in self._by_cell[(*group, phase)]:
            if str(row["seed"]) == seed:
                entry = self._entry(row)
                path = entry.folder / CURVES
                if path not in self._curves:
                    self._curves[path] = read_curve(path)
                return self._curves[path][split, metric][int(step)]
        raise BrokenError("no row of results.parquet has the run")

    def _inside(self, source: str, folder: str, steps: Sequence[str]) -> Value:
        """A place in the JSON files of the folders; several are added up."""
        name = RECORD if source == "record" else PROVENANCE
        folders = sorted(self.case.root.glob(folder)) if "*" in folder else [self.case.root / folder]
        known = {entry.folder: entry for entry in self.case.entries}
        found = []
        for place in folders:
            if place not in known:
                if "*" in folder:
                    continue
                raise BrokenError(f"{folder} has no record")
            self._trust(known[place])
            if name == RECORD:
                content = known[place].record
            elif (place / name).is_file():
                content = json.loads((place / name).read_bytes())
            else:
                continue
            try:
                found += list(_pointed(content, steps))
            except (KeyError, IndexError, TypeError):
                if "*" not in folder:
                    raise
        if not found:
            raise BrokenError(f"nothing has {'/'.join(steps)}")
        if "*" not in folder and "*" not in steps:
            return _as_number(found[0])
        return math.fsum(value for value in map(_as_number, found) if value is not None)

    def _bench(self, name: str, file: str, rows: str, columns: str) -> list[Value]:
        folder = self.case.root / RECORDS / name
        entries = [entry for entry in self.case.in_place("bench") if entry.folder == folder]
        if not entries or file not in entries[0].record["artifacts"]:
            raise BrokenError(f"no record in {RECORDS}/{name} lists {file}")
        self._trust(entries[0])
        path = folder / file
        if path not in self._tables:
            parquet = file.endswith(".parquet")
            self._tables[path] = pq.read_table(path).to_pylist() if parquet else json.loads(path.read_bytes())
        table = self._tables[path]
        taken, names = [table[int(row)] for row in rows.split(",")], columns.split(",")
        if len(taken) == 1:
            return [_ratio(taken[0], column) for column in names]
        x, y = (np.array([float(_ratio(row, column) or 0) for row in taken]) for column in names)
        kept = (x > 0) & (y > 0) & np.isfinite(y)
        return [float(stats.linregress(np.log(x[kept]), np.log(y[kept])).slope)]

    # ------------------------------------------------------------ counts

    def _counted(self, table: str) -> Iterable[Mapping[str, Any]]:
        if table in ("verdicts", "flags"):
            return self._table(table)
        if table == "sources":
            return [entry.record for entry in self.case.in_place("raw")]
        if table == "cells":
            return self._cells
        raise BrokenError(f"no table {table!r} is counted")

    @cached_property
    def _cells(self) -> list[dict[str, Any]]:
        """One row per run of view and records: the worst state of its phases, and the first reason of that state."""
        phases: dict[tuple[Any, ...], dict[str, dict[str, Entry]]] = defaultdict(lambda: defaultdict(dict))
        for entry in self.case.in_place("runs", "published"):
            if entry.record["cell"] is not None and entry.kind in ("pretrain", "finetune"):
                phases[entry.cell][entry.place][entry.kind] = entry
        rows = []
        for cell, places in phases.items():
            view = places["runs"]
            blocked = not view or _worst(view.values())[0] == "blocked"
            shown = places["published"] if blocked and places["published"] else view
            state, reason = _worst([shown[kind] for kind in ("pretrain", "finetune") if kind in shown])
            rows.append(dict(zip(CELL, cell, strict=True)) | {"state": state, "reason": reason})
        return rows


def _worst(entries: Iterable[Entry]) -> tuple[str, str]:
    records = [entry.record for entry in entries]
    state = min((record["state"] for record in records), key=STATES.index)
    return state, next((record["reason"] for record in records if record["state"] == state and record["reason"]), "")


def _mean_of(values: Sequence[float]) -> list[Value]:
    """Mean, 95 % t interval and n, by scipy.stats."""
    n = len(values)
    if not n:
        raise BrokenError("no run has it")
    mean = float(np.mean(values))
    if n == 1:
        return [mean, None, None, 1]
    error = float(stats.sem(values))
    if error <= DERIVED * max(1.0, float(np.max(np.abs(values)))):  # equal values: rounding is no spread
        return [mean, mean, mean, n]
    low, high = stats.t.interval(0.95, n - 1, loc=mean, scale=error)
    return [mean, float(low), float(high), n]


def _ratio(row: Mapping[str, Any], column: str) -> Value:
    first, _, second = column.partition(":")
    return row[first] / row[second] if second else _as_number(row[first])


def _agrees(row: Mapping[str, Any], chosen: Mapping[str, str]) -> bool:
    return all(str(row[column]) in value.split("|") or str(row[column]) == value for column, value in chosen.items())


def _pointed(content: Any, steps: Sequence[str]) -> Iterator[Any]:
    """What a JSON pointer leads to; a * leads to every member."""
    if not steps:
        yield content
    elif steps[0] == "*":
        for inner in content.values() if isinstance(content, dict) else content:
            yield from _pointed(inner, steps[1:])
    else:
        yield from _pointed(content[steps[0] if isinstance(content, dict) else int(steps[0])], steps[1:])


def _as_number(value: Any) -> Value:
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    raise BrokenError(f"{value!r} is no number")


def _same(shown: Value, found: Value, derived: bool) -> bool:
    if shown is None or found is None:
        return shown is found
    return math.isclose(shown, found, rel_tol=DERIVED, abs_tol=DERIVED) if derived else shown == found


def _text(html: str) -> str:
    """The words of some HTML."""
    reader = _Words()
    reader.feed(html)
    reader.close()
    return "".join(reader.words)


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def handle_data(self, data: str) -> None:
        self.words.append(data)
