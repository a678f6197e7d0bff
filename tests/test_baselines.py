"""Baselines: what they can learn and what they cannot, the same bytes every time, the result of a training run."""

from __future__ import annotations

import json
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from noscratch import baselines, metrics, tasks
from noscratch.baselines import BaselineError
from noscratch.tasks import Examples, Pretraining, Spec

SIZES = {"train": 160, "validation": 60, "test": 80}
PLAN = {
    "steps": 40, "batch_tokens": 2048, "lr": 3e-3, "weight_decay": 0.0, "warmup": 2, "schedule": "cosine", "clip": 0.0,
    "evaluate_every": 20,
}  # fmt: skip


def settings(name: str, seed: int = 0, **plan: Any) -> dict[str, Any]:
    return {"backbone": name, "seed": seed, "threads": 1, "train": PLAN | plan}


def example(kind: str, random: np.random.Generator) -> tuple[NDArray[Any], float]:
    """One example of a task whose answer is in the counts of its tokens, or in their order alone."""
    tokens = random.integers(1, 8, random.integers(6, 14))
    if kind == "order":
        tokens = random.permutation([1, 2, 3, 4, 5, 6])
        return tokens, float(np.argmax(tokens == 1) < np.argmax(tokens == 2))
    label = int(random.random() < 0.6)
    if kind == "regression":
        return tokens, float(np.mean(tokens == 3) * 5)
    return np.append(tokens[tokens != 8], [8] * (3 * label + 1)), label


def save(out: Path, kind: str, *, pairs: bool = False, parts: int = 1) -> Path:
    """A prepared task of tokens."""
    regression = kind == "regression"
    spec = Spec("Toy", (), "regression" if regression else "classification", 1 if regression else 2,
                ("pearson", "spearman") if regression else ("accuracy", "f1"), "tokens",
                Pretraining(0.15, "cross-entropy"), "nobody", pairs=pairs)  # fmt: skip
    splits = {}
    for number, (split, n) in enumerate(SIZES.items()):
        random = np.random.default_rng(number)
        rows = [example(kind, random) for _ in range(n)]
        empty = [np.array([5])] * n
        sides = [[tokens for tokens, _ in rows], empty] if pairs else [[tokens for tokens, _ in rows]]
        if pairs:
            sides.reverse()  # what decides is in the second text
        columns = []
        for side in sides:
            offsets = np.concatenate([[0], np.cumsum([len(tokens) for tokens in side])])
            columns += [np.concatenate(side), offsets]
        labels = np.array([label for _, label in rows])
        whole = Examples([f"{split}/{i}" for i in range(n)], columns[0], columns[1], labels if regression else
                         labels.astype(np.int64), *columns[2:])  # fmt: skip
        splits[split] = whole if parts == 1 else _cut(whole, parts)
    tasks.write(out, "toy", spec, splits, vocabulary=10, eos=None, length=40, rule="r")
    return out


def _cut(whole: Examples, parts: int) -> list[Examples]:
    edges = np.linspace(0, len(whole.ids), parts + 1).astype(int)
    return [
        Examples(
            whole.ids[a:b], whole.tokens[whole.offsets[a] : whole.offsets[b]],
            whole.offsets[a : b + 1] - whole.offsets[a], whole.labels[a:b],
        )
        for a, b in pairwise(edges)
    ]  # fmt: skip


def save_images(out: Path, channels: int = 1, parts: int = 1, shuffled: bool = False) -> Path:
    """Images of 8 x 8: a bright bar that lies (0) or stands (1); shuffled: the same values anywhere."""
    spec = Spec("Bars", (), "classification", 2, ("accuracy",), "pixels", Pretraining(0.5, "l1"), "nobody")
    splits: dict[str, Any] = {}
    for number, (split, n) in enumerate(SIZES.items()):
        random = np.random.default_rng(number)
        images = random.integers(0, 60, (n, 8, 8, channels))
        labels = np.arange(n) % 2
        for image, label in zip(images, labels, strict=True):
            at = random.integers(8)
            image[(slice(None), at) if label else (at, slice(None))] = 255
        flat = images.reshape(n, -1)
        if shuffled:
            flat = random.permuted(flat, axis=1)
        whole = Examples([f"{split}/{i}" for i in range(n)], flat.reshape(-1), np.arange(n + 1) * flat.shape[1], labels)
        splits[split] = whole if parts == 1 else _cut(whole, parts)
    tasks.write(out, "bars", spec, splits, vocabulary=256, eos=None, length=64, rule="r", channels=channels)
    return out


def run(name: str, prepared: Path, out: Path, seed: int = 0, **plan: Any) -> dict[str, Any]:
    out.mkdir(parents=True)
    return baselines.run(settings(name, seed, **plan), prepared, out)


# ---------------------------------------------------------------- what they learn


def test_a_bag_learns_what_counts_tell_and_nothing_of_order(tmp_path: Path) -> None:
    found = {}
    for kind in ("counts", "order"):
        prepared = save(tmp_path / kind, kind)
        found[kind] = run("bag", prepared, tmp_path / f"{kind}-out")["metrics"]["test"]["accuracy"]
    assert found["counts"] == 1.0
    assert abs(found["order"] - 0.5) < 0.2, "every example has the same counts"


def test_a_bag_reads_both_texts_of_a_pair(tmp_path: Path) -> None:
    prepared = save(tmp_path / "in", "counts", pairs=True)
    result = run("bag", prepared, tmp_path / "out")
    assert result["metrics"]["test"]["accuracy"] == 1.0
    assert result["counts"]["parameters"] == 2 * 10 + 1


def test_a_bag_predicts_scores(tmp_path: Path) -> None:
    prepared = save(tmp_path / "in", "regression")
    assert run("bag", prepared, tmp_path / "out")["metrics"]["test"]["pearson"] > 0.9
    constant = run("majority", prepared, tmp_path / "majority")["metrics"]["test"]
    assert constant["pearson"] == 0.0, "a constant has no correlation"
    labels = baselines.read(prepared, "train").labels
    test = baselines.read(prepared, "test").labels
    assert constant["loss"] == pytest.approx(np.mean((test - labels.mean()) ** 2))


def test_the_majority_is_that_of_the_training_set(tmp_path: Path) -> None:
    prepared = save(tmp_path / "in", "counts")
    result = run("majority", prepared, tmp_path / "out")
    for split in ("validation", "test"):
        labels = baselines.read(prepared, split).labels
        assert result["metrics"][split]["accuracy"] == np.mean(labels == 1), "six in ten are of class 1"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_sees_what_a_bag_does_not(channels: int, tmp_path: Path) -> None:
    prepared = save_images(tmp_path / "in", channels)
    seen = run("cnn", prepared, tmp_path / "cnn")["metrics"]["test"]["accuracy"]
    counted = run("bag", prepared, tmp_path / "bag")["metrics"]["test"]["accuracy"]
    assert seen > 0.95
    assert counted < 0.7, "a lying and a standing bar have the same pixels"
    shuffled = run("cnn", save_images(tmp_path / "no", channels, shuffled=True), tmp_path / "no-out")
    assert shuffled["metrics"]["test"]["accuracy"] < 0.7, "and the network needs their places"


# ---------------------------------------------------------------- what they write


@pytest.mark.parametrize("name", baselines.names())
def test_the_result_is_that_of_a_training_run(name: str, tmp_path: Path) -> None:
    prepared = save_images(tmp_path / "in")
    results = [run(name, prepared, tmp_path / copy) for copy in ("a", "b")]
    assert results[0] == results[1]
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["curves.csv", "predictions.parquet", *["weights.safetensors"] * (name != "majority")]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), f"{file}: same bytes twice"
    result = results[0]
    json.dumps(result, allow_nan=False)
    assert set(result) == {"phase", "metrics", "primary", "selection", "examples", "counts", "kernels"}
    assert set(result["counts"]) == {"parameters", "steps", "tokens_real", "tokens_computed", "flops"}
    assert result["examples"] == SIZES
    assert (result["phase"], result["primary"]) == ("finetune", "accuracy")
    table = pq.read_table(tmp_path / "a" / "predictions.parquet").to_pydict()
    assert table["id"] == [f"{split}/{i}" for split in ("validation", "test") for i in range(SIZES[split])]
    for split in ("validation", "test"):
        rows = [i for i, part in enumerate(table["split"]) if part == split]
        target, prediction = (np.array(table[name])[rows] for name in ("target", "prediction"))
        assert metrics.score("accuracy", target, prediction) == result["metrics"][split]["accuracy"]
        assert np.isfinite(result["metrics"][split]["loss"])
    lines = [line.split(",") for line in (tmp_path / "a" / "curves.csv").read_text().splitlines()]
    assert lines[0] == ["step", "split", "metric", "value"]
    points = {int(step): float(value) for step, _, metric, value in lines[1:] if metric == "accuracy"}
    assert list(points) == sorted(points)
    assert result["selection"]["value"] == points[result["selection"]["step"]] == max(points.values())
    first = next(step for step, value in points.items() if value == max(points.values()))
    assert result["selection"]["step"] == first, "the first of equals"


def test_seeds_are_distinct_where_they_matter(tmp_path: Path) -> None:
    prepared = save_images(tmp_path / "in")
    for name in baselines.names():
        curves = set()
        for seed in (0, 1):
            run(name, prepared, tmp_path / f"{name}{seed}", seed, steps=4, evaluate_every=2)
            curves.add((tmp_path / f"{name}{seed}" / "curves.csv").read_bytes())
        assert (len(curves) == 2) == baselines.seeded(name), name


@pytest.mark.parametrize("name", baselines.names())
def test_record_batches_change_nothing(name: str, tmp_path: Path) -> None:
    results = [
        run(name, save_images(tmp_path / f"in{parts}", parts=parts), tmp_path / f"out{parts}", steps=4)
        for parts in (1, 3)
    ]
    assert results[0] == results[1]


def test_counts_are_those_of_the_tokens(tmp_path: Path) -> None:
    part = baselines.read(save(tmp_path / "in", "counts", parts=3), "train")
    rows = baselines.counts_of(part, 10).toarray()
    tokens = [values[a:b] for values, offsets in part.columns["tokens"] for a, b in pairwise(offsets)]
    expected = np.log1p([np.bincount(one, minlength=10) for one in tokens])
    np.testing.assert_allclose(rows, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6)
    assert len(list(chain(part.ids))) == len(rows) == SIZES["train"]


@pytest.mark.parametrize(("name", "kind"), [("forest", "counts"), ("cnn", "counts")], ids=["unknown", "no image"])
def test_what_does_not_fit_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match=f"one of majority, bag, cnn.*got '{name}' for toy"):
        run(name, save(tmp_path / "in", kind), tmp_path / "out")


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match="the loss of cnn is nan at step"):
        run("cnn", save_images(tmp_path / "in"), tmp_path / "out", lr=1e30)
