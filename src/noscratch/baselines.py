"""The cheapest honest models, as rows beside every backbone: what a sequence model must beat to have learned anything.

majority  the most frequent class of the training set, or the mean score
bag       a linear model of how often each token (byte, word piece, pixel value) occurs: order does not matter
cnn       a small convolutional network that sees an image as an image; for square pixel inputs alone

A row that a sequence model does not beat says that the model has failed, and a bag at chance on a task that it should
solve says that the data are broken.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from noscratch.errors import NoscratchError
from noscratch.metrics import score

PENALTIES = (10.0, 1.0, 0.1, 0.01)  # L2 penalties of `bag`, one of which is chosen on validation
ITERATIONS = 300  # most of one fit of `bag`
BLOCK = 4096  # examples counted at a time, which bounds memory
WIDTHS = (32, 64, 128)  # channels of `cnn`, the last one kept as long as the image is larger than SMALLEST
SMALLEST = 4


class BaselineError(NoscratchError):
    """A baseline that does not exist or does not fit a task."""


class Part(NamedTuple):
    """One split of a prepared task: ids; of each record batch its columns' (tokens, offsets); labels (n,)."""

    ids: list[str]
    columns: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]]
    labels: NDArray[np.float64]


Scored = tuple[NDArray[np.float64], float]  # class or score of each example (n,), and the mean loss


class Fitted(NamedTuple):
    """What a baseline has learned.

    predict: of a split. curve: (step, metrics on validation). rule, step: how and where the state was chosen. weights:
    by name. tokens: how many were read in training. flops: of training, estimated.
    """

    predict: Callable[[Part], Scored]
    curve: list[tuple[int, dict[str, float]]]
    rule: str
    step: int
    weights: dict[str, NDArray[Any]]
    parameters: int
    steps: int
    tokens: int
    flops: int


def names() -> tuple[str, ...]:
    """Every baseline."""
    return tuple(_FITS)


def applies(name: str, meta: Mapping[str, Any]) -> bool:
    """Whether a baseline fits a prepared task: `cnn` reads square images."""
    return name != "cnn" or (meta["inputs"] == "pixels" and math.isqrt(meta["length"]) ** 2 == meta["length"])


def seeded(name: str) -> bool:
    """Whether a baseline's result depends on the seed; one that does not is run once."""
    return name == "cnn"


def run(settings: Mapping[str, Any], prepared: Path, out: Path) -> dict[str, Any]:
    """Fit one baseline (settings["backbone"]); the same result, curve and predictions as train.run in fine-tuning.

    settings: backbone, seed, threads, and train (steps, batch_tokens, lr, weight_decay, warmup, schedule,
    evaluate_every), which `cnn` alone reads. The test set is opened once, when the model is fitted.
    """
    name = str(settings["backbone"])
    meta = json.loads((prepared / "meta.json").read_text(encoding="utf-8"))
    if name not in _FITS or not applies(name, meta):
        raise BaselineError(
            f"a baseline is one of {', '.join(_FITS)}, and cnn is for square images; got {name!r} for {meta['task']}. "
            "Take it out of that block of the grid"
        )
    train, validation = read(prepared, "train"), read(prepared, "validation")
    with _threads(int(settings["threads"])):
        fitted = _FITS[name](settings, meta, train, validation)
        parts = {"validation": validation, "test": read(prepared, "test")}
        scored = {split: fitted.predict(part) for split, part in parts.items()}
    metrics = {
        split: {"loss": loss} | {metric: score(metric, parts[split].labels, prediction) for metric in meta["metrics"]}
        for split, (prediction, loss) in scored.items()
    }
    _write(out, parts, {split: prediction for split, (prediction, _) in scored.items()}, fitted)
    primary = meta["metrics"][0]
    return {
        "phase": "finetune",
        "metrics": metrics,
        "primary": primary,
        "selection": {"rule": fitted.rule, "step": fitted.step, "value": metrics["validation"][primary]},
        "examples": {"train": len(train.ids), **{split: len(part.ids) for split, part in parts.items()}},
        "counts": {
            "parameters": fitted.parameters,
            "steps": fitted.steps,
            "tokens_real": fitted.tokens,
            "tokens_computed": fitted.tokens,
            "flops": fitted.flops,
        },
        "kernels": {},
    }


def read(prepared: Path, split: str) -> Part:
    """One split, memory-mapped: its tokens stay on disk until they are read."""
    reader = pa.ipc.open_file(pa.memory_map(str(prepared / f"{split}.arrow")))
    batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    columns = {
        name: [
            (np.from_dlpack(lists.values), np.from_dlpack(lists.offsets))
            for lists in (batch.column(name) for batch in batches)
        ]
        for name in ("tokens", "second")
        if name in reader.schema.names
    }
    labels = np.concatenate([np.from_dlpack(batch.column("label")) for batch in batches]).astype(np.float64)
    return Part([i for batch in batches for i in batch.column("id").to_pylist()], columns, labels)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(count):
        yield


# ---------------------------------------------------------------- majority


def _majority(settings: Mapping[str, Any], meta: Mapping[str, Any], train: Part, validation: Part) -> Fitted:
    counts = np.ones(meta["classes"], np.int64)  # one more of each class, so that none has probability 0
    if meta["kind"] == "regression":
        constant = float(train.labels.mean())
    else:
        counts += np.bincount(train.labels.astype(np.int64), minlength=meta["classes"])
        constant = float(counts.argmax())

    def predict(part: Part) -> Scored:
        prediction = np.full(len(part.ids), constant)
        if meta["kind"] == "regression":
            return prediction, float(np.mean((part.labels - constant) ** 2))
        return prediction, float(-np.log(counts / counts.sum())[part.labels.astype(np.int64)].mean())

    return Fitted(predict, [(1, _point(predict, meta, validation))], "nothing to choose", 1, {}, 1, 1, 0, 0)


def _point(predict: Callable[[Part], Scored], meta: Mapping[str, Any], validation: Part) -> dict[str, float]:
    """The loss and the primary metric on validation."""
    prediction, loss = predict(validation)
    return {"loss": loss, meta["metrics"][0]: score(meta["metrics"][0], validation.labels, prediction)}


# ---------------------------------------------------------------- bag


def counts_of(part: Part, vocabulary: int) -> Any:
    """log(1 + count) of each token id in each example, rows of length 1, as a sparse matrix (n, vocabulary) float32;
    of a pair, both texts side by side."""
    from scipy import sparse

    sides = []
    for column in part.columns.values():
        blocks = []
        for values, offsets in column:
            for first in range(0, len(offsets) - 1, BLOCK):
                edges = offsets[first : first + BLOCK + 1]
                tokens = values[edges[0] : edges[-1]].astype(np.int32)
                ones = np.ones(len(tokens), np.float32)
                rows = sparse.csr_matrix((ones, tokens, edges - edges[0]), (len(edges) - 1, vocabulary))
                rows.sum_duplicates()
                rows.data = np.log1p(rows.data)
                blocks.append(rows)
        sides.append(sparse.vstack(blocks, format="csr"))
    counts = sparse.hstack(sides, format="csr")
    norms = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1))).ravel()
    return sparse.diags(1 / norms, dtype=np.float32) @ counts


def _bag(settings: Mapping[str, Any], meta: Mapping[str, Any], train: Part, validation: Part) -> Fitted:
    inputs, metric, work = counts_of(train, meta["vocabulary"]), meta["metrics"][0], 0
    curve: list[tuple[int, dict[str, float]]] = []
    models = []
    for step, penalty in enumerate(PENALTIES, 1):
        model, readings = _linear(meta, penalty, inputs, train.labels)
        work += 4 * inputs.nnz * meta["classes"] * readings
        curve.append((step, _point(partial(_predict, model, meta), meta, validation)))
        models.append(model)
    chosen = int(np.argmax([point[metric] for _, point in curve]))
    model = models[chosen]
    weights = {"coefficients": np.atleast_2d(model.coef_), "intercepts": np.atleast_1d(model.intercept_)}
    return Fitted(
        predict=partial(_predict, model, meta),
        curve=curve,
        rule=f"highest validation {metric} over the penalties {', '.join(f'{p:g}' for p in PENALTIES)}, the first of "
        "equals",
        step=chosen + 1,
        weights=weights,
        parameters=sum(value.size for value in weights.values()),
        steps=len(PENALTIES),
        tokens=sum(len(values) for column in train.columns.values() for values, _ in column),
        flops=work,
    )


def _linear(meta: Mapping[str, Any], penalty: float, inputs: Any, labels: NDArray[np.float64]) -> tuple[Any, int]:
    """A fitted linear model and how often it read the inputs."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge

    model: Any = LogisticRegression(C=1 / penalty, max_iter=ITERATIONS)
    if meta["kind"] == "regression":
        model = Ridge(penalty, solver="lsqr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ITERATIONS bound the cost; validation judges the result
        model.fit(inputs, labels if meta["kind"] == "regression" else labels.astype(np.int64))
    return model, int(np.max(model.n_iter_))


def _predict(model: Any, meta: Mapping[str, Any], part: Part) -> Scored:
    """A class that the training set lacks has probability 0, which counts as e^-36."""
    inputs = counts_of(part, meta["vocabulary"])
    if meta["kind"] == "regression":
        prediction = model.predict(inputs).astype(np.float64)
        return prediction, float(np.mean((prediction - part.labels) ** 2))
    share = np.zeros((len(part.ids), meta["classes"]))
    share[:, model.classes_] = model.predict_proba(inputs)
    right = share[np.arange(len(part.ids)), part.labels.astype(np.int64)]
    return share.argmax(axis=1).astype(np.float64), float(-np.log(np.maximum(right, np.finfo(float).eps)).mean())


# ---------------------------------------------------------------- cnn


def _cnn(settings: Mapping[str, Any], meta: Mapping[str, Any], train: Part, validation: Part) -> Fitted:
    import torch
    from torch.nn import functional

    from noscratch import flops
    from noscratch.data import training_batches
    from noscratch.optim import AdamW, factor

    plan, seed, metric = settings["train"], int(settings["seed"]), meta["metrics"][0]
    size = max(plan["batch_tokens"] // meta["length"], 1)
    torch.set_num_threads(int(settings["threads"]))
    torch.default_generator.manual_seed(seed)
    model = _network(meta)
    optimizer = AdamW(model, plan["lr"], plan["weight_decay"])
    lengths = np.full(len(train.ids), meta["length"], np.int64)

    def outputs(part: Part, index: NDArray[np.int64]) -> tuple[Any, Any]:
        wanted = torch.from_numpy(part.labels[index].astype(np.int64))
        output = model(torch.from_numpy(_images(part, index, meta)))
        return output, functional.cross_entropy(output, wanted, reduction="sum")

    def predict(part: Part) -> Scored:
        prediction, total = np.zeros(len(part.ids)), 0.0
        with torch.no_grad():
            for start in range(0, len(part.ids), size):
                index = np.arange(start, min(start + size, len(part.ids)))
                output, loss = outputs(part, index)
                total += loss.item()
                prediction[index] = output.argmax(-1).double().numpy()
        return prediction, total / len(part.ids)

    curve: list[tuple[int, dict[str, float]]] = []
    best, at, weights, tokens = -math.inf, 0, model.state_dict(), 0
    for step, (_, _, index) in enumerate(training_batches(lengths, plan["batch_tokens"], seed, 0), 1):
        _, loss = outputs(train, index)
        if not math.isfinite(loss.item()):
            raise BaselineError(f"the loss of cnn is {loss.item()} at step {step}; lower the learning rate")
        (loss / len(index)).backward()
        optimizer.step(factor(step - 1, plan["steps"], plan["warmup"], plan["schedule"]))
        tokens += len(index) * meta["length"]
        if step % plan["evaluate_every"] == 0 or step == plan["steps"]:
            curve.append((step, _point(predict, meta, validation)))
            if curve[-1][1][metric] > best:
                best, at = curve[-1][1][metric], step
                weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        if step == plan["steps"]:
            break
    model.load_state_dict(weights)
    first = np.arange(min(size, len(train.ids)))
    work = flops.count(lambda: outputs(train, first)[1].backward())
    return Fitted(
        predict=predict,
        curve=curve,
        rule=f"highest validation {metric}, the earliest of equals",
        step=at,
        weights={name: tensor.numpy() for name, tensor in weights.items()},
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps=plan["steps"],
        tokens=tokens,
        flops=work * tokens // (len(first) * meta["length"]),
    )


def _network(meta: Mapping[str, Any]) -> Any:
    """Convolutions of 3 x 3, each followed by halving the image, until it is small; the mean over what is left."""
    from torch import nn

    side, channels = math.isqrt(meta["length"]), int(meta["channels"])
    layers: list[Any] = []
    while side > SMALLEST:
        width = WIDTHS[min(len(layers) // 3, len(WIDTHS) - 1)]
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        side, channels = side // 2, width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, meta["classes"]))


def _images(part: Part, index: NDArray[np.int64], meta: Mapping[str, Any]) -> NDArray[np.float32]:
    """Some images, (n, channels, side, side), values in [-1, 1]."""
    side, size = math.isqrt(meta["length"]), meta["length"] * meta["channels"]
    column = part.columns["tokens"]
    starts = np.cumsum([0, *(len(offsets) - 1 for _, offsets in column)])
    where = np.searchsorted(starts, index, side="right") - 1
    rows = np.stack([column[b][0][(i - starts[b]) * size :][:size] for b, i in zip(where, index, strict=True)])
    pixels = rows.reshape(len(index), side, side, meta["channels"]).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels, np.float32) / 127.5 - 1


_FITS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any], Part, Part], Fitted]] = {
    "majority": _majority,
    "bag": _bag,
    "cnn": _cnn,
}


# ---------------------------------------------------------------- writing


def _write(
    out: Path, parts: Mapping[str, Part], predictions: Mapping[str, NDArray[np.float64]], fitted: Fitted
) -> None:
    """curves.csv, predictions.parquet and, where something was learned, weights.safetensors."""
    with (out / "curves.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("step", "split", "metric", "value"))
        writer.writerows(
            (step, "validation", metric, value) for step, point in fitted.curve for metric, value in point.items()
        )
    tables = [
        pa.table(
            {
                "id": pa.array(part.ids, pa.string()),
                "split": pa.array([split] * len(part.ids), pa.string()),
                "target": pa.array(part.labels),
                "prediction": pa.array(predictions[split]),
            }
        )
        for split, part in parts.items()
    ]
    pyarrow.parquet.write_table(pa.concat_tables(tables).combine_chunks(), out / "predictions.parquet")
    if fitted.weights:
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(value) for name, value in fitted.weights.items()},
                  out / "weights.safetensors")  # fmt: skip
