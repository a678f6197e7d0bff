"""What runs will cost, before it is spent: hours, memory, disk and energy, from the price of each kind of run.

Prices come from a few steps on this device (noscratch.probes), or are predicted for a class of device that is not at
hand (noscratch.roofline). A run takes

    start                           imports, data, model, up to the end of the first step
    first x lengths                 what the first batch of a length costs more than later ones: tables, plans
    steps x mean of t over the      t = a + tokens x c(length): a from a part of a batch, c between the lengths; the
        batches that it will see    shapes of a run's batches are known without reading them (noscratch.run_data)
    evaluations x share x sum       share from an evaluation, the sum over the batches of the split
        of t over the split
    end                             the test set, counting operations, writing
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

import numpy as np

from noscratch.errors import NoscratchError
from noscratch.plan import BASELINES, Cell, Job, Plan
from noscratch.results.claims import Paper, Trained
from noscratch.run_data import Shape

CHECKPOINTS = 2 * 4
"""Two checkpoints lie beside a run, each of the weights, two moments and the best weights."""


@dataclass(frozen=True)
class Time:
    """Seconds: elapsed, and of all processors."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Time) -> Time:
        return Time(self.wall + other.wall, self.cpu + other.cpu)

    def __mul__(self, factor: float) -> Time:
        return Time(self.wall * factor, self.cpu * factor)


@dataclass(frozen=True)
class Price:
    """What one kind of run costs by the piece. evaluation: of the validation set; end: with the test set. lengths: how
    many there are, of which the probe met `met`. flops: of a mean step. memory (of the probe), growth (with a further
    length), disk (what stays) and scratch (checkpoints): bytes. pieces: in how many a batch went through. watts: None
    where no counter can be read. made_up: not from prepared data."""

    start: Time
    first: Time
    lengths: int
    met: int
    step: Time
    evaluation: Time
    end: Time
    flops: float
    memory: int
    growth: float
    pieces: int
    device_memory: int
    disk: int
    scratch: int
    watts: float | None
    made_up: bool


class Clock:
    """t(batch) = a + sum over its parts of tokens x c(length), from the times of some batches."""

    def __init__(self, times: Sequence[tuple[Shape, float]]) -> None:
        """The times of whole batches, and of one that is smaller than they are (or none: a is then 0)."""
        whole = max(tokens_of(shape) for shape, _ in times) / 2
        full = sorted((_length(shape), tokens_of(shape), time) for shape, time in times if tokens_of(shape) > whole)
        parts = [(_length(shape), tokens_of(shape), time) for shape, time in times if tokens_of(shape) <= whole]
        self._fixed = 0.0
        if parts:
            length, tokens, time = parts[-1]
            near = min(full, key=lambda batch: abs(batch[0] - length))
            self._fixed = min(max(0.0, (time * near[1] - near[2] * tokens) / (near[1] - tokens)), full[0][2])
        self._lengths = [length for length, _, _ in full]
        self._each = [max(0.0, time - self._fixed) / tokens for _, tokens, time in full]

    def __call__(self, shape: Shape) -> float:
        """Seconds of a batch."""
        each = np.interp([length for _, length in shape], self._lengths, self._each)
        return self._fixed + sum(float(c) * count * length for c, (count, length) in zip(each, shape, strict=True))


def tokens_of(shape: Shape) -> int:
    """Positions that are computed."""
    return sum(count * length for count, length in shape)


def _length(shape: Shape) -> float:
    """The mean length over the tokens."""
    return sum(count * length**2 for count, length in shape) / tokens_of(shape)


@dataclass(frozen=True)
class Cost:
    """What jobs will cost: memory and scratch are the most of any of them, disk is what stays of all; joules are None
    where one is unknown."""

    time: Time = Time()
    memory: int = 0
    disk: int = 0
    scratch: int = 0
    joules: float | None = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.time + other.time,
            max(self.memory, other.memory),
            self.disk + other.disk,
            max(self.scratch, other.scratch),
            None if self.joules is None or other.joules is None else self.joules + other.joules,
        )

    def times(self, runs: int) -> Cost:
        """Of so many runs, one after the other."""
        joules = None if self.joules is None else self.joules * runs
        return Cost(self.time * runs, self.memory, self.disk * runs, self.scratch, joules)


class DoesNotFit(NoscratchError):  # noqa: N818 (an outcome)
    """A run that needs more memory than the device has."""


class Prices(Protocol):
    """Where prices come from: probes on this device, or a device class."""

    def price(self, job: Job) -> Price:
        """The price of the kind of run that a training job is."""
        ...


def select(plan: Plan, patterns: Sequence[str]) -> dict[Cell, list[Job]]:
    """The training jobs of each cell of the plan, pretraining first; of the cells that a pattern TASK/BACKBONE/PROTOCOL
    selects, with * for any text. Baselines, which take seconds, are left out."""
    chosen: dict[Cell, list[Job]] = {}
    for job in plan.of("finetune"):
        cell = job.cell
        if cell is None or cell.backbone in BASELINES:
            continue
        if not patterns or any(fnmatchcase(_name(cell), pattern) for pattern in patterns):
            chosen[cell] = [plan[job.needs["pretrained"]]] if "pretrained" in job.needs else []
            chosen[cell].append(job)
    if not chosen:
        raise NoscratchError(
            f"The {plan.params.run.tier} tier has no cell {', '.join(patterns)}. A pattern is TASK/BACKBONE/PROTOCOL, "
            "such as listops/*/scratch; `noscratch plan --kind finetune` lists the cells."
        )
    return chosen


def cost(prices: Prices, plan: Plan, job: Job) -> Cost:
    """What one training job of the plan costs. Raises DoesNotFit for one that the device has no memory for."""
    price, count = prices.price(job), steps(prices, plan, job)
    lengths = min(price.lengths, count)
    memory = price.memory + round(price.growth * (lengths - price.met))
    if memory > price.device_memory or price.pieces > 1:
        need = f"needs {memory / 2**30:.1f} GiB" if price.pieces == 1 else "has no room for a whole batch"
        raise DoesNotFit(
            f"{need}; the device has {price.device_memory / 2**30:.1f} GiB. Take a smaller batch_tokens, or set "
            "micro_tokens, so that a batch goes through in pieces"
        )
    evaluations = 0 if job.kind == "pretrain" else math.ceil(count / job.settings["train"]["evaluate_every"])
    time = price.start + price.first * (lengths - 1) + price.step * count
    time += price.evaluation * evaluations + price.end
    joules = None if price.watts is None else price.watts * time.wall
    return Cost(time, memory, price.disk, price.scratch, joules)


def steps(prices: Prices, plan: Plan, job: Job) -> int:
    """A job's steps; of a matched one, what the steps or operations of the runs that set its budget buy (energy is
    taken to go with operations)."""
    train = job.settings["train"]
    if "matched" not in train:
        return int(train["steps"])
    budget = [plan[job.needs[role]] for role in ("budget-pretrain", "budget-finetune")]
    if train["matched"] == "steps":
        return sum(steps(prices, plan, other) for other in budget)
    flops = sum(steps(prices, plan, other) * prices.price(other).flops for other in budget)
    return max(1, round(flops / prices.price(job).flops))


@dataclass(frozen=True)
class Costs:
    """Of cells by name, "task/backbone/protocol": how many seeds, and what one of them costs or why that is unknown;
    the sum over all seeds and all that they need; the cells that do not fit; the tasks that were made up."""

    cells: Mapping[str, tuple[int, Cost | str]]
    total: Cost
    unfit: tuple[str, ...]
    made_up: tuple[str, ...]


def costs(prices: Prices, plan: Plan, chosen: Mapping[Cell, Sequence[Job]]) -> Costs:
    """What the chosen cells of the plan cost (see `select`)."""
    seeds = Counter(_name(cell) for cell in chosen)
    found: dict[str, tuple[int, Cost | str]] = {}
    unfit: list[str] = []
    made_up: list[str] = []
    needed: dict[str, Job] = {}
    for cell, jobs in chosen.items():
        name = _name(cell)
        if name not in found:
            try:
                found[name] = seeds[name], sum((cost(prices, plan, job) for job in jobs), Cost())
            except DoesNotFit as error:
                found[name] = seeds[name], str(error)
                unfit.append(name)
            except NoscratchError as error:
                found[name] = seeds[name], str(error)
        if isinstance(found[name][1], Cost):
            needed |= {job.address: job for job in _needed(plan, jobs[-1])}
            made_up += [cell.task for job in jobs if prices.price(job).made_up]
    total = sum((cost(prices, plan, job) for job in needed.values()), Cost())
    return Costs(found, total, tuple(unfit), tuple(dict.fromkeys(made_up)))


@dataclass(frozen=True)
class SeedCost:
    """What one seed of some cells costs: of those that the plan has, each once, with all that they need. absent: the
    names of the others; unfit: why some were left out of the sum, by name."""

    cost: Cost
    cells: int
    absent: tuple[str, ...]
    unfit: Mapping[str, str]


def one_seed(prices: Prices, plan: Plan, names: Collection[str]) -> SeedCost:
    """What one seed of the cells of these names costs."""
    first: dict[str, Job] = {}
    for cell, jobs in select(plan, []).items():
        first.setdefault(_name(cell), jobs[-1])
    spent: dict[str, Cost] = {}
    unfit = {}
    for name in sorted(first.keys() & set(names)):
        try:
            spent |= {job.address: cost(prices, plan, job) for job in _needed(plan, first[name])}
        except NoscratchError as error:
            unfit[name] = str(error)
    total = sum(spent.values(), Cost())
    return SeedCost(total, len(first.keys() & set(names)), tuple(sorted(set(names) - first.keys())), unfit)


def cells_of(claim: Trained) -> set[str]:
    """The names of the cells that a claim needs."""
    return {str(cell) for q in claim.quantities for cell in (*q.cells, *(c for group in q.against for c in group))}


@dataclass(frozen=True)
class ClaimCost:
    """What the least seeds that settle a claim cost. cells: of the plan; left_out: how many others the claim has, which
    the plan lacks or the device has no room for. Without a claim: all claims of the paper, in which each cell counts
    once, with the most seeds of any claim about it; without a paper: those of every paper."""

    paper: str
    claim: str
    seeds: int
    cells: int
    left_out: int
    cost: Cost


def by_claim(prices: Prices, plan: Plan, papers: Sequence[Paper], patterns: Sequence[str]) -> list[ClaimCost]:
    """What the claims of the plan's tier cost whose id a pattern selects, the sum of each paper after them, and the sum
    of all at the end."""
    found: list[ClaimCost] = []
    every: list[Trained] = []
    for paper in papers:
        chosen = [
            claim
            for claim in paper.claims
            if isinstance(claim, Trained) and claim.tier == plan.params.run.tier
            if not patterns or any(fnmatchcase(claim.id, pattern) for pattern in patterns)
        ]
        found += [_claim_cost(prices, plan, paper.paper, claim.id, [claim]) for claim in chosen]
        if chosen:
            found.append(_claim_cost(prices, plan, paper.paper, "", chosen))
            every += chosen
    if not every:
        raise NoscratchError(
            f"No claim about trained models that the {plan.params.run.tier} tier settles has an id like "
            f"{', '.join(patterns) or 'any'}. The paper tier settles most: --tier paper."
        )
    return [*found, _claim_cost(prices, plan, "", "", every)]


def _claim_cost(prices: Prices, plan: Plan, paper: str, name: str, claims: Sequence[Trained]) -> ClaimCost:
    seeds: Counter[str] = Counter()
    for claim in claims:
        for cell in cells_of(claim):
            seeds[cell] = max(seeds[cell], claim.seeds)
    # All cells for as many seeds as the least has, then those that have more, and so on.
    total, before = Cost(), 0
    for count in sorted(set(seeds.values())):
        spent = one_seed(prices, plan, {cell for cell, least in seeds.items() if least >= count})
        total, before = total + spent.cost.times(count - before), count
    whole = one_seed(prices, plan, set(seeds))
    cells = whole.cells - len(whole.unfit)
    return ClaimCost(paper, name, max(seeds.values()), cells, len(seeds) - cells, total)


def _needed(plan: Plan, job: Job) -> list[Job]:
    """The training jobs that one needs, itself included."""
    return [need for need in plan.with_needs(job) if need.kind in ("pretrain", "finetune")]


def _name(cell: Cell) -> str:
    return f"{cell.task}/{cell.backbone}/{cell.protocol}"
