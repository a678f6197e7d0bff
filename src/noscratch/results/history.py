"""The history of the verdicts: reports/verdicts.jsonl, kept in git, one line for each time that a verdict changed.

    date, commit        when, and the commit that was checked out
    claim, version      the claim
    digest              of what its file says, version apart: a claim does not change after its first verdict
    verdict, tier       of its headline
    figures             quantity -> estimate, interval_low, interval_high and n at that tier

`not-run` and `blocked` are no verdicts: a claim starts with none, and between the two nothing changes.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from noscratch.results import write_if_changed
from noscratch.results.claims import Claim, ClaimError, Paper

FILE = "verdicts.jsonl"
FIGURES = ("estimate", "interval_low", "interval_high", "n")
NONE = ("not-run", "blocked")


def digest(claim: Claim) -> str:
    """12 hex digits for all that a claim says, its version apart; a default says the same written out or not."""
    said = claim.model_dump(mode="json", exclude={"version"}, exclude_defaults=True)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def read(path: Path) -> list[dict[str, Any]]:
    """The lines, oldest first."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def check(papers: Sequence[Paper], path: Path) -> None:
    """Raise ClaimError, a line for each, for claims that were changed or removed after a verdict without a new
    version."""
    claims = {claim.id: claim for paper in papers for claim in paper.claims}
    last = {line["claim"]: line for line in read(path)}
    errors = []
    for name, line in last.items():
        claim = claims.get(name)
        if claim is None:
            errors.append(f"{name}: it had the verdict {line['verdict']} on {line['date']} and is no longer in claims/")
        elif claim.version < line["version"] or (claim.version == line["version"] and digest(claim) != line["digest"]):
            errors.append(
                f"{name}: changed after its verdict of {line['date']}; take the change back, or raise `version` above "
                f"{line['version']}"
            )
    if errors:
        raise ClaimError("A claim stays as it is after its first verdict.\n" + "\n".join(errors))


def append(reports: Path, papers: Sequence[Paper], commit: str | None) -> list[dict[str, Any]]:
    """Add a line for each claim whose headline in verdicts.parquet differs from its last line; returns the lines."""
    claims = {claim.id: claim for paper in papers for claim in paper.claims}
    path = reports / FILE
    before = read(path)
    last = {line["claim"]: line["verdict"] for line in before}
    rows = pq.read_table(reports / "verdicts.parquet").to_pylist()
    figures: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    for row in rows:
        if row["level"] == "quantity" and row["estimate"] is not None:
            figures[row["claim"], row["tier"]][row["quantity"]] = {name: row[name] for name in FIGURES}
    date = datetime.now(UTC).date().isoformat()
    new = [
        {
            "date": date,
            "commit": commit,
            "claim": row["claim"],
            "version": row["version"],
            "digest": digest(claims[row["claim"]]),
            "verdict": row["verdict"],
            "tier": row["tier"],
            "figures": figures[row["claim"], row["tier"]],
        }
        for row in rows
        if row["level"] == "headline" and _word(row["verdict"]) != _word(last.get(row["claim"], "not-run"))
    ]
    if new:
        write_if_changed(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in before + new).encode())
    return new


def _word(verdict: str) -> str:
    return "" if verdict in NONE else verdict
