"""From text to token ids, symbol by symbol: bytes in two numberings, and frequent characters.

Whatever the tokenizer, id 0 is padding and the last id of the vocabulary is the mask; no encoded text holds either.
Ids come back flat with offsets (`Tokens`), as the tables of noscratch.tasks are written. Pieces of words are learned
in noscratch.subwords.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from noscratch.errors import NoscratchError

# Bytes: 0 padding, byte + 1 (as the ByteTextEncoder of Long Range Arena), end of sequence, mask.
BYTES_EOS = 257
BYTES_VOCABULARY = 259

# Bytes of ByT5 (Xue et al. 2022, section 3.1): 0 padding, 1 end of a text, 2 unknown, byte + 3; then the mask, which is
# the first of its sentinels.
BYT5_EOS = 1
BYT5_SHIFT = 3
BYT5_VOCABULARY = 260

# Characters: 0 padding, 1 unknown, end of sequence, the characters, mask.
CHARACTERS_EOS = 2


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


def byt5_tokens(texts: Sequence[tuple[bytes, ...]], length: int) -> Tokens:
    """Each byte + 3, then the end of the text: single texts (tuples of one) or pairs, one after the other in one
    sequence (as `ByT5Tokenizer` joins them). Cut to `length` ids: of a pair, the longer text is cut first."""
    width = len(texts[0])
    if length < 2 * width:
        raise TokenizeError(
            f"{width} text(s) of bytes have a length of at least {2 * width} (a byte and the end each), got {length}"
        )
    sizes = np.array([[len(text) for text in example] for example in texts], np.int64)
    room = length - width
    most = np.full(len(texts), room)
    if width == 2:  # the shorter keeps up to half of the room, the longer what is left; of equals the second is longer
        first, second = sizes.T
        shorter = np.minimum(np.minimum(first, second), room // 2)
        cut = first + second > room
        sizes[:, 0] = np.where(cut, np.where(first > second, np.minimum(first, room - shorter), shorter), first)
        most = room - sizes[:, 0]
    sizes[:, -1] = np.minimum(sizes[:, -1], most)
    parts = [text[:size] for example, row in zip(texts, sizes.tolist(), strict=True)
             for text, size in zip(example, row, strict=True)]  # fmt: skip
    flat = np.frombuffer(b"".join(parts), np.uint8).astype(np.uint16) + np.uint16(BYT5_SHIFT)
    ids, offsets = _with_end(flat, sizes.ravel(), BYT5_EOS)
    return Tokens(ids, offsets[::width])


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
