"""Tokenizers of pieces: nothing is lost, ids keep their places, and training gives the same pieces every time."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, trainers

from noscratch import unigram
from noscratch.subwords import SPECIALS, encode, train_unigram, train_wordpiece
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
    """The library alone numbers `##c` pieces in the order of a hash map with a random seed, and its unigram trainer
    sums in such an order."""
    code = (
        "import hashlib; from noscratch.subwords import train_unigram, train_wordpiece\n"
        f"trained = [train({TEXTS!r}, 80).to_str(pretty=True) for train in (train_wordpiece, train_unigram)]\n"
        "print(hashlib.sha256(''.join(trained).encode()).hexdigest())"
    )
    trained = [train(TEXTS, 80).to_str(pretty=True) for train in (train_wordpiece, train_unigram)]
    here = hashlib.sha256("".join(trained).encode()).hexdigest()
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


# ---------------------------------------------------------------- unigram


@pytest.mark.parametrize("vocabulary", [32, 60, 100, 5000])
def test_specials_of_unigram_keep_their_ids(vocabulary: int) -> None:
    tokenizer = train_unigram(TEXTS, vocabulary)
    pieces = tokenizer.get_vocab()
    assert len(pieces) <= vocabulary
    assert sorted(pieces.values()) == list(range(len(pieces))), "ids without a gap"
    assert [pieces[special] for special in SPECIALS] == [PAD, UNKNOWN, CLS, SEP]
    assert pieces["[MASK]"] == len(pieces) - 1
    if vocabulary == 5000:
        assert len(pieces) < 200, "this text cannot fill 5000 ids, so the case of fewer pieces is covered"


@given(st.lists(st.sampled_from([*TEXT.split(), "zap", "é", "9"]), min_size=1, max_size=12), st.sampled_from([60, 90]))
def test_nothing_is_lost_of_words_whose_characters_are_known(words: list[str], vocabulary: int) -> None:
    tokenizer = train_unigram([*TEXTS, "zap é 9"], vocabulary)
    (ids,) = runs(encode(tokenizer, [("  ".join(words).upper(),)], 1000))
    assert ids[0], ids[-1] == (CLS, SEP)
    assert all(UNKNOWN < i < tokenizer.get_vocab_size() - 1 for i in ids), ids
    normal = " ".join(words).replace("é", "e")  # accents go, as in uncased BERT
    assert tokenizer.decode(ids[1:-1]) == normal, "and the blanks between words come back"


@given(sentences, sentences, st.integers(5, 60))
def test_pairs_of_unigram_pieces_are_joined_and_cut(a: str, b: str, length: int) -> None:
    tokenizer = train_unigram(TEXTS, 80)
    one, two = (run[1:-1] for run in runs(encode(tokenizer, [(a,), (b,)], 1000)))
    (joined,) = runs(encode(tokenizer, [(a, b)], 1000))
    assert joined == [CLS, *one, SEP, *two, SEP]
    (short,) = runs(encode(tokenizer, [(a, b)], length))
    assert len(short) == min(length, len(joined))
    assert set(short) <= set(joined)


def test_special_tokens_and_unknown_characters_are_text() -> None:
    tokenizer = train_unigram([*TEXTS, "[ M A S K ] p d"], 200)
    (ids,) = runs(encode(tokenizer, [("[MASK] [PAD] [SEP] Ω",)], 50))
    assert not {PAD, tokenizer.get_vocab_size() - 1} & set(ids)
    assert ids.count(SEP) == 1
    assert ids.count(UNKNOWN) == 1, "only Ω"


def every_way(word: str, share: dict[str, float]) -> list[list[str]]:
    if not word:
        return [[]]
    heads = [word[:i] for i in range(1, len(word) + 1) if word[:i] in share]
    return [[head, *rest] for head in heads for rest in every_way(word[len(head) :], share)]


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=7), st.integers(1, 9), min_size=1, max_size=6),
    st.dictionaries(st.text("abc", min_size=2, max_size=4), st.floats(0.01, 1.0), max_size=8),
)
def test_expected_counts_and_likeliest_ways_are_those_of_all_ways(
    words: dict[str, int], more: dict[str, float]
) -> None:
    share = {"a": 0.5, "b": 0.25, "c": 0.125} | more
    ids = {piece: i for i, piece in enumerate(share)}
    values = np.array(list(share.values()))
    lattice = unigram.lattice(list(words), ids)
    counts = dict.fromkeys(share, 0.0)
    best = []
    for word, times in words.items():
        ways = every_way(word, share)
        weights = [float(np.prod([share[piece] for piece in way])) for way in ways]
        best.append(max(weights))
        for way, weight in zip(ways, weights, strict=True):
            for piece in way:
                counts[piece] += times * weight / sum(weights)
    got = lattice.expected(values, np.array(list(words.values()), float))
    np.testing.assert_allclose(got, list(counts.values()), rtol=1e-9, atol=1e-12)
    scale = unigram.SCALE ** np.array([len(word) for word in words])
    np.testing.assert_allclose(lattice.likeliest(values) / scale, best, rtol=1e-9)
    kept = np.where(np.char.str_len(list(share)) < 3, np.arange(len(share)), -1)
    short = {piece: i for piece, i in ids.items() if len(piece) < 3}
    np.testing.assert_allclose(
        lattice.keep(kept).expected(values, np.ones(len(words))),
        unigram.lattice(list(words), short).expected(values, np.ones(len(words))),
    )


def test_pieces_are_likelier_than_those_of_the_library() -> None:
    """At as many pieces, the words have no lower probability under ours than under the library's trainer."""
    text = [*TEXTS, "scattering chats matter while carpets flatten on mats", "rats chase cats and cats chase rats"] * 3
    ours = train_unigram(text, 72)
    theirs = Tokenizer(models.Unigram())
    theirs.normalizer, theirs.pre_tokenizer = ours.normalizer, ours.pre_tokenizer
    theirs.train_from_iterator(
        text, trainers.UnigramTrainer(vocab_size=72, show_progress=False, special_tokens=[*SPECIALS], unk_token="[UNK]")
    )
    total = []
    for tokenizer in (ours, theirs):
        score = dict(json.loads(tokenizer.to_str())["model"]["vocab"])
        encoded = tokenizer.encode_batch(text, add_special_tokens=False)
        assert not any(UNKNOWN in one.ids for one in encoded)
        total.append(sum(score[piece] for one in encoded for piece in one.tokens))
    assert total[0] >= total[1], total


# ---------------------------------------------------------------- both


@pytest.mark.parametrize("train", [train_wordpiece, train_unigram])
@pytest.mark.parametrize("vocabulary", [0, 31, 2**16 + 1])
def test_a_vocabulary_that_cannot_be_kept_is_refused(vocabulary: int, train: Any) -> None:
    with pytest.raises(TokenizeError, match=f"32 to 65536 .* got {vocabulary}"):
        train(TEXTS, vocabulary)


@pytest.mark.parametrize(("text", "length"), [(("a",), 2), (("a", "b"), 4)])
def test_a_length_without_room_for_text_is_refused(text: tuple[str, ...], length: int) -> None:
    with pytest.raises(TokenizeError, match=f"at least {length + 1}, got {length}"):
        encode(train_wordpiece(TEXTS, 80), [text], length)


@pytest.mark.parametrize("train", [train_wordpiece, train_unigram])
def test_an_iterator_which_can_be_read_once_is_refused(train: Any) -> None:
    with pytest.raises(TokenizeError, match="reads the texts twice"):
        train(iter(TEXTS), 80)
