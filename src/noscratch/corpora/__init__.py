"""Corpora: text to pretrain on before any task is seen (protocol `corpus-masked`). One file per name, each with `SPEC`,
`Config` and `prepare`, like a task (noscratch.tasks).

A corpus turns into one table, train.arrow, of windows of equal length: [CLS], then the next pieces of the documents end
to end, each document followed by [SEP]; and into tokenizer.json, WordPiece learned from it, which the tasks that are
fine-tuned afterwards read too. Where a corpus comes with validation or test sets, they are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from noscratch.subwords import CLS, SEP, SPECIALS, train_wordpiece
from noscratch.tasks import Examples, Spec, TaskError, prefix, write

RULE = (
    "train: the kept documents in the order of the source, each followed by [SEP], cut into windows of one length, "
    "each of which begins with [CLS]; the last one may be shorter"
)
BLOCK = 256  # documents encoded at a time, which bounds memory

Document = tuple[str, str]  # id, text


@dataclass(frozen=True)
class Config:
    """length: tokens of a window (128, and up to 4096: BiGS, Wang et al. 2023, section 5). vocabulary: most WordPiece
    ids (30,522: BERT's, which BiGS takes). documents: how many are kept, 0 for all."""

    length: int = 128
    vocabulary: int = 30_522
    documents: int = 0


class Texts:
    """The texts of the documents that are kept, read anew from the source each time."""

    def __init__(self, documents: Callable[[], Iterator[Document]], limit: int) -> None:
        self._documents = documents
        names = [name for name, _ in documents()]
        self._kept = {names[row] for row in prefix(names, limit)}

    def __iter__(self) -> Iterator[str]:
        return (text for name, text in self._documents() if name in self._kept)

    def __len__(self) -> int:
        return len(self._kept)


def build(
    name: str, spec: Spec, config: Config, documents: Callable[[], Iterator[Document]], out: Path
) -> dict[str, Any]:
    """Learn pieces from the kept documents, cut them into windows, write. documents: begins anew with each call."""
    if config.length < len(SPECIALS):
        raise TaskError(f"{name}: a window has at least {len(SPECIALS)} tokens, got {config.length}")
    texts = Texts(documents, config.documents)
    tokenizer = train_wordpiece(texts, config.vocabulary)
    summary = write(
        out,
        name,
        spec,
        {"train": windows(tokenizer, texts, config.length)},
        vocabulary=tokenizer.get_vocab_size(),
        eos=None,
        length=config.length,
        rule=RULE,
    )
    (out / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    return {"documents": len(texts), **summary}


def windows(tokenizer: Tokenizer, texts: Texts, length: int) -> Iterator[Examples]:
    """The texts as windows of `length` tokens, some at a time."""
    begin, end = SPECIALS.index(CLS), SPECIALS.index(SEP)
    rest: NDArray[np.uint16] = np.zeros(0, np.uint16)
    made = 0
    left = iter(texts)
    while block := list(islice(left, BLOCK)):
        encoded = tokenizer.encode_batch_fast(block, add_special_tokens=False)
        rest = np.concatenate([rest, *(np.array([*text.ids, end], np.uint16) for text in encoded)])
        whole = len(rest) // (length - 1)
        if whole:
            yield _examples(rest[: whole * (length - 1)].reshape(whole, -1), begin, made)
            made, rest = made + whole, rest[whole * (length - 1) :]
    if len(rest):
        yield _examples(rest[None], begin, made)


def _examples(pieces: NDArray[np.uint16], begin: int, made: int) -> Examples:
    """Windows of equal length from their pieces (n, length - 1)."""
    tokens = np.concatenate([np.full((len(pieces), 1), begin, np.uint16), pieces], axis=1)
    ids = [f"{made + i:08d}" for i in range(len(tokens))]
    return Examples(ids, tokens.reshape(-1), np.arange(len(tokens) + 1) * tokens.shape[1], np.full(len(tokens), -1))
