"""The claims board: every claim with its verdict, what was published, what was found, and what is missing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from noscratch.results.claims import TIERS, Claim, Conflict, Measured, Paper, Quantity, Trained
from noscratch.results.pages.evidence import Evidence, PublishError
from noscratch.results.pages.markup import (
    Cell,
    Column,
    Html,
    Row,
    chip,
    claim_page,
    details,
    join,
    link,
    paper_page,
    table,
    tag,
    tier_badge,
)
from noscratch.results.pages.numbers import at, inside, shown, words

# In this order everywhere: what is settled first.
VERDICTS = ("supported", "contradicted", "inconclusive", "blocked", "not-run")
# A claim of more quantities shows them folded.
UNFOLDED = 3
CONFLICTS = tag(
    "p",
    "A paper, its versions, its repository and the works that restate it do not always give the same number. "
    "These are settled by reading.",
)
# How verdicts.parquet calls what is counted, not sampled.
COUNTED, COUNTED_WORDS = "count", "counted, exact"
POINTERS = {"towards": "points towards it", "against": "points against it", "unclear": "unclear so far"}
CONFLICTING = {"supported": "sources differ", "contradicted": "sources agree"}
# Kinds of claims that a test settles; the other kind is a conflict among sources.
TESTED = ("accuracy", "difference", "efficiency", "architecture", "numerics")


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
        return {
            "verdict": [self.headline["verdict"]],
            "paper": [self.paper.paper],
            "kind": [self.claim.kind],
            "task": self.tasks,
            "backbone": self.backbones,
            "tier": [own_tier(self.claim)],
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


def split(every: Sequence[Judged]) -> tuple[list[Judged], list[Judged]]:
    """Claims that a test settles, and conflicts among sources, which nobody claimed: never counted together."""
    conflicts = [each for each in every if isinstance(each.claim, Conflict)]
    return [each for each in every if each not in conflicts], conflicts


def counts(tests: Sequence[Judged], paper: str = "") -> dict[str, tuple[int, str]]:
    """Verdict -> how many claims have it, and the address of that number."""
    counted = Counter(each.headline["verdict"] for each in tests)
    return {verdict: (counted[verdict], count_at(verdict, paper)) for verdict in VERDICTS}


def count_at(verdict: str = "", paper: str = "", kinds: Sequence[str] = TESTED) -> str:
    """The address of a number of claims."""
    chosen = {"level": "headline", "kind": "|".join(kinds)}
    chosen |= {name: value for name, value in (("verdict", verdict), ("paper", paper)) if value}
    return at("count", "verdicts", **chosen)


def board(tests: Sequence[Judged], up: str) -> Html:
    rows = []
    for each in tests:
        claim, verdict = each.claim, each.headline["verdict"]
        lacks = each.headline["missing"]
        missing = tag("small", words(lacks), class_="ns-clamp", title=lacks) if lacks else ""
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
    caption = "What was published, what we found (mean, interval, n seeds, tier), and what it takes to settle it"
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
        tag("li", tag("span", words(quantity.name), class_="ns-quantities__name"), " ", published(each.claim, quantity))
        for quantity in each.claim.quantities
    ]
    return Cell(tag("ul", *lines, class_="ns-quantities"), kind="ns-wide")


def _statement(each: Judged, up: str) -> Html:
    claim = each.claim
    statement = tag("div", link(up + claim_page(claim.id), claim.statement))
    paper = link(up + paper_page(each.paper.paper), each.paper.paper)
    return join([statement, tag("small", paper, words(f", {claim.where} · {claim.kind} · {claim.status}"))])


def verdict_chip(each: Judged) -> Html:
    return chip(verdict_word(each.claim, each.headline["verdict"]))


def verdict_word(claim: Claim, verdict: str) -> str:
    """The verdict; of a conflict it is whether the sources differ, which supports nobody."""
    return CONFLICTING[verdict] if isinstance(claim, Conflict) else verdict


def pointer(row: Mapping[str, Any]) -> Html:
    """Where weaker evidence points, while the verdict is open."""
    if row["indication"] == "none" or row["verdict"] in ("supported", "contradicted"):
        return Html("")
    return tag("small", POINTERS[row["indication"]], class_="ns-quiet")


def own_tier(claim: Claim) -> str:
    """The tier that settles a claim; "none" where it takes no training."""
    return claim.tier if isinstance(claim, Trained) else "none"


def tier_rank(claim: Claim) -> int:
    return 1 + TIERS.index(claim.tier) if isinstance(claim, Trained) else 0


def tier_needed(claim: Claim) -> Html:
    """What settles a claim."""
    if isinstance(claim, Conflict):
        return Html("reading the sources")
    seeds = shown(inside("claims", claim.id, "seeds"), "number", claim.seeds)
    if isinstance(claim, Measured):
        several = join([seeds, f" repetitions on {claim.device} device"])
        return tag("span", words(several) if claim.seeds > 1 else "one measurement")
    return tag("span", tier_badge(claim.tier), " ", seeds, " seeds")


def _quantities(each: Judged) -> Html:
    lines = tag("ul", *(_line(each, quantity) for quantity in each.claim.quantities), class_="ns-quantities")
    rows = [each.best(quantity.name) for quantity in each.claim.quantities]
    if len(rows) <= UNFOLDED:
        return lines
    counted = Counter(row["verdict"] for row in rows)
    about = [f"some {verdict}" for verdict in VERDICTS if 0 < counted[verdict] < len(rows)]
    if any(row["estimate"] is not None for row in rows):
        about.append("some with a number of ours")
    address = at("count", "verdicts", claim=each.claim.id, level="quantity", tier=own_tier(each.claim))
    return details(
        join([shown(address, "number", len(rows)), " quantities", *(f", {words}" for words in about)]), lines
    )


def _line(each: Judged, quantity: Quantity) -> Html:
    row = each.best(quantity.name)
    parts: list[object] = [
        tag("span", words(quantity.name), class_="ns-quantities__name"),
        " ",
        published(each.claim, quantity),
    ]
    # Where there is no number of ours and no other verdict than the claim's, there is nothing to add.
    if row["estimate"] is not None:
        parts += [" ", tag("span", "→", class_="ns-arrow", aria_hidden="true"), " ", estimate(row)]
    if row["verdict"] not in (each.headline["verdict"], "not-run"):
        parts += [" ", chip(row["verdict"])]
    return tag("li", *parts)


def published(claim: Claim, quantity: Quantity) -> Html:
    """The paper's number or range, or what each source reads."""
    if isinstance(claim, Conflict):
        readings = claim.readings[quantity.name]
        return join((_reading(claim, quantity.name, source, value) for source, value in readings.items()), " / ")
    sign = {"greater": "> ", "less": "< "}.get(claim.test.rule, "")
    value = shown(at("claims", claim.id, quantity.name), f"published:{claim.unit}", quantity.low, quantity.high)
    return tag("span", sign, value, class_="ns-published", title=f"published: {claim.where}, {claim.status}")


def _reading(claim: Conflict, quantity: str, source: str, value: float | str) -> Html:
    address = inside("claims", claim.id, "readings", quantity, source)
    number = words(value) if isinstance(value, str) else shown(address, f"unit:{claim.unit}", value)
    return tag("span", number, " ", tag("small", words(source)))


def ours(row: Mapping[str, Any]) -> Html:
    """Our number with interval, n and tier, and its verdict; or the verdict alone, where there is no number."""
    if row["estimate"] is None:
        return chip(row["verdict"])
    return join([estimate(row), Html("") if row["verdict"] == "not-run" else chip(row["verdict"])], " ")


def estimate(row: Mapping[str, Any]) -> Html:
    """Our number; hatched where it has no interval or too few seeds. What was counted is exact and has neither."""
    columns = ("estimate", "interval_low", "interval_high", "n")
    if row["comparison"] == COUNTED:
        number = tag("b", shown(verdict_at(row, columns[0]), f"unit:{row['unit']}", row[columns[0]]))
        return tag("span", number, " ", tag("small", COUNTED_WORDS), class_="ns-score")
    number = shown(verdict_at(row, *columns), f"estimate:{row['unit']}", *(row[column] for column in columns))
    few = row["interval_low"] is None or "seeds" in row["missing"]
    badge = tier_badge(row["tier"]) if row["tier"] != "none" else ""
    return tag("span", number, " ", badge, class_="ns-score ns-few" if few else "ns-score")


def verdict_at(row: Mapping[str, Any], *columns: str) -> str:
    return at("verdicts", row["claim"], row["quantity"], row["tier"], ",".join(columns))
