"""Where jobs run: the rule, with faked GPU counts, and the GPU locks under kills."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from noscratch.device import choose, gpu_count, gpu_slot
from noscratch.errors import NoscratchError


@pytest.mark.parametrize(
    ("device", "tier", "gpus", "where"),
    [
        ("auto", "smoke", 0, "cpu"),
        ("auto", "smoke", 2, "cuda"),
        ("auto", "mini", 1, "cuda"),
        ("cuda", "smoke", 0, "cpu"),
        ("cuda", "paper", 8, "cuda"),
        ("cpu", "paper", 0, "cpu"),
        ("cpu", "mini", 4, "cpu"),
    ],
)
def test_where_a_job_runs(device: str, tier: str, gpus: int, where: str) -> None:
    assert choose(device, tier, gpus) == where


@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize("tier", ["mini", "paper"])
def test_above_smoke_a_host_without_gpu_is_refused(device: str, tier: str) -> None:
    with pytest.raises(NoscratchError, match=rf"tier {tier} run on a GPU .*none.*run\.device: cpu"):
        choose(device, tier, 0)


def test_the_count_can_be_faked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOSCRATCH_GPUS", "3")
    assert gpu_count() == 3
    monkeypatch.setenv("NOSCRATCH_GPUS", "-1")
    with pytest.raises(NoscratchError, match="whole number of GPUs, 0 or more; got '-1'"):
        gpu_count()


@pytest.mark.parametrize(("visible", "count"), [(None, 3), ("", 0), ("-1", 0), ("2", 1), ("0,2", 2), ("0,1,2,3", 3)])
def test_hidden_gpus_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int
) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text('#!/bin/sh\nfor i in 0 1 2; do echo "GPU $i: a card (UUID: GPU-$i)"; done\n')
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("NOSCRATCH_GPUS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_count() == count


def test_hosts_and_slurm_jobs_do_not_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gpu_slot(tmp_path, 1):
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        with gpu_slot(tmp_path, 1):
            monkeypatch.setattr("platform.node", lambda: "another")
            with gpu_slot(tmp_path, 1) as slot:
                assert slot == 0
    assert len(list(tmp_path.glob("*.lock"))) == 3


def _hold(folder: Path, gpus: int, seconds: float) -> None:
    with gpu_slot(folder / "locks", gpus):
        mine = folder / f"gpu{os.environ['CUDA_VISIBLE_DEVICES']}-{os.getpid()}"
        mine.touch()
        time.sleep(seconds)
        mine.unlink()


def test_never_two_on_one_gpu_and_none_leaked(tmp_path: Path) -> None:
    gpus, jobs, kills = 4, 16, 5
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=_hold, args=(tmp_path, gpus, 0.3)) for _ in range(jobs)]
    for process in running:
        process.start()
    chosen = random.Random(0)
    killed = 0
    while any(process.is_alive() for process in running):
        holders = [path.name.split("-") for path in tmp_path.glob("gpu*-*")]
        alive = [gpu for gpu, pid in holders if Path(f"/proc/{pid}").exists() and _runs(pid)]
        assert len(alive) == len(set(alive)), f"two jobs hold one GPU: {holders}"
        if alive and killed < kills:
            gpu, pid = chosen.choice(holders)
            if Path(f"/proc/{pid}").exists():
                os.kill(int(pid), signal.SIGKILL)
                (tmp_path / f"{gpu}-{pid}").unlink(missing_ok=True)
                killed += 1
        time.sleep(0.02)
    for process in running:
        process.join()
    assert killed == kills
    with gpu_slot(tmp_path / "locks", gpus) as slot:
        assert slot == 0, "the kernel frees the locks of the dead"


def _runs(pid: str) -> bool:
    """Is the process alive (a killed child that waits for its parent is not)?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_slot_keeps_to_the_devices_that_are_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    with gpu_slot(tmp_path, 2):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,7"
