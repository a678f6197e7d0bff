"""Speed and memory of preparing data, against straightforward forms of the same steps, in one run.

    python -m bench.preparation [OUT.json] [--mirror FOLDER] [--images 16000]

Each step and its straightforward form are checked to give the same, or named for what they give instead. Seconds are
processor time of one core; memory is what a fresh process holds at its peak, without pages of files that the system
can drop. IMDB and SST-2 come from the mirror (NOSCRATCH_MIRROR) or the network.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"  # of tokenizers, which reads it once

import numpy as np
import pyarrow as pa
from PIL import Image
from tokenizers import Tokenizer, models, trainers

from bench._timing import alone
from noscratch import sources
from noscratch.generators import pathfinder as generator
from noscratch.record import Stopwatch, write_bench
from noscratch.subwords import SPECIALS, train_unigram, train_wordpiece
from noscratch.tasks import BATCH_TOKENS, _glue, load, pathfinder, table_schema, text
from noscratch.tokenize import BYTES_EOS, BYTES_VOCABULARY

MODULES = ("noscratch.tasks.text", "noscratch.tasks.pathfinder", "noscratch.subwords")
SIZE = 256
PART = BATCH_TOKENS // SIZE**2  # images in one part
VOCABULARY = 8192
EVERY = 0.005  # seconds between two looks at the memory
Row = dict[str, Any]


# ---------------------------------------------------------------- measures


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of a call, and what it returned."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def peak_mib(call: Callable[[], Any]) -> float:
    """How far the anonymous memory of this process rises above its level while `call` runs; Linux."""
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(EVERY):
            peak = max(peak, anonymous())

    before = anonymous()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return (peak - before) / 2**20


def anonymous() -> int:
    """Bytes of memory that belong to no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


# ---------------------------------------------------------------- straightforward forms


def plain_bytes(reviews: text.Reviews, length: int, path: Path) -> None:
    """Lists of numbers, one for each byte, handed to Arrow."""
    tokens = [[byte + 1 for byte in review[: length - 1]] + [BYTES_EOS] for review in reviews.texts]
    table = pa.table([reviews.ids, tokens, reviews.labels], schema=table_schema(text.SPEC, BYTES_VOCABULARY))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def plain_pieces(tokenizer: Tokenizer, texts: list[str], trainer: Any, model: Any) -> Tokenizer:
    """The library's trainer as it is, whose pieces differ from run to run."""
    plain = Tokenizer(model)
    plain.normalizer, plain.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    plain.train_from_iterator(texts, trainer)
    return plain


def generated(out: Path, images: int, part: int) -> float:
    """Peak memory of preparing Pathfinder at 256 pixels, `part` images at a time."""
    config = pathfinder.Config(resolution=SIZE, train=images - 32, validation=16, test=16)
    generator.generate(0, 0, 1, SIZE)  # compiled
    setattr(pathfinder, "BATCH_TOKENS", part * SIZE**2)  # noqa: B010 (imported there, not its own)
    return peak_mib(lambda: pathfinder.prepare(config, {}, out))


def released(raw: Path, out: Path, images: int, whole: bool) -> float:
    """Peak memory of preparing a release of Pathfinder at 256 pixels. whole: with all pixels in memory."""
    pathfinder.IMAGES = images
    setattr(pathfinder, "BATCH_TOKENS", (images if whole else PART) * SIZE**2)  # noqa: B010
    pathfinder.check_manifest = lambda *_: None  # type: ignore[attr-defined]
    if whole:
        pathfinder.np.memmap = lambda *_, shape, **__: np.zeros(shape, np.uint8)  # type: ignore[attr-defined]
    config = pathfinder.Config(source=f"lra-pathfinder{SIZE}", resolution=SIZE)

    def prepare() -> None:
        (out / "pixels.unfinished").parent.mkdir(parents=True, exist_ok=True)
        pathfinder.prepare(config, {f"lra-pathfinder{SIZE}": raw}, out)

    return peak_mib(prepare)


def pack_release(folder: Path, images: int) -> None:
    """A release in the official layout: generated images, each many times."""
    made = generator.generate(0, 0, min(images, 64), SIZE)
    files: list[bytes] = []
    for image in made.images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        files.append(buffer.getvalue())
    lines = "".join(f"imgs/0 sample_{i}.png {i} {made.labels[i % len(files)]}\n" for i in range(images))
    folder.mkdir(parents=True)
    with tarfile.open(folder / f"pathfinder{SIZE}.tar", "w") as tar:
        members = ((f"imgs/0/sample_{i}.png", files[i % len(files)]) for i in range(images))
        for name, data in (*members, ("metadata/0.npy", lines.encode())):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


# ---------------------------------------------------------------- the steps


def text_rows(raw: Path, work: Path) -> Iterator[Row]:
    """IMDB to bytes: from its archive, and from memory."""
    whole, _ = seconds(lambda: text.prepare(text.Config(), {"imdb": raw}, work / "whole"))
    reviews = text.read(text.archive_in(raw))
    splits = text.split(reviews)
    ours, _ = seconds(lambda: text.build(text.Config(), splits, work / "ours"))
    (work / "plain").mkdir()
    plain = 0.0
    for name, part in splits.items():
        plain += seconds(lambda part=part, name=name: plain_bytes(part, 4096, work / "plain" / f"{name}.arrow"))[0]  # type: ignore[misc]
        one, two = (pa.ipc.open_file(pa.memory_map(str(work / side / f"{name}.arrow"))) for side in ("ours", "plain"))
        if not one.read_all().equals(two.read_all()):
            raise SystemExit(f"the two forms of imdb/{name} differ")
    yield row("IMDB, 50,000 reviews to bytes", "s", ours, plain, "lists of numbers handed to Arrow")
    yield row("the same from the archive, checked", "s", whole, None, "")


def piece_rows(raw: Path) -> Iterator[Row]:
    """Pieces learned from the training sentences of SST-2."""
    sst2 = vars(load("sst2"))
    texts = [t for (t,) in _glue.read_file(raw / "train.tsv", "train", sst2["LAYOUT"]).texts]
    for name, train, make, model in (
        ("WordPiece", train_wordpiece, trainers.WordPieceTrainer, models.WordPiece(unk_token="[UNK]")),
        ("unigram", train_unigram, trainers.UnigramTrainer, models.Unigram()),
    ):
        ours, tokenizer = seconds(lambda train=train: train(texts, VOCABULARY))  # type: ignore[misc]
        more: dict[str, Any] = {"unk_token": "[UNK]"} if name == "unigram" else {}
        trainer = make(vocab_size=VOCABULARY, show_progress=False, special_tokens=[*SPECIALS], **more)
        plain, _ = seconds(lambda t=trainer, m=model, o=tokenizer: plain_pieces(o, texts, t, m))  # type: ignore[misc]
        what = f"SST-2, {len(texts):,} sentences to {tokenizer.get_vocab_size():,} {name} pieces"
        yield row(what, "s", ours, plain, "the library's trainer, which gives no run twice")


def memory_rows(images: int, work: Path) -> Iterator[Row]:
    """Pathfinder at 256 pixels, in parts and all at once; half of the images take as much in parts."""
    pack_release(work / "raw", images)
    pack_release(work / "half", images // 2)
    whole = alone(generated, work / "a", images, images)
    for count in (images // 2, images):
        parts = alone(generated, work / f"b{count}", count, PART)
        plain = whole if count == images else None
        yield row(f"PathX-256, {count:,} generated images", "MiB", parts, plain, "all pixels in memory")
    whole = alone(released, work / "raw", work / "c", images, True)
    for folder, count in (("half", images // 2), ("raw", images)):
        parts = alone(released, work / folder, work / f"d{count}", count, False)
        plain = whole if count == images else None
        yield row(f"PathX-256, {count:,} images of a release", "MiB", parts, plain, "all pixels in memory")


def row(what: str, unit: str, ours: float, plain: float | None, named: str) -> Row:
    """One line of the table; ratio: how much more the straightforward form needs."""
    ratio = None if plain is None else plain / ours
    return {"step": what, "unit": unit, "ours": ours, "straightforward": plain, "ratio": ratio,
            "straightforward_form": named if plain is not None else ""}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, help="where to write the rows as JSON, with a record beside it")
    parser.add_argument("--mirror", default=os.environ.get("NOSCRATCH_MIRROR"), help="where IMDB and SST-2 come from")
    parser.add_argument(
        "--images", type=int, default=4 * PART, help="images at 256 pixels whose preparation is watched"
    )
    args = parser.parse_args()
    watch = Stopwatch(Path(__file__).parents[1], "cpu")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for source in ("imdb", "sst2"):
            sources.fetch(source, work / source, network=args.mirror is None, mirror=args.mirror, progress=True)
        made = (text_rows(work / "imdb", work), piece_rows(work / "sst2"), memory_rows(args.images, work))
        for each in chain.from_iterable(made):
            plain = "" if each["straightforward"] is None else f"{each['straightforward']:9.1f}{each['ratio']:8.1f} x"
            print(f"{each['step']:62}{each['ours']:9.2f} {each['unit']:4}{plain}", flush=True)
            rows.append(each)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(rows, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_bench(args.out.parent, "preparation", {"images": args.images}, MODULES, watch)


if __name__ == "__main__":
    main()
