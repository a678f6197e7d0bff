"""Device classes: operations and bytes are counted as they are, whatever the size, and times follow from them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from noscratch import backbones, flops, params, yaml_reader
from noscratch.estimate import ClaimCost, Cost, DoesNotFit, Time, cost
from noscratch.kernels import attention
from noscratch.model import build_model
from noscratch.plan import Job, Plan
from noscratch.results.pages import cost as pages
from noscratch.results.pages.evidence import _measurement
from noscratch.results.pages.markup import Html, Page
from noscratch.results.pages.numbers import bare
from noscratch.roofline import CLASSES, START, DeviceClass, Rooflines, Trace, _step, publish
from noscratch.run_data import Data

SLOW = DeviceClass("slow", {"float32": 1e6}, bandwidth=1e6, memory=10**9, watts=100.0, launch=1e-3)
BACKBONES = [*backbones.names(), "transformer-guided"]


def data(pixels: bool = False, **changes: Any) -> Data:
    meta = {
        "task": "tiny",
        "kind": "classification",
        "classes": 10,
        "metrics": ["accuracy"],
        "inputs": "pixels" if pixels else "tokens",
        "pairs": False,
        "pretraining": {"ratio": 0.25, "loss": "cross-entropy"},
        "channels": 1,
        "vocabulary": 256 if pixels else 16,
        "pad": 0,
        "mask": None if pixels else 1,
        "length": 64,
        "submission": False,
    }
    lengths = {name: np.full(100, 64) for name in ("train", "validation", "test")}
    return Data(meta | changes, lengths, 0, None)


def run(backbone: str = "transformer", objective: str = "classify", layers: int = 1, **changes: Any) -> Job:
    """A job of the tiny settings; `transformer-guided` changes in the course of its training."""
    kind = "finetune" if objective == "classify" else "pretrain"
    protocol = "spt-causal" if objective == "causal" else "scratch"
    told = tiny.settings(kind, objective, backbone.partition("-")[0], protocol=protocol, layers=layers, **changes)
    if backbone == "transformer-guided":
        told["backbone_config"] = {"heads": 2, "ffn": "low_rank", "rank": 0.25, "guided": True}
    return Job(kind, "tiny", told | {"backend": "fast"}, (), {"prepared": "0" * 12}, "")


def test_operations_and_bytes_of_a_product() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    with Trace() as trace:
        torch.mm(a, b).t().reshape(7, 3)
    assert trace.work[0] == (2 * 3 * 5 * 7, 4 * (3 * 5 + 5 * 7 + 3 * 7))
    assert all(operations == 21 for operations, _ in trace.work[1:]), "a view moves nothing, a copy does"
    assert len(trace.work) <= 2


@pytest.mark.parametrize(("real", "factor"), [(True, 0.5), (False, 1.0)])
def test_operations_of_a_fourier_transform(real: bool, factor: float) -> None:
    """5 n log2 n, half of that for a real one."""
    x = torch.ones(3, 64, dtype=torch.float32 if real else torch.complex64)
    with Trace() as trace:
        (torch.fft.rfft if real else torch.fft.fft)(x)
    assert trace.work[0][0] == pytest.approx(factor * 3 * 5 * 64 * math.log2(64))


def test_seconds_are_the_longest_of_three() -> None:
    trace = Trace()
    trace.work += [(2e6, 10), (10, 3_000_000), (10, 10)]
    assert trace.seconds(SLOW, "float32", 1.0) == pytest.approx(2 + 3 + 1e-3)
    assert trace.seconds(SLOW, "float32", 0.5) == pytest.approx(4 + 6 + 1e-3)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_is_traced_without_computing(backbone: str) -> None:
    """As many operations as are counted when the step is computed, but for what has no formula there."""
    trace, held = _step(build_model(data().meta, run(backbone).settings, 0), [(2, 64)], run(backbone), data())
    model = build_model(data().meta, run(backbone).settings, 0)
    model.set_progress(0.5)
    tokens, mask = torch.ones(2, 64, dtype=torch.int64), torch.ones(2, 64, dtype=torch.bool)
    counted = flops.count(lambda: model.head(model(tokens, mask).mean(1)).sum().backward())
    assert counted <= trace.operations
    assert held > 4 * 2 * 64 * 16
    assert all(moved > 0 for _, moved in trace.work)


def test_a_trace_leaves_nothing_behind() -> None:
    """Tables that kernels keep have no content under a trace; later computations must not meet them."""
    model = build_model(data().meta, run(dropout=0.0).settings, 0)
    tokens, mask = torch.ones(2, 64, dtype=torch.int64), torch.ones(2, 64, dtype=torch.bool)
    before = model(tokens, mask)
    _step(model, [(2, 64)], run(), data())
    assert attention._rotations.cache_info().currsize == 0
    assert torch.equal(model(tokens, mask), before)


@pytest.mark.parametrize("objective", ["classify", "masked", "causal"])
@pytest.mark.parametrize("pixels", [False, True])
def test_every_objective_is_traced(objective: str, pixels: bool) -> None:
    trace, _ = _step(
        build_model(data(pixels).meta, run("s4d", objective).settings, 0),
        [(2, 64)],
        run("s4d", objective),
        data(pixels),
    )
    assert trace.operations > 0


class Traced(Rooflines):
    """Prices of given data."""

    def __init__(self, device: DeviceClass = SLOW) -> None:
        self.device, self.share = device, 1.0

    def price(self, job: Job) -> Any:
        return self._price(job, data())


@pytest.mark.parametrize("backbone", ["transformer", "s4d"])
def test_blocks_are_alike(backbone: str) -> None:
    """Four blocks priced from one and two are four blocks traced."""
    price = Traced().price(run(backbone, layers=4))
    model = build_model(data().meta, run(backbone, layers=4).settings, 0)
    model.set_progress(0.5)
    trace, held = _step(model, [(4, 64)], run(backbone), data())
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert price.flops == pytest.approx(trace.operations)
    assert price.step.wall == pytest.approx(trace.seconds(SLOW, "float32", 1.0) + 28 * weights / SLOW.bandwidth)
    assert price.memory == 16 * weights + held
    assert price.disk == 4 * weights + 16 * 300


def test_a_price_and_what_it_costs() -> None:
    price = Traced().price(run())
    assert price.start.wall == START
    assert price.evaluation.wall == pytest.approx(25 * (price.step.wall - 28 * 1e-6 * _weights(run())) / 3)
    assert price.end.wall == pytest.approx(price.evaluation.wall), "a test set as large as the validation set"
    fast = Traced(CLASSES["h200"]).price(run())
    assert fast.step.wall < price.step.wall
    assert fast.device_memory == 141 * 10**9
    assert price.watts == 100.0


def test_a_batch_without_room_goes_through_in_pieces() -> None:
    whole, weights = Traced().price(run()), 16 * _weights(run())
    held = whole.memory - weights
    small = Traced(replace(SLOW, memory=weights + held // 2 - 1))
    assert small.price(run()).memory == weights + held / 4
    assert small.price(run()).step == whole.step, "the same operations"
    plan: Any = None  # the steps of a matched run are all that it is asked for
    assert cost(small, plan, run()).memory == weights + held / 4
    with pytest.raises(DoesNotFit):
        cost(Traced(replace(SLOW, memory=weights)), plan, run())


def _weights(job: Job) -> int:
    return sum(parameter.numel() for parameter in build_model(data().meta, job.settings, 0).parameters())


def test_a_plan_is_priced() -> None:
    """Longer runs, larger models and slower classes cost more; nothing is prepared and nothing trained."""
    plan = Plan(params.parse(yaml_reader.read(Path(__file__).parent / "tiny" / "params.yaml").data))
    wanted = next(each for each in plan.of("finetune") if each.cell and each.cell.backbone == "s4d")
    prices = Rooflines(plan, CLASSES["h200"], 0.5)
    base = cost(prices, plan, wanted)
    train, model = wanted.settings["train"], wanted.settings["model"]
    longer = replace(wanted, settings={**wanted.settings, "train": {**train, "steps": 10**6}})
    assert cost(prices, plan, longer).time.wall > 1000 * prices.price(wanted).step.wall + base.time.wall
    wide = replace(wanted, settings={**wanted.settings, "model": {**model, "d_model": 2048}})
    assert cost(prices, plan, wide).time.wall > base.time.wall
    assert cost(prices, plan, wide).memory > 100 * base.memory
    assert cost(Rooflines(plan, CLASSES["t4"], 0.5), plan, wide).time.wall - START > 2 * (
        cost(prices, plan, wide).time.wall - START
    )


def test_what_claims_would_cost_is_recorded_and_shown_as_a_prediction(tmp_path: Path) -> None:
    """Each number of the page has the address of its cell in the record; sums stand under no claim."""
    cost_of_all = Cost(Time(10_800.0), 2**30, 2**20, 0, 1.08e7)
    rows = [ClaimCost("spt", "spt-gain", 3, 4, 1, cost_of_all), ClaimCost("", "", 3, 0, 2, Cost())]
    folder = publish(rows, "paper", "h200", 0.5, tmp_path)
    assert folder == tmp_path / "reports" / "records" / "cost-paper-h200"
    assert not (folder / "provenance.json").exists(), "nothing was measured"
    counted = _measurement(folder / "record.json", tmp_path)
    assert [row["gpu_hours"] for row in counted.rows] == [3.0, 0.0]
    assert [row["energy_kwh"] for row in counted.rows] == [3.0, 0.0]
    assert counted.record["settings"]["device"]["bandwidth"] == CLASSES["h200"].bandwidth
    page = Page("cost.html", "Cost", "")
    evidence: Any = SimpleNamespace(measurements={folder.name: counted, "bench-other": None})
    pages._predictions(page, evidence)
    text = page.bytes().decode()
    assert "Predicted, not measured." in text
    assert "noscratch estimate --tier paper --by-claim --device-class h200 --utilization 0.5 --record" in text
    assert 'data-cell="bench/cost-paper-h200/costs.parquet/0/gpu_hours"' in text
    assert not list(bare("".join(str(block) for block in page.blocks if isinstance(block, Html))))
