"""Image, sCIFAR and the released Pathfinder: official layouts in small, and the real images that a mirror has."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from noscratch import tasks
from noscratch.sources.unpack import members
from noscratch.tasks import TaskError, _cifar, image, pathfinder, scifar

EACH = 30  # images of a batch in a small copy


def rows_of(folder: Path, split: str) -> dict[str, list[Any]]:
    with pa.memory_map(str(folder / f"{split}.arrow")) as file:
        columns: dict[str, list[Any]] = pa.ipc.open_file(file).read_all().to_pydict()
        return columns


def small_cifar() -> dict[str, tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Batch -> labels (each class as often), pixels (n, 3, 32, 32)."""
    random = np.random.default_rng(0)
    names = [batch for batches in _cifar.BATCHES.values() for batch in batches]
    return {
        name: (random.permutation(EACH) % 10, random.integers(0, 256, (EACH, 3, 32, 32), np.uint8)) for name in names
    }


def write_binary(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (labels, pixels) in small_cifar().items():
        records = np.concatenate([labels[:, None].astype(np.uint8), pixels.reshape(EACH, -1)], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return folder


def pack(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:xz" if path.suffix == ".xz" else "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def encoded(pixels: NDArray[np.uint8], form: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def jpeg_files() -> tuple[dict[str, bytes], dict[str, str]]:
    """The members of the archive and the label files: images numbered by class in the order of the batches."""
    files, digits = {"README.md": b"read me"}, {}
    for split, batches in _cifar.BATCHES.items():
        counts = dict.fromkeys(_cifar.CLASSES, 0)
        for batch in batches:
            labels, pixels = small_cifar()[batch]
            digits[batch] = "".join(map(str, labels.tolist()))
            for label, one in zip(labels.tolist(), pixels, strict=True):
                word = _cifar.CLASSES[label]
                files[f"{split}/{word}/{counts[word]:04d}.jpg"] = encoded(np.moveaxis(one, 0, 2), "JPEG")
                counts[word] += 1
    return files, digits


def write_jpeg(folder: Path, files: dict[str, bytes], digits: dict[str, str]) -> Path:
    pack(folder / "images.tar.xz", dict(sorted(files.items())))
    for batch, text in digits.items():
        (folder / f"labels_{batch}.txt").write_text(f"{text}\n", encoding="ascii")
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of EACH images, a partial form of 7, and no committed manifest of either."""
    monkeypatch.setattr(_cifar, "PER_BATCH", EACH)
    monkeypatch.setattr(_cifar, "PARTIAL", 7)
    monkeypatch.setattr(_cifar, "check_manifest", lambda *_: None)


def luma(pixels: NDArray[np.uint8]) -> list[list[int]]:
    """Pillow's own gray of images (n, 3, 32, 32)."""
    gray = [np.asarray(Image.fromarray(np.moveaxis(one, 0, 2)).convert("L")) for one in pixels]
    return [one.reshape(-1).tolist() for one in gray]


# ---------------------------------------------------------------- CIFAR-10


def test_gray_is_that_of_pillow() -> None:
    """S4 and Never Train from Scratch read Pillow's mode L; every rounding case of a channel is in a ramp."""
    ramp = np.arange(256, dtype=np.uint8)
    colours = np.array(np.meshgrid(ramp[::5], ramp[::3], ramp[::7])).reshape(3, -1).T.astype(np.uint8)
    expected = np.asarray(Image.fromarray(colours[None]).convert("L"))[0]
    np.testing.assert_array_equal(_cifar.gray(colours), expected)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("protocol", ["clean", "legacy"])
def test_pixels_come_out_as_they_went_in(protocol: str, tmp_path: Path) -> None:
    raw = {"cifar10": write_binary(tmp_path / "raw")}
    for module, name in ((image, "image"), (scifar, "scifar")):
        for copy in ("a", "b"):
            module.prepare(module.Config(protocol=protocol), raw, tmp_path / name / copy)
        for path in (tmp_path / name / "a").iterdir():
            assert path.read_bytes() == (tmp_path / name / "b" / path.name).read_bytes(), f"{path.name}: same bytes"
        seen = {}
        for split in tasks.SPLITS:
            table = rows_of(tmp_path / name / "a", split)
            seen[split] = table["id"]
            for i, tokens, label in zip(table["id"], table["tokens"], table["label"], strict=True):
                batch, _, row = i.partition("/")
                labels, pixels = small_cifar()[batch]
                one = pixels[int(row)]
                expected = luma(one[None])[0] if name == "image" else np.moveaxis(one, 0, 2).reshape(-1).tolist()
                assert tokens == expected, f"{name}, {i}"
                assert label == labels[int(row)]
        assert seen["test"] == [f"test_batch/{i}" for i in range(EACH)]
        official = [f"data_batch_{b}/{i}" for b in range(1, 6) for i in range(EACH)]
        assert sorted(seen["train"] + seen["validation"]) == sorted(official), "a partition of the training set"
        if protocol == "clean":
            assert tasks.held_out(seen["validation"]).all()
            assert not tasks.held_out(seen["train"]).any()
        else:
            places = np.sort(tasks.permutation(150, 42)[135:])
            assert seen["validation"] == [official[i] for i in places]
        meta = json.loads((tmp_path / name / "a" / "meta.json").read_text())
        assert (meta["length"], meta["channels"], meta["protocol"]) == (1024, 1 if name == "image" else 3, protocol)
        assert (meta["inputs"], meta["pretraining"]) == ("pixels", {"ratio": 0.5, "loss": "l1"})


@pytest.mark.usefixtures("small")
def test_a_partial_copy_is_a_task_of_its_own_name_only(tmp_path: Path) -> None:
    folder = write_binary(tmp_path / "raw")
    image.prepare(image.Config(partial=True), {"cifar10": folder}, tmp_path / "whole")
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[: 7 * _cifar.RECORD])
    summary = image.prepare(image.Config(partial=True), {"cifar10": folder}, tmp_path / "part")
    assert sum(part["examples"] for part in summary["splits"].values()) == 6 * 7
    for path in (tmp_path / "part").iterdir():
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes(), "whatever it was cut from"
    assert "first 7 images" in json.loads((tmp_path / "part" / "meta.json").read_text())["title"]
    with pytest.raises(TaskError, match=r"raw/data_batch_1\.bin: 7 images of 30; .* partial one.*`partial: true`"):
        image.prepare(image.Config(), {"cifar10": folder}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("small")
def test_jpeg_copies_take_their_places_and_say_what_they_are(tmp_path: Path) -> None:
    raw = {"cifar10": write_binary(tmp_path / "bin"), "cifar10-jpeg": write_jpeg(tmp_path / "jpg", *jpeg_files())}
    image.prepare(image.Config(), raw, tmp_path / "exact")
    image.prepare(image.Config(source="cifar10-jpeg"), raw, tmp_path / "lossy")
    for split in tasks.SPLITS:
        exact, lossy = rows_of(tmp_path / "exact", split), rows_of(tmp_path / "lossy", split)
        assert (exact["id"], exact["label"]) == (lossy["id"], lossy["label"]), "the same images in the same splits"
        assert exact["tokens"] != lossy["tokens"]
        for one, other in zip(exact["tokens"], lossy["tokens"], strict=True):
            assert np.corrcoef(one, other)[0, 1] > 0.5, "a lossy copy of that image and of no other"
    meta = json.loads((tmp_path / "lossy" / "meta.json").read_text())
    assert "lossy JPEG copies, not the official pixels" in meta["title"]
    assert meta["sources"] == ["cifar10-jpeg"]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("name", "change", "rule"),
    [
        ("data_batch_2.bin", lambda data: data[:-1], r"a batch has 30 records of 3073 bytes, got 92189 bytes"),
        ("data_batch_2.bin", lambda data: data[: 20 * 3073], "a batch has 30 records"),
        ("test_batch.bin", lambda data: b"\x0a" + data[1:], r"test_batch\.bin, record 0: a label is one of 0 to 9"),
        ("data_batch_5.bin", lambda data: bytes([(data[0] + 1) % 10]) + data[1:], "train: 15 images of each class"),
    ],
)
def test_damaged_batches_are_refused(name: str, change: Any, rule: str, tmp_path: Path) -> None:
    folder = write_binary(tmp_path / "raw")
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    with pytest.raises(TaskError, match=rf"{rule}.*[Ff]etch the source again"):
        image.prepare(image.Config(), {"cifar10": folder}, tmp_path / "out")
    (folder / name).unlink()
    with pytest.raises(TaskError, match=rf"raw/{name} is missing"):
        image.prepare(image.Config(), {"cifar10": folder}, tmp_path / "out")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"test/cat/0002.jpg": None}, "images.tar.xz: test lacks 1 images"),
        ({"test/cat/0099.jpg": b"x"}, "test/cat/0099.jpg: not the name of an image"),
        ({"test/lynx/0000.jpg": b"x"}, "test/lynx/0000.jpg: not the name of an image"),
        ({"test/cat/0002.jpg": b"\xff\xd8\xff no"}, "test/cat/0002.jpg: a damaged image"),
        ({"test/cat/0002.jpg": encoded(np.zeros((32, 32), np.uint8), "JPEG")}, "32 x 32 pixels in colour"),
        ({"test/cat/0002.jpg": encoded(np.zeros((8, 8, 3), np.uint8), "JPEG")}, "32 x 32 pixels in colour"),
        ({"test_batch": "12"}, r"labels_test_batch\.txt: 30 digits"),
    ],
)
def test_damaged_copies_are_refused(change: dict[str, Any], rule: str, tmp_path: Path) -> None:
    files, digits = jpeg_files()
    for name, value in change.items():
        if name in digits:
            digits[name] = value
        elif value is None:
            del files[name]
        else:
            files[name] = value
    with pytest.raises(TaskError, match=rule):
        _cifar.read_jpeg(write_jpeg(tmp_path / "jpg", files, digits))


@pytest.mark.parametrize(
    "settings",
    [{"source": "cifar100"}, {"protocol": "mine"}, {"source": "cifar10-jpeg", "partial": True},
     {"protocol": "legacy", "partial": True}],
)  # fmt: skip
def test_variants_that_do_not_exist_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match=r"correct it in params\.yaml"):
        _cifar.variant(image.Config(**settings))


@pytest.fixture(scope="module")
def exact(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cifar10")
    for member in members(mirror / "cifar10" / "cifar-10-first1017.tar.xz"):
        if member.name.endswith(".bin"):
            (folder / member.name.rpartition("/")[2]).write_bytes(member.stream.read())
    return folder


def test_the_real_images_that_are_exact_are_prepared(mirror: Path, exact: Path, tmp_path: Path) -> None:
    """The committed manifest of image-6102 is asserted inside prepare."""
    summary = image.prepare(image.Config(partial=True), {"cifar10": exact}, tmp_path)
    counts = [part["examples"] for part in summary["splits"].values()]
    assert (sum(counts), counts[2]) == (6102, 1017)
    digits = (mirror / "cifar10" / "labels_test_batch.txt").read_text()[:1017]
    table = rows_of(tmp_path, "test")
    assert table["label"] == [int(digit) for digit in digits]
    values = np.concatenate([rows_of(tmp_path, split)["tokens"] for split in ("train", "validation")])
    assert values.mean() == pytest.approx(123.2, abs=0.05), "the mean of Pillow's gray over the 5,085 train images"
    assert values.std() == pytest.approx(61.2, abs=0.05)


# ---------------------------------------------------------------- Pathfinder


def release(n: int = 40, size: int = 32) -> dict[str, bytes]:
    """The layout of a release: batches 10 and 9, whose numbers and names sort differently; n images in all."""
    images = np.random.default_rng(1).integers(0, 256, (n, size, size), np.uint8)
    files, lines = {}, {"9": [], "10": []}
    for i in range(n):
        batch = "9" if i < n // 2 else "10"
        files[f"imgs/{batch}/sample_{i}.png"] = encoded(images[i], "PNG")
        lines[batch].append(f"imgs/{batch} sample_{i}.png {i} {i % 2} 1.0 14 4 2 0.5 1 1")
    return files | {f"metadata/{batch}.npy": ("\n".join(text) + "\n").encode() for batch, text in lines.items()}


@pytest.fixture
def forty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pathfinder, "IMAGES", 40)
    monkeypatch.setattr(pathfinder, "check_manifest", lambda *_: None)


@pytest.mark.usefixtures("forty")
@pytest.mark.parametrize("order", [1, -1])
def test_the_release_is_placed_by_its_metadata(order: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = release()
    pack(tmp_path / "raw" / "pathfinder32.tar", dict(list(files.items())[::order]))
    monkeypatch.setattr(pathfinder, "BATCH_TOKENS", 10 * 1024)
    config = pathfinder.Config(source="lra-pathfinder32")
    summary = pathfinder.prepare(config, {"lra-pathfinder32": tmp_path / "raw"}, tmp_path / "out")
    assert [summary["splits"][split]["examples"] for split in tasks.SPLITS] == [32, 4, 4]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "meta.json", "splits.json", "test.arrow", "train.arrow", "validation.arrow",
    ]  # fmt: skip
    images = np.random.default_rng(1).integers(0, 256, (40, 32, 32), np.uint8).reshape(40, -1)
    drawn = tasks.permutation(40, 42)
    for split, places in zip(tasks.SPLITS, np.split(drawn, [32, 36]), strict=True):
        table = rows_of(tmp_path / "out", split)
        assert table["id"] == [f"{place:06d}" for place in sorted(places)]
        np.testing.assert_array_equal(table["tokens"], images[np.sort(places)])
        assert table["label"] == [place % 2 for place in sorted(places)]
    with pa.memory_map(str(tmp_path / "out" / "train.arrow")) as file:
        assert pa.ipc.open_file(file).num_record_batches == 4, "ten images at a time"
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["sources"] == ["lra-pathfinder32"]
    assert "the release" in meta["title"]


@pytest.mark.usefixtures("forty")
def test_a_limit_keeps_a_part_of_the_release(tmp_path: Path) -> None:
    pack(tmp_path / "raw" / "pathfinder32.tar", release())
    config = pathfinder.Config(source="lra-pathfinder32", train=5, validation=2, test=1)
    summary = pathfinder.prepare(config, {"lra-pathfinder32": tmp_path / "raw"}, tmp_path / "out")
    assert [summary["splits"][split]["examples"] for split in tasks.SPLITS] == [5, 2, 1]


@pytest.mark.usefixtures("forty")
@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({f"imgs/9/sample_{i}.png": b"" for i in range(11)}, r"imgs/9/sample_10.png \(an empty file\) is one more"),
        ({"imgs/9/sample_3.png": encoded(np.zeros((9, 9), np.uint8), "PNG")}, "32 x 32 gray pixels"),
        ({"imgs/9/sample_3.png": encoded(np.zeros((32, 32, 3), np.uint8), "PNG")}, "32 x 32 gray pixels"),
        ({"imgs/9/sample_3.png": None}, r"metadata/9\.npy, row 4: a folder and a file of the archive"),
        ({"metadata/9.npy": None}, "got 20 and 20 that no metadata name"),
        ({"imgs/9/sample_77.png": encoded(np.zeros((32, 32), np.uint8), "PNG")}, "more than 40 images"),
        ({"metadata/9.npy": b"imgs/9 sample_0.png 0 2 1.0\n"}, r"metadata/9\.npy, row 1"),
        ({"metadata/9.npy": b"imgs/9 sample_0.png 0 1 1\nimgs/9 sample_0.png 0 1 1\n"}, r"metadata/9\.npy, row 2"),
    ],
)
def test_a_damaged_release_is_refused_and_leaves_no_pixels(change: dict[str, Any], rule: str, tmp_path: Path) -> None:
    files = {name: data for name, data in (release() | change).items() if data is not None}
    pack(tmp_path / "raw" / "pathfinder32.tar", files)
    with pytest.raises(TaskError, match=rf"pathfinder32\.tar.*{rule}.*[Ff]etch the source again"):
        pathfinder.prepare(
            pathfinder.Config(source="lra-pathfinder32"), {"lra-pathfinder32": tmp_path / "raw"}, tmp_path / "out"
        )
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.usefixtures("forty")
def test_unreadable_images_are_set_aside_with_their_reasons_and_move_no_split(tmp_path: Path) -> None:
    files = release()
    whole = files["imgs/10/sample_30.png"]
    broken = {
        "imgs/10/sample_25.png": b"",
        "imgs/10/sample_30.png": whole[:-40],
        "imgs/9/sample_3.png": b"no image at all",
        "imgs/9/sample_4.png": whole[:100] + bytes([whole[100] ^ 1]) + whole[101:],  # one bit of the pixels
    }
    found = []
    for name, content in (
        ("good", files),
        ("bad", files | broken),
        ("again", dict(reversed((files | broken).items()))),
    ):
        pack(tmp_path / name / "pathfinder32.tar", content)
        config = pathfinder.Config(source="lra-pathfinder32")
        found.append(pathfinder.prepare(config, {"lra-pathfinder32": tmp_path / name}, tmp_path / name / "out"))
    good, bad, again = found
    assert good["quarantine"] == []
    undecoded = "no PNG image that can be decoded"
    reasons = [[name, undecoded if data else "an empty file"] for name, data in sorted(broken.items())]
    assert bad["quarantine"] == again["quarantine"] == reasons
    assert json.loads((tmp_path / "bad" / "out" / "splits.json").read_text())["quarantine"] == reasons
    places = {f"{place:06d}" for place in (25, 30, 3, 4)}
    for split in tasks.SPLITS:
        one, other = rows_of(tmp_path / "good" / "out", split), rows_of(tmp_path / "bad" / "out", split)
        kept = [i for i, name in enumerate(one["id"]) if name not in places]
        assert other == {column: [values[i] for i in kept] for column, values in one.items()}, split
        same = [(tmp_path / name / "out" / f"{split}.arrow").read_bytes() for name in ("bad", "again")]
        assert same[0] == same[1], "whatever the order of the archive"


@given(st.data())
def test_a_changed_image_is_never_taken_for_the_official_one(data: st.DataObject) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (32, 32), np.uint8)
    whole = encoded(pixels, "PNG")
    changed = bytearray(whole[: data.draw(st.integers(0, len(whole)), label="length")])
    for _ in range(data.draw(st.integers(0, 3), label="flips") if changed else 0):
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(TaskError):  # a header of another form
        got = pathfinder._decode(Path("a.tar"), "imgs/0/a.png", bytes(changed), 32)
        assert isinstance(got, str) or np.array_equal(got, pixels.reshape(-1))


@pytest.mark.parametrize(
    "settings",
    [{"source": "lra-pathfinder64"}, {"source": "lra-pathfinder128"}, {"source": "lra-pathfinder32", "seed": 1}],
)
def test_a_release_has_its_own_resolution_and_no_seed(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="the source of Pathfinder is one of lra-pathfinder32"):
        pathfinder.prepare(pathfinder.Config(**settings), {}, tmp_path / "out")


def test_generated_images_are_written_in_parts_that_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pathfinder.Config(train=7, validation=3, test=2)
    whole = pathfinder.prepare(config, {}, tmp_path / "whole")
    monkeypatch.setattr(pathfinder, "BATCH_TOKENS", 3000)
    assert pathfinder.prepare(config, {}, tmp_path / "parts") == whole
    for split in tasks.SPLITS:
        assert rows_of(tmp_path / "parts", split) == rows_of(tmp_path / "whole", split)
    with pa.memory_map(str(tmp_path / "parts" / "train.arrow")) as file:
        assert pa.ipc.open_file(file).num_record_batches == 4, "two images at a time"
