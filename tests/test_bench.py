"""The benchmarks compare the same functions, give every row that they promise, and measure what they say; no times."""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import tiny
from noscratch import data, generate, train
from tolerances import assert_close, tolerance

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import _loops, _timing, batching, error_growth, generation, kernels, peers, training

BACKBONES = training.backbones.names()
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
    dtype = torch.float32 if item in ("s4", "s4-mix", "s4-block") else torch.float64
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
        assert missing <= {"mixer.C", "core.mixer.C", "mix.core.mixer.C"}


def test_the_command_writes_a_row_for_every_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = f"bench.kernels --out {tmp_path} --shapes 2,8,64,8 1,8,48,8 --items s4d linear --seconds 0"
    monkeypatch.setattr(sys, "argv", [*command.split(), "--conditions", "plain,1", "equal,1", "--no-memory"])
    monkeypatch.setattr(_timing, "alone", lambda function, *rest: function(*rest))
    monkeypatch.setattr(kernels, "keep_freed_memory", lambda: True)
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


SIZE = 2**26


def peak_of_one_tensor() -> int:
    torch.ones(3 * SIZE, dtype=torch.uint8)  # an earlier, higher peak does not count
    return _timing.peak_bytes(lambda: torch.ones(SIZE, dtype=torch.uint8))


def test_peak_memory_is_that_of_the_call() -> None:
    """In a process of its own, as it is measured: a training in this one would have it keep freed memory."""
    assert 0.9 * SIZE <= _timing.alone(peak_of_one_tensor) <= 1.5 * SIZE


def test_measurements_run_in_a_fresh_process() -> None:
    assert _timing.alone(os.getpid) != os.getpid()


def test_candidates_run_in_turn_after_a_round_that_does_not_count() -> None:
    calls: list[str] = []
    found = _timing.round_robin({name: partial(calls.append, name) for name in "ab"}, seconds=0.0, threads=1)
    assert calls == ["a", "b"] * (1 + _timing.LEAST_ROUNDS)
    assert {timing.rounds for timing in found.values()} == {_timing.LEAST_ROUNDS}


def test_a_measurement_keeps_the_rows_of_other_comparisons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_timing, "alone", lambda function, *rest: function(*rest))
    monkeypatch.setattr(kernels, "keep_freed_memory", lambda: True)

    def rows(*arguments: str) -> list[dict[str, Any]]:
        command = (
            f"bench.kernels --out {tmp_path} --shapes 2,8,64,8 --items linear --seconds 0 --no-memory --conditions"
        )
        monkeypatch.setattr(sys, "argv", [*command.split(), *arguments])
        kernels.main()
        return pq.read_table(tmp_path / "kernels.parquet").to_pylist()

    plain, equal = rows("plain,1"), rows("equal,1")
    assert equal[: len(plain)] == plain
    assert [row["environment"] for row in equal] == ["plain", "plain", "equal", "equal"]
    assert rows("plain,1")[: len(plain)] == equal[len(plain) :]
    monkeypatch.setattr(_timing, "device", lambda: "another machine")
    both = rows("plain,1")
    assert len(both) == len(equal) + len(plain)
    assert [row["device"] == "another machine" for row in both] == [False] * len(equal) + [True] * len(plain)


def test_takes_are_joined_and_the_best_of_all_counts() -> None:
    first, second = ({"a": _timing.Timing(*timing)} for timing in ((2.0, 4.0, 3), (1.0, 8.0, 5)))
    assert _timing.takes(lambda: first, seconds=0.0) == first
    left = [first, second]

    def take() -> dict[str, _timing.Timing]:
        found = left.pop(0)
        if not left:
            time.sleep(0.2)
        return found

    assert _timing.takes(take, seconds=0.1) == {"a": _timing.Timing(1.0, 6.0, 8)}


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


# Training


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_timing, "alone", lambda function, *rest: function(*rest))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_both_loops_train_the_same_model(backbone: str) -> None:
    meta = training.meta_of(33)
    batch, made = _loops.fixed(meta, 3, 33), _loops.build(meta, backbone, 16, 2).double()
    mask = batch.mask.clone()
    mask[1, 20:] = False
    with torch.no_grad():
        # the plain S4 has a parameter of its own, rounded to float32
        bound = tolerance(torch.float32 if backbone == "s4" else torch.float64, 33, condition=100)
        ours, plain = made(batch.tokens, mask), _loops.plain_model(made, 33).double()(batch.tokens, mask)
    assert_close(plain[mask], ours[mask], bound)


@pytest.mark.parametrize("backbone", ["transformer", "s4d"])
def test_the_measured_step_is_that_of_training(tmp_path: Path, backbone: str) -> None:
    prepared = tiny.write_task(tmp_path / "prepared")
    plan = {"lr": _loops.LR, "weight_decay": _loops.WEIGHT_DECAY, "clip": _loops.CLIP, "warmup": 0, "steps": 6}
    settings = tiny.settings(
        backbone=backbone, backbone_config={}, dropout=0.0, schedule="constant", evaluate_every=1, **plan
    )
    train.run(settings, prepared, tmp_path, tmp_path / "checkpoints", None, "cpu")
    curve = [line.split(",") for line in (tmp_path / train.CURVES).read_text().splitlines()]
    want = [float(value) for _, split, metric, value in curve if (split, metric) == ("train", "loss")]
    meta, split = data.read_meta(prepared), data.Split(prepared, "train")
    seed = train._seed(0, "parameters")
    loop = _loops.Ours(_loops.build(meta, backbone, 16, 1, seed), meta["kind"])
    batches = data.epoch_batches(split.lengths, 256, 0, 0)
    got = [loop.step(split.batch(index), len(index) * len(batches) / len(split)) / len(index) for index in batches[:6]]
    assert got == want


@pytest.mark.parametrize("backbone", ["transformer", "s4d"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_stacked_seeds_train_as_each_alone(backbone: str) -> None:
    seeds = range(3)
    models = training.models(backbone, 24, 16, 1, seeds)
    stacked = training.Stacked([_loops.plain_model(model, 24) for model in models])
    given = training.batches(2, 24, seeds)
    tokens, mask, label = (torch.stack([getattr(b, part) for b in given]) for part in ("tokens", "mask", "label"))
    loops = [_loops.Ours(model, "classification") for model in models]
    for _ in range(3):
        alone = [loop.step(batch) for loop, batch in zip(loops, given, strict=True)]
        # Adam divides by the root of tiny squares: what rounding makes of a first step is of its own size.
        assert stacked.step(tokens, mask, label) == pytest.approx(alone, rel=1e-4)


def test_training_writes_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_this_process: None) -> None:
    command = f"bench.training --out {tmp_path} --backbones dss --small s4d --lengths 16 32 --tokens 64 --seconds 0"
    command += " --d-model 8 --layers 1 --ensembles 2,16 --maker eager"
    monkeypatch.setattr(sys, "argv", command.split())
    monkeypatch.setattr(training, "PRODUCT", 64)
    torch.compiler.reset()
    training.main()
    found = {part: json.loads((tmp_path / f"{part}.json").read_text()) for part in training.PARTS}
    names = [training.OURS, training.PLAIN]
    assert [(row["length"], row["batch"], row["candidate"]) for row in found["lengths"]] == [
        (length, 64 // length, name) for length in (16, 32) for name in names
    ]
    for row in found["lengths"]:
        assert row["tokens_per_s"] == pytest.approx(64 / row["step_s"])
        assert row["utilization"] * row["product_flops_per_s"] * row["step_s"] == pytest.approx(row["flops"])
        assert row["flops"] > 0
    assert [row["candidate"] for row in found["compiler"]] == [training.AS_IT_IS, training.COMPILED]
    assert [row["first_s"] is None for row in found["compiler"]] == [True, False]
    assert {row["candidate"] for row in found["ensembles"]} == {
        training.SEQUENTIAL, training.STACKED, training.PROCESSES
    }  # fmt: skip
    assert all(row["ratio"] > 0 and row["part"] == part for part, rows in found.items() for row in rows)
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["name"].endswith("-bench-training")


@pytest.mark.parametrize("pairs", [False, True])
def test_the_share_of_real_tokens_is_counted_batch_by_batch(tmp_path: Path, pairs: bool) -> None:
    split = data.Split(tiny.write_task(tmp_path, pairs=pairs), "train")
    computed = real = 0
    for index in data.epoch_batches(split.lengths, 256, 0, 0):
        batch = split.batch(index)
        computed += sum(len(rows) * length for rows, length in batch.parts)
        real += int(batch.mask.sum())
    assert batching.shares(split, 256) == (real / computed, real / ((1 + pairs) * 96 * 24))
    assert real >= 0.95 * computed


def test_a_batch_padded_to_the_longest_is_the_same_batch(tmp_path: Path) -> None:
    split = data.Split(tiny.write_task(tmp_path), "train")
    index = np.flatnonzero(split.lengths < 20)[:3]
    batch, padded = split.batch(index), _loops.padded(split, index, 24)
    assert padded.tokens.shape == padded.mask.shape == (3, 24)
    assert torch.equal(padded.tokens[padded.mask], batch.tokens[batch.mask])
    assert padded.real == batch.real == int(padded.mask.sum())


def test_sampled_batches_are_spread_over_the_lengths(tmp_path: Path) -> None:
    lengths = data.Split(tiny.write_task(tmp_path), "train").lengths
    batches = data.epoch_batches(lengths, 64, 0, 0)
    longest = [int(lengths[index].max()) for index in _loops.spread(batches, lengths, 5)]
    assert longest == sorted(longest)
    every = sorted(int(lengths[index].max()) for index in batches)
    assert (longest[0], longest[-1]) == (every[0], every[-1])
    assert len(_loops.spread(batches, lengths, 10**6)) == len(batches)


def test_batching_writes_a_row_for_every_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], in_this_process: None
) -> None:
    ready = _loops.prepare

    def prepare(task: str, out: Path, *rest: object) -> None:
        if task == "rte":
            ready(task, out, None, {})
        tiny.write_task(out)

    monkeypatch.setattr(_loops, "prepare", prepare)
    command = f"bench.batching --out {tmp_path} --tasks cola rte --backbones s4d --batch-tokens 256 --batches 2"
    monkeypatch.setattr(sys, "argv", [*command.split(), "--d-model", "8", "--layers", "1"])
    batching.main()
    rows = json.loads((tmp_path / "batching.json").read_text())
    assert [(row["task"], row["candidate"]) for row in rows] == [
        ("cola", name) for name in (batching.OURS, batching.PADDED, batching.PLAIN)
    ]
    assert "rte: no row, " in capsys.readouterr().out
    for row in rows:
        assert (row["real_share"] >= 0.95) == (row["candidate"] == batching.OURS)
        assert row["ratio"] == pytest.approx(rows[0]["tokens_per_s"] / row["tokens_per_s"])
        assert 0 < row["loading_share"] < 1
    assert json.loads((tmp_path / "record.json").read_text())["settings"]["tasks"] == ["cola", "rte"]


# Generation


def test_room_set_aside_changes_nothing() -> None:
    made = generation.build("transformer", 12, 16, 2).double()
    carried, reserved = generate.Carried(made, 2, 12), generation.Reserved(made, 2, 12)
    reserved.room = [part.double() for part in reserved.room]
    for position in range(12):
        elements = torch.tensor([position + 1, 7])
        assert_close(reserved.step(elements), carried.step(elements), tolerance(torch.float64, 12, condition=100))


@pytest.mark.parametrize("backbone", ["transformer", "sgconv", "s4d"])
def test_a_jump_leaves_the_state_of_that_position(backbone: str) -> None:
    made = generation.build(backbone, 12, 16, 1)
    walked, jumped = generate.Carried(made, 2, 12), generate.Carried(made, 2, 12)
    for _ in range(5):
        walked.step(torch.ones(2, dtype=torch.int64))
    generation.jump(jumped, 5)
    assert walked.position == jumped.position
    assert [part.shape for state in walked.states for part in state] == [
        part.shape for state in jumped.states for part in state
    ]


def test_generation_writes_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_this_process: None) -> None:
    command = f"bench.generation --out {tmp_path} --backbones s4 --batches 1 2 --lengths 8 --d-model 16 --layers 1"
    monkeypatch.setattr(sys, "argv", [*command.split(), "--seconds", "0"])
    generation.main()
    rows = json.loads((tmp_path / "generation.json").read_text())
    names = [generation.APPENDED, generation.RESERVED, generation.WITHOUT, generation.STATE]
    assert [(row["batch"], row["candidate"]) for row in rows] == [(batch, name) for batch in (1, 2) for name in names]
    for row in rows:
        rival = next(r for r in rows if (r["batch"], r["candidate"]) == (row["batch"], generation.RESERVED))
        assert row["times_transformer"] == pytest.approx(row["tokens_per_s"] / rival["tokens_per_s"])
    keys = 2 * 8 * 16 * 4  # keys and values of 8 positions, 16 wide, float32
    states = 16 * 32 * 8  # 32 complex states of 16 channels
    assert [row["state_bytes"] for row in rows[:4]] == [keys, keys, 0, states]
    assert json.loads((tmp_path / "record.json").read_text())["name"].endswith("-bench-generation")
