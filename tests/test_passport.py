"""The self-test: it passes here, covers every kernel and backend, is cached for what it holds for, and refuses."""

from __future__ import annotations

import errno
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch

from noscratch import passport
from noscratch.errors import NoscratchError
from noscratch.kernels import attention, conv, scan, ssm, structured
from noscratch.known_answers import Case, cases
from test_kernels_api import ONE_FORM

MODULES = (attention, conv, scan, ssm, structured)


def public(module: ModuleType) -> list[str]:
    return [
        name
        for name, f in inspect.getmembers(module, inspect.isfunction)
        if f.__module__ == module.__name__ and name[0] != "_"
    ]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """Two cheap cases in place of all."""
    kept = [
        case for case in cases() if case.name == "by hand" and case.kernel in ("conv.long_conv", "scan.linear_scan")
    ]
    monkeypatch.setattr(passport, "cases", lambda: kept)
    return kept


def test_every_kernel_passes_here() -> None:
    findings = list(passport.measure("cpu"))
    assert [finding for finding in findings if not finding.passed] == []
    assert {finding.dtype for finding in findings} == {"float32", "float64"}


def test_every_kernel_with_a_backend_has_answers_for_each() -> None:
    tested = {(case.kernel, backend) for case in cases() for backend in case.backends}
    for module in MODULES:
        short = module.__name__.rpartition(".")[2]
        for name in public(module):
            if name not in ONE_FORM:
                for backend in ("reference", "fast"):
                    assert (f"{short}.{name}", backend) in tested


def test_report_is_cached_and_whole(tmp_path: Path, few: list[Case]) -> None:
    report = passport.check("cpu", tmp_path)
    assert report["passed"] is True
    assert set(report["worst"]) == {case.kernel for case in few}
    entry = report["worst"]["conv.long_conv"]["fast"]["float32"]
    assert 0 <= entry["rms"] <= entry["max"] <= entry["allowed"]
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text()) == report
    with mock.patch.object(passport, "measure", side_effect=AssertionError("measured again")):
        assert passport.check("cpu", tmp_path) == report


def test_a_report_holds_for_one_processor(tmp_path: Path, few: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processors may have one instruction set and differ in what their libraries do."""
    passport.check("cpu", tmp_path)
    monkeypatch.setattr(passport, "processor", lambda: "another")
    assert passport.check("cpu", tmp_path)["device"]["processor"] == "another"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_report_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, few: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:9])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        passport.check("cpu", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_there_is_refused_before_any_kernel_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for device, says in (("cuda", "is a GPU that PyTorch sees"), ("foo", "A device is cpu, cuda")):
        with pytest.raises(NoscratchError, match=says):
            passport.check(device, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["device", "environment", "code"])
def test_another_device_environment_or_code_is_measured_anew(tmp_path: Path, few: list[Case], key: str) -> None:
    passport.check("cpu", tmp_path)
    other = passport.identify("cpu") | {key: {"name": "other"}}
    with mock.patch.object(passport, "identify", return_value=other):
        assert passport.check("cpu", tmp_path)[key] == {"name": "other"}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"passed": true, "failed": []}'])
def test_a_damaged_report_is_made_again(tmp_path: Path, few: list[Case], damage: str) -> None:
    report = passport.check("cpu", tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(damage)
    assert passport.check("cpu", tmp_path) == report
    assert json.loads(path.read_text()) == report


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda a, b, **_: b + 1, "is off by"),
        (lambda a, b, **_: b * torch.nan, "is off by inf"),
        (lambda a, b, **_: b[:, :1], "shapes"),
        (lambda a, b, **_: torch.linalg.inv(b), "LinAlgError|RuntimeError"),
    ],
)
def test_a_kernel_that_fails_is_named_and_refused(
    tmp_path: Path, few: list[Case], monkeypatch: pytest.MonkeyPatch, broken: Callable[..., Any], says: str
) -> None:
    monkeypatch.setattr(scan, "linear_scan", broken)
    with pytest.raises(NoscratchError, match=r"known answers; on cpu these do not: scan\.linear_scan \(") as caught:
        passport.check("cpu", tmp_path)
    assert any(part in str(caught.value) for part in says.split("|"))
    (path,) = tmp_path.iterdir()
    assert path.name in str(caught.value)
    report = json.loads(path.read_text())
    assert report["passed"] is False
    assert {finding["kernel"] for finding in report["failed"]} == {"scan.linear_scan"}
    with pytest.raises(NoscratchError, match=r"scan\.linear_scan"):
        passport.check("cpu", tmp_path)


def test_only_keeps_modules(few: list[Case]) -> None:
    assert {finding.kernel for finding in passport.measure("cpu", only=("conv",))} == {"conv.long_conv"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_kernel_passes_on_the_gpu() -> None:
    assert [finding for finding in passport.measure("cuda") if not finding.passed] == []
