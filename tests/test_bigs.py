"""What BiGS and the siblings of its ablation promise beyond the contract."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import contract
from noscratch import backbones, model
from noscratch.backbones import bigs
from noscratch.kernels import ssm
from noscratch.optim import groups
from tolerances import assert_close, tolerance

SIBLINGS: dict[str, dict[str, Any]] = {
    "bigs-stacked": {"gated": False},
    "bigs-attention": {"mixer": "attention"},
    "bigs-lin": {"init": "lin", "d_state": 6},
}


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", SIBLINGS)
def test_siblings_keep_the_contract(monkeypatch: pytest.MonkeyPatch, name: str, check: Callable[[str], None]) -> None:
    monkeypatch.setitem(contract.OVERRIDES, name, SIBLINGS[name])
    check(name)


def test_stacked_attention_is_the_transformer_block() -> None:
    sibling = contract.build("bigs", causal=False, gated=False, mixer="attention")
    transformer = contract.build("transformer", causal=False)
    assert contract.bits(sibling) == contract.bits(transformer)
    x = contract.draw(2, 9, contract.D_MODEL)
    assert torch.equal(contract.run(sibling, x), contract.run(transformer, x))


@pytest.mark.parametrize("gated", [True, False])
def test_a_block_is_what_the_paper_writes(gated: bool) -> None:
    """Flip, run the recurrence, flip: position by position, in the notation of the paper's section 3."""
    L, D = 11, contract.D_MODEL
    block: Any = contract.build("bigs", causal=False, gated=gated, d_state=6)
    mixer, x = block.mixer, contract.draw(2, L, D)
    nn.init.normal_(mixer.D)  # ones, all alike, at first
    z = (block.norm if gated else block.norm_mixer)(x)

    def direction(which: int, z: Tensor) -> Tensor:
        half = slice(which * D, (which + 1) * D)
        u = functional.gelu(z @ mixer.enter.weight[half].T + mixer.enter.bias[half])
        A = torch.complex(mixer.real[which], mixer.frequency[which])
        C, dt = torch.view_as_complex(mixer.C[which]), mixer.log_dt[which].exp()
        state, out = torch.zeros(2, D, 6, dtype=A.dtype), []
        for t in range(L):
            state = torch.exp(dt * A) * state + (torch.exp(dt * A) - 1) / A * u[:, t, :, None]
            out.append((state @ C).real + mixer.D[which] * u[:, t])
        return torch.stack(out, 1) @ mixer.leave[which].weight.T + mixer.leave[which].bias

    ahead, back = direction(0, z), direction(1, z.flip(1)).flip(1)
    if gated:
        u, v = (functional.gelu(layer(y)) for layer, y in ((block.up, ahead * back), (block.gate, z)))
        want = x + block.out(u * v)
    else:
        routed = x + ahead + back
        want = routed + block.feedforward(block.norm_feedforward(routed))
    assert_close(contract.run(block, x), want, tolerance(torch.float64, L, 1e3))


def test_all_channels_share_one_state_space() -> None:
    narrow, wide = (bigs.StateSpaces(bigs.Config(), width, "auto") for width in (8, 32))
    own = {name: value.numel() for name, value in wide.named_parameters(recurse=False)}
    assert own == {name: value.numel() for name, value in narrow.named_parameters(recurse=False)}
    assert sum(own.values()) == 2 * (64 + 64 + 2 * 64 + 1 + 1)


@pytest.mark.parametrize("init", ["legs", "lin"])
def test_initial_state_spaces(init: Any) -> None:
    """All N eigenvalues, conjugates included where HiPPO has them; steps in their range."""
    mixer = bigs.StateSpaces(bigs.Config(init=init, d_state=4), 8, "auto")
    want = torch.tensor([0.0, 1.0, 2.0, 3.0]) * math.pi
    if init == "legs":
        half = ssm.hippo_legs(4).Lambda.imag.float()
        want = torch.cat([half, -half]).sort().values
    for direction in range(2):
        torch.testing.assert_close(mixer.frequency[direction].sort().values, want)
        torch.testing.assert_close(mixer.real[direction], torch.full((4,), -0.5))
    steps = torch.cat([bigs.StateSpaces(bigs.Config(), 2, "auto").log_dt.exp() for _ in range(20)])
    assert 0.01 <= steps.min() < 0.1 < steps.max() <= 1.0


def test_states_never_grow() -> None:
    """A real part that training pushes up counts as -1e-4."""
    mixer = bigs.StateSpaces(bigs.Config(), 8, "auto")
    found = []
    for value in (-1e-4, 0.0, 1.0):
        nn.init.constant_(mixer.real, value)
        found.append(mixer.taps(50))
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])


def test_one_learning_rate_for_all() -> None:
    assert {group.lr for group in groups(contract.build("bigs", causal=False), 0.5, 0.1)} == {0.5}


@pytest.mark.parametrize(
    "setting",
    [
        {"mixer": "convolution"},
        {"init": "inv"},
        {"d_state": 5},
        {"d_state": 0},
        {"expansion": 0},
        {"ffn": "low_rank"},
        {"gated": False, "ffn": "monarch"},
        {"heads": 0},
        {"heads": 5, "mixer": "attention"},
        {"dt_min": 2.0},
        {"dropout": 1.0},
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(backbones.BackboneError, match="got"):
        contract.build("bigs", causal=False, **setting)


def test_a_causal_block_is_refused() -> None:
    with pytest.raises(backbones.BackboneError, match="looks both ways"):
        contract.build("bigs", causal=True)
    with pytest.raises(backbones.BackboneError, match="spt-causal needs a causal backbone"):
        model.is_causal(backbones.load("bigs"), "spt-causal")


@pytest.mark.parametrize("name", ["bigs", "bigs-stacked"])
def test_dropout_acts_in_training_only(name: str) -> None:
    block, plain = (contract.build(name, False, dropout=p, **SIBLINGS.get(name, {})) for p in (0.5, 0.0))
    x = contract.draw(2, 9, contract.D_MODEL)
    assert torch.equal(contract.run(block, x), contract.run(plain, x))
    assert not torch.equal(contract.run(block.train(), x), contract.run(plain, x))
