"""State-space kernels: S4 (Gu, Goel, Ré 2022), S4D (Gu, Gupta, Goel, Ré 2022), DSS (Gupta, Gu, Berant 2022) and DLR
(Gupta, Mehta, Berant 2022); HiPPO-LegS (Gu et al. 2020).

H heads with N' complex states each. S4 and S4D keep one of each conjugate pair, N' = N / 2, and put out 2 Re(C x); DSS
and DLR keep all N states and put out Re(C x). dt (H,) is real, one step per head. Parameters are float32 or float64
(complex64 or complex128 accordingly) and so is the result; discretizations and powers are computed in float64, since
they decide how many digits are left.

A kernel K (H, L) is the impulse response of the recurrence whose `*_step` stands beside it,
x_t = Abar x_{t-1} + Bbar u_t, y_t = C x_t + D u_t: the output sees the new state. The backend "reference" runs that
recurrence; "fast" never makes an array of H N L values. C (or W) may carry leading axes, (..., H, N'), for several
outputs of one system, as in a bidirectional layer; K then has them too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from noscratch.kernels import ONE_FORM, KernelError, resolve
from noscratch.kernels._krylov import krylov
from noscratch.kernels._vandermonde import full_precision, phases, phi1, power_sum, shared_power_sum

KERNEL_BACKENDS = ("reference", "fast")


class HippoLegs(NamedTuple):
    """A = V_ext diag(Lambda_ext) V_ext^* - P P^T, where _ext appends the complex conjugates; float64 and complex128."""

    A: Tensor  # (N, N)
    B: Tensor  # (N,)
    P: Tensor  # (N,)
    Lambda: Tensor  # (N/2,), the half with negative imaginary part, ascending
    P_t: Tensor  # (N/2,), V^* P
    B_t: Tensor  # (N/2,), V^* B
    V: Tensor  # (N, N/2), orthonormal columns; their phases are free


def hippo_legs(N: int, *, backend: str = "auto") -> HippoLegs:
    """HiPPO-LegS in its normal plus low-rank form (S4, appendix C.1; HiPPO, theorem 2). N is even and at least 2."""
    resolve("hippo_legs", backend, ONE_FORM)
    if N < 2 or N % 2:
        raise KernelError(f"hippo_legs keeps eigenvalues as conjugate pairs and needs an even N >= 2; got {N}.")
    n = torch.arange(N, dtype=torch.float64)
    B = torch.sqrt(2 * n + 1)
    A = -torch.tril(B[:, None] * B[None, :], -1) - torch.diag(n + 1)
    P = torch.sqrt(n + 0.5)
    # A + P P^T = S - I/2 with S skew-symmetric; -i S is Hermitian: real eigenvalues, orthonormal eigenvectors
    S = torch.tril(A + P[:, None] * P[None, :], -1)
    w, V = torch.linalg.eigh(-1j * (S - S.T))
    w, V = w[: N // 2], V[:, : N // 2]
    adjoint = V.conj().T.resolve_conj()
    Lambda = torch.complex(torch.full_like(w, -0.5), w)
    return HippoLegs(A, B, P, Lambda, adjoint @ P.to(V.dtype), adjoint @ B.to(V.dtype), V)


def discretize(dt: Tensor, A: Tensor, B: Tensor, method: str, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """(Abar, Bbar), both (H, N'), of the diagonal x' = A x + B u (S4D, eq. 3). dt (H,), A and B (N',) or (H, N').

    "zoh": Abar = e^{dt A}, Bbar = (e^{dt A} - 1) / A B.
    "bilinear": Abar = (1 + dt A/2) / (1 - dt A/2), Bbar = dt / (1 - dt A/2) B.
    """
    resolve("discretize", backend, ONE_FORM, dt.device)
    Abar, Bbar = _discretize(dt, A, B, method)
    return Abar.to(B.dtype), Bbar.to(B.dtype)


def _discretize(dt: Tensor, A: Tensor, B: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """`discretize` before rounding: complex128."""
    step = dt.double()[:, None]
    Abar, scale = phases(method, step * A)
    return Abar, step * scale * B


def dss_discretize(
    dt: Tensor, Lambda: Tensor, length: int, variant: str, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """(Abar, Bbar), both (H, N), of DSS (proposition 1 and section 3.1). dt (H,), Lambda (N,) or (H, N), not 0.

    "exp": Bbar = (e^{dt Lambda} - 1) / Lambda.
    "softmax": Bbar = 1 / (Lambda sum_{j<length} e^{dt Lambda j}), for sequences of this length only. If Re Lambda > 0
    states grow while Bbar shrinks: steps work while |e^{dt Lambda length}| fits the dtype. Kernels have no such limit.
    """
    resolve("dss_discretize", backend, ONE_FORM, dt.device)
    Abar, Bbar = _dss_discretize(dt, Lambda, length, variant)
    return Abar.to(Lambda.dtype), Bbar.to(Lambda.dtype)


def _dss_discretize(dt: Tensor, Lambda: Tensor, length: int, variant: str) -> tuple[Tensor, Tensor]:
    """`dss_discretize` before rounding: complex128."""
    step = dt.double()[:, None]
    z = step * Lambda
    if variant == "exp":
        return torch.exp(z), step * phi1(z)
    if variant == "softmax":
        return torch.exp(z), phi1(z) / (length * phi1(length * z) * Lambda)
    raise KernelError(f'The variants of DSS are "exp" and "softmax"; got {variant!r}.')


def dlr_discretize(a: Tensor, w: Tensor, *, backend: str = "auto") -> Tensor:
    """Abar (N,) = exp(-a^2 + i w), complex; a and w (N,) real."""
    resolve("dlr_discretize", backend, ONE_FORM, a.device)
    return torch.exp(_dlr_log(a, w)).to(a.dtype.to_complex())


def _dlr_log(a: Tensor, w: Tensor) -> Tensor:
    return torch.complex(-(a.double() ** 2), w.double())


def s4_discretize(dt: Tensor, Lambda: Tensor, P: Tensor, B: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """(Abar (H, N, N), Bbar (H, N)), real, N = 2 N', bilinear, from A x = Lambda x - 2 sum_r P_r Re(P_r^* x).

    They act on (Re x_1, Im x_1, Re x_2, ...). dt (H,), Lambda and B (N',) or (H, N'), P (r, N') or (r, H, N').
    """
    resolve("s4_discretize", backend, ONE_FORM, dt.device)
    H, n = dt.shape[0], Lambda.shape[-1]
    half = dt.double()[:, None, None] / 2
    lam = Lambda.to(torch.complex128).expand(H, n)
    rotation = torch.stack((lam.real, -lam.imag, lam.imag, lam.real), 1).view(H, 2, 2, n)
    diagonal = torch.diag_embed(rotation, dim1=1, dim2=3).reshape(H, 2 * n, 2 * n)
    p = torch.view_as_real(P.to(torch.complex128)).flatten(-2).reshape(P.shape[0], -1, 2 * n).expand(-1, H, -1)
    A = half * (diagonal - 2 * torch.einsum("rhi,rhj->hij", p, p))
    b = 2 * half * torch.view_as_real(B.to(torch.complex128).expand(H, n).contiguous()).flatten(-2)[..., None]
    identity = torch.eye(2 * n, dtype=torch.float64, device=dt.device)
    solved = torch.linalg.solve(identity - A, torch.cat((identity + A, b), -1))
    return solved[..., :-1].to(dt.dtype), solved[..., -1].to(dt.dtype)


def s4d_step(
    u: Tensor,
    state: Tensor,
    Abar: Tensor,
    Bbar: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One step of S4D: u (batch, H), state (batch, H, N'), C (H, N'), D (H,) -> y (batch, H) and the new state.

    Abar and Bbar come from `discretize`; the first state is zero.
    """
    resolve("s4d_step", backend, ONE_FORM, u.device)
    state = Abar * state + Bbar * u[..., None]
    return _output(2 * (C * state).sum(-1).real, D, u), state


def dss_step(
    u: Tensor,
    state: Tensor,
    Abar: Tensor,
    Bbar: Tensor,
    W: Tensor,
    D: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One step of DSS: u (batch, H), state (batch, H, N), W (H, N), D (H,) -> y (batch, H) and the new state.

    Abar and Bbar come from `dss_discretize`; the first state is zero.
    """
    resolve("dss_step", backend, ONE_FORM, u.device)
    state = Abar * state + Bbar * u[..., None]
    return _output((W * state).sum(-1).real, D, u), state


def dlr_step(
    u: Tensor, state: Tensor, Abar: Tensor, W: Tensor, D: Tensor | None = None, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """One step of DLR: u (batch, H), state (batch, H, N), W (H, N), D (H,) -> y (batch, H) and the new state.

    Abar (N,) comes from `dlr_discretize`; the first state is zero.
    """
    resolve("dlr_step", backend, ONE_FORM, u.device)
    state = Abar * state + u[..., None]
    return _output((W * state).sum(-1).real, D, u), state


@full_precision
def s4_step(
    u: Tensor,
    state: Tensor,
    Abar: Tensor,
    Bbar: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One step of S4: u (batch, H), state (batch, H, N') complex, C (H, N'), D (H,) -> y (batch, H) and the new state.

    Abar and Bbar come from `s4_discretize`; the first state is zero.
    """
    resolve("s4_step", backend, ONE_FORM, u.device)
    x = torch.view_as_real(state).flatten(-2)
    x = torch.einsum("hij,bhj->bhi", Abar, x) + Bbar * u[..., None]
    state = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return _output(2 * (C * state).sum(-1).real, D, u), state


def _output(y: Tensor, D: Tensor | None, u: Tensor) -> Tensor:
    return y if D is None else y + D * u


@full_precision
def s4d_kernel(
    dt: Tensor, A: Tensor, B: Tensor, C: Tensor, length: int, method: str, *, backend: str = "auto"
) -> Tensor:
    """K (..., H, L) of S4D, K_l = 2 Re sum_n C_n Abar_n^l Bbar_n (S4D, eq. 5); `method` is "zoh" or "bilinear".

    dt (H,), A and B (N',) or (H, N'), C (..., H, N').
    """
    backend = resolve("s4d_kernel", backend, KERNEL_BACKENDS, C.device)
    _check("s4d_kernel", dt, length, A=A, B=B, C=C)
    if backend == "reference":
        return _impulse_response(s4d_step, discretize(dt, A, B, method), C, length)
    Abar, Bbar = _discretize(dt, A, B, method)
    return _fast(power_sum, (Abar,), 2 * Bbar * C, dt, length)


@full_precision
def dss_kernel(dt: Tensor, Lambda: Tensor, W: Tensor, length: int, variant: str, *, backend: str = "auto") -> Tensor:
    """K (..., H, L) of DSS (proposition 1 and section 3.1). dt (H,), Lambda (N,) or (H, N), not 0, W (..., H, N).

    "exp": K_l = Re sum_n W_n (e^{lam_n dt} - 1) / lam_n e^{lam_n dt l}.
    "softmax": K_l = Re sum_n W_n / lam_n e^{lam_n dt l} / sum_{j<L} e^{lam_n dt j}, Re lam_n of any sign. It normalizes
    over the whole length, so K(L)[:M] is not K(M), unlike that of every other kernel here.
    """
    backend = resolve("dss_kernel", backend, KERNEL_BACKENDS, W.device)
    _check("dss_kernel", dt, length, Lambda=Lambda, W=W)
    if variant == "softmax":
        return _dss_softmax(dt, Lambda, W, length, backend)
    if backend == "reference":
        return _impulse_response(dss_step, dss_discretize(dt, Lambda, length, variant), W, length)
    Abar, Bbar = _dss_discretize(dt, Lambda, length, variant)
    return _fast(power_sum, (Abar,), Bbar * W, dt, length)


def _dss_softmax(dt: Tensor, Lambda: Tensor, W: Tensor, length: int, backend: str) -> Tensor:
    """With Re z > 0, z = dt Lambda, the powers are taken of 1 / e^z, backwards from the end: e^{z l} would overflow."""
    z = dt.double()[:, None] * Lambda
    grows = z.real > 0
    if backend == "reference":
        largest = torch.where(grows, (length - 1) * z, 0)
        terms = torch.exp(z[..., None] * torch.arange(length, device=dt.device) - largest[..., None])
        weights = terms / terms.sum(-1, keepdim=True)
        return ((W / Lambda)[..., None] * weights.to(W.dtype)).sum(-2).real
    z = torch.where(grows, -z, z)
    c = W * (phi1(z) / (length * phi1(length * z) * Lambda))
    c = torch.stack((torch.where(grows, 0, c), torch.where(grows, c, 0)))
    forward, backward = _fast(power_sum, (torch.exp(z),), c, dt, length)
    return forward + backward.flip(-1)


@full_precision
def dlr_kernel(a: Tensor, w: Tensor, W: Tensor, length: int, *, backend: str = "auto") -> Tensor:
    """K (..., H, L) of DLR, K_l = Re sum_n W_n exp((-a_n^2 + i w_n) l) (section 3). a, w (N,), W (..., H, N)."""
    backend = resolve("dlr_kernel", backend, KERNEL_BACKENDS, W.device)
    _check("dlr_kernel", None, length, a=a, w=w, W=W)
    if backend == "reference":
        return _impulse_response(dlr_step, (dlr_discretize(a, w),), W, length)
    return shared_power_sum(_dlr_log(a, w), W.flatten(0, -2), length).unflatten(0, W.shape[:-1])


@full_precision
def s4_kernel(
    dt: Tensor, Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, length: int, *, backend: str = "auto"
) -> Tensor:
    """K (..., H, L) of S4, K_l = 2 Re(C Abar^l Bbar), bilinear, A = diag(Lambda) - P P^* on conjugate pairs (S4, 3).

    dt (H,), Lambda and B (N',) or (H, N'), P (r, N') or (r, H, N') of any rank r, C (..., H, N'). C is the true C, not
    the C (I - Abar^L) of S4's Cauchy form: it means the same at every length, and modes need not decay over L.
    """
    backend = resolve("s4_kernel", backend, KERNEL_BACKENDS, C.device)
    _check("s4_kernel", dt, length, Lambda=Lambda, P=P, B=B, C=C)
    if backend == "reference":
        return _impulse_response(s4_step, s4_discretize(dt, Lambda, P, B), C, length)
    # With s = dt/2, d = 1/(1 - s Lambda) and f = sum_r P_r q_r, Woodbury gives (I - s A)^{-1} y = d (y - 2 s f) where
    # (I + 2 s Re(P^* d P)) q = Re(P^* d y); and Abar = 2 (I - s A)^{-1} - I, a diagonal and a rank r.
    P = P.to(torch.complex128).reshape(P.shape[0], -1, P.shape[-1]).transpose(0, 1)
    s = dt.double()[:, None] / 2
    d = 1 / (1 - s * Lambda)
    dP = d[:, None] * P
    V = (P.conj() * d[:, None]).expand_as(dP)
    gram = (V @ P.mT).real
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    inverse = torch.linalg.inv(identity + 2 * s[..., None] * gram)
    U = -4 * s[..., None] * (inverse.mT.to(dP.dtype) @ dP)
    seen = (V * B.to(V.dtype).expand_as(d)[:, None]).sum(-1).real
    Bbar = 2 * s * d * B + s * (seen[..., None] * U).sum(1)
    return _fast(krylov, ((1 + s * Lambda) * d, Bbar, U, V), 2 * C, dt, length)


def _impulse_response(
    step: Callable[..., tuple[Tensor, Tensor]], system: tuple[Tensor, ...], C: Tensor, length: int
) -> Tensor:
    """What the recurrence `step` puts out for the input 1, 0, 0, ...: (..., H, length)."""
    if C.ndim > 2:
        return torch.stack([_impulse_response(step, system, c, length) for c in C])
    state = C.new_zeros(1, *C.shape)
    u = torch.ones(1, C.shape[0], dtype=state.real.dtype, device=C.device)
    out = []
    for _ in range(length):
        y, state = step(u, state, *system, C)
        out.append(y[0])
        u = torch.zeros_like(u)
    return torch.stack(out, -1)


def _fast(form: Callable[..., Tensor], system: tuple[Tensor, ...], c: Tensor, dt: Tensor, length: int) -> Tensor:
    """`form` for c (..., H, n): leading axes become one axis of outputs per head, and come back in front of H."""
    H, n = c.shape[-2:]
    outputs = c.to(torch.complex128).reshape(-1, H, n).transpose(0, 1)
    K = form(*system, outputs, length, dt.dtype)
    return K.transpose(0, 1).reshape(*c.shape[:-1], length)


def _check(kernel: str, dt: Tensor | None, length: int, **parameters: Tensor) -> None:
    """Shapes: the last parameter gives (H, N'); the others end in (N',) or (H, N'), dt is (H,)."""
    if length < 1:
        raise KernelError(f"{kernel} needs a length of at least 1; got {length}.")
    last = list(parameters)[-1]
    if parameters[last].ndim < 2:
        raise KernelError(f"{kernel} needs {last} to end in (heads, states); got {tuple(parameters[last].shape)}.")
    H, n = parameters[last].shape[-2:]
    if dt is not None and dt.shape != (H,):
        raise KernelError(f"{kernel} needs one dt per head, ({H},) as {last} has; got {tuple(dt.shape)}.")
    for name, value in parameters.items():
        own = tuple(value.shape[1:] if name == "P" else value.shape)
        if name != last and own not in ((n,), (H, n)):
            raise KernelError(
                f"{kernel} needs {name} to end in ({n},) or ({H}, {n}) as {last} has; got {tuple(value.shape)}."
            )
