"""What changed: the changelog with the numbers that changed and why, every change of a verdict (also as an Atom feed),
and the log of what was tried."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from noscratch.results.claims import Claim, Conflict, Measured
from noscratch.results.pages.board import COUNTED_WORDS, verdict_word
from noscratch.results.pages.evidence import Evidence
from noscratch.results.pages.markup import (
    Cell,
    Html,
    Page,
    Row,
    chip,
    claim_page,
    link,
    short,
    table,
    tag,
    tier_badge,
)
from noscratch.results.pages.numbers import inside, shown, words

CHANGELOG, LOG = "CHANGELOG.md", "reports/LOG.md"
FEED = "verdicts.atom"
FIGURES = ("estimate", "interval_low", "interval_high", "n")
DIFFER = "between the sources"
# Of a feed without entries: an hour that never changes.
NEVER = "1970-01-01T00:00:00Z"


def pages(evidence: Evidence) -> Iterator[Page]:
    about = "What changed, which numbers changed and why, every change of a verdict."
    page = Page("changelog.html", "Changelog", about, wide=True)
    page.say(
        "Every release, every change of a verdict, and every number that changed, with its cause. Follow the verdicts "
        "with a reader of feeds: ",
        link(FEED, "Atom feed"),
        ". What was tried and what came of it: the ",
        link("log.html", "log"),
        ".",
    )
    page.blocks.append(_document(evidence, CHANGELOG))
    page.heading("Verdicts")
    if evidence.history:
        page.add(history_table(evidence, list(enumerate(evidence.history))[::-1], "", facets=("verdict", "paper")))
    else:
        page.say("No verdict has been published yet.")
    yield page
    log = Page(
        "log.html", "Log", "What was tried, dated, with what came of it.", crumbs=[("Changelog", "changelog.html")]
    )
    log.blocks.append(_document(evidence, LOG) or "Nothing has been logged yet.")
    yield log


def _document(evidence: Evidence, name: str) -> str:
    """A Markdown file of the repository without its title; empty where there is none."""
    path = evidence.root / name
    if not path.exists():
        return ""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("# ")).strip()


def files(evidence: Evidence) -> dict[str, bytes]:
    return {FEED: feed(evidence.history).encode()}


def history_table(
    evidence: Evidence, lines: Sequence[tuple[int, Mapping[str, Any]]], up: str, facets: Sequence[str] = ()
) -> Html:
    """Changes of verdicts: (line of reports/verdicts.jsonl, what it says)."""
    of = {claim.id: (paper.paper, claim) for paper in evidence.papers for claim in paper.claims}
    rows = []
    for k, line in lines:
        paper, claim = of[line["claim"]]
        verdict = verdict_word(claim, line["verdict"])
        cells = (
            tag("time", line["date"]),
            Cell(link(up + claim_page(line["claim"]), f"{line['claim']} version {line['version']}"), kind="ns-wrap"),
            chip(verdict),
            tier_badge(line["tier"]) if line["tier"] != "none" else "",
            Cell(_figures(k, line["figures"], claim), kind="ns-wide"),
            short(line["commit"]) if line["commit"] else "none",
        )
        rows.append(Row(cells, {"verdict": [verdict], "paper": [paper]}))
    columns = ["Date", "Claim", "Verdict", "Tier", "Ours, as it was then", "Commit"]
    return table(columns, rows, "Every verdict that was published, and what it rested on", facets)


def _figures(line: int, figures: Mapping[str, Mapping[str, Any]], claim: Claim) -> Html:
    """Each quantity with its estimate, interval and n; what was counted is exact, and sources differ by so much."""
    parts = []
    for quantity, of in figures.items():
        exact = isinstance(claim, Conflict) or (isinstance(claim, Measured) and claim.kind != "efficiency")
        columns = FIGURES[:1] if exact else FIGURES
        form = f"unit:{claim.unit}" if exact else f"estimate:{claim.unit}"
        number = shown(
            inside("history", str(line), "figures", quantity, ",".join(columns)), form, *(of[name] for name in columns)
        )
        about = tag("small", DIFFER if isinstance(claim, Conflict) else COUNTED_WORDS) if exact else ""
        parts.append(tag("li", tag("span", words(quantity), class_="ns-quantities__name"), " ", number, " ", about))
    return tag("ul", *parts, class_="ns-quantities")


def feed(history: Sequence[Mapping[str, Any]]) -> str:
    """Every change of a verdict as Atom 1.0, the newest first; ids are those of tag URIs, so that they never change."""
    entries = []
    for line in reversed(history):
        version = f"{line['claim']}, version {line['version']}"
        stamp = line["date"] if "T" in line["date"] else f"{line['date']}T00:00:00Z"
        entries.append(
            "  <entry>\n"
            f"    <id>{escape(_tag(line))}</id>\n"
            f"    <title>{escape(version)}: {escape(line['verdict'])} at tier {escape(line['tier'])}</title>\n"
            f"    <updated>{escape(stamp)}</updated>\n"
            f'    <link rel="alternate" type="text/html" href="{escape(claim_page(line["claim"]))}"/>\n'
            f"    <summary>{escape(json.dumps(line['figures'], sort_keys=True))}</summary>\n"
            "  </entry>\n"
        )
    last = history[-1]["date"] if history else NEVER
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        '<feed xmlns="http://www.w3.org/2005/Atom">\n'
        "  <id>tag:noscratch,2026:verdicts</id>\n"
        "  <title>noscratch: changes of verdicts</title>\n"
        f"  <updated>{escape(last if 'T' in last else last + 'T00:00:00Z')}</updated>\n"
        "  <author><name>noscratch</name></author>\n"
        f'  <link rel="self" href="{FEED}"/>\n' + "".join(entries) + "</feed>\n"
    )


def _tag(line: Mapping[str, Any]) -> str:
    return f"tag:noscratch,2026:{line['claim']}:{line['version']}:{line['tier']}:{line['verdict']}:{line['date']}"
