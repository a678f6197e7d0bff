"""The bench of preparation compares forms that give the same, and sees the memory that it claims to see; no times."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noscratch.tasks import pathfinder, text
from test_tasks_text import pack, small_members

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import _timing, preparation


@pytest.fixture
def reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small archive of reviews that passes for the official one."""
    members = small_members()
    monkeypatch.setattr(text, "REVIEWS", 24)
    monkeypatch.setattr(text, "check_manifest", lambda *_: None)
    found = text.read(pack(tmp_path / "imdb" / "aclImdb.tar.gz", members))
    monkeypatch.setattr(text, "TEXT_BYTES", {name: text.text_bytes(part) for name, part in found.items()})
    return tmp_path / "imdb"


def test_both_forms_of_reviews_are_the_same_or_the_bench_stops(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").mkdir()
    rows = list(preparation.text_rows(reviews, tmp_path / "one"))
    assert [row["unit"] for row in rows] == ["s", "s"]
    assert rows[0]["ratio"] == rows[0]["straightforward"] / rows[0]["ours"] > 0
    assert (rows[1]["straightforward"], rows[1]["ratio"]) == (None, None)
    monkeypatch.setattr(preparation, "BYTES_EOS", 1)
    (tmp_path / "two").mkdir()
    with pytest.raises(SystemExit, match="the two forms of imdb/train differ"):
        list(preparation.text_rows(reviews, tmp_path / "two"))


def test_pieces_are_learned_by_both_trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = [f"a rather {word} film about {word}s \t{i % 2}" for i, word in enumerate(["dull", "grand", "odd"] * 9)]
    (tmp_path / "train.tsv").write_text("\n".join(["sentence\tlabel", *sentences]) + "\n", encoding="utf-8")
    monkeypatch.setattr(preparation, "VOCABULARY", 64)
    rows = list(preparation.piece_rows(tmp_path))
    assert [row["step"].startswith("SST-2, 27 sentences to ") for row in rows] == [True, True]
    assert ["WordPiece" in rows[0]["step"], "unigram" in rows[1]["step"]] == [True, True]
    assert all(row["ours"] > 0 and row["straightforward"] > 0 for row in rows)


def memory_of_arrays() -> float:
    return preparation.peak_mib(lambda: [np.ones(2**20) for _ in range(16)] and preparation.time.sleep(0.1))


def test_memory_is_seen_while_it_is_held() -> None:
    """In a process of its own: a training in this one would have it keep freed memory."""
    assert 100 < _timing.alone(memory_of_arrays) < 200, "16 arrays of 8 MiB"


def test_a_release_is_packed_and_read_in_either_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IMAGES", "BATCH_TOKENS", "check_manifest"):
        monkeypatch.setattr(pathfinder, name, getattr(pathfinder, name))  # put back afterwards
    monkeypatch.setattr(pathfinder.np, "memmap", np.memmap)
    preparation.pack_release(tmp_path / "raw", 20)
    found: list[dict[str, Any]] = []
    for whole in (False, True):
        out = tmp_path / f"{whole}"
        preparation.released(tmp_path / "raw", out, 20, whole)
        found.append({path.name: path.read_bytes() for path in out.iterdir() if path.suffix != ".unfinished"})
    assert found[0] == found[1]
    assert json.loads(found[0]["meta.json"])["length"] == 256 * 256
