"""Self-test of every kernel and backend against its known answers on the present device, in a few seconds, then cached.

Values and gradients are compared in float32 and float64.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from noscratch import atomic, code
from noscratch.device import processor, require
from noscratch.errors import NoscratchError
from noscratch.known_answers import Case, Kernels, cases, tolerance


class Finding(NamedTuple):
    kernel: str
    case: str
    backend: str
    dtype: str
    max: float
    rms: float
    allowed: float
    failure: str | None  # what was raised, or which output is off

    @property
    def passed(self) -> bool:
        return self.failure is None


def check(device: str, cache: Path) -> dict[str, Any]:
    """The report for `device` ("cpu", "cuda", ...), from `cache` if it holds one of this device, environment and code.

    Keys: schema, device, environment, code, passed, worst (kernel -> backend -> dtype -> max, rms, allowed), failed and
    digest (over all the rest). It is stored either way; raises NoscratchError naming the kernels that failed.
    """
    identity = identify(device)
    path = cache / f"passport-{_digest(identity)[:16]}.json"
    report = _stored(path)
    if report is None:
        report = identity | _summary(list(measure(device)))
        report["digest"] = _digest(report)
        atomic.write(path, json.dumps(report, indent=1, sort_keys=True, allow_nan=False).encode())
    if report["failed"]:
        kernels = sorted({finding["kernel"] for finding in report["failed"]})
        first = report["failed"][0]
        raise NoscratchError(
            f"Jobs run only where every kernel gives its known answers; on {report['device']['name']} these do not: "
            f"{', '.join(kernels)} (first: {first['case']}, {first['backend']}, {first['dtype']}: {first['failure']}). "
            f"Run on another device or with another build of PyTorch; all findings are in {path.name}."
        )
    return report


def identify(device: str) -> dict[str, Any]:
    """What a report holds for: the device, the numerical libraries and the code of the kernels.

    Raises NoscratchError for a device that PyTorch does not have.
    """
    require(device)
    if torch.device(device).type == "cuda":
        found = torch.cuda.get_device_properties(device)
        what = {"name": found.name, "capability": f"{found.major}.{found.minor}", "memory": found.total_memory}
        what["uuid"] = str(found.uuid)
    else:
        what = {"name": device, "processor": processor(), "machine": platform.machine()}
        what["capability"] = torch.backends.cpu.get_cpu_capability()
    environment = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "build": hashlib.sha256(torch.__config__.show().encode()).hexdigest(),
    }
    return {"schema": 2, "device": what, "environment": environment, "code": code.digest(("noscratch.passport",))}


def measure(device: str, kernels: Kernels | None = None, only: tuple[str, ...] = ()) -> Iterator[Finding]:
    """Every case with every backend in float32 and float64. `only` keeps the modules of these names."""
    modules = Kernels() if kernels is None else kernels
    for case in cases():
        if only and case.kernel.split(".")[0] not in only:
            continue
        wanted = _run(case.answer, case.inputs, case.gradients)
        for backend in case.backends:
            for dtype in (torch.float32, torch.float64):
                yield _compare(case, modules, backend, dtype, device, wanted)


def _compare(
    case: Case, kernels: Kernels, backend: str, dtype: torch.dtype, device: str, wanted: list[Tensor]
) -> Finding:
    allowed = tolerance(dtype, case.length, case.condition)
    largest, rms, failure = 0.0, 0.0, None
    try:
        inputs = [_cast(x, dtype).to(device) for x in case.inputs]
        got = _run(lambda *x: case.call(kernels, backend, *x), inputs, case.gradients)
        if [x.shape for x in got] != [x.shape for x in wanted]:
            raise ValueError(f"shapes {[tuple(x.shape) for x in got]}, not {[tuple(x.shape) for x in wanted]}")
    except Exception as raised:  # a kernel that cannot run here has failed its test, whatever it raised
        largest, rms, failure = math.inf, math.inf, f"{type(raised).__name__}: {raised}"
    else:
        for index, (x, want) in enumerate(zip(got, wanted, strict=True)):
            scale = want.abs().max().item()
            difference = (_cast(x.cpu(), torch.float64) - want).abs() / (scale or 1.0)
            off = difference.max().nan_to_num(math.inf).item()
            if off > allowed:
                failure = failure or f"output {index} is off by {off:.2g} of its scale, allowed {allowed:.2g}"
            if off >= largest:
                largest, rms = off, difference.square().mean().sqrt().item()
    return Finding(case.kernel, case.name, backend, str(dtype).removeprefix("torch."), largest, rms, allowed, failure)


def _run(f: Callable[..., Any], inputs: Any, gradients: bool) -> list[Tensor]:
    """The outputs of f, then the gradients to every input of sum_i cos(i + 1) y_i with y the first output."""
    leaves = [x.detach().clone().requires_grad_(gradients) for x in inputs]
    out = f(*leaves)
    outputs = list(out) if isinstance(out, tuple) else [out]
    if not gradients:
        return outputs
    y = outputs[0]
    weights = torch.arange(1, y.numel() + 1, dtype=torch.float64).cos().view(y.shape).to(y.device, y.dtype)
    return [x.detach() for x in outputs] + list(
        torch.autograd.grad((weights * y).sum().real, leaves, materialize_grads=True)
    )


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype.to_complex() if x.is_complex() else dtype)


def _summary(findings: list[Finding]) -> dict[str, Any]:
    worst: dict[str, Any] = {}
    for finding in sorted(findings, key=lambda finding: finding.max):
        row = worst.setdefault(finding.kernel, {}).setdefault(finding.backend, {})
        row[finding.dtype] = {key: _number(getattr(finding, key)) for key in ("max", "rms", "allowed")}
    failed = [
        finding._asdict() | {"max": _number(finding.max), "rms": _number(finding.rms)}
        for finding in findings
        if not finding.passed
    ]
    return {"passed": not failed, "worst": worst, "failed": failed}


def _number(x: float) -> float | None:
    """JSON has no infinity."""
    return x if math.isfinite(x) else None


def _digest(report: dict[str, Any]) -> str:
    content = {key: value for key, value in report.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _stored(path: Path) -> dict[str, Any] | None:
    """The report at `path`; None if there is none, or if it is damaged and so has to be made again."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    whole = isinstance(report, dict) and report.get("digest") == _digest(report)
    return report if whole else None
