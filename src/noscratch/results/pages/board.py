"""The claims: the front page's part, the board, a page per claim, a page per paper, and each claim as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from noscratch.results.claims import TIERS, Claim, Conflict, Measured, Paper, Quantity, Trained
from noscratch.results.pages import charts
from noscratch.results.pages.evidence import Evidence, PublishError
from noscratch.results.pages.grid import group_table
from noscratch.results.pages.markup import (
    Cell,
    Column,
    Html,
    Page,
    Row,
    chip,
    claim_page,
    code,
    details,
    facts,
    join,
    link,
    number,
    paper_page,
    slug,
    smoke_note,
    table,
    tag,
    tier_badge,
)

# In this order everywhere: what is settled first.
VERDICTS = ("supported", "contradicted", "inconclusive", "blocked", "not-run")
# A claim of more quantities shows them folded.
UNFOLDED = 3
POINTERS = {"towards": "points towards it", "against": "points against it", "unclear": "unclear so far"}
RULES = {
    "equivalent": "ours lies within {margin} of the published value (two one-sided tests)",
    "greater": "ours lies above the published value less {margin} (one-sided test)",
    "less": "ours lies below the published value plus {margin} (one-sided test)",
    "disagree": "their texts differ, or their numbers by more than {margin}",
}


@dataclass(frozen=True)
class Judged:
    """A claim with its verdicts: the headline row, and the rows of each quantity by tier, weakest tier first."""

    paper: Paper
    claim: Claim
    headline: Mapping[str, Any]
    rows: Mapping[str, Sequence[Mapping[str, Any]]]

    @cached_property
    def tasks(self) -> list[str]:
        return sorted({cell.split("/")[0] for cell in json.loads(self.headline["cells"])})

    @cached_property
    def backbones(self) -> list[str]:
        if isinstance(self.claim, Measured):
            return sorted(self.claim.backbones)
        return sorted({cell.split("/")[1] for cell in json.loads(self.headline["cells"])})

    def best(self, quantity: str) -> Mapping[str, Any]:
        """The row of the strongest tier with an estimate, else of the claim's own tier."""
        rows = self.rows[quantity]
        return next((row for row in reversed(rows) if row["estimate"] is not None), rows[-1])

    @property
    def measured(self) -> bool:
        """Is there a number of ours, of whatever tier?"""
        return any(row["estimate"] is not None for rows in self.rows.values() for row in rows)

    @property
    def facets(self) -> dict[str, list[str]]:
        least = self.claim.tier if isinstance(self.claim, Trained) else "none"
        return {
            "verdict": [self.headline["verdict"]],
            "paper": [self.paper.paper],
            "kind": [self.claim.kind],
            "task": self.tasks,
            "backbone": self.backbones,
            "tier": [least],
        }


def judged(evidence: Evidence) -> list[Judged]:
    """Every claim with its verdicts: settled ones first, then those with a number, then as the files list them."""
    headlines: dict[str, Mapping[str, Any]] = {}
    rows: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in evidence.verdicts:
        if row["level"] == "headline":
            headlines[row["claim"]] = row
        else:
            rows.setdefault(row["claim"], {}).setdefault(row["quantity"], []).append(row)
    ids = [claim.id for paper in evidence.papers for claim in paper.claims]
    if set(ids) != set(headlines):
        lost = ", ".join(sorted(set(ids) ^ set(headlines)))
        raise PublishError(
            f"every claim has one verdict, but claims/ and reports/verdicts.parquet differ in {lost}: "
            "run `dvc repro judge`"
        )
    order = ("none", *TIERS)
    found = [
        Judged(
            paper,
            claim,
            headlines[claim.id],
            {
                q.name: sorted(rows[claim.id][q.name], key=lambda row: order.index(row["tier"]))
                for q in claim.quantities
            },
        )
        for paper in evidence.papers
        for claim in paper.claims
    ]
    return sorted(found, key=lambda each: (VERDICTS.index(each.headline["verdict"]), not each.measured))


def pages(evidence: Evidence) -> Iterator[Page]:
    every = judged(evidence)
    for each in every:
        yield claim_detail(evidence, each)
    for paper in evidence.papers:
        yield paper_detail(paper, [each for each in every if each.paper is paper])


def files(evidence: Evidence) -> Iterator[tuple[str, bytes]]:
    """The front page's part (Markdown without a heading) and one JSON file per claim."""
    every = judged(evidence)
    yield "parts/front.md", front(evidence, every).encode()
    for each in every:
        content = {
            "claim": each.claim.model_dump(mode="json"),
            "paper": {"id": each.paper.paper, "title": each.paper.title, "arxiv": each.paper.arxiv},
            "headline": dict(each.headline),
            "quantities": [dict(row) for rows in each.rows.values() for row in rows],
        }
        yield (
            f"claims/{slug(each.claim.id)}.json",
            (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode(),
        )


def front(evidence: Evidence, every: Sequence[Judged]) -> str:
    tests, conflicts = _split(every)
    blocks: list[str] = [
        tag("p", sentence(_counts(tests), len(conflicts), evidence.tiers), class_="ns-answer"),
        charts.share_bar("Verdicts", _counts(tests)),
    ]
    if "smoke" in evidence.tiers:
        blocks.append(smoke_note())
    blocks += ["## Claims board", board(tests, "generated/")]
    if conflicts:
        blocks += ["## Where the sources disagree", CONFLICTS, conflict_table(conflicts, "generated/")]
    return "\n\n".join(blocks) + "\n"


CONFLICTS = tag(
    "p",
    "A paper, its versions, its repository and the works that restate it do not always give the same number. "
    "These are settled by reading.",
)


def _split(every: Sequence[Judged]) -> tuple[list[Judged], list[Judged]]:
    """Claims that a test settles, and conflicts among sources, which nobody claimed: never counted together."""
    conflicts = [each for each in every if isinstance(each.claim, Conflict)]
    return [each for each in every if each not in conflicts], conflicts


def _counts(tests: Sequence[Judged]) -> dict[str, int]:
    counted = Counter(each.headline["verdict"] for each in tests)
    return {verdict: counted[verdict] for verdict in VERDICTS}


def sentence(counts: Mapping[str, int], conflicts: int, tiers: Sequence[str]) -> str:
    """The state of evidence, from the verdicts alone."""
    total, settled = sum(counts.values()), counts["supported"] + counts["contradicted"]
    if settled:
        are = "is" if settled == 1 else "are"
        sides = f"{counts['supported']} supported, {counts['contradicted']} contradicted"
        so_far = f"Of {total} claims, {settled} {are} settled: {sides}."
    else:
        so_far = f"Of {total} claims, none is settled yet."
    waiting = [f"{counts[verdict]} {verdict}" for verdict in ("inconclusive", "blocked", "not-run") if counts[verdict]]
    still = f" Open: {', '.join(waiting)}." if waiting else ""
    runs = f" The runs so far are of tier {' and '.join(tiers)}."
    places = "one place" if conflicts == 1 else f"{conflicts} places"
    return so_far + still + runs + (f" In {places} the sources contradict each other." if conflicts else "")


def board(tests: Sequence[Judged], up: str) -> Html:
    rows = []
    for each in tests:
        claim, verdict = each.claim, each.headline["verdict"]
        lacks = each.headline["missing"]
        missing = tag("small", lacks, class_="ns-clamp", title=lacks) if lacks else ""
        cells = (
            Cell(tag("span", chip(verdict), pointer(each.headline), class_="ns-stack"), key=VERDICTS.index(verdict)),
            Cell(_statement(each, up), key=claim.id, kind="ns-wide"),
            Cell(_quantities(each), kind="ns-wide"),
            Cell(tag("span", tier_needed(claim), missing, class_="ns-stack"), key=tier_rank(claim), kind="ns-wide"),
        )
        rows.append(Row(cells, each.facets))
    columns: list[Column | str] = [
        Column("Verdict", sort="number"),
        "Claim",
        Column("Published, and ours", sort=None),
        Column("Settled by, and what is missing", sort="number"),
    ]
    caption = "What was published, what we found (mean, 95 % interval, n seeds, tier), and what it takes to settle it"
    return table(columns, rows, caption, facets=["verdict", "paper", "kind", "task", "backbone", "tier"])


def conflict_table(conflicts: Sequence[Judged], up: str) -> Html:
    rows = [
        Row(
            (verdict_chip(each), Cell(_statement(each, up), key=each.claim.id, kind="ns-wide"), _readings(each)),
            {"paper": [each.paper.paper]},
        )
        for each in conflicts
    ]
    columns: list[Column | str] = ["Reading", "Conflict", Column("What the sources say", sort=None)]
    return table(columns, rows, "Every conflict, with each reading and its source", facets=["paper"])


def _readings(each: Judged) -> Cell:
    lines = [
        tag("li", tag("span", quantity.name, class_="ns-quantities__name"), " ", published(each.claim, quantity))
        for quantity in each.claim.quantities
    ]
    return Cell(tag("ul", *lines, class_="ns-quantities"), kind="ns-wide")


def _statement(each: Judged, up: str) -> Html:
    claim = each.claim
    statement = tag("div", link(up + claim_page(claim.id), claim.statement))
    paper = link(up + paper_page(each.paper.paper), each.paper.paper)
    return join([statement, tag("small", paper, f", {claim.where} · {claim.kind} · {claim.status}")])


def verdict_chip(each: Judged) -> Html:
    """The verdict; of a conflict it is whether the sources differ, which supports nobody."""
    verdict = each.headline["verdict"]
    if isinstance(each.claim, Conflict):
        return chip({"supported": "sources differ", "contradicted": "sources agree"}[verdict])
    return chip(verdict)


def pointer(row: Mapping[str, Any]) -> Html:
    """Where weaker evidence points, while the verdict is open."""
    if row["indication"] == "none" or row["verdict"] in ("supported", "contradicted"):
        return Html("")
    return tag("small", POINTERS[row["indication"]], class_="ns-quiet")


def tier_rank(claim: Claim) -> int:
    return 1 + TIERS.index(claim.tier) if isinstance(claim, Trained) else 0


def tier_needed(claim: Claim) -> Html:
    if isinstance(claim, Conflict):
        return Html("reading the sources")
    if isinstance(claim, Measured):
        return tag(
            "span", f"{claim.seeds} repetitions on {claim.device} device" if claim.seeds > 1 else "one measurement"
        )
    return tag("span", tier_badge(claim.tier), f" {claim.seeds} seeds")


def _quantities(each: Judged) -> Html:
    lines = tag("ul", *(_line(each, quantity) for quantity in each.claim.quantities), class_="ns-quantities")
    rows = [each.best(quantity.name) for quantity in each.claim.quantities]
    if len(rows) <= UNFOLDED:
        return lines
    counts = Counter(row["verdict"] for row in rows)
    about = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if 0 < counts[verdict] < len(rows)]
    if measured := sum(row["estimate"] is not None for row in rows):
        about.append(f"{measured} with a number of ours")
    return details(f"{len(rows)} quantities" + (": " if about else "") + ", ".join(about), lines)


def _line(each: Judged, quantity: Quantity) -> Html:
    row = each.best(quantity.name)
    parts: list[object] = [
        tag("span", quantity.name, class_="ns-quantities__name"),
        " ",
        published(each.claim, quantity),
    ]
    # Where there is no number of ours and no other verdict than the claim's, there is nothing to add.
    if row["estimate"] is not None or row["verdict"] != each.headline["verdict"]:
        parts += [" ", tag("span", "→", class_="ns-arrow", aria_hidden="true"), " ", ours(row)]
    return tag("li", *parts)


def published(claim: Claim, quantity: Quantity) -> Html:
    """The paper's number or range, or what each source reads."""
    if isinstance(claim, Conflict):
        readings = claim.readings[quantity.name]
        return join(
            (tag("span", in_unit(value, claim.unit), " ", tag("small", source)) for source, value in readings.items()),
            " / ",
        )
    sign = {"greater": "> ", "less": "< "}.get(claim.test.rule, "")
    value = (
        in_unit(quantity.low, claim.unit)
        if quantity.low == quantity.high
        else f"{number(quantity.low)} to {in_unit(quantity.high, claim.unit)}"
    )
    return tag("span", sign + value, class_="ns-published", title=f"published: {claim.where}, {claim.status}")


def ours(row: Mapping[str, Any]) -> Html:
    """Our number with interval, n and tier, and its verdict; or the verdict alone, where there is no number."""
    if row["estimate"] is None:
        return chip(row["verdict"])
    return join([estimate(row), Html("") if row["verdict"] == "not-run" else chip(row["verdict"])], " ")


def estimate(row: Mapping[str, Any]) -> Html:
    low, high = row["interval_low"], row["interval_high"]
    interval = "no interval" if low is None else f"[{number(low, 2)}, {number(high, 2)}]"
    small = tag("small", f"{interval} n = {row['n']}")
    hatched = "ns-score ns-few" if low is None or "seeds" in row["missing"] else "ns-score"
    return tag(
        "span",
        tag("b", in_unit(row["estimate"], row["unit"], 2)),
        " ",
        small,
        " ",
        tier_badge(row["tier"]),
        class_=hatched,
    )


def in_unit(value: float | str, unit: str, digits: int = 4) -> str:
    if isinstance(value, str):
        return value
    return (
        f"{number(value, digits)} %"
        if unit in ("percent", "relative-percent")
        else f"{number(value, digits)} {unit.replace('-', ' ')}"
    )


def claim_detail(evidence: Evidence, each: Judged) -> Page:
    claim = each.claim
    page = Page(
        claim_page(claim.id),
        claim.statement,
        f"Claim {claim.id}: {each.headline['verdict']}.",
        crumbs=[("Claims", "../../index.html"), (each.paper.title, f"../{paper_page(each.paper.paper)}")],
        wide=True,
    )
    page.add(tag("p", verdict_chip(each), " ", pointer(each.headline)))
    if each.headline["missing"]:
        page.say(tag("strong", "To settle it: "), each.headline["missing"], ".")
    page.heading("What was claimed")
    page.add(
        facts(
            [
                ("Paper", join([each.paper.title, f", arXiv {each.paper.arxiv}"])),
                ("Where", claim.where),
                ("Read in", f"{each.paper.sources[claim.source]} ({claim.status}: {STATUS[claim.status]})"),
                ("Kind", claim.kind),
                ("Settled by", tier_needed(claim)),
                (
                    "Claim",
                    join([code(claim.id), f" version {claim.version}, ", link(f"{slug(claim.id)}.json", "as JSON")]),
                ),
            ]
        )
    )
    if isinstance(claim, Conflict):
        page.heading("What the sources say")
        page.say(f"They differ when {_rule(claim)}. {_sentence(claim.test.why)}")
        rows = [(quantity.name, Cell(published(claim, quantity), kind="ns-wide")) for quantity in claim.quantities]
        page.add(table(["Quantity", "Readings"], rows, "Each reading with its source"))
        return page
    page.heading("The test, fixed before the first verdict")
    page.say(f"Supported when {_rule(claim)}, at level {claim.test.alpha:g} after Holm's adjustment over the paper.")
    page.say(tag("strong", "Margin: "), _sentence(claim.test.why))
    if claim.need and len(claim.quantities) > 1:
        page.say(f"{claim.need} of its {len(claim.quantities)} quantities must hold.")
    page.heading("What we found")
    if any(row["tier"] == "smoke" and row["estimate"] is not None for rows in each.rows.values() for row in rows):
        page.add(smoke_note())
    page.add(_verdict_table(each))
    cells = {tuple(cell.split("/")) for cell in json.loads(each.headline["cells"])}
    groups = [group for group in evidence.groups if group[1:] in cells]
    if groups:
        page.heading("The runs behind it")
        page.add(group_table(evidence, groups, "../", "Every group of runs that this claim uses, at every tier"))
    return page


def _sentence(words: str) -> str:
    return words.rstrip(".") + "."


def _rule(claim: Claim) -> str:
    test = claim.test
    margin = (
        in_unit(test.margin, claim.unit)
        if test.margin is not None
        else f"{test.margin_percent:g} % of the published value"
    )
    return RULES[test.rule].format(margin=margin)


STATUS = {"S1": "seen in the paper or its authors' repository", "S2": "seen in a work that restates it"}


def _verdict_table(each: Judged) -> Html:
    own = each.claim.tier if isinstance(each.claim, Trained) else "none"
    rows = []
    for quantity in each.claim.quantities:
        for row in each.rows[quantity.name]:
            if row["estimate"] is None and row["tier"] != own:
                continue
            p = "" if row["p_support"] is None else f"{row['p_support']:.2g} for, {row['p_contradict']:.2g} against"
            rows.append(
                (
                    quantity.name,
                    published(each.claim, quantity),
                    estimate(row) if row["estimate"] is not None else Cell("none", kind="ns-quiet"),
                    tier_badge(row["tier"]),
                    row["comparison"],
                    p,
                    tag("span", chip(row["verdict"]), pointer(row), class_="ns-stack"),
                    Cell(row["missing"], kind="ns-wide"),
                )
            )
    return table(
        ["Quantity", "Published", "Ours", "Tier", "Comparison", "p, adjusted", "Verdict", "Missing"],
        rows,
        "Every quantity, at the claim's own tier and at every other that has a number",
    )


def paper_detail(paper: Paper, every: Sequence[Judged]) -> Page:
    page = Page(
        paper_page(paper.paper),
        paper.title,
        f"The claims of {paper.title}.",
        crumbs=[("Claims", "../../index.html")],
        wide=True,
    )
    tests, conflicts = _split(every)
    page.say(
        f"arXiv {paper.arxiv}. Its numbers were read in: ",
        "; ".join(f"{text} ({key})" for key, text in paper.sources.items()),
        ".",
    )
    page.add(charts.share_bar("Verdicts", _counts(tests)))
    tables = _twins(tests)
    if tables:
        page.heading("The paper's tables beside ours")
        page.say(
            "Upper line: published. Lower line: ours, with 95 % interval, n and tier. Hatched: too few seeds, or none."
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
    places: dict[str, dict[tuple[str, str], dict[str, Html]]] = {}
    hatched: set[Html] = set()
    for each in every:
        claim = each.claim
        if not isinstance(claim, Trained) or claim.kind != "accuracy":
            continue
        for quantity in claim.quantities:
            row = each.best(quantity.name)
            column = quantity.name.rpartition("/")[2]
            value = link(f"../{claim_page(claim.id)}", published(claim, quantity))
            cell = tag("span", value, ours(row), class_="ns-stack")
            if row["interval_low"] is None:
                hatched.add(cell)
            line = (quantity.cells[0].backbone, quantity.cells[0].protocol)
            places.setdefault(claim.where, {}).setdefault(line, {})[column] = cell
    found = []
    for where, lines in places.items():
        names = list(dict.fromkeys(name for cells in lines.values() for name in cells))
        columns = sorted(names, key=lambda name: name == "mean")
        rows = [
            [tag("span", backbone, tag("small", protocol), class_="ns-stack")]
            + [Cell(cells.get(name, ""), kind="ns-few" if cells.get(name) in hatched else None) for name in columns]
            for (backbone, protocol), cells in lines.items()
        ]
        sheet = table(["Backbone", *(Column(name, sort=None) for name in columns)], rows, where)
        found.append(tag("div", sheet, class_="ns-twin"))
    return found
