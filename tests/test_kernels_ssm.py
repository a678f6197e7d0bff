"""Laws of the state-space kernels. Where Re A <= 0, |Abar^l| <= 1 and |K_l| <= sum |C Bbar|: errors scale with that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import strategies as own
from laws import run, wide
from noscratch.kernels import KernelError, _krylov, ssm
from noscratch.kernels._vandermonde import block_length, phi1, powers
from noscratch.kernels.conv import long_conv
from tolerances import GOLDEN, assert_close, tolerance

KERNELS = ("s4d-zoh", "s4d-bilinear", "dss-exp", "dss-softmax", "dlr", "s4")
CONSISTENT = tuple(kernel for kernel in KERNELS if kernel != "dss-softmax")
LAST = {"s4d-zoh": "C", "s4d-bilinear": "C", "dss-exp": "W", "dss-softmax": "W", "dlr": "W", "s4": "C"}


class System(NamedTuple):
    kernel: str
    parameters: tuple[Tensor, ...]
    L: int

    @property
    def dtype(self) -> torch.dtype:
        return self.parameters[0].dtype

    def call(self, *parameters: Tensor, L: int | None = None, backend: str = "fast") -> Tensor:
        name, _, option = self.kernel.partition("-")
        options = (option,) if option else ()
        kernel: Callable[..., Tensor] = getattr(ssm, f"{name}_kernel")
        return kernel(*(parameters or self.parameters), L or self.L, *options, backend=backend)

    def exact(self) -> Tensor:
        """The reference in float64 on the very same parameters."""
        return self.call(*map(wide, self.parameters), backend="reference")

    def recurrence(self) -> tuple[Callable[..., tuple[Tensor, Tensor]], tuple[Tensor, ...]]:
        name, _, option = self.kernel.partition("-")
        step = getattr(ssm, f"{name}_step")
        last = self.parameters[-1]
        if name == "s4d":
            dt, A, B, _ = self.parameters
            return step, (*ssm.discretize(dt, A, B, option), last)
        if name == "dss":
            dt, Lambda, _ = self.parameters
            return step, (*ssm.dss_discretize(dt, Lambda, self.L, option), last)
        if name == "dlr":
            return step, (ssm.dlr_discretize(*self.parameters[:2]), last)
        return step, (*ssm.s4_discretize(*self.parameters[:4]), last)

    def majorant(self) -> float:
        """A bound of |K_l|: sum |C| |Bbar| or the product of their norms, and for the softmax the largest weights."""
        name = self.kernel.partition("-")[0]
        p = [wide(x) for x in self.parameters]
        c = p[-1].abs()
        if name == "s4d":
            return 2 * (c * (p[0][:, None] * p[2]).abs()).sum(-1).max().item()
        if name == "dlr":
            return c.sum(-1).max().item()
        if name == "s4":
            b = (p[0][:, None] * p[3]).abs().expand_as(c)
            return 4 * (c.square().sum(-1) * b.square().sum(-1)).sqrt().max().item()
        z = p[0][:, None] * p[1]
        if self.kernel == "dss-exp":
            return (c * p[0][:, None]).sum(-1).max().item()
        z = torch.where(z.real > 0, -z, z)
        return (c * (phi1(z) / (p[1] * self.L * phi1(self.L * z))).abs()).sum(-1).max().item()

    def slopes(self) -> tuple[float, ...]:
        """Bounds of |dK_l / dparameter|: d (Abar^l) <= l |d (dt A)|, and dt C B stands before every power."""
        sizes = [wide(p).abs().max().item() for p in self.parameters]
        n, L, C = self.parameters[-1].shape[-1], self.L + 1, sizes[-1]
        if self.kernel == "dlr":
            a, _, _ = sizes
            return 2 * a * L * C, L * C, 1.0
        dt, A = sizes[:2]
        if self.kernel == "dss-exp":
            return n * L * C * (1 + dt * A), L * dt**2 * C, dt
        if self.kernel == "dss-softmax":
            z = (wide(self.parameters[0])[:, None] * wide(self.parameters[1])).flatten()
            z = torch.where(z.real > 0, -z, z)
            spread = (
                self.L
                * ((phi1(self.L * (z.real + 0j)) * phi1(z)) / (phi1(self.L * z) * phi1(z.real + 0j))).abs().max().item()
            )
            weight = self.majorant() / max(wide(self.parameters[2]).abs().min().item(), 1e-9)
            smallest = self.parameters[1].abs().min().item()
            return n * weight * C * L * spread * A, weight * C * (dt * spread + 1 / smallest), weight
        B = n**0.5 * sizes[-2]
        if self.kernel == "s4":
            C, P = n**0.5 * C, sizes[2] * self.parameters[2].shape[0] * n**0.5
            to_A = 4 * L * dt**2 * C * B
            return 4 * L * C * B * (1 + dt * (A + 2 * P**2)), to_A, 4 * P * to_A, 4 * dt * C, 4 * dt * B
        return 2 * n * L * C * B * (1 + dt * A), 2 * L * dt**2 * C * B, 2 * dt * C, 2 * dt * B

    def bound(self, steps: bool = False) -> float:
        """Relative to the majorant. Powers have errors of l eps64; a recurrence rounds Abar to its own dtype."""
        slow = steps or self.dtype == torch.float64
        condition = float(self.L if slow else 1)
        if self.kernel == "dss-softmax" and slow:  # the sum of weights cancels where e^{z L} comes near 1
            z = self.L * wide(self.parameters[0])[:, None] * wide(self.parameters[1])
            condition *= (1 + z.abs() / (1 - torch.exp(-z.real.abs()))).max().item()
        if self.kernel == "s4" and slow:  # both sides solve with I - dt A / 2
            dt, A, P = (wide(p).abs() for p in self.parameters[:3])
            condition *= 1 + dt.max().item() * (A.max().item() + 2 * P.square().sum().item())
        return tolerance(self.dtype, self.L, condition)


@st.composite
def systems(
    draw: st.DrawFn,
    kernels: tuple[str, ...] = KERNELS,
    most: int = 140,
    low: float = 1e-7,
    high: float = 10.0,
    dtype: torch.dtype | None = None,
) -> System:
    kernel, make = draw(own.choice(kernels)), own.Source(draw, dtype)
    L, H, n = draw(own.lengths(most)), draw(own.sizes(3)), draw(own.sizes(5))
    C = make.complexes(H, n)
    shape = (n,) if draw(st.booleans()) else (H, n)
    if kernel == "dlr":
        return System(kernel, (make.reals(n), 2 * make.reals(n), C), L)
    dt, A, B = make.steps(H, low=low, high=high), make.spectra(*shape), make.complexes(*shape)
    if kernel == "dss-softmax":
        sign = draw(own.choice((-1.0, 1.0)))
        lam = torch.complex(sign * (0.5 + B.real.abs()), A.imag)
        lam[..., ::2] = -lam[..., ::2].conj()
        return System(kernel, (dt, lam, C), L)
    if kernel == "dss-exp":
        return System(kernel, (dt, A, C), L)
    if kernel == "s4":
        scale = draw(own.choice((0.0, 0.5, 8.0)))
        P = scale * make.complexes(draw(own.sizes(3)), *shape)
        return System(kernel, (dt, A, P, B, C), L)
    return System(kernel, (dt, A, B, C), L)


def simulate(system: System, u: Tensor) -> Tensor:
    """u (batch, H, L) -> y, one step at a time."""
    step, parameters = system.recurrence()
    C = parameters[-1]
    state = C.new_zeros(u.shape[0], *C.shape)
    out = []
    for t in range(u.shape[-1]):
        y, state = step(u[..., t], state, *parameters)
        out.append(y)
    return torch.stack(out, -1)


@given(systems())
def test_fast_is_the_recurrence(system: System) -> None:
    K = system.call()
    assert K.dtype == system.dtype
    assert_close(K, system.exact(), system.bound(), system.majorant())


@given(systems(most=70), own.seeds())
def test_gradients_are_those_of_the_recurrence(system: System, seed: int) -> None:
    K = system.call()
    g = own.normal(seed, *K.shape, dtype=K.dtype)
    got = run(system.call, system.parameters, g)
    want = run(lambda *p: system.call(*p, backend="reference"), [wide(p) for p in system.parameters], wide(g))
    scales = (system.majorant(), *(g.abs().sum().item() * slope for slope in system.slopes()))
    for i, (x, y, scale) in enumerate(zip(got, want, scales, strict=True)):
        assert_close(x, y, system.bound(), scale, f"value or gradient {i}")


@given(systems(), st.integers(1, 3), own.seeds())
def test_convolution_is_the_recurrence(system: System, batch: int, seed: int) -> None:
    K = system.call()
    growth = torch.ones(())
    if system.kernel == "dss-softmax":  # states that grow need e^{dt Lambda L} within the dtype
        growth = torch.exp((wide(system.parameters[0])[:, None] * wide(system.parameters[1])).real.max() * system.L)
        if growth > 1e3:
            return
    u = own.normal(seed, batch, *K.shape, dtype=K.dtype)
    scale = system.majorant() * u.abs().sum(-1).max().item() * max(1.0, growth.item())
    assert_close(simulate(system, u), long_conv(u, K, backend="reference"), system.bound(steps=True), scale)


@given(systems(CONSISTENT), own.places())
def test_a_shorter_kernel_is_the_start_of_a_longer(system: System, place: int) -> None:
    M = place % system.L + 1
    assert_close(system.call(L=M), system.call()[..., :M], system.bound(), system.majorant())


def test_the_softmax_normalizes_over_its_length() -> None:
    dt, lam = torch.tensor([0.1]), torch.tensor([-0.5 + 1j, 0.3 - 2j])
    W = torch.tensor([[1.0 + 1j, 2.0 - 1j]])
    long, short = (ssm.dss_kernel(dt, lam, W, L, "softmax") for L in (20, 10))
    assert (long[:, :10] - short).abs().max() > 0.1 * short.abs().max()


@given(systems(("dss-softmax",)))
def test_the_softmax_sums_to_its_weights(system: System) -> None:
    _, lam, W = map(wide, system.parameters)
    scale = system.majorant() * system.L
    assert_close(wide(system.call()).sum(-1), (W / lam).sum(-1).real, system.bound(), scale)


@given(systems(most=70), st.sampled_from(ssm.KERNEL_BACKENDS))
def test_outputs_share_one_system(system: System, backend: str) -> None:
    *parameters, C = system.parameters
    both = torch.stack((C, 2j * C.flip(0)))
    want = torch.stack([system.call(*parameters, c, backend=backend) for c in both])
    got = system.call(*parameters, both, backend=backend)
    assert_close(got, want, system.bound(), 2 * C.shape[0] * majorant_all(system))


def majorant_all(system: System) -> float:
    """The majorant with every C of the system at every head."""
    *parameters, C = system.parameters
    largest = C.abs().amax(0).expand_as(C).to(C.dtype)
    return System(system.kernel, (*parameters, largest), system.L).majorant()


@given(systems(), st.floats(-4, 4, width=16))
def test_linear_in_c(system: System, factor: float) -> None:
    *parameters, C = system.parameters
    other = C.flip(-1).conj().resolve_conj()
    scale = (
        (abs(factor) + 1)
        * C.shape[-1]
        * majorant_all(System(system.kernel, (*parameters, C.abs() + other.abs() + 0j), system.L))
    )
    want = factor * system.call() + system.call(*parameters, other)
    assert_close(system.call(*parameters, factor * C + other), want, 2 * system.bound(), scale)


@given(systems())
def test_nothing_in_nothing_out(system: System) -> None:
    *parameters, C = system.parameters
    assert torch.equal(system.call(*parameters, 0 * C), torch.zeros(C.shape[0], system.L, dtype=system.dtype))


def diagonal(low: float, high: float) -> st.SearchStrategy[tuple[Tensor, Tensor, Tensor]]:
    """dt (3,), A and B (3, 4), float64."""
    return own.made(
        lambda make: (make.steps(3, low=low, high=high), make.spectra(3, 4), make.complexes(3, 4)), torch.float64
    )


@given(diagonal(1e-7, 10.0), st.sampled_from(("zoh", "bilinear")))
def test_discretized_systems_are_stable(x: tuple[Tensor, Tensor, Tensor], method: str) -> None:
    dt, A, _ = x
    Abar, _ = ssm.discretize(dt, A, torch.ones_like(A), method)
    assert Abar.abs().max() <= 1 + 4 * torch.finfo(dt.dtype).eps


@given(systems(("s4",), most=1, dtype=torch.float64))
def test_s4_never_expands_a_state(system: System) -> None:
    Abar, _ = ssm.s4_discretize(*system.parameters[:4])
    assert torch.linalg.matrix_norm(Abar, 2).max() <= 1 + tolerance(system.dtype)


@given(diagonal(1e-7, 10.0))
def test_zoh_is_two_half_steps(x: tuple[Tensor, Tensor, Tensor]) -> None:
    dt, A, B = x
    Abar, Bbar = ssm.discretize(dt, A, B, "zoh")
    half_A, half_B = ssm.discretize(dt / 2, A, B, "zoh")
    bound = tolerance(dt.dtype, 1, 1 + (dt[:, None] * A).abs().max().item())
    assert_close(half_A * half_A, Abar, bound, 1.0)
    assert_close((1 + half_A) * half_B, Bbar, bound, (dt[:, None] * B).abs().max().item())


@given(diagonal(1e-7, 1e-4))
def test_the_two_rules_agree_at_small_steps(x: tuple[Tensor, Tensor, Tensor]) -> None:
    dt, A, B = x
    z = (dt[:, None] * A).abs().max().item()
    zoh, bilinear = (ssm.discretize(dt, A, B, method) for method in ("zoh", "bilinear"))
    assert_close(bilinear[0], zoh[0], z**3 / 4 + tolerance(dt.dtype), 1.0)
    assert_close(bilinear[1], zoh[1], z**2 + tolerance(dt.dtype), (dt[:, None] * B).abs().max().item())


@given(systems(("s4d-bilinear",)), st.integers(1, 3))
def test_s4_without_its_low_rank_is_s4d(system: System, rank: int) -> None:
    dt, A, B, C = system.parameters
    got = ssm.s4_kernel(dt, A, torch.zeros(rank, *A.shape, dtype=A.dtype), B, C, system.L)
    assert_close(got, system.call(), system.bound(), 2 * system.majorant())


@given(systems(("s4",)))
def test_two_ranks_of_the_same_direction_are_one(system: System) -> None:
    dt, A, P, B, C = system.parameters
    split = torch.cat((0.6 * P[:1], 0.8 * P[:1]))
    got = ssm.s4_kernel(dt, A, split, B, C, system.L)
    moved = system.L * dt.max().item() * (split.abs().square().sum().item() * 4 + 1)  # 0.6 and 0.8 round
    want = ssm.s4_kernel(dt, A, P[:1], B, C, system.L)
    assert_close(got, want, tolerance(system.dtype, system.L, moved), system.majorant())


@given(st.integers(1, 70))
@example(1)
def test_powers(count: int) -> None:
    z = torch.polar(torch.tensor([1.0, 0.9, 0.0]).double(), torch.tensor([3.0, -0.1, 0.0]).double())
    want = torch.ones(count, 3, dtype=torch.complex128)
    for k in range(1, count):
        want[k] = want[k - 1] * z
    assert_close(powers(z, count), want, tolerance(torch.float64, 1, count))


@given(st.integers(1, 10**6))
def test_blocks_are_the_least_power_of_two_at_or_above_the_root(length: int) -> None:
    M = block_length(length)
    assert M.bit_count() == 1
    assert length <= M * M
    assert M == 1 or length > (M // 2) ** 2


@given(st.floats(-40, 2), own.seeds())
def test_phi1_solves_its_equation(exponent: float, seed: int) -> None:
    """phi1(2 z) = phi1(z) (1 + e^z) / 2, and phi1' = (e^z - phi1) / z where z is not small."""
    z = own.normal(seed, 8, dtype=torch.complex128)
    z = 2.0**exponent * torch.complex(-z.real.abs(), z.imag)
    assert_close(phi1(2 * z), phi1(z) * (1 + torch.exp(z)) / 2, tolerance(torch.float64, 1, z.abs().max().item()), 1.0)
    x = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(phi1(x), x, torch.ones_like(z))
    want = (torch.exp(z) - phi1(z)) / z
    assert_close(slope.conj(), want, tolerance(torch.float64, 1, 1 / z.abs().min().item()), 1.0)
    assert_close(slope.conj(), 0.5 + z / 3, 1e-12 + z.abs().max().item() ** 2, 1.0)


def test_phi1_at_zero() -> None:
    z = torch.zeros(1, dtype=torch.complex128, requires_grad=True)
    value = phi1(z)
    assert value.item() == 1
    assert torch.autograd.grad(value, z, torch.ones_like(z))[0].item() == 0.5


CASES = [
    *((f"s4d-{m}", {"A": (2, 3), "B": (2, 3), "C": (2, 3)}) for m in ("zoh", "bilinear")),
    ("s4d-zoh", {"A": (3,), "B": (3,), "C": (2, 2, 3)}),
    *((f"dss-{v}", {"A": (3,), "C": (2, 3)}) for v in ("exp", "softmax")),
    ("dlr", {"C": (2, 3)}),
    ("s4", {"A": (2, 3), "P": (1, 2, 3), "B": (2, 3), "C": (2, 3)}),
    ("s4", {"A": (3,), "P": (2, 3), "B": (3,), "C": (2, 2, 3)}),
]


@pytest.mark.parametrize("L", [1, 5, 16, 23])
@pytest.mark.parametrize(("kernel", "shapes"), CASES)
def test_gradcheck(kernel: str, shapes: dict[str, tuple[int, ...]], L: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_krylov, "ROWS", 4)
    monkeypatch.setattr(_krylov, "STEPS", 2)
    generator = torch.Generator().manual_seed(L)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.complex128)

    parameters = {name: normal(*shape) for name, shape in shapes.items()}
    if "A" in parameters:
        A = parameters["A"]
        real = A.real if kernel == "dss-softmax" else -A.real.abs()
        parameters = {"dt": 0.05 + 0.3 * torch.rand(2, generator=generator).double(), **parameters}
        parameters["A"] = torch.complex(real, 3 * A.imag)
    else:
        parameters = {"a": normal(3).real.clone(), "w": normal(3).real.clone(), **parameters}
    inputs = [p.requires_grad_() for p in parameters.values()]
    system = System(kernel, tuple(inputs), L)
    assert torch.autograd.gradcheck(system.call, inputs, fast_mode=True)


@given(systems(most=17))
def test_autocast_changes_nothing(system: System) -> None:
    u = torch.ones(1, system.parameters[-1].shape[0], 3, dtype=system.dtype)

    def everything() -> tuple[Tensor, ...]:
        return *run(system.call, system.parameters, K), system.call(backend="reference"), simulate(system, u)

    K = system.call()
    want = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = everything()
    for x, y in zip(got, want, strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


@pytest.mark.parametrize("kernel", KERNELS)
def test_float32_keeps_its_digits_at_length(kernel: str) -> None:
    """Undamped modes and a prime length: a phase l dt Im A taken in float32 would be wrong by 1e-3."""
    L, H, n = 4099, 2, 4
    generator = torch.Generator().manual_seed(0)
    B, C, P = torch.randn(3, H, n, dtype=torch.complex64, generator=generator)
    A = torch.complex(torch.full((n,), -1e-6), 1 + 10.0 * torch.arange(n))
    dt = torch.tensor([0.05, 0.3])
    if kernel == "dlr":
        parameters = (torch.full((n,), 1e-4), 0.3 + torch.arange(n), C)
    elif kernel == "s4":
        parameters = (dt, A, P[None], B, C)
    elif kernel == "dss-softmax":
        parameters = (dt, A + torch.tensor([-0.1, 0.1, -2.0, 2.0]), C)
    else:
        parameters = (dt, A, B, C) if kernel.startswith("s4d") else (dt, A, C)
    system = System(kernel, parameters, L)
    assert_close(system.call(), system.exact(), tolerance(torch.float32, L), system.majorant())


class Factors(TorchDispatchMode):
    """Notes what matrix products are of."""

    def __init__(self, found: list[Tensor]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.bmm.default:
            self.found += [factor.clone() for factor in args]
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernel", ["s4d-zoh", "s4d-bilinear", "dss-exp", "dlr", "s4"])
def test_decayed_powers_end_in_zero(kernel: str) -> None:
    """No product is of subnormal numbers, what the backward pass multiplies by and the kernel hold none, where modes
    decay past float32's range: all pass through the subnormal ones, which processors compute a hundred times slower."""
    L, n = 8192, 16
    legs, dt = ssm.hippo_legs(2 * n), torch.tensor([0.02, 0.1])
    Lambda, B, P = (x.to(torch.complex64) for x in (legs.Lambda, legs.B_t, legs.P_t))
    A = torch.complex(torch.full((n,), -0.5), 1.0 + torch.arange(n))
    C = torch.randn(2, n, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    parameters = {
        "s4": (dt, Lambda, P[None], B, C),
        "dss-exp": (dt, A, C),
        "dlr": ((0.05 * -A.real).sqrt(), 0.05 * A.imag, C),
    }.get(kernel, (dt, A, B, C))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.detach()) or x, lambda x: x), Factors(kept):
        K = System(kernel, tuple(p.requires_grad_() for p in parameters), L).call()
    reals = [torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in (*kept, K.detach())]
    assert all(torch.equal(x, torch.where(x.abs() < torch.finfo(x.dtype).tiny, 0, x)) for x in reals)
    assert (K[:, -1] == 0).any()


@pytest.mark.parametrize(("rows", "steps"), [(1, 2), (2, 64), (8, 3), (64, 2)])
@pytest.mark.parametrize("rank", [1, 2])
def test_blocking_changes_nothing(rank: int, rows: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_krylov, "ROWS", rows)
    monkeypatch.setattr(_krylov, "STEPS", steps)
    generator = torch.Generator().manual_seed(rank)
    A, B, C = torch.randn(3, 2, 3, dtype=torch.complex128, generator=generator)
    P = torch.randn(rank, 2, 3, dtype=torch.complex128, generator=generator)
    dt = torch.tensor([0.1, 0.5], dtype=torch.float64)
    system = System("s4", (dt, torch.complex(-A.real.abs(), A.imag), P, B, C), 137)
    g = torch.randn(2, system.L, dtype=torch.float64, generator=generator)
    got = run(system.call, system.parameters, g)
    want = run(lambda *p: system.call(*p, backend="reference"), system.parameters, g)
    for x, y in zip(got, want, strict=True):
        assert_close(x, y, system.bound())


@pytest.mark.parametrize(("kernel", "L"), [("s4d-zoh", 4096), ("dss-softmax", 4096), ("dlr", 1024), ("s4", 4096)])
def test_nothing_of_the_size_of_all_states_is_kept(kernel: str, L: int) -> None:
    H, n = 2, 256 if kernel == "dlr" else 32
    A = torch.complex(-torch.ones(n) / 2, torch.arange(n) + 0.5)
    C = torch.ones(H, n, dtype=torch.complex64)
    dt = torch.full((H,), 0.01)
    parameters = {
        "s4d-zoh": (dt, A, torch.ones_like(A), C),
        "dss-softmax": (dt, A, C),
        "dlr": (0.01 * torch.ones(n), torch.arange(n) / n, C),
        "s4": (dt, A, torch.ones(1, n, dtype=C.dtype), torch.ones_like(A), C),
    }[kernel]
    kept = 0

    def keep(x: Tensor) -> Tensor:
        nonlocal kept
        kept += x.numel() * x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        K = System(kernel, tuple(p.requires_grad_() for p in parameters), L).call()
    assert K.requires_grad
    assert 0 < kept < C.numel() * L * C.element_size() / 4


@pytest.mark.parametrize("kernel", KERNELS)
def test_errors_name_the_rule(kernel: str) -> None:
    n = torch.ones(3)
    z, C = torch.complex(-n, n), torch.ones(2, 3, dtype=torch.complex64)
    parameters = {"s4d": (n[:2], z, z, C), "dss": (n[:2], z, C), "dlr": (n, n, C), "s4": (n[:2], z, z[None], z, C)}
    system = System(kernel, parameters[kernel.partition("-")[0]], 4)
    with pytest.raises(KernelError, match="reference, fast"):
        system.call(backend="triton")
    with pytest.raises(KernelError, match="length"):
        system.call(L=-1)
    with pytest.raises(KernelError, match=r"end in|one dt"):
        system.call(*system.parameters[:-1], C[..., :2])
    with pytest.raises(KernelError, match=r"heads, states"):
        system.call(*system.parameters[:-1], C[0])
    if "-" in kernel:
        with pytest.raises(KernelError, match="'other'"):
            System(kernel.partition("-")[0] + "-other", system.parameters, 4).call()


@pytest.mark.parametrize("N", [-2, 0, 1, 7])
def test_hippo_needs_pairs(N: int) -> None:
    with pytest.raises(KernelError, match="even"):
        ssm.hippo_legs(N)


@pytest.mark.parametrize("N", [2, 4, 8, 64, 256])
def test_hippo_is_normal_plus_low_rank(N: int) -> None:
    h = ssm.hippo_legs(N)
    V = torch.cat((h.V, h.V.conj()), 1)
    Lambda = torch.cat((h.Lambda, h.Lambda.conj()))
    bound = tolerance(torch.float64, N, N * N / torch.pi)  # the largest eigenvalue: eigh is exact to eps |A|
    assert_close((V * Lambda) @ V.mH - h.P[:, None] * h.P, h.A.to(V.dtype), bound)
    assert_close(V.mH @ V, torch.eye(N, dtype=V.dtype), bound)
    assert_close(h.V @ h.B_t + (h.V @ h.B_t).conj(), h.B.to(V.dtype), bound)
    assert torch.all(h.Lambda.real == -0.5)
    assert torch.all(h.Lambda.imag[1:] > h.Lambda.imag[:-1])
    assert torch.all(h.Lambda.imag < 0)
    if N <= 8:  # beyond, eigenvalues of so non-normal a matrix have no digits
        want = -torch.arange(N, 0, -1, dtype=torch.float64)
        assert_close(torch.linalg.eigvals(h.A).real.sort().values, want, 1e-9)


Vectors = Callable[[str], dict[str, Any]]


@pytest.mark.parametrize("N", [4, 16, 64])
def test_golden_hippo(vectors: Vectors, N: int) -> None:
    z, h = vectors(f"hippo_legs_N{N}"), ssm.hippo_legs(N)
    for name in ("A", "B", "P", "Lambda"):
        assert_close(getattr(h, name), z[name], GOLDEN)
    assert_close(h.P_t.abs(), z["absP_t"], GOLDEN)
    assert_close(h.B_t.abs(), z["absB_t"], GOLDEN)
    assert_close(h.P_t.conj() * h.B_t, z["P_t"].conj() * z["B_t"], GOLDEN)


GOLDENS = {
    "s4d_zoh": ("s4d-zoh", "dt A B C"),
    "s4d_zoh_corner": ("s4d-zoh", "dt A B C"),
    "s4d_bilinear": ("s4d-bilinear", "dt A B C"),
    "s4d_bilinear_corner": ("s4d-bilinear", "dt A B C"),
    "dss_exp": ("dss-exp", "dt Lambda W"),
    "dss_softmax_neg": ("dss-softmax", "dt Lambda W"),
    "dss_softmax_mixed": ("dss-softmax", "dt Lambda W"),
    "dlr": ("dlr", "a w W"),
    "s4_legs_N16": ("s4", "dt Lambda P B C"),
    "s4_legs_N64": ("s4", "dt Lambda P B C"),
    "s4_dplr_rank1_N16": ("s4", "dt Lambda P B C"),
    "s4_dplr_rank1_N64": ("s4", "dt Lambda P B C"),
    "s4_dplr_rank2_N16": ("s4", "dt Lambda P B C"),
    "s4_dplr_rank2_N64": ("s4", "dt Lambda P B C"),
}


@pytest.mark.parametrize("dtype", own.DTYPES)
@pytest.mark.parametrize("backend", ssm.KERNEL_BACKENDS)
@pytest.mark.parametrize("name", GOLDENS)
def test_golden_kernels(vectors: Vectors, name: str, backend: str, dtype: torch.dtype) -> None:
    z, (kernel, names) = vectors(name), GOLDENS[name]
    given = [z[key] for key in names.split()]
    if kernel == "s4" and given[1].ndim == 1:  # the gradients are those of parameters of each head
        H = given[0].shape[0]
        given[1:4] = [x.unsqueeze(-2).expand(*x.shape[:-1], H, -1).clone() for x in given[1:4]]
    inputs = [x.to(own.complex_of(dtype) if x.is_complex() else dtype).requires_grad_() for x in given]
    L = z["K"].shape[1]
    K = System(kernel, tuple(inputs), L).call(backend=backend)
    # parameters rounded to float32 move the phase by L |dt A| eps
    size = 7.0 if kernel == "dlr" else (given[0][:, None] * given[1]).abs().max().item()
    bound = GOLDEN if dtype == torch.float64 else tolerance(dtype, L, 1 + L * size)
    rows = K if name.endswith("corner") else K[None]  # corners differ by the size of a whole head
    for row, want in zip(rows, z["K"] if name.endswith("corner") else z["K"][None], strict=True):
        assert_close(row, want, bound)
    if "G" in z:
        for key, grad in zip(names.split(), torch.autograd.grad(K, inputs, z["G"].to(dtype)), strict=True):
            assert_close(grad, z[f"grad_{key}"], bound, what=f"gradient to {key}")


@pytest.mark.parametrize("name", ["s4d_zoh", "s4d_bilinear", "s4_legs_N16"])
def test_golden_steps(vectors: Vectors, name: str) -> None:
    z, (kernel, names) = vectors(name), GOLDENS[name]
    step, parameters = System(kernel, tuple(z[key] for key in names.split()), 1).recurrence()
    state = torch.zeros(z["u"].shape[0], *z["C"].shape, dtype=torch.complex128)
    for t in range(z["u"].shape[-1]):
        y, state = step(z["u"][..., t], state, *parameters, z["D"])
        assert_close(y, z["y"][..., t], GOLDEN, z["y"].abs().max().item())
    if "x_last" in z:
        assert_close(state, z["x_last"], GOLDEN)
        assert_close(parameters[0], z["Abar"], GOLDEN)
        assert_close(parameters[1], z["Bbar"], GOLDEN)


@pytest.mark.parametrize("name", ["s4_dplr_rank1_N16", "s4_dplr_rank2_N64"])
def test_golden_dense_matrices(vectors: Vectors, name: str) -> None:
    z = vectors(name)
    Abar, Bbar = ssm.s4_discretize(*(z[key] for key in ("dt", "Lambda", "P", "B")))
    half = torch.view_as_complex(
        torch.eye(Abar.shape[-1], dtype=torch.float64).unflatten(0, (-1, 2)).movedim(1, -1).contiguous()
    )
    to_pairs = torch.cat((half, half.conj()))  # (Re x, Im x) -> (x, conj x)
    assert_close(to_pairs @ Abar[-1].to(to_pairs.dtype), z["Abar_last"] @ to_pairs, GOLDEN)
    assert_close(to_pairs @ Bbar[-1].to(to_pairs.dtype), z["Bbar_last"], GOLDEN)
