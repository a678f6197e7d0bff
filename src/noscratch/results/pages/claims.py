"""A page per claim, a page per paper, and each claim as JSON at an address that stays."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from noscratch.results.claims import Claim, Conflict, Paper, Trained
from noscratch.results.pages import charts
from noscratch.results.pages.board import (
    CONFLICTS,
    COUNTED,
    Judged,
    board,
    conflict_table,
    counts,
    estimate,
    judged,
    ours,
    own_tier,
    pointer,
    published,
    split,
    tier_needed,
    verdict_at,
    verdict_chip,
)
from noscratch.results.pages.changes import history_table
from noscratch.results.pages.evidence import Evidence
from noscratch.results.pages.markup import (
    Cell,
    Column,
    Html,
    Page,
    chip,
    claim_page,
    code,
    facts,
    join,
    link,
    paper_page,
    slug,
    smoke_note,
    table,
    tag,
    tier_badge,
)
from noscratch.results.pages.numbers import at, inside, shown, words
from noscratch.results.pages.scores import group_table, scored

RULES = {
    "equivalent": "ours lies within {margin} of the published value (two one-sided tests)",
    "greater": "ours lies above the published value less {margin} (one-sided test)",
    "less": "ours lies below the published value plus {margin} (one-sided test)",
    "disagree": "their texts differ, or their numbers by more than {margin}",
}
COUNT_CHANGES = (
    "It was counted, not sampled, so that no repetition can move it: only a change of what is counted, or a new "
    "version of the claim."
)
WAYS = {"fine-tuning": "as much fine-tuning", "flops": "as many operations", "steps": "as many steps"}
STATUS = {"S1": "seen in the paper or its authors' repository", "S2": "seen in a work that restates it"}
# What else would have to be seen, by the verdict as it stands.
CHANGES = {
    "supported": "More seeds or a stronger tier may still move it: inconclusive when the interval crosses an edge of "
    "the region that agrees, contradicted when the interval lies outside as a whole.",
    "contradicted": "More seeds or a stronger tier may still move it: inconclusive when the interval reaches an edge "
    "of the region that agrees, supported when the interval lies inside as a whole.",
    "inconclusive": "The interval crosses an edge of the region that agrees, or seeds are missing. More seeds make it "
    "narrower: inside as a whole it supports the claim, outside as a whole it contradicts it.",
    "blocked": "Data that cannot be had here block it. With them it runs like any other.",
    "not-run": "It has not been run at a tier that can settle it.",
}


def pages(evidence: Evidence) -> Iterator[Page]:
    every = judged(evidence)
    for each in every:
        yield _claim(evidence, each)
    for paper in evidence.papers:
        yield _paper(paper, [each for each in every if each.paper is paper])


def files(evidence: Evidence) -> Iterator[tuple[str, bytes]]:
    """One JSON file per claim."""
    for each in judged(evidence):
        content = {
            "claim": each.claim.model_dump(mode="json"),
            "paper": {"id": each.paper.paper, "title": each.paper.title, "arxiv": each.paper.arxiv},
            "headline": dict(each.headline),
            "quantities": [dict(row) for rows in each.rows.values() for row in rows],
            "history": [line for line in evidence.history if line["claim"] == each.claim.id],
        }
        text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
        yield f"claims/{slug(each.claim.id)}.json", (text + "\n").encode()


def _claim(evidence: Evidence, each: Judged) -> Page:
    claim = each.claim
    page = Page(
        claim_page(claim.id),
        claim.statement,
        f"Claim {claim.id}: {each.headline['verdict']}.",
        crumbs=[("Claims", "../../index.html"), (each.paper.title, f"../{paper_page(each.paper.paper)}")],
        wide=True,
    )
    page.add(tag("p", verdict_chip(each), " ", pointer(each.headline)))
    page.heading("What was claimed")
    version = join([code(claim.id), words(f" version {claim.version}, "), link(f"{slug(claim.id)}.json", "as JSON")])
    page.add(
        facts(
            [
                ("Paper", words(f"{each.paper.title}, arXiv {each.paper.arxiv}")),
                ("Where", words(claim.where)),
                ("Read in", words(f"{each.paper.sources[claim.source]} ({claim.status}: {STATUS[claim.status]})")),
                ("Kind", claim.kind),
                ("Settled by", tier_needed(claim)),
                ("Claim", version),
            ]
        )
    )
    if isinstance(claim, Conflict):
        page.heading("What the sources say")
        page.say("They differ when ", _rule(claim), ". ", words(_sentence(claim.test.why)))
        rows = [(words(q.name), Cell(published(claim, q), kind="ns-wide")) for q in claim.quantities]
        page.add(table(["Quantity", "Readings"], rows, "Each reading with its source"))
        return page
    page.heading("The test, fixed before the first verdict")
    alpha = shown(inside("claims", claim.id, "test", "alpha"), "number", claim.test.alpha)
    page.say("Supported when ", _rule(claim), ", at level ", alpha, " after Holm's adjustment over the paper.")
    page.say(tag("strong", "Margin: "), words(_sentence(claim.test.why)))
    if claim.need and len(claim.quantities) > 1:
        page.say(shown(inside("claims", claim.id, "need"), "number", claim.need), " of its quantities must hold.")
    page.heading("What we found")
    if any(row["tier"] == "smoke" and row["estimate"] is not None for rows in each.rows.values() for row in rows):
        page.add(smoke_note())
    page.add(_findings(each))
    _observed(page, evidence, claim)
    _equal_compute(page, evidence, claim)
    page.heading("What would change it")
    counted = any(row["comparison"] == COUNTED for rows in each.rows.values() for row in rows)
    page.say(COUNT_CHANGES if counted else CHANGES[each.headline["verdict"]])
    if each.headline["missing"]:
        page.say(tag("strong", "Missing: "), words(each.headline["missing"]), ".")
    history = [(k, line) for k, line in enumerate(evidence.history) if line["claim"] == claim.id]
    page.heading("History of the verdict")
    if history:
        page.add(history_table(evidence, history, "../"))
    else:
        page.say("No verdict has been published yet.")
    cells = {tuple(cell.split("/")) for cell in json.loads(each.headline["cells"])}
    groups = [group for group in evidence.groups if group[1:] in cells]
    if groups:
        page.heading("The runs behind it")
        page.add(group_table(evidence, groups, "../", "Every group of runs that this claim uses, at every tier"))
    return page


def _sentence(text: str) -> str:
    return text.rstrip(".") + "."


def _rule(claim: Claim) -> Html:
    test = claim.test
    if test.margin is not None:
        margin = shown(inside("claims", claim.id, "test", "margin"), f"unit:{claim.unit}", test.margin)
    else:
        margin = shown(inside("claims", claim.id, "test", "margin_percent"), "unit:percent", test.margin_percent)
    before, _, after = RULES[test.rule].partition("{margin}")
    return join([before, margin, after])


def _findings(each: Judged) -> Html:
    own = own_tier(each.claim)
    rows = []
    for quantity in each.claim.quantities:
        for row in reversed(each.rows[quantity.name]):
            if row["estimate"] is None and row["tier"] != own:
                continue
            sides = ("p_support", "p_contradict")
            p = (
                ""
                if row[sides[0]] is None
                else shown(verdict_at(row, *sides), "p-for-against", *(row[k] for k in sides))
            )
            edges = ("region_low", "region_high")
            agrees = shown(verdict_at(row, *edges), f"region:{row['unit']}", *(row[edge] for edge in edges))
            rows.append(
                (
                    words(quantity.name),
                    published(each.claim, quantity),
                    agrees,
                    estimate(row)
                    if row["estimate"] is not None
                    else join(["none ", tier_badge(row["tier"]) if row["tier"] != "none" else ""]),
                    row["comparison"],
                    p,
                    tag("span", chip(row["verdict"]), pointer(row), class_="ns-stack"),
                    Cell(words(row["missing"]), kind="ns-wide"),
                )
            )
    columns = ["Quantity", "Published", "What agrees", "Ours", "Comparison", "p, adjusted", "Verdict", "Missing"]
    return table(columns, rows, "Every quantity, at the claim's own tier and at every other that has a number")


def _observed(page: Page, evidence: Evidence, claim: Claim) -> None:
    """What was counted or measured, where the claim takes no training."""
    if found := evidence.observations.get(claim.id):
        rows = [
            (
                words(entry["quantity"]),
                Cell(words(entry["setting"]), kind="ns-wide"),
                words(entry["model"] or "any machine"),
                code(folder),
            )
            for folder, entry in found
        ]
        page.add(table(["Quantity", "What it is", "Device", "Record"], rows, "What was counted or measured"))


def _equal_compute(page: Page, evidence: Evidence, claim: Claim) -> None:
    """The gain of self-pretraining over training from scratch that is as long, or takes as many operations or steps."""
    rows = []
    for row in (row for row in evidence.compute if row["claim"] == claim.id and row["estimate"] is not None):
        address = at("compute", *(row[name] for name in ("claim", "quantity", "tier", "way")))
        estimated = ("estimate", "interval_low", "interval_high", "n")
        estimate = shown(f"{address}/{','.join(estimated)}", f"estimate:{row['unit']}", *(row[n] for n in estimated))
        ratios = (
            "" if row[name] is None else shown(f"{address}/{name}", "times", row[name])
            for name in ("flops_ratio", "steps_ratio")
        )
        rows.append((words(row["quantity"]), WAYS[row["way"]], scored(estimate, row["tier"]), *ratios))
    if rows:
        page.heading("At equal compute")
        page.say(
            "Self-pretraining costs more than the fine-tuning alone. The gain is therefore held against training from "
            "scratch that is as long as the fine-tuning, and that takes as many operations or steps as both phases."
        )
        columns = ["Quantity", "From scratch with", "Gain", "Its operations", "Its steps"]
        caption = "Self-pretrained less from scratch; operations and steps of the latter over those of the former"
        page.add(table(columns, rows, caption))


def _paper(paper: Paper, every: Sequence[Judged]) -> Page:
    page = Page(
        paper_page(paper.paper),
        paper.title,
        f"The claims of {paper.title}.",
        crumbs=[("Claims", "../../index.html")],
        wide=True,
    )
    tests, conflicts = split(every)
    sources = "; ".join(f"{text} ({key})" for key, text in paper.sources.items())
    page.say(words(f"arXiv {paper.arxiv}. Its numbers were read in: {sources}."))
    page.add(charts.share_bar("Verdicts", counts(tests, paper.paper)))
    if tables := _twins(tests):
        page.heading("The paper's tables beside ours")
        page.say(
            "Upper line: published. Lower line: ours, with its interval, n and tier, tinted by the verdict. Hatched: "
            "too few seeds, or none."
        )
        page.add(*tables)
    if tests:
        page.heading("Claims")
        page.add(board(tests, "../"))
    if conflicts:
        page.heading("Where the sources disagree")
        page.add(CONFLICTS, conflict_table(conflicts, "../"))
    return page


def _twins(every: Sequence[Judged]) -> list[Html]:
    """For each place of the paper with accuracy claims: backbones down, quantities across, as the paper prints it."""
    places: dict[str, dict[tuple[str, str], dict[str, Cell]]] = {}
    for each in every:
        claim = each.claim
        if not isinstance(claim, Trained) or claim.kind != "accuracy":
            continue
        for quantity in claim.quantities:
            row = each.best(quantity.name)
            column = quantity.name.rpartition("/")[2]
            value = link(f"../{claim_page(claim.id)}", published(claim, quantity))
            kinds = [f"ns-is-{row['verdict']}"] + (["ns-few"] if row["interval_low"] is None else [])
            cell = Cell(tag("span", value, ours(row), class_="ns-stack"), kind=" ".join(kinds))
            line = (quantity.cells[0].backbone, quantity.cells[0].protocol)
            places.setdefault(claim.where, {}).setdefault(line, {})[column] = cell
    found = []
    for where, lines in places.items():
        names = list(dict.fromkeys(name for cells in lines.values() for name in cells))
        columns = sorted(names, key=lambda name: name == "mean")
        rows = [
            [
                tag("span", backbone, tag("small", protocol), class_="ns-stack"),
                *(cells.get(name, "") for name in columns),
            ]
            for (backbone, protocol), cells in lines.items()
        ]
        heads: list[Column | str] = ["Backbone", *(Column(name, sort=None) for name in columns)]
        found.append(tag("div", table(heads, rows, words(where)), class_="ns-twin"))
    return found
