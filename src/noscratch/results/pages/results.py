"""The results page: tasks across, backbones and protocols down, tier by tier; and self-pretraining against scratch."""

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
    details,
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
    gain_of,
    gain_words,
    group_page,
    hatched,
    mean_of,
    pair_figure,
    pairs,
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
        "is stored. What did not finish is among the ",
        link("failures.html", "failures"),
        ".",
    )
    for tier in evidence.tiers:
        page.heading(f"Tier {tier}")
        if tier == "smoke":
            page.add(smoke_note())
        page.add(_matrix(evidence, tier), *_without_score(evidence, tier))
        gains(page, evidence, tier)
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


def gains(page: Page, evidence: Evidence, tier: str, task: str = "", up: str = "") -> None:
    """Self-pretraining against scratch, seed by seed: a figure for each protocol and task, and the differences."""
    found = list(pairs(evidence, (group for group in evidence.groups if group[0] == tier and task in ("", group[1]))))
    if not found:
        return
    page.heading("Self-pretraining against scratch", 3)
    figures = []
    for name, protocol in dict.fromkeys((group[1], group[3]) for group, _ in found):
        rows = [(group[2], base, group) for group, base in found if group[1::2] == (name, protocol)]
        figures.append(pair_figure(evidence, f"{name}, {protocol}", rows))
    lines = []
    for group, base in found:
        if s := gain_of(evidence, group, base):
            cells = (
                link(up + task_page(group[1]), group[1]),
                link(up + backbone_page(group[2]), group[2]),
                link(up + group_page(group), group[3]),
                Cell(gain_words(evidence, group, base, s), kind=hatched(s.n)),
            )
            lines.append(cells)
    columns = ["Task", "Backbone", "Protocol", "Difference to scratch"]
    text = table(columns, lines, "Test score less that of scratch, paired over the seeds that both have")
    page.add(tag("div", *figures, class_="ns-figures"), details("The differences as text", text))
