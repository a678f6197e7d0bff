"""Text of Long Range Arena: the sentiment of an IMDB review, read byte by byte or character by character.

The archive is streamed, never unpacked. Each aclImdb/{train,test}/{neg,pos}/<number>_<rating>.txt is one review, its
bytes as they are; every other member (unlabelled reviews, bags of words, addresses) is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from noscratch.sources.unpack import members
from noscratch.tasks import (
    HOLD_OUT_RULE,
    Examples,
    Pretraining,
    Spec,
    TaskError,
    check_manifest,
    duplicates,
    held_out,
    prefix,
    write,
    write_json,
)
from noscratch.tokenize import (
    BYTES_EOS,
    BYTES_VOCABULARY,
    CHARACTERS_EOS,
    byte_tokens,
    character_tokens,
    frequent_characters,
)

SPEC = Spec(
    title="Text: the sentiment of IMDB reviews",
    sources=("imdb",),
    kind="classification",
    classes=2,
    metrics=("accuracy",),
    inputs="tokens",
    pretraining=Pretraining(ratio=0.15, loss="cross-entropy"),
    citation="Maas et al., Learning Word Vectors for Sentiment Analysis, ACL 2011; "
    "Tay et al., Long Range Arena: A Benchmark for Efficient Transformers, ICLR 2021",
)
ARCHIVES = ("aclImdb.tar.gz", "aclImdb.tar.xz")
LABELS = {"neg": 0, "pos": 1}
RULE = f"{HOLD_OUT_RULE}; test: the official test set"
LEGACY_RULE = (
    "train: the official training set; validation and test: the official test set, so that the score is that of the "
    "model which does best on the test set (Long Range Arena, S4, MEGA, Never Train from Scratch)"
)
LEAST = 15  # occurrences of a character that has an id of its own (S4)
REVIEW = re.compile(r"aclImdb/(train|test)/(neg|pos)/(\d+)_(\d+)\.txt")
REVIEWS = 12_500  # of each label in each official set
# Bytes of text by the Hugging Face card of `imdb` (dataset_infos.json, revision 040102f100): its num_bytes, 33,432,835
# and 32,650,697, also count a label (8) and an offset (4) for each row and an offset (4) for each 10,000 rows begun.
TEXT_BYTES = {"train": 33_132_823, "test": 32_350_685}


@dataclass(frozen=True)
class Config:
    """length: most tokens of an example, the end included (4096: "4K" of Long Range Arena).
    tokens: bytes (Long Range Arena) or characters (S4: those that occur 15 times in the kept training texts).
    protocol: clean, or legacy, which selects on the test set. train, validation, test: examples kept, 0 for all."""

    length: int = 4096
    tokens: Literal["bytes", "characters"] = "bytes"
    protocol: Literal["clean", "legacy"] = "clean"
    train: int = 0
    validation: int = 0
    test: int = 0


@dataclass(frozen=True)
class Reviews:
    """One set of reviews, sorted by label and number: ids `<set>/<label>/<number>_<rating>`."""

    ids: list[str]
    texts: list[bytes]
    labels: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> Reviews:
        return Reviews([self.ids[i] for i in rows], [self.texts[i] for i in rows], self.labels[rows])


def archive_in(folder: Path) -> Path:
    """The one archive that the source is, in either form."""
    archives = [path for name in ARCHIVES if (path := folder / name).is_file()]
    if len(archives) != 1:
        raise TaskError(
            f"imdb: one of {' and '.join(ARCHIVES)} is expected, found {len(archives)}: fetch the source again"
        )
    return archives[0]


def read(archive: Path, sets: Sequence[str] = ("train", "test")) -> dict[str, Reviews]:
    """The labelled reviews of the archive, by official set, whatever the order of its members; only `sets` are read."""
    found: dict[str, list[tuple[int, int, str, bytes]]] = {name: [] for name in sets}
    folders = {f"aclImdb/{name}/{label}" for name in sets for label in LABELS}
    for member in members(archive):
        if member.name.rpartition("/")[0] not in folders:
            continue
        match = REVIEW.fullmatch(member.name)
        if match is None:
            raise _broken(archive, member.name, "a review is named <number>_<rating>.txt")
        split, label, number, rating = match.groups()
        if not (1 <= int(rating) <= 4 if label == "neg" else 7 <= int(rating) <= 10):
            raise _broken(archive, member.name, "a rating is 1 to 4 in neg, 7 to 10 in pos")
        text = member.stream.read()
        try:
            text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _broken(archive, member.name, f"the text is UTF-8, byte {error.start + 1} is not") from error
        if not text:
            raise _broken(archive, member.name, "a review is not empty")
        found[split].append((LABELS[label], int(number), f"{split}/{label}/{number}_{rating}", text))
    reviews = {}
    for split, rows in found.items():
        rows.sort(key=lambda row: row[:3])
        labels, _, ids, texts = zip(*rows, strict=True) if rows else ((), (), (), ())
        reviews[split] = Reviews(list(ids), list(texts), np.array(labels, np.int64))
    return reviews


def _broken(archive: Path, member: str, rule: str) -> TaskError:
    return TaskError(f"{archive.name}, {member}: {rule}. This is not the official archive: fetch the source again")


def check_totals(reviews: Mapping[str, Reviews]) -> None:
    """Assert the published rows by label and bytes of text of the official sets that were read."""
    for split, part in reviews.items():
        expected, got = TEXT_BYTES[split], text_bytes(part)
        labels = np.bincount(part.labels, minlength=2).tolist()
        if labels != [REVIEWS, REVIEWS] or got != expected:
            raise TaskError(
                f"imdb/{split}: the official set has {REVIEWS} reviews of each label and {expected} bytes of text, got "
                f"{labels[0]} neg, {labels[1]} pos and {got} bytes. Fetch the source again"
            )


def text_bytes(reviews: Reviews) -> int:
    """Bytes of all texts."""
    return sum(map(len, reviews.texts))


def split(reviews: Mapping[str, Reviews], protocol: str = "clean") -> dict[str, Reviews]:
    """The splits of a protocol (RULE, LEGACY_RULE)."""
    train = reviews["train"]
    if protocol == "legacy":
        return {"train": train, "validation": reviews["test"], "test": reviews["test"]}
    held = held_out(train.ids)
    return {
        "train": train.take(np.flatnonzero(~held)),
        "validation": train.take(np.flatnonzero(held)),
        "test": reviews["test"],
    }


def prepare(config: Config, raw: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Read the archive in the folder raw["imdb"], check it, split it, write it."""
    if config.tokens not in ("bytes", "characters") or config.protocol not in ("clean", "legacy"):
        raise TaskError(
            "text: tokens are bytes or characters, the protocol is clean or legacy, got "
            f"{config.tokens!r} and {config.protocol!r}: correct it in params.yaml"
        )
    reviews = read(archive_in(raw["imdb"]))
    check_totals(reviews)
    splits = split(reviews, config.protocol)
    ids = {name: part.ids for name, part in splits.items()}
    legacy = config.protocol == "legacy"
    check_manifest("text-legacy" if legacy else "text", LEGACY_RULE if legacy else RULE, ids, legacy)
    train, test = reviews["train"], reviews["test"]
    return {
        "official": {name: {"rows": len(part.ids), "text_bytes": text_bytes(part)} for name, part in reviews.items()},
        "duplicates": duplicates(train.texts, test.texts, train.ids, test.ids),
        **build(config, splits, out),
    }


def build(config: Config, splits: Mapping[str, Reviews], out: Path) -> dict[str, Any]:
    """Keep the asked number of examples, turn bytes or characters into tokens, write."""
    kept = {name: part.take(prefix(part.ids, getattr(config, name))) for name, part in splits.items()}
    alphabet = ""
    if config.tokens == "characters":
        alphabet = frequent_characters((text.decode() for text in kept["train"].texts), config.length, LEAST)
    examples = {}
    for name, part in kept.items():
        if config.tokens == "bytes":
            ids, offsets = byte_tokens(part.texts, config.length)
        else:
            ids, offsets = character_tokens([text.decode() for text in part.texts], alphabet, config.length)
        examples[name] = Examples(part.ids, ids, offsets, part.labels)
    vocabulary, eos = BYTES_VOCABULARY, BYTES_EOS
    if config.tokens == "characters":
        vocabulary, eos = len(alphabet) + 4, CHARACTERS_EOS
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "characters.json", alphabet)
    legacy = config.protocol == "legacy"
    spec = replace(
        SPEC,
        title=f"{SPEC.title}, {config.tokens}{', selected on the test set' if legacy else ''}",
        protocol=config.protocol,
    )
    rule = LEGACY_RULE if legacy else RULE
    return write(out, "text", spec, examples, vocabulary=vocabulary, eos=eos, length=config.length, rule=rule)
