"""How this is tested, in numbers: what the last recorded run of the test suite did and passed."""

from __future__ import annotations

from collections.abc import Iterator

from noscratch.results.pages.evidence import Evidence
from noscratch.results.pages.markup import Cell, Page, table
from noscratch.results.pages.numbers import shown, words
from noscratch.results.pages.performance import not_measured, provenance

TALLY = "tests"
COMMAND = "python -m pytest --tally reports/records/tests"


def pages(evidence: Evidence) -> Iterator[Page]:
    """The part that site/docs/testing.md includes."""
    page = Page("parts/testing.html", "", "")
    measured = evidence.measurements.get(TALLY)
    if measured is None:
        not_measured(page, TALLY, COMMAND)
    else:
        rows = [
            (
                words(row["what"]),
                *(shown(measured.at(row, name), "number", row[name]) for name in ("count", "tests")),
                Cell(words(row["about"]), kind="ns-wide"),
            )
            for row in measured.rows
        ]
        caption = "Counted by the test suite while it ran; a test that did not pass does not count"
        page.add(table(["What", "Count", "In tests", "What it means"], rows, caption), provenance(measured))
    yield page
