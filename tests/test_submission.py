"""The eleven files of a GLUE submission: their form, their order, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noscratch import submission, tasks
from noscratch.submission import FILES, TASKS, SubmissionError
from noscratch.tasks._glue import Total

N = 7


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test sets of seven examples."""
    for task in TASKS:
        totals = {name: Total(N, 0) for name in vars(tasks.load(task))["TOTALS"]}
        monkeypatch.setattr(tasks.load(task), "TOTALS", totals)


def values_of(task: str) -> dict[str, float]:
    found = {}
    for file in FILES:
        if file.task == task:
            for i in range(N):
                value = i * 1.1 - 1 if file.labels is None else float((i + len(file.name)) % len(file.labels))
                found[f"{file.examples}/{i}"] = value
    return found


def save(folder: Path, values: dict[str, dict[str, float]]) -> dict[str, Path]:
    paths = {}
    for task, found in values.items():
        order = np.random.default_rng(0).permutation(len(found))
        names = np.array(list(found))[order]
        table = pa.table({"id": names.tolist(), "prediction": [found[name] for name in names]})
        paths[task] = folder / f"{task}.parquet"
        pq.write_table(table, paths[task])
    return paths


@pytest.mark.usefixtures("small")
def test_eleven_files_in_the_official_form(tmp_path: Path) -> None:
    paths = save(tmp_path, {task: values_of(task) for task in TASKS})
    assert submission.write(paths, tmp_path / "out") == dict.fromkeys((file.name for file in FILES), N)
    assert len(list((tmp_path / "out").iterdir())) == 11
    for file in FILES:
        header, *rows, end = (tmp_path / "out" / file.name).read_bytes().decode().split("\n")
        assert (header, end) == ("index\tprediction", "")
        index, said = zip(*(row.split("\t") for row in rows), strict=True)
        assert index == tuple(map(str, range(N))), "in the order of the test set"
        expected = [values_of(file.task)[f"{file.examples}/{i}"] for i in range(N)]
        if file.labels is None:
            assert said == ("0.000", "0.100", "1.200", "2.300", "3.400", "4.500", "5.000"), "clipped to 0..5"
        else:
            assert said == tuple(file.labels[int(value)] for value in expected)


def test_labels_are_called_as_in_the_official_files() -> None:
    for file in FILES:
        module: Any = vars(tasks.load(file.task))
        labels = module["LABELS"] if file.task == "mrpc" else module["LAYOUT"].labels
        assert file.labels == (None if labels is None else tuple(sorted(labels, key=labels.__getitem__)))
        assert file.examples in module["TOTALS"]
    assert sum(vars(tasks.load(file.task))["TOTALS"][file.examples].rows for file in FILES) == 425_205 + 1104


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("task", "change", "rule"),
    [
        ("rte", {"test/3": None}, r"RTE\.tsv: 7 examples are predicted, got 6; test/3 is the first that is not"),
        ("mnli", {"ax/0": None}, r"AX\.tsv: 7 examples are predicted, got 6; ax/0"),
        ("cola", {"test/3": 2.0}, r"CoLA\.tsv: a prediction is a class, 0 to 1, got 2\.0"),
        ("cola", {"test/3": 0.5}, r"CoLA\.tsv: a prediction is a class, 0 to 1, got 0\.5"),
        ("qqp", {"test/3": -1.0}, r"QQP\.tsv: a prediction is a class"),
        ("sst2", {"test/3": float("nan")}, r"SST-2\.tsv: a prediction is a class, 0 to 1, got nan"),
        ("stsb", {"test/3": float("nan")}, r"STS-B\.tsv: a score is a number, got nan"),
    ],
)
def test_what_makes_no_submission_is_refused_and_nothing_is_written(
    task: str, change: dict[str, float | None], rule: str, tmp_path: Path
) -> None:
    values = {name: values_of(name) for name in TASKS}
    values[task] = {name: value for name, value in (values[task] | change).items() if value is not None}
    with pytest.raises(SubmissionError, match=rule):
        submission.write(save(tmp_path, values), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("small")
def test_missing_and_repeated_predictions_are_refused(tmp_path: Path) -> None:
    paths = save(tmp_path, {task: values_of(task) for task in TASKS})
    with pytest.raises(SubmissionError, match="no predictions of mnli, wnli"):
        submission.write({task: path for task, path in paths.items() if task not in ("mnli", "wnli")}, tmp_path / "out")
    with pytest.raises(SubmissionError, match="rte: no predictions of the hidden test set"):
        submission.write(paths | {"rte": tmp_path / "none.parquet"}, tmp_path / "out")
    table = pq.read_table(paths["rte"])
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), paths["rte"])
    with pytest.raises(SubmissionError, match=r"rte: rte\.parquet predicts an example more than once"):
        submission.write(paths, tmp_path / "out")
