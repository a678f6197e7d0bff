"""The ledger: its schema refuses what may not stand in it, with file, line and rule; what stands in it is complete."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from noscratch.results.claims import ClaimError, Conflict, Measured, Trained, load

LEDGER = Path(__file__).resolve().parents[1] / "claims"
# Line 6 is the claim's first.
GOOD = """\
paper: demo
title: A paper
arxiv: "2310.00001"
sources: {paper: the text}
claims:
  - id: demo-row
    version: 1
    statement: A statement in our own words.
    where: Table 1
    source: paper
    status: S1
    kind: accuracy
    unit: percent
    cells: {backbone: s4, protocol: scratch}
    over: [listops, text]
    values: {listops: 59.60, mrpc.f1: [80, 85], mean: 70}
    test: {rule: equivalent, margin: 1.0, why: ours}
    seeds: 3
    tier: paper
"""
SPEED = """\
  - id: demo-speed
    version: 1
    statement: It is faster.
    where: Table 2
    source: paper
    status: S2
    kind: efficiency
    unit: ratio
    backbones: [s4]
    values: {length-1024: 1.58}
    test: {rule: equivalent, margin_percent: 10, why: ours}
    seeds: 5
    device: gpu
"""
CONFLICT = """\
  - id: demo-conflict
    version: 1
    statement: Two lengths.
    where: Table 3
    source: paper
    status: S1
    kind: conflict
    unit: positions
    readings:
      length: {"paper, prose": 2048, "paper, table": 4096}
    test: {rule: disagree, margin: 0, why: a whole number}
"""


def ledger(folder: Path, text: str) -> Path:
    (folder / "demo.yaml").write_text(text)
    return folder


def test_good(tmp_path: Path) -> None:
    [paper] = load(ledger(tmp_path, GOOD + SPEED + CONFLICT))
    row, speed, conflict = paper.claims
    assert isinstance(row, Trained)
    assert isinstance(speed, Measured)
    assert isinstance(conflict, Conflict)
    listops, f1, mean = row.quantities
    assert (listops.name, listops.low, listops.high, [str(c) for c in listops.cells]) == (
        *("listops", 59.6, 59.6),
        ["listops/s4/scratch"],
    )
    assert (f1.metric, f1.low, f1.high) == ("f1", 80, 85)
    assert [cell.task for cell in mean.cells] == ["listops", "text"]
    assert row.test.region(f1.low, f1.high) == (79, 86)
    assert speed.test.region(2.0, 2.0) == pytest.approx((1.8, 2.2))
    assert speed.test.region(-2.0, -2.0) == pytest.approx((-2.2, -1.8))
    assert (conflict.quantities[0].low, conflict.quantities[0].high) == (2048, 4096)


def test_half_lines(tmp_path: Path) -> None:
    for rule, region in (("greater", (58.6, math.inf)), ("less", (-math.inf, 60.6))):
        [paper] = load(ledger(tmp_path, GOOD.replace("equivalent", rule)))
        assert paper.claims[0].test.region(59.6, 59.6) == region


@pytest.mark.parametrize(
    ("old", "new", "line", "rule"),
    [
        ("status: S1", "status: MEM", 11, "`status`.*'S1' or 'S2'.*got 'MEM'"),
        ("margin: 1.0, ", "", 17, "one of the two"),
        ("margin: 1.0", "margin: -1.0", 17, "`test.margin`.*greater than or equal to 0"),
        ("margin: 1.0", "margin: 1.0, margin_percent: 5", 17, "one of the two"),
        ("why: ours", "wy: ours", 17, "did you mean `why`"),
        ("why: ours", "alpha: 0.5, why: ours", 17, "`test.alpha`"),
        ("unit: percent", "unit: points", 13, "the unit of kind accuracy is one of percent"),
        ("backbone: s4", "backbone: s44", 14, "unknown backbone 's44'; did you mean 's4'"),
        ("protocol: scratch", "protocol: scrach", 14, "`cells.protocol`"),
        ("listops: 59.60", "listop: 59.60", 16, "unknown task 'listop'; did you mean 'listops'"),
        ("mrpc.f1", "mrpc.f2", 16, "unknown metric 'f2'"),
        ("[80, 85]", "[85, 80]", 16, r"a range is \[low, high\]"),
        ("59.60", "'59.60'", 16, "`values.listops"),
        ("59.60", ".nan", 16, "finite"),
        ("    over: [listops, text]\n", "", 6, "a `mean` says which tasks"),
        ("kind: accuracy", "kind: acuracy", 6, "`kind` is one of accuracy"),
        ("kind: accuracy", "kind: difference", 6, "`against`"),
        ("equivalent", "disagree", 6, "for a conflict"),
        ("seeds: 3", "seeds: 1", 18, "`seeds`"),
        ("seeds: 3", "seeds: 3\n    need: 4", 6, "`need` is at most"),
        ("seeds: 3", "seeds: 3\n    looks: [5, 10]", 6, "`looks` ascend from `seeds`"),
        ("seeds: 3", "seeds: 3\n    looks: [3, 10, 5]", 6, "`looks` ascend"),
        ("tier: paper", "tier: smoke", 19, "`tier`"),
        ("    version: 1\n", "", 6, "`version`: this key is required"),
        ("source: paper", "source: memory", 10, "key of `sources`"),
        ("id: demo-row", "id: row", 6, "starts with the paper's name"),
        ("paper: demo", "paper: other", 1, "the file's name"),
        ('arxiv: "2310.00001"', "arxiv: 2310.00001", 3, "`arxiv`"),
        ("seeds: 3", "seeds: 3\n    seeds: 5", 19, "duplicate key"),
        ("title: A paper", "titel: A paper", 2, "did you mean `title`"),
    ],
)
def test_refused(tmp_path: Path, old: str, new: str, line: int, rule: str) -> None:
    assert old in GOOD
    with pytest.raises(Exception, match=rf"(?s)demo\.yaml:{line}: .*{rule}"):
        load(ledger(tmp_path, GOOD.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("rule: disagree", "rule: equivalent", "`disagree`"),
        ('"paper, prose": 2048, ', "", "two readings at least"),
        ("2048", "two thousand", "all numbers or all texts"),
        ("unit: positions", "unit: text", "unit `text`"),
        ("paper, prose", "rumour", "not among `sources`"),
        ("    unit: positions", "    unit: positions\n    seeds: 3", "no such key"),
    ],
)
def test_refused_conflict(tmp_path: Path, old: str, new: str, rule: str) -> None:
    assert old in CONFLICT
    with pytest.raises(ClaimError, match=rf"demo\.yaml:\d+: demo-conflict: .*{rule}"):
        load(ledger(tmp_path, GOOD + CONFLICT.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "rule"), [("seeds: 5", "seeds: 2", "3 repetitions"), ("gpu", "tpu", "`device`")]
)
def test_refused_measurement(tmp_path: Path, old: str, new: str, rule: str) -> None:
    with pytest.raises(ClaimError, match=rf"demo-speed: .*{rule}"):
        load(ledger(tmp_path, GOOD + SPEED.replace(old, new)))


def test_every_mistake_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClaimError) as error:
        load(ledger(tmp_path, GOOD.replace("seeds: 3", "seeds: 1") + SPEED.replace("S2", "S3")))
    assert len(str(error.value).splitlines()) == 2


def test_ids_are_unique(tmp_path: Path) -> None:
    with pytest.raises(ClaimError, match="demo-speed: an id is given once"):
        load(ledger(tmp_path, GOOD + SPEED + SPEED))


def test_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(ClaimError, match="at least one"):
        load(tmp_path)


# The ledger of this repository


def test_extent() -> None:
    papers = {paper.paper: paper for paper in load(LEDGER)}
    assert set(papers) == {"spt", "s4", "sgconv", "bigs", "structured_ffn"}
    claims = [claim for paper in papers.values() for claim in paper.claims]
    assert len(claims) >= 40
    assert sum(len(claim.quantities) for claim in claims) >= 120
    assert {claim.kind for claim in claims} == {
        *("accuracy", "difference", "efficiency", "architecture", "numerics", "conflict"),
    }
    for paper in papers.values():
        used = {claim.source for claim in paper.claims}
        readings = [claim.readings for claim in paper.claims if isinstance(claim, Conflict)]
        used |= {source.split(",")[0] for each in readings for named in each.values() for source in named}
        assert used == set(paper.sources), "every source is used"


def test_what_one_table_says_counts_once() -> None:
    """At least 40 distinct places of papers; and at one place a quantity of the same cells is claimed once, or in two
    kinds: the number, and the sign of a difference."""
    places, seen = set(), set()
    for paper in load(LEDGER):
        for claim in paper.claims:
            places.add((paper.paper, claim.where))
            if isinstance(claim, Conflict):
                continue
            for quantity in claim.quantities:
                subject = (quantity.cells, quantity.against) if isinstance(claim, Trained) else claim.id
                split = claim.split if isinstance(claim, Trained) else ""
                key = (paper.paper, claim.where, quantity.name, subject, split, claim.unit, claim.test.rule)
                assert key not in seen, claim.id
                seen.add(key)
    assert len(places) >= 40


def test_every_family_is_there() -> None:
    """What the ledger must hold: a claim of each, by its id."""
    ids = {claim.id for paper in load(LEDGER) for claim in paper.claims}
    assert ids >= {
        *("spt-gain-per-task", "spt-gap-before", "spt-gap-after", "spt-causal-like-masked", "spt-init-redundant"),
        *("spt-sample-efficiency", "spt-pathx256-gain", "spt-compute-tied", "spt-lra-causal", "spt-lra-rotary-scratch"),
        *("s4-lra", "s4-transformer-speedup", "s4-transformer-memory", "s4-wikitext-generation-speedup"),
        *("s4-sequential-images", "s4-convolution-is-recurrence", "s4-dplr-is-dense"),
        *("sgconv-lra", "sgconv-beats-s4", "sgconv-decay", "sgconv-sub-kernel", "sgconv-faster-than-s4"),
        *("bigs-matches-bert", "bigs-gating-helps", "bigs-flops", "bigs-flop-ratios", "bigs-length", "bigs-parameters"),
        *("structured_ffn-xl-parameters", "structured_ffn-xl-flops", "structured_ffn-latency-63"),
        *("structured_ffn-latency-32", "structured_ffn-self-guided"),
    }


def test_long_range_arena_is_complete() -> None:
    """The rows that the papers' tables of Long Range Arena print: six tasks each, and their mean where printed."""
    tasks = {"listops", "text", "retrieval", "image", "pathfinder", "pathfinder-128"}
    rows = {claim.id: {q.name for q in claim.quantities} for paper in load(LEDGER) for claim in paper.claims}
    for name in ("s4-lra", "s4-lra-original", "s4-lra-transformer", "sgconv-lra", "spt-lra-causal", "spt-lra-mega"):
        assert rows[name] == tasks | {"mean"}
    assert rows["spt-lra-rotary-scratch"] == tasks


def test_printed_means_are_means() -> None:
    """A printed mean and the printed cells of its row agree to the rounding of the last digit: no cell is mistyped."""
    checked = 0
    for paper in load(LEDGER):
        for claim in paper.claims:
            values = {q.name: q.low for q in claim.quantities}
            if not isinstance(claim, Trained) or claim.kind != "accuracy" or not {*(claim.over or ["-"])} < set(values):
                continue
            tasks = claim.over or []
            assert sum(values[task] for task in tasks) / len(tasks) == pytest.approx(values["mean"], abs=0.0101), (
                claim.id
            )
            checked += 1
    assert checked >= 10


def test_statements_are_plain() -> None:
    for paper in load(LEDGER):
        for claim in paper.claims:
            assert claim.statement.endswith(".")
            assert len(claim.statement) <= 200, claim.id
            assert claim.test.why.endswith("."), claim.id
