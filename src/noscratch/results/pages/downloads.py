"""The downloads: the tables behind the site as Parquet, CSV and JSON, with a data dictionary."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from noscratch.results import cells, collect, compute, flags, judge, parquet_table
from noscratch.results.pages.evidence import HISTORY, Evidence, PublishError
from noscratch.results.pages.markup import Cell, Page, code, command, link, listing, slug, table
from noscratch.results.pages.numbers import at, shown, words
from noscratch.yaml_reader import read

CITATION = "downloads/citation.bib"
TABLES = {"results": collect, "cells": cells, "flags": flags, "verdicts": judge, "compute": compute}


def files(evidence: Evidence) -> Iterator[tuple[str, bytes]]:
    """(path below the generated folder, bytes) of every download."""
    reports = evidence.root / "reports"
    for name in TABLES:
        content = (reports / f"{name}.parquet").read_bytes()
        yield f"downloads/{name}.parquet", content
        rows = parquet_table(content)
        yield f"downloads/{name}.csv", _csv(rows)
        yield f"downloads/{name}.json", _json(rows)
    yield "downloads/curves.parquet", (reports / "curves.parquet").read_bytes()
    if (history := evidence.root / HISTORY).exists():
        yield "downloads/history.jsonl", history.read_bytes()
    yield "downloads/metrics.json", (reports / "metrics.json").read_bytes()
    yield CITATION, bibtex(evidence).encode()


def pages(evidence: Evidence, written: dict[str, bytes]) -> Iterator[Page]:
    page = Page("downloads.html", "Downloads", "Results and verdicts as Parquet, CSV and JSON, with a data dictionary.")
    page.say(
        "What the pages say of runs and claims comes from these files. They hold every run of the plan, the failed "
        "ones too. Each claim is a file of its own, at an address that stays, such as ",
        link(f"claims/{slug(evidence.papers[0].claims[0].id)}.json", code(f"{evidence.papers[0].claims[0].id}.json")),
        "; changes of verdicts are an ",
        link("verdicts.atom", "Atom feed"),
        ".",
    )
    rows = [
        (
            link(path, code(path.partition("/")[2])),
            Cell(ABOUT[path.partition("/")[2].partition(".")[0]], kind="ns-wide"),
            shown(at("size", *path.split("/")), "bytes", len(content)),
        )
        for path, content in written.items()
    ]
    page.add(table(["File", "What it holds", "Size"], rows, "Files"))
    page.heading("Read them")
    page.add(
        command(
            "import pandas as pd\n"
            "results = pd.read_parquet('results.parquet')\n"
            "results[results.primary & (results.split == 'test')]"
        )
    )
    page.heading("Cite them")
    page.say("This project with the commit that you used, and the papers whose claims you mean:")
    page.add(listing(written[CITATION].decode().rstrip().split("\n")))
    for name, module in TABLES.items():
        page.heading(f"Columns of {name}")
        schema = pq.read_schema(evidence.root / "reports" / f"{name}.parquet")
        meaning = dictionary(module.__doc__ or "")
        if lost := [column for column in schema.names if column not in meaning]:
            raise PublishError(
                f"every column of {name} is described in the docstring of {module.__name__}; it lacks {', '.join(lost)}"
            )
        described = [
            (
                code(field.name),
                code(field.type),
                "may be null" if field.nullable else "",
                Cell(words(meaning[field.name]), kind="ns-wide"),
            )
            for field in schema
        ]
        page.add(table(["Column", "Type", "", "Meaning"], described, f"Every column of {name}"))
    yield page


def bibtex(evidence: Evidence) -> str:
    """This project as CITATION.cff names it, then every paper of the ledger."""
    about = read(evidence.root / "CITATION.cff").data
    authors = " and ".join(f"{{{author['name']}}}" for author in about["authors"])
    entries = [
        _entry("software", "noscratch", title=about["title"], author=authors, version=about["version"], note=COMMIT),
        *(
            _entry("misc", paper.paper, title=paper.title, eprint=paper.arxiv, archiveprefix="arXiv")
            for paper in evidence.papers
        ),
    ]
    return "\n\n".join(entries) + "\n"


def _entry(kind: str, key: str, **fields: str) -> str:
    width = max(map(len, fields))
    lines = ",\n".join(f"  {name:{width}} = {{{value}}}" for name, value in fields.items())
    return f"@{kind}{{{key},\n{lines}\n}}"


COMMIT = "Cite the commit: every number is bound to it"
ABOUT = {
    "results": "one row = cell x phase x split x metric",
    "cells": "one row = cell without its seed: mean and interval over seeds, and when they began to learn",
    "flags": "one row = run x flag: what to look at twice, such as constant predictions",
    "verdicts": "one row = claim x quantity x tier, and the headline of each claim",
    "compute": "one row = claim x quantity x tier x way: what self-pretraining gains at equal compute",
    "curves": "every point of every curve: run, step, split, metric, value",
    "history": "every change of a verdict, the oldest first: date, commit, claim, version, tier, verdict, figures",
    "citation": "this project and the papers of its claims, as BibTeX",
    "metrics": "the primary test metric of every cell, nested by tier, task, backbone and protocol",
}


def dictionary(docstring: str) -> dict[str, str]:
    """Column names and meanings from the indented two-column list of a docstring; a name list shares one meaning."""
    meanings: dict[str, str] = {}
    names: list[str] = []
    for line in docstring.splitlines():
        if entry := re.match(r"^    ([a-z_]+(?:, [a-z_]+)*)\s{2,}(\S.*)$", line):
            names = entry[1].split(", ")
            meanings.update(dict.fromkeys(names, entry[2]))
        elif names and (more := re.match(r"^\s{20,}(\S.*)$", line)):
            meanings.update({name: f"{meanings[name]} {more[1]}" for name in names})
        else:
            names = []
    return meanings


def _csv(rows: pa.Table) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(rows.column_names)
    writer.writerows(["" if value is None else value for value in row.values()] for row in rows.to_pylist())
    return out.getvalue().encode()


def _json(rows: pa.Table) -> bytes:
    """{"columns": [...], "rows": [[...], ...]}: a third of the size of a list of objects."""
    lines = ",\n".join(
        json.dumps(list(row.values()), ensure_ascii=False, separators=(",", ":")) for row in rows.to_pylist()
    )
    return f'{{"columns": {json.dumps(rows.column_names)},\n"rows": [\n{lines}\n]}}\n'.encode()
