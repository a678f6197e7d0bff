"""The command line: help that helps, and one clear error for each mistake."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from checkout import ROOT, Checkout, make_checkout
from noscratch import cli, cluster
from noscratch.cli import app
from noscratch.errors import NoscratchError
from noscratch.plan import read_plan


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return make_checkout(tmp_path_factory.mktemp("cli") / "checkout")


def commands() -> list[str]:
    return [info.name or info.callback.__name__ for info in app.registered_commands if info.callback]


def test_help_lists_every_command() -> None:
    said = CliRunner().invoke(app, ["--help"]).output
    assert "make repro" in said
    assert all(name in said for name in commands())


@pytest.mark.parametrize("name", commands())
def test_every_command_has_an_example(name: str) -> None:
    said = CliRunner().invoke(app, [name, "--help"])
    assert said.exit_code == 0
    assert f"noscratch {name}" in said.output.partition("Example:")[2], said.output


def test_no_arguments_show_help() -> None:
    assert "Usage" in CliRunner().invoke(app, []).output


@pytest.mark.parametrize("command", ["plan", "passport", "watch"])
def test_outside_a_checkout(checkout: Checkout, tmp_path: Path, command: str) -> None:
    done = Checkout(tmp_path).noscratch(command, check=False, PYTHONPATH=str(checkout.root / "src"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: Commands run in a checkout")
    assert not list(tmp_path.iterdir())


TORCHRUN = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environment", "code", "said"),
    [({}, 75, "stopped at a checkpoint"), (TORCHRUN | {"RANK": "0"}, 0, "stopped"), (TORCHRUN | {"RANK": "1"}, 0, "")],
    ids=["alone", "first of two", "second of two"],
)
def test_a_stop_at_a_checkpoint_asks_to_be_called_again(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], code: int, said: str
) -> None:
    from noscratch import stages, train

    def stop(*_: object, stop_after: float, **__: object) -> str:
        raise train.Interrupted(3, f"{stop_after} seconds have passed")

    monkeypatch.chdir(checkout.root)
    monkeypatch.setattr(stages, "run_job", stop)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        address = read_plan(checkout.root).of("finetune")[0].address
        done = CliRunner().invoke(app, ["run", address, "--stop-after", "5"])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert done.exit_code == code
    assert said in done.output
    assert bool(said) == bool(done.output)


@pytest.mark.parametrize(
    ("job", "state", "refused", "again"),
    [
        ("7", "RUNNING", 0, True),
        ("7", "COMPLETING", 0, False),  # it is being cancelled, or its time is over
        ("7", "", 0, False),
        ("7", "RUNNING", 1, False),  # a cluster that allows no requeueing
        (None, "RUNNING", 0, False),
    ],
)
def test_a_stopped_job_queues_up_again_only_while_it_runs(
    job: str | None, state: str, refused: int, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, does in (("squeue", f"echo {state}"), ("scontrol", f'echo "$@" >> {tmp_path}/said; exit {refused}')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    assert cluster.queue_again() is again
    asked = job is not None and state == "RUNNING"
    assert (tmp_path / "said").is_file() is asked
    assert not asked or (tmp_path / "said").read_text() == "requeue 7\n"


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("echo 'Slurmctld(primary) at here is UP'", None),
        ("echo 'Slurmctld(primary) at here is DOWN'", "is DOWN"),
        ("echo 'no configuration' >&2; exit 1", "no configuration"),
        ("exec sleep 60", "nothing in 1 s"),
    ],
)
def test_a_controller_that_does_not_answer_is_named(
    does: str, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, body in (("sbatch", ""), ("scontrol", does)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(cluster, "PATIENCE", 1)
    if said is None:
        cluster.require_slurm()
        return
    with pytest.raises(NoscratchError, match=rf"does not answer \(`scontrol ping`: .*{said}\)\. Wait for it"):
        cluster.require_slurm()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "0123456789ab"], "has no job '0123456789ab'"),
        (["plan", "--kind", "fintune"], "The kinds are fetch, prepare, tuning, pretrain, finetune; got 'fintune'"),
        (["baseline", "listop"], "The tasks of the plan are listops, cola; got 'listop'"),
        (["view", "rwa"], "The views are raw, prepared, runs; got 'rwa'"),
        (["commit"], "DVC records only views of the present plan"),
        (["collect"], "record"),
    ],
)
def test_mistakes_are_one_message(checkout: Checkout, arguments: list[str], said: str) -> None:
    done = checkout.noscratch(*arguments, check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_disk_that_refuses_is_one_message(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise OSError(number, os.strerror(number), "data/.lock")

    monkeypatch.setattr(cli, "app", refuse)
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    said = capsys.readouterr().err
    assert os.strerror(number) in said
    assert "'data/.lock'. Make it writable, or free some space" in said


LOCK = b"schema: '2.0'\nstages:\n  fetch:\n    cmd: one\n  runs:\n    cmd: two\n"


@pytest.mark.parametrize(
    ("before", "written", "code", "after"),
    [
        (LOCK, b"", 255, LOCK),
        (LOCK, LOCK[:30], 255, LOCK),
        (LOCK, LOCK[:-4], 255, LOCK),
        (LOCK, LOCK[: LOCK.index(b"  runs")], 1, LOCK),
        (LOCK, LOCK.replace(b"one", b"new"), 255, LOCK.replace(b"one", b"new")),  # a stage failed later on
        (LOCK, LOCK[: LOCK.index(b"  runs")], 0, LOCK[: LOCK.index(b"  runs")]),  # the pipeline has fewer stages now
        (None, LOCK[:30], 255, None),
        (None, LOCK, 1, LOCK),
        (None, None, 1, None),
    ],
)
def test_a_dvc_lock_cut_short_comes_back(
    before: bytes | None,
    written: bytes | None,
    code: int,
    after: bytes | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What DVC leaves where the disk fills up while it rewrites the file in place."""
    (tmp_path / ".dvc").mkdir()
    lock = tmp_path / "dvc.lock"
    if before is not None:
        lock.write_bytes(before)

    def dvc(*command: str) -> int:
        if command == ("noscratch.recorded",):  # has DVC list what it recorded
            return 0
        assert command == ("dvc", "commit")
        if written is not None:
            lock.write_bytes(written)
        return code

    monkeypatch.setattr(cli, "_to_its_end", dvc)
    assert cli._record(tmp_path, "commit") == code
    assert (lock.read_bytes() if lock.exists() else None) == after
    assert not list((tmp_path / ".dvc").rglob("*dvc.lock*")), "the copy is gone"


def test_gc_keeps_the_results_of_other_tiers(checkout: Checkout, tmp_path: Path) -> None:
    mine = checkout.clone(tmp_path / "clone")
    address = mine.noscratch("plan", "--kind", "prepare").stdout.splitlines()[1].split()[0]
    mine.noscratch("run", address)
    kept = mine.jobs()
    mine.edit("params.yaml", "tier: smoke", "tier: mini")
    mine.noscratch("gc")
    assert mine.jobs() == kept
    mine.edit("params.yaml", "train: 48", "train: 47")
    mine.noscratch("gc")
    assert mine.jobs() == []


def test_make_completes_an_environment_whose_making_was_interrupted(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\necho "$@" >> calls\n[ "$2" != venv ] || { mkdir -p .venv/bin; cp "$0" .venv/bin/python; }\n'
    )
    python.chmod(0o755)
    (tmp_path / ".venv").mkdir()
    for _ in range(2):
        subprocess.run(["make", "--silent", "PYTHON=./python", "install"], cwd=tmp_path, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert sum(call == "-m venv .venv" for call in calls) == 1
    assert sum("torch==2.13.0" in call for call in calls) == 1


def test_a_wrong_setting_stops_before_any_work(checkout: Checkout, tmp_path: Path) -> None:
    mine = checkout.clone(tmp_path / "clone")
    mine.edit("params.yaml", "  s4d: {}\n", "  s4f: {}\n")
    for done in (mine.noscratch("repro", check=False), mine.snakemake("all", check=False)):
        assert done.returncode == 1
        assert "there is no backbone 's4f'" in done.stdout + done.stderr
    assert not (mine.root / "data").exists()


def test_a_mirror_that_is_not_there(checkout: Checkout, tmp_path: Path) -> None:
    done = checkout.noscratch("sources", "--refresh", check=False, NOSCRATCH_MIRROR=str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert "is no folder; NOSCRATCH_MIRROR is a folder or an http(s) address" in done.stderr


def test_a_mirror_that_lacks_a_file_blocks_that_source(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    checkout.noscratch("sources", "--refresh", NOSCRATCH_MIRROR=str(tmp_path / "mirror"))
    assert "blocked: the mirror holds none of its forms" in checkout.noscratch("sources").stdout


def test_a_host_without_gpu_is_refused_above_smoke(checkout: Checkout, tmp_path: Path) -> None:
    mine = checkout.clone(tmp_path / "clone")
    mine.edit("params.yaml", "tier: smoke, device: cpu", "tier: mini, device: cuda")
    address = mine.noscratch("plan", "--kind", "finetune").stdout.splitlines()[1].split()[0]
    needs = mine.noscratch("plan", "--kind", "prepare").stdout.splitlines()[1].split()[0]
    mine.noscratch("run", needs)
    done = mine.noscratch("run", address, check=False, NOSCRATCH_GPUS="0")
    assert done.returncode == 1
    assert "this host has none" in done.stderr


def test_a_gpu_that_is_counted_but_not_seen_is_refused(checkout: Checkout, tmp_path: Path) -> None:
    """As where the driver stands beside a PyTorch without CUDA."""
    mine = checkout.clone(tmp_path / "clone")
    mine.edit("params.yaml", "device: cpu", "device: auto")
    lines = mine.noscratch("plan", "--kind", "finetune").stdout.splitlines()
    address = next(line.split()[0] for line in lines if "listops-s4d-scratch" in line)
    mine.noscratch("run", mine.noscratch("plan", "--kind", "prepare").stdout.splitlines()[1].split()[0])
    hidden = {"NOSCRATCH_GPUS": "2", "CUDA_VISIBLE_DEVICES": "none"}  # no GPU has that name
    for arguments in (["run", address], ["passport", "--device", "cuda"], ["tune"], ["estimate"]):
        done = mine.noscratch(*arguments, check=False, **hidden)
        assert done.returncode == 1, arguments
        assert "is a GPU that PyTorch sees" in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
    assert not list((mine.root / "data/store").glob(f"*{address}*"))


def test_an_adopted_source_is_listed(checkout: Checkout, tmp_path: Path) -> None:
    """What came through a view has no provenance; the list of sources does without."""
    mine = checkout.clone(tmp_path / "clone")
    address = mine.noscratch("plan", "--kind", "fetch").stdout.splitlines()[1].split()[0]
    entry = mine.root / "data/store" / f"{address}-fetch-cola"
    entry.mkdir(parents=True)
    record = {"state": "done", "result": {"form": "official tree"}, "artifacts": {}}
    (entry / "record.json").write_text(json.dumps(record))
    row = next(line for line in mine.noscratch("sources").stdout.splitlines() if line.startswith("cola"))
    assert "official tree" in row
    assert "view" in row
