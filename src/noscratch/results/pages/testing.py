"""How this is tested, in numbers: what the last recorded run of the test suite did and passed."""

from __future__ import annotations

from collections.abc import Iterator

from noscratch.results.pages.evidence import PLACE, Evidence
from noscratch.results.pages.markup import Cell, Page, table
from noscratch.results.pages.numbers import shown, words
from noscratch.results.pages.performance import not_measured, provenance

TALLY = "tests"
COMMAND = "make tally"
SUITES = {"test.json": "every change", "laws.json": "10,000 examples a law", "proof.json": "the long versions"}


def pages(evidence: Evidence) -> Iterator[Page]:
    """The part that site/docs/testing.md includes."""
    page = Page("parts/testing.html", "", "")
    measured = evidence.measurements.get(TALLY)
    if measured is None:
        not_measured(page, TALLY, COMMAND)
    else:
        rows = [
            (
                row["what"],
                *(shown(measured.at(row, name), "number", row[name]) for name in ("count", "cases")),
                SUITES.get(row[PLACE][0], row[PLACE][0]),
                Cell(words(row["about"]), kind="ns-wide"),
            )
            for row in measured.rows
        ]
        caption = "Counted by the test suite while it ran; what did not pass does not count"
        columns = ["What", "Count", "In cases", "Tested on", "What it means"]
        page.add(table(columns, rows, caption), provenance(measured))
    yield page
