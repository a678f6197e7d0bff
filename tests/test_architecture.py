"""What is counted for claims that need no training: the committed record is what the code counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from noscratch.record import count_job, is_counted, write_count
from noscratch.results import architecture, observations
from noscratch.results.claims import Measured, load

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def counted() -> list[observations.Observation]:
    return architecture.count(load(ROOT / "claims"))


def test_every_count_fits_its_claim(counted: list[observations.Observation]) -> None:
    """A counted claim has all of its quantities, and everything counted is claimed."""
    claims = {c.id: c for paper in load(ROOT / "claims") for c in paper.claims if isinstance(c, Measured)}
    assert set(architecture.COUNTED) <= set(claims)
    for name in architecture.COUNTED:
        assert {each.quantity for each in counted if each.claim == name} == set(claims[name].values)


def test_every_architecture_and_numerics_claim_is_counted_or_of_another_model() -> None:
    others = {"resnet18", "wavegan", "bigs-released"}
    for paper in load(ROOT / "claims"):
        for claim in paper.claims:
            if claim.kind in ("architecture", "numerics"):
                assert isinstance(claim, Measured)
                assert (claim.id in architecture.COUNTED) != (set(claim.backbones) <= others), claim.id


def test_the_committed_record_is_what_the_code_counts(counted: list[observations.Observation]) -> None:
    committed = ROOT / "reports" / "records" / "architecture" / observations.FILE
    stored = [observations.Observation.model_validate(row) for row in json.loads(committed.read_text())]
    key = ("claim", "quantity", "unit", "setting", "device")
    assert [tuple(getattr(each, name) for name in key) for each in stored] == sorted(
        tuple(getattr(each, name) for name in key) for each in counted
    )
    values = {(each.claim, each.quantity): each.values for each in counted}
    for each in stored:
        assert each.values == pytest.approx(values[each.claim, each.quantity], rel=1e-12)


def test_identities_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is off by a part in a million leaves an error that its claim does not allow."""
    right = architecture.ssm.s4_kernel
    monkeypatch.setattr(architecture.ssm, "s4_kernel", lambda *a, **k: right(*a, **k) * (1 + 3e-6))
    assert architecture._dplr_is_dense() == {"float64": pytest.approx(1e-5)}
    monkeypatch.setattr(architecture, "recurrent", lambda block, x: architecture.parallel(block, x).roll(1, dims=1))
    assert architecture._convolution_is_recurrence()["float64"] >= 0.1


def test_counted_again_only_when_code_or_bytes_changed(tmp_path: Path) -> None:
    job = count_job("a", {"units": {"x": "layers"}}, ("noscratch.errors",))
    assert not is_counted(tmp_path, job)
    (tmp_path / observations.FILE).write_text("[]")
    write_count(tmp_path, job)
    assert is_counted(tmp_path, job)
    assert not is_counted(tmp_path, count_job("a", {"units": {}}, ("noscratch.errors",)))
    assert not is_counted(tmp_path, count_job("a", {"units": {"x": "layers"}}, ("noscratch.locks",)))
    (tmp_path / observations.FILE).write_text("[ ]")
    assert not is_counted(tmp_path, job)
