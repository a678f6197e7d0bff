"""The ledger: what the papers claim, as data, each with a test that is fixed before its first verdict.

One file per paper, `claims/<paper>.yaml`:

    paper, title, arxiv          the file's name; the paper's title and arXiv number
    sources                      key -> where the paper's numbers were read
    claims                       the list

and per claim, for every kind:

    id, version                  "<paper>-..."; the version rises whenever anything in the claim changes after a verdict
    statement                    what it says, in our own words
    where                        table, figure or section of the source
    source, status               a key of `sources`; S1: seen in the paper or its authors' repository, S2: in a work
                                 that restates it; nothing else may be entered
    kind                         accuracy | difference | efficiency | architecture | numerics | conflict
    unit                         of every number in the claim
    test                         rule, margin, alpha, why: see `Test`

A claim about trained models (accuracy, difference) adds

    cells                        {backbone, protocol} whose mean over seeds is the estimate
    against                      difference only: {backbone, protocol}, or a list of them, with each of which the claim
                                 must hold; without a backbone, that of `cells`
    over                         the tasks of a quantity called `mean`
    split                        test unless stated
    values                       quantity -> number, or [low, high] where the paper gives a range; the quantity is a
                                 task, a task and metric (`mrpc.f1`; else the task's primary metric), or `mean` over
                                 tasks. Where `cells` has no backbone: backbone -> quantity -> number
    need                         how many of the quantities must hold for the claim to hold (all, unless stated)
    seeds, tier                  the least that settles it
    looks                        numbers of seeds at which it may be tested, ascending from `seeds`, so that it may stop
                                 early: what a look may spend of alpha is fixed by them. Without, it is tested with all
                                 seeds of the plan, and adding some after a look at the result is not honest

a measured one (efficiency, architecture, numerics)

    backbones                    which it is about
    values                       name of a quantity -> number or [low, high]; what this machine finds for it stands in
                                 a record's observations.json, see results/observations.py
    need, seeds                  as above; a seed is one repetition of the measurement
    device                       class of device on which it can be settled

and a conflict

    readings                     quantity -> {source: what that source says}

A claim is about cells by name, and a name that the plan lacks is no error: the claim then reads `not-run`, outside the
grid. A name that is nowhere (see BACKBONES, TASKS) is refused, so that a typing error cannot hide a claim.

Path-X is `pathfinder-128`, its larger sibling `pathfinder-256`; ListOps and Pathfinder are drawn anew by the published
procedures, the benchmark's own release being tasks of other names.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from noscratch.backbones import file_of
from noscratch.errors import NoscratchError
from noscratch.yaml_reader import Document, read

TIERS = ("smoke", "mini", "paper")  # from weakest to strongest; smoke settles nothing

PROTOCOLS = ("scratch", "scratch-matched", "spt-masked", "spt-causal", "corpus-masked")
# Tasks of the product, then tasks that only claims speak of.
TASKS = (
    *("listops", "text", "retrieval", "image", "pathfinder", "pathfinder-128", "pathfinder-256", "scifar"),
    *("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"),
    *("image-subset", "text-subset", "mnist", "pmnist", "scifar-augmented", "cifar-density", "wikitext103"),
    *("sc10-mfcc", "sc10-raw", "sc10-half", "sc35", "sc35-half", "bidmc-hr", "bidmc-rr", "bidmc-spo2"),
    *("weather-30d", "forecasting", "squad", "qalt", "qalt-hard", "cnli", "adversarial-qnli", "cola-phenomena"),
    "refinedweb",
)
# Files of the product, there or to come, then models that only claims speak of. A hyphen makes a variant: s4-random.
BACKBONES = (
    *("transformer", "s4", "s4d", "dss", "dlr", "lru", "sgconv", "bigs", "mega", "pythia", "bert"),
    *("lssl", "wavegan", "convnet", "resnet18", "informer", "liquid", "chance", "local", "linear", "reformer"),
    *("sparse", "linformer", "performer", "sinkhorn", "synthesizer", "longformer", "bigbird", "fnet", "nystromformer"),
    *("luna", "mamba"),
)
METRICS = ("accuracy", "f1", "matthews", "pearson", "spearman")
UNITS = {
    "accuracy": ("percent", "perplexity", "bits-per-dim", "rmse", "count"),
    "difference": ("points", "relative-percent", "perplexity", "r2", "exponent"),
    "efficiency": ("ratio", "percent", "ms", "minutes", "hours", "mb", "gb", "tokens-per-second", "images-per-second"),
    "architecture": ("parameters", "flops", "layers", "tokens", "positions", "ratio"),
    "numerics": ("relative-error",),
    "conflict": ("text", "percent", "ratio", "perplexity", "layers", "width", "positions", "rate"),
}

Number = Annotated[float, Field(allow_inf_nan=False)]
Value = Number | Annotated[list[Number], Field(min_length=2, max_length=2)]
Text = Annotated[str, Field(min_length=1)]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
Place = tuple[str | int, ...]  # keys from the claim down


class ClaimError(NoscratchError):
    """A ledger that breaks its schema; every message starts with file and line."""


class Strictly(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Test(Strictly):
    """The rule of a claim and its tolerance. A value v (or [v, w]) and the margin m make the region that agrees:

    equivalent   v - m to w + m, by two one-sided tests
    greater      above v - m; less: below w + m
    disagree     conflict only: numbers of one quantity differ by more than m; texts differ

    The margin is in the claim's unit, or in percent of the value (`margin_percent`). `alpha` bounds the error of
    "supported" and of "contradicted", each, after Holm over the paper; `why` says where the margin is from.
    """

    rule: Literal["equivalent", "greater", "less", "disagree"]
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    margin_percent: Annotated[float, Field(gt=0, lt=100)] | None = None
    alpha: Annotated[float, Field(gt=0, le=0.1)] = 0.05
    why: Text

    @model_validator(mode="after")
    def _one_margin(self) -> Self:
        if (self.margin is None) == (self.margin_percent is None):
            raise ValueError("a test has a margin: `margin` or `margin_percent`, one of the two")
        return self

    def region(self, low: float, high: float) -> tuple[float, float]:
        """The values that agree with a published value or range."""
        if self.margin is not None:
            low, high = low - self.margin, high + self.margin
        elif self.margin_percent is not None:
            low, high = (v + sign * abs(v) * self.margin_percent / 100 for v, sign in ((low, -1), (high, 1)))
        return (-math.inf if self.rule == "less" else low), (math.inf if self.rule == "greater" else high)


class Selector(Strictly):
    """Whose runs a quantity is about."""

    backbone: Slug | None = None
    protocol: Literal["scratch", "scratch-matched", "spt-masked", "spt-causal", "corpus-masked"]


@dataclass(frozen=True, order=True)
class Cell:
    """A place of the grid, without tier and seed."""

    task: str
    backbone: str
    protocol: str

    def __str__(self) -> str:
        return f"{self.task}/{self.backbone}/{self.protocol}"


@dataclass(frozen=True)
class Quantity:
    """One number of a claim: the published value or range, and the cells whose mean (against those of each comparison)
    estimates it. A measured or conflicting quantity has no cells."""

    name: str
    low: float
    high: float
    metric: str | None = None
    cells: tuple[Cell, ...] = ()
    against: tuple[tuple[Cell, ...], ...] = ()


class _Claim(Strictly):
    id: Slug
    version: Annotated[int, Field(ge=1)]
    statement: Text
    where: Text
    source: Text
    status: Literal["S1", "S2"]
    unit: Text
    test: Test


class Trained(_Claim):
    """A claim that only training can settle."""

    kind: Literal["accuracy", "difference"]
    cells: Selector
    against: Selector | list[Selector] | None = None
    over: list[str] | None = None
    split: Literal["test", "validation", "train"] = "test"
    values: dict[str, Value | dict[str, Value]] = Field(min_length=1)
    need: Annotated[int, Field(ge=1)] | None = None
    seeds: Annotated[int, Field(ge=2)]
    looks: Annotated[list[int], Field(min_length=2)] | None = None
    tier: Literal["mini", "paper"]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.test.rule == "disagree":
            raise ValueError("rule `disagree` is for a conflict; use equivalent, greater or less")
        if (self.kind == "difference") != (self.against is not None):
            raise ValueError("a difference names what it is `against`, and nothing else does")
        nested = [isinstance(value, dict) for value in self.values.values()]
        if any(nested) != (self.cells.backbone is None) or any(nested) != all(nested):
            raise ValueError("`values` go by backbone exactly where `cells` names none")
        if any(name == "mean" for _, name, _ in self._numbers()) != (self.over is not None):
            raise ValueError("a `mean` says which tasks it is `over`, and nothing else does")
        if self.looks is not None and (self.looks[0] != self.seeds or self.looks != sorted(set(self.looks))):
            raise ValueError(f"`looks` ascend from `seeds` ({self.seeds}); got {self.looks}")
        _check_need(self.need, len(list(self._numbers())))
        return self

    def mistakes(self) -> Iterator[tuple[Place, str]]:
        """Names that are nowhere and ranges that are none: where in the claim, and the rule."""
        for key, selectors in (("cells", [self.cells]), ("against", self._comparisons())):
            for selector in selectors:
                if selector.backbone is not None:
                    yield from _unknown_backbone((key,), selector.backbone)
        for index, task in enumerate(self.over or []):
            yield from _unknown(("over", index), "task", task, TASKS)
        for name, value in self.values.items():
            if isinstance(value, dict):
                yield from _unknown_backbone(("values", name), name)
        for backbone, name, value in self._numbers():
            place: Place = ("values", name) if self.cells.backbone else ("values", backbone, name)
            task, _, metric = name.partition(".")
            if metric:
                yield from _unknown(place, "metric", metric, METRICS)
            if task != "mean":
                yield from _unknown(place, "task", task, TASKS)
            yield from _no_range(place, value)

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        found = []
        for backbone, name, value in self._numbers():
            task, _, metric = name.partition(".")
            tasks = self.over if task == "mean" and self.over else [task]
            cells = tuple(Cell(t, backbone, self.cells.protocol) for t in tasks)
            against = tuple(
                tuple(Cell(t, s.backbone or backbone, s.protocol) for t in tasks) for s in self._comparisons()
            )
            low, high = _range(value)
            full = name if self.cells.backbone else f"{backbone}/{name}"
            found.append(Quantity(full, low, high, metric or None, cells, against))
        return tuple(found)

    def _comparisons(self) -> list[Selector]:
        if self.against is None:
            return []
        return self.against if isinstance(self.against, list) else [self.against]

    def _numbers(self) -> Iterator[tuple[str, str, float | list[float]]]:
        """(backbone, quantity as written, number or range)"""
        for name, value in self.values.items():
            if isinstance(value, dict):
                yield from ((name, inner, number) for inner, number in value.items())
            else:
                yield str(self.cells.backbone), name, value


class Measured(_Claim):
    """A claim that a measurement settles, without training to the end."""

    kind: Literal["efficiency", "architecture", "numerics"]
    backbones: list[str] = Field(min_length=1)
    values: dict[Slug, Value] = Field(min_length=1)
    need: Annotated[int, Field(ge=1)] | None = None
    seeds: Annotated[int, Field(ge=1)] = 1
    device: Literal["any", "cpu", "gpu", "a100", "t4"]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.test.rule == "disagree":
            raise ValueError("rule `disagree` is for a conflict; use equivalent, greater or less")
        if self.kind == "efficiency" and self.seeds < 3:
            raise ValueError("an efficiency claim needs at least 3 repetitions (`seeds`)")
        _check_need(self.need, len(self.values))
        return self

    def mistakes(self) -> Iterator[tuple[Place, str]]:
        """As for `Trained`."""
        for index, backbone in enumerate(self.backbones):
            yield from _unknown_backbone(("backbones", index), backbone)
        for name, value in self.values.items():
            yield from _no_range(("values", name), value)

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        return tuple(Quantity(name, *_range(value)) for name, value in self.values.items())


class Conflict(_Claim):
    """Sources that say different things about one quantity; settled by reading them."""

    kind: Literal["conflict"]
    readings: dict[Slug, dict[str, Number | str]] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.test.rule != "disagree" or self.test.margin is None:
            raise ValueError("a conflict is tested by rule `disagree` with a `margin` (0 for texts)")
        for name, readings in self.readings.items():
            if len(readings) < 2:
                raise ValueError(f"`{name}`: a conflict needs two readings at least")
            if len({isinstance(value, str) for value in readings.values()}) != 1:
                raise ValueError(f"`{name}`: readings are all numbers or all texts")
            if (self.unit == "text") != any(isinstance(value, str) for value in readings.values()):
                raise ValueError(f"`{name}`: unit `text` is for texts, another unit for numbers")
        return self

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        found = []
        for name, readings in self.readings.items():
            numbers = [value for value in readings.values() if not isinstance(value, str)]
            found.append(Quantity(name, min(numbers), max(numbers)) if numbers else Quantity(name, math.nan, math.nan))
        return tuple(found)

    @property
    def margin(self) -> float:
        """By how much numbers may differ without a conflict."""
        assert self.test.margin is not None
        return self.test.margin


Claim = Trained | Measured | Conflict
KINDS: dict[str, type[Trained] | type[Measured] | type[Conflict]] = {
    "accuracy": Trained,
    "difference": Trained,
    "efficiency": Measured,
    "architecture": Measured,
    "numerics": Measured,
    "conflict": Conflict,
}


class _Head(Strictly):
    """A paper's file without its claims, which are validated one by one so that each error has its line."""

    paper: Slug
    title: Text
    arxiv: Annotated[str, Field(pattern=r"^\d{4}\.\d{4,5}$")]
    sources: dict[str, Text] = Field(min_length=1)
    claims: list[dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class Paper:
    """A paper's part of the ledger."""

    paper: str
    title: str
    arxiv: str
    sources: Mapping[str, str]
    claims: tuple[Claim, ...]


def load(folder: Path) -> tuple[Paper, ...]:
    """The ledger: every claims/<paper>.yaml, by file name.

    Raises ClaimError with a line "file:line: claim: rule" for each mistake: a key that does not exist or is missing, a
    status other than S1 or S2, a unit that its kind does not have, an unknown cell, a test without margin, an id given
    twice.
    """
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise ClaimError(f"{folder}: the ledger needs at least one <paper>.yaml; found none.")
    papers: list[Paper] = []
    errors: list[str] = []
    seen: dict[str, str] = {}
    for file in files:
        document = read(file)
        paper = _paper(document, errors)
        if paper is None:
            continue
        for index, claim in enumerate(paper.claims):
            here = f"{file}:{document.line('claims', index, 'id')}"
            if claim.id in seen:
                errors.append(f"{here}: {claim.id}: an id is given once; it also stands at {seen[claim.id]}")
            seen[claim.id] = here
        papers.append(paper)
    if errors:
        raise ClaimError("\n".join(errors))
    return tuple(papers)


def units(papers: Sequence[Paper]) -> dict[str, str]:
    """The unit of every claim that needs no training, by claim."""
    return {claim.id: claim.unit for paper in papers for claim in paper.claims if isinstance(claim, Measured)}


def _paper(document: Document, errors: list[str]) -> Paper | None:
    """The paper of one file; its mistakes are added to `errors`."""
    before = len(errors)
    try:
        head = _Head.model_validate(document.data)
    except ValidationError as error:
        errors += _messages(error, document, (), "the file", _Head)
        return None
    if head.paper != document.path.stem:
        errors.append(f"{document.path}:{document.line('paper')}: `paper` is the file's name; got {head.paper!r}")
    claims: list[Claim] = []
    for index, item in enumerate(head.claims):
        name = str(item.get("id", f"claim {index + 1}"))
        here = f"{document.path}:{document.line('claims', index)}: {name}"
        model = KINDS.get(str(item.get("kind")))
        if model is None:
            errors.append(f"{here}: `kind` is one of {', '.join(KINDS)}; got {item.get('kind')!r}")
            continue
        try:
            claim = model.model_validate(item)
        except ValidationError as error:
            errors += _messages(error, document, ("claims", index), name, model)
            continue
        for place, rule in _broken(claim, head):
            errors.append(f"{document.path}:{document.line('claims', index, *place)}: {name}: {rule}")
        claims.append(claim)
    if len(errors) > before:
        return None
    return Paper(head.paper, head.title, head.arxiv, head.sources, tuple(claims))


def _broken(claim: Claim, head: _Head) -> Iterator[tuple[Place, str]]:
    """Rules whose breach stands at one place of the claim: (place, rule)."""
    if not claim.id.startswith(f"{head.paper}-"):
        yield ("id",), f"an id starts with the paper's name, `{head.paper}-`"
    if claim.source not in head.sources:
        yield ("source",), f"`source` is a key of `sources` ({', '.join(head.sources)}); got {claim.source!r}"
    if claim.unit not in UNITS[claim.kind]:
        yield ("unit",), f"the unit of kind {claim.kind} is one of {', '.join(UNITS[claim.kind])}; got {claim.unit!r}"
    if not isinstance(claim, Conflict):
        yield from claim.mistakes()
        return
    for name, readings in claim.readings.items():
        for source in readings:
            if source.split(",")[0] not in head.sources:
                yield ("readings", name, source), f"`{name}` is read in {source!r}, which is not among `sources`"


def _messages(
    error: ValidationError, document: Document, prefix: tuple[str | int, ...], name: str, model: type[BaseModel]
) -> Iterator[str]:
    for detail in error.errors(include_url=False):
        where = (*prefix, *detail["loc"])
        key = ".".join(str(part) for part in detail["loc"])
        rule = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            known = {**model.model_fields, **Test.model_fields, **Selector.model_fields}
            near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
            rule = "no such key" + (f"; did you mean `{near[0]}`?" if near else "")
        elif detail["type"] == "missing":
            rule = "this key is required"
        got = "" if detail["type"] in ("missing", "value_error") else f"; got {detail['input']!r}"
        yield f"{document.path}:{document.line(*where)}: {name}: {f'`{key}`: ' if key else ''}{rule}{got}"


def _unknown(place: Place, what: str, name: str, known: tuple[str, ...]) -> Iterator[tuple[Place, str]]:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        yield place, f"unknown {what} {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _unknown_backbone(place: Place, name: str) -> Iterator[tuple[Place, str]]:
    return _unknown(place, "backbone", file_of(name), BACKBONES)


def _no_range(place: Place, value: float | list[float]) -> Iterator[tuple[Place, str]]:
    if isinstance(value, list) and value[0] > value[1]:
        yield place, f"a range is [low, high]; got {value}"


def _check_need(need: int | None, quantities: int) -> None:
    if need is not None and need > quantities:
        raise ValueError(f"`need` is at most the number of quantities ({quantities}); got {need}")


def _range(value: float | list[float]) -> tuple[float, float]:
    low, high = value if isinstance(value, list) else (value, value)
    return low, high
