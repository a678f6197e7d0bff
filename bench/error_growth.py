"""Errors of every kernel against extended precision, for lengths 1 to 65,536 and every number format.

    python -m bench.error_growth --out FOLDER [--longest 65536]

All numbers that go in are exact in bfloat16, so that every format sees the same ones. Values are compared with the
formulas computed in NumPy's long double, which call no kernel; gradients of narrow formats with those in float64.
`max` and `rms` are relative to the largest value; `allowed` is the rule of the tests. "plain" is the S4D kernel as its
paper writes it, in the same format. Writes FOLDER/error_growth.parquet and its record.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.fft
import scipy.special
import torch
from torch import Tensor

from bench import plain
from noscratch.kernels import attention, conv, scan, ssm, structured
from noscratch.known_answers import tolerance
from noscratch.record import Stopwatch, write_bench

MODULES = tuple(f"noscratch.kernels.{name}" for name in ("attention", "conv", "scan", "ssm", "structured"))
LONGEST = 2**16
LONGEST_QUADRATIC = 2**14  # gradients of attention
QUERIES = 64  # of attention that are compared
Array = Any
WIDE, NARROW = (torch.float64, torch.float32), (torch.float64, torch.float32, torch.bfloat16)


def in_double(length: int, dtype: torch.dtype) -> float:
    """Powers and angles are in float64 whatever the format, and their errors add up over the length."""
    return 1.0 + length * torch.finfo(torch.float64).eps / torch.finfo(dtype).eps


def in_blocks(length: int, _: torch.dtype) -> float:
    """A block of about sqrt(length) positions takes a coefficient that is rounded to the format."""
    return math.sqrt(length)


def few(_: int, __: torch.dtype) -> float:
    """Sums of products of normal numbers, whose largest is a few times smaller than the sum of all sizes."""
    return 4.0


@dataclass(frozen=True)
class Case:
    """`make` gives float64 or complex128 inputs, `call` the kernel's result, `truth` the same from long doubles.

    `activations` says which inputs have the number format; the others have float32 below it. A kernel of parameters
    alone has none, and its format is that of the parameters. `condition` is that of `tolerance`.
    """

    kernel: str
    make: Callable[[int], tuple[Tensor, ...]]
    call: Callable[..., Tensor]
    truth: Callable[..., Array]
    activations: tuple[int, ...] = ()
    condition: Callable[[int, torch.dtype], float] = in_double
    backend: str = "fast"
    longest_gradient: int = LONGEST


# ---------------------------------------------------------------- inputs


def real(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    """Normal numbers, exact in bfloat16."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    return x.bfloat16().double()


def complexes(seed: int, *shape: int) -> Tensor:
    return torch.complex(real(seed, *shape), real(seed + 1, *shape))


def poles(damping: Sequence[float]) -> Tensor:
    """Eigenvalues -damping + i pi n, (16,), exact in bfloat16."""
    n = torch.arange(16)
    decay = torch.tensor(damping).repeat(-(-16 // len(damping)))[:16]
    return torch.complex(-decay.bfloat16().double(), (torch.pi * n).bfloat16().double())


STEPS = torch.tensor([2.0**-10, 0.0625], dtype=torch.float64)
# |a| up to 1 - 3e-5
FACTORS = torch.tensor([0.5 + 0.25j, -0.9375 + 0.3125j, 0.9921875 - 0.12451171875j], dtype=torch.complex128)
DAMPED, HARDLY = (0.5, 0.125, 2.0), (2.0**-20, 0.5)


def state_space(_: int) -> tuple[Tensor, ...]:
    """dt, A, B, C of two heads; every second mode hardly decays."""
    return STEPS, poles(HARDLY), complexes(1, 2, 16), complexes(3, 2, 16)


def dss_parameters(damping: Sequence[float], _: int) -> tuple[Tensor, ...]:
    return STEPS, poles(damping), complexes(5, 2, 16)


# ---------------------------------------------------------------- truth


def wide(x: Tensor) -> Array:
    """The same numbers as long doubles."""
    return x.resolve_conj().numpy().astype(np.clongdouble if x.is_complex() else np.longdouble)


def power_sum(z: Array, c: Array, length: int) -> Array:
    """Re sum_n c_n e^{z_n l}: z, c (H, N) -> (H, length)."""
    l = np.arange(length, dtype=np.longdouble)
    return np.stack([(ci[:, None] * np.exp(zi[:, None] * l)).sum(0).real for zi, ci in zip(z, c, strict=True)])


def s4d_truth(method: str) -> Callable[..., Array]:
    def truth(length: int, dt: Array, A: Array, B: Array, C: Array) -> Array:
        z = dt[:, None] * A
        if method == "zoh":
            return 2 * power_sum(z, C * B * (np.exp(z) - 1) / A, length)
        return 2 * power_sum(np.log((1 + z / 2) / (1 - z / 2)), C * B * dt[:, None] / (1 - z / 2), length)

    return truth


def dss_truth(variant: str) -> Callable[..., Array]:
    def truth(length: int, dt: Array, Lambda: Array, W: Array) -> Array:
        z = dt[:, None] * Lambda
        if variant == "exp":
            return power_sum(z, W * (np.exp(z) - 1) / Lambda, length)
        total = np.stack([np.exp(np.outer(zi, np.arange(length, dtype=np.longdouble))).sum(-1) for zi in z])
        return power_sum(z, W / Lambda / total, length)

    return truth


def dlr_truth(length: int, a: Array, w: Array, W: Array) -> Array:
    return power_sum(np.broadcast_to(-a * a + 1j * w, W.shape), W, length)


def s4_truth(length: int, dt: Array, Lambda: Array, P: Array, B: Array, C: Array) -> Array:
    """Dense matrices on the states and their conjugates, powers by doubling."""
    lam, p, b = (np.concatenate([x, x.conj()], axis=-1) for x in (Lambda, P, B))
    identity = np.eye(len(lam), dtype=np.longdouble)
    found = []
    for h, step in enumerate(dt):
        A = step / 2 * (np.diag(lam) - np.einsum("ri,rj->ij", p, p.conj()))
        inverse = np.linalg.inv((identity - A).astype(np.complex128)).astype(np.clongdouble)
        for _ in range(2):  # Newton, to all digits
            inverse = inverse @ (2 * identity - (identity - A) @ inverse)
        Abar, x = inverse @ (identity + A), (inverse @ (step * b))[:, None]
        while x.shape[1] < length:
            x, Abar = np.concatenate([x, Abar @ x], axis=1), Abar @ Abar
        found.append((np.concatenate([C[h], C[h].conj()]) @ x)[:length].real)
    return np.stack(found)


def conv_truth(length: int, u: Array, k: Array, D: Array, r: Array) -> Array:
    n = 2 * length
    ring = np.zeros((len(k), n), dtype=np.longdouble)
    ring[:, :length] = k
    ring[:, 0] += D
    ring[:, length + 1 :] += r[:, : length - 1][:, ::-1]
    return scipy.fft.irfft(scipy.fft.rfft(u, n) * scipy.fft.rfft(ring, n), n)[..., :length]


def sgconv_truth(length: int, W: Array) -> Array:
    S, _, d = W.shape
    parts = []
    for i, w in enumerate(W):
        factor = 2 ** max(0, i - 1)
        place = np.clip((np.arange(d * factor, dtype=np.longdouble) + 0.5) / factor - 0.5, 0, d - 1)
        left = place.astype(int)
        right = np.minimum(left + 1, d - 1)
        parts.append(np.longdouble(1.5) ** (S - 1 - i) * (w[:, left] + (w[:, right] - w[:, left]) * (place - left)))
    row = np.concatenate(parts, axis=-1)
    return row[:, :length] / np.sqrt((row * row).sum(-1, keepdims=True))


def scan_truth(length: int, a: Array, b: Array) -> Array:
    x, states = np.zeros_like(b[:, 0]), np.empty_like(b)
    for t in range(length):
        x = a * x + b[:, t]
        states[:, t] = x
    return states


def lru_truth(length: int, nu: Array, theta: Array, B: Array, C: Array, D: Array, u: Array) -> Array:
    lam = np.exp(-np.exp(nu) + 1j * np.exp(theta))
    gamma = np.sqrt(-np.expm1(-2 * np.exp(nu)))
    x = scan_truth(length, lam, u @ (gamma[:, None] * B).T)
    return (x @ C.T).real + D * u


def rotary_truth(length: int, x: Array) -> Array:
    d = x.shape[-1]
    frequency = np.longdouble(10000) ** (-np.arange(0, d, 2, dtype=np.longdouble) / d)
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * np.arange(length)[:, None] * frequency)
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def queries(length: int) -> list[int]:
    return sorted({round(i * (length - 1) / (QUERIES - 1)) for i in range(QUERIES)})


def attend_truth(length: int, q: Array, k: Array, v: Array) -> Array:
    rows = []
    for t in queries(length):
        scores = np.einsum("bhd,bhsd->bhs", q[:, :, t], k[:, :, : t + 1]) / np.sqrt(np.longdouble(q.shape[-1]))
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        rows.append(np.einsum("bhs,bhsd->bhd", weights / weights.sum(-1, keepdims=True), v[:, :, : t + 1]))
    return np.stack(rows, axis=2)


def gelu_truth(x: Array) -> Array:
    """SciPy's error function is of float64."""
    return x * (1 + scipy.special.erf((x / np.sqrt(np.longdouble(2))).astype(np.float64))) / 2


def gated_truth(_: int, x: Array, w: Array, b: Array) -> Array:
    p, q = np.split(gelu_truth(x) @ w.T + b, 2, axis=-1)
    return p / (1 + np.exp(-q))


def gelu_product_truth(
    _: int, u: Array, v: Array, w_u: Array, b_u: Array, w_v: Array, b_v: Array, w: Array, b: Array
) -> Array:
    return (gelu_truth(u @ w_u.T + b_u) * gelu_truth(v @ w_v.T + b_v)) @ w.T + b


def block_diagonal(x: Array, w: Array) -> Array:
    return np.einsum("boi,tbi->tbo", w, x.reshape(len(x), len(w), -1)).reshape(len(x), -1)


def shuffle_truth(_: int, x: Array, w1: Array, w2: Array) -> Array:
    dealt = block_diagonal(x, w1).reshape(len(x), -1, len(w2)).swapaxes(1, 2).reshape(len(x), -1)
    return block_diagonal(dealt, w2).reshape(len(x), len(w2), -1).swapaxes(1, 2).reshape(len(x), -1)


# ---------------------------------------------------------------- cases


def s4d(method: str, length: int, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    return ssm.s4d_kernel(dt, A, B, C, length, method)


def dss(variant: str, length: int, dt: Tensor, Lambda: Tensor, W: Tensor) -> Tensor:
    return ssm.dss_kernel(dt, Lambda, W, length, variant)


def plain_s4d(length: int, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    z = dt[:, None] * A
    return 2 * plain.diagonal_taps(z, (C * B * (torch.exp(z) - 1) / A)[None], length)[0]


def cases() -> list[Case]:
    """Every kernel, with errors of powers that add up along the recurrences."""
    found = [
        Case(f"ssm.s4d_kernel, {method}", state_space, partial(s4d, method), s4d_truth(method))
        for method in ("zoh", "bilinear")
    ]
    found.append(Case("ssm.s4d_kernel, zoh", state_space, plain_s4d, s4d_truth("zoh"), backend="plain"))
    found += [
        Case(
            f"ssm.dss_kernel, {variant}",
            partial(dss_parameters, damping),
            partial(dss, variant),
            dss_truth(variant),
        )
        for variant, damping in (("exp", HARDLY), ("softmax", DAMPED))
    ]
    found += [
        Case(
            "ssm.dlr_kernel",
            lambda L: (real(7, 16, scale=0.03125), real(8, 16), complexes(9, 2, 16)),
            lambda L, a, w, W: ssm.dlr_kernel(a, w, W, L),
            dlr_truth,
        ),
        Case(
            "ssm.s4_kernel",
            lambda L: (STEPS, poles(DAMPED), complexes(11, 1, 16), complexes(13, 16), complexes(15, 2, 16)),
            lambda L, dt, A, P, B, C: ssm.s4_kernel(dt, A, P, B, C, L),
            s4_truth,
        ),
        Case(
            "scan.linear_scan",
            lambda L: (FACTORS, complexes(17, 1, L, 3)),
            lambda L, *x: scan.linear_scan(*x),
            scan_truth,
        ),
        Case(
            "scan.lru",
            lambda L: (
                real(19, 16) - 4,
                real(20, 16),
                complexes(21, 16, 4),
                complexes(23, 4, 16),
                real(25, 4),
                real(26, 1, L, 4),
            ),
            lambda L, *x: scan.lru(*x),
            lru_truth,
            activations=(5,),
            condition=in_blocks,
        ),
        Case(
            "conv.long_conv",
            lambda L: (real(27, 2, 2, L), real(28, 2, L), real(29, 2), real(30, 2, L)),
            lambda L, *x: conv.long_conv(*x),
            conv_truth,
            activations=(0,),
            condition=few,
        ),
        Case(
            "conv.sgconv_kernel",
            lambda L: (real(31, 1 + max(0, (-(-L // 4) - 1).bit_length()), 2, 4),),
            lambda L, W: conv.sgconv_kernel(W, 1.5, L),
            sgconv_truth,
        ),
        Case(
            "attention.rotary",
            lambda L: (real(33, 1, 1, L, 8),),
            lambda L, x: attention.rotary(x),
            rotary_truth,
            activations=(0,),
        ),
        Case(
            "attention.attend",
            lambda L: tuple(real(seed, 1, 1, L, 16) for seed in (34, 35, 36)),
            lambda L, q, k, v: attention.attend(q, k, v, causal=True)[:, :, queries(L)],
            attend_truth,
            activations=(0, 1, 2),
            condition=few,
            longest_gradient=LONGEST_QUADRATIC,
        ),
        Case(
            "structured.linear",
            lambda L: (real(37, 4, L), real(38, 4, L), real(39, 4)),
            lambda L, *x: structured.linear(*x),
            lambda L, x, w, b: x @ w.T + b,
            activations=(0, 1, 2),
            condition=few,
        ),
        Case(
            "structured.gated",
            lambda L: (real(51, 4, L), real(52, 4, L, scale=L**-0.5), real(53, 4)),
            lambda L, *x: structured.gated(*x),
            gated_truth,
            activations=(0, 1, 2),
            condition=few,
        ),
        Case(
            "structured.gelu_product",
            lambda L: (
                *(real(seed, 4, L) for seed in (54, 55)),
                *(real(56, 4, L, scale=L**-0.5), real(57, 4), real(58, 4, L, scale=L**-0.5), real(59, 4)),
                *(real(60, 4, 4), real(61, 4)),
            ),
            lambda L, *x: structured.gelu_product(*x),
            gelu_product_truth,
            activations=tuple(range(8)),
            condition=few,
        ),
        Case(
            "structured.low_rank",
            lambda L: (real(40, 4, L), real(41, 4, L), real(42, 4, 4)),
            lambda L, *x: structured.low_rank(*x),
            lambda L, x, a, b: x @ a.T @ b.T,
            activations=(0, 1, 2),
            condition=few,
        ),
        Case(
            "structured.block_dense",
            lambda L: (real(43, 4, L), real(44, min(4, L), 4, L // min(4, L)), real(45, 4, 4 * min(4, L))),
            lambda L, *x: structured.block_dense(*x),
            lambda L, x, w1, w2: block_diagonal(x, w1) @ w2.T,
            activations=(0, 1, 2),
            condition=few,
        ),
        Case(
            "structured.block_shuffle",
            lambda L: (real(46, 4, L), real(47, min(4, L), 4, L // min(4, L)), real(48, 2, 2, 2 * min(4, L))),
            lambda L, *x: structured.block_shuffle(*x),
            shuffle_truth,
            activations=(0, 1, 2),
            condition=few,
        ),
    ]
    return found


# ---------------------------------------------------------------- errors


def cast(case: Case, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The inputs in the formats that go with `dtype`, ready for gradients."""
    below = dtype if dtype.itemsize >= 4 else torch.float32
    kept = [dtype if i in case.activations else below for i in range(len(inputs))]
    return [
        x.to(kind.to_complex() if x.is_complex() else kind, copy=True).requires_grad_()
        for x, kind in zip(inputs, kept, strict=True)
    ]


def error(got: Array, want: Array) -> tuple[float, float]:
    """max and RMS of the difference, relative to the largest value."""
    difference = np.abs(got - want) / np.abs(want).max()
    return float(difference.max()), float(np.sqrt((difference * difference).mean()))


def gradients(case: Case, inputs: Sequence[Tensor], length: int, dtype: torch.dtype) -> tuple[Tensor, list[Array]]:
    """The result, and the gradients of its product with fixed weights."""
    leaves = cast(case, inputs, dtype)
    y = case.call(length, *leaves)
    weights = real(50, *y.shape)
    if length > case.longest_gradient:
        return y, []
    y.backward(weights.to(y.dtype))
    return y, [x.grad.to(_double(x)).resolve_conj().numpy() for x in leaves if x.grad is not None]


def _double(x: Tensor) -> torch.dtype:
    return torch.complex128 if x.is_complex() else torch.float64


def measure(case: Case, length: int) -> Iterator[dict[str, Any]]:
    """One row for the values in every format, one for all gradients in every format below float64."""
    inputs = case.make(length)
    truth = case.truth(length, *map(wide, inputs))
    expected: list[Array] = []
    for dtype in NARROW if case.activations else WIDE:
        y, found = gradients(case, inputs, length, dtype)
        values = error(wide(y.detach().to(_double(y))), truth)
        about = {"backend": case.backend, "dtype": str(dtype).removeprefix("torch."), "length": length}
        allowed = tolerance(dtype, length, case.condition(length, dtype))
        yield {"kernel": case.kernel, **about, "max": values[0], "rms": values[1], "allowed": allowed}
        if dtype == torch.float64:
            expected = found
        elif found and case.backend == "fast":
            each = [error(got, want) for got, want in zip(found, expected, strict=True) if np.abs(want).max() > 0]
            worst = max(each)
            yield {
                "kernel": f"{case.kernel}, gradients",
                **about,
                "max": worst[0],
                "rms": worst[1],
                "allowed": few(length, dtype) * allowed,
            }


SCHEMA = pa.schema(
    [
        ("kernel", pa.string()),
        ("backend", pa.string()),
        ("dtype", pa.string()),
        ("length", pa.int64()),
        ("max", pa.float64()),
        ("rms", pa.float64()),
        ("allowed", pa.float64()),
    ]
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of error_growth.parquet")
    parser.add_argument("--longest", type=int, default=LONGEST)
    asked = parser.parse_args()
    watch = Stopwatch(Path(__file__).parents[1], "cpu")
    rows: list[dict[str, Any]] = []
    for case in cases():
        length = 1
        while length <= asked.longest:
            rows += measure(case, length)
            length *= 2
        latest = [row for row in rows if row["length"] == length // 2 and row["kernel"].startswith(case.kernel)]
        for row in latest[-5:]:
            print(
                f"{row['kernel']:36} {row['backend']:6} {row['dtype']:9} {row['length']:6} {row['max']:.2g}", flush=True
            )
    asked.out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), asked.out / "error_growth.parquet")
    write_bench(asked.out, "error-growth", {"longest": asked.longest}, MODULES, watch)


if __name__ == "__main__":
    main()
