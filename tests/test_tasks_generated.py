"""The generated tasks: prepare writes what the generators make, split by position, the same every time."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from noscratch.errors import NoscratchError
from noscratch.generators import listops, pathfinder
from noscratch.tasks import SPLITS, TaskError, load

SMALL = {
    "listops": {"train": 60, "validation": 20, "test": 10, "min_length": 10, "max_length": 60},
    "pathfinder": {"train": 60, "validation": 20, "test": 10},
}


def prepare(task: str, out: Path, **settings: Any) -> dict[str, Any]:
    module = load(task)
    return module.prepare(module.Config(**(SMALL[task] | settings)), {}, out)


def read(out: Path) -> dict[str, list[dict[str, Any]]]:
    tables = {}
    for split in SPLITS:
        with pa.memory_map(str(out / f"{split}.arrow")) as file:
            tables[split] = pa.ipc.open_file(file).read_all().to_pylist()
    return tables


@pytest.mark.parametrize("task", SMALL)
def test_prepare_gives_the_same_bytes_every_time(task: str, tmp_path: Path) -> None:
    summaries = [prepare(task, tmp_path / name) for name in ("one", "two")]
    assert summaries[0] == summaries[1]
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["meta.json", "splits.json", "test.arrow", "train.arrow", "validation.arrow"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    prepare(task, tmp_path / "three", seed=1)
    assert (tmp_path / "three" / "train.arrow").read_bytes() != (tmp_path / "one" / "train.arrow").read_bytes()


@pytest.mark.parametrize("task", SMALL)
def test_splits_are_disjoint_and_of_the_size_asked_for(task: str, tmp_path: Path) -> None:
    summary = prepare(task, tmp_path)
    tables = read(tmp_path)
    examples = [tuple(row["tokens"]) for split in SPLITS for row in tables[split]]
    assert len(set(examples)) == 90
    ids = [row["id"] for split in SPLITS for row in tables[split]]
    assert ids == sorted(set(ids))
    for split in SPLITS:
        assert len(tables[split]) == SMALL[task][split] == summary["splits"][split]["examples"]
        counts = np.bincount([row["label"] for row in tables[split]], minlength=load(task).SPEC.classes)
        assert list(summary["splits"][split]["labels"].values()) == counts.tolist()


@pytest.mark.parametrize("task", SMALL)
def test_more_test_examples_leave_the_other_splits_alone(task: str, tmp_path: Path) -> None:
    prepare(task, tmp_path / "few")
    prepare(task, tmp_path / "more", test=30)
    few, more = read(tmp_path / "few"), read(tmp_path / "more")
    assert more["train"] == few["train"]
    assert more["validation"] == few["validation"]
    assert more["test"][:10] == few["test"]


def test_listops_tokens(tmp_path: Path) -> None:
    prepare("listops", tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text(encoding="utf-8"))
    assert (meta["pad"], meta["eos"], meta["mask"], meta["vocabulary"], meta["length"]) == (0, 16, 17, 18, 60)
    assert meta["pretraining"] == {"ratio": 0.1, "loss": "cross-entropy"}
    assert meta["metrics"] == ["accuracy"]
    for rows in read(tmp_path).values():
        for row in rows:
            *symbols, eos = row["tokens"]
            assert eos == 16
            assert 10 < len(symbols) < 60
            assert listops.evaluate([symbol - 1 for symbol in symbols]) == row["label"]


def test_listops_drops_repetitions_in_order(tmp_path: Path) -> None:
    # Three in four expressions are a mere digit.
    settings = {"train": 30, "validation": 5, "test": 5, "min_length": 0, "max_length": 90}
    prepare("listops", tmp_path, **settings)
    kept = [row for split in SPLITS for row in read(tmp_path)[split]]
    batch = listops.generate(0, 0, int(kept[-1]["id"]) + 1, 0, 90)
    first: dict[tuple[int, ...], int] = {}
    for i, (symbols, length, _) in enumerate(zip(*batch, strict=True)):
        first.setdefault(tuple(symbols[:length].tolist()), i)
    assert len(first) < len(batch.labels)
    assert [int(row["id"]) for row in kept] == sorted(first.values())
    assert [tuple(token - 1 for token in row["tokens"][:-1]) for row in kept] == list(first)


def test_listops_with_too_few_different_expressions_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"needs 70 different .* found \d\d in 700"):
        prepare("listops", tmp_path, train=50, min_length=0, max_length=5, validation=10, test=10)
    assert not list(tmp_path.iterdir())


def write_release(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[list[int], int]]]:
    """Small files in the layout of the release: 40, 6 and 5 rows."""
    module = importlib.import_module("noscratch.tasks.listops")
    monkeypatch.setattr(module, "ROWS", {"train": 40, "validation": 6, "test": 5})
    monkeypatch.setattr(module, "check_manifest", lambda *_: None)
    folder.mkdir()
    rows = {}
    for seed, (split, name) in enumerate(module.FILES.items()):
        batch = listops.generate(seed, 0, module.ROWS[split], 20, 90)
        rows[split] = [(s[:n].tolist(), int(v)) for s, n, v in zip(*batch, strict=True)]
        listops.write_tsv(folder / f"basic_{name}.tsv", rows[split])
    return rows


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_the_released_listops_is_a_task_of_its_own(end: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_release(tmp_path / "raw", monkeypatch)
    for path in (tmp_path / "raw").iterdir():
        path.write_bytes(path.read_bytes().replace(b"\r\n", end))
    module = load("listops")
    module.prepare(module.Config(source="lra-listops", train=0), {"lra-listops": tmp_path / "raw"}, tmp_path / "out")
    tables = read(tmp_path / "out")
    for split, expected in rows.items():
        got = [([token - 1 for token in row["tokens"][:-1]], row["label"]) for row in tables[split]]
        assert got == expected
        assert {row["tokens"][-1] for row in tables[split]} == {16}
    meta = json.loads((tmp_path / "out" / "meta.json").read_text(encoding="utf-8"))
    assert (meta["sources"], meta["title"], meta["vocabulary"]) == (["lra-listops"], "ListOps, the release", 18)


def test_a_damaged_release_of_listops_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_release(tmp_path / "raw", monkeypatch)
    module = load("listops")
    config, raw = module.Config(source="lra-listops"), {"lra-listops": tmp_path / "raw"}
    path = tmp_path / "raw" / "basic_val.tsv"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(TaskError, match=r"basic_val\.tsv: the official file has 6 rows, got 5"):
        module.prepare(config, raw, tmp_path / "out")
    for row, line in ((0, b"Target\tSource\r\n"), (2, b"( [MAX 1 ) 3\r\n"), (2, b"[MAX 1 2 ]\t12\r\n"),
                      (2, b"[TOP 1 2 ]\t1\r\n")):  # fmt: skip
        path.write_bytes(b"".join([*lines[:row], line, *lines[row + 1 :]]))
        with pytest.raises(NoscratchError, match=r"basic_val\.tsv[,:] (row 2|the first line)"):
            module.prepare(config, raw, tmp_path / "out")
    for settings in ({"source": "lra"}, {"source": "lra-listops", "seed": 1}):
        with pytest.raises(TaskError, match="the source of ListOps is lra-listops"):
            module.prepare(module.Config(**settings), raw, tmp_path / "out")


def test_pathfinder_pixels(tmp_path: Path) -> None:
    prepare("pathfinder", tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text(encoding="utf-8"))
    assert (meta["pad"], meta["eos"], meta["mask"], meta["vocabulary"], meta["length"]) == (0, None, None, 256, 1024)
    assert meta["inputs"] == "pixels"
    assert meta["pretraining"] == {"ratio": 0.5, "loss": "cross-entropy"}
    batch = pathfinder.generate(0, 0, 90)
    rows = [row for split in SPLITS for row in read(tmp_path)[split]]
    np.testing.assert_array_equal([row["tokens"] for row in rows], batch.images.reshape(90, -1))
    np.testing.assert_array_equal([row["label"] for row in rows], batch.labels)


def test_pathfinder_settings_reach_the_generator(tmp_path: Path) -> None:
    summary = prepare("pathfinder", tmp_path, train=3, validation=1, test=1, resolution=64, distractors=2, seed=9)
    assert summary["length"] == 64 * 64
    rows = [row for split in SPLITS for row in read(tmp_path)[split]]
    expected = pathfinder.generate(9, 0, 5, 64, 2).images.reshape(5, -1)
    np.testing.assert_array_equal([row["tokens"] for row in rows], expected)


def test_configurations_state_the_published_sizes() -> None:
    listops_config, pathfinder_config = load("listops").Config(), load("pathfinder").Config()
    assert (listops_config.train, listops_config.validation, listops_config.test) == (96_000, 2_000, 2_000)
    assert (pathfinder_config.train, pathfinder_config.validation, pathfinder_config.test) == (160_000, 20_000, 20_000)
    with pytest.raises(AttributeError):
        replace(listops_config).seed = 1
