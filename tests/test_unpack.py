"""Archives: good ones are read in every compression; each hostile one is refused with a clear error, none escapes."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noscratch.errors import NoscratchError
from noscratch.sources import unpack
from noscratch.sources.unpack import ArchiveError, DigestError, DiskFull, Limits, Member, extract, members, verify

TEXT = b"one sentence\n" * 300
LIMITS = Limits(members=50, bytes=40 << 20, ratio=50)
TABLE = (Member("data.txt", ("data.txt", "nested/data.txt")),)
END = bytes(1024)


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info.tobuf(tarfile.GNU_FORMAT)


def record(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    return header(name, len(data), kind, link) + data + bytes(-len(data) % 512)


def pax(name: str = "x", **fields: str) -> bytes:
    """A file whose true name, size or kind stands in a pax header before it."""
    info = tarfile.TarInfo(name)
    info.pax_headers = {key.replace("_", "."): value for key, value in fields.items()}
    return info.tobuf(tarfile.PAX_FORMAT)


def with_size(raw: bytes) -> bytes:
    """A header whose twelve size bytes are `raw`, its checksum mended."""
    data = bytearray(header("x"))
    data[124:136] = raw
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\x00 " % sum(data)
    return bytes(data)


GOOD = record("data.txt", TEXT)


def tar(*records: bytes) -> bytes:
    """A good file first, then what is given."""
    return GOOD + b"".join(records) + END


def flip(data: bytes, position: int) -> bytes:
    spoiled = bytearray(data)
    spoiled[position] ^= 0xFF
    return bytes(spoiled)


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        archive.writestr("data.txt", TEXT)
        for name, data in entries:
            archive.writestr(name, data)
    return buffer.getvalue()


def mode(name: str, bits: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = bits << 16
    return info


def twice() -> bytes:
    # Two names of the same length, then one is written over the other: zipfile itself warns about true duplicates.
    return zipped(("copy.txt", b"1")).replace(b"copy.txt", b"data.txt")


def encrypted() -> bytes:
    data = bytearray(zipped())
    central = data.index(b"PK\x01\x02")
    data[6] |= 1
    data[central + 8] |= 1
    return bytes(data)


def overlapping() -> bytes:
    """Two entries of the directory that share one body, as in a non-recursive zip bomb."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.txt", os.urandom(10_000))
        info = archive.infolist()[0]
        for i in range(9):
            other = zipfile.ZipInfo(f"f{i}.txt")
            other.file_size, other.compress_size, other.CRC = info.file_size, info.compress_size, info.CRC
            other.header_offset = info.header_offset
            archive.filelist.append(other)
    return buffer.getvalue()


def lying(field: int, change: int) -> bytes:
    """A zip whose directory tells another size (field 24) or checksum (16) of its first file."""
    data = bytearray(zipped())
    place = data.index(b"PK\x01\x02") + field
    (value,) = struct.unpack_from("<I", data, place)
    struct.pack_into("<I", data, place, value + change)
    return bytes(data)


ZEROS = bytes(30 << 20)
LONG = 3 << 20
# name, how it is made, words of the message
HOSTILE: list[tuple[str, Callable[[], bytes], str]] = [
    # links and devices
    (
        "symlink, absolute",
        lambda: tar(record("l", kind=tarfile.SYMTYPE, link="/etc/passwd")),
        "'l' is .* symbolic link",
    ),
    ("symlink, upwards", lambda: tar(record("l", kind=tarfile.SYMTYPE, link="../../x")), "symbolic link"),
    ("symlink, inside", lambda: tar(record("l", kind=tarfile.SYMTYPE, link="data.txt")), "symbolic link"),
    (
        "file below a symlink",
        lambda: tar(record("l", b"", tarfile.SYMTYPE, "/tmp"), record("l/x", b"1")),
        "symbolic link",
    ),
    ("symlink in the place of the file", lambda: record("data.txt", b"", tarfile.SYMTYPE, "/x") + END, "symbolic link"),
    ("hard link, absolute", lambda: tar(record("l", kind=tarfile.LNKTYPE, link="/etc/passwd")), "hard link"),
    ("hard link, inside", lambda: tar(record("l", kind=tarfile.LNKTYPE, link="data.txt")), "hard link"),
    ("character device", lambda: tar(record("d", kind=tarfile.CHRTYPE)), "character device"),
    ("block device", lambda: tar(record("d", kind=tarfile.BLKTYPE)), "block device"),
    ("named pipe", lambda: tar(record("p", kind=tarfile.FIFOTYPE)), "named pipe"),
    ("contiguous file", lambda: tar(record("c", kind=tarfile.CONTTYPE)), "of type b'7'"),
    ("type that is none", lambda: tar(record("c", kind=b"Z")), "of type b'Z'"),
    ("volume of several", lambda: tar(record("c", kind=b"M")), "of type b'M'"),
    ("sparse file", lambda: tar(header("s", kind=tarfile.GNUTYPE_SPARSE)), "sparse file"),
    (
        "sparse file by pax",
        lambda: tar(pax(GNU_sparse_map="0,0", GNU_sparse_size="9999999999")),
        "sparse file|more than",
    ),
    # names
    ("absolute", lambda: tar(record("/data.txt", b"1")), "'/data.txt' is absolute"),
    ("upwards", lambda: tar(record("../data.txt", b"1")), "holds `..`"),
    ("upwards within", lambda: tar(record("a/../../data.txt", b"1")), "holds `..`"),
    ("nothing but upwards", lambda: tar(record("..", kind=tarfile.DIRTYPE)), "holds `..`"),
    ("upwards at the end", lambda: tar(record("a/..", kind=tarfile.DIRTYPE)), "holds `..`"),
    ("backslashes", lambda: tar(record("..\\data.txt", b"1")), "backslash"),
    ("drive", lambda: tar(record("C:/data.txt", b"1")), "drive"),
    ("upwards by pax", lambda: tar(pax(path="../../data.txt")), "holds `..`"),
    ("absolute by pax", lambda: tar(pax(path="/data.txt")), "is absolute"),
    ("NUL by pax", lambda: tar(pax(path="data.txt\x00.png")), "NUL"),
    ("upwards by a long name", lambda: tar(record("x", b"../" * 60 + b"x\x00", b"L"), record("y")), "holds `..`"),
    ("no name", lambda: tar(record("./", b"1")), "without a name|is not a regular"),
    ("twice", lambda: tar(record("data.txt", b"1")), "'data.txt' comes twice"),
    ("twice in other words", lambda: tar(record("./data.txt", b"1")), "comes twice"),
    ("twice with slashes", lambda: tar(record("a/b", b"1"), record("a//b", b"2")), "'a/b' comes twice"),
    ("file, then folder", lambda: tar(record("data.txt", kind=tarfile.DIRTYPE)), "both a file and a folder"),
    ("folder, then file", lambda: tar(record("d", kind=tarfile.DIRTYPE), record("d", b"1")), "'d' comes twice"),
    # size
    ("too many members", lambda: tar(*[record(f"{i}") for i in range(60)]), "more than 50 members"),
    (
        "too many folders",
        lambda: tar(*[record(f"{i}", kind=tarfile.DIRTYPE) for i in range(60)]),
        "more than 50 members",
    ),
    ("too large by its header", lambda: tar(header("big", 1 << 40)), "says 1099511627776 bytes"),
    ("too large by pax", lambda: tar(pax(size=str(1 << 50))), "says 1125899906842624 bytes"),
    (
        "too large in all",
        lambda: gzip.compress(tar(*[record(f"{i}", ZEROS[: 9 << 20]) for i in range(5)]), 1),
        "times|more than",
    ),
    ("negative size", lambda: tar(with_size(b"\xff" * 11 + b"\xf0")), "negative size|damaged|backwards"),
    ("size that is none", lambda: tar(with_size(b"not a number")), "damaged"),
    ("bomb, gzip", lambda: gzip.compress(tar(record("b", ZEROS))), "more than 50 times its size"),
    ("bomb, xz", lambda: lzma.compress(tar(record("b", ZEROS)), preset=0), "more than 50 times its size"),
    ("bomb, bzip2", lambda: bz2.compress(tar(record("b", ZEROS)), 1), "more than 50 times its size"),
    ("bomb behind the end", lambda: gzip.compress(tar() + ZEROS), "more than 50 times its size"),
    (
        "long header, pax",
        lambda: gzip.compress(tar(header("h", LONG, b"x") + bytes(LONG))),
        "a tar header of 3145728 bytes",
    ),
    (
        "long header, GNU",
        lambda: gzip.compress(tar(header("h", LONG, b"L") + bytes(LONG))),
        "a tar header of 3145728 bytes",
    ),
    (
        "long link, GNU",
        lambda: gzip.compress(tar(header("h", LONG, b"K") + bytes(LONG))),
        "a tar header of 3145728 bytes",
    ),
    ("long header without end", lambda: tar(header("h", 8 << 30, b"x")), "a tar header of"),
    ("headers in headers", lambda: tar(record("h", b"n\x00", b"L") * 3000), "recursion|damaged"),
    # damage
    ("empty file", lambda: b"", "damaged|empty"),
    ("zeros", lambda: END, "empty archive"),
    ("noise", lambda: bytes(range(256)) * 8, "damaged"),
    ("page", lambda: b"<!DOCTYPE html><html>404</html>".ljust(2000), "damaged"),
    ("gzip of a page", lambda: gzip.compress(b"<!DOCTYPE html><html>404</html>".ljust(2000)), "damaged"),
    ("no end", lambda: GOOD, "its end is missing"),
    ("cut in a header", lambda: tar()[: len(GOOD) + 100] + b"x", "damaged|its end is missing"),
    ("cut in a file", lambda: GOOD[:1500], "middle of a member|damaged"),
    ("spoiled second header", lambda: flip(tar(record("b", b"1")), len(GOOD) + 3), "damaged tar header"),
    ("gzip, cut", lambda: gzip.compress(tar(record("n", os.urandom(99_999))))[:-50_000], "damaged"),
    ("gzip, cut at the end", lambda: gzip.compress(tar())[:-4], "damaged"),
    ("gzip, wrong checksum", lambda: flip(gzip.compress(tar()), -6), "damaged .*CRC"),
    ("gzip, spoiled", lambda: flip(gzip.compress(tar(record("n", os.urandom(99_999)))), 60), "damaged"),
    ("xz, spoiled", lambda: flip(lzma.compress(tar(record("n", os.urandom(99_999)))), 50_000), "damaged"),
    ("xz, cut", lambda: lzma.compress(tar(record("n", os.urandom(99_999))))[:50_000], "damaged"),
    ("bzip2, spoiled", lambda: flip(bz2.compress(tar(record("n", os.urandom(99_999)))), 50_000), "damaged"),
    ("bzip2, cut", lambda: bz2.compress(tar(record("n", os.urandom(99_999))))[:50_000], "damaged"),
    # zip
    ("zip: symlink", lambda: zipped((mode("l", stat.S_IFLNK | 0o777), b"/etc/passwd")), "neither a regular file"),
    ("zip: device", lambda: zipped((mode("d", stat.S_IFCHR | 0o666), b"")), "neither a regular file"),
    ("zip: pipe", lambda: zipped((mode("p", stat.S_IFIFO | 0o666), b"")), "neither a regular file"),
    ("zip: socket", lambda: zipped((mode("s", stat.S_IFSOCK | 0o666), b"")), "neither a regular file"),
    ("zip: absolute", lambda: zipped(("/data.txt", b"1")), "is absolute"),
    ("zip: upwards", lambda: zipped(("../data.txt", b"1")), "holds `..`"),
    ("zip: upwards within", lambda: zipped(("a/../../data.txt", b"1")), "holds `..`"),
    ("zip: folder upwards", lambda: zipped(("../d/", b"")), "holds `..`"),
    ("zip: backslashes", lambda: zipped(("..+data.txt", b"1")).replace(b"..+data", b"..\\data"), "backslash"),
    ("zip: drive", lambda: zipped(("C:/data.txt", b"1")), "drive"),
    ("zip: NUL", lambda: zipped(("data.txt+png", b"1")).replace(b"data.txt+", b"data.txt\x00"), "NUL"),
    ("zip: twice", twice, "comes twice"),
    ("zip: file and folder", lambda: zipped(("data.txt/", b"")), "both a file and a folder"),
    ("zip: encrypted", encrypted, "is encrypted"),
    ("zip: bzip2 inside", lambda: zipped(kind=zipfile.ZIP_BZIP2), "compression 12"),
    ("zip: lzma inside", lambda: zipped(kind=zipfile.ZIP_LZMA), "compression 14"),
    ("zip: bomb", lambda: zipped(("b", ZEROS)), "more than 50 times its size"),
    ("zip: too large", lambda: zipped(("b", ZEROS), ("c", ZEROS[: 20 << 20])), "more than 50 times|more than 41943040"),
    ("zip: too many members", lambda: zipped(*[(f"{i}", b"") for i in range(60)]), "more than 50 members"),
    ("zip: overlapping members", overlapping, "overlap"),
    ("zip: two names of one member", lambda: zipped().replace(b"data.txt", b"else.txt", 1), "damaged"),
    ("zip: tells less than it holds", lambda: lying(24, -100), "damaged"),
    ("zip: tells more than it holds", lambda: lying(24, 100), "middle of a member"),
    ("zip: wrong checksum", lambda: lying(16, 1), "damaged .*CRC"),
    ("zip: spoiled", lambda: flip(zipped(("n", os.urandom(9_999)), kind=zipfile.ZIP_STORED), 5_000 + len(TEXT)), "CRC"),
    ("zip: cut", lambda: zipped()[:-30], "damaged"),
    ("zip: empty", lambda: b"PK\x05\x06" + bytes(18), "empty archive"),
    ("zip: only a beginning", lambda: b"PK\x03\x04", "damaged"),
]


def read_all(archive: Path) -> dict[str, bytes]:
    return {entry.name: entry.stream.read() for entry in members(archive, LIMITS)}


@pytest.mark.proves("archives")
@pytest.mark.parametrize(("build", "words"), [pytest.param(*case[1:], id=case[0]) for case in HOSTILE])
def test_hostile_archive_is_refused_and_does_not_escape(build: Callable[[], bytes], words: str, tmp_path: Path) -> None:
    archive, out = tmp_path / "up" / "archive.bin", tmp_path / "up" / "out"
    out.mkdir(parents=True)
    archive.write_bytes(build())
    with pytest.raises(ArchiveError, match=words) as error:
        extract(archive, TABLE, out, LIMITS, "ignore")
    assert str(error.value).startswith("archive.bin: ")
    # Nothing stands outside `out`, no link or device inside, and never a file under its final name.
    assert {path.name for path in tmp_path.iterdir()} == {"up"}
    assert {path.name for path in (tmp_path / "up").iterdir()} == {"archive.bin", "out"}
    assert {path.name for path in out.iterdir()} <= {"data.txt.0"}
    assert all(path.is_file() and not path.is_symlink() for path in out.iterdir())
    with pytest.raises(ArchiveError, match=words):
        read_all(archive)


def test_there_are_enough_hostile_archives() -> None:
    assert len(HOSTILE) >= 40
    assert len({case[0] for case in HOSTILE}) == len(HOSTILE)


FORMATS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "gz": gzip.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
}


@pytest.mark.parametrize("kind", [*FORMATS, "zip"])
def test_good_archives_of_every_kind(kind: str, tmp_path: Path) -> None:
    files = {"a/empty": b"", "a/b/text": TEXT, "large": os.urandom(1_200_000), "n" * 150 + "/long name": b"x" * 512}
    if kind == "zip":
        data = zipped(*files.items())
    else:
        data = FORMATS[kind](tar(record("./", kind=tarfile.DIRTYPE), *[record(*item) for item in files.items()]))
    (tmp_path / "archive").write_bytes(data)
    found = {entry.name: entry.stream.read() for entry in members(tmp_path / "archive")}
    assert found == {"data.txt": TEXT, **files}
    sizes = {entry.name: entry.bytes for entry in members(tmp_path / "archive")}  # without reading any
    assert sizes == {name: len(content) for name, content in found.items()}


@given(
    contents=st.dictionaries(st.text("abc/.é ", min_size=1, max_size=120), st.binary(max_size=2000), max_size=6),
    pieces=st.integers(1, 3000),
)
def test_what_tarfile_writes_is_read_back(
    contents: dict[str, bytes], pieces: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    contents = {f"x{i}{name.replace('/', '_')}": data for i, (name, data) in enumerate(contents.items())} | {
        "last": b"."
    }
    path = tmp_path_factory.mktemp("tar") / "a.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT, compresslevel=1) as out:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))

    def read(stream: io.BufferedIOBase) -> Iterator[bytes]:
        while piece := stream.read(pieces):
            yield piece

    assert {entry.name: b"".join(read(entry.stream)) for entry in members(path)} == contents  # type: ignore[arg-type]


def test_table_names_what_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar(record("nested/other.txt", b"other"), record("junk", b"junk")))
    table = (*TABLE, Member("renamed", ("nested/other.txt",)))
    extract(tmp_path / "a.tar", table, tmp_path, LIMITS, "ignore")
    assert (tmp_path / "renamed").read_bytes() == b"other"
    assert (tmp_path / "data.txt").read_bytes() == TEXT
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "renamed", "data.txt"}


def test_what_is_not_in_the_table_can_be_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar(record("junk", b"junk")))
    with pytest.raises(ArchiveError, match="'junk', which is not in its table"):
        extract(tmp_path / "a.tar", TABLE, tmp_path, LIMITS, "refuse")


def test_missing_member_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(record("junk", b"junk") + END)
    with pytest.raises(ArchiveError, match=r"a\.tar: lacks data\.txt or nested/data\.txt"):
        extract(tmp_path / "a.tar", TABLE, tmp_path, LIMITS, "ignore")


@pytest.mark.parametrize("first", [True, False])
def test_of_two_places_the_first_in_the_table_is_taken(first: bool, tmp_path: Path) -> None:
    records = [record("data.txt", b"right"), record("nested/data.txt", b"wrong")]
    (tmp_path / "a.tar").write_bytes(b"".join(records if first else records[::-1]) + END)
    extract(tmp_path / "a.tar", TABLE, tmp_path, LIMITS, "refuse")
    assert (tmp_path / "data.txt").read_bytes() == b"right"
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "data.txt"}


def test_folder_becomes_one_tar_and_the_other_root_is_left(tmp_path: Path) -> None:
    images = {f"imgs/{i % 3}/sample_{i}.png": os.urandom(40 + i) for i in range(20)}
    inner = [record(f"r/r/p128/hard/{name}", data) for name, data in images.items()]
    outer = [record(f"r/p128/hard/{name}", b"another") for name in images]
    easy = [record("r/r/p128/easy/imgs/0/sample_0.png", b"easy")]
    (tmp_path / "a").write_bytes(gzip.compress(b"".join(outer + inner + easy) + END))
    table = (Member("p128.tar", ("r/r/p128/hard", "r/p128/hard"), folder=True),)
    extract(tmp_path / "a", table, tmp_path, LIMITS, "ignore")
    assert {entry.name: entry.stream.read() for entry in members(tmp_path / "p128.tar")} == images
    assert {path.name for path in tmp_path.iterdir()} == {"a", "p128.tar"}
    again = tmp_path / "again"
    again.mkdir()
    extract(tmp_path / "a", table, again, LIMITS, "ignore")
    assert (again / "p128.tar").read_bytes() == (tmp_path / "p128.tar").read_bytes()


def test_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "a.tar").write_bytes(tar())
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(DiskFull, match=r"a\.tar: the disk is full \(No space left on device\); free some space"):
        extract(tmp_path / "a.tar", TABLE, tmp_path, LIMITS, "ignore")


def test_other_disk_errors_are_not_called_full() -> None:
    with pytest.raises(PermissionError), unpack.disk_errors("x"):
        raise PermissionError(errno.EACCES, "no")


def test_verify_names_file_expected_and_got(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"content")
    size, sha256 = verify(path, 7, None)
    assert verify(path, size, sha256) == (size, sha256)
    with pytest.raises(DigestError, match="the f has 7 bytes, expected 8"):
        verify(path, 8, sha256, "the f")
    with pytest.raises(DigestError, match=f"f has sha256 {sha256}, expected {'0' * 64}"):
        verify(path, 7, "0" * 64)
    with pytest.raises(ArchiveError, match="no such file"):
        verify(tmp_path / "none", None, None)


def test_ratio_counts_from_the_whole_archive_not_from_one_member(tmp_path: Path) -> None:
    # A member of zeros beside noise is fine: real sets compress unevenly.
    data = gzip.compress(tar(record("z", ZEROS[: 20 << 20]), record("n", os.urandom(1 << 20))), 1)
    (tmp_path / "a").write_bytes(data)
    assert sum(entry.bytes for entry in members(tmp_path / "a", LIMITS)) == len(TEXT) + (21 << 20)


def test_errors_are_the_users() -> None:
    assert all(issubclass(error, NoscratchError) for error in (ArchiveError, DigestError, DiskFull))
