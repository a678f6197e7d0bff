"""A crossed design: its runs are ordinary jobs, nothing is run twice, and a gap is never split over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from noscratch import factors, params, passport, stages, train, yaml_reader
from noscratch.errors import NoscratchError
from noscratch.factors import design
from noscratch.plan import Plan
from noscratch.record import Stopwatch
from noscratch.results.variance import split
from noscratch.store import Store

NUMERICS = ("float64", "float32", "float32/reference")


@pytest.fixture
def settings() -> params.Params:
    return params.parse(yaml_reader.read(Path(__file__).parent / "tiny/params.yaml").data)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str, str, str]]:
    """What was trained, by a stand-in whose score is a function of seed and numerics: (seed, dtype, backend, phase)."""
    done: list[tuple[int, str, str, str]] = []

    def run(told: dict[str, Any], *, out: Path, **_: Any) -> dict[str, Any]:
        done.append((told["seed"], told["dtype"], told["backend"], told["phase"]))
        (out / "weights.safetensors").write_bytes(b"weights")
        score = 0.5 + 0.01 * told["seed"] + 0.001 * len(told["dtype"]) + 0.0001 * len(told["backend"]) * told["seed"]
        return {"primary": "accuracy", "metrics": {"test": {"accuracy": score, "loss": 1.0}}}

    monkeypatch.delenv(stages.MIRROR, raising=False)
    monkeypatch.setattr(passport, "check", lambda device, cache: {"digest": f"of {device}"})
    monkeypatch.setattr(stages, "_prepare", lambda *_: {"splits": {}})
    monkeypatch.setattr(train, "run", run)
    return done


def test_every_seed_meets_every_numerics(settings: params.Params) -> None:
    made = design(settings, "listops/s4d/spt-masked", "smoke", [0, 1, 0], NUMERICS)
    assert made.seeds == (0, 1)
    assert made.numerics == ("float64/fast", "float32/fast", "float32/reference")
    assert [(trial.seed, trial.numerics) for trial in made.trials] == [
        (seed, form) for seed in made.seeds for form in made.numerics
    ]
    assert len({trial.job.address for trial in made.trials}) == 6
    for trial in made.trials:
        assert (trial.job.settings["dtype"], trial.job.settings["backend"]) == tuple(trial.numerics.split("/"))
        assert {job.kind for job in trial.plan.with_needs(trial.job)} >= {"prepare", "pretrain", "finetune"}


def test_a_run_of_the_plan_is_a_run_of_the_design(settings: params.Params) -> None:
    ordinary = {job.address for job in Plan(settings).of("finetune")}
    made = design(settings, "listops/s4d/scratch", "smoke", [0, 1], NUMERICS)
    shared = [(trial.seed, trial.numerics) for trial in made.trials if trial.job.address in ordinary]
    assert shared == [(0, "float32/fast")]


def test_runs_and_their_split(
    tmp_path: Path, settings: params.Params, trained: list[tuple[int, str, str, str]]
) -> None:
    made, store = design(settings, "listops/s4d/spt-masked", "smoke", [0, 1], NUMERICS), Store(tmp_path)
    with pytest.raises(NoscratchError, match="is not there"):
        factors.rows(store, made)
    assert list(factors.run(store, made)) == list(made.trials)
    assert len(trained) == len(set(trained)) == 12
    list(factors.run(store, made))
    assert len(trained) == 12, "what stands is not trained again"
    rows = factors.rows(store, made)
    assert {row["metric"] for row in rows} == {"accuracy"}
    values = [[row["value"] for row in rows if row["seed"] == seed] for seed in made.seeds]
    assert factors.split_of(made, rows[::-1]) == split(values)
    folder = factors.publish(made, rows, tmp_path, Stopwatch(tmp_path, "cpu"))
    assert folder == tmp_path / "reports" / "records" / "factors-smoke-listops-s4d-spt-masked"
    assert pq.read_table(folder / "factors.parquet").to_pylist() == rows
    components = {row.pop("component"): row for row in json.loads((folder / "split.json").read_text())}
    assert components == {name: vars(part) for name, part in split(values).parts.items()}
    record = json.loads((folder / "record.json").read_text())
    assert record["settings"]["numerics"] == list(made.numerics)
    assert set(record["artifacts"]) == {"factors.parquet", "split.json"}


def test_a_run_that_diverged_leaves_a_gap(
    tmp_path: Path, settings: params.Params, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(told: dict[str, Any], **_: Any) -> dict[str, Any]:
        raise train.Diverged(3, "the loss is nan")

    monkeypatch.setattr(train, "run", diverge)
    made, store = design(settings, "listops/s4d/scratch", "smoke", [0, 1], NUMERICS), Store(tmp_path)
    list(factors.run(store, made))
    with pytest.raises(NoscratchError, match=r"diverged: Training stops.*Leave out its seed or its numerics"):
        factors.rows(store, made)


@pytest.mark.parametrize(
    ("cell", "tier", "seeds", "numerics", "said"),
    [
        ("listops/s4d", "smoke", [0, 1], NUMERICS, "A cell is TASK/BACKBONE/PROTOCOL"),
        ("listops/s4/scratch", "smoke", [0, 1], NUMERICS, "got 'listops/s4/scratch'"),
        ("listops/s4d/spt", "smoke", [0, 1], NUMERICS, "A cell is"),
        ("listops/s4d/scratch", "paper", [0, 1], NUMERICS, "The tiers are smoke, mini; got 'paper'"),
        ("listops/s4d/scratch", "smoke", [0, 0], NUMERICS, "two seeds and two numerics"),
        ("listops/s4d/scratch", "smoke", [0, 1], ["float32", "float32/fast"], "two seeds and two numerics"),
        ("listops/s4d/scratch", "smoke", [0, 1], ["float16", "float32"], "got 'float16'"),
        ("listops/s4d/scratch", "smoke", [0, 1], ["float32/quick", "float32"], "got 'float32/quick'"),
        ("cola/s4d/corpus-masked", "smoke", [0, 1], NUMERICS, "cannot be trained by protocol corpus-masked"),
    ],
)
def test_refused(
    settings: params.Params, cell: str, tier: str, seeds: list[int], numerics: list[str], said: str
) -> None:
    with pytest.raises(NoscratchError, match=said):
        design(settings, cell, tier, seeds, numerics)
