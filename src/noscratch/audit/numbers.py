"""Numbers: each one on a page is followed to the bytes that it comes from, and computed again from them.

The contract is results/pages/numbers.py's: a <data> element has an address, exact values and a form of words. The
address is walked (walk.py). A number that has no address, whose way is broken anywhere, or that its bytes do not give
is a finding.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

from noscratch.audit.case import UNREADABLE, Case, Finding
from noscratch.audit.estimates import Value, close
from noscratch.audit.walk import Walk
from noscratch.results.pages.numbers import FORMS, bare, spoken
from noscratch.results.publish import GENERATED

PUBLIC = Path("public")
MEND = "Run `noscratch publish` and `noscratch site`; where the way is broken, mend what it names first."
# Addresses of what is added up, averaged or fitted; any other number stands in a file as it is on the page.
COMPUTED = re.compile(r"^(?:difference|sum)/|\*|^bench/[^/]+/[^/]+/\d+,")
# Pages of documents that somebody wrote: their prose is quoted, and its numbers are its author's.
WRITTEN = ("changelog", "log")
DECIMAL = re.compile(r"[-+−\[]?\d[\d,]*\.\d+(?:e[-+]?\d+)?[%×,\]]?")
SHOWN = 20  # findings of one page


class Number(NamedTuple):
    """A <data> element of a page: values as written, full address, form, and what the reader sees."""

    values: list[str]
    address: str
    form: str
    words: str


def check(case: Case) -> Iterator[Finding]:
    """Every number of every page, of the built site where it is there, else of the generated pages."""
    walk = Walk(case)
    for path in pages(case.root):
        found: list[Finding] = []
        text = path.read_text(encoding="utf-8", errors="replace")
        generated, article = GENERATED.name in path.parts, _article(text) if path.suffix == ".html" else text
        for number in numbers_of(article):
            case.numbers += 1
            if got := problem(walk, number):
                found.append(Finding(case.relative(path), "numbers", got, MEND))
        if generated and path.stem not in WRITTEN:
            blocks = article if path.suffix == ".html" else _without_front_matter(text)
            for digits in (*bare(blocks), *_linked(blocks, walk.statements)):
                found.append(Finding(case.relative(path), "numbers", f"{digits} has no address", MEND))
        yield from found[:SHOWN]
        if len(found) > SHOWN:
            yield Finding(case.relative(path), "numbers", f"and {len(found) - SHOWN} more", MEND)


def pages(root: Path) -> list[Path]:
    """The pages with numbers: built HTML, or the generated Markdown where nothing is built."""
    if (root / PUBLIC / "index.html").is_file():
        return sorted((root / PUBLIC).rglob("*.html"))
    return sorted((root / GENERATED).rglob("*.md"))


def _article(text: str) -> str:
    """What MkDocs made of the page itself, without navigation and footer."""
    start, end = text.find("<article"), text.rfind("</article>")
    return text[start:end] if 0 <= start < end else text


def _without_front_matter(text: str) -> str:
    """The HTML of a generated Markdown page; its other lines are headings and front matter, which name things."""
    return "\n".join(line for line in text.split("\n") if line.startswith(("<", " ")))


def _linked(html: str, statements: Collection[str]) -> Iterator[str]:
    """Decimal numbers in links without a <data> element: a link's digits are a name, its decimals are a score, unless
    it is the statement of a claim."""
    for inner in re.findall(r"<a [^>]*>(.*?)</a>", html, re.DOTALL):
        if "<data " not in inner and (text := _text(inner)) not in statements:
            yield from (word for word in text.split() if DECIMAL.fullmatch(word))


class _Reader(HTMLParser):
    """Collects the <data> elements of a page."""

    VOID = ("br", "img", "input", "link", "meta", "hr", "path", "rect", "circle", "line", "source", "wbr")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Number] = []
        self.stack: list[tuple[str, str]] = []  # element, the base of the addresses in it
        self.open: tuple[list[str], str, str] | None = None
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.VOID:
            return
        given = {name: value or "" for name, value in attrs}
        base = given.get("data-base", self.stack[-1][1] if self.stack else "")
        self.stack.append((tag, base))
        if tag == "data":
            address = given.get("data-cell", "")
            full = base + address.removeprefix("./") if address.startswith("./") else address
            self.open, self.text = (given.get("value", "").split(), full, given.get("data-form", "")), []

    def handle_endtag(self, tag: str) -> None:
        while self.stack:
            if self.stack.pop()[0] == tag:  # what HTML closes by itself is closed with it
                break
        if tag == "data" and self.open is not None:
            self.found.append(Number(*self.open, "".join(self.text)))
            self.open = None

    def handle_data(self, data: str) -> None:
        if self.open is not None:
            self.text.append(data)


def numbers_of(html: str) -> list[Number]:
    """Every <data> element of a page."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.found


def problem(walk: Walk, number: Number) -> str | None:
    """What is wrong with a number; None where its bytes give it to the last digit."""
    name = number.form.partition(":")[0]
    if not number.address:
        return f"{number.words!r} has no address"
    if name not in FORMS:
        return f"{number.address}: no form {number.form!r}"
    try:
        shown = [None if value == "-" else float(value) for value in number.values]
    except ValueError:
        return f"{number.address}: {' '.join(number.values)!r} are no numbers"
    found = walk.values(number.address)
    if isinstance(found, str):
        return f"{number.address}: {found}"
    same = close if COMPUTED.search(number.address) else _same
    if len(found) != len(shown) or not all(same(a, b) for a, b in zip(shown, found, strict=True)):
        return f"{number.address}: the page has {number.values}, its bytes give {found}"
    # The page's own values, of the type that its bytes have: 128 and 128.0 are other words.
    typed = [int(a) if a is not None and isinstance(b, int) else a for a, b in zip(shown, found, strict=True)]
    try:
        words = _text(str(spoken(number.form, *typed)))
    except UNREADABLE as error:
        return f"{number.address}: {found} cannot be put as {number.form}: {error}"
    return None if words == number.words else f"{number.address}: it reads {number.words!r}, its value {words!r}"


def _same(shown: Value, found: Value) -> bool:
    return shown is found if shown is None or found is None else shown == found


def _text(html: str) -> str:
    """The words of some HTML."""
    reader = _Words()
    reader.feed(html)
    reader.close()
    return "".join(reader.words)


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def handle_data(self, data: str) -> None:
        self.words.append(data)
