"""One job at a time: what is recorded when it is done, diverges, fails, stops, or cannot have its source."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from noscratch import availability, params, passport, stages, train, yaml_reader
from noscratch.errors import NoscratchError
from noscratch.plan import Job, Plan
from noscratch.store import PROVENANCE, RECORD, Store, read_provenance, read_record, sha256_of

Train = Callable[..., dict[str, Any]]
RESULT = {"metrics": {"test": {"accuracy": 0.5}}}


@pytest.fixture
def plan() -> Plan:
    return Plan(params.parse(yaml_reader.read(Path(__file__).parent / "tiny/params.yaml").data))


@pytest.fixture
def store(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store whose ListOps is prepared (by a stand-in, since nothing here reads it)."""
    monkeypatch.delenv(stages.MIRROR, raising=False)
    monkeypatch.setattr(passport, "check", lambda device, cache: {"digest": f"of {device}"})
    store = Store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "_prepare", lambda *_: {"splits": {}})
        stages.run_job(store, plan, the(plan, "prepare", "listops"))
    return store


def the(plan: Plan, kind: str, label: str) -> Job:
    return next(job for job in plan.of(kind) if label in job.label)


def training(monkeypatch: pytest.MonkeyPatch, run: Train) -> None:
    monkeypatch.setattr(train, "run", run)


def write(settings: dict[str, Any], *, out: Path, checkpoints: Path, **_: Any) -> dict[str, Any]:
    checkpoints.mkdir(parents=True)
    (out / "weights.safetensors").write_bytes(b"weights")
    return RESULT


def test_a_record_holds_what_a_reader_needs(store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    training(monkeypatch, write)
    job = the(plan, "pretrain", "spt-masked")
    assert stages.run_job(store, plan, job) == "done"
    record = read_record(store.path(job))
    prepared = store.path(the(plan, "prepare", "listops"))
    assert record["address"] == job.address
    assert record["settings"] == job.settings
    assert record["inputs"] == {"prepared": sha256_of(prepared / RECORD)}
    assert record["artifacts"] == {
        "weights.safetensors": {"bytes": 7, "sha256": sha256_of(store.path(job) / "weights.safetensors")}
    }
    assert record["result"] == RESULT
    assert not any(store.data.glob("checkpoints/*")), "checkpoints go when the result stands"
    provenance = json.loads((store.path(job) / PROVENANCE).read_text())
    assert {"commit", "device", "libraries", "seconds", "started"} <= provenance.keys()
    assert provenance["passport"] == "of cpu"
    assert str(store.root) not in json.dumps(record), "a record names no path of its machine"


def test_two_runs_give_the_same_record(store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    training(monkeypatch, write)
    job = the(plan, "pretrain", "spt-masked")
    stages.run_job(store, plan, job)
    first = (store.path(job) / RECORD).read_bytes()
    shutil.rmtree(store.path(job))
    stages.run_job(store, plan, job)
    assert (store.path(job) / RECORD).read_bytes() == first


def test_a_finished_job_is_not_run_again(store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    training(monkeypatch, write)
    job = the(plan, "pretrain", "spt-masked")
    stages.run_job(store, plan, job)
    training(monkeypatch, lambda *_, **__: pytest.fail("ran again"))
    assert stages.run_job(store, plan, job) == "done"


def test_divergence_is_a_result_and_what_needs_it_fails(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(settings: dict[str, Any], *, out: Path, **_: Any) -> dict[str, Any]:
        (out / "curves.csv").write_text("step,split,metric,value\n")
        raise train.Diverged(3, "the loss is nan")

    training(monkeypatch, diverge)
    pretrain, finetune = the(plan, "pretrain", "spt-masked"), the(plan, "finetune", "spt-masked")
    assert stages.run_job(store, plan, pretrain) == "diverged"
    record = read_record(store.path(pretrain))
    assert "at step 3, the loss is nan" in record["reason"]
    assert "curves.csv" in record["artifacts"]
    assert stages.run_job(store, plan, finetune) == "failed"
    assert f"needs pretrain {pretrain.address}, which diverged" in read_record(store.path(finetune))["reason"]


def test_an_error_or_a_stop_publishes_nothing(store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    job = the(plan, "pretrain", "spt-masked")
    for error in (ZeroDivisionError(), train.Interrupted(3, "asked")):

        def stop(*_: Any, error: Exception = error, **__: Any) -> dict[str, Any]:
            raise error

        training(monkeypatch, stop)
        with pytest.raises(type(error)):
            stages.run_job(store, plan, job)
        assert not store.has(job)
        assert store.leftovers() == []


def test_two_processes_do_not_share_a_job(store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor its checkpoints: a run that is started by hand beside the engine's is told so."""
    job = the(plan, "pretrain", "spt-masked")

    def again(*_: Any, **__: Any) -> dict[str, Any]:
        with pytest.raises(NoscratchError, match=rf"One process at a time does a job, here {job.name}; process \d+ on"):
            stages.run_job(store, plan, job)
        return RESULT

    training(monkeypatch, again)
    assert stages.run_job(store, plan, job) == "done"
    assert not any((store.data / ".locks").iterdir())


def test_the_checkpoints_of_a_diverged_run_are_kept(store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_: Any, checkpoints: Path, **__: Any) -> dict[str, Any]:
        checkpoints.mkdir(parents=True)
        (checkpoints / "step-000000003").mkdir()
        raise train.Diverged(3, "the loss is nan")

    training(monkeypatch, diverge)
    job = the(plan, "pretrain", "spt-masked")
    assert stages.run_job(store, plan, job) == "diverged"
    assert (store.data / "checkpoints" / job.name / "step-000000003").is_dir()


def test_the_provenance_tells_how_the_run_went(store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def report_two(*_: Any, report: Callable[[int, train.State], None], **__: Any) -> dict[str, Any]:
        for step in (1, 2):
            report(2, train.State(step=step, loss_total=1.5, loss_terms=3, tokens_real=10 * step, split=step))
        return RESULT

    training(monkeypatch, report_two)
    job = the(plan, "pretrain", "spt-masked")
    stages.run_job(store, plan, job)
    provenance = read_provenance(store.path(job))
    assert (provenance["processes"], provenance["sharded"], provenance["calls"]) == (1, False, 1)
    assert provenance["pieces"] == 2, "how often memory ran out"
    assert provenance["telemetry"]["step"] == [1, 2]
    assert provenance["telemetry"]["loss"] == [0.5, 0.5]
    assert {"training_seconds", "tokens_per_second", "peak_memory", "energy_joules"} <= provenance.keys()


def test_a_device_that_fails_the_self_test_is_refused(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(device: str, cache: Path) -> dict[str, Any]:
        raise NoscratchError(f"Jobs run only where every kernel gives its known answers; on {device} scan.lru does not")

    monkeypatch.setattr(passport, "check", fail)
    training(monkeypatch, lambda *_, **__: pytest.fail("trained on a failing device"))
    job = the(plan, "pretrain", "spt-masked")
    with pytest.raises(NoscratchError, match="known answers"):
        stages.run_job(store, plan, job)
    assert not store.has(job)


def test_what_a_job_needs_must_stand(store: Store, plan: Plan) -> None:
    finetune = the(plan, "finetune", "spt-masked")
    with pytest.raises(NoscratchError, match=r"needs .*pretrain.* which is not there. Run `noscratch run "):
        stages.run_job(store, plan, finetune)


def test_a_blocked_source_blocks_what_needs_it_and_nothing_else(store: Store, plan: Plan) -> None:
    states = availability.refresh(store, plan)
    assert states == {"cola": "blocked: not asked for (network off, no mirror)"}
    blocked = availability.blocked(store, plan)
    assert {plan[address].kind for address in blocked} == {"fetch", "prepare", "finetune"}
    assert all("cola" in plan[address].label for address in blocked)
    assert set(blocked.values()) == {"cola: not asked for (network off, no mirror)"}


def test_a_source_that_fails_at_run_time_is_blocked_until_the_next_look(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from noscratch import sources

    monkeypatch.setattr(sources, "availability", lambda names, network, mirror: dict.fromkeys(names, "available"))

    def gone(*_: Any, **__: Any) -> None:
        raise sources.Blocked("HTTP 403 from every address")

    monkeypatch.setattr(sources, "fetch", gone)
    assert availability.refresh(store, plan) == {"cola": "available"}
    assert [state for _, state in availability.bring(store, plan)] == ["blocked: HTTP 403 from every address"]
    assert availability.read(store, plan) == {"cola": "blocked: HTTP 403 from every address"}
    assert not store.has(the(plan, "fetch", "cola"))
    assert availability.refresh(store, plan) == {"cola": "available"}, "looked for again"


def test_a_damaged_availability_is_looked_for_again(store: Store, plan: Plan) -> None:
    states = availability.refresh(store, plan)
    (store.data / "availability.json").write_text('{"cola": "avail')
    assert availability.read(store, plan) == states


def test_sources_are_fetched_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from noscratch import sources

    data = yaml_reader.read(Path(__file__).parent / "tiny/params.yaml").data
    data["tasks"]["rte"] = {}
    data["tiers"]["smoke"]["grid"][1]["tasks"] = ["cola", "rte"]
    plan, store = Plan(params.parse(data)), Store(tmp_path)
    both = threading.Barrier(2, timeout=60)

    def fetch(name: str, out: Path, **_: Any) -> sources.Fetched:
        both.wait()  # passes only when two are under way
        (out / "train.tsv").write_text(name)
        return sources.Fetched("official tree", "mirror", {})

    monkeypatch.setattr(sources, "availability", lambda names, network, mirror: dict.fromkeys(names, "available"))
    monkeypatch.setattr(sources, "fetch", fetch)
    assert [state for _, state in availability.bring(store, plan)] == ["available", "available"]
    for job in plan.of("fetch"):
        assert (store.path(job) / "train.tsv").read_text() == job.label


def test_availability_is_rewritten_only_when_it_changes(store: Store, plan: Plan) -> None:
    availability.refresh(store, plan)
    path = store.data / "availability.json"
    stamp = path.stat().st_mtime_ns
    availability.refresh(store, plan)
    assert path.stat().st_mtime_ns == stamp
