"""Sources: the registry against the mirror, what can be had, fetching with and without a mirror."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from noscratch import sources
from noscratch.errors import NoscratchError
from noscratch.sources import unpack
from noscratch.sources.registry import SOURCES

MIRROR = Path(os.environ.get("NOSCRATCH_MIRROR") or Path(__file__).resolve().parents[1] / "../shared/data")
needs_mirror = pytest.mark.skipif(
    not (MIRROR / "PROVENANCE.md").is_file(), reason="no mirror: NOSCRATCH_MIRROR is unset"
)
GLUE = ("cola", "sst2", "stsb", "rte", "wnli")


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
        for file in form.files:
            assert file.urls or file.mirror
            assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
            assert file.sha256 is None or file.bytes is not None
            assert all(url.startswith(("https://", "http://")) for url in file.urls)
            assert not any(path.startswith("/") or ".." in path for path in file.mirror)


@needs_mirror
def test_registry_agrees_with_the_digests_of_the_mirror() -> None:
    listed = dict(
        line.split()[::-1]
        for line in (MIRROR / "PROVENANCE.md").read_text().splitlines()
        if re.match("[0-9a-f]{64} ", line)
    )
    checked = 0
    for source in SOURCES.values():
        for file in (file for form in source.forms for file in form.files):
            for path in set(file.mirror) & set(listed):
                assert file.sha256 == listed[path], path
                assert file.bytes == (MIRROR / path).stat().st_size, path
                checked += 1
    assert checked >= 16


@needs_mirror
@pytest.mark.parametrize("name", [*GLUE, "imdb"])
def test_fetch_from_the_mirror(name: str, tmp_path: Path) -> None:
    assert sources.availability([name], False, str(MIRROR)) == {name: "available"}
    fetched = sources.fetch(name, tmp_path / "out", False, str(MIRROR), False)
    expected = {"train.tsv", "dev.tsv", "test.tsv"} if name in GLUE else {"aclImdb.tar.xz"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected == set(fetched.files)
    assert fetched.form == ("rebuilt" if name == "stsb" else "official tree")
    for file, found in fetched.files.items():
        assert unpack.digest(tmp_path / "out" / file) == found


def test_nothing_asked_for_is_blocked(tmp_path: Path) -> None:
    states = sources.availability(GLUE, False, None)
    assert set(states.values()) == {"blocked: not asked for (network off, no mirror)"}
    with pytest.raises(sources.Blocked, match="network off, no mirror"):
        sources.fetch("cola", tmp_path / "out", False, None, False)
    assert not (tmp_path / "out").exists()


def test_network_makes_what_has_an_address_available() -> None:
    assert set(sources.availability(GLUE, True, None).values()) == {"available"}


def test_unknown_source_names_those_there_are() -> None:
    with pytest.raises(NoscratchError, match=r"unknown source 'colla'; the sources are cola, sst2"):
        sources.availability(["colla"], False, None)


def test_mirror_that_is_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NoscratchError, match="is not a folder"):
        sources.availability(["cola"], False, str(tmp_path / "none"))


@needs_mirror
def test_mirror_that_lacks_a_file_blocks_only_its_source(tmp_path: Path) -> None:
    for folder in ("CoLA", "RTE"):
        shutil.copytree(MIRROR / "glue" / folder, tmp_path / "glue" / folder)
    (tmp_path / "glue/CoLA/dev.tsv").unlink()
    (tmp_path / "imdb").mkdir()
    (tmp_path / "imdb/aclImdb_labelled.tar.xz").write_bytes(b"short")
    assert sources.availability(["cola", "rte", "wnli", "imdb"], False, str(tmp_path)) == {
        "cola": "blocked: the mirror lacks dev.tsv; network off",
        "rte": "available",
        "wnli": "blocked: the mirror holds none of its forms (WNLI.zip, train.tsv); network off",
        "imdb": "blocked: the mirror's aclImdb_labelled.tar.xz has 5 bytes, not the listed 19034988; network off",
    }


@needs_mirror
def test_one_altered_byte_is_refused_with_both_digests(tmp_path: Path) -> None:
    shutil.copytree(MIRROR / "glue/CoLA", tmp_path / "mirror/glue/CoLA")
    victim = tmp_path / "mirror/glue/CoLA/train.tsv"
    data = bytearray(victim.read_bytes())
    expected = unpack.digest(victim)[1]
    data[1000] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(data)
    with pytest.raises(unpack.DigestError) as error:
        sources.fetch("cola", tmp_path / "out", False, str(tmp_path / "mirror"), False)
    message = str(error.value)
    assert "train.tsv" in message
    assert expected in message
    assert unpack.digest(victim)[1] in message
    assert not any((tmp_path / "out").iterdir())
