"""Collect: the records of the present plan, and those that were published before, become the tables of results.

Published records lie below `reports/records/runs/<tier>/<task>/<backbone>/<protocol>/seed<k>/<phase>/` in git: record,
provenance, curves and predictions of mini and paper runs, without weights. A cell that the present plan has finished
stands for the published one; every other published one counts, whatever the plan says by now.

`reports/results.parquet` has one row = cell x phase x split x metric, columns as in SCHEMA, sorted by KEY, in which no
two rows agree. A run that is blocked, failed or diverged has one row: split "test", its primary metric if its record
names it and "" otherwise, value null. Its columns:

    tier, task, backbone, protocol, seed     the cell
    phase                                    "pretrain" | "finetune"
    split                                    "train" (pretrain) | "validation" | "test" (finetune)
    metric, primary, value                   its name; is it the task's primary one; its value (accuracy 0.5 = 50 %)
    examples                                 examples in the split; null where the run did not finish
    degenerate                               all predictions of the split are one value; null without predictions
    predictions                              12 hex digits for the predictions of the split; null without
    state, reason                            "done" | "failed" | "blocked" | "diverged"; why, "" where done
    address, pretrain_address                of the run; of the run whose weights it starts from, "" where none
    selected_step                            the step that the selection rule chose
    parameters, steps, tokens_real, tokens_computed, flops      counts of the run
    matched                                  what a scratch-matched run spends as much of: "flops" | "steps" | "energy"
    kernels                                  JSON: kernel -> the backend that ran
    code                                     "current": a tier's present plan names the address; "earlier": none does,
                                             since settings or code changed after the run was published
    setting                                  12 hex digits for the run's settings, seed apart, and code: runs of one
                                             cell that differ in it are not repetitions of each other

`reports/curves.parquet` has every point of the curves of all finished runs: run ("tier/task/backbone/protocol/seed<k>/
phase"), step, split, metric, value. `reports/curves.csv`, which git keeps and `dvc plots` draws, has of the fine-tuned
ones the primary metric on validation: run, step, value.

Nothing is taken on trust: predictions and curves must have the digests that the record states, every metric but the
loss is computed again from the predictions, and two seeds of a cell may not be one run under two names.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from noscratch.errors import NoscratchError
from noscratch.metrics import NAMES, score
from noscratch.results import parquet_bytes, parquet_table, rows_of, write_if_changed

CELL = ("tier", "task", "backbone", "protocol", "seed")
KEY = (*CELL, "phase", "split", "metric")
SCHEMA = pa.schema(
    [
        pa.field("tier", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("backbone", pa.string(), nullable=False),
        pa.field("protocol", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("phase", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("primary", pa.bool_(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("examples", pa.int64()),
        pa.field("degenerate", pa.bool_()),
        pa.field("predictions", pa.string()),
        pa.field("state", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("address", pa.string(), nullable=False),
        pa.field("pretrain_address", pa.string(), nullable=False),
        pa.field("selected_step", pa.int64()),
        pa.field("parameters", pa.int64()),
        pa.field("steps", pa.int64()),
        pa.field("tokens_real", pa.int64()),
        pa.field("tokens_computed", pa.int64()),
        pa.field("flops", pa.float64()),
        pa.field("matched", pa.string()),
        pa.field("kernels", pa.string(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("setting", pa.string(), nullable=False),
    ]
)
PUBLISHED = Path("records", "runs")
COUNTS = ("parameters", "steps", "tokens_real", "tokens_computed", "flops")
CURVES_SCHEMA = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)
CURVES = CURVES_SCHEMA.names[1:]  # of a run's own file
PLOTTED = ("run", "step", "value")
TOLERANCE = 1e-9  # between a stored metric and the one computed again: both are float64 of the same predictions

Row = dict[str, Any]


class RecordError(NoscratchError):
    """A record that breaks the contract or contradicts what lies beside it."""


@dataclass(frozen=True)
class Run:
    """One folder of a run: its record, and its place in the grid as "tier/task/backbone/protocol/seed<k>/phase"."""

    folder: Path
    record: dict[str, Any]
    code: str = "current"

    @property
    def cell(self) -> tuple[str, str, str, str, int]:
        cell = self.record["cell"]
        return cell["tier"], cell["task"], cell["backbone"], cell["protocol"], cell["seed"]

    @property
    def phase(self) -> str:
        return self.record["kind"]

    @property
    def done(self) -> bool:
        return self.record["state"] == "done"

    @property
    def name(self) -> str:
        *names, seed = self.cell
        return "/".join([*names, f"seed{seed}", self.phase])

    def file(self, name: str) -> bytes:
        """The bytes of an artifact, refused unless the record states their digest."""
        stated = self.record["artifacts"].get(name)
        path = self.folder / name
        if stated is None or not path.is_file():
            raise RecordError(f"{self.folder}: a finished run has {name} and its digest; one of them is missing.")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != stated["sha256"]:
            raise RecordError(f"{path}: its digest differs from the one in record.json, so one of them was changed.")
        return content


def collect(runs: Sequence[Path], reports: Path, planned: Collection[str] = ()) -> None:
    """Write results.parquet, metrics.json, curves.parquet and curves.csv into `reports`; see `tables`."""
    # Only when all are made: a refused record leaves the reports as they were.
    for name, report in tables(runs, reports / PUBLISHED, planned).items():
        write_if_changed(reports / name, report)


def tables(runs: Sequence[Path], published: Path, planned: Collection[str] = ()) -> dict[str, bytes]:
    """Every report of this module from the record of each folder in `runs`, the view of the present plan, and the
    records below `published`.

    `planned` holds the addresses that some tier of params.yaml names.

    Raises RecordError, naming the folder, for a record that breaks the contract, a metric that differs from the one
    computed from the predictions by more than 1e-9, a changed artifact, a cell given twice, or seeds that are not
    distinct.
    """
    read = [_read(folder) for folder in runs]
    finished = {run.cell for run in read if run.record["state"] != "blocked"}
    earlier = [run for run in _published(published, planned) if run.cell not in finished]
    # What cannot be had here may have been had elsewhere.
    had = {run.cell for run in earlier}
    read = sorted([*earlier, *(run for run in read if run.cell not in had)], key=lambda run: (run.cell, run.phase))
    _check_distinct(read)
    rows = [row for run in read for row in _rows(run)]
    rows.sort(key=lambda row: tuple(row[name] for name in KEY))
    curves = _curves(read)
    return {
        "results.parquet": parquet_bytes(pa.Table.from_pylist(rows, schema=SCHEMA)),
        "metrics.json": (json.dumps(_summary(rows), indent=2, sort_keys=True) + "\n").encode(),
        "curves.parquet": parquet_bytes(curves),
        "curves.csv": _plotted(read, curves),
    }


def read_results(path: Path) -> list[Row]:
    """The rows of results.parquet, its schema and primary key checked."""
    if not path.is_file():
        raise RecordError(f"{path}: there are no results yet. Run `noscratch collect` first.")
    table = pq.read_table(path)
    if not table.schema.equals(SCHEMA):
        raise RecordError(f"{path}: its columns are not those of this version. Run `noscratch collect` again.")
    if table.group_by(list(KEY)).aggregate([]).num_rows != table.num_rows:
        raise RecordError(f"{path}: two rows have one primary key {KEY}. Run `noscratch collect` again.")
    return table.to_pylist()


def _read(folder: Path) -> Run:
    try:
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        run = Run(folder, record)
        valid = (
            record["schema"] == 1
            and record["kind"] in ("pretrain", "finetune")
            and record["state"] in ("done", "failed", "blocked", "diverged")
            and isinstance(run.cell[-1], int)
            and isinstance(record["artifacts"], dict)
            and isinstance(record["needs"], dict)
            and isinstance(record["code"], str)
            and record["settings"].get("seed", run.cell[-1]) == run.cell[-1]
        )
    except FileNotFoundError:
        raise RecordError(f"{folder}: no record.json. Build the run first, or leave it out.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{folder / 'record.json'}: not a record of a run ({error!r}).") from error
    if not valid:
        raise RecordError(
            f"{folder / 'record.json'}: not a record of a pretraining or fine-tuning run of this version."
        )
    return run


def _published(folder: Path, planned: Collection[str]) -> Iterator[Run]:
    for path in sorted(folder.rglob("record.json")):
        run = _read(path.parent)
        place = path.parent.relative_to(folder).as_posix()
        if run.name != place:
            raise RecordError(f"{path}: the record is that of {run.name}. Move its folder there.")
        if run.cell[0] == "smoke" or run.record["state"] == "blocked":
            raise RecordError(
                f"{path}: smoke runs and blocked ones are no evidence and are not published. Remove the folder."
            )
        yield replace(run, code="current" if run.record["address"] in planned else "earlier")


def _setting(record: dict[str, Any]) -> str:
    settings = {name: value for name, value in record["settings"].items() if name != "seed"}
    text = json.dumps([settings, record["code"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _rows(run: Run) -> Iterator[Row]:
    record = run.record
    result = record["result"] or {}
    base: Row = dict(zip(CELL, run.cell, strict=True)) | {
        "phase": run.phase,
        "state": record["state"],
        "reason": record["reason"] or "",
        "address": record["address"],
        "pretrain_address": record["needs"].get("pretrained", ""),
        "selected_step": None,
        "matched": record["settings"].get("train", {}).get("matched"),
        "kernels": json.dumps(result.get("kernels", {}), sort_keys=True),
        "code": run.code,
        "setting": _setting(record),
    }
    base |= {name: result.get("counts", {}).get(name) for name in COUNTS}
    if not run.done:
        primary = result.get("primary", "")
        unknown = dict.fromkeys(("value", "examples", "degenerate", "predictions"))
        yield base | {"split": "test", "metric": primary, "primary": primary != ""} | unknown
        return
    try:
        base["selected_step"] = result["selection"]["step"]
        predictions = _predictions(run) if run.phase == "finetune" else {}
        for split, values in result["metrics"].items():
            examples = result["examples"][split]
            target, prediction = predictions.get(split, (None, None))
            if run.phase == "finetune":
                _check_metrics(run, split, values, examples, target, prediction)
            degenerate = None if prediction is None else bool(np.ptp(prediction) == 0)
            digest = None if prediction is None else hashlib.sha256(prediction.tobytes()).hexdigest()[:12]
            for metric, value in values.items():
                yield base | {
                    "split": split,
                    "metric": metric,
                    "primary": metric == result["primary"],
                    "value": float(value),
                    "examples": examples,
                    "degenerate": degenerate,
                    "predictions": digest,
                }
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{run.folder / 'record.json'}: the result of a finished run lacks {error}.") from error


def _predictions(run: Run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split -> (target, prediction), each float64 of shape (examples of the split,)."""
    table = parquet_table(run.file("predictions.parquet"), ["id", "split", "target", "prediction"])
    splits = {}
    for split in pc.unique(table["split"]).to_pylist():
        part = table.filter(pc.equal(table["split"], split))
        if len(pc.unique(part["id"])) != len(part):
            raise RecordError(f"{run.folder}: predictions.parquet scores one example of {split} more than once.")
        splits[split] = part["target"].to_numpy(), part["prediction"].to_numpy()
    return splits


def _check_metrics(
    run: Run,
    split: str,
    values: dict[str, float],
    examples: int,
    target: np.ndarray | None,
    prediction: np.ndarray | None,
) -> None:
    if target is None or prediction is None or len(target) != examples:
        found = 0 if target is None else len(target)
        raise RecordError(
            f"{run.folder}: the record scores {examples} examples of {split}; predictions.parquet has {found}."
        )
    for metric, stored in values.items():
        if metric == "loss":
            continue
        if metric not in NAMES:
            raise RecordError(f"{run.folder}: unknown metric {metric!r}; noscratch.metrics has {', '.join(NAMES)}.")
        again = score(metric, target, prediction)
        if not math.isclose(stored, again, rel_tol=0.0, abs_tol=TOLERANCE):
            raise RecordError(
                f"{run.folder}: the record says {metric} = {stored!r} on {split}, its predictions say {again!r}. "
                "Delete the run and make it again."
            )


def _check_distinct(runs: Sequence[Run]) -> None:
    """Every cell and phase once; and no two seeds of a cell with the same loss curve to the last digit."""
    names: dict[str, Run] = {}
    curves: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        if run.name in names:
            raise RecordError(f"{run.folder} and {names[run.name].folder} are both {run.name}; keep one of them.")
        names[run.name] = run
        if not run.done:
            continue
        digest = hashlib.sha256(run.file("curves.csv")).hexdigest()
        other = curves.setdefault((*run.cell[:-1], run.phase, digest), run)
        if other is not run:
            raise RecordError(
                f"{run.folder} and {other.folder} have the same curves, so their seeds are not distinct. "
                "Delete the copy and run its own seed."
            )


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    """tier -> task -> backbone -> protocol -> {metric: mean over seeds, "n": seeds, "seeds": {seed: value}}."""
    values: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row["state"] == "done" and row["phase"] == "finetune" and row["split"] == "test" and row["primary"]:
            values[(*(row[name] for name in CELL[:-1]), row["metric"])][str(row["seed"])] = row["value"]
    summary: dict[str, Any] = {}
    for (*names, metric), seeds in values.items():
        level = summary
        for name in names:
            level = level.setdefault(name, {})
        level |= {metric: fmean(seeds.values()), "n": len(seeds), "seeds": seeds}
    return summary


def _curves(runs: Sequence[Run]) -> pa.Table:
    """The curves of all finished runs, in the order of `runs`."""
    tables = [CURVES_SCHEMA.empty_table()]
    for run in runs:
        if run.done:
            curve = _curve(run)
            tables.append(curve.add_column(0, "run", [pa.repeat(run.name, len(curve))]).cast(CURVES_SCHEMA))
    return pa.concat_tables(tables).combine_chunks()


def _curve(run: Run) -> pa.Table:
    types = {name: CURVES_SCHEMA.field(name).type for name in CURVES}
    try:
        options = pa_csv.ConvertOptions(column_types=types, include_columns=CURVES, null_values=[])
        memory = pa.BufferOutputStream()  # Arrow's own, since threads of Arrow's read it: see `parquet_table`
        memory.write(run.file("curves.csv"))
        return pa_csv.read_csv(pa.BufferReader(memory.getvalue()), convert_options=options)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise RecordError(
            f"{run.folder}: curves.csv must have the columns {', '.join(CURVES)}; it cannot be read so ({error})."
        ) from error


def _plotted(runs: Sequence[Run], curves: pa.Table) -> bytes:
    """curves.csv."""
    primary = {run.name: run.record["result"]["primary"] for run in runs if run.done and run.phase == "finetune"}
    validation = curves.filter(pc.equal(curves["split"], "validation"))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(PLOTTED)
    points = rows_of(validation, "metric", *PLOTTED)
    writer.writerows((run, step, value) for metric, run, step, value in points if primary.get(run) == metric)
    return out.getvalue().encode()
