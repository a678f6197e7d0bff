"""Gains at equal compute: the arms, the arithmetic, what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noscratch.results import parquet_bytes
from noscratch.results.claims import Cell
from noscratch.results.collect import SCHEMA as RESULTS
from noscratch.results.compute import KEY, SCHEMA, report

HEAD = "paper: demo\ntitle: A paper\narxiv: '2310.00001'\nsources: {paper: the text}\nclaims:\n"
TEST = "test: {rule: greater, margin: 0, why: a sign}, seeds: 3, tier: mini"
GAIN = (
    "  - {id: demo-gain, version: 1, statement: S, where: T, source: paper, status: S1, kind: difference,\n"
    "     unit: points, cells: {backbone: s4, protocol: spt-masked}, against: {protocol: scratch},\n"
    f"     values: {{listops: 0}}, {TEST}}}\n"
)
OTHER = GAIN.replace("demo-gain", "demo-other").replace("{protocol: scratch}", "{backbone: dlr, protocol: scratch}")
BOTH = GAIN.replace("demo-gain", "demo-both").replace("{protocol: scratch}", "{backbone: dlr, protocol: spt-masked}")
ALONE = (
    "  - {id: demo-alone, version: 1, statement: S, where: T, source: paper, status: S1, kind: accuracy,\n"
    f"     unit: percent, cells: {{backbone: s4, protocol: spt-masked}}, values: {{listops: 60}}, {TEST}}}\n"
)
SCRATCH = GAIN.replace("demo-gain", "demo-scratch").replace("protocol: spt-masked", "protocol: scratch")

Arm = tuple[str, str, str | None]  # backbone, protocol, matched
ARMS: Mapping[Arm, tuple[float, int, float]] = {  # score, steps and operations of the fine-tuning
    ("s4", "spt-masked", None): (0.70, 100, 1e9),
    ("s4", "scratch", None): (0.50, 100, 1e9),
    ("s4", "scratch-matched", "flops"): (0.60, 180, 3e9),
    ("dlr", "scratch", None): (0.65, 100, 2e9),
}


def row(arm: Arm, seed: int, phase: str, score: float, steps: int, flops: float) -> dict[str, Any]:
    backbone, protocol, matched = arm
    finetune = phase == "finetune"
    return dict.fromkeys(RESULTS.names) | {
        "tier": "mini",
        "task": "listops",
        "backbone": backbone,
        "protocol": protocol,
        "seed": seed,
        "phase": phase,
        "split": "test" if finetune else "train",
        "metric": "accuracy" if finetune else "loss",
        "primary": True,
        "state": "done",
        "reason": "",
        "address": "0" * 12,
        "pretrain_address": "",
        "kernels": "{}",
        "code": "current",
        "setting": f"{matched}"[:12],
        "degenerate": False,
        "value": score + 0.001 * seed,
        "steps": steps,
        "flops": flops,
        "matched": matched,
    }


def compare(folder: Path, arms: Mapping[Arm, tuple[float, int, float]], ledger: str) -> dict[tuple[str, str], Any]:
    """(claim, way) -> its row at tier mini."""
    rows = [row(arm, seed, "finetune", *figures) for arm, figures in arms.items() for seed in range(3)]
    rows += [row(arm, seed, "pretrain", 1.0, 100, 2e9) for arm in arms if arm[1] == "spt-masked" for seed in range(3)]
    folder.mkdir(exist_ok=True)
    (folder / "demo.yaml").write_text(HEAD + ledger)
    (folder / "results.parquet").write_bytes(parquet_bytes(pa.Table.from_pylist(rows, schema=RESULTS)))
    report(folder, folder, [Cell("listops", "s4", "scratch-matched"), Cell("listops", "dlr", "scratch-matched")])
    table = pq.read_table(folder / "compute.parquet")
    assert table.schema.equals(SCHEMA, check_metadata=True)
    keys = [tuple(row[name] for name in KEY) for row in table.to_pylist()]
    assert keys == sorted(set(keys))
    return {(each["claim"], each["way"]): each for each in table.to_pylist()}


def test_three_ways(tmp_path: Path) -> None:
    found = compare(tmp_path, ARMS, GAIN)
    tuned, flops, steps = (found["demo-gain", way] for way in ("fine-tuning", "flops", "steps"))
    assert tuned["estimate"] == pytest.approx(20)
    assert tuned["interval_low"] <= tuned["estimate"] <= tuned["interval_high"]
    assert (tuned["n"], tuned["comparison"], tuned["unit"], tuned["missing"]) == (3, "paired", "points", "")
    assert (tuned["steps"], tuned["flops"]) == (200, 3e9), "both phases"
    assert (tuned["steps_ratio"], tuned["flops_ratio"]) == (0.5, pytest.approx(1 / 3))
    assert flops["estimate"] == pytest.approx(10)
    assert (flops["steps_ratio"], flops["flops_ratio"]) == (0.9, 1.0)
    assert json.loads(flops["against"]) == ["listops/s4/scratch-matched"]
    assert (steps["estimate"], steps["missing"]) == (None, "runs: listops/s4/scratch-matched at tier mini")


def test_the_arm_is_the_one_that_its_way_names(tmp_path: Path) -> None:
    """Runs matched by steps answer for steps alone, even where both kinds lie side by side."""
    found = compare(tmp_path, {**ARMS, ("s4", "scratch-matched", "flops"): (0.60, 180, 3e9)}, GAIN)
    by_steps = {**ARMS, ("s4", "scratch-matched", "steps"): (0.62, 200, 3.3e9)}
    del by_steps["s4", "scratch-matched", "flops"]
    other = compare(tmp_path / "steps", by_steps, GAIN)
    assert found["demo-gain", "flops"]["estimate"] == pytest.approx(10)
    assert other["demo-gain", "steps"]["estimate"] == pytest.approx(8)
    assert other["demo-gain", "steps"]["steps_ratio"] == 1.0
    assert other["demo-gain", "flops"]["estimate"] is None


def test_the_other_side(tmp_path: Path) -> None:
    """What the claim names, if it is from scratch; else the same cells."""
    found = compare(tmp_path, ARMS, GAIN + OTHER + BOTH + ALONE + SCRATCH)
    assert found["demo-other", "fine-tuning"]["estimate"] == pytest.approx(5)
    assert json.loads(found["demo-other", "flops"]["against"]) == ["listops/dlr/scratch-matched"]
    for claim in ("demo-both", "demo-alone"):
        assert found[claim, "fine-tuning"]["estimate"] == pytest.approx(20)
    assert {claim for claim, _ in found} == {"demo-gain", "demo-other", "demo-both", "demo-alone"}


def test_every_claim_on_self_pretraining_is_shown(tmp_path: Path) -> None:
    from noscratch.results.claims import Trained, load

    ledger = Path(__file__).resolve().parents[1] / "claims"
    (tmp_path / "results.parquet").write_bytes(parquet_bytes(pa.Table.from_pylist([], schema=RESULTS)))
    report(tmp_path, ledger)
    shown = {(row["claim"], row["way"]) for row in pq.read_table(tmp_path / "compute.parquet").to_pylist()}
    claims = {
        claim.id
        for paper in load(ledger)
        for claim in paper.claims
        if isinstance(claim, Trained) and claim.cells.protocol in ("spt-masked", "spt-causal")
    }
    assert len(claims) >= 20
    assert shown == {(claim, way) for claim in claims for way in ("fine-tuning", "flops", "steps")}
