"""The pages that lay results out by task and by backbone, and the results page with everything."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from noscratch import tasks
from noscratch.results.pages import charts
from noscratch.results.pages.evidence import Evidence, Group, Run, gain, summarize
from noscratch.results.pages.markup import (
    Cell,
    Column,
    Html,
    Page,
    Row,
    backbone_page,
    chip,
    code,
    difference,
    facts,
    interval_text,
    join,
    link,
    metric_value,
    note,
    number,
    paragraphs,
    score,
    short,
    slug,
    smoke_note,
    table,
    tag,
    task_page,
    tier_badge,
)

PACKAGE = Path(__file__).parents[2]
# Fewer seeds than this and a cell is hatched: its interval says little.
FEW_SEEDS = 3


def pages(evidence: Evidence) -> Iterator[Page]:
    yield results_page(evidence)
    yield tasks_page(evidence)
    for task in evidence.task_names:
        yield task_detail(evidence, task)
    yield backbones_page(evidence)
    for backbone in evidence.backbones:
        yield backbone_detail(evidence, backbone)


def results_page(evidence: Evidence) -> Page:
    page = Page(
        "results.html", "Results", "Every result: mean, interval, seeds, tier, and the runs behind it.", wide=True
    )
    page.say(
        "Test scores of the checkpoint that validation selected: mean over seeds, 95 % t interval, n; "
        f"hatched cells have fewer than {FEW_SEEDS} seeds. Every number leads to its runs."
    )
    for tier in evidence.tiers:
        page.heading(f"Tier {tier}")
        if tier == "smoke":
            page.add(smoke_note())
        page.add(_matrix(evidence, tier))
    page.heading("All groups")
    page.add(group_table(evidence, evidence.groups, "", "Every group of runs, finished or not", tools=True))
    return page


def _matrix(evidence: Evidence, tier: str) -> Html:
    groups = {group for group in evidence.groups if group[0] == tier}
    names = sorted({group[1] for group in groups})
    lines = sorted({group[2:] for group in groups})
    rows = []
    for backbone, protocol in lines:
        cells: list[object] = [
            tag("span", link(backbone_page(backbone), backbone), tag("small", protocol), class_="ns-stack")
        ]
        for task in names:
            group = (tier, task, backbone, protocol)
            cells.append(_matrix_cell(evidence, group) if group in groups else Cell("", key=""))
        rows.append(cells)
    heads = [Column("Backbone, protocol"), *(Column(task, sort="number") for task in names)]
    return table(heads, rows, f"Tier {tier}: test score by backbone and protocol (rows) and task (columns)")


def _matrix_cell(evidence: Evidence, group: Group) -> Cell:
    scores = evidence.scores.get(group)
    if not scores:
        states = sorted({run.state for run in evidence.runs_of(group)})
        return Cell(join(map(chip, states), " "), key="", kind="ns-few")
    s = summarize(scores)
    label = tag("b", metric_value(s.mean, scores[0].metric))
    about = tag("small", f"{interval_text(s.low, s.high, scores[0].metric)} n = {s.n}")
    address = urlencode(dict(zip(("tier", "task", "backbone", "protocol"), group, strict=True)))
    head = link(f"results.html?{address}#all-groups", label, title=f"{scores[0].metric}: the runs behind it")
    return Cell(tag("span", head, about, class_="ns-stack"), key=s.mean, kind=_hatched(s.n))


def group_table(
    evidence: Evidence, groups: Sequence[Group], up: str, caption: str, tools: bool = False, without: str = ""
) -> Html:
    """One row per (tier, task, backbone, protocol): the score with all that belongs to it, and its runs.

    `without` leaves out the column that the page is about.
    """
    rows = []
    for group in groups:
        tier, task, backbone, protocol = group
        scores, runs = evidence.scores.get(group, []), evidence.runs_of(group)
        value = Cell("no score", key="", kind="ns-few ns-quiet")
        if scores:
            s = summarize(scores)
            value = Cell(score(s.mean, s.low, s.high, s.n, scores[0].metric, tier), s.mean, _hatched(s.n))
        cells = {
            "Task": link(up + task_page(task), task),
            "Backbone": link(up + backbone_page(backbone), backbone),
            "Protocol": protocol,
            "Metric": scores[0].metric if scores else "",
            "Test score": value,
            "Runs": Cell(_run_links(runs, up), kind="ns-runs"),
        }
        cells.pop(without, None)
        states = sorted({run.state for run in runs})
        rows.append(
            Row(
                list(cells.values()),
                {"tier": [tier], "task": [task], "backbone": [backbone], "protocol": [protocol], "state": states},
            )
        )
    columns: list[Column | str] = [
        "Task",
        "Backbone",
        "Protocol",
        "Metric",
        Column("Test score", sort="number"),
        Column("Runs", sort=None),
    ]
    columns = [column for column in columns if column != without]
    facets = ["tier", "task", "backbone", "protocol", "state"] if tools else []
    return table(columns, rows, caption, facets)


def _hatched(n: int) -> str | None:
    return "ns-few" if n < FEW_SEEDS else None


def _run_links(runs: Sequence[Run], up: str) -> Html:
    links = []
    for run in runs:
        links.append(link(up + run.cell.page, f"seed {run.cell.seed}"))
        if run.state != "done":
            links.append(chip(run.state))
    return join(links, " ") or Html("published record")


def task_module(task: str) -> Any:
    """The task's file (a variant `text-legacy` is a setting of `text`), or None when it has left the package."""
    name = task.partition("-")[0]
    return tasks.load(name) if name in tasks.names() else None


def sources_of(evidence: Evidence, task: str) -> tuple[str, ...]:
    """What a task is prepared from: what its record needed, or what its file names; nothing where it is generated."""
    if record := evidence.tasks.get(task):
        return tuple(record["needs"])
    module = task_module(task)
    return tuple(module.SPEC.sources) if module else ()


def tasks_page(evidence: Evidence) -> Page:
    page = Page("tasks/index.html", "Tasks", "The tasks: data, splits, metric and results.", wide=True)
    page.say(
        "What the backbones are tested on. Every task keeps validation apart from training and opens its test set once."
    )
    rows = []
    for task in evidence.task_names:
        record, module = evidence.tasks.get(task), task_module(task)
        splits = ((record or {}).get("result") or {}).get("splits")
        examples = " / ".join(number(splits[split]["examples"]) for split in tasks.SPLITS) if splits else ""
        state = "" if splits else chip(record["state"]) if record else "no longer in the plan"
        rows.append(
            (
                tag(
                    "span",
                    link(task_page(task)[6:], module.SPEC.title if module else task),
                    code(task),
                    class_="ns-stack",
                ),
                module.SPEC.kind if module else "",
                module.SPEC.metrics[0] if module else "",
                examples or state,
                Cell(", ".join(sources_of(evidence, task)) or "generated" if module else "", kind="ns-wide"),
                _finished(evidence, 1, task),
            )
        )
    columns = ["Task", "Kind", "Metric", "Train / validation / test", "Sources", "Runs finished"]
    page.add(table(columns, rows, f"{len(rows)} tasks"))
    return page


def _finished(evidence: Evidence, axis: int, name: str) -> str:
    runs = [run for run in evidence.runs.values() if run.cell.group[axis] == name]
    return f"{sum(run.state == 'done' for run in runs)} of {len(runs)}"


def task_detail(evidence: Evidence, task: str) -> Page:
    record = evidence.tasks.get(task)
    module = task_module(task)
    spec = module.SPEC if module else None
    page = Page(
        task_page(task),
        spec.title if spec else task,
        f"Task {task}: data, splits, sources, results.",
        crumbs=[("Tasks", "index.html")],
    )
    page.add(
        paragraphs(
            (module.__doc__ if module else "") or "This task is no longer part of the package; its results stay."
        )
    )
    if record and record["state"] != "done":
        page.add(note(tag("strong", record["state"]), f": {record['reason']}", kind="bad"))
    if spec:
        sources = (
            join((link(f"../data.html#{slug(name)}", name) for name in sources_of(evidence, task)), ", ")
            or "generated here, seeded"
        )
        page.add(
            facts(
                [
                    ("Kind", f"{spec.kind}, {spec.classes} classes" if spec.kind == "classification" else spec.kind),
                    ("Metric", ", ".join(spec.metrics) + (" (first is primary)" if len(spec.metrics) > 1 else "")),
                    ("Protocol", spec.protocol),
                    ("Sources", sources),
                    ("Self-pretraining", f"{spec.pretraining.ratio:.0%} masked, {spec.pretraining.loss}"),
                    ("Citation", spec.citation),
                ]
            )
        )
    _task_results(page, evidence, task)
    if record and record["result"]:
        _task_data(page, evidence, task, record, spec.kind if spec else "classification")
    return page


def _task_results(page: Page, evidence: Evidence, task: str) -> None:
    page.heading("Results")
    groups = [group for group in evidence.groups if group[1] == task]
    if not groups:
        page.say("The present plan has no run of this task.")
        return
    for tier in (tier for tier in evidence.tiers if any(group[0] == tier for group in groups)):
        if tier == "smoke":
            page.add(smoke_note())
        rows, metric = [], ""
        for group in (group for group in groups if group[0] == tier and group in evidence.scores):
            scores = evidence.scores[group]
            s, metric = summarize(scores), scores[0].metric
            rows.append((f"{group[2]}, {group[3]}", s.mean, s.low, s.high, s.n))
        if rows:
            page.add(
                charts.interval_chart(f"Test {metric}, tier {tier}, mean and 95 % interval over seeds", metric, rows)
            )
    page.add(group_table(evidence, groups, "../", "The groups behind the chart", without="Task"))
    _gains(page, evidence, groups)


def _gains(page: Page, evidence: Evidence, groups: Sequence[Group]) -> None:
    """Self-pretraining against scratch, paired over the seeds that both have."""
    rows = []
    for group in groups:
        base = (*group[:3], "scratch")
        if group[3] == "scratch" or group not in evidence.scores or base not in evidence.scores:
            continue
        scores = evidence.scores[group]
        s = gain(scores, evidence.scores[base])
        if s is None:
            continue
        label = difference(s.mean, s.low, s.high, s.n, scores[0].metric, group[0])
        rows.append((link("../" + backbone_page(group[2]), group[2]), group[3], Cell(label, s.mean, _hatched(s.n))))
    if rows:
        page.heading("Against scratch", 3)
        columns = ["Backbone", "Protocol", "Difference to scratch"]
        page.add(table(columns, rows, "Test score minus that of scratch, paired over seeds, with 95 % t intervals"))


def _task_data(page: Page, evidence: Evidence, task: str, record: Mapping[str, Any], kind: str) -> None:
    result = record["result"]
    page.heading("Data")
    page.say(f"Vocabulary of {number(result['vocabulary'])}, at most {number(result['length'])} tokens an example.")
    splits = result["splits"]
    rows = [
        (
            split,
            number(s["examples"]),
            number(s["tokens"]),
            f"{s['lengths']['min']} / {number(s['lengths']['mean'], 1)} / {s['lengths']['max']}",
            Cell(_labels(s["labels"], kind), kind="ns-wide"),
        )
        for split in tasks.SPLITS
        for s in [splits[split]]
    ]
    columns = [
        "Split",
        "Examples",
        "Tokens",
        "Length min / mean / max",
        "Labels",
    ]
    page.add(table(columns, rows, "What was prepared, all of it counted"))
    if kind == "classification":
        page.add(_majority(splits))
    page.heading("Where it comes from", 3)
    page.add(facts([("Address", code(record["address"])), ("Code digest", short(record["code"]))]))
    if record["inputs"]:
        page.add(table(["Input", "sha256"], [(n, code(d)) for n, d in sorted(record["inputs"].items())], "Inputs"))
    files = [(n, number(f["bytes"]), code(f["sha256"])) for n, f in sorted(record["artifacts"].items())]
    page.add(table(["File", "Bytes", "sha256"], files, "Prepared files"))
    page.command(f"noscratch run {record['address']}")


def _labels(labels: Mapping[str, float], kind: str) -> str:
    if kind == "regression":
        return f"{number(labels['min'])} to {number(labels['max'])}, mean {number(labels['mean'])}"
    total = sum(labels.values())
    return ", ".join(f"{name}: {number(count)} ({count / total:.0%})" for name, count in labels.items())


def _majority(splits: Mapping[str, Any]) -> Html:
    label = max(splits["train"]["labels"], key=lambda name: (splits["train"]["labels"][name], name))
    test = splits["test"]["labels"]
    share = test.get(label, 0) / sum(test.values())
    return tag(
        "p",
        f"Answering the most frequent training label ({label}) every time is right on {share:.1%} "
        f"of the {number(sum(test.values()))} test examples.",
    )


@dataclass(frozen=True)
class Description:
    """A backbone's file, read without importing it (that would load torch): what it says of itself and its settings."""

    doc: str
    paper: str
    defaults: str
    settings: Sequence[Sequence[str]]


def describe(backbone: str) -> Description | None:
    """None for a backbone whose file has left the package."""
    path = PACKAGE / "backbones" / f"{backbone.partition('-')[0]}.py"
    if not path.exists():
        return None
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    tree = ast.parse(source)
    paper, defaults = "", ""
    settings: list[list[str]] = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "PAPER" for t in node.targets):
            paper = str(ast.literal_eval(node.value))
        if isinstance(node, ast.ClassDef) and node.name == "Config":
            defaults = ast.get_docstring(node) or ""
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and item.value is not None:
                    comment = lines[item.lineno - 1].partition("#")[2].strip()
                    settings.append([ast.unparse(item.target), ast.unparse(item.value), comment])
                elif isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and settings:
                    settings[-1][2] = " ".join(str(item.value.value).split())
    return Description(ast.get_docstring(tree) or "", paper, defaults, settings)


def backbones_page(evidence: Evidence) -> Page:
    page = Page("backbones/index.html", "Backbones", "The backbones: what each is, its paper, its results.", wide=True)
    page.say(
        "The architectures under test. All share one embedding, one head, one training loop; only the block differs."
    )
    rows = []
    for backbone in evidence.backbones:
        described = describe(backbone)
        about = described.doc.strip().partition("\n")[0] if described else "no longer part of the package"
        paper = described.paper if described else ""
        cells = (Cell(about, kind="ns-wide"), Cell(paper, kind="ns-wide"), _finished(evidence, 2, backbone))
        rows.append((link(backbone_page(backbone)[10:], backbone), *cells))
    page.add(table(["Backbone", "What it is", "Paper", "Runs finished"], rows, f"{len(rows)} backbones"))
    return page


def backbone_detail(evidence: Evidence, backbone: str) -> Page:
    page = Page(
        backbone_page(backbone),
        backbone,
        f"Backbone {backbone}: what it is and its results.",
        crumbs=[("Backbones", "index.html")],
    )
    described = describe(backbone)
    if described:
        page.add(paragraphs(described.doc))
        if described.paper:
            page.add(
                facts(
                    [
                        ("Paper", described.paper),
                        ("File", code(f"src/noscratch/backbones/{backbone.partition('-')[0]}.py")),
                    ]
                )
            )
    else:
        page.say("This backbone is no longer part of the package; its results stay.")
    page.heading("Results")
    groups = [group for group in evidence.groups if group[2] == backbone]
    if any(group[0] == "smoke" for group in groups):
        page.add(smoke_note())
    page.add(group_table(evidence, groups, "../", f"Every group of runs with {backbone}", without="Backbone"))
    sizes: dict[tuple[str, str, int], set[str]] = {}
    for run in evidence.runs.values():
        if run.cell.backbone == backbone and run.state == "done" and "finetune" in run.records:
            count = run.records["finetune"]["result"]["counts"]["parameters"]
            sizes.setdefault((run.cell.tier, run.cell.task, count), set()).add(run.cell.protocol)
    if sizes:
        page.heading("Size")
        rows = [
            (tier_badge(tier), link("../" + task_page(task), task), ", ".join(sorted(protocols)), number(count))
            for (tier, task, count), protocols in sorted(sizes.items())
        ]
        columns = ["Tier", "Task", "Protocols", "Parameters"]
        page.add(table(columns, rows, "Parameters of the whole model, embedding and head included"))
    if described and described.settings:
        page.heading("Settings and where they come from")
        page.add(paragraphs(described.defaults))
        settings = [
            (code(name), code(default), Cell(comment, kind="ns-wide")) for name, default, comment in described.settings
        ]
        page.add(
            table(
                ["Setting", "Default", "Meaning and source"],
                settings,
                "The file's own defaults; params.yaml may override them",
            )
        )
    return page
