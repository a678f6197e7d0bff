"""Training: the loop, what it reads and when, its determinism, and that nothing is lost when it is killed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import contract
import tiny
from noscratch import backbones, data, flops, model, objectives, optim, tasks, telemetry, train
from noscratch.checkpoint import CheckpointError
from noscratch.errors import NoscratchError
from noscratch.kernels import structured
from noscratch.ranks import Alone
from tolerances import assert_close, tolerance

BACKBONES = ("transformer", "s4d")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_task(tmp_path_factory.mktemp("prepared"))


def run(tmp_path: Path, settings: dict[str, Any], prepared: Path, name: str = "run", **more: Any) -> dict[str, Any]:
    """train.run into tmp_path/name with checkpoints beside it."""
    out = tmp_path / name
    out.mkdir(exist_ok=True)
    arguments: dict[str, Any] = {"init": None, "device": "cpu"} | more
    return train.run(settings, prepared, out, tmp_path / f"{name}-checkpoints", **arguments)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def curve(folder: Path) -> list[tuple[int, str, str, float]]:
    rows = [line.split(",") for line in (folder / train.CURVES).read_text().splitlines()]
    assert rows[0] == ["step", "split", "metric", "value"]
    return [(int(step), split, metric, float(value)) for step, split, metric, value in rows[1:]]


COLOURS: dict[str, Any] = {"inputs": "pixels", "channels": 3, "loss": "l1"}


# Every objective


CASES: dict[str, dict[str, Any]] = {
    "masked tokens": {"task": {}, "phase": "pretrain", "objective": "masked", "protocol": "spt-masked"},
    "next token": {"task": {}, "phase": "pretrain", "objective": "causal", "protocol": "spt-causal"},
    "masked pixels, L1": {
        "task": {"inputs": "pixels", "loss": "l1"},
        "phase": "pretrain",
        "objective": "masked",
        "protocol": "spt-masked",
    },
    "next pixel": {"task": {"inputs": "pixels"}, "phase": "pretrain", "objective": "causal", "protocol": "spt-causal"},
    "classes": {"task": {}},
    "masked colours, L1": {
        "task": COLOURS,
        "phase": "pretrain",
        "objective": "masked",
        "protocol": "spt-masked",
    },
    "next colour": {
        "task": COLOURS | {"loss": "cross-entropy"},
        "phase": "pretrain",
        "objective": "causal",
        "protocol": "spt-causal",
    },
    "masked texts of pairs": {
        "task": {"pairs": True},
        "phase": "pretrain",
        "objective": "masked",
        "protocol": "spt-masked",
    },
    "matches": {"task": {"pairs": True}},
    "classes of pixels, causal": {"task": {"inputs": "pixels"}, "protocol": "spt-causal"},
    "values": {"task": {"kind": "regression"}},
    "classes in bfloat16": {"task": {}, "dtype": "bfloat16"},
    "classes of pixels in float64": {"task": {"inputs": "pixels"}, "dtype": "float64"},
}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("case", CASES)
def test_every_objective_trains_and_repeats_to_the_bit(tmp_path: Path, case: str, backbone: str) -> None:
    changes = dict(CASES[case])
    prepared = tiny.write_task(tmp_path / "prepared", **changes.pop("task"))
    settings = tiny.settings(backbone=backbone, **changes)
    results = [run(tmp_path, settings, prepared, name) for name in ("one", "two")]
    assert results[0] == results[1]
    assert files(tmp_path / "one") == files(tmp_path / "two")
    result = results[0]
    assert json.loads(json.dumps(result)) == result, "plain values only"
    assert set(result) == {"phase", "metrics", "primary", "selection", "examples", "counts", "kernels"}
    assert all(np.isfinite(v) for split in result["metrics"].values() for v in split.values())
    assert result["counts"]["steps"] == settings["train"]["steps"]
    assert 0 < result["counts"]["tokens_real"] <= result["counts"]["tokens_computed"]
    assert result["counts"]["flops"] > 0
    assert result["kernels"]


@pytest.mark.parametrize("task", [{}, {"inputs": "pixels"}, {"inputs": "pixels", "loss": "l1"}, {"kind": "regression"}])
def test_float64_is_the_same_run_with_more_digits(tmp_path: Path, task: dict[str, Any]) -> None:
    prepared = tiny.write_task(tmp_path / "prepared", **task)
    same = {"backbone": "s4d", "protocol": "spt-masked", "dropout": 0.0}
    losses = {}
    for dtype in ("float32", "float64"):
        run(tmp_path, tiny.settings("pretrain", "masked", dtype=dtype, **same), prepared, f"pretrain-{dtype}")
        init = tmp_path / f"pretrain-{dtype}"
        result = run(tmp_path, tiny.settings(dtype=dtype, **same), prepared, dtype, init=init)
        for folder in (init, tmp_path / dtype):
            weights = safetensors.torch.load_file(folder / train.WEIGHTS)
            assert {value.dtype for value in weights.values()} == {getattr(torch, dtype)}
        losses[dtype] = result["metrics"]["test"]["loss"]
    assert losses["float64"] == pytest.approx(losses["float32"], rel=1e-4)
    assert losses["float64"] != losses["float32"]


def test_another_seed_gives_another_run(tmp_path: Path, prepared: Path) -> None:
    for seed in (0, 1):
        run(tmp_path, tiny.settings(seed=seed), prepared, str(seed))
    assert files(tmp_path / "0")[train.WEIGHTS] != files(tmp_path / "1")[train.WEIGHTS]


def test_training_learns(tmp_path: Path, prepared: Path) -> None:
    result = run(tmp_path, tiny.settings(steps=60, dropout=0.0), prepared)
    losses = [value for _, split, metric, value in curve(tmp_path / "run") if (split, metric) == ("train", "loss")]
    assert losses[-1] < 0.5 * losses[0]
    assert result["metrics"]["test"]["accuracy"] > 0.6


# One step


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, dict[str, torch.Tensor]]]:
    """What each step of a run gives to the optimizer, factor and gradients; the weights stay where they are."""
    found: list[tuple[float, dict[str, torch.Tensor]]] = []

    def record(optimizer: optim.AdamW, factor: float) -> None:
        everything = {name: value for group in optimizer.groups for name, value in group.parameters.items()}
        found.append((factor, {name: value.grad.clone() for name, value in everything.items()}))
        for value in everything.values():
            value.grad = None

    monkeypatch.setattr(optim.AdamW, "step", record)
    return found


@pytest.mark.parametrize("objective", ["classify", "causal"])
def test_every_example_weighs_the_same_in_an_epoch_of_unequal_batches(
    tmp_path: Path,
    prepared: Path,
    steps: list[tuple[float, dict[str, torch.Tensor]]],
    monkeypatch: pytest.MonkeyPatch,
    objective: str,
) -> None:
    lengths = data.Split(prepared, "train").lengths
    batches = len(data.epoch_batches(lengths, 256, 0, 0))
    phase, protocol = ("finetune", "scratch") if objective == "classify" else ("pretrain", "spt-causal")
    for batch_tokens, number in ((256, batches), (10**6, 1)):
        if number == 1:
            monkeypatch.setattr(data, "REAL", 0.0)  # one batch, however much of it is padding
        changes = {"steps": number, "batch_tokens": batch_tokens, "dropout": 0.0, "clip": 0.0, "protocol": protocol}
        run(tmp_path, tiny.settings(phase, objective, **changes), prepared, str(number))
    assert len(steps) == batches + 1
    assert batches > 3
    for name, whole in steps[-1][1].items():
        mean = torch.stack([gradients[name] for _, gradients in steps[:-1]]).mean(0)
        # Next-element prediction weighs a batch by its real tokens, of which one per sequence predicts nothing.
        assert_close(mean, whole, 1e-4 if objective == "classify" else 0.1, what=name)


def test_steps_are_clipped_and_scheduled(
    tmp_path: Path, prepared: Path, steps: list[tuple[float, dict[str, torch.Tensor]]]
) -> None:
    run(tmp_path, tiny.settings(clip=0.05), prepared, "clipped")
    assert [factor for factor, _ in steps] == [optim.factor(step, 12, 2, "cosine") for step in range(12)]
    norms = [torch.stack([value.norm() for value in gradients.values()]).norm() for _, gradients in steps]
    assert max(norms) == pytest.approx(0.05, rel=1e-3)
    run(tmp_path, tiny.settings(clip=0.0), prepared, "free")
    free = [torch.stack([value.norm() for value in gradients.values()]).norm() for _, gradients in steps[12:]]
    assert max(free) > 0.06


def test_dropout_differs_from_step_to_step(
    tmp_path: Path, prepared: Path, steps: list[tuple[float, dict[str, torch.Tensor]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same batch at every step, in the same order."""
    index = np.arange(8)
    monkeypatch.setattr(train, "training_batches", lambda *_: itertools.repeat((0, 1, index)))
    for dropout in (0.0, 0.2):
        run(tmp_path, tiny.settings(steps=2, dropout=dropout), prepared, str(dropout))
    first, second, dropped, other = (gradients["norm.weight"] for _, gradients in steps)
    assert torch.equal(first, second)
    assert not torch.equal(dropped, other)


# What is read, and when


def test_pretraining_needs_the_training_split_only(tmp_path: Path) -> None:
    prepared = tiny.write_task(tmp_path / "prepared")
    settings = tiny.settings("pretrain", "masked", protocol="spt-masked")
    with_them = run(tmp_path, settings, prepared, "with")
    for split in ("validation", "test"):
        (prepared / f"{split}.arrow").unlink()
    assert run(tmp_path, settings, prepared, "without") == with_them
    assert files(tmp_path / "with") == files(tmp_path / "without")
    assert with_them["examples"] == {"train": tiny.SIZES["train"]}
    with pytest.raises(data.DataError, match=r"validation.arrow"):
        run(tmp_path, tiny.settings(), prepared, "finetune")


def test_the_test_split_is_opened_once_after_the_last_step(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    class Recorded(data.Split):
        def __init__(self, folder: Path, name: str, alone: bool = False) -> None:
            events.append(f"open {name}")
            super().__init__(folder, name, alone)

        def batch(self, index: np.ndarray) -> data.Batch:
            events.append(self.name)
            return super().batch(index)

    monkeypatch.setattr(train, "Split", Recorded)
    result = run(tmp_path, tiny.settings(), prepared)
    assert events.count("open test") == 1
    opened = events.index("open test")
    assert events[:opened].count("train") == result["counts"]["steps"]
    assert "validation" not in events[opened:]
    assert "test" not in events[:opened]


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_hidden_test_sets_are_predicted_and_never_scored(tmp_path: Path, kind: str) -> None:
    sizes = {"train": 96, "validation": 24, "test": 24}
    plain = tiny.write_task(tmp_path / "plain", kind=kind, sizes=sizes)
    hidden = tiny.write_task(tmp_path / "hidden", kind=kind, sizes=sizes | {"submission": 10})
    settings = tiny.settings()
    assert run(tmp_path, settings, hidden, "with") == run(tmp_path, settings, plain, "without")
    table = pa.parquet.read_table(tmp_path / "with" / "submission.parquet").to_pydict()
    assert table["id"] == [f"submission-{i}" for i in range(10)]
    assert set(table["split"]) == {"submission"}
    assert np.isfinite(table["prediction"]).all()
    assert kind == "regression" or set(table["prediction"]) <= {0.0, 1.0}
    assert not (tmp_path / "without" / "submission.parquet").exists()


def test_the_earliest_best_validation_step_is_handed_over(tmp_path: Path, prepared: Path) -> None:
    settings = tiny.settings(steps=40, evaluate_every=2, lr=0.05)
    result = run(tmp_path, settings, prepared)
    validation = {
        s: v for s, split, metric, v in curve(tmp_path / "run") if (split, metric) == ("validation", "accuracy")
    }
    best = max(validation.values())
    earliest = min(step for step, value in validation.items() if value == best)
    assert list(validation.values()).count(best) < len(validation), "the run never changed its score"
    assert result["selection"] == {
        "rule": "highest validation accuracy, the earliest of equals",
        "step": earliest,
        "value": best,
    }
    assert result["metrics"]["validation"]["accuracy"] == best
    # The weights on disk and the predictions are those of that step.
    meta = data.read_meta(prepared)
    restored = model.build_model(meta, settings, seed=99)
    restored.load_state_dict(safetensors.torch.load_file(tmp_path / "run" / train.WEIGHTS))
    table = pyarrow.parquet.read_table(tmp_path / "run" / train.PREDICTIONS)
    assert table.schema.names == ["id", "split", "target", "prediction"]
    for name in ("validation", "test"):
        split = data.Split(prepared, name)
        scores = train.evaluate(restored, split, meta, settings, train.State(), Alone())
        rows = table.filter(pyarrow.compute.equal(table["split"], name))
        assert rows["id"].to_pylist() == split.ids().to_pylist()
        assert rows["target"].to_pylist() == split.targets().tolist()
        assert rows["prediction"].to_pylist() == scores.prediction.tolist()
        assert {k: v for k, v in scores.metrics.items() if k != "loss"} == {
            k: v for k, v in result["metrics"][name].items() if k != "loss"
        }
        assert scores.metrics["loss"] == pytest.approx(result["metrics"][name]["loss"], rel=1e-5)


# Handing over


@pytest.mark.parametrize("task", [{}, {"pairs": True}, COLOURS], ids=["tokens", "pairs", "colours"])
def test_fine_tuning_starts_from_all_but_the_head(tmp_path: Path, task: dict[str, Any]) -> None:
    prepared = tiny.write_task(tmp_path / "prepared", **task)
    pretrain = tiny.settings("pretrain", "masked", protocol="spt-masked")
    run(tmp_path, pretrain, prepared, "pretrain")
    given_weights = safetensors.torch.load_file(tmp_path / "pretrain" / train.WEIGHTS)
    # A learning rate that float32 cannot see leaves the weights where they started.
    still = tiny.settings(protocol="spt-masked", lr=1e-30, weight_decay=0.0)
    for name, init in (("scratch", None), ("pretrained", tmp_path / "pretrain")):
        run(tmp_path, still, prepared, name, init=init)
    scratch, pretrained = (
        safetensors.torch.load_file(tmp_path / name / train.WEIGHTS) for name in ("scratch", "pretrained")
    )
    body = [name for name in given_weights if not name.startswith("head.")]
    assert body == [name for name in pretrained if not name.startswith("head.")]
    assert all(torch.allclose(pretrained[name], given_weights[name], rtol=0, atol=1e-20) for name in body)
    assert any(not torch.equal(scratch[name], given_weights[name]) for name in body)
    assert all(torch.equal(pretrained[name], scratch[name]) for name in set(pretrained) - set(body))
    last = "head.outer.weight" if "pairs" in task else "head.weight"
    assert pretrained[last].shape == (2, 16)
    assert given_weights["head.weight"].shape == (3 if task == COLOURS else 12, 16)


@pytest.mark.parametrize("change", [{"d_model": 8}, {"layers": 2}, {"backbone": "s4d"}])
def test_weights_of_another_model_are_refused(tmp_path: Path, prepared: Path, change: dict[str, Any]) -> None:
    run(tmp_path, tiny.settings("pretrain", "masked", protocol="spt-masked"), prepared, "pretrain")
    with pytest.raises(NoscratchError, match="same model settings"):
        run(tmp_path, tiny.settings(protocol="spt-masked", **change), prepared, init=tmp_path / "pretrain")


def test_missing_weights_are_named(tmp_path: Path, prepared: Path) -> None:
    with pytest.raises(NoscratchError, match=r"weights\.safetensors"):
        run(tmp_path, tiny.settings(protocol="spt-masked"), prepared, init=tmp_path)


# Stopping and going on


@pytest.mark.parametrize("task", [{}, {"pairs": True}, COLOURS], ids=["tokens", "pairs", "colours"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_interrupted_after_every_step_it_ends_with_the_same_bits(
    tmp_path: Path, backbone: str, task: dict[str, Any]
) -> None:
    prepared = tiny.write_task(tmp_path / "prepared", **task)
    settings = tiny.settings(backbone=backbone, steps=6, evaluate_every=2)
    whole = run(tmp_path, settings, prepared, "whole")
    for step in range(1, 6):
        with pytest.raises(train.Interrupted, match=f"after step {step} "):
            run(tmp_path, settings, prepared, "parts", stop_after=0.0)
    assert run(tmp_path, settings, prepared, "parts") == whole
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_stops(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    settings = tiny.settings("pretrain", "causal", protocol="spt-causal", steps=6)
    whole = run(tmp_path, settings, prepared, "whole")
    original, calls = train.outcome_of, []

    def signalled(*arguments: Any) -> objectives.Outcome:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return original(*arguments)

    before = signal.getsignal(number)
    monkeypatch.setattr(train, "outcome_of", signalled)
    with pytest.raises(train.Interrupted, match=f"after step 3 .*{number.name}"):
        run(tmp_path, settings, prepared, "parts")
    monkeypatch.undo()
    assert signal.getsignal(number) is before
    assert run(tmp_path, settings, prepared, "parts") == whole
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_a_corrupt_checkpoint_costs_time_not_the_result(tmp_path: Path, prepared: Path) -> None:
    settings = tiny.settings(steps=6)
    whole = run(tmp_path, settings, prepared, "whole")
    for _ in range(3):
        with pytest.raises(train.Interrupted):
            run(tmp_path, settings, prepared, "parts", stop_after=0.0)
    newest = max((tmp_path / "parts-checkpoints").glob("step-*"))
    (newest / "tensors.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="Trying the one before"):
        assert run(tmp_path, settings, prepared, "parts") == whole
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_checkpoints_of_other_settings_are_refused(tmp_path: Path, prepared: Path) -> None:
    with pytest.raises(train.Interrupted):
        run(tmp_path, tiny.settings(), prepared, stop_after=0.0)
    with pytest.raises(CheckpointError, match="other settings"):
        run(tmp_path, tiny.settings(lr=0.02), prepared)


# Divergence


@pytest.mark.parametrize(
    ("phase", "objective", "message"),
    [
        ("pretrain", "masked", "step 2, the loss is"),
        ("finetune", "classify", "step 1, the loss on the validation set is"),
    ],
)
def test_an_infinite_loss_stops_the_run_and_keeps_the_curve(
    tmp_path: Path, prepared: Path, phase: str, objective: str, message: str
) -> None:
    settings = tiny.settings(phase, objective, lr=1e30, clip=0.0, warmup=0, schedule="constant", evaluate_every=1)
    with pytest.raises(train.Diverged, match=f"{message} (nan|inf)"):
        run(tmp_path, settings, prepared)
    assert curve(tmp_path / "run")[-1][:3] == (1, "train", "loss")


@pytest.mark.parametrize(
    ("value", "message"), [(torch.nan, "weights that are not finite"), (3e38, "the loss on the validation set is")]
)
def test_a_last_update_that_ruins_the_weights_is_no_result(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch, value: float, message: str
) -> None:
    original = optim.AdamW.step

    def ruin(optimizer: optim.AdamW, factor: float) -> None:
        original(optimizer, factor)
        if optimizer.steps == 12:
            weight = next(g.parameters["head.weight"] for g in optimizer.groups if "head.weight" in g.parameters)
            weight.data.fill_(value)
            weight.data[0] *= -1.0

    monkeypatch.setattr(optim.AdamW, "step", ruin)
    with pytest.raises(train.Diverged, match=f"at step 12, .*{message}"):
        run(tmp_path, tiny.settings(), prepared)


def test_an_infinite_gradient_names_its_group(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = train.build_model

    def poisoned(*arguments: Any) -> model.Model:
        made = original(*arguments)
        special = next(value for name, value in made.named_parameters() if name.endswith("log_dt"))
        special.register_hook(lambda gradient: gradient * torch.inf)
        return made

    monkeypatch.setattr(train, "build_model", poisoned)
    with pytest.raises(train.Diverged, match=r"at step 1,.*group \(lr 0\.001, weight decay 0\)"):
        run(tmp_path, tiny.settings(backbone="s4d"), prepared)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backbone", BACKBONES)
def test_on_a_gpu_it_repeats_to_the_bit_and_stays_near_the_cpu(tmp_path: Path, prepared: Path, backbone: str) -> None:
    settings = tiny.settings(backbone=backbone, dropout=0.0)
    results = {name: run(tmp_path, settings, prepared, name, device="cuda") for name in ("one", "two")}
    assert results["one"] == results["two"]
    assert files(tmp_path / "one") == files(tmp_path / "two")
    on_cpu = run(tmp_path, settings, prepared, "cpu")
    assert results["one"]["counts"]["flops"] == pytest.approx(on_cpu["counts"]["flops"], rel=0.01)
    assert results["one"]["metrics"]["test"]["loss"] == pytest.approx(on_cpu["metrics"]["test"]["loss"], rel=0.05)


# Batches


LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=200).map(lambda values: np.array(values, np.int64))


@given(lengths=LENGTHS, batch_tokens=st.integers(1, 300), seed=st.integers(0, 3), epoch=st.integers(0, 3))
def test_an_epoch_has_every_example_once_within_the_budget(
    lengths: np.ndarray, batch_tokens: int, seed: int, epoch: int
) -> None:
    batches = data.epoch_batches(lengths, batch_tokens, seed, epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    for batch in batches:
        computed = len(batch) * lengths[batch].max()
        assert computed <= batch_tokens or len(batch) == 1
        assert lengths[batch].sum() >= 0.95 * computed
    again = data.epoch_batches(lengths, batch_tokens, seed, epoch)
    assert all(np.array_equal(one, two) for one, two in zip(batches, again, strict=True))
    evaluated = data.evaluation_batches(lengths, batch_tokens)
    assert sorted(np.concatenate(evaluated)) == list(range(len(lengths)))
    assert all(lengths[batch].sum() >= 0.95 * len(batch) * lengths[batch].max() for batch in evaluated)


@given(lengths=LENGTHS, step=st.integers(0, 80))
def test_the_batches_from_a_step_on_are_the_tail_of_all(lengths: np.ndarray, step: int) -> None:
    def first(start: int, count: int) -> list[tuple[int, int, list[int]]]:
        stream = data.training_batches(lengths, 200, 0, start)
        return [
            (epoch, number, index.tolist()) for _, (epoch, number, index) in zip(range(count), stream, strict=False)
        ]

    assert first(step, 5) == first(0, step + 5)[step:]


def test_seeds_and_epochs_differ() -> None:
    lengths = np.full(50, 7)
    orders = [
        np.concatenate(data.epoch_batches(lengths, 70, s, e)).tolist() for s, e in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize(("median", "spread", "longest", "budget"), [(1000, 0.7, 4096, 16384), (25, 0.6, 128, 2048)])
def test_batches_are_not_cut_short_where_there_are_enough_examples(
    median: int, spread: float, longest: int, budget: int
) -> None:
    drawn = np.random.default_rng(0).lognormal(np.log(median), spread, 25_000)
    lengths = drawn.clip(2, longest).astype(np.int64)
    batches = data.epoch_batches(lengths, budget, 0, 0)
    assert lengths.sum() >= 0.8 * budget * len(batches), lengths.sum() / (budget * len(batches))


def test_uniform_is_a_uniform_function_of_all_its_keys() -> None:
    grid = data.uniform(3, 0, np.arange(200)[:, None], np.arange(500))
    assert grid.shape == (200, 500)
    assert len(np.unique(grid)) == grid.size
    counts, _ = np.histogram(grid, bins=20, range=(0, 1))
    # 100,000 draws in 20 bins: five standard deviations around 5,000.
    assert np.abs(counts - 5000).max() < 5 * np.sqrt(5000 * 0.95)
    for other in (data.uniform(4, 0, 0, np.arange(500)), data.uniform(3, 1, 0, np.arange(500))):
        assert abs(np.corrcoef(grid[0], other)[0, 1]) < 0.2
    # The first values, so that no platform or library draws others.
    first = [f"{value:.6f}" for value in data.uniform(1, 2, 3, np.arange(3))]
    assert first == ["0.071664", "0.650376", "0.648677"]


@pytest.mark.parametrize("content", [None, b"", b"not an Arrow file"])
def test_a_split_that_cannot_be_read_says_what_to_do(tmp_path: Path, content: bytes | None) -> None:
    tiny.write_task(tmp_path)
    (tmp_path / "train.arrow").unlink()
    if content is not None:
        (tmp_path / "train.arrow").write_bytes(content)
    with pytest.raises(data.DataError, match=r"train\.arrow.*noscratch prepare"):
        data.Split(tmp_path, "train")


def test_a_pair_without_its_second_text_is_refused(tmp_path: Path) -> None:
    tiny.write_task(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps(data.read_meta(tmp_path) | {"pairs": True}))
    with pytest.raises(data.DataError, match=r"id, tokens, second and label; reading .*train\.arrow"):
        data.Split(tmp_path, "train")


def test_an_empty_example_is_refused(tmp_path: Path) -> None:
    tiny.write_task(tmp_path, shortest=0, length=1)
    with pytest.raises(data.DataError, match="at least one token"):
        data.Split(tmp_path, "train")


def test_missing_meta_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match=r"noscratch prepare"):
        data.read_meta(tmp_path)


def stored(prepared: Path, column: str) -> list[list[int]]:
    """The token lists of the training split, as they were written."""
    table = pa.ipc.open_file(pa.memory_map(str(prepared / "train.arrow"))).read_all()
    return table.column(column).to_pylist()


def real_rows(batch: data.Batch) -> list[list[int]]:
    """The real tokens of each sequence of the batch; what stands elsewhere is 0."""
    assert not batch.tokens[~batch.mask].any()
    assert batch.real == int(batch.mask.sum())
    return [tokens[mask].flatten().tolist() for tokens, mask in zip(batch.tokens, batch.mask, strict=True)]


def test_a_batch_of_pairs_stacks_the_second_texts_below_the_first(tmp_path: Path) -> None:
    prepared = tiny.write_task(tmp_path, pairs=True)
    split, first, second = data.Split(prepared, "train"), stored(prepared, "tokens"), stored(prepared, "second")
    assert split.lengths.tolist() == [2 * max(len(u), len(v)) for u, v in zip(first, second, strict=True)]
    for index in data.epoch_batches(split.lengths, 256, 0, 0):
        batch = split.batch(index)
        assert real_rows(batch) == [first[i] for i in index] + [second[i] for i in index]
        assert batch.label.tolist() == split.targets()[index].tolist()
        assert batch.tokens.numel() <= 256
        assert sorted(torch.cat([rows for rows, _ in batch.parts]).tolist()) == list(range(2 * len(index)))
        for rows, length in batch.parts:
            assert batch.mask[rows].sum(1).max() == length
            assert batch.mask[rows].sum() >= 0.95 * len(rows) * length


@pytest.mark.parametrize("causal", [False, True])
def test_texts_of_pairs_are_encoded_in_parts_as_if_together(tmp_path: Path, causal: bool) -> None:
    prepared = tiny.write_task(tmp_path, pairs=True)
    made, batch, meta = built(prepared, protocol="spt-causal" if causal else "scratch")
    together = made.head(made.pool(made(batch.tokens, batch.mask), batch.mask))
    assert len(batch.parts) > 1
    assert_close(objectives.classify(made, batch, meta["kind"]).output, together, tolerance(torch.float32, 24, 100))


def test_pretraining_takes_the_texts_of_pairs_one_by_one(tmp_path: Path) -> None:
    prepared = tiny.write_task(tmp_path, pairs=True)
    split, texts = data.Split(prepared, "train", alone=True), stored(prepared, "tokens") + stored(prepared, "second")
    assert split.lengths.tolist() == [len(text) for text in texts]
    batches = data.epoch_batches(split.lengths, 256, 0, 0)
    assert sorted(np.concatenate(batches)) == list(range(2 * tiny.SIZES["train"]))
    for index in batches:
        assert real_rows(split.batch(index)) == [texts[i] for i in index]
    result = run(tmp_path, tiny.settings("pretrain", "masked", protocol="spt-masked", steps=len(batches)), prepared)
    assert result["counts"]["tokens_real"] == sum(map(len, texts))


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_a_task_writes_is_what_training_reads(tmp_path: Path, pairs: bool, channels: int) -> None:
    inputs: Any = "pixels" if channels == 3 else "tokens"
    pretraining = tasks.Pretraining(0.5, "l1" if channels == 3 else "cross-entropy")
    spec = tasks.Spec("Toy", (), "classification", 2, ("accuracy",), inputs, pretraining, "none", pairs)
    random = np.random.default_rng(0)

    def texts(n: int) -> tuple[np.ndarray, np.ndarray]:
        sizes = channels * random.integers(1, 9, n)
        return random.integers(1, 9, sizes.sum()).astype(np.uint8), np.concatenate([[0], np.cumsum(sizes)])

    def examples(name: str, n: int) -> tasks.Examples:
        second = texts(n) if pairs else (None, None)
        return tasks.Examples([f"{name}-{i}" for i in range(n)], *texts(n), np.arange(n) % 2, *second)

    splits = {"train": [examples("a", 30), examples("b", 7)], "validation": examples("c", 5), "test": examples("d", 5)}
    vocabulary = 256 if channels == 3 else 20
    tasks.write(
        tmp_path, "toy", spec, splits, vocabulary=vocabulary, eos=None, length=8, rule="none", channels=channels
    )
    split = data.Split(tmp_path, "train")
    index = np.array([36, 0, 30, 29])
    columns = [stored(tmp_path, column) for column in ("tokens", "second")[: 1 + pairs]]
    assert real_rows(split.batch(index)) == [column[i] for column in columns for i in index]
    for phase, objective in (("pretrain", "masked"), ("finetune", "classify")):
        changes = {"protocol": "spt-masked", "steps": 2, "evaluate_every": 1}
        run(tmp_path, tiny.settings(phase, objective, **changes), tmp_path, phase)


def test_a_split_is_not_copied_into_memory(tmp_path: Path) -> None:
    prepared = tiny.write_task(tmp_path, inputs="pixels", length=100_000, sizes={"train": 50})
    before = pa.total_allocated_bytes()
    split = data.Split(prepared, "train")
    first, second = stored(prepared, "tokens")[0], stored(prepared, "tokens")[49]
    assert real_rows(split.batch(np.array([0, 49]))) == [first, second]
    assert pa.total_allocated_bytes() - before < 100_000


def test_a_position_of_a_colour_image_has_three_numbers(tmp_path: Path) -> None:
    prepared = tiny.write_task(tmp_path, **COLOURS)
    split, pixels = data.Split(prepared, "train"), stored(prepared, "tokens")
    assert set(split.lengths) == {24}
    batch = split.batch(np.array([5, 0]))
    assert batch.tokens.shape == (2, 24, 3)
    assert real_rows(batch) == [pixels[5], pixels[0]]
    assert batch.real == 2 * 24


# Objectives


def test_sinusoidal_positions_tell_an_order_from_another(tmp_path: Path) -> None:
    prepared = tiny.write_task(tmp_path / "task")
    meta = data.read_meta(prepared)
    tokens = torch.tensor([[3, 5, 7, 9], [9, 7, 5, 3]])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    for positions, same in (("none", True), ("sinusoidal", False)):
        settings = tiny.settings(backbone_config={"heads": 2, "positions": positions})
        built = model.build_model(meta, settings, 0).eval()
        pooled = built.pool(built(tokens, mask), mask)
        assert torch.allclose(pooled[0], pooled[1], atol=1e-5) == same
    table = model.sinusoids(50, 6, torch.device("cpu"))
    assert torch.equal(table[0], torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0]))
    assert table[7, 2].item() == pytest.approx(math.sin(7 * 10000 ** (-1 / 3)), abs=1e-6)


def test_hidden_positions_do_not_depend_on_the_batch() -> None:
    lengths = torch.tensor([[9], [30], [1], [17]])
    mask = torch.arange(30) < lengths
    index = np.array([5, 2, 11, 7])
    hidden = objectives.hidden_positions(mask, index, 0.3, seed=1, epoch=2)
    assert not (hidden & ~mask).any()
    assert hidden.any(dim=1).all()
    for row in range(4):
        alone = objectives.hidden_positions(mask[row : row + 1, : lengths[row]], index[row : row + 1], 0.3, 1, 2)
        assert torch.equal(alone[0], hidden[row, : lengths[row]])
    assert not torch.equal(hidden, objectives.hidden_positions(mask, index, 0.3, seed=1, epoch=3))
    assert not torch.equal(hidden, objectives.hidden_positions(mask, index, 0.3, seed=2, epoch=2))


def test_the_share_of_hidden_positions_is_the_ratio() -> None:
    hidden = objectives.hidden_positions(torch.ones(100, 1000, dtype=torch.bool), np.arange(100), 0.15, 0, 0)
    assert hidden.float().mean().item() == pytest.approx(0.15, abs=5 * (0.15 * 0.85 / 1e5) ** 0.5)
    tiny_ratio = objectives.hidden_positions(torch.ones(50, 4, dtype=torch.bool), np.arange(50), 1e-9, 0, 0)
    assert (tiny_ratio.sum(1) == 1).all(), "one position per sequence at least"


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.5])
def test_hiding_nothing_is_an_error(tmp_path: Path, ratio: float) -> None:
    prepared = tiny.write_task(tmp_path / "prepared", pretraining={"ratio": ratio, "loss": "cross-entropy"})
    with pytest.raises(NoscratchError, match=r"\(0, 1\]"):
        run(tmp_path, tiny.settings("pretrain", "masked", protocol="spt-masked"), prepared)


def built(prepared: Path, **changes: Any) -> tuple[model.Model, data.Batch, dict[str, Any]]:
    meta = data.read_meta(prepared)
    made = model.build_model(meta, tiny.settings(dropout=0.0, **changes), seed=0).double().eval()
    return made, data.Split(prepared, "train").batch(np.array([3, 1, 2])), meta


@pytest.mark.parametrize("task", [{}, {"inputs": "pixels"}, COLOURS], ids=["tokens", "pixels", "colours"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_is_hidden_does_not_reach_the_model(tmp_path: Path, task: dict[str, Any], backbone: str) -> None:
    prepared = tiny.write_task(tmp_path, **task)
    made, batch, _ = built(prepared, phase="pretrain", objective="masked", backbone=backbone)
    hidden = objectives.hidden_positions(batch.mask, batch.index, 0.3, 0, 0)
    made.float()
    features = made(batch.tokens, batch.mask, hidden)
    for where, same in ((hidden, True), (batch.mask & ~hidden, False)):
        changed = batch.tokens.clone()
        changed[where] = changed[where] % 5 + 1
        assert not torch.equal(changed, batch.tokens)
        assert torch.equal(made(changed, batch.mask, hidden), features) == same
    if task == COLOURS:  # each channel of what is seen reaches it
        for channel in range(3):
            changed = batch.tokens.clone()
            changed[..., channel] = 255 - changed[..., channel]
            assert not torch.equal(made(changed, batch.mask, hidden), features)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_next_element_is_predicted_from_earlier_ones_only(prepared: Path, backbone: str) -> None:
    made, batch, meta = built(prepared, phase="pretrain", objective="causal", backbone=backbone, protocol="spt-causal")
    outcome = objectives.outcome_of(made, batch, "causal", meta, 0, 0)
    lengths = batch.mask.sum(1)
    assert outcome.terms == int((lengths - 1).sum())
    # The last real token is a target and never an input of any prediction.
    changed = batch.tokens.clone()
    last = (torch.arange(3), lengths - 1)
    changed[last] = changed[last] % 10 + 1
    other = objectives.outcome_of(made, dataclasses.replace(batch, tokens=changed), "causal", meta, 0, 0)
    assert_close(other.output, outcome.output, tolerance(torch.float32, 24, 100))
    assert other.total != outcome.total
    wanted = torch.cat([row[1:n] for row, n in zip(batch.tokens, lengths, strict=True)])
    log_probabilities = outcome.output.log_softmax(-1).gather(1, wanted[:, None])
    torch.testing.assert_close(outcome.total, -log_probabilities.sum())


@pytest.mark.parametrize("objective", ["masked", "causal"])
def test_sequences_of_one_element_do_not_break_a_step(tmp_path: Path, objective: str) -> None:
    prepared = tiny.write_task(tmp_path / "prepared", shortest=1, length=1)
    run(tmp_path, tiny.settings("pretrain", objective, protocol=f"spt-{objective}"), prepared)


@pytest.mark.parametrize("loss", ["l1", "cross-entropy"])
def test_the_loss_of_a_colour_is_the_mean_over_its_channels(tmp_path: Path, loss: str) -> None:
    prepared = tiny.write_task(tmp_path, **COLOURS | {"loss": loss})
    made, batch, meta = built(prepared, phase="pretrain", objective="masked")
    outcome = objectives.outcome_of(made.float(), batch, "masked", meta, 0, 0)
    hidden = objectives.hidden_positions(batch.mask, batch.index, 0.3, 0, 0)
    assert outcome.terms == int(hidden.sum())
    losses = []
    for output, wanted in zip(outcome.output, batch.tokens[hidden], strict=True):
        for channel in range(3):
            if loss == "l1":
                losses.append((output[channel] - model.pixel_value(wanted[channel])).abs())
            else:
                losses.append(-output[256 * channel : 256 * (channel + 1)].log_softmax(-1)[wanted[channel]])
    torch.testing.assert_close(outcome.total, torch.stack(losses).sum() / 3)


# The model


@pytest.mark.parametrize("around", [{}, {"readout": "max"}, {"readout": "last", "head": "mlp"}, {"readout": "mean"}])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_outputs_do_not_depend_on_the_batch(
    prepared: Path, backbone: str, causal: bool, around: dict[str, str]
) -> None:
    model_settings = {"d_model": 16, "layers": 1, "dropout": 0.0} | around
    made, batch, _ = built(
        prepared, backbone=backbone, protocol="spt-causal" if causal else "scratch", model=model_settings
    )
    together = made.head(made.pool(made(batch.tokens, batch.mask), batch.mask))
    for row, length in enumerate(batch.mask.sum(1)):
        tokens = torch.nn.functional.pad(batch.tokens[row : row + 1, :length], (0, 40))
        mask = torch.arange(int(length) + 40)[None] < length
        alone = made.head(made.pool(made(tokens, mask), mask))
        assert_close(
            alone[0],
            together[row],
            tolerance(torch.float64 if alone.dtype == torch.float64 else torch.float32, 64, 100),
        )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_match_depends_on_its_own_pair_only(tmp_path: Path, backbone: str, causal: bool) -> None:
    prepared = tiny.write_task(tmp_path, pairs=True)
    made, together, meta = built(prepared, backbone=backbone, protocol="spt-causal" if causal else "scratch")
    made.float()
    want = objectives.classify(made, together, meta["kind"])
    assert want.output.shape == (3, 2)
    assert want.terms == want.units == 3
    split = data.Split(prepared, "train")
    alone = [objectives.classify(made, split.batch(together.index[i : i + 1]), meta["kind"]) for i in range(3)]
    bound = tolerance(torch.float32, 64, 100)
    assert_close(torch.cat([outcome.output for outcome in alone]), want.output, bound)
    torch.testing.assert_close(torch.stack([outcome.total for outcome in alone]).sum(), want.total)
    # One encoder reads both texts: exchanged, they give the same features in the other order.
    pooled = made.pool(made(together.tokens, together.mask), together.mask)
    order = torch.tensor([3, 4, 5, 0, 1, 2])
    exchanged = made.pool(made(together.tokens[order], together.mask[order]), together.mask[order])
    assert_close(exchanged, pooled[order], bound)


def test_the_match_head_sees_both_texts_their_difference_and_their_product() -> None:
    head = model.MatchHead(3, 2).double()
    u, v = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inner = sum(part @ head.inner.weight[:, 3 * i : 3 * i + 3].T for i, part in enumerate((u, v, u - v, u * v)))
    hidden = inner + head.inner.bias
    gelu = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    torch.testing.assert_close(head(torch.cat([u, v])), gelu @ head.outer.weight.T + head.outer.bias)


def test_pooling_takes_the_mean_or_the_last_real_token(prepared: Path) -> None:
    features, mask = torch.arange(24.0).view(2, 4, 3), torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    both, _, _ = built(prepared)
    assert torch.equal(both.pool(features, mask), torch.stack([features[0, :3].mean(0), features[1, 0]]))
    causal, _, _ = built(prepared, protocol="spt-causal")
    assert torch.equal(causal.pool(features, mask), torch.stack([features[0, 2], features[1, 0]]))
    for made in (both, causal):
        for readout in (made.readout, "max"):
            made.readout = readout
            assert torch.equal(made.pool(features, None), made.pool(features, torch.ones_like(mask)))


def test_a_batch_without_padding_has_no_mask_to_apply(prepared: Path) -> None:
    split = data.Split(prepared, "train")
    longest, others = np.split(np.argsort(-split.lengths, kind="stable"), [1])
    assert split.lengths[longest] > split.lengths[others].min()
    assert split.batch(longest).padding is None
    padded = split.batch(np.append(longest, others[-1]))
    assert padded.padding is padded.mask


@pytest.mark.parametrize("readout", ["mean", "last", "max"])
def test_a_readout_is_of_the_real_positions(prepared: Path, readout: str) -> None:
    """Whatever stands behind them."""
    around = {"d_model": 16, "layers": 1, "dropout": 0.0, "readout": readout}
    features, mask = contract.draw(2, 5, 16), contract.real([5, 2], 5)
    want = {"mean": lambda x: x.mean(0), "last": lambda x: x[-1], "max": lambda x: x.amax(0)}[readout]
    for protocol in ("scratch", "spt-causal"):
        made, _, _ = built(prepared, protocol=protocol, model=around)
        pooled = made.pool(features.masked_fill(~mask.unsqueeze(-1), 1e30), mask)
        torch.testing.assert_close(pooled, torch.stack([want(features[0]), want(features[1, :2])]))


def test_an_mlp_head_is_two_layers_and_of_classes_alone(tmp_path: Path) -> None:
    around = {"d_model": 16, "layers": 1, "dropout": 0.0, "head": "mlp"}
    x = contract.draw(3, 16)
    made, _, _ = built(tiny.write_task(tmp_path / "one"), model=around)
    hidden = x @ made.head.inner.weight.T + made.head.inner.bias
    gelu = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    torch.testing.assert_close(made.head(x), gelu @ made.head.outer.weight.T + made.head.outer.bias)
    masked, _, _ = built(
        tiny.write_task(tmp_path / "same"), model=around, phase="pretrain", objective="masked", protocol="spt-masked"
    )
    pairs, _, _ = built(tiny.write_task(tmp_path / "pairs", pairs=True), model=around)
    assert [type(m.head) for m in (masked, pairs)] == [torch.nn.Linear, model.MatchHead]


def test_the_head_has_the_shape_that_the_vocabulary_asks_for(tmp_path: Path) -> None:
    tokens = data.read_meta(tiny.write_task(tmp_path / "tokens"))
    pixels = data.read_meta(tiny.write_task(tmp_path / "pixels", inputs="pixels"))
    values = data.read_meta(tiny.write_task(tmp_path / "values", kind="regression"))
    l1 = pixels | {"pretraining": {"ratio": 0.5, "loss": "l1"}}
    shapes = [(tokens, "masked"), (tokens, "causal"), (tokens, "classify"), (pixels, "masked"), (l1, "masked")]
    shapes += [(pixels | {"channels": 3}, "causal"), (l1 | {"channels": 3}, "masked")]
    assert [model.outputs(meta, objective) for meta, objective in shapes] == [12, 12, 2, 256, 1, 768, 3]
    assert model.outputs(values, "classify") == 1
    for meta, objective in (*shapes, (values, "classify")):
        made = model.build_model(meta, tiny.settings(objective=objective, protocol="spt-causal"), 0)
        assert made.head.out_features == model.outputs(meta, objective)


def test_a_bidirectional_backbone_has_no_causal_protocol() -> None:
    class OneWay:
        __name__ = "one_way"
        CAUSAL_OK, BIDIRECTIONAL_OK = False, True

    assert not model.is_causal(OneWay(), "spt-masked")  # type: ignore[arg-type]
    with pytest.raises(backbones.BackboneError, match=r"spt-causal.*one_way"):
        model.is_causal(OneWay(), "spt-causal")  # type: ignore[arg-type]


def test_pixels_are_centred() -> None:
    assert model.pixel_value(torch.tensor([0, 255])).tolist() == [-1.0, 1.0]


# Counting


@pytest.mark.parametrize("task", [{}, {"pairs": True}, COLOURS], ids=["tokens", "pairs", "colours"])
@pytest.mark.parametrize("objective", ["classify", "masked"])
@pytest.mark.parametrize("backbone", [*BACKBONES, "s4", "sgconv"])  # kernels at a cost that jumps or stands still
def test_flops_of_a_run_are_those_of_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str, objective: str, task: dict[str, Any]
) -> None:
    prepared = tiny.write_task(tmp_path / "prepared", **task)
    counted: list[int] = []
    original = train.outcome_of

    def counting(*arguments: Any) -> objectives.Outcome:
        counted.append(flops.count(lambda: original(*arguments).total.backward()))
        arguments[0].zero_grad()
        return original(*arguments)

    monkeypatch.setattr(train, "outcome_of", counting)
    phase = "finetune" if objective == "classify" else "pretrain"
    result = run(tmp_path, tiny.settings(phase, objective, backbone, layers=2), prepared)
    assert result["counts"]["flops"] == pytest.approx(sum(counted), rel=0.01)


@pytest.mark.parametrize("task", [{}, {"pairs": True}, COLOURS], ids=["tokens", "pairs", "colours"])
@pytest.mark.parametrize("objective", ["classify", "masked"])
def test_counted_flops_are_those_of_torch(tmp_path: Path, task: dict[str, Any], objective: str) -> None:
    """The reference forms, for PyTorch has no formula for oneDNN's products."""
    from torch.utils.flop_counter import FlopCounterMode

    prepared = tiny.write_task(tmp_path, **task)
    meta = data.read_meta(prepared)
    settings = tiny.settings("pretrain", objective, "s4d", backend="reference")
    made = model.build_model(meta, settings, seed=0)
    batch = data.Split(prepared, "train", alone=objective == "masked").batch(np.arange(3))

    def work() -> None:
        objectives.outcome_of(made, batch, objective, meta, 0, 0).total.backward()

    with FlopCounterMode(display=False) as counter:
        work()
    assert flops.count(work) == counter.get_total_flops() > 0


@pytest.mark.parametrize("backbone", backbones.names())
def test_counted_flops_of_every_backbone_are_those_of_torch(tmp_path: Path, backbone: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    meta = data.read_meta(tiny.write_task(tmp_path))
    made = model.build_model(meta, tiny.settings("finetune", "classify", backbone, backend="reference"), seed=0)
    batch = data.Split(tmp_path, "train").batch(np.arange(3))

    def work() -> None:
        objectives.outcome_of(made, batch, "classify", meta, 0, 0).total.backward()

    with FlopCounterMode(display=False) as counter:
        work()
    assert flops.count(work) == counter.get_total_flops() > 0


def test_products_of_onednn_count_like_those_of_torch() -> None:
    x, w = torch.ones(5, 8, requires_grad=True), torch.ones(6, 8, requires_grad=True)
    one, other = (
        flops.count(lambda form=form: structured.linear(x, w, backend=form).sum().backward())
        for form in structured.LINEAR_BACKENDS
    )
    assert one == other == 3 * 2 * 5 * 6 * 8


def test_attention_counts_on_the_cpu_too() -> None:
    q = torch.ones(2, 3, 8, 4, requires_grad=True)
    one = flops.count(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward())
    assert one == 2 * 3 * 8 * 8 * 4 * 2 * 7  # two products forward, five backward, two operations each


# What a process costs


def test_a_run_imports_neither_the_compiler_nor_the_pipeline(tmp_path: Path) -> None:
    prepared = tiny.write_task(tmp_path / "prepared", metrics=["accuracy"])
    heavy = ("torch._dynamo", "torch._inductor", "sklearn", "scipy", "pandas", "pydantic", "rich", "typer", "dvc")
    (tmp_path / "out").mkdir()
    program = (
        "import sys, tiny; from pathlib import Path; from noscratch import train\n"
        "train.run(tiny.settings(), *map(Path, sys.argv[1:]), None, 'cpu')\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(prepared), str(tmp_path / "out"), str(tmp_path / "checkpoints")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_progress_goes_to_standard_error(tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with telemetry.Telemetry(tmp_path / "checkpoints", "cpu", progress=True) as report:
        run(tmp_path, tiny.settings(), prepared, report=report)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "step 12/12, loss" in captured.err
