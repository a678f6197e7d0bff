"""Judge: results and claims become verdicts, which are derived and never typed.

`reports/verdicts.parquet` has one row per (claim, quantity, tier) and one headline per claim, columns as in SCHEMA,
sorted by KEY:

    paper, claim, version        the claim
    level                        "headline" | "quantity"
    quantity, tier               of a quantity's row; tier is "none" where no training is needed. A headline has
                                 quantity "" and the tier that decided it
    kind, status, unit, rule     as the claim says
    low, high                    the published value or range in `unit`; null for texts and for a headline of several
    region_low, region_high      the values that agree with it, by the test's margin; null for an open side
    alpha                        of the test
    verdict                      "supported" | "contradicted" | "inconclusive" | "not-run" | "blocked"
    indication                   "towards" | "against" | "unclear" | "none": where the results point, whether or not
                                 they may settle the claim. Smoke runs never point anywhere
    missing                      what would settle it: "tier: paper (have mini); seeds: 3 (have 1)"; "" where settled
    estimate                     ours, in `unit`: the mean, or the difference of means
    interval_low, interval_high  its 95 % t interval; null below two seeds
    n, seeds                     the number of seeds or repetitions behind it, and a JSON list of the seeds
    comparison                   "one sample" | "paired" | "welch" | "readings" | "count" | "none"
    degenerate                   how many of the runs behind it predict one constant
    p_support, p_contradict      adjusted by Holm within the paper and tier; null unless tier and seeds suffice
    cells                        JSON list of "task/backbone/protocol" that the quantity uses
    device, record               what it was measured on, and the folder of the record below reports/records; "" where
                                 it was not measured

A quantity is settled only by its claim's tier or a higher one, with all planned runs finished and at least its seeds:
failed runs are never left out. A claim with `looks` is tested at each of them with as many seeds, the lowest, by a rule
that bounds the error of all looks together (statistics.sequential). One that needs no training is settled by
observations on its claim's class of device (results/observations.py): a count by itself, a measurement by its
repetitions. The family of Holm's adjustment is every quantity of the paper that can be settled at the tier. A headline
holds if `need` of its quantities are supported, and fails if too few can still be.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from noscratch.results import observations, parquet_bytes, statistics, write_if_changed
from noscratch.results.claims import TIERS, Cell, Claim, Conflict, Measured, Paper, Quantity, Trained, load
from noscratch.results.collect import Row, read_results
from noscratch.results.observations import Found

KEY = ("paper", "claim", "level", "quantity", "tier")
SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("paper", "claim")),
        pa.field("version", pa.int64(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("level", "quantity", "tier")),
        *(pa.field(name, pa.string(), nullable=False) for name in ("kind", "status", "unit", "rule")),
        *(pa.field(name, pa.float64()) for name in ("low", "high", "region_low", "region_high")),
        pa.field("alpha", pa.float64(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("verdict", "indication", "missing")),
        *(pa.field(name, pa.float64()) for name in ("estimate", "interval_low", "interval_high")),
        pa.field("n", pa.int64(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("seeds", "comparison")),
        pa.field("degenerate", pa.int64(), nullable=False),
        *(pa.field(name, pa.float64()) for name in ("p_support", "p_contradict")),
        *(pa.field(name, pa.string(), nullable=False) for name in ("cells", "device", "record")),
    ]
)
SETTLED = ("supported", "contradicted")
UNTRAINED = "none"  # the tier of a claim that needs no training
SHOWN = 6  # how many missing things of one sort are spelt out

Missing = dict[str, list[str]]  # sort of thing -> the things
Seen = Mapping[tuple[str, str], Sequence[Found]]  # (claim, quantity) -> what records observed


@dataclass(frozen=True)
class Run:
    """One fine-tuned run: its state, and its score and degeneracy by split and metric ("" is the primary metric)."""

    state: str
    reason: str
    scores: dict[tuple[str, str], tuple[float, bool]]


@dataclass(frozen=True)
class Sample:
    """One value per seed: the mean over cells of their scores, for the seeds that all the cells have."""

    values: dict[int, float]
    degenerate: int

    def first(self, n: int) -> Sample:
        """The sample as it was when it had n seeds."""
        return Sample({seed: self.values[seed] for seed in sorted(self.values)[:n]}, self.degenerate)


@dataclass
class Finding:
    """What is known about one quantity at one tier; `verdict` is final once the paper's p-values are adjusted."""

    quantity: Quantity
    tier: str
    verdict: str = "not-run"
    indication: str = "none"
    missing: Missing = field(default_factory=dict)
    estimate: float | None = None
    interval: tuple[float | None, float | None] = (None, None)
    n: int = 0
    seeds: Sequence[int] = ()
    comparison: str = "none"
    degenerate: int = 0
    device: str = ""
    record: str = ""
    p: tuple[float, float] | None = None  # support, contradict: set where the quantity can be settled


def judge(reports: Path, claims: Path, planned: Collection[Cell] = ()) -> None:
    """Write reports/verdicts.parquet from reports/results.parquet, the observations in reports/records and the folder
    of claims; the same in, the same bytes out. `planned` holds the cells of the grid at any tier.

    Raises claims.ClaimError for a broken ledger, collect.RecordError for a broken table of results, and
    observations.ObservationError.
    """
    grid = Grid(read_results(reports / "results.parquet"), planned)
    papers = load(claims)
    seen = observations.read(reports / "records", papers)
    rows = [row for paper in papers for row in _judge_paper(paper, grid, seen)]
    rows.sort(key=lambda row: tuple(row[name] for name in KEY))
    write_if_changed(reports / "verdicts.parquet", parquet_bytes(pa.Table.from_pylist(rows, schema=SCHEMA)))


class Grid:
    """The fine-tuned runs of results.parquet by tier and cell: repetitions of each other, which differ in their seed.

    Published runs may be older than the plan. Of a cell whose runs differ in more than the seed, those of the present
    plan count, or where there are none the largest group.
    """

    def __init__(self, rows: Iterable[Row], planned: Collection[Cell] = ()) -> None:
        found: dict[tuple[str, Cell], dict[tuple[str, str], dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
        for row in rows:
            if row["phase"] != "finetune":
                continue
            cell = Cell(row["task"], row["backbone"], row["protocol"])
            group = found[row["tier"], cell][row["code"], row["setting"]]
            run = group.setdefault(row["seed"], Run(row["state"], row["reason"], {}))
            if row["value"] is not None:
                score = row["value"], bool(row["degenerate"])
                run.scores[row["split"], row["metric"]] = score
                if row["primary"]:
                    run.scores[row["split"], ""] = score
        self.runs = {
            place: groups[max(groups, key=lambda key: (key[0] == "current", len(groups[key]), key))]
            for place, groups in found.items()
        }
        self.cells = {cell for _, cell in self.runs} | set(planned)
        self.backbones = {cell.backbone for cell in self.cells}
        self.tiers = {tier for tier, _ in self.runs}

    def sample(self, tier: str, cells: Sequence[Cell], split: str, metric: str) -> Sample:
        """The runs that finished and recorded the metric."""
        by_cell = [self._scores(tier, cell, split, metric) for cell in cells]
        seeds = sorted(set.intersection(*(set(scores) for scores in by_cell)))
        values = {seed: math.fsum(scores[seed][0] for scores in by_cell) / len(cells) for seed in seeds}
        return Sample(values, sum(scores[seed][1] for scores in by_cell for seed in seeds))

    def _scores(self, tier: str, cell: Cell, split: str, metric: str) -> dict[int, tuple[float, bool]]:
        runs = self.runs.get((tier, cell), {})
        return {seed: run.scores[split, metric] for seed, run in runs.items() if (split, metric) in run.scores}


def _judge_paper(paper: Paper, grid: Grid, seen: Seen) -> Iterable[Row]:
    findings = {
        claim.id: [_finding(claim, q, tier, grid, seen) for tier, q in _places(claim, grid)] for claim in paper.claims
    }
    _settle(paper.claims, findings)
    for claim in paper.claims:
        yield _headline(paper.paper, claim, findings[claim.id])
        for finding in findings[claim.id]:
            yield _row(paper.paper, claim, finding, "quantity")


def _places(claim: Claim, grid: Grid) -> Iterable[tuple[str, Quantity]]:
    """Where each quantity is judged: at every tier that has results, and at the claim's own."""
    tiers = (
        [tier for tier in TIERS if tier in grid.tiers or tier == claim.tier]
        if isinstance(claim, Trained)
        else [UNTRAINED]
    )
    return ((tier, quantity) for quantity in claim.quantities for tier in tiers)


def _finding(claim: Claim, quantity: Quantity, tier: str, grid: Grid, seen: Seen) -> Finding:
    if isinstance(claim, Conflict):
        return _conflict(claim, quantity)
    if isinstance(claim, Measured):
        return _measured(claim, quantity, grid, seen.get((claim.id, quantity.name), ()))
    return _trained(claim, quantity, tier, grid)


def _conflict(claim: Conflict, quantity: Quantity) -> Finding:
    readings = claim.readings[quantity.name].values()
    numeric = not math.isnan(quantity.low)
    differ = quantity.high - quantity.low > claim.margin if numeric else len(set(readings)) > 1
    return Finding(
        quantity,
        UNTRAINED,
        verdict="supported" if differ else "contradicted",
        indication="towards" if differ else "against",
        estimate=quantity.high - quantity.low if numeric else None,
        n=len(readings),
        comparison="readings",
    )


def _measured(claim: Measured, quantity: Quantity, grid: Grid, seen: Sequence[Found]) -> Finding:
    if not seen:
        if outside := [backbone for backbone in claim.backbones if backbone not in grid.backbones]:
            return Finding(quantity, UNTRAINED, missing={"outside the grid": outside})
        missing: Missing = {"measurement": [f"{claim.seeds} repetitions" if claim.seeds > 1 else "a count"]}
        if claim.device != "any":
            missing["device"] = [claim.device]
        return Finding(quantity, UNTRAINED, missing=missing)
    fitting = [each for each in seen if each.on(claim.device)]
    used = fitting or list(seen)
    finding = Finding(quantity, UNTRAINED, n=min(len(each.observation.values) for each in used))
    finding.device = "; ".join(dict.fromkeys(each.observation.model for each in used))
    finding.record = "; ".join(dict.fromkeys(each.record for each in used))
    if not fitting:
        finding.missing["device"] = [f"{claim.device} (have {', '.join(dict.fromkeys(e.place for e in used))})"]
    edges = claim.test.region(quantity.low, quantity.high)
    if claim.kind != "efficiency":
        return _counted(finding, [value for each in used for value in each.observation.values], edges)
    if finding.n < claim.seeds:
        finding.missing["repetitions"] = [f"{claim.seeds} (have {finding.n})"]
    _repeated(claim, finding, [each.observation.values for each in used], edges)
    return finding


def _counted(finding: Finding, values: Sequence[float], edges: tuple[float, float]) -> Finding:
    """What is counted has no spread: it lies in the region or outside."""
    inside = all(edges[0] <= value <= edges[1] for value in values)
    finding.estimate, finding.comparison = values[0], "count"
    finding.indication = "towards" if inside else "against"
    if not finding.missing:
        finding.verdict = "supported" if inside else "contradicted"
    return finding


def _repeated(
    claim: Measured, finding: Finding, samples: Sequence[Sequence[float]], edges: tuple[float, float]
) -> None:
    """Estimate, interval, indication and p-values of measurements; the claim must hold on each device (the hardest is
    shown). Ratios are averaged on the log scale."""
    onto, back = (_log, math.exp) if claim.unit == "ratio" else (float, float)
    if finding.n < 2:
        finding.estimate, finding.indication = samples[0][0], "unclear"
        return
    estimates = [statistics.mean([onto(value) for value in sample]) for sample in samples]
    region = onto(edges[0]), onto(edges[1])
    tests = [statistics.region(estimate, *region) for estimate in estimates]
    hardest = max(range(len(tests)), key=lambda i: tests[i][0])
    low, high = (back(edge) for edge in statistics.interval(estimates[hardest]))
    finding.estimate, finding.interval = back(estimates[hardest].value), (low, high)
    finding.comparison, finding.indication = "one sample", _indication((low, high), edges)
    if not finding.missing:
        finding.verdict = "inconclusive"
        finding.p = max(p for p, _ in tests), min(1.0, min(p for _, p in tests) * len(tests))


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _trained(claim: Trained, quantity: Quantity, tier: str, grid: Grid) -> Finding:
    finding = Finding(quantity, tier)
    wanted = list(dict.fromkeys((*quantity.cells, *(cell for group in quantity.against for cell in group))))
    if outside := [str(cell) for cell in wanted if cell not in grid.cells]:
        finding.missing["outside the grid"] = outside
        return finding
    strong = TIERS.index(tier) >= TIERS.index(claim.tier)
    if not strong:
        finding.missing["tier"] = [f"{claim.tier} (have {tier})"]
    if absent := [str(cell) for cell in wanted if (tier, cell) not in grid.runs]:
        finding.missing["runs"] = [f"{cell} at tier {tier}" for cell in absent]
        return finding
    runs = [(cell, seed, run) for cell in wanted for seed, run in sorted(grid.runs[tier, cell].items())]
    if blocked := list(dict.fromkeys(run.reason for _, _, run in runs if run.state == "blocked")):
        finding.verdict = "blocked"
        finding.missing["data"] = blocked
        return finding
    if unfinished := [f"{cell} seed {seed} {run.state}" for cell, seed, run in runs if run.state != "done"]:
        finding.missing["runs that did not finish"] = unfinished
    metric = quantity.metric or ""
    first = grid.sample(tier, quantity.cells, claim.split, metric)
    others = [grid.sample(tier, group, claim.split, metric) for group in quantity.against]
    finding.n = min(len(sample.values) for sample in (first, *others))
    finding.seeds = list(first.values)
    finding.degenerate = sum(sample.degenerate for sample in (first, *others))
    if finding.n == 0:
        if not unfinished:
            finding.missing["record"] = [f"{quantity.metric or 'the primary metric'} on {claim.split}"]
        return finding
    if finding.n < claim.seeds:
        finding.missing["seeds"] = [f"{claim.seeds} (have {finding.n})"]
    if strong:
        finding.verdict = "inconclusive"
    _measure(claim, finding, first, others)
    return finding


def _measure(claim: Trained, finding: Finding, first: Sample, others: Sequence[Sample]) -> None:
    """Fill in estimate, interval, indication and p-values from the samples."""
    edges = claim.test.region(finding.quantity.low, finding.quantity.high)
    scale = Scale(claim.unit)
    if finding.n < 2:
        finding.estimate = scale.single(first, others)
        finding.indication = "none" if finding.tier == "smoke" else "unclear"
        return
    estimates = scale.estimates(first, others)
    tests = [scale.test(estimate, edges) for estimate, _ in estimates]
    # Several comparisons must all hold (intersection-union); the hardest one is shown.
    hardest = max(range(len(tests)), key=lambda i: (tests[i][0], -estimates[i][0].value))
    estimate, finding.comparison = estimates[hardest]
    finding.n = min(each.n for each, _ in estimates)
    low, high = (scale.back(edge) for edge in statistics.interval(estimate))
    finding.estimate, finding.interval = scale.back(estimate.value), (low, high)
    if finding.tier != "smoke":
        finding.indication = _indication((low, high), edges)
    if estimate.error == 0 and finding.degenerate == 0:
        finding.missing["spread"] = ["all seeds give one value, so their spread is unknown"]
    if finding.missing:
        return
    if claim.looks is None:
        finding.p = _joint(tests)
        return
    looks = [look for look in claim.looks if look <= finding.n]
    found = []
    for look in looks:
        then = scale.estimates(first.first(look), [other.first(look) for other in others])
        found.append(_joint([scale.test(estimate, edges) for estimate, _ in then]))
    support, contradict = zip(*found, strict=True)
    finding.p = statistics.sequential(support, claim.looks), statistics.sequential(contradict, claim.looks)
    if len(looks) < len(claim.looks):
        finding.missing["seeds"] = [f"{claim.looks[len(looks)]} for the next look (have {finding.n})"]


def _joint(tests: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The p-values for "all comparisons hold" and for "one of them fails"."""
    return max(p for p, _ in tests), min(1.0, min(p for _, p in tests) * len(tests))


def _indication(interval: tuple[float, float], edges: tuple[float, float]) -> str:
    if edges[0] < interval[0] and interval[1] < edges[1]:
        return "towards"
    if interval[1] < edges[0] or edges[1] < interval[0]:
        return "against"
    return "unclear"


class Scale:
    """From scores (accuracy 0.5) to a claim's unit (50 percent) and back from the log scale of a relative gain."""

    def __init__(self, unit: str) -> None:
        self.relative = unit == "relative-percent"
        self.factor = 100.0 if unit in ("percent", "points") else 1.0

    def estimate(self, first: Sample, other: Sample | None) -> tuple[statistics.Estimate, str]:
        """The estimate in the unit (its logarithm where relative), and how the samples were compared."""
        a = [value * self.factor for value in first.values.values()]
        if other is None:
            return statistics.mean(a), "one sample"
        b = [value * self.factor for value in other.values.values()]
        shared = list(first.values) == list(other.values)
        if self.relative:
            estimate = statistics.log_ratio(a, b, shared)
        else:
            estimate = statistics.paired(a, b) if shared else statistics.welch(a, b)
        return estimate, "paired" if shared else "welch"

    def values(self, sample: Sample) -> list[float]:
        """The scores of a sample on the scale of the estimate."""
        values = [value * self.factor for value in sample.values.values()]
        return [math.log(value) for value in values] if self.relative else values

    def estimates(self, first: Sample, others: Sequence[Sample]) -> list[tuple[statistics.Estimate, str]]:
        """One estimate for each comparison, or the one of a sample that is compared with none."""
        return [self.estimate(first, other) for other in others] or [self.estimate(first, None)]

    def test(self, estimate: statistics.Estimate, edges: tuple[float, float]) -> tuple[float, float]:
        """The p-values for "inside the published edges" and for "outside"."""
        return statistics.region(estimate, self.edge(edges[0]), self.edge(edges[1]))

    def single(self, first: Sample, others: Sequence[Sample]) -> float:
        """The mean or smallest difference where one seed leaves no spread to estimate."""
        means = [math.fsum(s.values.values()) / len(s.values) for s in (first, *others)]
        if not others:
            return means[0] * self.factor
        best = max(means[1:])
        return 100.0 * (means[0] / best - 1.0) if self.relative else (means[0] - best) * self.factor

    def edge(self, value: float) -> float:
        """A published edge on the scale of the estimate."""
        return math.log1p(value / 100.0) if self.relative and math.isfinite(value) else value

    def back(self, value: float) -> float:
        return 100.0 * math.expm1(value) if self.relative else value


def _settle(claims: Sequence[Claim], findings: Mapping[str, Sequence[Finding]]) -> None:
    """Adjust the p-values within the paper and tier, and turn them into verdicts."""
    families: dict[str, list[tuple[Claim, Finding]]] = defaultdict(list)
    for claim in claims:
        for finding in findings[claim.id]:
            if finding.p is not None:
                families[finding.tier].append((claim, finding))
    for family in families.values():
        adjusted = [statistics.holm([f.p[side] for _, f in family if f.p is not None]) for side in (0, 1)]
        for (claim, finding), support, contradict in zip(family, *adjusted, strict=True):
            finding.p = support, contradict
            if support < claim.test.alpha:
                finding.verdict = "supported"
            elif contradict < claim.test.alpha:
                finding.verdict = "contradicted"


def _headline(paper: str, claim: Claim, findings: Sequence[Finding]) -> Row:
    """The claim as a whole, by the strongest tier that settles it, else by its own."""
    need = len(claim.quantities) if isinstance(claim, Conflict) or claim.need is None else claim.need
    by_tier: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        by_tier[finding.tier].append(finding)
    strongest_first = sorted(by_tier, key=(UNTRAINED, *TIERS).index, reverse=True)
    own = claim.tier if isinstance(claim, Trained) else UNTRAINED
    verdicts = {tier: _verdict([f.verdict for f in by_tier[tier]], need) for tier in strongest_first}
    # Below its own tier nothing is supported or contradicted, so the first that is decides.
    tier = next((t for t in strongest_first if verdicts[t] in SETTLED), own)
    pointing = next((t for t in strongest_first if any(f.indication != "none" for f in by_tier[t])), own)
    parts = by_tier[tier]
    if len(parts) == 1:
        whole = parts[0]
    else:
        cells = tuple(cell for part in parts for cell in part.quantity.cells)
        against = tuple(group for part in parts for group in part.quantity.against)
        quantity = Quantity("", math.nan, math.nan, None, cells, against)
        whole = Finding(
            quantity,
            tier,
            missing=_merged(part.missing for part in parts),
            degenerate=sum(part.degenerate for part in parts),
            device="; ".join(dict.fromkeys(part.device for part in parts if part.device)),
            record="; ".join(dict.fromkeys(part.record for part in parts if part.record)),
        )
    whole = replace(whole, verdict=verdicts[tier], indication=_points([f.indication for f in by_tier[pointing]], need))
    return _row(paper, claim, whole, "headline") | {"quantity": ""}


def _merged(parts: Iterable[Missing]) -> Missing:
    merged: Missing = {}
    for part in parts:
        for sort, things in part.items():
            merged[sort] = list(dict.fromkeys([*merged.get(sort, []), *things]))
    return merged


def _verdict(verdicts: Sequence[str], need: int) -> str:
    if verdicts.count("supported") >= need:
        return "supported"
    if len(verdicts) - verdicts.count("contradicted") < need:
        return "contradicted"
    if set(verdicts) <= {"not-run", "blocked"}:
        return "blocked" if "blocked" in verdicts else "not-run"
    return "inconclusive"


def _points(indications: Sequence[str], need: int) -> str:
    if set(indications) == {"none"}:
        return "none"
    if indications.count("towards") >= need:
        return "towards"
    return "against" if len(indications) - indications.count("against") < need else "unclear"


def _row(paper: str, claim: Claim, finding: Finding, level: str) -> Row:
    quantity = finding.quantity
    cells = (*quantity.cells, *(cell for group in quantity.against for cell in group))
    region = (math.nan, math.nan) if isinstance(claim, Conflict) else claim.test.region(quantity.low, quantity.high)
    return {
        "paper": paper,
        "claim": claim.id,
        "version": claim.version,
        "level": level,
        "quantity": quantity.name,
        "tier": finding.tier,
        "kind": claim.kind,
        "status": claim.status,
        "unit": claim.unit,
        "rule": claim.test.rule,
        "low": _or_null(quantity.low),
        "high": _or_null(quantity.high),
        "region_low": _or_null(region[0]),
        "region_high": _or_null(region[1]),
        "alpha": claim.test.alpha,
        "verdict": finding.verdict,
        "indication": finding.indication,
        "missing": "" if finding.verdict in SETTLED else spelt(finding.missing),
        "estimate": finding.estimate,
        "interval_low": finding.interval[0],
        "interval_high": finding.interval[1],
        "n": finding.n,
        "seeds": json.dumps(list(finding.seeds)),
        "comparison": finding.comparison,
        "degenerate": finding.degenerate,
        "p_support": finding.p[0] if finding.p else None,
        "p_contradict": finding.p[1] if finding.p else None,
        "cells": json.dumps([str(cell) for cell in dict.fromkeys(cells)]),
        "device": finding.device,
        "record": finding.record,
    }


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def spelt(missing: Mapping[str, Sequence[str]]) -> str:
    """What is missing, in words."""
    parts = []
    for sort, things in missing.items():
        more = f" and {len(things) - SHOWN} more" if len(things) > SHOWN else ""
        parts.append(f"{sort}: {', '.join(things[:SHOWN])}{more}")
    return "; ".join(parts)
