"""Text: the archive of reviews is streamed, checked, turned into bytes; small archives and the real one if present."""

from __future__ import annotations

import io
import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from noscratch import tasks
from noscratch.sources.unpack import ArchiveError
from noscratch.tasks import TaskError, text
from noscratch.tasks.text import Config, Reviews


def small_members(n: int = 24) -> dict[str, bytes]:
    """The layout of the official archive with n reviews of each label in each set."""
    members = {
        "aclImdb/README": b"read me",
        "aclImdb/imdb.vocab": b"the\n",
        "aclImdb/train/labeledBow.feat": b"9 0:9\n",
    }
    for split in ("train", "test"):
        for label, rating in (("neg", 1), ("pos", 7)):
            for i in range(n):
                review = f"{split} {label} {i}<br /><br />caf\xe9 \x85 end " * (1 + i % 3)
                members[f"aclImdb/{split}/{label}/{i}_{rating + i % 4}.txt"] = review.encode()
    return members | {f"aclImdb/train/unsup/{i}_0.txt": b"unlabelled" for i in range(3)}


def pack(path: Path, members: dict[str, bytes], order: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, f"w:{path.suffix[1:]}") as tar:
        for name, data in list(members.items())[::order]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def rows_of(folder: Path, split: str) -> dict[str, list[Any]]:
    with pa.memory_map(str(folder / f"{split}.arrow")) as file:
        columns: dict[str, list[Any]] = pa.ipc.open_file(file).read_all().to_pydict()
        return columns


# ---------------------------------------------------------------- reading


def test_reviews_are_read_whatever_the_order_and_compression(tmp_path: Path) -> None:
    members = small_members()
    one = text.read(pack(tmp_path / "aclImdb.tar.gz", members))
    two = text.read(pack(tmp_path / "aclImdb.tar.xz", members, order=-1))
    for split in ("train", "test"):
        assert one[split].ids == two[split].ids
        assert one[split].texts == two[split].texts
        assert one[split].labels.tolist() == two[split].labels.tolist() == [0] * 24 + [1] * 24
        for name, review, label in zip(one[split].ids, one[split].texts, one[split].labels, strict=True):
            assert members[f"aclImdb/{name}.txt"] == review, "bytes as they are, under the id of their place"
            assert name.startswith(f"{split}/{['neg', 'pos'][label]}/")
        numbers = [int(name.split("/")[2].split("_")[0]) for name in one[split].ids]
        assert numbers == [*range(24), *range(24)], "by label, then by number and not by its digits"


@pytest.mark.parametrize(
    ("name", "data", "rule"),
    [
        ("aclImdb/train/pos/0_7.text", b"x", "a review is named <number>_<rating>.txt"),
        ("aclImdb/train/pos/x_7.txt", b"x", "a review is named <number>_<rating>.txt"),
        ("aclImdb/train/pos/90_4.txt", b"x", "a rating is 1 to 4 in neg, 7 to 10 in pos"),
        ("aclImdb/test/neg/90_0.txt", b"x", "a rating is 1 to 4 in neg, 7 to 10 in pos"),
        ("aclImdb/test/neg/90_3.txt", b"ok \xe9", "the text is UTF-8, byte 4 is not"),
        ("aclImdb/test/neg/90_3.txt", b"", "a review is not empty"),
    ],
)
def test_a_wrong_member_is_refused_by_name(tmp_path: Path, name: str, data: bytes, rule: str) -> None:
    archive = pack(tmp_path / "aclImdb.tar.gz", small_members(3) | {name: data})
    with pytest.raises(TaskError, match=rf"^aclImdb\.tar\.gz, {name}: {rule}.*fetch the source again"):
        text.read(archive)


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    data = lzma.decompress(pack(tmp_path / "aclImdb.tar.xz", small_members(3)).read_bytes())
    (tmp_path / "cut.tar").write_bytes(data[: len(data) // 2])
    with pytest.raises(ArchiveError):
        text.read(tmp_path / "cut.tar")


def test_an_archive_that_is_not_the_official_one_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    pack(tmp_path / "raw" / "aclImdb.tar.gz", small_members())
    with pytest.raises(TaskError, match=r"imdb/train: the official set has 12500 .* 33132823 .*got 24 neg, 24 pos"):
        text.prepare(Config(), {"imdb": tmp_path / "raw"}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_totals_hold_both_labels_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    reviews = {split: Reviews([f"{split}/neg/0_1", f"{split}/pos/0_9"], [b"ab", b"c"], np.array([0, 1])) for split in
               ("train", "test")}  # fmt: skip
    monkeypatch.setattr(text, "REVIEWS", 1)
    monkeypatch.setattr(text, "TEXT_BYTES", {"train": 3, "test": 3})
    text.check_totals(reviews)
    for wrong in (
        Reviews(["a", "b"], [b"ab", b"c"], np.array([1, 1])),
        Reviews(["a", "b"], [b"a", b"c"], np.array([0, 1])),
    ):
        with pytest.raises(TaskError, match="imdb/test: the official set has 1 reviews of each label and 3 bytes"):
            text.check_totals(reviews | {"test": wrong})


def test_totals_follow_from_the_published_sizes() -> None:
    """num_bytes of the dataset card: labels of 8 bytes, offsets of 4, one more for each 10,000 rows begun."""
    for split, size in (("train", 33432835), ("test", 32650697)):
        assert text.TEXT_BYTES[split] == size - 25000 * (8 + 4) - 3 * 4


@pytest.mark.parametrize("names", [(), ("aclImdb.tar.gz", "aclImdb.tar.xz")])
def test_one_archive_is_expected(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        pack(tmp_path / name, small_members(2))
    with pytest.raises(TaskError, match=rf"aclImdb\.tar\.gz and aclImdb\.tar\.xz is expected, found {len(names)}"):
        text.prepare(Config(), {"imdb": tmp_path}, tmp_path / "out")


# ---------------------------------------------------------------- preparing


def test_preparing_small_reviews(tmp_path: Path) -> None:
    reviews = text.read(pack(tmp_path / "aclImdb.tar.gz", small_members()))
    splits = text.split(reviews)
    ids = {split: part.ids for split, part in splits.items()}
    assert sorted(ids["train"] + ids["validation"]) == sorted(reviews["train"].ids), "a partition"
    assert ids["validation"], "something is held out"
    assert ids["test"] == reviews["test"].ids, "the official test set, which nothing selects on"
    for name in ("a", "b"):
        summary = text.build(Config(length=60), splits, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["meta.json", "splits.json", "test.arrow", "train.arrow", "validation.arrow"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), f"{name}: same bytes twice"
    meta = json.loads((tmp_path / "a" / "meta.json").read_text())
    assert {key: meta[key] for key in ("vocabulary", "pad", "eos", "mask", "length", "classes")} == {
        "vocabulary": 259, "pad": 0, "eos": 257, "mask": 258, "length": 60, "classes": 2,
    }  # fmt: skip
    assert meta["pretraining"] == {"ratio": 0.15, "loss": "cross-entropy"}
    for split, part in splits.items():
        stored = rows_of(tmp_path / "a", split)
        assert stored["id"] == part.ids
        assert stored["label"] == part.labels.tolist()
        for review, tokens in zip(part.texts, stored["tokens"], strict=True):
            assert tokens == [byte + 1 for byte in review[:59]] + [257]
    assert summary["splits"]["test"]["lengths"]["max"] == 60


def test_limits_keep_nested_subsets(tmp_path: Path) -> None:
    splits = text.split(text.read(pack(tmp_path / "aclImdb.tar.gz", small_members())))
    kept = {}
    for n in (4, 15):
        text.build(Config(length=20, train=n, validation=1, test=n), splits, tmp_path / str(n))
        kept[n] = {split: rows_of(tmp_path / str(n), split)["id"] for split in tasks.SPLITS}
        assert [len(kept[n][split]) for split in tasks.SPLITS] == [n, 1, n]
    assert set(kept[4]["train"]) < set(kept[15]["train"])
    assert set(kept[4]["test"]) < set(kept[15]["test"])


@pytest.mark.parametrize("protocol", ["clean", "legacy"])
def test_characters_that_are_frequent_in_the_kept_training_texts_have_ids(protocol: str, tmp_path: Path) -> None:
    members = small_members()
    members["aclImdb/test/pos/5_8.txt"] += "\u0436".encode() * 40
    splits = text.split(text.read(pack(tmp_path / "aclImdb.tar.gz", members)), protocol)
    config = Config(length=50, tokens="characters", protocol=protocol)
    summary = text.build(config, splits, tmp_path / "out")
    alphabet = json.loads((tmp_path / "out" / "characters.json").read_text(encoding="utf-8"))
    assert list(alphabet) == sorted(set(alphabet))
    assert "\u0436" not in alphabet, "frequent in the test set alone"
    assert {"\xe9", "\x85", " ", "<"} <= set(alphabet)
    assert summary["vocabulary"] == len(alphabet) + 4
    meta = json.loads((tmp_path / "out" / "meta.json").read_text(encoding="utf-8"))
    assert (meta["eos"], meta["mask"], meta["protocol"]) == (2, len(alphabet) + 3, protocol)
    table = rows_of(tmp_path / "out", "test")
    reviews = {i: review.decode() for i, review in zip(splits["test"].ids, splits["test"].texts, strict=True)}
    for i, tokens in zip(table["id"], table["tokens"], strict=True):
        assert tokens == [*(alphabet.find(c) + 3 if c in alphabet else 1 for c in reviews[i][:49]), 2]


def test_the_legacy_protocol_selects_on_the_test_set_and_says_so(tmp_path: Path) -> None:
    reviews = text.read(pack(tmp_path / "aclImdb.tar.gz", small_members()))
    splits = text.split(reviews, "legacy")
    assert splits["train"] is reviews["train"]
    text.build(Config(length=20, protocol="legacy"), splits, tmp_path / "out")
    table = {split: rows_of(tmp_path / "out", split) for split in tasks.SPLITS}
    assert table["validation"] == table["test"]
    meta = json.loads((tmp_path / "out" / "meta.json").read_text(encoding="utf-8"))
    assert meta["title"] == "Text: the sentiment of IMDB reviews, bytes, selected on the test set"
    for settings in ({"tokens": "words"}, {"protocol": "old"}):
        with pytest.raises(TaskError, match=r"tokens are bytes or characters.*correct it in params\.yaml"):
            text.prepare(Config(**settings), {"imdb": tmp_path}, tmp_path / "none")


# ---------------------------------------------------------------- the real archive


def test_the_vocabulary_of_s4_is_reproduced(mirror: Path, tmp_path: Path) -> None:
    """135 symbols: 131 characters with 15 occurrences in 4095 characters of each text, pad, unknown, end and mask."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "aclImdb.tar.xz").symlink_to(mirror / "imdb" / "aclImdb_labelled.tar.xz")
    config = Config(tokens="characters", protocol="legacy", validation=100, test=100)
    summary = text.prepare(config, {"imdb": tmp_path / "raw"}, tmp_path / "out")
    assert summary["vocabulary"] == 135
    assert summary["splits"]["train"]["examples"] == 25_000
    assert len(json.loads((tmp_path / "out" / "characters.json").read_text(encoding="utf-8"))) == 131


def test_the_real_archive_is_prepared(mirror: Path, tmp_path: Path) -> None:
    """Rows, labels, bytes of text and the committed manifest are asserted inside prepare."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "aclImdb.tar.xz").symlink_to(mirror / "imdb" / "aclImdb_labelled.tar.xz")
    config = Config(length=256, train=500, validation=100, test=200)
    summary = text.prepare(config, {"imdb": tmp_path / "raw"}, tmp_path / "out")
    found = summary["duplicates"]
    assert (found["train"], found["test"], found["shared"]) == (96, 199, 123), "as counted elsewhere"
    assert len(found["shared_ids"]) == 123
    assert [summary["splits"][split]["examples"] for split in tasks.SPLITS] == [500, 100, 200]
    for split in tasks.SPLITS:
        labels = summary["splits"][split]["labels"]
        assert min(labels.values()) > 0.35 * sum(labels.values()), f"{split}: a limit keeps both labels"
