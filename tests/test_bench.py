"""The benchmarks compare the same functions, give every row that they promise, and measure what they say; no times."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tolerances import assert_close, tolerance

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import _timing, error_growth, kernels, peers

TINY = kernels.Shape(2, 8, 48, 8)
ODD = kernels.Shape(1, 8, 33, 4)


@pytest.mark.parametrize("shape", [TINY, ODD])
@pytest.mark.parametrize("item", kernels.ITEMS)
def test_both_sides_compute_the_same_values_and_gradients(item: str, shape: kernels.Shape) -> None:
    spec = kernels.ITEMS[item]
    made = kernels.candidates(item, shape, {})
    wide = torch.complex128 if spec.dtype.is_complex else torch.float64
    x = torch.randn(spec.input(shape), dtype=wide)
    results = []
    for make in made.values():
        module = make().double()
        u = x.clone().requires_grad_()
        y = module(u)
        y.backward(torch.ones_like(y))
        results.append((y.detach(), u.grad))
    (ours, ours_grad), (plain, plain_grad) = results
    assert ours_grad is not None
    assert plain_grad is not None
    # the plain S4 has a parameter of its own, rounded to float32
    dtype = torch.float32 if item in ("s4", "s4-block") else torch.float64
    bound = tolerance(dtype, shape.length, condition=64)
    assert_close(plain, ours, bound, what="value")
    assert_close(plain_grad, ours_grad, bound, what="gradient of the input")


@pytest.mark.parametrize("item", kernels.ITEMS)
def test_a_call_goes_back_to_the_input_and_every_parameter(item: str) -> None:
    for make in kernels.candidates(item, TINY, {}).values():
        module = make()
        kernels.forward_backward(item, TINY, module)()
        missing = {name for name, parameter in module.named_parameters() if parameter.grad is None}
        # the plain S4 shares all parameters but C, of which it has its own
        assert missing <= {"mixer.C", "core.mixer.C", "block.mixer.C"}


def test_the_command_writes_a_row_for_every_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = f"bench.kernels --out {tmp_path} --shapes 2,8,64,8 1,8,48,8 --items s4d linear --threads 1 --seconds 0"
    monkeypatch.setattr(sys, "argv", [*command.split(), "--environment", "plain", "equal", "--no-memory"])
    monkeypatch.setattr(_timing, "alone", lambda function, *rest: function(*rest))
    monkeypatch.setattr(_timing, "keep_freed_memory", lambda: None)
    kernels.main()
    rows = pq.read_table(tmp_path / "kernels.parquet").to_pylist()
    assert [(row["item"], row["length"], row["environment"], row["candidate"]) for row in rows] == [
        (item, length, environment, candidate)
        for environment in ("plain", "equal")
        for length in (64, 48)
        for item in ("s4d", "linear")
        for candidate in (kernels.OURS, kernels.PLAIN)
    ]
    for row in rows:
        assert 0 < row["best"] <= row["median"]
        assert row["rounds"] >= _timing.LEAST_ROUNDS
        assert row["torch"] == torch.__version__
        assert (row["ratio"] == 1.0) == (row["candidate"] == kernels.OURS)
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["name"].endswith("-bench-kernels")
    assert set(record["artifacts"]) == {"kernels.parquet", "kernels.json"}


@pytest.mark.parametrize("case", error_growth.cases(), ids=lambda case: f"{case.kernel} {case.backend}")
def test_errors_stay_within_what_is_allowed(case: error_growth.Case) -> None:
    for length in (1, 2, 64):
        for row in error_growth.measure(case, length):
            assert 0 <= row["rms"] <= row["max"]
            # the plain form loses digits in e^z - 1 at small z: that the truth sees it shows that it is no kernel's
            assert (row["max"] <= row["allowed"]) == (row["backend"] == "fast"), row


def test_error_growth_writes_every_kernel_and_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.error_growth", "--out", str(tmp_path), "--longest", "2"])
    error_growth.main()
    rows = pq.read_table(tmp_path / "error_growth.parquet").to_pylist()
    lengths: dict[tuple[str, str, str], list[int]] = {}
    for row in rows:
        lengths.setdefault((row["kernel"], row["backend"], row["dtype"]), []).append(row["length"])
    assert set(map(tuple, lengths.values())) == {(1, 2)}
    assert {"float64", "float32", "bfloat16"} == {dtype for _, _, dtype in lengths}
    for case in error_growth.cases():
        assert (case.kernel, case.backend, "float32") in lengths
    assert json.loads((tmp_path / "record.json").read_text())["name"].endswith("-bench-error-growth")


def test_peak_memory_is_that_of_the_call() -> None:
    size = 2**26

    def call() -> None:
        torch.ones(size, dtype=torch.uint8)

    torch.ones(3 * size, dtype=torch.uint8)  # an earlier, higher peak does not count
    assert 0.9 * size <= _timing.peak_bytes(call) <= 1.5 * size


def test_measurements_run_in_a_fresh_process() -> None:
    assert _timing.alone(os.getpid) != os.getpid()


def test_candidates_run_in_turn_after_a_round_that_does_not_count() -> None:
    calls: list[str] = []
    found = _timing.round_robin({name: partial(calls.append, name) for name in "ab"}, seconds=0.0, threads=1)
    assert calls == ["a", "b"] * (1 + _timing.LEAST_ROUNDS)
    assert {timing.rounds for timing in found.values()} == {_timing.LEAST_ROUNDS}


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_is_read_in_place_and_its_unused_imports_are_stood_in_for(name: str, tmp_path: Path) -> None:
    peer = peers.PEERS[name]
    file = tmp_path / peer.file
    file.parent.mkdir(parents=True, exist_ok=True)
    (file.parent / "beside.py").write_text("value = 3\n")
    imports = [f"from {module} import {attribute}" for module, names in peer.unused.items() for attribute in names]
    file.write_text("\n".join(["print('noise')", *imports, "from .beside import value"]))
    before = {module: sys.modules.get(module) for module in peer.unused}
    module = peers.load(name, tmp_path)
    assert module.value == 3
    assert Path(module.__file__ or "") == file
    assert {module: sys.modules.get(module) for module in peer.unused} == before
    for added in [key for key in sys.modules if key.split(".")[0] == f"peer_{name}"]:
        del sys.modules[added]
