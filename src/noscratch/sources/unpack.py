"""Archives read member by member, nothing taken on trust.

An archive is hashed before it is opened (`verify`), then walked once, front to back (`members`). Only regular files
come out; a link, a device, an absolute name, a `..`, a name that comes twice, too many members or too many bytes end
the walk with an error. `extract` writes under names of our own, from a table: no name in an archive becomes a path.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import hashlib
import io
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, cast

from noscratch.errors import NoscratchError

CHUNK = 1 << 20
HEADER = 1 << 20  # the longest tar header record (a long name, a pax header) that is read into memory
GRACE = 16 << 20  # archives that unpack to less than this are not bombs, whatever their ratio


class ArchiveError(NoscratchError):
    """An archive that is damaged, breaks a rule of this module or lacks a member."""


class DigestError(NoscratchError):
    """A file whose size or sha256 is not the listed or recorded one."""


class DiskFull(NoscratchError):  # noqa: N818
    """No room for a file."""


@dataclass(frozen=True)
class Limits:
    """Caps of one archive: members, bytes unpacked, bytes unpacked per byte of archive."""

    members: int = 250_000
    bytes: int = 4 << 30
    ratio: int = 100


@dataclass(frozen=True)
class Member:
    """One output of an archive.

    name: the file that is written. paths: where it stands in the archive, the preferred place first (official archives
    nest their roots differently). folder: the paths are folders, and every file below goes, in the archive's order,
    into one uncompressed tar called `name`, so that a set of 200,000 images stays one file.
    """

    name: str
    paths: tuple[str, ...]
    folder: bool = False


@dataclass(frozen=True)
class Entry:
    """A regular file inside an archive: its normalised name, its size, its content (valid until the next entry)."""

    name: str
    bytes: int
    stream: BinaryIO


def digest(path: Path) -> tuple[int, str]:
    """Size in bytes and sha256 of a file."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), sha256


def verify(path: Path, size: int | None, sha256: str | None, what: str = "") -> tuple[int, str]:
    """Size and sha256 of `path`, after comparing them with the listed ones (None: not listed).

    what: the name that messages use, the file's own by default. Raises DigestError; ArchiveError if there is no file.
    """
    what = what or path.name
    if not path.is_file():
        raise ArchiveError(f"{what}: no such file; check the mirror or fetch the source again")
    if size is not None and path.stat().st_size != size:
        raise DigestError(f"{what} has {path.stat().st_size} bytes, expected {size}; {REPLACE}")
    found = digest(path)
    if sha256 is not None and found[1] != sha256:
        raise DigestError(f"{what} has sha256 {found[1]}, expected {sha256}; {REPLACE}")
    return found


REPLACE = "it is not the listed file: replace it by the original or remove it"


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn a full disk (no space, quota, file too large) into one clear error."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(f"{what}: the disk is full ({error.strerror}); free some space and run again") from error
        raise


def members(path: Path, limits: Limits | None = None) -> Iterator[Entry]:
    """The regular files of a tar (plain, gz, xz, bz2) or zip archive, in its order, without unpacking it to disk.

    The kind is told by the first bytes, never by the name. Directories are checked and passed over.
    Raises ArchiveError for anything that is damaged, hostile or beyond `limits`.
    """
    with _damage(path.name):
        yield from _members(path, limits or Limits())


@contextlib.contextmanager
def _damage(archive: str) -> Iterator[None]:
    """Turn what the standard library says of a damaged archive into one error."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise ArchiveError(f"{archive}: damaged archive ({error}); fetch it again") from error
    except (ValueError, NotImplementedError, RuntimeError, OverflowError) as error:
        raise ArchiveError(f"{archive}: not an archive that this reads ({error}); fetch it again") from error
    except OSError as error:
        if error.errno is not None:  # a true input/output error; bz2 reports damage as an OSError without a number
            raise
        raise ArchiveError(f"{archive}: damaged archive ({error}); fetch it again") from error


def extract(path: Path, table: Sequence[Member], out: Path, limits: Limits, rest: Literal["ignore", "refuse"]) -> None:
    """Write the members of an archive that `table` names into the folder `out`, under the table's own names.

    rest: what becomes of a file that the table does not name. Raises ArchiveError, also where an output has no member.
    Where an archive holds several of a member's paths, the first of them in the table is taken.
    """
    places = {place: (member, rank) for member in table for rank, place in enumerate(member.paths)}
    best: dict[str, int] = {}
    with contextlib.ExitStack() as stack, disk_errors(path.name):
        tars: dict[Path, tarfile.TarFile] = {}
        for entry in members(path, limits):
            member, rank = _lookup(places, entry.name)
            if member is None:
                if rest == "refuse":
                    raise ArchiveError(
                        f"{path.name}: holds {entry.name!r}, which is not in its table; not the listed archive"
                    )
                continue
            best[member.name] = min(rank, best.get(member.name, rank))
            target = out / f"{member.name}.{rank}"
            if member.folder:
                if target not in tars:
                    tars[target] = stack.enter_context(tarfile.open(target, "w", format=tarfile.PAX_FORMAT))
                info = tarfile.TarInfo(entry.name.removeprefix(member.paths[rank] + "/"))
                info.size = entry.bytes
                tars[target].addfile(info, entry.stream)
                tars[target].members.clear()  # type: ignore[attr-defined]  # or every member stays in memory
            else:
                with target.open("wb") as file:
                    shutil.copyfileobj(entry.stream, file, CHUNK)
    for member in table:
        if member.name not in best:
            raise ArchiveError(f"{path.name}: lacks {' or '.join(member.paths)}; not the listed archive")
        for rank in range(len(member.paths)):
            candidate = out / f"{member.name}.{rank}"
            if rank == best[member.name]:
                candidate.replace(out / member.name)
            else:
                candidate.unlink(missing_ok=True)


def pack(folder: Path, target: Path, limits: Limits) -> None:
    """Put every file below a folder into one uncompressed tar, sorted by name: the same files give the same bytes.

    Raises ArchiveError for a link, a device or more than `limits` allow.
    """
    with disk_errors(target.name), tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        guard = _Guard(folder, limits)
        for root, folders, files in os.walk(folder, followlinks=False):
            folders.sort()
            for name in sorted([*files, *(name for name in folders if (Path(root) / name).is_symlink())]):
                path = Path(root) / name
                info = tarfile.TarInfo(guard.name(path.relative_to(folder).as_posix()))
                state = path.lstat()
                if not stat.S_ISREG(state.st_mode):
                    raise ArchiveError(f"{folder.name}: {info.name!r} is not a regular file; refused")
                info.size = state.st_size
                if (total := guard.total + info.size) > limits.bytes:
                    raise ArchiveError(f"{folder.name}: holds more than {limits.bytes} bytes; refused")
                guard.total = total
                with path.open("rb") as file:
                    tar.addfile(info, file)
                tar.members.clear()  # type: ignore[attr-defined]


def _lookup(places: dict[str, tuple[Member, int]], name: str) -> tuple[Member, int] | tuple[None, int]:
    """The member of the table that a name belongs to: itself, or the folder that it is below."""
    if name in places and not places[name][0].folder:
        return places[name]
    parent = name
    while "/" in parent:
        parent = parent.rpartition("/")[0]
        if parent in places and places[parent][0].folder:
            return places[parent]
    return None, 0


def _members(path: Path, limits: Limits) -> Iterator[Entry]:
    guard = _Guard(path, limits)
    with path.open("rb") as file:
        head = file.read(6)
        file.seek(0)
        if head.startswith(b"PK"):
            yield from _zip_members(file, guard)
            return
        opened: BinaryIO
        if head.startswith(b"\x1f\x8b"):
            opened = cast(BinaryIO, gzip.GzipFile(fileobj=file))
        elif head.startswith(b"\xfd7zXZ\x00"):
            opened = cast(BinaryIO, lzma.LZMAFile(file))  # noqa: SIM115
        elif head.startswith(b"BZh"):
            opened = cast(BinaryIO, bz2.BZ2File(file))
        else:
            opened = file
        with opened:
            yield from _tar_members(_Forward(opened, guard), guard)


def _tar_members(stream: _Forward, guard: _Guard) -> Iterator[Entry]:
    # tarfile only parses headers here; it extracts nothing, and the data is read past it.
    with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r:") as tar:
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # or a million members stay in memory
            name = guard.name(info.name)
            if info.type == tarfile.DIRTYPE:
                guard.folder(name)
                continue
            if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.issparse():
                raise ArchiveError(f"{guard.archive}: {name!r} is not a regular file but {_kind(info)}; refused")
            guard.file(name, info.size)
            yield Entry(name, info.size, cast(BinaryIO, io.BufferedReader(_Data(stream, info.offset_data, info.size))))
    if not guard.count:
        raise ArchiveError(f"{guard.archive}: an empty archive; fetch it again")
    # To tarfile a damaged header is the end, too; the true end is a block of zeros.
    if stream.last != bytes(tarfile.BLOCKSIZE):
        raise ArchiveError(f"{guard.archive}: a damaged tar header, or its end is missing; fetch it again")
    while stream.read(CHUNK):  # the checksum of a compressed stream is only compared at its end
        pass


def _zip_members(file: BinaryIO, guard: _Guard) -> Iterator[Entry]:
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        if not infos:
            raise ArchiveError(f"{guard.archive}: an empty archive; fetch it again")
        if sum(info.compress_size for info in infos) > guard.size:
            raise ArchiveError(f"{guard.archive}: its members overlap (a zip bomb); refused")
        for info in infos:
            # zipfile cuts a name at NUL; what stands in the archive is what counts.
            name = guard.name(info.orig_filename)
            mode = info.external_attr >> 16 if info.create_system == 3 else 0
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ArchiveError(
                    f"{guard.archive}: {name!r} is neither a regular file nor a folder but {oct(mode)}; refused"
                )
            if info.is_dir() or stat.S_ISDIR(mode):
                guard.folder(name)
                continue
            if info.flag_bits & 1:
                raise ArchiveError(f"{guard.archive}: {name!r} is encrypted; refused")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ArchiveError(
                    f"{guard.archive}: {name!r} uses compression {info.compress_type}, not stored or deflate"
                )
            guard.file(name, info.file_size)
            guard.add(info.file_size)
            with archive.open(info) as data:
                stream = io.BufferedReader(_ZipData(data, info.file_size, guard.archive))
                yield Entry(name, info.file_size, cast(BinaryIO, stream))
                while stream.read(CHUNK):  # the checksum is only compared at the end
                    pass


class _Guard:
    """The rules that hold for every archive: names, duplicates, caps."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.archive = path.name
        self.size = path.stat().st_size
        self.limits = limits
        self.total = 0
        self.count = 0
        self.seen: dict[str, bool] = {}  # name -> is it a file?

    def name(self, name: str) -> str:
        """The name with `.` parts and a final slash dropped; refuses what could leave a folder."""
        self.count += 1
        if self.count > self.limits.members:
            raise ArchiveError(f"{self.archive}: more than {self.limits.members} members; refused")
        if "\x00" in name or "\\" in name or name[1:2] == ":":
            raise ArchiveError(f"{self.archive}: the name {name!r} holds a NUL, a backslash or a drive; refused")
        if name.startswith("/"):
            raise ArchiveError(f"{self.archive}: the name {name!r} is absolute; refused")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise ArchiveError(f"{self.archive}: the name {name!r} holds `..`; refused")
        return "/".join(parts)

    def folder(self, name: str) -> None:
        if self.seen.setdefault(name, False):
            raise ArchiveError(f"{self.archive}: {name!r} is both a file and a folder; refused")

    def file(self, name: str, size: int) -> None:
        if not name:
            raise ArchiveError(f"{self.archive}: a file without a name; refused")
        if size < 0:
            raise ArchiveError(f"{self.archive}: {name!r} has a negative size; refused")
        if name in self.seen:
            raise ArchiveError(f"{self.archive}: {name!r} comes twice; refused")
        self.seen[name] = True
        if size > self.limits.bytes:
            raise ArchiveError(f"{self.archive}: {name!r} says {size} bytes, more than {self.limits.bytes}; refused")

    def add(self, count: int) -> None:
        """Count unpacked bytes."""
        self.total += count
        if self.total > self.limits.bytes:
            raise ArchiveError(f"{self.archive}: unpacks to more than {self.limits.bytes} bytes; refused")
        if self.total > GRACE and self.total > self.limits.ratio * self.size:
            raise ArchiveError(f"{self.archive}: unpacks to more than {self.limits.ratio} times its size; refused")


class _Forward(io.RawIOBase):
    """A decompressed stream as tarfile needs it: it only goes forward, and every byte is counted against the caps.

    A header is read in one piece, whatever length it claims: a piece of more than HEADER bytes is refused before it is
    read, or a few bytes of archive could fill the memory.
    """

    def __init__(self, stream: BinaryIO, guard: _Guard) -> None:
        self.stream = stream
        self.guard = guard
        self.position = 0
        self.last = b""  # the last piece that was read

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= HEADER:
            raise ArchiveError(f"{self.guard.archive}: a tar header of {size} bytes, more than {HEADER}; refused")
        with _damage(self.guard.archive):
            data = self.stream.read(size)
        self.position += len(data)
        self.last = data
        self.guard.add(len(data))
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET or offset < self.position:
            raise ArchiveError(f"{self.guard.archive}: a tar header points backwards; refused")
        while self.position < offset:
            if not self.read(min(CHUNK, offset - self.position)):
                raise ArchiveError(f"{self.guard.archive}: ends in the middle of a member; fetch it again")
        return offset


class _Data(io.RawIOBase):
    """The bytes of one member, read in order from the stream of the archive."""

    def __init__(self, stream: _Forward, start: int, size: int) -> None:
        self.stream = stream
        self.position = start
        self.end = start + size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self.end - self.position, HEADER)
        if not count:
            return 0
        self.stream.seek(self.position)
        data = self.stream.read(count)
        if not data:
            raise ArchiveError(f"{self.stream.guard.archive}: ends in the middle of a member; fetch it again")
        self.position += len(data)
        buffer[: len(data)] = data
        return len(data)


class _ZipData(io.RawIOBase):
    """The bytes of one member of a zip archive."""

    def __init__(self, data: IO[bytes], size: int, archive: str) -> None:
        self.data = data
        self.left = size
        self.archive = archive

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _damage(self.archive):
            data = self.data.read(len(buffer))
        self.left -= len(data)
        if not data and buffer and self.left:  # zipfile does not compare sizes, only checksums
            raise ArchiveError(f"{self.archive}: ends in the middle of a member; fetch it again")
        buffer[: len(data)] = data
        return len(data)


def _kind(info: tarfile.TarInfo) -> str:
    names = {
        tarfile.SYMTYPE: "a symbolic link",
        tarfile.LNKTYPE: "a hard link",
        tarfile.CHRTYPE: "a character device",
        tarfile.BLKTYPE: "a block device",
        tarfile.FIFOTYPE: "a named pipe",
        tarfile.GNUTYPE_SPARSE: "a sparse file",
    }
    return "a sparse file" if info.issparse() else names.get(info.type, f"of type {info.type!r}")
