"""What the engines take for plans of 200, 1,000 and 5,000 cells: seconds and memory of each command, nothing trained.

    python -m bench.scale --out FOLDER [--cells 200 1000 5000] [--rounds 3]

For each size a checkout is made of this one's files and the tier `paper` of params.yaml, cut to so many cells. Its
store is filled with made-up results at the plan's addresses (predictions, curves and records of their usual size), so
every command below runs as it would after years of training. Each is a fresh process: the best of the rounds, as
processor time of it and its children, elapsed time, and the largest memory of one process. Writes FOLDER/scale.json and
a record.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pyarrow as pa

from noscratch import availability
from noscratch.params import Params, parse
from noscratch.plan import Job, Plan, cells, read_plan
from noscratch.record import Stopwatch, write_bench, write_record
from noscratch.results import parquet_bytes
from noscratch.store import RECORD, Store, sha256_of
from noscratch.yaml_reader import read

ROOT = Path(__file__).parents[1]
MODULES = ("noscratch.plan", "noscratch.store", "noscratch.status")
EXAMPLES = 200
PLAN = "from pathlib import Path; from noscratch.plan import read_plan; print(len(read_plan(Path.cwd()).digest))"
# A change of one backbone's settings: its cells are others, all others stay.
CHANGED = ("s4d", {"dt_max": 0.2})
NOSCRATCH, SNAKEMAKE, DVC = ((sys.executable, "-m", name) for name in ("noscratch", "snakemake", "dvc"))


class Cost(NamedTuple):
    seconds: float  # elapsed
    cpu: float  # of the process and its children, user and system
    mib: float  # resident, of the largest process


# ---------------------------------------------------------------- a checkout with results that nobody computed


def settings(count: int) -> dict[str, Any]:
    """params.yaml with tier `paper` chosen, and as few tasks and then backbones as give `count` cells."""
    data: dict[str, Any] = read(ROOT / "params.yaml").data
    data["run"] |= {"tier": "paper", "device": "cpu"}
    data["tiers"]["paper"]["network"] = False  # not part of an address
    tasks, backbones = list(data["tasks"].items()), list(data["backbones"].items())

    def with_first(of_tasks: int, of_backbones: int) -> dict[str, Any]:
        return data | {"tasks": dict(tasks[:of_tasks]), "backbones": dict(backbones[:of_backbones])}

    def enough(*sizes: int) -> bool:
        return len(cells(parse(with_first(*sizes)))) >= count

    if not enough(len(tasks), len(backbones)):
        raise SystemExit(f"The tier has fewer than {count} cells; ask for fewer.")
    of_tasks = next(n for n in range(1, len(tasks) + 1) if enough(n, len(backbones)))
    return with_first(of_tasks, next(n for n in range(1, len(backbones) + 1) if enough(of_tasks, n)))


def checkout(root: Path, data: dict[str, Any]) -> None:
    """This checkout's tracked files with other settings, no published run and an empty history, committed."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in listed.decode().split("\0"):
        if name and (ROOT / name).is_file() and not name.startswith("reports/records/runs") and name != "dvc.lock":
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes((ROOT / name).read_bytes())
    (root / "reports" / "verdicts.jsonl").write_text("")
    write_settings(root, data)
    git(root, "init", "--quiet", "--initial-branch=main")
    commit(root, "Start")


def write_settings(root: Path, data: dict[str, Any]) -> None:
    (root / "params.yaml").write_text(json.dumps(data, indent=1), encoding="utf-8")  # JSON is YAML


def git(root: Path, *arguments: str) -> None:
    name = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
    subprocess.run(["git", *name, *arguments], cwd=root, check=True)


def commit(root: Path, subject: str) -> None:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", subject)


def available(store: Store, plan: Plan) -> None:
    """Every source can be had, as after a look on a host with a network."""
    store.data.mkdir(exist_ok=True)
    states = {job.label: availability.AVAILABLE for job in plan.of("fetch")}
    (store.data / "availability.json").write_text(json.dumps(states), encoding="utf-8")


def fill(store: Store, plan: Plan) -> None:
    """A made-up result for every job of the plan that has none."""
    provenance = Stopwatch(ROOT, "cpu")
    with mock.patch("os.fsync"):  # nothing here has to outlive a crash
        for job in plan.jobs.values():
            if store.has(job):
                continue
            with store.building(job) as out:
                result = made_up(job, out)
                needed = {role: sha256_of(store.path(plan[need]) / RECORD) for role, need in job.needs.items()}
                write_record(job, out, "done", needed, result)
                provenance.write(out, {})


def made_up(job: Job, out: Path) -> dict[str, Any]:
    """Artifacts and result of a job, drawn from its address."""
    draw = np.random.default_rng(int(job.address, 16))
    if job.cell is None:
        (out / "data.bin").write_bytes(draw.bytes(256))
        if job.kind == "fetch":
            return {"source": job.label, "form": "official archive"}
        (out / "meta.json").write_text(json.dumps({"kind": "classification", "classes": 2}), encoding="utf-8")
        about: dict[str, Any] = {"examples": EXAMPLES, "tokens": 100 * EXAMPLES}
        about |= {"lengths": {"min": 9, "mean": 99.5, "max": 256}, "labels": {"0": 100, "1": 100}}
        return {"vocabulary": 18, "length": 256, "splits": dict.fromkeys(("train", "validation", "test"), about)}
    train = job.settings.get("train", {})
    steps, every = train.get("steps", 100_000), train.get("evaluate_every", 2_000)
    (out / "weights.safetensors").write_bytes(draw.bytes(1024))
    scored = ("train",) if job.kind == "pretrain" else ("validation", "test")
    at = range(every, steps + 1, every)
    curve = [f"{k},{split},loss,{draw.random()!r}" for k in at for split in ("train", "validation")]
    curve += [f"{k},validation,accuracy,{draw.random()!r}" for k in at]
    (out / "curves.csv").write_text("\n".join(["step,split,metric,value", *curve]) + "\n", encoding="utf-8")
    metrics = {split: {"accuracy": 0.5, "loss": 0.7} for split in scored}
    if job.kind == "finetune":
        target = draw.integers(0, 2, (2, EXAMPLES)).astype(float)
        prediction = np.where(draw.random((2, EXAMPLES)) < draw.uniform(0.4, 0.9), target, 1 - target)
        for split, right in zip(scored, (target == prediction).mean(1).tolist(), strict=True):
            metrics[split]["accuracy"] = right
        columns = {
            "id": [f"{split}-{k}" for split in scored for k in range(EXAMPLES)],
            "split": [split for split in scored for _ in range(EXAMPLES)],
            "target": target.ravel(),
            "prediction": prediction.ravel(),
        }
        (out / "predictions.parquet").write_bytes(parquet_bytes(pa.table(columns)))
    counts = {"parameters": 15_890, "steps": steps, "tokens_real": 90 * steps, "tokens_computed": 99 * steps}
    return {
        "phase": job.kind,
        "primary": "accuracy",
        "metrics": metrics,
        "examples": dict.fromkeys(scored, EXAMPLES),
        "selection": {"rule": "best validation accuracy", "step": steps, "value": 0.9},
        "counts": counts | {"flops": 1.5e9 * steps},
        "kernels": {"s4d_kernel": "fast"},
    }


# ---------------------------------------------------------------- measures


def cost(root: Path, command: Sequence[str]) -> Cost:
    """Of one run of a command, which must succeed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NOSCRATCH_", "DVC_"))}
    environment |= {"PYTHONPATH": str(root / "src"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} exited {process.returncode}\n{said.read().decode()[-3000:]}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def commands(stage: str) -> dict[str, tuple[str, ...]]:
    """What is measured: on a plan with nothing done, on the finished one, and between two commits."""
    if stage == "nothing done":
        return {
            "plan and addresses": (sys.executable, "-c", PLAN),
            "snakemake -n all, nothing done": (*SNAKEMAKE, "--dry-run", "--quiet", "all", "--", "all"),
        }
    if stage == "all done":
        return {
            "noscratch status": (*NOSCRATCH, "status"),
            "snakemake -n all, all done": (*SNAKEMAKE, "--dry-run", "--quiet", "all", "--", "all"),
            "snakemake all, nothing to do": (*SNAKEMAKE, "--cores", "2", "--quiet", "all", "--", "all"),
            "dvc status": (*DVC, "status"),
            "dvc repro, nothing to do": (*DVC, "repro"),
            "noscratch repro, nothing to do": (*NOSCRATCH, "repro"),
            "noscratch gc --dry-run": (*NOSCRATCH, "gc", "--dry-run"),
        }
    return {
        "dvc diff": (*DVC, "diff", "HEAD~1", "HEAD", "--json"),
        "dvc params diff": (*DVC, "params", "diff", "HEAD~1", "HEAD"),
        "dvc metrics diff --md": (*DVC, "metrics", "diff", "HEAD~1", "HEAD", "--md"),
        "dvc plots diff": (*DVC, "plots", "diff", "HEAD~1", "HEAD", "--out", "data/plots"),
    }


def measure(root: Path, stage: str, rounds: int) -> Iterator[dict[str, Any]]:
    for name, command in commands(stage).items():
        found = [cost(root, command) for _ in range(rounds)]
        best = min(found, key=lambda one: one.cpu)
        yield {
            "command": name,
            "seconds": min(one.seconds for one in found),
            "cpu": best.cpu,
            "mib": max(one.mib for one in found),
            "rounds": rounds,
        }


def size(root: Path, count: int, rounds: int) -> Iterator[dict[str, Any]]:
    """The rows of one size of plan."""
    data = settings(count)
    checkout(root, data)
    store, plan = Store(root), read_plan(root)
    about = {"cells": len(cells(plan.params)), "jobs": len(plan.jobs)}
    available(store, plan)
    yield from (about | row for row in measure(root, "nothing done", rounds))
    fill(store, plan)
    availability.refresh(store, plan)  # as the engines do, which write the file in their own form
    yield from (about | row for row in record(root, "first"))
    yield from (about | row for row in measure(root, "all done", rounds))
    name, changes = CHANGED
    data["backbones"][name] = data["backbones"][name] | changes
    write_settings(root, data)
    changed = Plan(params_of(root))
    fill(store, changed)
    yield from (about | row for row in record(root, "after a change"))
    yield from (about | row for row in measure(root, "two commits", rounds))


def record(root: Path, when: str) -> Iterator[dict[str, Any]]:
    """Views, reports, pages and dvc.lock of what is in the store, committed; measured once."""
    for name, command in (
        ("noscratch view", (*NOSCRATCH, "view", "raw", "prepared", "runs")),
        ("noscratch commit", (*NOSCRATCH, "commit")),
    ):
        yield {"command": f"{name}, {when}", **cost(root, command)._asdict(), "rounds": 1}
    commit(root, when)


def params_of(root: Path) -> Params:
    return parse(read(root / "params.yaml").data)


def table(found: list[dict[str, Any]]) -> str:
    head = f"{'cells':>7}{'jobs':>7}  {'command':40}{'seconds':>9}{'cpu':>9}{'MiB':>8}"
    line = "{cells:7}{jobs:7}  {command:40}{seconds:9.2f}{cpu:9.2f}{mib:8.0f}"
    return "\n".join([head, *(line.format(**row) for row in found)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of scale.json")
    parser.add_argument("--cells", type=int, nargs="+", default=[200, 1000, 5000])
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    watch = Stopwatch(ROOT, "cpu")
    found: list[dict[str, Any]] = []
    for count in asked.cells:
        with tempfile.TemporaryDirectory() as folder:
            for row in size(Path(folder) / "checkout", count, asked.rounds):
                found.append(row)
                print(table([row]).splitlines()[1], flush=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "scale.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_bench(asked.out, "scale", {"cells": asked.cells, "rounds": asked.rounds}, MODULES, watch)


if __name__ == "__main__":
    main()
