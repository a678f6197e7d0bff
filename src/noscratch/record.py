"""What is kept of a job: record.json, the same bytes on every run, and provenance.json, what differs each time."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from noscratch import atomic
from noscratch.device import processor
from noscratch.plan import Job
from noscratch.schema import STATES, stated
from noscratch.store import PROVENANCE, RECORD, as_json, read_record, sha256_of

LIBRARIES = (
    "numpy",
    "numba",
    "pillow",
    "pyarrow",
    "safetensors",
    "scikit-learn",
    "scipy",
    "tokenizers",
    "torch",
    "triton",
)


def write_record(
    job: Job, folder: Path, state: str, inputs: Mapping[str, str], result: Mapping[str, Any], reason: str | None = None
) -> None:
    """Write record.json beside the artifacts in `folder`; it lists each with its size and sha256."""
    assert state in STATES
    artifacts = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path not in (folder / RECORD, folder / PROVENANCE)
    }
    atomic.write(folder / RECORD, _record(job, state, inputs, result, reason, artifacts))


def blocked_record(job: Job, reason: str) -> bytes:
    """The record of a job that cannot run because a source cannot be had; shown in the views, kept nowhere."""
    return _record(job, "blocked", {}, {}, reason, {})


def _record(
    job: Job,
    state: str,
    inputs: Mapping[str, str],
    result: Mapping[str, Any],
    reason: str | None,
    artifacts: Mapping[str, Any],
) -> bytes:
    return as_json(
        {
            **stated(job),
            "inputs": dict(inputs),
            "state": state,
            "reason": reason,
            "artifacts": artifacts,
            "result": dict(result),
        }
    )


def write_bench(
    folder: Path, name: str, settings: Mapping[str, Any], modules: tuple[str, ...], watch: Stopwatch
) -> None:
    """Record a measurement whose tables stand in `folder`: record.json and provenance.json beside them.

    `watch` was made before the measurement.

    A measurement is no job of the plan: it runs alone, differs each time, and is committed as it is below
    reports/records/, under an address like any result's (settings and the code of `modules`).
    """
    job = Job("bench", name, settings, modules, {}, name)
    write_record(job, folder, "done", {}, {})
    watch.write(folder, {})


def count_job(name: str, settings: Mapping[str, Any], modules: tuple[str, ...]) -> Job:
    """Something counted: no job of the plan, and the same on every machine, so its record has no provenance."""
    return Job("count", name, settings, modules, {}, name)


def write_count(folder: Path, job: Job) -> None:
    """Record what was counted, in tables that stand in `folder`."""
    write_record(job, folder, "done", {}, {})


def is_counted(folder: Path, job: Job) -> bool:
    """Does `folder` hold what the present code counts, as it was written?"""
    if not (folder / RECORD).is_file():
        return False
    record = read_record(folder)
    artifacts = record["artifacts"].items()
    return record["address"] == job.address and all(
        (folder / name).is_file() and sha256_of(folder / name) == file["sha256"] for name, file in artifacts
    )


class Stopwatch:
    """Provenance of one job: started when made, written when done."""

    def __init__(self, root: Path, device: str) -> None:
        """Note the time and the state of the checkout before the work starts."""
        self.started = datetime.now(UTC)
        self._clock, self._cpu = time.perf_counter(), time.process_time()
        self.commit, self.dirty = _commit(root)
        self.device = device

    def write(self, folder: Path, extra: Mapping[str, Any]) -> None:
        """Write provenance.json; `extra` is what only the job knows (a source's origin, telemetry)."""
        provenance = as_json(
            {
                "commit": self.commit,
                "dirty": self.dirty,
                "device": self.device,
                "host": platform.node(),
                "platform": platform.platform(),
                "processor": processor(),
                "python": platform.python_version(),
                "libraries": _versions(),
                "arguments": sys.argv[1:],
                "started": self.started.isoformat(timespec="seconds"),
                "seconds": round(time.perf_counter() - self._clock, 3),
                "cpu_seconds": round(time.process_time() - self._cpu, 3),
                **extra,
            }
        )
        atomic.write(folder / PROVENANCE, provenance)


def _commit(root: Path) -> tuple[str | None, bool | None]:
    """The checkout's commit, and whether tracked files differ from it, results apart, which the jobs themselves write;
    None outside git (a bare GPU host)."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, env=environment, capture_output=True, text=True, check=True
        )
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", ":(exclude)reports"],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return head.stdout.strip(), bool(status.stdout.strip())


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
