"""Pathfinder: are the two marked ends those of one dashed contour?

Generated as in Long Range Arena, at 32, 64, 128 (Path-X) or 256 pixels; or (`source: lra-pathfinder32`, 128, 256) the
images of the release, which are another task: the two are never mixed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noscratch.sources.unpack import members
from noscratch.tasks import (
    BATCH_TOKENS,
    QUARANTINE,
    SPLITS,
    Examples,
    Pretraining,
    Spec,
    TaskError,
    check_manifest,
    permutation,
    prefix,
    write,
)

SPEC = Spec(
    title="Pathfinder",
    sources=(),
    kind="classification",
    classes=2,
    metrics=("accuracy",),
    inputs="pixels",
    pretraining=Pretraining(ratio=0.5, loss="cross-entropy"),
    citation="Linsley et al. 2018, arXiv:1805.08315; Tay et al. 2020, arXiv:2011.04006",
)
RULE = "examples in the order in which they were made: first train, then validation, then test"
PART = 100

RELEASES = {"lra-pathfinder32": 32, "lra-pathfinder128": 128, "lra-pathfinder256": 256}
IMAGES = 200_000  # of each release; its one empty image is in the easy set at 32 pixels, which is not this one
SPLIT_SEED = 42
RELEASE_RULE = (
    "the images in the order of the metadata (files by number, then lines), named by their place; train, validation "
    "and test: the first 160,000, the next 20,000 and the last 20,000 places of torch.randperm(200000) seeded with 42 "
    "(the random_split of S4)"
)


@dataclass(frozen=True)
class Config:
    """source: generated, or a release, which comes in its own resolution. resolution: side of the image (32, 64, 128 or
    256). Examples per split, at most those of the release. distractors, seed: of generated images, the distractor
    snakes (null: the resolution's own number, 5, 5, 8 or 7) and the seed of the data."""

    source: str | None = None
    resolution: int = 32
    train: int = 160_000
    validation: int = 20_000
    test: int = 20_000
    distractors: int | None = None
    seed: int = 0


def prepare(config: Config, raw: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Generate or read the three splits: images row by row, one token per pixel."""
    if config.source is not None:
        return _prepare_release(config, raw, out)
    splits = {}
    start = 0
    for split, count in zip(SPLITS, (config.train, config.validation, config.test), strict=True):
        splits[split] = _generated(config, start, start + count)
        start += count
    spec = replace(SPEC, title=f"Pathfinder at {config.resolution} pixels, generated")
    return write(out, "pathfinder", spec, splits, vocabulary=256, eos=None, length=config.resolution**2, rule=RULE)


def _generated(config: Config, start: int, stop: int) -> Iterator[Examples]:
    """Examples start..stop in parts that fit into memory."""
    from noscratch.generators import in_parts, pathfinder

    make = partial(pathfinder.generate, config.seed, size=config.resolution, distractors=config.distractors)
    length = config.resolution**2
    most = max(BATCH_TOKENS // length, 1)
    for first in range(start, stop, most):
        count = min(most, stop - first)
        tokens, labels = np.empty((count, length), np.uint8), np.empty(count, np.int64)
        done = 0
        for part in in_parts(make, first, first + count, PART):
            labels[done : done + len(part.labels)] = part.labels
            tokens[done : done + len(part.labels)] = part.images.reshape(-1, length)
            done += len(part.labels)
        ids = [f"{index:07d}" for index in range(first, first + count)]
        yield Examples(ids, tokens.reshape(-1), np.arange(count + 1) * length, labels)


# ---------------------------------------------------------------- the release


def _prepare_release(config: Config, raw: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Read the archive, place every image by the metadata, split as S4 does, write.

    An image that cannot be read keeps its place, so that no split moves, and is left out of its split. The pixels
    (13 GB at 256) pass through a file of their own, which is removed.
    """
    size = RELEASES.get(str(config.source))
    if size is None or size != config.resolution or config.distractors is not None or config.seed != 0:
        raise TaskError(
            f"the source of Pathfinder is one of {', '.join(RELEASES)}, with its own resolution and without "
            f"distractors and seed; got {config.source!r} at {config.resolution}: correct it in params.yaml"
        )
    assert config.source is not None
    order = permutation(IMAGES, SPLIT_SEED)
    held = int(0.1 * IMAGES)
    edges = dict(zip(SPLITS, np.split(order, [IMAGES - 2 * held, IMAGES - held]), strict=True))
    ids = {split: [f"{place:06d}" for place in np.sort(places)] for split, places in edges.items()}
    check_manifest("pathfinder-official", RELEASE_RULE, ids)
    out.mkdir(parents=True, exist_ok=True)
    scratch = out / "pixels.unfinished"
    try:
        pixels = np.memmap(scratch, np.uint8, "w+", shape=(IMAGES, size * size))
        at, labels, aside = read_release(raw[config.source] / f"pathfinder{size}.tar", size, pixels)
        splits = {}
        for split, names in ids.items():
            places = np.array(names, np.int64)[prefix(names, getattr(config, split))]
            splits[split] = _placed(places[at[places] >= 0], pixels, at, labels)
        spec = replace(SPEC, title=f"Pathfinder at {size} pixels, the release", sources=(config.source,))
        return write(out, "pathfinder", spec, splits, vocabulary=256, eos=None, length=size * size, rule=RELEASE_RULE,
                     quarantine=aside)  # fmt: skip
    finally:
        scratch.unlink(missing_ok=True)


def _placed(
    places: NDArray[np.int64], pixels: NDArray[np.uint8], at: NDArray[np.int64], labels: NDArray[np.int64]
) -> Iterator[Examples]:
    length = pixels.shape[1]
    most = max(BATCH_TOKENS // length, 1)
    for first in range(0, len(places), most):
        part = places[first : first + most]
        tokens = pixels[at[part]].reshape(-1)
        yield Examples([f"{place:06d}" for place in part], tokens, np.arange(len(part) + 1) * length, labels[part])


def read_release(
    archive: Path, size: int, pixels: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[tuple[str, str]]]:
    """Read imgs/<batch>/<name>.png into the rows of `pixels` as they come, and metadata/<batch>.npy, which is text.

    Returns, for each place in the order of the metadata, the row of its pixels (-1: set aside) and its label; and the
    images that were set aside because they are empty or cannot be decoded, each with the reason. More than QUARANTINE
    of them, one of another form, and one that is in the archive or the metadata alone are errors that name it.
    """
    rows: dict[str, int] = {}
    aside: list[tuple[str, str]] = []
    listed: dict[int, list[str]] = {}
    count = 0
    for member in members(archive):
        folder, _, name = member.name.rpartition("/")
        if folder == "metadata" and name.removesuffix(".npy").isdecimal():
            listed[int(name.removesuffix(".npy"))] = member.stream.read().decode("ascii").splitlines()
        elif folder.startswith("imgs/") and name.endswith(".png"):
            if len(rows) == len(pixels):
                raise TaskError(f"{archive.name}: more than {len(pixels)} images. Fetch the source again")
            image = _decode(archive, member.name, member.stream.read(), size)
            if isinstance(image, str):
                aside.append((member.name, image))
                rows[member.name] = -1
                if len(aside) > QUARANTINE:
                    raise TaskError(
                        f"{archive.name}: at most {QUARANTINE} images may be unreadable; {member.name} ({image}) is "
                        "one more. This is not the official archive: fetch the source again"
                    )
            else:
                pixels[count] = image
                rows[member.name] = count
                count += 1
    at, labels = [], []
    for batch in sorted(listed):
        for line, text in enumerate(listed[batch], 1):
            cells = text.split()
            if not cells:
                continue
            row = rows.pop("/".join(cells[:2]), None)
            if row is None or len(cells) < 4 or cells[3] not in ("0", "1"):
                raise TaskError(
                    f"{archive.name}, metadata/{batch}.npy, row {line}: a folder and a file of the archive, a number "
                    f"and a label, 0 or 1, each image once; got {text[:80]!r}. Fetch the source again"
                )
            at.append(row)
            labels.append(int(cells[3]))
    if rows or len(at) != len(pixels):
        raise TaskError(
            f"{archive.name}: {len(pixels)} images, each in the metadata; got {len(at)} and {len(rows)} that no "
            "metadata name. Fetch the source again"
        )
    return np.array(at, np.int64), np.array(labels, np.int64), aside


def _decode(archive: Path, name: str, data: bytes, size: int) -> NDArray[np.uint8] | str:
    """The pixels of an image, its check sums verified, or why it cannot be read: in words of our own, since those of
    the library differ between its versions."""
    import io

    from PIL import Image

    if not data:
        return "an empty file"
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            form = image.size, image.mode
            image.verify()
        if form != ((size, size), "L"):
            raise TaskError(
                f"{archive.name}, {name}: an image has {size} x {size} gray pixels, got {form[0]} in mode {form[1]}. "
                "Fetch the source again"
            )
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return np.asarray(image).reshape(-1)
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError):
        return "no PNG image that can be decoded"
