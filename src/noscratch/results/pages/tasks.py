"""The pages of the tasks: what each is, its data and splits, its baselines and its results."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from noscratch import tasks
from noscratch.backbones import file_of
from noscratch.results.pages import charts, learning
from noscratch.results.pages.evidence import Evidence, Group, summarize
from noscratch.results.pages.markup import (
    Cell,
    Html,
    Page,
    backbone_page,
    chip,
    code,
    details,
    facts,
    join,
    link,
    note,
    paragraphs,
    short,
    slug,
    smoke_note,
    table,
    tag,
    task_page,
)
from noscratch.results.pages.numbers import at, inside, of_metric, shown, words
from noscratch.results.pages.scores import (
    MATCHED,
    SCRATCH,
    gain_of,
    gain_words,
    group_page,
    group_table,
    hatched,
    interval,
    pair_figure,
    pairs,
)


def pages(evidence: Evidence) -> Iterator[Page]:
    yield _index(evidence)
    for task in evidence.task_names:
        yield _detail(evidence, task)


def task_module(task: str) -> Any:
    """The file of a task (a variant `text-legacy` is a setting of `text`), or of a corpus that models are pretrained
    on; None when it has left the package."""
    name = file_of(task)
    corpus = f"noscratch.corpora.{name}"
    if name in tasks.names():
        return tasks.load(name)
    return importlib.import_module(corpus) if importlib.util.find_spec(corpus) else None


def title_of(task: str) -> str:
    """What a task is called in a word; a variant by its name alone."""
    module = task_module(task)
    return module.SPEC.title.partition(":")[0] if module and "-" not in task else task


def sources_of(evidence: Evidence, task: str) -> tuple[str, ...]:
    """What a task is prepared from: what its record needed, or what its file names; nothing where it is generated."""
    if record := evidence.tasks.get(task):
        return tuple(record["needs"])
    module = task_module(task)
    return tuple(module.SPEC.sources) if module else ()


def finished(evidence: Evidence, axis: str, name: str) -> Html:
    """How many runs of a task or backbone finished, of how many."""
    runs = [run for run in evidence.runs.values() if getattr(run.cell, axis) == name]
    done = sum(run.state == "done" for run in runs)
    every = at("count", "cells", **{axis: name})
    return join(
        [shown(at("count", "cells", **{axis: name}, state="done"), "number", done), shown(every, "number", len(runs))],
        " of ",
    )


def _prepared(task: str, *pointer: object) -> str:
    return inside("record", f"data/prepared/{task}", "result", *pointer)


def _index(evidence: Evidence) -> Page:
    page = Page("tasks/index.html", "Tasks", "The tasks: data, splits, metric and results.", wide=True)
    page.say(
        "What the backbones are tested on. Every task keeps validation apart from training and opens its test set once."
    )
    rows = []
    for task in evidence.task_names:
        record, module = evidence.tasks.get(task), task_module(task)
        splits = ((record or {}).get("result") or {}).get("splits")
        state = "" if splits else chip(record["state"]) if record else "no longer in the plan"
        examples = join((_examples(task, split, splits) for split in tasks.SPLITS), " / ") if splits else state
        title = link(task_page(task)[6:], module.SPEC.title if module else task)
        rows.append(
            (
                tag("span", title, code(task), class_="ns-stack"),
                module.SPEC.kind if module else "",
                ", ".join(module.SPEC.metrics[:1]) if module else "",
                examples,
                Cell(words(", ".join(sources_of(evidence, task)) or "generated" if module else ""), kind="ns-wide"),
                finished(evidence, "task", task),
            )
        )
    columns = ["Task", "Kind", "Metric", "Train / validation / test", "Sources", "Runs finished"]
    page.add(table(columns, rows, "Every task of the plan, and every other that has results"))
    return page


def _examples(task: str, split: str, splits: Mapping[str, Any]) -> Html:
    return shown(_prepared(task, "splits", split, "examples"), "number", splits[split]["examples"])


def _detail(evidence: Evidence, task: str) -> Page:
    record = evidence.tasks.get(task)
    module = task_module(task)
    spec = module.SPEC if module else None
    page = Page(
        task_page(task),
        spec.title if spec else task,
        f"Task {task}: data, splits, sources, results.",
        crumbs=[("Tasks", "index.html")],
    )
    about = module.__doc__ if module else "This task is no longer part of the package; its results stay."
    page.add(paragraphs(about or ""))
    if record and record["state"] != "done":
        page.add(note(tag("strong", record["state"]), ": ", words(record["reason"]), kind="bad"))
    if spec:
        names = (link(f"../data.html#{slug(name)}", name) for name in sources_of(evidence, task))
        kind = f"{spec.kind}, {spec.classes} classes" if spec.kind == "classification" else spec.kind
        page.add(
            facts(
                [
                    ("Kind", words(kind)),
                    ("Metric", words(", ".join(spec.metrics) + (" (first is primary)" if spec.metrics[1:] else ""))),
                    ("Protocol", words(spec.protocol)),
                    ("Sources", join(names, ", ") or "generated here, seeded"),
                    ("Self-pretraining", words(f"{spec.pretraining.ratio:.0%} masked, {spec.pretraining.loss}")),
                    ("Citation", words(spec.citation)),
                ]
            )
        )
    _results(page, evidence, task)
    if record and record["result"]:
        _data(page, task, record, spec.kind if spec else "classification")
    return page


def _results(page: Page, evidence: Evidence, task: str) -> None:
    page.heading("Results")
    groups = [group for group in evidence.groups if group[1] == task]
    if not groups:
        page.say("The present plan has no run of this task.")
        return
    for tier in (tier for tier in evidence.tiers if any(group[0] == tier for group in groups)):
        page.heading(f"Tier {tier}", 3)
        if tier == "smoke":
            page.add(smoke_note())
        mine = [group for group in groups if group[0] == tier]
        page.add(*_figure(evidence, tier, mine))
        page.add(group_table(evidence, mine, "../", "Every group of runs", without=["Tier", "Task"]))
        _gains(page, evidence, tier, task)
        learning.onsets(page, evidence, tier, task)
        _search(page, evidence, tier, task)


def _gains(page: Page, evidence: Evidence, tier: str, task: str) -> None:
    """Self-pretraining against scratch, seed by seed, and against as much compute from scratch: figures and text."""
    groups = [group for group in evidence.groups if group[:2] == (tier, task)]
    found = [(base, list(pairs(evidence, groups, base))) for base in (SCRATCH, MATCHED)]
    if not any(both for _, both in found):
        return
    page.heading("Self-pretraining against scratch", 4)
    figures, lines = [], []
    for base, both in found:
        for protocol in dict.fromkeys(group[3] for group, _ in both):
            rows = [(group[2], other, group) for group, other in both if group[3] == protocol]
            figures.append(pair_figure(evidence, f"{protocol} and {base}", rows, (base, protocol)))
        for group, other in both:
            if s := gain_of(evidence, group, other):
                cells = (
                    link("../" + backbone_page(group[2]), group[2]),
                    link("../" + group_page(group), group[3]),
                    link("../" + group_page(other), base),
                    Cell(gain_words(evidence, group, other, s), kind=hatched(s.n)),
                )
                lines.append(cells)
    columns = ["Backbone", "Protocol", "Less", "Difference"]
    text = table(columns, lines, "Differences of test scores, paired over the seeds that both have")
    page.add(tag("div", *figures, class_="ns-figures"), details("The differences as text", text))


def _search(page: Page, evidence: Evidence, tier: str, task: str) -> None:
    """The trials among which validation chose learning rate and weight decay before the runs."""
    rows = []
    for folder, record, chosen in evidence.trials:
        cell, result = record["cell"], record["result"]
        if (cell["tier"], cell["task"]) != (tier, task):
            continue
        score: object = chip(record["state"])
        if result:
            metric = result["primary"]
            value = result["metrics"]["validation"][metric]
            score = shown(inside("record", folder, "result", "metrics", "validation", metric), of_metric(metric), value)
        settings = (words(f"{record['settings']['train'][name]:g}") for name in ("lr", "weight_decay"))
        mark = tag("strong", "chosen") if chosen else ""
        rows.append((link("../" + backbone_page(cell["backbone"]), cell["backbone"]), *settings, score, mark))
    if rows:
        page.heading("How learning rates were chosen", 4)
        page.say(
            "Each pair was trained once from scratch, with a seed whose results are not reported. The validation set "
            "chose; the test set was not opened."
        )
        columns = ["Backbone", "Learning rate", "Weight decay", "Validation", ""]
        page.add(details("The trials", table(columns, rows, "Every trial of the search")))


def _figure(evidence: Evidence, tier: str, groups: Sequence[Group]) -> list[Html]:
    rows, metric = [], ""
    for group in groups:
        if scores := evidence.scores.get(group):
            s, metric = summarize(scores), scores[0].metric
            rows.append((f"{group[2]}, {group[3]}", interval(s), s.n))
    title = f"Test {metric}, tier {tier}: mean and interval over seeds"
    return [charts.interval_chart(title, metric, rows, tier == "smoke")] if rows else []


def _data(page: Page, task: str, record: Mapping[str, Any], kind: str) -> None:
    result = record["result"]
    page.heading("Data")
    page.say(
        "Vocabulary of ",
        shown(_prepared(task, "vocabulary"), "number", result["vocabulary"]),
        ", at most ",
        shown(_prepared(task, "length"), "number", result["length"]),
        " tokens an example.",
    )
    splits = result["splits"]
    columns = ["Split", "Examples", "Tokens", "Length min / mean / max", "Labels"]
    rows = [
        (
            split,
            _examples(task, split, splits),
            shown(_prepared(task, "splits", split, "tokens"), "number", splits[split]["tokens"]),
            join((_length(task, split, which, splits) for which in ("min", "mean", "max")), " / "),
            Cell(_labels(task, split, splits[split]["labels"], kind), kind="ns-wide"),
        )
        for split in tasks.SPLITS
    ]
    page.add(table(columns, rows, "What was prepared, all of it counted"))
    page.heading("Where it comes from", 3)
    page.add(facts([("Address", code(record["address"])), ("Code digest", short(record["code"]))]))
    if record["inputs"]:
        page.add(
            table(["Input", "sha256"], [(code(n), code(d)) for n, d in sorted(record["inputs"].items())], "Inputs")
        )
    folder = f"data/prepared/{task}"
    files = [
        (
            code(name),
            shown(inside("record", folder, "artifacts", name, "bytes"), "bytes", f["bytes"]),
            code(f["sha256"]),
        )
        for name, f in sorted(record["artifacts"].items())
    ]
    page.add(table(["File", "Size", "sha256"], files, "Prepared files"))
    page.command(f"noscratch run {record['address']}")


def _length(task: str, split: str, which: str, splits: Mapping[str, Any]) -> Html:
    return shown(_prepared(task, "splits", split, "lengths", which), "number", splits[split]["lengths"][which])


def _labels(task: str, split: str, labels: Mapping[str, float], kind: str) -> Html:
    """Of classes the counts, of values the range."""
    at_label = {
        name: shown(_prepared(task, "splits", split, "labels", name), "number", v) for name, v in labels.items()
    }
    if kind == "regression":
        return join([at_label["min"], " to ", at_label["max"], ", mean ", at_label["mean"]])
    return join((join([words(name), ": ", count]) for name, count in at_label.items()), ", ")
