"""Batches that go through the model in pieces: by setting, or because memory ran out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from noscratch import data, model, optim, train
from noscratch.errors import NoscratchError
from noscratch.ranks import Alone
from tolerances import assert_close

OBJECTIVES = [("finetune", "classify", "scratch"), ("pretrain", "masked", "spt-masked")]


def run(folder: Path, settings: dict[str, Any], prepared: Path, **more: Any) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    return train.run(settings, prepared, folder, folder.with_suffix(".saved"), device="cpu", **{"init": None} | more)


def gradients(settings: dict[str, Any], prepared: Path, split: int = 1) -> dict[str, torch.Tensor]:
    """Of the sum of the losses of one batch, in so many pieces."""
    meta = data.read_meta(prepared)
    made = model.build_model(meta, settings, seed=0).to(train.WIDTHS[settings["dtype"]])
    part = data.Split(prepared, "train", alone=settings["objective"] != "classify")
    index = data.epoch_batches(part.lengths, 256, 0, 0)[0]
    made.train()
    state = train.State(split=split)
    _, _, pieces = train._accumulate(made, part, index, 0, settings, meta, state, Alone())
    assert sorted(np.concatenate(pieces)) == sorted(index), "every example once"
    assert len(pieces) == min(split, len(index)) or settings["train"]["micro_tokens"]
    return {name: value.grad for name, value in made.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("backbone", ["transformer", "s4d"])
@pytest.mark.parametrize(("phase", "objective", "protocol"), OBJECTIVES)
def test_pieces_add_up_to_the_gradient_of_the_batch(
    tmp_path: Path, phase: str, objective: str, protocol: str, backbone: str, pairs: bool
) -> None:
    """In float64: what is left is the rounding of kernels that see another length and another order of additions."""
    prepared = tiny.write_task(tmp_path / "prepared", pairs=pairs)
    settings = tiny.settings(phase, objective, backbone, protocol=protocol, dropout=0.0, dtype="float64", layers=2)
    whole = gradients(settings, prepared)
    for split in (2, 3, 10**6):
        for name, value in gradients(settings, prepared, split).items():
            assert_close(value, whole[name], 1e-9, what=f"{name} in {split}")
    settings["train"]["micro_tokens"] = 40
    for name, value in gradients(settings, prepared).items():
        assert_close(value, whole[name], 1e-9, what=f"{name} by micro_tokens")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["CUDA", "Python", "CPU"],
)
def test_memory_that_runs_out_halves_the_pieces_and_not_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    prepared = tiny.write_task(tmp_path / "prepared", shortest=24)  # ten examples a batch
    sizes: list[int] = []
    original = train.outcome_of

    def scarce(made: Any, batch: data.Batch, *arguments: Any) -> Any:
        sizes.append(len(batch.index))
        if len(batch.index) > 3:
            raise error
        return original(made, batch, *arguments)

    plain = run(tmp_path / "plain", tiny.settings(dropout=0.0), prepared)
    monkeypatch.setattr(train, "outcome_of", scarce)
    states: list[int] = []
    result = run(
        tmp_path / "scarce", tiny.settings(dropout=0.0), prepared, report=lambda _, state: states.append(state.split)
    )
    assert sizes[:6] == [10, 5, 3, 3, 2, 2], "10, halved twice, then in four pieces"
    assert max(sizes[6:]) == 3, "it stays with that"
    assert set(states) == {4}
    assert result["counts"]["tokens_real"] == plain["counts"]["tokens_real"], "the effective batch is the same"
    assert result["metrics"]["validation"]["loss"] == pytest.approx(plain["metrics"]["validation"]["loss"], rel=1e-4)
    assert result.keys() == plain.keys()


def test_no_memory_for_one_example_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = tiny.write_task(tmp_path / "prepared")

    def never(*_: Any) -> None:
        raise MemoryError("not a byte")

    monkeypatch.setattr(train, "outcome_of", never)
    with pytest.raises(NoscratchError, match=r"for one example at least; at step 1 there is not: not a byte"):
        run(tmp_path / "run", tiny.settings(), prepared)


def test_any_other_error_is_not_taken_for_a_lack_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = tiny.write_task(tmp_path / "prepared")

    def wrong(*_: Any) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(train, "outcome_of", wrong)
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(tmp_path / "run", tiny.settings(), prepared)


def test_a_run_that_was_halved_and_interrupted_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint keeps the size of the pieces: memory need not run out again."""
    prepared = tiny.write_task(tmp_path / "prepared")
    original, failures = train.outcome_of, [True]

    def once(*arguments: Any) -> Any:
        if failures and failures.pop():
            raise MemoryError
        return original(*arguments)

    monkeypatch.setattr(train, "outcome_of", once)
    whole = run(tmp_path / "whole", tiny.settings(), prepared)
    failures.append(True)
    with pytest.raises(train.Interrupted):
        run(tmp_path / "parts", tiny.settings(), prepared, stop_after=0)
    assert not failures
    assert run(tmp_path / "parts", tiny.settings(), prepared) == whole
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "parts" / path.name).read_bytes() == path.read_bytes()


def test_a_setting_reaches_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = tiny.write_task(tmp_path / "prepared")
    largest: list[int] = []
    original = train.outcome_of

    def seen(made: Any, batch: data.Batch, *arguments: Any) -> Any:
        largest.append(batch.mask.numel())
        return original(made, batch, *arguments)

    monkeypatch.setattr(train, "outcome_of", seen)
    steps: list[int] = []
    monkeypatch.setattr(optim.AdamW, "step", lambda self, factor: (steps.append(1), None)[1])
    run(tmp_path / "run", tiny.settings(micro_tokens=64), prepared)
    assert len(steps) == 12 < len(largest)
    assert max(largest) <= 64 + 24, "contiguous pieces differ by an example at most"
    assert json.dumps(tiny.settings(micro_tokens=64))
