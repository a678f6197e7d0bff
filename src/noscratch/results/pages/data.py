"""The data page: every source that is registered or generated, its state here, its terms, its digests, its splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from noscratch import tasks
from noscratch.results.pages.evidence import Evidence
from noscratch.results.pages.grid import sources_of, task_module
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
    number,
    prose,
    size,
    slug,
    table,
    tag,
    task_page,
)
from noscratch.sources.registry import SOURCES, Form, Source

HAVE, BLOCKED, ABSENT, GENERATED = "available", "blocked", "not in the plan", "generated"
VERIFIED, FIRST_USE, NOT_FETCHED = "listed digest, verified", "trusted on first use", "not fetched"
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
    rows = [*(_row(evidence, name) for name in names), *(_made_row(evidence, task) for task in made)]
    columns: list[Column | str] = ["Source", "State", "Form", Column("Size", sort="number"), "Digest", "Licence"]
    caption = (
        f"{len(evidence.sources)} sources of the present plan, {len(names) - len(evidence.sources)} others that are "
        f"registered, {len(made)} generated"
    )
    page.add(table(columns, rows, caption, facets=["state", "digest"]))
    page.heading("Source by source")
    for name in names:
        _source(page, evidence, name)
    for task in made:
        _made(page, evidence, task)
    yield page


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


def _row(evidence: Evidence, name: str) -> Row:
    source, record = SOURCES.get(name), evidence.sources.get(name)
    state, form = _state(source, record), _form(source, record)
    reason = _reason(source, record).removeprefix(f"{name}: ")
    count = sum(file["bytes"] for file in record["artifacts"].values()) if record else 0
    cells = (
        _named(link(f"#{slug(name)}", name), source.title if source else ""),
        Cell(tag("span", _mark(state), tag("small", reason) if reason else "", class_="ns-stack"), kind="ns-wide"),
        form.label if form else Cell("", key=""),
        Cell(size(count) if count else "", key=count or ""),
        _digest(form),
        Cell(source.licence if source else "", kind="ns-wrap"),
    )
    return Row(cells, {"state": [state], "digest": [_digest(form)]})


def _made_row(evidence: Evidence, task: str) -> Row:
    record, module = evidence.tasks.get(task), task_module(task)
    count = sum(file["bytes"] for file in record["artifacts"].values()) if record else 0
    cells = (
        _named(link(f"#{slug(task)}-generated", task), module.SPEC.title if module else ""),
        Cell(_mark(GENERATED), kind="ns-wide"),
        "seeded generator",
        Cell(size(count) if count else "", key=count or ""),
        "the same bytes everywhere",
        "",
    )
    return Row(cells, {"state": [GENERATED], "digest": ["the same bytes everywhere"]})


def _named(name: Html, title: str) -> Cell:
    return Cell(tag("span", name, tag("small", title), class_="ns-stack"), kind="ns-wide")


def _mark(state: str) -> Html:
    return tag("span", state, class_="ns-quiet") if state == ABSENT else chip(state)


def _source(page: Page, evidence: Evidence, name: str) -> None:
    source, record = SOURCES.get(name), evidence.sources.get(name)
    page.blocks.append(f"### {prose(name)} {{ #{slug(name)} }}")
    state, reason = _state(source, record), _reason(source, record)
    if state not in (HAVE, ABSENT):
        page.add(note(tag("strong", state), f": {reason}", kind="bad"))
    if source is None:
        page.say("This source is no longer part of the package.")
        return
    feeds = [task for task in evidence.task_names if name in sources_of(evidence, task)]
    form = _form(source, record)
    page.say(tag("strong", source.title))
    about: list[tuple[str, object]] = [
        ("State", state),
        ("Digest", _digest(form)),
        ("Licence", source.licence),
        ("Terms", source.terms),
        ("Citation", source.citation),
        ("Home", code(source.homepage)),
        ("Edition", source.edition),
        ("Feeds", join((link(task_page(task), task) for task in feeds), ", ") or "no task of the present plan"),
    ]
    if form and form.note:
        about.append(("About this form", form.note))
    page.add(facts(about))
    if record and record["artifacts"]:
        files = [(file, size(f["bytes"]), code(f["sha256"])) for file, f in sorted(record["artifacts"].items())]
        label = form.label if form else record["result"].get("form", "")
        page.add(table(["File", "Size", "sha256"], files, f"What was fetched ({label}), address {record['address']}"))
    _splits(page, evidence, feeds)
    accepted = [
        (
            each.label,
            file.name,
            size(file.bytes) if file.bytes is not None else "not published",
            code(file.sha256) if file.sha256 else "first use",
            Cell(each.note, kind="ns-wide"),
        )
        for each in source.forms
        for file in each.files
    ]
    if accepted:
        forms = table(["Form", "File", "Size", "sha256", "Note"], accepted, "Accepted forms, in order of preference")
        page.add(details("Accepted forms and their digests", forms))


def _made(page: Page, evidence: Evidence, task: str) -> None:
    page.blocks.append(f"### {prose(task)}, generated {{ #{slug(task)}-generated }}")
    module, record = task_module(task), evidence.tasks.get(task)
    page.say("Made here by a seeded generator, which needs no download and gives the same bytes on every machine.")
    about: list[tuple[str, object]] = [("Task", link(task_page(task), task))]
    if module:
        about.append(("Algorithm", module.SPEC.citation))
    if record:
        settings = [f"{name} {value}" for name, value in sorted(record["settings"].get("data", {}).items())]
        about += [("Settings", ", ".join(settings) or "the defaults"), ("Address", code(record["address"]))]
    page.add(facts(about))
    _splits(page, evidence, [task])


def _splits(page: Page, evidence: Evidence, names: list[str]) -> None:
    rows = []
    for task in names:
        splits = (evidence.tasks.get(task, {}).get("result") or {}).get("splits", {})
        for split in (*tasks.SPLITS, tasks.SUBMISSION):
            if split in splits:
                examples, tokens = splits[split]["examples"], splits[split].get("tokens")
                rows.append(
                    (link(task_page(task), task), split, number(examples), "" if tokens is None else number(tokens))
                )
    if rows:
        page.add(table(["Task", "Split", "Examples", "Tokens"], rows, "What its tasks were prepared to, at this tier"))
