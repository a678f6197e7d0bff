"""The bench of the engines: plans of the asked size, made-up results that every command takes for real; no times."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from noscratch.params import parse
from noscratch.plan import Plan, cells
from noscratch.results.collect import tables
from noscratch.store import RECORD, Store, read_record, verify

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import scale


@pytest.mark.parametrize("count", [1, 200, 5000])
def test_a_plan_has_as_many_cells_as_asked(count: int) -> None:
    """No fewer, and at most one backbone's more."""
    data = scale.settings(count)
    found = cells(parse(data))
    without_last = data | {"backbones": dict(list(data["backbones"].items())[:-1])}
    assert len(found) >= count
    assert not without_last["backbones"] or len(cells(parse(without_last))) < count


def test_more_cells_than_there_are_is_refused() -> None:
    with pytest.raises(SystemExit, match="fewer than 1000000 cells"):
        scale.settings(1_000_000)


def test_made_up_results_pass_for_results(tmp_path: Path) -> None:
    store, plan = Store(tmp_path), Plan(parse(scale.settings(20)))
    scale.available(store, plan)
    scale.fill(store, plan)
    for job in plan.jobs.values():
        verify(store.path(job), read_record(store.path(job)))
    runs = [store.path(job) for job in plan.of("pretrain", "finetune")]
    summary = json.loads(tables(runs, tmp_path / "none", set(plan.jobs))["metrics.json"])
    assert sum(len(backbone) for task in summary["paper"].values() for backbone in task.values()) >= 4
    stamps = {folder: (folder / RECORD).stat().st_mtime_ns for folder in runs}
    scale.fill(store, plan)
    assert {folder: (folder / RECORD).stat().st_mtime_ns for folder in runs} == stamps, "what is there stays"
