"""Estimates: what probes find adds up to a run, made-up data stand for real ones, what does not fit is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from bench import estimates
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from noscratch import code, estimate, params, probes, run_data, stages, yaml_reader
from noscratch.backbones import file_of
from noscratch.cli import app
from noscratch.errors import NoscratchError
from noscratch.estimate import Clock, Cost, DoesNotFit, Price, Time
from noscratch.plan import BASELINES, Job, Plan
from noscratch.probes import Course, Probes
from noscratch.results.claims import Paper
from noscratch.results.claims import load as load_claims
from noscratch.run_data import Batches, Data
from noscratch.store import Store

ROOT = Path(__file__).resolve().parents[1]
TINY = Path(__file__).parent / "tiny" / "params.yaml"


def seconds(value: float) -> Time:
    return Time(value, value)


PRICE = Price(
    start=seconds(5.0),
    first=seconds(0.1),
    lengths=50,
    met=10,
    step=seconds(2.0),
    evaluation=seconds(3.0),
    end=seconds(7.0),
    flops=100.0,
    memory=1000,
    growth=2.0,
    pieces=1,
    device_memory=10_000,
    disk=30,
    scratch=40,
    watts=10.0,
    made_up=False,
)


class Given:
    """Prices by protocol, or one for all."""

    def __init__(self, price: Price = PRICE, **others: Price) -> None:
        self.one, self.others = price, others

    def price(self, job: Job) -> Price:
        return self.others.get(f"{job.kind}_{job.settings['protocol'].replace('-', '_')}", self.one)


@pytest.fixture
def plan() -> Plan:
    return Plan(params.parse(yaml_reader.read(TINY).data))


def job(plan: Plan, kind: str = "finetune", protocol: str = "scratch", task: str = "listops") -> Job:
    wanted = (task, protocol)
    return next(
        each
        for each in plan.of(kind)
        if each.cell is not None
        and (each.cell.task, each.cell.protocol) == wanted
        and each.cell.backbone not in BASELINES
    )


# ---------------------------------------------------------------- from a probe to a price


@given(
    st.floats(0, 1),
    st.lists(st.tuples(st.integers(60, 100), st.floats(1e-6, 1e-3)), min_size=1, max_size=5, unique_by=lambda p: p[0]),
)
def test_a_clock_gives_the_times_that_it_was_made_from(fixed: float, prices: list[tuple[int, float]]) -> None:
    """Whole batches of 40 sequences and a quarter of one: t = a + tokens x c(length)."""
    times = [([(40, length)], fixed + 40 * length * each) for length, each in prices]
    length, each = prices[0]
    times.append(([(10, length)], fixed + 10 * length * each))
    clock = Clock(times)
    for shape, time in times:
        assert clock(shape) == pytest.approx(time, rel=1e-6, abs=1e-9)


def test_a_clock_between_lengths() -> None:
    clock = Clock([([(100, 10)], 2.0), ([(10, 100)], 4.0), ([(25, 10)], 1.25)])
    assert clock([(100, 10)]) == pytest.approx(2.0)
    assert clock([(1000 // 55, 55)]) == pytest.approx(1 + 18 * 55 * 0.002), "the price of a token is half way"
    assert clock([(5, 200)]) == pytest.approx(1 + 1000 * 0.003), "beyond the ends it stays"
    assert clock([(50, 10), (5, 100)]) == pytest.approx(1 + 0.5 + 1.5), "parts add up"
    assert Clock([([(100, 10)], 2.0)])([(50, 10)]) == pytest.approx(1.0), "without a part, all is by the token"


def course() -> Course:
    """Two whole batches and a quarter, met once and timed once, then one more step."""
    shapes = [[(100, 10)], [(10, 100)], [(25, 10)]]
    return Course(
        settings={},
        order=[*shapes, *shapes[::-1], shapes[0]],
        distinct=3,
        evaluations={"validation": [[(100, 10)]] * 2, "test": [[(10, 100)]]},
        mapped=10,
        examples=135,
    )


def whole(*splits: str) -> Batches:
    """A run of 100 steps, of which half have short examples; validation has 8 batches of those, test 4 of long ones."""
    short, long = np.arange(100), np.arange(100, 110)
    lengths = np.repeat([10, 100], [100, 10])
    made = Data({"pairs": False}, dict.fromkeys(("train", *splits), lengths), 0, None)
    evaluations = {"validation": [short] * 8, "test": [long] * 4}
    return Batches(made, [short, long] * 50, {name: evaluations[name] for name in splits})


def test_the_parts_of_a_price() -> None:
    """Start 5, first visits 0.5 more, batches of 2, 4 and 1.25, evaluation at 0.4 of a step, 3 to end: found again."""
    cost = {repr([(100, 10)]): 2.0, repr([(10, 100)]): 4.0, repr([(25, 10)]): 1.25}
    made = course()
    durations = [5 + cost[repr(made.order[0])]]
    durations += [cost[repr(shape)] + 0.5 for shape in made.order[1:3]]
    durations += [cost[repr(shape)] for shape in made.order[3:6]]
    durations.append(cost[repr(made.order[6])] + 0.4 * 2 * 2.0)
    end = sum(durations) + 0.4 * (2 * 2.0 + 4.0) + 3
    parts = probes._times(np.cumsum(durations).tolist(), end, made, whole("validation", "test"))
    assert parts == pytest.approx(
        {"start": 5.0, "first": 0.5, "step": 3.0, "evaluation": 0.4 * 8 * 2, "end": 3 + 0.4 * 4 * 4}
    )
    blind = replace(made, evaluations={})
    parts = probes._times(np.cumsum([*durations[:-1], 2.0]).tolist(), sum(durations[:-1]) + 2.0 + 3, blind, whole())
    assert (parts["evaluation"], parts["end"]) == (0.0, pytest.approx(3.0)), "pretraining evaluates nothing"


def test_growth_is_that_of_new_lengths() -> None:
    steps = [{"lengths": k + 1, "resident": 1000 + 7 * k} for k in range(20)]
    assert probes._growth(steps) == pytest.approx(7.0)
    assert probes._growth([{"lengths": 1, "resident": 1000 + 9 * k} for k in range(20)]) == 0.0


# ---------------------------------------------------------------- from prices to costs


def test_the_cost_of_a_run(plan: Plan) -> None:
    run = job(plan)  # four steps, evaluated every second
    found = estimate.cost(Given(), plan, run)
    assert found.time == seconds(5 + 0.1 * 3 + 4 * 2 + 2 * 3 + 7)
    assert found.memory == 1000 + 2 * (4 - 10)
    assert (found.disk, found.scratch, found.joules) == (30, 40, pytest.approx(10 * found.time.wall))
    pretrain = estimate.cost(Given(), plan, job(plan, "pretrain", "spt-masked"))
    assert pretrain.time == seconds(5 + 0.1 * 3 + 4 * 2 + 7), "pretraining evaluates nothing"
    assert estimate.cost(Given(replace(PRICE, watts=None)), plan, run).joules is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"memory": 20_000 * 2**20, "device_memory": 4 * 2**30}, r"needs 19\.5 GiB; the device has 4\.0 GiB"),
        ({"growth": 1e6, "met": 0, "device_memory": 10**6}, "needs 0.0 GiB"),
        ({"pieces": 2}, "has no room for a whole batch"),
    ],
)
def test_what_does_not_fit_is_refused(plan: Plan, change: dict[str, Any], said: str) -> None:
    with pytest.raises(DoesNotFit, match=said):
        estimate.cost(Given(replace(PRICE, **change)), plan, job(plan))


@pytest.mark.parametrize(("by", "wanted"), [("flops", 4 * 3 + 4 * 2), ("energy", 4 * 3 + 4 * 2), ("steps", 8)])
def test_a_matched_run_spends_its_budget(by: str, wanted: int) -> None:
    settings = yaml_reader.read(TINY).data
    settings["tiers"]["smoke"] |= {"matched": by}
    settings["tiers"]["smoke"]["grid"] = [{"tasks": ["listops"], "backbones": ["s4d"], "protocols": "all"}]
    plan = Plan(params.parse(settings))
    prices = Given(pretrain_spt_masked=replace(PRICE, flops=300.0), finetune_spt_masked=replace(PRICE, flops=200.0))
    assert estimate.steps(prices, plan, job(plan, protocol="scratch-matched")) == wanted


def test_selection(plan: Plan) -> None:
    names = {f"{cell.task}/{cell.backbone}/{cell.protocol}" for cell in estimate.select(plan, [])}
    assert names == {"listops/s4d/scratch", "listops/s4d/spt-masked", "cola/transformer/scratch"}
    chosen = estimate.select(plan, ["listops/*/spt-*", "cola/*/*"])
    assert {cell.task: [each.kind for each in jobs] for cell, jobs in chosen.items()} == {
        "listops": ["pretrain", "finetune"],
        "cola": ["finetune"],
    }
    with pytest.raises(NoscratchError, match="no cell listops/s4/scratch"):
        estimate.select(plan, ["listops/s4/scratch"])


def test_costs_of_cells_and_of_all(plan: Plan) -> None:
    large = replace(PRICE, memory=20_000)
    found = estimate.costs(Given(pretrain_spt_masked=large), plan, estimate.select(plan, []))
    run = estimate.cost(Given(), plan, job(plan))
    assert found.cells["listops/s4d/scratch"] == (1, run)
    assert "device has" in str(found.cells["listops/s4d/spt-masked"][1])
    assert found.unfit == ("listops/s4d/spt-masked",)
    assert found.total == run + run, "of the two cells that fit"
    assert found.made_up == ()
    assert run.times(3).time == run.time * 3
    assert (run.times(3).memory, run.times(3).disk) == (run.memory, 3 * run.disk)
    assert (run + Cost(joules=None)).joules is None


def demo_ledger(folder: Path, *claims: str) -> tuple[Paper, ...]:
    """A paper with these claims, as a file has them."""
    paper = "paper: demo\ntitle: A paper\narxiv: '2310.00001'\nsources: {paper: the text}\nclaims:\n"
    (folder / "demo.yaml").write_text(paper + "".join(claims))
    return load_claims(folder)


def tiny_plan_at_mini() -> Plan:
    """The tiny plan as one whose results settle claims."""
    settings = yaml_reader.read(TINY).data
    settings["tiers"]["mini"] = settings["tiers"]["smoke"]
    settings["run"]["tier"] = "mini"
    return Plan(params.parse(settings))


def test_costs_of_claims(tmp_path: Path, plan: Plan) -> None:
    """Cells of several claims count once in the sum of the paper; those outside the plan are named."""
    claim = (
        "  - {{id: demo-{name}, version: 1, statement: S, where: T, source: paper, status: S1, kind: difference,\n"
        "     unit: points, cells: {{backbone: s4d, protocol: spt-masked}}, against: {{protocol: scratch}},\n"
        "     values: {{{values}}}, test: {{rule: greater, margin: 0, why: ours}}, seeds: {seeds}, tier: mini}}\n"
    )
    papers = demo_ledger(
        tmp_path,
        claim.format(name="a", values="listops: 0", seeds=3),
        claim.format(name="b", values="listops: 0, text: 0", seeds=5),
    )
    mini = tiny_plan_at_mini()
    with pytest.raises(NoscratchError, match="No claim about trained models that the smoke tier settles"):
        estimate.by_claim(Given(), plan, papers, [])
    found = estimate.by_claim(Given(), mini, papers, [])
    each = [estimate.cost(Given(), mini, job(mini, *of)) for of in (("finetune",), ("pretrain", "spt-masked"))]
    once = 2 * each[0].time.cpu + each[1].time.cpu
    assert [(row.paper, row.claim, row.seeds, row.cells, row.left_out, row.cost.time.cpu) for row in found] == [
        ("demo", "demo-a", 3, 2, 0, pytest.approx(3 * once)),
        ("demo", "demo-b", 5, 2, 2, pytest.approx(5 * once)),
        ("demo", "", 5, 2, 2, pytest.approx(5 * once)),
        ("", "", 5, 2, 2, pytest.approx(5 * once)),
    ]
    assert [row.claim for row in estimate.by_claim(Given(), mini, papers, ["*-a"])] == ["demo-a", "", ""]
    unfit = estimate.by_claim(Given(replace(PRICE, pieces=2)), mini, papers, ["demo-a"])[0]
    assert (unfit.cells, unfit.left_out, unfit.cost) == (0, 2, Cost())


def test_each_cell_counts_with_its_own_seeds_in_a_sum(tmp_path: Path, plan: Plan) -> None:
    claim = (
        "  - {{id: demo-{name}, version: 1, statement: S, where: T, source: paper, status: S1, kind: accuracy,\n"
        "     unit: percent, cells: {{backbone: s4d, protocol: {protocol}}}, values: {{listops: 50}},\n"
        "     test: {{rule: greater, margin: 0, why: ours}}, seeds: {seeds}, tier: mini}}\n"
    )
    papers = demo_ledger(
        tmp_path,
        claim.format(name="a", protocol="scratch", seeds=3),
        claim.format(name="b", protocol="spt-masked", seeds=5),
    )
    first, second, paper, every = estimate.by_claim(Given(), tiny_plan_at_mini(), papers, [])
    assert paper.cost.time.wall == pytest.approx(first.cost.time.wall + second.cost.time.wall)
    assert (paper.seeds, paper.cells) == (5, 2)
    assert every.cost == paper.cost


# ---------------------------------------------------------------- data


@pytest.mark.parametrize("tier", ["smoke", "mini", "paper"])
def test_every_task_and_corpus_can_be_made_up(tier: str) -> None:
    settings = params.load(ROOT)
    plan = Plan(settings.model_copy(update={"run": settings.run.model_copy(update={"tier": tier})}))
    for each in plan.of("prepare"):
        config = each.settings["data"]
        alone = run_data.made_up(plan, each, alone=True)
        assert set(alone.lengths) == {"train"}
        assert alone.mapped > 0
        if "corpus" in each.settings:
            assert set(alone.lengths["train"]) == {alone.meta["length"]}
            assert alone.meta["vocabulary"] >= 512
            continue
        data = run_data.made_up(plan, each, alone=False)
        assert set(data.lengths) == {"train", "validation", "test"}
        limit = data.meta["length"] * (2 if data.meta["pairs"] else 1)
        for split, lengths in data.lengths.items():
            assert 1 <= lengths.min() <= lengths.max() <= limit, each.label
            assert len(lengths) <= (config.get(split) or math.inf)
        if config.get("tokens") == "corpus":
            same = ("length", "vocabulary")
            model = run_data.made_up(plan, plan.corpus(), alone=True).meta
            assert [data.meta[key] for key in same] == [model[key] for key in same], "one model reads both"
    assert {file_of(name) for name in settings.tasks} <= set(run_data.LENGTHS) <= set(code.names_in("noscratch.tasks"))
    assert set(run_data.CORPORA) == set(code.names_in("noscratch.corpora"))


def test_made_up_lengths_are_those_of_the_generator(tmp_path: Path, plan: Plan) -> None:
    """A tenth of the mean at most between what is made up and what is prepared."""
    prepared = plan.prepare("listops")
    store = Store(tmp_path)
    stages.run_job(store, plan, prepared)
    real = run_data.read_data(store, plan, job(plan))
    made = run_data.made_up(plan, prepared, alone=False)
    assert real.folder is not None
    assert made.folder is None
    assert {split: len(lengths) for split, lengths in real.lengths.items()} == {
        split: len(lengths) for split, lengths in made.lengths.items()
    }
    assert made.lengths["train"].mean() == pytest.approx(real.lengths["train"].mean(), rel=0.2)
    same = ("kind", "classes", "metrics", "inputs", "pairs", "channels", "pad", "submission", "length")
    assert {key: made.meta[key] for key in same} == {key: real.meta[key] for key in same}


# ---------------------------------------------------------------- probes


@pytest.fixture
def store(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store in which nothing is prepared, with the self-test of this device done elsewhere."""
    monkeypatch.delenv(stages.MIRROR, raising=False)
    return Store(tmp_path)


def test_a_probe_of_made_up_data_and_of_real_ones(store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both run the real loop; a price is kept, and asked for again it runs nothing."""
    run = job(plan, protocol="spt-masked")
    found = [Probes(store, plan, "cpu").price(run)]
    stages.run_job(store, plan, plan.prepare("listops"))
    found.append(Probes(store, plan, "cpu").price(run))
    assert [price.made_up for price in found] == [True, False]
    assert len(list((store.data / "estimates").glob("*.json"))) == 2
    for price in found:
        for name in ("start", "step", "end"):
            time = getattr(price, name)
            assert 0 < time.cpu < 60
            assert time.wall > 0
        assert price.evaluation.cpu >= 0
        assert 2**27 < price.memory < 2**33 < price.device_memory * 4
        assert 0 < price.met <= price.lengths + 1
        assert price.flops > 0
        assert price.pieces == 1
        assert price.disk > 10_000
        assert price.scratch > 4 * 10_000
    assert found[0].flops == pytest.approx(found[1].flops, rel=0.3)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a kept price runs nothing")

    monkeypatch.setattr(probes.subprocess, "run", refuse)
    again = Probes(store, plan, "cpu").price(run)
    assert again == found[1]
    for change, kept in (({"seed": 7}, True), ({"backbone": "s4"}, False), ({"dtype": "float64"}, False)):
        other = replace(run, settings={**run.settings, **change})
        assert (Probes(store, plan, "cpu")._key(other) == Probes(store, plan, "cpu")._key(run)) == kept, change
    train = {**run.settings["train"], "steps": 9, "lr": 1.0}
    assert Probes(store, plan, "cpu").price(replace(run, settings={**run.settings, "train": train})) == found[1]
    train["batch_tokens"] = 128
    with pytest.raises(AssertionError, match="runs nothing"):
        Probes(store, plan, "cpu").price(replace(run, settings={**run.settings, "train": train}))


def test_a_probe_that_fails_says_why(store: Store, plan: Plan) -> None:
    run = job(plan)
    broken = replace(run, settings={**run.settings, "backend": "abacus"})
    with pytest.raises(NoscratchError, match=r"(?s)An estimate runs a few steps.*abacus"):
        Probes(store, plan, "cpu").price(broken)
    assert not (store.data / "estimates").exists(), "nothing is kept of it"


# ---------------------------------------------------------------- the command


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text(TINY.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Probes, "price", lambda _, job: Given().price(job))
    return tmp_path


def call(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["estimate", *arguments])
    if isinstance(done.exception, NoscratchError):
        return f"{done.output}\n{done.exception}"
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command(checkout: Path) -> None:
    said = call("--select", "listops/*/*")
    assert "listops/s4d/scratch" in said
    assert "cola" not in said
    assert "in total, all seeds" in said


def test_the_command_refuses_what_does_not_fit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Probes, "price", lambda *_: replace(PRICE, pieces=2))
    said = call()
    assert "has no room for a whole batch" in said
    assert "no memory for 3 of the cells: listops/s4d/scratch" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tier", "paper"], "The tiers are smoke, mini; got 'paper'"),
        (["--device-class", "abacus"], "The device classes are h200, h100, a100, t4"),
        (["--device-class", "h200", "--utilization", "1.5"], "in (0, 1]; got 1.5"),
        (["--select", "listops"], "A pattern is TASK/BACKBONE/PROTOCOL"),
        (["--record", "--by-claim"], "add --by-claim, --device-class"),
    ],
)
def test_the_command_refuses_mistakes(checkout: Path, arguments: list[str], said: str) -> None:
    assert said in call(*arguments)


def test_the_bench_compares_every_job_of_its_cells(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row for each phase, with the error of what was predicted; nothing runs here."""
    done: list[str] = []

    def compare(_: Store, plan: Plan, job: Job, kept: Path) -> dict[str, Any]:
        assert kept.is_dir()
        done.append(f"{plan.params.run.tier} {job.kind} {job.settings['protocol']}")
        measured = {"seconds": 2.0, "cpu_seconds": 1.0, "peak_memory": 100.0}
        return {"job": job.name} | measured | {f"predicted_{name}": 1.5 * value for name, value in measured.items()}

    monkeypatch.setattr(estimates, "compare", compare)
    cells = ["smoke:listops/s4d/spt-masked", "mini:listops/transformer/scratch"]
    monkeypatch.setattr("sys.argv", ["estimates", "--out", str(checkout / "out"), "--cells", *cells])
    estimates.main()
    assert done == ["smoke pretrain spt-masked", "smoke finetune spt-masked", "mini finetune scratch"]
    rows = pq.read_table(checkout / "out" / "estimates.parquet").to_pylist()
    assert estimates.errors(rows, "cpu_seconds") == [0.5] * 3
    assert estimates.errors([*rows, rows[0] | {"peak_memory": None}], "peak_memory") == [0.5] * 3
    record = json.loads((checkout / "out" / "record.json").read_text())
    assert record["settings"] == {"cells": cells}
