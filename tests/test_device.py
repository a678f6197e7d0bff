"""Where jobs run: the rule, with faked GPU counts, and the GPU locks under kills."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from contextlib import suppress
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from noscratch import device as devices
from noscratch.device import choose, gpu_count, gpu_slot, processor, require
from noscratch.errors import NoscratchError
from processes import session_of

X86 = "cpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 {}\n\nprocessor\t: 1\nmodel\t\t: 2\n"


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (X86.format("avx512f"), "AMD EPYC (25/1, AVX-512)"),
        (X86.format(""), "AMD EPYC (25/1, AVX2)"),
        (X86.replace("avx2", "sse2").format(""), "AMD EPYC (25/1, SSE)"),
        ("model name : ARMv8\nFeatures : fp asimd\n", "ARMv8"),
        ("processor : 0\nCPU part : 0xd40\n", "by Python"),
        (None, "by Python"),
    ],
)
def test_the_name_of_a_processor_tells_generations_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpuinfo: str | None, name: str
) -> None:
    monkeypatch.setattr(devices, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(devices.platform, "processor", lambda: "by Python")
    if cpuinfo is not None:
        devices.CPUINFO.write_text(cpuinfo)
    assert processor() == name


@pytest.mark.parametrize(
    ("device", "tier", "gpus", "where"),
    [
        ("auto", "smoke", 0, "cpu"),
        ("auto", "smoke", 2, "cuda"),
        ("auto", "mini", 1, "cuda"),
        ("cuda", "smoke", 1, "cuda"),
        ("cuda", "paper", 8, "cuda"),
        ("cpu", "paper", 0, "cpu"),
        ("cpu", "mini", 4, "cpu"),
    ],
)
def test_where_a_job_runs(device: str, tier: str, gpus: int, where: str) -> None:
    assert choose(device, tier, gpus) == where


@pytest.mark.parametrize(
    ("device", "tier"), [("auto", "mini"), ("auto", "paper"), ("cuda", "smoke"), ("cuda", "mini"), ("cuda", "paper")]
)
def test_a_host_without_the_gpu_that_is_wanted_is_refused(device: str, tier: str) -> None:
    with pytest.raises(NoscratchError, match=rf"tier {tier} run on a GPU .*none.*run\.device: cpu"):
        choose(device, tier, 0)


def test_the_count_can_be_faked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOSCRATCH_GPUS", "3")
    assert gpu_count() == 3
    monkeypatch.setenv("NOSCRATCH_GPUS", "-1")
    with pytest.raises(NoscratchError, match="whole number of GPUs, 0 or more; got '-1'"):
        gpu_count()


@pytest.mark.parametrize("device", ["foo", "", "cuda:x", "cpu:1", "CUDA", "mps", "cuda:-1"])
def test_what_is_no_device_is_refused(device: str) -> None:
    with pytest.raises(NoscratchError, match=r"A device is cpu, cuda or cuda:<number>; got"):
        require(device)


@pytest.mark.parametrize(("device", "seen"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_a_gpu_that_pytorch_does_not_see_is_refused(device: str, seen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: seen)
    with pytest.raises(NoscratchError, match=rf"Device {device} is a GPU .* sees {seen}, .*NOSCRATCH"):
        require(device)
    require("cpu")
    monkeypatch.setattr("torch.cuda.device_count", lambda: seen + 1)
    require(device)


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
    """When all are there, hold a GPU for a while; who finds a living holder on it leaves word."""
    while not (folder / "go").exists():
        time.sleep(0.01)
    with gpu_slot(folder / "locks", gpus):
        owner = folder / f"gpu{os.environ['CUDA_VISIBLE_DEVICES']}"
        if owner.exists() and session_of(owner.read_text()) is not None:
            (folder / f"two-{owner.name}-{os.getpid()}").touch()
        written = folder / f"pid{os.getpid()}"
        written.write_text(str(os.getpid()))
        written.rename(owner)
        time.sleep(seconds)
        owner.unlink()


def _meet(folder: Path, gpus: int, barrier: Barrier, found: Queue[int]) -> None:
    with gpu_slot(folder / "locks", gpus) as slot:
        barrier.wait(60)  # which it leaves only when every GPU is held
        found.put(slot)


def test_never_two_on_one_gpu_and_none_leaked(tmp_path: Path) -> None:
    """64 jobs on 4 GPUs; 20 of them are killed while they hold one."""
    gpus, jobs, kills = 4, 64, 20
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=_hold, args=(tmp_path, gpus, 0.1)) for _ in range(jobs)]
    for process in running:
        process.start()
    (tmp_path / "go").touch()
    chosen, killed = random.Random(0), set[str]()
    while any(process.is_alive() for process in running):
        owners = sorted(tmp_path.glob("gpu*"))
        with suppress(FileNotFoundError, ProcessLookupError):  # given back meanwhile
            pid = chosen.choice(owners).read_text() if owners and len(killed) < kills else ""
            if pid and pid not in killed:
                os.kill(int(pid), signal.SIGKILL)
                killed.add(pid)
        time.sleep(0.01)
    for process in running:
        process.join()
    assert len(killed) == kills
    assert not list(tmp_path.glob("two-*")), "two jobs held one GPU"
    assert len([process for process in running if process.exitcode == 0]) >= jobs - kills
    barrier, found = context.Barrier(gpus), context.Queue()
    last = [context.Process(target=_meet, args=(tmp_path, gpus, barrier, found)) for _ in range(gpus)]
    for process in last:
        process.start()
    assert {found.get(timeout=120) for _ in last} == set(range(gpus)), "the kernel frees the locks of the dead"
    for process in last:
        process.join()


def test_a_slot_keeps_to_the_devices_that_are_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    with gpu_slot(tmp_path, 2):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,7"
