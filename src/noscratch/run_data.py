"""What a run will read, as far as its cost goes: how many examples of which lengths, and the batches that they make.

Lengths are those of the prepared task, or where it is not at hand made up: as many and as long as published (LENGTHS,
PIECES), of random elements.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from noscratch.backbones import file_of
from noscratch.errors import NoscratchError
from noscratch.params import CORPUS, corpus_module, task_module
from noscratch.plan import Job, Plan
from noscratch.store import Store

SEEN = 2000
"""Batches over which a mean is taken, at most."""

Shape = Sequence[tuple[int, int]]
"""Of a batch: sequences and length of each part that is encoded together."""
Indices = NDArray[np.int64]

# Examples in train, validation and test; bytes or tokens of an example: least, quantiles of 10, 25, 50, 75, 90 %, most.
# Measured on the official files, except: retrieval (all are cut at 4,000), mrpc, qqp and mnli, which take over STS-B's
# quantiles, as pairs of single sentences too.
_PAIRS = (31, 57, 73, 94, 127, 218, 632)
LENGTHS: Mapping[str, tuple[tuple[int, int, int], tuple[int, ...]]] = {
    "listops": ((96_000, 2000, 2000), (501, 583, 706, 942, 1331, 1650, 1994)),
    "text": ((22_500, 2500, 25_000), (52, 523, 700, 953, 1532, 2457, 8969)),
    "retrieval": ((147_086, 18_090, 17_437), (4000,) * 7),
    "image": ((45_000, 5000, 10_000), (1024,) * 7),
    "scifar": ((45_000, 5000, 10_000), (1024,) * 7),
    "pathfinder": ((160_000, 20_000, 20_000), (1024,) * 7),
    "cola": ((7696, 855, 1043), (6, 21, 28, 37, 49, 65, 231)),
    "sst2": ((60_614, 6735, 872), (2, 13, 21, 39, 74, 117, 268)),
    "mrpc": ((3301, 367, 408), _PAIRS),
    "stsb": ((5174, 575, 1500), _PAIRS),
    "qqp": ((327_461, 36_385, 40_430), _PAIRS),
    "mnli": ((353_432, 39_270, 9815), _PAIRS),
    "qnli": ((94_269, 10_474, 5463), (52, 132, 167, 213, 275, 346, 1175)),
    "rte": ((2241, 249, 277), (61, 143, 189, 250, 393, 629, 1418)),
    "wnli": ((571, 64, 71), (55, 83, 100, 129, 169, 263, 441)),
}
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
CORPORA: Mapping[str, tuple[int, int]] = {"imdb": (25_000, 33_000_000), "wikitext103": (28_475, 540_000_000)}
"""Documents and bytes of text."""
PIECE = 4.0
"""Bytes of a learned piece."""
BYTES = 260
"""Elements of a task that is read in bytes, special ones included."""
MOST = 200_000
"""Examples that are made up, at most: more of them have no other lengths."""


@dataclass(frozen=True)
class Data:
    """A task as far as costs go: its meta.json; of each split that the run reads, the length of every example; the
    bytes that it maps. folder: where it is prepared, None where it is made up. alone: texts of a pair are examples."""

    meta: Mapping[str, Any]
    lengths: Mapping[str, Indices]
    mapped: int
    folder: Path | None
    alone: bool = False

    @cached_property
    def shape(self) -> Callable[[str, Indices], Shape]:
        """The shape of a batch of these examples of a split, without reading them."""
        if self.folder is None:
            rows = self.rows
            return lambda name, index: [(rows * len(index), int(self.lengths[name][index].max()) // rows)]
        from noscratch.data import Split

        splits = {name: Split(self.folder, name, self.alone) for name in self.lengths}
        return lambda name, index: splits[name].shapes(index)

    @property
    def rows(self) -> int:
        """Sequences of an example: two for a pair."""
        return 2 if self.meta["pairs"] and not self.alone else 1

    def write(self, folder: Path, name: str, index: Indices) -> None:
        """A split of these examples, as `prepare` writes them: copies, or random elements of as many as their
        lengths."""
        if self.folder is not None:
            table = pa.ipc.open_file(pa.memory_map(str(self.folder / f"{name}.arrow"))).read_all()
            table = table.take(pa.array(index % table.num_rows))
        else:
            random, meta = np.random.default_rng(0), self.meta
            sizes = self.lengths[name][index] // self.rows * meta["channels"]
            low, high = (0, 256) if meta["inputs"] == "pixels" else (2, meta["vocabulary"])
            kind = pa.list_(pa.uint8() if meta["inputs"] == "pixels" else pa.uint16())
            texts = ("tokens", "second")[: 1 + meta["pairs"]]
            columns = {text: pa.array([random.integers(low, high, size) for size in sizes], kind) for text in texts}
            label = pa.array(np.zeros(len(index)), pa.float32() if meta["kind"] == "regression" else pa.int64())
            table = pa.table({"id": pa.array([str(i) for i in range(len(index))]), **columns, "label": label})
        with pa.OSFile(str(folder / f"{name}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())


@dataclass(frozen=True)
class Batches:
    """The batches of a run, by the examples in them: of its steps, SEEN at most, and split -> of an evaluation."""

    data: Data
    steps: Sequence[Indices]
    evaluations: Mapping[str, Sequence[Indices]]

    @cached_property
    def step_shapes(self) -> list[Shape]:
        return [self.data.shape("train", index) for index in self.steps]

    @cached_property
    def evaluation_shapes(self) -> dict[str, list[Shape]]:
        return {name: [self.data.shape(name, index) for index in whole] for name, whole in self.evaluations.items()}

    def spread(self, count: int, split: str = "train") -> list[Indices]:
        """So many batches from the least to the greatest length, at even ranks, each length once."""
        batches = self.steps if split == "train" else self.evaluations[split]
        longest = np.array([self.data.lengths[split][index].max() for index in batches])
        order = np.argsort(longest, kind="stable")
        ranks = np.linspace(0, len(order) - 1, count).round().astype(int)
        wanted = {int(longest[place]): int(place) for place in order[ranks]}
        return [batches[place] for _, place in sorted(wanted.items())]


def batches(job: Job, data: Data) -> Batches:
    """The batches that a training job's loop makes of its data."""
    from noscratch.data import evaluation_batches, training_batches

    tokens = job.settings["train"]["batch_tokens"]
    steps = [index for _, _, index in islice(training_batches(data.lengths["train"], tokens, 0, 0), SEEN)]
    evaluated = [name for name in data.lengths if name != "train"]
    return Batches(data, steps, {name: evaluation_batches(data.lengths[name], tokens) for name in evaluated})


def read_data(store: Store, plan: Plan, job: Job) -> Data:
    """What a training job reads: the prepared task where it is in the store, else a made-up one."""
    prepared, alone = plan[job.needs["prepared"]], job.settings["objective"] != "classify"
    return _prepared(store.path(prepared), alone) if store.has(prepared) else made_up(plan, prepared, alone)


def _prepared(folder: Path, alone: bool) -> Data:
    from noscratch.data import Split, read_meta

    meta = read_meta(folder)
    names = ["train"] if alone else ["train", "validation", "test", *(["submission"] if meta["submission"] else [])]
    lengths = {name: Split(folder, name, alone).lengths for name in names}
    return Data(meta, lengths, sum((folder / f"{name}.arrow").stat().st_size for name in names), folder, alone)


def made_up(plan: Plan, prepared: Job, alone: bool) -> Data:
    """A task or corpus by its SPEC, the settings of its data, and its published lengths; NoscratchError where those are
    not in a table here."""
    name = str(prepared.settings.get(CORPUS) or prepared.settings["task"])
    if name not in CORPORA and file_of(name) not in LENGTHS:
        raise NoscratchError(
            f"What costs are estimated for is prepared or has published lengths; {name} has none. Run `noscratch run "
            f"{prepared.address}` first, and estimate on this device."
        )
    if CORPUS in prepared.settings:
        return _made_up_corpus(name, prepared.settings["data"])
    task: Any = importlib.import_module(task_module(name))
    spec, config = task.SPEC, asdict(task.Config(**prepared.settings["data"]))
    if config.get("tokens") == CORPUS:
        config |= {key: _corpus_config(plan.corpus())[key] for key in ("length", "vocabulary")}
    sizes, quantiles = LENGTHS[file_of(name)]
    pieces = config.get("tokens") in ("wordpiece", "unigram", CORPUS)
    values = np.array(quantiles, dtype=float) / (PIECE if pieces else 1.0)
    if "min_length" in config:  # a generator's: the same form between other ends
        reach = config["max_length"] - config["min_length"]
        values = config["min_length"] + (values - values[0]) / np.ptp(values) * reach
    if "resolution" in config:
        values[:] = config["resolution"] ** 2
    length = int(config.get("length", values[-1]))
    texts = 2 if spec.pairs else 1
    kept = {}
    for split, size in zip(("train", "validation", "test"), sizes, strict=True):
        count = min(size, config.get(split) or size, MOST)
        drawn = np.interp((np.arange(count) + 0.5) / count, QUANTILES, np.minimum(values, length))
        found = np.maximum(drawn.round().astype(np.int64), 1)
        kept[split] = np.tile(found, texts) if alone else texts * found
    meta = _meta(name, spec, length, config["vocabulary"] if pieces else BYTES)
    if alone:
        kept = {"train": kept["train"]}
    width = 1 if spec.inputs == "pixels" else 2
    return Data(meta, kept, int(sum(width * lengths.sum() for lengths in kept.values())), None, alone)


def _made_up_corpus(name: str, settings: Mapping[str, Any]) -> Data:
    """Windows of equal length."""
    module: Any = importlib.import_module(corpus_module(name))
    config = asdict(module.Config(**settings))
    documents, size = CORPORA[name]
    share = min(1.0, config["documents"] / documents) if config["documents"] else 1.0
    windows = max(1, min(MOST, round(share * size / PIECE / (config["length"] - 1))))
    lengths = np.full(windows, config["length"], dtype=np.int64)
    meta = _meta(name, module.SPEC, config["length"], config["vocabulary"])
    return Data(meta, {"train": lengths}, int(2 * share * size / PIECE), None, True)


def _corpus_config(prepared: Job) -> dict[str, Any]:
    module: Any = importlib.import_module(prepared.modules[0])
    return asdict(module.Config(**prepared.settings["data"]))


def _meta(name: str, spec: Any, length: int, vocabulary: int) -> dict[str, Any]:
    """The part of meta.json that training reads."""
    pixels = spec.inputs == "pixels"
    return {
        "task": name,
        "kind": spec.kind,
        "classes": spec.classes,
        "metrics": list(spec.metrics),
        "inputs": spec.inputs,
        "pairs": spec.pairs,
        "pretraining": asdict(spec.pretraining),
        "channels": 3 if file_of(name) == "scifar" else 1,
        "vocabulary": 256 if pixels else vocabulary,
        "pad": 0,
        "mask": None if pixels else 1,
        "length": length,
        "submission": False,
    }
