"""What the test suite proved, counted while it ran: `pytest --tally=reports/records/tests/test.json`.

A test says what its passing proves by `@pytest.mark.proves("faults")`, one for each of its cases, or by
`record_property("kills", 30)` where one case proves many. Only what passed counts, and nothing is written unless all of
it did. The page "How we test this" shows the record.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from noscratch.record import Stopwatch, write_bench

KINDS = {
    "tests": "cases of the suite",
    "examples": "examples drawn for laws, all of which kept them",
    "kills": "instants at which work was killed or cut short, then went on to the same bytes",
    "faults": "faults of servers and networks that a download healed or refused",
    "archives": "hostile archives that were refused and wrote nothing outside their folder",
    "mutants": "faults planted in kernels that the tests noticed",
    "flips": "bytes changed in stored files that the audit found",
    "cheats": "results made up or bent that the audit found",
    "causes": "planted changes whose single cause the comparison of two commits named",
    "honest": "honest plans, drawn at random, over which the audit raised no alarm",
}


class Tally:
    """Counts the passed cases of a session and writes them at its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.watch = Stopwatch(Path(__file__).parents[1], "cpu")
        self.counts: Counter[str] = Counter()
        self.cases: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            for kind, count in [("tests", 1), *report.user_properties]:
                self.counts[kind] += int(str(count))
                self.cases[kind] += 1

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if exitstatus == 0:
            self.write()

    def write(self) -> None:
        rows: list[dict[str, Any]] = [
            {"what": kind, "count": self.counts[kind], "cases": self.cases[kind], "about": about}
            for kind, about in KINDS.items()
            if self.counts[kind]
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        write_bench(self.path.parent, "tests", {}, (), self.watch)


def examples(statistics: str) -> int:
    """How many examples of a law passed, as Hypothesis says in its statistics of the test."""
    return sum(map(int, re.findall(r"(\d+) passing", statistics)))


def properties(marks: Any) -> list[tuple[str, int]]:
    """What the `proves` marks of a test add to its report."""
    kinds = [kind for mark in marks for kind in mark.args]
    assert set(kinds) <= set(KINDS), f"a test proves one of {', '.join(KINDS)}; got {', '.join(kinds)}"
    return [(kind, 1) for kind in kinds]
