"""data/availability.json: which sources can be had, in one small file that the fetch stage depends on.

A blocked result is kept nowhere, so something must tell DVC when to try again: this file, rewritten only when its
content changes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from noscratch import sources
from noscratch.plan import Plan, sources_of
from noscratch.stages import MIRROR
from noscratch.store import Store, read_record, write_json

AVAILABLE = "available"


def _file(store: Store) -> Path:
    return store.data / "availability.json"


def refresh_availability(store: Store, plan: Plan) -> None:
    """Look again for every source of the plan: in the store, in the mirror, on the network where the tier allows it."""
    names = list(sources_of(plan))
    found = sources.availability(names, network=plan.params.tier.network, mirror=os.environ.get(MIRROR))
    held = {
        str(job.settings["source"])
        for job in plan.of("fetch")
        if store.has(job) and read_record(store.path(job))["state"] == "done"
    }
    _write(store, {name: AVAILABLE if name in held else found[name] for name in names})


def note_outcomes(store: Store, plan: Plan) -> None:
    """After fetching: a source that was thought available and could not be had is blocked with its reason, until the
    next refresh."""
    states = {}
    for job in plan.of("fetch"):
        record = read_record(store.data / "raw" / job.view)
        states[job.label] = AVAILABLE if record["state"] == "done" else f"blocked: {record['reason']}"
    _write(store, states)


def read_availability(store: Store, plan: Plan) -> dict[str, str]:
    """What the file says, looking afresh when there is none."""
    if not _file(store).is_file():
        refresh_availability(store, plan)
    return json.loads(_file(store).read_text(encoding="utf-8"))


def _write(store: Store, states: dict[str, str]) -> None:
    path = _file(store)
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) == states:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    write_json(temporary, states)
    temporary.replace(path)
