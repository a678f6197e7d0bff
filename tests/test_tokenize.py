"""Tokenizers of symbols: what goes in comes out, ids keep their places."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from noscratch.tokenize import (
    BYT5_EOS,
    BYT5_VOCABULARY,
    BYTES_EOS,
    BYTES_VOCABULARY,
    CHARACTERS_EOS,
    TokenizeError,
    Tokens,
    byt5_tokens,
    byte_tokens,
    character_tokens,
    frequent_characters,
)

texts = st.lists(st.binary(max_size=40), min_size=1, max_size=12)
pairs = st.lists(st.tuples(st.binary(max_size=30), st.binary(max_size=30)), min_size=1, max_size=12)


def runs(tokens: Tokens) -> list[list[int]]:
    return [part.tolist() for part in np.split(tokens.ids, tokens.offsets[1:-1])]


# ---------------------------------------------------------------- bytes


@given(texts, st.integers(2, 50))
def test_bytes_are_shifted_by_one_cut_and_ended(texts: list[bytes], length: int) -> None:
    tokens = byte_tokens(texts, length)
    expected = [[*(byte + 1 for byte in text[: length - 1]), BYTES_EOS] for text in texts]
    assert runs(tokens) == expected, f"length {length}"
    assert tokens.offsets[0] == 0
    assert tokens.offsets[-1] == len(tokens.ids)


def test_the_ids_of_bytes_leave_padding_and_mask_free() -> None:
    tokens = byte_tokens([bytes(range(256))], 300)
    assert sorted(tokens.ids.tolist()) == list(range(1, BYTES_VOCABULARY - 1)), "bytes and end fill 1 to vocabulary - 2"


def test_a_length_without_room_for_a_byte_is_refused() -> None:
    with pytest.raises(TokenizeError, match="at least 2"):
        byte_tokens([b"a"], 1)


# ---------------------------------------------------------------- bytes of ByT5


@given(texts, st.integers(2, 50))
def test_bytes_of_byt5_are_shifted_by_three_cut_and_ended(texts: list[bytes], length: int) -> None:
    tokens = byt5_tokens([(text,) for text in texts], length)
    assert runs(tokens) == [[*(byte + 3 for byte in text[: length - 1]), BYT5_EOS] for text in texts]


def test_the_ids_of_byt5_leave_padding_unknown_and_mask_free() -> None:
    tokens = byt5_tokens([(bytes(range(256)),)], 300)
    assert sorted(tokens.ids.tolist()) == [BYT5_EOS, *range(3, BYT5_VOCABULARY - 1)]


@given(pairs, st.integers(4, 50))
def test_a_pair_of_byte_texts_is_joined_and_the_longer_is_cut_first(
    pairs: list[tuple[bytes, bytes]], length: int
) -> None:
    """The same lengths as the library leaves of a pair whose marks are the two ends."""
    library = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[E]": 2}, unk_token="a"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks: Any = [("[E]", 2)]
    library.post_processor = processors.TemplateProcessing(single="$A [E]", pair="$A [E] $B [E]", special_tokens=marks)
    library.enable_truncation(length)
    for (a, b), run in zip(pairs, runs(byt5_tokens(pairs, length)), strict=True):
        ids = library.encode("a " * len(a), "b " * len(b)).ids
        one, two = ids.count(0), ids.count(1)
        assert run == [*(x + 3 for x in a[:one]), BYT5_EOS, *(x + 3 for x in b[:two]), BYT5_EOS]
        assert len(run) == min(length, len(a) + len(b) + 2)


@pytest.mark.parametrize(("texts", "length"), [([(b"a",)], 1), ([(b"a", b"b")], 3)])
def test_a_length_without_room_for_a_byte_of_each_text_is_refused(texts: list[Any], length: int) -> None:
    with pytest.raises(TokenizeError, match=f"at least {length + 1} .* got {length}"):
        byt5_tokens(texts, length)


# ---------------------------------------------------------------- characters


@given(st.lists(st.text(max_size=30), min_size=1, max_size=12), st.integers(2, 40), st.integers(1, 4))
def test_frequent_characters_have_ids_and_the_others_one(texts: list[str], length: int, least: int) -> None:
    alphabet = frequent_characters(iter(texts), length, least)
    seen = Counter("".join(text[: length - 1] for text in texts))
    assert list(alphabet) == sorted(c for c, n in seen.items() if n >= least)
    expected = [
        [*(alphabet.index(c) + 3 if c in alphabet else 1 for c in text[: length - 1]), CHARACTERS_EOS] for text in texts
    ]
    assert runs(character_tokens(texts, alphabet, length)) == expected


def test_a_character_outside_the_training_text_is_unknown() -> None:
    assert runs(character_tokens(["a\U0010ffff\x00b"], "ab", 9)) == [[3, 1, 1, 4, CHARACTERS_EOS]]
    with pytest.raises(TokenizeError, match="at least 2"):
        character_tokens(["a"], "a", 1)
