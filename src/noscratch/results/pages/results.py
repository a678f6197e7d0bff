"""The results page: tasks across, backbones and protocols down, tier by tier."""

from __future__ import annotations

from collections.abc import Iterator

from noscratch.results.pages.evidence import Evidence
from noscratch.results.pages.markup import (
    Cell,
    Column,
    Html,
    Page,
    Row,
    backbone_page,
    chip,
    join,
    link,
    smoke_note,
    table,
    tag,
    task_page,
)
from noscratch.results.pages.numbers import words
from noscratch.results.pages.scores import (
    FEW_SEEDS,
    group_page,
    mean_of,
)


def pages(evidence: Evidence) -> Iterator[Page]:
    page = Page(
        "results.html", "Results", "Every result: mean, interval, seeds, tier, and the runs behind it.", wide=True
    )
    page.say(
        "Test scores of the checkpoint that validation selected: mean over seeds, ",
        words("95 %"),
        " t interval, number of seeds. Hatched: fewer than ",
        words(FEW_SEEDS),
        " seeds. Every number leads to its runs; hold the pointer over one to see it to the last digit, and where it "
        "is stored. The page of a task sets self-pretraining "
        "against scratch; what did not finish is among the ",
        link("failures.html", "failures"),
        ".",
    )
    for tier in evidence.tiers:
        page.heading(f"Tier {tier}")
        if tier == "smoke":
            page.add(smoke_note())
        page.add(_matrix(evidence, tier), *_without_score(evidence, tier))
    yield page


def _scored_tasks(evidence: Evidence, tier: str) -> list[str]:
    return sorted({group[1] for group in evidence.scores if group[0] == tier})


def _matrix(evidence: Evidence, tier: str) -> Html:
    names = _scored_tasks(evidence, tier)
    groups = {group for group in evidence.groups if group[0] == tier and group[1] in names}
    rows = []
    for backbone, protocol in sorted({group[2:] for group in groups}):
        name = tag("span", link(backbone_page(backbone), backbone), tag("small", protocol), class_="ns-stack")
        cells: list[object] = [Cell(name, key=f"{backbone} {protocol}")]
        for task in names:
            group = (tier, task, backbone, protocol)
            value = mean_of(evidence, group) if group in groups else Cell("", key="")
            cells.append(
                Cell(link(group_page(group), value.content), value.key, value.kind) if value.content else value
            )
        rows.append(Row(cells, {"backbone": [backbone], "protocol": [protocol]}))
    heads = [Column("Backbone, protocol"), *(Column(task, sort="number") for task in names)]
    sheet = table(heads, rows, f"Tier {tier}: test score by backbone and protocol, and task", ["backbone", "protocol"])
    return tag("div", sheet, class_="ns-matrix")


def _without_score(evidence: Evidence, tier: str) -> list[Html]:
    """The tasks that no run of the tier has a score on, with what became of their runs."""
    states: dict[str, set[str]] = {}
    scored = _scored_tasks(evidence, tier)
    for cell, run in evidence.runs.items():
        if cell.tier == tier and cell.task not in scored:
            states.setdefault(cell.task, set()).add(run.state)
    if not states:
        return []
    each = (join([link(task_page(task), task), *map(chip, sorted(of))], " ") for task, of in sorted(states.items()))
    return [tag("p", "No score at this tier: ", join(each, ", "), ".", class_="ns-tight")]
