"""The generated pages: complete, the same bytes everywhere, escaped, and no number without its record."""

from __future__ import annotations

import ast
import csv
import dataclasses
import json
import os
import re
import shutil
import sys
import tomllib
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import markdown
import pyarrow.parquet as pq
import pytest
from bench import impulse
from hypothesis import assume, given
from hypothesis import strategies as st

import site_fixture
from noscratch.atomic import PREFIX, temporary_in
from noscratch.backbones import s4d
from noscratch.results.pages import charts, cost, downloads, learning, numbers, numerics, scores
from noscratch.results.pages.backbones import describe
from noscratch.results.pages.evidence import PublishError
from noscratch.results.pages.markup import Html, command, prose, slug, tag
from noscratch.results.pages.tasks import task_module
from noscratch.results.publish import GENERATED, publish
from noscratch.sources.registry import SOURCES

# What a hostile record may hold: markup, Markdown, a template, an include.
HOSTILE_SCRIPT = "<script>document.documentElement.dataset.hacked = 1</script>"
HOSTILE = HOSTILE_SCRIPT + ' [x](javascript:hacked()) `code` {{ 7 * 7 }} --8<-- "index.md" | a & b'
SEED = re.compile(r'<span id="seed-\d+"')
HOSTILE_NAME = "<img src=x onerror=document.documentElement.dataset.hacked=1>"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with 30 smoke runs and some at tier mini, published."""
    root = site_fixture.checkout(tmp_path_factory.mktemp("checkout"), mini=5)
    publish(root)
    return root


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(root, tmp_path / "copy"))


def pages(root: Path) -> dict[str, str]:
    folder = root / GENERATED
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.md"))
    }


def test_every_thing_has_its_page(root: Path) -> None:
    written = set(pages(root))
    runs = {path.parent.parent for path in (root / "data" / "runs").rglob("record.json")}
    assert sum(name.startswith("runs/") for name in written) == len({run.parent for run in runs})
    places = [place for name, page in pages(root).items() if name[:5] == "runs/" for place in SEED.findall(page)]
    assert len(places) == len(runs)
    assert {f"tasks/{name}.md" for name in ("index", "cola", "listops", "pathfinder")} <= written
    assert {f"backbones/{name}.md" for name in ("index", "s4d", "transformer")} <= written
    claims = ("gain", "s4d", "cola", "pathfinder", "image", "sources")
    assert {f"claims/spt-{name}.md" for name in claims} <= written
    assert {"results.md", "failures.md", "data.md", "downloads.md", "papers/spt.md", "parts/front.md"} <= written


def test_says_what_it_wrote(copy: Path) -> None:
    written = publish(copy)
    assert written == sorted(path for path in (copy / GENERATED).rglob("*") if path.is_file())


def test_same_bytes_in_another_folder(root: Path, tmp_path: Path) -> None:
    other = site_fixture.checkout(tmp_path / "elsewhere" / "deeper", mini=5)
    publish(other)
    first, second = (
        {p.relative_to(r).as_posix(): p.read_bytes() for p in (r / GENERATED).rglob("*") if p.is_file()}
        for r in (root, other)
    )
    assert first == second
    assert not [name for name, content in first.items() if str(root).encode() in content]


def test_nothing_old_is_left(copy: Path) -> None:
    (copy / GENERATED / "runs" / "gone.md").write_text("old", encoding="utf-8")
    alive = temporary_in((copy / GENERATED).parent, "generated")
    killed = alive.with_name(alive.name.replace(f".{os.getpid()}.", f".{2**22 + 1}."))  # no process has this number
    aside = killed.with_name(killed.name.replace("generated", "aside-generated"))
    for left in (alive, killed, aside):
        left.mkdir()
    publish(copy)
    assert not killed.exists()
    assert not aside.exists()
    alive.rmdir()
    assert not (copy / GENERATED / "runs" / "gone.md").exists()
    assert not list((copy / GENERATED).parent.glob(f"{PREFIX}*"))


def test_a_failure_leaves_the_former_pages(copy: Path) -> None:
    before = pages(copy)
    (copy / "reports" / "verdicts.parquet").unlink()
    with pytest.raises(PublishError, match=r"reports/verdicts\.parquet.*dvc repro"):
        publish(copy)
    assert pages(copy) == before
    assert not list((copy / GENERATED).parent.glob(f"{PREFIX}*"))


def test_a_number_that_its_record_does_not_hold_stops_the_build(copy: Path) -> None:
    path = copy / "data/runs/smoke/listops/s4d/scratch/seed0/finetune/record.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["result"]["metrics"]["test"]["accuracy"] += 1e-15
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(PublishError, match=r"smoke listops s4d scratch seed 0 \(finetune\) differ: test accuracy"):
        publish(copy)


def test_a_number_without_record_stops_the_build(copy: Path) -> None:
    shutil.rmtree(copy / "data/runs/smoke/listops/s4d/scratch/seed0")
    with pytest.raises(PublishError, match=r"smoke listops s4d scratch seed 0 \(finetune\) has none"):
        publish(copy)


def test_a_claim_without_verdict_stops_the_build(copy: Path) -> None:
    path = copy / "claims" / "spt.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("id: spt-image", "id: spt-pictures"), encoding="utf-8")
    with pytest.raises(PublishError, match=r"spt-image, spt-pictures"):
        publish(copy)


def test_what_is_not_measured_says_so_and_how(root: Path) -> None:
    for name in ("performance", "numerics"):
        page = pages(root)[f"{name}.md"]
        assert "Not measured yet." in page
        assert "python -m bench." in page


def test_a_measurement_is_shown_with_device_rounds_and_slopes(copy: Path) -> None:
    site_fixture.measurements(copy)
    publish(copy)
    page = pages(copy)["performance.md"]
    assert "Not measured yet." not in page
    assert "A processor, 2 processors" in page
    rows = pq.read_table(copy / "reports/records/bench-kernels/kernels.parquet").to_pylist()
    others = [row for row in rows if row["candidate"] != "noscratch"]
    # Every ratio stands in the table of its setting and in that of all comparisons, with its rounds.
    assert len(re.findall(r"<b>[\d.]+×</b> <small>n = 12</small>", page)) == 2 * len(others)
    for words in ("noscratch, slope 1.00", "noscratch, slope 2.00", "S4D layer: peak memory of a sequence, MB", "542×"):
        assert words in page
    # Other measurements are tables, whose numbers are put into words by the names of their columns.
    for words in ("83.5 ktokens/s", "12.3 ms", "45.6 MFLOP", "12.3 %", "98.8 %", "61.2×", "several seeds at once"):
        assert words in page, words
    worst = pages(copy)["numerics.md"]
    assert worst.count("<b>1e-06</b> <small>at 65,536, RMS 6e-08</small>") == 4
    assert "slope" in worst
    backbone = pages(copy)["backbones/s4d.md"]
    assert "## Speed" in backbone


@pytest.mark.parametrize("change", ["doctored", "gone"])
def test_a_measurement_that_is_not_its_records_stops_the_build(copy: Path, change: str) -> None:
    site_fixture.measurements(copy)
    path = copy / "reports/records/bench-kernels/kernels.parquet"
    path.write_bytes(path.read_bytes() + b"x") if change == "doctored" else path.unlink()
    with pytest.raises(PublishError, match=r"reports/records/bench-kernels/kernels\.parquet"):
        publish(copy)


def test_every_law_is_tested_where_the_page_says() -> None:
    for law in numerics.LAWS:
        for area, function in law.tests:
            suite = site_fixture.REPOSITORY / numerics.suite(area)
            assert f"\ndef {function}(" in suite.read_text(encoding="utf-8"), law.name


def test_every_source_is_on_the_data_page_with_its_state(root: Path) -> None:
    page = pages(root)["data.md"]
    rows = {
        re.findall(r'href="#([^"]+)"', row)[0]: row
        for row in re.findall(r"<tr[^>]*>(<td.*?)</tr>", page.partition("## Splits")[0])
    }
    assert {*SOURCES, "listops-generated", "pathfinder-generated"} == set(rows)
    for name, words in {
        "cola": ("blocked", site_fixture.BLOCKED, "not fetched"),
        "imdb": ("available", "official archive", "listed digest, verified"),
        "lra-listops": ("available", "official tree", "trusted on first use"),
        "wikipedia-bookcorpus": ("blocked", "no stable address"),
        "sst2": ("not in the plan", "not fetched"),
        "listops-generated": ("generated", "seeded generator"),
    }.items():
        assert all(word in rows[name] for word in words), (name, rows[name])


def test_a_source_of_which_a_part_is_enough_is_described_as_the_whole(copy: Path) -> None:
    site_fixture.source(copy, "cifar10-partial", "done", None, ["data_batch_1.bin"], "partial")
    publish(copy)
    page = pages(copy)["data.md"]
    row = next(row for row in re.findall(r"<tr[^>]*>(<td.*?)</tr>", page) if 'href="#cifar10-partial"' in row)
    for words in (SOURCES["cifar10"].title, "a part of it", SOURCES["cifar10"].licence, "partial", "available"):
        assert words in row
    assert "no longer part of the package" not in page


def test_sizes_say_whose_they_are(root: Path) -> None:
    page = pages(root)["backbones/transformer.md"].partition("## Size")[2].partition("## ")[0]
    rows = re.findall(r"<tr[^>]*>(<td.*?)</tr>", page)
    assert rows
    assert all("scratch" in row or "spt-" in row for row in rows)


def test_results_are_text(tmp_path: Path) -> None:
    root = site_fixture.checkout(tmp_path)
    folders = site_fixture.run(root, "smoke", "listops", HOSTILE_NAME, "scratch", 0)
    folders += site_fixture.run(root, "smoke", "listops", "s4d", "scratch", 9, "failed", HOSTILE)
    every = sorted(path.parent for path in (root / "data" / "runs").rglob("record.json"))
    assert set(folders) < set(every)
    site_fixture.report(root, every)
    publish(root)
    assert f"backbones/{slug(HOSTILE_NAME)}.md" in pages(root)
    for name, page in pages(root).items():
        body = page.partition("---\n")[2]
        assert not re.search(r"<script|<img|onerror=[^&]*>\s*<img", body), name
        assert "--8<--" not in body, name
    assert "&lt;script&gt;document.documentElement.dataset.hacked = 1&lt;/script&gt;" in pages(root)["failures.md"]


def test_every_mean_has_n_and_interval(root: Path) -> None:
    found = 0
    for name, page in pages(root).items():
        for words in re.findall(r'<data [^>]*data-form="(?:percent|decimal)-(?:mean|gain)"[^>]*>(.*?)</data>', page):
            assert re.search(r"n = \d", words), name
            assert re.search(r"\[.+, .+\]|no interval", words), name
            found += 1
    assert found > 60


def test_a_number_without_an_address_stops_the_build(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(cell: str, form: str, *values: numbers.Value) -> Html:
        return numbers.spoken(form, *values) if cell.startswith("difference") else numbers.shown(cell, form, *values)

    monkeypatch.setattr(scores, "shown", without)
    with pytest.raises(PublishError, match=r"every number has an address, but on [\w/.]+ these have none: \+\d"):
        publish(copy)


def test_smoke_numbers_come_with_the_warning(root: Path) -> None:
    for name, page in pages(root).items():
        if "ns-score" in page and "ns-tier--smoke" in page and not name.startswith(("papers/", "parts/")):
            assert "never evidence</strong>" in page, name


def test_the_front_page_counts_the_verdicts(root: Path) -> None:
    front = pages(root)["parts/front.md"]
    words = re.sub(r"<[^>]*>", "", front)
    assert "Of 5 claims: 1 supported, 1 contradicted. Open: 1 inconclusive, 1 blocked, 1 not-run." in words
    assert "The runs so far are of tier mini and smoke." in words


def test_the_front_page_answers_from_the_strongest_tier(root: Path, tmp_path: Path) -> None:
    front = pages(root)["parts/front.md"]
    assert "smoke: not evidence" not in front
    assert "no state-space model beside it yet" in front
    other = site_fixture.checkout(tmp_path / "other")
    publish(other)
    front = pages(other)["parts/front.md"]
    assert "there is no answer yet" in front
    assert "smoke: not evidence" in front
    for seed in range(4):
        for (task, backbone, protocol), skill in site_fixture.GAP.items():
            site_fixture.run(other, "mini", task, backbone, protocol, seed, skill=skill)
    site_fixture.report(other, sorted(path.parent for path in (other / "data" / "runs").rglob("record.json")))
    publish(other)
    front = re.sub(r"<[^>]*>", "", pages(other)["parts/front.md"])
    assert (
        "clearly closer to the state-space models on ListOps. On Pathfinder the difference is within the noise" in front
    )
    assert "S4D ahead of Transformer" in front


def test_a_conflict_supports_nobody(root: Path) -> None:
    front = pages(root)["parts/front.md"]
    assert "Places where the sources contradict each other: 1." in re.sub(r"<[^>]*>", "", front)
    tests, _, conflicts = front.partition("## Where the sources disagree")
    assert "claims/spt-sources.html" in conflicts
    assert "claims/spt-sources.html" not in tests
    assert "sources differ" in pages(root)["claims/spt-sources.md"]
    assert "ns-chip--supported" not in conflicts + pages(root)["claims/spt-sources.md"]


def test_splits_stand_in_their_order(root: Path) -> None:
    rows = re.findall(r"<tr><td>(train|validation|test)</td>", pages(root)["tasks/listops.md"])
    assert rows == ["train", "validation", "test"]


def test_downloads_are_the_tables(root: Path) -> None:
    folder = root / GENERATED / "downloads"
    for name in downloads.TABLES:
        rows = pq.read_table(folder / f"{name}.parquet")
        with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
        content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        assert lines[0] == content["columns"] == rows.column_names
        assert content["rows"] == [list(row.values()) for row in rows.to_pylist()]
        assert len(lines) - 1 == rows.num_rows


def test_the_citation_names_the_project_and_the_papers(root: Path) -> None:
    content = (root / GENERATED / downloads.CITATION).read_text(encoding="utf-8")
    assert re.findall(r"^@(\w+)\{(\w+),$", content, re.MULTILINE) == [("software", "noscratch"), ("misc", "spt")]
    assert content.count("{") == content.count("}")
    for words in ("version = {0.1.0}", "eprint        = {2310.02980}"):
        assert words in content
    project = tomllib.loads((site_fixture.REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"version = {{{project['version']}}}" in content


def test_dictionary_reads_shared_and_wrapped_entries() -> None:
    listing = (
        "Columns:\n\n    tier, seed      the cell\n    value           its value,\n" + " " * 20 + "as it is\n\nProse.\n"
    )
    assert downloads.dictionary(listing) == {"tier": "the cell", "seed": "the cell", "value": "its value, as it is"}


@given(st.text(max_size=60))
def test_prose_survives_markdown(words: str) -> None:
    words = " ".join(words.split())
    assume(words.isprintable())
    html = markdown.markdown(f"x {prose(words)} x")
    assert re.findall(r"<[^>]*>", html) == ["<p>", "</p>"]
    assert unescape(re.sub(r"<[^>]*>", "", html)) == f"x {words} x"


@given(st.text(), st.text())
def test_slugs_are_safe_and_distinct(first: str, second: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]+", slug(first))
    assert (slug(first) == slug(second)) == (first == second)


@given(st.text())
def test_a_tag_escapes_what_it_is_given(words: str) -> None:
    element = tag("b", words, title=words)
    assert re.fullmatch(r"""<b title=("[^"<>]*"|'[^'<>]*')>[^<>]*</b>""", element, re.DOTALL)
    assert isinstance(tag("i", element), Html)
    assert "&lt;b" not in tag("i", element)
    assert tag("path", d="M0 0") == '<path d="M0 0"/>'


def test_commands_are_escaped() -> None:
    assert "<b>" not in command("echo <b>")


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.integers(2, 8))
def test_ticks_enclose_the_data(one: float, other: float, about: int) -> None:
    low, high = sorted((one, other))
    assume(low == high or high - low > 1e-6)
    ticks = charts.ticks([high, low], about)
    room = 1e-6 * max(1.0, abs(low), abs(high))
    assert ticks[0] <= low + room
    assert high - room <= ticks[-1]
    assert 2 <= len(ticks) <= 3 * about + 2
    assert ticks == sorted(set(ticks))


@given(st.floats(1e-18, 1e9), st.floats(1e-18, 1e9))
def test_logarithmic_ticks_enclose_the_data(one: float, other: float) -> None:
    low, high = sorted((one, other))
    for ticks in (charts.log_ticks(low, high), charts.powers_of_two(low, high)):
        assert ticks[0] <= low * (1 + 1e-6)
        assert high <= ticks[-1] * (1 + 1e-6)
        assert len(ticks) >= 2
        assert ticks == sorted(set(ticks))
    assert len(charts.log_ticks(low, high)) <= 10


@given(st.floats(-3, 3), st.floats(1e-6, 1e6), st.lists(st.integers(0, 20), min_size=2, max_size=9, unique=True))
def test_the_slope_is_the_exponent(power: float, factor: float, logs: list[int]) -> None:
    points = [(2.0**k, factor * 2.0 ** (power * k)) for k in logs]
    assert charts.slope(points) == pytest.approx(power, abs=1e-6)
    assert charts.slope([*points, (3.0, 0.0)]) == charts.slope(points)
    assert charts.slope(points[:1]) is None


@given(st.integers(1, 500), st.integers(2, 50))
def test_thinning_keeps_the_ends(count: int, most: int) -> None:
    points = [(float(k), float(k)) for k in range(count)]
    kept = charts.thin(points, most)
    assert (kept[0], kept[-1], len(kept)) == (points[0], points[-1], min(count, most))


def test_a_chart_names_itself_and_breaks_where_values_do() -> None:
    drawn = charts.line_chart(
        "Loss <1>",
        "step",
        "loss",
        {"train": [[(0, 2.0), (1, 1.5), (2, float("nan")), (3, 1.0), (4, 0.5)], [(0, 2.1), (4, 0.6)]]},
        draft=False,
    )
    assert 'aria-label="Loss &lt;1&gt;. train ends at' in drawn
    curves = re.findall(r' d="([^"]+)" class="ns-series--0"', drawn)
    assert [curve.count("M") for curve in curves] == [2, 1]
    assert "train ends at 0.500 to 0.600 at step 4" in drawn
    assert "nan" not in drawn
    assert "no finite value" in charts.line_chart("Loss", "step", "loss", {"train": [[(0, float("nan"))]]}, draft=True)


def test_an_interval_beyond_the_metric_is_cut_with_an_arrow() -> None:
    rows = [("a", charts.Interval(0.5, -0.4, 1.7), 2), ("b", charts.Interval(0.5), 1)]
    drawn = charts.interval_chart("Test accuracy", "accuracy", rows, draft=False)
    assert drawn.count("ns-arrowhead") == 2
    assert "ns-dot--hollow" in drawn
    assert max(float(x) for x in re.findall(r'cx="([\d.]+)"', drawn)) < 560


@given(st.lists(st.tuples(st.floats(1, 1e9), st.floats(0, 1)), min_size=1, max_size=30))
def test_the_front_of_pareto_is_beaten_by_nobody(points: list[tuple[float, float]]) -> None:
    front = charts.pareto(points)
    for spent, gain in points:
        better = [other for other in points if other != (spent, gain) and other[0] <= spent and other[1] >= gain]
        assert ((spent, gain) in front) == (not better)
    assert front == sorted(front)


def test_a_shared_pretraining_counts_for_every_task_that_starts_from_it() -> None:
    def row(task: str, phase: str, address: str, flops: float, of: str = "") -> dict[str, Any]:
        cell = {"tier": "smoke", "task": task, "backbone": "bigs", "protocol": "corpus-masked", "seed": 0}
        split, metric = ("train", "loss") if phase == "pretrain" else ("test", "accuracy")
        return cell | {"phase": phase, "split": split, "metric": metric, "address": address, "flops": flops,
                       "pretrain_address": of}  # fmt: skip

    rows = [row("imdb", "pretrain", "a", 7.0), row("cola", "finetune", "b", 2.0, "a"),
            row("rte", "finetune", "c", 3.0, "a"), row("rte", "pretrain", "d", 9.0)]  # fmt: skip
    for task, wanted in (("cola", [7.0, 2.0]), ("rte", [7.0, 3.0])):
        group = ("smoke", task, "bigs", "corpus-masked")
        score = SimpleNamespace(cell=SimpleNamespace(seed=0))
        evidence: Any = SimpleNamespace(
            results=rows, scores={group: [score]}, rows_of=lambda g: [r for r in rows if r["task"] == g[1]]
        )
        spent = cost._compute(evidence, group)
        assert [r["flops"] for r in spent] == wanted
    assert "results/smoke/imdb/bigs/corpus-masked/0/pretrain" in str(cost._flops(spent[0])), "where the number is"


def test_a_corpus_has_a_page_of_its_own_file() -> None:
    assert task_module("imdb-long").SPEC.kind == "corpus"
    assert task_module("text-legacy").SPEC.kind == "classification"
    assert task_module("gone") is None


def test_pairs_are_joined_and_smoke_is_a_draft() -> None:
    rows = [("a", charts.Interval(0.4, 0.3, 0.5), charts.Interval(0.6, 0.5, 0.7)), ("b", None, charts.Interval(0.5))]
    drawn = charts.pair_chart("A <task>", "accuracy", ("before", "after"), rows, draft=True)
    assert drawn.count('class="ns-link"') == 1
    assert drawn.count("ns-marker--hollow") == 1
    assert "a from 40.0 % to 60.0 %" in drawn
    assert "smoke: not evidence" in drawn
    assert "A &lt;task&gt;" in drawn


HISTORY = [
    {
        "date": "2027-01-02",
        "commit": "ab" * 20,
        "claim": "spt-gain",
        "version": 1,
        "tier": "mini",
        "verdict": verdict,
        "digest": "0123456789ab",
        "figures": {"listops": {"estimate": 20.25, "interval_low": 19.5, "interval_high": 21.0, "n": 5}},
    }
    for verdict in ("inconclusive", "supported")
]


def test_the_history_says_what_is_exact(copy: Path) -> None:
    """How far sources differ is no estimate: it has neither interval nor n."""
    line = HISTORY[1] | {"claim": "spt-sources", "tier": "none"}
    line["figures"] = {"mean": {"estimate": 0.1, "interval_low": None, "interval_high": None, "n": 2}}
    (copy / "reports" / "verdicts.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    publish(copy)
    page = pages(copy)["changelog.md"].partition("## Verdicts")[2]
    assert 'data-cell="history/0#/figures/mean/estimate"' in page
    assert "0.1 %</data> <small>between the sources</small>" in page
    assert "sources differ" in page
    assert "no interval" not in page


def test_the_history_of_a_verdict_is_told_and_fed(copy: Path) -> None:
    lines = "".join(json.dumps(line) + "\n" for line in HISTORY)
    (copy / "reports" / "verdicts.jsonl").write_text(lines, encoding="utf-8")
    publish(copy)
    for name in ("claims/spt-gain.md", "changelog.md"):
        assert 'data-cell="history/1#/figures/listops/estimate,interval_low,interval_high,n"' in pages(copy)[name]
        assert "<b>20.25 points</b> <small>[19.5, 21] n = 5</small>" in pages(copy)[name]
    assert "No verdict has been published yet." in pages(copy)["claims/spt-s4d.md"]
    folder = copy / GENERATED
    assert json.loads((folder / "claims" / "spt-gain.json").read_text(encoding="utf-8"))["history"] == HISTORY
    feed = ElementTree.fromstring((folder / "verdicts.atom").read_text(encoding="utf-8"))
    atom = "{http://www.w3.org/2005/Atom}"
    titles = [entry.findtext(f"{atom}title") for entry in feed.findall(f"{atom}entry")]
    assert titles == [f"spt-gain, version 1: {line['verdict']} at tier mini" for line in reversed(HISTORY)]
    assert feed.findtext(f"{atom}updated") == "2027-01-02T00:00:00Z"
    assert len({entry.findtext(f"{atom}id") for entry in feed.findall(f"{atom}entry")}) == 2


def test_onsets_and_flags_are_shown(copy: Path) -> None:
    site_fixture.run(copy, "mini", "listops", "majority", "scratch", 0, skill=0.1)
    site_fixture.report(copy, sorted(path.parent for path in (copy / "data" / "runs").rglob("record.json")))
    publish(copy)
    task = pages(copy)["tasks/listops.md"]
    assert "A baseline: the most frequent class" in pages(copy)["backbones/majority.md"]
    assert "When runs begin to learn" in task
    assert re.search(
        r'data-cell="cells/mini/listops/transformer/scratch/[^"]*/learned,learned_low,learned_high,runs"', task
    )
    assert "Runs to look at twice" in pages(copy)["failures.md"]


def test_a_survival_curve_steps_down_where_runs_learn() -> None:
    row = {"onsets": json.dumps({"0": 20, "1": 20, "2": 60, "3": None}), "budget": 100}
    corners = [(0.0, 1.0), (20.0, 1.0), (20.0, 0.5), (60.0, 0.5), (60.0, 0.25), (100.0, 0.25)]
    assert learning.survival(row) == corners


def test_kernels_are_pictured(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["impulse", "--out", str(copy / "reports" / "records" / "bench-impulse")])
    impulse.main()
    publish(copy)
    page = pages(copy)["backbones/s4d.md"]
    values = [float(value) for value in re.findall(r'<data value="([^"]+)" data-cell="bench/bench-impulse/', page)]
    assert len(values) == 3 * 9  # heads, and positions: zero and powers of two
    assert max(map(abs, values)) <= 1
    assert "as initialized" in page
    assert "as initialized" not in pages(copy)["backbones/transformer.md"]


def test_settings_are_those_of_the_class_and_its_parents() -> None:
    described = describe("s4d")
    assert described is not None
    settings = {name: (default, meaning) for name, default, meaning in described.settings}
    assert {field.name for field in dataclasses.fields(s4d.Config)} == set(settings)
    assert {name: ast.literal_eval(default) for name, (default, _) in settings.items()} == vars(s4d.Config())
    assert settings["lr"][1].startswith("Learning rate of")
    assert describe("left-the-package") is None
