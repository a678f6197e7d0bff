"""From text to pieces of words: WordPiece and unigram tokenizers, trained on the task's own text, the same every time.

Ids of both: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, characters, pieces, [MASK]: the mask is the last id also where the text
yields fewer pieces than asked. Text is normalised as uncased BERT (Devlin et al. 2019) does it. WordPiece splits it as
BERT does, before and after punctuation, and marks the inside of words (##); unigram splits it at blanks and marks the
start of words (▁). A text is encoded as [CLS] a [SEP], a pair as [CLS] a [SEP] b [SEP]. A special token that is spelled
out in a text is text: normalised text has no capitals.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from noscratch.tokenize import TokenizeError, Tokens

UNKNOWN, CLS, SEP, MASK = "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIALS = ("[PAD]", UNKNOWN, CLS, SEP)

START = "▁"  # what unigram sets before a word, as SentencePiece does

# The alphabet fills half the pieces at most. In WordPiece a character costs two: at the start of a word and inside.
ALPHABET_SHARE = 2
LEAST_COUNT = 2  # occurrences below which two pieces are not joined
BLOCK = 4096  # examples encoded at a time, which bounds memory


def train_wordpiece(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A WordPiece tokenizer of at most `vocabulary` ids. The texts are read twice: an iterator is refused."""
    _check(texts, vocabulary, "WordPiece")
    words = _words(texts, pre_tokenizers.BertPreTokenizer())
    starts = _alphabet(words, vocabulary // (2 * ALPHABET_SHARE))
    inside = {c for word in words for c in word[1:]}
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary - 1,  # [MASK] comes on top
        min_frequency=LEAST_COUNT,
        show_progress=False,
        # The library numbers characters in the order of a hash map, which changes from run to run, and breaks ties by
        # number. Given in order, as if they were special, they keep their numbers and every run gives the same pieces.
        special_tokens=[*SPECIALS, *starts, *(f"##{c}" for c in starts if c in inside)],
        initial_alphabet=starts,
        limit_alphabet=len(starts),
    )
    learner = _split(models.WordPiece(unk_token=UNKNOWN), pre_tokenizers.BertPreTokenizer())
    learner.train_from_iterator(texts, trainer)
    pieces = sorted(learner.get_vocab().items(), key=lambda piece: piece[1])
    ids = {piece: i for i, (piece, _) in enumerate(pieces)} | {MASK: len(pieces)}
    return _marked(_split(models.WordPiece(ids, unk_token=UNKNOWN), pre_tokenizers.BertPreTokenizer()))


def train_unigram(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A unigram tokenizer of at most `vocabulary` ids (noscratch.unigram). The likeliest pieces make up a text."""
    from noscratch import unigram

    _check(texts, vocabulary, "unigram")
    blanks = pre_tokenizers.WhitespaceSplit()
    words = Counter({f"{START}{word}": n for word, n in _words(texts, blanks).items()})
    characters = _alphabet(words, vocabulary // ALPHABET_SHARE)
    known = re.compile(f"[{re.escape(''.join(characters))}]+")
    parts = Counter[str]()
    for word, n in words.items():
        for part in known.findall(word):  # rarer characters are unknown, and stand between pieces
            parts[part] += n
    learned = unigram.learn(parts, characters, vocabulary - len(SPECIALS) - 1)
    scored = [*((special, 0.0) for special in SPECIALS), *learned, (MASK, 0.0)]
    splits = pre_tokenizers.Sequence([blanks, pre_tokenizers.Metaspace(START, prepend_scheme="always")])
    tokenizer = _split(models.Unigram(scored, SPECIALS.index(UNKNOWN)), splits)
    tokenizer.decoder = decoders.Metaspace(START, prepend_scheme="always")
    return _marked(tokenizer)


def _check(texts: Iterable[str], vocabulary: int, name: str) -> None:
    if iter(texts) is texts:
        raise TokenizeError(f"training a {name} tokenizer reads the texts twice, got an iterator: pass a list")
    if not 32 <= vocabulary <= 2**16:
        raise TokenizeError(f"a {name} vocabulary has 32 to {2**16} ids (they are stored in 16 bits), got {vocabulary}")


def _split(model: Any, splits: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), splits
    return tokenizer


def _marked(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B {SEP}",
        special_tokens=[(mark, SPECIALS.index(mark)) for mark in (CLS, SEP)],
    )
    return tokenizer


def _words(texts: Iterable[str], split: Any) -> Counter[str]:
    """The words of the normalised texts, and how often each occurs."""
    normalize = normalizers.BertNormalizer()
    return Counter(word for text in texts for word, _ in split.pre_tokenize_str(normalize.normalize_str(text)))


def _alphabet(words: Mapping[str, int], limit: int) -> list[str]:
    """The `limit` most frequent characters of the words, sorted."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    return sorted(c for c, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit])


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
