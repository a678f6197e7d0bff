"""What the suite says that it proved is what passed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.statistics import collector, describe_statistics

import site_fixture
import tally
from noscratch.results.publish import GENERATED, publish


def report(when: str = "call", passed: bool = True, **kinds: int) -> SimpleNamespace:
    return SimpleNamespace(when=when, passed=passed, user_properties=list(kinds.items()))


def test_only_what_passed_counts(tmp_path: Path) -> None:
    counted = tally.Tally(tmp_path / "tests" / "test.json")
    for each in (report(kills=10), report(kills=3, faults=1), report(passed=False, kills=99), report("setup", kills=7)):
        counted.pytest_runtest_logreport(each)
    counted.pytest_sessionfinish(exitstatus=1)
    assert not counted.path.exists()
    counted.pytest_sessionfinish(exitstatus=0)
    rows = {row["what"]: (row["count"], row["cases"]) for row in json.loads(counted.path.read_text(encoding="utf-8"))}
    assert rows == {"tests": (2, 2), "kills": (13, 2), "faults": (1, 1)}


def test_the_examples_of_a_law_are_counted() -> None:
    """In the words of the Hypothesis that is installed: its count of this very law is what its report says."""

    @settings(max_examples=7, database=None)
    @given(st.integers())
    def law(x: int) -> None:
        assert isinstance(x, int)

    said: list[str] = []
    with collector.with_value(lambda statistics: said.append(describe_statistics({"nodeid": "law", **statistics}))):
        law()
    assert tally.examples(said[0]) == 7


def test_a_mark_names_a_kind() -> None:
    assert tally.properties([pytest.mark.proves("kills", "flips").mark]) == [("kills", 1), ("flips", 1)]
    with pytest.raises(AssertionError, match="got thrills"):
        tally.properties([pytest.mark.proves("thrills").mark])


def test_the_page_shows_the_count(tmp_path: Path) -> None:
    root = site_fixture.checkout(tmp_path)
    publish(root)
    part = root / GENERATED / "parts" / "testing.md"
    assert "make tally" in part.read_text(encoding="utf-8")
    counted = tally.Tally(root / "reports" / "records" / "tests" / "test.json")
    counted.pytest_runtest_logreport(report(kills=1234))
    counted.pytest_sessionfinish(exitstatus=0)
    publish(root)
    assert 'data-cell="bench/tests/test.json/1/count" data-form="number">1,234</data>' in part.read_text(
        encoding="utf-8"
    )
