"""Retrieval: pairs of documents are streamed from files in the layout of the release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from noscratch import tasks
from noscratch.tasks import TaskError, retrieval
from noscratch.tasks.retrieval import Config

ROWS = {"train": 23, "validation": 9, "test": 5}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "ROWS", ROWS)
    monkeypatch.setattr(retrieval, "PART", 4)
    monkeypatch.setattr(retrieval, "check_manifest", lambda *_: None)


def texts(split: str, i: int) -> tuple[bytes, bytes]:
    """Quotes, bytes that are no UTF-8, blanks at the ends, an empty text, a carriage return."""
    return f'{split} "paper {i} '.encode() * (1 + i % 4), b"" if i == 1 else b" \xe9\x80\rend" * (1 + i % 3) + b"."


def write_release(folder: Path, end: bytes = b"\n") -> Path:
    folder.mkdir(parents=True)
    for split, name in retrieval.FILES.items():
        labels = (b"0.0", b"1.0", b"0", b"1")
        rows = [b"\t".join([labels[i % 4], b"P%d" % i, b"Q%d" % i, *texts(split, i)]) + end for i in range(ROWS[split])]
        (folder / f"new_aan_pairs.{name}.tsv").write_bytes(b"".join(rows))
    return folder


def rows_of(folder: Path, split: str) -> dict[str, list[Any]]:
    with pa.memory_map(str(folder / f"{split}.arrow")) as file:
        columns: dict[str, list[Any]] = pa.ipc.open_file(file).read_all().to_pydict()
        return columns


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_both_texts_come_out_as_they_went_in(end: bytes, tmp_path: Path) -> None:
    raw = {"lra-aan": write_release(tmp_path / "raw", end)}
    for copy in ("a", "b"):
        summary = retrieval.prepare(Config(length=30), raw, tmp_path / copy)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), f"{path.name}: same bytes twice"
    for split, n in ROWS.items():
        table = rows_of(tmp_path / "a", split)
        assert table["id"] == [f"{retrieval.FILES[split]}/{i}" for i in range(n)]
        assert table["label"] == [i % 2 for i in range(n)]
        for column, side in (("tokens", 0), ("second", 1)):
            expected = [[*(byte + 1 for byte in texts(split, i)[side][:29]), 257] for i in range(n)]
            assert table[column] == expected, f"{split}, {column}"
        assert summary["splits"][split]["labels"] == {"0": (n + 1) // 2, "1": n // 2}
    meta = json.loads((tmp_path / "a" / "meta.json").read_text())
    assert (meta["pairs"], meta["vocabulary"], meta["eos"], meta["length"]) == (True, 259, 257, 30)
    with pa.memory_map(str(tmp_path / "a" / "train.arrow")) as file:
        assert pa.ipc.open_file(file).num_record_batches == 6, "four rows at a time"


def test_limits_keep_nested_subsets(tmp_path: Path) -> None:
    raw = {"lra-aan": write_release(tmp_path / "raw")}
    ids = {}
    for n in (4, 8):
        retrieval.prepare(Config(train=n, validation=1, test=1), raw, tmp_path / str(n))
        ids[n] = rows_of(tmp_path / str(n), "train")["id"]
        assert len(ids[n]) == n
    assert set(ids[4]) < set(ids[8])


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda rows: rows[:-1], "the official file has 23 rows, got 22"),
        (lambda rows: [*rows, rows[0]], "the official file has 23 rows, got 24"),
        (lambda rows: [*rows[:3], rows[3].rpartition(b"\t")[0] + b"\n", *rows[4:]], "row 4: a row has 5 cells; got 4"),
        (lambda rows: [rows[0].replace(b"\n", b"\tx\n"), *rows[1:]], "row 1: a row has 5 cells; got 6"),
        (
            lambda rows: [b"\t".join(reversed(row[:-1].split(b"\t"))) + b"\n" for row in rows],
            "row 1: a label is one of 0, 1",
        ),
        (lambda rows: [b"label\tid1\tid2\ttext1\ttext2\n", *rows], "row 1: a label is one of .*; got b'label'"),
        (lambda rows: [], "the official file has 23 rows, got 0"),
    ],
    ids=["row lost", "row more", "short row", "long row", "swapped columns", "header", "empty"],
)
def test_a_damaged_file_is_refused(change: Any, rule: str, tmp_path: Path) -> None:
    folder = write_release(tmp_path / "raw")
    path = folder / "new_aan_pairs.train.tsv"
    rows = [row + b"\n" for row in path.read_bytes().split(b"\n")[:-1]]
    path.write_bytes(b"".join(change(rows)))
    with pytest.raises(TaskError, match=rf"raw/new_aan_pairs\.train\.tsv.*{rule}"):
        retrieval.prepare(Config(), {"lra-aan": folder}, tmp_path / "out")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "raw")
    (folder / "new_aan_pairs.eval.tsv").unlink()
    with pytest.raises(TaskError, match=r"raw/new_aan_pairs\.eval\.tsv is missing"):
        retrieval.prepare(Config(), {"lra-aan": folder}, tmp_path / "out")


def test_the_sizes_of_the_release_are_those_of_the_manifest() -> None:
    path = Path(tasks.__file__).parent / "splits" / "retrieval.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    sizes = {split: part["examples"] for split, part in value["splits"].items()}
    assert sizes == {"train": 147_086, "validation": 18_090, "test": 17_437}
