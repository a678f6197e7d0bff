"""WikiText-103: 28,475 good and featured articles of Wikipedia, raw text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from noscratch.corpora import Config, Document, build
from noscratch.tasks import Pretraining, Spec, TaskError

SPEC = Spec(
    title="WikiText-103",
    sources=("wikitext103",),
    kind="corpus",
    classes=0,
    metrics=(),
    inputs="tokens",
    pretraining=Pretraining(ratio=0.15, loss="cross-entropy"),
    citation="Merity et al., Pointer Sentinel Mixture Models, ICLR 2017",
)
LINES = 1_801_350  # by the Hugging Face card of `wikitext` (dataset_infos.json, revision 040102f100)
TITLE = re.compile(r" = [^=].*[^=] = \n| = [^=] = \n")  # sections have two or more signs on each side


def articles(path: Path) -> Iterator[Document]:
    """The articles of the file in order, named by their place: each begins with its title. An error where the file is
    not the official one."""
    if not path.is_file():
        raise TaskError(f"{path.name} is missing: fetch the source again")
    number, count, lines = 0, 0, list[str]()
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                count += 1
                if TITLE.fullmatch(line):
                    if lines:
                        yield f"{number:05d}", "".join(lines)
                    number, lines = number + bool(lines), []
                if line.strip():
                    lines.append(line)
    except UnicodeDecodeError as error:
        raise TaskError(f"{path.name}, after line {count}: the text is UTF-8; fetch the source again") from error
    if count != LINES:
        raise TaskError(f"{path.name}: the official file has {LINES} lines, got {count}. Fetch the source again")
    yield f"{number:05d}", "".join(lines)


def prepare(config: Config, raw: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Stream the training articles from wiki.train.raw in the folder raw["wikitext103"], check them, write them."""
    return build("wikitext103", SPEC, config, partial(articles, raw["wikitext103"] / "wiki.train.raw"), out)
