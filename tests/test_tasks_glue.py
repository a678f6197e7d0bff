"""GLUE: official layout read strictly, published totals, clean splits; on small files and, if present, real ones."""

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
from tokenizers import Tokenizer

from noscratch import tasks
from noscratch.tasks import TaskError, _glue
from noscratch.tasks._glue import Config, Layout, Table, Total

FOLDERS = {"cola": "CoLA", "rte": "RTE", "sst2": "SST-2", "stsb": "STS-B", "wnli": "WNLI"}
TASKS = sorted(FOLDERS)

# Rows and num_bytes by the dataset card (huggingface/datasets, datasets/glue/dataset_infos.json, revision 040102f100).
PUBLISHED = {
    "cola": {"train": (8551, 489149), "dev": (1043, 60850), "test": (1063, 61049)},
    "sst2": {"train": (67349, 4715283), "dev": (872, 106692), "test": (1821, 217556)},
    "stsb": {"train": (5749, 758394), "dev": (1500, 217012), "test": (1379, 170847)},
    "rte": {"train": (2490, 848888), "dev": (277, 90911), "test": (3000, 975936)},
    "wnli": {"train": (635, 107517), "dev": (71, 12215), "test": (146, 37992)},
}
QNLI = Layout(
    labelled=("index", "question", "sentence", "label"),
    test=("index", "question", "sentence"),
    sentences=("question", "sentence"),
    label="label",
    labels={"entailment": 0, "not_entailment": 1},
)
HEADERS = ("index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse",
           "sentence1_parse", "sentence2_parse", "sentence1", "sentence2")  # fmt: skip
MNLI = Layout(
    labelled=(*HEADERS, "label1", "gold_label"),
    test=HEADERS,
    sentences=("sentence1", "sentence2"),
    label="gold_label",
    labels={"entailment": 0, "neutral": 1, "contradiction": 2},
)
QQP = Layout(
    labelled=("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
    test=("id", "question1", "question2"),
    sentences=("question1", "question2"),
    label="is_duplicate",
    labels={"0": 0, "1": 1},
)
AX = dataclasses.replace(QNLI, test=("index", "sentence1", "sentence2"), sentences=("sentence1", "sentence2"))
SAMPLES = [
    ("QNLI/train.tsv", "train", QNLI), ("MNLI/train.tsv", "train", MNLI), ("MNLI/test_matched.tsv", "test", MNLI),
    ("MNLI/test_mismatched.tsv", "test", MNLI), ("QQP/train.tsv", "train", QQP), ("QQP/dev.tsv", "dev", QQP),
    ("QQP/test.tsv", "test", QQP), ("AX/AX.tsv", "test", AX),
]  # fmt: skip


def layout_of(task: str) -> Layout:
    layout: Layout = vars(tasks.load(task))["LAYOUT"]
    return layout


def cells_of(layout: Layout, split: str, i: int) -> list[str]:
    """Row i of a small file: every sentence tells file, row and column; labels go round."""
    columns = layout.test if split == "test" else layout.labelled
    keys = list(layout.labels) if layout.labels else [f"{score:.3f}" for score in (0, 2.5, 5)]
    values = {"index": str(i), "mark": "*" if i % 2 else "", layout.label: keys[i % len(keys)]}
    said = {name: f'{split} "{name}" says {i} cats ' for name in layout.sentences}
    return [(values | said).get(name, f"{name}-{i}") for name in columns]


def content(layout: Layout, split: str, n: int) -> list[str]:
    """The lines of a small official file."""
    columns = layout.test if split == "test" else layout.labelled
    head = ["\t".join(columns)] if layout.header or split == "test" else []
    return head + ["\t".join(cells_of(layout, split, i)) for i in range(n)]


def save(folder: Path, layout: Layout, rows: tuple[int, int, int] = (60, 9, 4)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in zip(_glue.OFFICIAL, rows, strict=True):
        (folder / f"{split}.tsv").write_bytes(("\n".join(content(layout, split, n)) + "\n").encode())
    return folder


def small(task: str, folder: Path) -> dict[str, Table]:
    return _glue.read(save(folder / task, layout_of(task)), layout_of(task))


# ---------------------------------------------------------------- layout


@pytest.mark.parametrize("task", TASKS)
def test_cells_come_out_as_they_went_in(task: str, tmp_path: Path) -> None:
    layout = layout_of(task)
    tables = small(task, tmp_path)
    for split, table in tables.items():
        n = {"train": 60, "dev": 9, "test": 4}[split]
        assert table.ids == [f"{split}/{i}" for i in range(n)]
        expected = [tuple(f'{split} "{name}" says {i} cats ' for name in layout.sentences) for i in range(n)]
        assert table.texts == expected, "quotes and blanks at the ends are text"
        if split == "test":
            assert set(table.labels.tolist()) == {-1}, "GLUE hides these labels"
        else:
            values = list(layout.labels.values()) if layout.labels else [0.0, 2.5, 5.0]
            assert table.labels.tolist() == [values[i % len(values)] for i in range(n)]


@pytest.mark.parametrize(
    ("task", "ids"),
    [
        ("cola", {"0": 0, "1": 1}),
        ("sst2", {"0": 0, "1": 1}),
        ("rte", {"entailment": 0, "not_entailment": 1}),
        ("wnli", {"0": 0, "1": 1}),
        ("stsb", None),
    ],
)
def test_label_ids_are_the_official_ones(task: str, ids: dict[str, int] | None) -> None:
    assert layout_of(task).labels == ids


@pytest.mark.parametrize(
    ("task", "metrics"),
    [
        ("cola", ("matthews", "accuracy")),
        ("sst2", ("accuracy",)),
        ("rte", ("accuracy",)),
        ("wnli", ("accuracy",)),
        ("stsb", ("pearson", "spearman")),
    ],
)
def test_metrics_are_the_official_ones(task: str, metrics: tuple[str, ...]) -> None:
    spec = tasks.load(task).SPEC
    assert spec.metrics == metrics
    assert spec.sources == (task,)
    assert spec.pretraining == tasks.Pretraining(0.15, "cross-entropy")


def test_only_a_line_feed_ends_a_line_and_the_last_may_lack_it(tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    odd = "a\u2028b\x85c\x0bd\x0ce\x1cf \u00a0"
    path.write_text(f"sentence\tlabel\n{odd}\t1\nlast\t0", encoding="utf-8", newline="")
    table = _glue.read_file(path, "dev", layout_of("sst2"))
    assert table.texts == [(odd,), ("last",)]
    assert table.labels.tolist() == [1, 0]


@pytest.mark.parametrize(("name", "split", "layout"), SAMPLES)
def test_true_headers_are_read(mirror: Path, name: str, split: str, layout: Layout) -> None:
    table = _glue.read_file(mirror / "samples_headers" / name, split, layout)
    assert len(table.ids) >= 1
    assert all(len(texts) == 2 and all(texts) for texts in table.texts)
    assert (set(table.labels.tolist()) == {-1}) == (split == "test")


# ---------------------------------------------------------------- bad input

Damage = Callable[[list[bytes], Layout], tuple[list[bytes], int]]


def swapped(lines: list[bytes], layout: Layout) -> tuple[list[bytes], int]:
    """The last two columns change places, header included."""
    return [b"\t".join([*line.split(b"\t")[:-2], *line.split(b"\t")[:-3:-1]]) for line in lines], 1


def replaced(row: int, change: Callable[[bytes], bytes]) -> Damage:
    def damage(lines: list[bytes], layout: Layout) -> tuple[list[bytes], int]:
        return [change(line) if i + 1 == row else line for i, line in enumerate(lines)], row

    return damage


def without(row: int, cell: int) -> Callable[[bytes], bytes]:
    return lambda line: b"\t".join(c for j, c in enumerate(line.split(b"\t")) if j != cell % (line.count(b"\t") + 1))


def cell(j: int, value: bytes) -> Callable[[bytes], bytes]:
    def change(line: bytes) -> bytes:
        parts = line.split(b"\t")
        parts[j] = value
        return b"\t".join(parts)

    return change


DAMAGES: dict[str, tuple[Damage, str]] = {
    "swapped columns": (swapped, "the header is|a sentence is not empty"),
    "CRLF": (lambda lines, _: ([line + b"\r" for line in lines], 1), "a line feed alone"),
    "one carriage return": (replaced(4, lambda line: line.replace(b" cats", b"\rcats", 1)), "a line feed alone"),
    "byte order mark": (lambda lines, _: ([b"\xef\xbb\xbf" + lines[0], *lines[1:]], 1), "byte order mark"),
    "short row": (replaced(5, without(5, -1)), "a row has .* cells"),
    "long row": (replaced(5, lambda line: line + b"\tmore"), "a row has .* cells"),
    "empty row": (replaced(6, lambda line: b""), "a row has .* cells"),
    "not UTF-8": (replaced(7, lambda line: line.replace(b"cats", b"c\xe4ts", 1)), "the text is UTF-8.*0xe4"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("task", TASKS)
def test_a_damaged_file_is_refused_with_file_row_and_rule(task: str, damage: str, tmp_path: Path) -> None:
    layout = layout_of(task)
    change, rule = DAMAGES[damage]
    lines, row = change([line.encode() for line in content(layout, "train", 9)], layout)
    path = save(tmp_path / task, layout) / "train.tsv"
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(TaskError, match=rf"^{task}/train\.tsv, row {row}: .*({rule}).*fetch the source again"):
        _glue.read(tmp_path / task, layout)


@pytest.mark.parametrize(("name", "split", "layout"), SAMPLES)
@pytest.mark.parametrize("damage", ["swapped columns", "CRLF", "byte order mark", "short row"])
def test_a_damaged_copy_of_a_true_file_is_refused(
    mirror: Path, tmp_path: Path, name: str, split: str, layout: Layout, damage: str
) -> None:
    lines = (mirror / "samples_headers" / name).read_bytes().removesuffix(b"\n").split(b"\n")
    change, rule = DAMAGES[damage] if damage != "short row" else (replaced(2, without(2, -1)), "a row has .* cells")
    lines, row = change(lines, layout)
    path = tmp_path / name
    path.parent.mkdir()
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(TaskError, match=rf"^{name}, row {row}: .*({rule})"):
        _glue.read_file(path, split, layout)


@pytest.mark.parametrize(
    ("task", "column", "value", "rule"),
    [
        ("cola", "label", "2", "a label is one of 0, 1; got '2'"),
        ("cola", "source", "I saw it.", "the column source holds a code"),
        ("sst2", "label", "", "a label is one of 0, 1; got ''"),
        ("rte", "label", "entailment ", "a label is one of entailment, not_entailment"),
        ("rte", "index", "17", "the index counts from 0, here 2; got '17'"),
        ("wnli", "sentence2", "", "a sentence is not empty"),
        ("wnli", "label", "entailment", "a label is one of 0, 1"),
        ("stsb", "score", "5.001", "a score is a number from 0 to 5; got '5.001'"),
        ("stsb", "score", "-0.1", "a score is a number from 0 to 5"),
        ("stsb", "score", "nan", "a score is a number from 0 to 5"),
        ("stsb", "score", "high", "a score is a number from 0 to 5; got 'high'"),
    ],
)
def test_a_wrong_cell_is_refused(task: str, column: str, value: str, rule: str, tmp_path: Path) -> None:
    layout = layout_of(task)
    row = 4 if layout.header else 3
    change = replaced(row, cell(layout.labelled.index(column), value.encode()))
    lines, _ = change([line.encode() for line in content(layout, "train", 9)], layout)
    (save(tmp_path / task, layout) / "train.tsv").write_bytes(b"\n".join(lines))
    with pytest.raises(TaskError, match=rf"^{task}/train\.tsv, row {row}: {rule}"):
        _glue.read(tmp_path / task, layout)


def test_a_missing_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    layout = layout_of("rte")
    folder = save(tmp_path / "rte", layout)
    (folder / "dev.tsv").write_bytes(b"")
    with pytest.raises(TaskError, match=r"rte/dev\.tsv, row 1: the header is 'index sentence1 sentence2 label'"):
        _glue.read(folder, layout)
    (folder / "dev.tsv").unlink()
    with pytest.raises(TaskError, match=r"rte/dev\.tsv is missing"):
        _glue.read(folder, layout)


# ---------------------------------------------------------------- totals


@pytest.mark.parametrize("task", TASKS)
def test_totals_follow_from_the_published_sizes(task: str) -> None:
    layout, totals = layout_of(task), vars(tasks.load(task))["TOTALS"]
    k, label = len(layout.sentences), 4 if layout.labels is None else 8
    for split, (n, size) in PUBLISHED[task].items():
        text = size - n * (label + 4 + 4 * k) - 4 * k - (k + 3) * math.ceil(n / 8)
        assert (totals[split].rows, totals[split].text) == (n, text), split
        if isinstance(totals[split].labels, tuple):
            assert sum(totals[split].labels) == n, split


def test_other_totals_are_refused() -> None:
    table = Table(["train/0", "train/1"], [("a", "é"), ("b", "c")], np.array([1, 0]))
    good = Total(rows=2, text=5, labels=(1, 1))
    _glue.check_totals("rte", {"train": table}, {"train": good})
    for change, rule in (
        ({"rows": 3}, "rows of the official file: 3; got 2"),
        ({"text": 4}, "bytes of text of the official file: 4; got 5"),
        ({"labels": (2, 0)}, r"labels .* of the official file: \(2, 0\); got \(1, 1\)"),
    ):
        with pytest.raises(TaskError, match=rf"rte/train\.tsv: {rule}"):
            _glue.check_totals("rte", {"train": table}, {"train": dataclasses.replace(good, **change)})
    scores = Table(table.ids, table.texts, np.array([1.5, 2.0004], np.float32))
    _glue.check_totals("stsb", {"train": scores}, {"train": Total(2, 5, 1.75)})
    with pytest.raises(TaskError, match=r"official file: 1\.751; got 1\.75"):
        _glue.check_totals("stsb", {"train": scores}, {"train": Total(2, 5, 1.751)})


def test_files_in_the_layout_that_are_not_the_official_ones_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    save(tmp_path / "raw", layout_of("rte"))
    with pytest.raises(TaskError, match=r"rte/train\.tsv: rows of the official file: 2490; got 60"):
        tasks.load("rte").prepare(Config(), {"rte": tmp_path / "raw"}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- preparing


def rows_of(folder: Path, split: str) -> dict[str, list[Any]]:
    with pa.memory_map(str(folder / f"{split}.arrow")) as file:
        columns: dict[str, list[Any]] = pa.ipc.open_file(file).read_all().to_pydict()
        return columns


@pytest.mark.parametrize("task", TASKS)
def test_preparing_a_small_task(task: str, tmp_path: Path) -> None:
    spec, layout = tasks.load(task).SPEC, layout_of(task)
    splits = _glue.split(small(task, tmp_path / "raw"))
    ids = {split: table.ids for split, table in splits.items()}
    assert sorted(ids["train"] + ids["validation"]) == sorted(f"train/{i}" for i in range(60)), "a partition"
    assert ids["validation"], "something is held out"
    assert ids["test"] == [f"dev/{i}" for i in range(9)], "the official development set is the test set"
    config = Config(length=30, vocabulary=300)
    summary = _glue.build(task, spec, config, splits, tmp_path / "a")
    _glue.build(task, spec, config, splits, tmp_path / "b")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["meta.json", "splits.json", "test.arrow", "tokenizer.json", "train.arrow", "validation.arrow"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), f"{name}: same bytes twice"
    meta = json.loads((tmp_path / "a" / "meta.json").read_text())
    tokenizer = Tokenizer.from_file(str(tmp_path / "a" / "tokenizer.json"))
    assert meta["vocabulary"] == tokenizer.get_vocab_size() == summary["vocabulary"]
    assert meta["mask"] == tokenizer.token_to_id("[MASK]")
    assert (meta["length"], meta["eos"]) == (30, None)
    for split, table in splits.items():
        stored = rows_of(tmp_path / "a", split)
        assert stored["id"] == table.ids
        assert stored["label"] == table.labels.tolist()
        for texts, tokens in zip(table.texts, stored["tokens"], strict=True):
            encoded = tokenizer.encode(*texts).ids
            assert (tokens == encoded) if len(encoded) <= 30 else (len(tokens) == 30)
            assert tokens.count(3) == len(layout.sentences), "one [SEP] behind each sentence"


@pytest.mark.parametrize("task", ["cola", "rte"])
@pytest.mark.parametrize("tokens", ["unigram", "bytes"])
def test_a_variant_reads_the_same_examples_in_other_tokens(task: str, tokens: Any, tmp_path: Path) -> None:
    splits = _glue.split(small(task, tmp_path / "raw"))
    config = Config(length=40, vocabulary=200, tokens=tokens)
    for copy in ("a", "b"):
        _glue.build(task, tasks.load(task).SPEC, config, splits, tmp_path / copy)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert ("tokenizer.json" in files) == (tokens == "unigram")
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), f"{name}: same bytes twice"
    meta = json.loads((tmp_path / "a" / "meta.json").read_text())
    assert tokens in meta["title"].replace("byte by byte", "bytes")
    for split, table in splits.items():
        stored = rows_of(tmp_path / "a", split)
        assert (stored["id"], stored["label"]) == (table.ids, table.labels.tolist())
        for texts, row in zip(table.texts, stored["tokens"], strict=True):
            if tokens == "bytes":
                whole = [i for text in texts for i in (*(byte + 3 for byte in text.encode()), 1)]
            else:
                whole = Tokenizer.from_file(str(tmp_path / "a" / "tokenizer.json")).encode(*texts).ids
            assert row == whole if len(whole) <= 40 else len(row) == 40
    assert (meta["vocabulary"], meta["mask"], meta["eos"]) == (260, 259, 1) or tokens == "unigram"


def test_the_tokenizer_sees_kept_training_text_only(tmp_path: Path) -> None:
    splits = _glue.split(small("rte", tmp_path / "raw"))
    for mark, split in (("ж", "validation"), ("щ", "test")):
        splits[split] = dataclasses.replace(splits[split], texts=[(mark * 5, mark) for _ in splits[split].texts])
    kept = set(tasks.prefix(splits["train"].ids, 10).tolist())
    texts = [("plain", "text") if i in kept else ("ю", "ю") for i in range(len(splits["train"].ids))]
    splits["train"] = dataclasses.replace(splits["train"], texts=texts)
    _glue.build("rte", tasks.load("rte").SPEC, Config(train=10, vocabulary=300), splits, tmp_path / "out")
    pieces = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).get_vocab()
    assert "plain" in pieces
    assert not [piece for piece in pieces if set(piece) & set("жщю")], "other text leaves no trace in the vocabulary"
    assert set(rows_of(tmp_path / "out", "test")["tokens"][0]) == {1, 2, 3}, "and is unknown"


def test_limits_keep_nested_subsets(tmp_path: Path) -> None:
    splits = _glue.split(small("wnli", tmp_path / "raw"))
    spec = tasks.load("wnli").SPEC
    ids = {}
    for n in (3, 8):
        out = tmp_path / str(n)
        summary = _glue.build("wnli", spec, Config(train=n, validation=2, test=n, vocabulary=300), splits, out)
        ids[n] = {split: rows_of(out, split)["id"] for split in tasks.SPLITS}
        assert {split: len(kept) for split, kept in ids[n].items()} == {"train": n, "validation": 2, "test": n}
        assert json.loads((out / "splits.json").read_text()) == tasks.manifest(_glue.RULE, ids[n]) | {"quarantine": []}
        assert summary["splits"]["train"]["examples"] == n
    assert set(ids[3]["train"]) < set(ids[8]["train"])
    assert set(ids[3]["test"]) < set(ids[8]["test"])


# ---------------------------------------------------------------- the real files


@pytest.mark.parametrize("task", TASKS)
def test_the_real_files_are_prepared(task: str, mirror: Path, tmp_path: Path) -> None:
    """Totals and the committed manifest are asserted inside prepare."""
    config = Config(length=64, vocabulary=1000, train=300, validation=40, test=50, submission=20)
    summary = tasks.load(task).prepare(config, {task: mirror / "glue" / FOLDERS[task]}, tmp_path)
    assert {split: value["examples"] for split, value in summary["splits"].items()} == {
        "train": 300, "validation": 40, "test": 50, "submission": 20,
    }  # fmt: skip
    hidden = rows_of(tmp_path, "submission")
    assert set(hidden["label"]) == {-1}, "GLUE hides these labels"
    assert all(name.startswith("test/") for name in hidden["id"])
    assert {name: value["rows"] for name, value in summary["official"].items()} == {
        split: rows for split, (rows, _) in PUBLISHED[task].items()
    }
    assert 500 < summary["vocabulary"] <= 1000
    shared = summary["duplicates"]["shared_ids"]
    assert len(shared) == summary["duplicates"]["shared"]
    table = _glue.read(mirror / "glue" / FOLDERS[task], layout_of(task))
    texts = {i: text for part in table.values() for i, text in zip(part.ids, part.texts, strict=True)}
    assert all(texts[a] == texts[b] for a, b in shared)
    if summary["duplicates"]["shared"] == 0:
        assert not set(table["train"].texts) & set(table["dev"].texts)


@pytest.mark.parametrize("task", TASKS)
def test_every_class_remains_in_every_real_split(task: str, mirror: Path) -> None:
    splits = _glue.split(_glue.read(mirror / "glue" / FOLDERS[task], layout_of(task)))
    spec = tasks.load(task).SPEC
    for split, table in splits.items():
        if spec.kind == "classification":
            assert set(table.labels.tolist()) == set(range(spec.classes)), split
        else:
            assert np.ptp(table.labels) == 5, f"{split}: scores from 0 to 5"


def test_one_changed_byte_of_a_real_file_is_refused(mirror: Path, tmp_path: Path) -> None:
    for split in _glue.OFFICIAL:
        data = (mirror / "glue" / "WNLI" / f"{split}.tsv").read_bytes()
        (tmp_path / f"{split}.tsv").write_bytes(data.replace(b".", b"..", 1) if split == "dev" else data)
    with pytest.raises(TaskError, match=r"wnli/dev\.tsv: bytes of text of the official file: 10742; got 10743"):
        tasks.load("wnli").prepare(Config(), {"wnli": tmp_path}, tmp_path / "out")


def test_csv_quoting_would_be_noticed(mirror: Path, tmp_path: Path) -> None:
    """A copy that went through a CSV writer (quotes doubled, cells quoted) has other bytes of text."""
    import csv

    for split in _glue.OFFICIAL:
        lines = (mirror / "glue" / "STS-B" / f"{split}.tsv").read_text(encoding="utf-8").removesuffix("\n").split("\n")
        with (tmp_path / f"{split}.tsv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter="\t", lineterminator="\n").writerows(line.split("\t") for line in lines)
    with pytest.raises(TaskError, match=r"stsb/train\.tsv: bytes of text"):
        tasks.load("stsb").prepare(Config(), {"stsb": tmp_path}, tmp_path / "out")
