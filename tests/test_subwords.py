"""Tokenizers of pieces: nothing is lost, ids keep their places, and training gives the same pieces every time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noscratch.subwords import SPECIALS, encode, train_wordpiece
from noscratch.tokenize import TokenizeError, Tokens

PAD, UNKNOWN, CLS, SEP = range(4)
TEXT = "the cat sat on a mat while another cat was chasing the scattered rats across matted carpets"
TEXTS = [" ".join(TEXT.split()[i % 7 : 3 + i % 13]) + "." for i in range(60)]

sentences = st.text(st.sampled_from("abcdefg .,!éß中\u2028\u0301"), min_size=1, max_size=30)


def runs(tokens: Tokens) -> list[list[int]]:
    return [part.tolist() for part in np.split(tokens.ids, tokens.offsets[1:-1])]


# ---------------------------------------------------------------- WordPiece


@pytest.mark.parametrize("vocabulary", [32, 60, 100, 5000])
def test_specials_keep_their_ids_whatever_the_training_yields(vocabulary: int) -> None:
    pieces = train_wordpiece(TEXTS, vocabulary).get_vocab()
    assert len(pieces) <= vocabulary, "never more ids than asked"
    assert sorted(pieces.values()) == list(range(len(pieces))), "ids without a gap"
    assert [pieces[special] for special in SPECIALS] == [PAD, UNKNOWN, CLS, SEP]
    assert pieces["[MASK]"] == len(pieces) - 1, "the mask is the last id"
    if vocabulary == 5000:
        assert len(pieces) < 200, "this text cannot fill 5000 ids, so the case of fewer pieces is covered"


def test_an_alphabet_larger_than_its_share_keeps_the_most_frequent_characters() -> None:
    rare = [chr(0x561 + i) for i in range(38)]
    pieces = train_wordpiece(["ab ba " * 50, *rare], 64).get_vocab()
    assert len(pieces) <= 64
    assert {"a", "b", "##a", "##b"} <= pieces.keys(), "frequent characters stay"
    assert sum(character in pieces for character in rare) == 64 // 4 - 2, "the alphabet has a quarter of the ids"


def test_training_is_the_same_in_every_process() -> None:
    """The library alone numbers `##c` pieces in the order of a hash map with a random seed."""
    code = (
        "import hashlib; from noscratch.subwords import train_wordpiece\n"
        f"tokenizer = train_wordpiece({TEXTS!r}, 80)\n"
        "print(hashlib.sha256(tokenizer.to_str(pretty=True).encode()).hexdigest())"
    )
    here = hashlib.sha256(train_wordpiece(TEXTS, 80).to_str(pretty=True).encode()).hexdigest()
    for seed, threads in (("1", "1"), ("2", "3")):
        environment = os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        ran = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
        )
        assert ran.stdout.strip() == here, f"hash seed {seed}, {threads} threads"


@given(st.lists(sentences, min_size=1, max_size=8), st.integers(3, 40))
def test_a_single_text_is_marked_and_cut(texts: list[str], length: int) -> None:
    tokenizer = train_wordpiece(TEXTS, 80)
    whole = runs(encode(tokenizer, [(text,) for text in texts], 1000))
    cut = runs(encode(tokenizer, [(text,) for text in texts], length))
    for full, short in zip(whole, cut, strict=True):
        assert (full[0], full[-1]) == (CLS, SEP)
        assert min(full) > PAD, "no padding inside"
        assert max(full) < tokenizer.get_vocab_size() - 1, "no mask inside"
        assert short == (full if len(full) <= length else [*full[: length - 1], SEP]), f"cut to {length}"


@given(sentences, sentences, st.integers(5, 60))
def test_a_pair_is_joined_and_the_longer_text_is_cut_first(a: str, b: str, length: int) -> None:
    tokenizer = train_wordpiece(TEXTS, 80)
    alone = [run[1:-1] for run in runs(encode(tokenizer, [(a,), (b,)], 1000))]
    (joined,) = runs(encode(tokenizer, [(a, b)], 1000))
    assert joined == [CLS, *alone[0], SEP, *alone[1], SEP]
    (short,) = runs(encode(tokenizer, [(a, b)], length))
    assert len(short) == min(length, len(joined))
    first, second, rest = "".join(chr(i) for i in short[1:]).split(chr(SEP))
    assert rest == ""
    for part, full, other in ((first, alone[0], alone[1]), (second, alone[1], alone[0])):
        assert [ord(c) for c in part] == full[: len(part)], "what is left is a beginning"
        if len(full) * 2 <= length - 3:
            assert len(part) == len(full), f"the shorter text stays whole beside {len(other)} pieces"


def test_words_come_back_from_their_pieces() -> None:
    tokenizer = train_wordpiece(TEXTS, 120)
    pieces = [tokenizer.id_to_token(i) for i in encode(tokenizer, [("The rats scattered.",)], 50).ids]
    assert "".join(pieces[1:-1]).replace("##", "") == "theratsscattered.", "lower case, punctuation apart, nothing lost"


def test_what_training_never_saw_is_unknown() -> None:
    tokenizer = train_wordpiece(TEXTS, 120)
    assert runs(encode(tokenizer, [("cat Ω",)], 50))[0][2:] == [UNKNOWN, SEP]


def test_a_special_token_spelled_out_in_a_text_is_text() -> None:
    tokenizer = train_wordpiece([*TEXTS, "[ M A S K ] p d"], 200)
    (ids,) = runs(encode(tokenizer, [("[MASK] [PAD] [SEP]",)], 50))
    assert tokenizer.get_vocab_size() - 1 not in ids
    assert PAD not in ids
    assert ids.count(SEP) == 1


@pytest.mark.parametrize("vocabulary", [0, 31, 2**16 + 1])
def test_a_vocabulary_that_cannot_be_kept_is_refused(vocabulary: int) -> None:
    with pytest.raises(TokenizeError, match=f"32 to 65536 .* got {vocabulary}"):
        train_wordpiece(TEXTS, vocabulary)


@pytest.mark.parametrize(("text", "length"), [(("a",), 2), (("a", "b"), 4)])
def test_a_length_without_room_for_text_is_refused(text: tuple[str, ...], length: int) -> None:
    with pytest.raises(TokenizeError, match=f"at least {length + 1}, got {length}"):
        encode(train_wordpiece(TEXTS, 80), [text], length)


def test_an_iterator_which_can_be_read_once_is_refused() -> None:
    with pytest.raises(TokenizeError, match="more than once"):
        train_wordpiece(iter(TEXTS), 80)
