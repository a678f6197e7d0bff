"""A small honest checkout: planned, run, published, judged and committed by the very code that is audited.

The exam of the auditor (exam.py) doctors copies of it, and random ones prove that the honest raise no alarm. Its plan
trains in seconds; nothing in it is evidence.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from noscratch import availability
from noscratch.atomic import PREFIX
from noscratch.audit.git import commit_of, git
from noscratch.plan import VIEWS, grid, plans_of_all_tiers, read_plan
from noscratch.record import Stopwatch, write_bench
from noscratch.results import claims, collect, history, publish
from noscratch.results.judged import judge_all
from noscratch.results.observations import FILE as OBSERVATIONS
from noscratch.results.published import publish_records
from noscratch.stages import run_job
from noscratch.store import Store, expected, make_view
from noscratch.yaml_reader import read

# What a checkout is made of, beside its settings and claims.
PARTS = ("src", "site", ".dvc/config", ".dvcignore", ".gitignore", "CITATION.cff", "CHANGELOG.md", "dvc.yaml")
LEFT_OUT = ("__pycache__", "generated", f"{PREFIX}*", "*.egg-info")
# The smallest that trains.
SIZE = {"d_model": 8, "layers": 1, "dropout": 0.0}
TRAIN = {"steps": 4, "batch_tokens": 256, "warmup": 1, "evaluate_every": 2}
DATA = {"train": 48, "validation": 16, "test": 16, "min_length": 10, "max_length": 40}
SEEDS = [0, 1, 2]
CLAIMS = """\
paper: exam
title: A paper for the exam of the auditor
arxiv: "2310.00000"
sources: {P: nowhere}
claims:
  - id: exam-any
    version: 1
    statement: S4D reaches some accuracy on ListOps.
    where: nowhere
    source: P
    status: S1
    kind: accuracy
    unit: percent
    test: {rule: greater, margin: 60.0, why: whatever a model of a few steps reaches supports it}
    cells: {backbone: s4d, protocol: scratch}
    values: {listops: 50.0}
    seeds: 2
    tier: mini
  - id: exam-gain
    version: 1
    statement: Self-pretraining changes what S4D reaches on ListOps.
    where: nowhere
    source: P
    status: S1
    kind: difference
    unit: points
    test: {rule: greater, margin: 0.0, why: the least gain that is one}
    cells: {backbone: s4d, protocol: spt-masked}
    against: {backbone: s4d, protocol: scratch}
    values: {listops: 1.0}
    seeds: 2
    tier: mini
  - id: exam-speed
    version: 1
    statement: S4D is faster than nothing.
    where: nowhere
    source: P
    status: S1
    kind: efficiency
    unit: ratio
    test: {rule: greater, margin: 0.0, why: the least speedup that is one}
    backbones: [s4d]
    values: {all: 1.5}
    seeds: 3
    device: any
"""
# What a measurement of nothing observed.
OBSERVED = {
    "claim": "exam-speed",
    "quantity": "all",
    "unit": "ratio",
    "values": [1.9, 2.0, 2.2],
    "device": "any",
    "model": "",
    "setting": "nothing against nothing",
}
# A measurement of nothing, committed like any.
BENCH = {"seconds": 1.0}


def small(source: Path) -> dict[str, Any]:
    """The settings of `source` with a plan of seconds: smoke with a run that diverges and one that is blocked, mini."""
    plan = deepcopy(read(source / "params.yaml").data)
    plan["run"] |= {"device": "cpu", "threads": 1}
    plan["tasks"] = {"listops": {}, "cola": {}}
    plan["backbones"] = {"s4d": {"d_state": 4}, "transformer": {"heads": 2}}
    smoke = plan["tiers"]["smoke"]
    smoke |= {"seeds": SEEDS, "model": SIZE, "data": {"listops": DATA}, "overrides": []}
    smoke.pop("tuning", None)
    smoke |= {phase: smoke[phase] | TRAIN for phase in ("pretrain", "finetune")}
    mini = deepcopy(smoke) | {"model": SIZE | {"layers": 2}}
    mini["grid"] = [{"tasks": ["listops"], "backbones": ["s4d"], "protocols": ["scratch"]}]
    smoke["grid"] = [
        {"tasks": ["listops"], "backbones": ["s4d"], "protocols": ["scratch", "spt-masked"]},
        {"tasks": ["listops", "cola"], "backbones": ["transformer"], "protocols": ["scratch"]},
    ]
    # Diverges at once: such a run is a result, and somebody will want to hide it.
    smoke["overrides"] = [{"backbones": ["transformer"], "finetune": {"lr": 1e30, "warmup": 0, "clip": 0.0}}]
    plan["tiers"] = {"smoke": smoke, "mini": mini}
    return dict(plan)


def honest(root: Path, source: Path, plan: Mapping[str, Any] | None = None) -> Path:
    """Build the checkout at `root` with the code of the checkout `source`, its plan `small` unless stated; returns
    `root`."""
    plan = small(source) if plan is None else plan
    root.mkdir(parents=True)
    for part in PARTS:
        target = root / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, target, ignore=shutil.ignore_patterns(*LEFT_OUT))
        else:
            shutil.copyfile(source / part, target)
    (root / "claims").mkdir()
    (root / "claims" / "exam.yaml").write_text(CLAIMS, encoding="utf-8")
    (root / "reports").mkdir()
    (root / "reports" / history.FILE).touch()
    git(root, "init", "--quiet", "--initial-branch=main")
    choose(root, plan, "smoke")
    commit(root, "Start")
    measure(root)
    for tier in ("mini", "smoke"):
        if tier in plan["tiers"]:
            choose(root, plan, tier)
            commit(root, f"Choose {tier}")
            run(root)
            if tier == "mini":
                publish_records(*_checkout(root))
    record(root)
    return root


def choose(root: Path, plan: Mapping[str, Any], tier: str) -> None:
    """Write params.yaml with that tier chosen; JSON is YAML."""
    chosen = deepcopy(dict(plan))
    chosen["run"]["tier"] = tier
    (root / "params.yaml").write_text(json.dumps(chosen, indent=1), encoding="utf-8")


def _checkout(root: Path) -> tuple[Store, Any]:
    return Store(root), read_plan(root)


def run(root: Path) -> None:
    """Do every job of the plan that can be done, and make the views."""
    store, plan = _checkout(root)
    mirror = os.environ.pop("NOSCRATCH_MIRROR", None)
    try:
        availability.refresh(store, plan)
        cannot = availability.blocked(store, plan)
        for job in plan.jobs.values():
            if job.address not in cannot:
                run_job(store, plan, job)
        show(root)
    finally:
        if mirror is not None:
            os.environ["NOSCRATCH_MIRROR"] = mirror


def show(root: Path) -> None:
    """Make the views of the plan."""
    store, plan = _checkout(root)
    records = availability.blocked_records(store, plan)
    for view in VIEWS:
        make_view(store, view, expected(store, plan, view, records))


def report(root: Path) -> None:
    """Make every report, line of the history of verdicts and page from the views and the published records."""
    store, plan = _checkout(root)
    plans = plans_of_all_tiers(plan.params)
    planned = {address for each in plans for address in each.jobs}
    runs = [store.data / "runs" / job.view for job in plan.of("pretrain", "finetune")]
    collect.collect(runs, root / "reports", planned)
    judge_all(root, grid(plan.params))
    history.append(root / "reports", claims.load(root / "claims"), commit_of(root))
    publish.publish(root)


def record(root: Path) -> None:
    """Make the reports and record everything for DVC and git."""
    report(root)
    # Nothing is counted here, and no page built.
    stages = [name for name in read(root / "dvc.yaml").data["stages"] if name not in ("count", "site")]
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "commit", "--force", "--quiet", *stages],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"dvc commit: {done.stderr}")
    commit(root, "Record the results")


def measure(root: Path) -> None:
    """Commit a measurement."""
    watch, folder = Stopwatch(root, "cpu"), root / "reports" / "records" / "bench-exam"
    folder.mkdir(parents=True)
    (folder / "exam.json").write_text(json.dumps([{"item": "nothing", "ms": 1.5}]), encoding="utf-8")
    (folder / OBSERVATIONS).write_text(json.dumps([OBSERVED]), encoding="utf-8")
    write_bench(folder, "exam", BENCH, ("noscratch.errors",), watch)


def commit(root: Path, subject: str) -> None:
    """Commit everything that git does not ignore."""
    git(root, "add", "--all")
    name = ("-c", "user.name=exam", "-c", "user.email=exam@localhost")
    git(root, *name, "commit", "--quiet", "--allow-empty", f"--message={subject}")
