"""Tuning: what is measured and proposed, and that params.yaml changes in nothing but the proposed values."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import tiny
from checkout import ROOT, make_checkout
from noscratch import cli, tune
from noscratch.errors import NoscratchError
from noscratch.plan import Plan, read_plan
from noscratch.store import Store
from noscratch.tune import Choice
from noscratch.yaml_reader import read


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    root = tmp_path_factory.mktemp("plan")
    (root / "params.yaml").write_text((ROOT / "tests/tiny/params.yaml").read_text())
    return read_plan(root)


def probe(prepared: Path, backbone: str = "s4d", tokens: float = 1.0, **changes: Any) -> tune.Probe:
    return tune.Probe(backbone, tiny.settings(backbone=backbone, **changes), prepared, tokens)


# What is measured


def test_each_backbone_is_measured_on_what_is_prepared(plan: Plan, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(tune.TuneError, match="none are prepared"):
        tune.probes(store, plan)
    prepared = plan.prepare("listops")
    with store.building(prepared) as out:
        (out / "record.json").write_text(json.dumps({"artifacts": {}}))
    (found,) = tune.probes(store, plan)
    assert found.backbone == "s4d"  # the Transformer's task is not prepared
    assert found.prepared == store.path(prepared)
    jobs = [job for job in plan.of("pretrain", "finetune") if job.settings["backbone"] == "s4d"]
    assert len(jobs) == 3
    assert found.tokens == 3 * 4 * 256


@pytest.mark.parametrize(("cores", "threads"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_every_thread_count_meets_every_backend_that_all_kernels_have(
    plan: Plan, tmp_path: Path, cores: int, threads: list[int]
) -> None:
    measured = [probe(tiny.write_task(tmp_path))]
    found = tune.choices(plan, measured, "cpu", cores)
    assert found == [Choice(t, backend) for t in threads for backend in ("reference", "fast")]
    assert tune.present_choice(plan) in found


def test_processes_share_the_cores_and_their_rates_add_up(tmp_path: Path) -> None:
    measured = [probe(tiny.write_task(tmp_path)), probe(tmp_path, "transformer")]
    rates = tune.measure(measured, Choice(1, "fast"), "cpu", cores=2, seconds=0.01)
    assert set(rates) == {"s4d", "transformer"}
    assert all(rate > 0 for rate in rates.values())
    assert not multiprocessing.active_children()


def test_a_process_that_dies_ends_the_measurement(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = [probe(tiny.write_task(tmp_path)), probe(tmp_path / "nowhere", "transformer")]
    with pytest.raises(tune.TuneError, match="1 threads and backend fast ended early"):
        tune.measure(broken, Choice(1, "fast"), "cpu", cores=2, seconds=0.01)
    assert "nowhere" in capfd.readouterr().err
    assert not multiprocessing.active_children()


def test_a_step_trains_and_says_what_it_computes(tmp_path: Path) -> None:
    measured = probe(tiny.write_task(tmp_path), batch_tokens=10**6)
    step, tokens = tune._step(measured, "fast", tune.torch.device("cpu"))
    assert 24 <= tokens <= tune.PROBE_TOKENS
    step()
    alone, few = tune._step(probe(tmp_path, batch_tokens=24), "reference", tune.torch.device("cpu"))
    assert few <= 24
    alone()


@pytest.mark.parametrize(("steps", "counted"), [([5.0], [5.0]), ([0.5, *[0.25] * 4, 0.9], [0.25] * 4)])
def test_the_first_step_counts_only_where_it_takes_longer_than_asked(
    monkeypatch: pytest.MonkeyPatch, steps: list[float], counted: list[float]
) -> None:
    now = 0.0
    left = iter(steps)

    def step() -> None:
        nonlocal now
        now += next(left)

    monkeypatch.setattr(tune.time, "perf_counter", lambda: now)
    assert tune._seconds(step, 1.0) == pytest.approx(sum(counted) / len(counted))


# What is proposed


PRESENT, FASTER, OTHER = Choice(1, "fast"), Choice(2, "fast"), Choice(1, "reference")


def test_a_backbone_weighs_what_it_has_to_compute(tmp_path: Path) -> None:
    measured = [probe(tmp_path, "s4d", 100.0), probe(tmp_path, "transformer", 900.0)]
    rates = {PRESENT: {"s4d": 10.0, "transformer": 10.0}, FASTER: {"s4d": 5.0, "transformer": 20.0}}
    assert tune.speeds(measured, rates, PRESENT) == {PRESENT: 1.0, FASTER: pytest.approx(100 / 65)}


@given(st.lists(st.floats(0.1, 10.0), min_size=3, max_size=3))
def test_the_fastest_is_proposed_unless_it_is_noise(values: list[float]) -> None:
    faster = dict(zip((PRESENT, FASTER, OTHER), [1.0, *values[1:]], strict=True))
    chosen = tune.proposal(faster, PRESENT)
    assert faster[chosen] >= 1.05 or chosen == PRESENT
    assert all(faster[other] <= max(faster[chosen], 1.05) for other in faster)


def test_the_lines_keep_what_means_the_same(plan: Plan) -> None:
    assert tune.lines(plan, PRESENT) == {"threads": "1", "backend": "auto"}
    assert tune.lines(plan, OTHER) == {"threads": "1", "backend": "reference"}
    assert tune.lines(plan, FASTER) == {"threads": "2", "backend": "auto"}


# What is written


@given(
    before=st.text("ab #:é-", max_size=10).map(lambda text: f"# {text}\n"),
    comment=st.sampled_from(["", "  # why: threads", "    # 7, 'auto'"]),
    end=st.sampled_from(["\n", "\r\n"]),
    order=st.permutations(["  tier: smoke", "  threads: 1", "  backend: auto", "# between"]),
    threads=st.integers(1, 128),
)
def test_nothing_but_the_values_changes(
    tmp_path_factory: pytest.TempPathFactory, before: str, comment: str, end: str, order: list[str], threads: int
) -> None:
    root = tmp_path_factory.mktemp("params")
    text = before + "run:\n" + "".join(line + comment + "\n" for line in order) + "tasks: {threads: 1}\n"
    text = text.replace("\n", end)
    (root / "params.yaml").write_bytes(text.encode())
    tune.write(root, {"threads": str(threads), "backend": "reference"})
    wanted = text.replace(f"  threads: 1{comment}{end}", f"  threads: {threads}{comment}{end}")
    wanted = wanted.replace(f"  backend: auto{comment}{end}", f"  backend: reference{comment}{end}")
    assert (root / "params.yaml").read_bytes() == wanted.encode()
    assert [path.name for path in root.iterdir()] == ["params.yaml"]


def test_the_settings_of_this_repository_can_be_written(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text)
    tune.write(tmp_path, {"threads": "3", "backend": "fast"})
    changed = [
        (old, new)
        for old, new in zip(text.splitlines(), (tmp_path / "params.yaml").read_text().splitlines(), strict=True)
        if old != new
    ]
    assert changed == [("  threads: 1", "  threads: 3"), ("  backend: auto", "  backend: fast")]
    assert read(tmp_path / "params.yaml").data["run"]["threads"] == 3


@pytest.mark.parametrize("value", ["&all 1", "'1'", "!!int 1"])
def test_a_value_that_is_more_than_plain_is_left_alone(tmp_path: Path, value: str) -> None:
    text = f"run:\n  threads: {value}\n  backend: auto\n"
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(NoscratchError, match=r"params\.yaml:2: only a plain value is replaced"):
        tune.write(tmp_path, {"threads": "2"})
    assert (tmp_path / "params.yaml").read_text() == text


# The command


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_seconds_are_positive(seconds: str) -> None:
    done = CliRunner().invoke(cli.app, ["tune", f"--seconds={seconds}"])
    assert isinstance(done.exception, NoscratchError)
    assert "--seconds is a positive number" in str(done.exception)


def test_the_command_prints_the_lines_and_writes_them_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    text = (checkout.root / "params.yaml").read_text()
    monkeypatch.chdir(checkout.root)
    refused = CliRunner().invoke(cli.app, ["tune"])
    assert "none are prepared" in str(refused.exception)
    checkout.noscratch("run", read_plan(checkout.root).prepare("listops").address)
    monkeypatch.setattr(cli.os, "sched_getaffinity", lambda _: {0, 1})
    speed = {"reference": 30.0, "fast": 10.0}
    monkeypatch.setattr(tune, "measure", lambda probes, choice, *_: {"s4d": speed[choice.backend] * choice.threads})
    for options, wanted in (
        ([], text),
        (["--write"], text.replace("threads: 1,", "threads: 2,").replace("backend: auto", "backend: reference")),
    ):
        done = CliRunner().invoke(cli.app, ["tune", *options])
        assert done.exit_code == 0, done.output
        assert "run:\n  threads: 2\n  backend: reference\n" in done.output
        rows = [line.split() for line in done.output.splitlines()]
        assert ["1", "fast", "10", "1.00x", "present"] in rows
        assert ["2", "reference", "60", "6.00x", "proposed"] in rows
        assert (checkout.root / "params.yaml").read_text() == wanted
