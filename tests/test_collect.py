"""Collect: the table's schema and key, the same bytes, and no number that its predictions do not give."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noscratch.results import PART, rows_of
from noscratch.results.collect import KEY, SCHEMA, RecordError, collect, read_results
from records import BLOCKED, EXAMPLES, write_record, write_run

SCRATCH = ("smoke", "listops", "s4d", "scratch", 0)
SPT = ("smoke", "cola", "s4d", "spt-masked", 0)


def grid(root: Path) -> list[Path]:
    """Two seeds from scratch, a pretrained pair, a constant run, a blocked and a diverged one."""
    return [
        write_run(root, SCRATCH, right=120),
        write_run(root, (*SCRATCH[:-1], 1), right=140),
        write_run(root, SPT, "pretrain"),
        write_run(root, SPT, metrics=("matthews", "f1")),
        write_run(root, ("smoke", "text", "s4d", "scratch", 0), right=0),
        write_run(root, ("smoke", "sst2", "s4d", "scratch", 0), state="blocked"),
        write_run(root, ("smoke", "rte", "s4d", "scratch", 0), state="diverged"),
    ]


def test_table(tmp_path: Path) -> None:
    collect(grid(tmp_path / "runs"), tmp_path)
    table = pq.read_table(tmp_path / "results.parquet")
    assert table.schema.equals(SCHEMA, check_metadata=True)
    rows = read_results(tmp_path / "results.parquet")
    keys = [tuple(row[name] for name in KEY) for row in rows]
    assert keys == sorted(set(keys))
    by_cell = {(row["task"], row["seed"], row["phase"], row["split"], row["metric"]): row for row in rows}
    row = by_cell["listops", 1, "finetune", "test", "accuracy"]
    assert (row["value"], row["primary"], row["examples"], row["degenerate"]) == (0.7, True, EXAMPLES, False)
    assert (row["parameters"], row["flops"], row["selected_step"], row["state"]) == (1234, 1.5e9, 10, "done")
    assert by_cell["text", 0, "finetune", "test", "accuracy"]["degenerate"]
    pretrain = by_cell["cola", 0, "pretrain", "train", "loss"]
    assert by_cell["cola", 0, "finetune", "test", "f1"]["pretrain_address"] == pretrain["address"] != ""
    assert not by_cell["cola", 0, "finetune", "test", "f1"]["primary"]
    blocked = by_cell["sst2", 0, "finetune", "test", ""]
    assert (blocked["state"], blocked["reason"], blocked["value"]) == ("blocked", BLOCKED, None)
    assert by_cell["rte", 0, "finetune", "test", ""]["state"] == "diverged"


def test_summary_and_curves(tmp_path: Path) -> None:
    collect(grid(tmp_path / "runs"), tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    scratch = metrics["smoke"]["listops"]["s4d"]["scratch"]
    assert scratch["seeds"] == {"0": 0.6, "1": 0.7}
    assert scratch["accuracy"] == pytest.approx(0.65)
    assert scratch["n"] == 2
    assert "sst2" not in metrics["smoke"]
    curves = pq.read_table(tmp_path / "curves.parquet").to_pylist()
    assert list(curves[0]) == ["run", "step", "split", "metric", "value"]
    assert len(curves) == 5 * 3 + 4 * 3  # five runs have a loss, the four fine-tuned ones a score too
    first = {"run": "smoke/cola/s4d/spt-masked/seed0/finetune", "step": 0, "split": "train", "metric": "loss"}
    assert curves[0].items() >= first.items()
    lines = [f"{row['run']},{row['step']},{row['value']!r}" for row in curves if row["split"] == "validation"]
    assert lines
    assert (tmp_path / "curves.csv").read_text().splitlines() == ["run,step,value", *lines]


def test_same_runs_same_bytes(tmp_path: Path) -> None:
    runs = grid(tmp_path / "runs")
    names = ("results.parquet", "metrics.json", "curves.parquet", "curves.csv")
    collect(runs, tmp_path / "a")
    collect(list(reversed(runs)), tmp_path / "b")
    assert [(tmp_path / "a" / n).read_bytes() for n in names] == [(tmp_path / "b" / n).read_bytes() for n in names]
    before = [(tmp_path / "a" / n).stat().st_mtime_ns for n in names]
    collect(runs, tmp_path / "a")
    assert [(tmp_path / "a" / n).stat().st_mtime_ns for n in names] == before, "unchanged reports are left alone"
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(names)
    assert b"pandas" not in (tmp_path / "a" / "results.parquet").read_bytes()


MINI = ("mini", "listops", "s4d", "scratch", 0)


def test_published_runs_stand_beside_the_plan(tmp_path: Path) -> None:
    """A published run counts until the present plan finishes its cell, or where its source cannot be had here."""
    published = tmp_path / "records" / "runs"
    write_run(published, MINI, right=150)
    write_run(published, ("mini", "text", "s4d", "scratch", 0), right=150)
    current = write_run(published, ("mini", "cola", "s4d", "spt-masked", 0), right=150)
    write_run(published, ("mini", "cola", "s4d", "spt-masked", 0), "pretrain")
    own = [
        write_run(tmp_path / "runs", SCRATCH),
        write_run(tmp_path / "runs", MINI, right=120),
        write_run(tmp_path / "runs", ("mini", "text", "s4d", "scratch", 0), state="blocked"),
    ]
    collect(own, tmp_path, {json.loads((current / "record.json").read_text())["address"]})
    rows = [row for row in read_results(tmp_path / "results.parquet") if row["split"] == "test" and row["primary"]]
    assert {(row["tier"], row["task"]): (row["value"], row["code"]) for row in rows} == {
        ("smoke", "listops"): (0.5, "current"),
        ("mini", "listops"): (0.6, "current"),
        ("mini", "text"): (0.75, "earlier"),
        ("mini", "cola"): (0.75, "current"),
    }
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["mini"]["text"]["s4d"]["scratch"]["accuracy"] == 0.75


@pytest.mark.parametrize(
    ("place", "cell", "state", "message"),
    [
        ("mini/text/s4d/scratch/seed0/finetune", MINI, "done", "that of mini/listops"),
        ("smoke/listops/s4d/scratch/seed0/finetune", SCRATCH, "done", "no evidence"),
        ("mini/listops/s4d/scratch/seed0/finetune", MINI, "blocked", "no evidence"),
    ],
)
def test_published_runs_refused(
    tmp_path: Path, place: str, cell: tuple[str, str, str, str, int], state: str, message: str
) -> None:
    target = tmp_path / "records" / "runs" / place
    target.parent.mkdir(parents=True)
    write_run(tmp_path / "made", cell, state=state).rename(target)
    with pytest.raises(RecordError, match=message):
        collect([], tmp_path)
    assert not (tmp_path / "results.parquet").exists()


def test_setting_is_all_but_the_seed(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "runs", (*SCRATCH[:-1], seed), right=100 + seed) for seed in range(3)]
    record = json.loads((folders[2] / "record.json").read_text())
    record["settings"]["threads"] = 4
    (folders[2] / "record.json").write_text(json.dumps(record))
    collect(folders, tmp_path)
    settings = {row["seed"]: row["setting"] for row in read_results(tmp_path / "results.parquet")}
    assert settings[0] == settings[1] != settings[2]


def test_nothing_to_collect(tmp_path: Path) -> None:
    collect([], tmp_path)
    assert read_results(tmp_path / "results.parquet") == []
    assert json.loads((tmp_path / "metrics.json").read_text()) == {}


def change_metric(folder: Path, record: dict[str, Any]) -> None:
    record["result"]["metrics"]["test"]["accuracy"] += 1e-8


def change_prediction(folder: Path, record: dict[str, Any]) -> None:
    path = folder / "predictions.parquet"
    path.write_bytes(path.read_bytes().replace(b"PAR1", b"PAR0", 1))


def drop_examples(folder: Path, record: dict[str, Any]) -> None:
    path = folder / "predictions.parquet"
    pq.write_table(pq.read_table(path).slice(0, 390), path)
    write_record(folder, record)


def repeat_example(folder: Path, record: dict[str, Any]) -> None:
    path = folder / "predictions.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), path)
    write_record(folder, record)


def rename_metric(folder: Path, record: dict[str, Any]) -> None:
    record["result"]["metrics"]["test"] = {"magic": 1.0}


def forget_counts(folder: Path, record: dict[str, Any]) -> None:
    del record["result"]["selection"]


def other_seed(folder: Path, record: dict[str, Any]) -> None:
    record["settings"]["seed"] = 7


def other_curve(folder: Path, record: dict[str, Any]) -> None:
    (folder / "curves.csv").write_text("a,b\n1,2\n")
    write_record(folder, record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_metric, "its predictions say"),
        (change_prediction, "digest differs"),
        (drop_examples, "predictions.parquet has 190"),
        (repeat_example, "more than once"),
        (rename_metric, "unknown metric 'magic'"),
        (forget_counts, "lacks 'selection'"),
        (other_seed, "not a record"),
        (other_curve, "must have the columns"),
    ],
)
def test_refused(tmp_path: Path, change: Callable[[Path, dict[str, Any]], None], message: str) -> None:
    folder = write_run(tmp_path / "runs", SCRATCH)
    record = json.loads((folder / "record.json").read_text())
    change(folder, record)
    (folder / "record.json").write_text(json.dumps(record))
    with pytest.raises(RecordError, match=message) as error:
        collect([folder], tmp_path / "reports")
    assert str(folder) in str(error.value)
    assert not (tmp_path / "reports").exists(), "nothing half-written"


def test_missing_record(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no record\.json"):
        collect([tmp_path], tmp_path)
    (tmp_path / "record.json").write_text("[]")
    with pytest.raises(RecordError, match="not a record"):
        collect([tmp_path], tmp_path)


def test_seeds_are_distinct(tmp_path: Path) -> None:
    """One run under two seeds, as if two had been run."""
    first, second = (write_run(tmp_path / "runs", (*SCRATCH[:-1], seed), right=100 + seed) for seed in (0, 1))
    collect([first, second], tmp_path)
    (second / "curves.csv").write_bytes((first / "curves.csv").read_bytes())
    write_record(second, json.loads((second / "record.json").read_text()))
    with pytest.raises(RecordError, match="seeds are not distinct"):
        collect([first, second], tmp_path)


def test_cell_given_twice(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, SCRATCH) for name in ("a", "b")]
    with pytest.raises(RecordError, match="keep one"):
        collect(folders, tmp_path)


def test_read_results_checks(tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    with pytest.raises(RecordError, match="no results yet"):
        read_results(path)
    collect([write_run(tmp_path / "runs", SCRATCH)], tmp_path)
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table]), path)
    with pytest.raises(RecordError, match="primary key"):
        read_results(path)
    pq.write_table(table.drop_columns(["code"]), path)
    with pytest.raises(RecordError, match="columns"):
        read_results(path)


READ = """
import os
import pyarrow.parquet as pq
from noscratch.results import parquet_table
content = open("results.parquet", "rb").read()
threads = [len(os.listdir("/proc/self/task"))]
table = parquet_table(content)
threads.append(len(os.listdir("/proc/self/task")))
assert table.equals(pq.read_table("results.parquet"))
threads.append(len(os.listdir("/proc/self/task")))
print(*threads)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_reading_starts_no_thread_that_could_outlive_python(tmp_path: Path) -> None:
    collect(grid(tmp_path / "runs"), tmp_path)
    done = subprocess.run([sys.executable, "-c", READ], cwd=tmp_path, capture_output=True, text=True, check=True)
    before, ours, arrows = map(int, done.stdout.split())
    assert before == ours < arrows


def test_rows_come_in_parts_and_in_order() -> None:
    many = 2 * PART + 3
    table = pa.table({"step": range(many), "other": [0] * many, "value": [k / 7 for k in range(many)]})
    table = pa.concat_tables([table.slice(0, 5), table.slice(5)])
    assert list(rows_of(table, "value", "step")) == [(k / 7, k) for k in range(many)]
    assert list(rows_of(table.slice(0, 0), "value", "step")) == []
