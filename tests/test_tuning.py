"""The search before the runs: what it plans, that it never opens the test set, what is published and chosen."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from noscratch import params, train, yaml_reader
from noscratch.errors import NoscratchError
from noscratch.plan import Plan, read_plan
from noscratch.results.published import chosen, publish_records, trials
from noscratch.store import RECORD, Store, as_json

ROOT = Path(__file__).parents[1]


@pytest.fixture
def settings() -> dict[str, Any]:
    data = copy.deepcopy(yaml_reader.read(ROOT / params.FILE).data)
    data["run"]["tier"] = "mini"
    mini = data["tiers"]["mini"]
    mini["grid"] = [{"tasks": ["listops"], "backbones": ["s4d"], "protocols": ["scratch"]}]
    mini["tuning"] = {
        "tasks": ["listops"],
        "backbones": ["s4d", "transformer"],
        "seed": 100,
        "lr": [0.001, 0.003],
        "weight_decay": [0.0, 0.1],
    }
    return data


def test_every_pair_is_a_job_like_fine_tuning(settings: dict[str, Any]) -> None:
    plan = Plan(params.parse(settings))
    found = plan.of("tuning")
    assert len(found) == 2 * 4 == len({job.address for job in found})
    finetune = next(job for job in plan.of("finetune") if job.cell and job.cell.backbone == "s4d")
    for job in (job for job in found if job.cell and job.cell.backbone == "s4d"):
        free = {"phase", "seed", "train"}
        assert {k: v for k, v in job.settings.items() if k not in free} == {
            k: v for k, v in finetune.settings.items() if k not in free
        }
        free = {"lr", "weight_decay"}
        assert {k: v for k, v in job.settings["train"].items() if k not in free} == {
            k: v for k, v in finetune.settings["train"].items() if k not in free
        }


def test_a_reported_seed_chooses_nothing(settings: dict[str, Any]) -> None:
    settings["tiers"]["mini"]["tuning"]["seed"] = 1
    with pytest.raises(params.ParamsError, match=r"tiers.mini.tuning.seed.*Choose another"):
        params.parse(settings)


def test_an_unknown_backbone_is_named(settings: dict[str, Any]) -> None:
    settings["tiers"]["mini"]["tuning"]["backbones"] = ["s4e"]
    with pytest.raises(params.ParamsError, match=r"tiers.mini.tuning.backbones.*Did you mean"):
        params.parse(settings)


def test_a_trial_never_opens_the_test_set(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    task = tiny.write_task(tmp_path / "task")
    (task / "test.arrow").unlink()
    run = tiny.settings("tuning", steps=2, evaluate_every=1)
    out = tmp_path / "out"
    out.mkdir()
    result = train.run(run, task, out, tmp_path / "checkpoints", None, "cpu")
    assert set(result["metrics"]) == {"validation"}
    assert result["selection"]["value"] == result["metrics"]["validation"]["accuracy"]
    assert not (out / "predictions.parquet").exists()


def finished(store: Store, plan: Plan, value: dict[str, float]) -> None:
    """Results of every trial, with the value by "backbone/trial"; a missing one diverged."""
    for job in plan.of("tuning"):
        assert job.cell is not None
        reached = value.get(f"{job.cell.backbone}/{job.view[-1]}")
        record = {
            "address": job.address,
            "kind": job.kind,
            "cell": {"tier": "mini", "task": job.cell.task, "backbone": job.cell.backbone},
            "settings": job.settings,
            "state": "diverged" if reached is None else "done",
            "artifacts": {},
            "result": {} if reached is None else {"primary": "accuracy", "selection": {"value": reached}},
        }
        with store.building(job) as out:
            (out / RECORD).write_bytes(as_json(record))
            (out / "provenance.json").write_text("{}")
            (out / "weights.safetensors").write_bytes(b"large")


def test_published_trials_and_the_chosen_ones(settings: dict[str, Any], tmp_path: Path) -> None:
    plan, store = Plan(params.parse(settings)), Store(tmp_path)
    assert publish_records(store, plan) == []
    finished(store, plan, {"s4d/0": 0.3, "s4d/1": 0.5, "s4d/2": 0.5, "s4d/3": 0.4, "transformer/2": 0.2})
    new = publish_records(store, plan)
    assert len(new) == 8
    assert all({path.name for path in (tmp_path / place).iterdir()} == {RECORD, "provenance.json"} for place in new)
    assert publish_records(store, plan) == []
    best = chosen(trials(tmp_path))
    assert (best["mini", "listops", "s4d"].lr, best["mini", "listops", "s4d"].weight_decay) == (0.001, 0.1)
    assert (best["mini", "listops", "transformer"].lr, best["mini", "listops", "transformer"].value) == (0.003, 0.2)
    (tmp_path / new[0] / RECORD).write_text(json.dumps({"an": "earlier run"}))
    assert publish_records(store, plan) == [new[0]]


def test_smoke_is_no_evidence(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["run"]["tier"] = "smoke"
    with pytest.raises(NoscratchError, match="evidence"):
        publish_records(Store(tmp_path), Plan(params.parse(settings)))


def test_presets_are_those_that_the_search_chose() -> None:
    """The committed params.yaml trains with what the published trials chose."""
    loaded = read_plan(ROOT).params
    mini = Plan(loaded.model_copy(update={"run": loaded.run.model_copy(update={"tier": "mini"})}))
    runs = {
        (job.cell.tier, job.cell.task, job.cell.backbone): job.settings["train"]
        for job in mini.of("finetune")
        if job.cell and "train" in job.settings
    }
    for cell, trial in chosen(trials(ROOT)).items():
        assert (runs[cell]["lr"], runs[cell]["weight_decay"]) == (trial.lr, trial.weight_decay), cell
