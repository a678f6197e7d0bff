"""Batch norm: statistics of the real positions, of the whole batch, saved and gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import contract
import tiny
from noscratch import backbones, data, flops, model, train
from noscratch.backbones._norm import BatchNorm, LayerNorm, norm
from noscratch.errors import NoscratchError
from noscratch.ranks import Alone
from tolerances import assert_close, tolerance

BATCHED = {"d_state": 8, "normalization": "batch"}


def settings(**changes: Any) -> dict[str, Any]:
    return tiny.settings(backbone="s4d", **{"backbone_config": BATCHED, "layers": 2} | changes)


def run(folder: Path, told: dict[str, Any], prepared: Path, **more: Any) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    return train.run(told, prepared, folder, folder.with_suffix(".saved"), device="cpu", **{"init": None} | more)


def test_kinds() -> None:
    assert isinstance(norm("layer", 4), LayerNorm)
    assert isinstance(norm("batch", 4), BatchNorm)
    x = contract.draw(2, 5, 4)
    assert torch.equal(norm("layer", 4).double()(x, None), nn.LayerNorm(4).double()(x))


@pytest.mark.parametrize("longest", [9, 10, 30])
def test_it_is_pytorchs_on_the_real_positions(longest: int) -> None:
    """Outputs, gradients and running statistics, whatever stands at padded positions and however many there are."""
    ours, theirs = BatchNorm(4).double(), nn.BatchNorm1d(4).double()
    for name, seed in (("weight", 1), ("bias", 2)):
        for module in (ours, theirs):
            getattr(module, name).data.copy_(contract.draw(4, seed=seed))
    for seed in (3, 4):
        mask = contract.real([9, 1, 4], longest)
        real = contract.draw(14, 4, seed=seed).requires_grad_()
        x = 30.0 * contract.draw(3, longest, 4, seed=longest)
        x = x.masked_scatter(mask.unsqueeze(-1), real)
        alone = real.detach().clone().requires_grad_()
        y, want = ours(x, mask)[mask], theirs(alone)
        bound = tolerance(torch.float64, 14, 100.0)
        assert_close(y, want, bound)
        for output in (y, want):
            (output * contract.draw(14, 4, seed=5)).sum().backward()
        assert_close(real.grad, alone.grad, bound)
    assert_close(ours.weight.grad, theirs.weight.grad, bound)
    assert_close(ours.mean, theirs.running_mean, bound)
    assert_close(ours.variance, theirs.running_var, bound)
    assert_close(ours.eval()(real), theirs.eval()(real), bound)


def test_one_position_is_finite_and_single_positions_do_not_train() -> None:
    module = BatchNorm(4)
    assert module(torch.ones(1, 1, 4), torch.ones(1, 1).bool()).isfinite().all()
    assert module.variance.isfinite().all()
    with pytest.raises(backbones.BackboneError, match=r"whole batches \(B, L, D\); got \(2, 4\). Call eval"):
        module(torch.ones(2, 4))


def test_without_a_mask_all_positions_are_real() -> None:
    x = contract.draw(2, 5, 4)
    with_mask, without = BatchNorm(4).double(), BatchNorm(4).double()
    assert torch.equal(without(x), with_mask(x, torch.ones(2, 5).bool()))
    assert torch.equal(without.variance, with_mask.variance)


def test_training_does_not_depend_on_padding() -> None:
    found = []
    for extra in (0, 9):
        block = contract.build("s4", causal=False, normalization="batch").train()
        mask = contract.real([9, 4], 9 + extra)
        x = 30.0 * contract.draw(2, 9 + extra, contract.D_MODEL, seed=extra)
        x[mask] = contract.draw(13, contract.D_MODEL)
        y = block(x, mask)[mask]
        y.square().sum().backward()
        found.append([y, *block.buffers(), *(parameter.grad for parameter in block.parameters())])
    for short, long in zip(*found, strict=True):
        assert_close(long, short, tolerance(torch.float64, 18, 9 * contract.CONDITION))


@pytest.mark.parametrize("kind", ["layer", "batch"])
def test_a_model_ends_in_a_norm_like_its_blocks(tmp_path: Path, kind: str) -> None:
    """With the norms in front; blocks with norms behind end in one."""
    meta = data.read_meta(tiny.write_task(tmp_path))
    for position in ("pre", "post"):
        told = settings(backbone_config={"d_state": 8, "norm": position, "normalization": kind})
        made = model.build_model(meta, told, 0)
        assert isinstance(made.norm, type(None) if position == "post" else BatchNorm if kind == "batch" else LayerNorm)
        assert made.batch_norm == (kind == "batch")


@pytest.mark.parametrize(
    "task", [{}, {"pairs": True}, {"inputs": "pixels", "channels": 3}], ids=["tokens", "pairs", "colours"]
)
def test_interrupted_after_every_step_it_ends_with_the_same_bits(tmp_path: Path, task: dict[str, Any]) -> None:
    """Running statistics are kept in checkpoints, and the probes that count operations leave them alone."""
    prepared = tiny.write_task(tmp_path / "prepared", **task)
    whole = run(tmp_path / "whole", settings(), prepared)
    for _ in range(11):
        with pytest.raises(train.Interrupted):
            run(tmp_path / "parts", settings(), prepared, stop_after=0.0)
    assert run(tmp_path / "parts", settings(), prepared) == whole
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "parts" / path.name).read_bytes() == path.read_bytes()
    weights = safetensors.torch.load_file(tmp_path / "whole" / train.WEIGHTS)
    running = [value for name, value in weights.items() if name.endswith(("mean", "variance"))]
    assert len(running) == 6
    assert all(value.ne(value[0]).any() for value in running)


def test_they_are_handed_over_and_probing_leaves_them(tmp_path: Path) -> None:
    prepared = tiny.write_task(tmp_path / "prepared")
    run(tmp_path / "first", settings(phase="pretrain", objective="masked", protocol="spt-masked"), prepared)
    given = safetensors.torch.load_file(tmp_path / "first" / train.WEIGHTS)
    made = model.build_model(data.read_meta(prepared), settings(), 0)
    train._hand_over(tmp_path / "first" / train.WEIGHTS, made)
    flops.Cost(made, data.Split(prepared, "train"), torch.device("cpu"), (1.0,))
    for name, value in made.state_dict().items():
        assert name.startswith("head.") or torch.equal(value, given[name]), name


def test_smaller_pieces_would_change_the_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So memory that runs out is an error; by setting, the statistics are of each piece."""
    prepared = tiny.write_task(tmp_path / "prepared")
    run(tmp_path / "pieces", settings(micro_tokens=100), prepared)

    def never(*_: Any) -> None:
        raise MemoryError("not a byte")

    monkeypatch.setattr(train, "outcome_of", never)
    with pytest.raises(NoscratchError, match=r"at step 1 memory ran out: not a byte. Set micro_tokens"):
        run(tmp_path / "scarce", settings(), prepared)


@pytest.mark.parametrize(("pairs", "micro"), [(True, None), (False, 100)])
def test_several_processes_have_the_same_pieces_or_none(tmp_path: Path, pairs: bool, micro: int | None) -> None:
    prepared = tiny.write_task(tmp_path / "prepared", pairs=pairs)
    several = Alone()
    several.world = 2
    with pytest.raises(NoscratchError, match=r"in parts \((texts of a pair by length|micro_tokens)\).*Use one process"):
        run(tmp_path / "several", settings(micro_tokens=micro), prepared, ranks=several)


def test_bfloat16_keeps_its_statistics_in_float32(tmp_path: Path) -> None:
    prepared = tiny.write_task(tmp_path / "prepared")
    run(tmp_path / "run", settings(dtype="bfloat16"), prepared)
    weights = safetensors.torch.load_file(tmp_path / "run" / train.WEIGHTS)
    assert {value.dtype for value in weights.values()} == {torch.float32}
