"""From text to pieces of words: WordPiece and unigram tokenizers, trained on the task's own text, the same every time.

Ids of both: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, characters, pieces, [MASK]: the mask is the last id also where the text
yields fewer pieces than asked. Text is normalised and split as uncased BERT (Devlin et al. 2019) does it. A text is
encoded as [CLS] a [SEP], a pair as [CLS] a [SEP] b [SEP]. A special token that is spelled out in a text is text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from noscratch.tokenize import TokenizeError, Tokens

PAD, UNKNOWN, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIALS = (PAD, UNKNOWN, CLS, SEP)

# A character costs up to two pieces, at the start of a word and inside it: the alphabet fills half the pieces at most.
CHARACTER_SHARE = 4
LEAST_COUNT = 2  # occurrences below which two pieces are not joined
BLOCK = 4096  # examples encoded at a time, which bounds memory


def train_wordpiece(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A WordPiece tokenizer of at most `vocabulary` ids. The texts are read twice: an iterator is refused."""
    _check(texts, vocabulary, "WordPiece")
    starts, continuations = _alphabet(_words(texts), vocabulary // CHARACTER_SHARE)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary - 1,  # [MASK] comes on top
        min_frequency=LEAST_COUNT,
        show_progress=False,
        # The library numbers characters in the order of a hash map, which changes from run to run, and breaks ties by
        # number. Given in order, as if they were special, they keep their numbers and every run gives the same pieces.
        special_tokens=[*SPECIALS, *starts, *continuations],
        initial_alphabet=starts,
        limit_alphabet=len(starts),
    )
    learner = _plain(models.WordPiece(unk_token=UNKNOWN))
    learner.train_from_iterator(texts, trainer)
    pieces = sorted(learner.get_vocab().items(), key=lambda piece: piece[1])
    ids = {piece: i for i, (piece, _) in enumerate(pieces)} | {MASK: len(pieces)}
    return _marked(_plain(models.WordPiece(ids, unk_token=UNKNOWN)))


def _check(texts: Iterable[str], vocabulary: int, name: str) -> None:
    if iter(texts) is texts:
        raise TokenizeError(f"training a {name} tokenizer reads the texts more than once, got an iterator: pass a list")
    if not 32 <= vocabulary <= 2**16:
        raise TokenizeError(f"a {name} vocabulary has 32 to {2**16} ids (they are stored in 16 bits), got {vocabulary}")


def _plain(model: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _marked(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B {SEP}",
        special_tokens=[(mark, tokenizer.token_to_id(mark)) for mark in (CLS, SEP)],
    )
    return tokenizer


def _words(texts: Iterable[str]) -> Counter[str]:
    """The words of the normalised texts and how often each occurs."""
    normalize, split = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return Counter(word for text in texts for word, _ in split.pre_tokenize_str(normalize.normalize_str(text)))


def _alphabet(words: Counter[str], limit: int) -> tuple[list[str], list[str]]:
    """The `limit` most frequent characters of the words, sorted: all of them, and `##c` for those inside a word."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    kept = {c for c, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]}
    inside = {c for word in words for c in word[1:]}
    return sorted(kept), [f"##{c}" for c in sorted(kept & inside)]


def encode(tokenizer: Tokenizer, texts: Sequence[tuple[str, ...]], length: int) -> Tokens:
    """Encode single texts (tuples of one) or pairs, cut to `length` ids: of a pair, the longer text is cut first."""
    width = len(texts[0])
    if length < 2 * width + 1:
        raise TokenizeError(f"{width} text(s) and their marks have a length of at least {2 * width + 1}, got {length}")
    tokenizer.enable_truncation(length)
    ids: list[NDArray[np.uint16]] = []
    lengths: list[int] = []
    for start in range(0, len(texts), BLOCK):
        block = [text if width > 1 else text[0] for text in texts[start : start + BLOCK]]
        encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(block)]
        ids.extend(np.array(example, np.uint16) for example in encoded)
        lengths.extend(map(len, encoded))
    tokenizer.no_truncation()
    return Tokens(np.concatenate(ids), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))
