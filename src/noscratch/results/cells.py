"""Cells: what the seeds of one cell say together, its mean on test and when its runs began to learn.

`reports/cells.parquet` has one row = cell without seed x settings, for fine-tuned runs, columns as in SCHEMA, sorted by
KEY:

    tier, task, backbone, protocol           the cell
    code, setting                            as in results.parquet: rows of one cell that differ here differ in more
                                             than the seed
    metric                                   the task's primary one
    runs                                     how many runs there are, in whatever state
    n, seeds                                 how many finished, and a JSON list of their seeds
    mean, deviation                          of the test score over seeds; no deviation of one seed
    interval_low, interval_high              95 % t interval of the mean; null below two seeds
    constant                                 how many of the finished runs predict one constant on test
    chance                                   validation score of the most frequent class; null where that baseline lacks
    threshold                                validation score from which a run has learned: chance plus five points, or
                                             plus 3.5 standard errors of a score at chance where that is more
    budget                                   the last evaluated step
    onsets                                   JSON: seed -> first evaluated step above the threshold, null for a run that
                                             stayed at chance to the end of its budget; one that diverged, or whose best
                                             checkpoint predicts one constant on validation, counts as such
    learned, learned_low, learned_high       share of the runs that have an onset, with 95 % interval (Clopper-Pearson)
    onset_median, onset_low, onset_high      median onset by Kaplan-Meier with 95 % interval; null beyond the budget
    onset_p                                  log-rank test of these onsets against those from scratch, adjusted by Holm
                                             within tier and task; null from scratch, and below two runs in either

Baselines have no steps and so no onset.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from noscratch.results import rows_of, statistics, survival
from noscratch.results.collect import CURVES_SCHEMA, RecordError, Row
from noscratch.results.survival import Onset

KEY = ("tier", "task", "backbone", "protocol", "code", "setting")
SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in (*KEY, "metric")),
        *(pa.field(name, pa.int64(), nullable=False) for name in ("runs", "n")),
        pa.field("seeds", pa.string(), nullable=False),
        *(pa.field(name, pa.float64()) for name in ("mean", "deviation", "interval_low", "interval_high")),
        pa.field("constant", pa.int64(), nullable=False),
        *(pa.field(name, pa.float64()) for name in ("chance", "threshold")),
        pa.field("budget", pa.int64()),
        pa.field("onsets", pa.string(), nullable=False),
        *(pa.field(name, pa.float64()) for name in ("learned", "learned_low", "learned_high")),
        *(pa.field(name, pa.float64()) for name in ("onset_median", "onset_low", "onset_high", "onset_p")),
    ]
)
BASELINES = ("majority", "bag", "cnn")
CHANCE = "majority"
FROM = "scratch"

Curves = Mapping[tuple[str, str], Sequence[tuple[int, float]]]  # (run, metric) -> its (step, value) on validation


@dataclass
class Group:
    """The fine-tuned runs of one row: seed -> state, test score, onset; the seeds of constant predictions on test, and
    on validation."""

    tier: str
    task: str
    backbone: str
    protocol: str
    code: str
    setting: str
    metric: str = ""
    examples: int = 0
    states: dict[int, str] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    constant: set[int] = field(default_factory=set)
    constant_validation: set[int] = field(default_factory=set)
    chance: float | None = None
    threshold: float | None = None
    budget: int | None = None
    onsets: dict[int, Onset] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, ...]:
        return self.tier, self.task, self.backbone, self.protocol, self.code, self.setting

    def run(self, seed: int) -> str:
        """The name of a run in curves.parquet."""
        return f"{self.tier}/{self.task}/{self.backbone}/{self.protocol}/seed{seed}/finetune"


def groups(rows: Iterable[Row], curves: Curves) -> list[Group]:
    """The groups of the rows of results.parquet, by key; onsets are read from the curves."""
    found: dict[tuple[str, ...], Group] = {}
    chance: dict[tuple[str, str], float] = {}
    for row in rows:
        if row["phase"] != "finetune":
            continue
        names = [row[name] for name in KEY]
        group = found.setdefault(tuple(names), Group(*names))
        group.states[row["seed"]] = row["state"]
        if row["state"] != "done" or not row["primary"]:
            continue
        group.metric = row["metric"]
        alike = {row["seed"]} if row["degenerate"] else set()
        if row["split"] == "test":
            group.scores[row["seed"]] = row["value"]
            group.constant |= alike
        elif row["split"] == "validation":
            group.examples = row["examples"]
            group.constant_validation |= alike
            if row["backbone"] == CHANCE:
                chance[row["tier"], row["task"]] = row["value"]
    for group in found.values():
        if group.backbone not in BASELINES and group.examples:
            group.chance = chance.get((group.tier, group.task))
        if group.chance is not None:
            group.threshold = survival.threshold(group.chance, group.metric, group.examples)
            _read_onsets(group, group.threshold, curves)
    return [found[key] for key in sorted(found)]


def table(found: Iterable[Group]) -> pa.Table:
    """cells.parquet."""
    found = list(found)
    against_scratch = _log_rank(found)
    return pa.Table.from_pylist([_row(group, against_scratch.get(group.key)) for group in found], schema=SCHEMA)


def read_curves(path: Path) -> Curves:
    """The curves of curves.parquet on validation."""
    if not path.is_file():
        raise RecordError(f"{path}: there are no curves yet. Run `noscratch collect` first.")
    if not pq.read_schema(path).equals(CURVES_SCHEMA):
        raise RecordError(f"{path}: its columns are not those of this version. Run `noscratch collect` again.")
    table = pq.read_table(path, filters=[("split", "=", "validation")])
    found: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for run, metric, step, value in rows_of(table, "run", "metric", "step", "value"):
        found[run, metric].append((step, value))
    return dict(found)


def _read_onsets(group: Group, threshold: float, curves: Curves) -> None:
    for seed in group.scores:
        curve = curves.get((group.run(seed), group.metric), ())
        onset = survival.onset(curve, threshold)
        group.budget = max(group.budget or 0, curve[-1][0])
        # The class that prevails in training need not prevail in validation: the luckiest constant may be above it.
        group.onsets[seed] = Onset(curve[-1][0], False) if seed in group.constant_validation else onset
    if group.budget is not None:  # a run that diverged never learns
        lost = [seed for seed, state in group.states.items() if state == "diverged"]
        group.onsets |= {seed: Onset(group.budget, False) for seed in lost}


def _log_rank(found: Sequence[Group]) -> dict[tuple[str, ...], float]:
    """The adjusted p-value of every group of two onsets or more, where there is such a group from scratch."""

    def place(group: Group) -> tuple[str, ...]:
        return group.tier, group.task, group.backbone, group.code

    several = [group for group in found if len(group.onsets) > 1]
    scratch = {place(group): group for group in several if group.protocol == FROM}
    families: dict[tuple[str, str], dict[tuple[str, ...], float]] = defaultdict(dict)
    for group in several:
        other = scratch.get(place(group))
        if other is not None and group.protocol != FROM:
            p = survival.log_rank(list(group.onsets.values()), list(other.onsets.values()))
            families[group.tier, group.task][group.key] = p
    return {
        key: p
        for family in families.values()
        for key, p in zip(family, statistics.holm(list(family.values())), strict=True)
    }


def _row(group: Group, onset_p: float | None) -> Row:
    row: Row = dict(zip(KEY, group.key, strict=True)) | {
        "metric": group.metric,
        "runs": len(group.states),
        "n": len(group.scores),
        "seeds": json.dumps(sorted(group.scores)),
        "constant": len(group.constant),
        "chance": group.chance,
        "threshold": group.threshold,
        "budget": group.budget,
        "onsets": json.dumps({str(s): each.step if each.learned else None for s, each in sorted(group.onsets.items())}),
        "onset_p": onset_p,
    }
    scores = [group.scores[seed] for seed in sorted(group.scores)]
    if len(scores) == 1:
        row["mean"] = scores[0]
    elif scores:
        estimate = statistics.mean(scores)
        row |= {"mean": estimate.value, "deviation": estimate.error * len(scores) ** 0.5}
        row["interval_low"], row["interval_high"] = statistics.interval(estimate)
    if group.onsets:
        learning = survival.learning(list(group.onsets.values()))
        row |= {"learned": learning.share, "onset_median": learning.median}
        row["learned_low"], row["learned_high"] = learning.share_interval
        row["onset_low"], row["onset_high"] = learning.median_interval
    return row
