"""Records: each lies at the hash of what it says of itself, and says what its files say."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from noscratch.audit.case import CURVES, PREDICTIONS, UNREADABLE, WEIGHTS, Case, Entry, Finding
from noscratch.plan import BASELINES, canonical_json
from noscratch.store import RECORD

RERUN = "Remove the folder and run the job again."
TOLERANCE = 1e-9  # between float64 scores of the same predictions by two versions of a library
HEADER = ["step", "split", "metric", "value"]
# What the splits of a finished run are, by kind: those that are scored, and those with predictions.
SCORED = {"pretrain": {"train"}, "tuning": {"train", "validation"}, "finetune": {"validation", "test"}}
PREDICTED = {"pretrain": set[str](), "tuning": set[str](), "finetune": {"validation", "test"}}

Curve = Mapping[tuple[str, str], Mapping[int, float]]  # (split, metric) -> step -> value


def check(case: Case) -> Iterator[Finding]:
    """Everything that a record alone, with what lies beside it and what it was made from, can be asked."""
    for entry in case.entries:
        yield from _address(entry)
    yield from _inputs(case)
    for entry in case.runs:
        if entry.done:
            yield from run(case, entry)


def run(case: Case, entry: Entry) -> Iterator[Finding]:
    """A finished run against its own curve and predictions, and the prepared data; where that fails, it is a finding
    too."""
    try:
        yield from _run(case, entry)
    except UNREADABLE as error:
        yield Finding(entry.at(RECORD), "record", f"it cannot be checked: {type(error).__name__} {error}", RERUN)


def _address(entry: Entry) -> Iterator[Finding]:
    record, place = entry.record, entry.at(RECORD)
    identity = {name: record[name] for name in ("kind", "settings", "code", "needs")}
    address = hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:12]
    if address != entry.address:
        got = f"its settings, code and needs hash to {address}, it says {entry.address}"
        yield Finding(place, "address", got, RERUN)
    cell, settings = record["cell"], record["settings"]
    label = str(record["name"])[13:].removeprefix(f"{entry.kind}-")
    if entry.kind != "bench":
        if record["name"] != f"{entry.address}-{entry.kind}-{label}":
            yield Finding(place, "address", f"its name {record['name']} is not of its address and kind", RERUN)
        if entry.place == "store" and entry.folder.name != record["name"]:
            yield Finding(place, "address", f"it lies in the folder of {entry.folder.name}", RERUN)
    if cell is None:
        return
    named = {name: settings.get(name) for name in cell}
    if named != cell:
        yield Finding(place, "address", f"its cell is {cell}, its settings are for {named}", RERUN)
    names = f"{cell['tier']}-{cell['task']}-{cell['backbone']}-{cell['protocol']}-seed{cell['seed']}"
    if label != names and not label.startswith(f"{names}-"):
        yield Finding(place, "address", f"its cell is {names}, its name {record['name']}", RERUN)
    inside = f"{cell['tier']}/{cell['task']}/{cell['backbone']}/{cell['protocol']}/seed{cell['seed']}"
    if entry.place in ("runs", "published") and not entry.folder.parent.as_posix().endswith(f"/{inside}"):
        yield Finding(place, "address", f"it is the record of {inside}, in another place", RERUN)


def _inputs(case: Case) -> Iterator[Finding]:
    """The digests of the records that a job read are those of the records at these addresses."""
    digests: dict[str, set[str]] = defaultdict(set)
    for entry in case.entries:
        if entry.place != "bench":
            digests[entry.address].add(entry.sha256)
    for entry in case.entries:
        if entry.record["state"] == "blocked":
            continue
        needs, inputs = entry.record["needs"], entry.record["inputs"]
        if entry.kind != "bench" and needs.keys() != inputs.keys():
            yield Finding(entry.at(RECORD), "inputs", f"it needs {sorted(needs)} and read {sorted(inputs)}", RERUN)
        for role, address in needs.items():
            if role in inputs and digests[address] and inputs[role] not in digests[address]:
                here = ", ".join(sorted(digest[:12] for digest in digests[address]))
                got = f"it read {role} {address} with sha256 {inputs[role][:12]}, here it has {here}"
                yield Finding(entry.at(RECORD), "inputs", got, "Find out which of the two was changed; run it again.")


# ---------------------------------------------------------------- one run


def _run(case: Case, entry: Entry) -> Iterator[Finding]:
    result, place = entry.record["result"], entry.at(RECORD)
    if WEIGHTS not in entry.record["artifacts"] and entry.cell[2] not in BASELINES:
        yield Finding(place, "record", "its weights are not among its artifacts", RERUN)
    curve = read_curve(entry.folder / CURVES)
    for split in sorted({split for split, _ in curve} - {"train", "validation"}):
        got = f"it has the split {split} at step {min(min(of) for (s, _), of in curve.items() if s == split)}"
        yield Finding(entry.at(CURVES), "test-once", got, RERUN)
    if set(result["metrics"]) != SCORED[entry.kind] and set(result["metrics"]) | {"train"} != SCORED[entry.kind]:
        got = f"a run of kind {entry.kind} scores {', '.join(result['metrics'])}"
        yield Finding(place, "test-once", got, RERUN)
    yield from _scored(case, entry)
    yield from _selection(entry, curve)
    if PREDICTED[entry.kind]:
        yield from _predictions(case, entry)
    elif PREDICTIONS in entry.record["artifacts"]:
        yield Finding(entry.at(PREDICTIONS), "test-once", f"a run of kind {entry.kind} has predictions", RERUN)


def _scored(case: Case, entry: Entry) -> Iterator[Finding]:
    """Every metric of the task is there for every split, none is extra; steps and examples are those it was told."""
    result, place, told = entry.record["result"], entry.at(RECORD), entry.record["settings"].get("train", {})
    if entry.cell[2] not in BASELINES and result["counts"]["steps"] != told.get("steps", result["counts"]["steps"]):
        yield Finding(place, "record", f"it took {result['counts']['steps']} steps of {told['steps']}", RERUN)
    prepared = case.needed(entry.record["needs"]["prepared"])
    if prepared is None:
        return
    meta = json.loads((prepared.folder / "meta.json").read_text(encoding="utf-8"))
    names = ["loss"] if entry.kind == "pretrain" else meta["metrics"]
    if result["primary"] != names[0]:
        yield Finding(place, "metrics", f"the primary metric is {names[0]}, it says {result['primary']}", RERUN)
    for split, values in result["metrics"].items():
        wanted = {"loss"} if split == "train" else {"loss", *names}
        if values.keys() != wanted:
            yield Finding(place, "metrics", f"{split} has {sorted(values)} of {sorted(wanted)}", RERUN)
    if result["examples"].keys() != {"train", *result["metrics"]}:
        yield Finding(place, "record", f"it counts examples of {sorted(result['examples'])}", RERUN)
    if entry.kind != "pretrain" and (rows := _rows(prepared.folder / "train.arrow")) != result["examples"]["train"]:
        got = f"it trained on {result['examples']['train']} examples, {rows} are prepared"
        yield Finding(place, "record", got, RERUN)


def _rows(path: Path) -> int:
    with pa.memory_map(str(path)) as file:
        return int(pa.ipc.open_file(file).read_all().num_rows)


def read_curve(path: Path) -> Curve:
    """A run's curve, every value as it was written."""
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    if not rows or rows[0] != HEADER:
        raise ValueError(f"{path.name} has the columns {', '.join(HEADER)}")
    curve: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for step, split, metric, value in rows[1:]:
        if int(step) in curve[split, metric]:
            raise ValueError(f"{path.name} has {split} {metric} at step {step} twice")
        curve[split, metric][int(step)] = float(value)
    return curve


def _selection(entry: Entry, curve: Curve) -> Iterator[Finding]:
    result, place = entry.record["result"], entry.at(RECORD)
    selection, primary, metrics = result["selection"], result["primary"], result["metrics"]
    step, value, steps = selection["step"], selection["value"], result["counts"]["steps"]
    if entry.kind == "pretrain":
        series = curve.get(("train", "loss"), {})
        if selection["rule"] != "final step" or step != steps:
            yield Finding(place, "selection", f"pretraining ends at step {steps}, and {step} was kept", RERUN)
        if not series or max(series) != steps or not series[steps] == value == metrics["train"]["loss"]:
            got = f"the loss at its last step is {value}, the curve ends at {max(series, default=0)}"
            yield Finding(entry.at(CURVES), "curves", got, RERUN)
        return
    baseline = entry.cell[2] in BASELINES
    if not (
        selection["rule"] == f"highest validation {primary}, the earliest of equals"
        or (baseline and selection["rule"].startswith((f"highest validation {primary} over", "nothing to choose")))
    ):
        yield Finding(place, "selection", f"it selects by {selection['rule']!r}", RERUN)
    if value != metrics["validation"][primary]:
        got = f"validation {primary} is {metrics['validation'][primary]}, it selected by {value}"
        yield Finding(place, "selection", got, RERUN)
    series = curve.get(("validation", primary), {})
    if not series:
        yield Finding(entry.at(CURVES), "curves", f"it has no validation {primary}", RERUN)
        return
    best = min(series, key=lambda at: (-series[at], at))
    if step not in series or series[step] != value:
        got = f"validation {primary} at step {step} is {series.get(step)}, the record says {value}"
        yield Finding(entry.at(CURVES), "curves", got, RERUN)
    elif (best, series[best]) != (step, value) and not baseline:
        got = f"step {step} with validation {primary} {value} was kept, step {best} has {series[best]}"
        yield Finding(place, "selection", got, RERUN)
    elif series[best] != value:
        yield Finding(place, "selection", f"{value} was kept, the best on validation is {series[best]}", RERUN)
    for name, stated in metrics["validation"].items():
        at = curve.get(("validation", name), {})
        if at and at.get(step) != stated:
            got = f"validation {name} at step {step} is {at.get(step)}, the record says {stated}"
            yield Finding(entry.at(CURVES), "curves", got, RERUN)
    if not baseline and max(series) != steps:
        yield Finding(entry.at(CURVES), "curves", f"it ends at step {max(series)} of {steps}", RERUN)


def _predictions(case: Case, entry: Entry) -> Iterator[Finding]:
    result, place = entry.record["result"], entry.at(PREDICTIONS)
    predictions = case.predictions(entry)
    if set(predictions) != PREDICTED["finetune"]:
        yield Finding(place, "test-once", f"it predicts {', '.join(predictions)}", RERUN)
    prepared = case.needed(entry.record["needs"]["prepared"])
    for split in sorted(predictions.keys() & result["metrics"].keys()):
        found = predictions[split]
        if len(found.ids) != len(set(found.ids)):
            yield Finding(place, "predictions", f"an example of {split} is predicted twice", RERUN)
        if len(found.ids) != result["examples"][split]:
            got = f"{len(found.ids)} examples of {split}, the record says {result['examples'][split]}"
            yield Finding(place, "predictions", got, RERUN)
        if prepared is not None:
            yield from _against(prepared, split, found.ids, found.target, place)
        for metric, stated in result["metrics"][split].items():
            if metric == "loss":  # needs probabilities; the curve has that of validation
                continue
            again = recomputed(metric, found.target, found.prediction)
            if again is None:
                yield Finding(entry.at(RECORD), "metrics", f"there is no metric {metric}", RERUN)
            elif not math.isclose(stated, again, rel_tol=0.0, abs_tol=TOLERANCE):
                got = f"{split} {metric} is {stated!r} in the record, {again!r} by its predictions"
                yield Finding(entry.at(RECORD), "metrics", got, RERUN)


def _against(prepared: Entry, split: str, ids: list[str], target: NDArray[np.float64], place: str) -> Iterator[Finding]:
    wanted, labels = labels_of(prepared.folder / f"{split}.arrow")
    if sorted(wanted) != sorted(ids):
        lacking, foreign = len(set(wanted) - set(ids)), len(set(ids) - set(wanted))
        got = f"of the {len(wanted)} prepared examples of {split} {lacking} are missing, {foreign} are not among them"
        yield Finding(place, "predictions", got, RERUN)
        return
    of = dict(zip(wanted, labels.tolist(), strict=True))
    if wrong := [name for name, value in zip(ids, target.tolist(), strict=True) if of[name] != value]:
        got = f"the label of {len(wrong)} examples of {split} is not the prepared one ({wrong[0]} first)"
        yield Finding(place, "predictions", got, RERUN)


def labels_of(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    """Ids and labels of a prepared split."""
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all().select(["id", "label"])
        return table["id"].to_pylist(), table["label"].to_numpy().astype(np.float64)


def recomputed(metric: str, target: NDArray[np.float64], prediction: NDArray[np.float64]) -> float | None:
    """A score by scikit-learn or scipy alone, none of our code between; None for a metric that does not exist.

    A constant side has no correlation, which is 0 here as everywhere in the project.
    """
    from scipy import stats
    from sklearn import metrics

    correlations: dict[str, Any] = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}
    if metric == "accuracy":
        return float(metrics.accuracy_score(target, prediction))
    if metric == "f1":
        return float(metrics.f1_score(target, prediction, pos_label=1, average="binary", zero_division=0.0))
    if metric == "matthews":
        return float(metrics.matthews_corrcoef(target, prediction))
    if metric in correlations:
        constant = np.ptp(target) == 0 or np.ptp(prediction) == 0
        return 0.0 if constant else float(correlations[metric](target, prediction).statistic)
    return None
