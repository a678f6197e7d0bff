"""What S4, DSS, DLR, LRU and SGConv promise beyond the contract, and the contract under their other settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import contract
from noscratch import backbones
from noscratch.backbones import dlr, lru
from noscratch.kernels import KernelError, ssm
from noscratch.optim import groups
from tolerances import assert_close, tolerance

VARIANTS: dict[str, dict[str, Any]] = {
    "s4-random": {"init": "random"},
    "s4-shared": {"n_ssm": 2, "d_state": 4},
    "s4d-inv": {"init": "inv"},
    "s4d-lin": {"init": "lin"},
    "s4d-bilinear": {"discretization": "bilinear", "train_b": True},
    "dss-lin": {"init": "lin"},
    "dss-random": {"init": "random"},
    "dss-softmax": {"variant": "softmax"},
    "dss-softmax-random": {"variant": "softmax", "init": "random"},
    "dlr-random": {"init": "random", "d_state": 64},
    "lru-random": {"init": "random"},
    "lru-ring": {"r_min": 0.9, "r_max": 0.999, "max_phase": 0.3, "d_state": 32},
    "sgconv-cos": {"init": "cos", "decay_min": 1.0, "decay_max": 3.0},
    "sgconv-single": {"kernel_dim": 1},
    "sgconv-wide": {"kernel_dim": 200},
}
"""Names of the form that params.yaml gives to a file under other settings."""

CHECKS = (
    contract.ignores_padding,
    contract.looks_where_it_may,
    contract.every_parameter_gets_a_gradient,
    contract.equivalent_forms_agree,
    contract.backends_agree,
)
MIXERS = ("s4", "s4d", "dss", "dlr", "lru", "sgconv")
UNSTRUCTURED = ("s4", "s4d", "dss", "dlr", "lru")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", VARIANTS)
def test_other_settings_keep_the_contract(
    monkeypatch: pytest.MonkeyPatch, name: str, check: Callable[[str], None]
) -> None:
    monkeypatch.setitem(contract.OVERRIDES, name, VARIANTS[name])
    check(name)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("s4", {"d_state": 5}),
        ("s4", {"n_ssm": -1}),
        ("s4", {"n_ssm": 3}),
        ("s4", {"init": "legt"}),
        ("s4", {"dt_min": 0.2}),
        ("dss", {"variant": "sigmoid"}),
        ("dss", {"d_state": 0}),
        ("dss", {"dt_min": 0.0}),
        ("dlr", {"init": "legs"}),
        ("dlr", {"d_state": 0}),
        ("lru", {"r_min": 0.9, "r_max": 0.9}),
        ("lru", {"r_max": 1.1}),
        ("lru", {"max_phase": 0.0}),
        ("lru", {"d_state": 0}),
        ("sgconv", {"kernel_dim": 0}),
        ("sgconv", {"decay_min": 3.0}),
        ("sgconv", {"dropout": 1.0}),
    ],
)
def test_impossible_settings_are_refused(name: str, setting: dict[str, Any]) -> None:
    with pytest.raises(backbones.BackboneError, match="got"):
        contract.build(name, causal=True, **setting)


@pytest.mark.parametrize("name", UNSTRUCTURED)
def test_random_draws_every_parameter_of_the_mixer_and_no_other(name: str) -> None:
    block = contract.build(name, causal=False, init="random", d_model=64)
    for parameter, value in block.mixer.named_parameters():
        # Standard deviation 0.1, known from n draws to 0.1 / sqrt(2 n).
        assert abs(value.std().item() - 0.1) < 5 * 0.1 / math.sqrt(2 * value.numel()), parameter
    assert torch.equal(block.norm.weight, torch.ones(64, dtype=torch.float64))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", MIXERS)
def test_autocast_leaves_the_mixer_in_float32(name: str, causal: bool) -> None:
    """To the bit: taps in bfloat16 would be wrong in their third digit, at every position."""
    mixer = contract.build(name, causal, dtype=torch.float32).mixer
    u = contract.draw(2, contract.LENGTH, contract.D_MODEL, dtype=torch.float32)
    want = mixer(u)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mixer(u), want)


@pytest.mark.parametrize(
    ("name", "lr", "own", "decayed"),
    [
        ("s4", 0.001, {"log_dt", "log_decay", "frequency", "P", "B"}, {"C"}),
        ("dss", 0.001, {"log_dt", "real", "frequency", "C"}, set()),
        ("dlr", 0.0001, {"a", "w", "C"}, set()),
        ("lru", 0.001, {"nu", "theta"}, {"B", "C"}),
    ],
)
def test_recurrences_have_their_own_learning_rate(name: str, lr: float, own: set[str], decayed: set[str]) -> None:
    rates = {(0.01, 0.05): decayed, (lr, 0.0): own, (0.01, 0.0): {"D"}}
    for group in groups(contract.build(name, causal=True).mixer, lr=0.01, weight_decay=0.05):
        assert set(group.parameters) == rates[group.lr, group.weight_decay]


def parameters(name: str, causal: bool, d_model: int, **settings: Any) -> int:
    """Of one block, counted without making it."""
    backbone = backbones.load(name)
    with torch.device("meta"):
        block = backbone.build(backbones.configure(backbone, settings), d_model, 1024, causal)
    return sum(parameter.numel() for parameter in block.parameters())


def test_s4d_has_the_published_number_of_parameters() -> None:
    """state-spaces/s4, example.py: about 200,000 for 4 causal layers of width 128 on three-channel sequential CIFAR."""
    around = (3 * 128 + 128) + (128 * 10 + 10)  # linear encoder and decoder
    assert 4 * parameters("s4d", True, 128) + around == 201_482


@pytest.mark.parametrize("directions", [1, 2])
def test_sizes_follow_from_the_settings(directions: int) -> None:
    H, L = 16, 1024
    mix = 2 * H + (H * 2 * H + 2 * H)  # norm; gate
    sizes: dict[str, tuple[dict[str, Any], int]] = {
        "s4": ({"d_state": 8}, H + 4 * H * 2 + 2 * (4 * H * 2) + directions * 4 * H * 2 + H),
        "s4-shared": ({"d_state": 8, "n_ssm": 2}, H + 4 * 2 * 2 + 2 * (4 * 2 * 2) + directions * 4 * H * 2 + H),
        "dss": ({"d_state": 8}, H + 8 * 2 + directions * 8 * H * 2 + H),
        "dlr": ({"d_state": 8}, 8 * 2 + directions * 8 * H * 2 + H),
        "lru": ({"d_state": 8}, 8 * 2 + 8 * H * 2 + directions * 8 * H * 2 + H),
        "sgconv": ({"kernel_dim": 4}, directions * (1 + int(math.log2(L / 4))) * 4 * H + H),
    }
    for name, (settings, mixer) in sizes.items():
        assert parameters(name, directions == 1, H, **settings) == mixer + mix, name


# S4


def test_s4_starts_as_hippo_legs() -> None:
    """Its taps are those of the dense LegS system, whose B is whole."""
    N, taps = 8, 12
    mixer = contract.build("s4", causal=True, d_state=N).mixer
    legs = ssm.hippo_legs(N)
    C = 2 * (torch.view_as_complex(mixer.C[0]) @ legs.V.conj().T).real
    rows = []
    for step, c in zip(mixer.log_dt.exp(), C, strict=True):
        half, identity = step / 2 * legs.A, torch.eye(N, dtype=torch.float64)
        state = torch.linalg.solve(identity - half, step * legs.B)
        row = []
        for _ in range(taps):
            row.append(c @ state)
            state = torch.linalg.solve(identity - half, (identity + half) @ state)
        rows.append(torch.stack(row))
    # Parameters are drawn in float32; LegS is far from normal, and its output a small rest of large terms.
    assert_close(mixer.kernel(taps)[0], torch.stack(rows), tolerance(torch.float32, taps, 10.0))


def test_s4_heads_share_systems() -> None:
    mixer = contract.build("s4", causal=True, n_ssm=2, init="random").mixer
    dt, Lambda, P, B = mixer.system()
    assert dt.unique().numel() == contract.D_MODEL
    for part in (Lambda, P[0], B):
        assert torch.equal(part[2:], part[:-2])
        assert not torch.equal(part[0], part[1])


# DSS


def test_dss_starts_from_skew_hippo() -> None:
    """N eigenvalues of positive imaginary part; by hand for N = 1: HiPPO of size 2 has -1/2 +- i sqrt(3) / 2."""
    _, Lambda = contract.build("dss", causal=True, d_state=1).mixer.system()
    assert_close(Lambda, torch.tensor([-0.5 + 0.5j * math.sqrt(3)]).to(Lambda), tolerance(torch.float32))
    _, Lambda = contract.build("dss", causal=True, d_state=3, init="lin").mixer.system()
    assert_close(Lambda, torch.tensor([-0.5, -0.5 + 1j * math.pi, -0.5 + 2j * math.pi]).to(Lambda), 1e-6)


def test_dss_softmax_is_over_max_length() -> None:
    mixer = contract.build("dss", causal=False, variant="softmax", max_length=32).mixer
    whole = mixer.kernel(32)
    assert torch.equal(mixer.kernel(5), whole[..., :5])
    W, (_, Lambda) = torch.view_as_complex(mixer.C), mixer.system()
    assert_close(whole.sum(-1), (W / Lambda).real.sum(-1), tolerance(torch.float64, 32, contract.CONDITION))
    with pytest.raises(backbones.BackboneError, match="max_length = 32 positions; got 33"):
        mixer.kernel(33)


# DLR


def test_dlr_starts_all_around_the_circle() -> None:
    config = dlr.Config(d_state=8)
    mixer = dlr.DLR(config, heads=512, causal=True, backend="auto")
    torch.testing.assert_close(mixer.w.detach(), math.pi / 4 * torch.arange(8))
    steps = 2 * mixer.a.detach().square()
    assert config.dt_min * (1 - 1e-5) <= steps.min()
    assert steps.max() <= config.dt_max * (1 + 1e-5)
    assert abs(mixer.C.std().item() * 8 - 1) < 5 / math.sqrt(2 * mixer.C.numel())


# LRU


def test_lru_starts_uniformly_on_its_ring() -> None:
    mixer = lru.LRU(lru.Config(d_state=4096, r_min=0.5, r_max=0.9, max_phase=1.0), 4, causal=True, backend="auto")
    radius, phase = torch.exp(-mixer.nu.detach().exp()), mixer.theta.detach().exp()
    assert radius.min() >= 0.5 - 1e-6
    assert radius.max() <= 0.9 + 1e-6
    assert phase.min() > 0
    assert phase.max() <= 1.0
    # The mean of n uniform numbers is known to their range / sqrt(12 n).
    assert abs(radius.square().mean() - (0.25 + 0.81) / 2) < 5 * 0.56 / math.sqrt(12 * 4096)
    assert abs(phase.mean() - 0.5) < 5 / math.sqrt(12 * 4096)


def test_lru_reads_the_reversed_sequence_in_the_other_direction() -> None:
    block, mirror = (contract.build("lru", causal=False, d_state=8) for _ in range(2))
    mirror.mixer.C = nn.Parameter(block.mixer.C.detach().flip(0))
    x = contract.draw(2, contract.LENGTH, contract.D_MODEL)
    bound = tolerance(torch.float64, contract.LENGTH, contract.CONDITION)
    assert_close(contract.run(mirror, x.flip(1)).flip(1), contract.run(block, x), bound)


# SGConv


def test_sgconv_divides_by_the_norm_of_its_first_kernel() -> None:
    mixer = contract.build("sgconv", causal=False, max_length=64).mixer
    first = mixer.kernel(64)
    assert_close(torch.linalg.vector_norm(first, dim=-1), torch.ones(2, contract.D_MODEL), 1e-6)
    with torch.no_grad():
        mixer.W *= 3.0
    assert_close(mixer.kernel(64), 3.0 * first, tolerance(torch.float64))
    twin = contract.build("sgconv", causal=False, max_length=64, seed=1).mixer
    twin.load_state_dict(mixer.state_dict())
    assert torch.equal(twin.kernel(64), mixer.kernel(64))


@pytest.mark.parametrize(
    ("max_length", "d", "segments"), [(1, 4, 1), (4, 4, 1), (5, 4, 2), (8, 4, 2), (9, 4, 3), (1000, 1, 11)]
)
def test_sgconv_has_as_many_segments_as_it_needs(max_length: int, d: int, segments: int) -> None:
    mixer = contract.build("sgconv", causal=True, max_length=max_length, kernel_dim=d).mixer
    assert len(mixer.W) == segments
    assert mixer.kernel(max_length).shape == (1, contract.D_MODEL, max_length)


def test_sgconv_decays_by_a_factor_of_its_own_in_each_head() -> None:
    mixer = contract.build("sgconv", causal=True, max_length=32, kernel_dim=8, decay_min=1.0, decay_max=4.0).mixer
    with torch.no_grad():
        mixer.W.fill_(1.0)
    taps = mixer.kernel(32)[0]
    for head, decay in enumerate(torch.linspace(1.0, 4.0, contract.D_MODEL)):
        assert_close(taps[head, 0] / taps[head, 8], decay, 1e-6)
        assert_close(taps[head, 8] / taps[head, 16], decay, 1e-6)


def test_sgconv_ends_where_its_kernel_ends() -> None:
    block = contract.build("sgconv", causal=True, max_length=3, kernel_dim=3)
    x = contract.draw(1, 4, contract.D_MODEL)
    assert torch.isfinite(backbones.recurrent(block, x[:, :3])).all()
    with pytest.raises(backbones.BackboneError, match="max_length = 3 taps; got position 4"):
        backbones.recurrent(block, x)
    with pytest.raises(KernelError, match="got length 4"):
        contract.run(block, x)
