"""Scores of groups of runs and differences of them, as numbers, charts and tables: what many pages share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from noscratch.results.pages import charts
from noscratch.results.pages.evidence import Evidence, Group, Run, Summary, gain, summarize
from noscratch.results.pages.markup import (
    Cell,
    Html,
    backbone_page,
    chip,
    join,
    link,
    slug,
    table,
    tag,
    task_page,
    tier_badge,
)
from noscratch.results.pages.numbers import at, of_metric, shown

# Fewer seeds than this and a cell is hatched: its interval says little.
FEW_SEEDS = 3
SCRATCH, MATCHED = "scratch", "scratch-matched"
PRETRAINED = ("spt-masked", "spt-causal", "corpus-masked")
SIDES = ("from scratch", "self-pretrained")


def group_page(group: Group) -> str:
    """The page of the runs of one (tier, task, backbone, protocol)."""
    return f"runs/{slug('-'.join(group))}.html"


def score_at(group: Group, metric: str, seed: object = "*", column: str = "value") -> str:
    """The address of a group's mean test score, or of a column of one seed's row."""
    return at("results", *group, seed, "finetune", "test", metric, column)


def mean_of(evidence: Evidence, group: Group) -> Cell:
    """A group's score, hatched where there are few seeds; what became of its runs where there is none."""
    scores = evidence.scores.get(group)
    if not scores:
        states = sorted({run.state for run in evidence.runs_of(group)})
        return Cell(join(map(chip, states), " "), key="", kind="ns-few")
    s, metric = summarize(scores), scores[0].metric
    words = shown(score_at(group, metric), of_metric(metric, "mean"), s.mean, s.low, s.high, s.n)
    return Cell(words, kind=hatched(s.n))


def gain_of(evidence: Evidence, group: Group, over: Group) -> Summary | None:
    """A group's score less that of another of the same task, paired over the seeds that both have."""
    if group not in evidence.scores or over not in evidence.scores:
        return None
    return gain(evidence.scores[group], evidence.scores[over])


def gain_words(evidence: Evidence, group: Group, over: Group, s: Summary) -> Html:
    metric = evidence.scores[group][0].metric
    address = at("difference", *group, *over[2:], metric)
    return shown(address, of_metric(metric, "gain"), s.mean, s.low, s.high, s.n)


def hatched(n: int) -> str | None:
    return "ns-few" if n < FEW_SEEDS else None


def scored(words: object, tier: str) -> Html:
    """A number with its tier."""
    return tag("span", words, " ", tier_badge(tier), class_="ns-score")


def interval(s: Summary) -> charts.Interval:
    return charts.Interval(s.mean, s.low, s.high)


def group_table(
    evidence: Evidence, groups: Sequence[Group], up: str, caption: str, without: Sequence[str] = ()
) -> Html:
    """One row per (tier, task, backbone, protocol): the score with all that belongs to it, and its runs.

    `without` leaves out the columns that the page is about.
    """
    rows = []
    for group in groups:
        tier, task, backbone, protocol = group
        runs = evidence.runs_of(group)
        cells = {
            "Tier": tier_badge(tier),
            "Task": link(up + task_page(task), task),
            "Backbone": link(up + backbone_page(backbone), backbone),
            "Protocol": protocol,
            "Test score": mean_of(evidence, group),
            "Runs": Cell(_seeds(group, runs, up), kind="ns-runs"),
        }
        rows.append([cell for name, cell in cells.items() if name not in without])
    columns = [name for name in ("Tier", "Task", "Backbone", "Protocol", "Test score", "Runs") if name not in without]
    return table(columns, rows, caption)


def _seeds(group: Group, runs: Sequence[Run], up: str) -> Html:
    """The page of a group's runs, with their seeds; one that did not finish says so."""
    names: list[object] = []
    for run in runs:
        names.append(run.cell.seed if run.state == "done" else join([run.cell.seed, chip(run.state)], " "))
    return link(up + group_page(group), "seeds " if len(runs) > 1 else "seed ", join(names, ", "))


def pairs(evidence: Evidence, groups: Iterable[Group], base: str = SCRATCH) -> Iterator[tuple[Group, Group]]:
    """(self-pretrained, base) for every group that has both with scores; base is a protocol without pretraining."""
    for group in groups:
        other = (*group[:3], base)
        if group[3] in PRETRAINED and group in evidence.scores and other in evidence.scores:
            yield group, other


def pair_figure(
    evidence: Evidence, title: str, rows: Sequence[tuple[str, Group, Group]], sides: tuple[str, str] = SIDES
) -> Html:
    """Scores before and after: (label, group, group); where one has no score it is left out."""
    drawn = [(label, _interval_of(evidence, first), _interval_of(evidence, second)) for label, first, second in rows]
    some = next(group for _, *both in rows for group in both if group in evidence.scores)
    return charts.pair_chart(title, evidence.scores[some][0].metric, sides, drawn, some[0] == "smoke")


def _interval_of(evidence: Evidence, group: Group) -> charts.Interval | None:
    return interval(summarize(evidence.scores[group])) if group in evidence.scores else None
