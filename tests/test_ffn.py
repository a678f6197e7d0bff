"""The feedforward: structured maps are the dense ones that they stand for, guided in training or not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import contract
import tiny
from noscratch import backbones, flops, objectives, train
from noscratch.backbones._ffn import Feedforward, Settings, Structured
from noscratch.kernels import structured
from tolerances import assert_close, tolerance

SETTINGS: dict[str, dict[str, Any]] = {
    "transformer-lowrank": {"ffn": "low_rank"},
    "transformer-blockdense": {"ffn": "block_dense", "rank": 0.75, "blocks": 4},
    "transformer-blockshuffle": {"ffn": "block_shuffle", "blocks": 4},
    "bigs-stacked-blockshuffle": {"gated": False, "ffn": "block_shuffle"},
    "transformer-selfguided": {"ffn": "low_rank", "rank": 0.25, "guided": True},
    "transformer-guidedblocks": {"ffn": "block_dense", "rank": 0.5, "blocks": 2, "guided": True},
}
KINDS = ("low_rank", "block_dense", "block_shuffle")


def structured_ffn(kind: Any, guided: bool = False, d_model: int = 16, width: int = 64) -> Feedforward:
    torch.default_generator.manual_seed(0)
    return Feedforward(d_model, width, Settings(kind, blocks=4, guided=guided), "auto").double()


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", SETTINGS)
def test_blocks_keep_the_contract(monkeypatch: pytest.MonkeyPatch, name: str, check: Callable[[str], None]) -> None:
    monkeypatch.setitem(contract.OVERRIDES, name, SETTINGS[name])
    check(name)


@pytest.mark.parametrize("name", SETTINGS)
def test_merged_blocks_give_the_same_at_once_and_step_by_step(name: str) -> None:
    for causal in contract.directions(name):
        block, merged = (contract.build(name, causal, **SETTINGS[name]) for _ in range(2))
        for module in list(merged.modules()):
            if isinstance(module, Feedforward):
                module.merge()
        assert sum(p.numel() for p in merged.parameters()) != sum(p.numel() for p in block.parameters())
        x, bound = contract.draw(2, 9, contract.D_MODEL), tolerance(torch.float64, 9, 9 * contract.CONDITION)
        assert_close(contract.run(merged, x), contract.run(block, x), bound)
        if causal:
            assert_close(backbones.recurrent(merged, x), contract.run(block, x), bound)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient_on_the_way(kind: str, guided: bool) -> None:
    ffn, x = structured_ffn(kind, guided), contract.draw(3, 16)
    for m in (ffn.up, ffn.down):
        m.set_progress(0.2)  # type: ignore[union-attr]
    ffn(x).square().sum().backward()
    for name, value in ffn.named_parameters():
        assert value.grad is not None, name
        assert value.grad.any(), name


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize(("kind", "guided"), [("dense", False), *itertools.product(KINDS, (False, True))])
def test_merging_changes_no_output(kind: str, guided: bool, fraction: float) -> None:
    ffn, x = structured_ffn(kind, guided), contract.draw(2, 5, 16)
    for module in ffn.modules():
        if isinstance(module, Structured):
            module.set_progress(fraction)
            for value in module.parameters():  # a guide that training has moved away from U V, and a bias
                value.data += 0.1 * contract.draw(*value.shape, seed=2)
    want = ffn(x)
    ffn.merge()
    assert not any(isinstance(module, Structured) for module in ffn.modules())
    assert_close(ffn(x), want, tolerance(torch.float64, 64, 100.0))
    assert ffn.kernels == {"linear": "fast"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_guide_starts_as_the_product_and_leaves_halfway(kind: str) -> None:
    """So the course of alpha alone changes nothing before the first step; it is 1, then half a cosine, then 0."""
    ffn, x = structured_ffn(kind, guided=True), contract.draw(2, 5, 16)
    assert isinstance(ffn.up, Structured)
    want, alphas = ffn(x), []
    for fraction in (0.0, 0.125, 0.25, 0.5, 0.75, 1.0):
        for m in (ffn.up, ffn.down):
            m.set_progress(fraction)  # type: ignore[union-attr]
        alphas.append(ffn.up.alpha.item())
        assert_close(ffn(x), want, tolerance(torch.float32, 64, 100.0))  # both were drawn in float32
    assert alphas == pytest.approx([1.0, 0.5 + math.sqrt(0.125), 0.5, 0.0, 0.0, 0.0])
    assert alphas[3:] == [0.0, 0.0, 0.0]


def test_low_rank_starts_nearest_to_a_dense_layer() -> None:
    """Eckart and Young: nothing of that rank is nearer to the dense layer of the same draw."""
    settings = Settings("low_rank")
    torch.default_generator.manual_seed(3)
    dense = nn.Linear(16, 64).weight.detach()
    torch.default_generator.manual_seed(3)
    product = structured.dense_of("low_rank", *list(Structured(16, 64, settings, "auto").parameters())[:2])
    left_out = torch.linalg.svdvals(dense)[8:]
    torch.testing.assert_close((dense - product).square().sum(), left_out.square().sum())


@pytest.mark.parametrize(("inputs", "outputs"), [(16, 64), (64, 16)])
@pytest.mark.parametrize("kind", ["block_dense", "block_shuffle"])
def test_blocks_start_orthonormal(kind: Any, inputs: int, outputs: int) -> None:
    weights = list(Structured(inputs, outputs, Settings(kind, blocks=4), "auto").parameters())[:2]
    for weight in weights:
        narrow = min(weight.shape[-2:])
        gram = weight @ weight.mT if weight.shape[-2] == narrow else weight.mT @ weight
        torch.testing.assert_close(gram, torch.eye(narrow).expand_as(gram))


@pytest.mark.parametrize(
    "setting",
    [
        {"ffn": "monarch"},
        {"ffn": "low_rank", "rank": 0.0},
        {"ffn": "low_rank", "rank": 1.5},
        {"ffn": "low_rank", "rank": 0.01},
        {"ffn": "block_dense", "blocks": 0},
        {"ffn": "block_dense", "blocks": 3},
        {"ffn": "block_dense", "rank": 0.4, "blocks": 4},
        {"ffn": "block_shuffle", "blocks": 5},
        {"guided": True},
        {"expansion": 1.3},
        {"expansion": 0},
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(backbones.BackboneError, match="got"):
        contract.build("transformer", causal=True, **setting)


@pytest.mark.parametrize(("rank", "expansion"), [(0.5, 2.5), (0.25, 1.25)])
def test_a_narrow_dense_feedforward_has_the_weights_of_a_low_rank_one(rank: float, expansion: float) -> None:
    """params.yaml compares them; biases are not weights."""

    def weights(**settings: Any) -> int:
        block = contract.build("transformer", causal=True, d_model=64, heads=8, **settings)
        return sum(p.numel() for p in block.parameters() if p.ndim > 1)

    assert weights(expansion=expansion) == weights(ffn="low_rank", rank=rank) < weights()


# Self-guided training in the loop


def guided_run(folder: Path, phase: str, objective: str, prepared: Path, init: Path | None = None) -> dict[str, Any]:
    out = folder / phase
    out.mkdir()
    guided = {"heads": 2, **SETTINGS["transformer-selfguided"]}
    told = tiny.settings(phase, objective, backbone_config=guided, steps=20, evaluate_every=20)
    return train.run(told, prepared, out, folder / f"{phase}-checkpoints", init, "cpu")


def test_training_goes_down_the_course_and_fine_tuning_stays_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of one length, so that the two halves of the course weigh the same.
    prepared, seen, counted = tiny.write_task(tmp_path / "prepared", shortest=24), [], []
    original = train.outcome_of

    def looking(*arguments: Any) -> objectives.Outcome:
        seen.append({module.alpha.item() for module in arguments[0].modules() if isinstance(module, Structured)})
        counted.append(flops.count(lambda: original(*arguments).total.backward()))
        arguments[0].zero_grad()
        return original(*arguments)

    monkeypatch.setattr(train, "outcome_of", looking)
    result = guided_run(tmp_path, "pretrain", "masked", prepared)
    course = [0.5 * (1 + math.cos(math.pi * step / 10)) if step < 10 else 0.0 for step in range(20)]
    assert [value for alphas in seen for value in alphas] == pytest.approx(course)
    assert result["counts"]["flops"] == pytest.approx(sum(counted), rel=0.01)

    weights = safetensors.torch.load_file(tmp_path / "pretrain" / train.WEIGHTS)
    assert [value.item() for name, value in weights.items() if name.endswith("alpha")] == [0.0, 0.0]
    seen.clear(), counted.clear()
    result = guided_run(tmp_path, "finetune", "classify", prepared, init=tmp_path / "pretrain")
    assert seen == [{0.0}] * 20
    assert result["counts"]["flops"] == pytest.approx(sum(counted), rel=0.01)
    after = safetensors.torch.load_file(tmp_path / "finetune" / train.WEIGHTS)
    for name, value in weights.items():
        assert name.startswith("head.") or (torch.equal(value, after[name]) == name.endswith(("guide", "alpha"))), name
