"""HTML and Markdown by hand, escaped by construction.

`Html` marks text that is already markup; every other string that enters a `tag` is escaped, so a run named `<script>`
stays text. Pages are Markdown (headings, prose) with blocks of HTML (tables, figures), which MkDocs passes through.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from html import escape

# Elements of SVG that close themselves when they are empty.
SHAPES = ("circle", "line", "path", "rect")
# A fact of more characters takes two columns.
LONG_FACT = 60
SMOKE = "smoke: proof that the machine works, never evidence"


class Html(str):
    """Markup, already escaped."""

    __slots__ = ()


def text(value: object) -> Html:
    """`value` as markup: escaped unless it is `Html` already."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def join(parts: Iterable[object], separator: str = "") -> Html:
    return Html(separator.join(text(part) for part in parts))


def tag(name: str, *children: object, **attributes: object) -> Html:
    """An element. `class_` is `class`, `data_key` is `data-key`; None and False leave an attribute out, True bare."""
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f"{key}={_quoted(str(value))}")
    if name in SHAPES and not children:
        return Html(f"<{' '.join(words)}/>")
    return Html(f"<{' '.join(words)}>{join(children)}</{name}>")


def _quoted(value: str) -> str:
    """In single quotes where that needs fewer escapes, as for JSON."""
    if '"' in value and "'" not in value:
        return f"'{escape(value, quote=False)}'"
    return f'"{escape(value)}"'


def link(href: str, *children: object, **attributes: object) -> Html:
    return tag("a", *children, href=href, **attributes)


def code(value: object) -> Html:
    return tag("code", value)


def prose(value: object) -> str:
    """Untrusted text for a Markdown line: HTML and Markdown both escaped."""
    return re.sub(r"([\\`*_{}\[\]()#+.!-])", r"\\\1", " ".join(escape(str(value)).split()))


def slug(name: str) -> str:
    """A file name for `name`: itself when it is plain, else its plain part and eight digits of its sha256."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")
    return plain if plain and plain == name else f"{plain or 'x'}-{sha256(name.encode()).hexdigest()[:8]}"


@dataclass
class Page:
    """One Markdown page: its path below the generated folder, its title, and its blocks in order.

    A page with a `template` of its own (site/overrides) is left out of the search index: there may be a thousand. One
    below parts/ is not a page but what a hand-written page includes: it has blocks only.
    """

    path: str
    title: str
    description: str
    crumbs: Sequence[tuple[str, str]] = ()
    wide: bool = False
    template: str = ""
    blocks: list[str] = field(default_factory=list)

    def heading(self, title: object, level: int = 2) -> None:
        self.blocks.append(f"{'#' * level} {prose(title)}")

    def say(self, *parts: object) -> None:
        """A paragraph; plain strings are escaped."""
        self.blocks.append(tag("p", *parts))

    def add(self, *blocks: Html) -> None:
        self.blocks.extend(blocks)

    def command(self, line: str) -> None:
        self.add(command(line))

    def bytes(self) -> bytes:
        if self.path.startswith("parts/"):
            return ("\n\n".join(self.blocks) + "\n").encode()
        hidden = ["navigation", "toc"] if self.wide else ["navigation"]
        # JSON strings are YAML strings; the theme prints a title unescaped, so it is escaped here.
        front = {"title": escape(self.title), "description": escape(self.description), "hide": hidden}
        head: list[str] = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items())]
        if self.template:
            head += [f"template: {self.template}", "search:", "  exclude: true"]
        head.append("---")
        crumbs = []
        if self.crumbs:
            trail = join((link(href, name) for name, href in self.crumbs), Html(" <span aria-hidden='true'>/</span> "))
            crumbs = [tag("nav", trail, class_="ns-crumbs", aria_label="Breadcrumb")]
        return "\n\n".join(["\n".join(head), *crumbs, f"# {prose(self.title)}", *self.blocks, ""]).encode()


def command(line: str) -> Html:
    """A shell command that can be copied."""
    return tag("pre", tag("code", line), class_="ns-command")


def note(*parts: object, kind: str = "note") -> Html:
    return tag("div", *parts, class_=f"ns-note ns-note--{kind}", role="note")


def smoke_note() -> Html:
    return note(
        tag("strong", SMOKE),
        ". Numbers that wear this badge come from a few steps on little data. "
        "They show that the pipeline runs, nothing about a claim.",
        kind="smoke",
    )


def tier_badge(tier: str) -> Html:
    return tag("span", tier, class_=f"ns-tier ns-tier--{slug(tier)}", title=SMOKE if tier == "smoke" else None)


def chip(state: str) -> Html:
    """A verdict or a run's state: colour, shape and word say the same."""
    return tag("span", state, class_=f"ns-chip ns-chip--{slug(state.replace(' ', '-'))}")


def facts(rows: Mapping[str, object] | Sequence[tuple[str, object]]) -> Html:
    """Names and values, one under another."""
    pairs = rows.items() if isinstance(rows, Mapping) else rows
    lines = []
    for name, value in pairs:
        long = len(re.sub(r"<[^>]*>", "", text(value))) > LONG_FACT
        lines.append(tag("div", tag("dt", name), tag("dd", value), class_="ns-long" if long else None))
    return tag("dl", *lines, class_="ns-facts")


@dataclass(frozen=True)
class Column:
    """A table's column; `sort` is "text", "number" or none."""

    label: str
    sort: str | None = "text"


@dataclass(frozen=True)
class Cell:
    """A cell that sorts by something else than its text (`key`; "" goes last) or has a class of its own."""

    content: object
    key: object = None
    kind: str | None = None


@dataclass(frozen=True)
class Row:
    """A row and the values that it is filtered by, for each facet of the table."""

    cells: Sequence[object]
    facets: Mapping[str, Sequence[str]]


def table(
    columns: Sequence[Column | str],
    rows: Iterable[Sequence[object] | Row],
    caption: object,
    facets: Sequence[str] = (),
    named: bool = False,
) -> Html:
    """A table in a frame that scrolls, left out of the search. Where `named`, the first cell is the name of its row.

    With `facets` the page's script adds selectors, a search field and sorting.
    """
    heads = [column if isinstance(column, Column) else Column(column) for column in columns]
    top = tag("tr", *(tag("th", head.label, scope="col", data_sort=head.sort if facets else None) for head in heads))
    given = (row if isinstance(row, Row) else Row(row, {}) for row in rows)
    lines = join((_row(row, len(heads), facets, named) for row in given), "\n")
    sheet = tag(
        "table",
        tag("caption", caption),
        tag("thead", top),
        tag("tbody", lines),
        class_="ns-table",
        data_facets=" ".join(facets) or None,
    )
    return tag("div", sheet, class_="ns-frame", data_search_exclude=True)


def _row(row: Row, width: int, facets: Sequence[str], named: bool) -> Html:
    assert len(row.cells) == width, row
    cells = [each if isinstance(each, Cell) else Cell(each) for each in row.cells]
    values = json.dumps([row.facets[name] for name in facets], separators=(",", ":")) if facets else None
    parts = [tag("td", cell.content, data_key=cell.key, class_=cell.kind) for cell in cells]
    if named:
        parts[0] = tag("th", cells[0].content, scope="row")
    return tag("tr", *parts, data_values=values)


def details(summary: object, *children: object) -> Html:
    return tag("details", tag("summary", summary), *children, class_="ns-details")


def listing(lines: Iterable[str]) -> Html:
    """Plain lines, as they are."""
    return tag("pre", tag("code", "\n".join(lines)), class_="ns-listing")


def short(digest: str, digits: int = 12) -> Html:
    """A digest, cut for the eye; the whole one is in its title."""
    return tag("code", digest[:digits] + "…", title=digest, class_="ns-digest")


def task_page(task: str) -> str:
    return f"tasks/{slug(task)}.html"


def backbone_page(backbone: str) -> str:
    return f"backbones/{slug(backbone)}.html"


def claim_page(claim: str) -> str:
    return f"claims/{slug(claim)}.html"


def paper_page(paper: str) -> str:
    return f"papers/{slug(paper)}.html"


def paragraphs(docstring: str) -> Html:
    """A docstring as paragraphs, quoted: indented blocks stay as they are, `names` become code."""
    parts = []
    for block in re.split(r"\n\s*\n", docstring.strip()):
        if all(line.startswith("    ") for line in block.splitlines()):
            parts.append(tag("pre", tag("code", block)))
        else:
            words = re.split(r"`+([^`]+)`+", " ".join(block.split()))
            parts.append(tag("p", *(code(word) if k % 2 else word for k, word in enumerate(words))))
    return tag("div", *parts, class_="ns-words")
