"""CIFAR-10 for the tasks that read images pixel by pixel: the exact binary records, or JPEG copies of the same images.

A record of the binary version is one byte of label, then 1024 red, 1024 green and 1024 blue values, row by row. An
image is named by its place, `data_batch_1/0`, whatever it was read from, so every source has the same splits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from noscratch.sources.unpack import members
from noscratch.tasks import HOLD_OUT_RULE, SPLITS, TaskError, check_manifest, held_out, permutation, prefix

EXACT, JPEG = "cifar10", "cifar10-jpeg"
SIDE = 32
PIXELS = SIDE * SIDE
RECORD = 1 + 3 * PIXELS
PER_BATCH = 10_000
PARTIAL = 1017  # images of each batch in the partial form
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CITATION = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, technical report, 2009"
RULE = f"{HOLD_OUT_RULE}; test: the official test set"
LEGACY_SEED = 42
LEGACY_RULE = (
    "train and validation: the first 45,000 and the last 5,000 places of torch.randperm(50000) seeded with 42 (the "
    "random_split of S4) in the official training set; test: the official test set"
)


class Settings(Protocol):
    """What the Config of a task on CIFAR-10 says about its data."""

    @property
    def source(self) -> str: ...
    @property
    def partial(self) -> bool: ...
    @property
    def protocol(self) -> str: ...
    @property
    def train(self) -> int: ...
    @property
    def validation(self) -> int: ...
    @property
    def test(self) -> int: ...


@dataclass(frozen=True)
class Images:
    """Images in the official order: ids; pixels (n, 1024, 3) uint8, red, green, blue; labels (n,)."""

    ids: list[str]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> Images:
        return Images([self.ids[i] for i in rows], self.pixels[rows], self.labels[rows])


def variant(config: Settings) -> str:
    """What the title says of a variant; TaskError for settings that do not exist."""
    if config.source not in (EXACT, JPEG) or config.protocol not in ("clean", "legacy"):
        raise TaskError(
            f"CIFAR-10 comes from {EXACT} or {JPEG} and its protocol is clean or legacy, got {config.source!r} and "
            f"{config.protocol!r}: correct it in params.yaml"
        )
    if config.partial and (config.source, config.protocol) != (EXACT, "clean"):
        raise TaskError(f"the partial images are those of {EXACT} in the clean protocol: correct it in params.yaml")
    said = "lossy JPEG copies, not the official pixels" if config.source == JPEG else ""
    if config.partial:
        said = f"the first {PARTIAL:,} images of each batch"
    return f" ({said})" if said else ""


def prepare(config: Settings, raw: Mapping[str, Path]) -> tuple[dict[str, Images], str]:
    """The splits of a task on CIFAR-10 (those of `image`), checked and cut to the limits, and their rule."""
    folder = raw[config.source]
    count = PARTIAL if config.partial else PER_BATCH
    images = read_jpeg(folder) if config.source == JPEG else read_binary(folder, count)
    if not config.partial:
        check_labels(images)
    splits, rule = split(images, config.protocol == "legacy")
    suffix = "-6102" if config.partial else "-legacy" if config.protocol == "legacy" else ""
    check_manifest(f"image{suffix}", rule, {name: part.ids for name, part in splits.items()})
    return {name: part.take(prefix(part.ids, getattr(config, name))) for name, part in splits.items()}, rule


def read_binary(folder: Path, count: int) -> dict[str, Images]:
    """The first `count` records of each batch."""
    sets = {}
    for name, batches in BATCHES.items():
        records = np.concatenate([_records(folder / f"{batch}.bin", count) for batch in batches])
        pixels = np.ascontiguousarray(records[:, 1:].reshape(-1, 3, PIXELS).swapaxes(1, 2))
        sets[name] = Images(_ids(batches, count), pixels, records[:, 0].astype(np.int64))
    return sets


def _records(path: Path, count: int) -> NDArray[np.uint8]:
    where = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise TaskError(f"{where} is missing: fetch the source again")
    found, rest = divmod(path.stat().st_size, RECORD)
    if rest or found not in (PARTIAL, PER_BATCH):
        raise TaskError(
            f"{where}: a batch has {PER_BATCH} records of {RECORD} bytes, got {path.stat().st_size} bytes. "
            "Fetch the source again"
        )
    if found < count:
        raise TaskError(
            f"{where}: {found} images of {PER_BATCH}; the copy at hand is a partial one. Fetch the official archive, "
            "or take the variant whose data say `partial: true`"
        )
    records = np.fromfile(path, np.uint8, count * RECORD).reshape(count, RECORD)
    wrong = np.flatnonzero(records[:, 0] >= len(CLASSES))
    if len(wrong):
        raise TaskError(
            f"{where}, record {wrong[0]}: a label is one of 0 to 9, got {records[wrong[0], 0]}. Fetch the source again"
        )
    return records


def _ids(batches: tuple[str, ...], count: int) -> list[str]:
    return [f"{batch}/{i}" for batch in batches for i in range(count)]


def read_jpeg(folder: Path) -> dict[str, Images]:
    """All images from JPEG files: file k of a class is its k-th image in the order of the label files."""
    labels = {name: np.concatenate([_labels(folder, batch) for batch in names]) for name, names in BATCHES.items()}
    places = {(name, word): np.flatnonzero(labels[name] == c) for name in BATCHES for c, word in enumerate(CLASSES)}
    pixels = {name: np.zeros((len(values), PIXELS, 3), np.uint8) for name, values in labels.items()}
    seen = {name: np.zeros(len(values), bool) for name, values in labels.items()}
    for member in members(folder / "images.tar.xz"):
        name, _, rest = member.name.partition("/")
        if name not in BATCHES:
            continue
        word, _, file = rest.partition("/")
        number = file.removesuffix(".jpg")
        at = places.get((name, word), np.zeros(0, np.int64))
        if file == number or not number.isdecimal() or int(number) >= len(at):
            raise TaskError(f"images.tar.xz, {member.name}: not the name of an image; fetch the source again")
        place = at[int(number)]
        pixels[name][place] = _decode(member.stream.read(), member.name)
        seen[name][place] = True
    for name, done in seen.items():
        if not done.all():
            raise TaskError(f"images.tar.xz: {name} lacks {np.sum(~done)} images; fetch the source again")
    return {name: Images(_ids(BATCHES[name], PER_BATCH), pixels[name], labels[name]) for name in BATCHES}


def _labels(folder: Path, batch: str) -> NDArray[np.int64]:
    path = folder / f"labels_{batch}.txt"
    digits = path.read_text(encoding="ascii").removesuffix("\n") if path.is_file() else ""
    if len(digits) != PER_BATCH or not digits.isdecimal():
        raise TaskError(f"{path.name}: {PER_BATCH} digits, one for each image; fetch the source again")
    return np.frombuffer(digits.encode("ascii"), np.uint8).astype(np.int64) - ord("0")


def _decode(data: bytes, name: str) -> NDArray[np.uint8]:
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if image.size != (SIDE, SIDE) or image.mode != "RGB":
                raise TaskError(f"{name}: an image has {SIDE} x {SIDE} pixels in colour; fetch the source again")
            return np.asarray(image).reshape(PIXELS, 3)
    except (OSError, SyntaxError) as error:
        raise TaskError(f"{name}: a damaged image ({error}); fetch the source again") from error


def check_labels(images: Mapping[str, Images]) -> None:
    """Assert that both official sets are complete and balanced."""
    for name, part in images.items():
        each = len(BATCHES[name]) * PER_BATCH // len(CLASSES)
        got = np.bincount(part.labels, minlength=len(CLASSES)).tolist()
        if got != [each] * len(CLASSES):
            raise TaskError(f"CIFAR-10, {name}: {each} images of each class, got {got}. Fetch the source again")


def split(images: Mapping[str, Images], legacy: bool) -> tuple[dict[str, Images], str]:
    """The splits and their rule."""
    train = images["train"]
    if legacy:
        order = permutation(len(train.ids), LEGACY_SEED)
        stop = int(len(order) * 0.9)
        parts = (train.take(np.sort(order[:stop])), train.take(np.sort(order[stop:])), images["test"])
    else:
        held = held_out(train.ids)
        parts = (train.take(np.flatnonzero(~held)), train.take(np.flatnonzero(held)), images["test"])
    return dict(zip(SPLITS, parts, strict=True)), LEGACY_RULE if legacy else RULE


def gray(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Luma (..., 3) -> (...), ITU-R 601 in 16-bit integers as Pillow's mode L, which S4 and its successors read."""
    weighted = np.full(pixels.shape[:-1], 0x8000, np.uint32)
    for channel, weight in enumerate((19595, 38470, 7471)):
        weighted += pixels[..., channel] * np.uint32(weight)
    return (weighted >> 16).astype(np.uint8)
