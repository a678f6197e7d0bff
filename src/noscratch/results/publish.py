"""Publish: reports and records become the site's generated pages.

`publish` writes site/docs/generated: Markdown for MkDocs, and the downloads. The same inputs give the same bytes: no
time, no host and no absolute path enters a page. What the pages hold is in results/pages, one module per kind of page.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from collections.abc import Mapping, Sequence
from html import unescape
from itertools import chain, islice
from pathlib import Path
from urllib.parse import urlsplit

from noscratch.atomic import put, remove_left, temporary_in
from noscratch.results.pages import (
    backbones,
    changes,
    claims,
    cost,
    data,
    downloads,
    front,
    numerics,
    performance,
    results,
    runs,
    tasks,
    testing,
)
from noscratch.results.pages.evidence import Evidence, PublishError
from noscratch.results.pages.markup import Html, Page
from noscratch.results.pages.numbers import bare

GENERATED = Path("site", "docs", "generated")


def publish(root: Path) -> list[Path]:
    """Write the generated pages of the checkout at `root`; returns the files, sorted.

    They are built under a temporary name and take the place of the former ones by a rename.
    """
    return _replace(root / GENERATED, contents(root))


def contents(root: Path) -> dict[str, bytes]:
    """Every generated file, by its path below the generated folder.

    Raises PublishError for a number without a record and for a link without a target.
    """
    evidence = Evidence(root)
    written = dict(downloads.files(evidence))
    makers = (front, claims, results, tasks, backbones, runs, data, performance, numerics, cost, changes, testing)
    pages = [*chain(*(maker.pages(evidence) for maker in makers)), *downloads.pages(evidence, written)]
    _check_numbers(pages)
    files = {page.path.removesuffix(".html") + ".md": page.bytes() for page in pages}
    files |= written | dict(claims.files(evidence)) | changes.files(evidence)
    _check_links(files, root)
    return files


def _check_links(files: Mapping[str, bytes], root: Path) -> None:
    """Every link leads to a page, a download or a hand-written page; a part is included by a page of site/docs."""
    targets = {posixpath.join("generated", _built(name)) for name in files}
    targets |= {_built(path.name) for path in (root / "site" / "docs").glob("*.md")}
    for name, content in files.items():
        if not name.endswith(".md"):
            continue
        folder = "" if name.startswith("parts/") else posixpath.dirname(posixpath.join("generated", name))
        for href in re.findall(r'href="([^"]*)"', content.decode()):
            path = urlsplit(unescape(href)).path
            if path and posixpath.normpath(posixpath.join(folder, path)) not in targets:
                raise PublishError(f"every link leads to a page of the site, but {name} links to {href}")


def _check_numbers(pages: Sequence[Page]) -> None:
    """Every number carries its address: see pages/numbers.py."""
    for page in pages:
        blocks = Html("".join(block for block in page.blocks if isinstance(block, Html)))
        if found := list(islice(bare(blocks), 5)):
            raise PublishError(f"every number has an address, but on {page.path} these have none: {', '.join(found)}")


def _built(name: str) -> str:
    """What MkDocs makes of a file."""
    return name.removesuffix(".md") + ".html" if name.endswith(".md") else name


def _replace(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    remove_left(folder.parent, folder.name)
    fresh = temporary_in(folder.parent, folder.name)
    try:
        for name, content in sorted(files.items()):
            path = fresh / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        put(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return sorted(folder / name for name in files)
