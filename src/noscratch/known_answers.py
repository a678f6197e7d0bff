"""Known answers of every kernel: formulas written out as plain float64 sums, products and matrix powers, and a few
numbers worked out by hand. None of them calls a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from noscratch.kernels import attention, conv, scan, ssm, structured


def tolerance(dtype: torch.dtype, length: int = 1, condition: float = 1.0) -> float:
    """Largest |got - want| allowed in `dtype`, relative to the scale of the result (max |want| by default).

    eps(dtype) * 4 (1 + log2(2 length)) * condition, because
    - an FFT or a pairwise sum of `length` terms passes each value through log2(2 length) rounded additions, so its
      error grows like eps log2(2 length) (Higham, Accuracy and Stability of Numerical Algorithms, 2002, 4.2, 24.1);
    - around that stand a few roundings that do not depend on the length (inputs, a product, the result): the 1;
    - both sides of a comparison in float64 round, and transcendental functions are right to a few ulp: the 4;
    - what amplifies errors of the data is the caller's to state as `condition`: `length` for a recurrence taken step by
      step (errors of Abar^l add up), `length * |Im dt A|` for the phase of a parameter that was rounded to `dtype`, the
      ratio of the sizes of the terms to the size of their sum where they cancel.
    """
    return torch.finfo(dtype).eps * 4.0 * (1.0 + math.log2(2.0 * max(length, 1))) * max(condition, 1.0)


class Kernels(NamedTuple):
    """The modules under test."""

    attention: ModuleType = attention
    conv: ModuleType = conv
    scan: ModuleType = scan
    ssm: ModuleType = ssm
    structured: ModuleType = structured


class Case(NamedTuple):
    """One known answer. `call` takes the kernels, a backend and the inputs; `answer` takes the inputs, in float64."""

    kernel: str
    name: str
    backends: tuple[str, ...]
    inputs: tuple[Tensor, ...]  # float64 or complex128, exact in float32, so that both precisions see the same numbers
    call: Callable[..., Tensor | tuple[Tensor, ...]]
    answer: Callable[..., Tensor | tuple[Tensor, ...]]
    length: int = 1
    condition: float = 1.0
    gradients: bool = True


def cases() -> list[Case]:
    """All known answers; inputs are seeded, so that every device sees the same."""
    return [*_conv_cases(), *_scan_cases(), *_attention_cases(), *_structured_cases(), *_ssm_cases()]


def _real(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float().double()


def _complex(seed: int, *shape: int) -> Tensor:
    return torch.complex(_real(seed, *shape), _real(seed + 1000, *shape))


def _values(*numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def _conv_cases() -> list[Case]:
    backends = conv.LONG_CONV_BACKENDS

    def both(offset: int) -> Callable[..., Tensor]:
        return lambda kernels, backend, u, k, D, r: kernels.conv.long_conv(u, k, D, r, offset, backend=backend)

    def answer(offset: int) -> Callable[..., Tensor]:
        def direct(u: Tensor, k: Tensor, D: Tensor, r: Tensor) -> Tensor:
            L = u.shape[-1]
            y = D[:, None] * u
            for lag in range(min(L, k.shape[1])):
                y = y + pad(k[:, lag, None] * u[..., : L - lag], (lag, 0))
            for lag in range(offset, min(L, r.shape[1] + offset)):
                y = y + pad(r[:, lag - offset, None] * u[..., lag:], (0, lag))
            return y

        return direct

    def autocast(kernels: Kernels, backend: str, u: Tensor, k: Tensor) -> Tensor:
        with torch.autocast(u.device.type, dtype=torch.bfloat16):
            y: Tensor = kernels.conv.long_conv(u, k, backend=backend)
            return y

    def through_spectra(u: Tensor, k: Tensor) -> Tensor:
        n = 2 * u.shape[-1]
        return torch.fft.irfft(torch.fft.rfft(u, n=n) * torch.fft.rfft(k, n=n), n=n)[..., : n // 2]

    stretch = _real(5, 4, 2, 3)

    def segments(W: Tensor, length: int, own_norm: bool) -> Tensor:
        parts = [
            1.5 ** (3 - i) * interpolate(W[i : i + 1], scale_factor=(1, 1, 2, 4)[i], mode="linear") for i in range(4)
        ]
        row = torch.cat(parts, dim=-1)[0]
        return (row / row.square().sum(-1, keepdim=True).sqrt() if own_norm else row)[:, :length]

    return [
        Case(
            "conv.long_conv",
            f"{name}, reverse offset {offset}",
            backends,
            (_real(1, 2, 3, L), _real(2, 3, taps), _real(3, 3), _real(4, 3, reverse_taps)),
            both(offset),
            answer(offset),
            length=L,
        )
        for name, L, taps, reverse_taps in (
            ("odd length", 13, 13, 13),
            ("few taps", 16, 5, 3),
            ("many taps", 7, 20, 20),
        )
        for offset in (0, 1)
    ] + [
        Case(
            "conv.long_conv",
            "by hand",
            backends,
            (_values([[1, 2, 3]]), _values([1, 10, 100])),
            lambda kernels, backend, u, k: kernels.conv.long_conv(u, k, backend=backend),
            lambda u, k: _values([[1, 12, 123]]),
            length=3,
            gradients=False,
        ),
        Case(
            "conv.long_conv",
            "one position",
            backends,
            (_values([[2]]), _values([3])),
            lambda kernels, backend, u, k: kernels.conv.long_conv(u, k, backend=backend),
            lambda u, k: u * k,
        ),
        Case(
            "conv.long_conv",
            "inside autocast",
            backends,
            (_real(1, 1, 2, 64), _real(2, 2, 64)),
            autocast,
            lambda u, k: answer(1)(u, k, torch.zeros(2, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)),
            length=64,
        ),
        Case(
            "conv.long_conv",
            "several blocks",
            ("fast",),
            (_real(6, 70, 2, 4096), _real(7, 2, 4096)),
            lambda kernels, backend, u, k: kernels.conv.long_conv(u, k, backend=backend),
            through_spectra,
            length=4096,
            condition=4.0,
        ),
        Case(
            "conv.sgconv_kernel",
            "own norm",
            conv.SGCONV_BACKENDS,
            (stretch,),
            lambda kernels, backend, W: kernels.conv.sgconv_kernel(W, 1.5, 19, backend=backend),
            lambda W: segments(W, 19, True),
            length=24,
        ),
        Case(
            "conv.sgconv_kernel",
            "given norm",
            conv.SGCONV_BACKENDS,
            (stretch, _values(1.0, 4.0)),
            lambda kernels, backend, W, Z: kernels.conv.sgconv_kernel(W, 1.5, 24, Z, backend=backend),
            lambda W, Z: segments(W, 24, False) / Z[:, None],
            length=24,
        ),
        Case(
            "conv.sgconv_norm",
            "by hand",
            conv.SGCONV_BACKENDS,
            (_values([[3.0]], [[4.0]]),),
            lambda kernels, backend, W: kernels.conv.sgconv_norm(W, 2.0, backend=backend),
            lambda W: _values(52.0).sqrt(),
            gradients=False,
        ),
    ]


def _scan_cases() -> list[Case]:
    def stepwise(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
        states = []
        every = a.broadcast_to(b.shape)
        for t in range(b.shape[1]):
            x = every[:, t] * x + b[:, t]
            states.append(x)
        return torch.stack(states, dim=1)

    def lru_answer(nu: Tensor, theta: Tensor, B: Tensor, C: Tensor, D: Tensor, u: Tensor) -> Tensor:
        log = torch.complex(-nu.exp(), theta.exp())
        gamma = torch.sqrt(1 - torch.exp(2 * log.real))
        t = torch.arange(u.shape[1])
        lag = (t[:, None] - t).clamp(min=0)
        powers = torch.exp(lag[..., None] * log) * (t[:, None] >= t)[..., None]
        driven = (u.to(B.dtype) @ B.T) * gamma
        return (torch.einsum("tsn,bsn->btn", powers, driven) @ C.T).real + D * u

    def lru_by_steps(kernels: Kernels, backend: str, *inputs: Tensor) -> Tensor:
        *parameters, u = inputs
        x = torch.zeros(u.shape[0], len(parameters[0]), dtype=parameters[2].dtype, device=u.device)
        outputs = []
        for t in range(u.shape[1]):
            y, x = kernels.scan.lru_step(*parameters, u[:, t], x)
            outputs.append(y)
        return torch.stack(outputs, dim=1)

    def run(kernels: Kernels, backend: str, a: Tensor, b: Tensor, x: Tensor) -> Tensor:
        y: Tensor = kernels.scan.linear_scan(a, b, initial=x, backend=backend)
        return y

    def autocast(kernels: Kernels, backend: str, *inputs: Tensor) -> Tensor:
        with torch.autocast(inputs[0].device.type, dtype=torch.bfloat16):
            y: Tensor = kernels.scan.lru(*inputs, backend=backend)
            return y

    L = 23
    unit = (
        _values(-3.0, -1.0, 0.5),
        _values(-2.0, 0.0, 1.0),
        _complex(21, 3, 2),
        _complex(22, 2, 3),
        _real(23, 2),
        _real(24, 2, L, 2),
    )
    slow = (_values(-28.0), _values(0.0), _complex(25, 1, 1), _complex(26, 1, 1), _values(0.0), _real(27, 1, 1, 1))
    slow_gain = math.exp(-14.0) * math.sqrt(2.0) * (1 - math.exp(-28.0) / 2)  # sqrt(1 - exp(-2 e^-28)), by its series
    b, initial = _complex(12, 2, L, 3), _complex(13, 2, 3)
    a = 0.5 * _complex(11, 2, L, 3)
    backends = scan.LINEAR_SCAN_BACKENDS
    return [
        Case("scan.linear_scan", "varying, complex", backends, (a, b, initial), run, stepwise, L, L),
        Case("scan.linear_scan", "varying, real", backends, (a.real, b.real, initial.real), run, stepwise, L, L),
        Case("scan.linear_scan", "constant", backends, (a[0, 0], b, initial), run, stepwise, L, L),
        Case("scan.linear_scan", "one position", backends, (a[:, :1], b[:, :1], initial), run, stepwise),
        Case(
            "scan.linear_scan",
            "by hand",
            backends,
            (_values(0.5), _values([[8], [4], [2]])),
            lambda kernels, backend, a, b: kernels.scan.linear_scan(a, b, backend=backend),
            lambda a, b: _values([[8], [8], [6]]),
            gradients=False,
        ),
        Case(
            "scan.lru",
            "sum of powers",
            scan.LRU_BACKENDS,
            unit,
            lambda kernels, backend, *x: kernels.scan.lru(*x, backend=backend),
            lru_answer,
            L,
            4 * L,
        ),
        Case("scan.lru", "inside autocast", scan.LRU_BACKENDS, unit, autocast, lru_answer, L, 4 * L),
        Case("scan.lru", "steps", ("reference",), unit, lru_by_steps, lru_answer, L, 4 * L),
        Case(
            "scan.lru",
            "slowest decay",
            scan.LRU_BACKENDS,
            slow,
            lambda kernels, backend, *x: kernels.scan.lru(*x, backend=backend),
            lambda nu, theta, B, C, D, u: slow_gain * (C[0, 0] * B[0, 0]).real * u,
            condition=32.0,  # the exponential of -28
            gradients=False,
        ),
    ]


def _attention_cases() -> list[Case]:
    def turned(x: Tensor, base: float, offset: int) -> Tensor:
        L, d = x.shape[-2:]
        rows = []
        for t in range(L):
            turns = []
            for m in range(d // 2):
                angle = (offset + t) * base ** (-2 * m / d)
                turns.append(_values([math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]))
            rows.append(x[..., t, :] @ torch.block_diag(*turns).T)
        return torch.stack(rows, dim=-2)

    def averaged(causal: bool, lengths: tuple[int, ...]) -> Callable[..., Tensor]:
        def answer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            sequences = []
            for i, length in enumerate(lengths):
                rows = []
                for t in range(q.shape[-2]):
                    last = min(t + 1, length) if causal else length
                    scores = (k[i, :, :last] * q[i, :, t : t + 1]).sum(-1) / q.shape[-1] ** 0.5
                    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
                    rows.append((weights[..., None] * v[i, :, :last]).sum(-2))
                sequences.append(torch.stack(rows, dim=-2))
            return torch.stack(sequences)

        return answer

    def attend(causal: bool, lengths: tuple[int, ...]) -> Callable[..., Tensor]:
        def call(kernels: Kernels, backend: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            mask = torch.arange(q.shape[-2], device=q.device) < torch.tensor(lengths, device=q.device)[:, None]
            y: Tensor = kernels.attention.attend(q, k, v, causal, mask=None if mask.all() else mask, backend=backend)
            return y

        return call

    x = _real(31, 2, 2, 9, 6)
    qkv = (x, _real(32, 2, 2, 9, 6), _real(33, 2, 2, 9, 6))
    return [
        Case(
            "attention.rotary",
            f"base {base:g} from {offset}",
            attention.ROTARY_BACKENDS,
            (x,),
            lambda kernels, backend, x, base=base, offset=offset: kernels.attention.rotary(
                x, base, offset=offset, backend=backend
            ),
            lambda x, base=base, offset=offset: turned(x, base, offset),
            condition=1.0 if not offset else 50.0,
        )
        for base, offset in ((10000.0, 0), (100.0, 0), (10000.0, 70000))
    ] + [
        Case(
            "attention.attend",
            f"causal {causal}, lengths {lengths}",
            attention.ATTEND_BACKENDS,
            qkv,
            attend(causal, lengths),
            averaged(causal, lengths),
            length=9,
            condition=4.0,
        )
        for causal in (False, True)
        for lengths in ((9, 9), (9, 4))
    ]


def _structured_cases() -> list[Case]:
    def low_rank(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("or,ri,ti->to", b, a, x)

    def block_dense(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        return torch.einsum("okr,kri,tki->to", w2.view(-1, *w1.shape[:2]), w1, x.view(len(x), w1.shape[0], -1))

    def block_shuffle(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        middle = torch.cat([x[:, 2 * i : 2 * i + 2] @ w1[i].T for i in range(3)], dim=-1)  # 12 values of 3 blocks
        halves = [middle[:, block::2] @ w2[block].T for block in range(2)]  # dealt out to 2 blocks
        return torch.stack(halves, dim=-1).flatten(1)

    def affine(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return (x[..., None, :] * w).sum(-1) + b

    def gelu(x: Tensor) -> Tensor:
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2

    def gated(x: Tensor, w: Tensor, b: Tensor, residual: Tensor) -> Tensor:
        p, q = affine(gelu(x), w, b).chunk(2, dim=-1)
        return residual + p / (1 + torch.exp(-q))

    def gelu_product(u: Tensor, v: Tensor, *weights: Tensor) -> Tensor:
        w_u, b_u, w_v, b_v, w, b = weights
        return affine(gelu(affine(u, w_u, b_u)) * gelu(affine(v, w_v, b_v)), w, b)

    def call(name: str) -> Callable[..., Tensor]:
        return lambda kernels, backend, *x: getattr(kernels.structured, name)(*x, backend=backend)

    def dense(name: str) -> Callable[..., Tensor]:
        return lambda kernels, backend, x, w1, w2: x @ kernels.structured.dense_of(name, w1, w2).T

    x = _real(41, 5, 6)
    weights = {
        "low_rank": (_real(42, 4, 6), _real(43, 7, 4)),
        "block_dense": (_real(44, 3, 4, 2), _real(45, 7, 12)),
        "block_shuffle": (_real(46, 3, 4, 2), _real(47, 2, 5, 6)),
    }
    gates = (_real(49, 7, 6), _real(50, 7), _real(66, 7, 6), _real(67, 7))
    found = [
        Case(
            "structured.linear",
            "product and bias",
            structured.LINEAR_BACKENDS,
            (_real(48, 3, 5, 6), _real(49, 7, 6), _real(50, 7)),
            call("linear"),
            affine,
            length=15,
            condition=4.0,
        ),
        Case(
            "structured.gated",
            "GELU, product, gate, residual",
            structured.GATED_BACKENDS,
            (_real(48, 3, 5, 6), _real(49, 8, 6), _real(50, 8), _real(71, 3, 5, 4)),
            call("gated"),
            gated,
            length=15,
            condition=4.0,
        ),
        Case(
            "structured.gelu_product",
            "products, GELU, product",
            structured.GELU_PRODUCT_BACKENDS,
            (_real(48, 3, 5, 6), _real(68, 3, 5, 6), *gates, _real(69, 4, 7), _real(70, 4)),
            call("gelu_product"),
            gelu_product,
            length=15,
            condition=8.0,
        ),
    ]
    for name, answer in (("low_rank", low_rank), ("block_dense", block_dense), ("block_shuffle", block_shuffle)):
        inputs = (x, *weights[name])
        kernel = f"structured.{name}"
        found.append(Case(kernel, "product", structured.STRUCTURED_BACKENDS, inputs, call(name), answer, 12, 4.0))
        found.append(Case(kernel, "dense matrix", ("reference",), inputs, dense(name), answer, 12, 4.0))
    return found


def _ssm_cases() -> list[Case]:
    L, LONG = 21, 150  # LONG passes the first block of every two-level form, with P8 also the first squaring of S4
    dt = _values(0.0625, 0.5)
    A = torch.complex(_values([-0.5, -0.25, -2.0], [-0.5, -0.125, -1.0]), _values([0.0, 3.0, -7.0], [1.0, 2.0, -3.0]))
    B, C, W = _complex(51, 2, 3), _complex(52, 2, 3), _complex(53, 2, 3)
    u, D = _real(54, 2, 2, L), _real(55, 2)
    P1, P2, P8 = _complex(56, 1, 2, 3), _complex(57, 2, 2, 3), 0.25 * _complex(58, 8, 2, 3)
    slow = _values(0.0, 0.0625, 0.125)
    right = torch.complex(_values(-0.5, 0.25, 0.75), _values(3.0, 1.0, -2.0))

    def series(Abar: Tensor, weights: Tensor, length: int = L) -> Tensor:
        """Re sum_n weights_n Abar_n^l, (H, length)."""
        return (weights[..., None] * Abar[..., None] ** torch.arange(length)).sum(-2).real

    def discrete(method: str, dt: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        z = dt[:, None] * A
        if method == "zoh":
            return z.exp(), (z.exp() - 1) / A * B
        return (1 + z / 2) / (1 - z / 2), dt[:, None] / (1 - z / 2) * B

    def s4d(method: str) -> Callable[..., Tensor]:
        def answer(dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
            Abar, Bbar = discrete(method, dt, A, B)
            return 2 * series(Abar, C * Bbar)

        return answer

    def dss(dt: Tensor, Lambda: Tensor, W: Tensor) -> Tensor:
        z = dt[:, None] * Lambda
        return series(z.exp(), W * (z.exp() - 1) / Lambda)

    def dss_softmax(dt: Tensor, Lambda: Tensor, W: Tensor) -> Tensor:
        z = (dt[:, None] * Lambda)[..., None] * torch.arange(L)
        return ((W / Lambda)[..., None] * z.exp() / z.exp().sum(-1, keepdim=True)).sum(-2).real

    def dlr(a: Tensor, w: Tensor, W: Tensor, length: int = L) -> Tensor:
        return series(torch.complex(-a * a, w).exp().expand_as(W), W, length)

    def s4_dense(dt: Tensor, Lambda: Tensor, P: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """Abar (H, N, N) and Bbar (H, N, 1) on states and their conjugates, N = 2 N'."""
        lam, p, b = (torch.cat([x, x.conj()], dim=-1) for x in (Lambda, P, B))
        M = torch.diag_embed(lam) - torch.einsum("rhi,rhj->hij", p, p.conj())
        identity = torch.eye(M.shape[-1], dtype=M.dtype)
        half = dt[:, None, None] / 2
        inverse = torch.linalg.inv(identity - half * M)
        return inverse @ (identity + half * M), inverse @ (2 * half * b[..., None])

    def s4(dt: Tensor, Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, length: int = L) -> Tensor:
        Abar, x = s4_dense(dt, Lambda, P, B)
        c = torch.cat([C, C.conj()], dim=-1)
        while x.shape[-1] < length:
            x, Abar = torch.cat([x, Abar @ x], dim=-1), Abar @ Abar
        return (c[:, None] @ x)[:, 0, :length].real

    def filtered(K: Tensor, u: Tensor, D: Tensor) -> Tensor:
        y = D[:, None] * u
        for lag in range(L):
            y = y + pad(K[:, lag, None] * u[..., : L - lag], (lag, 0))
        return y

    def stepped(step: Callable[..., Any], system: tuple[Tensor, ...], out: Tensor, u: Tensor, D: Tensor) -> Tensor:
        state = torch.zeros(u.shape[0], *out.shape, dtype=out.dtype, device=u.device)
        outputs = []
        for t in range(L):
            y, state = step(u[..., t], state, *system, out, D)
            outputs.append(y)
        return torch.stack(outputs, dim=-1)

    def kernel(name: str, *rest: Any) -> Callable[..., Tensor]:
        return lambda kernels, backend, *x: getattr(kernels.ssm, name)(*x, *rest, backend=backend)

    def case(
        name: str,
        what: str,
        inputs: tuple[Tensor, ...],
        rest: tuple[Any, ...],
        answer: Callable[..., Tensor],
        length: int = L,
    ) -> Case:
        call = kernel(name, *rest)
        return Case(f"ssm.{name}", what, ssm.KERNEL_BACKENDS, inputs, call, answer, length, length)

    def step_case(
        name: str, inputs: tuple[Tensor, ...], call: Callable[..., Tensor], answer: Callable[..., Tensor]
    ) -> Case:
        return Case(f"ssm.{name}", "against the convolution", ("reference",), inputs, call, answer, L, L)

    def legs(kernels: Kernels, backend: str, n: Tensor) -> tuple[Tensor, ...]:
        """A and B, A put together from its normal and low-rank parts, and P and B from their coordinates in V."""
        found = kernels.ssm.hippo_legs(len(n))
        V = torch.cat([found.V, found.V.conj()], dim=-1)
        lam, p, b = (torch.cat([x, x.conj()]) for x in (found.Lambda, found.P_t, found.B_t))
        whole = V @ torch.diag(lam) @ V.conj().T - torch.outer(found.P, found.P)
        return found.A, found.B, whole, V @ p, V @ b

    def legs_answer(n: Tensor) -> tuple[Tensor, ...]:
        B = (2 * n + 1).sqrt()
        A = -torch.outer(B, B).tril(-1) - torch.diag(n + 1)
        return A, B, A.to(torch.complex128), (n + 0.5).sqrt().to(torch.complex128), B.to(torch.complex128)

    def phi1(z: Tensor) -> Tensor:
        """(e^z - 1) / z at |z| < 1e-5."""
        return 1 + z / 2 * (1 + z / 3 * (1 + z / 4))

    tiny = _values(2.0**-24)
    found = [case("s4d_kernel", method, (dt, A, B, C), (L, method), s4d(method)) for method in ("zoh", "bilinear")]
    found += [
        Case(
            "ssm.s4d_kernel",
            "smallest step",
            ssm.KERNEL_BACKENDS,
            (tiny, A[:1], B[:1], C[:1]),
            kernel("s4d_kernel", 1, "zoh"),
            lambda dt, A, B, C: 2 * (C * B * dt * phi1(dt * A)).sum(-1, keepdim=True).real,
            condition=4.0,
        ),
        Case(
            "ssm.s4d_kernel",
            "by hand",
            ssm.KERNEL_BACKENDS,
            (
                _values(1.0),
                _values([-2.0]).to(torch.complex128),
                _values([3.0]).to(torch.complex128),
                _complex(58, 1, 1),
            ),
            kernel("s4d_kernel", 3, "bilinear"),
            lambda dt, A, B, C: torch.stack([3 * C[0].real, 0 * C[0].real, 0 * C[0].real], dim=-1),
            gradients=False,
        ),
        case("dss_kernel", "exp", (dt, A[0], W), (L, "exp"), dss),
        case("dss_kernel", "softmax, damped", (dt, A[0], W), (L, "softmax"), dss_softmax),
        case("dss_kernel", "softmax, mixed", (dt, right, W), (L, "softmax"), dss_softmax),
        case("dlr_kernel", "short", (_values(0.0, 0.25, 0.5), _values(1.5, 0.0, -2.5), W), (L,), dlr),
        case("dlr_kernel", "long", (slow, _values(1.5, 0.0, -2.5), W), (LONG,), partial(dlr, length=LONG), LONG),
        case("s4_kernel", "rank 1", (dt, A, P1, B, C), (L,), s4),
        case("s4_kernel", "rank 2", (dt, A, P2, B, C), (L,), s4),
        case("s4_kernel", "long", (dt, A, P1, B, C), (LONG,), partial(s4, length=LONG), LONG),
        case(
            "s4_kernel", "rank 8, long", (dt, A, P8, B, C), (4 * LONG,), partial(s4, length=4 * LONG), 4 * LONG
        )._replace(backends=tuple(backend for backend in ssm.KERNEL_BACKENDS if backend != "reference")),
        step_case(
            "s4d_step",
            (dt, A, B, C, u, D),
            lambda kernels, backend, dt, A, B, C, u, D: stepped(
                kernels.ssm.s4d_step, kernels.ssm.discretize(dt, A, B, "zoh"), C, u, D
            ),
            lambda dt, A, B, C, u, D: filtered(s4d("zoh")(dt, A, B, C), u, D),
        ),
        step_case(
            "dss_step",
            (dt, A, W, u, D),
            lambda kernels, backend, dt, A, W, u, D: stepped(
                kernels.ssm.dss_step, kernels.ssm.dss_discretize(dt, A, L, "exp"), W, u, D
            ),
            lambda dt, A, W, u, D: filtered(dss(dt, A, W), u, D),
        ),
        step_case(
            "dlr_step",
            (_values(0.25, 0.5, 0.125), _values(1.5, 0.0, -2.5), W, u, D),
            lambda kernels, backend, a, w, W, u, D: stepped(
                kernels.ssm.dlr_step, (kernels.ssm.dlr_discretize(a, w),), W, u, D
            ),
            lambda a, w, W, u, D: filtered(dlr(a, w, W), u, D),
        ),
        step_case(
            "s4_step",
            (dt, A, P1, B, C, u, D),
            lambda kernels, backend, dt, A, P, B, C, u, D: stepped(
                kernels.ssm.s4_step, kernels.ssm.s4_discretize(dt, A, P, B), C, u, D
            ),
            lambda dt, A, P, B, C, u, D: filtered(s4(dt, A, P, B, C), u, D),
        ),
        Case(
            "ssm.hippo_legs",
            "put together again",
            ("reference",),
            (torch.arange(8, dtype=torch.float64),),
            legs,
            legs_answer,
            gradients=False,
            length=8,
            condition=16.0,
        ),
    ]
    return found
