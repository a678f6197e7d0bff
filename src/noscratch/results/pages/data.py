"""The data page: every source, its state here, its terms, its digests."""

from __future__ import annotations

from collections.abc import Iterator

from noscratch.results.pages.evidence import Evidence
from noscratch.results.pages.markup import (
    Cell,
    Page,
    chip,
    code,
    details,
    facts,
    join,
    link,
    note,
    prose,
    size,
    slug,
    table,
    tag,
    task_page,
)
from noscratch.sources.registry import SOURCES, Source


def pages(evidence: Evidence) -> Iterator[Page]:
    page = Page("data.html", "Data", "Every source of data: state, licence, terms, citation, digests.")
    page.say(
        "Nothing is redistributed here. A source is downloaded from its owner or taken from a mirror, checked against "
        "the digests below before it is opened, and refused in any form that is not listed. What cannot be had is "
        "blocked, with the reason; no other data ever stand in for it."
    )
    names = [*evidence.sources, *sorted(set(SOURCES) - set(evidence.sources))]
    rows = []
    for name in names:
        record, source = evidence.sources.get(name), SOURCES.get(name)
        state: object = tag("span", "not in the plan", class_="ns-quiet")
        if record:
            state = chip("available" if record["state"] == "done" else record["state"])
        reason = record["reason"] if record else source.blocked if source else ""
        licence = source.licence if source else ""
        rows.append((link(f"#{slug(name)}", name), state, _form(record), licence, Cell(reason or "", kind="ns-wide")))
    caption = f"{len(evidence.sources)} sources of the present plan, then {len(names) - len(evidence.sources)} others"
    page.add(table(["Source", "State", "Form", "Licence", "Reason"], rows, caption))
    for name in names:
        _source(page, evidence, name, SOURCES.get(name))
    yield page


def _form(record: dict | None) -> str:
    return str(record["result"].get("form", "")) if record and record["result"] else ""


def _source(page: Page, evidence: Evidence, name: str, source: Source | None) -> None:
    page.blocks.append(f"## {prose(name)} {{ #{slug(name)} }}")
    record = evidence.sources.get(name)
    if record and record["state"] != "done":
        page.add(note(tag("strong", record["state"]), f": {record['reason']}", kind="bad"))
    if source is None:
        page.say("This source is no longer part of the package.")
        return
    feeds = [task for task, prepared in evidence.tasks.items() if name in prepared["needs"]]
    page.add(
        facts(
            [
                ("Title", source.title),
                ("Home", code(source.homepage)),
                ("Licence", source.licence),
                ("Terms", source.terms),
                ("Citation", source.citation),
                ("Edition", source.edition),
                ("Feeds", join((link(task_page(task), task) for task in feeds), ", ") or "no task of the present plan"),
            ]
        )
    )
    if record and record["artifacts"]:
        files = [(file, size(f["bytes"]), code(f["sha256"])) for file, f in sorted(record["artifacts"].items())]
        page.add(
            table(
                ["File", "Size", "sha256"],
                files,
                f"What was fetched ({_form(record)}), address {record['address']}",
            )
        )
    accepted = [
        (
            form.label,
            file.name,
            size(file.bytes) if file.bytes is not None else "not published",
            code(file.sha256) if file.sha256 else "first use",
            form.note,
        )
        for form in source.forms
        for file in form.files
    ]
    forms = table(["Form", "File", "Size", "sha256", "Note"], accepted, "Accepted forms, in order of preference")
    page.add(details("Accepted forms and their digests", forms))
