"""Cells and flags: what seeds say together, when runs began to learn, and which runs to look at twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noscratch.params import Expected
from noscratch.plan import BASELINES
from noscratch.results import cells, flags, parquet_bytes, statistics
from noscratch.results.claims import load
from noscratch.results.collect import CURVES_SCHEMA, RecordError
from noscratch.results.collect import SCHEMA as RESULTS

LEDGER = """\
paper: demo
title: A paper
arxiv: "2310.00001"
sources: {paper: the text}
claims:
  - id: demo-listops
    version: 1
    statement: A model reaches these accuracies.
    where: Table 1
    source: paper
    status: S1
    kind: accuracy
    unit: percent
    cells: {protocol: scratch}
    over: [listops, text]
    values: {s4: {listops: 59.6, mean: 70}, mega: {listops: 63.14, mrpc.f1: 88}}
    test: {rule: equivalent, margin: 1, why: ours}
    seeds: 3
    tier: paper
"""
CHANCE, LEARNED = [0.1] * 4, [0.1, 0.11, 0.3, 0.5]
STEPS = (200, 400, 600, 800)

Runs = list[dict[str, Any]]


def run(
    seed: int = 0,
    test: float = 0.5,
    curve: list[float] | None = None,
    *,
    task: str = "listops",
    backbone: str = "s4d",
    protocol: str = "scratch",
    tier: str = "mini",
    **changes: Any,
) -> dict[str, Any]:
    """What a test says of one run: its rows of results.parquet are made by `report`."""
    cell = {"tier": tier, "task": task, "backbone": backbone, "protocol": protocol, "seed": seed}
    return {"cell": cell, "test": test, "curve": LEARNED if curve is None else curve, "changes": changes}


def majority(score: float = 0.1, task: str = "listops") -> dict[str, Any]:
    return run(0, score, [score], task=task, backbone="majority", degenerate=True, kernels="{}")


def report(folder: Path, runs: Runs, expected: flags.Expectations | None = None) -> tuple[Runs, Runs]:
    """The rows of cells.parquet and of flags.parquet that the runs give."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, lines = [], []
    for number, each in enumerate(runs):
        common = dict.fromkeys(RESULTS.names) | each["cell"]
        common |= dict.fromkeys(("reason", "pretrain_address"), "") | {"phase": "finetune", "kernels": "{}"}
        common |= {"metric": "accuracy", "primary": True, "state": "done", "address": f"{number:012x}"}
        common |= {"code": "current", "setting": "s" * 12, "degenerate": False, "examples": 2000}
        for split, value in (("validation", max(each["curve"])), ("test", each["test"])):
            row = common | {"split": split, "value": value, "predictions": f"{split}-{number}"} | each["changes"]
            if row["state"] == "done" or split == "test":
                rows.append(row)
        if common["state"] == each["changes"].get("state", "done"):
            name = "{tier}/{task}/{backbone}/{protocol}/seed{seed}/finetune".format(**each["cell"])
            lines += [(name, s, "validation", "accuracy", v) for s, v in zip(STEPS, each["curve"], strict=False)]
    (folder / "results.parquet").write_bytes(parquet_bytes(pa.Table.from_pylist(rows, schema=RESULTS)))
    columns = dict(zip(CURVES_SCHEMA.names, zip(*lines, strict=True) if lines else [[]] * 5, strict=True))
    (folder / "curves.parquet").write_bytes(parquet_bytes(pa.table(columns, schema=CURVES_SCHEMA)))
    (folder / "demo.yaml").write_text(LEDGER)
    flags.report(folder, folder, expected or {})
    return tuple(pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("cells", "flags"))  # type: ignore[return-value]


def cell(rows: Runs, protocol: str = "scratch", backbone: str = "s4d") -> Mapping[str, Any]:
    [row] = [row for row in rows if (row["protocol"], row["backbone"]) == (protocol, backbone)]
    return row


def flagged(rows: Runs) -> set[tuple[str, int, str, str]]:
    return {(row["backbone"], row["seed"], row["flag"], row["split"]) for row in rows}


def test_mean_and_interval(tmp_path: Path) -> None:
    scores = [0.50, 0.53, 0.49, 0.51]
    row = cell(report(tmp_path, [run(seed, score) for seed, score in enumerate(scores)])[0])
    estimate = statistics.mean(scores)
    assert (row["n"], row["runs"], json.loads(row["seeds"]), row["metric"]) == (4, 4, [0, 1, 2, 3], "accuracy")
    assert row["mean"] == pytest.approx(0.5075)
    assert row["deviation"] == pytest.approx(0.017078251276599, rel=1e-10)  # R: sd
    assert (row["interval_low"], row["interval_high"]) == statistics.interval(estimate)
    one = cell(report(tmp_path, [run(0, 0.5)])[0])
    assert (one["mean"], one["deviation"], one["interval_low"]) == (0.5, None, None)


def test_onsets(tmp_path: Path) -> None:
    runs = [majority(), run(0), run(1, curve=CHANCE), run(2, curve=[0.2, 0.1, 0.1, 0.1])]
    row = cell(report(tmp_path, runs)[0])
    assert (row["chance"], row["threshold"], row["budget"]) == (0.1, pytest.approx(0.15), 800)
    assert json.loads(row["onsets"]) == {"0": 600, "1": None, "2": 200}
    assert (row["learned"], row["onset_median"]) == (pytest.approx(2 / 3), 600)
    assert row["learned_low"] < row["learned"] < row["learned_high"]
    assert row["onset_p"] is None


def test_a_diverged_run_and_a_constant_one_never_learn(tmp_path: Path) -> None:
    diverged = run(1, state="diverged", value=None, examples=None, degenerate=None, predictions=None)
    lucky = run(2, 0.1, [0.1, 0.2, 0.2, 0.1], degenerate=True)  # of the class that prevails in validation
    rows, found = report(tmp_path, [majority(), run(0), diverged, lucky])
    assert json.loads(cell(rows)["onsets"]) == {"0": 600, "1": None, "2": None}
    assert (cell(rows)["runs"], cell(rows)["n"], cell(rows)["constant"]) == (3, 2, 1)
    assert flagged(found) == {
        ("s4d", 2, "constant", "validation"),
        ("s4d", 2, "constant", "test"),
        ("s4d", 2, "at chance", "validation"),
    }


def test_onsets_need_a_chance_level(tmp_path: Path) -> None:
    rows, found = report(tmp_path, [run(0, 0.1, CHANCE), majority(task="text")])
    assert cell(rows)["chance"] is cell(rows)["learned"] is None
    assert cell(rows)["onsets"] == "{}"
    assert not found
    assert cell(rows, backbone="majority")["learned"] is None, "a baseline has no steps"


def test_log_rank_against_scratch(tmp_path: Path) -> None:
    """Holm within tier and task. Five that learn against five that do not: 2 of the 252 relabellings are as far."""
    runs = [majority(), *(run(seed, curve=CHANCE) for seed in range(5))]
    runs += [run(seed, protocol="spt-masked") for seed in range(5)]
    assert cell(report(tmp_path, runs)[0], "spt-masked")["onset_p"] == pytest.approx(2 / 252)
    runs += [run(seed, protocol="spt-causal", curve=CHANCE) for seed in range(5)]
    rows = report(tmp_path, runs)[0]
    assert cell(rows, "spt-masked")["onset_p"] == pytest.approx(4 / 252)
    assert cell(rows, "spt-causal")["onset_p"] == 1
    assert cell(rows)["onset_p"] is None
    lonely = report(tmp_path, [*runs[:6], run(0, protocol="spt-masked")])[0]
    assert cell(lonely, "spt-masked")["onset_p"] is None


def test_rows_of_other_settings_stand_apart(tmp_path: Path) -> None:
    rows, _ = report(tmp_path, [run(0), run(1, setting="t" * 12, code="earlier")])
    assert [(row["code"], row["n"]) for row in rows] == [("current", 1), ("earlier", 1)]


def test_same_predictions(tmp_path: Path) -> None:
    alike = {"predictions": "p" * 12}
    runs = [majority(), run(0, **alike), run(1, **alike), run(2)]
    _, found = report(tmp_path, [*runs, run(0, task="text", **alike)])
    assert flagged(found) == {
        (*each, "same predictions", split) for each in (("s4d", 0), ("s4d", 1)) for split in ("validation", "test")
    }
    assert {row["other"] for row in found} == {"listops/s4d/scratch seed 0", "listops/s4d/scratch seed 1"}
    stuck = [majority(), *(run(seed, 0.1, CHANCE, **alike) for seed in (0, 1))]
    assert {row["flag"] for row in report(tmp_path, stuck)[1]} == {"at chance"}, "at chance many predict alike"


def test_too_good(tmp_path: Path) -> None:
    report(tmp_path, [])
    best = flags.published(load(tmp_path))
    assert best == {("listops", ""): (pytest.approx(0.6314), "demo-listops"), ("mrpc", "f1"): (0.88, "demo-listops")}
    level, claim = best["listops", ""]
    limit = level + 0.02 + 3 * (level * (1 - level) / 2000) ** 0.5
    runs = [run(0, limit - 1e-6, [0.9]), run(1, limit + 1e-6, [0.9]), run(2, 0.999, [0.99], task="new")]
    runs.append(run(3, 0.9, [0.9], task="listops-official"))
    _, found = report(tmp_path, runs)
    assert {(row["task"], row["seed"], row["flag"], row["other"]) for row in found} == {
        ("listops", 1, "above published", claim),
        ("listops-official", 3, "above published", claim),
        ("new", 2, "perfect", ""),
    }
    assert [row["limit"] for row in found if row["seed"] == 1] == [pytest.approx(limit)]


def test_test_above_validation(tmp_path: Path) -> None:
    few = {"examples": 100}
    runs = [run(0, 0.56, [0.45], task="a"), run(1, 0.45, [0.56], task="a"), run(2, 0.56, [0.45], task="a", **few)]
    _, found = report(tmp_path, runs)
    assert flagged(found) == {("s4d", 0, "test above validation", "test")}, "eleven points are noise for 100 examples"


def test_nothing_to_flag(tmp_path: Path) -> None:
    """Baselines are never flagged, nor are blocked runs; an honest grid has no flag."""
    blocked = run(1, task="text", state="blocked", value=None, examples=None, degenerate=None, predictions=None)
    runs = [majority(), run(0), run(1), blocked]
    assert report(tmp_path, runs)[1] == []


def test_unexpected_runs(tmp_path: Path) -> None:
    """Off by more than chance allows, or in another time; of scratch alone, and of published runs' times alone."""
    expected = {("mini", "listops", "s4d"): Expected(validation=0.5, cpu_seconds=20.0)}
    curves = {0: [0.1, 0.5], 1: [0.1, 0.58], 2: [0.1, 0.59], 3: [0.1, 0.41]}
    runs = [run(seed, 0.5, curve) for seed, curve in curves.items()]
    runs += [run(0, 0.5, [0.1, 0.7], protocol="spt-masked"), run(0, 0.5, [0.1, 0.7], backbone="s4")]
    for seed, (address, seconds, device) in {
        0: ("000000000000", 41.0, "cpu"),
        1: ("000000000001", 39.0, "cpu"),
        2: ("00000000000a", 41.0, "cpu"),  # an earlier run at this place
        3: ("000000000003", 1.0, "cuda"),
    }.items():
        place = tmp_path / f"records/runs/mini/listops/s4d/scratch/seed{seed}/finetune"
        place.mkdir(parents=True)
        (place / "record.json").write_text(json.dumps({"address": address}))
        (place / "provenance.json").write_text(json.dumps({"cpu_seconds": seconds, "device": device}))
    _, found = report(tmp_path, runs, expected)
    unexpected = {(row["seed"], row["flag"]): row for row in found if row["flag"].startswith("unexpected")}
    assert set(unexpected) == {(2, "unexpected score"), (3, "unexpected score"), (0, "unexpected time")}
    assert [unexpected[0, "unexpected time"][name] for name in ("split", "metric", "value", "limit")] == [
        "train",
        "cpu_seconds",
        41.0,
        20.0,
    ]
    assert unexpected[2, "unexpected score"]["limit"] == 0.5
    assert not [row for row in report(tmp_path / "none", runs)[1] if row["flag"].startswith("unexpected")]


def test_tables(tmp_path: Path) -> None:
    """Schema, key and bytes: the order of results does not matter, and a second report changes nothing."""
    runs = [
        majority(),
        *(run(seed, 0.999, curve=CHANCE, protocol=p) for p in ("scratch", "spt-masked") for seed in (0, 1)),
    ]
    report(tmp_path / "a", runs)
    report(tmp_path / "b", runs[::-1])
    for name, module in (("cells", cells), ("flags", flags)):
        path = tmp_path / "a" / f"{name}.parquet"
        table = pq.read_table(path)
        assert table.schema.equals(module.SCHEMA, check_metadata=True)
        keys = [tuple(row[column] for column in module.KEY) for row in table.to_pylist()]
        assert keys == sorted(set(keys)) != []
        assert path.read_bytes() == (tmp_path / "b" / f"{name}.parquet").read_bytes()
        before = path.stat().st_mtime_ns
        flags.report(tmp_path / "a", tmp_path / "a", {})
        assert path.stat().st_mtime_ns == before
    assert {row["flag"] for row in pq.read_table(tmp_path / "a" / "flags.parquet").to_pylist()} <= set(flags.FLAGS)


def test_names_of_baselines() -> None:
    assert cells.BASELINES == BASELINES


def test_missing_curves(tmp_path: Path) -> None:
    report(tmp_path, [run(0)])
    (tmp_path / "curves.parquet").write_bytes(parquet_bytes(pa.table({"run": ["a"]})))
    with pytest.raises(RecordError, match="its columns are not those"):
        flags.report(tmp_path, tmp_path, {})
    (tmp_path / "curves.parquet").unlink()
    with pytest.raises(RecordError, match="Run `noscratch collect` first"):
        flags.report(tmp_path, tmp_path, {})
