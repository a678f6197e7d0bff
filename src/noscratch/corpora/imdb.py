"""The 25,000 labelled training reviews of IMDB as plain text: a corpus that is at hand where the task `text` is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noscratch.corpora import Config, build
from noscratch.tasks import Pretraining, Spec, text

SPEC = Spec(
    title="IMDB: training reviews as a corpus",
    sources=("imdb",),
    kind="corpus",
    classes=0,
    metrics=(),
    inputs="tokens",
    pretraining=Pretraining(ratio=0.15, loss="cross-entropy"),
    citation="Maas et al., Learning Word Vectors for Sentiment Analysis, ACL 2011",
)


def prepare(config: Config, raw: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Read the training reviews from the archive in the folder raw["imdb"], check them, write them: no label, and line
    feeds for HTML's breaks. The unlabelled reviews are left out, since not every form of the source holds them."""
    reviews = text.read(text.archive_in(raw["imdb"]), ("train",))
    text.check_totals(reviews)
    train = reviews["train"]
    documents = [
        (name, review.decode().replace("<br />", "\n")) for name, review in zip(train.ids, train.texts, strict=True)
    ]
    return build("imdb", SPEC, config, lambda: iter(documents), out)
