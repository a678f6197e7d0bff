"""The pages of the backbones: what each is, its paper, its size and speed, its results, the errors of its kernels."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from noscratch.backbones import file_of
from noscratch.plan import BASELINES
from noscratch.results.pages import numerics, performance
from noscratch.results.pages.evidence import Evidence
from noscratch.results.pages.markup import (
    Cell,
    Html,
    Page,
    backbone_page,
    code,
    facts,
    link,
    paragraphs,
    smoke_note,
    table,
    task_page,
    tier_badge,
)
from noscratch.results.pages.numbers import shown, words
from noscratch.results.pages.pictures import impulse_responses
from noscratch.results.pages.scores import group_page, group_table, score_at
from noscratch.results.pages.tasks import finished

PACKAGE = Path(__file__).parents[2]


def pages(evidence: Evidence) -> Iterator[Page]:
    yield _index(evidence)
    for backbone in evidence.backbones:
        yield _detail(evidence, backbone)


@dataclass(frozen=True)
class Description:
    """A backbone's file, read without importing it (that would load torch): what it says of itself, of its classes
    (their equations) and of its settings."""

    file: str
    doc: str
    parts: Sequence[tuple[str, str]]
    paper: str
    defaults: str
    settings: Sequence[Sequence[str]]


def describe(backbone: str) -> Description | None:
    """None for a backbone whose file has left the package."""
    if backbone in BASELINES:
        return _baseline(backbone)
    path = PACKAGE / "backbones" / f"{file_of(backbone)}.py"
    if not path.exists():
        return None
    tree = _parsed(path)
    papers = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["PAPER"]
    )
    defaults = ast.get_docstring(_class(tree, "Config")) or ""
    settings = [(name, *said) for name, said in _settings(path, "Config").items()]
    doc, classes = ast.get_docstring(tree) or "", (node for node in tree.body if isinstance(node, ast.ClassDef))
    parts = [(node.name, ast.get_docstring(node) or "") for node in classes if node.name != "Config"]
    return Description(f"backbones/{path.name}", doc, parts, next(papers, ""), defaults, settings)


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _class(tree: ast.Module, name: str) -> ast.ClassDef:
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def _settings(path: Path, name: str) -> dict[str, tuple[str, str]]:
    """The fields of a class, those of its parents first: name -> default and what the string below it says."""
    tree = _parsed(path)
    imported = {
        alias.name: PACKAGE.joinpath(*node.module.split(".")[1:]).with_suffix(".py")
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("noscratch.")
        for alias in node.names
    }
    found: dict[str, tuple[str, str]] = {}
    last = ""
    for parent in _class(tree, name).bases:
        parent_name = ast.unparse(parent)
        found |= _settings(imported.get(parent_name, path), parent_name)
    for item in _class(tree, name).body:
        if isinstance(item, ast.AnnAssign) and item.value is not None:
            last = ast.unparse(item.target)
            found[last] = ast.unparse(item.value), found.get(last, ("", ""))[1]
        elif isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and last:
            found[last] = found[last][0], " ".join(str(item.value.value).split())
    return found


def _baseline(name: str) -> Description:
    """A baseline is a line of its file's docstring: the name, two blanks, what it is."""
    doc = ast.get_docstring(ast.parse((PACKAGE / "baselines.py").read_text(encoding="utf-8"))) or ""
    about = next(line.partition(" ")[2].strip() for line in doc.splitlines() if line.startswith(f"{name} "))
    return Description("baselines.py", f"A baseline: {about}.", [], "", "", [])


def _index(evidence: Evidence) -> Page:
    page = Page("backbones/index.html", "Backbones", "The backbones: what each is, its paper, its results.", wide=True)
    page.say(
        "The architectures under test. All share one embedding, one head, one training loop; only the block differs."
    )
    rows = []
    for backbone in evidence.backbones:
        described = describe(backbone)
        about = described.doc.strip().partition("\n")[0] if described else "no longer part of the package"
        rows.append(
            (
                link(backbone_page(backbone)[10:], backbone),
                Cell(words(about), kind="ns-wide"),
                Cell(words(described.paper if described else ""), kind="ns-wide"),
                finished(evidence, "backbone", backbone),
            )
        )
    columns = ["Backbone", "What it is", "Paper", "Runs finished"]
    page.add(table(columns, rows, "Every backbone and variant of the plan, and every other that has results"))
    return page


def _detail(evidence: Evidence, backbone: str) -> Page:
    family = file_of(backbone)
    page = Page(
        backbone_page(backbone),
        backbone,
        f"Backbone {backbone}: what it is and its results.",
        crumbs=[("Backbones", "index.html")],
        wide=True,
    )
    described = describe(backbone)
    if described:
        page.add(paragraphs(described.doc))
        file = code(f"src/noscratch/{described.file}")
        page.add(
            facts([("Paper", words(described.paper)), ("File", file)]) if described.paper else facts([("File", file)])
        )
        if described.parts:
            equations = [(code(name), Cell(paragraphs(doc), kind="ns-wide")) for name, doc in described.parts]
            page.add(table(["Part", "What it computes"], equations, "Its parts, as its file says"))
        page.add(*impulse_responses(evidence, family))
    else:
        page.say("This backbone is no longer part of the package; its results stay.")
    page.heading("Results")
    groups = [group for group in evidence.groups if group[2] == backbone]
    if any(group[0] == "smoke" for group in groups):
        page.add(smoke_note())
    page.add(group_table(evidence, groups, "../", "Every group of its runs", without=["Backbone"]))
    _size(page, evidence, backbone)
    performance.of_backbone(page, evidence, family)
    numerics.of_backbone(page, evidence, family)
    if described and described.settings:
        page.heading("Settings and where they come from")
        page.add(paragraphs(described.defaults))
        settings = [
            (code(name), code(default), Cell(words(comment), kind="ns-wide"))
            for name, default, comment in described.settings
        ]
        columns = ["Setting", "Default", "Meaning and source"]
        page.add(table(columns, settings, "The file's own defaults; params.yaml may override them"))
    return page


def _size(page: Page, evidence: Evidence, backbone: str) -> None:
    """Parameters by tier and task, with the protocols that share them; one run stands for those that agree with it."""
    sizes: dict[tuple[str, str, int], tuple[Html, dict[str, None]]] = {}
    for row in evidence.results:
        if (
            row["backbone"] == backbone
            and row["phase"] == "finetune"
            and row["parameters"] is not None
            and row["primary"]
            and row["split"] == "test"
        ):
            group = (row["tier"], row["task"], backbone, row["protocol"])
            address = score_at(group, row["metric"], row["seed"], "parameters")
            words_ = link(f"../{group_page(group)}", shown(address, "number", row["parameters"]))
            _, protocols = sizes.setdefault((row["tier"], row["task"], row["parameters"]), (words_, {}))
            protocols[row["protocol"]] = None
    if sizes:
        page.heading("Size")
        rows = [
            (tier_badge(tier), link("../" + task_page(task), task), ", ".join(protocols), count)
            for (tier, task, _), (count, protocols) in sorted(sizes.items())
        ]
        caption = "Parameters of the whole model, embedding and head included"
        page.add(table(["Tier", "Task", "Protocol", "Parameters"], rows, caption))
