"""Power and sequential rules: against other programs' numbers, and against what the verdicts' own tests do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from typer.testing import CliRunner

from noscratch import tables
from noscratch.cli import app
from noscratch.errors import NoscratchError
from noscratch.results import parquet_bytes, power, statistics
from noscratch.results.claims import Cell, Trained, load
from noscratch.results.collect import SCHEMA as RESULTS
from noscratch.results.judge import Grid
from noscratch.results.power import Spread

# Standard deviation, truth, region, seeds.
DESIGNS = {
    "greater, 1 sd away": (1.0, 1.0, (0.0, math.inf), 8),
    "less, half a sd away": (2.0, -1.0, (-math.inf, 0.0), 20),
    "equivalent, at the centre": (1.0, 0.0, (-1.0, 1.0), 11),
    "equivalent, off the centre": (1.0, 0.3, (-1.0, 1.0), 11),
    "equivalent, three seeds": (0.2, 0.0, (-1.0, 1.0), 3),
}


@pytest.mark.parametrize(("cv", "n", "wanted"), [(0.20, 20, 0.834680), (0.25, 28, 0.807439), (0.30, 40, 0.815845)])
def test_equivalence_as_bioequivalence_is_planned(cv: float, n: int, wanted: float) -> None:
    """R package PowerTOST, 2x2 crossover, ratio 0.95 within 0.80 and 1.25."""
    deviation = math.sqrt(math.log1p(cv * cv))
    limits = math.log(0.8), math.log(1.25)
    found = power.power(math.log(0.95), *limits, deviation * math.sqrt(2 / n), n - 2, 0.05)
    assert found == pytest.approx(wanted, abs=5e-7)


@given(st.integers(2, 50), st.floats(0.05, 3), st.floats(0.001, 0.1))
def test_one_sided_power_is_the_non_central_t(n: int, distance: float, alpha: float) -> None:
    wanted = stats.nct.sf(stats.t.isf(alpha, n - 1), n - 1, distance * math.sqrt(n))
    above = power.power(distance, 0.0, math.inf, 1 / math.sqrt(n), n - 1, alpha)
    below = power.power(-distance, -math.inf, 0.0, 1 / math.sqrt(n), n - 1, alpha)
    assert above == pytest.approx(wanted, abs=1e-9)
    assert below == pytest.approx(above, abs=1e-9)


def test_power_on_the_edge_is_alpha() -> None:
    assert power.power(0.0, 0.0, math.inf, 1.0, 4, 0.05) == pytest.approx(0.05, abs=1e-9)
    assert power.power(1.0, -1.0, 1.0, 0.1, 4, 0.05) == pytest.approx(0.05, abs=1e-4)
    assert power.power(0.0, -1.0, 1.0, 0.0, 4, 0.05) == 1.0
    assert power.power(1.0, -1.0, 1.0, 0.0, 4, 0.05) == 0.0


def shown(design: str, studies: int) -> float:
    """The share of studies in which the verdicts' own test shows the truth to be inside."""
    deviation, truth, region, n = DESIGNS[design]
    draw = np.random.default_rng(14781709)
    samples = draw.normal(truth, deviation, (studies, n))
    return float(np.mean([statistics.region(statistics.mean(sample), *region)[0] < 0.05 for sample in samples]))


def stated(design: str) -> float:
    deviation, truth, region, n = DESIGNS[design]
    return power.power(truth, *region, *Spread((deviation,), math.inf).estimate(n), 0.05)


@pytest.mark.parametrize("design", DESIGNS)
def test_power_is_what_studies_show_in_brief(design: str) -> None:
    assert shown(design, 500) == pytest.approx(stated(design), abs=3 * 0.5 / math.sqrt(500))


@pytest.mark.slow
@pytest.mark.parametrize("design", DESIGNS)
def test_power_is_what_studies_show(design: str) -> None:
    assert shown(design, 10_000) == pytest.approx(stated(design), abs=3 * 0.5 / math.sqrt(10_000))


@pytest.mark.slow
def test_power_of_two_samples() -> None:
    """With Satterthwaite's degrees of freedom at the true deviations, within two points for unequal ones."""
    for deviations in ((1.0, 1.0), (1.0, 2.0)):
        error, freedom = Spread(deviations, math.inf).estimate(8)
        draw = np.random.default_rng(1)
        found = np.mean(
            [
                statistics.region(
                    statistics.welch(draw.normal(1, deviations[0], 8), draw.normal(0, deviations[1], 8)), 0.0, math.inf
                )[0]
                < 0.05
                for _ in range(10_000)
            ]
        )
        assert found == pytest.approx(power.power(1.0, 0.0, math.inf, error, freedom, 0.05), abs=0.02)


def test_the_upper_limit_of_a_spread() -> None:
    """It holds in ASSURANCE of studies: of the deviation of 5 values, and by the chi-squared distribution."""
    draw = np.random.default_rng(3)
    limits = [Spread((float(draw.normal(0, 1, 5).std(ddof=1)),), 4.0).at_most.one for _ in range(2000)]
    assert np.mean(np.array(limits) > 1) == pytest.approx(power.ASSURANCE, abs=3 * 0.4 / math.sqrt(2000))
    factor = Spread((1.0,), 4.0).at_most.one
    assert stats.chi2.cdf(4 / factor**2, 4) == pytest.approx(1 - power.ASSURANCE, abs=1e-12)
    assert Spread((1.0,), math.inf).at_most == Spread((1.0,), math.inf)


# Sequential rules


def test_spending() -> None:
    assert statistics.spending([5, 10]) == pytest.approx((0.25, 0.75))
    assert statistics.spending([3, 5, 10]) == pytest.approx((0.09, 0.16, 0.75))
    assert statistics.sequential([0.01, 0.04], [5, 10]) == pytest.approx(0.04), "found at the first look"
    assert statistics.sequential([0.03, 0.03], [5, 10]) == pytest.approx(0.04)
    assert statistics.sequential([0.9], [5, 10]) == 1
    assert statistics.sequential([0.02], [7]) == 0.02, "one look is a plain test"


@pytest.mark.parametrize("looks", [[], [1, 5], [5, 5], [10, 5]])
def test_refused_looks(looks: list[int]) -> None:
    with pytest.raises(NoscratchError, match="ascending numbers of seeds"):
        statistics.spending(looks)


@pytest.mark.parametrize("p_values", [[], [0.1, 0.1, 0.1]])
def test_refused_p_values(p_values: list[float]) -> None:
    with pytest.raises(NoscratchError, match="2 looks have one to 2 p-values"):
        statistics.sequential(p_values, [5, 10])


# Truth on the edge, so that any verdict is wrong.
NULLS = {"greater": (0.0, math.inf), "wide band": (0.0, 8.0), "narrow band": (-0.5, 0.0)}
LOOKS = [(3, 5, 10), (5, 10, 20), (3, 4, 5, 6, 7, 8, 9, 10)]


def sequential_errors(looks: tuple[int, ...], region: tuple[float, float], studies: int) -> tuple[float, float]:
    """The larger share of studies with a wrong verdict at any look, and what it would be without the rule."""
    draw = np.random.default_rng(20)
    held = np.zeros((studies, 2, 2))
    for number in range(studies):
        sample = draw.normal(0, 1, looks[-1])
        tests = [statistics.region(statistics.mean(sample[:look]), *region) for look in looks]
        for side, p_values in enumerate(zip(*tests, strict=True)):
            held[number, side] = statistics.sequential(p_values, looks) < 0.05, min(p_values) < 0.05
    return tuple(held.mean(axis=0).max(axis=0).tolist())


@pytest.mark.parametrize("null", NULLS)
def test_sequential_error_in_brief(null: str) -> None:
    kept, naive = sequential_errors((3, 5, 10), NULLS[null], 300)
    assert kept < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)
    assert naive > kept


@pytest.mark.slow
@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("looks", LOOKS)
def test_sequential_error(looks: tuple[int, ...], null: str) -> None:
    kept, naive = sequential_errors(looks, NULLS[null], 10_000)
    assert kept < 0.05, kept
    assert naive > 0.06, naive


def test_the_course_of_a_rule_is_that_of_the_verdicts_own_test() -> None:
    """In every study the decision of statistics.sequential on the same draws; a little less power than without it."""
    looks, region, spread = (3, 5, 10), (-1.0, 1.0), Spread((0.8,), math.inf)
    samples = 0.2 + np.random.default_rng(0).normal(0, 0.8, (300, 10))
    first = []
    for sample in samples:
        tests = [statistics.region(statistics.mean(sample[:look]), *region)[0] for look in looks]
        p_values = [statistics.sequential(tests[: k + 1], looks) for k in range(len(looks))]
        first.append(next((k for k, p in enumerate(p_values) if p < 0.05), None))
    found = power.course(looks, 0.2, *region, spread, 0.05, studies=300)
    assert found == pytest.approx([first.count(k) / 300 for k in range(len(looks))])
    whole = sum(power.course(looks, 0.2, *region, spread, 0.05))
    fixed = power.power(0.2, *region, *spread.estimate(10), 0.05)
    assert fixed - 0.05 < whole < fixed


def test_the_course_of_two_samples() -> None:
    found = power.course((5, 10), 1.0, 0.0, math.inf, Spread((1.0, 1.0), math.inf), 0.05)
    error, freedom = Spread((1.0, 1.0), math.inf).estimate(10)
    fixed = power.power(1.0, 0.0, math.inf, error, freedom, 0.05)
    assert fixed - 0.06 < sum(found) < fixed


# Plans for claims

LEDGER = """\
paper: demo
title: A paper
arxiv: "2310.00001"
sources: {paper: the text}
claims:
  - id: demo-gain
    version: 1
    statement: Pretraining helps.
    where: Table 1
    source: paper
    status: S1
    kind: difference
    unit: points
    cells: {backbone: s4d, protocol: spt-masked}
    against: {protocol: scratch}
    values: {listops: 0, text: 0}
    test: {rule: greater, margin: 0, why: a sign}
    seeds: 3
    tier: paper
  - id: demo-mean
    version: 1
    statement: It reaches this.
    where: Table 1
    source: paper
    status: S1
    kind: accuracy
    unit: percent
    cells: {backbone: s4d, protocol: spt-masked}
    values: {listops: 60, text: 80}
    need: 1
    test: {rule: equivalent, margin: 1, why: ours}
    seeds: 3
    tier: paper
  - id: demo-relative
    version: 1
    statement: It helps by a tenth.
    where: Table 1
    source: paper
    status: S1
    kind: difference
    unit: relative-percent
    cells: {backbone: s4d, protocol: spt-masked}
    against: {protocol: scratch}
    values: {listops: 10}
    test: {rule: equivalent, margin: 3, why: ours}
    seeds: 3
    tier: paper
"""
SCORES = {("listops", "spt-masked"): 0.6, ("listops", "scratch"): 0.58, ("text", "spt-masked"): 0.8}
SCORES[("text", "scratch")] = 0.84
PLANNED = {Cell(task, "s4d", protocol) for task, protocol in SCORES}


def results(tier: str = "mini", seeds: Iterable[int] = range(3), later: int = 0) -> list[dict[str, Any]]:
    """Scores that differ by the seed; from scratch the seeds start at `later`."""
    rows: list[dict[str, Any]] = []
    for (task, protocol), score in SCORES.items():
        for seed in seeds:
            noise = float(np.random.default_rng([seed, *repr((task, protocol)).encode()]).normal(0, 0.008))
            row = dict.fromkeys(RESULTS.names) | {"tier": tier, "task": task, "backbone": "s4d", "protocol": protocol}
            row |= {"seed": seed + later * (protocol == "scratch"), "phase": "finetune", "split": "test"}
            row |= {"metric": "accuracy", "primary": True, "state": "done", "reason": "", "value": score + noise}
            rows.append(row | {"degenerate": False, "code": "current", "setting": "s", "kernels": "{}"})
    return rows


def grid(*args: Any, **changes: Any) -> Grid:
    return Grid(results(*args, **changes))


def planned(tmp_path: Path, claim: str, found: Grid | None = None, **given: float) -> power.Plan:
    (tmp_path / "demo.yaml").write_text(LEDGER)
    [paper] = load(tmp_path)
    wanted = next(each for each in paper.claims if each.id == f"demo-{claim}")
    assert isinstance(wanted, Trained)
    return power.plan(wanted, paper, grid() if found is None else found, PLANNED, **given)


def test_a_plan_from_a_pilot(tmp_path: Path) -> None:
    made = planned(tmp_path, "mean")
    assert (made.family, made.wanted, len(made.cells)) == (5, 1, 2)
    for need in made.needs:
        assert need.pilot is not None
        assert need.spread == need.pilot.spread
        assert (need.pilot.tier, need.pilot.n, need.because) == ("mini", 3, "published")
        assert need.pilot.spread.freedom == 2
        assert need.truth == pytest.approx((need.edges[0] + need.edges[1]) / 2)
        seeds = need.seeds(0.05, 0.8)
        assert seeds is not None
        assert need.misses(seeds, 0.05) <= 0.2
        assert seeds == 2 or need.misses(seeds - 1, 0.05) > 0.2
        assert (need.seeds(0.05, 0.9) or 1000) >= seeds
        assert (need.seeds(0.05, 0.8, cautious=True) or 1000) > seeds
        assert (need.seeds(0.01, 0.8) or 1000) >= seeds
    values = [value for seed, value in sorted(grid().sample("mini", [made.cells[0]], "test", "").values.items())]
    assert made.needs[0].pilot is not None
    assert made.needs[0].pilot.estimate == pytest.approx(100 * np.mean(values))
    assert made.needs[0].pilot.spread.one == pytest.approx(100 * np.std(values, ddof=1))
    # One of the two is enough, so the claim needs what the easier one does, at the family's alpha.
    assert made.seeds(0.8) == min(need.seeds(0.05 / 5, 0.8) or 1000 for need in made.needs)


def test_a_sign_is_planned_at_the_pilots_estimate(tmp_path: Path) -> None:
    listops, text = planned(tmp_path, "gain").needs
    assert listops.because == "pilot"
    assert listops.pilot is not None
    assert listops.truth == pytest.approx(listops.pilot.estimate)
    assert len(listops.pilot.spread.deviations) == 1, "paired over shared seeds"
    assert text.truth is None
    assert text.because.startswith("the pilot points the other way")
    assert text.seeds(0.05, 0.8) is None
    assert planned(tmp_path, "gain").seeds(0.8) is None, "both must hold"
    given = planned(tmp_path, "gain", truth=2.0)
    assert {need.because for need in given.needs} == {"given"}
    both = given.seeds(0.8)
    assert both is not None
    missed = [sum(need.misses(n, 0.05 / 5) for need in given.needs) for n in (both, both - 1)]
    assert missed[0] <= 0.2 < missed[1]


def test_unshared_seeds_are_two_samples(tmp_path: Path) -> None:
    need = planned(tmp_path, "gain", grid(later=3)).needs[0]
    assert need.pilot is not None
    assert len(need.pilot.spread.deviations) == 2
    squares = [deviation**2 for deviation in need.pilot.spread.deviations]
    assert need.pilot.spread.estimate(6)[0] == pytest.approx(math.sqrt(sum(squares) / 6))


def test_a_relative_gain_is_planned_on_the_log_scale(tmp_path: Path) -> None:
    [need] = planned(tmp_path, "relative").needs
    assert need.edges == pytest.approx((math.log(1.07), math.log(1.13)))
    assert need.truth == pytest.approx(math.log(1.10))
    [given] = planned(tmp_path, "relative", deviation=2.0).needs
    assert given.spread == Spread((0.02,), math.inf)


def test_without_a_pilot(tmp_path: Path) -> None:
    """One seed leaves no spread. An assumed one gives the same numbers whatever the tier."""
    made = planned(tmp_path, "mean", grid(seeds=[0]))
    assert [need.pilot for need in made.needs] == [None, None]
    assert made.seeds(0.8) is None
    assumed = planned(tmp_path, "mean", grid(seeds=[0]), deviation=0.5)
    assert assumed.needs[0].seeds(0.05, 0.8) == 4 == planned(tmp_path, "mean", deviation=0.5).needs[0].seeds(0.05, 0.8)


def test_the_strongest_tier_is_the_pilot(tmp_path: Path) -> None:
    strong = planned(tmp_path, "mean", grid("paper")).needs[0]
    assert strong.pilot is not None
    assert strong.pilot.tier == "paper"


# The command


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`noscratch power` in a checkout with three seeds of every cell, or as many as `seeds` says."""
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "demo.yaml").write_text(LEDGER)
    (tmp_path / "reports").mkdir()
    text = (Path(__file__).parent / "tiny" / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("  mini:", "  paper:"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, seeds: int = 3) -> str:
        missing = dict.fromkeys(("address", "pretrain_address"), "")
        rows = pa.Table.from_pylist([row | missing for row in results(seeds=range(seeds))], schema=RESULTS)
        (tmp_path / "reports" / "results.parquet").write_bytes(parquet_bytes(rows))
        done = CliRunner().invoke(app, ["power", *arguments])
        if isinstance(done.exception, NoscratchError):
            return str(done.exception)
        assert done.exit_code == 0, done.output
        return done.output

    return call


def test_the_command_counts_seeds(command: Callable[..., str]) -> None:
    said = command("demo-mean", "--looks", "5,10")
    assert "equivalent in percent, alpha 0.05, at tier paper with 3 seeds at least" in said
    assert "mini, n = 3" in said
    assert "The claim (1 of its 2 quantities hold), 80% power:" in said
    assert "seeds on average" in said


def test_the_command_without_a_pilot(command: Callable[..., str]) -> None:
    said = command("demo-mean", seeds=1)
    assert "Missing: listops/s4d/spt-masked (has 1), text/s4d/spt-masked (has 1)" in said
    assert [line.split()[0] for line in said.partition("sd over seeds")[2].splitlines()[1:7]] == [
        f"{deviation:g}" for deviation in tables.ASSUMED
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo-men"], "Did you mean demo-mean?"),
        (["demo-mean", "--looks", "5,x"], "--looks takes whole numbers"),
        (["demo-mean", "--looks", "10,5"], "ascending numbers of seeds"),
    ],
)
def test_the_command_refuses(command: Callable[..., str], arguments: list[str], said: str) -> None:
    assert said in command(*arguments)
