"""How far the plan is: every job in exactly one state, with its age."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from noscratch import terminal
from noscratch.cli import app
from noscratch.errors import NoscratchError
from noscratch.plan import Job, Plan, read_plan
from noscratch.record import write_record
from noscratch.status import STATES, Status, age
from noscratch.store import RECORD, Store

TINY = Path(__file__).parent / "tiny" / "params.yaml"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Plan]:
    """The tiny plan in an empty folder that commands run in; CoLA is blocked."""
    monkeypatch.delenv("NOSCRATCH_MIRROR", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(TINY, tmp_path / "params.yaml")
    return Store(tmp_path), read_plan(tmp_path)


def publish(store: Store, job: Job, state: str, seconds: float = 0) -> None:
    """A result of `job`, as old as that."""
    with store.building(job) as folder:
        write_record(job, folder, state, {}, {}, None if state == "done" else "a reason")
    then = time.time() - seconds
    os.utime(store.path(job) / RECORD, (then, then))


def test_every_job_is_in_one_state(checkout: tuple[Store, Plan]) -> None:
    store, plan = checkout
    runs = [job for job in plan.of("pretrain", "finetune") if job.cell and job.cell.task == "listops"]
    for job, state in zip(runs, ("done", "failed", "diverged"), strict=False):
        publish(store, job, state)
    cola = {job.address for job in plan.jobs.values() if "cola" in job.label}
    found = Status(store, plan).states
    assert found.keys() == plan.jobs.keys()
    assert [found[job.address] for job in runs] == ["done", "failed", "diverged", *["planned"] * (len(runs) - 3)]
    assert {address for address, state in found.items() if state == "blocked"} == cola
    lines = {(line.task, line.backbone): line for line in Status(store, plan).grid()}
    assert sum(sum(line.counts.values()) for line in lines.values()) == len(plan.of("pretrain", "finetune"))
    assert all(set(line.counts) <= set(STATES) for line in lines.values())


def test_a_result_of_other_settings_is_stale(checkout: tuple[Store, Plan]) -> None:
    store, plan = checkout
    job = plan.of("finetune")[0]
    earlier = Job(job.kind, job.label, {**job.settings, "threads": 2}, job.modules, job.needs, job.view, job.cell)
    assert earlier.address != job.address
    publish(store, earlier, "done")
    assert Status(store, plan).states[job.address] == "stale"
    publish(store, job, "done")
    assert Status(store, plan).states[job.address] == "done"


def test_ages_are_those_of_the_present_results(checkout: tuple[Store, Plan]) -> None:
    store, plan = checkout
    runs = [job for job in plan.of("pretrain", "finetune") if job.cell and job.cell.backbone == "s4d"]
    publish(store, runs[0], "done", 7200)
    publish(store, runs[1], "done", 3 * 86400)
    [line] = [line for line in Status(store, plan).grid() if line.backbone == "s4d"]
    assert line.newest == pytest.approx(7200, abs=60)
    assert line.oldest == pytest.approx(3 * 86400, abs=60)
    said = CliRunner().invoke(app, ["status", "--backbone", "s4d"]).output
    row = next(row for row in said.splitlines() if row.startswith("listops"))
    assert row.split()[:2] == ["listops", "s4d"]
    assert "2 done" in row
    assert row.rstrip().endswith("; 2 h to 3 d")
    assert "majority" not in said


def log(store: Store, job: Job, text: str, seconds: float = 0) -> None:
    """What the last run of a job said, as long ago as that."""
    path = store.data / "logs" / f"{job.name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - seconds,) * 2)


LONG = "step 1/4, loss 2.0\n" * 2000
TRACEBACK = (
    'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\nZeroDivisionError: division by zero\n'
)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("error: A step needs memory; there is none. Take less.\n", "A step needs memory; there is none. Take less."),
        (LONG + "error: A step needs\nmemory.\n", "A step needs memory."),
        (LONG + TRACEBACK, "ZeroDivisionError: division by zero"),
        (TRACEBACK + "\nDuring handling:\n\n" + TRACEBACK.replace("Zero", "One"), "OneDivisionError: division by zero"),
        (LONG, None),  # it runs, or was killed
        ("", None),
        ("smoke: stopped at a checkpoint; run the same command to go on\n", None),
    ],
)
def test_a_job_that_crashed_is_failed_and_its_log_says_why(
    checkout: tuple[Store, Plan], said: str, reason: str | None
) -> None:
    store, plan = checkout
    job = next(job for job in plan.of("finetune") if job.cell and job.cell.backbone == "s4d")
    log(store, job, said, 7300)
    assert Status(store, plan).states[job.address] == ("failed" if reason else "planned")
    [line] = [line for line in Status(store, plan).grid() if line.backbone == "s4d"]
    assert line.counts["failed"] == bool(reason)
    assert line.newest == (pytest.approx(7300, abs=60) if reason else None)
    output = CliRunner().invoke(app, ["status"]).output
    assert (f"failed    {job.name}: {reason} (2 h ago; data/logs/{job.name}.log)" in output) == bool(reason)
    log(store, job, said)
    publish(store, job, "done")  # and it ran again
    assert Status(store, plan).states[job.address] == "done"
    assert "failed" not in CliRunner().invoke(app, ["status"]).output


def test_names_are_whole_on_a_narrow_terminal(checkout: tuple[Store, Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    store, plan = checkout
    shutil.copyfile(TINY.parents[2] / "params.yaml", store.root / "params.yaml")
    monkeypatch.setattr(terminal.out, "_width", 60)
    plan = read_plan(store.root)
    rows = [line.split() for line in CliRunner().invoke(app, ["status"]).output.splitlines()]
    shown = {tuple(row[:2]) for row in rows}
    assert {(job.cell.task, job.cell.backbone) for job in plan.in_view("runs") if job.cell} <= shown
    lines = CliRunner().invoke(app, ["plan"]).output.splitlines()
    column = slice(lines[0].index("job"), lines[0].index("state"))
    said = "".join(line[column].strip() for line in lines)
    assert all(job.label in said for job in plan.jobs.values())


def test_a_name_that_is_not_in_the_plan(checkout: tuple[Store, Plan]) -> None:
    done = CliRunner().invoke(app, ["status", "--task", "listop"])
    assert isinstance(done.exception, NoscratchError)
    assert "--task is one of listops, cola; got 'listop'" in str(done.exception)
    assert not done.output


def test_gc_says_what_it_frees(checkout: tuple[Store, Plan]) -> None:
    store, plan = checkout
    kept, gone = plan.of("finetune")[:2]
    left = Job(gone.kind, gone.label, {**gone.settings, "threads": 2}, gone.modules, gone.needs, gone.view, gone.cell)
    for job in (kept, left):
        publish(store, job, "done")
    held = sum(path.stat().st_size for path in store.path(left).iterdir())
    for arguments, said, there in ((["--dry-run"], "would free", True), ([], "freed", False)):
        output = CliRunner().invoke(app, ["gc", *arguments]).output
        assert f"data/store/{left.name}: {held:,} bytes" in output
        assert f"{said} {held:,} bytes" in output
        assert store.has(left) is there
        assert store.has(kept)


@given(st.floats(0, 1e8))
def test_an_age_is_in_its_largest_unit(seconds: float) -> None:
    number, unit = age(seconds).split()
    size = {"d": 86400, "h": 3600, "min": 60, "s": 1}[unit]
    assert int(number) * size <= seconds < (int(number) + 1) * size
    assert unit == "s" or int(number) >= 1
    assert unit == "d" or seconds < {"h": 86400, "min": 3600, "s": 60}[unit]
