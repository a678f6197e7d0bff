"""The contract of a task, over every file in tasks/, and what tasks share: splits, limits, manifests, tables."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from noscratch import code, tasks
from noscratch.tasks import SPLITS, Examples, Pretraining, Spec, TaskError

FOLDER = Path(tasks.__file__).parent
METRICS = {"accuracy", "matthews", "f1", "pearson", "spearman"}
SOURCED = [name for name in tasks.names() if tasks.load(name).SPEC.sources]
GENERATED = [name for name in tasks.names() if name not in SOURCED]


# ---------------------------------------------------------------- every task


def test_a_task_is_a_file() -> None:
    files = {path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_")}
    assert set(tasks.names()) == files
    assert {"cola", "image", "listops", "mnli", "mrpc", "pathfinder", "qnli", "qqp", "retrieval", "rte"} <= files
    assert {"scifar", "sst2", "stsb", "text", "wnli"} <= files


@pytest.mark.parametrize("name", tasks.names())
def test_a_spec_is_sound(name: str) -> None:
    spec = tasks.load(name).SPEC
    assert isinstance(spec, Spec)
    assert spec.metrics, "a primary metric"
    assert set(spec.metrics) <= METRICS
    assert spec.kind in ("classification", "regression")
    assert (spec.kind == "regression") == (spec.classes == 1), "a regression has one output, a classification several"
    assert (spec.kind == "regression") == (spec.metrics[0] in ("pearson", "spearman"))
    assert spec.inputs in ("tokens", "pixels")
    assert 0 < spec.pretraining.ratio < 1, "a ratio of 0 would mask nothing"
    assert spec.pretraining.loss in ("cross-entropy", "l1")
    assert spec.title
    assert spec.citation
    assert spec.protocol == "clean", "what else a paper did is a variant"
    assert code.spec_literal(f"noscratch.tasks.{name}", "sources") == spec.sources


@pytest.mark.parametrize("name", tasks.names())
def test_a_config_is_frozen_plain_and_complete(name: str) -> None:
    config = tasks.load(name).Config()
    fields = {field.name for field in dataclasses.fields(config)}
    assert fields == set(code.config_fields(f"noscratch.tasks.{name}")), "params.yaml may set every field"
    assert fields >= set(SPLITS), "limits of examples"
    assert all(isinstance(getattr(config, field), int | float | str | None) for field in fields)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train = 1


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_task_keeps_the_contract(name: str, tmp_path: Path) -> None:
    """Those with sources have tests of their own, on small files in the official layout."""
    task = tasks.load(name)
    config = dataclasses.replace(task.Config(), train=6, validation=3, test=2)
    summaries = [task.prepare(config, {}, tmp_path / copy) for copy in ("a", "b")]
    assert summaries[0] == summaries[1]
    json.dumps(summaries[0], allow_nan=False)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert set(files) >= {"meta.json", "splits.json", *(f"{split}.arrow" for split in SPLITS)}
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), f"{file}: same bytes twice"
    meta = json.loads((tmp_path / "a" / "meta.json").read_text(encoding="utf-8"))
    assert (meta["sources"], meta["title"].endswith("generated")) == ([], True)
    assert (meta["task"], meta["kind"], meta["classes"]) == (name, task.SPEC.kind, task.SPEC.classes)
    assert meta["metrics"] == list(task.SPEC.metrics)
    ids = []
    for split, count in zip(SPLITS, (6, 3, 2), strict=True):
        with pa.memory_map(str(tmp_path / "a" / f"{split}.arrow")) as file:
            table = pa.ipc.open_file(file).read_all()
            assert table.schema == tasks.table_schema(task.SPEC, meta["vocabulary"])
            assert table.num_rows == summaries[0]["splits"][split]["examples"] == count
            ids += table.column("id").to_pylist()
    assert len(set(ids)) == 11, "no example is in two splits"


def test_tasks_do_without_torch() -> None:
    code = (
        "import sys; from noscratch import tasks; list(map(tasks.load, tasks.names())); print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert ran.stdout.strip() == "False"


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(TaskError, match=r"'colla'.*did you mean 'cola'.*rte.*wnli"):
        tasks.load("colla")


@pytest.mark.parametrize("name", SOURCED)
def test_what_has_a_source_has_a_committed_manifest(name: str) -> None:
    owner = "image" if name == "scifar" else name  # the same images in the same splits
    assert (FOLDER / "splits" / f"{owner}.json").is_file()


MANIFESTS = sorted(path.stem for path in (FOLDER / "splits").glob("*.json"))


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_committed_manifest_is_compact_and_complete(name: str) -> None:
    path = FOLDER / "splits" / f"{name}.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    assert set(value) == {"rule", "splits", "task", "validation"}
    assert name.partition("-")[0] in tasks.names()
    assert value["task"] == name
    assert path.read_text(encoding="utf-8") == json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n"
    count, listed = value["splits"]["validation"]["examples"], value["validation"]
    assert (listed is None) == (count > tasks.LISTED)
    if listed is not None:
        assert listed == sorted(set(listed))
        assert len(listed) == count
        digest = hashlib.sha256("".join(f"{i}\n" for i in listed).encode()).hexdigest()
        assert digest == value["splits"]["validation"]["sha256"]


HELD_OUT = [name for name in MANIFESTS if tasks.HOLD_OUT_RULE in (FOLDER / "splits" / f"{name}.json").read_text()]


@pytest.mark.parametrize("name", HELD_OUT)
def test_a_committed_manifest_follows_its_own_rule(name: str) -> None:
    path = FOLDER / "splits" / f"{name}.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    total = value["splits"]["validation"]["examples"] + value["splits"]["train"]["examples"]
    validation = value["validation"]
    if validation is None:  # too many to be listed: their ids are the rows of the file
        ids = [f"train/{i}" for i in range(total)]
        held = tasks.held_out(ids)
        validation = [i for i, out in zip(ids, held, strict=True) if out]
        train = [i for i, out in zip(ids, held, strict=True) if not out]
        assert tasks.manifest("", {"train": train, "validation": validation})["splits"] == {
            split: value["splits"][split] for split in ("train", "validation")
        }
    assert not [i for i in validation if i.startswith("test")], "validation is held out of the official training set"
    assert tasks.held_out(validation).all(), "by the rule and nothing else"
    expected, spread = total / 10, 4 * np.sqrt(total * 0.09)
    assert abs(len(validation) - expected) < spread, "one in ten, up to four standard deviations of a fair draw"


# ---------------------------------------------------------------- splits and limits


@given(st.sets(st.text(max_size=12), min_size=1), st.randoms())
def test_holding_out_depends_on_nothing_but_the_id(ids: set[str], random: Any) -> None:
    order = sorted(ids)
    held = dict(zip(order, tasks.held_out(order).tolist(), strict=True))
    random.shuffle(order)
    part = order[: len(order) // 2 + 1]
    assert tasks.held_out(part).tolist() == [held[i] for i in part]


def test_the_hash_of_the_rule_is_the_stated_one() -> None:
    ids = [f"train/{i}" for i in range(400)]
    stated = [int(hashlib.sha256(f"0:{i}".encode()).hexdigest(), 16) < 2**256 / 10 for i in ids]
    assert tasks.held_out(ids).tolist() == stated


@given(st.integers(1, 60), st.integers(0, 70), st.integers(0, 70))
def test_limits_are_nested_prefixes(n: int, smaller: int, larger: int) -> None:
    ids = [f"x/{i}" for i in range(n)]
    smaller, larger = sorted((smaller, larger))
    few, many = tasks.prefix(ids, smaller).tolist(), tasks.prefix(ids, larger).tolist()
    for rows, limit in ((few, smaller), (many, larger)):
        assert rows == sorted(set(rows)), "ascending, none twice"
        assert len(rows) == (min(limit, n) if limit else n)
    if smaller:
        assert set(few) <= set(many), f"{smaller} of {n} within {larger}"


def test_a_limit_does_not_take_the_first_rows() -> None:
    assert tasks.prefix([f"x/{i}" for i in range(1000)], 100).tolist() != list(range(100))


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(TaskError, match=r"0 \(all\) or more, got -1"):
        tasks.prefix(["a"], -1)


def test_a_manifest_ignores_order_and_refuses_an_id_twice() -> None:
    one = tasks.manifest("r", {"train": ["b", "a"], "test": ["c"]})
    assert one == tasks.manifest("r", {"train": ["a", "b"], "test": ["c"]})
    assert one["splits"]["train"] == {"examples": 2, "sha256": hashlib.sha256(b"a\nb\n").hexdigest()}
    with pytest.raises(TaskError, match="'a' occurs more than once"):
        tasks.manifest("r", {"train": ["a"], "validation": ["a"]})


def test_a_legacy_manifest_may_use_an_example_in_two_splits() -> None:
    splits = {"train": ["a"], "validation": ["b"], "test": ["b"]}
    assert tasks.manifest("r", splits, legacy=True)["splits"]["test"]["examples"] == 1
    with pytest.raises(TaskError, match="'b' occurs more than once"):
        tasks.manifest("r", splits)
    with pytest.raises(TaskError, match="'a' occurs more than once"):
        tasks.manifest("r", splits | {"train": ["a", "a"]}, legacy=True)


@given(st.integers(0, 3000), st.integers(0, 2**32 - 1))
def test_the_permutation_is_that_of_torch(n: int, seed: int) -> None:
    expected = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert tasks.permutation(n, seed).tolist() == expected.tolist()


def test_other_splits_than_the_committed_ones_are_refused() -> None:
    value = json.loads((FOLDER / "splits" / "wnli.json").read_text(encoding="utf-8"))
    train = [f"train/{i}" for i in range(635) if f"train/{i}" not in set(value["validation"])]
    splits = {"train": train, "validation": value["validation"], "test": [f"dev/{i}" for i in range(71)]}
    tasks.check_manifest("wnli", value["rule"], splits)
    with pytest.raises(TaskError, match=r"splits/wnli.json in 'rule'"):
        tasks.check_manifest("wnli", "another rule", splits)
    with pytest.raises(TaskError, match=r"splits/wnli.json in 'splits'"):
        tasks.check_manifest("wnli", value["rule"], splits | {"test": splits["test"][1:]})
    with pytest.raises(TaskError, match=r"no committed manifest tasks/splits/nonesuch\.json"):
        tasks.check_manifest("nonesuch", value["rule"], splits)


def test_duplicates_are_counted_within_and_between() -> None:
    found = tasks.duplicates(list("abcaab"), list("xaxay"), [f"r/{i}" for i in range(6)], [f"s/{i}" for i in range(5)])
    assert found == {"train": 3, "test": 2, "shared": 1, "shared_ids": [["r/0", "s/1"]]}


# ---------------------------------------------------------------- tables

SPEC = Spec("Toy", (), "classification", 3, ("accuracy",), "tokens", Pretraining(0.15, "cross-entropy"), "nobody")


def examples(split: str, tokens: list[list[int]], labels: list[float]) -> Examples:
    lengths = [len(run) for run in tokens]
    return Examples(
        [f"{split}/{i}" for i in range(len(tokens))],
        np.array(list(chain.from_iterable(tokens)), np.uint16),
        np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        np.array(labels),
    )


def three(tokens: list[list[int]], labels: list[float]) -> dict[str, Examples]:
    return {split: examples(split, tokens, labels) for split in SPLITS}


def save(out: Path, spec: Spec, splits: dict[str, Examples], vocabulary: int, length: int = 9) -> dict[str, Any]:
    return tasks.write(out, "toy", spec, splits, vocabulary=vocabulary, eos=None, length=length, rule="r")


@pytest.mark.parametrize(("vocabulary", "token"), [(256, pa.uint8()), (257, pa.uint16())])
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_table_comes_back_from_a_memory_map(tmp_path: Path, vocabulary: int, token: pa.DataType, kind: Any) -> None:
    spec = dataclasses.replace(SPEC, kind=kind, classes=1 if kind == "regression" else 3)
    labels = [0.5, 2.25] if kind == "regression" else [0, 2]
    summary = save(tmp_path, spec, three([[1, 5, vocabulary - 2], [7]], labels), vocabulary)
    with pa.memory_map(str(tmp_path / "validation.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
        assert table.schema.names == ["id", "tokens", "label"]
        assert table.schema.field("tokens").type.value_type == token, "the smallest type that holds the vocabulary"
        assert table.schema.field("label").type == (pa.float32() if kind == "regression" else pa.int64())
        assert table.to_pydict() == {
            "id": ["validation/0", "validation/1"],
            "tokens": [[1, 5, vocabulary - 2], [7]],
            "label": labels,
        }
    described = summary["splits"]["train"]
    assert described["lengths"] == {"min": 1, "mean": 2.0, "max": 3}
    assert (described["examples"], described["tokens"]) == (2, 4)
    if kind == "regression":
        assert described["labels"] == {"min": 0.5, "mean": 1.375, "max": 2.25}
    else:
        assert described["labels"] == {"0": 1, "1": 0, "2": 1}


def test_the_description_of_tokens_and_of_pixels(tmp_path: Path) -> None:
    save(tmp_path / "tokens", SPEC, three([[1, 2]], [1]), 20)
    pixels = dataclasses.replace(SPEC, inputs="pixels", pretraining=Pretraining(0.5, "l1"))
    save(tmp_path / "pixels", pixels, three([[0, 255]], [1]), 256)
    meta = {name: json.loads((tmp_path / name / "meta.json").read_text()) for name in ("tokens", "pixels")}
    assert meta["tokens"] == {
        "task": "toy", "title": "Toy", "sources": [], "protocol": "clean", "channels": 1, "pairs": False,
        "submission": False, "kind": "classification", "classes": 3, "metrics": ["accuracy"], "inputs": "tokens",
        "vocabulary": 20, "pad": 0, "mask": 19, "eos": None, "length": 9,
        "pretraining": {"ratio": 0.15, "loss": "cross-entropy"},
    }  # fmt: skip
    assert meta["pixels"]["mask"] is None
    assert meta["pixels"]["pretraining"] == {"ratio": 0.5, "loss": "l1"}
    ids = json.loads((tmp_path / "tokens" / "splits.json").read_text())
    assert ids == tasks.manifest("r", {split: [f"{split}/0"] for split in SPLITS}) | {"quarantine": []}


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    files = ["meta.json", "splits.json", *(f"{split}.arrow" for split in SPLITS)]
    for name in ("a", "b"):
        save(tmp_path / name, SPEC, three([[3, 4], [5], [6, 7, 8]], [0, 1, 2]), 300)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(files)
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("tokens", "labels", "rule"),
    [
        ([[1], [0]], [0, 1], "one of 1 to 18, got 0 to 1"),
        ([[1], [19]], [0, 1], "one of 1 to 18, got 1 to 19"),
        ([[1], []], [0, 1], "1 to 9 tokens, got 0 to 1"),
        ([[1], [2] * 10], [0, 1], "1 to 9 tokens, got 1 to 10"),
        ([[1], [2]], [0, 3], "one of 0 to 2, got 0 to 3"),
        ([[1], [2]], [-1, 0], "one of 0 to 2, got -1 to 0"),
        ([[1], [2]], [0], "2 ids, 1 labels"),
        ([], [], "at least one example"),
    ],
)
def test_what_breaks_a_rule_is_refused(tmp_path: Path, tokens: list[list[int]], labels: list[float], rule: str) -> None:
    with pytest.raises(TaskError, match=rf"toy/train: .*{rule}"):
        save(tmp_path, SPEC, three(tokens, labels), 20)


def test_token_lists_cover_the_tokens(tmp_path: Path) -> None:
    good = three([[1, 2]], [0])
    broken = dataclasses.replace(good["test"], offsets=np.array([0, 1]))
    with pytest.raises(TaskError, match="toy/test: the token lists do not cover the 2 tokens"):
        save(tmp_path, SPEC, good | {"test": broken}, 20)


def test_a_split_in_parts_is_written_batch_by_batch(tmp_path: Path) -> None:
    """The parts may be more than memory holds; what is described and listed is their sum."""
    whole = examples("train", [[1], [2, 3], [4, 5, 6]], [0, 1, 2])
    parts = [
        Examples(whole.ids[a:b], whole.tokens[i:j], whole.offsets[a : b + 1] - i, whole.labels[a:b])
        for a, b, i, j in ((0, 1, 0, 1), (1, 3, 1, 6))
    ]
    rest = {split: examples(split, [[7]], [1]) for split in SPLITS[1:]}
    expected = save(tmp_path / "whole", SPEC, {"train": whole, **rest}, 20)
    assert tasks.write(
        tmp_path / "parts", "toy", SPEC, {"train": iter(parts), **rest}, vocabulary=20, eos=None, length=9, rule="r"
    ) == expected  # fmt: skip
    with pa.memory_map(str(tmp_path / "parts" / "train.arrow")) as file:
        reader = pa.ipc.open_file(file)
        assert reader.num_record_batches == 2
        assert reader.read_all().to_pydict()["tokens"] == [[1], [2, 3], [4, 5, 6]]
    for name in ("meta.json", "splits.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(TaskError, match="toy/train: a split has at least one example, got none"):
        tasks.write(tmp_path / "none", "toy", SPEC, {"train": iter(()), **rest}, vocabulary=20, eos=None, length=9,
                    rule="r")  # fmt: skip


def test_pairs_channels_and_hidden_labels_are_described(tmp_path: Path) -> None:
    pairs = dataclasses.replace(SPEC, pairs=True)
    one = dataclasses.replace(
        examples("x", [[1, 2], [3]], [0, 1]), second=np.array([4, 5, 6, 7]), second_offsets=np.array([0, 1, 4])
    )
    splits = {split: dataclasses.replace(one, ids=[f"{split}/{i}" for i in range(2)]) for split in SPLITS}
    summary = save(tmp_path / "pairs", pairs, splits, 20)
    assert summary["splits"]["train"]["lengths"] == {"min": 1, "mean": 7 / 4, "max": 3}
    with pa.memory_map(str(tmp_path / "pairs" / "test.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
        assert table.schema.names == ["id", "tokens", "second", "label"]
        assert table.to_pydict()["second"] == [[4], [5, 6, 7]]
    with pytest.raises(TaskError, match=r"toy/train: a token is one of 1 to 5, got 4 to 7"):
        save(tmp_path / "bad", pairs, splits, 7)

    hidden = {"submission": examples("submission", [[1], [2]], [-1, -1])}
    summary = save(tmp_path / "hidden", SPEC, three([[1]], [2]) | hidden, 20)
    assert "labels" not in summary["splits"]["submission"], "nothing is said about hidden labels"
    assert json.loads((tmp_path / "hidden" / "meta.json").read_text())["submission"] is True
    with pytest.raises(TaskError, match="toy/submission: these labels are hidden"):
        save(tmp_path / "shown", SPEC, three([[1]], [2]) | {"submission": examples("s", [[1]], [1])}, 20)

    pixels = dataclasses.replace(SPEC, inputs="pixels", pretraining=Pretraining(0.5, "l1"))
    colour = {"vocabulary": 256, "eos": None, "length": 2, "rule": "r", "channels": 3}
    summary = tasks.write(tmp_path / "rgb", "toy", pixels, three([[0, 1, 2, 3, 4, 255]], [1]), **colour)
    assert summary["splits"]["test"]["lengths"] == {"min": 2, "mean": 2.0, "max": 2}, "positions, not numbers"
    with pytest.raises(TaskError, match="toy/train: a position has 3 tokens"):
        tasks.write(tmp_path / "odd", "toy", pixels, three([[0, 1, 2, 3]], [1]), **colour)


def test_a_corpus_has_training_text_alone_and_no_labels(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, kind="corpus", classes=0, metrics=())
    summary = save(tmp_path / "c", spec, {"train": examples("c", [[1, 2], [3]], [-1, -1])}, 20)
    assert summary["splits"] == {"train": {"examples": 2, "tokens": 3, "lengths": {"min": 1, "mean": 1.5, "max": 2}}}
    assert json.loads((tmp_path / "c" / "meta.json").read_text())["kind"] == "corpus"
    with pytest.raises(TaskError, match="the splits are train in this order, got train, validation, test"):
        save(tmp_path / "three", spec, three([[1]], [-1]), 20)
    with pytest.raises(TaskError, match="toy/train: these labels are hidden"):
        save(tmp_path / "labelled", spec, {"train": examples("c", [[1]], [0])}, 20)


def test_splits_are_complete_and_in_order(tmp_path: Path) -> None:
    good = three([[1, 2]], [0])
    with pytest.raises(TaskError, match="in this order, got test, train"):
        save(tmp_path, SPEC, {"test": good["test"], "train": good["train"]}, 20)
