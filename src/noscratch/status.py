"""How far the plan is: the state of every job, why some are not done, and the grid by task and backbone with ages."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from noscratch import availability
from noscratch.plan import Job, Plan
from noscratch.store import RECORD, Store, read_record

# `planned`: nothing is there yet. `stale`: only results of other settings, code or data are, under other addresses.
# `failed`: its record says so, or it ended in an error that only its log tells.
STATES = ("planned", "stale", "done", "failed", "diverged", "blocked")
UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


@dataclass(frozen=True)
class Line:
    """The runs of one task and backbone: how many are in each state, and the age in seconds of the newest and oldest
    end (None where none has ended)."""

    task: str
    backbone: str
    counts: Counter[str]
    newest: float | None
    oldest: float | None


TAIL = 2**14  # bytes at the end of a log that are looked at
ERROR, TRACEBACK = "error: ", "Traceback (most recent call last):"  # how they begin in a log


@dataclass(frozen=True)
class Crash:
    """A job that ended in an error and has no result: what was said last, where, and how many seconds ago."""

    reason: str
    log: Path
    age: float


def crashed(store: Store, plan: Plan) -> dict[str, Crash]:
    """Address -> its end, of every job without a result whose log ends in an error.

    A log is that of the last run: a job that runs, was killed or stopped at a checkpoint has no error in it.
    """
    found = {}
    for path in (store.data / "logs").glob("*.log"):
        job = plan.jobs.get(path.name[:12])
        if job is None or store.has(job):
            continue
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            lines = [line.rstrip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        begins = [k for k, line in enumerate(lines) if line.startswith((ERROR, TRACEBACK))]
        if begins:
            said = lines[-1] if lines[begins[-1]] == TRACEBACK else " ".join(lines[begins[-1] :]).removeprefix(ERROR)
            found[job.address] = Crash(said, path, time.time() - path.stat().st_mtime)
    return found


class Status:
    """The state of every job of a plan, read once."""

    def __init__(self, store: Store, plan: Plan) -> None:
        self.store, self.plan = store, plan
        self.blocked = availability.blocked(store, plan)
        self.crashed = crashed(store, plan)
        self.states = self._states()

    def _states(self) -> dict[str, str]:
        """Address -> state of every job, one of STATES."""
        # Names without their address.
        present = {path.parent.name[13:] for path in self.store.folder.glob(f"*/{RECORD}")}
        found = {}
        for job in self.plan.jobs.values():
            if self.store.has(job):
                found[job.address] = str(read_record(self.store.path(job))["state"])
            elif job.address in self.blocked:
                found[job.address] = "blocked"
            elif job.address in self.crashed:
                found[job.address] = "failed"
            else:
                found[job.address] = "stale" if job.name[13:] in present else "planned"
        return found

    def reasons(self) -> list[str]:
        """One line for each job that ended otherwise than done; what waits on a blocked source is counted."""
        sources = [job for job in self.plan.of("fetch") if job.address in self.blocked]
        lines = [f"blocked   source {self.blocked[job.address]}" for job in sources]
        for job in self.plan.in_view("runs"):
            if self.store.has(job) and self.states[job.address] != "done":
                record = read_record(self.store.path(job))
                lines.append(f"{record['state']:9} {job.name}: {record['reason']}")
        for address, end in self.crashed.items():
            where = end.log.relative_to(self.store.root).as_posix()
            lines.append(f"failed    {self.plan[address].name}: {end.reason} ({age(end.age)} ago; {where})")
        behind = [*self.plan.of("prepare"), *self.plan.in_view("runs")]
        waiting = Counter(job.kind for job in behind if job.address in self.blocked)
        if waiting:
            lines.append("waiting   on them: " + ", ".join(f"{count} {kind} jobs" for kind, count in waiting.items()))
        return lines

    def grid(self) -> list[Line]:
        """The runs of the plan by task and backbone, in plan order."""
        now = time.time()
        groups: dict[tuple[str, str], list[Job]] = defaultdict(list)
        for job in self.plan.in_view("runs"):
            if job.cell is not None:
                groups[job.cell.task, job.cell.backbone].append(job)
        lines = []
        for (task, backbone), jobs in groups.items():
            ages = [now - (self.store.path(job) / RECORD).stat().st_mtime for job in jobs if self.store.has(job)]
            ages += [self.crashed[job.address].age for job in jobs if job.address in self.crashed]
            counts = Counter(self.states[job.address] for job in jobs)
            lines.append(Line(task, backbone, counts, min(ages, default=None), max(ages, default=None)))
        return lines


def age(seconds: float) -> str:
    """In the largest unit that it fills: 3 d, 5 h, 12 min, 8 s."""
    unit, size = next(((unit, size) for unit, size in UNITS if seconds >= size), UNITS[-1])
    return f"{max(0, int(seconds // size))} {unit}"
