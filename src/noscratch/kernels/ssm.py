"""State-space kernels: HiPPO-LegS, S4 (Gu et al. 2022a), S4D (Gu et al. 2022b), DSS (Gupta et al. 2022a), DLR (Gupta et al. 2022b).

H heads; N' complex states per head. S4 and S4D keep one of each conjugate pair, so N' = N / 2 and the real output is 2 Re(...);
DSS and DLR keep all N states and take Re(...). dt (H,) is real, one step per head. Parameters are float32 or float64 (complex64 or
complex128 accordingly) and so is the result; what decides the digits (discretizations, phases, powers) is computed in float64.

Every kernel K (H, L) is the impulse response of the recurrence whose `*_step` stands beside it: x_t = Abar x_{t-1} + Bbar u_t,
y_t = Re(C x_t) + D u_t (the output sees the new state). The backend "reference" runs exactly that recurrence.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from noscratch.kernels import KernelError, resolve


class HippoLegs(NamedTuple):
    """A = V_ext diag(Lambda_ext) V_ext^* - P P^T, where _ext appends the complex conjugates; float64 and complex128."""

    A: Tensor  # (N, N)
    B: Tensor  # (N,)
    P: Tensor  # (N,)
    Lambda: Tensor  # (N/2,), the half with negative imaginary part, ascending
    P_t: Tensor  # (N/2,), V^* P
    B_t: Tensor  # (N/2,), V^* B
    V: Tensor  # (N, N/2), orthonormal columns; their phases are free


def hippo_legs(N: int) -> HippoLegs:
    """HiPPO-LegS in its normal plus low-rank form (S4, appendix C.1; HiPPO, theorem 2). N is even and at least 2."""
    if N < 2 or N % 2:
        raise KernelError(f"hippo_legs needs an even N >= 2, since eigenvalues are kept as conjugate pairs; got {N}.")
    n = torch.arange(N, dtype=torch.float64)
    root = torch.sqrt(2 * n + 1)
    A = -torch.tril(root[:, None] * root[None, :], -1) - torch.diag(n + 1)
    P = torch.sqrt(n + 0.5)
    # A + P P^T = -1/2 I + S with S skew-symmetric: -i S is Hermitian, so its eigenvalues come real and its eigenvectors orthonormal.
    S = torch.tril(A + P[:, None] * P[None, :], -1)
    w, V = torch.linalg.eigh(-1j * (S - S.T).to(torch.complex128))
    w, V = w[: N // 2], V[:, : N // 2]
    adjoint = V.conj().T
    Lambda = torch.complex(torch.full_like(w, -0.5), w)
    return HippoLegs(A, root, P, Lambda, adjoint @ P.to(V.dtype), adjoint @ root.to(V.dtype), V)


def phi1(z: Tensor) -> Tensor:
    """(e^z - 1) / z, with all its digits (and those of its derivative) at small z."""
    small = z.abs() < 1
    s = torch.where(small, z, torch.zeros_like(z))
    series = torch.ones_like(s)
    for k in range(19, 1, -1):  # 1 + z/2 (1 + z/3 (1 + ...)); the first term left out is 1 / 20!
        series = 1 + s * series / k
    t = torch.where(small, torch.ones_like(z), z)
    return torch.where(small, series, (torch.exp(t) - 1) / t)


def discretize(dt: Tensor, A: Tensor, B: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """(Abar, Bbar), both (H, N'), of the diagonal x' = A x + B u. dt (H,), A (N',) or (H, N'), B alike.

    "zoh": Abar = e^{dt A}, Bbar = (e^{dt A} - 1) / A B. "bilinear": Abar = (1 + dt A/2) / (1 - dt A/2), Bbar = dt / (1 - dt A/2) B.
    Computed in float64, rounded once to B's dtype.
    """
    step = dt.double()[:, None]
    z = step * A.to(torch.complex128)
    if method == "zoh":
        Abar, Bbar = torch.exp(z), step * phi1(z) * B
    elif method == "bilinear":
        Abar, Bbar = (1 + z / 2) / (1 - z / 2), step / (1 - z / 2) * B
    else:
        raise KernelError(f'The discretizations are "zoh" and "bilinear"; got {method!r}.')
    return Abar.to(B.dtype), Bbar.to(B.dtype)


def dss_discretize(dt: Tensor, Lambda: Tensor, length: int, variant: str) -> tuple[Tensor, Tensor]:
    """(Abar, Bbar), both (H, N), of DSS. dt (H,), Lambda (N,) or (H, N), not 0.

    "exp": Bbar = (e^{dt Lambda} - 1) / Lambda. "softmax": Bbar = 1 / (Lambda sum_{j<length} e^{dt Lambda j}), so that it depends on
    `length`; with Re Lambda > 0 the state grows while Bbar shrinks, and a recurrence has digits only as far as |e^{dt Lambda length}|
    fits the dtype (the kernel has no such limit).
    """
    step = dt.double()[:, None]
    lam = Lambda.to(torch.complex128)
    z = step * lam
    if variant == "exp":
        Bbar = step * phi1(z)
    elif variant == "softmax":
        Bbar = phi1(z) / (lam * length * phi1(length * z))
    else:
        raise KernelError(f'The DSS variants are "exp" and "softmax"; got {variant!r}.')
    return torch.exp(z).to(Lambda.dtype), Bbar.to(Lambda.dtype)


def dlr_discretize(a: Tensor, w: Tensor) -> Tensor:
    """Abar (N,) = exp(-a^2 + i w), complex; a, w (N,) real."""
    Abar = torch.exp(torch.complex(-(a.double() ** 2), w.double()))
    return Abar.to(torch.complex128 if a.dtype == torch.float64 else torch.complex64)


def s4_discretize(dt: Tensor, Lambda: Tensor, P: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """(Abar (H, 2N', 2N'), Bbar (H, 2N')), real, bilinear, of x' = A x + B u with A x = Lambda x - 2 sum_r P_r Re(P_r^* x).

    They act on (Re x_1, Im x_1, Re x_2, ...). dt (H,), Lambda (N',) or (H, N'), P (r, N') or (r, H, N'), B (N',) or (H, N').
    """
    H, n = dt.shape[0], Lambda.shape[-1]
    lam = Lambda.to(torch.complex128).expand(H, n)
    p = torch.view_as_real(P.to(torch.complex128).reshape(P.shape[0], -1, n).expand(-1, H, n).contiguous()).flatten(-2)
    rotation = torch.stack((lam.real, -lam.imag, lam.imag, lam.real), -1).reshape(H, n, 2, 2)
    diagonal = torch.diag_embed(rotation.permute(0, 2, 3, 1)).permute(0, 3, 1, 4, 2).reshape(H, 2 * n, 2 * n)
    A = dt.double()[:, None, None] / 2 * (diagonal - 2 * torch.einsum("rhi,rhj->hij", p, p))
    identity = torch.eye(2 * n, dtype=torch.float64, device=dt.device)
    b = torch.view_as_real((dt.double()[:, None] * B.to(torch.complex128)).contiguous()).flatten(-2)
    solved = torch.linalg.solve(identity - A, torch.cat((identity + A, b[..., None]), -1))
    return solved[..., :-1].to(dt.dtype), solved[..., -1].to(dt.dtype)


def s4d_step(
    u: Tensor, state: Tensor, Abar: Tensor, Bbar: Tensor, C: Tensor, D: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One step of S4D: u (batch, H), state (batch, H, N') complex, Abar, Bbar from `discretize`, C (H, N'), D (H,) -> (y (batch, H), state)."""
    state = Abar * state + Bbar * u[..., None]
    y = 2 * (C * state).sum(-1).real
    return y if D is None else y + D * u, state


def dss_step(
    u: Tensor, state: Tensor, Abar: Tensor, Bbar: Tensor, W: Tensor, D: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One step of DSS: u (batch, H), state (batch, H, N) complex, Abar, Bbar from `dss_discretize`, W (H, N) -> (y (batch, H), state)."""
    state = Abar * state + Bbar * u[..., None]
    y = (W * state).sum(-1).real
    return y if D is None else y + D * u, state


def dlr_step(u: Tensor, state: Tensor, Abar: Tensor, W: Tensor, D: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One step of DLR: u (batch, H), state (batch, H, N) complex, Abar (N,) from `dlr_discretize`, W (H, N) -> (y (batch, H), state)."""
    state = Abar * state + u[..., None]
    y = (W * state).sum(-1).real
    return y if D is None else y + D * u, state


def s4_step(
    u: Tensor, state: Tensor, Abar: Tensor, Bbar: Tensor, C: Tensor, D: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One step of S4: u (batch, H), state (batch, H, N') complex, Abar, Bbar from `s4_discretize`, C (H, N') -> (y (batch, H), state)."""
    x = torch.view_as_real(state).flatten(-2)
    x = torch.einsum("hij,bhj->bhi", Abar, x) + Bbar * u[..., None]
    state = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    y = 2 * (C * state).sum(-1).real
    return y if D is None else y + D * u, state


def s4d_kernel(
    dt: Tensor, A: Tensor, B: Tensor, C: Tensor, length: int, method: str, *, backend: str = "auto"
) -> Tensor:
    """K (H, L) of S4D, K_l = 2 Re sum_n C_n Abar_n^l Bbar_n (S4D, eq. 5 and table 1). dt (H,), A, B (N',) or (H, N'), C (H, N')."""
    resolve("s4d_kernel", backend, ("reference",), C.device)
    _check("s4d_kernel", dt, length, A=A, B=B, C=C)
    Abar, Bbar = discretize(dt, A, B, method)
    return _impulse_response(s4d_step, length, C, Abar, Bbar, C)


def dss_kernel(dt: Tensor, Lambda: Tensor, W: Tensor, length: int, variant: str, *, backend: str = "auto") -> Tensor:
    """K (H, L) of DSS (proposition 1). dt (H,), Lambda (N,) or (H, N), W (H, N).

    "exp": K_l = Re sum_n W_n (e^{lam dt} - 1) / lam e^{lam dt l}. "softmax": K_l = Re sum_n W_n / lam e^{lam dt l} / sum_{j<L} e^{lam dt j}.
    The softmax runs over the whole length: its K(L)[:M] is not K(M), unlike that of every other kernel here.
    """
    resolve("dss_kernel", backend, ("reference",), W.device)
    _check("dss_kernel", dt, length, Lambda=Lambda, W=W)
    if variant == "softmax":
        return _dss_softmax_reference(dt, Lambda, W, length)
    Abar, Bbar = dss_discretize(dt, Lambda, length, variant)
    return _impulse_response(dss_step, length, W, Abar, Bbar, W)


def dlr_kernel(a: Tensor, w: Tensor, W: Tensor, length: int, *, backend: str = "auto") -> Tensor:
    """K (H, L) of DLR, K_l = Re sum_n W_n exp((-a_n^2 + i w_n) l) (Gupta et al. 2022b, section 3.1). a, w (N,), shared by heads; W (H, N)."""
    resolve("dlr_kernel", backend, ("reference",), W.device)
    _check("dlr_kernel", None, length, a=a, w=w, W=W)
    return _impulse_response(dlr_step, length, W, dlr_discretize(a, w), W)


def s4_kernel(
    dt: Tensor, Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, length: int, *, backend: str = "auto"
) -> Tensor:
    """K (H, L) of S4, K_l = 2 Re(C Abar^l Bbar), bilinear, A = diag(Lambda) - P P^* on conjugate pairs (S4, section 3).

    dt (H,), Lambda, B (N',) or (H, N'), P (r, N') or (r, H, N') of any rank r, C (H, N'): the true C, not the C (I - Abar^L) of the
    Cauchy form, so that one parameter means the same at every length.
    """
    resolve("s4_kernel", backend, ("reference",), C.device)
    _check("s4_kernel", dt, length, Lambda=Lambda, P=P, B=B, C=C)
    Abar, Bbar = s4_discretize(dt, Lambda, P, B)
    return _impulse_response(s4_step, length, C, Abar, Bbar, C)


def _impulse_response(step, length: int, C: Tensor, *parameters: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    """What `step` puts out for the input 1, 0, 0, ...: (H, length)."""
    H = C.shape[0]
    state = C.new_zeros(1, *C.shape)
    real = state.real.dtype
    out = []
    for t in range(length):
        u = torch.full((1, H), float(t == 0), dtype=real, device=C.device)
        y, state = step(u, state, *parameters)
        out.append(y[0])
    return torch.stack(out, -1)


def _dss_softmax_reference(dt: Tensor, Lambda: Tensor, W: Tensor, length: int) -> Tensor:
    """The definition, term by term; where Re Lambda > 0 numerator and denominator are divided by their largest term, which overflows first."""
    z = dt.double()[:, None] * Lambda.to(torch.complex128)
    largest = torch.where(z.real > 0, (length - 1) * z, torch.zeros_like(z))
    terms = torch.exp(z[..., None] * torch.arange(length, device=dt.device) - largest[..., None])
    K = (W / Lambda)[..., None] * (terms / terms.sum(-1, keepdim=True)).to(W.dtype)
    return K.sum(-2).real


def _check(kernel: str, dt: Tensor | None, length: int, **parameters: Tensor) -> None:
    """Shapes: the last name gives (H, N'); every other parameter ends in (N',) or (H, N'), dt is (H,)."""
    if length < 1:
        raise KernelError(f"{kernel} needs a length of at least 1; got {length}.")
    H, n = list(parameters.values())[-1].shape[-2:]
    if dt is not None and dt.shape != (H,):
        raise KernelError(f"{kernel} needs one dt per head, ({H},); got {tuple(dt.shape)}.")
    for name, value in parameters.items():
        least = 2 if name == "P" else 1
        if value.shape[-1] != n or value.ndim < least or (value.ndim > least and value.shape[-2] != H):
            raise KernelError(
                f"{kernel} needs {name} to end in ({n},) or ({H}, {n}) as its last argument has; got {tuple(value.shape)}."
            )
