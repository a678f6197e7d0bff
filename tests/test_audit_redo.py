"""Redo: the runs behind a number, built again from nothing, are the same bytes; what differs is told."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from checkout import Checkout
from noscratch.audit.exam import forge, write
from noscratch.audit.git import git
from noscratch.audit.honest import commit
from noscratch.audit.redo import RedoError, Redone, redo
from noscratch.cli import app
from noscratch.store import read_record

ROOT = Path(__file__).parents[1]
CELL = "smoke/listops/s4d/spt-masked"


@pytest.fixture
def first(honest_checkout: Path) -> Path:
    return honest_checkout


@pytest.fixture
def copy(first: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first, tmp_path / "copy"))


def test_two_cells_are_bit_equal(first: Path, tmp_path: Path) -> None:
    """One with its pretraining, one published run of a tier that is not chosen; built from the settings alone."""
    for name, cells in ((f"{CELL}/1", [f"{CELL}/seed1"]), ("mini/listops/s4d/scratch/seed2", None)):
        found = list(redo(first, name, tmp_path / name.replace("/", "-")))
        assert [run.outcome for run in found] == ["equal"], found
        assert cells is None or [run.cell for run in found] == cells
        assert not found[0].differences
        assert found[0].kept == found[0].again
    made = {path.parent.name[13:] for path in tmp_path.rglob("data/store/*/record.json")}
    assert "pretrain-smoke-listops-s4d-spt-masked-seed1" in made
    assert "finetune-smoke-listops-s4d-spt-masked-seed0" not in made, "exactly the runs behind the number"


NUMBERS = {
    "results/smoke/listops/majority/scratch/*/finetune/test/accuracy/value": ["majority"],
    "results/smoke/listops/bag/scratch/0/finetune/test/accuracy/value": ["bag"],
    "difference/smoke/listops/bag/scratch/majority/scratch/accuracy": ["bag", "majority"],
}


@pytest.mark.parametrize("name", NUMBERS)
def test_the_address_of_a_number_is_a_name(first: Path, tmp_path: Path, name: str) -> None:
    found = list(redo(first, name, tmp_path / "scratch"))
    assert sorted(run.cell for run in found) == [f"smoke/listops/{each}/scratch/seed0" for each in NUMBERS[name]]
    assert {run.outcome for run in found} == {"equal"}


def test_a_run_and_a_verdict_are_names(first: Path, tmp_path: Path) -> None:
    address = read_record(first / f"data/runs/{CELL}/seed0/finetune")["address"]
    assert [run.cell for run in redo(first, address, tmp_path / "run")] == [f"{CELL}/seed0"]
    found = list(redo(first, "verdicts/exam-any/listops/mini/estimate", tmp_path / "verdict"))
    assert [run.cell for run in found] == [f"mini/listops/s4d/scratch/seed{seed}" for seed in range(3)]
    assert {run.outcome for run in found} == {"equal"}


def test_another_score_is_told_with_what_differs(copy: Path, tmp_path: Path) -> None:
    where = copy / f"data/runs/{CELL}/seed0/finetune"

    def change(told: dict[str, object]) -> None:
        told["result"]["metrics"]["test"]["accuracy"] = 1.0  # type: ignore[index]

    forge(copy, where, {"weights.safetensors": b"other"}, change)
    [run] = redo(copy, f"{CELL}/0", tmp_path / "scratch")
    assert run.outcome == "different"
    assert run.kept == 1.0
    assert "weights.safetensors" in run.differences
    assert not any("torch" in line for line in run.differences), "the environment is the same"


def test_a_fresh_clone_is_held_against_the_summary_in_git(first: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", str(first), "clone")
    [run] = redo(tmp_path / "clone", f"{CELL}/0", tmp_path / "scratch")
    assert run.outcome == "equal"
    path = tmp_path / "clone/reports/metrics.json"
    summary = json.loads(path.read_text())
    summary["smoke"]["listops"]["s4d"]["spt-masked"]["seeds"]["0"] = -5.0
    path.write_text(json.dumps(summary))
    [run] = redo(tmp_path / "clone", f"{CELL}/0", tmp_path / "scratch")
    assert (run.outcome, run.kept) == ("different", -5.0)


def test_a_published_run_of_earlier_code_names_its_commit(copy: Path, tmp_path: Path) -> None:
    params = json.loads((copy / "params.yaml").read_text())
    params["tiers"]["mini"]["finetune"]["steps"] = 6
    write(copy / "params.yaml", json.dumps(params).encode())
    commit(copy, "Train longer")
    made_at = json.loads(
        (copy / "reports/records/runs/mini/listops/s4d/scratch/seed0/finetune/provenance.json").read_text()
    )["commit"]
    with pytest.raises(RedoError, match=rf"earlier settings or code, made at commit {made_at}.*git worktree add"):
        list(redo(copy, "mini/listops/s4d/scratch", tmp_path / "scratch"))
    assert not (tmp_path / "scratch").exists()


NO_RUNS = ("", "smoke/listops", "smoke/listops/s4d/none", "0123456789ab", f"{CELL}/x", "smoke/cola/transformer/scratch")


@pytest.mark.parametrize("name", NO_RUNS)
def test_names_that_lead_to_no_run(first: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(RedoError, match="A cell is TIER/TASK/BACKBONE/PROTOCOL"):
        list(redo(first, name, tmp_path / "scratch"))


def test_the_command(copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(copy)
    arguments = ["redo", "smoke/listops/majority/scratch", "--keep", str(tmp_path / "kept")]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert done.output.startswith("equal            smoke/listops/majority/scratch/seed0: accuracy ")
    assert list((tmp_path / "kept/data/store").glob("*majority*"))
    where = copy / "data/runs/smoke/listops/majority/scratch/seed0/finetune"

    def change(told: dict[str, object]) -> None:
        told["result"]["metrics"]["test"]["accuracy"] = 1.0  # type: ignore[index]

    forge(copy, where, {}, change)
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 1
    assert "different" in done.output
    assert "tolerance" in done.output


@given(st.floats(0, 1), st.floats(-0.2, 0.2), st.integers(2, 10_000), st.sampled_from(["accuracy", "matthews"]))
def test_within_tolerance_is_within_one_standard_error(kept: float, shift: float, n: int, metric: str) -> None:
    run = Redone("a", metric, kept, kept + shift, n, False, [])
    error = math.sqrt(kept * (1 - kept) / n) if metric == "accuracy" else (1 - kept**2) / math.sqrt(n - 1)
    if abs(abs(shift) - error) > 1e-9 and (metric != "accuracy" or (0.01 < kept < 0.99 and n > 200)):
        assert run.outcome == ("within tolerance" if abs(shift) < error else "different")


@pytest.mark.slow
def test_twenty_random_smoke_cells_of_a_fresh_clone_are_bit_equal(tmp_path: Path) -> None:
    """Against reports/metrics.json as it is committed here."""
    git(tmp_path, "clone", "--quiet", str(ROOT), "clone")
    clone = Checkout(tmp_path / "clone")
    summary = json.loads((clone.root / "reports/metrics.json").read_text())["smoke"]
    cells = [
        f"smoke/{task}/{backbone}/{protocol}"
        for task, backbones in summary.items()
        for backbone, protocols in backbones.items()
        for protocol in protocols
    ]
    for cell in random.Random(os.environ.get("NOSCRATCH_TEST_SEED", "0")).sample(cells, 20):
        assert clone.noscratch("redo", cell).stdout.startswith("equal"), cell
