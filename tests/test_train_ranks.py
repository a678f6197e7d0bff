"""Several processes that train one model: the same as one process at the same global batch, within rounding."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from checkout import make_checkout
from noscratch import data, distributed, train
from noscratch.backbones import _presets
from noscratch.errors import NoscratchError
from noscratch.ranks import Alone

HERE = Path(__file__).parent

# Sums over ranks add the same numbers in another order. Their rounding, some float32 epsilons (6e-8) of the gradient's
# norm, goes through AdamW, which divides by the gradient's own size: a step of at most lr changes by its share.
# Measured: 5e-6 of the largest weight after 6 steps at lr 0.01; allowed: 20 times that.
ALLOWED = 1e-4


def together(tmp_path: Path, name: str, settings: dict[str, Any], world: int = 2, **more: Any) -> list[dict[str, Any]]:
    """What each rank leaves; all of them end without an error."""
    folder = tmp_path / name
    folder.mkdir()
    defaults = {"checkpoints": str(folder / "saved"), "world": world, "sharded": False, "stop_after": None}
    job = {"settings": settings, "prepared": str(tmp_path / "prepared"), "folder": str(folder)} | defaults | more
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, str(HERE / "ranks_run.py"), str(folder / "job.json")]
    running = [
        subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for rank in range(world)
    ]
    for process in running:
        _, said = process.communicate()
        assert process.returncode == 0, said
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(world)]


def alone(tmp_path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    (tmp_path / "alone").mkdir()
    return train.run(settings, tmp_path / "prepared", tmp_path / "alone", tmp_path / "alone-saved", None, "cpu")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / train.WEIGHTS)


def assert_alike(tmp_path: Path, name: str, one: dict[str, Any], several: list[dict[str, Any]]) -> None:
    """Weights, losses and counts of one process and of several; only the first rank has written."""
    results = [rank["result"] for rank in several]
    assert all(result == results[0] for result in results), "ranks differ"
    assert {path.name for path in (tmp_path / name).glob("rank[1-9]/*")} == set()
    theirs, ours = weights(tmp_path / name / "rank0"), weights(tmp_path / "alone")
    assert theirs.keys() == ours.keys()
    for key, value in ours.items():
        assert (theirs[key] - value).abs().max() <= ALLOWED * value.abs().max(), key
    for key in ("steps", "parameters", "tokens_real"):
        assert results[0]["counts"][key] == one["counts"][key]
    assert results[0]["examples"] == one["examples"]
    for split, scores in one["metrics"].items():
        assert results[0]["metrics"][split]["loss"] == pytest.approx(scores["loss"], rel=ALLOWED)


CASES = {
    "transformer, fine-tuning": {"backbone": "transformer", "steps": 6},
    "s4d, pretraining": {
        "backbone": "s4d",
        "phase": "pretrain",
        "objective": "masked",
        "protocol": "spt-masked",
        "steps": 6,
    },
    "batch norm, fine-tuning": {
        "backbone": "s4d",
        "steps": 6,
        "backbone_config": {"d_state": 8, "normalization": "batch"},
    },
    "batch norm behind, pretraining": {
        "backbone": "s4d",
        "phase": "pretrain",
        "objective": "causal",
        "protocol": "spt-causal",
        "steps": 6,
        "backbone_config": {"d_state": 8, "normalization": "batch", "norm": "post"},
    },
}
BATCHED = {"backbone": "s4d", "backbone_config": {"d_state": 8, "normalization": "batch"}}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_as_one(tmp_path: Path, case: str) -> None:
    tiny.write_task(tmp_path / "prepared", metrics=["accuracy"])
    settings = tiny.settings(dropout=0.0, layers=2, **CASES[case])
    several = together(tmp_path, "several", settings)
    assert_alike(tmp_path, "several", alone(tmp_path, settings), several)
    assert abs(sum(several[0]["taken"]) - sum(several[1]["taken"])) <= len(several[0]["taken"]), "the work is shared"


@pytest.mark.parametrize("backbone", [{}, BATCHED], ids=["transformer", "batch norm"])
def test_a_sharded_model_is_as_a_whole_one(tmp_path: Path, backbone: dict[str, Any]) -> None:
    tiny.write_task(tmp_path / "prepared", metrics=["accuracy"])
    settings = tiny.settings(dropout=0.0, layers=2, steps=4, **backbone)
    several = together(tmp_path, "several", settings, sharded=True)
    assert_alike(tmp_path, "several", alone(tmp_path, settings), several)
    kept = {name: value for name, value in weights(tmp_path / "alone").items() if name.startswith("blocks.")}
    blocks = sum(value.numel() for name, value in kept.items() if not name.endswith((".mean", ".variance")))
    assert sum(rank["kept"] for rank in several) == blocks, "every number of the blocks is kept once"
    assert max(rank["kept"] for rank in several) < 0.6 * blocks


def test_stopped_and_gone_on_in_other_numbers(tmp_path: Path) -> None:
    """Checkpoints are of the whole model: two sharded processes, then two that are not, then one."""
    tiny.write_task(tmp_path / "prepared", metrics=["accuracy"])
    settings = tiny.settings(dropout=0.0, layers=2, steps=4)
    saved = str(tmp_path / "saved")
    for name, sharded in (("one", True), ("two", False)):
        several = together(tmp_path, name, settings, sharded=sharded, checkpoints=saved, stop_after=0.0)
        assert [rank["result"] for rank in several] == [None, None]
    steps = sorted(path.name for path in Path(saved).iterdir())
    assert steps == ["step-000000001", "step-000000002"]
    (tmp_path / "rest" / "rank0").mkdir(parents=True)
    result = train.run(settings, tmp_path / "prepared", tmp_path / "rest" / "rank0", Path(saved), None, "cpu")
    assert_alike(tmp_path, "rest", alone(tmp_path, settings), [{"result": result}])


@pytest.mark.parametrize("backbone", [{}, BATCHED], ids=["transformer", "batch norm"])
def test_more_processes_than_examples_of_a_batch(tmp_path: Path, backbone: dict[str, Any]) -> None:
    """A batch of two long texts for three processes: one of them goes through the motions."""
    tiny.write_task(tmp_path / "prepared", metrics=["accuracy"], shortest=24)
    settings = tiny.settings(dropout=0.0, steps=3, batch_tokens=48, **backbone)
    several = together(tmp_path, "several", settings, world=3)
    assert_alike(tmp_path, "several", alone(tmp_path, settings), several)
    assert several[2]["taken"].count(0) >= 3


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 3))
def test_ranks_share_each_batch_whatever_their_number(world: int, size: int, epoch: int) -> None:
    """A pure function of (seed, epoch, rank): nothing but the batch and the number of ranks goes in."""
    ranks = Alone()
    ranks.world = world
    lengths = np.full(100, 4)
    for index in data.epoch_batches(lengths, 4 * size, 0, epoch):
        shares = ranks.shares(index)
        assert len(shares) == world
        assert np.array_equal(np.sort(np.concatenate(shares)), np.sort(index)), "each example once"
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.slow
def test_torchrun_starts_them_and_the_first_records(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    checkout.snakemake("prepared")
    (row,) = [row for row in checkout.noscratch("plan").stdout.splitlines() if "s4d-scratch-" in row]
    address = row.split()[0]
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "noscratch")
    stopped = checkout.run(*torchrun, "run", address, "--stop-after", "0")
    assert stopped.stdout.count("stopped at a checkpoint") == 1, "one of them says so, and none fails"
    assert not any(name.startswith(address) for name in checkout.jobs())
    assert " stopped " in checkout.noscratch("watch", "--once").stdout
    assert "done" in checkout.run(*torchrun, "run", address).stdout
    (folder,) = (checkout.root / "data/store").glob(f"{address}-*")
    provenance = json.loads((folder / "provenance.json").read_text())
    assert (provenance["processes"], provenance["sharded"], provenance["calls"]) == (2, False, 2)


def test_a_process_by_itself_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with distributed.join("cpu", sharded=False) as ranks:
        assert type(ranks) is Alone
    with pytest.raises(NoscratchError, match=r"sharded over several processes; this is one. Start it with torchrun"):
        distributed.join("cpu", sharded=True).__enter__()


def test_every_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1"), ("RANK", "2"), ("WORLD_SIZE", "3")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(NoscratchError, match=r"this host has 2 and torchrun started more. Give --nproc-per-node=2"):
        distributed.join("cuda", sharded=False).__enter__()


@pytest.mark.parametrize("name", ["bigs", "structured-xl-dense"])
def test_state_is_16_bytes_a_parameter_over_the_ranks(name: str) -> None:
    preset = _presets.PRESETS[name]
    whole = distributed.state_bytes(preset, 1)
    assert whole == 16 * _presets.size(preset).parameters
    around = 16 * sum(preset.around.values())
    assert distributed.state_bytes(preset, 8) == pytest.approx(around + (whole - around) / 8, abs=16)


def test_the_table_of_the_docs_is_what_is_counted() -> None:
    rows = [line.split("|")[1:-1] for line in (HERE.parent / "site/docs/train.md").read_text().splitlines()]
    table = {
        row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in rows if row[:1] and row[0].startswith(" `")
    }
    counted = {
        name: [
            f"{_presets.size(preset).parameters / 1e6:.0f} M",
            *(f"{distributed.state_bytes(preset, ranks) / 2**30:.2f}" for ranks in (1, 2, 4, 8, 16)),
        ]
        for name, preset in _presets.PRESETS.items()
        if name in table
    }
    assert len(counted) == 4
    assert {name: table[name] for name in counted} == counted
