"""Runs that spend the budget of others: how many steps that buys, what the record says, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from noscratch import budget, data, params, stages, train, yaml_reader
from noscratch.budget import Budget
from noscratch.errors import NoscratchError
from noscratch.plan import MATCHED, Job, Plan
from noscratch.store import PROVENANCE, Store, as_json

TASKS: dict[str, dict[str, Any]] = {"tokens": {}, "pairs": {"pairs": True}, "pixels": {"inputs": "pixels"}}


def matched(by: str, **changes: Any) -> dict[str, Any]:
    settings = tiny.settings(protocol="scratch-matched", **changes)
    del settings["train"]["steps"]
    return settings | {"train": settings["train"] | {"matched": by}}


def run(folder: Path, settings: dict[str, Any], prepared: Path, **more: Any) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    return train.run(settings, prepared, folder, folder.with_suffix(".saved"), device="cpu", **{"init": None} | more)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("backbone", ["transformer", "s4d"])
def test_operations_equal_those_of_pretraining_and_fine_tuning(tmp_path: Path, backbone: str, task: str) -> None:
    prepared = tiny.write_task(tmp_path / "prepared", **TASKS[task])
    pretrain = tiny.settings("pretrain", "masked", backbone, protocol="spt-masked", steps=7)
    counts = [run(tmp_path / "one", pretrain, prepared)["counts"]]
    finetune = tiny.settings(backbone=backbone, protocol="spt-masked", steps=5)
    counts.append(run(tmp_path / "two", finetune, prepared, init=tmp_path / "one")["counts"])
    given = Budget(sum(count["steps"] for count in counts), sum(count["flops"] for count in counts))
    result = run(tmp_path / "three", matched("flops", backbone=backbone), prepared, budget=given)
    assert result["counts"]["flops"] == pytest.approx(given.flops, rel=budget.TOLERANCE)
    assert result["matched"] == {
        "by": "flops",
        "budget": {"steps": 12, "flops": given.flops},
        "ratio": {"steps": result["counts"]["steps"] / 12, "flops": result["counts"]["flops"] / given.flops},
    }
    curve = (tmp_path / "three" / train.CURVES).read_text().splitlines()
    assert curve[-1].startswith(f"{result['counts']['steps']},"), "the course ends with the last step"


def test_the_budget_is_met_to_half_an_example(tmp_path: Path) -> None:
    """Whatever the budget: the operations spent are those of the nearest whole number of examples."""
    prepared = tiny.write_task(tmp_path / "prepared", shortest=24)  # all of one length, and so of one price
    unit = run(tmp_path / "unit", tiny.settings(steps=1), prepared)["counts"]["flops"] / (256 // 24)
    for examples in (75.4, 80, 91.6):
        settings = matched("flops", evaluate_every=20)
        counts = run(tmp_path / str(examples), settings, prepared, budget=Budget(9, round(unit * examples)))["counts"]
        assert counts["tokens_real"] == 24 * round(examples)


def test_steps_and_energy_match_too(tmp_path: Path) -> None:
    prepared = tiny.write_task(tmp_path / "prepared")
    flops = run(tmp_path / "scratch", tiny.settings(steps=9), prepared)["counts"]["flops"]
    result = run(tmp_path / "steps", matched("steps"), prepared, budget=Budget(9, flops // 3))
    assert result["counts"]["steps"] == 9
    assert result["matched"]["ratio"]["flops"] == pytest.approx(3, rel=1e-3)
    result = run(tmp_path / "energy", matched("energy"), prepared, budget=Budget(20, flops * 2, flops))
    assert result["counts"]["flops"] == pytest.approx(flops, rel=budget.TOLERANCE)
    assert result["matched"]["ratio"]["flops"] == pytest.approx(0.5, rel=budget.TOLERANCE)


def test_a_budget_that_no_number_of_examples_meets_is_refused(tmp_path: Path) -> None:
    prepared = tiny.write_task(tmp_path / "prepared", shortest=24)
    flops = run(tmp_path / "scratch", tiny.settings(steps=1), prepared)["counts"]["flops"]
    with pytest.raises(NoscratchError, match=r"within 1%; \d+ operations are 1 batches and 25% of one that has 10"):
        run(tmp_path / "refused", matched("flops"), prepared, budget=Budget(1, round(flops * 1.25)))
    assert not (tmp_path / "refused" / train.CURVES).exists()


def test_another_budget_does_not_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    prepared = tiny.write_task(tmp_path / "prepared")
    with pytest.raises(train.Interrupted):
        run(tmp_path / "run", matched("steps"), prepared, budget=Budget(9, 10**6), stop_after=0)
    with pytest.raises(NoscratchError, match="other settings, data or pretrained weights"):
        run(tmp_path / "run", matched("steps"), prepared, budget=Budget(10, 10**6))


def test_a_split_knows_the_shapes_of_a_batch_before_it_reads_it(tmp_path: Path) -> None:
    for name, task in TASKS.items():
        prepared = tiny.write_task(tmp_path / name, **task)
        for alone in (False, True):
            split = data.Split(prepared, "train", alone)
            for index in data.epoch_batches(split.lengths, 128, 0, 0):
                shapes = [(len(rows), length) for rows, length in split.batch(index).parts]
                assert split.shapes(index) == shapes
                assert {length for _, length in shapes} <= set(split.sequence_lengths().tolist())
            assert np.all(np.diff(split.sequence_lengths()) > 0)


# The plan and the stage


@pytest.fixture
def settings() -> dict[str, Any]:
    made: dict[str, Any] = yaml_reader.read(Path(__file__).parent / "tiny/params.yaml").data
    made["tiers"]["smoke"]["grid"] = [{"tasks": ["listops"], "backbones": ["s4d"], "protocols": ["scratch-matched"]}]
    return made


def the(plan: Plan, kind: str, protocol: str) -> Job:
    return next(
        job for job in plan.of(kind) if job.cell and job.cell.protocol == protocol and job.cell.backbone == "s4d"
    )


def test_a_matched_cell_needs_the_runs_that_set_its_budget(settings: dict[str, Any]) -> None:
    plan = Plan(params.parse(settings))
    job = the(plan, "finetune", "scratch-matched")
    twins = [the(plan, kind, MATCHED["scratch-matched"]) for kind in ("pretrain", "finetune")]
    assert [job.needs["budget-pretrain"], job.needs["budget-finetune"]] == [twin.address for twin in twins]
    assert job.settings["train"]["matched"] == "flops"
    ours, theirs = dict(job.settings["train"]), dict(twins[1].settings["train"])
    assert ours.keys() ^ theirs.keys() == {"steps", "matched"}
    assert all(ours[key] == theirs[key] for key in ours.keys() & theirs.keys())


def test_how_it_is_matched_moves_matched_cells_alone(settings: dict[str, Any]) -> None:
    before = Plan(params.parse(settings))
    settings["tiers"]["smoke"]["matched"] = "steps"
    gone = before.jobs.keys() - Plan(params.parse(settings)).jobs.keys()
    assert gone == {the(before, "finetune", "scratch-matched").address}


def test_energy_is_matched_where_it_was_measured_and_else_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["tiers"]["smoke"]["matched"] = "energy"
    store, plan = Store(tmp_path), Plan(params.parse(settings))
    job, inputs = the(plan, "finetune", "scratch-matched"), {}
    for role, steps, flops in (("budget-pretrain", 10, 6000), ("budget-finetune", 4, 2000)):
        folder = inputs[role] = store.path(plan[job.needs[role]])
        folder.mkdir(parents=True)
        (folder / "record.json").write_bytes(as_json({"result": {"counts": {"steps": steps, "flops": flops}}}))
    with pytest.raises(NoscratchError, match=r"none was measured there.*`matched: flops` or `steps`"):
        stages._budget(job, inputs)
    for role, joules in (("budget-pretrain", 9.0), ("budget-finetune", 3.0)):
        (inputs[role] / PROVENANCE).write_bytes(as_json({"energy_joules": joules}))
    assert stages._budget(job, inputs) == Budget(14, 8000, 8000)
    (inputs["budget-pretrain"] / PROVENANCE).write_bytes(as_json({"energy_joules": 3.0}))
    assert stages._budget(job, inputs) == Budget(14, 8000, 4000), "pretraining was cheaper a step than fine-tuning"
    by_flops = dataclasses.replace(job, settings={**job.settings, "train": {"matched": "flops"}})
    assert stages._budget(by_flops, inputs) == Budget(14, 8000)
    assert stages._budget(the(plan, "finetune", "spt-masked"), inputs) is None
