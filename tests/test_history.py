"""The history of verdicts: a line only when a verdict changed, and no claim changes behind its verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from noscratch.results import history, parquet_bytes
from noscratch.results.claims import ClaimError, load
from noscratch.results.judge import SCHEMA

ROOT = Path(__file__).resolve().parents[1]
LEDGER = """\
paper: demo
title: A paper
arxiv: "2310.00001"
sources: {paper: the text}
claims:
  - {id: demo-a, version: 1, statement: S., where: T, source: paper, status: S1, kind: architecture, unit: layers,
     backbones: [s4], values: {layers: 4}, device: any, test: {rule: equivalent, margin: 0, why: w}}
  - {id: demo-b, version: 1, statement: S., where: T, source: paper, status: S1, kind: architecture, unit: layers,
     backbones: [s4], values: {layers: 6}, device: any, test: {rule: equivalent, margin: 0, why: w}}
"""


def say(root: Path, **verdicts: str) -> list[dict[str, Any]]:
    """Append what these headlines change; returns the new lines."""
    empty = {field.name: None if field.nullable else 0 if pa.types.is_integer(field.type) else 0.0 for field in SCHEMA}
    empty |= {field.name: "" for field in SCHEMA if pa.types.is_string(field.type)}
    rows = [
        empty | {"claim": f"demo-{name}", "version": 1, "level": "headline", "tier": "none", "verdict": verdict}
        for name, verdict in verdicts.items()
    ]
    quantity = {"claim": "demo-a", "version": 1, "level": "quantity", "quantity": "layers", "verdict": "inconclusive"}
    rows.append(empty | quantity | {"tier": "none", "estimate": 4.0, "n": 1})
    rows.append(empty | quantity | {"tier": "smoke", "estimate": 3.0, "n": 1})
    (root / "verdicts.parquet").write_bytes(parquet_bytes(pa.Table.from_pylist(rows, schema=SCHEMA)))
    return history.append(root, load(root), "c0ffee")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "demo.yaml").write_text(LEDGER)
    return tmp_path


def test_a_line_for_each_change(root: Path) -> None:
    assert say(root, a="not-run", b="blocked") == []
    assert not (root / history.FILE).exists(), "a claim without a verdict is no news"
    [line] = say(root, a="supported", b="not-run")
    assert (line["claim"], line["verdict"], line["version"], line["commit"]) == ("demo-a", "supported", 1, "c0ffee")
    figures = {"layers": {"estimate": 4.0, "interval_low": None, "interval_high": None, "n": 1}}
    assert (line["tier"], line["figures"]) == ("none", figures), "those of the tier that decided"
    before = (root / history.FILE).read_bytes()
    assert say(root, a="supported", b="not-run") == []
    assert (root / history.FILE).read_bytes() == before
    assert [(line["claim"], line["verdict"]) for line in say(root, a="blocked", b="contradicted")] == [
        ("demo-a", "blocked"),
        ("demo-b", "contradicted"),
    ]
    assert say(root, a="not-run", b="contradicted") == [], "neither is a verdict"
    lines = history.read(root / history.FILE)
    assert [line["claim"] for line in lines] == ["demo-a", "demo-a", "demo-b"]
    assert (root / history.FILE).read_bytes().startswith(before), "lines are only ever added"


@pytest.mark.parametrize(
    ("old", "new"),
    [("margin: 0, ", "margin: 1, "), ("statement: S.", "statement: Else."), ("layers: 4", "layers: 5"), ("S1", "S2")],
)
def test_a_claim_stays_after_its_verdict(root: Path, old: str, new: str) -> None:
    say(root, a="supported", b="not-run")
    history.check(load(root), root / history.FILE)
    changed = LEDGER.replace(old, new, 1)  # of demo-a, the first
    (root / "demo.yaml").write_text(changed)
    with pytest.raises(ClaimError, match=r"demo-a: changed after its verdict of \d{4}-.* raise `version` above 1"):
        history.check(load(root), root / history.FILE)
    (root / "demo.yaml").write_text(changed.replace("version: 1", "version: 2", 1))
    history.check(load(root), root / history.FILE)


def test_what_may_change(root: Path) -> None:
    """A claim without a verdict, comments, order, a default written out."""
    say(root, a="supported", b="not-run")
    (root / "demo.yaml").write_text(
        LEDGER.replace("layers: 6", "layers: 7").replace("why: w}}", "why: w, alpha: 0.05}}  # a comment", 1)
    )
    history.check(load(root), root / history.FILE)


def test_versions_do_not_fall_and_claims_do_not_vanish(root: Path) -> None:
    (root / "demo.yaml").write_text(LEDGER.replace("version: 1", "version: 2", 1))
    say(root, a="supported", b="contradicted")
    (root / "demo.yaml").write_text(LEDGER)
    line = json.loads((root / history.FILE).read_text().splitlines()[0])
    (root / history.FILE).write_text(json.dumps(line | {"version": 2}) + "\n")
    with pytest.raises(ClaimError, match="demo-a: changed"):
        history.check(load(root), root / history.FILE)
    (root / "demo.yaml").write_text(LEDGER.replace("demo-a", "demo-c"))
    with pytest.raises(ClaimError, match=r"demo-a: it had the verdict supported .* no longer in claims/"):
        history.check(load(root), root / history.FILE)


def test_no_claim_of_this_repository_changed_after_its_verdict() -> None:
    history.check(load(ROOT / "claims"), ROOT / "reports" / history.FILE)
