"""Parameter groups, the update and the schedule."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from noscratch.optim import AdamW, factor, groups


class Special(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.ones(3, 4))
        self.C = nn.Parameter(torch.ones(3, 4))
        self.optim = {"A": {"lr": 1e-3, "weight_decay": 0.0}}


def network() -> nn.Module:
    torch.default_generator.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3), Special())


def test_layers_declare_their_own_and_decay_is_for_matrices() -> None:
    found = {(g.lr, g.weight_decay): set(g.parameters) for g in groups(network(), lr=0.1, weight_decay=0.01)}
    assert found == {
        (0.1, 0.01): {"2.weight", "3.C"},
        (0.1, 0.0): {"0.weight", "1.weight", "1.bias", "2.bias"},
        (1e-3, 0.0): {"3.A"},
    }


def test_every_parameter_lands_in_exactly_one_group() -> None:
    model = network()
    names = [name for group in groups(model, 0.1, 0.01) for name in group.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_a_hint_without_its_parameter_is_refused() -> None:
    layer = Special()
    layer.optim["no_such"] = {"lr": 1.0}
    with pytest.raises(AssertionError, match="no_such"):
        groups(layer, 0.1, 0.0)


def test_a_parameter_used_twice_is_refused() -> None:
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    model[1].weight = model[0].weight
    with pytest.raises(AssertionError, match="exactly one group"):
        groups(model, 0.1, 0.0)


def test_the_update_is_that_of_torch() -> None:
    ours, theirs = network(), network()
    optimizer = AdamW(ours, lr=0.05, weight_decay=0.1)
    reference = torch.optim.AdamW(
        [
            {
                "params": [dict(theirs.named_parameters())[n] for n in g.parameters],
                "lr": g.lr,
                "weight_decay": g.weight_decay,
            }
            for g in optimizer.groups
        ],
        foreach=False,
    )
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for group in reference.param_groups:
            group["lr"] *= 0.9
        optimizer.step(factor=0.9 ** (step + 1))
        reference.step()
    assert all(parameter.grad is None for parameter in ours.parameters())
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-7)


def test_state_goes_on_to_the_bit() -> None:
    through, first, second = network(), network(), network()

    def train(model: nn.Module, optimizer: AdamW, steps: range) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    train(through, AdamW(through, 0.1, 0.1), range(6))
    optimizer = AdamW(first, 0.1, 0.1)
    train(first, optimizer, range(3))
    second.load_state_dict(first.state_dict())
    resumed = AdamW(second, 0.1, 0.1)
    resumed.load_state({name: value.clone() for name, value in optimizer.state().items()})
    train(second, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(second.parameters(), through.parameters(), strict=True))


def test_state_of_another_model_is_refused() -> None:
    with pytest.raises(AssertionError, match="differs in"):
        AdamW(network(), 0.1, 0.1).load_state(AdamW(Special(), 0.1, 0.1).state())


def test_clip_scales_to_the_norm_and_never_up() -> None:
    model = network()
    optimizer = AdamW(model, 0.1, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    number = sum(parameter.numel() for parameter in model.parameters())
    assert optimizer.norm().item() == pytest.approx(number**0.5)
    optimizer.clip(optimizer.norm(), 100.0)
    assert optimizer.norm().item() == pytest.approx(number**0.5)
    optimizer.clip(optimizer.norm(), 0.5)
    assert optimizer.norm().item() == pytest.approx(0.5, rel=1e-5)


def test_norms_name_the_group() -> None:
    model = network()
    optimizer = AdamW(model, 0.1, 0.01)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    dict(model.named_parameters())["3.A"].grad[0, 0] = torch.inf
    assert [name for name, norm in optimizer.norms().items() if not norm.isfinite()] == ["lr 0.001, weight decay 0"]
    assert not optimizer.norm().isfinite()


def test_schedule() -> None:
    constant = [factor(step, 10, 4, "constant") for step in range(10)]
    assert constant == [0.25, 0.5, 0.75, 1.0] + [1.0] * 6
    cosine = [factor(step, 10, 4, "cosine") for step in range(10)]
    assert cosine[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert cosine[7] == pytest.approx(0.5)
    assert all(later < earlier for earlier, later in pairwise(cosine[4:]))
    assert cosine[-1] > 0.0
