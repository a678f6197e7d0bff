"""The auditor: silent over the honest, and not to be got past: flipped bytes, cheats, numbers that lead nowhere."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from noscratch.audit.artifacts import check as artifacts
from noscratch.audit.case import RULES, Case, Finding
from noscratch.audit.check import audit
from noscratch.audit.exam import CHEATS, Cheat, sit, write
from noscratch.audit.honest import honest, record, small
from noscratch.audit.numbers import Number, check, numbers_of, pages, problem
from noscratch.audit.walk import Walk
from noscratch.cli import app
from noscratch.params import ParamsError
from noscratch.results import parquet_bytes
from noscratch.results.pages import numbers

ROOT = Path(__file__).parents[1]


@pytest.fixture
def first(honest_checkout: Path) -> Path:
    """Smoke and mini runs, three seeds, a run that diverged, one that is blocked, a measurement."""
    return honest_checkout


@pytest.fixture
def copy(first: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first, tmp_path / "copy"))


def said(findings: list[Finding]) -> str:
    return "\n".join(f"{finding.path}: {finding.rule}: {finding.got}" for finding in findings)


# ---------------------------------------------------------------- the honest


@pytest.mark.proves("honest")
def test_the_honest_raise_no_alarm(first: Path) -> None:
    report = audit(first, models=True)
    assert not report.findings, said(report.findings)
    assert report.absent == ["public"]
    assert report.numbers > 300
    assert report.entries == len(list(first.rglob("record.json")))


def test_a_clone_without_data_shows_its_committed_evidence(first: Path, tmp_path: Path) -> None:
    from noscratch.audit.git import git

    git(tmp_path, "clone", "--quiet", str(first), "clone")
    report = audit(tmp_path / "clone")
    assert not report.findings, said(report.findings)
    assert report.entries == len(list((tmp_path / "clone/reports/records").rglob("record.json"))) > 0
    assert "data/runs" in report.absent


def random_plan(seed: int) -> dict[str, Any]:
    """A plan of a few runs: backbones, protocols, seeds, sizes, phases, number format and tiers drawn at random."""
    draw = random.Random(seed)
    plan = small(ROOT)
    plan["run"]["dtype"] = draw.choice(["float32", "float32", "bfloat16", "float64"])
    plan["tasks"] = {"listops": {}} | ({"rte": {}} if draw.random() < 0.3 else {})
    names = draw.sample(["s4d", "transformer", "lru", "sgconv", "dlr"], 2)
    plan["backbones"] = {name: {"heads": 2} if name == "transformer" else {} for name in names}
    for tier in plan["tiers"].values():
        tier["seeds"] = list(range(draw.randint(1, 2)))
        protocols = draw.sample(["scratch", "spt-masked", "spt-causal"], draw.randint(1, 2))
        tier["grid"] = [{"tasks": "all", "backbones": [draw.choice(names)], "protocols": protocols}]
        tier["model"] = {
            "d_model": draw.choice([8, 12]),
            "layers": draw.randint(1, 2),
            "dropout": draw.choice([0.0, 0.1]),
        }
        sizes = {name: draw.randint(8, 40) for name in ("train", "validation", "test")}
        tier["data"] = {"listops": sizes | {"min_length": 10, "max_length": draw.randint(30, 60)}}
        steps = {"steps": draw.randint(2, 6), "evaluate_every": draw.randint(1, 3)}
        lr = draw.choice([1e-3, 1e-2, 1e30])  # the last one diverges, which is honest too
        tier["overrides"] = [{"finetune": steps | {"lr": lr}, "pretrain": steps}]
    if draw.random() < 0.5:
        del plan["tiers"]["mini"]
    return plan


def check_honest(seed: int, root: Path) -> None:
    report = audit(honest(root / str(seed), ROOT, random_plan(seed)), models=True)
    assert not report.findings, f"seed {seed}\n{said(report.findings)}"
    shutil.rmtree(root / str(seed))


@pytest.mark.proves("honest")
@pytest.mark.parametrize("seed", range(1))
def test_random_honest_plans_raise_no_alarm(seed: int, tmp_path: Path) -> None:
    check_honest(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.proves("honest")
@pytest.mark.parametrize("seed", range(1, 50))
def test_many_random_honest_plans_raise_no_alarm(seed: int, tmp_path: Path) -> None:
    check_honest(seed, tmp_path)


# ---------------------------------------------------------------- one flipped byte

FLIPPED = (
    "data/store",
    "data/raw",
    "data/prepared",
    "data/runs",
    "reports",
    "site/docs/generated",
    "claims",
)


def flip(root: Path, count: int, seed: int) -> list[str]:
    """Flip one random bit of one random byte in so many random files, an even share from every place."""
    draw = random.Random(seed)
    found: list[str] = []
    places = {place: sorted(p for p in (root / place).rglob("*") if p.is_file()) for place in FLIPPED}
    for files in places.values():
        draw.shuffle(files)
    while len(found) < count and any(places.values()):
        for files in places.values():
            if files and len(found) < count:
                path = files.pop()
                content = bytearray(path.read_bytes())
                content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
                write(path, bytes(content))
                found.append(path.relative_to(root).as_posix())
    return found


def check_flips(root: Path, count: int, seed: int) -> None:
    flipped = flip(root, count, seed)
    assert len(flipped) == count
    findings = audit(root).findings
    named = {finding.path for finding in findings}
    missed = [path for path in flipped if path not in named and not any(path in finding.got for finding in findings)]
    assert not missed, f"{missed}\n{said(findings)}"


def test_thirty_flipped_bytes_are_found(copy: Path, record_property: Callable[[str, object], None]) -> None:
    check_flips(copy, 30, 0)
    record_property("flips", 30)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_a_hundred_flipped_bytes_are_found(
    copy: Path, seed: int, record_property: Callable[[str, object], None]
) -> None:
    check_flips(copy, 100, seed)
    record_property("flips", 100)


@pytest.mark.slow
def test_a_flipped_byte_is_found_alone(
    first: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Of a hundred flips each by itself, so that none is found only because of another."""
    for seed in range(100):
        root = Path(shutil.copytree(first, tmp_path / str(seed)))
        check_flips(root, 1, seed)
        shutil.rmtree(root)
    record_property("flips", 100)


def test_a_broken_record_hides_nothing_beside_it(copy: Path) -> None:
    """Its folder's list of digests, itself damaged in another line, still speaks for the other files."""
    folder = next((copy / "data/store").glob("*-finetune-*-s4d-*"))
    sums = (folder / "SHA256SUMS").read_bytes()
    assert b"  curves.csv" in sums
    write(folder / "SHA256SUMS", sums.replace(b"  curves.csv", b" _curves.csv"))
    for name in ("record.json", "provenance.json", "weights.safetensors"):
        content = bytearray((folder / name).read_bytes())
        content[0] ^= 0x80
        write(folder / name, bytes(content))
    named = {finding.path.removeprefix(f"{folder.relative_to(copy).as_posix()}/") for finding in artifacts(Case(copy))}
    assert named >= {"SHA256SUMS", "record.json", "provenance.json", "weights.safetensors", "curves.csv"}


def test_missing_and_strange_files_are_found(copy: Path) -> None:
    run = copy / "data/runs/smoke/listops/s4d/scratch/seed0/finetune"
    gone = [run / "curves.csv", next((copy / "data/store").glob("*finetune*seed1/provenance.json"))]
    new = [run / "notes.txt", copy / "data/prepared/listops/more.arrow", copy / "reports/records/extra.json"]
    for path in gone:
        path.unlink()
    for path in new:
        path.write_text("more")
    named = said(audit(copy).findings)
    for path in (gone[0], *new):
        assert path.relative_to(copy).as_posix() in named
    assert f"{gone[1].relative_to(copy).as_posix()}: sums: it is missing" in named


# ---------------------------------------------------------------- cheats


def test_the_cheats_cover_what_people_do() -> None:
    assert len(CHEATS) >= 30
    assert len({cheat.name for cheat in CHEATS}) == len(CHEATS)
    assert {rule for cheat in CHEATS for rule in cheat.rules} <= RULES.keys()
    assert sum(cheat.settled for cheat in CHEATS) >= 15, "most cheats cover their traces"
    assert {cheat.name for cheat in CHEATS if cheat.settled} >= set(TRIED)


# To cover its traces takes a cheat some seconds: every change tries the plain ones and these, `make proof` all.
TRIED = (
    "call wrong answers right: edit the targets",
    "select the checkpoint on the test set",
    "pick the best of several seeds",
    "drop a published seed",
)


@pytest.mark.proves("cheats")
@pytest.mark.parametrize(
    "cheat",
    [
        pytest.param(cheat, id=cheat.name, marks=pytest.mark.slow if cheat.settled and cheat.name not in TRIED else ())
        for cheat in CHEATS
    ],
)
def test_a_cheat_is_found(cheat: Cheat, first: Path, tmp_path: Path) -> None:
    outcome = sit(cheat, first, tmp_path / "copy")
    assert outcome.caught, said(outcome.findings) or "nothing was found"


# ---------------------------------------------------------------- numbers


def test_every_number_is_walked(first: Path) -> None:
    walk = Walk(Case(first))
    assert not [got for number in shown_at(first, "") if (got := problem(walk, number))]


def runs(root: Path, protocol: str = "scratch") -> list[Path]:
    return sorted((root / "data/runs/smoke/listops/s4d" / protocol).glob("seed*/finetune"))


def drop(name: str, protocol: str = "scratch") -> Callable[[Path], None]:
    """Remove a file of every run."""

    def remove(root: Path) -> None:
        for folder in runs(root, protocol):
            (folder / name).unlink()

    return remove


def forget_digest(root: Path) -> None:
    for folder in runs(root):
        told = json.loads((folder / "record.json").read_bytes())
        told["artifacts"]["predictions.parquet"]["sha256"] = "0" * 64
        write(folder / "record.json", json.dumps(told).encode())


def drop_rows(report: str, keep: Callable[[dict[str, Any]], bool] = lambda row: False) -> Callable[[Path], None]:
    def remove(root: Path) -> None:
        path = root / "reports" / report
        table = pq.read_table(path)
        rows = [row for row in table.to_pylist() if keep(row)]
        write(path, parquet_bytes(pa.Table.from_pylist(rows, schema=table.schema)))

    return remove


def raise_estimates(report: str, column: str = "estimate") -> Callable[[Path], None]:
    """Another figure in every row; the runs behind it stay."""

    def change(root: Path) -> None:
        path = root / "reports" / report
        table = pq.read_table(path)
        rows = [row | {column: None if row[column] is None else row[column] + 0.125} for row in table.to_pylist()]
        write(path, parquet_bytes(pa.Table.from_pylist(rows, schema=table.schema)))

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: next(root.glob(name)).unlink()


def overwrite(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda root: write(root / name, content)


MEAN = r"results/smoke/listops/s4d/scratch/\*/finetune/test/accuracy/value"
GAIN = r"verdicts/exam-gain/listops/smoke/estimate"
MEASURED = r"verdicts/exam-speed/all/none/estimate"
SPENT = r"compute/exam-gain/listops/smoke/fine-tuning/"
CELL = r"cells/smoke/listops/s4d/scratch/"
BENCH = "reports/records/bench-exam"
# What an address leads through, and what is taken from it.
LINKS = {
    "results, a row": (MEAN, drop_rows("results.parquet", lambda row: row["metric"] != "accuracy")),
    "results, a record": (MEAN, drop("record.json")),
    "results, predictions": (MEAN, drop("predictions.parquet")),
    "results, a digest": (MEAN, forget_digest),
    "difference, predictions": (r"difference/smoke/", drop("predictions.parquet", "spt-masked")),
    "verdicts, a row": (GAIN, drop_rows("verdicts.parquet")),
    "verdicts, an estimate": (GAIN, raise_estimates("verdicts.parquet")),
    "verdicts, predictions": (GAIN, drop("predictions.parquet", "spt-masked")),
    "verdicts, observations": (MEASURED, overwrite(f"{BENCH}/observations.json", b"[]")),
    "verdicts, another estimate": (MEASURED, raise_estimates("verdicts.parquet")),
    "compute, a row": (SPENT, drop_rows("compute.parquet")),
    "compute, an estimate": (SPENT + "estimate", raise_estimates("compute.parquet")),
    "compute, a ratio": (SPENT + "flops_ratio", raise_estimates("compute.parquet", "flops_ratio")),
    "compute, a record": (SPENT, drop("record.json", "spt-masked")),
    "cells, a row": (CELL, drop_rows("cells.parquet")),
    "cells, a mean": (CELL, raise_estimates("cells.parquet", "mean")),
    "cells, a share": (CELL, raise_estimates("cells.parquet", "learned")),
    "cells, curves": (CELL, drop("curves.csv")),
    "curves, a file": (r"curves/smoke/listops/s4d/scratch/", drop("curves.csv")),
    "claims, a file": (r"claims/", remove("claims/exam.yaml")),
    "history, a file": (r"history/", overwrite("reports/verdicts.jsonl", b"")),
    "record, a record": (r"record/data/prepared/listops#", remove("data/prepared/listops/record.json")),
    "record, a file": (r"record/data/prepared/listops#", remove("data/prepared/listops/test.arrow")),
    "provenance": (
        r"provenance/\S*s4d/scratch/seed0/finetune#",
        remove("reports/**/s4d/scratch/seed0/*/provenance.json"),
    ),
    "sum, records": (r"sum/flops\?tier=smoke&backbone=s4d", drop("record.json")),
    "size": (r"size/downloads/results.parquet", remove("site/docs/generated/downloads/results.parquet")),
    "bench, a file": (r"bench/bench-exam/", remove(f"{BENCH}/exam.json")),
    "bench, a digest": (r"bench/bench-exam/", overwrite(f"{BENCH}/exam.json", b'[{"item": "nothing", "ms": 1.5}] ')),
    "count, rows": (r"count/verdicts\?", drop_rows("verdicts.parquet")),
}


def shown_at(root: Path, pattern: str) -> list[Number]:
    found = [number for page in pages(root) for number in numbers_of(page.read_text(encoding="utf-8"))]
    return [number for number in found if re.match(pattern, number.address)]


@pytest.mark.parametrize("name", LINKS)
def test_a_number_without_a_link_of_its_chain_is_found(copy: Path, name: str) -> None:
    pattern, take = LINKS[name]
    shown = shown_at(copy, pattern)
    walk = Walk(Case(copy))
    assert shown, pattern
    assert not [got for number in shown if (got := problem(walk, number))]
    take(copy)
    walk = Walk(Case(copy))
    assert any(problem(walk, number) for number in shown)


def test_every_form_of_address_is_on_the_pages(first: Path) -> None:
    """So that no form escapes the tests above: the contract of the pages lists them all."""
    assert numbers.__doc__
    listed = set(re.findall(r"^([a-z]+)/[A-Z]", numbers.__doc__, re.MULTILINE)) | {"provenance"}
    links = " ".join(pattern for pattern, _ in LINKS.values())
    assert listed == {number.address.partition("/")[0] for number in shown_at(first, "")}
    assert not [form for form in listed if f"{form}/" not in links]


@pytest.mark.parametrize(
    ("before", "after", "got"),
    [
        ('value="', 'value="9', "its bytes give"),
        ('data-cell="', 'data-cell="nowhere/', "no source 'nowhere'"),
        ("data-cell=", "data-call=", "has no address"),
        ('data-form="', 'data-form="x', "no form"),
        ("</data>", "0</data>", "it reads"),
        ('value="', 'value="x', "are no numbers"),
        ("<data ", "<span ", "has no address"),
    ],
)
def test_a_doctored_number_is_found(copy: Path, before: str, after: str, got: str) -> None:
    path = copy / "site/docs/generated/results.md"
    text = path.read_text(encoding="utf-8")
    start = text.index("<data ")
    path.write_text(text[:start] + text[start:].replace(before, after, 1), encoding="utf-8")
    assert any(got in found.got for found in check(Case(copy)) if found.path.endswith("results.md"))


def test_a_score_that_hides_in_a_link_is_found(copy: Path) -> None:
    path = copy / "site/docs/generated/results.md"
    link = '\n<p><a href="index.html">{}</a></p>\n'
    write(path, (path.read_text(encoding="utf-8") + link.format("Accuracy 61.2 %")).encode())
    assert [found.got for found in check(Case(copy))] == ["61.2 has no address"]


# ---------------------------------------------------------------- the command


def test_the_command(copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(copy)
    done = CliRunner().invoke(app, ["audit"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "nothing is wrong" in done.output
    assert "not here, so not audited: public" in done.output
    (copy / "reports/metrics.json").write_text("{}")
    done = CliRunner().invoke(app, ["audit"], catch_exceptions=False)
    assert done.exit_code == 1
    assert f"rule results: {RULES['results']}. " in done.output
    monkeypatch.chdir(tmp_path)
    assert isinstance(CliRunner().invoke(app, ["audit"]).exception, ParamsError)


def test_what_cannot_be_read_is_a_finding(copy: Path) -> None:
    """Garbage of every sort in every report: the audit goes on, and names it."""
    for name in ("results.parquet", "verdicts.parquet", "metrics.json", "curves.csv"):
        write(copy / "reports" / name, b"\x00garbage")
    for path in (copy / "data/prepared/listops").iterdir():
        write(path, b"{}")
    named = {finding.path for finding in audit(copy).findings}
    assert {
        f"reports/{name}" for name in ("results.parquet", "verdicts.parquet", "metrics.json", "curves.csv")
    } <= named
    assert "data/prepared/listops/record.json" in named


def test_results_that_changed_since_the_lock_was_written(copy: Path) -> None:
    (copy / "params.yaml").write_text((copy / "params.yaml").read_text().replace('"steps": 4', '"steps": 5'))
    assert {finding.rule for finding in audit(copy).findings} >= {"plan"}
    record_again = copy / "params.yaml"
    record_again.write_text(record_again.read_text().replace('"steps": 5', '"steps": 4'))
    record(copy)
    assert not audit(copy).findings
