"""Both engines on the tiny plan: the same bytes, nothing twice, nothing stale, nothing half done."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from checkout import Checkout
from noscratch.audit.case import Case
from noscratch.audit.numbers import check, pages
from processes import living_in

VIEWS = ("data/raw", "data/prepared", "data/runs")
MADE = (*VIEWS, "reports", "site/docs/generated", "public")
# ListOps: its data, two baselines, two runs of S4D, one of which has a pretraining. CoLA is blocked.
DONE = 6


def test_a_repro_says_what_was_built_and_blocked(by_dvc: Checkout) -> None:
    said = by_dvc.noscratch("repro").stdout
    assert "7 cells: 3 blocked, 4 done" in said
    assert "blocked   source cola: not asked for" in said
    assert "open      public/index.html" in said
    assert (by_dvc.root / "public/index.html").is_file()


def test_every_number_of_the_site_leads_to_its_bytes(by_dvc: Checkout) -> None:
    """All pages as a reader has them, with the published runs and measurements, walked from HTML to sha256."""
    case = Case(by_dvc.root)
    assert not [f"{finding.path}: {finding.got}" for finding in check(case)]
    written = [page.read_text(encoding="utf-8") for page in pages(by_dvc.root)]
    assert case.numbers == sum(text.count("<data ") for text in written) > 5_000


def test_blocked_is_shown_and_kept_out_of_the_store(by_dvc: Checkout) -> None:
    assert len(by_dvc.jobs()) == DONE
    record = json.loads(
        (by_dvc.root / "data/runs/smoke/cola/transformer/scratch/seed0/finetune/record.json").read_text()
    )
    assert record["state"] == "blocked"
    assert record["reason"].startswith("cola: not asked for")


def test_a_second_repro_does_nothing(by_dvc: Checkout) -> None:
    before = by_dvc.files(*MADE)
    said = by_dvc.dvc("repro").stdout
    assert "Running stage" not in said
    assert by_dvc.files(*MADE) == before
    assert by_dvc.run("git", "status", "--porcelain").stdout == ""
    assert "up to date" in by_dvc.dvc("status").stdout


def test_the_summary_is_of_the_plan(by_dvc: Checkout) -> None:
    said = by_dvc.noscratch("status").stdout
    assert "finetune      7: 3 blocked, 4 done" in said


def test_snakemake_gives_the_same_bytes_and_commits(by_dvc: Checkout, tmp_path: Path) -> None:
    clone = by_dvc.clone(tmp_path / "clone")
    clone.snakemake("all")
    assert clone.files(*MADE) == by_dvc.files(*MADE)
    assert (clone.root / "dvc.lock").read_bytes() == (by_dvc.root / "dvc.lock").read_bytes()
    assert "up to date" in clone.dvc("status").stdout
    assert clone.run("git", "status", "--porcelain").stdout == ""


def test_dvc_alone_starts_in_a_fresh_clone(by_dvc: Checkout, tmp_path: Path) -> None:
    clone = by_dvc.clone(tmp_path / "clone")
    clone.dvc("repro", "fetch")
    assert clone.files("data/raw") == by_dvc.files("data/raw")
    assert (clone.root / "dvc.lock").read_bytes() == (by_dvc.root / "dvc.lock").read_bytes()


def test_a_pull_is_adopted_and_nothing_runs(by_dvc: Checkout, tmp_path: Path) -> None:
    by_dvc.dvc("remote", "add", "--force", "--local", "here", str(tmp_path / "remote"))
    by_dvc.dvc("push", "--remote", "here")
    clone = by_dvc.clone(tmp_path / "clone")
    clone.dvc("remote", "add", "--local", "here", str(tmp_path / "remote"))
    clone.dvc("pull", "--remote", "here")
    clone.noscratch("sync")
    assert clone.jobs() == by_dvc.jobs()
    for path in clone.root.glob("data/store/*/*"):
        os.utime(path)
    clone.snakemake("all")
    assert not list((clone.root / "data").glob("logs/*")), "a job ran"
    assert clone.files(*MADE) == by_dvc.files(*MADE)


def test_two_tiers_live_side_by_side_and_going_back_runs_nothing(by_dvc: Checkout, tmp_path: Path) -> None:
    checkout = Checkout(Path(shutil.copytree(by_dvc.root, tmp_path / "copy", symlinks=True)))
    smoke, made = checkout.jobs(), checkout.files(*VIEWS, "reports")
    checkout.edit("params.yaml", "tier: smoke", "tier: mini")
    checkout.noscratch("repro")
    assert set(smoke) < set(checkout.jobs())
    assert {p.name for p in (checkout.root / "data/runs").iterdir()} == {"mini"}
    stamps = {p: p.stat().st_mtime_ns for p in (checkout.root / "data/store").rglob("record.json")}
    checkout.edit("params.yaml", "tier: mini", "tier: smoke")
    checkout.noscratch("repro")
    assert checkout.files(*VIEWS, "reports") == made
    assert {p: p.stat().st_mtime_ns for p in (checkout.root / "data/store").rglob("record.json")} == stamps


def test_a_removed_backbone_leaves_views_and_tables(by_dvc: Checkout, tmp_path: Path) -> None:
    checkout = Checkout(Path(shutil.copytree(by_dvc.root, tmp_path / "copy", symlinks=True)))
    kept = checkout.jobs()
    checkout.edit("params.yaml", "  s4d: {}\n", "")
    checkout.noscratch("repro")
    assert checkout.jobs() == kept
    assert "s4d" not in (checkout.root / "reports/metrics.json").read_text()
    assert not list((checkout.root / "data/runs").rglob("s4d"))


def test_commit_refuses_views_of_another_plan(by_dvc: Checkout, tmp_path: Path) -> None:
    checkout = Checkout(Path(shutil.copytree(by_dvc.root, tmp_path / "copy", symlinks=True)))
    lock = (checkout.root / "dvc.lock").read_bytes()
    checkout.edit("params.yaml", "steps: 4", "steps: 5")
    done = checkout.noscratch("commit", check=False)
    assert done.returncode == 1
    assert "DVC records only views of the present plan" in done.stderr
    assert (checkout.root / "dvc.lock").read_bytes() == lock


def test_commit_makes_the_reports_of_what_it_records(by_dvc: Checkout, tmp_path: Path) -> None:
    checkout = Checkout(Path(shutil.copytree(by_dvc.root, tmp_path / "copy", symlinks=True)))
    table = (checkout.root / "reports/verdicts.parquet").read_bytes()
    claims = checkout.root / "claims/bigs.yaml"
    claims.write_text(claims.read_text().replace("version: 1", "version: 2"))
    checkout.noscratch("commit")
    assert "up to date" in checkout.dvc("status").stdout
    assert (checkout.root / "reports/verdicts.parquet").read_bytes() != table, "verdicts of former claims recorded"


def test_a_second_snakemake_makes_no_report_again(by_dvc: Checkout, tmp_path: Path) -> None:
    checkout = Checkout(Path(shutil.copytree(by_dvc.root, tmp_path / "copy", symlinks=True)))
    checkout.noscratch("commit")
    before = {path: path.stat().st_mtime_ns for path in checkout.root.glob("public/*")}
    checkout.snakemake("all")
    assert {path: path.stat().st_mtime_ns for path in checkout.root.glob("public/*")} == before != {}
    (checkout.root / "reports/cells.parquet").unlink()
    checkout.snakemake("all")
    assert (checkout.root / "reports/cells.parquet").is_file()
    assert "up to date" in checkout.dvc("status").stdout


def test_what_is_recorded_is_not_asked_of_dvc_again(by_dvc: Checkout, tmp_path: Path) -> None:
    """Its status looks at thousands of files; a run with nothing to do does without, until something moves."""
    checkout = Checkout(Path(shutil.copytree(by_dvc.root, tmp_path / "copy", symlinks=True)))
    checkout.noscratch("commit")
    (tmp_path / "dvc").mkdir()
    (tmp_path / "dvc/__init__.py").write_text("raise SystemExit('DVC was asked')")
    broken = {"PYTHONPATH": os.pathsep.join([str(tmp_path), checkout.environment()["PYTHONPATH"]])}
    checkout.snakemake("all", **broken)
    view = checkout.root / "data/runs/smoke/listops/s4d/scratch/seed0/finetune/record.json"
    for change in (view.unlink, lambda: os.utime(checkout.root / "claims/bigs.yaml")):
        change()
        done = checkout.snakemake("all", check=False, **broken)
        assert "DVC was asked" in done.stdout + done.stderr
        checkout.snakemake("all")
        checkout.snakemake("all", **broken)
    assert "up to date" in checkout.dvc("status").stdout


def test_what_is_recorded_is_listed_for_a_diff(by_dvc: Checkout, tmp_path: Path) -> None:
    from dvc.repo import Repo

    checkout = Checkout(Path(shutil.copytree(by_dvc.root, tmp_path / "copy", symlinks=True)))
    claims = checkout.root / "claims/bigs.yaml"
    claims.write_text(claims.read_text().replace("version: 1", "version: 2"))
    checkout.noscratch("commit")
    with Repo(str(checkout.root)) as repo:
        data = repo.index.data["repo"]
        assert all(data[tuple(view.split("/"))].loaded for view in MADE if view != "reports")


def test_a_part_of_the_plan_runs_alone(by_dvc: Checkout, tmp_path: Path) -> None:
    clone = by_dvc.clone(tmp_path / "clone")
    clone.noscratch("sources", "--refresh")
    targets = clone.noscratch("plan", "--select", "listops,spt-masked,pretrain", "--targets").stdout.split()
    assert len(targets) == 1
    clone.snakemake(*targets)
    (prepared, pretrained) = sorted(clone.jobs(), key=lambda name: "pretrain" in name)
    assert "-prepare-listops" in prepared
    assert targets == [f"data/store/{pretrained}/record.json"]
    assert clone.noscratch("plan", "--select", "cola", "--targets").stdout.strip() == "", "it is blocked"
    done = clone.noscratch("plan", "--select", "text", check=False)
    assert done.returncode == 1
    assert "no run of tier smoke has 'text'" in done.stderr


def test_a_job_that_fails_says_why(by_dvc: Checkout, tmp_path: Path) -> None:
    clone = by_dvc.clone(tmp_path / "clone")
    clone.edit("params.yaml", "listops: {train: 48", "listops: {train: -48")
    done = clone.snakemake("prepared", check=False)
    assert done.returncode == 1
    assert "error: ListOps needs" in done.stderr
    assert clone.jobs() == []


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_repro_leaves_nothing_running(by_dvc: Checkout, tmp_path: Path, asked: signal.Signals) -> None:
    """Ctrl-C comes to the whole group, a scheduler's SIGTERM to the process that it started."""
    checkout = by_dvc.clone(tmp_path / "clone")
    program = "import os, sys; from noscratch.cli import main; sys.argv = ['noscratch', 'repro']; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {program}"],
        cwd=checkout.root,
        env=checkout.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list((checkout.root / "data").glob("store/.tmp-*")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    if asked == signal.SIGINT:
        os.killpg(process.pid, asked)
    else:
        process.send_signal(asked)
    assert process.wait(120) == 128 + asked
    assert not living_in(process.pid), "a child goes on"
    checkout.noscratch("gc")  # what the engine killed outright is no result, and swept
    assert not list((checkout.root / "data").glob("store/*")), "a stopped job left something that gc does not know"


@pytest.mark.proves("kills")
def test_killed_in_mid_run_goes_on(by_dvc: Checkout, tmp_path: Path) -> None:
    checkout = by_dvc.clone(tmp_path / "clone")
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "all"]
    process = subprocess.Popen(
        command,
        cwd=checkout.root,
        env=checkout.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not checkout.jobs():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {
        name: (checkout.root / "data/store" / name / "record.json").stat().st_mtime_ns for name in checkout.jobs()
    }
    assert before
    checkout.snakemake("all")
    assert checkout.files(*MADE) == by_dvc.files(*MADE)
    for name, stamp in before.items():
        record = checkout.root / "data/store" / name / "record.json"
        assert not record.exists() or record.stat().st_mtime_ns == stamp, "a finished job ran again"
    checkout.noscratch("gc")
    assert not list((checkout.root / "data/store").glob(".tmp-*"))


def test_a_second_run_at_the_same_time_is_refused(by_dvc: Checkout) -> None:
    import fcntl

    with (by_dvc.root / "data/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        refused = (by_dvc.noscratch(command, check=False) for command in ("repro", "publish"))
        for done in (*refused, by_dvc.snakemake("all", check=False)):
            assert done.returncode == 1
            assert "One run at a time works in a checkout" in done.stdout + done.stderr
        by_dvc.snakemake("--dry-run", "all")


def test_slots_and_time_are_those_of_the_host_or_the_clusters(by_dvc: Checkout, tmp_path: Path) -> None:
    clone = by_dvc.clone(tmp_path / "clone")
    clone.edit("params.yaml", "device: cpu", "device: auto")
    shown = ("--dry-run", "--printshellcmds", "--quiet", "host", "--", "all")
    here = clone.snakemake(*shown, NOSCRATCH_GPUS="2")
    login = clone.run(
        *(sys.executable, "-m", "snakemake", "--executor", "slurm", "--jobs", "4"),
        *("--default-resources", "runtime=240"),
        *shown,
        NOSCRATCH_GPUS="0",
    )
    for said in (here.stdout + here.stderr, login.stdout + login.stderr):
        assert said.count("gpu=1") == said.count("rule pretrain:") + said.count("rule finetune:") > 0, said
    assert "--stop-after" not in here.stdout + here.stderr, "nobody ends a job here"
    said = login.stdout + login.stderr
    assert said.count(" --stop-after 14100 >") == said.count(" -m noscratch run ") > 0, (
        "a cluster does, after 240 minutes"
    )
    assert not (clone.root / "data/store").exists()
