"""Observations: what was counted or measured for the claims that need no training.

A folder reports/records/<name> may hold `observations.json` beside its record: a list, for each quantity of a claim, of

    claim, quantity, unit    as in claims/
    values                   one for each repetition; a single one for what is counted
    device, model            "cpu" | "gpu", and its name; "any" and "" for what is counted
    setting                  what was counted or measured, in words
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from noscratch.errors import NoscratchError
from noscratch.results.claims import Measured, Paper

FILE = "observations.json"
Number = Annotated[float, Field(allow_inf_nan=False)]
# Device classes of claims that are named after a model of GPU, by a part of its name.
MODELS = {"a100": "A100", "t4": "T4"}


class ObservationError(NoscratchError):
    """Observations that do not fit the ledger or their record."""


class Observation(BaseModel):
    """One quantity as one record has it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    claim: str
    quantity: str
    unit: str
    values: list[Number] = Field(min_length=1)
    device: Literal["any", "cpu", "gpu"]
    model: str
    setting: str


@dataclass(frozen=True)
class Found:
    """An observation and the folder of its record."""

    observation: Observation
    record: str

    def on(self, device: str) -> bool:
        """Was it made on this class of device?"""
        seen = self.observation
        return device in ("any", seen.device) or (
            seen.device == "gpu" and device in MODELS and MODELS[device] in seen.model
        )

    @property
    def place(self) -> str:
        return self.observation.model or self.observation.device


def read(records: Path, papers: Sequence[Paper]) -> dict[tuple[str, str], list[Found]]:
    """(claim, quantity) -> what the records below `records` observed, by folder.

    Raises ObservationError, naming file and entry, for bytes that the record beside them does not state, an entry that
    breaks the schema, and one of a claim, quantity or unit that the ledger does not have.
    """
    claims = {c.id: c for paper in papers for c in paper.claims if isinstance(c, Measured)}
    found: dict[tuple[str, str], list[Found]] = defaultdict(list)
    for path in sorted(records.glob(f"*/{FILE}")):
        content = path.read_bytes()
        record = json.loads((path.parent / "record.json").read_text(encoding="utf-8"))
        if record["artifacts"].get(FILE, {}).get("sha256") != hashlib.sha256(content).hexdigest():
            raise ObservationError(f"{path}: its digest differs from the one in record.json. Measure again.")
        try:
            entries = TypeAdapter(list[Observation]).validate_json(content)
        except ValidationError as error:
            raise ObservationError(f"{path}: {error.errors(include_url=False)[0]['msg']}. Measure again.") from error
        for entry in entries:
            claim, here = claims.get(entry.claim), f"{path}: {entry.claim}/{entry.quantity}"
            if claim is None or entry.quantity not in claim.values:
                raise ObservationError(f"{here}: no claim in claims/ has this quantity. Correct one of the two.")
            if entry.unit != claim.unit:
                raise ObservationError(f"{here}: observed in {entry.unit}, claimed in {claim.unit}. Correct one.")
            found[entry.claim, entry.quantity].append(Found(entry, path.parent.name))
    return found


def as_bytes(observations: Sequence[Observation]) -> bytes:
    """The file, sorted by claim and quantity."""
    rows = [each.model_dump() for each in sorted(observations, key=lambda each: (each.claim, each.quantity))]
    return (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode()
