"""Judge, all of it: verdicts, gains at equal compute, cells summed up, runs flagged; what `noscratch judge` writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from noscratch import params
from noscratch.results import cells, compute, flags, history, judge
from noscratch.results.claims import Cell, load

# Report -> the columns that name one of its rows.
KEYS: Mapping[str, Sequence[str]] = {
    "verdicts.parquet": judge.KEY,
    "compute.parquet": compute.KEY,
    "cells.parquet": cells.KEY,
    "flags.parquet": flags.KEY,
}


def judge_all(root: Path, planned: Iterable[tuple[str, str, str]]) -> None:
    """Write every report of KEYS into root/reports from the results, curves and records there, root/claims and what
    root/params.yaml expects.

    `planned` holds (task, backbone, protocol) of the grid at any tier. Raises ClaimError for a claim that changed
    after its verdict.
    """
    reports, ledger, grid = root / "reports", root / "claims", {Cell(*cell) for cell in planned}
    history.check(load(ledger), reports / history.FILE)
    judge.judge(reports, ledger, grid)
    compute.report(reports, ledger, grid)
    flags.report(reports, ledger, params.expectations(params.load(root)))
