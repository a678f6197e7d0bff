"""The data page: every source, registered or generated, its state, terms, digests; splits; what was set aside."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from noscratch import tasks
from noscratch.results.pages import charts
from noscratch.results.pages.evidence import Evidence
from noscratch.results.pages.markup import (
    Cell,
    Column,
    Html,
    Page,
    Row,
    chip,
    code,
    details,
    facts,
    join,
    link,
    note,
    prose,
    slug,
    table,
    tag,
    task_page,
)
from noscratch.results.pages.numbers import at, inside, shown, words
from noscratch.results.pages.tasks import sources_of, task_module
from noscratch.sources import PARTIAL
from noscratch.sources.registry import SOURCES, File, Form, Source

HAVE, BLOCKED, ABSENT, GENERATED = "available", "blocked", "not in the plan", "generated"
VERIFIED, FIRST_USE, NOT_FETCHED = "listed digest, verified", "trusted on first use", "not fetched"
EVERYWHERE = "the same bytes everywhere"
Record = Mapping[str, Any]


def pages(evidence: Evidence) -> Iterator[Page]:
    page = Page("data.html", "Data", "Every source of data: state, licence, terms, citation, digests.", wide=True)
    page.say(
        "Nothing is redistributed here. A source is downloaded from its owner or taken from a mirror, checked against "
        "the digests below before it is opened, and refused in any form that is not listed. What cannot be had is "
        "blocked, with the reason; no other data ever stand in for it."
    )
    made = [task for task in evidence.task_names if not sources_of(evidence, task)]
    # What the plan uses first, then what is only registered; both in the registry's order.
    order = [*SOURCES, *sorted(evidence.sources.keys() - SOURCES.keys())]
    names = sorted(order, key=lambda name: name not in evidence.sources)
    states = {
        "available": (
            sum(r["state"] == "done" for r in evidence.sources.values()),
            at("count", "sources", state="done"),
        ),
        "blocked": (
            sum(r["state"] == "blocked" for r in evidence.sources.values()),
            at("count", "sources", state="blocked"),
        ),
    }
    page.add(charts.share_bar("Sources of the plan", states))
    rows = [*(_row(evidence, name) for name in names), *(_made_row(evidence, task) for task in made)]
    columns: list[Column | str] = ["Source", "State", "Form", Column("Size", sort="number"), "Digest", "Licence"]
    caption = "Every source: those of the present plan, those that are only registered, those that are generated"
    page.add(table(columns, rows, caption, facets=["state", "digest"]))
    page.heading("Splits")
    page.say("What the sources were prepared to at this tier. Validation is held out of training; test is opened once.")
    page.add(_splits(evidence))
    page.heading("Set aside")
    _quarantine(page, evidence)
    page.heading("Source by source")
    for name in names:
        _source(page, evidence, name)
    for task in made:
        _made(page, evidence, task)
    yield page


def _source_of(name: str) -> tuple[Source | None, str]:
    """A source as it is registered, and its title; `NAME-partial` is NAME where a part of it is enough."""
    source = SOURCES.get(name.removesuffix(PARTIAL))
    if source is None:
        return None, ""
    return source, f"{source.title}: a part of it where the whole cannot be had" if name.endswith(
        PARTIAL
    ) else source.title


def _state(source: Source | None, record: Record | None) -> str:
    if record:
        return HAVE if record["state"] == "done" else str(record["state"])
    return BLOCKED if source and source.blocked else ABSENT


def _reason(source: Source | None, record: Record | None) -> str:
    if record:
        return str(record["reason"] or "")
    return (source.blocked if source else None) or ""


def _form(source: Source | None, record: Record | None) -> Form | None:
    """The form that was fetched."""
    if source is None or not record or not record["result"]:
        return None
    alike = [form for form in source.forms if form.label == record["result"]["form"]]
    exact = [form for form in alike if set(record["artifacts"]) == set(form.outputs)]
    return next(iter(exact or alike), None)


def _digest(form: Form | None) -> str:
    if form is None:
        return NOT_FETCHED
    return VERIFIED if all(file.sha256 for file in form.files) else FIRST_USE


def _first_use(evidence: Evidence, form: Form, file: File) -> object:
    """What stands for a digest that nobody published: the one that was recorded when the file first came."""
    path = evidence.root / "reports" / "digests.json"
    recorded = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = recorded.get(f"{form.label}: {file.name}")
    return join(["first use: ", code(found["sha256"])]) if found else "first use"


def _row(evidence: Evidence, name: str) -> Row:
    (source, title), record = _source_of(name), evidence.sources.get(name)
    state, form = _state(source, record), _form(source, record)
    reason = _reason(source, record).removeprefix(f"{name}: ")
    cells = (
        _named(link(f"#{slug(name)}", name), title),
        Cell(
            tag("span", _mark(state), tag("small", words(reason)) if reason else "", class_="ns-stack"), kind="ns-wide"
        ),
        form.label if form else Cell("", key=""),
        _size(f"data/raw/{name}", record),
        _digest(form),
        Cell(words(source.licence) if source else "", kind="ns-wrap"),
    )
    return Row(cells, {"state": [state], "digest": [_digest(form)]})


def _made_row(evidence: Evidence, task: str) -> Row:
    module = task_module(task)
    cells = (
        _named(link(f"#{slug(task)}-generated", task), module.SPEC.title if module else ""),
        Cell(_mark(GENERATED), kind="ns-wide"),
        "seeded generator",
        _size(f"data/prepared/{task}", evidence.tasks.get(task)),
        EVERYWHERE,
        "",
    )
    return Row(cells, {"state": [GENERATED], "digest": [EVERYWHERE]})


def _size(folder: str, record: Record | None) -> Cell:
    count = sum(file["bytes"] for file in record["artifacts"].values()) if record else 0
    if not count:
        return Cell("", key="")
    return Cell(shown(inside("record", folder, "artifacts", "*", "bytes"), "bytes", count))


def _named(name: Html, title: str) -> Cell:
    return Cell(tag("span", name, tag("small", words(title)), class_="ns-stack"), kind="ns-wide")


def _mark(state: str) -> Html:
    return tag("span", state, class_="ns-quiet") if state == ABSENT else chip(state)


def _splits(evidence: Evidence) -> Html:
    rows = []
    for task, record in evidence.tasks.items():
        splits = (record["result"] or {}).get("splits", {})
        for split in (each for each in (*tasks.SPLITS, tasks.SUBMISSION) if each in splits):
            where = ("data/prepared/" + task, "result", "splits", split)
            counts = (
                shown(inside("record", *where, name), "number", splits[split][name]) if name in splits[split] else ""
                for name in ("examples", "tokens")
            )
            rows.append(Row((link(task_page(task), task), split, *counts), {"task": [task], "split": [split]}))
    columns: list[Column | str] = ["Task", "Split", Column("Examples", sort="number"), Column("Tokens", sort="number")]
    return table(columns, rows, "Every split of every task that could be prepared", ["task", "split"])


def _quarantine(page: Page, evidence: Evidence) -> None:
    page.say(
        "A file of a source that holds no example, because it cannot be read, is set aside with its reason; a source "
        "with many of them is refused."
    )
    rows: list[Sequence[object]] = [
        (link(task_page(task), task), code(file), Cell(words(reason), kind="ns-wide"))
        for task, record in evidence.tasks.items()
        for file, reason in (record["result"] or {}).get("quarantine", [])
    ]
    if rows:
        page.add(table(["Task", "File", "Reason"], rows, "Every file that was set aside"))
    else:
        page.say("Nothing was set aside in what is prepared here.")


def _source(page: Page, evidence: Evidence, name: str) -> None:
    """A line on a source, and folded below it its terms, what was fetched, and which forms are accepted."""
    (source, title), record = _source_of(name), evidence.sources.get(name)
    page.blocks.append(f"### {prose(name)} {{ #{slug(name)} }}")
    state, reason = _state(source, record), _reason(source, record)
    if source is None:
        page.say("This source is no longer part of the package.")
        return
    page.say(words(title), ". Licence: ", words(source.licence), ".")
    if state not in (HAVE, ABSENT):
        page.add(note(tag("strong", state), ": ", words(reason.removeprefix(f"{name}: ")), kind="bad"))
    feeds = [task for task in evidence.task_names if name in sources_of(evidence, task)]
    form = _form(source, record)
    about: list[tuple[str, object]] = [
        ("Terms", words(source.terms)),
        ("Citation", words(source.citation)),
        ("Home", code(source.homepage)),
        ("Edition", words(source.edition)),
        ("Feeds", join((link(task_page(task), task) for task in feeds), ", ") or "no task of the present plan"),
    ]
    if form and form.note:
        about.append(("About this form", words(form.note)))
    parts = [facts(about)]
    if record and record["artifacts"]:
        folder = f"data/raw/{name}"
        files = [
            (
                code(file),
                shown(inside("record", folder, "artifacts", file, "bytes"), "bytes", of["bytes"]),
                code(of["sha256"]),
            )
            for file, of in sorted(record["artifacts"].items())
        ]
        label = form.label if form else record["result"].get("form", "")
        caption = join(["What was fetched: ", label, ", ", code(record["address"])])
        parts.append(table(["File", "Size", "sha256"], files, caption))
    accepted = [
        (
            each.label,
            code(file.name),
            code(f"{file.bytes} B" if file.bytes is not None else "not published"),
            code(file.sha256) if file.sha256 else _first_use(evidence, each, file),
            Cell(words(each.note), kind="ns-wide"),
        )
        for each in source.forms
        for file in each.files
    ]
    if accepted:
        columns = ["Form", "File", "Size", "sha256", "Note"]
        parts.append(table(columns, accepted, "Accepted forms, in order of preference"))
    page.add(details("Terms, citation, accepted forms and their digests", *parts))


def _made(page: Page, evidence: Evidence, task: str) -> None:
    page.blocks.append(f"### {prose(task)}, generated {{ #{slug(task)}-generated }}")
    module, record = task_module(task), evidence.tasks.get(task)
    page.say("Made here by a seeded generator, which needs no download and gives the same bytes on every machine.")
    about: list[tuple[str, object]] = [("Task", link(task_page(task), task))]
    if module:
        about.append(("Algorithm", words(module.SPEC.citation)))
    if record:
        settings = [f"{name} {value}" for name, value in sorted(record["settings"].get("data", {}).items())]
        about += [("Settings", words(", ".join(settings) or "the defaults")), ("Address", code(record["address"]))]
    page.add(facts(about))
