"""Judge: verdicts follow from results and claims alone; what may not settle a claim does not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noscratch.record import count_job, write_count
from noscratch.results import observations, parquet_bytes, statistics
from noscratch.results.claims import Cell, Trained, load
from noscratch.results.collect import SCHEMA as RESULTS
from noscratch.results.collect import collect
from noscratch.results.judge import KEY, SCHEMA, judge
from noscratch.results.observations import Found, Observation, ObservationError
from records import write_run

LEDGER = Path(__file__).resolve().parents[1] / "claims"
HEAD = "paper: demo\ntitle: A paper\narxiv: '2310.00001'\nsources: {paper: the text}\nclaims:\n"
NOISE = (-0.0004, 0.0005, -0.0001, 0.0003, -0.0003)  # by seed

Scores = Mapping[tuple[str, str, str], float]


def claim(name: str, body: str, test: str = "{rule: equivalent, margin: 1.0, why: ours}", need: str = "") -> str:
    return (
        f"  - {{id: demo-{name}, version: 1, statement: S, where: Table 1, source: paper, status: S1, {body}, {need}\n"
        f"     test: {test}, seeds: 3, tier: paper}}\n"
    )


SIGN = "{rule: greater, margin: 0, why: a sign}"
ACCURACY = claim(
    "accuracy", "kind: accuracy, unit: percent, cells: {backbone: s4, protocol: scratch}, values: {listops: 60}"
)
GAIN = claim(
    "gain",
    "kind: difference, unit: points, cells: {backbone: s4, protocol: spt-masked}, against: {protocol: scratch}, "
    "values: {listops: 0, text: 0}",
    SIGN,
)
MEAN = claim(
    "mean",
    "kind: accuracy, unit: percent, cells: {backbone: s4d, protocol: scratch}, "
    "over: [listops, text], values: {mean: 70}",
)
BOTH = claim(
    "both",
    "kind: difference, unit: points, cells: {backbone: transformer, protocol: scratch}, "
    "against: [{backbone: s4, protocol: scratch}, {backbone: s4d, protocol: scratch}], values: {listops: 0, text: 0}",
    SIGN,
    need="need: 1,",
)
RELATIVE = claim(
    "relative",
    "kind: difference, unit: relative-percent, cells: {backbone: s4, protocol: spt-masked}, "
    "against: {protocol: scratch}, "
    "values: {listops: 10}",
    "{rule: equivalent, margin: 2, why: ours}",
)
SCORES = {
    ("listops", "s4", "scratch"): 0.60,
    ("text", "s4", "scratch"): 0.80,
    ("listops", "s4", "spt-masked"): 0.66,
    ("text", "s4", "spt-masked"): 0.85,
    ("listops", "s4d", "scratch"): 0.60,
    ("text", "s4d", "scratch"): 0.80,
    ("listops", "transformer", "scratch"): 0.70,
    ("text", "transformer", "scratch"): 0.50,
}


def rows(scores: Scores, tier: str = "paper", seeds: Iterable[int] = range(5), **changes: Any) -> list[dict[str, Any]]:
    return [
        dict.fromkeys(RESULTS.names)
        | {
            "tier": tier,
            "task": task,
            "backbone": backbone,
            "protocol": protocol,
            "seed": seed,
            "phase": "finetune",
            "split": "test",
            "metric": "accuracy",
            "primary": True,
            "state": "done",
            "reason": "",
            "address": "0" * 12,
            "pretrain_address": "",
            "kernels": "{}",
            "code": "current",
            "setting": "0" * 12,
            "degenerate": False,
            "value": value
            + float(np.random.default_rng([seed, *repr((task, backbone, protocol)).encode()]).normal(0, 5e-4)),
        }
        | changes
        for (task, backbone, protocol), value in scores.items()
        for seed in seeds
    ]


def write(folder: Path, results: list[dict[str, Any]], ledger: str | None = None) -> tuple[Path, Path]:
    """The folder of reports and that of claims."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.parquet").write_bytes(parquet_bytes(pa.Table.from_pylist(results, schema=RESULTS)))
    if ledger is None:
        return folder, LEDGER
    (folder / "demo.yaml").write_text(HEAD + ledger)
    return folder, folder


def verdicts(folder: Path, results: list[dict[str, Any]], ledger: str | None = None) -> list[dict[str, Any]]:
    judge(*write(folder, results, ledger))
    return pq.read_table(folder / "verdicts.parquet").to_pylist()


def test_only_repetitions_are_averaged(tmp_path: Path) -> None:
    """Runs of other settings or code stay out of a mean: the present plan's count, else the largest group's."""
    cell = {("listops", "s4", "scratch"): 0.60}
    earlier = rows({("listops", "s4", "scratch"): 0.90}, code="earlier")
    older = rows({("listops", "s4", "scratch"): 0.30}, seeds=range(5, 8), code="earlier", setting="1" * 12)
    assert headlines(verdicts(tmp_path / "a", earlier + older, ACCURACY))["accuracy"] == "contradicted"
    for seeds, verdict in ((range(8, 13), "supported"), (range(8, 10), "inconclusive")):
        found = verdicts(tmp_path / str(seeds), rows(cell, seeds=seeds) + earlier + older, ACCURACY)
        assert headlines(found)["accuracy"] == verdict
        [quantity] = [row for row in found if row["level"] == "quantity"]
        assert quantity["estimate"] == pytest.approx(60, abs=0.1)
        assert quantity["seeds"] == json.dumps(list(seeds))


def headlines(found: list[dict[str, Any]]) -> dict[str, str]:
    return {row["claim"].removeprefix("demo-"): row["verdict"] for row in found if row["level"] == "headline"}


def test_supported(tmp_path: Path) -> None:
    found = verdicts(tmp_path, rows(SCORES), ACCURACY + GAIN + MEAN + BOTH + RELATIVE)
    assert headlines(found) == dict.fromkeys(("accuracy", "gain", "mean", "both", "relative"), "supported")
    by_name = {(row["claim"], row["quantity"]): row for row in found if row["level"] == "quantity"}
    accuracy = by_name["demo-accuracy", "listops"]
    assert accuracy["estimate"] == pytest.approx(60.0, abs=0.1)
    assert accuracy["interval_low"] < accuracy["estimate"] < accuracy["interval_high"]
    assert (accuracy["n"], accuracy["seeds"], accuracy["comparison"]) == (5, "[0, 1, 2, 3, 4]", "one sample")
    assert (accuracy["region_low"], accuracy["region_high"], accuracy["missing"]) == (59.0, 61.0, "")
    assert by_name["demo-gain", "text"]["comparison"] == "paired"
    assert by_name["demo-gain", "text"]["region_high"] is None
    assert by_name["demo-mean", "mean"]["estimate"] == pytest.approx(70.0, abs=0.1)
    assert by_name["demo-relative", "listops"]["estimate"] == pytest.approx(10.0, abs=0.2)
    assert by_name["demo-both", "text"]["verdict"] == "contradicted", "one of two is enough for the claim"
    assert json.loads(by_name["demo-gain", "text"]["cells"]) == ["text/s4/spt-masked", "text/s4/scratch"]


@pytest.mark.parametrize(
    ("cell", "change", "flipped"),
    [
        (("listops", "s4", "scratch"), 0.15, {"accuracy", "gain", "relative", "both"}),
        (("text", "s4", "spt-masked"), -0.10, {"gain"}),
        (("text", "s4d", "scratch"), 0.10, {"mean"}),
        (("listops", "transformer", "scratch"), -0.20, {"both"}),
    ],
)
def test_doctored_cell(tmp_path: Path, cell: tuple[str, str, str], change: float, flipped: set[str]) -> None:
    """A store with one cell changed flips the claims that use the cell, and no other."""
    ledger = ACCURACY + GAIN + MEAN + BOTH + RELATIVE
    before = headlines(verdicts(tmp_path / "a", rows(SCORES), ledger))
    after = headlines(verdicts(tmp_path / "b", rows({**SCORES, cell: SCORES[cell] + change}), ledger))
    assert {name for name in before if before[name] != after[name]} == flipped
    assert {after[name] for name in flipped} == {"contradicted"}


def test_doctored_cell_in_the_ledger(tmp_path: Path) -> None:
    """The same with the published ledger: only claims that name the cell can change."""
    trained = [claim for paper in load(LEDGER) for claim in paper.claims if isinstance(claim, Trained)]
    scores: dict[tuple[str, str, str], float] = {}
    for claim in trained:
        for quantity in claim.quantities:
            if claim.kind == "accuracy" and claim.unit == "percent" and len(quantity.cells) == 1:
                cell = quantity.cells[0]
                scores.setdefault((cell.task, cell.backbone, cell.protocol), quantity.low / 100)
    doctored = ("listops", "s4", "scratch")
    before = headlines(verdicts(tmp_path / "a", rows(scores)))
    after = headlines(verdicts(tmp_path / "b", rows({**scores, doctored: 0.2})))
    uses = {
        claim.id
        for claim in trained
        for quantity in claim.quantities
        for cell in (*quantity.cells, *(cell for group in quantity.against for cell in group))
        if str(cell) == "/".join(doctored)
    }
    changed = {name for name in before if before[name] != after[name]}
    assert "s4-lra-repository" in changed
    assert changed <= uses


STORE = {
    ("listops", "s4", "scratch"): 120,
    ("listops", "s4", "spt-masked"): 140,
    ("text", "s4d", "scratch"): 150,
}
STORED = (
    ACCURACY.replace("margin: 1.0", "margin: 4.0")
    + GAIN.replace("{listops: 0, text: 0}", "{listops: 0}")
    + ACCURACY.replace("demo-accuracy", "demo-other")
    .replace("backbone: s4,", "backbone: s4d,")
    .replace("{listops: 60}", "{text: 75}")
    .replace("margin: 1.0", "margin: 4.0")
)


def test_a_doctored_store_flips_exactly_the_claims_that_use_the_cell(tmp_path: Path) -> None:
    """From run folders on: the predictions of one cell and its records are made anew, and nothing else is touched."""

    def of_store(name: str, right: Mapping[tuple[str, str, str], int]) -> dict[str, str]:
        folder = tmp_path / name
        runs = [
            write_run(folder / "runs", ("paper", *cell, seed), right=count + (1 + k) * seed % 5)
            for k, (cell, count) in enumerate(right.items())
            for seed in range(5)
        ]
        folder.mkdir(exist_ok=True)
        (folder / "demo.yaml").write_text(HEAD + STORED)
        collect(runs, folder)
        judge(folder, folder)
        return headlines(pq.read_table(folder / "verdicts.parquet").to_pylist())

    honest = of_store("honest", STORE)
    assert honest == dict.fromkeys(("accuracy", "gain", "other"), "supported")
    for cell, right, flipped in (
        (("listops", "s4", "scratch"), 180, {"accuracy", "gain"}),
        (("listops", "s4", "spt-masked"), 60, {"gain"}),
        (("text", "s4d", "scratch"), 100, {"other"}),
    ):
        doctored = of_store("-".join(cell), {**STORE, cell: right})
        assert {name for name in honest if doctored[name] == "contradicted"} == flipped
        assert {name for name in honest if doctored[name] != honest[name]} == flipped


@pytest.mark.parametrize("tier", ["smoke", "mini"])
def test_too_low_a_tier(tmp_path: Path, tier: str) -> None:
    found = verdicts(tmp_path, rows(SCORES, tier), ACCURACY + GAIN)
    assert set(headlines(found).values()) == {"not-run"}
    for row in found:
        if row["level"] == "quantity" and row["tier"] == tier:
            assert row["verdict"] == "not-run"
            assert row["missing"] == f"tier: paper (have {tier})"
            assert row["indication"] == ("none" if tier == "smoke" else "towards")
    assert {row["tier"] for row in found if row["level"] == "headline"} == {"paper"}


def test_ledger_at_smoke(tmp_path: Path) -> None:
    """Whatever smoke runs score, no claim that needs training is settled, and each says what is missing."""
    scores = dict.fromkeys(product(("listops", "text"), ("transformer", "s4d"), ("scratch", "spt-masked")), 0.9)
    found = verdicts(tmp_path, rows(scores, "smoke", seeds=range(1)))
    trained = [row for row in found if row["kind"] in ("accuracy", "difference")]
    assert {row["verdict"] for row in trained} == {"not-run"}
    assert {row["indication"] for row in trained} == {"none"}
    assert all(row["missing"] for row in trained)
    here = [row for row in trained if row["claim"] == "spt-gain-per-task" and row["quantity"] == "listops"]
    assert {row["tier"]: row["missing"] for row in here} == {
        "smoke": "tier: paper (have smoke); seeds: 3 (have 1)",
        "paper": "runs: listops/transformer/spt-masked at tier paper, listops/transformer/scratch at tier paper",
    }
    assert all(row["verdict"] == "supported" for row in found if row["kind"] == "conflict")


def test_looks(tmp_path: Path) -> None:
    """Five seeds against looks at 3, 5 and 10: what either look shows stays found, at its part of alpha."""
    looks = ACCURACY.replace("seeds: 3", "seeds: 3, looks: [3, 5, 10]")
    cell = {("listops", "s4", "scratch"): 0.6}
    found = {name: verdicts(tmp_path / name, rows(cell), ledger)[1] for name, ledger in (("a", ACCURACY), ("b", looks))}
    assert found["a"]["verdict"] == found["b"]["verdict"] == "supported"
    assert found["a"]["p_support"] < found["b"]["p_support"], "looking often has its price"
    assert found["a"]["n"] == found["b"]["n"] == 5
    values = [100 * row["value"] for row in rows(cell)]
    tests = [statistics.region(statistics.mean(values[:n]), 59.0, 61.0)[0] for n in (3, 5)]
    assert found["b"]["p_support"] == pytest.approx(statistics.sequential(tests, [3, 5, 10]))
    wide = [row | {"value": 0.60 + 20 * NOISE[row["seed"]]} for row in rows(cell)]
    [headline, row] = verdicts(tmp_path / "c", wide, looks)
    assert headline["verdict"] == row["verdict"] == "inconclusive"
    assert row["missing"] == "seeds: 10 for the next look (have 5)"
    [_, row] = verdicts(tmp_path / "d", wide[:4], looks)
    first = statistics.region(statistics.mean([100 * row["value"] for row in wide[:3]]), 59.0, 61.0)[0]
    assert row["p_support"] == pytest.approx(min(1.0, first / 0.09)), "the fourth seed waits for the next look"


def test_too_few_seeds(tmp_path: Path) -> None:
    for seeds, indication in ((2, "towards"), (1, "unclear")):
        [headline, row] = verdicts(tmp_path, rows(SCORES, seeds=range(seeds)), ACCURACY.replace("60", "60.0"))
        assert headline["verdict"] == row["verdict"] == "inconclusive"
        assert row["missing"] == f"seeds: 3 (have {seeds})"
        if seeds == 1:
            assert row["indication"] == indication
            assert row["interval_low"] is None
        assert row["p_support"] is None


def test_failed_runs_are_not_left_out(tmp_path: Path) -> None:
    cell = {("listops", "s4", "scratch"): 0.6}
    bad = rows(cell, seeds=[4], state="diverged", value=None, reason="loss is not finite", primary=False, metric="")
    [headline, row] = verdicts(tmp_path, rows(cell, seeds=range(4)) + bad, ACCURACY)
    assert headline["verdict"] == row["verdict"] == "inconclusive"
    assert row["missing"] == "runs that did not finish: listops/s4/scratch seed 4 diverged"


def test_blocked(tmp_path: Path) -> None:
    cell = {("listops", "s4", "scratch"): 0.6}
    blocked = rows(cell, state="blocked", value=None, reason="403 from the host", primary=False, metric="")
    [headline, row] = verdicts(tmp_path, blocked, ACCURACY)
    assert headline["verdict"] == row["verdict"] == "blocked"
    assert row["missing"] == "data: 403 from the host"


def test_outside_the_grid(tmp_path: Path) -> None:
    [headline, row] = verdicts(tmp_path, rows({("text", "s4", "scratch"): 0.6}), ACCURACY)
    assert headline["verdict"] == row["verdict"] == "not-run"
    assert headline["missing"] == row["missing"] == "outside the grid: listops/s4/scratch"


def test_equal_seeds_leave_no_spread(tmp_path: Path) -> None:
    """Three equal scores may be chance; only of constant predictions is it known why they agree."""
    cell = {("listops", "s4", "scratch"): 0.6}
    [headline, row] = verdicts(tmp_path / "a", rows(cell, value=0.6), ACCURACY)
    assert headline["verdict"] == "inconclusive"
    assert row["missing"].startswith("spread: ")
    [headline, row] = verdicts(tmp_path / "b", rows(cell, value=0.6, degenerate=True), ACCURACY)
    assert headline["verdict"] == "supported"
    assert row["degenerate"] == 5


def test_unshared_seeds_are_not_paired(tmp_path: Path) -> None:
    cells = list(SCORES.items())
    results = rows(dict(cells[:2])) + rows(dict(cells[2:4]), seeds=range(1, 5))
    found = verdicts(tmp_path, results, GAIN)
    assert {row["comparison"] for row in found if row["level"] == "quantity"} == {"welch"}
    assert headlines(found) == {"gain": "supported"}


def test_holm_within_the_paper(tmp_path: Path) -> None:
    """A p-value that settles a claim alone does not settle it among twenty of the same strength."""
    scores = {("listops", "s4", "scratch"): 0.60}
    wide = [row | {"value": 0.60 + 8 * NOISE[row["seed"]]} for row in rows(scores)]
    alone = [verdicts(tmp_path / "a", wide, ACCURACY)[1]]
    many = "".join(ACCURACY.replace("demo-accuracy", f"demo-a{i}") for i in range(20))
    among = [row for row in verdicts(tmp_path / "b", wide, many) if row["level"] == "quantity"]
    assert all(row["p_support"] == pytest.approx(min(1.0, 20 * alone[0]["p_support"])) for row in among)


def test_measured_claims_wait_for_a_measurement(tmp_path: Path) -> None:
    ledger = (
        "  - {id: demo-speed, version: 1, statement: S, where: T, source: paper, status: S1,\n"
        "     kind: efficiency, unit: ratio,\n"
        "     backbones: [s4, bert], values: {length-1024: 1.6}, seeds: 5, device: gpu,\n"
        "     test: {rule: equivalent, margin_percent: 10, why: ours}}\n"
    )
    [headline, row] = verdicts(tmp_path, rows({("text", "s4", "scratch"): 0.6}), ledger)
    assert headline["verdict"] == "not-run"
    assert row["missing"] == "outside the grid: bert"
    assert (row["tier"], row["region_low"], row["region_high"]) == ("none", pytest.approx(1.44), pytest.approx(1.76))


SPEED = (
    "  - {id: demo-speed, version: 1, statement: S, where: T, source: paper, status: S1, kind: efficiency,\n"
    "     unit: ratio, backbones: [s4], values: {length-1024: 1.6, length-4096: 5}, seeds: 5, device: gpu,\n"
    "     test: {rule: equivalent, margin_percent: 10, why: ours}}\n"
)
SIZE = (
    "  - {id: demo-size, version: 1, statement: S, where: T, source: paper, status: S1, kind: architecture,\n"
    "     unit: parameters, backbones: [s4], values: {parameters: 100}, device: any,\n"
    "     test: {rule: equivalent, margin: 5, why: ours}}\n"
)
TIMES = (1.58, 1.60, 1.62, 1.59, 1.61)


def observe(reports: Path, name: str, *seen: tuple[str, str, tuple[float, ...], str, str]) -> None:
    """A record of observations: claim, quantity, values, class and model of the device."""
    units = {"demo-speed": "ratio", "demo-size": "parameters"}
    rows = [
        Observation(
            claim=claim,
            quantity=quantity,
            unit=units[claim],
            values=list(values),
            device=device,
            model=model,
            setting="",
        )
        for claim, quantity, values, device, model in seen
    ]
    folder = reports / "records" / name
    folder.mkdir(parents=True)
    (folder / observations.FILE).write_bytes(observations.as_bytes(rows))
    write_count(folder, count_job(name, {}, ("noscratch.errors",)))


def by_quantity(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["quantity"]: row for row in found if row["level"] == "quantity"}


@pytest.mark.parametrize(("value", "verdict"), [(96, "supported"), (105, "supported"), (106, "contradicted")])
def test_counts_settle_by_themselves(tmp_path: Path, value: float, verdict: str) -> None:
    observe(tmp_path, "counts", ("demo-size", "parameters", (value,), "any", ""))
    [headline, row] = verdicts(tmp_path, [], SIZE)
    assert (headline["verdict"], row["estimate"], row["n"], row["comparison"]) == (verdict, value, 1, "count")
    assert (row["record"], row["device"], row["missing"]) == ("counts", "", "")


def test_measurements_settle_on_their_class_of_device(tmp_path: Path) -> None:
    """Elsewhere they point somewhere, and say what is missing."""
    seen = ("demo-speed", "length-1024", TIMES), ("demo-speed", "length-4096", (2.1, 2.0, 1.9, 2.0, 2.0))
    observe(tmp_path / "cpu", "bench", *((*each, "cpu", "A processor") for each in seen))
    found = verdicts(tmp_path / "cpu", rows({("text", "s4", "scratch"): 0.6}), SPEED)
    quick, slow = by_quantity(found).values()
    assert (quick["verdict"], quick["indication"]) == ("not-run", "towards")
    assert (slow["verdict"], slow["indication"]) == ("not-run", "against")
    assert quick["missing"] == slow["missing"] == "device: gpu (have A processor)"
    assert quick["p_support"] is None
    assert headlines(found) == {"speed": "not-run"}
    observe(tmp_path / "gpu", "bench", *((*each, "gpu", "A GPU") for each in seen))
    found = verdicts(tmp_path / "gpu", [], SPEED)
    quick, slow = by_quantity(found).values()
    assert (quick["verdict"], slow["verdict"]) == ("supported", "contradicted")
    assert quick["estimate"] == pytest.approx(1.6, abs=1e-3)
    assert quick["interval_low"] < 1.6 < quick["interval_high"]
    assert (quick["device"], quick["record"], quick["n"], quick["missing"]) == ("A GPU", "bench", 5, "")
    assert headlines(found) == {"speed": "contradicted"}, "one of its two quantities is"


def test_measurements_need_their_repetitions(tmp_path: Path) -> None:
    observe(tmp_path, "bench", ("demo-speed", "length-1024", TIMES[:4], "gpu", "A GPU"))
    row = by_quantity(verdicts(tmp_path, rows({("text", "s4", "scratch"): 0.6}), SPEED))["length-1024"]
    assert (row["verdict"], row["indication"], row["missing"]) == ("not-run", "towards", "repetitions: 5 (have 4)")


def test_a_measurement_must_hold_on_every_device(tmp_path: Path) -> None:
    """A second device of the class that disagrees leaves no support."""
    observe(tmp_path, "first", ("demo-speed", "length-1024", TIMES, "gpu", "A GPU"))
    observe(tmp_path, "second", ("demo-speed", "length-1024", tuple(2 * t for t in TIMES), "gpu", "B GPU"))
    row = by_quantity(verdicts(tmp_path, [], SPEED))["length-1024"]
    assert (row["verdict"], row["record"], row["device"]) == ("contradicted", "first; second", "A GPU; B GPU")


@pytest.mark.parametrize(
    ("device", "class_", "model", "fits"),
    [
        ("a100", "gpu", "NVIDIA A100-SXM4-80GB", True),
        ("a100", "gpu", "NVIDIA H200", False),
        ("gpu", "gpu", "NVIDIA H200", True),
        ("gpu", "cpu", "A processor", False),
        ("any", "cpu", "A processor", True),
    ],
)
def test_classes_of_devices(device: str, class_: Any, model: str, fits: bool) -> None:
    seen = Observation(claim="", quantity="", unit="", values=[1.0], device=class_, model=model, setting="")
    assert Found(seen, "").on(device) is fits


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"unit": "parameters"', '"unit": "flops"', "observed in flops, claimed in parameters"),
        ('"parameters",\n', '"size",\n', "no claim in claims/ has this quantity"),
        ("100.0", '"many"', "valid number"),
        ("100.0", "NaN", "finite number"),
    ],
)
def test_observations_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    observe(tmp_path, "counts", ("demo-size", "parameters", (100,), "any", ""))
    path = tmp_path / "records" / "counts" / observations.FILE
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ObservationError, match="digest differs"):
        verdicts(tmp_path, [], SIZE)
    write_count(path.parent, count_job("counts", {}, ("noscratch.errors",)))
    with pytest.raises(ObservationError, match=message):
        verdicts(tmp_path, [], SIZE)


def test_outside_the_grid_is_what_no_tier_plans(tmp_path: Path) -> None:
    """A cell that another tier plans is inside, though nothing of it has run."""
    reports, ledger = write(tmp_path, rows({("text", "s4", "scratch"): 0.6}), ACCURACY)
    for planned, missing in (
        ([], "outside the grid: listops/s4/scratch"),
        ([Cell("listops", "s4", "scratch")], "runs: listops/s4/scratch at tier paper"),
    ):
        judge(reports, ledger, planned)
        headline = pq.read_table(reports / "verdicts.parquet").to_pylist()[0]
        assert (headline["verdict"], headline["missing"]) == ("not-run", missing)


def test_table(tmp_path: Path) -> None:
    """Schema, key and bytes: the order of the results does not matter, and a second run changes nothing."""
    results = rows(SCORES)
    paths = [tmp_path / name / "verdicts.parquet" for name in "ab"]
    judge(*write(tmp_path / "a", results))
    judge(*write(tmp_path / "b", results[::-1]))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    table = pq.read_table(paths[0])
    assert table.schema.equals(SCHEMA, check_metadata=True)
    keys = [tuple(row[name] for name in KEY) for row in table.to_pylist()]
    assert keys == sorted(set(keys))
    ids = {claim.id for paper in load(LEDGER) for claim in paper.claims}
    assert {row["claim"] for row in table.to_pylist() if row["level"] == "headline"} == ids
    before = paths[0].stat().st_mtime_ns
    judge(tmp_path / "a", LEDGER)
    assert paths[0].stat().st_mtime_ns == before
