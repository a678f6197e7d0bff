"""Sources: the registry against the mirror, what can be had, fetching from a mirror and from the network."""

from __future__ import annotations

import errno
import functools
import http.server
import io
import json
import os
import re
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

import faultserver as fs
from noscratch import sources
from noscratch.errors import NoscratchError
from noscratch.sources import download, unpack
from noscratch.sources.registry import SOURCES, File, Form, Label, Source
from noscratch.sources.unpack import Member

GLUE = ("cola", "sst2", "stsb", "rte", "wnli")
TRAIN, DEV = b"sentence\tlabel\n" * 900, b"sentence\tlabel\n" * 90


def toy_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("Toy/train.tsv"), TRAIN)
        archive.writestr(zipfile.ZipInfo("Toy/dev.tsv"), DEV)
        archive.writestr(zipfile.ZipInfo("Toy/original/notes.txt"), b"what GLUE archives also hold")
    return buffer.getvalue()


ZIP = toy_zip()
MEMBERS = (Member("train.tsv", ("Toy/train.tsv",)), Member("dev.tsv", ("Toy/dev.tsv",)))


def listed(name: str, data: bytes, *mirror: str, urls: tuple[str, ...] = (), members: tuple[Member, ...] = ()) -> File:
    return File(name, len(data), sha256(data).hexdigest(), urls, mirror, members)


def archive(*urls: str) -> Form:
    return Form("official archive", (listed("Toy.zip", ZIP, "glue/Toy.zip", "Toy.zip", urls=urls, members=MEMBERS),))


def tree(label: Label = "official tree") -> Form:
    return Form(label, (listed("train.tsv", TRAIN, "Toy/train.tsv"), listed("dev.tsv", DEV, "Toy/dev.tsv")))


def unpublished(*urls: str) -> Form:
    return Form("official tree", (File("data.bin", None, None, urls, ("data.bin",)),))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make `toy` a source with these forms."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(
        download.Policy, "__init__", functools.partialmethod(download.Policy.__init__, sleep=lambda _: None)
    )

    def register(*forms: Form, blocked: str | None = None) -> None:
        monkeypatch.setitem(SOURCES, "toy", replace(SOURCES["cola"], name="toy", forms=forms, blocked=blocked))

    return register


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., str]:
    """A mirror folder with these files."""

    def write(**files: bytes) -> str:
        (tmp_path / "mirror").mkdir(exist_ok=True)
        for name, data in files.items():
            path = tmp_path / "mirror" / name.replace("__", "/").replace("_tsv", ".tsv").replace("_zip", ".zip")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return str(tmp_path / "mirror")

    return write


@pytest.fixture
def server() -> Iterator[fs.FaultServer]:
    with fs.FaultServer(ZIP) as running:
        yield running


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


BOTH = {"train.tsv": TRAIN, "dev.tsv": DEV}


# The registry


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_says_what_it_is(name: str) -> None:
    source = SOURCES[name]
    assert source.name == name
    assert all((source.title, source.edition, source.homepage, source.licence, source.terms, source.citation))
    assert bool(source.forms) != (source.blocked is not None)


@pytest.mark.parametrize("name", SOURCES)
def test_files_of_the_registry_are_well_formed(name: str) -> None:
    for form in SOURCES[name].forms:
        assert len(set(form.outputs)) == len(form.outputs)
        assert form.label in ("official archive", "official tree") or form.note
        for file in form.files:
            assert file.urls or file.mirror
            assert (file.sha256 is None) == (file.bytes is None)
            assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
            assert all(url.startswith("https://") for url in file.urls)
            assert not any(path.startswith("/") or ".." in path for path in file.mirror)


def test_all_forms_of_a_source_end_in_the_same_files() -> None:
    # Partial forms lack some; IMDB stays an archive, whose name tells its compression.
    for source in SOURCES.values():
        whole = {frozenset(form.outputs) for form in source.forms if form.label != "partial"}
        assert len(whole) <= 1 or source.name == "imdb", source.name
        for form in source.forms:
            assert form.label != "partial" or set(form.outputs) <= next(iter(whole)), source.name


def test_no_digest_stands_for_two_files() -> None:
    files = [file for source in SOURCES.values() for form in source.forms for file in form.files if file.sha256]
    assert len({file.sha256 for file in files}) == len(files) > 30


def test_registry_agrees_with_the_digests_of_the_mirror(mirror: Path) -> None:
    lines = (mirror / "PROVENANCE.md").read_text(encoding="utf-8").splitlines()
    told = {path: digest for digest, path in (line.split() for line in lines if re.match("[0-9a-f]{64}  ", line))}
    checked = 0
    for source in SOURCES.values():
        for file in (file for form in source.forms for file in form.files):
            for path in set(file.mirror) & set(told):
                assert file.sha256 == told[path], path
                assert file.bytes == (mirror / path).stat().st_size, path
                checked += 1
    assert checked == 3 * 5 + 2 + 1 + 1 + 7  # GLUE, QNLI, IMDB, CIFAR-10, its JPEG form


# What can be had


def test_nothing_asked_for_is_blocked(tmp_path: Path) -> None:
    states = sources.availability(GLUE, False, None)
    assert set(states.values()) == {"blocked: not asked for (network off, no mirror)"}
    with pytest.raises(sources.Blocked, match="network off, no mirror"):
        sources.fetch("cola", tmp_path / "out", False, None, False)
    assert not (tmp_path / "out").exists()


def test_network_makes_what_has_an_address_available() -> None:
    states = sources.availability(SOURCES, True, None)
    assert {name for name, state in states.items() if state != "available"} == {"cifar10-jpeg", "wikipedia-bookcorpus"}
    assert sum(name.startswith("lra-") for name in states) == 5
    assert states["cifar10-jpeg"] == "blocked: it has no address"


def test_unknown_source_names_those_there_are() -> None:
    with pytest.raises(NoscratchError, match=r"unknown source 'colla'; the sources are cola, sst2"):
        sources.availability(["colla"], False, None)


def test_mirror_that_is_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NoscratchError, match="is no folder; NOSCRATCH_MIRROR is"):
        sources.availability(["cola"], False, str(tmp_path / "none"))


def test_what_the_mirror_lacks_blocks_only_its_source(toy: Callable[..., None], put: Callable[..., str]) -> None:
    toy(archive("https://127.0.0.1/Toy.zip"), tree())

    def state(network: bool = False, **files: bytes) -> str:
        mirror = put(**files)
        found = sources.availability(["wnli", "toy"], network, mirror)
        shutil.rmtree(mirror)
        assert (found["wnli"] == "available") == network
        assert mirror not in found["toy"]
        return found["toy"]

    assert state() == "blocked: the mirror holds none of its forms (Toy.zip, train.tsv); network off"
    assert state(Toy__train_tsv=TRAIN) == "blocked: the mirror lacks dev.tsv; network off"
    short = state(Toy__train_tsv=TRAIN[:-1], Toy__dev_tsv=DEV)
    assert (
        short == f"blocked: the mirror's train.tsv has {len(TRAIN) - 1} bytes, not the listed {len(TRAIN)}; network off"
    )
    assert state(Toy__train_tsv=TRAIN, Toy__dev_tsv=DEV) == "available"
    assert state(Toy_zip=ZIP) == "available"
    assert state(Toy__train_tsv=TRAIN, network=True) == "available"


def test_source_that_is_only_documented_stays_blocked(toy: Callable[..., None], tmp_path: Path) -> None:
    toy(blocked="no stable address")
    assert sources.availability(["toy"], True, str(tmp_path)) == {"toy": "blocked: no stable address"}
    with pytest.raises(sources.Blocked, match="no stable address"):
        sources.fetch("toy", tmp_path / "out", True, None, False)


def test_whole_forms_stand_before_partial_ones_and_the_mirror_before_the_network(
    toy: Callable[..., None], put: Callable[..., str]
) -> None:
    toy(tree("partial"), archive("https://127.0.0.1/Toy.zip"))
    mirror = put(Toy__train_tsv=TRAIN, Toy__dev_tsv=DEV)
    assert sources.locate("toy-partial", False, mirror) == ("partial", "mirror")
    assert sources.locate("toy-partial", True, mirror) == ("official archive", "network")
    assert sources.locate("toy-partial", True, put(Toy_zip=ZIP)) == ("official archive", "mirror")
    with pytest.raises(sources.Blocked):
        sources.locate("toy-partial", False, None)


def test_a_part_is_taken_only_where_it_is_asked_for(toy: Callable[..., None], put: Callable[..., str]) -> None:
    toy(tree("partial"), archive("https://127.0.0.1/Toy.zip"))
    mirror = put(Toy__train_tsv=TRAIN, Toy__dev_tsv=DEV)
    assert sources.availability(["toy"], False, mirror)["toy"].startswith("blocked: only a part of it is at hand")
    assert sources.locate("toy", True, mirror) == ("official archive", "network")


def test_availability_neither_hashes_nor_asks(
    toy: Callable[..., None], put: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    toy(archive("https://127.0.0.1/Toy.zip"), tree())
    for module, name in ((unpack, "digest"), (unpack, "verify"), (download, "download"), (download, "_open")):
        monkeypatch.setattr(module, name, never)
    mirror = put(Toy__train_tsv=TRAIN, Toy__dev_tsv=DEV)
    assert set(sources.availability(["toy"], True, mirror).values()) == {"available"}


# From a mirror


@pytest.mark.parametrize(
    ("name", "form", "files"),
    [
        *((name, "rebuilt" if name == "stsb" else "official tree", "dev.tsv test.tsv train.tsv") for name in GLUE),
        ("qnli-partial", "partial", "dev.tsv test.tsv"),
        ("imdb", "official tree", "aclImdb.tar.xz"),
        (
            "cifar10-partial",
            "partial",
            "batches.meta.txt " + " ".join(f"data_batch_{i}.bin" for i in range(1, 6)) + " test_batch.bin",
        ),
    ],
)
def test_fetch_from_the_mirror(name: str, form: str, files: str, mirror: Path, tmp_path: Path) -> None:
    assert sources.availability([name], False, str(mirror)) == {name: "available"}
    fetched = sources.fetch(name, tmp_path / "out", False, str(mirror), False)
    assert sorted(contents(tmp_path / "out")) == sorted(fetched.files) == files.split()
    assert (fetched.form, fetched.origin) == (form, "mirror")
    for file, found in fetched.files.items():
        assert unpack.digest(tmp_path / "out" / file) == found


def test_mirror_has_official_archives_or_trees(
    toy: Callable[..., None], put: Callable[..., str], tmp_path: Path
) -> None:
    toy(archive(), tree())
    mirror = put(Toy__train_tsv=TRAIN, Toy__dev_tsv=DEV)
    assert sources.fetch("toy", tmp_path / "tree", False, mirror, False).form == "official tree"
    mirror = put(glue__Toy_zip=ZIP)
    assert sources.fetch("toy", tmp_path / "archive", False, mirror, False).form == "official archive"
    assert contents(tmp_path / "tree") == contents(tmp_path / "archive") == BOTH


@pytest.mark.parametrize("position", [0, 5000, -1])
@pytest.mark.parametrize("kind", ["tree", "archive"])
def test_one_altered_byte_is_refused_with_both_digests(
    kind: str, position: int, toy: Callable[..., None], put: Callable[..., str], tmp_path: Path
) -> None:
    toy(archive(), tree())
    data = bytearray(TRAIN if kind == "tree" else ZIP)
    expected = sha256(data).hexdigest()
    data[min(position, len(data) - 1)] ^= 1
    mirror = put(Toy__train_tsv=bytes(data), Toy__dev_tsv=DEV) if kind == "tree" else put(Toy_zip=bytes(data))
    name = "train.tsv" if kind == "tree" else "Toy.zip"
    message = (
        f"{name} of the mirror has sha256 {sha256(data).hexdigest()}, expected {expected}; it is not the listed file"
    )
    with pytest.raises(unpack.DigestError, match=message):
        sources.fetch("toy", tmp_path / "out", False, mirror, False)
    assert not contents(tmp_path / "out")


def test_true_mirror_with_one_altered_byte(mirror: Path, tmp_path: Path) -> None:
    shutil.copytree(mirror / "glue/CoLA", tmp_path / "mirror/glue/CoLA", copy_function=shutil.copyfile)
    victim = tmp_path / "mirror/glue/CoLA/dev.tsv"
    data = bytearray(victim.read_bytes())
    data[1000] ^= 1
    victim.write_bytes(data)
    with pytest.raises(unpack.DigestError, match=r"dev\.tsv of the mirror has sha256 .* expected 8c013e21"):
        sources.fetch("cola", tmp_path / "out", False, str(tmp_path / "mirror"), False)
    assert not contents(tmp_path / "out")


@pytest.mark.parametrize("kind", ["tree", "archive"])
def test_full_disk_leaves_nothing(
    kind: str, toy: Callable[..., None], put: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    toy(archive(), tree())
    mirror = put(Toy__train_tsv=TRAIN, Toy__dev_tsv=DEV) if kind == "tree" else put(Toy_zip=ZIP)
    monkeypatch.setattr(shutil, "copyfile" if kind == "tree" else "copyfileobj", full)
    with pytest.raises(unpack.DiskFull, match="the disk is full"):
        sources.fetch("toy", tmp_path / "out", False, mirror, False)
    assert not contents(tmp_path / "out")


def test_web_mirror_serves_what_it_has(toy: Callable[..., None], put: Callable[..., str], tmp_path: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    toy(archive(), tree())
    folder = put(Toy__train_tsv=TRAIN, Toy__dev_tsv=DEV)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        mirror = f"http://127.0.0.1:{web.server_port}/"
        assert sources.availability(["toy"], False, mirror) == {"toy": "available"}
        fetched = sources.fetch("toy", tmp_path / "out", False, mirror, False)
        (tmp_path / "mirror/Toy/dev.tsv").unlink()
        with pytest.raises(sources.Blocked, match=r"no address gives dev\.tsv \(answers 404\)"):
            sources.fetch("toy", tmp_path / "none", False, mirror, False)
        web.shutdown()
        thread.join()
    assert fetched.form == "official tree"
    assert contents(tmp_path / "out") == BOTH
    assert not contents(tmp_path / "none")


# From the network


def test_fetch_from_the_network(toy: Callable[..., None], server: fs.FaultServer, tmp_path: Path) -> None:
    urls = [server.script([fs.status(403)]), server.script([fs.cut(50), fs.good])]
    toy(archive(*urls))
    fetched = sources.fetch("toy", tmp_path / "out", True, None, False)
    assert (fetched.form, fetched.origin) == ("official archive", f"network {urls[1]}")
    assert contents(tmp_path / "out") == BOTH


def test_addresses_that_answer_nothing_block(toy: Callable[..., None], server: fs.FaultServer, tmp_path: Path) -> None:
    toy(archive(server.script([fs.status(403)]), server.script([fs.page("text/html")])))
    with pytest.raises(sources.Blocked) as blocked:
        sources.fetch("toy", tmp_path / "out", True, None, False)
    assert blocked.value.reason == "no address gives Toy.zip (answers 403; an HTML page instead of the file)"
    assert not contents(tmp_path / "out")


def test_next_form_is_asked_when_the_first_cannot_be_reached(
    toy: Callable[..., None], server: fs.FaultServer, tmp_path: Path
) -> None:
    toy(unpublished(server.script([fs.status(404)])), archive(server.script([fs.good])))
    digests = tmp_path / "digests.json"
    assert sources.fetch("toy", tmp_path / "out", True, None, False, digests=digests).form == "official archive"
    assert not digests.exists()


def test_other_content_is_an_error_and_no_reason_to_go_on(
    toy: Callable[..., None], server: fs.FaultServer, tmp_path: Path
) -> None:
    toy(archive(server.script([fs.flipped(100)])), unpublished(server.script([fs.good])))
    with pytest.raises(unpack.DigestError, match=r"Toy\.zip has sha256"):
        sources.fetch("toy", tmp_path / "out", True, None, False, digests=tmp_path / "digests.json")
    assert not contents(tmp_path / "out")


def test_cache_lets_a_killed_fetch_go_on(
    toy: Callable[..., None], server: fs.FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    toy(archive(server.script([fs.good])))
    with monkeypatch.context() as patched:
        patched.setattr(unpack, "extract", die)
        with pytest.raises(Killed):
            sources.fetch("toy", tmp_path / "out", True, None, False, cache=tmp_path / "cache")
    assert not contents(tmp_path / "out")
    sources.fetch("toy", tmp_path / "out", True, None, False, cache=tmp_path / "cache")
    assert contents(tmp_path / "out") == BOTH
    assert server.requests == 1


def test_check_asks_every_address_and_downloads_nothing(toy: Callable[..., None], server: fs.FaultServer) -> None:
    urls = [server.script([fault]) for fault in (fs.good, fs.status(404), fs.as_if(lambda c: c + b"x"))]
    toy(archive(*urls))
    assert sources.check("toy") == {
        urls[0]: "ok",
        urls[1]: "no address gives file.bin (answers 404)",
        urls[2]: f"has {len(ZIP) + 1} bytes, not the listed {len(ZIP)}",
    }
    assert server.sent <= len(fs.PAGE)


# Trust on first use


def test_unpublished_digest_is_recorded_and_a_change_refused(
    toy: Callable[..., None], put: Callable[..., str], tmp_path: Path
) -> None:
    toy(unpublished())
    digests = tmp_path / "digests.json"
    with pytest.raises(NoscratchError, match="no published digest"):
        sources.fetch("toy", tmp_path / "out", False, put(**{"data.bin": b"first"}), False)
    for _ in range(2):
        fetched = sources.fetch("toy", tmp_path / "out", False, put(**{"data.bin": b"first"}), False, digests=digests)
    recorded = {"bytes": 5, "sha256": sha256(b"first").hexdigest()}
    assert json.loads(digests.read_text()) == {"official tree: data.bin": recorded}
    assert fetched.files == {"data.bin": (5, recorded["sha256"])}
    with pytest.raises(unpack.DigestError, match=r"were recorded in digests\.json when it was first used; it changed"):
        sources.fetch("toy", tmp_path / "again", False, put(**{"data.bin": b"other"}), False, digests=digests)
    assert not contents(tmp_path / "again")
    assert json.loads(digests.read_text()) == {"official tree: data.bin": recorded}


def test_parallel_fetches_record_all_digests(toy: Callable[..., None], put: Callable[..., str], tmp_path: Path) -> None:
    mirror = put(**{f"f{i}": bytes([i]) for i in range(12)})
    toy()
    digests = tmp_path / "digests.json"
    for i in range(12):
        form = Form("official tree", (File(f"f{i}", None, None, mirror=(f"f{i}",)),))
        SOURCES[f"toy{i}"] = replace(SOURCES["toy"], name=f"toy{i}", forms=(form,))
    try:
        threads = [
            threading.Thread(
                target=sources.fetch,
                args=(f"toy{i}", tmp_path / f"out{i}", False, mirror, False),
                kwargs={"digests": digests},
            )
            for i in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for i in range(12):
            del SOURCES[f"toy{i}"]
    assert len(json.loads(digests.read_text())) == 12


def release(nested: bool) -> dict[str, bytes]:
    root = "lra_release__lra_release__" if nested else "lra_release__"
    files = {f"{root}listops-1000__basic_{split}_tsv": split.encode() for split in ("train", "val", "test")}
    for i in range(4):
        files[f"{root}pathfinder32__curv_contour_length_14__imgs__0__sample_{i}.png"] = bytes([i])
    return files


@pytest.mark.parametrize("nested", [True, False])
def test_unpacked_release_is_taken_at_either_depth(nested: bool, put: Callable[..., str], tmp_path: Path) -> None:
    mirror, digests = put(**release(nested)), tmp_path / "digests.json"
    sources.fetch("lra-listops", tmp_path / "listops", False, mirror, False, digests=digests)
    assert contents(tmp_path / "listops") == {f"basic_{s}.tsv": s.encode() for s in ("train", "val", "test")}
    first = sources.fetch("lra-pathfinder32", tmp_path / "one", False, mirror, False, digests=digests)
    again = sources.fetch("lra-pathfinder32", tmp_path / "two", False, mirror, False, digests=digests)
    assert first == again
    images = {entry.name: entry.stream.read() for entry in unpack.members(tmp_path / "one/pathfinder32.tar")}
    assert images == {f"imgs/0/sample_{i}.png": bytes([i]) for i in range(4)}


def test_folder_with_a_link_is_refused(put: Callable[..., str], tmp_path: Path) -> None:
    mirror = put(**release(True))
    images = Path(mirror) / "lra_release/lra_release/pathfinder32/curv_contour_length_14/imgs"
    for link in (images / "0/link.png", images / "1"):
        link.symlink_to("/etc")
        with pytest.raises(unpack.ArchiveError, match="is not a regular file"):
            sources.fetch("lra-pathfinder32", tmp_path / "out", False, mirror, False, digests=tmp_path / "d.json")
        link.unlink()
    assert not contents(tmp_path / "out")


def test_release_archive_gives_the_inner_of_two_pathfinder_folders(tmp_path: Path) -> None:
    from test_unpack import END, record

    inner, outer = "lra_release/lra_release/", "lra_release/"
    path = "pathfinder128/curv_contour_length_14/imgs/0/sample_0.png"
    (tmp_path / "lra_release.gz").write_bytes(record(outer + path, b"outer") + record(inner + path, b"inner") + END)
    sources.fetch("lra-pathfinder128", tmp_path / "out", False, str(tmp_path), False, digests=tmp_path / "d.json")
    (entry,) = ((e.name, e.stream.read()) for e in unpack.members(tmp_path / "out/pathfinder128.tar"))
    assert entry == ("imgs/0/sample_0.png", b"inner")
    assert set(json.loads((tmp_path / "d.json").read_text())) == {"official archive: lra_release.gz"}


def test_sources_are_frozen() -> None:
    source: Source = SOURCES["cola"]
    with pytest.raises(AttributeError):
        source.edition = "2"  # type: ignore[misc]
