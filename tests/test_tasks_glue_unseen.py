"""MRPC, QQP, MNLI and QNLI, whose official files no test may hold: small files in the official layout, true headers."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from noscratch import tasks
from noscratch.tasks import TaskError, _glue, mnli, mrpc, qnli, qqp
from noscratch.tasks._glue import Table, Total, text_bytes

# Rows and num_bytes by the dataset card (huggingface/datasets, datasets/glue/dataset_infos.json, revision 040102f100).
PUBLISHED = {
    "mrpc": {"train": (3668, 946146), "dev": (408, 106142), "test": (1725, 443498)},
    "qqp": {"train": (363846, 50901116), "dev": (40430, 5653794), "test": (390965, 55171431)},
    "mnli": {
        "train": (392702, 74865118), "dev_matched": (9815, 1839926), "dev_mismatched": (9832, 1955384),
        "test_matched": (9796, 1854787), "test_mismatched": (9847, 1956866), "ax": (1104, 238392),
    },
    "qnli": {"train": (104743, 25677924), "dev": (5463, 1371727), "test": (5463, 1376516)},
}  # fmt: skip
ROWS = {"train": 60, "dev": 9, "test": 4}


def says(split: str, name: str, i: int) -> str:
    return f'{split} "{name}" says {i} c\xe4ts '


def write_layout(folder: Path, layout: _glue.Layout, names: dict[str, str]) -> Path:
    """Small files of a layout: file name -> which of train, dev, test it is."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = list(layout.labels or {})
    for name, kind in names.items():
        columns = layout.columns(name)
        rows = ["\t".join(columns)]
        for i in range(ROWS[kind]):
            values = {"index": str(i), layout.label: keys[i % len(keys)]}
            said = {column: says(name, column, i) for column in layout.sentences}
            rows.append("\t".join((values | said).get(column, f"{column}-{i}") for column in columns))
        (folder / f"{name}.tsv").write_bytes(("\n".join(rows) + "\n").encode())
    return folder


DEV_PAIRS = (3, 17, 20, 21, 22, 40, 41, 50, 59)


def write_mrpc(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, n in (("train", 60), ("test", 4)):
        rows = ["\t".join(mrpc.COLUMNS)]
        rows += [f"{i % 2}\t{100 + i}\t{900 + i}\t{says(name, 'a', i)}\t{says(name, 'b', i)}" for i in range(n)]
        (folder / f"msr_paraphrase_{name}.txt").write_bytes(b"\xef\xbb\xbf" + ("\n".join(rows) + "\n").encode())
    # As in the official list, the order is not that of the file.
    pairs = "".join(f"{100 + i}\t{900 + i}\n" for i in reversed(DEV_PAIRS))
    (folder / "mrpc_dev_ids.tsv").write_text(pairs, encoding="utf-8")
    return folder


def small(task: str, folder: Path) -> dict[str, Path]:
    """Raw folders of a small task in the official layout."""
    if task == "mrpc":
        return {"mrpc": write_mrpc(folder / "mrpc")}
    if task == "mnli":
        names = {name: name.partition("_")[0] for name in mnli.TOTALS if name != "ax"}
        raw = {"mnli": write_layout(folder / "mnli", mnli.LAYOUT, names)}
        return raw | {"ax": write_layout(folder / "ax", mnli.DIAGNOSTIC, {"test": "test"})}
    layout = qqp.LAYOUT if task == "qqp" else qnli.LAYOUT
    return {task: write_layout(folder / task, layout, {name: name for name in _glue.OFFICIAL})}


def read(task: str, raw: dict[str, Path]) -> dict[str, Table]:
    if task == "mnli":
        return mnli.read(raw)
    return mrpc.read(raw["mrpc"]) if task == "mrpc" else _glue.read(raw[task], vars(tasks.load(task))["LAYOUT"])


def rows_of(folder: Path, split: str) -> dict[str, list[Any]]:
    with pa.memory_map(str(folder / f"{split}.arrow")) as file:
        columns: dict[str, list[Any]] = pa.ipc.open_file(file).read_all().to_pydict()
        return columns


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict[str, Table]], None]:
    """Make the totals of a task and the committed manifests those of small tables."""

    def fit(task: str, tables: dict[str, Table]) -> None:
        totals = {name: Total(len(table.ids), text_bytes(table)) for name, table in tables.items()}
        monkeypatch.setattr(tasks.load(task), "TOTALS", totals)
        monkeypatch.setattr(_glue, "check_manifest", lambda *_: None)

    return fit


# ---------------------------------------------------------------- layout


@pytest.mark.parametrize("task", PUBLISHED)
def test_totals_follow_from_the_published_sizes(task: str) -> None:
    totals = vars(tasks.load(task))["TOTALS"]
    assert totals.keys() == PUBLISHED[task].keys()
    for split, (n, size) in PUBLISHED[task].items():
        text = size - n * (8 + 4 + 8) - 8 - 5 * math.ceil(n / 8)
        assert (totals[split].rows, totals[split].text) == (n, text), split
        assert totals[split].labels is None or sum(totals[split].labels) == n, split


@pytest.mark.parametrize(
    ("task", "metrics", "labels"),
    [
        ("mrpc", ("accuracy", "f1"), {"0": 0, "1": 1}),
        ("qqp", ("accuracy", "f1"), {"0": 0, "1": 1}),
        ("mnli", ("accuracy",), {"entailment": 0, "neutral": 1, "contradiction": 2}),
        ("qnli", ("accuracy",), {"entailment": 0, "not_entailment": 1}),
    ],
)
def test_metrics_and_label_ids_are_the_official_ones(
    task: str, metrics: tuple[str, ...], labels: dict[str, int]
) -> None:
    module = vars(tasks.load(task))
    assert module["SPEC"].metrics == metrics
    assert module["SPEC"].classes == len(labels)
    assert (module["LABELS"] if task == "mrpc" else module["LAYOUT"].labels) == labels


@pytest.mark.parametrize("task", ["qqp", "mnli", "qnli"])
def test_cells_come_out_as_they_went_in(task: str, tmp_path: Path) -> None:
    layout = vars(tasks.load(task))["LAYOUT"]
    for name, table in read(task, small(task, tmp_path)).items():
        said = "test" if name == "ax" else name
        assert table.texts == [tuple(says(said, s, i) for s in layout.sentences) for i in range(len(table.ids))]
        assert table.ids == [f"{name}/{i}" for i in range(len(table.ids))]
        if name.startswith(("test", "ax")):
            assert set(table.labels.tolist()) == {-1}
        else:
            assert table.labels.tolist() == [i % len(layout.labels) for i in range(len(table.ids))]


def test_mrpc_is_rebuilt_in_the_order_of_the_file(tmp_path: Path) -> None:
    tables = read("mrpc", small("mrpc", tmp_path))
    rest = [i for i in range(60) if i not in DEV_PAIRS]
    assert tables["dev"].texts == [(says("train", "a", i), says("train", "b", i)) for i in DEV_PAIRS]
    assert tables["train"].texts == [(says("train", "a", i), says("train", "b", i)) for i in rest]
    assert tables["dev"].labels.tolist() == [i % 2 for i in DEV_PAIRS]
    assert tables["train"].ids[-1] == f"train/{len(rest) - 1}"
    assert tables["test"].labels.tolist() == [-1] * 4, "the file shows them, the benchmark hides them"


def test_mrpc_ends_of_lines_and_a_header_of_the_list_change_nothing(tmp_path: Path) -> None:
    plain = read("mrpc", small("mrpc", tmp_path / "plain"))
    for path in small("mrpc", tmp_path / "other")["mrpc"].iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    listed = tmp_path / "other" / "mrpc" / "mrpc_dev_ids.tsv"
    listed.write_bytes(b"#1 ID\t#2 ID\r\n" + listed.read_bytes())
    for name, table in read("mrpc", {"mrpc": tmp_path / "other" / "mrpc"}).items():
        assert (table.ids, table.texts) == (plain[name].ids, plain[name].texts)


@pytest.mark.parametrize("task", PUBLISHED)
def test_a_small_task_is_prepared(task: str, tmp_path: Path, fitted: Callable[[str, Any], None]) -> None:
    raw = small(task, tmp_path)
    fitted(task, read(task, raw))
    module: Any = tasks.load(task)
    config = module.Config(length=40, vocabulary=300)
    for name in ("a", "b"):
        summary = module.prepare(config, raw, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), f"{path.name}: same bytes twice"
    meta = json.loads((tmp_path / "a" / "meta.json").read_text())
    assert (meta["classes"], meta["submission"], meta["sources"]) == (module.SPEC.classes, True, list(raw))
    test = "dev_matched" if task == "mnli" else "dev"
    assert rows_of(tmp_path / "a", "test")["id"] == [f"{test}/{i}" for i in range(9)]
    train = 60 - (9 if task == "mrpc" else 0)
    assert summary["splits"]["train"]["examples"] + summary["splits"]["validation"]["examples"] == train
    hidden = rows_of(tmp_path / "a", "submission")
    kinds = ["test_matched", "test_mismatched", "ax"] if task == "mnli" else ["test"]
    assert hidden["id"] == [f"{kind}/{i}" for kind in kinds for i in range(4)]
    assert set(hidden["label"]) == {-1}


def test_mismatched_genres_are_a_variant(tmp_path: Path, fitted: Callable[[str, Any], None]) -> None:
    raw = small("mnli", tmp_path)
    fitted("mnli", read("mnli", raw))
    for dev in ("matched", "mismatched"):
        mnli.prepare(mnli.Config(dev=dev, length=40, vocabulary=300), raw, tmp_path / dev)
        assert rows_of(tmp_path / dev, "test")["id"][0] == f"dev_{dev}/0"
    assert json.loads((tmp_path / "mismatched" / "meta.json").read_text())["title"].endswith("mismatched")
    for name in ("train.arrow", "validation.arrow", "submission.arrow", "tokenizer.json"):
        assert (tmp_path / "matched" / name).read_bytes() == (tmp_path / "mismatched" / name).read_bytes()
    with pytest.raises(TaskError, match="matched or mismatched, got 'both'"):
        mnli.prepare(mnli.Config(dev="both"), raw, tmp_path / "out")


@pytest.mark.parametrize("task", PUBLISHED)
def test_files_that_are_not_the_official_ones_are_refused_and_nothing_is_written(task: str, tmp_path: Path) -> None:
    rows = vars(tasks.load(task))["TOTALS"]["train"].rows
    got = 51 if task == "mrpc" else 60
    with pytest.raises(TaskError, match=rf"^{task}/train\.tsv: rows of the official file: {rows}; got {got}"):
        tasks.load(task).prepare(tasks.load(task).Config(), small(task, tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_partial_copy_makes_no_smaller_task(mirror: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"qnli: train\.tsv is missing; the copy at hand is a partial one"):
        qnli.prepare(qnli.Config(), {"qnli": mirror / "glue" / "QNLI"}, tmp_path / "out")
    tables = {split: _glue.read_file(mirror / "glue" / "QNLI" / f"{split}.tsv", split, qnli.LAYOUT)
              for split in ("dev", "test")}  # fmt: skip
    with pytest.raises(TaskError, match=r"qnli/dev\.tsv: bytes of text of the official file: 1259044; got 1259035"):
        _glue.check_totals("qnli", tables, {"dev": qnli.TOTALS["dev"]})
    _glue.check_totals("qnli", tables, {"test": qnli.TOTALS["test"]})


SAMPLES = [
    *(("MNLI", name, mnli.LAYOUT) for name in mnli.TOTALS if name != "ax"),
    *(("QQP", name, qqp.LAYOUT) for name in _glue.OFFICIAL),
    ("QNLI", "train", qnli.LAYOUT),
]


@pytest.mark.parametrize(("folder", "name", "layout"), SAMPLES)
def test_true_headers_are_read(mirror: Path, folder: str, name: str, layout: _glue.Layout) -> None:
    table = _glue.read_file(mirror / "samples_headers" / folder / f"{name}.tsv", name, layout)
    assert len(table.ids) >= 1
    assert table.left_out == ()
    assert all(len(texts) == 2 and all(texts) for texts in table.texts)
    assert (set(table.labels.tolist()) == {-1}) == name.startswith("test")
    strict = dataclasses.replace(layout, seen=True)
    assert _glue.read_file(mirror / "samples_headers" / folder / f"{name}.tsv", name, strict).texts == table.texts


def test_the_true_header_of_the_diagnostic_set_is_read(mirror: Path) -> None:
    table = _glue.read_file(mirror / "samples_headers" / "AX" / "AX.tsv", "test", mnli.DIAGNOSTIC)
    assert table.texts[0] == ("The cat sat on the mat.", "The cat did not sit on the mat.")


# ---------------------------------------------------------------- bad input


def change(path: Path, row: int, edit: Callable[[bytes], bytes]) -> None:
    """Edit one row of a file, from 1; row 0: each."""
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(edit(line) if row in (0, i) else line for i, line in enumerate(lines, 1)))


def swap(line: bytes) -> bytes:
    cells = line.split(b"\t")
    return b"\t".join([*cells[:-2], *cells[:-3:-1]])


@pytest.mark.parametrize(
    ("row", "edit", "rule"),
    [
        (1, swap, r"row 1: the header is"),
        (1, lambda line: b"\xef\xbb\xbf" + line, r"row 1: the file does not begin with a byte order mark"),
        (6, lambda line: line + b"\tmore", r"row 6: a row has \d+ cells"),
        (7, lambda line: line.replace(b"\xc3\xa4", b"\xe4"), r"row 7: the text is UTF-8; got 'the byte 0xe4'"),
        (8, lambda line: b"\t".join([*line.split(b"\t")[:-1], b"yes"]), r"row 8: a label is one of .*; got 'yes'"),
    ],
    ids=["swapped columns", "byte order mark", "long row", "not UTF-8", "label"],
)
@pytest.mark.parametrize("task", ["qqp", "mnli", "qnli"])
def test_a_damaged_file_is_refused_with_file_row_and_rule(
    task: str, row: int, edit: Callable[[bytes], bytes], rule: str, tmp_path: Path
) -> None:
    raw = small(task, tmp_path)
    change(raw[task] / "train.tsv", row, edit)
    with pytest.raises(TaskError, match=rf"^{task}/train\.tsv, {rule}.*fetch the source again"):
        read(task, raw)


@pytest.mark.parametrize("task", ["qqp", "mnli", "qnli"])
def test_a_short_row_is_left_out_and_its_absence_noticed(
    task: str, tmp_path: Path, fitted: Callable[[str, Any], None]
) -> None:
    """The official preparation leaves such rows out as well, so the published totals are those of the other rows."""
    raw = small(task, tmp_path)
    whole = read(task, raw)
    fitted(task, whole)
    change(raw[task] / "train.tsv", 5, lambda line: line.rpartition(b"\t")[0])
    change(raw[task] / "train.tsv", 9, lambda line: line.rpartition(b"\t")[0] + b"\t")
    table = read(task, raw)["train"]
    assert table.left_out == (5, 9)
    kept = [i for i in range(60) if i + 2 not in (5, 9)]
    assert table.texts == [whole["train"].texts[i] for i in kept]
    assert table.ids == [f"train/{i}" for i in range(58)]
    message = rf"^{task}/train\.tsv: rows of the official file: 60; got 58 \(rows left out for a missing cell: 5, 9\)"
    with pytest.raises(TaskError, match=message):
        tasks.load(task).prepare(tasks.load(task).Config(), raw, tmp_path / "out")


@pytest.mark.parametrize("end", [b"\r\n", b"\r"])
@pytest.mark.parametrize("task", ["qqp", "mnli", "qnli"])
def test_any_end_of_a_line_is_read_as_the_official_preparation_reads_it(task: str, end: bytes, tmp_path: Path) -> None:
    plain = read(task, small(task, tmp_path / "plain"))
    raw = small(task, tmp_path / "other")
    for folder in raw.values():
        for path in folder.iterdir():
            path.write_bytes(path.read_bytes().replace(b"\n", end))
    for name, table in read(task, raw).items():
        assert (table.ids, table.texts) == (plain[name].ids, plain[name].texts)


def test_the_old_archive_of_qqp_is_refused_by_its_rows(tmp_path: Path) -> None:
    """Three training rows more, of questions that are missing."""
    table = Table([f"train/{i}" for i in range(363_849)], [("a", "b")] * 363_849, np.zeros(363_849, np.int64))
    with pytest.raises(TaskError, match=r"^qqp/train\.tsv: rows of the official file: 363846; got 363849"):
        _glue.check_totals("qqp", {"train": table}, {"train": qqp.TOTALS["train"]})


@pytest.mark.parametrize(
    ("name", "row", "edit", "rule"),
    [
        ("msr_paraphrase_train.txt", 1, lambda line: line[3:], "the file begins with a byte order mark; got 'none'"),
        ("msr_paraphrase_train.txt", 1, swap, "the header is"),
        ("msr_paraphrase_train.txt", 4, lambda line: line.rpartition(b"\t")[0], "a row has 5 cells"),
        ("msr_paraphrase_train.txt", 4, lambda line: line + b"\tmore", "a row has 5 cells"),
        ("msr_paraphrase_train.txt", 5, lambda line: line.replace(b"\xc3\xa4", b"\xe4", 1), "the text is UTF-8"),
        ("msr_paraphrase_train.txt", 6, lambda line: b"2" + line[1:], "a label is one of 0, 1; got '2'"),
        ("msr_paraphrase_test.txt", 3, lambda line: line.split(b"\t", 1)[1], "a row has 5 cells"),
        ("mrpc_dev_ids.tsv", 2, lambda line: b"1\t2", "every pair is one of msr_paraphrase_train.txt"),
        ("mrpc_dev_ids.tsv", 3, lambda line: line.split(b"\t")[0], "a row is a pair of numbers"),
        ("mrpc_dev_ids.tsv", 3, lambda line: b"#1 ID\t#2 ID", "a row is a pair of numbers"),
    ],
)
def test_damaged_files_of_mrpc_are_refused(
    name: str, row: int, edit: Callable[[bytes], bytes], rule: str, tmp_path: Path
) -> None:
    folder = small("mrpc", tmp_path)["mrpc"]
    change(folder / name, row, edit)
    with pytest.raises(TaskError, match=rf"^mrpc/{name}, row {row}: {rule}"):
        mrpc.read(folder)


def test_missing_dev_ids_of_mrpc_are_noticed(tmp_path: Path, fitted: Callable[[str, Any], None]) -> None:
    raw = small("mrpc", tmp_path)
    fitted("mrpc", read("mrpc", raw))
    listed = raw["mrpc"] / "mrpc_dev_ids.tsv"
    listed.write_bytes(b"".join(listed.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(TaskError, match=r"^mrpc/train\.tsv: rows of the official file: 51; got 52"):
        mrpc.prepare(mrpc.Config(), raw, tmp_path / "out")
    listed.unlink()
    with pytest.raises(TaskError, match=r"mrpc/mrpc_dev_ids\.tsv is missing"):
        mrpc.read(raw["mrpc"])
