"""The settings: params.yaml as strict, frozen objects. Nothing else reads that file.

Every mistake is one message with the place, the rule, what was got and the nearest valid name; all are found before
any work starts.
"""

from __future__ import annotations

import ast
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from noscratch import code
from noscratch.backbones import file_of
from noscratch.errors import NoscratchError
from noscratch.yaml_reader import read as read_yaml

FILE = "params.yaml"
PROTOCOLS = ("scratch", "scratch-matched", "spt-masked", "spt-causal", "corpus-masked")
ON_CORPUS = "corpus-masked"  # pretrains on the tier's corpus, the others on the task's own data
CORPUS = "corpus"  # the value of `tokens` in the data of a task that is encoded with the pieces of the tier's corpus
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

Tier = Literal["smoke", "mini", "paper"]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
# all; plain (the names without a hyphen: no variants); or a list of names
Selector = Literal["all", "plain"] | tuple[str, ...]


class ParamsError(NoscratchError):
    """params.yaml breaks a rule."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Run(_Strict):
    """How every command runs."""

    tier: Tier
    device: Literal["auto", "cpu", "cuda"]
    threads: Positive
    dtype: Literal["float32", "bfloat16", "float64"]
    backend: str
    deterministic: bool = True
    checkpoint_seconds: Positive


class Model(_Strict):
    """The network around the blocks: width, how many blocks, dropout probability, readout and head."""

    d_model: Positive
    layers: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]
    readout: Literal["mean", "last", "max"] | None = None
    head: Literal["linear", "mlp"] = "linear"


class Train(_Strict):
    """One phase of training: budget, optimizer, schedule."""

    steps: Positive
    batch_tokens: Positive
    lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    warmup: Count
    schedule: Literal["cosine", "constant"]
    clip: Annotated[float, Field(ge=0)]
    evaluate_every: Positive
    micro_tokens: Positive | None = None


class Block(_Strict):
    """Part of a grid: the cells tasks x backbones x protocols."""

    tasks: Selector
    backbones: Selector
    protocols: Selector


class Expected(_Strict):
    """What a run from scratch was expected to do before it was made; `judge` flags one that does otherwise."""

    validation: float
    cpu_seconds: Annotated[float, Field(gt=0)]


class Override(Block):
    """Changes for the cells that it selects; what it leaves out selects all."""

    tasks: Selector = "all"
    backbones: Selector = "all"
    protocols: Selector = "all"
    config: dict[str, Any] = {}
    model: dict[str, Any] = {}
    pretrain: dict[str, Any] = {}
    finetune: dict[str, Any] = {}
    expected: Expected | None = None


class Tuning(_Strict):
    """The search before the runs, the same for every backbone: each pair of the two, chosen on the validation set."""

    tasks: Selector
    backbones: Selector
    seed: Count
    lr: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    weight_decay: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]


class TierParams(_Strict):
    """The plan of one tier."""

    network: bool
    corpus: str | None = None
    seeds: Annotated[tuple[Count, ...], Field(min_length=1)]
    grid: Annotated[tuple[Block, ...], Field(min_length=1)]
    data: dict[str, dict[str, Any]]
    model: Model
    pretrain: Train
    finetune: Train
    matched: Literal["flops", "steps", "energy"] = "flops"
    overrides: tuple[Override, ...] = ()
    tuning: Tuning | None = None


class Params(_Strict):
    """The whole of params.yaml."""

    run: Run
    corpora: dict[str, dict[str, Any]]
    tasks: dict[str, dict[str, Any]]
    backbones: dict[str, dict[str, Any]]
    tiers: dict[Tier, TierParams]

    @property
    def tier(self) -> TierParams:
        """The tier that `run.tier` names."""
        return self.tiers[self.run.tier]


def backbone_module(name: str) -> str:
    """The module behind a backbone's name."""
    return f"noscratch.backbones.{file_of(name)}"


def task_module(name: str) -> str:
    """The module behind a task's name."""
    return f"noscratch.tasks.{file_of(name)}"


def corpus_module(name: str) -> str:
    """The module behind a corpus's name."""
    return f"noscratch.corpora.{file_of(name)}"


def load(root: Path) -> Params:
    """Read and check params.yaml in `root`; raises ParamsError."""
    path = root / FILE
    if not path.is_file():
        raise ParamsError(
            f"Commands run in a checkout of noscratch, beside {FILE}; there is none here. Change to that folder."
        )
    return parse(read_yaml(path).data)


def parse(data: object) -> Params:
    """Check settings that were read; raises ParamsError with one line for each broken rule."""
    try:
        params = Params.model_validate(data)
    except ValidationError as error:
        raise ParamsError("\n".join(_explain(dict(item)) for item in error.errors())) from None
    mistakes = [*_not_finite("", data), *_mistakes(params)]
    if mistakes:
        raise ParamsError("\n".join(mistakes))
    return params


def backends() -> tuple[str, ...]:
    """What `run.backend` may be: auto, and the forms that any kernel has."""
    forms = {
        form
        for kernel in code.names_in("noscratch.kernels")
        for form in code.words(f"noscratch.kernels.{kernel}", "_BACKENDS")
    }
    return ("auto", *sorted(forms))


def data_of(params: Params, task: str) -> dict[str, Any]:
    """The settings of a task's data at the chosen tier."""
    return {**params.tasks[task], **params.tier.data.get(task, {})}


def selects(selector: Selector, name: str) -> bool:
    """Does a selector of a block name it?"""
    return selector == "all" or (selector == "plain" and "-" not in name) or name in selector


def expectations(params: Params) -> dict[tuple[str, str, str], Expected]:
    """(tier, task, backbone) -> what the last override that says so expects of a run from scratch."""
    return {
        (tier, task, backbone): override.expected
        for tier, settings in params.tiers.items()
        for override in settings.overrides
        if override.expected and selects(override.protocols, "scratch")
        for task in params.tasks
        if selects(override.tasks, task)
        for backbone in params.backbones
        if selects(override.backbones, backbone)
    }


def takes_corpus(params: Params, task: str) -> bool:
    """Can a model that was pretrained on a corpus be fine-tuned on the task? It can where the task may be encoded with
    a corpus's pieces, and the settings ask for no others."""
    tokens = code.config_fields(task_module(task)).get("tokens")
    return tokens is not None and code.fits(CORPUS, tokens) and data_of(params, task).get("tokens", CORPUS) == CORPUS


def _not_finite(place: str, value: object) -> Iterable[str]:
    """JSON, and so an address, has no infinity and no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{FILE}, {place}: numbers are finite; got {value}. Correct the value."
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _not_finite(f"{place}.{key}" if place else str(key), child)


def _mistakes(params: Params) -> Iterable[str]:
    """Rules that join several places: names that must exist, fields that a Config must have."""
    known_tasks, known_backbones = code.names_in("noscratch.tasks"), code.names_in("noscratch.backbones")
    known_corpora = code.names_in("noscratch.corpora")
    for section in ("corpora", "tasks", "backbones"):
        for name in getattr(params, section):
            if not NAME.fullmatch(name):
                yield (
                    f"{FILE}, {section}.{name}: a name is lower-case letters and digits, in words joined by hyphens "
                    f"(it names folders, rules and pages); got {name!r}. Write it so."
                )
    for kind, section, named, known, module in (
        ("corpus", "corpora", params.corpora, known_corpora, corpus_module),
        ("task", "tasks", params.tasks, known_tasks, task_module),
        ("backbone", "backbones", params.backbones, known_backbones, backbone_module),
    ):
        for name, config in named.items():
            if file_of(name) in known:
                yield from _fields(f"{section}.{name}", config, code.config_fields(module(name)))
            else:
                yield unknown(f"{section}.{name}", kind, name, known)
    if params.run.backend not in backends():
        yield unknown("run.backend", "kernel backend", params.run.backend, backends())
    if params.run.tier not in params.tiers:
        yield unknown("run.tier", "tier", params.run.tier, params.tiers)
    for tier, settings in params.tiers.items():
        here = f"tiers.{tier}"
        if len(set(settings.seeds)) < len(settings.seeds):
            yield f"{FILE}, {here}.seeds: each seed stands once; got {list(settings.seeds)}. Remove the others."
        if settings.tuning and settings.tuning.seed in settings.seeds:
            yield (
                f"{FILE}, {here}.tuning.seed: settings are not chosen with a seed whose results are reported; got "
                f"{settings.tuning.seed}, which is among the tier's. Choose another."
            )
        if settings.corpus is not None and settings.corpus not in params.corpora:
            yield unknown(f"{here}.corpus", "corpus", settings.corpus, params.corpora)
        if settings.corpus is None and any(ON_CORPUS in block.protocols for block in settings.grid):
            yield f"{FILE}, {here}.corpus: {ON_CORPUS} pretrains on the tier's corpus; got none. Name one of corpora."
        for name, config in settings.data.items():
            if file_of(name) in known_corpora:
                yield from _fields(f"{here}.data.{name}", config, code.config_fields(corpus_module(name)))
            elif file_of(name) in known_tasks:
                yield from _fields(f"{here}.data.{name}", config, code.config_fields(task_module(name)))
            else:
                yield unknown(f"{here}.data.{name}", "task or corpus", name, (*known_tasks, *known_corpora))
        # A grid may name what `tasks` and `backbones` leave out (that is how one is taken out of the plan), but not
        # what has no file.
        blocks: list[tuple[str, Block | Tuning]] = [(f"grid[{i}]", block) for i, block in enumerate(settings.grid)]
        blocks += [(f"overrides[{i}]", block) for i, block in enumerate(settings.overrides)]
        blocks += [("tuning", settings.tuning)] if settings.tuning else []
        for place, block in blocks:
            # An override may select the pretraining on a corpus.
            fit = (*known_tasks, *known_corpora) if isinstance(block, Override) else known_tasks
            for kind, selector, known in (
                ("task", block.tasks, fit),
                ("backbone", block.backbones, known_backbones),
                ("protocol", block.protocols if isinstance(block, Block) else (), PROTOCOLS),
            ):
                for name in () if isinstance(selector, str) else selector:
                    if (name if kind == "protocol" else file_of(name)) not in known:
                        yield unknown(f"{here}.{place}.{kind}s", kind, name, known)
        for i, override in enumerate(settings.overrides):
            # Once for each file: variants have its Config.
            listed = [*params.backbones] if isinstance(override.backbones, str) else [*override.backbones]
            chosen = {file_of(name): name for name in reversed(listed) if selects(override.backbones, name)}
            for file, name in sorted(chosen.items()):
                if file in known_backbones:
                    fields = code.config_fields(backbone_module(name))
                    place, kind = f"{here}.overrides[{i}].config", f"setting of {name}"
                    yield from _fields(place, override.config, fields, kind)
            for section, model in (("model", Model), ("pretrain", Train), ("finetune", Train)):
                try:
                    model.model_validate({**getattr(settings, section).model_dump(), **getattr(override, section)})
                except ValidationError as error:
                    for item in error.errors():
                        yield _explain({**item, "loc": ("tiers", tier, "overrides", i, section, *item["loc"])})


def unknown(place: str, kind: str, got: str, valid: Iterable[str]) -> str:
    """The message for a name that does not exist: the valid ones and the nearest match."""
    valid = sorted(valid)
    near = difflib.get_close_matches(str(got), valid, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{FILE}, {place}: there is no {kind} {got!r}; valid: {', '.join(valid)}.{hint}"


def _fields(place: str, config: Mapping[str, Any], fields: Mapping[str, ast.expr], kind: str = "key") -> Iterable[str]:
    """Settings of a task or backbone, held against the fields of its Config."""
    for key, value in config.items():
        if key not in fields:
            yield unknown(f"{place}.{key}", kind, key, fields)
        elif not code.fits(value, fields[key]):
            yield f"{FILE}, {place}.{key}: expected {ast.unparse(fields[key])}; got {value!r}. Correct the value."


_SECTIONS: dict[str, type[BaseModel]] = {
    "run": Run,
    "model": Model,
    "pretrain": Train,
    "finetune": Train,
    "grid": Block,
    "overrides": Override,
    "expected": Expected,
    "tuning": Tuning,
}


def _explain(error: Mapping[str, Any]) -> str:
    """One pydantic error as place, rule and what was got."""
    where = [
        str(part)
        for part in error["loc"]
        if part != "tuple[str, ...]" and not str(part).startswith(("literal", "tuple"))
    ]
    place = ".".join(where)
    if error["type"] == "extra_forbidden":
        owner: type[BaseModel] = Params
        for part in where[:-1]:
            owner = _SECTIONS.get(part, TierParams if part in ("smoke", "mini", "paper") else owner)
        return unknown(place, "key", where[-1], owner.model_fields)
    if error["type"] == "missing":
        return f"{FILE}, {place}: this key is needed and missing. Add it; the comments in {FILE} say what it means."
    if error["type"] == "literal_error" and not isinstance(error["input"], (list, tuple)):
        return f"{FILE}, {place}: expected {error['ctx']['expected']}; got {error['input']!r}. Choose one of them."
    return f"{FILE}, {place}: {error['msg'][0].lower()}{error['msg'][1:]}; got {error['input']!r}. Correct the value."
