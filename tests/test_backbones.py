"""Every file of noscratch/backbones keeps the contract; the names are the files."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import contract
from noscratch import backbones
from noscratch.backbones import bigs, s4d
from noscratch.results.pages import numerics
from tolerances import assert_close, tolerance

# Settings that change what a block computes; those of feedforwards and of BiGS stand in test_ffn.py and test_bigs.py.
VARIANTS: dict[str, dict[str, Any]] = {
    **{f"{name}-random": {"init": "random"} for name in ("s4", "s4d", "dss", "dlr", "lru", "bigs")},
    **{f"{name}-batch": {"normalization": "batch"} for name in ("s4", "s4d", "dss", "dlr", "lru", "sgconv")},
    **{f"{name}-post": {"norm": "post"} for name in ("s4", "sgconv", "transformer")},
    "s4-post-batch": {"norm": "post", "normalization": "batch"},
    "s4-shared": {"n_ssm": 2},
    "sgconv-cos": {"init": "cos", "kernel_dim": 4, "decay_min": 1.0, "decay_max": 3.0},
}


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", [*backbones.names(), *VARIANTS])
def test_contract(monkeypatch: pytest.MonkeyPatch, name: str, check: Callable[[str], None]) -> None:
    monkeypatch.setitem(contract.OVERRIDES, name, VARIANTS.get(name, {}))
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", backbones.names())
def test_compiles_with_its_gradients(name: str) -> None:
    contract.compiles(name, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformer", "s4d"])
def test_compiles_to_machine_code(name: str) -> None:
    contract.compiles(name, backend="inductor")


@pytest.mark.parametrize("name", backbones.names())
def test_its_page_shows_the_errors_of_a_kernel_that_it_runs(name: str) -> None:
    run = contract.build(name, contract.directions(name)[0]).kernels
    assert len(set(numerics.kernels_of(name)) & set(run)) == 1


def test_a_dash_names_the_same_file() -> None:
    assert backbones.load("s4d-random") is backbones.load("s4d")


def test_unknown_name_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(backbones.BackboneError, match=r"s4d.*got 'transfomer-small'.*mean 'transformer'"):
        backbones.load("transfomer-small")


# What one file promises beyond the contract


def test_s4d_starts_from_the_eigenvalues_of_its_initialization() -> None:
    """Real parts are -1/2; imaginary parts by hand for N = 4 (S4D, section 4)."""
    lin, inv, legs = (s4d.eigenvalues(init, 4) for init in ("lin", "inv", "legs"))
    for found in (lin, inv, legs):
        torch.testing.assert_close(found.real, torch.full((2,), -0.5, dtype=torch.float64))
    torch.testing.assert_close(lin.imag, torch.tensor([0.0, math.pi], dtype=torch.float64))
    torch.testing.assert_close(inv.imag, 4 / math.pi * torch.tensor([3.0, 1 / 3], dtype=torch.float64))
    # The skew part has characteristic polynomial x^4 + s x^2 + p: s sums its 2 x 2 minors, p is its determinant.
    n = torch.arange(4, dtype=torch.float64)
    half = 0.5 * torch.sqrt((2 * n[:, None] + 1) * (2 * n + 1))
    skew = torch.triu(half, 1) - torch.tril(half, -1)
    minors = sum(torch.linalg.det(skew[[i, j]][:, [i, j]]) for i in range(4) for j in range(i))
    torch.testing.assert_close(legs.imag.square().sum(), torch.as_tensor(minors))
    torch.testing.assert_close(legs.imag.square().prod(), torch.linalg.det(skew))


@pytest.mark.parametrize("init", ["legs", "inv", "lin", "random"])
@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
def test_s4d_settings_build_and_agree_with_the_recurrence(init: str, discretization: str) -> None:
    block = contract.build("s4d", causal=True, init=init, discretization=discretization, train_b=True, d_state=8)
    x = contract.draw(2, 9, contract.D_MODEL)
    bound = tolerance(torch.float64, 9, 9 * contract.CONDITION)
    assert_close(backbones.recurrent(block, x), backbones.parallel(block, x), bound)


def test_s4d_declares_its_own_learning_rate() -> None:
    layer = s4d.S4D(s4d.Config(train_b=True, lr=0.002), heads=4, causal=True, backend="auto")
    assert layer.optim == {
        name: {"lr": 0.002, "weight_decay": 0.0} for name in ("log_dt", "log_decay", "frequency", "B")
    }
    steps = layer.log_dt.exp()
    assert steps.min() >= 0.001
    assert steps.max() <= 0.1


def test_s4d_random_draws_every_parameter_of_the_ssm() -> None:
    layer = s4d.S4D(s4d.Config(init="random"), heads=64, causal=False, backend="auto")
    for name, value in layer.named_parameters():
        # Standard deviation 0.1, known from n draws to 0.1 / sqrt(2 n).
        assert abs(value.std().item() - 0.1) < 5 * 0.1 / math.sqrt(2 * value.numel()), name


def test_a_transformer_without_positions_does_not_know_the_order() -> None:
    x, order = contract.draw(2, 9, contract.D_MODEL), torch.randperm(9, generator=torch.Generator().manual_seed(0))
    bound = tolerance(torch.float64, 9, contract.CONDITION)
    without, rotary = (contract.build("transformer", causal=False, positions=p) for p in ("none", "rotary"))
    assert_close(contract.run(without, x[:, order]), contract.run(without, x)[:, order], bound)
    moved = contract.run(rotary, x[:, order]) - contract.run(rotary, x)[:, order]
    assert moved.abs().max() > 1e3 * bound


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("transformer", {"heads": 0}),
        ("transformer", {"heads": 5}),
        ("transformer", {"heads": contract.D_MODEL}),
        ("transformer", {"positions": "learned"}),
        ("transformer", {"norm": "batch"}),
        ("transformer", {"dropout": 1.0}),
        ("transformer", {"expansion": 0}),
        ("s4d", {"d_state": 7}),
        ("s4d", {"init": "fout"}),
        ("s4d", {"discretization": "euler"}),
        ("s4d", {"dt_min": 0.2}),
        ("s4d", {"dt_min": 0.0}),
        ("s4d", {"norm": "none"}),
        ("s4d", {"normalization": "group"}),
        ("s4d", {"dropout": -0.1}),
    ],
)
def test_impossible_settings_are_refused(name: str, setting: dict[str, object]) -> None:
    with pytest.raises(backbones.BackboneError, match="got"):
        contract.build(name, causal=True, **setting)


@pytest.mark.parametrize("name", ["transformer", "s4d"])
def test_post_norm_normalizes_its_output(name: str) -> None:
    y = contract.run(contract.build(name, causal=False, norm="post"), contract.draw(2, 9, contract.D_MODEL))
    torch.testing.assert_close(y.mean(-1), torch.zeros_like(y[..., 0]))
    torch.testing.assert_close(y.var(-1, correction=0), torch.ones_like(y[..., 0]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["transformer", "s4d"])
def test_dropout_acts_in_training_only(name: str) -> None:
    block, x = contract.build(name, causal=False, dropout=0.5), contract.draw(2, 9, contract.D_MODEL)
    plain = contract.build(name, causal=False)
    assert torch.equal(contract.run(block, x), contract.run(plain, x))
    assert not torch.equal(contract.run(block.train(), x), contract.run(plain, x))


def test_tied_dropout_takes_whole_channels() -> None:
    block, x = contract.build("s4d", causal=False, dropout=0.5, tied=True), contract.draw(2, 9, contract.D_MODEL)
    assert torch.equal(contract.run(block, x), contract.run(contract.build("s4d", causal=False), x))
    block.train()
    added = contract.run(block, x) - x  # what the residual branch keeps
    kept = added.abs().amax(1) > 0
    assert kept.any()
    assert not kept.all()
    assert (added.abs().amin(1) > 0)[kept].all()


def test_bigs_random_draws_every_parameter_of_the_ssm() -> None:
    drawn = bigs.StateSpaces(bigs.Config(init="random", d_state=512), 8, "auto")
    for name, value in drawn.named_parameters(recurse=False):
        assert value.abs().max() < 0.6, name
        assert value.numel() < 100 or abs(value.std().item() - 0.1) < 0.5 / math.sqrt(2 * value.numel()), name
    torch.default_generator.manual_seed(0)
    enter = bigs.StateSpaces(bigs.Config(init="random"), 64, "auto").enter.weight
    assert enter.abs().max() <= 1 / 8, "a linear layer's own"
