"""The front page's part: the answer so far in one figure and one sentence, how many claims stand, the claims board."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from noscratch.results.pages import charts
from noscratch.results.pages.board import CONFLICTS, Judged, board, conflict_table, count_at, counts, judged, split
from noscratch.results.pages.evidence import Evidence, Group, Summary
from noscratch.results.pages.markup import (
    Cell,
    Html,
    Page,
    details,
    join,
    link,
    paper_page,
    smoke_note,
    table,
    tag,
    task_page,
    tier_badge,
)
from noscratch.results.pages.numbers import shown
from noscratch.results.pages.scores import PRETRAINED, SCRATCH, gain_of, gain_words, hatched, mean_of, pair_figure
from noscratch.results.pages.tasks import title_of

UP = "generated/"
# Whose gap the question is about: the first is said to lag behind the others, from scratch.
LAGGING, LEADING = "transformer", ("s4", "s4d")
NAMES = {"transformer": "Transformer", "s4": "S4", "s4d": "S4D"}
NO_ANSWER = {
    "smoke": "No run above tier smoke has been published, so there is no answer yet: the figure shows that the machine "
    "works, and nothing else.",
    "": "Nothing has been run yet.",
}


def pages(evidence: Evidence) -> Iterator[Page]:
    """The part that site/docs/index.md includes."""
    page = Page("parts/front.html", "", "")
    every = judged(evidence)
    tests, conflicts = split(every)
    page.add(*_answer(evidence))
    page.heading("How many claims stand")
    page.add(
        _sentence(evidence, tests, conflicts), charts.share_bar("Verdicts", counts(tests)), _papers(evidence, tests)
    )
    page.heading("Claims board")
    page.add(board(tests, UP))
    if conflicts:
        page.heading("Where the sources disagree")
        page.add(CONFLICTS, conflict_table(conflicts, UP))
    yield page


# ---------------------------------------------------------------- the answer


def _answer(evidence: Evidence) -> list[Html]:
    """Scores from scratch and after self-pretraining, task by task, and what they say of the gap."""
    tier, tasks = _measured(evidence)
    if not tasks:
        return [tag("p", NO_ANSWER[""], class_="ns-answer")]
    figures = [
        pair_figure(
            evidence,
            title_of(task),
            [(NAMES[b], *_pair(evidence, tier, task, b)) for b in _present(evidence, tier, task)],
        )
        for task in tasks
    ]
    note = [smoke_note()] if tier == "smoke" else []
    words = NO_ANSWER["smoke"] if tier == "smoke" else _gap_sentence(evidence, tier, tasks)
    return [
        tag("p", words, " ", tier_badge(tier), class_="ns-answer"),
        tag("div", *figures, class_="ns-figures ns-figures--front"),
        details("The figure as text", _gap_table(evidence, tier, tasks)),
        *note,
    ]


def _measured(evidence: Evidence) -> tuple[str, list[str]]:
    """The strongest tier at which the lagging backbone has a pair on some task, and those tasks: where a leading one
    has a pair too, for the others say nothing of the gap."""
    for tier in evidence.tiers:
        names = {group[1] for group in evidence.scores if group[0] == tier}
        if tasks := [task for task in sorted(names) if LAGGING in _present(evidence, tier, task)]:
            return tier, [task for task in tasks if len(_present(evidence, tier, task)) > 1] or tasks
    return "", []


def _present(evidence: Evidence, tier: str, task: str) -> list[str]:
    return [b for b in (LAGGING, *LEADING) if all(g in evidence.scores for g in _pair(evidence, tier, task, b))]


def _pair(evidence: Evidence, tier: str, task: str, backbone: str) -> tuple[Group, Group]:
    """From scratch, and self-pretrained: masked where it was run, else causal."""
    groups = [(tier, task, backbone, protocol) for protocol in PRETRAINED]
    return (tier, task, backbone, SCRATCH), next((g for g in groups if g in evidence.scores), groups[0])


def _gap(evidence: Evidence, tier: str, task: str) -> tuple[tuple[Group, Group, Summary], ...] | None:
    """How far the best leading backbone is ahead, (leading, lagging, difference) from scratch and self-pretrained."""
    leading = next((b for b in LEADING if b in _present(evidence, tier, task)), None)
    if leading is None:
        return None
    sides = zip(_pair(evidence, tier, task, leading), _pair(evidence, tier, task, LAGGING), strict=True)
    found = [(first, second, gain_of(evidence, first, second)) for first, second in sides]
    return tuple((first, second, s) for first, second, s in found if s) if all(s for *_, s in found) else None


def _gap_sentence(evidence: Evidence, tier: str, tasks: Sequence[str]) -> Html:
    """On which tasks the gap became clearly smaller: the two intervals do not overlap."""
    outcomes: dict[str, list[Html]] = {"closer": [], "open": []}
    for task in tasks:
        if sides := _gap(evidence, tier, task):
            (_, _, before), (_, _, after) = sides
            outcomes["closer" if _apart(after, before) else "open"].append(link(UP + task_page(task), title_of(task)))
    closer, still = (join(outcomes[side], ", ") for side in ("closer", "open"))
    subject = "Self-pretraining brings the Transformer clearly closer to the state-space models"
    if not closer and not still:
        return Html("The Transformer has been self-pretrained, but no state-space model beside it yet.")
    if not closer:
        return join(
            ["Self-pretraining does not bring the Transformer clearly closer to the state-space models on ", still, "."]
        )
    rest = join([". On ", still, " the difference is within the noise"]) if still else ""
    return join([subject, " on ", closer, rest, "."])


def _apart(low: Summary, high: Summary) -> bool:
    """Does the one interval lie below the other? One seed has none, and says nothing."""
    return low.high is not None and high.low is not None and low.high < high.low


def _gap_table(evidence: Evidence, tier: str, tasks: Sequence[str]) -> Html:
    rows: list[Sequence[object]] = []
    for task in tasks:
        for backbone in _present(evidence, tier, task):
            base, group = _pair(evidence, tier, task, backbone)
            gained = gain_of(evidence, group, base)
            words = Cell(gain_words(evidence, group, base, gained), kind=hatched(gained.n)) if gained else ""
            rows.append((title_of(task), NAMES[backbone], mean_of(evidence, base), mean_of(evidence, group), words))
        if sides := _gap(evidence, tier, task):
            cells = (Cell(gain_words(evidence, first, second, s), kind=hatched(s.n)) for first, second, s in sides)
            ahead = f"{NAMES[sides[0][0][2]]} ahead of {NAMES[LAGGING]}"
            rows.append((title_of(task), ahead, *cells, ""))
    columns = ["Task", "Backbone", "From scratch", "Self-pretrained", "Gain"]
    return table(columns, rows, "Scores, gains paired over seeds, and how far the state-space model is ahead")


# ---------------------------------------------------------------- the claims


def _sentence(evidence: Evidence, tests: Sequence[Judged], conflicts: Sequence[Judged]) -> Html:
    """The state of evidence, from the verdicts alone."""
    counted = counts(tests)
    settled, waiting = (
        join((join([shown(cell, "number", n), f" {verdict}"]) for verdict, (n, cell) in some if n), ", ")
        for some in (list(counted.items())[:2], list(counted.items())[2:])
    )
    parts: list[object] = ["Of ", shown(count_at(), "number", len(tests)), " claims: "]
    parts += [settled, "."] if settled else ["none is settled yet."]
    parts += [" Open: ", waiting, "."] if waiting else []
    parts.append(f" The runs so far are of tier {' and '.join(evidence.tiers)}." if evidence.tiers else "")
    if conflicts:
        places = shown(count_at(kinds=["conflict"]), "number", len(conflicts))
        parts += [" Places where the sources contradict each other: ", places, "."]
    return tag("p", *parts)


def _papers(evidence: Evidence, tests: Sequence[Judged]) -> Html:
    rows = []
    for paper in evidence.papers:
        mine = [each for each in tests if each.paper is paper]
        bar = charts.share_bar(f"Verdicts on {paper.paper}", counts(mine, paper.paper), slim=True)
        rows.append(
            (
                Cell(link(UP + paper_page(paper.paper), paper.title), kind="ns-wide"),
                shown(count_at(paper=paper.paper), "number", len(mine)),
                bar,
            )
        )
    return table(["Paper", "Claims", "Verdicts"], rows, "The papers, each with its tables beside ours")
