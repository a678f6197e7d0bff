"""What there is to do: every job of the chosen tier, its address, what it needs, where its result is shown.

A job's address is the hash of its settings, of the code that it reaches and of the addresses of the jobs that it
needs. So a result lives at the hash of everything that we could change; the device, library versions and where bytes
came from are recorded, not hashed. This module imports no torch: a plan costs milliseconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, cast

from noscratch import code
from noscratch.errors import NoscratchError
from noscratch.params import (
    CORPUS,
    ON_CORPUS,
    PROTOCOLS,
    Model,
    Params,
    TierParams,
    Train,
    Tuning,
    backbone_module,
    corpus_module,
    data_of,
    load,
    selects,
    takes_corpus,
    task_module,
)
from noscratch.sources import PARTIAL
from noscratch.sources.registry import SOURCES

KINDS = ("fetch", "prepare", "tuning", "pretrain", "finetune")
VIEWS = {"raw": ("fetch",), "prepared": ("prepare",), "runs": ("tuning", "pretrain", "finetune")}

# The objective that a protocol pretrains with; and the protocol whose whole budget (pretraining and fine-tuning) one
# without pretraining spends.
PRETRAINING = {"spt-masked": "masked", "spt-causal": "causal", ON_CORPUS: "masked"}
MATCHED = {"scratch-matched": "spt-masked"}

# What every task's models must beat (noscratch.baselines), and which of them draw random numbers: rows like any
# backbone's. The convolutional network reads images alone.
BASELINES = ("majority", "bag", "cnn")
SEEDED_BASELINES = ("cnn",)


@dataclass(frozen=True)
class Cell:
    """One entry of the grid: what a row of results is about."""

    tier: str
    task: str
    backbone: str
    protocol: str
    seed: int

    @property
    def label(self) -> str:
        """The cell's name in the store, words joined by hyphens."""
        return f"{self.tier}-{self.task}-{self.backbone}-{self.protocol}-seed{self.seed}"

    @property
    def view(self) -> str:
        """The cell's folder below data/runs."""
        return f"{self.tier}/{self.task}/{self.backbone}/{self.protocol}/seed{self.seed}"


@dataclass(frozen=True)
class Job:
    """One file-making step. `needs` maps a role ("cola", "prepared", "pretrained") to the address of another job."""

    kind: str
    label: str
    settings: Mapping[str, Any]
    modules: tuple[str, ...]
    needs: Mapping[str, str]
    view: str
    cell: Cell | None = None

    @cached_property
    def code(self) -> str:
        """Digest of the package code that the job reaches."""
        return code.digest(self.modules)

    @cached_property
    def address(self) -> str:
        """First 12 hex digits of the sha256 over kind, settings, code and needs."""
        identity = {"kind": self.kind, "settings": self.settings, "code": self.code, "needs": self.needs}
        return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """The job's folder in the store."""
        return f"{self.address}-{self.kind}-{self.label}"


def canonical_json(value: object) -> str:
    """JSON with one spelling: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


class Plan:
    """All jobs of one tier by address; a job stands after the jobs that it needs."""

    def __init__(self, params: Params) -> None:
        """Enumerate the jobs of `params.run.tier`."""
        self.params = params
        self.jobs: dict[str, Job] = {}
        self._prepared: dict[str, Job] = {}
        for cell in tuning_cells(params):
            self._tune(cell)
        for cell in cells(params):
            self._finetune(cell)
        for cell in baseline_cells(params):
            self._baseline(cell)

    def __getitem__(self, address: str) -> Job:
        """The job at an address; NoscratchError when the plan has none."""
        try:
            return self.jobs[address]
        except KeyError:
            raise NoscratchError(
                f"The present plan ({self.params.run.tier} tier, {len(self.jobs)} jobs) has no job {address!r}. "
                "See `noscratch plan`; if settings or code changed since, run `snakemake all` again."
            ) from None

    def with_needs(self, job: Job) -> list[Job]:
        """A job after all the jobs that it needs, directly or not."""
        found = {need.address: need for address in job.needs.values() for need in self.with_needs(self[address])}
        return [*found.values(), job]

    def of(self, *kinds: str) -> list[Job]:
        """The jobs of some kinds, in plan order."""
        return [job for job in self.jobs.values() if job.kind in kinds]

    def in_view(self, view: str) -> list[Job]:
        """The jobs whose results a view shows."""
        return self.of(*VIEWS[view])

    @cached_property
    def digest(self) -> str:
        """sha256 over all addresses: two plans with the same digest have the same jobs."""
        return hashlib.sha256("\n".join(sorted(self.jobs)).encode()).hexdigest()

    def _add(self, job: Job) -> Job:
        return self.jobs.setdefault(job.address, job)

    def fetch(self, source: str) -> Job:
        """The job that brings a source's bytes; `<source>-partial` also takes a form that holds a part of it."""
        # Settings name the accepted content alone: where its bytes come from must not move an address.
        settings = {"source": source, "edition": SOURCES[source.removesuffix(PARTIAL)].edition}
        return self._add(Job("fetch", source, settings, ("noscratch.sources.unpack",), {}, source))

    def prepare(self, task: str, on_corpus: bool = False) -> Job:
        """The job that turns a task's sources into token arrays; on_corpus: in the pieces of the tier's corpus."""
        data = data_of(self.params, task) | ({"tokens": CORPUS} if on_corpus else {})
        needs = {CORPUS: self.corpus().address} if data.get("tokens") == CORPUS else {}
        label = f"{task}-{self.corpus().label}" if on_corpus else task
        return self._prepare("task", task, task_module(task), data, needs, label, on_corpus)

    def corpus(self) -> Job:
        """The job that turns the tier's corpus into windows of tokens, and learns its pieces."""
        name = self.params.tier.corpus
        if name is None:
            raise NoscratchError(
                f"`tokens: {CORPUS}` and {ON_CORPUS} read the corpus of the tier; {self.params.run.tier} names none. "
                "Say which in params.yaml (`corpus`)."
            )
        data = {**self.params.corpora[name], **self.params.tier.data.get(name, {})}
        return self._prepare("corpus", name, corpus_module(name), data, {}, name, True)

    def _prepare(
        self, kind: str, name: str, module: str, data: dict[str, Any], needs: dict[str, str], label: str, aside: bool
    ) -> Job:
        if label not in self._prepared:
            sources = (data["source"],) if data.get("source") else code.spec_literal(module, "sources")
            if not isinstance(sources, tuple) or not set(sources) <= SOURCES.keys():
                raise NoscratchError(
                    f"A {kind} names its sources, which are {', '.join(SOURCES)}; {name} gives {sources!r}. Correct "
                    f"`source` in params.yaml, or SPEC.sources in {module}."
                )
            part = PARTIAL if data.get("partial") else ""
            fetched = {source: self.fetch(source + part).address for source in sources}
            settings, view = {kind: name, "data": data}, f"corpora/{label}" if aside else label
            self._prepared[label] = self._add(Job("prepare", label, settings, (module,), fetched | needs, view))
        return self._prepared[label]

    def _tune(self, cell: Cell) -> None:
        """One trial, a fine-tuning from scratch that ends before the test set, for each pair of the search."""
        tuning = cast(Tuning, self.params.tier.tuning)
        needs = {"prepared": self.prepare(cell.task).address}
        settings = self._settings(cell, "finetune", "classify") | {"phase": "tuning"}
        for i, (lr, weight_decay) in enumerate(product(tuning.lr, tuning.weight_decay)):
            train = settings["train"] | {"lr": lr, "weight_decay": weight_decay}
            trial = f"trial{i}"
            modules = ("noscratch.train", backbone_module(cell.backbone))
            view = f"{cell.view}/{trial}"
            self._add(Job("tuning", f"{cell.label}-{trial}", settings | {"train": train}, modules, needs, view, cell))

    def _finetune(self, cell: Cell) -> Job:
        on_corpus = cell.protocol == ON_CORPUS
        needs = {"prepared": self.prepare(cell.task, on_corpus).address}
        modules = ("noscratch.train", backbone_module(cell.backbone))
        finetune = self._settings(cell, "finetune", "classify")
        if cell.protocol in PRETRAINING:
            # One pretraining on a corpus serves every task: it is a cell of the corpus, and its model is that of all.
            first = replace(cell, task=self.corpus().label) if on_corpus else cell
            read = {"prepared": self.corpus().address} if on_corpus else dict(needs)
            pretrain = self._settings(first, "pretrain", PRETRAINING[cell.protocol])
            finetune |= {part: pretrain[part] for part in ("backbone_config", "model")}
            needs["pretrained"] = self._add(
                Job("pretrain", first.label, pretrain, modules, read, f"{first.view}/pretrain", first)
            ).address
        if cell.protocol in MATCHED:
            # How many steps the budget buys is known when the runs that set it are done.
            twin = self._finetune(replace(cell, protocol=MATCHED[cell.protocol]))
            needs |= {"budget-pretrain": twin.needs["pretrained"], "budget-finetune": twin.address}
            del finetune["train"]["steps"]
            finetune["train"]["matched"] = self.params.tier.matched
        return self._add(Job("finetune", cell.label, finetune, modules, needs, f"{cell.view}/finetune", cell))

    def _baseline(self, cell: Cell) -> None:
        settings: dict[str, Any] = {
            "phase": "finetune",
            "tier": cell.tier,
            "task": cell.task,
            "backbone": cell.backbone,
            "protocol": cell.protocol,
            "seed": cell.seed,
            "threads": self.params.run.threads,
        }
        if cell.backbone in SEEDED_BASELINES:
            settings["train"] = self.params.tier.finetune.model_dump()
        needs = {"prepared": self.prepare(cell.task).address}
        self._add(Job("finetune", cell.label, settings, ("noscratch.baselines",), needs, f"{cell.view}/finetune", cell))

    def _settings(self, cell: Cell, phase: str, objective: str) -> dict[str, Any]:
        """All that one training job is told; see train.run."""
        tier = self.params.tier
        model, train = tier.model, getattr(tier, phase)
        config = self.params.backbones[cell.backbone]
        for override in tier.overrides:
            if (
                selects(override.tasks, cell.task)
                and selects(override.backbones, cell.backbone)
                and selects(override.protocols, cell.protocol)
            ):
                config = config | override.config
                model = Model.model_validate(model.model_dump() | override.model)
                train = Train.model_validate(train.model_dump() | getattr(override, phase))
        return {
            "phase": phase,
            "objective": objective,
            "tier": cell.tier,
            "task": cell.task,
            "backbone": cell.backbone,
            "protocol": cell.protocol,
            "seed": cell.seed,
            "backbone_config": config,
            "model": model.model_dump(exclude_defaults=True),  # a setting more moves no address
            "train": train.model_dump(),
            "dtype": self.params.run.dtype,
            "threads": self.params.run.threads,
            "deterministic": self.params.run.deterministic,
            "backend": resolved_backend(self.params.run.backend),
        }


def resolved_backend(backend: str) -> str:
    """What `auto` means: the fast forms, which every kernel has on every device."""
    return "fast" if backend == "auto" else backend


def cells(params: Params) -> list[Cell]:
    """The grid of the chosen tier: its blocks joined, each cell once, in the order of tasks, backbones, protocols,
    seeds. `spt-causal` is left out for a backbone that is bidirectional only (CAUSAL_OK = False in its file), and
    `corpus-masked` for a task that is not read in a corpus's pieces, and in a tier without a corpus."""
    tier: TierParams = params.tier
    return [
        Cell(params.run.tier, task, backbone, protocol, seed)
        for task in params.tasks
        for backbone in params.backbones
        for protocol in PROTOCOLS
        if protocol != "spt-causal" or code.constant(backbone_module(backbone), "CAUSAL_OK")
        if protocol != ON_CORPUS or (tier.corpus is not None and takes_corpus(params, task))
        if any(
            selects(b.tasks, task) and selects(b.backbones, backbone) and selects(b.protocols, protocol)
            for b in tier.grid
        )
        for seed in tier.seeds
    ]


def tuning_cells(params: Params) -> list[Cell]:
    """What the search of the chosen tier tries: every task and backbone that it names, from scratch."""
    tuning = params.tier.tuning
    return [
        Cell(params.run.tier, task, backbone, "scratch", tuning.seed)
        for task in params.tasks
        for backbone in params.backbones
        if tuning and selects(tuning.tasks, task) and selects(tuning.backbones, backbone)
    ]


def baseline_cells(params: Params) -> list[Cell]:
    """The baselines of every task that the grid of the chosen tier names."""
    tasks = dict.fromkeys(cell.task for cell in cells(params))
    return [
        Cell(params.run.tier, task, baseline, "scratch", seed)
        for task in tasks
        for baseline in BASELINES
        if baseline != "cnn" or code.spec_literal(task_module(task), "inputs") == "pixels"
        for seed in (params.tier.seeds if baseline in SEEDED_BASELINES else (0,))
    ]


def read_plan(root: Path) -> Plan:
    """The plan that params.yaml in `root` and the present code make; NoscratchError when it names no cell."""
    plan = Plan(load(root))
    if not plan.jobs:
        raise NoscratchError(
            f"A plan has at least one cell; in params.yaml the grid of tier {plan.params.run.tier} names no task and "
            "backbone that stand under tasks and backbones. Add a line there or to the grid."
        )
    return plan


def at_tier(params: Params, tier: str) -> Params:
    """The same settings with another tier chosen."""
    return params.model_copy(update={"run": params.run.model_copy(update={"tier": tier})})


def grid(params: Params) -> set[tuple[str, str, str]]:
    """(task, backbone, protocol) of every cell of any tier, baselines included; without the addresses of a plan."""
    tiers = (at_tier(params, tier) for tier in params.tiers)
    return {(c.task, c.backbone, c.protocol) for tier in tiers for c in (*cells(tier), *baseline_cells(tier))}


def plans_of_all_tiers(params: Params) -> list[Plan]:
    """What each tier would plan: results of one tier are kept while another is at work."""
    return [Plan(at_tier(params, tier)) for tier in params.tiers]
