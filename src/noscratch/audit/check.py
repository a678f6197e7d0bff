"""The audit: every check in turn, each finding with its place, its rule, what was got and what to do next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from noscratch.audit import artifacts, history, numbers, records, reports, splits
from noscratch.audit.case import UNREADABLE, Case, Finding
from noscratch.params import load
from noscratch.plan import VIEWS
from noscratch.results.published import RECORDS

Check = Callable[[Case], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    artifacts.check,
    records.check,
    splits.check,
    reports.check,
    history.check,
    numbers.check,
)


@dataclass(frozen=True)
class Report:
    """What was audited, and what was found wrong."""

    findings: list[Finding]
    entries: int
    """Records, each with all that lies beside it."""
    numbers: int
    """On pages."""
    bytes: int
    seconds: float
    """Of hashing those bytes."""
    absent: list[str]
    """What is not here and so was not audited."""


def audit(root: Path, models: bool = False) -> Report:
    """Audit the checkout at `root`; with `models`, also let the stored weights predict again (loads torch).

    Raises ParamsError where there is no checkout.
    """
    load(root)
    case = Case(root)
    checks = CHECKS
    if models:
        from noscratch.audit import models as stored

        checks = (*CHECKS, stored.check)
    findings: list[Finding] = []
    for check in checks:
        findings += _guarded(check, case)
    places = [*(f"data/{view}" for view in VIEWS), "reports/results.parquet", "public", RECORDS.as_posix()]
    return Report(
        findings=sorted(set(findings)),
        entries=len(case.entries),
        numbers=case.numbers,
        bytes=case.digests.bytes_read,
        seconds=case.digests.seconds,
        absent=[place for place in places if not (root / place).exists()],
    )


def _guarded(check: Check, case: Case) -> Iterator[Finding]:
    """A check that cannot be carried out has found something."""
    try:
        yield from check(case)
    except UNREADABLE as error:
        area = check.__module__.rpartition(".")[2]
        yield Finding(
            ".", "record", f"the audit of {area} ended: {type(error).__name__} {error}", "Mend what it names."
        )
