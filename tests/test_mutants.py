"""Seeded faults: each is put into the source of a kernel, and the known answers of the self-test have to notice it."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from types import ModuleType
from typing import NamedTuple
from unittest import mock

import pytest

from noscratch.known_answers import Kernels
from noscratch.passport import measure

# Modules to make anew, in this order, so that the fault reaches the one that is tested.
USERS = {"_vandermonde": ("_vandermonde", "_krylov", "ssm"), "_krylov": ("_krylov", "ssm")}


class Mutant(NamedTuple):
    fault: str
    module: str
    old: str
    new: str


MUTANTS = [
    # conv
    Mutant("reverse offsets swapped", "conv", "if reverse_offset == 0:", "if reverse_offset == 1:"),
    Mutant("sign of D", "conv", "add_(skip.unsqueeze(-1))", "sub_(skip.unsqueeze(-1))"),
    Mutant("D missing", "conv", "causal.new_zeros(H) if D is None else D.to(wide)", "causal.new_zeros(H)"),
    Mutant("gradient of D at another lag", "conv", "grad_kernel[:, 0]", "grad_kernel[:, -1]"),
    Mutant("circular leak", "conv", "_fft_size(L + max(causal", "_fft_size(max(causal"),
    Mutant("correlation for convolution", "conv", "(U, spectrum[h])", "(U, spectrum[h].conj())"),
    Mutant("reverse kernel not reversed", "conv", "gap, anticausal.flip(-1)]", "gap, anticausal]"),
    Mutant(
        "gradient of u not conjugated",
        "conv",
        "save_for_backward(spectrum.conj_physical_()",
        "save_for_backward(spectrum",
    ),
    Mutant("gradient of k not conjugated", "conv", "total.conj_physical_()", "total"),
    Mutant("gradient of k from one block", "conv", "saved[i][row]", "saved[0][row]"),
    Mutant(
        "gradient of k not summed",
        "conv",
        "total[h].addcmul_(G[row], saved[i][row])",
        "total[h] = G[row] * saved[i][row]",
    ),
    Mutant("always single precision", "conv", "torch.float64 if torch.float64 in", "torch.float32 if torch.float64 in"),
    Mutant("autocast left on", "conv", "torch.autocast(u.device.type, enabled=False)", "torch.autocast(u.device.type)"),
    Mutant("Toeplitz matrix transposed", "conv", '"hts,bhs->bht"', '"hst,bhs->bht"'),
    Mutant("lag off by one", "conv", "lag = lags.unsqueeze(-1) - lags", "lag = lags.unsqueeze(-1) - lags - 1"),
    Mutant("segments stretched twice as much", "conv", "2 ** max(0, i - 1)", "2**i"),
    Mutant("decay reversed", "conv", "multiplier ** (S - 1 - i)", "multiplier**i"),
    Mutant("norm after the cut", "conv", "norm(whole, dim=-1) if norm", "norm(whole[:, :length], dim=-1) if norm"),
    Mutant("no half-pixel centre", "conv", "(j + 0.5) / factor - 0.5", "j / factor"),
    Mutant("segment wraps around", "conv", 'mode="replicate"', 'mode="circular"'),
    # scan
    Mutant("coefficient off by one", "scan", "(a[:, :, row], x[:, :, before])", "(a[:, :, before], x[:, :, before])"),
    Mutant("adjoint coefficient off by one", "scan", "[a[:, 1:], torch.zeros_like(a[:, :1])]", "[a[:, :-1], a[:, :1]]"),
    Mutant("adjoint not conjugated", "scan", "following.conj().resolve_conj()", "following"),
    Mutant("gradient of a not conjugated", "scan", "x[:, :-1].conj()", "x[:, :-1]"),
    Mutant("gradient of a off by one", "scan", "s[:, 1:] * x[:, :-1]", "s[:, 1:] * x[:, 1:]"),
    Mutant("initial state not decayed", "scan", "a[:, :1] * initial.", "initial."),
    Mutant("own state carried", "scan", "carried[:, handing]", "carried[:, receiving]"),
    Mutant("one block carried", "scan", "addcmul_(factors[:, block], ", "addcmul_(0 * factors[:, block], "),
    Mutant("cancellation in gamma", "scan", "-torch.expm1(-2 * decay)", "1 - torch.exp(-2 * decay)"),
    Mutant("gamma without the square", "scan", "expm1(-2 * decay)", "expm1(-decay)"),
    Mutant("C conjugated", "scan", "C.conj().resolve_conj()", "C"),
    Mutant("angle without its exponential", "scan", "theta.double().exp()", "theta.double()"),
    Mutant("growth for decay", "scan", "(-decay).exp()", "decay.exp()"),
    Mutant("step without D", "scan", "+ D * wide).to(u.dtype), x", ").to(u.dtype), x"),
    # attention
    Mutant("rotation reversed", "attention", "cos * even - sin * odd", "cos * even + sin * odd"),
    Mutant("fast rotation reversed", "attention", "pairs * table", "pairs * table.conj()"),
    Mutant("angles by half the width", "attention", "device=device) / d)", "device=device) / (d // 2))"),
    Mutant(
        "angles in single precision",
        "attention",
        "arange(0, d, 2, dtype=torch.float64",
        "arange(0, d, 2, dtype=torch.float32",
    ),
    Mutant("offset ignored", "attention", "[offset : offset + L]", "[:L]"),
    Mutant("scores not divided by sqrt(d)", "attention", "/ math.sqrt(q.shape[-1])", ""),
    Mutant("query does not see itself", "attention", "seen = seen.tril()", "seen = seen.tril(-1)"),
    Mutant("one future key seen", "attention", "device=q.device).tril()", "device=q.device).tril(1)"),
    Mutant("causality ignored", "attention", "is_causal=causal and visible is None", "is_causal=False"),
    Mutant("padding seen, tokens hidden", "attention", "else mask[:, None, None, :]", "else ~mask[:, None, None, :]"),
    # structured
    Mutant("not dealt out", "structured", "unflatten(-1, (-1, w2.shape[0]))", "unflatten(-1, (w2.shape[0], -1)).mT"),
    Mutant("outputs not shuffled", "structured", "w2).transpose(-1, -2).flatten(-2)", "w2).flatten(-2)"),
    Mutant("block order swapped", "structured", "torch.bmm(rows, w.transpose", "torch.bmm(rows, w.flip(0).transpose"),
    Mutant("dense rows not gathered", "structured", "torch.block_diag(*w2)[gather]", "torch.block_diag(*w2)"),
    Mutant(
        "dense block order swapped", "structured", "w2 @ torch.block_diag(*w1)", "w2 @ torch.block_diag(*w1.flip(0))"
    ),
    Mutant(
        "gradient of x by the wrong side", "structured", "_product(dz, w_t, None)", "_product(dz, w_t.flip(1), None)"
    ),
    Mutant("bias lost", "structured", "functional.gelu(rows), w, b)", "functional.gelu(rows), w, None)"),
    Mutant("residual taken off", "structured", "piece.add_(r)", "piece.sub_(r)"),
    Mutant("bias of the product lost", "structured", "gelu(q)), w, b, piece)", "gelu(q)), w, None, piece)"),
    Mutant("gradients of the factors swapped", "structured", "gelu_q.mul_(dh), p)", "gelu_p * dh, p)"),
    # ssm
    Mutant("S4D without its factor 2", "ssm", "(Abar,), 2 * Bbar * C", "(Abar,), Bbar * C"),
    Mutant("dt missing from Bbar", "ssm", "step * scale * B", "scale * B"),
    Mutant("DSS without dt", "ssm", "return torch.exp(z), step * phi1(z)", "return torch.exp(z), phi1(z)"),
    Mutant("DSS taps one step late", "ssm", "(Abar,), Bbar * W", "(Abar,), Abar * Bbar * W"),
    Mutant(
        "softmax over one tap more",
        "ssm",
        "c = W * (phi1(z) / (length * phi1(length",
        "c = W * (phi1(z) / (length * phi1((length + 1)",
    ),
    Mutant("growing modes not reversed", "ssm", "backward.flip(-1)", "backward"),
    Mutant("decay of DLR not squared", "ssm", "-(a.double() ** 2)", "-a.double()"),
    Mutant("frequency of DLR negated", "ssm", "w.double()", "-w.double()"),
    Mutant(
        "S4 step with twice dt", "ssm", "half = dt.double()[:, None, None] / 2", "half = dt.double()[:, None, None]"
    ),
    Mutant("S4 low rank added", "ssm", "diagonal - 2 * torch.einsum", "diagonal + 2 * torch.einsum"),
    Mutant(
        "S4 rotation transposed",
        "ssm",
        "(lam.real, -lam.imag, lam.imag, lam.real)",
        "(lam.real, lam.imag, -lam.imag, lam.real)",
    ),
    Mutant("fast S4 low rank added", "ssm", "U = -4 * s", "U = 4 * s"),
    Mutant("fast S4 P not conjugated", "ssm", "V = (P.conj() *", "V = (P *"),
    Mutant("fast S4 B without its correction", "ssm", "2 * s * d * B + s * (seen", "2 * s * d * B + 0 * s * (seen"),
    Mutant("step without D", "ssm", "y + D * u", "y"),
    Mutant("kernel of a step, not of an impulse", "ssm", "u = torch.zeros_like(u)", "u = torch.ones_like(u)"),
    Mutant("HiPPO diagonal off by one", "ssm", "torch.diag(n + 1)", "torch.diag(n)"),
    Mutant("HiPPO low rank too large", "ssm", "torch.sqrt(n + 0.5)", "torch.sqrt(n + 1.0)"),
    Mutant("bilinear sign", "_vandermonde", "(1 + z / 2) * inverse", "(1 - z / 2) * inverse"),
    Mutant("no series for small steps", "_vandermonde", "z.abs() < 0.5", "z.abs() < 0.0"),
    Mutant("derivative not conjugated", "_vandermonde", "grad * derivative.conj()", "grad * derivative"),
    Mutant("coarse powers off by one", "_vandermonde", "fine[:, -1] * z", "fine[:, -1]"),
    Mutant("doubling without squaring", "_vandermonde", "2 * filled, ratio * ratio", "2 * filled, ratio"),
    Mutant(
        "correction of the correction added", "_krylov", "torch.cat((-below, inverse)", "torch.cat((below, inverse)"
    ),
    Mutant("adjoint of the correction not transposed", "_krylov", "inverse.mT @ d_solution", "inverse @ d_solution"),
    Mutant("levels without squaring", "_krylov", "(E @ E, dtype)", "(E + 0, dtype)"),
]


def mutated(mutant: Mutant) -> Kernels:
    """All kernels, with the fault in place. Fails if the source has no single place for it."""
    names = USERS.get(mutant.module, (mutant.module,))
    made: dict[str, ModuleType] = {}
    for name in names:
        full = f"noscratch.kernels.{name}"
        source = inspect.getsource(importlib.import_module(full))
        if name == mutant.module:
            assert source.count(mutant.old) == 1, (
                f"{name} has {source.count(mutant.old)} places for {mutant.old!r}, not 1"
            )
            source = source.replace(mutant.old, mutant.new)
        module = ModuleType(full)
        with mock.patch.dict(sys.modules, made):
            exec(compile(source, f"<{mutant.fault}>", "exec"), module.__dict__)
        made[full] = module
    return Kernels()._replace(**{names[-1]: made[f"noscratch.kernels.{names[-1]}"]})


@pytest.mark.proves("mutants")
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.module}: {mutant.fault}")
def test_every_fault_is_noticed(mutant: Mutant) -> None:
    tested = USERS.get(mutant.module, (mutant.module,))[-1]
    kernels = mutated(mutant)
    findings = measure("cpu", kernels, only=(tested,))
    # By wrong numbers: one that only crashes would say nothing about the answers.
    assert any(not finding.passed and math.isfinite(finding.max) for finding in findings)


@pytest.mark.parametrize("module", ["attention", "conv", "scan", "structured", "_vandermonde", "_krylov"])
def test_without_a_fault_nothing_is_noticed(module: str) -> None:
    """Making a module anew is not what the test above notices."""
    kernels = mutated(
        Mutant("none", module, "from __future__ import annotations", "from __future__ import annotations")
    )
    tested = USERS.get(module, (module,))[-1]
    assert [finding for finding in measure("cpu", kernels, only=(tested,)) if not finding.passed] == []


def test_there_are_enough_faults() -> None:
    assert len(set(MUTANTS)) == len(MUTANTS) >= 30
