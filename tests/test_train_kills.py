"""Killed at any instant, in a checkpoint too, a run ends with the same bits as one in peace; it repeats to the bit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from noscratch import params, train

BACKBONES = tuple(name for name in params.load(Path(__file__).parents[1]).backbones if "-" not in name)
PHASES = ("pretrain", "finetune")
HERE = Path(__file__).parent


def job_of(folder: Path, backbone: str, phase: str, steps: int) -> dict[str, Any]:
    """A job of a phase; fine-tuning starts from weights that were pretrained for it."""
    # Other metrics import for a second.
    prepared = tiny.write_task(folder / "prepared", metrics=["accuracy"])
    made: dict[str, Any] = {"prepared": str(prepared), "init": None, "folder": str(folder)}
    pretrain = tiny.settings("pretrain", "masked", backbone, protocol="spt-masked", steps=steps)
    if phase == "pretrain":
        return made | {"settings": pretrain}
    run(made | {"settings": pretrain | {"train": pretrain["train"] | {"steps": 2}}}, "pretrained")
    finetune = tiny.settings("finetune", "classify", backbone, protocol="spt-masked", steps=steps)
    return made | {"settings": finetune, "init": str(folder / "pretrained")}


def run(job: dict[str, Any], name: str) -> dict[str, Any]:
    folder, init = Path(job["folder"]), job["init"]
    (folder / name).mkdir()
    return train.run(
        job["settings"],
        Path(job["prepared"]),
        folder / name,
        folder / f"{name}-checkpoints",
        Path(init) if init else None,
        "cpu",
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def kill(job: dict[str, Any], kills: int, seed: int) -> Counter[str]:
    """Kill the job so often; how it died each time. Its weights, metrics and curves must be those of a run in peace."""
    folder = Path(job["folder"])
    result = run(job, "whole")
    (folder / "job.json").write_text(json.dumps(job | {"kills": kills, "seed": seed}))
    command = [sys.executable, str(HERE / "kill.py"), str(folder / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ended"][-1][1] > 0, "no attempt went on from a checkpoint"
    assert report["result"] == result
    assert files(folder / "killed") == files(folder / "whole")
    return Counter(moment for moment, _ in report["ended"])


@pytest.mark.parametrize(("backbone", "phase"), [("s4d", "pretrain"), ("transformer", "finetune")])
def test_killed_ten_times_it_ends_with_the_same_bits(
    tmp_path: Path, backbone: str, phase: str, record_property: Callable[[str, object], None]
) -> None:
    died = kill(job_of(tmp_path, backbone, phase, steps=40), kills=10, seed=0)
    assert died.total() == 10
    record_property("kills", died.total())
    assert len(died) >= 4, "hardly a kind of death was met"


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_killed_200_times_in_all_it_ends_with_the_same_bits(
    tmp_path: Path, backbone: str, phase: str, record_property: Callable[[str, object], None]
) -> None:
    """13 kills for each of 8 backbones and 2 phases: 208."""
    each = -(-200 // (len(BACKBONES) * len(PHASES)))
    died = kill(job_of(tmp_path, backbone, phase, steps=5 * each), each, seed=sum(map(ord, backbone + phase)))
    assert died.total() == each
    record_property("kills", died.total())
    print(dict(died))


def repeats(folder: Path, backbone: str, phase: str, times: int) -> None:
    """So many processes give the same bits."""
    job = job_of(folder, backbone, phase, steps=8)
    whole = run(job, "whole")
    program = (
        "import json, sys; from pathlib import Path; from noscratch import train\n"
        "job, name = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2]\n"
        "out = Path(job['folder']) / name; out.mkdir()\n"
        "init = Path(job['init']) if job['init'] else None\n"
        "saved = Path(job['folder']) / f'{name}.saved'\n"
        "print(json.dumps(train.run(job['settings'], Path(job['prepared']), out, saved, init, 'cpu')))"
    )
    (folder / "job.json").write_text(json.dumps(job))
    for i in range(times):
        command = [sys.executable, "-c", program, str(folder / "job.json"), f"again{i}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == whole
        assert files(folder / f"again{i}") == files(folder / "whole")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_run_repeats_to_the_bit_in_one_process(tmp_path: Path, backbone: str) -> None:
    job = job_of(tmp_path, backbone, "finetune", steps=4)
    whole = run(job, "whole")
    for name in ("one", "two"):
        torch.rand(1000)  # another state of the global generator, other memory
        assert run(job, name) == whole
        assert files(tmp_path / name) == files(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_20_processes_give_the_same_bits(tmp_path: Path, backbone: str) -> None:
    for phase in PHASES:
        (tmp_path / phase).mkdir()
        repeats(tmp_path / phase, backbone, phase, times=10)
