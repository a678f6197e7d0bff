"""The form of record.json and provenance.json, for every reader that takes nothing on trust: audit, import, sync."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from noscratch.plan import Job

SCHEMA = 1
STATES = ("done", "failed", "blocked", "diverged")

Sha = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Address = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class Strict(BaseModel):
    """What we wrote ourselves: every field there, of its type, and no other."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Artifact(Strict):
    bytes: Count
    sha256: Sha


class _Cell(Strict):
    tier: str
    task: str
    backbone: str
    protocol: str
    seed: Count


class _Selection(Strict):
    rule: str
    step: Count
    value: float


class _Counts(Strict):
    parameters: Count
    steps: Count
    tokens_real: Count
    tokens_computed: Count
    flops: Count


class _Matched(Strict):
    by: Literal["flops", "steps", "energy"]
    budget: dict[str, int]
    ratio: dict[str, float]


class _Trained(Strict):
    """What a finished run gives (train.run, baselines.run)."""

    phase: Literal["tuning", "pretrain", "finetune"]
    metrics: dict[str, dict[str, float]]
    primary: str
    selection: _Selection
    examples: dict[str, Count]
    counts: _Counts
    kernels: dict[str, str]
    matched: _Matched | None = None


class Record(Strict):
    """record.json of any job."""

    record_schema: Literal[1] = Field(alias="schema")
    kind: Literal["fetch", "prepare", "tuning", "pretrain", "finetune", "bench", "count"]
    address: Address
    name: str
    cell: _Cell | None
    settings: dict[str, Any]
    code: Sha
    modules: list[str]
    needs: dict[str, Address]
    inputs: dict[str, Sha]
    state: Literal["done", "failed", "blocked", "diverged"]
    reason: str | None
    artifacts: dict[str, _Artifact]
    result: dict[str, Any]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if (self.state == "done") != (self.reason is None):
            raise ValueError("a reason stands where a job is not done, and there alone")
        if self.cell is not None and self.state == "done":
            phase = _Trained.model_validate(self.result).phase
            if phase != self.kind:
                raise ValueError(f"result.phase is the kind, {self.kind}; got {phase}")
        return self


class Provenance(BaseModel):
    """provenance.json: what every job notes. What only some know (a source's origin, telemetry) stands beside it."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    commit: str | None
    dirty: bool | None
    device: str
    host: str
    platform: str
    processor: str
    python: str
    libraries: dict[str, str]
    arguments: list[str]
    started: str
    seconds: Seconds
    cpu_seconds: Seconds


Form = TypeVar("Form", bound=BaseModel)


def parse(form: type[Form], content: bytes) -> dict[str, Any]:
    """The JSON of a file of this form; ValueError names the first field that is not what it has to be.

    as_json(the result) == content is for the caller to ask: one content has one spelling.
    """
    try:
        found = json.loads(content)
    except RecursionError:
        raise ValueError("it nests too deeply") from None
    try:
        form.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg'].lower()}" if where else first["msg"].lower()) from None
    return dict(found)


def stated(job: Job) -> Mapping[str, Any]:
    """What the record of a job says of the job itself, whatever became of it."""
    return {
        "schema": SCHEMA,
        "kind": job.kind,
        "address": job.address,
        "name": job.name,
        "cell": asdict(job.cell) if job.cell else None,
        "settings": job.settings,
        "code": job.code,
        "modules": list(job.modules),
        "needs": dict(job.needs),
    }
