"""From text to token ids: bytes, frequent characters, and WordPiece trained on the task's own text.

Whatever the tokenizer, id 0 is padding and the last id of the vocabulary is the mask; no encoded text holds either.
Ids come back flat with offsets (`Tokens`), as the tables of noscratch.tasks are written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from noscratch.errors import NoscratchError

# Bytes: 0 padding, byte + 1 (as the ByteTextEncoder of Long Range Arena), end of sequence, mask.
BYTES_EOS = 257
BYTES_VOCABULARY = 259

# Characters: 0 padding, 1 unknown, end of sequence, the characters, mask.
CHARACTERS_EOS = 2

UNKNOWN = "[UNK]"
MASK = "[MASK]"
SPECIALS = ("[PAD]", UNKNOWN, "[CLS]", "[SEP]")

# A character costs up to two pieces, at the start of a word and inside it: the alphabet fills half the pieces at most.
CHARACTER_SHARE = 4
LEAST_COUNT = 2  # occurrences below which two pieces are not joined
BLOCK = 4096  # examples encoded at a time, which bounds memory


class TokenizeError(NoscratchError):
    """A length or a vocabulary that no tokenizer can keep to."""


class Tokens(NamedTuple):
    """Token ids of n texts end to end; text i is ids[offsets[i]:offsets[i + 1]]."""

    ids: NDArray[np.uint16]
    offsets: NDArray[np.int64]


def byte_tokens(texts: Sequence[bytes], length: int) -> Tokens:
    """Each byte + 1, the text cut to length - 1 bytes, then the end of sequence."""
    if length < 2:
        raise TokenizeError(f"a text of bytes has a length of at least 2 (one byte and the end), got {length}")
    cut = [text[: length - 1] for text in texts]
    flat = np.frombuffer(b"".join(cut), np.uint8).astype(np.uint16) + np.uint16(1)
    return _with_end(flat, np.fromiter(map(len, cut), np.int64, len(cut)), BYTES_EOS)


def _with_end(flat: NDArray[np.uint16], lengths: NDArray[np.int64], eos: int) -> Tokens:
    """Put `eos` after each of the runs of `flat`."""
    offsets = np.concatenate([[0], np.cumsum(lengths + 1)])
    ids = np.full(offsets[-1], eos, np.uint16)
    inside = np.ones(len(ids), bool)
    inside[offsets[1:] - 1] = False
    ids[inside] = flat
    return Tokens(ids, offsets)


def frequent_characters(texts: Iterable[str], length: int, least: int) -> str:
    """The characters that occur at least `least` times in the first length - 1 characters of the texts, in order."""
    counts = Counter[str]()
    for text in texts:
        counts.update(text[: length - 1])
    return "".join(sorted(c for c, count in counts.items() if count >= least))


def character_tokens(texts: Sequence[str], alphabet: str, length: int) -> Tokens:
    """Each character's id (those of `alphabet` from 3, in its order; any other is 1), the text cut to length - 1
    characters, then the end of sequence. The vocabulary has len(alphabet) + 4 ids."""
    if length < 2:
        raise TokenizeError(f"a text of characters has a length of at least 2 (one and the end), got {length}")
    cut = [text[: length - 1] for text in texts]
    ids = np.ones(0x110000, np.uint16)
    ids[[ord(c) for c in alphabet]] = np.arange(len(alphabet)) + 3
    flat = ids[np.frombuffer("".join(cut).encode("utf-32-le"), "<u4")]
    return _with_end(flat, np.fromiter(map(len, cut), np.int64, len(cut)), CHARACTERS_EOS)


def train_wordpiece(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A WordPiece tokenizer of at most `vocabulary` ids, normalised and split as uncased BERT (Devlin et al. 2019).

    Ids: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, characters, pieces in the order of training, [MASK]: the mask is the last
    id also where the text yields fewer pieces than asked. A text is encoded as [CLS] a [SEP], a pair as
    [CLS] a [SEP] b [SEP]. A special token that is spelled out in a text is text.
    """
    if not 32 <= vocabulary <= 2**16:
        raise TokenizeError(
            f"a WordPiece vocabulary has 32 to {2**16} ids (they are stored in 16 bits), got {vocabulary}"
        )
    texts = list(texts)
    starts, continuations = _alphabet(texts, vocabulary // CHARACTER_SHARE)
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
    tokenizer = _plain(models.WordPiece(ids, unk_token=UNKNOWN))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(s, ids[s]) for s in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _plain(model: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _alphabet(texts: Iterable[str], limit: int) -> tuple[list[str], list[str]]:
    """The `limit` most frequent characters of the words, sorted: all of them, and `##c` for those inside a word."""
    normalize, split = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in texts for word, _ in split.pre_tokenize_str(normalize.normalize_str(text)))
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    kept = {c for c, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]}
    inside = {c for word in words for c in word[1:]}
    return sorted(kept), [f"##{c}" for c in sorted(kept & inside)]


def wordpiece_tokens(tokenizer: Tokenizer, texts: Sequence[tuple[str, ...]], length: int) -> Tokens:
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
