"""Which sources can be had: data/availability.json, one small file that the fetch stage depends on.

A blocked job has no result that could be kept at its address, so it is tried again; this file, rewritten only when its
content changes, is what tells DVC when. It also tells the plan which jobs cannot run, so that the rest goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from noscratch import atomic, sources
from noscratch.plan import Job, Plan
from noscratch.record import blocked_record
from noscratch.stages import MIRROR, run_job
from noscratch.store import Store, as_json

AVAILABLE = "available"
AT_ONCE = 4  # downloads that share the line


def _file(store: Store) -> Path:
    return store.data / "availability.json"


def refresh(store: Store, plan: Plan, network: bool | None = None) -> dict[str, str]:
    """Look again for every source of the plan: in the store, in the mirror, on the network where the tier allows it."""
    jobs = {job.label: job for job in plan.of("fetch")}
    allowed = plan.params.tier.network if network is None else network
    found = sources.availability(jobs, network=allowed, mirror=os.environ.get(MIRROR))
    return _write(store, {name: AVAILABLE if store.has(job) else found[name] for name, job in jobs.items()})


def read(store: Store, plan: Plan) -> dict[str, str]:
    """What was found at the last look; looks when there was none, it cannot be read, or it was for other sources."""
    path = _file(store)
    if path.is_file():
        try:
            states: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # cut short by a crash of the host
            return refresh(store, plan)
        if states.keys() == {job.label for job in plan.of("fetch")}:
            return states
    return refresh(store, plan)


def bring(store: Store, plan: Plan, network: bool | None = None, progress: bool = False) -> Iterator[tuple[Job, str]]:
    """Fetch what was found and is not in the store yet, several at a time; yields each source's job and its state.

    What turns out not to be had after all (404, a wrong digest on every mirror) is blocked, with its reason, until the
    next refresh.
    """
    states = read(store, plan)
    wanted = [job for job in plan.of("fetch") if states[job.label] == AVAILABLE and not store.has(job)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        # One bar on the terminal at a time: rich draws no two.
        running = {
            job.address: pool.submit(run_job, store, plan, job, network=network, progress=progress and len(wanted) == 1)
            for job in wanted
        }
        for job in plan.of("fetch"):
            if job.address in running:
                try:
                    running[job.address].result()
                except sources.Blocked as blocked:
                    states = _write(store, {**states, job.label: f"blocked: {blocked.reason}"})
            yield job, states[job.label]


def blocked(store: Store, plan: Plan) -> dict[str, str]:
    """Address -> reason of every job that cannot run, because a source that it needs cannot be had."""
    states = read(store, plan)
    reasons: dict[str, str] = {}
    for job in plan.jobs.values():
        if store.has(job):
            continue
        if job.kind == "fetch" and states[job.label] != AVAILABLE:
            reasons[job.address] = f"{job.label}: {states[job.label].removeprefix('blocked: ')}"
        else:
            because = next((reasons[address] for address in job.needs.values() if address in reasons), None)
            if because is not None:
                reasons[job.address] = because
    return reasons


def blocked_records(store: Store, plan: Plan) -> dict[str, bytes]:
    """Address -> record of every job that cannot run, for the views."""
    return {address: blocked_record(plan[address], reason) for address, reason in blocked(store, plan).items()}


def _write(store: Store, states: dict[str, str]) -> dict[str, str]:
    path = _file(store)
    content = as_json(states)
    if not path.is_file() or path.read_bytes() != content:
        atomic.write(path, content)
    return states
