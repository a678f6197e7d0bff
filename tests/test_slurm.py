"""The Slurm profile on a real cluster of one node: the bytes of a local run, whatever happens to jobs and daemons."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import slurm
from checkout import Checkout, make_checkout

pytestmark = pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing())

VIEWS = ("data/raw", "data/prepared", "data/runs")
# No accounting database here, so squeue is asked; and asked soon, since the jobs are short.
HERE = ("--slurm-status-command=squeue", "--slurm-no-account", "--slurm-init-seconds-before-status-checks=2")


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm.Cluster]:
    with slurm.cluster() as running:
        yield running


def start(checkout: Checkout, *arguments: str) -> subprocess.Popen[str]:
    """`snakemake --profile profiles/slurm all`, in the background."""
    command = (sys.executable, "-m", "snakemake", "--profile", "profiles/slurm", *HERE, *arguments, "all")
    return subprocess.Popen(
        command,
        cwd=checkout.root,
        env=checkout.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 400) -> str:
    said, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, said
    return said


def until(met: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)


def test_a_cluster_gives_the_same_bytes_as_this_host(cluster: slurm.Cluster, tmp_path: Path) -> None:
    local, remote = make_checkout(tmp_path / "local"), make_checkout(tmp_path / "remote")
    local.snakemake("all")
    remote.edit("params.yaml", "device: cpu", "device: auto")  # so training jobs ask for a GPU
    finish(start(remote))
    assert remote.files(*VIEWS) == local.files(*VIEWS)
    assert remote.jobs() == local.jobs()
    asked = re.findall(r"JobId=.*?(?=\nJobId=|\Z)", cluster.show("scontrol", "show", "jobs"), re.S)
    with_gpu = [job for job in asked if "gres:gpu:1" in job or "gpu:1" in job]
    training = [name for name in remote.jobs() if re.search(r"-(pretrain|finetune)-", name)]
    assert len(asked) == len(remote.jobs())
    assert len(with_gpu) == len(training)
    finish(start(remote))  # and again: nothing is sent
    assert len(re.findall("JobId=", cluster.show("scontrol", "show", "jobs"))) == len(asked)


@pytest.mark.parametrize("absent", ["programs", "controller"])
def test_a_cluster_that_is_not_there_is_named(absent: str, tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "git", "sh", "which"):
        (programs / name).symlink_to(Path(shutil.which(name) or ""))
    path = f"{programs}" if absent == "programs" else f"/usr/bin:/bin:{programs}"
    done = checkout.run(
        sys.executable,
        *("-m", "snakemake", "--profile", "profiles/slurm", *HERE, "all"),
        check=False,
        PATH=path,
        SLURM_CONF=str(tmp_path / "absent.conf"),
    )
    assert done.returncode != 0
    said = " ".join((done.stdout + done.stderr).split())
    assert ("no sbatch" if absent == "programs" else "does not answer") in said
    assert "snakemake --cores 8 all" in said
    assert checkout.jobs() == []


def longer(tmp_path: Path, name: str) -> Checkout:
    """The tiny plan with training that one can interrupt."""
    checkout = make_checkout(tmp_path / name)
    checkout.edit("params.yaml", "&tiny\n      {steps: 4,", "&tiny\n      {steps: 4000,")
    checkout.edit("params.yaml", "checkpoint_seconds: 60", "checkpoint_seconds: 1")
    return checkout


def running(cluster: slurm.Cluster, checkout: Checkout) -> list[str]:
    """Training jobs that have a checkpoint."""
    saved = {path.parent.name.split("-")[0] for path in checkout.root.glob("data/checkpoints/*/*")}
    jobs = cluster.show("squeue", "--noheader", "--states=RUNNING", "--format=%i %k").splitlines()
    return [line.split()[0] for line in jobs if any(address in line for address in saved)]


def told(cluster: slurm.Cluster, job: str, field: str) -> str:
    """What the cluster says of a job."""
    return re.findall(rf"\b{field}=(\S+)", cluster.show("scontrol", "show", "job", job))[0]


@pytest.mark.slow
def test_jobs_and_daemons_may_die(cluster: slurm.Cluster, tmp_path: Path) -> None:
    """A job killed, one asked to stop (exit code 75), the controller restarted, the node drained: all in one run."""
    local, remote = longer(tmp_path, "local"), longer(tmp_path, "remote")
    local.snakemake("all")
    process = start(remote, "--keep-going")
    until(lambda: bool(running(cluster, remote)), process)
    cancelled = running(cluster, remote)[0]
    cluster.show("scancel", "--signal=KILL", "--full", cancelled)
    # It is handed in again, and asks for more memory.
    until(lambda: "MinMemoryNode=8000M" in cluster.show("scontrol", "show", "jobs"), process)
    until(lambda: bool(set(running(cluster, remote)) - {cancelled}), process)
    asked = next(job for job in running(cluster, remote) if job != cancelled)
    before = told(cluster, asked, "MinMemoryNode")
    comment = told(cluster, asked, "Comment")
    (lock,) = [path for path in remote.root.glob("data/.locks/*.lock") if path.name[:12] in comment]
    os.kill(int(lock.read_text().split()[0]), signal.SIGUSR1)  # and so ends `--stop-after`
    # It saves, and stands in the queue again by itself, with what it had asked for; Slurm waits two minutes.
    until(lambda: told(cluster, asked, "Restarts") == "1", process)
    assert told(cluster, asked, "MinMemoryNode") == before
    until(lambda: asked in running(cluster, remote), process, seconds=300)
    cluster.stop_controller()
    time.sleep(3)
    cluster.start_controller()
    cluster.node("drain")
    time.sleep(5)
    cluster.node("resume")
    said = finish(process)
    assert "Trying to restart" in said
    assert remote.files(*VIEWS) == local.files(*VIEWS)


@pytest.mark.slow
def test_who_ends_snakemake_ends_its_jobs(cluster: slurm.Cluster, tmp_path: Path) -> None:
    """A job that is cancelled saves too, and does not queue up again."""
    remote = longer(tmp_path, "remote")
    process = start(remote)
    until(lambda: bool(running(cluster, remote)), process)
    jobs = running(cluster, remote)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    time.sleep(10)
    assert cluster.jobs() == []
    assert {told(cluster, job, "JobState") for job in jobs} == {"CANCELLED"}
    assert {told(cluster, job, "Restarts") for job in jobs} == {"0"}


@pytest.mark.slow
def test_the_smoke_plan_on_a_cluster(cluster: slurm.Cluster, tmp_path: Path) -> None:
    """The real plan, whole: every job of it is one of the cluster's."""
    checkout = make_checkout(tmp_path / "checkout")
    (checkout.root / "params.yaml").write_text((Path(__file__).parents[1] / "params.yaml").read_text())
    finish(start(checkout), seconds=3600)
    said = checkout.noscratch("status").stdout
    assert re.search(r"finetune +\d+: \d+ blocked, \d+ done$", said, re.M), said
    finish(start(checkout))
