"""Corpora: every piece of every kept document is in one window, the same each time; validation and test stay shut."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

import tiny
from noscratch import code, corpora, tasks, train
from noscratch.corpora import Config, imdb, wikitext103
from noscratch.data import Split
from noscratch.tasks import TaskError, _glue, text
from test_tasks_text import pack, small_members

CLS, SEP = 2, 3
NAMES = code.names_in("noscratch.corpora")
TEXT = "the cat sat on a mat while another cat was chasing the scattered rats across matted carpets"
WORDS = TEXT.split()
DOCUMENTS = [(f"{i:03d}", " ".join(WORDS[i % 5 : 3 + i % 11])) for i in range(40)]


def rows_of(folder: Path) -> dict[str, list[Any]]:
    with pa.memory_map(str(folder / "train.arrow")) as file:
        columns: dict[str, list[Any]] = pa.ipc.open_file(file).read_all().to_pydict()
        return columns


def build(out: Path, read: list[tuple[str, str]] = DOCUMENTS, **settings: Any) -> dict[str, Any]:
    config = Config(**{"length": 16, "vocabulary": 120} | settings)
    return corpora.build("imdb", imdb.SPEC, config, lambda: iter(read), out)


@pytest.mark.parametrize("name", NAMES)
def test_a_corpus_keeps_the_contract(name: str) -> None:
    module = importlib.import_module(f"noscratch.corpora.{name}")
    assert module.Config is Config
    assert (module.SPEC.kind, module.SPEC.classes, module.SPEC.metrics) == ("corpus", 0, ())
    assert code.spec_literal(f"noscratch.corpora.{name}", "sources") == module.SPEC.sources
    assert name not in tasks.names(), "settings tell a corpus from a task by its name"


@given(st.integers(5, 40), st.integers(1, 9))
def test_windows_hold_every_piece_in_order(length: int, block: int) -> None:
    tokenizer = corpora.train_wordpiece([text for _, text in DOCUMENTS], 120)
    texts = corpora.Texts(lambda: iter(DOCUMENTS), 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "BLOCK", block)
        parts = list(corpora.windows(tokenizer, texts, length))
    rows = [part.tokens[a:b].tolist() for part in parts for a, b in zip(part.offsets, part.offsets[1:], strict=False)]
    assert {row[0] for row in rows} == {CLS}
    assert {len(row) for row in rows[:-1]} <= {length}, "only the last one may be shorter"
    assert 1 < len(rows[-1]) <= length
    stream = [piece for _, text in DOCUMENTS for piece in (*tokenizer.encode(text, add_special_tokens=False).ids, SEP)]
    assert [piece for row in rows for piece in row[1:]] == stream
    assert [name for part in parts for name in part.ids] == [f"{i:08d}" for i in range(len(rows))]


def test_a_corpus_is_prepared_the_same_each_time_and_trains(tmp_path: Path) -> None:
    summary = build(tmp_path / "a")
    assert build(tmp_path / "b") == summary
    assert summary["documents"] == 40
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["meta.json", "splits.json", "tokenizer.json", "train.arrow"], "no validation and no test set"
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    split = Split(tmp_path / "a", "train")
    assert len(split) == summary["splits"]["train"]["examples"]
    settings = tiny.settings("pretrain", "masked", protocol="corpus-masked")
    result = train.run(settings, tmp_path / "a", tmp_path / "a", tmp_path / "c", None, "cpu")
    assert result["primary"] == "loss"
    assert result["metrics"]["train"]["loss"] > 0


def test_a_limit_keeps_nested_documents_and_learns_from_them_alone(tmp_path: Path) -> None:
    names = [name for name, _ in DOCUMENTS]
    kept = {names[row] for row in tasks.prefix(names, 10)}
    marked = [(name, "plain text" if name in kept else "щщ щщ") for name in names]
    assert build(tmp_path, marked, documents=10)["documents"] == 10
    pieces = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab()
    assert "plain" in pieces
    assert not [piece for piece in pieces if "щ" in piece]
    stored = [token for row in rows_of(tmp_path)["tokens"] for token in row]
    assert stored.count(SEP) == 10


def test_a_window_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="at least 4 tokens, got 3"):
        build(tmp_path / "out", length=3)
    assert not (tmp_path / "out").exists()


def test_a_task_is_read_in_the_pieces_and_the_length_of_a_corpus(tmp_path: Path) -> None:
    build(tmp_path / "corpus")
    table = _glue.Table([f"train/{i}" for i in range(6)], [("the cat", "a mat was " * 9)] * 6, tiny.np.zeros(6, int))
    splits = dict.fromkeys(tasks.SPLITS, table)
    splits = {split: dataclasses.replace(table, ids=[f"{split}/{i}" for i in range(6)]) for split in splits}
    config = _glue.Config(tokens="corpus", length=500, vocabulary=50)
    _glue.build("rte", tasks.load("rte").SPEC, config, splits, tmp_path / "out", tmp_path / "corpus")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "corpus" / "tokenizer.json").read_bytes()
    meta, of_corpus = (json.loads((tmp_path / part / "meta.json").read_text()) for part in ("out", "corpus"))
    for key in ("vocabulary", "mask", "pad", "length"):
        assert meta[key] == of_corpus[key], f"{key}: the model of the one fits the other"
    assert {len(row) for row in rows_of(tmp_path / "out")["tokens"]} == {16}, "cut to the windows of the corpus"
    with pytest.raises(TaskError, match="there is none"):
        _glue.build("rte", tasks.load("rte").SPEC, config, splits, tmp_path / "none")


# ---------------------------------------------------------------- IMDB


def test_the_reviews_of_the_test_set_and_the_labels_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = small_members()
    monkeypatch.setattr(text, "REVIEWS", 24)
    size = sum(
        len(data) for name, data in members.items() if name.startswith(("aclImdb/train/neg", "aclImdb/train/pos"))
    )
    monkeypatch.setattr(text, "TEXT_BYTES", {"train": size, "test": -1})
    # The test set is damaged, which whoever reads it notices.
    damaged = members | {"aclImdb/test/pos/0_7.txt": b"\xff", "aclImdb/test/pos/x.txt": b""}
    config = Config(length=32, vocabulary=200)
    made = []
    for name, content in (("good", members), ("damaged", damaged)):
        pack(tmp_path / name / "aclImdb.tar.gz", content)
        made.append(imdb.prepare(config, {"imdb": tmp_path / name}, tmp_path / name / "out"))
    assert made[0] == made[1]
    assert made[0]["documents"] == 48
    tokenizer = Tokenizer.from_file(str(tmp_path / "good" / "out" / "tokenizer.json"))
    words = tokenizer.decode([token for row in rows_of(tmp_path / "good" / "out")["tokens"] for token in row])
    assert "train neg" in words
    assert "test" not in words
    assert "unlabelled" not in words
    assert "<" not in words, "breaks are line feeds"
    monkeypatch.setattr(text, "TEXT_BYTES", {"train": size + 1, "test": -1})
    with pytest.raises(TaskError, match="imdb/train: the official set"):
        imdb.prepare(config, {"imdb": tmp_path / "good"}, tmp_path / "refused")


def test_the_real_reviews_are_a_corpus(mirror: Path, tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "aclImdb.tar.xz").symlink_to(mirror / "imdb" / "aclImdb_labelled.tar.xz")
    summary = imdb.prepare(Config(documents=64, vocabulary=512, length=4096), {"imdb": folder}, tmp_path / "out")
    assert summary["documents"] == 64
    assert summary["splits"]["train"]["lengths"]["max"] == 4096


# ---------------------------------------------------------------- WikiText-103


LINES = [
    *(" \n", " = First = \n", " \n", " Text of the first . \n", " = = Section = = \n"),
    *(" More , with = signs = . \n", " \n", " = X = \n", " Caf\xe9 . \n", " = = = Deep = = = \n"),
]


def wiki(path: Path, lines: list[str]) -> Path:
    path.mkdir(parents=True)
    (path / "wiki.train.raw").write_bytes("".join(lines).encode())
    return path


def test_articles_begin_with_their_titles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wikitext103, "LINES", len(LINES))
    read: Iterator[tuple[str, str]] = wikitext103.articles(wiki(tmp_path / "w", LINES) / "wiki.train.raw")
    assert list(read) == [
        ("00000", " = First = \n Text of the first . \n = = Section = = \n More , with = signs = . \n"),
        ("00001", " = X = \n Caf\xe9 . \n = = = Deep = = = \n"),
    ]
    summary = wikitext103.prepare(Config(vocabulary=64), {"wikitext103": tmp_path / "w"}, tmp_path / "out")
    assert summary["documents"] == 2


def test_another_file_than_the_official_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"wiki\.train\.raw: the official file has 1801350 lines, got 10"):
        wikitext103.prepare(Config(), {"wikitext103": wiki(tmp_path / "short", LINES)}, tmp_path / "out")
    with pytest.raises(TaskError, match=r"wiki\.train\.raw is missing"):
        wikitext103.prepare(Config(), {"wikitext103": tmp_path}, tmp_path / "out")
    (wiki(tmp_path / "latin", []) / "wiki.train.raw").write_bytes(b" ok \n caf\xe9 \n")
    with pytest.raises(TaskError, match="the text is UTF-8"):
        wikitext103.prepare(Config(), {"wikitext103": tmp_path / "latin"}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
